"""Tuning by gradient: the slope of a run's result in its hyper-parameters, by reverse mode through all its events."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse as sp

from decentral.algorithm import Algorithm
from decentral.algorithm.optimizer import Optimizer, Schedule
from decentral.analysis.plots import STYLE, save_figure
from decentral.errors import InvalidInput, RunFailed, check_integer, check_number, suggest
from decentral.experiment.entry import prepare
from decentral.experiment.record import Record
from decentral.experiment.unroll import Chunk, Unroll
from decentral.problem import Problem
from decentral.protocol import Protocol, Stop
from decentral.timing import Cluster
from decentral.topology import Topology
from decentral.topology.schedules import Schedule as MixingSchedule

EDGE_WEIGHTS = "edge_weights"
"""The name of the weights of the topology's edges in the mixing matrix."""
SHARES = ("momentum", "b1", "b2", "b3", "decay", "decay_rate")
"""Arguments of optimizers that lie between 0 and 1: they move in logit coordinates, all else in logarithms."""
STENCIL = {np.dtype("float64"): 1e-3, np.dtype("float32"): 3e-2}
"""Step of the finite differences (of fourth order) that the gradient is compared with."""
LOST = 10.0
"""Tuning goes back where the result is worse than the best by more than so many times that at the start."""
RETREATS = 8
"""How often in a row it may go back."""


@dataclass(frozen=True, eq=False)
class GradientTuning:
    """What tuning by gradient found.

    Attributes:
        algorithm: with the values found; step sizes that were open and not tuned are those of the first seed.
        values: name -> the value found, a float, or an array ``(edges,)`` for the weights of edges.
        objective: float64 ``(steps + 1,)``, at each hyper-step, the first at the start; infinite where it went
            back; fewer where it did so too often in a row, and gave up.
        history: name -> as many values.
        best: the hyper-step that ``values`` are of: the one with the best objective.
        metric: what was tuned for.
        gradient_error: relative difference, at the start, between the slope along the gradient and a finite difference of
            fourth order: 1e-6 and less in float64; in float32 what rounding leaves.
        events: of all seeds, that the gradient goes through.
        edges: int64 ``(edges, 2)``, whose weights the values "edge_weights" are; None where these were not tuned.
        mixing: the mixing matrix found, as a schedule for ``Rounds(mixing=...)``; or None.
    """

    algorithm: Algorithm
    values: Mapping[str, Any]
    objective: np.ndarray
    history: Mapping[str, np.ndarray]
    best: int
    metric: str
    gradient_error: float
    events: int
    edges: np.ndarray | None = None
    mixing: MixingSchedule | None = None

    @property
    def improvement(self) -> float:
        """The objective at the start over the best, 1 or more where less is better."""
        return float(self.objective[0] / self.objective[self.best])

    def plot(self, path: str | Path) -> Path:
        """The objective and the values, relative to the start, against hyper-steps.

        Args:
            path: a PNG, PDF or SVG file.
        """
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(7.4, 3.2), layout="constrained")
            left, right = figure.subplots(1, 2)
            left.plot(np.where(np.isfinite(self.objective), self.objective, np.nan), color="#3f90da")
            left.plot(self.best, self.objective[self.best], "o", color="#3f90da", markerfacecolor="none")
            left.set(xlabel="hyper-step", ylabel=self.metric)
            for name, values in self.history.items():
                flat = values.reshape(len(values), -1)
                lines = right.plot(flat[:, 0] / flat[0, 0], label=name)
                for column in range(1, flat.shape[1]):
                    right.plot(flat[:, column] / flat[0, column], color=lines[0].get_color(), alpha=0.4)
            right.axhline(1, color="#717581", linewidth=0.8)
            right.set(xlabel="hyper-step", ylabel="value / start", yscale="log")
            right.legend()
            figure.suptitle("Tuning by gradient through the events", x=0.01, ha="left")
        return save_figure(figure, Path(path))


