"""Where protocols in seconds must agree with something simpler."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import decentral
from decentral import DADAO, A2CiD2, Gossip, Record, problem, topology
from decentral.algorithm import DPSGD, SGD, SGP
from decentral.experiment.entry import network_of
from decentral.problem import Quadratic
from decentral.protocol import AllReduce, Demand, Mailbox, Poisson, Rendezvous, Rounds, Server, Time
from decentral.timing import Cluster
from decentral.timing.compute import Exponential, LogNormal

RATE = {"kind": "sgd", "learning_rate": 0.1}
COMPLETE = topology.named("complete", n=4)


def final(result):
    """Parameters of every worker, or of the one copy, ``(seeds, models, d)``."""
    points = jax.vmap(result.algorithm.estimate)(jax.tree.map(jax.numpy.asarray, result.final))
    return np.asarray(points).reshape(len(result.seeds), -1, points.shape[-1])


def descend(task, steps, rate=0.1):
    """Gradient descent on the mean of all workers' objectives, in NumPy."""
    matrix, centre = (np.asarray(task.shards[k], np.float64) for k in ("matrix", "centre"))
    x = np.zeros(centre.shape[1])
    for _ in range(steps):
        x = x - rate * np.mean([a @ (x - c) for a, c in zip(matrix, centre, strict=True)], axis=0)
    return x


def test_all_reduce_on_n_workers_is_one_worker_with_n_times_the_batch():
    task = problem.quadratic(n=4, d=3, seed=2)
    result = decentral.simulate(task, COMPLETE, SGD(optimizer=RATE), AllReduce(), stop=20.5)
    np.testing.assert_allclose(final(result)[0, 0], descend(task, 20), rtol=1e-12)
    assert result.metrics["gradients"][0, -1] == 80
    assert result.metrics["updates"][0, -1] == 20


def test_a_server_whose_workers_are_equal_collects_what_an_all_reduce_averages():
    """Rennala with batch n, equal constant times and links that take no time."""
    task = problem.quadratic(n=4, d=3, seed=2)
    server = decentral.simulate(task, COMPLETE, SGD(optimizer=RATE), Server(batch=4), stop=20.5)
    np.testing.assert_allclose(final(server)[0, 0], descend(task, 20), rtol=1e-12)


def test_local_steps_of_one_worker_are_sgd_and_mixing_completely_is_all_reduce():
    """D-PSGD that adapts, then averages over the complete graph is gradient descent on the mean."""
    task = problem.quadratic(n=4, d=3, seed=2)
    result = decentral.simulate(task, COMPLETE, DPSGD(optimizer=RATE), Rounds(), stop=20.5)
    np.testing.assert_allclose(final(result)[0], np.tile(descend(task, 20), (4, 1)), rtol=1e-12)


@pytest.mark.parametrize("messages", ["paired", "atomic"])
def test_rendezvous_without_delays_is_the_synchronous_algorithm(messages):
    """Two workers of equal constant speed that wait for their one exchange per gradient: a round of averaging."""
    task = problem.quadratic(n=2, d=3, seed=2)
    pair = topology.named("path", n=2)
    protocol = Rendezvous(count="fixed", wait=True, messages=messages)
    result = decentral.simulate(task, pair, Gossip(optimizer=RATE), protocol, stop=30.5)
    expected = decentral.simulate(task, pair, DPSGD(optimizer=RATE), Rounds(), stop=30.5)
    np.testing.assert_allclose(final(result), final(expected), rtol=1e-12)


