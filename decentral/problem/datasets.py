"""Small real data sets that scikit-learn carries (nothing is downloaded), dealt out to workers."""

from __future__ import annotations

import numpy as np

from decentral.problem import data as sets
from decentral.problem.checks import random_generator, scikit_datasets
from decentral.problem.finite_sum import FiniteSum
from decentral.problem.linear import logistic_from_arrays, softmax_from_arrays
from decentral.problem.partition import partition as deal


def breast_cancer(
    n: int,
    *,
    partition: str = "iid",
    alpha: float = 1.0,
    test_fraction: float = 0.2,
    l2: float = 0.01,
    batch_size: int | None = None,
    seed: int = 0,
    dtype: str = "float64",
    initial: str | np.ndarray = "zeros",
) -> FiniteSum:
    """l2-logistic regression on the Wisconsin breast cancer data: 569 samples, 30 features and an intercept (d = 31).

    Features are standardised with the training set's mean and deviation; the intercept is regularised like the rest,
    so that mu = l2. Labels: -1 malignant, 1 benign. Data: Street, Wolberg and Mangasarian 1993, UCI, CC BY 4.0.

    Args:
        n: workers.
        partition: "iid", "label" or "dirichlet", see ``decentral.problem.partition``.
        alpha: of "dirichlet".
        test_fraction: share of samples held out, at least 0 and below 1.
        l2: at least 0.
        batch_size: samples per gradient, with replacement; None: full gradients.
        seed: drives the split and the partition.
        dtype: "float32" or "float64" (needs x64).
        initial: "zeros", "common", "per_worker" or an array (31,).
    """
    data = scikit_datasets().load_breast_cancer()
    train, test = sets.split(len(data.target), test_fraction, seed)
    mean, deviation = data.data[train].mean(axis=0), data.data[train].std(axis=0)
    features = _with_intercept((data.data - mean) / deviation)
    labels = 2 * data.target - 1
    parts = [train[part] for part in _deal(labels[train], n, partition, alpha, seed)]
    return logistic_from_arrays(
        [features[part] for part in parts],
        [labels[part] for part in parts],
        l2=l2,
        batch_size=batch_size,
        held_out=(features[test], labels[test]) if len(test) else None,
        dtype=dtype,
        initial=initial,
        name="breast_cancer",
    )


def digits(
    n: int,
    *,
    partition: str = "iid",
    alpha: float = 1.0,
    test_fraction: float = 0.2,
    l2: float = 1e-3,
    batch_size: int | None = None,
    seed: int = 0,
    dtype: str = "float64",
    initial: str | np.ndarray = "zeros",
) -> FiniteSum:
    """Softmax regression on 1,797 handwritten digits of 8 x 8 pixels: 64 pixels and an intercept, 10 classes.

    Standardised as in ``decentral.problem.data``. Data: Alpaydin and Kaynak 1998, UCI, CC BY 4.0.

    Args:
        n: workers.
        partition: "iid", "label" or "dirichlet", see ``decentral.problem.partition``.
        alpha: of "dirichlet".
        test_fraction: share of samples held out, at least 0 and below 1.
        l2: at least 0.
        batch_size: samples per gradient, with replacement; None: full gradients.
        seed: drives the split and the partition.
        dtype: "float32" or "float64" (needs x64).
        initial: "zeros", "common", "per_worker" or an array (65, 10).
    """
    data = sets.digits(test_fraction=test_fraction, seed=seed)
    features, test = (
        _with_intercept(part.reshape(-1, 64)) for part in (data.train_features, data.test_features)
    )
    parts = _deal(data.train_labels, n, partition, alpha, seed)
    return softmax_from_arrays(
        [features[part] for part in parts],
        [data.train_labels[part] for part in parts],
        classes=data.classes,
        l2=l2,
        batch_size=batch_size,
        held_out=(test, data.test_labels) if len(test) else None,
        dtype=dtype,
        initial=initial,
        name="digits",
    )


def _deal(labels: np.ndarray, n: int, kind: str, alpha: float, seed: int) -> list[np.ndarray]:
    return deal(labels, n, kind, random_generator(seed, "partition"), alpha)


def _with_intercept(features: np.ndarray) -> np.ndarray:
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)
