"""D²: decentralized training over decentralized data."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decentral.algorithm.base import Algorithm, check_rate, fill, known, pytree, require
from decentral.errors import InvalidInput
from decentral.protocol.base import Demand, Network


class D2State(NamedTuple):
    """``x`` and ``previous``: this round's parameters and the last one's; ``gradient``: taken last; ``half``: to be mixed."""

    x: Any
    previous: Any
    gradient: Any
    half: Any


@pytree
class D2(Algorithm):
    r"""D-PSGD without its dependence on how much the workers' data differ.

    .. math:: x^{k+1} = W (2 x^k - x^{k-1} - \gamma (\nabla F(x^k) - \nabla F(x^{k-1})))

    from :math:`x^1 = W (x^0 - \gamma \nabla F(x^0))`. With full gradients it goes to the optimum at a constant step.

    Args:
        learning_rate: :math:`\gamma`; by default :math:`1/L`, for full gradients and a W without negative eigenvalues (NIDS,
            the same recursion, converges below :math:`2/L` there).
        L: smoothness of every :math:`f_i`; the problem's by default.

    W needs eigenvalues above -1/3. By default it is I - L / lambda_max(L) of the topology, which has none below 0.

    References:
        Tang, Lian, Yan, Zhang, Liu: D²: Decentralized training over decentralized data, ICML 2018; Li, Shi, Yan: A
        decentralized proximal-gradient method with network independent step-sizes (NIDS), IEEE TSP 2019 (both recalled).
    """

    learning_rate: float | None = None
    L: float | None = None

    def __post_init__(self) -> None:
        check_rate(self.learning_rate)

    def demand(self, network: Network) -> Demand:
        return Demand(meetings=("mix",), mixing="laplacian", fixed_weights=True, exact_rounds=True)

    def resolve(self, problem: Any, network: Network | None) -> D2:
        """Fill in the step, from ``problem.L``.

        Raises:
            InvalidInput: a constant is missing, or the mixing matrix has an eigenvalue of -1/3 or below.
        """
        lowest = None if network is None else 1 - network.gossip_spectrum[1]
        if lowest is not None and lowest <= -1 / 3 + 1e-9:
            raise InvalidInput(
                "protocol.mixing", f"a matrix with eigenvalue {lowest:.3g}", "eigenvalues above -1/3 for D²",
                'mixing = "laplacian", the default here, has none below 0.',
            )  # fmt: skip
        if network is None or self.learning_rate is not None:
            return require(self, ("learning_rate",))
        smooth = known("L", getattr(problem, "L", None) if self.L is None else self.L, "the problem (smooth)")
        return fill(self, L=smooth, learning_rate=1 / smooth)

    def init(self, params, key) -> D2State:
        return D2State(params, params, jax.tree.map(jnp.zeros_like, params), params)

    def update(self, state, gradient, key) -> D2State:
        half = jax.tree.map(
            lambda x, before, slope, old: 2 * x - before - self.learning_rate * (slope - old),
            state.x,
            state.previous,
            gradient,
            state.gradient,
        )
        return state._replace(gradient=gradient, half=half)

    def message(self, state, local, key):
        return state.half, state

    def receive(self, state, message, mine, weight) -> D2State:
        x = jax.tree.map(lambda h, mean, ours: h + weight * (mean - ours), state.half, message, mine)
        return D2State(x, state.x, state.gradient, x)

    def estimate(self, state):
        return state.x

    def conserved(self, state):
        return state.half
