"""What each op does to the elements it names, written for one event. The executors batch or loop over these.

An instruction gets one :class:`Actor` per worker or server, a value per slot, and returns what is new. It calls the pure
functions of the worker's algorithm and knows nothing else about it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Draw(IntEnum):
    """What a device draw is for. The values are part of every result: never renumber them."""

    INITIAL_POINT = 0
    GRADIENT = 1
    UPDATE = 2
    MESSAGE = 3
    INITIAL_STATE = 4
    FEEDBACK = 5
    JUDGED = 7


class Actor(NamedTuple):
    """One operand of one event, and what it can do.

    Attributes:
        state: its element of the bank; None where the op does not read it.
        elapsed: time since the element was last written, in the unit of ``flow``.
        count: earlier events of this op on this element; keys the draws.
        algorithm: the algorithm with the hyper-parameters of the worker's replica.
        oracle: ``oracle(params, key, count) -> gradient`` of the worker's own objective; ``key`` is a ``stream``.
        key: the worker's key, from (its replica's seed, its number inside the replica).
        start: the state the worker started from, where the program resets workers.
        number: the worker's number inside its replica.
        batch: ``batch(count) -> (inputs, labels)`` of the model that the worker holds a stage of.
        stage: what a stage of this kind computes.
        loss: ``loss(scores, labels)`` of that model.
        layer: the stage's number in that model; None of the last.
        unit: the key of what projects errors for the worker; None where nothing does.
    """

    state: Any
    elapsed: jax.Array
    count: jax.Array
    algorithm: Any
    oracle: Callable
    key: jax.Array
    start: Any = None
    number: Any = 0
    batch: Any = None
    stage: Any = None
    loss: Any = None
    layer: Any = None
    unit: Any = None

    def stream(self, purpose: Draw) -> jax.Array:
        """The key of all the worker's draws for one purpose."""
        return jax.random.fold_in(self.key, int(purpose))

    def draw(self, purpose: Draw) -> jax.Array:
        """The key of this event's draw for one purpose."""
        return jax.random.fold_in(self.stream(purpose), self.count)


class Pair(NamedTuple):
    """What one end of an exchange under way keeps: the message that comes, and the one it sent."""

    theirs: Any
    mine: Any


class Local:
    """This worker's number and oracles, for messages that carry more than the state.

    Attributes:
        worker: int32, the worker's number inside its replica.
    """

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self.worker = jnp.asarray(actor.number, jnp.int32)

    def gradient(self, params):
        """A stochastic gradient of the worker's objective, drawn from the worker's keys for messages."""
        return self._actor.oracle(params, self._actor.stream(Draw.MESSAGE), self._actor.count)


def gradient(worker: Actor) -> tuple[Any]:
    """A local gradient at one instant: flow to now, evaluate at ``point``, ``update``."""
    algorithm, state = worker.algorithm, worker.state
    if not algorithm.reads_before_flow:
        state = algorithm.flow(state, worker.elapsed)
    slope = worker.oracle(algorithm.point(state), worker.stream(Draw.GRADIENT), worker.count)
    if algorithm.reads_before_flow:
        state = algorithm.flow(state, worker.elapsed)
    return (algorithm.update(state, slope, worker.draw(Draw.UPDATE)),)


def _send(actor: Actor) -> tuple[Any, Any]:
    """``(message, state)`` of a worker that sends now, flowed to now."""
    algorithm, state = actor.algorithm, actor.state
    if not algorithm.reads_before_flow:
        state = algorithm.flow(state, actor.elapsed)
    message, state = algorithm.message(state, Local(actor), actor.draw(Draw.MESSAGE))
    if algorithm.reads_before_flow:
        state = algorithm.flow(state, actor.elapsed)
    return message, state


def _receive(actor: Actor, state, theirs, mine):
    """The state after a message as it was on the wire."""
    algorithm = actor.algorithm
    return algorithm.receive(state, algorithm.decode(theirs), algorithm.decode(mine), 1.0)


def exchange(first: Actor, second: Actor) -> tuple[Any, Any]:
    """Instantaneous pairwise gossip: both flow to now, both send, both receive (``atomic``)."""
    (ours, state), (theirs, other) = _send(first), _send(second)
    return _receive(first, state, theirs, ours), _receive(second, other, ours, theirs)


def gradient_start(worker: Actor, slot: None) -> tuple[None, Any]:
    """Keep the point a gradient is taken at; the worker goes on."""
    algorithm, state = worker.algorithm, worker.state
    if not algorithm.reads_before_flow:
        state = algorithm.flow(state, worker.elapsed)
    return None, algorithm.point(state)


