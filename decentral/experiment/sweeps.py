"""Sweeps: many runs of one spec with other settings, computed where and in whatever order, kept in one folder.

A run is named by the hash of its spec. So asking again runs what is missing, and asking for more adds to what is there. Small
runs of one shape form groups, which follow from the whole list and are written down; a group is computed as one run
(:mod:`decentral.experiment.merging`) by one task, and leaves a run folder for each of its runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from decentral.errors import DecentralError, InvalidInput, InvalidInputs, RunFailed
from decentral.experiment import folder as folders
from decentral.experiment import sweep_folder
from decentral.experiment.axes import Point, Range, as_axes, as_points, points_of
from decentral.experiment.bars import bar
from decentral.experiment.executors import Executor, WorkerDied, executor_from
from decentral.experiment.merging import run_alone, run_merged, write_failure
from decentral.experiment.overrides import changed, read_tables
from decentral.experiment.prepared import Shared, Size, check, source_hash
from decentral.experiment.run import keeping_warnings
from decentral.experiment.spec import Spec, validate
from decentral.experiment.sweep_folder import FILE, Sweep

ID_DIGITS = 12
TRIES = 3
"""Times a run is given to a process; if all of them die, it has failed."""
POLL_S = 0.05
TOGETHER = 16
"""Runs of a group at most: what is lost when its process dies, and what cannot be shared out."""
GROUP_EVENTS = 4e6
"""Expected events of a group at most. Beyond, what merging saves (one compilation, fuller rows) is little of the whole."""
GROUP_BYTES = 2**29
"""Expected memory of a group at most."""
SHOWN = 10
"""Problems told at most, and warnings."""


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep will do, before it does anything.

    Attributes:
        folder: where it will lie.
        record: the contents of its ``sweep.json``.
        before: what that file holds now; None where there is none.
        asked: ids of the runs that were asked for, in order; the record may have more.
        folded: points that were the same run as another.
        specs: id -> spec, of what was asked for.
        sizes: id -> algorithm -> what it takes, of the runs that are missing.
        status: id -> ``"finished"``, ``"failed"`` or ``"missing"``.
        retry: what failed is run again.
        warned: what has been warned of already.
    """

    folder: Path
    record: dict[str, Any] = field(repr=False)
    before: dict[str, Any] | None = field(repr=False)
    asked: tuple[str, ...]
    folded: int
    specs: dict[str, Spec] = field(repr=False)
    sizes: dict[str, dict[str, Size]] = field(repr=False)
    status: dict[str, str]
    retry: bool = False
    warned: tuple[str, ...] = ()

    @property
    def todo(self) -> list[str]:
        """The runs that were asked for and are to be run."""
        again = ("missing", "failed") if self.retry else ("missing",)
        return [key for key in self.asked if self.status[key] in again]

    @property
    def groups(self) -> dict[str, int]:
        """The group that each run is computed with."""
        return {run["id"]: run["group"] for run in self.record["runs"]}


def sweep(
    source: str | Path | Mapping[str, Any],
    axes: Mapping[str, Any] | None = None,
    *,
    points: Sequence[Mapping[str, Any]] | None = None,
    draws: int | None = None,
    seeds: int | None = None,
    smoke: bool = False,
    out: str | Path | None = None,
    executor: str = "inline",
    merge: bool = True,
    retry: bool = False,
    progress: bool = False,
    command_line: list[str] | None = None,
) -> Sweep:
    """Run a spec with many settings; what the folder has already is not run again.

    A run that fails is a record in the sweep, and the others go on. The result of every run depends on the sweep's list
    alone, not on the executor, nor on what was cut off and taken up: bit for bit.

    Args:
        source: a TOML file, the name of a packaged experiment, or the tables themselves.
        axes: dotted key -> a list of values, one value, or a range as text (``"1e-3..1e-1:log"``, with ``draws``). Several
            lists make a grid of all combinations.
        points: settings instead of a grid, each dotted key -> value; ``axes`` then come on top of every one.
        draws: draw so many points at random from the lists and ranges of ``axes``, by the spec's seed.
        seeds: replaces the number of seeds of each run.
        smoke: apply the spec's ``[smoke]`` table first.
        out: the sweep's folder; ``runs/NAME-sweep`` by default.
        executor: where: ``"inline"``, ``"spawn:4"``, ``"dask:4"``, ... as :func:`decentral.experiment.executors.executor_from`
            takes it.
        merge: compute small runs of one shape together. Merged or not, results agree to rounding.
        retry: run again what failed before.
        progress: show a bar.
        command_line: kept in the manifests.

    Returns:
        The sweep; also its failed runs.

    Raises:
        InvalidInput: something is wrong with a point, or the folder holds something else; nothing was run or written.
        RunFailed: interrupted; what is done stays, and asking again goes on.

    Example:
        >>> found = decentral.sweep("quickstart", {"topology.n": [8, 16]}, seeds=2, smoke=True, executor="spawn:2")
        >>> found.to_dataframe()[["topology.n", "algorithm", "loss", "loss_half_width"]]
    """
    plan = plan_sweep(
        source, axes, points=points, draws=draws, seeds=seeds, smoke=smoke, out=out, merge=merge,
        command_line=command_line, retry=retry,
    )  # fmt: skip
    return run_plan(plan, executor=executor, progress=progress)


