"""Shapes and sizes of what a run will hold, known before there is any of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decentral.algorithm import Algorithm
from decentral.engine.instructions import Actor, Local
from decentral.problem import Problem


class Shapes(NamedTuple):
    """``jax.ShapeDtypeStruct`` trees: of one worker's parameters, its state, and a message (None where it sends none)."""

    params: Any
    state: Any
    message: Any


def shapes_of(problem: Problem, algorithm: Algorithm) -> Shapes:
    """What a resolved algorithm holds and sends on a problem."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(problem.initial, key)
    state = jax.eval_shape(algorithm.init, params, key)

    def message(state, key):
        def oracle(params, key, count):
            return problem.oracle(algorithm.oracle)(
                params, problem.shards, jnp.zeros((), jnp.int32), key, count
            )

        actor = Actor(state, jnp.zeros((), problem.dtype), jnp.zeros((), jnp.uint32), algorithm, oracle, key)
        return algorithm.message(state, Local(actor), key)[0]

    sends = type(algorithm).message is not Algorithm.message
    return Shapes(params, state, jax.eval_shape(message, state, key) if sends else None)


def size_of(tree: Any) -> int:
    """Bytes of a tree of shapes."""
    return int(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)))
