"""A parameter server: workers take its parameters, compute, and send gradients back, without waiting for each other."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from decentral.engine.trace import (
    ABANDON,
    EVALUATE,
    NO_GROUPS,
    PULL,
    PUSH,
    STEP,
    SUBMIT,
    Groups,
    Replica,
    Trace,
)
from decentral.errors import InvalidInput, RunFailed, check_integer
from decentral.protocol.base import Demand, Network, Stop, until
from decentral.protocol.queues import durations, more
from decentral.timing import Cluster, jitter_factor, lost
from decentral.timing.compute import LONGEST_NS, to_ns
from decentral.topology import DirectedTopology, Topology

OPS = (PULL, EVALUATE, PUSH, ABANDON)
_PULL, _EVALUATE, _PUSH, _ABANDON, _STEP = range(5)

# What happens next to a worker; the order is that of what happens at the same nanosecond: deliver < compute end < start.
_APPLIED, _GRADIENT_COMES, _PARAMETERS_COME, _GRADIENT_AT_NIC = range(4)
_CRASH, _COMPUTED, _ASK, _PARAMETERS_LEAVE = range(4, 8)


@njit(cache=True)
def _up_again(down, up, outage, last, now):
    """``(outage, time)``: the number of the first outage that ends after ``now``, and when the worker is up."""
    while outage < last and up[outage] <= now:
        outage += 1
    if outage < last and down[outage] <= now:
        return outage, up[outage]
    return outage, now


@njit(cache=True)
def _reachable(from_ns, until_ns, first, worker, now):
    """When no partition keeps the worker from the server, which is on worker 0's side: ``now`` or later."""
    moved = True
    while moved:
        moved = False
        for p in range(first.size):
            if worker >= first[p] and from_ns[p] <= now < until_ns[p]:
                now, moved = until_ns[p], True
    return now


@njit(cache=True)
def _doubled(rows):
    wider = np.empty((rows.shape[0], 2 * rows.shape[1]), np.int64)
    wider[:, : rows.shape[1]] = rows
    return wider


