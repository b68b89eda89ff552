"""EXTRA: an exact first-order algorithm for decentralized optimization."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decentral.algorithm.base import Algorithm, check_rate, fill, known, pytree, require
from decentral.protocol.base import Demand, Network


class EXTRAState(NamedTuple):
    """``x``: parameters; ``gradient``: the round's; ``correction``: half the sum of x - W x over all rounds so far."""

    x: Any
    gradient: Any
    correction: Any


@pytree
class EXTRA(Algorithm):
    r"""Gradient descent with a mixing matrix W, and a correction that takes away its bias where workers differ.

    .. math:: x^{k+1} = W x^k - \alpha \nabla F(x^k) - p^k, \qquad p^{k+1} = p^k + \tfrac12 (x^k - W x^k), \qquad p^0 = 0

    which is the paper's :math:`x^{k+2} = (I + W) x^{k+1} - \tfrac12 (I + W) x^k - \alpha (\nabla F(x^{k+1}) - \nabla F(x^k))`.
    One message per round, the same as D-PSGD's.

    Args:
        learning_rate: :math:`\alpha`; by default half of what the paper allows, :math:`(1 + \lambda_{min}(W)) / (2 L)`.
        L: smoothness of every :math:`f_i`; the problem's by default.

    References:
        Shi, Ling, Wu, Yin: EXTRA, SIAM J. Optim. 2015 (recalled), with :math:`\tilde W = (I + W)/2`.
    """

    learning_rate: float | None = None
    L: float | None = None

    def __post_init__(self) -> None:
        check_rate(self.learning_rate)

    def demand(self, network: Network) -> Demand:
        return Demand(meetings=("mix",), fixed_weights=True, exact_rounds=True)

    def resolve(self, problem: Any, network: Network | None) -> EXTRA:
        """Fill in the step, from ``problem.L`` and the mixing matrix.

        Raises:
            InvalidInput: a constant is missing.
        """
        if network is None or self.learning_rate is not None:
            return require(self, ("learning_rate",))
        smooth = known("L", getattr(problem, "L", None) if self.L is None else self.L, "the problem (smooth)")
        return fill(self, L=smooth, learning_rate=(2 - network.gossip_spectrum[1]) / (2 * smooth))

    def init(self, params, key) -> EXTRAState:
        zero = jax.tree.map(jnp.zeros_like, params)
        return EXTRAState(params, zero, zero)

    def update(self, state, gradient, key) -> EXTRAState:
        return state._replace(gradient=gradient)

    def message(self, state, local, key):
        return state.x, state

    def receive(self, state, message, mine, weight) -> EXTRAState:
        apart = jax.tree.map(lambda ours, mean: weight * (ours - mean), mine, message)
        x = jax.tree.map(
            lambda x, gap, slope, p: x - gap - self.learning_rate * slope - p,
            state.x,
            apart,
            state.gradient,
            state.correction,
        )
        return state._replace(
            x=x, correction=jax.tree.map(lambda p, gap: p + gap / 2, state.correction, apart)
        )

    def estimate(self, state):
        return state.x

    def conserved(self, state):
        return state.correction
