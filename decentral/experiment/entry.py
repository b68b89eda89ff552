"""``simulate`` and ``replay``: one run of one algorithm, from clocks to metrics."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from decentral.algorithm import Algorithm
from decentral.engine.stream import Stream
from decentral.engine.trace import Trace, merge
from decentral.errors import InvalidInput
from decentral.experiment.devices import Devices, as_devices
from decentral.experiment.memory import check_memory
from decentral.experiment.optimizer_time import optimizer_costs, share_of_gradient
from decentral.experiment.record import Record
from decentral.experiment.result import Result
from decentral.experiment.shapes import shapes_of, size_of, slot_shapes, token_bytes
from decentral.experiment.simulation import Progress, Simulation, each
from decentral.optical.feedback import as_feedback
from decentral.problem import Problem
from decentral.protocol import PROTOCOLS, Demand, Network, Poisson, Protocol, Recorded, Stop, Time
from decentral.protocol.service import Service, require_served
from decentral.timing import Cluster, Faults
from decentral.topology import DirectedTopology, Topology

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
    devices: Devices | int | None = None,
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
        devices: over which the workers are shared out: :class:`decentral.Devices`, or their number; one by default.
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
    simulation = prepare(
        problem, topology, algorithm, protocol, cluster=cluster, stop=stop, record=record, initial=initial, seeds=seeds,
        constants=constants, name=name, devices=devices, stream=devices is None,
    )  # fmt: skip
    return simulation.run(progress=progress)


def prepare(
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
    devices: Devices | int | None = None,
    stream: bool = False,
) -> Simulation:
    """The run of :func:`simulate`, with the same arguments, before its first event.

    Its trace is there as a whole, unless ``stream`` and ``record.trace = False``.

    Raises:
        InvalidInput: something does not fit together.
    """
    devices = as_devices(devices)
    if devices is not None:
        devices.connect()  # before anything is computed
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
        kept=not (stream and streams(protocol, networks[0], record or Record())),
    )
    began = time.perf_counter()
    trace = events_of(protocol, networks, stop, seed_list, record or Record(), stream=stream)
    timeline_s = time.perf_counter() - began
    networks = constants_of(constants, trace, networks)
    simulation = Simulation(
        trace,
        problems,
        algorithm,
        network=networks,
        record=record,
        initial=initial,
        name=name,
        devices=devices,
    )
    simulation.wall_s["timeline"] += timeline_s
    simulation.protocol = protocol
    return simulation


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
    devices: Devices | int | None = None,
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
        devices: over which the workers are shared out: :class:`decentral.Devices`, or their number; one by default.
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
        devices=devices,
    )
    return simulation.run(progress=progress)


def network_of(
    protocol: Protocol,
    topology: Topology | DirectedTopology,
    algorithm: Algorithm,
    problem: Problem,
    cluster: Cluster | None = None,
) -> Network:
    """The clocks an algorithm runs on, and the bytes it sends.

    Raises:
        InvalidInput: the protocol does not serve this algorithm.
    """
    demand = algorithm.demand(Network(topology))
    if {"stages", "feedback"} & set(demand.meetings):
        resolved = algorithm.resolve(problem, None)  # refuses a problem without stages
        elements = slot_shapes(problem, resolved, shapes_of(problem, resolved))
        demand = dataclasses.replace(
            demand,
            stages=problem.stages.shapes,
            token_bytes=token_bytes(problem, elements),
            error_bytes=size_of(elements.get("error")),
        )
    demand, cluster = _charged(protocol, topology, algorithm, problem, demand, cluster)
    network = protocol.network(topology, demand, cluster)
    # Other graphs than the topology, or a mixing matrix: how often to meet follows from those.
    if (network.worst or network.schedule) is not None:
        again = dataclasses.replace(
            algorithm.demand(network),
            service=demand.service,
            optimizer_share=demand.optimizer_share,
            optimizer_s=demand.optimizer_s,
        )
        if again != demand:
            network = protocol.network(topology, again, cluster)
    shapes = shapes_of(problem, algorithm.resolve(problem, network))
    sizes = {
        "message_bytes": size_of(shapes.params if shapes.message is None else shapes.message),
        "model_bytes": size_of(shapes.params),
    }
    return dataclasses.replace(network, demand=dataclasses.replace(network.demand, **sizes))


def _charged(
    protocol: Protocol,
    topology: Topology | DirectedTopology,
    algorithm: Algorithm,
    problem: Problem,
    demand: Demand,
    cluster: Cluster | None,
) -> tuple[Demand, Cluster | None]:
    """The demand with what gradients ask of optical units, and the cluster with the time that gradients take on it.

    A cluster's seconds are those of a gradient by backpropagation and a step of an ordinary optimizer. Direct feedback alignment,
    which computes no gradients of activations, takes two thirds of them; a learned optimizer adds those of its own step: to each
    gradient of a worker with parameters of its own, to the backward passes of a pipeline's stages, or to the end of a meeting
    where there is one copy, or an outer step; an overlapped all-reduce cuts it over the workers. Nothing is charged where times
    come from a file or are those of ideal clocks without a cluster; feedback not to a pipeline's stages either, which have
    seconds of their own.

    Raises:
        InvalidInput: units are asked and the protocol has no queue for them, or some workers have none.
    """
    if isinstance(protocol, Recorded):
        return demand, cluster
    service = _service(protocol, topology, algorithm, problem)
    if cluster is None and isinstance(protocol, Poisson):
        return demand, cluster
    machines, staged = cluster or Cluster(), bool({"stages", "feedback"} & set(demand.meetings))
    own, outer = (
        share_of_gradient(cost, problem, machines, of_model=staged) for cost in optimizer_costs(algorithm)
    )
    if {"gradient", "batches"} & set(demand.meetings):
        own, outer = 0.0, own * algorithm.optimizer_steps
        if "batches" in demand.meetings:
            outer /= topology.n  # a shard each; the means over tensors that a step needs are few numbers
    own /= algorithm.events_per_update
    optimizer_s = outer / machines.gradient_rate(topology.n)
    demand = dataclasses.replace(demand, optimizer_share=own, optimizer_s=optimizer_s)
    if service is not None and service.task is not None and topology.units:
        service = dataclasses.replace(service, after=service.after + own)
        return dataclasses.replace(demand, service=service), cluster
    share = own + (1.0 if service is None else service.share)
    if staged or share == 1.0:
        return demand, cluster
    return demand, machines.faster(1 / share)


def _service(
    protocol: Protocol, topology: Topology | DirectedTopology, algorithm: Algorithm, problem: Problem
) -> Service | None:
    """What gradients ask of optical units, and what of their time is left to the workers; None for backpropagation.

    Raises:
        InvalidInput: the protocol has no queue for the topology's units, or some workers have none.
    """
    feedback = as_feedback(algorithm.feedback)
    service = None if feedback is None else feedback.service(problem)
    if service is not None and service.task is not None and topology.units:
        if not getattr(protocol, "serves_units", False):
            able = [name for name, kind in PROTOCOLS.items() if getattr(kind, "serves_units", False)]
            advice = (
                "Its gradients cannot queue for the topology's optical units. Or leave out topology.units: projections then "
                "take no time."
            )
            raise InvalidInput("protocol", type(protocol).__name__.lower(), " or ".join(able), advice)
        require_served(topology)
    return service


def constants_of(kind: str, trace: Trace | Stream, networks: Sequence[Network]) -> list[Network]:
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
        realised = realised_topology(trace, index, network.time_unit_s)
        if realised is None:
            raise InvalidInput(
                "constants",
                kind,
                "'assumed'",
                "In this trace pairs of workers meet too rarely, or not in pairs.",
            )
        found.append(dataclasses.replace(network, topology=realised))
    return found


def realised_topology(trace: Trace | Stream, index: int, unit_s: float) -> Topology | None:
    """Of one replica, see :meth:`Trace.realised_topology`."""
    if isinstance(trace, Stream):
        return trace.realised_topology(unit_s, index)
    return trace.replica(index).realised_topology(unit_s)


def streams(protocol: Protocol, network: Network, record: Record) -> bool:
    """Whether events are drawn, planned and done chunk by chunk, and never all there at once."""
    # The account of optical units is made from all events.
    if record.trace or network.demand.service is not None:
        return False
    draw = getattr(protocol, "stream", None)
    return draw is not None and draw(network, Time(1.0), 0) is not None


def events_of(
    protocol: Protocol,
    networks: Sequence[Network],
    stop: Stop,
    seeds: Sequence[int],
    record: Record,
    *,
    stream: bool,
) -> Trace | Stream:
    """One trace with a replica per seed, or a stream: where that may be, nobody wants the trace, and the protocol can."""
    if not (stream and streams(protocol, networks[0], record)):
        return timeline(protocol, networks, stop, seeds)
    sources = [protocol.stream(network, stop, seed) for network, seed in zip(networks, seeds, strict=True)]  # type: ignore[attr-defined]
    found = Stream(sources, seeds, record.marks)
    if record.events is not None and record.events[-1] > len(found):
        raise record.beyond(len(found))
    taken = found.gradients_of_workers.reshape(len(networks), -1)
    for index, network in enumerate(networks):
        _require_gradients(network, found.replicas[index].horizon_s, bool(taken[index].any()))
    return found


def timeline(protocol: Protocol, networks: Sequence[Network], stop: Stop, seeds: Sequence[int]) -> Trace:
    """One trace with a replica per seed."""
    traces = [protocol.timeline(network, stop, seed) for network, seed in zip(networks, seeds, strict=True)]
    for trace, network in zip(traces, networks, strict=True):
        _require_gradients(network, trace.horizon_s, bool(trace.gradients_of_events.any()))
    return merge(traces)


def _require_gradients(network: Network, horizon_s: float, taken: bool) -> None:
    expected = network.gradients_per_s * horizon_s
    crashes = network.cluster is not None and network.cluster.faults != Faults()
    if crashes and expected >= MANY and not taken:
        raise InvalidInput(
            "cluster.faults", f"no gradient of any worker in {horizon_s:.3g} s", "workers that stay up long enough",
            f"Without faults each would take about {expected:.3g}.",
        )  # fmt: skip


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
