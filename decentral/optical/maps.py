"""What a detector looks at: codes of vectors of any size and scale, and feature maps psi of what is coded.

All maps are hashable and draw what is random in them from their seed, so that two workers with one map have the same features.
``rows`` is the height of a map's random matrix, the same for maps that are to be compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import NormalDist
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from decentral.errors import InvalidInput, check_integer, check_number
from decentral.optical.camera import Camera
from decentral.optical.newma import made
from decentral.optical.projector import Projector, projector
from decentral.optical.unit import OpticalUnit


@dataclass(frozen=True)
class Direction:
    """The direction of a vector, as ``size`` numbers of mean square 1 or as ``size * levels`` bits; its length is gone.

    A gradient becomes a thousand times shorter in the course of a run that nothing happens to; binary mirrors have a fixed range
    anyway. So a vector is sketched (a random sign for each coordinate, coordinates dealt at random to ``size`` sums: a sketch of
    the kind of count-sketch, in O(d) and with nothing to fit) and divided by its length; coordinates of a random direction are
    then about N(0, 1), whose quantiles are the thermometer's thresholds. Blind, on purpose, to a change of length alone.

    Args:
        size: of the sketch.
        levels: thresholds of the thermometer; 0: numbers, no bits.
        seed: of the sketch.
    """

    size: int = 32
    levels: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("size", 1), ("levels", 0), ("seed", 0)):
            check_integer(f"code.{name}", getattr(self, name), low)

    @property
    def outputs(self) -> int:
        """Numbers, or bits."""
        return self.size * max(1, self.levels)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Quantiles 1/(levels + 1), 2/(levels + 1), ... of N(0, 1)."""
        return tuple(NormalDist().inv_cdf((k + 1) / (self.levels + 1)) for k in range(self.levels))

    @property
    def distance(self) -> float:
        """Root of the mean squared distance of the codes of two random directions."""
        if not self.levels:
            return math.sqrt(2 * self.size)
        apart = sum(2 * p * (1 - p) for p in ((k + 1) / (self.levels + 1) for k in range(self.levels)))
        return math.sqrt(self.size * apart)

    def __call__(self, vector: jax.Array) -> jax.Array:
        """Of ``(d,)``: ``(outputs,)``, of the vector's dtype; the zero vector has zeros for numbers."""
        order, sign = _deal(vector.shape[0], self.size, self.seed)
        dealt = jnp.append(vector, jnp.zeros(1, vector.dtype))[order] * jnp.asarray(sign, vector.dtype)
        sketch = dealt.sum(1)
        # Of the largest one first: squares of a gradient of 1e-25 are 0 in float32.
        largest = jnp.abs(sketch).max()
        sketch = sketch / jnp.where(largest > 0, largest, 1)
        length = jnp.sqrt(jnp.vdot(sketch, sketch) / self.size)
        numbers = sketch / jnp.where(length > 0, length, 1)
        if not self.levels:
            return numbers
        return (
            (numbers > jnp.asarray(self.thresholds, vector.dtype)[:, None]).reshape(-1).astype(vector.dtype)
        )


@lru_cache(maxsize=16)
def _deal(inputs: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which coordinates each sum has, ``(size, ceil(inputs / size))``, and their signs; the end stands for a zero."""
    rng = np.random.default_rng([seed, inputs, size])
    columns = -(-inputs // size)
    order = np.full(columns * size, inputs, np.int32)
    order[rng.permutation(columns * size)[:inputs]] = np.arange(inputs)
    return order.reshape(size, columns), rng.choice(np.array([-1, 1], np.int8), (size, columns))


@dataclass(frozen=True)
class Identity:
    """psi(x) = x: only changes of the mean show."""

    def outputs(self, inputs: int) -> int:
        """Features of ``inputs`` numbers."""
        return inputs

    def __call__(self, x: jax.Array, key: Any = None) -> jax.Array:
        """Features ``(..., outputs)`` of ``(..., inputs)``; ``key``: of the camera's noise, for maps that have one."""
        return x


@dataclass(frozen=True)
class _Kernel:
    """Random features of the Gaussian kernel exp(-|x - y|^2 / (2 scale^2)): cosine and sine for each row.

    Args:
        rows: m; there are 2 m features.
        scale: of the kernel; None: what it looks at says (``Direction.distance``), else :func:`median_distance` of samples.
        seed: of the matrix.
    """

    rows: int = 512
    scale: float | None = None
    seed: int = 0
    _matrix: ClassVar[str]

    def __post_init__(self) -> None:
        check_integer("features.rows", self.rows, 1)
        check_integer("features.seed", self.seed, 0)
        if self.scale is not None:
            check_number("features.scale", self.scale, 0.0, math.inf, above=True)

    def outputs(self, inputs: int) -> int:
        """Features of ``inputs`` numbers."""
        return 2 * self.rows

    def __call__(self, x: jax.Array, key: Any = None) -> jax.Array:
        """Features ``(..., 2 rows)`` of ``(..., inputs)``, of length 1.

        Raises:
            InvalidInput: the scale is still open.
        """
        if self.scale is None:
            raise InvalidInput("features.scale", None, "a number", "E.g. median_distance(samples).")
        # A projector keeps lengths, so that its rows have the norm of Gaussian ones over sqrt(rows).
        projected = _held(self._matrix, x.shape[-1], self.rows, self.seed).apply(x)
        angles = projected * (math.sqrt(self.rows) / self.scale)
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1) / math.sqrt(self.rows)


