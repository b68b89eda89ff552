"""The trace: what happened, when, to whom. Plain columns ordered by (time, sequence number). No JAX here.

An *event* is (time, op, operands). An *op* names the bank each operand indexes and says whether it reads, writes, opens
or closes it; nothing below this module knows what an algorithm is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from decentral.errors import InvalidInput, suggest
from decentral.topology.network import Topology

FORMAT_VERSION = 2


@dataclass(frozen=True)
class Operand:
    """One operand of an op.

    Attributes:
        bank: the bank it indexes: ``"worker"``, ``"server"`` (the one copy of algorithms whose workers hold none), ``"group"``
            (a table of :class:`Groups`), ``"unit"`` (an optical unit's number, the same in every replica), one of
            ``Trace.banks`` (the stages of a pipeline), or a bank of slots.
        reads: the op looks at the element.
        writes: the op replaces the element.
        opens: the op puts a new element into a slot; the trace gives it a number no open element has.
        closes: the element is gone after the op, and its slot is free.
    """

    bank: str
    reads: bool = True
    writes: bool = True
    opens: bool = False
    closes: bool = False


@dataclass(frozen=True)
class Op:
    """One instruction: a name and its operands. The first is a worker: whose data, keys and replica the event uses.

    Attributes:
        name: of the instruction; after a colon, the kind of element it is for, where elements of several kinds differ in
            shape: ``"forward:block"``.
        operands: what it takes.
        gradients: gradients that have been applied when it is done (of a group op: one per member).
        messages: messages it puts on the wire (of a group op: how often those that are counted from its table; 0: once).
    """

    name: str
    operands: tuple[Operand, ...]
    gradients: int = 0
    messages: int = 0

    @property
    def is_group(self) -> bool:
        """It takes a group: many workers at once."""
        return any(operand.bank == "group" for operand in self.operands)

    @property
    def is_mark(self) -> bool:
        """It touches nothing: it is there to be counted and drawn, and no executor sees it."""
        return not self.is_group and not any(
            operand.reads or operand.writes or operand.opens or operand.closes for operand in self.operands
        )

    @property
    def instruction(self) -> str:
        """The name without the kind."""
        return self.name.partition(":")[0]

    @property
    def kind(self) -> str:
        """The kind of element it is for, or nothing."""
        return self.name.partition(":")[2]


_WORKER = Operand("worker")
_SERVER = Operand("server")
_WHOSE = Operand("worker", reads=False, writes=False)
_GROUP = Operand("group", reads=False, writes=False)
_UNIT = Operand("unit", reads=False, writes=False)


def _opens(bank: str) -> Operand:
    return Operand(bank, reads=False, opens=True)


def _closes(bank: str, *, reads: bool = True) -> Operand:
    return Operand(bank, reads=reads, writes=False, closes=True)


GRADIENT = Op("gradient", (_WORKER,), gradients=1)
EXCHANGE = Op("exchange", (_WORKER, _WORKER), messages=2)
GRADIENT_START = Op("gradient_start", (Operand("worker", writes=False), _opens("gradient")))
GRADIENT_COMMIT = Op("gradient_commit", (_WORKER, _closes("gradient")), gradients=1)
EXCHANGE_START = Op("exchange_start", (_WORKER, _WORKER, _opens("pair"), _opens("pair")), messages=2)
EXCHANGE_COMMIT = Op("exchange_commit", (_WORKER, _closes("pair")))
CANCEL = Op("cancel", (_WHOSE, _closes("pair", reads=False)))
SEND = Op("send", (_WORKER, _opens("message")), messages=1)
RECEIVE = Op("receive", (_WORKER, _closes("message")))
DROP = Op("drop", (_WHOSE, _closes("message", reads=False)))
PULL = Op("pull", (_WHOSE, Operand("server", writes=False), _opens("gradient")), messages=1)
EVALUATE = Op("evaluate", (_WHOSE, Operand("gradient")), messages=1)
PUSH = Op("push", (_WHOSE, _SERVER, _closes("gradient")), gradients=1)
ABANDON = Op("abandon", (_WHOSE, _closes("gradient", reads=False)))
STEP = Op("step", (_WHOSE, _SERVER, _GROUP))
LOAD = Op("load", (_WHOSE, Operand("server", writes=False), _opens("gradient")))
"""All workers take the parameters at which they go on computing."""
REDUCE = Op("reduce", (_WHOSE, _SERVER, _closes("gradient"), _GROUP))
"""The end of an all-reduce of gradients at parameters that were loaded before: what a ``step`` is without overlap."""
AVERAGE = Op("average", (_WHOSE, _GROUP))
MIX = Op("mix", (_WHOSE, _GROUP))
COPY = Op("copy", (Operand("worker", reads=False), Operand("worker", writes=False)))
RESET = Op("reset", (Operand("worker", reads=False),))
SUBMIT = Op("submit", (_WHOSE,), messages=2)
"""A gradient computed at parameters pulled from the server, and sent; whether it counts is said by a ``step``."""
WORK = Op("work", (_WHOSE,))
"""A computation whose gradient is thrown away."""
REQUEST = Op("request", (_WHOSE, _UNIT))
"""A worker's request arrives at an optical unit; it was on the way, and waiting for the link, for as long as the event lasts."""
SERVE = Op("serve", (_WHOSE, _UNIT))
"""An optical unit has taken the frames of a worker's request, and sends the reply. First come, first served."""
OPS = {
    op.name: op
    for op in (
        *(
            GRADIENT,
            EXCHANGE,
            GRADIENT_START,
            GRADIENT_COMMIT,
            EXCHANGE_START,
            EXCHANGE_COMMIT,
            CANCEL,
            SEND,
            RECEIVE,
        ),
        *(DROP, PULL, EVALUATE, PUSH, ABANDON, STEP, LOAD, REDUCE, AVERAGE, MIX, COPY, RESET, SUBMIT, WORK),
        *(REQUEST, SERVE),
    )
}
"""Every op the executors implement, by name; those of a pipeline's stages are made by :func:`pipeline_ops`."""
REDUCTIONS = ("step", "reduce")
"""Group ops whose table holds gradients."""


STAGE_INSTRUCTIONS = ("forward", "turn", "backward", "exchange", "error", "update", "release")
"""What the ops of a pipeline do, whatever the kind of stage."""


class StageShape(NamedTuple):
    """One stage of a pipeline, as far as a timeline knows it.

    Attributes:
        kind: stages of one kind have the same code and shapes.
        takes: the name of the shape of what comes from the stage before; empty for the first stage, which takes samples.
        gives: the name of the shape of what goes to the next stage; empty for the last.
    """

    kind: str
    takes: str
    gives: str


def pipeline_ops(stages: Sequence[StageShape]) -> tuple[Op, ...]:
    """The instruction set of a pipeline: a forward and a backward op per kind of stage, and an exchange of equal stages.

    * ``forward:KIND(worker, stage, token, token, stash)`` at its start: takes the activations that came, puts its own on
      the wire, and keeps what its backward pass will need. The first stage has no token to take.
    * ``turn:KIND(worker, stage, token, cotoken)`` at its end: the last stage, forward and backward at once.
    * ``backward:KIND(worker, stage, cotoken, stash, cotoken)`` at its end: the first stage sends none.
    * ``exchange:KIND(worker, stage, stage)``: instantaneous gossip of the same stage of two pipelines.

    Banks: ``stage:KIND`` (``Trace.banks``); slots ``token:SHAPE`` for activations on their way up, ``cotoken:SHAPE`` for
    gradients on their way down, and ``stash:KIND``.
    """
    ops = []
    for shape in dict.fromkeys(stages):
        kind, takes, gives = shape
        stage = Operand(f"stage:{kind}")
        if gives:
            ops.append(_forward(shape))
            goes = (_opens(f"cotoken:{takes}"),) if takes else ()
            operands = (_WHOSE, stage, _closes(f"cotoken:{gives}"), _closes(f"stash:{kind}"), *goes)
            ops.append(Op(f"backward:{kind}", operands, messages=len(goes)))
        else:
            operands = (_WHOSE, stage, _closes(f"token:{takes}"), _opens(f"cotoken:{takes}"))
            ops.append(Op(f"turn:{kind}", operands, gradients=1, messages=1))
        ops.append(_meeting(kind))
    return tuple(ops)


def feedback_ops(stages: Sequence[StageShape]) -> tuple[Op, ...]:
    """The instruction set of a pipeline without a backward pass: the error of the last stage goes to all of them at once.

    * ``forward:KIND``, ``exchange:KIND`` as in :func:`pipeline_ops`.
    * ``error:KIND(worker, stage, token, stash, error)`` at its start: the last stage's forward pass, and the gradient of the
      loss at its scores, which it sends to every other stage.
    * ``update:KIND(worker, stage, error, stash)`` at its end: a stage learns from the error; the last stage's is the batch's
      gradient.
    * ``release:KIND(worker, error)``: the last stage to read an error has done so, and its slot is free. Which stage that is
      is no property of an op.

    Banks: those of :func:`pipeline_ops` without ``cotoken:SHAPE``, and ``error``.
    """
    ops = []
    for shape in dict.fromkeys(stages):
        kind, takes, gives = shape
        if gives:
            ops.append(_forward(shape))
        else:
            looks, error = Operand(f"stage:{kind}", writes=False), _opens("error")
            operands = (_WHOSE, looks, _closes(f"token:{takes}"), _opens(f"stash:{kind}"), error)
            ops.append(Op(f"error:{kind}", operands, messages=len(stages) - 1))
            ops.append(Op(f"release:{kind}", (_WHOSE, _closes("error", reads=False))))
        reads = Operand("error", writes=False), _closes(f"stash:{kind}")
        ops.append(Op(f"update:{kind}", (_WHOSE, Operand(f"stage:{kind}"), *reads), gradients=int(not gives)))
        ops.append(_meeting(kind))
    return tuple(ops)


def _forward(stage: StageShape) -> Op:
    kind, takes, gives = stage
    comes = (_closes(f"token:{takes}"),) if takes else ()
    looks = Operand(f"stage:{kind}", writes=False)
    operands = (_WHOSE, looks, *comes, _opens(f"token:{gives}"), _opens(f"stash:{kind}"))
    return Op(f"forward:{kind}", operands, messages=1)


def _meeting(kind: str) -> Op:
    stage = Operand(f"stage:{kind}")
    return Op(f"exchange:{kind}", (_WHOSE, stage, stage), messages=2)


@dataclass(frozen=True, eq=False)
class Groups:
    """Ragged tables that group ops point to: table g is the entries ``start[g] ... start[g + 1] - 1``.

    * ``step``, ``reduce``: the gradients of ``sender``, each with ``weight``; who took several is there several times.
    * ``average``: the messages of ``sender`` with ``weight``; those with ``receiver`` >= 0 receive the weighted sum.
    * ``mix``: ``receiver`` receives the sum of ``weight`` times the message of ``sender`` over its entries.

    Attributes:
        start: int64 ``(tables + 1,)``.
        receiver: int32 ``(entries,)``, numbers inside the replica, -1 for none.
        sender: int32 ``(entries,)``, numbers inside the replica.
        weight: float64 ``(entries,)``.
        duration_s: float64 ``(entries,)``: seconds the sender computed for this entry (of a ``step``; else 0). For people,
            like ``Trace.duration_s``.
    """

    start: np.ndarray
    receiver: np.ndarray
    sender: np.ndarray
    weight: np.ndarray
    duration_s: np.ndarray

    def __len__(self) -> int:
        return len(self.start) - 1

    @classmethod
    def of(cls, tables: Sequence[tuple]) -> Groups:
        """From ``(receiver, sender, weight)`` or ``(receiver, sender, weight, duration_s)`` arrays, one tuple per table."""
        sizes = [len(table[1]) for table in tables]
        padded = [(*table, np.zeros(size))[:4] for table, size in zip(tables, sizes, strict=True)]
        columns = (
            np.concatenate([np.asarray(table[k], kind) for table in padded]) if tables else np.zeros(0, kind)
            for k, kind in enumerate((np.int32, np.int32, np.float64, np.float64))
        )
        return cls(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), *columns)

    @property
    def sizes(self) -> np.ndarray:
        """Entries of each table."""
        return np.diff(self.start)

    def messages(self, op: str) -> np.ndarray:
        """``(tables,)`` messages an op with this table sends.

        A ``mix`` sends one along every entry between two workers. A ring or tree reduces and broadcasts a message among k
        workers with 2 (k - 1) times its bytes in total.
        """
        if op == "mix":
            away = np.concatenate([[0], np.cumsum((self.receiver != self.sender) & (self.receiver >= 0))])
            return away[self.start[1:]] - away[self.start[:-1]]
        if op == "average":
            return 2 * np.maximum(self.sizes - 1, 0)
        table = np.repeat(np.arange(len(self)), self.sizes)
        pairs = np.unique(np.stack([table, self.sender]), axis=1)[0] if table.size else table
        distinct = np.bincount(pairs, minlength=len(self))
        return 2 * np.maximum(distinct - 1, 0)


