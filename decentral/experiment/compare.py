"""Read finished run folders and set them side by side."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tomllib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from decentral.analysis.statistics import AXES, better_direction, one_copy, paired, time_to_target
from decentral.analysis.tables import comparison_table
from decentral.errors import InvalidInput
from decentral.experiment import folder as folders
from decentral.experiment.sweep_folder import Sweep, SweepRun, is_sweep

if TYPE_CHECKING:
    from decentral.experiment.result import Result

COLUMNS = {
    "loss": "loss",
    "suboptimality": "suboptimality",
    "distance_to_optimum": "distance²",
    "consensus_distance": "consensus²",
    "test_accuracy": "test acc.",
    "test_accuracy_worst": "worst worker",
    "gradients": "gradients",
    "exchanges": "exchanges",
    "samples": "samples",
    "updates": "updates",
    "time_s": "seconds",
}
"""Metric -> heading of the columns a table shows, where the run has them."""
COUNTS = ("gradients", "exchanges", "samples", "updates", "time_s")
"""Columns of which neither more nor less is better."""
UNEQUAL = ("samples", "updates", "time_s")
"""Columns for people where equal samples are not equal updates: an update is not a gradient, or no worker's own."""
OF_COPIES = ("consensus_distance", "test_accuracy_worst", "exchanges")
"""Columns for people where workers have copies that differ."""
LACKING = (KeyError, TypeError, AttributeError, ValueError, IndexError)
"""What is raised where a run's files are not as this package wrote them."""
BOLD = (
    "% mean \\pm half width of its 95 % interval over the seeds (Student's t); bold: better than every other row, the 95 % "
    "interval of the paired difference on common seeds excludes 0 (not corrected for the number of rows)"
)


@dataclass(frozen=True)
class _Row:
    """One algorithm of one run.

    Attributes:
        label: its name in the table.
        name: its name in the run.
        entry: of ``summary.json``.
        paired: the algorithms of its run share a trace, or tapes.
        manifest: the run's.
        metrics: metric -> ``(seeds, records)``.
        common: what rows have in common that were drawn from common tapes: seeds, problem, number of workers.
        run: the run of a sweep it is of, and what that has of its own.
    """

    label: str
    name: str
    entry: Mapping[str, Any]
    paired: str | None
    manifest: Mapping[str, Any]
    metrics: Mapping[str, np.ndarray]
    common: str
    run: SweepRun | None = None

    def hours(self, stage: str) -> float | None:
        """Wall hours: of the ``"run"`` itself, or of its ``"tuning"``."""
        if stage == "tuning":
            return self.manifest.get("tuning_wall_s", {}).get(self.name, 0.0) / 3600
        wall_s = (self.manifest.get("wall_s") or {}).get(self.name)
        return None if wall_s is None else sum(wall_s.values()) / 3600

    @property
    def unequal(self) -> bool:
        """It is a pipeline or overlaps its all-reduces, or gradients are not updates one by one."""
        final = self.entry["final"]
        if any(name.partition(":")[0] in ("load", "turn", "error") for name in self.entry.get("counts", ())):
            return True
        return "updates" in final and final["updates"]["mean"] != final["gradients"]["mean"]

    def measured(
        self, hidden: Container[str], machine: bool
    ) -> Iterator[tuple[str, Any, np.ndarray, str, tuple]]:
        """Columns: heading, cell, value per seed, which side is better (empty for none), and the target of a time to it."""
        for metric, heading in COLUMNS.items():
            if metric in self.entry["final"] and metric not in hidden:
                side = "" if metric in COUNTS else better_direction(metric)
                cell, values = self.entry["final"][metric], self.metrics[metric][:, -1]
                yield metric if machine else heading, cell, values, side, ()
        target = {} if "to_target" in hidden else self.entry.get("to_target") or {}
        for axis in AXES if target else ():
            if axis not in target or (axis != "time_s" and not machine):
                continue
            metric, level, said = target["metric"], target["target"], target[axis]
            times = time_to_target(self.metrics[axis], self.metrics[metric], level, better_direction(metric))
            cell = {"mean": said["mean"], "half_width": said["half_width"]}
            if said["mean"] is None and not machine:
                cell = f"{said['seeds'] - said['reached']} of {said['seeds']} seeds never"
            heading = f"{axis}_to_target" if machine else f"s to {metric} {level:.6g}"
            yield heading, cell, np.atleast_1d(times), "below", (metric, level)


