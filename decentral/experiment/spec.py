"""Specs: one TOML file says what to run. Read, overridden, validated with every problem in one message.

The tables' fields are the arguments of the functions and classes they name, so nothing is declared twice: a new topology,
problem or algorithm is in the grammar as soon as it is in its room's registry.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from decentral.algorithm import ALGORITHMS, Algorithm
from decentral.algorithm.optimizer import as_optimizer
from decentral.errors import DecentralError, InvalidInput, InvalidInputs, suggest
from decentral.experiment.devices import Devices
from decentral.experiment.overrides import algorithm_names, read_tables, set_in
from decentral.experiment.record import Record
from decentral.experiment.tune import Tune, points
from decentral.optical.feedback import as_feedback
from decentral.optical.ridge import PROBLEMS as OPTICAL_PROBLEMS
from decentral.problem import PROBLEMS, Problem
from decentral.protocol import PROTOCOLS, STOPS, Protocol, Stop
from decentral.timing.cluster import CLUSTERS, Cluster, cluster_from
from decentral.topology import DIRECTED, TOPOLOGIES, DirectedTopology, Topology, named, named_directed

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
NAME_WORDS = "a string of letters, digits, '.', '_' and '-', at most 100 of them, the first a letter or digit"
ROOMS: dict[str, Mapping[str, Callable]] = {
    "topology": TOPOLOGIES | DIRECTED,
    "problem": PROBLEMS | OPTICAL_PROBLEMS,
    "protocol": PROTOCOLS,
    "cluster": CLUSTERS,
    "stop": STOPS,
    "record": {"uniform": Record},
    "tune": {"grid": Tune},
    "devices": {"blocks": Devices},
    "algorithm": ALGORITHMS,
}
DEFAULT_KINDS = {
    "protocol": "poisson",
    "record": "uniform",
    "cluster": "uniform",
    "tune": "grid",
    "devices": "blocks",
}
OPTIMIZERS = ("optimizer", "outer_optimizer")
NESTED = {
    "cluster": ("compute", "links", "faults"),
    "algorithm": (*OPTIMIZERS, "inner", "compressor", "feedback", "detector", "features", "code"),
    "problem": ("inner",),
}
"""Arguments that are tables (or the name of one) of their own; what they name checks them."""
NOT_IN_A_FILE = {"problem": ("n",), "record": ("states",), "devices": ("process",)}
"""Arguments that a table does not have: the workers are the topology's; a run folder keeps no states; processes share a spec."""
CHEAP_N = 1024
"""Up to here a graph is built to see whether it can be, with everything else that is looked at first."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """A validated spec: every table is a frozen dataclass with ``kind`` and the arguments of what it names.

    Attributes:
        name: names the run folder.
        topology, problem, protocol, stop, record: one table each.
        cluster: one table, or None: then nothing is said about the machines.
        tune: one table, or None: then nothing is tuned. What is tuned may be left open in the algorithms' tables.
        devices: one table, or None: then the run is on one device.
        algorithm: one or more tables; one may have a protocol of its own.
        seed: the first seed.
        seeds: how many.
    """

    name: str
    topology: Any
    problem: Any
    stop: Any
    algorithm: tuple[Any, ...]
    protocol: Any
    record: Any
    cluster: Any = None
    tune: Any = None
    devices: Any = None
    seed: int = 0
    seeds: int = 1

    @property
    def seed_list(self) -> list[int]:
        """``seed ... seed + seeds - 1``."""
        return list(range(self.seed, self.seed + self.seeds))

    @property
    def dtype(self) -> str:
        """Of the parameters: the problem's, given or by default."""
        table = self.problem
        while getattr(table, "inner", None) is not None:
            table = table.inner
        parameter = inspect.signature(ROOMS["problem"][table.kind]).parameters.get("dtype")
        return "float32" if parameter is None else table.dtype or parameter.default

    def algorithm_names(self) -> list[str]:
        """The name of each algorithm: given, or its kind."""
        return [table.name or table.kind for table in self.algorithm]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for TOML; what is left open is left out."""
        tables = _plain(self)
        assert isinstance(tables, dict)
        return tables

    # -- from tables to objects ----------------------------------------------------------------------------------------

    def drawn_per_seed(self, room: str) -> bool:
        """Whether the room's table, ``"topology"`` or ``"problem"``, means something else for every seed."""
        return _drawn_per_seed(room, getattr(self, room))

    def topology_of(self, seed: int) -> Topology | DirectedTopology:
        """The graph of one seed."""
        return _graph(self.topology, seed)

    def problem_of(self, seed: int) -> Problem:
        """The problem of one seed."""
        return _problem(self.problem, self.topology.n, seed)

    def protocols(self) -> dict[str, Protocol]:
        """Name -> the protocol of each algorithm: its own, or the spec's."""
        return {
            name: _protocol(table.protocol or self.protocol)
            for name, table in zip(self.algorithm_names(), self.algorithm, strict=True)
        }

    def constants_of(self, name: str) -> str:
        """Where an algorithm's open step sizes come from: ``"assumed"`` or ``"realised"`` rates."""
        return self.algorithm[self.algorithm_names().index(name)].constants or "assumed"

    def cluster_object(self) -> Cluster | None:
        """What the cluster table says."""
        return (
            None
            if self.cluster is None
            else cluster_from(_arguments(self.cluster) | {"kind": self.cluster.kind})
        )

    def stop_object(self) -> Stop:
        """What the stop table says."""
        return STOPS[self.stop.kind](**_arguments(self.stop))

    def record_object(self) -> Record:
        """What the record table says."""
        return Record(**_arguments(self.record))

    def tune_object(self) -> Tune | None:
        """What the tune table says."""
        return None if self.tune is None else Tune(**_arguments(self.tune))

    def devices_object(self) -> Devices | None:
        """What the devices table says."""
        return None if self.devices is None else Devices(**_arguments(self.devices))

    def grids(self) -> dict[str, dict[str, list]]:
        """Algorithm -> dotted key -> values to try, of the algorithms that are tuned."""
        tune = self.tune_object()
        return {} if tune is None else tune.grids(self.algorithm_names())

    def at(self, values: Mapping[str, Mapping[str, Any]]) -> Spec:
        """The spec with these values in the algorithms' tables.

        Args:
            values: algorithm -> dotted key -> value.

        Raises:
            InvalidInputs: an algorithm does not take them.
        """
        problems: list[str] = []
        tables = tuple(
            _changed(name, table, values[name], problems) if name in values else table
            for name, table in zip(self.algorithm_names(), self.algorithm, strict=True)
        )
        if problems:
            raise InvalidInputs(self.name, dict.fromkeys(problems))
        return dataclasses.replace(self, algorithm=tables)

    def algorithms(self) -> dict[str, Algorithm]:
        """Name -> algorithm, step sizes as given."""
        return dict(zip(self.algorithm_names(), map(_algorithm, self.algorithm), strict=True))


