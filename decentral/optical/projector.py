"""Random projections behind one interface: dense, sparse and structured ones, and an optical unit.

A linear projector's matrix A has ``E A'A = I``: norms and inner products of projections are unbiased (an optical unit's anchor
mode apart). Nothing is kept of a matrix but its key, and any part of it is drawn where it is needed, unless
:meth:`Projector.hold` is asked to keep it. Entries are drawn in float32 and used in the precision of the vectors, so that both
precisions see one matrix.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from decentral.cost import optical as cost
from decentral.errors import InvalidInput, check_choice, check_integer, check_number, suggest
from decentral.optical.encoders import BitPlanes, Encoder
from decentral.optical.unit import Calibration, OpticalUnit, normals
from decentral.problem.pytrees import pytree, static

TILE = 2**20
"""Numbers of a matrix that are drawn at a time."""
RADIX = 16
"""Points of the transforms that a Walsh-Hadamard transform is made of; quicker than 2, 8 or 32 on a CPU (measured)."""
REFRESH = ("none", "round", "signs", "region")
"""What :meth:`Projector.at` changes from round to round."""
ROWS = 2**31 - 1
"""Rows a digital matrix has, from which the regions are taken."""


# -- transforms ------------------------------------------------------------------------------------------------------------


def padded_size(size: int) -> int:
    """The smallest power of two that is not below ``size``."""
    return 1 << max(size - 1, 0).bit_length()


def walsh_hadamard(x: jax.Array) -> jax.Array:
    """``x @ H``, with H the Hadamard matrix of entries ±1 in Sylvester's order; ``H H = size I``.

    H of 16^k points is a Kronecker product: each pass transforms 16 points and rotates the axes, so that memory is read in
    order, and the axes are in place again after the last.

    Args:
        x: (..., size), real; the size is a power of two.

    Raises:
        InvalidInput: it is not.
    """
    size = x.shape[-1]
    if size != padded_size(size):
        told = f"Pad with zeros to {padded_size(size):,}, as the projectors do."
        raise InvalidInput("walsh_hadamard", size, "a power of two", told)
    left, lead = size, x.shape[:-1]
    while left > 1:
        points = min(RADIX, left)
        # The highest precision: accelerators else multiply in 16 bits or so.
        x = jnp.matmul(
            x.reshape(*lead, size // points, points), _sylvester(points, x.dtype), precision="highest"
        )
        x, left = x.swapaxes(-1, -2).reshape(*lead, size), left // points
    return x


def _sylvester(points: int, dtype: Any) -> jax.Array:
    places = np.arange(points)
    ones = np.bitwise_count(places[:, None] & places)
    return jnp.asarray(1 - 2 * (ones % 2).astype(np.int8), dtype)


def random_signs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """±1 in int8, each as likely."""
    return 2 * jax.random.bernoulli(key, shape=shape).astype(jnp.int8) - 1


def _pad(x: jax.Array, size: int) -> jax.Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])])


def _floating(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


# -- the interface ---------------------------------------------------------------------------------------------------------


@pytree
class Projector:
    """A random map from ``inputs`` to ``outputs`` numbers; pure, and mapped over like any other pytree.

    Args:
        key: the matrix is drawn from it.
        inputs: numbers of a vector.
        outputs: numbers of its projection.
        refresh: what a round changes, see :meth:`at`.
        parts: what :meth:`hold` keeps.
        flip: the key of the signs that inputs are multiplied with; None: none are.
    """

    key: Any
    inputs: int = static()
    outputs: int = static()
    refresh: str = static(default="none")
    parts: Any = None
    flip: Any = None

    @property
    def is_linear(self) -> bool:
        """Whether ``apply(a x + b y) = a apply(x) + b apply(y)``."""
        return True

    @property
    def has_adjoint(self) -> bool:
        """Whether its transpose is known."""
        return True

    @property
    def fresh_per_round(self) -> bool:
        """Whether :meth:`at` gives another map for another round."""
        return self.refresh != "none"

    @property
    def contraction(self) -> float:
        """The delta of ``E||c A'A x - x||^2 = (1 - delta) ||x||^2``, which is the best c too, over draws of the matrix.

        As ``E A'A = I``, that is ``||x||^2 / E||A'A x||^2``, whatever x is.

        Raises:
            InvalidInput: not known for this kind.
        """
        raise InvalidInput("projector.kind", _kind(self), "a kind whose contraction is known")

    def apply(self, x: Any, key: Any = None) -> jax.Array:
        """The projection.

        Args:
            x: (..., inputs).
            key: for noise, where the projector has any.

        Returns:
            (..., outputs), in the precision of ``x``, at least float32.
        """
        x = _floating(x)
        _check_size("x", x, self.inputs)
        return self._project(self._flipped(x))

    def adjoint(self, y: Any) -> jax.Array:
        """A' y: ``<A x, y> = <x, A' y>``.

        Args:
            y: (..., outputs).

        Returns:
            (..., inputs).

        Raises:
            InvalidInput: it has none.
        """
        if not self.has_adjoint:
            raise InvalidInput("projector.adjoint", _kind(self), "a projector with an adjoint")
        y = _floating(y)
        _check_size("y", y, self.outputs)
        return self._flipped(self._transposed(y))

    def at(self, count: Any) -> Self:
        """The projector of round ``count``, which may be traced.

        With ``refresh`` "round" it has another matrix; with "signs" the same one, behind random signs of the inputs; with
        "region" other rows of the same one, until it begins again with the first; with "none" it is the same.
        """
        if self.refresh == "round":
            return dataclasses.replace(self, key=jax.random.fold_in(self.key, count), parts=None)
        if self.refresh == "signs":
            # Beside every row: a fold of its own first.
            return dataclasses.replace(
                self, flip=jax.random.fold_in(jax.random.fold_in(self.key, ROWS), count)
            )
        return self

    def hold(self) -> Self:
        """A copy that keeps what it would else draw at every use."""
        return dataclasses.replace(self, parts=self._draw())

    def cost(self, batch: Any, rivals: cost.Rivals) -> cost.ProjectorCost:
        """Seconds, joules and bytes of ``batch`` vectors, on the hardware of ``rivals``."""
        raise NotImplementedError(f"{type(self).__name__} must define cost(batch, rivals)")

    def _flipped(self, x: jax.Array) -> jax.Array:
        return x if self.flip is None else x * random_signs(self.flip, (self.inputs,))

    def _task(self, batch: Any) -> cost.RandomProjection:
        return cost.RandomProjection(self.inputs, self.outputs, batch)

    def _draw(self) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must define _draw()")

    def _project(self, x: jax.Array) -> jax.Array:
        raise NotImplementedError(f"{type(self).__name__} must define _project(x)")

    def _transposed(self, y: jax.Array) -> jax.Array:
        raise NotImplementedError(f"{type(self).__name__} must define _transposed(y)")


def _check_size(name: str, x: jax.Array, size: int) -> None:
    if x.ndim == 0 or x.shape[-1] != size:
        raise InvalidInput(f"projector.{name}", x.shape, f"(..., {size})")


# -- matrices drawn row by row -----------------------------------------------------------------------------------------------


@pytree
class _Rows(Projector):
    """A matrix whose rows are drawn each from a key of its own, some at a time.

    Times sqrt(outputs), its first rows are the same however many there are.

    Args:
        first: the row it begins with, which may be traced.
        rows: that there are for regions; a unit's are as many as its pixels.
    """

    first: Any = 0
    rows: int = static(default=ROWS)

    @property
    def row_entries(self) -> int:
        """Entries of a row that are not 0."""
        return self.inputs

    def at(self, count: Any) -> Self:
        """As for every projector, and with "region" other rows, until it begins again with the first."""
        if self.refresh != "region":
            return super().at(count)
        regions = self.rows // self.outputs
        return dataclasses.replace(self, first=count % regions * self.outputs, parts=None)

    def _row(self, key: jax.Array) -> Any:
        """The entries of a row, of mean square 1."""
        raise NotImplementedError(f"{type(self).__name__} must define _row(key)")

    def _rows_at(self, start: Any, count: int) -> Any:
        places = self.first + start + jnp.arange(count)
        return jax.vmap(lambda row: self._row(jax.random.fold_in(self.key, row)))(places)

    def _draw(self) -> Any:
        return self._rows_at(0, self.outputs)

    @property
    def _tile(self) -> int:
        return min(self.outputs, max(1, TILE // self.row_entries))

    def _project(self, x: jax.Array) -> jax.Array:
        if self.parts is not None or self._tile == self.outputs:
            y = self._times(x, self._draw() if self.parts is None else self.parts)
        else:
            starts = jnp.arange(0, self.outputs, self._tile)
            y = jax.lax.map(lambda start: self._times(x, self._rows_at(start, self._tile)), starts)
            y = jnp.moveaxis(y, 0, -2).reshape(*x.shape[:-1], -1)[..., : self.outputs]
        return y / math.sqrt(self.outputs)

    def _transposed(self, y: jax.Array) -> jax.Array:
        if self.parts is not None or self._tile == self.outputs:
            x = self._times_transposed(y, self._draw() if self.parts is None else self.parts)
        else:
            starts = jnp.arange(0, self.outputs, self._tile)
            pieces = _pad(y, len(starts) * self._tile).reshape(*y.shape[:-1], len(starts), self._tile)

            def add(total, piece):
                start, values = piece
                return total + self._times_transposed(values, self._rows_at(start, self._tile)), None

            zeros = jnp.zeros((*y.shape[:-1], self.inputs), y.dtype)
            x = jax.lax.scan(add, zeros, (starts, jnp.moveaxis(pieces, -2, 0)))[0]
        return x / math.sqrt(self.outputs)

    def _times(self, x: jax.Array, rows: Any) -> jax.Array:
        raise NotImplementedError(f"{type(self).__name__} must define _times(x, rows)")

    def _times_transposed(self, y: jax.Array, rows: Any) -> jax.Array:
        raise NotImplementedError(f"{type(self).__name__} must define _times_transposed(y, rows)")


@pytree
class Gaussian(_Rows):
    """Independent normal entries of variance 1 / outputs."""

    @property
    def contraction(self) -> float:
        """``k / (k + d + 1)``, k the outputs and d the inputs."""
        return self.outputs / (self.outputs + self.inputs + 1)

    def cost(self, batch: Any, rivals: cost.Rivals) -> cost.ProjectorCost:
        """As a dense product; with a matrix that is drawn anew unless it is held, or the rivals share it."""
        if self.parts is None and rivals.matrix == "stored":
            rivals = dataclasses.replace(rivals, matrix="generated")
        return cost.dense(self._task(batch), rivals)

    def _rows_at(self, start: Any, count: int) -> jax.Array:
        # Two normal numbers for each counter: a quarter of the time of jax.random's on a CPU (measured).
        places = (self.first + start + jnp.arange(count)).astype(jnp.uint32)
        pairs = jnp.arange(-(-self.inputs // 2), dtype=jnp.uint32)
        both = normals(jax.random.key_data(self.key), places[:, None], pairs)
        return math.sqrt(2) * jnp.concatenate(both, axis=-1)[:, : self.inputs]

    def _times(self, x: jax.Array, rows: jax.Array) -> jax.Array:
        # Not x @ rows.T: that copies a matrix that is held.
        return jnp.einsum("...n,mn->...m", x, rows.astype(x.dtype), precision="highest")

    def _times_transposed(self, y: jax.Array, rows: jax.Array) -> jax.Array:
        return jnp.matmul(y, rows.astype(y.dtype), precision="highest")


@pytree
class Sparse(_Rows):
    """Few entries in each row, ± one number, at places drawn with replacement.

    Achlioptas (2003) draws every entry by itself, not 0 with probability 1/3, Li, Hastie and Church (2006) with 1/sqrt(inputs)
    (both recalled). Here every row has its share exactly, so that a row takes memory and time of its entries alone.

    Args:
        density: entries of a row over its inputs; by default 1 / sqrt(inputs). At least one entry.
    """

    density: float | None = static(default=None)

    @property
    def row_entries(self) -> int:
        """Entries of a row that are not 0."""
        density = 1 / math.sqrt(self.inputs) if self.density is None else self.density
        return max(1, round(density * self.inputs))

    @property
    def contraction(self) -> float:
        """``k / (k + d + 1 - 2/q)``, q the entries of a row (derived).

        That of a count sketch with one entry, and of a Gaussian matrix with many.
        """
        return self.outputs / (self.outputs + self.inputs + 1 - 2 / self.row_entries)

    def cost(self, batch: Any, rivals: cost.Rivals) -> cost.ProjectorCost:
        """As gathers of its entries."""
        return cost.sparse(self._task(batch), rivals, self.outputs * self.row_entries)

    def _row(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        places, signs = jax.random.split(key)
        shape = (self.row_entries,)
        return jax.random.randint(places, shape, 0, self.inputs), random_signs(signs, shape)

    @property
    def _entry(self) -> float:
        return math.sqrt(self.inputs / self.row_entries)

    def _times(self, x: jax.Array, rows: tuple[jax.Array, jax.Array]) -> jax.Array:
        places, signs = rows
        return (x[..., places] * signs).sum(-1) * self._entry

    def _times_transposed(self, y: jax.Array, rows: tuple[jax.Array, jax.Array]) -> jax.Array:
        places, signs = rows
        zeros = jnp.zeros((*y.shape[:-1], self.inputs), y.dtype)
        return zeros.at[..., places].add(y[..., None] * signs * self._entry)


# -- structured ones -------------------------------------------------------------------------------------------------------


@pytree
class CountSketch(Projector):
    """Every input is added, with a random sign, to one random output."""

    @property
    def contraction(self) -> float:
        """1 / (1 + (d - 1) / k)."""
        return 1 / (1 + (self.inputs - 1) / self.outputs)

    def cost(self, batch: Any, rivals: cost.Rivals) -> cost.ProjectorCost:
        """As additions to places: an entry for each input."""
        return cost.sparse(self._task(batch), rivals, self.inputs)

    def _draw(self) -> tuple[jax.Array, jax.Array]:
        places, signs = jax.random.split(self.key)
        shape = (self.inputs,)
        return jax.random.randint(places, shape, 0, self.outputs), random_signs(signs, shape)

    def _project(self, x: jax.Array) -> jax.Array:
        places, signs = self._draw() if self.parts is None else self.parts
        return jnp.zeros((*x.shape[:-1], self.outputs), x.dtype).at[..., places].add(x * signs)

    def _transposed(self, y: jax.Array) -> jax.Array:
        places, signs = self._draw() if self.parts is None else self.parts
        return y[..., places] * signs


@pytree
class Hadamard(Projector):
    """Random signs, a Walsh-Hadamard transform and random ones of its outputs (SRHT; Tropp 2011, recalled).

    Inputs are padded with zeros to a power of two; more outputs than that take several blocks, each with its own signs and
    places. Outputs of a block are orthogonal. Times sqrt(outputs), the first ones are the same however many there are.
    """

    @property
    def padded(self) -> int:
        """Points of the transform."""
        return padded_size(self.inputs)

    @property
    def contraction(self) -> float:
        """``1 / (1 + (n - 1) sum_b m_b (N - m_b) / (m^2 (N - 1)))``, m_b of N outputs in block b (derived).

        With n = N > m that is m / n.
        """
        last = self.outputs % self.padded
        spread = last * (self.padded - last) / max(self.padded - 1, 1)
        return 1 / (1 + (self.inputs - 1) * spread / self.outputs**2)

    def cost(self, batch: Any, rivals: cost.Rivals) -> cost.ProjectorCost:
        """As one round of signs and transform."""
        return cost.hadamard(self._task(batch), rivals)

    @property
    def _blocks(self) -> int:
        return -(-self.outputs // self.padded)

    def _draw(self) -> tuple[jax.Array, jax.Array]:
        def block(number):
            signs, places = jax.random.split(jax.random.fold_in(self.key, number))
            return random_signs(signs, (self.inputs,)), jax.random.permutation(places, self.padded)

        return jax.vmap(block)(jnp.arange(self._blocks))

    def _project(self, x: jax.Array) -> jax.Array:
        signs, places = self._draw() if self.parts is None else self.parts
        mixed = walsh_hadamard(_pad(x[..., None, :] * signs, self.padded))
        chosen = jnp.take_along_axis(mixed, jnp.broadcast_to(places, mixed.shape), -1)
        return chosen.reshape(*x.shape[:-1], -1)[..., : self.outputs] / math.sqrt(self.outputs)

    def _transposed(self, y: jax.Array) -> jax.Array:
        signs, places = self._draw() if self.parts is None else self.parts
        spread = _pad(y, self._blocks * self.padded).reshape(*y.shape[:-1], self._blocks, self.padded)
        spread = jnp.take_along_axis(spread, jnp.broadcast_to(jnp.argsort(places), spread.shape), -1)
        return (walsh_hadamard(spread)[..., : self.inputs] * signs).sum(-2) / math.sqrt(self.outputs)


@pytree
class Fastfood(Projector):
    """Rows that look Gaussian, from two transforms: S H G P H B (Le, Sarlos and Smola 2013, recalled).

    B are signs, P is a permutation, G is a normal diagonal, and S gives every row the norm of a normal one. In blocks, like
    :class:`Hadamard`. Rows of a block are dependent.
    """

    @property
    def padded(self) -> int:
        """Points of the transforms, and outputs of a block."""
        return padded_size(self.inputs)

    def cost(self, batch: Any, rivals: cost.Rivals) -> cost.ProjectorCost:
        """As two rounds of signs and transform."""
        return cost.hadamard(self._task(batch), dataclasses.replace(rivals, rounds=2))

    @property
    def _blocks(self) -> int:
        return -(-self.outputs // self.padded)

    def _draw(self) -> tuple[jax.Array, ...]:
        def block(number):
            keys = jax.random.split(jax.random.fold_in(self.key, number), 4)
            normal = jax.random.normal(keys[2], (self.padded,), jnp.float32)
            # Those of normal rows, by the cube root that is nearly normal (Wilson and Hilferty 1931, recalled): quick to compile.
            third = 2 / (9 * self.padded)
            roots = 1 - third + math.sqrt(third) * jax.random.normal(keys[3], (self.padded,), jnp.float32)
            norms = jnp.sqrt(self.padded * jnp.maximum(roots, 0) ** 3)
            # H B has rows of norm sqrt(N), which G weights and H adds up: sqrt(N) |g|.
            scale = norms / (math.sqrt(self.padded) * jnp.linalg.norm(normal))
            order = jax.random.permutation(keys[1], self.padded)
            return random_signs(keys[0], (self.inputs,)), order, normal, scale

        return jax.vmap(block)(jnp.arange(self._blocks))

    def _project(self, x: jax.Array) -> jax.Array:
        signs, order, normal, scale = self._draw() if self.parts is None else self.parts
        mixed = walsh_hadamard(_pad(x[..., None, :] * signs, self.padded))
        mixed = jnp.take_along_axis(mixed, jnp.broadcast_to(order, mixed.shape), -1) * normal.astype(x.dtype)
        y = walsh_hadamard(mixed) * scale.astype(x.dtype)
        return y.reshape(*x.shape[:-1], -1)[..., : self.outputs] / math.sqrt(self.outputs)

    def _transposed(self, y: jax.Array) -> jax.Array:
        signs, order, normal, scale = self._draw() if self.parts is None else self.parts
        spread = _pad(y, self._blocks * self.padded).reshape(*y.shape[:-1], self._blocks, self.padded)
        mixed = walsh_hadamard(spread * scale.astype(y.dtype)) * normal.astype(y.dtype)
        mixed = jnp.take_along_axis(mixed, jnp.broadcast_to(jnp.argsort(order), mixed.shape), -1)
        return (walsh_hadamard(mixed)[..., : self.inputs] * signs).sum(-2) / math.sqrt(self.outputs)


# -- not linear ------------------------------------------------------------------------------------------------------------


@pytree
class Fourier(Projector):
    """Random Fourier features of the Gaussian kernel exp(-||x - y||^2 / (2 bandwidth^2)) (Rahimi and Recht 2007, recalled).

    ``sqrt(2 / m) cos(W x / bandwidth + b)``: inner products of features are the kernel in the mean. Not linear, so nothing to
    transpose.

    Args:
        bandwidth: of the kernel, in the units of the inputs.
        matrix: where W comes from: "gaussian" or "fastfood".
    """

    bandwidth: Any = 1.0
    matrix: str = static(default="gaussian")

    @property
    def is_linear(self) -> bool:
        """It is not."""
        return False

    @property
    def has_adjoint(self) -> bool:
        """It has none."""
        return False

    def cost(self, batch: Any, rivals: cost.Rivals) -> cost.ProjectorCost:
        """That of its matrix: cosines of the outputs are left out."""
        return self._linear.cost(batch, rivals)

    @property
    def _linear(self) -> Projector:
        matrix, _ = jax.random.split(self.key)
        parts = None if self.parts is None else self.parts[0]
        return _FREQUENCIES[self.matrix](matrix, self.inputs, self.outputs, parts=parts)

    def _draw(self) -> tuple[Any, jax.Array]:
        _, phases = jax.random.split(self.key)
        linear = dataclasses.replace(self._linear, parts=None)
        return linear.hold().parts, jax.random.uniform(phases, (self.outputs,), jnp.float32, 0, 2 * math.pi)

    def _project(self, x: jax.Array) -> jax.Array:
        if self.parts is None:
            _, phases = jax.random.split(self.key)
            shift = jax.random.uniform(phases, (self.outputs,), jnp.float32, 0, 2 * math.pi)
        else:
            shift = self.parts[1]
        turns = self._linear.apply(x) * (math.sqrt(self.outputs) / self.bandwidth)
        return math.sqrt(2 / self.outputs) * jnp.cos(turns + shift.astype(x.dtype))


_FREQUENCIES: dict[str, type[Projector]] = {"gaussian": Gaussian, "fastfood": Fastfood}


# -- by light --------------------------------------------------------------------------------------------------------------


@pytree
class Optical(Projector):
    """An optical unit, and the code that makes vectors binary for it.

    In mode "intensity" its outputs are |H x|^2, one frame for each vector: not linear, and nothing to transpose. The linear
    modes take more frames, and one for each plane of the code on top. Their outputs are scaled so that norms are unbiased, in
    "anchor" mode but for the share along the anchor, which counts twice. H is the device's: it has no other one for another
    round, so that what is refreshed are signs of the inputs, or the region of the camera. It is transposed on a computer, once
    the unit is calibrated and in anchor mode: a calibration knows rows up to a phase, and there it cancels.

    Args:
        unit: by default unit 0 of the laboratory ``key``, with as many outputs. One with more has regions: the first outputs
            are its first rows.
        encoder: a code of ``decentral.optical.encoders``; None: vectors are binary themselves.
        mode: "intensity", "anchor", "four_phase" or "off_axis".
        follow: scale each vector to the full scale of :class:`BitPlanes`, and its projection back.
        first: the unit's row that it begins with.

    Raises:
        InvalidInput: a code of several planes read as intensities, a refresh it does not have, more inputs than mirrors, more
            outputs than pixels.
    """

    unit: Any = None
    encoder: Encoder | None = static(default=None)
    mode: str = static(default="intensity")
    follow: bool = static(default=False)
    first: Any = 0

    def __post_init__(self) -> None:
        for name, kind in (("encoder", Encoder), ("unit", OpticalUnit)):
            if not isinstance(getattr(self, name), kind | None):
                allowed = f"a decentral.optical.{kind.__name__}, or none"
                raise InvalidInput(f"projector.{name}", getattr(self, name), allowed)
        mirrors = self.inputs if self.encoder is None else self.encoder.bits(self.inputs)
        unit = OpticalUnit(0, self.key, mirrors, self.outputs) if self.unit is None else self.unit
        object.__setattr__(self, "unit", unit)
        linear = unit.device.mode(self.mode).linear
        if unit.inputs != mirrors:
            raise InvalidInput("projector.unit", f"{unit.inputs} inputs", f"{mirrors}, the bits of a vector")
        if self.outputs > unit.outputs:
            allowed = f"at most the {unit.outputs:,} outputs (pixels) of the unit"
            raise InvalidInput("projector.outputs", self.outputs, allowed)
        if isinstance(self.first, int) and self.first + self.outputs > unit.outputs:
            allowed = f"a row after which there are {self.outputs:,} of the unit's {unit.outputs:,}"
            raise InvalidInput("projector.first", self.first, allowed)
        if self.encoder is not None and self.encoder.planes > 1 and not linear:
            self.encoder.decode(jnp.zeros((self.encoder.planes, 1)), linear=False)  # says why
        if self.refresh == "round":
            told = "Its matrix is the scatterer's and cannot be drawn anew: refresh 'signs' or 'region'."
            raise InvalidInput("projector.refresh", self.refresh, "a refresh that a unit has", told)
        if self.refresh == "signs" and not self._signed:
            told = "Mirrors are on or off: -1 needs planes of its own, so that signs double the frames of a vector."
            raise InvalidInput(
                "projector.encoder", self.encoder, "a code of signed numbers for refresh 'signs'", told
            )

    @property
    def _signed(self) -> bool:
        return self.encoder is not None and self.encoder.is_linear and bool((self.encoder.weights < 0).any())

    @property
    def is_linear(self) -> bool:
        """Whether outputs are, in the vector as the code rounds it."""
        return self.unit.device.mode(self.mode).linear and (self.encoder is None or self.encoder.is_linear)

    @property
    def has_adjoint(self) -> bool:
        """Whether the transpose is known: of a calibrated unit, in anchor mode."""
        known = self.unit.calibration is Calibration.CALIBRATED
        return known and self.is_linear and self.mode == "anchor"

    @property
    def contraction(self) -> float:
        """That of a Gaussian matrix: of the one direction along an anchor that counts twice, it says nothing (derived)."""
        if not self.is_linear:
            raise InvalidInput("projector.mode", self.mode, "a linear mode", "|H x|^2 is no linear map of x.")
        return self.outputs / (self.outputs + self.inputs + 1)

    def at(self, count: Any) -> Self:
        """As for every projector, and with "region" other rows of the unit, until it begins again with the first."""
        if self.refresh != "region":
            return super().at(count)
        regions = self.unit.outputs // self.outputs
        return dataclasses.replace(self, first=count % regions * self.outputs)

    def hold(self) -> Self:
        """A copy whose simulation keeps the unit's matrix; on a real unit there is nothing to keep."""
        return dataclasses.replace(self, unit=dataclasses.replace(self.unit, given=self.unit.rows()))

    def calibrated(self) -> Self:
        """A copy of the outputs in use, as if their rows had been measured without error: only a simulator can.

        ``unit.calibrate()`` measures them through the camera, frame by frame.
        """
        used = self._used
        return dataclasses.replace(self, unit=dataclasses.replace(used, known=used.rows()), first=0)

    @property
    def _used(self) -> OpticalUnit:
        """The rows in use as a unit of their own."""
        if isinstance(self.first, int) and self.first == 0 and self.outputs == self.unit.outputs:
            return self.unit

        def cut(rows: Any) -> Any:
            return (
                None
                if rows is None
                else jax.lax.dynamic_slice_in_dim(jnp.asarray(rows), self.first, self.outputs)
            )

        region = jnp.asarray(self.unit.region, jnp.uint32) + jnp.asarray(self.first, jnp.uint32)
        known, given = cut(self.unit.known), cut(self.unit.given)
        return dataclasses.replace(self.unit, outputs=self.outputs, region=region, known=known, given=given)

    def apply(self, x: Any, key: Any = None) -> jax.Array:
        """The projection: intensities in mode "intensity", whose mean is the number of mirrors that are on; else linear.

        Args:
            x: (..., inputs); binary without an encoder.
            key: of the camera's noise, where it has any.

        Returns:
            (..., outputs), in the precision of ``x``, at least float32.
        """
        _check_size("x", jnp.asarray(x), self.inputs)
        if self.encoder is None:
            return self._read(x, key)
        x = self._flipped(_floating(x))
        full = jnp.ones((), x.dtype)
        if self.follow and isinstance(self.encoder, BitPlanes):
            largest = jnp.abs(x).max(-1, keepdims=True)
            full = jnp.where(largest > 0, largest, 1) / min(self.encoder.scales)
        read = self._read(self.encoder.encode(x / full), key).astype(x.dtype)
        return full * self.encoder.decode(read) if self.encoder.is_linear else read[..., 0, :]

    def _read(self, mirrors: Any, key: Any) -> jax.Array:
        if self.mode == "intensity":
            return self._used.intensity(mirrors, key)
        return self._used.linear(mirrors, key, mode=self.mode) * math.sqrt(2 / self.outputs)

    def adjoint(self, y: Any) -> jax.Array:
        """As for every projector.

        Raises:
            NotCalibrated: nobody knows the matrix.
            InvalidInput: the mode has no transpose.
        """
        if not self.is_linear:
            told = "|H x|^2 is no linear map of x, and has no transpose."
            raise InvalidInput("projector.mode", self.mode, "a linear mode", told)
        matrix = self._used.matrix(self.mode)
        y = _floating(y)
        _check_size("y", y, self.outputs)
        return self._flipped(jnp.matmul(y, matrix.astype(y.dtype), precision="highest")) * math.sqrt(
            2 / self.outputs
        )

    def cost(self, batch: Any, rivals: cost.Rivals) -> cost.ProjectorCost:
        """As frames of its own hardware: those of the mode for each plane; signed numbers have twice the planes."""
        planes = 1 if self.encoder is None else self.encoder.planes
        task = cost.RandomProjection(
            self.unit.inputs,
            self.outputs,
            batch,
            self.mode,
            self.mode == "intensity",  # behind which two real products stand
            planes // (1 + self._signed),
            self._signed,
        )
        return cost.optical(task, dataclasses.replace(rivals, unit=self.unit.device))


