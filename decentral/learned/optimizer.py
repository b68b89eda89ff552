"""A learned optimizer as an optax transformation: a small network that sees each parameter's gradients and says its step.

The architecture is small_fc_lopt (Metz et al. 2022, "Practical tradeoffs between memory, compute, and performance in learned
optimizers"), which µLO (arXiv 2406.00153) meta-trains under maximal-update parametrization.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from decentral.errors import InvalidInput
from decentral.learned.meta_parameters import MetaParameters

MOMENTUM = (0.9, 0.99, 0.999)
RMS = (0.999,)
ADAFACTOR = (0.9, 0.99, 0.999)
N_FEATURES = 28
OWN = np.array([*range(13), 25, 26, 27])
"""Features that differ between the parameters of a row and of a column: gradient, parameter, momentum (3), rms, momentum over
the root of rms (3), that root's inverse, preconditioned gradient (3) ... preconditioned momentum (3)."""
BY_ROW = np.array([13, 14, 15, 19, 20, 21])
BY_COLUMN = np.array([16, 17, 18, 22, 23, 24])
"""Features that do not: the factors, and their inverse roots; of vectors both are the same."""
BLOCK = 2**14
"""Parameters whose features are computed together, so that they stay in the cache; four times as many are no faster."""
TIMES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)
"""In steps; the features of time are tanh(t / time - 1), as the code has it (the paper leaves out the -1)."""


class LearnedState(NamedTuple):
    """What the learned optimizer remembers, for parameters of shapes S; only arrays.

    Attributes:
        count: steps taken.
        momentum: ``(3, *S)``, averages of the gradient.
        rms: S, average of the squared gradient.
        adafactor: averages of the squared gradient, three decays each: for tensors of two and more axes a pair, the means
            over the largest axis ``(3, *S)`` without it, and over the second largest; else one array ``(3, *S)`` in a tuple.
    """

    count: Any
    momentum: Any
    rms: Any
    adafactor: Any


class Epsilons(NamedTuple):
    """What keeps divisions finite; the values of the released code."""

    feature: Any = 1e-5
    rms: Any = 1e-6
    factor: Any = 1e-8
    preconditioner: Any = 1e-9
    square: Any = 1e-30


def learned(
    meta_parameters: MetaParameters,
    *,
    step_multiplier: float | Callable | None = None,
    exponent_multiplier: float = 0.001,
    feature_epsilon: float = 1e-5,
    rms_epsilon: float = 1e-6,
    factor_epsilon: float = 1e-8,
    preconditioner_epsilon: float = 1e-9,
    square_epsilon: float = 1e-30,
) -> optax.GradientTransformation:
    """The update of each parameter is -step_multiplier * d * exp(exponent_multiplier * m), (d, m) the network's outputs.

    Its inputs are 28 features of the parameter, the gradient and their averages, each divided by its root mean square over
    the tensor, and 11 features of the time. With the official epsilons the update is not free of the gradients' scale: they
    matter where gradients are below 3e-3.

    Args:
        meta_parameters: the network and the decays.
        step_multiplier: of every update; or a function of the steps taken. By default 0.001, the released code's value
            outside µP (it has 0.01 in µP).
        exponent_multiplier: of the network's second output.
        feature_epsilon: added to the mean square of each feature.
        rms_epsilon: added to the average squared gradient that momentum is divided by the root of.
        factor_epsilon: added to the averages by row and column whose inverse roots are features.
        preconditioner_epsilon: lowest value of the factors of the preconditioner, and added to their mean.
        square_epsilon: added to the squared gradient before its means by row and column.

    Returns:
        An optax transformation; its ``update`` needs the parameters, and its state is a :class:`LearnedState`.

    Raises:
        InvalidInput: at an update without the parameters.
    """
    epsilons = Epsilons(feature_epsilon, rms_epsilon, factor_epsilon, preconditioner_epsilon, square_epsilon)
    multiplier = 0.001 if step_multiplier is None else step_multiplier

    def init(params: Any) -> LearnedState:
        leaves, structure = jax.tree.flatten(params)
        zeros = [jnp.zeros_like(leaf) for leaf in leaves]
        tripled = [jnp.zeros((3, *jnp.shape(leaf)), jnp.result_type(leaf)) for leaf in leaves]
        factors = [_initial_factors(leaf) for leaf in leaves]
        of_params = structure.unflatten
        return LearnedState(
            jnp.zeros((), jnp.int32), of_params(tripled), of_params(zeros), of_params(factors)
        )

    def update(updates: Any, state: LearnedState, params: Any = None) -> tuple[Any, LearnedState]:
        if params is None:
            raise InvalidInput(
                "params", None, "the parameters", "A learned optimizer's update looks at them."
            )
        gradients, structure = jax.tree.flatten(updates)
        others = [structure.flatten_up_to(tree) for tree in (params, *state[1:])]
        size = multiplier(state.count) if callable(multiplier) else multiplier
        moved = [
            _update_of_tensor(meta_parameters, epsilons, exponent_multiplier, size, state.count, *tensor)
            for tensor in zip(gradients, *others, strict=True)
        ]
        steps, *memory = (structure.unflatten(column) for column in zip(*moved, strict=True))
        return steps, LearnedState(state.count + 1, *memory)

    return optax.GradientTransformation(init, update)


