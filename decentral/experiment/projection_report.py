"""What ``decentral project`` prints: a table, a waterfall, how sure it is; the same as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from decentral.cost.algorithms import METHODS, Algorithm
from decentral.cost.layout import Layout
from decentral.cost.optical import verdict
from decentral.cost.projection import Projection, feedback_task, sensitivity
from decentral.cost.scaling import LAWS
from decentral.cost.search import Candidate, pareto, search
from decentral.cost.workload import Transformer
from decentral.errors import InvalidInput
from decentral.experiment.evidence import SYNCHRONOUS, Useful, useful
from decentral.experiment.projections import Plan

WORDS = {
    "peak": "at peak",
    "ceiling": "largest product",
    "shape": "shapes",
    "attention": "attention",
    "memory-bound": "memory-bound",
    "quantization": "quantization",
    "launches": "launches",
    "recompute": "recomputation",
    "routing": "routing",
    "bubble": "bubble",
    "tensor parallel": "tensor parallel",
    "context parallel": "context parallel",
    "expert parallel": "expert parallel",
    "sends": "sends between stages",
    "sharding": "sharding",
    "data parallel": "data parallel",
    "optimizer": "optimizer",
    "projection": "projection of the error",
    "between workers": "between workers",
    "stragglers": "stragglers",
    "data": "data",
    "failures": "failures",
}
"""Part of a step -> what it is called, in the order of the waterfall."""


@dataclass(frozen=True)
class Projected:
    """A plan's projections with what belongs beside them.

    Attributes:
        plan: what was asked.
        projections: one for each algorithm.
        best: the layout of highest MFU of this model, batch and cluster, synchronous; None where no legal layout fits.
        tried: how many legal layouts fit.
        usefulness: one for each algorithm, where there is evidence.
    """

    plan: Plan
    projections: list[Projection]
    best: Candidate | None
    tried: int
    usefulness: Sequence[Useful | None] = field(default_factory=list)


def carry_out(plan: Plan) -> Projected:
    """Project a plan, look for the best attainable MFU, and read its evidence."""
    found = plan.projections()
    seconds = [_plain(one.step_s) for one in found]
    if not all(0 < one < np.inf for one in seconds):
        often = "Failures come more often than the job restarts or saves its state."
        told = often if plan.conditions.device_mtbf_s else ""
        raise InvalidInput("projection", seconds, "steps of finite time", told)
    reference, islands = Algorithm("ddp"), {None}
    islands |= {one.layout.workers for one in found if one.algorithm.kind in SYNCHRONOUS}
    candidates = [
        candidate
        for workers in islands
        for candidate in search(
            plan.model, replace(plan.layouts[0], workers=workers), plan.cluster, reference, plan.conditions
        )
    ]
    best = max(candidates, key=lambda one: one.mfu, default=None)
    given = [useful(plan.evidence, one) for one in found] if plan.evidence else [None] * len(found)
    return Projected(plan, found, best, len(candidates), given)


def data(done: Projected) -> dict[str, Any]:
    """Everything as plain numbers, for JSON: units in the keys."""
    plan = done.plan
    return {
        "name": plan.name,
        "cluster": {
            "device": plan.cluster.device.name, "devices": plan.cluster.devices, "node_size": plan.cluster.node_size,
            "peak_flops_per_s": plan.cluster.peak_flops, "node_bytes_per_s": _finite(plan.cluster.node_bytes_per_s),
        },
        "model": {"parameters": _plain(plan.model.parameters), "active_parameters": _plain(plan.model.active_parameters)},
        "mfu_convention": plan.convention,
        "best_attainable": None if done.best is None else _candidate(done.best),
        "notes": list(plan.notes),
        "algorithms": {
            one.algorithm.label: _numbers(plan, one, more) for one, more in zip(done.projections, done.usefulness, strict=True)
        },
    }  # fmt: skip


def _numbers(plan: Plan, one: Projection, more: Useful | None) -> dict[str, Any]:
    money, co2 = one.run_money, one.run_co2_kg if one.power_known else None
    mfu = {name: _plain(value) for name, value in one.conventions().items()}
    return {
        "step_s": _plain(one.step_s),
        "samples_per_s": _plain(one.samples_per_s),
        "tokens_per_s": _plain(one.tokens_per_s) if isinstance(plan.model, Transformer) else None,
        "mfu": _plain(one.mfu),
        "hfu": _plain(one.hfu),
        "mfu_by_convention": mfu,
        "batch_over_asked": _plain(one.exchange.batch),
        "parts_s": {name: _plain(value) for name, value in one.parts.items()},
        "memory_bytes": {name: _plain(value) for name, value in one.memory.parts.items()},
        "memory_fits": bool(one.memory.fits),
        "memory_verdict": one.memory.verdict,
        "sent_bytes_per_device_and_step": {name: _plain(value) for name, value in one.sent_bytes.items()},
        "link_bytes_per_step": {name: _plain(value) for name, value in one.link_bytes.items()},
        "power_w_per_device": _plain(one.watts) if one.power_known else None,
        "energy_j_per_step": _plain(one.energy_j) if one.power_known else None,
        "run": None if one.conditions.tokens is None else {
            "steps": _plain(one.steps), "hours": _plain(one.run_s) / 3600,
            "kwh": _plain(one.run_kwh) if one.power_known else None,
            "price": None if money is None else _plain(money),
            "co2_kg": None if co2 is None else _plain(co2),
        },
        "trust": [str(trusted) for trusted in plan.trust(one)],
        "step_s_interval": _interval(plan, one),
        "useful": None if more is None else more.data(),
    }  # fmt: skip


def _interval(plan: Plan, one: Projection) -> list[float] | None:
    """80 % of measurements: seconds of a step, where the own step's regime has an interval and nothing else matters."""
    trusted = plan.trust(one)
    if len(trusted) > 1 or trusted[0].low is None or trusted[0].high is None:
        return None
    return [_plain(one.step_s) / trusted[0].high, _plain(one.step_s) / trusted[0].low]


