"""Overlapped all-reduces: when collectives start and end, what ACCO, DPU and WP make of them, and what memory they take."""

import dataclasses
import itertools
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rounds import CLUSTERS, check_timeline

import decentral
from decentral import ACCO, DPU, SGD, WP, AllReduce, InvalidInput, Overlapped, Record, replay, simulate
from decentral.cost.memory_tables import data_parallel_bytes
from decentral.engine.trace import merge
from decentral.errors import RunFailed
from decentral.problem import Quadratic
from decentral.protocol import Demand, Gradients, Time, rounds_of_counts
from decentral.timing import Cluster, Faults, Links
from decentral.timing.compute import Constant, LogNormal
from decentral.topology import named

BATCHES = Demand(meetings=("batches",), model_bytes=1000)
GRADIENT = Demand(meetings=("gradient",), model_bytes=1000)


def run(protocol, cluster=None, n=8, stop=100.0, seed=1):
    demand = BATCHES if isinstance(protocol, Overlapped) else GRADIENT
    network = protocol.network(named("complete", n=n), demand, cluster)
    trace = protocol.timeline(network, Time(stop) if isinstance(stop, float) else stop, seed)
    trace.validate()
    return trace


def events(trace, name):
    """Rows of one op."""
    return np.flatnonzero(np.array([op.name for op in trace.ops])[trace.op] == name)


def counts_of(trace):
    """(collectives, workers) micro-batches."""
    groups, n = trace.groups, trace.n_workers
    table = np.repeat(np.arange(len(groups)), groups.sizes)
    return np.bincount(table * n + groups.sender, minlength=len(groups) * n).reshape(-1, n)


