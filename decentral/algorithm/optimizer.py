"""Local optimizers: an optax function, its arguments, weight decay and a schedule, with the numbers visible to JAX."""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import optax

from decentral.cost.optimizers import OptimizerCost
from decentral.cost.optimizers import learned as learned_cost
from decentral.errors import InvalidInput, suggest
from decentral.learned.meta_parameters import SHIPPED, MetaParameters, load_meta_parameters
from decentral.learned.optimizer import learned
from decentral.problem.checks import check_choice
from decentral.problem.parametrization import PARAMETRIZATIONS, check_mup, multipliers_of

DECAYS = ("all", "matrices")
"""What weight decay acts on: every array, or those of two and more axes, which leaves out biases and norms."""


class _Recipe:
    """The name of a function and its arguments; the numbers among them, counts apart, are leaves of a pytree."""

    kind: Any
    arguments: dict[str, Any]
    multipliers: Any = None
    """Of an optimizer in µP that is bound to a problem: a pytree like the parameters."""

    def as_dict(self) -> dict[str, Any]:
        """The spec table that makes it."""
        plain = {k: _plain(v) for k, v in self.arguments.items()}
        return {"kind": self.kind if isinstance(self.kind, str) else repr(self.kind), **plain}

    def __repr__(self) -> str:
        arguments = "".join(f", {name}={value!r}" for name, value in self.arguments.items())
        return f"{type(self).__name__}({self.kind!r}{arguments})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and (self.kind, self.arguments) == (other.kind, other.arguments)  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]  # arguments may be arrays


def _plain(value: Any) -> Any:
    """An argument as a spec has it."""
    if isinstance(value, MetaParameters):
        return value.name or repr(value)
    return (
        value.as_dict() if isinstance(value, _Recipe) else list(value) if isinstance(value, tuple) else value
    )


def constant() -> optax.Schedule:
    """1."""
    return optax.constant_schedule(1.0)


def step(milestones: Sequence[int], decay: float = 0.1) -> optax.Schedule:
    """Times ``decay`` from each milestone on, counted in updates."""
    levels = itertools.accumulate([1.0, *(decay for _ in milestones)], lambda level, factor: level * factor)
    return optax.join_schedules([optax.constant_schedule(level) for level in levels], milestones)


def goyal(
    warmup_steps: int, factor: float = 1.0, milestones: Sequence[int] = (), decay: float = 0.1
) -> optax.Schedule:
    """Linear from 1 to ``factor`` over ``warmup_steps`` updates, then times ``decay`` from each milestone on.

    Goyal et al. 2017, "Accurate, large minibatch SGD" (recalled), as A2CiD2's code has it: there ``factor`` is batch size *
    workers / 256, and may be below 1.
    """
    warmup = [optax.linear_schedule(1.0, factor, warmup_steps), optax.constant_schedule(factor)]
    warm, decayed = optax.join_schedules(warmup, [warmup_steps]), step(milestones, decay)
    return lambda count: (warm(count) if warmup_steps else factor) * decayed(count)


def cosine(steps: int, final: float = 0.0) -> optax.Schedule:
    """Half a cosine from 1 to ``final`` over ``steps`` updates, then ``final`` (Loshchilov & Hutter 2017, recalled)."""
    return optax.cosine_decay_schedule(1.0, steps, final)


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    function.__name__: function for function in (constant, step, goyal, cosine)
}


