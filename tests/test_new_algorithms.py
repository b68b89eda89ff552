"""Algorithms that meet in groups, by mailbox or at a server, on hand-made traces: float64, against closed forms."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import mostly_slow

from decentral import InvalidInput, Network, Record, Trace, replay
from decentral.algorithm import (
    ADPSGD,
    ALGORITHMS,
    CHOCO,
    DPSGD,
    SGD,
    SGP,
    A2CiD2,
    DiLoCo,
    EventTriggered,
    Gossip,
    LocalSGD,
    NoLoCo,
)
from decentral.algorithm.optimizer import as_optimizer
from decentral.engine.trace import Groups
from decentral.problem import Quadratic
from decentral.protocol.base import Demand
from decentral.topology import named
from decentral.topology.directed import named_directed

EXECUTORS = pytest.mark.parametrize("executor", ["rows", "eager"])
pytestmark = pytest.mark.usefixtures("compiled_once")


def sgd(learning_rate=0.1, **arguments):
    return {"kind": "sgd", "learning_rate": learning_rate, **arguments}


def quadratic(n, d=3, seed=0, same=False, **options):
    """Curvatures between 1 and 2, minimisers N(0, I); ``same``: every worker has the first one's."""
    rng = np.random.default_rng(seed)
    curvature, centre = 1 + rng.random((n, d)), rng.standard_normal((n, d))
    if same:
        curvature, centre = (np.broadcast_to(part[:1], part.shape) for part in (curvature, centre))
    return Quadratic.of(curvature, centre, **options), curvature, centre


def trace_of(events, n, tables=(), seed=0):
    """A trace with an event a second from tuples ``(op, *operands)``."""
    width = max(len(event) for event in events)
    return Trace.from_arrays(
        np.arange(len(events), dtype=float),
        [event[0] for event in events],
        [event[1:] + (-1,) * (width - len(event)) for event in events],
        n_workers=n,
        ops=sorted({event[0] for event in events}),
        groups=Groups.of(tables),
        seed=seed,
    )


def table(matrix):
    """The entries of a mixing matrix."""
    receiver, sender = np.nonzero(matrix)
    return receiver, sender, matrix[receiver, sender]


def final(events, n, problem, algorithm, *, tables=(), executor="rows", initial=None, network=None, seed=0):
    trace = trace_of(events, n, tables, seed)
    record = Record(events=(len(trace),), evaluate=False)
    return replay(
        trace, problem, algorithm, record=record, executor=executor, initial=initial, network=network
    ).final


def average(n):
    return [(np.arange(n), np.arange(n), np.full(n, 1 / n))]


def ring(n):
    return named("ring", n=n).metropolis().toarray()


def round_of(n, *meeting):
    return [*(("gradient", worker) for worker in range(n)), meeting]


# -- one copy ----------------------------------------------------------------------------------------------------------


@EXECUTORS
def test_all_reduce_is_one_worker_with_the_mean_gradient(executor):
    n, steps = 4, 30
    problem, curvature, centre = quadratic(n)
    tables = [(np.full(n, -1), np.arange(n), np.full(n, 1 / n))]
    state = final(
        [("step", 0, 0, 0)] * steps, n, problem, SGD(sgd(0.1, momentum=0.9)), tables=tables, executor=executor
    )
    x = velocity = np.zeros(3)
    for _ in range(steps):
        velocity = 0.9 * velocity + (curvature * (x - centre)).mean(0)
        x = x - 0.1 * velocity
    np.testing.assert_allclose(state.x[0], x, rtol=1e-13)


@EXECUTORS
def test_a_server_applies_gradients_taken_where_they_were_pulled(executor):
    problem, curvature, centre = quadratic(2)
    events = [("pull", 0, 0, 0), ("pull", 1, 0, 1), ("evaluate", 0, 0), ("evaluate", 1, 1)]
    events += [("push", 0, 0, 0), ("push", 1, 0, 1)]
    state = final(events, 2, problem, SGD(sgd(0.1)), executor=executor)
    np.testing.assert_allclose(state.x[0], 0.1 * (curvature * centre).sum(0), rtol=1e-13)


# -- rounds ------------------------------------------------------------------------------------------------------------


