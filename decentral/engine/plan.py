"""The plan: which events may be computed together. NumPy and numba, no JAX, no idea of any algorithm.

An op declares which operands it reads and which it writes. Inside a *row* everything is read before anything is
written, so a reader comes at least one row after the last writer of what it reads, and a writer at least one row after
the last writer and not before the last reader. Reads commute. Within those bounds an event takes the first row that has
room for its op: rows have a fixed width per op, so every row is one array program. A *barrier* (a record time) starts
a new row: everything before it is done, nothing after it has begun.

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
        widths: events of each op that one row holds.
        event: int64 ``(events,)``, event numbers ordered by row.
        row_start: int64 ``(rows + 1,)``: row r holds ``event[row_start[r] : row_start[r + 1]]``.
        column: int32 ``(events,)``: the place of an event among the events of its op in its row (by event number).
        elapsed: float64 ``(events, arity)``: time since the operand was last written (0 for slots), by event number, in the
            unit of ``flow``.
        count: uint32 ``(events, arity)``: earlier events of the same op on the same operand, by event number.
        operands: int32 ``(events, arity)``: as in the trace, with slot numbers instead of element numbers.
        slots: size of each bank of slots: the largest number of elements open at once.
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

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.row_start) - 1

    def fill(self) -> float:
        """Share of the places in all rows that hold an event."""
        return len(self.event) / max(1, self.n_rows * sum(self.widths))

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
            the op)``. An empty place has operands beyond the end of their bank, all different within a row, so that a
            scatter may be told its indices are unique and drop them.
        """
        arrays, used = {}, dict.fromkeys(self.bank_sizes, 0)
        for code, op in enumerate(self.trace.ops):
            width, arity = self.widths[code], len(op.operands)
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


def make_plan(
    trace: Trace,
    barriers: Sequence[int] | np.ndarray = (),
    widths: Sequence[int] | None = None,
    event_bytes: float | Sequence[float] = 0,
    units: Units = Units(1.0, 1.0, 1.0),  # noqa: B008  frozen
) -> Plan:
    """Pack a trace into rows.

    Args:
        trace: the events.
        barriers: event counts, not decreasing: everything before event ``barriers[b]`` is done at barrier b.
        widths: events per row for each op; chosen by :func:`choose_widths` when missing.
        event_bytes: bytes an event moves, for that choice: one number, or one per op.
        units: seconds in a unit of ``flow``'s time.

    Raises:
        InvalidInput: barriers out of order, widths below 1, an element used before it is opened or after it is closed.
    """
    barriers_array = np.asarray(barriers, np.int64)
    if barriers_array.size and (
        barriers_array[0] < 0 or barriers_array[-1] > len(trace) or (np.diff(barriers_array) < 0).any()
    ):
        raise InvalidInput("barriers", list(barriers)[:5], f"event counts in order, from 0 to {len(trace)}")
    operands, slots = assign_slots(trace)
    resources = _resources(trace, slots)
    if widths is None:
        chosen = _choose(trace, operands, resources, barriers_array, event_bytes)
    else:
        chosen = tuple(int(width) for width in widths)
    if (
        len(chosen) != len(trace.ops)
        or min(chosen) < 0
        or any(
            width == 0 and trace.counts[op.name] and not op.is_group
            for width, op in zip(chosen, trace.ops, strict=True)
        )
    ):
        raise InvalidInput(
            "widths", chosen, f"{len(trace.ops)} integers, at least 1 for every op that occurs"
        )
    sections = _sections(trace, barriers_array)
    packed = _pack(
        *(trace.time_s, trace.op, operands, *resources, np.asarray(chosen, np.int32)),
        *(sections, *_group_tables(trace), len(barriers_array), trace.n_workers, len(trace.replicas)),
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
    )


class _Sections(NamedTuple):
    """Which section an event is in, and the order in which events are packed.

    Attributes:
        order: int64 ``(events,)``: by section, then as in the trace.
        of_event: int64 ``(events,)``.
        first: int64 ``(barriers + 2,)``: the first section of each segment, and the number of sections.
    """

    order: np.ndarray
    of_event: np.ndarray
    first: np.ndarray


