"""Models in stages: shapes that chain, inverses that are tried out, batches, and what was recorded of PETRA's code."""

from __future__ import annotations

import functools
from pathlib import Path

import engine_stages
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import decentral
from decentral import A2CiD2, Record
from decentral.engine.trace import StageShape
from decentral.errors import InvalidInput
from decentral.problem import (
    Stage,
    Stages,
    from_stages,
    gradient_noise,
    reversible_mlp,
    reversible_transformer,
    revnet,
    stack_shards,
)
from decentral.problem.finite_sum import AT_ONCE
from decentral.problem.models import cross_entropy
from decentral.problem.reversible import residual_block, reversible_block, tanh_block
from decentral.problem.sampling import batch_rows

KEY = jax.random.key(0)
DATA = Path(__file__).parent / "data"
LANGUAGE = {
    "vocabulary": 4,
    "order": 1,
    "length": 8,
    "sequences": 128,
    "test_sequences": 32,
    "width": 8,
    "stages": 3,
}
SMALL = {
    "mlp": lambda n, **options: reversible_mlp(n, **{"hidden": 8, "stages": 4} | options),
    "revnet": lambda n, **options: revnet(n, **{"widths": (2, 3), "blocks": (1, 1)} | options),
    "transformer": lambda n, **options: reversible_transformer(n, **LANGUAGE | options),
}
KINDS = ["mlp", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("revnet", "transformer"))]


@functools.cache
def two_workers():
    """1,637 samples: each of two workers has more than one chunk, and one has a sample less."""
    return SMALL["mlp"](2, workers_per_model=1, stages=5, dtype="float64", batch_size=8, test_fraction=0.6803)


def dense(inputs, outputs):
    """x W; drawing random numbers would be slow to compile."""

    def init(key):
        number = jax.random.key_data(key)[-1] % 1000
        return {"W": jnp.sin(number + jnp.arange(1.0, 1 + inputs * outputs)).reshape(inputs, outputs)}

    return Stage(init, lambda p, x: x @ p["W"])


# -- recorded from the authors' code -----------------------------------------------------------------------------------


def test_the_six_recorded_stages_give_the_recorded_losses_and_gradients():
    recorded = np.load(engine_stages.ENGINE)
    problem = engine_stages.problem_of(recorded)
    params, ticks = problem.initial(KEY), jnp.arange(40, dtype=jnp.uint32)
    assert (engine_stages.pack(params, recorded) == recorded["petra_k1_params"][0]).all()

    @jax.jit
    def every(params):
        def tick(count):
            x, labels = problem.batch(problem.shards, 0, KEY, count)
            loss = problem.stages.loss(problem.stages.apply(params, x), labels)
            return loss, problem.gradient(params, problem.shards, 0, KEY, count)

        return jax.lax.map(tick, ticks)

    losses, gradients = every(params)
    found = [
        engine_stages.pack(jax.tree.map(lambda leaf, t=t: leaf[t], gradients), recorded) for t in range(40)
    ]
    np.testing.assert_allclose(losses, recorded["frozen_backprop_loss"], rtol=0, atol=1e-14)
    np.testing.assert_allclose(np.stack(found), recorded["frozen_backprop_grads"], rtol=0, atol=1e-14)
    again = engine_stages.unpack(engine_stages.pack(params, recorded), recorded)
    assert jax.tree.all(jax.tree.map(lambda u, v: bool((u == v).all()), again, params))


def test_the_stages_as_a_timeline_sees_them():
    problem = engine_stages.problem_of(np.load(engine_stages.ENGINE))
    assert problem.stages.shapes == (
        StageShape("stem", "", "4+4"),
        StageShape("wide", "4+4", "4+4"),
        StageShape("wide", "4+4", "4+4"),
        StageShape("down", "4+4", "3+3"),
        StageShape("narrow", "3+3", "3+3"),
        StageShape("head", "3+3", ""),
    )
    assert [problem.stages.place(j) for j in range(6)] == [
        ("stem", 0), ("wide", 0), ("wide", 1), ("down", 0), ("narrow", 0), ("head", 0),
    ]  # fmt: skip
    assert [[leaf.shape for leaf in b] for b in problem.stages.boundaries] == [[(8, 4)] * 2] * 3 + [
        [(8, 3)] * 2
    ] * 2
    assert problem.n_workers == 6