@EXECUTORS
def test_dpsgd_reaches_the_fixed_point_of_its_linear_map(executor):
    """x = W (x - gamma A (x - c)), solved; that is not the optimum."""
    n, gamma = 6, 0.3
    problem, curvature, centre = quadratic(n)
    mixing = ring(n)
    events = round_of(n, "mix", 0, 0) * 150
    state = final(events, n, problem, DPSGD(sgd(gamma)), tables=[table(mixing)], executor=executor)
    fixed = np.stack(
        [
            np.linalg.solve(
                np.eye(n) - mixing + gamma * mixing * curvature[:, k],
                gamma * mixing @ (curvature * centre)[:, k],
            )
            for k in range(3)
        ],
        axis=1,
    )
    np.testing.assert_allclose(state.x, fixed, atol=1e-13)
    assert np.abs(fixed - problem.optimum).max() > 0.1


def test_local_sgd_with_one_step_is_all_reduce():
    n = 4
    problem, *_ = quadratic(n)
    local = final(
        round_of(n, "average", 0, 0) * 20, n, problem, LocalSGD(sgd(0.2), local_steps=1), tables=average(n)
    )
    step = [(np.full(n, -1), np.arange(n), np.full(n, 1 / n))]
    reduced = final([("step", 0, 0, 0)] * 20, n, problem, SGD(sgd(0.2)), tables=step)
    np.testing.assert_allclose(local.x, np.tile(reduced.x, (n, 1)), rtol=1e-13)
    assert np.ptp(local.x, axis=0).max() == 0.0, "all have the same bits"


def test_rounds_with_who_is_there():
    """Workers that are not among the receivers keep their state."""
    problem, *_ = quadratic(4)
    start = np.arange(12.0).reshape(4, 3)
    pair = [(np.array([1, 3]), np.array([1, 3]), np.array([0.5, 0.5]))]
    state = final([("average", 0, 0)], 4, problem, LocalSGD(sgd()), tables=pair, initial=start)
    np.testing.assert_array_equal(state.x, start[[0, 0, 2, 0]] + [[0], [6], [0], [6]])


# -- DiLoCo, NoLoCo ----------------------------------------------------------------------------------------------------


def test_diloco_with_one_worker_and_one_step_is_its_inner_optimizer():
    """Worker 0 averages with itself after every step, worker 1 never: outer rate 1, no momentum."""
    problem, *_ = quadratic(2, same=True)
    algorithm = DiLoCo(
        {"kind": "adam", "learning_rate": 0.1}, outer_learning_rate=1.0, outer_momentum=0.0, local_steps=1
    )
    alone = [(np.array([0]), np.array([0]), np.array([1.0]))]
    events = [("gradient", 0), ("gradient", 1), ("average", 0, 0)] * 40
    state = final(events, 2, problem, algorithm, tables=alone)
    np.testing.assert_allclose(state.x[0], state.x[1], rtol=1e-12)


@EXECUTORS
def test_diloco_outer_step_is_optax_nesterov(executor):
    n, local_steps, rounds, rate = 3, 4, 6, 0.05
    problem, curvature, centre = quadratic(n)
    events = ([("gradient", w) for w in range(n)] * local_steps + [("average", 0, 0)]) * rounds
    algorithm = DiLoCo(sgd(rate), local_steps=local_steps)
    state = final(events, n, problem, algorithm, tables=average(n), executor=executor)
    outer = optax.sgd(0.7, momentum=0.9, nesterov=True)
    anchor = jnp.zeros(3)
    memory = outer.init(anchor)
    for _ in range(rounds):
        x = np.tile(anchor, (n, 1))
        for _ in range(local_steps):
            x = x - rate * curvature * (x - centre)
        step, memory = outer.update(anchor - x.mean(0), memory, anchor)
        anchor = optax.apply_updates(anchor, step)
    np.testing.assert_allclose(state.x, np.tile(anchor, (n, 1)), rtol=1e-12)
    np.testing.assert_array_equal(state.x, state.anchor)