# -- recorded runs (A1) ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded():
    with np.load(Path(__file__).parent / "data" / "acco_quadratic.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.mark.parametrize("executor", ["rows", pytest.param("eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize(("name", "algorithm"), [("acco", ACCO), ("dpu", DPU)])
def test_recorded_runs_are_reached(recorded, name, algorithm, released, executor):
    """The authors' code on a noisy quadratic, 3 workers, imposed counts: the parameters loaded after every collective."""
    counts = np.vstack([np.ones((1, 3), int), recorded["counts"][:-1]])
    trace = rounds_of_counts(counts)
    centre = np.linalg.solve(recorded["A"], recorded["b"])  # their gradient is A x - b + noise[i, m]
    problem = Quadratic.of(
        np.tile(recorded["A"], (3, 1, 1)), np.tile(centre, (3, 1)), noise_table=recorded["noise"]
    )
    b1, b2 = recorded["betas"].tolist()
    optimizer = {
        "kind": "adamw",
        "learning_rate": float(recorded["lr"]),
        "weight_decay": float(recorded["wd"]),
    }
    optimizer |= {"b1": b1, "b2": b2, "eps": float(recorded["eps"])}
    first = {"first_twice": True} if algorithm is DPU and not released else {}
    algorithm = algorithm(optimizer=optimizer, released=released, **first)
    ends = tuple(events(trace, "reduce") + 1)
    record = Record(events=ends, states=True)
    result = replay(trace, problem, algorithm, initial=recorded["theta0"], record=record, executor=executor)
    loaded = np.concatenate([algorithm.point(state) for state in result.states])
    reference = recorded[f"{name}_loaded_params" + ("" if released else "_paper")]
    assert np.abs(loaded - reference[1:]).max() <= 1e-10
    steps = [int(state.optimizer[0].count[0]) for state in result.states]
    if released or name == "dpu":
        assert steps == recorded[f"{name}_adam_step"].tolist()
    else:
        assert steps == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    if released or name == "acco":
        used = [int(state.count[0]) for state in result.states]
        assert used == recorded[f"{name}_count_round"].tolist()
    updates = result.metrics["updates"][0]
    assert updates.tolist() == [r // 2 if name == "acco" else r for r in range(1, 13)]


def test_imposed_counts():
    counts = np.array([[1, 1, 1], [3, 3, 1], [2, 4, 1]])
    trace = rounds_of_counts(counts, seed=3)
    np.testing.assert_array_equal(counts_of(trace), counts)
    np.testing.assert_array_equal(trace.gradients_of_workers, counts.sum(0))
    assert [trace.ops[code].name for code in trace.op] == ["load", *["load", "reduce"] * 3]
    # what is loaded when a collective starts is reduced by the next one
    assert trace.operands[events(trace, "reduce"), 2].tolist() == [0, 1, 2]
    assert trace.operands[events(trace, "load"), 2].tolist() == [0, 1, 2, 3]
    assert len(rounds_of_counts(np.ones((0, 3), int))) == 1
    for bad in ([[1, 0], [1, 1]], [1, 1], [[1.0, 1.0]], [[1], [1]]):
        with pytest.raises(InvalidInput, match="counts"):
            rounds_of_counts(bad)


# -- stability on quadratics (A2, A3) ----------------------------------------------------------------------------------

OPTIMIZER = {"kind": "sgd", "learning_rate": 1.0}


def disturbed(curvatures, gradients):
    """Two equal workers at a diagonal quadratic, from 1; the first 4 gradients of each are noisy, so that all modes are there.

    Without that ACCO stays at x = ahead, and is gradient descent.
    """
    noise = np.zeros((2, gradients, len(curvatures)))
    noise[:, :4] = np.random.default_rng(0).standard_normal((4, len(curvatures)))
    ones = np.ones((2, len(curvatures)))
    return Quadratic.of(curvatures * ones, 0 * ones, noise_table=noise, initial=ones[0])


def growth(algorithm, curvatures, updates):
    """Growth per update of each coordinate under gradient descent of step 1, over the second half of the updates.

    Between the largest values of the first 40 and of the last 40 updates of that half: complex roots turn.
    """
    each = algorithm.events_per_update
    if isinstance(algorithm, SGD):
        trace = run(AllReduce(), n=2, stop=Gradients(2 * updates))
        ends = events(trace, "step")
    else:
        trace = rounds_of_counts(np.ones((updates * each, 2), int))
        ends = events(trace, "reduce")[each - 1 :: each]
    assert len(ends) == updates
    first = updates // 2
    ends = [*ends[first : first + 40], *ends[-40:]]
    record = Record(events=tuple(int(end) + 1 for end in ends), states=True)
    states = replay(trace, disturbed(curvatures, updates * each), algorithm, record=record).states
    sizes = np.abs([state.x[0] for state in states])
    return (sizes[40:].max(0) / sizes[:40].max(0)) ** (1 / (updates - 40 - first))


@pytest.mark.parametrize(
    ("algorithm", "limit"),
    [
        (SGD(OPTIMIZER), 2.0),
        (ACCO(OPTIMIZER), 2.0),
        (DPU(OPTIMIZER), 1.0),
        (WP(OPTIMIZER), (math.sqrt(5) - 1) / 2),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, float) else "",
)
def test_stability_limits(algorithm, limit):
    """learning rate x curvature up to which gradient descent converges, within 1 %: a fine grid around it at once."""
    curvatures = limit * np.linspace(0.98, 1.02, 41)
    grows = growth(algorithm, curvatures, 1600) > 1
    found = curvatures[grows.argmax()]
    assert grows[-1]
    np.testing.assert_array_equal(
        grows, curvatures >= found
    )  # one limit: below it converges, above it does not
    assert found == pytest.approx(limit, rel=0.01)


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (SGD(OPTIMIZER), (0.5, 0.1)),
        (ACCO(OPTIMIZER), (0.5, 0.45)),
        (DPU(OPTIMIZER), (0.707, 0.949)),
        (WP(OPTIMIZER), (0.879, 1.25)),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, tuple) else "",
)
def test_spectral_radii(algorithm, expected):
    """The factor per update at learning rate x curvature 0.5 and 0.9, against the roots of the recursions too."""
    a = np.array([0.5, 0.9])
    roots = {
        SGD: [[1, x - 1] for x in a],
        ACCO: [[1, 1.5 * x - 1, x * (x - 1) / 2] for x in a],
        DPU: [[1, -1, x] for x in a],
        WP: [[1, -1, 2 * x, -x] for x in a],
    }[type(algorithm)]
    exact = [np.abs(np.roots(polynomial)).max() for polynomial in roots]
    np.testing.assert_allclose(exact, expected, rtol=0.005)
    np.testing.assert_allclose(growth(algorithm, a, 300), exact, rtol=0.01)


