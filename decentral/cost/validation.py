"""How far predictions are from published measurements, and what that says of a new one.

An error is log(predicted / published); a source counts once, whatever it has published. What is said of a regime comes from
predictions of sources that the constants were not fitted to: each is left out in turn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import least_squares

from decentral.cost.algorithms import METHODS
from decentral.cost.kernels import PRIORS, Constants
from decentral.cost.measurements import REGIMES, Measurement, measurements, read
from decentral.cost.step import CONSTANTS, step

SCALE = 0.08
"""Errors beyond this pull less on a fit (soft L1): log units."""
FITTED = ("dense, 16 bit",)
"""Regimes that the constants are fitted to."""
LARGE_BYTES = 64 * 2**20
"""Payloads of all-reduces that count: below, the benchmark's own latencies do."""
SHARE = 0.8
"""Of measurements of new sources that an interval is meant to hold."""


class Score(NamedTuple):
    """How one source's measurements of a regime were predicted.

    Attributes:
        source: who published.
        errors: (rows,) log(predicted / published), or differences for shares of compute.
        names: of the rows.
    """

    source: str
    errors: np.ndarray
    names: tuple[str, ...]

    @property
    def mean(self) -> float:
        """Mean absolute error."""
        return float(np.abs(self.errors).mean())


def source_of(row: Mapping[str, Any]) -> str:
    """Who published a row, short: what stands before the first bracket, comma or semicolon."""
    said = str((row.get("source") or {}).get("paper", "?"))
    for mark in (" (", ",", ";"):
        said = said.partition(mark)[0]
    return said


def cases(
    rows: Iterable[Mapping[str, Any]] | None = None, *, core: bool = True
) -> tuple[list[tuple[str, Measurement]], dict[str, str]]:
    """``(source and measurement)`` of the rows that can be predicted, and name -> why of those that cannot.

    Args:
        rows: of the set's schema; None: those of the package.
        core: leave out what is not in the balanced subset (of gossip everything counts: there is little).
    """
    found, left = [], {}
    for row in measurements() if rows is None else rows:
        if core and not row.get("core", True) and row.get("regime") != "decentralized-gossip":
            continue
        what = read(row)
        if isinstance(what, str):
            left[str(row.get("id", "?"))] = what
        else:
            found += [(source_of(row), one) for one in what]
    return found, left


def error(one: Measurement, constants: Constants) -> float:
    """log(predicted / published); of a share of compute the difference."""
    predicted = one.predict(constants)
    return (
        predicted - one.published
        if one.quantity == "share of compute"
        else math.log(predicted / one.published)
    )


def counts(one: Measurement) -> bool:
    """Whether a measurement is scored: all but small payloads of collectives."""
    return one.regime != "all-reduce" or (one.extra or {}).get("size", 0) >= LARGE_BYTES


def scores(
    found: Sequence[tuple[str, Measurement]], regime: str, constants: Constants = CONSTANTS
) -> list[Score]:
    """One for each source that has measurements of the regime, in the order they come."""
    grouped: dict[str, list[tuple[float, str]]] = {}
    for source, one in found:
        if one.regime == regime and counts(one):
            grouped.setdefault(source, []).append((error(one, constants), one.name))
    return [
        Score(source, np.array([e for e, _ in errors]), tuple(name for _, name in errors))
        for source, errors in grouped.items()
    ]


def mean_over_sources(found: Sequence[Score]) -> float:
    """Mean of the sources' mean absolute errors."""
    return float(np.mean([score.mean for score in found])) if found else math.nan


def fit(found: Sequence[tuple[str, Measurement]], without: str | None = None) -> Constants:
    """The constants that are fitted: least squares of errors, each source with weight one, pulled to the priors.

    Args:
        found: sources and measurements.
        without: a source that is left out.
    """
    used = [(source, one) for source, one in found if one.regime in FITTED and source != without]
    sources = [source for source, _ in used]
    weights = np.array([1 / math.sqrt(sources.count(source)) for source in sources])
    names = list(PRIORS)

    def constants(x: np.ndarray) -> Constants:
        return replace(
            Constants(),
            **{name: PRIORS[name][0] + z * PRIORS[name][1] for name, z in zip(names, x, strict=True)},
        )

    def residuals(x: np.ndarray) -> np.ndarray:
        chosen = constants(x)
        errors = np.array([error(one, chosen) for _, one in used])
        return np.concatenate([weights * errors / SCALE, x])

    return constants(least_squares(residuals, np.zeros(len(names)), loss="soft_l1").x)


