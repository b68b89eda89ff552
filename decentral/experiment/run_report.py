"""The report of a run: its sections, from what lies in its folder."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from decentral.analysis.claims import range_words
from decentral.analysis.page import Content, Markup, Section, cell_words, element, facts, folded, table
from decentral.analysis.page.figures import curves_of, step_bars, title_of
from decentral.analysis.plots import AXES
from decentral.analysis.statistics import TimeToTarget, better_direction, final_metrics, one_copy
from decentral.errors import InvalidInput
from decentral.experiment import folder as folders
from decentral.experiment.compare import COLUMNS, table_rows
from decentral.experiment.compare import _Row as Row
from decentral.experiment.report_page import provenance_section, some, spec_section, whole_page

SHOWN_DIFFERENCES = (
    "loss",
    "suboptimality",
    "distance_to_optimum",
    "consensus_distance",
    "test_accuracy",
    "time_s_to_target",
)

MOST_UNSAID = 0.2
"""Relative difference of a constant as it happened from the one assumed, from which on the reader hears of it."""


@dataclass(frozen=True)
class RunFiles:
    """The files of a run, read when asked for; those of an unfinished one may be missing.

    Attributes:
        path: the folder.
        manifest: its ``manifest.json``.
    """

    path: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the run."""
        return str(self.manifest.get("name") or self.path.name)

    @property
    def finished(self) -> bool:
        """It is whole."""
        return self.manifest.get("status") == "finished"

    @cached_property
    def summary(self) -> dict[str, Any]:
        """``summary.json``; of a run without one what the metrics say."""
        if self.finished or (self.path / "summary.json").is_file():
            return folders.read_json(self.path / "summary.json", "summary")
        seeds = self.manifest.get("seeds") or []
        algorithms = {
            name: {"seeds": seeds, "final": final_metrics({name: metrics})[name]}
            for name, metrics in self.metrics.items()
        }
        return {
            "name": self.name,
            "seeds": seeds,
            "paired": self.manifest.get("paired"),
            "algorithms": algorithms,
        }

    @cached_property
    def metrics(self) -> dict[str, dict[str, np.ndarray]]:
        """Algorithm -> metric -> ``(seeds, records)``, in the order of the spec."""
        file = self.path / "metrics.npz"
        arrays = folders.read_arrays(file, "metrics") if self.finished or file.is_file() else {}
        found: dict[str, dict[str, np.ndarray]] = {}
        for key, values in arrays.items():
            name, _, metric = key.rpartition("/")
            found.setdefault(name, {})[metric] = values
        order = [*(name for name in self.manifest.get("trace", {}) if name in found), *found]
        return {name: found[name] for name in dict.fromkeys(order)}

    @cached_property
    def spec_text(self) -> str:
        """``spec.toml``, or nothing."""
        file = self.path / "spec.toml"
        return file.read_text("utf-8") if file.is_file() else ""

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Its tables."""
        try:
            return tomllib.loads(self.spec_text)
        except tomllib.TOMLDecodeError as error:
            raise InvalidInput("spec.toml", str(self.path), "a run folder's", f"{error}.") from None

    @cached_property
    def tuning(self) -> dict[str, Any]:
        """``tuning.json``, or nothing."""
        file = self.path / "tuning.json"
        return folders.read_json(file, "tuning") if file.is_file() else {}

    @cached_property
    def rows(self) -> list[Row]:
        """The algorithms that recorded something, as a comparison takes them."""
        common = json.dumps(
            [self.summary["seeds"], self.spec.get("problem"), self.spec.get("topology")], sort_keys=True
        )
        return [
            Row(name, name, entry, self.summary["paired"], self.manifest, self.metrics[name], common)
            for name, entry in self.summary["algorithms"].items()
            if entry["final"] and name in self.metrics
        ]

    @property
    def seeds(self) -> int:
        """How many."""
        return len(self.summary["seeds"])


def run_page(run: RunFiles, project: str | Path | None) -> str:
    """The whole file.

    Args:
        run: its files.
        project: a projection to set beside it.
    """
    timelines, missing = _timelines(run)
    data: dict[str, Any] = {}
    if run.rows:
        data["curves"] = curves_of({row.name: row.metrics for row in run.rows})
    if timelines:
        data["timelines"] = timelines
    sections = [
        _results(run),
        _plots(data.get("curves")),
        Section(
            "timeline", "Timeline", element("div", id="timeline-plot") if timelines else element("p", missing)
        ),
        _units(run),
        projection_section(project),
        _claims(run),
        _tuning(run),
        _algorithms(run),
        spec_section(run.spec_text),
        provenance_section(run.path, run.manifest),
    ]
    return whole_page(run.name, run.manifest, [sentence(run), verdict(run)], notes_of(run), sections, data)


# -- in words ----------------------------------------------------------------------------------------------------------


def sentence(run: RunFiles) -> str:
    """What ran, in one sentence."""
    spec, names = run.spec, list(run.summary["algorithms"]) or list(run.manifest.get("trace") or {})
    if not spec:
        return "The run was cut off before it began."
    topology, problem, stop = (spec.get(key, {}) for key in ("topology", "problem", "stop"))
    graph = topology.get("name") if topology.get("kind") == "network" else topology.get("kind")
    about = ", ".join(
        str(problem[key]) if key == "data" else f"{problem[key]} partition"
        for key in ("data", "partition")
        if key in problem
    )
    until = ", ".join(
        f"{cell_words(value)} s" if key.endswith("_s") else f"{cell_words(value)} {key.replace('_', ' ')}"
        for key, value in stop.items()
        if isinstance(value, int | float)
    )
    words = f"{some(len(names), 'algorithm')} on {graph}, {topology.get('n')} workers, {problem.get('kind')}"
    words += f" ({about})" if about else ""
    words += f", until {until}" if until else ""
    return words + f", {some(len(run.manifest.get('seeds') or []), 'seed')}."


def verdict(run: RunFiles) -> str:
    """Who is best at the end, and whether that is more than chance; nothing where nobody can say."""
    metric = primary(run)
    if metric is None or len(run.rows) < 2:
        return ""
    cells = table_rows(run.rows, machine=True)
    means = {row.name: cells[row.label].get(metric) for row in run.rows}
    known = {name: each["mean"] for name, each in means.items() if each and each["mean"] is not None}
    if len(known) < len(means):
        return ""
    pick = max if better_direction(metric) == "above" else min
    best = pick(known, key=lambda name: known[name])
    side = "Highest" if better_direction(metric) == "above" else "Lowest"
    words = f"{side} {title_of(metric).lower()} at the end: {best}, {cell_words(means[best])}"
    chosen = means[best] or {}
    if chosen.get("best"):
        return words + "; the 95 % interval of its paired difference from every other excludes 0."
    if run.seeds < 2:
        return words + " (one seed: nothing is known about chance)."
    return words + "; not separated from all others by their paired 95 % intervals."


def primary(run: RunFiles) -> str | None:
    """The metric that decides: the target's, else the first there is of the usual ones."""
    for row in run.rows:
        if target := row.entry.get("to_target"):
            return target["metric"]
    usual = ("suboptimality", "loss", "test_accuracy")
    return next(
        (metric for metric in usual if all(metric in row.metrics for row in run.rows) and run.rows), None
    )


