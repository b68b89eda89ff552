"""Plots of metrics against time or cost: the mean over the seeds in a band of its confidence interval.

Figures are made without pyplot and without touching matplotlib's settings or backend. A file is written under a
temporary name and renamed, and the same data give the same bytes.
"""

from __future__ import annotations

import itertools
import os
import re
import textwrap
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from decentral.analysis.statistics import mean_interval, one_copy
from decentral.errors import InvalidInput, suggest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from decentral.analysis.shown import ShownFigure

Results = Mapping[str, Mapping[str, ArrayLike]]
"""Algorithm -> metric -> array ``(seeds, records)``."""

AXES = {
    "time_s": "simulated time (s)",
    "gradients": "gradients",
    "exchanges": "exchanges",
    "samples": "samples",
    "updates": "updates",
    "messages": "messages",
    "bytes": "bytes sent",
}
"""What a metric can be drawn against: name -> axis label."""

METRICS = {
    "loss": ("Loss of the averaged model", r"$f(\bar{x})$"),
    "loss_workers": ("Loss of the workers", "mean of $f(x_i)$"),
    "loss_worst": ("Loss of the worst worker", "max of $f(x_i)$"),
    "suboptimality": ("Suboptimality of the averaged model", r"$f(\bar{x}) - f(x^{*})$"),
    "distance_to_optimum": ("Distance to the optimum", r"mean of $\|x_i - x^{*}\|^2$"),
    "consensus_distance": ("Consensus distance", r"mean of $\|x_i - \bar{x}\|^2$"),
    "consensus_distance_stored": ("Consensus distance, as stored", r"mean of $\|x_i - \bar{x}\|^2$"),
    "train_accuracy": ("Training accuracy", "accuracy"),
    "test_accuracy": ("Test accuracy", "accuracy"),
    "test_accuracy_workers": ("Test accuracy of the workers", "mean accuracy"),
    "test_accuracy_worst": ("Test accuracy of the worst worker", "lowest accuracy"),
}
"""Metric -> title of its panel, and what its axis shows. Another metric is drawn under its own name."""

