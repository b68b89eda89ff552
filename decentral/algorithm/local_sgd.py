"""Local SGD: several local steps, then the mean of all models."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from decentral.algorithm.accumulators import Sent, check_accumulators, mixed, sent
from decentral.algorithm.base import Algorithm, pytree, static
from decentral.algorithm.gossip import RESCALES
from decentral.algorithm.optimizer import Optimizer, given_optimizer
from decentral.problem.checks import check_choice, check_int
from decentral.protocol.base import Demand, Network


class LocalSGDState(NamedTuple):
    """``x``: parameters; ``optimizer``: the local optimizer's state."""

    x: Any
    optimizer: Any


@pytree
class LocalSGD(Algorithm):
    r"""Local SGD (FedAvg with all clients): H local steps, then everybody has the mean.

    Args:
        optimizer: any optax optimizer, applied to the worker's own gradients; its learning rate must be given.
        local_steps: H, gradients of each worker between two means. A protocol may give each round a time instead; workers
            then take as many as they can.
        rescale: ``"realised_rate"`` divides gradients by how often the worker takes one, relative to the mean: for rounds of
            equal time, where fast workers take more steps and pull the mean towards their own data.
        accumulators: "local": each worker keeps its optimizer's own; "average": they are sent with the model and averaged
            alike (see ``decentral.algorithm.accumulators``). Counts of steps stay local.

    References:
        Stich: Local SGD converges fast and communicates little, ICLR 2019; McMahan et al.: Communication-efficient
        learning of deep networks from decentralized data, AISTATS 2017 (both recalled).
    """

    optimizer: Any = dataclasses.field(default_factory=Optimizer)
    local_steps: int = static(default=8)
    rescale: str = static(default="none")
    accumulators: str = static(default="local")

    def __post_init__(self) -> None:
        check_int("algorithm.local_steps", self.local_steps)
        check_choice("algorithm.rescale", self.rescale, RESCALES)
        check_accumulators(self.accumulators)

    def demand(self, network: Network) -> Demand:
        """The mean of all, every ``local_steps`` gradients."""
        return Demand(meetings=("average",), local_steps=self.local_steps)

    def resolve(self, problem: Any, network: Network | None) -> LocalSGD:
        return dataclasses.replace(self, optimizer=given_optimizer(self.optimizer))

    def init(self, params, key) -> LocalSGDState:
        return LocalSGDState(params, self.optimizer.transformation().init(params))

    def update(self, state, gradient, key) -> LocalSGDState:
        return LocalSGDState(*self.optimizer.descend(state.x, gradient, state.optimizer))

    def message(self, state, local, key):
        return Sent(state.x, sent(self.accumulators, state.optimizer)), state

    def receive(self, state, message, mine, weight) -> LocalSGDState:
        # all have the same bits
        return LocalSGDState(message.x, mixed(state.optimizer, message.accumulators, 1.0))

    def estimate(self, state):
        return state.x

    def conserved(self, state):
        return state.x, sent(self.accumulators, state.optimizer)