# -- planning ----------------------------------------------------------------------------------------------------------


def plan_sweep(
    source: str | Path | Mapping[str, Any],
    axes: Mapping[str, Any] | None = None,
    *,
    points: Sequence[Mapping[str, Any]] | None = None,
    draws: int | None = None,
    seeds: int | None = None,
    smoke: bool = False,
    out: str | Path | None = None,
    merge: bool = True,
    retry: bool = False,
    command_line: list[str] | None = None,
) -> SweepPlan:
    """What :func:`sweep` would do, with the same arguments; nothing is written.

    Raises:
        InvalidInput: as there.
    """
    tables = read_tables(source, smoke=smoke)
    if seeds is not None:
        tables["seeds"] = seeds
    axes = as_axes(axes or {})
    if points is not None:
        points = as_points(points, "points", points, "a list of settings, each dotted key -> value")
    seed = tables.get("seed", 0)
    chosen = points_of(
        axes, listed=points, draws=draws, seed=seed if isinstance(seed, int) and seed >= 0 else 0
    )
    specs, given = _specs(tables, chosen, "spec" if isinstance(source, Mapping) else str(source))
    folder = Path(out) if out is not None else Path("runs") / f"{next(iter(specs.values())).name}-sweep"
    search = "list" if points is not None else "grid" if draws is None else "random"
    before = _record_of(folder, tables, merge)
    x64 = _x64(specs.values(), before)
    known = {run["id"]: run["group"] for run in before["runs"]} if before else {}
    status = {key: sweep_folder.status_of(folder / "runs" / key)[0] for key in specs}
    # Groups follow from the list, whatever is done: their sizes are needed of all that is new.
    sized = {
        key: spec
        for key, spec in specs.items()
        if key not in known or status[key] == "missing" or (retry and status[key] == "failed")
    }
    with precision(x64):
        sizes, warned = _checked(sized, given, str(source) if not isinstance(source, Mapping) else "spec")
    _warn(warned)
    new = {key: spec for key, spec in specs.items() if key not in known}
    groups = known | _groups(new, sizes, merge, first=max(known.values(), default=-1) + 1)
    runs = [*(before["runs"] if before else [])]
    runs += [{"id": key, "set": given[key], "group": groups[key]} for key in new]
    values: dict[str, list] = {}
    for run in runs:
        for key, value in run["set"].items():
            if value not in values.setdefault(key, []):
                values[key].append(value)
    record = {
        "name": next(iter(specs.values())).name,
        "source": tables,
        "axes": values,
        "search": search,
        "ranges": {key: str(value) for key, value in axes.items() if isinstance(value, Range)},
        "seeds": tables.get("seeds", 1),
        "merge": merge,
        "x64": x64,
        "provenance": before["provenance"] if before else folders.provenance(command_line, device=False),
        "runs": runs,
    }
    return SweepPlan(
        folder,
        record,
        before,
        tuple(specs),
        len(chosen) - len(specs),
        specs,
        sizes,
        status,
        retry,
        tuple(warned),
    )


