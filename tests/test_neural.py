"""Neural networks on workers: gradients, causality, routing, shuffling, shared data, and that they learn.

Statistical tests have fixed seeds; their false-alarm rate for another seed is stated.
"""

from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import decentral
from decentral import A2CiD2, Gossip, Record
from decentral.engine.trace import merge
from decentral.errors import InvalidInput
from decentral.experiment.run import run
from decentral.problem import PROBLEMS, from_loss, gradient_noise, heterogeneity, models, stack_shards
from decentral.problem.sampling import batch_rows, shuffled

KEY = jax.random.key(0)
LANGUAGE = {
    "vocabulary": 4,
    "order": 1,
    "length": 8,
    "sequences": 128,
    "test_sequences": 32,
    "width": 8,
    "blocks": 1,
}
SMALL = {
    "mlp": {"hidden": (8,)},
    "cnn": {"channels": (2, 3)},
    "transformer": LANGUAGE,
    "moe": LANGUAGE | {"experts": 3, "expert_width": 4},
}
SLOW_KINDS = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("cnn", "transformer", "moe")]
# compiling is most of the time: of the two that share their blocks one is in the fast suite
LANGUAGE_KINDS = ["moe", SLOW_KINDS[1]]
SHUFFLED = {"partition": "shared", "batch_size": 4, "sampling": "shuffle"}


def small(kind: str, n: int = 4, **options):
    return PROBLEMS[kind](n, **SMALL[kind] | options)


def row(problem, worker: int = 0):
    return jax.tree.map(lambda leaf: leaf[worker], problem.shards)


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mlp", *SLOW_KINDS])
def test_gradients_are_slopes(kind):
    problem = small(kind, dtype="float64", batch_size=8)
    flat, unravel = ravel_pytree(problem.initial(KEY))
    assert flat.dtype == np.float64
    rng = np.random.default_rng(1)
    flat = flat + 0.1 * rng.normal(size=flat.size)
    direction, step = rng.normal(size=flat.size), 1e-6
    drawn = batch_rows("replacement", 8, KEY, jnp.uint32(3), row(problem, 1)["count"])
    batch = jax.tree.map(lambda leaf: leaf[drawn], row(problem, 1)["samples"])

    @jax.jit
    def loss(x):
        return jnp.mean(jax.vmap(problem.sample_loss, (None, 0))(unravel(x), batch))

    gradient = jax.jit(problem.gradient)(unravel(flat), problem.shards, jnp.int32(1), KEY, jnp.uint32(3))
    slope = ravel_pytree(gradient)[0] @ direction
    ends = [loss(flat + sign * step * direction) for sign in (1, -1)]
    assert slope == pytest.approx(float(ends[0] - ends[1]) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("kind", ["mlp", *SLOW_KINDS])
def test_at_first_every_class_is_about_as_likely(kind):
    """The loss, averaged over all labels there could be."""
    problem = small(kind)
    assert problem.dtype == np.float32
    params, classes = problem.initial(KEY), 10 if kind in ("mlp", "cnn") else 4
    evaluate = jax.jit(problem.evaluate)
    values = evaluate(params, problem.held_out)
    target = problem.held_out["target"]
    losses = [
        float(evaluate(params, problem.held_out | {"target": jnp.full_like(target, label)})["loss"])
        for label in range(classes)
    ]
    assert np.mean(losses) == pytest.approx(math.log(classes), abs=0.3)
    assert {leaf.dtype for leaf in jax.tree.leaves(values)} == {np.dtype("float32")}


def test_sizes_are_the_documented_ones():
    def size(model):
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, KEY)))

    assert size(models.mlp(64, (32,), 10)) == 2410
    assert size(models.mlp(784, (128,), 10)) == 101_770
    shapes = ((8, 8, 1), (28, 28, 1), (32, 32, 3), (40, 1))
    assert [size(models.cnn(shape, (16, 32), 10)) for shape in shapes] == [6090, 20_490, 25_578, 4842]
    assert size(models.transformer(8, 16)) == 26_504
    assert size(models.moe(8, 16)[0]) == 14_024


