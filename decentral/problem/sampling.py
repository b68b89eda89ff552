"""Which samples of its shard a worker's next mini-batch has: drawn with replacement, or epoch after epoch in a new order."""

from __future__ import annotations

import jax
import jax.numpy as jnp

SAMPLINGS = ("replacement", "shuffle")
ROUNDS = 32
"""Of the swap-or-not shuffle: each halves what is left of the order before."""


def batch_rows(
    sampling: str, batch_size: int, key: jax.Array, count: jax.Array, samples: jax.Array
) -> jax.Array:
    """Rows of the mini-batch that a worker's gradient number ``count`` looks at, int32 ``(batch_size,)``.

    Args:
        sampling: "replacement": independent uniform draws. "shuffle": batch ``count mod b`` of epoch ``count // b``, where
            b = ``samples // batch_size`` and every epoch has a random order of its own; the ``samples mod batch_size``
            last of an order are left out, as with PyTorch's ``drop_last``.
        batch_size: at most ``samples`` for "shuffle".
        key: the worker's.
        count: unsigned; may be traced.
        samples: how many the worker has, int32; may be traced.
    """
    if sampling == "replacement":
        # The dtype is fixed: with the default one, switching x64 on would draw other samples.
        drawn = jax.random.fold_in(key, count)
        return jax.random.randint(drawn, (batch_size,), 0, samples, dtype=jnp.int32)
    batches = jnp.asarray(samples, jnp.uint32) // batch_size
    epoch, batch = jnp.divmod(jnp.asarray(count, jnp.uint32), batches)
    positions = batch * batch_size + jnp.arange(batch_size, dtype=jnp.uint32)
    return shuffled(jax.random.fold_in(key, epoch), positions, samples).astype(jnp.int32)


def shuffled(key: jax.Array, positions: jax.Array, size: jax.Array) -> jax.Array:
    """What stands at ``positions`` of a random permutation of 0 ... size - 1, without the permutation: uint32.

    The swap-or-not shuffle (Hoang, Morris, Rogaway, CRYPTO 2012): every round pairs x with K - x mod size, K random, and
    a hash of the pair decides whether the two change places. Any size, and a cost that does not grow with it; an
    even-handed shuffle, not a cipher.

    Args:
        key: of the permutation.
        positions: uint32, each below ``size``.
        size: at least 1 and below 2**31; may be traced.
    """
    size = jnp.asarray(size, jnp.uint32)
    bits = jax.random.bits(key, (2, ROUNDS), jnp.uint32)

    def swap_or_not(positions: jax.Array, drawn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        pivot, salt = drawn
        partner = jnp.where(pivot >= positions, pivot - positions, pivot + size - positions)
        swap = _hash(jnp.maximum(positions, partner) ^ salt) >> 31
        return jnp.where(swap == 1, partner, positions), None

    return jax.lax.scan(swap_or_not, positions, (bits[0] % size, bits[1]))[0]


def _hash(word: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3 (Appleby, public domain; constants recalled): every bit depends on every bit."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        word = (word ^ (word >> shift)) * jnp.uint32(factor)
    return word ^ (word >> 16)
