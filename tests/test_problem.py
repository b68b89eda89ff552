"""Problems: gradients, curvature, minimisers, samples, partitions, and what is refused.

Statistical tests have fixed seeds; their false-alarm rate for another seed is stated.
"""

from __future__ import annotations

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from decentral.errors import InvalidInput, MissingExtra
from decentral.problem import (
    PROBLEMS,
    Problem,
    Quadratic,
    breast_cancer,
    digits,
    from_loss,
    gradient_noise,
    heterogeneity,
    least_squares,
    least_squares_from_arrays,
    logistic,
    logistic_from_arrays,
    noise_table_from_events,
    quadratic,
    softmax_from_arrays,
    stack_shards,
)
from decentral.problem.partition import partition

jax.config.update("jax_enable_x64", True)

KEY = jax.random.key(0)
# digits has 650 parameters: its Hessians are for the slow tests, those of a small softmax for the others
WITH_HESSIAN = [
    *("quadratic", "least_squares", "logistic", "softmax"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("breast_cancer", "digits")),
]
# the convex problems; tests/test_neural.py has the networks
SMALL = {
    "quadratic": {"d": 4},
    "least_squares": {"d": 4, "samples_per_worker": 12},
    "logistic": {"d": 4, "samples_per_worker": 12, "l2": 0.3},
    "breast_cancer": {"partition": "dirichlet", "alpha": 2.0},
    "digits": {"partition": "dirichlet", "alpha": 2.0},
}


def small(name: str, n: int = 5, **options) -> Problem:
    return PROBLEMS[name](n, **SMALL[name] | options)


def softmax(n: int = 5, **options) -> Problem:
    """The model of digits, small."""
    rng = np.random.default_rng(2)
    features, labels = rng.normal(size=(n, 9, 4)), rng.integers(0, 3, (n, 9))
    return softmax_from_arrays(features, labels, classes=3, l2=0.1, **options)


def build(name: str, **options) -> Problem:
    return (
        {"mlp": mlp, "softmax": softmax}[name](**options)
        if name in ("mlp", "softmax")
        else small(name, **options)
    )


def row(problem: Problem, worker: int):
    return jax.tree.map(lambda leaf: leaf[worker], problem.shards)


def somewhere(problem: Problem, seed: int = 0):
    """Random parameters of the problem's shape."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(problem.initial, KEY)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)


def objective(problem: Problem, x):
    return jax.jit(lambda x, shards: jnp.mean(jax.vmap(problem.loss, (None, 0))(x, shards)))(
        x, problem.shards
    )


def mlp(n: int = 3, m: int = 6, dtype: str = "float64", **options) -> Problem:
    """A network of one's own: a dict of parameters, two-dimensional samples."""
    rng = np.random.default_rng(3)
    params = {"w": rng.normal(size=(2, 8)), "b": np.zeros(8), "out": rng.normal(size=8)}
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    inputs = rng.normal(size=(n, m, 2))
    data = {"x": inputs, "y": np.sin(inputs[..., 0])}
    return Problem.from_loss(mlp_loss, params, data, **options)


def mlp_loss(params, sample):
    hidden = jnp.tanh(sample["x"] @ params["w"] + params["b"])
    return (hidden @ params["out"] - sample["y"]) ** 2


# ---------------------------------------------------------------------------------------------- gradients and losses


@pytest.mark.parametrize("name", [*SMALL, "mlp"])
def test_full_gradient_is_the_slope_of_the_loss(name):
    problem = build(name)
    x, shard = somewhere(problem), row(problem, 1)
    flat, unravel = ravel_pytree(x)
    direction = np.random.default_rng(1).normal(size=flat.size)
    step = 1e-5
    ends = [jax.jit(problem.loss)(unravel(flat + sign * step * direction), shard) for sign in (1, -1)]
    slope = ravel_pytree(problem.full_gradient(x, shard))[0] @ direction
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_without_noise_the_gradient_is_the_full_one_of_the_right_worker(name):
    problem = small(name)
    x = somewhere(problem)
    for worker in (0, 4):
        got = jax.jit(problem.gradient)(x, problem.shards, jnp.int32(worker), KEY, jnp.uint32(7))
        np.testing.assert_allclose(
            got, jax.jit(problem.full_gradient)(x, row(problem, worker)), rtol=1e-12, atol=1e-14
        )
    assert not problem.is_stochastic


