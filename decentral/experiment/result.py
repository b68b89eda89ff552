"""What a run gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from decentral.analysis.statistics import final_metrics, mean_interval, time_to_target
from decentral.analysis.units import UnitAccount
from decentral.engine.trace import Trace

if TYPE_CHECKING:
    from pandas import DataFrame

    from decentral.analysis.shown import ShownFigure


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """One algorithm's run.

    Attributes:
        name: the algorithm's name in the run.
        algorithm: the algorithm as it ran, step sizes resolved (of the first seed).
        algorithms: the same for every seed; they differ where the seeds draw different problems or graphs.
        seeds: the seeds, one per replica.
        metrics: metric -> float64 array ``(seeds, records)``; ``time_s``, ``gradients``, ``exchanges``, ``samples``,
            ``messages`` and ``bytes`` are axes to draw against, the others are listed in ``decentral.engine.record``.
        trace: the events it ran on; None where they were not kept (``Record(trace=False)``): ``constants["trace_hash"]`` then has
            their hash, per seed.
        states: one pytree per record, leaves ``(seeds * workers, ...)``, when ``Record(states=True)``.
        final: the state of every worker at the end, as stored.
        constants: numbers about the run: rates as assumed and as realised, noise and heterogeneity, rows and their fill.
        wall_s: wall times by stage (timeline, plan, compile, run, record).
        units: per seed what each optical unit of the topology did; empty where gradients asked none.
        problem: what the problem calls itself.
        topology: what the topology calls itself; empty where a trace was replayed without one.
        protocol: what decided when things happened; None where a trace was replayed.
    """

    name: str
    algorithm: Any
    algorithms: tuple[Any, ...]
    seeds: tuple[int, ...]
    metrics: dict[str, np.ndarray]
    trace: Trace | None
    states: list[Any] = field(repr=False)
    final: Any = field(repr=False)
    constants: dict[str, Any] = field(repr=False)
    wall_s: dict[str, float] = field(repr=False)
    units: tuple[tuple[UnitAccount, ...], ...] = field(default=(), repr=False)
    problem: str = ""
    topology: str = ""
    protocol: Any = None

    def __repr__(self) -> str:
        records = self.metrics["time_s"].shape[1]
        return f"<Result {self.name}: seeds {list(self.seeds)}, {records} records, metrics {', '.join(self.metrics)}>"

    def interval(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """``(mean, half_width)`` of a metric over the seeds at every record, 95 % Student t (NaN for one seed)."""
        return mean_interval(self.metrics[metric])

    def time_to_target(
        self, metric: str, target: float, *, axis: str = "time_s", direction: str = "below"
    ) -> np.ndarray:
        """When each seed first reaches a target, in units of ``axis``; inf where it never does."""
        return np.atleast_1d(time_to_target(self.metrics[axis], self.metrics[metric], target, direction))

    def summary(self) -> dict[str, Any]:
        """Final metrics with mean and interval, counts and rates, as plain JSON-able data."""
        final = final_metrics({self.name: self.metrics})[self.name]
        units = [[unit.as_dict() for unit in seed] for seed in self.units]
        return {"seeds": list(self.seeds), "final": final, **self.constants} | (
            {"units": units} if units else {}
        )

    def to_dataframe(self) -> DataFrame:
        """Every metric at every record as a tidy pandas table: a row per seed and record.

        Columns: ``algorithm``, ``seed``, ``record`` (0, 1, ...), then ``time_s`` and every other metric by its name in
        :attr:`metrics`.

        Raises:
            MissingExtra: pandas is not installed.

        Example:
            >>> table = result.to_dataframe()
            >>> table.groupby("record")["loss"].agg(["mean", "std"])
        """
        return self._alone().to_dataframe()

    def plot(self, metric: str | None = None, against: str = "time_s") -> ShownFigure:
        """The mean over the seeds, in the band of its 95 % interval.

        Args:
            metric: one of :attr:`metrics`; None: an overview in up to four panels.
            against: ``"time_s"``, ``"gradients"``, ``"exchanges"``, ``"samples"``, ``"updates"``, ``"messages"`` or ``"bytes"``.

        Returns:
            A matplotlib figure, which a notebook shows where it is the last value of a cell;
            ``decentral.analysis.save_figure`` writes it. For several results in one figure: :class:`decentral.Comparison`.

        Raises:
            InvalidInput: a metric that was not recorded, or an axis that is none.
        """
        return self._alone().plot(metric, against)

    def _repr_html_(self) -> str:
        return self._alone()._repr_html_()

    def _alone(self):
        from decentral.experiment.comparison import Comparison

        return Comparison([self])
