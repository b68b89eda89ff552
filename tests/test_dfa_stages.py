"""Direct feedback alignment in a pipeline: equal to one worker's where it is flushed, to a plain replay where it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import mostly_slow

import decentral
from decentral import DFA, PETRA, Pipeline, Record, problem, replay, simulate, topology
from decentral.algorithm.optimizer import as_optimizer
from decentral.errors import InvalidInput
from decentral.experiment.entry import network_of
from decentral.optical.feedback import Feedback
from decentral.problem import Stage, from_stages
from decentral.protocol import Gradients, Time
from decentral.timing import Cluster, Links
from decentral.timing.compute import LogNormal

SGD = {"kind": "sgd", "learning_rate": 0.1}
MOMENTUM = {"kind": "sgd", "learning_rate": 0.1, "momentum": 0.9}
BATCH, WIDTH, CLASSES = 6, 5, 3


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def layered(n=4, stages=4, *, per_model=None, seed=0):
    """A perceptron of dense layers with tanh, one a stage, on random samples."""

    def dense(inputs, outputs, activation=jnp.tanh):
        def init(key):
            weight = jax.random.normal(key, (inputs, outputs), "float64") / inputs**0.5
            return {"weight": weight, "bias": jnp.zeros(outputs)}

        return Stage(init, lambda p, x: activation(x @ p["weight"] + p["bias"]))

    rng = np.random.default_rng(seed)
    models = n // (stages if per_model is None else per_model)
    x, labels = rng.normal(size=(models, 40, 4)), rng.integers(0, CLASSES, (models, 40))
    kinds = {
        "stem": dense(4, WIDTH),
        "block": dense(WIDTH, WIDTH),
        "head": dense(WIDTH, CLASSES, lambda y: y),
    }
    order = ("stem", *["block"] * (stages - 2), "head")
    return from_stages(
        kinds, order, (x, labels), n=n, workers_per_model=per_model, batch_size=BATCH, dtype="float64"
    )


def graph(n=4, stages=4):
    return topology.named("pipelines", n=n, stages=stages, broadcast=True)


def timeline(task, protocol, stop, algorithm, *, cluster=None, seed=0):
    on = graph(task.n_workers, len(task.stages))
    return protocol.timeline(network_of(protocol, on, algorithm, task, cluster), stop, seed)


def model(state, index=0):
    return {kind: jax.tree.map(lambda leaf: leaf[index], stages.x) for kind, stages in state.items()}


def assert_close(found, expected, tolerance=1e-13):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def largest_change(before, after):
    return max(
        np.abs(a - b).max() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    )


FEEDBACKS = {
    "gaussian": Feedback(),
    "uniform slice": Feedback(matrix="uniform", scale=2.0),
    "ternary": Feedback(error="ternary", threshold=0.4),
    "noisy": Feedback(snr=1.0),
    "private": Feedback(units="private"),
    "shallow": Feedback(kind="shallow"),
    "optical": Feedback(matrix="optical", error="ternary", threshold=0.4, photons=100.0),
}
CASES = [("gaussian", 1, False), *((name, 3, name != "uniform slice") for name in FEEDBACKS)]


@pytest.mark.parametrize(
    ("name", "micro_batches", "keep_weights"), mostly_slow(CASES, [("gaussian", 3, True)])
)
def test_a_flush_is_one_step_of_one_worker(name, micro_batches, keep_weights):
    """After each flush: the step that one worker takes with the mean of the feedback's slopes, same unit, same batches."""
    task, feedback = layered(), FEEDBACKS[name]
    algorithm = DFA(
        optimizer=MOMENTUM, accumulate=micro_batches, keep_weights=keep_weights, feedback=feedback
    )
    protocol = Pipeline(schedule="dfa", micro_batches=micro_batches, feedback_s=0.3)
    cluster = Cluster(LogNormal(1.0, 0.4), Links(latency_s=0.2))
    flushes = 3
    trace = timeline(task, protocol, Time(60.0), algorithm, cluster=cluster, seed=5)
    updates = np.flatnonzero([op.instruction == "update" for op in trace.ops])[:, None] == trace.op
    per_flush = task.n_workers * micro_batches
    done = np.flatnonzero(updates.any(0))[per_flush - 1 :: per_flush]
    record = Record(events=(0, *(1 + done[:flushes]).tolist()), states=True, evaluate=False)
    states = replay(trace, task, algorithm, record=record).states
    assert len(states) == flushes + 1
    simulation = decentral.Simulation(trace, task, algorithm)
    key, unit = jax.random.fold_in(simulation.context.keys[0], 1), simulation.context.feedback_keys[0]
    oracle, optimizer = jax.jit(feedback.oracle(task), static_argnums=2), as_optimizer(MOMENTUM)
    params = model(states[0])
    memory = optimizer.transformation().init(params)
    for flush, state in enumerate(states[1:]):
        batches = range(micro_batches * flush, micro_batches * (flush + 1))
        slopes = [oracle(params, task.shards, 0, key, np.uint32(b), unit) for b in batches]
        mean = jax.tree.map(lambda *leaves: sum(leaves) / micro_batches, *slopes)
        params, memory = optimizer.descend(params, mean, memory)
        assert_close(model(state), params)
    moved = largest_change(model(states[0])["block"], params["block"])
    assert moved == 0 if name == "shallow" else moved > 1e-3
    assert largest_change(model(states[0])["head"], params["head"]) > 1e-2