def leave_one_out(found: Sequence[tuple[str, Measurement]], regime: str) -> list[Score]:
    """Each source predicted by constants fitted to all the others; in regimes that nothing is fitted to, the scores."""
    if regime not in FITTED:
        return scores(found, regime)
    sources = dict.fromkeys(source for source, one in found if one.regime == regime)
    return [
        next(score for score in scores(found, regime, fit(found, source)) if score.source == source)
        for source in sources
    ]


def constant_hfu(found: Sequence[tuple[str, Measurement]], regime: str) -> list[Score]:
    """The rival: hardware FLOP/s are a fixed share of peak on each kind of device, the mean of the other sources' log shares."""
    shares: dict[str, list[tuple[str, float, str]]] = {}
    for source, one in found:
        if one.regime != regime or one.model is None or one.layout is None:
            continue
        flops = step(one.model, one.layout, one.cluster).hardware_flops * one.cluster.devices
        steps_per_s = one.published / float(one.layout.global_batch * one.model.sequence)
        share = math.log(float(flops) * steps_per_s / (one.cluster.devices * one.cluster.peak_flops))
        shares.setdefault(source, []).append((one.cluster.device.name[:4], share, one.name))
    result: list[Score] = []
    if len(shares) < 2:
        return result
    for source, own in shares.items():
        others = {
            device: [np.mean([s for kind, s, _ in rows if kind == device]) for name, rows in shares.items()
                     if name != source and any(kind == device for kind, _, _ in rows)]
            for device in {device for rows in shares.values() for device, _, _ in rows}
        }  # fmt: skip
        overall = np.mean([mean for means in others.values() for mean in means])
        errors = [
            np.mean(others[device]) - share if others[device] else overall - share for device, share, _ in own
        ]
        result.append(Score(source, np.array(errors, float), tuple(name for _, _, name in own)))
    return result


# -- what it says of a projection -------------------------------------------------------------------------------------------


class Trust(NamedTuple):
    """What measurements say of predictions in a regime.

    Attributes:
        regime: a key of ``REGIMES``, or what there is no measurement of.
        sources: that measured in it.
        rows: of theirs.
        low: published over predicted, 10 % of what new sources measure is below; None with fewer than three sources.
        high: 10 % is above.
        source: the only one, where there is one.
    """

    regime: str
    sources: int
    rows: int
    low: float | None
    high: float | None
    source: str = ""

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            return (
                f"{self.regime}: 80 % of measurements within {100 * (self.low - 1):+.0f} to {100 * (self.high - 1):+.0f} % "
                f"of the prediction ({self.rows} rows of {self.sources} sources, each left out)"
            )
        if self.sources:
            whose = f"one source ({self.source})" if self.source else f"{self.sources} sources"
            return f"{self.regime}: {self.rows} rows from {whose}, too few for an interval"
        return f"{self.regime}: not validated against any measurement"


EXPOSED = 0.2
"""Of a step, communication between workers beyond which measurements on fast networks say nothing of DDP."""
MEASURED_BY = {
    "ddp": "dense",
    "fsdp": "dense",
    "local_sgd": "low communication",
    "diloco": "low communication",
    "sgp": "gossip",
    "alternating_ring": "gossip",
    "adpsgd": "gossip",
    "dpsgd": "gossip",
}
"""Kind of algorithm -> whose measurements are of it; the others have none."""


