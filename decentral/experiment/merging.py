"""Runs of a sweep: one by itself, or several that differ in numbers only as replicas of one trace.

A run appears under its name whole or not at all. One that fails leaves a folder as well, whose manifest says why.
"""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from decentral.engine.trace import Trace, merge
from decentral.errors import InvalidInput, RunFailed
from decentral.experiment import folder as folders
from decentral.experiment.prepared import Prepared, Shared, prepare_run, source_hash, spec_hash
from decentral.experiment.result import Result
from decentral.experiment.run import keeping_warnings, resume, run, write_inputs, write_metrics, write_summary
from decentral.experiment.simulation import Diverged, Tolerant
from decentral.experiment.spec import Spec

FAILURE = ("stage", "event", "time_s", "worker", "seed", "message")
"""What the manifest of a failed run says of it; None where that is not known."""


def part_of(folder: Path) -> Path:
    """Where a run lies until it is whole."""
    return folder.with_name(folder.name + ".part")


def run_alone(spec: Spec, folder: Path, command_line: list[str] | None = None) -> None:
    """One run, as ``decentral run`` makes it; what an earlier process left of it is taken up.

    Args:
        spec: what to run.
        folder: where it goes when it is whole.
        command_line: kept in the manifest.
    """
    part, told = part_of(folder), list[str]()
    try:
        with keeping_warnings(told, aloud=False):
            if not _taken_up(part):
                shutil.rmtree(part, ignore_errors=True)
                run(spec, out=part, command_line=command_line)
    except Exception as error:
        before = _manifest(part)
        if before.get("status") == "interrupted":
            raise KeyboardInterrupt from None
        write_failure(folder, spec, _failure(error, part, before), command_line, error, told)
        return
    _publish(part, folder)


def _taken_up(part: Path) -> bool:
    """Whether there was the beginning of a run, and it is finished now."""
    status = _manifest(part).get("status")
    if status not in ("running", "interrupted"):
        return status == "finished"
    try:
        resume(part)
    except InvalidInput:  # cut off before it began, damaged, or of another installation: begin again
        return False
    return True


def run_merged(
    specs: Mapping[str, Spec],
    runs: Path,
    missing: Sequence[str],
    command_line: list[str] | None = None,
) -> None:
    """Runs of one shape as replicas of one trace, each with all its seeds; those that cannot be merged run by themselves.

    All of them are computed, whichever are missing: companions change the last digits.

    Args:
        specs: id -> what to run.
        runs: where the folders go.
        missing: ids of those that are written.
        command_line: kept in the manifests.
    """
    shared, prepared, told = Shared(), dict[str, Prepared](), {key: list[str]() for key in specs}
    for key, spec in specs.items():
        try:
            with keeping_warnings(told[key], aloud=False):
                prepared[key] = prepare_run(spec, shared)
        except Exception as error:  # of this run: the others go on
            if key in missing:
                write_failure(runs / key, spec, _failure(error, None, {}), command_line, error, told[key])
    for members in _alike(prepared):
        wanted = [key for key in members if key in missing]
        alone = wanted
        if len(members) > 1 and wanted:
            alone = _run_batch({key: prepared[key] for key in members}, runs, wanted, command_line, told)
        for key in alone:
            run_alone(specs[key], runs / key, command_line)


def _alike(prepared: Mapping[str, Prepared]) -> list[list[str]]:
    """The runs that can be replicas of one: the same instructions, and algorithms that differ in numbers only."""
    groups: list[tuple[Any, list[str]]] = []
    for key, one in prepared.items():
        what = []
        for name, algorithms in one.algorithms.items():
            trace, network = one.traces[one.trace_of[name]], one.networks[name][0]
            unequal = network.cluster is not None and network.cluster.unequal
            clock = network.time_unit_s, unequal, trace.duration_s is None
            what.append((trace.ops, trace.banks, clock, jax.tree.structure(algorithms[0])))
        members = next((members for other, members in groups if other == what), None)
        if members is None:
            groups.append((what, [key]))
        else:
            members.append(key)
    return [members for _, members in groups]


