"""Is my algorithm one? ``check_algorithm`` holds any algorithm to what the engine and the theory rely on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decentral.algorithm import Algorithm
from decentral.engine.instructions import INSTRUCTIONS, Actor, Local, Projection, meet
from decentral.engine.trace import Groups, Trace, merge
from decentral.errors import DecentralError, InvalidInput
from decentral.experiment import Record, replay
from decentral.experiment.entry import network_of
from decentral.problem import Problem, from_loss, reversible_mlp
from decentral.protocol import Gradients, Network, Pipeline, Poisson, Time, rounds_of_counts
from decentral.topology import Topology, named

__all__ = ["AlgorithmCheckFailed", "check_algorithm"]

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
"""Rounding: the largest difference allowed, relative to the largest number of the state (or parameters, or message)."""

ATOMIC = ("exchange", "dual_exchange")
"""Meetings at Poisson clocks."""

EVENTS = 300
"""Expected events of the runs the executors are compared on."""

STAGES = 3
"""Stages of the pipelines that an algorithm for pipelines is tried on: two of them."""

STATES = 4
"""States each function is tried on: an even number, half of them meet the other half in exchanges."""


class AlgorithmCheckFailed(DecentralError, AssertionError):
    """An algorithm fails its battery.

    Attributes:
        failures: check -> what went wrong and by how much.
    """

    def __init__(self, algorithm: str, failures: dict[str, str]) -> None:
        self.failures = dict(failures)
        lines = [f"  {check}: {what}" for check, what in failures.items()]
        super().__init__("\n".join([f"{algorithm} fails {len(failures)} check(s):", *lines]))


def check_algorithm(
    algorithm: Algorithm,
    *,
    problem: Problem | None = None,
    topology: Topology | None = None,
    seed: int = 0,
    meeting: str | None = None,
) -> None:
    """Put an algorithm through the conformance battery; returns when it passes. Takes a few seconds.

    The checks, by the names the error uses; those with dots run once per precision:

    * ``resolve``: finds its step sizes on this problem and network, and resolving again changes nothing.
    * ``pytree``: decorated with :func:`decentral.pytree`; its leaves are numbers, and other numbers give the same
      structure, so that they compile nothing anew.
    * ``traced (...)``: every function can be traced, the hyper-parameters included.
    * ``shapes (...)``: ``flow``, ``update``, ``message`` and ``receive`` keep the state's structure, shapes and dtypes,
      ``estimate`` and ``point`` have those of the parameters, and nothing is wider than the parameters: float32 stays
      float32. A message has the same shapes every time, so its bytes are known before a run.
    * ``vmap (...)``: compiled and batched over workers, every function computes what it computes for each alone.
    * ``flow (...)``: ``flow(s, 0) = s`` and ``flow(flow(s, a), b) = flow(s, a + b)``.
    * ``conserved (...)``: a meeting keeps the sum of what ``Algorithm.conserved`` returns: over both ends of an exchange,
      over all workers of a mean or of a doubly stochastic mixing matrix.
    * ``pure (...)``: the same arguments give the same values, bit for bit, and are left as they were.
    * ``rows (...)``, in the first precision: a run of a few hundred events in rows agrees with one event after another, at
      Poisson clocks or, without exchanges, with gradients of no duration and the algorithm's own meetings at random.
      (Overlapped all-reduces and pipelines have their own protocols.)
    * ``replicas (...)``, in the last: two replicas with different numbers in one trace, in rows, agree with two separate
      runs, one event after another; gradients, exchanges and messages take time there.

    ``message`` and ``receive`` are not looked at where workers never meet (``gradient``, ``batches``). An algorithm of
    pipelines has as its ``update`` a batch's ways up and down a model of three stages (or up, and its error to all), and two such
    models gossip. The runs are tried when nothing has failed before.

    Args:
        algorithm: the instance to check; open step sizes are resolved.
        problem: what it runs on. By default a strongly convex one whose parameters are a dict of a matrix and a vector,
            in float32 and in float64; a problem given is used in its own precision alone.
        topology: the graph, of as many workers as the problem; by default a ring.
        seed: of states, draws and clocks.
        meeting: how the workers meet, one of those the algorithm's ``demand`` names; by default the first.

    Raises:
        AlgorithmCheckFailed: an ``AssertionError`` that lists the checks that fail, and by how much.
        InvalidInput: not an algorithm, or problem and topology do not fit together.

    Example:
        >>> from decentral.testing import check_algorithm
        >>> check_algorithm(decentral.A2CiD2())
    """
    if not isinstance(algorithm, Algorithm):
        raise InvalidInput(
            "algorithm",
            algorithm,
            "an instance of a subclass of decentral.Algorithm",
            "Derive it, then call it.",
        )
    staged = type(algorithm).forward is not Algorithm.forward
    usual = 2 * STAGES if staged else 6
    n = problem.n_workers if problem is not None else topology.n if topology is not None else usual
    if topology is None:
        topology = named("pipelines", n=n, stages=STAGES, broadcast=True) if staged else named("ring", n=n)
    if topology.n != n:
        raise InvalidInput("topology.n", topology.n, f"the {n} workers of the problem")
    # With x64 off a float64 constant would hide; float64 is to be tried anyway.
    with jax.enable_x64(True):
        build = _small_pipeline if staged else _small_problem
        problems = [build(n, dtype, seed) for dtype in TOLERANCE] if problem is None else [problem]
        name, failures = type(algorithm).__name__, {}
        for each in problems:
            found = _attempt(failures, "resolve", lambda p=each: _resolve(algorithm, p, topology, meeting))
            if found is None:
                break
            resolved, network, way = found
            _attempt(failures, "pytree", lambda a=resolved: _check_pytree(a))
            if "pytree" in failures:
                break
            bench = _Bench.of(resolved, network, each, seed, way)
            _run_battery(bench, failures, first=each is problems[0], last=each is problems[-1])
    if failures:
        raise AlgorithmCheckFailed(name, failures)


class _Failed(Exception):
    """A check's verdict."""