def load_spec(
    source: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    seeds: int | None = None,
    smoke: bool = False,
) -> Spec:
    """Read, override and validate a spec.

    Args:
        source: a TOML file, the name of a packaged experiment, or the tables themselves.
        overrides: ``"dotted.key=TOML value"``; a bare word is a string. ``algorithm.X`` sets all algorithms,
            ``algorithm.NAME.X`` one.
        seeds: replaces the number of seeds.
        smoke: apply the spec's ``[smoke]`` table (before the overrides).

    Raises:
        InvalidInputs: everything that is wrong, at once.
    """
    where = "spec" if isinstance(source, Mapping) else str(source)
    tables = read_tables(source, overrides=overrides, smoke=smoke)
    if seeds is not None:
        tables["seeds"] = seeds
    return validate(tables, where)


def validate(tables: Mapping[str, Any], where: str = "spec") -> Spec:
    """A :class:`Spec` from plain tables.

    Names, types and values are checked, and what is cheap to build is built once; the data are the run's to build.

    Raises:
        InvalidInputs: everything that is wrong, at once.
    """
    if "pes" in tables:
        raise InvalidInputs(
            where, ["pes: got a table; allowed: nothing. This is a meta-training: decentral meta-train SPEC."]
        )
    problems: list[str] = []
    fields = [field.name for field in dataclasses.fields(Spec)]
    problems += [
        f"{key}: unknown key. {suggest(key, [*fields, 'smoke'])}" for key in tables if key not in fields
    ]
    values: dict[str, Any] = {
        "name": _name(tables, problems),
        "seed": _integer("seed", tables.get("seed", 0), 0, 2**31 - 1, problems),
        "seeds": _integer("seeds", tables.get("seeds", 1), 1, None, problems),
        "algorithm": _algorithm_tables(tables, problems),
    }
    for room in ("topology", "problem", "stop", "protocol", "record"):
        default = {} if room in DEFAULT_KINDS else None
        values[room] = _table(room, tables.get(room, default), room, problems)
    for room in ("cluster", "tune", "devices"):
        if room in tables:
            values[room] = _table(room, tables[room], room, problems)
    graph = values["topology"]
    if graph is not None and values["seed"] is not None and 2 <= graph.n <= CHEAP_N:
        _attempt(lambda: _graph(graph, values["seed"]), "topology", "topology", problems)
    if None not in (values["seed"], values["seeds"]) and values["seed"] + values["seeds"] > 2**31:
        text = f"{values['seed']} ... {values['seed'] + values['seeds'] - 1}"
        problems.append(str(InvalidInput("seeds", text, "seeds up to 2**31 - 1")))
    if not problems:
        problems += _missing_control(Spec(**values))
    if "tune" in tables and not problems:
        problems += _wrong_trials(Spec(**values))
    if "devices" in tables and not problems:
        problems += _wrong_devices(Spec(**values))
    if problems:
        raise InvalidInputs(where, dict.fromkeys(problems))
    return Spec(**values)


