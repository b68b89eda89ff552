"""A drift: from some gradient on, one worker's data are others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decentral.errors import InvalidInput, suggest
from decentral.problem.base import Problem, PyTree, take
from decentral.problem.checks import check_int, random_generator
from decentral.problem.finite_sum import FiniteSum, check_samples

CHANGES = ("labels", "features", "noise")


@dataclass(frozen=True, eq=False)
class Drifting(Problem):
    """A problem of samples, one of whose workers takes its later gradients on other samples. Built by :func:`drifting`.

    The workers optimise, and gradients see, what is there; all measurements (losses, accuracies, the optimum) are of the data as
    they were: how much the drift harms the task.

    ``shards`` is ``{"data": the inner problem's, each leaf (n, 2, ...): before and after, "since": (n,) uint32}``.

    Attributes:
        inner: the problem before the drift.
    """

    inner: FiniteSum
    shards: PyTree

    @property
    def name(self) -> str:  # type: ignore[override]
        """The inner problem's."""
        return f"drifting_{self.inner.name}"

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """Of the parameters."""
        return self.inner.dtype

    @property
    def held_out(self) -> PyTree | None:  # type: ignore[override]
        """The inner problem's."""
        return self.inner.held_out

    @property
    def initial_per_worker(self) -> bool:  # type: ignore[override]
        """The inner problem's."""
        return self.inner.initial_per_worker

    @property
    def n_workers(self) -> int:
        """Number of workers."""
        return self.inner.n_workers

    @property
    def is_stochastic(self) -> bool:
        """The inner problem's."""
        return self.inner.is_stochastic

    @property
    def is_deep(self) -> bool:
        """The inner problem's."""
        return self.inner.is_deep

    @property
    def samples_per_gradient(self) -> float:
        """The inner problem's."""
        return self.inner.samples_per_gradient

    @property
    def gradient_bytes(self) -> float:
        """The inner problem's."""
        return self.inner.gradient_bytes

    @property
    def mu(self) -> float | None:
        """Before the drift."""
        return self.inner.mu

    @property
    def L(self) -> float | None:
        """Before the drift."""
        return self.inner.L

    @property
    def optimum(self) -> PyTree | None:
        """Before the drift."""
        return self.inner.optimum

    def weighted_optimum(self, weights: np.ndarray) -> PyTree | None:
        """Before the drift."""
        return self.inner.weighted_optimum(weights)

    def initial(self, key: jax.Array) -> PyTree:
        """The starting point."""
        return self.inner.initial(key)

    def gradient(
        self, params: PyTree, shards: PyTree, worker: jax.Array, key: jax.Array, count: jax.Array
    ) -> PyTree:
        """The inner problem's, of the worker's samples before or after."""
        # Both kinds of samples of a worker stand next to each other: to look at one of them no data are copied.
        rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), shards["data"])
        worker = jnp.minimum(worker, shards["since"].shape[0] - 1)
        late = jnp.asarray(count, jnp.uint32) >= shards["since"][worker]
        return self.inner.gradient(params, rows, 2 * worker + late, key, count)

    def loss(self, params: PyTree, shard: PyTree) -> jax.Array:
        """f_i before the drift."""
        return self.inner.loss(params, take(shard["data"], jnp.int32(0)))

    def evaluate(self, params: PyTree, samples: PyTree) -> dict[str, jax.Array]:
        """The inner problem's."""
        return self.inner.evaluate(params, samples)

    def train_metrics(self, params: PyTree, shard: PyTree) -> dict[str, tuple[jax.Array, jax.Array]]:
        """On the samples before the drift."""
        return self.inner.train_metrics(params, take(shard["data"], jnp.int32(0)))


