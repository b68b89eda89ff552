"""A fixed asynchronous trace as a task to meta-train a learned optimizer on: workers that exchange, wait and are late."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decentral.algorithm import Algorithm, Optimizer
from decentral.engine.instructions import Draw
from decentral.errors import InvalidInput
from decentral.experiment.entry import prepare
from decentral.experiment.record import Record
from decentral.experiment.simulation import Simulation
from decentral.experiment.unroll import Chunk, Moment, Unroll
from decentral.learned.meta_parameters import MetaParameters
from decentral.problem import FiniteSum, Problem
from decentral.problem.checks import check_int
from decentral.problem.pytrees import pytree, static
from decentral.protocol import Protocol, Stop
from decentral.timing import Cluster
from decentral.topology import Topology


class Position(NamedTuple):
    """Where an episode is.

    Attributes:
        moment: of the run.
        step: int32, chunks done.
    """

    moment: Moment
    step: jax.Array


@pytree
class TraceTask:
    """The workers of a run train with the learned optimizer on fixed events; a task of ``decentral.learned.tasks``.

    A step is a chunk of the trace. It is judged by the mean over all models, as they are at its end, of f on a mini-batch:
    of a worker drawn anew for each model, so that what counts is how good a worker's model is for all. An episode's
    starting point and mini-batches are drawn from its key; its events are always the same. Built by :func:`trace_task`.

    Args:
        name: for tables and messages.
        unroll: the run.
        chunks: its events.
    """

    name: str = static()
    unroll: Unroll = static()
    chunks: Chunk = None  # type: ignore[assignment]

    @property
    def max_steps(self) -> int:
        """The chunks of the trace."""
        return self.unroll.n_chunks

    def start(self, meta: MetaParameters, key: jax.Array) -> Position:
        """The run before its first event, drawn from ``key``."""
        return Position(self.unroll.start(self._algorithm(meta), key), jnp.zeros((), jnp.int32))

    def step(self, meta: MetaParameters, state: Position) -> tuple[Position, jax.Array]:
        """One chunk, and the loss after it."""
        algorithm = self._algorithm(meta)
        chunk = jax.tree.map(lambda column: column[state.step], self.chunks)
        moment = self.unroll.advance(algorithm, state.moment, chunk)
        models = self.unroll.models(algorithm, moment, chunk)
        simulation = self.unroll.simulation
        problem, context = simulation.problems[0], simulation.context
        workers = simulation.trace.n_workers

        def judged(params, key, replica):
            where, batch = jax.random.split(
                jax.random.fold_in(jax.random.fold_in(key, int(Draw.JUDGED)), state.step)
            )
            worker = replica * workers + jax.random.randint(where, (), 0, workers)
            return problem.value_and_gradient(
                params, context.shards, context.shard_of[worker], batch, jnp.zeros((), jnp.uint32)
            )[0]

        first = slice(None, None, workers // simulation.models)
        losses = jax.vmap(judged)(models, moment.keys[first], context.replica_of[first])
        return Position(moment, state.step + 1), losses.mean()

    def _algorithm(self, meta: MetaParameters) -> Any:
        """The run's algorithm with these meta-parameters in its learned optimizers."""
        return jax.tree.map(
            lambda node: node.with_meta_parameters(meta) if _is_learned(node) else node,
            self.unroll.algorithm,
            is_leaf=_is_learned,
        )


def trace_task(
    problem: Problem,
    topology: Topology,
    algorithm: Algorithm,
    protocol: Protocol | None = None,
    *,
    cluster: Cluster | None = None,
    stop: Stop | float,
    steps: int,
    seeds: int | Sequence[int] = 1,
    name: str | None = None,
) -> TraceTask:
    """A task made of what :func:`decentral.simulate` would run.

    Args:
        problem: a mean of losses over samples.
        topology: the graph.
        algorithm: with one or more learned optimizers; what their meta-parameters are does not matter.
        protocol: when things happen, as in ``simulate``.
        cluster: as in ``simulate``.
        stop: simulated seconds, ``Time`` or ``Gradients``.
        steps: chunks of equal numbers of events that it is cut into: the steps of the longest episode.
        seeds: networks side by side, with events of their own: how many, or which.
        name: by default the problem's and the algorithm's.

    Raises:
        InvalidInput: no learned optimizer in the algorithm, a problem that is no mean over samples, more steps than events.
    """
    if not isinstance(problem, FiniteSum) or problem.workers_per_model > 1:
        raise InvalidInput(
            "problem",
            getattr(problem, "name", problem),
            "a mean of losses over samples, whole on each worker",
        )
    check_int("steps", steps)
    simulation = prepare(
        problem,
        topology,
        algorithm,
        protocol,
        cluster=cluster,
        stop=stop,
        seeds=seeds,
        record=Record(count=1, evaluate=False),
    )
    if not any(map(_is_learned, jax.tree.leaves(simulation.algorithms[0], is_leaf=_is_learned))):
        raise InvalidInput(
            "algorithm", type(algorithm).__name__, 'an algorithm with Optimizer("learned", ...) in it',
            "Nothing else has meta-parameters.",
        )  # fmt: skip
    events = len(simulation.trace)
    if steps > events:
        raise InvalidInput("steps", steps, f"at most the {events} events of the trace")
    # Chunks of equal times would be of unequal lengths, and padded.
    cuts = np.linspace(0, events, steps + 1).round().astype(int)[1:]
    even = Record(events=tuple(cuts.tolist()), evaluate=False)
    unroll = Unroll(
        Simulation(
            simulation.trace,
            problem,
            algorithm,
            network=simulation.networks,
            record=even,
            name=simulation.name,
        )
    )
    return TraceTask(name or f"{problem.name}, {simulation.name}", unroll, unroll.chunks)


def _is_learned(node: Any) -> bool:
    return isinstance(node, Optimizer) and node.kind == "learned"
