"""What an algorithm is: a frozen dataclass of hyper-parameters and a few pure functions over one worker's state."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from decentral.errors import InvalidInput
from decentral.problem.pytrees import pytree as pytree
from decentral.problem.pytrees import static as static
from decentral.protocol.base import Demand, Network

Own = TypeVar("Own", bound="Algorithm")


@pytree
class Algorithm:
    """Base of all algorithms: the defaults of what a simple one need not say.

    A subclass is decorated with :func:`pytree`, holds hyper-parameters only and defines ``init``, ``update``,
    ``message``, ``receive`` and ``estimate``; the rest when it differs from the default. All functions are pure, for one
    worker, and traced by JAX. A step size left at ``None`` is filled in by ``resolve``. No shipped algorithm derives from
    another.

    Args:
        feedback: what takes the place of the exact gradient on problems made of layers: a
            ``decentral.optical.feedback.Feedback``. None: nothing does.
    """

    feedback: Any = static(default=None, kw_only=True)

    @property
    def reads_before_flow(self) -> bool:
        """Gradient and message are taken from the state as stored, before it flows to the event's time."""
        return False

    @property
    def time_unit(self) -> str:
        """What ``flow`` counts time in: ``"global"``, the network's unit, or ``"own_ema"``, the worker's own.

        Its own is a running mean of the times between its gradients.
        """
        return "global"

    @property
    def oracle(self) -> Any:
        """What its gradients are: ``"gradient"``, of f_i, or ``"dual"``, of its conjugate: argmin_x f_i(x) - <y, x>.

        Or its ``feedback``, which stands for the gradient.
        """
        return "gradient" if self.feedback is None else self.feedback

    @property
    def gradients_per_message(self) -> int:
        """Gradients that ``message`` takes through ``local``; they are counted with the others."""
        return 0

    @property
    def events_per_update(self) -> int:
        """Events with a gradient that make one update of the parameters."""
        return 1

    @property
    def optimizer_steps(self) -> int:
        """Steps of its optimizer that it computes at the end of an all-reduce, where there is one copy of the parameters."""
        return 1

    @property
    def rescale(self) -> str:
        """``"none"``, or ``"realised_rate"``: gradients are divided by how often the worker takes one, relative to the mean."""
        return "none"

    def demand(self, network: Network) -> Demand:
        """How workers have to meet, and how often where the protocol leaves it open; ``network`` has the topology's own rates."""
        return Demand()

    def resolve(self, problem: Any, network: Network | None) -> Algorithm:
        """A copy with every ``None`` replaced, from the problem's ``mu`` and ``L`` and the network's ``chi_1``, ``chi_2``.

        Raises:
            InvalidInput: a constant is needed and neither given nor known.
        """
        return self

    def init(self, params, key) -> Any:
        """The state of a worker that starts at ``params``."""
        raise NotImplementedError(f"{type(self).__name__} must define init(params, key)")

    def flow(self, state, dt):
        """Continuous dynamics over ``dt`` seconds without events."""
        return state

    def point(self, state):
        """Where the gradient is taken."""
        return self.estimate(state)

    def update(self, state, gradient, key):
        """The state after a local gradient."""
        raise NotImplementedError(f"{type(self).__name__} must define update(state, gradient, key)")

    def reduce(self, state, gradient, count, key):
        """The state after an all-reduce that ran beside other work: the mean of ``count`` gradients at an older ``point``."""
        return self.update(state, gradient, key)

    def forward(self, stage, state, inputs, samples) -> tuple[Any, Any]:
        """``(outputs, stash)``: a batch passes a stage of a pipeline, which keeps the stash for its backward pass.

        The first stage has no inputs but ``samples``, which it can read again.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(stage, state, inputs, samples)")

    def turn(self, stage, loss, state, inputs, labels, count) -> tuple[Any, Any]:
        """``(state, cotoken)``: forward and backward pass of a batch at the last stage, the ``count``-th."""
        raise NotImplementedError(
            f"{type(self).__name__} must define turn(stage, loss, state, inputs, labels, count)"
        )

    def backward(self, stage, state, cotoken, stash, count, samples) -> tuple[Any, Any]:
        """``(state, cotoken)``: what came down passes a stage; at the first stage ``samples`` are its inputs."""
        raise NotImplementedError(
            f"{type(self).__name__} must define backward(stage, state, cotoken, stash, count, samples)"
        )

    def error(self, stage, loss, state, inputs, labels) -> tuple[Any, Any]:
        """``(error, stash)``: forward pass of a batch at the last stage of a pipeline that has no backward pass."""
        raise NotImplementedError(
            f"{type(self).__name__} must define error(stage, loss, state, inputs, labels)"
        )

    def learn(self, stage, state, error, stash, count, samples, projection) -> Any:
        """The state after the ``count``-th error; at the first stage ``samples`` are its inputs.

        ``projection``: which of the error a stage gets, an ``engine.instructions.Projection``; None at the last stage.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define learn(stage, state, error, stash, count, samples, projection)"
        )

    def message(self, state, local, key) -> tuple[Any, Any]:
        """``(message, state)``: what goes on the wire, and the sender's state after sending it."""
        raise NotImplementedError(f"{type(self).__name__} must define message(state, local, key)")

    def decode(self, message):
        """A message as ``receive`` wants it, from what was on the wire. Means of messages are means of decoded ones."""
        return message

    def receive(self, state, message, mine, weight):
        """The state after ``message`` arrived; ``mine`` is what this worker sent in the same exchange, both decoded."""
        raise NotImplementedError(f"{type(self).__name__} must define receive(state, message, mine, weight)")

    def estimate(self, state):
        """The parameters to evaluate."""
        raise NotImplementedError(f"{type(self).__name__} must define estimate(state)")

    def messages_sent(self, state) -> Any:
        """Messages this worker has sent so far, for an algorithm that may stay silent; None: it sent all the trace has."""
        return None

    def metrics(self, state) -> dict[str, Any]:
        """Numbers of this worker to be recorded by name: the mean over the workers, and the largest as ``NAME_worst``."""
        return {}

    def conserved(self, state) -> Any:
        """What an exchange keeps: the sum of this over its two ends, flowed to its instant, is the same before and after.

        Any pytree of parts of the state; by default nothing, no promise. ``decentral.testing.check_algorithm`` holds the
        algorithm to it.
        """
        return ()


