"""The plan: which events may be computed together. NumPy and numba, no JAX, no idea of any algorithm.

An op declares which operands it reads and which it writes. Inside a *row* everything is read before anything is
written, so a reader comes at least one row after the last writer of what it reads, and a writer at least one row after
the last writer and not before the last reader. Reads commute. Within those bounds an event takes the first row that has
room for its op: rows have a fixed width per op, so every row is one array program. A *barrier* (a record time) starts
a new row: everything before it is done, nothing after it has begun.

Over several devices the workers lie in *shards*, equal blocks of consecutive ones, and so do the elements of every bank. An event
is done where its first operand lies, and what it opens is kept there; a row has as many places for every shard.

A *group op* (a mixing matrix, an all-reduce) takes all workers of its replica and is no part of a row. It ends a
*section*: the rows of a section are done, then its group ops, one per replica at most, at once. Without group ops a
section is what lies between two barriers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from decentral.engine.trace import Op, Trace
from decentral.engine.units import Units
from decentral.errors import InvalidInput

ROW_BYTES = 2**21
"""Bytes the events of a row should not exceed: beyond the cache a wider row only moves more memory."""

SAMPLED_EVENTS = 2**17
"""Events from the start of a trace that tell how many can run at once (at least eight per worker)."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Rows of events.

    Attributes:
        trace: what is planned.
        widths: events of each op that one row holds, of one shard.
        shards: equal blocks of workers, and of the elements of every bank, each on a device of its own.
        event: int64 ``(events,)``, event numbers ordered by row.
        row_start: int64 ``(rows + 1,)``: row r holds ``event[row_start[r] : row_start[r + 1]]``.
        column: int32 ``(events,)``: the place of an event among the events of its op in its row (by event number); those of
            shard k are ``k * width ... (k + 1) * width - 1``.
        elapsed: float64 ``(events, arity)``: time since the operand was last written (0 for slots), by event number, in the
            unit of ``flow``.
        count: uint32 ``(events, arity)``: earlier events of the same op on the same operand, by event number.
        operands: int32 ``(events, arity)``: as in the trace, with slot numbers instead of element numbers.
        slots: size of each bank of slots: the largest number of elements open at once; of several shards, as many for each
            as the fullest needs.
        section_rows: int64 ``(sections + 1,)``: section s is rows ``section_rows[s] ... section_rows[s + 1] - 1``, then its
            group ops.
        segment_sections: int64 ``(barriers + 2,)``: segment b is sections ``segment_sections[b] ... segment_sections[b + 1] -
            1``; barrier b stands at its end, and what follows the last barrier is the last segment.
        group_event: int64 ``(sections, replicas)``: the group op of each replica that ends the section, -1 for none.
        group_elapsed: float64 ``(group events, workers of a replica)``: the same for each worker (or the server) of a group
            event, in the order of the group events in the trace.
        entry_count: uint32: for every entry of every group event's table, earlier gradients of its sender by the same op.
        barriers: int64 ``(barriers,)``: events done before each barrier.
        last_write_s: float64 ``(barriers, elements that stay)``: when each was last written before the barrier (0 if never);
            workers, then servers, then the trace's other banks.
    """

    trace: Trace
    widths: tuple[int, ...]
    event: np.ndarray
    row_start: np.ndarray
    column: np.ndarray
    elapsed: np.ndarray
    count: np.ndarray
    operands: np.ndarray
    slots: dict[str, int]
    section_rows: np.ndarray
    segment_sections: np.ndarray
    group_event: np.ndarray
    group_elapsed: np.ndarray
    entry_count: np.ndarray
    barriers: np.ndarray
    last_write_s: np.ndarray
    shards: int = 1

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.row_start) - 1

    def fill(self) -> float:
        """Share of the places in all rows that hold an event."""
        return len(self.event) / max(1, self.n_rows * self.shards * sum(self.widths))

    @property
    def segment_rows(self) -> np.ndarray:
        """Int64 ``(barriers + 2,)``: the first row of each segment, and the number of rows."""
        return self.section_rows[self.segment_sections]

    @property
    def bank_sizes(self) -> dict[str, int]:
        """Elements of every bank of the rows."""
        return {**lasting_banks(self.trace), **self.slots}

    @cached_property
    def _group_number(self) -> np.ndarray:
        """Int64 ``(events,)``: a group event's number among the group events."""
        return np.cumsum(_is_group(self.trace)) - 1

    @cached_property
    def _first_entry(self) -> np.ndarray:
        """Int64 ``(group events + 1,)``: where the entry counts of each group event begin."""
        tables = _tables(self.trace)
        return np.concatenate([[0], np.cumsum(self.trace.groups.sizes[tables])]).astype(np.int64)

    @cached_property
    def group_entries(self) -> dict[str, int]:
        """The entries of the largest table of every group op that occurs."""
        return group_entries(self.trace)

    def group_rows(
        self, first: int, last: int, capacity: int, dtype: np.dtype
    ) -> dict[str, dict[str, np.ndarray]]:
        """The group ops of sections ``first ... last - 1`` as arrays of one padded shape.

        Returns:
            For each group op that occurs, with a first axis of ``capacity`` sections and a second of replicas: ``active``
            (this section ends with one), ``elapsed`` ``(..., workers)``, ``count`` (earlier events of the op in the
            replica), ``slot`` (the element it closes, of an op that closes one), and for every entry of its table
            ``receiver``, ``sender``, ``weight``, ``entry_count``. Entries beyond the table have weight 0 and a receiver that
            is no worker.
        """
        trace, arrays = self.trace, {}
        for name, entries in self.group_entries.items():
            code = [op.name for op in trace.ops].index(name)
            event = np.full((capacity, len(trace.replicas)), -1, np.int64)
            event[: last - first] = self.group_event[first:last]
            active = (event >= 0) & (trace.op[event] == code)
            number = self._group_number[event]
            shape = (*event.shape, entries)
            receiver, sender = np.full(shape, trace.n_workers, np.int32), np.zeros(shape, np.int32)
            weight, entry_count = np.zeros(shape, dtype), np.zeros(shape, np.uint32)
            _fill_groups(
                active, trace.operands[event, _group_position(trace.ops[code])], number, trace.groups.start,
                trace.groups.receiver, trace.groups.sender, trace.groups.weight, self._first_entry, self.entry_count,
                receiver, sender, weight, entry_count,
            )  # fmt: skip
            arrays[name] = {
                "active": active,
                "elapsed": np.where(active[..., None], self.group_elapsed[number], 0.0).astype(dtype),
                "count": self.count[event, 0],
                "slot": self.operands[event, closed_position(trace.ops[code])],
                "receiver": receiver,
                "sender": sender,
                "weight": weight,
                "entry_count": entry_count,
            }
        return arrays

    def rows(self, first: int, last: int, capacity: int, dtype: np.dtype) -> dict[str, dict[str, np.ndarray]]:
        """Rows ``first ... last - 1`` as arrays of one padded shape.

        Args:
            first: first row.
            last: one past the last row.
            capacity: rows of the result; those beyond ``last - first`` hold nothing but padding.
            dtype: of the elapsed times.

        Returns:
            For each op that occurs: ``operands`` int32, ``elapsed`` and ``count`` uint32, each ``(capacity, width, arity of
            the op)``, the width that of all shards. An empty place has operands beyond the end of their bank, all different
            within a row, so that a scatter may be told its indices are unique and drop them.
        """
        arrays, used = {}, dict.fromkeys(self.bank_sizes, 0)
        for code, op in enumerate(self.trace.ops):
            width, arity = self.widths[code] * self.shards, len(op.operands)
            if not width:
                continue
            beyond = np.empty(arity, np.int32)
            for position, operand in enumerate(op.operands):
                beyond[position] = self.bank_sizes[operand.bank] + used[operand.bank]
                used[operand.bank] += width
            shape = (capacity, width, arity)
            operands, elapsed = np.empty(shape, np.int32), np.zeros(shape, dtype)
            count = np.zeros(shape, np.uint32)
            _fill(
                *(self.event, self.row_start, first, last, self.trace.op, code, self.column, beyond),
                *(self.operands, self.elapsed, self.count, operands, elapsed, count),
            )
            arrays[op.name] = {"operands": operands, "elapsed": elapsed, "count": count}
        return arrays


