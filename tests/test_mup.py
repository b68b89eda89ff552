"""µP: its models as the released code has them, its factors, and that layers then move alike at every width."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import decentral
from decentral import Optimizer, coordinate_check
from decentral.analysis import plot_coordinate_check
from decentral.analysis.coordinates import coordinate_figure
from decentral.errors import InvalidInput
from decentral.experiment.coordinates import CoordinateCheck
from decentral.problem import Role, from_loss, mlp, models, transformer
from decentral.problem.parametrization import multipliers_of

KEY = jax.random.key(0)
LANGUAGE = {"sequences": 64, "test_sequences": 16, "batch_size": 8}


def student(width: int, parametrization: str = "mup"):
    return mlp(1, data="teacher", hidden=(width,) * 3, batch_size=64, parametrization=parametrization)


def speaker(width: int, parametrization: str = "mup", **options):
    return transformer(1, width=width, parametrization=parametrization, **LANGUAGE | options)


def hand_made(parametrization: str = "mup") -> Optimizer:
    """The step sizes of target U3."""
    size = {"mup": 0.1, "standard": 0.003}[parametrization]
    return Optimizer(
        "learned", meta_parameters="hand_made", step_multiplier=size, parametrization=parametrization
    )


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [16, 64])
def test_the_mlp_is_that_of_the_released_code(width):
    """Recorded from MuMLP of µLO (three hidden layers, 20 inputs, 10 outputs), its last layer not 0 but N(0, 1)."""
    recorded = np.load(Path(__file__).parent / "data" / "mulo_mumlp.npz")
    model = models.mlp(20, (width,) * 3, 10, parametrization="mup")
    names = [{"weight": f"w{k}_{width}", "bias": f"b{k}_{width}"} for k in range(4)]
    params = jax.tree.map(lambda name: recorded[name], names)
    scores = jax.vmap(model.apply, (None, 0))(params, recorded[f"x_{width}"])
    np.testing.assert_allclose(scores, recorded[f"y_{width}"], rtol=0, atol=1e-6)
    assert np.abs(recorded[f"y_{width}"]).max() > 0.1
    roles = jax.tree.leaves(model.roles)
    own = jax.tree.map(lambda role: role.multiplier, model.roles)
    assert own == jax.tree.map(lambda name: float(recorded[f"mult_{name}"]), names)
    assert [role.kind for role in roles if role.kind != "vector"] == ["input", "hidden", "hidden", "output"]


def test_the_mlp_begins_as_in_the_released_code():
    """Deviations are within 5 standard errors, whatever the key: of 64 x 512 numbers and more that is 2 %."""
    params = models.mlp(64, (512, 1024), 10, parametrization="mup").init(KEY)
    cut = stats.truncnorm(-2, 2).std()
    for layer, fan_in in zip(params[:2], (64, 512), strict=True):
        np.testing.assert_allclose(layer["weight"].std(), cut * fan_in**-0.5, rtol=0.02)
        assert np.abs(layer["weight"]).max() <= 2 * fan_in**-0.5
    biases = np.concatenate([layer["bias"] for layer in params[:2]])
    assert stats.kstest(biases, "norm").pvalue > 1e-4
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(params[2]))


def test_all_classes_begin_with_the_same_score():
    problem = student(16)
    sample = jax.tree.map(lambda leaf: leaf[0], problem.held_out)
    np.testing.assert_allclose(problem.sample_loss(problem.initial(KEY), sample), np.log(8), rtol=1e-6)


def test_the_teachers_classes_are_learnable_and_none_is_most_of_them():
    problem = student(16)
    labels = problem.shards["samples"]["target"][0]
    assert len(labels) == 16384
    assert len(problem.held_out["target"]) == 4096
    shares = np.bincount(labels, minlength=8) / len(labels)
    assert 0.02 < shares.min() < shares.max() < 0.4
    again = student(16).shards["samples"]["features"]
    np.testing.assert_array_equal(problem.shards["samples"]["features"], again)


def test_the_transformers_attention_is_divided_by_the_size_of_a_head():
    """And by its root in the standard one; logits are divided by the width."""
    tokens = jnp.arange(6) % 5
    build = functools.partial(models.transformer, 8, 6, width=32, heads=2, blocks=1)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(build().init, KEY)
    params = jax.tree.map(lambda leaf: jnp.float32(0.3 * rng.normal(size=leaf.shape)), shapes)
    for name, divisor in {"mup": 16.0, "standard": 4.0}.items():
        seen = jax.jit(build(parametrization=name).activations)(params, tokens)
        block = params["blocks"][0]
        mixed = models.dense(block["mix"], models.layer_norm(block["norm_1"], seen["embedding"]))
        query, key = mixed[:, 16:32], mixed[:, 48:64]  # of the second of two heads
        np.testing.assert_allclose(seen["scores 1"][1], query @ key.T / divisor, atol=1e-5)
        h = seen["embedding"] + seen["attention 1"] + seen["feed-forward 1"]
        plain = models.dense(params["head"], models.layer_norm(params["norm"], h))
        np.testing.assert_allclose(seen["logits"], plain / (32 if name == "mup" else 1), rtol=1e-4, atol=1e-4)


def test_the_transformers_tensors_have_their_roles():
    model = models.transformer(8, 6, width=16, blocks=1, parametrization="mup")
    shapes = jax.eval_shape(model.init, KEY)
    roles = model.roles
    assert jax.tree.structure(roles) == jax.tree.structure(shapes)
    assert roles["tokens"] == Role("input", 8, 16)
    assert roles["positions"] == Role("input", 6, 16)
    assert roles["head"] == {"weight": Role("output", 16, 8), "bias": Role("vector", 1, 8)}
    block = roles["blocks"][0]
    assert block["mix"]["weight"] == Role("hidden", 16, 48)
    assert block["feed_forward"]["out"]["weight"] == Role("hidden", 64, 16)
    assert block["norm_1"]["scale"] == block["out"]["bias"] == Role("vector", 1, 16)


# -- factors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "factors"), [("adam", (1.0, 1 / 32, 1.0, 1.0)), ("sgd", (32.0, 1.0, 32.0, 32.0))]
)
def test_updates_are_multiplied_as_tensor_programs_v_has_it(kind, factors):
    """Table 8 there (recalled): of input, hidden and output weights and hidden biases, logits divided by their fan_in."""
    model = models.mlp(16, (32, 32), 8, parametrization="mup")
    rng = np.random.default_rng(0)
    params, gradient = (
        jax.tree.map(lambda leaf: jnp.float32(rng.normal(size=leaf.shape)), jax.eval_shape(model.init, KEY))
        for _ in range(2)
    )
    own = Optimizer(kind, learning_rate=0.1, parametrization="mup").bound_to(model)
    plain = getattr(optax, kind)(0.1)
    scaled, update = (
        jax.jit(lambda one=one: one.update(gradient, one.init(params), params)[0])()
        for one in (own.transformation(), plain)
    )
    places = [(0, "weight"), (1, "weight"), (2, "weight"), (1, "bias")]
    for (layer, name), factor in zip(places, factors, strict=True):
        np.testing.assert_allclose(scaled[layer][name], factor * update[layer][name], rtol=1e-5)


def test_a_users_own_roles_reach_the_optimizer():
    def loss(params, x):
        return jnp.sum((params["a"] @ x) ** 2) + params["b"] ** 2

    params = {"a": np.ones((3, 4)), "b": np.float64(1)}
    roles = {"a": Role("hidden", 4, 3), "b": Role("vector")}
    problem = from_loss(loss, params, np.ones((2, 5, 4)), dtype="float32", roles=roles)
    assert multipliers_of(problem, "learned") == {"a": 0.25, "b": 1.0}
    optimizer = Optimizer("sign_sgd", learning_rate=0.1, parametrization="mup")
    ring = decentral.topology.named("ring", n=2)
    result = decentral.simulate(problem, ring, decentral.Gossip(optimizer), stop=3.0)
    moved = jax.tree.map(lambda leaf: 1 - leaf.reshape(2, -1), result.final.x)
    assert moved["b"].min() > 0.05
    np.testing.assert_allclose(moved["a"], 0.25 * np.repeat(moved["b"], 12, axis=1), rtol=1e-5)


# -- coordinate check --------------------------------------------------------------------------------------------------


def scaled(width: int):
    """``width`` outputs w * x with the loss (sum w x)^2 / 2, from w = 1: one step of SGD moves all by lr * width * x^2."""
    return from_loss(
        lambda w, x: jnp.sum(w * x) ** 2 / 2,
        np.ones(width),
        np.ones((1, 4)),
        held_out=np.array([1.0, 3.0]),
        dtype="float32",
        activations=lambda w, x: {"z": w * x, "a": x * jnp.arange(width)},
    )


def test_a_coordinate_check_measures_the_spread_of_the_change():
    """Samples 1 and 3: changes by -0.01 width and -0.03 width, of deviation 0.01 width; layers stay in their order."""
    check = coordinate_check(scaled, (2, 4, 8), Optimizer("sgd", learning_rate=0.01), steps=(1, 2), seeds=2)
    assert check.layers == ("z", "a")
    assert check.change.shape == (3, 2, 2, 2)
    np.testing.assert_allclose(check.change[:, 0, :, 0], 0.01 * np.array([[2, 2], [4, 4], [8, 8]]), rtol=1e-4)
    slopes = check.slopes(1)
    np.testing.assert_allclose(slopes["z"], (1.0, 0.0), atol=1e-4)
    assert np.isnan(slopes["a"]).all()  # did not move
    with pytest.raises(
        InvalidInput, match=r"steps: got 0; allowed: a list of them\. E\.g\. steps=\(10, 30\)"
    ):
        coordinate_check(scaled, (2, 4, 8), Optimizer("sgd", learning_rate=0.01), steps=0)  # type: ignore[arg-type]


def test_slopes_are_fitted_for_each_seed():
    widths = np.array([16.0, 32.0, 64.0, 128.0])
    powers = np.array([[0.4, -0.1], [0.6, 0.1], [0.5, 0.3]])  # (seeds, layers)
    change = 3.0 * widths[:, None, None, None] ** powers
    check = CoordinateCheck(("a", "b"), (16, 32, 64, 128), (10,), change)
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    np.testing.assert_allclose(check.slopes()["a"], (0.5, half))
    np.testing.assert_allclose(check.slopes()["b"], (0.1, 2 * half))


def test_the_figure_has_a_panel_for_each_check_and_the_slopes(tmp_path):
    change = np.array([16.0, 64.0])[:, None, None, None] ** np.array([[0.5, 0.0], [0.5, 0.0]])
    check = CoordinateCheck(("first", "last"), (16, 64), (10,), change)
    panels = coordinate_figure({"one": check, "two": check}).axes
    assert [panel.get_title(loc="left") for panel in panels] == ["one, step 10", "two, step 10"]
    labels = [text.get_text() for text in panels[0].get_legend().get_texts()]
    assert labels == ["first: +0.50 ± 0.00", "last: +0.00 ± 0.00"]
    written = [plot_coordinate_check({"one": check}, tmp_path / f"{k}.png") for k in range(2)]
    assert written[0].read_bytes() == written[1].read_bytes()


SETTINGS = {
    "hand-made": {"mup": hand_made("mup"), "standard": hand_made("standard")},
    "adam": {
        name: Optimizer("adam", learning_rate=rate, parametrization=name)
        for name, rate in (("mup", 0.03), ("standard", 0.003))
    },
    "sgd": {"mup": Optimizer("sgd", learning_rate=1.0, momentum=0.5, parametrization="mup")},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETTINGS)
def test_in_mup_layers_move_alike_at_every_width_and_otherwise_do_not(kind):
    """Target U6. Three seeds, fixed: slopes of another three differ by a few hundredths, of the logits by a tenth."""
    widths = (16, 64, 256)
    for name, optimizer in SETTINGS[kind].items():
        check = coordinate_check(lambda width, name=name: student(width, name), widths, optimizer)
        slopes = {layer: slope for layer, (slope, _) in check.slopes().items()}
        if name == "mup":
            assert all(abs(slope) < 0.1 for slope in slopes.values()), slopes
            assert check.change[:, -1].min() > 0.05  # they do move
        else:
            assert slopes["layer 2"] > 0.4, slopes
            assert slopes["layer 3"] > 0.4, slopes
            assert slopes["logits"] > 0.4, slopes


@pytest.mark.slow
def test_blocks_of_a_transformer_move_alike_at_every_width():
    """Scores of the attention apart: they begin at order 1 / sqrt(d) and come to order 1 while queries and keys come to agree."""
    begin = speaker(16, blocks=1).initial(KEY)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(begin["head"]))
    np.testing.assert_allclose(begin["tokens"].std(), 1.0, rtol=0.25)
    for name, rate in (("mup", 0.01), ("standard", 0.003)):
        optimizer = Optimizer("adam", learning_rate=rate, parametrization=name)
        check = coordinate_check(
            lambda width, name=name: speaker(width, name, blocks=1, length=8), (16, 128), optimizer, seeds=2
        )
        slopes = {layer: slope for layer, (slope, _) in check.slopes().items()}
        blocks = [slopes["attention 1"], slopes["feed-forward 1"]]
        if name == "mup":
            assert all(abs(slope) < 0.15 for slope in [*blocks, slopes["embedding"], slopes["logits"]]), (
                slopes
            )
        else:
            assert all(slope > 0.4 for slope in blocks), slopes


# -- bad input ---------------------------------------------------------------------------------------------------------

ADAM = {"learning_rate": 0.1, "parametrization": "mup"}
OWN = {"loss": lambda p, x: jnp.sum(p["a"] * x), "params": {"a": np.ones(2)}, "data": np.ones((1, 3, 2))}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: student(8, "mu"), "problem.parametrization: got 'mu'"),
        (lambda: mlp(1, hidden=(), parametrization="mup"), "at least one hidden layer in µP"),
        (lambda: mlp(1, initialisation="he_normal", parametrization="mup"), "problem.initialisation: got 'he_normal'"),
        (lambda: speaker(8, initialisation="he_normal"), "problem.initialisation: got 'he_normal'"),
        (lambda: Optimizer("lamb", **ADAM), "'standard' with lamb"),
        (lambda: Optimizer("adamw", **ADAM), "optimizer.weight_decay: got 0.0001"),
        (lambda: Optimizer("sgd", weight_decay=0.1, **ADAM), "optimizer.weight_decay: got 0.1"),
        (lambda: Optimizer("adam", **ADAM).bound_to(student(8, "standard")), "whose tensors have no roles"),
        (lambda: Role("inner"), "role.kind: got 'inner'"),
        (lambda: Role("hidden", 0), "role.fan_in: got 0"),
        (lambda: from_loss(**OWN, roles={"b": Role("vector")}), "a Role for each array"),
        (lambda: from_loss(**OWN, roles={"a": 0.5}), "roles: got 'a float among them'"),
        (lambda: coordinate_check(scaled, (8,), Optimizer("sgd", learning_rate=1.0)), "at least 2"),
        (lambda: coordinate_check(scaled, (8, 4), Optimizer("sgd", learning_rate=1.0)), "each larger"),
        (lambda: coordinate_check(scaled, (4, 8), Optimizer("sgd")), "optimizer.learning_rate: got None"),
        (
            lambda: coordinate_check(lambda w: from_loss(**OWN), (4, 8), Optimizer("sgd", learning_rate=1.0)),
            "does not tell its layers' outputs",
        ),
        (
            lambda: CoordinateCheck(("a",), (1, 2), (10,), np.ones((2, 1, 1, 1))).slopes(3),
            "step: got 3",
        ),
        (lambda: plot_coordinate_check({}, "a.png"), "at least one coordinate check"),
    ],
)  # fmt: skip
def test_bad_input(call, words):
    with pytest.raises(InvalidInput) as error:
        call()
    assert words in str(error.value)