def test_lyapunov_function_decreases():
    """V = f(x) - f* + lr L (f(q) - f*) + L |x - q|^2 of ACCO at every update, on 400 random quadratics of 5 dimensions.

    It never rises for lr L <= 0.5 (the paper), nor up to 1 (measured); on some it does above, so this test can fail.
    """
    rng, updates = np.random.default_rng(0), 60
    curvatures = 10 ** rng.uniform(-3, 0, (3, 400, 5))
    curvatures[:, :, 0] = 1
    # lr L; the rows are the quadratics' three ranges
    steps = rng.uniform([[0.01], [0.5], [1.2]], [[0.5], [1.0], [1.99]], (3, 400))
    scale = (steps[..., None] * curvatures).ravel()
    trace = rounds_of_counts(np.ones((2 * updates, 2), int))
    record = Record(events=tuple(int(end) + 1 for end in events(trace, "reduce")), states=True)
    states = replay(trace, disturbed(scale, 2 * updates), ACCO(OPTIMIZER), record=record).states
    # q_t, where the first half of batch t is taken, is estimated by the collective before the one that makes x_t
    x, q = np.stack([s.x[0] for s in states[1::2]]), np.stack([s.ahead[0] for s in states[::2]])

    def of_each(values):
        return values.reshape(updates, 3, 400, 5).sum(-1)[3:]  # after the noise

    apart = of_each((x - q) ** 2)
    values = of_each(scale * x**2 / 2) + steps * of_each(scale * q**2 / 2) + steps * apart
    rises = (values[1:] > values[:-1] * (1 + 1e-9) + 1e-300).any((0, 2))
    assert apart[0].min() > 1e-13
    assert rises.tolist() == [False, False, True]


# -- when things happen ------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    group=st.integers(1, 3),
    warm_up=st.integers(0, 3),
    collective_s=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    sigma=st.sampled_from([0.0, 0.5]),
    speeds=st.sampled_from([(1.0,) * 4, (1.0, 1.0, 0.6, 0.25)]),
    seed=st.integers(0, 9),
)
def test_the_timing_rule(group, warm_up, collective_s, sigma, speeds, seed):
    """Against the rule read word for word, worker after worker: posts, ends, and who took how many micro-batches."""
    cluster = Cluster(LogNormal(1.0, sigma) if sigma else Constant(1.0), speeds=speeds)
    trace = run(Overlapped(group=group, warm_up=warm_up, collective_s=collective_s), cluster, 4, 40.0, seed)
    start, ns = cluster.durations_ns(4, seed, 60.0)
    draws = [ns[a:b].tolist() for a, b in itertools.pairwise(start)]
    length, end, now = round(collective_s * 1e9), 0, [0] * 4
    posts, ends, counts = [], [], []
    while end <= 40 * 10**9:
        synchronous, size = len(ends) < warm_up, 1 if not ends and not warm_up else group
        counts.append([0] * 4)
        for i in range(4):
            if synchronous or len(ends) == warm_up > 0:
                now[i] = end  # everyone begins with what the last collective brought
            while counts[-1][i] == 0 or now[i] < end:
                for _ in range(size):
                    now[i] += draws[i].pop(0)
                counts[-1][i] += size
        posts.append(max(now))
        end = posts[-1] + length
        ends.append(end)
    loads = [0, *(b if r < warm_up else a for r, (a, b) in enumerate(zip(posts, ends, strict=True)))]
    within = [x / 1e9 for x in loads if x <= 40 * 10**9]
    assert trace.time_s[events(trace, "load")].tolist() == within
    reduces = events(trace, "reduce")
    assert trace.time_s[reduces].tolist() == [x / 1e9 for x in ends[: len(reduces)]]
    np.testing.assert_array_equal(counts_of(trace), counts[: len(reduces)])
    np.testing.assert_allclose(trace.duration_s[reduces], length / 1e9)
    took = [sum(trace.groups.duration_s[trace.groups.sender == i]) for i in range(4)]
    done = counts_of(trace).sum(0)
    for i in range(4):
        assert took[i] == pytest.approx(ns[start[i] : start[i] + done[i]].sum() / 1e9)


