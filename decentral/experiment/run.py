"""Run a spec into a run folder, and take up a run that was cut off."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from decentral.analysis.gantt import plot_gantt
from decentral.analysis.plots import plot_overview
from decentral.analysis.statistics import AXES, better_direction, time_to_target, time_to_target_summary
from decentral.analysis.timeline import summary_of
from decentral.engine.stream import Stream
from decentral.engine.trace import Trace
from decentral.errors import InvalidInput, RunFailed
from decentral.experiment import folder as folders
from decentral.experiment.devices import agreed, by_first, is_first
from decentral.experiment.entry import realised_topology
from decentral.experiment.prepared import (
    Prepared,
    hash_of,
    prepare_run,
    resolved_arguments,
    source_hash,
    spec_hash,
)
from decentral.experiment.result import Result
from decentral.experiment.simulation import Diverged, Simulation
from decentral.experiment.spec import Spec, load_spec, validate
from decentral.experiment.tune import METRICS, plot_tuning, trial_runs, trials_of, tune_algorithm
from decentral.protocol import Network
from decentral.topology import Topology

CHECKPOINT_EVERY_S = 10.0
RATES_WARNING = 0.2
"""Relative difference of a constant as it happened from the one assumed, from which on the user hears of it."""
ENOUGH = 100
"""Exchanges per edge from which on that is no chance."""


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        folder: where everything lies.
        spec: what ran, resolved.
        results: algorithm -> result.
        summary: the contents of ``summary.json``.
    """

    folder: Path
    spec: Spec
    results: dict[str, Result]
    summary: dict[str, Any]


