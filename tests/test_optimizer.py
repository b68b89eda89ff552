"""Weight decay inside the gradient, its masks, and schedules of the learning rate: as the recursions written out here."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from decentral import A2CiD2, Gossip, problem, replay, simulate
from decentral.algorithm.optimizer import Optimizer, Schedule, as_optimizer
from decentral.errors import InvalidInput
from decentral.experiment.prepared import resolved_arguments
from decentral.experiment.spec import load_spec
from decentral.problem import models
from decentral.topology import named

GOYAL = {"kind": "goyal", "warmup_steps": 10, "factor": 4.0, "milestones": [20, 35], "decay": 0.1}
SGD = {"kind": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.05, "schedule": GOYAL}


def goyal(k: int) -> float:
    """The factor of update k, as Goyal et al. have it."""
    if k < 10:
        return 1 + 3 * k / 10
    return 4.0 * 0.1 ** ((k >= 20) + (k >= 35))


def by_hand(x: np.ndarray, gradients: np.ndarray, learning_rate: float, decayed: bool = True) -> np.ndarray:
    """PyTorch's SGD: the buffer takes gradient + weight_decay * x."""
    buffer = np.zeros_like(x)
    for k, gradient in enumerate(gradients):
        buffer = 0.9 * buffer + gradient + 0.05 * x * decayed
        x = x - learning_rate * goyal(k) * buffer
    return x


def descend(optimizer: Optimizer, params, gradients):
    """``params`` after all gradients, in a compiled loop; counts how often it was traced."""
    traced = []

    @jax.jit
    def step(optimizer, params, state, gradient):
        traced.append(1)
        return optimizer.descend(params, gradient, state)

    state = optimizer.transformation().init(params)
    for gradient in gradients:
        params, state = step(optimizer, params, state, gradient)
    return params, len(traced)


def test_sgd_with_decay_momentum_and_goyal_is_the_recursion():
    rng = np.random.default_rng(0)
    x, gradients = rng.standard_normal(7), rng.standard_normal((50, 7))
    found, traced = descend(as_optimizer(SGD), jnp.asarray(x), gradients)
    np.testing.assert_allclose(found, by_hand(x, gradients, 0.1), rtol=1e-12, atol=1e-12)
    assert traced == 1