@pytest.mark.parametrize("name", models.INITIALISATIONS)
def test_initialisations_have_the_variance_of_their_name(name):
    fan_in, fan_out = 300, 200
    expected = {"pytorch": 1 / (3 * fan_in), "he": 2 / fan_in, "lecun": 1 / fan_in, "glorot": 2 / 500}
    first, _ = models.mlp(fan_in, (fan_out,), 1, initialisation=name).init(KEY)
    weight = np.asarray(first["weight"], np.float64)
    # 60,000 draws: the deviation of their variance is below 0.6 %, six of them
    assert weight.var() == pytest.approx(expected[name.split("_")[0]], rel=0.035)
    if name == "pytorch":
        assert np.abs(weight).max() <= fan_in**-0.5
        assert 0.8 * fan_in**-0.5 < np.abs(first["bias"]).max() <= fan_in**-0.5
    else:
        assert not np.any(first["bias"])


def test_convolution_is_the_librarys():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(5, 6, 2)), rng.normal(size=(3, 3, 2, 4))
    layout = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=layout)[0]
    got = models._convolution({"weight": jnp.asarray(kernel), "bias": jnp.arange(4.0)}, jnp.asarray(x))
    np.testing.assert_allclose(got, expected + np.arange(4), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(models._halved(jnp.asarray(x))[1, 2], x[2:4, 4:6].max((0, 1)))
    assert models._halved(jnp.asarray(x)).shape == (2, 3, 2)  # the odd fifth row is left out


def test_cross_entropy_and_accuracy_leave_out_what_has_no_label():
    scores, labels = np.random.default_rng(0).normal(size=(3, 4)), np.array([2, -1, 0])
    log = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    assert float(models.cross_entropy(scores, labels)) == pytest.approx(-(log[0, 2] + log[2, 0]) / 2)
    right = [scores[0].argmax() == 2, scores[2].argmax() == 0]
    assert float(models.accuracy(scores, labels)) == np.mean(right)


@pytest.mark.parametrize("kind", LANGUAGE_KINDS)
def test_no_token_changes_what_was_said_before_it(kind):
    make = {"transformer": models.transformer, "moe": lambda *a, **k: models.moe(*a, **k)[0]}[kind]
    model = make(5, 7, width=8, heads=2, blocks=2)
    params = model.init(KEY)
    x = jnp.array([0, 3, 1, 4, 2, 2, 0])
    apply = jax.jit(model.apply)
    before = apply(params, x)
    for t in (2, 6):
        after = apply(params, x.at[t].set((x[t] + 1) % 5))
        np.testing.assert_array_equal(after[:t], before[:t])
        assert np.abs(after[t:] - before[t:]).max(1).min() > 1e-7  # and all that follows hears of it


def test_tokens_go_to_the_experts_of_the_largest_probabilities_and_none_is_dropped():
    experts, k = 5, 2
    model, routed = models.moe(4, 6, width=8, blocks=2, experts=experts, top_k=k)
    params = model.init(KEY)
    # Behind a norm of scale 0 every token looks like its bias, and the router's probabilities are known.
    seen = np.random.default_rng(0).normal(size=8).astype(np.float32)
    params["blocks"][1]["norm_2"] = {"scale": jnp.zeros(8), "bias": jnp.asarray(seen)}
    _, routing = jax.jit(routed)(params, jnp.array([0, 1, 2, 3, 0, 1]))
    chosen = np.asarray(routing.chosen)
    np.testing.assert_array_equal(chosen.sum(-1), k)
    scores = seen @ np.asarray(params["blocks"][1]["feed_forward"]["router"])
    for token in chosen[1]:
        assert set(np.flatnonzero(token)) == set(np.argsort(scores)[-k:])
    np.testing.assert_allclose(routing.loads, chosen.mean(1), rtol=1e-6)
    np.testing.assert_allclose(routing.loads.sum(-1), k, rtol=1e-6)


@pytest.mark.slow
def test_one_expert_is_the_transformer():
    dense, (mixture, routed) = (
        models.transformer(4, 6, width=8, blocks=2),
        models.moe(4, 6, width=8, blocks=2, experts=1, top_k=1, expert_width=32),
    )
    params = mixture.init(KEY)
    same = params | {
        "blocks": [
            b | {"feed_forward": {k: jax.tree.map(lambda leaf: leaf[0], b["feed_forward"][k]) for k in ("in", "out")}}
            for b in params["blocks"]
        ]
    }  # fmt: skip
    x = jnp.array([0, 1, 2, 3, 0, 1])
    scores, routing = jax.jit(routed)(params, x)
    np.testing.assert_allclose(scores, jax.jit(dense.apply)(same, x), rtol=1e-5, atol=1e-6)
    assert float(routing.balance) == pytest.approx(1)


@pytest.mark.slow
def test_recorded_loads_add_up_and_balance_is_part_of_the_loss():
    weight = 0.5
    problem = small("moe", blocks=2, balance=weight)
    params = problem.initial(KEY)
    values = jax.jit(problem.evaluate)(params, problem.held_out)
    loads = [float(values[f"load_expert_{e}"]) for e in range(6)]
    assert sum(loads[:3]) == pytest.approx(2, rel=1e-5)
    assert sum(loads[3:]) == pytest.approx(2, rel=1e-5)
    _, routed = models.moe(4, 8, width=8, blocks=2, experts=3, expert_width=4)
    every = jax.jit(jax.vmap(lambda x: routed(params, x)[1].balance))
    balance = every(problem.held_out["features"]).mean()
    extra = values["loss"] - values["prediction_loss"]
    assert float(extra) == pytest.approx(weight * float(balance), rel=1e-4)


def test_a_batch_is_one_product_per_layer():
    problem = small("mlp", hidden=(32,), **SHUFFLED)
    params = jax.eval_shape(problem.initial, KEY)
    lowered = jax.jit(problem.gradient).lower(params, problem.shards, jnp.int32(0), KEY, jnp.uint32(0))
    products = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
    # two forward, two for the weights' gradients, one back through the second layer
    assert len(products) == 5
    assert not any("batching_dims" in line for line in products)


# -- shuffling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 8, 61, 1438])
def test_a_shuffle_is_a_permutation(size):
    keys = jax.random.split(KEY, 50)
    orders = jax.jit(jax.vmap(lambda key: shuffled(key, jnp.arange(size, dtype=jnp.uint32), size)))(keys)
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.broadcast_to(np.arange(size), orders.shape))
    if size > 50:
        assert len(np.unique(np.asarray(orders), axis=0)) == 50


