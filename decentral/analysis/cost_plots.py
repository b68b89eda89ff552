"""Figures of projections: where a step's time goes, and what the layouts of a search cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from decentral.analysis.plots import STYLE
from decentral.cost.search import Candidate, pareto

if TYPE_CHECKING:
    from decentral.analysis.shown import ShownFigure

COLOURS = {
    "peak": "#3f90da",
    "ceiling": "#92dadd",
    "shape": "#b9d7ee",
    "attention": "#832db6",
    "memory-bound": "#b9ac70",
    "quantization": "#5d9e8c",
    "launches": "#d9d1a9",
    "recompute": "#94a4a2",
    "routing": "#c9a0dc",
    "bubble": "#717581",
    "tensor parallel": "#ffa90e",
    "context parallel": "#ffd27d",
    "expert parallel": "#e76300",
    "sends": "#f2b37f",
    "sharding": "#a96b59",
    "data parallel": "#c8937f",
    "optimizer": "#d8d8d8",
    "projection": "#e0a3a3",
    "between workers": "#bd1f01",
    "stragglers": "#4d4d4d",
    "data": "#7fb77e",
    "failures": "#000000",
}
"""Part of a step -> colour: blues compute, ambers inside a worker, red between workers, greys waiting."""


def breakdown_figure(
    title: str, parts: Mapping[str, Mapping[str, Any]], words: Mapping[str, str] | None = None
) -> ShownFigure:
    """One bar for each algorithm: the seconds of its step, stacked by where they go.

    Args:
        title: of the figure.
        parts: algorithm -> part -> seconds.
        words: part -> what the legend calls it, in the order of the stack; by default all by their own names.
    """
    import matplotlib

    from decentral.analysis.shown import ShownFigure

    words = {part: part for part in COLOURS} if words is None else words
    with matplotlib.rc_context(STYLE):
        figure = ShownFigure(figsize=(9.0, 1.6 + 0.55 * len(parts)), layout="constrained")
        axes = figure.add_subplot()
        totals = {name: sum(float(np.asarray(s)) for s in of.values()) for name, of in parts.items()}
        scale, unit = (1e3, "ms") if max(totals.values()) < 1 else (1.0, "s")
        shown = [
            part
            for part in words
            if any(float(np.asarray(of.get(part, 0))) > 2e-3 * totals[name] for name, of in parts.items())
        ]
        left = np.zeros(len(parts))
        for part in shown:
            widths = np.array([float(np.asarray(of.get(part, 0))) for of in parts.values()]) * scale
            axes.barh(
                range(len(parts)), widths, left=left, color=COLOURS[part], height=0.7, label=words[part]
            )
            left += widths
        for place, total in enumerate(totals.values()):
            axes.text(total * scale, place, f"  {total * scale:.3g} {unit}", va="center", fontsize=8)
        axes.set_yticks(range(len(parts)), list(parts))
        axes.set_ylim(len(parts) - 0.4, -0.6)
        axes.set_xlim(0, 1.12 * max(totals.values()) * scale)
        axes.set_xlabel(f"{unit} of a step")
        axes.grid(axis="y", visible=False)
        axes.set_title(title)
        figure.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


def pareto_figure(title: str, found: Sequence[Candidate]) -> ShownFigure:
    """All candidates of a search; those that nothing beats are ringed.

    Throughput against memory; where several numbers of devices were tried against cost, coloured by memory.
    """
    import matplotlib
    from matplotlib.ticker import LogLocator

    from decentral.analysis.shown import ShownFigure

    with matplotlib.rc_context(STYLE):
        figure = ShownFigure(figsize=(7.4, 4.6), layout="constrained")
        axes = figure.add_subplot()
        axes.set(title=title, ylabel="tokens/s")
        if not found:
            axes.text(0.5, 0.5, "no legal layout fits", ha="center", transform=axes.transAxes)
            return figure
        several = len({one.devices for one in found}) > 1

        def place(one: Candidate) -> tuple[float, float]:
            return (one.device_s / 3600 if several else one.memory_bytes / 1e9), one.tokens_per_s

        points = np.array([place(one) for one in found])
        if several:
            memory = [one.memory_bytes / 1e9 for one in found]
            dots = axes.scatter(*points.T, c=memory, s=14, cmap="viridis", linewidths=0)
            figure.colorbar(dots, ax=axes, label="memory of the fullest device (GB)")
            axes.set(xscale="log", yscale="log", xlabel="device-hours per million tokens")
            for axis, words in ((axes.xaxis, "{x:g}"), (axes.yaxis, "{x:,.0f}")):
                axis.set_major_formatter(words)
                axis.set_minor_locator(LogLocator(subs=(2, 5)))
                axis.set_minor_formatter(words)
        else:
            axes.scatter(*points.T, s=14, color="#92b4d4", linewidths=0, label="legal layouts that fit")
            axes.set(xlabel="memory of the fullest device (GB)", ylim=(0, None))
        best = np.array([place(one) for one in pareto(found)])
        axes.scatter(
            *best.T,
            s=46,
            facecolors="none",
            edgecolors="#bd1f01",
            linewidths=1.2,
            label="nothing is better in all",
        )
        axes.legend(loc="best", fontsize=8)
    return figure
