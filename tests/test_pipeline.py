"""Pipelines: delays, rates and batches in flight against closed forms, what every timeline keeps to, and what is refused."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral import InvalidInput
from decentral.analysis import pipeline as says
from decentral.analysis.gantt import plot_gantt
from decentral.analysis.timeline import bytes_per_link, staleness, trace_table, utilisation, write_perfetto
from decentral.cost import memory_tables
from decentral.cost import pipeline as closed
from decentral.engine.trace import StageShape, Trace, merge
from decentral.protocol import PROTOCOLS, Demand, Gradients, Pipeline, Poisson, Time
from decentral.timing import Cluster, Faults, Links, NodeLinks
from decentral.timing.compute import LogNormal
from decentral.topology import DirectedTopology, Topology, named

LOCKSTEP = Pipeline(backward=1.0, reconstruct=0.0, turn=1.0)
"""Every pass takes one tick."""
DEPTHS = (2, 4, 8, 16, 32)


def shapes(stages):
    blocks = [StageShape("block", "x", "x")] * (stages - 2)
    return (StageShape("stem", "", "x"), *blocks, StageShape("head", "x", ""))


def demand(stages, **sizes):
    return Demand(meetings=("stages",), stages=shapes(stages), **sizes)


def run(protocol, stages, stop, pipelines=1, cluster=None, seed=0, **sizes):
    topology = named("pipelines", n=stages * pipelines, stages=stages)
    wanted = demand(stages, local_steps=protocol.micro_batches or 1, **sizes)
    network = protocol.network(topology, wanted, cluster)
    trace = protocol.timeline(network, Time(stop) if isinstance(stop, float) else stop, seed)
    trace.validate()
    return trace


def rows(trace, *instructions):
    return np.flatnonzero(np.array([op.instruction in instructions for op in trace.ops])[trace.op])


def steady_rate(trace, cycle=1):
    """Batches per second between two batches that are whole cycles apart, after the first third."""
    turns = trace.time_s[rows(trace, "turn")]
    first = len(turns) // 3
    last = first + (len(turns) - 1 - first) // cycle * cycle
    return (last - first) / (turns[last] - turns[first])


# -- lock-step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [2, 3, 6, 18])
def test_lock_step_is_a_loop_over_ticks(stages):
    """Batch b goes forward through stage j in tick b + j, and backward in tick b + 2 (J - 1) - j, which is over a tick later."""
    trace = run(LOCKSTEP, stages, 3.0 * stages + 20)
    worker, forward, backward = says.passes(trace)
    batch = np.arange(worker.size) - np.searchsorted(worker, worker)
    last, back = worker == stages - 1, backward >= 0
    assert (trace.time_s[forward[~last]] == (batch + worker)[~last]).all()
    assert (trace.time_s[backward[back]] == (batch + 2 * (stages - 1) - worker + 1)[back]).all()
    for j in range(stages - 1):
        assert (worker == j).sum() == 3 * stages + 21 - j  # the tick that begins at the end, too


@pytest.mark.parametrize("stages", range(2, 33))
def test_p3_updates_between_the_passes_of_a_batch(stages):
    trace = run(LOCKSTEP, stages, 8.0 * stages)
    late = 2 * (stages - 1 - np.arange(stages))
    assert (says.delays(trace).steady()[0] == late).all()
    every = says.delays(trace, k=2)
    warm = every.batch >= 2 * stages
    assert set(zip(every.worker[warm], every.updates[warm], strict=True)) == set(enumerate(late // 2))


def test_p5_batches_in_flight():
    trace = run(LOCKSTEP, 6, 60.0)
    assert says.in_flight(trace).batches.tolist() == [[11, 9, 7, 5, 3, 1]]


# -- rates -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", DEPTHS)
def test_p4_rate_against_backprop(stages):
    stop = Gradients(12 * stages)
    rate = steady_rate(run(Pipeline(), stages, stop))
    one_by_one = steady_rate(run(Pipeline(schedule="backprop"), stages, stop))
    reversible = steady_rate(run(Pipeline(schedule="backprop", reconstruct=1.0), stages, stop))
    assert rate == pytest.approx(1 / 3, rel=1e-12)
    assert rate == pytest.approx(closed.petra_rate(), rel=1e-12)
    assert rate / one_by_one == pytest.approx(stages, rel=1e-12)
    assert rate / one_by_one == pytest.approx(closed.speed_up_vs_model_parallelism(stages), rel=1e-12)
    # The paper's 4 J has the last stage reconstruct what it has just computed; here it does not.
    assert rate / reversible == pytest.approx((4 * stages - 1) / 3, rel=1e-12)
    assert closed.speed_up_vs_model_parallelism(stages, reversible=True) == pytest.approx(4 / 3 * stages)


@pytest.mark.parametrize("stages", DEPTHS)
def test_p4_one_stream_and_a_window_of_j(stages):
    stop = Gradients(12 * stages)
    shared = steady_rate(run(Pipeline(streams=1), stages, stop))
    assert (
        shared == pytest.approx(closed.petra_rate(streams=1), rel=1e-12) == 0.25
    )  # measured over a run: .250-.254
    trace = run(Pipeline(window=stages), stages, stop)
    rate = steady_rate(trace, stages)
    assert rate == pytest.approx(stages / (4 * stages - 1), rel=1e-12)
    assert 0.75 <= 3 * rate <= 0.86
    assert says.delays(trace).steady()[0, 0] == stages - 1


@pytest.mark.parametrize(("stages", "delay"), list(zip(DEPTHS, (41, 84, 169, 340, 681), strict=True)))
def test_p4_without_a_window_delays_grow_and_the_rate_does_not(stages, delay):
    trace = run(Pipeline(window="unlimited"), stages, Gradients(65 * stages))
    assert steady_rate(trace) == pytest.approx(1 / 3, rel=1e-12)
    late = says.delays(trace)

    def mean_delay(begin, end):
        chosen = (late.worker == 0) & (late.batch >= begin * stages) & (late.batch < end * stages)
        return late.updates[chosen].mean()

    assert math.floor(mean_delay(20, 40)) == delay
    assert mean_delay(40, 60) > 1.5 * mean_delay(20, 40)


@pytest.mark.parametrize(("latency_s", "rate"), [(0.0, 1 / 3), (1.0, 1 / 3), (3.0, 0.207), (6.0, 0.132)])
def test_p4_latency(latency_s, rate):
    """Beyond 45 = 31 + 14 c units of a batch's way the window of 15 is what limits: 15 / (31 + 14 c)."""
    cluster = Cluster(links=Links(latency_s=latency_s))
    trace = run(Pipeline(), 8, Gradients(480), cluster=cluster)
    assert steady_rate(trace, 15) == pytest.approx(min(1 / 3, 15 / (31 + 14 * latency_s)), rel=1e-12)
    turns = trace.time_s[rows(trace, "turn")]
    assert 320 / (turns[-1] - turns[160]) == pytest.approx(rate, abs=2e-3)
    assert steady_rate(run(Pipeline(window=40), 8, Gradients(480), cluster=cluster)) == pytest.approx(1 / 3)


