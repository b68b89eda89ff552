"""What sketches say without a transpose: norms, distances and consensus of vectors that nobody sends whole.

A linear projector's matrix A has E A'A = I, so that squared norms of sketches are unbiased, of one sketch with a relative
standard deviation of sqrt(2/m) where A is Gaussian (derived). Sketches by *one* matrix may be added and compared. Sketches by
two matrices, such as those of two optical units, may not: for independent A and B, E||Ax - By||^2 = ||x||^2 + ||y||^2, as if x
and y were at right angles, and the mean of their sketches is no sketch of anything.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from decentral.errors import InvalidInput


def squared_norms(sketches: Any) -> jax.Array:
    """``(..., m)`` sketches -> ``(...)`` estimates of ||x||^2; each may be of a matrix of its own."""
    return jnp.sum(jnp.square(jnp.asarray(sketches)), axis=-1)


def squared_distances(sketches: Any, units: Sequence[Hashable]) -> jax.Array:
    """``(n, m)`` sketches -> ``(n, n)`` estimates of ||x_i - x_j||^2.

    Args:
        sketches: of n vectors.
        units: whose matrix each is by: names, or device ids.

    Raises:
        InvalidInput: of different units.
    """
    sketches = _of_one(sketches, units)
    return squared_norms(sketches[:, None] - sketches)


def consensus_distance(sketches: Any, units: Sequence[Hashable]) -> jax.Array:
    """``(n, m)`` sketches -> an estimate of mean_i ||x_i - mean x||^2. Arguments and errors as of :func:`squared_distances`."""
    sketches = _of_one(sketches, units)
    return squared_norms(sketches - sketches.mean(0)).mean()


def _of_one(sketches: Any, units: Sequence[Hashable]) -> jax.Array:
    sketches = jnp.asarray(sketches)
    if sketches.ndim != 2 or len(units) != len(sketches):
        raise InvalidInput(
            "units", f"{len(units)} for sketches {sketches.shape}", "(n, m) sketches, and n units"
        )
    try:
        of = set(units)
    except TypeError:  # a unit itself holds arrays
        told = "names, or device ids"
        raise InvalidInput("units", type(units[0]).__name__, told, "Of a unit: unit.device_id.") from None
    if len(of) > 1:
        raise InvalidInput(
            "units", sorted(map(str, of)), "sketches by one matrix",
            "Two optical units have independent matrices: sketches of one vector by both have nothing in common but their norm. "
            "Send all vectors through one unit, or compare norms.",
        )  # fmt: skip
    return sketches