@pytest.mark.parametrize("size", [3, 4])
def test_every_order_is_equally_likely(size):
    draws, orders = 48_000, math.factorial(size)
    keys = jax.random.split(jax.random.key(7), draws)
    drawn = jax.jit(jax.vmap(lambda key: shuffled(key, jnp.arange(size, dtype=jnp.uint32), size)))(keys)
    _, counts = np.unique(np.asarray(drawn), axis=0, return_counts=True)
    assert len(counts) == orders
    # chi-square with 5 and 23 degrees of freedom: 45 and 80 are exceeded by one seed in 7e7 and 3e7
    limit = {3: 45, 4: 80}[size]
    assert ((counts - draws / orders) ** 2).sum() / (draws / orders) < limit


def test_neighbours_stand_anywhere():
    """Where positions 0 and 1 of a shuffle of 12 come from: all 132 pairs, under keys made as a run makes them."""
    pairs = jax.jit(
        jax.vmap(lambda epoch: shuffled(jax.random.fold_in(KEY, epoch), jnp.arange(2, dtype=jnp.uint32), 12))
    )(jnp.arange(66_000, dtype=jnp.uint32))
    _, counts = np.unique(np.asarray(pairs), axis=0, return_counts=True)
    assert len(counts) == 132
    # chi-square with 131 degrees of freedom: 230 is exceeded by one seed in 5e6
    assert ((counts - 500) ** 2).sum() / 500 < 230


def test_epochs_of_workers_with_unequal_shards():
    counts, batch, epochs = [5, 9, 12], 4, 6
    keys = jax.random.split(KEY, 3)
    rows = jax.jit(batch_rows, static_argnums=(0, 1))
    orders = {}
    for worker, size in enumerate(counts):
        batches = size // batch
        for epoch in range(epochs):
            drawn = [
                np.asarray(rows("shuffle", batch, keys[worker], jnp.uint32(c), jnp.int32(size)))
                for c in range(epoch * batches, (epoch + 1) * batches)
            ]
            together = np.concatenate(drawn)
            assert together.dtype == np.int32
            assert len(np.unique(together)) == batches * batch  # distinct
            assert together.min() >= 0
            assert together.max() < size
            orders[worker, epoch] = tuple(together)
    # the epochs of a worker differ: 12 samples have too many orders for two alike, one seed in 3e7
    assert len({orders[2, epoch] for epoch in range(epochs)}) == epochs
    # the samples left out of an epoch change: of 5 samples always the same one, one seed in 3,000
    assert len({frozenset(orders[0, epoch]) for epoch in range(epochs)}) > 1