class Schedule(_Recipe):
    """What the learning rate is multiplied with, by the number of the optimizer's own updates (gradients) so far.

    Factors are leaves, replicas may differ in them; counts are part of the program.

    Args:
        kind: one of ``SCHEDULES``.
        **arguments: of that function.

    Raises:
        InvalidInput: no such schedule or argument; a count below 0 (``steps``: below 1), a factor that is negative or not
            finite, milestones that do not increase or lie inside the warm-up.
    """

    def __init__(self, kind: str, **arguments: Any) -> None:
        check_choice("optimizer.schedule.kind", kind, SCHEDULES)
        parameters = inspect.signature(SCHEDULES[kind]).parameters
        for name, value in arguments.items():
            key = f"optimizer.schedule.{name}"
            if name not in parameters:
                raise InvalidInput(key, value, f"arguments of {kind}", suggest(name, parameters))
            if name == "milestones":
                arguments[name] = _milestones(key, value, arguments.get("warmup_steps", 0))
            elif name in ("steps", "warmup_steps"):
                if type(value) is not int or value < (name == "steps"):
                    raise InvalidInput(key, value, f"a whole number, at least {int(name == 'steps')}")
            else:
                arguments[name] = _number(key, value)
        for name, parameter in parameters.items():
            if name not in arguments and parameter.default is inspect.Parameter.empty:
                raise InvalidInput(f"optimizer.schedule.{name}", "nothing", f"a value: {kind} needs it")
        defaults = {k: p.default for k, p in parameters.items() if p.default is not inspect.Parameter.empty}
        self.kind, self.arguments = kind, defaults | arguments

    def __call__(self, count: Any) -> Any:
        """The factor after ``count`` updates; may be traced."""
        # as a float: of int32 and int JAX makes float32, whatever the parameters are
        return SCHEDULES[self.kind](**self.arguments)(jnp.asarray(count, dtype=float))


def _milestones(key: str, value: Any, warmup_steps: Any) -> tuple[int, ...]:
    given: list[Any] = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [None]
    whole = all(type(count) is int and count > 0 for count in given)
    if not whole or any(a >= b for a, b in itertools.pairwise(given)):
        raise InvalidInput(key, value, "whole numbers of updates above 0, each larger than the one before")
    if given and isinstance(warmup_steps, int) and given[0] < warmup_steps:
        raise InvalidInput(key, value, f"milestones after the warm-up of {warmup_steps} updates")
    return tuple(given)


def _number(key: str, value: Any) -> Any:
    """``value``; plain numbers as floats (replicas with 1 and 0.1 must have one structure), finite and not negative."""
    if isinstance(value, bool | str) or value is None:
        raise InvalidInput(key, value, "a finite number >= 0")
    if not isinstance(value, int | float):
        return value  # an array: of replicas, or traced
    if not 0 <= value < float("inf"):
        raise InvalidInput(key, value, "a finite number >= 0")
    return float(value)