def compare(directories: Sequence[str | Path], format: str = "text", *, hours: bool = False) -> str:
    """A table of the algorithms of one or more runs, or of sweeps, with columns for what their runs have of their own.

    In LaTeX the best mean of a column is bold if it is better than every other row by more than chance: the runs have the
    same seeds, problem and workers, so draw from common tapes, and the 95 % interval of each paired difference excludes 0.
    CSV and JSON have every digit, machine-readable names, the paired differences from the row with the best mean
    (``METRIC_minus_best``; empty for rows without common tapes) and the hours of wall time on the run's device.

    Args:
        directories: finished run folders, and sweep folders; of the latter the runs that are finished.
        format: ``"text"``, ``"latex"``, ``"csv"`` or ``"json"``.
        hours: add a line about the hours of wall time to text and LaTeX.

    Raises:
        InvalidInput: a folder is not a run, or not finished.
    """
    paths = [
        Path(directory) if is_sweep(directory) else folders.require_run(directory)
        for directory in directories
    ]
    if len({path.resolve() for path in paths}) < len(paths):
        raise InvalidInput("DIR", " ".join(map(str, paths)), "each run folder once")
    short = len({path.name for path in paths}) == len(paths)
    machine = format in ("csv", "json")
    read: list[tuple[Path, list[_Row]]] = []
    for path in paths:
        where = "" if len(paths) == 1 else f"{path.name if short else path}: "
        if not is_sweep(path):
            read.append((path, _read(path, where)))
            continue
        runs = Sweep.load(path).having("finished")
        if not runs:
            raise InvalidInput("DIR", str(path), "a sweep with a finished run", "None of its runs is.")
        for run in runs:
            own = _read(run.folder, f"{where}{run.id} ")
            read.append((run.folder, [dataclasses.replace(row, run=run) for row in own]))
    rows = [row for _, own in read for row in own]
    try:
        cells = table_rows(rows, machine=machine)
    except LACKING:
        for path, own in read:
            with _blaming(path):
                table_rows(own, machine=machine)
        raise
    table = comparison_table(cells, format)
    if machine:
        return table
    mark = "% " if format == "latex" else ""
    if format == "latex" and r"\mathbf" in table:
        table += BOLD + "\n"
    return table + (f"{mark}{_hours(rows)}\n" if hours else "")


@contextlib.contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """What a run's files lack is told with its folder.

    Raises:
        InvalidInput: they lack something.
    """
    try:
        yield
    except LACKING as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(
            "summary", str(path / "summary.json"), "a file this package wrote", f"It lacks {error}."
        ) from None


def _read(path: Path, where: str) -> list[_Row]:
    """The algorithms of a finished run.

    Raises:
        InvalidInput: it is not finished, or damaged.
    """
    with _blaming(path):
        return _rows_of(path, where)


