"""What a trace shows: activity, utilisation, staleness, traffic, their tables, charts and the export for viewers."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ops import traces

from decentral.analysis.gantt import plot_gantt
from decentral.analysis.timeline import (
    SERVER,
    UNKNOWN,
    Outcome,
    activity,
    bytes_per_link,
    served,
    staleness,
    summary_of,
    trace_table,
    utilisation,
    write_perfetto,
)
from decentral.engine.trace import OPS, Groups, Trace, merge
from decentral.errors import InvalidInput


def trace_of(*events, n=3, horizon_s=None, groups=None, seed=0):
    """``(time, duration, op, operands...)``."""
    names = list(dict.fromkeys(event[2] for event in events))
    operands = np.array([[*event[3:], *[-1] * (7 - len(event))] for event in events]).reshape(-1, 4)
    return Trace.from_arrays(
        [event[0] for event in events], [names.index(event[2]) for event in events], operands, n_workers=n, ops=names,
        horizon_s=horizon_s, seed=seed, groups=groups or Groups.of([]),
        duration_s=np.array([event[1] for event in events], float),
    )  # fmt: skip


def rows(intervals, *more):
    columns = (intervals.worker, intervals.start_s, intervals.end_s, intervals.outcome)
    return sorted(zip(*(c.tolist() for c in (*columns, *(getattr(intervals, m) for m in more))), strict=True))


PAIRED = trace_of(
    (0.0, 0, "gradient_start", 0, 0),
    (0.5, 0, "exchange_start", 0, 1, 1, 2),
    (1.0, 0, "exchange_start", 1, 2, 3, 4),
    (1.5, 1.0, "exchange_commit", 0, 1),
    (1.5, 1.0, "exchange_commit", 1, 2),
    (2.0, 2.0, "gradient_commit", 0, 0),
    (2.5, 0, "cancel", 1, 3),
    (2.5, 0, "cancel", 2, 4),
    (3.0, 0, "gradient_start", 2, 5),
    (4.0, 0, "abandon", 2, 5),
    (4.5, 0, "gradient_start", 1, 6),
    (4.5, 0, "exchange_start", 0, 2, 7, 8),
    (5.0, 0.5, "exchange", 0, 1),
    horizon_s=6.0,
)
ONE_SIDED = trace_of(
    (1.0, 1.0, "gradient", 0),
    (1.0, 0, "send", 0, 0),
    (1.0, 0, "send", 1, 1),
    (2.0, 1.0, "gradient", 0),
    (2.5, 1.5, "receive", 2, 0),
    (3.0, 2.0, "drop", 2, 1),
    (3.0, 1.0, "gradient", 0),
    (3.5, 0, "send", 2, 2),
    horizon_s=4.0,
)
SERVED = trace_of(
    (0.0, 0, "pull", 0, 0, 0),
    (0.0, 0, "pull", 1, 0, 1),
    (1.5, 1.0, "evaluate", 0, 0),
    (2.0, 0.5, "push", 0, 0, 0),
    (2.0, 0, "pull", 0, 0, 2),
    (2.5, 2.0, "evaluate", 1, 1),
    (3.5, 1.0, "push", 1, 0, 1),
    (3.5, 1.5, "evaluate", 0, 2),
    (4.0, 0, "abandon", 0, 2),
    horizon_s=5.0,
)
TABLES = Groups.of(
    [
        ([-1] * 4, [0, 0, 1, 2], [0.25] * 4, [1.0, 0.5, 1.0, 2.0]),
        ([-1] * 2, [0, 1], [0.5] * 2, [1.0, 1.5]),
        ([0, 0, 1, 1, 2], [0, 1, 1, 0, 2], [0.5, 0.5, 0.5, 0.5, 1.0]),
        ([0, 1, -1], [0, 1, 2], [1 / 3] * 3),
    ]
)
GROUPED = trace_of(
    (2.5, 0.5, "step", 0, 0, 0),
    (4.5, 0.25, "step", 0, 0, 1),
    (5.0, 0.5, "mix", 0, 2),
    (6.0, 0.5, "average", 0, 3),
    horizon_s=8.0,
    groups=TABLES,
)
SUBMITTED = trace_of(
    (1.5, 1.0, "submit", 0),
    (2.0, 1.5, "submit", 1),
    (2.0, 0, "step", 0, 0, 0),
    (3.0, 2.0, "submit", 2),
    (4.0, 1.0, "work", 2),
    horizon_s=4.0,
    groups=Groups.of([([-1] * 2, [0, 1], [0.5] * 2)]),
)
OVERLAPPED = trace_of(
    (0.0, 0, "load", 0, 0, 0),
    (1.5, 0, "load", 0, 0, 1),
    (2.0, 0.5, "reduce", 0, 0, 0, 1),
    (3.0, 0, "load", 0, 0, 2),
    (3.5, 0.5, "reduce", 0, 0, 1, 1),
    horizon_s=4.0,
    groups=TABLES,
)
ASKED = trace_of(
    (0.0, 0, "gradient_start", 0, 0),
    (0.0, 0, "gradient_start", 1, 1),
    (1.5, 0.5, "request", 0, 0),
    (2.5, 0.5, "request", 1, 0),
    (2.5, 1.0, "serve", 0, 0),
    (3.0, 0, "abandon", 1, 1),
    (3.5, 1.0, "serve", 1, 0),
    (4.0, 1.0, "gradient_commit", 0, 0),
    (4.0, 0, "gradient_start", 0, 2),
    (4.5, 0.25, "request", 0, 0),
    horizon_s=5.0,
)
COME_BACK = trace_of((1.0, 1.0, "gradient", 0), (2.0, 0, "copy", 1, 0), (2.0, 0, "reset", 2), horizon_s=2.0)
IDEAL = Trace.from_arrays([0.5, 1.0, 1.5], [0, 1, 0], [[0, -1], [1, 2], [2, -1]], n_workers=3, seed=4)
EVERY = {
    "paired": PAIRED, "one_sided": ONE_SIDED, "served": SERVED, "grouped": GROUPED, "back": COME_BACK, "ideal": IDEAL,
    "submitted": SUBMITTED, "overlapped": OVERLAPPED, "asked": ASKED,
}  # fmt: skip


def test_the_traces_here_hold_every_op():
    assert {op.name for trace in EVERY.values() for op in trace.ops} == set(OPS)


# -- activity ----------------------------------------------------------------------------------------------------------


def test_paired_exchanges():
    done = activity(PAIRED)
    assert rows(done.compute) == [(0, 0.0, 2.0, 0), (1, 4.5, 6.0, 2), (2, 3.0, 4.0, 1)]
    assert rows(done.communication) == [
        (0, 0.5, 1.5, 0), (0, 4.5, 5.0, 0), (0, 4.5, 6.0, 2), (1, 0.5, 1.5, 0), (1, 1.0, 2.5, 1), (1, 4.5, 5.0, 0),
        (2, 1.0, 2.5, 1), (2, 4.5, 6.0, 2),
    ]  # fmt: skip
    ends = zip(done.messages.sender.tolist(), done.messages.receiver.tolist(), strict=True)
    assert sorted(ends) == [(0, 1), (0, 1), (0, 2), (1, 0), (1, 0), (1, 2), (2, 0), (2, 1)]
    busy = utilisation(PAIRED)
    np.testing.assert_allclose(busy.compute_s, [2, 1.5, 1])
    np.testing.assert_allclose(busy.communication_s, [2.5, 2.5, 3.0])
    np.testing.assert_allclose(busy.idle_share, [2.5 / 6, 2.5 / 6, 2 / 6])


def test_one_sided_messages_are_their_senders():
    done = activity(ONE_SIDED)
    assert rows(done.messages, "sender", "receiver") == [
        (0, 1.0, 2.5, Outcome.DONE, 0, 2), (1, 1.0, 3.0, Outcome.LOST, 1, 2), (2, 3.5, 4.0, Outcome.UNDER_WAY, 2, UNKNOWN),
    ]  # fmt: skip
    np.testing.assert_allclose(utilisation(ONE_SIDED).compute_s, [3, 0, 0])
    np.testing.assert_allclose(utilisation(ONE_SIDED).idle_share, [1 / 4, 2 / 4, 3.5 / 4])


def test_server():
    done = activity(SERVED)
    assert rows(done.compute) == [(0, 0.5, 1.5, 0), (0, 2.0, 3.5, 0), (1, 0.5, 2.5, 0)]
    assert rows(done.messages, "sender", "receiver") == [
        (0, 0.0, 0.5, 0, SERVER, 0), (0, 1.5, 2.0, 0, 0, SERVER), (0, 2.0, 2.0, 0, SERVER, 0),
        (0, 3.5, 4.0, Outcome.LOST, 0, SERVER), (1, 0.0, 0.5, 0, SERVER, 1), (1, 2.5, 3.5, 0, 1, SERVER),
    ]  # fmt: skip


def test_who_waits_for_an_optical_unit_does_not_compute():
    """The reply to worker 0 takes half a second; worker 1 crashes while its request is in the queue, which is served."""
    assert rows(activity(ASKED).compute) == [
        (0, 0.0, 1.0, 0),
        (0, 3.0, 4.0, 0),
        (0, 4.0, 4.25, 2),
        (1, 0.0, 2.0, 1),
    ]
    assert not activity(ASKED).messages.worker.size
    asked = served(ASKED)
    assert asked.worker.tolist() == [0, 0, 0]
    assert asked.asker.tolist() == [0, 1, 0]
    np.testing.assert_allclose(asked.start_s, [1.5, 2.5, 4.5])
    np.testing.assert_allclose(asked.end_s, [2.5, 3.5, np.inf])


def test_computations_for_a_step_and_for_nothing():
    """Those of ``submit`` and ``work`` fill the time until their event; only the step's gradients count."""
    done = activity(SUBMITTED)
    assert rows(done.compute) == [
        (0, 0.5, 1.5, 0), (0, 2.0, 2.0, 0), (1, 0.5, 2.0, 0), (1, 2.0, 2.0, 0), (2, 1.0, 3.0, 0), (2, 3.0, 4.0, 0),
    ]  # fmt: skip
    assert rows(done.messages, "sender", "receiver") == [
        (0, 0.5, 0.5, 0, SERVER, 0), (0, 1.5, 1.5, 0, 0, SERVER),
        (1, 0.5, 0.5, 0, SERVER, 1), (1, 2.0, 2.0, 0, 1, SERVER),
        (2, 1.0, 1.0, 0, SERVER, 2), (2, 3.0, 3.0, 0, 2, SERVER),
    ]  # fmt: skip
    np.testing.assert_allclose(utilisation(SUBMITTED).compute_s, [1, 1.5, 3])
    old = staleness(SUBMITTED)
    assert old.worker.tolist() == [0, 1]
    assert not old.updates.any()
    traffic = bytes_per_link(SUBMITTED, 10, model_bytes=40)
    assert set(links(traffic).values()) == {(1, 0)}
    assert traffic.bytes_sent.sum() == 40 * SUBMITTED.messages_of_events.sum() == 240
    assert traffic.collectives == {"step": {"events": 1, "messages": 0, "bytes": 0}}


