"""Meta-training: from tasks to meta-parameters; from a spec to a folder that says where they come from."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tomli_w

from decentral.algorithm.optimizer import Optimizer, as_optimizer
from decentral.analysis.meta_loss import plot_meta_loss
from decentral.errors import InvalidInput, InvalidInputs, RunFailed, suggest
from decentral.experiment import folder as folders
from decentral.experiment.bars import bar
from decentral.experiment.overrides import read_tables
from decentral.experiment.prepared import hash_of
from decentral.experiment.run import CHECKPOINT_EVERY_S, interruptible
from decentral.experiment.spec import NAME, NAME_WORDS, Spec, read_problem, validate
from decentral.experiment.tasks import ProblemTask
from decentral.experiment.trace_task import trace_task
from decentral.learned.meta_parameters import (
    HAND_MADE,
    MetaParameters,
    initial_meta_parameters,
    load_meta_parameters,
    save_meta_parameters,
)
from decentral.learned.meta_training import PES, MetaState, MetaTraining, OuterStep
from decentral.learned.tasks import Task
from decentral.problem import stack_shards
from decentral.problem.checks import check_int


class MetaProgress(NamedTuple):
    """What a progress callback is told after every outer step."""

    step: int
    steps: int
    loss: float


@dataclasses.dataclass(frozen=True, eq=False)
class MetaTrained:
    """Meta-parameters, and how they came about.

    Attributes:
        meta_parameters: as the last outer step left them.
        history: "losses" ``(steps, tasks)``, the mean loss of each window; "gradient_norm" and "learning_rate" ``(steps,)``.
        tasks: their names.
        wall_s: wall time by stage: compile (with the first outer step), train.
    """

    meta_parameters: MetaParameters
    history: dict[str, np.ndarray]
    tasks: tuple[str, ...]
    wall_s: dict[str, float]


class MetaTrainingFailed(RunFailed):
    """A meta-gradient was NaN or infinite.

    Attributes:
        step: the outer step, counted from 1.
        so_far: what there was before it: the meta-parameters that are still good, and the history.
    """

    def __init__(self, step: int, losses: Mapping[str, float], so_far: MetaTrained) -> None:
        bad = [name for name, loss in losses.items() if not np.isfinite(loss)]
        where = f"the losses of {', '.join(bad)} are" if bad else "losses are finite, the gradient is"
        super().__init__(
            f"outer step {step}: {where} NaN or infinite. The meta-parameters of the step before are kept. "
            f"Try a smaller optimizer.step_multiplier (episodes that do not diverge), shorter episodes (pes.episode_steps), or a "
            "smaller pes.learning_rate or pes.std."
        )
        self.step, self.so_far = step, so_far


def meta_train(
    tasks: Task | Sequence[Task],
    pes: PES | None = None,
    *,
    hidden: int = 16,
    initial: MetaParameters | None = None,
    seed: int = 0,
    devices: int | None = None,
    progress: Callable[[MetaProgress], None] | bool = False,
) -> MetaTrained:
    """Find meta-parameters of a learned optimizer by persistent evolution strategies.

    The same as a file, with checkpoints: ``decentral meta-train SPEC``.

    Args:
        tasks: what the optimizer is to be good at, such as :class:`decentral.experiment.tasks.ProblemTask`; each counts the same.
        pes: how; the mini recipe by default.
        hidden: units of the optimizer's hidden layers.
        initial: where to start instead of a random network.
        seed: drives the initial network, perturbations and episodes.
        devices: over which the pairs of perturbations are shared out; by default as many of JAX's as divide them.
        progress: a callback, or True for a progress bar.

    Raises:
        InvalidInput: no tasks, episodes longer than a task, devices that do not divide the pairs, no hidden units, a seed below
            0, or an ``initial`` of another kind.
        MetaTrainingFailed: a meta-gradient is NaN or infinite; it holds the last good meta-parameters.

    Example:
        >>> teacher = problem.mlp(n=1, data="teacher", hidden=(16, 16, 16), batch_size=64, parametrization="mup")
        >>> optimizer = Optimizer("learned", meta_parameters="hand_made", parametrization="mup")
        >>> trained = meta_train(ProblemTask(teacher, optimizer), PES(outer_steps=100))
        >>> simulate(..., Gossip(optimizer=optimizer.with_meta_parameters(trained.meta_parameters)), ...)  # on other models
    """
    check_int("seed", seed, 0)
    if initial is not None and not isinstance(initial, MetaParameters):
        raise InvalidInput(
            "initial", initial, "MetaParameters", "load_meta_parameters makes them of a name or a file."
        )
    tasks = [tasks] if not isinstance(tasks, Sequence) else tasks
    training = MetaTraining(tasks, PES() if pes is None else pes, devices)
    loop = Loop(training, _first(hidden, initial, seed), seed)
    with _reporter("meta-training", progress) as report:
        loop.run(report)
    return loop.result()


def _first(hidden: int, initial: MetaParameters | None, seed: int) -> MetaParameters:
    if initial is not None:
        return dataclasses.replace(initial, name="")
    return initial_meta_parameters(jax.random.fold_in(jax.random.key(seed), 2**31), hidden)


def _reporter(
    name: str, progress: Callable[[MetaProgress], None] | bool
) -> contextlib.AbstractContextManager[Callable[[MetaProgress], None]]:
    if not isinstance(progress, bool):
        return contextlib.nullcontext(progress)
    return progress_bar(name) if progress else contextlib.nullcontext(lambda progress: None)


@contextlib.contextmanager
def progress_bar(name: str) -> Iterator[Callable[[MetaProgress], None]]:
    """A tqdm bar over outer steps, with the meta-loss and the time left."""
    shown = None

    def report(progress: MetaProgress) -> None:
        nonlocal shown
        if shown is None:
            shown = bars.enter_context(
                bar(total=progress.steps, initial=progress.step - 1, desc=name, unit="step", mininterval=0.2)
            )
        shown.set_postfix_str(f"meta-loss {progress.loss:.3f}", refresh=False)
        shown.update(progress.step - shown.n)

    with contextlib.ExitStack() as bars:
        yield report


class Loop:
    """Outer steps, one after another; its state goes to a file and comes back."""

    def __init__(self, training: MetaTraining, meta: MetaParameters, seed: int) -> None:
        self.training = training
        self.state = training.begin(meta, seed)
        self.told: list[OuterStep] = []
        self.wall_s, self.processor_s = {"compile": 0.0, "train": 0.0}, 0.0

    def run(
        self, report: Callable[[MetaProgress], None], after_step: Callable[[], None] = lambda: None
    ) -> None:
        """All outer steps that are left."""
        steps = self.training.pes.outer_steps
        stage = "compile"
        while len(self.told) < steps:
            began, processor = time.perf_counter(), time.process_time()
            state, told = self.training.step(self.state)
            told = jax.tree.map(np.asarray, told)
            self.wall_s[stage] += time.perf_counter() - began
            self.processor_s += time.process_time() - processor
            stage = "train"
            if not told.finite:
                losses = dict(zip(self.training.names, told.losses.tolist(), strict=True))
                raise MetaTrainingFailed(len(self.told) + 1, losses, self.result())
            self.state = state
            self.told.append(told)
            report(MetaProgress(len(self.told), steps, float(told.losses.mean())))
            after_step()

    def result(self) -> MetaTrained:
        """What there is now."""
        meta = jax.tree.map(np.asarray, self.state.meta)
        return MetaTrained(meta, self.history(), self.training.names, dict(self.wall_s))

    def history(self) -> dict[str, np.ndarray]:
        """Of the outer steps so far."""
        rates = self.training.pes.schedule()(jnp.arange(len(self.told)))
        return {
            "losses": np.array([told.losses for told in self.told]).reshape(
                len(self.told), len(self.training.names)
            ),
            "gradient_norm": np.array([told.gradient_norm for told in self.told]),
            "learning_rate": np.array(rates, np.float32),
        }

    def cost(self) -> dict[str, Any]:
        """What it took: wall and processor seconds, and steps of models under the optimizer."""
        pes, steps = self.training.pes, len(self.told)
        inner = steps * pes.truncation * pes.perturbations * len(self.training.names)
        return {
            "wall_s": round(sum(self.wall_s.values()), 1),
            "processor_s": round(self.processor_s, 1),
            "inner_steps": inner,
        }

    def snapshot(self) -> dict[str, np.ndarray]:
        """The state and what was told, as arrays."""
        leaves = [_plain_key(leaf) for leaf in jax.tree.leaves(self.state)]
        history = self.history()
        return {f"state_{index:04d}": np.asarray(leaf) for index, leaf in enumerate(leaves)} | {
            "losses": history["losses"],
            "gradient_norm": history["gradient_norm"],
            "processor_s": np.array(self.processor_s),
            **{f"wall_{stage}": np.array(seconds) for stage, seconds in self.wall_s.items()},
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from a snapshot.

        Raises:
            ValueError, KeyError: it is not one of these tasks.
        """
        leaves, structure = jax.tree.flatten(self.state)
        given = []
        for index, leaf in enumerate(leaves):
            array, like = arrays[f"state_{index:04d}"], _plain_key(leaf)
            if (array.shape, array.dtype) != (like.shape, like.dtype):
                raise ValueError(
                    f"state {index}: {array.shape} {array.dtype} instead of {like.shape} {like.dtype}"
                )
            given.append(
                jax.random.wrap_key_data(jnp.asarray(array)) if like is not leaf else jnp.asarray(array)
            )
        self.state = self.training.placed(MetaState(*jax.tree.unflatten(structure, given)))
        self.told = [
            OuterStep(losses, norm, True)
            for losses, norm in zip(arrays["losses"], arrays["gradient_norm"], strict=True)
        ]
        self.wall_s = {stage: float(arrays[f"wall_{stage}"]) for stage in self.wall_s}
        self.processor_s = float(arrays["processor_s"])


