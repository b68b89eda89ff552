"""What a gradient costs: FLOPs and bytes of a problem, as XLA counts them."""

from __future__ import annotations

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
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Counted(
        parameters, float(counts["flops"]) / samples, float(counts.get("bytes accessed", 0.0)) / samples
    )
