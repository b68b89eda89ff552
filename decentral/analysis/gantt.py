"""A chart of a run's time: who computed and communicated when, how busy, how stale, and what went over each link."""

from __future__ import annotations

import dataclasses
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from decentral.analysis.pipeline import BACKWARD, FORWARD, changes_of
from decentral.analysis.plots import _BLUE, _OTHERS, _PURPLE, _RED, STYLE, save_figure
from decentral.analysis.timeline import (
    SERVER,
    Activity,
    Intervals,
    Outcome,
    Served,
    Traffic,
    Utilisation,
    activity,
    bytes_per_link,
    served,
    staleness,
    utilisation,
)
from decentral.engine.trace import REDUCTIONS, Trace
from decentral.errors import InvalidInput

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from decentral.analysis.shown import ShownFigure

_COMPUTE, _COMMUNICATION, _LOST, _IDLE, _GREY = _BLUE, _OTHERS[1], _RED, "#dcdcdc", "#6b6b6b"
_GRADIENTS_OF_SLOWEST, _GRADIENTS_OF_FASTEST = 12, 24
FRAMES = "#3f7f3f"
_MOST_UNITS = 8
_MOST_WORKERS, _MOST_LINES, _MOST_BARS, _MOST_CELLS = 32, 200, 32, 64


def gantt_figure(
    trace: Trace,
    *,
    until_s: float | None = None,
    workers: Sequence[int] | None = None,
    title: str = "",
    message_bytes: float | None = None,
    model_bytes: float | None = None,
) -> ShownFigure:
    """The first seconds of a run, and a summary of the whole of it.

    Above: bars for what workers computed and communicated at the beginning, and beside them how they spent the whole run; under
    them up to 8 optical units, if there are any.
    Below, of the whole run: staleness of the gradients, and what was sent over each link.

    Args:
        trace: of several replicas the first one is drawn.
        until_s: end of the bars; by default 12 gradients of the slowest worker, or 24 of the fastest if that is earlier.
        workers: whose bars; by default all up to 32, else 32 evenly between the slowest and the fastest.
        title: of the figure.
        message_bytes: bytes of a message; without it links are counted in messages.
        model_bytes: bytes of what goes to and from a server and through a ``step``; as a message by default.

    Returns:
        A figure that a notebook shows and pyplot does not know; :func:`save_figure` writes it.

    Raises:
        InvalidInput: a worker that is not there, or a time that is not positive.
    """
    import matplotlib
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from decentral.analysis.shown import ShownFigure

    notes = []
    if len(trace.replicas) > 1:
        notes.append(f"Seed {trace.replicas[0].seed}, the first of {len(trace.replicas)}.")
    trace = trace.replica(0)
    done, gradients = activity(trace), trace.gradients_of_workers
    if until_s is None:
        until_s = window_s(done, gradients)
    elif not 0 < until_s < np.inf:
        raise InvalidInput("until_s", until_s, "seconds > 0")
    until_s = min(until_s, trace.horizon_s) or 1.0
    drawn, note = chosen_workers(workers, gradients)
    notes.append(note)
    frames = served(trace)
    units = min(_MOST_UNITS, int(frames.worker.max(initial=-1)) + 1)
    rows = len(drawn) + units
    height = min(0.32, 6.4 / rows) * rows
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.09, wspace=0.02, hspace=0.03)
    with matplotlib.rc_context(STYLE):
        figure = ShownFigure(figsize=(10.5, 4.6 + height), layout=layout)
        grid = figure.add_gridspec(2, 8, height_ratios=(0.5 + height, 2.6))
        bars = figure.add_subplot(grid[0, :6])
        shares = figure.add_subplot(grid[0, 6:], sharey=bars)
        lanes = lanes_of(trace, done)
        _bars(bars, done.n_workers, lanes, drawn, until_s, done.horizon_s)
        notes.append(_messages(bars, trace, done, drawn, until_s))
        ends_only = any(
            op.instruction in ("gradient", "evaluate", *REDUCTIONS, *BACKWARD) for op in trace.ops
        )
        if ends_only and trace.duration_s is not None:
            notes.append("A computation that a crash or the end of the run interrupts is not in the trace.")
        _shares(shares, utilisation(trace), drawn)
        _unit_rows(bars, shares, frames, units, drawn.size, trace.horizon_s)
        _staleness_panel(figure.add_subplot(grid[1, :4]), staleness(trace).updates, changes_of(trace))
        traffic = bytes_per_link(trace, message_bytes or 1, model_bytes)
        _links(figure.add_subplot(grid[1, 4:]), traffic, trace.n_workers, message_bytes is not None)
        figure.legend(
            handles=_legend(lanes, units > 0), loc="outside upper left", ncols=6,
            title=title or None, title_fontproperties={"size": 11, "weight": "bold"}, alignment="left",
        )  # fmt: skip
        figure.supxlabel(
            textwrap.fill(" ".join(filter(None, notes)), width=185),
            x=0.01, ha="left", fontsize=7.5, color=_GREY, linespacing=1.4,
        )  # fmt: skip
    return figure


