"""All-reduce: what the barrier costs, how long collectives take, whose gradients count, and what is refused."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtri
from test_rounds import CLUSTERS, check_timeline

from decentral import InvalidInput
from decentral.analysis.timeline import utilisation
from decentral.engine.plan import make_plan
from decentral.errors import RunFailed
from decentral.protocol import Demand, Gradients, Time
from decentral.protocol.all_reduce import AllReduce, shares
from decentral.timing import Cluster, Faults, Links, TableLinks
from decentral.timing.compute import Constant, Exponential, LogNormal, Normal
from decentral.topology import named

DEMAND = Demand(meetings=("gradient",), model_bytes=1000)


def run(protocol, cluster=None, n=8, stop=10.0, seed=1):
    network = protocol.network(named("complete", n=n), DEMAND, cluster)
    trace = protocol.timeline(network, Time(stop) if isinstance(stop, float) else stop, seed)
    trace.validate()
    return trace


def members(trace, step):
    groups = trace.groups
    return groups.sender[groups.start[step] : groups.start[step + 1]].tolist()


def steps_of(trace):
    """Without the work that is thrown away."""
    rows = np.array([op.name for op in trace.ops])[trace.op] == "step"
    columns = {name: getattr(trace, name)[rows] for name in ("time_s", "op", "operands", "duration_s")}
    return dataclasses.replace(trace, **columns)


# -- what waiting costs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4, 8, 16, 64, 128, 512])
def test_a_round_takes_the_expected_maximum(n):
    """Within 3 %: Blom's mu + sigma Phi^-1((n - 3/8)/(n + 1/4)) for normal times, H_n for exponential ones.

    4,000 rounds: the standard error is below 1 %.
    """
    for compute, expected in (
        (Normal(1.0, 0.2), 1 + 0.2 * ndtri((n - 0.375) / (n + 0.25))),
        (Exponential(1.0), (1 / np.arange(1, n + 1)).sum()),
    ):
        trace = run(AllReduce(), Cluster(compute), n, 4000 * expected)
        assert trace.time_s[-1] / len(trace) == pytest.approx(expected, rel=0.03)


def test_the_first_k_make_the_step():
    """Round r ends with the k-th smallest of everyone's r-th draw, and has the workers it belongs to."""
    cluster = Cluster(LogNormal(1.0, 0.5))
    trace = steps_of(run(AllReduce(first=3), cluster, stop=100.0))
    start, ns = cluster.durations_ns(8, 1, 400.0)
    draws = np.stack([ns[a : a + len(trace)] for a in start[:-1]], axis=1) / 1e9
    np.testing.assert_allclose(
        np.diff(trace.time_s, prepend=0), np.sort(draws, axis=1)[:, 2], rtol=1e-9, atol=2e-9
    )
    for step in range(len(trace)):
        assert members(trace, step) == sorted(np.argsort(draws[step])[:3].tolist())
    np.testing.assert_allclose(trace.groups.weight, 1 / 3)
    np.testing.assert_allclose(
        trace.groups.duration_s[:3], np.sort(draws[0])[np.argsort(np.argsort(draws[0]))][members(trace, 0)]
    )
    everyone = run(AllReduce(first=8), cluster)
    assert everyone.hash == run(AllReduce(), cluster).hash


def test_work_that_is_thrown_away_is_seen():
    """Speeds 1, 1 and 0.4, the first two of three: the third is stopped after 1 s, nobody is idle."""
    trace = run(AllReduce(first=2), Cluster(speeds=(1.0, 1.0, 0.4)), 3, 5.0)
    names = [trace.ops[code].name for code in trace.op]
    assert names == ["work", "step"] * 5
    assert trace.operands[0::2, 0].tolist() == [2] * 5
    assert trace.duration_s.tolist() == [1, 0] * 5
    for n, compute in ((3, Constant(1.0)), (8, LogNormal(1.0, 0.5)), (8, Exponential(1.0))):
        trace = run(AllReduce(first=2), Cluster(compute), n, 200.0)
        busy = utilisation(trace)
        assert busy.compute_s.min() > 0.8 * 200.0, "members of a step wait for each other, nobody else does"
        assert busy.idle_share[2:].mean() < 0.15
        assert trace.counts["work"] == (n - 2) * trace.counts["step"]
        last = np.zeros(n)  # whoever was not a member computed from one step to the next
        last[:] = trace.time_s[-1]
        np.testing.assert_allclose(
            np.bincount(trace.operands[trace.op == 0, 0], trace.duration_s[trace.op == 0], n)
            + step_seconds(trace, n),
            last,
            rtol=1e-6,
        )
    # with links that take time it is stopped before the all-reduce
    links = Links(latency_s=0.125)
    trace = run(AllReduce(first=2), Cluster(speeds=(1.0, 1.0, 0.4), links=links), 3, 3.0)
    assert trace.time_s.tolist() == [1.0, 1.25, 2.25, 2.5]
    assert [op.name for op in run(AllReduce()).ops] == ["step"]


