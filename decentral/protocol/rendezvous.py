"""Rendezvous: a computing stream and a communication stream per worker; who owes an exchange meets a neighbour who does."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
from numba import njit

from decentral.engine.trace import (
    CANCEL,
    DROP,
    EXCHANGE,
    EXCHANGE_COMMIT,
    EXCHANGE_START,
    RECEIVE,
    SEND,
    Op,
    Trace,
)
from decentral.errors import InvalidInput, RunFailed, check_flag, check_number, suggest
from decentral.protocol import queues
from decentral.protocol.base import Demand, Network, Stop
from decentral.protocol.queues import (
    ASKED,
    CIRCLE,
    COMING,
    COMPUTED,
    DELIVER,
    DOWN,
    DRAWS,
    END,
    ENTER,
    EVENTS,
    HEAP,
    IDLE,
    LOG,
    LONGEST_NS,
    NOW,
    REQUESTED,
    SERVED,
    UP,
    accumulated,
    commit_gradient,
    draw_message,
    emit,
    enlist,
    first_listed,
    pop,
    push,
    reachable,
    start_gradient,
    through,
)
from decentral.protocol.service import gradient_rate
from decentral.timing import Cluster, Purpose
from decentral.timing.faults import separated
from decentral.timing.tapes import _uniform, philox
from decentral.topology import Topology

COUNTS = ("poisson", "fixed")
PAIRINGS = ("first_come", "round_robin")
MESSAGES = {
    "paired": (EXCHANGE_START, EXCHANGE_COMMIT, CANCEL),
    "atomic": (EXCHANGE,),
    "stale": (SEND, RECEIVE, DROP),
}
"""What ``Rendezvous.messages`` may be, and the ops it takes."""
_PAIRED, _ATOMIC, _STALE = range(3)
_FIRST = len(queues.STREAM_OPS)
"""Code of the first of those ops."""
_EXCHANGE_COUNT = int(Purpose.EXCHANGE_COUNT)
_POISSON_PART = 500.0
"""A Poisson number of larger mean is the sum of several: exp(-mean) has to stay above the smallest float."""
_STARVED = 10
"""Mean gradients after which a worker that waits, and has waited for half the run, is reported."""


@dataclass(frozen=True)
class Rendezvous:
    """Gradients one after another; when one ends the worker owes exchanges, which its communication stream makes meanwhile.

    As in the released code of A2CiD2. A worker owes one exchange at the start of a run (there: at least one) and a Poisson
    or fixed number more after each gradient. Who owes and whose communication stream is idle is available; two available
    neighbours meet. An exchange takes both communication streams until both messages have arrived, and is one fewer owed to both.
    So every worker takes part in ``exchanges_per_gradient`` exchanges per gradient, as long as its neighbours owe as
    many (a regular graph, equal speeds) and the streams keep up. The hub of a star owes no more than a leaf and so makes
    the leaves wait; ``trace.realised_rates()`` tells.

    At one instant what arrives comes first, then gradients end, then exchanges start, then gradients: when nothing takes
    time on the way, a gradient starts after the exchanges owed for the one before.

    Messages:

    * ``paired``: both are taken when the exchange starts; each end applies theirs - mine when its message arrives. The sum
      of what the algorithm conserves is conserved.
    * ``atomic``: both are taken and applied when the exchange is complete. Conserves the sum too.
    * ``stale``: each is taken at the start and meets the state at its arrival. Does not conserve the sum.

    A message takes latency + bytes x ns_per_byte x jitter. Where workers share a network card, or it is half duplex, it
    also waits for the card to be free, first come first served: at the sender, then at the receiver (the second from its
    first byte, so that an uncontended message pays for its bytes once).

    Faults. A crash loses the gradient under way; the worker begins another after the return, which takes the next draw
    of its durations. An exchange under way with the crashed worker is cancelled at both ends; but if one end is already
    applied the other is too, when its message arrives, so that sums hold. A lost message cancels a paired or atomic
    exchange when both should have arrived. Stale messages already sent go on; lost ones, and those that find the
    receiver down, are dropped. No exchange starts with a worker that is down or across a partition. A cancelled
    exchange is not made up for. Who returns owes what it owed.

    Optical units. Where gradients ask one, a worker's first part of a gradient ends with a request that crosses the unit's link,
    waits for the requests before it and takes its frames; with the reply, that crosses the link too, the second part
    begins. Of a worker that crashes meanwhile the request is served all the same, and the reply is lost.

    Args:
        exchanges_per_gradient: mean number per worker and gradient, above 0; None for what the algorithm asks for.
        count: "poisson": a Poisson number after each gradient; "fixed": whole numbers as they accumulate (0.5: one after every
            second gradient).
        pairing: "first_come": an available worker meets the neighbour that has been available longest (of several the one it
            met least recently, then the lowest number). "round_robin": each worker meets its neighbours in a fixed cyclic order
            (the colours of a greedy edge colouring: on dense graphs not all can meet at once), those it cannot reach left
            out, and waits for the next one's turn. Without faults that always comes; circular waiting is an error.
        messages: "paired", "atomic" or "stale".
        wait: a gradient starts only when nothing is owed (blocking gossip).

    Raises:
        RunFailed: from ``timeline`` and ``stream``: workers wait for each other in a circle, or all wait for workers that
            stay down.

    References:
        Nabli, Belilovsky, Oyallon: A2CiD2 (NeurIPS 2023) and its released code.
    """

    serves_units: ClassVar[bool] = True
    exchanges_per_gradient: float | None = 1.0
    count: str = "poisson"
    pairing: str = "first_come"
    messages: str = "paired"
    wait: bool = False

    def __post_init__(self) -> None:
        if self.exchanges_per_gradient is not None:
            name = "protocol.exchanges_per_gradient"
            check_number(name, self.exchanges_per_gradient, 0, math.inf, above=True)
        for name, allowed in (("count", COUNTS), ("pairing", PAIRINGS), ("messages", MESSAGES)):
            value = getattr(self, name)
            if value not in allowed:
                raise InvalidInput(f"protocol.{name}", value, "a known kind", suggest(str(value), allowed))
        check_flag("protocol.wait", self.wait)

    def _owed(self, demand: Demand) -> float:
        return demand.exchanges_per_s if self.exchanges_per_gradient is None else self.exchanges_per_gradient

    def network(self, topology: Topology, demand: Demand, cluster: Cluster | None = None) -> Network:
        """The topology with ``exchanges_per_gradient`` n/2 exchanges per unit of time: the mean time of a gradient.

        Raises:
            InvalidInput: the algorithm cannot meet in pairs, or the topology is directed.
        """
        demand.choose("rendezvous", ("exchange",))
        if not isinstance(topology, Topology):
            advice = "Two workers meet both ways; on a directed graph use protocol mailbox or rounds."
            raise InvalidInput("topology", topology.name, "an undirected graph", advice)
        cluster = cluster or Cluster()
        rate = gradient_rate(topology, demand.service, cluster)
        topology = topology.with_total_rate(self._owed(demand) * topology.n / 2)
        return Network(topology, rate, 1 / rate, demand, cluster)

    def events_per_gradient(self, network: Network) -> float:
        """A start and a commit, those of its half of the exchanges, and where a unit is asked request and service."""
        events = {"paired": 3, "atomic": 1, "stale": 4}[self.messages]
        return 2 + 2 * (network.demand.service is not None) + events * self._owed(network.demand) / 2

    def timeline(self, network: Network, stop: Stop, seed: int) -> Trace:
        """The events of one run up to the stop."""
        return self._source(network, seed).timeline(network, stop)

    def stream(self, network: Network, stop: Stop, seed: int) -> queues.Pieces:
        """The same events piece by piece. Which gradient is the last to count is found here, by running the loop once."""
        return self._source(network, seed).stopped(network, stop)

    def _source(self, network: Network, seed: int) -> queues.Pieces:
        ops = MESSAGES[self.messages] + queues.unit_ops(network.demand.service)
        return queues.Pieces(partial(self._logs, network, seed, ops), ops, network.topology.n, seed)

    def _logs(
        self, network: Network, seed: int, ops: tuple[Op, ...], horizon_s: float, events: int
    ) -> Generator[np.ndarray, None, str | None]:
        """See :class:`queues.Pieces`."""
        topology, cluster, n = network.topology, network.cluster or Cluster(), network.topology.n
        demand = network.demand
        cast = queues.make_cast(
            topology, cluster, demand.message_bytes, seed, horizon_s, STREAM, demand.service, ops
        )
        arcs = cast.arcs
        turn = np.empty(0, np.int64)
        if self.pairing == "round_robin":
            source = np.repeat(np.arange(n), cast.workers["last_arc"] - cast.workers["first_arc"])
            turn = np.lexsort((_colours(cast.workers, arcs), source))
        shared = cluster.links.duplex == "half" or len(np.unique(arcs["out"][arcs["out"] >= 0])) < n
        rules = Rules(
            float(self._owed(network.demand)),
            self.count == "poisson",
            tuple(MESSAGES).index(self.messages),
            self.wait,
            shared and bool(arcs["transmission_ns"].any()),
        )
        # One place more than workers: a full ring is not an empty one.
        lookers, starters = np.empty((2, n + 1), np.int64)
        machine = queues.Machine(_loop, cluster, cast, (turn, lookers, starters, rules), horizon_s, events)
        tally, why = machine.tally, LOG
        _owe(tally, cast.workers, rules, lookers, starters)
        while why == LOG:
            why = machine.run()
            if why in (CIRCLE, IDLE):
                raise RunFailed(
                    _why(int(tally[_STUCK]) if why == CIRCLE else -1, int(tally[NOW]), cast, turn)
                )
            yield machine.logged()
        since_ns, horizon_ns = cast.workers["since_ns"], machine.horizon_ns
        late = min(horizon_ns // 2, horizon_ns - round(_STARVED * 1e9 * network.time_unit_s))
        starved = np.flatnonzero(cast.workers["waiting"] & (since_ns < late))
        if not (self.wait and starved.size):
            return None
        longest = int(starved[np.argmin(since_ns[starved])])
        return (
            f"rendezvous: {starved.size} of {n} workers have waited for more than half of {horizon_s:g} s; "
            + _waits(longest, horizon_ns, cast)
        )


def _why(stuck: int, now: int, cast: queues.Cast, turn: np.ndarray) -> str:
    """Who waits for whom since when."""
    if stuck < 0:
        waiting = np.flatnonzero(cast.workers["waiting"])[:3]
        some = "; ".join(_waits(int(worker), now, cast) for worker in waiting)
        return f"rendezvous: from {now / 1e9:g} s on nothing happens any more: {some}"
    circle, worker = [], stuck
    while worker not in circle:
        circle.append(worker)
        worker = int(_asks(cast.workers, cast.arcs, cast.apart, turn, worker, now)[0])
    words = "; ".join(
        f"worker {w} waits for {v} since {cast.workers['since_ns'][w] / 1e9:g} s"
        for w, v in zip(circle, [*circle[1:], worker], strict=True)
    )
    advice = "Use pairing = 'first_come', which never waits in circles."
    return f"rendezvous: circular waiting at {now / 1e9:g} s: {words}. {advice}"


def _waits(worker: int, now: int, cast: queues.Cast) -> str:
    mine = cast.workers[worker]
    others = cast.arcs["target"][mine["first_arc"] : mine["last_arc"]]
    words = []
    for other in others[:3]:
        away = separated(cast.apart[0], cast.apart[1], cast.apart[2], worker, other, now)
        up = cast.workers["up"][other]
        words.append(f"{other} ({'down' if not up else 'behind a partition' if away else 'up'})")
    more = ", ..." if len(others) > 3 else ""
    return f"worker {worker} waits for {', '.join(words)}{more} since {mine['since_ns'] / 1e9:g} s"


# -- the event loop -----------------------------------------------------------------------------------------------------


class Rules(NamedTuple):
    """What the loop needs to know of a :class:`Rendezvous`; ``queued``: messages wait for network cards."""

    mean: float
    poisson: bool
    messages: int
    wait: bool
    queued: bool


STREAM = [
    ("owed", "i8"),  # exchanges
    ("done", "i8"),  # gradients
    ("waiting", "?"),  # available and without a partner
    ("since_ns", "i8"),  # when it began to wait
    ("before", "i8"),  # who began to wait before it, or -1: the list of all that wait
    ("after", "i8"),  # who began after it, or -1
    ("place", "i8"),  # its next turn
    ("looking", "?"),  # on the list of those who look for a partner at this instant
    ("starting", "?"),  # on the list of those who may start a gradient at this instant
    ("partner", "i8"),  # in the exchange under way, or -1
    ("slot", "i8"),  # what it gets in it
    ("begun_ns", "i8"),
    ("arc", "i8"),  # that its message comes by
    ("transmission_ns", "i8"),  # of that message
    ("arrived", "?"),  # that message, or it should have
    ("lost", "?"),  # that message
]
"""Fields of a worker's communication stream."""
# Counters beside those of every loop.
_EXCHANGES, _HEAD, _TAIL, _WAITING, _LOOKERS, _LOOKED, _STARTERS, _STARTED, _STUCK = range(4, 13)