@dataclass(eq=False)
class Carry:
    """What the plan of one window of a trace leaves to that of the next. Only of traces without group ops.

    Attributes:
        slots: size of each bank of slots, over all windows.
        last_write_s: float64 ``(elements,)``: when each element of every bank was last written.
        seen: uint32 ``(ops, elements)``: events of each op on it.
    """

    slots: dict[str, int]
    last_write_s: np.ndarray
    seen: np.ndarray

    @classmethod
    def start(cls, trace: Trace, slots: dict[str, int]) -> Carry:
        """Before the first window; ``trace``: any one of them."""
        elements = sum(lasting_banks(trace).values()) + sum(slots.values())
        return cls(slots, np.zeros(elements), np.zeros((len(trace.ops), elements), np.uint32))


def make_plan(
    trace: Trace,
    barriers: Sequence[int] | np.ndarray = (),
    widths: Sequence[int] | None = None,
    event_bytes: float | Sequence[float] = 0,
    units: Units = Units(1.0, 1.0, 1.0),  # noqa: B008  frozen
    shards: int = 1,
    carry: Carry | None = None,
) -> Plan:
    """Pack a trace into rows.

    Args:
        trace: the events.
        barriers: event counts, not decreasing: everything before event ``barriers[b]`` is done at barrier b.
        widths: events per row and shard for each op; chosen by :func:`choose_widths` when missing.
        event_bytes: bytes an event moves, for that choice: one number, or one per op.
        units: seconds in a unit of ``flow``'s time.
        shards: equal blocks of consecutive workers.
        carry: of the window before, brought up to date; the trace is then one window, its slot operands are slot numbers, and
            ``widths`` are given.

    Raises:
        InvalidInput: workers that do not make as many equal shards, barriers out of order, widths below 1, an element used before
            it is opened or after it is closed.
    """
    barriers_array = np.asarray(barriers, np.int64)
    if barriers_array.size and (
        barriers_array[0] < 0 or barriers_array[-1] > len(trace) or (np.diff(barriers_array) < 0).any()
    ):
        raise InvalidInput("barriers", list(barriers)[:5], f"event counts in order, from 0 to {len(trace)}")
    check_shards(trace, shards)
    operands, slots = assign_slots(trace, shards) if carry is None else (trace.operands, carry.slots)
    resources = _resources(trace, slots)
    if widths is None:
        chosen = _choose(trace, trace.counts, operands, resources, barriers_array, event_bytes, shards)
    else:
        chosen = tuple(int(width) for width in widths)
    if (
        len(chosen) != len(trace.ops)
        or min(chosen) < 0
        or any(
            width == 0 and trace.counts[op.name] and not op.is_group and not op.is_mark
            for width, op in zip(chosen, trace.ops, strict=True)
        )
    ):
        raise InvalidInput(
            "widths", chosen, f"{len(trace.ops)} integers, at least 1 for every op that occurs"
        )
    sections, carry = _sections(trace, barriers_array), carry or Carry.start(trace, slots)
    packed = _pack(
        *(trace.time_s, trace.op, operands, *resources, carry.last_write_s, carry.seen),
        *(*_lanes(trace, np.asarray(chosen, np.int32), shards), sections, *_group_tables(trace)),
        *(len(barriers_array), trace.n_workers, len(trace.replicas)),
    )
    row, column, elapsed_s, count, section_rows, last_write_s, group_event, group_elapsed_s, entry_count = (
        packed
    )
    event, row_start = _order_by_row(row, int(section_rows[-1]))
    return Plan(
        trace,
        chosen,
        event,
        row_start,
        column,
        elapsed_s / units.of_event,
        count,
        operands,
        slots,
        section_rows,
        sections.first,
        group_event,
        group_elapsed_s / units.of_group,
        entry_count,
        barriers_array,
        last_write_s,
        shards,
    )