def drifting(
    inner: FiniteSum,
    *,
    worker: int = 0,
    after: int = 0,
    change: str | Callable[[PyTree, np.random.Generator], PyTree] = "labels",
    seed: int = 0,
) -> Drifting:
    """A problem one of whose workers' data change.

    Args:
        inner: a problem of samples, each worker with its own.
        worker: whose data change.
        after: gradients it takes before they do.
        change: "labels": every class becomes another one (-1 and 1 change sides; real targets their sign). "features": each
            feature is shifted by its own N(0, 1) times the deviation of all features. "noise": all features are drawn anew,
            N(0, 1) times that deviation: a broken sensor. Or a function (samples, rng) -> samples of the same shapes.
        seed: of the change.

    Raises:
        InvalidInput: no problem of samples, no such worker, a change that these samples do not allow.
    """
    if not isinstance(inner, FiniteSum) or inner.sharing is not None:
        got = "data that all workers share" if isinstance(inner, FiniteSum) else type(inner).__name__
        advice = "E.g. digits, logistic, mlp, or from_loss with data of every worker."
        raise InvalidInput("problem.inner", got, "a problem of samples, each worker with its own", advice)
    if check_int("problem.worker", worker, 0) >= inner.n_workers:
        raise InvalidInput("problem.worker", worker, f"one of 0 ... {inner.n_workers - 1}")
    check_int("problem.after", after, 0)
    samples, count = inner.shards["samples"], int(inner.shards["count"][worker])
    before = jax.tree.map(lambda leaf: np.asarray(leaf[worker, :count]), samples)
    rng = random_generator(seed, "drift", worker)
    if callable(change):
        changed = change(before, rng)
    elif change in CHANGES:
        changed = _changed(before, change, samples, rng)
    else:
        raise InvalidInput("problem.change", change, "one of the names below", suggest(str(change), CHANGES))
    if jax.tree.map(np.shape, changed) != jax.tree.map(np.shape, before):
        got = jax.tree.map(np.shape, changed)
        raise InvalidInput("problem.change", got, f"the shapes {jax.tree.map(np.shape, before)}")
    changed = check_samples("problem.change", changed, inner.dtype, n_axes=1)

    def both(leaf, new):
        twice = np.repeat(np.asarray(leaf)[:, None], 2, axis=1)
        twice[worker, 1, :count] = new
        twice[worker, 1, count:] = new[-1]
        return jnp.asarray(twice)

    data = {
        "samples": jax.tree.map(both, samples, changed),
        "count": jnp.repeat(inner.shards["count"][:, None], 2, axis=1),
    }
    since = np.full(inner.n_workers, np.iinfo(np.uint32).max, np.uint32)
    since[worker] = after
    return Drifting(inner=inner, shards={"data": data, "since": jnp.asarray(since)})


def _changed(own: Any, change: str, everyone: Any, rng: np.random.Generator) -> PyTree:
    part = "target" if change == "labels" else "features"
    if not isinstance(own, dict) or part not in own:
        found = sorted(own) if isinstance(own, dict) else type(own).__name__
        advice = "Give a function (samples, rng) -> samples."
        raise InvalidInput(
            "problem.change", change, f"a change of samples with {part!r}, not {found}", advice
        )
    values, scale = own[part], np.asarray(everyone[part])
    if change != "labels":
        if not np.issubdtype(values.dtype, np.floating):
            raise InvalidInput(
                "problem.change", change, "a change of features that are numbers", "Take 'labels'."
            )
        shape = values.shape[1:] if change == "features" else values.shape
        new = rng.standard_normal(shape) * scale.std()
        return own | {part: values + new if change == "features" else new}
    if np.issubdtype(values.dtype, np.floating) or scale.min() < 0:
        return own | {part: -values}
    classes = int(scale.max()) + 1
    if classes < 2:
        raise InvalidInput("problem.change", change, "a change of labels of at least 2 classes")
    # A cycle through all classes in a random order: none stays what it is.
    order = rng.permutation(classes)
    other = np.empty(classes, values.dtype)
    other[order] = np.roll(order, 1)
    return own | {part: other[values]}
