"""The learned optimizer: as the released code computes it, as optax wants it, and what its meta-parameters and files may be."""

from __future__ import annotations

import inspect
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decentral import Gossip, Trace, problem, replay
from decentral.algorithm.optimizer import Optimizer, as_optimizer
from decentral.engine.trace import merge
from decentral.errors import InvalidInput
from decentral.experiment.prepared import resolved_arguments
from decentral.experiment.spec import load_spec
from decentral.learned import optimizer
from decentral.learned.meta_parameters import (
    SHIPPED,
    MetaParameters,
    hand_made,
    initial_meta_parameters,
    load_meta_parameters,
    provenance,
    save_meta_parameters,
)
from decentral.learned.optimizer import learned, time_features
from decentral.problem.parametrization import Role

TENSORS = ("w", "sq", "b", "conv", "s")
NUMBERS = {
    name: argument.default
    for name, argument in inspect.signature(learned).parameters.items()
    if name not in ("meta_parameters", "step_multiplier")
}
"""The numbers among its arguments; all are given below, so that most tests share one compiled program."""
NO_EPSILONS = {name: 0.0 for name in NUMBERS if name.endswith("_epsilon")}


@pytest.fixture(scope="module")
def recorded():
    """Gradients, meta-parameters, and what the released code made of them."""
    with np.load(Path(__file__).parent / "data" / "mulo_update.npz") as file:
        return dict(file)


def recorded_meta(recorded, case: str) -> MetaParameters:
    layers = tuple((recorded[f"{case}_theta_w{k}"], recorded[f"{case}_theta_b{k}"]) for k in range(3))
    decays = (recorded[f"{case}_theta_{name}_decays"] for name in ("momentum", "rms", "adafactor"))
    return MetaParameters(layers, *decays)


def recorded_gradients(recorded, scale: float = 1.0):
    return {n: np.stack([recorded[f"g{t}_{n}"] for t in range(6)]) * np.float32(scale) for n in TENSORS}


@jax.jit
def _descend(meta, params, gradients, multipliers, numbers):
    transformation = learned(meta, **numbers)

    def step(carry, gradient):
        params, state = carry
        updates, state = transformation.update(gradient, state, params)
        updates = jax.tree.map(jnp.multiply, multipliers, updates)
        return (jax.tree.map(jnp.add, params, updates), state), updates

    (params, state), updates = jax.lax.scan(step, (params, transformation.init(params)), gradients)
    return params, state, updates


def descend(meta, params, gradients, multipliers=None, step_multiplier=0.001, **numbers):
    """(params, state, updates) after all gradients, for each tensor an array of them; each update times its multiplier."""
    dtype = next(iter(params.values())).dtype
    numbers = {"step_multiplier": step_multiplier, **NUMBERS, **numbers}
    multipliers = multipliers or dict.fromkeys(params, 1.0)
    as_arrays = jax.tree.map(lambda number: np.asarray(number, dtype), (multipliers, numbers))
    return _descend(meta, params, gradients, *as_arrays)


def some(workers: tuple[int, ...] = ()):
    """Parameters of three ranks and three gradients, float64."""
    rng = np.random.default_rng(0)
    shapes = {"kernel": (2, 5, 4), "bias": (6,), "scale": ()}
    params = {name: jnp.asarray(rng.standard_normal((*workers, *shape))) for name, shape in shapes.items()}
    gradients = {
        name: jnp.asarray(rng.standard_normal((3, *workers, *shape))) for name, shape in shapes.items()
    }
    return params, gradients


def some_meta(seed: int = 0) -> MetaParameters:
    """Random weights, biases and decays."""
    rng = np.random.default_rng(seed)
    meta = initial_meta_parameters(jax.random.key(seed), 4)
    return jax.tree.map(lambda leaf: np.float32(leaf + 0.05 * rng.standard_normal(leaf.shape)), meta)


