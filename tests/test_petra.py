"""PETRA and its relatives: the authors' engine replayed, exact answers, pipelines that gossip, and what is refused."""

import itertools

import jax
import numpy as np
import pytest
from cases import mostly_slow
from engine_stages import ENGINE, ORDER, pack, problem_of

import decentral
from decentral import PETRA, Pipeline, Record, problem, replay, simulate, topology
from decentral.algorithm.petra import VARIANTS
from decentral.errors import InvalidInput
from decentral.experiment.entry import network_of
from decentral.protocol import Gradients, Time

RECORDED = np.load(ENGINE)
TICKS = 40
LOCK_STEP = Pipeline(backward=1, reconstruct=0, turn=1)
ONE_BY_ONE = Pipeline(schedule="backprop")
NESTEROV = {"kind": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": True}
ENGINE_MODES = {
    "petra": "petra",
    "delayed": "delayed_full",
    "dsp": "dsp",
    "stored_weights": "stash_param_only",
    "approximate_input": "approx_input",
}
SGD = {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9}


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def timeline(task, protocol, stop, *, algorithm=None, graph=None, seed=0, cluster=None):
    algorithm = PETRA(optimizer=SGD) if algorithm is None else algorithm
    graph = topology.named("path", n=task.n_workers) if graph is None else graph
    return protocol.timeline(network_of(protocol, graph, algorithm, task, cluster), stop, seed)


def model(state, index=0):
    return {kind: jax.tree.map(lambda leaf: leaf[index], stages.x) for kind, stages in state.items()}


def parameters(result):
    return np.stack([pack(model(state), RECORDED) for state in result.states])


def every_tick(protocol, algorithm, executor="rows"):
    task = problem_of(RECORDED)
    trace = timeline(task, protocol, Time(float(TICKS)), algorithm=algorithm)
    record = Record(times_s=tuple(map(float, range(TICKS + 1))), states=True, evaluate=False)
    return replay(trace, task, algorithm, record=record, executor=executor)


@pytest.mark.parametrize(
    ("variant", "accumulate"),
    mostly_slow([*itertools.product(ENGINE_MODES, (1, 2))], [("petra", 1), ("delayed", 2)]),
)
def test_the_authors_engine_replayed(variant, accumulate):
    algorithm = PETRA(optimizer=NESTEROV, accumulate=accumulate, variant=variant)
    expected = RECORDED[f"{ENGINE_MODES[variant]}_k{accumulate}_params"]
    np.testing.assert_allclose(parameters(every_tick(LOCK_STEP, algorithm)), expected, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_the_authors_engine_replayed_one_event_after_another():
    algorithm = PETRA(optimizer=NESTEROV, accumulate=2)
    found = parameters(every_tick(LOCK_STEP, algorithm, "eager"))
    np.testing.assert_allclose(found, RECORDED["petra_k2_params"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("variant", "accumulate"), mostly_slow([*itertools.product(("petra", "delayed"), (1, 2))], [("petra", 2)])
)
def test_one_batch_at_a_time_is_the_authors_backpropagation(variant, accumulate):
    """Nothing is late then, whatever is kept."""
    task = problem_of(RECORDED)
    algorithm = PETRA(optimizer=NESTEROV, accumulate=accumulate, variant=variant)
    trace = timeline(task, ONE_BY_ONE, Gradients(TICKS), algorithm=algorithm)
    # A batch is done when it has come back to the first stage.
    first = [op.name for op in trace.ops].index("backward:stem")
    done = 1 + np.flatnonzero(trace.op == first)
    record = Record(events=(0, *done.tolist()), states=True, evaluate=False)
    found = parameters(replay(trace, task, algorithm, record=record))
    expected = RECORDED[f"sync_k{accumulate}_params"][: len(found)]
    assert len(found) >= TICKS
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_with_frozen_weights_every_gradient_is_that_of_backpropagation():
    """The gradient of batch b leaves stage j at tick b + 2 (J - 1) - j: read from sums of gradients that are never applied."""
    held = 1024
    algorithm = PETRA(optimizer=NESTEROV, accumulate=held)
    states = every_tick(LOCK_STEP, algorithm).states
    totals = np.stack(
        [
            pack({k: jax.tree.map(lambda leaf: leaf[0], s.total) for k, s in state.items()}, RECORDED)
            for state in states
        ]
    )
    emitted, expected = held * np.diff(totals, axis=0), RECORDED["frozen_petra_grads"]
    np.testing.assert_allclose(emitted, np.nan_to_num(expected), rtol=0, atol=1e-11)
    assert np.isnan(expected).any()
    assert np.abs(np.nan_to_num(expected)).max() > 0.1
    # Stage j lags 2 (J - 1) - j ticks behind its batch; the recorded gradients of backpropagation do not.
    exact, stages = RECORDED["frozen_backprop_grads"], len(ORDER)
    last = 2 * (stages - 1) - (stages - 1)
    head = RECORDED["w_head_W"].size + RECORDED["w_head_b"].size
    np.testing.assert_allclose(emitted[last:, -head:], exact[: TICKS - last, -head:], rtol=0, atol=1e-11)
    stem = RECORDED["w_stem_W"].size + RECORDED["w_stem_b"].size
    back = 2 * (stages - 1)
    np.testing.assert_allclose(emitted[back:, :stem], exact[: TICKS - back, :stem], rtol=0, atol=1e-11)


@pytest.mark.slow
def test_gradients_of_a_small_step_are_those_of_backpropagation_up_to_the_step():
    """The error of late gradients is of first order in the learning rate: a tenth of it, a tenth of the error."""
    task = problem_of(RECORDED)

    def moved(rate, protocol):
        algorithm = PETRA(optimizer={"kind": "sgd", "learning_rate": rate})
        trace = timeline(task, protocol, Gradients(12), algorithm=algorithm)
        # Twelve batches have passed every stage: nothing is left on the way but what never came back.
        final = replay(trace, task, algorithm, record=Record(count=1, evaluate=False)).final
        return pack(model(final), RECORDED)

    start = pack(task.initial(jax.random.key(0)), RECORDED)
    errors = []
    for rate in (1e-3, 1e-4):
        late, exact = (moved(rate, protocol) for protocol in (LOCK_STEP, ONE_BY_ONE))
        head = slice(
            -RECORDED["w_head_W"].size - RECORDED["w_head_b"].size, None
        )  # has done all twelve in both
        errors.append(np.abs(late[head] - exact[head]).max() / np.abs(exact[head] - start[head]).max())
    assert errors[1] > 1e-6
    assert 8 < errors[0] / errors[1] < 12


def small(n, *, per_model=4, dtype="float64"):
    return problem.reversible_mlp(
        n, stages=4, hidden=4, batch_size=8, workers_per_model=per_model, dtype=dtype, seed=1
    )


@pytest.mark.parametrize("schedule", mostly_slow(["gpipe", "1f1b"], []))
def test_a_flush_is_one_step_of_the_mean_gradient(schedule):
    """All passes between two flushes see the same parameters: the ordinary gradient of the whole model, batch after batch."""
    task = small(4)
    algorithm = PETRA(optimizer={"kind": "sgd", "learning_rate": 0.1}, accumulate=3)
    protocol = Pipeline(schedule=schedule, micro_batches=3)
    trace = timeline(task, protocol, Gradients(9), algorithm=algorithm, seed=5)
    trace = timeline(task, protocol, Time(1.001 * trace.horizon_s * 4 / 3), algorithm=algorithm, seed=5)
    last = np.flatnonzero(trace.op == [op.name for op in trace.ops].index("backward:stem"))[[2, 5, 8]]
    record = Record(events=(0, *(1 + last).tolist()), states=True, evaluate=False)
    states = replay(trace, task, algorithm, record=record).states
    simulation = decentral.Simulation(trace, task, algorithm)
    key = jax.random.fold_in(simulation.context.keys[0], 1)
    for flush, (before, after) in enumerate(itertools.pairwise(states)):
        batches = range(3 * flush, 3 * flush + 3)
        slopes = [task.gradient(model(before), task.shards, 0, key, np.uint32(b)) for b in batches]
        mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *slopes)
        expected = jax.tree.map(lambda x, g: x - 0.1 * g, model(before), mean)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-13), model(after), expected
        )