NO_GROUPS = Groups.of([])


@dataclass(frozen=True)
class Replica:
    """One of the disjoint copies a trace holds.

    Attributes:
        seed: keys its draws; None for an imported trace.
        horizon_s: it ends here, at or after its last event. A stop by number of gradients ends each seed at its own time.
        tables: among several replicas, how many of the group tables are its own.
    """

    seed: int | None = None
    horizon_s: float = 0.0
    tables: int = 0


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """Columns of events, ordered by time; events at the same time keep their order.

    Replicas that end at different times are interleaved by :attr:`progress` instead, so that one barrier stops each of
    them at the same share of its own horizon.

    Build one with a protocol, :meth:`from_arrays` or :meth:`load`.

    Attributes:
        time_s: float64 ``(events,)``, seconds, not decreasing within a replica.
        op: uint8 ``(events,)``, index into ``ops``.
        operands: int32 ``(events, arity)``, -1 where an op has fewer operands.
        ops: the instruction set of this trace.
        n_workers: workers of one replica; replica r owns the elements ``r * n_workers ... (r+1) * n_workers - 1``.
        replicas: one entry per disjoint copy.
        groups: the tables of group ops.
        duration_s: float64 ``(events,)``, or None where nothing takes time: how long what ends with this event took (a
            gradient's computation, a message's way, an all-reduce). It draws charts and decides no number: no part of the
            hash.
        banks: ``(name, elements of one replica)`` of every bank besides workers and servers whose elements stay: the stages
            of pipelines. Replica r owns the elements ``r * elements ... (r+1) * elements - 1``.
    """

    time_s: np.ndarray
    op: np.ndarray
    operands: np.ndarray
    ops: tuple[Op, ...]
    n_workers: int
    replicas: tuple[Replica, ...] = (Replica(),)
    groups: Groups = NO_GROUPS
    duration_s: np.ndarray | None = None
    banks: tuple[tuple[str, int], ...] = ()

    @property
    def horizon_s(self) -> float:
        """When the last replica ends."""
        return max(replica.horizon_s for replica in self.replicas)

    @cached_property
    def one_horizon(self) -> bool:
        """All replicas end at the same time."""
        return len({replica.horizon_s for replica in self.replicas}) == 1

    @cached_property
    def progress(self) -> np.ndarray:
        """Float64 ``(events,)``: an event's time as a share of its replica's horizon, not decreasing."""
        horizons = np.array([replica.horizon_s or 1.0 for replica in self.replicas])
        return self.time_s / horizons[self.replica_of_event]

    @classmethod
    def from_arrays(
        cls,
        time_s,
        op,
        operands,
        *,
        n_workers: int,
        ops: Sequence[str | Op] = ("gradient", "exchange"),
        horizon_s: float | None = None,
        seed: int | None = None,
        groups: Groups = NO_GROUPS,
        duration_s: np.ndarray | None = None,
        banks: Sequence[tuple[str, int]] = (),
    ) -> Trace:
        """A trace from event columns of your own: a recorded run, a cluster's log, a hand-made test.

        Times are kept exactly as given. Draws (mini-batches, noise) are keyed by ``seed``.

        Args:
            time_s: ``(events,)`` seconds, finite, not negative, not decreasing.
            op: ``(events,)`` codes into ``ops``, or op names.
            operands: ``(events, arity)``: the workers of an event; what lies beyond an op's arity is ignored.
            n_workers: number of workers, at least 2.
            ops: names (or :class:`Op` objects) in the order of their codes. The default reads 0 as a gradient of
                ``operands[:, 0]`` and 1 as an exchange between ``operands[:, 0]`` and ``operands[:, 1]``.
            horizon_s: end of the run; the last event's time by default.
            seed: keys the draws made on this trace.
            groups: the tables of group ops.
            duration_s: ``(events,)``, as in the class.
            banks: as in the class.

        Raises:
            InvalidInput: unknown op, an operand that is not there, time running backwards, lengths that differ.

        Example:
            >>> trace = Trace.from_arrays([0.3, 0.5], [0, 1], [[2, -1], [0, 1]], n_workers=3)
            >>> trace.counts
            {'gradient': 1, 'exchange': 1}
        """
        if isinstance(n_workers, bool) or int(n_workers) != n_workers or n_workers < 2:
            raise InvalidInput("n_workers", n_workers, "an integer >= 2")
        table = tuple(_op(name) for name in ops)
        time_s = np.ascontiguousarray(time_s, np.float64)
        if time_s.ndim != 1:
            raise InvalidInput("time_s", f"shape {time_s.shape}", "one axis: (events,)")
        op = np.asarray(op)
        if op.dtype.kind in "UO":
            codes = {entry.name: code for code, entry in enumerate(table)}
            for name in np.unique(op):
                if name not in codes:
                    raise InvalidInput("op", str(name), "an op of this trace", suggest(str(name), codes))
            op = np.array([codes[name] for name in op], np.uint8)
        operands = np.asarray(operands)
        if operands.ndim == 1:
            operands = operands[:, None]
        if not (len(time_s) == len(op) == len(operands)):
            raise InvalidInput(
                "columns",
                f"{len(time_s)} times, {len(op)} ops, {len(operands)} operands",
                "columns of equal length",
            )
        if op.size and (op.min() < 0 or op.max() >= len(table)):
            bad = int(np.flatnonzero((op < 0) | (op >= len(table)))[0])
            names = [entry.name for entry in table]
            raise InvalidInput("op", f"code {op[bad]} at event {bad}", f"0 ... {len(table) - 1}, for {names}")
        arity = max((len(entry.operands) for entry in table), default=1)
        width = operands.shape[1]
        columns = np.full((len(time_s), arity), -1, np.int32)
        for code, entry in enumerate(table):
            rows = op == code
            if len(entry.operands) > width:
                if rows.any():
                    raise InvalidInput(
                        "operands",
                        f"shape {operands.shape}",
                        f"{len(entry.operands)} columns for op {entry.name!r}",
                    )
                continue
            columns[rows, : len(entry.operands)] = operands[rows, : len(entry.operands)]
        last = float(time_s[-1]) if time_s.size else 0.0
        horizon_s = last if horizon_s is None else float(horizon_s)
        replicas = (Replica(seed, horizon_s),)
        trace = cls(
            *(time_s, op.astype(np.uint8), columns, table, int(n_workers), replicas, groups, duration_s),
            tuple((str(name), int(elements)) for name, elements in banks),
        )
        trace.validate()
        return trace

    def validate(self) -> None:
        """Check what every trace must hold; costs one pass.

        Raises:
            InvalidInput: names the first event that is wrong.
        """
        time_s = self.time_s
        if self.duration_s is not None and len(self.duration_s) != len(time_s):
            raise InvalidInput(
                "duration_s", f"{len(self.duration_s)} durations", f"one for each of {len(time_s)} events"
            )
        if not np.isfinite(time_s).all():
            bad = int(np.flatnonzero(~np.isfinite(time_s))[0])
            raise InvalidInput("time_s", f"{time_s[bad]} at event {bad}", "finite seconds")
        if time_s.size and time_s[0] < 0:
            raise InvalidInput("time_s", f"{time_s[0]} at event 0", "seconds >= 0")
        backwards = np.flatnonzero(np.diff(time_s if self.one_horizon else self.progress) < 0)
        if backwards.size:
            bad = int(backwards[0]) + 1
            raise InvalidInput(
                "time_s",
                f"{time_s[bad]} at event {bad} after {time_s[bad - 1]}",
                "times in order",
                "Sort the events.",
            )
        if time_s.size and self.horizon_s < time_s.max():
            raise InvalidInput("horizon_s", self.horizon_s, f"at or after the last event, {time_s.max()} s")
        total = self.n_workers * len(self.replicas)
        tops = {
            "worker": (total, "a worker"),
            "server": (len(self.replicas), "a server"),
            "group": (len(self.groups), "a group"),
        } | {name: (size * len(self.replicas), f"an element of {name}") for name, size in self.banks}
        for name, column in (("sender", self.groups.sender), ("receiver", self.groups.receiver)):
            if column.size and (
                column.max() >= self.n_workers or column.min() < (0 if name == "sender" else -1)
            ):
                bad = int(column.max() if column.max() >= self.n_workers else column.min())
                raise InvalidInput(f"groups.{name}", bad, f"a worker from 0 to {self.n_workers - 1}")
        if self.op.size and self.op.max() >= len(self.ops):
            bad = int(np.flatnonzero(self.op >= len(self.ops))[0])
            raise InvalidInput("op", f"code {self.op[bad]} at event {bad}", f"0 ... {len(self.ops) - 1}")
        for code, op in enumerate(self.ops):
            rows = np.flatnonzero(self.op == code)
            operands = self.operands[rows]
            for position, operand in enumerate(op.operands):
                column = operands[:, position]
                top, what = tops.get(operand.bank, (np.iinfo(np.int32).max, ""))
                wrong = np.flatnonzero((column < 0) | (column >= top))
                if wrong.size:
                    allowed = f"{what} from 0 to {top - 1}" if what else "a number >= 0"
                    event = int(rows[wrong[0]])
                    raise InvalidInput(
                        f"operands of {op.name}", f"{column[wrong[0]]} at event {event}", allowed
                    )
                for other in range(position):
                    same = np.flatnonzero(column == operands[:, other])
                    if op.operands[other].bank == operand.bank and same.size:
                        event, who = int(rows[same[0]]), int(column[same[0]])
                        raise InvalidInput(
                            f"operands of {op.name}",
                            f"{operand.bank} {who} twice at event {event}",
                            "distinct operands",
                        )

    def __len__(self) -> int:
        return len(self.time_s)

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {op}" for op, count in self.counts.items() if count)
        return f"<Trace: {len(self.replicas)} x {self.n_workers} workers, {self.horizon_s:.6g} s: {counts or 'no events'}>"

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of events of each op."""
        numbers = np.bincount(self.op, minlength=len(self.ops))
        return {op.name: int(number) for op, number in zip(self.ops, numbers, strict=True)}

    @cached_property
    def gradients_of_events(self) -> np.ndarray:
        """Int64 ``(events,)``: gradients that each event applies."""
        return self._per_event(
            lambda op: op.gradients, lambda op: self.groups.sizes * (op.name in REDUCTIONS)
        )

    @cached_property
    def messages_of_events(self) -> np.ndarray:
        """Int64 ``(events,)``: messages that each event puts on the wire; an all-reduce counts for as many as its bytes make.

        The gradients of a ``step`` that came to a server one by one (``submit``, ``pull``) are counted there.
        """
        served = any(op.name in ("submit", "pull") for op in self.ops)
        return self._per_event(
            lambda op: op.messages,
            lambda op: (
                self.groups.messages(op.name) * (not (served and op.name == "step")) * max(1, op.messages)
            ),
        )

    def _per_event(self, plain, of_table) -> np.ndarray:
        values = np.array([plain(op) for op in self.ops], np.int64)[self.op]
        for code, op in enumerate(self.ops):
            if op.is_group:
                rows = self.op == code
                values[rows] = of_table(op)[self.operands[rows, len(op.operands) - 1]]
        return values

    @cached_property
    def gradients_of_workers(self) -> np.ndarray:
        """Int64 ``(total_workers,)``: gradients of each worker that were applied."""
        applied = np.zeros(self.total_workers, np.int64)
        for code, op in enumerate(self.ops):
            rows = self.op == code
            if op.gradients:
                applied += np.bincount(self.operands[rows, 0], minlength=applied.size)
            elif op.name in REDUCTIONS:
                tables, first = (
                    self.operands[rows, len(op.operands) - 1],
                    self.replica_of_event[rows] * self.n_workers,
                )
                sizes = self.groups.sizes[tables]
                # Entry k of an event is entry start + k of its table.
                place = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
                sender = self.groups.sender[np.repeat(self.groups.start[tables], sizes) + place]
                applied += np.bincount(np.repeat(first, sizes) + sender, minlength=applied.size)
        return applied

    def cut(self, events: int) -> Trace:
        """The first ``events`` events of one replica; it ends with the last of them."""
        last_s = float(self.time_s[events - 1]) if events else 0.0
        replicas = (dataclasses.replace(self.replicas[0], horizon_s=last_s),)
        return dataclasses.replace(
            self,
            time_s=self.time_s[:events],
            op=self.op[:events],
            operands=self.operands[:events],
            replicas=replicas,
            duration_s=None if self.duration_s is None else self.duration_s[:events],
        )

    def up_to(self, gradients: int) -> tuple[int, Trace]:
        """``(taken, trace)``: the events of one replica until so many gradients are taken, or all where they are fewer."""
        done = np.cumsum(self.gradients_of_events)
        last = int(np.searchsorted(done, gradients))
        if last == len(done):
            return (int(done[-1]) if last else 0), self
        return int(done[last]), self.cut(last + 1)

    @property
    def total_workers(self) -> int:
        """Elements of the worker bank: workers of all replicas."""
        return self.n_workers * len(self.replicas)

    def replica(self, index: int) -> Trace:
        """One replica's events with its own worker numbers ``0 ... n_workers - 1``."""
        if len(self.replicas) == 1 and index == 0:
            return self
        rows = self.replica_of_event == index
        op, operands = self.op[rows], self.operands[rows]
        first = sum(replica.tables for replica in self.replicas[:index])
        last = first + self.replicas[index].tables
        mine = _columns(op, operands, self, "slot")
        first_slot = int(operands[mine].min()) if mine.any() else 0
        back = {"worker": -index * self.n_workers, "server": -index, "group": -first, "slot": -first_slot}
        back |= {name: -index * size for name, size in self.banks}
        operands = _shifted(op, operands, self, back)
        entries = slice(self.groups.start[first], self.groups.start[last])
        groups = Groups(
            self.groups.start[first : last + 1] - self.groups.start[first],
            *(getattr(self.groups, name)[entries] for name, _ in _GROUP_COLUMNS[1:]),
        )
        replicas = (self.replicas[index],)
        duration_s = None if self.duration_s is None else self.duration_s[rows]
        return Trace(
            *(
                self.time_s[rows],
                op,
                operands,
                self.ops,
                self.n_workers,
                replicas,
                groups,
                duration_s,
                self.banks,
            )
        )

    @cached_property
    def replica_of_event(self) -> np.ndarray:
        """Int ``(events,)``: which replica an event belongs to."""
        return self.operands[:, 0] // self.n_workers

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the columns, the instruction set and the number of workers (not of the seed that drew them)."""
        columns = ColumnHash()
        columns.add(self)
        return columns.hexdigest(self, self.horizon_s)

    @property
    def hashes(self) -> tuple[str, ...]:
        """The hash of every replica's own events."""
        return tuple(self.replica(index).hash for index in range(len(self.replicas)))

    def realised_rates(self) -> dict[str, float]:
        """Per worker and second: ``gradient`` (applied), ``exchange`` (counts for both of its workers), ``message``.

        :meth:`realised_topology` has the Laplacian and its constants.
        """
        span = sum(replica.horizon_s for replica in self.replicas) * self.n_workers or np.inf
        exchanges = sum(
            self.counts[op.name] for op in self.ops if op.instruction in ("exchange", "exchange_start")
        )
        return {
            "gradient": float(self.gradients_of_events.sum() / span),
            "exchange": float(2 * exchanges / span),
            "message": float(self.messages_of_events.sum() / span),
        }

    def ends_of_exchanges(self, rows: np.ndarray) -> np.ndarray:
        """Int64 ``(rows, 2)``: the workers that meet in these events, exchanges of one op."""
        ends = self.operands[rows, :2].astype(np.int64)
        op = self.ops[self.op[rows[0]]] if len(rows) else EXCHANGE
        if op.kind:  # of stages, which stand in order of pipelines
            far = (self.operands[rows, 2].astype(np.int64) - self.operands[rows, 1]) * self.n_workers
            ends[:, 1] = ends[:, 0] + far // dict(self.banks)[op.operands[1].bank]
        return ends

    def realised_topology(self, unit_s: float = 1.0) -> Topology | None:
        """The graph with the rates at which pairs of workers met, whose Laplacian and chi_1, chi_2 are those that happened.

        Of the first replica: exchanges that came about (half of one for each end that was not cancelled), and entries of
        mixing matrices (both directions together are one exchange).

        Args:
            unit_s: seconds in the unit of time of the rates.

        Returns:
            None where workers do not meet in pairs, or too rarely to connect the graph.
        """
        n, pairs, weights = self.n_workers, [], []
        first = self.replica_of_event == 0
        names = [op.name for op in self.ops]
        cancelled = (
            self.operands[self.op == names.index("cancel"), 1] if "cancel" in names else np.zeros(0, int)
        )
        for code, op in enumerate(self.ops):
            rows = (self.op == code) & first
            if op.instruction in ("exchange", "exchange_start"):
                pairs.append(self.ends_of_exchanges(np.flatnonzero(rows)))
                ends = np.full((int(rows.sum()), 2), 0.5)
                if op.name == "exchange_start":
                    ends[np.isin(self.operands[rows, 2:4], cancelled)] = 0.0
                weights.append(ends.sum(1))
            elif op.name == "mix":
                times = np.bincount(self.operands[rows, len(op.operands) - 1], minlength=len(self.groups))
                table = np.repeat(np.arange(len(self.groups)), self.groups.sizes)
                away = (self.groups.receiver != self.groups.sender) & (times[table] > 0)
                pairs.append(np.stack([self.groups.receiver[away], self.groups.sender[away]], 1))
                weights.append(times[table[away]] / 2)
        if not pairs or not self.horizon_s:
            return None
        return realised(n, np.concatenate(pairs), np.concatenate(weights), self.replicas[0].horizon_s, unit_s)

    def save(self, path: str | os.PathLike) -> None:
        """Write an ``.npz`` that NumPy alone can read; the file appears whole or not at all."""
        path = Path(path)
        header = {
            "version": FORMAT_VERSION,
            "ops": [asdict(op) for op in self.ops],
            "n_workers": self.n_workers,
            "replicas": [asdict(replica) for replica in self.replicas],
            "banks": self.banks,
        }
        columns = {
            "time_s": self.time_s,
            "op": self.op,
            "operands": self.operands,
            "header": np.array(json.dumps(header)),
        }
        if len(self.groups):
            columns |= {f"group_{name}": getattr(self.groups, name) for name, _ in _GROUP_COLUMNS}
        if self.duration_s is not None:
            columns["duration_s"] = self.duration_s
        temporary = path.with_name(path.name + ".tmp")
        with open(temporary, "wb") as file:
            np.savez(file, **columns)  # type: ignore[arg-type]
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Trace:
        """Read what :meth:`save` wrote.

        Raises:
            InvalidInput: the file is missing, damaged, of a newer format, or names workers that are not there.
        """
        try:
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                header = json.loads(str(file["header"]))
                columns = {name: file[name] for name in ("time_s", "op", "operands")}
                duration_s = file.get("duration_s")
                groups = NO_GROUPS
                if "group_start" in file:
                    groups = Groups(*(file[f"group_{name}"] for name, _ in _GROUP_COLUMNS))
            if header["version"] > FORMAT_VERSION:
                raise InvalidInput("trace file", f"format {header['version']}", f"format <= {FORMAT_VERSION}")
            ops = tuple(map(_read_op, header["ops"]))
            replicas = tuple(Replica(**replica) for replica in header["replicas"])
            trace = cls(
                **columns,
                ops=ops,
                n_workers=header["n_workers"],
                replicas=replicas,
                groups=groups,
                duration_s=duration_s,
                banks=tuple((str(name), int(size)) for name, size in header.get("banks", ())),
            )
        except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
            if isinstance(error, InvalidInput):
                raise
            raise InvalidInput(
                "trace file", str(path), "a trace written by Trace.save", f"Reading it failed: {error}"
            ) from None
        trace.validate()
        return trace