def _attempt(failures: dict[str, str], check: str, function: Callable[[], Any]) -> Any:
    """Call the check; keep its verdict, or the first line of whatever it raised."""
    try:
        return function()
    except _Failed as verdict:
        failures.setdefault(check, str(verdict))
    except Exception as error:  # whatever a user's algorithm raises is a finding
        failures.setdefault(check, _first_line(error))
    return None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def _run_battery(bench: _Bench, failures: dict[str, str], *, first: bool, last: bool) -> None:
    def attempt(check: str, function: Callable, *arguments: Any) -> Any:
        return _attempt(failures, f"{check} ({bench.dtype})", lambda: function(bench, *arguments))

    functions = _functions(bench)
    traced = attempt("traced", _trace, functions)
    if traced is None or not attempt("shapes", _check_shapes, *traced):
        return  # the other checks would only say it again
    batched = _batched(functions)
    samples = attempt("vmap", _samples, batched)
    if samples is None:
        return
    attempt("flow", _check_flow, batched, samples)
    attempt("conserved", _check_conserved, samples)
    values = attempt("pure", _check_pure, functions, samples)
    if values is not None:
        attempt("vmap", _check_vmap, batched, samples, values)
    if failures:
        return  # runs of wrong functions cost the most and say the least
    has_numbers = bool(jax.tree.leaves(bench.algorithm))
    if first or not has_numbers:
        attempt("rows", _check_rows)
    if last and has_numbers:
        attempt("replicas", _check_replicas)


