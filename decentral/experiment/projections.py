"""From a TOML file to projections: what ``decentral project`` reads.

Tables: ``model``, ``cluster``, ``parallelism``, one or more ``[[algorithm]]``, and ``stragglers``, ``failures``, ``data``,
``prices``, ``training``, ``evidence``, ``search`` where there is something to say. No JAX, unless the model is a problem to be
measured.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from decentral.cost.algorithms import METHODS, Algorithm
from decentral.cost.cluster import Cluster, of_device
from decentral.cost.conventions import CONVENTIONS, applicable
from decentral.cost.layout import Layout, problems
from decentral.cost.memory import OPTIMIZER_BYTES
from decentral.cost.projection import Conditions, Projection, project
from decentral.cost.stragglers import Spread
from decentral.cost.validation import Trust, trust_of
from decentral.cost.workload import LatentAttention, Measured, MoE, ResNet, Transformer, Workload
from decentral.errors import DecentralError, InvalidInput, InvalidInputs, suggest
from decentral.experiment.evidence import Evidence
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
        if not isinstance(self.model, Transformer):
            return [Trust(f"{type(self.model).__name__} workloads", 0, 0, None, None)]
        exposed = float(np.max(one.parts["between workers"] / one.step_s))
        sparse = self.model.moe is not None
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
    if {"topology", "protocol", "stop"} & tables.keys():
        raise InvalidInput("SPEC", where, "a projection", "This one is a run's: decentral run takes it.")
    wrong = [f"{key}: unknown table. {suggest(key, TABLES)}" for key in tables if key not in TABLES]
    notes: list[str] = []
    model = _attempt(lambda: _model(tables, wrong, notes), wrong)
    laid = dict(_table(tables, "parallelism", wrong))
    table = _table(tables, "cluster", wrong, needed=True)
    cluster = _attempt(lambda: _cluster(table, laid.get("precision", "bf16"), wrong, notes), wrong)
    layout = _build(Layout, laid, "parallelism", wrong)
    algorithms, workers = _algorithms(tables, wrong)
    conditions, convention = _conditions(tables, wrong, cluster)
    evidence = None
    if "evidence" in tables:
        evidence = _build(Evidence, _table(tables, "evidence", wrong), "evidence", wrong)
    tried = _table(tables, "search", wrong)
    wrong += [f"search.{key}: unknown key. Allowed: devices" for key in tried if key != "devices"]
    counts = tried.get("devices", [])
    if not isinstance(counts, list) or not all(type(one) is int and one > 0 for one in counts):
        wrong.append(f"search.devices: got {counts!r}; allowed: a list of whole numbers")
    layouts = []
    if layout is not None:
        # What can be checked is, also where the model or the cluster is wrong.
        there = table.get("devices") if type(table.get("devices")) is int else None
        wrong += [] if algorithms else problems(model, layout, there)
        for algorithm, count in zip(algorithms, workers, strict=True):
            one = replace(layout, workers=count)
            if algorithm.kind in ("petra", "dfa"):  # they have schedules of their own
                one = replace(one, schedule="1f1b", virtual=1)
            found = problems(model, one, there)
            wrong += found
            wrong += [] if found else _sense(algorithm, one)
            if algorithm.kind == "dfa" and model is not None and not isinstance(model, Transformer):
                wrong.append("algorithm dfa: model: its feedback is priced for transformers only")
            layouts.append(one)
    if model is not None and layouts and not wrong:
        known = applicable(model, recomputed=layouts[0].recompute == "full")
        if known and convention not in known:
            told = f"training.convention: got {convention!r}; allowed for this model and layout: {', '.join(known)}"
            wrong.append(told)
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


KEYS = {"device.dtype": "parallelism.precision", "device.name": "cluster.device", "DIR": "evidence.run"}
"""What other rooms call a number -> its key in the file."""
LARGEST = 1e15
"""Larger numbers are mistakes."""


def _attempt(build: Callable[[], Any], wrong: list[str]) -> Any:
    try:
        return build()
    except InvalidInputs as error:
        wrong += error.problems
    except DecentralError as error:
        said = str(error)
        for name, key in KEYS.items():
            said = f"{key}{said.removeprefix(name)}" if said.startswith(f"{name}:") else said
        wrong.append(said)
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


AT_LEAST_ONE = ("experts", "top_k", "node_limit", "imbalance", "kv_rank", "parameters", "forward_flops")


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
        value = table[name]
        allowed = "flag" if name in ("gated", "tied") else _allowed(one.type)  # arrays of them, from Python
        if allowed == "number" and (isinstance(value, bool) or not isinstance(value, int | float)):
            wrong.append(f"{where}.{name}: got {value!r}; allowed: a number")
        elif allowed == "number" and not abs(value) <= LARGEST:
            wrong.append(f"{where}.{name}: allowed: a number up to {LARGEST:g}")
        elif allowed == "number" and value < (
            1 if name in AT_LEAST_ONE else -math.inf if name == "target" else 0
        ):
            wrong.append(
                f"{where}.{name}: got {value!r}; allowed: {1 if name in AT_LEAST_ONE else 0} or more"
            )
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
        if not isinstance(name, str) or name not in MODELS:
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
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10**9
        ):
            wrong.append(f"model.{name}: got {value!r}; allowed: a whole number from 1 to 10^9")
    if parts and any(value is None for value in parts.values()):
        return None
    return _build(Transformer, table, "model", wrong, **parts)


def _measured(table: Any, notes: list[str]) -> Workload:
    """A problem of the simulator, measured by compiling its gradient."""
    import jax  # only here: the rest of the command needs none

    from decentral.experiment.spec import validate
    from decentral.problem.workload import measure

    if not isinstance(table, Mapping):
        raise InvalidInput("problem", table, "a table [problem]")
    table = dict(table)
    tables = {"name": "problem", "topology": {"kind": "complete", "n": table.pop("n", 2)},
              "stop": {"kind": "gradients", "gradients": 1}, "algorithm": {"kind": "sgd"}, "problem": table}  # fmt: skip
    spec = validate(tables, "problem")
    if spec.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    try:
        built = spec.problem_of(spec.seed)
    except InvalidInput as error:
        if error.name != "problem.n":
            raise
        told = "Give [model] kind = measured, with its numbers."
        raise InvalidInput(
            "problem.kind", table.get("kind"), "a problem whose workers have the whole model", told
        ) from None
    numbers = measure(built)
    samples = max(float(built.samples_per_gradient), 1.0)
    notes.append(
        f"problem {table.get('kind')}: XLA counts {numbers.flops * samples:.4g} FLOPs in one worker's gradient of "
        f"{samples:g} samples "
        f'(in a run: cluster.compute = {{ kind = "device", name = "...", flops = {numbers.flops * samples:.4g} }})'
    )
    return Measured(numbers.parameters, numbers.flops / 3, numbers.bytes / 3, str(table.get("kind")))


def _cluster(table: Mapping[str, Any], precision: str, wrong: list[str], notes: list[str]) -> Cluster | None:
    table = dict(table)
    name = table.pop("name", "")
    if not isinstance(name, str):
        raise InvalidInput("cluster.name", name, "a word")
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
    if "node_bytes_per_s" in table:
        entry.pop("measured", None)
    entry |= table
    allowed = ("device", "devices", "node_size", "node_bytes_per_s", "measured", "latency_s")
    wrong += [f"cluster.{key}: unknown key. {suggest(key, allowed)}" for key in entry if key not in allowed]
    entry = {key: value for key, value in entry.items() if key in allowed}
    missing = [key for key in allowed[:4] if key not in entry]
    what = _attempt(lambda: _device(entry["device"]), wrong) if "device" in entry else None
    alone = entry.get("devices") is not None and entry.get("devices") == entry.get("node_size")
    if alone and missing == ["node_bytes_per_s"]:
        missing = []
    hints = {"node_bytes_per_s": " (of a node's NICs together, one way; 8 x 400 Gb/s are 400e9)"}
    wrong += [f"cluster.{key}: missing{hints.get(key, '')}" for key in missing]
    before = len(wrong)
    for key in ("devices", "node_size"):
        value = entry.get(key)
        if value is not None and (type(value) is not int or not 1 <= value <= 10**9):
            wrong.append(f"cluster.{key}: got {value!r}; allowed: a whole number from 1 to 10^9")
    for key, above in (("node_bytes_per_s", True), ("latency_s", False)):
        value = entry.get(key)
        right = value is None or (_number(value) and (value > 0 or (not above and value == 0)))
        if not right:
            wrong.append(
                f"cluster.{key}: got {value!r}; allowed: a number {'above 0' if above else 'of 0 or more'}"
            )
    if not isinstance(entry.get("measured", False), bool):
        wrong.append(f"cluster.measured: got {entry['measured']!r}; allowed: true or false")
    if missing or what is None or len(wrong) > before:
        if what is not None:  # what can be said of the device is said all the same
            _attempt(lambda: of_device(what, 1, 1, 1.0, precision=precision), wrong)
        return None
    entry = {"node_bytes_per_s": math.inf} | entry  # one node needs no network
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
    if base is not None:
        given = {"name": f"{base.name}, changed"} | given
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
    for key in (
        "memory_bytes",
        "memory_bytes_per_s",
        "scaleup_bytes_per_s",
        "peer_bytes_per_s",
        "power_w",
        "ring_bytes_per_s",
        "compute_units",
    ):
        value = given.get(key)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or value <= 0
        ):
            wrong.append(f"cluster.device.{key}: got {value!r}; allowed: a number above 0")
    for key in ("name", "vendor", "notes"):
        if not isinstance(given.get(key, ""), str):
            wrong.append(f"cluster.device.{key}: got {given[key]!r}; allowed: a word")
    for key in ("peaks", "ceilings"):
        value = given.get(key, {})
        if not isinstance(value, Mapping) or not all(
            isinstance(one, int | float) and one > 0 for one in value.values()
        ):
            wrong.append(
                f"cluster.device.{key}: got {value!r}; allowed: a table of dtypes and FLOP/s, e.g. {{ bf16 = 1e15 }}"
            )
    if not wrong:
        peaks = {**(base.peaks if base else {}), **given.get("peaks", {})}
        over = [
            dtype for dtype, rate in given.get("ceilings", {}).items() if rate > peaks.get(dtype, math.inf)
        ]
        wrong += [
            f"cluster.device.ceilings: {dtype}: got more than the peak of {peaks[dtype]:.4g}"
            for dtype in over
        ]
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
    if (
        "scaleup_bytes_per_s" in given and "ring_bytes_per_s" not in given
    ):  # nor what was measured on its links
        given["ring_bytes_per_s"] = None
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
        if count is not None and (type(count) is not int or count < 1):
            wrong.append(f"algorithm.workers: got {count!r}; allowed: a whole number, at least 1")
            count = None
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


def _conditions(
    tables: Mapping[str, Any], wrong: list[str], cluster: Cluster | None
) -> tuple[Conditions, str]:
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
            low, above = LOWEST.get(key, (0.0, False))
            if key not in keys:
                wrong.append(f"{room}.{key}: unknown key. {suggest(key, keys)}")
            elif key == "convention":
                if not isinstance(value, str) or value not in CONVENTIONS:
                    wrong.append(f"training.convention: got {value!r}. {suggest(str(value), CONVENTIONS)}")
                convention = value
            elif key == "storage":
                nodes = 1.0 if cluster is None else float(cluster.nodes)
                numbers |= (
                    _attempt(lambda value=value, room=room, nodes=nodes: _storage(value, room, nodes), wrong)
                    or {}
                )
            elif not _number(value) or value < low or (above and value == low):
                bound = f"a number above {low:g}" if above else f"a number, {low:g} or more"
                wrong.append(f"{room}.{key}: got {value!r}; allowed: {bound}")
            else:
                numbers[key] = float(value)
    return Conditions(
        spread=spread or Spread(), **{"optimizer_bytes": OPTIMIZER_BYTES, **numbers}
    ), convention


LOWEST = {"pue": (1.0, False)} | dict.fromkeys(
    (
        "device_mtbf_s",
        "storage_bytes_per_s",
        "node_write_bytes_per_s",
        "read_bytes_per_s",
        "tokens",
        "load_power_w",
    ),
    (0.0, True),
)
"""Number -> the least it may be, and whether it must be more."""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e24


def _storage(name: Any, room: str, nodes: float) -> dict[str, float]:
    """Bandwidths of a storage that comes with the package, of a drive in each node or of a file system for all."""
    found = storage(name, f"{room}.storage")
    rate, key = found.write_bytes_per_s, "storage_bytes_per_s" if found.shared else "node_write_bytes_per_s"
    if room == "data":
        rate, key = found.read_bytes_per_s, "read_bytes_per_s"
    if rate is None:
        told = f"Give {room}.{key} instead: how fast {found.name} is in this direction is not known."
        raise InvalidInput(f"{room}.storage", name, "a storage with a known bandwidth", told)
    # Of reading, what all nodes get together: each has its own drive, or its own link to an object store.
    return {key: rate if found.shared or room != "data" else rate * nodes}