def run(
    source: str | Path | Spec,
    *,
    overrides: Sequence[str] = (),
    seeds: int | None = None,
    smoke: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
    command_line: list[str] | None = None,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> Run:
    """Run every algorithm of a spec on common random tapes and write a run folder.

    Args:
        source: a TOML file, the name of a packaged experiment, or a validated spec.
        overrides: as in :func:`decentral.experiment.spec.load_spec`.
        seeds: as there.
        smoke: as there.
        out: the folder; ``runs/NAME-001`` and counting by default.
        overwrite: replace a run folder that exists.
        progress: show progress bars.
        command_line: kept in the manifest.
        checkpoint_every_s: wall seconds between checkpoints.

    Raises:
        InvalidInput: something is wrong with the spec or the folder; nothing was written, unless it only comes up with a later
            algorithm or after the tuning: the manifest then says that it failed.
        RunFailed: the run could not finish; what was recorded before is in the folder.
    """
    spec = (
        source
        if isinstance(source, Spec)
        else load_spec(source, overrides=overrides, seeds=seeds, smoke=smoke)
    )
    connect(spec)
    by_first(lambda: folders.require_free(out, overwrite))
    told: list[str] = []
    with interruptible() as check_interrupt, keeping_warnings(told):
        manifest = {
            "status": "running",
            "name": spec.name,
            "start": folders.now(),
            "end": None,
            **folders.provenance(command_line),
            "source_hash": source_hash(spec),
            "warnings": told,
        }
        begin = (
            _ready(spec, manifest)
            if spec.tune is None
            else _tuning(spec, {}, manifest, progress, check_interrupt)
        )
        check_interrupt()
        path = Path(by_first(lambda: folders.create(out, spec.name, manifest, overwrite=overwrite)))
        with _alone_in(path):
            checkpoints = _Checkpoints(path / "checkpoint", checkpoint_every_s, check_interrupt)
            return _execute(path, manifest, begin, checkpoints, progress)


def resume(
    folder: str | Path,
    *,
    progress: bool = False,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
) -> Run:
    """Take up a run where its last checkpoint left it; the result is that of a run never interrupted, bit for bit.

    A run that diverged ends again at the same event. Algorithms that are tuned already are not tuned again.

    Raises:
        InvalidInput: not a run folder, already finished, a damaged checkpoint, or something that differs from the first
            start and would change the numbers. Nothing was written.
        RunFailed: as for :func:`run`.
    """
    path = folders.require_run(folder)
    manifest = folders.read_json(path / "manifest.json", "manifest")
    if manifest.get("status") == "finished":
        raise InvalidInput(
            "DIR", str(path), "a run that is not finished", "This one is; decentral compare shows it."
        )
    chosen = (path / "spec.toml").is_file()
    if not chosen and not (path / "tuning.json").is_file():
        raise InvalidInput(
            "DIR", str(path), "a run folder with spec.toml",
            "It was cut off before it began. Start it again: decentral run SPEC --out DIR --overwrite.",
        )  # fmt: skip
    spec = load_spec(path / "spec.toml") if chosen else None
    if spec is not None:
        connect(spec)
    told = manifest.setdefault("warnings", [])
    with interruptible() as check_interrupt, _alone_in(path), keeping_warnings(told):
        if chosen and hash_of((path / "spec.toml").read_bytes()) != manifest.get("spec_hash"):
            raise InvalidInput(
                "spec.toml",
                "another text",
                "the spec this run began with",
                "Put it back, or start a new run.",
            )
        here, then = folders.provenance(None), manifest.get("flags", {}).get("x64")
        before = {**manifest}
        if spec is not None:
            begin = _ready(spec, manifest)
        else:
            record = folders.read_json(path / "tuning.json", "tuning")
            begin = _tuning(
                validate(record.get("spec", {}), str(path / "tuning.json")),
                record.get("algorithms", {}),
                manifest,
                progress,
                check_interrupt,
            )
        if here["flags"]["x64"] != then:
            advice = f"Set JAX_ENABLE_X64={int(bool(then))} as at the first start."
            raise InvalidInput("jax_enable_x64", here["flags"]["x64"], str(then), advice)
        if chosen and manifest["trace_hash"] != before.get("trace_hash"):
            raise InvalidInput(
                "trace_hash", manifest["trace_hash"], f"the first start's, {before.get('trace_hash')}",
                "This installation draws other events than the one that began. Start a new run, or go back to its "
                f"versions: {manifest.get('versions')}",
            )  # fmt: skip
        # What was left open then is given in spec.toml.
        manifest |= {key: before[key] for key in ("spec_hash", "steps") if key in before}
        for checkpoint in (path / "checkpoint").glob("*.npz"):
            folders.read_arrays(checkpoint, "checkpoint")
        again = {"start": folders.now(), "versions": here["versions"], "commit": here["commit"]}
        manifest |= {"status": "running", "resumed": [*manifest.get("resumed", []), again], "error": None}
        checkpoints = _Checkpoints(path / "checkpoint", checkpoint_every_s, check_interrupt)
        return _execute(path, manifest, begin, checkpoints, progress)


def connect(spec: Spec) -> None:
    """Meet the other processes that run a spec, if it is for several.

    Raises:
        InvalidInput: they cannot be met.
    """
    devices = spec.devices_object()
    if devices is not None:
        devices.connect()


@contextlib.contextmanager
def _alone_in(path: Path) -> Iterator[None]:
    """Of all processes on the machine only those of this run work in its folder.

    Raises:
        InvalidInput: another one does.
    """
    with contextlib.ExitStack() as stack:
        by_first(lambda: stack.enter_context(folders.exclusive(path)))
        yield


class _Ready(NamedTuple):
    prepared: Prepared
    simulations: Iterator[Simulation]


def _ready(spec: Spec, manifest: dict[str, Any]) -> Callable[[Path], _Ready]:
    """The run, with nothing left to choose; the manifest then says on which events.

    Raises:
        InvalidInput: what does not fit together.
    """
    prepared = prepare_run(spec, stream=spec.devices_object() is None)
    ready = _Ready(prepared, prepared.simulations())
    manifest |= {"spec_hash": spec_hash(prepared), **prepared.pairing, "steps": prepared.steps}
    return lambda path: ready


def _tuning(
    spec: Spec,
    done: Mapping[str, Any],
    manifest: dict[str, Any],
    progress: bool,
    check_interrupt: Callable[[], None],
) -> Callable[[Path], _Ready]:
    """What tunes, then makes the run ready; ``tuning.json`` keeps what is known already.

    Args:
        spec: with its grids.
        done: what ``tuning.json`` says of algorithms that are tuned already.
        manifest: of the run.
        progress: show progress bars.
        check_interrupt: raises what Python dropped.

    Raises:
        InvalidInput: what does not fit together.
    """
    tune, trials = spec.tune_object(), prepare_run(trials_of(spec))
    assert tune is not None
    record: dict[str, Any] = {
        "spec": spec.as_dict(), "seeds": trials.spec.seed_list, "target": tune.target, "algorithms": dict(done),
    }  # fmt: skip
    runs = trial_runs(spec, trials, done)
    metric = tune.metric or spec.record.target_metric or ""
    if metric.startswith("test_"):
        warnings.warn(
            f"tune.metric = {metric!r}: held-out samples decide that are then reported, unless every seed draws its own split. "
            "Decide by loss.",
            stacklevel=2,
        )

    def begin(path: Path) -> _Ready:
        folders.write_json(path / "tuning.json", record)
        for name, own in itertools.groupby(runs, key=lambda run: run.algorithm):
            record["algorithms"][name] = tune_algorithm(
                spec, own, progress=progress, after_step=check_interrupt
            )
            folders.write_json(path / "tuning.json", record)
        plot_tuning(record, path / "tuning.png")
        entries = {name: record["algorithms"][name] for name in spec.grids()}
        manifest["tuning_wall_s"] = {name: entry["wall_s"] for name, entry in entries.items()}
        return _ready(spec.at({name: entry["chosen"] for name, entry in entries.items()}), manifest)(path)

    return begin


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Ctrl-C is remembered: Python drops a KeyboardInterrupt that comes up inside a callback, and JAX has some.

    Yields:
        A function that raises the one that was dropped.
    """
    pressed = []

    def remember(number, frame):
        pressed.append(number)
        raise KeyboardInterrupt

    def check():
        if pressed:
            raise KeyboardInterrupt

    usual = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if usual:
        signal.signal(signal.SIGINT, remember)
    try:
        yield check
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def keeping_warnings(told: list[str], *, aloud: bool = True) -> Iterator[None]:
    """What a person at the terminal is warned of is in the manifest too.

    Args:
        told: gets every message, once.
        aloud: show them as well; else whoever called this does.
    """
    usual = warnings.showwarning

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        ours = issubclass(category, UserWarning)
        if ours and str(message) not in told:
            told.append(str(message))
        if aloud or not ours:
            usual(message, category, filename, lineno, file, line)

    # It makes Python forget what it has shown: of two runs in one process both are to hear of the same.
    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _execute(
    path: Path,
    manifest: dict[str, Any],
    begin: Callable[[Path], _Ready],
    checkpoints: _Checkpoints,
    progress: bool,
) -> Run:
    if not is_first():
        return _follow(path, begin, checkpoints)
    results: dict[str, Result] = {}
    extras: dict[str, dict] = {}
    simulation = None

    def close(status: str, error: str | None = None) -> None:
        wall_s = {name: result.wall_s for name, result in results.items()}
        manifest.update(status=status, end=folders.now(), wall_s=wall_s, error=error)
        folders.write_json(path / "manifest.json", manifest)

    def keep(status: str, error: str) -> None:
        """Write what there is; what a full disk does not take is lost, and the user hears of the disk."""
        with contextlib.suppress(RuntimeError):  # interrupted between two states
            if simulation is not None and simulation.recorded:
                results[simulation.name] = simulation.result()
        with contextlib.suppress(OSError, InvalidInput):
            write_metrics(path, results)
        with contextlib.suppress(OSError):
            close(status, error)

    try:
        prepared, simulations = begin(path)
        if not any(checkpoints.folder.glob("*.npz")):
            write_inputs(path, manifest, prepared)
        for simulation in simulations:
            name = simulation.name
            start = simulation.spread_of_gradients()
            checkpoints.restore(simulation)
            if (
                not results
            ):  # where there are checkpoints, nothing is written before the first has been found good
                write_inputs(path, manifest, prepared)
            results[name] = simulation.run(
                progress=progress,
                after_step=partial(checkpoints.after_step, simulation),
            )
            extras[name] = {"gradients_at_start": start, "gradients_at_end": simulation.spread_of_gradients()}
            write_metrics(path, results)
            simulation = None  # its state goes before the next one comes
        summary = write_summary(path, prepared, results, extras)
        close("finished")
    except InvalidInput as error:
        if results or not any(
            checkpoints.folder.glob("*.npz")
        ):  # else nothing is written before a checkpoint is good
            keep("failed", str(error))
        raise
    except Diverged as error:
        keep("failed", f"Diverged: {error}")
        error.args = (
            f"{error}\nWhat was recorded before is in {path / 'metrics.npz'}. (To resume it would end at the same event.)",
        )
        raise
    except KeyboardInterrupt:
        keep("interrupted", "interrupted")
        raise RunFailed(f"Interrupted. To go on: decentral resume {path}") from None
    except (OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
        words = f"{type(error).__name__}: {error}"
        keep("failed", words)
        raise RunFailed(f"{words}\nWhen there is room again: decentral resume {path}") from error
    except Exception as error:
        keep("failed", f"{type(error).__name__}: {error}")
        raise
    shutil.rmtree(path / "checkpoint", ignore_errors=True)
    for leftover in path.glob("*.tmp"):
        leftover.unlink()
    return Run(path, prepared.spec, results, summary)


def _follow(path: Path, begin: Callable[[Path], _Ready], checkpoints: _Checkpoints) -> Run:
    """What the other processes of a run do: the same computations in the same order, and no file."""
    prepared, simulations = begin(path)
    results: dict[str, Result] = {}
    extras: dict[str, dict] = {}
    for simulation in simulations:
        start = simulation.spread_of_gradients()
        checkpoints.restore(simulation)
        results[simulation.name] = simulation.run(after_step=partial(checkpoints.after_step, simulation))
        end = simulation.spread_of_gradients()
        extras[simulation.name] = {"gradients_at_start": start, "gradients_at_end": end}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first process says them
        return Run(path, prepared.spec, results, summarise(prepared, results, extras))


def write_summary(
    path: Path, prepared: Prepared, results: dict[str, Result], extras: dict[str, dict]
) -> dict[str, Any]:
    """Write ``summary.json`` and the plots; returns the former."""
    summary = summarise(prepared, results, extras)
    folders.write_json(path / "summary.json", summary)
    curves = {name: result.metrics for name, result in results.items()}
    plot_overview(curves, path / "overview.png", title=prepared.spec.name)
    draw_timelines(path, prepared, results)
    return summary


def draw_timelines(path: Path, prepared: Prepared, results: dict[str, Result]) -> None:
    """``gantt_NAME.png`` for every trace in which something takes time."""
    for name, trace in prepared.traces.items():
        if isinstance(trace, Trace) and trace.duration_s is not None:
            demand = prepared.networks[name][0].demand
            plot_gantt(
                trace, path / f"gantt_{name}.png", title=f"{prepared.spec.name}: {name}",
                message_bytes=results[name].constants["message_bytes"], model_bytes=demand.model_bytes,
            )  # fmt: skip


def write_inputs(path: Path, manifest: dict[str, Any], prepared: Prepared) -> None:
    """Manifest, and what a first start has not written already: spec and traces."""
    folders.write_json(path / "manifest.json", manifest)
    if not (path / "spec.toml").exists():
        folders.write_bytes(path / "spec.toml", prepared.resolved_toml())
    for name, trace in prepared.traces.items() if prepared.record.trace else ():
        assert isinstance(trace, Trace)
        if not (path / f"trace_{name}.npz").exists():
            trace.save(path / f"trace_{name}.npz")


class _Checkpoints:
    """Where a run can be taken up again. Writing them takes at most a tenth of the time, however large the state is."""

    def __init__(self, folder: Path, every_s: float, check_interrupt: Callable[[], None]) -> None:
        self.folder, self.every_s, self.check_interrupt = folder, every_s, check_interrupt
        self.due_s = time.perf_counter() + every_s

    def after_step(self, simulation: Simulation) -> None:
        """Write one if it is due, and when an algorithm is done."""
        began = time.perf_counter()
        if agreed(began >= self.due_s or simulation.done):
            wall = {f"wall_{stage}": np.array(value) for stage, value in simulation.wall_s.items()}
            arrays = simulation.snapshot() | wall
            if is_first():
                folders.write_arrays(self._path(simulation), arrays)
            ended = time.perf_counter()
            self.due_s = ended + max(self.every_s, 10 * (ended - began))
        self.check_interrupt()

    def restore(self, simulation: Simulation) -> None:
        """Take up a run where its checkpoint left it, if it has one, with the wall time it has taken so far.

        Raises:
            InvalidInput: the checkpoint is damaged, or of another run.
        """
        path = self._path(simulation)
        there = path.exists()
        if there != bool(agreed(there)):
            advice = "Every process of a run has to see its folder."
            raise InvalidInput("checkpoint", str(path), "a file that all processes see, or none", advice)
        if not there:
            return
        arrays = folders.read_arrays(path, "checkpoint")
        try:
            simulation.restore(arrays)
        except (InvalidInput, KeyError, ValueError, TypeError, IndexError) as error:
            advice = (
                f"({error}) Delete it, and decentral resume starts that algorithm again from its beginning."
            )
            raise InvalidInput("checkpoint", str(path), "a checkpoint of this run", advice) from None
        for stage in simulation.wall_s:
            simulation.wall_s[stage] += float(arrays.get(f"wall_{stage}", 0.0))

    def _path(self, simulation: Simulation) -> Path:
        return self.folder / f"{simulation.name}.npz"


def write_metrics(path: Path, results: dict[str, Result]) -> None:
    """Bring ``metrics.npz`` up to date; what a start before this one recorded further on stays."""
    file = path / "metrics.npz"
    arrays = folders.read_arrays(file, "metrics") if file.exists() else {}
    for name, result in results.items():
        for key, values in result.metrics.items():
            before = arrays.get(f"{name}/{key}")
            if before is None or before.shape[1] <= values.shape[1]:
                arrays[f"{name}/{key}"] = values
    if arrays:
        folders.write_arrays(file, arrays)


def summarise(prepared: Prepared, results: dict[str, Result], extras: dict[str, dict]) -> dict[str, Any]:
    """The contents of ``summary.json``."""
    pairing = prepared.pairing
    metric, level = target_of(results, prepared.record.target_metric, prepared.record.target)
    algorithms = {}
    for name, result in results.items():
        networks = prepared.networks[name]
        entry = result.summary() | extras[name]
        entry["hyper_parameters"] = [resolved_arguments([algorithm]) for algorithm in result.algorithms]
        if len({json.dumps(item, sort_keys=True, default=str) for item in entry["hyper_parameters"]}) == 1:
            entry["hyper_parameters"] = entry["hyper_parameters"][0]
        entry["trace"] = pairing["trace"][name]
        trace = prepared.traces[pairing["trace"][name]]
        if isinstance(trace, Trace):
            entry["timeline"] = summary_of(trace)
        if networks[0].topology.n <= 1000 and isinstance(networks[0].topology, Topology):
            # Beyond, the constants cost more than small runs; decentral topology prints them.
            entry["chi_1"] = [network.chi_1 for network in networks]
            entry["chi_2"] = [network.chi_2 for network in networks]
            given = prepared.spec.algorithms()[name]
            theirs = resolved_arguments([given]) != resolved_arguments(result.algorithms[:1])
            entry |= realised_constants(name, trace, networks, warn=theirs)
        if metric is not None and level is not None:
            entry["to_target"] = {"metric": metric, "target": level} | {
                axis: dataclasses.asdict(
                    time_to_target_summary(
                        time_to_target(
                            result.metrics[axis], result.metrics[metric], level, better_direction(metric)
                        )
                    )
                )
                for axis in AXES
            }
        algorithms[name] = entry
    return {
        "name": prepared.spec.name,
        "seeds": pairing["seeds"],
        "paired": pairing["paired"],
        "algorithms": algorithms,
    }


def realised_constants(
    name: str, trace: Trace | Stream, networks: Sequence[Network], *, warn: bool
) -> dict[str, Any]:
    """chi_1 and chi_2 of the exchanges as they happened, per seed; may warn where they are not what was assumed."""
    found = {"realised_chi_1": [], "realised_chi_2": []}
    for index, network in enumerate(networks):
        realised = realised_topology(trace, index, network.time_unit_s)
        found["realised_chi_1"].append(None if realised is None else realised.chi_1)
        found["realised_chi_2"].append(None if realised is None else realised.chi_2)
        # Few exchanges are far from their mean by chance.
        if (
            realised is None
            or index
            or not warn
            or network.worst is not None  # assumed for each of the graphs, realised over all of them
            or realised.total_rate * trace.horizon_s < ENOUGH * len(realised.edges)
        ):
            continue
        for constant in ("chi_1", "chi_2"):
            assumed, happened = getattr(network, constant), getattr(realised, constant)
            if abs(happened / assumed - 1) > RATES_WARNING:
                warnings.warn(
                    f"{name}: {constant} of the exchanges as they happened is {happened:.3g}; {assumed:.3g} was assumed "
                    '(in units of time). Step sizes from the former: constants = "realised" in the algorithm\'s table.',
                    stacklevel=2,
                )
    return found


def target_of(
    results: dict[str, Result], metric: str | None, level: float | None
) -> tuple[str | None, float | None]:
    """The metric and level for times to target: as given, or the best level that every seed reaches."""
    available = [m for m in METRICS if all(m in result.metrics for result in results.values())]
    metric = metric or (available[0] if available else None)
    if metric is None:
        return None, None
    if level is None:
        # The best of each seed, then the worst of those.
        best, worst = (np.nanmax, min) if better_direction(metric) == "above" else (np.nanmin, max)
        level = float(worst(worst(best(result.metrics[metric], axis=1)) for result in results.values()))
    return metric, level
