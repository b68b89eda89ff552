"""What event loops on a cluster share: a heap of what comes next, a log of what happened, computing workers, wires.

A loop is one compiled function over integer nanoseconds. It takes from the heap in order of (time, kind, number): at the
same instant what arrives comes first, then what optical units have done, then what was computed, then who goes down and who
comes back; what starts at
that instant (messages, then gradients) comes last, from lists of the loop's own. Numbers are those of messages or
workers, so the order depends on nothing else.

A loop returns when it wants something of its :class:`Machine`: its log handed on, a table with more room, durations of further
gradients. All that it knows is in arrays, so that it goes on where it was. So the events of a run can be drawn piece by piece,
and a timeline is those pieces, joined.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numba import njit

from decentral.engine.trace import (
    ABANDON,
    COPY,
    GRADIENT_COMMIT,
    GRADIENT_START,
    REQUEST,
    RESET,
    SERVE,
    Op,
    Replica,
    Trace,
)
from decentral.protocol import records as records  # before the first function of records is compiled
from decentral.protocol.base import Network, Stop, until
from decentral.protocol.service import Service, turn_of
from decentral.timing.cluster import Cluster
from decentral.timing.compute import LONGEST_NS, check_draws, duration_ns, to_ns
from decentral.timing.faults import ON_RETURN, lost, separated
from decentral.timing.links import jitter_factor
from decentral.topology import DirectedTopology, Topology, neighbours

STREAM_OPS = (GRADIENT_START, GRADIENT_COMMIT, ABANDON, COPY, RESET)
"""The first ops of every loop's trace, in the order of their codes."""
_START, _COMMIT, _ABANDON, _COPY, _RESET = range(len(STREAM_OPS))

KIND = 1 << 58
"""A heap's second key is kind x KIND + number."""
ENTER, DELIVER, REQUESTED, SERVED, ASKED, COMPUTED, DOWN, UP, PARTITION = range(9)
"""What may come: the first byte at a NIC, a whole message, a request at an optical unit, the end of its frames, the end of a
gradient's first part, that of all of it, an outage and its end, a network that falls apart or together."""
EVENTS, COMING, GRADIENTS, NOW = range(4)
"""Counters that every loop keeps: events in the log, entries of the heap, gradients started, the time in ns."""
COUNTERS = 16
"""Room for those, and for others of a loop's own."""
ROOM = 16
"""Events and entries that one turn of a loop adds at most."""
LOG, HEAP = range(2)
"""What a loop returns when a table is full: its place among them, the first two of each loop."""
END, DRAWS, CIRCLE, IDLE = range(-1, -5, -1)
"""What it returns otherwise: the horizon is reached, a worker has no duration left, workers wait in a circle, or for ever."""
MOST_DRAWN = 2**18
"""Durations of all workers of a replica that are drawn ahead (at least 16 each): 2 to 4 MB."""
MOST_LOGGED = 2**18
"""Events in a log, where nobody asks for pieces of another size."""


EVENT = np.dtype([("time_ns", "i8"), ("duration_ns", "i8"), ("operands", "i4", (4,)), ("op", "u1")])
"""An entry of a log."""
WORKER = [
    ("taken", "i8"),  # durations that its gradients so far have taken
    ("drawn", "i8"),  # durations drawn so far
    ("gradient", "i8"),  # slot of the gradient under way, or -1
    ("started_ns", "i8"),  # when that was started, or a unit's reply came
    ("unit", "i8"),  # that it asks in each gradient, or -1
    ("first_part", "f8"),  # shares of a gradient's duration, as of a Service
    ("second_part", "f8"),
    ("after_ns", "i8"),  # of the gradient under way, to be computed when the unit has replied
    ("up", "?"),
    ("outage", "i8"),  # place of its next outage, or of the one under way
    ("last_outage", "i8"),  # where the next worker's begin
    ("first_arc", "i8"),
    ("last_arc", "i8"),  # where the next worker's begin
]
"""Fields of a worker; a loop adds its own."""
ARC = np.dtype(
    [
        ("target", "i8"),
        ("reverse", "i8"),  # the arc back, or -1
        ("latency_ns", "i8"),
        ("transmission_ns", "f8"),  # mean
        ("out", "i8"),  # queue a message leaves through, or -1
        ("into", "i8"),  # queue it enters by, or -1; with half-duplex cards the same numbers
        ("count", "i8"),  # messages so far
        ("met", "i8"),  # for the loop: when it was last used
        ("bad", "?"),  # whether a burst of losses is on
    ]
)
"""A directed link: whom a worker can send to, what a message takes and what happened to those before."""


