"""An optical processing unit: light from binary mirrors through a scatterer onto a camera. A simulated one: none was measured.

The field at pixel j is u_j = sum_i h_ji x_i, with h_ji independent circular complex Gaussians of E|h|^2 = 1 and x binary; the
camera sees |u_j|^2. H belongs to the device: nobody chooses it, and nobody knows it before it is calibrated. Linear outputs
take interference, and more frames.

Every entry of H is a pure function of (key, device, row, column) by the counter-based generator Threefry-2x32-20 (Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011, recalled; checked against JAX's), so that a projection needs no matrix
in memory, and the first m rows are the same whatever m is. Physics: Ohana et al., arXiv 1910.09880 (device and kernel) and
2305.12988 (anchors); derivations are marked where they are ours.
"""

from __future__ import annotations

import enum
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from decentral.cost.cluster import of_device
from decentral.cost.optical import RandomProjection, Rivals, frames_per_s, verdict
from decentral.errors import InvalidInput, check_choice, check_integer, check_number
from decentral.hardware import OpticalDevice, device, optical_unit
from decentral.optical.camera import Camera
from decentral.problem.pytrees import pytree, static

ROWS, COLUMNS = 1024, 1024
"""A tile of H: what is in memory at a time, beside inputs and outputs."""
LINEAR_MODES = ("anchor", "four_phase", "off_axis")
REFERENCE = 2.0
"""Amplitude of the reference beam, over the root mean square of the field that the exposure is set for."""
WEAK = 0.02
"""A pixel whose anchor is darker than this share of the mean says nothing in anchor mode (2 % of them: 1 - e^-0.02)."""
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


class Calibration(enum.Enum):
    """What is known of a unit's matrix."""

    UNKNOWN = "unknown"
    CALIBRATED = "calibrated"


class NotCalibrated(InvalidInput):
    """Something needs the matrix of a unit, which nobody knows."""