@pytest.mark.parametrize("slow", [0, 3, 7])
def test_p4_the_slowest_stage_sets_the_rate(slow):
    speeds = tuple(0.5 if j == slow else 1.0 for j in range(8))
    trace = run(Pipeline(), 8, Gradients(240), cluster=Cluster(speeds=speeds))
    assert says.batches_per_s(trace) == pytest.approx(1 / 6, rel=1e-12)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("stages", "micro_batches"), [(2, 1), (4, 4), (4, 16), (8, 5), (8, 32)])
def test_flushes_have_the_bubble_of_the_papers(schedule, stages, micro_batches):
    """Each flush takes (m + p - 1) (t_f + t_b), all parameters of a flush are the same, and memory differs."""
    flush_s = 3.0 * (micro_batches + stages - 1)
    trace = run(Pipeline(schedule=schedule, micro_batches=micro_batches), stages, 4 * flush_s)
    assert len(rows(trace, "turn")) == 4 * micro_batches
    assert trace.time_s[rows(trace, "backward")[-1]] == 4 * flush_s
    share = says.busy(trace).sum(axis=2)
    assert 1 - share == pytest.approx(closed.bubble(micro_batches, stages), rel=1e-12)
    assert len(rows(trace, "turn")) / trace.horizon_s == pytest.approx(
        closed.flush_rate(micro_batches, stages)
    )
    assert (says.delays(trace, k=micro_batches).updates == 0).all()
    most = says.in_flight(trace).batches[0]
    j = np.arange(stages - 1)
    held = (
        np.full(stages - 1, micro_batches) if schedule == "gpipe" else np.minimum(stages - j, micro_batches)
    )
    assert (most == [*held, 1]).all()