def plot_gantt(
    trace: Trace,
    path: str | os.PathLike[str],
    *,
    until_s: float | None = None,
    workers: Sequence[int] | None = None,
    title: str = "",
    message_bytes: float | None = None,
    model_bytes: float | None = None,
) -> Path:
    """Write :func:`gantt_figure` to a file; errors and the other arguments are its own.

    Args:
        trace: of several replicas the first one is drawn.
        path: a PNG, PDF or SVG file; one that exists is replaced. The same trace gives the same bytes.
        until_s: end of the bars.
        workers: whose bars.
        title: of the figure.
        message_bytes: bytes of a message.
        model_bytes: bytes of a model.

    Returns:
        The path of the file.
    """
    figure = gantt_figure(
        trace,
        until_s=until_s,
        workers=workers,
        title=title,
        message_bytes=message_bytes,
        model_bytes=model_bytes,
    )
    return save_figure(figure, path)


def window_s(done: Activity, gradients: np.ndarray) -> float:
    """When the slowest worker that computes at all has done 12 gradients, or the fastest 24."""
    ends = [done.horizon_s]
    order = np.argsort(np.where(gradients > 0, gradients, np.iinfo(np.int64).max), kind="stable")
    for worker, number in ((order[0], _GRADIENTS_OF_SLOWEST), (np.argmax(gradients), _GRADIENTS_OF_FASTEST)):
        mine = np.sort(done.compute.end_s[done.compute.worker == worker])
        ends += [float(mine[number - 1])] if mine.size >= number else []
    return 1.02 * min(ends)


def chosen_workers(
    workers: Sequence[int] | None, gradients: np.ndarray, most: int = _MOST_WORKERS
) -> tuple[np.ndarray, str]:
    """Whose bars are drawn, and what the caption says about it."""
    n = gradients.size
    if workers is not None:
        wrong = [worker for worker in workers if not 0 <= worker < n]
        if wrong or not len(workers):
            raise InvalidInput("workers", wrong or list(workers), f"at least one worker from 0 to {n - 1}")
        return np.array(workers), ""
    if n <= most:
        return np.arange(n), ""
    order = np.argsort(gradients, kind="stable")
    drawn = order[np.linspace(0, n - 1, most).round().astype(int)]
    return drawn, (
        f"Bars of {most} of {n} workers, from the one with the fewest gradients (top) to the one with the "
        "most, evenly between."
    )


class Lane(NamedTuple):
    """What one of the two bars of a worker shows: where it is, relative to the worker's row, and what it is called."""

    part: Intervals
    colour: str
    bottom: float
    height: float
    label: str


