"""Models that are cut into stages, for pipelines: reversible or not, of whole mini-batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decentral.engine.trace import StageShape
from decentral.errors import InvalidInput
from decentral.problem.base import PyTree, take
from decentral.problem.checks import check_choice, check_dtype, check_int
from decentral.problem.finite_sum import (
    AT_ONCE,
    FiniteSum,
    check_batch_size,
    check_samples,
    make_shards,
)
from decentral.problem.models import accuracy, cross_entropy
from decentral.problem.sampling import batch_rows


@dataclass(frozen=True, eq=False)
class Stage:
    """What the stages of one kind compute.

    Attributes:
        init: key -> params, a pytree of floating arrays.
        apply: (params, x) -> y of a whole mini-batch: x and y are pytrees (such as a pair of streams) of arrays whose
            leading axis counts its samples.
        inverse: (params, y) -> x, exact but for rounding; None: the stage is not reversible.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[[PyTree, PyTree], PyTree]
    inverse: Callable[[PyTree, PyTree], PyTree] | None = None


@dataclass(frozen=True, eq=False)
class Stages:
    """A model as a chain of stages. Its parameters are {kind: the params of the stages of that kind, stacked in order}.

    Stages of one kind take and give the same shapes. Those that are declared reversible are tried out once, on random
    inputs and parameters.

    Attributes:
        kinds: name -> what it computes.
        order: kind of each stage, first to last; at least two.
        inputs: what the first stage takes, for a mini-batch: a pytree of ``jax.ShapeDtypeStruct`` (arrays will do).
        loss: (scores, labels) -> scalar, a mean over the samples of a batch.
        dtype: of the parameters, "float32" or "float64".

    Raises:
        InvalidInput: shapes that do not chain, an inverse that does not reconstruct, a last stage that gives no scores.
    """

    kinds: dict[str, Stage]
    order: tuple[str, ...]
    inputs: PyTree
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy
    dtype: Any = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", check_dtype(self.dtype))
        object.__setattr__(self, "order", tuple(self.order))
        if len(self.order) < 2:
            raise InvalidInput("stages", self.order, "two or more", "A model in one piece needs no pipeline.")
        for kind in self.order:
            if not isinstance(self.kinds[check_choice("stages", kind, self.kinds)], Stage):
                raise InvalidInput(f"kinds[{kind!r}]", self.kinds[kind], "a decentral.problem.Stage")
        _ = self.shapes
        scores = jax.tree.leaves(self._passes[-1])
        if len(scores) != 1 or not jnp.issubdtype(scores[0].dtype, jnp.floating):
            raise InvalidInput(
                f"stages[{len(self) - 1}] ({self.order[-1]!r})",
                _shown(self._passes[-1]),
                "scores: one array of floats",
            )
        for kind in dict.fromkeys(self.order):
            self._check_inverse(kind)

    def __len__(self) -> int:
        """J, the number of stages."""
        return len(self.order)

    # -- shapes --------------------------------------------------------------------------------------------------------

    @property
    def boundaries(self) -> tuple[PyTree, ...]:
        """What passes from stage j to stage j + 1 for a mini-batch, ``jax.ShapeDtypeStruct`` trees: J - 1 of them."""
        return self._passes[1:-1]

    @property
    def scores(self) -> Any:
        """What the last stage gives for a mini-batch, a ``jax.ShapeDtypeStruct``."""
        return jax.tree.leaves(self._passes[-1])[0]

    @cached_property
    def _passes(self) -> tuple[PyTree, ...]:
        """The inputs, the boundaries, the scores."""
        passes = [jax.eval_shape(lambda x: x, self.inputs)]
        batch = {leaf.shape[:1] for leaf in jax.tree.leaves(passes[0])}
        for j, kind in enumerate(self.order):
            came, stage = passes[-1], self.kinds[kind]
            where = f"stages[{j}] ({kind!r})"
            first = self.order.index(kind)
            if _signature(came) != _signature(passes[first]):
                raise InvalidInput(
                    where, _shown(came), f"{_shown(passes[first])}, as stages[{first}] of the same kind takes",
                    "Stages that take other shapes need a kind of their own.",
                )  # fmt: skip
            with _said(where, "an init that fails", "init(key) -> a pytree of arrays"):
                params = jax.eval_shape(partial(_params, stage, self.dtype), jax.random.key(0))
            advice = f"With parameters of {_shown(params)} it says: "
            with _said(where, _shown(came), "what its apply takes", advice):
                gives = jax.eval_shape(stage.apply, params, came)
            if {leaf.shape[:1] for leaf in jax.tree.leaves(gives)} != batch:
                raise InvalidInput(
                    where, f"an output of {_shown(gives)}", "arrays with the leading axis of its input"
                )
            if stage.inverse is not None and _signature(gives) != _signature(came):
                raise InvalidInput(
                    where, f"declared reversible but {_shown(came)} becomes {_shown(gives)}",
                    "an output of the shape of the input, or inverse = None",
                )  # fmt: skip
            passes.append(gives)
        return tuple(passes)

    @cached_property
    def shapes(self) -> tuple[StageShape, ...]:
        """The stages as a timeline sees them; shapes are named by the axes of one sample, such as "8x8x4+8x8x4"."""
        names: dict[tuple, str] = {}
        for passes in self.boundaries:
            if _signature(passes) not in names:
                name = "+".join("x".join(map(str, leaf.shape[1:])) or "1" for leaf in jax.tree.leaves(passes))
                while name in names.values():  # the same axes of another dtype, or in another tree
                    name += "'"
                names[_signature(passes)] = name
        named = ["", *(names[_signature(passes)] for passes in self.boundaries), ""]
        shapes = tuple(map(StageShape, self.order, named, named[1:]))
        for j, shape in enumerate(shapes):
            first = shapes[self.order.index(shape.kind)]
            if shape != first:  # only the first stage and the last can differ here
                raise InvalidInput(
                    f"stages[{j}] ({shape.kind!r})", "a kind that occurs elsewhere too",
                    "a kind of its own for the first stage, and one for the last",
                )  # fmt: skip
        return shapes

    def _check_inverse(self, kind: str) -> None:
        stage, j = self.kinds[kind], self.order.index(kind)
        if stage.inverse is None:
            return
        leaves, structure = jax.tree.flatten(self._passes[j])
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        where, limit = f"stages[{j}] ({kind!r})", np.finfo(self.dtype).eps ** 0.5
        with _said(
            where, "declared reversible but its inverse fails", "inverse(params, outputs) -> inputs, or None"
        ):
            error = _inversion_error(stage, structure, shapes, self.dtype)
        if not error <= limit:  # NaN too
            raise InvalidInput(
                where,
                f"declared reversible but its inverse misses a random input by {error:.2g} of its size",
                f"an error of at most {limit:.2g} in {self.dtype}",
                "Correct the inverse, or leave it out: the stage then keeps its inputs.",
            )

    # -- the model -----------------------------------------------------------------------------------------------------

    def place(self, j: int) -> tuple[str, int]:
        """``(kind, index)`` of stage j = 0 ... J - 1: its row in the stacked parameters of its kind."""
        return self.order[j], self.order[:j].count(self.order[j])

    def initial(self, key: jax.Array) -> PyTree:
        """A draw of the parameters; that of stage j depends on the key and on j alone."""
        return self._initial(key)

    @cached_property
    def _initial(self) -> Callable[[jax.Array], PyTree]:
        def draw(key: jax.Array) -> PyTree:
            numbers = {
                kind: [j for j, other in enumerate(self.order) if other == kind] for kind in self.order
            }
            return {
                kind: jax.vmap(
                    lambda j, kind=kind: _params(self.kinds[kind], self.dtype, jax.random.fold_in(key, j))
                )(jnp.array(own))
                for kind, own in numbers.items()
            }

        return jax.jit(draw)

    def apply(self, params: PyTree, x: PyTree) -> jax.Array:
        """The scores of a mini-batch; equal stages that follow each other are compiled once."""
        j = 0
        for kind, run in itertools.groupby(self.order):
            length, (_, first), stage = len(list(run)), self.place(j), self.kinds[kind]
            own = jax.tree.map(lambda leaf, at=slice(first, first + length): leaf[at], params[kind])
            if length == 1:
                x = stage.apply(jax.tree.map(lambda leaf: leaf[0], own), x)
            else:
                x = jax.lax.scan(lambda x, p, apply=stage.apply: (apply(p, x), None), x, own, length)[0]
            j += length
        return x