@njit(cache=True)
def _serve(
    batch, max_delay, optimizer_ns, horizon_ns,
    start, ns, outage_start, down, up, from_ns, until_ns, first,
    pull_latency, pull_wire, pull_nic, push_latency, push_wire, push_nic, full,
    jitter, sigma, seed, loss,
):  # fmt: skip
    """The event loop: each worker has one thing that happens to it next. ``batch`` and ``max_delay`` 0: none.

    Returns ``(position, events, entries, next_ns, since_ns)``: the draws taken, a worker that has none left computes for
    ever; (5, events) time, op, worker, slot, duration; (entries,) worker of the steps' gradients, ``batch`` after
    ``batch``; when each worker's next thing happens, and since when it waits for that.
    """
    n, one = start.size - 1, np.int64(1)
    events, written = np.empty((5, 1024), np.int64), 0
    entries, filled, waiting = np.empty((1, 1024), np.int64), 0, 0
    position, outage = start[:-1].copy(), outage_start[:-1].copy()
    # Of each worker: the slot of its gradient, the version it is taken at, how long it takes, when its message left, ...
    slot, seen, took, left = np.zeros((4, n), np.int64)
    # ... how long the NIC needs for it, whether it is lost, and how many there have been on both ways.
    wire, next_ns, since_ns = np.zeros((3, n), np.int64)
    gone, bad_pull, bad_push = np.zeros((3, n), np.bool_)
    pulls, pushes = np.zeros((2, n), np.int64)
    free = np.zeros(2, np.int64)  # when the server's NIC has sent, and has received, what it has to
    version, slots, order, busy_ns = 0, 0, 0, np.int64(0)
    queue = [(one, one, one, one)]  # (time, what, order, worker): the type
    queue.pop()
    for i in range(n):
        outage[i], next_ns[i] = _up_again(down, up, outage[i], outage_start[i + 1], 0)
        heapq.heappush(queue, (next_ns[i], one * _ASK, one * order, one * i))
        order += 1
    while len(queue) > 0 and queue[0][0] <= horizon_ns:
        now, what, _, i = heapq.heappop(queue)
        emit, duration = -1, 0
        then, next_what = now, _ASK
        if what == _ASK:
            then = _reachable(from_ns, until_ns, first, i, now)
            if then == now:
                wire[i] = np.int64(np.rint(pull_wire[i] * jitter_factor(jitter, sigma, seed, n, i, pulls[i])))
                if pull_nic[i]:
                    then = max(now, free[0])
                    free[0] = then + wire[i]
                next_what = _PARAMETERS_LEAVE
        elif what == _PARAMETERS_LEAVE:
            gone[i], bad_pull[i] = lost(loss[0], loss[1], loss[2], loss[3], seed, n, i, pulls[i], bad_pull[i])
            pulls[i] += 1
            emit, slot[i], seen[i] = _PULL, slots, version
            slots += 1
            then, next_what = now + wire[i] + pull_latency[i], _PARAMETERS_COME
        elif what == _PARAMETERS_COME:
            outage[i], then = _up_again(down, up, outage[i], outage_start[i + 1], now)
            if gone[i] or then > now:
                emit = _ABANDON
            else:
                took[i] = ns[position[i]] if position[i] < start[i + 1] else LONGEST_NS
                position[i] += 1
                then, next_what = now + took[i], _COMPUTED
                if outage[i] < outage_start[i + 1] and down[outage[i]] < then:
                    then, next_what = down[outage[i]], _CRASH
        elif what == _CRASH:
            emit, then = _ABANDON, up[outage[i]]
        elif what == _COMPUTED:
            emit, duration = _EVALUATE, took[i]
            left[i] = now
            then = _reachable(from_ns, until_ns, first, i, now) + push_latency[i]
            next_what = _GRADIENT_AT_NIC
        elif what == _GRADIENT_AT_NIC:
            wire[i] = np.int64(np.rint(push_wire[i] * jitter_factor(jitter, sigma, seed, i, n, pushes[i])))
            gone[i], bad_push[i] = lost(
                loss[0], loss[1], loss[2], loss[3], seed, i, n, pushes[i], bad_push[i]
            )
            pushes[i] += 1
            then, next_what = now + wire[i], _GRADIENT_COMES
            if push_nic[i]:
                then = max(now, free[full]) + wire[i]
                free[full] = then
        elif what == _GRADIENT_COMES and optimizer_ns > 0 and now < busy_ns:
            then, next_what = busy_ns, _GRADIENT_COMES
        elif (
            what == _GRADIENT_COMES
            and optimizer_ns > 0
            and not gone[i]
            and (max_delay == 0 or version - seen[i] < max_delay)
            and (batch == 0 or (version == seen[i] and waiting + 1 == batch))
        ):  # it makes an update, which takes its time
            busy_ns = now + optimizer_ns
            then, next_what = busy_ns, _APPLIED
        else:
            duration, delay = now - left[i], version - seen[i]
            if gone[i] or (max_delay > 0 and delay >= max_delay) or (batch > 0 and delay > 0):
                emit = _ABANDON
            elif batch == 0:
                emit = _PUSH
                version += 1
            else:
                if filled + waiting == entries.shape[1]:
                    entries = _doubled(entries)
                entries[0, filled + waiting] = i
                waiting += 1
                if waiting == batch:
                    emit, filled, waiting = _STEP, filled + batch, 0
                    version += 1
        if emit >= 0 and (batch == 0 or emit in (_EVALUATE, _STEP)):
            if written == events.shape[1]:
                events = _doubled(events)
            events[0, written], events[1, written], events[2, written] = now, emit, i
            events[3, written], events[4, written] = slot[i], duration
            written += 1
        next_ns[i], since_ns[i] = min(then, LONGEST_NS), now
        heapq.heappush(queue, (next_ns[i], one * next_what, one * order, one * i))
        order += 1
    return position, events[:, :written], entries[0, :filled], next_ns, since_ns


