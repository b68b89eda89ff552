"""When to record, and what: the policy object of ``simulate(..., record=...)``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from decentral.engine.stream import Marks, Stream
from decentral.engine.trace import Trace
from decentral.errors import InvalidInput, suggest

SPACINGS = ("linear", "log")


@dataclass(frozen=True)
class Record:
    """Record times and what is kept.

    Args:
        count: record times after the one at 0; they end at the horizon.
        spacing: ``"linear"`` in time, or ``"log"`` (from a thousandth of the horizon).
        times_s: record at these simulated seconds instead.
        events: record after these numbers of events instead; everything is then taken at the time of the last of them.
        evaluate: compute losses and accuracies; without them a record costs O(n d).
        states: keep every worker's whole state at every record time, as stored (``Result.states``).
        trace: keep the trace, and save it in the run folder. Without, events are drawn, planned and done chunk by chunk where the
            protocol can (Poisson clocks, rendezvous, mailbox; not with optical units), so that memory does not grow with
            their number, and the result has only their hash: no chart or figures of who waited for whom.
        target: the level of ``target_metric`` whose time is reported; by default the best level that every
            algorithm reaches on every seed.
        target_metric: ``"suboptimality"`` where the optimum is known, else ``"loss"``.
    """

    count: int = 100
    spacing: str = "linear"
    times_s: tuple[float, ...] | None = None
    events: tuple[int, ...] | None = None
    evaluate: bool = True
    states: bool = False
    trace: bool = True
    target: float | None = None
    target_metric: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.count, bool) or int(self.count) != self.count or self.count < 1:
            raise InvalidInput("record.count", self.count, "an integer >= 1")
        if self.spacing not in SPACINGS:
            raise InvalidInput(
                "record.spacing",
                self.spacing,
                "a spacing of record times",
                suggest(str(self.spacing), SPACINGS),
            )
        if self.times_s is not None and self.events is not None:
            raise InvalidInput("record", "times_s and events", "one of them")
        for name in ("times_s", "events"):
            values = getattr(self, name)
            if values is None:
                continue
            values = np.asarray(values, float)
            if (
                values.ndim != 1
                or not values.size
                or not np.isfinite(values).all()
                or values.min() < 0
                or (np.diff(values) <= 0).any()
            ):
                raise InvalidInput(
                    f"record.{name}", getattr(self, name), "numbers >= 0, each larger than the one before"
                )

    def schedule(self, trace: Trace | Stream) -> tuple[np.ndarray, np.ndarray]:
        """``(times_s, events)``: when to record each replica, and how many events are done by then.

        An event at a record time comes before the record. Record times by ``count`` are shares of each replica's own
        horizon: a seed's do not depend on its companions.

        Returns:
            ``(replicas, records)`` seconds, and ``(records,)`` event counts.

        Raises:
            InvalidInput: a record lies beyond the trace.
        """
        if isinstance(trace, Stream):
            return trace.times_s, trace.events
        marks = self.marks(np.array([replica.horizon_s for replica in trace.replicas]), trace.one_horizon)
        if marks.times_s is not None:
            return marks.times_s, marks.before(trace, 0)
        if marks.values[-1] > len(trace):
            raise self.beyond(len(trace))
        times_s = np.concatenate([[0.0], trace.time_s])[marks.values]
        return np.broadcast_to(times_s, (len(trace.replicas), len(times_s))), marks.values

    def marks(self, horizons_s: np.ndarray, one_horizon: bool) -> Marks:
        """Where the records lie, before the events are known.

        Args:
            horizons_s: ``(replicas,)``.
            one_horizon: they are all the same.

        Raises:
            InvalidInput: a record lies beyond a horizon.
        """
        if self.events is not None:
            return Marks(None, np.asarray(self.events, np.int64), "events")
        if self.times_s is not None:
            times_s = np.asarray(self.times_s, float)
            if times_s[-1] > horizons_s.min():
                raise InvalidInput(
                    "record.times_s", float(times_s[-1]), f"at most the horizon, {horizons_s.min()} s"
                )
            if not one_horizon:
                raise InvalidInput(
                    "record.times_s", list(self.times_s), "record.count where each seed ends at its own time"
                )
            return Marks(np.broadcast_to(times_s, (len(horizons_s), len(times_s))), times_s, "time")
        if self.spacing == "linear":
            shares = np.linspace(0.0, 1.0, self.count + 1)
        else:
            shares = np.concatenate([[0.0], np.geomspace(1e-3, 1.0, self.count)])
        shares[-1] = 1.0
        return Marks(horizons_s[:, None] * shares, shares, "share")

    def beyond(self, events: int) -> InvalidInput:
        """The error for a record after the last event."""
        assert self.events is not None
        return InvalidInput(
            "record.events", int(self.events[-1]), f"at most the {events} events of the trace"
        )