class Optimizer(_Recipe):
    """A local optimizer, kept as its recipe so that its numbers are hyper-parameters like any other.

    The numeric arguments are pytree leaves: replicas may differ in them, and they can be differentiated. An optax
    transformation that exists already is accepted in place of a name; its numbers are then fixed.

    Args:
        kind: name of a function of optax, or an ``optax.GradientTransformation``; or "learned", for
            :func:`decentral.learned.optimizer.learned`, whose ``meta_parameters`` are a name, a file or the
            :class:`MetaParameters`, and whose ``step_multiplier``, 0.001 or in µP 0.01 by default, is what a schedule multiplies.
        **arguments: passed to the function. ``learning_rate=None`` (the default where the function takes one) asks the
            algorithm for its theory's step size. Four are ours:

            - ``weight_decay``: where the function takes none itself, ``weight_decay * x`` is added to the gradient before
              anything else, so with momentum it is inside the buffer (as in PyTorch's SGD). Else it is the function's own.
            - ``decay``: what it acts on, "all" or "matrices" (arrays of two and more axes: no biases, no norms); by
              default what the function does. Where ``decay`` is a number of the function's own, as for "rmsprop", that
              remains: only these words are ours.
            - ``schedule``: a :class:`Schedule`, or its table: multiplies the learning rate.
            - ``parametrization``: "mup": every update is multiplied with its tensor's factor, on a problem whose model is in
              µP (see ``decentral.problem.parametrization``), so that the learning rate transfers between widths; without
              weight decay, for "sgd" and for optimizers whose updates do not grow with the gradient; by default "standard".

    Raises:
        InvalidInput: no such optax function or argument; values out of range; ``decay`` without weight decay; meta-parameters
            that cannot be loaded.

    Example:
        >>> Optimizer("sgd", learning_rate=0.1, momentum=0.9)
        Optimizer('sgd', learning_rate=0.1, momentum=0.9)
    """

    def __init__(self, kind: str | optax.GradientTransformation = "sgd", **arguments: Any) -> None:
        if isinstance(kind, str):
            if kind not in optimizers():
                raise InvalidInput(
                    "optimizer.kind", kind, 'an optax optimizer or "learned"', suggest(kind, optimizers())
                )
            accepted = inspect.signature(optimizers()[kind]).parameters
            for name in arguments:
                if name not in (*accepted, *OURS):
                    raise InvalidInput(
                        f"optimizer.{name}",
                        arguments[name],
                        f"arguments of {kind if kind == 'learned' else f'optax.{kind}'}",
                        suggest(name, {*accepted, *OURS}),
                    )
            if "learning_rate" in accepted:
                arguments = {"learning_rate": None, **arguments}
            elif kind == "learned":
                arguments = _learned_arguments(arguments)
            for name, value in arguments.items():
                if name not in (*OURS, "meta_parameters"):
                    _check_argument(name, value, accepted[name].default)
            for name in ("learning_rate", "weight_decay"):
                if arguments.get(name) is not None:
                    arguments[name] = _number(f"optimizer.{name}", arguments[name])
            if arguments.get("schedule") is not None:
                arguments["schedule"] = _as_schedule(arguments["schedule"])
            if "parametrization" in arguments:
                check_choice("optimizer.parametrization", arguments["parametrization"], PARAMETRIZATIONS)
            if arguments.get("parametrization") == "mup":
                own = accepted["weight_decay"].default if "weight_decay" in accepted else None
                check_mup(kind, arguments.get("weight_decay", own))
            _check_decay(kind, arguments, accepted)
        elif arguments:
            raise InvalidInput(
                "optimizer", sorted(arguments), "no arguments beside a finished transformation"
            )
        self.kind, self.arguments = kind, arguments

    @property
    def needs_learning_rate(self) -> bool:
        return self.arguments.get("learning_rate", 0.0) is None

    @property
    def cost(self) -> OptimizerCost | None:
        """What a step of the learned one takes; None for the others, which a gradient's seconds are taken to hold."""
        return learned_cost(self.arguments["meta_parameters"].hidden) if self.kind == "learned" else None

    def with_learning_rate(self, learning_rate: float) -> Optimizer:
        return Optimizer(self.kind, **{**self.arguments, "learning_rate": learning_rate})

    def with_meta_parameters(self, meta_parameters: Any) -> Optimizer:
        """A learned optimizer with other :class:`MetaParameters`, whose arrays may be traced.

        Raises:
            InvalidInput: this one is not learned, or it is given something else.
        """
        if self.kind != "learned" or not isinstance(meta_parameters, MetaParameters):
            got = f"{meta_parameters!r} for {self.kind!r}"
            raise InvalidInput("optimizer.meta_parameters", got, "MetaParameters for 'learned'")
        other = jax.tree.map(lambda leaf: leaf, self)  # a copy, bound like this one
        other.arguments = {**self.arguments, "meta_parameters": meta_parameters}
        return other

    def bound_to(self, problem: Any) -> Optimizer:
        """The same with the factors of the problem's tensors, where its parametrization is "mup".

        Raises:
            InvalidInput: the problem's model is not in µP.
        """
        if self.arguments.get("parametrization") != "mup":
            return self
        bound = Optimizer(self.kind, **self.arguments)
        bound.multipliers = multipliers_of(problem, self.kind)
        return bound

    def transformation(self) -> optax.GradientTransformation:
        """The optax transformation; its numbers may be traced."""
        if self.arguments.get("parametrization") != "mup":
            return self._transformation()
        return optax.chain(self._transformation(), optax.stateless(self._scaled))

    def _scaled(self, updates: Any, params: Any = None) -> Any:
        if self.multipliers is None:
            raise InvalidInput(
                "optimizer.parametrization", "mup", "an optimizer that was bound to a problem",
                "simulate and replay do it; by hand: optimizer.bound_to(problem).",
            )  # fmt: skip
        return jax.tree.map(lambda update, factor: factor * update, updates, self.multipliers)

    def _transformation(self) -> optax.GradientTransformation:
        if not isinstance(self.kind, str):
            return self.kind
        arguments, function = dict(self.arguments), optimizers()[self.kind]
        accepted = inspect.signature(function).parameters
        arguments.pop("parametrization", None)
        schedule = arguments.pop("schedule", None)
        if schedule is not None:
            name = "step_multiplier" if self.kind == "learned" else "learning_rate"
            rate = arguments[name]
            arguments[name] = lambda count: rate * schedule(count)
        mask = None
        if isinstance(arguments.get("decay"), str):
            mask = _matrices if arguments.pop("decay") == "matrices" else None
        if "weight_decay" in accepted:
            own = {} if mask is None else {str(_mask_name(accepted)): mask}
            return function(**arguments, **own)
        weight_decay = arguments.pop("weight_decay", None)
        if weight_decay is None:
            return function(**arguments)
        return optax.chain(optax.add_decayed_weights(weight_decay, mask), function(**arguments))

    def descend(self, params: Any, gradient: Any, state: Any) -> tuple[Any, Any]:
        """``(params, state)`` after one step of ``params`` along ``gradient``."""
        step, state = self.transformation().update(gradient, state, params)
        return optax.apply_updates(params, step), state