@pytree
class OpticalUnit:
    """A simulated optical unit with n mirrors and m pixels in use. All methods are pure, and can be jitted and vmapped.

    Arrays are pytree leaves, so that a stack of units is ``jax.vmap``-ed over ``device_id`` or ``key``.

    Args:
        device_id: which unit; two units have independent matrices.
        key: of the laboratory: a JAX key, or a seed.
        inputs: n, mirrors in use.
        outputs: m, outputs wanted.
        camera: what reads the intensities.
        hardware: name of the unit that it is a model of: sizes, rates and power (``decentral.hardware``).
        region: the first row of H in use: another region of interest of the camera is another matrix.
        exposure: mirrors that are on in a vector of mean intensity 1 camera mean; None: half of them.
        age: of the scatterer, in decorrelation times; H(age) has correlation exp(-age) with H(0). None: it does not drift.
        known: ``(m, n)`` complex64 rows as a calibration found them, each up to a phase and a conjugation; None: unknown.
        given: ``(m, n)`` complex rows to be used in the place of drawn ones, such as a measured transmission matrix.

    Raises:
        InvalidInput: more inputs than mirrors, more outputs than pixels, or a number that cannot be.
    """

    device_id: Any
    key: Any
    inputs: int = static()
    outputs: int = static()
    camera: Camera = static(default=Camera())
    hardware: str = static(default="LightOn OPU Gen-2")
    region: Any = 0
    exposure: Any = None
    age: Any = None
    known: Any = None
    given: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.camera, Camera):
            raise InvalidInput("camera", self.camera, "a decentral.optical.Camera")
        object.__setattr__(self, "hardware", self.device.name)
        check_integer("inputs", self.inputs, 1)
        check_integer("outputs", self.outputs, 1)
        object.__setattr__(self, "key", _as_key(self.key))
        _check_leaf("device_id", self.device_id, 0, 2**32 - 1, whole=True)
        _check_leaf("region", self.region, 0, 2**32 - 1, whole=True)
        for name, above in (("exposure", True), ("age", False)):
            if getattr(self, name) is not None:
                _check_leaf(name, getattr(self, name), 0, np.inf, above=above)
        if self.inputs > self.device.max_inputs:
            raise InvalidInput(
                "inputs", self.inputs, f"at most the {self.device.max_inputs:,} mirrors of {self.hardware}"
            )
        self._check_pixels(1)
        for name in ("given", "known"):
            rows = getattr(self, name)
            if rows is not None and np.shape(rows) != (self.outputs, self.inputs):
                raise InvalidInput(name, f"shape {np.shape(rows)}", f"shape {(self.outputs, self.inputs)}")

    def __repr__(self) -> str:
        return (
            f"OpticalUnit(simulated {self.hardware}, device {_shown(self.device_id)}, {self.inputs:,} mirrors -> "
            f"{self.outputs:,} outputs, {self.camera}, matrix {self.calibration.value})"
        )

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def device(self) -> OpticalDevice:
        """The hardware it is a model of."""
        return optical_unit(self.hardware)

    @property
    def calibration(self) -> Calibration:
        """What is known of its matrix."""
        return Calibration.UNKNOWN if self.known is None else Calibration.CALIBRATED

    def _check_pixels(self, per_output: int) -> None:
        seen = not isinstance(self.region, Tracer) and np.ndim(self.region) == 0
        first = int(self.region) if seen else 0
        needed, most = first + self.outputs * per_output, self.device.max_outputs
        if needed > most:
            what = f"{per_output} pixels for each output, " if per_output > 1 else ""
            advice = "Take fewer outputs, or several units."
            raise InvalidInput(
                "outputs", self.outputs, f"{what}at most {most:,} pixels from the region's first on", advice
            )

    # -- its matrix ----------------------------------------------------------------------------------------------------

    def rows(self, first: int = 0, count: int | None = None) -> jax.Array:
        """``(count, n)`` complex64: rows of H. The simulator knows them; who has a real unit has to calibrate."""
        count = self.outputs - first if count is None else count
        if self.given is not None:
            return jnp.asarray(self.given[first : first + count])
        columns = jnp.arange(self.inputs, dtype=jnp.uint32)
        re, im = self._entries(
            _counter(self.region, first) + jnp.arange(count, dtype=jnp.uint32)[:, None], columns
        )
        return jax.lax.complex(re, im)

    def _entries(self, row: jax.Array, column: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Real and imaginary parts at rows and columns that broadcast."""
        words = jax.random.key_data(jax.random.fold_in(self.key, self.device_id)).astype(jnp.uint32)
        re, im = normals(words, row, column)
        if self.age is None:
            return re, im
        # A stationary process: what is left of H, and an independent matrix for what is new.
        left = jnp.exp(-jnp.asarray(self.age, jnp.float32))
        new = jnp.sqrt(1 - left**2)
        other = normals(
            jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(words), 1)), row, column
        )
        return left * re + new * other[0], left * im + new * other[1]

    # -- light ---------------------------------------------------------------------------------------------------------

    def field(self, x: Any) -> jax.Array:
        """H x, which no camera sees: ``(..., n)`` binary -> ``(..., m)`` complex64.

        H is drawn tile after tile: memory is that of inputs, outputs and a tile.

        Raises:
            InvalidInput: x is not binary, or has another length.
        """
        re, im = self._field(self._mirrors(x))
        return jax.lax.complex(re, im)

    def _field(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        if self.given is not None:
            parts = jnp.real(self.given), jnp.imag(self.given)
            return tuple(_product(x, part.T.astype(x.dtype)) for part in parts)  # type: ignore[return-value]
        return _project(self, x, squared=False)  # type: ignore[return-value]

    def _mirrors(self, x: Any) -> jax.Array:
        """float32 of what was checked to be zeros and ones."""
        if not isinstance(x, Tracer):
            values = np.asarray(x)
            if values.dtype != bool and not ((values == 0) | (values == 1)).all():
                wrong = values[(values != 0) & (values != 1)].ravel()[0]
                raise InvalidInput(
                    "x", f"a vector with {wrong!s}", "zeros and ones: mirrors are on or off",
                    "Encode it first: decentral.optical.encoders.",
                )  # fmt: skip
        elif not (x.dtype == bool or jnp.issubdtype(x.dtype, jnp.integer)):
            raise InvalidInput(
                "x", f"{x.dtype} inside a compiled function", "bool or integer zeros and ones",
                "Encode it first: decentral.optical.encoders; whether a float is binary cannot be seen here.",
            )  # fmt: skip
        x = jnp.asarray(x)
        if x.ndim == 0 or x.shape[-1] != self.inputs:
            raise InvalidInput("x", f"shape {x.shape}", f"(..., {self.inputs}) mirrors")
        return (x != 0).astype(jnp.float32)

    @property
    def mean(self) -> Any:
        """The mean intensity that the exposure is set for: the mirrors that are on."""
        return self.inputs / 2 if self.exposure is None else self.exposure

    def exposed_for(self, x: Any) -> OpticalUnit:
        """This unit with the exposure for vectors like ``(samples, n)``: their mean number of mirrors that are on."""
        on = jnp.mean(jnp.sum(self._mirrors(x), axis=-1))
        return replace(self, exposure=jnp.maximum(on, 1.0))  # type: ignore[type-var]

    def intensity(self, x: Any, key: jax.Array | None = None) -> jax.Array:
        """What the camera reads of |H x|^2: ``(..., n)`` binary -> ``(..., m)`` float32; the mean over H is the popcount of x.

        Args:
            x: binary vectors, a frame each.
            key: of the camera's noise.

        Raises:
            InvalidInput: x is not binary; a noisy camera without a key.
        """
        return _seen(self, self._mirrors(x), key)

    def linear(
        self,
        x: Any,
        key: jax.Array | None = None,
        *,
        mode: str = "anchor",
        anchor: Any = None,
        complex_rows: bool = False,
    ) -> jax.Array:
        r"""Outputs that are linear in x: ``(..., n)`` binary -> ``(..., m)`` float32 (complex64 with ``complex_rows``).

        * ``anchor``: no reference beam. With a mask a whose mirrors include those of x,
          y = (|Ha|^2 + |Hx|^2 - |H(a - x)|^2) / 2|Ha| = Re(conj(Ha) Hx) / |Ha|. Its rows are *not* independent Gaussians of mean
          zero: 2 E[y^2] = |x|^2 + (x.a)^2 / |a|^2 (derived). Pixels whose anchor is darker than ``WEAK`` means, or saturated
          in a frame, give 0.
        * ``four_phase``: Re(Hx) = (I_0 - I_180) / 4r and Im(Hx) = (I_90 - I_270) / 4r, with a reference beam of amplitude r.
        * ``off_axis``: the same from four neighbouring pixels of one frame, among which the phase of the reference turns.

        The exposure is that of the brightest frame: the anchor's, or signal and reference together.

        Args:
            x: binary vectors.
            key: of the camera's noise; frames get different ones.
            mode: one of ``LINEAR_MODES``.
            anchor: ``(n,)`` binary mask of anchor mode; by default all mirrors.
            complex_rows: H x instead of its real part, where the mode gives it.

        Raises:
            InvalidInput: x not binary or outside the anchor, a mode that is not simulated, complex outputs in anchor mode, more
                pixels than there are, noise without a key.
        """
        check_choice("mode", mode, LINEAR_MODES)
        found = self.device.mode(mode)
        found.frames(complex_rows)
        self._check_pixels(found.pixels_per_output)
        x = self._mirrors(x)
        if mode == "anchor":
            return self._anchored(x, self._anchor(x, anchor), key)
        if anchor is not None:
            raise InvalidInput("anchor", "a mask", f"none in mode {mode!r}, which has a reference beam")
        re, im = self._field(x)
        r = REFERENCE * jnp.sqrt(jnp.asarray(self.mean, jnp.float32))
        bright = r**2 + self.mean

        def frame(phase: int) -> jax.Array:
            seen = {0: (r + re, im), 1: (re, r + im), 2: (re - r, im), 3: (re, im - r)}[phase]
            noise = None if key is None else jax.random.fold_in(key, phase)
            return self.camera.read(seen[0] ** 2 + seen[1] ** 2, bright, noise)

        real = (frame(0) - frame(2)) / (4 * r)
        return jax.lax.complex(real, (frame(1) - frame(3)) / (4 * r)) if complex_rows else real

    def _anchor(self, x: jax.Array, anchor: Any) -> jax.Array:
        if anchor is None:
            return jnp.ones(self.inputs, jnp.float32)
        mask = self._mirrors(anchor)
        if not isinstance(x, Tracer) and not isinstance(mask, Tracer) and bool((x > mask).any()):
            raise InvalidInput(
                "x", "mirrors that are on outside the anchor", "a vector inside the anchor's mirrors"
            )
        return mask

    def _anchored(self, x: jax.Array, anchor: jax.Array, key: jax.Array | None) -> jax.Array:
        mean = jnp.sum(anchor)
        (re_a, im_a), (re, im) = self._field(anchor), self._field(x)
        fields = ((re_a, im_a), (re, im), (re_a - re, im_a - im))  # the field of a - x: no third product
        noise = [None] * 3 if key is None else jax.random.split(key, 3)
        bright, own, rest = (
            self.camera.read(a**2 + b**2, mean, one) for (a, b), one in zip(fields, noise, strict=True)
        )
        seen = bright > WEAK * mean
        for image in (bright, own, rest):
            seen = seen & ~self.camera.saturated(image, mean)
        return jnp.where(seen, (bright + own - rest) / (2 * jnp.sqrt(jnp.where(seen, bright, 1.0))), 0.0)

    # -- what it takes -------------------------------------------------------------------------------------------------

    def frames(self, mode: str = "intensity", *, complex_rows: bool = False) -> int:
        """Frames of a binary vector in a mode."""
        return self.device.mode(mode).frames(complex_rows)

    def seconds(self, vectors: int = 1, mode: str = "intensity", *, complex_rows: bool = False) -> float:
        """Seconds of light for so many binary vectors; with host, links and rivals see ``decentral.cost.optical``."""
        pixels = self.outputs * self.device.mode(mode).pixels_per_output
        rate = float(frames_per_s(self.inputs, pixels, self.device))
        return vectors * self.frames(mode, complex_rows=complex_rows) / rate if rate > 0 else float("inf")

    def verdict(
        self,
        vectors: int,
        mode: str = "intensity",
        *,
        rival: str = "A100-SXM4-80GB",
        complex_rows: bool | None = None,
        bits: int = 1,
        signed: bool = False,
    ) -> str:
        """Time and energy of a batch on the hardware, against a dense product and a fast transform on a GPU; computed.

        Args:
            vectors: of the batch.
            mode: of the unit.
            rival: name of the GPU.
            complex_rows: whether the rivals' matrix is complex; by default in intensity mode, behind which two real products
                stand.
            bits: of a number; each takes a frame.
            signed: whether numbers are positive and negative.
        """
        both = mode == "intensity" if complex_rows is None else complex_rows
        task = RandomProjection(self.inputs, self.outputs, vectors, mode, both, bits, signed)
        return verdict(task, Rivals(self.device, of_device(device(rival), 1, 1, 1e9)))

    # -- what is known of it -------------------------------------------------------------------------------------------

    def matrix(self, mode: str = "anchor") -> jax.Array:
        """``(m, n)`` float32: the real matrix that ``linear`` multiplies with, of a calibrated unit in anchor mode.

        Row j is Re(conj(h_j.a) h_j) / |h_j.a| with a all mirrors: the unknown phase and conjugation of a row cancel.

        Raises:
            NotCalibrated: nobody knows it.
            InvalidInput: another mode: the reference beam's phase is no part of the calibration.
        """
        if self.known is None:
            raise NotCalibrated(
                "unit.calibration", self.calibration.value, "a calibrated unit",
                f"The matrix of an optical unit cannot be set, read or transposed: it has no port for that. unit.calibrate(key) "
                f"measures it, {self.inputs:,} x {self.outputs:,} numbers that then have to be stored: the memory that the unit "
                "was to save. What needs no transpose: features, distances, norms, feedback.",
            )  # fmt: skip
        if mode != "anchor":
            raise InvalidInput("mode", mode, "'anchor': rows are known up to a phase, which cancels there")
        along = jnp.sum(self.known, axis=1, keepdims=True)
        return jnp.real(jnp.conj(along) * self.known) / jnp.abs(along)

    def adjoint(self, y: Any, mode: str = "anchor") -> jax.Array:
        """The transpose of the linear map, on a computer: ``(..., m)`` -> ``(..., n)``.

        Raises:
            NotCalibrated: nobody knows the matrix.
        """
        matrix, y = self.matrix(mode), jnp.asarray(y)
        if y.ndim == 0 or y.shape[-1] != self.outputs:
            raise InvalidInput("y", f"shape {y.shape}", f"(..., {self.outputs}) outputs")
        return _product(y, matrix)

    def calibrate(
        self, key: jax.Array | None = None, *, groups: int = 6, refinements: int = 3
    ) -> OpticalUnit:
        """This unit with its rows measured: see :func:`decentral.optical.calibration.calibrate`."""
        from decentral.optical.calibration import calibrate

        return calibrate(self, key, groups=groups, refinements=refinements)


def _as_key(key: Any) -> Any:
    if isinstance(key, jax.Array):
        return key
    return jax.random.key(check_integer("key", key, 0))


def _check_leaf(
    name: str, value: Any, low: float, high: float, *, whole: bool = False, above: bool = False
) -> None:
    """Of one unit; what is traced, or that of a stack, cannot be looked at."""
    if isinstance(value, Tracer) or (isinstance(value, jax.Array | np.ndarray) and value.ndim):
        return
    value = value.item() if isinstance(value, jax.Array | np.ndarray) else value
    if whole:
        check_integer(name, value, int(low), high)
    else:
        check_number(name, value, low, high, above=above)


def _shown(value: Any) -> str:
    return "traced" if isinstance(value, Tracer) else str(value)


@jax.jit
def _seen(unit: OpticalUnit, x: jax.Array, key: jax.Array | None) -> jax.Array:
    if unit.given is not None:
        re, im = unit._field(x)
        return unit.camera.read(re**2 + im**2, unit.mean, key)
    (bright,) = _project(unit, x, squared=True)
    return unit.camera.read(bright, unit.mean, key)


# -- the generator -----------------------------------------------------------------------------------------------------


def _counter(region: Any, first: Any) -> jax.Array:
    return jnp.asarray(region, jnp.uint32) + jnp.asarray(first, jnp.uint32)


def threefry(words: jax.Array, first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32-20: two random words for each pair of counters. Inlined, a quarter of the time of the library's on CPU.

    Args:
        words: ``(2,)`` uint32, the key.
        first: uint32 counters; with ``second`` they broadcast.
        second: uint32 counters.
    """
    keys = (words[0], words[1], words[0] ^ words[1] ^ jnp.uint32(0x1BD11BDA))
    a, b = first + keys[0], second + keys[1]
    for group in range(5):
        for turn in _ROTATIONS[group % 2]:
            a = a + b
            b = a ^ ((b << jnp.uint32(turn)) | (b >> jnp.uint32(32 - turn)))
        a, b = a + keys[(group + 1) % 3], b + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return a, b


def normals(words: jax.Array, row: jax.Array, column: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Real and imaginary parts of entries, each N(0, 1/2) to 23 bits."""
    return tuple(jax.lax.erf_inv(_uniform(word)) for word in threefry(words, row, column))  # type: ignore[return-value]


def _uniform(word: jax.Array) -> jax.Array:
    """Odd multiples of 2^-23 in (-1, 1); erf^-1 of them is N(0, 1/2)."""
    mantissa = (word >> jnp.uint32(9)) | jnp.uint32(0x3F800000)
    return 2 * (jax.lax.bitcast_convert_type(mantissa, jnp.float32) - jnp.float32(1.5)) + jnp.float32(2**-23)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Accelerators else multiply in 16 bits or so."""
    return jnp.matmul(a, b, precision="highest")


@partial(jax.jit, static_argnames="squared")
def _project(unit: OpticalUnit, x: jax.Array, squared: bool) -> tuple[jax.Array, ...]:
    """Real and imaginary part of H x, or |H x|^2, tile after tile; tiles are as small as sizes allow."""
    n, m, batch = unit.inputs, unit.outputs, x.shape[:-1]
    tall, wide = -(-m // ROWS), -(-n // COLUMNS)
    rows, columns = -(-m // tall), -(-n // wide)
    flat = jnp.pad(x.reshape(-1, n), ((0, 0), (0, wide * columns - n)))

    def tile(row: jax.Array, column: jax.Array) -> tuple[jax.Array, jax.Array]:
        own = _counter(unit.region, row) + jnp.arange(rows, dtype=jnp.uint32)
        return unit._entries(own, _counter(0, column) + jnp.arange(columns, dtype=jnp.uint32)[:, None])

    def fill(done: tuple, row: jax.Array) -> tuple[tuple, None]:
        def add(total: tuple, column: jax.Array) -> tuple[tuple, None]:
            part = jax.lax.dynamic_slice_in_dim(flat, column, columns, axis=1)
            return tuple(
                sum_ + _product(part, h) for sum_, h in zip(total, tile(row, column), strict=True)
            ), None

        zero = jnp.zeros((flat.shape[0], rows), jnp.float32)
        re, im = jax.lax.scan(add, (zero, zero), jnp.arange(wide, dtype=jnp.int32) * columns)[0]
        kept = (re**2 + im**2,) if squared else (re, im)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(*pair, row, 1) for pair in zip(done, kept, strict=True)
        ), None

    room = jnp.zeros((flat.shape[0], tall * rows), jnp.float32)
    firsts = jnp.arange(tall, dtype=jnp.int32) * rows
    found = jax.lax.scan(fill, (room,) if squared else (room, room), firsts)[0]
    return tuple(part[:, :m].reshape(*batch, m) for part in found)