def identity(n=4, m=6, unit=1.0):
    """The gradient of a sample is the sample: 1, 10, 100, ... units in some order."""
    data = [unit * np.array([[10.0**k] for k in range(m)])]
    return from_loss(
        lambda x, s: jnp.vdot(x, s), np.zeros(1), data, batch_size=1, sampling="shuffle", sharing=n
    )


def gradients_only(n, each, seed):
    workers = np.tile(np.arange(n), each)
    operands = np.stack([workers, np.full(n * each, -1)], axis=1)
    return decentral.Trace.from_arrays(
        np.arange(n * each, dtype=float), [0] * (n * each), operands, n_workers=n, seed=seed
    )


@pytest.mark.parametrize("executor", ["rows", pytest.param("eager", marks=pytest.mark.slow)])
def test_a_run_goes_through_the_samples_epoch_by_epoch(executor):
    """After each epoch a worker's sum of gradients is the sum of all samples; on the way workers and seeds differ."""
    n, m = 4, 6
    still = Gossip(optimizer={"kind": "sgd", "learning_rate": 1.0})

    def after(gradients, seed=0):
        trace = gradients_only(n, gradients, seed)
        result = decentral.replay(trace, identity(n, m), still, executor=executor)
        return -np.asarray(result.final.x)[:, 0]

    for epoch in (1, 2):
        np.testing.assert_array_equal(after(epoch * m), epoch * 111_111)
    # Sums of powers of ten tell which samples there were. Four workers alike, or twice the same sets: one seed in 10^4.
    half = after(3), after(3, seed=1), after(m + 3) - 111_111
    for sums in half:
        digits = np.array([[int(d) for d in f"{int(s):06d}"] for s in sums])
        assert set(digits.ravel()) == {0, 1}
        np.testing.assert_array_equal(digits.sum(1), 3)
        assert len(set(sums)) > 1
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(half, 2))


# -- shared data -------------------------------------------------------------------------------------------------------


def test_shared_data_are_stored_once_and_are_everybodys():
    few, many = (small("mlp", n, **SHUFFLED) for n in (2, 50))
    assert (few.n_workers, many.n_workers) == (2, 50)
    for a, b in zip(jax.tree.leaves(few.shards), jax.tree.leaves(many.shards), strict=True):
        np.testing.assert_array_equal(a, b)
        assert len(b) == 1
    assert many.samples_per_gradient == 4
    assert many.gradient_bytes == 4 * (64 * 4 + 4)
    x = many.initial(KEY)
    whole = jax.jit(many.full_gradient)(x, row(many))
    full = small("mlp", 50, partition="shared")
    for worker in (0, 49):
        one = jax.jit(full.gradient)(x, full.shards, jnp.int32(worker), KEY, jnp.uint32(0))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), one, whole)
    assert heterogeneity(many, x) == 0


def test_noise_of_shuffled_batches_is_that_of_drawing_without_replacement():
    """sigma^2 = S^2 (1/B - 1/m), S^2 the unbiased variance of the sample gradients (Cochran, Sampling Techniques, 2.3)."""
    data = [np.random.default_rng(0).normal(size=(12, 3))]
    problem = from_loss(
        lambda x, s: jnp.vdot(x, s), np.zeros(3), data, batch_size=4, sampling="shuffle", sharing=5
    )
    expected = data[0].var(0, ddof=1).sum() * (1 / 4 - 1 / 12)
    # 5 x 3,000 draws, three of an epoch dependent, with a coefficient of variation below 1: six deviations
    found = gradient_noise(problem, jnp.zeros(3), KEY, draws=3000)
    assert found == pytest.approx(expected, rel=6 * np.sqrt(3 / 15_000))


def test_the_optimum_of_shared_data_does_not_depend_on_weights():
    data = [np.array([[1.0], [3.0]])]
    problem = from_loss(lambda x, s: 0.5 * jnp.sum((x - s) ** 2), np.zeros(1), data, mu=1.0, L=1.0, sharing=3)
    for weights in (np.ones(3), np.array([0.5, 0.5, 2.0])):
        np.testing.assert_allclose(problem.weighted_optimum(weights), [2.0], rtol=1e-14)
    assert problem.optimal_value == pytest.approx(0.5)


