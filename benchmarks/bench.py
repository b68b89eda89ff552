"""Speed of the simulator beside what one would otherwise write: one table, every ratio from this run.

    python benchmarks/bench.py [--quick] [--json FILE] [--cores N]

The two sides of a ratio take turns and the best time of each counts. Seeds are fixed and event counts asserted, and so
is that both sides reach the same final state. By default the process keeps to one core, so that both sides have the
same hardware whatever else runs on the machine; ``--cores 0`` leaves it alone. Exit status 1: a required ratio was
missed (full mode), or a check failed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

for _library in ("OPENBLAS", "OMP", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

import numpy as np  # noqa: E402  (reads the thread counts above)

LEARNING_RATE = 0.1
L2 = 1e-3
DIMENSION, SAMPLES = 50, 100

RING = ((16, 4000.0), (64, 1000.0), (256, 250.0), (1024, 65.0), (4096, 16.0))
"""Workers and simulated seconds: about 100,000 events each."""

COUNTS = {  # (graph, workers, simulated seconds, gradients per second) -> (gradients, exchanges) at seed 0
    ("ring", 16, 4000.0, 1.0): (64017, 32052),
    ("ring", 64, 30.0, 1.0): (1989, 972),
    ("ring", 64, 60.0, 1.0): (3863, 1967),
    ("ring", 64, 100.0, 1.0): (6456, 3241),
    ("ring", 64, 200.0, 1.0): (12772, 6499),
    ("ring", 64, 500.0, 1.0): (31858, 16015),
    ("ring", 64, 1000.0, 1.0): (64065, 32146),
    ("ring", 64, 2000.0, 1.0): (127525, 63851),
    ("ring", 64, 10420.0, 1.0): (667639, 334461),
    ("ring", 256, 50.0, 1.0): (12926, 6354),
    ("ring", 256, 250.0, 1.0): (64046, 31737),
    ("ring", 1024, 65.0, 1.0): (66441, 33394),
    ("ring", 4096, 4.0, 1.0): (16510, 8409),
    ("ring", 4096, 16.0, 1.0): (65742, 33131),
    ("ring", 100_000, 66.65, 1.0): (6664631, 3329932),
    ("ring", 64, 15.0, 0.0): (0, 475),
    ("ring", 64, 60.0, 0.0): (0, 1967),
    ("ring", 100_000, 20.0, 0.0): (0, 999331),
    ("ring", 100_000, 200.0, 0.0): (0, 9997786),
    ("star", 300, 15.0, 1.0): (4580, 4346),
    ("star", 300, 60.0, 1.0): (18104, 17755),
}

TIMELINES = ((64, 4096.0), (1024, 256.0), (16_384, 16.0))
"""Workers and simulated seconds: about 260,000 gradients each."""
LONGER = {"rounds": 8, "all-reduce": 8}
"""So many times as long: 16 s are five rounds, and most of their cost would be the start's."""

EVENTS = {  # protocol -> {(workers, simulated seconds): events} at seed 0 on a ring
    "poisson": {
        (64, 4096.0): 392_530,
        (1024, 256.0): 392_169,
        (16_384, 16.0): 393_075,
        (1024, 64.0): 98_313,
        (64, 512.0): 49_014,
        (64, 128.0): 12_331,
        (16, 16.0): 400,
    },
    "rendezvous, paired": {
        (64, 4096.0): 914_091,
        (1024, 256.0): 912_519,
        (16_384, 16.0): 903_965,
        (1024, 64.0): 227_672,
        (64, 512.0): 114_260,
        (64, 128.0): 28_616,
        (16, 16.0): 870,
    },
    "rendezvous, atomic": {
        (64, 4096.0): 653_670,
        (1024, 256.0): 653_917,
        (16_384, 16.0): 652_142,
        (64, 512.0): 81_802,
        (64, 128.0): 20_449,
        (16, 16.0): 622,
    },
    "mailbox": {
        (64, 4096.0): 1_570_239,
        (1024, 256.0): 1_571_653,
        (16_384, 16.0): 1_543_262,
        (1024, 64.0): 392_067,
        (64, 512.0): 196_580,
        (64, 128.0): 48_966,
        (16, 16.0): 1_461,
    },
    "rounds": {
        (64, 32768.0): 1_063_663,
        (1024, 2048.0): 805_617,
        (16_384, 128.0): 641_854,
        (64, 512.0): 16_534,
        (64, 128.0): 4_058,
    },
    "all-reduce": {
        (64, 32768.0): 12_841,
        (1024, 2048.0): 574,
        (16_384, 128.0): 27,
        (64, 512.0): 200,
        (64, 128.0): 49,
    },
    "server": {
        (64, 4096.0): 713_809,
        (1024, 256.0): 714_866,
        (16_384, 16.0): 709_163,
        (64, 512.0): 89_397,
        (64, 128.0): 22_300,
        (16, 16.0): 683,
    },
}

PEERS = (
    ("decent-bench 0.2.2, NumPy, synchronous", 40_300, "agent-steps/s"),
    ("decent-bench 0.3.0, NumPy, synchronous", 32_100, "agent-steps/s"),
    ("dasklearn, learning, 1 broker + 1 worker", 170, "agent-steps/s"),
    ("gossipy, PUSH MERGE_UPDATE", 950, "messages/s"),
    ("DADAO, its authors' code", 2_850, "events/s"),
)


@dataclass
class Line:
    """One line of the table."""

    what: str
    measured: float | None
    unit: str
    required: str = ""
    ok: bool | None = None


