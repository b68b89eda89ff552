"""The convex baselines: exact recursions, what they conserve, where they go, and what they refuse.

Their recorded runs are replayed in ``test_replay.py``.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import mostly_slow

import decentral
from decentral import (
    ADOM,
    D2,
    DADAO,
    DPSGD,
    EXTRA,
    MSDA,
    Continuized,
    GradientTracking,
    Poisson,
    Record,
    Rounds,
)
from decentral.errors import InvalidInput
from decentral.experiment.entry import network_of
from decentral.problem import least_squares, logistic, quadratic
from decentral.protocol import Network
from decentral.timing import Cluster, Links
from decentral.topology import SCHEDULES, named

N, D, ROUNDS = 6, 3, 40
STEP = {"kind": "sgd", "learning_rate": 0.05}


@pytest.fixture(scope="module")
def objective():
    """Curved and centred differently at every worker."""
    return quadratic(N, d=D, condition_number=8.0, seed=3, initial="per_worker")


def rounds(objective, algorithm, graph="path", protocol=None, count=ROUNDS, **options):
    topology = named(graph, n=objective.n_workers)
    record = options.pop("record", Record(count=count, states=True))
    protocol = protocol or Rounds()
    return decentral.simulate(
        objective, topology, algorithm, protocol, stop=float(count), record=record, **options
    )


def gradient_of(objective):
    return lambda x: np.asarray(jax.vmap(objective.full_gradient)(jnp.asarray(x), objective.shards))


def start_of(result):
    return np.asarray(result.states[0].x)


@pytest.mark.parametrize("graph", ["path", "star", "ring"])
def test_extra_is_the_papers_recursion(objective, graph):
    """x^{k+2} = (I + W) x^{k+1} - (I + W)/2 x^k - alpha (g^{k+1} - g^k) from x^1 = W x^0 - alpha g^0."""
    result = rounds(objective, EXTRA(learning_rate=0.05), graph)
    mixing, slope = named(graph, n=N).metropolis().toarray(), gradient_of(objective)
    x = [start_of(result)]
    x.append(mixing @ x[0] - 0.05 * slope(x[0]))
    for _ in range(ROUNDS - 1):
        lazy = (x[-2] + mixing @ x[-2]) / 2
        x.append(x[-1] + mixing @ x[-1] - lazy - 0.05 * (slope(x[-1]) - slope(x[-2])))
    for state, reference in zip(result.states, x, strict=True):
        np.testing.assert_allclose(state.x, reference, atol=1e-12 * np.abs(reference).max())


def test_d2_is_the_papers_recursion(objective):
    """x^{k+1} = W (2 x^k - x^{k-1} - gamma (g^k - g^{k-1})) from x^1 = W (x^0 - gamma g^0)."""
    result = rounds(objective, D2(learning_rate=0.1))
    mixing, slope = SCHEDULES["laplacian"](named("path", n=N))[0].toarray(), gradient_of(objective)
    x = [start_of(result)]
    x.append(mixing @ (x[0] - 0.1 * slope(x[0])))
    for _ in range(ROUNDS - 1):
        x.append(mixing @ (2 * x[-1] - x[-2] - 0.1 * (slope(x[-1]) - slope(x[-2]))))
    for state, reference in zip(result.states, x, strict=True):
        np.testing.assert_allclose(state.x, reference, atol=1e-12 * np.abs(reference).max())


def test_gradient_tracking_is_its_recursion_and_tracks_the_mean(objective):
    """x <- W (x - a y), y <- W y + g(x^+) - g(x); the mean of y is that of the gradients, always."""
    result = rounds(objective, GradientTracking(learning_rate=0.05))
    mixing, slope = named("path", n=N).metropolis().toarray(), gradient_of(objective)
    x = start_of(result)
    y = old = slope(x)
    for state in result.states[1:]:
        x, mixed = mixing @ (x - 0.05 * y), mixing @ y
        np.testing.assert_allclose(state.x, x, atol=1e-12 * np.abs(x).max())
        np.testing.assert_allclose(state.tracker, mixed, atol=1e-12 * np.abs(mixed).max())
        np.testing.assert_allclose(state.tracker.mean(0), state.gradient.mean(0), atol=1e-12)
        y, old = mixed + slope(x) - old, slope(x)


def test_on_the_complete_graph_tracking_is_gradient_descent():
    """W = 11^T/n: after one round everyone is at the mean and descends along the mean gradient."""
    objective = quadratic(N, d=D, condition_number=8.0, seed=3, initial="common")
    result = rounds(objective, GradientTracking(learning_rate=0.05), "complete")
    x = start_of(result)
    for state in result.states[1:]:
        x = x - 0.05 * gradient_of(objective)(x).mean(0)
        np.testing.assert_allclose(state.x, x, atol=1e-12)


def test_msda_is_nesterov_on_the_dual_with_a_polynomial_of_the_mixing_matrix():
    """y^+ = x - eta P_K(I - W) grad f*(x), x^+ = (1 + b) y^+ - b y; P_K by the eigenvalues, not by a recursion."""
    objective = quadratic(N, d=D, condition_number=8.0, seed=3)
    result = rounds(objective, MSDA())
    algorithm = result.algorithm
    assert algorithm.mixings == 3  # floor(sqrt(lambda_max / lambda_2)) of a path of 6
    laplacian = np.eye(N) - SCHEDULES["laplacian"](named("path", n=N))[0].toarray()
    values, vectors = np.linalg.eigh(laplacian)
    chebyshev = np.polynomial.chebyshev.Chebyshev.basis(3)
    share = 1 - chebyshev(algorithm.c_2 * (1 - algorithm.c_3 * values)) / chebyshev(algorithm.c_2)
    gossip = vectors @ np.diag(share) @ vectors.T
    # c_2 and c_3 map the positive spectrum onto [-1, 1] and 0 onto c_2.
    assert algorithm.c_2 * (1 - algorithm.c_3 * values[1]) == pytest.approx(1)
    assert algorithm.c_2 * (1 - algorithm.c_3 * values[-1]) == pytest.approx(-1)
    matrix, centre = (np.asarray(objective.shards[key]) for key in ("matrix", "centre"))
    x = y = np.zeros((N, D))
    for state in result.states[1:]:
        theta = centre + (np.linalg.solve(matrix, x[..., None])[..., 0] if matrix.ndim == 3 else x / matrix)
        np.testing.assert_allclose(state.primal, theta, atol=1e-11)
        new = x - algorithm.eta * gossip @ theta
        x, y = (1 + algorithm.momentum) * new - algorithm.momentum * y, new
        np.testing.assert_allclose(state.x, x, atol=1e-11 * np.abs(x).max())


METHODS = {
    "msda": (MSDA(), 60),
    "adom": (ADOM(), 6000),
    "adom_mc": (ADOM(multi_consensus=True), 1000),
    "extra": (EXTRA(), 600),
    "d2": (D2(), 300),
    "gradient_tracking": (GradientTracking(learning_rate=0.2), 1000),
}


@pytest.mark.parametrize("name", METHODS)
def test_all_go_to_the_optimum_of_workers_that_differ(objective, name):
    """Linear convergence at a constant step; D-PSGD at that step stays away."""
    algorithm, count = METHODS[name]
    result = rounds(objective, algorithm, count=count, record=Record(count=4))
    distance = result.metrics["distance_to_optimum"][0]
    assert distance[-1] < 1e-10 * distance[0]
    assert distance[-1] < 1e-3 * distance[2]
    biased = rounds(objective, DPSGD(optimizer=STEP), count=count, record=Record(count=4))
    assert biased.metrics["distance_to_optimum"][0, -1] > 1e-3 * distance[0]


def test_continuized_goes_there_too_and_its_gradients_are_those_of_its_exchanges(objective):
    result = decentral.simulate(objective, named("path", n=N), Continuized(), Poisson(), stop=1500.0)
    metrics = result.metrics
    assert metrics["distance_to_optimum"][0, -1] < 1e-10 * metrics["distance_to_optimum"][0, 0]
    np.testing.assert_array_equal(metrics["gradients"], 2 * metrics["exchanges"])
    assert abs(metrics["exchanges"][0, -1] - 1500) < 4.5 * 1500**0.5  # Poisson: false alarms 7e-6
    # Both duals have mean zero at one time: what one end gains the other loses.
    assert np.abs(result.final.y.sum(0) + result.final.z.sum(0)).max() < 1e-10


def test_continuized_takes_each_edges_own_resistance(objective):
    """On a barbell the bridge has the largest resistance; the steps are in proportion, and symmetric."""
    topology = named("barbell", n=N)
    algorithm = Continuized().resolve(objective, network_of(Poisson(), topology, Continuized(), objective))
    resistances = topology.effective_resistances()
    i, j = topology.edges.T
    np.testing.assert_allclose(algorithm.gamma[i, j] / algorithm.gamma.max(), resistances / resistances.max())
    np.testing.assert_array_equal(algorithm.gamma, algorithm.gamma.T)
    assert algorithm.gamma.max() == objective.mu / 2
    assert np.ndim(Continuized().resolve(objective, Network(named("star", n=N))).gamma) == 0
    result = decentral.simulate(objective, topology, Continuized(), Poisson(), stop=2000.0, seeds=2)
    assert (result.metrics["distance_to_optimum"][:, -1] < 1e-8).all()


def test_a_run_folder_leaves_the_steps_of_single_edges_open(tmp_path):
    tables = {
        "name": "barbell",
        "topology": {"kind": "barbell", "n": N},
        "problem": {"kind": "quadratic", "d": 2},
        "stop": {"kind": "time", "time_s": 20.0},
        "record": {"count": 2},
        "algorithm": [{"kind": "continuized"}, {"kind": "msda", "protocol": {"kind": "rounds"}}],
    }
    from decentral.experiment import load_spec
    from decentral.experiment.run import run

    finished = run(load_spec(tables), out=tmp_path / "run")
    written = (finished.folder / "spec.toml").read_text()
    assert "gamma_tilde" in written
    assert "gamma =" not in written


def test_multi_consensus_mixes_over_the_schedules_graphs_in_turn(objective):
    """ADOM+ on graphs that change: the trace has T mixing steps a round, each with the next matrix."""
    protocol = Rounds(mixing="random_geometric", rounds=5)
    algorithm = ADOM(multi_consensus=True)
    topology = named("ring", n=N)
    network = network_of(protocol, topology, algorithm, objective)
    low, high = protocol.schedule(topology).gossip_spectrum
    steps = network.demand.mixings
    assert steps == int(np.ceil(high / low * np.log(2)))
    result = rounds(objective, algorithm, protocol=protocol, count=10, record=Record(count=4))
    trace = result.trace
    assert trace.counts == {"gradient": 10 * N, "mix": 10 * steps}
    mixes = trace.operands[[trace.ops[code].name == "mix" for code in trace.op], 1]
    np.testing.assert_array_equal(mixes, np.arange(10 * steps) % 5)


def test_each_mixing_step_takes_its_time_on_the_wire(objective):
    """Three steps a round on a path, messages of 0.25 s: a round takes 1 + 3 x 0.25 s."""
    cluster = Cluster(links=Links(latency_s=0.25))
    result = decentral.simulate(
        objective, named("path", n=N), MSDA(), Rounds(), cluster=cluster, stop=17.5, record=Record(count=2)
    )
    assert result.trace.counts == {"gradient": 10 * N, "mix": 30}
    np.testing.assert_allclose(np.unique(np.diff(result.trace.time_s).round(9)), [0.0, 0.25, 1.0])


def test_the_adom_duals_of_the_consensus_sum_to_zero(objective):
    result = rounds(objective, ADOM(multi_consensus=True), count=100)
    for state in result.states:
        assert np.abs(state.z.sum(0)).max() < 1e-10


def test_the_laplacian_schedule(objective):
    schedule = SCHEDULES["laplacian"](named("path", n=N))
    matrix = named("path", n=N).with_edge_rates(np.ones(N - 1)).laplacian.toarray()
    values = np.linalg.eigvalsh(matrix)
    np.testing.assert_allclose(schedule[0].toarray(), np.eye(N) - matrix / values[-1], atol=1e-14)
    np.testing.assert_allclose(schedule.gossip_spectrum, (values[1] / values[-1], 1.0))


def test_wrong_constants_of_dadao(objective):
    """mu_factor and L_factor are the constants a user gets wrong: the same as giving the wrong ones."""
    network = network_of(Poisson(), named("ring", n=N), DADAO(), objective)
    factors = DADAO(mu_factor=0.5, L_factor=2.0).resolve(objective, network)
    given = DADAO(mu=0.5 * objective.mu, L=2.0 * objective.L).resolve(objective, network)
    assert (factors.mu, factors.L) == (objective.mu, objective.L)  # the factors stand beside them
    assert dataclasses.replace(factors, mu=given.mu, L=given.L, mu_factor=1.0, L_factor=1.0) == given
    assert factors.resolve(objective, network) == factors
    # As after a resume, where the seeds did not agree on a constant.
    assert dataclasses.replace(factors, beta_tilde=None, gamma=None).resolve(objective, network) == factors


def test_a_run_can_start_from_states(objective):
    """What one run ended with, another takes up: two runs of 20 rounds are one of 40 (the recursion has no clock)."""
    whole = rounds(objective, EXTRA(learning_rate=0.05), count=40)
    first = rounds(objective, EXTRA(learning_rate=0.05), count=20)
    second = decentral.replay(
        first.trace, objective, EXTRA(learning_rate=0.05), states=first.final, record=Record(count=1)
    )
    np.testing.assert_allclose(second.final.x, whole.final.x, atol=1e-12)
    with pytest.raises(InvalidInput, match="states"):
        decentral.replay(first.trace, objective, EXTRA(learning_rate=0.05), states=first.final.x)


@pytest.mark.parametrize(
    ("algorithm", "protocol", "words"),
    [
        (EXTRA(), Rounds(local_steps=2), "local_steps"),
        (MSDA(), Rounds(round_s=3.0), "round_s"),
        (D2(), Rounds(overlap=True), "overlap"),
        (D2(), Rounds(mixing="metropolis"), "eigenvalue"),
        (MSDA(), Rounds(mixing="matchings"), "one matrix for every round"),
        (ADOM(), Rounds(mixing="matchings"), "connected in every round"),
        (GradientTracking(), Rounds(), "learning_rate"),
        (Continuized(), decentral.Rendezvous(), "a gradient that it takes at that instant"),
        (EXTRA(), Poisson(), "mix"),
    ],
)
def test_what_cannot_be_run_is_refused(algorithm, protocol, words):
    objective = quadratic(N, d=2, condition_number=2.0)
    topology = named("ring", n=N)
    with pytest.raises(InvalidInput, match=words):
        decentral.simulate(objective, topology, algorithm, protocol, stop=5.0)


@pytest.mark.parametrize("algorithm", [MSDA(), Continuized()])
def test_dual_methods_refuse_problems_without_a_dual_oracle(algorithm):
    objective = logistic(N, samples_per_worker=20)
    protocol = Rounds() if isinstance(algorithm, MSDA) else Poisson()
    with pytest.raises(InvalidInput, match="dual oracle"):
        decentral.simulate(objective, named("ring", n=N), algorithm, protocol, stop=5.0)


@pytest.mark.parametrize(
    "objective", [quadratic(4, d=3, condition_number=8.0), least_squares(4, d=3, samples_per_worker=9)]
)
def test_the_dual_gradient_inverts_the_gradient(objective):
    """grad f_i(grad f_i*(y)) = y."""
    y = jax.random.normal(jax.random.key(0), (4, 3), objective.dtype)
    primal = jax.vmap(objective.dual_gradient)(y, objective.shards)
    np.testing.assert_allclose(jax.vmap(objective.full_gradient)(primal, objective.shards), y, atol=1e-10)


@pytest.mark.parametrize("algorithm", [EXTRA(), ADOM(), GradientTracking(learning_rate=0.05)])
def test_lost_messages_are_refused(algorithm):
    """Their recursions would go to a wrong point without a word."""
    objective, cluster = quadratic(N, d=2), Cluster(faults=decentral.Faults(loss=0.1))
    with pytest.raises(InvalidInput, match="every worker and every message"):
        decentral.simulate(objective, named("ring", n=N), algorithm, Rounds(), cluster=cluster, stop=5.0)


def test_adom_knows_what_a_few_mixing_steps_leave(objective):
    """chi of T steps together is 1 / (1 - (1 - 1/chi)^T), but at least the 2 of the paper."""
    topology = named("path", n=24)
    objective = quadratic(24, d=2, condition_number=4.0)
    low, high = SCHEDULES["laplacian"](topology).gossip_spectrum
    for steps, chi in ((1, high / low), (5, 1 / (1 - (1 - low / high) ** 5)), (1000, 2.0)):
        algorithm = ADOM(mixings=steps)
        resolved = algorithm.resolve(objective, network_of(Rounds(), topology, algorithm, objective))
        assert resolved.chi == pytest.approx(chi)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("eta", -0.1, "eta: got -0.1; allowed: finite and >= 0"),
        ("eta", np.nan, "eta: got nan"),
        ("gamma", np.array([[0.0, -1.0], [-1.0, 0.0]]), "gamma: got .*-1"),
        ("gamma_tilde", [0.1, 0.2], "gamma_tilde: got .* a number"),
    ],
)
def test_continuized_refuses_constants_it_cannot_have(name, value, words):
    with pytest.raises(InvalidInput, match=words):
        Continuized(**{name: value})


@pytest.mark.parametrize(
    ("algorithm", "protocol"),
    mostly_slow(
        [(Continuized(), Poisson()), (MSDA(), Rounds()), (ADOM(multi_consensus=True), Rounds())],
        [(MSDA(), Rounds())],
    ),
    ids=["continuized", "msda", "adom"],
)
def test_seeds_with_graphs_of_their_own(algorithm, protocol):
    """One seed's edges may be alike and another's not; MSDA's and ADOM+'s numbers of mixing steps differ."""
    graphs = [named("star", n=6), named("barbell", n=6)]
    problems = [quadratic(6, d=2, seed=k) for k in range(2)]
    both = decentral.simulate(
        problems, graphs, algorithm, protocol, stop=30.0, seeds=2, record=Record(count=1)
    )
    for k in range(2):
        alone = decentral.simulate(
            problems[k], graphs[k], algorithm, protocol, stop=30.0, seeds=[k], record=Record(count=1)
        )
        np.testing.assert_allclose(
            both.metrics["distance_to_optimum"][k], alone.metrics["distance_to_optimum"][0], rtol=1e-9
        )


def test_wrong_constants_are_not_multiplied_twice():
    """A resolved spec with a constant left open (seeds disagree on it) resolves to what it was."""
    objective = quadratic(N, d=2)
    network = network_of(Poisson(), named("ring", n=N), DADAO(), objective)
    resolved = DADAO(mu_factor=0.5, L_factor=4.0).resolve(objective, network)
    again = dataclasses.replace(resolved, beta_tilde=None, eta=None).resolve(objective, network)
    assert again == resolved
