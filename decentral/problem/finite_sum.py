"""Objectives that are means of a loss over each worker's own samples: any model, any data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decentral.errors import InvalidInput
from decentral.problem.base import Problem, PyTree, pad, take
from decentral.problem.checks import check_choice, check_dtype, check_int, check_number
from decentral.problem.optimum import LARGEST, newton, objective
from decentral.problem.parametrization import Role
from decentral.problem.sampling import SAMPLINGS, batch_rows

AT_ONCE = 256
"""Samples that a deep model looks at in one go, gradients of mini-batches apart: their activations stay in cache."""


@dataclass(frozen=True, eq=False)
class FiniteSum(Problem):
    """f_i(x) = (1/m_i) sum_j loss(x, sample_ij). Built by ``from_loss`` or a factory.

    ``shards`` is {"samples": pytree of arrays (n, m, ...), "count": (n,)}, m the largest m_i; rows beyond a worker's
    count repeat its last sample and have weight zero. Where all workers have the same data there is one row for all.

    A mini-batch is ``batch_size`` samples of the worker, see ``decentral.problem.sampling``. The draws are the same in
    float32 and float64, and only the rows drawn are read.

    Attributes:
        sample_loss: (params, sample) -> scalar, any l2 term inside.
        start: key -> params.
        batch_size: samples per gradient, or None: all of the worker's samples.
        sampling: "replacement" or "shuffle".
        sharing: n, where the only row of ``shards`` is the data of all n workers; else None.
        sample_scores: (params, sample) -> {name: score}, what is measured beside the loss, such as "accuracy"; or None.
        best_loss: mean loss of the best possible predictor on new samples, or None where it is not known.
        derived: {name: mean over held-out samples} -> more of them, such as a mean loss in decibels.
        is_deep: a sample's activations take more room than the sample: many are looked at some at a time.
        roles: of the tensors, where the model is in µP, see ``decentral.problem.parametrization``; or None.
        activations: (params, sample) -> {layer: its outputs before any nonlinearity}, or None; a coordinate check asks for it.
        constants: () -> (mu, L), each a float or None; called once, when first needed.
        convex: the loss is convex, so that Newton finds the optimum.
        dual: (dual, shard) -> params, the gradient of the conjugate; or None.
    """

    name: str
    shards: PyTree
    dtype: np.dtype
    sample_loss: Callable[[PyTree, PyTree], jax.Array]
    start: Callable[[jax.Array], PyTree]
    initial_per_worker: bool = False
    batch_size: int | None = None
    held_out: PyTree | None = None
    sampling: str = "replacement"
    sharing: int | None = None
    sample_scores: Callable[[PyTree, PyTree], dict[str, jax.Array]] | None = None
    best_loss: float | None = None
    derived: Callable[[dict[str, jax.Array]], dict[str, jax.Array]] = lambda means: {}
    is_deep: bool = False
    roles: PyTree | None = None
    activations: Callable[[PyTree, PyTree], dict[str, jax.Array]] | None = None
    constants: Callable[[], tuple[float | None, float | None]] = lambda: (None, None)
    convex: bool = False
    dual: Callable[[PyTree, PyTree], PyTree] | None = None

    @property
    def n_workers(self) -> int:
        """Number of workers."""
        return self.sharing or self.shards["count"].shape[0]

    @property
    def is_stochastic(self) -> bool:
        """Whether gradients are of mini-batches."""
        return self.batch_size is not None

    @property
    def samples_per_gradient(self) -> float:
        """The batch size, or the mean shard size for full gradients."""
        return float(self.batch_size or np.mean(self.shards["count"]))

    @property
    def gradient_bytes(self) -> float:
        """Bytes of a mini-batch, or of a whole (padded) shard."""
        samples = jax.tree.leaves(self.shards["samples"])
        per_sample = sum(leaf.nbytes / (leaf.shape[0] * leaf.shape[1]) for leaf in samples)
        return per_sample * (self.batch_size or samples[0].shape[1])

    def initial(self, key: jax.Array) -> PyTree:
        """The starting point."""
        return self.start(key)

    def loss(self, params: PyTree, shard: PyTree) -> jax.Array:
        """Mean of the sample losses of this shard."""
        losses = self._each(self.sample_loss, params, shard["samples"])
        return jnp.vdot(_weights(losses, shard["count"]), losses) / shard["count"].astype(losses.dtype)

    def gradient(
        self, params: PyTree, shards: PyTree, worker: jax.Array, key: jax.Array, count: jax.Array
    ) -> PyTree:
        """Gradient of the mean over a mini-batch, or over the whole shard."""
        return jax.grad(self._sampled(shards, worker, key, count))(params)

    def value_and_gradient(
        self, params: PyTree, shards: PyTree, worker: jax.Array, key: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        """The mean loss over the mini-batch (or the whole shard) of ``gradient``, and its gradient."""
        return jax.value_and_grad(self._sampled(shards, worker, key, count))(params)

    def _sampled(self, shards: PyTree, worker: jax.Array, key: jax.Array, count: jax.Array) -> Callable:
        """The loss, a function of the parameters, that a worker's gradient number ``count`` is of."""
        if self.batch_size is None:
            shard = take(shards, worker)
            return lambda x: self.loss(x, shard)
        rows = batch_rows(self.sampling, self.batch_size, key, count, take(shards["count"], worker))
        batch = jax.tree.map(lambda leaf: leaf.at[worker, rows].get(mode="clip"), shards["samples"])
        return lambda x: jnp.mean(jax.vmap(self.sample_loss, (None, 0))(x, batch))

    @property
    def has_dual(self) -> bool:
        """Whether a ``dual`` was given."""
        return self.dual is not None

    def dual_gradient(self, dual: PyTree, shard: PyTree) -> PyTree:
        """The minimiser of f_i(x) - <dual, x>."""
        return super().dual_gradient(dual, shard) if self.dual is None else self.dual(dual, shard)

    def evaluate(self, params: PyTree, samples: PyTree | None) -> dict[str, jax.Array]:
        """Mean "loss" and scores (such as "accuracy") over ``samples``."""
        if samples is None:
            return {}

        def values(params: PyTree, sample: PyTree) -> dict[str, jax.Array]:
            return {"loss": self.sample_loss(params, sample)} | self._scores(params, sample)

        means = {
            name: jnp.mean(value.astype(self.dtype))
            for name, value in self._each(values, params, samples).items()
        }
        return means | self.derived(means)

    def _scores(self, params: PyTree, sample: PyTree) -> dict[str, jax.Array]:
        return {} if self.sample_scores is None else self.sample_scores(params, sample)

    def _each(self, function: Callable[[PyTree, PyTree], Any], params: PyTree, samples: PyTree) -> Any:
        """``function(params, sample)`` of all samples."""
        if self.is_deep:
            return jax.lax.map(partial(function, params), samples, batch_size=AT_ONCE)
        return jax.vmap(function, (None, 0))(params, samples)

    def train_metrics(self, params: PyTree, shard: PyTree) -> dict[str, tuple[jax.Array, jax.Array]]:
        """The sum of each score (such as "accuracy") over this shard, and the number of its samples."""
        number, weight = shard["count"].astype(self.dtype), partial(_weights, count=shard["count"])
        scores = {
            name: value.astype(self.dtype)
            for name, value in self._each(self._scores, params, shard["samples"]).items()
        }
        return {name: (jnp.vdot(weight(value), value), number) for name, value in scores.items()}

    @cached_property
    def _constants(self) -> tuple[float | None, float | None]:
        return self.constants()

    @property
    def mu(self) -> float | None:
        """min_i mu_i, or None."""
        return self._constants[0]

    @property
    def L(self) -> float | None:
        """max_i L_i, or None."""
        return self._constants[1]

    @cached_property
    def optimum(self) -> PyTree | None:
        """Found by Newton if the loss is declared convex and x has at most ``optimum.LARGEST`` coordinates; else None.

        Also None if Newton finds that the minimum is not attained or not unique (separable classes without l2,
        fewer samples than features).
        """
        return self.weighted_optimum(np.ones(self.n_workers))

    def weighted_optimum(self, weights: np.ndarray) -> PyTree | None:
        """The minimiser of sum_i w_i f_i, where Newton finds one as for ``optimum``."""
        if not self.convex:
            return None
        params = self.start(jax.random.key(0))
        if sum(leaf.size for leaf in jax.tree.leaves(params)) > LARGEST:
            return None
        # Other weights move the minimiser a little: from there Newton takes half the steps.
        equal = np.ptp(weights) == 0
        near = None if equal else self.optimum
        start = jax.tree.map(np.zeros_like, params) if near is None else near
        # Data that all share have one row, whose weight is all of it.
        weights = np.asarray(weights, np.float64) if self.sharing is None else np.ones(1)
        return newton(self._objective, start, self.shards, weights)

    @cached_property
    def _objective(self) -> Callable:
        """Compiled once for all weights."""
        return objective(self.loss, jax.tree.map(np.zeros_like, self.start(jax.random.key(0))))