def by_hand(trace, task, algorithm, start, simulation):
    """What the events of one pipeline mean, one after another, in plain Python: no plan, no slots."""
    stages, n = task.stages, trace.n_workers
    names, feedback = [op.instruction for op in trace.ops], algorithm.feedback
    key, unit = jax.random.fold_in(simulation.context.keys[0], 1), simulation.context.feedback_keys[0]
    params = [jax.tree.map(lambda leaf, i=i: leaf[i], start[kind]) for kind, i in map(stages.place, range(n))]
    applies = [stages.kinds[kind].apply for kind in stages.order]
    tokens, kept, errors = {}, {}, {}
    begun, learnt = [0] * n, [0] * n
    for code, operands in zip(trace.op, trace.operands, strict=True):
        j, name = int(operands[0]), names[code]
        if name in ("forward", "error"):
            x, labels = task.batch(task.shards, 0, key, np.uint32(begun[j]))
            inputs = tokens.pop((j, begun[j])) if j else x
            kept[j, begun[j]] = inputs, params[j]
            tokens[j + 1, begun[j]] = outputs = applies[j](params[j], inputs)
            if name == "error":
                errors[begun[j]] = jax.grad(stages.loss)(outputs, labels)
            begun[j] += 1
        elif name == "update":
            inputs, weights = kept.pop((j, learnt[j]))
            weights = weights if algorithm.keep_weights else params[j]
            outputs, pull = jax.vjp(lambda p, j=j, x=inputs: applies[j](p, x), weights)
            slope = errors[learnt[j]]
            if j < n - 1:
                slope = slope @ feedback.rows(CLASSES, WIDTH, j, unit, outputs.dtype).T
            params[j] = jax.tree.map(lambda p, g: p - SGD["learning_rate"] * g, params[j], pull(slope)[0])
            learnt[j] += 1
    return params


@pytest.mark.parametrize("keep_weights", mostly_slow([True, False], [True]))
@pytest.mark.parametrize("executor", mostly_slow(["rows", "eager"], ["rows"]))
def test_without_a_flush_it_is_what_the_events_say(keep_weights, executor):
    task = layered()
    algorithm = DFA(optimizer=SGD, keep_weights=keep_weights, feedback=Feedback())
    cluster = Cluster(LogNormal(1.0, 0.4), Links(latency_s=0.3))
    trace = timeline(task, Pipeline(schedule="dfa"), Gradients(8), algorithm, cluster=cluster, seed=2)
    found = replay(
        trace, task, algorithm, record=Record(count=2, states=True, evaluate=False), executor=executor
    )
    resolved = algorithm.resolve(task, None)
    expected = by_hand(
        trace, task, resolved, model(found.states[0]), decentral.Simulation(trace, task, algorithm)
    )
    after = model(found.final)
    for j, own in enumerate(expected):
        kind, row = task.stages.place(j)
        assert_close(jax.tree.map(lambda leaf, i=row: leaf[i], after[kind]), own)
    assert largest_change(model(found.states[0]), after) > 1e-2


@pytest.mark.slow
def test_axes_and_memory():
    """Samples, updates, messages and bytes, as counted by hand; what a stage keeps of batches that are on their way."""
    task, micro_batches = layered(), 3
    algorithm = DFA(optimizer=SGD, accumulate=micro_batches)
    protocol = Pipeline(schedule="dfa", micro_batches=micro_batches)
    trace = timeline(task, protocol, Time(9.0), algorithm)  # P - 1 + 2 M: one flush, and the next has begun
    run = replay(trace, task, algorithm, record=Record(count=1))
    final = {name: values[0, -1] for name, values in run.metrics.items()}
    assert (final["gradients"], final["samples"], final["updates"]) == (3, 3 * BATCH, 1)
    ups, errors = trace.counts["forward:stem"] + trace.counts["forward:block"], trace.counts["error:head"]
    assert final["messages"] == ups + 3 * errors
    assert final["bytes"] == 8 * BATCH * (WIDTH * ups + CLASSES * 3 * errors)
    (held,) = run.constants["memory_bytes"]["stages"]
    state = [(4 + 1) * WIDTH, (WIDTH + 1) * WIDTH, (WIDTH + 1) * WIDTH, (WIDTH + 1) * CLASSES]
    inputs = [0, BATCH * WIDTH, BATCH * WIDTH, BATCH * WIDTH]  # samples are read again
    own = decentral.analysis.pipeline.in_flight(trace)
    expected = [
        (2 * p + own.batches[0, j] * (i + p) + own.tokens[0, j] * BATCH * WIDTH * (j < 3) + own.errors[0, j] * BATCH * CLASSES)
        * 8
        for j, (p, i) in enumerate(zip(state, inputs, strict=True))
    ]  # fmt: skip
    assert held == expected
    assert own.batches.tolist() == [[3, 3, 3, 3]]
    assert own.errors[0].tolist() == [
        2,
        2,
        3,
        3,
    ]  # the first two have time to learn before the third error is made