# -- what is checked on what -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Bench:
    """A resolved algorithm on one problem, in one precision.

    ``numbers`` is the algorithm with its leaves as arrays of this precision, as the engine passes it.
    """

    algorithm: Algorithm
    numbers: Any
    problem: Problem
    network: Network
    dtype: str
    seed: int
    meeting: str

    @classmethod
    def of(cls, algorithm: Algorithm, network: Network, problem: Problem, seed: int, meeting: str) -> _Bench:
        dtype = np.dtype(problem.dtype).name
        numbers = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), algorithm)
        return cls(algorithm, numbers, problem, network, dtype, seed, meeting)

    @property
    def topology(self) -> Topology:
        """The graph, with the rates of the run."""
        assert isinstance(self.network.topology, Topology)
        return self.network.topology

    @property
    def sends(self) -> bool:
        """Workers meet, and so have messages."""
        return self.meeting not in ("gradient", "batches")

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.dtype]

    def actor(self, algorithm, state, elapsed_s, worker, key) -> Actor:
        def oracle(params, key, count):
            return self.problem.oracle(algorithm.oracle)(params, self.problem.shards, worker, key, count)

        return Actor(state, elapsed_s, jnp.uint32(0), algorithm, oracle, key, None, worker)


def _small_problem(n: int, dtype: str, seed: int) -> Problem:
    """Mean of curved bowls over a dict of a matrix and a vector: mu = 1, L = 2."""
    rng = np.random.default_rng(seed)
    data = {
        "curvature": 1 + rng.random((n, 1)),
        "matrix": rng.standard_normal((n, 1, 3, 2)),
        "vector": rng.standard_normal((n, 1, 2)),
    }

    def loss(params, sample):
        away = ((params[name] - sample[name]) ** 2 for name in ("matrix", "vector"))
        return sample["curvature"] / 2 * sum(jnp.sum(square) for square in away)

    def dual(y, shard):
        sample = jax.tree.map(lambda leaf: leaf[0], shard["samples"])
        return {name: sample[name] + y[name] / sample["curvature"] for name in ("matrix", "vector")}

    start = {"matrix": np.zeros((3, 2)), "vector": np.zeros(2)}
    problem = from_loss(loss, start, data, mu=1.0, L=2.0, dual=dual, dtype=dtype)
    return dataclasses.replace(problem, convex=False)  # no run here needs the optimum


def _small_pipeline(n: int, dtype: str, seed: int) -> Problem:
    """Three stages, the middle one reversible."""
    return reversible_mlp(n, stages=STAGES, hidden=3, batch_size=4, seed=seed, dtype=dtype)


def _functions(bench: _Bench) -> dict[str, Callable]:
    """The algorithm's functions, one signature each: ``function(algorithm, **what it needs of a sample)``."""

    def message(algorithm, state, worker, key):
        actor = bench.actor(algorithm, state, jnp.zeros((), bench.dtype), worker, key)
        return algorithm.message(state, Local(actor), key)

    def receive(algorithm, sent, theirs, mine):
        return algorithm.receive(sent, algorithm.decode(theirs), algorithm.decode(mine), 1.0)

    def passes(algorithm, state, gradient, key):
        """A batch goes up and comes down, or its error goes to all."""
        problem: Any = bench.problem  # made of stages
        stages, count = problem.stages, jnp.uint32(0)
        token, labels = problem.batch(problem.shards, jnp.int32(0), key, count)
        samples, below = token, []
        for j in range(len(stages) - 1):
            kind, index = stages.place(j)
            own = jax.tree.map(lambda leaf, i=index: leaf[i], state[kind])
            given = (token, None) if j else (None, samples)
            token, stash = algorithm.forward(stages.kinds[kind], own, *given)
            below.append((kind, index, own, stash))
        kind, index = stages.place(len(stages) - 1)
        own = jax.tree.map(lambda leaf: leaf[index], state[kind])
        if bench.meeting == "feedback":
            error, stash = algorithm.error(stages.kinds[kind], stages.loss, own, token, labels)
            changed = []
            for j, (name, row, before, kept) in enumerate([*below, (kind, index, own, stash)]):
                unit = Projection(jnp.int32(j), key, key) if j < len(below) else None
                new = algorithm.learn(stages.kinds[name], before, error, kept, count, samples, unit)
                changed.append((name, row, new))
        else:
            new, cotoken = algorithm.turn(stages.kinds[kind], stages.loss, own, token, labels, count)
            changed = [(kind, index, new)]
            for j, (kind, index, own, stash) in reversed(list(enumerate(below))):
                first = samples if j == 0 else None
                new, cotoken = algorithm.backward(stages.kinds[kind], own, cotoken, stash, count, first)
                changed.append((kind, index, new))
        for kind, index, new in changed:
            state = state | {
                kind: jax.tree.map(lambda leaf, value, i=index: leaf.at[i].set(value), state[kind], new)
            }
        return state

    functions = {
        "init": lambda algorithm, params, key: algorithm.init(params, key),
        "flow": lambda algorithm, state, dt: algorithm.flow(state, dt),
        "point": lambda algorithm, state: algorithm.point(state),
        "update": lambda algorithm, state, gradient, key: algorithm.update(state, gradient, key),
        "estimate": lambda algorithm, state: algorithm.estimate(state),
    }
    if bench.meeting in ("stages", "feedback"):
        functions["update"] = passes
    return functions | ({"message": message, "receive": receive} if bench.sends else {})