def _weights(values: jax.Array, count: jax.Array) -> jax.Array:
    """1 for the first ``count`` samples, 0 for padding (which repeats a sample: its loss is as finite as the sample's).

    A product with weights is faster than a masked sum, and many models at once make it a matrix product.
    """
    return (jnp.arange(values.shape[0], dtype=jnp.int32) < count).astype(values.dtype)


def from_loss(
    loss: Callable[[PyTree, PyTree], jax.Array],
    params: PyTree,
    data: PyTree,
    *,
    batch_size: int | None = None,
    sampling: str = "replacement",
    sharing: int | None = None,
    held_out: PyTree | None = None,
    accuracy: Callable[[PyTree, PyTree], jax.Array] | None = None,
    scores: Callable[[PyTree, PyTree], dict[str, jax.Array]] | None = None,
    is_deep: bool = False,
    roles: PyTree | None = None,
    activations: Callable[[PyTree, PyTree], dict[str, jax.Array]] | None = None,
    mu: float | None = None,
    L: float | None = None,
    dual: Callable[[PyTree, PyTree], PyTree] | None = None,
    dtype: Any = None,
    initial_per_worker: bool = False,
    name: str = "custom",
) -> FiniteSum:
    """A problem from your own model and data; also ``Problem.from_loss``.

    Args:
        loss: (params, sample) -> scalar loss of one sample, any regularisation included.
        params: the common starting point, any pytree of floating arrays; or a function key -> params.
        data: a dict or tuple of arrays (n_workers, m, ...), or a *list* with one such pytree of arrays (m_i, ...) per
            worker; a sample is one row of each array.
        batch_size: samples per gradient; None: all of the worker's samples.
        sampling: "replacement": the samples of a batch are drawn with replacement; "shuffle": each worker goes through
            its samples epoch by epoch, each time in a new random order.
        sharing: n, if ``data`` is one worker's, and all n workers have the same.
        held_out: test samples, like ``data`` without the worker axis.
        accuracy: (params, sample) -> whether the prediction is right (or any score to be averaged).
        scores: (params, sample) -> {name: score}, to measure several things, or others.
        is_deep: a sample's activations take more room than the sample: the models of single workers are then recorded one
            after the other, and on the held-out samples only where there are some.
        roles: where your model is in µP: a pytree like ``params`` with a ``decentral.problem.parametrization.Role`` for each
            array, so that optimizers with parametrization "mup" know what to multiply updates with.
        activations: (params, sample) -> {layer: its outputs before any nonlinearity}, for coordinate checks.
        mu: strong convexity of all f_i, if known (0: convex). It declares the loss convex: the optimum is then found.
        L: smoothness of all f_i, if known.
        dual: (dual, shard) -> the minimiser of f_i(x) - <dual, x>, for dual methods; a shard is one worker's
            {"samples", "count"}.
        dtype: "float32" or "float64" for parameters and floating data; by default that of ``params``.
        initial_per_worker: when ``params`` is a function: whether each worker draws its own.
        name: for tables and files.

    Raises:
        InvalidInput: shapes that do not agree, workers without samples, values that are not finite, a loss that is not
            a scalar, roles of other arrays, float64 while JAX has it off.
    """
    # some models are pytrees that can be called (Equinox); a function is a single leaf
    is_function = callable(params) and jax.tree_util.treedef_is_leaf(jax.tree.structure(params))
    if initial_per_worker and not is_function:
        raise InvalidInput(
            "initial_per_worker", True, "False when params are given, not a function key -> params"
        )
    drawn = params if is_function else lambda key: params
    leaves = jax.tree.leaves(jax.eval_shape(drawn, jax.random.key(0)) if is_function else params)
    leaves = leaves if is_function else [np.asarray(leaf) for leaf in leaves]
    if not leaves or not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        raise InvalidInput(
            "params", [str(leaf.dtype) for leaf in leaves], "a pytree of floating-point arrays"
        )
    dtype = check_dtype(dtype or np.result_type(*(leaf.dtype for leaf in leaves)))
    if not is_function and not all(np.isfinite(leaf).all() for leaf in leaves):
        raise InvalidInput("params", "values that are NaN or infinite", "finite numbers")
    if roles is not None:
        _check_roles(roles, jax.eval_shape(drawn, jax.random.key(0)))
    if mu is not None:
        check_number("mu", mu)
    if L is not None:
        check_number("L", L, low=mu or 0.0)
    shards = make_shards(data, dtype)
    if held_out is not None:
        held_out = jax.tree.map(jnp.asarray, check_samples("held_out", held_out, dtype, n_axes=1))
    problem = FiniteSum(
        name=name,
        shards=shards,
        dtype=dtype,
        sample_loss=loss,
        start=lambda key: jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), drawn(key)),
        initial_per_worker=initial_per_worker,
        batch_size=check_batch_size(batch_size, shards, sampling),
        sampling=sampling,
        sharing=_check_sharing(sharing, shards),
        held_out=held_out,
        sample_scores=scores or named_accuracy(accuracy),
        is_deep=is_deep,
        roles=roles,
        activations=activations,
        constants=lambda: (mu, L),
        convex=mu is not None,
        dual=dual,
    )
    sample = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[2:], leaf.dtype), shards["samples"])
    for what, function in (("loss", loss), ("accuracy", accuracy)):
        if function is not None:
            out = jax.eval_shape(function, jax.eval_shape(problem.start, jax.random.key(0)), sample)
            scalar = getattr(out, "shape", None) == ()
            if not scalar or (what == "loss" and not jnp.issubdtype(out.dtype, jnp.floating)):
                raise InvalidInput(
                    what, f"a function returning {out}", "one number per sample, floating for a loss"
                )
    return problem