def notes_of(run: RunFiles) -> list[str]:
    """What a reader has to know before the numbers."""
    manifest, notes = run.manifest, []
    status = manifest.get("status")
    if status != "finished":
        error = manifest.get("error")
        # What diverged would end at the same event again, and a sweep's runs are the sweep's to go on with.
        over = str(error).startswith("Diverged") or manifest.get("failure")
        notes.append(
            f"This run is not finished (status: {status})"
            + (f": {error}" if error else "")
            + ". What was recorded until then is below."
            + ("" if over else f" To go on: decentral resume {run.path}")
        )
        waiting = [name for name in manifest.get("trace") or {} if name not in run.metrics]
        notes += [f"Nothing was recorded of {', '.join(waiting)}."] if waiting else []
    notes += [f"warning: {words}" for words in manifest.get("warnings") or []]
    if resumed := manifest.get("resumed"):
        notes.append(
            f"It was taken up again {some(len(resumed), 'time')}; the numbers are those of a run never cut off."
        )
    if run.rows and run.seeds == 1:
        notes.append("One seed: no intervals, and nothing can be said about chance.")
    if manifest.get("paired") == "tape":
        notes.append("The algorithms ran on traces of their own, drawn from common random tapes.")
    if len(set((manifest.get("steps") or {}).values())) > 1:
        how = ", ".join(f"{name} {word}" for name, word in manifest["steps"].items())
        notes.append(f"Step sizes do not all come from the same place: {how}.")
    if (manifest.get("commit") or {}).get("modified"):
        notes.append("The checkout had changes that were not committed.")
    for row in run.rows:
        bad = [
            m
            for m in ("loss", "suboptimality", "consensus_distance")
            if m in row.metrics and not np.isfinite(row.metrics[m][:, -1]).all()
        ]
        if bad:
            notes.append(f"{row.name}: {', '.join(bad)} is not finite at the end.")
        notes += [] if "warnings" in manifest else _constants_note(row)  # the run itself warned
        if any("distance_to_weighted_optimum" in metric for metric in row.metrics):
            weighted = "distance_to_weighted_optimum"
            told = f"Workers of unequal speeds: {weighted} is from the optimum of the objectives weighted by rates of gradients."
            notes += [] if told in notes else [told]
    for name, entry in (run.tuning.get("algorithms") or {}).items():
        if entry.get("edge") and "warnings" not in manifest:
            notes.append(
                f"{name}: the best {', '.join(entry['edges'])} is on the edge of what was tried; this run decides no claim."
            )
    if any(row.entry.get("units") for row in run.rows):
        notes.append("Optical units are simulated; none was measured by us.")
    return notes