def step_seconds(trace, n):
    """Seconds in rounds whose step a worker was in."""
    trace, seconds, before = steps_of(trace), np.zeros(n), 0.0
    for step, at in enumerate(trace.time_s):
        seconds[members(trace, step)] += at - before
        before = at
    return seconds


def test_a_crash_does_not_count_as_work():
    faults = Faults(crash_every_s=3.0, down_s=1.0)
    trace = run(AllReduce(first=2), Cluster(LogNormal(1.0, 0.5), faults=faults), 6, 100.0)
    assert 0 < trace.counts["work"] < 4 * trace.counts["step"]
    work = trace.op == 0
    down = [np.array(column) for column in faults.outages(1, 6, 100.0)]
    for at, worker, took in zip(
        trace.time_s[work], trace.operands[work, 0], trace.duration_s[work], strict=True
    ):
        away = slice(down[0][worker], down[0][worker + 1])
        begins, ends = down[1][away] / 1e9, down[2][away] / 1e9
        assert not ((begins < at - 1e-9) & (ends > at - took + 1e-9)).any()


def test_batches_by_speed():
    """Speeds 1 and 0.5: rounds of 2 s both ways, with 4 or 6 gradients; a worker too slow to help takes none."""
    cluster = Cluster(speeds=(1.0, 1.0, 0.5, 0.5))
    assert run(AllReduce(), cluster, 4, 12.0).gradients_of_events.sum() == 24
    trace = run(AllReduce(batches="speed", per_round=6), cluster, 4, 12.0)
    assert trace.gradients_of_events.sum() == 36
    assert members(trace, 0) == [0, 0, 1, 1, 2, 3]
    np.testing.assert_allclose(trace.groups.weight, 1 / 6)
    np.testing.assert_array_equal(trace.groups.duration_s[:6], [1, 1, 1, 1, 2, 2])
    assert members(run(AllReduce(batches="speed"), Cluster(speeds=(1.0, 1.0, 1.0, 0.1)), 4), 0) == [
        0,
        0,
        1,
        2,
    ]


def test_micro_batches():
    """Two a step, T = 0.75, speeds 1 and 0.5, optimizer 0.25 s: 4 s of computing, an all-reduce after both or after each.

    Overlap hides what fits under the slow worker's last micro-batch of 2 s, or under each of them.
    """
    cluster = Cluster(speeds=(1.0, 0.5))
    for no_sync, overlap, step_s, length_s in (
        (True, 0.0, 4 + 0.75 + 0.25, 1.0),
        (False, 0.0, 4 + 2 * 0.75 + 0.25, 1.75),
        (True, 0.25, 4 + 0.25 + 0.25, 1.0),
        (False, 0.25, 4 + 2 * 0.25 + 0.25, 1.75),
        (False, 1.0, 4 + 0.25, 1.75),
    ):
        protocol = AllReduce(
            accumulate=2, no_sync=no_sync, overlap=overlap, collective_s=0.75, optimizer_s=0.25
        )
        trace = run(protocol, cluster, 2, 30.0)
        np.testing.assert_allclose(np.diff(trace.time_s, prepend=0), step_s)
        np.testing.assert_allclose(trace.duration_s, length_s)
        np.testing.assert_array_equal(trace.messages_of_events, 2 if no_sync else 2 * 2)
        assert members(trace, 0) == ([0, 0, 1, 1] if no_sync else [0, 1, 0, 1])
        np.testing.assert_allclose(trace.groups.weight, 1 / 4)
        entries = trace.groups.sender[: trace.groups.start[1]]
        np.testing.assert_array_equal(trace.groups.duration_s[: len(entries)], 1 + entries)
    busy = utilisation(run(AllReduce(accumulate=2, no_sync=False, collective_s=0.75), cluster, 2, 5.5))
    np.testing.assert_allclose(busy.communication_s, 2 * 0.75)
    # shared out by speed it is the last micro-batch too that hides it: 1 + 1 and 2 s, then the second of the fast worker
    shared = AllReduce(batches="speed", per_round=3, overlap=0.5, collective_s=5.0)
    np.testing.assert_allclose(np.diff(run(shared, cluster, 2, 30.0).time_s), 2 + 5 - 0.5 * 1)
    first = run(AllReduce(accumulate=3, first=1), cluster, 2, 10.0)
    assert members(first, 0) == [0, 0, 0]
    assert steps_of(first).time_s.tolist() == [3.0, 6.0, 9.0]
    # the step after the crash lacks the second micro-batch of the worker that is down, not the first
    down = dataclasses.replace(cluster, faults=Faults(down=((0, 2.5, 4.5),)))
    parts = run(AllReduce(accumulate=2, no_sync=False), down, 2, 9.0)
    assert [members(parts, k) for k in range(2)] == [[0, 1, 1], [1, 0, 1]]


