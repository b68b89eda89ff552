"""Gradient tracking: descend along an estimate of the mean gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decentral.algorithm.base import Algorithm, check_rate, pytree, require
from decentral.protocol.base import Demand, Network


class GradientTrackingState(NamedTuple):
    """``x``: parameters; ``tracker``: estimate of the mean gradient; ``gradient``: taken last; ``half``: to be mixed."""

    x: Any
    tracker: Any
    gradient: Any
    half: Any


@pytree
class GradientTracking(Algorithm):
    r"""Every worker descends along a tracker y of the mean gradient and mixes both: DIGing, adapt-then-combine.

    .. math:: y^k = W y^{k-1} + \nabla F(x^k) - \nabla F(x^{k-1}), \qquad x^{k+1} = W (x^k - \alpha y^k)

    from :math:`y^0 = \nabla F(x^0)`. The trackers' mean is always the gradients'; both are mixed in one message of two
    vectors. W may change from round to round.

    Args:
        learning_rate: :math:`\alpha`. The theory's step depends on the gap of W in ways that are far from tight: set one.

    Differences from DIGing: the step is mixed with the parameters (there :math:`x^{k+1} = W x^k - \alpha y^k`).

    References:
        Nedić, Olshevsky, Shi: Achieving geometric convergence for distributed optimization over time-varying graphs, SIAM
        J. Optim. 2017; Qu, Li: Harnessing smoothness to accelerate distributed optimization, IEEE TCNS 2018 (both recalled).
    """

    learning_rate: float | None = None

    def __post_init__(self) -> None:
        check_rate(self.learning_rate)

    def demand(self, network: Network) -> Demand:
        return Demand(meetings=("mix",), exact_rounds=True)

    def resolve(self, problem: Any, network: Network | None) -> GradientTracking:
        return require(self, ("learning_rate",))

    def init(self, params, key) -> GradientTrackingState:
        zero = jax.tree.map(jnp.zeros_like, params)
        return GradientTrackingState(params, zero, zero, params)

    def update(self, state, gradient, key) -> GradientTrackingState:
        tracker = jax.tree.map(lambda y, slope, old: y + slope - old, state.tracker, gradient, state.gradient)
        half = jax.tree.map(lambda x, y: x - self.learning_rate * y, state.x, tracker)
        return GradientTrackingState(state.x, tracker, gradient, half)

    def message(self, state, local, key):
        return (state.half, state.tracker), state

    def receive(self, state, message, mine, weight) -> GradientTrackingState:
        mixed = jax.tree.map(lambda ours, mean: ours + weight * (mean - ours), mine, message)
        return GradientTrackingState(mixed[0], mixed[1], state.gradient, mixed[0])

    def estimate(self, state):
        return state.x

    def conserved(self, state):
        return state.half, state.tracker
