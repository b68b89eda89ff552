"""Matrix products with operands of few bits, emulated: rounded as hardware would, multiplied and added up in float32.

A linear layer has three products: forward x W, dgrad g W^T, wgrad x^T g. Each rounds its operands along its own contraction
axis, so x, W and g have two copies each where the rounding goes by blocks, one row-wise and one column-wise, both made from
the unrounded values, as by NVIDIA's Transformer Engine (recalled). Master weights, biases, sums and results stay as they are.

MXFP8 is that of the OCP Microscaling Formats (MX) Specification 1.0 (2023; recalled, not read here): k = 32 elements of
float8 e4m3 share a scale of type e8m0, a power of two. Section 6.3 there takes floor(log2 max|x|) - emax as the exponent,
emax = 8 of e4m3, and clamps what is then too large: of a block whose maximum is 1.75 to 2 times a power of two, the elements
above 1.75 times it, by at most an eighth. Recipes that take the exponent up instead, so that nothing saturates, lose the
lowest binade; they are not emulated here. Neither is hardware that adds up in fewer bits than float32 has.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from decentral.problem.checks import check_choice

BLOCK = 32
"""Elements that share a scale in MXFP8."""

Rounding = Callable[[jax.Array, int], jax.Array]
"""(values, axis) -> values rounded and scaled back, shape and dtype kept; ``axis``, -1 or -2, is the one contracted over."""


class Precision(NamedTuple):
    """How operands are rounded.

    Attributes:
        values: of activations and weights.
        slopes: of the gradients with respect to a layer's outputs.
    """

    values: Rounding
    slopes: Rounding


def mxfp8(values: jax.Array, axis: int) -> jax.Array:
    """Blocks of 32 along ``axis`` as MXFP8 (e4m3), and back.

    The elements are rounded to the nearest, ties to even, and clamped to ±448 times the scale. Blocks of zeros stay zeros.
    Scales end at 2^-126, the least normal float32, and not at e8m0's 2^-127: XLA on CPU takes for zero what is less. NaN or an
    infinity make their whole block NaN, which the specification leaves open: so a run that diverges is seen to.

    Args:
        values: any shape of at least ``-axis`` axes; a length that is no multiple of 32 is filled up with zeros.
            Rounded to float32 before, where they have more bits.
        axis: counted from the end.

    Returns:
        Same shape and dtype.
    """
    axis %= values.ndim
    size, before, after = values.shape[axis], values.shape[:axis], values.shape[axis + 1 :]
    filled = [(0, -size % BLOCK if a == axis else 0) for a in range(values.ndim)]
    blocks = jnp.pad(values.astype(jnp.float32), filled).reshape(*before, -1, BLOCK, *after)
    largest = jnp.max(jnp.abs(blocks), axis + 1, keepdims=True)
    # The exponent bits alone are 2^floor(log2), exactly, 0 for less than 2^-126, and infinity for NaN.
    bits = jax.lax.bitcast_convert_type(largest, jnp.int32) & jnp.int32(0x7F800000)
    scale = jnp.maximum(jax.lax.bitcast_convert_type(bits, jnp.float32) / 2**8, jnp.float32(2.0**-126))
    rounded = _cast(blocks / scale, jnp.float8_e4m3fn) * scale
    back = rounded.reshape(*before, -1, *after)
    return jax.lax.slice_in_dim(back, 0, size, axis=axis).astype(values.dtype)


def fp8_tensor(values: jax.Array, axis: int, dtype: Any = jnp.float8_e4m3fn) -> jax.Array:
    """float8 with one float32 scale for each matrix, its maximum to the largest float8; and back.

    The scale is of this very matrix ("current scaling"), not of those before it. Zeros stay zeros; NaN or an infinity make
    all of it NaN.

    Args:
        values: ``(..., rows, columns)``.
        axis: without meaning here.
        dtype: float8_e4m3fn or float8_e5m2.

    Returns:
        Same shape and dtype.
    """
    del axis
    exact = values.astype(jnp.float32)
    largest = jnp.max(jnp.abs(exact), (-2, -1), keepdims=True)
    scale = jnp.maximum(largest / float(jnp.finfo(dtype).max), jnp.float32(2.0**-126))
    return (_cast(exact / scale, dtype) * scale).astype(values.dtype)


def bfloat16(values: jax.Array, axis: int) -> jax.Array:
    """Rounded to bfloat16 and back; ``axis`` is without meaning here."""
    del axis
    # Not a cast: XLA may take a cast there and back for nothing (xla_allow_excess_precision).
    return jax.lax.reduce_precision(values.astype(jnp.float32), 8, 7).astype(values.dtype)


def _cast(values: jax.Array, dtype: Any) -> jax.Array:
    """To the nearest float8, ties to even, and back. e4m3 has no infinity: out of range would be NaN, so it is clamped."""
    largest = float(jnp.finfo(dtype).max)
    return jnp.clip(values, -largest, largest).astype(dtype).astype(jnp.float32)


ROUNDINGS: dict[str, Precision] = {
    "bfloat16": Precision(bfloat16, bfloat16),
    "mxfp8": Precision(mxfp8, mxfp8),
    "fp8_tensor": Precision(fp8_tensor, functools.partial(fp8_tensor, dtype=jnp.float8_e5m2)),
}
"""Name -> what is rounded how."""
PRECISIONS = ("float32", *ROUNDINGS)
"""What ``problem.precision`` may be. "float32" rounds nothing: products are in the parameters' dtype, as ever."""