def _plain_key(leaf: Any) -> Any:
    """A leaf as a file can hold it."""
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


# -- specs and folders -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MetaSpec:
    """A validated spec of a meta-training.

    Attributes:
        name: names the folder and the meta-parameters.
        pes: how.
        task: tables, one for each task. ``kind = "problem"`` (the default): a ``problem`` and an ``optimizer``, ``seeds`` data
            sets. ``kind = "trace"``: what a spec of ``decentral run`` has, with one algorithm whose optimizer is learned; a
            step is one of ``steps`` equal shares of its events.
        hidden: units of the optimizer's hidden layers.
        initial: name or path of meta-parameters to start from, instead of random ones.
        seed: drives everything random: where it starts, perturbations, episodes, and data and clocks of tasks without a seed.
    """

    name: str
    pes: PES
    task: tuple[dict[str, Any], ...]
    hidden: int = 16
    initial: str | None = None
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain data for TOML; what is left open is left out."""
        pes = {field.name: getattr(self.pes, field.name) for field in dataclasses.fields(self.pes)}
        # the meta-parameters to start from have their own hidden units, and a spec says only one of the two
        size = {"hidden": self.hidden} if self.initial is None else {"initial": self.initial}
        plain = {"name": self.name, "seed": self.seed} | size
        return plain | {"pes": pes | {"episode_steps": list(self.pes.episode_steps)}, "task": list(self.task)}

    def tasks(self) -> list[Task]:
        """Data are loaded, traces are made.

        Raises:
            InvalidInput: what does not fit together.
        """
        built = []
        for number, table in enumerate(self.task):
            try:
                built.append(_task(table, number, self.seed))
            except InvalidInputs:
                raise
            except InvalidInput as error:
                key = f"task.{number}.{error.name.removeprefix('task.')}"
                raise InvalidInput(key, error.got, error.allowed, error.advice) from None
        return built

    def first(self) -> MetaParameters:
        """Where it starts."""
        initial = None if self.initial is None else load_meta_parameters(self.initial)
        return _first(self.hidden, initial, self.seed)

    def loop(self, devices: int | None = None) -> Loop:
        """The meta-training at its start."""
        return Loop(MetaTraining(self.tasks(), self.pes, devices), self.first(), self.seed)


def load_meta_spec(
    source: str | Path | Mapping[str, Any], *, overrides: Sequence[str] = (), smoke: bool = False
) -> MetaSpec:
    """Read, override and validate the spec of a meta-training.

    Args:
        source: a TOML file, the name of a packaged one, or the tables themselves.
        overrides: ``"dotted.key=TOML value"``, such as ``"pes.outer_steps=100"``.
        smoke: apply the spec's ``[smoke]`` table (before the overrides).

    Raises:
        InvalidInput: what is wrong with it.
    """
    where = "spec" if isinstance(source, Mapping) else str(source)
    tables = read_tables(source, overrides=overrides, smoke=smoke, room="meta_trainings")
    problems: list[str] = []
    fields = [field.name for field in dataclasses.fields(MetaSpec)]
    for key in tables:
        if key in ("topology", "problem", "algorithm", "stop"):
            problems.append(
                f"{key}: not of a meta-training, whose tasks have their own. decentral run runs such specs."
            )
        elif key not in fields:
            problems.append(f"{key}: unknown key. {suggest(key, [*fields, 'smoke'])}")
    if not isinstance(tables.get("name"), str) or not NAME.fullmatch(tables["name"]):
        problems.append(str(InvalidInput("name", tables.get("name"), NAME_WORDS, "It names the folder.")))
    values: dict[str, Any] = {
        key: tables[key] for key in ("name", "hidden", "initial", "seed") if key in tables
    }
    for key, low in (("hidden", 1), ("seed", 0)):
        if key in values:
            _attempt(lambda key=key, low=low: check_int(key, values[key], low), problems)
    if values.get("initial") is not None:
        if "hidden" in values:
            problems.append("hidden: the meta-parameters of 'initial' have theirs. Leave one of the two out.")
        _attempt(
            lambda: load_meta_parameters(values["initial"]), problems, rename={"meta_parameters": "initial"}
        )
    values["pes"] = _attempt(lambda: _pes(tables.get("pes", {})), problems)
    given = tables.get("task", [])
    values["task"] = tuple(
        [given] if isinstance(given, Mapping) else given if isinstance(given, list) else []
    )
    if not values["task"]:
        problems.append(
            'task: none; write [[task]], and in it problem = { kind = ... } and optimizer = { kind = "learned" }'
        )
    for number, table in enumerate(values["task"]):
        _attempt(lambda table=table, number=number: _check_task(table, number), problems)
    if problems:
        raise InvalidInputs(where, dict.fromkeys(problems))
    return MetaSpec(**values)


def _attempt(build: Callable[[], Any], problems: list[str], rename: Mapping[str, str] | None = None) -> Any:
    try:
        return build()
    except InvalidInputs as error:
        problems += error.problems
    except InvalidInput as error:
        name = (rename or {}).get(error.name, error.name)
        problems.append(str(InvalidInput(name, error.got, error.allowed, error.advice)))
    return None


def _pes(table: Any) -> PES:
    fields = [field.name for field in dataclasses.fields(PES)]
    if not isinstance(table, Mapping):
        raise InvalidInput("pes", table, "a table")
    for key in table:
        if key not in fields:
            raise InvalidInput(f"pes.{key}", table[key], "a key of the table", suggest(key, fields))
    try:
        return PES(**table)
    except InvalidInput as error:
        raise InvalidInput(f"pes.{error.name}", error.got, error.allowed, error.advice) from None


_TASK_KEYS = {
    "problem": ("kind", "name", "problem", "optimizer", "seed", "seeds"),
    "trace": (
        *("kind", "name", "problem", "topology", "protocol", "cluster"),
        *("algorithm", "stop", "steps", "seed", "seeds"),
    ),
}


def _check_task(table: Any, number: int) -> None:
    """Everything about a task's table that is cheap to find out.

    Raises:
        InvalidInput: what is wrong.
    """
    key = f"task.{number}"
    if not isinstance(table, Mapping):
        raise InvalidInput(key, table, "a table")
    kind = table.get("kind", "problem")
    if kind not in _TASK_KEYS:
        raise InvalidInput(f"{key}.kind", kind, "one of the names below", suggest(str(kind), _TASK_KEYS))
    for given in table:
        if given not in _TASK_KEYS[kind]:
            advice = suggest(given, _TASK_KEYS[kind])
            raise InvalidInput(f"{key}.{given}", table[given], f"a key of a task of kind {kind!r}", advice)
    if kind == "trace":
        several = _trace_spec(table, key, 0).algorithms()
        if len(several) > 1:
            advice = "Each task has one: write another [[task]] for another."
            raise InvalidInput(f"{key}.algorithm", list(several), "one algorithm", advice)
        check_int(f"{key}.steps", table.get("steps"))
        return
    read_problem(f"{key}.problem", table.get("problem"))
    _optimizer(table, key)
    check_int(f"{key}.seed", table.get("seed", 0), 0)
    check_int(f"{key}.seeds", table.get("seeds", 1))


def _optimizer(table: Mapping[str, Any], key: str) -> Optimizer:
    given = table.get("optimizer")
    if not isinstance(given, Mapping) or given.get("kind") != "learned":
        raise InvalidInput(f"{key}.optimizer", given, 'a table { kind = "learned", ... }')
    return as_optimizer(_with_placeholder(given, f"{key}.optimizer"))


def _with_placeholder(table: Any, key: str) -> Any:
    """Tables of learned optimizers, wherever they are, with meta-parameters that stand for those to be found."""
    if isinstance(table, list | tuple):
        return [_with_placeholder(item, key) for item in table]
    if not isinstance(table, Mapping):
        return table
    inner = {name: _with_placeholder(item, f"{key}.{name}") for name, item in table.items()}
    if inner.get("kind") != "learned":
        return inner
    if "meta_parameters" in inner:
        advice = "Leave it out. Where they start: initial = ..., beside [pes]."
        raise InvalidInput(
            f"{key}.meta_parameters", inner["meta_parameters"], "those that are to be found", advice
        )
    return inner | {"meta_parameters": HAND_MADE}


def _trace_spec(table: Mapping[str, Any], key: str, seed: int) -> Spec:
    """What a run of these tables would be."""
    tables = {name: item for name, item in table.items() if name not in ("kind", "name", "steps")}
    return validate({"seed": seed, **_with_placeholder(tables, key), "name": "task"}, key)


def _task(table: Mapping[str, Any], number: int, seed: int) -> Task:
    """What a checked table says."""
    key = f"task.{number}"
    if table.get("kind", "problem") == "trace":
        spec = _trace_spec(table, key, seed)
        name, algorithm = next(iter(spec.algorithms().items()))
        graph: Any = spec.topology_of(spec.seed)
        return trace_task(
            spec.problem_of(spec.seed), graph, algorithm, spec.protocols()[name],
            cluster=spec.cluster_object(), stop=spec.stop_object(), steps=table["steps"], seeds=spec.seed_list,
            name=table.get("name"),
        )  # fmt: skip
    build, first = read_problem(f"{key}.problem", table["problem"]), table.get("seed", seed)
    problems = [build(1, first + k) for k in range(table.get("seeds", 1))]
    return ProblemTask(problems[0], _optimizer(table, key), stack_shards(problems), table.get("name", ""))


@dataclasses.dataclass(frozen=True, eq=False)
class MetaRun:
    """A finished meta-training.

    Attributes:
        folder: where everything lies: spec.toml, manifest.json, history.npz, meta_parameters.npz, meta_loss.png.
        spec: what ran.
        trained: what came out.
    """

    folder: Path
    spec: MetaSpec
    trained: MetaTrained


def run_meta_training(
    source: str | Path | MetaSpec,
    *,
    overrides: Sequence[str] = (),
    smoke: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    devices: int | None = None,
    progress: bool = False,
    command_line: list[str] | None = None,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> MetaRun:
    """Meta-train what a spec says, into a folder.

    Args:
        source: a TOML file, the name of a packaged one, or a validated spec.
        overrides: as of :func:`load_meta_spec`.
        smoke: as there.
        out: the folder; ``runs/NAME-001`` and counting by default.
        overwrite: replace a folder that exists.
        devices: as of :func:`meta_train`.
        progress: show a progress bar.
        command_line: kept in the manifest.
        checkpoint_every_s: wall seconds between checkpoints.

    Raises:
        InvalidInput: something is wrong with the spec or the folder; nothing was written.
        MetaTrainingFailed: a meta-gradient is NaN or infinite; the folder holds the last good meta-parameters.
    """
    spec = (
        source if isinstance(source, MetaSpec) else load_meta_spec(source, overrides=overrides, smoke=smoke)
    )
    folders.require_free(out, overwrite)
    with interruptible() as check_interrupt:
        loop = spec.loop(devices)
        text = tomli_w.dumps(spec.as_dict()).encode()
        manifest = {
            "status": "running",
            "kind": folders.META_TRAINING,
            "name": spec.name,
            "start": folders.now(),
            "end": None,
            **folders.provenance(command_line),
            "devices": loop.training.devices,
            "spec_hash": hash_of(text),
        }
        path = folders.create(out, spec.name, manifest, overwrite=overwrite)
        with folders.exclusive(path):
            folders.write_bytes(path / "spec.toml", text)
            return _execute(path, spec, manifest, loop, progress, check_interrupt, checkpoint_every_s)


def resume_meta_training(
    folder: str | Path, *, progress: bool = False, checkpoint_every_s: float = CHECKPOINT_EVERY_S
) -> MetaRun:
    """Take up a meta-training where its last checkpoint left it; it ends as one never interrupted, bit for bit.

    Raises:
        InvalidInput: already finished; another spec or other devices than at the start; a damaged checkpoint.
        MetaTrainingFailed: as for :func:`run_meta_training`.
    """
    path = folders.require_run(folder)
    manifest = folders.read_json(path / "manifest.json", "manifest")
    if manifest.get("kind") != folders.META_TRAINING:
        raise InvalidInput(
            "DIR", str(path), "the folder of a meta-training", "decentral resume takes up others."
        )
    if manifest.get("status") == "finished":
        raise InvalidInput("DIR", str(path), "a meta-training that is not finished", "This one is.")
    with interruptible() as check_interrupt, folders.exclusive(path):
        given = (path / "spec.toml").read_bytes() if (path / "spec.toml").is_file() else b""
        if hash_of(given) != manifest.get("spec_hash"):
            advice = "Put it back, or start a new one."
            raise InvalidInput("spec.toml", "another text", "the spec this meta-training began with", advice)
        spec = load_meta_spec(path / "spec.toml")
        loop = spec.loop(manifest["devices"])
        checkpoint = path / "checkpoint" / "state.npz"
        if checkpoint.exists():
            try:
                loop.restore(folders.read_arrays(checkpoint, "checkpoint"))
            except (KeyError, ValueError, TypeError) as error:
                advice = f"({error}) Delete it, and decentral resume starts again from the beginning."
                raise InvalidInput(
                    "checkpoint", str(checkpoint), "a checkpoint of this meta-training", advice
                ) from None
        here = folders.provenance(None)
        again = {"start": folders.now(), "versions": here["versions"], "commit": here["commit"]}
        manifest |= {"status": "running", "resumed": [*manifest.get("resumed", []), again], "error": None}
        folders.write_json(path / "manifest.json", manifest)
        return _execute(path, spec, manifest, loop, progress, check_interrupt, checkpoint_every_s)


def _execute(
    path: Path,
    spec: MetaSpec,
    manifest: dict[str, Any],
    loop: Loop,
    progress: bool,
    check_interrupt: Callable[[], None],
    checkpoint_every_s: float,
) -> MetaRun:
    due_s = time.perf_counter() + checkpoint_every_s

    def keep() -> None:
        """The meta-parameters so far, and what it takes to go on."""
        folders.write_arrays(path / "checkpoint" / "state.npz", loop.snapshot())
        folders.write_arrays(path / "history.npz", loop.history())
        save_meta_parameters(
            path / "meta_parameters.npz", loop.result().meta_parameters, _origin(spec, manifest, loop)
        )

    def after_step() -> None:
        nonlocal due_s
        if time.perf_counter() >= due_s:
            keep()
            due_s = time.perf_counter() + checkpoint_every_s
        check_interrupt()

    def close(status: str, error: str | None = None) -> None:
        manifest.update(status=status, end=folders.now(), wall_s=loop.wall_s, cost=loop.cost(), error=error)
        folders.write_json(path / "manifest.json", manifest)

    try:
        with _reporter(spec.name, progress) as report:
            loop.run(report, after_step)
        keep()
        trained = loop.result()
        plot_meta_loss(trained.history["losses"], trained.tasks, path / "meta_loss.png", title=spec.name)
    except BaseException as error:
        with contextlib.suppress(OSError):
            keep()
        with contextlib.suppress(OSError):
            stopped = isinstance(error, KeyboardInterrupt)
            close("interrupted" if stopped else "failed", None if stopped else str(error))
        raise
    close("finished")
    shutil.rmtree(path / "checkpoint", ignore_errors=True)
    return MetaRun(path, spec, trained)


def _origin(spec: MetaSpec, manifest: Mapping[str, Any], loop: Loop) -> dict[str, Any]:
    """What the file of the meta-parameters says of where they come from."""
    kept = ("name", "start", "commit", "versions", "device", "devices")
    return {key: manifest.get(key) for key in kept} | {
        "by": "decentral meta-train",
        "seed": spec.seed,
        "spec": spec.as_dict(),
        "outer_steps": len(loop.told),
        "meta_loss": None if not loop.told else float(np.mean([told.losses for told in loop.told[-20:]])),
        "cost": loop.cost(),
    }