def test_the_recorded_block_forward_inverse_and_gradient():
    recorded = np.load(DATA / "petra_block.npz")
    last = lambda name: jnp.moveaxis(jnp.asarray(recorded[name]), 1, -1)  # noqa: E731  channels

    def params(prefix):
        kernel = lambda k: jnp.asarray(recorded[f"{prefix}_weight_conv_{k}"]).transpose(2, 3, 1, 0)  # noqa: E731
        return {
            f"{layer}_{k}": {weight: kernel(k) if layer == "conv" else recorded[f"{prefix}_weight_bn_{k}"]}
            | {"bias": recorded[f"{prefix}_bias_{'conv' if layer == 'conv' else 'bn'}_{k}"]}
            for layer, weight in (("conv", "weight"), ("norm", "scale"))
            for k in (1, 2)
        }

    block = residual_block(4)
    assert jax.tree.structure(jax.eval_shape(block.init, KEY)) == jax.tree.structure(params("p"))

    @jax.jit
    def passes(params, x, cotangent):
        y, back = jax.vjp(block.apply, params, x)
        return y, block.inverse(params, y), back(cotangent)

    streams = lambda *names: tuple(map(last, names))  # noqa: E731
    y, again, (gradient, below) = passes(params("p"), streams("x", "xt"), streams("gy", "gyt"))
    close = lambda got, wanted: jax.tree.map(  # noqa: E731
        lambda u, v: np.testing.assert_allclose(u, v, rtol=0, atol=1e-12), got, wanted
    )
    close(y, streams("y", "yt"))
    close(again, streams("rec_x", "rec_xt"))
    close(below, streams("gx", "gxt"))
    close(gradient, params("g"))


# -- stages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [8, 32])
def test_a_tanh_network_of_unit_gain_is_reconstructed_in_float32(blocks):
    """P8, of the largest input: 3e-7 after 8 blocks, 2e-6 after 32 were measured with other draws."""
    block = tanh_block(32, initialisation="lecun_normal")
    params = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32), jax.vmap(block.init)(jax.random.split(KEY, blocks))
    )
    assert float(params["weight"].std()) == pytest.approx(32**-0.5, rel=0.05)
    x = tuple(jax.random.normal(k, (32, 32), jnp.float32) for k in jax.random.split(KEY))

    @jax.jit
    def back(params, x):
        y = jax.lax.scan(lambda x, p: (block.apply(p, x), None), x, params)[0]
        return jax.lax.scan(lambda y, p: (block.inverse(p, y), None), y, params, reverse=True)[0]

    error = jnp.stack([jnp.abs(u - v).max() for u, v in zip(back(params, x), x, strict=True)]).max()
    assert 0 < error / jnp.abs(jnp.stack(x)).max() < 1e-5


def test_the_whole_model_is_its_stages_one_after_the_other():
    problem = two_workers()
    model, params = problem.stages, problem.initial(KEY)
    x = start = problem.held_out["features"][:8]
    for j in range(len(model)):
        kind, index = model.place(j)
        x = model.kinds[kind].apply(jax.tree.map(lambda leaf, i=index: leaf[i], params[kind]), x)
        if j < len(model) - 1:
            assert jax.tree.map(lambda leaf: leaf.shape, x) == jax.tree.map(
                lambda leaf: leaf.shape, model.boundaries[j]
            )
    np.testing.assert_allclose(model.apply(params, start), x, rtol=1e-13)


def test_a_kind_may_come_back_after_another():
    kinds = {
        "in": dense(3, 2),
        "a": dense(2, 2),
        "b": Stage(dense(2, 2).init, lambda p, x: jnp.tanh(x @ p["W"])),
    }
    kinds["twice"] = Stage(lambda key: {}, lambda p, x: 2 * x)
    model = Stages(
        kinds | {"out": dense(2, 4)}, ("in", "a", "a", "b", "twice", "twice", "a", "out"), jnp.zeros((5, 3))
    )
    params, x = model.initial(KEY), np.linspace(-1, 1, 15, dtype=np.float32).reshape(5, 3)
    a = params["a"]["W"]
    wanted = (
        jnp.tanh(x @ params["in"]["W"][0] @ a[0] @ a[1] @ params["b"]["W"][0])
        @ (4 * a[2])
        @ params["out"]["W"][0]
    )
    np.testing.assert_allclose(model.apply(params, x), wanted, rtol=1e-4, atol=1e-5)
    assert model.place(6) == ("a", 2)


def test_the_draw_of_a_stage_does_not_depend_on_the_others():
    kinds, x = {"in": dense(3, 2), "a": dense(2, 2), "out": dense(2, 4)}, jnp.zeros((5, 3))
    short, long = (Stages(kinds, ("in", *["a"] * k, "out"), x).initial(KEY) for k in (2, 4))
    assert (long["a"]["W"][:2] == short["a"]["W"]).all()
    assert (long["in"]["W"] == short["in"]["W"]).all()
    assert len(np.unique(long["a"]["W"][:, 0, 0])) == 4


