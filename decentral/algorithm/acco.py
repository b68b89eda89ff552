"""ACCO: accumulate while you communicate."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decentral.algorithm.base import Algorithm, choose, pytree, static
from decentral.algorithm.optimizer import Optimizer, given_optimizer
from decentral.errors import check_flag
from decentral.protocol.base import Demand, Network


def together(mean, count, other, others):
    """``(mean, count)`` of ``count`` gradients of one mean and ``others`` of an ``other``."""
    total = count + others
    share = jnp.asarray(others, float) / total

    def weighted(a, b):
        part = share.astype(a.dtype)
        return (1 - part) * a + part * b

    return jax.tree.map(weighted, mean, other), total


class ACCOState(NamedTuple):
    """What is kept between two all-reduces.

    Attributes:
        x: parameters.
        ahead: where gradients are taken: ``x``, or the estimate of what it will be.
        half: mean of the gradients of the estimate that was made last: the first half of the next batch.
        count: how many they are.
        rounds: all-reduces so far.
        optimizer: the optimizer's state.
    """

    x: Any
    ahead: Any
    half: Any
    count: Any
    rounds: Any
    optimizer: Any


@pytree
class ACCO(Algorithm):
    r"""Two all-reduces per update, both overlapped: the first half of a batch estimates where the whole batch will lead to.

    With :math:`\mathrm{Opt}(\theta, g)` a step of any optimizer, and means over the micro-batches of all workers,

    .. math::
        \tilde\theta_{t+1} &= \mathrm{Opt}(\theta_t, \operatorname{mean}(\tilde g_t)) \\
        \theta_{t+1} &= \mathrm{Opt}(\theta_t, \operatorname{mean}(\tilde g_t, g_t))

    where :math:`\tilde g_t` are gradients at :math:`\tilde\theta_t`, taken while :math:`\theta_t` was reduced, and
    :math:`g_t` gradients at :math:`\theta_t`, taken while the estimate :math:`\tilde\theta_{t+1}` was. The optimizer's state
    after an estimate is thrown away. No gradient is older than the step that uses it, but for the error of the estimate.
    With SGD on a curvature a / learning rate it is stable for a < 2, as without overlap; DPU up to 1 and WP up to 0.618.

    A learning-rate schedule advances once per update, that is with every second all-reduce. (The released code gives its
    schedule's length in gradients and advances it in the same way: it is hardly begun when the run ends.)

    There is one copy of the optimizer's accumulators too (sharded over the workers), so there is no choice of keeping them local.

    Args:
        optimizer: any optax optimizer; its learning rate must be given.
        released: as the authors' code computes: the optimizer's state after the very first estimate is kept (its steps are
            then 1, 2, 2, 3, 3, ... after the all-reduces instead of 0, 1, 1, 2, 2, ...).

    References:
        Nabli et al.: ACCO: Accumulate while you communicate (NeurIPS 2025; arXiv 2406.02613), read, and its released code.
    """

    optimizer: Any = dataclasses.field(default_factory=Optimizer)
    released: bool = static(default=False)

    @property
    def events_per_update(self) -> int:
        """An estimate and an update."""
        return 2

    def demand(self, network: Network) -> Demand:
        """One copy, and gradients that come while the next ones are computed."""
        return Demand(meetings=("batches",))

    def __post_init__(self) -> None:
        check_flag("algorithm.released", self.released)

    def resolve(self, problem: Any, network: Network | None) -> ACCO:
        return dataclasses.replace(self, optimizer=given_optimizer(self.optimizer))

    def init(self, params, key) -> ACCOState:
        none = jax.tree.map(jnp.zeros_like, params)
        zero = jnp.zeros((), jnp.int32)
        return ACCOState(params, params, none, zero, zero, self.optimizer.transformation().init(params))

    def reduce(self, state, gradient, count, key) -> ACCOState:
        estimates = state.rounds % 2 == 0
        count = jnp.asarray(count, jnp.int32)
        # Nothing is left of the first half of the batch before.
        mean, total = together(state.half, jnp.where(estimates, 0, state.count), gradient, count)
        ahead, optimizer = self.optimizer.descend(state.x, mean, state.optimizer)
        discards = estimates & (state.rounds > 0) if self.released else estimates
        return ACCOState(
            choose(estimates, state.x, ahead),
            ahead,
            mean,
            total,
            state.rounds + 1,
            choose(discards, state.optimizer, optimizer),
        )

    def update(self, state, gradient, key) -> ACCOState:
        return self.reduce(state, gradient, 1, key)

    def point(self, state):
        return state.ahead

    def estimate(self, state):
        return state.x
