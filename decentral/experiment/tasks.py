"""A task to meta-train on: a worker that trains a model alone. Workers on the events of a trace are in ``trace_task.py``."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decentral.algorithm.optimizer import Optimizer, as_optimizer
from decentral.errors import InvalidInput
from decentral.problem import Problem
from decentral.problem.pytrees import pytree, static

PyTree = Any


class Training(NamedTuple):
    """A worker's model in training.

    Attributes:
        params: of the model.
        memory: of the optimizer.
        worker: its data set.
        key: of its mini-batches.
        taken: gradients so far.
    """

    params: PyTree
    memory: PyTree
    worker: jax.Array
    key: jax.Array
    taken: jax.Array


@pytree
class ProblemTask:
    """One worker trains a problem's model; judged by the loss of each mini-batch before its step.

    Each episode takes one of the data sets, drawn anew.

    Args:
        problem: what is trained.
        optimizer: a learned one, in the problem's parametrization; its meta-parameters stand for those to be found.
        shards: the data sets, stacked: those of the problem's workers by default (``problem.shards``), or of several problems
            (``decentral.problem.stack_shards``).
        name: for tables, files and messages; by default the problem's.

    Raises:
        InvalidInput: an optimizer that is not learned; one in µP on a model that is not.
    """

    problem: Problem = static()
    optimizer: Optimizer
    shards: PyTree = None
    name: str = static(default="")

    def __post_init__(self) -> None:
        optimizer = as_optimizer(self.optimizer)
        if optimizer.kind != "learned":
            advice = "Only a learned optimizer has meta-parameters."
            raise InvalidInput("task.optimizer.kind", optimizer.kind, "'learned'", advice)
        numbers = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, self.problem.dtype), optimizer.bound_to(self.problem)
        )
        object.__setattr__(self, "optimizer", numbers)
        if self.shards is None:
            object.__setattr__(self, "shards", self.problem.shards)
        object.__setattr__(self, "name", self.name or self.problem.name)

    @property
    def max_steps(self) -> int | None:
        """No limit."""
        return None

    def start(self, meta: PyTree, key: jax.Array) -> Training:
        """A model and one of the data sets, drawn from ``key``."""
        at, who, batches = jax.random.split(key, 3)
        params = self.problem.initial(at)
        memory = self.optimizer.with_meta_parameters(meta).transformation().init(params)
        worker = jax.random.randint(who, (), 0, len(jax.tree.leaves(self.shards)[0]), jnp.int32)
        return Training(params, memory, worker, batches, jnp.zeros((), jnp.uint32))

    def step(self, meta: PyTree, state: Training) -> tuple[Training, jax.Array]:
        """One gradient and its update."""
        loss, gradient = self.problem.value_and_gradient(
            state.params, self.shards, state.worker, state.key, state.taken
        )
        optimizer = self.optimizer.with_meta_parameters(meta)
        params, memory = optimizer.descend(state.params, gradient, state.memory)
        return state._replace(params=params, memory=memory, taken=state.taken + 1), loss