MEASURED_ON = {
    "dense, 16 bit": ("A100-SXM4-40GB", "A100-SXM4-80GB", "H100-SXM5-80GB", "H200-SXM", "H800-SXM"),
    "dense, 16 bit, V100": ("V100-SXM2-32GB",),
    "dense, 8 bit": ("H100-SXM5-80GB", "H200-SXM", "B200-SXM", "GB200 (per GPU)"),
    "sparse": ("H100-SXM5-80GB", "H800-SXM", "B200-SXM", "B300-SXM", "GB200 (per GPU)"),
    "dense, TPU": ("TPU v4",),
}
"""Regime -> devices of its rows (H800 is an H100 with less NVLink)."""


def regime_of(device: str, precision: str, sparse: bool) -> str:
    """The regime of a worker's own step; of a device that nobody measured in it, words that are none."""
    regime = "sparse" if sparse else "dense, 8 bit" if precision in ("fp8", "mxfp8") else "dense, 16 bit"
    if not sparse and "TPU" in device:
        regime = "dense, TPU"
    elif not sparse and "V100" in device:
        regime = "dense, 16 bit, V100"
    return regime if device in MEASURED_ON[regime] else f"{regime} on {device}"


def left_out_errors(found: Sequence[tuple[str, Measurement]]) -> dict[str, dict[str, list[float]]]:
    """Regime -> source -> errors, each source left out of the fit: what :func:`trust` reads from ``errors.json``.

    Gossip by the kind of algorithm: what one does says nothing of another.
    """
    kinds = dict.fromkeys(one.algorithm.kind for _, one in found if one.regime == "gossip" and one.algorithm)
    parts = {regime: found for regime in REGIMES if regime != "gossip"} | {
        gossip(kind): [
            pair for pair in found if pair[1].algorithm is not None and pair[1].algorithm.kind == kind
        ]
        for kind in kinds
    }
    return {
        regime: {
            score.source: [round(float(e), 4) for e in score.errors]
            for score in leave_one_out(among, regime.partition(":")[0])
        }
        for regime, among in parts.items()
    }


def gossip(kind: str) -> str:
    """The regime of one kind of gossip."""
    return f"gossip: {kind}"


@cache
def known_errors() -> dict[str, dict[str, list[float]]]:
    """:func:`left_out_errors` of the package's measurements, as ``make validate-cost`` last wrote them."""
    return json.loads(files("decentral.cost").joinpath("errors.json").read_text("utf-8"))


@cache
def trust(regime: str) -> Trust:
    """What the package's measurements say of predictions in a regime, from the errors of sources left out.

    The interval is that of the weighted quantiles, every source with the same weight, in the tails of one source more: with
    three sources it reaches nearly to the worst of their rows.
    """
    errors = known_errors().get(regime, {})
    rows = sum(map(len, errors.values()))
    if len(errors) < 3:
        return Trust(
            regime, len(errors), rows, None, None, next(iter(errors), "") if len(errors) == 1 else ""
        )
    values = np.concatenate([-np.array(one) for one in errors.values()])
    weights = np.concatenate([np.full(len(one), 1 / len(one)) for one in errors.values()])
    order = np.argsort(values)
    reached = (np.cumsum(weights[order]) - weights[order] / 2) / len(errors)
    tail = (1 - SHARE) / 2 * len(errors) / (len(errors) + 1)
    low, high = np.interp([tail, 1 - tail], reached, values[order])
    return Trust(regime, len(errors), rows, float(np.exp(low)), float(np.exp(high)))


def trust_of(kind: str, device: str, precision: str, sparse: bool, exposed: float = 0.0) -> list[Trust]:
    """What there is to say of an algorithm on a worker of this kind: of its own step, and of what happens between workers.

    Args:
        kind: of the algorithm.
        device: its name.
        precision: of the layers' products.
        sparse: whether there are experts.
        exposed: share of the step that is communication between workers: where gradients cost more than 20 %, no measurement
            of a fast network counts.
    """
    own = trust(regime_of(device, precision, sparse))
    whose = MEASURED_BY.get(kind)
    if whose == "dense":
        return [own] if exposed <= EXPOSED else [own, trust(gossip("ddp"))]
    if whose is None:
        return [own, Trust(f"{kind} as a method", 0, 0, None, None)]
    return [own, trust(gossip(kind) if whose == "gossip" else whose)]


