"""What a gradient costs: FLOPs and bytes of a problem, as XLA counts them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decentral.errors import InvalidInput
from decentral.problem.base import Problem


class Counted(NamedTuple):
    """One sample's share of a worker's gradient.

    Attributes:
        parameters: numbers of the model.
        flops: of forward and backward pass, for one sample.
        bytes: read and written, for one sample; operands in cache count too, so this is an upper estimate.
    """

    parameters: int
    flops: float
    bytes: float


def parameters_of(problem: Problem) -> int:
    """Numbers of the model."""
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(problem.initial, jax.random.key(0))))


def measure(problem: Problem) -> Counted:
    """FLOPs and bytes of one worker's gradient, by XLA's cost analysis of the compiled function.

    The same function a simulated worker runs. What a loop of unknown length does is not counted by XLA.

    Raises:
        InvalidInput: the compiler of this backend counts nothing.
    """
    params = jax.eval_shape(problem.initial, jax.random.key(0))
    arguments = (params, problem.shards, jnp.int32(0), jax.random.key(0), jnp.uint32(0))
    analysis: Any = jax.jit(problem.gradient).lower(*arguments).compile().cost_analysis()
    counts = analysis[0] if isinstance(analysis, list | tuple) else analysis
    if not counts or not counts.get("flops"):
        raise InvalidInput(
            "problem", problem.name, "one whose FLOPs XLA counts", "Give [model] kind = measured instead."
        )
    samples = max(float(problem.samples_per_gradient), 1.0)
    return Counted(
        parameters_of(problem),
        float(counts["flops"]) / samples,
        float(counts.get("bytes accessed", 0.0)) / samples,
    )


def product_flops(problem: Problem) -> float:
    """FLOPs of the matrix products and convolutions of one worker's gradient, counted before anything is compiled.

    So it is the same on every backend, and takes no time to compile. Loops over equal layers count as often as they run, those
    of unknown length once, branches as the largest. Without any product it is 6 for each parameter and sample.
    """
    params = jax.eval_shape(problem.initial, jax.random.key(0))
    arguments = (params, problem.shards, jnp.int32(0), jax.random.key(0), jnp.uint32(0))
    found = _products(jax.make_jaxpr(problem.gradient)(*arguments).jaxpr)
    return found or 6.0 * parameters_of(problem) * max(float(problem.samples_per_gradient), 1.0)


def _products(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        kind, options = equation.primitive.name, equation.params
        if kind == "dot_general":
            shape, (contracted, _) = equation.invars[0].aval.shape, options["dimension_numbers"][0]
            total += 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        elif kind == "conv_general_dilated":
            kernel, channels = equation.invars[1].aval, options["dimension_numbers"].rhs_spec[0]
            total += 2.0 * equation.outvars[0].aval.size * kernel.size / kernel.shape[channels]
        else:
            inner = [_products(one) for one in _jaxprs(options)]
            total += max(inner, default=0.0) if kind == "cond" else sum(inner) * options.get("length", 1)
    return total


def _jaxprs(options: dict[str, Any]) -> Iterator[Any]:
    """The functions among an operation's options."""
    for value in options.values():
        for one in value if isinstance(value, list | tuple) else (value,):
            one = getattr(one, "jaxpr", one)
            if hasattr(one, "eqns"):
                yield one
