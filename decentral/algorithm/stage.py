"""What algorithms of pipelines have in common: a state per stage, with an optimizer of its own, and updates every k batches."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from decentral.algorithm.base import Algorithm, choose, pytree, static
from decentral.algorithm.optimizer import Optimizer, given_optimizer
from decentral.errors import InvalidInput
from decentral.problem.checks import check_int
from decentral.protocol.base import Network

Own = TypeVar("Own", bound="StageAlgorithm")


class StageState(NamedTuple):
    """``x``: a stage's parameters; ``optimizer``: its optimizer's state; ``total``: gradients since the last update, over k."""

    x: Any
    optimizer: Any
    total: Any


class Stash(NamedTuple):
    """What a stage keeps of one batch; None for what it does not."""

    inputs: Any
    weights: Any


@pytree
class StageAlgorithm(Algorithm):
    """A stage's state and its updates; how gradients come to it is what a subclass says.

    Args:
        optimizer: any optax optimizer; its learning rate must be given. Each stage has a state of its own.
        accumulate: k, gradients to an update.
    """

    optimizer: Any = dataclasses.field(default_factory=Optimizer)
    accumulate: int = static(default=1)

    def __post_init__(self) -> None:
        check_int("algorithm.accumulate", self.accumulate)

    @property
    def events_per_update(self) -> int:
        return self.accumulate

    def resolve(self: Own, problem: Any, network: Network | None) -> Own:
        optimizer = given_optimizer(self.optimizer)
        if problem is not None and problem.stages is None:
            raise InvalidInput(
                "problem.kind", problem.name, "a model made of stages", "E.g. reversible_mlp, or from_stages."
            )
        return dataclasses.replace(self, optimizer=optimizer)

    def init(self, params, key) -> dict[str, StageState]:
        """Of a whole model: kind of stage -> the states of its stages, stacked."""
        return {kind: jax.vmap(self._init)(stacked) for kind, stacked in params.items()}

    def _init(self, x) -> StageState:
        total = None if self.accumulate == 1 else jax.tree.map(jnp.zeros_like, x)
        return StageState(x, self.optimizer.transformation().init(x), total)

    def estimate(self, state):
        """Parameters: of one stage, or of a whole model."""
        if isinstance(state, StageState):
            return state.x
        return {kind: stages.x for kind, stages in state.items()}

    def descend(self, state: StageState, slope, count) -> StageState:
        """The state after the ``count``-th gradient: every k-th is an update, with the mean of k."""
        if self.accumulate == 1:
            x, optimizer = self.optimizer.descend(state.x, slope, state.optimizer)
            return StageState(x, optimizer, None)
        total = jax.tree.map(lambda sum_, new: sum_ + new / self.accumulate, state.total, slope)
        x, optimizer = self.optimizer.descend(state.x, total, state.optimizer)
        stepped = StageState(x, optimizer, jax.tree.map(jnp.zeros_like, total))
        return choose(
            (count + 1) % self.accumulate == 0, stepped, StageState(state.x, state.optimizer, total)
        )

    def message(self, state, local, key) -> tuple[Any, Any]:
        """Parameters, for gossip between the same stage of several pipelines."""
        return self.estimate(state), state

    def receive(self, state, message, mine, weight):
        if not isinstance(state, StageState):
            return {kind: self.receive(one, message[kind], mine[kind], weight) for kind, one in state.items()}
        x = jax.tree.map(lambda a, theirs, ours: a + 0.5 * weight * (theirs - ours), state.x, message, mine)
        return state._replace(x=x)

    def conserved(self, state):
        return self.estimate(state)