def _check_roles(roles: PyTree, params: PyTree) -> None:
    others = [type(leaf).__name__ for leaf in jax.tree.leaves(roles) if not isinstance(leaf, Role)]
    if others or jax.tree.structure(roles) != jax.tree.structure(params):
        got = f"a {others[0]} among them" if others else f"a pytree {jax.tree.structure(roles)}"
        raise InvalidInput("roles", got, f"a Role for each array of {jax.tree.structure(params)}")


def named_accuracy(accuracy: Callable | None) -> Callable | None:
    """``accuracy`` as the only score."""
    return None if accuracy is None else lambda params, sample: {"accuracy": accuracy(params, sample)}


def _check_sharing(sharing: int | None, shards: PyTree) -> int | None:
    rows = len(shards["count"])
    if sharing is not None and check_int("sharing", sharing) and rows != 1:
        raise InvalidInput("sharing", sharing, f"None for the data of {rows} workers", "Give those of one.")
    return sharing


def check_batch_size(batch_size: int | None, shards: PyTree, sampling: str = "replacement") -> int | None:
    """``batch_size`` if some worker has as many samples, or all of them to be shuffled; None stays None."""
    check_choice("problem.sampling", sampling, SAMPLINGS)
    if batch_size is None:
        return None
    which, pick = ("smallest", np.min) if sampling == "shuffle" else ("largest", np.max)
    most = int(pick(shards["count"]))
    if check_int("problem.batch_size", batch_size) > most:
        raise InvalidInput(
            "problem.batch_size",
            batch_size,
            f"1 to {most}, the {which} number of samples of a worker",
            "Leave it out for full gradients.",
        )
    return batch_size