NEEDS = {
    "init": ("params", "key"),
    "flow": ("state", "dt"),
    "point": ("state",),
    "update": ("state", "gradient", "key"),
    "message": ("state", "worker", "key"),
    "receive": ("sent", "theirs", "mine"),
    "estimate": ("state",),
}
"""What a function is called with; ``sent`` is the state after a message was sent, which may have changed it."""


def _batched(functions: dict[str, Callable]) -> dict[str, Callable]:
    """The functions compiled and batched over samples; the algorithm's numbers are shared."""
    return {name: jax.jit(jax.vmap(functions[name], (None, *(0 for _ in NEEDS[name])))) for name in functions}


def _samples(bench: _Bench, batched: dict[str, Callable]) -> dict[str, Any]:
    """Arguments for ``STATES`` calls of every function, stacked; the states are reached by gradients and messages."""
    rng = np.random.default_rng(bench.seed)
    template = jax.eval_shape(bench.problem.initial, jax.random.key(0))

    def normal():
        return jax.tree.map(
            lambda leaf: jnp.asarray(rng.standard_normal((STATES, *leaf.shape)), leaf.dtype), template
        )

    samples = {
        "key": jax.random.split(jax.random.key(bench.seed), STATES),
        "worker": jnp.arange(STATES, dtype=jnp.int32) % bench.problem.n_workers,
        "dt": jnp.linspace(0.1, 2.0, STATES, dtype=bench.dtype),
        "params": normal(),
    }

    def step(name):
        return batched[name](bench.numbers, *(samples[need] for need in NEEDS[name]))

    def send():
        samples["mine"], samples["sent"] = step("message")
        samples["theirs"] = jax.tree.map(lambda leaf: jnp.roll(leaf, 1, 0), samples["mine"])

    samples["state"] = step("init")
    for _ in range(2):
        samples["gradient"] = normal()
        samples["state"] = step("update")
        samples["state"] = step("flow")
        if bench.sends:
            send()
            samples["state"] = step("receive")
    if bench.sends:
        send()
    if not np.isfinite(_numbers(samples)).all():
        raise _Failed("two gradients and two exchanges from a N(0, I) point give NaN or infinity")
    return samples


def _call(
    function: str, functions: dict[str, Callable], bench: _Bench, samples: dict, k: int
) -> tuple[Any, tuple]:
    """``(value, arguments)`` of a plain call on sample k: not compiled, not batched."""
    arguments = tuple(jax.tree.map(lambda leaf: leaf[k], samples[name]) for name in NEEDS[function])
    leaves = jax.tree.leaves(arguments)
    value = functions[function](bench.numbers, *arguments)
    after = jax.tree.leaves(arguments)
    if len(after) != len(leaves) or any(a is not b for a, b in zip(after, leaves, strict=True)):
        raise _Failed(f"{function} changes its arguments in place")
    return value, arguments


# -- the checks --------------------------------------------------------------------------------------------------------