def test_micro_batches_use_the_same_draws():
    """With and without no_sync the k-th gradient of a worker takes equally long; waiting after each costs more."""
    cluster = Cluster(LogNormal(1.0, 0.5))
    one, other = (
        run(AllReduce(accumulate=4, no_sync=no_sync), cluster, 8, 60.0) for no_sync in (True, False)
    )
    steps = min(len(one), len(other))
    for worker in range(8):
        took = [
            t.groups.duration_s[: t.groups.start[steps]][t.groups.sender[: t.groups.start[steps]] == worker]
            for t in (one, other)
        ]
        np.testing.assert_array_equal(*took)
    assert (other.time_s[:steps] > one.time_s[:steps]).all()


@settings(max_examples=60, deadline=None)
@given(speeds=st.lists(st.floats(0.1, 10.0), min_size=1, max_size=4), total=st.integers(1, 6))
def test_shares_end_as_early_as_can_be(speeds, total):
    speeds = np.array(speeds)
    taken = shares(speeds, total)
    assert taken.sum() == total
    splits = (s for s in itertools.product(range(total + 1), repeat=len(speeds)) if sum(s) == total)
    best = min((np.array(split) / speeds).max() for split in splits)
    assert (taken / speeds).max() <= best * (1 + 1e-12)


# -- collectives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 5, 8])
def test_how_long_an_all_reduce_takes(n):
    """Ring: 2 (n - 1) (latency + bytes/n/bandwidth); tree: 2 ceil(log2 n) (latency + bytes/bandwidth)."""
    links = Links(latency_s=0.01, bandwidth_bytes_per_s=1e4)
    for kind, expected in (
        ("ring", 2 * (n - 1) * (0.01 + 0.1 / n)),
        ("tree", 2 * np.ceil(np.log2(n)) * (0.01 + 0.1)),
    ):
        trace = run(AllReduce(collective=kind), Cluster(links=links), n)
        np.testing.assert_allclose(np.diff(trace.time_s), 1 + expected)
        np.testing.assert_allclose(trace.duration_s, expected)
        for overlap in (0.1, 1.0):
            hidden = run(AllReduce(collective=kind, overlap=overlap), Cluster(links=links), n)
            np.testing.assert_allclose(np.diff(hidden.time_s), 1 + max(0, expected - overlap))
    lossy = run(AllReduce(), Cluster(links=links, faults=Faults(loss=0.5)), n)
    np.testing.assert_allclose(lossy.duration_s, 4 * (n - 1) * (0.01 + 0.1 / n))


def test_the_slowest_link_of_the_ring_decides():
    """Sites in a row, 10 ms per hop: the ring 0, 1, 2, 3 closes over 30 ms; without 3, over 20."""
    latency = tuple(tuple(0.01 * abs(i - j) for j in range(4)) for i in range(4))
    cluster = Cluster(links=TableLinks(latency), faults=Faults(down=((3, 2.0, 100.0),)))
    trace = run(AllReduce(), cluster, 4, 5.0)
    np.testing.assert_allclose(trace.duration_s, [6 * 0.03, 4 * 0.02, 4 * 0.02, 4 * 0.02])
    trace = run(AllReduce(collective="tree"), cluster, 4, 5.0)  # 1 -> 0, 3 -> 2 -> 0
    np.testing.assert_allclose(trace.duration_s[0], 4 * 0.02)