def lanes_of(trace: Trace, done: Activity) -> list[Lane]:
    """Compute above, communication below; in a pipeline forward above and backward (or updates) below."""
    if not any(op.instruction in ("turn", "error") for op in trace.ops):
        words = "communicates (right: and does not compute)"
        return [
            Lane(done.compute, _COMPUTE, -0.4, 0.5, "computes"),
            Lane(done.communication, _COMMUNICATION, 0.13, 0.27, words),
        ]
    up = np.array([op.instruction in FORWARD for op in trace.ops])[trace.op[done.compute.event]]
    forward, backward = (
        Intervals(*(getattr(done.compute, field.name)[rows] for field in dataclasses.fields(Intervals)))
        for rows in (up, ~up)
    )
    turns = any(op.instruction == "turn" for op in trace.ops)
    words = "backward (the last stage: with forward)" if turns else "update, from the broadcast error"
    return [
        Lane(forward, _COMPUTE, -0.4, 0.38, "forward"),
        Lane(backward, _PURPLE, 0.02, 0.38, words),
    ]


def _bars(
    axes: Axes, n: int, lanes: Sequence[Lane], drawn: np.ndarray, until_s: float, horizon_s: float
) -> None:
    """A row per worker with its two bars; what takes no time is a tick."""
    row_of = np.full(n, -1)
    row_of[drawn] = np.arange(drawn.size)
    for part, colour, bottom, height, _ in lanes:
        row = row_of[part.worker]
        inside = (row >= 0) & (part.start_s <= until_s)
        width = part.end_s - part.start_s
        for lost, colour_ in ((False, colour), (True, _LOST)):
            chosen = np.flatnonzero(inside & ((part.outcome == Outcome.LOST) == lost))
            ticks, lasting = chosen[width[chosen] <= 0], chosen[width[chosen] > 0]
            # A white edge tells neighbours apart, and would hide a narrow bar.
            edges = np.where(width[lasting] > until_s / 200, 0.5, 0.0)
            axes.bar(
                part.start_s[lasting], height, width[lasting], row[lasting] + bottom, align="edge", color=colour_,
                linewidth=edges, edgecolor="white",
            )  # fmt: skip
            axes.vlines(
                part.start_s[ticks],
                row[ticks] + bottom,
                row[ticks] + bottom + height,
                color=colour_,
                linewidth=1,
            )
    axes.set_xlim(0, until_s)
    axes.set_ylim(drawn.size - 0.4, -0.6)
    axes.set_yticks(np.arange(drawn.size), [str(worker) for worker in drawn])
    axes.tick_params(axis="y", length=0, labelsize=min(9, 5 + 90 / drawn.size))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("simulated time (s)")
    axes.set_ylabel("worker")
    axes.set_title("The beginning of the run" if until_s < horizon_s else "The whole run")


def _messages(axes: Axes, trace: Trace, done: Activity, drawn: np.ndarray, until_s: float) -> str:
    """Lines from who sent to who received, if they are few; returns what the caption says about them.

    Those of a ``mix`` all go at once, and its bars show when.
    """
    from matplotlib.collections import LineCollection

    row_of = np.full(done.n_workers + 2, -1)  # the last two are the server and nobody
    row_of[drawn] = np.arange(drawn.size)
    sent = done.messages
    rows = np.stack([row_of[sent.sender], row_of[sent.receiver]], axis=1)
    of_group = np.array([op.is_group for op in trace.ops])[trace.op[sent.event]]
    inside = (rows >= 0).all(axis=1) & (sent.start_s <= until_s) & ~of_group
    if drawn.size < done.n_workers or not inside.any():
        return ""
    if inside.sum() > _MOST_LINES:
        return "There are too many messages to draw a line for each."
    exchanged = sent.worker != sent.sender
    arrives_s = np.where(exchanged, sent.start_s, sent.end_s)[
        inside
    ]  # both ends are busy: one line joins them
    rows = rows[inside] + 0.26
    ends = np.stack([sent.start_s[inside], rows[:, 0], arrives_s, rows[:, 1]], axis=1)
    colours = np.where(sent.outcome[inside] == Outcome.LOST, _LOST, "#404040")
    lines = LineCollection(list(ends.reshape(-1, 2, 2)), colors=list(colours), linewidths=0.7, alpha=0.7)
    axes.add_collection(lines)
    if exchanged[inside].all():
        return "A thin line joins the two workers of an exchange."
    return "A thin line leads from who sent a message, when it left, to who got it, when it arrived."