def test_shapes_of_the_same_axes_and_another_type_have_two_names():
    to_int = Stage(lambda key: {}, lambda p, x: x.astype(jnp.int32))
    back = Stage(lambda key: {}, lambda p, x: x.astype(jnp.float32))
    model = Stages({"in": dense(3, 3), "int": to_int, "out": back}, ("in", "int", "out"), jnp.zeros((2, 3)))
    assert [shape.takes for shape in model.shapes] == ["", "3", "3'"]


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_shapes_that_do_not_chain():
    kinds = {"in": dense(5, 4), "wide": dense(4, 4), "out": dense(3, 2)}
    x = jax.ShapeDtypeStruct((8, 5), np.float32)
    with pytest.raises(InvalidInput, match=r"stages\[3\] \('out'\).*float32\[8,4\].*float32\[3,2\]"):
        Stages(kinds, ("in", "wide", "wide", "out"), x)
    kinds["down"] = dense(4, 3)
    wanted = r"stages\[3\] \('wide'\).*float32\[8,3\].*float32\[8,4\], as stages\[1\] of the same kind takes"
    with pytest.raises(InvalidInput, match=wanted):
        Stages(kinds, ("in", "wide", "down", "wide"), x)
    with pytest.raises(InvalidInput, match=r"stages\[1\] \('mean'\).*the leading axis of its input"):
        Stages({"in": dense(5, 4), "mean": Stage(lambda key: {}, lambda p, x: x.mean(0))}, ("in", "mean"), x)


def test_stage_lists_that_are_no_pipeline():
    x = jax.ShapeDtypeStruct((8, 4), np.float32)
    kinds = {"in": dense(4, 4), "pair": Stage(lambda key: {}, lambda p, x: (x, x)), "out": dense(4, 2)}
    kinds |= {"number": 3, "fails": Stage(lambda key: 1 / 0, lambda p, x: x)}
    for order, said in (
        (("in",), "two or more"),
        (("in", "on", "out"), "'on'"),
        (("in", "in", "out"), r"stages\[1\] \('in'\).*a kind of its own for the first stage"),
        (("in", "out", "in"), r"stages\[2\] \('in'\)"),
        (("in", "pair"), r"stages\[1\] \('pair'\).*scores"),
        (("in", "number"), r"kinds\['number'\]: got 3"),
        (("fails", "out"), r"stages\[0\] \('fails'\): got 'an init that fails'.*division"),
    ):
        with pytest.raises(InvalidInput, match=said):
            Stages(kinds, order, x)


def no_branch(p, y):
    """Right only while the weights are zero."""
    return y[1], y[0]


@pytest.mark.parametrize(
    "block",
    [
        Stage(dense(4, 4).init, lambda p, x: jnp.tanh(x @ p["W"]), lambda p, y: y),
        Stage(lambda key: {}, lambda p, x: jax.nn.relu(x), lambda p, y: y),
        Stage(lambda key: {}, lambda p, x: x, lambda p, y: y * jnp.nan),
        Stage(lambda key: {}, lambda p, x: x, lambda p, y: (y, y)),
        Stage(lambda key: {}, lambda p, x: x, lambda y: y),
    ],
)
def test_a_block_declared_reversible_that_is_not(block):
    with pytest.raises(InvalidInput, match=r"stages\[1\] \('block'\).*declared reversible but"):
        Stages(
            {"in": dense(3, 4), "block": block, "out": dense(4, 2)},
            ("in", "block", "block", "out"),
            jnp.zeros((8, 3)),
        )


def test_weights_that_start_at_zero_do_not_hide_a_wrong_inverse():
    right = reversible_block(lambda key: {"W": jnp.zeros((4, 4))}, lambda p, x: jnp.tanh(x @ p["W"]))
    pair = Stage(lambda key: {}, lambda p, x: (x, x))
    out = Stage(lambda key: {}, lambda p, x: x[0])
    order, x = ("in", "block", "out"), jnp.zeros((8, 4))
    Stages({"in": pair, "block": right, "out": out}, order, x)
    with pytest.raises(InvalidInput, match="declared reversible but"):
        Stages({"in": pair, "block": Stage(right.init, right.apply, no_branch), "out": out}, order, x)