def test_steps_mixes_and_averages():
    """Worker 1 computes 1.5 s before the second collective begins; worker 0's two gradients are one interval."""
    done = activity(GROUPED)
    assert rows(done.compute) == [
        (0, 0.0, 1.5, 0), (0, 2.5, 3.5, 0), (1, 0.0, 1.0, 0), (1, 2.5, 4.0, 0), (2, 0.0, 2.0, 0),
    ]  # fmt: skip
    assert rows(done.communication) == [
        (0, 2.0, 2.5, 0), (0, 4.25, 4.5, 0), (0, 4.5, 5.0, 0), (0, 5.5, 6.0, 0),
        (1, 2.0, 2.5, 0), (1, 4.25, 4.5, 0), (1, 4.5, 5.0, 0), (1, 5.5, 6.0, 0),
        (2, 2.0, 2.5, 0), (2, 5.5, 6.0, 0),
    ]  # fmt: skip
    assert rows(done.messages, "sender", "receiver") == [(0, 4.5, 5.0, 0, 0, 1), (1, 4.5, 5.0, 0, 1, 0)]


def test_gradients_of_a_step_are_done_by_its_end():
    """The gradient of worker 1 took longer than the time since the step before."""
    table = Groups.of([([-1, -1], [0, 1], [0.5, 0.5], [1.0, 2.5])])
    trace = trace_of((3.0, 1.0, "step", 0, 0, 0), (5.0, 1.0, "step", 0, 0, 0), n=2, groups=table)
    assert rows(activity(trace).compute) == [
        (0, 0.0, 1.0, 0), (0, 3.0, 4.0, 0), (1, 0.0, 2.5, 0), (1, 2.5, 5.0, 0),
    ]  # fmt: skip