# -- faults ------------------------------------------------------------------------------------------------------------


def test_crashes_and_returns():
    """Down from the start, in the middle of a gradient, all at once."""
    trace = run(AllReduce(), Cluster(faults=Faults(down=((1, 0.0, 1.5), (2, 2.5, 2.75)))), 3, 4.0)
    assert [members(trace, k) for k in range(4)] == [[0, 2], [0, 2], [0, 1], [0, 1, 2]]
    np.testing.assert_allclose([trace.groups.weight[0], trace.groups.weight[-1]], [1 / 2, 1 / 3])
    all_down = tuple((i, 1.5, 4.0 + i) for i in range(3))
    assert run(AllReduce(), Cluster(faults=Faults(down=all_down)), 3, 6.0).time_s.tolist() == [1.0, 5.0, 6.0]
    few = run(AllReduce(first=2), Cluster(faults=Faults(down=((1, 0.0, 9.0), (2, 0.0, 9.0)))), 3, 2.0)
    assert [members(few, k) for k in range(2)] == [[0], [0]]  # fewer than first are up


def test_partitions():
    trace = run(AllReduce(), Cluster(faults=Faults(partitions=((0.5, 3.25, 1),))), 3, 5.0)
    assert trace.time_s.tolist() == [3.25, 4.25]
    with pytest.raises(RunFailed, match=r"workers below 1 wait for workers 1 \.\.\. 2 since 1 s"):
        run(AllReduce(), Cluster(faults=Faults(partitions=((0.5, float("inf"), 1),))), 3)


@settings(max_examples=40, deadline=None)
@given(
    cluster=CLUSTERS,
    protocol=st.sampled_from([
        AllReduce(), AllReduce(first=2, overlap=0.5), AllReduce(batches="speed", collective="tree", per_round=7),
        AllReduce(accumulate=2, no_sync=False, overlap=0.5, optimizer_s=0.1), AllReduce(accumulate=2, first=2),
    ]),
    seed=st.integers(0, 5),
)  # fmt: skip
def test_every_timeline(cluster, protocol, seed):
    """Pure, in order, prefixes of longer ones; weights sum to 1."""
    trace = check_timeline(protocol, protocol.network(named("ring", n=4), DEMAND, cluster), seed, 9.0)
    sums = [trace.groups.weight[a:b].sum() for a, b in itertools.pairwise(trace.groups.start)]
    np.testing.assert_allclose(sums, 1)


# -- stops and refusals ------------------------------------------------------------------------------------------------


def test_stops_and_clocks():
    protocol = AllReduce()
    network = protocol.network(named("ring", n=8), DEMAND, Cluster(LogNormal(2.0, 0.3)))
    assert (network.gradients_per_s, network.time_unit_s, protocol.events_per_gradient(network)) == (
        0.5,
        2.0,
        1 / 8,
    )
    trace = protocol.timeline(network, Gradients(100), 0)
    make_plan(trace)
    assert (len(trace), trace.gradients_of_events.sum()) == (13, 104)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"first": 9}, "protocol.first: got 9"),
        ({"first": 0}, "protocol.first"),
        ({"first": 2, "batches": "speed"}, "protocol.first"),
        ({"overlap": 1.5}, "protocol.overlap"),
        ({"batches": "fast"}, "protocol.batches"),
        ({"per_round": 9}, "protocol.per_round"),
        ({"collective": "star"}, "protocol.collective"),
        ({"accumulate": 0}, "protocol.accumulate"),
        ({"accumulate": 2, "batches": "speed"}, "Say how many by per_round"),
        ({"no_sync": 1}, "protocol.no_sync"),
        ({"no_sync": False, "first": 2}, "protocol.no_sync"),
        ({"no_sync": False, "batches": "speed"}, "protocol.no_sync"),
        ({"collective_s": -0.5}, "protocol.collective_s"),
        ({"optimizer_s": float("inf")}, "protocol.optimizer_s"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        run(AllReduce(**arguments))


def test_gossip_is_refused():
    with pytest.raises(InvalidInput, match="workers meet as the algorithm needs"):
        AllReduce().network(named("ring", n=8), Demand())