@pytest.mark.parametrize("ndim", [3, 2, 1])
def test_quadratic_matches_its_formula(ndim):
    rng = np.random.default_rng(0)
    n, d = 3, 4
    full = rng.normal(size=(n, d, d))
    full = full @ full.swapaxes(1, 2)
    diagonal, scalar, eye = rng.uniform(1, 2, (n, d)), rng.uniform(1, 2, n), np.eye(d)
    given_, dense = {
        3: (full, full),
        2: (diagonal, diagonal[:, None] * eye),
        1: (scalar, scalar[:, None, None] * eye),
    }[ndim]
    centres, x = rng.normal(size=(n, d)), rng.normal(size=d)
    problem = Quadratic.of(given_, centres)
    for i in range(n):
        away = x - centres[i]
        np.testing.assert_allclose(problem.loss(x, row(problem, i)), away @ dense[i] @ away / 2, rtol=1e-12)
        np.testing.assert_allclose(problem.full_gradient(x, row(problem, i)), dense[i] @ away, rtol=1e-12)
    eigenvalues = np.linalg.eigvalsh(dense)
    np.testing.assert_allclose([problem.mu, problem.L], [eigenvalues.min(), eigenvalues.max()], rtol=1e-12)
    best = np.linalg.solve(dense.sum(0), np.einsum("nij,nj->i", dense, centres))
    np.testing.assert_allclose(problem.optimum, best, rtol=1e-12)


def test_linear_models_match_their_formulas():
    rng = np.random.default_rng(0)
    a, b, x = rng.normal(size=(2, 6, 3)), rng.choice([-1.0, 1.0], (2, 6)), rng.normal(size=3)
    squares = least_squares_from_arrays(a, b)
    np.testing.assert_allclose(squares.loss(x, row(squares, 1)), np.mean((a[1] @ x - b[1]) ** 2), rtol=1e-12)
    np.testing.assert_allclose(
        jax.jit(squares.full_gradient)(x, row(squares, 1)), 2 / 6 * a[1].T @ (a[1] @ x - b[1]), rtol=1e-12
    )
    log = logistic_from_arrays(a, b, l2=0.7)
    margin = b[1] * (a[1] @ x)
    np.testing.assert_allclose(
        jax.jit(log.loss)(x, row(log, 1)), np.mean(np.log1p(np.exp(-margin))) + 0.35 * x @ x, rtol=1e-12
    )
    np.testing.assert_allclose(
        jax.jit(log.full_gradient)(x, row(log, 1)),
        -(b[1] / (1 + np.exp(margin))) @ a[1] / 6 + 0.7 * x,
        rtol=1e-12,
    )
    far = 1e4 * x  # no overflow far away
    assert np.isfinite(log.loss(far, row(log, 0)))
    assert np.isfinite(log.full_gradient(far, row(log, 0))).all()


def test_softmax_of_two_classes_is_logistic_regression():
    rng = np.random.default_rng(0)
    a, labels = rng.normal(size=(2, 6, 3)), rng.integers(0, 2, (2, 6))
    softmax = softmax_from_arrays(a, labels, classes=2, l2=0.0, held_out=(a[0], labels[0]))
    log = logistic_from_arrays(a, 2 * labels - 1, l2=0.0, held_out=(a[0], 2 * labels[0] - 1))
    x = rng.normal(size=3)
    both = jnp.stack([jnp.zeros(3), x], axis=1)
    np.testing.assert_allclose(
        softmax.loss(both, row(softmax, 1)), jax.jit(log.loss)(x, row(log, 1)), rtol=1e-12
    )
    for key in ("loss", "accuracy"):
        np.testing.assert_allclose(
            jax.jit(softmax.evaluate)(both, softmax.held_out)[key],
            jax.jit(log.evaluate)(x, log.held_out)[key],
            rtol=1e-12,
        )
    right = np.mean((a[0] @ x > 0) == labels[0])
    assert jax.jit(softmax.evaluate)(both, softmax.held_out)["accuracy"] == pytest.approx(right)


@pytest.mark.parametrize("name", SMALL)
def test_no_implicit_promotion_and_the_dtype_asked_for(name):
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for dtype in ("float32", "float64"):
            options = {"noise": 0.1} if name == "quadratic" else {"batch_size": 3}
            problem = small(name, dtype=dtype, **options)
            out = jax.eval_shape(
                lambda key, p=problem: [
                    p.initial(key),
                    p.gradient(p.initial(key), p.shards, jnp.int32(1), key, jnp.uint32(0)),
                    p.loss(p.initial(key), row(p, 0)),
                    p.evaluate(p.initial(key), p.held_out),
                    p.train_metrics(p.initial(key), row(p, 0)),
                ],
                KEY,
            )
            assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {np.dtype(dtype)} == {problem.dtype}


def test_train_accuracy_adds_up_over_unequal_shards():
    problem = small("digits")
    x = jnp.asarray(np.random.default_rng(0).normal(size=(65, 10)))
    right, total = jax.vmap(problem.train_metrics, (None, 0))(x, problem.shards)["accuracy"]
    counts = np.asarray(problem.shards["count"])
    expected = 0
    for i, m in enumerate(counts):
        features = np.asarray(problem.shards["samples"]["features"][i, :m])
        target = np.asarray(problem.shards["samples"]["target"][i, :m])
        expected += np.sum((features @ x).argmax(1) == target)
    assert total.sum() == counts.sum() == 1797 - 359
    assert right.sum() == expected


