"""All-reduce: one copy of the parameters, and every gradient waits for the others."""

from __future__ import annotations

import dataclasses
import heapq
from dataclasses import dataclass

import numpy as np

from decentral.engine.trace import STEP, WORK, Trace
from decentral.errors import InvalidInput, check_flag, check_integer, check_number, suggest
from decentral.protocol.base import Demand, Network, Stop, until
from decentral.protocol.collectives import Collective, check_collective, check_times
from decentral.protocol.rounds import Crew, Events, Tables
from decentral.timing import Cluster
from decentral.topology import DirectedTopology, Topology

BATCHES = ("equal", "speed")


def shares(speeds: np.ndarray, total: int) -> np.ndarray:
    """How many of ``total`` equal gradients each worker takes so that all are done as early as can be.

    One after the other to the worker that would finish it first (lower numbers at ties), which is best for equal tasks on
    machines of different speeds; a worker too slow to help gets none.

    Args:
        speeds: (n,) relative speeds.
        total: gradients.

    Returns:
        (n,) int64 that sum to ``total``.
    """
    taken = np.zeros(len(speeds), np.int64)
    queue = [(1 / speed, i) for i, speed in enumerate(speeds.tolist())]
    heapq.heapify(queue)
    for _ in range(total):
        _, i = queue[0]
        taken[i] += 1
        heapq.heapreplace(queue, ((taken[i] + 1) / speeds[i], i))
    return taken


