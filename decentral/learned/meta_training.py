"""Meta-training with PES: the numbers. What is written to files, and when, is in ``decentral.experiment.meta``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from decentral.errors import InvalidInput
from decentral.learned.pes import pes_gradient
from decentral.learned.tasks import Task
from decentral.problem.checks import check_int, check_number

PyTree = Any
PAIRS = "pairs"


@dataclasses.dataclass(frozen=True)
class PES:
    """How meta-parameters are trained: antithetic PES, the gradient clipped, then AdamW.

    Each task has ``perturbations / 2`` pairs, an episode each at any time. An outer step moves all episodes on by a window of
    ``truncation`` steps. Episodes have log-uniform lengths; the first ones begin as if up to a window old, so that they
    do not all end together. Defaults are those of the mini recipe for µLO (arXiv 2406.00153 has 16, 50, (100, 1000), 5000, 100).

    Args:
        outer_steps: updates of the meta-parameters.
        perturbations: of each task, an even number.
        std: of the perturbations.
        truncation: steps of a window.
        episode_steps: the shortest and the longest episode, at least a window.
        learning_rate: of AdamW at the end of the warm-up.
        final_learning_rate: at the end of the half cosine that follows.
        warmup_steps: outer steps from 0 to ``learning_rate``, fewer than there are.
        clip: the largest norm of a meta-gradient; longer ones are shortened before AdamW sees them.
        weight_decay: of AdamW.

    Raises:
        InvalidInput: an odd number of perturbations, episodes shorter than a window, numbers out of range.
    """

    outer_steps: int = 400
    perturbations: int = 12
    std: float = 0.01
    truncation: int = 25
    episode_steps: tuple[int, int] = (50, 200)
    learning_rate: float = 3e-3
    final_learning_rate: float = 1e-3
    warmup_steps: int = 10
    clip: float = 1.0
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("outer_steps", "truncation"):
            check_int(name, getattr(self, name))
        check_int("warmup_steps", self.warmup_steps, minimum=0)
        if self.warmup_steps >= self.outer_steps:
            raise InvalidInput(
                "warmup_steps", self.warmup_steps, f"fewer than outer_steps = {self.outer_steps}"
            )
        for name in ("std", "learning_rate", "clip"):
            check_number(name, getattr(self, name), open_low=True)
        for name in ("final_learning_rate", "weight_decay"):
            check_number(name, getattr(self, name))
        if check_int("perturbations", self.perturbations) % 2:
            raise InvalidInput(
                "perturbations", self.perturbations, "an even number",
                "They come in antithetic pairs: one added to the meta-parameters, the same one subtracted.",
            )  # fmt: skip
        lengths = self.episode_steps
        if not isinstance(lengths, Sequence) or isinstance(lengths, str) or len(lengths) != 2:
            raise InvalidInput(
                "episode_steps", lengths, "the shortest and the longest length, e.g. (50, 200)"
            )
        object.__setattr__(
            self, "episode_steps", tuple(check_int("episode_steps", steps) for steps in lengths)
        )
        low, high = self.episode_steps
        if not self.truncation <= low <= high:
            raise InvalidInput(
                "episode_steps", [low, high], f"two numbers in ascending order, from truncation = {self.truncation} on",
                "An episode has at least one window.",
            )  # fmt: skip

    @property
    def pairs(self) -> int:
        """Antithetic pairs of each task."""
        return self.perturbations // 2

    def schedule(self) -> optax.Schedule:
        """Learning rate by outer step."""
        return optax.warmup_cosine_decay_schedule(
            0.0, self.learning_rate, self.warmup_steps, self.outer_steps, self.final_learning_rate
        )

    def transformation(self) -> optax.GradientTransformation:
        """Of meta-gradients."""
        # after AdamW, as in the released code of µLO, a clip never acts: its updates are all of the learning rate's size
        return optax.chain(
            optax.clip_by_global_norm(self.clip), optax.adamw(self.schedule(), weight_decay=self.weight_decay)
        )


class Episodes(NamedTuple):
    """The episodes under way of tasks that are computed together; leaves ``(tasks, pairs, ...)``.

    Attributes:
        ends: the task's states at both ends of each pair: ``(tasks, pairs, 2, ...)``.
        accumulated: sum of the perturbations that the episode saw.
        number: episodes begun in this place.
        age: its steps so far.
        length: its steps in all.
        key: what is random in this place, perturbations and episodes.
    """

    ends: PyTree
    accumulated: PyTree
    number: jax.Array
    age: jax.Array
    length: jax.Array
    key: jax.Array


class MetaState(NamedTuple):
    """Everything that changes in meta-training."""

    meta: PyTree
    optimizer: PyTree
    step: jax.Array
    episodes: tuple[Episodes, ...]


class OuterStep(NamedTuple):
    """What an outer step tells.

    Attributes:
        losses: mean loss of the window, per task.
        gradient_norm: of the meta-gradient, before it is clipped.
        finite: whether it is a gradient; if not, the meta-parameters stayed as they were.
    """

    losses: Any
    gradient_norm: Any
    finite: Any


class MetaTraining:
    """Compiled meta-training on some tasks: ``begin`` once, then ``step`` after ``step``.

    Args:
        tasks: what the optimizer is to be good at; each counts the same.
        pes: how.
        devices: over which the pairs are shared out, in equal parts; by default as many of JAX's as divide them.

    Raises:
        InvalidInput: no task, episodes longer than a task has steps, devices that do not divide the pairs or are not there.
    """

    def __init__(self, tasks: Sequence[Task], pes: PES, devices: int | None = None) -> None:
        if not tasks:
            raise InvalidInput("tasks", "none", "at least one task to be good at")
        for task in tasks:
            if not (all(hasattr(task, part) for part in ("name", "max_steps", "start", "step"))):
                raise InvalidInput("tasks", task, "tasks", "E.g. decentral.ProblemTask(problem, optimizer).")
            if task.max_steps is not None and task.max_steps < pes.episode_steps[1]:
                allowed = f"at most the {task.max_steps} steps of {task.name}"
                raise InvalidInput("episode_steps", list(pes.episode_steps), allowed)
        there = jax.devices()
        if devices is None:
            devices = max(k for k in range(1, len(there) + 1) if pes.pairs % k == 0)
        elif check_int("devices", devices) > len(there) or pes.pairs % devices:
            allowed = f"a divisor of the {pes.pairs} pairs of a task, at most {len(there)}, which JAX has"
            raise InvalidInput("devices", devices, allowed)
        self.names, self.pes, self.devices = tuple(task.name for task in tasks), pes, devices
        self.groups = _groups(tasks)
        mesh = Mesh(np.array(there[:devices]), (PAIRS,))
        stacked = tuple(
            jax.tree.map(lambda *leaves: jnp.stack(leaves), *(tasks[index] for index in group))
            for group in self.groups
        )
        everywhere, by_pair = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, PAIRS))
        self._shardings: Any = (everywhere, everywhere, everywhere, by_pair)
        self._tasks = jax.device_put(stacked, everywhere)
        self._windows_on_devices = jax.shard_map(
            self._windows, mesh=mesh, in_specs=(P(), P(), P(), P(None, PAIRS)), out_specs=(P(), P(), P(None, PAIRS)),
            check_vma=False,
        )  # fmt: skip
        self._step = jax.jit(self._stepped, out_shardings=(MetaState(*self._shardings), everywhere))

    def begin(self, meta: PyTree, seed: int) -> MetaState:
        """The state before the first outer step: all episodes are over, so that it starts new ones."""
        episodes = []
        for task, group in zip(self._tasks, self.groups, strict=True):
            shape = len(group), self.pes.pairs
            one = jax.tree.map(lambda leaf: leaf[0], task)
            ends = jax.tree.map(
                partial(_blank, (*shape, 2)), jax.eval_shape(one.start, meta, jax.random.key(0))
            )
            accumulated = jax.tree.map(partial(_blank, shape), meta)
            number = jnp.zeros(shape, jnp.uint32)
            places = [[index * self.pes.pairs + pair for pair in range(self.pes.pairs)] for index in group]
            keys = jax.vmap(jax.vmap(partial(jax.random.fold_in, jax.random.key(seed))))(jnp.array(places))
            none = jnp.zeros(shape, jnp.int32)
            episodes.append(Episodes(ends, accumulated, number, none, none, keys))
        step = jnp.zeros((), jnp.int32)
        return self.placed(MetaState(meta, self.pes.transformation().init(meta), step, tuple(episodes)))

    def step(self, state: MetaState) -> tuple[MetaState, OuterStep]:
        """One outer step."""
        return self._step(self._tasks, state)

    def placed(self, state: MetaState) -> MetaState:
        """A state from elsewhere, such as a file, on the devices."""
        return MetaState(*map(jax.device_put, state, self._shardings))

    # -- compiled ------------------------------------------------------------------------------------------------------

    def _stepped(self, tasks: tuple[Task, ...], state: MetaState) -> tuple[MetaState, OuterStep]:
        gradient, losses, episodes = self._windows_on_devices(tasks, state.meta, state.step, state.episodes)
        # of losses in float64 it is float64; the optimizer's state has to stay of one kind
        gradient = jax.tree.map(lambda leaf, own: leaf.astype(own.dtype), gradient, state.meta)
        norm = jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(gradient)))
        finite = jnp.isfinite(norm)
        updates, optimizer = self.pes.transformation().update(gradient, state.optimizer, state.meta)
        moved = optax.apply_updates(state.meta, updates), optimizer
        meta, optimizer = jax.tree.map(partial(jnp.where, finite), moved, (state.meta, state.optimizer))
        return MetaState(meta, optimizer, state.step + 1, episodes), OuterStep(losses, norm, finite)

    def _windows(
        self, tasks: tuple[Task, ...], meta: PyTree, step: jax.Array, episodes: tuple[Episodes, ...]
    ) -> tuple[PyTree, jax.Array, tuple[Episodes, ...]]:
        """One window of every episode on this device; the gradient and the losses (in the tasks' order) are of all devices."""
        window = jax.vmap(partial(self._window, meta, step))
        gradients, losses, after = zip(*map(window, tasks, episodes), strict=True)
        order = jnp.argsort(jnp.asarray([index for group in self.groups for index in group]))
        gradient = jax.tree.map(lambda *parts: jnp.mean(jnp.concatenate(parts), axis=0), *gradients)
        return *jax.lax.pmean((gradient, jnp.concatenate(losses)[order]), PAIRS), after

    def _window(
        self, meta: PyTree, step: jax.Array, task: Task, episodes: Episodes
    ) -> tuple[PyTree, jax.Array, Episodes]:
        """A window of one task: its meta-gradient and mean loss."""
        std = self.pes.std
        perturbation = jax.vmap(lambda key: _perturbation(key, step, meta, std))(episodes.key)
        both = jax.tree.map(
            lambda own, shift: jnp.stack([own + shift, own - shift], axis=1), meta, perturbation
        )
        # a window meets the end of one episode at most: where the next begins is computed once, not in every step
        length, age, start = jax.vmap(self._drawn)(episodes.key, episodes.number)
        following = jax.vmap(jax.vmap(task.start, (0, None)))(both, start), age, length
        advance = jax.vmap(jax.vmap(task.step))

        def one(carry: tuple, _: None) -> tuple[tuple, tuple]:
            over = carry[1] >= carry[2]
            ends, age, length = jax.tree.map(partial(_where, over), following, carry)
            ends, losses = advance(both, ends)
            return (ends, age + 1, length), (losses, over)

        carry = episodes.ends, episodes.age, episodes.length
        (ends, age, length), (losses, restarted) = jax.lax.scan(one, carry, None, self.pes.truncation)
        gradient, accumulated = pes_gradient(
            losses[..., 0], losses[..., 1], restarted, episodes.accumulated, perturbation, std
        )
        number = episodes.number + restarted.any(axis=0)
        return gradient, jnp.mean(losses), Episodes(ends, accumulated, number, age, length, episodes.key)

    def _drawn(self, key: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of episode ``number``: its length, log-uniform; its age at its first step, int32 both; and the key it starts from."""
        length, offset, start = jax.random.split(jax.random.fold_in(key, 2 * number), 3)
        low, high = self.pes.episode_steps
        share = jax.random.uniform(length, dtype=jnp.float32)
        steps = (low * jnp.exp(share * np.float32(np.log((high + 1) / low)))).astype(jnp.int32)
        steps = jnp.minimum(steps, high)
        age = jax.random.randint(offset, (), 0, self.pes.truncation, jnp.int32)
        # no older than leaves it a window: what ends inside its first window would begin there once more
        age = jnp.minimum(age, steps - self.pes.truncation)
        return steps, jnp.where(number == 0, age, 0), start


def _perturbation(key: jax.Array, step: jax.Array, meta: PyTree, std: float) -> PyTree:
    """N(0, std^2) in every number of the meta-parameters."""
    flat, unravel = ravel_pytree(meta)  # one draw: generators take long to compile
    # even counts are those of episodes
    return unravel(std * jax.random.normal(jax.random.fold_in(key, 2 * step + 1), flat.shape, flat.dtype))


def _blank(lead: tuple[int, ...], leaf: Any) -> jax.Array:
    """Zeros, or keys, for a state that is never looked at."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), (*lead, *leaf.shape))
    return jnp.zeros((*lead, *leaf.shape), leaf.dtype)


def _where(pairs: jax.Array, chosen: jax.Array, other: jax.Array) -> jax.Array:
    """One leaf, by pair."""
    return jnp.where(pairs.reshape(-1, *(1,) * (other.ndim - 1)), chosen, other)


def _groups(tasks: Sequence[Task]) -> list[list[int]]:
    """The tasks of one structure and equal shapes, by number."""
    groups: dict[Any, list[int]] = {}
    for index, task in enumerate(tasks):
        leaves, structure = jax.tree.flatten(task)
        kind = structure, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        groups.setdefault(kind, []).append(index)
    return list(groups.values())
