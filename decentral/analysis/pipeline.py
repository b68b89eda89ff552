"""What a trace says of a pipeline: delays, batches in flight, idle time, rates, memory, when steps end.

Everything measured has the shape (pipelines, stages): worker d J + j holds stage j (from 0) of pipeline d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from decentral.analysis.tables import comparison_table, format_interval
from decentral.engine.trace import Trace
from decentral.errors import InvalidInput, check_integer

FORWARD = ("forward", "error")
"""Ops that stand at their beginning, where they read the parameters."""
BACKWARD = ("turn", "backward", "update")
"""Ops that stand at their end, where they change the parameters."""

# -- read off a trace ----------------------------------------------------------------------------------------------------


def shape_of(trace: Trace) -> tuple[int, int]:
    """``(pipelines, stages)`` of a trace: every pipeline has one last stage.

    Raises:
        InvalidInput: several replicas, or no trace of a pipeline.
    """
    if len(trace.replicas) != 1:
        advice = "Take trace.replica(index)."
        raise InvalidInput("trace", f"{len(trace.replicas)} replicas", "one replica", advice)
    last = next((op for op in trace.ops if op.kind and op.gradients), None)
    if last is None:
        raise InvalidInput("trace", "no turn and no error of a last stage", "a pipeline's trace")
    pipelines = dict(trace.banks)[last.operands[1].bank]
    return pipelines, trace.n_workers // pipelines


def _events(trace: Trace, *instructions: str) -> np.ndarray:
    codes = [op.instruction in instructions and bool(op.kind) for op in trace.ops]
    return np.flatnonzero(np.array(codes, bool)[trace.op])


def lives(trace: Trace, room: str) -> tuple[np.ndarray, np.ndarray]:
    """``(opened, closed)``: the events that opened and closed each slot of the banks ``room:...``; -1: still open."""
    parts, banks = [], {}
    for code, op in enumerate(trace.ops):
        rows = np.flatnonzero(trace.op == code)
        for place, operand in enumerate(op.operands):
            if operand.bank.partition(":")[0] == room:
                bank = banks.setdefault(operand.bank, len(banks))
                slot = (bank << 32) + trace.operands[rows, place].astype(np.int64)
                parts.append((slot, rows, np.full(rows.size, operand.opens)))
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    slot, event, opens = map(np.concatenate, zip(*parts, strict=True))
    order = np.lexsort((event, slot))
    slot, event, opens = slot[order], event[order], opens[order]
    ends = np.append((slot[1:] == slot[:-1]) & ~opens[1:], False)
    closed = np.where(ends, np.roll(event, -1), -1)
    return event[opens], closed[opens]


def passes(trace: Trace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every batch at every stage: ``(worker, forward, backward)``, in order of the worker and the forward pass.

    ``forward`` and ``backward`` are events, ``backward`` -1 where the batch is not back; a turn is both. An ``error`` is a
    forward pass, an ``update`` counts as a backward one.
    """
    opened, closed = lives(trace, "stash")
    turns = _events(trace, "turn")
    forward, backward = np.concatenate([opened, turns]), np.concatenate([closed, turns])
    worker = trace.operands[forward, 0].astype(np.int64)
    order = np.lexsort((forward, worker))
    return worker[order], forward[order], backward[order]


