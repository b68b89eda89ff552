"""DADAO: decoupled accelerated decentralized asynchronous optimization."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decentral.algorithm.base import Algorithm, convex_constants, known, pytree
from decentral.errors import InvalidInput
from decentral.protocol.base import Demand, Network


class DADAOState(NamedTuple):
    """Three accelerated pairs: primal ``x``, dual ``y`` (of the gradients), dual ``z`` (of the consensus)."""

    x: Any
    x_tilde: Any
    y: Any
    y_tilde: Any
    z: Any
    z_tilde: Any


@pytree
class DADAO(Algorithm):
    r"""Accelerated in the gradients and in the communications, with independent clocks for both.

    Between events, with :math:`\nu = \mu / 2`,

    .. math::
        x' &= \eta (\tilde x - x)      & \tilde x' &= \eta (x - \tilde x) \\
        y' &= \alpha (\tilde y - y)    & \tilde y' &= -\theta (y + z + \nu \tilde x) \\
        z' &= \alpha (\tilde z - z)    & \tilde z' &= \tilde\alpha (z - \tilde z)

    at a gradient of worker i, with :math:`g = \nabla f_i(x_i) - \nu x_i - \tilde y_i`,

    .. math:: x_i \mathrel{-}= \gamma g, \quad \tilde x_i \mathrel{-}= \tilde\gamma g, \quad
        \tilde y_i \mathrel{+}= (\delta + \tilde\delta) g

    and at an exchange on edge (i, j), with :math:`m = (y_i + z_i) - (y_j + z_j)`,

    .. math:: z_i \mathrel{-}= \beta m, \quad \tilde z_i \mathrel{-}= \tilde\beta m

    and the opposite at j. Only :math:`y + z` is sent. With all workers flowed to one time,
    :math:`\sum_i z_i = \sum_i \tilde z_i = 0` for ever. The flow is a closed form (no numeric eigendecomposition: the
    system has a double eigenvalue 0).

    Args:
        mu: strong convexity of every :math:`f_i`; the problem's by default.
        L: smoothness of every :math:`f_i`; the problem's by default.
        mu_factor, L_factor: what the problem's constants are multiplied by, to see what wrong ones do.
        chi_1: :math:`\chi_1` of the edge rates of the run; the network's by default.
        eta, alpha, alpha_tilde, theta, beta, beta_tilde, gamma, gamma_tilde, delta, delta_tilde, nu: the constants, by
            default with :math:`s = \sqrt{\nu / L}`: :math:`\eta = \tilde\alpha = s/8`, :math:`\alpha = \delta = s/4`,
            :math:`\theta = 1/(2s)`, :math:`\beta = 1/2`, :math:`\tilde\beta = 2 \chi_1 / s`, :math:`\tilde\delta = 1`,
            :math:`\gamma = 1/(4L)`, :math:`\tilde\gamma = 1/(4 \sqrt{L \nu})`.

    The time unit is one gradient per worker, so the gradient clocks must tick once per second. The exchanges per second
    it asks for, :math:`\sqrt{2 \chi_1 \chi_2}` in total, make :math:`\chi_1 \chi_2 = 1/2` for the run's rates, which the
    theory requires; fewer is a warning.

    Differences from the paper: constants are those of the authors' code (v1 of the paper); the ICML and JMLR texts may
    differ. Differences from the code: exact float64 coefficients (the code rounds them to float32); any dimension.

    Under rendezvous the same number of exchanges comes in bursts, after gradients, and mixes less than on independent clocks;
    since the theory's rate is nearly tight, it diverges. On a ring of 16 with constant or log-normal compute times 1.6 times as
    many suffice (``Rendezvous(exchanges_per_gradient=8.0)`` instead of 5), with exponential ones they do not.

    References:
        Nabli, Oyallon: DADAO: Decoupled accelerated decentralized asynchronous optimization, ICML 2023 (PMLR 202);
        https://github.com/AdelNabli/DADAO, commit eed1ed1.
    """

    mu: float | None = None
    L: float | None = None
    chi_1: float | None = None
    mu_factor: float = 1.0
    L_factor: float = 1.0
    nu: float | None = None
    eta: float | None = None
    alpha: float | None = None
    alpha_tilde: float | None = None
    theta: float | None = None
    beta: float | None = None
    beta_tilde: float | None = None
    gamma: float | None = None
    gamma_tilde: float | None = None
    delta: float | None = None
    delta_tilde: float | None = None

    def demand(self, network: Network) -> Demand:
        """``sqrt(2 chi_1 chi_2)`` exchanges per unit of time in total (both chi for a total rate of 1)."""
        return Demand(exchanges_per_s=2.0 * network.dadao_rate / network.topology.n)

    def resolve(self, problem: Any, network: Network | None) -> DADAO:
        """Fill in the constants, from ``problem.mu``, ``problem.L`` and ``network.chi_1``.

        Raises:
            InvalidInput: a constant is missing, ``mu > L``, or the gradient clocks do not tick once per second.
        """
        names = [field.name for field in dataclasses.fields(DADAO)]
        names = names[names.index("nu") :]
        if network is not None and abs(network.gradients_per_s * network.time_unit_s - 1.0) > 1e-9:
            raise InvalidInput(
                "protocol.gradients_per_s",
                network.gradients_per_s,
                "1.0 for DADAO: its time unit is one gradient",
            )
        if all(getattr(self, name) is not None for name in names):
            return self
        mu, smooth = convex_constants(self, problem)
        # Beside the factors stand the constants they multiply: who resolves it again does not multiply twice.
        own = convex_constants(dataclasses.replace(self, mu_factor=1.0, L_factor=1.0), problem)
        chi_1 = known(
            "chi_1", network.chi_1 if self.chi_1 is None and network else self.chi_1, "the topology"
        )
        if network is not None and self.chi_1 is None and chi_1 * network.chi_2 > 0.5 * (1 + 1e-9):
            warnings.warn(
                f"DADAO needs chi_1 chi_2 <= 1/2; these rates give {chi_1 * network.chi_2:.3g}. It may diverge: raise "
                "protocol.exchanges_per_s or leave it open.",
                stacklevel=2,
            )
        nu = mu / 2 if self.nu is None else self.nu
        s = math.sqrt(nu / smooth)
        constants = {
            "nu": nu,
            "eta": s / 8,
            "alpha": s / 4,
            "alpha_tilde": s / 8,
            "theta": 1 / (2 * s),
            "beta": 0.5,
            "beta_tilde": 2 * chi_1 / s,
            "gamma": 1 / (4 * smooth),
            "gamma_tilde": 1 / (4 * math.sqrt(smooth * nu)),
            "delta": s / 4,
            "delta_tilde": 1.0,
        }
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return dataclasses.replace(self, mu=own[0], L=own[1], chi_1=chi_1, **{**constants, **given})

    def init(self, params, key) -> DADAOState:
        zero = jax.tree.map(jnp.zeros_like, params)
        return DADAOState(params, zero, zero, zero, zero, zero)

    def flow(self, state, dt) -> DADAOState:
        a, b = 2 * self.eta, self.alpha + self.alpha_tilde
        omega = jnp.sqrt(self.alpha * self.theta - self.alpha**2 / 4)
        decay_a, decay_b, decay = jnp.exp(-a * dt), jnp.exp(-b * dt), jnp.exp(-self.alpha * dt / 2)
        cosine, sine = jnp.cos(omega * dt), jnp.sin(omega * dt) / omega

        def particular(rate):
            return self.theta / (rate - rate**2 / self.alpha - self.theta)

        def leaf(x, x_tilde, y, y_tilde, z, z_tilde):
            x_mean, x_gap = (x + x_tilde) / 2, (x - x_tilde) / 2
            z_mean = (self.alpha_tilde * z + self.alpha * z_tilde) / b
            z_gap = z - z_tilde
            # y is forced by y + z + nu x_tilde = y + constant + force_a e^{-a t} + force_b e^{-b t}.
            constant = z_mean + self.nu * x_mean
            force_a = particular(a) * -self.nu * x_gap
            force_b = particular(b) * (self.alpha / b) * z_gap
            tilde_a, tilde_b = 1 - a / self.alpha, 1 - b / self.alpha
            h = y - (-constant + force_a + force_b)
            h_tilde = y_tilde - (-constant + tilde_a * force_a + tilde_b * force_b)
            free = decay * (cosine * h + sine * self.alpha * (h_tilde - h / 2))
            free_tilde = decay * (cosine * h_tilde + sine * (self.alpha / 2 * h_tilde - self.theta * h))
            return DADAOState(
                x_mean + x_gap * decay_a,
                x_mean - x_gap * decay_a,
                free - constant + force_a * decay_a + force_b * decay_b,
                free_tilde - constant + tilde_a * force_a * decay_a + tilde_b * force_b * decay_b,
                z_mean + (self.alpha / b) * z_gap * decay_b,
                z_mean - (self.alpha_tilde / b) * z_gap * decay_b,
            )

        outer = jax.tree.structure(state.x)
        leaves = [leaf(*parts) for parts in zip(*(jax.tree.leaves(part) for part in state), strict=True)]
        return DADAOState(*(jax.tree.unflatten(outer, part) for part in zip(*leaves, strict=True)))

    def update(self, state, gradient, key) -> DADAOState:
        g = jax.tree.map(
            lambda slope, x, y_tilde: slope - self.nu * x - y_tilde, gradient, state.x, state.y_tilde
        )
        return state._replace(
            x=jax.tree.map(lambda x, g: x - self.gamma * g, state.x, g),
            x_tilde=jax.tree.map(lambda x, g: x - self.gamma_tilde * g, state.x_tilde, g),
            y_tilde=jax.tree.map(lambda y, g: y + (self.delta + self.delta_tilde) * g, state.y_tilde, g),
        )

    def message(self, state, local, key):
        return jax.tree.map(jnp.add, state.y, state.z), state

    def receive(self, state, message, mine, weight) -> DADAOState:
        gap = jax.tree.map(lambda ours, theirs: weight * (ours - theirs), mine, message)
        return state._replace(
            z=jax.tree.map(lambda z, g: z - self.beta * g, state.z, gap),
            z_tilde=jax.tree.map(lambda z, g: z - self.beta_tilde * g, state.z_tilde, gap),
        )

    def estimate(self, state):
        return state.x

    def conserved(self, state):
        return state.z, state.z_tilde