def make_shards(data: PyTree | list[PyTree], dtype: np.dtype) -> PyTree:
    """{"samples", "count"} from a pytree of arrays (n, m, ...) or a list of n pytrees of arrays (m_i, ...).

    Floating leaves are cast to ``dtype``, 64-bit integers to int32 (so that x64 changes nothing).
    """
    if not isinstance(data, list):
        samples = check_samples("data", data, dtype, n_axes=2)
        n, m = jax.tree.leaves(samples)[0].shape[:2]
        counts = np.full(n, m)
    else:
        counts = np.array([_n_samples(worker) for worker in data])
        check_workers(counts, "Give every worker data, or take fewer workers.")
        workers = [check_samples(f"data[{i}]", worker, dtype, n_axes=1) for i, worker in enumerate(data)]
        if len({_signature(worker) for worker in workers}) > 1:
            raise InvalidInput(
                "data",
                "a list whose entries have different structures, dtypes or sample shapes",
                "one pytree per worker, alike except for the number of samples",
                "If the list holds arrays (n_workers, m, ...), make it a tuple.",
            )
        samples = jax.tree.map(
            lambda *leaves: np.stack([pad(leaf, counts.max()) for leaf in leaves]), *workers
        )
    return {"samples": jax.tree.map(jnp.asarray, samples), "count": jnp.asarray(counts, jnp.int32)}