def realised(
    n: int, pairs: np.ndarray, weights: np.ndarray, horizon_s: float, unit_s: float
) -> Topology | None:
    """The graph of pairs that met, ``weights`` times until the horizon; None where it is not connected."""
    pair = np.sort(pairs.astype(np.int64), axis=1)
    keys, edge = np.unique(pair[:, 0] * n + pair[:, 1], return_inverse=True)
    rates = np.bincount(edge, weights, len(keys)) * unit_s / horizon_s
    try:
        return Topology("realised", n, np.stack([keys // n, keys % n], axis=1), rates)
    except InvalidInput:
        return None


def replica_shifted(trace: Trace, index: int) -> Trace:
    """The events of one replica with the worker numbers that it has as replica ``index`` among others."""
    if not index:
        return trace
    operands = _shifted(trace.op, trace.operands, trace, {"worker": index * trace.n_workers})
    return dataclasses.replace(trace, operands=operands)


class ColumnHash:
    """The hash of a trace, from consecutive pieces of it: a digest of every column, then one over those and the header."""

    def __init__(self) -> None:
        self._digests: dict[str, Any] = {}

    def add(self, piece: Trace) -> None:
        """The next events. Group tables, where there are any, come with one piece alone."""
        columns = {
            "time_s": (piece.time_s, "<f8"),
            "op": (piece.op, "<u1"),
            "operands": (piece.operands, "<i4"),
        }
        if len(piece.groups):
            columns |= {name: (getattr(piece.groups, name), kind) for name, kind in _GROUP_COLUMNS[:-1]}
        for name, (column, kind) in columns.items():
            self._digests.setdefault(name, hashlib.sha256()).update(np.ascontiguousarray(column, kind).data)

    def hexdigest(self, trace: Trace, horizon_s: float) -> str:
        """Of all that was added; instruction set and sizes as those of ``trace``."""
        header = {
            "version": FORMAT_VERSION,
            "ops": [asdict(op) for op in trace.ops],
            "n_workers": trace.n_workers,
            "horizon_s": float(horizon_s).hex(),
            "columns": {name: digest.hexdigest() for name, digest in self._digests.items()},
        } | ({"banks": trace.banks} if trace.banks else {})
        return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def merge(traces: Sequence[Trace]) -> Trace:
    """Disjoint copies in one trace: trace r becomes replica r."""
    if len(traces) == 1:
        return traces[0]
    first = traces[0]
    for trace in traces:
        if (trace.n_workers, trace.ops, trace.banks) != (first.n_workers, first.ops, first.banks):
            sizes = f"{trace.n_workers} and {first.n_workers} workers"
            got = sizes if trace.n_workers != first.n_workers else f"{trace.ops} and {first.ops}"
            raise InvalidInput("traces", got, "replicas of one size and instruction set")
    time_s = np.concatenate([trace.time_s for trace in traces])
    one_horizon = len({trace.horizon_s for trace in traces}) == 1
    order = np.argsort(time_s if one_horizon else np.concatenate([t.progress for t in traces]), kind="stable")
    operands, shift = (
        [],
        {"worker": 0, "server": 0, "group": 0, "slot": 0} | {name: 0 for name, _ in first.banks},
    )
    for trace in traces:
        operands.append(_shifted(trace.op, trace.operands, trace, shift))
        used = _columns(trace.op, trace.operands, trace, "slot")
        shift["worker"] += trace.total_workers
        shift["server"] += len(trace.replicas)
        shift["group"] += len(trace.groups)
        for name, size in trace.banks:
            shift[name] += size * len(trace.replicas)
        shift["slot"] += int(trace.operands[used].max()) + 1 if used.any() else 0
    groups = NO_GROUPS
    if any(len(trace.groups) for trace in traces):
        starts = np.cumsum([0, *(trace.groups.start[-1] for trace in traces)])
        groups = Groups(
            np.concatenate([[0], *(t.groups.start[1:] + a for t, a in zip(traces, starts, strict=False))]),
            *(np.concatenate([getattr(t.groups, name) for t in traces]) for name, _ in _GROUP_COLUMNS[1:]),
        )
    duration_s = None
    if first.duration_s is not None:
        durations = [trace.duration_s for trace in traces if trace.duration_s is not None]
        duration_s = np.concatenate(durations)[order]
    return Trace(
        time_s[order],
        np.concatenate([trace.op for trace in traces])[order],
        np.concatenate(operands)[order],
        first.ops,
        first.n_workers,
        tuple(replica for trace in traces for replica in _with_tables(trace)),
        groups,
        duration_s,
        first.banks,
    )


def _with_tables(trace: Trace) -> tuple[Replica, ...]:
    if len(trace.replicas) > 1:
        return trace.replicas
    return tuple(dataclasses.replace(replica, tables=len(trace.groups)) for replica in trace.replicas)


_GROUP_COLUMNS = (
    ("start", "<i8"),
    ("receiver", "<i4"),
    ("sender", "<i4"),
    ("weight", "<f8"),
    ("duration_s", "<f8"),
)


def _columns(op: np.ndarray, operands: np.ndarray, trace: Trace, kind: str) -> np.ndarray:
    """Mask ``(events, arity)`` of the operands that number workers, servers, groups, a bank's elements, or (``"slot"``) slots."""
    mask = np.zeros(operands.shape, bool)
    fixed = {"worker", "server", "group", "unit", *(name for name, _ in trace.banks)}
    for code, entry in enumerate(trace.ops):
        for position, operand in enumerate(entry.operands):
            bank = operand.bank if operand.bank in fixed else "slot"
            if bank == kind:
                mask[:, position] |= op == code
    return mask


def _shifted(op, operands, trace: Trace, by: dict[str, int]) -> np.ndarray:
    shifted = operands.copy()
    for kind, distance in by.items():
        if distance:
            shifted[_columns(op, operands, trace, kind)] += distance
    return shifted


def _read_op(entry: dict) -> Op:
    """An op of a file; before format 2 it did not say how many gradients and messages it makes."""
    operands = tuple(Operand(**operand) for operand in entry["operands"])
    known = OPS.get(entry["name"])
    if known is None and entry["name"].partition(":")[0] in STAGE_INSTRUCTIONS:
        return Op(entry["name"], operands, entry["gradients"], entry["messages"])
    if known is None:
        raise InvalidInput(
            "trace file", f"op {entry['name']!r}", "ops of this version", suggest(entry["name"], OPS)
        )
    if known.operands == operands:
        return known
    return Op(entry["name"], operands, entry.get("gradients", 0), entry.get("messages", 0))


def _op(name: str | Op) -> Op:
    if isinstance(name, Op):
        return name
    if name not in OPS:
        raise InvalidInput("ops", name, "ops the executors implement", suggest(str(name), OPS))
    return OPS[name]
