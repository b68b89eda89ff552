"""Direct feedback alignment in a pipeline: no backward pass, every stage learns from the error of the last."""

from __future__ import annotations

from typing import Any

import jax

from decentral.algorithm.base import pytree, static
from decentral.algorithm.stage import StageAlgorithm, StageState, Stash
from decentral.errors import InvalidInput
from decentral.optical.feedback import Feedback, as_feedback
from decentral.protocol.base import Demand, Network


@pytree
class DFA(StageAlgorithm):
    r"""Each stage of a pipeline passes batches forward, and updates itself when the error of the last stage reaches it.

    No gradient goes down the pipeline. Stage j = 1 ... J - 1 gets, at its output, a fixed random projection of the error
    instead, and makes of it the gradient of its own parameters,

    .. math:: e = \partial L / \partial \text{scores}, \quad
              G_j = \mathrm{vjp}_{F_j}(\theta_j)[B_j e], \quad G_J = \mathrm{vjp}_{F_J}(\theta_J)[e] \text{ (exact)}.

    So stages update in any order, without the gradients of their inputs: a third of backpropagation's work. Every ``accumulate``
    errors their mean is one step of the stage's own optimizer. With flushes of ``accumulate`` batches (protocol ``pipeline``,
    schedule ``dfa``, ``micro_batches``) it is direct feedback alignment as one worker would do it; without, updates are late.

    Args:
        optimizer: any optax optimizer; its learning rate must be given. Each stage has a state of its own.
        accumulate: k, errors to an update.
        keep_weights: of the forward pass, for the gradient: what it is when a stage keeps all its activations. Else it is taken
            at the kept inputs with the parameters of now, which are others only without a flush; the stage computes its
            activations again then: set the protocol's ``reconstruct``.
        feedback: a ``decentral.optical.feedback.Feedback``: the matrices, what of the error is sent, noise; by default Gaussian
            matrices. ``"shallow"`` is the control: all stages but the last stand still.

    References:
        Nøkland: Direct feedback alignment provides learning in deep neural networks (NeurIPS 2016); Launay, Poli, Boniface,
        Krzakala: Direct feedback alignment scales to modern deep learning tasks and architectures (NeurIPS 2020), both recalled.
    """

    keep_weights: bool = static(default=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.keep_weights, bool):
            raise InvalidInput("algorithm.keep_weights", self.keep_weights, "true or false")
        object.__setattr__(self, "feedback", as_feedback(self.feedback) or Feedback())

    def demand(self, network: Network) -> Demand:
        """A worker per stage."""
        return Demand(meetings=("feedback",), local_steps=self.accumulate)

    def resolve(self, problem: Any, network: Network | None) -> DFA:
        if self.feedback.kind == "backprop":
            advice = "In a pipeline that is petra, with schedule gpipe, 1f1b or backprop."
            raise InvalidInput(
                "algorithm.feedback", "backprop", "a feedback that needs nothing but the error", advice
            )
        return super().resolve(problem, network)

    def forward(self, stage, state: StageState, inputs, samples=None) -> tuple[Any, Stash]:
        """``(outputs, what is kept)`` of a stage for one batch; ``samples``: the first stage's inputs, not kept."""
        weights = state.x if self.keep_weights else None
        return stage.apply(state.x, inputs if samples is None else samples), Stash(inputs, weights)

    def error(self, stage, loss, state: StageState, inputs, labels) -> tuple[Any, Stash]:
        """``(error, what is kept)``: the last stage goes forward; the gradient of ``loss(scores, labels)`` at its scores."""
        scores, stash = self.forward(stage, state, inputs)
        return jax.grad(loss)(scores, labels), stash

    def learn(self, stage, state: StageState, error, stash: Stash, count, samples, projection) -> StageState:
        """The state after the ``count``-th error; ``samples``: the first stage's inputs; no ``projection`` of the last's."""
        inputs = samples if stash.inputs is None else stash.inputs
        weights = state.x if stash.weights is None else stash.weights
        outputs, pull = jax.vjp(lambda x: stage.apply(x, inputs), weights)
        slope = error
        if projection is not None:
            noise = self.feedback.noise_key(projection.key, count)
            slope = self.feedback.cotangent(error, outputs, projection.layer, projection.unit_key, noise)
        return self.descend(state, pull(slope)[0], count)