def _specs(
    tables: Mapping[str, Any], chosen: Sequence[Point], where: str
) -> tuple[dict[str, Spec], dict[str, Point]]:
    """The specs and the points by their ids, each once.

    Raises:
        InvalidInputs: what is wrong with any of them.
    """
    specs, given, wrong = dict[str, Spec](), dict[str, Point](), dict[str, list[Point]]()
    for point in chosen:
        try:
            spec = validate(changed(tables, point))
            devices = spec.devices_object()
            if devices is not None and devices.processes > 1:
                advice = "A sweep's processes have whole runs. Start such a run by itself: decentral run."
                raise InvalidInput("devices.processes", devices.processes, "1 in a sweep", advice)
        except InvalidInput as error:
            for words in getattr(error, "problems", (str(error),)):
                wrong.setdefault(words, []).append(point)
            continue
        key = source_hash(spec)[:ID_DIGITS]
        specs.setdefault(key, spec)
        given.setdefault(key, dict(point))
    _stop_if(wrong, where, len(chosen))
    return specs, given


def _stop_if(wrong: Mapping[str, list[Point]], where: str, total: int) -> None:
    if not wrong:
        return
    problems = []
    for words, points in list(wrong.items())[:SHOWN]:
        at = _words(points[0])
        more = f" and at {len(points) - 1} more" if len(points) > 1 else ""
        everywhere = total == 1 or len(points) == total
        problems.append(words if everywhere or not at else f"{words} (At {at}{more}.)")
    if len(wrong) > SHOWN:
        problems.append(f"and {len(wrong) - SHOWN} more problems.")
    raise InvalidInputs(where, problems)


def _words(point: Point) -> str:
    return ", ".join(f"{key} = {value}" for key, value in point.items())


def _warn(found: Mapping[str, Mapping[str, Point]], stacklevel: int = 4) -> None:
    """Every warning once.

    Args:
        found: the warning -> the runs it is of: id -> what the run was asked for.
        stacklevel: of whoever asked for the sweep.
    """
    for words, runs in list(found.items())[:SHOWN]:
        key, point = next(iter(runs.items()))
        name = f"run {key} ({_words(point)})" if point else f"run {key}"
        more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
        warnings.warn(f"{name}{more}: {words}", stacklevel=stacklevel)
    if len(found) > SHOWN:
        more = f"{len(found) - SHOWN} more warnings are in the runs' manifest.json."
        warnings.warn(more, stacklevel=stacklevel)


def _record_of(folder: Path, tables: Mapping[str, Any], merge: bool) -> dict[str, Any] | None:
    """What the folder holds already, if it is of the same spec.

    Raises:
        InvalidInput: it holds something else.
    """
    if not sweep_folder.is_sweep(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InvalidInput(
                "--out", str(folder), "a folder that is new or empty, or this sweep's", "Choose another one."
            )
        return None
    record = sweep_folder.read(folder)
    then, now = (json.loads(json.dumps(one, default=str)) for one in (record.get("source"), tables))
    if then != now:
        then = then or {}
        other = [str(key) for key in dict.fromkeys([*then, *now]) if then.get(key) != now.get(key)]
        raise InvalidInput(
            "--out", str(folder), "the folder of a sweep of the same spec",
            f"This one's spec differs in: {', '.join(other)}. Choose another folder, or change keys by --set.",
        )  # fmt: skip
    if record.get("merge") != merge:
        raise InvalidInput(
            "--no-merge", "merged runs" if merge else "runs by themselves",
            f"the same as this sweep began with, in {folder}", "Or choose another folder: the last digits differ.",
        )  # fmt: skip
    return record


def _x64(specs, before: Mapping[str, Any] | None) -> bool:
    """Whether all processes compute with 64 bits where a spec says so: if one does, and the environment does not say no.

    Raises:
        InvalidInput: the sweep began otherwise.
    """
    if "JAX_ENABLE_X64" in os.environ:
        x64 = bool(jax.config.read("jax_enable_x64"))
    else:
        x64 = any(spec.dtype == "float64" for spec in specs) or bool(before and before["x64"])
    if before is not None and before["x64"] != x64:
        advice = "It changes the last digits of all runs. Choose another folder, or set JAX_ENABLE_X64 as at the first start."
        raise InvalidInput("jax_enable_x64", x64, f"that of the sweep's first start, {before['x64']}", advice)
    return x64


@contextlib.contextmanager
def precision(x64: bool) -> Iterator[None]:
    """JAX with or without 64 bits, and afterwards as it was."""
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", x64)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def _checked(
    specs: Mapping[str, Spec], given: Mapping[str, Point], where: str
) -> tuple[dict[str, dict[str, Size]], dict[str, dict[str, Point]]]:
    """Every spec's graph and problem built: what it takes, and what it warns of as :func:`_warn` takes it.

    Raises:
        InvalidInputs: what is wrong with any of them.
    """
    sizes, wrong, shared = dict[str, dict[str, Size]](), dict[str, list[Point]](), Shared()
    warned: dict[str, dict[str, Point]] = {}
    for key, spec in specs.items():
        told: list[str] = []
        try:
            with keeping_warnings(told, aloud=False):
                sizes[key] = check(spec, shared)
        except InvalidInput as error:
            for words in getattr(error, "problems", (str(error),)):
                wrong.setdefault(words, []).append(given[key])
        for words in told:
            warned.setdefault(words, {})[key] = given[key]
    _stop_if(wrong, where, len(specs))
    return sizes, warned


