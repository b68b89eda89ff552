"""Two executors, one result: rows, events one by one, chunks, widths, companions, derivatives, failures."""

import dataclasses
import functools
import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decentral
from decentral import (
    ADPSGD,
    DPSGD,
    SGD,
    SGP,
    A2CiD2,
    Algorithm,
    Cluster,
    Diverged,
    Gossip,
    InvalidInput,
    Links,
    Mailbox,
    Network,
    Poisson,
    Record,
    Rendezvous,
    Rounds,
    Server,
    Simulation,
    Time,
)
from decentral.engine.execute import executor, scan_rows
from decentral.engine.plan import make_plan
from decentral.engine.trace import Trace, merge
from decentral.experiment.entry import network_of
from decentral.problem import Quadratic, quadratic
from decentral.timing.compute import Exponential
from decentral.topology import named

N = 8
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
MOMENTUM = {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9}


def clocks(algorithm, n=N, **rates):
    topology = named("ring", n=n)
    return Poisson(**rates).network(topology, algorithm.demand(Network(topology)))


def timeline(algorithm, seeds=(0,), stop=30.0, n=N):
    return merge([Poisson().timeline(clocks(algorithm, n), Time(stop), seed) for seed in seeds])


@functools.cache
def noisy(dtype="float64", **options):
    """Quadratics with noise; the same object for the same arguments, so that tests share compiled programs."""
    return quadratic(N, **{"d": 3, "noise": 0.5, "initial": "per_worker", "dtype": dtype, **options})


