"""Every op of the instruction set: rows compute what one event after another computes."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import decentral
from decentral import A2CiD2, Gossip, Record, problem
from decentral.engine.plan import make_plan
from decentral.engine.trace import OPS, Groups, Trace, merge

N = 4
NO_SHRINKING = (
    Phase.explicit,
    Phase.reuse,
    Phase.generate,
)  # every example compiles: shrinking one would take minutes
NAMES = [name for name in OPS if not any(o.bank == "server" for o in OPS[name].operands)]
ALGORITHM = A2CiD2(optimizer={"kind": "sgd", "learning_rate": 0.1, "momentum": 0.9}, eta=0.3, alpha_tilde=0.9)
RING = np.array([[0.5, 0.25, 0, 0.25], [0.25, 0.5, 0.25, 0], [0, 0.25, 0.5, 0.25], [0.25, 0, 0.25, 0.5]])


def matrix(weights):
    receiver, sender = np.nonzero(weights)
    return receiver, sender, weights[receiver, sender]


GROUPS = Groups.of(
    [
        matrix(RING),
        matrix(np.eye(N)[[1, 0, 3, 2]] / 2 + np.eye(N) / 2),
        ([0, 1, -1, 3], [0, 1, 2, 3], [0.25] * 4),
        ([0, 1, 2, 3], [0, 0, 2, 3], [0.25] * 4),
    ]
)


@st.composite
def traces(draw, names=NAMES):
    """Any order of ops that opens slots before it uses them."""
    ops = tuple(OPS[name] for name in names)
    choices = draw(
        st.lists(st.tuples(st.sampled_from(names), st.integers(0, 10**6)), min_size=1, max_size=50)
    )
    op, operands, opened = [], [], {"gradient": [], "pair": [], "message": []}
    elements = 0
    evaluated, asked = set(), []
    for name, luck in choices:
        rng = np.random.default_rng(luck)
        workers, columns = rng.permutation(N).tolist(), []
        for operand in OPS[name].operands:
            if operand.bank == "worker":
                columns.append(0 if OPS[name].is_group else workers.pop())
            elif operand.bank == "server":
                columns.append(0)
            elif operand.bank == "unit":
                ready = [0, 1] if name == "request" else asked
                if not ready:
                    break
                columns.append(int(rng.choice(ready)))
                if name == "request":
                    asked.append(columns[-1])
                else:
                    asked.remove(columns[-1])
            elif operand.bank == "group":
                columns.append(int(rng.choice({"mix": [0, 1], "average": [2]}.get(name, [2, 3]))))
            elif operand.opens:
                columns.append(elements)
                opened[operand.bank].append(elements)
                elements += 1
            else:
                ready = [e for e in opened[operand.bank] if name != "push" or e in evaluated]
                ready = [e for e in ready if name != "evaluate" or e not in evaluated]
                if not ready:
                    break
                columns.append(int(rng.choice(ready)))
                if operand.closes:
                    opened[operand.bank].remove(columns[-1])
                evaluated |= {columns[-1]} if name == "evaluate" else set()
        else:
            op.append(names.index(name))
            operands.append(columns + [-1] * (4 - len(columns)))
    gaps = draw(st.lists(st.floats(0, 1), min_size=len(op), max_size=len(op)))
    time_s = np.cumsum(gaps)
    return Trace.from_arrays(
        time_s, op, np.array(operands).reshape(-1, 4), n_workers=N, ops=ops, groups=GROUPS, seed=draw(st.integers(0, 9)),
        horizon_s=60.0,
    )  # fmt: skip


def final(trace, executor, algorithm=ALGORITHM):
    task = problem.quadratic(n=N, d=3, noise=0.3, seed=1)
    record = Record(events=(len(trace),), states=True, evaluate=False)
    result = decentral.replay(trace, task, algorithm, record=record, executor=executor)
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(result.states[-1])])


@pytest.mark.slow
@settings(max_examples=16, deadline=None, phases=NO_SHRINKING)
@given(st.lists(traces(), min_size=1, max_size=2, unique_by=lambda t: t.replicas[0].seed))
def test_rows_are_events_one_by_one(copies):
    trace = merge(copies)
    np.testing.assert_allclose(final(trace, "rows"), final(trace, "eager"), rtol=1e-11, atol=1e-12)
    for index, alone in enumerate(copies):
        back = trace.replica(index)
        assert back.hash == alone.hash
        each = final(trace, "rows").size // len(copies)
        assert each == final(alone, "eager").size


@pytest.mark.slow
@settings(max_examples=8, deadline=None, phases=NO_SHRINKING)
@given(
    st.lists(
        traces(("pull", "evaluate", "push", "abandon", "step", "submit", "work")), min_size=1, max_size=2
    )
)
def test_a_server_too(copies):
    for seed, copy in enumerate(copies):
        object.__setattr__(copy, "replicas", (decentral.engine.trace.Replica(seed, 60.0),))
    trace = merge(copies)
    np.testing.assert_allclose(final(trace, "rows"), final(trace, "eager"), rtol=1e-11, atol=1e-12)


def trace_of(*events, seed=0, groups=GROUPS):
    """``(name, operands...)`` at whole seconds."""
    names = list(dict.fromkeys(name for name, *_ in events))
    operands = [list(rest) + [-1] * (4 - len(rest)) for _, *rest in events]
    return Trace.from_arrays(
        np.arange(1.0, len(events) + 1), [names.index(name) for name, *_ in events], operands, n_workers=N, ops=names,
        groups=groups, seed=seed,
    )  # fmt: skip


GOSSIP = Gossip(optimizer={"kind": "sgd", "learning_rate": 0.5})
START = np.arange(float(N))[:, None] * np.ones(2)


def state(trace, algorithm=GOSSIP, initial=START, executor="rows"):
    task = problem.quadratic(n=N, d=2, condition_number=1.0, seed=0)  # f_i = ||x - c_i||^2 / 2
    record = Record(events=(len(trace),), states=True, evaluate=False)
    centres = np.asarray(task.shards["centre"])
    result = decentral.replay(trace, task, algorithm, initial=initial, record=record, executor=executor)
    return np.asarray(result.states[-1].x), centres


@pytest.mark.parametrize("executor", ["rows", "eager"])
def test_a_gradient_is_of_the_point_it_was_started_at(executor):
    """x_0 is 0 at the start; an exchange with worker 3 makes it 1.5 before the gradient of 0 arrives."""
    x, c = state(
        trace_of(("gradient_start", 0, 0), ("exchange", 0, 3), ("gradient_commit", 0, 0)), executor=executor
    )
    np.testing.assert_allclose(x[0], 1.5 - 0.5 * (0.0 - c[0]))


@pytest.mark.parametrize("executor", ["rows", "eager"])
def test_paired_messages_conserve_the_sum_whatever_happens_in_between(executor):
    events = [
        ("exchange_start", 0, 3, 0, 1),
        ("exchange", 0, 1),
        ("exchange_commit", 3, 1),
        ("exchange_commit", 0, 0),
    ]
    x, _ = state(trace_of(*events), executor=executor)
    np.testing.assert_allclose(x.sum(0), START.sum(0))
    np.testing.assert_allclose(
        x[0], 0.5 + 1.5
    )  # 0.5 after the exchange with 1, plus half of the difference at the start


@pytest.mark.parametrize("executor", ["rows", "eager"])
def test_a_message_meets_the_state_of_now(executor):
    """Worker 0's message is 0; when it comes, worker 3 is at 2.5, and goes to the middle. The sum is not conserved."""
    x, _ = state(trace_of(("send", 0, 0), ("exchange", 2, 3), ("receive", 3, 0)), executor=executor)
    np.testing.assert_allclose(x[3], 1.25)
    np.testing.assert_allclose(x[0], 0.0)