def _missing_control(spec: Spec) -> list[str]:
    """Random feedback without the run that shows what the last layer learns alone."""
    tables = dict(zip(spec.algorithm_names(), spec.algorithm, strict=True))
    feedbacks = {name: algorithm.feedback for name, algorithm in spec.algorithms().items()}
    taught = [name for name, feedback in feedbacks.items() if feedback is not None and feedback.is_random]
    if not taught or any(
        feedback is not None and feedback.kind == "shallow" for feedback in feedbacks.values()
    ):
        return []
    advice = (
        f'Add: [[algorithm]] name = "shallow", kind = "{tables[taught[0]].kind}", the other keys as of {taught[0]!r}, and '
        'feedback = { kind = "shallow" }: only the last layer learns, which alone may be most of an accuracy.'
    )
    return [str(InvalidInput("algorithm", f"feedback of {taught[0]!r} without its control", "both", advice))]


def _wrong_trials(spec: Spec) -> list[str]:
    """What is wrong with the trials of a spec that is right otherwise."""
    problems: list[str] = []
    tune = spec.tune_object()
    assert tune is not None
    if spec.seed + spec.seeds + tune.seeds > 2**31:
        problems.append(str(InvalidInput("tune.seeds", tune.seeds, "seeds up to 2**31 - 1")))
    try:
        grids = spec.grids()
    except InvalidInput as error:
        return [*problems, str(error)]
    for name, table in zip(spec.algorithm_names(), spec.algorithm, strict=True):
        for point in points(grids[name]) if name in grids else ():
            _changed(name, table, point, problems)
    return problems