class Table:
    """Lines printed as they are measured, and whether all requirements held."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def section(self, title: str) -> None:
        print(f"\n{title}", flush=True)

    def add(
        self,
        what: str,
        measured: float | None,
        unit: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> None:
        required, ok = "", None
        if at_least is not None:
            required, ok = f">= {at_least:,g}", measured is not None and measured >= at_least
        elif at_most is not None:
            required, ok = f"<= {at_most:,g}", measured is not None and measured <= at_most
        line = Line(what, measured, unit, required, ok)
        self.lines.append(line)
        number = (
            "-" if measured is None else f"{measured:,.0f}" if abs(measured) >= 1000 else f"{measured:.3g}"
        )
        verdict = {None: "", True: "ok", False: "MISSED"}[ok]
        print(f"  {what:<74} {number:>12} {unit:<15} {required:>12}  {verdict}".rstrip(), flush=True)

    @property
    def missed(self) -> list[str]:
        return [line.what for line in self.lines if line.ok is False]


def take_turns(sides: dict[Any, Callable[[], float]], rounds: int) -> dict[Any, float]:
    """The best time of each side, measured A B A B ..."""
    times = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            times[name].append(side())
    return {name: min(values) for name, values in times.items()}


def clock(function: Callable) -> Callable[[], float]:
    """A function that calls ``function`` and returns the seconds it took."""

    def timed() -> float:
        began = time.perf_counter()
        function()
        return time.perf_counter() - began

    return timed


def same_state(what: str, ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> None:
    """Each component (second axis) agrees relative to its own largest value."""
    scale = np.abs(theirs).max(axis=(0, 2))
    error = (np.abs(ours - theirs).max(axis=(0, 2)) / np.where(scale > 0, scale, 1.0)).max()
    if not error <= tolerance:
        raise SystemExit(f"{what}: final states differ by {error:.2g}, more than {tolerance:g}")


# -- workloads ---------------------------------------------------------------------------------------------------------


def make_trace(graph: str, n: int, time_s: float, algorithm, *, gradients_per_s: float = 1.0):
    """``(trace, network)`` of Poisson clocks at seed 0, its events counted."""
    from decentral import Network, Poisson, Time, topology

    protocol, workers = Poisson(gradients_per_s=gradients_per_s), topology.named(graph, n=n)
    network = protocol.network(workers, algorithm.demand(Network(workers)))
    trace = protocol.timeline(network, Time(time_s), 0)
    count_events(graph, n, time_s, gradients_per_s, trace)
    return trace, network


def count_events(graph: str, n: int, time_s: float, gradients_per_s: float, trace) -> None:
    """The trace is the one this benchmark was written for.

    Raises:
        SystemExit: its counts are others.
    """
    key, counts = (graph, n, time_s, gradients_per_s), (trace.counts["gradient"], trace.counts["exchange"])
    if COUNTS.get(key) != counts:
        raise SystemExit(f"{key} has {counts} gradients and exchanges, {COUNTS.get(key)} expected")


def protocols() -> dict[str, tuple]:
    """Name -> a protocol and an algorithm for it."""
    import decentral

    sgd = {"kind": "sgd", "learning_rate": LEARNING_RATE}
    gossip, server = decentral.Gossip(sgd), decentral.SGD(sgd)
    return {
        "poisson": (decentral.Poisson(), gossip),
        "rendezvous, paired": (decentral.Rendezvous(), gossip),
        "rendezvous, atomic": (decentral.Rendezvous(messages="atomic"), gossip),
        "mailbox": (decentral.Mailbox(), decentral.ADPSGD(sgd)),
        "rounds": (decentral.Rounds(), decentral.DPSGD(sgd)),
        "all-reduce": (decentral.AllReduce(collective="tree"), server),
        "server": (decentral.Server(), server),
    }


def on_cluster(name: str, n: int):
    """``(timeline, network, algorithm)`` of a protocol on a ring; ``timeline(time_s)`` is its trace at seed 0.

    Gradients take a second (log-normal), messages of DIMENSION floats 50 ms and next to nothing for the network cards. Poisson
    clocks know neither.
    """
    from decentral import Cluster, Links, Network, Time, topology
    from decentral.timing.compute import LogNormal

    protocol, algorithm = protocols()[name]
    cluster = Cluster(LogNormal(1.0, 0.3), Links(latency_s=0.05, bandwidth_bytes_per_s=1e8))
    workers, size = topology.named("ring", n=n), 4 * DIMENSION
    demand = replace(algorithm.demand(Network(workers)), message_bytes=size, model_bytes=size)
    network = protocol.network(workers, demand, None if name == "poisson" else cluster)
    return (lambda time_s: protocol.timeline(network, Time(time_s), 0)), network, algorithm


def check_events(name: str, n: int, time_s: float, trace) -> None:
    """The trace on the cluster is the one this benchmark was written for.

    Raises:
        SystemExit: its number of events is another.
    """
    if EVENTS[name].get((n, time_s)) != len(trace):
        raise SystemExit(
            f"{name}, n={n}, {time_s:g} s: {len(trace)} events, {EVENTS[name].get((n, time_s))} expected"
        )


def logistic(n: int):
    """l2-logistic regression with planted labels, float32: (problem, features, labels)."""
    from decentral.problem import logistic_from_arrays

    rng = np.random.default_rng(n)
    features = rng.standard_normal((n, SAMPLES, DIMENSION), dtype=np.float32)
    noise = rng.standard_normal((n, SAMPLES), dtype=np.float32)
    labels = np.sign(features @ rng.standard_normal(DIMENSION, dtype=np.float32) + noise)
    return logistic_from_arrays(features, labels, l2=L2, dtype="float32"), features, labels


def numpy_a2cid2(trace, features, labels, algorithm) -> np.ndarray:
    """The same events one after another in NumPy: float32, buffers made once, ``math`` for scalars, lists of rows."""
    n, m, d = features.shape
    real = np.float32
    x, x_tilde = ([np.zeros(d, real) for _ in range(n)] for _ in range(2))
    data, target, last = list(features), list(labels), [0.0] * n
    scores, slope, spare, gap = np.empty(m, real), np.empty(d, real), np.empty(d, real), np.empty(d, real)
    alpha, alpha_tilde, rate = real(algorithm.alpha), real(algorithm.alpha_tilde), real(LEARNING_RATE)
    shrink, one, scale, decay = real(L2), real(1), real(-1 / m), -2.0 * float(algorithm.eta)
    dot, multiply, subtract, add, divide, exp = np.dot, np.multiply, np.subtract, np.add, np.divide, np.exp
    scalar_exp = math.exp
    for now, op, (i, j) in zip(
        trace.time_s.tolist(), trace.op.tolist(), trace.operands.tolist(), strict=True
    ):
        a, a_tilde = x[i], x_tilde[i]
        subtract(a_tilde, a, gap)
        multiply(gap, real(0.5 - 0.5 * scalar_exp(decay * (now - last[i]))), gap)
        add(a, gap, a)
        subtract(a_tilde, gap, a_tilde)
        last[i] = now
        if op == 0:
            y, own = target[i], data[i]
            dot(own, a, scores)
            multiply(scores, y, scores)
            exp(scores, scores)
            add(scores, one, scores)
            divide(y, scores, scores)
            multiply(scores, scale, scores)
            dot(scores, own, slope)
            multiply(a, shrink, spare)
            add(slope, spare, slope)
            multiply(slope, rate, slope)
            subtract(a, slope, a)
            subtract(a_tilde, slope, a_tilde)
        else:
            b, b_tilde = x[j], x_tilde[j]
            subtract(b_tilde, b, gap)
            multiply(gap, real(0.5 - 0.5 * scalar_exp(decay * (now - last[j]))), gap)
            add(b, gap, b)
            subtract(b_tilde, gap, b_tilde)
            last[j] = now
            subtract(a, b, gap)
            multiply(gap, alpha_tilde, slope)
            subtract(a_tilde, slope, a_tilde)
            add(b_tilde, slope, b_tilde)
            multiply(gap, alpha, gap)
            subtract(a, gap, a)
            add(b, gap, b)
    return np.stack([np.stack(x), np.stack(x_tilde)], axis=1)


def numpy_rendezvous(trace, features, labels, algorithm) -> np.ndarray:
    """Gossip's starts and commits one after another in NumPy, what is under way in dictionaries; otherwise as above."""
    n, m, d = features.shape
    real = np.float32
    x, points, gaps = [np.zeros(d, real) for _ in range(n)], {}, {}
    data, target = list(features), list(labels)
    scores, slope, spare = np.empty(m, real), np.empty(d, real), np.empty(d, real)
    alpha, rate, shrink, one, scale = (real(v) for v in (algorithm.alpha, LEARNING_RATE, L2, 1, -1 / m))
    dot, multiply, subtract, add, divide, exp = np.dot, np.multiply, np.subtract, np.add, np.divide, np.exp
    names = [op.name for op in trace.ops]
    start, commit, meet = (
        names.index(name) for name in ("gradient_start", "gradient_commit", "exchange_start")
    )
    for op, (i, j, first, second) in zip(trace.op.tolist(), trace.operands.tolist(), strict=True):
        a = x[i]
        if op == start:
            points[j] = a.copy()
        elif op == commit:
            point, y, own = points.pop(j), target[i], data[i]
            dot(own, point, scores)
            multiply(scores, y, scores)
            exp(scores, scores)
            add(scores, one, scores)
            divide(y, scores, scores)
            multiply(scores, scale, scores)
            dot(scores, own, slope)
            multiply(point, shrink, spare)
            add(slope, spare, slope)
            multiply(slope, rate, slope)
            subtract(a, slope, a)
        elif op == meet:
            gap = x[j] - a
            multiply(gap, alpha, gap)
            gaps[first], gaps[second] = gap, -gap
        else:
            add(a, gaps.pop(j), a)
    return np.stack(x)