@njit(cache=True)
def _colours(workers, arcs):
    """An edge colouring, the least free colour edge by edge: int64 (A,), the same for both arcs of an edge."""
    largest = 0
    for u in range(workers.size):
        largest = max(largest, workers[u].last_arc - workers[u].first_arc)
    taken = np.zeros((workers.size, (2 * largest + 63) // 64), np.uint64)
    colour = np.empty(arcs.size, np.int64)
    for u in range(workers.size):
        for arc in range(workers[u].first_arc, workers[u].last_arc):
            v = arcs[arc].target
            if v < u:
                continue
            word = 0
            while ~(taken[u, word] | taken[v, word]) == np.uint64(0):
                word += 1
            free, bit = ~(taken[u, word] | taken[v, word]), 0
            while not (free >> np.uint64(bit)) & np.uint64(1):
                bit += 1
            taken[u, word] |= np.uint64(1) << np.uint64(bit)
            taken[v, word] |= np.uint64(1) << np.uint64(bit)
            colour[arc] = colour[arcs[arc].reverse] = 64 * word + bit
    return colour


@njit(cache=True)
def _newly_owed(rules, seed, worker, gradients):
    """Exchanges that the gradient ``gradients`` of a worker (counted from 1) makes it owe."""
    if not rules.poisson:
        return accumulated(rules.mean, gradients)
    parts = int(np.ceil(rules.mean / _POISSON_PART))
    mean, total = rules.mean / parts, 0
    for part in range(parts):
        count = (gradients - 1) * parts + part
        block = philox(
            np.uint64(seed),
            np.uint64(_EXCHANGE_COUNT),
            np.uint64(count),
            np.uint64(worker),
            np.uint64(worker),
            np.uint64(0),
        )
        left, chance, k = _uniform(block[0]), np.exp(-mean), 0
        # Beyond the bound rounding is all that is left of the probability.
        while left >= chance and k < 2 * mean + 60:
            left -= chance
            k += 1
            chance *= mean / k
        total += k
    return total


@njit(cache=True)
def _leave(tally, workers, worker):
    """Off the list of those who wait."""
    mine = workers[worker]
    mine.waiting = False
    if mine.before < 0:
        tally[_HEAD] = mine.after
    else:
        workers[mine.before].after = mine.after
    if mine.after < 0:
        tally[_TAIL] = mine.before
    else:
        workers[mine.after].before = mine.before
    tally[_WAITING] -= 1


@njit(cache=True)
def _look(tally, workers, lookers, worker):
    """On the list of those who look for a partner at this instant."""
    if not workers[worker].looking:
        workers[worker].looking = True
        enlist(lookers, tally, _LOOKERS, worker)


@njit(cache=True)
def _blocked(mine, rules):
    """Whether a worker has to wait with its next gradient."""
    return rules.wait and (mine.owed > 0 or mine.partner >= 0)


@njit(cache=True)
def _go_on(tally, workers, rules, lookers, starters, worker, now):
    """What a worker does whose communication or computation has ended, or that has come back."""
    mine = workers[worker]
    if not mine.up:
        return
    if mine.partner < 0 and mine.owed > 0 and not mine.waiting:
        mine.waiting, mine.since_ns = True, now
        mine.before, mine.after = tally[_TAIL], -1
        if tally[_TAIL] < 0:
            tally[_HEAD] = worker
        else:
            workers[tally[_TAIL]].after = worker
        tally[_TAIL] = worker
        tally[_WAITING] += 1
        _look(tally, workers, lookers, worker)
    if mine.gradient < 0 and not mine.starting and not _blocked(mine, rules):
        mine.starting = True
        enlist(starters, tally, _STARTERS, worker)


@njit(cache=True)
def _older(workers, arcs, arc, best):
    """Whether the neighbour at an arc goes before the one at another: who waits longer, or was met longer ago."""
    if best < 0:
        return True
    a, b = workers[arcs[arc].target].since_ns, workers[arcs[best].target].since_ns
    if a != b:
        return a < b
    return arcs[arc].met < arcs[best].met or (arcs[arc].met == arcs[best].met and arc < best)


@njit(cache=True)
def _first_come(tally, workers, arcs, apart, worker, now):
    """The arc to the neighbour that has waited longest, -1 for none."""
    best = np.int64(-1)
    first, last = workers[worker].first_arc, workers[worker].last_arc
    if last - first <= max(8, tally[_WAITING]):
        for arc in range(first, last):
            other = arcs[arc].target
            before = workers[other].waiting and _older(workers, arcs, arc, best)
            if before and reachable(workers, apart, worker, other, now):
                best = arc
        return best
    # Fewer wait than the worker has neighbours: go through those, the longest wait first.
    other = tally[_HEAD]
    while other >= 0 and (best < 0 or workers[other].since_ns == workers[arcs[best].target].since_ns):
        low, high = first, last
        while low < high:
            middle = (low + high) // 2
            if arcs[middle].target < other:
                low = middle + 1
            else:
                high = middle
        before = low < last and arcs[low].target == other and _older(workers, arcs, low, best)
        if before and reachable(workers, apart, worker, other, now):
            best = low
        other = workers[other].after
    return best


@njit(cache=True)
def _asks(workers, arcs, apart, turn, worker, now):
    """``(other, arc, place)`` of whose turn it is to meet a worker; -1 when it reaches no one."""
    first, degree = workers[worker].first_arc, workers[worker].last_arc - workers[worker].first_arc
    place = workers[worker].place
    for _ in range(degree):
        arc = turn[first + place]
        if reachable(workers, apart, worker, arcs[arc].target, now):
            return arcs[arc].target, arc, place
        place = place + 1 if place + 1 < degree else 0
    return np.int64(-1), np.int64(-1), np.int64(-1)


@njit(cache=True)
def _advance(workers, worker, place):
    """The turn after one that was taken."""
    mine = workers[worker]
    mine.place = place + 1 if place + 1 < mine.last_arc - mine.first_arc else 0


@njit(cache=True)
def _round_robin(workers, arcs, apart, turn, worker, now):
    """``(arc, circle)``: the arc to whose turn it is if both ask for each other, else -1; whether all wait in a circle."""
    other, arc, place = _asks(workers, arcs, apart, turn, worker, now)
    if other < 0 or not workers[other].waiting:
        return np.int64(-1), False
    asked, _, its_place = _asks(workers, arcs, apart, turn, other, now)
    if asked == worker:
        _advance(workers, worker, place)
        _advance(workers, other, its_place)
        return arc, False
    for _ in range(workers.size):
        if asked < 0 or not workers[asked].waiting:
            break
        asked, _, _ = _asks(workers, arcs, apart, turn, asked, now)
        if asked == worker:
            return np.int64(-1), True
    return np.int64(-1), False


@njit(cache=True)
def _begin(log, heap, tally, workers, arcs, free_ns, chances, rules, arc, i, j, now):
    """Workers i and j, i -> j the arc, start an exchange."""
    tally[_EXCHANGES] += 1
    first, second = 2 * tally[_EXCHANGES] - 2, 2 * tally[_EXCHANGES] - 1
    if rules.messages == _PAIRED:
        emit(log, tally, now, _FIRST, i, j, first, second)
    elif rules.messages == _STALE:
        emit(log, tally, now, _FIRST, j, first)
        emit(log, tally, now, _FIRST, i, second)
    for worker, other, inward, slot in ((i, j, arcs[arc].reverse, first), (j, i, arc, second)):
        _leave(tally, workers, worker)
        mine, wire = workers[worker], arcs[inward]
        transmission_ns, mine.lost = draw_message(arcs, chances, other, inward)
        mine.owed -= 1
        mine.partner, mine.slot, mine.begun_ns = other, slot, now
        mine.arc, mine.transmission_ns, mine.arrived = inward, transmission_ns, False
        wire.met = tally[_EXCHANGES]
        if rules.queued:
            leaves = through(free_ns, wire.out, now, transmission_ns)
            push(heap, tally, min(leaves + wire.latency_ns, LONGEST_NS), ENTER, slot, worker)
        else:
            comes = min(now + wire.latency_ns, LONGEST_NS) + transmission_ns
            push(heap, tally, comes, DELIVER, slot, worker)


@njit(cache=True)
def _enter(heap, tally, workers, arcs, free_ns, worker, slot, now):
    """The first byte of a worker's message is there."""
    mine = workers[worker]
    if mine.partner >= 0 and mine.slot == slot:
        begins = through(free_ns, arcs[mine.arc].into, now, mine.transmission_ns)
        push(heap, tally, begins + mine.transmission_ns, DELIVER, slot, worker)


@njit(cache=True)
def _deliver(log, tally, workers, rules, worker, slot, now):
    """A worker's message is there, or should be. The partner, if that ends their exchange; else -1."""
    mine, other = workers[worker], workers[worker].partner
    if other < 0 or mine.slot != slot:
        return np.int64(-1)  # cancelled
    its = workers[other]
    mine.arrived = True
    both, took = its.arrived, now - mine.begun_ns
    if rules.messages == _STALE:
        gone = mine.lost or not mine.up
        emit(log, tally, now, _FIRST + (2 if gone else 1), worker, slot, -1, -1, took)
    elif mine.lost or its.lost:
        if both and rules.messages == _PAIRED:
            emit(log, tally, now, _FIRST + 2, worker, slot)
            emit(log, tally, now, _FIRST + 2, other, its.slot)
    elif rules.messages == _PAIRED:
        emit(log, tally, now, _FIRST + 1, worker, slot, -1, -1, took)
    elif both:
        emit(log, tally, now, _FIRST, min(worker, other), max(worker, other), -1, -1, took)
    if not both:
        return np.int64(-1)
    mine.partner = its.partner = -1
    return other


@njit(cache=True)
def _cancel(log, tally, workers, rules, worker, now):
    """A worker has crashed. The partner of its exchange, if that is cancelled; else -1."""
    mine, other = workers[worker], workers[worker].partner
    if other < 0 or rules.messages == _STALE:
        return np.int64(-1)
    its = workers[other]
    if rules.messages == _PAIRED:
        if (mine.arrived or its.arrived) and not (mine.lost or its.lost):
            return np.int64(-1)  # one end is applied, so the other will be
        emit(log, tally, now, _FIRST + 2, worker, mine.slot)
        emit(log, tally, now, _FIRST + 2, other, its.slot)
    mine.partner = its.partner = -1
    return other


@njit(cache=True)
def _owe(tally, workers, rules, lookers, starters):
    """Everyone owes an exchange."""
    tally[_HEAD] = tally[_TAIL] = -1
    for worker in range(workers.size):
        workers[worker].owed, workers[worker].partner = 1, -1
        _go_on(tally, workers, rules, lookers, starters, worker, 0)


@njit(cache=True)
def _loop(
    horizon_ns,
    tally,
    log,
    heap,
    workers,
    arcs,
    durations_ns,
    outages_ns,
    apart,
    free_ns,
    chances,
    on_return,
    units,
    turn,
    lookers,
    starters,
    rules,
):
    """All events up to the horizon, or why it cannot go on; see :class:`queues.Machine` and :class:`queues.Cast`.

    ``turn``: arcs in the order of turns, empty for first come. Of ``CIRCLE`` a worker that waits in it is ``tally[_STUCK]``.
    """
    now = tally[NOW]
    while True:
        if tally[EVENTS] + queues.ROOM > log.size:
            why = LOG
            break
        if tally[COMING] + queues.ROOM > len(heap):
            why = HEAP
            break
        if tally[COMING] and heap[0, 0] == now:
            now, kind, number, payload = pop(heap, tally)
            worker = payload if kind <= DELIVER else number
            if kind == ENTER:
                _enter(heap, tally, workers, arcs, free_ns, worker, number, now)
            elif kind == DELIVER:
                other = _deliver(log, tally, workers, rules, worker, number, now)
                if other >= 0:
                    _go_on(tally, workers, rules, lookers, starters, min(worker, other), now)
                    _go_on(tally, workers, rules, lookers, starters, max(worker, other), now)
            elif kind == COMPUTED:
                if commit_gradient(log, tally, workers, worker, payload, now):
                    mine = workers[worker]
                    mine.done += 1
                    mine.owed += _newly_owed(rules, chances.seed, worker, mine.done)
                    _go_on(tally, workers, rules, lookers, starters, worker, now)
            elif kind == REQUESTED:
                queues.queue_up(log, heap, tally, workers, units, payload, number, now)
            elif kind == SERVED:
                queues.answer(log, heap, tally, workers, units, payload, number, now)
            elif kind == ASKED:
                queues.ask(heap, tally, workers, units, number, payload, now)
            elif kind == DOWN:
                queues.go_down(log, heap, tally, workers, outages_ns, worker, now)
                if workers[worker].waiting:
                    _leave(tally, workers, worker)
                other = _cancel(log, tally, workers, rules, worker, now)
                if other >= 0:
                    _go_on(tally, workers, rules, lookers, starters, other, now)
                if turn.size:  # it may have been the turn of the one who is gone
                    for arc in range(workers[worker].first_arc, workers[worker].last_arc):
                        if workers[arcs[arc].target].waiting:
                            _look(tally, workers, lookers, arcs[arc].target)
            elif kind == UP:
                queues.come_back(log, heap, tally, workers, arcs, outages_ns, apart, on_return, worker, now)
                _go_on(tally, workers, rules, lookers, starters, worker, now)
            else:
                waiting = tally[_HEAD]
                while waiting >= 0:
                    _look(tally, workers, lookers, waiting)
                    waiting = workers[waiting].after
        elif tally[_LOOKED] != tally[_LOOKERS]:
            worker = first_listed(lookers, tally, _LOOKED)
            workers[worker].looking = False
            if not workers[worker].waiting:
                continue
            if turn.size:
                arc, circle = _round_robin(workers, arcs, apart, turn, worker, now)
                if circle:
                    tally[_STUCK] = worker
                    why = CIRCLE
                    break
            else:
                arc = _first_come(tally, workers, arcs, apart, worker, now)
            if arc >= 0:
                other = arcs[arc].target
                if other < worker:
                    arc = arcs[arc].reverse
                low, high = min(worker, other), max(worker, other)
                _begin(log, heap, tally, workers, arcs, free_ns, chances, rules, arc, low, high, now)
        elif tally[_STARTED] != tally[_STARTERS]:
            worker = starters[tally[_STARTED]]
            mine = workers[worker]
            if mine.taken == mine.drawn:
                why = DRAWS
                break
            first_listed(starters, tally, _STARTED)
            mine.starting = False
            if mine.up and mine.gradient < 0 and not _blocked(mine, rules):
                start_gradient(log, heap, tally, workers, durations_ns, worker, now)
        elif not tally[COMING] or heap[0, 0] >= LONGEST_NS:
            why = IDLE if tally[_WAITING] > 0 else END
            break
        elif heap[0, 0] > horizon_ns:
            why = END
            break
        else:
            now = heap[0, 0]
    tally[NOW] = now
    return why