@pytest.mark.parametrize("collective_s", [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0])
def test_gradients_and_updates_against_the_time_of_a_collective(collective_s):
    """A5: 8 workers, micro-batches of 1 s. Everyone computes all the time, updates become rarer and larger.

    Steady state, between a collective and the last. DDP with 2 micro-batches a step: 2 / (2 + T).
    """
    trace = run(Overlapped(collective_s=collective_s), stop=2000.0)
    time_s, gradients = trace.time_s[events(trace, "reduce")], counts_of(trace).sum(1)
    span_s = time_s[-1] - time_s[10]
    assert gradients[11:].sum() / 8 / span_s == pytest.approx(1.0)
    update_s = 2 * max(1.0, math.ceil(collective_s))
    assert span_s / (len(time_s) - 11) * 2 == pytest.approx(update_s)
    per_update = {0: 16, 0.5: 16, 1: 16, 2: 32, 4: 64, 8: 129, 16: 258}[
        collective_s
    ]  # read off a prototype's run
    assert gradients[11:].mean() * 2 == pytest.approx(per_update, rel=0.01)
    ddp = run(AllReduce(accumulate=2, collective_s=collective_s), stop=2000.0)
    rate = ddp.gradients_of_events.sum() / 8 / ddp.time_s[-1]
    assert rate == pytest.approx(2 / (2 + collective_s))
    published = {0: 1, 0.5: 0.8, 1: 0.67, 2: 0.5, 4: 0.33, 8: 0.2, 16: 0.11}[collective_s]
    assert rate == pytest.approx(published, abs=0.005)


def test_a_collective_as_long_as_a_micro_batch_is_at_the_edge():
    """Exactly 1 s: 16 gradients per update. A nanosecond more: 32. With jitter in between, the prototype's 30."""

    def per_update(collective_s, cluster=None):
        trace = run(Overlapped(collective_s=collective_s), cluster, stop=1000.0)
        return 2 * counts_of(trace)[1:].sum(1).mean()

    assert per_update(1.0) == 16
    assert per_update(1.0 + 1e-9) == pytest.approx(32, rel=0.01)
    assert 27 <= per_update(1.0, Cluster(LogNormal(1.0, 0.01))) <= 32


def test_without_no_sync_communication_is_paid_several_times():
    """4 micro-batches a step, T = 2: 8,000 gradients of 8 workers take ACCO 1,000 s, DDP 1.5 and 3 times as long."""
    overlapped = run(Overlapped(collective_s=2.0), stop=Gradients(8000)).horizon_s
    for no_sync, ratio in ((True, 1.5), (False, 3.0)):
        ddp = run(AllReduce(accumulate=4, collective_s=2.0, no_sync=no_sync), stop=Gradients(8000))
        assert ddp.horizon_s == 1000 * ratio
        assert ddp.horizon_s / overlapped == pytest.approx(ratio, rel=0.01)


@pytest.mark.parametrize(
    ("slowdown", "published"), [(1, 999), (2, 1142), (4, 1230), (8, 1279)], ids=lambda x: str(x)
)
def test_a_slow_worker_costs_only_its_own_work(slowdown, published):
    """A6: 4,000 gradients, 4 workers, one of them slower, T = 0.5: at least 99 % of the sum of the speeds.

    The published times are when the gradients are computed; here the last collective has to end too.
    """
    cluster = Cluster(speeds=(1.0, 1.0, 1.0, 1 / slowdown))
    trace = run(Overlapped(collective_s=0.5), cluster, 4, Gradients(4000))
    assert trace.horizon_s == pytest.approx(published, rel=0.01)
    assert trace.gradients_of_events.sum() / trace.horizon_s >= 0.99 * (3 + 1 / slowdown)
    ddp = run(AllReduce(accumulate=2, collective_s=0.5), cluster, 4, Gradients(4000)).horizon_s
    assert ddp == {1: 1250, 2: 2250, 4: 4250, 8: 8250}[slowdown]
    assert ddp / trace.horizon_s == pytest.approx({1: 1.25, 2: 1.97, 4: 3.46, 8: 6.45}[slowdown], rel=0.01)