def _decays(offsets: Any, bases: tuple[float, ...]) -> Any:
    """1 - (1 - base) * exp(10 * offset)."""
    return 1 - (1 - np.asarray(bases)).astype(offsets.dtype) * jnp.exp(10 * offsets)


def factored_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """(largest, second largest) axis, the last of equals first; None below two axes."""
    if len(shape) < 2:
        return None
    order = np.argsort(shape, kind="stable")
    return int(order[-1]), int(order[-2])


def _initial_factors(leaf: Any) -> tuple[Any, ...]:
    shape, axes = jnp.shape(leaf), factored_axes(jnp.shape(leaf))
    shapes = [shape] if axes is None else [(*shape[:axis], *shape[axis + 1 :]) for axis in axes]
    return tuple(jnp.zeros((3, *one), jnp.result_type(leaf)) for one in shapes)


def _average(decays: Any, before: Any, now: Any) -> Any:
    """(3, ...) averages, moved towards ``now`` by what their decays leave."""
    decays = decays.reshape(decays.shape + (1,) * now.ndim)
    return decays * before + (1 - decays) * now


def _update_of_tensor(
    meta: MetaParameters,
    epsilons: Epsilons,
    exponent_multiplier: Any,
    step_multiplier: Any,
    count: Any,
    gradient: Any,
    params: Any,
    momentum: Any,
    rms: Any,
    adafactor: tuple[Any, ...],
) -> tuple[Any, Any, Any, tuple[Any, ...]]:
    """(update, momentum, rms, adafactor) of one tensor, computed in its precision.

    What depends on a parameter's row or column alone goes through the first layer once per row and column; each feature's
    normalisation is in the first layer's weights.
    """
    dtype = params.dtype
    meta, epsilons = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (meta, epsilons))
    gradient = gradient.astype(dtype)
    momentum = _average(_decays(meta.momentum_decays, MOMENTUM), momentum, gradient)
    rms = _average(jnp.clip(_decays(meta.rms_decays, RMS), 0, 1), rms[None], gradient**2)[0]
    decays = jnp.clip(_decays(meta.adafactor_decays, ADAFACTOR), 0, 1)
    axes, floor = factored_axes(params.shape), epsilons.preconditioner
    (first, bias), *rest = meta.layers
    time = time_features(count, dtype) @ first[N_FEATURES:]
    added = [(bias + time).reshape(-1, 1, 1, 1)]
    own = [gradient[None], params[None], momentum, rms[None]]
    if axes is None:
        (diagonal,) = adafactor = (_average(decays, adafactor[0], gradient**2),)
        by_gradient = jax.lax.rsqrt(jnp.maximum(diagonal + floor, floor))
        own += [by_gradient, jax.lax.rsqrt(diagonal + epsilons.rms), *_and_inverse_root(diagonal, epsilons)]
        first = jnp.concatenate([first[OWN], first[BY_ROW] + first[BY_COLUMN]])
    else:
        square = gradient**2 + epsilons.square
        row, column = adafactor = tuple(
            _average(decays, before, square.mean(axis)) for before, axis in zip(adafactor, axes, strict=True)
        )
        row, column = (jnp.expand_dims(one, 1 + axis) for one, axis in zip(adafactor, axes, strict=True))
        share = row / (row.mean(1 + axes[1], keepdims=True) + floor)
        own += [jax.lax.rsqrt(jnp.maximum(factor, floor)) for factor in (share, column)]
        for values, places in ((row, BY_ROW), (column, BY_COLUMN)):
            values = _as_blocks(jnp.concatenate(_and_inverse_root(values, epsilons)), axes)
            mean_square = (values**2).mean((1, 2, 3))
            added.append(jnp.tensordot(_scaled(first[places], mean_square, epsilons).T, values, 1))
        first = first[OWN]
    own = [_as_blocks(values, axes) for values in own]
    blocks = Blocks(own[0].shape[1:])

    def features(block: Any) -> Any:
        gradient, params, momentum, rms, *more = (blocks.cut(values, block) for values in own)
        inverse = jax.lax.rsqrt(rms + epsilons.rms)
        if axes is None:
            by_gradient, by_momentum, *more = more
        else:
            by_gradient = by_momentum = more.pop() * more.pop()
        values = [
            gradient,
            params,
            momentum,
            rms,
            momentum * inverse,
            inverse,
            by_gradient * gradient,
            by_momentum * momentum,
        ]
        return values + more

    def squares(block: Any, totals: Any) -> Any:
        new = blocks.new(block)
        return [
            total + jnp.where(new, part**2, 0) for total, part in zip(totals, features(block), strict=True)
        ]

    if blocks.count == 1:
        mean_square = (jnp.concatenate(features(None)) ** 2).mean((1, 2, 3))
    else:
        shapes = jax.eval_shape(features, jnp.int32(0))
        totals = blocks.fold(squares, [jnp.zeros(part.shape, dtype) for part in shapes])
        mean_square = jnp.concatenate([total.sum((1, 2, 3)) for total in totals]) / params.size
    first = _scaled(first, mean_square, epsilons).T

    def stepped(block: Any, steps: Any) -> Any:
        # as matrices: products of arrays with more axes are slower
        values = first @ jnp.concatenate(features(block)).reshape(first.shape[1], -1)
        values = values.reshape(-1, *blocks.size)
        values = (values + sum(blocks.cut(part, block) for part in added)).reshape(len(values), -1)
        for weight, bias in rest:
            values = weight.T @ jax.nn.relu(values) + bias[:, None]
        direction, magnitude = values
        step = -direction * jnp.exp(magnitude * exponent_multiplier) * step_multiplier
        return blocks.put(steps, step.astype(dtype).reshape(blocks.size), block)

    steps = blocks.fold(stepped, jnp.zeros(own[0].shape[1:], dtype))
    return _from_blocks(steps, params.shape, axes), momentum, rms, adafactor


