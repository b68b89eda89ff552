"""Metrics at a record time, computed on the device at bounded cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decentral.engine.execute import Context, Program

AT_ONCE = 256
"""Samples of single models that are looked at together where models are deep."""
RECORDED_WORKERS = 16
"""Losses of single workers are taken on at most this many workers: on all of them one record would cost O(n^2)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Metrics:
    """All metrics of one record in one array: fetching a dozen small ones costs more than computing some of them.

    Attributes:
        values: ``(metrics, replicas)``.
        names: of the metrics.
    """

    values: jax.Array
    names: tuple[str, ...] = field(metadata={"static": True})

    def as_dict(self) -> dict[str, np.ndarray]:
        """Name -> float64 ``(replicas,)``, on the host."""
        return dict(zip(self.names, np.asarray(self.values).astype(np.float64), strict=True))


@lru_cache(maxsize=8)
def recorder(program: Program, bank: str, per_problem: bool, evaluate: bool):
    """The compiled ``record(banks, elapsed, context, targets) -> Metrics`` of a program; arguments as of :func:`measures`."""
    measure = measures(program, bank, per_problem, evaluate)

    def record(banks, elapsed, context: Context, targets):
        metrics = measure(banks, elapsed, context, targets)
        return Metrics(jnp.stack([m.astype(elapsed.dtype) for m in metrics.values()]), tuple(metrics))

    return jax.jit(record)