def _learned_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a learned optimizer, its meta-parameters loaded and its numbers checked."""
    arguments = {"meta_parameters": None, "step_multiplier": None, **given}
    meta = arguments["meta_parameters"]
    if isinstance(meta, str | os.PathLike):
        try:
            meta = load_meta_parameters(meta)
        except InvalidInput as error:
            raise InvalidInput(f"optimizer.{error.name}", error.got, error.allowed, error.advice) from None
    elif not isinstance(meta, MetaParameters):
        raise InvalidInput(
            "optimizer.meta_parameters", meta, "MetaParameters, the path of a file with them, or a name",
            f"Names: {', '.join(SHIPPED)}.",
        )  # fmt: skip
    arguments["meta_parameters"] = meta
    if arguments["step_multiplier"] is None:  # as released: another one in µP
        arguments["step_multiplier"] = 0.01 if arguments.get("parametrization") == "mup" else 0.001
    numbers = (
        "step_multiplier",
        "exponent_multiplier",
        *(name for name in arguments if name.endswith("_epsilon")),
    )
    return arguments | {
        name: _number(f"optimizer.{name}", arguments[name]) for name in numbers if name in arguments
    }


OURS = ("weight_decay", "decay", "schedule", "parametrization")


def _check_argument(name: str, value: Any, default: Any) -> None:
    """An argument of the optax function, as far as its name and default tell what it has to be; it checks little itself."""
    key = f"optimizer.{name}"
    plain = isinstance(value, bool | int | float | str)
    if plain and isinstance(value, bool) != isinstance(default, bool):
        raise InvalidInput(key, value, "true or false" if isinstance(default, bool) else "a number")
    if isinstance(value, str) and not isinstance(default, str):
        raise InvalidInput(key, value, "a number")
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not -float("inf") < value < float("inf"):
            raise InvalidInput(key, value, "a finite number")
        if name in ("momentum", "b1", "b2", "b3") and not 0 <= value < 1:
            raise InvalidInput(key, value, "a number from 0 to below 1")


def _mask_name(accepted: Mapping[str, Any]) -> str | None:
    """What the optax function calls the mask of its weight decay."""
    return next((name for name in ("mask", "weight_decay_mask") if name in accepted), None)


def _matrices(params: Any) -> Any:
    def is_matrix(path: tuple, leaf: Any) -> bool:
        # The stacked biases of a mixture's experts have two axes, and are biases still.
        return jnp.ndim(leaf) >= 2 and not (path and getattr(path[-1], "key", None) == "bias")

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def _check_decay(kind: str, arguments: Mapping[str, Any], accepted: Mapping[str, Any]) -> None:
    decay = arguments.get("decay")
    if decay is None or ("decay" in accepted and not isinstance(decay, str)):
        return
    check_choice("optimizer.decay", decay, DECAYS)
    if "weight_decay" not in accepted and arguments.get("weight_decay") is None:
        raise InvalidInput("optimizer.decay", decay, f"nothing for {kind} without weight_decay")
    if decay == "matrices" and "weight_decay" in accepted and _mask_name(accepted) is None:
        raise InvalidInput("optimizer.decay", decay, f'"all" for {kind}', f"optax.{kind} has no mask.")


def _as_schedule(value: Any) -> Schedule:
    if isinstance(value, Schedule):
        return value
    if not isinstance(value, Mapping):
        raise InvalidInput("optimizer.schedule", value, "a Schedule, or a table with kind")
    table = dict(value)
    return Schedule(table.pop("kind", None), **table)


def as_optimizer(value: Any) -> Optimizer:
    """Accept an :class:`Optimizer`, an optax transformation, or a spec table ``{"kind": "sgd", ...}``."""
    if isinstance(value, Optimizer):
        return value
    if isinstance(value, Mapping):
        table = dict(value)
        return Optimizer(table.pop("kind", "sgd"), **table)
    if isinstance(value, optax.GradientTransformation):
        return Optimizer(value)
    raise InvalidInput(
        "optimizer", value, "Optimizer('sgd', ...), an optax transformation, or a table with kind"
    )


def given_optimizer(value: Any, name: str = "optimizer") -> Optimizer:
    """As :func:`as_optimizer`, for algorithms without a step size of theory: the learning rate has to be there.

    Args:
        value: the optimizer.
        name: the setting's.

    Raises:
        InvalidInput: it is not.
    """
    optimizer = as_optimizer(value)
    if optimizer.needs_learning_rate:
        raise InvalidInput(
            f"{name}.learning_rate", None, "a finite number >= 0",
            "No theory's step size is built in for this algorithm: set one.",
        )  # fmt: skip
    return optimizer


@cache
def optimizers() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """The learned one, and optax's: functions that take a learning rate, and search no line with other values."""
    functions = ((name, getattr(optax, name)) for name in dir(optax) if not name.startswith("_"))
    return {"learned": learned} | {
        name: function
        for name, function in functions
        if inspect.isfunction(function)
        and "learning_rate" in inspect.signature(function).parameters
        and name != "lbfgs"
    }


