"""A run as a pure function of its hyper-parameters: it differentiates, and runs for many of them at once.

The events are arrays, in chunks of one shape. The executor is the same: :func:`decentral.engine.execute.row_step` and
``group_step`` on the rows of the run's plan, in a ``lax.scan`` in the place of a loop that overwrites its state.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from decentral.engine.execute import Banks, Context, group_step, row_step, scan_rows
from decentral.engine.record import measures
from decentral.errors import InvalidInput, suggest
from decentral.experiment.simulation import Simulation

SHAPES = 64
"""Lengths that are tried for the rows before a group op."""


class Moment(NamedTuple):
    """Where a run is: all that changes in it.

    Attributes:
        banks: the state of the engine.
        keys: JAX keys ``(total_workers,)`` of all draws.
        start: the states that workers which are reset return to, or None: none is.
    """

    banks: Banks
    keys: jax.Array
    start: Any = None


class Chunk(NamedTuple):
    """What happens between two records, as arrays: the same shapes for every chunk of a run.

    A frame is some rows and then the group ops, where the run has any; what is missing is padding.

    Attributes:
        rows: as ``Plan.rows`` has them, with axes (pieces, frames, rows) in front.
        groups: as ``Plan.group_rows`` has them, with axes (pieces, frames) in front.
        elapsed: ``(models,)``: how long the states flow from their last events to the record.
    """

    rows: Any
    groups: Any
    elapsed: jax.Array


class Unroll:
    """A prepared run as pure functions of the algorithm.

    Every method may be traced: jit, vmap, grad. A chunk is what happens between two records (before the first, where that
    is not at 0), padded to the longest: records should be spread evenly over the events. What comes after the last record
    is left out.

    Reverse mode keeps the banks once for every piece of a chunk, of about the square root of all frames, and computes a
    piece again on its way back.

    Args:
        simulation: the run, prepared with rows; its own state is not touched.

    Attributes:
        algorithm: its hyper-parameters, as the engine has them: arrays, with a leading replica axis if replicas differ.
        chunks: a :class:`Chunk` with the chunks as the first axis of every array.
        times_s: float64 ``(replicas, chunks)``, the record times at the chunks' ends.
        fill: share of the frames that are no padding.

    Raises:
        InvalidInput: the run was prepared for the eager executor, or records nothing after 0.

    Example:
        >>> unroll = Unroll(Simulation(trace, problem, algorithm, record=Record(count=1)))
        >>> def loss(rate):
        ...     algorithm = dataclasses.replace(unroll.algorithm, eta=rate)
        ...     return unroll.values(algorithm, unroll.start(algorithm), "loss")[-1].mean()
        >>> jax.value_and_grad(loss)(0.1)
    """

    def __init__(self, simulation: Simulation) -> None:
        if simulation.plan is None:
            raise InvalidInput(
                "simulation.executor", simulation.executor, "'rows': events alone have no arrays"
            )
        self.simulation = simulation
        self.algorithm = simulation.context.algorithm
        self.program = simulation.program
        plan, events = simulation.plan, simulation.events
        # Of several records at one number of events the last is the chunk's.
        ends = np.flatnonzero(
            (np.diff(events, append=-1) != 0) & (events > 0) & (simulation.times_s.max(0) > 0)
        )
        if not ends.size:
            raise InvalidInput(
                "record", "nothing after the first event", "a record at the end: Record(count=1)"
            )
        self.times_s = simulation.times_s[:, ends]
        elapsed = np.stack([simulation.elapsed_at(int(end)) for end in ends])
        frames, groups_of = _frames(plan, ends)
        # One row and one section beyond the last: padding.
        sections, dtype = len(plan.section_rows) - 1, simulation.dtype
        self.fill = float(((frames < plan.n_rows).any(-1) | (groups_of < sections)).mean())
        rows = plan.rows(0, plan.n_rows, plan.n_rows + 1, dtype)
        groups = plan.group_rows(0, sections, sections + 1, dtype) if self.program.active_groups() else {}
        self.chunks = Chunk(
            jax.tree.map(lambda column: jnp.asarray(column[frames]), rows),
            jax.tree.map(lambda column: jnp.asarray(column[groups_of]), groups),
            jnp.asarray(elapsed),
        )

    @property
    def n_chunks(self) -> int:
        """Number of chunks."""
        return self.chunks.elapsed.shape[0]

    def chunk(self, index: Any) -> Chunk:
        """One chunk; ``index`` may be traced."""
        return jax.tree.map(lambda column: column[index], self.chunks)

    def start(self, algorithm: Any, key: jax.Array | None = None) -> Moment:
        """The run before its first event.

        Args:
            algorithm: like ``self.algorithm``.
            key: of all draws, starting points (unless given to the run) and mini-batches; None: the run's own seeds.
        """
        simulation = self.simulation
        seeds = [replica.seed or 0 for replica in simulation.trace.replicas]
        if key is None:
            roots = [jax.random.key(seed) for seed in seeds]
        else:
            roots = [jax.random.fold_in(key, index) for index in range(len(seeds))]
        keys = simulation.keys_of(roots)
        context = simulation.context._replace(algorithm=algorithm, keys=keys)
        states = simulation.states_at(simulation.starting_points(roots), context)
        if simulation.states_given is not None:
            states = jax.tree.map(
                lambda own, given: jnp.asarray(given, own.dtype), states, simulation.states_given
            )
        resets = simulation.context.start is not None
        return Moment(simulation.banks_of(states), keys, states if resets else None)

    def advance(self, algorithm: Any, moment: Moment, chunk: Chunk) -> Moment:
        """The run after one more chunk."""
        context, single = self._context(algorithm, moment), self._single

        def frame(banks, step):
            rows, groups = step
            if rows and single:
                banks = row_step(self.program, banks, jax.tree.map(lambda column: column[0], rows), context)
            elif rows:
                banks = scan_rows(self.program, banks, rows, context)
            if groups:
                banks = group_step(self.program, banks, groups, context)
            return banks, None

        # Without frames that are computed again the gradient of a long run would need all its states at once.
        @jax.checkpoint
        def piece(banks, frames):
            return lax.scan(frame, banks, frames)[0]

        banks = lax.scan(
            lambda state, frames: (piece(state, frames), None), moment.banks, (chunk.rows, chunk.groups)
        )[0]
        return moment._replace(banks=banks)

    def measure(self, algorithm: Any, moment: Moment, chunk: Chunk, metric: str = "loss") -> jax.Array:
        """``(replicas,)``: a metric as the run's record at the end of ``chunk`` has it, ``moment`` being there.

        Raises:
            InvalidInput: no such metric.
        """
        simulation = self.simulation
        evaluate = simulation.record.evaluate
        of_run = measures(self.program, simulation.holder, simulation.per_problem, evaluate)
        context = self._context(algorithm, moment)
        metrics = of_run(moment.banks, chunk.elapsed, context, simulation.targets)
        if metric not in metrics:
            raise InvalidInput("metric", metric, "a recorded metric", suggest(metric, sorted(metrics)))
        return metrics[metric]

    def models(self, algorithm: Any, moment: Moment, chunk: Chunk) -> Any:
        """All models as the run's record at the end of ``chunk`` has them, their number in front (no pipelines)."""
        simulation, context = self.simulation, self._context(algorithm, moment)
        replicas = len(simulation.trace.replicas)

        def one(state, elapsed, replica):
            own = self.program.algorithm_of(context, replica)
            return own.estimate(own.flow(state, elapsed))

        replica = jnp.repeat(jnp.arange(replicas), simulation.models)
        return jax.vmap(one)(moment.banks[simulation.holder], chunk.elapsed, replica)

    def values(
        self, algorithm: Any, moment: Moment, metric: str = "loss", chunks: Chunk | None = None
    ) -> jax.Array:
        """``(chunks, replicas)``: a metric at the end of every chunk, from the run's start ``moment``.

        Args:
            algorithm: like ``self.algorithm``.
            moment: where the first chunk begins.
            metric: as for :meth:`measure`.
            chunks: like ``self.chunks``, which it is by default; with other weights in the group ops, say.
        """

        def one(moment, chunk):
            moment = self.advance(algorithm, moment, chunk)
            return moment, jax.checkpoint(self.measure, static_argnums=3)(algorithm, moment, chunk, metric)

        return lax.scan(one, moment, self.chunks if chunks is None else chunks)[1]

    @property
    def _single(self) -> bool:
        """A frame is one row."""
        columns = jax.tree.leaves(self.chunks.rows)
        return not columns or columns[0].shape[3] == 1

    def _context(self, algorithm: Any, moment: Moment) -> Context:
        return self.simulation.context._replace(algorithm=algorithm, keys=moment.keys, start=moment.start)


