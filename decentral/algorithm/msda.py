"""MSDA: multi-step dual accelerated method."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decentral.algorithm.base import (
    Algorithm,
    check_mixings,
    choose,
    convex_constants,
    fill,
    pytree,
    require,
    require_dual,
)
from decentral.protocol.base import Demand, Network


class MSDAState(NamedTuple):
    """Dual ``x`` and ``y`` (momentum), the last dual gradient ``primal``, and the Chebyshev recursion of this round."""

    x: Any
    y: Any
    primal: Any
    now: Any
    before: Any
    omega: Any
    step: Any


@pytree
class MSDA(Algorithm):
    r"""Nesterov's method on the dual, each of its gradients mixed K times by Chebyshev-accelerated gossip.

    In a round every worker takes :math:`\theta_i = \nabla f_i^*(x_i)`; then, with W the mixing matrix, :math:`P_K` the
    polynomial with :math:`P_K(0) = 0` that is closest to 1 on the spectrum of :math:`I - W`,

    .. math:: y^+ = x - \eta P_K(I - W) \theta, \qquad x^+ = (1 + \beta) y^+ - \beta y

    from :math:`x = y = 0`. The estimate is the last :math:`\theta_i`: a round behind the duals (the authors' code of DADAO
    evaluates it anew for every metric).

    Args:
        mixings: K, messages per gradient; by default :math:`\lfloor 1/\sqrt\gamma \rfloor`, :math:`\gamma` the ratio of the
            smallest positive to the largest eigenvalue of :math:`I - W`.
        c_2: :math:`(1 + \gamma)/(1 - \gamma)`, infinite where all eigenvalues agree (complete graph).
        c_3: twice over the sum of the two eigenvalues.
        eta: the step; by default :math:`\mu (1 + c_1^{2K})/(1 + c_1^K)^2`, :math:`c_1 = (1 - \sqrt\gamma)/(1 + \sqrt\gamma)`.
        momentum: :math:`\beta`; by default :math:`((1 + c_1^K) \sqrt\kappa - 1 + c_1^K) / ((1 + c_1^K) \sqrt\kappa + 1 - c_1^K)`.
        mu: strong convexity of every :math:`f_i`; the problem's by default.
        L: smoothness of every :math:`f_i`; the problem's by default.

    Runs in rounds of one gradient and K mixing steps on a graph that does not change, on problems with a dual oracle
    (quadratics, least squares).

    Differences from the paper: the recursion of Chebyshev's polynomials is normalised, so that it is right on complete
    graphs too.

    References:
        Scaman, Bach, Bubeck, Lee, Massoulié: Optimal algorithms for smooth and strongly convex distributed optimization in
        networks, ICML 2017, Algorithm 2 (recalled); constants as in the authors' code of DADAO (commit eed1ed1).
    """

    mixings: int | None = None
    c_2: float | None = None
    c_3: float | None = None
    eta: float | None = None
    momentum: float | None = None
    mu: float | None = None
    L: float | None = None

    def __post_init__(self) -> None:
        check_mixings(self.mixings)

    @property
    def oracle(self) -> str:
        return "dual"

    def demand(self, network: Network) -> Demand:
        low, high = network.gossip_spectrum
        return Demand(
            meetings=("mix",),
            mixing="laplacian",
            mixings=self.mixings or _steps(low / high),
            fixed_weights=True,
            exact_rounds=True,
        )

    def resolve(self, problem: Any, network: Network | None) -> MSDA:
        """Fill in the constants, from ``problem.mu``, ``problem.L`` and the network's mixing matrix.

        Raises:
            InvalidInput: a constant is missing, or the problem has no dual oracle.
        """
        names = ("mixings", "c_2", "c_3", "eta", "momentum")
        require_dual(self, problem)
        if network is None or all(getattr(self, name) is not None for name in names):
            return require(self, names)
        mu, smooth = convex_constants(self, problem)
        low, high = network.gossip_spectrum
        gamma = min(low / high, 1.0)
        steps = self.mixings or _steps(gamma)
        power = ((1 - math.sqrt(gamma)) / (1 + math.sqrt(gamma))) ** steps
        root = (1 + power) * math.sqrt(smooth / mu)
        constants = {
            "mixings": steps,
            # Eigenvalues that agree but for rounding: any larger number does the same.
            "c_2": (1 + gamma) / max(1 - gamma, 1e-12),
            "c_3": 2 / (low + high),
            "eta": mu * (1 + power**2) / (1 + power) ** 2,
            "momentum": (root - (1 - power)) / (root + (1 - power)),
        }
        return fill(self, mu=mu, L=smooth, **constants)

    def init(self, params, key) -> MSDAState:
        zero = jax.tree.map(jnp.zeros_like, params)
        one = jnp.ones((), jax.tree.leaves(params)[0].dtype)
        return MSDAState(zero, zero, params, zero, zero, one, jnp.zeros((), jnp.int32))

    def point(self, state):
        return state.x

    def update(self, state, gradient, key) -> MSDAState:
        # omega = 2 is where the recursion of the ratios of Chebyshev's polynomials at c_2 begins.
        zero = jax.tree.map(jnp.zeros_like, gradient)
        return state._replace(
            primal=gradient,
            now=gradient,
            before=zero,
            omega=2 * jnp.ones_like(state.omega),
            step=0 * state.step,
        )

    def message(self, state, local, key):
        return state.now, state

    def receive(self, state, message, mine, weight) -> MSDAState:
        first = state.step == 0
        omega = jnp.where(first, 1.0, 1 / (1 - state.omega / (2 * self.c_2) ** 2))
        now = jax.tree.map(
            lambda s, before, ours, mean: (
                omega * (s - self.c_3 * weight * (ours - mean)) - (omega - 1) * before
            ),
            state.now,
            state.before,
            mine,
            message,
        )
        y = jax.tree.map(lambda x, theta, s: x - self.eta * (theta - s), state.x, state.primal, now)
        x = jax.tree.map(lambda new, old: (1 + self.momentum) * new - self.momentum * old, y, state.y)
        last = state.step + 1 == self.mixings
        return state._replace(
            x=choose(last, x, state.x),
            y=choose(last, y, state.y),
            now=now,
            before=state.now,
            omega=jnp.where(first, state.omega, omega),
            step=state.step + 1,
        )

    def estimate(self, state):
        return state.primal


def _steps(gamma: float) -> int:
    """Mixing steps for one gradient."""
    return max(1, math.floor(1 / math.sqrt(gamma) * (1 + 1e-12)))
