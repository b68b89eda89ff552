"""Ridge across workers: what may be averaged, and the problem that gossip solves."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from decentral import DPSGD, InvalidInput, Record, Rounds, simulate
from decentral.experiment.spec import load_spec
from decentral.optical.features import OpticalRandomFeatures
from decentral.optical.ridge import random_features, ridge_across_workers, ridge_weights
from decentral.topology import named


def digits():
    x, labels = load_digits(return_X_y=True)
    parts = train_test_split(x, labels, test_size=0.3, random_state=0, stratify=labels)
    return parts[::2], parts[1::2]


def test_weights_solve_the_normal_equations():
    """With more samples than features and with fewer; and a class that nobody has is never predicted."""
    rng = np.random.default_rng(0)
    for samples, m in ((50, 6), (6, 50)):
        x, labels = rng.standard_normal((samples, m)) + 2, np.arange(samples) % 3
        weights = ridge_weights(x, labels, 4, 0.3)
        left = 2.0 * (labels[:, None] == np.arange(4)) - 1 - x @ weights[:-1] - weights[-1]
        np.testing.assert_allclose(x.T @ left, 0.3 * weights[:-1], atol=1e-8)
        np.testing.assert_allclose(left.sum(0), 0, atol=1e-8)  # the intercept is free
        np.testing.assert_allclose(weights[:, 3], [*np.zeros(m), -1], atol=1e-8)


def test_what_eight_workers_may_average():
    """Predictions of own units and weights behind one are worth the same; weights of own units less than a worker alone."""
    train, test = digits()
    found = ridge_across_workers(train, test, 8, components=512)
    assert found["central"] >= found["shared, weights"] > found["single"] + 0.02
    assert found["private, predictions"] == pytest.approx(found["shared, weights"], abs=0.02)
    assert found["private, weights"] < found["single"] - 0.2
    assert ridge_across_workers(train, test, 1, components=64)["private, weights"] == pytest.approx(
        ridge_across_workers(train, test, 1, components=64)["central"]
    )


def test_the_problem_of_one_unit_and_of_several():
    """Shards are the transformer's features; private ones are worker i's by device i, and tests are there for all devices."""
    options = {"components": 16, "dtype": "float64"}
    shared, private = (random_features(3, units=units, **options) for units in ("shared", "private"))
    assert shared.held_out["features"].shape[1:] == (1, 17)
    assert private.held_out["features"].shape[1:] == (3, 17)
    first, other = (np.asarray(p.shards["samples"]["features"]) for p in (shared, private))
    np.testing.assert_array_equal(first[0], other[0])
    assert np.abs(first[1] - other[1]).max() > 0.01
    np.testing.assert_array_equal(first[..., -1], 1)
    unit = OpticalRandomFeatures(16, encoder="thermometer")
    assert private.held_out["features"][:, 0, :16].shape == (
        len(shared.held_out["target"]),
        unit.n_components,
    )
    params = np.random.default_rng(0).standard_normal((17, 10))
    each = [
        random_features(3, **options).evaluate(
            params, {**private.held_out, "features": private.held_out["features"][:, [i]]}
        )
        for i in range(3)
    ]
    for name in ("accuracy", "loss"):
        expected = np.mean([value[name] for value in each])
        assert private.evaluate(params, private.held_out)[name] == pytest.approx(expected)


def test_constants_and_optimum_of_the_problem():
    """mu and L bound the curvature, and the optimum is where the gradient vanishes: ridge with a penalised intercept."""
    problem = random_features(2, components=16, l2=1e-2, dtype="float64")
    features, target = (np.concatenate(part) for part in _samples(problem))
    hessian = 2 * (features.T @ features / len(features) + 1e-2 * np.eye(17))
    assert problem.mu <= np.linalg.eigvalsh(hessian)[0] * 1.01
    assert np.linalg.eigvalsh(hessian)[-1] * 0.99 <= problem.L
    expected = np.linalg.solve(
        hessian, 2 * features.T @ np.where(target[:, None] == np.arange(10), 1.0, -1.0) / len(features)
    )
    np.testing.assert_allclose(problem.optimum, expected, rtol=1e-2, atol=1e-2)


def _samples(problem):
    counts = np.asarray(problem.shards["count"])
    for name in ("features", "target"):
        yield [np.asarray(rows)[:m] for rows, m in zip(problem.shards["samples"][name], counts, strict=True)]


@pytest.mark.slow
def test_gossip_reaches_consensus_and_private_matrices_make_it_worthless():
    found = {}
    for units in ("shared", "private"):
        problem = random_features(4, components=64, units=units)
        algorithm = DPSGD({"kind": "sgd", "learning_rate": 0.1, "momentum": 0.9})
        result = simulate(
            problem, named("complete", n=4), algorithm, Rounds(), stop=100.0, record=Record(count=2)
        )
        found[units] = result.metrics["test_accuracy"][0, -1]
        assert result.metrics["consensus_distance"][0, -1] < 0.05
    assert found["shared"] > found["private"] + 0.1


def test_specs_know_the_problem():
    spec = load_spec("optical/ridge", overrides=["problem.units=private", "problem.components=8"], smoke=True)
    assert spec.problem_of(0).name == "random_features, private"
    for key, words in (("units", "units"), ("data", "data"), ("encoder", "encoder")):
        with pytest.raises(InvalidInput, match=words):
            random_features(2, **{key: "nothing"})


def test_without_held_out_samples():
    assert random_features(2, components=4, test_fraction=0.0).held_out is None
