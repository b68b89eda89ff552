"""A detector of changes at every worker, on what it sees anyway: its own gradients, or what its neighbours send."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decentral.algorithm.adpsgd import ADPSGD
from decentral.algorithm.base import pytree, static
from decentral.algorithm.faulty import Faulty
from decentral.algorithm.wrapper import Wrapper, WrapperState
from decentral.errors import InvalidInput
from decentral.optical.maps import Direction, Optical, as_code, as_map
from decentral.optical.newma import Newma, as_detector
from decentral.problem.checks import check_choice

STREAMS = ("gradient", "consensus")
WINDOW = 100


class MonitorState(NamedTuple):
    """What a worker's monitor keeps.

    Attributes:
        detector: the detector's state.
        statistic, threshold, flag: after its last sample.
        alarms: rising edges of the flag so far, int32.
        last: the sample of the last one, int32, counted from 1; 0: there was none.
        seed: uint32, of the camera's noise.
    """

    detector: Any
    statistic: Any
    threshold: Any
    flag: Any
    alarms: Any
    last: Any
    seed: Any


@pytree
class Monitored(Wrapper):
    """Any algorithm of workers that meet, with a change detector on a stream of each worker.

    The detector looks on: models, messages and times are those of the inner algorithm alone. A sample of the stream becomes a
    code of fixed size, the code features, and the detector compares recent features with older ones. By default the code is the
    *direction* of the sample (see :class:`~decentral.optical.maps.Direction`), because lengths of gradients and of differences
    change all the time while a run converges. What it has not seen is a change of data that moves no direction.

    Metrics: ``alarms`` so far and the ``statistic``, mean over the workers and, with ``_worst``, of the worker with most.

    Args:
        inner: the algorithm.
        detector: a detector, or a table, e.g. ``{"kind": "newma", "window": 100}`` (the default). Samples are the worker's
            gradients, or the messages it receives.
        stream: "gradient": the worker's gradients, as ``update`` gets them: its data drift. "consensus": what it receives minus
            what it sent in the same exchange: somebody else is at fault.
        features: a feature map, its name, or a table, e.g. ``{"kind": "optical", "rows": 534}``. By default as many random
            Fourier features as are worth having with the detector's window.
        code: ``Direction(size, levels)``, or a table of its arguments. The optical map needs bits: 4 levels by default with it,
            else numbers.

    References:
        Keriven, Garreau, Poli 2020, arXiv:1805.08061, for the detector; its use inside decentralized training is ours.
    """

    inner: Any = dataclasses.field(default_factory=ADPSGD)
    detector: Any = static(default=None)
    stream: str = static(default="gradient")
    features: Any = static(default=None)
    code: Any = static(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.inner, Faulty):
            advice = (
                "Faulty(inner=Monitored(...)): a monitor inside sees what arrives, outside what was meant."
            )
            raise InvalidInput("algorithm.inner", "Faulty", "an algorithm that is not", advice)
        check_choice("algorithm.stream", self.stream, STREAMS)
        detector = as_detector(Newma(WINDOW) if self.detector is None else self.detector)
        features = as_map(
            {"kind": "fourier", "rows": detector.worth} if self.features is None else self.features
        )
        optical = isinstance(features, Optical)
        code = Direction(levels=4 if optical else 0) if self.code is None else as_code(self.code)
        if optical and not code.levels:
            advice = "An optical unit's mirrors are on or off."
            raise InvalidInput("algorithm.code.levels", 0, "at least 1 with optical features", advice)
        if getattr(features, "scale", 1.0) is None:
            features = dataclasses.replace(features, scale=code.distance)
        for name, value in (("detector", detector), ("features", features), ("code", code)):
            object.__setattr__(self, name, value)

    def init(self, params, key) -> WrapperState:
        dtype = jnp.result_type(*jax.tree.leaves(params))
        none, zero = jnp.zeros((), jnp.int32), jnp.zeros((), dtype)
        detector = self.detector.init(self.features.outputs(self.code.outputs), dtype)
        seed = jax.random.bits(jax.random.fold_in(key, 1), (), jnp.uint32)
        own = MonitorState(detector, zero, zero, jnp.zeros((), bool), none, none, seed)
        return WrapperState(self.inner.init(params, key), own)

    def _look(self, own: MonitorState, sample) -> MonitorState:
        leaves = [leaf for leaf in jax.tree.leaves(sample) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        if not leaves:
            raise InvalidInput(
                "algorithm.stream", self.stream, "a stream of numbers",
                f"The messages of {type(self.inner).__name__} have none: watch its gradients.",
            )  # fmt: skip
        vector = jnp.concatenate([leaf.reshape(-1) for leaf in leaves]).astype(own.statistic.dtype)
        key = jax.random.fold_in(jax.random.key(own.seed), own.detector.count)
        detector, seen = self.detector.step(own.detector, self.features(self.code(vector), key))
        alarm = seen.flag & ~own.flag
        alarms, last = own.alarms + alarm.astype(jnp.int32), jnp.where(alarm, detector.count, own.last)
        return MonitorState(detector, seen.statistic, seen.threshold, seen.flag, alarms, last, own.seed)

    def update(self, state, gradient, key) -> WrapperState:
        state = super().update(state, gradient, key)
        if self.stream != "gradient":
            return state
        return state._replace(own=self._look(state.own, gradient))

    def receive(self, state, message, mine, weight) -> WrapperState:
        state = super().receive(state, message, mine, weight)
        if self.stream != "consensus":
            return state
        return state._replace(own=self._look(state.own, jax.tree.map(_difference, message, mine)))

    def metrics(self, state) -> dict[str, Any]:
        return super().metrics(state) | {"alarms": state.own.alarms, "statistic": state.own.statistic}


def _difference(theirs, ours):
    """What is left of rounding where both say the same has no direction."""
    difference = theirs - ours
    if not jnp.issubdtype(difference.dtype, jnp.floating):
        return difference
    rounding = 32 * jnp.finfo(difference.dtype).eps * (jnp.abs(theirs) + jnp.abs(ours))
    return jnp.where(jnp.abs(difference) > rounding, difference, 0)