# -- by name ---------------------------------------------------------------------------------------------------------------

PROJECTORS: dict[str, Callable[..., Projector]] = {
    "gaussian": Gaussian,
    "sparse": Sparse,
    "hadamard": Hadamard,
    "fastfood": Fastfood,
    "count_sketch": CountSketch,
    "fourier": Fourier,
    "optical": Optical,
}
"""Every projector by the name a spec uses."""


def _kind(instance: Projector) -> str:
    return next((kind for kind, cls in PROJECTORS.items() if type(instance) is cls), type(instance).__name__)


def projector(kind: str, inputs: int, outputs: int, key: Any = 0, **arguments: Any) -> Projector:
    """A projector by its name.

    Args:
        kind: a name of ``PROJECTORS``.
        inputs: numbers of a vector.
        outputs: numbers of its projection.
        key: a JAX key, which may be traced, or a whole number that makes one.
        arguments: the fields of the kind: ``refresh`` of all, ``first`` and ``rows`` of those drawn row by row, ``density``,
            ``bandwidth``, ``matrix``; an optical one's ``unit``, ``encoder``, ``mode`` and ``follow``.

    Raises:
        InvalidInput: no such kind or argument, sizes that are none, or a refresh that the kind does not have.
    """
    check_choice("projector.kind", kind, PROJECTORS)
    build = PROJECTORS[kind]
    check_integer("projector.inputs", inputs, 1)
    check_integer("projector.outputs", outputs, 1)
    fields = [f.name for f in dataclasses.fields(build)]  # type: ignore[arg-type]
    allowed = [name for name in fields if name not in ("key", "inputs", "outputs", "parts", "flip")]
    for name, value in arguments.items():
        if name not in allowed:
            raise InvalidInput(f"projector.{name}", value, f"arguments of {kind}", suggest(name, allowed))
    _check_arguments(kind, outputs, arguments, has_rows="rows" in allowed)
    return build(_as_key(key), inputs, outputs, **arguments)