UNIT = np.dtype(
    [
        ("latency_ns", "i8"),
        ("request_ns", "i8"),  # that a request takes on the link
        ("reply_ns", "i8"),
        ("serve_ns", "i8"),  # of its frames
        ("into_ns", "i8"),  # when the last request is through the link
        ("out_ns", "i8"),  # when the last reply is
        ("free_ns", "i8"),  # when the last frame of all requests that have come is taken
        ("request", "u1"),  # code of the op REQUEST in the trace; that of SERVE is the next
    ]
)
"""An optical unit and its link."""


class Chances(NamedTuple):
    """What the draws of messages depend on: arguments of ``jitter_factor`` and ``lost``."""

    seed: int
    jitter: int
    sigma: float
    loss: float
    burst_start: float
    burst_end: float
    burst_loss: float


class Cast(NamedTuple):
    """All a loop works on. One array of records each for workers and arcs: compiled code counts the references to an array.

    Attributes:
        workers: (n,) ``WORKER`` and the loop's own fields.
        arcs: (A,) ``ARC``, sorted by source and target.
        durations_ns: int64 (n, power of 2), in each row a ring of a worker's durations that are drawn and not yet taken.
        outages_ns: int64 (2, K), from and until.
        apart: int64 (3, P), :meth:`Faults.partition_arrays`.
        free_ns: int64 (queues,), when the last message in a queue is through.
        chances: of messages.
        on_return: place in ``ON_RETURN``.
        units: (U,) ``UNIT``.
    """

    workers: np.ndarray
    arcs: np.ndarray
    durations_ns: np.ndarray
    outages_ns: np.ndarray
    apart: np.ndarray
    free_ns: np.ndarray
    chances: Chances
    on_return: int
    units: np.ndarray


# -- heap and log -------------------------------------------------------------------------------------------------------


@njit(cache=True)
def push(heap, tally, time_ns, kind, number, payload):
    """Something comes at a time. ``heap`` is int64 (room, 3): time, kind x KIND + number, payload; four children each."""
    key = kind * KIND + number
    at = tally[COMING]
    tally[COMING] += 1
    while at > 0:
        parent = (at - 1) >> 2
        if heap[parent, 0] < time_ns or (heap[parent, 0] == time_ns and heap[parent, 1] <= key):
            break
        heap[at, 0], heap[at, 1], heap[at, 2] = heap[parent, 0], heap[parent, 1], heap[parent, 2]
        at = parent
    heap[at, 0], heap[at, 1], heap[at, 2] = time_ns, key, payload


@njit(cache=True)
def pop(heap, tally):
    """The next thing, taken off the heap: (time_ns, kind, number, payload)."""
    time_ns, key, payload = heap[0, 0], heap[0, 1], heap[0, 2]
    tally[COMING] -= 1
    size = tally[COMING]
    last_time, last_key, last_payload = heap[size, 0], heap[size, 1], heap[size, 2]
    at = 0
    while True:
        child = 4 * at + 1
        if child >= size:
            break
        least = child
        for other in range(child + 1, min(child + 4, size)):
            if heap[other, 0] < heap[least, 0] or (
                heap[other, 0] == heap[least, 0] and heap[other, 1] < heap[least, 1]
            ):
                least = other
        if last_time < heap[least, 0] or (last_time == heap[least, 0] and last_key <= heap[least, 1]):
            break
        heap[at, 0], heap[at, 1], heap[at, 2] = heap[least, 0], heap[least, 1], heap[least, 2]
        at = least
    heap[at, 0], heap[at, 1], heap[at, 2] = last_time, last_key, last_payload
    return time_ns, key // KIND, key % KIND, payload