def close(found, expected, tolerance: float) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# -- as the released code ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "theta", "step_multiplier", "scale"),
    [
        pytest.param("sp4", "sp4", 0.001, 1.0, marks=pytest.mark.slow),
        ("sp32", "sp32", 0.001, 1.0),
        ("mu32", "sp32", 0.01, 1.0),
        ("mu32small", "sp32", 0.01, 1e-4),
    ],
)
def test_six_steps_are_those_of_the_released_code(recorded, case, theta, step_multiplier, scale):
    """Recorded from AdafacMLPLOpt of google/learned_optimization and MuAdafacMLPLOpt of µLO, float32, five tensor shapes."""
    params = {name: jnp.asarray(recorded[f"p0_{name}"]) for name in TENSORS}
    multipliers = {
        name: float(recorded[f"mult_{name}"]) if case.startswith("mu") else 1.0 for name in TENSORS
    }
    gradients, meta = recorded_gradients(recorded, scale), recorded_meta(recorded, theta)
    found, state, _ = descend(meta, params, gradients, multipliers, step_multiplier)
    for name in TENSORS:
        moved = recorded[f"{case}_p6_{name}"] - recorded[f"p0_{name}"]
        error = np.linalg.norm(found[name] - recorded[f"{case}_p6_{name}"]) / np.linalg.norm(moved)
        assert found[name].dtype == np.float32
        assert error < 1e-4, (name, error)
        averages = {"m": state.momentum[name], "rms": state.rms[name][None]}
        kinds = ("vrow", "vcol") if len(state.adafactor[name]) == 2 else ("vdiag",)
        for key, average in (averages | dict(zip(kinds, state.adafactor[name], strict=True))).items():
            expected = recorded[f"{case}_{key}_{name}"]
            np.testing.assert_allclose(np.moveaxis(average, 0, -1), expected, rtol=1e-4, atol=1e-7 * scale)


def test_features_of_time_are_those_of_the_released_code(recorded):
    for count, expected in zip((0, 1, 10, 1000), recorded["tanh_embedding_t0_t10"], strict=True):
        np.testing.assert_allclose(time_features(np.int32(count), np.float32), expected, rtol=1e-6)


def test_small_gradients_change_the_update_by_half_with_the_official_epsilons(recorded):
    """By 56 % for the square matrix, as in the recorded vectors."""
    params, meta = (
        {name: jnp.asarray(recorded[f"p0_{name}"]) for name in TENSORS},
        recorded_meta(recorded, "sp32"),
    )
    updates = (
        descend(meta, params, recorded_gradients(recorded, scale), None, 0.01)[2] for scale in (1, 1e-4)
    )
    large, small = (update["sq"].sum(0) for update in updates)
    ratio = float(jnp.linalg.norm(small - large) / jnp.linalg.norm(large))
    assert ratio == pytest.approx(0.56, abs=0.01)


def test_without_epsilons_the_update_does_not_see_the_scale_of_gradients():
    params, gradients = some()
    smaller = jax.tree.map(lambda g: g * 1e-6, gradients)
    updates = [descend(some_meta(), params, g, **NO_EPSILONS)[2] for g in (gradients, smaller)]
    close(updates[1], updates[0], 1e-12)
    assert float(jnp.abs(updates[0]["kernel"]).max()) > 1e-5


# -- what is written by hand -------------------------------------------------------------------------------------------


def test_the_hand_made_one_is_momentum_over_its_root_mean_square():
    params, gradients = some()
    found = descend(hand_made(), params, gradients, step_multiplier=0.1)[0]
    for name, expected in params.items():
        expected, momentum, square = np.asarray(expected), 0.0, 0.0
        for gradient in np.asarray(gradients[name]):
            momentum, square = 0.9 * momentum + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
            ratio = momentum / np.sqrt(square + 1e-6)
            expected = expected - 0.1 * ratio / np.sqrt(1e-5 + np.mean(ratio**2))
        np.testing.assert_allclose(found[name], expected, rtol=1e-13, atol=1e-13)


