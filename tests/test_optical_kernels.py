"""Closed-form kernels of optical features against draws, and exact kernel ridge against scikit-learn's primal form."""

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV

from decentral import InvalidInput
from decentral.optical import kernels

DRAWS = 400_000


def circular(rng, *shape):
    """Complex Gaussian entries with E|h|^2 = 1."""
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)


@pytest.mark.parametrize("cosine", [0.0, 0.25**0.5, 0.5**0.5, 0.75**0.5, 1.0])
def test_mean_and_variance_of_an_intensity_feature(cosine):
    """1 + c and 3 + 14 c + 3 c^2, times the squared lengths. Seed 0; 3 % is 2 deviations of the variance at c = 1, more below."""
    x, y = np.array([[1.5, 0.0]]), 0.7 * np.array([[cosine, np.sqrt(1 - cosine**2)]])
    rows = circular(np.random.default_rng(0), DRAWS, 2)
    product = np.abs(rows @ x[0]) ** 2 * np.abs(rows @ y[0]) ** 2
    assert product.mean() == pytest.approx(kernels.optical_kernel(x, y).item(), rel=0.03)
    assert product.var() == pytest.approx(kernels.feature_variance(x, y).item(), rel=0.03)
    c, scale = cosine**2, (1.5 * 0.7) ** 4
    assert kernels.feature_variance(x, y).item() == pytest.approx((3 + 14 * c + 3 * c**2) * scale)
    deviation = np.sqrt(3 + 14 * c + 3 * c**2) / (1 + c)
    assert kernels.relative_deviation(cosine, 100).item() == pytest.approx(deviation / 10)


def test_powers_and_bias_against_draws():
    """|h.x|^4 with two mirrors always on; and degree two by its published coefficients, 4 (1 + 4 c + c^2)."""
    rng = np.random.default_rng(1)
    x, y = np.array([[1.0, 0, 1, 1]]), np.array([[0.0, 1, 1, 1]])
    rows = circular(rng, DRAWS, 6)
    light = [np.abs(rows @ np.r_[v[0], 1, 1]) ** 2 for v in (x, y)]
    for power in (1, 2):
        expected = kernels.optical_kernel(x, y, power=power, bias=2).item()
        assert np.mean((light[0] * light[1]) ** power) == pytest.approx(expected, rel=0.03)
    c = (2 / 3) ** 2
    assert kernels.optical_kernel(x, y, power=2).item() == pytest.approx(4 * (1 + 4 * c + c**2) * 3**4)


def test_decoded_planes_have_their_own_kernel():
    """Against draws; and it is not the kernel of the number that the planes stand for."""
    rng = np.random.default_rng(2)
    weights = 0.5 ** np.arange(1, 4)
    x, y = (rng.integers(0, 2, (1, 3, 10)) for _ in range(2))
    rows = circular(rng, DRAWS, 10)
    read = [(np.abs(rows @ v[0].T) ** 2) @ weights for v in (x, y)]
    expected = kernels.decoded_planes_kernel(x, y, weights).item()
    assert np.mean(read[0] * read[1]) == pytest.approx(expected, rel=0.03)
    number = kernels.optical_kernel(*(np.einsum("p,apn->an", weights, v) for v in (x, y))).item()
    assert abs(expected / number - 1) > 0.1


def test_kernel_ridge_is_the_dual_of_ridge_on_the_features():
    """The same predictions as scikit-learn's RidgeClassifier, with and without an intercept, for words as labels."""
    rng = np.random.default_rng(3)
    train, test = rng.standard_normal((60, 9)) + 1.0, rng.standard_normal((200, 9)) + 1.0
    labels = np.array(["a", "b", "c"])[np.argmax(train[:, :3], axis=1)]
    for intercept in (True, False):
        expected = RidgeClassifier(alpha=0.3, fit_intercept=intercept).fit(train, labels).predict(test)
        found = kernels.kernel_ridge(train @ train.T, labels, test @ train.T, alpha=0.3, intercept=intercept)
        np.testing.assert_array_equal(found, expected)


def test_the_penalty_is_chosen_as_scikit_learn_chooses_it():
    """Least leave-one-out residuals: for noisy labels a large alpha, for labels that follow from the features a small one."""
    rng, alphas, chosen = np.random.default_rng(4), [0.01, 1.0, 100.0], set()
    for noise in (0.0, 5.0):
        train, test = rng.standard_normal((80, 20)), rng.standard_normal((300, 20))
        labels = train[:, 0] + noise * rng.standard_normal(80) > 0
        for intercept in (True, False):
            reference = RidgeClassifierCV(alphas, fit_intercept=intercept).fit(train, labels)
            found = kernels.kernel_ridge(
                train @ train.T, labels, test @ train.T, alpha=alphas, intercept=intercept
            )
            np.testing.assert_array_equal(found, reference.predict(test))
            chosen.add(float(reference.alpha_))
    assert len(chosen) > 1


def test_arguments_are_checked():
    x = np.ones((3, 2))
    with pytest.raises(InvalidInput, match="shapes"):
        kernels.optical_kernel(x, np.ones((3, 4)))
    with pytest.raises(InvalidInput, match="power"):
        kernels.optical_kernel(x, power=0)
    with pytest.raises(InvalidInput, match="planes"):
        kernels.decoded_planes_kernel(np.ones((1, 2, 3)), np.ones((1, 3, 3)), np.ones(2))
    with pytest.raises(InvalidInput, match="two classes"):
        kernels.kernel_ridge(np.eye(3), [1, 1, 1], np.eye(3), alpha=1)
    with pytest.raises(InvalidInput, match="regular"):
        kernels.kernel_ridge(-np.eye(3), [1, 2, 1], np.eye(3), alpha=0.1, intercept=False)