def test_what_is_cancelled_dropped_or_abandoned_leaves_no_mark():
    events = [
        ("exchange_start", 0, 3, 0, 1), ("cancel", 0, 0), ("cancel", 3, 1),
        ("send", 1, 2), ("drop", 2, 2), ("gradient_start", 1, 3), ("abandon", 1, 3),
    ]  # fmt: skip
    x, _ = state(trace_of(*events))
    np.testing.assert_array_equal(x, START)


def test_who_returns_has_a_neighbours_state_or_the_first_one():
    x, _ = state(trace_of(("exchange", 0, 3), ("copy", 1, 0), ("reset", 3)))
    np.testing.assert_allclose(x, np.array([1.5, 1.5, 2.0, 3.0])[:, None] * np.ones(2))


def test_a_mean_and_a_mixing_matrix():
    """Gossip goes half of the way to what it is sent; table 2 leaves worker 2 out and gives it a weight."""
    x, _ = state(trace_of(("average", 0, 2)))
    np.testing.assert_allclose(x[:, 0], [0.75, 1.25, 2.0, 2.25])
    x, _ = state(trace_of(("mix", 0, 0)))
    np.testing.assert_allclose(x, (START + RING @ START) / 2)


def test_group_ops_end_sections_and_replicas_share_them():
    copies = [
        trace_of(("gradient", 0), ("mix", 0, 0), ("gradient", 1), ("mix", 0, 1), seed=s) for s in (0, 1)
    ]
    plan = make_plan(merge(copies), [4, 8])
    assert plan.group_event.shape == (5, 2), (
        "two sections to a barrier and one that is left, two and none after it"
    )
    assert (plan.group_event >= 0).sum() == 4
    assert plan.n_rows == 2


