"""A trace that is drawn again instead of kept: its length is bounded by time, not by memory. No JAX here.

A timeline is deterministic. The first pass goes through it for what must be known before the first number: how many events
there are, where the records lie, how many slots are open at once, who took how many gradients, the hash. The second hands
out *windows*, which are planned and run one after the other. Where a window holds whole segments (what lies between two
records) its rows are those of the whole trace's plan; a longer segment is cut, and levels begin again at the cut.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from decentral.engine.plan import SlotBook, sampled_events
from decentral.engine.trace import ColumnHash, Op, Replica, Trace, realised, replica_shifted
from decentral.protocol.base import Source
from decentral.topology.network import Topology

WINDOW_EVENTS = 2**20
"""Events that are planned together (at least eight per worker): about 200 MB of trace and plan."""
PIECE_EVENTS = 2**18
"""Events that are drawn together, of all replicas."""


def window_events(total_workers: int) -> int:
    """Events of a window at most."""
    return max(WINDOW_EVENTS, 8 * total_workers)


class Marks(NamedTuple):
    """Where the records lie.

    Attributes:
        times_s: ``(replicas, records)`` seconds; None where ``events`` are given.
        values: what is compared with the time of an event, or with its share of its replica's horizon; numbers of events.
        kind: ``"time"``, ``"share"`` or ``"events"``.
    """

    times_s: np.ndarray | None
    values: np.ndarray
    kind: str

    def before(self, trace: Trace, first: int) -> np.ndarray:
        """``(records,)``: of a piece's events, those before each record; ``first``: events before the piece."""
        if self.kind == "events":
            return np.clip(self.values - first, 0, len(trace))
        return np.searchsorted(
            trace.time_s if self.kind == "time" else trace.progress, self.values, side="right"
        )


class Window(NamedTuple):
    """Consecutive events.

    Attributes:
        trace: with slot numbers instead of element numbers.
        first: events before.
        barriers: its records, as numbers of its events that are done by then.
        first_barrier: records before.
    """

    trace: Trace
    first: int
    barriers: np.ndarray
    first_barrier: int