@pytest.mark.parametrize("decay", ["all", "matrices"])
def test_the_mask_leaves_out_vectors(decay):
    rng = np.random.default_rng(1)
    shapes = {"bias": (4,), "weights": (4, 3), "kernel": (2, 2, 1, 3), "scale": ()}
    x = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    gradients = [{name: rng.standard_normal(shape) for name, shape in shapes.items()} for _ in range(30)]
    found, _ = descend(as_optimizer(SGD | {"decay": decay}), jax.tree.map(jnp.asarray, x), gradients)
    for name, shape in shapes.items():
        expected = by_hand(x[name], [g[name] for g in gradients], 0.1, decay == "all" or len(shape) >= 2)
        np.testing.assert_allclose(found[name], expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_stacked_biases_of_a_mixtures_experts_are_biases(kind):
    """Without a gradient a step only decays: by the factor 1 - 0.1 * 0.5, or not at all."""
    shapes = jax.eval_shape(models.moe(4, 6, width=8, experts=3)[0].init, jax.random.key(0))
    ones, zeros = (
        jax.tree.map(lambda leaf, fill=fill: jnp.full(leaf.shape, fill), shapes) for fill in (1.0, 0.0)
    )
    optimizer = Optimizer(kind, learning_rate=0.1, weight_decay=0.5, decay="matrices")
    found, _ = descend(optimizer, ones, [zeros])
    leaves = jax.tree_util.tree_leaves_with_path(found)
    assert any(path[-1].key == "bias" and leaf.ndim == 2 for path, leaf in leaves), "there is one"
    for path, leaf in leaves:
        decayed = leaf.ndim >= 2 and path[-1].key != "bias"
        np.testing.assert_allclose(leaf, 0.95 if decayed else 1.0, rtol=1e-6, err_msg=str(path))


@pytest.mark.parametrize(
    ("kind", "mask"), [("adamw", "mask"), ("lamb", "mask"), ("lars", "weight_decay_mask")]
)
def test_optimizers_with_a_decay_of_their_own_keep_it(kind, mask):
    rng = np.random.default_rng(2)
    x = {"bias": jnp.asarray(rng.standard_normal(3)), "weights": jnp.asarray(rng.standard_normal((3, 2)))}
    gradients = [jax.tree.map(jnp.sin, x), jax.tree.map(jnp.cos, x), x]
    ours, _ = descend(Optimizer(kind, learning_rate=0.1, weight_decay=0.3, decay="matrices"), x, gradients)
    own = getattr(optax, kind)(0.1, weight_decay=0.3, **{mask: {"bias": False, "weights": True}})
    theirs, _ = descend(Optimizer(own), x, gradients)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"kind": "constant"}, lambda k: 1.0),
        ({"kind": "step", "milestones": [3, 5], "decay": 0.5}, lambda k: 0.5 ** ((k >= 3) + (k >= 5))),
        (
            {"kind": "cosine", "steps": 8, "final": 0.2},
            lambda k: 0.2 + 0.4 * (1 + np.cos(np.pi * min(k, 8) / 8)),
        ),
        (
            {"kind": "goyal", "warmup_steps": 4, "factor": 0.5, "milestones": [4]},
            lambda k: 1 - k / 8 if k < 4 else 0.05,
        ),
        ({"kind": "goyal", "warmup_steps": 0, "factor": 2.0}, lambda k: 2.0),
    ],
)
def test_schedules_are_their_formulas(table, expected):
    schedule = Schedule(**table)
    np.testing.assert_allclose(
        [float(schedule(k)) for k in range(12)], [expected(k) for k in range(12)], rtol=1e-14
    )


# -- in runs -----------------------------------------------------------------------------------------------------------


def test_replicas_with_other_numbers_are_the_single_runs():
    quadratic = problem.quadratic(n=4, d=3, seed=0)
    numbers = itertools.product((0.01, 0.02), (1.0, 3.0))
    tables = [SGD | {"learning_rate": rate, "schedule": GOYAL | {"factor": f}} for rate, f in numbers]
    algorithms = [Gossip(optimizer=as_optimizer(table)) for table in tables]
    first = simulate(quadratic, named("ring", n=4), algorithms[0], stop=30.0, seeds=[0, 1, 2, 3])
    together = replay(first.trace, quadratic, algorithms)
    for index, algorithm in enumerate(algorithms):
        alone = replay(first.trace.replica(index), quadratic, algorithm)
        for name in ("distance_to_optimum", "consensus_distance"):
            np.testing.assert_allclose(
                together.metrics[name][index], alone.metrics[name][0], rtol=1e-10, atol=1e-13
            )


def test_decay_and_schedule_reach_both_variables_of_a2cid2():
    """One worker's updates without any exchange in between: x and x_tilde take the same steps, decay from x."""
    algorithm = A2CiD2(optimizer=as_optimizer(SGD), eta=0.1, alpha_tilde=0.5)
    rng = np.random.default_rng(3)
    x, gradients = rng.standard_normal(5), rng.standard_normal((40, 5))
    key = jax.random.key(0)
    state = algorithm.init(jnp.asarray(x), key)
    for gradient in gradients:
        state = algorithm.update(state, jnp.asarray(gradient), key)
    for found in (state.x, state.x_tilde):
        np.testing.assert_allclose(found, by_hand(x, gradients, 0.1), rtol=1e-11, atol=1e-12)


def test_the_schedule_multiplies_the_theorys_step():
    quadratic = problem.quadratic(n=4, d=3, seed=0)
    open_rate = {"kind": "sgd", "schedule": {"kind": "step", "milestones": [5]}}
    result = simulate(
        quadratic, named("ring", n=4), Gossip(optimizer=as_optimizer(open_rate)), stop=1.0, seeds=[0]
    )
    found = result.algorithms[0].optimizer
    assert found.arguments["learning_rate"] > 0
    assert found.arguments["schedule"] == Schedule("step", milestones=[5])


