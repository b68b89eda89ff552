"""Shapes and sizes of what a run will hold, known before there is any of it."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decentral.algorithm import Algorithm
from decentral.engine.instructions import Actor, Local, Pair
from decentral.problem import Problem, StagedProblem


class Shapes(NamedTuple):
    """``jax.ShapeDtypeStruct`` trees: of one worker's parameters, its state, and a message (None where it sends none)."""

    params: Any
    state: Any
    message: Any


def shapes_of(problem: Problem, algorithm: Algorithm) -> Shapes:
    """What a resolved algorithm holds and sends on a problem."""
    return _shapes(problem, algorithm, [])


def asks_gradient(problem: Problem, algorithm: Algorithm) -> bool:
    """Whether a resolved algorithm takes gradients when it makes a message."""
    asked: list[bool] = []
    _shapes(problem, algorithm, asked)
    return bool(asked)


def _shapes(problem: Problem, algorithm: Algorithm, asked: list[bool]) -> Shapes:
    """``asked`` gets an entry for every gradient that goes into a message."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(problem.initial, key)
    state = jax.eval_shape(algorithm.init, params, key)

    def message(state, key, shards):
        def oracle(params, key, count):
            asked.append(True)
            return problem.oracle(algorithm.oracle)(params, shards, jnp.zeros((), jnp.int32), key, count)

        actor = Actor(state, jnp.zeros((), problem.dtype), jnp.zeros((), jnp.uint32), algorithm, oracle, key)
        return algorithm.message(state, Local(actor), key)[0]

    sends = type(algorithm).message is not Algorithm.message
    return Shapes(params, state, jax.eval_shape(message, state, key, problem.shards) if sends else None)


def slot_shapes(problem: Problem, algorithm: Algorithm, shapes: Shapes) -> dict[str, Any]:
    """Bank -> the shapes of one element, of all banks a run may have."""
    elements = {
        "worker": shapes.state,
        "server": shapes.state,
        "gradient": shapes.params,
        "message": shapes.message,
        "pair": Pair(shapes.message, shapes.message),
    }
    if not isinstance(problem, StagedProblem) or not isinstance(shapes.state, dict):
        return elements
    key, count = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.uint32)
    shard = jax.ShapeDtypeStruct((), jnp.int32)
    inputs, labels = jax.eval_shape(problem.batch, problem.shards, shard, key, count)
    below = []
    token = inputs
    for shape in problem.stages.shapes:
        stage = problem.stages.kinds[shape.kind]
        state = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), shapes.state[shape.kind]
        )
        elements[f"stage:{shape.kind}"] = state
        elements[f"message:{shape.kind}"] = jax.eval_shape(algorithm.estimate, state)
        below.append((shape, stage, state, token))
        if shape.gives:
            arguments = (state, token, None) if shape.takes else (state, None, token)
            token, stash = jax.eval_shape(partial(algorithm.forward, stage), *arguments)
            elements |= {f"token:{shape.gives}": token, f"stash:{shape.kind}": stash}
    if type(algorithm).learn is not Algorithm.learn:
        shape, stage, state, token = below[-1]
        error = partial(algorithm.error, stage, problem.stages.loss)
        elements["error"], elements[f"stash:{shape.kind}"] = jax.eval_shape(error, state, token, labels)
        return elements
    cotoken = None
    for shape, stage, state, token in reversed(below):
        if shape.gives:
            inputs = None if shape.takes else token
            arguments = (state, cotoken, elements[f"stash:{shape.kind}"], count, inputs)
            cotoken = jax.eval_shape(partial(algorithm.backward, stage), *arguments)[1]
        else:
            turn = partial(algorithm.turn, stage, problem.stages.loss)
            cotoken = jax.eval_shape(turn, state, token, labels, count)[1]
        if shape.takes:
            elements[f"cotoken:{shape.takes}"] = cotoken
    return elements


def token_bytes(problem: Problem, elements: dict[str, Any]) -> tuple[tuple[int, int], ...]:
    """Bytes that go up and down between each two neighbouring stages."""
    shapes = [shape.gives for shape in problem.stages.shapes if shape.gives]
    return tuple(
        (size_of(elements[f"token:{name}"]), size_of(elements.get(f"cotoken:{name}"))) for name in shapes
    )


def size_of(tree: Any) -> int:
    """Bytes of a tree of shapes."""
    return int(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)))