def synchronous_scan(problem, n: int, steps: int) -> Callable[[], float]:
    """Every worker takes a gradient and averages with its two neighbours, ``steps`` times in a jitted ``lax.scan``."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def run(x, shards):
        def step(x, _):
            slope = jax.vmap(problem.full_gradient)(x, shards)
            mixed = (x + jnp.roll(x, 1, 0) + jnp.roll(x, -1, 0)) / 3
            return mixed - LEARNING_RATE * slope, None

        return jax.lax.scan(step, x, None, length=steps)[0]

    start = jnp.zeros((n, DIMENSION), jnp.float32)
    call = lambda: run(start, problem.shards).block_until_ready()  # noqa: E731
    call()
    return clock(call)


# -- measurements ------------------------------------------------------------------------------------------------------


def ring(table: Table, quick: bool) -> None:
    """The A2CiD2 ring: rows, NumPy, eager, a synchronous scan."""
    import decentral
    from decentral.engine.execute import executor

    table.section(
        f"A2CiD2 on a ring, logistic regression, d={DIMENSION}, {SAMPLES} samples per worker, float32"
    )
    sizes = ((64, 200.0), (256, 50.0), (4096, 4.0)) if quick else RING
    runs, events_of = {}, {}
    for n, time_s in sizes:
        problem, features, labels = logistic(n)
        algorithm = decentral.A2CiD2(optimizer={"kind": "sgd", "learning_rate": LEARNING_RATE})
        trace, network = make_trace("ring", n, time_s, algorithm)
        events, gradients = len(trace), trace.counts["gradient"]
        final = {}

        def rows(trace=trace, problem=problem, algorithm=algorithm, network=network, final=final) -> float:
            record = decentral.Record(count=1, evaluate=False)
            result = decentral.replay(trace, problem, algorithm, network=network, record=record)
            final["rows"], final["algorithm"] = result.final, result.algorithm
            final["compile"] = result.wall_s["compile"]
            return result.wall_s["run"]

        rows()
        first_compile = final["compile"]

        def loop(trace=trace, features=features, labels=labels, final=final) -> None:
            final["loop"] = numpy_a2cid2(trace, features, labels, final["algorithm"])

        steps = max(1, gradients // n)
        sides = {"rows": rows, "loop": clock(loop), "scan": synchronous_scan(problem, n, steps)}
        best = take_turns(sides, 3 if quick else 5)
        ours = np.stack([np.asarray(final["rows"].x), np.asarray(final["rows"].x_tilde)], axis=1)
        same_state(f"A2CiD2, n={n}", ours, final["loop"], 1e-4)
        runs[n], events_of[n] = rows, events
        table.add(f"n={n}: rows", events / best["rows"], "events/s")
        table.add(
            f"n={n}: plain NumPy loop over the same {events:,} events", events / best["loop"], "events/s"
        )
        at_least = 3.0 if n == 64 else None
        table.add(f"n={n}: rows / NumPy", best["loop"] / best["rows"], "x", at_least=at_least)
        scan_rate = n * steps / best["scan"]
        table.add(f"n={n}: synchronous vmapped scan", scan_rate, "gradients/s")
        table.add(
            f"n={n}: share of the scan's gradients/s that rows reach",
            gradients / best["rows"] / scan_rate,
            "",
        )
        if n == 64:
            simulation = decentral.Simulation(trace, problem, algorithm, network=network)
            table.add("n=64: time to compile run and record", first_compile, "s")
            compiled = executor(simulation.program).run_rows._cache_size()
            table.add("n=64: compilations of the row loop in all of these runs", compiled, "", at_most=1)
            short, _ = make_trace("ring", n, 30.0, algorithm)

            def eager(trace=short, problem=problem, algorithm=algorithm, network=network) -> float:
                record = decentral.Record(count=1, evaluate=False)
                arguments = {"network": network, "record": record, "executor": "eager"}
                return decentral.replay(trace, problem, algorithm, **arguments).wall_s["run"]

            eager()
            table.add("n=64: eager executor", len(short) / min(eager(), eager()), "events/s")
    best = take_turns({n: runs[n] for n in (256, 4096)}, 3 if quick else 5)
    cost = {n: seconds / events_of[n] for n, seconds in best.items()}
    table.add("cost per event, n=4096 / n=256", cost[4096] / cost[256], "x", at_most=2.5)
    table.section(
        "Other simulators at n=64: recorded when this project began, on two other cores, +-40 %, not measured here"
    )
    for name, rate, unit in PEERS:
        table.add(name, rate, unit)


def gossip(table: Table, quick: bool) -> None:
    """Bandwidth of gossip alone."""
    import decentral
    from decentral.problem import Quadratic

    n, d, time_s = 64, 100_000, 15.0 if quick else 60.0
    table.section(f"Gossip alone, ring of {n}, d={d:,}, float32")
    problem = Quadratic.of(np.ones(n), np.zeros((n, d)), dtype="float32", initial="per_worker")
    algorithm = decentral.Gossip(optimizer={"kind": "sgd", "learning_rate": LEARNING_RATE})
    trace, network = make_trace("ring", n, time_s, algorithm, gradients_per_s=0.0)
    final = {}

    def rows() -> float:
        record = decentral.Record(events=(0, len(trace)), evaluate=False)
        result = decentral.replay(trace, problem, algorithm, network=network, record=record)
        final["x"], final["distance"] = result.final.x, result.metrics["consensus_distance"][0]
        return result.wall_s["run"]

    source = np.random.default_rng(0).standard_normal(25_000_000, dtype=np.float32)
    target = np.empty_like(source)
    np.copyto(target, source)
    rows()
    best = take_turns({"rows": rows, "copy": clock(lambda: np.copyto(target, source))}, 3 if quick else 7)
    if not final["distance"][1] < 0.5 * final["distance"][0]:
        raise SystemExit("gossip did not bring the workers together")
    moved = len(trace) * 8 * d * 4 / best["rows"]
    copied = 2 * source.nbytes / best["copy"]
    table.add(f"{len(trace):,} exchanges, 8 d itemsize bytes each", moved / 1e9, "GB/s")
    table.add("numpy.copyto of 100 MB, read + written", copied / 1e9, "GB/s")
    table.add("gossip / copyto", moved / copied, "x", at_least=0.5)


def constants_of(algorithm) -> dict[str, float]:
    names = "nu eta alpha alpha_tilde theta beta beta_tilde gamma gamma_tilde delta delta_tilde"
    return {name: float(getattr(algorithm, name)) for name in names.split()}


def numpy_dadao(trace, features, targets, start, algorithm) -> np.ndarray:
    """The same events in NumPy with the closed-form flow, written down as it stands in the paper; float32 vectors."""
    n, m, _ = features.shape
    real, c = np.float32, constants_of(algorithm)
    states = [list(state) for state in start.astype(real)]
    data, target, last = list(features), list(targets), [0.0] * n
    rate_a, rate_b, rate = 2 * c["eta"], c["alpha"] + c["alpha_tilde"], c["alpha"] / 2
    omega = math.sqrt(c["alpha"] * c["theta"] - c["alpha"] ** 2 / 4)
    particular_a, particular_b = (
        c["theta"] / (r - r * r / c["alpha"] - c["theta"]) for r in (rate_a, rate_b)
    )
    force_x, force_z = real(-particular_a * c["nu"]), real(particular_b * c["alpha"] / rate_b)
    tilde_a, tilde_b = real(1 - rate_a / c["alpha"]), real(1 - rate_b / c["alpha"])
    weight_z, weight_z_tilde = real(c["alpha_tilde"] / rate_b), real(c["alpha"] / rate_b)
    alpha, half_alpha, theta, nu, half = (real(v) for v in (c["alpha"], rate, c["theta"], c["nu"], 0.5))
    gamma, gamma_tilde, delta = real(c["gamma"]), real(c["gamma_tilde"]), real(c["delta"] + c["delta_tilde"])
    beta, beta_tilde, scale = real(c["beta"]), real(c["beta_tilde"]), real(2 / m)

    def flow(i: int, now: float) -> list[np.ndarray]:
        dt, last[i] = now - last[i], now
        x, x_tilde, y, y_tilde, z, z_tilde = states[i]
        damping = math.exp(-rate * dt)
        decay_a, decay_b = real(math.exp(-rate_a * dt)), real(math.exp(-rate_b * dt))
        cosine, sine = real(damping * math.cos(omega * dt)), real(damping * math.sin(omega * dt) / omega)
        x_mean = half * (x + x_tilde)
        x_gap, z_gap = x - x_mean, z - z_tilde
        z_mean = weight_z * z + weight_z_tilde * z_tilde
        constant = z_mean + nu * x_mean
        force_a, force_b = force_x * x_gap, force_z * z_gap
        h = y - force_a - force_b + constant
        h_tilde = y_tilde - tilde_a * force_a - tilde_b * force_b + constant
        x_gap, force_a = decay_a * x_gap, decay_a * force_a
        z_gap, force_b = decay_b * z_gap, decay_b * force_b
        states[i] = flowed = [
            x_mean + x_gap,
            x_mean - x_gap,
            cosine * h + sine * (alpha * (h_tilde - half * h)) - constant + force_a + force_b,
            cosine * h_tilde + sine * (half_alpha * h_tilde - theta * h) - constant + tilde_a * force_a + tilde_b * force_b,
            z_mean + weight_z_tilde * z_gap,
            z_mean - weight_z * z_gap,
        ]  # fmt: skip
        return flowed

    for now, op, (i, j) in zip(
        trace.time_s.tolist(), trace.op.tolist(), trace.operands.tolist(), strict=True
    ):
        own = flow(i, now)
        if op == 0:
            residual = np.dot(data[i], own[0])
            residual -= target[i]
            g = np.dot(residual, data[i])
            g *= scale
            g -= nu * own[0]
            g -= own[3]
            own[0] -= gamma * g
            own[1] -= gamma_tilde * g
            own[3] += delta * g
        else:
            other = flow(j, now)
            gap = own[2] + own[4] - other[2] - other[4]
            step = beta * gap
            own[4] -= step
            other[4] += step
            step = beta_tilde * gap
            own[5] -= step
            other[5] += step
    return np.array(states)


def numpy_dadao_matrix(trace, features, targets, start, algorithm) -> np.ndarray:
    """The same again by an expert: the flow as one 6 x 6 matrix per event, a mixture of five constant ones."""
    n, m, d = features.shape
    real, c = np.float32, constants_of(algorithm)
    rate_a, rate_b, rate = 2 * c["eta"], c["alpha"] + c["alpha_tilde"], c["alpha"] / 2
    omega = math.sqrt(c["alpha"] * c["theta"] - c["alpha"] ** 2 / 4)

    def flowed(state, one, decay_a, decay_b, cosine, sine):
        x, x_tilde, y, y_tilde, z, z_tilde = state
        x_mean, x_gap, z_gap = (x + x_tilde) / 2, (x - x_tilde) / 2, z - z_tilde
        z_mean = (c["alpha_tilde"] * z + c["alpha"] * z_tilde) / rate_b
        constant = z_mean + c["nu"] * x_mean
        force_a = -c["nu"] * c["theta"] / (rate_a - rate_a**2 / c["alpha"] - c["theta"]) * x_gap
        force_b = c["theta"] / (rate_b - rate_b**2 / c["alpha"] - c["theta"]) * c["alpha"] / rate_b * z_gap
        tilde_a, tilde_b = 1 - rate_a / c["alpha"], 1 - rate_b / c["alpha"]
        h = y - force_a - force_b + constant
        h_tilde = y_tilde - tilde_a * force_a - tilde_b * force_b + constant
        moving = np.stack(
            [force_a * decay_a + force_b * decay_b, tilde_a * force_a * decay_a + tilde_b * force_b * decay_b]
        )
        return np.stack(
            [
                x_mean * one + x_gap * decay_a,
                x_mean * one - x_gap * decay_a,
                cosine * h + sine * c["alpha"] * (h_tilde - h / 2) - constant * one + moving[0],
                cosine * h_tilde + sine * (rate * h_tilde - c["theta"] * h) - constant * one + moving[1],
                z_mean * one + c["alpha"] / rate_b * z_gap * decay_b,
                z_mean * one - c["alpha_tilde"] / rate_b * z_gap * decay_b,
            ]
        )  # fmt: skip

    parts = np.stack([flowed(np.eye(6), *row) for row in np.eye(5)]).reshape(5, 36).astype(real)
    states, spare = list(start.astype(real)), list(np.empty(start.shape, real))
    data, target, last = list(features), list(targets), [0.0] * n
    column = lambda *values: np.array(values, real)[:, None]  # noqa: E731
    on_gradient = column(-c["gamma"], -c["gamma_tilde"], 0, c["delta"] + c["delta_tilde"], 0, 0)
    on_exchange = column(-c["beta"], -c["beta_tilde"])
    in_gradient, in_message = np.array([-c["nu"], 0, 0, -1, 0, 0], real), np.array([0, 0, 1, 0, 1, 0], real)
    mixture, matrix = np.ones(5, real), np.empty(36, real)
    square, scale = matrix.reshape(6, 6), real(2 / m)
    residual, g, other_g = np.empty(m, real), np.empty(d, real), np.empty(d, real)
    change, change_z = np.empty((6, d), real), np.empty((2, d), real)
    dot, multiply, add, subtract, exp = np.dot, np.multiply, np.add, np.subtract, math.exp

    def flow(i: int, now: float) -> np.ndarray:
        dt, last[i] = now - last[i], now
        damping, angle = exp(-rate * dt), omega * dt
        mixture[1], mixture[2] = exp(-rate_a * dt), exp(-rate_b * dt)
        mixture[3], mixture[4] = damping * math.cos(angle), damping * math.sin(angle) / omega
        dot(mixture, parts, matrix)
        state, out = states[i], spare[i]
        dot(square, state, out)
        states[i], spare[i] = out, state
        return out

    for now, op, (i, j) in zip(
        trace.time_s.tolist(), trace.op.tolist(), trace.operands.tolist(), strict=True
    ):
        own = flow(i, now)
        if op == 0:
            dot(data[i], own[0], residual)
            subtract(residual, target[i], residual)
            dot(residual, data[i], g)
            multiply(g, scale, g)
            dot(in_gradient, own, other_g)
            add(g, other_g, g)
            multiply(on_gradient, g, change)
            add(own, change, own)
        else:
            other = flow(j, now)
            dot(in_message, own, g)
            dot(in_message, other, other_g)
            subtract(g, other_g, g)
            multiply(on_exchange, g, change_z)
            own[4:] += change_z
            other[4:] -= change_z
    return np.stack(states)


def dadao(table: Table, quick: bool) -> None:
    """DADAO on the star: every exchange waits for the centre."""
    import jax

    import decentral

    n, time_s = 300, 15.0 if quick else 60.0
    table.section(
        f"DADAO on the {n}-star, least squares (recipe of its authors), d=2, {SAMPLES} samples, float32"
    )
    problem = decentral.problem.least_squares(n, d=2, samples_per_worker=SAMPLES, dtype="float32")
    algorithm = decentral.DADAO()
    trace, network = make_trace("star", n, time_s, algorithm)
    samples = {k: np.asarray(v) for k, v in problem.shards["samples"].items()}
    start = decentral.Simulation(trace, problem, algorithm, network=network).banks["worker"]
    start = np.stack([np.asarray(leaf) for leaf in start], axis=1)
    final = {}

    def rows() -> float:
        record = decentral.Record(count=1, evaluate=False)
        result = decentral.replay(trace, problem, algorithm, network=network, record=record)
        final["rows"] = np.stack([np.asarray(leaf) for leaf in jax.tree.leaves(result.final)], axis=1)
        final["algorithm"] = result.algorithm
        return result.wall_s["run"]

    def loop(function) -> Callable[[], float]:
        def run() -> None:
            arguments = (samples["features"], samples["target"], start, final["algorithm"])
            final[function.__name__] = function(trace, *arguments)

        return clock(run)

    rows()
    sides = {"rows": rows, "loop": loop(numpy_dadao), "matrix": loop(numpy_dadao_matrix)}
    best, events = take_turns(sides, 2 if quick else 4), len(trace)
    same_state("DADAO, plain loop", final["rows"], final["numpy_dadao"], 1e-4)
    same_state("DADAO, matrix loop", final["rows"], final["numpy_dadao_matrix"], 1e-3)
    table.add("rows", events / best["rows"], "events/s")
    table.add(
        f"plain NumPy loop, closed-form flow, the same {events:,} events", events / best["loop"], "events/s"
    )
    table.add("rows / NumPy", best["loop"] / best["rows"], "x", at_least=5)
    table.add("NumPy loop, the flow as one 6 x 6 matrix (an expert's)", events / best["matrix"], "events/s")
    table.add("rows / an expert's NumPy", best["matrix"] / best["rows"], "x")


def planner(table: Table, quick: bool) -> None:
    """Poisson clocks and the planner."""
    from decentral import Gossip, Poisson, Time
    from decentral.engine.plan import make_plan

    table.section("Timeline (Poisson clocks) and planner, ring, two gradients per exchange")
    for n, time_s, label in ((64, 10_420.0, "10^6"), (100_000, 66.65, "10^7"))[: 1 if quick else 2]:
        trace, network = make_trace("ring", n, time_s, Gossip())
        sides = {
            "timeline": clock(lambda: Poisson().timeline(network, Time(time_s), 0)),  # noqa: B023
            # Bytes per event as in the logistic workload.
            "plan": clock(lambda: make_plan(trace, [0, len(trace)], event_bytes=[20_400.0, 800.0])),  # noqa: B023
        }
        best = take_turns(sides, 3 if n == 64 else 2)
        table.add(f"timeline, {label} events, n={n:,}", len(trace) / best["timeline"], "events/s")
        table.add(f"planner, {label} events, n={n:,}", len(trace) / best["plan"], "events/s", at_least=5e6)


def timelines(table: Table, quick: bool) -> None:
    """Protocols alone: how fast they make events, and what they need for them."""
    table.section(
        "Timelines on a ring, about 260,000 gradients (with rounds a million), log-normal compute times, latency 50 ms"
    )
    sizes = TIMELINES[:2] if quick else TIMELINES
    sides, events = {}, {}
    for name in protocols():
        for n, time_s in sizes:
            time_s *= LONGER.get(name, 1)
            timeline, _, _ = on_cluster(name, n)
            trace = timeline(time_s)
            check_events(name, n, time_s, trace)
            sides[name, n] = clock(lambda timeline=timeline, time_s=time_s: timeline(time_s))
            # A round of all-reduce is one event.
            events[name, n] = int(trace.gradients_of_events.sum()) if name == "all-reduce" else len(trace)
    best = take_turns(sides, 1 if quick else 5)
    rates = {key: events[key] / seconds for key, seconds in best.items()}
    required = {"poisson": 1e6, "rendezvous, paired": 2e5, "rendezvous, atomic": 2e5}
    for name, n in sides:
        unit = "gradients/s" if name == "all-reduce" else "events/s"
        at_least = required.get(name) if n == 1024 else None
        table.add(f"{name}, n={n:,}", rates[name, n], unit, at_least=at_least)
    small, large = sizes[0][0], sizes[-1][0]
    for name in protocols():
        ratio = rates[name, small] / rates[name, large]
        table.add(f"{name}: cost per event, n={large:,} / n={small}", ratio, "x", at_most=2)
    table.section("Memory of a timeline, n=1024, 64 s and 4 times as long, each in a process of its own")
    for name in ("rendezvous, paired", "poisson", "mailbox")[: 1 if quick else 3]:
        short, long = (alone("--memory", name, "--seconds", str(time_s)) for time_s in (64.0, 256.0))
        table.add(f"{name}: bytes of the trace", long["bytes"] / long["events"], "bytes/event")
        table.add(f"{name}: bytes while it is made, at most", long["peak"] / long["events"], "bytes/event")
        growth = long["peak"] / short["peak"]
        more = f"{name}: those bytes, {long['events']:,} events / {short['events']:,}"
        table.add(more, growth, "x", at_most=1.25 * long["events"] / short["events"])
        for bank, slots in long["slots"].items():
            more = f"{name}: slots for {bank}s in flight ({short['slots'][bank]:,} of the shorter)"
            table.add(more, slots, "slots", at_most=1.25 * short["slots"][bank])


def memory_run(name: str, time_s: float) -> dict:
    """A timeline's bytes; run in a process of its own, because resident memory is a property of a process."""
    from decentral.engine.plan import assign_slots

    timeline, _, _ = on_cluster(name, 1024)
    timeline(1.0)
    before = peak_memory()
    trace = timeline(time_s)
    peak = peak_memory() - before
    check_events(name, 1024, time_s, trace)
    columns = (trace.time_s, trace.op, trace.operands, trace.duration_s)
    size = sum(column.nbytes for column in columns if column is not None)
    return {"events": len(trace), "bytes": size, "peak": peak, "slots": assign_slots(trace)[1]}