def _as_key(key: Any) -> jax.Array:
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.key(check_integer("projector.key", key, 0))


def _check_arguments(kind: str, outputs: int, arguments: dict[str, Any], *, has_rows: bool) -> None:
    refresh = check_choice("projector.refresh", arguments.get("refresh", "none"), REFRESH)
    rows = check_integer("projector.rows", arguments.get("rows", ROWS), 1, ROWS)
    if refresh == "region" and kind != "optical":
        if not has_rows:
            told = "Its outputs are not rows drawn one by one: refresh it by 'round' or 'signs'."
            raise InvalidInput("projector.refresh", refresh, f"a refresh that {kind} has", told)
        if outputs > rows:
            raise InvalidInput(
                "projector.outputs", outputs, f"at most the {rows:,} rows (pixels) that there are"
            )
    if arguments.get("density") is not None:
        check_number("projector.density", arguments["density"], 0, 1, above=True)
    if not isinstance(arguments.get("bandwidth", 1.0), jax.Array | np.ndarray):
        check_number("projector.bandwidth", arguments.get("bandwidth", 1.0), 0, math.inf, above=True)
    if not isinstance(arguments.get("first", 0), jax.Array):
        check_integer("projector.first", arguments.get("first", 0), 0)
    if "matrix" in arguments:
        check_choice("projector.matrix", arguments["matrix"], _FREQUENCIES)
