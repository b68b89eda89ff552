"""Rounds: some gradients each, then everyone meets; and what all protocols with rounds share."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from decentral.engine.trace import (
    ABANDON,
    AVERAGE,
    COPY,
    EXCHANGE,
    GRADIENT,
    GRADIENT_COMMIT,
    GRADIENT_START,
    MIX,
    RESET,
    Groups,
    Op,
    Replica,
    Trace,
)
from decentral.errors import InvalidInput, RunFailed, check_flag, check_integer, check_number, suggest
from decentral.protocol.base import Demand, Network, Stop, until
from decentral.protocol.collectives import Collective, check_collective
from decentral.timing import Cluster, Purpose, jitter_factor, lost, separated
from decentral.timing.compute import LONGEST_NS, check_draws, to_ns
from decentral.timing.tapes import uniform_runs
from decentral.topology import SCHEDULES, DirectedTopology, Schedule, Topology, neighbours

NEVER = LONGEST_NS
ON_GRAPH = ("metropolis", "uniform_neighbours", "laplacian", "push_sum", "matchings", "matcha")
"""The schedules that mix along the topology's edges; the others make graphs of their own."""
RANDOM_PAIRS = "random_pairs"


# -- what computes, and what goes wrong --------------------------------------------------------------------------------


@njit(cache=True)
def _take(
    begin_ns, steps, window_ns, restart, horizon_ns,
    start, ns, position, outage_start, down, up, outage,
    present, finish, crash, used, ends, who, took,
):  # fmt: skip
    """Every worker's gradients of one round. Returns how many end in it, -1 for too few draws, -2 for too little room.

    Changes nothing but its outputs (the last two lines) and, where it is harmless, ``outage``: it may be called again.
    """
    written = 0
    for i in range(begin_ns.size):
        used[i], finish[i], crash[i], present[i] = 0, NEVER, NEVER, False
        now, last = begin_ns[i], outage_start[i + 1]
        while outage[i] < last and up[outage[i]] <= now:
            outage[i] += 1
        at = outage[i]
        if at < last and down[at] <= now:
            if not restart:
                continue
            now = up[at]
            at += 1
        if steps[i] == 0:
            continue
        crash_ns = down[at] if at < last else NEVER
        deadline_ns = now + window_ns if window_ns > 0 else NEVER
        present[i] = True
        done = 0
        while window_ns > 0 or done < steps[i]:
            if now >= horizon_ns:  # whatever comes is too late to matter
                now = NEVER
                break
            draw = start[i] + position[i] + used[i]
            if draw >= start[i + 1]:
                return -1
            used[i] += 1
            if now + ns[draw] > crash_ns and restart:
                now = up[at]
                at += 1
                crash_ns = down[at] if at < last else NEVER
                continue
            if now + ns[draw] > min(crash_ns, deadline_ns):
                now = NEVER
                break
            now += ns[draw]
            if written == ends.size:
                return -2
            ends[written], who[written], took[written] = now, i, ns[draw]
            written += 1
            done += 1
        crash[i] = crash_ns
        finish[i] = now if window_ns == 0 else (deadline_ns if deadline_ns <= crash_ns else NEVER)
    return written


@njit(cache=True)
def _meeting(present, finish, crash, need, members):
    """When ``need`` of the workers have finished and are up, or all that can; ``members`` is set to them."""
    count = 0
    for i in range(present.size):
        count += present[i]
    if need < count:
        order = np.argsort(finish, kind="mergesort")
        for last in range(need - 1, count):
            now = finish[order[last]]
            if now == NEVER:
                break
            alive = 0
            for k in range(last + 1):
                alive += crash[order[k]] >= now
            if alive >= need:
                members[:] = False
                for k in range(last + 1):
                    members[order[k]] = crash[order[k]] >= now
                return now
    now = np.int64(0)
    for i in range(present.size):
        if present[i]:
            now = max(now, min(finish[i], crash[i]))
    for i in range(present.size):
        members[i] = present[i] and finish[i] <= now and crash[i] >= now
    return now


