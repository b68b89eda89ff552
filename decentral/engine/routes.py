"""What travels between the shards of a plan. NumPy and numba, no JAX.

An event is done where its first operand lies. Where another operand lies elsewhere (the second worker of an exchange, a message
that its receiver takes), it is sent there before the row, and what became of it is sent back after. All of that is known before
the run begins, so every device is told what to send to whom: for each pair of shards a few places, as many as the fullest pair
of any row needs, in one exchange of all with all. A mixing matrix takes from every other shard the messages its receivers need.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numba import njit

from decentral.engine.plan import Plan, shard_of_event


class Route(NamedTuple):
    """What travels of one bank.

    Attributes:
        places: the operands that may lie elsewhere, ``(op, number of the operand)``; their values stand beside each other in
            this order.
        capacity: elements that one shard sends another in a row, at most.
    """

    places: tuple[tuple[str, int], ...]
    capacity: int


class Mixing(NamedTuple):
    """What mixing matrices take from the shard ``offset`` before the receiver's (modulo the shards).

    Attributes:
        offset: 0 for the shard itself.
        entries: of a matrix, at most.
        senders: different ones among them, at most.
    """

    offset: int
    entries: int
    senders: int


@dataclass(frozen=True, eq=False)
class Routes:
    """The traffic between the shards of a plan."""

    plan: Plan

    @cached_property
    def _home(self) -> np.ndarray:
        return shard_of_event(self.plan.trace, self.plan.shards).astype(np.int32)

    @cached_property
    def of_bank(self) -> dict[str, Route]:
        """Bank -> what travels, of the banks of which something does."""
        plan, trace, routes = self.plan, self.plan.trace, {}
        for bank, size in plan.bank_sizes.items():
            each = size // plan.shards
            places = [
                (op.name, k)
                for code, op in enumerate(trace.ops)
                for k, operand in enumerate(op.operands)
                if plan.widths[code]
                and operand.bank == bank
                and (operand.reads or operand.writes)
                and _travels(trace.op, code, plan.operands, k, self._home, each)
            ]
            if places:
                columns = self._columns(places)
                most = _most(
                    plan.event,
                    plan.row_start,
                    trace.op,
                    plan.operands,
                    self._home,
                    columns,
                    each,
                    plan.shards,
                )
                routes[bank] = Route(tuple(places), int(most))
        return routes

    def _columns(self, places) -> np.ndarray:
        """Int64 ``(ops, arity)``: where the values of an operand begin, -1 for those that never travel."""
        plan, names, first = self.plan, [op.name for op in self.plan.trace.ops], 0
        columns = np.full((len(names), plan.operands.shape[1]), -1, np.int64)
        for name, k in places:
            columns[names.index(name), k] = first
            first += plan.widths[names.index(name)]
        return columns

    def rows(self, first: int, last: int, capacity: int) -> dict[str, dict[str, np.ndarray]]:
        """The traffic of rows ``first ... last - 1``.

        Returns:
            For every bank of which something travels, int32 arrays with axes ``(capacity, shards)`` in front. Of the shard that
            sends: ``take`` ``(shards, places)``, which of its elements go to whom, and ``put``, alike, where what comes back
            goes, -1 for nowhere. Of the shard that computes: ``got`` ``(values,)``, where among all that came an operand is,
            and ``back`` ``(shards, places)``, which value goes back.
        """
        plan, shards, arrays = self.plan, self.plan.shards, {}
        trace, arity = plan.trace, plan.operands.shape[1]
        written = np.array(
            [[k < len(op.operands) and op.operands[k].writes for k in range(arity)] for op in trace.ops]
        )
        widths = {op.name: width for op, width in zip(trace.ops, plan.widths, strict=True)}
        for bank, route in self.of_bank.items():
            values = sum(widths[name] for name, _ in route.places)
            pairs = (capacity, shards, shards, route.capacity)
            take, put, back = (
                np.zeros(pairs, np.int32),
                np.full(pairs, -1, np.int32),
                np.zeros(pairs, np.int32),
            )
            got = np.zeros((capacity, shards, values), np.int32)
            _route(
                plan.event, plan.row_start, first, last, trace.op, plan.operands, plan.column, np.asarray(plan.widths),
                self._home, self._columns(route.places), written, plan.bank_sizes[bank] // shards, take, put, got, back,
            )  # fmt: skip
            arrays[bank] = {"take": take, "put": put, "got": got, "back": back}
        return arrays

    # -- group ops -----------------------------------------------------------------------------------------------------

    @cached_property
    def mixings(self) -> tuple[Mixing, ...]:
        """What mixing matrices take, by offset; offsets of which no matrix takes anything are left out."""
        plan, trace = self.plan, self.plan.trace
        codes = [code for code, op in enumerate(trace.ops) if op.name == "mix" and trace.counts["mix"]]
        if not codes:
            return ()
        most = np.zeros((plan.shards, 2), np.int64)
        for first in range(0, len(plan.group_event), 1024):
            events = plan.group_event[first : first + 1024]
            active = (events >= 0) & (trace.op[events] == codes[0])
            table = np.where(active, trace.operands[events, len(trace.ops[codes[0]].operands) - 1], -1)
            counts = _mix_most(
                table, trace.groups.start, trace.groups.receiver, trace.groups.sender,
                trace.n_workers, trace.total_workers // plan.shards, plan.shards,
            )  # fmt: skip
            most = np.maximum(most, counts)
        return tuple(Mixing(offset, int(e), int(s)) for offset, (e, s) in enumerate(most) if e)

    def group_rows(
        self, first: int, last: int, capacity: int, dtype: np.dtype
    ) -> dict[str, dict[str, np.ndarray]]:
        """The group ops of sections ``first ... last - 1``: what :meth:`Plan.group_rows` says, told shard by shard.

        Returns:
            For each op: ``active`` and ``count`` ``(capacity, replicas)``; ``elapsed`` and ``receives`` ``(capacity, workers of
            all replicas)``. Of ``average``: ``weight``, alike, of every sender. Of ``mix``, with axes ``(capacity, shards)`` in
            front and one offset of :attr:`mixings` after the other: ``send`` ``(senders,)``, which messages go to the shard
            that lies so far on; ``sender`` ``(entries,)``, where in what came an entry's is, ``receiver``, in its own shard
            (beyond it: nobody), and ``weight``.
        """
        plan, trace = self.plan, self.plan.trace
        each, arrays = trace.total_workers // plan.shards, {}
        first_worker = trace.n_workers * np.arange(len(trace.replicas))[:, None]
        for name, group in plan.group_rows(first, last, capacity, dtype).items():
            shape = (capacity, trace.total_workers)
            section = np.broadcast_to(np.arange(capacity)[:, None, None], group["receiver"].shape)
            some = group["active"][..., None] & (group["receiver"] < trace.n_workers)
            receives = np.zeros(shape, bool)
            receives[section[some], (group["receiver"] + first_worker)[some]] = True
            arrays[name] = {
                "active": group["active"], "count": group["count"], "elapsed": group["elapsed"].reshape(shape),
                "receives": receives,
            }  # fmt: skip
            if name == "average":
                weight = np.zeros(shape, np.float64)
                np.add.at(weight, (section, group["sender"] + first_worker), group["weight"])
                arrays[name]["weight"] = weight.astype(dtype)
                continue
            starts = np.full((plan.shards, 2), -1, np.int64)
            ends = np.zeros(2, np.int64)
            for mixing in self.mixings:
                starts[mixing.offset] = ends
                ends += mixing.entries, mixing.senders
            send = np.zeros((capacity, plan.shards, ends[1]), np.int32)
            sender = np.zeros((capacity, plan.shards, ends[0]), np.int32)
            receiver, weight = np.full_like(sender, each), np.zeros(sender.shape, dtype)
            _mix(
                group["active"], group["receiver"], group["sender"], group["weight"], trace.n_workers, each,
                starts, send, sender, receiver, weight,
            )  # fmt: skip
            arrays[name] |= {"send": send, "sender": sender, "receiver": receiver, "weight": weight}
        return arrays


@njit(cache=True)
def _travels(op, code, operands, k, home, each):
    for e in range(op.size):  # noqa: SIM110  numba has no generators here
        if op[e] == code and operands[e, k] // each != home[e]:
            return True
    return False


@njit(cache=True)
def _most(event, row_start, op, operands, home, columns, each, shards):
    """The most elements that go from one shard to another in a row."""
    most = 0
    count = np.zeros((shards, shards), np.int64)
    for r in range(row_start.size - 1):
        count[:] = 0
        for k in range(row_start[r], row_start[r + 1]):
            e = event[k]
            for position in range(operands.shape[1]):
                if columns[op[e], position] >= 0:
                    source = operands[e, position] // each
                    if source != home[e]:
                        count[source, home[e]] += 1
                        most = max(most, count[source, home[e]])
    return most


@njit(cache=True)
def _route(
    event,
    row_start,
    first,
    last,
    op,
    operands,
    place,
    widths,
    home,
    columns,
    written,
    each,
    take,
    put,
    got,
    back,
):
    shards = take.shape[1]
    count = np.zeros((shards, shards), np.int64)
    for r in range(first, last):
        count[:] = 0
        for k in range(row_start[r], row_start[r + 1]):
            e = event[k]
            here = home[e]
            for position in range(operands.shape[1]):
                begin = columns[op[e], position]
                source = operands[e, position] // each
                if begin < 0 or source == here:
                    continue
                c, value = count[source, here], begin + place[e] - here * widths[op[e]]
                count[source, here] += 1
                element = operands[e, position] - source * each
                take[r - first, source, here, c] = element
                if written[op[e], position]:
                    put[r - first, source, here, c] = element
                got[r - first, here, value] = source * take.shape[3] + c
                back[r - first, here, source, c] = value


@njit(cache=True)
def _mix_most(table, start, receivers, senders, n_workers, each, shards):
    """For every offset, the most entries and the most different senders between two shards in a section."""
    most = np.zeros((shards, 2), np.int64)
    count = np.zeros((shards, shards, 2), np.int64)
    seen = np.full((shards, table.shape[1] * n_workers), -1, np.int64)
    for s in range(table.shape[0]):
        count[:] = 0
        for replica in range(table.shape[1]):
            if table[s, replica] < 0:
                continue
            for k in range(start[table[s, replica]], start[table[s, replica] + 1]):
                if receivers[k] < 0:
                    continue
                sender, to = replica * n_workers + senders[k], (replica * n_workers + receivers[k]) // each
                offset = (to - sender // each) % shards
                count[to, offset, 0] += 1
                if seen[to, sender] != s:
                    seen[to, sender] = s
                    count[to, offset, 1] += 1
        for to in range(shards):
            most = np.maximum(most, count[to])
    return most


@njit(cache=True)
def _mix(
    active, receivers, senders, weights, n_workers, each, starts, send, to_sender, to_receiver, to_weight
):
    shards = send.shape[1]
    count = np.zeros((shards, shards, 2), np.int64)
    seen = np.full((shards, active.shape[1] * n_workers), -1, np.int64)
    place = np.zeros(seen.shape, np.int64)
    for s in range(active.shape[0]):
        count[:] = 0
        for replica in range(active.shape[1]):
            if not active[s, replica]:
                continue
            for k in range(receivers.shape[2]):
                if receivers[s, replica, k] >= n_workers:
                    continue
                sender = replica * n_workers + senders[s, replica, k]
                receiver = replica * n_workers + receivers[s, replica, k]
                source, to = sender // each, receiver // each
                offset = (to - source) % shards
                if seen[to, sender] != s:
                    seen[to, sender], place[to, sender] = s, count[to, offset, 1]
                    send[s, source, starts[offset, 1] + place[to, sender]] = sender - source * each
                    count[to, offset, 1] += 1
                entry = starts[offset, 0] + count[to, offset, 0]
                count[to, offset, 0] += 1
                to_sender[s, to, entry] = place[to, sender]
                to_receiver[s, to, entry] = receiver - to * each
                to_weight[s, to, entry] = weights[s, replica, k]