def peak_memory() -> int:
    """Bytes resident at most so far. Linux counts in ``ru_maxrss`` what the parent had when it started this process."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def alone(*arguments: str) -> dict:
    """What this script prints with hidden arguments, in a process of its own (on the cores of this one)."""
    command = [sys.executable, os.path.abspath(__file__), *arguments, "--cores", "0"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{finished.stderr[-2000:]}")
    return json.loads(finished.stdout.splitlines()[-1])


def running(table: Table, quick: bool) -> None:
    """Rows where things take time: every protocol's trace beside that of Poisson clocks, and a NumPy loop."""
    import decentral

    n, time_s = 64, 128.0 if quick else 512.0
    table.section(
        f"Protocols on a ring of {n}, logistic regression as above, {n * time_s:,.0f} gradients or so"
    )
    problem, features, labels = logistic(n)
    sides, traces, results = {}, {}, {}
    for name in protocols():
        timeline, network, algorithm = on_cluster(name, n)
        traces[name] = timeline(time_s)
        check_events(name, n, time_s, traces[name])

        def rows(name=name, network=network, algorithm=algorithm) -> float:
            record = decentral.Record(count=1, evaluate=False)
            result = decentral.replay(traces[name], problem, algorithm, network=network, record=record)
            results[name] = result
            return result.wall_s["run"]

        rows()
        sides[name] = rows
    paired, final = "rendezvous, paired", {}

    def loop() -> None:
        final["loop"] = numpy_rendezvous(traces[paired], features, labels, results[paired].algorithm)

    best = take_turns({**sides, "loop": clock(loop)}, 2 if quick else 5)
    same_state(
        f"gossip, {paired}", np.asarray(results[paired].final.x)[:, None], final["loop"][:, None], 1e-4
    )
    gradients = {name: int(trace.gradients_of_events.sum()) for name, trace in traces.items()}
    for name, trace in traces.items():
        table.add(f"{name}: rows", len(trace) / best[name], "events/s")
        table.add(f"{name}: rows", gradients[name] / best[name], "gradients/s")
        ratio = gradients[name] / best[name] / (gradients["poisson"] / best["poisson"])
        if name != "poisson":
            table.add(f"{name}: gradients/s / those of Poisson clocks", ratio, "x")
        for bank, slots in results[name].constants["slots_in_flight"].items():
            table.add(f"{name}: slots for {bank}s in flight", slots, "slots")
    events = len(traces[paired])
    table.add(
        f"{paired}: plain NumPy loop over the same {events:,} events", events / best["loop"], "events/s"
    )
    table.add(f"{paired}: rows / NumPy", best["loop"] / best[paired], "x")
    large_models(table, quick)


