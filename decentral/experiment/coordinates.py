"""The coordinate check of a parametrization: how much each layer's outputs move in a few steps, against the width.

In µP they move by the same amount whatever the width; where they move more in wider networks, a step size that is right for
a small one is too large for them. Tensor Programs V (Yang et al. 2022, appendix D, recalled); figure 2 of µLO (arXiv 2406.00153).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from decentral.algorithm.optimizer import Optimizer
from decentral.analysis.statistics import mean_interval
from decentral.errors import InvalidInput
from decentral.problem.base import Problem, PyTree, take
from decentral.problem.checks import check_int


@dataclasses.dataclass(frozen=True, eq=False)
class CoordinateCheck:
    """What a coordinate check measured.

    Attributes:
        layers: their names, from the input on.
        widths: increasing.
        steps: after which it was measured, increasing.
        change: (widths, steps, seeds, layers), the standard deviation, over samples and units, of a layer's outputs (before the
            nonlinearity) minus what they were before training.
    """

    layers: tuple[str, ...]
    widths: tuple[int, ...]
    steps: tuple[int, ...]
    change: np.ndarray

    def slopes(self, step: int | None = None, *, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """{layer: (slope, half_width)} of log(change) against log(width): 0 in µP, 1 where the change is as large as the width.

        One least-squares line for each seed; the mean of their slopes, and half of its Student interval (NaN with one seed).
        Both are NaN where a layer did not move at all, or diverged.

        Args:
            step: one of ``steps``; the last one by default.
            level: of the interval.

        Raises:
            InvalidInput: it was not measured after this step.
        """
        step = self.steps[-1] if step is None else step
        if step not in self.steps:
            raise InvalidInput("step", step, f"one of {list(self.steps)}")
        x = np.log(self.widths)
        x = x - x.mean()
        with np.errstate(divide="ignore", invalid="ignore"):
            y = np.log(self.change[:, self.steps.index(step)])
            slopes = np.tensordot(x, y, 1) / (x @ x)  # (seeds, layers)
        mean, half = mean_interval(np.where(np.isfinite(slopes), slopes, np.nan), level=level)
        return {layer: (float(mean[k]), float(half[k])) for k, layer in enumerate(self.layers)}


def coordinate_check(
    build: Callable[[int], Problem],
    widths: Sequence[int],
    optimizer: Optimizer,
    *,
    steps: Sequence[int] = (1, 3, 10),
    seeds: int = 3,
    samples: int = 256,
) -> CoordinateCheck:
    """Trains one worker at each width and looks at how its layers' outputs on the same samples have changed.

    Args:
        build: width -> problem. Its model has to tell its ``activations``: mlp and transformer do; from_loss takes them.
        widths: at least two, increasing.
        optimizer: a ``decentral.Optimizer`` with its learning rate, of either parametrization.
        steps: after how many it is measured, increasing.
        seeds: starting points and sequences of batches, numbers 0, 1, ...; the data are those that ``build`` gives.
        samples: looked at, held-out ones where there are some, else the first worker's.

    Raises:
        InvalidInput: a model that does not tell its activations, or has no roles while the optimizer is in µP; an optimizer
            without a learning rate; widths or steps that do not increase.

    Example:
        >>> from decentral import Optimizer, coordinate_check, problem
        >>> def build(width):
        ...     return problem.mlp(1, data="teacher", hidden=(width, width), batch_size=64, parametrization="mup")
        >>> check = coordinate_check(build, (16, 64), Optimizer("adam", learning_rate=0.01, parametrization="mup"), seeds=1)
        >>> check.layers
        ('layer 1', 'layer 2', 'logits')
    """
    widths, steps = _increasing("widths", widths, 2), _increasing("steps", steps, 1)
    check_int("seeds", seeds)
    check_int("samples", samples)
    if optimizer.needs_learning_rate:
        raise InvalidInput("optimizer.learning_rate", None, "a finite number >= 0", "Set one.")
    problems = (build(width) for width in widths)
    changes = [_changes(problem, optimizer, steps, seeds, samples) for problem in problems]
    layers = tuple(changes[0][0][0])
    if any(tuple(one) != layers for of_width in changes for of_seed in of_width for one in of_seed):
        raise InvalidInput("build", "models of different layers", "models that differ in their width")
    change = np.array(
        [
            [[list(of_seed[t].values()) for of_seed in of_width] for t in range(len(steps))]
            for of_width in changes
        ]
    )
    return CoordinateCheck(layers, widths, steps, change)


def _changes(
    problem: Problem, optimizer: Optimizer, steps: Sequence[int], seeds: int, samples: int
) -> list[list[dict[str, float]]]:
    """For each seed, after each of the steps: {layer: change}."""
    activations = getattr(problem, "activations", None)
    if activations is None:
        raise InvalidInput(
            "build", f"{problem.name}, which does not tell its layers' outputs", "a problem with activations",
            "mlp and transformer have them; give your own model's to from_loss.",
        )  # fmt: skip
    transformation = optimizer.bound_to(problem).transformation()
    probe = take(problem.shards, jnp.int32(0))["samples"] if problem.held_out is None else problem.held_out
    probe = jax.tree.map(lambda leaf: leaf[:samples], probe)

    def start(key: jax.Array) -> tuple[PyTree, PyTree]:
        params = problem.initial(key)
        return params, transformation.init(params)

    def advance(
        state: tuple[PyTree, PyTree], shards: PyTree, key: jax.Array, first: int, last: int
    ) -> tuple[PyTree, PyTree]:
        def step(count: jax.Array, state: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            params, memory = state
            gradient = problem.gradient(params, shards, jnp.int32(0), key, count)
            update, memory = transformation.update(gradient, memory, params)
            return jax.tree.map(jnp.add, params, update), memory

        return jax.lax.fori_loop(jnp.uint32(first), jnp.uint32(last), step, state)

    names: list[str] = []

    def outputs(params: PyTree, sample: PyTree) -> list[jax.Array]:
        seen = activations(params, sample)
        names[:] = seen  # JAX would sort them
        return list(seen.values())

    def change(params: PyTree, before: PyTree) -> list[jax.Array]:
        now, then = (jax.vmap(outputs, (None, 0))(tree, probe) for tree in (params, before))
        return [jnp.std(a - b) for a, b in zip(now, then, strict=True)]

    start, advance, change = jax.jit(start), jax.jit(advance), jax.jit(change)
    found = []
    for seed in range(seeds):
        own, batches = jax.random.split(jax.random.key(seed))
        state = before = start(own)
        found.append([])
        for first, last in itertools.pairwise((0, *steps)):
            state = advance(state, problem.shards, batches, first, last)
            values = change(state[0], before[0])
            found[-1].append(dict(zip(names, map(float, values), strict=True)))
    return found


def _increasing(name: str, values: Sequence[int], least: int) -> tuple[int, ...]:
    if not isinstance(values, Sequence):
        raise InvalidInput(name, values, "a list of them", f"E.g. {name}=(10, 30).")
    values = tuple(check_int(name, value) for value in values)
    if len(values) < least or any(a >= b for a, b in itertools.pairwise(values)):
        raise InvalidInput(name, list(values), f"at least {least}, each larger than the one before")
    return values