def gradient_commit(worker: Actor, point) -> tuple[Any, None]:
    """The gradient at the point kept when it was started meets the worker's state of now."""
    slope = worker.oracle(point, worker.stream(Draw.GRADIENT), worker.count)
    state = worker.algorithm.flow(worker.state, worker.elapsed)
    return worker.algorithm.update(state, slope, worker.draw(Draw.UPDATE)), None


def exchange_start(first: Actor, second: Actor, a: None, b: None) -> tuple[Any, Any, Any, Any]:
    """Both messages are taken now and applied when they arrive (``paired``): each end keeps what it sent beside them."""
    (ours, state), (theirs, other) = _send(first), _send(second)
    return state, other, Pair(theirs, ours), Pair(ours, theirs)


def exchange_commit(worker: Actor, pair: Pair) -> tuple[Any, None]:
    """The end of an exchange at one of its workers: difference of the two messages taken at its start."""
    state = worker.algorithm.flow(worker.state, worker.elapsed)
    return _receive(worker, state, pair.theirs, pair.mine), None


def send(worker: Actor, slot: None) -> tuple[Any, Any]:
    """Put a message on the wire."""
    message, state = _send(worker)
    return state, message


def receive(worker: Actor, message) -> tuple[Any, None]:
    """A message arrives and meets the state of now (``stale``): ``mine`` is what the worker would send now."""
    algorithm = worker.algorithm
    state = algorithm.flow(worker.state, worker.elapsed)
    mine, _ = algorithm.message(state, Local(worker), worker.draw(Draw.MESSAGE))
    return _receive(worker, state, message, mine), None


def nothing(*operands) -> tuple[None, ...]:
    """A slot is freed, or nothing at all: no effect."""
    return tuple(None for _ in operands)


def pull(worker: Actor, server: Actor, slot: None) -> tuple[None, None, Any]:
    """A worker takes the server's parameters."""
    algorithm = server.algorithm
    return None, None, algorithm.point(algorithm.flow(server.state, server.elapsed))


def evaluate(worker: Actor, point) -> tuple[None, Any]:
    """The worker's gradient at the parameters it took. Takes no time of its own: it is done wherever there is room."""
    return None, worker.oracle(point, worker.stream(Draw.GRADIENT), worker.count)


def push(worker: Actor, server: Actor, slope) -> tuple[None, Any, None]:
    """A gradient arrives at the server."""
    algorithm = server.algorithm
    state = algorithm.flow(server.state, server.elapsed)
    return None, algorithm.update(state, slope, worker.draw(Draw.UPDATE)), None


def copy(worker: Actor, source: Actor) -> tuple[Any, None]:
    """A worker comes back with its neighbour's state."""
    return source.algorithm.flow(source.state, source.elapsed), None


def reset(worker: Actor) -> tuple[Any]:
    """A worker comes back with the state it started from."""
    return (worker.start,)


# -- pipelines: one stage of a model at a time --------------------------------------------------------------------------


def forward(worker: Actor, stage: Actor, *slots) -> tuple[Any, ...]:
    """Activations pass a stage: ``(worker, stage, token or nothing for the first stage, token, stash)``."""
    token, samples = (slots[0], None) if len(slots) == 3 else (None, worker.batch(stage.count)[0])
    outputs, stash = stage.algorithm.forward(stage.stage, stage.state, token, samples)
    return (*(None,) * len(slots), outputs, stash)


def turn(worker: Actor, stage: Actor, token, slot: None) -> tuple[Any, ...]:
    """Forward and backward at the last stage: ``(worker, stage, token, cotoken)``."""
    labels = worker.batch(stage.count)[1]
    state, cotoken = stage.algorithm.turn(stage.stage, stage.loss, stage.state, token, labels, stage.count)
    return None, state, None, cotoken


def backward(worker: Actor, stage: Actor, cotoken, stash, *slots) -> tuple[Any, ...]:
    """Gradients pass a stage: ``(worker, stage, cotoken, stash, cotoken or nothing for the first stage)``."""
    inputs = None if slots else worker.batch(stage.count)[0]
    state, down = stage.algorithm.backward(stage.stage, stage.state, cotoken, stash, stage.count, inputs)
    return (None, state, None, None, *((down,) * len(slots)))


