"""Traces that are drawn again instead of kept: the same events, plans, numbers and messages, in bounded memory."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import decentral
from decentral import problem, topology
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
from decentral.protocol import Demand, Gradients, Poisson, Rendezvous, Time
from decentral.timing import Cluster, Faults, Links
from decentral.timing.compute import Exponential

RING = topology.named("ring", n=8)


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
    } | changes  # fmt: skip
    return decentral.simulate(
        problem.quadratic(n=8, d=3, heterogeneity=1.0), RING, arguments["algorithm"], stop=arguments["stop"],
        seeds=arguments["seeds"], record=Record(trace=trace, **arguments["record"]),
    )  # fmt: skip


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
    ],
    ids=["own time", "gradients", "rescaled", "events"],
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
def test_a_run_that_was_cut_off_goes_on_bit_for_bit(windows, tmp_path, monkeypatch):
    spec = {
        "name": "cut", "seeds": 2, "topology": {"kind": "ring", "n": 8}, "problem": {"kind": "quadratic", "d": 3},
        "stop": {"kind": "time", "time_s": 60.0}, "record": {"count": 4, "trace": False}, "algorithm": [{"kind": "a2cid2"}],
    }  # fmt: skip
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
    assert "timeline" in kept.summary["algorithms"]["a2cid2"]
    assert "timeline" not in whole.summary["algorithms"]["a2cid2"]


def test_events_that_are_not_kept_need_no_memory():
    network = Poisson().network(RING, Demand())
    with pytest.raises(InvalidInput, match="memory"):
        check_size(network, Poisson(), Time(1e12), n=8, seeds=1)
    check_size(network, Poisson(), Time(1e12), n=8, seeds=1, kept=False)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_events():
    script = """
        import sys
        from pathlib import Path
        import decentral
        from decentral import problem, topology

        for seconds in (3e3, 5e4):
            result = decentral.simulate(
                problem.quadratic(n=64, d=5, dtype="float32"), topology.named("ring", n=64),
                decentral.Gossip(optimizer={"kind": "sgd", "learning_rate": 0.01}), stop=seconds,
                record=decentral.Record(trace=False),
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