# -- the report -----------------------------------------------------------------------------------------------------------------


def report(rows: Iterable[Mapping[str, Any]] | None = None) -> str:
    """The validation report in markdown: per regime and source, worst rows, sources left out, and what is validated.

    Args:
        rows: others than the package's, of the same schema: scored with the constants as they are.
    """
    own = rows is None
    found, left = cases(rows)
    lines = ["# Validation of the cost model", ""]
    lines += [
        "Generated by `make validate-cost`; do not edit. Errors are log(predicted / published), in %: +10 is a throughput",
        "predicted 10 % too high. A source counts once, whatever it has published. How a row is read, and what is assumed where",
        "its source says nothing, stands in `decentral/cost/measurements.py`.",
        "",
    ]
    if own:
        lines += _constants_section(found)
    for regime, words in REGIMES.items():
        lines += _regime_section(found, regime, words, own)
    lines += [
        "## Rows that cannot be predicted",
        "",
        "| rows | what they do not say | for example |",
        "|---:|---|---|",
    ]
    whys: dict[str, list[str]] = {}
    for name, why in left.items():
        whys.setdefault(why, []).append(name)
    lines += [f"| {len(names)} | {why} | {names[0]} |" for why, names in whys.items()]
    if own:
        lines += ["", "## Algorithm and regime", "", *_status_table()]
    return "\n".join(lines) + "\n"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _constants_section(found: Sequence[tuple[str, Measurement]]) -> list[str]:
    given = {source_of(row) for row in measurements() if row["origin"] == "given"}
    early = fit([(source, one) for source, one in found if source in given])
    late = [score for score in scores(found, FITTED[0], early) if score.source not in given]
    everything, now = fit(found), CONSTANTS
    lines = [
        "## Constants",
        "",
        "Two are fitted, to dense training in 16 bits on A100, H100 and their kin, and pay for leaving what was expected of",
        "them. The others are physical, with their sources in `decentral/cost/kernels.py`, `cluster.py` and `network.py`.",
        "In gossip only communication is predicted: compute is taken from the one-peer bars on A100 of Wang et al.",
        "(`SMALL_FLOOR_S`, `SMALL_S_PER_TOKEN`; these bars are no predictions, the all-reduce and ring bars are) and from",
        "BAGUA's Async rows.",
        "",
        "| constant | expected | fitted now | in use | fitted to the sources given first |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {mean:g} ± {width:g} | "
        + " | ".join(f"{getattr(one, name):.3f}" for one in (everything, now, early))
        + " |"
        for name, (mean, width) in PRIORS.items()
    ]
    unfitted = replace(now, **{name: mean for name, (mean, _) in PRIORS.items()})
    first = [(source, one) for source, one in found if source in given]
    lines += [
        "",
        "| dense, 16 bit | mean over sources, % |",
        "|---|---:|",
        f"| sources given first, nothing fitted | {_percent(mean_over_sources(scores(first, FITTED[0], unfitted)))} |",
        f"| the same, fitted to them | {_percent(mean_over_sources(scores(first, FITTED[0], early)))} |",
        f"| the same, each left out of its fit | {_percent(mean_over_sources(leave_one_out(first, FITTED[0])))} |",
        f"| {len(late)} sources found later, constants fitted to the first alone | {_percent(mean_over_sources(late))} |",
        "",
        "Rules and formulas had not seen the later sources when these were first predicted. Three changes since then had:",
        "all-reduces lost their low-latency protocols, collectives that are longer than compute ceased to slow it, and the rule",
        "on overlapping tensor parallelism came in.",
        "",
    ]
    return lines