@lru_cache(maxsize=128)  # one list of stages serves many seeds
def _inversion_error(stage: Stage, structure: Any, shapes: tuple, dtype: np.dtype) -> float:
    """Max |x - inverse(apply(x))| / max |x|, the largest over the arrays of x, for a random x and random parameters."""
    rng = np.random.default_rng(0)

    def drawn(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), tree)

    @jax.jit
    def misses(params: PyTree, x: PyTree) -> jax.Array:
        # Declared, so there is one.
        back = stage.inverse(params, stage.apply(params, x))  # type: ignore[misc]
        if _signature(back) != _signature(x):
            return jnp.array(jnp.inf)
        pairs = zip(jax.tree.leaves(back), jax.tree.leaves(x), strict=True)
        return jnp.stack([jnp.max(jnp.abs(u - v)) / jnp.max(jnp.abs(v)) for u, v in pairs]).max()

    params = _params(stage, dtype, jax.random.key(0))
    # Weights that start at zero would hide an inverse that is wrong.
    params = jax.tree.map(lambda leaf, away: leaf + 0.01 * away, params, drawn(params))
    x = drawn(structure.unflatten(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    return float(misses(params, x))


@contextmanager
def _said(name: str, value: Any, allowed: str, advice: str = "It says: ") -> Iterator[None]:
    """What a user's function raises, as one clear message."""
    try:
        yield
    except Exception as error:
        raise InvalidInput(name, value, allowed, f"{advice}{error}") from error


def _params(stage: Stage, dtype: np.dtype, key: jax.Array) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), stage.init(key))


