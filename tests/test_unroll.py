"""A run as a pure function: equal to the run itself, its slopes to finite differences, and many of them at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import mostly_slow

import decentral
from decentral import Cluster, Faults, Gradients, InvalidInput, Links, Poisson, Record, Simulation
from decentral.engine.trace import merge
from decentral.experiment.entry import network_of
from decentral.experiment.trace_task import trace_task
from decentral.experiment.unroll import Unroll
from decentral.learned.meta_parameters import load_meta_parameters
from decentral.problem import from_loss, quadratic, reversible_mlp
from decentral.timing.compute import LogNormal
from decentral.topology import named

N = 6
SGD = {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.5}
pytestmark = pytest.mark.usefixtures("compiled_once")


def noisy(n: int = N, noise: float = 0.1):
    return quadratic(n=n, d=3, heterogeneity=1.0, noise=noise, dtype="float64")


def prepared(algorithm, protocol=None, record=None, problem=None, cluster=None, seeds=(0,), gradients=60):
    """A simulation that has not run yet."""
    protocol, problem = protocol or Poisson(), problem or noisy()
    kind = "path" if problem.workers_per_model > 1 else "ring"
    network = network_of(protocol, named(kind, n=problem.n_workers), algorithm, problem, cluster)
    traces = [protocol.timeline(network, Gradients(gradients), seed) for seed in seeds]
    return Simulation(
        merge(traces), problem, algorithm, network=network, record=record or Record(count=3, evaluate=False)
    )


SLOW_LINKS = Cluster(compute=LogNormal(mean_s=0.1, sigma=0.3), links=Links(latency_s=0.05))
CRASHES = Faults(crash_every_s=1.0, down_s=0.2, on_return="reset")
CASES = {
    "clocks": lambda: prepared(decentral.A2CiD2(optimizer=SGD), seeds=(0, 1)),
    "mixing": lambda: prepared(decentral.DPSGD(optimizer=SGD), decentral.Rounds()),
    "local steps": lambda: prepared(decentral.DiLoCo(optimizer=SGD, local_steps=3), decentral.Rounds()),
    "one copy": lambda: prepared(decentral.SGD(optimizer=SGD), decentral.AllReduce()),
    "overlap": lambda: prepared(decentral.ACCO(optimizer=SGD), decentral.Overlapped(), cluster=SLOW_LINKS),
    "in flight": lambda: prepared(
        decentral.A2CiD2(optimizer=SGD), decentral.Rendezvous(), cluster=SLOW_LINKS, seeds=(0, 1)
    ),
    "crashes": lambda: prepared(
        decentral.Gossip(optimizer=SGD), decentral.Rendezvous(), gradients=200,
        cluster=Cluster(compute=LogNormal(mean_s=0.1, sigma=0.3), faults=CRASHES),
    ),
    "losses": lambda: prepared(decentral.A2CiD2(optimizer=SGD), record=Record(times_s=(2.0, 3.0, 8.0))),
    "pipeline": lambda: prepared(
        decentral.PETRA(optimizer=SGD), decentral.Pipeline(), record=Record(count=3),
        problem=reversible_mlp(n=3, stages=3, batch_size=4, dtype="float64"), gradients=20,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", mostly_slow(CASES, ("clocks", "mixing")))
def test_an_unrolled_run_is_the_run(case):
    """At every record the same numbers, to rounding, as of the loop that overwrites its state."""
    simulation = CASES[case]()
    unroll = Unroll(simulation)
    metric = "loss" if simulation.record.evaluate else "consensus_distance"
    if simulation.holder == "server":
        metric = "distance_to_optimum"
    values = jax.jit(lambda own: unroll.values(own, unroll.start(own), metric))(unroll.algorithm)
    result = simulation.run()
    at = np.isin(result.metrics["time_s"][0], unroll.times_s[0])
    assert unroll.n_chunks == at.sum() >= 2
    assert values.std() > 0
    np.testing.assert_allclose(values.T, result.metrics[metric][:, at], rtol=1e-9)
    assert 0.3 < unroll.fill <= 1


@pytest.mark.slow
def test_many_runs_at_once():
    """Hyper-parameters side by side give what each gives alone."""
    unroll = Unroll(CASES["mixing"]())

    def end(factor):
        other = jax.tree.map(lambda leaf: factor * leaf, unroll.algorithm)
        return unroll.values(other, unroll.start(other), "distance_to_optimum")[-1, 0]

    factors = jnp.array([0.5, 1.0, 1.5])
    alone = [float(jax.jit(end)(factor)) for factor in factors]
    assert np.ptp(alone) > 0
    np.testing.assert_allclose(jax.jit(jax.vmap(end))(factors), alone, rtol=1e-9)


def test_bad_runs_to_unroll():
    algorithm = decentral.Gossip(optimizer=SGD)
    simulation = prepared(algorithm, gradients=12)
    eager = Simulation(simulation.trace, noisy(), algorithm, executor="eager")
    with pytest.raises(InvalidInput, match="allowed: 'rows'"):
        Unroll(eager)
    unroll = Unroll(simulation)
    with pytest.raises(InvalidInput, match="metric: got 'consensus'"):
        jax.eval_shape(lambda own: unroll.values(own, unroll.start(own), "consensus"), unroll.algorithm)
    nothing = Simulation(simulation.trace, noisy(), algorithm, record=Record(events=(0,)))
    with pytest.raises(InvalidInput, match="nothing after the first event"):
        Unroll(nothing)


# -- a trace as a task -------------------------------------------------------------------------------------------------


def small_task(algorithm=None, **options):
    learned = {"kind": "learned", "meta_parameters": "hand_made"}
    digits = from_loss(
        lambda w, sample: (sample["x"] @ w - sample["y"]) ** 2,
        np.zeros(3, np.float32),
        {"x": np.random.default_rng(0).normal(size=(4, 20, 3)), "y": np.ones((4, 20))},
        batch_size=4,
    )
    arguments = {"stop": Gradients(40), "steps": 5} | options
    return trace_task(
        digits, named("ring", n=4), algorithm or decentral.Gossip(optimizer=learned), **arguments
    )


def test_a_trace_as_a_task():
    """Episodes: the same events, other draws; the meta-parameters given are those that train."""
    task, meta = small_task(), load_meta_parameters("hand_made")
    assert task.max_steps == 5

    @jax.jit
    def episode(meta, key):
        return jax.lax.scan(lambda state, _: task.step(meta, state), task.start(meta, key), None, 5)[1]

    first, again, other = (np.asarray(episode(meta, jax.random.key(k))) for k in (0, 0, 1))
    still = np.asarray(episode(jax.tree.map(jnp.zeros_like, meta), jax.random.key(0)))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_allclose(still, 1, rtol=1e-6)  # models that stay at 0 err by y^2 = 1
    assert first[-1] < 1


def test_bad_tasks():
    with pytest.raises(InvalidInput, match="steps: got 900; allowed: at most the"):
        small_task(steps=900)
    with pytest.raises(InvalidInput, match="Nothing else has meta-parameters"):
        small_task(decentral.Gossip(optimizer=SGD))
    with pytest.raises(InvalidInput, match="problem"):
        trace_task(noisy(), named("ring", n=N), decentral.Gossip(optimizer=SGD), stop=1.0, steps=1)