@dataclass(frozen=True)
class AllReduce:
    """Synchronous data-parallel SGD: all workers' gradients at the same parameters, their mean, one update; again.

    There is one copy of the parameters. A ``step`` is at the end of a round: the gradients, then an all-reduce of
    ``model_bytes`` among those whose gradients count, then the optimizer. It has the mean of these gradients, and the time
    that each took. With a sharded optimizer (ZeRO-1) it is the same: a reduce-scatter and an all-gather are an all-reduce
    in two halves, and ``optimizer_s`` is a shard's.

    The usual rivals of an overlapped all-reduce (:class:`~decentral.protocol.overlapped.Overlapped`): ``overlap`` is DDP as
    it is used; ``accumulate`` makes its batch as large as the rival's has become; ``batches = "speed"`` makes fast workers
    take more, as the rival does.

    *Faults.* Who is down when a round begins is not in it; who crashes before its all-reduce is left out, its gradient
    lost (it has taken a draw), and no longer waited for; the weights are those of a mean of the gradients that are
    there. If all are down the round begins with the first to return; a returning worker has nothing to restore. A lost
    message is sent again (see :class:`~decentral.protocol.collectives.Collective`); an all-reduce across a partition
    waits until that ends.

    Args:
        first: the step takes the first so many gradients of a round; the others' work is thrown away and everyone begins
            again (m-synchronous SGD, backup workers): a ``work`` each, when they are stopped. None: all.
        overlap: share of the compute time that the all-reduce can hide under (it begins with the first layers whose
            gradients are there): a round takes compute + max(0, all-reduce - overlap x compute), with the compute time of
            the slowest worker that counts, of its last micro-batch alone where it takes several. About 2/3 where the backward
            pass is twice the forward pass.
        batches: ``"equal"``: a gradient each; ``"speed"``: worker i takes :func:`shares` of them one after the other, by
            its relative speed, so that nobody waits long.
        per_round: gradients of a round together with ``batches = "speed"``; by default as many as workers. The more, the
            better they can be shared out.
        collective: ``"ring"`` or ``"tree"``.
        accumulate: gradients that each worker takes one after the other in a round (micro-batches). With
            ``batches = "speed"`` it is ``per_round`` that says how many.
        no_sync: one all-reduce in a round. False: one after each micro-batch, for which all wait (DDP without ``no_sync()``,
            the baseline of ACCO's released code): a round takes accumulate x (gradient + all-reduce).
        collective_s: seconds of an all-reduce instead of what the links say.
        optimizer_s: seconds of the optimizer's step at the end of a round; nothing hides it. A learned optimizer's are added,
            those of a whole step: every worker computes it.

    References:
        Chen et al.: Revisiting distributed synchronous SGD (2016), recalled; Li et al.: PyTorch distributed (VLDB 2020),
        recalled.
    """

    first: int | None = None
    overlap: float = 0.0
    batches: str = "equal"
    per_round: int | None = None
    collective: str = "ring"
    accumulate: int = 1
    no_sync: bool = True
    collective_s: float | None = None
    optimizer_s: float = 0.0

    def __post_init__(self) -> None:
        if self.first is not None:
            check_integer("protocol.first", self.first, 1)
        check_number("protocol.overlap", self.overlap, 0, 1)
        if self.batches not in BATCHES:
            raise InvalidInput(
                "protocol.batches", self.batches, "a known way", suggest(str(self.batches), BATCHES)
            )
        if self.first is not None and self.batches == "speed":
            raise InvalidInput(
                "protocol.first", self.first, "None with batches = 'speed'", "Take one of the two."
            )
        if self.per_round is not None:
            check_integer("protocol.per_round", self.per_round, 1)
            if self.batches != "speed":
                raise InvalidInput("protocol.per_round", self.per_round, "None unless batches = 'speed'")
        check_collective("protocol.collective", self.collective)
        check_times(self.collective_s, self.optimizer_s)
        check_integer("protocol.accumulate", self.accumulate, 1)
        if self.accumulate > 1 and self.batches == "speed":
            raise InvalidInput(
                "protocol.accumulate",
                self.accumulate,
                "1 with batches = 'speed'",
                "Say how many by per_round.",
            )
        check_flag("protocol.no_sync", self.no_sync)
        if not self.no_sync and (self.first is not None or self.batches == "speed"):
            raise InvalidInput(
                "protocol.no_sync", False, "true with first or batches = 'speed'",
                "All workers have to be in the all-reduce after each micro-batch.",
            )  # fmt: skip

    def network(
        self, topology: Topology | DirectedTopology, demand: Demand, cluster: Cluster | None = None
    ) -> Network:
        """The clocks: gradients at the rate of workers that never wait, which is about an upper bound of what comes about.

        Only the number of workers of the topology counts.

        Raises:
            InvalidInput: workers of the algorithm hold parameters of their own; ``first`` is more than there are.
        """
        demand.choose("all_reduce", ("gradient",))
        if self.first is not None:
            check_integer("protocol.first", self.first, 1, topology.n)
        cluster = Cluster() if cluster is None else cluster
        rate = cluster.gradient_rate(topology.n)
        return Network(topology, rate, 1 / rate, demand, cluster)

    def events_per_gradient(self, network: Network) -> float:
        """A step for all gradients of a round, and the work of the others."""
        n = network.topology.n
        return (1 + n - (self.first or n)) / ((self.first or self.per_round or n) * self.accumulate)

    def timeline(self, network: Network, stop: Stop, seed: int) -> Trace:
        """All rounds up to the stop.

        Raises:
            RunFailed: workers wait for the end of a partition that never ends.
        """
        return until(stop, network, lambda horizon_s: self._rounds(network, seed, horizon_s))

    def _rounds(self, network: Network, seed: int, horizon_s: float) -> Trace:
        crew = Crew(network, seed, horizon_s)
        # A round is so many parts, each with an all-reduce.
        parts, steps = (1, self.accumulate) if self.no_sync else (self.accumulate, 1)
        if self.batches == "speed":
            steps = shares(crew.cluster.speed_of(crew.n, seed), self.per_round or crew.n)
        else:
            steps = np.full(crew.n, steps)
        collective = Collective(
            crew.cluster, self.collective, network.demand.model_bytes, seed, self.collective_s
        )
        optimizer_ns = round((self.optimizer_s + network.demand.optimizer_s) * 1e9)
        tables, ends, durations = Tables(), [], []
        stops = self.first is not None and self.first < crew.n
        step = dataclasses.replace(STEP, messages=parts) if parts > 1 else STEP
        events = Events((WORK, step) if stops else (step,))
        begin, part, collectives_ns = crew.next_up(0, steps), 0, 0
        senders, seconds = [], []
        while begin < crew.horizon_ns:
            computed, who, took = crew.take(begin, steps)
            meet, members = crew.meet(self.first or crew.n)
            if meet > crew.horizon_ns:
                break
            part += 1
            length = 0
            if members.any():
                stopped = np.flatnonzero(crew.present & ~members & (crew.crash > meet))
                if stopped.size:
                    events.add(WORK, np.full(stopped.size, meet), (stopped,), meet - begin)
                counts = members[who]
                senders.append(who[counts])
                seconds.append(took[counts] / 1e9)
                length = collective.ns(members)
                collectives_ns += length
                last = took[counts][computed[counts].argmax()] if steps.max() > 1 else meet - begin
                hidden = round(min(float(length), self.overlap * last))
                begin = crew.reachable(meet, members) + length - hidden
            else:
                begin = meet
            if part == parts:
                if senders:
                    begin += optimizer_ns
                    if begin > crew.horizon_ns:
                        break
                    sender = np.concatenate(senders)
                    weights = np.full(len(sender), 1 / len(sender))
                    tables.append(np.full(len(sender), -1), sender, weights, np.concatenate(seconds))
                    ends.append(begin)
                    durations.append(collectives_ns + optimizer_ns)
                senders, seconds, part, collectives_ns = [], [], 0, 0
            begin = crew.next_up(begin, steps)
        columns = (0, 0, np.arange(len(ends)))
        events.add(step, np.array(ends, np.int64), columns, np.array(durations, np.float64))
        return events.trace(crew.n, seed, horizon_s, tables.groups())
