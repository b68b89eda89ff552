"""Linear models on given arrays: least squares, l2-logistic regression and softmax regression."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decentral.errors import InvalidInput
from decentral.problem.base import PyTree, starting_point
from decentral.problem.checks import check_dtype, check_number
from decentral.problem.finite_sum import (
    FiniteSum,
    check_batch_size,
    check_samples,
    make_shards,
    named_accuracy,
)

Arrays = np.ndarray | list[np.ndarray]


@jax.custom_jvp
def logistic_of(margin: jax.Array) -> jax.Array:
    """log(1 + exp(-margin)), to rounding of 1: log costs half of log1p, and losses are averaged over samples.

    Its own derivative rule spares two of three exponentials per sample.
    """
    return jnp.maximum(-margin, 0.0) + jnp.log(1.0 + jnp.exp(-jnp.abs(margin)))


@logistic_of.defjvp
def _logistic_of_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (margin,), (tangent,) = primals, tangents
    return logistic_of(margin), -jax.nn.sigmoid(-margin) * tangent


def squared_residual(params: jax.Array, sample: PyTree) -> jax.Array:
    """(a . x - b)^2, without 1/2, as in DADAO's code; ``params`` (d,)."""
    return jnp.square(sample["features"] @ params - sample["target"])


def least_squares_dual(dual: jax.Array, shard: PyTree) -> jax.Array:
    """The minimiser of (1/m) ||D x - b||^2 - <dual, x>: the solution of (2/m) D^T D x = dual + (2/m) D^T b."""
    features, target = shard["samples"]["features"], shard["samples"]["target"]
    there = jnp.arange(target.size, dtype=jnp.int32) < shard["count"]  # the others are padding
    weighted = features.T * (2.0 * there.astype(features.dtype) / shard["count"].astype(features.dtype))
    return jnp.linalg.solve(weighted @ features, dual + weighted @ target)


def logistic_loss(params: jax.Array, sample: PyTree, l2: float) -> jax.Array:
    """log(1 + exp(-b a . x)) + (l2/2) ||x||^2 for a label b of -1 or 1; ``params`` (d,)."""
    return logistic_of(sample["target"] * (sample["features"] @ params)) + 0.5 * l2 * jnp.vdot(params, params)


def logistic_accuracy(params: jax.Array, sample: PyTree) -> jax.Array:
    """Whether the sign of a . x is the label."""
    return sample["target"] * (sample["features"] @ params) > 0


def softmax_loss(params: jax.Array, sample: PyTree, l2: float) -> jax.Array:
    """Cross-entropy of softmax(a^T X) + (l2/2) ||X||_F^2; ``params`` X (d, classes), the target a class number."""
    scores = sample["features"] @ params
    # a mask, not an index: the derivative of an index is a scatter, which is slow in XLA on CPU
    own = jnp.sum(
        jnp.where(jnp.arange(scores.size, dtype=sample["target"].dtype) == sample["target"], scores, 0.0)
    )
    return jax.nn.logsumexp(scores) - own + 0.5 * l2 * jnp.vdot(params, params)


def softmax_accuracy(params: jax.Array, sample: PyTree) -> jax.Array:
    """Whether the highest score is the target's."""
    return jax.lax.argmax(sample["features"] @ params, 0, sample["target"].dtype) == sample["target"]


def least_squares_from_arrays(features: Arrays, targets: Arrays, **options: Any) -> FiniteSum:
    r"""f_i(x) = (1/m_i) ||D_i x - b_i||^2 (no 1/2), with gradient (2/m_i) D_i^T (D_i x - b_i).

    mu = min_i (2/m_i) lambda_min(D_i^T D_i) (0 where m_i < d), L = max_i (2/m_i) lambda_max(D_i^T D_i), as in the
    authors' code of DADAO (commit eed1ed1).

    Args:
        features: D, shape (n, m, d), or a list of n arrays (m_i, d).
        targets: b, shape (n, m), or a list of n arrays (m_i,).
        **options: see ``logistic_from_arrays``, without l2.
    """
    problem = _linear(features, targets, squared_residual, None, 2.0, 0.0, **_named("least_squares", options))
    return dataclasses.replace(problem, dual=least_squares_dual)


def logistic_from_arrays(features: Arrays, labels: Arrays, *, l2: float = 1.0, **options: Any) -> FiniteSum:
    r"""f_i(x) = (1/m_i) sum_j log(1 + exp(-b_ij a_ij . x)) + (l2/2) ||x||^2.

    mu = l2 and L = max_i lambda_max(D_i^T D_i) / (4 m_i) + l2. (The authors of DADAO leave l2 out of L, and take the
    mean of ||a||^2 for lambda_max: recorded runs carry their own constants.)

    Args:
        features: D, shape (n, m, d), or a list of n arrays (m_i, d).
        labels: -1 or 1, shape (n, m), or a list of n arrays (m_i,).
        l2: at least 0.
        **options: ``batch_size`` (None: full gradients); ``held_out``, a pair (features, labels) of test samples;
            ``dtype`` ("float64", the default, needs x64); ``initial``: "zeros" (the default), "common", "per_worker"
            or an array (d,); ``name``.
    """
    for part in labels if isinstance(labels, list) else [labels]:
        if not np.isin(part, (-1, 1)).all():
            raise InvalidInput("labels", np.unique(part)[:5].tolist(), "-1 and 1")
    l2 = check_number("problem.l2", l2)
    loss = partial(logistic_loss, l2=l2)
    return _linear(features, labels, loss, logistic_accuracy, 0.25, l2, **_named("logistic", options))


