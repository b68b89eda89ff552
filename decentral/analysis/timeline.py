"""A trace for people: who did what when, how busy and how stale; a table of it, and an export for trace viewers.

What a trace does not hold is not counted: a computation that the horizon interrupts is seen where its start is an event
(``gradient_start``, ``forward``, ``error``), and not where only its end would be one (``gradient``, ``evaluate``, ``step``,
``turn``, ``backward``, ``update``). So a worker's idle share may be up to one gradient too high; with ``reduce``, by the
gradients of two rounds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from decentral.analysis.pipeline import BACKWARD, FORWARD, changes_of, delays, durations_s, pipeline_table
from decentral.analysis.tables import comparison_table, format_interval
from decentral.engine.trace import OPS, REDUCTIONS, Op, Trace
from decentral.errors import InvalidInput

MOST_INSTANTANEOUS = 1_000_000
"""Messages of mixing steps beyond which those that take no time are not looked at one by one."""
SERVER, UNKNOWN = -1, -2
"""Instead of a worker's number: the server; the receiver of a message that has not arrived."""


class Outcome(IntEnum):
    """What became of a computation or a message; a gradient that a server refuses is a lost message."""

    DONE = 0
    LOST = 1
    UNDER_WAY = 2


@dataclass(frozen=True, eq=False)
class Intervals:
    """What workers were busy with, one entry per computation, exchange, message or collective.

    Attributes:
        worker: int64 ``(intervals,)``.
        start_s: float64 ``(intervals,)``.
        end_s: float64 ``(intervals,)``, not before the start; the horizon for what is under way then.
        event: int64 ``(intervals,)``: the event it ends with, or starts with if it is under way at the horizon.
        outcome: int8 ``(intervals,)``, an :class:`Outcome`.
    """

    worker: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray
    event: np.ndarray
    outcome: np.ndarray


@dataclass(frozen=True, eq=False)
class Messages(Intervals):
    """What was on the wire between two ends; ``worker`` is the one that is busy with it.

    Attributes:
        sender: int64 ``(messages,)``, :data:`SERVER` for the server.
        receiver: int64 ``(messages,)``, :data:`SERVER` for the server, :data:`UNKNOWN` where it has not arrived.
    """

    sender: np.ndarray
    receiver: np.ndarray


@dataclass(frozen=True, eq=False)
class Activity:
    """What the workers of one replica did, as plain arrays.

    Attributes:
        n_workers: how many there are.
        horizon_s: where the replica ends.
        compute: gradients, thrown away or not; those of a ``step`` are one interval per worker.
        communication: exchanges, collectives, and one-sided messages at their sender (a ``pull`` at who pulls). Not what
            goes along a pipeline: its trace says when a message is taken, not when it arrives.
        messages: between two workers, or a worker and the server; not those of all-reduces.
    """

    n_workers: int
    horizon_s: float
    compute: Intervals
    communication: Intervals
    messages: Messages


@dataclass(frozen=True, eq=False)
class Served:
    """Requests at optical units, in the order in which they came to each unit.

    Attributes:
        worker: int64 ``(requests,)``: the unit's number.
        asker: int64 ``(requests,)``: the worker that asked.
        asked_s: float64 ``(requests,)``: when the request came.
        start_s: float64 ``(requests,)``: when its frames began, or will; infinite where that is not known.
        end_s: float64 ``(requests,)``: when they ended; infinite after the horizon.
    """

    worker: np.ndarray
    asker: np.ndarray
    asked_s: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray


# -- who did what when -------------------------------------------------------------------------------------------------