def test_gpipe_goes_forward_with_a_whole_flush_first():
    """Also where stages wait for a slow first one, which in 1f1b they would spend going backward."""
    cluster = Cluster(speeds=(0.1, 1.0, 1.0, 1.0))
    for schedule, most in (("gpipe", [5, 5, 5, 1]), ("1f1b", [4, 1, 1, 1])):
        trace = run(Pipeline(schedule=schedule, micro_batches=5), 4, Gradients(20), cluster=cluster)
        assert says.in_flight(trace).batches[0].tolist() == most


def test_expected_rate_is_what_comes_about():
    """Of all schedules with equal stages and instant messages: it plans a run, and the theory's unit of time."""
    for protocol, cycle in (
        (Pipeline(), 1),
        (Pipeline(window=3), 3),
        (Pipeline(streams=1, reconstruct=0.5), 1),
        (Pipeline(schedule="backprop"), 1),
        (Pipeline(schedule="gpipe", micro_batches=4), 4),
        (Pipeline(schedule="1f1b", micro_batches=6), 6),
    ):
        trace = run(protocol, 5, Gradients(240), pipelines=2)
        for worker in (4, 9):
            mine = rows(trace, "turn")[trace.operands[rows(trace, "turn"), 0] == worker]
            assert trace.time_s[mine[60 + cycle]] - trace.time_s[mine[60]] == pytest.approx(
                cycle / protocol.batches_per_unit(5)
            )
        wanted = demand(5, local_steps=protocol.micro_batches or 1)
        network = protocol.network(named("pipelines", n=10, stages=5), wanted)
        assert network.gradients_per_s * 5 == pytest.approx(protocol.batches_per_unit(5))


# -- what every timeline keeps to --------------------------------------------------------------------------------------


PROTOCOL = st.one_of(
    st.builds(
        Pipeline,
        window=st.sampled_from([None, 1, 3, 50, "unlimited"]),
        streams=st.sampled_from([1, 2]),
        gossip_every=st.sampled_from([None, 1, 3]),
    ),
    st.builds(Pipeline, schedule=st.sampled_from(["gpipe", "1f1b"]), micro_batches=st.integers(1, 6)),
    st.just(Pipeline(schedule="backprop")),
)
LINKS = st.sampled_from(
    [
        Links(),
        Links(latency_s=0.7, bandwidth_bytes_per_s=100.0, jitter="exponential"),
        NodeLinks(2, intra_bytes_per_s=200.0, inter_bytes_per_s=50.0, nic_bytes_per_s=50.0, duplex="half"),
    ]
)


def occupied(trace, stages, worker):
    """(start, end) of a stage's forward passes, and of its turns or backward passes, in order of events."""
    forward, backward = ([], [])
    for event in np.flatnonzero(trace.operands[:, 0] == worker):
        instruction, time_s, took_s = (
            trace.ops[trace.op[event]].instruction,
            trace.time_s[event],
            trace.duration_s[event],
        )
        if instruction == "forward":
            forward.append((time_s, time_s + took_s))
        elif instruction != "exchange":
            backward.append((time_s - took_s, time_s))
    return forward, backward