def _plain(value: Any) -> float:
    return float(np.asarray(value))


def _finite(value: Any) -> float | None:
    return _plain(value) if np.isfinite(value) else None


def _candidate(one: Candidate) -> dict[str, Any]:
    lay = one.layout
    names = (
        "tp",
        "pp",
        "dp",
        "ep",
        "micro_batch",
        "virtual",
        "schedule",
        "sharding",
        "recompute",
        "sequence_parallel",
    )
    return {
        "devices": one.devices, "tokens_per_s": one.tokens_per_s, "mfu": one.mfu, "memory_bytes": one.memory_bytes,
        "device_s_per_million_tokens": one.device_s, "layout": {name: _tidy(getattr(lay, name)) for name in names},
    }  # fmt: skip


def _tidy(value: Any) -> Any:
    return value if isinstance(value, str | bool) else int(value)


# -- the report -------------------------------------------------------------------------------------------------------------


def text(done: Projected) -> str:
    """The report, for a terminal."""
    plan, found = done.plan, done.projections
    lines = [f"{plan.name}: {_model_line(plan)}", _cluster_line(plan), _layout_line(plan.layouts[0]), ""]
    lines += _columns([one.algorithm.label for one in found], table_rows(done))
    lines += [
        "",
        "Where a step's time goes: seconds, share of the step, and the MFU that is left of the peak (FLOPs as the model needs",
        "them: causal, nothing twice; above 100 % at the peak of 8 bits, as MFU is over that of 16):",
    ]
    lines += _waterfall(found)
    lines += ["", best_line(done)]
    for one in found:
        lines.append(f"{one.algorithm.label}: memory {one.memory.verdict}")
    lines += ["", "How sure:", *(f"  {line}" for line in sure_lines(done))]
    lines += [f"\n{line}" for line in optical_lines(done)]
    lines += [f"\n{line}" for line in other_lines(done)]
    return "\n".join(lines) + "\n"


def title_lines(done: Projected) -> list[str]:
    """What is projected: model, cluster, layout."""
    return [_model_line(done.plan), _cluster_line(done.plan), _layout_line(done.plan.layouts[0])]