def shape_of(spec: Spec) -> str | None:
    """Runs of one shape may be computed together; None: this one by itself."""
    tables = spec.as_dict()
    if spec.tune is not None or spec.record.events is not None or "devices" in tables:
        return None
    algorithms = [
        (name, type(algorithm).__name__, type(protocol).__name__, str(jax.tree.structure(algorithm)))
        for (name, algorithm), protocol in zip(
            spec.algorithms().items(), spec.protocols().values(), strict=True
        )
    ]
    same = [spec.topology.n, tables["problem"], tables["stop"], tables["record"], spec.cluster is None]
    return json.dumps([same, algorithms], sort_keys=True)


def _groups(
    specs: Mapping[str, Spec], sizes: Mapping[str, Mapping[str, Size]], merge: bool, first: int
) -> dict[str, int]:
    """The group of each run: in order, runs of one shape go together until the group is full."""
    groups: dict[str, int] = {}
    last: dict[str, tuple[int, int, float, float]] = {}
    for key, spec in specs.items():
        events = sum(size.events for size in sizes[key].values())
        needed = max(size.memory_bytes for size in sizes[key].values())
        shape = shape_of(spec) if merge else None
        if shape in last:
            number, count, some, taken = last[shape]
            if count < TOGETHER and some + events <= GROUP_EVENTS and taken + needed <= GROUP_BYTES:
                groups[key], last[shape] = number, (number, count + 1, some + events, taken + needed)
                continue
        groups[key], first = first, first + 1
        if shape is not None:
            last[shape] = (groups[key], 1, events, needed)
    return groups


# -- running -----------------------------------------------------------------------------------------------------------


