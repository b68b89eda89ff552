"""Ridge classifiers on optical features of several workers, each with its own samples, and with one unit or each its own.

What may be averaged is the question. Weights belong to features, and features to a device: weights fitted behind different
matrices have nothing to do with each other, entry by entry, and their mean predicts nothing, as does their consensus under
gossip. Predictions belong to nobody's matrix and may be averaged always.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decentral.errors import check_choice, check_integer, check_number
from decentral.optical.camera import Camera
from decentral.problem import data as sets
from decentral.problem.base import PyTree
from decentral.problem.checks import check_dtype, random_generator
from decentral.problem.finite_sum import FiniteSum, from_loss
from decentral.problem.linear import gram_eigenvalues
from decentral.problem.partition import partition as deal

DATA = {"digits": sets.digits, "mnist": sets.mnist}
UNITS = ("shared", "private")


def ridge_weights(features: np.ndarray, labels: np.ndarray, classes: int, alpha: float) -> np.ndarray:
    """``(m + 1, classes)``: of the ridge classifier on ``(samples, m)``, whose last row is the free intercept.

    Args:
        features: of the samples.
        labels: 0 .. classes - 1.
        classes: how many; a worker may have seen fewer.
        alpha: of the penalty alpha |W|^2 beside the squared residuals, above 0.
    """
    from sklearn.linear_model import Ridge

    fitted = Ridge(alpha).fit(np.asarray(features, float), _targets(labels, classes))
    return np.vstack([fitted.coef_.T, fitted.intercept_])


def ridge_across_workers(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    n: int,
    *,
    components: int = 1024,
    encoder: Any = "thermometer",
    levels: int = 5,
    camera: Camera | None = None,
    alpha: float = 0.1,
    seed: int = 0,
) -> dict[str, float]:
    """Test accuracies of one-shot ridge among workers that each have an n-th of the samples and fit on their own.

    Args:
        train: numbers ``(samples, n)`` and labels 0, 1, ...; dealt out at random.
        test: the same, held out; every worker projects them with its own unit.
        n: workers.
        components: m, features.
        encoder: code of the inputs, the same for all; as of ``OpticalRandomFeatures``.
        levels: of the thermometer.
        camera: of every unit.
        alpha: of every ridge.
        seed: drives the deal and the units.

    Returns:
        Accuracy of "shared, weights": the mean of the weights fitted behind one unit (or units that are copies of it);
        "private, weights": the same with each worker its own unit, as its mean over the units that score;
        "private, predictions": the mean of the workers' scores; "single": a worker alone, mean over them; "central": one
        ridge on all samples.
    """
    from decentral.optical.features import OpticalRandomFeatures

    check_integer("n", n, 1)
    check_number("alpha", alpha, 0, np.inf, above=True)
    (x, labels), (test_x, test_labels) = train, test
    classes = int(max(np.max(labels), np.max(test_labels))) + 1
    parts = deal(labels, n, "iid", random_generator(seed, "partition"))

    def project(worker: int) -> tuple[np.ndarray, np.ndarray]:
        unit = OpticalRandomFeatures(
            components, encoder=encoder, levels=levels, camera=camera, device_id=worker, random_state=seed
        ).fit(x)
        return unit.transform(x), _with_one(unit.transform(test_x))

    def right(scores: np.ndarray) -> float:
        return float(np.mean(np.argmax(scores, axis=-1) == test_labels))

    units = [project(worker) for worker in range(n)]
    features, tests = units[0]
    fit = partial(ridge_weights, classes=classes, alpha=alpha)
    shared = np.stack([fit(features[part], labels[part]) for part in parts])
    private = np.stack([fit(own[part], labels[part]) for part, (own, _) in zip(parts, units, strict=True)])
    scores = np.stack([own @ weights for weights, (_, own) in zip(private, units, strict=True)])
    return {
        "central": right(tests @ fit(features, labels)),
        "shared, weights": right(tests @ shared.mean(0)),
        "private, predictions": right(scores.mean(0)),
        "single": float(np.mean([right(one) for one in scores])),
        "private, weights": float(np.mean([right(own @ private.mean(0)) for _, own in units])),
    }


def random_features(
    n: int,
    *,
    data: str = "digits",
    components: int = 512,
    encoder: str = "thermometer",
    levels: int = 5,
    units: str = "shared",
    partition: str = "iid",
    alpha: float = 1.0,
    test_fraction: float = 0.2,
    l2: float = 1e-4,
    batch_size: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
    initial: str = "zeros",
) -> FiniteSum:
    """Ridge classification on optical features: f_i(W) = (1/m_i) sum_j |W^T phi_ij - t_ij|^2 + l2 |W|^2.

    phi are the features of ``OpticalRandomFeatures``, read by an 8-bit camera, and a constant; t is 1 for the class and -1 for
    the others. With units = "private" worker i's features are of its own unit, i, so that a common W is a compromise between
    matrices that have nothing in common: what gossip averages then means something else to everybody. The test samples are
    scored with every unit that there is, and "accuracy" is the mean over units.

    Args:
        n: workers.
        data: "digits", or "mnist" (5,000 images; needs the extra "data").
        components: features, beside the constant.
        encoder: "thermometer" or "threshold" (medians).
        levels: of the thermometer.
        units: "shared": all workers use one unit, 0; "private": each has its own.
        partition: "iid", "label" or "dirichlet", see ``decentral.problem.partition``.
        alpha: of "dirichlet".
        test_fraction: share of samples held out, at least 0 and below 1.
        l2: at least 0.
        batch_size: samples per gradient, with replacement; None: full gradients.
        seed: drives the split, the partition and the units.
        dtype: "float32" or "float64" (needs x64).
        initial: "zeros".
    """
    from decentral.optical.features import OpticalRandomFeatures

    check_choice("problem.data", data, DATA)
    check_choice("problem.units", units, UNITS)
    check_choice("problem.encoder", encoder, ("thermometer", "threshold"))
    check_choice("problem.initial", initial, ("zeros",))
    l2, real = check_number("problem.l2", l2, 0, np.inf), check_dtype(dtype)
    found = DATA[data](test_fraction=test_fraction, seed=seed)
    x, tests = (
        part.reshape(len(part), math.prod(part.shape[1:]))
        for part in (found.train_features, found.test_features)
    )
    parts = deal(found.train_labels, n, partition, random_generator(seed, "partition"), alpha)
    unit = OpticalRandomFeatures(components, encoder=encoder, levels=levels, random_state=seed).fit(x)
    devices = range(n if units == "private" else 1)

    def project(device: int, numbers: np.ndarray) -> np.ndarray:
        return _with_one(unit.set_params(device_id=device).transform(numbers)).astype(real)

    shards = [
        {"features": project(i % len(devices), x[part]), "target": found.train_labels[part]}
        for i, part in enumerate(parts)
    ]
    held_out = None
    if len(tests):
        by_unit = np.stack([project(device, tests) for device in devices], axis=1)
        held_out = {"features": by_unit, "target": found.test_labels}
    problem = from_loss(
        partial(_squared_residual, classes=found.classes, l2=l2),
        np.zeros((components + 1, found.classes), real),
        shards,
        batch_size=batch_size,
        held_out=held_out,
        accuracy=_share_right,
        name=f"random_features, {units}",
    )

    def constants() -> tuple[float, float]:
        features, counts = (
            np.asarray(problem.shards["samples"]["features"]),
            np.asarray(problem.shards["count"]),
        )
        smallest, largest = gram_eigenvalues(a[:m] for a, m in zip(features, counts, strict=True))
        return 2 * (smallest + l2), 2 * (largest + l2)

    return dataclasses.replace(problem, constants=constants, convex=True)


PROBLEMS = {"random_features": random_features}
"""The problems of this room, for specs."""


def _squared_residual(params: PyTree, sample: PyTree, classes: int, l2: float) -> jax.Array:
    """|W^T phi - t|^2 + l2 |W|^2; the mean over units where ``features`` has several, ``(units, m + 1)``."""
    scores = sample["features"] @ params
    targets = jnp.where(jnp.arange(classes, dtype=jnp.int32) == sample["target"], 1.0, -1.0).astype(
        scores.dtype
    )
    return jnp.mean(jnp.sum(jnp.square(scores - targets), axis=-1)) + l2 * jnp.vdot(params, params)


def _share_right(params: PyTree, sample: PyTree) -> jax.Array:
    """Share of the units with which the highest score is the target's."""
    scores = sample["features"] @ params
    best = jax.lax.argmax(scores, scores.ndim - 1, jnp.int32)
    return jnp.mean((best == sample["target"]).astype(scores.dtype))


def _targets(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.where(np.asarray(labels)[:, None] == np.arange(classes), 1.0, -1.0)


def _with_one(features: np.ndarray) -> np.ndarray:
    return np.concatenate([features, np.ones((len(features), 1), features.dtype)], axis=1)
