"""The camera of an optical unit: what is left of an intensity when it has been read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from decentral.errors import InvalidInput, check_integer, check_number

FEW = 20.0
"""Photons from which on their number is drawn as a normal number's with the right skewness."""
MOST = 64
"""Terms of the sum below: more photons than this have a chance of 1e-13 there."""


@dataclass(frozen=True)
class Camera:
    """Shot noise, read noise, saturation and rounding, in this order; each can be left out.

    Light, exposure and gain matter by their product alone, so that everything is in units of the mean intensity: of fully
    developed speckle a share exp(-k) of the pixels is above k means (derived: their intensity is exponential).

    Args:
        bits: of a pixel; None: nothing is rounded.
        full_scale: where pixels saturate, in mean intensities; None: they never do.
        photons: that a pixel of mean intensity collects in a frame: shot noise is the Poisson draw of them; None: there is
            none.
        read_noise: standard deviation of the Gaussian noise of reading a pixel, in mean intensities.

    Raises:
        InvalidInput: bits without full scale, or a number that cannot be.
    """

    bits: int | None = 8
    full_scale: float | None = 5.0
    photons: float | None = None
    read_noise: float = 0.0

    def __post_init__(self) -> None:
        if self.bits is not None:
            check_integer("camera.bits", self.bits, 1, 24)
            if self.full_scale is None:
                advice = "Levels are shared out up to a full scale: give one, or bits = None."
                raise InvalidInput("camera.full_scale", None, "a number above 0 with bits", advice)
        for name in ("full_scale", "photons"):
            if getattr(self, name) is not None:
                check_number(f"camera.{name}", getattr(self, name), 0, math.inf, above=True)
        check_number("camera.read_noise", self.read_noise, 0, math.inf)

    @property
    def is_noisy(self) -> bool:
        """Whether two frames of one field differ."""
        return self.photons is not None or self.read_noise > 0

    def read(self, intensity: jax.Array, mean: Any, key: jax.Array | None = None) -> jax.Array:
        """The intensities as read, in the unit they came in.

        Args:
            intensity: of any shape, not negative.
            mean: the mean intensity that exposure and gain are set for.
            key: of the noise.

        Raises:
            InvalidInput: noise without a key.
        """
        if self.is_noisy and key is None:
            raise InvalidInput("key", None, "a JAX key: this camera is noisy", "Give one for every frame.")
        value = intensity / mean
        if key is not None and self.is_noisy:
            shot, read = jax.random.split(key)
            if self.photons is not None:
                value = _poisson(shot, self.photons * value) / self.photons
            if self.read_noise > 0:
                value = value + self.read_noise * jax.random.normal(read, value.shape, value.dtype)
        if self.full_scale is not None:
            value = jnp.clip(value, 0, self.full_scale)
        if self.bits is not None:
            step = self.full_scale / (2**self.bits - 1)  # type: ignore[operator]  checked
            value = jnp.round(value / step) * step
        return value * mean

    def saturated(self, image: jax.Array, mean: Any) -> jax.Array:
        """Bool: pixels of an image that are at full scale, so that nobody knows how bright they were."""
        if self.full_scale is None:
            return jnp.zeros(image.shape, bool)
        return image / mean >= self.full_scale * (1 - 1e-6)


def _poisson(key: jax.Array, rate: jax.Array) -> jax.Array:
    """Poisson draws, one uniform number each: by their distribution function below FEW, by its Cornish-Fisher expansion above.

    Its distribution function is tested on both sides of FEW. The library's rejection loops run until the last of all pixels is
    done, at every step of a training loop.
    """
    uniform = jax.random.uniform(key, rate.shape, rate.dtype)
    few = jnp.minimum(rate, FEW)

    def add(k: jax.Array, state: tuple) -> tuple:
        chance, below, count = state
        chance = chance * few / (k + 1)
        return chance, below + chance, count + (uniform > below)

    none = jnp.exp(-few)
    count = jax.lax.fori_loop(0, MOST, add, (none, none, jnp.zeros_like(rate)))[2]
    normal = jax.scipy.special.ndtri(jnp.clip(uniform, 2.0**-24, 1 - 2.0**-24))
    many = jnp.round(rate + jnp.sqrt(rate) * normal + (normal**2 - 1) / 6)
    return jnp.where(rate < FEW, count, many)


IDEAL = Camera(bits=None, full_scale=None)
"""No noise, no levels, no end of scale."""
