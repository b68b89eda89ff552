"""What every problem offers to the engine, and how problems of several seeds become one."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from decentral.errors import InvalidInput
from decentral.problem.checks import check_choice

if TYPE_CHECKING:
    from decentral.problem.finite_sum import FiniteSum

PyTree = Any
INITIAL = ("zeros", "common", "per_worker")


class Problem(abc.ABC):
    """An objective f(x) = (1/n) sum_i f_i(x) shared by n workers.

    Whatever differs between workers lies in ``shards`` and is passed to the methods explicitly, so that several
    problems (one per seed) stacked along the worker axis are one array program: see ``stack_shards``.

    Attributes:
        name: a word for tables and file names.
        n_workers: n.
        dtype: NumPy dtype of the parameters.
        shards: a dict of arrays; the leading axis of every leaf counts the workers, or is 1 where all have the same data.
        held_out: test samples, a pytree whose leading axis counts samples, or None.
        initial_per_worker: True when each worker draws its own starting point, False when all start from the same.
        is_stochastic: whether ``gradient`` differs from ``full_gradient``.
        samples_per_gradient: samples one gradient looks at, mean over workers.
        gradient_bytes: bytes of its shard one gradient reads (for the width of the engine's rows).
        mu: min_i mu_i, the strong convexity shared by all f_i (0: convex only), or None if not known.
        L: max_i L_i, the smoothness shared by all f_i, or None if not known.
        workers_per_model: workers that hold one model between them: 1, or as many as it has stages, in a pipeline.
        roles: a pytree of ``decentral.problem.parametrization.Role``, one for each tensor, where the model is in µP; or None.
        stages: the model as a chain of stages (``decentral.problem.stages.Stages``), or None.
        optimum: the only minimiser of f, NumPy float64 whatever the run's dtype (for the data as the run sees it),
            or None where there is none, more than one, or it is not known; computed at first use.
    """

    name: str
    dtype: np.dtype
    shards: PyTree
    held_out: PyTree | None
    initial_per_worker: bool
    workers_per_model: int = 1
    roles: PyTree | None = None
    stages: Any = None

    @property
    @abc.abstractmethod
    def n_workers(self) -> int:
        """Number of workers."""

    @property
    @abc.abstractmethod
    def is_stochastic(self) -> bool:
        """Whether ``gradient`` differs from ``full_gradient``."""

    @property
    @abc.abstractmethod
    def samples_per_gradient(self) -> float:
        """Samples per gradient, mean over workers."""

    @property
    def is_deep(self) -> bool:
        """Whether a model's activations take more room than its parameters, so that single models are recorded one by one."""
        return False

    @property
    def gradient_bytes(self) -> float:
        """Bytes of its shard one gradient reads: all of it, unless the problem knows better."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.shards)) / self.n_workers

    @property
    @abc.abstractmethod
    def mu(self) -> float | None:
        """min_i mu_i, or None."""

    @property
    @abc.abstractmethod
    def L(self) -> float | None:
        """max_i L_i, or None."""

    @property
    @abc.abstractmethod
    def optimum(self) -> PyTree | None:
        """The only minimiser of f in float64, or None."""

    @abc.abstractmethod
    def initial(self, key: jax.Array) -> PyTree:
        """The starting point drawn from ``key``: the worker's own if ``initial_per_worker``, else a common one."""

    @abc.abstractmethod
    def gradient(
        self, params: PyTree, shards: PyTree, worker: jax.Array, key: jax.Array, count: jax.Array
    ) -> PyTree:
        """The gradient worker ``worker`` takes at ``params``, stochastic where the problem is.

        Args:
            params: this worker's parameters.
            shards: ``self.shards``, or the stacked shards of several problems of the same kind.
            worker: int32 row of ``shards``; rows beyond the end are read as the last one (padding, shared data).
            key: typed JAX key of all this worker's gradients; a draw of its own is ``fold_in(key, count)``.
            count: how many gradients this worker took before, unsigned.
        """

    def value_and_gradient(
        self, params: PyTree, shards: PyTree, worker: jax.Array, key: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        """``gradient``, and before it the loss it is the gradient of (f_i, where nothing better is known)."""
        return self.loss(params, take(shards, worker)), self.gradient(params, shards, worker, key, count)

    @abc.abstractmethod
    def loss(self, params: PyTree, shard: PyTree) -> jax.Array:
        """f_i at ``params``, a scalar; ``shard`` is one row of ``shards``."""

    def full_gradient(self, params: PyTree, shard: PyTree) -> PyTree:
        """The exact gradient of f_i at ``params``."""
        return jax.grad(self.loss)(params, shard)

    @property
    def has_dual(self) -> bool:
        """Whether ``dual_gradient`` is there."""
        return False

    def dual_gradient(self, dual: PyTree, shard: PyTree) -> PyTree:
        r"""The gradient of the conjugate :math:`f_i^*` at ``dual``: argmin_x f_i(x) - <dual, x>, exact.

        Dual methods (MSDA, Continuized) ask for it. Known in closed form for quadratics and least squares.
        """
        raise NotImplementedError(f"{self.name} has no dual oracle")

    def oracle(self, kind: Any) -> Callable:
        """``(params, shards, worker, key, count) -> gradient`` of an algorithm's ``oracle``: as ``gradient``, or the dual one.

        Or that of a feedback, which takes one argument more: the key of the worker's projection unit.
        """
        if not isinstance(kind, str):
            return kind.oracle(self)
        if kind == "gradient":
            return self.gradient
        return lambda dual, shards, worker, key, count: self.dual_gradient(dual, take(shards, worker))

    @abc.abstractmethod
    def evaluate(self, params: PyTree, samples: PyTree) -> dict[str, jax.Array]:
        """Means over ``samples`` (such as ``held_out``): "loss" and, for classifiers, "accuracy".

        {} where it makes no sense.
        """

    @abc.abstractmethod
    def train_metrics(self, params: PyTree, shard: PyTree) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Name -> (sum over this shard's samples, number of its samples), both of the parameters' dtype.

        Add both over the workers and divide: the accuracy over all training samples, right for shards of unequal
        sizes. {} where it makes no sense. (The training loss is the mean of ``loss`` over the shards.)
        """

    def weighted_optimum(self, weights: np.ndarray) -> PyTree | None:
        """The only minimiser of sum_i w_i f_i in float64, or None where it is not known.

        Args:
            weights: (n,), not negative, of mean 1.
        """
        return None

    @cached_property
    def optimal_value(self) -> float | None:
        """f(optimum) in float64, or None where ``optimum`` is None."""
        if self.optimum is None:
            return None
        with jax.enable_x64(True):
            losses = jax.jit(lambda x, shards: jax.lax.map(lambda shard: self.loss(x, shard), shards))
            return float(np.mean(losses(self.optimum, to_float64(self.shards))))

    @staticmethod
    def from_loss(loss: Callable, params: PyTree, data: PyTree, **options: Any) -> FiniteSum:
        """A problem from your own model: see ``decentral.problem.from_loss`` for the arguments."""
        from decentral.problem.finite_sum import from_loss

        return from_loss(loss, params, data, **options)


def stack_shards(problems: Sequence[Problem]) -> PyTree:
    """The shards of several problems, one after the other along the worker axis.

    The problems must come from the same factory with the same arguments except the seed: ``gradient`` of the first is
    then called with rows of the whole. Where the second axis (samples, recorded noise) has different lengths, it is
    padded by repeating the last entry, which no loss, gradient or draw ever sees.

    Raises:
        InvalidInput: the problems differ in kind, keys, dtype or the shape of one sample.
    """
    first = problems[0]
    structure = jax.tree.structure(first.shards)
    for problem in problems[1:]:
        if type(problem) is not type(first) or jax.tree.structure(problem.shards) != structure:
            raise InvalidInput(
                "problems", [p.name for p in problems], "problems of one kind, differing by the seed"
            )
    leaves = zip(*(jax.tree.leaves(problem.shards) for problem in problems), strict=True)
    return jax.tree.unflatten(structure, [_concatenate(group) for group in leaves])


def _concatenate(leaves: tuple[jax.Array, ...]) -> jax.Array:
    if len({(leaf.dtype, leaf.ndim, leaf.shape[2:]) for leaf in leaves}) > 1:
        raise InvalidInput(
            "problems", [leaf.shape for leaf in leaves], "shards whose samples have one shape and dtype"
        )
    if leaves[0].ndim == 1:
        return jnp.concatenate(leaves)
    longest = max(leaf.shape[1] for leaf in leaves)
    return jnp.concatenate([jnp.asarray(pad(np.asarray(leaf), longest, axis=1)) for leaf in leaves])


def pad(array: np.ndarray, length: int, axis: int = 0) -> np.ndarray:
    """``array`` lengthened along ``axis`` by repeating its last entry.

    A repeated sample, unlike zeros, is one the user's loss can stand: 0 x NaN would be NaN.
    """
    widths = [(0, length - array.shape[k] if k == axis else 0) for k in range(array.ndim)]
    return np.pad(array, widths, mode="edge")


def to_float64(tree: PyTree) -> PyTree:
    """The floating leaves as NumPy float64, the others as they are."""
    return jax.tree.map(
        lambda leaf: (
            np.asarray(leaf, np.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else np.asarray(leaf)
        ),
        tree,
    )


def take(tree: PyTree, worker: jax.Array) -> PyTree:
    """Row ``worker`` of every leaf; a row beyond the end is read as the last one."""
    return jax.tree.map(lambda leaf: leaf.at[worker].get(mode="clip"), tree)


def starting_point(
    initial: str | np.ndarray, shape: tuple[int, ...], dtype: np.dtype
) -> tuple[Callable, bool]:
    """``(start(key), per_worker)`` for the argument ``initial`` of a factory.

    Args:
        initial: "zeros"; "common", one N(0, I) draw for all; "per_worker", an N(0, I) draw for each; or an array of
            shape ``shape``, the same for all.
        shape: of one worker's parameters.
        dtype: of one worker's parameters.
    """
    if not isinstance(initial, str):
        point = np.asarray(initial, dtype)
        if point.shape != shape or not np.isfinite(point).all():
            raise InvalidInput(
                "problem.initial", f"an array of shape {point.shape}", f"a finite array of shape {shape}"
            )
        return lambda key: jnp.asarray(point), False
    if check_choice("problem.initial", initial, INITIAL) == "zeros":
        return lambda key: jnp.zeros(shape, dtype), False
    return lambda key: jax.random.normal(key, shape, dtype), initial == "per_worker"