def table_rows(done: Projected) -> list[tuple[str, list[str]]]:
    """Name -> a cell for each algorithm."""
    plan, found = done.plan, done.projections
    tokens = isinstance(plan.model, Transformer)
    rows: list[tuple[str, list[str]]] = [
        ("step", [_seconds(one.step_s) for one in found]),
        ("  80 % of measurements", [_range(_interval(plan, one)) for one in found]),
        ("tokens/s" if tokens else "samples/s", [f"{_plain(one.tokens_per_s):,.0f}" for one in found]),
        (f"MFU ({plan.convention})" if tokens else "MFU", [_percent(_mfu(plan, one)) for one in found]),
        ("useful MFU", _useful_row(done)),
        ("HFU", [_percent(_mfu(plan, one) * one.step.hardware_flops / one.step.model_flops) for one in found]),
        ("batch / batch asked for", [f"{_plain(one.exchange.batch):.2f}" for one in found]),
        ("memory of a device", [f"{_plain(one.memory.total_bytes) / 1e9:.1f} GB" for one in found]),
        ("sent by a device per step", [_bytes(sum(map(_plain, one.sent_bytes.values()))) for one in found]),
        ("  between workers", [_bytes(_plain(one.exchange.sent_bytes)) for one in found]),
        ("inside a node, of a device", [_bytes(_plain(one.link_bytes["scaleup"])) for one in found]),
        ("NICs of a node", [_bytes(_plain(one.link_bytes["network"])) for one in found]),
        ("workers, devices of each", [_workers(one) for one in found]),
        ("staleness", [_staleness(one) for one in found]),
    ]  # fmt: skip
    powered = found[0].power_known
    if powered:
        rows.append(("energy of a step", [f"{_plain(one.energy_j) / 3.6e6:.3g} kWh" for one in found]))
        if plan.conditions.tokens is not None:
            rows.append(("energy of the run", [f"{_plain(one.run_kwh) / 1e3:,.4g} MWh" for one in found]))
    if plan.conditions.tokens is not None:
        rows.append(("the run", [_seconds(one.run_s) for one in found]))
        if plan.conditions.price_per_device_hour is not None:
            rows.append(("price of the run", [f"{_plain(one.run_money):,.0f}" for one in found]))
        if plan.conditions.kg_co2_per_kwh is not None and powered:
            rows.append(("CO2 of the run", [f"{_plain(one.run_co2_kg) / 1e3:,.3g} t" for one in found]))
    return [
        row for row in rows if row[0] != "batch / batch asked for" or any(cell != "1.00" for cell in row[1])
    ]


def sure_lines(done: Projected) -> list[str]:
    """What measurements and simulated runs say of the numbers, and what was assumed."""
    plan, found = done.plan, done.projections
    lines = [f"{one.algorithm.label}: {trusted}" for one in found for trusted in plan.trust(one)]
    for one, more in zip(found, done.usefulness, strict=True):
        if more is not None:
            lines.append(f"{one.algorithm.label}: {more}")
    if any(one.algorithm.kind not in SYNCHRONOUS for one in found) and not plan.evidence:
        lines.append(
            "Not waiting, or averaging rarely, makes a high MFU whatever is learned: useful MFU needs a simulated run in "
            "[evidence]."
        )
    return lines + list(plan.notes)


def optical_lines(done: Projected) -> list[str]:
    """Of each algorithm that has optical units, what its projections take there and on their digital rivals.

    A number of an optical unit depends on its generation, the batch, the mode and the kind of rows, and on whom it is compared
    with: none is reported without them.
    """
    lines = []
    for one in done.projections:
        if one.algorithm.kind == "dfa" and one.algorithm.get("projector") == "optical":
            task, rivals = feedback_task(one)
            try:
                said = verdict(task, rivals)
            except InvalidInput as error:  # the GPU's power is not known: no energy, so no verdict
                said = f"{rivals.unit.name}, {task.words(rivals.unit)}. No comparison: {error}"
            lines.append(
                f"{one.algorithm.label} (a model of an optical unit; none was measured by us):\n{said}"
            )
    return lines


