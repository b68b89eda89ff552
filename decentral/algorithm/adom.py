"""ADOM+: accelerated decentralized optimization over graphs that change."""

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
    known,
    pytree,
    require,
    static,
)
from decentral.protocol.base import Demand, Network


class ADOMState(NamedTuple):
    """Three accelerated sequences with their extrapolated points, the error feedback ``m``, and a round's messages.

    ``sent`` is (g/nu (y_g + z_g) + m, y_g + z_g) as the round's mixing began, ``now`` the same as mixed so far.
    """

    x: Any
    y: Any
    z: Any
    m: Any
    x_f: Any
    y_f: Any
    z_f: Any
    sent: Any
    now: Any
    step: Any


@pytree
class ADOM(Algorithm):
    r"""ADOM+: optimal among primal methods on graphs that change; with or without multi-consensus.

    With :math:`P = I - W` (scaled to a largest eigenvalue of 1), :math:`x_g = \tau_1 x + (1 - \tau_1) x_f`, and in the same
    way :math:`y_g, z_g` with :math:`\sigma_1`, a round is

    .. math::
        x^+ &= x + \eta \alpha (x_g - x^+) - \eta (\nabla f(x_g) - \nu x_g - y^+) \\
        y^+ &= y + \theta \beta (\nabla f(x_g) - \nu x_g - y^+) - \theta ((y_g + z_g) / \nu + x^+) \\
        x_f^+ &= x_g + \tau_2 (x^+ - x), \qquad y_f^+ = y_g + \sigma_2 (y^+ - y) \\
        m^+ &= (I - P) (\tfrac{\gamma}{\nu} (y_g + z_g) + m) \\
        z^+ &= z + \gamma \delta (z_g - z) - P (\tfrac{\gamma}{\nu} (y_g + z_g) + m), \qquad z_f^+ = z_g - \zeta P (y_g + z_g)

    whose first two lines are solved for :math:`x^+, y^+`. With multi-consensus :math:`I - P` is a product of T mixing
    steps, over the graphs as they come: T messages for one gradient, constants for :math:`\chi = 2`. A message is two vectors.

    Args:
        multi_consensus: T = ceil(chi ln 2) mixing steps instead of one.
        mixings: T.
        scale: one over the largest eigenvalue of :math:`I - W` (of any round's).
        tau_1, tau_2, sigma_1, sigma_2, eta, alpha, beta, delta, nu, gamma, theta, zeta: the constants, by default
            :math:`\tau_2 = \sqrt{\mu/L}`, :math:`\tau_1 = 1/(1/\tau_2 + 1/2)`, :math:`\sigma_2 = \tau_2/(16 \chi)`,
            :math:`\sigma_1 = 1/(1/\sigma_2 + 1/2)`, :math:`\eta = 1/(L \tau_2)`, :math:`\alpha = \nu = \mu/2`,
            :math:`\beta = 1/(2L)`, :math:`\delta = 1/(17 L)`, :math:`\gamma = \nu/(14 \sigma_2 \chi^2)`,
            :math:`\theta = \nu/(4 \sigma_2)`, :math:`\zeta = 1/2`.
        chi: largest over smallest positive eigenvalue of :math:`I - W`, the worst of the schedule's; of T > 1 steps together
            :math:`\max(2, 1 / (1 - (1 - 1/\chi)^T))`.
        mu: strong convexity of every :math:`f_i`; the problem's by default.
        L: smoothness of every :math:`f_i`; the problem's by default.

    Runs in rounds of one gradient and T mixing steps; by default W = I - L / lambda_max(L) of the topology, any schedule of
    symmetric matrices on connected graphs will do. The estimate is x.

    Differences from the authors' code: :math:`y` and :math:`m` start at zero (there: N(0, I)); on graphs that change it
    applies a round's matrices in the reverse of their order, the last one first (it multiplies them from the right).

    References:
        Kovalev, Shulgin, Richtárik, Rogozin, Gasnikov: ADOM+, ICML 2021 (recalled); constants and order of operations as in
        the authors' code of DADAO (commit eed1ed1).
    """

    multi_consensus: bool = static(False)
    mixings: int | None = None
    scale: float | None = None
    tau_1: float | None = None
    tau_2: float | None = None
    sigma_1: float | None = None
    sigma_2: float | None = None
    eta: float | None = None
    alpha: float | None = None
    beta: float | None = None
    delta: float | None = None
    nu: float | None = None
    gamma: float | None = None
    theta: float | None = None
    zeta: float | None = None
    chi: float | None = None
    mu: float | None = None
    L: float | None = None

    def __post_init__(self) -> None:
        check_mixings(self.mixings)

    def demand(self, network: Network) -> Demand:
        steps = self._steps(network)
        return Demand(meetings=("mix",), mixing="laplacian", mixings=steps, exact_rounds=True)

    def _steps(self, network: Network) -> int:
        if self.mixings is not None:
            return self.mixings
        low, high = network.gossip_spectrum
        return max(1, math.ceil(high / low * math.log(2))) if self.multi_consensus else 1

    def resolve(self, problem: Any, network: Network | None) -> ADOM:
        """Fill in the constants, from ``problem.mu``, ``problem.L`` and the network's mixing matrices.

        Raises:
            InvalidInput: a constant is missing.
        """
        names = (
            "mixings",
            "scale",
            "tau_1",
            "tau_2",
            "sigma_1",
            "sigma_2",
            "eta",
            "alpha",
            "beta",
            "delta",
            "nu",
        )
        names = (*names, "gamma", "theta", "zeta")
        if network is None or all(getattr(self, name) is not None for name in names):
            return require(self, names)
        mu, smooth = convex_constants(self, problem)
        low, high = network.gossip_spectrum
        steps = self._steps(network)
        # After T steps what is left of a disagreement is at most (1 - 1/chi)^T; T >= chi ln 2 makes chi 2.
        chi = high / low if self.chi is None else known("chi", self.chi, "the network")
        if self.chi is None and steps > 1:
            chi = max(2.0, 1 / -math.expm1(steps * math.log1p(-low / high)))
        tau_2, nu = math.sqrt(mu / smooth), mu / 2 if self.nu is None else self.nu
        sigma_2 = tau_2 / (16 * chi)
        constants = {
            "mixings": steps,
            "scale": 1 / high,
            "tau_1": 1 / (1 / tau_2 + 0.5),
            "tau_2": tau_2,
            "sigma_1": 1 / (1 / sigma_2 + 0.5),
            "sigma_2": sigma_2,
            "eta": 1 / (smooth * tau_2),
            "alpha": mu / 2,
            "beta": 1 / (2 * smooth),
            "delta": 1 / (17 * smooth),
            "nu": nu,
            "gamma": nu / (14 * sigma_2 * chi**2),
            "theta": nu / (4 * sigma_2),
            "zeta": 0.5,
        }
        return fill(self, mu=mu, L=smooth, chi=chi, **constants)

    def init(self, params, key) -> ADOMState:
        zero = jax.tree.map(jnp.zeros_like, params)
        pair = (zero, zero)
        step = jnp.zeros((), jnp.int32)
        return ADOMState(params, zero, zero, zero, params, zero, zero, pair, pair, step)

    def point(self, state):
        return _between(self.tau_1, state.x, state.x_f)

    def update(self, state, gradient, key) -> ADOMState:
        x_g = self.point(state)
        y_g, z_g = (_between(self.sigma_1, *pair) for pair in ((state.y, state.y_f), (state.z, state.z_f)))
        total = jax.tree.map(jnp.add, y_g, z_g)
        # Two linear equations in (x+, y+): [[1 + eta alpha, -eta], [theta, 1 + theta beta]].
        a, b = 1 + self.eta * self.alpha, 1 + self.theta * self.beta
        determinant = a * b + self.eta * self.theta

        def solve(x, y, x_g, gradient, total):
            slope = gradient - self.nu * x_g
            first = x + self.eta * (self.alpha * x_g - slope)
            second = y + self.theta * (self.beta * slope - total / self.nu)
            return (b * first + self.eta * second) / determinant, (
                a * second - self.theta * first
            ) / determinant

        pairs = jax.tree.map(solve, state.x, state.y, x_g, gradient, total)
        x, y = jax.tree.transpose(jax.tree.structure(state.x), None, pairs)
        move = lambda new, old, point, rate: jax.tree.map(lambda n, o, g: g + rate * (n - o), new, old, point)  # noqa: E731
        feedback = jax.tree.map(lambda s, m: self.gamma / self.nu * s + m, total, state.m)
        return state._replace(
            x=x,
            y=y,
            x_f=move(x, state.x, x_g, self.tau_2),
            y_f=move(y, state.y, y_g, self.sigma_2),
            # z_f holds z_g until the round's mixing is done.
            z_f=z_g,
            sent=(feedback, total),
            now=(feedback, total),
            step=0 * state.step,
        )

    def message(self, state, local, key):
        return state.now, state

    def receive(self, state, message, mine, weight) -> ADOMState:
        share = weight * self.scale
        now = jax.tree.map(lambda s, mean, ours: s + share * (mean - ours), state.now, message, mine)
        lost = jax.tree.map(jnp.subtract, state.sent, now)
        rate = self.gamma * self.delta
        z = jax.tree.map(lambda z, z_g, p: z + rate * (z_g - z) - p, state.z, state.z_f, lost[0])
        z_f = jax.tree.map(lambda z_g, p: z_g - self.zeta * p, state.z_f, lost[1])
        last = state.step + 1 == self.mixings
        return state._replace(
            z=choose(last, z, state.z),
            m=choose(last, now[0], state.m),
            z_f=choose(last, z_f, state.z_f),
            now=now,
            step=state.step + 1,
        )

    def estimate(self, state):
        return state.x

    def conserved(self, state):
        return state.now


def _between(share, a, b):
    return jax.tree.map(lambda u, v: share * u + (1 - share) * v, a, b)
