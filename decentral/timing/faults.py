"""What goes wrong: messages that are lost, workers that are down, networks that fall apart.

Losses are keyed by (seed, ``Purpose.LOSS``, sender, receiver, number of the message on that link), outages by
(seed, ``Purpose.OUTAGE``, worker, number of the outage). Times are integer nanoseconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit

from decentral.errors import InvalidInput, check_integer, check_number, suggest
from decentral.timing.compute import LONGEST_NS, check_draws, to_ns
from decentral.timing.tapes import Purpose, _uniform, philox

ON_RETURN = ("keep", "reset", "copy")
_LOSS, _OUTAGE = int(Purpose.LOSS), int(Purpose.OUTAGE)


@njit(cache=True)
def lost(loss, burst_start, burst_end, burst_loss, seed, i, j, count, bad):
    """Whether message ``count`` on link i -> j is lost, by Gilbert and Elliott's chain. For numba loops.

    The chain of a link is stepped before each message and starts in its stationary distribution.

    Args:
        loss: with the next three, :attr:`Faults.loss_numbers`.
        burst_start: see :class:`Faults`.
        burst_end: see :class:`Faults`.
        burst_loss: see :class:`Faults`.
        seed: the tape's seed.
        i: the sender.
        j: the receiver.
        count: number of the message among those from i to j, from 0 and without gaps.
        bad: the chain's state after the message before; anything for message 0.

    Returns:
        ``(lost, bad)``: two booleans.
    """
    if loss == 0.0 and burst_start == 0.0:
        return False, False
    block = philox(
        np.uint64(seed), np.uint64(_LOSS), np.uint64(count), np.uint64(i), np.uint64(j), np.uint64(0)
    )
    step, chance = _uniform(block[0]), _uniform(block[1])
    if count == 0:
        now_bad = step < burst_start / (burst_start + burst_end)
    elif bad:
        now_bad = step >= burst_end
    else:
        now_bad = step < burst_start
    return chance < (burst_loss if now_bad else loss), now_bad


@njit(cache=True)
def separated(from_ns, until_ns, first, i, j, time_ns):
    """Whether a partition is between workers i and j at a time (from <= time < until). For numba loops.

    The first three are what :meth:`Faults.partition_arrays` returns.
    """
    for p in range(first.size):  # noqa: SIM110  compiled
        if from_ns[p] <= time_ns < until_ns[p] and (i < first[p]) != (j < first[p]):
            return True
    return False


@njit(inline="always")
def _wait_ns(word, mean_s):
    wait = -np.log1p(-_uniform(word)) * mean_s * 1e9
    return np.int64(min(max(np.rint(wait), 1.0), float(LONGEST_NS)))


@njit(cache=True)
def _crashes(seed, worker, up_s, down_s, horizon_ns, down, up):
    """Outages of one worker that start before the horizon; written where there is room. Returns how many."""
    now, count = np.int64(0), 0
    while True:
        # Draws 2 count and 2 count + 1: the time up, then the time down.
        block = philox(
            np.uint64(seed),
            np.uint64(_OUTAGE),
            np.uint64(count // 2),
            np.uint64(worker),
            np.uint64(worker),
            np.uint64(0),
        )
        which = 2 * (count % 2)
        crash = now + _wait_ns(block[which], up_s)
        if crash >= horizon_ns:
            return count
        now = min(crash + _wait_ns(block[which + 1], down_s), LONGEST_NS)
        if down.size:
            down[count], up[count] = crash, now
        count += 1


def _end_ns(until_s: float) -> int:
    return LONGEST_NS if until_s * 1e9 > LONGEST_NS else round(until_s * 1e9)


def _check_interval(name: str, interval: tuple, from_s: float, until_s: float) -> None:
    for seconds in (from_s, until_s):
        if seconds != math.inf:
            check_number(name, seconds, 0, math.inf)
    if not from_s < until_s or from_s == math.inf:
        raise InvalidInput(name, interval, "an interval that ends after it starts, in seconds")


def _merged(intervals: np.ndarray) -> np.ndarray:
    """Sorted, with those that overlap or touch made one; (k, 2)."""
    intervals = intervals[np.lexsort(intervals.T[::-1])]
    ends = np.maximum.accumulate(intervals[:, 1])
    new = np.concatenate([[True], intervals[1:, 0] > ends[:-1]])
    last = np.append(np.flatnonzero(new)[1:] - 1, len(intervals) - 1)
    return np.stack([intervals[new, 0], ends[last]], axis=1)


@dataclass(frozen=True)
class Faults:
    """Everything that goes wrong; nothing by default.

    Losses follow a chain of two states per directed link, stepped once per message (Gilbert 1960, Elliott 1963,
    recalled): bursts take burst_start / (burst_start + burst_end) of the messages.

    Args:
        loss: probability that a message is lost, outside bursts.
        burst_start: probability, per message, that a burst starts.
        burst_end: probability, per message, that a burst ends.
        burst_loss: probability that a message is lost in a burst.
        crash_every_s: mean time a worker is up, exponential, seconds; infinite for never a crash.
        down_s: mean time it is then down, exponential, seconds.
        down: outages to have besides: (worker, from_s, until_s), until_s may be infinite.
        partitions: (from_s, until_s, k): in that time workers below k and the others do not reach each other.
        on_return: a worker that comes back has the state it had ("keep"), the initial one ("reset") or that of a
            neighbour ("copy").
    """

    loss: float = 0.0
    burst_start: float = 0.0
    burst_end: float = 1.0
    burst_loss: float = 0.0
    crash_every_s: float = math.inf
    down_s: float = 0.0
    down: tuple[tuple[int, float, float], ...] = ()
    partitions: tuple[tuple[float, float, int], ...] = ()
    on_return: str = "keep"

    def __post_init__(self) -> None:
        for name in ("loss", "burst_start", "burst_end", "burst_loss"):
            check_number(f"cluster.faults.{name}", getattr(self, name), 0, 1)
        if self.loss == 1:
            raise InvalidInput("cluster.faults.loss", self.loss, "below 1", "With 1 no message ever arrives.")
        if self.burst_end == 0:
            raise InvalidInput("cluster.faults.burst_end", 0.0, "above 0", "A burst that starts must end.")
        if self.crash_every_s != math.inf:
            check_number("cluster.faults.crash_every_s", self.crash_every_s, 0, math.inf, above=True)
            advice = (
                "Workers that crash and do not return are soon all down; for some of them use faults.down."
            )
            if self.down_s == math.inf:
                raise InvalidInput("cluster.faults.down_s", self.down_s, "a finite number", advice)
        check_number("cluster.faults.down_s", self.down_s, 0, math.inf)
        for name, words in (("down", "(worker, from_s, until_s)"), ("partitions", "(from_s, until_s, k)")):
            value = getattr(self, name)
            if not isinstance(value, tuple) or any(not isinstance(v, tuple) or len(v) != 3 for v in value):
                raise InvalidInput(f"cluster.faults.{name}", value, f"a list of {words}")
        for outage in self.down:
            check_integer("cluster.faults.down", outage[0], 0)
            _check_interval("cluster.faults.down", outage, outage[1], outage[2])
        for partition in self.partitions:
            _check_interval("cluster.faults.partitions", partition, partition[0], partition[1])
            check_integer("cluster.faults.partitions", partition[2], 1)
        if self.on_return not in ON_RETURN:
            advice = suggest(str(self.on_return), ON_RETURN)
            raise InvalidInput("cluster.faults.on_return", self.on_return, "a known way to return", advice)

    @property
    def loss_numbers(self) -> tuple[float, float, float, float]:
        """The first four arguments of :func:`lost`."""
        return float(self.loss), float(self.burst_start), float(self.burst_end), float(self.burst_loss)

    @property
    def mean_loss(self) -> float:
        """Share of all messages that is lost in the long run."""
        bad = self.burst_start / (self.burst_start + self.burst_end)
        return bad * self.burst_loss + (1 - bad) * self.loss

    def outages(self, seed: int, n: int, horizon_s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """When each worker is down: those outages that start before the horizon.

        Args:
            seed: of the tapes.
            n: workers.
            horizon_s: outages may end later.

        Returns:
            ``(start, down_ns, up_ns)``: worker i is down from ``down_ns[k]`` until ``up_ns[k]`` for k in
            ``start[i] .. start[i + 1] - 1``, sorted and apart, at least 1 ns long; int64, shapes (n + 1,), (k,), (k,).
            An end beyond ``LONGEST_NS`` is ``LONGEST_NS``.

        Raises:
            InvalidInput: ``down`` names a worker there is not, or has all workers down from some time until the horizon.
        """
        horizon_ns = to_ns("stop", horizon_s)
        explicit = [[] for _ in range(n)]
        for worker, from_s, until_s in self.down:
            check_integer("cluster.faults.down", worker, 0, n - 1)
            begin = round(from_s * 1e9)
            if begin < horizon_ns:
                explicit[worker].append((begin, max(_end_ns(until_s), begin + 1)))
        given = [
            _merged(np.array(mine, np.int64)) if mine else np.empty((0, 2), np.int64) for mine in explicit
        ]
        if all(len(mine) and mine[-1, 1] >= horizon_ns for mine in given):
            raise InvalidInput(
                "cluster.faults.down", self.down, "a worker that is up at the end", "All are down then."
            )
        if self.crash_every_s != math.inf:
            expected = n * horizon_s / (self.crash_every_s + self.down_s)
            check_draws("cluster.faults.crash_every_s", self.crash_every_s, expected)
            for worker in range(n):
                arguments = seed, worker, float(self.crash_every_s), float(self.down_s), horizon_ns
                crashes = np.empty((2, _crashes(*arguments, *np.empty((2, 0), np.int64))), np.int64)
                if crashes.size:
                    _crashes(*arguments, *crashes)
                    given[worker] = _merged(np.concatenate([given[worker], crashes.T]))
        start = np.concatenate([[0], np.cumsum([len(mine) for mine in given])])
        every = np.concatenate(given)
        return start, np.ascontiguousarray(every[:, 0]), np.ascontiguousarray(every[:, 1])

    def partition_arrays(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``(from_ns, until_ns, k)``, int64, shapes (partitions,): the first three arguments of :func:`separated`.

        Raises:
            InvalidInput: a k that leaves one side without a worker.
        """
        for _, _, k in self.partitions:
            check_integer("cluster.faults.partitions", k, 1, n - 1)
        table = np.array([(_end_ns(a), _end_ns(b), k) for a, b, k in self.partitions], np.int64).reshape(
            -1, 3
        )
        from_ns, until_ns, first = np.ascontiguousarray(table.T)
        return from_ns, until_ns, first