# ------------------------------------------------------------------------------------------------------ mini-batches


def test_mini_batches_are_unbiased():
    problem = small("logistic", batch_size=3)
    x, draws = somewhere(problem), 20_000
    keys = jax.random.split(jax.random.key(5), draws)
    grads = jax.vmap(lambda k: jax.jit(problem.gradient)(x, problem.shards, jnp.int32(2), k, jnp.uint32(0)))(
        keys
    )
    error = grads.mean(0) - jax.jit(problem.full_gradient)(x, row(problem, 2))
    # 4 normal coordinates beyond 5 deviations: false alarms in 2 of a million seeds
    assert (jnp.abs(error) < 5 * grads.std(0) / np.sqrt(draws)).all()
    assert problem.samples_per_gradient == 3


def test_mini_batches_draw_every_own_sample_equally_often_and_no_other():
    data = [np.arange(4.0), 100 + np.arange(7.0)]
    problem = from_loss(lambda x, s: x * s, np.zeros(()), data, batch_size=1)
    draws = 6000
    for worker, own in enumerate(data):
        keys = jax.random.split(jax.random.key(worker), draws)
        got = jax.vmap(
            lambda k, w=worker: jax.jit(problem.gradient)(0.0, problem.shards, jnp.int32(w), k, jnp.uint32(0))
        )(keys)
        values, counts = np.unique(np.asarray(got), return_counts=True)
        np.testing.assert_array_equal(values, own)
        # chi-square with 3 and 6 degrees of freedom: 40 is exceeded once in a million
        assert np.sum((counts - draws / len(own)) ** 2) / (draws / len(own)) < 40


def test_draws_depend_on_the_key_alone():
    single, double = (small("logistic", batch_size=2, dtype=dtype) for dtype in ("float32", "float64"))
    x = somewhere(double)

    def draw(problem, key, worker=1):
        return np.asarray(
            jax.jit(problem.gradient)(
                x.astype(problem.dtype), problem.shards, jnp.int32(worker), key, jnp.uint32(0)
            )
        )

    np.testing.assert_array_equal(draw(double, KEY), draw(double, KEY))
    np.testing.assert_allclose(draw(single, KEY), draw(double, KEY), rtol=1e-5, atol=1e-6)
    with jax.enable_x64(False):
        again = draw(single, KEY)
    np.testing.assert_allclose(again, draw(single, KEY), rtol=1e-6)
    assert np.abs(draw(double, KEY) - draw(double, jax.random.key(1))).max() > 1e-3


# ----------------------------------------------------------------------------------------------- padding and stacking


def log_loss(x, sample):
    return jnp.log(sample[1] ** 2 + (sample[0] @ x) ** 2)  # NaN for a sample of zeros at x = 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=3, max_size=3), st.integers(0, 2**31))
def test_padding_changes_nothing(counts, seed):
    rng = np.random.default_rng(seed)
    data = [(rng.normal(size=(m, 2)), rng.normal(size=m)) for m in counts]
    other = [(rng.normal(size=(8, 2)), rng.normal(size=8))]  # one shape for all examples: one compilation
    problem, longer = (
        from_loss(log_loss, np.zeros(2), d, accuracy=lambda x, s: s[1] > 0) for d in (data, other)
    )
    shards = stack_shards([problem, longer])
    x = jnp.zeros(2) if seed % 2 else jnp.asarray(rng.normal(size=2))
    for i, (a, b) in enumerate(data):
        expected = np.mean(np.log(b**2 + (a @ x) ** 2))
        shard = jax.tree.map(lambda leaf, i=i: leaf[i], shards)
        np.testing.assert_allclose(problem.loss(x, shard), expected, rtol=1e-12, atol=1e-12)
        slope = np.mean(2 * (a @ x)[:, None] * a / (b**2 + (a @ x) ** 2)[:, None], axis=0)
        np.testing.assert_allclose(problem.full_gradient(x, shard), slope, rtol=1e-10, atol=1e-12)
        right, total = problem.train_metrics(x, shard)["accuracy"]
        assert (right, total) == (np.sum(b > 0), len(b))


@pytest.mark.parametrize("name", ["quadratic", "logistic", "digits"])
def test_stacked_problems_keep_their_gradients(name):
    options = {"noise": 0.1} if name == "quadratic" else {"batch_size": 2}
    problems = [small(name, seed=seed, **options) for seed in range(3)]
    shards = stack_shards(problems)
    x = somewhere(problems[0])
    for k, problem in enumerate(problems):
        for worker in (0, 4):
            alone = problem.gradient(x, problem.shards, jnp.int32(worker), KEY, jnp.uint32(0))
            together = problems[0].gradient(x, shards, jnp.int32(5 * k + worker), KEY, jnp.uint32(0))
            np.testing.assert_array_equal(alone, together)