def known(name: str, value: float | None, source: str) -> float:
    """``value``, or the error that says which constant is missing.

    Raises:
        InvalidInput: the value is None, not finite or not positive.
    """
    if value is None or not value > 0 or value == float("inf"):
        raise InvalidInput(name, value, f"a finite number > 0, given explicitly or known from {source}")
    return float(value)


def fill(algorithm: Own, **constants: Any) -> Own:
    """A copy with every field that is ``None`` replaced by its constant."""
    open_ = {name: value for name, value in constants.items() if getattr(algorithm, name) is None}
    return dataclasses.replace(algorithm, **open_)  # type: ignore[type-var]


def check_rate(learning_rate: float | None) -> None:
    """Refuse a step that is none.

    Raises:
        InvalidInput: negative, or not finite.
    """
    if learning_rate is not None and not 0 <= learning_rate < float("inf"):
        raise InvalidInput("learning_rate", learning_rate, "a finite number >= 0")


def check_mixings(mixings: int | None) -> None:
    """Refuse a number of mixing steps that is none.

    Raises:
        InvalidInput: below 1.
    """
    if mixings is not None and mixings < 1:
        raise InvalidInput("mixings", mixings, "an integer >= 1")


def require(algorithm: Own, names: Sequence[str]) -> Own:
    """The algorithm, if all these fields are given.

    Raises:
        InvalidInput: one is not, and there is no network to compute it from.
    """
    for name in names:
        if getattr(algorithm, name) is None:
            raise InvalidInput(name, None, "a number, or a network to compute it from")
    return algorithm


def convex_constants(algorithm: Any, problem: Any) -> tuple[float, float]:
    """``(mu, L)`` of every f_i: the algorithm's own, or the problem's, times ``mu_factor`` and ``L_factor`` where it has them.

    Raises:
        InvalidInput: one is missing, or ``mu > L``.
    """
    mu, smooth = (
        known(name, getattr(problem, name, None) if own is None else own, f"the problem ({what})")
        for name, own, what in (("mu", algorithm.mu, "strongly convex"), ("L", algorithm.L, "smooth"))
    )
    mu, smooth = (
        value * known(f"{name}_factor", getattr(algorithm, f"{name}_factor", 1.0), "the spec")
        for name, value in (("mu", mu), ("L", smooth))
    )
    if mu > smooth * (1 + 1e-12):
        raise InvalidInput("mu", mu, f"at most L = {smooth}")
    return mu, smooth


def require_dual(algorithm: Algorithm, problem: Any) -> None:
    """Refuse a problem without a dual oracle.

    Raises:
        InvalidInput: the problem has none.
    """
    if problem is not None and not problem.has_dual:
        name = type(algorithm).__name__
        raise InvalidInput(
            "problem.kind", problem.name, f"one with a dual oracle for {name}",
            "quadratic and least_squares have one (strongly convex); from_loss takes dual=.",
        )  # fmt: skip


def choose(condition: Any, chosen: Any, other: Any) -> Any:
    """``jnp.where`` on every leaf."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, other)
