"""Optical random features as a scikit-learn transformer: its contract, its kernel, and what a ridge learns from them."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from decentral import InvalidInput
from decentral.optical import kernels
from decentral.optical.camera import IDEAL, Camera
from decentral.optical.encoders import BitPlanes, Thermometer
from decentral.optical.features import FourierFeatures, OpticalRandomFeatures

X, LABELS = load_digits(return_X_y=True)


@parametrize_with_checks([OpticalRandomFeatures(7), FourierFeatures(7)])
def test_contract_of_scikit_learn(estimator, check):
    check(estimator)


def split(seed=0):
    return train_test_split(X, LABELS, test_size=0.3, random_state=seed, stratify=LABELS)


def relative_error(features, kernel):
    return np.linalg.norm(features @ features.T - kernel) / np.linalg.norm(kernel)


def test_features_converge_to_the_kernel_as_one_over_the_root():
    """Squared Frobenius error on 150 digits: the summed variance over m, from blocks of one device's rows. 8 % at m = 4,096."""
    some, rows = X[:150], 16_384
    model = OpticalRandomFeatures(rows, encoder="thermometer", camera=IDEAL).fit(some)
    bits = np.asarray(model.encoder_.encode(some), float)[:, 0]
    kernel = kernels.optical_kernel(bits) / model.exposure_**2
    variance = kernels.feature_variance(bits).sum() / model.exposure_**4 / np.sum(kernel**2)
    features, sizes, errors = model.transform(some), np.array([64, 512, 4096]), []
    for m in sizes:
        blocks = np.split(features * np.sqrt(rows / m), rows // m, axis=1)
        errors.append(np.mean([relative_error(block, kernel) ** 2 for block in blocks]))
    assert 1.7**2 < variance < 2.5**2
    assert np.polyfit(np.log(sizes), np.log(errors), 1)[0] == pytest.approx(-1, abs=0.2)
    assert errors[0] * sizes[0] == pytest.approx(variance, rel=0.15)


def test_a_camera_of_eight_bits_hardly_changes_the_kernel():
    """Full scale where 0.1 % of the pixels saturate (ln 1000 means): less than a tenth more error."""
    some = X[:200]
    ideal = OpticalRandomFeatures(1024, encoder="thermometer", camera=IDEAL).fit(some)
    kernel = kernels.optical_kernel(np.asarray(ideal.encoder_.encode(some), float)[:, 0]) / ideal.exposure_**2
    camera = Camera(bits=8, full_scale=float(np.log(1000)))
    read = clone(ideal).set_params(camera=camera).fit_transform(some)
    exact, seen = relative_error(ideal.transform(some), kernel), relative_error(read, kernel)
    assert seen == pytest.approx(exact, rel=0.1)
    assert not np.allclose(read, ideal.transform(some), rtol=1e-3), "the camera does round"


def test_decoded_planes_are_the_features_of_their_own_kernel():
    some = X[:60]
    model = OpticalRandomFeatures(
        4096, encoder=BitPlanes(3, scale=16.0, negative_scale=0.0), camera=IDEAL
    ).fit(some)
    planes = np.asarray(model.encoder_.encode(some))
    kernel = kernels.decoded_planes_kernel(planes, planes, model.encoder_.weights) / model.exposure_**2
    assert relative_error(model.transform(some), kernel) < 0.06
    number = kernels.optical_kernel(planes.transpose(0, 2, 1) @ model.encoder_.weights) / model.exposure_**2
    assert relative_error(model.transform(some), number) > 0.1


def test_what_stands_for_a_device():
    """Same device: nested features, whatever the batch. Another device or laboratory: others. float32 like the camera's."""
    some = X[:100]
    model = OpticalRandomFeatures(40, encoder="thermometer").fit(some)
    features = model.transform(some)
    assert features.dtype == np.float32
    more = clone(model).set_params(n_components=90, batch_size=64).fit_transform(some)
    np.testing.assert_allclose(more[:, :40] * np.sqrt(90 / 40), features, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.transform(some[5:9]), features[5:9], rtol=1e-5, atol=1e-5)
    for other in ({"device_id": 1}, {"random_state": 1}):
        assert (
            abs(np.corrcoef(clone(model).set_params(**other).fit_transform(some)[0], features[0])[0, 1]) < 0.6
        )
    assert model.exposure_ == pytest.approx(np.asarray(model.encoder_.encode(some)).sum(-1).mean())
    assert model.get_feature_names_out()[-1] == "opticalrandomfeatures39"


def test_noise_repeats_for_the_same_frames_and_not_for_others():
    some = X[:20]
    noisy = OpticalRandomFeatures(300, camera=Camera(read_noise=0.1)).fit(some)
    silent = clone(noisy).set_params(camera=Camera()).fit(some)
    np.testing.assert_array_equal(noisy.transform(some), noisy.transform(some))
    first, second = (noisy.transform(part)[0] - silent.transform(part)[0] for part in (some, some[:7]))
    assert first.std() > 0
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.2


def test_in_pipelines_and_searches():
    train, test, labels, expected = split()
    model = make_pipeline(OpticalRandomFeatures(64), RidgeClassifier())
    grid = {
        "opticalrandomfeatures__encoder": ["threshold", "thermometer"],
        "ridgeclassifier__alpha": [0.01, 0.1],
    }
    search = GridSearchCV(model, grid, cv=2).fit(train, labels)
    assert search.best_params_["opticalrandomfeatures__encoder"] == "thermometer"
    assert search.score(test, expected) > 0.85


def test_ridge_on_digits():
    """1,024 features of four bits for each pixel: above the pixels by 2 points, and within 2 points of the exact kernel."""
    found = {"raw": [], "optical": [], "exact": []}
    for seed in range(2):
        train, test, labels, expected = split(seed)
        model = OpticalRandomFeatures(1024, encoder="thermometer").fit(train)
        ridge = RidgeClassifier(alpha=0.1).fit(model.transform(train), labels)
        found["optical"].append(ridge.score(model.transform(test), expected))
        found["raw"].append(RidgeClassifier(alpha=0.1).fit(train / 16, labels).score(test / 16, expected))
        codes = [np.asarray(model.encoder_.encode(part), float)[:, 0] for part in (train, test)]
        kernel, across = (kernels.optical_kernel(part, codes[0]) / model.exposure_**2 for part in codes)
        found["exact"].append(np.mean(kernels.kernel_ridge(kernel, labels, across, alpha=0.1) == expected))
    mean = {name: np.mean(values) for name, values in found.items()}
    assert mean["optical"] > mean["raw"] + 0.02
    assert abs(mean["optical"] - mean["exact"]) < 0.02


def test_cost_names_what_it_depends_on():
    model = OpticalRandomFeatures(2000, encoder=Thermometer((4.0, 8.0)), hardware="LightOn OPU Gen-3").fit(X)
    for words in (
        "Gen-3",
        "batch 1,797",
        "128 -> 2,000",
        "intensity mode",
        "complex rows",
        "A100",
        "Walsh-Hadamard",
        "Energy",
    ):
        assert words in model.cost_


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"encoder": "thermo"}, "encoder.*thermometer"),
        ({"encoder": "binary"}, "zeros and ones"),
        ({"n_components": 0}, "n_components"),
        ({"n_components": 3_000_000}, "at most"),
        ({"batch_size": 0}, "batch_size"),
        ({"camera": "ideal"}, "camera"),
        ({"hardware": "LightOn OPU Gen-9"}, "optical_unit"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(InvalidInput, match=words):
        OpticalRandomFeatures(**{"n_components": 3, **arguments}).fit(X[:10])
