"""What one would write by hand, to compare with: a jitted ``lax.scan`` for PETRA and for ACCO, and a learned optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from decentral.engine.instructions import Draw
from decentral.learned.optimizer import TIMES, factored_axes
from decentral.problem.sampling import batch_rows


def petra_scan(problem, key, ticks: int, learning_rate: float, momentum: float) -> Callable[[Any], Any]:
    """PETRA in lock-step, one update per backward pass: ``run(params) -> params``.

    Each tick all equal blocks go forward, and all go backward, as one ``vmap`` each; passes of batches that are not there
    yet change nothing. Buffers hold what lies between two stages.

    Args:
        problem: a model of a first stage, equal reversible blocks on two streams, and a last stage.
        key: of the worker whose draws make the batches.
        ticks: how many.
        learning_rate, momentum: of SGD.
    """
    stages = problem.stages
    first, block, last = (stages.kinds[kind] for kind in dict.fromkeys(stages.order))
    kinds, n_stages = list(dict.fromkeys(stages.order)), len(stages.order)
    stream = jax.random.fold_in(key, int(Draw.GRADIENT))
    inner = jnp.arange(1, n_stages - 1)

    def batch(number):
        return problem.batch(problem.shards, 0, stream, jnp.maximum(number, 0).astype(jnp.uint32))

    def one(tree):
        return jax.tree.map(lambda leaf: leaf[0], tree)

    def updated(params, velocity, gradient, there):
        def kept(new, old):
            return jnp.where(there.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

        moved = jax.tree.map(lambda v, g: momentum * v + g, velocity, gradient)
        stepped = jax.tree.map(lambda p, v: p - learning_rate * v, params, moved)
        return jax.tree.map(kept, stepped, params), jax.tree.map(kept, moved, velocity)

    def block_backward(params, outputs, slope):
        inputs = block.inverse(params, outputs)
        gradient, down = jax.vjp(block.apply, params, inputs)[1](slope)
        return gradient, inputs, down

    def tick(carry, t):
        params, velocity, up, down = carry
        below, above = (jax.tree.map(lambda leaf, s=s: leaf[s], up) for s in (slice(None, -1), -1))
        outputs, slopes = (jax.tree.map(lambda leaf: leaf[1:], part) for part in down)
        from_first = first.apply(one(params[kinds[0]]), batch(t)[0])
        from_blocks = jax.vmap(block.apply)(params[kinds[1]], below)
        labels = batch(t - (n_stages - 1))[1]
        gradients = {}
        gradients[kinds[2]], slope = jax.grad(lambda p, x: stages.loss(last.apply(p, x), labels), (0, 1))(
            one(params[kinds[2]]), above
        )
        gradients[kinds[1]], inputs, lower = jax.vmap(block_backward)(params[kinds[1]], outputs, slopes)
        samples = batch(t - 2 * (n_stages - 1))[0]
        gradients[kinds[0]] = jax.vjp(lambda p: first.apply(p, samples), one(params[kinds[0]]))[1](
            jax.tree.map(lambda leaf: leaf[0], down[1])
        )[0]
        ready = {
            kinds[0]: (t - 2 * (n_stages - 1))[None] >= 0,
            kinds[1]: t - (2 * (n_stages - 1) - inner) >= 0,
            kinds[2]: (t - (n_stages - 1))[None] >= 0,
        }
        for kind in (kinds[0], kinds[2]):
            gradients[kind] = jax.tree.map(lambda leaf: leaf[None], gradients[kind])
        new = {kind: updated(params[kind], velocity[kind], gradients[kind], ready[kind]) for kind in kinds}
        up = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), from_first, from_blocks)
        down = tuple(
            jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), part, end)
            for part, end in ((inputs, above), (lower, slope))
        )
        return ({k: new[k][0] for k in kinds}, {k: new[k][1] for k in kinds}, up, down), None

    @jax.jit
    def run(params):
        boundary = stages.boundaries[0]
        empty = jax.tree.map(lambda leaf: jnp.zeros((n_stages - 1, *leaf.shape), leaf.dtype), boundary)
        still = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(tick, (params, still, empty, (empty, empty)), jnp.arange(ticks))[0][0]

    return run


def acco_scan(problem, keys, rounds: int, optimizer: optax.GradientTransformation) -> Callable[[Any], Any]:
    """ACCO with one micro-batch of every worker in each collective: ``run(params) -> params``.

    The micro-batches of a round are one batch.

    Args:
        problem: a finite sum with mini-batches.
        keys: of the workers.
        rounds: collectives.
        optimizer: of the updates.
    """
    samples, counts = problem.shards["samples"], problem.shards["count"]
    streams = jax.vmap(lambda key: jax.random.fold_in(key, int(Draw.GRADIENT)))(keys)

    def batch(number):
        def of_worker(worker, key):
            rows = batch_rows(problem.sampling, problem.batch_size, key, number, counts[worker])
            return jax.tree.map(lambda leaf: leaf[worker, rows], samples)

        drawn = jax.vmap(of_worker)(jnp.arange(problem.n_workers), streams)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), drawn)

    def loss(params, own):
        return jnp.mean(jax.vmap(problem.sample_loss, (None, 0))(params, own))

    def a_round(carry, number):
        x, loaded, ahead, half, state = carry
        estimates = number % 2 == 0
        gradient = jax.grad(loss)(loaded, batch(number.astype(jnp.uint32)))
        mean = jax.tree.map(lambda a, b: jnp.where(estimates, b, (a + b) / 2), half, gradient)
        change, after = optimizer.update(mean, state, x)
        new = optax.apply_updates(x, change)

        def where(a, b):
            return jax.tree.map(lambda p, q: jnp.where(estimates, p, q), a, b)

        return (where(x, new), ahead, new, mean, where(state, after)), None

    @jax.jit
    def run(params):
        none = jax.tree.map(jnp.zeros_like, params)
        start = params, params, params, none, optimizer.init(params)
        return jax.lax.scan(a_round, start, jnp.arange(rounds))[0][0]

    return run


def learned_optimizer(meta: Any, step_multiplier: float) -> optax.GradientTransformation:
    """small_fc_lopt of one tensor as its text reads: the 39 features of each parameter side by side, one product per layer.

    Args:
        meta: the meta-parameters.
        step_multiplier: of the update.
    """

    def init(x):
        axes = factored_axes(x.shape)
        assert axes is not None  # a matrix, or more
        factors = [jnp.zeros((*x.shape[:axis], *x.shape[axis + 1 :], 3), x.dtype) for axis in axes]
        return jnp.int32(0), jnp.zeros((*x.shape, 3), x.dtype), jnp.zeros((*x.shape, 1), x.dtype), factors

    def decay(bases, offsets):
        return 1 - (1 - jnp.asarray(bases, offsets.dtype)) * jnp.exp(10 * offsets)

    def update(g, state, x):
        count, m, v, factors = state
        axes, g = factored_axes(x.shape), g[..., None]
        b = decay([0.9, 0.99, 0.999], meta.momentum_decays)
        m = b * m + (1 - b) * g
        b = jnp.clip(decay([0.999], meta.rms_decays), 0, 1)
        v = b * v + (1 - b) * g**2
        b = jnp.clip(decay([0.9, 0.99, 0.999], meta.adafactor_decays), 0, 1)
        factors = [b * f + (1 - b) * (g**2 + 1e-30).mean(axis) for f, axis in zip(factors, axes, strict=True)]
        row, column = (jnp.expand_dims(f, axis) for f, axis in zip(factors, axes, strict=True))
        share = row / (row.mean(axes[1], keepdims=True) + 1e-9)
        factor = jax.lax.rsqrt(jnp.maximum(share, 1e-9)) * jax.lax.rsqrt(jnp.maximum(column, 1e-9))
        row, column = jnp.broadcast_to(row, m.shape), jnp.broadcast_to(column, m.shape)
        inverse = jax.lax.rsqrt(v + 1e-6)
        roots = [jax.lax.rsqrt(one + 1e-8) for one in (row, column)]
        seen = [g, x[..., None], m, v, m * inverse, inverse, g * factor, row, column, *roots, m * factor]
        seen = jnp.concatenate(seen, axis=-1)
        seen *= jax.lax.rsqrt(1e-5 + (seen**2).mean(range(x.ndim), keepdims=True))
        times = jnp.tanh(count / jnp.asarray(TIMES, x.dtype) - 1)
        values = jnp.concatenate([seen, jnp.broadcast_to(times, (*x.shape, len(TIMES)))], axis=-1)
        for weight, bias in meta.layers[:-1]:
            values = jax.nn.relu(values @ weight + bias)
        values = values @ meta.layers[-1][0] + meta.layers[-1][1]
        step = -values[..., 0] * jnp.exp(values[..., 1] * 0.001) * step_multiplier
        return step, (count + 1, m, v, factors)

    return optax.GradientTransformation(init, update)
