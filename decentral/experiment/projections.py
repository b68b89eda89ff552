"""From a TOML file to projections and their report: what ``decentral project`` does.

Tables: ``model``, ``cluster``, ``parallelism``, one or more ``[[algorithm]]``, and ``stragglers``, ``failures``, ``data``,
``prices``, ``training``, ``evidence``, ``search`` where there is something to say. No JAX, unless the model is a problem to be
measured.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from decentral.cost.algorithms import METHODS, Algorithm
from decentral.cost.cluster import Cluster, of_device
from decentral.cost.conventions import CONVENTIONS
from decentral.cost.layout import Layout, problems
from decentral.cost.memory import OPTIMIZER_BYTES
from decentral.cost.projection import Conditions, Projection, project, sensitivity
from decentral.cost.search import Candidate, pareto, search
from decentral.cost.stragglers import Spread
from decentral.cost.validation import Trust, trust_of
from decentral.cost.workload import LatentAttention, Measured, MoE, ResNet, Transformer, Workload
from decentral.errors import DecentralError, InvalidInput, InvalidInputs, suggest
from decentral.experiment.evidence import Evidence, Useful, useful
from decentral.experiment.overrides import find_spec, read_tables
from decentral.hardware import HARDWARE, Device, device, storage

TABLES = (
    "name", "model", "problem", "cluster", "parallelism", "algorithm", "stragglers", "failures", "data", "prices", "training",
    "evidence", "search",
)  # fmt: skip
MODELS: dict[str, Any] = json.loads(files("decentral.cost").joinpath("models.json").read_text("utf-8"))
"""Name -> fields of a transformer and where they are from."""
CLUSTERS: dict[str, Any] = {entry["name"]: entry for entry in HARDWARE["clusters"]}
"""Name -> device, devices of a node, network."""
WORDS = {
    "peak": "at peak", "ceiling": "largest product", "shape": "shapes", "attention": "attention", "memory-bound": "memory-bound",
    "quantization": "quantization", "launches": "launches", "recompute": "recomputation", "routing": "routing", "bubble": "bubble",
    "tensor parallel": "tensor parallel", "context parallel": "context parallel", "expert parallel": "expert parallel",
    "sends": "sends between stages", "sharding": "sharding", "data parallel": "data parallel", "optimizer": "optimizer",
    "between workers": "between workers", "stragglers": "stragglers", "data": "data", "failures": "failures",
}  # fmt: skip
"""Part of a step -> what it is called, in the order of the waterfall."""


@dataclass(frozen=True)
class Plan:
    """A file, read: what is to be projected.

    Attributes:
        name: of the projection.
        model: the workload.
        cluster: the machine.
        layouts: one for each algorithm; they differ in their workers.
        algorithms: in the order of the file.
        conditions: what the run meets.
        convention: in which MFU is named first.
        evidence: simulated runs that say how many samples an algorithm needs; None: there are none.
        devices: numbers of devices that a search tries.
        notes: what the report has to say of the input.
    """

    name: str
    model: Workload
    cluster: Cluster
    layouts: tuple[Layout, ...]
    algorithms: tuple[Algorithm, ...]
    conditions: Conditions
    convention: str
    evidence: Evidence | None = None
    devices: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def projections(self) -> list[Projection]:
        """One for each algorithm."""
        return [
            project(self.model, layout, self.cluster, algorithm, self.conditions)
            for layout, algorithm in zip(self.layouts, self.algorithms, strict=True)
        ]

    def trust(self, one: Projection) -> list[Trust]:
        """What measurements say of a projection."""
        sparse = isinstance(self.model, Transformer) and self.model.moe is not None
        if not isinstance(self.model, Transformer):
            return [Trust(f"{type(self.model).__name__} workloads", 0, 0, None, None)]
        exposed = float(np.max(one.parts["between workers"] / one.step_s))
        return trust_of(one.algorithm.kind, self.cluster.device.name, one.layout.precision, sparse, exposed)


# -- reading -----------------------------------------------------------------------------------------------------------


def load_plan(source: str | Path | Mapping[str, Any], *, overrides: Sequence[str] = ()) -> Plan:
    """Read, override and check a file.

    Args:
        source: a TOML file, the name of a packaged projection, or the tables themselves.
        overrides: ``"dotted.key=TOML value"``.

    Raises:
        InvalidInputs: everything that is wrong, at once.
    """
    where = "projection" if isinstance(source, Mapping) else str(source)
    tables = read_tables(
        source if isinstance(source, Mapping) else find_spec(source, "projections"), overrides=overrides
    )
    wrong = [f"{key}: unknown table. {suggest(key, TABLES)}" for key in tables if key not in TABLES]
    notes: list[str] = []
    model = _attempt(lambda: _model(tables, wrong, notes), wrong)
    laid = dict(_table(tables, "parallelism", wrong))
    precision = laid.get("precision", "bf16")
    cluster = _attempt(
        lambda: _cluster(_table(tables, "cluster", wrong, needed=True), precision, wrong, notes), wrong
    )
    layout = _build(Layout, laid, "parallelism", wrong)
    algorithms, workers = _algorithms(tables, wrong)
    conditions, convention = _conditions(tables, wrong)
    evidence = (
        _build(Evidence, _table(tables, "evidence", wrong), "evidence", wrong)
        if "evidence" in tables
        else None
    )
    counts = _table(tables, "search", wrong).get("devices", [])
    if not isinstance(counts, list) or not all(isinstance(one, int) and one > 0 for one in counts):
        wrong.append(f"search.devices: got {counts!r}; allowed: a list of whole numbers")
    layouts = []
    if layout is not None and model is not None and cluster is not None:
        if not algorithms:
            wrong += problems(model, layout, cluster.devices)
        for algorithm, count in zip(algorithms, workers, strict=True):
            one = replace(layout, workers=count)
            wrong += problems(model, one, cluster.devices)
            wrong += _sense(algorithm, one)
            layouts.append(one)
    if wrong:
        raise InvalidInputs(where, dict.fromkeys(wrong))
    assert model is not None
    assert cluster is not None
    name = tables.get("name") or (where if isinstance(source, Mapping) else Path(where).stem)
    return Plan(
        str(name), model, cluster, tuple(layouts), tuple(algorithms), conditions, convention, evidence, tuple(counts),
        tuple(notes),
    )  # fmt: skip


def _sense(algorithm: Algorithm, layout: Layout) -> list[str]:
    """What an algorithm and a layout cannot be together."""
    kind, wrong = algorithm.kind, []
    if kind == "fsdp" and layout.sharding != "zero_3":
        wrong.append(f'algorithm fsdp: parallelism.sharding: got {layout.sharding!r}; allowed: "zero_3"')
    if kind == "petra" and np.all(np.asarray(layout.pp) == 1):
        wrong.append("algorithm petra: parallelism.pp: got 1; allowed: at least 2 stages")
    if kind not in ("ddp", "fsdp", "petra", "dfa") and np.all(layout.n_workers == 1):
        wrong.append(f"algorithm.workers: {kind} works between workers, and there is 1; allowed: at least 2")
    if kind == "sgp" and np.any(np.log2(layout.n_workers) % 1 != 0):
        wrong.append(f"algorithm.workers: sgp: got {np.max(layout.n_workers):g}; allowed: a power of two")
    return wrong


def _attempt(build: Callable[[], Any], wrong: list[str]) -> Any:
    try:
        return build()
    except InvalidInputs as error:
        wrong += error.problems
    except DecentralError as error:
        wrong.append(str(error))
    return None


def _table(
    tables: Mapping[str, Any], name: str, wrong: list[str], *, needed: bool = False
) -> Mapping[str, Any]:
    found = tables.get(name)
    if found is None and not needed:
        return {}
    if not isinstance(found, Mapping):
        wrong.append(f"{name}: got {found!r}; allowed: a table [{name}]")
        return {}
    return found


def _build(kind: Any, table: Mapping[str, Any], where: str, wrong: list[str], **given: Any) -> Any:
    """A dataclass from a table: unknown keys, missing ones and wrong types become sentences."""
    before = len(wrong)
    names = {one.name: one for one in dataclasses.fields(kind) if one.name not in given}
    wrong += [f"{where}.{key}: unknown key. {suggest(key, names)}" for key in table if key not in names]
    for name, one in names.items():
        if name not in table:
            if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
                wrong.append(f"{where}.{name}: missing")
            continue
        allowed = _allowed(one.type)
        value = table[name]
        if allowed == "number" and (isinstance(value, bool) or not isinstance(value, int | float)):
            if not (one.name in ("gated", "tied") and isinstance(value, bool)):
                wrong.append(f"{where}.{name}: got {value!r}; allowed: a number")
        elif allowed == "number" and not math.isfinite(value):
            wrong.append(f"{where}.{name}: got {value!r}; allowed: a finite number")
        elif allowed == "number" and value < 0:
            wrong.append(f"{where}.{name}: got {value!r}; allowed: 0 or more")
        elif allowed == "word" and not isinstance(value, str):
            wrong.append(f"{where}.{name}: got {value!r}; allowed: a word")
        elif allowed == "flag" and not isinstance(value, bool):
            wrong.append(f"{where}.{name}: got {value!r}; allowed: true or false")
    if len(wrong) > before:
        return None
    return _attempt(lambda: kind(**table, **given), wrong)


def _allowed(annotation: Any) -> str:
    said = str(annotation)
    if said.startswith("str"):
        return "word"
    if said.startswith("bool"):
        return "flag"
    return "number" if said.startswith(("Any", "float", "int")) else "anything"


def _model(tables: Mapping[str, Any], wrong: list[str], notes: list[str]) -> Workload | None:
    table = dict(_table(tables, "model", wrong, needed="problem" not in tables))
    if "problem" in tables:
        if table:
            wrong.append("model: a projection has a [model] or a [problem], not both")
        return _measured(tables["problem"], notes)
    kind = table.pop("kind", "transformer")
    if "name" in table:
        name = table.pop("name")
        if name not in MODELS:
            raise InvalidInput("model.name", name, "a known model", suggest(str(name), MODELS))
        known = dict(MODELS[name])
        notes.append(f"model {name}: {known.pop('source')}")
        for part in ("moe", "latent"):
            if part in known and isinstance(table.get(part), Mapping):
                table[part] = {**known[part], **table[part]}
        table = {**known, **table}
    if kind == "resnet":
        return _build(ResNet, table, "model", wrong)
    if kind == "measured":
        return _build(Measured, table, "model", wrong)
    if kind != "transformer":
        raise InvalidInput("model.kind", kind, "transformer, resnet or measured (or a table [problem])")
    parts: dict[str, Any] = {}
    for part, what in (("moe", MoE), ("latent", LatentAttention)):
        if part in table:
            inner = table.pop(part)
            parts[part] = _build(what, inner, f"model.{part}", wrong) if isinstance(inner, Mapping) else None
            if not isinstance(inner, Mapping):
                wrong.append(f"model.{part}: got {inner!r}; allowed: a table [model.{part}]")
    for name in ("layers", "hidden", "heads", "ffn", "vocab", "sequence", "kv_heads", "head_dim"):
        value = table.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            wrong.append(f"model.{name}: got {value!r}; allowed: a whole number, at least 1")
    if parts and any(value is None for value in parts.values()):
        return None
    return _build(Transformer, table, "model", wrong, **parts)


def _measured(table: Any, notes: list[str]) -> Workload:
    """A problem of the simulator, measured by compiling its gradient."""
    from decentral.experiment.spec import validate  # these load JAX
    from decentral.problem.workload import measure

    tables = {"name": "problem", "topology": {"kind": "complete", "n": 2}, "stop": {"kind": "gradients", "gradients": 1},
              "algorithm": {"kind": "sgd"}, "problem": table}  # fmt: skip
    spec = validate(tables, "problem")
    numbers = measure(spec.problem_of(spec.seed))
    notes.append(
        f"problem {table.get('kind')}: FLOPs and bytes from XLA's cost analysis of one worker's gradient"
    )
    return Measured(numbers.parameters, numbers.flops / 3, numbers.bytes / 3, str(table.get("kind")))


def _cluster(table: Mapping[str, Any], precision: str, wrong: list[str], notes: list[str]) -> Cluster | None:
    table = dict(table)
    name = table.pop("name", "")
    entry: dict[str, Any] = {}
    if name and name in CLUSTERS:
        known = CLUSTERS[name]
        entry = {"node_size": known["gpus_per_node"]}
        if known["device"] != "any":
            entry["device"] = known["device"]
        rate = known.get("measured_Gbps_per_node", known.get("inter_node_Gbps_per_node"))
        if isinstance(rate, int | float):
            entry |= {"node_bytes_per_s": rate * 1e9 / 8, "measured": "measured_Gbps_per_node" in known}
        tag = "read" if known.get("verified") else "recalled"
        notes.append(f"cluster {name}: {tag}: {known['source']}; {known['network']}")
    elif name and not {"device", "node_bytes_per_s"} & table.keys():
        raise InvalidInput("cluster.name", name, "a known cluster, or one with device, node_size and node_bytes_per_s",
                           suggest(str(name), CLUSTERS))  # fmt: skip
    entry |= table
    allowed = ("device", "devices", "node_size", "node_bytes_per_s", "measured", "latency_s")
    wrong += [f"cluster.{key}: unknown key. {suggest(key, allowed)}" for key in entry if key not in allowed]
    entry = {key: value for key, value in entry.items() if key in allowed}
    missing = [key for key in allowed[:4] if key not in entry]
    what = _attempt(lambda: _device(entry["device"]), wrong) if "device" in entry else None
    alone = entry.get("devices") is not None and entry.get("devices") == entry.get("node_size")
    if alone and missing == ["node_bytes_per_s"]:
        entry["node_bytes_per_s"], missing = math.inf, []
    hints = {"node_bytes_per_s": " (of a node's NICs together, one way; 8 x 400 Gb/s are 400e9)"}
    wrong += [f"cluster.{key}: missing{hints.get(key, '')}" for key in missing]
    for key in ("devices", "node_size"):
        value = entry.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            wrong.append(f"cluster.{key}: got {value!r}; allowed: a whole number, at least 1")
            return None
    for key in ("node_bytes_per_s", "latency_s"):
        value = entry.get(key)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not value > 0
        ):
            wrong.append(f"cluster.{key}: got {value!r}; allowed: a number above 0")
            return None
    if missing or what is None:
        return None
    entry.pop("device")
    return of_device(what, precision=precision, name=name, **entry)


def _device(given: Any) -> Device:
    """A known device by name, or one that does not exist yet: a table, with ``base`` for what it takes over from a known one."""
    if isinstance(given, str):
        return device(given)
    if not isinstance(given, Mapping):
        raise InvalidInput("cluster.device", given, "a device's name, or a table")
    given = dict(given)
    base = device(given.pop("base")) if "base" in given else None
    numbers = {one.name: one for one in dataclasses.fields(Device)}
    wrong = [
        f"cluster.device.{key}: unknown key. {suggest(key, [*numbers, 'base'])}"
        for key in given
        if key not in numbers
    ]
    needed = ("name", "peaks", "memory_bytes", "memory_bytes_per_s")
    if base is None:
        wrong += [f"cluster.device.{key}: missing (or name a base)" for key in needed if key not in given]
        given = {"vendor": "", "scaleup_bytes_per_s": None, "peer_bytes_per_s": None, "power_w": None} | given
    for key in ("memory_bytes", "memory_bytes_per_s", "scaleup_bytes_per_s", "power_w", "ring_bytes_per_s"):
        value = given.get(key)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or value <= 0
        ):
            wrong.append(f"cluster.device.{key}: got {value!r}; allowed: a number above 0")
    for key in ("peaks", "ceilings"):
        value = given.get(key, {})
        if not isinstance(value, Mapping) or not all(
            isinstance(one, int | float) and one > 0 for one in value.values()
        ):
            wrong.append(
                f"cluster.device.{key}: got {value!r}; allowed: a table of dtypes and FLOP/s, e.g. {{ bf16 = 1e15 }}"
            )
    if wrong:
        raise InvalidInputs("cluster.device", wrong)
    given |= {"sources": ("the user's",), "tag": "assumed"}
    if base is None:
        return Device(**given)
    for key in ("peaks", "ceilings"):
        if key in given:
            given[key] = {**getattr(base, key), **given[key]}
    if "peaks" in given and "ceilings" not in given:  # what another peak reaches is not what the base's did
        given["ceilings"] = {
            dtype: rate * given["peaks"][dtype] / base.peaks[dtype] for dtype, rate in base.ceilings.items()
        }
    return replace(base, **given)


def _algorithms(tables: Mapping[str, Any], wrong: list[str]) -> tuple[list[Algorithm], list[Any]]:
    given = tables.get("algorithm", {"kind": "ddp"})
    given = [given] if isinstance(given, Mapping) else given
    if not isinstance(given, list) or not given or not all(isinstance(one, Mapping) for one in given):
        wrong.append("algorithm: allowed: one or more tables [[algorithm]] with a kind")
        return [], []
    found, workers = [], []
    for table in given:
        table = dict(table)
        count = table.pop("workers", None)
        one = _build(Algorithm, table, "algorithm", wrong)
        if one is not None:
            wrong += one.problems()
            if one.kind in METHODS:
                found.append(one)
                workers.append(count)
    labels = [one.label for one in found]
    wrong += [
        f"algorithm.name: {label!r} twice; give them names"
        for label in dict.fromkeys(labels)
        if labels.count(label) > 1
    ]
    return found, workers


def _conditions(tables: Mapping[str, Any], wrong: list[str]) -> tuple[Conditions, str]:
    numbers: dict[str, Any] = {}
    spread = _build(Spread, _table(tables, "stragglers", wrong), "stragglers", wrong)
    rooms = {
        "failures": (
            "device_mtbf_s",
            "restart_s",
            "storage_bytes_per_s",
            "node_write_bytes_per_s",
            "storage",
        ),
        "data": ("sample_bytes", "read_bytes_per_s", "storage"),
        "prices": ("price_per_device_hour", "kg_co2_per_kwh", "pue", "load_power_w"),
        "training": ("tokens", "optimizer_bytes", "convention"),
    }
    convention = "6N+causal"
    for room, keys in rooms.items():
        for key, value in _table(tables, room, wrong).items():
            if key not in keys:
                wrong.append(f"{room}.{key}: unknown key. {suggest(key, keys)}")
            elif key == "convention":
                if value not in CONVENTIONS:
                    wrong.append(f"training.convention: got {value!r}; {suggest(str(value), CONVENTIONS)}")
                convention = value
            elif key == "storage":
                numbers |= _attempt(lambda value=value, room=room: _storage(value, room), wrong) or {}
            elif (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not math.isfinite(value)
                or value < 0
            ):
                wrong.append(f"{room}.{key}: got {value!r}; allowed: a number, 0 or more")
            else:
                numbers[key] = float(value)
    return Conditions(
        spread=spread or Spread(), **{"optimizer_bytes": OPTIMIZER_BYTES, **numbers}
    ), convention


def _storage(name: Any, room: str) -> dict[str, float]:
    """Bandwidths of a storage that comes with the package, of a drive in each node or of a file system for all."""
    found = storage(name, f"{room}.storage")
    rate, key = found.write_bytes_per_s, "storage_bytes_per_s" if found.shared else "node_write_bytes_per_s"
    if room == "data":
        rate, key = found.read_bytes_per_s, "read_bytes_per_s"
    if rate is None:
        told = f"Give {room}.{key} instead: how fast {found.name} is in this direction is not known."
        raise InvalidInput(f"{room}.storage", name, "a storage with a known bandwidth", told)
    return {key: rate}


# -- what is found ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Projected:
    """A plan's projections with what belongs beside them.

    Attributes:
        plan: what was asked.
        projections: one for each algorithm.
        best: the layout of highest MFU of this model, batch and cluster, synchronous; None where no legal layout fits.
        usefulness: one for each algorithm, where there is evidence.
    """

    plan: Plan
    projections: list[Projection]
    best: Candidate | None
    usefulness: Sequence[Useful | None] = field(default_factory=list)


def carry_out(plan: Plan) -> Projected:
    """Project a plan, look for the best attainable MFU, and read its evidence."""
    found = plan.projections()
    reference = Algorithm("ddp")
    layout = replace(plan.layouts[0], workers=None)
    candidates = search(plan.model, layout, plan.cluster, reference, plan.conditions)
    best = max(candidates, key=lambda one: one.mfu, default=None)
    given = [useful(plan.evidence, one) for one in found] if plan.evidence else [None] * len(found)
    return Projected(plan, found, best, given)


def data(done: Projected) -> dict[str, Any]:
    """Everything as plain numbers, for JSON: units in the keys."""
    plan = done.plan
    return {
        "name": plan.name,
        "cluster": {
            "device": plan.cluster.device.name, "devices": plan.cluster.devices, "node_size": plan.cluster.node_size,
            "peak_flops_per_s": plan.cluster.peak_flops, "node_bytes_per_s": _plain(plan.cluster.node_bytes_per_s),
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
    money, co2 = one.run_money, one.run_co2_kg
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
        "power_w_per_device": None if one.cluster.device.power_w is None else _plain(one.watts),
        "energy_j_per_step": None if one.cluster.device.power_w is None else _plain(one.energy_j),
        "run": None if one.conditions.tokens is None else {
            "steps": _plain(one.steps), "hours": _plain(one.run_s) / 3600,
            "kwh": None if one.cluster.device.power_w is None else _plain(one.run_kwh),
            "price": None if money is None else _plain(money),
            "co2_kg": None if co2 is None or one.cluster.device.power_w is None else _plain(co2),
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
    tokens = isinstance(plan.model, Transformer)
    lines = [f"{plan.name}: {_model_line(plan)}", _cluster_line(plan), _layout_line(plan.layouts[0]), ""]
    rows: list[tuple[str, list[str]]] = [
        ("step", [_seconds(one.step_s) for one in found]),
        ("  80 % of measurements", [_range(_interval(plan, one)) for one in found]),
        ("tokens/s" if tokens else "samples/s", [f"{_plain(one.tokens_per_s):,.0f}" for one in found]),
        (f"MFU ({plan.convention})", [_percent(one.mfu_in(plan.convention)) for one in found] if tokens else
         [_percent(one.mfu) for one in found]),
        ("useful MFU", _useful_row(done)),
        ("HFU", [_percent(one.hfu) for one in found]),
        ("batch / batch asked for", [f"{_plain(one.exchange.batch):.2f}" for one in found]),
        ("memory of a device", [f"{_plain(one.memory.total_bytes) / 1e9:.1f} GB" for one in found]),
        ("sent by a device per step", [_bytes(sum(map(_plain, one.sent_bytes.values()))) for one in found]),
        ("  between workers", [_bytes(_plain(one.exchange.sent_bytes)) for one in found]),
        ("staleness", [METHODS[one.algorithm.kind].staleness for one in found]),
    ]  # fmt: skip
    if plan.cluster.device.power_w is not None or plan.conditions.load_power_w is not None:
        rows.append(("energy of a step", [f"{_plain(one.energy_j) / 3.6e6:.3g} kWh" for one in found]))
        if plan.conditions.tokens is not None:
            rows.append(("energy of the run", [f"{_plain(one.run_kwh) / 1e3:,.4g} MWh" for one in found]))
    if plan.conditions.tokens is not None:
        rows.append(("the run", [_seconds(one.run_s) for one in found]))
        if plan.conditions.price_per_device_hour is not None:
            rows.append(("price of the run", [f"{_plain(one.run_money):,.0f}" for one in found]))
        if plan.conditions.kg_co2_per_kwh is not None and plan.cluster.device.power_w is not None:
            rows.append(("CO2 of the run", [f"{_plain(one.run_co2_kg) / 1e3:,.3g} t" for one in found]))
    rows = [
        row for row in rows if row[0] != "batch / batch asked for" or any(cell != "1.00" for cell in row[1])
    ]
    lines += _columns([one.algorithm.label for one in found], rows)
    lines += [
        "",
        "Where a step's time goes: seconds, share of the step, and the MFU that is left of the peak (FLOPs as the model needs",
        "them: causal, nothing twice; above 100 % at the peak of 8 bits, as MFU is over that of 16):",
    ]
    lines += _waterfall(found)
    lines += ["", _best_line(done)]
    for one in found:
        lines.append(f"{one.algorithm.label}: memory {one.memory.verdict}")
    lines += ["", "How sure:"]
    for one in found:
        lines += [f"  {one.algorithm.label}: {trusted}" for trusted in plan.trust(one)]
    for one, more in zip(found, done.usefulness, strict=True):
        if more is not None:
            lines.append(f"  {one.algorithm.label}: {more}")
    if any(METHODS[one.algorithm.kind].waits == "none" for one in found) and not plan.evidence:
        lines.append(
            "  Not waiting makes a high MFU whatever is learned: useful MFU needs a simulated run in [evidence]."
        )
    lines += [f"  {note}" for note in plan.notes]
    if tokens:
        named = ", ".join(f"{name} {_percent(value)}" for name, value in found[0].conventions().items())
        lines += [
            "",
            f"MFU of {found[0].algorithm.label} in other conventions (16-bit peak, input embedding not counted): {named}",
        ]
    return "\n".join(lines) + "\n"


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


def _best_line(done: Projected) -> str:
    if done.best is None:
        return "Best attainable MFU: no legal synchronous layout of this batch fits into memory."
    lay = done.best.layout
    extra = f", {_plain(lay.virtual):g} virtual stages" if _plain(lay.virtual) > 1 else ""
    return (
        f"Best attainable MFU of this cluster, model and batch (synchronous, all legal layouts): {_percent(done.best.mfu)} with "
        f"tp {_plain(lay.tp):g}, pp {_plain(lay.pp):g}{extra}, dp {_plain(lay.dp):g}, ep {_plain(lay.ep):g}, micro-batch "
        f"{_plain(lay.micro_batch):g}, sharding {lay.sharding}, recompute {lay.recompute}."
    )


def _useful_row(done: Projected) -> list[str]:
    cells = []
    for one, more in zip(done.projections, done.usefulness, strict=True):
        if METHODS[one.algorithm.kind].waits == "all" and more is None:
            cells.append("the same")
        elif more is None:
            cells.append("not known")
        else:
            cells.append(more.cell(_plain(one.mfu_in(done.plan.convention))))
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