@functools.cache
def product(precision: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """``multiply(x, weight) = x @ weight``, operands rounded in the product and in those of its two derivatives.

    ``x`` is (..., inputs), ``weight`` (inputs, outputs). All rows that meet one and the same weight are one matrix, also
    those that ``jax.vmap`` tells apart: a gradient of a mean over a batch contracts over all tokens of all samples, and
    wgrad's blocks and the scale of a tensor are taken over these, sample by sample, as hardware would. Under a ``vmap`` that
    maps the weight too (experts, workers) each has its own. Reverse mode only.

    Args:
        precision: one of ``PRECISIONS``; "float32" is ``jnp.matmul``.

    Raises:
        InvalidInput: another name.
    """
    if check_choice("problem.precision", precision, PRECISIONS) == "float32":
        return jnp.matmul
    values, slopes = ROUNDINGS[precision]
    rows, columns = {}, {}
    for rounding in (values, slopes):
        rows[rounding] = _together(rounding, -1)
        columns[rounding] = _together(rounding, -2)

    @jax.custom_vjp
    def multiply(x: jax.Array, weight: jax.Array) -> jax.Array:
        return rows[values](x, x, weight) @ values(weight, -2)

    def forward(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return multiply(x, weight), (x, weight)

    def backward(kept: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, weight = kept
        dgrad = rows[slopes](slope, x, weight) @ values(weight, -1).T
        wgrad = columns[values](x, x, weight).T @ columns[slopes](slope, x, weight)
        return dgrad, wgrad

    multiply.defvjp(forward, backward)

    def of_any_shape(x: jax.Array, weight: jax.Array) -> jax.Array:
        return multiply(x.reshape(-1, x.shape[-1]), weight).reshape(*x.shape[:-1], -1)

    return of_any_shape


def _together(rounding: Rounding, axis: int) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """``rounded(matrix, x, weight)``: the matrix, a layer's ``x`` or a slope, rounded with all others that meet the weight.

    Of ``x`` and ``weight`` only one number goes on: what it is does not matter, but whether ``vmap`` maps it.
    """

    @custom_vmap
    def rounded(matrices: jax.Array, x: jax.Array, weight: jax.Array) -> jax.Array:
        return rounding(matrices, axis)  # (weights, rows, columns)

    @rounded.def_vmap
    def _(
        size: int, mapped: list, matrices: jax.Array, x: jax.Array, weight: jax.Array
    ) -> tuple[jax.Array, bool]:
        is_mapped, x_is_mapped, weight_is_mapped = mapped
        x, weight = x[0] if x_is_mapped else x, weight[0] if weight_is_mapped else weight
        # Without x mapped it is a vmap of the derivative, over slopes: these never meet in a product.
        one = x_is_mapped and not weight_is_mapped
        if not is_mapped and not one:
            return rounded(matrices, x, weight), False
        if not is_mapped:
            matrices = jnp.broadcast_to(matrices, (size, *matrices.shape))
        if one:
            matrices = matrices.swapaxes(0, 1)
        first, second, rows, width = matrices.shape
        flat = (first, second * rows, width) if one else (first * second, rows, width)
        matrices = rounded(matrices.reshape(flat), x, weight).reshape(matrices.shape)
        return matrices.swapaxes(0, 1) if one else matrices, True

    def of_one(matrix: jax.Array, x: jax.Array, weight: jax.Array) -> jax.Array:
        return rounded(matrix[None], x[0, 0], weight[0, 0])[0]

    return of_one
