"""The report of a sweep: its runs, what they came to against what varies, and why those that failed did."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tomli_w

from decentral.analysis.page import Section, Setting, element, facts, folded, numbers, table
from decentral.analysis.page.figures import about_metric, dash_of
from decentral.analysis.plots import AXES, styles
from decentral.analysis.statistics import better_direction
from decentral.experiment.compare import COLUMNS
from decentral.experiment.report_page import NAME, some, spec_section, whole_page
from decentral.experiment.run_report import projection_section
from decentral.experiment.sweep_folder import Sweep, SweepRun

MOST_ROWS, MOST_POINTS = 1000, 500
"""Rows of a table, decentral compare has all of them; and points beyond which only the usual metrics are drawn."""
SHOWN = (
    "loss",
    "suboptimality",
    "distance_to_optimum",
    "consensus_distance",
    "test_accuracy",
    "test_accuracy_worst",
    "time_s_to_target",
)
"""Metrics of the table, where runs have them."""


class _Point(NamedTuple):
    """One algorithm of one finished run."""

    run: SweepRun
    algorithm: str
    seeds: int
    metrics: dict[str, Mapping[str, float | None]]


def sweep_page(sweep: Sweep, project: str | Path | None) -> str:
    """The whole file.

    Args:
        sweep: as it lies in its folder; of its runs only the summaries are read.
        project: a projection to set beside it.
    """
    points = list(_points(sweep))
    keys = list(sweep.runs[0].keys) if sweep.runs else []
    data: dict[str, Any] = {}
    if points and keys:
        data["sweep"] = _plot(points, keys)
    count = Counter(run.status for run in sweep.runs)
    plot = [
        element("div", id="sweep-plot"),
        element(
            "p",
            "Mean over the seeds at the end of each run; bar: its 95 % interval (Student's t).",
            class_="small",
        ),
    ]
    sections = [
        _best(points, keys),
        Section("plots", "Plots", plot) if "sweep" in data else None,
        _runs(points, keys),
        _failed(sweep.having("failed"), keys),
        projection_section(project),
        _axes(sweep, keys),
        spec_section(tomli_w.dumps(_without_none(sweep.source)), "the sweep's spec, before what varies"),
        _provenance(sweep),
    ]
    whole = not count["missing"]
    notes = []
    if missing := count["missing"]:
        notes.append(
            f"{some(missing, 'run')} of {len(sweep.runs)} not done. To go on, give the same decentral sweep command again."
        )
    if failed := count["failed"]:
        notes.append(
            f"{some(failed, 'run')} of {len(sweep.runs)} failed: see below why. They are not in tables and plots."
        )
    if sweep.seeds == 1:
        notes.append("One seed: no intervals, and nothing can be said about chance.")
    told = ", ".join(f"{number} {status}" for status, number in count.items())
    ways = ", ".join(
        f"{key} ({some(len(sweep.axes[key]), 'value')})" if key in sweep.axes else key for key in keys
    )
    lead = f"A sweep ({sweep.search}) of {some(len(sweep.runs), 'run')}: {told}; {some(sweep.seeds, 'seed')} each"
    lead += f"; over {ways}." if ways else "."
    manifest = {"status": "finished" if whole else "not finished"}
    return whole_page(sweep.name, manifest, [lead], notes, sections, data)


def _points(sweep: Sweep) -> Iterator[_Point]:
    runs = sweep.having("finished")
    for run in runs:
        for name, entry in run.summary["algorithms"].items():
            metrics = dict(entry["final"])
            target = entry.get("to_target")
            # Times to a level of each run's own say nothing beside each other.
            if target and "target" in (run.tables.get("record") or {}):
                metrics["time_s_to_target"] = {key: target["time_s"][key] for key in ("mean", "half_width")}
            yield _Point(run, name, len(entry["seeds"]), metrics)


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _best(points: Sequence[_Point], keys: Sequence[str]) -> Section | None:
    """Of what varies inside an algorithm, the best; what else varies makes other tasks, among which nothing is best."""
    own = [key for key in keys if key.startswith("algorithm.")]
    others = [key for key in keys if key not in own]
    usual = ("time_s_to_target", "suboptimality", "loss", "test_accuracy")
    metric = next((one for one in usual if all(one in point.metrics for point in points)), None)
    if metric is None or not own:
        return None
    side = 1 if better_direction(metric) == "below" else -1
    groups: dict[tuple[str, ...], list[_Point]] = {}
    for point in points:
        task = (point.algorithm, *(_words(point.run.varied[key]) for key in others))
        groups.setdefault(task, []).append(point)
    rows = []
    for tried in groups.values():
        known = [point for point in tried if point.metrics[metric]["mean"] is not None]
        if known:
            best = min(known, key=lambda point: side * (point.metrics[metric]["mean"] or 0.0))
            settings = [_setting(best.run.varied[key]) for key in (*others, *own)]
            rows.append([best.algorithm, *settings, best.metrics[metric], len(tried), best.run.id])
    heads = ["algorithm", *map(_short, (*others, *own)), _heading(metric), "best of", "run"]
    caption = "Chosen after the fact, on the runs' own seeds: the best of many flatters. [tune] chooses on seeds of its own."
    return (
        Section("best", "Best settings", table(heads, rows[:MOST_ROWS], caption=caption, sortable=True))
        if rows
        else None
    )


def _short(key: str) -> str:
    """The end of a dotted key."""
    return ".".join(key.split(".")[-2:])


def _heading(metric: str) -> str:
    return "s to target" if metric == "time_s_to_target" else COLUMNS.get(metric, metric)


def _runs(points: Sequence[_Point], keys: Sequence[str]) -> Section:
    shown = [metric for metric in SHOWN if any(metric in point.metrics for point in points)]
    rows = [
        [
            point.run.id,
            *(_setting(point.run.varied[key]) for key in keys),
            point.algorithm,
            *(point.metrics.get(metric) for metric in shown),
            point.seeds,
        ]
        for point in points[:MOST_ROWS]
    ]
    if not rows:
        return Section("runs", "Runs", element("p", "No run is finished."))
    caption = "At the end: mean ± half width of the 95 % interval over the seeds. A click on a heading sorts."
    if len(points) > MOST_ROWS:
        caption += f" The first {MOST_ROWS:,} of {len(points):,} rows; decentral compare has all."
    heads = ["run", *map(_short, keys), "algorithm", *map(_heading, shown), "seeds"]
    return Section("runs", "Runs", table(heads, rows, caption=caption, sortable=True))


def _setting(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None if value is None else _words(value)
    return Setting(value)


def _failed(runs: Sequence[SweepRun], keys: Sequence[str]) -> Section | None:
    if not runs:
        return None
    rows = []
    for run in runs[:MOST_ROWS]:
        failure = run.failure or {}
        where = [failure.get(key) for key in ("stage", "event", "time_s", "worker", "seed")]
        told = [None if value is None else str(value) for value in where]
        rows.append([run.id, failure.get("message"), *told, *(_setting(run.varied[key]) for key in keys)])
    heads = ["run", "what it said", "stage", "event", "at (s)", "worker", "seed", *map(_short, keys)]
    caption = "Each kept what it had recorded, in its own folder."
    return Section("failed", "Failed runs", table(heads, rows, caption=caption, sortable=True))


def _axes(sweep: Sweep, keys: Sequence[str]) -> Section | None:
    values = {key: list(dict.fromkeys(_words(run.varied[key]) for run in sweep.runs)) for key in keys}
    if not values:
        return None
    shown = {
        key: given[:40] + ([f"… {len(given)} in all"] if len(given) > 40 else [])
        for key, given in values.items()
    }
    return Section("axes", "What varies", facts(shown))


def _provenance(sweep: Sweep) -> Section:
    plain = dict(sweep.provenance)
    command = plain.pop("command_line", None)
    computed = sorted(Counter(run.group for run in sweep.runs).values())
    groups = {
        "runs": len(sweep.runs),
        "groups computed together": len(computed),
        "x64": sweep.x64,
        "seeds": sweep.seeds,
    }
    files = [f"runs/{run.id}/{NAME}: {run.label}" for run in sweep.runs[:MOST_ROWS]]
    return Section(
        "provenance",
        "Provenance",
        [
            element("pre", element("code", " ".join(map(str, command))), tabindex=0) if command else None,
            facts(groups | {"versions": plain.pop("versions", None) or {}}),
            folded(
                "Commit, device, flags",
                facts({key: value for key, value in plain.items() if value is not None}),
            ),
            folded(
                "Folders: decentral report makes the page of each",
                element("ul", [element("li", file) for file in files]),
            ),
        ],
    )


def _plot(points: Sequence[_Point], keys: Sequence[str]) -> dict[str, Any]:
    """What ``charts.js`` draws of a sweep."""
    axes: dict[str, dict[str, Any]] = {}
    places: dict[str, dict[Any, int]] = {}
    for key in keys:
        given = [point.run.varied[key] for point in points]
        numeric = all(
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            for value in given
        )
        values: list[Any] = sorted(set(given)) if numeric else list(dict.fromkeys(map(_words, given)))
        places[key] = {value: place for place, value in enumerate(values)}
        log = numeric and values[0] > 0 and values[-1] >= 8 * values[0]
        axes[key] = {"values": values, "numeric": numeric, "log": log}
    recorded = dict.fromkeys(metric for point in points for metric in point.metrics)
    names = [name for name in recorded if name not in AXES or name == "updates"]
    if len(points) > MOST_POINTS:
        names = [name for name in names if name in SHOWN] or names
    metrics = {}
    for name in names:
        found = [
            p.metrics[name]["mean"]
            for p in points
            if name in p.metrics and p.metrics[name]["mean"] is not None
        ]
        if found:
            metrics[name] = about_metric(name, [np.array(found, float)])
    metric = next((name for name in ("suboptimality", "loss") if name in metrics), next(iter(metrics)))
    looks = styles({point.algorithm for point in points})
    return {
        "axes": axes,
        # What has most values makes the best line.
        "axis": max(keys, key=lambda key: (axes[key]["numeric"], len(axes[key]["values"]))),
        "metric": metric,
        "metrics": metrics,
        "algorithms": [
            {"name": name, "colour": look["color"], "dash": dash_of(look["linestyle"])} for name, look in looks.items()
        ],
        "points": [
            {
                "algorithm": point.algorithm,
                "at": {
                    key: places[key][value if axes[key]["numeric"] else _words(value)]
                    for key, value in point.run.varied.items()
                },
                "metrics": {
                    name: numbers(np.array([point.metrics[name]["mean"], point.metrics[name]["half_width"]], float))
                    for name in metrics
                    if name in point.metrics
                },
            }
            for point in points
        ],
    }  # fmt: skip


def _without_none(value: Any) -> Any:
    """TOML has no null."""
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
