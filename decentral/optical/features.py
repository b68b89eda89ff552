"""Optical random features for scikit-learn, and the digital features that they have to be compared with.

Both turn numbers into features whose inner products approximate a kernel, on which a linear model is then fitted. The optical
ones cost a frame each vector, whatever their number; what they give up is named by the kernel (degree two in the bits), by the
code of the inputs (bits), and by the camera. A comparison says something at equal features *and* equal input bits: Fourier
features of the floats have both better inputs and another kernel.

This module alone of the package imports scikit-learn at its top: it defines estimators.
"""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import pdist
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.kernel_approximation import RBFSampler
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from decentral.errors import InvalidInput, check_integer, check_number, suggest
from decentral.optical.camera import Camera
from decentral.optical.encoders import Encoder, Thermometer, Threshold
from decentral.optical.unit import OpticalUnit

CODES = ("threshold", "thermometer", "binary")
ROUNDED_TO = 256
"""Vectors are sent in multiples of so many, so that the parts of a cross-validation share a compiled program."""
PAIRS_OF = 1000
"""Samples whose distances a bandwidth is the median of."""


def fitted_encoder(encoder: Any, x: np.ndarray, levels: int) -> Encoder:
    """A binary code for ``(samples, n)``: the encoder given, or one by its name.

    Args:
        encoder: an encoder of ``decentral.optical.encoders``, "threshold" (a bit for each number: above its median),
            "thermometer" (levels - 1 bits) or "binary" (inputs are zeros and ones already).
        x: what thresholds are fitted to.
        levels: of the thermometer.

    Raises:
        InvalidInput: no such code, or inputs that were said to be binary and are not.
    """
    if isinstance(encoder, Encoder):
        return encoder
    if encoder == "threshold":
        return Threshold.fit(x)
    if encoder == "thermometer":
        return Thermometer.fit(x, levels)
    if encoder != "binary":
        allowed = f"an encoder, or one of {', '.join(CODES)}"
        raise InvalidInput("encoder", encoder, allowed, suggest(str(encoder), CODES))
    return Threshold(0.5)


class OpticalRandomFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Features |H b(x)|^2 / (e sqrt(m)) of a simulated optical unit: b a binary code, H complex Gaussian, read by a camera.

    e is the mean number of mirrors that the training samples set, so that inner products approximate k(x, y) / e^2 with
    k = |b|^2 |c|^2 + (b.c)^2, of about 1 to 2, for any m: a ridge's alpha keeps its meaning. Of a code of several planes the
    intensities are added up by weight: a feature map with a kernel of its own (``kernels.decoded_planes_kernel``).

    The matrix belongs to a device. Two transformers with the same ``random_state`` and ``device_id`` are the same device,
    and fewer components are the first of more; another ``device_id`` is another device, whose features are worthless to a
    model that was fitted on the first's. No optical unit was used, and none was measured by us.

    Noise of the camera is drawn anew for every batch of vectors, as a function of the device and of the batch: reading the
    same array twice gives the same numbers, which scikit-learn expects of ``transform`` and a real unit does not do.

    Args:
        n_components: m, features; pixels of the camera.
        encoder: "threshold", "thermometer", "binary", or an encoder of ``decentral.optical.encoders``.
        levels: of the thermometer: levels - 1 bits for each number.
        camera: a ``decentral.optical.camera.Camera``; None: 8 bits, full scale at five mean intensities, without noise.
        device_id: which unit.
        random_state: the laboratory that units stand in; an int, for results that can be repeated.
        hardware: name of the unit that sizes, rates and powers are of.
        rival: name of the GPU that ``cost_`` compares with.
        batch_size: vectors that are projected at a time: bounds memory to this many rows of features, beside the result.

    Attributes:
        n_features_in_: numbers of a sample.
        encoder_: the code, fitted.
        exposure_: e, mirrors.
        n_samples_fit_: samples that ``fit`` saw, the batch of ``cost_``.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> from sklearn.linear_model import RidgeClassifier
        >>> from sklearn.pipeline import make_pipeline
        >>> x, y = load_digits(return_X_y=True)
        >>> model = make_pipeline(OpticalRandomFeatures(1024, encoder="thermometer"), RidgeClassifier(alpha=0.1))
        >>> bool(model.fit(x[:1200], y[:1200]).score(x[1200:], y[1200:]) > 0.93)
        True
    """

    def __init__(
        self,
        n_components: int = 1024,
        *,
        encoder: Any = "threshold",
        levels: int = 5,
        camera: Camera | None = None,
        device_id: int = 0,
        random_state: Any = 0,
        hardware: str = "LightOn OPU Gen-2",
        rival: str = "A100-SXM4-80GB",
        batch_size: int = 2048,
    ) -> None:
        self.n_components = n_components
        self.encoder = encoder
        self.levels = levels
        self.camera = camera
        self.device_id = device_id
        self.random_state = random_state
        self.hardware = hardware
        self.rival = rival
        self.batch_size = batch_size

    def fit(self, X: Any, y: Any = None) -> OpticalRandomFeatures:
        """Thresholds and exposure from ``(samples, n)``; the matrix is the device's and needs no fit.

        Raises:
            InvalidInput: an argument that cannot be, or more bits or features than the hardware has mirrors and pixels.
        """
        X = validate_data(self, X, dtype=np.float32)
        check_integer("n_components", self.n_components, 1)
        check_integer("batch_size", self.batch_size, 1)
        self.encoder_ = fitted_encoder(self.encoder, X, self.levels)
        self.n_samples_fit_ = len(X)
        self._n_features_out = int(self.n_components)
        self.seed_ = (
            int(self.random_state)
            if isinstance(self.random_state, int | np.integer)
            else int(check_random_state(self.random_state).randint(2**31))
        )
        on = [self._encode(part).sum(axis=-1).mean() for part in _parts(X, self.batch_size)]
        sizes = [len(part) for part in _parts(X, self.batch_size)]
        self.exposure_ = max(float(np.average(on, weights=sizes)), 1.0)
        _ = self.unit_  # whose checks are those of sizes and camera
        return self

    def transform(self, X: Any) -> np.ndarray:
        """``(samples, n)`` numbers -> ``(samples, m)`` float32 features."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, reset=False)
        unit, scale = self.unit_, 1 / (self.exposure_ * np.sqrt(self.n_components))
        weights = np.asarray(self.encoder_.weights if self.encoder_.is_linear else [1.0], np.float32)
        features = np.empty((len(X), self.n_components), np.float32)
        at = 0
        for part in _parts(X, self.batch_size):
            bits = self._encode(part)
            noise = jax.random.fold_in(
                jax.random.fold_in(unit.key, self.device_id), zlib.crc32(bits.tobytes())
            )
            more = -len(bits) % min(ROUNDED_TO, self.batch_size)
            read = unit.intensity(
                np.pad(bits, ((0, more), (0, 0), (0, 0))), noise if unit.camera.is_noisy else None
            )
            values = np.asarray(read)[: len(bits)]
            rows = features[at : at + len(bits)]
            np.multiply(
                values[:, 0] if len(weights) == 1 else np.einsum("p,apm->am", weights, values),
                scale,
                out=rows,
            )
            at += len(bits)
        return features

    @property
    def unit_(self) -> OpticalUnit:
        """The simulated device."""
        return OpticalUnit(
            self.device_id,
            self.seed_,
            self.encoder_.bits(self.n_features_in_),
            int(self.n_components),
            camera=Camera() if self.camera is None else self.camera,
            hardware=self.hardware,
            exposure=self.exposure_,
        )

    @property
    def cost_(self) -> str:
        """What projecting the samples of ``fit`` would take: on the hardware, and on a GPU by a dense product and by a transform.

        Computed (``decentral.cost.optical``), not measured; without the encoding, and without what is fitted afterwards.
        """
        check_is_fitted(self)
        return self.unit_.verdict(self.n_samples_fit_, rival=self.rival, bits=self.encoder_.planes)

    def _encode(self, x: np.ndarray) -> np.ndarray:
        """Bool ``(samples, planes, bits)``."""
        if isinstance(self.encoder, str) and self.encoder == "binary" and not np.isin(x, (0, 1)).all():
            wrong = x[~np.isin(x, (0, 1))][0]
            raise InvalidInput("X", f"samples with {wrong:g}", "zeros and ones, with encoder='binary'")
        return np.asarray(self.encoder_.encode(jnp.asarray(x)), bool)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # features are float32, whatever comes
        return tags


class FourierFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Random Fourier features of a Gaussian kernel, of numbers or of the bits an optical unit would get: the control.

    Args:
        n_components: features.
        encoder: None: the numbers as they are; else as of :class:`OpticalRandomFeatures`, and features are of its bits.
        levels: of the thermometer.
        gamma: of exp(-gamma |x - y|^2); None: one over the median squared distance of training samples.
        random_state: of the draw.

    Attributes:
        n_features_in_: numbers of a sample.
        encoder_: the code, fitted; None where numbers are taken as they are.
        gamma_: that is used.
        sampler_: scikit-learn's ``RBFSampler``, fitted.
    """

    def __init__(
        self,
        n_components: int = 1024,
        *,
        encoder: Any = None,
        levels: int = 5,
        gamma: float | None = None,
        random_state: Any = 0,
    ) -> None:
        self.n_components = n_components
        self.encoder = encoder
        self.levels = levels
        self.gamma = gamma
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> FourierFeatures:
        """Thresholds, bandwidth and frequencies."""
        X = validate_data(self, X, dtype=np.float64)
        check_integer("n_components", self.n_components, 1)
        self.encoder_ = None if self.encoder is None else fitted_encoder(self.encoder, X, self.levels)
        values = self._encode(X)
        if self.gamma is None:
            distances = pdist(values[:: max(len(values) // PAIRS_OF, 1)], "sqeuclidean")
            self.gamma_ = (
                1 / (float(np.median(distances)) if len(distances) else 1.0) if np.any(distances) else 1.0
            )
        else:
            self.gamma_ = check_number("gamma", self.gamma, 0, np.inf, above=True)
        sampler = RBFSampler(
            gamma=self.gamma_, n_components=self.n_components, random_state=self.random_state
        )
        self.sampler_ = sampler.fit(values)
        self._n_features_out = int(self.n_components)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """``(samples, n)`` numbers -> ``(samples, m)`` float64 features."""
        check_is_fitted(self)
        return self.sampler_.transform(self._encode(validate_data(self, X, dtype=np.float64, reset=False)))

    def _encode(self, x: np.ndarray) -> np.ndarray:
        if self.encoder_ is None:
            return x
        return np.asarray(self.encoder_.encode(jnp.asarray(x)), np.float64).reshape(len(x), -1)


def _parts(x: np.ndarray, size: int) -> list[np.ndarray]:
    return [x[first : first + size] for first in range(0, len(x), size)]
