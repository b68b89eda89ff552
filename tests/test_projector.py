"""Projectors: linear where they say so, transposed exactly, unbiased, the same from the same seed, and drawn in pieces."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from decentral import InvalidInput
from decentral.cost.cluster import of_device
from decentral.cost.optical import Rivals, dense, hadamard, sparse
from decentral.hardware import device, optical_unit
from decentral.optical import (
    IDEAL,
    BitPlanes,
    NotCalibrated,
    OpticalUnit,
    Ternary,
    Thermometer,
    Threshold,
    sketches,
)
from decentral.optical import projector as module
from decentral.optical.projector import projector, walsh_hadamard
from decentral.optical.sketches import squared_distances

SLOW_TO_COMPILE = pytest.param("fastfood", marks=pytest.mark.slow)
LINEAR = ("gaussian", "sparse", "hadamard", "count_sketch", SLOW_TO_COMPILE)
DIGITAL = (*LINEAR, "fourier")
NESTED = ("gaussian", "sparse", "hadamard", SLOW_TO_COMPILE)
SHAPES = [(37, 150), pytest.param(50, 12, marks=pytest.mark.slow), pytest.param(1, 3, marks=pytest.mark.slow)]


def vectors(*shape, dtype=jnp.float64, seed=0):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


@pytest.mark.parametrize("size", [1, 2, 8, 16, 32, 128, 512])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_transform_is_scipys_matrix(size, dtype):
    x = vectors(3, size, dtype=dtype)
    expected = np.asarray(x, np.float64) @ scipy.linalg.hadamard(size)
    got = walsh_hadamard(x)
    assert got.dtype == dtype
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got / scale, expected / scale, atol=3e-6 if dtype == "float32" else 1e-14)


def test_the_transform_twice_is_the_vector():
    x = vectors(2**15)
    np.testing.assert_allclose(walsh_hadamard(walsh_hadamard(x)) / 2**15, x, atol=1e-12)


def test_the_transform_wants_a_power_of_two():
    with pytest.raises(InvalidInput, match=r"walsh_hadamard: got 24.*zeros to 32"):
        walsh_hadamard(jnp.ones(24))


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_linear_and_transposed(kind, inputs, outputs):
    """A(ax + by) = aAx + bAy, and <Ax, y> = <x, A'y>; behind signs, and on batches."""
    each = projector(kind, inputs, outputs, 3, refresh="signs").at(5)
    assert each.is_linear
    assert each.has_adjoint
    x, z, y = vectors(2, inputs), vectors(2, inputs, seed=1), vectors(2, outputs, seed=2)
    (combined, of_x, of_z, one), back = jax.jit(
        lambda: ([each.apply(v) for v in (2 * x - z, x, z, x[1])], each.adjoint(y))
    )()
    np.testing.assert_allclose(combined, 2 * of_x - of_z, atol=1e-12)
    np.testing.assert_allclose(of_x[1], one, atol=1e-12)
    np.testing.assert_allclose((of_x * y).sum(-1), (x * back).sum(-1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", DIGITAL)
def test_one_map_however_it_is_used(kind):
    """Each key of a batch alone, compiled or mapped over, held or drawn, in either precision, is the same map up to rounding."""
    keys, x = jax.random.split(jax.random.key(7), 2), vectors(2, 20)
    maps = jax.vmap(lambda key: projector(kind, 20, 33, key))(keys)
    together = jax.jit(jax.vmap(lambda each, x: each.apply(x)))(maps, x)
    first = projector(kind, 20, 33, keys[0])
    low, bits, held, again = jax.jit(
        lambda: (
            first.apply(x[0].astype(jnp.float32)),
            first.apply(jnp.ones(20, bool)),
            first.hold().apply(x[0]),
            projector(kind, 20, 33, keys[0]).apply(x[0]),
        )
    )()
    assert together.dtype == jnp.float64
    assert low.dtype == bits.dtype == jnp.float32
    np.testing.assert_allclose(low, together[0], atol=1e-5)
    np.testing.assert_allclose(held, together[0], atol=1e-12)
    np.testing.assert_allclose(again, together[0], atol=1e-12)
    other = jax.jit(lambda x: projector(kind, 20, 33, keys[1]).apply(x))
    np.testing.assert_allclose(other(x[1]), together[1], atol=1e-12)
    assert np.abs(other(x[0]) - together[0]).max() > 0.01


def test_a_seed_is_a_key():
    assert projector("sparse", 5, 3, 7).key == projector("sparse", 5, 3, jax.random.key(7)).key


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize(("inputs", "outputs"), [(24, 10), pytest.param(24, 100, marks=pytest.mark.slow)])
def test_norms_are_unbiased(kind, inputs, outputs):
    """E||Ax||^2 = ||x||^2 over 4,000 matrices, within 5 standard errors (false alarms: 6e-7 each)."""
    x = vectors(inputs)
    keys = jax.random.split(jax.random.key(1), 4000)
    squares = jax.jit(jax.vmap(lambda key: (projector(kind, inputs, outputs, key).apply(x) ** 2).sum()))(keys)
    ratios = np.asarray(squares / (x**2).sum())
    assert abs(ratios.mean() - 1) <= 5 * ratios.std() / np.sqrt(4000) + 1e-12


@pytest.mark.parametrize("kind", NESTED)
def test_the_first_outputs_do_not_depend_on_how_many_there_are(kind):
    x = vectors(20)
    few, many = jax.jit(lambda: [projector(kind, 20, outputs, 5).apply(x) for outputs in (7, 90)])()
    np.testing.assert_allclose(np.sqrt(7) * few, np.sqrt(90) * many[:7], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["gaussian", "sparse"])
def test_tiles_are_the_whole(kind, monkeypatch):
    whole, x, y = projector(kind, 40, 23, 5), vectors(2, 40), vectors(2, 23)
    expected, back = jax.jit(lambda: (whole.apply(x), whole.adjoint(y)))()
    monkeypatch.setattr(module, "TILE", 7 * whole.row_entries)
    in_tiles, back_in_tiles = jax.jit(lambda: (whole.apply(x), whole.adjoint(y)))()
    np.testing.assert_allclose(in_tiles, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(back_in_tiles, back, rtol=1e-12, atol=1e-12)


def test_a_tile_is_all_the_memory_it_takes():
    """A Gaussian matrix of 256 MB, and a compiled product that has room for a few tiles of 4 MB."""
    whole = projector("gaussian", 2**16, 2**10, 0)
    for function, size in ((whole.apply, whole.inputs), (whole.adjoint, whole.outputs)):
        compiled = jax.jit(function).lower(jax.ShapeDtypeStruct((size,), jnp.float32)).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 32e6


def test_gaussian_entries_are_normal():
    """Moments of 250,000 entries within 5 standard errors (false alarms: 6e-7 each)."""
    entries = np.sqrt(500) * np.asarray(projector("gaussian", 500, 500, 2).apply(jnp.eye(500)))
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((entries**power).mean() - moment) < 5 * np.sqrt(variance / entries.size)


def test_hadamard_rows_are_orthonormal():
    """Within a block, up to the scale; as many outputs as points are a rotation."""
    few, many = projector("hadamard", 32, 12, 0), projector("hadamard", 32, 64, 0)
    rows, rotation = jax.jit(lambda: [each.apply(jnp.eye(32)).T for each in (few, many)])()
    np.testing.assert_allclose(rows @ rows.T, 32 / 12 * np.eye(12), atol=1e-12)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(32), atol=1e-12)


def test_fastfood_rows_have_normal_norms():
    """Squared norms of 40,960 rows of 64: chi-squared of 64 degrees of freedom, within 5 standard errors of mean and variance.

    The norms are drawn independently of each other, so the errors are those of independent draws.
    """
    each = projector("fastfood", 64, 40_960, 0)
    squares = 40_960 * (np.asarray(jax.jit(each.apply)(jnp.eye(64))) ** 2).sum(0)
    assert abs(squares.mean() - 64) < 5 * np.sqrt(128 / len(squares))
    assert abs(squares.var() / 128 - 1) < 5 * np.sqrt((2 + 12 / 64) / len(squares))


@pytest.mark.parametrize("matrix", ["gaussian", SLOW_TO_COMPILE])
def test_fourier_features_have_the_gaussian_kernel(matrix):
    """Mean over 16,384 features of variance at most 1 (Gaussian: 5 standard errors); Fastfood's are dependent in a block."""
    x, y = vectors(2, 16) / 4
    features = projector("fourier", 16, 2**14, 1, bandwidth=0.8, matrix=matrix)
    expected = np.exp(-float(((x - y) ** 2).sum()) / (2 * 0.8**2))
    assert 0.2 < expected < 0.8
    first, second = jax.jit(features.apply)(jnp.stack([x, y]))
    got = float(first @ second)
    assert abs(got - expected) < 5 / np.sqrt(2**14)
    assert not features.is_linear
    with pytest.raises(InvalidInput, match=r"adjoint: got 'fourier'"):
        features.adjoint(jnp.ones(2**14))


@pytest.mark.parametrize("kind", DIGITAL)
@pytest.mark.parametrize("refresh", ["round", "signs"])
def test_fresh_rounds(kind, refresh):
    x, each = vectors(30), projector(kind, 30, 20, 1, refresh=refresh)
    fixed = projector(kind, 30, 20, 1)
    project = jax.jit(lambda count: each.at(count).apply(x))
    first, again, second = project(1), project(jnp.uint32(1)), project(2)
    assert each.fresh_per_round
    assert not fixed.fresh_per_round
    assert fixed.at(1) is fixed
    np.testing.assert_allclose(first, again, atol=1e-12)
    assert np.abs(first - second).max() > 0.01


@pytest.mark.parametrize("kind", ["gaussian", "sparse"])
def test_regions_are_rows_of_one_matrix(kind):
    """And are the first again when all were used."""
    x, part = vectors(30), projector(kind, 30, 5, 1, refresh="region", rows=18)
    whole = jax.jit(projector(kind, 30, 20, 1).apply)(x)
    project = jax.jit(lambda count: part.at(count).apply(x))
    for count in range(7):
        start = 5 * (count % 3)
        np.testing.assert_allclose(project(count), 2 * whole[start : start + 5], rtol=1e-12)


@pytest.mark.parametrize("kind", ["gaussian", "sparse", "hadamard", "count_sketch"])
@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(24, 10), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((32, 10), (24, 80)))],
)
def test_contraction(kind, inputs, outputs):
    """E||A'Ax||^2 = ||x||^2 / delta over 4,000 matrices, within 5 standard errors (false alarms: 6e-7 each)."""
    x = jnp.linspace(-1, 3, inputs)

    def squares(key):
        each = projector(kind, inputs, outputs, key)
        return (each.adjoint(each.apply(x)) ** 2).sum()

    each = projector(kind, inputs, outputs, 0)
    ratios = jax.jit(jax.vmap(squares))(jax.random.split(jax.random.key(1), 4000)) / (x**2).sum()
    assert abs(ratios.mean() - 1 / each.contraction) <= 5 * ratios.std() / np.sqrt(4000) + 1e-12