def run_plan(plan: SweepPlan, *, executor: str = "inline", progress: bool = False) -> Sweep:
    """Run what is missing of what was asked for.

    Args:
        plan: of :func:`plan_sweep`.
        executor: as for :func:`sweep`.
        progress: as there.

    Raises:
        InvalidInput: another process is at work in the folder, or no such executor.
        RunFailed: interrupted.
    """
    folder = plan.folder
    # First of all, for there may be no such executor.
    here = contextlib.nullcontext()
    place = executor_from(executor, x64=plan.record["x64"], folder=folder / "jobs") if plan.todo else here
    with place as workers:
        try:
            (folder / "runs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput("--out", str(folder), "a folder that can be written", f"{error}.") from None
        with folders.exclusive(folder, what="a sweep"):
            _write_record(plan)
            left = _missing(folder, list(plan.groups))
            bar = _Bar(folder, plan) if progress else None
            try:
                if workers is not None:
                    _run_groups(plan, workers, bar)
            except KeyboardInterrupt:
                done = len(plan.asked) - len(_missing(folder, plan.asked))
                words = f"Interrupted: {done} of {len(plan.asked)} runs are done, in {folder}."
                with contextlib.suppress(DecentralError):  # it is the interruption that matters
                    _warn_of(folder, left, plan.warned)
                raise RunFailed(f"{words} To go on: the same command again.") from None
            finally:
                if bar:
                    bar.close()
            _warn_of(folder, left, plan.warned)
            shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    return Sweep.load(folder)


def _warn_of(folder: Path, keys: Sequence[str], before: Sequence[str]) -> None:
    """What runs warned of where they were computed, but for what the plan warned of already."""
    found: dict[str, dict[str, Point]] = {}
    for run in Sweep.load(folder).runs:
        for words in run.warnings if run.id in keys else ():
            if words not in before:
                found.setdefault(words, {})[run.id] = run.set
    _warn(found, stacklevel=5)


def _write_record(plan: SweepPlan) -> None:
    """Bring ``sweep.json`` up to date, and remove the records of failures that are tried again.

    Raises:
        InvalidInput: somebody else changed it meanwhile.
    """
    folder = plan.folder
    now = sweep_folder.read(folder) if sweep_folder.is_sweep(folder) else None
    if now != plan.before:
        allowed = "a sweep that nobody else changes"
        raise InvalidInput("--out", str(folder), allowed, "Somebody just did. Ask again.")
    if now != plan.record:
        folders.write_json(folder / FILE, plan.record)
    for key in plan.todo:
        if plan.status[key] == "failed":
            shutil.rmtree(folder / "runs" / key)


def _run_groups(plan: SweepPlan, executor: Executor, bar: _Bar | None) -> None:
    groups, members = plan.groups, dict[int, list[str]]()
    for key, group in groups.items():
        members.setdefault(group, []).append(key)
    place, tries, waiting = str(plan.folder.absolute()), Counter[int](), dict[Any, int]()

    def submit(group: int) -> None:
        tries[group] += 1
        waiting[executor.submit(run_group, place, group)] = group

    def gather() -> None:
        for future in [future for future in waiting if future.done()]:
            group = waiting.pop(future)
            missing, error = _missing(plan.folder, members[group]), future.exception()
            if bar:
                bar.show()
            died = error if isinstance(error, WorkerDied) else None
            if died:
                tries[group] += died.tries - 1  # Dask has had it done again by itself
            if missing and (died or error is None) and tries[group] < TRIES:
                submit(group)
                continue
            why = f"the process died {tries[group]} times. {error}" if died else str(error)
            for key in missing:
                write_failure(
                    plan.folder / "runs" / key, _spec(plan.record, key), {"stage": "run", "message": why},
                    plan.record["provenance"]["command_line"],
                )  # fmt: skip

    for group in dict.fromkeys(groups[key] for key in plan.todo):
        submit(group)
        gather()
    while waiting:
        time.sleep(POLL_S)
        gather()


def _missing(folder: Path, keys: Sequence[str]) -> list[str]:
    return [key for key in keys if not (folder / "runs" / key / "manifest.json").is_file()]


def _spec(record: Mapping[str, Any], key: str) -> Spec:
    """The spec of a run.

    Raises:
        RunFailed: it is another here.
    """
    point = next(run["set"] for run in record["runs"] if run["id"] == key)
    spec = validate(changed(record["source"], point))
    if (here := source_hash(spec)[:ID_DIGITS]) != key:
        raise RunFailed(
            f"The run {key} is {here} in this installation, which reads its spec in another way than the one that began the "
            "sweep. Go back to its versions, or begin another sweep."
        )
    return spec


def run_group(sweep_dir: str, group: int) -> None:
    """Run what is missing of one group of a sweep: the task that executors carry out. What it leaves are run folders.

    Args:
        sweep_dir: the sweep's folder.
        group: its number in ``sweep.json``.

    Raises:
        InvalidInput: there is no sweep.
        RunFailed: this installation is another than the one that began the sweep.
    """
    folder = Path(sweep_dir)
    # A scheduler that takes a slow worker for dead has its task done twice.
    with folders.exclusive(folder, what="a group", lock=f"group_{group}", wait=True):
        record = sweep_folder.read(folder)
        keys = [run["id"] for run in record["runs"] if run["group"] == group]
        missing = _missing(folder, keys)
        if not missing:
            return
        specs = {key: _spec(record, key) for key in keys}
        command_line = record["provenance"]["command_line"]
        if len(keys) == 1:
            run_alone(specs[keys[0]], folder / "runs" / keys[0], command_line)
        else:
            run_merged(specs, folder / "runs", missing, command_line)


class _Bar:
    """One line at the terminal: how many runs are done, failed and left."""

    def __init__(self, folder: Path, plan: SweepPlan) -> None:
        self.folder, self.left, self.failed = folder, set(plan.asked), 0
        layout = "{desc} {n}/{total} runs |{bar}| {postfix} [{elapsed}<{remaining}]"
        self.bar = bar(total=len(plan.asked), desc=plan.record["name"], bar_format=layout, file=sys.stderr)
        self.show()

    def show(self) -> None:
        """Look at what is done."""
        done = self.left - set(_missing(self.folder, sorted(self.left)))
        self.failed += sum(sweep_folder.status_of(self.folder / "runs" / key)[0] == "failed" for key in done)
        self.left -= done
        self.bar.set_postfix_str(f"{self.failed} failed, {len(self.left)} left", refresh=False)
        self.bar.update(len(done))
        self.bar.refresh()

    def close(self) -> None:
        self.bar.close()
