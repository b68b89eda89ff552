"""Synthetic regression and classification, by the recipes of the DADAO paper's code."""

from __future__ import annotations

import numpy as np

from decentral.problem.checks import check_dtype, check_int, check_memory, random_generator, scikit_datasets
from decentral.problem.finite_sum import FiniteSum
from decentral.problem.linear import least_squares_from_arrays, logistic_from_arrays


def least_squares(
    n: int,
    *,
    samples_per_worker: int = 100,
    d: int = 2,
    batch_size: int | None = None,
    seed: int = 0,
    dtype: str = "float64",
    initial: str | np.ndarray = "per_worker",
) -> FiniteSum:
    """Least squares on an independent regression problem per worker.

    Recipe of DADAO's code (commit eed1ed1): scikit-learn's ``make_regression`` with noise
    10, targets scaled by one U(0.01, 5) draw per worker; f_i, mu and L as in ``least_squares_from_arrays``. Worker i's
    data depend on (seed, i, samples_per_worker, d) alone.

    Args:
        n: workers.
        samples_per_worker: m.
        d: features.
        batch_size: samples per gradient, with replacement; None: full gradients.
        seed: drives every draw.
        dtype: "float32" or "float64" (needs x64).
        initial: "per_worker", an N(0, I) draw for each as in DADAO's code; "common"; "zeros"; or an array (d,).
    """
    features, targets = _arrays(n, samples_per_worker, d, dtype)
    for worker in range(n):
        rng = _random_state(seed, "least squares", worker)
        features[worker], response = scikit_datasets().make_regression(
            samples_per_worker, d, noise=10, random_state=rng
        )
        targets[worker] = rng.uniform(0.01, 5) * response
    return least_squares_from_arrays(features, targets, batch_size=batch_size, dtype=dtype, initial=initial)


def logistic(
    n: int,
    *,
    samples_per_worker: int = 100,
    d: int = 2,
    l2: float = 1.0,
    batch_size: int | None = None,
    seed: int = 0,
    dtype: str = "float64",
    initial: str | np.ndarray = "per_worker",
) -> FiniteSum:
    """l2-logistic regression on an independent classification problem per worker.

    Recipe of DADAO's code: scikit-learn's ``make_classification`` with no redundant features, labels -1 and 1; f_i, mu
    and L as in ``logistic_from_arrays``. (With d = 1 scikit-learn needs one informative feature and one cluster per
    class instead of two.) Worker i's data depend on (seed, i, samples_per_worker, d) alone.

    Args:
        n: workers.
        samples_per_worker: m.
        d: features.
        l2: at least 0; the paper's code sets it to 1.
        batch_size: samples per gradient, with replacement; None: full gradients.
        seed: drives every draw.
        dtype: "float32" or "float64" (needs x64).
        initial: "per_worker", an N(0, I) draw for each as in DADAO's code; "common"; "zeros"; or an array (d,).
    """
    features, labels = _arrays(n, samples_per_worker, d, dtype)
    small = {"n_informative": 1, "n_clusters_per_class": 1} if d == 1 else {}
    for worker in range(n):
        rng = _random_state(seed, "logistic", worker)
        features[worker], classes = scikit_datasets().make_classification(
            samples_per_worker, d, n_redundant=0, random_state=rng, **small
        )
        labels[worker] = 2 * classes - 1
    return logistic_from_arrays(features, labels, l2=l2, batch_size=batch_size, dtype=dtype, initial=initial)


def _arrays(n: int, m: int, d: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    width = check_dtype(dtype).itemsize
    for name, value in (("n", n), ("samples_per_worker", m), ("d", d)):
        check_int(f"problem.{name}", value)
    check_memory("problem.n", n, 2 * n * m * (d + 1) * width, "Take fewer workers or samples, or float32.")
    return np.empty((n, m, d), dtype), np.empty((n, m), dtype)


def _random_state(seed: int, purpose: str, worker: int) -> np.random.RandomState:
    """The legacy generator that scikit-learn asks for."""
    return np.random.RandomState(random_generator(seed, purpose, worker).bit_generator)