# -- the optax contract ------------------------------------------------------------------------------------------------


def test_workers_side_by_side_are_the_workers_one_by_one():
    """Each with meta-parameters of its own."""
    params, gradients = some(workers=(3,))
    metas = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(some_meta(seed) for seed in range(3)))
    side_by_side = jax.vmap(descend, (0, 0, 1))(metas, params, gradients)[:2]
    for worker in range(3):
        meta, own = jax.tree.map(lambda leaf, k=worker: leaf[k], (metas, params))
        alone = descend(meta, own, jax.tree.map(lambda g, k=worker: g[:, k], gradients))[:2]
        close(alone, jax.tree.map(lambda leaf, k=worker: leaf[k], side_by_side), 1e-12)


def test_blocks_of_a_tensor_are_the_tensor(monkeypatch):
    """Two blocks in the rows and in the others' axis, the last ones reaching back; largest axis first, and a vector's."""
    rng = np.random.default_rng(2)
    params = {
        name: jnp.asarray(rng.standard_normal(shape))
        for name, shape in (("kernel", (5, 3, 3)), ("bias", (19,)))
    }
    whole = learned(some_meta())
    state, updates = whole.init(params), []
    for size in (optimizer.BLOCK, 10):
        monkeypatch.setattr(optimizer, "BLOCK", size)
        updates.append(jax.jit(learned(some_meta()).update)(params, state, params))
    assert optimizer.Blocks((3, 5, 3)).size == (1, 3, 3)
    assert optimizer.Blocks((1, 1, 19)).numbers == (1, 1, 2)
    close(updates[1], updates[0], 1e-12)


def test_the_state_is_arrays_of_the_parameters_precision():
    params = {"matrix": jnp.ones((5, 4), jnp.float32), "scale": jnp.float32(1)}
    transformation = learned(some_meta())
    state = transformation.init(params)
    _, after = jax.eval_shape(transformation.update, params, state, params)
    kinds = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (state, after)]
    assert kinds[0] == kinds[1]
    assert all(isinstance(leaf, jax.Array) and leaf.size for leaf in jax.tree.leaves(state))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state[1:])} == {"float32"}
    assert [factor.shape for factor in state.adafactor["matrix"]] == [(3, 4), (3, 5)]


def test_the_update_is_linear_in_its_multipliers():
    params, gradients = some()
    once, twice = (
        jax.tree.map(lambda u: u[0], descend(some_meta(), params, gradients, step_multiplier=size)[2])
        for size in (0.5, 1.0)
    )
    close(jax.tree.map(lambda leaf: 2 * leaf, once), twice, 1e-13)


def test_in_mup_each_update_gets_its_tensors_factor():
    params = {"hidden": jnp.ones((5, 4)), "output": jnp.ones((5, 4))}
    gradient = jax.tree.map(lambda leaf: leaf.cumsum(0), params)
    model = types.SimpleNamespace(
        roles={"hidden": Role("hidden", 5), "output": Role("output", 5)}, name="two"
    )
    optimizer = Optimizer("learned", meta_parameters="hand_made", parametrization="mup")
    assert optimizer.arguments["step_multiplier"] == 0.01

    @jax.jit
    def moved(optimizer):
        return optimizer.descend(params, gradient, optimizer.transformation().init(params))[0]

    steps = jax.tree.map(jnp.subtract, moved(optimizer.bound_to(model)), params)
    assert float(jnp.abs(steps["output"]).max()) > 1e-3
    np.testing.assert_allclose(5 * steps["hidden"], steps["output"], rtol=1e-12)