@lru_cache(maxsize=16)
def _held(kind: str, inputs: int, rows: int, seed: int) -> Projector:
    """Drawn once, whether or not in the course of being compiled."""
    with jax.ensure_compile_time_eval():
        return projector(kind, inputs, rows, seed).hold()


@dataclass(frozen=True)
class Fourier(_Kernel):
    """Random Fourier features with a dense Gaussian matrix, O(m d) numbers and operations (Rahimi, Recht 2007, recalled)."""

    _matrix: ClassVar[str] = "gaussian"


@dataclass(frozen=True)
class Fastfood(_Kernel):
    """Random Fourier features with Fastfood's matrix, O(m log d) operations (Le, Sarlos, Smola 2013, recalled)."""

    _matrix: ClassVar[str] = "fastfood"


@dataclass(frozen=True)
class Optical:
    """Intensities |H x|^2 of an optical unit, as its camera reads them: random features of the kernel |x|^2 |y|^2 + (x.y)^2.

    It needs bits, so a code stands before it. Ours is a simulated unit.

    Args:
        rows: m, of the unit's matrix; there are m features.
        seed: of the unit's matrix.
        device_id: of the unit.
        camera: a ``Camera``, or the table of its arguments; by default 8 bits.
    """

    rows: int = 512
    seed: int = 0
    device_id: int = 0
    camera: Camera = field(default_factory=Camera)

    def __post_init__(self) -> None:
        check_integer("features.rows", self.rows, 1)
        for name in ("seed", "device_id"):
            check_integer(f"features.{name}", getattr(self, name), 0, 2**32 - 1)
        camera = {"kind": "camera", **self.camera} if isinstance(self.camera, Mapping) else self.camera
        object.__setattr__(self, "camera", made("features.camera", camera, {"camera": Camera}, Camera))

    def outputs(self, inputs: int) -> int:
        """Features of ``inputs`` bits."""
        return self.rows

    def __call__(self, x: jax.Array, key: Any = None) -> jax.Array:
        """Features ``(..., rows)`` of bits ``(..., inputs)``, of mean 1/sqrt(rows) where half of the bits are set."""
        bits = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
        matrix = _rows(self.device_id, self.seed, x.shape[-1], self.rows)
        # In the precision of the run, where the unit itself works in float32: a rounding of the camera is the same everywhere.
        re, im = (bits @ jnp.asarray(part.T, bits.dtype) for part in (np.real(matrix), np.imag(matrix)))
        mean = x.shape[-1] / 2
        return self.camera.read(re**2 + im**2, mean, key) / (mean * math.sqrt(self.rows))


@lru_cache(maxsize=4)
def _rows(device_id: int, seed: int, inputs: int, rows: int) -> np.ndarray:
    """The unit's matrix, drawn once and kept: a run looks at one vector at a time, and would draw it anew for each."""
    with jax.ensure_compile_time_eval():
        return np.asarray(OpticalUnit(device_id, seed, inputs, rows).rows())


def as_code(recipe: Any) -> Direction:
    """A code, or the table of its arguments: ``{"size": 32, "levels": 4}``.

    Raises:
        InvalidInput: no such argument.
    """
    if isinstance(recipe, Mapping) and "kind" not in recipe:
        recipe = {"kind": "direction", **recipe}
    return made("code", recipe, {"direction": Direction}, Direction)


MAPS: Mapping[str, type] = {
    "identity": Identity, "fourier": Fourier, "fastfood": Fastfood, "optical": Optical,
}  # fmt: skip
"""By the names a spec uses."""


def as_map(recipe: Any) -> Any:
    """A feature map, or the name or table of one: ``{"kind": "fourier", "rows": 512}``.

    Raises:
        InvalidInput: no such kind or argument.
    """
    return made("features", recipe, MAPS, tuple(MAPS.values()))


def median_distance(samples: Any) -> float:
    """The median distance of two samples of ``(k, inputs)``, a usual scale for a Gaussian kernel.

    Raises:
        InvalidInput: all samples are the same.
    """
    samples = np.asarray(samples, float)
    if samples.ndim != 2 or len(samples) < 2:
        raise InvalidInput("samples", f"shape {samples.shape}", "(k, inputs), two samples or more")
    squares = np.sum(samples**2, 1)
    squared = squares[:, None] + squares - 2 * samples @ samples.T
    median = float(np.sqrt(max(0.0, np.median(squared[np.triu_indices(len(samples), 1)]))))
    if not median > 0:
        raise InvalidInput("samples", "a median distance of 0", "samples that differ")
    return median