# The petroff10 cycle, told apart with any colour vision (Petroff, Accessible color sequences for data visualization,
# arXiv 2107.02270), the stronger colours first.
_BLUE, _RED, _PURPLE = "#3f90da", "#bd1f01", "#832db6"
_ORANGE, _YELLOW, _SLATE, _BROWN, _SKY, _KHAKI, _GREY = _OTHERS = (
    "#e76300", "#ffa90e", "#717581", "#a96b59", "#92dadd", "#b9ac70", "#94a4a2"
)  # fmt: skip
_DASHED = (0, (4, 1.5))
_LINES = ("-", _DASHED, (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
"""Solid, dashed, dotted, dash-dotted: ten colours are not enough."""
_FIXED = {
    "gossip": (_BLUE, "-"),
    "a2cid2": (_RED, "-"),
    "dadao": (_PURPLE, "-"),
    "sgd": (_SLATE, "-"),
    "adpsgd": (_ORANGE, "-"),
    "dpsgd": (_YELLOW, "-"),
    "localsgd": (_BROWN, "-"),
    "sgp": (_SKY, "-"),
    "choco": (_KHAKI, "-"),
    "diloco": (_GREY, "-"),
    "noloco": (_PURPLE, _DASHED),
    "eventtriggered": (_RED, _DASHED),
    "continuized": (_BLUE, _DASHED),
    "msda": (_ORANGE, _DASHED),
    "adom": (_YELLOW, _DASHED),
    "extra": (_BROWN, _DASHED),
    "gradienttracking": (_SLATE, _DASHED),
    "d2": (_KHAKI, _DASHED),
    "acco": (_ORANGE, _LINES[2]),
    "dpu": (_BLUE, _LINES[2]),
    "wp": (_PURPLE, _LINES[2]),
    "petra": (_RED, _LINES[2]),
    "dfa": (_YELLOW, _LINES[2]),
    "monitored": (_SKY, _LINES[2]),
    "faulty": (_KHAKI, _LINES[2]),
}
"""Colour and line of the shipped algorithms, by their names without what is neither a letter nor a digit."""

STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "mathtext.fontset": "dejavusans",
    "text.usetex": False,
    "font.size": 9,
    "text.color": "#262626",
    "axes.labelcolor": "#262626",
    "axes.edgecolor": "#8c8c8c",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.xmargin": 0.01,
    "grid.color": "#e8e8e8",
    "ytick.minor.size": 1.5,
    "xtick.color": "#8c8c8c",
    "ytick.color": "#8c8c8c",
    "xtick.labelcolor": "#404040",
    "ytick.labelcolor": "#404040",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "svg.hashsalt": "decentral",
    # TrueType: conferences refuse Type 3 fonts.
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
}
"""What all figures of the package look like: matplotlib's settings, for ``matplotlib.rc_context``."""

WIDTHS_IN = {
    "icml": (3.25, 6.75),
    "neurips": (5.5, 5.5),
    "iclr": (5.5, 5.5),
    "jmlr": (6.0, 6.0),
    "ieee": (3.5, 7.16),
}
"""Venue -> inches of a column and of the whole text (recalled from the venues' LaTeX styles)."""

_THIN = 0.8
_METADATA = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


def styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A colour and a line per algorithm, the same in every figure: ``{"color": ..., "linestyle": ...}`` for matplotlib.

    The shipped ones have theirs, however they are spelled (``"d-psgd"`` is ``"dpsgd"``). Another name has a colour of its
    own, solid, as long as there is one; two of them may want the same, and then the second one in alphabetical order takes
    the next free one. With more than ten, colours come again with another line.

    Args:
        names: the algorithms of one figure.
    """
    names = sorted(set(names))
    taken: dict[str, tuple[str, Any]] = {}
    for name in names:
        wanted = _FIXED.get(re.sub("[^a-z0-9]", "", name.lower()))
        if wanted and wanted not in taken.values():
            taken[name] = wanted
    for name in names:
        if name in taken:
            continue
        start = zlib.crc32(name.encode()) % len(_OTHERS)
        wheel = (*_OTHERS[start:], *_OTHERS[:start], _BLUE, _RED, _PURPLE)
        looks = [(colour, line) for line in _LINES for colour in wheel]
        fresh = (look for look in looks if look[0] not in {colour for colour, _ in taken.values()})
        free = (look for look in looks if look not in taken.values())
        taken[name] = next(itertools.chain(fresh, free), looks[0])
    return {name: dict(zip(("color", "linestyle"), taken[name], strict=True)) for name in names}


def colours(names: Iterable[str]) -> dict[str, str]:
    """The colours of :func:`styles`: with more than ten algorithms some repeat."""
    return {name: look["color"] for name, look in styles(names).items()}


def paper_style(
    venue: str, *, whole_text: bool = False, height: float = 0.62
) -> tuple[tuple[float, float], dict[str, Any]]:
    """Size and settings of a figure that goes into a paper without being scaled.

    Args:
        venue: a key of :data:`WIDTHS_IN`.
        whole_text: as wide as the text, not as one of its columns.
        height: as a share of the width.

    Returns:
        ``(figsize, settings)``: inches, and :data:`STYLE` with letters of 7 to 9 points, for ``matplotlib.rc_context``.

    Example:
        >>> figsize, settings = paper_style("icml")
        >>> figsize
        (3.25, 2.015)
    """
    if venue not in WIDTHS_IN:
        raise InvalidInput("venue", venue, "a venue", suggest(venue, WIDTHS_IN))
    width = WIDTHS_IN[venue][whole_text]
    settings = STYLE | {
        "font.size": 8,
        "axes.titlesize": 9,
        "axes.labelsize": 8,
        "axes.titlepad": 5,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "legend.fontsize": 7,
        "legend.title_fontsize": 8,
        "lines.linewidth": 1.3,
        "lines.markersize": 4,
    }
    return (width, width * height), settings


def plot_metric(
    results: Results,
    metric: str,
    x: str = "time_s",
    *,
    title: str = "",
    time_label: str = AXES["time_s"],
    level: float = 0.95,
) -> ShownFigure:
    """One metric of every algorithm: the mean over the seeds, in a band of its confidence interval.

    Args:
        results: algorithm -> metric -> array ``(seeds, records)``; one without this metric is left out.
        metric: the metric to draw.
        x: what to draw it against, a key of :data:`AXES`.
        title: of the figure.
        time_label: the label of the time axis.
        level: the confidence level of the bands.

    Returns:
        A figure that a notebook shows and pyplot does not know; :func:`save_figure` writes it.
    """
    return _draw(results, [(x, [metric])], title, time_label, level)


def overview_figure(
    results: Results,
    *,
    x: str = "time_s",
    title: str = "",
    time_label: str = AXES["time_s"],
    level: float = 0.95,
) -> ShownFigure:
    """A comparison in up to four panels.

    The panels are, of what the results hold: suboptimality or else loss; consensus distance; test accuracy of the
    averaged model and of the worst worker, or else the distance to the optimum. Where no algorithm has more than one copy
    of the parameters there is no consensus to show: the loss stands against samples and against updates too.

    Args:
        results: algorithm -> metric -> array ``(seeds, records)``.
        x: what to draw the metrics against, a key of :data:`AXES`.
        title: of the figure.
        time_label: the label of the time axis.
        level: the confidence level of the bands.

    Returns:
        A figure as :func:`plot_metric` gives one.

    Raises:
        InvalidInput: the results hold none of these metrics, or not ``x``.
    """
    there = {metric for metrics in results.values() for metric in metrics}
    quality: list[list[str]] = [["suboptimality"], ["loss"]]
    accuracy = [["test_accuracy", "test_accuracy_worst"], ["distance_to_optimum"], ["train_accuracy"]]
    choices = [(x, quality), (x, [["consensus_distance"]]), (x, accuracy)]
    if all(one_copy(metrics) for metrics in results.values()):
        there -= {"consensus_distance", "test_accuracy_worst"}
        if x == "time_s":
            choices = [(x, quality), ("samples", quality), ("updates", quality), (x, accuracy)]
    panels = [
        (against, [metric for metric in found if metric in there])
        for against, choice in choices
        if (found := next((metrics for metrics in choice if metrics[0] in there), None))
    ]
    if not panels:
        raise InvalidInput(
            "results", sorted(there), "at least one metric of an overview: loss, test_accuracy, ..."
        )
    return _draw(results, panels, title, time_label, level)


def plot_overview(
    results: Results,
    path: str | os.PathLike[str],
    *,
    x: str = "time_s",
    title: str = "",
    time_label: str = AXES["time_s"],
    level: float = 0.95,
) -> Path:
    """Write :func:`overview_figure` to a file.

    Args:
        results: algorithm -> metric -> array ``(seeds, records)``.
        path: a PNG, PDF or SVG file; one that exists is replaced.
        x: what to draw the metrics against, a key of :data:`AXES`.
        title: of the figure.
        time_label: the label of the time axis.
        level: the confidence level of the bands.

    Returns:
        The path of the file.
    """
    return save_figure(overview_figure(results, x=x, title=title, time_label=time_label, level=level), path)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as PNG, PDF or SVG, under a temporary name first; the same figure gives the same bytes.

    Args:
        figure: what to write.
        path: the file; one that exists is replaced.
    """
    import matplotlib

    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    if kind not in _METADATA:
        raise InvalidInput("path", str(path), "a name ending in .png, .pdf or .svg")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with matplotlib.rc_context(STYLE):
            figure.savefig(temporary, format=kind, dpi=200, metadata=_METADATA[kind])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _draw(
    results: Results, panels: Sequence[tuple[str, Sequence[str]]], title: str, time_label: str, level: float
) -> ShownFigure:
    """One panel per ``(what to draw against, metrics)``; the lines of the second metric are thin."""
    import matplotlib
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter

    from decentral.analysis.shown import ShownFigure

    for x, _ in panels:
        if x not in AXES:
            raise InvalidInput("x", x, "an axis", suggest(x, AXES))
    looks = styles(results)
    notes: dict[str, None] = {}  # a set that keeps its order
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08, wspace=0.04)
    with matplotlib.rc_context(STYLE):
        figure = ShownFigure(figsize=(0.6 + 3.7 * len(panels), 3.7), layout=layout)
        one_axis = len({x for x, _ in panels}) == 1
        row = figure.subplots(1, len(panels), sharex=one_axis, squeeze=False)[0]
        for axes, (x, metrics) in zip(row, panels, strict=True):
            _panel(axes, results, metrics, x, looks, level, notes)
            axes.set_xlabel(time_label if x == "time_s" else AXES[x])
            if x != "time_s":
                axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        handles = [Line2D([], [], label=name, **looks[name]) for name in results]
        if any(len(metrics) > 1 for _, metrics in panels):
            handles += [
                Line2D([], [], color="#262626", label="accuracy of the averaged model"),
                Line2D([], [], color="#262626", linewidth=_THIN, label="of the worst worker"),
            ]
        width = figure.get_figwidth()  # inches; a handle needs about 0.6, a letter 0.08
        widths = [0.6 + 0.08 * len(str(handle.get_label())) for handle in handles]
        columns = len(handles) if sum(widths) < width else max(1, int(width / max(widths)))
        figure.legend(
            handles=handles, loc="outside upper left", ncols=columns, title=title or None,
            title_fontproperties={"size": 11, "weight": "bold"}, alignment="left",
        )  # fmt: skip
        seeds = {
            np.atleast_2d(metrics[metric]).shape[0]
            for metrics in results.values() for _, panel in panels for metric in panel if metric in metrics
        }  # fmt: skip
        caption = [_caption_of_seeds(seeds, level), *notes]
        figure.supxlabel(
            textwrap.fill(" ".join(caption), width=int(18 * width)),
            x=0.01, ha="left", fontsize=7.5, color="#6b6b6b", linespacing=1.4,
        )  # fmt: skip
    return figure


