"""From a spec to what is to be run: graphs, data, clocks and traces, everything that is decided before the first number."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from decentral.algorithm import Algorithm, Compressor, Optimizer
from decentral.algorithm.optimizer import as_optimizer
from decentral.engine.stream import Stream
from decentral.engine.trace import Trace
from decentral.errors import InvalidInput, InvalidInputs, suggest
from decentral.experiment.entry import constants_of, events_of, network_of, streams
from decentral.experiment.memory import check_memory, check_size, expected_events
from decentral.experiment.simulation import Simulation
from decentral.experiment.spec import OPTIMIZERS, Spec
from decentral.optical.feedback import Feedback
from decentral.problem import Problem
from decentral.protocol import Network
from decentral.topology import DirectedTopology, Topology, named


def source_hash(spec: Spec) -> str:
    """Of a spec as given, before step sizes are resolved: what a figure's script asks a run folder for."""
    return hash_of(json.dumps(spec.as_dict(), sort_keys=True).encode())


def spec_hash(prepared: Prepared) -> str:
    """Of the resolved spec: what a run folder's ``spec.toml`` has to hold."""
    return hash_of(prepared.resolved_toml())


def hash_of(content: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything that is decided before the first number: graphs, data, clocks, traces."""

    spec: Spec
    record: Any
    problems: list
    networks: dict[str, list]
    algorithms: dict[str, list[Algorithm]]
    trace_of: dict[str, str]
    traces: dict[str, Trace | Stream]
    wall_s: dict[str, float]

    @cached_property
    def pairing(self) -> dict[str, Any]:
        """Which algorithm ran on which trace; algorithms on different traces still share their random tapes."""
        names = list(self.trace_of)
        return {
            "seeds": self.spec.seed_list,
            "trace": self.trace_of,
            "paired": None if len(names) == 1 else "trace" if len(self.traces) == 1 else "tape",
            "trace_hash": {name: list(trace.hashes) for name, trace in self.traces.items()},
        }

    def simulations(self) -> Iterator[Simulation]:
        """Every algorithm's run, at its start: the first one is made now, the others when their turn comes.

        Raises:
            InvalidInput: something is still wrong with the input.
        """
        later = map(self._simulation, self.algorithms)
        return itertools.chain([next(later)], later)

    def _simulation(self, name: str) -> Simulation:
        simulation = Simulation(
            self.traces[self.trace_of[name]],
            self.problems,
            self.algorithms[name],
            network=self.networks[name],
            record=self.record,
            name=name,
            devices=self.spec.devices_object(),
        )
        simulation.wall_s["timeline"] += self.wall_s.get(name, 0.0)
        metric, known = self.record.target_metric, simulation.metric_names()
        if metric is not None and metric not in known:
            raise InvalidInput("record.target_metric", metric, "a recorded metric", suggest(metric, known))
        return simulation

    @cached_property
    def steps(self) -> dict[str, str]:
        """Where the step sizes of each algorithm come from: ``"theory"`` (resolved from constants), ``"tuned"``, ``"given"``."""
        return {
            name: "tuned"
            if name in self.spec.grids()
            else "theory"
            if _open(given, self.algorithms[name][0])
            else "given"
            for name, given in self.spec.algorithms().items()
        }

    def resolved_toml(self) -> bytes:
        """The spec with the step sizes that all seeds share."""
        import tomli_w

        tables = self.spec.as_dict()
        for table, algorithms in zip(tables["algorithm"], self.algorithms.values(), strict=True):
            table |= resolved_arguments(algorithms)
        return tomli_w.dumps(tables).encode()


def _open(given: Algorithm, resolved: Algorithm) -> bool:
    """The learning rate was left to the theory; without an optimizer: some hyper-parameter was."""
    optimizer = getattr(given, "optimizer", None)
    if optimizer is not None:
        return as_optimizer(optimizer).needs_learning_rate
    names = [field.name for field in dataclasses.fields(given)]  # type: ignore[arg-type]
    return any(getattr(given, name) is None and getattr(resolved, name) is not None for name in names)


def resolved_arguments(algorithms: Sequence[Algorithm]) -> dict[str, Any]:
    """The hyper-parameters all seeds agree on, as a spec table; what differs between seeds is left open."""
    plain = []
    for algorithm in algorithms:
        values = {field.name: getattr(algorithm, field.name) for field in dataclasses.fields(algorithm)}  # type: ignore[arg-type]
        # Tables of numbers (a step per edge) follow from the rest again.
        values = {k: v for k, v in values.items() if not isinstance(v, np.ndarray)}
        plain.append(
            {
                k: v.as_dict() if isinstance(v, Optimizer | Compressor | Feedback) else v
                for k, v in values.items()
            }
        )
    agreed = {
        k: v for k, v in plain[0].items() if v is not None and all(other.get(k) == v for other in plain)
    }
    return {
        k: {name: item for name, item in v.items() if item is not None} if isinstance(v, dict) else v
        for k, v in agreed.items()
    }


class Shared:
    """Graphs and problems that specs have in common are built once."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}

    def topology(self, spec: Spec, seed: int) -> Topology | DirectedTopology:
        """The graph of one seed."""
        return self._of("topology", spec, seed, spec.topology_of)

    def problem(self, spec: Spec, seed: int) -> Problem:
        """The problem of one seed."""
        return self._of("problem", spec, seed, spec.problem_of)

    def _of(self, room: str, spec: Spec, seed: int, build: Callable[[int], Any]) -> Any:
        table = getattr(spec, room)
        what = dataclasses.asdict(table), spec.topology.n, seed if spec.drawn_per_seed(room) else None
        key = json.dumps([room, *what], sort_keys=True, default=str)
        if key not in self._built:
            self._built[key] = build(seed)
        return self._built[key]


class Size(NamedTuple):
    """What a run of one algorithm takes: events of all seeds, and bytes of memory, both expected."""

    events: float
    memory_bytes: float


def check(spec: Spec, shared: Shared, *, stream: bool = False) -> dict[str, Size]:
    """Build the first seed's graph and problem, and see whether every algorithm can run on them, without running it.

    Args:
        spec: what to run.
        shared: what is built already.
        stream: as for :func:`prepare_run`.

    Returns:
        algorithm -> what it takes.

    Raises:
        InvalidInputs: what does not fit together, or into memory; everything that was found, at once.
    """
    problems = _Problems(spec.name)
    problems.attempt(check_sizes, spec, stream)
    problems.stop()
    # The first seed's say whether those of all seeds fit into memory.
    topology = problems.attempt(shared.topology, spec, spec.seed)
    objective = problems.attempt(shared.problem, spec, spec.seed)
    problems.stop()
    protocols, cluster, stop = spec.protocols(), spec.cluster_object(), spec.stop_object()
    data_sets = spec.seeds if spec.drawn_per_seed("problem") else 1

    def size(name: str, algorithm: Algorithm) -> Size:
        network = network_of(protocols[name], topology, algorithm, objective, cluster)
        check_update(objective, algorithm.resolve(objective, network))
        memory_bytes = check_memory(
            objective, network, protocols[name], algorithm, stop, seeds=spec.seeds, data_sets=data_sets,
            kept=not (stream and streams(protocols[name], network, spec.record_object())),
        )  # fmt: skip
        events = expected_events(network, protocols[name], stop, n=network.topology.n, seeds=spec.seeds)
        return Size(events, memory_bytes)

    sizes = {
        name: problems.attempt(size, name, algorithm, prefix=f"algorithm {name}: ")
        for name, algorithm in spec.algorithms().items()
    }
    problems.stop()
    return sizes


class _Problems:
    """What is wrong with a spec, collected to be told at once."""

    def __init__(self, name: str) -> None:
        self.name, self.found = name, list[str]()

    def attempt(self, build: Callable, *arguments: Any, prefix: str = "") -> Any:
        try:
            return build(*arguments)
        except InvalidInput as error:
            self.found.append(prefix + str(error))
        except MemoryError as error:
            self.found.append(prefix + str(InvalidInput("memory", str(error), "what this machine has free")))

    def stop(self) -> None:
        if self.found:
            raise InvalidInputs(self.name, dict.fromkeys(self.found))


def prepare_run(spec: Spec, shared: Shared | None = None, *, stream: bool = False) -> Prepared:
    """Everything that is decided before the first number.

    Args:
        spec: what to run.
        shared: what is built already.
        stream: with ``record.trace = false`` events need not all be there at once.

    Raises:
        InvalidInput: what does not fit together, or into memory; everything that was found, at once.
    """
    shared = shared or Shared()
    check(spec, shared, stream=stream)
    protocols, cluster = spec.protocols(), spec.cluster_object()
    stop, record = spec.stop_object(), spec.record_object()
    problems = _Problems(spec.name)
    topologies, objectives = (
        [problems.attempt(build, spec, seed, prefix=f"seed {seed}: ") for seed in spec.seed_list]
        for build in (shared.topology, shared.problem)
    )
    problems.stop()
    networks, algorithms, trace_of, wall_s = {}, {}, {}, {}
    clocks: dict[Any, str] = {}
    traces: dict[str, Trace | Stream] = {}
    for name, algorithm in spec.algorithms().items():
        protocol = protocols[name]
        own = [
            network_of(protocol, topology, algorithm, problem, cluster)
            for topology, problem in zip(topologies, objectives, strict=True)
        ]
        networks[name] = own
        same = (protocol, *(w.clocks for w in own))
        if same not in clocks:
            began = time.perf_counter()
            clocks[same] = name
            traces[name] = events_of(protocol, own, stop, spec.seed_list, record, stream=stream)
            wall_s[name] = time.perf_counter() - began
            record.schedule(traces[name])
        trace_of[name] = clocks[same]
        algorithms[name] = [
            algorithm.resolve(p, w)
            for p, w in zip(
                objectives, constants_of(spec.constants_of(name), traces[trace_of[name]], own), strict=True
            )
        ]
    return Prepared(spec, record, objectives, networks, algorithms, trace_of, traces, wall_s)


def check_sizes(spec: Spec, stream: bool = False) -> None:
    """Refuse what is too large whatever the problem is, before anything is built.

    Args:
        spec: what to run.
        stream: as for :func:`prepare_run`.

    Raises:
        InvalidInput: with the numbers.
    """
    pair = named("path", n=2)  # stands for any graph: its rates per worker are the run's, or lower
    protocols, cluster = spec.protocols(), spec.cluster_object()
    for name, algorithm in spec.algorithms().items():
        try:
            network = protocols[name].network(pair, algorithm.demand(Network(pair)), cluster)
        except InvalidInput:
            continue  # not on two workers; what else is wrong comes up with the run's own graph
        kept = not (stream and streams(protocols[name], network, spec.record_object()))
        check_size(
            network, protocols[name], spec.stop_object(), n=spec.topology.n, seeds=spec.seeds, kept=kept
        )


def check_update(problem: Problem, algorithm: Algorithm) -> None:
    """A gradient step in shapes alone: optax checks its arguments only when it computes with them.

    Raises:
        InvalidInput: the optimizer does not work with the arguments it was given.
    """
    for name in OPTIMIZERS:
        optimizer = getattr(algorithm, name, None)
        if not isinstance(optimizer, Optimizer):
            continue
        optimizer = optimizer.bound_to(problem)

        def step(key, optimizer=optimizer):
            params = problem.initial(key)
            return optimizer.descend(params, params, optimizer.transformation().init(params))

        try:
            jax.eval_shape(step, jax.random.key(0))
        except (TypeError, ValueError, AttributeError) as error:
            words = str(error).splitlines()[0]
            raise InvalidInput(
                name, optimizer, "arguments it can compute with", f"optax says: {words}"
            ) from None