def _constants_note(row: Row) -> list[str]:
    """Where step sizes follow from constants that are not what happened."""
    if (row.manifest.get("steps") or {}).get(row.name) != "theory":
        return []
    told = []
    for constant in ("chi_1", "chi_2"):
        assumed, happened = (
            (row.entry.get(f"{which}{constant}") or [None])[0] for which in ("", "realised_")
        )
        if assumed and happened and abs(happened / assumed - 1) > MOST_UNSAID:
            told.append(f"{constant} {happened:.3g} instead of {assumed:.3g}")
    if not told:
        return []
    return [
        f"{row.name}: step sizes are from constants of the graph; as exchanges happened (first seed): {', '.join(told)}."
    ]


# -- sections ----------------------------------------------------------------------------------------------------------


def _results(run: RunFiles) -> Section | None:
    if not run.rows:
        return Section("results", "Results", element("p", "Nothing was recorded."))
    cells = table_rows(run.rows)
    caption = f"At the end: mean ± half width of the 95 % interval over {run.seeds} seeds (Student's t)"
    caption += (
        "; strong: better than every other row, the paired interval excludes 0." if len(run.rows) > 1 else "."
    )
    parts: list[Content] = [
        _dict_table("algorithm", cells, caption if run.seeds > 1 else "At the end of the one seed.")
    ]
    parts += [_differences(run), _to_target(run)]
    return Section("results", "Results", parts)


def _dict_table(first: str, cells: Mapping[str, Mapping[str, Any]], caption: str) -> Markup:
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    rows = [[name, *(row.get(column) for column in columns)] for name, row in cells.items()]
    return table([first, *columns], rows, caption=caption, sortable=len(rows) > 1)


def _differences(run: RunFiles) -> Markup | None:
    """Each algorithm minus the best, seed by seed."""
    if run.seeds < 2 or len(run.rows) < 2:
        return None
    cells = table_rows(run.rows, machine=True)
    ending = "_minus_best"
    columns = list(
        dict.fromkeys(column for row in cells.values() for column in row if column.endswith(ending))
    )
    hidden = (
        ("consensus_distance", "test_accuracy_worst")
        if all(one_copy(row.metrics) for row in run.rows)
        else ()
    )
    columns = [
        column
        for column in columns
        if column.removesuffix(ending) not in hidden and column.startswith(SHOWN_DIFFERENCES)
    ]
    rows = []
    for name, row in cells.items():
        line: list[Any] = [name]
        for column in columns:
            found = row.get(column)
            if found is None:
                line.append("the best")
                continue
            mean, half = found["mean"], found["half_width"]
            apart = mean is not None and half is not None and abs(mean) > half
            line.append({**found, "best": apart})
        rows.append(line)
    if not columns:
        return None
    heads = ["algorithm", *(_heading(column.removesuffix(ending)) for column in columns)]
    return Markup(
        element("h3", "Paired differences from the best mean")
        + table(
            heads,
            rows,
            caption="Seed by seed on common random tapes, 95 %; strong: it excludes 0 (not corrected for their number).",
        )
    )


def _heading(metric: str) -> str:
    return "s to target" if metric == "time_s_to_target" else COLUMNS.get(metric, metric)