# -- in files ----------------------------------------------------------------------------------------------------------


def test_a_spec_makes_it_and_gets_it_back():
    table = SGD | {"decay": "matrices"}
    tables = {
        "name": "decayed",
        "topology": {"kind": "ring", "n": 4},
        "problem": {"kind": "quadratic", "d": 3},
        "stop": {"kind": "time", "time_s": 1.0},
        "algorithm": [{"kind": "gossip", "optimizer": table}],
    }
    (algorithm,) = load_spec(tables).algorithms().values()
    given = resolved_arguments([algorithm])["optimizer"]
    assert given == table
    again = load_spec(tables | {"algorithm": [{"kind": "gossip", "optimizer": given}]})
    assert again.algorithms()["gossip"] == algorithm


def test_flattening_gives_back_what_was_there():
    optimizer = as_optimizer(SGD | {"decay": "matrices"})
    leaves, tree = jax.tree.flatten(optimizer)
    assert jax.tree.unflatten(tree, leaves) == optimizer
    assert sorted(leaves) == [0.05, 0.1, 0.1, 0.9, 4.0]
    assert jax.tree.structure(as_optimizer(SGD | {"decay": "matrices", "learning_rate": 1})) == tree


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            {"schedule": {"kind": "goyl", "warmup_steps": 1}},
            ["optimizer.schedule.kind", "Did you mean 'goyal'?"],
        ),
        ({"schedule": {}}, ["optimizer.schedule.kind", "None"]),
        ({"schedule": "goyal"}, ["optimizer.schedule", "a table with kind"]),
        ({"schedule": GOYAL | {"warmup": 3}}, ["optimizer.schedule.warmup", "Did you mean 'warmup_steps'?"]),
        ({"schedule": {"kind": "step"}}, ["optimizer.schedule.milestones", "needs it"]),
        (
            {"schedule": GOYAL | {"milestones": [30, 20]}},
            ["milestones", "[30, 20]", "larger than the one before"],
        ),
        ({"schedule": GOYAL | {"milestones": [5]}}, ["milestones", "after the warm-up of 10"]),
        ({"schedule": GOYAL | {"milestones": 30}}, ["milestones", "30"]),
        ({"schedule": GOYAL | {"milestones": [-1, 20]}}, ["milestones", "above 0"]),
        ({"schedule": GOYAL | {"warmup_steps": -1}}, ["warmup_steps", "-1", "at least 0"]),
        ({"schedule": GOYAL | {"factor": -1.0}}, ["optimizer.schedule.factor", "-1.0", ">= 0"]),
        ({"schedule": {"kind": "cosine", "steps": 0}}, ["optimizer.schedule.steps", "at least 1"]),
        ({"weight_decay": -0.1}, ["optimizer.weight_decay", "-0.1"]),
        ({"weight_decay": 0.1, "decay": "matrix"}, ["optimizer.decay", "Did you mean 'matrices'?"]),
        ({"decay": "matrices"}, ["optimizer.decay", "without weight_decay"]),
        ({"kind": "novograd", "decay": "matrices"}, ["optimizer.decay", "novograd"]),
        ({"wieght_decay": 0.1}, ["optimizer.wieght_decay", "Did you mean 'weight_decay'?"]),
        ({"momentum": 1.0}, ["optimizer.momentum: got 1.0", "below 1"]),
        ({"momentum": float("nan")}, ["optimizer.momentum: got nan", "a finite number"]),
        ({"nesterov": "maybe"}, ["optimizer.nesterov: got 'maybe'", "true or false"]),
    ],
)
def test_bad_input_is_refused(table, words):
    with pytest.raises(InvalidInput) as caught:
        as_optimizer(table)
    assert all(word in str(caught.value) for word in words)


def test_a_decay_of_the_functions_own_stays_a_number():
    assert Optimizer("rmsprop", learning_rate=0.1, decay=0.5).arguments["decay"] == 0.5