def test_stacking_refuses_what_does_not_fit():
    with pytest.raises(InvalidInput, match="one kind"):
        stack_shards([small("logistic"), small("quadratic")])
    with pytest.raises(InvalidInput, match="one shape"):
        stack_shards([small("logistic"), small("logistic", d=7)])


# ------------------------------------------------------------------------------------------------------ noise tables


def test_recorded_noise_is_read_by_worker_and_count():
    workers, noise = [2, 0, 2, 2], np.arange(8.0).reshape(4, 2)
    table = noise_table_from_events(workers, noise, n=3)
    assert table.shape == (3, 3, 2)
    np.testing.assert_array_equal(table[2], noise[[0, 2, 3]])
    np.testing.assert_array_equal(table[0, 0], noise[1])
    assert np.isnan(table[0, 1:]).all()
    assert np.isnan(table[1]).all()
    problem = Quadratic.of(np.ones(3), np.zeros((3, 2)), noise_table=table)

    def gradient(worker, count):
        return jax.jit(problem.gradient)(
            jnp.zeros(2), problem.shards, jnp.int32(worker), KEY, jnp.uint32(count)
        )

    np.testing.assert_array_equal(gradient(2, 1), noise[2])
    np.testing.assert_array_equal(gradient(0, 0), noise[1])
    # a gradient that was not recorded must not pass unnoticed
    assert np.isnan(gradient(2, 3)).all()
    assert np.isnan(gradient(1, 0)).all()
    assert problem.is_stochastic
    for bad in (dict(workers=[3], noise=noise[:1], n=3), dict(workers=[0], noise=noise, n=3)):
        with pytest.raises(InvalidInput):
            noise_table_from_events(**bad)


def test_stacked_noise_tables_of_unequal_length_still_end_in_nan():
    short, long = (
        Quadratic.of(np.ones(2), np.zeros((2, 1)), noise_table=np.full((2, k, 1), float(k))) for k in (1, 3)
    )
    shards = stack_shards([short, long])
    read = [
        jax.jit(short.gradient)(jnp.zeros(1), shards, jnp.int32(w), KEY, jnp.uint32(c))[0]
        for w, c in [(0, 0), (0, 1), (3, 2)]
    ]
    np.testing.assert_array_equal(read, [1.0, np.nan, 3.0])


# ------------------------------------------------------------------------------------- curvature, minimisers, sigma, zeta


@pytest.mark.parametrize("name", WITH_HESSIAN)
def test_mu_and_L_bound_every_hessian(name):
    problem = build(name)
    hessian = jax.jit(jax.hessian(problem.loss))
    for seed in range(3):
        x = somewhere(problem, seed)
        for worker in range(problem.n_workers):
            h = np.asarray(hessian(x, row(problem, worker))).reshape(x.size, x.size)
            eigenvalues = np.linalg.eigvalsh(h)
            assert eigenvalues[0] >= problem.mu - 1e-9
            assert eigenvalues[-1] <= problem.L * (1 + 1e-9)


def test_mu_and_L_are_reached():
    # quadratics everywhere; the logistic loss at 0, so that leaving l2 out of L, as the authors do, would show
    for name, x in (("least_squares", np.ones(4)), ("quadratic", np.ones(4)), ("logistic", np.zeros(4))):
        problem = small(name)
        hessians = jax.jit(jax.vmap(jax.hessian(problem.loss), (None, 0)))
        eigenvalues = np.linalg.eigvalsh(hessians(x, problem.shards))
        np.testing.assert_allclose(problem.L, eigenvalues.max(), rtol=1e-10)
        if name != "logistic":
            np.testing.assert_allclose(problem.mu, eigenvalues.min(), rtol=1e-10)
    assert small("logistic").mu == 0.3
    known = quadratic(3, d=5, condition_number=50.0)
    np.testing.assert_allclose([known.mu, known.L], [0.02, 1.0], rtol=1e-12)
    assert small("least_squares", samples_per_worker=3).mu == 0.0


@pytest.mark.parametrize("name", WITH_HESSIAN)
def test_the_gradient_vanishes_at_the_optimum(name):
    problem = build(name)
    x = problem.optimum
    assert jax.tree.leaves(x)[0].dtype == np.float64
    assert np.abs(jax.grad(lambda x: objective(problem, x))(x)).max() < 1e-10
    value = objective(problem, x)
    assert problem.optimal_value == pytest.approx(float(value), rel=1e-12)
    for seed in range(3):
        assert objective(problem, x + 0.01 * somewhere(problem, seed)) > value


def test_the_optimum_is_exact_in_float64_for_a_float32_run_without_x64():
    with jax.enable_x64(False):
        problem = small("logistic", dtype="float32")
        x, value = problem.optimum, problem.optimal_value
    assert x.dtype == np.float64
    double = logistic_from_arrays(
        np.asarray(problem.shards["samples"]["features"], np.float64),
        np.asarray(problem.shards["samples"]["target"]),
        l2=0.3,
    )
    assert np.abs(jax.grad(lambda x: objective(double, x))(x)).max() < 1e-13
    assert value == pytest.approx(double.optimal_value, rel=1e-13)


