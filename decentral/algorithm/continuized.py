"""Continuized acceleration of asynchronous dual gossip."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decentral.algorithm.base import Algorithm, convex_constants, fill, pytree, require, require_dual
from decentral.errors import InvalidInput
from decentral.protocol.base import Demand, Network


class ContinuizedState(NamedTuple):
    """The accelerated dual pair ``y``, ``z``, and the last dual gradient, ``primal``."""

    y: Any
    z: Any
    primal: Any


class ContinuizedMessage(NamedTuple):
    """A dual gradient, and who took it: the step depends on the edge."""

    gradient: Any
    worker: Any


@pytree
class Continuized(Algorithm):
    r"""Asynchronous exchanges of dual gradients on Poisson clocks, accelerated by continuous mixing of two dual variables.

    Between events :math:`y' = \eta (z - y)` and :math:`z' = \eta (y - z)`. When edge (i, j) ticks both ends take
    :math:`\nabla f^*(y)`, and with :math:`G = \nabla f_i^*(y_i) - \nabla f_j^*(y_j)`

    .. math:: y_i \mathrel{-}= \gamma_{ij} G, \qquad z_i \mathrel{-}= \tilde\gamma G

    and the opposite at j, from :math:`y = z = 0`. Gradients are taken in exchanges and nowhere else: two for each. The estimate
    is the gradient that a worker took last.

    Args:
        eta: the mixing rate, per unit of time; by default :math:`\sqrt{\mu / (2 \chi_1 \chi_2 L)}`.
        gamma: the step of y, one number, or (n, n) where it differs between edges; by default :math:`\mu/2` times the edge's
            effective resistance over the largest.
        gamma_tilde: the step of z; by default :math:`\tfrac12 \sqrt{L \mu \chi_1 / \chi_2}`.
        mu: strong convexity of every :math:`f_i`; the problem's by default.
        L: smoothness of every :math:`f_i`; the problem's by default.

    It asks for one exchange per unit of time in all, as the authors' code has it; other rates only rescale time. A message
    counts the sender's number with its vector.

    References:
        Even, Berthier, Bach, Flammarion, Gaillard, Hendrikx, Massoulié, Taylor: A continuized view on Nesterov acceleration
        for stochastic gradient descent and randomized gossip, NeurIPS 2021, appendix H (recalled); constants as in the
        authors' code of DADAO (commit eed1ed1).
    """

    eta: float | None = None
    gamma: Any = None
    gamma_tilde: float | None = None
    mu: float | None = None
    L: float | None = None

    def __post_init__(self) -> None:
        for name in ("eta", "gamma", "gamma_tilde"):
            value = getattr(self, name)
            if value is not None and np.ndim(value) not in (0, 2):
                raise InvalidInput(
                    name, value, "a number, or numbers (n, n)" if name == "gamma" else "a number"
                )
            if value is not None and not (np.isfinite(value).all() and np.min(value) >= 0):
                raise InvalidInput(name, value, "finite and >= 0")

    @property
    def oracle(self) -> str:
        return "dual"

    @property
    def gradients_per_message(self) -> int:
        return 1

    def demand(self, network: Network) -> Demand:
        return Demand(exchanges_per_s=2 / network.topology.n, meetings=("dual_exchange",))

    def resolve(self, problem: Any, network: Network | None) -> Continuized:
        """Fill in the constants, from ``problem.mu``, ``problem.L`` and the network's rates.

        Raises:
            InvalidInput: a constant is missing, or the problem has no dual oracle.
        """
        names = ("eta", "gamma", "gamma_tilde")
        require_dual(self, problem)
        if network is None or all(getattr(self, name) is not None for name in names):
            return require(self, names)
        mu, smooth = convex_constants(self, problem)
        topology = network.undirected
        shares = topology.effective_resistances() / (2 * topology.chi_2)
        gamma: Any = mu / 2
        if np.ptp(shares) > 1e-9:
            gamma = np.zeros((topology.n, topology.n))
            i, j = topology.edges.T
            gamma[i, j] = gamma[j, i] = mu / 2 * shares
        constants = {
            "eta": math.sqrt(mu / (2 * network.chi_1 * network.chi_2 * smooth)),
            "gamma": gamma,
            "gamma_tilde": math.sqrt(smooth * mu * network.chi_1 / network.chi_2) / 2,
        }
        return fill(self, mu=mu, L=smooth, **constants)

    def init(self, params, key) -> ContinuizedState:
        zero = jax.tree.map(jnp.zeros_like, params)
        return ContinuizedState(zero, zero, params)

    def flow(self, state, dt) -> ContinuizedState:
        decay = -jnp.expm1(-2 * self.eta * dt) / 2
        apart = jax.tree.map(jnp.subtract, state.z, state.y)
        y = jax.tree.map(lambda y, gap: y + decay * gap, state.y, apart)
        z = jax.tree.map(lambda z, gap: z - decay * gap, state.z, apart)
        return state._replace(y=y, z=z)

    def point(self, state):
        return state.y

    def update(self, state, gradient, key) -> ContinuizedState:
        """A gradient outside of an exchange only shows where the worker is."""
        return state._replace(primal=gradient)

    def message(self, state, local, key):
        gradient = local.gradient(state.y)
        return ContinuizedMessage(gradient, local.worker), state._replace(primal=gradient)

    def receive(self, state, message, mine, weight) -> ContinuizedState:
        gamma = self.gamma[mine.worker, message.worker] if jnp.ndim(self.gamma) else self.gamma
        gap = jax.tree.map(jnp.subtract, mine.gradient, message.gradient)
        y = jax.tree.map(lambda y, g: y - gamma * weight * g, state.y, gap)
        z = jax.tree.map(lambda z, g: z - self.gamma_tilde * weight * g, state.z, gap)
        return state._replace(y=y, z=z)

    def estimate(self, state):
        return state.primal

    def conserved(self, state):
        return state.y, state.z