def test_an_outer_optimizer_has_the_mean_change_as_its_gradient():
    n, rate = 3, 0.05
    problem, curvature, centre = quadratic(n)
    events = ([("gradient", w) for w in range(n)] * 2 + [("average", 0, 0)]) * 5
    algorithm = DiLoCo(sgd(rate), outer_optimizer={"kind": "adam", "learning_rate": 0.3}, local_steps=2)
    state = final(events, n, problem, algorithm, tables=average(n))
    outer, anchor = optax.adam(0.3), jnp.zeros(3)
    memory = outer.init(anchor)
    for _ in range(5):
        x = np.tile(anchor, (n, 1))
        for _ in range(2):
            x = x - rate * curvature * (x - centre)
        step, memory = outer.update(anchor - x.mean(0), memory, anchor)
        anchor = optax.apply_updates(anchor, step)
    np.testing.assert_allclose(state.x, np.tile(anchor, (n, 1)), rtol=1e-12)


# -- accumulators ------------------------------------------------------------------------------------------------------

ADAM = {"kind": "adam", "learning_rate": 0.1, "b2": 0.5}


def moments(state):
    """Adam's two, ``(workers, 3)`` each."""
    return np.asarray(state.optimizer[0].mu), np.asarray(state.optimizer[0].nu)


def test_gossip_averages_accumulators_with_the_models_and_leaves_the_counts():
    problem, *_ = quadratic(2)
    events = [("gradient", 0)] * 2 + [("gradient", 1)] * 3 + [("exchange", 0, 1)]
    local, both = (final(events, 2, problem, Gossip(ADAM, accumulators=a)) for a in ("local", "average"))
    np.testing.assert_array_equal(both.x, local.x)
    for ours, theirs in zip(moments(both), moments(local), strict=True):
        assert np.abs(theirs[0] - theirs[1]).min() > 1e-3
        np.testing.assert_allclose(ours, np.tile(theirs.mean(0), (2, 1)), rtol=1e-13)
    np.testing.assert_array_equal(both.optimizer[0].count, [2, 3])


def test_second_moments_stay_positive_when_accumulators_arrive_late():
    """They have shrunk since they were sent: the difference of the two messages would be more than is left of them."""
    gossip = Gossip(as_optimizer(ADAM | {"b2": 0.1}), accumulators="average")
    state = gossip.update(gossip.init(jnp.zeros(3), None), jnp.full(3, 10.0), None)
    mine, state = gossip.message(state, None, None)
    theirs, _ = gossip.message(gossip.update(gossip.init(jnp.zeros(3), None), jnp.ones(3), None), None, None)
    for _ in range(3):
        state = gossip.update(state, jnp.zeros(3), None)
    now = state.optimizer[0].nu
    after = gossip.receive(state, theirs, mine, 1.0).optimizer[0].nu
    their_nu, my_nu = theirs.accumulators[-1], mine.accumulators[-1]
    np.testing.assert_allclose(after, (now + their_nu) / 2, rtol=1e-6)
    assert (now - (my_nu - their_nu) / 2 < 0).all()
    assert (after > 0).all()


@EXECUTORS
@pytest.mark.parametrize("algorithm", [LocalSGD, DiLoCo, DPSGD])
def test_a_mean_of_models_is_one_of_accumulators(algorithm, executor):
    n = 3
    problem, *_ = quadratic(n)
    meeting = "mix" if algorithm is DPSGD else "average"
    events = [("gradient", w) for w in (0, 1, 1, 2)] + [(meeting, 0, 0)]

    def run(accumulators):
        optimizer = algorithm(ADAM, accumulators=accumulators)
        tables = [table(np.full((n, n), 1 / n))] if meeting == "mix" else average(n)
        return final(events, n, problem, optimizer, tables=tables, executor=executor)

    both, local = run("average"), run("local")
    np.testing.assert_array_equal(both.x, local.x)
    for ours, theirs in zip(moments(both), moments(local), strict=True):
        np.testing.assert_allclose(ours, np.tile(theirs.mean(0), (n, 1)), rtol=1e-13)
        assert algorithm is DPSGD or (ours == ours[0]).all()


@pytest.mark.parametrize(("accumulators", "numbers"), [("local", 3), ("average", 9)])
def test_accumulators_are_counted_as_bytes_of_a_message(accumulators, numbers):
    problem, *_ = quadratic(2)
    result = replay(trace_of([("exchange", 0, 1)], 2), problem, Gossip(ADAM, accumulators=accumulators))
    assert result.constants["message_bytes"] == 8 * numbers


