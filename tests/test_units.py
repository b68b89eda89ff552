"""Optical units as nodes of a topology: who they serve, how requests queue, what they take."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import networkx as nx
import numpy as np
import pytest

from decentral import ADPSGD, Record, problem, replay, simulate
from decentral.analysis.gantt import plot_gantt
from decentral.analysis.timeline import Outcome, activity, write_perfetto
from decentral.analysis.units import unit_accounts
from decentral.cost.optical import RandomProjection
from decentral.engine.trace import Trace
from decentral.errors import InvalidInput
from decentral.experiment.entry import network_of
from decentral.experiment.simulation import Simulation
from decentral.hardware import optical_unit
from decentral.optical.feedback import Feedback
from decentral.protocol import Demand, Gradients, Mailbox, Poisson, Rendezvous, Time
from decentral.protocol.service import Service, gradient_rate, turn_of
from decentral.timing import Cluster, Faults
from decentral.timing.compute import Constant, Exponential
from decentral.topology import Topology, UnitNode, load_network, named, network_names

GEN_2, GEN_3 = "LightOn OPU Gen-2", "LightOn OPU Gen-3"


# -- in a topology -----------------------------------------------------------------------------------------------------


def test_workers_are_dealt_out_in_blocks_and_counted_without_units():
    topology = named("ring", n=5, units={"device": GEN_3, "count": 2, "latency_s": 1e-5})
    assert topology.n == 5
    assert [unit.serves for unit in topology.units] == [(0, 1, 2), (3, 4)]
    assert topology.unit_of.tolist() == [0, 0, 0, 1, 1]
    assert topology.units[0].bandwidth_bytes_per_s == optical_unit(GEN_3).link_bytes_per_s
    assert topology.with_total_rate(3.0).units == topology.units
    plain = named("ring", n=5)
    assert topology.chi_1 == plain.chi_1
    assert plain.units == ()
    three = named("ring", n=5, units=[{"device": "LightOn OPU Gen-2", "workers_per_unit": 2}])
    assert [unit.serves for unit in three.units] == [(0, 1), (2, 3), (4,)]


def test_units_of_a_graph_are_nodes_with_a_device():
    graph = nx.cycle_graph(["a", "b", "c", "d"])
    graph.add_node("opu", optical=GEN_2)
    graph.add_edge("opu", "b", latency_s=2e-6, bandwidth_bytes_per_s=1e9)
    graph.add_edge("d", "opu", latency_s=2e-6, bandwidth_bytes_per_s=1e9)
    topology = Topology.from_graph(graph)
    assert (topology.n, len(topology.edges)) == (4, 4)
    assert topology.units == (UnitNode("opu", GEN_2, (1, 3), 2e-6, 1e9),)
    again = Topology.from_graph(topology.to_networkx())
    assert again.units == topology.units
    assert np.array_equal(again.edges, topology.edges)


@pytest.mark.parametrize(
    ("units", "words"),
    [
        ({"device": "LightOn OPU Gen-9"}, "known optical unit"),
        ({"device": GEN_2, "count": 5}, "5 units for 4 workers"),
        ({"device": GEN_2, "serves": []}, "serves nobody"),
        ({"device": GEN_2, "serves": [4]}, "workers 0 to 3"),
        ({"device": GEN_2, "serves": [1, 1]}, "twice"),
        ([{"device": GEN_2, "serves": [0, 1]}, {"device": GEN_3, "serves": [1]}], "unit 0 and unit 1"),
        ({"device": GEN_2, "serves": [0], "count": 1}, "one of"),
        ({"device": GEN_2, "latency": 1}, "latency_s"),
        ({"device": GEN_2, "latency_s": -1.0}, "latency_s"),
        ({"device": GEN_2, "bandwidth_bytes_per_s": 0.0}, "bandwidth"),
        ({"count": 1}, "device"),
        ([{"device": GEN_2, "name": "a", "serves": [0]}, {"device": GEN_2, "name": "a", "serves": [1]}], "called a"),
        ("LightOn", "a table"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(units, words):
    with pytest.raises(InvalidInput, match=words):
        named("ring", n=4, units=units)


def test_units_joined_or_idle_or_with_two_links_are_refused():
    graph = nx.cycle_graph(4)
    graph.add_nodes_from(["p", "q"], optical=GEN_2)
    graph.add_edge("p", 0)
    with pytest.raises(InvalidInput, match="serves nobody"):
        Topology.from_graph(graph)
    graph.add_edge("p", "q")
    with pytest.raises(InvalidInput, match="between the units"):
        Topology.from_graph(graph)
    graph.remove_edge("p", "q")
    graph.add_edge("q", 1, latency_s=1e-6)
    graph.add_edge("q", 2, latency_s=2e-6)
    with pytest.raises(InvalidInput, match="one link"):
        Topology.from_graph(graph)


def test_the_rack_has_a_unit_and_a_source_for_each_of_its_numbers():
    rack = load_network("opu_rack")
    assert "opu_rack" in network_names()
    assert [unit.serves for unit in rack.units] == [tuple(range(8))]
    assert {
        f"units.{key}" for key in ("device", "workers_per_unit", "latency_s", "bandwidth_bytes_per_s")
    } <= set(rack.sources)
    assert named("network", n=16, name="opu_rack").units == load_network("opu_rack", 16).units
    assert len(load_network("opu_rack", 16).units) == 2


# -- a timeline by hand ------------------------------------------------------------------------------------------------


def served(n=2, *, device=GEN_2, latency_s=1e-3, bandwidth=1e6, batch=100, before=0.25, after=0.5, **task):
    """A ring of n workers with one unit; ``batch`` frames of 1,000 bits in and 500 bytes out."""
    units = {"device": device, "latency_s": latency_s, "bandwidth_bytes_per_s": bandwidth}
    topology = named("complete" if n < 3 else "ring", n=n, units=units)
    sizes = {"inputs": 1000, "outputs": 500} | task
    return topology, Service(RandomProjection(batch=batch, **sizes), before, after)


def traced(protocol, topology, service, horizon_s, cluster=None, seed=0):
    network = protocol.network(topology, Demand(service=service), cluster or Cluster())
    return protocol.timeline(network, Time(horizon_s), seed)


def events_of(trace, *names):
    """``[(name, ns, worker, duration in ns)]`` of some ops, in order."""
    return [
        (trace.ops[op].name, round(t * 1e9), int(who[0]), round(d * 1e9))
        for op, t, who, d in zip(trace.op, trace.time_s, trace.operands, trace.duration_s, strict=True)
        if trace.ops[op].name in names
    ]


@pytest.mark.parametrize("protocol", [Mailbox(), Rendezvous(count="fixed")])
def test_two_workers_queue_for_one_unit_to_the_nanosecond(protocol):
    # A draw of 1 s: 0.25 s, the request, 0.5 s. 100 frames of 1,000 bits are 12,500 bytes, 12.5 ms at 1 MB/s; 50 ms of light at
    # 2 kHz; 50,000 bytes back take 50 ms; 1 ms of latency each way.
    topology, service = served()
    trace = traced(protocol, topology, service, 2.0)
    ms = 10**6
    first = [
        ("gradient_start", 0, 0, 0),
        ("gradient_start", 0, 1, 0),
        ("request", 263_500_000, 0, 13_500_000),  # 250 + 12.5 + 1
        ("request", 276 * ms, 1, 26 * ms),  # waits 12.5 for the link
        ("serve", 313_500_000, 0, 50 * ms),
        ("serve", 363_500_000, 1, 50 * ms),  # waits 37.5 for the unit
        ("gradient_commit", 864_500_000, 0, 500 * ms),  # 313.5 + 50 + 1 + 500
        ("gradient_start", 864_500_000, 0, 0),
        ("gradient_commit", 914_500_000, 1, 500 * ms),
        ("gradient_start", 914_500_000, 1, 0),
        ("request", 1_128 * ms, 0, 13_500_000),
        ("serve", 1_178 * ms, 0, 50 * ms),
        ("request", 1_178 * ms, 1, 13_500_000),  # at that instant the unit is free
        ("serve", 1_228 * ms, 1, 50 * ms),
    ]
    names = ("gradient_start", "gradient_commit", "request", "serve")
    found = events_of(trace, *names)[: len(first)]
    # At 1,178 ms what arrives stands before what is done.
    first[11], first[12] = first[12], first[11]
    assert found == first
    assert (
        trace.operands[
            np.isin(trace.op, [trace.ops.index(op) for op in trace.ops if op.name == "serve"]), 1
        ].max()
        == 0
    )


def test_an_exposure_or_frame_rate_is_the_hardwares():
    topology, service = served(device=GEN_3, batch=8, inputs=1000, outputs=500)
    turn = turn_of(service.task, topology.units[0])
    assert turn.frames == 8
    assert math.isclose(turn.serve_s, 8 / 8000)
    signed = dataclasses.replace(service.task, bits=6, signed=True, mode="anchor")
    assert turn_of(signed, topology.units[0]).frames == 8 * 6 * 2 * 2
    with pytest.raises(InvalidInput, match="mirrors"):
        turn_of(dataclasses.replace(service.task, inputs=2_000_000), topology.units[0])


# -- queues ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [Mailbox(), Rendezvous()])
def test_many_workers_saturate_the_unit(protocol):
    # 64 workers of 0.75 s and 50 ms of light: the unit is never idle after its first request, and takes 20 requests a second.
    topology, service = served(64, latency_s=0.0, bandwidth=math.inf)
    trace = traced(protocol, topology, service, 40.0)
    assert trace.counts["serve"] == math.floor((40.0 - 0.25) / 0.05 + 1e-9)
    assert math.isclose(gradient_rate(topology, service, Cluster()) * 64, 20.0)
    # Four do not: their requests fall into step, and nobody waits.
    topology, service = served(4, latency_s=0.0, bandwidth=math.inf)
    trace = traced(protocol, topology, service, 80.0)
    assert math.isclose(
        trace.counts["gradient_commit"] / 320, gradient_rate(topology, service, Cluster()), rel_tol=0.02
    )
    assert math.isclose(gradient_rate(topology, service, Cluster()), 1 / 0.8)


def test_the_waiting_time_is_that_of_a_queue_with_one_server():
    # Many workers, each of which asks rarely at random times: nearly Poisson arrivals, deterministic service. M/D/1 waits
    # rho / (2 (1 - rho)) services on average; that workers who wait do not ask makes it a little less.
    n, rho, serve_s = 200, 0.5, 0.01
    topology, service = served(n, latency_s=0.0, bandwidth=math.inf, batch=20, before=1.0, after=0.0)
    cluster = Cluster(Exponential(n * serve_s / rho))
    trace = traced(Mailbox(), topology, service, 600.0, cluster)
    request = trace.time_s[trace.op == [op.name for op in trace.ops].index("request")]
    serve = trace.time_s[trace.op == [op.name for op in trace.ops].index("serve")]
    waits = serve - serve_s - request[: serve.size]
    busy = serve.size * serve_s / 600
    assert abs(busy - rho) < 0.02
    theory = serve_s * busy / (2 * (1 - busy))
    assert 0.85 * theory < waits.mean() < 1.1 * theory


@pytest.mark.parametrize("protocol", [Mailbox(), Rendezvous()])
def test_crashed_workers_requests_are_served_and_their_replies_lost(protocol):
    topology, service = served(8, latency_s=1e-3)
    cluster = Cluster(faults=Faults(crash_every_s=2.0, down_s=0.5))
    trace = traced(protocol, topology, service, 60.0, cluster, seed=3)
    requests, serves = events_of(trace, "request"), events_of(trace, "serve")
    lost = trace.counts["abandon"]
    assert lost > 20
    # First come, first served, and none is forgotten: what is not served is in the queue at the end.
    assert [who for _, _, who, _ in serves] == [who for _, _, who, _ in requests][: len(serves)]
    done = trace.counts["gradient_commit"]
    assert done < len(serves) <= len(requests) <= done + lost + 8
    later = traced(protocol, topology, service, 61.0, cluster, seed=3)
    assert np.array_equal(later.operands[: len(trace)], trace.operands)


def test_events_do_not_depend_on_companions_and_only_units_change_a_trace():
    topology, service = served(8)
    cluster = Cluster(Exponential(1.0))
    for protocol in (Mailbox(), Rendezvous()):
        one = traced(protocol, topology, service, 20.0, cluster, seed=5)
        assert traced(protocol, topology, service, 20.0, cluster, seed=5).hash == one.hash
        plain = protocol.timeline(protocol.network(named("ring", n=8), Demand(), cluster), Time(20.0), 5)
        idle = protocol.timeline(protocol.network(topology, Demand(), cluster), Time(20.0), 5)
        assert idle.hash == plain.hash != one.hash
        assert (
            protocol.network(topology, Demand(), cluster).clocks
            == protocol.network(named("ring", n=8), Demand(), cluster).clocks
        )
        other = dataclasses.replace(topology, units=(dataclasses.replace(topology.units[0], latency_s=2e-3),))
        clocks = [protocol.network(t, Demand(service=service), cluster).clocks for t in (topology, other)]
        assert clocks[0] != clocks[1]


def test_a_stop_by_gradients_counts_what_the_units_let_through():
    topology, service = served(32, latency_s=0.0, bandwidth=math.inf)
    network = Mailbox().network(topology, Demand(service=service), Cluster())
    trace = Mailbox().timeline(network, Gradients(500), 0)
    assert trace.gradients_of_events.sum() == 500
    assert abs(trace.horizon_s - 500 / 20) < 1.0


def test_a_thousand_workers_and_ten_units():
    topology = named("ring", n=1000, units={"device": GEN_3, "count": 10, "latency_s": 5e-6})
    service = Service(RandomProjection(inputs=1000, outputs=4096, batch=64))
    trace = traced(Mailbox(), topology, service, 10.0, Cluster(Constant(0.5)))
    units = trace.operands[trace.op == [op.name for op in trace.ops].index("serve"), 1]
    assert np.bincount(units).tolist() == [len(units) // 10] * 10


# -- with an algorithm -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Optical(Feedback):
    """A feedback on a unit: 16 samples of 10 errors, ternary, linear by an anchor."""

    def projection(self, problem):
        return RandomProjection(10, 64, batch=16, mode="anchor", signed=True)


@pytest.fixture(scope="module")
def layered():
    return problem.reversible_mlp(4, data="digits", stages=3, hidden=4, workers_per_model=1, batch_size=16)


def test_feedback_says_what_a_gradient_asks(layered):
    cluster = Cluster(Constant(3.0))
    ring = named("ring", n=4)
    units = named("ring", n=4, units={"device": GEN_2, "latency_s": 1e-3})

    def network(topology, feedback, protocol=None, cluster=cluster):
        protocol = protocol or Mailbox()
        algorithm = ADPSGD(optimizer={"learning_rate": 0.1}, feedback=feedback)
        return network_of(protocol, topology, algorithm, layered, cluster)

    assert network(ring, None).gradients_per_s == 1 / 3.0
    assert math.isclose(network(ring, "dfa").gradients_per_s, 1 / 2.0)
    assert math.isclose(network(ring, "shallow").gradients_per_s, 1.0)
    assert network(ring, "backprop").clocks == network(ring, None).clocks == network(units, None).clocks
    # Without units the projections take no time, wherever they are done.
    assert network(ring, Optical()).clocks == network(ring, "dfa").clocks == network(units, "dfa").clocks
    asked = network(units, Optical())
    turn = turn_of(asked.demand.service.task, units.units[0])
    assert turn.frames == 16 * 2 * 2
    assert math.isclose(asked.gradients_per_s, 1 / (2.0 + turn.seconds))
    assert turn.seconds > 0.034  # 64 frames at 2 kHz, and 2 ms
    with pytest.raises(InvalidInput, match="rendezvous or mailbox"):
        network(units, Optical(), Poisson(), None)
    some = named("ring", n=4, units={"device": GEN_2, "serves": [0, 2]})
    with pytest.raises(InvalidInput, match="worker 1 the first"):
        network(some, Optical())
    assert network(some, "dfa").demand.service is None


def test_a_gradient_asks_for_a_projection_of_every_error(layered):
    # Stem and block give two streams of 4 each, for which an error of 10 classes is projected: 8 + 8 pixels.
    light = Feedback(matrix="optical", error="ternary", threshold=0.2)
    assert light.projection(layered) == RandomProjection(10, 16, 16, "anchor", bits=1, signed=True)
    assert Feedback(matrix="optical", precision=4).projection(layered).bits == 4
    assert Feedback().projection(layered) is None
    for feedback in (light, Feedback(matrix="optical", mode="four_phase")):
        (unit,) = named("ring", n=4, units={"device": GEN_3}).units
        assert turn_of(feedback.projection(layered), unit).frames == 16 * feedback.frames


def test_workers_have_the_matrix_of_their_unit(layered):
    cluster = Cluster(Constant(0.1))
    light = ADPSGD(
        optimizer={"learning_rate": 0.1}, feedback=Feedback(matrix="optical", error="ternary", threshold=0.2)
    )

    def keys(units, algorithm=light):
        topology = named("ring", n=4, units=units)
        network = network_of(Mailbox(), topology, algorithm, layered, cluster)
        trace = Mailbox().timeline(network, Time(0.5), 7)
        return jax.random.key_data(Simulation(trace, layered, algorithm).context.feedback_keys).tolist()

    one, none = keys({"device": GEN_3}), keys(None)
    assert one == none
    assert len({tuple(key) for key in one}) == 1
    two = keys({"device": GEN_3, "count": 2})
    assert two[0] == two[1] == one[0]
    assert two[2] == two[3] != one[0]


# -- what they did -----------------------------------------------------------------------------------------------------


def test_an_account_of_the_timeline_by_hand():
    # The timeline of test_two_workers_queue..., cut at 1.2 s: the unit served 0 and 1, then 0, and serves 1 since 1.178 s.
    topology, service = served()
    trace = traced(Mailbox(), topology, service, 1.2)
    (account,) = unit_accounts(trace, topology, service)
    assert (account.requests, account.served, account.frames) == (4, 3, 300)
    assert math.isclose(account.busy_s, 0.15 + 0.022)
    assert math.isclose(account.utilisation, account.busy_s / 1.2)
    # The first waited for nobody, the second 37.5 ms, the others for nobody.
    assert math.isclose(account.wait_max_s, 0.0375)
    assert math.isclose(account.wait_mean_s, 0.0375 / 4)
    assert (account.bytes_in, account.bytes_out) == (4 * 12_500, 3 * 50_000)
    watts = optical_unit(GEN_2).power_w
    assert math.isclose(account.frames_j, watts * account.busy_s)
    assert math.isclose(account.on_j, watts * 1.2)
    for word in (GEN_2, "simulated", "batch 100", "intensity", "real rows", "without its host"):
        assert word in account.words
    assert unit_accounts(trace, topology, None) == ()
    with pytest.raises(InvalidInput, match="unit 0 in the trace"):
        unit_accounts(trace, named("complete", n=2), service)


def test_busy_time_is_frames_taken_and_no_request_is_lost_to_the_count():
    topology = named("ring", n=12, units={"device": GEN_3, "count": 3})
    service = Service(RandomProjection(200_000, 1000, batch=500, mode="anchor"))
    cluster = Cluster(Exponential(0.2), faults=Faults(crash_every_s=1.0, down_s=0.2))
    trace = traced(Rendezvous(), topology, service, 30.0, cluster)
    accounts = unit_accounts(trace, topology, service)
    assert sum(account.requests for account in accounts) == trace.counts["request"]
    assert sum(account.served for account in accounts) == trace.counts["serve"]
    for account in accounts:
        assert account.frames == 1000 * account.served
        assert 0 <= account.busy_s - account.served * account.serve_s <= account.serve_s
        assert 0.3 < account.utilisation <= 1.0


def test_waiting_for_a_unit_is_not_computing():
    # A gradient is 0.25 s, the unit, 0.5 s; the chart of it has two bars with a gap between.
    topology, service = served()
    trace = traced(Mailbox(messages_per_gradient=0.01), topology, service, 2.0)
    busy = activity(trace).compute
    first = np.flatnonzero((busy.worker == 0) & (busy.outcome == Outcome.DONE))
    spans = sorted(zip(busy.start_s[first].round(9), busy.end_s[first].round(9), strict=True))
    assert spans[:2] == [(0.0, 0.25), (0.3645, 0.8645)]
    under_way = np.flatnonzero((busy.worker == 0) & (busy.outcome == Outcome.UNDER_WAY))
    assert [busy.start_s[under_way[0]].round(9), busy.end_s[under_way[0]].round(9)] == [1.729, 1.979]


def test_units_have_a_lane_in_charts(tmp_path):
    topology, service = served(3)
    trace = traced(Mailbox(), topology, service, 5.0)
    plot_gantt(trace, tmp_path / "units.png")
    write_perfetto({"run": trace}, tmp_path / "units.json")
    entries = json.loads((tmp_path / "units.json").read_text())["traceEvents"]
    names = {entry["tid"]: entry["args"]["name"] for entry in entries if entry["name"] == "thread_name"}
    lane = [tid for tid, name in names.items() if name == "unit 0"]
    frames = [entry for entry in entries if entry["name"] == "serve"]
    assert len(lane) == 1
    assert len(frames) == trace.counts["serve"]
    assert {entry["tid"] for entry in frames} == set(lane)
    assert all(math.isclose(entry["dur"], 50_000) for entry in frames)
    assert "unit" not in str({entry["args"]["name"] for entry in _titles(tmp_path, named("ring", n=3))})


def _titles(folder, topology):
    trace = Mailbox().timeline(Mailbox().network(topology, Demand(), Cluster()), Time(5.0), 0)
    write_perfetto({"run": trace}, folder / "plain.json")
    entries = json.loads((folder / "plain.json").read_text())["traceEvents"]
    return [entry for entry in entries if entry["name"] == "thread_name"]


@pytest.mark.slow
def test_a_run_tells_what_its_units_did_and_executors_agree(layered, tmp_path):
    topology = named("ring", n=4, units={"device": GEN_2, "count": 2, "latency_s": 1e-5})
    algorithm = ADPSGD(optimizer={"learning_rate": 0.1}, feedback=Optical())
    arguments = {"cluster": Cluster(Exponential(0.1)), "stop": 2.0, "seeds": 2}
    result = simulate(layered, topology, algorithm, Mailbox(), **arguments)
    assert [len(units) for units in result.units] == [2, 2]
    served_by_all = sum(unit.served for units in result.units for unit in units)
    assert served_by_all == result.trace.counts["serve"] > 10
    assert result.summary()["units"][0][0]["hardware"] == GEN_2
    # Requests are in no row: the executors never see them.
    eager = replay(result.trace, layered, algorithm, executor="eager")
    np.testing.assert_allclose(eager.metrics["loss"][:, -1], result.metrics["loss"][:, -1], rtol=1e-4)
    rows = result.constants["rows"]
    assert [width for op, width in zip(result.trace.ops, rows["widths"], strict=True) if op.is_mark] == [0, 0]
    alone = simulate(layered, topology, algorithm, Mailbox(), **arguments | {"seeds": [1]})
    assert alone.units[0] == result.units[1]
    untraced = simulate(layered, topology, algorithm, Mailbox(), record=Record(trace=False), **arguments)
    assert untraced.units == result.units
    np.testing.assert_array_equal(untraced.metrics["loss"], result.metrics["loss"])
    path = tmp_path / "trace.npz"
    result.trace.save(path)
    assert Trace.load(path).hash == result.trace.hash
    assert Trace.load(path).replica(1).counts == alone.trace.counts