def large_models(table: Table, quick: bool) -> None:
    """Models so large that a row holds an event or two of each op: what a row copies beside its events shows here."""
    import decentral
    from decentral.problem import Quadratic

    n, d, time_s = 16, 100_000, 16.0
    table.section(f"The same on a ring of {n}, quadratics of d={d:,}, float32")
    problem = Quadratic.of(np.ones(n), np.zeros((n, d)), dtype="float32", initial="per_worker")
    sides, events = {}, {}
    for name in ("poisson", "rendezvous, paired", "rendezvous, atomic", "mailbox", "server"):
        timeline, network, algorithm = on_cluster(name, n)
        trace = timeline(time_s)
        check_events(name, n, time_s, trace)

        def rows(trace=trace, network=network, algorithm=algorithm) -> float:
            record = decentral.Record(count=1, evaluate=False)
            return decentral.replay(trace, problem, algorithm, network=network, record=record).wall_s["run"]

        rows()
        sides[name], events[name] = rows, len(trace)
    best = take_turns(sides, 2 if quick else 5)
    cost = {name: seconds / events[name] for name, seconds in best.items()}
    for name in sides:
        table.add(f"{name}: an event", 1e6 * cost[name], "us")
        if name != "poisson":
            table.add(
                f"{name}: an event / one of Poisson clocks", cost[name] / cost["poisson"], "x", at_most=2.5
            )


