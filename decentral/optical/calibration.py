"""What it takes to know an optical unit's matrix: interference of its own light, counted in frames.

A camera sees no phase. But of two masks that share no mirror, |H(x + a)|^2 - |Hx|^2 - |Ha|^2 = 2 Re(conj(Ha) Hx), so that
light through one group of mirrors is a reference for another. Mirrors are dealt into G groups. The groups' own fields follow
from their pairwise products, a Gram matrix of rank two, up to a rotation and a reflection of each pixel: its phase and
conjugation, which no intensity can tell. Each group is then lit through the patterns of an S-matrix, half of its mirrors at a
time, once for every other group as a reference, and the patterns are undone. (Numerical interferometry in the sense of Gupta
et al., arXiv 1911.01006, whose probes are about 1.5 n; the grouping and its count of frames are ours.)
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import hadamard

from decentral.errors import InvalidInput, check_integer

if TYPE_CHECKING:
    from decentral.optical.unit import OpticalUnit


def calibration_frames(inputs: int, groups: int = 6) -> int:
    """Frames that :func:`calibrate` takes, whatever the number of outputs: all pixels see every frame."""
    check_integer("inputs", inputs, 1)
    groups = _groups(inputs, groups)
    patterns = _patterns(-(-inputs // groups))
    return groups + groups * (groups - 1) // 2 + groups * patterns * groups


def calibrate(
    unit: OpticalUnit, key: jax.Array | None = None, *, groups: int = 6, refinements: int = 3
) -> OpticalUnit:
    """The unit with its rows measured: ``known``, ``(m, n)`` complex64, each up to a phase and a conjugation.

    Takes :func:`calibration_frames` frames, and n m numbers of memory from then on. It is as good as the camera: noise,
    levels and saturation go into the rows. A unit that drifts has to be calibrated again.

    Args:
        unit: any; its camera takes the frames, exposed for two groups at once.
        key: of the camera's noise.
        groups: G, at least 3, into which the mirrors are dealt; more are more frames and less noise.
        refinements: how often the groups' fields are computed again from the rows found, and the rows from them.

    Raises:
        InvalidInput: fewer than three mirrors or groups; a noisy camera without a key.
    """
    n, groups = unit.inputs, _groups(unit.inputs, groups)
    check_integer("refinements", refinements, 0)
    size = -(-n // groups)
    pattern = _s_matrix(_patterns(size))  # (probes, probes)
    members = np.minimum(np.arange(groups * size).reshape(groups, size), n)  # n: nobody
    masks = np.zeros((groups, n + 1), bool)
    masks[np.arange(groups)[:, None], members] = True
    probes = np.zeros((groups, len(pattern), n + 1), bool)
    for group in range(groups):
        probes[group][:, members[group]] = pattern[:, :size] > 0
    masks, probes = masks[:, :n], probes[..., :n]
    taken = replace(unit, exposure=2.0 * size, known=None)
    if unit.camera.is_noisy and key is None:
        raise InvalidInput("key", None, "a JAX key: this camera is noisy")

    def noise(number: int) -> jax.Array | None:
        return jax.random.fold_in(key, number) if key is not None and unit.camera.is_noisy else None

    alone = taken.intensity(masks, noise(0))  # (G, m)
    first, second = np.triu_indices(groups, 1)
    together = taken.intensity(masks[first] | masks[second], noise(1))
    gram = jnp.zeros((unit.outputs, groups, groups)).at[:, np.arange(groups), np.arange(groups)].set(alone.T)
    cross = ((together - alone[first] - alone[second]) / 2).T
    gram = gram.at[:, first, second].set(cross).at[:, second, first].set(cross)
    values, vectors = jnp.linalg.eigh(gram)
    planes = vectors[..., -2:] * jnp.sqrt(
        jnp.maximum(values[:, None, -2:], 0.0)
    )  # (m, G, 2), a field as two reals
    anchors = jax.lax.complex(planes[..., 1], planes[..., 0])

    products = []  # of each group: Re(conj(anchor) H probe), (probes, m) for every other group
    for group in range(groups):
        frames = [
            taken.intensity(
                probes[group] if other == group else probes[group] | masks[other],
                noise(2 + group * groups + other),
            )
            for other in range(groups)
        ]
        products.append([(frame - frames[group] - alone[other]) / 2 for other, frame in enumerate(frames)])
    inverse = jnp.asarray(_left_inverse(pattern, size))
    rows = _solve(anchors, products, inverse)
    for _ in range(refinements):
        # What the groups' mirrors add up to has less noise than a single frame of them.
        anchors = jnp.stack([jnp.sum(part, axis=1) for part in rows], axis=1)
        rows = _solve(anchors, products, inverse)
    return replace(unit, known=jnp.concatenate(rows, axis=1)[:, :n])  # type: ignore[type-var]


def _solve(anchors: jax.Array, products: list, inverse: jax.Array) -> list[jax.Array]:
    """Of each group its ``(m, size)`` columns: least squares for each probe's field, then the patterns undone."""
    rows = []
    for group, given in enumerate(products):
        others = [other for other in range(len(products)) if other != group]
        a = anchors[:, others]  # (m, G - 1): equations Re(conj(a) z) = p, all with the same noise
        p = jnp.stack([given[other] for other in others])  # (G - 1, probes, m)
        rr, ri, ii = (jnp.sum(v, 1) for v in (a.real**2, a.real * a.imag, a.imag**2))
        br, bi = (jnp.einsum("mg,gpm->pm", v, p) for v in (a.real, a.imag))
        det = rr * ii - ri**2
        det = jnp.where(
            det > 1e-6 * (rr + ii) ** 2, det, jnp.inf
        )  # references in line with each other say nothing
        field = jax.lax.complex((ii * br - ri * bi) / det, (rr * bi - ri * br) / det)
        rows.append((inverse @ field).T)
    return rows


def _groups(inputs: int, groups: int) -> int:
    check_integer("groups", groups, 3)
    if inputs < 3:
        raise InvalidInput("inputs", inputs, "at least 3 mirrors", "Each is a reference for the others.")
    groups = min(groups, inputs)
    return -(-inputs // -(-inputs // groups))  # no group is empty


def _patterns(size: int) -> int:
    """Probes of a group of mirrors: one less than the next power of two."""
    return 2 ** int(np.ceil(np.log2(size + 1))) - 1


def _s_matrix(order: int) -> np.ndarray:
    """Zeros and ones: the Hadamard matrix of order + 1 without its first row and column, -1 as 1."""
    if order == 1:
        return np.ones((1, 1))
    return (1 - hadamard(order + 1)[1:, 1:]) / 2


def _left_inverse(pattern: np.ndarray, size: int) -> np.ndarray:
    """``(size, probes)`` float32: undoes the first ``size`` columns of an S-matrix: 2 (2 S - 1)^T / (order + 1)."""
    order = len(pattern)
    if order == 1:
        return np.ones((1, 1), np.float32)
    return (2 * (2 * pattern[:, :size] - 1).T / (order + 1)).astype(np.float32)
