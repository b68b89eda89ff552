"""Tuning by gradient through a run's events: slopes against finite differences, and what is found against the run itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import decentral
from decentral import (
    ACCO,
    DPSGD,
    A2CiD2,
    Cluster,
    DiLoCo,
    Gossip,
    Gradients,
    InvalidInput,
    Links,
    Overlapped,
    Record,
    Rendezvous,
    Rounds,
    RunFailed,
    pytree,
)
from decentral.problem import from_loss, quadratic
from decentral.protocol import Demand
from decentral.timing.compute import LogNormal
from decentral.topology import named
from decentral.topology.schedules import Schedule

N = 6
SGD = {"kind": "sgd", "learning_rate": 0.02, "momentum": 0.5}
TWICE = Record(count=2, evaluate=False)
LEAN = Record(count=1, evaluate=False)
pytestmark = pytest.mark.usefixtures("compiled_once")


def noisy(n: int = N):
    return quadratic(n=n, d=3, heterogeneity=1.0, noise=0.1, dtype="float64")


def tuned(algorithm, tune, protocol=None, problem=None, **options):
    arguments = {"stop": 8.0, "steps": 3, "metric": "distance_to_optimum"} | {"record": LEAN, **options}
    problem = noisy() if problem is None else problem
    return decentral.tune_by_gradient(
        problem, named("ring", n=problem.n_workers), algorithm, protocol, tune=tune, **arguments
    )


def test_the_gradient_of_a_run():
    """In float64 nine digits of the finite difference; the history tells all."""
    seen = []
    found = tuned(
        A2CiD2(optimizer=SGD), ("optimizer.learning_rate", "eta", "alpha_tilde"), seeds=2, steps=12,
        progress=lambda step, value: seen.append((step, value)),
    )  # fmt: skip
    assert found.gradient_error < 1e-8
    assert found.objective.shape == (13,)
    assert found.improvement > 1.02
    assert found.objective[found.best] == found.objective.min()
    assert seen == list(enumerate(found.objective))[1:]
    for name, of in found.history.items():
        assert of[0] != of[found.best] == found.values[name]


@pytest.mark.slow
def test_weights_of_edges():
    """The matrix found stays a symmetric weighted mean, and mixes in a run as tuning says."""
    found = tuned(
        DPSGD(optimizer=SGD), ("edge_weights", "optimizer.momentum"), Rounds(), steps=20,
        record=TWICE, metric="consensus_distance",
    )  # fmt: skip
    assert found.gradient_error < 1e-8
    assert found.improvement > 1.2
    assert found.edges.tolist() == [[0, 1], [0, 5], [1, 2], [2, 3], [3, 4], [4, 5]]
    (matrix,) = found.mixing.rounds
    assert found.mixing.symmetric
    assert found.mixing.row_stochastic
    np.testing.assert_allclose(matrix[tuple(found.edges.T)].ravel(), [found.values["edge_weights"]])
    run = decentral.simulate(
        noisy(),
        named("ring", n=N),
        found.algorithm,
        Rounds(mixing=found.mixing),
        stop=8.0,
        record=Record(count=2),
    )
    measured = run.metrics["consensus_distance"][:, 1:].mean()
    assert measured == pytest.approx(found.objective[found.best], rel=1e-9)


LATE = Cluster(compute=LogNormal(mean_s=0.1, sigma=0.3), links=Links(latency_s=0.05))
MOMENTA = ("optimizer.learning_rate", "optimizer.momentum")
KINDS = {
    "messages in flight": (
        A2CiD2(optimizer=SGD),
        Rendezvous(),
        (*MOMENTA, "eta", "alpha"),
        {"cluster": LATE},
    ),
    "averages": (DiLoCo(optimizer=SGD, local_steps=3), Rounds(), (*MOMENTA, "outer_learning_rate"), {}),
    "one copy": (ACCO(optimizer=SGD), Overlapped(), MOMENTA, {"cluster": LATE}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", KINDS)
def test_gradients_of_other_kinds(case):
    """Slots, averages of all workers, and all-reduces under way: the same digits."""
    algorithm, protocol, tune, options = KINDS[case]
    found = tuned(algorithm, tune, protocol, steps=1, stop=Gradients(240), **options)
    assert found.gradient_error < 1e-8
    assert found.events > 10


@pytest.mark.slow
def test_a_step_too_far_is_taken_back():
    """Values that diverge are left again with half the step: the best are finite, and better than the first."""
    slow = Gossip(optimizer=SGD | {"learning_rate": 1e-3})
    found = tuned(slow, ("optimizer.learning_rate",), step_size=100.0, steps=12)
    assert np.isinf(found.objective).any()
    assert found.objective[found.best] < found.objective[0]


@pytest.mark.slow
def test_where_the_gradient_is_not_finite():
    """A gradient is 0 at first, and Adam takes the root of its square."""
    data = {"y": np.random.default_rng(0).normal(size=(N, 5))}
    blind = from_loss(lambda w, sample: (w[0] - sample["y"]) ** 2 + w[0] * w[1] ** 2, np.zeros(2), data)
    adam = {"kind": "adam", "learning_rate": 0.1}
    arguments = {
        "tune": ("optimizer.learning_rate",),
        "problem": blind,
        "metric": "loss",
        "record": Record(count=1),
    }
    with pytest.raises(RunFailed, match="eps_root"):
        tuned(Gossip(optimizer=adam), **arguments)
    found = tuned(Gossip(optimizer=adam | {"eps_root": 1e-12}), **arguments)
    assert found.gradient_error < 1e-6
    with pytest.raises(RunFailed, match="diverges where tuning starts"):
        tuned(Gossip(optimizer=SGD | {"learning_rate": 1e200}), **arguments)


@pytree
class Hasty(Gossip):
    """Gossip that wants to meet more often the larger its step is."""

    def demand(self, network):
        return Demand(exchanges_per_s=2.0 * self.alpha)


ONE_WAY = Schedule("one way", N, ((np.eye(N) + np.roll(np.eye(N), 1, axis=0)) / 2,))
BAD = {
    "a name that is none": (A2CiD2(optimizer=SGD), ("etta",), "'eta'"),
    "a word": (A2CiD2(optimizer=SGD), ("order",), "part of the program"),
    "nested": (A2CiD2(optimizer=SGD), ("optimizer.rate",), "numbers of the algorithm"),
    "open": (Gossip(optimizer={"kind": "sgd", "learning_rate": 0.1}), ("optimizer.momentum",), "numbers of"),
    "none": (
        Gossip(optimizer=SGD | {"momentum": None}),
        ("optimizer.momentum",),
        "optimizer.momentum = None.*no value to start from",
    ),
    "a switch": (Gossip(optimizer=SGD | {"nesterov": True}), ("optimizer.nesterov",), "part of the program"),
    "zero": (
        Gossip(optimizer=SGD | {"momentum": 0.0}), ("optimizer.momentum",), "a value between 0 and 1"
    ),
    "twice": (A2CiD2(optimizer=SGD), ("eta", "eta"), "each once"),
    "a number": (A2CiD2(optimizer=SGD), (1,), "a list of names"),
    "nothing": (A2CiD2(optimizer=SGD), (), "each once"),
    "no matrices": (A2CiD2(optimizer=SGD), ("edge_weights",), "no mixing matrices"),
    "matrices in turn": (DPSGD(optimizer=SGD), ("edge_weights",), "not all the same", Rounds(mixing="matchings")),
    "one way": (DPSGD(optimizer=SGD), ("edge_weights",), "not symmetric", Rounds(mixing=ONE_WAY)),
    "when things happen": (Hasty(optimizer=SGD), ("alpha",), "The events are fixed"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_names(case):
    algorithm, tune, said, *where = BAD[case]
    with pytest.raises(InvalidInput, match=said):
        tuned(algorithm, tune, *where)


def test_bad_metrics_and_steps():
    algorithm = Gossip(optimizer=SGD)
    with pytest.raises(InvalidInput, match="metric: got 'los'"):
        tuned(algorithm, ("alpha",), metric="los")
    with pytest.raises(InvalidInput, match="steps"):
        tuned(algorithm, ("alpha",), steps=0)
    with pytest.raises(InvalidInput, match="step_size"):
        tuned(algorithm, ("alpha",), step_size=0.0)
    still = dataclasses.replace(algorithm, optimizer=SGD | {"learning_rate": 0.0})
    with pytest.raises(InvalidInput, match=r"learning_rate = 0'; allowed: a value above 0"):
        tuned(still, ("optimizer.learning_rate",))
