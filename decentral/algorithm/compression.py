"""Compressed messages: what goes on the wire in place of a tree of parameters, and how it becomes one again.

Every leaf is compressed by itself. A compressed leaf is a small pytree that knows its dense shape (a static field, which
the receiver knows too and nobody sends), so :func:`decompress` needs no compressor, the bytes of a message are those of
its arrays, and payloads batch and compile like any other message.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from decentral.algorithm.base import pytree, static
from decentral.errors import InvalidInput, check_choice, check_flag, check_integer, suggest
from decentral.hardware import optical_unit
from decentral.optical.encoders import BitPlanes
from decentral.optical.projector import REFRESH, Projector, projector
from decentral.optical.unit import Calibration, NotCalibrated, OpticalUnit
from decentral.problem.checks import check_number

LEVELS = 127
"""An int8 leaf has the values -127 ... 127 times its scale."""


class Encoded:
    """A compressed leaf."""

    def dense(self) -> jax.Array:
        """The leaf it stands for."""
        raise NotImplementedError


@pytree
class Sparse(Encoded):
    """``values`` at ``indices`` (int32) of the flattened leaf, 0 elsewhere."""

    values: Any
    indices: Any
    shape: tuple[int, ...] = static()

    def dense(self) -> jax.Array:
        return _scatter(self.values, self.indices, self.shape)


@pytree
class Drawn(Encoded):
    """``values`` at places both ends draw from ``seed`` (uint32), 0 elsewhere."""

    values: Any
    seed: Any
    shape: tuple[int, ...] = static()

    def dense(self) -> jax.Array:
        places = _places(self.seed, math.prod(self.shape), self.values.shape[-1])
        return _scatter(self.values, places, self.shape)


@pytree
class Signs(Encoded):
    """``scale`` where a bit is set, ``-scale`` elsewhere; ``bits`` holds 8 to a byte."""

    bits: Any
    scale: Any
    shape: tuple[int, ...] = static()

    def dense(self) -> jax.Array:
        bits = jnp.unpackbits(self.bits, count=math.prod(self.shape)).reshape(self.shape)
        return jnp.where(bits == 1, self.scale, -self.scale)


@pytree
class Int8(Encoded):
    """``values`` (int8) times ``scale``."""

    values: Any
    scale: Any

    def dense(self) -> jax.Array:
        return self.values.astype(self.scale.dtype) * self.scale


@pytree
class Sketched(Encoded):
    """``values`` = H x; both ends have H from ``sketch`` and, where rounds differ, from ``seed`` (uint32)."""

    values: Any
    seed: Any
    shape: tuple[int, ...] = static()
    sketch: Sketch = static()

    def dense(self) -> jax.Array:
        size = math.prod(self.shape)
        if self.values.size == size:
            return self.values.reshape(self.shape)
        sender = self.sketch.map(size, self.seed)
        receiver = sender if self.sketch.matched else self.sketch.map(size, self.seed, other=True)
        return (sender.contraction * receiver.adjoint(self.values)).reshape(self.shape)


def _scatter(values, places, shape) -> jax.Array:
    return jnp.zeros(math.prod(shape), values.dtype).at[places].set(values).reshape(shape)


def _places(seed, size: int, kept: int) -> jax.Array:
    return jax.random.permutation(jax.random.key(seed), size)[:kept]


class Compressor:
    """Base of the compressors: frozen dataclasses of plain numbers, static in an algorithm."""

    def encode(self, leaf: jax.Array, key: jax.Array) -> Encoded:
        """One leaf compressed."""
        raise NotImplementedError

    def delta(self, size: int) -> float:
        """The delta of ``E||C(x) - x||^2 <= (1 - delta) ||x||^2`` for any leaf of ``size`` numbers; 0: no promise."""
        raise NotImplementedError

    def compress(self, tree: Any, key: jax.Array) -> Any:
        """The payload of a tree: its leaves encoded, each with a key of its own."""
        leaves, structure = jax.tree.flatten(tree)
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(structure, [self.encode(*pair) for pair in zip(leaves, keys, strict=True)])

    def as_dict(self) -> dict[str, Any]:
        """The spec table that makes this compressor."""
        kind = next(kind for kind, cls in COMPRESSORS.items() if type(self) is cls)
        fields = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {"kind": kind, **{name: value for name, value in fields.items() if value is not None}}


@dataclasses.dataclass(frozen=True)
class _Fraction(Compressor):
    """Keeps a share of the numbers.

    Args:
        fraction: of each leaf's numbers that is sent, in (0, 1]; at least one number.
    """

    fraction: float = 0.1

    def __post_init__(self) -> None:
        check_number("compressor.fraction", self.fraction, open_low=True)
        if self.fraction > 1:
            raise InvalidInput("compressor.fraction", self.fraction, "a number above 0 and at most 1")

    def kept(self, size: int) -> int:
        """Numbers of a leaf of ``size`` that are sent."""
        return max(1, round(self.fraction * size))

    def delta(self, size: int) -> float:
        return self.kept(size) / size


class TopK(_Fraction):
    """The k numbers of largest magnitude of each leaf, and their places: k (bytes of a number + 4) on the wire.

    delta >= k/d; 0.44 on a Gaussian vector with d = 1000, k = 100.
    """

    def encode(self, leaf: jax.Array, key: jax.Array) -> Sparse:
        flat = leaf.ravel()
        places = jax.lax.top_k(jnp.abs(flat), self.kept(flat.size))[1].astype(jnp.int32)
        return Sparse(flat[places], places, leaf.shape)


class RandomK(_Fraction):
    """k numbers of each leaf at random places, not rescaled: k numbers and a seed of 4 bytes on the wire.

    The receiver draws the places from the seed. ``E C(x) = (k/d) x`` and delta = k/d exactly.
    """

    def encode(self, leaf: jax.Array, key: jax.Array) -> Drawn:
        seed, flat = jax.random.bits(key, dtype=jnp.uint32), leaf.ravel()
        return Drawn(flat[_places(seed, flat.size, self.kept(flat.size))], seed, leaf.shape)


@dataclasses.dataclass(frozen=True)
class Sign(Compressor):
    """The signs of each leaf times its mean magnitude: a bit per number and one number on the wire.

    delta = ||x||_1^2 / (d ||x||^2), at least 1/d and 2/pi on a Gaussian vector (Karimireddy et al., ICML 2019, recalled).
    The sign of 0 is +.
    """

    def encode(self, leaf: jax.Array, key: jax.Array) -> Signs:
        return Signs(jnp.packbits(leaf.ravel() >= 0), jnp.abs(leaf).mean(), leaf.shape)

    def delta(self, size: int) -> float:
        return 1 / size


@dataclasses.dataclass(frozen=True)
class StochasticInt8(Compressor):
    """Each number rounded at random to a neighbouring multiple of max|x| / 127: a byte per number and one scale on the wire.

    Unbiased; a number is off by less than one step, with a variance of at most a quarter of its square, so that
    delta >= 1 - d / (4 127^2) (derived).
    """

    def encode(self, leaf: jax.Array, key: jax.Array) -> Int8:
        scale = jnp.abs(leaf).max() / LEVELS
        levels = leaf / jnp.where(scale > 0, scale, 1)
        rounded = jnp.floor(levels + jax.random.uniform(key, leaf.shape, leaf.dtype))
        return Int8(jnp.clip(rounded, -LEVELS, LEVELS).astype(jnp.int8), scale)

    def delta(self, size: int) -> float:
        return max(0.0, 1 - size / (4 * LEVELS**2))


SKETCHES = ("gaussian", "sparse", "hadamard", "count_sketch", "optical")
"""Projectors that a sketch can be made by: linear, with a transpose and a known contraction."""
HARDWARE = "LightOn OPU Gen-2"
"""The optical unit of a sketch."""


@dataclasses.dataclass(frozen=True)
class Sketch(_Fraction):
    r"""k random projections of each leaf: :math:`C(x) = \alpha H^T H x`, with k numbers, and a seed of 4 bytes, on the wire.

    Both ends make H from the seed. With H fresh every time ``E H^T H = I``, and :math:`\alpha = \delta` is the best factor:
    k / (k + d + 1) of a Gaussian H, about k / d of "hadamard", 1 / (1 + (d - 1) / k) of "count_sketch". None of them is better
    than "random_k", which has k / d and takes no arithmetic. What sketches have is linearity: sums of sketches by one H are
    sketches of sums. A leaf of k numbers or fewer goes as it is.

    A fixed H with k < d is no compressor: only its row space ever moves, and of the distance to consensus a share 1 - k / d
    stays for ever. Random signs of the inputs in front of a fixed H make it one again, in the mean over matrices, and so do
    other rows of a large H (a region of a camera).

    On an optical unit the difference is sent in bit planes, 2 ``precision`` of them, two frames each, and H^T takes a
    calibrated unit: d times its pixels numbers to be stored, the memory that the unit was to save. Its sketches are within the
    camera's noise and levels; calibration is taken as free of error. Random signs need signed inputs, which bit planes are;
    binary inputs would take twice the frames.

    Args:
        fraction: of each leaf's numbers that is sent.
        projector: one of ``SKETCHES``.
        refresh: what is drawn anew for every message: "round", all of H; "signs" of the inputs; "region", other rows; "none".
        seed: of what is not drawn anew; on an optical unit, of the laboratory.
        rows: that there are for regions; by default 2^31 - 1, and on an optical unit all pixels of its camera.
        calibrated: whether the optical unit is.
        precision: bits of a number on the optical unit, beside its sign.
        matched: whether receivers decode with the sender's matrix. False is what two optical units do, whose matrices differ:
            to show that it diverges.
        allow_rank_deficient: let a fixed H with k < d pass, to show that it fails.

    Raises:
        InvalidInput: a fixed H with k < d that is not allowed, or a refresh that the projector does not have.
        NotCalibrated: an optical unit that is not.
    """

    projector: str = "gaussian"
    refresh: str = "round"
    seed: int = 0
    rows: int | None = None
    calibrated: bool = False
    precision: int = 6
    matched: bool = True
    allow_rank_deficient: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("compressor.projector", self.projector, SKETCHES)
        check_choice("compressor.refresh", self.refresh, REFRESH)
        check_integer("compressor.seed", self.seed, 0)
        check_integer("compressor.precision", self.precision, 1, 16)
        for name in ("calibrated", "matched", "allow_rank_deficient"):
            check_flag(f"compressor.{name}", getattr(self, name))
        if self.rows is not None:
            check_integer("compressor.rows", self.rows, 1)
        if self.refresh == "none" and self.fraction < 1 and not self.allow_rank_deficient:
            raise InvalidInput(
                "compressor.refresh", self.refresh, "'round', 'signs' or 'region' where fraction < 1",
                "With a fixed H only its row space ever moves: a share 1 - fraction of the distance to consensus stays for "
                "ever, and no step size helps. allow_rank_deficient = true shows it.",
            )  # fmt: skip
        if self.projector == "optical" and not self.calibrated:
            raise NotCalibrated(
                "compressor.calibrated", Calibration.UNKNOWN.value, "a calibrated unit",
                "Decoding takes the transpose of the unit's matrix, which nobody knows: it has to be measured, and then stored, "
                "parameters times pixels numbers of it. That is the memory that the unit was to save. calibrated = true says "
                "that it was done; norms and distances of sketches need no transpose.",
            )  # fmt: skip
        self.map(2, 0)  # a refresh that the projector does not have is refused by it

    def kept(self, size: int) -> int:
        return min(super().kept(size), size)

    def map(self, size: int, seed: Any, *, other: bool = False) -> Projector:
        """H for a leaf of ``size`` numbers; ``other``: that of somebody else."""
        kept = self.kept(size)
        key = jax.random.key(self.seed + other)
        if self.projector != "optical":
            rows = {} if self.rows is None else {"rows": self.rows}
            return projector(self.projector, size, kept, key, refresh=self.refresh, **rows).at(seed)
        pixels = optical_unit(HARDWARE).max_outputs if self.rows is None else self.rows
        unit = OpticalUnit(int(other), self.seed, size, max(pixels, kept), hardware=HARDWARE)
        code = BitPlanes(self.precision)
        made = projector(
            "optical",
            size,
            kept,
            key,
            refresh=self.refresh,
            unit=unit,
            encoder=code,
            mode="anchor",
            follow=True,
        )
        return made.at(seed).calibrated()  # type: ignore[attr-defined]

    def encode(self, leaf: jax.Array, key: jax.Array) -> Sketched:
        flat = leaf.ravel()
        draws, noise = jax.random.split(key)
        seed = None if self.refresh == "none" else jax.random.bits(draws, dtype=jnp.uint32)
        if self.kept(flat.size) == flat.size:
            return Sketched(flat, None, leaf.shape, self)
        values = self.map(flat.size, seed).apply(flat, noise).astype(leaf.dtype)
        return Sketched(values, seed, leaf.shape, self)

    def delta(self, size: int) -> float:
        """In the mean over matrices; 0 of a fixed one, and of one that the receiver does not have."""
        if self.kept(size) == size:
            return 1.0
        return 0.0 if self.refresh == "none" or not self.matched else self.map(size, 0).contraction


COMPRESSORS: dict[str, Callable[..., Compressor]] = {
    "top_k": TopK,
    "random_k": RandomK,
    "sign": Sign,
    "int8": StochasticInt8,
    "sketch": Sketch,
}
"""Every compressor by the name a spec uses."""


def as_compressor(value: Any) -> Compressor | None:
    """Accept a :class:`Compressor`, a name, a table ``{"kind": "top_k", "fraction": 0.1}``, or None for none.

    Raises:
        InvalidInput: no such compressor or argument.
    """
    if value is None or isinstance(value, Compressor):
        return value
    table = {"kind": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
    kind = table.pop("kind", None)
    if not isinstance(kind, str) or kind not in COMPRESSORS:
        raise InvalidInput("compressor.kind", kind or value, "a compressor", suggest(str(kind), COMPRESSORS))
    build = COMPRESSORS[kind]
    allowed = [field.name for field in dataclasses.fields(build)]  # type: ignore[arg-type]
    for name in table:
        if name not in allowed:
            raise InvalidInput(
                f"compressor.{name}", table[name], f"arguments of {kind}", suggest(name, allowed)
            )
    return build(**table)


def compress(compressor: Compressor | None, tree: Any, key: jax.Array) -> Any:
    """What goes on the wire for ``tree``: itself where there is no compressor."""
    return tree if compressor is None else compressor.compress(tree, key)


def decompress(payload: Any) -> Any:
    """The dense tree of a payload; leaves that were not compressed stay."""

    def is_encoded(node) -> bool:
        return isinstance(node, Encoded)

    return jax.tree.map(lambda node: node.dense() if is_encoded(node) else node, payload, is_leaf=is_encoded)


def contraction(compressor: Compressor | None, params: Any) -> float:
    """The delta of a whole message, parameters given as arrays or shapes: the worst of its leaves'."""
    if compressor is None:
        return 1.0
    return min(compressor.delta(math.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
