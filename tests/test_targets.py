"""Quantitative targets of the papers. The figures' scripts state each claim with its source and check it; here they must hold.

Exact ones come from matrices read off ``flow``, ``point``, ``update``, ``message`` and ``receive``
(``decentral.algorithm.moments``), not from formulas typed again.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decentral
from decentral import DADAO, A2CiD2, Gossip, Network, Poisson, Record, Time
from decentral.algorithm.moments import second_moment_decay, stationary_consensus
from decentral.engine.trace import merge
from decentral.errors import InvalidInput
from decentral.experiment.figures import Runs, load_script
from decentral.problem import Quadratic, quadratic
from decentral.topology import named

SGD = {
    "kind": "sgd",
    "learning_rate": 0.1,
}  # gossip alone takes no step; this one keeps resolve from asking for L

SCRIPTS = Path(__file__).parents[1] / "paper_figures"


def all_hold(checked) -> set[str]:
    """The ids of claims that all hold."""
    assert [claim.line for claim in checked if claim.verdict != "holds"] == []
    return {claim.claim.id for claim in checked}


# -- exact -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "ids"),
    [
        ("dadao_theorem_rate", {"B1"}),
        pytest.param("dadao_table_communications", {"A9"}, marks=pytest.mark.slow),
        ("a2cid2_table_chi", {"A8"}),
    ],
)
def test_targets_without_runs(script, ids):
    """Targets B1 [RECALL high; eta CODE], A8 [CODE, RECALL], A9 [derived]: the scripts' claims, with their ranges, hold."""
    assert all_hold(load_script(SCRIPTS / f"{script}.py").claims(None)) == ids


def dadao_decay(kind, exchanges=1.0):
    """Second moment of DADAO on six workers, kappa 10, curvatures spread, with a share of the exchanges it asks for."""
    topology = named(kind, n=6)
    rated = topology.with_total_rate(exchanges * Network(topology).dadao_rate)
    algorithm = DADAO(mu=1.0, L=10.0, chi_1=rated.chi_1).resolve(None, None)
    return second_moment_decay(algorithm, rated, np.linspace(1.0, 10.0, 6))


def test_the_slowest_mode_is_the_slowest():
    """The whole spectrum of one case of B1: nothing lies to the right of what Arnoldi found, and it is a covariance."""
    decay = dadao_decay("path")
    eigenvalues = np.linalg.eigvals(decay.operator)
    assert eigenvalues.real.max() == pytest.approx(-decay.rate, rel=1e-8)
    assert np.linalg.eigvalsh(decay.slowest)[0] > -1e-8


@pytest.mark.parametrize("kind", ["path", "complete"])
def test_too_few_exchanges_let_dadao_diverge(kind):
    """Target B9 [TEXT, NUM]: at half the rate sqrt(2 chi_1 chi_2) the second moment grows, at twice it decays."""
    assert dadao_decay(kind, 0.5).rate < 0 < dadao_decay(kind, 2.0).rate


def gossip_decay(algorithm, kind, n, rate=1.0):
    clocks = Network(named(kind, n=n, rate=rate))
    return second_moment_decay(algorithm(optimizer=SGD).resolve(None, clocks), clocks.topology).rate


C1 = {
    ("ring", 8): 1.343,
    ("ring", 16): 2.635,
    ("ring", 32): 5.567,
    ("exponential", 8): 1.025,
    ("exponential", 16): 1.069,
    ("exponential", 32): 1.159,
    ("complete", 8): 1.000,
    ("complete", 16): 1.000,
}


@pytest.mark.parametrize(("kind", "n"), C1)
def test_c1_gossip_is_accelerated(kind, n):
    """Target C1 [RECALL high, NUM]: decay of E consensus by gossip alone, A2CiD2 / baseline, to 1e-3."""
    ratio = gossip_decay(A2CiD2, kind, n) / gossip_decay(Gossip, kind, n)
    assert ratio == pytest.approx(C1[kind, n], abs=1e-3)


def test_baseline_decay_on_the_complete_graph_by_hand():
    """An exchange takes (x_i - x_j)^2 / 2 from ||x||^2, on average ||x||^2 / (n - 1); n/2 of them a second: 4/7 at n = 8."""
    assert gossip_decay(Gossip, "complete", 8) == pytest.approx(4 / 7, rel=1e-12)


@pytest.mark.parametrize("algorithm", [Gossip, A2CiD2])
def test_c2_rates_are_linear_in_the_rate_of_exchanges(algorithm):
    """Target C2 [derived]: twice the exchanges, twice the decay, to 1e-6."""
    once, twice = (gossip_decay(algorithm, "ring", 8, rate) for rate in (1.0, 2.0))
    assert twice / once == pytest.approx(2.0, rel=1e-6)


def stationary(algorithm, n, source, momentum=0.0, kind="ring"):
    clocks = Network(named(kind, n=n))
    optimizer = {"kind": "sgd", "learning_rate": 1.0, "momentum": momentum}
    return stationary_consensus(algorithm(optimizer=optimizer).resolve(None, clocks), clocks.topology, source)


@pytest.mark.parametrize("algorithm", [Gossip, A2CiD2])
def test_stationary_consensus_on_the_complete_graph_by_hand(algorithm):
    """Noise adds n - 1 a second to sum (x_i - mean)^2, exchanges take n/2 / (n - 1) of it: n V = 2 (n - 1)^2 / n.

    A2CiD2 is gossip there.
    """
    assert stationary(algorithm, 8, "white", kind="complete") == pytest.approx(2 * 49 / 64, rel=1e-8)


