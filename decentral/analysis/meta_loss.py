"""The meta-loss of a learned optimizer against outer steps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from decentral.analysis.plots import STYLE, save_figure, styles

WINDOW = 20
"""Outer steps that a line is the mean over; episodes begin and end, and a single step's loss says little."""


def plot_meta_loss(
    losses: ArrayLike, tasks: Sequence[str], path: str | os.PathLike[str], *, title: str
) -> Path:
    """A line for each task: the loss of its windows, a moving mean; dots are single outer steps.

    Args:
        losses: ``(steps, tasks)``.
        tasks: their names.
        path: a PNG, PDF or SVG file.
        title: of the figure.
    """
    import matplotlib
    from matplotlib.figure import Figure

    losses = np.asarray(losses, float)
    labels = [name if tasks.count(name) == 1 else f"{name} ({k + 1})" for k, name in enumerate(tasks)]
    look = styles(labels)
    steps = np.arange(1, len(losses) + 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        axes = figure.subplots()
        for label, series in zip(labels, losses.T, strict=True):
            axes.plot(steps, series, ".", markersize=2, alpha=0.35, color=look[label]["color"])
            axes.plot(steps, moving_mean(series), label=label, **look[label])
        axes.set_title(title)
        axes.set_xlabel("outer steps")
        axes.set_ylabel("mean loss of a window")
        axes.legend()
    return save_figure(figure, path)


def moving_mean(series: np.ndarray) -> np.ndarray:
    """Over the last ``WINDOW`` values, fewer at the beginning."""
    total = np.cumsum(np.concatenate([[0.0], series]))
    ends = np.arange(1, len(total))
    starts = np.maximum(ends - WINDOW, 0)
    return (total[ends] - total[starts]) / (ends - starts)