def tune_by_gradient(
    problem: Problem | Sequence[Problem],
    topology: Topology | Sequence[Topology],
    algorithm: Algorithm,
    protocol: Protocol | None = None,
    *,
    tune: Sequence[str],
    cluster: Cluster | None = None,
    stop: Stop | float,
    seeds: int | Sequence[int] = 1,
    record: Record | None = None,
    metric: str = "loss",
    steps: int = 100,
    step_size: float = 0.05,
    progress: Callable[[int, float], None] | None = None,
) -> GradientTuning:
    """Descend along the gradient of a run's result in its hyper-parameters, on the same events all the time.

    The gradient is exact: reverse mode through every event. Adam moves the logarithms of the values (of what lies between 0
    and 1, such as momentum, the logits), with a step that falls to 0 as half a cosine. Values start where the algorithm has
    them: its own, or those of the theory. Where the run diverges or gets far worse, tuning goes back to the best values so far
    and halves its step. As seeds are fixed, the values are the best for their noise: use several.

    Args:
        problem: as in :func:`decentral.simulate`, like all that is not named here.
        topology: the graph, or one per seed.
        algorithm: where tuning starts.
        protocol: when things happen.
        tune: names of numbers of the algorithm, such as "optimizer.learning_rate", "optimizer.momentum", "eta",
            "alpha_tilde"; and "edge_weights": the weight of each edge of the topology in the mixing matrix, which stays
            symmetric with rows that sum to 1.
        cluster: compute times, links and failures.
        stop: simulated seconds, ``Time`` or ``Gradients``.
        seeds: the objective is the mean over these.
        record: the objective is the mean over its records after 0; by default there is one, at the end.
        metric: a recorded metric that gets smaller as a run gets better, and has a slope.
        steps: hyper-steps.
        step_size: of Adam, in the coordinates: at 0.05 values change by about 5 % in a step.
        progress: called with the hyper-step and the objective after each.

    Raises:
        InvalidInput: a name that is none, or of no number; a value that is 0 or open; a parameter that decides when things
            happen, as the events are fixed; a metric that does not depend on what is tuned.
        RunFailed: the run diverges at the start, or has no finite gradient there.

    Example:
        >>> tuned = tune_by_gradient(problem, topology, A2CiD2(), tune=("eta", "alpha_tilde"), stop=100.0,
        ...                          metric="suboptimality")
        >>> tuned.values, tuned.improvement
        >>> simulate(problem, topology, tuned.algorithm, stop=100.0, seeds=[7, 8, 9])
    """
    check_integer("steps", steps, 1)
    check_number("step_size", step_size, 0, math.inf, above=True)
    simulation = prepare(
        problem, topology, algorithm, protocol,
        cluster=cluster, stop=stop, seeds=seeds, record=record or Record(count=1),
    )  # fmt: skip
    names = simulation.metric_names()
    if metric not in names:
        raise InvalidInput("metric", metric, "a recorded metric", suggest(metric, names))
    unroll = Unroll(simulation)
    knobs = _knobs(tune, unroll)

    def objective(coordinates: dict[str, jax.Array]) -> jax.Array:
        changed, chunks = unroll.algorithm, unroll.chunks
        for name, knob in knobs.items():
            changed, chunks = knob.put(changed, chunks, knob.value(coordinates[name]))
        return unroll.values(changed, unroll.start(changed), metric, chunks).mean()

    slope = jax.jit(jax.value_and_grad(objective))
    at = {name: jnp.asarray(knob.origin, simulation.dtype) for name, knob in knobs.items()}
    value, gradient = slope(at)
    _check_start(float(value), gradient, metric)
    # the values that come with slopes: another program would take as long again to compile
    error = _difference(lambda x: slope(x)[0], at, gradient, STENCIL[simulation.dtype])

    schedule, adam = optax.cosine_decay_schedule(step_size, steps), optax.adam(1.0)
    move = jax.jit(adam.update)
    memory, factor, best, retreats = adam.init(at), 1.0, 0, 0
    objectives, points = [float(value)], [at]
    for step in range(steps):
        update, memory = move(gradient, memory)
        size = factor * float(schedule(step))
        at = jax.tree.map(lambda x, change, size=size: x + size * change, at, update)
        value, gradient = slope(at)
        limit = objectives[best] + LOST * abs(objectives[0])
        good = float(value) <= limit and _finite(gradient)  # NaN is not good
        objectives.append(float(value) if good else np.inf)
        points.append(at)
        if good:
            retreats = 0
            best = len(points) - 1 if objectives[-1] < objectives[best] else best
        elif (retreats := retreats + 1) > RETREATS:
            break
        else:
            at, factor = points[best], factor / 2
            memory, gradient = adam.init(at), slope(at)[1]
        if progress is not None:
            progress(step + 1, objectives[-1])
    history = {
        name: np.stack([np.asarray(knob.value(point[name]), np.float64) for point in points])
        for name, knob in knobs.items()
    }
    values = {name: of[best] if of.ndim > 1 else float(of[best]) for name, of in history.items()}
    found, edges, mixing = simulation.algorithms[0], None, None
    for name, number in values.items():
        if name == EDGE_WEIGHTS:
            edges = knobs[name].edges
            mixing = _schedule(simulation.trace.n_workers, edges, np.asarray(number))
        else:
            found = _replaced(found, name, number)
    return GradientTuning(
        found,
        values,
        np.array(objectives),
        history,
        best,
        metric,
        error,
        len(simulation.trace),
        edges,
        mixing,
    )


