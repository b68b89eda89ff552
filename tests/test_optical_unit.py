"""Optical units: their matrix, camera, codes, linear modes and calibration."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.extend.random import threefry_2x32

from decentral.errors import InvalidInput
from decentral.optical import (
    IDEAL,
    BitPlanes,
    Calibration,
    Camera,
    NotCalibrated,
    OpticalUnit,
    Ternary,
    Thermometer,
    Threshold,
    calibration_frames,
)
from decentral.optical.unit import threefry

RECORDED = json.loads((Path(__file__).parent / "data" / "lightonml.json").read_text())


def binary(*shape, density=0.5, seed=0):
    return np.random.default_rng(seed).random(shape) < density


# -- the matrix --------------------------------------------------------------------------------------------------------


def test_the_generator_is_threefry():
    words, counters = jnp.array([7, 9], jnp.uint32), jnp.arange(12, dtype=jnp.uint32).reshape(2, 6)
    ours = threefry(words, counters[0], counters[1])
    np.testing.assert_array_equal(np.stack(ours), threefry_2x32(words, counters))


def test_entries_are_circular_complex_gaussians_of_unit_variance():
    # 1e6 entries: a mean of variance v is within 5 sqrt(v / 1e6), a false alarm of 6e-7 each.
    h = np.asarray(OpticalUnit(3, 5, 1000, 1000).rows()).ravel()
    assert abs((np.abs(h) ** 2).mean() - 1) < 5e-3
    assert abs(h.mean()) < 5e-3
    assert abs((h**2).mean()) < 7.1e-3
    assert abs((h.real * h.imag).mean()) < 2.5e-3
    assert abs((h.real**4).mean() / (h.real**2).mean() ** 2 - 3) < 0.05


def test_first_rows_do_not_depend_on_their_number_and_regions_are_later_rows():
    tall, short = OpticalUnit(1, 0, 70, 3000), OpticalUnit(1, 0, 70, 40)
    np.testing.assert_array_equal(tall.rows(0, 40), short.rows())
    later = OpticalUnit(1, 0, 70, 40, region=2000)
    np.testing.assert_array_equal(later.rows(), tall.rows(2000, 40))
    wide = OpticalUnit(1, 0, 200, 40)
    np.testing.assert_array_equal(wide.rows()[:, :70], short.rows())


@pytest.mark.parametrize(("n", "m"), [(1, 1), (10, 3000), (2500, 7), (1030, 1025)])
def test_the_field_is_the_matrix_times_the_mirrors(n, m):
    unit, x = OpticalUnit(0, 1, n, m), binary(3, 2, n)
    expected = x.astype(np.float64) @ np.asarray(unit.rows(), np.complex128).T
    np.testing.assert_allclose(unit.field(x), expected, atol=2e-6 * n + 1e-5)
    np.testing.assert_allclose(jax.jit(lambda b: unit.field(b))(x), expected, atol=2e-6 * n + 1e-5)


def test_devices_keys_and_regions_are_independent_and_a_stack_of_them_is_mapped():
    x = binary(50)
    fields = jax.vmap(lambda i: OpticalUnit(i, 0, 50, 4000).field(x))(jnp.arange(3))
    for i in range(3):
        np.testing.assert_allclose(fields[i], OpticalUnit(i, 0, 50, 4000).field(x), rtol=1e-5, atol=1e-4)
    others = [
        fields[0],
        fields[1],
        OpticalUnit(0, 9, 50, 4000).field(x),
        OpticalUnit(0, 0, 50, 4000, region=4000).field(x),
    ]
    correlation = np.abs(np.corrcoef(np.stack(others)))  # of 4000 draws: 1/sqrt(4000) = 0.016
    assert correlation[np.triu_indices(4, 1)].max() < 0.08


def test_a_scatterer_that_drifts_forgets_its_matrix():
    h = np.asarray(OpticalUnit(0, 0, 100, 1000).rows()).ravel()
    np.testing.assert_array_equal(h, np.asarray(OpticalUnit(0, 0, 100, 1000, age=0.0).rows()).ravel())
    for age in (0.5, 3.0):
        aged = np.asarray(OpticalUnit(0, 0, 100, 1000, age=age).rows()).ravel()
        assert np.mean(np.conj(h) * aged).real == pytest.approx(np.exp(-age), abs=0.02)
        assert (np.abs(aged) ** 2).mean() == pytest.approx(1, abs=0.02)


def test_lightonml_s_simulated_device_with_its_matrix_given():
    """T1. Its matrix is (inputs, outputs) with E|h|^2 = 2/n, and its linear output the real part."""
    real, imag = (np.array(RECORDED["matrix_6x4_seed0"][part]).T for part in ("real", "imag"))
    # As it draws: NumPy's legacy generator, seed 0.
    draws = np.random.RandomState(0)
    ours = [draws.normal(0, 1 / np.sqrt(6), (6, 4)).astype(np.float32).T for _ in range(2)]
    np.testing.assert_allclose(ours, [real, imag], atol=1e-6)
    unit = OpticalUnit(0, 0, 6, 4, camera=IDEAL, given=(real + 1j * imag).astype(np.complex64))
    x = np.array(RECORDED["X_4x6"])
    np.testing.assert_allclose(unit.intensity(x), RECORDED["nonlinear_Y"], atol=1e-6)
    np.testing.assert_allclose(unit.field(x).real, RECORDED["linear_Y_rescale_none"], atol=1e-6)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32, np.float64])
def test_zeros_and_ones_of_any_type_are_mirrors(dtype):
    unit, x = OpticalUnit(0, 0, 30, 5, camera=IDEAL), binary(4, 30)
    np.testing.assert_array_equal(unit.intensity(x.astype(dtype)), unit.intensity(x))


# -- the camera --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full_scale", [1.0, 2.0, 3.0])
def test_a_share_exp_minus_k_of_the_pixels_saturates(full_scale):
    """T9. 4e5 pixels: the share is within 5 standard deviations (false alarm 6e-7), which is below 2 % of it."""
    unit = OpticalUnit(0, 0, 64, 400_000, camera=Camera(None, full_scale), exposure=64)
    image = unit.intensity(np.ones(64, bool))
    share = float(unit.camera.saturated(image, 64).mean())
    assert share == pytest.approx(np.exp(-full_scale), rel=0.02)


def test_an_ideal_camera_reads_the_intensity_itself():
    unit, x = OpticalUnit(0, 0, 64, 50, camera=IDEAL), binary(3, 64)
    np.testing.assert_allclose(unit.intensity(x), np.abs(unit.field(x)) ** 2, rtol=1e-5)


def test_levels_are_as_many_as_bits_say():
    unit = OpticalUnit(0, 0, 64, 20_000, camera=Camera(3, 4.0), exposure=32)
    levels = np.unique(unit.intensity(binary(64)))
    np.testing.assert_allclose(levels, np.arange(8) * 32 * 4 / 7, rtol=1e-6)


@pytest.mark.parametrize("photons", [0.3, 2.0, 7.0, 100.0])
def test_shot_noise_is_poisson(photons):
    # Variance of a pixel of k means: k / photons, in squared means. 5e4 draws: 5 standard deviations are below 4 %.
    read = Camera(None, None, photons).read(jnp.full(50_000, 3.0), 1.0, jax.random.key(0))
    assert float(read.mean()) == pytest.approx(3, rel=0.02)
    assert float(read.var()) == pytest.approx(3 / photons, rel=0.04)
    counts = np.round(np.asarray(read) * photons)
    np.testing.assert_allclose(counts, np.asarray(read) * photons, atol=1e-3)
    # Its distribution function, to 1.36 / sqrt(N) with 95 %: Kolmogorov's distance, which is conservative for whole numbers.
    values = np.arange(counts.max() + 1)
    empirical = np.searchsorted(np.sort(counts), values, side="right") / counts.size
    assert np.abs(empirical - scipy.stats.poisson.cdf(values, 3 * photons)).max() < 0.009


def test_noise_takes_a_key_and_the_same_key_is_the_same_noise():
    unit, x = OpticalUnit(0, 0, 64, 50, camera=Camera(8, 5.0, 100.0, 0.1)), binary(64)
    with pytest.raises(InvalidInput, match="this camera is noisy"):
        unit.intensity(x)
    a, b, c = (unit.intensity(x, jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert np.abs(np.asarray(a - c)).max() > 0


# -- linear modes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["four_phase", "off_axis"])
def test_modes_with_a_reference_beam_give_the_field(mode):
    unit, x = OpticalUnit(0, 0, 100, 200, camera=IDEAL), binary(3, 100)
    np.testing.assert_allclose(unit.linear(x, mode=mode, complex_rows=True), unit.field(x), atol=2e-5)
    np.testing.assert_allclose(unit.linear(x, mode=mode), unit.field(x).real, atol=2e-5)


@pytest.mark.slow
def test_the_anchor_s_identity_and_its_bias():
    """T10: y = Re(conj(Ha) Hx) / |Ha|, and 2 E[y^2] = |x|^2 (1 + |x|^2 / |a|^2) for x inside a."""
    n, m = 1000, 40_000
    rng = np.random.default_rng(0)
    for on, of in ((50, 500), (250, 500), (400, 800)):
        anchor, x = np.zeros(n, bool), np.zeros(n, bool)
        inside = rng.permutation(n)[:of]
        anchor[inside] = x[inside[:on]] = True
        unit = OpticalUnit(on, 0, n, m, camera=IDEAL)
        y, (fa, fx) = np.asarray(unit.linear(x, anchor=anchor)), np.asarray(unit.field(np.stack([anchor, x])))
        live = y != 0
        assert live.mean() == pytest.approx(np.exp(-0.02), abs=0.004)
        np.testing.assert_allclose(y[live], (np.conj(fa) * fx).real[live] / np.abs(fa)[live], atol=3e-3)
        # y^2 is heavy: of 4e4 pixels 3 % is four standard deviations.
        assert 2 * np.mean((np.conj(fa) * fx).real ** 2 / np.abs(fa) ** 2) / on == pytest.approx(
            1 + on / of, rel=0.03
        )


@pytest.mark.parametrize(
    ("on", "of", "photons", "recorded"),
    [
        pytest.param(50, 500, 1000.0, 0.132, marks=pytest.mark.slow),
        pytest.param(50, 500, 100.0, 0.330, marks=pytest.mark.slow),
        pytest.param(250, 500, 100.0, 0.134, marks=pytest.mark.slow),
    ],
)
def test_the_anchor_s_error_with_a_camera_of_eight_bits(on, of, photons, recorded):
    """T10. The recorded errors are of one draw, and keep saturated pixels: so they are taken here; ours are left out."""
    n, m, camera = 1000, 8192, Camera(8, 5.0, photons)
    rng, errors, ours = np.random.default_rng(1), [], []
    for device in range(3):
        anchor, x = np.zeros(n, bool), np.zeros(n, bool)
        inside = rng.permutation(n)[:of]
        anchor[inside] = x[inside[:on]] = True
        unit = OpticalUnit(device, 0, n, m, camera=camera)
        fa, fx = np.asarray(unit.field(np.stack([anchor, x])))
        exact = (np.conj(fa) * fx).real / np.abs(fa)
        keys = jax.random.split(jax.random.key(device), 3)
        bright, own, rest = (
            np.asarray(camera.read(jnp.abs(f) ** 2, float(of), key))
            for f, key in zip((fa, fx, fa - fx), keys, strict=True)
        )
        kept = bright > 0.02 * of
        y = (bright + own - rest) / (2 * np.sqrt(np.where(kept, bright, 1)))
        errors.append(np.linalg.norm((y - exact)[kept]) / np.linalg.norm(exact[kept]))
        unsaturated = np.asarray(unit.linear(x, jax.random.key(device), anchor=anchor))
        live = unsaturated != 0
        ours.append(np.linalg.norm((unsaturated - exact)[live]) / np.linalg.norm(exact[live]))
    assert np.mean(errors) == pytest.approx(recorded, rel=0.08)
    assert np.mean(ours) < 1.03 * np.mean(errors)


def test_frames_and_seconds_are_the_hardware_s():
    unit = OpticalUnit(0, 0, 100_000, 80_000, hardware="LightOn OPU Gen-3")
    assert [unit.frames(mode) for mode in ("intensity", "anchor", "four_phase", "off_axis")] == [1, 2, 2, 1]
    assert unit.frames("four_phase", complex_rows=True) == 4
    assert unit.seconds(8000) == pytest.approx(1.0)
    assert unit.seconds(8000, "anchor") == pytest.approx(2.0)


def test_what_is_shown_names_all_that_the_numbers_depend_on():
    words = OpticalUnit(0, 0, 10_000, 5_000).verdict(3000)
    for part in ("10,000 -> 5,000, batch 3,000", "complex rows", "intensity mode", "LightOn OPU Gen-2", "head unit alone",
                 "A100-SXM4-80GB dense in 16 bits", "Walsh-Hadamard", "loses to"):  # fmt: skip
        assert part in words
    assert "simulated LightOn OPU Gen-2" in repr(OpticalUnit(0, 0, 10, 10))
    assert "matrix unknown" in repr(OpticalUnit(0, 0, 10, 10))


# -- codes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["separated_bitplan_p3", "separated_bitplan_p6", "separated_bitplan_int_p4"])
def test_bit_planes_are_lightonml_s(name):
    """T2. lightonml has all positive planes of all samples first."""
    recorded = RECORDED[name]
    x = np.array(recorded["X"])
    precision = int(recorded["params"]["precision"])
    encoder = BitPlanes.fit(x, precision)
    bits = np.asarray(encoder.encode(x)).astype(int)
    assert encoder.planes == 2 * precision
    split = bits.reshape(len(x), 2, precision, -1)
    np.testing.assert_array_equal(
        np.concatenate([split[:, 0], split[:, 1]]).reshape(-1, x.shape[1]), recorded["bits"]
    )
    np.testing.assert_allclose(
        encoder.decode(jnp.asarray(bits, jnp.float64)), recorded["decode_of_bits"], atol=1e-15
    )


def test_thermometer_and_threshold_are_lightonml_s():
    recorded = RECORDED["multithreshold_linspace4"]
    encoder = Thermometer.fit(recorded["X"], 4)
    np.testing.assert_allclose(encoder.thresholds, recorded["thresholds"])
    np.testing.assert_array_equal(encoder.encode(recorded["X"])[:, 0], recorded["bits"])
    median = Threshold.fit(recorded["X"])
    np.testing.assert_array_equal(median.thresholds, RECORDED["binary_auto"]["thr"])
    np.testing.assert_array_equal(median.encode(recorded["X"])[:, 0], RECORDED["binary_auto"]["bits"])


@pytest.mark.parametrize("precision", [1, 2, 5, 8])
def test_decoding_what_was_encoded_is_the_uniform_quantiser(precision):
    x = np.random.default_rng(0).normal(size=(20, 30))
    encoder = BitPlanes.fit(x, precision)
    back = encoder.decode(encoder.encode(x).astype(jnp.float64))
    steps = np.where(x > 0, encoder.scales[0], encoder.scales[1]) / (2**precision - 1)
    np.testing.assert_allclose(back, np.round(x / steps) * steps, atol=1e-12)


def test_the_error_of_bit_planes_halves_with_every_bit():
    """T3: 0.70, 0.25, 0.10, 0.047, 0.025, 0.012, through the unit's own linear mode; means of eight vectors."""
    vectors = np.random.default_rng(0).normal(size=(8, 100))
    unit = OpticalUnit(0, 0, 100, 500, camera=IDEAL)
    light = jax.jit(lambda bits: unit.linear(bits, mode="four_phase"))
    exact, errors = vectors @ np.asarray(unit.rows(), np.complex128).real.T, []
    for precision in range(1, 7):
        codes = [BitPlanes.fit(x, precision) for x in vectors]
        y = np.stack([code.decode(light(code.encode(x))) for code, x in zip(codes, vectors, strict=True)])
        errors.append(np.mean(np.linalg.norm(y - exact, axis=1) / np.linalg.norm(exact, axis=1)))
    ratios = np.array(errors[:-1]) / errors[1:]
    assert ((ratios > 1.9) & (ratios < 2.9)).all()
    assert errors[-1] < 0.02
    np.testing.assert_allclose(
        errors, list(RECORDED["bitplan_linear_relerr_by_precision"].values()), rtol=0.15
    )