def test_the_update_follows_a_permutation_of_the_entries():
    """Rows and columns of a matrix, entries of a vector: nothing else knows where a parameter lies."""
    rng = np.random.default_rng(3)
    params, gradients = some()
    rows, columns, entries = rng.permutation(5), rng.permutation(4), rng.permutation(6)

    def permuted(tree):
        kernel = tree["kernel"][..., ::-1, rows, :][..., columns]
        return tree | {"kernel": kernel, "bias": tree["bias"][..., entries]}

    updates = descend(some_meta(), params, gradients)[2]
    close(descend(some_meta(), permuted(params), permuted(gradients))[2], permuted(updates), 1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_zero_gradients_give_finite_updates(value):
    params, gradients = some()
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, value), params)
    everything = descend(some_meta(), params, jax.tree.map(jnp.zeros_like, gradients))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(everything))


@pytest.mark.slow
def test_meta_gradients_are_those_of_finite_differences():
    params, gradients = some()
    params, gradients = {"kernel": params["kernel"]}, {"kernel": gradients["kernel"]}
    meta = jax.tree.map(np.float64, some_meta())
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), meta)

    @jax.jit
    @jax.value_and_grad
    def loss(size):
        moved = jax.tree.map(lambda leaf, d: leaf + size * d, meta, direction)
        return jnp.sum(descend(moved, params, gradients, step_multiplier=0.1)[0]["kernel"] ** 2)

    slope, width = float(loss(0.0)[1]), 1e-5
    assert abs(slope) > 1e-3
    assert slope == pytest.approx(float(loss(width)[0] - loss(-width)[0]) / (2 * width), rel=1e-5)


def test_an_update_without_the_parameters_says_what_is_missing():
    transformation = learned(hand_made())
    with pytest.raises(InvalidInput, match="params"):
        transformation.update(jnp.ones(3), transformation.init(jnp.ones(3)))


# -- meta-parameters and their files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("hidden", "numbers"), [(4, 197), (32, 2409)])
def test_meta_training_starts_as_in_the_released_code(hidden, numbers):
    meta = initial_meta_parameters(jax.random.key(0), hidden)
    assert meta.hidden == hidden
    assert sum(leaf.size for leaf in jax.tree.leaves(meta)) == numbers
    assert {leaf.dtype.name for leaf in jax.tree.leaves(meta)} == {"float32"}
    (weight, bias), *_ = meta.layers
    assert np.abs(weight).max() <= 2 / np.sqrt(39)
    # of 156 numbers and more, each within two standard deviations: five standard errors
    assert np.std(weight) * np.sqrt(39) == pytest.approx(0.88, abs=5 * 0.6 / np.sqrt(weight.size))
    assert not np.any(bias)
    assert not np.any(meta.momentum_decays)


def test_meta_parameters_come_back_from_their_file(tmp_path):
    meta, path, origin = (
        initial_meta_parameters(jax.random.key(1), 6),
        tmp_path / "mine.npz",
        {"seed": 1, "spec": {"a": [1]}},
    )
    save_meta_parameters(path, meta, origin)
    loaded = load_meta_parameters(path)
    assert provenance(path) == origin
    assert loaded.name == str(path)
    assert all(map(np.array_equal, jax.tree.leaves(loaded), jax.tree.leaves(meta)))
    assert loaded == load_meta_parameters(str(path))
    assert loaded != hand_made()
    assert [file.name for file in tmp_path.iterdir()] == ["mine.npz"]


@pytest.mark.parametrize("name", SHIPPED)
def test_what_comes_with_the_package_loads_and_says_where_it_is_from(name):
    assert load_meta_parameters(name).name == name
    assert provenance(name)