# -- what is tuned -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Knob:
    """One thing that is tuned.

    Attributes:
        origin: its coordinate at the start.
        value: coordinate -> value.
        put: ``put(algorithm, chunks, value) -> (algorithm, chunks)``.
        edges: int64 ``(edges, 2)``, where it is the weights of edges.
    """

    origin: Any
    value: Callable[[Any], jax.Array]
    put: Callable[[Any, Chunk, jax.Array], tuple[Any, Chunk]]
    edges: np.ndarray | None = None


def _knobs(tune: Sequence[str], unroll: Unroll) -> dict[str, _Knob]:
    names = not isinstance(tune, str) and all(isinstance(name, str) for name in tune)
    if not names or not tune or len(set(tune)) < len(tune):
        raise InvalidInput("tune", tune, 'a list of names, each once, e.g. ["optimizer.learning_rate"]')
    return {name: _edge_weights(unroll) if name == EDGE_WEIGHTS else _number(name, unroll) for name in tune}


def _number(name: str, unroll: Unroll) -> _Knob:
    """A number of the algorithm.

    Raises:
        InvalidInput: it is none that can be tuned on fixed events.
    """
    simulation = unroll.simulation
    leaves = _numbers(unroll.algorithm)
    if name not in leaves:
        algorithm, parts = simulation.algorithms[0], name.split(".")
        for part in parts:
            of = algorithm.arguments if isinstance(algorithm, Optimizer | Schedule) else vars(algorithm)
            if part not in of:
                raise InvalidInput(
                    "tune", name, "numbers of the algorithm", suggest(name, (*leaves, EDGE_WEIGHTS))
                )
            algorithm = of[part]
            if not hasattr(algorithm, "__dict__"):
                break
        if algorithm is None:
            raise InvalidInput(
                "tune", f"{name} = None", "a number that is set", "It has no value to start from."
            )
        raise InvalidInput(
            "tune", f"{name} = {algorithm!r}", "numbers that a run is a smooth function of",
            "Counts, words and switches are part of the program.",
        )  # fmt: skip
    value = np.asarray(leaves[name], np.float64)
    if value.ndim > int(unroll.program.per_replica):
        raise InvalidInput("tune", f"{name}, of shape {value.shape}", "single numbers")
    network, resolved = simulation.networks[0], simulation.algorithms[0]
    if network is not None:
        other = _replaced(resolved, name, 1.01 * float(value.mean()) + 1e-3)
        if other.demand(network) != resolved.demand(network):
            raise InvalidInput(
                "tune", name, "numbers that do not decide when things happen", "The events are fixed while tuning."
            )  # fmt: skip
    share = name.rpartition(".")[2] in SHARES
    if not (value > 0).all() or (share and not (value < 1).all()):
        allowed = "a value between 0 and 1 to start from" if share else "a value above 0 to start from"
        raise InvalidInput("tune", f"{name} = {float(value.min()):g}", allowed, "Zero would stay zero.")

    def put(algorithm: Any, chunks: Chunk, value: jax.Array) -> tuple[Any, Chunk]:
        return _replaced(algorithm, name, value), chunks

    # of seeds that start at several values the mean, in the coordinate
    if share:
        return _Knob(np.log(value / (1 - value)).mean(), jax.nn.sigmoid, put)
    return _Knob(np.log(value).mean(), jnp.exp, put)


def _numbers(algorithm: Any) -> dict[str, Any]:
    """Dotted name -> value, of every number in an algorithm, but for the factors of µP."""
    named = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(algorithm)}
    return {name: leaf for name, leaf in named.items() if "multipliers" not in name.split(".")}


def _name(path: Sequence[Any]) -> str:
    return ".".join(str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path)


def _replaced(algorithm: Any, name: str, value: Any) -> Any:
    """The algorithm with another value of one of its numbers, in all replicas."""

    def one(path: Sequence[Any], leaf: Any) -> Any:
        if _name(path) != name:
            return leaf
        return jnp.broadcast_to(value, jnp.shape(leaf)) if isinstance(leaf, jax.Array) else value

    return jax.tree_util.tree_map_with_path(one, algorithm)