def _wrong_devices(spec: Spec) -> list[str]:
    """What is wrong with the devices of a spec that is right otherwise."""
    devices, problems = spec.devices_object(), []
    assert devices is not None
    workers = spec.topology.n * spec.seeds
    if devices.count is not None and workers % devices.count:
        allowed = f"a divisor of {workers}, topology.n x seeds"
        problems.append(str(InvalidInput("devices.count", devices.count, allowed)))
    if spec.tune is not None and devices.processes > 1:
        advice = "Tune on one process first: spec.toml in its folder has what was chosen."
        problems.append(
            str(InvalidInput("devices.processes", devices.processes, "1 with a table [tune]", advice))
        )
    return problems


def _changed(name: str, table: Any, values: Mapping[str, Any], problems: list[str]) -> Any:
    """An algorithm's table with other values under some dotted keys; what is wrong with them is added to ``problems``."""
    plain = _plain(table)
    try:
        for key, value in values.items():
            set_in(plain, key, value, f"tune.algorithm.{name}.{key}")
    except InvalidInput as error:
        problems.append(str(error))
    return _table(f"algorithm.{name}", plain, "algorithm", problems)


def read_problem(key: str, table: Any) -> Callable[[int, int], Problem]:
    """A problem's table where no spec is around it: ``(n, seed) -> problem``.

    Args:
        key: what the table is called in messages.
        table: kind and arguments.

    Raises:
        InvalidInputs: everything that is wrong, at once.
    """
    problems: list[str] = []
    read = _table(key, table, "problem", problems)
    if problems:
        raise InvalidInputs(key, problems)
    return lambda n, seed: _problem(read, n, seed)


# -- tables ------------------------------------------------------------------------------------------------------------


def _name(tables: Mapping[str, Any], problems: list[str]) -> str | None:
    name = tables.get("name")
    if name is None:
        problems.append("name: missing; it names the run folder.")
    elif not isinstance(name, str) or not NAME.fullmatch(name):
        problems.append(str(InvalidInput("name", name, NAME_WORDS, "It names the run folder.")))
    return name


def _integer(key: str, value: Any, low: int, high: int | None, problems: list[str]) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= (high or value):
        return value
    words = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    problems.append(str(InvalidInput(key, value, words)))
    return None