@pytest.mark.slow
def test_two_pipelines_that_gossip():
    """Each stage meets its equal: with gradients off the sum over the pipelines stays, and they agree more and more."""
    task, graph = small(8), topology.named("pipelines", n=8, stages=4)
    still = PETRA(optimizer={"kind": "sgd", "learning_rate": 0.0})
    rng = np.random.default_rng(0)
    start = jax.tree.map(lambda leaf: rng.standard_normal((8, *leaf.shape)), task.initial(jax.random.key(0)))
    record = Record(count=4, states=True, evaluate=False)
    run = simulate(
        task, graph, still, Pipeline(gossip_every=2), stop=Gradients(40), record=record, initial=start
    )
    first, *_, last = (jax.tree.leaves({k: s.x for k, s in state.items()}) for state in run.states)
    for before, after in zip(first, last, strict=True):
        np.testing.assert_allclose(after.sum(0), before.sum(0), rtol=0, atol=1e-12)
    assert run.metrics["consensus_distance"][0, 0] > 1
    assert run.metrics["consensus_distance"][0, -1] < 1e-12
    assert run.metrics["exchanges"][0, -1] > 0
    alone = simulate(task, graph, still, Pipeline(), stop=Gradients(40), record=record, initial=start)
    assert alone.metrics["consensus_distance"][0, -1] == alone.metrics["consensus_distance"][0, 0]