def _edge_weights(unroll: Unroll) -> _Knob:
    """The weights of the edges in all mixing matrices of a run.

    Raises:
        InvalidInput: nothing is mixed by matrices, or not by a symmetric one, the same in every round and for every seed.
    """
    n, groups = unroll.simulation.trace.n_workers, unroll.chunks.groups
    if "mix" not in groups:
        raise InvalidInput(
            "tune", EDGE_WEIGHTS, "numbers of the algorithm: this run has no mixing matrices",
            "Rounds(mixing=...) has, with an algorithm such as DPSGD.",
        )  # fmt: skip
    schedules = [network.schedule for network in unroll.simulation.networks if network is not None]
    matrices = [matrix for one in schedules if one is not None for matrix in one.rounds]
    if any(abs(matrix - other).max() > 1e-12 for matrix in matrices for other in (matrix.T, matrices[0])):
        raise InvalidInput(
            "tune", EDGE_WEIGHTS, "numbers of the algorithm: this run's mixing matrices are not symmetric, or not all the same",
            "What is found is one symmetric matrix for every round: start from 'metropolis' or 'laplacian', on one topology.",
        )  # fmt: skip
    shape = groups["mix"]["receiver"].shape
    flat = -1, shape[-1]
    receiver, sender, weight = (
        np.asarray(groups["mix"][name]).reshape(flat) for name in ("receiver", "sender", "weight")
    )
    sums, there = np.zeros((len(receiver), n + 1)), np.zeros((len(receiver), n + 1), bool)
    row = np.arange(len(receiver))[:, None]
    np.add.at(sums, (row, receiver), weight)
    there[row, receiver] = True
    away = (receiver != sender) & (receiver < n)
    pairs = np.sort(np.stack([receiver[away], sender[away]], axis=1), axis=1)
    edges, number = np.unique(pairs, axis=0, return_inverse=True)
    start = np.bincount(number.ravel(), weight[away]) / np.bincount(number.ravel())
    if not np.allclose(sums[:, :n][there[:, :n]], 1, atol=1e-6) or not (start > 0).all():
        allowed = "numbers of the algorithm: this run's matrices are no weighted means"
        raise InvalidInput("tune", EDGE_WEIGHTS, allowed)
    of_entry = np.full(receiver.shape, len(edges), np.int32)
    of_entry[away] = number.ravel()
    own, of_entry, target = jnp.asarray(receiver == sender), jnp.asarray(of_entry), jnp.asarray(receiver)

    def value(coordinate: jax.Array) -> jax.Array:
        # no worker's weights of others come to more than 1: its own stays at 0 or above
        raw = jnp.exp(coordinate)
        total = jnp.zeros(n, raw.dtype).at[edges].add(raw[:, None])
        return raw / jnp.maximum(1.0, total[edges].max(1))

    def put(algorithm: Any, chunks: Chunk, weights: jax.Array) -> tuple[Any, Chunk]:
        others = jnp.append(weights, 0.0)[of_entry]

        def rest(target: jax.Array, others: jax.Array) -> jax.Array:
            return 1 - jnp.zeros(n + 1, others.dtype).at[target].add(others)[target]

        mixed = jnp.where(own, jax.vmap(rest)(target, others), others).reshape(shape)
        mix = {**chunks.groups["mix"], "weight": mixed}
        return algorithm, chunks._replace(groups={**chunks.groups, "mix": mix})

    return _Knob(np.log(start), value, put, edges)


def _schedule(n: int, edges: np.ndarray | None, weights: np.ndarray) -> MixingSchedule:
    assert edges is not None
    matrix = sp.lil_matrix((n, n))
    for (i, j), weight in zip(edges.tolist(), weights.tolist(), strict=True):
        matrix[i, j] = matrix[j, i] = weight
    own = np.maximum(1 - np.asarray(matrix.sum(1)).ravel(), 0)
    return MixingSchedule("tuned", n, (sp.csr_matrix(matrix + sp.diags_array(own)),))


# -- the gradient ------------------------------------------------------------------------------------------------------


def _finite(gradient: dict[str, jax.Array]) -> bool:
    return all(bool(np.isfinite(leaf).all()) for leaf in gradient.values())


def _check_start(value: float, gradient: dict[str, jax.Array], metric: str) -> None:
    """Raise what is wrong with the first gradient."""
    if not math.isfinite(value):
        raise RunFailed(
            f"The run diverges where tuning starts ({metric} = {value}). Start from smaller step sizes."
        )
    if not _finite(gradient):
        bad = ", ".join(name for name, leaf in gradient.items() if not np.isfinite(leaf).all())
        raise RunFailed(
            f"The gradient in {bad} is not finite where tuning starts. Roots have no slope at 0: Adam and RMSProp need "
            "optimizer.eps_root > 0, e.g. 1e-12, where gradients may be exactly 0."
        )
    for name, leaf in gradient.items():
        if not np.asarray(leaf).any():
            raise InvalidInput(
                "tune", name, f"what {metric} depends on", "Its slope is exactly 0 on these events."
            )


def _difference(
    objective: Callable, at: dict[str, jax.Array], gradient: dict[str, jax.Array], step: float
) -> float:
    """Relative difference of the slope along the gradient and the finite difference of fourth order with this step."""
    norm = math.sqrt(sum(float((leaf**2).sum()) for leaf in gradient.values()))

    def along(distance: float) -> float:
        return float(objective(jax.tree.map(lambda x, g: x + distance / norm * g, at, gradient)))

    near, far = along(step) - along(-step), along(2 * step) - along(-2 * step)
    return abs((8 * near - far) / (12 * step) / norm - 1)