def test_seeds_with_shared_data_of_their_own():
    """After an epoch, x is minus the sum of the seed's own samples, and the loss is taken on them."""
    n, m, units = 3, 6, np.array([1.0, 2.0])
    problems = [identity(n, m, unit) for unit in units]
    assert len(stack_shards(problems)["count"]) == 2
    trace = merge([gradients_only(n, m, seed) for seed in (0, 1)])
    still = Gossip(optimizer={"kind": "sgd", "learning_rate": 1.0})
    result = decentral.replay(trace, problems, still, record=Record(count=1))
    np.testing.assert_array_equal(np.asarray(result.final.x)[:, 0], -111_111 * np.repeat(units, n))
    np.testing.assert_allclose(result.metrics["loss"][:, -1], -((111_111 * units) ** 2) / m, rtol=1e-14)


# -- runs --------------------------------------------------------------------------------------------------------------

MOMENTUM = {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9}


@pytest.mark.parametrize("kind", ["mlp", *SLOW_KINDS])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_rows_are_events_one_by_one(kind, dtype, tolerance):
    problem = small(kind, 8, dtype=dtype, **SHUFFLED)
    graph, algorithm = decentral.topology.named("ring", n=8), A2CiD2(optimizer=MOMENTUM)
    done = decentral.simulate(problem, graph, algorithm, stop=90.0, record=Record(count=1, evaluate=False))
    trace = done.trace
    assert len(trace) >= 1000
    eager = decentral.replay(
        trace, problem, done.algorithm, record=Record(count=1, evaluate=False), executor="eager"
    )
    for fast, slow in zip(jax.tree.leaves(done.final), jax.tree.leaves(eager.final), strict=True):
        assert np.abs(fast - slow).max() <= tolerance * np.abs(slow).max()


@pytest.mark.slow
def test_single_deep_models_are_recorded_on_held_out_data():
    graph, algorithm = decentral.topology.named("ring", n=4), A2CiD2(optimizer=MOMENTUM)
    for fraction in (None, 0.0):
        problem = small("mlp", test_fraction=fraction, **SHUFFLED)
        metrics = decentral.simulate(problem, graph, algorithm, stop=5.0, record=Record(count=1)).metrics
        of_one = {"loss_workers", "loss_worst", "train_accuracy_workers"}
        assert {"loss", "train_accuracy"} <= set(metrics)
        if fraction is None:
            assert {"test_loss_workers", "test_accuracy_worst"} <= set(metrics)
            assert not of_one & set(metrics)
        else:  # there is nothing else to look at
            assert of_one <= set(metrics)


def test_many_samples_are_looked_at_some_at_a_time():
    """More samples than fit at once, and not a multiple of them: means are means over all."""
    problem = small("mlp", dtype="float64", partition="shared")
    params, shard = problem.initial(KEY), row(problem)
    losses = jax.vmap(problem.sample_loss, (None, 0))(params, shard["samples"])
    assert losses.shape == (1438,)
    assert float(jax.jit(problem.loss)(params, shard)) == pytest.approx(float(losses.mean()), rel=1e-12)
    right, number = jax.jit(problem.train_metrics)(params, shard)["accuracy"]
    scores = jax.vmap(problem.sample_scores, (None, 0))(params, shard["samples"])["accuracy"]
    assert (right, number) == (scores.sum(), 1438)


def trained(problem, steps: int, learning_rate: float):
    """Adam on one worker's gradients."""
    adam = optax.adam(learning_rate)

    @jax.jit
    def learn(params):
        def step(carry, count):
            params, state = carry
            gradient = problem.gradient(params, problem.shards, jnp.int32(0), KEY, count)
            change, state = adam.update(gradient, state, params)
            return (optax.apply_updates(params, change), state), None

        return jax.lax.scan(step, (params, adam.init(params)), jnp.arange(steps, dtype=jnp.uint32))[0][0]

    return learn(problem.initial(KEY))


@pytest.mark.parametrize("kind", ["mlp", pytest.param("cnn", marks=pytest.mark.slow)])
def test_networks_read_digits(kind):
    wide = {"mlp": {"hidden": (32,)}, "cnn": {"channels": (8, 16)}}[kind]
    problem = PROBLEMS[kind](2, partition="shared", batch_size=32, sampling="shuffle", **wide)
    values = jax.jit(problem.evaluate)(trained(problem, 400, 3e-3), problem.held_out)
    assert float(values["loss"]) < 0.25  # from log(10) = 2.3
    assert float(values["accuracy"]) > 0.93


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["moe", "transformer"])
def test_networks_learn_a_language_up_to_its_entropy_and_not_beyond(kind):
    language = LANGUAGE | {"sequences": 1024, "test_sequences": 512, "width": 16, "concentration": 0.5}
    problem = PROBLEMS[kind](2, partition="shared", batch_size=16, sampling="shuffle", **language)
    params = trained(problem, 300, 1e-2)
    losses = jax.jit(jax.vmap(problem.sample_loss, (None, 0)))(params, problem.held_out)
    values = jax.jit(problem.evaluate)(params, problem.held_out)
    found = float(values["prediction_loss" if kind == "moe" else "loss"])
    # five deviations of the mean over 512 sequences: one seed in two million
    error = 5 * float(losses.std()) / np.sqrt(len(losses))
    assert problem.best_loss - error < found < problem.best_loss + 0.05 + error
    assert problem.best_loss + 0.05 + error < math.log(4) - 0.2