def wide_run(time_s: float) -> dict:
    """100,000 workers gossip; run in a process of its own, because resident memory is a property of a process."""
    import decentral
    from decentral.problem import Quadratic

    n, d = 100_000, 16
    centres = np.random.default_rng(0).standard_normal((n, d))
    problem = Quadratic.of(np.ones(n), centres, dtype="float32", initial="per_worker")
    began = time.perf_counter()
    result = decentral.simulate(
        problem,
        decentral.topology.named("ring", n=n),
        decentral.Gossip(optimizer={"kind": "sgd", "learning_rate": LEARNING_RATE}),
        decentral.Poisson(gradients_per_s=0.0),
        stop=time_s,
        record=decentral.Record(count=4, evaluate=False),
    )
    count_events("ring", n, time_s, 0.0, result.trace)
    distance = result.metrics["consensus_distance"][0]
    if not (np.isfinite(distance).all() and distance[-1] < 0.1 * distance[0]):
        raise SystemExit(f"gossip did not bring the workers together: {distance}")
    seconds = time.perf_counter() - began
    return {
        "events": len(result.trace),
        "run_s": result.wall_s["run"],
        "all_s": seconds,
        "peak": peak_memory(),
    }


def wide(table: Table, quick: bool) -> None:
    """100,000 workers, 10^7 exchanges."""
    time_s = 20.0 if quick else 200.0
    table.section("Gossip among 100,000 workers, ring, d=16, float32, in a process of its own")
    measured = alone("--wide", "--seconds", str(time_s))
    events = measured["events"]
    table.add(f"{events:,} exchanges, run stage", events / measured["run_s"], "events/s")
    table.add("everything: set-up, timeline, plan, compile, run, record", measured["all_s"], "s")
    table.add("peak resident memory", measured["peak"] / 1e9, "GB", at_most=4.0)


def metrics(table: Table, quick: bool) -> None:
    """What 100 record times cost."""
    import decentral

    n = 64
    table.section(
        f"Metrics: 100 record times, A2CiD2 ring n={n} as above, losses and accuracies of the mean and 16 workers"
    )
    problem, _, _ = logistic(n)
    algorithm = decentral.A2CiD2(optimizer={"kind": "sgd", "learning_rate": LEARNING_RATE})
    for time_s in (100.0, 500.0, 2000.0)[2 if quick else 0 :]:
        trace, network = make_trace("ring", n, time_s, algorithm)
        walls = [
            decentral.replay(
                trace, problem, algorithm, network=network, record=decentral.Record(count=100)
            ).wall_s
            for _ in range(3 if quick else 6)
        ]
        run_s, record_s = (min(wall_s[stage] for wall_s in walls) for stage in ("run", "record"))
        limit = 0.20 if time_s == 2000.0 else None
        table.add(
            f"share of a run of {len(trace):,} events", record_s / (run_s + record_s), "", at_most=limit
        )
    table.add("one record", 1e3 * record_s / 101, "ms")