def assert_close(got, expected, tolerance):
    """Every leaf, relative to its largest number."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max(initial=0) <= tolerance * np.abs(other).max(initial=1e-30)


def assert_metrics_close(got, expected, tolerance):
    assert got.keys() == expected.keys()
    for name in got:
        # A suboptimality is the difference of two losses: as exact as these.
        scale = np.abs(expected["loss"]).max() if name == "suboptimality" else 1e-3
        np.testing.assert_allclose(
            got[name], expected[name], rtol=tolerance, atol=tolerance * scale, err_msg=name
        )


@decentral.pytree
class Everything(Algorithm):
    """Draws at every turn: a noisy start, noisy steps, messages with a gradient of their own and noise; sending counts."""

    step: float = 0.05

    def init(self, params, key):
        return {
            "x": params + jax.random.uniform(key, params.shape, params.dtype),
            "sent": jnp.zeros((), jnp.int32),
        }

    def flow(self, state, dt):
        return state | {"x": state["x"] * jnp.exp(-0.01 * dt)}

    def point(self, state):
        return state["x"] / 2

    def update(self, state, gradient, key):
        noise = jax.random.uniform(key, gradient.shape, gradient.dtype)
        return state | {"x": state["x"] - self.step * (gradient + noise)}

    def message(self, state, local, key):
        noise = jax.random.uniform(key, state["x"].shape, state["x"].dtype)
        x = state["x"] - self.step * local.gradient(state["x"]) + noise
        return x, state | {"sent": state["sent"] + 1}

    def receive(self, state, message, mine, weight):
        return state | {"x": state["x"] + weight / 2 * (message - mine)}

    def estimate(self, state):
        return state["x"]


# -- rows are events one by one ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "dtype"),
    [
        (Everything(), "float64"),
        (A2CiD2(optimizer=MOMENTUM, order="released"), "float32"),
    ],
    ids=lambda a: type(a).__name__ if isinstance(a, Algorithm) else a,
)
def test_rows_are_events_one_by_one(algorithm, dtype):
    """Final states and metrics of two replicas, draws included."""
    trace = timeline(algorithm, seeds=(3, 4))
    assert len(trace) > 500
    record = Record(count=3, states=True, evaluate=False)
    rows, eager = (
        decentral.replay(
            trace, noisy(dtype), algorithm, network=clocks(algorithm), record=record, executor=which
        )
        for which in ("rows", "eager")
    )
    moved = np.abs(jax.tree.leaves(rows.final)[-1] - jax.tree.leaves(rows.states[0])[-1])
    assert moved.max() > 0.1
    for one, other in zip([rows.final, *rows.states], [eager.final, *eager.states], strict=True):
        assert_close(one, other, TOLERANCE[dtype])
    assert_metrics_close(rows.metrics, eager.metrics, 10 * TOLERANCE[dtype])
    if isinstance(algorithm, Everything):
        np.testing.assert_array_equal(rows.final["sent"], np.bincount(trace.operands[trace.op == 1].ravel()))


def test_draws_depend_on_seed_worker_and_count():
    """One event each: the same worker and count under the same seed draw the same, everything else differs."""
    problem = Quadratic.of(np.ones(4), np.zeros((4, 1)), noise=1.0)
    still = Gossip(optimizer={"kind": "sgd", "learning_rate": 1.0})

    def draw(seed, worker, count):
        """The noise of one gradient: x = -(x + noise) from x = 0 up to the first, so look at differences."""
        workers = [[worker, -1]] * (count + 1)
        trace = Trace.from_arrays(np.arange(count + 1.0), [0] * (count + 1), workers, n_workers=4, seed=seed)
        return float(decentral.replay(trace, problem, still, initial=np.zeros(1)).final.x[worker, 0])

    # x <- x - (x + noise): after each gradient x is minus that gradient's noise.
    draws = [draw(*who) for who in ((0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 1, 0))]
    assert len(set(draws)) == 4
    assert draw(0, 1, 0) == draws[0]


def test_row_widths_do_not_matter():
    """Nor does a scan over the rows in place of a loop: the pure core on other plans of the same trace."""
    algorithm = A2CiD2(optimizer=MOMENTUM)
    trace = timeline(algorithm)
    record = Record(events=(len(trace),), evaluate=False)
    simulation = Simulation(trace, noisy(), algorithm, network=clocks(algorithm), record=record)
    start = jax.tree.map(jnp.copy, simulation.banks)
    expected = simulation.run().final
    for widths in ((1, 1), (16, 9)):
        plan = make_plan(trace, widths=widths)
        rows = plan.rows(0, plan.n_rows, plan.n_rows, simulation.dtype)
        after = jax.jit(scan_rows, static_argnums=0)(simulation.program, start, rows, simulation.context)
        assert_close(jax.device_get(after["worker"]), expected, 1e-12)
    assert simulation.plan.widths not in [(1, 1), (16, 9)]


def test_recording_changes_nothing():
    """A record is a barrier of the plan, and nothing else."""
    algorithm = A2CiD2(optimizer=MOMENTUM)
    trace = timeline(algorithm)
    often, once = (
        decentral.replay(
            trace, noisy(), algorithm, network=clocks(algorithm), record=Record(count=count, evaluate=False)
        )
        for count in (40, 1)
    )
    assert_close(often.final, once.final, 1e-12)
    last = [result.metrics["consensus_distance"][0, -1] for result in (often, once)]
    assert last[0] == pytest.approx(last[1], rel=1e-12)


# -- companions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problems", "tolerance"),
    [
        pytest.param([noisy("float32")] * 3, 1e-5, id="float32"),
        pytest.param([noisy(seed=seed) for seed in (3, 7, 11)], 1e-12, id="data of its own"),
    ],
)
def test_seed_alone_is_seed_among_many(problems, tolerance):
    """Identical trace hash, metrics to rounding after 1,000 events (issue 2, determinism)."""
    arguments = named("ring", n=N), A2CiD2(optimizer=MOMENTUM)
    options = {"stop": 90.0, "record": Record(count=4)}
    many = decentral.simulate(problems, *arguments, seeds=[3, 7, 11], **options)
    alone = decentral.simulate(problems[1], *arguments, seeds=[7], **options)
    assert len(alone.trace) > 1000
    assert many.trace.replica(1).hash == alone.trace.hash
    assert many.trace.replica(0).hash != alone.trace.hash
    mine = {name: values[1:2] for name, values in many.metrics.items()}
    assert_metrics_close(mine, alone.metrics, tolerance)
    assert len(set(many.metrics["loss"][:, -1])) == 3, "seeds differ"
    assert_close(jax.tree.map(lambda leaf: leaf[N : 2 * N], many.final), alone.final, tolerance)


def test_a_seed_that_stops_by_gradients_ends_at_its_own_time():
    """Events, record times and metrics are those of the seed alone, though each seed needs another time."""
    options = {"stop": decentral.Gradients(500), "record": Record(count=5)}
    arguments = noisy(), named("ring", n=N), Gossip()
    many = decentral.simulate(*arguments, seeds=[3, 7], **options)
    alone = decentral.simulate(*arguments, seeds=[7], **options)
    assert alone.trace.counts["gradient"] == 500
    assert many.trace.replica(1).hash == alone.trace.hash
    assert many.metrics["time_s"][0, -1] != many.metrics["time_s"][1, -1]
    np.testing.assert_array_equal(many.metrics["gradients"][:, -1], 500)
    mine = {name: values[1:] for name, values in many.metrics.items()}
    assert_metrics_close(mine, alone.metrics, 1e-12)


def test_divergence_after_the_last_record_is_noticed():
    wild = Gossip(optimizer={"kind": "sgd", "learning_rate": 1e100})
    with pytest.raises(decentral.Diverged) as raised:
        decentral.simulate(noisy(), named("ring", n=N), wild, stop=50.0, record=Record(times_s=(0.0, 0.01)))
    assert raised.value.time_s > 0.01
    assert raised.value.result.metrics["loss"].shape == (1, 2)


def test_replicas_with_other_learning_rates_are_other_runs():
    """One trace, one compilation, three step sizes; each as if alone."""
    rates, problem = (0.01, 0.05, 0.2), noisy()
    variants = [A2CiD2(optimizer={"kind": "sgd", "learning_rate": rate}) for rate in rates]
    single = timeline(variants[0])
    record = Record(count=2, evaluate=False)
    together = decentral.replay(
        merge([single] * 3), problem, variants, network=clocks(variants[0]), record=record
    )
    for index, variant in enumerate(variants):
        alone = decentral.replay(single, problem, variant, network=clocks(variant), record=record)
        mine = {name: values[index : index + 1] for name, values in together.metrics.items()}
        assert_metrics_close(mine, alone.metrics, 1e-12)
    assert len(set(together.metrics["consensus_distance"][:, -1])) == 3


# -- chunks, compilation, checkpoints ----------------------------------------------------------------------------------


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of about 64 events."""
    monkeypatch.setattr(inspect.getmodule(Simulation), "CHUNK_EVENTS", 64)