def test_counts_of_gradients_and_messages():
    table = Groups.of([([-1] * 4, [0, 1, 1, 3], [0.25] * 4), matrix(RING)])
    trace = trace_of(
        ("step", 0, 0, 0), ("pull", 2, 0, 0), ("evaluate", 2, 0), ("push", 2, 0, 0), groups=table
    )
    assert trace.gradients_of_events.tolist() == [4, 0, 0, 1]
    assert trace.gradients_of_workers.tolist() == [1, 2, 1, 1]
    assert trace.messages_of_events.tolist() == [0, 1, 1, 0], "what is pulled, and sent when it is computed"
    trace = trace_of(("work", 1), ("step", 0, 0, 0), groups=table)
    assert trace.messages_of_events.tolist() == [0, 4], "an all-reduce among three"
    trace = trace_of(("submit", 1), ("submit", 2), ("step", 0, 0, 0), groups=table)
    assert trace.messages_of_events.tolist() == [2, 2, 0], "a server's: there and back"
    assert trace.gradients_of_events.tolist() == [0, 0, 4]
    trace = trace_of(("mix", 0, 1), ("exchange", 0, 1), groups=table)
    assert trace.messages_of_events.tolist() == [8, 2]


def test_save_and_load_keep_the_groups(tmp_path):
    trace = merge([trace_of(("mix", 0, 0), ("average", 0, 2), seed=s) for s in (0, 1)])
    trace.save(tmp_path / "trace.npz")
    again = Trace.load(tmp_path / "trace.npz")
    assert again.hash == trace.hash
    np.testing.assert_array_equal(again.groups.weight, trace.groups.weight)
    assert again.replica(1).hash == trace.replica(1).hash == trace_of(("mix", 0, 0), ("average", 0, 2)).hash


def test_durations_stay_with_their_events(tmp_path):
    copies = [
        dataclasses.replace(
            trace_of(("gradient", 0), ("gradient", 1), seed=s), duration_s=np.array([0.5, 0.25]) + s
        )
        for s in (0, 1)
    ]
    both = merge(copies)
    np.testing.assert_array_equal(both.duration_s, [0.5, 1.5, 0.25, 1.25])
    both.save(tmp_path / "trace.npz")
    np.testing.assert_array_equal(Trace.load(tmp_path / "trace.npz").replica(1).duration_s, [1.5, 1.25])
    np.testing.assert_array_equal(copies[1].cut(1).duration_s, [1.5])
    assert both.hash == merge([dataclasses.replace(copy, duration_s=None) for copy in copies]).hash


def test_a_group_that_is_not_there_is_named():
    with pytest.raises(decentral.InvalidInput, match="a group from 0 to 3"):
        trace_of(("mix", 0, 9))
    with pytest.raises(decentral.InvalidInput, match=r"groups\.sender"):
        trace_of(("mix", 0, 0), groups=Groups.of([([0], [7], [1.0])]))