def test_without_durations_what_has_a_start_lasts_since_then():
    trace = Trace.from_arrays(
        [0.0, 1.0, 2.0, 3.0], ["gradient_start", "send", "gradient_commit", "receive"], [[0, 0], [1, 1], [0, 0], [2, 1]],
        ops=["gradient_start", "gradient_commit", "send", "receive"], n_workers=3,
    )  # fmt: skip
    assert rows(activity(trace).compute) == [(0, 0.0, 2.0, 0)]
    assert rows(activity(trace).communication) == [(1, 1.0, 3.0, 0)]


def test_numbers_of_slots_may_be_used_again():
    trace = trace_of(
        (0.0, 0, "send", 0, 0), (1.0, 1, "receive", 1, 0), (1.0, 0, "send", 1, 0), (3.0, 2, "receive", 2, 0)
    )
    assert rows(activity(trace).messages, "sender", "receiver") == [
        (0, 0.0, 1.0, 0, 0, 1),
        (1, 1.0, 3.0, 0, 1, 2),
    ]


def test_one_replica_at_a_time_and_slots_that_were_opened():
    with pytest.raises(InvalidInput, match=r"2 replicas.*one replica"):
        activity(merge([trace_of((1.0, 1, "gradient", 0), seed=s) for s in (0, 1)]))
    with pytest.raises(InvalidInput, match="receive at event 1"):
        activity(trace_of((1.0, 0, "send", 0, 0), (1.0, 0, "receive", 1, 1)))