class Stream:
    """What is known of a trace that is not kept, and its windows. Stands where a run asks a :class:`Trace` for totals.

    Args:
        sources: one per replica.
        seeds: of the replicas.
        marks: ``marks(horizons_s, one_horizon)`` says where the records lie.

    Attributes:
        replicas, ops, n_workers, banks: as of a trace.
        counts, gradients_of_workers, hashes: as of a trace.
        times_s, events: of the records, as ``Record.schedule`` gives them.
        totals: name -> float64 ``(replicas, records + 1)``, see :func:`count_events`.
        slots: sizes of the banks of slots.
        sample: the beginning, for :func:`decentral.engine.plan.choose_widths`.
    """

    banks: tuple[tuple[str, int], ...] = ()
    duration_s = None

    def __init__(
        self, sources: Sequence[Source], seeds: Sequence[int], marks: Callable[[np.ndarray, bool], Marks]
    ) -> None:
        self._sources = tuple(sources)
        self.replicas = tuple(
            Replica(int(seed), source.horizon_s) for seed, source in zip(seeds, sources, strict=True)
        )
        first = next(self._sources[0].pieces(1))
        self.ops: tuple[Op, ...] = first.ops
        self.n_workers: int = first.n_workers
        if any(op.is_group for op in self.ops):
            raise NotImplementedError("sections of a window that is not the whole")
        self._read(marks(np.array([replica.horizon_s for replica in self.replicas]), self.one_horizon))

    def _read(self, marks: Marks) -> None:
        """The first pass."""
        book, hashes, meetings = SlotBook(), [ColumnHash() for _ in self.replicas], _Meetings(self)
        self.events = np.zeros(len(marks.values), np.int64)
        self.gradients_of_workers = np.zeros(self.total_workers, np.int64)
        numbers, times_s, sample = np.zeros(len(self.ops), np.int64), [], []
        self._length, totals = 0, None
        for piece in self._merged(hashes):
            before = marks.before(piece, self._length)
            segment = np.searchsorted(before, np.arange(len(piece)), side="right")
            counted = count_events(piece, segment, len(before) + 1)
            totals = counted if totals is None else {name: totals[name] + counted[name] for name in totals}
            if marks.kind == "events":
                here = (marks.values > self._length) & (marks.values <= self._length + len(piece))
                times_s.append(piece.time_s[marks.values[here] - self._length - 1])
            self.events += before
            numbers += np.bincount(piece.op, minlength=len(self.ops))
            self.gradients_of_workers += piece.gradients_of_workers
            meetings.add(piece)
            numbered = dataclasses.replace(piece, operands=book.assign(piece))
            if sum(map(len, sample)) < sampled_events(self.total_workers):
                sample.append(numbered)
            self._length += len(piece)
        assert totals is not None
        self.totals, self.sample, self.slots = totals, _joined(sample), dict(sorted(book.sizes.items()))
        self.counts = {op.name: int(number) for op, number in zip(self.ops, numbers, strict=True)}
        self.hashes = tuple(
            each.hexdigest(self.sample, replica.horizon_s)
            for each, replica in zip(hashes, self.replicas, strict=True)
        )
        if marks.kind == "events":
            at_zero = np.zeros(int((marks.values == 0).sum()))
            found = np.concatenate([at_zero, *times_s])
            self.times_s = np.broadcast_to(found, (len(self.replicas), len(found)))
        else:
            assert marks.times_s is not None
            self.times_s = marks.times_s
        self._meetings = meetings.weights

    # -- what a trace says too -----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._length

    @property
    def total_workers(self) -> int:
        """As of a trace."""
        return self.n_workers * len(self.replicas)

    @property
    def horizon_s(self) -> float:
        """As of a trace."""
        return max(replica.horizon_s for replica in self.replicas)

    @cached_property
    def one_horizon(self) -> bool:
        """As of a trace."""
        return len({replica.horizon_s for replica in self.replicas}) == 1

    def realised_rates(self) -> dict[str, float]:
        """As of a trace."""
        span = sum(replica.horizon_s for replica in self.replicas) * self.n_workers or np.inf
        sums = {name: float(values.sum()) for name, values in self.totals.items()}
        return {
            "gradient": sums["gradients"] / span,
            "exchange": 2 * sums["exchanges"] / span,
            "message": sums["messages"] / span,
        }

    def realised_topology(self, unit_s: float = 1.0, replica: int = 0) -> Topology | None:
        """As of a trace."""
        weights = self._meetings[replica]
        if not weights.nnz or not self.replicas[replica].horizon_s:
            return None
        met = weights.tocoo()
        return realised(
            self.n_workers,
            np.stack([met.row, met.col], 1),
            met.data,
            self.replicas[replica].horizon_s,
            unit_s,
        )

    # -- windows -------------------------------------------------------------------------------------------------------

    @cached_property
    def cuts(self) -> np.ndarray:
        """Int64 ``(windows + 1,)``: events before each window. Between records, where they are not too far apart."""
        most = window_events(self.total_workers)
        cuts, ends = [0], [*np.unique(self.events).tolist(), len(self)]
        for before, end in zip([0, *ends], ends, strict=False):
            if end - cuts[-1] <= most:
                continue
            if end - before <= most:
                cuts.append(before)
                continue
            while end - cuts[-1] > most:
                cuts.append(cuts[-1] + most)
        return np.array([*cuts, len(self)], np.int64)

    def windows(self) -> Iterator[Window]:
        """All events, in order; drawn once more."""
        book, cuts = SlotBook(), self.cuts
        # A record is in the window in which the last event before it is.
        of_window = np.searchsorted(cuts[1:-1], self.events, side="left")
        held: list[Trace] = []
        pieces, drawn = self._merged(), 0
        for number, (first, end) in enumerate(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)):
            while drawn < end or not held:
                held.append(next(pieces))
                drawn += len(held[-1])
            whole = _joined(held)
            here, rest = _split(whole, end - first)
            held = [rest] if len(rest) else []
            mine = np.flatnonzero(of_window == number)
            numbered = dataclasses.replace(here, operands=book.assign(here))
            yield Window(
                numbered, first, self.events[mine] - first, int(mine[0]) if mine.size else int(
                    (of_window < number).sum()
                ),
            )  # fmt: skip

    # -- pieces --------------------------------------------------------------------------------------------------------

    def _merged(self, hashes: Sequence[ColumnHash] | None = None) -> Iterator[Trace]:
        """The events of all replicas in the order of ``merge``, element numbers of slots being each replica's own."""
        count = len(self.replicas)

        def drawn(index: int) -> Iterator[Trace]:
            for piece in self._sources[index].pieces(max(1, PIECE_EVENTS // count)):
                if hashes is not None:
                    hashes[index].add(piece)
                shifted = replica_shifted(piece, index)
                yield dataclasses.replace(shifted, replicas=self.replicas, duration_s=None)

        if count == 1:
            yield from drawn(0)
            return
        running = [drawn(index) for index in range(count)]
        held = [next(each) for each in running]
        ended = [False] * count
        while True:
            keys = [part.time_s if self.one_horizon else part.progress for part in held]
            # Beyond the last event that is known of a replica it may have others.
            known = [keys[r][-1] if len(keys[r]) else -np.inf for r in range(count) if not ended[r]]
            border = min(known, default=np.inf)
            split = [
                _split(part, len(key) if not known else int(np.searchsorted(key, border, side="left")))
                for part, key in zip(held, keys, strict=True)
            ]
            ready = _joined([part for part, _ in split])
            order = np.argsort(ready.time_s if self.one_horizon else ready.progress, kind="stable")
            yield dataclasses.replace(
                ready, time_s=ready.time_s[order], op=ready.op[order], operands=ready.operands[order]
            )
            if not known:
                return
            for r in range(count):
                rest = split[r][1]
                if not ended[r] and (not len(keys[r]) or keys[r][-1] == border):
                    more = next(running[r], None)
                    ended[r] = more is None
                    rest = rest if more is None else _joined([rest, more])
                held[r] = rest


class _Meetings:
    """How often pairs of workers met in each replica: the weights of ``Trace.realised_topology``, from pieces."""

    def __init__(self, stream: Stream) -> None:
        n = stream.n_workers
        self.weights = [sp.csr_matrix((n, n)) for _ in stream.replicas]
        # Of exchanges under way: an end's slot, and the pair.
        self._open = [(np.zeros(0, np.int64), np.zeros((0, 2), np.int64)) for _ in stream.replicas]

    def add(self, piece: Trace) -> None:
        """The next events."""
        n, names = piece.n_workers, [op.name for op in piece.ops]
        for replica in range(len(self.weights)):
            rows = piece.replica_of_event == replica
            for name in {"exchange", "exchange_start"} & set(names):
                met = rows & (piece.op == names.index(name))
                pairs = np.sort(piece.operands[met, :2].astype(np.int64) - replica * n, axis=1)
                self._count(replica, pairs, 1.0)
                if name == "exchange_start":
                    self._cancel(replica, pairs, piece.operands[met, 2:4], piece, names, rows)

    def _cancel(self, replica: int, pairs, slots, piece: Trace, names: list[str], rows) -> None:
        """Half an exchange less for each end that was cancelled."""
        opened, whose = self._open[replica]
        opened = np.concatenate([opened, slots.ravel().astype(np.int64)])
        whose = np.concatenate([whose, np.repeat(pairs, 2, axis=0)])
        cancelled = piece.operands[rows & (piece.op == names.index("cancel")), 1]
        self._count(replica, whose[np.isin(opened, cancelled)], -0.5)
        done = piece.operands[rows & (piece.op == names.index("exchange_commit")), 1]
        left = ~np.isin(opened, np.concatenate([cancelled, done]))
        self._open[replica] = opened[left], whose[left]

    def _count(self, replica: int, pairs: np.ndarray, weight: float) -> None:
        n = self.weights[replica].shape[0]
        entries = np.full(len(pairs), weight), (pairs[:, 0], pairs[:, 1])
        self.weights[replica] = self.weights[replica] + sp.coo_matrix(entries, shape=(n, n)).tocsr()


def count_events(
    trace: Trace, segment: np.ndarray, segments: int, **further: np.ndarray | None
) -> dict[str, np.ndarray]:
    """What was done in each segment: name -> float64 ``(replicas, segments)``.

    Args:
        trace: the events.
        segment: ``(events,)``, the segment of each.
        segments: how many there are.
        further: ``(events,)`` quantities to be added up too.
    """
    shape = (len(trace.replicas), segments)
    flat = np.ravel_multi_index((trace.replica_of_event, segment), shape)
    is_exchange = np.array([op.instruction in ("exchange", "exchange_start") for op in trace.ops])
    of_event = {
        "gradients": trace.gradients_of_events,
        "updates": np.minimum(trace.gradients_of_events, 1),
        "exchanges": is_exchange[trace.op],
        "messages": trace.messages_of_events,
    } | {name: values for name, values in further.items() if values is not None}
    return {
        name: np.bincount(flat, values.astype(float), int(np.prod(shape))).reshape(shape)
        for name, values in of_event.items()
    }


def _joined(parts: Sequence[Trace]) -> Trace:
    if len(parts) == 1:
        return parts[0]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
    return dataclasses.replace(parts[0], **columns)


def _split(trace: Trace, events: int) -> tuple[Trace, Trace]:
    columns = {name: getattr(trace, name) for name in _COLUMNS}
    first, rest = (
        dataclasses.replace(trace, **{name: column[part] for name, column in columns.items()})
        for part in (slice(None, events), slice(events, None))
    )
    return first, rest


_COLUMNS = ("time_s", "op", "operands")