def _to_target(run: RunFiles) -> Markup | None:
    targets = {row.name: row.entry["to_target"] for row in run.rows if row.entry.get("to_target")}
    if not targets:
        return None
    first = next(iter(targets.values()))
    axes = [axis for axis in AXES if any(axis in entry for entry in targets.values())]
    rows = [
        [name, *(_when(TimeToTarget(**entry[axis])) if axis in entry else None for axis in axes)]
        for name, entry in targets.items()
    ]
    how = "at least" if better_direction(first["metric"]) == "above" else "at most"
    title = f"Until {first['metric']} is {how} {cell_words(first['target'])}"
    heads = ["algorithm", *(AXES[axis] for axis in axes)]
    caption = "When each seed first reaches it: mean ± half width of the 95 % interval."
    return Markup(element("h3", title) + table(heads, rows, caption=caption, sortable=len(rows) > 1))


def _when(found: TimeToTarget) -> Any:
    if found.mean is not None:
        return {"mean": found.mean, "half_width": found.half_width}
    return str(found) if found.reached else "not reached"


def _plots(curves: Mapping[str, Any] | None) -> Section | None:
    if curves is None:
        return None
    said = (
        "One seed: no interval."
        if curves["seeds"] == 1
        else "Mean over the seeds; band: its 95 % interval (Student's t)."
    )
    said += (
        " Axes that differ between seeds are their mean. A band that reaches beyond the axes is cut there."
    )
    said += " A lower consensus distance means closer workers, not a better model." * (
        "consensus_distance" in curves["metrics"]
    )
    said += " Only some of the records are drawn, evenly chosen." if curves["left_out"] else ""
    return Section("plots", "Plots", [element("div", id="curves-plot"), element("p", said, class_="small")])