# -- staleness and traffic ---------------------------------------------------------------------------------------------


def test_staleness_of_workers():
    stale = staleness(PAIRED)
    assert stale.updates.tolist() == [1], "the exchange that came while it computed"
    assert stale.delay_s.tolist() == [2.0]
    assert stale.message_age_s.tolist() == [1.0, 1.0]
    stale = staleness(ONE_SIDED)
    assert stale.updates.tolist() == [0, 0, 0]
    assert stale.delay_s.tolist() == [1, 1, 1]
    assert stale.message_age_s.tolist() == [1.5]
    assert stale.message_gradients.tolist() == [1]


def test_staleness_counts_everything_that_changes_a_worker():
    ring = Groups.of([([0, 1], [1, 0], [1.0, 1.0])])
    between = [
        (1.0, 0, "gradient", 0), (1.0, 0, "exchange", 1, 0), (1.0, 0, "mix", 0, 0), (1.0, 0, "copy", 0, 2),
        (1.0, 0, "reset", 0), (1.0, 0, "copy", 2, 0), (1.0, 0, "gradient", 1), (1.0, 0, "send", 0, 7),
    ]  # fmt: skip
    trace = trace_of(
        (0.0, 0, "gradient_start", 0, 0), *between, (2.0, 2, "gradient_commit", 0, 0), groups=ring
    )
    assert staleness(trace).updates.tolist()[-1] == 5