def test_a_reversible_block_keeps_its_shape():
    halving = Stage(lambda key: {}, lambda p, x: x[:, ::2], lambda p, y: jnp.repeat(y, 2, 1))
    with pytest.raises(InvalidInput, match=r"stages\[1\] \('half'\).*declared reversible but"):
        Stages(
            {"in": dense(3, 4), "half": halving, "out": dense(2, 2)}, ("in", "half", "out"), jnp.zeros((8, 3))
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": 6}, "a multiple of 4"),
        ({"n": 4, "workers_per_model": 2}, "1, or 4"),
        ({"n": 4, "stages": 1}, "at least 2"),
        ({"n": 4, "hidden": 0}, "problem.hidden"),
        ({"n": 4, "data": "libsvm"}, "problem.data"),
        ({"n": 4, "path": "there"}, "problem.path"),
        ({"n": 4, "batch_size": 10_000}, "problem.batch_size"),
        ({"n": 4, "batch_size": None}, "problem.batch_size"),
    ],
)
def test_bad_arguments(options, said):
    with pytest.raises(InvalidInput, match=said):
        SMALL["mlp"](**options)


def test_as_many_shards_as_models():
    kinds = {"in": dense(3, 4), "out": dense(4, 2)}
    data = np.ones((3, 5, 3)), np.zeros((3, 5), int)
    assert from_stages(kinds, ("in", "out"), data, n=6, batch_size=2).n_workers == 6
    with pytest.raises(InvalidInput, match=r"3 shards.*2, one for each model"):
        from_stages(kinds, ("in", "out"), data, n=4, batch_size=2)
    with pytest.raises(InvalidInput, match=r"loss.*one number per batch"):
        from_stages(kinds, ("in", "out"), data, n=6, batch_size=2, loss=lambda scores, labels: scores)


# -- problems ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_loss_of_the_batch(kind):
    problem = two_workers()
    if kind != "mlp":
        problem = SMALL[kind](2, workers_per_model=1, dtype="float64", batch_size=8)
    flat, unravel = ravel_pytree(problem.initial(KEY))
    assert flat.dtype == np.float64
    x, labels = problem.batch(problem.shards, 1, KEY, jnp.uint32(3))
    rows = batch_rows("replacement", 8, KEY, jnp.uint32(3), problem.shards["count"][1])
    assert (labels == problem.shards["samples"]["target"][1, rows]).all()
    assert (x == problem.shards["samples"]["features"][1, rows]).all()
    direction = np.random.default_rng(1).normal(size=flat.size)

    @jax.jit
    def values(flat):
        loss = lambda v: cross_entropy(problem.stages.apply(unravel(v), x), labels)  # noqa: E731
        gradient = problem.gradient(unravel(flat), problem.shards, 1, KEY, jnp.uint32(3))
        ends = [loss(flat + sign * 1e-5 * direction) for sign in (1, -1)]
        return ravel_pytree(gradient)[0] @ direction, (ends[0] - ends[1]) / 2e-5

    slope, difference = values(flat)
    assert float(slope) == pytest.approx(float(difference), rel=1e-5)


def test_losses_and_scores_are_means_over_the_samples_there_are():
    problem = two_workers()
    counts = np.asarray(problem.shards["count"])
    assert counts[0] != counts[1]
    assert counts.min() > AT_ONCE

    def of_worker(params, worker):
        shard = jax.tree.map(lambda leaf: leaf[worker], problem.shards)
        return problem.loss(params, shard), problem.train_metrics(params, shard)["accuracy"]

    @jax.jit
    def measured(params):
        held_out = problem.evaluate(params, problem.held_out)
        return [of_worker(params, 0), of_worker(params, 1)], [held_out["loss"], held_out["accuracy"]]

    params, apply = problem.initial(KEY), jax.jit(problem.stages.apply)
    by_worker, of_held_out = measured(params)
    for worker, (loss, (right, number)) in enumerate(by_worker):
        own = jax.tree.map(lambda leaf, w=worker: leaf[w, : counts[w]], problem.shards["samples"])
        scores = apply(params, own["features"])
        assert float(loss) == pytest.approx(float(cross_entropy(scores, own["target"])), rel=1e-12)
        assert (float(right), float(number)) == ((scores.argmax(1) == own["target"]).sum(), counts[worker])
    scores, labels = apply(params, problem.held_out["features"]), problem.held_out["target"]
    wanted = [float(cross_entropy(scores, labels)), np.mean(np.asarray(scores.argmax(1) == labels))]
    np.testing.assert_allclose(of_held_out, wanted, rtol=1e-12)