def _caption_of_seeds(seeds: set[int], level: float) -> str:
    if seeds == {1}:
        return "One seed: no interval."
    number = " to ".join(str(number) for number in sorted({min(seeds), max(seeds)}))
    return f"Mean of {number} seeds; band: {100 * level:g} % interval of the mean (Student's t)."


def _panel(
    axes: Axes,
    results: Results,
    metrics: Sequence[str],
    x: str,
    looks: Mapping[str, Mapping[str, Any]],
    level: float,
    notes: dict[str, None],
) -> None:
    """Draw the metrics of one panel; what the caption has to say about them goes into ``notes``."""
    there = {metric for values in results.values() for metric in values}
    curves = []  # (metric, look, x, mean, half width)
    drawn = []  # the values of all seeds
    for metric, (name, values) in ((metric, entry) for metric in metrics for entry in results.items()):
        if metric not in values:
            continue
        if x not in values:
            raise InvalidInput("x", x, f"a metric that {name} recorded", suggest(x, values))
        horizontal, vertical = np.broadcast_arrays(
            *(np.atleast_2d(np.asarray(values[key], np.float64)) for key in (x, metric))
        )
        finite = np.flatnonzero((np.isfinite(horizontal) & np.isfinite(vertical)).all(axis=0))
        if not np.isfinite(vertical[:, -1]).all():
            notes["A line ends where a seed has no finite value."] = None
        if np.any(horizontal[:, finite] != horizontal[:1, finite]):
            notes[f"{AXES[x].capitalize()}: mean over the seeds."] = None
        drawn.append(vertical[:, finite].ravel())
        mean, half_width = mean_interval(vertical[:, finite], level=level)
        curves.append((metric, looks[name], horizontal[:, finite].mean(axis=0), mean, half_width))
    if not curves:
        raise InvalidInput("metric", metrics[0], "a metric that was recorded", suggest(metrics[0], there))

    accuracy = "accuracy" in metrics[0]
    values = np.concatenate(drawn)
    positive = values[values > 0]
    # Some zeros are no reason against a log axis: workers that start equal have no consensus distance at time 0.
    log = bool(not accuracy and positive.size > values.size / 2 and positive.max() > 10 * positive.min())
    floor = -np.inf
    if log:
        axes.set_yscale("log")
        least = positive.min()
        if (
            "consensus" in metrics[0]
        ):  # what rounding leaves of an exact average would press everything else together
            least = max(least, 1e-3 * np.percentile(positive, 5))
        floor = least * (least / positive.max()) ** 0.05
        if positive.size < values.size:
            notes["Values that are zero or negative are not on a log axis."] = None
    for metric, look, horizontal, mean, half_width in curves:
        lower = mean - half_width
        if (lower < floor).any():
            notes["A band that reaches below a log axis is cut there."] = None
        second = metric != metrics[0]
        width: dict[str, Any] = {"linewidth": _THIN} if second else {}
        axes.plot(
            horizontal, np.where(mean > 0, mean, np.nan) if log else mean,
            marker="o" if mean.size == 1 else None, **look, **width,
        )  # fmt: skip
        if not np.isnan(half_width).all():
            axes.fill_between(
                horizontal, np.maximum(lower, floor), np.maximum(mean + half_width, floor),
                color=look["color"], alpha=0.1 if second else 0.2, linewidth=0,
            )  # fmt: skip
    if log:
        axes.set_ylim(bottom=floor)
    if "consensus" in metrics[0]:
        notes["A lower consensus distance means closer workers, not a better model."] = None
    if accuracy:
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g} %")
        bottom, top = axes.get_ylim()
        late = min(mean[mean.size // 2 :].min(initial=1) for *_, mean, _ in curves)
        if bottom < 2 * late - top:  # the ascent would press everything else together
            bottom = 2 * late - top
            notes["The axis of the accuracy starts above its first values."] = None
        axes.set_ylim(max(bottom, 0), min(top, 1.005))
    panel_title, label = METRICS.get(metrics[0], (metrics[0], ""))
    axes.set_title(panel_title)
    axes.set_ylabel(label)