def test_compiled_once_per_shape(small_chunks):
    """Several chunks, a warm-up, and a second run with the same objects: one compilation."""
    algorithm, problem = A2CiD2(optimizer=MOMENTUM), noisy.__wrapped__()  # nobody else's
    trace, record = timeline(algorithm), Record(events=(100, 300), evaluate=False)
    for _ in range(2):
        simulation = Simulation(trace, problem, algorithm, network=clocks(algorithm), record=record)
        chunks = [last - first for first, last, *_ in simulation.pieces]
        assert len(chunks) > 5
        assert len(set(chunks)) > 1, "the last chunk of a segment is shorter"
        simulation.run()
    assert executor(simulation.program).run_rows._cache_size() == 1
    other = dataclasses.replace(algorithm, optimizer=MOMENTUM | {"learning_rate": 0.01})
    simulation = Simulation(trace, problem, other, network=clocks(algorithm), record=record)
    simulation.run()
    assert executor(simulation.program).run_rows._cache_size() == 1, "another step size is no other program"


def test_chunks_do_not_matter(small_chunks, monkeypatch):
    algorithm, problem = A2CiD2(optimizer=MOMENTUM), noisy()
    trace = timeline(algorithm)
    runs = []
    for events in (64, 2**16):
        monkeypatch.setattr(inspect.getmodule(Simulation), "CHUNK_EVENTS", events)
        simulation = Simulation(trace, problem, algorithm, network=clocks(algorithm), record=Record(count=3))
        runs.append((len(simulation.pieces), simulation.run()))
    assert runs[0][0] > runs[1][0]
    assert_close(runs[0][1].final, runs[1][1].final, 1e-12)
    assert_metrics_close(runs[0][1].metrics, runs[1][1].metrics, 1e-12)


