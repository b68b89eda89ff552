"""A trace as columns that a page can zoom into: what fits exactly, and shares of time for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from decentral.analysis.gantt import FRAMES, Lane, chosen_workers, lanes_of, window_s
from decentral.analysis.page import numbers, packed
from decentral.analysis.timeline import Intervals, Outcome, activity, served, utilisation
from decentral.engine.trace import Trace

MOST_ROWS = 128
"""Workers that are drawn; of more, so many evenly between the slowest and the fastest."""
MOST_BINS = 2048
CELLS = 600_000
"""Shares of time on one page, over all its traces: lanes x rows x bins. They pack well."""
SLICES = 120_000
"""Computations and messages on one page, over all its traces."""
SPAN = 2**32 - 2
"""Ticks of a run: times are whole numbers of them."""


class _Slices(NamedTuple):
    row: np.ndarray
    lane: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray
    label: np.ndarray
    outcome: np.ndarray


def timeline_view(trace: Trace, *, slices: int = SLICES, cells: int = CELLS) -> dict[str, Any]:
    """What ``timeline.js`` draws of one replica.

    Args:
        trace: of several replicas the first one is shown.
        slices: computations and messages that are kept one by one, the first ones of the run.
        cells: shares of time that are kept for the whole of it.

    Returns:
        Plain data: rows and lanes; ``slices`` and ``messages`` in columns, exact until ``exact_until_s``; ``shares`` of time (or
        numbers of events, where nothing takes time) in equal bins of the whole run.
    """
    replicas, trace = len(trace.replicas), trace.replica(0)
    done = activity(trace)
    horizon_s = trace.horizon_s or 1.0
    drawn, note = chosen_workers(None, trace.gradients_of_workers, MOST_ROWS)
    frames = served(trace)
    units = int(frames.worker.max(initial=-1)) + 1
    lanes, labels, table = _table(trace, lanes_of(trace, done), drawn, units, horizon_s)
    order = np.argsort(table.start_s, kind="stable")
    table = _Slices(*(column[order] for column in table))
    kept = table.start_s.size if table.start_s.size <= slices else slices
    exact_until_s = horizon_s if kept == table.start_s.size else float(table.start_s[kept])
    timed = trace.duration_s is not None
    rows = drawn.size + units
    bins = int(np.clip(cells // max(1, len(lanes) * rows), 64, MOST_BINS))
    cells_of = _shares if timed else _counts
    shares, peak = cells_of(table, len(lanes), rows, bins, horizon_s)
    busy = utilisation(trace) if timed else None
    return {
        "seed": trace.replicas[0].seed,
        "replicas": replicas,
        "workers": trace.n_workers,
        "events": len(trace),
        "horizon_s": horizon_s,
        "timed": timed,
        "begin_until_s": min(window_s(done, trace.gradients_of_workers), horizon_s) or horizon_s,
        "exact_until_s": exact_until_s,
        "note": note,
        "rows": [*map(str, drawn.tolist()), *(f"unit {unit}" for unit in range(units))],
        "lanes": [
            {"label": lane.label.partition(" (right")[0], "colour": lane.colour, "top": lane.bottom + 0.5, "height": lane.height}
            for lane in lanes
        ],
        "labels": labels,
        "slices": _packed_slices(_Slices(*(column[:kept] for column in table)), horizon_s),
        "messages": _messages(trace, done, drawn, exact_until_s, slices, horizon_s),
        "bins": bins,
        "peak": peak,
        "shares": packed(shares),
        "busy": None
        if busy is None
        else {
            "compute": numbers(busy.compute_s[drawn] / horizon_s),
            "idle": numbers(busy.idle_share[drawn]),
        },
    }  # fmt: skip


def _table(
    trace: Trace, lanes: Sequence[Lane], drawn: np.ndarray, units: int, horizon_s: float
) -> tuple[list[Lane], list[str], _Slices]:
    """All intervals of the rows that are drawn; the lane of the optical units, if there are any, is the last."""
    row_of = np.full(trace.n_workers, -1)
    row_of[drawn] = np.arange(drawn.size)
    names = [op.name.removesuffix("_commit").removesuffix("_start") for op in trace.ops]
    parts = []
    for number, lane in enumerate(lanes):
        part = lane.part
        mine = np.flatnonzero(row_of[part.worker] >= 0)
        parts.append(
            (row_of[part.worker[mine]], number, part.start_s[mine], part.end_s[mine], trace.op[part.event[mine]],
             part.outcome[mine])
        )  # fmt: skip
    lanes = list(lanes)
    if units:
        frames = served(trace)
        known = np.flatnonzero(frames.start_s < horizon_s)
        ends_s = np.minimum(frames.end_s[known], horizon_s)
        outcome = np.where(frames.end_s[known] > horizon_s, Outcome.UNDER_WAY, Outcome.DONE)
        parts.append(
            (
                drawn.size + frames.worker[known],
                len(lanes),
                frames.start_s[known],
                ends_s,
                len(names),
                outcome,
            )
        )
        none = np.zeros(0, np.int64)
        lanes.append(
            Lane(Intervals(none, none, none, none, none), FRAMES, -0.3, 0.6, "optical unit: takes frames")
        )
        names.append("frames")
    columns = zip(*(np.broadcast_arrays(*part) for part in parts), strict=True)
    return lanes, names, _Slices(*(np.concatenate(column) for column in columns))


def _packed_slices(table: _Slices, horizon_s: float) -> dict[str, Any]:
    start, length = _ticks(table.start_s, table.end_s, horizon_s)
    return {
        "count": table.row.size,
        "row": packed(table.row.astype(np.uint8)),
        "lane": packed(table.lane.astype(np.uint8)),
        "start": packed(np.diff(start, prepend=0).astype(np.uint32)),
        "length": packed(length.astype(np.uint32)),
        "label": packed(table.label.astype(np.uint8)),
        "outcome": packed(table.outcome.astype(np.uint8)),
    }


def _ticks(start_s: np.ndarray, end_s: np.ndarray, horizon_s: float) -> tuple[np.ndarray, np.ndarray]:
    start, end = (
        np.rint(np.clip(times / horizon_s, 0, 1) * SPAN).astype(np.int64) for times in (start_s, end_s)
    )
    return start, end - start


def _messages(
    trace: Trace, done: Any, drawn: np.ndarray, until_s: float, most: int, horizon_s: float
) -> dict[str, Any]:
    """Lines from who sent to who received, both drawn; those of a ``mix`` all go at once, and their bars show when."""
    row_of = np.full(done.n_workers + 2, -1)  # the last two are the server and nobody
    row_of[drawn] = np.arange(drawn.size)
    sent = done.messages
    first, second = row_of[sent.sender], row_of[sent.receiver]
    of_group = np.array([op.is_group for op in trace.ops])[trace.op[sent.event]]
    inside = np.flatnonzero((first >= 0) & (second >= 0) & (sent.start_s <= until_s) & ~of_group)
    inside = inside[np.argsort(sent.start_s[inside], kind="stable")][:most]
    exchanged = sent.worker[inside] != sent.sender[inside]  # both ends are busy: one line joins them
    ends_s = np.where(exchanged, sent.start_s[inside], sent.end_s[inside])
    start, length = _ticks(sent.start_s[inside], ends_s, horizon_s)
    return {
        "count": inside.size,
        "sender": packed(first[inside].astype(np.uint8)),
        "receiver": packed(second[inside].astype(np.uint8)),
        "start": packed(np.diff(start, prepend=0).astype(np.uint32)),
        "length": packed(length.astype(np.uint32)),
        "lost": packed((sent.outcome[inside] == Outcome.LOST).astype(np.uint8)),
    }


def _shares(table: _Slices, lanes: int, rows: int, bins: int, horizon_s: float) -> tuple[np.ndarray, float]:
    """Share of each bin's time in which a lane of a row is busy, 0 to 255; what overlaps is counted once."""
    covered = np.zeros((lanes * rows, bins + 1))  # what begins or ends inside a bin
    whole = np.zeros((lanes * rows, bins + 2))  # +1 where full bins begin, -1 where they end
    which = table.lane.astype(np.int64) * rows + table.row
    which, begin, end = _without_overlap(which, table.start_s, np.minimum(table.end_s, horizon_s))
    begin, end = begin * bins / horizon_s, end * bins / horizon_s
    first, last = begin.astype(np.int64), end.astype(np.int64)
    same = first == last
    np.add.at(covered, (which[same], first[same]), (end - begin)[same])
    over = ~same
    np.add.at(covered, (which[over], first[over]), (first + 1 - begin)[over])
    np.add.at(covered, (which[over], last[over]), (end - last)[over])
    np.add.at(whole, (which[over], first[over] + 1), 1)
    np.add.at(whole, (which[over], last[over]), -1)
    share = covered[:, :bins] + np.cumsum(whole, axis=1)[:, :bins]
    return np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8), 1.0