def test_contractions_in_closed_form():
    assert projector("gaussian", 1000, 100).contraction == pytest.approx(100 / 1101, rel=1e-12)
    assert projector("count_sketch", 1000, 100).contraction == pytest.approx(1 / (1 + 9.99), rel=1e-12)
    assert projector("hadamard", 1024, 128).contraction == pytest.approx(1 / 8, rel=1e-12)
    assert projector("hadamard", 64, 128).contraction == 1
    one = projector("sparse", 1000, 100, density=0.001)
    assert one.contraction == pytest.approx(1 / (1 + 9.99), rel=1e-12)
    with pytest.raises(InvalidInput, match=r"projector.kind: got 'fastfood'"):
        _ = projector("fastfood", 10, 5).contraction


def test_costs_are_those_of_the_formulas():
    rivals = Rivals(optical_unit("LightOn OPU Gen-2"), of_device(device("A100-SXM4-80GB"), 1, 1, 1e9))
    gaussian, task = projector("gaussian", 1000, 500), module.cost.RandomProjection(1000, 500, 8)
    assert gaussian.cost(8, rivals) == dense(task, dataclasses.replace(rivals, matrix="generated"))
    assert gaussian.hold().cost(8, rivals) == dense(task, rivals)
    assert projector("hadamard", 1000, 500).cost(8, rivals) == hadamard(task, rivals)
    assert projector("fastfood", 1000, 500).cost(8, rivals).seconds > hadamard(task, rivals).seconds
    assert projector("count_sketch", 1000, 500).cost(8, rivals) == sparse(task, rivals, 1000)
    assert projector("sparse", 1000, 500, density=0.01).cost(8, rivals) == sparse(task, rivals, 5000)
    assert projector("fourier", 1000, 500).cost(8, rivals) == gaussian.cost(8, rivals)
    # As entries grow, bytes do: 32 of a sector for each and vector, 4 for each.
    few, many = sparse(task, rivals, 10**9), sparse(task, rivals, 2 * 10**9)
    assert many.work_s / few.work_s == pytest.approx(2, rel=1e-3)
    assert many.matrix_bytes == 8e9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gausian", 3, 2), "projector.kind: got 'gausian'.*Did you mean 'gaussian'"),
        (("gaussian", 0, 2), "projector.inputs: got 0"),
        (("gaussian", 3, 0.5), "projector.outputs: got 0.5"),
        (("gaussian", 3, 2, -1), "projector.key: got -1"),
        (("gaussian", 3, 2, 0, {"density": 0.1}), "projector.density: got 0.1.*arguments of gaussian"),
        (("sparse", 3, 2, 0, {"density": 1.5}), "projector.density: got 1.5"),
        (("fourier", 3, 2, 0, {"bandwidth": 0.0}), "projector.bandwidth: got 0.0"),
        (("fourier", 3, 2, 0, {"matrix": "sparse"}), "projector.matrix: got 'sparse'"),
        (("hadamard", 3, 2, 0, {"refresh": "region"}), "projector.refresh: got 'region'.*not rows"),
        (("gaussian", 3, 2, 0, {"refresh": "often"}), "projector.refresh: got 'often'"),
        (("gaussian", 3, 9, 0, {"refresh": "region", "rows": 8}), "projector.outputs: got 9.*8 rows"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    *arguments, named = (*arguments, {}) if not isinstance(arguments[-1], dict) else arguments
    with pytest.raises(InvalidInput, match=message):
        projector(*arguments, **named)


def test_vectors_of_another_size_are_refused():
    each = projector("hadamard", 5, 3)
    with pytest.raises(InvalidInput, match=r"projector.x: got \(6,\); allowed: \(..., 5\)"):
        each.apply(jnp.ones(6))
    with pytest.raises(InvalidInput, match=r"projector.y: got \(5,\)"):
        each.adjoint(jnp.ones(5))


# -- by light --------------------------------------------------------------------------------------------------------------

IDEAL_UNIT = {"device_id": 0, "key": 1, "inputs": 48, "outputs": 400, "camera": IDEAL}


TWELVE_BITS = BitPlanes(12)


def on_unit(mode="anchor", outputs=400, code=TWELVE_BITS, **arguments):
    unit = arguments.pop("unit", OpticalUnit(**IDEAL_UNIT))
    return projector("optical", 48, outputs, 1, unit=unit, encoder=code, mode=mode, follow=True, **arguments)


@pytest.mark.parametrize("mode", ["anchor", "four_phase", "off_axis"])
def test_linear_modes_are_linear_and_unbiased(mode):
    """Up to 12 bits, and 2 % of the pixels that an anchor leaves dark; squared norms over 400 rows within 5 standard errors."""
    x, z = vectors(2, 48)
    each = on_unit(mode, refresh="signs").at(3)
    (of_x, of_z, both) = jax.jit(lambda: each.apply(jnp.stack([x, z, 2 * x - z])))()
    assert np.abs(both - (2 * of_x - of_z)).max() < 0.01 * np.abs(both).max()
    assert float((of_x**2).sum() / (x**2).sum()) == pytest.approx(1, abs=0.02 + 5 * np.sqrt(2 / 400))
    assert of_x.dtype == jnp.float64
    assert each.is_linear
    assert not each.has_adjoint


def test_a_calibrated_unit_has_a_transpose():
    """Its own outputs are those of the matrix that its adjoint uses, dark pixels apart; of a four-phase one nobody knows it."""
    each = on_unit(refresh="signs").at(2)
    with pytest.raises(NotCalibrated, match=r"cannot be set, read or transposed.*48 x 400 numbers"):
        each.adjoint(jnp.ones(400))
    known = each.calibrated()
    assert known.has_adjoint
    assert not dataclasses.replace(known, mode="four_phase").has_adjoint
    matrix = jax.jit(known.adjoint)(jnp.eye(400))
    x = vectors(48)
    y = jax.jit(known.apply)(x)
    lit = np.abs(y) > 0
    assert 0.95 < lit.mean() < 1
    np.testing.assert_allclose(y[lit], (matrix @ x)[lit], atol=2e-3 * float(jnp.linalg.norm(x)))


@pytest.mark.slow
def test_a_measured_calibration_will_do():
    each = on_unit(unit=OpticalUnit(**IDEAL_UNIT).calibrate())
    assert each.has_adjoint
    exact, measured = (jax.jit(a.adjoint)(jnp.eye(400)) for a in (on_unit().calibrated(), each))
    np.testing.assert_allclose(measured, exact, atol=2e-3)


@pytest.mark.slow
def test_regions_of_a_camera():
    """Are rows of the unit, in intensity and linear modes; calibrated or not."""
    x, bits = vectors(48), vectors(48) > 0
    for mode, code, given in (("intensity", None, bits), ("anchor", BitPlanes(12), x)):
        whole = on_unit(mode, code=code)
        part = on_unit(mode, 100, code, refresh="region")
        scale = 1 if code is None else 2
        for count in (1, 6):
            start = 100 * (count % 4)
            seen = jax.jit(lambda count, part=part, given=given: part.at(count).apply(given))(count)
            np.testing.assert_allclose(
                seen, scale * whole.apply(given)[start : start + 100], rtol=1e-4, atol=1e-4
            )
    known = part.at(2).calibrated()
    y = vectors(100)
    expected = 2 * on_unit().calibrated().adjoint(jnp.zeros(400).at[200:300].set(y))
    np.testing.assert_allclose(known.adjoint(y), expected, rtol=1e-4, atol=1e-4)


def test_intensities_are_not_linear():
    """They are blind to the sign of a sum of mirrors' fields, and have neither transpose nor contraction."""
    each = on_unit("intensity", code=None)
    bits = vectors(48) > 0
    np.testing.assert_array_equal(each.apply(bits), OpticalUnit(**IDEAL_UNIT).intensity(bits))
    np.testing.assert_array_equal(each.hold().apply(bits[None])[0] > 0, True)
    assert not each.is_linear
    assert not each.has_adjoint
    with pytest.raises(InvalidInput, match=r"no linear map of x, and has no transpose"):
        each.adjoint(jnp.ones(400))
    with pytest.raises(InvalidInput, match=r"no linear map"):
        _ = each.contraction
    one_bit = on_unit("anchor", code=Threshold(0.0))
    assert not one_bit.is_linear
    np.testing.assert_allclose(
        one_bit.apply(vectors(48)), on_unit("anchor", code=None).apply(bits), rtol=1e-6
    )


def test_signed_numbers_take_twice_the_frames():
    rivals = Rivals(optical_unit("LightOn OPU Gen-3"), of_device(device("A100-SXM4-80GB"), 1, 1, 1e9))
    binary, planes = on_unit(code=None).cost(10, rivals), on_unit(code=BitPlanes(6)).cost(10, rivals)
    unsigned = on_unit(code=BitPlanes(6, negative_scale=0)).cost(10, rivals)
    # Rivals of |H x|^2 have two real products to do.
    assert "real rows" in repr(binary)
    assert "complex rows" in repr(on_unit(code=None, mode="intensity").cost(10, rivals))
    assert planes.work_s == pytest.approx(2 * unsigned.work_s) == pytest.approx(12 * binary.work_s)
    # 2 frames of 0.5 ms: of the unit it is, not of the rivals'.
    assert binary.work_s == pytest.approx(10 * 2 / 2000)
    assert on_unit(code=Ternary()).cost(10, rivals).work_s == pytest.approx(2 * binary.work_s)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "intensity"}, r"decode: got 'intensities.*sum_p w_p \|H b_p\|\^2 is not \|H x\|\^2"),
        ({"refresh": "round"}, r"projector.refresh: got 'round'.*scatterer's"),
        ({"refresh": "signs", "code": Threshold(0.0)}, r"projector.encoder.*-1 needs planes of its own"),
        ({"outputs": 401}, r"projector.outputs: got 401.*at most the 400 outputs \(pixels\)"),
        ({"code": Thermometer((0.0, 1.0))}, r"projector.unit: got '48 inputs'.*96"),
        ({"mode": "phase"}, r"mode: got 'phase'"),
        ({"unit": "mine"}, r"projector.unit: got 'mine'"),
        ({"first": 398}, r"projector.first: got 398"),
    ],
)
def test_a_unit_refuses(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        on_unit(**arguments)


def test_no_unit_is_so_large():
    with pytest.raises(InvalidInput, match=r"outputs: got 3000000.*pixels"):
        projector("optical", 10, 3_000_000)
    with pytest.raises(InvalidInput, match=r"inputs: got 2000000.*1,039,680 mirrors"):
        projector("optical", 2_000_000, 10)


# -- what sketches say -----------------------------------------------------------------------------------------------------


def test_sketches_know_the_consensus_distance():
    """Of 6 vectors by one Gaussian matrix: 400 matrices, within 5 standard errors (false alarms: 6e-7 each)."""
    x = vectors(6, 40)

    def estimates(key):
        y = projector("gaussian", 40, 20, key).apply(x)
        return sketches.consensus_distance(y, [0] * 6), sketches.squared_distances(y, [0] * 6)[0, 3]

    found = jax.jit(jax.vmap(estimates))(jax.random.split(jax.random.key(0), 400))
    exact = ((x - x.mean(0)) ** 2).sum(1).mean(), ((x[0] - x[3]) ** 2).sum()
    for values, expected in zip(found, exact, strict=True):
        assert abs(values.mean() - expected) < 5 * values.std() / np.sqrt(400)


def test_sketches_of_two_units_have_only_norms_in_common():
    """E||Ax - Bx||^2 = 2 ||x||^2, so that differences are refused."""
    x = vectors(48)
    one, other = (
        on_unit("four_phase", unit=OpticalUnit(**IDEAL_UNIT | {"device_id": device})).apply(x)
        for device in (0, 1)
    )
    pair = jnp.stack([one, other])
    norms = sketches.squared_norms(pair) / (x**2).sum()
    np.testing.assert_allclose(norms, 1, atol=5 * np.sqrt(2 / 400))
    assert float(((one - other) ** 2).sum() / (x**2).sum()) == pytest.approx(2, abs=10 * np.sqrt(2 / 400))
    for function in (sketches.squared_distances, sketches.consensus_distance):
        with pytest.raises(InvalidInput, match=r"units: got \['0', '1'\].*nothing in common"):
            function(pair, (0, 1))
        with pytest.raises(InvalidInput, match=r"units: got '3 for sketches"):
            function(pair, (0, 0, 0))


def test_a_code_is_no_name_and_a_unit_is_no_label():
    with pytest.raises(InvalidInput, match=r"projector\.encoder"):
        projector("optical", 10, 4, 0, encoder="ternary")
    unit = OpticalUnit(0, 0, 10, 4)
    with pytest.raises(InvalidInput, match="device_id"):
        squared_distances(np.ones((2, 4)), [unit, unit])
