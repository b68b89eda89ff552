"""A fault: from some message on, what one worker sends is not what it meant to send."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decentral.algorithm.adpsgd import ADPSGD
from decentral.algorithm.base import pytree, static
from decentral.algorithm.wrapper import Wrapper, WrapperState
from decentral.errors import InvalidInput
from decentral.problem.checks import check_choice, check_int, check_number

FAULTS = ("zeros", "noise", "negated")


class OnWire(NamedTuple):
    """``payload``: the inner algorithm's message; ``draw``: uint32, 0 while it is sound, else the key of what happens to it."""

    payload: Any
    draw: Any


class Arrived(NamedTuple):
    """A decoded message: ``said``: what arrives; ``meant``: what the sender believes to have sent."""

    said: Any
    meant: Any


@pytree
class Faulty(Wrapper):
    """Any algorithm of workers that meet, one of which has a broken sender.

    The worker itself is sound: it learns, receives, and reckons with what it meant to send. The wire carries 4 bytes more than
    the inner algorithm's message, the flag that this simulation needs. With a :class:`~decentral.algorithm.monitored.Monitored`
    algorithm inside, the neighbours' monitors look at what arrives.

    Args:
        inner: the algorithm.
        worker: whose messages are broken, its number in its replica.
        after: messages it sends before; 0: from the first on.
        fault: "zeros": zeros arrive; "negated": the negative; "noise": ``scale`` times the message's root mean square times
            N(0, 1) is added to every number.
        scale: of "noise".
    """

    inner: Any = dataclasses.field(default_factory=ADPSGD)
    worker: int = static(default=0)
    after: int = static(default=0)
    fault: str = static(default="zeros")
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("algorithm.worker", self.worker, 0)
        check_int("algorithm.after", self.after, 0)
        check_choice("algorithm.fault", self.fault, FAULTS)
        check_number("algorithm.scale", self.scale)

    def resolve(self, problem: Any, network: Any) -> Faulty:
        """With the inner algorithm resolved.

        Raises:
            InvalidInput: there is no such worker.
        """
        if problem is not None and self.worker >= problem.n_workers:
            raise InvalidInput("algorithm.worker", self.worker, f"one of 0 ... {problem.n_workers - 1}")
        return super().resolve(problem, network)

    def init(self, params, key) -> WrapperState:
        return WrapperState(self.inner.init(params, key), jnp.zeros((), jnp.int32))

    def message(self, state, local, key):
        payload, inner = self.inner.message(state.inner, local, key)
        broken = (local.worker == self.worker) & (state.own >= self.after)
        # Odd: 0 is for what is sound.
        draw = jnp.where(broken, jax.random.bits(jax.random.fold_in(key, 1), (), jnp.uint32) | 1, 0)
        return OnWire(payload, draw.astype(jnp.uint32)), WrapperState(inner, state.own + 1)

    def decode(self, message):
        meant = self.inner.decode(message.payload)
        leaves, structure = jax.tree.flatten(meant)
        keys = jax.random.split(jax.random.key(message.draw), max(1, len(leaves)))
        said = [
            jnp.where(message.draw > 0, self._broken(leaf, one), leaf) if leaf.size else leaf
            for leaf, one in zip(leaves, keys, strict=False)
        ]
        return Arrived(jax.tree.unflatten(structure, said), meant)

    def _broken(self, leaf, key):
        if self.fault == "zeros":
            return jnp.zeros_like(leaf)
        if self.fault == "negated":
            return -leaf
        noise = jax.random.normal(key, leaf.shape, leaf.dtype)
        return leaf + jnp.asarray(self.scale, leaf.dtype) * jnp.sqrt(jnp.mean(leaf**2)) * noise

    def receive(self, state, message, mine, weight):
        return super().receive(state, message.said, mine.meant, weight)

    def conserved(self, state):
        """Nothing: what a broken sender says changes the sum."""
        return ()
