"""Overlapped all-reduce: one copy of the parameters, and everyone computes while the last gradients are being averaged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from decentral.engine.trace import LOAD, REDUCE, Groups, Replica, Trace
from decentral.errors import InvalidInput, check_integer
from decentral.protocol.base import Demand, Gradients, Network, Stop, until
from decentral.protocol.collectives import Collective, check_collective, check_times
from decentral.protocol.queues import durations, more
from decentral.protocol.rounds import NEVER, Crew
from decentral.timing import Cluster
from decentral.topology import DirectedTopology, Topology


@njit(cache=True)
def _next_crash(begin_ns, outage_start, down, up, outage, crash_ns):
    """When each worker is down next, from ``begin_ns`` on; who is down then begins ``NEVER``. ``outage`` only grows."""
    for i in range(begin_ns.size):
        if begin_ns[i] == NEVER:
            continue
        k, last = outage[i], outage_start[i + 1]
        while k < last and up[k] <= begin_ns[i]:
            k += 1
        outage[i], crash_ns[i] = k, NEVER
        if k < last:
            crash_ns[i] = down[k]
            if down[k] <= begin_ns[i]:
                begin_ns[i] = NEVER


@njit(cache=True)
def _compute(begin_ns, until_ns, group, horizon_ns, start, ns, crash_ns, drawn, post_ns):
    """Everyone computes groups from ``begin_ns`` to the first boundary at ``until_ns`` or later, which is ``post_ns``.

    It is ``NEVER`` for who is not there, crashes before, or passes the horizon. ``drawn`` becomes the number of its next
    draw; beyond the last one a worker computes for ever.
    """
    for i in range(begin_ns.size):
        now, done, post_ns[i] = begin_ns[i], 0, NEVER
        while now < horizon_ns and (done == 0 or done % group > 0 or now < until_ns):
            draw = start[i] + drawn[i]
            took = ns[draw] if draw < start[i + 1] else NEVER
            drawn[i], done, now = drawn[i] + 1, done + 1, min(now + took, NEVER)
            if now > crash_ns[i]:
                now = NEVER
        if done > 0 and done % group == 0 and now >= until_ns:
            post_ns[i] = now


@dataclass(frozen=True)
class Overlapped:
    r"""Accumulate while you communicate: the timing of ACCO, DPU and WP. After a warm-up nobody is idle.

    There is one copy of the parameters. A worker computes groups of micro-batches one after the other. After each group it
    looks whether its last collective has ended. If so it takes the new parameters, posts the sum of the gradients that it
    has taken since the last post, and goes on; if not it goes on with the same parameters. A collective starts when the
    last worker has posted and takes :math:`T`: with :math:`p_i(r)` the time worker i posts for collective r,

    .. math:: e(r) = \max_i p_i(r) + T, \qquad p_i(r + 1) = \text{the first end of a group of } i \text{ at } e(r)
        \text{ or later}

    and at least one group lies between two posts. For the first collective everyone computes one micro-batch (after a
    warm-up a group). Of what happens at the same nanosecond the end of a collective comes first.

    Events: a ``load`` when a collective starts, of the parameters at which everyone computes from its own post on (all see
    the same: nothing changes between two ends of collectives), and a ``reduce`` at its end, of the gradients taken at the
    parameters loaded one collective before. Its table has an entry for each micro-batch, so who computes faster weighs
    more; the durations are :math:`T` and, in the table, the micro-batches'.

    Stopped by a number of gradients, a run with slow collectives takes fewer and larger updates. Compare at equal updates
    and at equal time too.

    *Faults.* Who is down when the others have posted is left out, what it has computed since its last post is lost (it has
    taken its draws), and it is no longer waited for; when it is back it joins at the next load. If all are down, those who
    are back first compute a group at the parameters loaded last. A lost message is sent again (see
    :class:`~decentral.protocol.collectives.Collective`); a collective across a partition waits until that ends.

    Args:
        group: micro-batches between two looks (``n_grad_accumulation``).
        warm_up: so many synchronous rounds first: one group each, the collective, then the next round begins with what came
            out of it. For DPU; ZeRO-Offload recommends 40.
        collective: ``"ring"`` or ``"tree"``, of ``model_bytes``: a reduce-scatter and an all-gather are its two halves.
        collective_s: seconds of it instead of what the links say.
        optimizer_s: seconds of the (sharded) optimizer, which comes between the two halves: :math:`T` is the sum. A learned
            optimizer's are added.

    References:
        Nabli et al.: ACCO: Accumulate while you communicate (NeurIPS 2025; arXiv 2406.02613), read, and its released code;
        Ren et al.: ZeRO-Offload (USENIX ATC 2021), recalled.
    """

    group: int = 1
    warm_up: int = 0
    collective: str = "ring"
    collective_s: float | None = None
    optimizer_s: float = 0.0

    def __post_init__(self) -> None:
        check_integer("protocol.group", self.group, 1)
        check_integer("protocol.warm_up", self.warm_up, 0)
        check_collective("protocol.collective", self.collective)
        check_times(self.collective_s, self.optimizer_s)

    def network(
        self, topology: Topology | DirectedTopology, demand: Demand, cluster: Cluster | None = None
    ) -> Network:
        """The clocks: gradients at the rate of workers that never wait, as they do after the warm-up.

        Only the number of workers of the topology counts.

        Raises:
            InvalidInput: the algorithm does not take gradients one collective late.
        """
        demand.choose("overlapped", ("batches",))
        cluster = Cluster() if cluster is None else cluster
        rate = cluster.gradient_rate(topology.n)
        return Network(topology, rate, 1 / rate, demand, cluster)

    def events_per_gradient(self, network: Network) -> float:
        """A load and a reduce for at least a group of every worker."""
        return 2 / (network.topology.n * self.group)

    def timeline(self, network: Network, stop: Stop, seed: int) -> Trace:
        """All rounds up to the stop.

        Raises:
            InvalidInput: a stop before every worker has given one gradient.
            RunFailed: workers wait for the end of a partition that never ends.
        """
        n = network.topology.n
        if isinstance(stop, Gradients) and stop.gradients < n:
            raise InvalidInput(
                "stop.gradients", stop.gradients, f"at least {n}, the number of workers",
                "Each gives a micro-batch to the first collective.",
            )  # fmt: skip
        return until(stop, network, lambda horizon_s: self._build(network, seed, horizon_s))

    def _build(self, network: Network, seed: int, horizon_s: float) -> Trace:
        extra = np.zeros(network.topology.n, np.int64)
        while True:
            crew = Crew(network, seed, horizon_s)
            start, ns = durations(crew.cluster, crew.n, seed, horizon_s, extra)
            drawn, rounds = self._rounds(crew, network.demand, start, ns)
            again = more(start[:-1] + drawn, start[1:], extra)
            if again is None:
                break
            extra = again
        post, end, length, first, count = rounds
        kept = end <= crew.horizon_ns
        first, count = first[kept].ravel(), count[kept]
        each = count.ravel()
        entry = np.arange(each.sum()) + np.repeat(first - each.cumsum() + each, each)
        return _trace(post, end, length, self.warm_up, count, ns[entry], int(seed), horizon_s)

    def _rounds(self, crew: Crew, demand: Demand, start: np.ndarray, ns: np.ndarray) -> tuple:
        """``(draws taken, (when a collective starts, ends, its length, each worker's first draw in it and number of draws))``.

        The last collective may end after the horizon, and starts before. Times are in nanoseconds.
        """
        n, outages = crew.n, crew.outages
        collective = Collective(
            crew.cluster, self.collective, demand.model_bytes, crew.seed, self.collective_s
        )
        optimizer_ns = round((self.optimizer_s + demand.optimizer_s) * 1e9)
        until_ns, begin = 0, np.zeros(n, np.int64)
        drawn, outage, everyone = np.zeros(n, np.int64), outages[0][:-1].copy(), np.ones(n, bool)
        crash, ready = np.full((2, n), NEVER)
        times, draws = [], []
        while True:
            group = 1 if not times and not self.warm_up else self.group
            _next_crash(begin, *outages, outage, crash)
            before = drawn.copy()
            _compute(begin, until_ns, group, crew.horizon_ns, start, ns, crash, drawn, ready)
            there = begin < NEVER
            post = int(np.minimum(ready, crash)[there].max(initial=0))
            if post > crew.horizon_ns:
                break
            members = there & (ready <= post) & (crash >= post)
            if not members.any():
                # Nobody is there, or everyone crashed: the round begins again.
                back = crew.next_up(max(post, until_ns), everyone)
                if back > crew.horizon_ns:
                    break
                begin = np.full(n, back)
                continue
            length = collective.ns(members) + optimizer_ns
            until_ns = crew.reachable(post, members) + length
            times.append((post, until_ns, length))
            draws.append((start[:-1] + before, np.where(members, drawn - before, 0)))
            if until_ns > crew.horizon_ns:
                break
            synchronous = len(times) <= self.warm_up
            begin = np.full(n, until_ns) if synchronous else np.where(members, ready, post)
        post, end, length = np.array(times, np.int64).reshape(-1, 3).T
        first, count = np.array(draws, np.int64).reshape(-1, 2, n).swapaxes(0, 1)
        return drawn, (post, end, length, first, count)


def rounds_of_counts(counts: ArrayLike, *, seed: int | None = None) -> Trace:
    """A trace of overlapped collectives with imposed numbers of micro-batches: a recorded run, a worked example.

    Collective r carries the gradients that the workers took since the one before it, at the parameters that were there
    after collective r - 2 (for the first two: the initial ones). Times are made up: a collective every second.

    Args:
        counts: (collectives, workers) micro-batches of each worker in each collective, at least 1. The k-th micro-batch of
            a worker is its k-th gradient. The first row is what is taken before the first collective, in ACCO one each.
        seed: keys the draws made on this trace.

    Raises:
        InvalidInput: not whole numbers from 1 on in a table of two axes.

    Example:
        >>> trace = rounds_of_counts([[1, 1, 1], [3, 3, 1], [2, 4, 1]])
        >>> trace.counts
        {'load': 4, 'reduce': 3}
    """
    counts = np.asarray(counts)
    if counts.ndim != 2 or counts.shape[1] < 2 or counts.dtype.kind not in "iu":
        got = f"{counts.dtype} of shape {counts.shape}"
        raise InvalidInput("counts", got, "integers (collectives, workers), of at least two workers")
    if counts.size and counts.min() < 1:
        r, i = np.argwhere(counts < 1)[0]
        raise InvalidInput(
            "counts",
            f"{counts[r, i]} of worker {i} in collective {r}",
            "at least one micro-batch of each worker",
        )
    end = np.arange(1, len(counts) + 1) * 10**9
    half = np.full(len(counts), 10**9 // 2)
    return _trace(end - half, end, half, 0, counts, np.zeros(counts.sum()), seed, float(len(counts)))


def _trace(post, end, length, warm_up: int, count, took, seed: int | None, horizon_s: float) -> Trace:
    """The events of all collectives up to the horizon.

    Args:
        post: (R,) nanoseconds, when a collective starts.
        end: (R,) when it ends; the last one after the horizon, perhaps.
        length: (R,) how long it takes.
        warm_up: so many are synchronous.
        count: (K, n) micro-batches of each worker in each of those that end in time.
        took: (sum of counts,) nanoseconds of each micro-batch, collective after collective, worker after worker.
        seed: of the replica.
        horizon_s: its end.
    """
    number, (kept, n) = np.arange(len(post)), count.shape
    synchronous = number < warm_up
    # Load r + 1 and reduce r side by side; with overlap the load comes first, even if the collective takes no time.
    time_ns = np.stack([np.where(synchronous, end, post), end], 1)
    op = np.stack([synchronous, ~synchronous], 1).astype(np.uint8)
    slot = np.stack([number + ~synchronous, number + synchronous], 1)
    # The first load; of a collective that is not kept only the load, if that is not at its end.
    events = 1 + 2 * kept + int(len(post) > kept and not synchronous[-1])
    time_s = np.concatenate([[0], time_ns.ravel()])[:events] / 1e9
    op = np.append(np.uint8(0), op)[:events]
    operands = np.zeros((events, 4), np.int32)
    operands[:, 2] = np.concatenate([[0], slot.ravel()])[:events]
    operands[:, 3] = np.where(op, operands[:, 2], -1)
    sizes = count.sum(1)
    groups = Groups(
        np.concatenate([[0], sizes.cumsum()]).astype(np.int64),
        np.full(sizes.sum(), -1, np.int32),
        np.repeat(np.tile(np.arange(n, dtype=np.int32), kept), count.ravel()),
        np.repeat(1 / sizes, sizes),
        took / 1e9,
    )
    duration_s = np.where(op, np.append(length, 0)[operands[:, 2]], 0) / 1e9
    replica = Replica(seed, max(horizon_s, float(time_s[-1])))
    return Trace(time_s, op, operands, (LOAD, REDUCE), n, (replica,), groups, duration_s)