@pytest.mark.slow
def test_two_pipelines_that_gossip_and_seeds_are_replicas():
    task, on = layered(8), graph(8)
    algorithm = DFA(optimizer=SGD, accumulate=2)
    protocol, record = Pipeline(schedule="dfa", gossip_every=2), Record(count=2, states=True)
    both = simulate(task, on, algorithm, protocol, stop=Gradients(30), seeds=2, record=record)
    for index, seed in enumerate((0, 1)):
        alone = simulate(task, on, algorithm, protocol, stop=Gradients(30), seeds=[seed], record=record)
        mine = jax.tree.map(lambda leaf, i=index: leaf[2 * i : 2 * i + 2], both.states[-1])
        assert_close(alone.states[-1], mine, 1e-12)
        for name in ("loss", "test_accuracy", "updates", "bytes"):
            if name in alone.metrics:
                np.testing.assert_allclose(alone.metrics[name][0], both.metrics[name][index], rtol=1e-12)


@pytest.mark.slow
def test_it_learns_what_the_shallow_control_does_not():
    """Digits in stages of 32 without a flush: far more of them than with the last stage alone."""
    task = problem.reversible_mlp(4, stages=4, hidden=8, batch_size=16, dtype="float32", seed=1)
    recipe = {"kind": "sgd", "learning_rate": 0.02}
    found = {}
    for kind in ("dfa", "shallow"):
        algorithm = DFA(optimizer=recipe, feedback=Feedback(kind=kind))
        run = simulate(
            task, graph(), algorithm, Pipeline(schedule="dfa"), stop=Gradients(1500), record=Record(count=1)
        )
        found[kind] = run.metrics["loss"][0, -1]
    assert found["dfa"] < 0.8 * found["shallow"]


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_bad_arguments():
    with pytest.raises(InvalidInput, match=r"algorithm\.accumulate: got 0"):
        DFA(optimizer=SGD, accumulate=0)
    with pytest.raises(InvalidInput, match=r"algorithm\.keep_weights: got 1"):
        DFA(optimizer=SGD, keep_weights=1)


def test_what_does_not_fit_together():
    task, on, algorithm = layered(), graph(), DFA(optimizer=SGD)
    broadcast = Pipeline(schedule="dfa")

    def refused(words, task=task, on=on, algorithm=algorithm, protocol=broadcast):
        with pytest.raises(InvalidInput, match=words):
            simulate(task, on, algorithm, protocol, stop=5.0)

    refused("a model made of stages", task=problem.quadratic(n=4, d=2))
    refused(r"protocol: got 'pipeline'; .*schedule 'dfa'", protocol=Pipeline())
    refused("protocol: got 'pipeline, schedule dfa'", algorithm=PETRA(optimizer=SGD))
    gossip, down = decentral.Gossip(optimizer=SGD), PETRA(optimizer=SGD, feedback=Feedback())
    refused("protocol: got 'pipeline, schedule dfa'", algorithm=gossip, task=layered(4, per_model=1))
    refused("broadcast = true", on=topology.named("path", n=4))
    refused(r"micro_batches: got 4; allowed: 1, .*accumulate", protocol=Pipeline("dfa", micro_batches=4))
    refused(
        r"feedback: got 'backprop'.*petra", algorithm=DFA(optimizer=SGD, feedback=Feedback(kind="backprop"))
    )
    refused("feedback: got 'dfa'; allowed: none for PETRA", algorithm=down, protocol=Pipeline())
    refused("learning_rate", algorithm=DFA())
    refused("workers_per_model: got 1", task=layered(4, per_model=1))
    up = timeline(task, broadcast, Gradients(4), algorithm)
    down = timeline(task, Pipeline(), Gradients(4), PETRA(optimizer=SGD))
    with pytest.raises(
        InvalidInput, match="algorithm: got 'PETRA'; allowed: one for pipelines, with an error"
    ):
        replay(up, task, PETRA(optimizer=SGD))
    with pytest.raises(InvalidInput, match=r"algorithm: got .DFA.; allowed: one for pipelines, e\.g\. PETRA"):
        replay(down, task, algorithm)
    with pytest.raises(InvalidInput, match=r"trace: got .a trace of forward:stem"):
        replay(up, problem.reversible_mlp(4, stages=4, hidden=4, batch_size=8), algorithm)