def _shares(axes: Axes, busy: Utilisation, drawn: np.ndarray) -> None:
    """How each drawn worker spent the whole run, and the mean over all workers."""
    axes.set_title("Share of the whole run")
    if not (busy.idle_share < 1).any():
        _say(axes, "nothing takes time")
        return
    compute = busy.compute_s / (busy.horizon_s or 1.0)
    waiting = np.maximum(1 - compute - busy.idle_share, 0)  # communicates and does not compute
    place = np.arange(drawn.size)
    axes.barh(place, compute[drawn], 0.72, color=_COMPUTE)
    axes.barh(place, waiting[drawn], 0.72, compute[drawn], color=_COMMUNICATION)
    axes.barh(place, busy.idle_share[drawn], 0.72, 1 - busy.idle_share[drawn], color=_IDLE)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    mean = f"mean: computing {100 * compute.mean():.3g} %,\nneither {100 * busy.idle_share.mean():.3g} %"
    axes.set_xlabel(mean)
    axes.tick_params(axis="y", labelleft=False, length=0)
    axes.grid(visible=False)


def _unit_rows(bars: Axes, shares: Axes, frames: Served, units: int, first: int, horizon_s: float) -> None:
    """A row for each optical unit under the workers': when it took frames, and its share of the whole run."""
    if not units:
        return
    until_s = bars.get_xlim()[1]
    width = np.minimum(frames.end_s, horizon_s) - frames.start_s
    mine = (frames.worker < units) & (frames.start_s <= until_s)
    row = first + frames.worker[mine]
    edges = np.where(width[mine] > until_s / 200, 0.5, 0.0)
    bars.bar(
        frames.start_s[mine], 0.6, width[mine], row - 0.3, align="edge", color=FRAMES, linewidth=edges, edgecolor="white",
    )  # fmt: skip
    busy_s = np.bincount(frames.worker, np.where(np.isfinite(width), width, 0.0), units)[:units]
    if shares.axison:
        shares.barh(first + np.arange(units), busy_s / (horizon_s or 1.0), 0.72, color=FRAMES)
    bars.axhline(first - 0.5, color=_GREY, linewidth=0.5)
    labels = [label.get_text() for label in bars.get_yticklabels()]
    bars.set_yticks(np.arange(first + units), labels + [f"unit {k}" for k in range(units)])
    bars.set_ylim(first + units - 0.4, -0.6)