def test_no_optimum_where_there_is_none_or_many():
    assert small("logistic", n=1, samples_per_worker=2, l2=0.0).optimum is None  # separable
    assert small("least_squares", n=1, samples_per_worker=3).optimum is None  # fewer samples than unknowns
    assert Quadratic.of(np.array([[1.0, 0.0]]), np.zeros((1, 2))).optimum is None
    assert mlp().optimum is None
    assert mlp().optimal_value is None
    assert (mlp().mu, mlp().L) == (None, None)


def test_newton_halves_steps_that_are_too_long():
    # Newton on sqrt(1 + u^2) maps u to -u^3: from x = 0, u = -2, plain steps run away
    problem = from_loss(lambda x, s: jnp.sqrt(1 + (x - s) ** 2), np.zeros(()), np.full((2, 1), 2.0), mu=0.0)
    assert problem.optimum == pytest.approx(2.0, rel=1e-12)


def test_recorded_constants_and_minimisers(recorded_dir):
    runs = json.loads((recorded_dir / "runs.json").read_text())["runs"]
    seen = 0
    for name, run in runs.items():
        path = recorded_dir / f"{name}.npz"
        if not path.exists():
            continue
        arrays = np.load(path)
        if "D" in arrays:
            linear = run["task"] == "linear"
            build = least_squares_from_arrays if linear else logistic_from_arrays
            problem = build(arrays["D"], arrays["b"][..., 0])
            assert problem.mu == pytest.approx(run["mu"], rel=1e-11)
            # the authors' L of the logistic loss is that of the mean ||a||^2, without l2
            squares = (np.asarray(arrays["D"]) ** 2).sum(-1).mean(1).max() / 4
            assert (problem.L if linear else max(squares, run["mu"])) == pytest.approx(run["L"], rel=1e-11)
            if "fstar" in run:
                assert problem.optimal_value == pytest.approx(run["fstar"], rel=1e-12)
        else:
            problem = Quadratic.of(arrays["A"], arrays["c"])
        np.testing.assert_allclose(problem.optimum, arrays["xstar"], rtol=1e-11, atol=1e-12)
        seen += 1
    assert seen >= 8


def test_gradient_noise():
    d, sigma = 10, 0.5
    noisy = quadratic(4, d=d, noise=sigma)
    x = somewhere(noisy)
    # relative deviation sqrt(2/d)/sqrt(64 * 4) = 0.028; six of them: one seed in 5e8
    assert gradient_noise(noisy, x, KEY) == pytest.approx(d * sigma**2, rel=6 * 0.028)
    assert gradient_noise(small("logistic"), somewhere(small("logistic")), KEY) == 0.0
    table = noise_table_from_events([0, 0, 1], [[1.0], [2.0], [3.0]], n=3)
    recorded = Quadratic.of(np.ones(3), np.zeros((3, 1)), noise_table=table)
    assert gradient_noise(recorded, jnp.zeros(1), KEY) == pytest.approx((1 + 4 + 9) / 3)


def test_gradient_noise_of_mini_batches_is_the_sample_variance_over_the_batch_size():
    problem = small("logistic", batch_size=4)
    x = somewhere(problem)
    samples = problem.shards["samples"]
    each = jax.vmap(jax.vmap(jax.grad(problem.sample_loss), (None, 0)), (None, 0))(x, samples)
    expected = float(((each - each.mean(1, keepdims=True)) ** 2).sum(2).mean()) / 4
    # 16,000 draws of 5 workers, each with a coefficient of variation below 2: six deviations are 4.2 %
    assert gradient_noise(problem, x, KEY, draws=16_000) == pytest.approx(expected, rel=0.042)


@pytest.mark.parametrize("name", ["quadratic", "logistic", "digits"])
def test_heterogeneity(name):
    problem = small(name)
    x = somewhere(problem)
    grads = jax.vmap(problem.full_gradient, (None, 0))(x, problem.shards).reshape(5, -1)
    assert heterogeneity(problem, x) == pytest.approx(
        float(((grads - grads.mean(0)) ** 2).sum(1).mean()), rel=1e-10
    )


def test_heterogeneity_of_quadratics_vanishes_at_a_shared_minimiser():
    same = quadratic(6, heterogeneity=0.0)
    assert heterogeneity(same, jnp.asarray(same.optimum)) < 1e-20
    assert heterogeneity(quadratic(6), jnp.asarray(quadratic(6).optimum)) > 0.1