def test_projections_that_are_whole_numbers_are_decoded_as_numbers():
    code = BitPlanes(3)
    planes = code.encode(np.array([[1.0], [-3 / 7]]))  # (2, planes, 1)
    for dtype in (np.uint8, np.int32, bool):
        np.testing.assert_allclose(code.decode(np.asarray(planes, dtype)), [[1.0], [-3 / 7]], rtol=1e-6)


def test_intensities_of_bit_planes_are_not_decoded():
    with pytest.raises(InvalidInput, match=r"sum_p w_p \|H b_p\|\^2 is not \|H x\|\^2"):
        BitPlanes().decode(jnp.ones((12, 5)), linear=False)
    for encoder in (Threshold(), Thermometer()):
        with pytest.raises(InvalidInput, match="a linear code: BitPlanes or Ternary"):
            encoder.decode(jnp.ones((1, 5)))
    with pytest.raises(InvalidInput, match="12 planes"):
        BitPlanes().decode(jnp.ones((5, 5)))


def test_a_ternary_threshold_has_to_exceed_one_over_the_classes():
    x = jnp.array([0.5, -0.3, 0.1, -0.05])
    np.testing.assert_array_equal(Ternary(0.2).decode(Ternary(0.2).encode(x).astype(float)), [1, -1, 0, 0])
    with pytest.raises(InvalidInput, match=r"above 1/C = 0\.1 .*Before anything is learned"):
        Ternary(0.1, classes=10)