def spoiled(change) -> dict:
    arrays = {f"w{k}": w for k, (w, _) in enumerate(hand_made().layers)} | {
        f"b{k}": b for k, (_, b) in enumerate(hand_made().layers)
    }
    arrays |= {
        name: getattr(hand_made(), name) for name in ("momentum_decays", "rms_decays", "adafactor_decays")
    }
    change(arrays)
    return arrays


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.pop("b1"), "Missing"),
        (lambda a: a.update(w0=a["w0"][:28]), r"w0.*\(28, 4\).*\(39, 4\)"),
        (lambda a: a.update(w1=np.ones((5, 5), np.float32)), "w1"),
        (lambda a: a.update(rms_decays=np.float32([np.nan])), "rms_decays.*not finite"),
        (lambda a: a.update(w2=np.array([["a", "b"]] * 4)), "w2"),
        (lambda a: a.update(w0=np.array([{}], object)), "Reading it failed"),
        (lambda a: a.update(provenance=np.array("{")), "Reading it failed"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, change, words):
    np.savez(tmp_path / "bad.npz", **spoiled(change))
    with pytest.raises(InvalidInput, match=words):
        load_meta_parameters(tmp_path / "bad.npz")


@pytest.mark.parametrize("count", [0, 2, 4])
def test_another_number_of_layers_is_refused(count):
    meta = hand_made()
    with pytest.raises(InvalidInput, match=f"layers: got '{count} of them'; allowed: 3"):
        MetaParameters((*meta.layers, *meta.layers)[:count], *jax.tree.leaves(meta)[-3:])


def test_other_meta_parameters_are_for_a_learned_optimizer():
    optimizer = Optimizer("learned", meta_parameters="hand_made", step_multiplier=0.2)
    other = optimizer.with_meta_parameters(some_meta())
    assert other == Optimizer("learned", meta_parameters=some_meta(), step_multiplier=0.2)
    for one, given in ((optimizer, "mulo_small"), (Optimizer("sgd", learning_rate=0.1), some_meta())):
        with pytest.raises(InvalidInput, match=r"optimizer\.meta_parameters"):
            one.with_meta_parameters(given)


def test_what_cannot_be_loaded_or_saved_is_named(tmp_path):
    (tmp_path / "text.npz").write_text("not this")
    with pytest.raises(InvalidInput, match=r"an \.npz file"):
        load_meta_parameters(tmp_path / "text.npz")
    with pytest.raises(InvalidInput, match="Did you mean 'hand_made'"):
        load_meta_parameters("handmade")
    with pytest.raises(InvalidInput, match=r"It is a folder; .* in meta_parameters\.npz"):
        load_meta_parameters(tmp_path)
    with pytest.raises(InvalidInput, match=r"ends in \.npz"):
        save_meta_parameters(tmp_path / "mine.pkl", hand_made(), {})
    diverged = jax.tree.map(lambda leaf: jnp.asarray(leaf) * jnp.nan, hand_made())
    with pytest.raises(InvalidInput, match="not finite"):
        save_meta_parameters(tmp_path / "mine.npz", diverged, {})
    assert not (tmp_path / "mine.npz").exists()


# -- as a local optimizer ----------------------------------------------------------------------------------------------

TABLE = {"kind": "learned", "meta_parameters": "hand_made", "step_multiplier": 0.05}


def test_a_table_and_the_optimizer_say_the_same():
    optimizer = as_optimizer(TABLE)
    assert optimizer.as_dict() == TABLE
    assert optimizer == Optimizer("learned", meta_parameters=hand_made(), step_multiplier=0.05)
    assert optimizer != Optimizer("learned", meta_parameters=hand_made(), step_multiplier=0.1)
    assert (
        as_optimizer({"kind": "learned", "meta_parameters": "hand_made"}).arguments["step_multiplier"]
        == 0.001
    )
    assert not optimizer.needs_learning_rate
    assert (
        len(jax.tree.leaves(optimizer)) == 10
    )  # the numbers: three layers, three groups of decays, the multiplier


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "meta_parameters.*hand_made"),
        ({"meta_parameters": 3}, "meta_parameters"),
        ({"meta_parameters": "hand_mad"}, "hand_made"),
        ({"meta_parameters": "hand_made", "step_multiplyer": 1}, "Did you mean 'step_multiplier'"),
        ({"meta_parameters": "hand_made", "learning_rate": 0.1}, "step_multiplier"),
        ({"meta_parameters": "hand_made", "step_multiplier": -1}, ">= 0"),
        ({"meta_parameters": "hand_made", "rms_epsilon": float("nan")}, "rms_epsilon"),
        ({"meta_parameters": "hand_made", "feature_epsilon": True}, "feature_epsilon"),
        ({"meta_parameters": "hand_made", "parametrization": "mu"}, "mup"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, words):
    with pytest.raises(InvalidInput, match=words):
        Optimizer("learned", **arguments)