# ------------------------------------------------------------------------------------------------------- partitions


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=80),
    st.integers(1, 8),
    st.sampled_from(["iid", "label", "dirichlet"]),
    st.sampled_from([0.1, 1.0, 100.0]),
    st.integers(0, 1000),
)
def test_partitions_deal_every_sample_once(labels, n, kind, alpha, seed):
    def deal():
        return partition(labels, n, kind, np.random.default_rng(seed), alpha)

    if kind != "dirichlet" and n > len(labels):
        with pytest.raises(InvalidInput, match="at most as many workers"):
            deal()
        return
    try:
        parts = deal()
    except InvalidInput:
        assume(kind != "dirichlet")  # a worker got nothing: another example
        raise
    assert len(parts) == n
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    sizes = [len(part) for part in parts]
    assert min(sizes) > 0
    if kind != "dirichlet":
        assert max(sizes) - min(sizes) <= 1
    if kind == "label":
        order = np.concatenate([np.sort(np.asarray(labels)[part]) for part in parts])
        np.testing.assert_array_equal(order, np.sort(labels))


def test_dirichlet_goes_from_few_classes_to_all_alike():
    labels = np.repeat(np.arange(10), 200)
    largest_share = {}
    for alpha in (0.1, 1000.0):
        parts = partition(labels, 8, "dirichlet", np.random.default_rng(0), alpha)
        shares = [np.bincount(labels[part], minlength=10).max() / len(part) for part in parts]
        largest_share[alpha] = np.mean(shares)
    assert largest_share[0.1] > 0.3
    assert largest_share[1000.0] < 0.13


@pytest.mark.parametrize("name", ["breast_cancer", "digits"])
def test_label_partition_is_heterogeneous(name):
    spread = {}
    for kind in ("iid", "label"):
        problem = PROBLEMS[name](8, partition=kind)
        spread[kind] = heterogeneity(problem, problem.initial(KEY))
    assert spread["label"] > 5 * spread["iid"]


