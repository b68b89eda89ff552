"""Gradient noise and heterogeneity of a problem at a point: the sigma^2 and zeta^2 of the theorems."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from decentral.problem.base import Problem, PyTree, take


def gradient_noise(
    problem: Problem, params: PyTree, key: jax.Array, draws: int = 64, workers: int = 16
) -> float:
    r"""sigma^2 = mean_i E ||grad f_i(x, xi) - grad f_i(x)||^2 at x = ``params``, by Monte Carlo; 0 for full gradients.

    The mean is over ``draws`` gradients of each of ``workers`` workers (all, if there are no more; else a random choice by
    ``key``); workers that hold a model between them are one. Relative standard error: v / sqrt(draws * workers), where v
    is the coefficient of variation of the squared norm: sqrt(2/d) for Gaussian noise, about 1 for small batches; 3 % for
    v = 1 and the defaults. If not all workers are looked at, the spread of sigma_i^2 among workers divided by
    sqrt(workers) comes on top. Recorded noise is averaged over its first ``draws`` entries per worker.

    Args:
        problem: the problem.
        params: one worker's parameters, x.
        key: typed JAX key.
        draws: gradients per worker.
        workers: workers looked at.
    """
    if not problem.is_stochastic:
        return 0.0
    n = problem.n_workers // problem.workers_per_model
    chosen = jax.random.permutation(key, n)[: min(workers, n)].astype(jnp.int32)

    def noise(params: PyTree, shards: PyTree, chosen: jax.Array, key: jax.Array) -> jax.Array:
        rows = jax.tree.leaves(shards)[0].shape[0]  # one, if all workers have the same data
        # One after another: a full gradient may fill the memory.
        exact = jax.lax.map(lambda i: problem.full_gradient(params, take(shards, i)), chosen[:rows])

        def squares(draw: jax.Array) -> jax.Array:
            own = jax.vmap(lambda i: jax.random.fold_in(key, i))(chosen)
            drawn = jax.vmap(problem.gradient, (None, None, 0, 0, None))(params, shards, chosen, own, draw)
            return _sum(jax.tree.map(lambda u, v: jnp.square(u - v).reshape(len(u), -1).sum(1), drawn, exact))

        # NaN: beyond the end of recorded noise
        return jnp.nanmean(jax.lax.map(squares, jnp.arange(draws, dtype=jnp.uint32)))

    return float(_compiled(problem, f"noise {draws}", noise)(params, problem.shards, chosen, key))


def heterogeneity(problem: Problem, params: PyTree) -> float:
    r"""zeta^2 = mean_i ||grad f_i(x) - grad f(x)||^2 at x = ``params``, exact.

    One pass over the workers (Welford 1962): memory of a few gradients, and no cancellation.
    """

    def spread(params: PyTree, shards: PyTree) -> jax.Array:
        def add(carry: tuple, numbered: tuple) -> tuple[tuple, None]:
            (mean, squares), (number, shard) = carry, numbered
            gradient = problem.full_gradient(params, shard)
            change = jax.tree.map(jnp.subtract, gradient, mean)
            mean = jax.tree.map(lambda m, c: m + c / number.astype(c.dtype), mean, change)
            rest = jax.tree.map(jnp.subtract, gradient, mean)
            return (mean, squares + _sum(jax.tree.map(lambda u, v: jnp.sum(u * v), change, rest))), None

        rows = jax.tree.leaves(shards)[0].shape[0]  # one, if all workers have the same data
        numbers = jnp.arange(1, rows + 1, dtype=jnp.int32)
        start = (jax.tree.map(jnp.zeros_like, params), jnp.zeros((), problem.dtype))
        (_, squares), _ = jax.lax.scan(add, start, (numbers, shards))
        return squares / rows

    return float(_compiled(problem, "heterogeneity", spread)(params, problem.shards))


def _sum(tree: PyTree) -> jax.Array:
    return jnp.asarray(sum(jax.tree.leaves(tree)))


def _compiled(problem: Problem, name: str, function: Callable) -> Callable:
    """``function`` jitted once per problem; kept on the problem, so that both are freed together."""
    return vars(problem).setdefault("_compiled", {}).setdefault(name, jax.jit(function))