def test_links_and_the_optimizer_make_the_collective():
    """Ring of 4: 2 x 3 steps of latency and a quarter of the bytes; then the optimizer."""
    links = Links(latency_s=0.01, bandwidth_bytes_per_s=1e4)
    for kind, expected in (("ring", 6 * (0.01 + 0.1 / 4)), ("tree", 4 * (0.01 + 0.1))):
        for protocol in (
            Overlapped(collective=kind, optimizer_s=0.125),
            AllReduce(collective=kind, optimizer_s=0.125),
        ):
            trace = run(protocol, Cluster(links=links), 4, 20.0)
            reduces = trace.duration_s[trace.op == len(trace.ops) - 1]
            np.testing.assert_allclose(reduces, expected + 0.125)


# -- faults ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    cluster=CLUSTERS,
    protocol=st.sampled_from([Overlapped(), Overlapped(group=2, warm_up=2), Overlapped(collective_s=1.3)]),
    seed=st.integers(0, 5),
)
def test_every_timeline(cluster, protocol, seed):
    """Pure, in order, prefixes of longer ones; weights sum to 1; nobody computes more than there is time."""
    trace = check_timeline(protocol, protocol.network(named("ring", n=4), BATCHES, cluster), seed, 9.0)
    groups = trace.groups
    np.testing.assert_allclose([groups.weight[a:b].sum() for a, b in itertools.pairwise(groups.start)], 1)
    assert np.bincount(groups.sender, groups.duration_s, 4).max(initial=0) <= 9.0 + 1e-6