def _without_overlap(which: np.ndarray, start_s: np.ndarray, end_s: np.ndarray) -> tuple[np.ndarray, ...]:
    """Lane, start and end of the same intervals, each cut where one of its lane before it still lasted.

    Those of a lane come in order of their starts.
    """
    order = np.argsort(which, kind="stable")
    begin, end = start_s[order], end_s[order]
    lane = which[order]
    fresh = np.diff(lane, prepend=-1) != 0
    # A running maximum that starts again with each lane: lanes are moved apart by more than the longest run.
    apart = (end.max(initial=0.0) + 1) * np.cumsum(fresh)
    reach = np.maximum.accumulate(end + apart) - apart
    before = np.where(fresh, -np.inf, np.roll(reach, 1))
    return (
        which[order],
        np.minimum(np.maximum(begin, before), end),
        end,
    )


def _counts(table: _Slices, lanes: int, rows: int, bins: int, horizon_s: float) -> tuple[np.ndarray, float]:
    """Number of events of each bin, of the most there are in one, 0 to 255."""
    which = table.lane.astype(np.int64) * rows + table.row
    place = np.minimum((table.end_s * bins / horizon_s).astype(np.int64), bins - 1)
    found = np.bincount(which * bins + place, minlength=lanes * rows * bins).reshape(lanes * rows, bins)
    peak = int(found.max(initial=1)) or 1
    return np.ceil(255 * found / peak).astype(np.uint8), float(peak)
