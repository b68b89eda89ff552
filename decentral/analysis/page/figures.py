"""What the figures of a page are drawn from: curves with their intervals, as plain data for ``charts.js``, and bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from decentral.analysis.cost_plots import COLOURS
from decentral.analysis.meta_loss import moving_mean
from decentral.analysis.page import Markup, element, numbers
from decentral.analysis.plots import AXES, METRICS, styles
from decentral.analysis.statistics import mean_interval, one_copy

NUMBERS = 120_000
"""Numbers of curves on one page; beyond, records are left out evenly."""

FEWEST_RECORDS = 50

WORDS = {
    "loss": "f(x̄)",
    "loss_workers": "mean of f(xᵢ)",
    "loss_worst": "max of f(xᵢ)",
    "suboptimality": "f(x̄) − f(x*)",
    "distance_to_optimum": "mean of ‖xᵢ − x*‖²",
    "consensus_distance": "mean of ‖xᵢ − x̄‖²",
    "consensus_distance_stored": "mean of ‖xᵢ − x̄‖²",
    "train_accuracy": "accuracy",
    "test_accuracy": "accuracy",
    "test_accuracy_workers": "mean accuracy",
    "test_accuracy_worst": "lowest accuracy",
}
"""What the axis of a metric shows, in letters that need no typesetting."""


def curves_of(results: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """What ``charts.js`` draws of a run: the mean over the seeds with its interval, of every metric against every axis.

    Args:
        results: algorithm -> metric -> ``(seeds, records)``.
    """
    metrics = list(dict.fromkeys(name for values in results.values() for name in values if name not in AXES))
    axes = [axis for axis in AXES if any(axis in values for values in results.values())]
    copies = not all(one_copy(values) for values in results.values())
    usual = [
        ("suboptimality", "loss"),
        ("consensus_distance",) if copies else ("loss",),
        ("test_accuracy", "distance_to_optimum", "train_accuracy"),
    ]
    panels = [next((name for name in choice if name in metrics), None) for choice in usual]
    panels = list(dict.fromkeys(name for name in panels if name)) or metrics[:1]
    records = max(values[metrics[0]].shape[1] if metrics[0] in values else 1 for values in results.values())
    per_record = 2 * (len(metrics) + len(axes)) * len(results)
    most = max(FEWEST_RECORDS, NUMBERS // max(1, per_record))
    looks = styles(results)
    lines = []
    for name, values in results.items():
        there = next(iter(values.values())).shape[1]
        chosen = np.unique(np.linspace(0, there - 1, min(there, most)).round().astype(int))
        measured = {}
        for metric in metrics:
            if metric in values:
                mean, half = mean_interval(values[metric][:, chosen])
                measured[metric] = {"mean": numbers(mean), "half": numbers(half)}
        lines.append(
            {
                "name": name,
                "colour": looks[name]["color"],
                "dash": dash_of(looks[name]["linestyle"]),
                "axes": {
                    axis: numbers(values[axis][:, chosen].mean(axis=0)) for axis in axes if axis in values
                },
                "metrics": measured,
            }
        )
    return {
        "axis": axes[0],
        "axes": {axis: AXES[axis] for axis in axes},
        "metrics": {metric: about_metric(metric, [v[metric] for v in results.values() if metric in v]) for metric in metrics},
        "panels": panels,
        "lines": lines,
        "left_out": bool(records > most),
        "seeds": max(next(iter(values.values())).shape[0] for values in results.values()),
    }  # fmt: skip


def title_of(metric: str) -> str:
    """What a metric is called."""
    return METRICS[metric][0] if metric in METRICS else metric.replace("_", " ")


def about_metric(metric: str, values: Sequence[np.ndarray]) -> dict[str, Any]:
    """How a metric is drawn: its words, whether on a log axis and from where.

    Args:
        metric: its name.
        values: of every algorithm.
    """
    finite = np.concatenate([np.ravel(each)[np.isfinite(np.ravel(each))] for each in values])
    positive, percent = finite[finite > 0], "accuracy" in metric
    log = bool(not percent and positive.size > finite.size / 2 and positive.max() > 10 * positive.min())
    floor = None
    if (
        log and "consensus" in metric
    ):  # what rounding leaves of an exact average would press everything else together
        floor = float(max(positive.min(), 1e-3 * np.percentile(positive, 5)))
    label = WORDS.get(metric, metric.replace("_", " "))
    return {"title": title_of(metric), "label": label, "percent": percent, "log": log, "floor": floor}


def dash_of(line: Any) -> str | None:
    """Matplotlib's line style as SVG's."""
    if isinstance(line, str):
        return None
    return " ".join(f"{2 * part:g}" for part in line[1])


def series_of(losses: np.ndarray, tasks: Sequence[str]) -> dict[str, Any]:
    """What ``charts.js`` draws of a meta-training.

    Args:
        losses: ``(steps, tasks)``.
        tasks: their names.
    """
    labels = [name if tasks.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(tasks, 1)]
    looks = styles(labels)
    chosen = np.unique(np.linspace(0, len(losses) - 1, min(len(losses), 2000)).round().astype(int))
    lines = [
        {"name": label, "colour": looks[label]["color"], "dash": dash_of(looks[label]["linestyle"]),
         "x": (chosen + 1).tolist(), "y": numbers(moving_mean(series)[chosen]), "half": [None] * chosen.size}
        for label, series in zip(labels, losses.T.astype(float), strict=True)
    ]  # fmt: skip
    finite = losses[np.isfinite(losses)]
    log = bool(finite.size and finite.min() > 0 and finite.max() > 10 * finite.min())
    return {
        "title": "Meta-loss",
        "xLabel": "outer steps",
        "yLabel": "mean loss of a window",
        "log": log,
        "lines": lines,
    }


def step_bars(parts: Mapping[str, Mapping[str, float]], words: Mapping[str, str]) -> Markup:
    """A bar for each algorithm: the seconds of its step, by where they go; every part is named where the pointer rests.

    Args:
        parts: algorithm -> part -> seconds.
        words: part -> what it is called, in the order of the bar.
    """
    totals = {name: sum(of.values()) for name, of in parts.items()}
    longest = max(totals.values())
    left, wide, high = 8 * max(map(len, parts)) + 10, 620, 30
    drawn: list[Markup] = []
    for place, (name, of) in enumerate(parts.items()):
        y, at = place * high + 4, float(left)
        drawn.append(element("text", name, x=0, y=y + 16))
        for part, label in words.items():
            width = wide * of.get(part, 0.0) / longest
            if width > 0.2:
                title = f"{name}, {label}: {of[part]:.4g} s, {100 * of[part] / totals[name]:.1f} %"
                drawn.append(
                    element("rect", element("title", title), x=f"{at:.1f}", y=y, width=f"{width:.1f}", height=high - 8,
                            fill=COLOURS[part])
                )  # fmt: skip
            at += width
        drawn.append(element("text", f"{totals[name]:.3g} s", x=f"{at + 6:.1f}", y=y + 16))
    shown = [
        part for part in words if any(of.get(part, 0) > 2e-3 * totals[name] for name, of in parts.items())
    ]
    keys = [
        element(
            "span",
            element("svg", element("rect", width=26, height=10, fill=COLOURS[part]), viewBox="0 0 26 10"),
            " ",
            words[part],
        )
        for part in shown
    ]
    size = f"0 0 {left + wide + 90} {high * len(parts) + 4}"
    label = "; ".join(f"{name}: {total:.3g} s" for name, total in totals.items())
    svg = element(
        "svg", drawn, viewBox=size, class_="bars", role="img", aria_label=f"Seconds of a step. {label}"
    )
    return Markup(element("figure", svg, element("div", keys, class_="legend")))
