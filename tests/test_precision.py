"""Rounded operands: bit for bit those of NumPy with ml_dtypes, in all three products of a layer, whatever maps over them."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from decentral.errors import InvalidInput
from decentral.experiment.run import run
from decentral.experiment.spec import load_spec
from decentral.problem import PROBLEMS, models
from decentral.problem.precision import PRECISIONS, fp8_tensor, mxfp8, product

KEY = jax.random.key(0)
ROUNDED = PRECISIONS[1:]
LARGE = ("transformer", "moe")
blockwise = jax.jit(mxfp8, static_argnums=1)
LANGUAGE = {"vocabulary": 4, "order": 1, "length": 6, "sequences": 64, "test_sequences": 16, "width": 8}
SMALL = {
    "mlp": {"data": "clusters", "hidden": (8,)},
    "transformer": LANGUAGE | {"blocks": 1},
    "moe": LANGUAGE | {"experts": 3, "expert_width": 4},
}


# -- the same in NumPy, value by value or block by block -----------------------------------------------------------------


def e4m3(x):
    return np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)


def block_by_block(x, axis):
    """MXFP8, with the exponent from ``frexp`` and scales in float64."""
    x = np.moveaxis(np.asarray(x, np.float32), axis, -1)
    out = np.zeros_like(x)
    for row, start in itertools.product(np.ndindex(x.shape[:-1]), range(0, x.shape[-1], 32)):
        block = x[row][start : start + 32]
        if not np.isfinite(block).all():
            out[row][start : start + 32] = np.nan
        elif np.abs(block).max() > 0:
            exponent = max(int(np.frexp(np.float64(np.abs(block).max()))[1]) - 1 - 8, -126)
            scale = 2.0**exponent
            out[row][start : start + 32] = e4m3((block / scale).astype(np.float32)) * scale
    return np.moveaxis(out, -1, axis)


def whole(x, dtype, largest):
    scale = np.float32(np.abs(x).max()) / np.float32(largest)
    return np.clip(x / scale, -largest, largest).astype(dtype).astype(np.float32) * scale


REFERENCE = {
    "bfloat16": [lambda x, axis: x.astype(ml_dtypes.bfloat16).astype(np.float32)] * 2,
    "mxfp8": [block_by_block] * 2,
    "fp8_tensor": [
        lambda x, axis: whole(x, ml_dtypes.float8_e4m3fn, 448),
        lambda x, axis: whole(x, ml_dtypes.float8_e5m2, 57344),
    ],
}


def by_hand(precision, x, weight, slope):
    """Output, dgrad and wgrad from rounded operands; sums in float64."""
    value, grade = (lambda a, axis, f=f: f(a, axis).astype(np.float64) for f in REFERENCE[precision])
    return (
        value(x, 1) @ value(weight, 0),
        grade(slope, 1) @ value(weight, 1).T,
        value(x, 0).T @ grade(slope, 0),
    )


def normal(*shape, seed=0, spread=3.0):
    """Values over many binades."""
    rng = np.random.default_rng([seed, *shape])
    return (rng.normal(size=shape) * np.exp2(rng.normal(scale=spread, size=shape))).astype(np.float32)


def close(got, expected):
    """To float32's rounding of sums: the products of rounded operands are exact."""
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


# -- MXFP8 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 64), (2, 33, 5)])
@pytest.mark.parametrize("axis", [-1, -2])
def test_blocks_are_those_of_ml_dtypes_bit_for_bit(shape, axis):
    x = normal(*shape)
    got = np.asarray(blockwise(x, axis))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), block_by_block(x, axis).view(np.uint32))
    np.testing.assert_array_equal(blockwise(got, axis), got)  # what is rounded stays


