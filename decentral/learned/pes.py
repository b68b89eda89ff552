"""Persistent evolution strategies (PES): an unbiased gradient of the losses of long episodes, from short windows of them.

Vicol, Metz & Sohl-Dickstein, "Unbiased gradient estimation in unrolled computation graphs with persistent evolution
strategies" (ICML 2021); the estimator as the code of learned_optimization computes it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def pes_gradient(
    positive: jax.Array,
    negative: jax.Array,
    restarted: jax.Array,
    accumulated: PyTree,
    perturbation: PyTree,
    std: jax.Array | float,
    counted: jax.Array | None = None,
) -> tuple[PyTree, PyTree]:
    """The gradient from one window of antithetic pairs: the mean over pairs of (L+ - L-) / (2 std^2) times the perturbations.

    A loss is due to all perturbations its episode has seen so far: to the sum of them, and after a restart to this window's
    alone. The loss of a window is the mean over its steps.

    Args:
        positive: losses at the ends where the perturbation is added, ``(steps, pairs)``.
        negative: the same where it is subtracted.
        restarted: bool ``(steps, pairs)``: the step begins a new episode.
        accumulated: sum of the perturbations that the episodes saw in windows before, leaves ``(pairs, ...)``.
        perturbation: this window's, added at the one end and subtracted at the other, leaves ``(pairs, ...)``.
        std: standard deviation of the perturbations.
        counted: bool ``(steps, pairs)``: the steps that count; by default all.

    Returns:
        The gradient, without the axis of pairs, and the sums of perturbations for the next window.
    """
    weight = jnp.ones_like(positive) if counted is None else counted.astype(positive.dtype)
    weight = weight / jnp.sum(weight, axis=0)
    difference = jnp.where(weight > 0, positive - negative, 0) * weight / (2 * std**2)
    new = jnp.cumsum(restarted, axis=0) > 0
    old_part, new_part = jnp.sum(difference * ~new, axis=0), jnp.sum(difference * new, axis=0)
    total = jax.tree.map(jnp.add, accumulated, perturbation)

    def mean(total: jax.Array, own: jax.Array) -> jax.Array:
        return (jnp.tensordot(old_part, total, 1) + jnp.tensordot(new_part, own, 1)) / len(old_part)

    def carried(total: jax.Array, own: jax.Array) -> jax.Array:
        return jnp.where(new[-1].reshape(-1, *(1,) * (own.ndim - 1)), own, total)

    return jax.tree.map(mean, total, perturbation), jax.tree.map(carried, total, perturbation)