def test_data_sets_are_standardised_by_the_training_set_and_hold_the_rest_out():
    problem = breast_cancer(7, partition="dirichlet", alpha=5.0)
    counts = np.asarray(problem.shards["count"])
    features = np.asarray(problem.shards["samples"]["features"])
    train = np.concatenate([features[i, :m] for i, m in enumerate(counts)])
    test = np.asarray(problem.held_out["features"])
    assert (len(train), len(test)) == (455, 114)
    np.testing.assert_allclose(train[:, :30].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(train[:, :30].std(0), 1, rtol=1e-12)
    assert (train[:, 30] == 1).all()
    assert np.abs(test[:, :30].mean(0)).max() > 1e-3
    assert len(np.unique(np.concatenate([train, test]), axis=0)) == 569
    x = problem.optimum
    assert jax.jit(problem.evaluate)(x, problem.held_out)["accuracy"] > 0.94


@pytest.mark.slow
def test_softmax_reads_digits():
    problem = digits(8)
    assert jax.jit(problem.evaluate)(problem.optimum, problem.held_out)["accuracy"] > 0.94


# ------------------------------------------------------------------------------------------------ seeds and determinism


@pytest.mark.parametrize("name", SMALL)
def test_same_seed_same_data_other_seed_other_data(name):
    first, again, other = (jax.tree.leaves(small(name, seed=seed).shards) for seed in (4, 4, 5))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    differ = [not np.array_equal(a, b) for a, b in zip(first, other, strict=True)]
    assert differ[-1]  # the targets or, of quadratics, the matrices


@pytest.mark.parametrize("name", ["quadratic", "least_squares", "logistic"])
def test_adding_workers_changes_no_other_data(name):
    few, many = small(name, n=3), small(name, n=9)
    for a, b in zip(jax.tree.leaves(few.shards), jax.tree.leaves(many.shards), strict=True):
        np.testing.assert_array_equal(a, b[:3])
        assert np.unique(np.asarray(b), axis=0).shape[0] in (
            1,
            9,
        )  # no two workers alike ("count" is constant)


@pytest.mark.parametrize("options", [{"l2": 0.5}, {"batch_size": 4}, {"initial": "per_worker"}])
def test_the_data_do_not_depend_on_how_they_are_used(options):
    plain, changed = breast_cancer(5), breast_cancer(5, **options)
    for a, b in zip(jax.tree.leaves(plain.shards), jax.tree.leaves(changed.shards), strict=True):
        np.testing.assert_array_equal(a, b)


def test_float32_data_are_the_float64_data_rounded():
    for name in SMALL:
        single, double = (small(name, dtype=dtype) for dtype in ("float32", "float64"))
        for a, b in zip(jax.tree.leaves(single.shards), jax.tree.leaves(double.shards), strict=True):
            np.testing.assert_array_equal(a, np.asarray(b).astype(a.dtype))


def test_starting_points():
    other = jax.random.key(1)
    zeros, common, own, fixed = (
        quadratic(3, d=4, initial=initial) for initial in ("zeros", "common", "per_worker", np.arange(4.0))
    )
    assert [p.initial_per_worker for p in (zeros, common, own, fixed)] == [False, False, True, False]
    np.testing.assert_array_equal(zeros.initial(KEY), np.zeros(4))
    np.testing.assert_array_equal(fixed.initial(KEY), np.arange(4.0))
    assert np.abs(own.initial(KEY) - own.initial(other)).max() > 1e-3
    assert logistic(3).initial_per_worker
    assert least_squares(3).initial_per_worker
    draws = np.asarray(jax.vmap(common.initial)(jax.random.split(KEY, 20_000)))
    # mean and deviation of 80,000 normal draws: six deviations, false alarms once in 5e8
    assert abs(draws.mean()) < 6 / np.sqrt(80_000)
    assert abs(draws.std() - 1) < 6 / np.sqrt(160_000)


# ---------------------------------------------------------------------------------------------------- a user's model


def test_from_loss_takes_a_network_and_learns():
    problem = mlp(n=4, m=32, batch_size=8, held_out={"x": np.zeros((3, 2)), "y": np.zeros(3)})
    params = problem.initial(KEY)
    step = jax.jit(
        lambda p, k: jax.tree.map(
            lambda leaf, g: leaf - 0.03 * g,
            p,
            jax.jit(problem.gradient)(p, problem.shards, k % 4, jax.random.key(k), k),
        )
    )
    before = objective(problem, params)
    for k in range(400):
        params = step(params, jnp.int32(k))
    assert objective(problem, params) < 0.2 * before
    assert set(problem.evaluate(params, problem.held_out)) == {"loss"}
    assert problem.dtype == np.float64
    assert gradient_noise(problem, params, KEY) > 0
    assert heterogeneity(problem, params) > 0


def test_from_loss_with_a_list_a_drawn_start_and_known_curvature():
    data = [np.array([[1.0], [3.0]]), np.array([[5.0]])]
    problem = from_loss(
        lambda x, s: 0.5 * jnp.sum((x - s) ** 2),
        lambda key: jax.random.normal(key, (1,)),
        data,
        mu=1.0,
        L=1.0,
        initial_per_worker=True,
    )
    assert problem.n_workers == 2
    assert problem.initial_per_worker
    assert problem.samples_per_gradient == 1.5
    np.testing.assert_allclose(problem.optimum, [3.5], rtol=1e-14)  # mean of the workers' means
    assert problem.optimal_value == pytest.approx(((0.5 + 0) + 0) / 2 + 0.5 * 1.5**2)


def test_from_loss_keeps_integers_and_the_dtype_of_params():
    problem = from_loss(
        lambda x, s: jnp.sum(x["w"]) * s[0] + s[1],
        {"w": np.zeros(2, np.float32)},
        (np.ones((2, 3)), np.ones((2, 3), np.int64)),
    )
    assert problem.dtype == np.float32
    assert [leaf.dtype for leaf in problem.shards["samples"]] == [np.float32, np.int32]


# ------------------------------------------------------------------------------------------------------- bad input

NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("quadratic", {"n": 0}, "problem.n: got 0"),
        ("quadratic", {"n": True}, "problem.n: got True"),
        ("quadratic", {"d": 2.5}, "problem.d: got 2.5"),
        ("quadratic", {"condition_number": 0.5}, "at least 1"),
        ("quadratic", {"noise": -1.0}, "problem.noise: got -1.0"),
        ("quadratic", {"noise": NAN}, "problem.noise: got nan"),
        ("quadratic", {"structure": "diagonl"}, "Did you mean 'diagonal'"),
        ("quadratic", {"d": 200_000}, "GiB"),
        ("quadratic", {"seed": -1}, "problem.seed"),
        ("quadratic", {"dtype": "float16"}, "'float32' or 'float64'"),
        ("quadratic", {"dtype": "flaot32"}, "'float32' or 'float64'"),
        ("quadratic", {"initial": "zero"}, "Did you mean 'zeros'"),
        ("quadratic", {"initial": np.zeros(3)}, r"shape \(3,\)"),
        ("least_squares", {"samples_per_worker": 0}, "problem.samples_per_worker: got 0"),
        ("least_squares", {"batch_size": 0}, "problem.batch_size: got 0"),
        ("least_squares", {"batch_size": 101}, "1 to 100"),
        ("logistic", {"l2": -0.1}, "problem.l2: got -0.1"),
        ("logistic", {"l2": "small"}, "problem.l2: got 'small'"),
        ("breast_cancer", {"partition": "labels"}, "Did you mean 'label'"),
        ("breast_cancer", {"test_fraction": 1.0}, "below 1"),
        ("breast_cancer", {"n": 500}, "worker 455.*at most as many workers"),
        ("breast_cancer", {"partition": "dirichlet", "alpha": 0.0}, "above 0"),
        (
            "breast_cancer",
            {"n": 40, "partition": "dirichlet", "alpha": 0.01},
            "no samples for .* Raise alpha",
        ),
    ],
)
def test_bad_arguments(name, options, words):
    with pytest.raises(InvalidInput, match=words):
        PROBLEMS[name](**{"n": 4} | options)