# -- what is known -----------------------------------------------------------------------------------------------------


def apart(known, rows):
    """Relative error of each row, up to its phase and conjugation."""

    def error(candidate):
        phase = (np.conj(candidate) * rows).sum(1)
        turned = candidate * (phase / np.abs(phase))[:, None]
        return np.linalg.norm(turned - rows, axis=1) / np.linalg.norm(rows, axis=1)

    return np.minimum(error(known), error(np.conj(known)))


@pytest.mark.parametrize(
    ("n", "groups"),
    [
        (3, 3),
        pytest.param(5, 6, marks=pytest.mark.slow),
        pytest.param(100, 4, marks=pytest.mark.slow),
        pytest.param(63, 6, marks=pytest.mark.slow),
    ],
)
def test_calibration_finds_the_rows_up_to_phase_and_conjugation(n, groups):
    unit = OpticalUnit(2, 1, n, 60, camera=IDEAL)
    assert unit.calibration is Calibration.UNKNOWN
    found = unit.calibrate(groups=groups)
    assert found.calibration is Calibration.CALIBRATED
    assert np.median(apart(np.asarray(found.known), np.asarray(unit.rows()))) < 1e-5


@pytest.mark.slow
def test_calibration_with_a_camera_of_eight_bits_and_the_adjoint_it_gives():
    unit = OpticalUnit(0, 0, 100, 300, camera=Camera(8, 8.0))
    found = unit.calibrate(groups=10)
    errors = apart(np.asarray(found.known), np.asarray(unit.rows()))
    assert np.median(errors) < 0.03
    # <A x, y> = <x, A' y>, with the light of the exact unit on the left.
    x, y = binary(100), np.random.default_rng(1).normal(size=300).astype(np.float32)
    exact = replace(unit, camera=IDEAL)
    live = np.asarray(exact.linear(x)) != 0
    left, right = np.vdot(exact.linear(x), y * live), np.vdot(found.adjoint(y * live), x)
    assert left == pytest.approx(right, abs=0.05 * float(np.linalg.norm(exact.linear(x)) * np.linalg.norm(y)))