def _resolve(
    algorithm: Algorithm, problem: Problem, topology: Topology, meeting: str | None
) -> tuple[Algorithm, Network, str]:
    demand = algorithm.demand(Network(topology))
    meeting = demand.meetings[0] if meeting is None else meeting
    if meeting not in demand.meetings:
        raise _Failed(f"it cannot meet by {meeting!r}: demand names {demand.meetings}")
    demand = dataclasses.replace(demand, meetings=(meeting,))
    network = Poisson().network(topology, demand) if meeting in ATOMIC else Network(topology, demand=demand)
    resolved = algorithm.resolve(problem, network)
    if type(resolved) is not type(algorithm):
        raise _Failed(f"returns {resolved!r}; it must return a {type(algorithm).__name__}")
    again = resolved.resolve(problem, network)
    if not _same_numbers(again, resolved):
        raise _Failed(f"resolving again changes it, from {resolved} to {again}")
    return resolved, network, meeting


def _check_pytree(algorithm: Algorithm) -> None:
    leaves, structure = jax.tree.flatten(algorithm)
    if any(leaf is algorithm for leaf in leaves):
        raise _Failed("JAX does not see its fields: decorate the class with @decentral.pytree")
    for path, leaf in jax.tree_util.tree_flatten_with_path(algorithm)[0]:
        if isinstance(leaf, bool) or not np.issubdtype(np.asarray(leaf).dtype, np.number) or np.ndim(leaf):
            raise _Failed(
                f"{jax.tree_util.keystr(path)} = {leaf!r} is no number: declare it as decentral.static(...)"
            )
    rebuilt = jax.tree.unflatten(structure, leaves)
    if type(rebuilt) is not type(algorithm) or not _same_numbers(rebuilt, algorithm):
        raise _Failed(f"flattened and rebuilt it is {rebuilt}, not {algorithm}")
    other = jax.tree.structure(jax.tree.unflatten(structure, [leaf * 0.9 for leaf in leaves]))
    if other != structure or hash(other) != hash(structure):
        raise _Failed("other numbers give another structure: every step size would compile anew")


def _same_numbers(one: Algorithm, other: Algorithm) -> bool:
    (leaves, structure), (others, other_structure) = jax.tree.flatten(one), jax.tree.flatten(other)
    return structure == other_structure and all(
        a is b or bool(a == b) for a, b in zip(leaves, others, strict=True)
    )