def _staleness_panel(axes: Axes, updates: np.ndarray, changes: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title("Staleness of gradients")
    if not updates.size:
        _say(axes, "no gradients")
        return
    top = int(updates.max())
    wide = max(1, -(-(top + 1) // 40))  # whole numbers to a bar
    counts = np.bincount(updates // wide)
    axes.bar(
        np.arange(counts.size) * wide + (wide - 1) / 2, counts / updates.size, 0.85 * wide, color=_PURPLE
    )
    axes.axvline(updates.mean(), color="#262626", linewidth=1, linestyle=(0, (3, 1.5)))
    axes.annotate(
        f"mean {updates.mean():.3g}, 95 % at most {np.percentile(updates, 95, method='inverted_cdf'):.0f}, most {top}",
        (0.98, 0.95), xycoords="axes fraction", ha="right", va="top",
    )  # fmt: skip
    axes.set_xlim(-0.7, max(counts.size * wide, 3) - 0.3)
    axes.set_ylim(0, 1.22 * counts.max() / updates.size)
    axes.set_xlabel(f"other {changes} between reading and applying")
    axes.set_ylabel("share of gradients")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    ticks = axes.get_yticks()
    axes.set_yticks(ticks[(ticks <= 1) & (ticks <= axes.get_ylim()[1])])
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g} %")
    axes.grid(axis="x", visible=False)


def _links(axes: Axes, traffic: Traffic, n: int, in_bytes: bool) -> None:
    """A bar per link if they are few, a matrix up to 64 workers, else the loads in order of size."""
    from matplotlib.ticker import EngFormatter

    size = traffic.bytes_sent if in_bytes else traffic.messages
    lost = traffic.bytes_lost if in_bytes else traffic.lost
    name, space = ("B", " ") if in_bytes else ("", "")
    unit, rounded = (
        EngFormatter(name, sep=space),
        EngFormatter(name, places=1 if in_bytes else None, sep=space),
    )
    what = "Bytes" if in_bytes else "Messages"
    axes.set_title(f"{what} per link")
    collective = "; ".join(
        f"{each['events']} all-reduces: {rounded(each['bytes' if in_bytes else 'messages'])}"
        for each in traffic.collectives.values()
    )
    if not size.size:
        _say(axes, f"no messages between pairs\n{collective}".strip())
        return
    if collective:
        axes.set_title(f"{what} per link, and {collective}")
    names = {SERVER: "server"}
    order = np.argsort(-size, kind="stable")
    if size.size <= _MOST_BARS:
        place = np.arange(size.size)
        axes.bar(place, size[order], 0.8, color=_COMMUNICATION)
        axes.bar(place, lost[order], 0.8, color=_LOST)
        labels = [
            f"{names.get(a, a)}→{names.get(b, b)}"
            for a, b in zip(traffic.sender[order].tolist(), traffic.receiver[order].tolist(), strict=True)
        ]
        axes.set_xticks(
            place, labels, rotation=90 if size.size > 8 else 0, fontsize=9 if size.size < 16 else 7
        )
        axes.set_xlabel("from → to")
    elif n <= _MOST_CELLS and SERVER not in traffic.sender:
        _matrix(axes, traffic, size, n, unit)
        return
    else:
        axes.fill_between(np.arange(size.size + 1), [*size[order], 0], step="post", color=_COMMUNICATION)
        axes.set_xlabel(f"the {size.size} links, the busiest first")
        axes.set_xlim(0, size.size)
    axes.set_ylim(0, 1.05 * size.max())
    axes.set_ylabel(f"{what.lower()} sent")
    axes.yaxis.set_major_formatter(unit)
    axes.grid(axis="x", visible=False)


def _matrix(axes: Axes, traffic: Traffic, size: np.ndarray, n: int, unit) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator

    cells = np.full((n, n), np.nan)
    cells[traffic.sender, traffic.receiver] = size
    ramp = LinearSegmentedColormap.from_list("links", ["#fdf1d8", _COMMUNICATION, "#7a2f00"])
    image = axes.imshow(cells, cmap=ramp, vmin=0, interpolation="nearest", aspect="auto")
    bar = axes.figure.colorbar(image, ax=axes, format=unit, pad=0.02)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    axes.set_ylabel("sender")
    axes.set_xlabel("receiver")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=False)


def _say(axes: Axes, words: str) -> None:
    axes.annotate(words, (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", color=_GREY)
    axes.set_axis_off()


def _legend(lanes: Sequence[Lane], units: bool) -> list:
    from matplotlib.patches import Patch

    lost = any((lane.part.outcome == Outcome.LOST).any() for lane in lanes)
    named = [(lane.colour, lane.label) for lane in lanes] + [(FRAMES, "optical unit takes frames")] * units
    named += [(_LOST, "lost")] * bool(lost) + [(_IDLE, "neither")]
    return [Patch(color=colour, label=label) for colour, label in named]