class Crew:
    """The workers of one run, as their rounds go by: which draw is each one's next, and who is down.

    A gradient that is begun takes the worker's next draw, whether or not it comes to an end.

    Attributes:
        present: bool ``(n,)``: takes part in the round that was taken last.
        finish: int64 ``(n,)`` nanoseconds: the end of its last gradient in that round, ``NEVER`` where there is none.
        crash: int64 ``(n,)`` nanoseconds: when it is down next.
    """

    def __init__(self, network: Network, seed: int, horizon_s: float) -> None:
        self.cluster = network.cluster or Cluster()
        self.n, self.seed = network.topology.n, seed
        self.horizon_ns = to_ns("stop", horizon_s)
        self.outages = self.cluster.faults.outages(seed, self.n, horizon_s)
        self.outage = self.outages[0][:-1].copy()
        self._of_outage = np.repeat(np.arange(self.n), np.diff(self.outages[0]))
        partitions = self.cluster.faults.partition_arrays(self.n)
        self._partitions = list(zip(*(column.tolist() for column in partitions), strict=True))
        self._speeds = self.cluster.speed_of(self.n, seed)
        # Draws come in pieces, ever longer ones: how many are needed depends on how long workers wait for each other.
        self._start, self._ns, self._piece = np.zeros(self.n + 1, np.int64), np.empty(0, np.int64), 64
        self._drawn, self._position, self._used = np.zeros((3, self.n), np.int64)
        self.finish, self.crash = np.zeros((2, self.n), np.int64)
        self.present = np.zeros(self.n, bool)
        self._buffer = 4 * self.n

    def take(
        self, begin_ns: int | np.ndarray, steps: np.ndarray, window_ns: int = 0, *, restart: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One round's gradients, from when each worker begins.

        Args:
            begin_ns: one time or (n,).
            steps: (n,) gradients of each; a worker that takes none is not present.
            window_ns: as many gradients as fit in this time instead; 0 for ``steps``.
            restart: a worker that is down, or crashes, begins its gradient again when it is back; otherwise it is not
                present, or does not finish.

        Returns:
            ``(end_ns, worker, duration_ns)`` of all gradients that end in the round before a crash, worker after worker.
        """
        begin = np.full(self.n, begin_ns)
        while True:
            ends, took = np.empty((2, self._buffer), np.int64)
            who = np.empty(self._buffer, np.int64)
            written = _take(
                begin, steps, window_ns, restart, self.horizon_ns,
                self._start, self._ns, self._position, *self.outages, self.outage,
                self.present, self.finish, self.crash, self._used, ends, who, took,
            )  # fmt: skip
            if written >= 0:
                self._position += self._used
                return ends[:written], who[:written], took[:written]
            if written == -2:
                self._buffer *= 2
            else:
                self._draw(steps, window_ns)

    def _draw(self, steps: np.ndarray, window_ns: int) -> None:
        """The durations of each worker's next gradients, those of :meth:`Cluster.durations_ns`."""
        compute = self.cluster.compute
        per_round = np.maximum(steps, 1)
        if window_ns:
            per_round = 1 + np.ceil(window_ns / 1e9 * self._speeds / compute.mean_s).astype(np.int64)
        draws = self._piece * per_round
        check_draws("stop", self.horizon_ns / 1e9, float(draws.sum()))
        self._drawn += self._position
        self._position[:] = 0
        seconds = compute.draw(self.seed, np.arange(self.n), self._drawn, draws, self.n)
        ns = np.rint(seconds / np.repeat(self._speeds, draws) * 1e9)
        self._ns = np.clip(ns, 1, LONGEST_NS).astype(np.int64)
        self._start = np.concatenate([[0], np.cumsum(draws)])
        self._piece += self._piece // 2

    def meet(self, need: int) -> tuple[int, np.ndarray]:
        """When the workers of the last round meet, and the mask of those who do; ``NEVER`` is beyond the horizon.

        They meet when ``need`` of them have finished and are up. Who crashes is no longer waited for.
        """
        members = np.empty(self.n, bool)
        return int(_meeting(self.present, self.finish, self.crash, need, members)), members

    def next_up(self, time_ns: int, steps: np.ndarray) -> int:
        """When a worker with gradients to take is up, at ``time_ns`` or later."""
        _, down, up = self.outages
        if not down.size and steps.any():
            return time_ns
        back = np.full(self.n, time_ns)
        away = (down <= time_ns) & (time_ns < up)
        back[self._of_outage[away]] = up[away]
        return int(back[steps > 0].min(initial=NEVER))

    def reachable(self, time_ns: int, members: np.ndarray) -> int:
        """When no partition is between any two of the members: a collective waits for that.

        Raises:
            RunFailed: it never ends.
        """
        since, moved = time_ns, bool(self._partitions)
        while moved:
            moved = False
            for begin, end, k in self._partitions:
                if begin <= time_ns < end and members[:k].any() and members[k:].any():
                    if end >= NEVER and since <= self.horizon_ns:
                        raise RunFailed(
                            f"all-reduce: workers below {k} wait for workers {k} ... {self.n - 1} since "
                            f"{since / 1e9:g} s: the partition that began at {begin / 1e9:g} s never ends."
                        )
                    time_ns, moved = end, True
        return time_ns

    def returns(self, topology: Topology | DirectedTopology) -> tuple[Op | None, np.ndarray, np.ndarray]:
        """What happens to the state of workers that come back: ``(op, times, operands)`` up to the horizon."""
        _, down, up = self.outages
        worker = self._of_outage
        rows = np.flatnonzero(up <= self.horizon_ns)
        way = self.cluster.faults.on_return
        if way == "keep" or not rows.size:
            return None, up[:0], worker[:0, None]
        rows = rows[np.argsort(up[rows], kind="stable")]
        if way == "reset":
            return RESET, up[rows], worker[rows, None]
        first, targets = neighbours(topology)
        copies = []
        for k in rows:
            away = worker[(down <= up[k]) & (up[k] < up)]
            near = np.setdiff1d(targets[first[worker[k]] : first[worker[k] + 1]], away)
            if near.size:
                copies.append((up[k], worker[k], near[0]))
        table = np.array(copies, np.int64).reshape(-1, 3)
        return COPY, table[:, 0], table[:, 1:]


class Events:
    """Events in the order they are caused; sorted by time in the end, which keeps that order where times are equal."""

    def __init__(self, ops: Sequence[Op]) -> None:
        self._ops = tuple(ops)
        self._arity = max(len(op.operands) for op in ops)
        self._parts: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []

    def add(
        self,
        op: Op,
        time_ns: np.ndarray,
        operands: Sequence | np.ndarray,
        duration_ns: np.ndarray | np.integer | float = 0,
    ) -> None:
        """Events of one op: times (k,), an array (k,) or a number per operand, durations."""
        columns = np.full((len(time_ns), self._arity), -1, np.int32)
        for position, column in enumerate(operands):
            columns[:, position] = column
        durations = np.full(len(time_ns), duration_ns, np.float64)
        self._parts.append((self._ops.index(op), time_ns, columns, durations))

    def trace(self, n: int, seed: int, horizon_s: float, groups: Groups) -> Trace:
        """Those up to the horizon."""
        parts = self._parts or [(0, np.empty(0, np.int64), np.empty((0, self._arity), np.int32), np.empty(0))]
        time_ns = np.concatenate([part[1] for part in parts])
        order = np.argsort(time_ns, kind="stable")
        order = order[: np.searchsorted(time_ns[order], to_ns("stop", horizon_s), side="right")]
        time_s = time_ns[order] / 1e9
        return Trace(
            time_s,
            np.repeat(np.array([part[0] for part in parts], np.uint8), [len(part[1]) for part in parts])[
                order
            ],
            np.concatenate([part[2] for part in parts])[order],
            self._ops,
            n,
            (Replica(int(seed), max(horizon_s, float(time_s[-1]) if time_s.size else 0.0)),),
            groups,
            np.concatenate([part[3] for part in parts])[order] / 1e9,
        )


class Tables:
    """The tables of group ops, equal ones once."""

    def __init__(self) -> None:
        self._number: dict[tuple, int] = {}
        self._tables: list[tuple[np.ndarray, ...]] = []

    def __len__(self) -> int:
        return len(self._tables)

    def number(self, key: tuple, build) -> int:
        """The number of the table that ``key`` stands for; ``build() -> (receiver, sender, weight)`` makes it."""
        if key not in self._number:
            self._number[key] = self.append(*build())
        return self._number[key]

    def append(self, receiver, sender, weight, duration_s=None) -> int:
        """A new table."""
        self._tables.append(
            (receiver, sender, weight, np.zeros(len(sender)) if duration_s is None else duration_s)
        )
        return len(self._tables) - 1

    def groups(self) -> Groups:
        """All of them."""
        return Groups.of(self._tables)


# -- messages of a round -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Wires:
    """The directed links that a round's messages take, (A,) each, and the ports at their ends."""

    source: np.ndarray
    target: np.ndarray
    link: np.ndarray
    latency_ns: np.ndarray
    wire_ns: np.ndarray
    out: np.ndarray
    into: np.ndarray
    ports: int

    @classmethod
    def of(cls, cluster: Cluster, source, target, link, message_bytes: int, seed: int, n: int) -> _Wires:
        links = cluster.links
        latency_ns, ns_per_byte = links.arc_arrays(source, target, seed)
        out, into = links.ports(source, target)
        # Port numbers are below n; a full duplex NIC receives through a port of its own.
        if links.duplex == "full":
            into = np.where(into < 0, -1, into + n)
        source, target, link, latency_ns, out, into = (
            np.ascontiguousarray(array, np.int64) for array in (source, target, link, latency_ns, out, into)
        )
        return cls(source, target, link, latency_ns, message_bytes * ns_per_byte, out, into, 2 * n)


@njit(inline="always")
def _transmit(a, source, target, link, wire_ns, jitter, sigma, seed, loss, count, bad):
    """``(nanoseconds on the wire, lost)`` of the next message on arc a."""
    i, j, k = source[a], target[a], link[a]
    wire = wire_ns[a] * jitter_factor(jitter, sigma, seed, i, j, count[k])
    gone, bad[k] = lost(loss[0], loss[1], loss[2], loss[3], seed, i, j, count[k], bad[k])
    count[k] += 1
    return wire, gone


@njit(cache=True)
def _carry(
    now, members, source, target, link, latency_ns, wire_ns, out, into, ports,
    jitter, sigma, seed, loss, from_ns, until_ns, first, count, bad, arrived,
):  # fmt: skip
    """Nanoseconds until all messages of a round have come: each NIC sends its own one after the other, and receives so.

    The largest over NICs of the sum of what passes through it plus the largest latency of it. ``arrived`` (A,) is set.
    """
    load, latest = np.zeros(ports), np.zeros(ports, np.int64)
    longest = 0.0
    for a in range(source.size):
        i, j = source[a], target[a]
        arrived[a] = False
        if not (members[i] and members[j]) or separated(from_ns, until_ns, first, i, j, now):
            continue
        wire, gone = _transmit(a, source, target, link, wire_ns, jitter, sigma, seed, loss, count, bad)
        arrived[a] = not gone
        longest = max(longest, wire + latency_ns[a])
        for port in (out[a], into[a]):
            if port >= 0:
                load[port] += wire
                latest[port] = max(latest[port], latency_ns[a])
    for port in range(ports):
        longest = max(longest, load[port] + latest[port])
    return np.int64(np.rint(longest))


@njit(cache=True)
def _pairwise(
    pairs, half, source, target, link, latency_ns, wire_ns,
    jitter, sigma, seed, loss, from_ns, until_ns, first, count, bad,
    outage_start, down, up, outage, finish, horizon_ns, met, took,
):  # fmt: skip
    """Pairs meet when both have finished and are up: ``finish`` becomes when they part. Arc 2p leads from i to j, 2p + 1 back."""
    for p in range(len(pairs)):
        now, waits = max(finish[pairs[p, 0]], finish[pairs[p, 1]]), True
        while waits and now < NEVER:
            waits = False
            for k in range(2):
                i = pairs[p, k]
                while outage[i] < outage_start[i + 1] and up[outage[i]] <= now:
                    outage[i] += 1
                if outage[i] < outage_start[i + 1] and down[outage[i]] <= now:
                    now, waits = up[outage[i]], True
        took[p] = 0
        met[p] = now <= horizon_ns and not separated(from_ns, until_ns, first, pairs[p, 0], pairs[p, 1], now)
        if met[p]:
            wire = np.zeros(2)
            for k in range(2):
                wire[k], gone = _transmit(
                    2 * p + k, source, target, link, wire_ns, jitter, sigma, seed, loss, count, bad
                )
                met[p] = met[p] and not gone
            if half:
                longest = wire.sum() + max(latency_ns[2 * p], latency_ns[2 * p + 1])
            else:
                longest = max(wire[0] + latency_ns[2 * p], wire[1] + latency_ns[2 * p + 1])
            took[p] = np.int64(np.rint(longest))
        finish[pairs[p, 0]] = finish[pairs[p, 1]] = min(now + took[p], NEVER)


def neighbour_round_times(compute_s: np.ndarray, partners_of_round: Sequence[np.ndarray]) -> np.ndarray:
    """When each worker ends each round, where it waits for its partners of that round only and messages take no time.

    The recursion t_i <- max over i and its partners j of (t_j + X_j), from t = 0.

    Args:
        compute_s: X, (rounds, n): seconds each worker computes in each round.
        partners_of_round: one integer array (n, d) per round, used in turn: row i is whom worker i waits for (itself, if
            it waits for fewer than d).

    Returns:
        (rounds, n) float64 seconds.
    """
    compute_s = np.asarray(compute_s, np.float64)
    times, now = np.empty_like(compute_s), np.zeros(compute_s.shape[1])
    for r, took in enumerate(compute_s):
        ready = now + took
        now = np.maximum(ready, ready[partners_of_round[r % len(partners_of_round)]].max(axis=1))
        times[r] = now
    return times


# -- the protocol ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rounds:
    """Every worker takes some gradients; then they meet, and the next round begins. DGD, D-PSGD, local SGD, DiLoCo, SGP.

    How they meet is what the algorithm likes best of: ``mix``, all neighbours of the round at once, with the weights of
    the schedule ``mixing``; ``average``, an all-reduce of the messages; ``exchange``, between the pairs of the round, where
    the schedule has nothing but pairs; ``pairs``, exchanges between random pairs. Meetings are *atomic*: all messages are
    taken and applied at their end, and nobody computes meanwhile, so it is as if they were taken at the beginning. Means
    are conserved wherever the weights' columns sum to 1: always by exchanges, by averages of all workers, and by mixing
    with symmetric or push-sum weights.

    *Time.* A round ends when its last gradient and then its messages have come. In a ``mix`` or ``exchange`` each NIC sends
    its messages one after the other and receives so; it takes the sum of its transmissions, the larger of both directions
    (half duplex: both together), and the largest latency of its links. An ``average`` takes what
    :class:`~decentral.protocol.collectives.Collective` says.

    An algorithm may ask for several mixing steps per round (``Demand.mixings``: MSDA, ADOM+). They follow one another, each
    takes its own time and the next matrix of the schedule; who is in the first is in all of them.

    *Faults.* Who is down when a round begins is not in it; who crashes before the others meet is left out of the meeting
    and no longer waited for, and its gradient under way is lost (its earlier ones of the round are not). Left out of
    ``mix``: its weight goes to the receiver's own message (under push-sum it stays with the sender, whose mass would be
    lost); of ``average``: the weights are 1/k over those who are there. If all are down the round begins with the first
    to return. A lost message, or one that a partition stops, is left out of ``mix`` in the same way; its pair skips an
    ``exchange``; an ``average`` sends it again, and waits until the partition ends. A worker that returns joins the next
    round; its state is kept, reset, or copied from its lowest-numbered neighbour that is up, when it returns. With
    ``barrier = "neighbours"`` a worker that is down makes its partners wait, and takes its gradient again.

    Args:
        mixing: the schedule, a key of ``SCHEDULES`` or ``"random_pairs"``: a perfect matching per round, drawn (for an odd
            number of workers one stays alone). Or a :class:`Schedule`. By default what the algorithm asks for
            (``"metropolis"``), on a directed topology ``"push_sum"``.
        local_steps: gradients per round; by default what the algorithm asks for.
        round_s: seconds to compute per round instead: everyone takes as many gradients as fit, and the one under way is
            thrown away. A worker that fits none takes none, and still meets.
        barrier: ``"global"``: everyone waits for everyone; ``"neighbours"``: a worker waits for its partner of the round
            only (exchanges; their NICs are taken to be free).
        overlap: the messages of a ``mix`` are sent while the gradient is computed, at the same parameters (Lian et al.
            2017): a round takes the longer of the two, and a worker's gradient is applied after the mix.
        collective: ``"ring"`` or ``"tree"``, for ``average``.
        directed: argument of the schedule, like those that follow; None for its own default.
        k: see ``SCHEDULES``.
        budget: see ``SCHEDULES``.
        rounds: see ``SCHEDULES``.
        radius: see ``SCHEDULES``.
        mixing_seed: its ``seed``.
        graphs: lists of edges, for kind ``"list"``.

    References:
        Lian et al.: Can decentralized algorithms outperform centralized algorithms? (NeurIPS 2017); Stich: Local SGD
        converges fast and communicates little (ICLR 2019); Assran et al.: Stochastic gradient push (ICML 2019); all
        recalled.
    """

    mixing: str | Schedule | None = None
    local_steps: int | None = None
    round_s: float | None = None
    barrier: str = "global"
    overlap: bool = False
    collective: str = "ring"
    directed: bool | None = None
    k: int | None = None
    budget: float | None = None
    rounds: int | None = None
    radius: float | None = None
    mixing_seed: int | None = None
    graphs: tuple[tuple[tuple[int, int], ...], ...] | None = None

    def __post_init__(self) -> None:
        if self.local_steps is not None:
            check_integer("protocol.local_steps", self.local_steps, 1)
        if self.round_s is not None:
            check_number("protocol.round_s", self.round_s, 1e-9, LONGEST_NS / 2e9)
            if self.local_steps is not None or self.overlap or self.barrier != "global":
                got = f"{self.round_s} with local_steps, overlap or barrier = 'neighbours'"
                raise InvalidInput(
                    "protocol.round_s", got, "equal times on their own", "Leave one of them out."
                )
        if self.barrier not in ("global", "neighbours"):
            allowed = suggest(str(self.barrier), ("global", "neighbours"))
            raise InvalidInput("protocol.barrier", self.barrier, "a known barrier", allowed)
        check_flag("protocol.overlap", self.overlap)
        if self.overlap and self.barrier != "global":
            raise InvalidInput("protocol.overlap", True, "false with barrier = 'neighbours'")
        check_collective("protocol.collective", self.collective)
        kinds = (*SCHEDULES, RANDOM_PAIRS)
        if isinstance(self.mixing, str) and self.mixing not in kinds:
            raise InvalidInput(
                "protocol.mixing", self.mixing, "a known schedule", suggest(self.mixing, kinds)
            )
        allowed = ()
        if isinstance(self.mixing, str) and self.mixing in SCHEDULES:
            allowed = inspect.signature(SCHEDULES[self.mixing]).parameters
        for name, value in self._arguments.items():
            if name not in allowed:
                raise InvalidInput(
                    f"protocol.{name}", value, f"nothing: mixing = {self.mixing!r} does not take it"
                )
        if self.mixing == "list" and self.graphs is None:
            raise InvalidInput(
                "protocol.graphs", None, "a list of edges for each round: mixing = 'list' needs it"
            )

    @property
    def _arguments(self) -> dict:
        given = {
            name: getattr(self, name) for name in ("directed", "k", "budget", "rounds", "radius", "graphs")
        }
        given["seed"] = self.mixing_seed
        return {name: value for name, value in given.items() if value is not None}

    def schedule(self, topology: Topology | DirectedTopology, default: str = "metropolis") -> Schedule | None:
        """The mixing matrices in turn; None for random pairs.

        Args:
            topology: the graph.
            default: what the algorithm asks for.

        Raises:
            InvalidInput: the schedule cannot be made on that topology, or never connects it.
        """
        if isinstance(self.mixing, Schedule):
            if self.mixing.n != topology.n:
                raise InvalidInput(
                    "protocol.mixing", f"{self.mixing.n} workers", f"a schedule of {topology.n}"
                )
            return self.mixing
        if self.mixing == RANDOM_PAIRS:
            return None
        mixing = default if self.mixing is None else self.mixing
        # A directed topology has one way to mix that needs no other choice.
        directed = isinstance(topology, DirectedTopology) and mixing == "metropolis"
        return SCHEDULES["push_sum" if directed else mixing](topology, **self._arguments)

    def _meeting(self, demand: Demand, schedule: Schedule | None) -> str:
        offered = ["average", "pairs"]
        if schedule is not None:
            offered.append("mix" if schedule.row_stochastic else "push_sum")
        if schedule is None or schedule.matchings_only:
            offered.append("exchange")
        meeting = demand.choose("rounds", tuple(offered))
        if demand.fixed_weights and meeting == "mix" and schedule is not None and schedule.period > 1:
            raise InvalidInput(
                "protocol.mixing", f"{schedule.name}, {schedule.period} matrices in turn", "one matrix for every round",
                f"This algorithm needs the same weights every time: mixing = {demand.mixing!r}.",
            )  # fmt: skip
        if demand.exact_rounds and (
            self.round_s is not None or self.overlap or self._steps(demand) != demand.local_steps
        ):
            got = "overlap" if self.overlap else "round_s" if self.round_s is not None else "local_steps"
            raise InvalidInput(
                f"protocol.{got}", getattr(self, got), "nothing for this algorithm",
                f"Its recursion takes {demand.local_steps} gradient of every worker, then mixes.",
            )  # fmt: skip
        once = self._steps(demand) == demand.mixings == 1
        if self.overlap and (meeting not in ("mix", "push_sum") or not once):
            got = f"{demand.mixings} {meeting} after {self._steps(demand)} gradients"
            advice = "Messages are sent once, while one gradient is computed at the parameters they carry."
            raise InvalidInput("protocol.overlap", got, "mix after 1 gradient", advice)
        if self.barrier == "neighbours" and meeting not in ("exchange", "pairs"):
            raise InvalidInput(
                "protocol.barrier", f"'neighbours' with {meeting}",
                "exchanges between pairs: mixing = 'matchings', 'one_peer_exponential' or 'random_pairs', and an algorithm "
                "that exchanges",
                "decentral.protocol.rounds.neighbour_round_times says when workers with more neighbours end their rounds.",
            )  # fmt: skip
        return meeting

    def _steps(self, demand: Demand) -> int:
        return demand.local_steps if self.local_steps is None else self.local_steps

    def _gradients_per_round(self, network: Network) -> float:
        if self.round_s is None:
            return self._steps(network.demand)
        return max(self.round_s * network.gradients_per_s, 1e-9)

    def network(
        self, topology: Topology | DirectedTopology, demand: Demand, cluster: Cluster | None = None
    ) -> Network:
        """The clocks: gradients at the rate of workers that never wait, which is an upper bound of what comes about.

        The topology's rates are those of the schedule's links, means over its period, per gradient of a worker.

        Raises:
            InvalidInput: no common way to meet; a schedule that never connects the graph.
        """
        cluster = Cluster() if cluster is None else cluster
        schedule = self.schedule(topology, demand.mixing)
        meeting = self._meeting(demand, schedule)
        faults = cluster.faults
        if (demand.fixed_weights or demand.exact_rounds) and (
            faults.mean_loss or faults.down or faults.partitions or faults.crash_every_s < math.inf
        ):
            raise InvalidInput(
                "cluster.faults", "losses, crashes or partitions", "none of them for this algorithm",
                "Its recursion needs every worker and every message.",
            )  # fmt: skip
        demand = dataclasses.replace(demand, meetings=(meeting,))
        n = topology.n
        time_unit_s = 1 / cluster.gradient_rate(n)
        mixed = schedule if meeting == "mix" else None
        network = Network(topology, 1 / time_unit_s, time_unit_s, demand, cluster, schedule=mixed)
        if meeting in ("average", "pairs") or schedule is None:
            links, own = n // 2, topology
        elif schedule.symmetric:
            links = sum(len(schedule.pairs(r)) for r in range(schedule.period)) / schedule.period
            on_graph = self.mixing is None or (isinstance(self.mixing, str) and self.mixing in ON_GRAPH)
            own = topology if on_graph else schedule.union()
        else:
            return network
        if isinstance(own, DirectedTopology):
            return network
        # A round that takes next to no gradients would tick without bound.
        own = own.with_total_rate(links * demand.mixings / self._gradients_per_round(network))
        return dataclasses.replace(network, topology=own)

    def events_per_gradient(self, network: Network) -> float:
        """One (two with overlap) and its share of the meetings."""
        demand = network.demand
        meeting = self._meeting(demand, self.schedule(network.topology, demand.mixing))
        per_round = network.topology.n / 2 if meeting in ("exchange", "pairs") else demand.mixings
        gradients = network.topology.n * self._gradients_per_round(network)
        return 1 + self.overlap + per_round / gradients

    def timeline(self, network: Network, stop: Stop, seed: int) -> Trace:
        """All rounds up to the stop.

        Raises:
            RunFailed: workers wait for one that never returns, or for the end of a partition that never ends.
        """
        return until(stop, network, lambda horizon_s: _Run(self, network, seed, horizon_s).trace())


class _Run:
    """One run of :class:`Rounds`."""

    def __init__(self, protocol: Rounds, network: Network, seed: int, horizon_s: float) -> None:
        self.protocol, self.seed, self.horizon_s = protocol, seed, horizon_s
        self.topology, demand = network.topology, network.demand
        self.crew = Crew(network, seed, horizon_s)
        self.cluster, self.n = self.crew.cluster, self.crew.n
        self.schedule = protocol.schedule(network.topology, demand.mixing)
        self.mixings = demand.mixings
        self.meeting = protocol._meeting(demand, self.schedule)
        if self.meeting == "pairs":
            self.schedule = None
        self.paired = self.meeting in ("exchange", "pairs")
        self.random = self.paired and self.schedule is None
        self.steps = np.full(self.n, protocol._steps(demand))
        self.window_ns = 0 if protocol.round_s is None else max(round(protocol.round_s * 1e9), 1)
        self.bytes, self.optimizer_ns = demand.message_bytes, round(demand.optimizer_s * 1e9)
        faults = self.cluster.faults
        if self.random and faults.burst_start > 0:
            raise InvalidInput(
                "cluster.faults.burst_start", faults.burst_start, "0 with random pairs",
                "Their links are new in every round and remember no bursts; use loss.",
            )  # fmt: skip
        self.noise = (
            *(self.cluster.links.jitter_code, float(self.cluster.links.jitter_sigma), seed),
            *(faults.loss_numbers, *faults.partition_arrays(self.n)),
        )
        self.tables = Tables()
        if self.meeting == "average":
            self.collective = Collective(self.cluster, protocol.collective, self.bytes, seed)
        elif not self.random:
            self._lay_wires()
        back, *returned = self.crew.returns(network.topology)
        meet = EXCHANGE if self.paired else (AVERAGE if self.meeting == "average" else MIX)
        gradients = (GRADIENT_START, GRADIENT_COMMIT, ABANDON) if protocol.overlap else (GRADIENT,)
        self.events = Events((*gradients, meet, *([back] if back else [])))
        if back:
            self.events.add(back, returned[0], returned[1].T)

    def _lay_wires(self) -> None:
        """Wires and weights of each round of the schedule's period; a link that is used in several rounds has one number."""
        schedule = self.schedule
        assert schedule is not None
        arcs, self.rounds = [], []
        self.push_sum = schedule.name == "push_sum" or not schedule.row_stochastic
        for matrix in schedule.rounds:
            entries = matrix.tocoo()
            away = entries.row != entries.col
            target, source, weight = (
                a[away] for a in (entries.row.astype(np.int64), entries.col.astype(np.int64), entries.data)
            )
            if self.paired:  # i -> j and j -> i side by side
                order = np.lexsort((source, np.maximum(source, target), np.minimum(source, target)))
                target, source, weight = target[order], source[order], weight[order]
            self.rounds.append((target, source, weight, matrix.diagonal()))
            arcs.append(source * self.n + target)
        keys, link = np.unique(np.concatenate(arcs), return_inverse=True)
        self.count, self.bad = np.zeros(len(keys), np.int64), np.zeros(len(keys), bool)
        ends = np.cumsum([len(a) for a in arcs])
        self.wires = [
            _Wires.of(
                self.cluster, source, target, link[end - len(source) : end], self.bytes, self.seed, self.n
            )
            for (target, source, *_), end in zip(self.rounds, ends, strict=True)
        ]

    def _wires_of(self, r: int) -> tuple[_Wires, np.ndarray, np.ndarray]:
        """``(wires, count, bad)`` of round r."""
        if not self.random:
            return self.wires[r % len(self.wires)], self.count, self.bad
        workers = np.arange(self.n)
        drawn = uniform_runs(
            self.seed, int(Purpose.ROUND_PAIRS), workers, workers, 0 * workers + r, 0 * workers + 1
        )
        order = np.argsort(drawn, kind="stable")[: self.n // 2 * 2].reshape(-1, 2)
        low, high = order.min(axis=1), order.max(axis=1)
        source, target = np.stack([low, high], 1).ravel(), np.stack([high, low], 1).ravel()
        link = np.arange(len(source))
        wires = _Wires.of(self.cluster, source, target, link, self.bytes, self.seed, self.n)
        return wires, np.full(len(source), r), np.zeros(len(source), bool)

    def trace(self) -> Trace:
        if self.protocol.barrier == "neighbours":
            self._neighbours()
        else:
            self._global()
        return self.events.trace(self.n, self.seed, self.horizon_s, self.tables.groups())

    def _global(self) -> None:
        crew, r, slots, slot = self.crew, 0, 0, np.zeros(self.n, np.int64)
        begin = crew.next_up(0, self.steps)
        while begin <= crew.horizon_ns:
            ends, who, took = crew.take(begin, self.steps, self.window_ns)
            if self.protocol.overlap:
                there = np.flatnonzero(crew.present)
                slot[there] = slots + np.arange(len(there))
                slots += len(there)
                self.events.add(GRADIENT_START, np.full(len(there), begin), (there, slot[there]))
                mixed = self._meet(r, begin, crew.present)
                begin = max(mixed, self._apply(mixed, there, slot, ends, who, took))
            else:
                self.events.add(GRADIENT, ends, (who,), took)
                meet, members = crew.meet(self.n)
                begin = meet
                for step in range(self.mixings if members.any() else 0):
                    if begin > crew.horizon_ns:
                        break
                    begin = self._meet(r * self.mixings + step, begin, members)
            if begin <= crew.horizon_ns:
                begin = crew.next_up(begin, self.steps)
            r += 1

    def _meet(self, r: int, now: int, members: np.ndarray) -> int:
        """The meeting of round r among ``members`` from ``now`` on; returns its end."""
        if self.meeting == "average":
            took = self.collective.ns(members) + self.optimizer_ns
            end = self.crew.reachable(now, members) + took

            def average():
                who = np.flatnonzero(members)
                return who, who, np.full(len(who), 1 / len(who))

            table = self.tables.number((members.tobytes(),), average)
            self.events.add(AVERAGE, np.array([end]), (0, table), took)
            return end
        wires, count, bad = self._wires_of(r)
        arrived = np.empty(len(wires.source), bool)
        took = _carry(
            now, members, wires.source, wires.target, wires.link, wires.latency_ns, wires.wire_ns, wires.out,
            wires.into, wires.ports, *self.noise, count, bad, arrived,
        )  # fmt: skip
        end = int(now + took)
        if self.paired:
            met = np.flatnonzero(arrived.reshape(-1, 2).all(axis=1)) * 2
            pairs = wires.source[met], wires.target[met]
            self.events.add(EXCHANGE, np.full(len(met), end), pairs, took)
            return end
        k = r % len(self.wires)
        key = (k, arrived.tobytes(), members.tobytes())
        table = self.tables.number(key, lambda: self._mixing(k, arrived, members))
        self.events.add(MIX, np.array([end]), (0, table), took)
        return end

    def _mixing(self, k: int, arrived: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, ...]:
        """The round's matrix without the messages that did not come."""
        target, source, weight, own = self.rounds[k]
        own, rest = own.copy(), np.flatnonzero(members)
        np.add.at(own, (source if self.push_sum else target)[~arrived], weight[~arrived])
        return (
            np.concatenate([target[arrived], rest]),
            np.concatenate([source[arrived], rest]),
            np.concatenate([weight[arrived], own[rest]]),
        )

    def _apply(self, mixed: int, there, slot, ends, who, took) -> int:
        """Gradients begun before the mix are applied after it, or lost in a crash; returns when the last one is."""
        crew, applied = self.crew, np.full(self.n, NEVER)
        applied[who] = np.maximum(ends, mixed)
        kept = applied[who] <= crew.crash[who]
        self.events.add(GRADIENT_COMMIT, applied[who[kept]], (who[kept], slot[who[kept]]), took[kept])
        fell = there[crew.crash[there] < applied[there]]
        self.events.add(ABANDON, crew.crash[fell], (fell, slot[fell]))
        return int(np.minimum(applied, crew.crash)[there].max())

    def _neighbours(self) -> None:
        crew, r = self.crew, 0
        start, down, up = crew.outages
        gone = np.full(self.n, NEVER)
        forever = np.flatnonzero(up >= NEVER)
        gone[np.repeat(np.arange(self.n), np.diff(start))[forever]] = down[forever]
        half = self.cluster.links.duplex == "half"
        begin = np.zeros(self.n, np.int64)
        while begin.min() < crew.horizon_ns:
            ends, who, took = crew.take(begin, self.steps, restart=True)
            self.events.add(GRADIENT, ends, (who,), took)
            wires, count, bad = self._wires_of(r)
            pairs = np.stack([wires.source[::2], wires.target[::2]], axis=1)
            met, way = np.empty(len(pairs), bool), np.empty(len(pairs), np.int64)
            ready = crew.finish
            begin = ready.copy()
            _pairwise(
                pairs, half, wires.source, wires.target, wires.link, wires.latency_ns, wires.wire_ns,
                *self.noise, count, bad, *crew.outages, crew.outage, begin, crew.horizon_ns, met, way,
            )  # fmt: skip
            self._refuse_waiting_for_ever(pairs, ready, begin, gone)
            self.events.add(EXCHANGE, begin[pairs[met, 0]], pairs[met].T, way[met])
            r += 1

    def _refuse_waiting_for_ever(self, pairs, ready, after, gone) -> None:
        stuck = (after[pairs[:, 0]] >= NEVER)[:, None] & (gone[pairs] <= self.crew.horizon_ns)
        for p, side in np.argwhere(stuck):
            away, waiting = pairs[p, side], pairs[p, 1 - side]
            if ready[waiting] <= self.crew.horizon_ns:
                raise RunFailed(
                    f"rounds: worker {waiting} waits for worker {away} since {ready[waiting] / 1e9:g} s, which is down "
                    f"for good since {gone[away] / 1e9:g} s. Use barrier = 'global', which leaves it out."
                )