def _and_inverse_root(values: Any, epsilons: Epsilons) -> list[Any]:
    return [values, jax.lax.rsqrt(values + epsilons.factor)]


def _scaled(weights: Any, mean_square: Any, epsilons: Epsilons) -> Any:
    """(features, h) weights of features that are divided by their root mean square."""
    return weights * jax.lax.rsqrt(mean_square + epsilons.feature)[:, None]


def time_features(count: Any, dtype: Any) -> Any:
    """(11,), what the network sees of the ``count`` steps taken."""
    return jnp.tanh(jnp.asarray(count, dtype) / jnp.asarray(TIMES, dtype) - 1)


# -- a tensor in blocks ------------------------------------------------------------------------------------------------


def _as_blocks(values: Any, axes: tuple[int, int] | None) -> Any:
    """(k, *S) as (k, others, a, b): the two axes of the factors last, in their order; they may have length 1 instead."""
    if axes is None:
        return values.reshape(len(values), 1, 1, -1)
    values = jnp.moveaxis(values, [1 + axis for axis in sorted(axes)], (-2, -1))
    return values.reshape(len(values), -1, *values.shape[-2:])


def _from_blocks(values: Any, shape: tuple[int, ...], axes: tuple[int, int] | None) -> Any:
    if axes is None:
        return values.reshape(shape)
    last = sorted(axes)
    others = [length for axis, length in enumerate(shape) if axis not in axes]
    return jnp.moveaxis(values.reshape(*others, *(shape[axis] for axis in last)), (-2, -1), last)


class Blocks:
    """Pieces of an array (l, a, b) of at most BLOCK numbers; the last ones reach back into those before.

    What lies between a parameter and its step is many times the parameters: with pieces it stays in a processor's cache, and
    in memory.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        size, left = [], BLOCK
        for length in reversed(shape):
            # as equal as can be: a last block that reaches back far does the work of another twice
            size.insert(0, -(-length // -(-length // max(min(length, left), 1))))
            left //= size[0]
        self.shape, self.size = shape, tuple(size)
        self.numbers = tuple(-(-length // one) for length, one in zip(shape, size, strict=True))
        self.count = math.prod(self.numbers)

    def fold(self, function: Any, initial: Any) -> Any:
        """``function(block, value)`` over all blocks."""
        if self.count == 1:
            return function(None, initial)
        return jax.lax.fori_loop(0, self.count, function, initial)

    def _begins(self, block: Any) -> list[tuple[Any, Any]]:
        """For each axis where a block would begin and where, to end inside, it does."""
        indices = jnp.unravel_index(block, self.numbers)
        ends = (length - one for length, one in zip(self.shape, self.size, strict=True))
        begins = (index * one for index, one in zip(indices, self.size, strict=True))
        return [(begin, jnp.minimum(begin, end)) for begin, end in zip(begins, ends, strict=True)]

    def cut(self, values: Any, block: Any) -> Any:
        """A block of (k, l, a, b); an axis of length 1 that is longer in the array stays as it is."""
        if block is None:
            return values
        for axis, ((_, begin), length) in enumerate(zip(self._begins(block), self.size, strict=True), 1):
            if values.shape[axis] == self.shape[axis - 1] != length:
                values = jax.lax.dynamic_slice_in_dim(values, begin, length, axis)
        return values

    def put(self, whole: Any, values: Any, block: Any) -> Any:
        """The whole array with a block's values."""
        if block is None:
            return values
        return jax.lax.dynamic_update_slice(whole, values, [begin for _, begin in self._begins(block)])

    def new(self, block: Any) -> Any:
        """Which entries of a block are not in one before."""
        there = jnp.ones(self.size, bool)
        if block is None:
            return there
        for axis, ((asked, begin), length) in enumerate(zip(self._begins(block), self.size, strict=True)):
            if self.shape[axis] % length:
                there &= jax.lax.broadcasted_iota(jnp.int32, self.size, axis) + begin >= asked
        return there