def test_staleness_at_a_server():
    stale = staleness(SERVED)
    assert stale.worker.tolist() == [0, 1]
    assert stale.updates.tolist() == [0, 1]
    assert stale.delay_s.tolist() == [2.0, 3.5]
    stale = staleness(GROUPED)
    assert stale.updates.tolist() == [0] * 6
    assert stale.delay_s.tolist() == [2.5, 2.5, 2.5, 2.5, 2.0, 2.0]


def links(traffic):
    ends = zip(traffic.sender.tolist(), traffic.receiver.tolist(), strict=True)
    return dict(zip(ends, zip(traffic.messages.tolist(), traffic.lost.tolist(), strict=True), strict=True))


def test_bytes_per_link():
    traffic = bytes_per_link(PAIRED, 10)
    assert links(traffic) == {
        (0, 1): (2, 0), (1, 0): (2, 0), (0, 2): (1, 0), (2, 0): (1, 0), (1, 2): (1, 1), (2, 1): (1, 1),
    }  # fmt: skip
    assert traffic.bytes_sent.sum() == 10 * PAIRED.messages_of_events.sum()
    assert traffic.bytes_lost.sum() == 20
    traffic = bytes_per_link(ONE_SIDED, 10)
    assert links(traffic) == {(0, 2): (1, 0), (1, 2): (1, 1)}
    assert traffic.under_way == 1
    traffic = bytes_per_link(SERVED, 10, model_bytes=40)
    assert links(traffic) == {
        (SERVER, 0): (2, 0),
        (0, SERVER): (2, 1),
        (SERVER, 1): (1, 0),
        (1, SERVER): (1, 0),
    }
    assert traffic.bytes_sent.sum() == 240
    traffic = bytes_per_link(GROUPED, 10, model_bytes=40)
    assert links(traffic) == {(0, 1): (1, 0), (1, 0): (1, 0)}
    assert traffic.collectives == {
        "step": {"events": 2, "messages": 6, "bytes": 240}, "average": {"events": 1, "messages": 4, "bytes": 40},
    }  # fmt: skip


SERVED_OPS = ("pull", "evaluate", "push", "abandon", "step", "work")
BATCHED_OPS = ("submit", "work", "step")
TIMED = [name for name, op in OPS.items() if name not in ("step", "push", "evaluate", "pull", "abandon")]


@settings(max_examples=40, deadline=None)
@given(st.one_of(traces(TIMED), traces(SERVED_OPS), traces(BATCHED_OPS)), st.integers(0, 99))
def test_whatever_the_trace(trace, luck):
    """Every message is accounted for, no time is outside of the run, and a naive count of staleness agrees."""
    duration_s = np.random.default_rng(luck).uniform(0, 3, len(trace))
    object.__setattr__(trace, "duration_s", duration_s)
    done, traffic = activity(trace), bytes_per_link(trace, 1)
    for part in (done.compute, done.communication, done.messages):
        assert (part.start_s >= 0).all()
        assert (part.start_s <= part.end_s).all()
        assert (part.end_s <= trace.horizon_s).all()
    collectives = sum(each["messages"] for each in traffic.collectives.values())
    assert traffic.messages.sum() + traffic.under_way + collectives == trace.messages_of_events.sum()
    busy, stale = utilisation(trace), staleness(trace)
    assert ((busy.idle_share >= 0) & (busy.idle_share <= 1)).all()
    assert np.bincount(stale.worker, minlength=4).tolist() == trace.gradients_of_workers.tolist()
    assert sorted(stale.updates.tolist()) == sorted(naive_staleness(trace))