@njit(cache=True)
def emit(log, tally, time_ns, op, a, b, c=-1, d=-1, duration_ns=0):
    """Write one event."""
    event = log[tally[EVENTS]]
    tally[EVENTS] += 1
    event.time_ns, event.op, event.duration_ns = time_ns, op, duration_ns
    event.operands[0], event.operands[1], event.operands[2], event.operands[3] = a, b, c, d


@njit(cache=True)
def doubled(rows, used):
    """The first ``used`` rows with room for twice as many as before."""
    longer = np.empty((2 * len(rows), *rows.shape[1:]), rows.dtype)
    longer[:used] = rows[:used]
    return longer


@njit(cache=True)
def enlist(ring, tally, tail, worker):
    """Add a worker to a list of those who do something at this instant; ``tally[tail]`` is its end."""
    ring[tally[tail]] = worker
    tally[tail] = tally[tail] + 1 if tally[tail] + 1 < ring.size else 0


@njit(cache=True)
def first_listed(ring, tally, head):
    """The first of a list, taken off it; ``tally[head]`` is its beginning."""
    worker = ring[tally[head]]
    tally[head] = tally[head] + 1 if tally[head] + 1 < ring.size else 0
    return worker


@njit(cache=True)
def accumulated(mean, count):
    """Whole units that come with the ``count``-th of so many steps of ``mean`` each: differences of floor(count x mean)."""
    # Half a billionth is for sums that should be whole.
    return int(np.floor(count * mean + 5e-10)) - int(np.floor((count - 1) * mean + 5e-10))


# -- workers ------------------------------------------------------------------------------------------------------------


@njit(cache=True)
def start_gradient(log, heap, tally, workers, durations_ns, worker, now):
    """A worker that has a duration left takes its point and computes."""
    slot, mine = tally[GRADIENTS], workers[worker]
    tally[GRADIENTS] += 1
    took_ns = durations_ns[worker, mine.taken & (durations_ns.shape[1] - 1)]
    if mine.unit < 0:
        push(heap, tally, now + took_ns, COMPUTED, worker, slot)
    else:
        mine.after_ns = np.int64(np.rint(took_ns * mine.second_part))
        push(heap, tally, now + np.int64(np.rint(took_ns * mine.first_part)), ASKED, worker, slot)
    mine.gradient, mine.started_ns = slot, now
    mine.taken += 1
    emit(log, tally, now, _START, worker, slot)


@njit(cache=True)
def commit_gradient(log, tally, workers, worker, slot, now):
    """The end of a gradient is applied; False where the worker crashed in the meantime."""
    mine = workers[worker]
    if mine.gradient != slot:
        return False
    mine.gradient = -1
    emit(log, tally, now, _COMMIT, worker, slot, -1, -1, now - mine.started_ns)
    return True


@njit(cache=True)
def ask(heap, tally, workers, units, worker, slot, now):
    """The first part of a gradient is done: a request goes to the worker's unit, unless the worker crashed in the meantime."""
    mine = workers[worker]
    if mine.gradient != slot:
        return
    unit = units[mine.unit]
    unit.into_ns = min(max(now, unit.into_ns) + unit.request_ns, LONGEST_NS)
    mine.started_ns = now
    push(heap, tally, min(unit.into_ns + unit.latency_ns, LONGEST_NS), REQUESTED, slot, worker)


@njit(cache=True)
def queue_up(log, heap, tally, workers, units, worker, slot, now):
    """A request is at a unit, which takes the frames of one after the other. It does not know whether the worker is still up."""
    mine = workers[worker]
    unit = units[mine.unit]
    # Of who crashed since, when it was sent is not known any more.
    took_ns = now - mine.started_ns if mine.gradient == slot else unit.request_ns + unit.latency_ns
    emit(log, tally, now, unit.request, worker, mine.unit, -1, -1, took_ns)
    unit.free_ns = min(max(now, unit.free_ns) + unit.serve_ns, LONGEST_NS)
    push(heap, tally, unit.free_ns, SERVED, slot, worker)


