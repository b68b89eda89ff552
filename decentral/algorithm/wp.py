"""WP: weight prediction for overlapped all-reduces."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from decentral.algorithm.base import Algorithm, pytree
from decentral.algorithm.optimizer import Optimizer, given_optimizer
from decentral.protocol.base import Demand, Network


class WPState(NamedTuple):
    """``x``: parameters; ``ahead``: where they are expected after the next update; ``optimizer``: the optimizer's state."""

    x: Any
    ahead: Any
    optimizer: Any


@pytree
class WP(Algorithm):
    r"""DPU with its gradients taken where the parameters would be after one more step along the same gradient.

    .. math::
        \theta_{t+1} &= \mathrm{Opt}(\theta_t, \operatorname{mean}(g(q_{t-1}))) \\
        q_{t+1} &= \mathrm{Opt}(\theta_{t+1}, \operatorname{mean}(g(q_{t-1})))

    The optimizer's state after the second is thrown away. With SGD on a curvature a / learning rate it is stable for
    a < 0.618 (:math:`z^3 - z^2 + 2az - a`). The schedule of a learning rate advances once per all-reduce.

    Args:
        optimizer: any optax optimizer; its learning rate must be given.

    References:
        Chen et al.: Efficient and robust parallel DNN training through model parallelism on multi-GPU platform (2018),
        recalled; as ACCO's paper compares with it, read.
    """

    optimizer: Any = dataclasses.field(default_factory=Optimizer)

    @property
    def optimizer_steps(self) -> int:
        """The update, and the one that is expected."""
        return 2

    def demand(self, network: Network) -> Demand:
        """One copy, and gradients that come while the next ones are computed."""
        return Demand(meetings=("batches",))

    def resolve(self, problem: Any, network: Network | None) -> WP:
        return dataclasses.replace(self, optimizer=given_optimizer(self.optimizer))

    def init(self, params, key) -> WPState:
        return WPState(params, params, self.optimizer.transformation().init(params))

    def update(self, state, gradient, key) -> WPState:
        x, optimizer = self.optimizer.descend(state.x, gradient, state.optimizer)
        ahead, _ = self.optimizer.descend(x, gradient, optimizer)
        return WPState(x, ahead, optimizer)

    def point(self, state):
        return state.ahead

    def estimate(self, state):
        return state.x