@EXECUTORS
def test_noloco_without_momentum_moves_a_pair_to_its_mean(executor):
    """Outer rate 1, coupling 1: anchors and models are the mean of the two models; a step under way keeps local progress."""
    problem, *_ = quadratic(2)
    start = np.array([[1.0, 2.0, 3.0], [5.0, 4.0, 1.0]])
    algorithm = NoLoCo(sgd(0.1), outer_learning_rate=1.0, outer_momentum=0.0)
    local = final([("gradient", 0)], 2, problem, algorithm, initial=start, executor=executor).x
    state = final(
        [("gradient", 0), ("exchange", 0, 1)], 2, problem, algorithm, initial=start, executor=executor
    )
    np.testing.assert_allclose(state.x, np.tile(local.mean(0), (2, 1)), rtol=1e-13)
    np.testing.assert_allclose(state.anchor, state.x, rtol=1e-13)
    slow = [
        ("exchange_start", 0, 1, 0, 1),
        ("gradient", 0),
        ("exchange_commit", 0, 0),
        ("exchange_commit", 1, 1),
    ]
    state = final(slow, 2, problem, algorithm, initial=start, executor=executor)
    np.testing.assert_allclose(state.anchor, np.tile(start.mean(0), (2, 1)), rtol=1e-13)
    np.testing.assert_allclose(state.x, start.mean(0) + local - start, rtol=1e-13)


def test_noloco_keeps_anchors_together_and_reaches_the_optimum():
    """Random partners, the paper's constants, noiseless gradients that agree at the optimum."""
    n, rng = 8, np.random.default_rng(0)
    problem, *_ = quadratic(n, same=True)
    events = []
    for _ in range(120):
        events += [("gradient", worker) for worker in range(n)] * 5
        events += [("exchange", int(i), int(j)) for i, j in rng.permutation(n).reshape(-1, 2)]
    start = rng.standard_normal((n, 3))
    state = final(events, n, problem, NoLoCo(sgd(0.05), local_steps=5), initial=start)
    np.testing.assert_allclose(state.anchor, np.tile(problem.optimum, (n, 1)), atol=1e-8)


# -- one-sided ---------------------------------------------------------------------------------------------------------


@EXECUTORS
def test_push_sum_on_a_directed_ring_reaches_the_exact_mean(executor):
    """Column-stochastic, not row-stochastic: worker j keeps p_j and sends the rest to j + 1."""
    n, rng = 5, np.random.default_rng(0)
    problem, *_ = quadratic(n)
    start, keeps = rng.standard_normal((n, 3)), rng.uniform(0.2, 0.8, n)
    mixing = np.diag(keeps) + np.roll(np.diag(1 - keeps), 1, axis=0)
    np.testing.assert_allclose(mixing.sum(0), 1.0)
    assert np.abs(mixing.sum(1) - 1).max() > 0.1
    directed = Network(named("ring", n=n), demand=Demand(meetings=("mix",)))
    for network, share in ((directed, 1.0), (None, 0.5)):
        algorithm = SGP(sgd()).resolve(problem, network)
        assert algorithm.share == share
        state = final(
            [("mix", 0, 0)] * 300,
            n,
            problem,
            algorithm,
            tables=[table(mixing)],
            initial=start,
            executor=executor,
        )
        np.testing.assert_allclose(state.x.sum(0), start.sum(0), atol=1e-13)
        mean = np.tile(start.mean(0), (n, 1))
        np.testing.assert_allclose(state.x / state.w[:, None], mean, atol=1e-12)
        assert np.abs(state.x - mean).max() > 0.05, "the numerator alone is biased"