def _regime_section(
    found: Sequence[tuple[str, Measurement]], regime: str, words: str, own: bool
) -> list[str]:
    now = scores(found, regime)
    if not now:
        return (
            [
                f"## {regime[0].upper()}{regime[1:]}",
                "",
                f"Of {words}: no measurement that can be predicted.",
                "",
            ]
            if own
            else []
        )
    shares = regime == "low communication"
    out = {score.source: score for score in leave_one_out(found, regime)} if own and regime in FITTED else {}
    rival = {score.source: score for score in constant_hfu(found, regime)} if own else {}
    header = (
        "| source | rows | mean | bias |"
        + (" left out |" if out else "")
        + (" constant HFU |" if rival else "")
    )
    rule = "|---|---:|---:|---:|" + ("---:|" if out else "") + ("---:|" if rival else "")
    unit = "differences of the share, in points" if shares else "%"
    lines = [f"## {regime[0].upper()}{regime[1:]}", "", f"Of {words} ({unit}).", "", header, rule]
    for score in now:
        line = f"| {score.source} | {len(score.errors)} | {_percent(score.mean)} | {100 * score.errors.mean():+.1f} |"
        line += f" {_percent(out[score.source].mean)} |" if out else ""
        line += f" {_percent(rival[score.source].mean)} |" if rival else ""
        lines.append(line)
    line = f"| **mean over sources** | {sum(len(s.errors) for s in now)} | **{_percent(mean_over_sources(now))}** | |"
    line += f" **{_percent(mean_over_sources(list(out.values())))}** |" if out else ""
    line += f" **{_percent(mean_over_sources(list(rival.values())))}** |" if rival else ""
    lines += [line, ""]
    worst = sorted(
        ((abs(e), e, name, s.source) for s in now for e, name in zip(s.errors, s.names, strict=True)),
        reverse=True,
    )
    lines += ["Worst rows: " + "; ".join(f"{name} {100 * e:+.0f}" for _, e, name, _ in worst[:6]) + ".", ""]
    if regime in ("gossip", "low communication"):
        lines += _every_row(found, regime)
    return lines


def _every_row(found: Sequence[tuple[str, Measurement]], regime: str) -> list[str]:
    lines = ["| row | published | predicted | error, % |", "|---|---:|---:|---:|"]
    for _, one in found:
        if one.regime == regime:
            predicted = one.predict()
            lines.append(
                f"| {one.name} | {one.published:.4f} | {predicted:.4f} | {100 * error(one, CONSTANTS):+.1f} |"
            )
    return [*lines, ""]


def _status_table() -> list[str]:
    lines = [
        "| algorithm | regime of its step | sources | between workers | sources | status |",
        "|---|---|---:|---|---:|---|",
    ]
    for kind in METHODS:
        whose = MEASURED_BY.get(kind)
        regime = None if whose in (None, "dense") else gossip(kind) if whose == "gossip" else whose
        for own in map(trust, MEASURED_ON):
            status = "interval" if own.low is not None else "too few sources for an interval"
            between = ("in the step", "") if whose == "dense" else ("no measurement", "0")
            if whose is None:
                status = "not validated as a method"
            elif regime is not None:
                other = trust(regime)
                between = (regime, str(other.sources))
                if other.low is None:
                    status = (
                        f"{other.rows} rows of {other.sources} source{'s' * (other.sources > 1)}: no interval"
                    )
            lines.append(
                f"| {kind} | {own.regime} | {own.sources} | {between[0]} | {between[1]} | {status} |"
            )
    return lines


def write(folder: Path, rows_file: Path | None = None) -> str:
    """Write the report to ``docs/validation.md`` and the errors to ``errors.json`` of a checkout; of other rows, return it.

    Args:
        folder: the checkout.
        rows_file: JSON with ``rows`` of the same schema.
    """
    if rows_file is not None:
        return report(json.loads(rows_file.read_text("utf-8"))["rows"])
    errors = json.dumps(left_out_errors(cases()[0]), indent=1)
    (folder / "decentral" / "cost" / "errors.json").write_text(errors + "\n", "utf-8")
    known_errors.cache_clear()
    trust.cache_clear()
    text = report()
    (folder / "docs" / "validation.md").write_text(text, "utf-8")
    return text


if __name__ == "__main__":
    import sys

    sys.stdout.write(write(Path.cwd(), Path(sys.argv[1]) if sys.argv[1:] else None))