SPEC = """
name = "network"
[topology]
kind = "ring"
n = 64
[problem]
kind = "{kind}"
{arguments}
partition = "shared"
batch_size = 8
sampling = "shuffle"
[stop]
kind = "time"
time_s = 1000.0
[[algorithm]]
kind = "a2cid2"
optimizer = {{ kind = "sgd", learning_rate = 0.05, momentum = 0.9 }}
[record]
count = 2
trace = false
[smoke]
topology.n = 4
stop.time_s = 8.0
"""
SPECS = {
    "mlp": 'data = "digits"\nhidden = [32]',
    "cnn": 'data = "digits"\nchannels = [2, 3]\ninitialisation = "he_normal"',
    "transformer": 'data = "markov"\nwidth = 8\nblocks = 1\nlength = 8',
    "moe": "width = 8\nlength = 8\nexperts = 3\ntop_k = 1",
}


@pytest.mark.parametrize("kind", ["mlp", *SLOW_KINDS])
def test_a_spec_of_each_kind_runs(kind, tmp_path):
    path = tmp_path / "network.toml"
    path.write_text(SPEC.format(kind=kind, arguments=SPECS[kind]))
    done = run(path, smoke=True, out=tmp_path / "out")
    metrics = done.results["a2cid2"].metrics
    assert metrics["test_loss"].shape == (1, 3)
    assert metrics["loss"][0, -1] < metrics["loss"][0, 0]
    if kind == "moe":
        loads = sum(metrics[f"test_load_expert_{e}"] for e in range(3))
        np.testing.assert_allclose(loads, 1, rtol=1e-5)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("mlp", {"data": "digit"}, "problem.data: got 'digit'.*Did you mean 'digits'"),
        ("mlp", {"data": "markov"}, "problem.data: got 'markov'"),
        ("transformer", {"data": "digits"}, "problem.data: got 'digits'.*markov"),
        ("cnn", {"data": "libsvm"}, "problem.data: got 'libsvm'"),
        ("mlp", {"data": "libsvm"}, "Set problem.path"),
        ("mlp", {"data": "libsvm", "path": "nowhere.svm"}, "no such file"),
        ("cnn", {"data": "cifar10", "path": "nowhere"}, "binary version"),
        ("mlp", {"path": "here"}, "problem.path: got 'here'; allowed: nothing with data = 'digits'"),
        ("mlp", {"data": "mnist1d", "test_fraction": 0.1}, "problem.test_fraction"),
        ("mlp", {"partition": "share"}, "Did you mean 'shared'"),
        ("mlp", {"sampling": "shuffled"}, "Did you mean 'shuffle'"),
        ("mlp", {"initialisation": "he"}, "problem.initialisation: got 'he'"),
        ("mlp", {"initial": "zeros"}, "problem.initial: got 'zeros'"),
        ("mlp", {"hidden": (0,)}, "problem.hidden: got 0"),
        ("mlp", {"partition": "shared", "n": 0}, "got 0"),
        ("mlp", {"batch_size": 500, "sampling": "shuffle"}, "the smallest number of samples"),
        ("cnn", {"channels": (2, 2, 2, 2)}, "at least 16 points a side"),
        ("transformer", {"width": 9}, "a multiple of the 2 heads"),
        ("moe", {"experts": 2, "top_k": 3}, "1 to the 2 experts"),
        ("moe", {"balance": -1.0}, "problem.balance: got -1.0"),
    ],
)
def test_bad_arguments(kind, options, words):
    with pytest.raises(InvalidInput, match=words):
        PROBLEMS[kind](**{"n": 4} | options)


def test_sharing_is_for_the_data_of_one():
    with pytest.raises(InvalidInput, match="None for the data of 2 workers"):
        from_loss(lambda x, s: jnp.vdot(x, s), np.zeros(1), np.ones((2, 3, 1)), sharing=2)
