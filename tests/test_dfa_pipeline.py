"""Pipelines without a backward pass: makespans exact from the trace, what every timeline keeps to, and what is refused."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decentral import InvalidInput
from decentral.analysis import pipeline as says
from decentral.analysis.gantt import plot_gantt
from decentral.analysis.timeline import bytes_per_link, staleness, trace_table, utilisation, write_perfetto
from decentral.cost.pipeline import bubble_s, dfa_times, flush_rate
from decentral.engine.plan import make_plan
from decentral.engine.trace import StageShape, Trace, feedback_ops, merge, pipeline_ops
from decentral.protocol import Demand, Gradients, Pipeline, Time
from decentral.timing import Cluster, Faults, Links, NodeLinks
from decentral.timing.compute import LogNormal
from decentral.topology import named


def shapes(stages):
    blocks = [StageShape("block", "x", "x")] * (stages - 2)
    return (StageShape("stem", "", "x"), *blocks, StageShape("head", "x", ""))


def run(protocol, stages, stop, pipelines=1, cluster=None, seed=0, **sizes):
    topology = named("pipelines", n=stages * pipelines, stages=stages, broadcast=True)
    meeting = "feedback" if protocol.schedule == "dfa" else "stages"
    demand = Demand(
        meetings=(meeting,), stages=shapes(stages), local_steps=protocol.micro_batches or 1, **sizes
    )
    network = protocol.network(topology, demand, cluster)
    trace = protocol.timeline(network, Time(stop) if isinstance(stop, float) else stop, seed)
    trace.validate()
    return trace


def rows(trace, *instructions):
    return np.flatnonzero(np.array([op.instruction in instructions for op in trace.ops])[trace.op])


def dfa(**arguments):
    return Pipeline(schedule="dfa", **arguments)


# -- makespans ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("micro_batches", [1, 4, 8, 32])
def test_t21_makespans(stages, micro_batches):
    """(P - 1) + 2 M against 3 (M + P - 1), to the nanosecond, and the closed forms of the cost model."""
    found = dfa_times(micro_batches, stages)
    trace = run(dfa(micro_batches=micro_batches), stages, found.makespan)
    makespan = says.batch_ends_s(trace)[0, :micro_batches].max()
    assert makespan == found.makespan == stages - 1 + 2 * micro_batches
    assert makespan == 2 * micro_batches + bubble_s("dfa", micro_batches, stages, 1.0, 1.0)
    slow_s = 3.0 * (micro_batches + stages - 1)
    for schedule in ("gpipe", "1f1b"):
        backward = Pipeline(schedule=schedule, micro_batches=micro_batches)
        assert says.batch_ends_s(run(backward, stages, slow_s))[0, :micro_batches].max() == slow_s
    assert micro_batches / flush_rate(micro_batches, stages) == pytest.approx(slow_s, rel=1e-12)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"forward": 2.0},
        {"backward": 3.0, "feedback_s": 2.5},
        {"feedback_s": 0.5},
        {"feedback_s": 3.0},
        {"streams": 2},
        {"streams": 2, "backward": 2.0, "feedback_s": 1.5},
    ],
)
@pytest.mark.parametrize(("stages", "micro_batches"), [(2, 1), (3, 8), (8, 3), (5, 5)])
def test_steps_follow_each_other_as_the_closed_form_says(arguments, stages, micro_batches):
    protocol = dfa(micro_batches=micro_batches, **arguments)
    forward, update, _ = protocol.costs
    found = dfa_times(
        micro_batches, stages, forward, update, protocol.feedback_s, arguments.get("streams", 1)
    )
    trace = run(protocol, stages, found.makespan + 3 * found.period)
    ends = says.batch_ends_s(trace)[0].reshape(-1, micro_batches).max(axis=1)
    np.testing.assert_allclose(ends, found.makespan + found.period * np.arange(4), rtol=1e-12)
    first = rows(trace, "forward")[trace.operands[rows(trace, "forward"), 0] == 0]
    np.testing.assert_allclose(trace.time_s[first][::micro_batches][:4], found.period * np.arange(4))
    # Nothing is late inside a flush.
    assert (says.delays(trace, k=micro_batches).updates == 0).all()
    if not arguments and micro_batches >= stages:
        assert found.period == 2 * micro_batches  # no stage waits from one step to the next


@pytest.mark.parametrize("stages", [2, 4, 7])
@pytest.mark.parametrize(
    ("arguments", "per_s"),
    [
        ({}, lambda stages: 1 / 2),
        ({"streams": 2}, lambda stages: 1.0),
        ({"forward": 2.0, "backward": 1.5}, lambda stages: 1 / 3.5),
        ({"window": 2}, lambda stages: min(1 / 2, 2 / (stages + 1))),
        ({"window": 3, "streams": 2}, lambda stages: min(1, 3 / (stages + 1))),
        ({"feedback_s": 3.0}, lambda stages: 1 / 3),
    ],
)
def test_rates_without_a_flush(arguments, per_s, stages):
    """The longest pass, the window over a batch's way, or the unit: whichever is the slowest."""
    protocol = dfa(**arguments)
    trace = run(protocol, stages, Gradients(90))
    turns = trace.time_s[trace.gradients_of_events > 0]
    cycle = 6 * arguments.get("window", 1)  # windows repeat
    assert cycle / (turns[40 + cycle] - turns[40]) == pytest.approx(per_s(stages), rel=1e-12)
    if "feedback_s" not in arguments:
        assert protocol.batches_per_unit(stages) == pytest.approx(per_s(stages), rel=1e-12)
    network = protocol.network(
        named("complete", n=stages), Demand(meetings=("feedback",), stages=shapes(stages))
    )
    assert network.gradients_per_s * stages == pytest.approx(per_s(stages), rel=1e-12)