def _run_batch(
    prepared: Mapping[str, Prepared],
    runs: Path,
    wanted: Sequence[str],
    command_line: list[str] | None,
    told: Mapping[str, list[str]],
) -> list[str]:
    """Compute all, write those that are wanted.

    Args:
        prepared: id -> run.
        runs: where the folders go.
        wanted: ids of those that are written.
        command_line: kept in the manifests.
        told: id -> what it has warned of so far.

    Returns:
        Ids of those that diverged: by themselves they tell where.
    """
    members, first = list(prepared), next(iter(prepared.values()))
    start, provenance = folders.now(), folders.provenance(command_line)
    results: dict[str, dict[str, Result]] = {key: {} for key in members}
    extras: dict[str, dict[str, dict]] = {key: {} for key in members}
    bad: set[str] = set()
    for name in first.algorithms:
        simulation = Tolerant(
            merge([_trace(one, name) for one in prepared.values()]),
            [problem for one in prepared.values() for problem in one.problems],
            [algorithm for one in prepared.values() for algorithm in one.algorithms[name]],
            network=[network for one in prepared.values() for network in one.networks[name]],
            record=first.record,
            name=name,
        )
        before = simulation.spread_of_gradients()
        simulation.run()
        after = simulation.spread_of_gradients()
        replica = 0
        for key, one in prepared.items():
            trace = _trace(one, name)
            mine = slice(replica, replica + len(trace.replicas))
            part = simulation.part(replica, trace)
            part.wall_s = {stage: value / len(members) for stage, value in simulation.wall_s.items()}
            part.wall_s["timeline"] = one.wall_s.get(name, 0.0)
            results[key][name] = part.result()
            extras[key][name] = {
                f"gradients_at_{when}": {what: values[mine] for what, values in spread.items()}
                for when, spread in (("start", before), ("end", after))
            }
            bad |= {key} if part.bad.any() else set()
            replica = mine.stop
        simulation = None  # its state goes before the next one comes
    for key in wanted:
        if key in bad:
            continue
        one, own = prepared[key], results[key]
        manifest = {
            "status": "finished",
            "name": one.spec.name,
            "start": start,
            "end": None,
            **provenance,
            "source_hash": source_hash(one.spec),
            "spec_hash": spec_hash(one),
            **one.pairing,
            "steps": one.steps,
            "merged_with": [other for other in members if other != key],
            "wall_s_shared_by": len(members),
            "wall_s": {name: result.wall_s for name, result in own.items()},
            "error": None,
            "warnings": told[key],
        }
        part = part_of(runs / key)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write_inputs(part, manifest, one)
        write_metrics(part, own)
        with keeping_warnings(told[key], aloud=False):
            write_summary(part, one, own, extras[key])
        folders.write_json(part / "manifest.json", manifest | {"end": folders.now()})
        _publish(part, runs / key)
    return [key for key in wanted if key in bad]


def _trace(prepared: Prepared, name: str) -> Trace:
    """An algorithm's events; of what is merged they are kept."""
    trace = prepared.traces[prepared.trace_of[name]]
    assert isinstance(trace, Trace)
    return trace


def write_failure(
    folder: Path,
    spec: Spec,
    failure: Mapping[str, Any],
    command_line: list[str] | None = None,
    error: BaseException | None = None,
    told: Sequence[str] = (),
) -> None:
    """The record of a run that failed, with what it had recorded before.

    Args:
        folder: of the run.
        spec: what was to run.
        failure: keys of ``FAILURE``.
        command_line: kept in the manifest.
        error: what was raised; where nobody raised it on purpose its traceback is kept.
        told: what the run warned of, where it has no manifest yet.
    """
    part = part_of(folder)
    part.mkdir(parents=True, exist_ok=True)
    manifest = _manifest(part) or {
        "name": spec.name,
        "start": folders.now(),
        **folders.provenance(command_line, device=False),
        "source_hash": source_hash(spec),
        "warnings": list(told),
    }
    manifest |= {"status": "failed", "end": folders.now(), "failure": dict.fromkeys(FAILURE) | dict(failure)}
    manifest["error"] = manifest.get("error") or failure["message"]
    if error is not None and not isinstance(error, InvalidInput | RunFailed):
        manifest["traceback"] = traceback.format_exception(error)
    folders.write_json(part / "manifest.json", manifest)
    _publish(part, folder)


def _failure(error: Exception, part: Path | None, manifest: Mapping[str, Any]) -> dict[str, Any]:
    stage = "run"
    if not manifest:
        stage = "prepare"
    elif part is not None and not (part / "spec.toml").exists():
        stage = "tuning"
    if isinstance(error, Diverged):
        words = str(manifest.get("error") or error).removeprefix("Diverged: ")
        where = {"event": error.event, "time_s": error.time_s, "worker": error.worker, "seed": error.seed}
        return {"stage": stage, **where, "message": words}
    expected = isinstance(error, InvalidInput | RunFailed)
    words = str(error) if expected else f"{type(error).__name__}: {error}"
    return {"stage": stage, "message": str(manifest.get("error") or words)}


def _manifest(part: Path) -> dict[str, Any]:
    """Of a run that is not whole; empty where there is none, or half of one."""
    try:
        return folders.read_json(part / "manifest.json", "manifest")
    except InvalidInput:
        return {}


def _publish(part: Path, folder: Path) -> None:
    """Give a whole run its name. Where another process was faster its folder stays: both hold the same."""
    shutil.rmtree(part / "checkpoint", ignore_errors=True)
    try:
        os.rename(part, folder)
    except OSError:
        if not (folder / "manifest.json").is_file():
            raise
        shutil.rmtree(part, ignore_errors=True)