@dataclass(frozen=True)
class Server:
    """A parameter server: pull the parameters, compute a gradient, push it, and again; no worker waits for another.

    * ``Server()``: asynchronous SGD, every gradient is applied when it comes.
    * ``Server(max_delay=R)``: Ringmaster, a gradient with R or more updates since its parameters left is thrown away.
    * ``Server(batch=B)``: Rennala, a ``step`` with the mean of the first B gradients that are taken at the current
      parameters; those of older ones are thrown away. The k of n workers with backup workers are
      :class:`~decentral.protocol.all_reduce.AllReduce`.

    The server is a node of its own, at worker 0's place: it has the links and the NIC that worker 0 has to the others (and
    to itself). Whoever's gradient has come is sent the parameters, after all that comes at the same instant. They queue for
    the server's NIC, first come first served, and are read when they leave; so do gradients, when they reach it. Links have
    no queue of their own. A worker computes from the last byte of the parameters on, a gradient counts from its last byte.
    A learned optimizer's step takes the server the time of a worker of mean speed; gradients that come meanwhile wait.
    The gradient is that of the parameters pulled, and meets those of its arrival (``stale``), except in Rennala.

    *Faults.* A worker that crashes loses its gradient under way, and the next one takes the next draw of its durations;
    parameters that come while it is down are dropped; it pulls when it is back (nothing to restore). A gradient it has
    sent still counts. A lost message, once it should have
    come, makes the worker pull again. Behind a partition, on the side without worker 0, it holds its gradient, or waits
    for the parameters, until the partition ends.

    *Messages.* The parameters that a worker pulls and the gradient that it sends are one each, whether or not they come,
    or count. With a batch both are counted when the gradient is sent (``submit``), so not where a crash or a loss comes
    before that.

    Args:
        batch: gradients per step (Rennala); None: every gradient is an update.
        max_delay: gradients with this delay or more are refused (Ringmaster); None: none is.

    References:
        Agarwal, Duchi: Distributed delayed stochastic optimization (2011), recalled; Tyurin, Richtárik: Optimal time
        complexities of parallel stochastic optimization methods under a fixed computation model (2023), recalled;
        Maranjyan, Tyurin, Richtárik: Ringmaster ASGD (2025), recalled.
    """

    batch: int | None = None
    max_delay: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "max_delay"):
            if getattr(self, name) is not None:
                check_integer(f"protocol.{name}", getattr(self, name), 1)
        if self.batch is not None and self.max_delay is not None:
            raise InvalidInput(
                "protocol.max_delay",
                self.max_delay,
                "None with batch",
                "A batch takes no delayed gradients at all.",
            )

    def network(
        self, topology: Topology | DirectedTopology, demand: Demand, cluster: Cluster | None = None
    ) -> Network:
        """The clocks: gradients at the rate of workers that never wait for messages, and of which none is thrown away.

        Only the number of workers of the topology counts.

        Raises:
            InvalidInput: workers of the algorithm hold parameters of their own.
        """
        demand.choose("server", ("gradient",))
        cluster = Cluster() if cluster is None else cluster
        rate = cluster.gradient_rate(topology.n)
        return Network(topology, rate, 1 / rate, demand, cluster)

    def events_per_gradient(self, network: Network) -> float:
        """Pull, evaluate and push; or a submit and a share of a step."""
        return 3.0 if self.batch is None else 1 + 1 / self.batch

    def timeline(self, network: Network, stop: Stop, seed: int) -> Trace:
        """All events up to the stop.

        Raises:
            RunFailed: no worker ever computes again.
        """
        return until(stop, network, lambda horizon_s: self._build(network, seed, horizon_s))

    def _build(self, network: Network, seed: int, horizon_s: float) -> Trace:
        cluster, n = network.cluster or Cluster(), network.topology.n
        links, faults, horizon_ns = cluster.links, cluster.faults, to_ns("stop", horizon_s)
        workers, server = np.arange(n), np.zeros(n, np.int64)
        ways = []
        for source, target, side in ((server, workers, 0), (workers, server, 1)):
            latency_ns, ns_per_byte = links.arc_arrays(source, target, seed)
            port = np.asarray(links.ports(source, target)[side])
            ways += [latency_ns, network.demand.model_bytes * ns_per_byte, port >= 0]
        extra = np.zeros(n, np.int64)
        while True:
            arguments: list[Any] = [
                *(self.batch or 0, self.max_delay or 0, round(network.demand.optimizer_s * 1e9), horizon_ns),
                *(tape := durations(cluster, n, seed, horizon_s, extra)),
                *(*faults.outages(seed, n, horizon_s), *faults.partition_arrays(n)),
                *(*ways, int(links.duplex == "full")),
                *(links.jitter_code, float(links.jitter_sigma), seed, faults.loss_numbers),
            ]
            position, events, entries, next_ns, since_ns = _serve(*arguments)
            again = more(position, tape[0][1:], extra)
            if again is None:
                break
            extra = again
        if next_ns.min() >= LONGEST_NS:
            last = int(np.argmax(since_ns))
            raise RunFailed(
                f"server: no worker ever computes again: each is down for good, or behind a partition that never ends; "
                f"the last one, worker {last}, since {since_ns[last] / 1e9:g} s."
            )
        time_ns, op, worker, slot, duration_ns = events
        ops, groups = OPS, NO_GROUPS
        operands = np.full((len(op), 3), -1, np.int32)
        operands[:, 0], operands[:, 1] = worker, slot
        if self.batch is not None:
            ops, steps = (SUBMIT, STEP), op == _STEP
            op, operands[:, 1] = steps, -1
            operands[steps, 0], operands[steps, 1], operands[steps, 2] = 0, 0, np.arange(steps.sum())
            groups = Groups(
                np.arange(0, len(entries) + 1, self.batch),
                np.full(len(entries), -1, np.int32),
                entries.astype(np.int32),
                np.full(len(entries), 1 / self.batch),
                np.zeros(len(entries)),
            )
        else:
            with_server = (op == _PULL) | (op == _PUSH)
            operands[with_server, 1], operands[with_server, 2] = 0, slot[with_server]
        time_s = time_ns / 1e9
        return Trace(
            time_s, op.astype(np.uint8), operands, ops, n,
            (Replica(int(seed), max(horizon_s, float(time_s[-1]) if time_s.size else 0.0)),),
            groups, duration_ns / 1e9,
        )  # fmt: skip