def network_loop(trace, problem, algorithm, keys) -> Callable[[], tuple[float, np.ndarray]]:
    """A2CiD2 with momentum as a Python loop over jitted per-worker steps: ``loop() -> (seconds, first weights)``.

    One jitted gradient step and one jitted exchange, states in a Python list, donated. Which samples are in which batch is
    worked out before the clock starts.
    """
    import jax
    import jax.numpy as jnp
    import optax

    from decentral.engine.instructions import Draw
    from decentral.problem.sampling import batch_rows

    n, decay = trace.n_workers, -2.0 * algorithm.eta
    steps = algorithm.optimizer.transformation()
    samples = {name: np.asarray(leaf[0]) for name, leaf in problem.shards["samples"].items()}

    def flow(x, tilde, dt):
        middle = jax.tree.map(lambda a, b: (a + b) / 2, x, tilde)
        offset = jax.tree.map(lambda a, b: (a - b) / 2 * jnp.exp(decay * dt), x, tilde)
        return jax.tree.map(jnp.add, middle, offset), jax.tree.map(jnp.subtract, middle, offset)

    def gradient_step(state, batch, dt):
        x, tilde = flow(*state[:2], dt)
        loss = jax.vmap(problem.sample_loss, (None, 0))
        gradient = jax.grad(lambda params: jnp.mean(loss(params, batch)))(x)
        change, optimizer = steps.update(gradient, state[2], x)
        return optax.apply_updates(x, change), optax.apply_updates(tilde, change), optimizer

    def exchange(first, second, dt_first, dt_second):
        ends = flow(*first[:2], dt_first), flow(*second[:2], dt_second)
        gap = jax.tree.map(jnp.subtract, ends[0][0], ends[1][0])

        def moved(x, factor):
            return jax.tree.map(lambda leaf, g: leaf - factor * g, x, gap)

        return tuple(
            (moved(x, sign * algorithm.alpha), moved(tilde, sign * algorithm.alpha_tilde), state[2])
            for (x, tilde), state, sign in zip(ends, (first, second), (1.0, -1.0), strict=True)
        )

    gradient_step = jax.jit(gradient_step, donate_argnums=0)
    exchange = jax.jit(exchange, donate_argnums=(0, 1))
    last, count, events, taken = np.zeros(n), np.zeros(n, np.uint32), [], []
    for time_s, code, (i, j) in zip(trace.time_s, trace.op, trace.operands[:, :2].tolist(), strict=True):
        if trace.ops[code].name == "gradient":
            events.append((i, None, np.float32(time_s - last[i]), None))
            taken.append((i, count[i]))
            count[i] += 1
            last[i] = time_s
        else:
            events.append((i, j, np.float32(time_s - last[i]), np.float32(time_s - last[j])))
            last[i] = last[j] = time_s

    def rows(worker, number):
        key = jax.random.fold_in(keys[worker], int(Draw.GRADIENT))
        size = problem.shards["count"][0]
        return batch_rows(problem.sampling, problem.batch_size, key, number, size)

    who, number = (np.array(column) for column in zip(*taken, strict=True))
    batches = np.asarray(jax.jit(jax.vmap(rows))(who.astype(np.int32), number.astype(np.uint32)))
    first_key = jax.random.fold_in(jax.random.key(trace.replicas[0].seed or 0), int(Draw.INITIAL_POINT))

    def loop():
        def fresh():
            params = problem.initial(first_key)
            return jax.tree.map(jnp.array, (params, params, steps.init(params)))

        states = [fresh() for _ in range(n)]
        jax.block_until_ready(states)
        order = iter(batches)
        began = time.perf_counter()
        for i, j, dt, dt_other in events:
            if j is None:
                chosen = next(order)
                batch = {name: leaf[chosen] for name, leaf in samples.items()}
                states[i] = gradient_step(states[i], batch, dt)
            else:
                states[i], states[j] = exchange(states[i], states[j], dt, dt_other)
        jax.block_until_ready(states)
        return time.perf_counter() - began, np.stack([state[0][0]["weight"] for state in states])

    return loop


def networks(table: Table, quick: bool) -> None:
    """A network on every worker, beside the loop over jitted steps that one would write."""
    import decentral

    n, time_s = 64, 30.0 if quick else 60.0
    table.section(
        f"Networks: MLP 64-32-10 on shared digits, batches of 8, shuffled, A2CiD2 with momentum 0.9, ring n={n}, float32"
    )
    problem = decentral.problem.mlp(n, partition="shared", batch_size=8, sampling="shuffle")
    algorithm = decentral.A2CiD2(optimizer={"kind": "sgd", "learning_rate": LEARNING_RATE, "momentum": 0.9})
    trace, network = make_trace("ring", n, time_s, algorithm)

    def simulation():
        once = decentral.Record(count=1)
        return decentral.Simulation(trace, problem, algorithm, network=network, record=once)

    begun = simulation()
    loop = network_loop(trace, problem, begun.algorithms[0], begun.context.keys)
    results: dict[str, Any] = {}

    def ours() -> float:
        results["ours"] = simulation().run()
        return results["ours"].wall_s["run"]

    def theirs() -> float:
        seconds, results["theirs"] = loop()
        return seconds

    ours(), theirs()  # compile
    best = take_turns({"ours": ours, "theirs": theirs}, 2 if quick else 5)
    same_state("networks", results["ours"].final.x[0]["weight"], results["theirs"], 1e-3)
    for side, what in (("ours", "simulate"), ("theirs", "Python loop over jitted per-worker steps")):
        table.add(what, len(trace) / best[side], "events/s")
    table.add("ratio", best["theirs"] / best["ours"], "", at_least=5.0)


def learned(table: Table, quick: bool) -> None:
    """A step of a learned optimizer, beside its text written down and Adam."""
    import jax
    import jax.numpy as jnp
    import optax
    from by_hand import learned_optimizer

    from decentral.learned.meta_parameters import initial_meta_parameters
    from decentral.learned.optimizer import learned

    side = 256 if quick else 1024
    table.section(
        f"Learned optimizer: one step of a {side} x {side} matrix, float32, meta-parameters as arguments"
    )
    start, gradient = jax.random.normal(jax.random.key(0), (2, side, side), jnp.float32)

    def stepping(make: Callable) -> tuple[Callable[[], float], Callable[[], Any]]:
        """Seconds of the next step, and the parameters after the steps so far."""

        def step(meta, gradient, params, state):
            updates, state = make(meta).update(gradient, state, params)
            return params + updates, state

        compiled = jax.jit(step, donate_argnums=(2, 3))
        carry = [jnp.copy(start), make(meta).init(start)]

        def one() -> None:
            carry[:] = compiled(meta, gradient, *carry)
            jax.block_until_ready(carry)

        one()
        return clock(one), lambda: carry[0]

    for hidden in (4, 16, 32):
        meta = initial_meta_parameters(jax.random.key(hidden), hidden)
        sides = {
            "ours": stepping(lambda meta: learned(meta, step_multiplier=0.001)),
            "theirs": stepping(lambda meta: learned_optimizer(meta, 0.001)),
            "adam": stepping(lambda meta: optax.adam(0.001)),
        }
        best = take_turns({name: seconds for name, (seconds, _) in sides.items()}, 3 if quick else 7)
        ends = [np.asarray(sides[name][1]() - start)[None, None] for name in ("ours", "theirs")]
        same_state(f"learned, h = {hidden}", *ends, 1e-3)
        for name, what in (("ours", "learned"), ("theirs", "its text, vectorised"), ("adam", "Adam")):
            table.add(f"h = {hidden}: {what}", best[name] / side**2 * 1e9, "ms/million")
        table.add(
            f"h = {hidden}: learned / its text",
            best["ours"] / best["theirs"],
            "",
            at_most=None if quick else 1.0,
        )
        table.add(f"h = {hidden}: learned / Adam", best["ours"] / best["adam"], "")


def beside_scan(
    table: Table, quick: bool, simulation: tuple, scan: Callable, leaf: Callable, **limits: Any
) -> None:
    """A protocol, its plan and its run, beside a jitted scan that someone wrote by hand.

    Args:
        table: where the lines go.
        quick: fewer turns.
        simulation: ``(protocol, topology, algorithm, problem, seconds)``.
        scan: ``scan(trace, keys)`` gives ``run(params) -> params``.
        leaf: of parameters, ``(models, rows, columns)``: what is compared in the end.
        **limits: ``unit`` and ``per`` (an op) of the rate, ``tolerance``, ``at_most``.
    """
    import jax

    import decentral
    from decentral.engine.instructions import Draw
    from decentral.experiment.entry import network_of

    protocol, graph, algorithm, problem, time_s = simulation
    network = network_of(protocol, graph, algorithm, problem)
    protocol.timeline(network, decentral.Time(time_s), 0)  # compiled, as all the rest
    began = time.perf_counter()
    trace = protocol.timeline(network, decentral.Time(time_s), 0)
    timeline_s = time.perf_counter() - began
    once = decentral.Record(count=1, evaluate=False)
    keys = decentral.Simulation(trace, problem, algorithm, network=network).context.keys
    start = problem.initial(jax.random.fold_in(jax.random.key(0), int(Draw.INITIAL_POINT)))
    by_hand, results = scan(trace, keys), {}

    def ours() -> float:
        results["ours"] = decentral.replay(trace, problem, algorithm, network=network, record=once)
        return results["ours"].wall_s["run"] + results["ours"].wall_s["plan"] + timeline_s

    def theirs() -> None:
        results["theirs"] = jax.block_until_ready(by_hand(start))

    theirs()  # compile
    best = take_turns({"ours": ours, "theirs": clock(theirs)}, 2 if quick else 5)
    final = algorithm.estimate(results["ours"].final)
    whole = jax.tree.map(lambda leaf: leaf[None], results["theirs"])
    same_state("by hand", np.asarray(leaf(final)), np.asarray(leaf(whole)), limits["tolerance"])
    for side, what in (("ours", "timeline, plan and run"), ("theirs", "scan by hand")):
        table.add(what, trace.counts[limits["per"]] / best[side], limits["unit"])
    table.add("time over by hand", best["ours"] / best["theirs"], "", at_most=limits["at_most"])


