"""Algorithms around another one: everything is the inner algorithm's, beside a state of their own."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from decentral.algorithm.base import Algorithm
from decentral.errors import InvalidInput
from decentral.optical.feedback import as_feedback
from decentral.protocol.base import Demand, Network


class WrapperState(NamedTuple):
    """``inner``: the inner algorithm's state; ``own``: what the wrapper keeps beside it."""

    inner: Any
    own: Any


class Wrapper(Algorithm):
    """Base of wrappers: a subclass has a field ``inner`` and overrides what it adds to.

    It is for algorithms with a state per worker that send messages: their events are the wrapper's events.
    """

    inner: Any

    def __post_init__(self) -> None:
        inner, name = self.inner, type(self).__name__
        if not isinstance(inner, Algorithm):
            raise InvalidInput("algorithm.inner", inner, "an algorithm", f"E.g. {name}(inner=ADPSGD(...)).")
        alone = type(inner).message is Algorithm.message
        if alone or type(inner).forward is not Algorithm.forward:
            what = "which sends no messages" if alone else "which is for pipelines"
            raise InvalidInput(
                "algorithm.inner", f"{type(inner).__name__}, {what}", "an algorithm of workers that meet, e.g. ADPSGD"
            )  # fmt: skip
        feedback = as_feedback(inner.feedback if self.feedback is None else self.feedback)
        if feedback is not None:
            # The engine asks the algorithm it runs, its gradients are the inner one's: both say the same.
            object.__setattr__(self, "inner", dataclasses.replace(inner, feedback=feedback))
            object.__setattr__(self, "feedback", feedback)

    @property
    def reads_before_flow(self) -> bool:
        return self.inner.reads_before_flow

    @property
    def time_unit(self) -> str:
        return self.inner.time_unit

    @property
    def oracle(self) -> Any:
        return self.inner.oracle

    @property
    def gradients_per_message(self) -> int:
        return self.inner.gradients_per_message

    @property
    def events_per_update(self) -> int:
        return self.inner.events_per_update

    @property
    def rescale(self) -> str:
        return self.inner.rescale

    def demand(self, network: Network) -> Demand:
        """The inner algorithm's."""
        return self.inner.demand(network)

    def resolve(self, problem: Any, network: Network | None) -> Any:
        """With the inner algorithm resolved."""
        return dataclasses.replace(self, inner=self.inner.resolve(problem, network))  # type: ignore[type-var]

    def flow(self, state, dt):
        return state._replace(inner=self.inner.flow(state.inner, dt))

    def point(self, state):
        return self.inner.point(state.inner)

    def update(self, state, gradient, key):
        return state._replace(inner=self.inner.update(state.inner, gradient, key))

    def message(self, state, local, key):
        message, inner = self.inner.message(state.inner, local, key)
        return message, state._replace(inner=inner)

    def decode(self, message):
        return self.inner.decode(message)

    def receive(self, state, message, mine, weight):
        return state._replace(inner=self.inner.receive(state.inner, message, mine, weight))

    def estimate(self, state):
        return self.inner.estimate(state.inner)

    def messages_sent(self, state):
        return self.inner.messages_sent(state.inner)

    def metrics(self, state) -> dict[str, Any]:
        return self.inner.metrics(state.inner)

    def conserved(self, state):
        return self.inner.conserved(state.inner)