def naive_staleness(trace):
    """One event after another: how often a state had changed when a gradient was read, and when it is applied."""
    changes, server, read, found = [0] * trace.n_workers, 0, {}, []
    for code, operands in zip(trace.op, trace.operands.tolist(), strict=True):
        name = trace.ops[code].name
        first, last = operands[0], operands[len(trace.ops[code].operands) - 1]
        if name in ("gradient_start", "pull", "load"):
            read[last] = [*changes, server]  # any worker may commit it
        elif name in ("gradient_commit", "push"):
            which = first if name == "gradient_commit" else -1
            found.append([*changes, server][which] - read[last][which])
        elif name == "gradient":
            found.append(0)
        elif name == "step":
            found += [0] * trace.groups.sizes[last]
        elif name == "reduce":
            found += [server - read[operands[2]][-1]] * trace.groups.sizes[last]
        changed = (
            [first]
            if name in ("gradient", "gradient_commit", "exchange_commit", "receive", "copy", "reset")
            else []
        )
        if name in ("mix", "average"):
            entries = slice(trace.groups.start[last], trace.groups.start[last + 1])
            changed = {receiver for receiver in trace.groups.receiver[entries].tolist() if receiver >= 0}
        elif name == "exchange":
            changed = [first, last]
        for worker in changed:
            changes[worker] += 1
        server += name in ("push", "step", "reduce")
    return found


# -- tables ------------------------------------------------------------------------------------------------------------


def test_tables():
    text = trace_table({"x": PAIRED})
    assert "x, seed 0, exchange_start" in text
    _, second, last = text.split("\n\n")
    second = second.splitlines()
    assert second[0].split() == ["over", "the", "run", "of", "mean", "least", "median", "95", "%", "most"]
    words = {line.split("  ")[0]: line.split() for line in second}
    assert words["x, seed 0, idle (share)"][-6:] == ["3", "0.3889", "0.3333", "0.4167", "0.4167", "0.4167"]
    assert words["x, seed 0, staleness (updates)"][-6:] == ["1", "1", "1", "1", "1", "1"]
    assert last == "x, seed 0: 8 messages sent, 2 lost, 2 under way at 6 s\n"
    assert "over the run" not in trace_table({"x": IDEAL})


def test_summary():
    numbers = summary_of(ONE_SIDED)
    assert json.loads(json.dumps(numbers)) == numbers
    assert numbers["utilisation_mean"] == pytest.approx(0.25)
    assert numbers["utilisation_min"] == 0
    assert numbers["idle_max"] == pytest.approx(3.5 / 4)
    assert numbers["staleness_s_mean"] == 1
    assert (numbers["messages"], numbers["messages_lost"]) == (3, 1)
    assert summary_of(IDEAL)["utilisation_mean"] is None
    assert summary_of(IDEAL)["staleness_max"] == 0


def test_summary_is_over_all_replicas():
    copies = [trace_of((1.0, x, "gradient", 0), n=2, horizon_s=2.0, seed=s) for s, x in enumerate((0.5, 1.0))]
    numbers = summary_of(merge(copies))
    assert numbers["utilisation_mean"] == pytest.approx((0.25 + 0.5) / 4)
    assert numbers["staleness_s_max"] == 1.0


# -- viewers -----------------------------------------------------------------------------------------------------------


