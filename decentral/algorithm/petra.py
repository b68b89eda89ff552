"""PETRA and its relatives: a pipeline of stages that never waits, whose gradients are late."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from decentral.algorithm.base import pytree, static
from decentral.algorithm.stage import StageAlgorithm, StageState, Stash
from decentral.problem.checks import check_choice
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


class Cotoken(NamedTuple):
    """What a stage sends down: its inputs (None where every stage keeps its own), and the gradient there."""

    inputs: Any
    slope: Any


@pytree
class PETRA(StageAlgorithm):
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

    variant: str = static(default="petra")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("algorithm.variant", self.variant, VARIANTS)

    @property
    def oracle(self) -> str:
        """The gradients come down the pipeline: no feedback stands for them."""
        return "gradient"

    def demand(self, network: Network) -> Demand:
        """A worker per stage."""
        return Demand(meetings=("stages",), local_steps=self.accumulate)

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
        return self.descend(state, slope, count), self._cotoken(inputs, down)

    def backward(
        self, stage, state: StageState, cotoken: Cotoken, stash: Stash, count, samples=None
    ) -> tuple[StageState, Cotoken | None]:
        """``(state, what goes down)``; ``samples``: the first stage's inputs, below which nothing is."""
        memory = VARIANTS[self.variant]
        weights = state.x if memory.weights == "none" else stash.weights
        if samples is not None:
            slope = jax.vjp(lambda x: stage.apply(x, samples), weights)[1](cotoken.slope)[0]
            return self.descend(state, slope, count), None
        inputs = stash.inputs
        if inputs is None:
            inputs = stage.inverse(stash.weights if memory.weights == "both" else state.x, cotoken.inputs)
        slope, down = jax.vjp(stage.apply, weights, inputs)[1](cotoken.slope)
        return self.descend(state, slope, count), self._cotoken(inputs, down)

    def _cotoken(self, inputs, slope) -> Cotoken:
        return Cotoken(None if VARIANTS[self.variant].inputs == "kept" else inputs, slope)