@EXECUTORS
def test_push_sum_by_mailbox_reaches_the_exact_mean(executor):
    """Messages to the next worker, three of them on their way at any time; what is sent or kept is all there is."""
    n, rng = 5, np.random.default_rng(1)
    problem, *_ = quadratic(n)
    start, events, under_way = rng.standard_normal((n, 3)), [], []
    for slot in range(1000):
        worker = int(rng.integers(n))
        events.append(("send", worker, slot))
        under_way.append(("receive", (worker + 1) % n, slot))
        if len(under_way) > 3:
            events.append(under_way.pop(rng.integers(4)))
    state = final(events + under_way, n, problem, SGP(sgd()), initial=start, executor=executor)
    np.testing.assert_allclose(state.w.sum(), n, rtol=1e-13)
    np.testing.assert_allclose(state.x.sum(0), start.sum(0), atol=1e-13)
    np.testing.assert_allclose(state.x / state.w[:, None], np.tile(start.mean(0), (n, 1)), atol=1e-12)


def test_a_lost_push_keeps_the_workers_in_agreement():
    n = 3
    problem, *_ = quadratic(n)
    events = [("send", 0, 0), ("drop", 1, 0)]
    for slot in range(1, 301):
        events += [("send", slot % n, slot), ("receive", (slot + 1) % n, slot)]
    state = final(events, n, problem, SGP(sgd()), initial=np.eye(3))
    np.testing.assert_allclose(state.x / state.w[:, None], np.tile([0.2, 0.4, 0.4], (n, 1)), atol=1e-12)
    np.testing.assert_allclose(state.w.sum(), 2.5)


@EXECUTORS
def test_adpsgd_averages_at_once_or_with_what_has_become_stale(executor):
    problem, *_ = quadratic(2)
    start = np.array([[0.0, 0.0, 0.0], [4.0, 8.0, 12.0]])

    def run(*events):
        return final(list(events), 2, problem, ADPSGD(sgd(0.0)), initial=start, executor=executor).x[:, 0]

    np.testing.assert_array_equal(run(("exchange", 0, 1)), [2, 2])
    # 0 sends 0; 1 answers with what it was, 4, and averages; 0 averages the answer: the sum stays.
    asked = [("send", 0, 0), ("send", 1, 1), ("receive", 1, 0), ("receive", 0, 1)]
    np.testing.assert_array_equal(run(*asked), [2, 2])
    # The second message of 0 is under way while 1 moves: 1 has ((4 + 0)/2 + 0)/2.
    np.testing.assert_array_equal(
        run(("send", 0, 0), ("send", 0, 1), ("receive", 1, 0), ("receive", 1, 1)), [0, 1]
    )


# -- CHOCO and its trigger ---------------------------------------------------------------------------------------------


def consensus(algorithm, rounds=400, n=8, d=1000, seed=0):
    """Squared distance to the mean after gossip on a ring, relative to the start, and how far the mean went."""
    start = np.random.default_rng(seed).standard_normal((n, d))
    problem = Quadratic.of(np.ones(n), np.zeros((n, d)))
    state = final(
        [("mix", 0, 0)] * rounds, n, problem, algorithm, tables=[table(ring(n))], initial=start, seed=seed
    )
    spread = [((x - x.mean(0)) ** 2).sum() for x in (state.x, start)]
    return spread[0] / spread[1], np.abs(state.x.mean(0) - start.mean(0)).max()


