"""Traces that are drawn again instead of kept: the same events, plans, numbers and messages, in bounded memory."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

import decentral
from decentral import problem, topology
from decentral.cost.optical import RandomProjection
from decentral.engine import stream as streams
from decentral.engine.plan import Carry, make_plan
from decentral.engine.stream import Stream
from decentral.engine.trace import ColumnHash, Trace, merge
from decentral.errors import InvalidInput, RunFailed
from decentral.experiment.memory import check_size
from decentral.experiment.record import Record
from decentral.experiment.run import resume, run
from decentral.experiment.simulation import Diverged, Simulation
from decentral.experiment.spec import validate
from decentral.protocol import Demand, Gradients, Mailbox, Poisson, Rendezvous, Time, queues
from decentral.protocol.service import Service
from decentral.timing import Cluster, Faults, Links, NodeLinks
from decentral.timing.compute import Constant, Exponential, LogNormal, Markov, Pareto, Recorded

RING = topology.named("ring", n=8)
DOWN = Faults(loss=0.1, crash_every_s=12.0, down_s=1.5)
CLUSTERS = {
    "instant": Cluster(Exponential(1.0)),
    "late": Cluster(LogNormal(1.0, 0.5), Links(latency_s=0.4), speeds=(1.0, 0.3)),
    "heavy": Cluster(Pareto(1.0, 1.3), Links(latency_s=0.1, bandwidth_bytes_per_s=1e3, jitter="exponential")),
    "half duplex": Cluster(Markov(0.5, 4.0, 0.1, 0.2), Links(bandwidth_bytes_per_s=900.0, duplex="half")),
    "shared": Cluster(Recorded(values=(1.0, 0.5, 2.0)), NodeLinks(node_size=2, inter_latency_s=0.2, nic_bytes_per_s=900.0)),
    "keep": Cluster(Exponential(1.0), Links(latency_s=0.4), DOWN),
    "reset": Cluster(Exponential(1.0), Links(latency_s=0.4), dataclasses.replace(DOWN, on_return="reset")),
    "copy": Cluster(
        Exponential(1.0), Links(latency_s=0.4),
        Faults(0.1, down=((1, 4.0, 8.0),), partitions=((5.0, 9.0, 3),), on_return="copy"),
    ),
}  # fmt: skip
PROTOCOLS = {
    "paired": Rendezvous(),
    "atomic": Rendezvous(count="fixed", messages="atomic", wait=True),
    "stale": Rendezvous(2.5, messages="stale"),
    "in turn": Rendezvous(count="fixed", pairing="round_robin"),
    "pushed": Mailbox(1.5),
    "answered": Mailbox(0.5, "cyclic", reply=True),
}
COLUMNS = ("time_s", "op", "operands", "duration_s")


@pytest.fixture
def windows(monkeypatch):
    """Many small ones. Their events at most."""
    most, piece = 60, 17
    monkeypatch.setattr(streams, "window_events", lambda total_workers: most)
    monkeypatch.setattr(streams, "PIECE_EVENTS", piece)
    return most


@dataclasses.dataclass
class Pieces:
    """A trace that is there, handed out piece by piece."""

    trace: Trace

    @property
    def horizon_s(self):
        return self.trace.horizon_s

    def pieces(self, events):
        for first in range(0, max(1, len(self.trace)), events):
            rows = slice(first, first + events)
            yield dataclasses.replace(
                self.trace, time_s=self.trace.time_s[rows], op=self.trace.op[rows],
                operands=self.trace.operands[rows], duration_s=None,
            )  # fmt: skip


def rendezvous(seed: int, faults: Faults = Faults()):  # noqa: B008
    cluster = Cluster(compute=Exponential(1.0), links=Links(latency_s=0.4), faults=faults)
    network = Rendezvous().network(RING, Demand(), cluster)
    return Rendezvous().timeline(network, Time(30.0), seed), network


@pytest.mark.parametrize("events", [7, 1000])
@pytest.mark.parametrize("stop", [Time(40.0), Time(100 / 3), Gradients(300), Gradients(1)])
def test_pieces_of_poisson_clocks_are_their_timeline(stop, events):
    network = Poisson().network(RING, Demand())
    whole, source = Poisson().timeline(network, stop, 3), Poisson().stream(network, stop, 3)
    parts, digest = list(source.pieces(events)), ColumnHash()
    for part in parts:
        digest.add(part)
    for name in ("time_s", "op", "operands"):
        np.testing.assert_array_equal(
            np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name)
        )
    assert source.horizon_s == whole.horizon_s
    assert digest.hexdigest(parts[0], source.horizon_s) == whole.hash
    assert events > len(whole) or len(parts) > 1


def clocks(protocol, cluster, graph=RING, message_bytes=100, **demand):
    network = protocol.network(graph, Demand(**demand), cluster)
    return dataclasses.replace(
        network, demand=dataclasses.replace(network.demand, message_bytes=message_bytes)
    )


def joined(parts, name):
    return np.concatenate([getattr(part, name) for part in parts])


@pytest.fixture
def few_drawn(monkeypatch):
    """Rings of 16 durations each: a run goes through them several times, and stops wherever one is empty."""
    monkeypatch.setattr(queues, "MOST_DRAWN", 1)


@pytest.mark.filterwarnings("ignore:rendezvous", "ignore:mailbox")
@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)
@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_pieces_of_a_loop_are_its_timeline(protocol, cluster, monkeypatch):
    network = clocks(protocol, cluster)
    for stop in (Time(60.0), Time(100 / 3), Gradients(300), Gradients(1)):
        whole = protocol.timeline(network, stop, 3)
        with monkeypatch.context() as patch:
            patch.setattr(queues, "MOST_DRAWN", 1)
            patch.setattr(queues, "MOST_LOGGED", 50)
            source = protocol.stream(network, stop, 3)
            for events in (1, 40):
                parts, digest = list(source.pieces(events)), ColumnHash()
                for part in parts:
                    digest.add(part)
                for name in COLUMNS:
                    np.testing.assert_array_equal(joined(parts, name), getattr(whole, name), err_msg=name)
                assert max(map(len, parts)) <= events + queues.ROOM
                assert digest.hexdigest(parts[0], source.horizon_s) == whole.hash
        assert source.horizon_s == whole.horizon_s
        assert source.pieces(10**6).__next__().time_s.size == len(whole)  # as often as asked


@pytest.mark.parametrize("protocol", [Rendezvous(), Mailbox()])
@pytest.mark.parametrize(
    "compute", [LogNormal(1.0, 0.5), Markov(0.5, 4.0, 0.1, 0.2), Recorded(values=(1.0, 0.5))]
)
def test_durations_are_the_tapes_however_few_are_drawn_at_once(protocol, compute, few_drawn):
    cluster = Cluster(compute, speeds=(1.0, 0.3))
    trace = protocol.timeline(clocks(protocol, cluster), Time(200.0), 5)
    start, expected_ns = cluster.durations_ns(8, 5, 200.0)
    done = trace.op == [op.name for op in trace.ops].index("gradient_commit")
    for worker in range(8):
        took_ns = np.rint(1e9 * trace.duration_s[done & (trace.operands[:, 0] == worker)]).astype(int)
        assert len(took_ns) > 3 * 16 * cluster.speed_of(8, 5)[worker] * 0.9
        np.testing.assert_array_equal(took_ns, expected_ns[start[worker] :][: len(took_ns)])


@pytest.mark.parametrize("protocol", [Rendezvous(), Mailbox()])
def test_requests_at_optical_units_are_drawn_in_pieces(protocol, few_drawn, windows):
    graph = topology.named("ring", n=8, units={"device": "LightOn OPU Gen-2", "count": 2, "latency_s": 0.01})
    service = Service(RandomProjection(10, 64, 4), 0.5, 0.3)
    network = clocks(protocol, CLUSTERS["keep"], graph, service=service)
    whole = protocol.timeline(network, Gradients(400), 1)
    source = protocol.stream(network, Gradients(400), 1)
    parts = list(source.pieces(30))
    for name in COLUMNS:
        np.testing.assert_array_equal(joined(parts, name), getattr(whole, name), err_msg=name)
    assert whole.counts["serve"] > 400
    found = Stream([source], (1,), Record(count=3).marks)
    assert found.hashes == whole.hashes


def test_messages_on_their_way_take_no_more_room_than_they_are_many():
    """Rows of those that have arrived are used again; where they pile up there are more."""
    network = clocks(Mailbox(), Cluster(Exponential(1.0), Links(latency_s=0.4)))
    sizes = []

    class Watched(queues.Machine):
        def run(self):
            why = super().run()
            sizes.append(len(self._tables[2]))
            return why

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queues, "Machine", Watched)
        found = Mailbox().timeline(network, Time(2000.0), 0)
        slow = clocks(Mailbox(), Cluster(Exponential(1.0), Links(latency_s=500.0)))
        Mailbox().timeline(slow, Time(2000.0), 0)
    assert found.counts["send"] > 10_000
    assert (sizes[0], sizes[-1]) == (1024, 8192)  # 8 a second, each for 500 s


def windows_of(sources):
    """All of them, so that they are gone through twice."""
    found = Stream(sources, range(len(sources)), Record(count=3).marks)
    assert len(found) == sum(len(window.trace) for window in found.windows())


def test_what_is_said_of_a_stream_is_said_once(windows):
    """As often as of a timeline, however often the stream is gone through."""
    waits = Rendezvous(count="fixed", wait=True)
    path, away = topology.named("path", n=4), Cluster(faults=Faults(down=((1, 1.5, np.inf),)))
    links = Links(bandwidth_bytes_per_s=50.0)
    cases = [
        (waits, clocks(waits, away, path), Time(100.0), "1 of 4 workers .* worker 0 waits for 1"),
        (Mailbox(), clocks(Mailbox(), Cluster(links=links)), Time(100.0), "offered 2 s of transmission"),
        (Mailbox(), clocks(Mailbox(), Cluster(links=links)), Gradients(500), "offered 2 s of transmission"),
    ]
    for protocol, network, stop, words in cases:
        with pytest.warns(UserWarning, match=words) as kept:
            merge([protocol.timeline(network, stop, seed) for seed in range(2)])
        with pytest.warns(UserWarning, match=words) as streamed:
            windows_of([protocol.stream(network, stop, seed) for seed in range(2)])
        assert [str(each.message) for each in streamed] == [str(each.message) for each in kept]
        assert len(streamed) == 2


@pytest.mark.parametrize("stop", [Time(100.0), Gradients(300), Gradients(5)])
def test_a_stream_fails_as_its_timeline_does(stop):
    faults = Faults(down=((1, 2.0, 5.0),))
    circle = Rendezvous(count="fixed", pairing="round_robin", wait=True)
    stands = Rendezvous(count="fixed", wait=True)
    complete = topology.named("complete", n=4), Cluster(links=Links(latency_s=0.25), faults=faults)
    away = topology.named("path", n=2), Cluster(faults=Faults(down=((1, 1.5, np.inf),)))
    for protocol, (graph, cluster), words in (
        (circle, complete, "circular waiting"), (stands, away, "nothing happens any more"),
    ):  # fmt: skip
        network = clocks(protocol, cluster, graph, message_bytes=0)
        with pytest.raises(RunFailed, match=words) as kept:
            protocol.timeline(network, stop, 0)
        with pytest.raises(RunFailed, match=words) as streamed:
            Stream([protocol.stream(network, stop, 0)], (0,), Record(count=3).marks)
        assert str(streamed.value) == str(kept.value)


@pytest.mark.parametrize("protocol", [Rendezvous(), Mailbox()])
def test_gradients_that_nobody_will_take_are_refused(protocol):
    network = clocks(protocol, Cluster(Constant(100.0), faults=Faults(crash_every_s=1.0, down_s=1.0)))
    said = []
    for draw in (protocol.timeline, protocol.stream):
        with pytest.raises(InvalidInput, match="at most 0: workers take no more") as caught:
            draw(network, Gradients(5), 0)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_a_graph_that_changes_is_not_drawn_in_pieces():
    protocol = Poisson(schedule="random_geometric", rounds=3, radius=0.9)
    assert protocol.stream(protocol.network(RING, Demand()), Time(1.0), 0) is None


def test_windows_are_planned_as_the_whole_is(windows):
    faults = Faults(loss=0.2, crash_every_s=15.0, down_s=1.0)
    traces = [rendezvous(seed, faults)[0] for seed in (1, 2)]
    whole, record = merge(traces), Record(count=5)
    found = Stream([Pieces(trace) for trace in traces], (1, 2), record.marks)
    times_s, events = record.schedule(whole)
    np.testing.assert_array_equal(found.times_s, times_s)
    np.testing.assert_array_equal(found.events, events)
    assert (len(found), found.counts, found.hashes) == (len(whole), whole.counts, whole.hashes)
    assert found.counts["cancel"] > 10
    assert found.realised_rates() == pytest.approx(whole.realised_rates(), rel=1e-15)
    np.testing.assert_array_equal(found.gradients_of_workers, whole.gradients_of_workers)
    for index in range(2):
        mine, theirs = found.realised_topology(1.0, index), whole.replica(index).realised_topology()
        np.testing.assert_array_equal(mine.edges, theirs.edges)
        np.testing.assert_array_equal(mine.edge_rates, theirs.edge_rates)
    plan = make_plan(whole, events)
    assert found.slots == plan.slots
    carry = Carry.start(found.sample, found.slots)
    done = records = rows = 0
    for window in found.windows():
        own = make_plan(window.trace, window.barriers, plan.widths, carry=carry)
        here = slice(done, done + len(window.trace))
        assert (window.first, window.first_barrier) == (done, records)
        np.testing.assert_array_equal(window.trace.time_s, whole.time_s[here])
        for name in ("operands", "elapsed", "count"):
            np.testing.assert_array_equal(getattr(own, name), getattr(plan, name)[here])
        np.testing.assert_array_equal(
            own.last_write_s, plan.last_write_s[records : records + len(window.barriers)]
        )
        done, records, rows = done + len(window.trace), records + len(window.barriers), rows + own.n_rows
    assert (done, records) == (len(whole), len(events))
    assert len(found.cuts) - 1 > 5
    assert rows > plan.n_rows


def simulated(trace: bool, **changes):
    arguments = {
        "stop": 60.0, "seeds": 2, "algorithm": decentral.A2CiD2(time_unit="own_ema"), "record": {"count": 4},
        "protocol": None, "cluster": None,
    } | changes  # fmt: skip
    return decentral.simulate(
        problem.quadratic(n=8, d=3, heterogeneity=1.0), RING, arguments["algorithm"], arguments["protocol"],
        cluster=arguments["cluster"], stop=arguments["stop"], seeds=arguments["seeds"],
        record=Record(trace=trace, **arguments["record"]),
    )  # fmt: skip


A_RATE = {"kind": "sgd", "learning_rate": 0.05}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"stop": Gradients(400), "seeds": 3}, marks=pytest.mark.slow),
        pytest.param({"algorithm": decentral.Gossip(rescale="realised_rate")}, marks=pytest.mark.slow),
        pytest.param(
            {"seeds": 1, "record": {"events": (0, 5, 333)}, "algorithm": decentral.DADAO()},
            marks=pytest.mark.slow,
        ),
        {"protocol": Rendezvous(), "cluster": CLUSTERS["keep"]},
        pytest.param(
            {
                "protocol": PROTOCOLS["stale"],
                "cluster": CLUSTERS["reset"],
                "stop": Gradients(400),
                "seeds": 3,
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "protocol": PROTOCOLS["atomic"],
                "cluster": CLUSTERS["half duplex"],
                "algorithm": decentral.Gossip(),
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "protocol": PROTOCOLS["pushed"],
                "cluster": CLUSTERS["copy"],
                "stop": Gradients(400),
                "algorithm": decentral.Gossip(optimizer=A_RATE),
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "protocol": PROTOCOLS["answered"],
                "cluster": CLUSTERS["late"],
                "seeds": 1,
                "algorithm": decentral.ADPSGD(optimizer=A_RATE),
                "record": {"events": (0, 5, 333)},
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=[
        "own time",
        "gradients",
        "rescaled",
        "events",
        "rendezvous",
        "stale",
        "atomic",
        "pushed",
        "answered",
    ],
)
def test_a_run_in_windows_is_the_run_bit_for_bit(windows, changes):
    kept, streamed = simulated(True, **changes), simulated(False, **changes)
    assert streamed.trace is None
    assert streamed.constants["trace_hash"] == list(kept.trace.hashes)
    assert kept.metrics.keys() == streamed.metrics.keys()
    for name, values in kept.metrics.items():
        np.testing.assert_array_equal(streamed.metrics[name], values, err_msg=name)
    for name in kept.constants.keys() - {"rows"}:
        assert streamed.constants[name] == kept.constants[name], name
    for one, other in zip(jax.tree.leaves(streamed.final), jax.tree.leaves(kept.final), strict=True):
        np.testing.assert_array_equal(one, other)


def test_where_windows_are_cut(monkeypatch):
    """Between records where there is room for what lies between them."""
    network = Poisson().network(RING, Demand())
    monkeypatch.setattr(streams, "window_events", lambda total_workers: 100)
    at = (0, 40, 90, 110, 350)
    found = Stream([Poisson().stream(network, Gradients(300), 0)], (0,), Record(events=at).marks)
    assert found.cuts.tolist()[:5] == [0, 90, 190, 290, 390]
    barriers = [(window.first + window.barriers).tolist() for window in found.windows()]
    assert barriers[:4] == [[0, 40, 90], [110], [], [350]]


@pytest.mark.slow
def test_slots_live_on_across_windows(windows):
    trace, network = rendezvous(5, Faults(loss=0.2))
    record, results = Record(count=3), []
    for events in (trace, Stream([Pieces(trace)], (5,), record.marks)):
        algorithm = decentral.Gossip(optimizer={"kind": "sgd", "learning_rate": 0.1})
        results.append(
            Simulation(events, problem.quadratic(n=8, d=3), algorithm, network=network, record=record).run()
        )
    assert results[0].constants["slots_in_flight"] == results[1].constants["slots_in_flight"]
    for name, values in results[0].metrics.items():
        np.testing.assert_array_equal(results[1].metrics[name], values, err_msg=name)


@pytest.mark.slow
def test_divergence_is_told_as_of_a_trace_that_is_kept(windows):
    said = []
    for trace in (True, False):
        with pytest.raises(Diverged) as caught:
            simulated(trace, algorithm=decentral.Gossip(optimizer={"kind": "sgd", "learning_rate": 1e60}))
        said.append((str(caught.value), caught.value.event, caught.value.time_s))
    assert said[0] == said[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "clocks",
    [
        {"algorithm": [{"kind": "a2cid2"}]},
        {
            "algorithm": [{"kind": "a2cid2"}], "protocol": {"kind": "rendezvous"},
            "cluster": {
                "compute": {"kind": "exponential"}, "links": {"latency_s": 0.4}, "faults": {"loss": 0.1, "crash_every_s": 20.0},
            },
        },
        {
            "algorithm": [{"kind": "a2cid2", "optimizer": A_RATE}], "protocol": {"kind": "mailbox"},
            "cluster": {"compute": {"kind": "log_normal"}, "links": {"latency_s": 1.5}},
            "stop": {"kind": "gradients", "gradients": 500},
        },
    ],
    ids=["poisson", "rendezvous", "mailbox"],
)  # fmt: skip
def test_a_run_that_was_cut_off_goes_on_bit_for_bit(windows, tmp_path, monkeypatch, clocks):
    name = clocks["algorithm"][0]["kind"]
    spec = {
        "name": "cut", "seeds": 2, "topology": {"kind": "ring", "n": 8}, "problem": {"kind": "quadratic", "d": 3},
        "stop": {"kind": "time", "time_s": 60.0}, "record": {"count": 4, "trace": False},
    } | clocks  # fmt: skip
    whole = run(validate(spec, "test"), out=tmp_path / "whole")
    kept = run(validate(spec | {"record": {"count": 4}}, "test"), out=tmp_path / "kept")
    step, done = Simulation.step, []

    def cut(self):
        if len(done) == 3:
            raise KeyboardInterrupt
        step(self)
        done.append(self.window_number)

    monkeypatch.setattr(Simulation, "step", cut)
    with pytest.raises(RunFailed, match="resume"):
        run(validate(spec, "test"), out=tmp_path / "cut", checkpoint_every_s=0.0)
    monkeypatch.setattr(Simulation, "step", step)
    assert done[-1] > 0
    resume(tmp_path / "cut")
    metrics = [(tmp_path / name / "metrics.npz").read_bytes() for name in ("whole", "cut", "kept")]
    assert metrics[0] == metrics[1] == metrics[2]
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("whole", "kept")]
    assert manifests[0]["trace_hash"] == manifests[1]["trace_hash"]
    assert not list((tmp_path / "whole").glob("trace_*.npz"))
    assert "timeline" in kept.summary["algorithms"][name]
    assert "timeline" not in whole.summary["algorithms"][name]


def test_events_that_are_not_kept_need_no_memory():
    network = Poisson().network(RING, Demand())
    with pytest.raises(InvalidInput, match="memory"):
        check_size(network, Poisson(), Time(1e12), n=8, seeds=1)
    check_size(network, Poisson(), Time(1e12), n=8, seeds=1, kept=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "events_per_s"),
    [("Poisson()", 96.0), ("Rendezvous()", 224.0), ("Mailbox()", 256.0)],
    ids=["poisson", "rendezvous", "mailbox"],
)
def test_memory_does_not_grow_with_the_events(protocol, events_per_s):
    script = f"""
        import sys
        from pathlib import Path
        import decentral
        from decentral import problem, topology
        from decentral.protocol import Mailbox, Poisson, Rendezvous

        for events in (2.8e5, 4.8e6):
            result = decentral.simulate(
                problem.quadratic(n=64, d=5, dtype="float32"), topology.named("ring", n=64),
                decentral.Gossip(optimizer={{"kind": "sgd", "learning_rate": 0.01}}), {protocol},
                stop=events / {events_per_s}, record=decentral.Record(trace=False),
            )
            status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
            print(result.constants["events"], status["VmHWM"].split()[0])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    (few, first), (many, last) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert (few < 300_000, many > 4_700_000) == (True, True)
    # Kept, these events are 200 bytes each: 900 MiB.
    assert (last - first) / 1024 < 350