def _flatten(recipe: _Recipe):
    numbers = {
        k: v
        for k, v in recipe.arguments.items()
        if isinstance(v, _Recipe) or not (isinstance(v, str | bool | int | tuple | None) or callable(v))
    }
    rest = tuple((k, v) for k, v in recipe.arguments.items() if k not in numbers)
    children = [(jax.tree_util.GetAttrKey(k), v) for k, v in numbers.items()]
    children.append((jax.tree_util.GetAttrKey("multipliers"), recipe.multipliers))
    return children, (recipe.kind, tuple(numbers), rest)


def bound_to(algorithm: Any, problem: Any) -> Any:
    """The algorithm, its optimizers (and those of algorithms inside it) bound to the problem."""

    def is_optimizer(node: Any) -> bool:
        return isinstance(node, Optimizer)

    return jax.tree.map(
        lambda node: node.bound_to(problem) if is_optimizer(node) else node, algorithm, is_leaf=is_optimizer
    )


for _class in (Optimizer, Schedule):

    def _unflatten(aux, children, cls=_class):
        kind, names, rest = aux
        recipe = object.__new__(cls)
        *numbers, recipe.multipliers = children
        recipe.kind, recipe.arguments = kind, {**dict(rest), **dict(zip(names, numbers, strict=True))}
        return recipe

    jax.tree_util.register_pytree_with_keys(_class, _flatten, _unflatten)