@pytest.mark.slow
def test_each_pipeline_has_data_of_its_own_and_seeds_are_replicas():
    task, graph = small(8), topology.named("pipelines", n=8, stages=4)
    algorithm = PETRA(optimizer=SGD)
    record = Record(count=2, states=True)
    both = simulate(task, graph, algorithm, Pipeline(), stop=Gradients(30), seeds=2, record=record)
    weights = both.states[-1]["block"].x["weight"]  # (seeds x pipelines, blocks, ...)
    assert weights.shape[:2] == (4, 2)
    assert len(np.unique(weights[:, 0, 0, 0])) == 4
    for index, seed in enumerate((0, 1)):
        alone = simulate(task, graph, algorithm, Pipeline(), stop=Gradients(30), seeds=[seed], record=record)
        np.testing.assert_allclose(
            alone.states[-1]["block"].x["weight"], weights[2 * index : 2 * index + 2], rtol=0, atol=1e-12
        )
        for name in ("loss", "test_accuracy", "updates", "bytes"):
            np.testing.assert_allclose(alone.metrics[name][0], both.metrics[name][index], rtol=1e-12)


def test_axes_of_a_pipeline():
    """Samples, updates, messages and bytes, as counted by hand: J = 4, k = 2, ten batches."""
    task = small(4, dtype="float32")
    algorithm = PETRA(optimizer=SGD, accumulate=2)
    trace = timeline(task, LOCK_STEP, Gradients(10), algorithm=algorithm)
    run = replay(trace, task, algorithm, record=Record(count=1))
    assert run.metrics["gradients"][0, -1] == 10
    assert run.metrics["samples"][0, -1] == 80
    assert run.metrics["updates"][0, -1] == 5
    ups = sum(trace.counts[f"forward:{kind}"] for kind in ("stem", "block"))
    downs = trace.counts["turn:head"] + trace.counts["backward:block"]
    assert run.metrics["messages"][0, -1] == ups + downs
    token = (
        2 * 8 * 4 * 4
    )  # two streams of 8 samples x 4 units x 4 bytes; what comes down is activations and gradients
    assert run.metrics["bytes"][0, -1] == token * ups + 2 * token * downs


def test_memory_of_each_stage():
    """J = 4 in lock-step: parameters and momentum twice, the samples of the stem not at all, what lies between two stages."""
    task = small(4, dtype="float32")
    trace = timeline(task, LOCK_STEP, Gradients(20))
    constants = decentral.Simulation(trace, task, PETRA(optimizer=SGD)).result().constants
    (held,) = constants["memory_bytes"]["stages"]
    parameters = [(16 + 1) * 8, (4 + 1) * 4, (4 + 1) * 4, (8 + 1) * 10]
    token = 2 * 8 * 4 * 4
    # up two, as the next one begins when one is taken; down come activations and gradients
    moving = [2 * token, 2 * token + 2 * token, 2 * token + 2 * token, 2 * token]
    np.testing.assert_allclose(held, [2 * 4 * p + m for p, m in zip(parameters, moving, strict=True)])


