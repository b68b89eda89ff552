"""DiLoCo: many local steps, then an outer step along the mean of what they changed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decentral.algorithm.accumulators import Sent, check_accumulators, mixed, sent
from decentral.algorithm.base import Algorithm, pytree, static
from decentral.algorithm.optimizer import Optimizer, given_optimizer
from decentral.errors import InvalidInput
from decentral.problem.checks import check_int, check_number
from decentral.protocol.base import Demand, Network


class DiLoCoState(NamedTuple):
    """``x``: parameters; ``anchor``: where all were after the last mean; ``outer``, ``optimizer``: the two optimizers' states."""

    x: Any
    anchor: Any
    outer: Any
    optimizer: Any


@pytree
class DiLoCo(Algorithm):
    r"""Local steps by an inner optimizer, an outer Nesterov step on the mean outer gradient.

    With :math:`\theta` the anchor and :math:`\Delta` the mean over the workers of :math:`\theta - x_i`,

    .. math:: v \leftarrow \mu v + \Delta, \quad \theta \leftarrow \theta - \eta (\Delta + \mu v), \quad x_i \leftarrow \theta

    which is the Nesterov momentum of PyTorch and optax (not dampened). The inner optimizer's state is kept over the outer
    step. With :math:`\eta = 1, \mu = 0` it is local SGD. Any other outer optimizer has :math:`\Delta` as its gradient.

    Args:
        optimizer: the inner one, any optax optimizer (the paper: AdamW); its learning rate must be given.
        outer_learning_rate: :math:`\eta`; by default 0.7 (the paper's, recalled), and none with an ``outer_optimizer``.
        outer_momentum: :math:`\mu`; by default 0.9 (the paper's, recalled), and none with an ``outer_optimizer``.
        local_steps: H, gradients between two outer steps.
        outer_optimizer: in the place of Nesterov's momentum; its learning rate must be given. A learned one here is LOpt-A
            (every worker makes the same step).
        accumulators: "local": each worker keeps its inner optimizer's own; "average": they are sent with the outer gradient and
            averaged (see ``decentral.algorithm.accumulators``). Counts of steps stay local.

    References:
        Douillard et al.: DiLoCo: Distributed low-communication training of language models, 2023, arXiv:2311.08105 (recalled).
        Joseph et al.: Can we learn communication-efficient optimizers?, 2023, arXiv:2312.02204, for LOpt-A (recalled).
    """

    optimizer: Any = dataclasses.field(default_factory=Optimizer)
    outer_learning_rate: float | None = None
    outer_momentum: float | None = None
    local_steps: int = static(default=50)
    outer_optimizer: Any = None
    accumulators: str = static(default="local")

    def __post_init__(self) -> None:
        for name, largest in (("outer_learning_rate", math.inf), ("outer_momentum", 1.0)):
            value = getattr(self, name)
            if value is not None and self.outer_optimizer is not None:
                raise InvalidInput(
                    f"algorithm.{name}", value, "nothing with outer_optimizer", "It takes its own arguments."
                )
            if value is not None:
                check_number(f"algorithm.{name}", value, 0.0, largest)
        check_accumulators(self.accumulators)
        check_int("algorithm.local_steps", self.local_steps)

    def demand(self, network: Network) -> Demand:
        """The mean of all, every ``local_steps`` gradients."""
        return Demand(meetings=("average",), local_steps=self.local_steps)

    def resolve(self, problem: Any, network: Network | None) -> DiLoCo:
        inner = given_optimizer(self.optimizer)
        if self.outer_optimizer is not None:
            outer = given_optimizer(self.outer_optimizer, "outer_optimizer")
            return dataclasses.replace(self, optimizer=inner, outer_optimizer=outer)
        rate, momentum = self.outer_learning_rate, self.outer_momentum
        return dataclasses.replace(
            self,
            optimizer=inner,
            outer_learning_rate=0.7 if rate is None else rate,
            outer_momentum=0.9 if momentum is None else momentum,
        )

    @property
    def _outer(self) -> Optimizer:
        if self.outer_optimizer is not None:
            return self.outer_optimizer
        rate, momentum = self.outer_learning_rate, self.outer_momentum
        return Optimizer("sgd", learning_rate=rate, momentum=momentum, nesterov=True)

    def init(self, params, key) -> DiLoCoState:
        outer, inner = (each.transformation().init(params) for each in (self._outer, self.optimizer))
        return DiLoCoState(params, params, outer, inner)

    def update(self, state, gradient, key) -> DiLoCoState:
        x, optimizer = self.optimizer.descend(state.x, gradient, state.optimizer)
        return state._replace(x=x, optimizer=optimizer)

    def message(self, state, local, key):
        change = jax.tree.map(jnp.subtract, state.anchor, state.x)
        return Sent(change, sent(self.accumulators, state.optimizer)), state

    def receive(self, state, message, mine, weight) -> DiLoCoState:
        anchor, outer = self._outer.descend(state.anchor, message.x, state.outer)
        return DiLoCoState(anchor, anchor, outer, mixed(state.optimizer, message.accumulators, 1.0))

    def estimate(self, state):
        return state.x