def test_a_schedule_multiplies_the_steps_and_weight_decay_joins_the_gradient():
    params, gradients = some()
    params, gradients = {"bias": params["bias"]}, {"bias": gradients["bias"]}
    schedule = {"kind": "step", "milestones": [2], "decay": 0.5}
    optimizer = as_optimizer(TABLE | {"schedule": schedule, "weight_decay": 0.1})
    state, own = optimizer.transformation().init(params), params
    plain, expected = learned(hand_made(), step_multiplier=0.05), params
    memory = plain.init(params)
    step, plain_step = jax.jit(optimizer.descend), jax.jit(plain.update)
    for t in range(3):
        gradient = jax.tree.map(lambda g, t=t: g[t], gradients)
        own, state = step(own, gradient, state)
        decayed = jax.tree.map(lambda g, p: g + 0.1 * p, gradient, expected)
        steps, memory = plain_step(decayed, memory, expected)
        expected = jax.tree.map(lambda p, s, f=0.5 ** (t >= 2): p + f * s, expected, steps)
    close(own, expected, 1e-12)


@pytest.mark.slow
def test_replicas_may_differ_in_meta_parameters_and_multipliers():
    """Two replicas together are each alone: what is learned is a hyper-parameter like any other."""
    times, workers = np.arange(6.0), np.array([[0, -1], [1, -1]] * 3)
    traces = [Trace.from_arrays(times, [0] * 6, workers, n_workers=2, seed=seed) for seed in (0, 1)]
    algorithms = [
        Gossip(optimizer=Optimizer("learned", meta_parameters=some_meta(seed), step_multiplier=size))
        for seed, size in ((0, 0.1), (1, 0.03))
    ]
    quadratic = problem.quadratic(n=2, d=3, seed=0)
    together = np.asarray(replay(merge(traces), quadratic, algorithms).final.x)
    for k in range(2):
        alone = replay(traces[k], quadratic, algorithms[k]).final.x
        np.testing.assert_allclose(together[2 * k : 2 * k + 2], alone, rtol=1e-10)
        assert np.abs(alone).min() > 1e-3  # from zeros


def test_a_spec_takes_it_with_overrides_and_a_grid():
    spec = {
        "name": "learned",
        "topology": {"kind": "ring", "n": 4},
        "problem": {"kind": "quadratic", "d": 3},
        "stop": {"kind": "gradients", "gradients": 8},
        "algorithm": [{"kind": "gossip", "optimizer": dict(TABLE)}],
    }
    chosen = load_spec(spec, overrides=["algorithm.gossip.optimizer.exponent_multiplier=0.5"]).algorithms()[
        "gossip"
    ]
    table = TABLE | {"exponent_multiplier": 0.5}
    assert chosen.optimizer == as_optimizer(table)
    assert resolved_arguments([chosen, chosen])["optimizer"] == table
    grid = {"algorithm": {"gossip": {"optimizer": {"step_multiplier": [0.1, 0.2]}}}}
    assert load_spec(spec | {"tune": grid}).grids() == {"gossip": {"optimizer.step_multiplier": [0.1, 0.2]}}
    with pytest.raises(
        InvalidInput, match=r"algorithm\.gossip\.optimizer\.meta_parameters.*Did you mean 'hand_made'"
    ):
        load_spec(spec, overrides=["algorithm.gossip.optimizer.meta_parameters=hand-made"])