def pipelines(table: Table, quick: bool) -> None:
    """PETRA in lock-step, beside a scan over ticks in which all equal stages are one vmap."""
    from by_hand import petra_scan

    from decentral import PETRA, Pipeline, problem, topology

    stages, ticks, rate, momentum = 18, 1000 if quick else 6000, 0.0025, 0.9
    table.section(
        f"Pipeline: PETRA, tanh MLP of two streams of 32 units, J={stages}, batches of 32, {ticks:,} ticks"
    )
    task = problem.reversible_mlp(stages, stages=stages, hidden=32, batch_size=32)
    algorithm = PETRA(optimizer={"kind": "sgd", "learning_rate": rate, "momentum": momentum})
    lock_step = Pipeline(backward=1, reconstruct=0, turn=1)
    beside_scan(
        table, quick, (lock_step, topology.named("path", n=stages), algorithm, task, float(ticks)),
        lambda trace, keys: petra_scan(task, keys[0], ticks, rate, momentum),
        lambda params: params["block"]["weight"][0],
        unit="batches/s", per="turn:head", tolerance=1e-3, at_most=2.0,
    )  # fmt: skip


def overlapped(table: Table, quick: bool) -> None:
    """ACCO on a transformer, beside a scan over collectives in which a round's micro-batches are one batch."""
    from by_hand import acco_scan

    from decentral import ACCO, Overlapped, problem, topology
    from decentral.algorithm.optimizer import Optimizer

    n, rounds = 4, 60 if quick else 400
    table.section(
        f"Overlapped all-reduce: ACCO, transformer of 2 blocks of 64, {n} workers of 8 sequences, {rounds} collectives"
    )
    task = problem.transformer(n, vocabulary=32, width=64, heads=4, blocks=2, sequences=4096, batch_size=8)
    # SGD: Adam divides what is rounding by its own size, so two ways to round would not be comparable.
    optimizer = {"kind": "sgd", "learning_rate": 0.1, "momentum": 0.9}
    steps = Optimizer(**optimizer).transformation()
    beside_scan(
        table, quick,
        (Overlapped(collective_s=0.5), topology.named("complete", n=n), ACCO(optimizer=optimizer), task, rounds + 0.6),
        lambda trace, keys: acco_scan(task, keys, trace.counts["reduce"], steps),
        lambda params: params["head"]["weight"],
        unit="collectives/s", per="reduce", tolerance=1e-2, at_most=1.3,
    )  # fmt: skip


def optical_features(table: Table, quick: bool) -> None:
    """Digits to 4,096 optical features, encoding and camera included, beside NumPy with the bits and the matrix in memory."""
    from sklearn.datasets import load_digits

    from decentral.optical.features import OpticalRandomFeatures

    components, (x, _) = 1024 if quick else 4096, load_digits(return_X_y=True)
    table.section(f"Optical features: {len(x):,} digits, four bits a pixel, to {components:,} features")
    model = OpticalRandomFeatures(components, encoder="thermometer").fit(x)
    bits = np.asarray(model.encoder_.encode(x))[:, 0].astype(np.float32)
    matrix = np.asarray(model.unit_.rows()).T.copy()
    real, imaginary = matrix.real.copy(), matrix.imag.copy()

    def in_complex() -> np.ndarray:
        field = bits @ matrix
        return field.real**2 + field.imag**2

    def in_real() -> np.ndarray:
        return (bits @ real) ** 2 + (bits @ imaginary) ** 2

    scale = model.exposure_ * np.sqrt(components)
    level = 5.0 / 255 * model.exposure_  # of the camera, which saturates at five means
    seen = np.minimum(in_real(), 5.0 * model.exposure_) / scale
    if not np.abs(model.transform(x) - seen).max() <= 0.51 * level / scale:
        raise SystemExit(
            "optical features differ from those of the stored matrix by more than the camera's rounding"
        )
    sides = {"ours": lambda: model.transform(x), "complex": in_complex, "real": in_real}
    times = take_turns({name: clock(side) for name, side in sides.items()}, 3 if quick else 10)
    table.add(
        "speed over NumPy, one product with the complex matrix",
        times["complex"] / times["ours"],
        "x",
        at_least=0.5,
    )
    table.add(
        "speed over NumPy, two products with real and imaginary part", times["real"] / times["ours"], "x"
    )
    table.add("time of the transformer", 1e3 * times["ours"], "ms")
    table.add("memory of the stored matrix, which ours does without", matrix.nbytes / 1e6, "MB")


def command_line(table: Table, quick: bool) -> None:
    """How long --help takes."""
    table.section("Command line")
    try:
        import decentral.cli  # noqa: F401
    except ImportError:
        table.add("decentral --help: skipped, decentral.cli is not there yet", None, "")
        return
    beside = os.path.join(os.path.dirname(sys.executable), "decentral")
    script = beside if os.path.exists(beside) else shutil.which("decentral")
    entry = [sys.executable, "-c", "import sys; from decentral.cli import main; sys.exit(main(['--help']))"]
    call = clock(
        lambda: subprocess.run([script, "--help"] if script else entry, capture_output=True, check=True)
    )
    call()
    table.add("decentral --help", min(call() for _ in range(5)), "s", at_most=0.5)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="under a minute, smaller sizes, ratios not enforced"
    )
    parser.add_argument("--json", metavar="FILE", help="write the table there too")
    parser.add_argument("--cores", type=int, default=1, help="keep to so many cores; 0: all")
    parser.add_argument("--only", metavar="NAME", help="one measurement: " + ", ".join(MEASUREMENTS))
    parser.add_argument("--wide", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-options.cores :])
    if options.wide or options.memory:
        seconds = options.seconds
        measured = wide_run(seconds) if options.wide else memory_run(options.memory, seconds)
        print(json.dumps(measured))
        return 0
    import jax

    import decentral

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    about = {
        "decentral": decentral.__version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "cores": cores,
        "load": os.getloadavg()[0],
        "mode": "quick" if options.quick else "full",
    }
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    began, table = time.perf_counter(), Table()
    for name, measure in MEASUREMENTS.items():
        if options.only in (None, name):
            measure(table, options.quick)
    print(f"\n{time.perf_counter() - began:.0f} s", end="")
    print(f"; missed: {'; '.join(table.missed)}" if table.missed else "; all requirements met")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"about": about, "lines": [asdict(line) for line in table.lines]}, file, indent=1)
    return 1 if table.missed and not options.quick else 0


MEASUREMENTS = {
    "ring": ring,
    "gossip": gossip,
    "dadao": dadao,
    "planner": planner,
    "timelines": timelines,
    "running": running,
    "wide": wide,
    "metrics": metrics,
    "networks": networks,
    "learned": learned,
    "pipelines": pipelines,
    "overlapped": overlapped,
    "optical_features": optical_features,
    "command_line": command_line,
}

if __name__ == "__main__":
    sys.exit(main())