def check_shards(trace: Trace, shards: int) -> None:
    """Refuse workers that do not make this many equal blocks.

    Raises:
        InvalidInput: they do not.
    """
    if shards < 1 or trace.total_workers % shards:
        seeds = len(trace.replicas)
        of = f", {trace.n_workers} workers x {seeds} seeds" if seeds > 1 else " workers"
        advice = "They are shared out in equal blocks."
        raise InvalidInput("devices.count", shards, f"a divisor of {trace.total_workers}{of}", advice)


def shard_of_event(trace: Trace, shards: int) -> np.ndarray:
    """Int64 ``(events,)``: the shard that an event's first operand, a worker, lies in."""
    return trace.operands[:, 0] // (trace.total_workers // shards)


def _lanes(trace: Trace, widths: np.ndarray, shards: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What shares the places of a row: events of one op and one shard. Each event's lane; their widths, and first places."""
    if shards == 1:
        return trace.op, widths, np.zeros_like(widths)
    lane = trace.op.astype(np.int32) * shards + shard_of_event(trace, shards).astype(np.int32)
    first = widths[:, None] * np.arange(shards, dtype=np.int32)
    return lane, np.repeat(widths, shards), first.ravel()


class _Sections(NamedTuple):
    """Which section an event is in, and the order in which events are packed.

    Attributes:
        order: int64 ``(events,)``: by section, then as in the trace; without marks, which are in no row.
        of_event: int64 ``(events,)``.
        first: int64 ``(barriers + 2,)``: the first section of each segment, and the number of sections.
    """

    order: np.ndarray
    of_event: np.ndarray
    first: np.ndarray


def _sections(trace: Trace, barriers: np.ndarray) -> _Sections:
    segment = np.searchsorted(barriers, np.arange(len(trace)), side="right")
    group = _is_group(trace)
    done_by_rows = np.array([not op.is_mark for op in trace.ops], bool)[trace.op]
    if not group.any():
        return _Sections(np.flatnonzero(done_by_rows), segment, np.arange(len(barriers) + 2))
    replica = trace.replica_of_event
    done = np.zeros(len(trace), np.int64)
    for index in range(len(trace.replicas)):
        mine = np.flatnonzero(replica == index)
        before = np.cumsum(group[mine]) - group[mine]
        starts = np.searchsorted(segment[mine], np.arange(len(barriers) + 1))
        total = np.concatenate([before, [before[-1] + group[mine[-1]] if mine.size else 0]])
        done[mine] = before - total[starts][segment[mine]]
    # The sections of a segment are as many as the replica with most group ops in it needs, and one for what follows.
    most = np.zeros(len(barriers) + 1, np.int64)
    np.maximum.at(most, segment, done + group)
    first = np.concatenate([[0], np.cumsum(most + 1)])
    of_event = first[segment] + done
    order = np.argsort(of_event, kind="stable")
    return _Sections(order[done_by_rows[order]], of_event, first)


def _is_group(trace: Trace) -> np.ndarray:
    return np.array([op.is_group for op in trace.ops], bool)[trace.op]


def _group_position(op: Op) -> int:
    return next(k for k, operand in enumerate(op.operands) if operand.bank == "group")


def group_entries(trace: Trace) -> dict[str, int]:
    """The entries of the largest table of every group op that occurs."""
    largest = {}
    for code, op in enumerate(trace.ops):
        if op.is_group and trace.counts[op.name]:
            used = np.unique(trace.operands[trace.op == code, _group_position(op)])
            largest[op.name] = int(trace.groups.sizes[used].max())
    return largest


def closed_position(op: Op) -> int:
    """Where a group op names the slot it closes; the first operand where it closes none."""
    return next((k for k, operand in enumerate(op.operands) if operand.closes), 0)


def _tables(trace: Trace) -> np.ndarray:
    """Int64 ``(group events,)``: the table of each group event."""
    group = np.flatnonzero(_is_group(trace))
    position = np.array([_group_position(op) if op.is_group else 0 for op in trace.ops])
    return trace.operands[group, position[trace.op[group]]].astype(np.int64)


def _group_tables(trace: Trace) -> tuple:
    """What the packing needs of group ops: which ops are, which of those work on the server, tables and their entries.

    And how many elements have a clock.
    """
    is_group = np.array([op.is_group for op in trace.ops], np.bool_)
    on_server = np.array([any(o.bank == "server" for o in op.operands) for op in trace.ops], np.bool_)
    clocks = sum(lasting_banks(trace).values())
    return is_group, on_server, _tables(trace), trace.groups.start, trace.groups.sender, clocks


def choose_widths(
    trace: Trace,
    event_bytes: float | Sequence[float] = 0,
    barriers: Sequence[int] | np.ndarray = (),
    counts: dict[str, int] | None = None,
) -> tuple[int, ...]:
    """Events of each op per row.

    Three quarters of what the trace allows at once on average, so that rows are nearly full: its start is planned with
    rows of any width, and the events are divided by the rows that took. A ring gives n/3; a star, where every exchange
    waits for the centre, one exchange and what fits beside it. Fewer where their bytes would leave the cache. Never a
    single operand of a bank: XLA then copies the whole bank at every step.

    Args:
        trace: the events.
        event_bytes: bytes an event moves, state and data: one number, or one per op.
        barriers: as for :func:`make_plan`.
        counts: events of each op, where ``trace`` is only the beginning of the trace.
    """
    operands, slots = assign_slots(trace)
    resources = _resources(trace, slots)
    return _choose(
        trace, counts or trace.counts, operands, resources, np.asarray(barriers, np.int64), event_bytes, 1
    )


def sampled_events(total_workers: int) -> int:
    """Events from the start of a trace that :func:`choose_widths` looks at."""
    return max(SAMPLED_EVENTS, 8 * total_workers)


def _choose(
    trace: Trace, numbers: dict[str, int], operands, resources, barriers, event_bytes, shards
) -> tuple[int, ...]:
    in_rows = np.array([not op.is_group and not op.is_mark for op in trace.ops])
    counts = np.array([numbers[op.name] for op in trace.ops], float) * in_rows
    if not counts.sum():
        return tuple(int(each) for each in in_rows)
    share = counts / counts.sum()
    stop = min(len(trace), sampled_events(trace.total_workers))
    first = dataclasses.replace(
        trace, time_s=trace.time_s[:stop], op=trace.op[:stop], operands=trace.operands[:stop], duration_s=None
    )
    unlimited, clocks = np.full(len(trace.ops), stop, np.int32), np.zeros(resources[-1])
    seen = np.zeros((len(trace.ops), len(clocks)), np.uint32)
    packed = _pack(
        *(
            first.time_s,
            first.op,
            operands[:stop],
            *resources,
            clocks,
            seen,
            *_lanes(first, unlimited, 1),
            _sections(first, barriers[barriers <= stop]),
        ),
        *(*_group_tables(first), int((barriers <= stop).sum()), trace.n_workers, len(trace.replicas)),
    )
    row, section_rows = packed[0], packed[4]
    filled = np.bincount(row[row >= 0], minlength=max(1, int(section_rows[-1])))
    # Rows that are all equally full stay so; else rows a little narrower than the average are nearly full.
    mean = filled.mean()
    at_once = (mean if filled.max() <= 1.1 * mean else 0.75 * mean) / shards
    arity = np.array([len(op.operands) for op in trace.ops], float)
    mean_bytes = float((share * np.broadcast_to(np.asarray(event_bytes, float), counts.shape)).sum())
    room = ROW_BYTES / mean_bytes if mean_bytes else np.inf
    # An event too large for the cache still beats a row of one operand by far: hence at least two.
    total = max(min(at_once, room), 2.0 / float((share * arity).sum()), 1.0)
    widths = np.where(counts > 0, np.maximum(1, np.rint(total * share)), 0).astype(int)
    # At least two operands of every bank that are read, and that are written: of one, XLA copies the bank.
    single = {name for name, size in lasting_banks(trace).items() if size == 1}
    for bank in {operand.bank for op in trace.ops for operand in op.operands} - {"group", "server"} - single:
        for access in ("reads", "writes"):
            uses = np.array(
                [sum(o.bank == bank and getattr(o, access) for o in op.operands) for op in trace.ops]
            )
            while 0 < (widths * uses).sum() < 2:
                widths[int(np.argmax(counts * (uses > 0)))] += 1
    return tuple(int(width) for width in widths)


def _resources(trace: Trace, slots: dict[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """``(base, reads, writes, elements)``: all banks in one numbering, and what each operand of each op does to its own."""
    sizes = lasting_banks(trace) | slots
    starts = np.cumsum([0, *sizes.values()])
    base_of = dict(zip(sizes, starts.tolist(), strict=False)) | {"group": -1, "unit": -1}
    shape = (len(trace.ops), trace.operands.shape[1])
    base, reads, writes = np.full(shape, -1, np.int64), np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    for code, op in enumerate(trace.ops):
        for position, operand in enumerate(op.operands):
            base[code, position] = base_of[operand.bank]
            reads[code, position], writes[code, position] = operand.reads, operand.writes
    return base, reads, writes, int(starts[-1])


def lasting_banks(trace: Trace) -> dict[str, int]:
    """Elements of all replicas of every bank whose elements stay: workers, servers, and the trace's other banks."""
    replicas = len(trace.replicas)
    sizes = {"worker": trace.total_workers, "server": replicas}
    return sizes | {name: size * replicas for name, size in trace.banks}


def assign_slots(trace: Trace, shards: int = 1) -> tuple[np.ndarray, dict[str, int]]:
    """Give every element of a slot bank a slot, like registers: a closed element's slot is used again.

    Args:
        trace: the events.
        shards: each has slots of its own; an element lies in the shard of the event that opens it.

    Returns:
        ``(operands, slots)``: the operand columns with slot numbers, and the size of each bank.

    Raises:
        InvalidInput: an element is used while it is not open, or opened twice.
    """
    operands, slots = trace.operands, {}
    shard = shard_of_event(trace, shards).astype(np.int32) if shards > 1 else np.zeros(len(trace), np.int8)
    for bank in slot_banks(trace):
        role = slot_roles(trace.ops, operands.shape[1], bank)
        column, size = operands.copy(), np.zeros(shards, np.int64)
        owner = np.zeros(column.shape, np.int32) if shards > 1 else None
        for rows in _packed_together(trace):
            part = column[rows]
            mine = role[trace.op[rows]] >= 0
            first = int(part[mine].min()) if mine.any() else 0
            local = np.where(mine, part - first, part).astype(np.int32)
            elements = int(local[mine].max()) + 1 if mine.any() else 0
            whose, own = np.zeros_like(part), np.zeros(shards, np.int64)
            bad = _allocate(
                *(trace.op[rows], local, role, shard[rows], part, whose),
                *(np.full(elements, -1, np.int32), np.zeros(elements, np.int32)),
                *(np.empty((shards, elements), np.int32), np.zeros(shards, np.int64), own),
            )
            if bad >= 0:
                event = int(np.arange(len(trace))[rows][bad])
                who = operands[event].tolist()
                raise InvalidInput(
                    f"{bank} element",
                    f"event {event} ({trace.ops[trace.op[event]].name}, operands {who})",
                    "elements opened once, then used, then closed",
                )
            part[mine] += size[whose[mine]].astype(np.int32)
            column[rows] = part
            if owner is not None:
                owner[rows] = whose
            size += own
        each = int(size.max())
        if owner is not None:
            mine = role[trace.op] >= 0
            column[mine] += each * owner[mine]
        operands, slots[bank] = column, each * shards
    return operands, slots


def _packed_together(trace: Trace) -> list[Any]:
    """The events whose slots may be shared, in the order they are packed in.

    Where group ops make sections, one replica's events are packed ahead of another's: each replica then has its own slots.
    """
    if len(trace.replicas) == 1 or not _is_group(trace).any():
        return [slice(None)]
    return [np.flatnonzero(trace.replica_of_event == index) for index in range(len(trace.replicas))]


def slot_roles(ops: Sequence[Op], arity: int, bank: str) -> np.ndarray:
    """Int8 ``(ops, arity)``: 1 where an operand opens an element of the bank, + 2 where it closes it, -1 where it is no such."""
    role = np.full((len(ops), arity), -1, np.int8)
    for code, op in enumerate(ops):
        for position, operand in enumerate(op.operands):
            if operand.bank == bank:
                role[code, position] = operand.opens + 2 * operand.closes
    return role


def slot_banks(trace: Trace) -> list[str]:
    """The banks whose elements are opened and closed."""
    fixed = {"group", "unit", *lasting_banks(trace)}
    return sorted({operand.bank for op in trace.ops for operand in op.operands if operand.bank not in fixed})


class SlotBook:
    """:func:`assign_slots`, window by window: every element has the slot it has in the whole.

    Attributes:
        sizes: of each bank, so far.
    """

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self._open: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._free: dict[str, np.ndarray] = {}

    def assign(self, window: Trace) -> np.ndarray:
        """The operand columns of the next window with slot numbers.

        Elements are numbered in each replica by itself.
        """
        operands = window.operands.copy()
        for bank in slot_banks(window):
            role = slot_roles(window.ops, operands.shape[1], bank)
            mine = role[window.op] >= 0
            replica = np.broadcast_to(window.replica_of_event[:, None], operands.shape)[mine].astype(np.int64)
            elements, number = np.unique(
                (replica << 32) + window.operands[mine].astype(np.int64), return_inverse=True
            )
            local = np.full(operands.shape, -1, np.int32)
            local[mine] = number
            none = np.zeros(0, np.int64), np.zeros(0, np.int32)
            opened, slots = self._open.get(bank, none)
            free, size = self._free.get(bank, none[1]), np.array([self.sizes.get(bank, 0)], np.int64)
            known = np.isin(opened, elements, assume_unique=True)
            slot_of = np.full(len(elements), -1, np.int32)
            slot_of[np.searchsorted(elements, opened[known])] = slots[known]
            stack = np.concatenate([free, np.empty(len(slots) + len(elements), np.int32)])[None]
            n_free = np.array([len(free)], np.int64)
            bad = _allocate(
                *(window.op, local, role, np.zeros(len(window), np.int8), operands, np.zeros_like(operands)),
                *(slot_of, np.zeros(len(elements), np.int32), stack, n_free, size),
            )
            assert bad < 0, f"{bank} element of event {bad} is not open"
            left = slot_of >= 0
            opened = np.concatenate([opened[~known], elements[left]])
            slots, order = np.concatenate([slots[~known], slot_of[left]]), np.argsort(opened)
            self._open[bank], self._free[bank] = (opened[order], slots[order]), stack[0, : n_free[0]].copy()
            self.sizes[bank] = int(size[0])
        return operands


@njit(cache=True)
def _allocate(op, operands, role, shard, column, whose, slot_of, shard_of, free, n_free, size):
    """Slots of a bank: in ``column`` the slot inside the shard of ``whose``. The first event that is wrong, or -1.

    The rest is as it was and as it will be: of every element slot (-1: not open) and shard; of every shard its free slots, last
    freed first, and how many slots it has.
    """
    for event in range(op.size):
        # Every close of an event comes after its opens: an event never hands a slot to itself.
        for position in range(operands.shape[1]):
            kind = role[op[event], position]
            if kind < 0:
                continue
            element = operands[event, position]
            if kind & 1:
                if slot_of[element] >= 0:
                    return event
                here = shard[event]
                shard_of[element] = here
                if n_free[here]:
                    n_free[here] -= 1
                    slot_of[element] = free[here, n_free[here]]
                else:
                    slot_of[element] = size[here]
                    size[here] += 1
            elif slot_of[element] < 0:
                return event
            column[event, position] = slot_of[element]
            whose[event, position] = shard_of[element]
        for position in range(operands.shape[1]):
            kind = role[op[event], position]
            if kind >= 2:
                element = operands[event, position]
                here = shard_of[element]
                free[here, n_free[here]] = slot_of[element]
                n_free[here] += 1
                slot_of[element] = -1
    return -1


@njit(cache=True)
def _pack(
    time_s, op, operands, base, reads, writes, n_elements, written_s, seen, lane, widths, first_place, sections,
    is_group, on_server, table, table_start, sender, n_clocks, n_barriers, n_workers, n_replicas,
):  # fmt: skip
    events, arity = operands.shape
    n_lanes = widths.size
    n_sections = sections.first[-1]
    row = np.full(events, -1, np.int32)
    column = np.empty(events, np.int32)
    elapsed_s = np.zeros((events, arity))
    count = np.zeros((events, arity), np.uint32)
    written = np.full(n_elements, -1, np.int32)  # row of the last writer
    read = np.full(n_elements, -1, np.int32)  # row of the last reader
    # Per lane, a forest that leads from a row to the first row at or after it that still has room. Row ``rows`` is the
    # first unused one; memory beyond it is never touched.
    room = np.empty((n_lanes, events + 2), np.int32)
    taken = np.empty((n_lanes, events + 2), np.int32)
    room[:, 0], taken[:, 0] = 0, 0
    section_rows = np.zeros(n_sections + 1, np.int64)
    last_write_s = np.zeros((n_barriers, n_clocks))
    entries = 0
    for g in range(table.size):
        entries += table_start[table[g] + 1] - table_start[table[g]]
    first_entry = np.zeros(table.size + 1, np.int64)
    for g in range(table.size):
        first_entry[g + 1] = first_entry[g] + table_start[table[g] + 1] - table_start[table[g]]
    group_number = np.full(events if table.size else 0, -1, np.int64)
    if table.size:
        number = 0
        for event in range(events):
            if is_group[op[event]]:
                group_number[event] = number
                number += 1
    group_event = np.full((n_sections if table.size else 0, n_replicas), -1, np.int64)
    group_elapsed_s = np.zeros((table.size, n_workers if table.size and not on_server[is_group].all() else 1))
    entry_count = np.zeros(entries, np.uint32)
    gradients = np.zeros(n_workers * n_replicas, np.uint32)
    first_row, rows, section, barrier = 0, 0, 0, 0
    places = sections.order.size
    for place in range(places + 1):
        upto = n_sections if place == places else sections.of_event[sections.order[place]]
        while section < upto:
            section += 1
            section_rows[section] = rows
            first_row = rows
            while barrier < n_barriers and sections.first[barrier + 1] == section:
                last_write_s[barrier] = written_s[:n_clocks]
                barrier += 1
        if place == places:
            break
        event = sections.order[place]
        code = op[event]
        if is_group[code]:
            # Done when the section's rows are, so it need not be among the readers and writers of any.
            replica, g = operands[event, 0] // n_workers, group_number[event]
            group_event[section, replica] = event
            count[event, 0] = seen[code, operands[event, 0]]
            seen[code, operands[event, 0]] += 1
            if on_server[code]:
                server = n_workers * n_replicas + replica
                group_elapsed_s[g, 0] = time_s[event] - written_s[server]
                written_s[server] = time_s[event]
                for k in range(first_entry[g + 1] - first_entry[g]):
                    worker = replica * n_workers + sender[table_start[table[g]] + k]
                    entry_count[first_entry[g] + k] = gradients[worker]
                    gradients[worker] += 1
            else:
                for k in range(n_workers):
                    element = replica * n_workers + k
                    group_elapsed_s[g, k] = time_s[event] - written_s[element]
                    written_s[element] = time_s[event]
            continue
        earliest = np.int64(first_row)
        for position in range(arity):
            if base[code, position] < 0:
                continue
            element = base[code, position] + operands[event, position]
            if reads[code, position] or writes[code, position]:
                earliest = max(earliest, written[element] + 1)
            if writes[code, position]:
                earliest = max(earliest, read[element])
        r, own = earliest, lane[event]
        while room[own, r] != r:
            room[own, r] = room[own, room[own, r]]
            r = room[own, r]
        row[event] = r
        column[event] = first_place[own] + taken[own, r]
        taken[own, r] += 1
        if taken[own, r] == widths[own]:
            room[own, r] = r + 1
        if r == rows:
            rows += 1
            room[:, rows], taken[:, rows] = rows, 0
        for position in range(arity):
            if base[code, position] < 0:
                continue
            element = base[code, position] + operands[event, position]
            count[event, position] = seen[code, element]
            seen[code, element] += 1
            if element < n_clocks:
                elapsed_s[event, position] = time_s[event] - written_s[element]
            if reads[code, position]:
                read[element] = max(read[element], r)
            if writes[code, position]:
                written[element] = r
                written_s[element] = time_s[event]
    return (
        row,
        column,
        elapsed_s,
        count,
        section_rows,
        last_write_s,
        group_event,
        group_elapsed_s,
        entry_count,
    )


@njit(cache=True)
def _order_by_row(row, rows):
    row_start = np.zeros(rows + 1, np.int64)
    for event in range(row.size):
        if row[event] >= 0:  # group ops and marks are in no row
            row_start[row[event] + 1] += 1
    for r in range(rows):
        row_start[r + 1] += row_start[r]
    place = row_start[:-1].copy()
    order = np.empty(row_start[-1], np.int64)
    for event in range(row.size):
        if row[event] >= 0:
            order[place[row[event]]] = event
            place[row[event]] += 1
    return order, row_start


@njit(cache=True)
def _fill(
    event,
    row_start,
    first,
    last,
    op,
    code,
    column,
    beyond,
    operands,
    elapsed_s,
    count,
    to,
    to_elapsed_s,
    to_count,
):
    """Write the events of one op in rows ``first ... last - 1``, and padding in every other place."""
    capacity, width, arity = to.shape
    for r in range(capacity):
        for place in range(width):
            for position in range(arity):
                to[r, place, position] = beyond[position] + place
    for r in range(first, last):
        for k in range(row_start[r], row_start[r + 1]):
            e = event[k]
            if op[e] == code:
                for position in range(arity):
                    to[r - first, column[e], position] = operands[e, position]
                    to_elapsed_s[r - first, column[e], position] = elapsed_s[e, position]
                    to_count[r - first, column[e], position] = count[e, position]


@njit(cache=True)
def _fill_groups(
    active, table, number, start, receiver, sender, weight, first_entry, entry_count,
    to_receiver, to_sender, to_weight, to_entry_count,
):  # fmt: skip
    for r in range(active.shape[0]):
        for replica in range(active.shape[1]):
            if active[r, replica]:
                first, counts = start[table[r, replica]], first_entry[number[r, replica]]
                for k in range(start[table[r, replica] + 1] - first):
                    if receiver[first + k] >= 0:
                        to_receiver[r, replica, k] = receiver[first + k]
                    to_sender[r, replica, k] = sender[first + k]
                    to_weight[r, replica, k] = weight[first + k]
                    to_entry_count[r, replica, k] = entry_count[counts + k]