def _frames(plan, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows, and which section's group ops, every frame has.

    Args:
        plan: the run's.
        ends: the barriers at the chunks' ends.

    Returns:
        Int64 ``(chunks, pieces, frames, rows)`` and ``(chunks, pieces, frames)``; ``plan.n_rows`` and the number of
        sections stand for nothing.
    """
    edges = [0, *plan.segment_sections[ends + 1].tolist()]
    used, lengths = slice(0, edges[-1]), np.diff(plan.section_rows)
    has_group = (plan.group_event >= 0).any(1) if plan.group_event.size else np.zeros(len(lengths), bool)
    size = _frame_rows(lengths[used]) if has_group[used].any() else 1
    # A section takes as many frames as its rows do; its group ops are the last one's.
    parts = np.maximum(-(-lengths // size), has_group)
    of_chunk = [int(parts[first:last].sum()) for first, last in itertools.pairwise(edges)]
    longest = max(of_chunk)
    pieces = -(-longest // max(1, math.isqrt(sum(of_chunk))))
    piece = -(-longest // pieces)
    rows = np.full((len(of_chunk), pieces * piece, size), plan.n_rows, np.int64)
    sections = np.full(rows.shape[:2], len(lengths), np.int64)
    for index, (first, last) in enumerate(itertools.pairwise(edges)):
        at = 0
        for section in range(first, last):
            of_section = rows[index, at : at + parts[section]].reshape(-1)
            of_section[: lengths[section]] = np.arange(*plan.section_rows[section : section + 2])
            at += int(parts[section])
            if has_group[section]:
                sections[index, at - 1] = section
    shape = len(of_chunk), pieces, piece
    return rows.reshape(*shape, size), sections.reshape(shape)


def _frame_rows(lengths: np.ndarray) -> int:
    """Rows of a frame that make the run shortest, where a group op takes as long as a row; ``lengths``: of the sections."""
    longest = max(1, int(lengths.max()))
    tried = np.unique(np.geomspace(1, longest, SHAPES).astype(int))
    cost = [int((np.maximum(1, -(-lengths // size)) * (size + 1)).sum()) for size in tried]
    return int(tried[np.argmin(cost)])