def test_bad_arrays():
    eye, centres = np.stack([np.eye(2)] * 3), np.zeros((3, 2))
    for arguments, words in [
        ((eye[:2], centres), "problem.matrices"),
        ((eye + np.array([[0, 1], [0, 0]]), centres), "worker 0 that is not symmetric"),
        ((eye * NAN, centres), "finite"),
        ((eye, centres[0]), "problem.centres"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            Quadratic.of(*arguments)
    with pytest.raises(InvalidInput, match=r"shape \(3, K, 2\)"):
        Quadratic.of(eye, centres, noise_table=np.zeros((2, 5, 2)))
    with pytest.raises(InvalidInput, match="0 when a noise_table"):
        Quadratic.of(eye, centres, noise=0.1, noise_table=np.zeros((3, 5, 2)))
    with pytest.raises(InvalidInput, match="-1 and 1"):
        logistic_from_arrays(np.ones((2, 3, 1)), np.zeros((2, 3)))


def square(x, s):
    return jnp.sum((x - s) ** 2)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((square, np.zeros(1), np.full((2, 3, 1), NAN)), {}, "NaN or infinite"),
        ((square, np.zeros(1), (np.zeros((2, 3, 1)), np.zeros((2, 4)))), {}, "same non-empty leading axes"),
        ((square, np.zeros(1), [np.zeros((2, 1)), np.zeros((0, 1))]), {}, r"1 of 2 workers \(worker 1\)"),
        ((square, np.zeros(1), [np.zeros((2, 1)), np.zeros((2, 3))]), {}, "make it a tuple"),
        ((square, np.zeros(1), []), {}, "no workers"),
        ((square, np.zeros(1, int), np.zeros((2, 3, 1))), {}, "floating-point"),
        ((square, np.full(1, NAN), np.zeros((2, 3, 1))), {}, "params"),
        ((lambda x, s: x - s, np.zeros(1), np.zeros((2, 3, 1))), {}, "one number per sample"),
        ((square, np.zeros(1), np.zeros((2, 3, 1))), {"batch_size": 4}, "1 to 3"),
        ((square, np.zeros(1), np.zeros((2, 3, 1))), {"mu": 2.0, "L": 1.0}, "L: got 1.0"),
        (
            (square, np.zeros(1), np.zeros((2, 3, 1))),
            {"initial_per_worker": True},
            "a function key -> params",
        ),
        ((square, np.zeros(1), np.array([["a"]])), {}, "dtype"),
    ],
)
def test_from_loss_refuses(arguments, options, words):
    with pytest.raises(InvalidInput, match=words):
        from_loss(*arguments, **options)


def test_float64_without_x64_is_refused_never_downcast():
    with jax.enable_x64(False):
        for build in (
            lambda: quadratic(3),
            lambda: breast_cancer(3),
            lambda: from_loss(square, np.zeros(1), np.zeros((2, 3, 1))),
        ):
            with pytest.raises(InvalidInput, match=r'jax.config.update\("jax_enable_x64", True\)'):
                build()
        assert quadratic(3, dtype="float32").initial(KEY).dtype == np.float32


def test_missing_scikit_learn_is_one_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for name in ("least_squares", "logistic", "breast_cancer", "digits"):
        with pytest.raises(MissingExtra, match=r"pip install 'decentral\[data\]'"):
            PROBLEMS[name](3)


def test_a_large_dimension_fits_with_diagonal_or_scalar_matrices():
    for structure in ("diagonal", "scalar"):
        problem = quadratic(3, d=100_000, structure=structure, dtype="float32")
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(problem.shards)) <= 2 * 3 * 100_000 * 4
        gradient = jax.jit(problem.gradient)(
            problem.initial(KEY), problem.shards, jnp.int32(1), KEY, jnp.uint32(0)
        )
        assert gradient.shape == (100_000,)


# ----------------------------------------------------------------------------------------------- the compiled program


def test_evaluating_many_models_is_one_matrix_product():
    problem = logistic(6, d=5, samples_per_worker=20)
    models = jnp.ones((17, 5))
    every = jax.jit(jax.vmap(lambda x: jax.vmap(problem.loss, (None, 0))(x, problem.shards).mean()))
    text = every.lower(models).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line and "6x20x17" in line]
    assert len(products) == 1
    assert "batching_dims" not in products[0]


def test_a_mini_batch_gathers_only_its_rows():
    problem = logistic(6, d=5, samples_per_worker=20, batch_size=3)
    text = (
        jax.jit(problem.gradient)
        .lower(jnp.ones(5), problem.shards, jnp.int32(0), KEY, jnp.uint32(0))
        .as_text()
    )
    assert "tensor<3x5xf64>" in text
    assert "tensor<20x5xf64>" not in text