def _timelines(run: RunFiles) -> tuple[list[dict[str, Any]], str]:
    """The views of all traces that were kept; or why there is none."""
    from decentral.analysis.page.timeline import CELLS, SLICES, timeline_view
    from decentral.engine.trace import Trace

    files = sorted(run.path.glob("trace_*.npz"))
    if not files:
        return (
            [],
            "The events were not kept (record.trace = false), or the run ended before they were written.",
        )
    ran_on: dict[str, list[str]] = {}
    for algorithm, trace in (run.manifest.get("trace") or {}).items():
        ran_on.setdefault(trace, []).append(algorithm)
    files.sort(
        key=lambda file: list(ran_on).index(name) if (name := _trace_name(file)) in ran_on else len(ran_on)
    )
    views = []
    for file in files:
        view = timeline_view(Trace.load(file), slices=SLICES // len(files), cells=CELLS // len(files))
        views.append(view | {"name": ", ".join(ran_on.get(_trace_name(file), [_trace_name(file)]))})
    return views, ""


def _trace_name(file: Path) -> str:
    return file.stem.removeprefix("trace_")


def _units(run: RunFiles) -> Section | None:
    """Optical units: no number without the generation, the task, the mode, and that it is a model."""
    rows = []
    for row in run.rows:
        for seed in (row.entry.get("units") or [])[:1]:
            rows += [
                [f"{row.name}: {unit['name']}", unit["hardware"], unit["task"], unit["workers"], unit["requests"], unit["served"],
                 unit["frames"], f"{100 * unit['utilisation']:.3g} %", unit["wait_mean_s"], unit["frames_j"], unit["on_j"]]
                for unit in seed
            ]  # fmt: skip
    if not rows:
        return None
    heads = [
        "unit", "hardware (simulated)", "task", "workers", "requests", "served", "frames", "busy", "mean wait (s)", "J of frames",
        "J switched on",
    ]  # fmt: skip
    told = (
        "First seed. A model of a unit: none was measured by us. Joules are of the head unit alone, without its host. "
        "The digital rivals (a dense product, a fast Walsh–Hadamard transform) are priced by decentral project and by "
        "decentral.optical's verdict."
    )
    return Section("units", "Optical units", table(heads, rows, caption=told))


def projection_section(source: str | Path | None) -> Section | None:
    """A projection beside a run: the numbers of ``decentral project``, where the time goes, and how sure it is.

    Args:
        source: a file or a packaged name; None: nothing.
    """
    if source is None:
        return None
    from decentral.experiment import projection_report as room
    from decentral.experiment.projections import load_plan

    done = room.carry_out(load_plan(source))
    found = done.projections
    parts = {one.algorithm.label: {name: float(np.max(s)) for name, s in one.parts.items()} for one in found}
    heads = ["", *parts]
    said = [
        element("p", "Closed forms for the hardware that is named here, not a measurement of this run: ",
                element("code", f"decentral project {source}")),
        element("ul", [element("li", line) for line in room.title_lines(done)]),
        table(heads, [[name, *cells] for name, cells in room.table_rows(done)]),
        element("h3", "Where the time of a step goes"),
        step_bars(parts, room.WORDS),
        element("p", room.best_line(done)),
        element("h3", "How sure"),
        element("ul", [element("li", f"{one.algorithm.label}: memory {one.memory.verdict}") for one in found],
                [element("li", line) for line in room.sure_lines(done)]),
        [element("pre", line, class_="words", tabindex=0) for line in room.optical_lines(done)],
        [element("p", line, class_="small") for line in room.other_lines(done)],
    ]  # fmt: skip
    return Section("projection", "What it would cost", said)


def _claims(run: RunFiles) -> Section | None:
    """Claims of figures that were drawn from this run: their files lie beside its folder."""
    found = []
    for file in sorted(run.path.resolve().parent.glob("*.json")):
        try:
            plain = json.loads(file.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(plain, dict) and run.path.resolve().name in (plain.get("runs") or ()):
            found += [(str(plain.get("script")), claim) for claim in plain.get("claims") or ()]
    if not found:
        return None
    rows = [
        [claim["id"], claim["statement"], claim["tier"], f"{claim['tag']}: {claim['source']}", _measured(claim),
         range_words(tuple(claim["accepted"])),
         "; ".join(filter(None, (claim["words"], claim["reason"], claim["note"]))), script]
        for script, claim in found
    ]  # fmt: skip
    heads = ["id", "claim", "tier", "known from", "measured", "accepted", "verdict", "script"]
    return Section(
        "claims",
        "Claims",
        table(
            heads,
            rows,
            caption="Of the figures that this run is drawn in; those that fail stay.",
            sortable=True,
        ),
    )


def _measured(claim: Mapping[str, Any]) -> str:
    if claim["measured"] is None:
        return "not finite"
    words = f"{claim['measured']:.4g}"
    return (
        words
        if claim["interval"] is None
        else f"{words} [{claim['interval'][0]:.4g}, {claim['interval'][1]:.4g}]"
    )


def _tuning(run: RunFiles) -> Section | None:
    algorithms = run.tuning.get("algorithms")
    if not algorithms:
        return None
    parts: list[Content] = []
    for name, entry in algorithms.items():
        keys = list(entry["chosen"])
        rows = [
            [
                ", ".join(_value(trial["values"][key]) for key in keys),
                trial["score"],
                sum(value is None for value in trial["final"]),
                "chosen" if trial["values"] == entry["chosen"] else "",
            ]
            for trial in entry["trials"]
        ]
        target = run.tuning.get("target")
        decides = (
            f"final {entry['metric']}"
            if target is None
            else f"seconds to {entry['metric']} {cell_words(target)}"
        )
        heads = [", ".join(keys), f"{decides}, mean", "seeds that diverged", ""]
        edge = f" On the edge of the grid: {', '.join(entry['edges'])}." if entry.get("edge") else ""
        parts.append(
            folded(
                f"{name}: {', '.join(f'{key} = {_value(value)}' for key, value in entry['chosen'].items())}.{edge}",
                table(heads, rows),
            )
        )
    seeds = ", ".join(map(str, run.tuning.get("seeds") or []))
    return Section(
        "tuning", "Tuning", [element("p", f"On seeds {seeds}, which are not the run's own."), parts]
    )


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)  # as it was given: it is no measured number


def _algorithms(run: RunFiles) -> Section | None:
    if not run.rows:
        return None
    parts: list[Content] = []
    for row in run.rows:
        entry = dict(row.entry)
        final = entry.pop("final")
        for key in ("to_target", "units", "seeds"):
            entry.pop(key, None)
        entry.pop("trace", None)
        steps = entry.pop("hyper_parameters", {})
        hyper = (
            facts(steps)
            if isinstance(steps, Mapping)
            else folded("of every seed", [facts(one) for one in steps])
        )
        rows = [[metric, said] for metric, said in final.items()]
        wall = (run.manifest.get("wall_s") or {}).get(row.name)
        parts.append(
            folded(
                row.name,
                element("h3", "Hyper-parameters"),
                hyper,
                element("h3", "What happened"),
                facts(entry),
                *((element("h3", "Wall time (s)"), facts(wall)) if wall else ()),
                element("h3", "All metrics at the end"),
                table(["metric", "mean ± half width"], rows),
            )
        )
    return Section("algorithms", "Algorithms", parts)