class Projection(NamedTuple):
    """Which projection of an error a stage gets: arguments of a feedback.

    Attributes:
        layer: int32, the stage's number in the model.
        unit_key: JAX key of what projects: the same key, the same matrices.
        key: the ``stream`` of the worker's gradients, for noise.
    """

    layer: jax.Array
    unit_key: jax.Array
    key: jax.Array


def error(worker: Actor, stage: Actor, token, stash: None, slot: None) -> tuple[Any, ...]:
    """Forward at the last stage, which tells all what went wrong: ``(worker, stage, token, stash, error)``."""
    labels = worker.batch(stage.count)[1]
    wrong, kept = stage.algorithm.error(stage.stage, stage.loss, stage.state, token, labels)
    return None, None, None, kept, wrong


def update(worker: Actor, stage: Actor, error, stash) -> tuple[Any, ...]:
    """A stage learns from the error: ``(worker, stage, error, stash)``."""
    projection = None
    if stage.layer is not None:
        projection = Projection(stage.layer, stage.unit, stage.stream(Draw.GRADIENT))
    samples = worker.batch(stage.count)[
        0
    ]  # the first stage alone looks at them: for others XLA leaves them out
    state = stage.algorithm.learn(stage.stage, stage.state, error, stash, stage.count, samples, projection)
    return None, state, None, None


def exchange_stages(worker: Actor, first: Actor, second: Actor) -> tuple[None, Any, Any]:
    """Instantaneous gossip of the same stage of two models."""
    return None, *exchange(first, second)


STAGE_INSTRUCTIONS: dict[str, Callable] = {
    "forward": forward,
    "turn": turn,
    "backward": backward,
    "exchange": exchange_stages,
    "error": error,
    "update": update,
    "release": nothing,
}
"""The part of a pipeline op's name before the kind of stage -> what it does."""

INSTRUCTIONS: dict[str, Callable] = (
    {
        function.__name__: function
        for function in (
            *(
                gradient,
                exchange,
                gradient_start,
                gradient_commit,
                exchange_start,
                exchange_commit,
                send,
                receive,
            ),
            *(pull, evaluate, push, copy, reset),
        )
    }
    | dict.fromkeys(("cancel", "drop", "abandon", "submit", "work", "request", "serve"), nothing)
    | {"load": pull}
)
"""Op -> what it does; ``None`` in the place of an operand that is not written."""


# -- group ops: all workers of a replica at once ------------------------------------------------------------------------


def step(members: Callable, server: Actor, weight: jax.Array):
    """One step of one copy: the weighted mean of the members' gradients at the same point.

    Args:
        members: ``members(point) -> gradients``, stacked over the table's entries.
        server: the copy.
        weight: ``(entries,)``, 0 beyond the table.
    """
    algorithm = server.algorithm
    state = algorithm.flow(server.state, server.elapsed)
    mean = _mean(members(algorithm.point(state)), weight)
    return algorithm.update(state, mean, server.draw(Draw.UPDATE))


def reduce(members: Callable, server: Actor, weight: jax.Array, point):
    """The end of an all-reduce that ran beside other work: a step with gradients at a point that was loaded before."""
    algorithm = server.algorithm
    state = algorithm.flow(server.state, server.elapsed)
    # None in padding, which changes nothing; but a gradient through it must not meet 0 / 0.
    count = jnp.maximum(jnp.sum(weight > 0), 1)
    return algorithm.reduce(state, _mean(members(point), weight), count, server.draw(Draw.UPDATE))


def _mean(slopes, weight):
    return jax.tree.map(lambda leaf: jnp.tensordot(weight.astype(leaf.dtype), leaf, 1), slopes)


def meet(workers: Callable, combine: Callable, receives: jax.Array):
    """All workers of a replica send, messages are combined, and those who receive do.

    Args:
        workers: ``workers(function, *columns)`` applies ``function(actor, *columns)`` to every worker.
        combine: decoded messages ``(workers, ...)`` -> what each worker gets, ``(workers, ...)``.
        receives: bool ``(workers,)``.
    """

    def take(actor, receives):
        message, state = _send(actor)
        # Who is away neither sends nor changes.
        kept = jax.tree.map(
            lambda new, old: jnp.where(receives, new, old),
            state,
            actor.algorithm.flow(actor.state, actor.elapsed),
        )
        return actor.algorithm.decode(message), kept

    messages, states = workers(take, receives)
    gets = combine(messages)

    def put(actor, receives, state, message, mine):
        after = actor.algorithm.receive(state, message, mine, 1.0)
        return jax.tree.map(lambda new, old: jnp.where(receives, new, old), after, state)

    return workers(put, receives, states, gets, messages)
