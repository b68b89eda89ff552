"""Independent Poisson clocks: the model of the theory. Every event happens at one instant."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from decentral.engine.trace import EXCHANGE, GRADIENT, Replica, Trace
from decentral.errors import InvalidInput, suggest
from decentral.protocol.base import Demand, Gradients, Network, Stop, Time
from decentral.timing import Faults, Links, PoissonClocks, Purpose, poisson_ticks
from decentral.timing.cluster import Cluster
from decentral.topology import SCHEDULES, DirectedTopology, Schedule, Topology


@dataclass(frozen=True)
class Poisson:
    """A gradient clock per worker and an exchange clock per edge, all independent.

    Exchanges are *atomic*: both messages are taken and applied at the same instant, after both workers have flowed to
    it; the sum of what the algorithm conserves is conserved. The time unit of both papers is the expected time of one
    gradient: with the default rate that is one second.

    On a cluster each worker's gradient clock ticks at its own speed's rate (its compute times are not otherwise used);
    links and failures are refused: exchanges of ideal clocks take no time.

    Args:
        gradients_per_s: rate of each worker's gradient clock; 0 for gossip alone. A cluster has its own; algorithms that take
            their gradients in exchanges (``dual_exchange``) have none.
        exchanges_per_s: exchanges per worker and second (on a cluster: per mean time between two gradients), so that the
            edges tick ``n/2`` times as often in total; by default what the algorithm asks for (gossip and A2CiD2: 1; DADAO:
            sqrt(2 chi_1 chi_2) in total). The total is shared between the edges in proportion to the topology's edge rates.
        schedule: a key of ``SCHEDULES`` for a graph that changes: its rounds' graphs in turn, with uniform rates and the
            same total; ``chi_1`` and ``chi_2`` are then the worst of any of them. DADAO's experiments have
            ``"random_geometric"``.
        switch_s: how long a graph stays; by default 1/chi_1, chi_1 for a total rate of 1: the graph at t is number
            floor(t chi_1), as in DADAO's released code (whose comment says 1/chi_1).
        rounds: graphs of the schedule before it repeats, where it draws them.
        radius: of ``"random_geometric"``.

    References:
        Nabli, Oyallon: DADAO (ICML 2023); Nabli, Belilovsky, Oyallon: A2CiD2 (NeurIPS 2023).
    """

    gradients_per_s: float = 1.0
    exchanges_per_s: float | None = None
    schedule: str | None = None
    switch_s: float | None = None
    rounds: int | None = None
    radius: float | None = None

    def __post_init__(self) -> None:
        _check_rate("protocol.gradients_per_s", self.gradients_per_s, zero=True)
        if self.exchanges_per_s is not None:
            _check_rate("protocol.exchanges_per_s", self.exchanges_per_s, zero=False)
        if self.switch_s is not None:
            _check_rate("protocol.switch_s", self.switch_s, zero=False)
        if self.schedule is not None and (
            self.schedule not in SCHEDULES or self.schedule in ("list", "push_sum")
        ):
            raise InvalidInput(
                "protocol.schedule", self.schedule, "a schedule", suggest(self.schedule, SCHEDULES)
            )
        takes = ("switch_s", *inspect.signature(SCHEDULES[self.schedule]).parameters) if self.schedule else ()
        for name in ("switch_s", "rounds", "radius"):
            if getattr(self, name) is not None and name not in takes:
                raise InvalidInput(
                    f"protocol.{name}", getattr(self, name), f"an argument of schedule {self.schedule!r}"
                )

    def network(
        self, topology: Topology | DirectedTopology, demand: Demand, cluster: Cluster | None = None
    ) -> Network:
        """The topology with its edges ticking at the rates of this run."""
        meeting = demand.choose("poisson", ("exchange", "dual_exchange"))
        if not isinstance(topology, Topology):
            raise InvalidInput("topology", topology.name, "an undirected graph", "Exchanges go both ways.")
        per_worker = demand.exchanges_per_s if self.exchanges_per_s is None else self.exchanges_per_s
        rate, unit_s = float(self.gradients_per_s), 1.0
        if cluster is not None:
            if cluster.links != Links() or cluster.faults != Faults() or self.gradients_per_s != 1.0:
                raise InvalidInput(
                    "cluster", "links, faults, or gradients_per_s beside it", "compute times and speeds alone",
                    "Exchanges of ideal clocks take no time; on links use rendezvous, rounds, all_reduce, mailbox or server.",
                )  # fmt: skip
            rate = cluster.gradient_rate(topology.n)
            unit_s = 1 / rate
        if meeting == "dual_exchange":
            rate = 0.0
        worst = None
        if self.schedule is not None:
            schedule = self._graphs(topology)
            topology = schedule.union()
            each = [graph.with_total_rate(per_worker * topology.n / 2) for graph in schedule.topologies()]
            worst = max(graph.chi_1 for graph in each), max(graph.chi_2 for graph in each)
        topology = topology.with_total_rate(per_worker * topology.n / 2)
        return Network(topology, rate, unit_s, demand, cluster, worst)

    def _graphs(self, topology: Topology) -> Schedule:
        given = {
            name: getattr(self, name) for name in ("rounds", "radius") if getattr(self, name) is not None
        }
        assert self.schedule is not None
        return SCHEDULES[self.schedule](topology, **given)

    def events_per_gradient(self, network: Network) -> float:
        """One, and the exchanges that go with it."""
        rate = network.gradients_per_s * network.time_unit_s * network.undirected.n
        return 1 + network.undirected.total_rate / rate if rate else 1.0

    def timeline(self, network: Network, stop: Stop, seed: int) -> Trace:
        """All ticks up to the stop, in order of time.

        Ticks are rounded to nanoseconds; at the same nanosecond gradients come first, then the lower worker or edge.
        """
        topology = network.undirected
        workers, rates = np.arange(topology.n), _gradient_rates(network, seed)

        def gradient_ticks(horizon_s: float):
            return poisson_ticks(seed, Purpose.GRADIENT_CLOCK, workers, workers, rates, horizon_s)

        if isinstance(stop, Time):
            horizon_s = float(stop.time_s)
            gradient_ns, gradient_worker = gradient_ticks(horizon_s)
        else:
            horizon_s, gradient_ns, gradient_worker = _until(stop, network, gradient_ticks)
        low, high = topology.edges[:, 0], topology.edges[:, 1]
        exchange_rates = topology.edge_rates / network.time_unit_s
        if self.schedule is None:
            exchange_ns, edge = poisson_ticks(
                seed, Purpose.EXCHANGE_CLOCK, low, high, exchange_rates, horizon_s
            )
        else:
            exchange_ns, edge = self._changing_ticks(network, seed, horizon_s)
        trace = _ordered(
            gradient_ns,
            gradient_worker,
            exchange_ns,
            topology.edges[edge],
            topology.n,
            Replica(int(seed), 0.0),
        )
        horizon_s = max(horizon_s, float(trace.time_s[-1]) if len(trace) else 0.0)
        return dataclasses.replace(trace, replicas=(Replica(int(seed), horizon_s),))

    def stream(self, network: Network, stop: Stop, seed: int) -> _Ticks | None:
        """The same events piece by piece; None on a graph that changes, whose ticks are moved when all are known."""
        return None if self.schedule is not None else _Ticks(network, stop, int(seed))

    def _changing_ticks(self, network: Network, seed: int, horizon_s: float) -> tuple[np.ndarray, np.ndarray]:
        """Ticks of edges whose rates are constant while a graph stays: clocks of rate 1 in the time that each edge has had."""
        topology = network.undirected
        schedule = self._graphs(topology)
        rates = schedule.edge_rates(topology.rate) / network.time_unit_s
        switch_s = self.switch_s
        if switch_s is None:
            assert network.worst is not None
            switch_s = network.time_unit_s / (network.worst[0] * topology.total_rate)
        pieces = np.arange(math.ceil(horizon_s / switch_s))
        starts_s, piece_rates = pieces * switch_s, rates[pieces % schedule.period]
        ends_s = np.minimum(starts_s + switch_s, horizon_s)
        passed = np.cumsum((ends_s - starts_s)[:, None] * piece_rates, axis=0)
        low, high = topology.edges[:, 0], topology.edges[:, 1]
        ticks_ns, edge = poisson_ticks(
            seed, Purpose.EXCHANGE_CLOCK, low, high, passed[-1] / horizon_s, horizon_s
        )
        for k in np.unique(edge):
            mine = slice(*np.searchsorted(edge, [k, k + 1]))
            own_time = ticks_ns[mine] / 1e9 * (passed[-1, k] / horizon_s)
            piece = np.minimum(np.searchsorted(passed[:, k], own_time, side="right"), len(pieces) - 1)
            left = passed[piece, k] - own_time
            late_s = np.divide(
                left, piece_rates[piece, k], out=np.zeros_like(left), where=piece_rates[piece, k] > 0
            )
            ticks_ns[mine] = np.rint(np.clip(ends_s[piece] - late_s, starts_s[piece], ends_s[piece]) * 1e9)
        return ticks_ns, edge


def _gradient_rates(network: Network, seed: int) -> np.ndarray:
    n = network.undirected.n
    if network.cluster is not None and network.gradients_per_s:
        return network.cluster.speed_of(n, seed) / network.cluster.compute.mean_s
    return np.full(n, network.gradients_per_s)


@dataclass(frozen=True)
class _Ticks:
    """A :class:`decentral.protocol.base.Source` of Poisson clocks."""

    network: Network
    stop: Stop
    seed: int
    _rates: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rates", _gradient_rates(self.network, self.seed))

    @cached_property
    def horizon_s(self) -> float:
        """As asked; a tick just before it may round to a nanosecond after it. Of a number of gradients the time of the last."""
        if isinstance(self.stop, Time):
            horizon_s = float(self.stop.time_s)
            if round(horizon_s * 1e9) / 1e9 <= horizon_s:
                return horizon_s
            return max([horizon_s, *(piece.time_s[-1] for piece in self.pieces(2**18) if len(piece))])
        if self.network.gradients_per_s <= 0:
            raise _no_gradients(self.stop)
        clocks, done, border_ns = self._clocks(math.inf), 0, 0
        expected = min(2.0**20, self.stop.gradients)
        while True:
            border_ns += math.ceil(1e9 * expected / self._rates.sum())
            ticks_ns, _ = clocks.until(border_ns, expected)
            if done + len(ticks_ns) >= self.stop.gradients:
                return float(np.sort(ticks_ns)[self.stop.gradients - done - 1] / 1e9)
            done += len(ticks_ns)

    def _clocks(self, horizon_s: float) -> PoissonClocks:
        workers = np.arange(self.network.undirected.n)
        return PoissonClocks(self.seed, Purpose.GRADIENT_CLOCK, workers, workers, self._rates, horizon_s)

    def pieces(self, events: int) -> Iterator[Trace]:
        """All ticks up to the stop, those of equal spans of time together."""
        topology = self.network.undirected
        if isinstance(self.stop, Time):
            end_s, left = float(self.stop.time_s), math.inf
            gradients = self._clocks(end_s)
        else:  # the last one may tick just after the nanosecond it is rounded to
            end_s, left = self.horizon_s, self.stop.gradients
            gradients = self._clocks(math.inf)
        (low, high), exchange_rates = topology.edges.T, topology.edge_rates / self.network.time_unit_s
        exchanges = PoissonClocks(self.seed, Purpose.EXCHANGE_CLOCK, low, high, exchange_rates, end_s)
        rates = self._rates.sum(), exchange_rates.sum()
        # Each piece asks every clock.
        span_ns = math.ceil(1e9 * max(events, (topology.n + len(topology.edges)) // 2) / sum(rates))
        last_ns, border_ns, done = round(end_s * 1e9), 0, False
        while not done:
            border_ns = min(border_ns + span_ns, last_ns)
            done = border_ns == last_ns
            gradient_ns, worker = gradients.until(border_ns, span_ns / 1e9 * rates[0])
            if len(gradient_ns) > left:  # at the instant of the last one others may tick too
                kept = np.sort(np.argsort(gradient_ns, kind="stable")[:left])
                gradient_ns, worker = gradient_ns[kept], worker[kept]
            left -= len(gradient_ns)
            exchange_ns, edge = exchanges.until(border_ns, span_ns / 1e9 * rates[1])
            replica = Replica(self.seed, end_s)
            yield _ordered(gradient_ns, worker, exchange_ns, topology.edges[edge], topology.n, replica)


def _ordered(gradient_ns, worker, exchange_ns, ends, n: int, replica: Replica) -> Trace:
    """Ticks in order of time; at the same nanosecond gradients come first, then the lower worker or edge."""
    ticks_ns = np.concatenate([gradient_ns, exchange_ns])
    order = np.argsort(ticks_ns, kind="stable")
    op = np.zeros(len(ticks_ns), np.uint8)
    op[len(gradient_ns) :] = 1
    operands = np.full((len(ticks_ns), 2), -1, np.int32)
    operands[: len(gradient_ns), 0] = worker
    operands[len(gradient_ns) :] = ends
    return Trace(ticks_ns[order] / 1e9, op[order], operands[order], (GRADIENT, EXCHANGE), n, (replica,))


def _no_gradients(stop: Gradients) -> InvalidInput:
    return InvalidInput("stop.gradients", stop.gradients, "a stop by time when gradients_per_s is 0")


def _check_rate(name: str, rate: float, *, zero: bool) -> None:
    number = isinstance(rate, int | float) and not isinstance(rate, bool) and math.isfinite(rate)
    if not number or rate < 0 or (rate == 0 and not zero):
        raise InvalidInput(name, rate, f"a finite number {'>=' if zero else '>'} 0")


def _until(stop: Gradients, network: Network, gradient_ticks):
    if network.gradients_per_s <= 0:
        raise _no_gradients(stop)
    # The number of gradients by the first guess exceeds the target but for six standard deviations.
    guess = stop.gradients + 6 * math.sqrt(stop.gradients) + 10
    horizon_s = guess / (network.undirected.n * network.gradients_per_s)
    while True:
        ticks_ns, worker = gradient_ticks(horizon_s)
        if len(ticks_ns) >= stop.gradients:
            break
        horizon_s *= 2
    last = np.argsort(ticks_ns, kind="stable")[: stop.gradients]
    kept = np.sort(last)
    return float(ticks_ns[last[-1]] / 1e9), ticks_ns[kept], worker[kept]