def softmax_from_arrays(
    features: Arrays, labels: Arrays, *, classes: int, l2: float = 1e-3, **options: Any
) -> FiniteSum:
    r"""f_i(X) = (1/m_i) sum_j [logsumexp(X^T a_ij) - (X^T a_ij)_{b_ij}] + (l2/2) ||X||_F^2, X of shape (d, classes).

    mu = l2 and L = max_i lambda_max(D_i^T D_i) / (2 m_i) + l2, because the Hessian of logsumexp is at most 1/2
    (Boehning 1992).

    Args:
        features: D, shape (n, m, d), or a list of n arrays (m_i, d).
        labels: class numbers 0 .. classes - 1, shape (n, m), or a list of n arrays (m_i,).
        classes: number of classes.
        l2: at least 0 (at 0 the minimiser is not unique: ``optimum`` is None).
        **options: see ``logistic_from_arrays``.
    """
    for part in labels if isinstance(labels, list) else [labels]:
        if np.asarray(part).dtype.kind not in "iu" or np.min(part) < 0 or np.max(part) >= classes:
            raise InvalidInput("labels", np.unique(part)[:20].tolist(), f"integers from 0 to {classes - 1}")
    l2 = check_number("problem.l2", l2)
    loss = partial(softmax_loss, l2=l2)
    own = _named("softmax", options)
    return _linear(features, labels, loss, softmax_accuracy, 0.5, l2, columns=classes, **own)


def _named(name: str, options: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, **options}


def _linear(
    features: Arrays,
    targets: Arrays,
    loss: Callable,
    accuracy: Callable | None,
    curvature: float,
    l2: float,
    *,
    name: str,
    columns: int | None = None,
    batch_size: int | None = None,
    held_out: Any = None,
    dtype: Any = "float64",
    initial: str | np.ndarray = "zeros",
) -> FiniteSum:
    """A linear model whose loss has second derivative at most ``curvature`` (equal to it if ``l2`` has no part)."""
    dtype = check_dtype(dtype)
    classes = columns is not None

    def samples(a: Any, b: Any) -> dict[str, np.ndarray]:
        return {"features": np.asarray(a, dtype), "target": np.asarray(b, np.int32 if classes else dtype)}

    if isinstance(features, list):
        data = [samples(a, b) for a, b in zip(features, targets, strict=True)]
        features = [worker["features"] for worker in data]
    else:
        data = samples(features, targets)
        features = data["features"]
    shards = make_shards(data, dtype)
    if shards["samples"]["features"].ndim != 3 or shards["samples"]["target"].ndim != 2:
        shapes = {k: leaf.shape for k, leaf in shards["samples"].items()}
        raise InvalidInput("features, targets", shapes, "shapes (n, m, d) and (n, m)")
    d = shards["samples"]["features"].shape[-1]
    start, per_worker = starting_point(initial, (d, columns) if classes else (d,), dtype)
    if held_out is not None:
        held_out = jax.tree.map(jnp.asarray, check_samples("held_out", samples(*held_out), dtype, n_axes=1))

    def constants() -> tuple[float, float]:
        smallest, largest = gram_eigenvalues(
            features
        )  # not of the shards: this must not keep them on a device
        # a loss that is exactly quadratic has its lower curvature too; the others flatten out far away
        return (curvature * smallest if accuracy is None else 0.0) + l2, curvature * largest + l2

    return FiniteSum(
        name=name,
        shards=shards,
        dtype=dtype,
        sample_loss=loss,
        start=start,
        initial_per_worker=per_worker,
        batch_size=check_batch_size(batch_size, shards),
        held_out=held_out,
        sample_scores=named_accuracy(accuracy),
        constants=constants,
        convex=True,
    )


def gram_eigenvalues(features: Iterable[np.ndarray]) -> tuple[float, float]:
    """(min_i lambda_min, max_i lambda_max) of D_i^T D_i / m_i, in float64, of the workers' ``(m_i, d)`` arrays."""
    smallest, largest = np.inf, 0.0
    for a in features:
        a = a.astype(np.float64)
        eigenvalues = np.linalg.eigvalsh(a.T @ a / len(a))
        largest = max(largest, eigenvalues[-1])
        # an eigenvalue of rank deficiency is rounding, not curvature
        smallest = min(smallest, eigenvalues[0] if eigenvalues[0] > 1e-12 * eigenvalues[-1] else 0.0)
    return float(smallest), float(largest)
