"""Binary codes of numbers: an optical unit's mirrors are on or off.

A code is ``planes`` binary vectors of ``bits(n)`` mirrors for a vector of n numbers, each plane a frame of its own. Where the
code is linear, x = sum_p weights[p] plane_p, so that a *linear* projection of the planes gives that of x: ``decode``. Of
intensities it does not: sum_p w_p |H b_p|^2 is a feature map with a kernel of its own, and not |H x|^2 (24 % apart on random
bytes, measured in the reference study), so :meth:`Encoder.decode` refuses what it is told are intensities.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decentral.errors import InvalidInput, check_choice, check_integer, check_number

SPACINGS = ("linear", "quantile")


class Encoder:
    """Base of the codes: frozen dataclasses. Encoding is pure and can be jitted; decoding too."""

    @property
    def planes(self) -> int:
        """Binary vectors, so frames, of one vector."""
        return 1

    @property
    def is_linear(self) -> bool:
        """Whether the planes add up to the vector (as the code rounds it)."""
        return False

    @property
    def weights(self) -> np.ndarray:
        """``(planes,)`` float64: of each plane in the sum."""
        raise InvalidInput(
            "encoder", type(self).__name__, "a linear code: BitPlanes or Ternary",
            "The planes of this one do not add up to the vector: its projection has nothing to decode.",
        )  # fmt: skip

    def bits(self, n: int) -> int:
        """Mirrors for a vector of n numbers."""
        return n

    def encode(self, x: Any) -> jax.Array:
        """``(..., n)`` numbers -> ``(..., planes, bits(n))`` bool."""
        raise NotImplementedError(f"{type(self).__name__} must define encode(x)")

    def decode(self, projected: jax.Array, *, linear: bool = True) -> jax.Array:
        """``(..., planes, m)`` projections of the planes -> ``(..., m)``, that of the vector.

        Args:
            projected: by one matrix.
            linear: whether they are linear in the planes. Say so: intensities are not.

        Raises:
            InvalidInput: intensities, another number of planes, or a code that does not add up.
        """
        weights, projected = self.weights, jnp.asarray(projected)
        if not linear:
            raise InvalidInput(
                "decode", "intensities |H b|^2 of the planes b", "projections that are linear in the planes",
                "sum_p w_p |H b_p|^2 is not |H x|^2: the products of different planes are missing. Use a linear mode, or "
                "take the planes' intensities as features.",
            )  # fmt: skip
        if projected.ndim < 2 or projected.shape[-2] != self.planes:
            raise InvalidInput("projected", f"shape {projected.shape}", f"(..., {self.planes} planes, m)")
        # Weights are fractions: in the type of whole numbers they would be 0.
        projected = projected.astype(jnp.promote_types(projected.dtype, jnp.float32))
        return jnp.tensordot(projected, jnp.asarray(weights, projected.dtype), ((-2,), (0,)))


@dataclass(frozen=True)
class Threshold(Encoder):
    """One bit: whether a number is above its threshold (strictly).

    Args:
        thresholds: one for all, or one for each number.
    """

    thresholds: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        _check_thresholds(self.thresholds)

    @classmethod
    def fit(cls, x: Any) -> Threshold:
        """The median of each feature of ``(samples, n)``, so that each bit is set half of the time."""
        return cls(tuple(np.median(_samples(x), axis=0).tolist()))

    def encode(self, x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return (x > _fits(self.thresholds, x))[..., None, :]


@dataclass(frozen=True)
class Thermometer(Encoder):
    """A bit for each threshold that a number is above: all numbers for the first threshold, then all for the second, ...

    Args:
        thresholds: rising; each one number for all, or one for each number.
    """

    thresholds: tuple[float | tuple[float, ...], ...] = (0.0,)

    def __post_init__(self) -> None:
        if not isinstance(self.thresholds, tuple) or not self.thresholds:
            raise InvalidInput("encoder.thresholds", self.thresholds, "a tuple of at least one threshold")
        for threshold in self.thresholds:
            _check_thresholds(threshold)
        if len({np.shape(threshold) for threshold in self.thresholds if np.ndim(threshold)}) > 1:
            raise InvalidInput("encoder.thresholds", self.thresholds, "as many numbers in each of them")
        rows = np.broadcast_arrays(*self.thresholds)
        if any((high < low).any() for low, high in itertools.pairwise(rows)):
            raise InvalidInput("encoder.thresholds", self.thresholds, "thresholds that do not fall")

    @classmethod
    def fit(cls, x: Any, levels: int = 4, spacing: str = "linear") -> Thermometer:
        """Thresholds from ``(samples, n)``: ``levels - 1`` of them make ``levels`` levels.

        Args:
            x: what is to be encoded, or a sample of it.
            levels: at least 2.
            spacing: "linear": the same for all features, evenly between their least and largest number; "quantile": each
                feature's own, so that its levels are equally frequent.
        """
        check_integer("encoder.levels", levels, 2)
        check_choice("encoder.spacing", spacing, SPACINGS)
        samples = _samples(x)
        if spacing == "linear":
            inner = np.linspace(samples.min(), samples.max(), levels + 1)[1:-1]
            return cls(tuple(inner.tolist()))
        inner = np.quantile(samples, np.arange(1, levels) / levels, axis=0)
        return cls(tuple(tuple(row.tolist()) for row in inner))

    def bits(self, n: int) -> int:
        return len(self.thresholds) * n

    def encode(self, x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return jnp.concatenate([x > _fits(row, x) for row in self.thresholds], axis=-1)[..., None, :]


@dataclass(frozen=True)
class BitPlanes(Encoder):
    """Bits of the positive and of the negative part, most significant first: 2 p planes (p where nothing is negative).

    x+ / scale and x- / negative_scale are rounded to multiples of 1 / (2^p - 1). ``decode(encode(x))`` is that rounding
    exactly: the uniform quantiser.

    Args:
        precision: p, bits.
        scale: the largest number that can be said; larger ones are said as this one.
        negative_scale: the same of negative ones; 0: there are none, and what is negative is said as 0. By default ``scale``.
    """

    precision: int = 6
    scale: float = 1.0
    negative_scale: float | None = None

    def __post_init__(self) -> None:
        check_integer("encoder.precision", self.precision, 1, 16)
        check_number("encoder.scale", self.scale, 0, np.inf, above=True)
        if self.negative_scale is not None:
            check_number("encoder.negative_scale", self.negative_scale, 0, np.inf)

    @classmethod
    def fit(cls, x: Any, precision: int = 6) -> BitPlanes:
        """Scales are the largest magnitudes; of integers such that whole numbers below 2^precision are said exactly."""
        values = np.asarray(x)
        largest = [float(part.max(initial=0)) for part in (values, -values.astype(np.float64))]
        if np.issubdtype(values.dtype, np.integer):
            # The most significant bit of the largest one is the first plane.
            largest = [
                2.0 ** (int(top).bit_length() - precision) * (2**precision - 1) * (top > 0) for top in largest
            ]
        return cls(precision, largest[0] or 1.0, largest[1])

    @property
    def scales(self) -> tuple[float, ...]:
        """Of the positive planes, and of the negative ones where there are any."""
        negative = self.scale if self.negative_scale is None else self.negative_scale
        return (self.scale, negative) if negative else (self.scale,)

    @property
    def planes(self) -> int:
        return self.precision * len(self.scales)

    @property
    def is_linear(self) -> bool:
        return True

    @property
    def weights(self) -> np.ndarray:
        powers = 2.0 ** np.arange(self.precision - 1, -1, -1) / (2**self.precision - 1)
        return np.concatenate(
            [sign * scale * powers for sign, scale in zip((1, -1), self.scales, strict=False)]
        )

    def encode(self, x: Any) -> jax.Array:
        x = jnp.asarray(x)
        shifts = jnp.arange(self.precision - 1, -1, -1, dtype=jnp.int32)[:, None]
        planes = []
        for sign, scale in zip((1, -1), self.scales, strict=False):
            share = jnp.clip(sign * x / scale, 0, 1)
            level = jnp.round(share * (2**self.precision - 1)).astype(jnp.int32)
            planes.append((level[..., None, :] >> shifts) & 1)
        return jnp.concatenate(planes, axis=-2).astype(bool)


@dataclass(frozen=True)
class Ternary(Encoder):
    """-1, 0 or 1: a plane of the numbers above the threshold, and one of those below minus the threshold.

    Of an error (softmax minus one-hot) the threshold has to exceed 1/C, with C classes: an error begins at about 1/C for every
    wrong class, and with a lower threshold all of them pass for ever (digits with pixels from 0 to 1: 22 to 39 % instead of
    95 %, measured in the reference study).

    Args:
        threshold: at least 0.
        classes: C, where errors of a classifier are encoded: the threshold is then checked.
    """

    threshold: float = 0.2
    classes: int | None = None

    def __post_init__(self) -> None:
        check_number("encoder.threshold", self.threshold, 0, np.inf)
        if self.classes is not None:
            check_integer("encoder.classes", self.classes, 2)
            if self.threshold <= 1 / self.classes:
                raise InvalidInput(
                    "encoder.threshold", self.threshold,
                    f"a number above 1/C = {1 / self.classes:.3g} for C = {self.classes} classes",
                    "Before anything is learned the error of every wrong class is about 1/C: all would pass.",
                )  # fmt: skip

    @property
    def planes(self) -> int:
        return 2

    @property
    def is_linear(self) -> bool:
        return True

    @property
    def weights(self) -> np.ndarray:
        return np.array([1.0, -1.0])

    def encode(self, x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return jnp.stack([x > self.threshold, x < -self.threshold], axis=-2)


def _check_thresholds(thresholds: Any) -> None:
    try:
        values = np.asarray(thresholds, np.float64)
    except (TypeError, ValueError):
        values = np.array(np.nan)
    if values.ndim > 1 or not values.size or not np.isfinite(values).all():
        raise InvalidInput("encoder.thresholds", thresholds, "a finite number, or one for each feature")


def _fits(thresholds: Any, x: jax.Array) -> jax.Array:
    """The thresholds, one or as many as ``x`` has features."""
    values = np.asarray(thresholds)
    if values.ndim and (x.ndim == 0 or values.shape[0] != x.shape[-1]):
        advice = "Thresholds were fitted to other features."
        raise InvalidInput("x", f"shape {x.shape}", f"(..., {values.shape[0]}) features", advice)
    return jnp.asarray(values, x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32)


def _samples(x: Any) -> np.ndarray:
    values = np.asarray(x, np.float64)
    if values.ndim != 2 or not len(values) or not np.isfinite(values).all():
        raise InvalidInput("x", f"an array of shape {values.shape}", "finite numbers (samples, features)")
    return values