@settings(deadline=None, max_examples=60)
@given(PROTOCOL, LINKS, st.integers(2, 6), st.integers(1, 3), st.integers(0, 99))
def test_timelines_are_possible(protocol, links, stages, pipelines, seed):
    """Slots open once and close once; batches keep their order; no stream does two things; nothing comes before it was sent."""
    cluster = Cluster(LogNormal(1.0, 0.5), links, speed_sigma=0.3)
    trace = run(protocol, stages, 60.0, pipelines, cluster, seed, token_bytes=((20, 40),) * (stages - 1))
    open_slots = set()
    for code, operands in zip(trace.op, trace.operands, strict=True):
        for operand, number in zip(trace.ops[code].operands, operands, strict=False):
            if operand.opens:
                assert (operand.bank, number) not in open_slots
                open_slots.add((operand.bank, number))
            elif operand.closes:
                open_slots.remove((operand.bank, number))
    instant = 1e-8  # times are whole nanoseconds, as floats
    for d in range(pipelines):
        each = [occupied(trace, stages, d * stages + j) for j in range(stages)]
        for j, (forward, backward) in enumerate(each):
            two = protocol.schedule == "petra" and protocol.streams == 2
            lists = [forward, backward] if two else [sorted(forward + backward)]
            for list_ in lists:
                assert all(a[1] <= b[0] + instant for a, b in itertools.pairwise(list_))
            if j:
                latency_s = getattr(links, "latency_s", 0.0)
                arrives = [end + latency_s for _, end in each[j - 1][0]]
                takes = [start for start, _ in (forward if j < stages - 1 else backward)]
                assert all(a <= b + instant for a, b in zip(arrives, takes, strict=False))
                arrives = [end + latency_s for _, end in backward]
                assert all(a <= b[0] + instant for a, b in zip(arrives, each[j - 1][1], strict=False))
    most = says.in_flight(trace).batches
    limit = {"gpipe": protocol.micro_batches, "1f1b": stages, "backprop": 1}.get(protocol.schedule)
    limit = limit or {None: 2 * stages - 1, "unlimited": np.inf}.get(protocol.window, protocol.window)
    assert (most <= limit).all()
    assert len(rows(trace, "turn")) > 0


def test_same_seed_same_trace_and_the_tapes_are_shared():
    cluster = Cluster(
        LogNormal(1.0, 0.5), Links(latency_s=0.1, jitter="exponential", bandwidth_bytes_per_s=9.0)
    )
    traces = [run(p, 4, 80.0, 2, cluster, seed, message_bytes=3) for p, seed in (
        (Pipeline(), 1), (Pipeline(), 1), (Pipeline(), 2), (Pipeline(window=2, streams=1), 1),
    )]  # fmt: skip
    hashes = [trace.hash for trace in traces]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    took = [
        trace.duration_s[rows(trace, "turn")][trace.operands[rows(trace, "turn"), 0] == 7] for trace in traces
    ]
    few = min(map(len, took))
    assert few > 5
    np.testing.assert_array_equal(took[0][:few], took[3][:few])
    assert (took[0][:few] != took[2][:few]).all()


def test_a_longer_run_begins_like_a_shorter_one():
    cluster = Cluster(LogNormal(1.0, 0.5))
    short, long = (run(Pipeline(gossip_every=2), 4, stop, 2, cluster) for stop in (50.0, 200.0))
    np.testing.assert_array_equal(short.operands, long.operands[: len(short)])
    counted = run(Pipeline(gossip_every=2), 4, Gradients(30), 2, cluster)
    assert counted.gradients_of_events.sum() == 30
    assert counted.ops[counted.op[-1]].instruction == "turn"
    np.testing.assert_array_equal(counted.operands, long.operands[: len(counted)])