@pytest.mark.parametrize(
    ("compressor", "gamma", "expected", "factor"),
    [(None, 0.4, 1e-29, 3), ("top_k", 0.2, 4e-16, 10), ("random_k", 0.06, 9e-6, 4)],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_choco_contracts_as_recorded(compressor, gamma, expected, factor, seed):
    """Ring of 8, d = 1000, k = 100, 400 rounds: 1e-29, 4e-16, 9e-6 [M] (the gammas are ours: those that give them)."""
    error, drift = consensus(CHOCO(sgd(0.0), compressor, gamma), seed=seed)
    assert expected / factor < error < expected * factor
    assert drift < 1e-12, "the mean is conserved"


def test_choco_without_compression_at_full_step_is_dpsgd():
    n = 6
    problem, *_ = quadratic(n)
    events, tables = round_of(n, "mix", 0, 0) * 20, [table(ring(n))]
    choco = final(events, n, problem, CHOCO(sgd(0.2), None, 1.0), tables=tables)
    dpsgd = final(events, n, problem, DPSGD(sgd(0.2)), tables=tables)
    np.testing.assert_allclose(choco.x, dpsgd.x, rtol=1e-12)


def test_the_theorys_consensus_step():
    """Ring of 8 with weights 1/3: rho = (2 - sqrt 2)/3, beta = 4/3."""
    problem, network = quadratic(8, d=10)[0], Network(named("ring", n=8))
    rho, beta, delta = (2 - np.sqrt(2)) / 3, 4 / 3, 0.2
    gamma = rho**2 * delta / (16 * rho + rho**2 + 4 * beta**2 + 2 * rho * beta**2 - 8 * rho * delta)
    for cls in (CHOCO, EventTriggered):
        algorithm = cls(sgd(), {"kind": "top_k", "fraction": 0.2})
        assert algorithm.resolve(problem, network).gamma == pytest.approx(gamma, rel=1e-12)
        with pytest.raises(InvalidInput, match="gamma: got None"):
            algorithm.resolve(None, None)


def test_symmetric_weights_need_an_undirected_graph():
    for cls in (CHOCO, EventTriggered):
        with pytest.raises(InvalidInput, match=r"topology: .*an undirected graph.*sgp"):
            cls(sgd(), None, 0.1).resolve(quadratic(4)[0], Network(named_directed("directed_ring", n=4)))


@pytest.mark.parametrize("compressor", mostly_slow([None, "random_k", "int8"], ["random_k"]))
def test_event_triggered_without_threshold_is_choco(compressor):
    n = 6
    problem, *_ = quadratic(n)
    events, tables = round_of(n, "mix", 0, 0) * 30, [table(ring(n))]
    trace = trace_of(events, n, tables)
    choco, triggered = (
        replay(trace, problem, algorithm, record=Record(events=(len(trace),)), network=named("ring", n=n))
        for algorithm in (CHOCO(sgd(), compressor, 0.3), EventTriggered(sgd(), compressor, 0.3))
    )
    np.testing.assert_array_equal(triggered.final.x, choco.final.x)
    assert triggered.metrics["messages"] == choco.metrics["messages"] == 30 * 2 * n
    assert triggered.metrics["bytes"] == choco.metrics["bytes"]


@EXECUTORS
def test_event_triggered_sends_less_and_counts_what_it_sent(executor):
    n, d, rounds = 8, 20, 300
    start = np.random.default_rng(0).standard_normal((n, d))
    problem = Quadratic.of(np.ones(n), np.zeros((n, d)))
    trace = trace_of([("mix", 0, 0)] * rounds, n, [table(ring(n))])
    spread = {}
    for threshold, decay in ((1e6, 0.0), (0.5, 0.0), (0.5, 2.0), (0.0, 0.0)):
        algorithm = EventTriggered(sgd(), gamma=0.5, threshold=threshold, decay=decay)
        record = Record(events=(len(trace),), evaluate=False)
        result = replay(
            trace,
            problem,
            algorithm,
            record=record,
            initial=start,
            network=named("ring", n=n),
            executor=executor,
        )
        x, sent = result.final.x, int(result.metrics["messages"][0, -1])
        assert sent == 2 * result.final.broadcasts.sum()
        assert result.metrics["bytes"][0, -1] == sent * d * 8
        np.testing.assert_allclose(x.mean(0), start.mean(0), atol=1e-12)
        spread[threshold, decay] = ((x - x.mean(0)) ** 2).sum(), sent
    np.testing.assert_allclose(spread[1e6, 0.0][0], ((start - start.mean(0)) ** 2).sum(), rtol=1e-12)
    assert spread[1e6, 0.0][1] == 0
    assert spread[0.0, 0.0][1] == 2 * n * rounds
    assert 0 < spread[0.5, 0.0][1] < 0.25 * 2 * n * rounds
    assert spread[0.5, 0.0][1] < spread[0.5, 2.0][1] < 0.5 * 2 * n * rounds
    assert spread[0.5, 2.0][0] < 1e-4 * spread[0.5, 0.0][0], "with decay consensus goes on"


# -- arguments ---------------------------------------------------------------------------------------------------------


THEORY = {"gossip", "a2cid2", "dadao", "msda", "adom", "continuized", "extra", "d2", "gradient_tracking"}


@pytest.mark.parametrize("kind", sorted(set(ALGORITHMS) - THEORY))
def test_a_learning_rate_without_a_theory_is_asked_for(kind):
    algorithm = ALGORITHMS[kind](**({"gamma": 0.1} if kind in ("choco", "event_triggered") else {}))
    with pytest.raises(InvalidInput, match=r"optimizer.learning_rate: got None.*set one"):
        algorithm.resolve(quadratic(4)[0], Network(named("ring", n=4)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Gossip(rescale="yes"), "algorithm.rescale: got 'yes'"),
        (lambda: A2CiD2(time_unit="own"), "algorithm.time_unit: got 'own'.*own_ema"),
        (lambda: ADPSGD(rescale=None), "algorithm.rescale"),
        (lambda: LocalSGD(local_steps=0), "algorithm.local_steps: got 0"),
        (lambda: DiLoCo(local_steps=2.5), "algorithm.local_steps: got 2.5"),
        (lambda: DiLoCo(outer_momentum=1.0), "algorithm.outer_momentum: got 1.0"),
        (
            lambda: DiLoCo(outer_momentum=0.5, outer_optimizer={"kind": "adam"}),
            "algorithm.outer_momentum: got 0.5; allowed: nothing with outer_optimizer",
        ),
        (
            lambda: DiLoCo(sgd(), outer_optimizer={"kind": "adam"}).resolve(None, None),
            "outer_optimizer.learning_rate: got None",
        ),
        (lambda: LocalSGD(accumulators="mean"), "algorithm.accumulators: got 'mean'"),
        (lambda: DPSGD(accumulators=True), "algorithm.accumulators: got True"),
        (lambda: Gossip(accumulators="average", alpha=1.5), "algorithm.alpha: got 1.5"),
        (lambda: Gossip(accumulators="average", compressor="int8"), "nothing with accumulators = 'average'"),
        (lambda: NoLoCo(coupling=-1.0), "algorithm.coupling: got -1.0"),
        (lambda: SGP(share=0.0), "algorithm.share: got 0.0"),
        (lambda: SGP(share=1.5), "algorithm.share: got 1.5"),
        (lambda: CHOCO(compressor="zip"), "compressor.kind: got 'zip'.*top_k"),
        (lambda: EventTriggered(threshold=-1.0), "algorithm.threshold: got -1.0"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(InvalidInput, match=message):
        build()


def test_what_the_engine_and_the_protocols_are_told():
    ring_of_4 = Network(named("ring", n=4))
    assert (A2CiD2().time_unit, A2CiD2().rescale) == ("global", "none")
    chosen = A2CiD2(time_unit="own_ema", rescale="realised_rate")
    assert (chosen.time_unit, chosen.rescale) == ("own_ema", "realised_rate")
    assert SGD().rescale == "none"
    meetings = {kind: cls().demand(ring_of_4).meetings for kind, cls in ALGORITHMS.items()}
    assert meetings["sgd"] == ("gradient",)
    assert meetings["dpsgd"] == meetings["choco"] == meetings["event_triggered"] == ("mix",)
    assert meetings["local_sgd"] == meetings["diloco"] == ("average",)
    assert meetings["noloco"] == ("pairs", "exchange")
    assert meetings["sgp"] == ("push", "push_sum", "mix")
    assert meetings["adpsgd"] == ("push", "exchange")
    assert ADPSGD().demand(ring_of_4).reply
    assert not ADPSGD(reply=False).demand(ring_of_4).reply
    assert DiLoCo(local_steps=7).demand(ring_of_4).local_steps == 7


@pytest.mark.parametrize("cls", [Gossip, ADPSGD, LocalSGD])
def test_rescaled_gradients_undo_unequal_rates(cls):
    """Worker 0 takes three gradients and worker 1 one, of slope -1 where they are: with the mean rate 2, both move by 2."""
    problem = Quadratic.of(np.array([1e-9, 1e-9]), np.array([[1e9], [1e9]]))
    for rescale, moved in (("none", [3, 1]), ("realised_rate", [2, 2])):
        state = final([("gradient", 0)] * 3 + [("gradient", 1)], 2, problem, cls(sgd(1.0), rescale=rescale))
        np.testing.assert_allclose(state.x[:, 0], moved, rtol=1e-7)
