"""``simulate`` and ``replay``: one run of one algorithm, from clocks to metrics."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from decentral.algorithm import Algorithm
from decentral.engine.trace import Trace, merge
from decentral.errors import InvalidInput
from decentral.experiment.memory import check_memory
from decentral.experiment.record import Record
from decentral.experiment.result import Result
from decentral.experiment.shapes import shapes_of, size_of, slot_shapes, token_bytes
from decentral.experiment.simulation import Progress, Simulation, each
from decentral.problem import Problem
from decentral.protocol import Network, Poisson, Protocol, Stop, Time
from decentral.timing import Cluster, Faults
from decentral.topology import Topology

CONSTANTS = ("assumed", "realised")
MANY = 10
"""Gradients of each worker that should have been: that there is none is then no chance."""


def simulate(
    problem: Problem | Sequence[Problem],
    topology: Topology | Sequence[Topology],
    algorithm: Algorithm,
    protocol: Protocol | None = None,
    *,
    cluster: Cluster | None = None,
    stop: Stop | float,
    record: Record | None = None,
    initial: Any = None,
    seeds: int | Sequence[int] = 1,
    constants: str = "assumed",
    name: str | None = None,
    progress: Callable[[Progress], None] | bool = False,
) -> Result:
    """Run an algorithm on a problem over a network of workers.

    Seeds are disjoint copies of the network in one run: seed k alone and seed k among many see the same events and
    draws, and agree to rounding.

    Args:
        problem: the objective, or one per seed.
        topology: the graph, or one per seed.
        algorithm: step sizes left open are resolved from the problem and the network.
        protocol: decides when things happen; independent Poisson clocks by default.
        cluster: compute times, links and failures, for protocols other than Poisson clocks; by default gradients of one
            second on every worker, and links that take no time.
        stop: simulated seconds, :class:`Time` or :class:`Gradients`.
        record: when to record what.
        initial: the starting point, as in :func:`replay`.
        seeds: how many (0, 1, ...), or which.
        constants: open step sizes come from the rates that are ``"assumed"``, or from those ``"realised"`` in the trace.
        name: the result's name.
        progress: a callback, or True for a progress bar.

    Raises:
        InvalidInput: something does not fit together; nothing was run.
        Diverged: a state became NaN or infinite; holds everything recorded before.

    Example:
        >>> from decentral import A2CiD2, simulate, problem, topology
        >>> result = simulate(problem.quadratic(n=16, d=5), topology.named("ring", n=16), A2CiD2(), stop=100.0)
        >>> result.metrics["loss"].shape
        (1, 101)
    """
    protocol = Poisson() if protocol is None else protocol
    stop = Time(stop) if isinstance(stop, int | float) else stop
    seed_list = check_seeds(seeds)
    topologies = each("topology", topology, len(seed_list))
    problems = each("problem", problem, len(seed_list))
    if not isinstance(algorithm, Algorithm):
        raise InvalidInput("algorithm", algorithm, "an instance of decentral.Algorithm")
    networks = [
        network_of(protocol, graph, algorithm, one, cluster)
        for graph, one in zip(topologies, problems, strict=True)
    ]
    check_memory(
        problems[0],
        networks[0],
        protocol,
        algorithm,
        stop,
        seeds=len(seed_list),
        data_sets=len(set(map(id, problems))),
    )
    began = time.perf_counter()
    trace = timeline(protocol, networks, stop, seed_list)
    timeline_s = time.perf_counter() - began
    networks = constants_of(constants, trace, networks)
    result = replay(
        trace,
        problems,
        algorithm,
        network=networks,
        record=record,
        initial=initial,
        name=name,
        progress=progress,
    )
    result.wall_s["timeline"] = timeline_s
    return result


def replay(
    trace: Trace,
    problem: Problem | Sequence[Problem],
    algorithm: Algorithm | Sequence[Algorithm],
    *,
    network: Network | Sequence[Network] | Topology | None = None,
    record: Record | None = None,
    initial: Any = None,
    states: Any = None,
    executor: str = "rows",
    name: str | None = None,
    progress: Callable[[Progress], None] | bool = False,
) -> Result:
    """Run an algorithm on a trace that exists: a recorded run, another algorithm's, another learning rate's.

    Args:
        trace: the events.
        problem: the objective, or one per replica.
        algorithm: one, or one per replica (same class, same static fields).
        network: where step sizes left open come from; not needed when all are given.
        record: when to record what.
        initial: the starting point, shaped like the parameters (common to all workers) or with a leading axis of
            ``n_workers``; by default the problem's.
        states: the states to start from instead, with a leading axis of all workers (of all replicas), such as
            ``Result.final`` of another run.
        executor: ``"rows"`` or ``"eager"`` (one event after another; slow, the oracle of the tests).
        name: the result's name.
        progress: a callback, or True for a progress bar.

    Raises:
        InvalidInput: sizes that do not match, a step size that is not known.
        Diverged: a state became NaN or infinite.

    Example:
        >>> trace = Trace.from_arrays(time_s, op, operands, n_workers=16)
        >>> result = replay(trace, problem, A2CiD2(optimizer={"kind": "sgd", "learning_rate": 0.05}, eta=0.14,
        ...                 alpha_tilde=1.87), initial=x0, record=Record(events=(1, 100, len(trace)), states=True))
        >>> result.states[-1].x_tilde      # (16, d), as stored at each worker's own last event
    """
    simulation = Simulation(
        trace,
        problem,
        algorithm,
        network=network,
        record=record,
        initial=initial,
        states=states,
        executor=executor,
        name=name,
    )
    return simulation.run(progress=progress)


def network_of(
    protocol: Protocol,
    topology: Topology,
    algorithm: Algorithm,
    problem: Problem,
    cluster: Cluster | None = None,
) -> Network:
    """The clocks an algorithm runs on, and the bytes it sends.

    Raises:
        InvalidInput: the protocol does not serve this algorithm.
    """
    demand = algorithm.demand(Network(topology))
    if "stages" in demand.meetings:
        resolved = algorithm.resolve(problem, None)  # refuses a problem without stages
        elements = slot_shapes(problem, resolved, shapes_of(problem, resolved))
        demand = dataclasses.replace(
            demand, stages=problem.stages.shapes, token_bytes=token_bytes(problem, elements)
        )
    network = protocol.network(topology, demand, cluster)
    # Other graphs than the topology, or a mixing matrix: how often to meet follows from those.
    if (network.worst or network.schedule) is not None and (again := algorithm.demand(network)) != demand:
        network = protocol.network(topology, again, cluster)
    shapes = shapes_of(problem, algorithm.resolve(problem, network))
    sizes = {
        "message_bytes": size_of(shapes.params if shapes.message is None else shapes.message),
        "model_bytes": size_of(shapes.params),
    }
    return dataclasses.replace(network, demand=dataclasses.replace(network.demand, **sizes))


def constants_of(kind: str, trace: Trace, networks: Sequence[Network]) -> list[Network]:
    """What step sizes are resolved from: the networks as assumed, or with the rates that happened in the trace.

    Raises:
        InvalidInput: an unknown kind; nothing happened that would give the rates.
    """
    if kind not in CONSTANTS:
        raise InvalidInput("constants", kind, f"one of {', '.join(CONSTANTS)}")
    if kind == "assumed":
        return list(networks)
    found = []
    for index, network in enumerate(networks):
        realised = trace.replica(index).realised_topology(network.time_unit_s)
        if realised is None:
            raise InvalidInput(
                "constants",
                kind,
                "'assumed'",
                "In this trace pairs of workers meet too rarely, or not in pairs.",
            )
        found.append(dataclasses.replace(network, topology=realised))
    return found


def timeline(protocol: Protocol, networks: Sequence[Network], stop: Stop, seeds: Sequence[int]) -> Trace:
    """One trace with a replica per seed."""
    traces = [protocol.timeline(network, stop, seed) for network, seed in zip(networks, seeds, strict=True)]
    for trace, network in zip(traces, networks, strict=True):
        expected = network.gradients_per_s * trace.horizon_s
        crashes = network.cluster is not None and network.cluster.faults != Faults()
        if crashes and expected >= MANY and not trace.gradients_of_events.any():
            raise InvalidInput(
                "cluster.faults", f"no gradient of any worker in {trace.horizon_s:.3g} s", "workers that stay up long enough",
                f"Without faults each would take about {expected:.3g}.",
            )  # fmt: skip
    return merge(traces)


def check_seeds(seeds: int | Sequence[int]) -> list[int]:
    """The list of seeds.

    Raises:
        InvalidInput: no seed, a repeated one, one that is not an integer from 0 to 2**31 - 1.
    """
    if isinstance(seeds, bool):
        raise InvalidInput("seeds", seeds, "a number of seeds, or a list of them")
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not chosen:
        raise InvalidInput("seeds", seeds, "at least one seed")
    for seed in chosen:
        if isinstance(seed, bool) or int(seed) != seed or not 0 <= seed < 2**31:
            raise InvalidInput("seeds", seed, "integers from 0 to 2**31 - 1")
    if len(set(chosen)) != len(chosen):
        raise InvalidInput(
            "seeds", chosen, "seeds that are all different", "The same seed twice is the same run."
        )
    return [int(seed) for seed in chosen]