def _algorithm_tables(tables: Mapping[str, Any], problems: list[str]) -> tuple[Any, ...]:
    given = tables.get("algorithm")
    given = [given] if isinstance(given, Mapping) else given
    if not isinstance(given, list) or not given:
        kinds = ", ".join(sorted(ALGORITHMS))
        problems.append(f"algorithm: none; write [[algorithm]] and kind = one of: {kinds}")
        return ()
    read = []
    for number, table in enumerate(given):
        own = table.get("name", table.get("kind")) if isinstance(table, Mapping) else None
        key = f"algorithm.{own}" if isinstance(own, str) else f"algorithm.{number}"
        read.append(_table(key, table, "algorithm", problems))
        if isinstance(own, str) and not NAME.fullmatch(own):
            problems.append(str(InvalidInput("algorithm.name", own, NAME_WORDS, "It names files.")))
    # Names of files, and there are file systems that do not tell A from a.
    names = [name.lower() for name in algorithm_names({"algorithm": given})]
    problems += [
        f"algorithm.{name}: {names.count(name)} algorithms of this name. Give each its own: name = ..."
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    return tuple(read)


def _table(key: str, table: Any, room: str, problems: list[str]) -> Any:
    """The table as a frozen dataclass, or None with what is wrong added to ``problems``."""
    from pydantic import ValidationError

    kinds = ROOMS[room]
    allowed = f"one of: {', '.join(sorted(kinds))}"
    if table is None:
        problems.append(f"{key}: missing; write [{key}] and kind = {allowed}")
        return None
    if not isinstance(table, Mapping):
        problems.append(str(InvalidInput(key, table, "a table with kind and its arguments")))
        return None
    kind = table.get("kind", DEFAULT_KINDS.get(room))
    if kind is None:
        problems.append(f"{key}.kind: missing; {allowed}")
        return None
    if not isinstance(kind, str) or kind not in kinds:
        problems.append(f"{key}.kind: got {kind!r}. {suggest(str(kind), kinds)}")
        return None
    cls, grammar = _grammar(room, kind, kinds[kind])
    try:
        # As JSON, because only there strict typing takes a list for a tuple.
        read = grammar.validate_json(json.dumps({**table, "kind": kind}, default=str), strict=True)
    except ValidationError as error:
        problems += [_explain(item, key, room, kind, cls) for item in error.errors()]
        bad = {item["loc"][0] for item in error.errors()}
        required = {field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
        if not bad & required:  # what else is wrong?
            _table(key, {k: v for k, v in table.items() if k not in bad}, room, problems)
        return None
    if room in ("algorithm", "problem") and hasattr(read, "inner"):
        parameter = inspect.signature(kinds[kind]).parameters["inner"]
        if read.inner is not None or parameter.default is inspect.Parameter.empty:
            given = {"kind": read.inner} if isinstance(read.inner, str) else read.inner
            inner = _table(f"{key}.inner", given, room, problems)
            if inner is None:
                return None
            read = dataclasses.replace(read, inner=inner)
    if room == "algorithm":
        _attempt(lambda: _algorithm(read), key, room, problems)
        if read.protocol is not None:
            own = _table(f"{key}.protocol", read.protocol, "protocol", problems)
            read = dataclasses.replace(read, protocol=own)
    elif room == "cluster":
        _attempt(lambda: cluster_from(_arguments(read) | {"kind": kind}), key, room, problems)
    elif room in ("protocol", "stop", "record", "tune", "devices"):
        _attempt(lambda: kinds[kind](**_arguments(read)), key, room, problems)
    elif room == "topology" and read.n < 2:
        problems.append(str(InvalidInput(f"{key}.n", read.n, "an integer >= 2")))
    return read


def _attempt(build: Callable, key: str, room: str, problems: list[str]) -> None:
    """Build something cheap; what is wrong with it is added to ``problems``."""
    try:
        build()
    except DecentralError as error:
        if type(error) is InvalidInput:
            name = error.name.removeprefix(f"{room}.")
            path = key if name in (room, "graph") else f"{key}.{name}"
            error = InvalidInput(path, error.got, error.allowed, error.advice)
        problems.append(str(error))


@cache
def _grammar(room: str, kind: str, build: Callable) -> tuple[type, Any]:
    """The validator of a table: a frozen dataclass with ``kind`` and the arguments of ``build`` that a file can hold."""
    from pydantic import ConfigDict, TypeAdapter

    # Of a dataclass each base's annotations mean what they mean in its own module; those of __init__ would not.
    own = inspect.isclass(build) and not dataclasses.is_dataclass(build)
    hints = typing.get_type_hints(build.__init__ if own else build)
    required: list[tuple] = [("kind", Literal[kind])]
    optional: list[tuple] = []
    if room == "algorithm":
        optional = [(key, str | None, None) for key in ("name", "constants")]
        optional.append(("protocol", dict[str, Any] | None, None))
    if room == "topology" and kind in TOPOLOGIES:  # how the edges share the rate: every kind's
        optional += [
            ("rates", str | None, None),
            ("rates_budget", str | None, None),
            ("edge_time_s", float | None, None),
        ]
    if room == "topology":  # optical units, that serve the workers
        optional.append(("units", dict[str, Any] | list[dict[str, Any]] | None, None))
    for name, parameter in inspect.signature(build).parameters.items():
        if name in NOT_IN_A_FILE.get(room, ()):
            continue
        if name == "seed":
            optional.append(("seed", int | None, None))
        elif name in NESTED.get(room, ()):
            optional.append(
                (name, dict[str, Any] | None if name in OPTIMIZERS else dict[str, Any] | str | None, None)
            )
        elif parameter.default is inspect.Parameter.empty:
            required.append((name, _readable(hints[name])))
        else:
            optional.append((name, _readable(hints[name]) | None, None))
    cls = dataclasses.make_dataclass(f"{kind}_{room}", required + optional, frozen=True)
    cls.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # type: ignore[attr-defined]
    return cls, TypeAdapter(cls)


def _readable(hint: Any) -> Any:
    """The part of an annotation that TOML can express (``str | np.ndarray`` -> ``str``)."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, type(int | str)) else (hint,)
    simple = [part for part in parts if part in (int, float, str, bool) or typing.get_origin(part) is tuple]
    return typing.Union[tuple(simple)] if simple else Any  # noqa: UP007  built from a tuple


def _explain(item: Mapping[str, Any], key: str, room: str, kind: str, cls: Any) -> str:
    """One pydantic error in this package's words."""
    path = ".".join([key, *map(str, item["loc"])])
    if item["type"] == "unexpected_keyword_argument":
        fields = [field.name for field in dataclasses.fields(cls)]
        return f"{path}: unknown key of {room} {kind!r}. {suggest(str(item['loc'][-1]), fields)}"
    if item["type"] == "missing":
        return f"{path}: missing; {room} {kind!r} needs it."
    words = item["msg"].removeprefix("Input should be ")
    for theirs, ours in (
        ("a valid integer", "an integer"),
        ("a valid array", "a list"),
        ("a valid ", "a "),
        ("an object", "a table"),
    ):
        words = words.replace(theirs, ours)
    return str(InvalidInput(path, item["input"], words))


# -- plain data --------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        pairs = ((field.name, _plain(getattr(value, field.name))) for field in dataclasses.fields(value))
        return {key: item for key, item in pairs if item is not None}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _arguments(table) -> dict[str, Any]:
    """A table's arguments that were given."""
    pairs = (
        (field.name, getattr(table, field.name))
        for field in dataclasses.fields(table)
        if field.name != "kind"
    )
    return {
        name: dict(value) if isinstance(value, Mapping) else value
        for name, value in pairs
        if value is not None
    }


def _drawn_per_seed(room: str, table) -> bool:
    takes_seed = "seed" in inspect.signature(ROOMS[room][table.kind]).parameters
    return takes_seed and table.seed is None


def _arguments_for(room: str, table, seed: int) -> dict[str, Any]:
    """The arguments of a table, for one of the run's seeds."""
    return _arguments(table) | ({"seed": seed} if _drawn_per_seed(room, table) else {})


def _graph(table, seed: int) -> Topology | DirectedTopology:
    build = named_directed if table.kind in DIRECTED else named
    return build(table.kind, **_arguments_for("topology", table, seed))


def _protocol(table) -> Protocol:
    return PROTOCOLS[table.kind](**_arguments(table))


def _problem(table, n: int, seed: int) -> Problem:
    arguments = _arguments_for("problem", table, seed)
    if "inner" in arguments:  # the workers are the inner problem's
        return ROOMS["problem"][table.kind](**arguments | {"inner": _problem(arguments["inner"], n, seed)})
    return ROOMS["problem"][table.kind](n=n, **arguments)


def _algorithm(table) -> Algorithm:
    arguments = _arguments(table)
    if "inner" in arguments:
        arguments["inner"] = _algorithm(arguments["inner"])
    for key in ("name", "constants", "protocol"):
        arguments.pop(key, None)
    for key in set(OPTIMIZERS) & set(arguments):
        recipe = arguments[key]
        rate = recipe.get("learning_rate")
        if not isinstance(recipe.get("kind", "sgd"), str):
            raise InvalidInput(f"{key}.kind", recipe["kind"], "the name of an optax optimizer")
        if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float)):
            raise InvalidInput(f"{key}.learning_rate", rate, "a finite number >= 0")
        arguments[key] = as_optimizer(recipe)
    if "feedback" in arguments:
        arguments["feedback"] = as_feedback(arguments["feedback"])
    return ALGORITHMS[table.kind](**arguments)