def test_two_pipelines_are_two_of_one_and_gossip_joins_equal_stages():
    one, two = (run(LOCKSTEP, 4, 40.0, pipelines) for pipelines in (1, 2))
    assert dict(two.banks) == {"stage:stem": 2, "stage:block": 4, "stage:head": 2}
    assert two.counts == {name: 2 * number for name, number in one.counts.items()}
    second = two.operands[:, 0] >= 4
    np.testing.assert_array_equal(two.time_s[second], one.time_s)
    gossip = run(Pipeline(gossip_every=5), 4, 200.0, 4)
    events = rows(gossip, "exchange")
    back = rows(gossip, "turn", "backward")
    for (
        event
    ) in events:  # right after the fifth pass of the worker that begins it, with one of its two neighbours
        worker, mine, other = gossip.operands[event, :3]
        assert gossip.operands[event - 1, 0] == worker
        assert (gossip.operands[back[back < event], 0] == worker).sum() % 5 == 0
        per_pipeline = 2 if gossip.ops[gossip.op[event]].kind == "block" else 1
        assert mine % per_pipeline == other % per_pipeline
        assert (mine - other) // per_pipeline % 4 in (1, 3)
    first_stages = gossip.operands[events[gossip.operands[events, 0] == 0], 2]
    assert first_stages[:4].tolist() == [1, 3, 1, 3]  # in turn: the same kind's element of pipelines 1 and 3
    assert len(events) == sum((gossip.operands[back, 0] == w).sum() // 5 for w in range(16))
    assert Pipeline(gossip_every=5).events_per_gradient(
        Pipeline().network(named("pipelines", n=16, stages=4), demand(4))
    ) == pytest.approx(len(gossip) / len(rows(gossip, "turn")), rel=0.05)


def test_the_shape_is_known_before_a_batch_comes_through():
    """The second pipeline is the first whose last stage has a batch; the first has none."""
    trace = run(LOCKSTEP, 3, 40.0, 2, Cluster(speeds=(0.02, 0.02, 0.02, 1.0, 1.0, 1.0)))
    assert set(trace.operands[rows(trace, "turn"), 0]) == {5}
    assert says.shape_of(trace) == (2, 3)
    assert "2 pipelines" in says.pipeline_table(trace)
    with pytest.raises(InvalidInput, match="k: got 0"):
        says.pipeline_table(trace, 0)


def test_who_met_is_read_off_the_trace():
    """A worker's equals are its stage's of the other pipelines; rates are those of a plain count."""
    trace = run(Pipeline(gossip_every=2), 4, 200.0, 3)
    events = rows(trace, "exchange")
    for code, op in enumerate(trace.ops):
        if op.instruction == "exchange":
            ends = trace.ends_of_exchanges(np.flatnonzero(trace.op == code))
            assert (ends[:, 0] != ends[:, 1]).all()
            np.testing.assert_array_equal(ends[:, 0] % 4, ends[:, 1] % 4)
    assert trace.realised_rates()["exchange"] == pytest.approx(2 * len(events) / 12 / trace.horizon_s)
    assert run(Pipeline(), 4, 200.0, 3).realised_rates()["exchange"] == 0


def test_a_slow_link_sets_the_rate():
    """A token takes 4 s between stages 1 and 2, longer than any pass; what goes down leaves and enters by the same cards."""
    cluster = Cluster(links=Links(bandwidth_bytes_per_s=10.0))
    for down, each_s in ((0, 4.0), (1, 4.1)):
        tokens = ((10, down), (40, down), (10, down))
        trace = run(Pipeline(window=20), 4, Gradients(100), cluster=cluster, token_bytes=tokens)
        assert steady_rate(trace) == pytest.approx(1 / each_s, rel=1e-6)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"window": 0}, "protocol.window: got 0"),
        ({"window": 2.5}, "protocol.window: got 2.5"),
        ({"window": "none"}, "protocol.window: got 'none'.*unlimited"),
        ({"window": 10**30}, "protocol.window: got 1000000000000000000000000000000"),
        ({"forward": None}, "protocol.forward: got None"),
        ({"schedule": "petro"}, "protocol.schedule"),
        ({"schedule": "gpipe"}, "protocol.micro_batches: got None"),
        ({"schedule": "1f1b", "micro_batches": 0}, "protocol.micro_batches: got 0"),
        ({"schedule": "1f1b", "micro_batches": 4, "window": 3}, "protocol.window: got 3"),
        ({"micro_batches": 4}, "protocol.micro_batches: got 4"),
        ({"forward": 0.0}, "protocol.forward"),
        ({"reconstruct": -1.0}, "protocol.reconstruct"),
        ({"streams": 3}, "protocol.streams"),
        ({"gossip_every": 0}, "protocol.gossip_every"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(InvalidInput, match=words):
        Pipeline(**arguments)
    assert PROTOCOLS["pipeline"] is Pipeline


def test_networks_that_hold_no_pipeline():
    def refused(words, topology, wanted=None, cluster=None):
        with pytest.raises(InvalidInput, match=words):
            Pipeline().network(topology, wanted or demand(4), cluster)

    refused("topology.n: got 6; allowed: a multiple of the 4 stages", named("path", n=6))
    refused("no edge between 1 and 2, which hold stages 1 and 2", named("star", n=4))
    refused("undirected", DirectedTopology("ring", 4, np.array([[0, 1], [1, 2], [2, 3], [3, 0]])))
    refused("cluster.faults", named("path", n=4), cluster=Cluster(faults=Faults(loss=0.1)))
    refused("protocol: got 'pipeline'", named("path", n=4), Demand())
    with pytest.raises(
        InvalidInput, match="micro_batches: got 4; allowed: 2, the algorithm's batches to an update"
    ):
        Pipeline(schedule="1f1b", micro_batches=4).network(named("path", n=4), demand(4, local_steps=2))
    for stages, words in (
        ((("a", "", ""),), "1 stages"),
        ((("a", "", "x"), ("b", "y", "")), r"stages\[1\].takes: got 'y'"),
        ((("a", "z", "x"), ("b", "x", "")), r"stages\[0\].takes: got 'z'"),
        ((("a", "", "x"), ("b", "x", "x")), r"stages\[1\].gives: got 'x'"),
        ((("a", "", "x"), ("a", "x", "x"), ("b", "x", "")), "kind 'a' twice"),
    ):
        refused(
            words,
            named("path", n=4),
            Demand(meetings=("stages",), stages=tuple(StageShape(*s) for s in stages)),
        )


def test_the_topology_of_pipelines():
    grid = named("pipelines", n=12, stages=4)
    edges = set(map(tuple, grid.edges.tolist()))
    assert edges == {(d + j, d + j + 1) for d in (0, 4, 8) for j in range(3)} | {
        pair for j in range(4) for pair in ((j, j + 4), (j + 4, j + 8), (j, j + 8))
    }
    np.testing.assert_array_equal(named("pipelines", n=5).edges, named("path", n=5).edges)
    assert len(named("pipelines", n=8, stages=4).edges) == 10
    with pytest.raises(InvalidInput, match=r"topology.stages: got 5; allowed: a divisor of n = 12"):
        named("pipelines", n=12, stages=5)
    assert isinstance(grid, Topology)


# -- formulas ----------------------------------------------------------------------------------------------------------


def test_table_3_of_the_paper():
    gigabytes = {
        (depth, inputs, parameters): memory_tables.buffered_bytes(
            memory_tables.revnet_sizes(depth), keep_inputs=inputs, keep_parameters=parameters
        )
        / 1e9
        for depth in (18, 50)
        for inputs in (True, False)
        for parameters in (True, False)
    }
    kept = [(True, True), (True, False), (False, True), (False, False)]
    fifty = np.array([gigabytes[50, *key] for key in kept])
    assert fifty.round(2).tolist() == [44.45, 43.58, 21.20, 20.33]
    assert (100 * (1 - fifty / fifty[0])).round(2).tolist() == [0, 1.97, 52.30, 54.27]
    assert [round(gigabytes[18, *key], 2) for key in (kept[0], kept[3])] == [4.94, 2.17]
    millions = [
        sum(size.parameters for size in memory_tables.revnet_sizes(depth)) / 1e6 for depth in (18, 34, 50)
    ]
    assert np.round(millions, 1).tolist() == [12.2, 22.3, 30.4]
    fifo = sum(
        64 * 4 * 2 * (17 - j) * size.inputs
        for j, size in enumerate(memory_tables.revnet_sizes(50))
        if not size.reversible
    )
    assert fifo / 1e9 == pytest.approx(18.3, abs=0.05)
    with pytest.raises(InvalidInput, match="depth"):
        memory_tables.revnet_sizes(20)


def test_memory_read_off_a_trace_is_the_formulas():
    """In lock-step delayed gradients keep 2 (J - j) + 1 batches at stage j < J, PETRA those of the stem alone."""
    flying = says.in_flight(run(LOCKSTEP, 6, 60.0))
    delayed = says.stage_bytes(flying, 100, 50, stash=[7, 7, 7, 7, 7, 0])
    assert delayed[0].tolist() == [150 + 7 * (2 * (6 - j) + 1) for j in range(1, 6)] + [150]
    petra = says.stage_bytes(flying, 100, stash=[7, 0, 0, 0, 0, 0])
    assert petra[0].tolist() == [177, 100, 100, 100, 100, 100]


def test_petra_against_pipelines_with_a_flush():
    """Whether PETRA wins depends on m: with t_f, t_b, t_rec = 1, 2, 1 it does where m < 3 (p - 1)."""
    for stages in (2, 8):
        for m in (1, stages, 3 * (stages - 1), 100):
            ratio = closed.petra_over_pipeline(m, stages)
            assert ratio == pytest.approx(closed.petra_rate(streams=1) / closed.flush_rate(m, stages))
            assert np.sign(round(ratio - 1, 12)) == np.sign(3 * (stages - 1) - m)
    assert closed.petra_over_pipeline(4, 8, zero_bubble=True) == 0.75
    # And as the timelines have it.
    flush = run(Pipeline(schedule="1f1b", micro_batches=6), 4, Gradients(60))
    ratio = steady_rate(run(Pipeline(streams=1), 4, Gradients(60))) / steady_rate(flush, 6)
    assert ratio == pytest.approx(closed.petra_over_pipeline(6, 4), rel=1e-12)


def test_table_1_of_the_paper():
    table = closed.method_costs(10, 3, k=2, graph=5.0)
    assert table["backprop"] == (5, 1, 1, 30, 30)
    assert table["reversible backprop"] == (0, 1, 4, 40, 40)
    assert table["delayed gradients"] == (70, 7, 1, 30, 2)
    assert table["delayed gradients, checkpoints"] == (14, 1, 1, 40, 3)
    assert table["petra"] == (0, 1, 4, 40, 3)
    assert closed.method_costs(10, 3, as_code=True)["petra"] == (0, 1, 4, 50, 4)


# -- to look at --------------------------------------------------------------------------------------------------------


def test_charts_and_tables(tmp_path):
    cluster = Cluster(links=Links(latency_s=0.25))
    trace = run(Pipeline(gossip_every=4), 4, 60.0, 2, cluster)
    trace.save(tmp_path / "trace.npz")
    assert Trace.load(tmp_path / "trace.npz").hash == trace.hash
    assert plot_gantt(trace, tmp_path / "gantt.png").stat().st_size > 10_000
    write_perfetto({"pipeline": trace}, tmp_path / "trace.json")
    names = {entry["name"] for entry in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert {"forward:block", "backward:block", "turn:head"} <= names
    text = says.pipeline_table(trace, k=2, samples_per_batch=32)
    assert f"{32 * len(rows(trace, 'turn'))} samples" in text
    assert len(text.splitlines()) == 2 + 4 + 1


def test_what_people_see_of_a_pipeline():
    """In lock-step: staleness as the delays, the middle stages always busy, a message along each link per batch."""
    trace = run(LOCKSTEP, 4, 40.0)
    assert sorted(set(staleness(trace).updates.tolist())) == [0, 1, 2, 3, 4, 5, 6]
    busy_s = utilisation(trace).compute_s
    assert busy_s.tolist() == [
        40,
        39,
        38,
        37,
    ]  # each begins a tick after the one before, and then never stops
    traffic = bytes_per_link(trace, 1)
    assert traffic.sender.tolist() == [0, 1, 1, 2, 2, 3]
    assert traffic.receiver.tolist() == [1, 0, 2, 1, 3, 2]
    forward, backward = (rows(trace, *names) for names in (("forward",), ("turn", "backward")))
    up = [(trace.operands[forward, 0] == w).sum() for w in range(4)]
    down = [(trace.operands[backward, 0] == w).sum() for w in range(4)]
    # All of the backward passes' messages are taken at once, or lie there at the end; the last forward is still under way.
    arrived = dict(zip(zip(traffic.sender, traffic.receiver, strict=True), traffic.messages, strict=True))
    for w in range(3):
        assert 0 <= up[w] - arrived[w, w + 1] <= 2
        assert 0 <= down[w + 1] - arrived[w + 1, w] <= 1
    assert staleness(trace).worker.size == len(backward)


def test_two_seeds_in_one_trace():
    cluster = Cluster(LogNormal(1.0, 0.3))
    traces = [run(Pipeline(gossip_every=3), 4, 40.0, 2, cluster, seed) for seed in (1, 2)]
    both = merge(traces)
    both.validate()
    for index, trace in enumerate(traces):
        one = both.replica(index)
        assert (says.delays(one).steady() == says.delays(trace).steady()).all()
        assert (says.in_flight(one).tokens == says.in_flight(trace).tokens).all()
    with pytest.raises(InvalidInput, match="2 replicas"):
        says.delays(both)
    early = run(Pipeline(), 8, 5.0)  # no batch has come to the last stage
    assert not says.in_flight(early).cotokens.any()
    assert "1 pipeline: 0 batches" in trace_table({"early": early})
    gossip = Poisson().timeline(Poisson().network(named("ring", n=4), Demand()), Time(5.0), 0)
    with pytest.raises(InvalidInput, match="no turn"):
        says.in_flight(gossip)
