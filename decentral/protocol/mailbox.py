"""Mailbox: workers compute without ever waiting and push messages, which are applied whenever they arrive."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numba import njit

from decentral.engine.trace import DROP, RECEIVE, SEND, Op, Trace
from decentral.errors import InvalidInput, check_number, suggest
from decentral.protocol import queues
from decentral.protocol.base import Demand, Network, Stop
from decentral.protocol.queues import (
    ASKED,
    COMING,
    COMPUTED,
    DELIVER,
    DOWN,
    DRAWS,
    END,
    ENTER,
    EVENTS,
    HEAP,
    LOG,
    LONGEST_NS,
    NOW,
    REQUESTED,
    SERVED,
    UP,
    accumulated,
    draw_message,
    emit,
    enlist,
    first_listed,
    pop,
    push,
    start_gradient,
    through,
)
from decentral.protocol.service import gradient_rate
from decentral.timing import Cluster, Purpose
from decentral.timing.faults import separated
from decentral.timing.tapes import _uniform, philox
from decentral.topology import DirectedTopology, Topology

PEERS = ("random", "cyclic")
_SEND, _RECEIVE, _DROP = range(len(queues.STREAM_OPS), len(queues.STREAM_OPS) + 3)
_OPS = (SEND, RECEIVE, DROP)
_MESSAGE_PEER = int(Purpose.MESSAGE_PEER)


@dataclass(frozen=True)
class Mailbox:
    """After a gradient a worker sends its message to one neighbour and computes on; one-sided gossip, push-sum, AD-PSGD.

    Messages are *stale*: each is taken when it is sent, before it waits at the sender's network card, and meets the
    receiver's state at its arrival, whatever the receiver has done in between. Sums over the workers are not conserved;
    what an algorithm moves with its messages (push-sum's numerators and weights) is, together with what is on the way, as
    long as nothing is lost. With ``reply`` the receiver answers at once with its own message as it was before receiving:
    the two ends average what they held at different times (AD-PSGD's pairs without their locks).

    Network cards (NICs) carry one message at a time, first come first served. A message waits for the sender's card,
    passes it in bytes x ns_per_byte x jitter, needs the latency, and from its first byte on waits for and passes the
    receiver's card: alone it takes latency + transmission once. With half-duplex cards, and on cards that several workers
    share, all that leaves or enters waits in one line each. A worker that sends faster than its card can has a line that
    grows for ever: a warning says so.

    At one instant what arrives comes first, then gradients end, then messages are sent, then gradients start.

    Faults. A crash loses the gradient under way, but not the messages already sent; the worker begins another after the
    return, which takes the next draw of its durations. A lost message, and one that finds its receiver down, is dropped
    when it arrives. A message that would have to cross a partition is not sent.

    Optical units. Where gradients ask one, a worker's first part of a gradient ends with a request that crosses the unit's link,
    waits for the requests before it and takes its frames; with the reply, that crosses the link too, the second part
    begins. Of a worker that crashes meanwhile the request is served all the same, and the reply is lost.

    Args:
        messages_per_gradient: sent by each worker, as whole numbers accumulate (0.5: one after every second gradient); above 0.
        peer: "random": an out-neighbour drawn anew for each message; "cyclic": one after the other, in the order of numbers
            above its own and around.
        reply: whether a message is answered; None for what the algorithm asks for.

    References:
        Ormándi, Hegedűs, Jelasity: Gossip learning with linear models on fully distributed data (2013); Lian, Zhang, Zhang,
        Liu: Asynchronous decentralized parallel stochastic gradient descent (ICML 2018); both recalled.
    """

    serves_units: ClassVar[bool] = True
    messages_per_gradient: float = 1.0
    peer: str = "random"
    reply: bool | None = None

    def __post_init__(self) -> None:
        name = "protocol.messages_per_gradient"
        check_number(name, self.messages_per_gradient, 0, math.inf, above=True)
        if self.peer not in PEERS:
            raise InvalidInput("protocol.peer", self.peer, "a known kind", suggest(str(self.peer), PEERS))
        if self.reply is not None and not isinstance(self.reply, bool):
            raise InvalidInput("protocol.reply", self.reply, "true, false or none")

    def _replies(self, demand: Demand) -> bool:
        return demand.reply if self.reply is None else self.reply

    def network(
        self, topology: Topology | DirectedTopology, demand: Demand, cluster: Cluster | None = None
    ) -> Network:
        """The topology, where it is undirected with rates: a message is half an exchange, a message with its reply a whole one.

        Raises:
            InvalidInput: the algorithm cannot meet by pushing, or there is no way back for replies.
        """
        demand.choose("mailbox", ("push",))
        cluster = cluster or Cluster()
        rate = gradient_rate(topology, demand.service, cluster)
        clocked: Any = topology
        if isinstance(topology, Topology):
            sends = 1 / topology.degrees
            used = topology.edge_rates > 0
            rates = np.where(used, sends[topology.edges[:, 0]] + sends[topology.edges[:, 1]], 0.0)
            exchanges = self.messages_per_gradient / 2 * (1 + self._replies(demand))
            clocked = topology.with_edge_rates(rates).with_total_rate(exchanges * topology.n)
        elif self._replies(demand):
            arcs = {tuple(arc) for arc in topology.arcs.tolist()}
            for i, j in topology.arcs.tolist():
                if (j, i) not in arcs:
                    advice = "Take an undirected topology, or reply = false."
                    raise InvalidInput("topology", f"{i} sends to {j}", "a way back for replies", advice)
        return Network(clocked, rate, 1 / rate, demand, cluster)

    def events_per_gradient(self, network: Network) -> float:
        """A start and a commit; a send and a receive for each message; where a unit is asked request and service."""
        asks = network.demand.service is not None
        return 2 + 2 * asks + 2 * self.messages_per_gradient * (1 + self._replies(network.demand))

    def timeline(self, network: Network, stop: Stop, seed: int) -> Trace:
        """The events of one run up to the stop."""
        return self._source(network, seed).timeline(network, stop)

    def stream(self, network: Network, stop: Stop, seed: int) -> queues.Pieces:
        """The same events piece by piece. Which gradient is the last to count is found here, by running the loop once."""
        return self._source(network, seed).stopped(network, stop)

    def _source(self, network: Network, seed: int) -> queues.Pieces:
        ops = _OPS + queues.unit_ops(network.demand.service)
        return queues.Pieces(partial(self._logs, network, seed, ops), ops, network.topology.n, seed)

    def _logs(
        self, network: Network, seed: int, ops: tuple[Op, ...], horizon_s: float, events: int
    ) -> Generator[np.ndarray, None, str | None]:
        """See :class:`queues.Pieces`."""
        cluster, n, demand = network.cluster or Cluster(), network.topology.n, network.demand
        cast = queues.make_cast(
            network.topology, cluster, demand.message_bytes, seed, horizon_s, SENDER, demand.service, ops
        )
        # The first out-neighbour above itself, so that not all workers begin with worker 0.
        above = cast.arcs["target"] > np.repeat(
            np.arange(n), cast.workers["last_arc"] - cast.workers["first_arc"]
        )
        start = np.append(cast.workers["first_arc"], len(above))
        below = np.diff(np.concatenate([[0], np.cumsum(~above)])[start])
        cast.workers["place"] = below % np.diff(start)
        rules = Rules(
            float(self.messages_per_gradient),
            self.peer == "random",
            self._replies(demand),
            bool(cast.arcs["transmission_ns"].any()),
        )
        # One place more than workers: a full ring is not an empty one.
        senders, starters = np.empty((2, n + 1), np.int64)
        rest, tables = (senders, starters, rules), (np.empty(1024, MESSAGE),)
        machine = queues.Machine(_loop, cluster, cast, rest, horizon_s, events, tables)
        starters[:n], machine.tally[_STARTERS], machine.tally[_FREE] = np.arange(n), n, -1
        why = LOG
        while why == LOG:
            why = machine.run()
            yield machine.logged()
        return self._overload(network, seed, cast)

    def _overload(self, network: Network, seed: int, cast: queues.Cast) -> str | None:
        """What to say where more is offered to a card than it can carry."""
        cluster, n = network.cluster or Cluster(), network.topology.n
        arcs, degrees = cast.arcs, cast.workers["last_arc"] - cast.workers["first_arc"]
        slower = network.gradients_per_s / cluster.gradient_rate(n)  # 1 where no unit is asked
        rates = slower * cluster.speed_of(n, seed) / cluster.compute.mean_s
        rates = rates * self.messages_per_gradient / degrees
        messages_per_s = np.repeat(rates, degrees)
        if self._replies(network.demand):
            messages_per_s = messages_per_s + messages_per_s[arcs["reverse"]]
        load = np.zeros(len(cast.free_ns))
        for queue in (arcs["out"], arcs["into"]):
            np.add.at(load, queue[queue >= 0], (messages_per_s * arcs["transmission_ns"] / 1e9)[queue >= 0])
        if not (load.size and load.max() > 1):
            return None
        worst = int(load.argmax())
        worker = np.repeat(np.arange(n), degrees)[arcs["out"] == worst]
        whom = np.append(worker, arcs["target"][arcs["into"] == worst])[0]
        return (
            f"mailbox: the network card of worker {whom} is offered {load[worst]:.3g} s of transmission per second"
            f" ({np.count_nonzero(load > 1)} of {np.count_nonzero(load)} queues are offered more than 1): messages"
            " pile up and arrive later and later. Send smaller or fewer messages."
        )


# -- the event loop -----------------------------------------------------------------------------------------------------


class Rules(NamedTuple):
    """What the loop needs to know of a :class:`Mailbox`; ``queued``: messages take a network card's time."""

    mean: float
    random: bool
    reply: bool
    queued: bool


SENDER = [
    ("done", "i8"),  # gradients
    ("due", "i8"),  # messages to send at this instant
    ("chosen", "i8"),  # peers so far, those behind a partition too
    ("place", "i8"),  # next peer
]
"""Fields of a worker that sends."""
MESSAGE = np.dtype(
    [
        ("arc", "i8"),  # of a row that is free the next such row, or -1
        ("sent_ns", "i8"),
        ("transmission_ns", "i8"),
        ("lost", "?"),
        ("answer", "?"),  # it is a reply
    ]
)
"""What is known of a message on its way."""
_MESSAGES_FULL = HEAP + 1
"""Its place among the loop's tables."""
# Counters beside those of every loop: also rows of messages that were ever used, and the first of them that is free, or -1.
_MESSAGES, _SENDERS, _SENT, _STARTERS, _STARTED, _ROWS, _FREE = range(4, 11)


@njit(cache=True)
def _choose(workers, chances, rules, worker):
    """The arc of a worker's next message."""
    mine = workers[worker]
    degree = mine.last_arc - mine.first_arc
    count = mine.chosen
    mine.chosen += 1
    if rules.random:
        block = philox(
            np.uint64(chances.seed), np.uint64(_MESSAGE_PEER), np.uint64(count // 4),
            np.uint64(worker), np.uint64(worker), np.uint64(0),
        )  # fmt: skip
        return mine.first_arc + np.int64(_uniform(block[count % 4]) * degree)
    place = mine.place
    mine.place = place + 1 if place + 1 < degree else 0
    return mine.first_arc + place


@njit(cache=True)
def _post(log, heap, tally, arcs, apart, free_ns, chances, rules, messages, source, arc, answer, now):
    """A worker sends a message, unless a partition is in between."""
    wire = arcs[arc]
    if apart.shape[1] and separated(apart[0], apart[1], apart[2], source, wire.target, now):
        return
    slot, row = tally[_MESSAGES], tally[_FREE]
    tally[_MESSAGES] += 1
    if row >= 0:
        tally[_FREE] = messages[row].arc
    else:
        row = tally[_ROWS]
        tally[_ROWS] += 1
    message = messages[row]
    message.arc, message.sent_ns, message.answer = arc, now, answer
    transmission_ns, message.lost = draw_message(arcs, chances, source, arc)
    message.transmission_ns = transmission_ns
    emit(log, tally, now, _SEND, source, slot)
    leaves = through(free_ns, wire.out, now, transmission_ns) if rules.queued else now
    comes = min(leaves + wire.latency_ns, LONGEST_NS)
    if rules.queued and wire.into >= 0:
        push(heap, tally, comes, ENTER, slot, row)
    else:
        push(heap, tally, comes + transmission_ns, DELIVER, slot, row)


@njit(cache=True)
def _enter(heap, tally, arcs, free_ns, messages, slot, row, now):
    """A message's first byte is at the receiver's card."""
    message = messages[row]
    begins = through(free_ns, arcs[message.arc].into, now, message.transmission_ns)
    push(heap, tally, begins + message.transmission_ns, DELIVER, slot, row)


@njit(cache=True)
def _deliver(log, heap, tally, workers, arcs, apart, free_ns, chances, rules, messages, slot, row, now):
    """A message is there, or should be; it is answered before it changes anything."""
    message = messages[row]
    wire, took, gone, answer = arcs[message.arc], now - message.sent_ns, message.lost, message.answer
    message.arc, tally[_FREE] = tally[_FREE], row
    if gone or not workers[wire.target].up:
        emit(log, tally, now, _DROP, wire.target, slot, -1, -1, took)
        return
    if rules.reply and not answer:
        source, back = wire.target, wire.reverse
        _post(log, heap, tally, arcs, apart, free_ns, chances, rules, messages, source, back, True, now)
    emit(log, tally, now, _RECEIVE, wire.target, slot, -1, -1, took)


@njit(cache=True)
def _loop(
    horizon_ns,
    tally,
    log,
    heap,
    messages,
    workers,
    arcs,
    durations_ns,
    outages_ns,
    apart,
    free_ns,
    chances,
    on_return,
    units,
    senders,
    starters,
    rules,
):
    """All events up to the horizon, or why it cannot go on; see :class:`queues.Machine` and :class:`queues.Cast`."""
    now = tally[NOW]
    while True:
        if tally[EVENTS] + queues.ROOM > log.size:
            why = LOG
            break
        if tally[COMING] + queues.ROOM > len(heap):
            why = HEAP
            break
        if tally[_ROWS] + queues.ROOM > messages.size:
            why = _MESSAGES_FULL
            break
        if tally[COMING] and heap[0, 0] == now:
            now, kind, number, payload = pop(heap, tally)
            if kind == ENTER:
                _enter(heap, tally, arcs, free_ns, messages, number, payload, now)
            elif kind == DELIVER:
                _deliver(
                    log, heap, tally, workers, arcs, apart, free_ns, chances, rules, messages, number, payload, now
                )  # fmt: skip
            elif kind == COMPUTED:
                if queues.commit_gradient(log, tally, workers, number, payload, now):
                    mine = workers[number]
                    mine.done += 1
                    mine.due = accumulated(rules.mean, mine.done)
                    enlist(senders, tally, _SENDERS, number)
            elif kind == REQUESTED:
                queues.queue_up(log, heap, tally, workers, units, payload, number, now)
            elif kind == SERVED:
                queues.answer(log, heap, tally, workers, units, payload, number, now)
            elif kind == ASKED:
                queues.ask(heap, tally, workers, units, number, payload, now)
            elif kind == DOWN:
                queues.go_down(log, heap, tally, workers, outages_ns, number, now)
            elif kind == UP:
                queues.come_back(log, heap, tally, workers, arcs, outages_ns, apart, on_return, number, now)
                enlist(starters, tally, _STARTERS, number)
        elif tally[_SENT] != tally[_SENDERS]:
            worker = senders[tally[_SENT]]
            mine = workers[worker]
            if mine.up and mine.due > 0:
                mine.due -= 1
                arc = _choose(workers, chances, rules, worker)
                _post(
                    log, heap, tally, arcs, apart, free_ns, chances, rules, messages, worker, arc, False, now
                )
            else:
                first_listed(senders, tally, _SENT)
                enlist(starters, tally, _STARTERS, worker)
        elif tally[_STARTED] != tally[_STARTERS]:
            worker = starters[tally[_STARTED]]
            if workers[worker].taken == workers[worker].drawn:
                why = DRAWS
                break
            first_listed(starters, tally, _STARTED)
            if workers[worker].up and workers[worker].gradient < 0:
                start_gradient(log, heap, tally, workers, durations_ns, worker, now)
        elif not tally[COMING] or heap[0, 0] > horizon_ns:
            why = END
            break
        else:
            now = heap[0, 0]
    tally[NOW] = now
    return why
