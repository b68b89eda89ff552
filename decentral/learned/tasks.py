"""What a learned optimizer is meta-trained on: tasks that go step by step."""

from __future__ import annotations

from typing import Any, Protocol

import jax

PyTree = Any


class Task(Protocol):
    """Something that meta-parameters can be good or bad at, in steps: a pytree with two pure functions.

    Arrays (data, the rows of a trace) are leaves, so that they are arguments of the compiled program and not part of it.
    Tasks of one structure and equal shapes are computed together.
    """

    @property
    def name(self) -> str:
        """For tables, files and messages."""
        ...

    @property
    def max_steps(self) -> int | None:
        """The longest episode there is, or None: no limit."""
        ...

    def start(self, meta: PyTree, key: jax.Array) -> PyTree:
        """The state an episode starts in; everything random in the episode follows from ``key``."""
        ...

    def step(self, meta: PyTree, state: PyTree) -> tuple[PyTree, jax.Array]:
        """``(state, loss)``: one step, and the loss (a scalar) that it is judged by."""
        ...
