"""D-PSGD: local steps and a mixing matrix."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax

from decentral.algorithm.accumulators import Sent, check_accumulators, mixed, sent
from decentral.algorithm.base import Algorithm, pytree, static
from decentral.algorithm.optimizer import Optimizer, given_optimizer
from decentral.protocol.base import Demand, Network


class DPSGDState(NamedTuple):
    """``x``: parameters; ``optimizer``: the local optimizer's state."""

    x: Any
    optimizer: Any


@pytree
class DPSGD(Algorithm):
    r"""Decentralized SGD with a mixing matrix W, also known as DGD and as decentralized (local) SGD.

    .. math:: x_i \leftarrow \sum_j W_{ij}\, (x_j - \gamma \nabla F_j(x_j))

    With a symmetric W and exact gradients it goes to the minimiser of
    :math:`\sum_i f_i(x_i) + x^\top (I - W) W^{-1} x / 2\gamma`, which is not the optimum where workers differ.

    Args:
        optimizer: :math:`\gamma` and more: any optax optimizer; its learning rate must be given.
        accumulators: "local": each worker keeps its optimizer's own; "average": they are sent with the model and averaged
            alike (see ``decentral.algorithm.accumulators``). Counts of steps stay local.

    Differences from the paper: this is adapt-then-combine (a step, then a mean of the results, both of one round). The
    paper takes the mean of the points before their steps, so that both can go on at once.

    References:
        Lian et al.: Can decentralized algorithms outperform centralized algorithms?, NeurIPS 2017; Nedić, Ozdaglar:
        Distributed subgradient methods, IEEE TAC 2009 (both recalled).
    """

    optimizer: Any = dataclasses.field(default_factory=Optimizer)
    accumulators: str = static(default="local")

    def __post_init__(self) -> None:
        check_accumulators(self.accumulators)

    def demand(self, network: Network) -> Demand:
        """A weighted mean of all neighbours. Not pairs: an exchange would swap the two models, not average them."""
        return Demand(meetings=("mix",))

    def resolve(self, problem: Any, network: Network | None) -> DPSGD:
        return dataclasses.replace(self, optimizer=given_optimizer(self.optimizer))

    def init(self, params, key) -> DPSGDState:
        return DPSGDState(params, self.optimizer.transformation().init(params))

    def update(self, state, gradient, key) -> DPSGDState:
        return DPSGDState(*self.optimizer.descend(state.x, gradient, state.optimizer))

    def message(self, state, local, key):
        return Sent(state.x, sent(self.accumulators, state.optimizer)), state

    def receive(self, state, message, mine, weight) -> DPSGDState:
        # The mean takes the place of the own message in it.
        x = jax.tree.map(lambda x, mean, ours: x + weight * (mean - ours), state.x, message.x, mine.x)
        return DPSGDState(x, mixed(state.optimizer, message.accumulators, weight))

    def estimate(self, state):
        return state.x

    def conserved(self, state):
        return state.x, sent(self.accumulators, state.optimizer)