def other_lines(done: Projected) -> list[str]:
    """Loss as scaling laws have it, and MFU in other conventions, of a transformer."""
    plan, found = done.plan, done.projections
    if not isinstance(plan.model, Transformer):
        return []
    lines = []
    if plan.conditions.tokens is not None:
        active = _plain(plan.model.active_parameters)
        laws = ", ".join(
            f"{name} {float(law.loss(active, plan.conditions.tokens)):.3f}" for name, law in LAWS.items()
        )
        lines.append(
            f"Loss that scaling laws (constants recalled) give {active:.3g} parameters and {plan.conditions.tokens:.3g} tokens, "
            f"nats per token, whatever the algorithm: {laws}"
        )
    named = ", ".join(f"{name} {_percent(value)}" for name, value in found[0].conventions().items())
    lines.append(
        f"MFU of {found[0].algorithm.label} in other conventions (16-bit peak, input embedding not counted): {named}"
    )
    return lines


def _model_line(plan: Plan) -> str:
    total, active = _plain(plan.model.parameters), _plain(plan.model.active_parameters)
    said = f"{total / 1e9:.3g} B parameters" if total >= 1e8 else f"{total:,.0f} parameters"
    return said + (f", {active / 1e9:.3g} B active" if active < 0.99 * total else "")


def _cluster_line(plan: Plan) -> str:
    one = plan.cluster
    network = (
        ""
        if not np.isfinite(one.node_bytes_per_s)
        else f", {_plain(one.node_bytes_per_s) * 8 / 1e9:,.0f} Gb/s achieved per node"
    )
    return f"{one.devices} {one.device.name}, {one.node_size} to a node{network}" + (
        f" ({one.name})" if one.name else ""
    )


def _layout_line(one: Layout) -> str:
    said = f"tp {_plain(one.tp):g}, pp {_plain(one.pp):g}, cp {_plain(one.cp):g}, dp {_plain(one.dp):g}, ep {_plain(one.ep):g}"
    said += f"; batch {_plain(one.global_batch):g} in micro-batches of {_plain(one.micro_batch):g}; {one.precision}"
    return said + f"; sharding {one.sharding}, recompute {one.recompute}, schedule {one.schedule}"


def best_line(done: Projected) -> str:
    """The best that this cluster can do."""
    if done.best is None:
        return "Best attainable MFU: no legal synchronous layout of this batch fits into memory."
    lay = done.best.layout
    extra = f", {_plain(lay.virtual):g} virtual stages" if _plain(lay.virtual) > 1 else ""
    return (
        f"Best attainable MFU of this cluster, model and batch (synchronous, best of {done.tried:,} legal layouts that "
        f"fit): {_percent(done.best.mfu)} with tp {_plain(lay.tp):g}, pp {_plain(lay.pp):g}{extra}, dp {_plain(lay.dp):g}, "
        f"ep {_plain(lay.ep):g}, cp {_plain(lay.cp):g}, micro-batch {_plain(lay.micro_batch):g}, sharding {lay.sharding}, "
        f"recompute {lay.recompute}."
    )


def _workers(one: Projection) -> str:
    n = _plain(one.layout.n_workers)
    return f"{n:g} of {_plain(one.layout.devices) / n:g}"


def _staleness(one: Projection) -> str:
    said = METHODS[one.algorithm.kind].staleness
    return f"{_plain(one.algorithm.get('delay_steps')):g} steps" if said == "delay_steps" else said


def _mfu(plan: Plan, one: Projection) -> Any:
    """In the plan's convention, where the workload has one."""
    return one.mfu_in(plan.convention) if isinstance(plan.model, Transformer) else one.mfu


def _useful_row(done: Projected) -> list[str]:
    cells = []
    for one, more in zip(done.projections, done.usefulness, strict=True):
        if one.algorithm.kind in SYNCHRONOUS:
            cells.append("the same")
        elif more is None:
            cells.append("not known")
        else:
            cells.append(more.cell(_plain(_mfu(done.plan, one))))
    return cells