def _rows_of(path: Path, where: str) -> list[_Row]:
    manifest = folders.read_json(path / "manifest.json", "manifest")
    if (status := manifest.get("status")) != "finished":
        advice = f"It failed: {manifest.get('error')}" if status == "failed" else "To finish it: "
        advice += "" if status == "failed" else f"decentral resume {path}"
        raise InvalidInput("DIR", f"{path} ({status})", "finished runs", advice)
    summary = folders.read_json(path / "summary.json", "summary")
    entries = {name: entry for name, entry in summary["algorithms"].items() if entry["final"]}
    arrays = folders.read_arrays(path / "metrics.npz", "metrics")
    try:
        spec = tomllib.loads((path / "spec.toml").read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput("spec.toml", str(path), "a run folder's", f"{error}.") from None
    common = json.dumps([summary["seeds"], spec["problem"], spec["topology"]["n"]], sort_keys=True)
    rows = []
    for name, entry in entries.items():
        prefix = f"{name}/"
        metrics = {
            key.removeprefix(prefix): values for key, values in arrays.items() if key.startswith(prefix)
        }
        rows.append(_Row(f"{where}{name}", name, entry, summary["paired"], manifest, metrics, common))
    return rows


def row_of(result: Result, paired: str | None, common: str) -> _Row:
    """The row of a result that is in memory.

    Args:
        result: it.
        paired: what it shares with the others: a ``"trace"``, ``"tape"``, or None.
        common: the same for results that drew from the same tapes.
    """
    manifest = {"wall_s": {result.name: result.wall_s}}
    return _Row(result.name, result.name, result.summary(), paired, manifest, result.metrics, common)


def table_rows(rows: Sequence[_Row], *, machine: bool = False) -> dict[str, dict[str, Any]]:
    """Label -> heading -> value.

    Args:
        rows: the algorithms.
        machine: headings are names for programs that read the table, and everything is there.
    """
    table: dict[str, dict[str, Any]] = {}
    seen: dict[tuple, dict[str, tuple[_Row, np.ndarray, str]]] = {}
    steps = {row.label: row.manifest.get("steps", {}).get(row.name) for row in rows}
    hidden: tuple[str, ...] = ()
    if not machine:
        hidden += () if any(row.unequal for row in rows) else UNEQUAL
        hidden += OF_COPIES if all(one_copy(row.metrics) for row in rows) else ()
        # A sweep's runs have a level each, so a column each.
        levels = {(row.entry.get("to_target") or {}).get("target") for row in rows if row.run is not None}
        hidden += ("to_target",) if len(levels) > 1 else ()
    for row in rows:
        cells = table[row.label] = {}
        if row.run is not None:
            cells["algorithm"] = row.name
            cells |= {"run": row.run.id} if machine else {}
            for key, value in row.run.varied_of(row.name).items():
                number = isinstance(value, int | float) and not isinstance(value, bool)
                as_given = value is None or isinstance(value, str) or (machine and number)
                cells[key] = value if as_given else json.dumps(value)  # a setting is no measured number
        for heading, cell, values, side, target in row.measured(hidden, machine):
            cells[heading] = dict(cell) if isinstance(cell, Mapping) else cell
            if side:
                # Times to different targets are not judged against each other, whatever stands above them.
                seen.setdefault((heading, *target), {})[row.label] = (row, values, side)
        if machine and (target := row.entry.get("to_target")):
            cells |= {"target_metric": target["metric"], "target": target["target"]}
        cells["seeds"] = len(row.entry["seeds"])
        cells["paired"] = row.paired or "-"
        if machine or len(set(steps.values())) > 1:
            cells["steps"] = steps[row.label]
        if machine:
            cells |= {"compute_hours": row.hours("run"), "tuning_hours": row.hours("tuning")}
    for (heading, *_), column in seen.items():
        _judge(heading, column, table, machine)
    return table


def _judge(
    heading: str,
    column: Mapping[str, tuple[_Row, np.ndarray, str]],
    table: dict[str, dict[str, Any]],
    machine: bool,
) -> None:
    """Mark the best mean of a column if the paired differences say that it is, and write them down for machines."""
    means = {
        label: values.mean() * (1 if side == "below" else -1) for label, (_, values, side) in column.items()
    }
    best = min(means, key=lambda label: means[label] if np.isfinite(means[label]) else np.inf)
    row, values, side = column[best]
    better = []
    for label, (other, theirs, _) in column.items():
        if label == best:
            continue
        same = other.common == row.common
        difference = paired(theirs, values) if same else None
        better.append(difference is not None and difference.sign == (1 if side == "below" else -1))
        if machine:
            table[label][f"{heading}_minus_best"] = {
                "mean": difference and difference.difference,
                "half_width": difference and difference.difference_half_width,
            }
    if len(column) == len(table) > 1 and all(better):
        table[best][heading]["best"] = True


def _hours(rows: Sequence[_Row]) -> str:
    """How long the runs took, in words."""
    stages = {stage: sum(row.hours(stage) or 0 for row in rows) for stage in ("run", "tuning")}
    devices = dict.fromkeys(str(row.manifest.get("device", {}).get("kind", "?")) for row in rows)
    text = f"compute: {sum(stages.values()):.3g} hours on {', '.join(devices)}"
    return text + (f", {stages['tuning']:.3g} of them tuning" if stages["tuning"] else "")