@pytest.mark.parametrize("variant", mostly_slow(VARIANTS, ["petra"]))
def test_what_a_variant_keeps(variant):
    """Memory is what lies in the stashes: nothing for PETRA's reversible stages."""
    task = small(4)
    trace = timeline(task, LOCK_STEP, Gradients(20))
    simulation = decentral.Simulation(trace, task, PETRA(optimizer=SGD, variant=variant))
    kept = {
        kind: sum(leaf.nbytes for leaf in jax.tree.leaves(simulation.banks[f"stash:{kind}"]))
        for kind in ("stem", "block")
    }
    slots, memory = simulation.slots["stash:block"], VARIANTS[variant]
    inputs, weights = 2 * 8 * 4 * 8, (4 * 4 + 4) * 8
    expected = slots * (inputs * (memory.inputs == "kept") + weights * (memory.weights != "none"))
    assert kept["block"] == expected
    assert slots == 5 + 3  # 2 (J - j) + 1 batches at stages 2 and 3 of 4
    assert (kept["stem"] > 0) == (memory.weights != "none")  # samples are read again


@pytest.mark.slow
@pytest.mark.parametrize("name", ["revnet", "reversible_transformer"])
def test_other_models(name):
    """Stages of several kinds and shapes: rows and one event after another agree."""
    arguments = {
        "revnet": {"widths": (2, 3), "blocks": (1, 2)},
        "reversible_transformer": {"stages": 4, "width": 8},
    }[name]
    shapes = {"revnet": 5, "reversible_transformer": 4}[name]
    task = getattr(problem, name)(shapes, batch_size=4, dtype="float64", **arguments)
    # Not Adam: it divides by how large a gradient is, and a bias before a batch norm has one that is rounding alone.
    algorithm = PETRA(optimizer=SGD)
    trace = timeline(task, Pipeline(), Gradients(25), algorithm=algorithm)
    record = Record(count=1, evaluate=False)
    rows, eager = (
        replay(trace, task, algorithm, record=record, executor=executor).final
        for executor in ("rows", "eager")
    )
    for a, b in zip(jax.tree.leaves(rows), jax.tree.leaves(eager), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"accumulate": 0}, "algorithm.accumulate: got 0"),
        ({"accumulate": 1.5}, "algorithm.accumulate: got 1.5"),
        ({"variant": "petro"}, "algorithm.variant: got 'petro'.*petra"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(InvalidInput, match=words):
        PETRA(optimizer=SGD, **arguments)


def test_what_does_not_fit_together():
    graph, algorithm = topology.named("path", n=4), PETRA(optimizer=SGD)
    with pytest.raises(InvalidInput, match="a model made of stages"):
        simulate(problem.quadratic(n=4, d=2), graph, algorithm, Pipeline(), stop=5.0)
    with pytest.raises(InvalidInput, match="workers_per_model: got 1; allowed: the stages of the model"):
        simulate(small(4, per_model=1), graph, algorithm, Pipeline(), stop=5.0)
    with pytest.raises(InvalidInput, match=r"workers_per_model: got 4.*1 with workers that hold all of it"):
        simulate(small(4), graph, decentral.Gossip(optimizer=SGD), stop=5.0)
    with pytest.raises(InvalidInput, match="protocol: got 'pipeline'"):
        simulate(small(4, per_model=1), graph, decentral.Gossip(optimizer=SGD), Pipeline(), stop=5.0)
    with pytest.raises(InvalidInput, match="micro_batches: got 4; allowed: 1"):
        simulate(small(4), graph, algorithm, Pipeline(schedule="1f1b", micro_batches=4), stop=5.0)
    with pytest.raises(InvalidInput, match="learning_rate"):
        simulate(small(4), graph, PETRA(), Pipeline(), stop=5.0)
    trace = timeline(small(4), Pipeline(), Gradients(4))
    wider = problem.reversible_mlp(4, stages=4, hidden=8, batch_size=8)
    for other in (wider, problem.reversible_mlp(4, stages=2, hidden=4, workers_per_model=2)):
        with pytest.raises(InvalidInput, match=r"trace: got .a trace of forward:stem"):
            replay(trace, other, algorithm)
    with pytest.raises(InvalidInput, match="algorithm: got 'Gossip'"):
        replay(trace, small(4), decentral.Gossip(optimizer=SGD))


@pytest.mark.slow
def test_a_run_that_diverges_says_where():
    task = small(4, dtype="float32")
    with pytest.raises(decentral.Diverged, match=r"the state of pipeline 0 .*backward|turn"):
        simulate(
            task, topology.named("path", n=4), PETRA(optimizer={"kind": "sgd", "learning_rate": 1e12}), Pipeline(), stop=200.0
        )  # fmt: skip