def test_batch_norm_has_the_statistics_of_the_batch():
    """A batch twice over has the same statistics and the same scores; a part of it has others."""
    block = residual_block(2)
    apply = jax.jit(lambda p, x: block.apply(p, x)[0])
    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), block.init(KEY))
    rng = np.random.default_rng(0)
    x = tuple(rng.normal(size=(2, 6, 4, 4, 2)))
    y = apply(params, x)
    np.testing.assert_allclose(apply(params, [np.concatenate([s, s]) for s in x])[:6], y, atol=1e-12)
    assert float(jnp.abs(apply(params, [s[:3] for s in x]) - y[:3]).max()) > 0.1


def test_pipelines_share_the_data_among_them():
    whole, pipelines = SMALL["mlp"](8, workers_per_model=1), SMALL["mlp"](8)
    assert (whole.workers_per_model, pipelines.workers_per_model) == (1, 4)
    assert (len(whole.shards["count"]), len(pipelines.shards["count"])) == (8, 2)
    assert (whole.n_workers, pipelines.n_workers) == (8, 8)
    assert int(whole.shards["count"].sum()) == int(pipelines.shards["count"].sum()) == 4096
    shared = SMALL["mlp"](8, partition="shared")
    assert (shared.n_workers, len(shared.shards["count"])) == (8, 1)
    assert len(stack_shards([pipelines, SMALL["mlp"](8, seed=1)])["count"]) == 4


def test_labels_that_are_numbers_have_no_accuracy():
    data = [(np.ones((5, 3)), np.zeros((5, 2))), (np.ones((4, 3)), np.ones((4, 2)))]
    square = lambda scores, labels: jnp.mean((scores - labels) ** 2)  # noqa: E731
    problem = from_stages(
        {"in": dense(3, 4), "out": dense(4, 2)}, ("in", "out"), data,
        n=2, workers_per_model=1, batch_size=2, loss=square, held_out=data[0],
    )  # fmt: skip
    params = problem.initial(KEY)
    output = params["in"]["W"][0].sum(0) @ params["out"]["W"][0]
    found = problem.evaluate(params, problem.held_out)
    assert set(found) == {"loss"}
    assert float(found["loss"]) == pytest.approx(float(jnp.mean(output**2)), rel=1e-5)


def test_gradient_noise_of_two_pipelines_weighs_their_data_alike():
    """One draws samples that are alike, the other samples that are not: the mean of 0 and of a variance over the samples.

    64 draws of a squared norm whose deviation is 1.1 of its mean: a standard error of 0.14. The fixed seed is off by 0.01; by
    chance 0.4 % of seeds would fail. Counting workers in the place of pipelines would give 7 / 8 of the variance.
    """
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(2, 40, 3)), rng.integers(2, size=(2, 40))
    x[0], labels[0] = x[0, 0], 1
    kinds = {"in": dense(3, 4), "mid": dense(4, 4), "out": dense(4, 2)}
    problem = from_stages(kinds, ("in", "mid", "mid", "out"), (x, labels), n=8, batch_size=1)
    params = problem.initial(KEY)

    def slope(features, target):
        loss = lambda p: problem.stages.loss(problem.stages.apply(p, features[None]), target[None])  # noqa: E731
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(jax.grad(loss)(params))])

    slopes = jax.vmap(slope)(jnp.asarray(x[1], jnp.float32), jnp.asarray(labels[1]))
    variance = float(jnp.sum((slopes - slopes.mean(0)) ** 2, axis=1).mean())
    assert gradient_noise(problem, params, KEY) == pytest.approx(variance / 2, rel=0.4)


@pytest.mark.slow
def test_an_ordinary_algorithm_runs_on_stages():
    problem = SMALL["mlp"](4, workers_per_model=1)
    result = decentral.simulate(
        problem,
        decentral.topology.named("ring", n=4),
        A2CiD2(optimizer=optax.sgd(0.1)),
        stop=decentral.Gradients(1200),
        record=Record(count=2),
    )
    assert result.metrics["loss"][0, -1] < 0.8 * result.metrics["loss"][0, 0]


@pytest.mark.slow
def test_a_small_network_learns_the_clusters():
    """P6's setting: 10 stages, 4,000 batches of 32, momentum 0.9: seeds 0 and 1 got 98.0 and 99.0 % of new points right."""
    problem = reversible_mlp(1, workers_per_model=1)
    optimizer = optax.sgd(0.005, momentum=0.9)

    def step(carry, count):
        params, state = carry
        gradient = problem.gradient(params, problem.shards, jnp.int32(0), KEY, count)
        change, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, change), state), None

    @jax.jit
    def trained(params):
        (params, _), _ = jax.lax.scan(
            step, (params, optimizer.init(params)), jnp.arange(4000, dtype=jnp.uint32)
        )
        return problem.evaluate(params, problem.held_out)["accuracy"]

    assert float(trained(problem.initial(KEY))) > 0.965