@dataclass(frozen=True, eq=False)
class Delays:
    """How old parameters of the forward pass were at the backward pass, one entry per batch and stage.

    Attributes:
        worker: int64 ``(passes,)``.
        batch: int64 ``(passes,)``, number among those of its worker.
        updates: int64 ``(passes,)``: updates of the stage in between.
        seconds: float64 ``(passes,)`` from the start of forward to the end of backward.
        shape: (pipelines, stages).
    """

    worker: np.ndarray
    batch: np.ndarray
    updates: np.ndarray
    seconds: np.ndarray
    shape: tuple[int, int]

    def steady(self) -> np.ndarray:
        """Float64 ``(pipelines, stages)``: mean updates over the later half of the batches that every stage has back."""
        count = int(np.bincount(self.worker, minlength=math.prod(self.shape)).min())
        later = (self.batch >= count // 2) & (self.batch < count)
        sums = np.bincount(self.worker[later], self.updates[later], math.prod(self.shape))
        return (sums / max(1, count - count // 2)).reshape(self.shape)


def batch_ends_s(trace: Trace) -> np.ndarray:
    """Float64 ``(pipelines, batches)``: when the last stage to update for a batch has done so; only batches that all have done.

    The makespan of m batches is the largest of the first m. With several pipelines, as many as each has.
    """
    shape = shape_of(trace)
    worker, _, backward = passes(trace)
    worker, backward = worker[backward >= 0], backward[backward >= 0]
    count = int(np.bincount(worker, minlength=math.prod(shape)).min())
    batch = np.arange(worker.size) - np.searchsorted(worker, worker)
    ends_s = trace.time_s[backward[batch < count]]  # by worker, then batch: updates are in order
    return ends_s.reshape(*shape, count).max(axis=1)


def delays(trace: Trace, k: int = 1) -> Delays:
    """Updates of a stage between a batch's two passes, where every ``k``-th backward pass is an update.

    In lock-step, with a window of 2 J - 1: 2 (J - j) / k at stage j of J, counted from 1. Without backward passes (``dfa``),
    with two streams and equal passes: (J - j + 1) / k.

    Raises:
        InvalidInput: no trace of a pipeline; ``k`` is no positive integer.
    """
    check_integer("k", k, 1)
    shape = shape_of(trace)
    worker, forward, backward = passes(trace)
    first = np.searchsorted(worker, worker)
    batch = np.arange(worker.size) - first
    there = backward >= 0
    worker, forward, backward, batch = (column[there] for column in (worker, forward, backward, batch))
    keys = np.sort(worker * len(trace) + backward)
    before = np.searchsorted(keys, worker * len(trace))
    at_end, at_start = (
        (np.searchsorted(keys, worker * len(trace) + event) - before) // k for event in (backward, forward)
    )
    began_s = np.where(
        forward == backward, trace.time_s[forward] - durations_s(trace)[forward], trace.time_s[forward]
    )
    return Delays(worker, batch, at_end - at_start, trace.time_s[backward] - began_s, shape)


def durations_s(trace: Trace) -> np.ndarray:
    """Float64 ``(events,)``: how long each took, 0 where the trace does not say."""
    return np.zeros(len(trace)) if trace.duration_s is None else trace.duration_s


def changes_of(trace: Trace) -> str:
    """What changes the parameters of whoever holds them, in words."""
    if any(op.instruction == "update" for op in trace.ops):
        return "update passes"
    return "backward passes" if trace.banks else "updates"


@dataclass(frozen=True, eq=False)
class InFlight:
    """The most there was at one time, int64 ``(pipelines, stages)`` each.

    Attributes:
        batches: that a stage had begun and not got back: what it has to remember, if it has to remember.
        tokens: activations it had sent (or was still computing) that the next stage had not taken.
        cotokens: gradients it had sent that the stage before had not gone backward with.
        errors: of batches that the last stage had gone forward with and it had not updated for, if it sends them to all.
    """

    batches: np.ndarray
    tokens: np.ndarray
    cotokens: np.ndarray
    errors: np.ndarray


def in_flight(trace: Trace) -> InFlight:
    """What was open at most; in lock-step a stage has 2 (J - j) + 1 batches, counted from 1."""
    shape = shape_of(trace)
    worker, forward, backward = passes(trace)
    stash = worker, forward, backward
    first = np.searchsorted(worker, worker)
    last = np.searchsorted(worker, worker - worker % shape[1] + shape[1] - 1) + np.arange(worker.size) - first
    made = np.zeros(worker.size, bool)
    if any(op.instruction == "error" for op in trace.ops):
        made = last < np.searchsorted(worker, worker - worker % shape[1] + shape[1])
    waits = worker[made], forward[last[made]], backward[made]
    sent = [
        (trace.operands[opened, 0], opened, closed)
        for opened, closed in (lives(trace, "token"), lives(trace, "cotoken"))
    ]
    return InFlight(
        *(_most(*part, len(trace), math.prod(shape)).reshape(shape) for part in (stash, *sent, waits))
    )


def _most(worker: np.ndarray, opened: np.ndarray, closed: np.ndarray, events: int, n: int) -> np.ndarray:
    """``(n,)`` the most intervals of events that each worker had open at one time; one of a single event counts."""
    closed = np.where(closed < 0, events, closed)
    at = np.concatenate([opened, np.maximum(closed, opened + 0.5)])  # a turn is open while it lasts
    who = np.concatenate([worker, worker])
    change = np.repeat([1, -1], len(opened))
    order = np.lexsort((at, who))
    who, level = who[order], np.cumsum(change[order])
    most = np.zeros(n, np.int64)
    np.maximum.at(most, who, level)  # the changes of each worker sum to 0
    return most


def busy(trace: Trace, since_s: float = 0.0) -> np.ndarray:
    """Float64 ``(pipelines, stages, 2)``: share of the time from ``since_s`` to the end in forward and in backward passes.

    A turn counts as backward, as does an update of ``dfa``. A backward pass that the end interrupts is not in the trace.
    Where a stage has one stream, it is idle for 1 minus the sum.
    """
    shape = shape_of(trace)
    shares = np.empty((*shape, 2))
    for place, instructions in enumerate((FORWARD, BACKWARD)):
        rows = _events(trace, *instructions)
        end = trace.time_s[rows] + (durations_s(trace)[rows] if place == 0 else 0.0)
        start = end - durations_s(trace)[rows]
        inside = np.minimum(end, trace.horizon_s) - np.maximum(start, since_s)
        worker = trace.operands[rows, 0]
        sums = np.bincount(worker, np.maximum(inside, 0), trace.n_workers)
        shares[:, :, place] = sums.reshape(shape) / (trace.horizon_s - since_s)
    return shares


def batches_per_s(trace: Trace) -> float:
    """Batches of all pipelines per second, over the later half of them: what was in the pipe at the beginning is left out.

    Raises:
        InvalidInput: a pipeline with fewer than four batches.
    """
    shape_of(trace)
    rows, rate = np.flatnonzero(trace.gradients_of_events), 0.0
    for worker in np.unique(trace.operands[rows, 0]):
        time_s = trace.time_s[rows[trace.operands[rows, 0] == worker]]
        if len(time_s) < 4:
            raise InvalidInput("trace", f"{len(time_s)} batches", "at least 4 that came to the last stage")
        half = len(time_s) // 2
        rate += (len(time_s) - 1 - half) / (time_s[-1] - time_s[half])
    return rate


def pipeline_table(trace: Trace, k: int | None = None, samples_per_batch: int | None = None) -> str:
    """A row per stage (mean or most over pipelines), and a line of totals: batches, samples, updates and seconds.

    Args:
        trace: with one replica.
        k: backward passes to an update; None: not known, delays are in passes.
        samples_per_batch: for the totals.

    Raises:
        InvalidInput: no trace of a pipeline; ``k`` is no positive integer.
    """
    shape, late, flying, share = (
        shape_of(trace),
        delays(trace, 1 if k is None else k),
        in_flight(trace),
        busy(trace),
    )
    steady = late.steady()
    seconds = np.bincount(late.worker, late.seconds, trace.n_workers).reshape(shape)
    count = np.maximum(np.bincount(late.worker, minlength=trace.n_workers).reshape(shape), 1)
    rows = {
        f"{j + 1}": {
            f"delay ({'updates' if k else 'passes'})": float(steady[:, j].mean()),
            "delay (s)": float((seconds / count)[:, j].mean()),
            "batches in flight": int(flying.batches[:, j].max()),
            "tokens open": int(flying.tokens[:, j].max()),
            "forward": f"{100 * share[:, j, 0].mean():.1f} %",
            "update"
            if changes_of(trace) == "update passes"
            else "backward": f"{100 * share[:, j, 1].mean():.1f} %",
        }
        for j in range(shape[1])
    }
    turns = int(trace.gradients_of_events.sum())
    backwards = len(_events(trace, *BACKWARD))
    samples = "" if samples_per_batch is None else f"{turns * samples_per_batch} samples, "
    changes = (
        f"{backwards / trace.n_workers / (k or 1):.4g} {'updates' if k else changes_of(trace)} per stage"
    )
    pipelines = "1 pipeline" if shape[0] == 1 else f"{shape[0]} pipelines"
    lines = comparison_table(rows).replace("algorithm", "stage    ", 1)
    return f"{lines}{pipelines}: {turns} batches, {samples}{changes}, {format_interval(trace.horizon_s)} s\n"


def stage_bytes(
    flying: InFlight, parameters: ArrayLike, optimizer: ArrayLike = 0, stash: ArrayLike = 0, token: ArrayLike = 0,
    cotoken: ArrayLike = 0, error: ArrayLike = 0,
) -> np.ndarray:  # fmt: skip
    """Bytes at each stage, ``(pipelines, stages)``: what stays, and what was in flight at most.

    Args:
        flying: of the trace.
        parameters: bytes of a stage's parameters; a number or ``(stages,)``, like the others.
        optimizer: of its optimizer's state and accumulated gradient.
        stash: of what it remembers of a batch; 0 for a reversible stage of PETRA.
        token: of a message up, held until it is taken.
        cotoken: of a message down.
        error: of one that goes to all, held from when the last stage makes it until the stage's update.
    """
    parts = (
        (stash, flying.batches),
        (token, flying.tokens),
        (cotoken, flying.cotokens),
        (error, flying.errors),
    )
    moving = sum(np.asarray(size) * most for size, most in parts)
    return np.asarray(parameters) + np.asarray(optimizer) + moving
