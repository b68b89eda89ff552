"""DPU: delayed parameter updates."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decentral.algorithm.acco import together
from decentral.algorithm.base import Algorithm, pytree, static
from decentral.algorithm.optimizer import Optimizer, given_optimizer
from decentral.errors import check_flag
from decentral.protocol.base import Demand, Network


class DPUState(NamedTuple):
    """What is kept between two all-reduces.

    Attributes:
        x: parameters.
        mean: of the gradients of the last all-reduce; empty where none is used again.
        count: how many they were.
        rounds: all-reduces so far.
        optimizer: the optimizer's state.
    """

    x: Any
    mean: Any
    count: Any
    rounds: Any
    optimizer: Any


@pytree
class DPU(Algorithm):
    r"""Every all-reduce is an update, by gradients at the parameters of one update before.

    .. math:: \theta_{t+1} = \mathrm{Opt}(\theta_t, \operatorname{mean}(g(\theta_{t-1})))

    With SGD on a curvature a / learning rate it is stable for a < 1 (:math:`z^2 - z + a`), half as far as without overlap.
    The schedule of a learning rate advances once per all-reduce. Pipe-SGD with a pipeline of two is the same. For
    ZeRO-Offload's synchronous beginning take ``Overlapped(warm_up=40)``.

    Args:
        optimizer: any optax optimizer; its learning rate must be given.
        released: as ACCO's code computes its baseline: gradients are set to zero after every second all-reduce only, so that
            those of each other one are used again in the next.
        first_twice: the gradients of the first all-reduce count in the second one too, as both are taken at the initial
            parameters (not so after a warm-up): what the recorded runs of the paper's formula do.

    References:
        Ren et al.: ZeRO-Offload (USENIX ATC 2021), recalled; ACCO's released code.
    """

    optimizer: Any = dataclasses.field(default_factory=Optimizer)
    released: bool = static(default=False)
    first_twice: bool = static(default=False)

    def demand(self, network: Network) -> Demand:
        """One copy, and gradients that come while the next ones are computed."""
        return Demand(meetings=("batches",))

    def __post_init__(self) -> None:
        check_flag("algorithm.released", self.released)
        check_flag("algorithm.first_twice", self.first_twice)

    def resolve(self, problem: Any, network: Network | None) -> DPU:
        return dataclasses.replace(self, optimizer=given_optimizer(self.optimizer))

    def init(self, params, key) -> DPUState:
        zero = jnp.zeros((), jnp.int32)
        mean = jax.tree.map(jnp.zeros_like, params) if self.released or self.first_twice else ()
        return DPUState(params, mean, zero, zero, self.optimizer.transformation().init(params))

    def reduce(self, state, gradient, count, key) -> DPUState:
        count = jnp.asarray(count, jnp.int32)
        mean, kept = gradient, ()
        if self.released or self.first_twice:
            again = state.rounds % 2 == 1 if self.released else state.rounds == 1
            mean, count = together(state.mean, jnp.where(again, state.count, 0), gradient, count)
            kept = mean
        x, optimizer = self.optimizer.descend(state.x, mean, state.optimizer)
        return DPUState(x, kept, count, state.rounds + 1, optimizer)

    def update(self, state, gradient, key) -> DPUState:
        return self.reduce(state, gradient, 1, key)

    def estimate(self, state):
        return state.x