class _Reading:
    """A trace of one replica with what its slots say: which event opened what, and what is still open."""

    def __init__(self, trace: Trace) -> None:
        if len(trace.replicas) != 1:
            raise InvalidInput(
                "trace", f"{len(trace.replicas)} replicas", "one replica", "Take trace.replica(index)."
            )
        self.trace = trace
        spare = max(0, 2 - trace.operands.shape[1])
        self.operands = np.pad(trace.operands, ((0, 0), (0, spare)), constant_values=-1)
        """The trace's, with room for two workers."""
        self.codes = {op.name: code for code, op in enumerate(trace.ops)}
        self.opener = np.full(len(trace), -1)
        """Int64 ``(events,)``: the event that opened the slot this event uses, or -1."""
        self.open_event = self.open_place = np.zeros(0, np.int64)
        """What is open at the horizon: the event that opened it, and the operand's place."""
        self._match_slots()
        self.start_s = self._starts()
        """Float64 ``(events,)``: when what ends with this event began."""

    def rows(self, *names: str) -> np.ndarray:
        """The events of some ops, in order."""
        codes = [self.codes[name] for name in names if name in self.codes]
        return np.flatnonzero(np.isin(self.trace.op, codes))

    def pipeline_rows(self, *instructions: str) -> np.ndarray:
        """The events of the ops of all kinds of stages that do this, in order."""
        codes = [code for code, op in enumerate(self.trace.ops) if op.kind and op.instruction in instructions]
        return np.flatnonzero(np.isin(self.trace.op, codes))

    def open_operands(self) -> list[tuple[Op, int]]:
        """What is open at the horizon: the op that opened it, and the operand's place."""
        codes = self.trace.op[self.open_event].tolist()
        return [
            (self.trace.ops[code], place) for code, place in zip(codes, self.open_place.tolist(), strict=True)
        ]

    def is_op(self, events: np.ndarray, *names: str) -> np.ndarray:
        """Whether each event is one of some ops."""
        return np.isin(self.trace.op[events], [self.codes[name] for name in names if name in self.codes])

    def count(self, rows: np.ndarray) -> int:
        """Entries of the tables of group events."""
        last = np.array([len(op.operands) - 1 for op in self.trace.ops])
        return int(self.trace.groups.sizes[self.trace.operands[rows, last[self.trace.op[rows]]]].sum())

    def entries(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``(event, entry of its table)`` of group events, table after table."""
        trace = self.trace
        last = np.array([len(op.operands) - 1 for op in trace.ops])
        tables = trace.operands[rows, last[trace.op[rows]]]
        sizes = trace.groups.sizes[tables]
        first = trace.groups.start[tables] - np.concatenate([[0], np.cumsum(sizes)[:-1]])
        return np.repeat(rows, sizes), np.arange(sizes.sum()) + np.repeat(first, sizes)

    def taking_part(self, op: Op, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``(worker, time)`` of everyone who takes part in events of one op."""
        trace = self.trace
        if op.is_group:
            event, entry = self.entries(rows)
            ends = [trace.groups.sender[entry]] + [trace.groups.receiver[entry]] * (op.name == "mix")
            event = np.concatenate([event] * len(ends))
            key = event * trace.n_workers + np.concatenate(ends)
            event, worker = np.divmod(np.unique(key), trace.n_workers)
            return worker, trace.time_s[event]
        places = [place for place, operand in enumerate(op.operands) if operand.bank == "worker"]
        return trace.operands[rows][:, places].ravel(), np.repeat(trace.time_s[rows], len(places))

    def updates(self) -> np.ndarray:
        """Sorted keys ``worker * events + event`` of every change of a worker's parameters."""
        operands, parts = self.operands, []
        for name in (
            "gradient",
            "gradient_commit",
            "exchange_commit",
            "receive",
            "copy",
            "reset",
            "exchange",
        ):
            rows = self.rows(name)
            parts += [(operands[rows, place], rows) for place in range(1 + (name == "exchange"))]
        event, entry = self.entries(self.rows("mix", "average"))
        receives = self.trace.groups.receiver[entry] >= 0
        parts.append((self.trace.groups.receiver[entry][receives], event[receives]))
        return np.unique(np.concatenate([self.keys(*part) for part in parts]))

    def gradients(self) -> np.ndarray:
        """The same of every gradient that a worker finished."""
        rows = self.rows("gradient", "gradient_commit", "evaluate", "submit")
        return np.sort(self.keys(self.trace.operands[rows, 0], rows))

    def keys(self, worker: np.ndarray, event: np.ndarray) -> np.ndarray:
        """One number per (worker, event), in this order."""
        return worker.astype(np.int64) * len(self.trace) + event

    def _match_slots(self) -> None:
        trace = self.trace
        banks: dict[str, int] = {}
        parts = []
        stay = {"worker", "server", "group", "unit", *(name for name, _ in trace.banks)}
        for code, op in enumerate(trace.ops):
            rows = np.flatnonzero(trace.op == code)
            for place, operand in enumerate(op.operands):
                if operand.bank in stay:
                    continue
                bank = banks.setdefault(operand.bank, len(banks))
                element = (bank << 32) + trace.operands[rows, place].astype(np.int64)
                same = [np.full(rows.size, value) for value in (place, operand.opens, operand.closes)]
                parts.append((element, rows, *same))
        if not parts:
            return
        element, event, place, opens, closes = map(np.concatenate, zip(*parts, strict=True))
        order = np.lexsort((event, element))  # elements may be used again: the last one to open it did
        element, event, place, opens, closes = (x[order] for x in (element, event, place, opens, closes))
        last = np.maximum.accumulate(np.where(opens, np.arange(order.size), -1))
        uses = np.flatnonzero(~opens)
        never = uses[(last[uses] < 0) | (element[last[uses]] != element[uses])]
        if never.size:
            bad = int(event[never].min())
            name = trace.ops[trace.op[bad]].name
            raise InvalidInput("trace", f"{name} at event {bad}", "slots that an earlier event opened")
        # Of an event that uses several slots the first one counts: a pass of a pipeline, by what came to it.
        uses = uses[np.argsort(-place[uses], kind="stable")]
        self.opener[event[uses]] = event[last[uses]]
        closed = np.zeros(order.size, bool)
        closed[last[closes]] = True
        self.open_event, self.open_place = (x[opens & ~closed] for x in (event, place))

    def _starts(self) -> np.ndarray:
        trace = self.trace
        since_opened = ["cancel", "abandon"]  # they end what they do not know the duration of
        if trace.duration_s is None:
            since_opened += ["gradient_commit", "exchange_commit", "receive", "drop"]
            start_s = trace.time_s.copy()
        else:
            start_s = np.maximum(trace.time_s - trace.duration_s, 0)
        rows = self.rows(*since_opened)
        start_s[rows] = trace.time_s[self.opener[rows]]
        return start_s


def activity(trace: Trace) -> Activity:
    """When the workers of one replica computed and communicated.

    An interval ends with its event and lasts as long as ``trace.duration_s`` says. Without durations, and for what is
    cancelled, abandoned or under way at the horizon, it begins with the event that started it; else it has no length.
    The gradients of a ``step`` begin at the step before it (or at 0), or earlier where they would not be done by its end.
    Those of a ``reduce`` begin when the worker was done with those of the one before, between the end of an all-reduce
    and the ``load`` after it. A ``forward`` begins with its event, as does an ``error``.
    A ``pull`` lasts until its worker computes; the messages of a ``submit`` are at the ends of its computation. Mixing steps
    that take no time are left out where they have more than a million messages: their intervals have no length.

    Args:
        trace: with one replica; ``trace.replica(index)`` of another.

    Raises:
        InvalidInput: several replicas, or an event that uses a slot nobody opened.
    """
    return _activity(_Reading(trace))


def _activity(reading: _Reading) -> Activity:
    trace = reading.trace
    time_s, start_s, operands, opener = trace.time_s, reading.start_s, reading.operands, reading.opener

    def ended(rows, outcome=Outcome.DONE) -> tuple:
        return start_s[rows], time_s[rows], rows, outcome

    def under_way(rows) -> tuple:
        return time_s[rows], trace.horizon_s, rows, Outcome.UNDER_WAY

    asked_s = _asked_s(reading)
    gradients = reading.rows("gradient", "gradient_commit", "evaluate", "submit", "work")
    given_up = reading.rows("abandon")
    abandoned = given_up[reading.is_op(opener[given_up], "gradient_start")]
    started = reading.open_event[reading.is_op(reading.open_event, "gradient_start")]
    commits = reading.rows("gradient_commit")
    commits = commits[np.isfinite(asked_s[opener[commits]])]
    # What a worker computed is over when it asks a unit; what came after the reply is not known where it did not end.
    lost_s = np.minimum(time_s[abandoned], asked_s[opener[abandoned]])
    open_s = np.minimum(trace.horizon_s, asked_s[started])
    up, back = reading.pipeline_rows(*FORWARD), reading.pipeline_rows(*BACKWARD)
    up_ends_s = _pass_ends_s(reading, up)
    up_s = np.minimum(up_ends_s, trace.horizon_s)
    up_outcome = np.where(up_ends_s > trace.horizon_s, Outcome.UNDER_WAY, Outcome.DONE)
    compute = [
        (operands[gradients, 0], *ended(gradients)),
        (operands[back, 0], *ended(back)),
        (operands[up, 0], time_s[up], up_s, up, up_outcome),
        (operands[commits, 0], time_s[opener[commits]], asked_s[opener[commits]], commits, Outcome.DONE),
        (operands[abandoned, 0], start_s[abandoned], lost_s, abandoned, Outcome.LOST),
        (operands[started, 0], time_s[started], open_s, started, Outcome.UNDER_WAY),
        _step_gradients(reading),
    ]

    messages = []  # (worker, start, end, event, outcome, sender, receiver)
    rows = reading.rows("exchange")
    for to, other in (operands[rows, :2].T, operands[rows, 1::-1].T):
        messages.append((to, *ended(rows), other, to))
    for name, outcome in (("exchange_commit", Outcome.DONE), ("cancel", Outcome.LOST)):
        rows = reading.rows(name)
        to = operands[rows, 0]
        messages.append((to, *ended(rows, outcome), operands[opener[rows], :2].sum(axis=1) - to, to))
    for name, outcome in (("receive", Outcome.DONE), ("drop", Outcome.LOST)):
        rows = reading.rows(name)
        sender = operands[opener[rows], 0]
        messages.append((sender, *ended(rows, outcome), sender, operands[rows, 0]))
    still = reading.is_op(reading.open_event, "exchange_start")
    rows, end = reading.open_event[still], reading.open_place[still] - 2
    messages.append((operands[rows, end], *under_way(rows), operands[rows, 1 - end], operands[rows, end]))
    rows = reading.open_event[reading.is_op(reading.open_event, "send")]
    messages.append((operands[rows, 0], *under_way(rows), operands[rows, 0], UNKNOWN))
    rows = reading.rows("push")
    messages.append((operands[rows, 0], *ended(rows), operands[rows, 0], SERVER))
    rows, computes_s = reading.rows("pull"), time_s.copy()
    evaluations = reading.rows("evaluate")
    computes_s[opener[evaluations]] = start_s[evaluations]
    pulled = (time_s[rows], np.maximum(computes_s, time_s)[rows], rows, Outcome.DONE)
    messages.append((operands[rows, 0], *pulled, SERVER, operands[rows, 0]))
    sent = np.full(len(trace), -1)
    sent[opener[evaluations]] = evaluations
    refused = given_up[sent[opener[given_up]] >= 0]
    events = sent[opener[refused]]
    gone = (time_s[events], time_s[refused], refused, Outcome.LOST)
    messages.append((operands[events, 0], *gone, operands[events, 0], SERVER))
    rows = sent[reading.open_event]
    rows = rows[rows >= 0]
    messages.append((operands[rows, 0], *under_way(rows), operands[rows, 0], SERVER))
    rows = reading.rows("submit")
    worker, from_s, to_s = operands[rows, 0], start_s[rows], time_s[rows]
    messages.append((worker, from_s, from_s, rows, Outcome.DONE, SERVER, worker))
    messages.append((worker, to_s, to_s, rows, Outcome.DONE, worker, SERVER))
    along, exchanges = _pipeline_messages(reading)
    of_pairs = _joined(messages + exchanges)

    groups = trace.groups
    rows = reading.rows("mix")
    if reading.count(rows) > MOST_INSTANTANEOUS:
        rows = rows[start_s[rows] < time_s[rows]]
    event, entry = reading.entries(rows)
    away = (groups.receiver[entry] >= 0) & (groups.receiver[entry] != groups.sender[entry])
    event, sender, receiver = event[away], groups.sender[entry[away]], groups.receiver[entry[away]]
    mixed = (sender, *ended(event), sender, receiver)
    members, entry = reading.entries(reading.rows("step", "reduce", "average"))
    part = [(event, sender), (event, receiver), (members, groups.sender[entry])]
    keys = [events * trace.n_workers + workers for events, workers in part]
    event, worker = np.divmod(np.unique(np.concatenate(keys)), trace.n_workers)
    collectives = (worker, *ended(event))
    return Activity(
        trace.n_workers,
        trace.horizon_s,
        Intervals(*_joined(compute)),
        Intervals(*_joined([of_pairs[:5], collectives])),
        Messages(*_joined([of_pairs, mixed, *along])),
    )


def _asked_s(reading: _Reading) -> np.ndarray:
    """Float64 ``(events,)``: when the gradient that begins with an event asked an optical unit; infinite where it did not."""
    trace, asked_s = reading.trace, np.full(len(reading.trace), np.inf)
    rows, starts = reading.rows("request"), reading.rows("gradient_start")
    if not rows.size:
        return asked_s
    n = len(trace)
    # Half a nanosecond is for rounding. Of a crashed worker it is only known when the request came.
    sent_s = reading.start_s[rows]
    before = np.searchsorted(trace.time_s, sent_s + 5e-10, side="right")
    keys = np.sort(reading.keys(trace.operands[starts, 0], starts))
    worker = trace.operands[rows, 0].astype(np.int64)
    place = np.searchsorted(keys, worker * n + before) - 1
    mine = (place >= 0) & (keys[place] // n == worker) if keys.size else np.zeros(rows.size, bool)
    start = keys[place[mine]] % n
    np.minimum.at(asked_s, start, np.maximum(sent_s[mine], trace.time_s[start]))
    return asked_s


def served(trace: Trace) -> Served:
    """Requests at the optical units of one replica. A unit takes them in the order in which they come.

    Raises:
        InvalidInput: several replicas, or a unit that serves more requests than came to it.
    """
    if len(trace.replicas) != 1:
        raise InvalidInput(
            "trace", f"{len(trace.replicas)} replicas", "one replica", "Take trace.replica(index)."
        )
    codes = {op.name: code for code, op in enumerate(trace.ops)}
    if "request" not in codes:
        return Served(*(np.zeros(0, kind) for kind in (int, int, float, float, float)))
    rows, ends = (np.flatnonzero(trace.op == codes[name]) for name in ("request", "serve"))
    rows, ends = (events[np.argsort(trace.operands[events, 1], kind="stable")] for events in (rows, ends))
    unit, asked_s = trace.operands[rows, 1].astype(np.int64), trace.time_s[rows]
    units = 1 + max(int(trace.operands[events, 1].max(initial=-1)) for events in (rows, ends))
    came, served_of = (np.bincount(trace.operands[events, 1], minlength=units) for events in (rows, ends))
    if (served_of > came).any():
        bad = int(np.argmax(served_of > came))
        got = f"{came[bad]} requests at unit {bad} and {served_of[bad]} served"
        raise InvalidInput("trace", got, "a request before each serve")
    first = np.cumsum(came) - came
    start_s, end_s = np.full((2, rows.size), np.inf)
    place = np.repeat(first - np.cumsum(served_of) + served_of, served_of) + np.arange(ends.size)
    end_s[place] = trace.time_s[ends]
    seconds = np.zeros(ends.size) if trace.duration_s is None else trace.duration_s[ends]
    start_s[place] = np.maximum(end_s[place] - seconds, asked_s[place])  # rounding
    under_way = (first + served_of)[served_of < came]
    before_s = np.zeros(units)
    np.maximum.at(before_s, unit[place], end_s[place])
    start_s[under_way] = np.maximum(asked_s[under_way], before_s[unit[under_way]])
    return Served(unit, trace.operands[rows, 0].astype(np.int64), asked_s, start_s, end_s)


def _pass_ends_s(reading: _Reading, rows: np.ndarray) -> np.ndarray:
    """When passes of a pipeline end: a forward pass stands at its beginning."""
    lasts = np.isin(rows, reading.pipeline_rows(*FORWARD))
    return reading.trace.time_s[rows] + np.where(lasts, durations_s(reading.trace)[rows], 0.0)


def _pipeline_messages(reading: _Reading) -> tuple[list[tuple], list[tuple]]:
    """What went along pipelines, from the end of a pass to the beginning of the next; and exchanges of equal stages."""
    trace, time_s, operands = reading.trace, reading.trace.time_s, reading.operands
    takes = reading.pipeline_rows(*FORWARD, *BACKWARD)
    takes = takes[reading.opener[takes] >= 0]
    takes = takes[
        operands[takes, 0] != operands[reading.opener[takes], 0]
    ]  # the last stage keeps its own error
    sent = reading.opener[takes]
    forward = np.isin(takes, reading.pipeline_rows(*FORWARD))
    taken_s = np.where(forward, time_s[takes], reading.start_s[takes])
    left_s = np.minimum(_pass_ends_s(reading, sent), taken_s)
    sender = operands[sent, 0]
    along: list[tuple] = [(sender, left_s, taken_s, takes, Outcome.DONE, sender, operands[takes, 0])]
    banks = np.array(
        [op.operands[place].bank.partition(":")[0] for op, place in reading.open_operands()], "U8"
    )
    rows = reading.open_event[np.isin(banks, ("token", "cotoken"))]
    errors = reading.pipeline_rows("error")  # each went to all, and some have not read it
    missing = trace.messages_of_events[errors] - np.bincount(sent, minlength=len(trace))[errors]
    rows = np.concatenate([rows, np.repeat(errors, missing)])
    left_s, sender = _pass_ends_s(reading, rows), operands[rows, 0]
    along.append((sender, left_s, trace.horizon_s, rows, Outcome.UNDER_WAY, sender, UNKNOWN))
    along = [
        tuple(np.compress(part[1] <= trace.horizon_s, c) for c in np.broadcast_arrays(*part))
        for part in along
    ]
    exchanges = []
    for code, op in enumerate(trace.ops):
        if op.instruction == "exchange" and op.kind:
            rows = np.flatnonzero(trace.op == code)
            worker, other = trace.ends_of_exchanges(rows).T
            for to, peer in ((worker, other), (other, worker)):
                exchanges.append((to, time_s[rows], time_s[rows], rows, Outcome.DONE, peer, to))
    return along, exchanges


def _step_gradients(reading: _Reading) -> tuple:
    """The intervals in which the members of each ``step`` and ``reduce`` computed."""
    trace, rows = reading.trace, reading.rows("step", "reduce")
    event, entry = reading.entries(rows)
    key = event * trace.n_workers + trace.groups.sender[entry]
    key, which = np.unique(key, return_inverse=True)
    seconds = np.bincount(which, trace.groups.duration_s[entry], key.size)
    event, worker = np.divmod(key, trace.n_workers)
    before_s = np.concatenate([[0.0], trace.time_s[rows]])[np.searchsorted(rows, event)]
    start_s = np.maximum(np.minimum(before_s, trace.time_s[event] - seconds), 0)
    start_s = np.where(seconds > 0, start_s, trace.time_s[event])
    late = reading.opener[event] >= 0
    load, ends = reading.opener[event[late]], reading.rows("reduce")
    last_s = np.concatenate([[0.0], trace.time_s[ends]])[np.searchsorted(ends, load)]
    start_s[late] = _one_after_another(
        worker[late], seconds[late], last_s, trace.time_s[load], trace.n_workers
    )
    return worker, start_s, start_s + seconds, event, Outcome.DONE


@njit(cache=True)
def _one_after_another(worker, seconds, earliest_s, latest_s, n):
    """When each worker began its entries, in order: when the one before was done, within bounds."""
    free_s, start_s = np.zeros(n), np.empty(worker.size)
    for k in range(worker.size):
        start_s[k] = min(max(free_s[worker[k]], earliest_s[k]), latest_s[k])
        free_s[worker[k]] = start_s[k] + seconds[k]
    return start_s


def _joined(parts: Sequence[Sequence]) -> list[np.ndarray]:
    """Tables whose columns may be one value for all rows, below each other."""
    kinds = (np.int64, np.float64, np.float64, np.int64, np.int8, np.int64, np.int64)
    whole = [np.broadcast_arrays(*part) for part in parts]
    return [
        np.concatenate(column).astype(kind)
        for column, kind in zip(zip(*whole, strict=True), kinds, strict=False)
    ]


# -- how busy, how stale, how much -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Utilisation:
    """How each worker spent its time until the horizon; whatever overlaps is counted once.

    Attributes:
        compute_s: float64 ``(n_workers,)``: seconds it computed, lost gradients included.
        communication_s: float64 ``(n_workers,)``: seconds it had an exchange, a collective or a message of its own under
            way. A message that comes to it uninvited is its sender's.
        idle_share: float64 ``(n_workers,)``: share of the time in which it did neither; 1 where nothing takes time.
        horizon_s: the time there was.
    """

    compute_s: np.ndarray
    communication_s: np.ndarray
    idle_share: np.ndarray
    horizon_s: float


@dataclass(frozen=True, eq=False)
class Staleness:
    """How old gradients and messages were when they met a state.

    Attributes:
        worker: int64 ``(gradients,)``: who computed each applied gradient.
        updates: int64 ``(gradients,)``: other changes of the same state between reading the parameters and applying the
            gradient. Of a worker: its other gradients, exchanges, messages received, mixes; of the server: gradients and
            steps of others; of a stage of a pipeline: its backward passes, or updates. 0 for ``gradient`` and ``step``, which
            read what they change.
        delay_s: float64 ``(gradients,)``: seconds between reading (or beginning to compute) and applying.
        message_age_s: float64 ``(messages,)``: seconds between taking and applying a message that took a slot
            (``exchange_start``, ``send``). Those of ``exchange`` and ``mix`` are taken when they are applied.
        message_gradients: int64 ``(messages,)``: gradients its sender finished in between.
    """

    worker: np.ndarray
    updates: np.ndarray
    delay_s: np.ndarray
    message_age_s: np.ndarray
    message_gradients: np.ndarray


@dataclass(frozen=True, eq=False)
class Traffic:
    """What went over each link, and what went to all at once. Sent = received + lost + under way.

    Attributes:
        sender: int64 ``(links,)``, :data:`SERVER` for the server; links stand in order of (sender, receiver).
        receiver: int64 ``(links,)``, the same.
        messages: int64 ``(links,)``: sent.
        lost: int64 ``(links,)``: messages of these that were lost.
        bytes_sent: float64 ``(links,)``.
        bytes_lost: float64 ``(links,)``.
        under_way: messages without a link: sent one-sidedly, and not at their receiver by the horizon.
        collectives: op -> ``{"events", "messages", "bytes"}`` of all-reduces, counted as ``Trace.messages_of_events``.
    """

    sender: np.ndarray
    receiver: np.ndarray
    messages: np.ndarray
    lost: np.ndarray
    bytes_sent: np.ndarray
    bytes_lost: np.ndarray
    under_way: int
    collectives: dict[str, dict[str, float]]


def utilisation(trace: Trace) -> Utilisation:
    """Seconds each worker of one replica computed and communicated, and the share in which it did neither."""
    return _utilisation(activity(trace))


def _utilisation(done: Activity) -> Utilisation:
    compute_s, communication_s, busy_s = (
        _covered_s(done, *parts)
        for parts in ((done.compute,), (done.communication,), (done.compute, done.communication))
    )
    share = busy_s / done.horizon_s if done.horizon_s > 0 else 0 * busy_s
    return Utilisation(compute_s, communication_s, np.round(np.maximum(1 - share, 0), 12), done.horizon_s)


def _covered_s(done: Activity, *parts: Intervals) -> np.ndarray:
    worker, start_s, end_s = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("worker", "start_s", "end_s")
    )
    order = np.argsort(start_s, kind="stable")
    ends_s = np.minimum(end_s[order], done.horizon_s)
    return _union(worker[order], start_s[order], ends_s, done.n_workers)


@njit(cache=True)
def _union(worker, start_s, end_s, n):
    """``(n,)`` length of the union of each worker's intervals, which come in order of their starts."""
    covered, reach = np.zeros(n), np.zeros(n)
    for k in range(worker.size):
        w = worker[k]
        covered[w] += max(0.0, end_s[k] - max(start_s[k], reach[w]))
        reach[w] = max(reach[w], end_s[k])
    return covered


def staleness(trace: Trace) -> Staleness:
    """How stale every applied gradient and every message of one replica was; see :class:`Staleness`."""
    return _staleness(_Reading(trace))


def _staleness(reading: _Reading) -> Staleness:
    trace, opener = reading.trace, reading.opener
    time_s, worker_of = trace.time_s, trace.operands[:, 0]

    def between(changes: np.ndarray, worker: np.ndarray, events: np.ndarray) -> np.ndarray:
        """Changes of a worker after the slot was opened and before the event that closes it."""
        last, first = (
            np.searchsorted(changes, reading.keys(worker, event)) for event in (events, opener[events])
        )
        return last - first

    whole, commits, pushes = reading.rows("gradient"), reading.rows("gradient_commit"), reading.rows("push")
    server = reading.rows("push", "step", "reduce")
    steps = _step_gradients(reading)
    event, entry = reading.entries(reading.rows("step", "reduce"))
    since = np.where(opener[event] >= 0, opener[event], event)
    of_step = np.searchsorted(
        steps[3] * trace.n_workers + steps[0], event * trace.n_workers + trace.groups.sender[entry]
    )
    gradients = [
        (worker_of[whole], 0, time_s[whole] - reading.start_s[whole]),
        (
            worker_of[commits],
            # Every mixing step changes everyone: listed only where something was waiting meanwhile.
            between(reading.updates() if commits.size else commits, worker_of[commits], commits),
            time_s[commits] - time_s[opener[commits]],
        ),
        (
            worker_of[pushes],
            np.searchsorted(server, pushes) - np.searchsorted(server, opener[pushes]),
            time_s[pushes] - time_s[opener[pushes]],
        ),
        (
            trace.groups.sender[entry],
            np.searchsorted(server, event) - np.searchsorted(server, since),
            time_s[event] - steps[1][of_step],
        ),
        _pass_delays(reading),
    ]
    worker, updates, delay_s = (
        np.concatenate(column).astype(kind)
        for column, kind in zip(
            zip(*(np.broadcast_arrays(*part) for part in gradients), strict=True),
            (np.int64, np.int64, np.float64),
            strict=True,
        )
    )
    arrivals = reading.rows("exchange_commit", "receive")
    starts = opener[arrivals]
    sender = worker_of[starts].astype(np.int64)
    if "exchange_start" in reading.codes:
        paired = reading.is_op(starts, "exchange_start")
        ends = trace.operands[starts[paired], :2].sum(axis=1)
        sender[paired] = ends - worker_of[arrivals[paired]]
    gone_by = between(reading.gradients(), sender, arrivals)
    return Staleness(worker, updates, delay_s, time_s[arrivals] - time_s[starts], gone_by)


def _pass_delays(reading: _Reading) -> tuple:
    """Of the backward passes of a pipeline, each one a change of its stage."""
    if not reading.pipeline_rows("turn", "update").size:
        return tuple(np.zeros((3, 0)))
    late = delays(reading.trace)
    return late.worker, late.updates, late.seconds


def bytes_per_link(trace: Trace, message_bytes: float, model_bytes: float | None = None) -> Traffic:
    """Messages and bytes over each link of one replica, and those of its all-reduces.

    Args:
        trace: with one replica.
        message_bytes: bytes of a message (``Demand.message_bytes``).
        model_bytes: bytes of what goes to and from a server and through a ``step``; as a message by default.
    """
    return _traffic(trace, activity(trace).messages, message_bytes, model_bytes)


def _traffic(trace: Trace, sent: Messages, message_bytes: float, model_bytes: float | None) -> Traffic:
    model_bytes = message_bytes if model_bytes is None else model_bytes
    known = sent.receiver != UNKNOWN
    across = trace.n_workers + 1
    key = (sent.sender[known] - SERVER) * across + sent.receiver[known] - SERVER
    key, link = np.unique(key, return_inverse=True)
    lost = sent.outcome[known] == Outcome.LOST
    messages = np.bincount(link, minlength=key.size)
    lost = np.bincount(link[lost], minlength=key.size)
    sender, receiver = (ends + SERVER for ends in np.divmod(key, across))
    size = np.where((sender == SERVER) | (receiver == SERVER), model_bytes, float(message_bytes))
    collectives = {}
    for code, op in enumerate(trace.ops):
        if op.name in (*REDUCTIONS, "average"):
            rows = trace.op == code
            number = int(trace.messages_of_events[rows].sum())
            each = model_bytes if op.name in REDUCTIONS else message_bytes
            collectives[op.name] = {"events": int(rows.sum()), "messages": number, "bytes": number * each}
    return Traffic(
        sender,
        receiver,
        messages,
        lost,
        messages * size,
        lost * size,
        int((~known).sum()),
        collectives,
    )


# -- in words ----------------------------------------------------------------------------------------------------------


def summary_of(trace: Trace) -> dict[str, float | None]:
    """Utilisation, staleness and losses as numbers that JSON can hold, over all replicas of a trace.

    Shares are of the time until the horizon, over workers; staleness is over applied gradients. ``None`` where there is
    nothing to tell: no durations, no gradients.
    """
    readings = [_Reading(trace.replica(index)) for index in range(len(trace.replicas))]
    done = [_activity(reading) for reading in readings]
    timed = trace.duration_s is not None
    busy = [_utilisation(each) for each in done] if timed else []
    stale = [_staleness(reading) for reading in readings]
    compute = [each.compute_s / (each.horizon_s or 1.0) for each in busy]
    outcome = np.concatenate([each.messages.outcome for each in done])
    quantities = {
        "utilisation": (compute, ("mean", "min")),
        "communication": ([each.communication_s / (each.horizon_s or 1.0) for each in busy], ("mean",)),
        "idle": ([each.idle_share for each in busy], ("mean", "max")),
        "staleness": ([each.updates for each in stale], ("mean", "p95", "max")),
        "staleness_s": ([each.delay_s for each in stale], ("mean", "p95", "max")),
        "message_age_s": ([each.message_age_s for each in stale], ("mean", "p95", "max")),
    }
    numbers: dict[str, float | None] = {}
    for name, (arrays, wanted) in quantities.items():
        values = np.concatenate([np.zeros(0), *arrays])
        spread = _spread(values) if values.size else dict.fromkeys(wanted)
        numbers |= {f"{name}_{which}": spread[which] for which in wanted}
    numbers["messages"] = int(trace.messages_of_events.sum())
    numbers["messages_lost"] = int((outcome == Outcome.LOST).sum())
    return numbers


def _spread(values: np.ndarray) -> dict[str, float]:
    middle, high = np.percentile(values, [50, 95])
    return {
        "mean": float(values.mean()),
        "min": float(values.min()),
        "median": float(middle),
        "p95": float(high),
        "max": float(values.max()),
    }


def trace_table(traces: Mapping[str, Trace]) -> str:
    """Counts, realised rates and waiting times, one row per trace, replica and op; how busy, how stale; pipelines by stage.

    ``fewest`` and ``most`` are over the workers; the longest wait counts the time before a worker's first event and
    after its last one. The second table, of traces in which something takes time, has a row per quantity: shares of the
    time until the horizon over the workers, staleness over the applied gradients, ages over the messages. Each pipeline's
    trace has a table of its own, a row per stage. A trace of pipelines does not know how many backward passes make an
    update: it counts passes.

    Args:
        traces: name -> trace.
    """
    rows, spreads, lines, stages = {}, {}, [], []
    for name, trace in _replicas(traces):
        reading = _Reading(trace)
        for code, op in enumerate(trace.ops):
            mine = np.flatnonzero(trace.op == code)
            worker, time_s = reading.taking_part(op, mine)
            per_worker = np.bincount(worker, minlength=trace.n_workers)
            rows[f"{name}, {op.name}"] = {
                "events": mine.size,
                "per worker and s": per_worker.mean() / (trace.horizon_s or 1.0),
                "fewest": int(per_worker.min()),
                "most": int(per_worker.max()),
                "longest wait (s)": _longest_wait(trace, worker, time_s),
                "until (s)": trace.horizon_s,
                "hash": trace.hash[:12],
            }
        if trace.duration_s is not None:
            done = _activity(reading)
            for what, values in _quantities(done, _staleness(reading), changes_of(trace)).items():
                if values.size:
                    spreads[f"{name}, {what}"] = _row(values)
            lines.append(f"{name}: {_fate(trace, done.messages)}\n")
        if trace.banks:
            stages.append(f"\n{name}\n{pipeline_table(trace)}")
    text = _first_column(comparison_table(rows), "trace")
    if spreads:
        text += "\n" + _first_column(comparison_table(spreads), "over the run") + "\n" + "".join(lines)
    return text + "".join(stages)


def _first_column(table: str, title: str) -> str:
    """A comparison table with another word at its top left."""
    return table.replace("algorithm".ljust(len(title)), title.ljust(len("algorithm")), 1)


def _quantities(done: Activity, stale: Staleness, changes: str) -> dict[str, np.ndarray]:
    busy = _utilisation(done)
    span_s = done.horizon_s or 1.0
    return {
        "computing (share of time)": busy.compute_s / span_s,
        "communicating (share)": busy.communication_s / span_s,
        "idle (share)": busy.idle_share,
        f"staleness ({changes})": stale.updates,
        "staleness (s)": stale.delay_s,
        "message age (s)": stale.message_age_s,
        "message age (gradients)": stale.message_gradients,
    }


def _row(values: np.ndarray) -> dict[str, float]:
    spread = {key: float(f"{value:.4g}") for key, value in _spread(values).items()}
    titles = {"mean": "mean", "min": "least", "median": "median", "p95": "95 %", "max": "most"}
    return {"of": values.size} | {title: spread[key] for key, title in titles.items()}


def _fate(trace: Trace, sent: Messages) -> str:
    """In one line what became of the messages."""
    number = int(trace.messages_of_events.sum())
    lost, open_ = (int((sent.outcome == outcome).sum()) for outcome in (Outcome.LOST, Outcome.UNDER_WAY))
    return f"{number} messages sent, {lost} lost, {open_} under way at {format_interval(trace.horizon_s)} s"


def _replicas(traces: Mapping[str, Trace]) -> Iterator[tuple[str, Trace]]:
    """Every replica of every trace, with its name."""
    for name, whole in traces.items():
        for index, replica in enumerate(whole.replicas):
            yield f"{name}, seed {replica.seed}", whole.replica(index)


def _longest_wait(trace: Trace, worker: np.ndarray, time_s: np.ndarray) -> float:
    """The longest time any worker went without an event, the ends included."""
    everyone = np.arange(trace.n_workers)
    who = np.concatenate([worker, everyone, everyone])
    when = np.concatenate([time_s, np.zeros(trace.n_workers), np.full(trace.n_workers, trace.horizon_s)])
    order = np.lexsort((when, who))
    return float(np.diff(when[order])[np.diff(who[order]) == 0].max())


# -- for trace viewers -------------------------------------------------------------------------------------------------

_TRACKS = ("compute", "communication")
_UNIT = 2
"""Instead of a track: that of an optical unit, after all workers'."""


def write_perfetto(traces: Mapping[str, Trace], path: str | os.PathLike) -> None:
    """Write traces in the Chrome trace event format, which ui.perfetto.dev opens.

    A process per trace and replica; per worker a thread for computation and one for communication (further ones where
    messages overlap), or a single one where nothing takes time; a thread for each optical unit's frames. A slice lasts
    as long as in :func:`activity`, at least a nanosecond; a one-sided message lies at its sender, and its arrival is a
    nanosecond at its receiver. Arrows join the two ends of an exchange, and a message with its arrival. One simulated
    second is shown as one second.

    Args:
        traces: name -> trace.
        path: the JSON file; replaced if it exists.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        # An entry a line: a trace may be larger than memory is for a list of them.
        with open(temporary, "w") as file:
            file.write('{"displayTimeUnit": "ms", "traceEvents": [')
            for number, entry in enumerate(_perfetto_entries(traces)):
                file.write((",\n" if number else "\n") + json.dumps(entry))
            file.write("\n]}\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _perfetto_entries(traces: Mapping[str, Trace]) -> Iterator[dict[str, Any]]:
    # Viewers keep process and thread 0 for the idle processor, and want a thread's number only once.
    thread, arrow = 1, 0
    for process, (name, trace) in enumerate(_replicas(traces), start=1):
        yield _title("process_name", process, thread, name)
        slices = _slices(trace)
        lane = _lanes(slices.track, slices.start_ns, slices.end_ns)
        of_workers = trace.n_workers * len(slices.tracks)
        lanes = np.zeros(max(of_workers, int(slices.track.max(initial=-1)) + 1), np.int64)
        np.maximum.at(lanes, slices.track, lane)
        first = thread + np.concatenate([[0], np.cumsum(lanes + 1)])  # of each track, and one past the last
        for track, extra in enumerate(lanes):
            worker, kind = divmod(track, len(slices.tracks))
            for number in range(extra + 1):
                words = (
                    f"worker {worker}{slices.tracks[kind]}"
                    if track < of_workers
                    else f"unit {track - of_workers}"
                )
                words += f" {number + 1}" if number else ""
                yield _title("thread_name", process, thread, words)
                yield _title("thread_sort_index", process, thread, thread)
                thread += 1
        threads = first[slices.track] + lane
        columns = (threads, slices.start_ns, slices.end_ns - slices.start_ns, slices.label, slices.outcome)
        for tid, ts, dur, label, outcome in zip(*(column.tolist() for column in columns), strict=True):
            words = slices.labels[label]
            entry = {"name": words, "cat": words, "ph": "X", "ts": ts / 1e3, "dur": dur / 1e3}
            args = {"args": {"outcome": _OUTCOMES[outcome]}} if outcome else {}
            yield {**entry, "pid": process, "tid": tid, **args}
        for start, end in _arrows(slices):
            arrow += 1
            end_ns = max(slices.start_ns[start], slices.start_ns[end])
            for phase, which, ts in (("s", start, slices.start_ns[start]), ("f", end, end_ns)):
                entry = {"name": "message", "cat": "message", "ph": phase, "id": arrow}
                here = {"ts": int(ts) / 1e3, "pid": process, "tid": int(threads[which])}
                yield entry | here | ({"bp": "e"} if phase == "f" else {})


_OUTCOMES = ("done", "lost", "under way at the end")


@dataclass(frozen=True, eq=False)
class _Slices:
    """What a viewer shows of one replica, in order of the start.

    Attributes:
        tracks: what each worker has, as the end of its thread's name.
        track: int64 ``(slices,)``: worker times the number of tracks, plus which; units after all workers.
        start_ns: int64 ``(slices,)``.
        end_ns: int64 ``(slices,)``, later than the start.
        labels: what slices are called.
        label: ``(slices,)`` index into them.
        outcome: ``(slices,)``.
        meeting: int64 ``(slices,)``: two slices with the same number >= 0 are the ends of an arrow.
        ends: bool ``(slices,)``: it is the end of that arrow.
    """

    tracks: tuple[str, ...]
    track: np.ndarray
    start_ns: np.ndarray
    end_ns: np.ndarray
    labels: tuple[str, ...]
    label: np.ndarray
    outcome: np.ndarray
    meeting: np.ndarray
    ends: np.ndarray


def _slices(trace: Trace) -> _Slices:
    reading = _Reading(trace)
    done = _activity(reading)
    parts: list[tuple] = [
        (part.worker, kind, part.start_s, part.end_s, part.event, part.outcome, False)
        for kind, part in enumerate((done.compute, done.communication))
    ]
    for code, op in enumerate(trace.ops):  # what is no interval, or arrives at a worker that did not ask
        if not (op.name in OPS or op.kind) or op.name in ("receive", "drop", "copy", "reset"):
            places = [place for place, operand in enumerate(op.operands) if operand.bank == "worker"]
            rows = np.flatnonzero(trace.op == code)
            at_s = trace.time_s[rows]
            parts += [(trace.operands[rows, p], 1, at_s, at_s, rows, Outcome.DONE, True) for p in places]
    if (frames := reading.rows("serve")).size:
        at_s = trace.time_s[frames]
        parts.append(
            (trace.operands[frames, 1], _UNIT, reading.start_s[frames], at_s, frames, Outcome.DONE, False)
        )
    worker, kind, start_s, end_s, event, outcome, mark = (
        np.concatenate(column) for column in zip(*(np.broadcast_arrays(*part) for part in parts), strict=True)
    )
    start_ns, end_ns = (np.rint(x * 1e9).astype(np.int64) for x in (start_s, end_s))
    names = np.array([entry.name for entry in trace.ops])[trace.op[event]]
    paired = names == "exchange_commit"
    meeting = np.where(paired, reading.opener[event], event)
    meeting[~np.isin(names, ("exchange", "exchange_commit", "receive"))] = -1
    second = (worker != trace.operands[meeting, 0]) & (meeting >= 0)
    ends = np.where(names == "receive", mark, second)
    tracks = ("",) if trace.duration_s is None else tuple(f", {track}" for track in _TRACKS)
    track = worker.astype(np.int64) * len(tracks) + np.minimum(kind, len(tracks) - 1)
    track = np.where(kind == _UNIT, trace.n_workers * len(tracks) + worker, track)
    order = np.argsort(start_ns, kind="stable")
    labels = (*(op.name.removesuffix("_commit").removesuffix("_start") for op in trace.ops), "send")
    label = np.where(np.isin(names, ("receive", "drop")) & ~mark, len(trace.ops), trace.op[event])
    shown = {
        "track": track,
        "start_ns": start_ns,
        "end_ns": np.maximum(end_ns, start_ns + 1),
        "label": label,
        "outcome": outcome,
        "meeting": meeting,
        "ends": ends,
    }
    columns = {name: column[order] for name, column in shown.items()}
    return _Slices(tracks=tracks, labels=labels, **columns)


def _lanes(track: np.ndarray, start_ns: np.ndarray, end_ns: np.ndarray) -> np.ndarray:
    """The first lane of its track that is free, for slices in order of their start: those of a thread may not overlap."""
    busy: dict[int, list[int]] = {}
    lane = np.zeros(track.size, np.int64)
    for k, (which, start, end) in enumerate(
        zip(track.tolist(), start_ns.tolist(), end_ns.tolist(), strict=True)
    ):
        until = busy.setdefault(which, [])
        free = next((number for number, before in enumerate(until) if before <= start), len(until))
        until[free : free + 1] = [end]
        lane[k] = free
    return lane


def _arrows(slices: _Slices) -> Iterator[tuple[int, int]]:
    """The two slices of every arrow; none where one had ended before the other began."""
    order = np.lexsort((slices.ends, slices.meeting))
    meeting = slices.meeting[order]
    first = np.flatnonzero((meeting[1:] == meeting[:-1]) & (meeting[1:] >= 0))
    start, end = order[first], order[first + 1]
    fits = np.maximum(slices.start_ns[start], slices.start_ns[end]) < slices.end_ns[end]
    yield from zip(start[fits].tolist(), end[fits].tolist(), strict=True)


def _title(what: str, process: int, thread: int, words: str | int) -> dict[str, Any]:
    key = "sort_index" if what.endswith("sort_index") else "name"
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "args": {key: words}}