def test_crashes_and_returns():
    """Down in the middle of a group; down between its post and the others'; all at once."""
    slow = Cluster(speeds=(1.0, 1.0, 0.5), faults=Faults(down=((0, 2.5, 3.5), (1, 8.25, 8.75))))
    trace = run(Overlapped(collective_s=0.5), slow, 3, 14.0)
    # posts 2, 4 (without 0, which is back at the load of 4), 6, 8, 10 (without 1, whose post of 9 is not made), 12
    np.testing.assert_array_equal(trace.time_s[events(trace, "load")], [0, 2, 4, 6, 8, 10, 12, 14])
    np.testing.assert_array_equal(
        counts_of(trace), [[1, 1, 1], [0, 2, 1], [1, 2, 1], [2, 2, 1], [2, 0, 1], [2, 1, 1]]
    )
    everyone = Cluster(faults=Faults(down=tuple((i, 1.5, 4.0 + i) for i in range(3))))
    trace = run(Overlapped(collective_s=0.25), everyone, 3, 7.0)
    # worker 0 begins again at 4 with what was loaded at 1; 1 joins at the load of 5, 2 at that of 6
    assert trace.time_s[events(trace, "reduce")].tolist() == [1.25, 5.25, 6.25]
    np.testing.assert_array_equal(counts_of(trace), [[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    assert trace.operands[events(trace, "reduce"), 2].tolist() == [0, 1, 2]


def test_partitions():
    trace = run(Overlapped(), Cluster(faults=Faults(partitions=((0.5, 3.25, 1),))), 3, 6.0)
    assert trace.time_s[events(trace, "reduce")].tolist() == [3.25, 4.0, 5.0, 6.0]
    assert counts_of(trace)[1].tolist() == [3, 3, 3]  # everyone went on computing
    with pytest.raises(RunFailed, match=r"workers below 1 wait"):
        run(Overlapped(), Cluster(faults=Faults(partitions=((0.5, float("inf"), 1),))), 3)


# -- rivals and runs ---------------------------------------------------------------------------------------------------

ADAMW = {"kind": "adamw", "learning_rate": 0.01, "b2": 0.95, "weight_decay": 0.1}


def test_dpu_in_its_warm_up_is_data_parallel():
    """Synchronous rounds of DPU are those of SGD under all-reduce, by time, draws and parameters."""
    problem = decentral.problem.quadratic(n=4, d=3, noise=0.1)
    cluster = Cluster(LogNormal(1.0, 0.3), links=Links(latency_s=0.01))
    graph, stop, record = named("complete", n=4), 30.0, Record(count=1)
    dpu = DPU(ADAMW)
    one = simulate(problem, graph, dpu, Overlapped(warm_up=100), cluster=cluster, stop=stop, record=record)
    other = simulate(problem, graph, SGD(ADAMW), AllReduce(), cluster=cluster, stop=stop, record=record)
    assert one.metrics["gradients"][0, -1] == other.metrics["gradients"][0, -1] > 50
    np.testing.assert_allclose(one.final.x, other.final.x, rtol=1e-12)


@pytest.mark.slow
def test_a_transformer_learns_under_acco():
    """On a heterogeneous cluster, through ``simulate``; two all-reduces make an update."""
    problem = decentral.problem.transformer(n=4, width=8, heads=2, blocks=1, batch_size=4)
    result = simulate(
        problem, named("complete", n=4), ACCO(ADAMW), Overlapped(),
        cluster=Cluster(speeds=(1.0, 1.0, 1.0, 0.25), links=Links(latency_s=0.25)),
        stop=Gradients(240), record=Record(count=1),
    )  # fmt: skip
    loss = result.metrics["loss"]
    assert (loss[:, -1] < loss[:, 0] - 0.1).all()
    assert result.metrics["updates"][0, -1] == result.trace.counts["reduce"] // 2
    assert 240 <= result.metrics["gradients"][0, -1] < 240 + 16


@pytest.mark.parametrize(
    "algorithm",
    [
        ACCO(ADAMW),
        *(
            pytest.param(other, marks=pytest.mark.slow)
            for other in (ACCO(ADAMW, released=True), DPU(ADAMW, released=True), WP(ADAMW))
        ),
    ],
)
def test_rows_agree_with_one_event_after_another(algorithm):
    """With a slow worker, a crash, and a learning rate for each of two replicas."""
    problem = decentral.problem.quadratic(n=4, d=3, noise=0.1)
    cluster = Cluster(speeds=(1.0, 1.0, 1.0, 0.5), faults=Faults(down=((1, 9.5, 10.5),)))
    trace = merge([run(Overlapped(collective_s=1.5), cluster, 4, 15.0, seed) for seed in (0, 1)])
    both = [
        dataclasses.replace(algorithm, optimizer=ADAMW | {"learning_rate": rate}) for rate in (0.01, 0.02)
    ]
    final = [replay(trace, problem, both, executor=executor).final for executor in ("rows", "eager")]
    for a, b in zip(*(jax.tree.leaves(state) for state in final), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)
    assert np.abs(np.diff(final[0].x, axis=0)).max() > 1e-3


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (lambda: Overlapped(group=0), "protocol.group"),
        (lambda: Overlapped(warm_up=-1), "protocol.warm_up"),
        (lambda: Overlapped(collective="star"), "protocol.collective"),
        (lambda: Overlapped(collective_s=-1.0), "protocol.collective_s"),
        (lambda: Overlapped(optimizer_s=float("nan")), "protocol.optimizer_s"),
    ],
)
def test_bad_arguments_are_refused(protocol, message):
    with pytest.raises(InvalidInput, match=message):
        protocol()


def test_what_does_not_fit_is_refused():
    with pytest.raises(InvalidInput, match=r"stop.gradients: got 7.*at least 8, the number of workers"):
        run(Overlapped(), stop=Gradients(7))
    assert run(Overlapped(), stop=Gradients(8)).gradients_of_events.sum() == 8
    with pytest.raises(InvalidInput, match="meet as the algorithm needs"):
        Overlapped().network(named("complete", n=4), GRADIENT)
    with pytest.raises(InvalidInput, match="meet as the algorithm needs"):
        AllReduce().network(named("complete", n=4), BATCHES)
    with pytest.raises(InvalidInput, match=r"optimizer.learning_rate"):
        ACCO().resolve(None, None)


# -- memory (A7) -------------------------------------------------------------------------------------------------------


def test_published_memory():
    """Table 1 of the paper: GB per worker, 64 workers, 7.5e9 parameters, 12 bytes of Adam's per parameter."""
    published = {"ddp": 120, "zero_1": 31, "zero_2": 16, "zero_3": 2, "acco": 46, "dpu": 46, "wp": 46}
    published |= {"slowmo": 150, "diloco": 150, "co2": 180}
    for method, gigabytes in published.items():
        assert data_parallel_bytes(method, 7.5e9, 64) / 1e9 == pytest.approx(gigabytes, abs=1)
    assert data_parallel_bytes("acco", [1, 2], [[1], [4]], 8).tolist() == [[14, 28], [8, 16]]
    for arguments in (("zero", 1, 1), ("ddp", 0, 1), ("ddp", 1, 0)):
        with pytest.raises(InvalidInput):
            data_parallel_bytes(*arguments)
