"""PETRA and its relatives: a pipeline of stages that never waits, whose gradients are late."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decentral.algorithm.base import Algorithm, choose, pytree, static
from decentral.algorithm.optimizer import Optimizer, given_optimizer
from decentral.errors import InvalidInput
from decentral.problem.checks import check_choice, check_int
from decentral.protocol.base import Demand, Network


class Memory(NamedTuple):
    """What a variant keeps from a batch's forward pass until its backward pass.

    Attributes:
        inputs: ``"kept"``, or ``"rebuilt"`` from the outputs by the inverse of a reversible stage.
        weights: those of the forward pass are kept for the ``"gradient"``, for the gradient and the inverse (``"both"``), or
            not at all (``"none"``): there is one copy, of now.
    """

    inputs: str
    weights: str


VARIANTS = {
    "petra": Memory("rebuilt", "none"),
    "dsp": Memory("kept", "none"),
    "delayed": Memory("kept", "both"),
    "approximate_input": Memory("rebuilt", "gradient"),
    "stored_weights": Memory("rebuilt", "both"),
}
"""``dsp``: delayed gradients with checkpoints only; ``delayed``: the gradients of the forward pass, exact but late."""


class StageState(NamedTuple):
    """``x``: a stage's parameters; ``optimizer``: its optimizer's state; ``total``: gradients since the last update, over k."""

    x: Any
    optimizer: Any
    total: Any


class Stash(NamedTuple):
    """What a stage keeps of one batch; None for what it does not."""

    inputs: Any
    weights: Any


class Cotoken(NamedTuple):
    """What a stage sends down: its inputs (None where every stage keeps its own), and the gradient there."""

    inputs: Any
    slope: Any


@pytree
class PETRA(Algorithm):
    r"""Each stage of a pipeline passes batches forward and gradients backward and updates itself, without waiting.

    Between the two passes of a batch the parameters of stage j of J have been updated 2 (J - j) / k times (1-based, with a
    credit window of 2J - 1 batches), so the gradient is late. A reversible stage keeps nothing: it rebuilds its
    inputs from what comes down, with its parameters of now,

    .. math:: \tilde x_{j-1} = F_j^{-1}(\tilde x_j, \theta_j), \quad
              (\delta_j, G) = \mathrm{vjp}_{F_j}(\tilde x_{j-1}, \theta_j)[\delta_{j+1}].

    A stage that is not reversible keeps its inputs; the first reads its samples again. Every ``accumulate`` backward
    passes the mean of their gradients is one step of the stage's own optimizer. With batches one at a time, or
    flushed every ``accumulate`` of them (``gpipe``, ``1f1b``), all of this is exact backpropagation.

    Args:
        optimizer: any optax optimizer; its learning rate must be given. Each stage has a state of its own.
        accumulate: k, backward passes to an update.
        variant: one of ``VARIANTS``.

    References:
        Rivaud, Fournier, Pumir, Belilovsky, Eickenberg, Oyallon: PETRA (arXiv 2406.02052; read, and the released code).
        There a batch-normalised stage has running statistics for evaluation; here a batch's own are used.
    """

    optimizer: Any = dataclasses.field(default_factory=Optimizer)
    accumulate: int = static(default=1)
    variant: str = static(default="petra")

    def __post_init__(self) -> None:
        check_int("algorithm.accumulate", self.accumulate)
        check_choice("algorithm.variant", self.variant, VARIANTS)

    @property
    def events_per_update(self) -> int:
        return self.accumulate

    def demand(self, network: Network) -> Demand:
        """A worker per stage."""
        return Demand(meetings=("stages",), local_steps=self.accumulate)

    def resolve(self, problem: Any, network: Network | None) -> PETRA:
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

    def forward(self, stage, state: StageState, inputs, samples=None) -> tuple[Any, Stash]:
        """``(outputs, what is kept)`` of a stage for one batch; ``samples``: the first stage's inputs, not kept."""
        memory = VARIANTS[self.variant]
        kept = inputs if memory.inputs == "kept" or stage.inverse is None else None
        weights = None if memory.weights == "none" else state.x
        return stage.apply(state.x, inputs if samples is None else samples), Stash(kept, weights)

    def turn(self, stage, loss, state: StageState, inputs, labels, count) -> tuple[StageState, Cotoken]:
        """The last stage: forward, ``loss(scores, labels)``, and backward."""
        slope, down = jax.grad(lambda x, inputs: loss(stage.apply(x, inputs), labels), (0, 1))(
            state.x, inputs
        )
        return self._update(state, slope, count), self._cotoken(inputs, down)

    def backward(
        self, stage, state: StageState, cotoken: Cotoken, stash: Stash, count, samples=None
    ) -> tuple[StageState, Cotoken | None]:
        """``(state, what goes down)``; ``samples``: the first stage's inputs, below which nothing is."""
        memory = VARIANTS[self.variant]
        weights = state.x if memory.weights == "none" else stash.weights
        if samples is not None:
            slope = jax.vjp(lambda x: stage.apply(x, samples), weights)[1](cotoken.slope)[0]
            return self._update(state, slope, count), None
        inputs = stash.inputs
        if inputs is None:
            inputs = stage.inverse(stash.weights if memory.weights == "both" else state.x, cotoken.inputs)
        slope, down = jax.vjp(stage.apply, weights, inputs)[1](cotoken.slope)
        return self._update(state, slope, count), self._cotoken(inputs, down)

    def _cotoken(self, inputs, slope) -> Cotoken:
        return Cotoken(None if VARIANTS[self.variant].inputs == "kept" else inputs, slope)

    def _update(self, state: StageState, slope, count) -> StageState:
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