def test_every_exponent_and_every_tie():
    """In a block whose maximum fixes the scale at 1: all e4m3 numbers, what is half-way between them, and its neighbours."""
    grid = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    grid = np.sort(grid[np.isfinite(grid)])
    half = (grid[1:] + grid[:-1]) / 2
    up, down = (np.nextafter(half, np.float32(end)) for end in (np.inf, -np.inf))
    x = np.concatenate([grid, half, up, down])
    blocks = np.concatenate([np.full((len(x), 1), 256, np.float32), x[:, None]], axis=1)
    np.testing.assert_array_equal(blockwise(blocks, -1)[:, 1], e4m3(x))
    powers = np.exp2(np.arange(-126, 128)).astype(np.float32)
    with np.errstate(over="ignore"):
        several = powers[:, None] * np.float32([1, 1.8125, -1.25, 2**-9, 2**-17])
        expected = block_by_block(several, -1)
    # XLA takes what is below 2^-126 for zeros
    expected[np.abs(expected) < 2.0**-126] = 0
    np.testing.assert_array_equal(blockwise(several, -1), expected)


def rounded(*values):
    """A block of these and zeros."""
    block = np.zeros(32, np.float32)
    block[: len(values)] = values
    return np.asarray(blockwise(block, -1))[: len(values)].tolist()


def test_known_values():
    assert rounded(448, 449, 3, 0.1) == [448, 448, 3, 0.1015625]  # scale 1: 0.1 = 12.8 of 2^-7, steps of 2^-7
    assert rounded(511.9, -480) == [448, -448]  # saturated by up to an eighth
    assert rounded(512, 449, 1) == [512, 448, 1]  # scale 2
    assert rounded(3) == [3]
    assert rounded(1, 2**-14.0) == [1, 2**-14.0]  # 2^-6 of the scale 2^-8: the smallest normal number
    assert rounded(1, 2**-17.0, 2**-18.0, 1.001 * 2**-18) == [
        1,
        2**-17,
        0,
        2**-17,
    ]  # subnormal; a tie goes to even
    assert rounded(17, 19) == [16, 20]  # ties to even
    assert rounded(0, 0, -0.0) == [0, 0, 0]
    assert rounded(1e-40, -1e-40) == [0, 0]
    assert rounded(2.0**127, 1) == [2.0**127, 0]
    for bad in (np.nan, np.inf, -np.inf):
        assert np.isnan(rounded(bad, 1)).all()


def test_other_blocks_do_not_notice():
    x = normal(1, 96)
    for bad in (np.inf, 1e30):
        y = x.copy()
        y[0, 40] = bad
        same = np.asarray(blockwise(y, -1))[0, [*range(32), *range(64, 96)]]
        np.testing.assert_array_equal(same, np.asarray(blockwise(x, -1))[0, [*range(32), *range(64, 96)]])


def test_errors_are_within_half_a_step():
    x = normal(400, 32, spread=1.0)
    error = np.abs(np.asarray(blockwise(x, -1)) - x) / np.abs(x)
    top = np.exp2(np.floor(np.log2(np.abs(x).max(1, keepdims=True))))
    ordinary = (np.abs(x) >= top * 2.0**-14) & (np.abs(x) <= 1.75 * top)
    assert ordinary.mean() > 0.9
    assert 0.9 * 2**-4 < error[ordinary].max() <= 2**-4
    saturated = np.abs(x) > 1.8125 * top
    assert 2**-4 < error[saturated].max() <= 2**-3


# -- the other two -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "largest"), [("float8_e4m3fn", 448), ("float8_e5m2", 57344)])
def test_one_scale_for_a_matrix(dtype, largest):
    x = normal(40, 9)
    matrixwise = jax.jit(lambda x: fp8_tensor(x, -1, getattr(jnp, dtype)))
    # not bit for bit: XLA divides by a quotient in another order
    np.testing.assert_allclose(matrixwise(x), whole(x, getattr(ml_dtypes, dtype), largest), rtol=1e-6)
    assert not np.asarray(matrixwise(0 * x)).any()
    x[3, 4] = np.inf
    assert np.isnan(matrixwise(x)).all()