def check_workers(counts: Sequence[int] | np.ndarray, advice: str) -> None:
    """Refuses workers without samples, by name."""
    empty = [worker for worker, count in enumerate(counts) if count == 0]
    if empty or not len(counts):
        shown = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
        got = (
            f"no samples for {len(empty)} of {len(counts)} workers (worker {shown})"
            if empty
            else "no workers"
        )
        raise InvalidInput("problem data", got, "at least one sample for each worker", advice)


def _n_samples(tree: PyTree) -> int:
    leaves = jax.tree.leaves(tree)
    return len(leaves[0]) if leaves and np.ndim(leaves[0]) else 0


def _signature(tree: PyTree) -> tuple:
    return jax.tree.structure(tree), tuple((leaf.dtype, leaf.shape[1:]) for leaf in jax.tree.leaves(tree))


def check_samples(name: str, tree: PyTree, dtype: np.dtype, n_axes: int) -> PyTree:
    """NumPy leaves cast for the run, after checking that their first ``n_axes`` axes agree and are not empty."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    shapes = {f"{name}{jax.tree_util.keystr(path)}": np.shape(leaf) for path, leaf in paths}
    axes = "(n_workers, samples, ...)" if n_axes == 2 else "(samples, ...)"
    leads = {shape[:n_axes] for shape in shapes.values()}
    lead = next(iter(leads), ())
    if len(leads) != 1 or len(lead) != n_axes or 0 in lead:
        raise InvalidInput(name, shapes, f"arrays with the same non-empty leading axes {axes}")

    def cast(path: tuple, leaf: object) -> np.ndarray:
        array = np.asarray(leaf)
        where = f"{name}{jax.tree_util.keystr(path)}"
        if jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(dtype)
            if not np.isfinite(array).all():
                raise InvalidInput(
                    where, "values that are NaN or infinite", f"numbers that are finite in {dtype}"
                )
            return array
        if array.dtype.kind not in "iub":
            raise InvalidInput(where, f"dtype {array.dtype}", "floating, integer or boolean arrays")
        if array.dtype.itemsize > 4:
            if np.abs(array).max() > np.iinfo(np.int32).max:
                raise InvalidInput(where, "integers beyond 32 bits", "integers that fit int32")
            return array.astype(np.int32)
        return array

    return jax.tree_util.tree_map_with_path(cast, tree)