@pytest.mark.parametrize("messages", ["paired", "atomic", "stale"])
def test_on_the_complete_graph_a2cid2_is_gossip(messages):
    cluster = Cluster(LogNormal(1.0, 0.5), speeds=(1.0, 0.5))
    graph, task = topology.named("complete", n=6), problem.quadratic(n=6, d=3, noise=0.5, seed=3)
    results = [
        decentral.simulate(
            task, graph, algorithm, Rendezvous(messages=messages), cluster=cluster, stop=40.0, seeds=2
        )
        for algorithm in (Gossip(optimizer=RATE), A2CiD2(optimizer=RATE))
    ]
    assert results[0].trace.hash == results[1].trace.hash
    np.testing.assert_allclose(final(results[0]), final(results[1]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("protocol", "stop"), [(Mailbox(), 400.0), (Rounds(), 800.0)])
def test_push_sum_on_a_directed_ring_reaches_the_exact_mean(protocol, stop):
    ring, start = topology.named_directed("directed_ring", n=6), np.arange(12.0).reshape(6, 2) ** 2
    still = SGP(optimizer={"kind": "sgd", "learning_rate": 0.0})
    task = problem.quadratic(n=6, d=2)
    result = decentral.simulate(
        task,
        ring,
        still,
        protocol,
        cluster=Cluster(Exponential(1.0)),
        stop=stop,
        initial=start,
        record=Record(count=1),
    )
    # Messages still under way carry some of the sum, and of the weight alike.
    np.testing.assert_allclose(final(result)[0], np.tile(start.mean(0), (6, 1)), rtol=1e-9)


def opposed(n=16):
    """f_i = (x -+ 1)^2 / 2: even workers want 1, odd ones -1."""
    return Quadratic.of(np.ones((n, 1, 1)), np.where(np.arange(n) % 2 == 0, 1.0, -1.0)[:, None])


HALF_SLOW = Cluster(speeds=(1.0, 0.25))
SMALL = {"kind": "sgd", "learning_rate": 0.02}


@pytest.mark.parametrize(
    ("algorithm", "settles_at"),
    [
        (Gossip(optimizer=SMALL), 0.6),
        (A2CiD2(optimizer=SMALL), 0.6),
        (Gossip(optimizer=SMALL, rescale="realised_rate"), 0.0),
        (A2CiD2(optimizer=SMALL, rescale="realised_rate"), 0.0),
    ],
    ids=["gossip", "a2cid2", "gossip rescaled", "a2cid2 rescaled"],
)
def test_speed_bias(algorithm, settles_at):
    """Half the workers of a ring four times slower: gossip minimises sum r_i f_i, whose optimum is (1 - 1/4)/(1 + 1/4)."""
    ring = topology.named("ring", n=16)
    result = decentral.simulate(
        opposed(), ring, algorithm, Rendezvous(), cluster=HALF_SLOW, stop=3000.0, seeds=2
    )
    assert result.trace.gradients_of_workers.reshape(2, 16)[:, :2].tolist() == [[3000, 750]] * 2
    mean = final(result).mean((1, 2))
    np.testing.assert_allclose(mean, settles_at, atol=0.02)
    to_true, to_weighted = (
        np.sqrt(result.metrics[f"mean_distance_to_{which}optimum"][:, -1]) for which in ("", "weighted_")
    )
    np.testing.assert_allclose(to_true, np.abs(mean), rtol=1e-9)
    np.testing.assert_allclose(to_weighted, np.abs(mean - 0.6), rtol=1e-6)


def test_dadao_has_no_speed_bias():
    """On clocks of unequal rates, which is its own setting; on a ring whose exchanges have to wait its rates do not hold."""
    ring = topology.named("ring", n=16)
    result = decentral.simulate(opposed(), ring, DADAO(), Poisson(), cluster=HALF_SLOW, stop=500.0, seeds=2)
    np.testing.assert_allclose(final(result), 0.0, atol=1e-3)


def test_dadao_under_rendezvous_needs_more_exchanges_than_on_its_own_clocks():
    """They come in bursts, which mix less: with the theory's 5 per gradient it diverges on a ring of 16, with 8 it converges."""
    ring, task, cluster = (
        topology.named("ring", n=16),
        problem.quadratic(n=16, d=3),
        Cluster(LogNormal(1.0, 0.3)),
    )

    def run(exchanges):
        protocol = Rendezvous(exchanges_per_gradient=exchanges)
        result = decentral.simulate(task, ring, DADAO(), protocol, cluster=cluster, stop=100.0)
        return result.metrics["distance_to_optimum"][0]

    distance = run(8.0)
    assert distance[-1] < 1e-2 * distance[0]
    assert run(None)[-1] > 1e3


def test_int8_messages_take_a_quarter_of_the_time():
    """512 numbers of 4 bytes, or of 1 and a scale of 4; the trace's transfer times follow."""
    task = problem.quadratic(n=4, d=512, dtype="float32")
    cluster = Cluster(links=decentral.Links(bandwidth_bytes_per_s=1e5))
    took = []
    for compressor, size in ((None, 2048), ("int8", 516)):
        algorithm = A2CiD2(optimizer=RATE, eta=0.3, alpha_tilde=0.9, compressor=compressor)
        result = decentral.simulate(task, COMPLETE, algorithm, Rendezvous(), cluster=cluster, stop=5.0)
        assert result.constants["message_bytes"] == size
        assert result.metrics["bytes"][0, -1] == size * result.metrics["messages"][0, -1]
        commits = result.trace.op == [op.name for op in result.trace.ops].index("exchange_commit")
        took.append(result.trace.duration_s[commits])
        np.testing.assert_allclose(took[-1], size / 1e5, rtol=1e-6)
    assert took[1][0] / took[0][0] == pytest.approx(516 / 2048)


TRACES = """
import decentral
from decentral import topology
from decentral.protocol import *
from decentral.timing import Cluster, Faults, Links
from decentral.timing.compute import LogNormal
cluster = Cluster(LogNormal(1.0, 0.5), Links(0.01, 1e6), Faults(loss=0.1, crash_every_s=30.0, down_s=3.0), slow_workers=1)
graph = topology.named("ring", n=6)
for protocol, meeting in (
    (Rendezvous(), "exchange"), (Rendezvous(messages="stale"), "exchange"), (Mailbox(), "push"), (Rounds(), "mix"),
    (Rounds(mixing="random_pairs"), "pairs"), (AllReduce(first=4), "gradient"), (Server(max_delay=9), "gradient"),
):
    network = protocol.network(graph, Demand(meetings=(meeting,), message_bytes=800, model_bytes=800), cluster)
    print(protocol.timeline(network, Time(20.0), 3).hash)
"""


def test_spread_of_gradients_is_taken_once_at_each_point(monkeypatch):
    """Algorithms of one run start at one point, and end at points of their own."""
    asked = []
    real = decentral.experiment.simulation.heterogeneity
    monkeypatch.setattr(
        decentral.experiment.simulation, "heterogeneity", lambda *given: asked.append(given) or real(*given)
    )
    task = problem.logistic(n=4, d=3, samples_per_worker=10, batch_size=2)
    trace = Poisson().timeline(Poisson().network(topology.named("ring", n=4), Demand()), Time(5.0), 0)
    slow, fast = (
        decentral.Simulation(trace, task, decentral.Gossip(optimizer={"kind": "sgd", "learning_rate": rate}))
        for rate in (0.01, 0.5)
    )
    start = slow.spread_of_gradients()
    assert fast.spread_of_gradients() == start
    assert len(asked) == 1
    slow.run()
    fast.run()
    ends = [each.spread_of_gradients()["zeta_squared"] for each in (slow, fast)]
    assert len(asked) == 3
    assert start["zeta_squared"] != ends[0] != ends[1]


def test_another_process_makes_the_same_traces(capsys):
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    there = subprocess.run(
        [sys.executable, "-c", TRACES], env=environment, check=True, capture_output=True, text=True
    )
    exec(TRACES, {})
    assert capsys.readouterr().out == there.stdout
    assert len(set(there.stdout.split())) == 7


@pytest.mark.slow
def test_own_time_is_the_workers_own():
    """With equal constant speeds a worker's own unit is the network's, but for the first interval; with unequal ones not."""
    ring, task = topology.named("ring", n=4), problem.quadratic(n=4, d=2)
    for cluster, same in ((Cluster(), True), (Cluster(speeds=(1.0, 0.25)), False)):
        own, common = (
            final(
                decentral.simulate(
                    task,
                    ring,
                    A2CiD2(optimizer=RATE, eta=0.3, alpha_tilde=0.9, time_unit=unit),
                    Rendezvous(),
                    cluster=cluster,
                    stop=10.0,
                )
            )
            for unit in ("own_ema", "global")
        )
        assert np.allclose(own, common, rtol=1e-9) == same
    rows, eager = (
        final(
            decentral.replay(
                Rendezvous().timeline(
                    Rendezvous().network(ring, decentral.protocol.Demand(), cluster), decentral.Time(9.0), 1
                ),
                task,
                A2CiD2(optimizer=RATE, eta=0.3, alpha_tilde=0.9, time_unit="own_ema"),
                executor=executor,
            )
        )
        for executor in ("rows", "eager")
    )
    np.testing.assert_allclose(rows, eager, rtol=1e-11)


def test_dadao_on_graphs_that_change():
    """Its own experiment's setting: a new random geometric graph every 1/chi_1; constants from the worst of them."""
    protocol = Poisson(schedule="random_geometric", rounds=10)
    task, n = problem.quadratic(n=8, d=3), 8
    result = decentral.simulate(task, topology.named("ring", n=n), DADAO(), protocol, stop=150.0, seeds=2)
    assert (
        result.metrics["distance_to_optimum"][:, -1] < 1e-2 * result.metrics["distance_to_optimum"][:, 0]
    ).all()
    network = network_of(protocol, topology.named("ring", n=n), DADAO(), task)
    assert network.chi_1 * network.chi_2 == pytest.approx(0.5)
    expected = network.topology.total_rate
    assert result.trace.counts["exchange"] / 300.0 == pytest.approx(expected, rel=5 / np.sqrt(300 * expected))


def test_edges_tick_only_while_their_graph_is_there():
    graphs = topology.SCHEDULES["matchings"](topology.named("ring", n=6))
    protocol = Poisson(schedule="matchings", switch_s=0.5)
    network = Poisson().network(topology.named("ring", n=6), Demand())
    with pytest.raises(decentral.InvalidInput):
        protocol.network(
            topology.named("ring", n=6), decentral.protocol.Demand()
        )  # no single round connects the graph
    changing = type(network)(graphs.union().with_total_rate(3.0), worst=(1.0, 1.0))
    trace = protocol.timeline(changing, decentral.Time(50.0), 0)
    exchanges = trace.op == 1
    rounds = (trace.time_s[exchanges] // 0.5).astype(int) % 2
    for k in (0, 1):
        allowed = {tuple(pair) for pair in graphs.pairs(k).tolist()}
        assert {tuple(pair) for pair in trace.operands[exchanges][rounds == k].tolist()} == allowed
    assert exchanges.sum() == pytest.approx(150, abs=5 * np.sqrt(150))


# -- what a review found -----------------------------------------------------------------------------------------------


def test_a_slow_round_is_not_the_last_one():
    """A stop by gradients keeps on where a round takes far longer than its gradients."""
    links = decentral.Links(latency_s=200.0)
    result = decentral.simulate(
        problem.quadratic(n=4, d=2), COMPLETE, DPSGD(optimizer=RATE), Rounds(), cluster=Cluster(links=links),
        stop=decentral.Gradients(20),
    )  # fmt: skip
    assert result.metrics["gradients"][0, -1] == 20


def test_a_recorded_trace_must_have_the_meetings_of_the_algorithm(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("time_s,op,worker,peer\n0.5,exchange,0,1\n0.9,gradient,2,\n1.5,exchange,1,2\n")
    task, ring = problem.quadratic(n=3, d=2), topology.named("ring", n=3)
    protocol = decentral.Recorded(str(path))
    result = decentral.simulate(task, ring, Gossip(optimizer=RATE), protocol, stop=1.5)
    assert result.trace.counts == {"exchange": 2, "gradient": 1}
    for algorithm in (DPSGD(optimizer=RATE), SGD(optimizer=RATE), decentral.LocalSGD(optimizer=RATE)):
        with pytest.raises(decentral.InvalidInput, match="recorded, with"):
            decentral.simulate(task, ring, algorithm, protocol, stop=1.5)


def test_push_sum_through_a_mailbox_does_not_blow_up():
    task, ring = problem.quadratic(n=8, d=3), topology.named("ring", n=8)
    algorithm = SGP(optimizer={"kind": "sgd", "learning_rate": 0.02})
    result = decentral.simulate(
        task, ring, algorithm, Mailbox(), cluster=Cluster(Exponential(1.0)), stop=1000.0, seeds=2
    )
    late, first = result.metrics["suboptimality"][:, 50:], result.metrics["suboptimality"][:, 0]
    assert (np.median(late, axis=1) < 0.3 * first).all()
    assert (late < 10 * first[:, None]).all(), "the paper's step reaches 1e9"


def test_cancelled_exchanges_did_not_happen():
    """Half of all messages are lost: a paired exchange comes about when both arrive, as an atomic one does."""
    cluster = Cluster(LogNormal(1.0, 0.3), faults=decentral.Faults(loss=0.5))
    ring = topology.named("ring", n=8)
    rates = [
        Rendezvous(messages=messages).timeline(
            Rendezvous().network(ring, decentral.protocol.Demand(), cluster), decentral.Time(400.0), 0
        ).realised_topology().rate
        for messages in ("paired", "atomic")
    ]  # fmt: skip
    # 1,600 exchanges, a quarter of which come about: four standard errors are 17 % (false alarms 1e-4)
    np.testing.assert_allclose(rates, 0.25, rtol=0.17)


def test_a_seed_alone_has_the_metrics_of_a_seed_among_many():
    task, ring = problem.quadratic(n=6, d=2), topology.named("ring", n=6)
    for cluster in (Cluster(Exponential(1.0)), Cluster(Exponential(1.0), slow_workers=1, slow_factor=2.0)):
        alone, among = (
            decentral.simulate(
                task, ring, Gossip(optimizer=RATE), Rendezvous(), cluster=cluster, stop=10.0, seeds=seeds
            )
            for seeds in ([3], [0, 3])
        )
        assert set(alone.metrics) == set(among.metrics)
        assert ("distance_to_weighted_optimum" in alone.metrics) == cluster.unequal
        for name, values in alone.metrics.items():
            np.testing.assert_allclose(values[0], among.metrics[name][1], rtol=1e-9, err_msg=name)


def test_a_cluster_that_never_computes_is_refused():
    faults = decentral.Faults(crash_every_s=0.001, down_s=1e6)
    with pytest.raises(decentral.InvalidInput, match="no gradient of any worker"):
        decentral.simulate(
            problem.quadratic(n=4, d=2), COMPLETE, Gossip(optimizer=RATE), Rendezvous(), cluster=Cluster(faults=faults),
            stop=100.0,
        )  # fmt: skip
    with pytest.raises(decentral.InvalidInput, match=r"cluster\.compute"):
        Cluster(Exponential(1e300))


@pytest.mark.parametrize(
    ("protocol", "algorithm"),
    [
        (Rounds(), DPSGD(optimizer=RATE)),
        (Rounds(local_steps=5), decentral.LocalSGD(optimizer=RATE)),
        (AllReduce(first=3), SGD(optimizer=RATE)),
        (Server(batch=2), SGD(optimizer=RATE)),
    ],
    ids=["mix", "average", "step", "rennala"],
)
def test_where_a_run_is_cut_into_chunks_does_not_matter(protocol, algorithm, monkeypatch):
    """Sections with group ops are cut between them, and where one is too long, between its rows."""
    task, cluster = problem.quadratic(n=4, d=2, noise=0.3), Cluster(LogNormal(1.0, 0.5))

    def run():
        return decentral.simulate(
            task, COMPLETE, algorithm, protocol, cluster=cluster, stop=12.0, seeds=2, record=Record(count=3)
        )

    whole = final(run())
    for events in (1, 7, 20):
        monkeypatch.setattr("decentral.experiment.simulation.CHUNK_EVENTS", events)
        np.testing.assert_allclose(final(run()), whole, rtol=1e-12)
    trace = run().trace
    eager = decentral.replay(trace, task, algorithm, executor="eager")
    np.testing.assert_allclose(final(eager), whole, rtol=1e-12)


def test_step_sizes_from_the_rates_that_happened():
    """Fast and slow workers in turn on a ring: exchanges wait for the slow ones, chi is 2.5 times what was assumed."""
    ring, task = topology.named("ring", n=16), problem.quadratic(n=16, d=2)
    assumed, realised = (
        decentral.simulate(
            task,
            ring,
            A2CiD2(optimizer=RATE),
            Rendezvous(),
            cluster=HALF_SLOW,
            stop=2000.0,
            constants=constants,
        )
        for constants in ("assumed", "realised")
    )
    ratio = assumed.algorithm.eta / realised.algorithm.eta
    # An exchange of a pair for each gradient of the slow one, 0.25 per second, where 0.625 were assumed.
    assert ratio == pytest.approx(2.5, rel=0.1)
    happened = realised.trace.realised_topology(1.6)
    assert realised.algorithm.eta == pytest.approx(0.5 / np.sqrt(happened.chi_1 * happened.chi_2))
    assert realised.algorithm.alpha_tilde == pytest.approx(0.5 * np.sqrt(happened.chi_1 / happened.chi_2))