def test_calibration_costs_frames_and_better_references_cost_more():
    assert calibration_frames(1100, 6) == 6 + 15 + 6 * 255 * 6
    assert calibration_frames(1100, 10) > calibration_frames(1100, 4)


def test_an_unknown_matrix_has_no_adjoint_and_says_why():
    with pytest.raises(NotCalibrated, match=r"cannot be set, read or transposed.*unit\.calibrate"):
        OpticalUnit(0, 0, 30, 20).adjoint(np.ones(20))
    with pytest.raises(InvalidInput, match="up to a phase"):
        OpticalUnit(0, 0, 30, 20, camera=IDEAL).calibrate().matrix("four_phase")


# -- sizes and bad input -----------------------------------------------------------------------------------------------


def test_a_device_of_two_trillion_entries_can_be_constructed():
    unit = OpticalUnit(0, 0, 1_000_000, 2_000_000)
    assert unit.rows(1_999_999, 1).shape == (1, 1_000_000)


PROJECT = """
import jax, numpy as np
from decentral.optical import OpticalUnit
n = {n}
unit = OpticalUnit(0, 0, n, n)
image = jax.block_until_ready(unit.intensity(np.random.default_rng(0).random((4, n)) < 0.5))
assert np.isfinite(image).all() and abs(float(image.mean()) / (n / 2) - 1) < 0.05
# Not ru_maxrss: that begins with what the process that started this one had.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak memory is read from /proc")
def test_a_batch_at_65536_squared_takes_less_than_a_gigabyte():
    """H would take 34 GB."""
    code = PROJECT.format(n=65_536)
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert int(found.stdout) * 1024 < 1e9


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OpticalUnit(0, 0, 10, 3_000_000), "outputs: got 3000000.*at most 2,228,224 pixels"),
        (lambda: OpticalUnit(0, 0, 2_000_000, 10), "inputs: got 2000000.*1,039,680 mirrors"),
        (lambda: OpticalUnit(0, 0, 10, 10, region=2_228_220), "outputs: got 10.*pixels from the region"),
        (
            lambda: OpticalUnit(0, 0, 10, 600_000).linear(np.ones(10), mode="off_axis"),
            "4 pixels for each output",
        ),
        (
            lambda: OpticalUnit(0, 0, 10, 10).intensity(np.full(10, 0.5)),
            "a vector with 0.5.*mirrors are on or off",
        ),
        (lambda: OpticalUnit(0, 0, 10, 10).intensity(np.ones(11)), r"shape \(11,\).*10"),
        (
            lambda: jax.jit(lambda x: OpticalUnit(0, 0, 10, 10).intensity(x))(jnp.ones(10)),
            "inside a compiled function",
        ),
        (lambda: OpticalUnit(0, 0, 10, 10).linear(np.ones(10), mode="vendor"), "mode: got 'vendor'"),
        (
            lambda: OpticalUnit(0, 0, 10, 10).linear(np.ones(10), complex_rows=True),
            "a mode with complex outputs",
        ),
        (lambda: OpticalUnit(0, 0, 4, 4).linear([1, 0, 0, 1], anchor=[1, 1, 1, 0]), "outside the anchor"),
        (lambda: OpticalUnit(0, 0, 10, 10, hardware="Gen-9"), "optical_unit.name"),
        (lambda: Camera(photons=-1.0), r"camera\.photons: got -1"),
        (lambda: Camera(read_noise=-1.0), r"camera\.read_noise: got -1"),
        (lambda: Camera(bits=0), r"camera\.bits: got 0"),
        (lambda: Camera(bits=8, full_scale=None), r"camera\.full_scale: got None"),
        (lambda: BitPlanes(0), "precision"),
        (lambda: Thermometer.fit(np.ones((3, 2)), 1), "levels"),
        (lambda: Threshold((0.0, 1.0)).encode(np.ones(3)), "fitted to other features"),
        (lambda: OpticalUnit(0, 0, 2, 4).calibrate(), "at least 3 mirrors"),
        (lambda: OpticalUnit(0, 0, 4, 4, age=-1.0), "age: got -1"),
        (lambda: OpticalUnit(0, 0, 4, 4, exposure=0), "exposure: got 0"),
        (lambda: OpticalUnit(0, "lab", 4, 4), "key: got 'lab'"),
        (lambda: OpticalUnit(1.5, 0, 4, 4), "device_id: got 1.5"),
        (lambda: OpticalUnit(2**40, 0, 4, 4), "device_id"),
        (lambda: OpticalUnit(0, 0, 4, 4, region=jnp.int32(2_228_222)), "pixels from the region"),
        (lambda: OpticalUnit(0, 0, 4, 4, region=1.5), "region: got 1.5"),
        (lambda: OpticalUnit(0, 0, 4, 4, given=[[1]]), r"given: got 'shape \(1, 1\)'"),
        (lambda: OpticalUnit(0, 0, 4, 4, known=np.ones((2, 2))), "known"),
        (lambda: OpticalUnit(0, 0, 4, 4, known=np.ones((4, 4))).adjoint(np.ones(3)), "4.* outputs"),
        (lambda: Threshold("a"), "thresholds: got 'a'"),
        (lambda: Thermometer((1.0, 0.0)), "do not fall"),
        (lambda: Thermometer(((0.0, 1.0), (0.5, 0.5))), "do not fall"),
        (lambda: Thermometer(((0.0, 1.0), (0.5, 1.5, 2.0))), "as many numbers"),
    ],
)
def test_bad_input_is_one_clear_message(make, words):
    with pytest.raises(InvalidInput, match=words):
        make()


def test_names_are_no_numbers_and_outputs_have_a_length():
    with pytest.raises(InvalidInput, match="device_id"):
        OpticalUnit("lab", 0, 10, 4)
    with pytest.raises(InvalidInput, match="key"):
        OpticalUnit(0, "lab", 10, 4)
    known = OpticalUnit(0, 0, 10, 4, known=jnp.ones((4, 10), jnp.complex64))
    with pytest.raises(InvalidInput, match=r"4.*outputs"):
        known.adjoint(jnp.ones(3))
