"""Asynchronous gossip: local steps and pairwise averaging. The "baseline" of the A2CiD2 paper."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax

from decentral.algorithm.accumulators import Sent, check_accumulators, mixed, sent
from decentral.algorithm.base import Algorithm, known, pytree, static
from decentral.algorithm.compression import as_compressor, compress, decompress
from decentral.algorithm.optimizer import Optimizer, as_optimizer
from decentral.errors import InvalidInput
from decentral.problem.checks import check_choice, check_number
from decentral.protocol.base import Network

RESCALES = ("none", "realised_rate")
"""What ``rescale`` may be."""


class GossipState(NamedTuple):
    """``x``: parameters; ``optimizer``: the local optimizer's state."""

    x: Any
    optimizer: Any


@pytree
class Gossip(Algorithm):
    r"""Asynchronous decentralized SGD with pairwise averaging.

    .. math::
        dx_i = -\gamma\, dG_i - \alpha \sum_j (x_i - x_j)\, dM_{ij}

    with :math:`G_i` the worker's stochastic gradients at rate 1 and :math:`M_{ij}` the edge's clock.

    Args:
        optimizer: :math:`\gamma` and more: any optax optimizer, applied to the worker's own gradients. Its learning rate
            defaults to the theory's :math:`\gamma = 1 / (16 L (1 + \chi_1))` (recalled from Prop. 3.6, medium confidence).
        alpha: :math:`\alpha`, 1/2: both ends move to their average.
        compressor: of the models that are sent: a name of ``decentral.algorithm.COMPRESSORS`` or a table with ``kind``; by
            default none. Both ends apply the difference of the two messages as they were decoded, so the sum is conserved,
            but consensus stops at the compressor's error of x itself: take "int8" here, and CHOCO for the others.
        rescale: ``"realised_rate"`` divides gradients by how often the worker takes one, relative to the mean: with unequal
            speeds the workers then minimise sum f_i, not sum r_i f_i.
        accumulators: "local": each worker keeps its optimizer's own; "average": they are sent with the model and averaged
            alike (see ``decentral.algorithm.accumulators``). Counts of steps stay local.

    Differences: none known from the authors' ``baseline`` (checked by replaying their class).

    References:
        Nabli, Belilovsky, Oyallon: A2CiD2: Accelerating asynchronous communication in decentralized deep learning,
        NeurIPS 2023, section 3 with :math:`\eta = 0`.
    """

    optimizer: Any = dataclasses.field(default_factory=Optimizer)
    alpha: float = 0.5
    compressor: Any = static(default=None)
    rescale: str = static(default="none")
    accumulators: str = static(default="local")

    def __post_init__(self) -> None:
        object.__setattr__(self, "compressor", as_compressor(self.compressor))
        check_choice("algorithm.rescale", self.rescale, RESCALES)
        check_accumulators(self.accumulators)
        if self.accumulators == "average":
            check_number("algorithm.alpha", self.alpha, 0.0, 1.0)  # beyond, second moments turn negative
            if self.compressor is not None:
                raise InvalidInput(
                    "algorithm.compressor", self.compressor, "nothing with accumulators = 'average'",
                    "Decoded second moments could be negative.",
                )  # fmt: skip

    def resolve(self, problem: Any, network: Network | None) -> Gossip:
        """Fill in the learning rate; needs ``problem.L`` and ``network.chi_1``."""
        optimizer = as_optimizer(self.optimizer)
        # Else chi_1 would be computed for nothing: seconds on a large graph.
        if optimizer.needs_learning_rate:
            optimizer = theory_learning_rate(optimizer, problem, None if network is None else network.chi_1)
        return dataclasses.replace(self, optimizer=optimizer)

    def init(self, params, key) -> GossipState:
        return GossipState(params, self.optimizer.transformation().init(params))

    def update(self, state, gradient, key) -> GossipState:
        return GossipState(*self.optimizer.descend(state.x, gradient, state.optimizer))

    def message(self, state, local, key):
        return Sent(compress(self.compressor, state.x, key), sent(self.accumulators, state.optimizer)), state

    def decode(self, message):
        return decompress(message)

    def receive(self, state, message, mine, weight) -> GossipState:
        rate = self.alpha * weight
        x = jax.tree.map(lambda x, theirs, ours: x - rate * (ours - theirs), state.x, message.x, mine.x)
        return GossipState(x, mixed(state.optimizer, message.accumulators, rate))

    def estimate(self, state):
        return state.x

    def conserved(self, state):
        return state.x, sent(self.accumulators, state.optimizer)


def theory_learning_rate(optimizer: Optimizer, problem: Any, chi: float | None) -> Optimizer:
    """The optimizer with ``1 / (16 L (1 + chi))`` where its learning rate is open."""
    if not optimizer.needs_learning_rate:
        return optimizer
    smoothness = known(
        "problem.L", getattr(problem, "L", None), "the problem; or set optimizer.learning_rate"
    )
    chi = known("chi", chi, "the topology; or set optimizer.learning_rate")
    return optimizer.with_learning_rate(1.0 / (16.0 * smoothness * (1.0 + chi)))