def test_a_restored_run_is_the_same_run(small_chunks):
    """Stopped after any piece, taken up by a new object: metrics and states bit for bit."""
    algorithm = A2CiD2(optimizer=MOMENTUM)
    arguments = timeline(algorithm), noisy(), algorithm
    options = {"network": clocks(algorithm), "record": Record(count=3)}
    whole = Simulation(*arguments, **options)
    snapshots = [whole.snapshot()]
    uninterrupted = whole.run(after_step=lambda: snapshots.append(whole.snapshot()))
    assert len(snapshots) > 7
    for snapshot in snapshots:
        again = Simulation(*arguments, **options)
        again.restore(snapshot)
        resumed = again.run()
        for name, values in uninterrupted.metrics.items():
            np.testing.assert_array_equal(resumed.metrics[name], values, err_msg=name)
        for one, other in zip(
            jax.tree.leaves(resumed.final), jax.tree.leaves(uninterrupted.final), strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_snapshots_of_another_run_are_refused():
    algorithm = Gossip(optimizer=MOMENTUM)
    simulation = Simulation(timeline(algorithm), noisy(), algorithm)
    snapshot = simulation.snapshot()
    other = Simulation(timeline(algorithm), noisy(d=2), algorithm)
    with pytest.raises(InvalidInput, match="checkpoint: got 'states of another shape'"):
        other.restore(snapshot)


def test_the_same_twice_is_the_same():
    """Same spec and seed: bit-identical metrics."""
    first, second = (
        decentral.simulate(noisy(), named("ring", n=N), A2CiD2(), stop=20.0, record=Record(count=3))
        for _ in range(2)
    )
    assert first.trace.hash == second.trace.hash
    for name, values in first.metrics.items():
        np.testing.assert_array_equal(second.metrics[name], values)


# -- the core is a pure function ---------------------------------------------------------------------------------------


def core(algorithm, problem, trace):
    """``(loss(algorithm), numbers)``: mean squared distance to the optimum after all rows of a trace."""
    simulation = Simulation(trace, problem, algorithm, network=clocks(algorithm))
    plan = make_plan(trace)
    rows = plan.rows(0, plan.n_rows, plan.n_rows, simulation.dtype)

    def loss(numbers):
        context = simulation.context._replace(algorithm=numbers)
        after = scan_rows(simulation.program, simulation.banks, rows, context)
        return jnp.mean((after["worker"].x - simulation.targets.optimum) ** 2)

    return loss, simulation.context.algorithm


def test_the_core_differentiates():
    """d loss / d every hyper-parameter, against central differences of step 1e-5 (error O(1e-10), here below 1e-6)."""
    algorithm = A2CiD2(optimizer=MOMENTUM)
    loss, numbers = core(algorithm, noisy(noise=0.0), timeline(algorithm, stop=8.0))
    slopes = jax.jit(jax.grad(loss))(numbers)
    flat, rebuild = jax.flatten_util.ravel_pytree(numbers)
    compiled = jax.jit(lambda flat: loss(rebuild(flat)))
    for k, slope in enumerate(jax.flatten_util.ravel_pytree(slopes)[0]):
        step = jnp.zeros_like(flat).at[k].set(1e-5)
        difference = (compiled(flat + step) - compiled(flat - step)) / 2e-5
        assert abs(slope) > 1e-4, "the loss depends on each"
        assert slope == pytest.approx(float(difference), rel=1e-6)


def test_the_core_vmaps_over_learning_rates():
    algorithm, problem = A2CiD2(optimizer=MOMENTUM), noisy(noise=0.0)
    trace = timeline(algorithm, stop=8.0)
    loss, numbers = core(algorithm, problem, trace)
    rates = jnp.array([0.01, 0.05, 0.1])

    def at(rate):
        optimizer = numbers.optimizer.with_learning_rate(rate)
        return loss(dataclasses.replace(numbers, optimizer=optimizer))

    together = jax.jit(jax.vmap(at))(rates)
    alone = [float(jax.jit(at)(rate)) for rate in rates]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    assert len(set(alone)) == 3
    final = decentral.replay(trace, problem, algorithm, network=clocks(algorithm)).final.x
    assert alone[1] == pytest.approx(np.mean((final - problem.optimum) ** 2), rel=1e-12)


# -- divergence --------------------------------------------------------------------------------------------------------


def first_bad(trace, curvature, rate, start):
    """Gossip on scalar quadratics in plain NumPy float32: the first event that leaves a number that is not finite."""
    x = np.full(trace.total_workers, start, np.float32)
    rate, half = np.float32(rate), np.float32(0.5)
    with np.errstate(all="ignore"):
        for event, (op, operands) in enumerate(zip(trace.op, trace.operands, strict=True)):
            if op == 0:
                i = operands[0]
                x[i] = x[i] - rate * (np.float32(curvature) * x[i])
                bad = [i]
            else:
                i, j = operands
                x[i], x[j] = x[i] - half * (x[i] - x[j]), x[j] - half * (x[j] - x[i])
                bad = [i, j]
            for worker in bad:
                if not np.isfinite(x[worker]):
                    return event, worker
    return None


@pytest.mark.parametrize("which", ["rows", "eager"])
def test_divergence_names_the_first_bad_event(which):
    """Against a brute-force search; the bad replica is the second: its rate is too large."""
    rates, start = (0.1, 12.0), 1.0
    trace = timeline(Gossip(optimizer=MOMENTUM), seeds=(5, 6), stop=60.0)
    problem = Quadratic.of(np.ones(N), np.zeros((N, 1)), dtype="float32")
    algorithms = [Gossip(optimizer={"kind": "sgd", "learning_rate": rate}) for rate in rates]
    event, worker = first_bad(trace.replica(1), 1.0, rates[1], start)
    time_s = trace.replica(1).time_s[event]
    record = Record(times_s=(0.0, time_s / 5, time_s / 3, time_s * 1.01, trace.horizon_s))
    with pytest.raises(Diverged, match=rf"worker {worker} \(seed 6\) .*Try a smaller step size") as caught:
        decentral.replay(trace, problem, algorithms, record=record, initial=np.array([start]), executor=which)
    failure = caught.value
    assert trace.time_s[failure.event] == failure.time_s == time_s
    assert trace.operands[failure.event, 0] >= N
    assert (failure.worker, failure.seed) == (worker, 6)
    kept = failure.result.metrics
    np.testing.assert_allclose(kept["time_s"][0], record.times_s[:3])
    assert np.isfinite(kept["consensus_distance"]).all()
    assert kept["loss"][1, 2] > 1e6 * kept["loss"][1, 1] > 0, "it was on its way"
    assert kept["loss"][0, 2] < kept["loss"][0, 0]


def test_divergence_before_the_first_record_keeps_nothing_and_still_says_where():
    trace = Trace.from_arrays([1.0, 2.0, 3.0], [0, 0, 0], [[1, -1]] * 3, n_workers=2, seed=9)
    problem = Quadratic.of(np.ones(2), np.ones((2, 1)))
    wild = Gossip(optimizer={"kind": "sgd", "learning_rate": 1e200})
    with pytest.raises(Diverged) as caught:
        decentral.replay(trace, problem, wild, record=Record(events=(3,)))
    assert (caught.value.event, caught.value.worker, caught.value.time_s) == (1, 1, 2.0)
    assert caught.value.result.metrics["time_s"].shape == (1, 0)


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"executor": "row"}, "executor: got 'row'"),
        ({"problem": quadratic(5, d=1)}, "problem.n_workers: got 5; allowed: the 8 workers of the trace"),
        ({"initial": np.zeros(7)}, "initial: got 'shape"),
        ({"initial": {"x": np.zeros(3)}}, "initial: got PyTreeDef"),
        (
            {"algorithm": [Gossip(optimizer=MOMENTUM)] * 2},
            "algorithm: got '2 of them'; allowed: one, or one per",
        ),
        ({"algorithm": Gossip}, "algorithm: got .*Gossip.*an instance of decentral.Algorithm"),
        ({"algorithm": Gossip()}, "chi: got None"),
        ({"record": Record(events=(10**6,))}, "record.events: got 1000000"),
        ({"record": Record(times_s=(1e6,))}, "record.times_s: got 1000000.0"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    algorithm = Gossip(optimizer=MOMENTUM)
    options: dict[str, Any] = {
        "trace": timeline(algorithm, stop=2.0),
        "problem": noisy(),
        "algorithm": algorithm,
    }
    with pytest.raises(InvalidInput, match=message):
        decentral.replay(**options | change)


def test_replicas_of_different_structure_are_refused():
    mixed = [Gossip(optimizer=MOMENTUM), Gossip(optimizer={"kind": "adam", "learning_rate": 0.1})]
    with pytest.raises(InvalidInput, match="replicas of one structure"):
        decentral.replay(timeline(mixed[0], seeds=(0, 1), stop=2.0), noisy(), mixed)


@pytest.mark.parametrize("seeds", [0, [], [1, 1], [-1], [2**31], [0.5], [True]])
def test_bad_seeds_are_refused(seeds):
    with pytest.raises(InvalidInput, match="seeds: got"):
        decentral.simulate(noisy(), named("ring", n=N), Gossip(), stop=1.0, seeds=seeds)


@pytest.mark.parametrize(
    "d",
    [37, pytest.param(100_003, marks=pytest.mark.slow)],
    ids=["many_events_a_row", "few_events_a_row"],
)
@pytest.mark.parametrize(
    ("protocol", "algorithm"),
    [
        (Poisson(), A2CiD2(MOMENTUM)),
        (Rendezvous(), A2CiD2(MOMENTUM)),
        (Rendezvous(messages="atomic"), Gossip(MOMENTUM)),
        (Rendezvous(messages="stale"), Gossip(MOMENTUM)),
        (Mailbox(), ADPSGD(MOMENTUM)),
        (Mailbox(), SGP(MOMENTUM)),
        (Rounds(overlap=True), DPSGD(MOMENTUM)),
        (Server(), SGD(MOMENTUM)),
    ],
    ids=["poisson", "paired", "atomic", "stale", "ad_psgd", "push_sum", "overlapped_rounds", "server"],
)
def test_a_row_copies_no_bank(protocol, algorithm, d):
    """XLA does, to be safe, where it cannot tell that reads come before writes, or where a row has one operand of a bank."""
    n, seeds = 23, 2
    problem = quadratic(n, d=d, dtype="float32", structure="diagonal")
    cluster = None if isinstance(protocol, Poisson) else Cluster(Exponential(), Links(latency_s=0.3))
    network = network_of(protocol, named("ring", n=n), algorithm, problem, cluster)
    trace = merge([protocol.timeline(network, Time(10.0), seed) for seed in range(seeds)])
    run = Simulation(trace, problem, algorithm, network=network, record=Record(count=1, evaluate=False))
    rows, compiled = run.plan.rows(0, 0, run.capacity, run.dtype), executor(run.program)
    if run.program.active_groups():
        groups = run.plan.group_rows(0, 0, run.group_capacity, run.dtype)
        ends = np.zeros(run.group_capacity, np.int32)
        lowered = compiled.run_sections.lower(run.banks, rows, groups, ends, 0, 0, run.context)
    else:
        lowered = compiled.run_rows.lower(run.banks, rows, 0, 0, run.context)
    copied = re.findall(r"= \w+\[([\d,]+)\]\S* copy\(", lowered.compile().as_text())
    banks = {
        ",".join(map(str, leaf.shape)): f"{name} {leaf.shape}"
        for name, bank in run.banks.items()
        for leaf in jax.tree.leaves(bank)
        if leaf.shape[0] > seeds  # a server's own state is an event's
    }
    assert not [banks[shape] for shape in copied if shape in banks], run.plan.widths