def check(path, traces):
    """What the trace event format asks for."""
    entries = json.loads(path.read_text())["traceEvents"]
    titles = {entry["tid"]: entry["args"]["name"] for entry in entries if entry["name"] == "thread_name"}
    names = [entry["args"]["name"] for entry in entries if entry["name"] == "process_name"]
    assert names == [
        f"{name}, seed {replica.seed}" for name, trace in traces.items() for replica in trace.replicas
    ]
    threads = {}
    for entry in entries:
        assert entry["ph"] in "MXsf"
        if entry["ph"] == "X":
            assert {"name", "cat", "ts", "dur", "pid", "tid"} <= set(entry)
            assert entry["dur"] > 0
            assert entry["tid"] in titles
            start = round(entry["ts"] * 1000)
            threads.setdefault(entry["tid"], []).append((start, start + round(entry["dur"] * 1000)))
    assert len({(entry["tid"], entry["pid"]) for entry in entries}) == len(
        {entry["tid"] for entry in entries}
    )
    for slices in threads.values():
        assert slices == sorted(slices)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(slices))
    starts, ends = ({e["id"]: e for e in entries if e["ph"] == phase} for phase in "sf")
    assert set(starts) == set(ends)
    assert len(starts) + len(ends) == sum(entry["ph"] in "sf" for entry in entries)
    for number, start in starts.items():
        assert start["ts"] <= ends[number]["ts"]
        assert start["name"] == ends[number]["name"]
        assert start["cat"] == ends[number]["cat"]
        assert ends[number]["bp"] == "e"
        for end in (start, ends[number]):
            at = round(end["ts"] * 1000)
            assert any(a <= at < b for a, b in threads[end["tid"]])
    slices = [(titles[e["tid"]], e["name"], e["ts"] / 1e6, e["dur"] / 1e6) for e in entries if e["ph"] == "X"]
    arrows = [(titles[s["tid"]], titles[ends[k]["tid"]]) for k, s in starts.items()]
    return slices, arrows


def test_perfetto_slices_and_arrows(tmp_path):
    write_perfetto({"x": PAIRED}, tmp_path / "x.json")
    slices, arrows = check(tmp_path / "x.json", {"x": PAIRED})
    assert ("worker 0, compute", "gradient", 0.0, 2.0) in slices
    assert ("worker 1, communication", "exchange", 0.5, 1.0) in slices
    assert ("worker 1, communication 2", "cancel", 1.0, 1.5) in slices
    assert ("worker 1, compute", "gradient", 4.5, 1.5) in slices
    assert arrows == [("worker 0, communication", "worker 1, communication")] * 2
    write_perfetto({"x": ONE_SIDED}, tmp_path / "x.json")
    slices, arrows = check(tmp_path / "x.json", {"x": ONE_SIDED})
    assert ("worker 0, communication", "send", 1.0, 1.5) in slices
    assert ("worker 2, communication", "receive", 2.5, 1e-9) in [(*s[:3], round(s[3], 12)) for s in slices]
    assert arrows == [("worker 0, communication", "worker 2, communication")]


def test_perfetto_of_ideal_clocks_has_a_thread_per_worker(tmp_path):
    write_perfetto({"x": IDEAL}, tmp_path / "x.json")
    slices, arrows = check(tmp_path / "x.json", {"x": IDEAL})
    assert {name for name, *_ in slices} == {"worker 0", "worker 1", "worker 2"}
    assert arrows == [("worker 1", "worker 2")]


@settings(max_examples=25, deadline=None)
@given(st.one_of(traces(TIMED), traces(SERVED_OPS), traces(BATCHED_OPS)), st.integers(0, 99))
def test_perfetto_of_any_trace(tmp_path_factory, trace, luck):
    duration_s = np.random.default_rng(luck).choice([0, 0.5, 1.7], len(trace))
    object.__setattr__(trace, "duration_s", duration_s)
    path = tmp_path_factory.mktemp("any") / "x.json"
    write_perfetto({"a": trace, "b": merge([trace, trace])}, path)
    check(path, {"a": trace, "b": merge([trace, trace])})


# -- charts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_a_chart_of_every_kind_of_trace(name, tmp_path):
    first = plot_gantt(EVERY[name], tmp_path / "a.png", title=name, message_bytes=100)
    second = plot_gantt(EVERY[name], tmp_path / "b.png", title=name, message_bytes=100)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_what_a_chart_refuses(tmp_path):
    with pytest.raises(InvalidInput, match=r"workers.*0 to 2"):
        plot_gantt(IDEAL, tmp_path / "a.png", workers=[7])
    with pytest.raises(InvalidInput, match="until_s"):
        plot_gantt(IDEAL, tmp_path / "a.png", until_s=0)
    assert not list(tmp_path.iterdir())