@pytest.mark.parametrize("stages", range(2, 17))
def test_how_late_updates_are_without_a_flush(stages):
    """With two streams every pass takes one tick: b goes forward at b + j, and is back at b + J + 1 everywhere."""
    trace = run(dfa(streams=2), stages, 6.0 * stages)
    late = says.delays(trace)
    assert late.steady()[0].tolist() == [stages - j for j in range(stages)]
    np.testing.assert_array_equal(late.seconds, stages + 1 - late.worker)
    assert says.in_flight(trace).batches[0].tolist() == [stages + 1 - j for j in range(stages)]
    assert not says.in_flight(trace).cotokens.any()
    every = says.delays(trace, k=2)
    warm = every.batch >= 2 * stages
    for j in range(stages):
        found = set(every.updates[warm & (every.worker == j)].tolist())
        assert found <= {(stages - j) // 2, (stages - j + 1) // 2}


def test_the_broadcast_is_one_hop_of_its_own_links():
    """An error of 40 bytes at 10 bytes/s and a latency of 0.5 s comes 4.5 s after the last forward pass, to all at once.

    With one network card for all it leaves one message after the other.
    """
    cluster = Cluster(links=Links(latency_s=0.5, bandwidth_bytes_per_s=10.0))
    stages = 4
    trace = run(
        dfa(micro_batches=1), stages, 30.0, cluster=cluster, token_bytes=((20, 0),) * 3, error_bytes=40
    )
    error, updates = rows(trace, "error")[0], rows(trace, "update")[:stages]
    assert trace.time_s[error] == 3 * (1 + 2.5)
    at = dict(zip(trace.operands[updates, 0].tolist(), trace.time_s[updates].tolist(), strict=True))
    assert at[3] == trace.time_s[error] + 2  # its own is there at once
    # Who sends has one card, whose queue the three messages share.
    assert [at[j] - trace.time_s[error] for j in range(3)] == [1 + 0.5 + 4 * (j + 1) + 1 for j in range(3)]
    nothing = run(dfa(micro_batches=1), stages, 30.0, cluster=Cluster(links=Links(latency_s=0.5)))
    updates = rows(nothing, "update")[:stages]
    assert sorted(nothing.time_s[updates].tolist()) == [4 + 1.5 + 1] + [4 + 1.5 + 0.5 + 1] * 3


def test_a_unit_serves_one_error_after_the_other():
    """A unit per pipeline: errors leave the last stage every second and the unit every three."""
    trace = run(dfa(micro_batches=4, feedback_s=3.0), 3, 40.0, pipelines=2)
    for first in (0, 3):
        mine = rows(trace, "update")[trace.operands[rows(trace, "update"), 0] == first][:4]
        assert trace.time_s[mine].tolist() == [3 + 3 * (b + 1) + 1 for b in range(4)]
        last = rows(trace, "update")[trace.operands[rows(trace, "update"), 0] == first + 2][:4]
        assert trace.time_s[last].tolist() == [2 + 4 + b + 1 for b in range(4)]  # needs no projection


# -- what every timeline keeps to --------------------------------------------------------------------------------------


PROTOCOL = st.builds(
    dfa,
    micro_batches=st.sampled_from([None, 1, 3, 6]),
    window=st.sampled_from([None, 1, 3, 50]),
    streams=st.sampled_from([1, 2]),
    gossip_every=st.sampled_from([None, 1, 3]),
    feedback_s=st.sampled_from([0.0, 0.3, 2.0]),
)
LINKS = st.sampled_from(
    [
        Links(),
        Links(latency_s=0.7, bandwidth_bytes_per_s=100.0, jitter="exponential"),
        NodeLinks(2, intra_bytes_per_s=200.0, inter_bytes_per_s=50.0, nic_bytes_per_s=50.0, duplex="half"),
    ]
)


@settings(deadline=None, max_examples=50)
@given(PROTOCOL, LINKS, st.integers(2, 6), st.integers(1, 3), st.integers(0, 99))
def test_timelines_are_possible(protocol, links, stages, pipelines, seed):
    """Slots open once and close once, an error when all have read it; nothing overtakes, or comes before it was sent."""
    cluster = Cluster(LogNormal(1.0, 0.5), links, speed_sigma=0.3)
    sizes = {"token_bytes": ((20, 0),) * (stages - 1), "error_bytes": 10}
    trace = run(protocol, stages, 60.0, pipelines, cluster, seed, **sizes)
    n, open_slots, seen, readers = trace.n_workers, set(), set(), {}
    for code, operands in zip(trace.op, trace.operands, strict=True):
        for operand, number in zip(trace.ops[code].operands, operands, strict=False):
            slot = operand.bank, int(number)
            if operand.opens:
                assert slot not in seen
                open_slots.add(slot)
                seen.add(slot)
            elif operand.bank == "error":
                assert slot in open_slots
                readers.setdefault(slot, []).append(int(operands[0]))
            if operand.closes:
                open_slots.remove(slot)
    for (_, number), who in readers.items():
        released = ("error", number) not in open_slots
        *who, last = who if released else (*who, -1)
        pipeline = number % n // stages
        assert set(who) <= set(range(pipeline * stages, (pipeline + 1) * stages))
        assert len(who) == len(set(who)) <= stages
        assert released == (len(who) == stages)
        assert not released or last == who[-1]  # at once
    make_plan(trace)
    instant = 1e-8  # times are whole nanoseconds, as floats
    latency_s = getattr(links, "latency_s", 0.0)
    flush, window = protocol.micro_batches or 10**9, protocol._window(stages)
    for d in range(pipelines):
        began, ended, updated = [], [], []
        for j in range(stages):
            mine = trace.operands[:, 0] == d * stages + j
            up = [e for e in rows(trace, "forward", "error") if mine[e]]
            back = [e for e in rows(trace, "update") if mine[e]]
            began.append(trace.time_s[up])
            ended.append(trace.time_s[up] + trace.duration_s[up])
            updated.append(trace.time_s[back])
            starts = trace.time_s[back] - trace.duration_s[back]
            both = [list(zip(began[j], ended[j], strict=True)), list(zip(starts, updated[j], strict=True))]
            for passes in both if protocol.streams == 2 else [sorted(itertools.chain(*both))]:
                assert all(a[1] <= b[0] + instant for a, b in itertools.pairwise(passes))
            if j:
                few = min(len(began[j]), len(ended[j - 1]))
                assert (ended[j - 1][:few] + latency_s <= began[j][:few] + instant).all()
            for b, time_s in enumerate(began[j]):
                done = (updated[j] <= time_s + instant).sum()
                assert b - done < window
                assert done >= b // flush * flush
        for j in range(stages):
            mine = rows(trace, "update")[trace.operands[rows(trace, "update"), 0] == d * stages + j]
            starts = trace.time_s[mine] - trace.duration_s[mine]
            away_s = 0.0 if j == stages - 1 else latency_s + protocol.feedback_s
            assert (ended[-1][: len(starts)] + away_s <= starts + instant).all()
    assert len(rows(trace, "update")) > 0


def test_same_seed_same_trace_and_longer_runs_begin_alike():
    cluster = Cluster(LogNormal(1.0, 0.5), Links(latency_s=0.1, jitter="exponential"))
    hashes = [run(dfa(feedback_s=0.5), 4, 60.0, 2, cluster, seed).hash for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]
    short, long = (run(dfa(), 4, stop, 2, cluster) for stop in (50.0, 200.0))
    np.testing.assert_array_equal(short.operands, long.operands[: len(short)])
    counted = run(dfa(), 4, Gradients(30), 2, cluster)
    assert counted.gradients_of_events.sum() == 30
    assert counted.ops[counted.op[-1]].name == "update:head"
    # Compute times are the tape's, whatever the schedule.
    other = run(Pipeline(), 4, 50.0, 2, cluster)
    took = [
        trace.duration_s[rows(trace, "forward")][trace.operands[rows(trace, "forward"), 0] == 0][:10]
        for trace in (short, other)
    ]
    np.testing.assert_array_equal(*took)


def test_saved_read_and_merged(tmp_path):
    traces = [run(dfa(gossip_every=3), 4, 40.0, 2, Cluster(LogNormal(1.0, 0.3)), seed) for seed in (1, 2)]
    traces[0].save(tmp_path / "trace.npz")
    assert Trace.load(tmp_path / "trace.npz").hash == traces[0].hash
    both = merge(traces)
    both.validate()
    make_plan(both)
    for index, trace in enumerate(traces):
        one = both.replica(index)
        assert (says.delays(one).steady() == says.delays(trace).steady()).all()
        assert one.counts == trace.counts
    assert both.messages_of_events.sum() == sum(trace.messages_of_events.sum() for trace in traces)
    # Those of a pipeline with a backward pass are what they were.
    assert not {op.instruction for op in pipeline_ops(shapes(4))} & {"error", "update", "release"}
    assert {op.instruction for op in feedback_ops(shapes(4))} == {
        *("forward", "error", "update", "release", "exchange")
    }


def test_what_people_see(tmp_path):
    trace = run(dfa(micro_batches=6), 4, 15.0)
    assert says.shape_of(trace) == (1, 4)
    # A stage that has done its updates goes on with the next flush: with more batches than stages nobody waits.
    assert utilisation(trace).compute_s.tolist() == [15, 14, 13, 12]
    traffic = bytes_per_link(trace, 1)
    links = dict(zip(zip(traffic.sender, traffic.receiver, strict=True), traffic.messages, strict=True))
    assert set(links) == {(0, 1), (1, 2), (2, 3), (3, 0), (3, 1), (3, 2)}
    assert [links[3, j] for j in range(3)] == [6, 6, 6]
    early = run(dfa(micro_batches=6), 4, 8.0)  # all activations were taken, and of five errors three parts
    traffic = bytes_per_link(early, 1)
    assert traffic.messages[traffic.sender != 3].tolist() == [6, 6, 6]
    assert traffic.messages[traffic.sender == 3].sum() == 3
    assert traffic.under_way == 3 * 5 - 3
    assert staleness(trace).updates.size == 24
    text = trace_table({"dfa": trace})
    assert "update:block" in text
    assert "1 pipeline: 6 batches, 6 update passes per stage" in says.pipeline_table(trace)
    assert plot_gantt(trace, tmp_path / "gantt.png").stat().st_size > 10_000
    write_perfetto({"dfa": trace}, tmp_path / "trace.json")
    names = {entry["name"] for entry in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert {"forward:block", "update:block", "error:head"} <= names


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"schedule": "dfa", "turn": 2.0}, "protocol.turn: got 2.0; allowed: nothing in dfa"),
        ({"schedule": "dfa", "window": 0}, "protocol.window: got 0"),
        ({"schedule": "dfa", "window": "unlimited"}, "protocol.window: got 'unlimited'"),
        ({"schedule": "dfa", "micro_batches": 0}, "protocol.micro_batches: got 0"),
        ({"schedule": "dfa", "feedback_s": -1.0}, "protocol.feedback_s"),
        ({"feedback_s": 1.0}, "protocol.feedback_s: got 1.0; allowed: nothing in petra"),
        ({"schedule": "dfa", "backward": 0.0}, "protocol.backward"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(InvalidInput, match=words):
        Pipeline(**arguments)


def test_networks_that_cannot():
    def refused(words, protocol, topology, meeting="feedback", cluster=None, local_steps=1):
        demand = Demand(meetings=(meeting,), stages=shapes(4), local_steps=local_steps)
        with pytest.raises(InvalidInput, match=words):
            protocol.network(topology, demand, cluster)

    line = named("path", n=4)
    refused("no edge between 0 and 3, which hold stages 0 and 3, the last.*broadcast = true", dfa(), line)
    refused("protocol: got 'pipeline, schedule dfa'.*gradients on", dfa(), line, "stages")
    refused("protocol: got 'pipeline'; .*schedule 'dfa'", Pipeline(), line)
    joined = named("pipelines", n=8, stages=4, broadcast=True)
    refused("micro_batches: got 4; allowed: 2", dfa(micro_batches=4), joined, local_steps=2)
    refused("cluster.faults", dfa(), joined, cluster=Cluster(faults=Faults(loss=0.1)))
    for broadcast, edges in ((False, 10), (True, 14)):
        assert len(named("pipelines", n=8, stages=4, broadcast=broadcast).edges) == edges
    assert len(named("pipelines", n=4, stages=2, broadcast=True).edges) == 4
    with pytest.raises(InvalidInput, match="micro_batches: got 0"):
        dfa_times(0, 4)
