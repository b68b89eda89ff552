"""What optical random features converge to, in closed form: the kernels of |h.x|^2s, their variance, and exact kernel ridge.

All for rows h of independent circular complex Gaussian entries with E|h_i|^2 = 1, real inputs, in NumPy's float64. A random
feature map of m rows approximates its kernel by a mean over rows, so it errs by its variance / m: the features can come close
to exact kernel ridge regression, and not beyond what the kernel can do. (A real h would double the term (x.y)^2.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from decentral.errors import InvalidInput
from decentral.problem.checks import check_int, check_number


def optical_kernel(
    x: ArrayLike, y: ArrayLike | None = None, *, power: int = 1, bias: float = 0.0
) -> np.ndarray:
    r"""k(x, y) = E[|h.x|^{2s} |h.y|^{2s}], exact; s = 1 is a camera's intensity: |x|^2 |y|^2 + (x.y)^2.

    For any s it is sum_i (s!)^2 C(s,i)^2 (x.y)^{2i} (|x|^2 |y|^2)^{s-i} (Ohana et al., "Kernel computations from large-scale
    random features obtained by optical processing units", ICASSP 2020; tested against draws).

    Args:
        x: ``(a, n)``.
        y: ``(b, n)``; None: x.
        power: s, what the intensity is raised to.
        bias: mirrors beside the input that are always on: b is added to |x|^2, |y|^2 and x.y.

    Returns:
        ``(a, b)``.
    """
    inner, square_x, square_y = _products(x, y, bias)
    return _moment(inner**2, square_x[:, None] * square_y, check_int("power", power))


def feature_variance(
    x: ArrayLike, y: ArrayLike | None = None, *, power: int = 1, bias: float = 0.0
) -> np.ndarray:
    """Variance of one row's |h.x|^2s |h.y|^2s around the kernel, ``(a, b)``; arguments as of :func:`optical_kernel`.

    For s = 1 it is (3 + 14 c + 3 c^2) |x|^4 |y|^4 with c the squared cosine (derived: the kernel of 2 s minus the square).
    """
    inner, square_x, square_y = _products(x, y, bias)
    power, squares = check_int("power", power), square_x[:, None] * square_y
    return _moment(inner**2, squares, 2 * power) - _moment(inner**2, squares, power) ** 2


def relative_deviation(cosine: ArrayLike, components: ArrayLike, *, power: int = 1) -> np.ndarray:
    """Standard deviation of a kernel entry from m features, relative to the entry.

    1.73 / sqrt(m) for orthogonal inputs and 2.24 / sqrt(m) for equal ones at s = 1 (derived).

    Args:
        cosine: of the angle between the inputs.
        components: m, features.
        power: s, what the intensity is raised to.
    """
    square, power = np.square(np.asarray(cosine, float)), check_int("power", power)
    mean = _moment(square, np.ones_like(square), power)
    variance = _moment(square, np.ones_like(square), 2 * power) - mean**2
    return np.sqrt(variance / np.asarray(components, float)) / mean


def decoded_planes_kernel(x: ArrayLike, y: ArrayLike, weights: ArrayLike, *, bias: float = 0.0) -> np.ndarray:
    """Kernel of intensities of bit planes added up by weight: sum_ij w_i w_j k(b_i, c_j).

    The camera's square comes before the sum, so sum_i w_i |H b_i|^2 is not |H x|^2 of x = sum_i w_i b_i: a feature map like
    others, and no projection of x.

    Args:
        x: ``(a, planes, n)`` bits.
        y: ``(b, planes, n)`` bits.
        weights: ``(planes,)``.
        bias: mirrors that are always on, in every frame.

    Returns:
        ``(a, b)``.
    """
    x, y, weights = np.asarray(x), np.asarray(y), np.asarray(weights, float)
    if x.ndim != 3 or y.ndim != 3 or x.shape[1:] != y.shape[1:] or weights.shape != x.shape[1:2]:
        shapes = x.shape, y.shape, weights.shape
        raise InvalidInput("x, y, weights", shapes, "shapes (a, planes, n), (b, planes, n) and (planes,)")
    total = np.zeros((len(x), len(y)))
    for i, first in enumerate(weights):
        for j, second in enumerate(weights):
            total += first * second * optical_kernel(x[:, i], y[:, j], bias=bias)
    return total


def kernel_ridge(
    kernel: ArrayLike,
    labels: ArrayLike,
    test_kernel: ArrayLike,
    *,
    alpha: float | Sequence[float],
    intercept: bool = True,
) -> np.ndarray:
    """Labels that exact kernel ridge regression predicts: what features with this kernel converge to.

    The dual of scikit-learn's ``RidgeClassifier``: targets are 1 for a sample's class and -1 for others, squared residuals
    plus alpha |W|^2 are minimised, the intercept is free, and the largest score wins. With ``kernel = F F^T`` it predicts
    what that class does from features F.

    Args:
        kernel: ``(samples, samples)`` of the training samples.
        labels: ``(samples,)``, any values that sort, at least two different ones.
        test_kernel: ``(tests, samples)``, of test samples with training samples.
        alpha: above 0; of several, the one of the least squared leave-one-out residuals of the training samples.
        intercept: whether one is fitted.

    Returns:
        ``(tests,)``.

    Raises:
        InvalidInput: shapes that do not fit, one class, or an alpha so small that the system is singular.
    """
    own, tests = np.asarray(kernel, float), np.asarray(test_kernel, float)
    samples = len(labels := np.asarray(labels))
    if own.shape != (samples, samples) or tests.shape[1:] != (samples,):
        allowed = f"shapes ({samples}, {samples}) and (tests, {samples})"
        raise InvalidInput("kernel, test_kernel", (own.shape, tests.shape), allowed)
    classes, of = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise InvalidInput("labels", classes.tolist(), "at least two classes")
    targets = np.where(of[:, None] == np.arange(len(classes)), 1.0, -1.0)
    level = targets.mean(axis=0) if intercept else np.zeros(len(classes))
    if intercept:  # features without their training mean
        rows, mean = own.mean(axis=0), own.mean()
        tests = tests - tests.mean(axis=1, keepdims=True) - rows + mean
        own = own - rows[:, None] - rows + mean
    alphas = [alpha] if isinstance(alpha, int | float) else list(alpha)
    fits = [_dual(own, targets - level, value, intercept, len(alphas) > 1) for value in alphas]
    dual, _ = min(fits, key=lambda fit: fit[1])
    return classes[np.argmax(tests @ dual + level, axis=1)]


def _dual(
    kernel: np.ndarray, targets: np.ndarray, alpha: float, intercept: bool, left_out: bool
) -> tuple[np.ndarray, float]:
    """(K + alpha I)^-1 T, and the squared residuals of each sample under the fit to all others (0 unless asked for).

    A residual under the own fit is alpha d, and 1 - its leverage is alpha (K + alpha I)^-1_ii, less 1 / samples for the mean.
    """
    from scipy.linalg import LinAlgError, cho_solve, cholesky
    from scipy.linalg.lapack import dtrtri

    alpha, samples = check_number("alpha", alpha, open_low=True), len(kernel)
    try:
        factor = cholesky(kernel + alpha * np.eye(samples))
    except LinAlgError:
        advice = f"The kernel's mean diagonal is {np.trace(kernel) / samples:.3g}: alpha has to be above its rounding."
        raise InvalidInput("alpha", alpha, "one that makes the system regular", advice) from None
    dual = np.asarray(cho_solve((factor, False), targets))
    if not left_out:
        return dual, 0.0
    inverse = dtrtri(factor)[0]  # of U in K + alpha I = U^T U
    free = alpha * np.einsum("ij,ij->i", inverse, inverse) - (1 / samples if intercept else 0.0)
    return dual, float(np.sum((alpha * dual / free[:, None]) ** 2))


def _products(x: ArrayLike, y: ArrayLike | None, bias: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x.y ``(a, b)``, |x|^2 ``(a,)`` and |y|^2 ``(b,)``, with the bias."""
    x = np.asarray(x, float)
    y = x if y is None else np.asarray(y, float)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise InvalidInput("x, y", (x.shape, y.shape), "shapes (a, n) and (b, n)")
    bias = check_number("bias", bias)
    return x @ y.T + bias, np.square(x).sum(1) + bias, np.square(y).sum(1) + bias


def _moment(inner_square: np.ndarray, squares: np.ndarray, power: int) -> np.ndarray:
    """E[|u|^2s |v|^2s] of jointly circular Gaussian u, v with |E u v*|^2 and E|u|^2 E|v|^2 given."""
    terms = (math.comb(power, i) ** 2 * inner_square**i * squares ** (power - i) for i in range(power + 1))
    return math.factorial(power) ** 2 * sum(terms, np.zeros_like(squares))