def measures(program: Program, bank: str, per_problem: bool, evaluate: bool):
    """The pure ``measure(banks, elapsed, context, targets) -> {name: (replicas,)}`` of a program; it differentiates.

    Args:
        program: the run's program.
        bank: where the models are: ``"worker"``, ``"server"`` for algorithms that hold one copy, ``"stage"`` for pipelines.
        per_problem: each replica has its own data (else all share one problem's).
        evaluate: compute losses and accuracies too, not only distances.

    Metrics, each of shape ``(replicas,)``; x_i is a worker's estimate, stored (at its own last event) or flowed to the
    record time:

    * ``consensus_distance``, ``consensus_distance_stored``: mean_i ||x_i - mean x||^2, flowed and stored;
    * ``distance_to_optimum``, ``distance_to_optimum_stored``: mean_i ||x_i - x*||^2, when x* is known;
    * ``distance_to_weighted_optimum``: the same to the minimiser of sum_i r_i f_i, with r_i the rate at which worker i's
      gradients were applied in this run: where asynchronous methods go when speeds differ;
    * ``mean_distance_to_optimum``, ``mean_distance_to_weighted_optimum``: ||mean x - x*||^2 to either;
    * ``messages_sent``: for algorithms that may stay silent, messages that were sent;
    * what ``Algorithm.metrics`` names, mean and (``..._worst``) largest over all workers, stored;
    * ``loss``: f at the mean of the (flowed) workers; ``suboptimality``: that minus f(x*);
    * ``loss_workers``, ``loss_worst``: mean and largest f over the recorded workers;
    * for every name the problem evaluates, e.g. ``accuracy``: ``train_accuracy`` and ``test_accuracy`` of the mean of the
      workers, ``..._workers`` (mean) and ``..._worst`` (smallest; a loss: largest) over the recorded workers. Of deep
      models (``is_deep``) with held-out samples the recorded workers have only the ``test_`` ones;
    * ``alignment_0``, ...: of algorithms with a random feedback, for each layer but the last, the cosine of the slopes that it
      makes and the exact gradient, at the mean of the workers, on the first samples of every shard, ``AT_ONCE`` of them
      together (the same at every record). Of private units: the mean over those of the recorded workers;
    * ``finite``: 1.0 while every number of the state is finite.
    """
    problem = program.problem

    def of_replica(stored, flowed, shards, held_out, recorded, optimum, optimal_value, weighted_optimum):
        mean = _mean(flowed)
        metrics = {
            "consensus_distance": _spread(flowed, mean),
            "consensus_distance_stored": _spread(stored, _mean(stored)),
        }
        if optimum is not None:
            metrics["distance_to_optimum"] = _spread(flowed, optimum)
            metrics["distance_to_optimum_stored"] = _spread(stored, optimum)
        if weighted_optimum is not None:
            of_mean = jax.tree.map(lambda leaf: leaf[None], mean)
            metrics["distance_to_weighted_optimum"] = _spread(flowed, weighted_optimum)
            metrics["mean_distance_to_weighted_optimum"] = _spread(of_mean, weighted_optimum)
            if optimum is not None:
                metrics["mean_distance_to_optimum"] = _spread(of_mean, optimum)
        if not evaluate:
            return metrics

        # Deep models see some shards at a time too: all of them at once are the activations of the whole data set.
        samples = max((leaf.shape[1] for leaf in jax.tree.leaves(shards) if leaf.ndim > 1), default=1)
        at_once = max(1, AT_ONCE // samples) if problem.is_deep else 0

        def each_shard(function, shards):
            return (
                jax.lax.map(function, shards, batch_size=at_once) if at_once else jax.vmap(function)(shards)
            )

        def measured(model, of_one):
            values, scores = {}, {}
            if not (of_one and problem.is_deep and held_out is not None):
                values["loss"] = each_shard(lambda shard: problem.loss(model, shard), shards).mean()
                scores["train"] = _pooled(
                    each_shard(lambda shard: problem.train_metrics(model, shard), shards)
                )
            if held_out is not None:
                scores["test"] = problem.evaluate(model, held_out)
            return values | {f"{split}_{name}": v for split, of in scores.items() for name, v in of.items()}

        # Workers outside, shards inside: for a linear model both fold into one matrix product. The mean apart: 16 columns
        # are whole vectors of the processor, 17 cost a third more.
        # Deep models one by one: their activations do not fold.
        every = jax.lax.map if problem.is_deep else lambda function, models: jax.vmap(function)(models)
        of_workers = every(lambda model: measured(model, True), jax.tree.map(lambda x: x[recorded], flowed))
        for name, value in measured(mean, False).items():
            metrics[name] = value
            if name not in of_workers:
                continue
            metrics[f"{name}_workers"] = of_workers[name].mean()
            low = not name.endswith("loss")
            metrics[f"{name}_worst"] = of_workers[name].min() if low else of_workers[name].max()
        if optimal_value is not None:
            metrics["suboptimality"] = metrics["loss"] - optimal_value
        return metrics

    def aligned(means, shards, context: Context, targets):
        feedback = context.algorithm.feedback
        if context.feedback_keys is None or not feedback.is_random:
            return {}
        units = context.feedback_keys.reshape(len(targets.recorded), -1)

        def of_replica(mean, shards, units, recorded):
            chosen = units[recorded] if feedback.units == "private" else units[:1]
            x, labels = _first_samples(shards["samples"])
            of_unit = lambda unit: feedback.alignment(problem.stages, mean, x, labels, unit)  # noqa: E731
            return jax.lax.map(of_unit, chosen).mean(0)

        cosines = jax.vmap(of_replica, (0, 0 if per_problem else None, 0, 0))(
            means, shards, units, targets.recorded
        )
        return {f"alignment_{layer}": values for layer, values in enumerate(cosines.T)}

    def measure(banks, elapsed, context: Context, targets) -> dict[str, jax.Array]:
        states = held(banks, bank, elapsed.shape[0])
        replicas = context.replica_of.shape[0] // program.n_workers
        models = elapsed.shape[0] // replicas

        def estimates(state, elapsed, replica):
            algorithm = program.algorithm_of(context, replica)
            told = algorithm.messages_sent(state), algorithm.metrics(state)
            return algorithm.estimate(state), algorithm.estimate(algorithm.flow(state, elapsed)), *told

        stored, flowed, sent, own = jax.vmap(estimates)(
            states, elapsed, jnp.repeat(jnp.arange(replicas), models)
        )
        by_replica = lambda leaf: leaf.reshape(replicas, -1, *leaf.shape[1:])  # noqa: E731
        stored, flowed = jax.tree.map(by_replica, stored), jax.tree.map(by_replica, flowed)
        shards = jax.tree.map(by_replica, context.shards) if per_problem else context.shards
        shared = 0 if per_problem else None
        axes = (0, 0, shared, shared, 0, shared, shared, 0)
        arguments = (shards, targets.held_out, targets.recorded, targets.optimum, targets.optimal_value)
        metrics: dict[str, Any] = jax.vmap(of_replica, axes)(
            stored, flowed, *arguments, targets.weighted_optimum
        )
        if evaluate and bank != "stage":
            metrics |= aligned(jax.tree.map(lambda leaf: leaf.mean(1), flowed), shards, context, targets)
        if sent is not None:
            metrics["messages_sent"] = by_replica(sent).sum(1)
        for name, values in own.items():
            of_workers = by_replica(values).astype(elapsed.dtype)
            metrics |= {name: of_workers.mean(1), f"{name}_worst": of_workers.max(1)}
        finite = jnp.stack(
            [
                jnp.isfinite(by_replica(leaf)).reshape(replicas, -1).all(1)
                for leaf in jax.tree.leaves(states)
                if jnp.issubdtype(leaf.dtype, jnp.inexact)
            ]
        )
        metrics["finite"] = finite.all(0)
        return metrics

    return measure


def _first_samples(samples):
    """``(x, labels)``: the first of every shard, as many of each."""
    rows = min(leaf.shape[0] for leaf in jax.tree.leaves(samples))
    few = jax.tree.map(lambda leaf: leaf[:, : -(-AT_ONCE // rows)], samples)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), few)
    return flat["features"], flat["target"]


def held(banks, holder: str, count: int):
    """The states of all models, with their number in front: of ``"stage"`` kind of stage -> ``(count, stages, ...)``."""
    if holder != "stage":
        return banks[holder]
    return {
        name.partition(":")[2]: jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), bank)
        for name, bank in banks.items()
        if name.startswith("stage:")
    }


def _pooled(parts):
    """The problem's train metrics over all samples of all shards."""
    return {name: total.sum() / number.sum() for name, (total, number) in parts.items()}


def _mean(x):
    return jax.tree.map(lambda leaf: leaf.mean(0), x)


def _spread(x, center):
    """mean_i ||x_i - center||^2 over all leaves."""
    parts = jax.tree.map(
        lambda leaf, c: ((leaf - c) ** 2).reshape(leaf.shape[0], -1).sum(1).mean(), x, center
    )
    return sum(jax.tree.leaves(parts))