def _signature(tree: PyTree) -> tuple:
    return jax.tree.structure(tree), tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree))


def _shown(tree: PyTree) -> str:
    leaves = jax.tree.leaves(tree)
    return ", ".join(f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for leaf in leaves) or "nothing"


@dataclass(frozen=True, eq=False)
class StagedProblem(FiniteSum):
    """A finite sum whose model is a chain of stages that look at whole mini-batches. Built by ``from_stages`` or a factory.

    A stage may take statistics of the batch it is given (batch norm in train mode), also when losses and scores are
    measured: that is done in chunks of equal size of at most ``AT_ONCE`` samples, the last of them filled up by repeating
    its last sample. Losses are then those of the model that is trained, not of one with running statistics.

    Shards are those of the n / ``workers_per_model`` models; ``gradient`` and ``batch`` take their numbers.

    Attributes:
        stages: the model.
        workers_per_model: 1: every worker holds the whole model. J: each holds one of its J stages, worker d J + j
            stage j of model d.
    """

    stages: Stages = field(kw_only=True)
    workers_per_model: int = field(default=1, kw_only=True)
    batch_size: int = field(kw_only=True)
    sample_loss: Callable[[PyTree, PyTree], jax.Array] = field(init=False)
    sample_scores: Callable[[PyTree, PyTree], dict[str, jax.Array]] | None = field(init=False)

    def __post_init__(self) -> None:
        # Of all samples of a batch at once, so that ``_each`` is all that differs from a sum over single samples.
        def measure(function: Callable, params: PyTree, samples: PyTree) -> jax.Array:
            scores = self.stages.apply(params, samples["features"])
            return jax.vmap(lambda s, y: function(s[None], y[None]))(scores, samples["target"])

        def scores(params: PyTree, samples: PyTree) -> dict[str, jax.Array]:
            return {"accuracy": measure(accuracy, params, samples)}

        labels = self.shards["samples"]["target"]
        is_class = isinstance(labels, jax.Array) and jnp.issubdtype(labels.dtype, jnp.integer)
        object.__setattr__(self, "sample_loss", partial(measure, self.stages.loss))
        object.__setattr__(self, "sample_scores", scores if is_class else None)

    @property
    def n_workers(self) -> int:
        """Number of workers: ``workers_per_model`` for each shard."""
        return self.workers_per_model * super().n_workers

    def batch(
        self, shards: PyTree, shard: jax.Array, key: jax.Array, count: jax.Array
    ) -> tuple[PyTree, jax.Array]:
        """``(x, labels)`` of the mini-batch that ``gradient`` looks at when it is given the same."""
        samples = take(shards["count"], shard)
        rows = batch_rows(self.sampling, self.batch_size, key, count, samples)
        drawn = jax.tree.map(lambda leaf: leaf.at[shard, rows].get(mode="clip"), shards["samples"])
        return drawn["features"], drawn["target"]

    def gradient(
        self, params: PyTree, shards: PyTree, worker: jax.Array, key: jax.Array, count: jax.Array
    ) -> PyTree:
        """Gradient of the loss of a mini-batch; ``worker`` is the number of a shard."""
        x, labels = self.batch(shards, worker, key, count)
        return jax.grad(lambda p: self.stages.loss(self.stages.apply(p, x), labels))(params)

    def _each(self, function: Callable[[PyTree, PyTree], Any], params: PyTree, samples: PyTree) -> Any:
        """``function(params, samples)``, in chunks."""
        total = jax.tree.leaves(samples)[0].shape[0]
        chunks = -(-total // AT_ONCE)
        rows = jnp.minimum(jnp.arange(chunks * -(-total // chunks)), total - 1).reshape(chunks, -1)
        values = jax.lax.map(
            lambda own: function(params, jax.tree.map(lambda leaf: leaf[own], samples)), rows
        )
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:total], values)


def from_stages(
    kinds: dict[str, Stage],
    order: Sequence[str],
    data: PyTree | list[PyTree],
    *,
    n: int,
    workers_per_model: int | None = None,
    batch_size: int,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = cross_entropy,
    held_out: PyTree | None = None,
    sampling: str = "replacement",
    best_loss: float | None = None,
    initial_per_worker: bool = False,
    dtype: Any = "float32",
    name: str = "stages",
) -> StagedProblem:
    """A problem whose model is your own list of stages.

    Args:
        kinds: name -> what the stages of this kind compute.
        order: kind of each stage, first to last.
        data: (x, labels) of arrays (shards, m, ...), or a *list* with one such pair of arrays (m_i, ...) per shard; x may
            be a pytree. As many shards as models, or one, which all models have.
        n: workers.
        workers_per_model: 1: every worker holds the whole model, as gossip and all-reduce want it. J, the number of
            stages, the default: the workers are n / J pipelines, each holding one model.
        batch_size: samples per gradient.
        loss: (scores, labels) -> mean over the samples of a batch. Where it is measured, it is taken sample by sample and
            averaged; the gradient is that of the whole batch.
        held_out: (x, labels) for tests.
        sampling: as of ``from_loss``.
        best_loss: mean loss of the best possible predictor, where it is known.
        initial_per_worker: whether each worker draws its own starting point.
        dtype: "float32" or "float64".
        name: for tables and files.

    Raises:
        InvalidInput: as of ``Stages``; n not a multiple of ``workers_per_model``, another number of shards than models, a
            loss that is not a scalar.
    """
    per_model, models = models_of(n, len(order), workers_per_model)
    dtype, batch_size = check_dtype(dtype), check_int("problem.batch_size", batch_size)
    shards = make_shards([*map(_named, data)] if isinstance(data, list) else _named(data), dtype)
    if len(shards["count"]) not in (1, models):
        raise InvalidInput(
            "data", f"{len(shards['count'])} shards", f"{models}, one for each model, or one that all have"
        )
    check_batch_size(batch_size, shards, sampling)
    if held_out is not None:
        held_out = check_samples("held_out", _named(held_out), dtype, n_axes=1)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape[2:]), leaf.dtype), shards["samples"]
    )
    stages = Stages(kinds, tuple(order), batch["features"], loss, dtype)
    problem = StagedProblem(
        name=name,
        shards=shards,
        dtype=dtype,
        start=stages.initial,
        initial_per_worker=initial_per_worker,
        batch_size=batch_size,
        held_out=jax.tree.map(jnp.asarray, held_out),
        sampling=sampling,
        sharing=models if len(shards["count"]) < models else None,
        best_loss=best_loss,
        is_deep=True,
        stages=stages,
        workers_per_model=per_model,
    )
    scores = jax.eval_shape(stages.apply, jax.eval_shape(problem.start, jax.random.key(0)), batch["features"])
    with _said("loss", "a function that fails", "loss(scores, labels) -> one number per batch"):
        found = jax.eval_shape(loss, scores, batch["target"])
    if getattr(found, "shape", None) != () or not jnp.issubdtype(found.dtype, jnp.floating):
        raise InvalidInput("loss", f"a function returning {found}", "one number per batch, floating")
    return problem


def models_of(n: int, stages: int, workers_per_model: int | None) -> tuple[int, int]:
    """``(workers per model, models)`` of n workers; ``workers_per_model`` as of ``from_stages``.

    Raises:
        InvalidInput: neither 1 nor the number of stages, or n is not a multiple of it.
    """
    if stages < 2:
        raise InvalidInput("stages", stages, "two or more", "A model in one piece needs no pipeline.")
    per_model = stages if workers_per_model is None else workers_per_model
    if check_int("problem.workers_per_model", per_model) not in (1, stages):
        raise InvalidInput(
            "problem.workers_per_model", per_model, f"1, or {stages}, a worker for each stage of a model"
        )
    if check_int("problem.n", n) % per_model:
        raise InvalidInput(
            "problem.n", n, f"a multiple of {per_model}, the workers that hold one model",
            "Set workers_per_model = 1 for workers that hold a whole model each.",
        )  # fmt: skip
    return per_model, n // per_model


def _named(pair: PyTree) -> dict[str, PyTree]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise InvalidInput("data", type(pair).__name__, "a pair (x, labels), or a list of such pairs")
    features, target = pair
    return {"features": features, "target": target}
