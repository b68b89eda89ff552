"""The figure of a coordinate check: how much each layer's outputs moved, against the width."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from decentral.analysis.plots import STYLE, save_figure
from decentral.errors import InvalidInput

if TYPE_CHECKING:
    from decentral.analysis.shown import ShownFigure


class Coordinates(Protocol):
    """What is drawn: a ``decentral.experiment.coordinates.CoordinateCheck``."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Their names."""
        ...

    @property
    def widths(self) -> tuple[int, ...]:
        """Increasing."""
        ...

    @property
    def steps(self) -> tuple[int, ...]:
        """Increasing."""
        ...

    @property
    def change(self) -> np.ndarray:
        """(widths, steps, seeds, layers)."""
        ...

    def slopes(self, step: int | None = None) -> dict[str, tuple[float, float]]:
        """{layer: (slope, half width of its interval)}."""
        ...


def plot_coordinate_check(
    checks: Mapping[str, Coordinates],
    path: str | os.PathLike[str],
    *,
    step: int | None = None,
    title: str = "Coordinate check",
) -> Path:
    """A panel for each check: the change of every layer's outputs against the width, both logarithmic, lines through the medians.

    Every seed is a point. A layer that did not move has no point. The legend has the slopes, with 95 % intervals over seeds.

    Args:
        checks: title of the panel -> check.
        path: the file, ending in .png, .pdf or .svg.
        step: after which of their steps; the last one by default.
        title: of the figure.

    Raises:
        InvalidInput: no checks, or none measured after this step; another kind of file.
    """
    if not checks:
        raise InvalidInput("checks", dict(checks), "at least one coordinate check")
    return save_figure(coordinate_figure(checks, step=step, title=title), path)


def coordinate_figure(
    checks: Mapping[str, Coordinates], *, step: int | None = None, title: str = "Coordinate check"
) -> ShownFigure:
    """As ``plot_coordinate_check``, not written."""
    import matplotlib

    from decentral.analysis.shown import ShownFigure

    columns = 2 if len(checks) == 4 else min(len(checks), 3)
    rows = -(-len(checks) // columns)
    with matplotlib.rc_context(STYLE):
        figure = ShownFigure(figsize=(1.0 + 3.9 * columns, 0.6 + 3.6 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
        colour = matplotlib.colormaps["viridis"]
        for axes, (name, check) in zip(panels.flat, checks.items(), strict=False):
            shown = check.steps[-1] if step is None else step
            slopes = check.slopes(shown)
            values = check.change[:, check.steps.index(shown)]
            values = np.where(np.isfinite(values) & (values > 0), values, np.nan)
            for k, layer in enumerate(check.layers):
                look = {"color": colour(0.9 * k / max(len(check.layers) - 1, 1))}
                slope, half = slopes[layer]
                label = f"{layer}: {slope:+.2f}" + (f" ± {half:.2f}" if np.isfinite(half) else "")
                axes.plot(check.widths, np.median(values[..., k], axis=1), label=label, **look)
                for of_seed in values[..., k].T:
                    axes.plot(check.widths, of_seed, "o", markersize=3, alpha=0.6, **look)
            axes.set(title=f"{name}, step {shown}", xscale="log", yscale="log")
            axes.set_xticks(check.widths, list(map(str, check.widths)))
            axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
            axes.margins(x=0.04)
            axes.set_xlabel("width")
            axes.legend(title="slope of the layer", fontsize=7, title_fontsize=7)
        for axes in panels.flat[len(checks) :]:
            axes.set_axis_off()
        for axes in panels[:, 0]:
            axes.set_ylabel("standard deviation of the change")
        figure.suptitle(title)
    return figure