@njit(cache=True)
def answer(log, heap, tally, workers, units, worker, slot, now):
    """A unit has taken a request's frames. Its reply is of use if the worker has not crashed, which then goes on computing."""
    mine = workers[worker]
    unit = units[mine.unit]
    emit(log, tally, now, unit.request + 1, worker, mine.unit, -1, -1, unit.serve_ns)
    unit.out_ns = min(max(now, unit.out_ns) + unit.reply_ns, LONGEST_NS)
    if mine.gradient == slot:
        mine.started_ns = min(unit.out_ns + unit.latency_ns, LONGEST_NS)
        push(heap, tally, mine.started_ns + mine.after_ns, COMPUTED, worker, slot)


@njit(cache=True)
def go_down(log, heap, tally, workers, outages_ns, worker, now):
    """A worker crashes: its gradient is lost; the next one takes the next duration. The heap gets its return."""
    mine = workers[worker]
    mine.up = False
    if mine.gradient >= 0:
        emit(log, tally, now, _ABANDON, worker, mine.gradient)
        mine.gradient = -1
    push(heap, tally, outages_ns[1, mine.outage], UP, worker, 0)


@njit(cache=True)
def come_back(log, heap, tally, workers, arcs, outages_ns, apart, on_return, worker, now):
    """A worker returns with its own state, the initial one, or that of its first neighbour it can reach."""
    mine = workers[worker]
    mine.up = True
    mine.outage += 1
    if mine.outage < mine.last_outage:
        push(heap, tally, outages_ns[0, mine.outage], DOWN, worker, 0)
    if on_return == 1:
        emit(log, tally, now, _RESET, worker, -1)
    elif on_return == 2:
        for arc in range(mine.first_arc, mine.last_arc):
            if reachable(workers, apart, worker, arcs[arc].target, now):
                emit(log, tally, now, _COPY, worker, arcs[arc].target)
                break


@njit(cache=True)
def reachable(workers, apart, i, j, now):
    """Whether j is up and no partition is between i and j."""
    if not workers[j].up:
        return False
    return apart.shape[1] == 0 or not separated(apart[0], apart[1], apart[2], i, j, now)


@njit(cache=True)
def make_heap(tally, workers, outages_ns, apart):
    """A heap of all first outages and all partitions."""
    heap = np.empty((4 * (workers.size + apart.shape[1] + ROOM), 3), np.int64)
    for worker in range(workers.size):
        mine = workers[worker]
        if mine.outage < mine.last_outage:
            push(heap, tally, outages_ns[0, mine.outage], DOWN, worker, 0)
    for p in range(apart.shape[1]):
        push(heap, tally, apart[0, p], PARTITION, 2 * p, 0)
        push(heap, tally, apart[1, p], PARTITION, 2 * p + 1, 0)
    return heap


# -- wires --------------------------------------------------------------------------------------------------------------


@njit(cache=True)
def draw_message(arcs, chances, source, arc):
    """``(transmission_ns, lost)`` of the next message on an arc."""
    wire = arcs[arc]
    gone, wire.bad = lost(
        chances.loss, chances.burst_start, chances.burst_end, chances.burst_loss,
        chances.seed, source, wire.target, wire.count, wire.bad,
    )  # fmt: skip
    factor = jitter_factor(chances.jitter, chances.sigma, chances.seed, source, wire.target, wire.count)
    wire.count += 1
    return np.int64(min(np.rint(wire.transmission_ns * factor), float(LONGEST_NS))), gone


@njit(cache=True)
def through(free_ns, queue, now, transmission_ns):
    """When a message that comes to a queue now begins to go through it, first come first served; no queue is -1."""
    if queue < 0:
        return now
    begin = max(now, free_ns[queue])
    free_ns[queue] = min(begin + transmission_ns, LONGEST_NS)
    return begin


# -- from and to the rest -----------------------------------------------------------------------------------------------


