"""What becomes of a local optimizer's accumulators (momentum, second moments, ...) where models are averaged.

Kept local, each worker's are those of its own gradients, and say nothing of the model that it has after a meeting. Averaged, they
follow the models, and every message is longer by their bytes: twice its length for momentum, three times for Adam.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decentral.problem.checks import check_choice

ACCUMULATORS = ("local", "average")
"""What ``accumulators`` of an algorithm may be."""


class Sent(NamedTuple):
    """A message: ``x``, the model or what it has become; ``accumulators``: arrays of the optimizer's, none where they stay."""

    x: Any
    accumulators: Any


def check_accumulators(value: str) -> None:
    """InvalidInput where it is not one of ``ACCUMULATORS``."""
    check_choice("algorithm.accumulators", value, ACCUMULATORS)


def sent(choice: str, optimizer: Any) -> list[jax.Array]:
    """What of an optimizer's state goes on the wire: its floating-point arrays, or nothing.

    Counts of steps stay: Adam's correction of its first steps is for the steps that the worker itself has made.
    """
    return list(filter(_is_floating, jax.tree.leaves(optimizer))) if choice == "average" else []


def mixed(optimizer: Any, accumulators: list[jax.Array], rate: Any) -> Any:
    """The optimizer's state, its accumulators moved by ``rate`` of the way to those that came, or unchanged if none did.

    The way starts at the accumulators of now, whatever was sent in return: with a rate from 0 to 1 the result is a convex
    combination, so second moments never turn negative. Their sum is conserved where an exchange takes no time, and only there: a
    difference of the two messages, as models are mixed by, would conserve it always, and could take from a second moment
    more than it is.
    """
    leaves, structure = jax.tree.flatten(optimizer)
    came = iter(accumulators)

    def move(leaf: jax.Array) -> jax.Array:
        part = jnp.asarray(rate, leaf.dtype)
        return (1 - part) * leaf + part * next(came)  # at rate 1 the bits that came

    moved = [move(leaf) if accumulators and _is_floating(leaf) else leaf for leaf in leaves]
    return structure.unflatten(moved)


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