def _waterfall(found: Sequence[Projection]) -> list[str]:
    rows: list[tuple[str, list[str]]] = []
    reached = [0.0] * len(found)
    for part, words in WORDS.items():
        cells = []
        for index, one in enumerate(found):
            seconds = _plain(one.parts.get(part, 0.0))
            reached[index] += seconds
            share = seconds / _plain(one.step_s)
            peak = _plain(one.step.model_flops) / (reached[index] * _plain(one.cluster.peak_flops))
            cells.append(
                f"{_seconds(seconds):>9} {100 * share:5.1f} %  {_percent(peak):>7}" if share >= 5e-4 else ""
            )
        if any(cells):
            rows.append((words, cells))
    return _columns([one.algorithm.label for one in found], rows)


def _columns(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    first = max(len(name) for name, _ in rows)
    widths = [max(len(head), *(len(cells[i]) for _, cells in rows)) for i, head in enumerate(heads)]
    lines = [" " * first + "".join(f"  {head:>{width}}" for head, width in zip(heads, widths, strict=True))]
    for name, cells in rows:
        lines.append(
            f"{name:<{first}}"
            + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        )
    return [line.rstrip() for line in lines]


def search_text(plan: Plan, found: Sequence[Candidate]) -> str:
    """The configurations that nothing beats."""
    best = pareto(found)
    if not best:
        return "No legal layout of this batch fits into memory.\n"
    head = f"{len(found)} legal layouts that fit; {len(best)} that no other beats in throughput, memory and cost at once"
    rows = [
        (
            f"{one.devices}",
            [
                f"{one.tokens_per_s:,.0f}", _percent(one.mfu), f"{one.memory_bytes / 1e9:.1f} GB", f"{one.device_s / 3600:.3f}",
                *(f"{_plain(getattr(one.layout, name)):g}" for name in ("tp", "pp", "virtual", "dp", "ep", "micro_batch")),
                one.layout.sharding, one.layout.recompute,
            ],
        )
        for one in best[:24]
    ]  # fmt: skip
    unit = "tokens/s" if isinstance(plan.model, Transformer) else "samples/s"
    heads = [
        unit,
        "MFU",
        "memory",
        "device-hours/M",
        "tp",
        "pp",
        "virtual",
        "dp",
        "ep",
        "micro",
        "sharding",
        "recompute",
    ]
    more = [f"... and {len(best) - 24} more"] if len(best) > 24 else []
    lines = _columns(heads, [("devices", [""] * len(heads)), *rows])
    del lines[1]
    return "\n".join([head, lines[0].replace(" " * 7, "devices", 1), *lines[1:], *more]) + "\n"


def search_data(found: Sequence[Candidate]) -> dict[str, Any]:
    """The same for JSON: all of the front, and how many there were."""
    return {"legal": len(found), "pareto": [_candidate(one) for one in pareto(found)]}


def sensitivity_data(found: Sequence[Projection]) -> dict[str, dict[str, float]]:
    """Algorithm -> number of the hardware -> d log(step time) / d log(number)."""
    return {one.algorithm.label: sensitivity(one) for one in found}


def sensitivity_text(found: Sequence[Projection]) -> str:
    """D log(step time) / d log(each number of the hardware)."""
    values = list(sensitivity_data(found).values())
    names = dict.fromkeys(name for one in values for name in one)
    rows = [(name, [f"{one.get(name, 0.0):+.3f}" for one in values]) for name in names]
    head = "d log(time of a step) / d log(number): -0.5 means that twice of it saves 29 % of the time"
    return "\n".join([head, *_columns([one.algorithm.label for one in found], rows)]) + "\n"


def _percent(share: Any) -> str:
    return f"{100 * _plain(share):.1f} %"


def _seconds(value: Any) -> str:
    seconds = _plain(value)
    for unit, size in (("days", 86400 * 3), ("h", 3600 * 2), ("s", 1), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / {'days': 86400, 'h': 3600}.get(unit, size):.3g} {unit}"
    return f"{seconds:.3g} s"


def _range(interval: Sequence[float] | None) -> str:
    return "not known" if interval is None else f"{_seconds(interval[0])} - {_seconds(interval[1])}"


def _bytes(value: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} B"