def _sections(trace: Trace, barriers: np.ndarray) -> _Sections:
    events = np.arange(len(trace))
    segment = np.searchsorted(barriers, events, side="right")
    group = _is_group(trace)
    if not group.any():
        return _Sections(events, segment, np.arange(len(barriers) + 2))
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
    return _Sections(np.argsort(of_event, kind="stable"), of_event, first)


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
    trace: Trace, event_bytes: float | Sequence[float] = 0, barriers: Sequence[int] = ()
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
    """
    operands, slots = assign_slots(trace)
    return _choose(trace, operands, _resources(trace, slots), np.asarray(barriers, np.int64), event_bytes)


def _choose(trace: Trace, operands, resources, barriers, event_bytes) -> tuple[int, ...]:
    in_rows = np.array([not op.is_group for op in trace.ops])
    counts = np.array([trace.counts[op.name] for op in trace.ops], float) * in_rows
    if not counts.sum():
        return tuple(int(each) for each in in_rows)
    share = counts / counts.sum()
    stop = min(len(trace), max(SAMPLED_EVENTS, 8 * trace.total_workers))
    first = dataclasses.replace(
        trace, time_s=trace.time_s[:stop], op=trace.op[:stop], operands=trace.operands[:stop], duration_s=None
    )
    unlimited = np.full(len(trace.ops), stop, np.int32)
    packed = _pack(
        *(
            first.time_s,
            first.op,
            operands[:stop],
            *resources,
            unlimited,
            _sections(first, barriers[barriers <= stop]),
        ),
        *(*_group_tables(first), int((barriers <= stop).sum()), trace.n_workers, len(trace.replicas)),
    )
    row, section_rows = packed[0], packed[4]
    filled = np.bincount(row[row >= 0], minlength=max(1, int(section_rows[-1])))
    # Rows that are all equally full stay so; else rows a little narrower than the average are nearly full.
    mean = filled.mean()
    at_once = mean if filled.max() <= 1.1 * mean else 0.75 * mean
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
    base_of = dict(zip(sizes, starts.tolist(), strict=False)) | {"group": -1}
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


def assign_slots(trace: Trace) -> tuple[np.ndarray, dict[str, int]]:
    """Give every element of a slot bank a slot, like registers: a closed element's slot is used again.

    Returns:
        ``(operands, slots)``: the operand columns with slot numbers, and the size of each bank.

    Raises:
        InvalidInput: an element is used while it is not open, or opened twice.
    """
    fixed = {"group", *lasting_banks(trace)}
    names = sorted({operand.bank for op in trace.ops for operand in op.operands if operand.bank not in fixed})
    operands, slots = trace.operands, {}
    for bank in names:
        role = np.full((len(trace.ops), operands.shape[1]), -1, np.int8)
        for code, op in enumerate(trace.ops):
            for position, operand in enumerate(op.operands):
                if operand.bank == bank:
                    role[code, position] = operand.opens + 2 * operand.closes
        column, size = operands.copy(), 0
        for rows in _packed_together(trace):
            part = column[rows]
            mine = role[trace.op[rows]] >= 0
            first = int(part[mine].min()) if mine.any() else 0
            local = np.where(mine, part - first, part).astype(np.int32)
            own, bad = _allocate(
                trace.op[rows], local, role, part, int(local[mine].max()) + 1 if mine.any() else 0
            )
            if bad >= 0:
                event = int(np.arange(len(trace))[rows][bad])
                who = operands[event].tolist()
                raise InvalidInput(
                    f"{bank} element",
                    f"event {event} ({trace.ops[trace.op[event]].name}, operands {who})",
                    "elements opened once, then used, then closed",
                )
            part[mine] += size
            column[rows] = part
            size += own
        operands, slots[bank] = column, size
    return operands, slots


def _packed_together(trace: Trace) -> list[Any]:
    """The events whose slots may be shared, in the order they are packed in.

    Where group ops make sections, one replica's events are packed ahead of another's: each replica then has its own slots.
    """
    if len(trace.replicas) == 1 or not _is_group(trace).any():
        return [slice(None)]
    return [np.flatnonzero(trace.replica_of_event == index) for index in range(len(trace.replicas))]


@njit(cache=True)
def _allocate(op, operands, role, column, elements):
    slot_of = np.full(elements, -1, np.int32)
    free = np.empty(elements, np.int32)
    n_free, size = 0, 0
    for event in range(op.size):
        # Every close of an event comes after its opens: an event never hands a slot to itself.
        for position in range(operands.shape[1]):
            kind = role[op[event], position]
            if kind < 0:
                continue
            element = operands[event, position]
            if kind & 1:
                if slot_of[element] >= 0:
                    return size, event
                if n_free:
                    n_free -= 1
                    slot_of[element] = free[n_free]
                else:
                    slot_of[element] = size
                    size += 1
            elif slot_of[element] < 0:
                return size, event
            column[event, position] = slot_of[element]
        for position in range(operands.shape[1]):
            kind = role[op[event], position]
            if kind >= 2:
                element = operands[event, position]
                free[n_free] = slot_of[element]
                n_free += 1
                slot_of[element] = -1
    return size, -1


@njit(cache=True)
def _pack(
    time_s, op, operands, base, reads, writes, n_elements, widths, sections,
    is_group, on_server, table, table_start, sender, n_clocks, n_barriers, n_workers, n_replicas,
):  # fmt: skip
    events, arity = operands.shape
    n_ops = widths.size
    n_sections = sections.first[-1]
    row = np.full(events, -1, np.int32)
    column = np.empty(events, np.int32)
    elapsed_s = np.zeros((events, arity))
    count = np.zeros((events, arity), np.uint32)
    written = np.full(n_elements, -1, np.int32)  # row of the last writer
    read = np.full(n_elements, -1, np.int32)  # row of the last reader
    written_s = np.zeros(n_elements)
    seen = np.zeros((n_ops, n_elements), np.uint32)
    # Per op, a forest that leads from a row to the first row at or after it that still has room. Row ``rows`` is the
    # first unused one; memory beyond it is never touched.
    room = np.empty((n_ops, events + 2), np.int32)
    taken = np.empty((n_ops, events + 2), np.int32)
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
    for place in range(events + 1):
        upto = n_sections if place == events else sections.of_event[sections.order[place]]
        while section < upto:
            section += 1
            section_rows[section] = rows
            first_row = rows
            while barrier < n_barriers and sections.first[barrier + 1] == section:
                last_write_s[barrier] = written_s[:n_clocks]
                barrier += 1
        if place == events:
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
        r = earliest
        while room[code, r] != r:
            room[code, r] = room[code, room[code, r]]
            r = room[code, r]
        row[event] = r
        column[event] = taken[code, r]
        taken[code, r] += 1
        if taken[code, r] == widths[code]:
            room[code, r] = r + 1
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
        if row[event] >= 0:  # group ops are in no row
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