def _trace(bench: _Bench, functions: dict[str, Callable]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``(given, out)``: the shapes that went into the functions, and those that came out of each."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(bench.problem.initial, key)
    scalar = jax.ShapeDtypeStruct((), bench.dtype)
    worker = jax.ShapeDtypeStruct((), jnp.int32)
    given = {"params": params, "gradient": params, "key": key, "dt": scalar, "worker": worker}
    numbers = jax.tree.map(lambda leaf: scalar, bench.numbers)
    out = {}

    def trace(name):
        try:
            # A new function each time: JAX remembers the shapes of one that it has seen.
            return jax.eval_shape(
                lambda *a: functions[name](*a), numbers, *(given[need] for need in NEEDS[name])
            )
        except Exception as error:
            raise _Failed(f"{name}: {_first_line(error)}") from None

    given["state"] = out["init"] = trace("init")
    if bench.sends:
        out["message"] = trace("message")
        if not isinstance(out["message"], tuple) or len(out["message"]) != 2:
            raise _Failed("message must return (message, state)")
        given["mine"], given["sent"] = out["message"]
        given["theirs"] = given["mine"]
        out["message again"] = trace("message")
    return given, out | {name: trace(name) for name in functions if name not in out}


def _check_shapes(bench: _Bench, given: dict[str, Any], out: dict[str, Any]) -> bool:
    wrong = []
    for name, tree in (("init", given["state"]), ("message", given.get("mine"))):
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            if (
                jnp.issubdtype(leaf.dtype, jnp.floating)
                and leaf.dtype.itemsize > np.dtype(bench.dtype).itemsize
            ):
                where = jax.tree_util.keystr(path) or "it"
                wrong.append(f"{name}: {where} is {leaf.dtype} where the parameters are {bench.dtype}")
    for name in ("flow", "update", *(("receive",) if bench.sends else ())):
        wrong += _differences(name, out[name], given["state"])
    if bench.sends:
        wrong += _differences("message (the state after it)", out["message"][1], given["state"])
        wrong += _differences("message (a second one)", out["message again"][0], given["mine"])
    for name in ("point", "estimate"):
        wrong += _differences(name, out[name], given["params"])
    if wrong:
        raise _Failed("; ".join(wrong))
    return True


def _check_flow(bench: _Bench, batched: dict[str, Callable], samples: dict) -> None:
    def flow(state, dt):
        return batched["flow"](bench.numbers, state, jnp.full(STATES, dt, bench.dtype))

    state = samples["state"]
    _judge(_gap(flow(state, 0.0), state), bench, "flow(s, 0) differs from s")
    for a, b in ((0.3, 1.1), (4.0, 9.0)):
        gap = _gap(flow(flow(state, a), b), flow(state, a + b))
        _judge(gap, bench, f"not a semigroup: flow(flow(s, {a}), {b}) differs from flow(s, {a + b})")


def _check_conserved(bench: _Bench, samples: dict) -> None:
    if not bench.sends:
        return

    def pick(tree, k):
        return jax.tree.map(lambda leaf: leaf[k], tree)

    def total(algorithm, states):
        return jax.tree.map(lambda *leaves: sum(leaves), *(algorithm.conserved(state) for state in states))

    def sums(algorithm, columns):
        """``(before, after)`` of every meeting, all states flowed to its instant."""

        def actor(own):
            return bench.actor(algorithm, *own)

        ends = [actor(pick(columns, k)) for k in range(STATES)]
        flowed = [algorithm.flow(end.state, end.elapsed) for end in ends]
        if bench.meeting not in ("mix", "average"):
            pairs = [slice(k, k + 2) for k in range(0, STATES, 2)]
            meetings = [(flowed[pair], INSTRUCTIONS["exchange"](*ends[pair])) for pair in pairs]
        else:
            weights = _stochastic() if bench.meeting == "mix" else np.full((STATES, STATES), 1 / STATES)

            def combine(messages):
                return jax.tree.map(lambda leaf: jnp.tensordot(weights.astype(leaf.dtype), leaf, 1), messages)

            def workers(function, *more):
                return jax.vmap(lambda own, *more: function(actor(own), *more))(columns, *more)

            after = meet(workers, combine, jnp.ones(STATES, bool))
            meetings = [(flowed, [pick(after, k) for k in range(STATES)])]
        return [(total(algorithm, states), total(algorithm, then)) for states, then in meetings]

    elapsed = jnp.linspace(0.6, 1.7, STATES, dtype=bench.dtype)
    columns = (samples["state"], elapsed, samples["worker"], samples["key"])
    what = {"mix": "a mixing matrix", "average": "a mean"}.get(bench.meeting, "an exchange")
    for before, after in jax.jit(sums)(bench.numbers, columns):
        gap = _gap(after, before, max(_largest(samples["state"]), _largest(before)))
        _judge(gap, bench, f"{what} changes the sum of what `conserved` returns")


def _stochastic() -> np.ndarray:
    """A doubly stochastic matrix that is neither symmetric nor uniform."""
    return 0.5 * np.eye(STATES) + 0.3 * np.roll(np.eye(STATES), 1, 0) + 0.2 * np.roll(np.eye(STATES), -1, 0)


def _check_pure(bench: _Bench, functions: dict[str, Callable], samples: dict) -> dict[str, list[Any]]:
    """Plain calls, each sample twice; returns the values."""
    values = {}
    for name in functions:
        first = [_call(name, functions, bench, samples, k)[0] for k in range(STATES)]
        second = [_call(name, functions, bench, samples, k)[0] for k in range(STATES)]
        for one, two in zip(first, second, strict=True):
            if differences := _differences(name, two, one):
                raise _Failed(f"called again with the same arguments: {differences[0]}")
            if (gap := _gap(two, one)) > 0:
                raise _Failed(
                    f"{name} gives another value for the same arguments (by {gap:.1e}): hidden state?"
                )
        values[name] = first
    return values


def _check_vmap(
    bench: _Bench, batched: dict[str, Callable], samples: dict, values: dict[str, list[Any]]
) -> None:
    for name in values:
        together = batched[name](bench.numbers, *(samples[need] for need in NEEDS[name]))
        alone = jax.tree.map(lambda *leaves: jnp.stack(leaves), *values[name])
        _judge(
            _gap(together, alone),
            bench,
            f"{name} compiled and batched differs from {name} of each worker alone",
        )


def _check_rows(bench: _Bench) -> None:
    trace = _timeline(bench, bench.seed, slow=False)
    rows, eager = (_final(bench, trace, bench.algorithm, executor) for executor in ("rows", "eager"))
    _judge(_gap(rows, eager), bench, f"after {len(trace)} events rows differ from one event after another")


def _check_replicas(bench: _Bench) -> None:
    other = jax.tree.map(lambda leaf: leaf * 0.9, bench.algorithm)
    pair = (bench.algorithm, other)
    trace = merge([_timeline(bench, bench.seed + k, slow=True) for k in range(2)])
    together = _final(bench, trace, pair, "rows")
    for index, algorithm in enumerate(pair):
        alone = _final(bench, trace.replica(index), algorithm, "eager")
        # A worker per worker, or one server, in each replica.
        mine = jax.tree.map(lambda leaf, k=index: jnp.split(leaf, 2)[k], together)
        whose = "its own numbers" if index == 0 else "every number times 0.9"
        _judge(
            _gap(mine, alone),
            bench,
            f"the replica with {whose} in a trace of two, in rows, differs from a run alone, event by event",
        )


def _timeline(bench: _Bench, seed: int, *, slow: bool) -> Trace:
    """Gradients and meetings at random; with ``slow`` they take time where they can."""
    if bench.meeting in ATOMIC and not slow:
        rate = bench.topology.n * bench.network.gradients_per_s + bench.topology.total_rate
        return Poisson().timeline(bench.network, Time(EVENTS / rate), seed)
    rng, n = np.random.default_rng(seed), bench.problem.n_workers
    if bench.meeting == "batches":
        return rounds_of_counts(rng.integers(1, 4, (EVENTS // (2 * n), n)), seed=seed)
    if bench.meeting in ("stages", "feedback"):
        protocol = Pipeline("petra" if bench.meeting == "stages" else "dfa", gossip_every=3)
        network = network_of(protocol, bench.topology, bench.algorithm, bench.problem)
        return protocol.timeline(network, Gradients(EVENTS // n), seed)
    edges = bench.topology.edges
    events: list[tuple] = []
    numbers: dict[str, int] = {"gradient": 0, "pair": 0, "message": 0}
    under_way: list[tuple] = []  # the event that ends it

    def new(bank: str) -> int:
        numbers[bank] += 1
        return numbers[bank] - 1

    def start(worker: int) -> None:
        slot = new("gradient")
        if bench.sends:
            events.append(("gradient_start", worker, slot))
            under_way.append(("gradient_commit", worker, slot))
        else:
            events.extend((("pull", worker, 0, slot), ("evaluate", worker, slot)))
            under_way.append(("push", worker, 0, slot))

    def meets() -> None:
        i, j = rng.permutation(edges[rng.integers(len(edges))]).tolist()
        if bench.meeting in (*ATOMIC, "pairs"):
            a, b = new("pair"), new("pair")
            events.append(("exchange_start", i, j, a, b))
            under_way.extend((("exchange_commit", i, a), ("exchange_commit", j, b)))
        elif bench.meeting == "push":
            slot = new("message")
            events.append(("send", i, slot))
            under_way.append(("receive", j, slot))
        else:
            events.append(("step", 0, 0, 0) if bench.meeting == "gradient" else (bench.meeting, 0, 0))

    while len(events) < EVENTS:
        if under_way and rng.random() < len(under_way) / n:
            events.append(under_way.pop(rng.integers(len(under_way))))
        elif rng.random() < 0.4 or not (bench.sends or slow):
            meets()
        elif slow:
            start(int(rng.integers(n)))
        else:
            events.append(("gradient", int(rng.integers(n))))
    workers = np.arange(n)
    receiver, sender = (part.ravel() for part in np.meshgrid(workers, workers, indexing="ij"))
    weight = bench.topology.metropolis().toarray().ravel()
    tables = {
        "gradient": (np.full(n, -1), workers, np.full(n, 1 / n)),
        "average": (workers, workers, np.full(n, 1 / n)),
        "mix": tuple(column[weight > 0] for column in (receiver, sender, weight)),
    }
    width = max(len(event) for event in events) - 1
    return Trace.from_arrays(
        np.cumsum(rng.exponential(1 / (2 * n), len(events))),
        [event[0] for event in events],
        [event[1:] + (-1,) * (width + 1 - len(event)) for event in events],
        n_workers=n,
        ops=sorted({event[0] for event in events}),
        seed=seed,
        groups=Groups.of([tables[bench.meeting]] if bench.meeting in tables else []),
    )


def _final(bench: _Bench, trace, algorithm: Algorithm | Sequence[Algorithm], executor: str) -> Any:
    """The workers' states at the end of a run."""
    record = Record(events=(len(trace),), evaluate=False)
    return replay(
        trace, bench.problem, algorithm, network=bench.network, record=record, executor=executor
    ).final


# -- comparing ---------------------------------------------------------------------------------------------------------


def _judge(gap: float, bench: _Bench, what: str) -> None:
    if not gap <= bench.tolerance:
        raise _Failed(f"{what} by {gap:.1e} of the largest number (allowed {bench.tolerance:.0e})")


def _differences(name: str, got: Any, expected: Any) -> list[str]:
    """How two trees of arrays differ in structure, shape or dtype."""
    if jax.tree.structure(got) != jax.tree.structure(expected):
        return [
            f"{name}: structure {jax.tree.structure(got)} where {jax.tree.structure(expected)} is expected"
        ]
    pairs = zip(jax.tree_util.tree_flatten_with_path(got)[0], jax.tree.leaves(expected), strict=True)
    return [
        f"{name}: {jax.tree_util.keystr(path) or 'it'} is {a.dtype}{list(a.shape)} where {b.dtype}{list(b.shape)} is expected"
        for (path, a), b in pairs
        if a.shape != b.shape or a.dtype != b.dtype
    ]


def _plain(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _numbers(tree: Any) -> np.ndarray:
    """All floating numbers of a tree, in float64."""
    leaves = [_plain(leaf) for leaf in jax.tree.leaves(tree)]
    floats = [leaf.ravel() for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return np.concatenate([leaf.astype(np.float64) for leaf in floats]) if floats else np.zeros(0)


def _largest(tree: Any) -> float:
    return float(np.abs(_numbers(tree)).max(initial=0.0))


def _gap(got: Any, expected: Any, scale: float | None = None) -> float:
    """Largest difference relative to the largest number; infinite where integers, or what is not finite, differ."""
    a, b = _numbers(got), _numbers(expected)
    rest = [
        [leaf for leaf in map(_plain, jax.tree.leaves(tree)) if not jnp.issubdtype(leaf.dtype, jnp.floating)]
        for tree in (got, expected)
    ]
    if a.shape != b.shape or not all(np.array_equal(x, y) for x, y in zip(*rest, strict=True)):
        return float("inf")
    difference = np.abs(a - b)[~((a == b) | (np.isnan(a) & np.isnan(b)))]
    if not difference.size:
        return 0.0
    scale = max(_largest(got), _largest(expected)) if scale is None else scale
    worst = float(difference.max())
    return worst / scale if np.isfinite(worst) and scale > 0 else float("inf")