def make_cast(
    topology: Topology | DirectedTopology,
    cluster: Cluster,
    message_bytes: int,
    seed: int,
    horizon_s: float,
    fields: list[tuple[str, str]],
    service: Service | None = None,
    ops: tuple[Op, ...] = (),
) -> Cast:
    """Everyone up and idle, every queue empty; no duration drawn yet, and all outages until just after the horizon.

    Args:
        topology: who can send to whom.
        cluster: what takes how long, and what goes wrong.
        message_bytes: of every message.
        seed: of the tapes.
        horizon_s: end of the run.
        fields: names and types that the loop adds to ``WORKER``; they start at 0.
        service: what gradients ask of the topology's units.
        ops: of the trace, after ``STREAM_OPS`` in the order of their codes.
    """
    n, links, faults = topology.n, cluster.links, cluster.faults
    outages, down_ns, up_ns = faults.outages(seed, n, float(np.nextafter(horizon_s + 1e-9, np.inf)))
    start, target = neighbours(topology)
    workers = np.zeros(n, np.dtype(WORKER + fields))
    workers["gradient"], workers["up"], workers["unit"] = -1, True, -1
    units = np.zeros(0, UNIT)
    if service is not None:
        units = _units(topology, service, len(STREAM_OPS) + ops.index(REQUEST))
        workers["unit"] = topology.unit_of
        workers["first_part"], workers["second_part"] = service.before, service.after
    workers["outage"], workers["last_outage"] = outages[:-1], outages[1:]
    workers["first_arc"], workers["last_arc"] = start[:-1], start[1:]
    source = np.repeat(np.arange(n), np.diff(start))
    key, back = source * n + target, target.astype(np.int64) * n + source
    reverse = np.minimum(np.searchsorted(key, back), len(key) - 1)
    arcs = np.zeros(len(target), ARC)
    arcs["target"], arcs["reverse"] = target, np.where(key[reverse] == back, reverse, -1)
    arcs["latency_ns"], ns_per_byte = links.arc_arrays(source, target, seed)
    arcs["transmission_ns"] = ns_per_byte * message_bytes
    arcs["out"], into = links.ports(source, target)
    queues = int(max(arcs["out"].max(), into.max())) + 1
    arcs["into"] = np.where((into >= 0) & (links.duplex == "full"), into + queues, into)
    wanted = int(min(_wanted(cluster, cluster.speed_of(n, seed), horizon_s).max(), max(MOST_DRAWN // n, 16)))
    return Cast(
        workers, arcs, np.empty((n, 1 << (wanted - 1).bit_length()), np.int64),
        np.stack([down_ns, up_ns]), np.stack(faults.partition_arrays(n)),
        np.zeros(2 * queues, np.int64),
        Chances(int(seed), links.jitter_code, float(links.jitter_sigma), *faults.loss_numbers),
        ON_RETURN.index(faults.on_return),
        units,
    )  # fmt: skip


def _units(topology: Topology | DirectedTopology, service: Service, request: int) -> np.ndarray:
    """The topology's units, idle; ``request``: code of the op REQUEST."""
    assert service.task is not None
    units = np.zeros(len(topology.units), UNIT)
    units["request"] = request
    for k, unit in enumerate(topology.units):
        turn = turn_of(service.task, unit)
        for name, seconds in (
            ("latency_ns", turn.latency_s),
            ("request_ns", turn.request_s),
            ("reply_ns", turn.reply_s),
            ("serve_ns", turn.serve_s),
        ):
            units[name][k] = to_ns("topology.units", seconds)
    return units


def unit_ops(service: Service | None) -> tuple[Op, ...]:
    """The ops of a trace in which gradients ask units."""
    return () if service is None else (REQUEST, SERVE)


def durations(
    cluster: Cluster, n: int, seed: int, horizon_s: float, extra: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The gradients that fill the horizon without a break, and ``extra`` (n,) more of each worker.

    Those of the horizon are not always enough: a gradient that is lost in a crash has taken a duration too. Who runs out
    computes for ever; then the run is made again with :func:`more` of them, and the same ones before.

    Returns:
        ``(start, ns)``, as :meth:`Cluster.durations_ns`.
    """
    start, ns = cluster.durations_ns(n, seed, horizon_s)
    who = np.flatnonzero(extra)
    if not who.size:
        return start, ns
    check_draws("stop", horizon_s, float(len(ns) + extra.sum()))
    seconds = cluster.compute.draw(seed, who, np.diff(start)[who], extra[who], n)
    further = np.rint(seconds / np.repeat(cluster.speed_of(n, seed)[who], extra[who]) * 1e9)
    further = np.clip(further, 1, LONGEST_NS).astype(np.int64)
    ns = np.insert(ns, np.repeat(start[1:][who], extra[who]), further)
    return start + np.concatenate([[0], np.cumsum(extra)]), ns


def more(drawn: np.ndarray, last_drawn: np.ndarray, extra: np.ndarray) -> np.ndarray | None:
    """The ``extra`` of the next try after a run that took the durations before ``drawn``; None if there were enough."""
    first = np.concatenate([[0], last_drawn[:-1]])
    short = drawn > last_drawn
    return np.where(short, extra + np.maximum(16, last_drawn - first), extra) if short.any() else None


def horizon_of(horizon_s: float) -> int:
    """A horizon in whole nanoseconds, no later than the horizon itself."""
    horizon_ns = to_ns("stop", horizon_s)
    return horizon_ns - (horizon_ns / 1e9 > horizon_s)


# -- a run --------------------------------------------------------------------------------------------------------------


def _wanted(cluster: Cluster, speeds: np.ndarray, left_s: float) -> np.ndarray:
    """(n,) durations that mostly fill the time that is left without a break."""
    mean = max(left_s, 0.0) * speeds / cluster.compute.mean_s
    return np.ceil(mean + 4 * np.sqrt(mean) + 4)


@njit(cache=True)
def _fill(workers, durations_ns, who, counts, seconds, speeds):
    """Further durations of some workers, those of one after those of the other."""
    read = 0
    for r in range(who.size):
        mine, ring = workers[who[r]], durations_ns[who[r]]
        for _ in range(counts[r]):
            ring[mine.drawn & (ring.size - 1)] = duration_ns(seconds[read], speeds[who[r]])
            mine.drawn += 1
            read += 1


class Machine:
    """A compiled loop and all it works on.

    Args:
        loop: ``loop(horizon_ns, tally, log, heap, *tables, *cast, *rest)`` goes on from where it was and returns what it lacks,
            ``LOG`` and what follows it, or ``END`` and what follows that.
        cluster: whose workers compute.
        cast: the loop's.
        rest: its further arguments.
        horizon_s: end of the run.
        events: in a log.
        tables: of the loop's own, which may have to grow.

    Attributes:
        tally: int64 (``COUNTERS``,).
        horizon_ns: in whole nanoseconds.
    """

    def __init__(
        self, loop: Callable[..., int], cluster: Cluster, cast: Cast, rest: tuple, horizon_s: float, events: int,
        tables: tuple[np.ndarray, ...] = (),
    ) -> None:  # fmt: skip
        self._loop, self._cluster, self._cast, self._rest = loop, cluster, cast, rest
        self.tally, self.horizon_ns = np.zeros(COUNTERS, np.int64), horizon_of(horizon_s)
        heap = make_heap(self.tally, cast.workers, cast.outages_ns, cast.apart)
        self._tables = [np.empty(events + ROOM, EVENT), heap, *tables]
        self._speeds = cluster.speed_of(len(cast.workers), cast.chances.seed)

    def run(self) -> int:
        """Until the log is full or there is nothing more to do: ``LOG``, ``END``, ``CIRCLE`` or ``IDLE``."""
        while True:
            why = self._loop(self.horizon_ns, self.tally, *self._tables, *self._cast, *self._rest)
            if why == DRAWS:
                self._draw()
            elif why > LOG:
                full = self._tables[why]
                self._tables[why] = doubled(full, len(full))
            else:
                return why

    def logged(self) -> np.ndarray:
        """What happened since it was last asked; good until the loop runs again."""
        events = int(self.tally[EVENTS])
        self.tally[EVENTS] = 0
        return self._tables[LOG][:events]

    def _draw(self) -> None:
        """Durations for whoever has few left: draws by number, so they depend on nothing else."""
        cast, workers = self._cast, self._cast.workers
        left_s = (self.horizon_ns - int(self.tally[NOW])) / 1e9
        most = np.minimum(_wanted(self._cluster, self._speeds, left_s), cast.durations_ns.shape[1])
        left = workers["drawn"] - workers["taken"]
        who = np.flatnonzero(2 * left < most)
        counts = most[who].astype(np.int64) - left[who]
        seconds = self._cluster.compute.draw(
            cast.chances.seed, who, workers["drawn"][who], counts, len(workers)
        )
        _fill(workers, cast.durations_ns, who, counts, seconds, self._speeds)


@dataclass(frozen=True)
class Pieces:
    """A :class:`~decentral.protocol.base.Source`: what a loop does, from the beginning, as often as asked.

    Outages are all drawn first, 16 bytes each; what else is in memory does not grow with the events, unless messages pile up.

    Args:
        logs: ``logs(horizon_s, events)`` runs the loop up to a horizon; yields its logs, of about so many events each, and
            returns what there is to warn of, or None.
        ops: of the trace, after ``STREAM_OPS`` in the order of their codes.
        n: workers.
        seed: of the replica.
        until_s: the horizon that the loop runs to.
        horizon_s: end of the trace, which may be before that.
        events: until then; None: all.
        warned: what was warned of, so that nobody hears it twice.
    """

    logs: Callable[[float, int], Generator[np.ndarray, None, str | None]]
    ops: tuple[Op, ...]
    n: int
    seed: int
    until_s: float = 0.0
    horizon_s: float = 0.0
    events: int | None = None
    warned: set[str] = field(default_factory=set)

    def timeline(self, network: Network, stop: Stop) -> Trace:
        """All of it up to a stop, at once."""

        def whole(horizon_s: float) -> Trace:
            draws = horizon_s * network.gradients_per_s * network.topology.n
            check_draws("stop", stop, draws, "Or do not keep the events: record.trace = false.")
            parts = list(self._to(horizon_s).pieces(MOST_LOGGED))
            names = "time_s", "op", "operands", "duration_s"
            columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
            return dataclasses.replace(parts[0], **columns)

        return until(stop, network, whole)

    def stopped(self, network: Network, stop: Stop) -> Pieces:
        """The source of :meth:`timeline`; where gradients are counted, the loop runs now to find the last."""
        return until(stop, network, self._to)

    def _to(self, horizon_s: float) -> Pieces:
        return dataclasses.replace(self, until_s=horizon_s, horizon_s=horizon_s)

    def up_to(self, gradients: int) -> tuple[int, Pieces]:
        """As :meth:`Trace.up_to`; the loop runs to the horizon all the same, as it does for a trace."""
        taken, events, found = 0, 0, self
        for piece in self.pieces(MOST_LOGGED):
            if taken < gradients:
                number, first = piece.up_to(gradients - taken)
                taken, events = taken + number, events + len(first)
                if taken >= gradients:
                    found = dataclasses.replace(self, horizon_s=first.horizon_s, events=events)
        return taken, found

    def pieces(self, events: int) -> Iterator[Trace]:
        """From the beginning: at least one piece, of about so many events each."""
        left, ops = self.events, STREAM_OPS + self.ops
        arity, replica = max(len(op.operands) for op in ops), Replica(int(self.seed), self.horizon_s)
        for log in self._logs(events):
            here = log[:left]
            yield Trace(
                here["time_ns"] / 1e9,
                here["op"].copy(),
                here["operands"][:, :arity].copy(),
                ops,
                self.n,
                (replica,),
                duration_s=here["duration_ns"] / 1e9,
            )
            if left is not None:
                left -= len(here)
                if not left:
                    return

    def _logs(self, events: int) -> Iterator[np.ndarray]:
        warning = yield from self.logs(self.until_s, events)
        if warning is not None and warning not in self.warned:
            self.warned.add(warning)
            warnings.warn(warning, stacklevel=7)