# -- products ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize("sizes", [(64, 32, 96), (5, 40, 3)])
def test_all_three_products_have_rounded_operands(precision, sizes):
    rows, inputs, outputs = sizes
    x, weight, slope = normal(rows, inputs), normal(inputs, outputs), normal(rows, outputs)
    multiply = product(precision)

    @jax.jit
    def all_three(x, weight, slope):
        y, back = jax.vjp(multiply, x, weight)
        return y, *back(slope)

    got, expected = all_three(x, weight, slope), by_hand(precision, x, weight, slope)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == np.float32
        close(a, b)
    exact = np.float64(x).T @ slope
    assert np.abs(got[2] - exact).max() > 1e-3 * np.abs(exact).max()


@pytest.mark.parametrize(
    "precision",
    ["mxfp8", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bfloat16", "fp8_tensor"))],
)
def test_samples_of_a_batch_are_one_matrix_and_experts_and_workers_are_not(precision):
    """As in a run: workers outside the gradient, samples inside it, experts inside the model; 7 tokens fill no block."""
    workers, samples, tokens, experts = 2, 6, 7, 3
    x, weight = normal(workers, samples, tokens, 5), normal(workers, experts, 5, 4)
    slope = normal(samples, tokens, experts, 4)
    multiply = product(precision)

    def loss(weight, x):
        y = jax.vmap(lambda one: jax.vmap(lambda w: multiply(one, w), out_axes=1)(weight))(x)
        return jnp.sum(y * slope)

    @jax.jit
    def everything(weight, x):
        first, one = weight[0, 0], x[0]
        own = jax.vmap(jax.grad(lambda w, one, s: jnp.sum(multiply(one, w) * s)), (None, 0, 0))
        forward = jax.vmap(multiply, (0, None))(one, first)
        return *jax.vmap(jax.grad(loss, (0, 1)))(weight, x), forward, own(first, one, slope[:, :, 0])

    to_weight, to_x, forward, own = everything(weight, x)
    for i in range(workers):
        total = 0
        for e in range(experts):
            flat = x[i].reshape(-1, 5), weight[i, e], slope[:, :, e].reshape(-1, 4)
            _, dgrad, wgrad = by_hand(precision, *flat)
            close(to_weight[i, e], wgrad)
            total = total + dgrad
        close(to_x[i].reshape(-1, 5), total)
    close(forward.reshape(-1, 4), by_hand(precision, x[0].reshape(-1, 5), weight[0, 0], np.ones((42, 4)))[0])
    # each sample's own gradient: they add up to that of the batch
    assert np.ptp(own, axis=0).max() > 0
    close(own.sum(0), to_weight[0, 0])


def test_slopes_one_at_a_time_or_side_by_side():
    x, weight, slopes = normal(32, 8), normal(8, 4), normal(3, 32, 4)
    together = jax.jit(lambda slopes: jax.vmap(jax.vjp(product("mxfp8"), x, weight)[1])(slopes))(slopes)
    for i, slope in enumerate(slopes):
        for a, b in zip(together, by_hand("mxfp8", x, weight, slope)[1:], strict=True):
            close(a[i], b)


def test_a_vector_is_a_row():
    x, weight = normal(40), normal(40, 3)
    close(jax.jit(product("mxfp8"))(x, weight), block_by_block(x, 0) @ block_by_block(weight, 0))


def test_in_a_loop_and_in_float64():
    x, weight = normal(4, 6, 8), normal(8, 3)
    multiply = product("mxfp8")

    def one(carry, sample):
        gradient = jax.grad(lambda w: jnp.sum(multiply(sample, w) ** 2))(weight)
        return carry + gradient, None

    total, _ = jax.jit(lambda x: jax.lax.scan(one, jnp.zeros_like(weight), x))(x)
    outputs = [by_hand("mxfp8", sample, weight, np.zeros((6, 3)))[0] for sample in x]
    close(
        total, sum(by_hand("mxfp8", a, weight, 2 * np.float32(y))[2] for a, y in zip(x, outputs, strict=True))
    )
    wide = jax.jit(multiply)(jnp.asarray(x[0], jnp.float64), jnp.asarray(weight, jnp.float64))
    assert wide.dtype == np.float64
    np.testing.assert_allclose(wide, outputs[0], rtol=1e-14)


# -- problems ------------------------------------------------------------------------------------------------------------


def make(kind, **options):
    return PROBLEMS[kind](2, **SMALL[kind] | {"batch_size": 4} | options)


def some_params(init):
    """Without compiling what draws them: centred for a fan-in of about 16."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: np.float32(0.25 * rng.normal(size=leaf.shape)), jax.eval_shape(init, KEY)
    )


def test_by_default_nothing_is_rounded():
    assert product("float32") is jnp.matmul
    programs = []
    for options in ({}, {"precision": "float32"}, {"precision": "bfloat16"}):
        problem = make("moe", **options)
        row = jax.tree.map(lambda leaf: leaf[0], problem.shards)
        start = jax.eval_shape(problem.initial, KEY)
        programs.append(str(jax.make_jaxpr(problem.full_gradient)(start, row)))
    assert programs[0] == programs[1] != programs[2]
    assert "custom_vjp" not in programs[0]


@pytest.mark.parametrize("kind", ["mlp", *(pytest.param(kind, marks=pytest.mark.slow) for kind in LARGE)])
def test_gradients_are_a_little_different(kind):
    problems = [make(kind, precision=precision) for precision in PRECISIONS]
    batch = jax.tree.map(lambda leaf: leaf[0, :16], problems[0].shards["samples"])

    @jax.jit
    def gradients(params):
        def of(problem):
            return jax.grad(lambda x: jnp.mean(jax.vmap(problem.sample_loss, (None, 0))(x, batch)))(params)

        return [ravel_pytree(of(problem))[0] for problem in problems]

    exact, *others = gradients(some_params(problems[0].initial))
    apart = [float(jnp.linalg.norm(other - exact) / jnp.linalg.norm(exact)) for other in others]
    errors = dict(zip(ROUNDED, apart, strict=True))
    assert 1e-4 < errors["bfloat16"] < 0.02
    for precision in ("mxfp8", "fp8_tensor"):
        assert 4 * errors["bfloat16"] < errors[precision] < 0.4  # where a ReLU opens or closes it is a lot


def test_only_the_linear_layers_are_rounded():
    """Logits, norms, attention, embeddings and the router see what they saw."""
    _, routed = models.moe(4, 6, width=8, experts=3, expert_width=4, precision="mxfp8")
    model, plain = models.moe(4, 6, width=8, experts=3, expert_width=4)
    params = some_params(model.init)
    layers = params["blocks"][0]
    for part in (layers["mix"], layers["out"], layers["feed_forward"]["in"], layers["feed_forward"]["out"]):
        part["weight"] *= 0  # zeros are exact
    x = jnp.array([0, 1, 2, 3, 0, 1])
    both = jax.jit(lambda *a: (routed(*a), plain(*a)))(params, x)
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_wrong_name_is_refused_with_the_right_ones():
    with pytest.raises(
        InvalidInput, match=r"problem\.precision: got 'mxfp9'; allowed: .*Did you mean 'mxfp8'\?"
    ):
        make("moe", precision="mxfp9")
    with pytest.raises(InvalidInput, match=r"problem\.precision: got 8;"):
        product(8)  # pyright: ignore


def test_specs_know_it(tmp_path):
    spec = load_spec("cost/moe_precision", smoke=True, overrides=["problem.precision=mxfp8"])
    assert (spec.problem.kind, spec.problem.precision) == ("moe", "mxfp8")
    with pytest.raises(InvalidInput, match=r"problem\.precision: got 'fp4'; allowed"):
        run("cost/moe_precision", smoke=True, overrides=["problem.precision=fp4"], out=tmp_path / "run")