@pytest.mark.parametrize(
    ("source", "momentum", "n", "ratio", "within"),
    [
        ("persistent", 0.0, 8, 1.74, 0.005),  # C3
        ("persistent", 0.0, 16, 4.33, 0.005),
        ("white", 0.0, 16, 1.063, 0.0005),  # C4: no gain
        ("white", 0.9, 16, 2.2, 0.05),  # C5
    ],
)
def test_what_a2cid2_helps_against(source, momentum, n, ratio, within):
    """Targets C3 [RECALL high], C4 [RECALL medium], C5: stationary consensus on the ring, baseline / A2CiD2; n = 64 is slow."""
    found = [stationary(a, n, source, momentum) for a in (Gossip, A2CiD2)]
    assert found[0] / found[1] == pytest.approx(ratio, abs=within)


def test_exact_moments_refuse_what_they_cannot_do():
    with pytest.raises(InvalidInput, match="at most 50 workers of 2 numbers"):
        gossip_decay(A2CiD2, "ring", 51)
    with pytest.raises(InvalidInput, match="one of persistent, white"):
        stationary(Gossip, 4, "pink")
    clocks = Network(named("ring", n=4))
    with pytest.raises(InvalidInput, match="none, or 4"):
        second_moment_decay(Gossip(optimizer=SGD).resolve(None, clocks), clocks.topology, [1.0])


# -- the same by simulation --------------------------------------------------------------------------------------------


def simulated_decay(algorithm, n, start, seeds, window_s):
    """Slope of log E consensus over a window of time, by least squares; the expectation is a mean over seeds."""
    topology, gossip = named("ring", n=n), Poisson(gradients_per_s=0.0)
    clocks = gossip.network(topology, algorithm.demand(Network(topology)))
    trace = merge([gossip.timeline(clocks, Time(window_s[1]), seed) for seed in range(seeds)])
    result = decentral.replay(
        trace,
        Quadratic.of(np.ones(n), np.zeros_like(start)),
        algorithm,
        network=clocks,
        initial=start,
        record=Record(times_s=tuple(np.linspace(*window_s, 16)), evaluate=False),
    )
    consensus = result.metrics["consensus_distance"].mean(0)
    return -np.polyfit(result.metrics["time_s"][0], np.log(consensus), 1)[0]


def test_c1_by_simulation():
    """Target C1 [RECALL high, NUM] on the ring of 16: both decays within 10 % of the exact ones, from 200 seeds.

    The slopes' standard deviations are 0.9 and 2.1 % (between eight sets of 200): false alarms below 1e-5; seeds fixed.
    """
    n = 16
    angle = 2 * np.pi * np.arange(n) / n
    start = np.stack([np.cos(angle), np.sin(angle)], axis=1)  # the slowest modes
    decays = [simulated_decay(a(optimizer=SGD), n, start, 200, (10.0, 40.0)) for a in (Gossip, A2CiD2)]
    exact = [gossip_decay(a, "ring", n) for a in (Gossip, A2CiD2)]
    np.testing.assert_allclose(decays, exact, rtol=0.1)
    assert decays[1] / decays[0] == pytest.approx(2.635, rel=0.1)


def test_c9_the_released_order_is_slower_and_drifts():
    """Target C9 [CODE]: ring of 16, gossip from N(0, 1) to T = 60, orders of magnitude.

    Measured elsewhere: consensus 1.3e-4 against 4.6e-7, squared drift of the mean 9e-9 against 5e-33. Here the median of
    64 seeds is within a factor of ten of each (five other sets of 64: 1.2-1.9e-4, 2.6e-7-1.2e-6, 0.7-1.3e-8, 1-3e-33).
    """
    problem = quadratic(16, d=1, initial="per_worker")
    medians = {}
    for order in ("released", "sde"):
        result = decentral.simulate(
            problem,
            named("ring", n=16),
            A2CiD2(optimizer=SGD, order=order),
            Poisson(gradients_per_s=0.0),
            stop=60.0,
            record=Record(count=1, evaluate=False, states=True),
            seeds=64,
        )
        trace, last_s = result.trace, np.zeros(result.trace.total_workers)
        for column in trace.operands.T:
            np.maximum.at(last_s, column[column >= 0], trace.time_s[column >= 0])
        state = jax.tree.map(jnp.asarray, result.final)
        end = jax.vmap(result.algorithm.flow)(state, jnp.asarray(trace.horizon_s - last_s)).x
        means = [np.asarray(x).reshape(64, 16).mean(1) for x in (result.states[0].x, end)]
        consensus = np.median(result.metrics["consensus_distance"][:, -1])
        medians[order] = consensus, np.median((means[1] - means[0]) ** 2)
    assert 1.3e-5 < medians["released"][0] < 1.3e-3
    assert 4.6e-8 < medians["sde"][0] < 4.6e-6
    assert 9e-10 < medians["released"][1] < 9e-8
    assert medians["sde"][1] < 1e-30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "ids"),
    [
        ("dadao_figure_condition", {"B2", "B3"}),
        ("dadao_table_complexity", {"B4", "B5"}),
        ("dadao_figure_rate", {"B9"}),
        ("a2cid2_figure_heterogeneity", {"C3", "C4", "C5"}),
    ],
)
def test_targets_by_runs(script, ids, tmp_path, compiled_once):
    """Targets B2-B5, B9 and C3-C5, with their ranges: the scripts' claims, from runs made now; seeds are fixed."""
    module = load_script(SCRIPTS / f"{script}.py")
    for experiment in module.EXPERIMENTS:
        experiment.make(tmp_path)
    assert all_hold(module.claims(Runs(tmp_path))) >= ids
