"""Results side by side: one table, one figure, one data frame."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from decentral.analysis.plots import overview_figure, plot_metric
from decentral.errors import InvalidInput, MissingExtra, suggest
from decentral.experiment.result import Result

if TYPE_CHECKING:
    from pandas import DataFrame

    from decentral.analysis.shown import ShownFigure


class Comparison:
    """Results side by side. In a notebook it shows a table and an overview of them all.

    Args:
        results: with names that differ; ``simulate(..., name="...")`` gives one.

    Raises:
        InvalidInput: no results, something else, or two of one name.

    Example:
        >>> both = decentral.Comparison([gossip, a2cid2])
        >>> both.plot("suboptimality", against="bytes")
        >>> both.to_dataframe().groupby(["algorithm", "record"])["loss"].mean()
    """

    def __init__(self, results: Iterable[Result]) -> None:
        self.results = tuple(results)
        if not self.results:
            raise InvalidInput("results", [], "at least one result")
        for result in self.results:
            if not isinstance(result, Result):
                advice = "decentral.simulate gives one."
                raise InvalidInput("results", type(result).__name__, "results of runs", advice)
        names = [result.name for result in self.results]
        if len(set(names)) < len(names):
            advice = "Name them when they run: simulate(..., name='small steps')."
            raise InvalidInput("results", names, "names that all differ", advice)

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    def __getitem__(self, name: str) -> Result:
        """The result of this name."""
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(name)

    def __repr__(self) -> str:
        return f"<Comparison: {', '.join(result.name for result in self.results)}>\n{self.table()}"

    @property
    def metrics(self) -> dict[str, dict[str, np.ndarray]]:
        """Name -> metric -> float64 array ``(seeds, records)``, as ``decentral.analysis`` takes them."""
        return {result.name: result.metrics for result in self.results}

    def table(self, format: str = "text") -> str:
        """What every algorithm reached, with 95 % intervals over the seeds.

        As ``decentral compare`` has it: in LaTeX and HTML a mean is bold if it is better than every other by more than chance,
        which is judged seed by seed, where results have the same problem, workers and seeds.

        Args:
            format: ``"text"``, ``"latex"``, ``"html"``, ``"csv"`` or ``"json"``.

        Raises:
            InvalidInput: another format.
        """
        from decentral.analysis.tables import comparison_table
        from decentral.experiment.compare import row_of, table_rows

        rows = [row_of(result, self._paired(result), self._common(result)) for result in self.results]
        return comparison_table(table_rows(rows, machine=format in ("csv", "json")), format)

    def plot(self, metric: str | None = None, against: str = "time_s", *, title: str = "") -> ShownFigure:
        """The means over the seeds, in the bands of their 95 % intervals; as ``Result.plot``, with a line for each result.

        Args:
            metric: a metric that at least one of them has; None: an overview in up to four panels.
            against: what it is drawn against, as in ``Result.plot``.
            title: of the figure.

        Raises:
            InvalidInput: a metric that was not recorded, or an axis that is none.
        """
        if metric is None:
            return overview_figure(self.metrics, x=against, title=title)
        known = {name for result in self.results for name in result.metrics}
        if metric not in known:
            raise InvalidInput("metric", metric, "a metric that was recorded", suggest(str(metric), known))
        return plot_metric(self.metrics, metric, against, title=title)

    def to_dataframe(self) -> DataFrame:
        """Every metric at every record as a tidy pandas table: a row per algorithm, seed and record.

        Columns: ``algorithm``, ``seed``, ``record`` (0, 1, ...), then ``time_s`` and every other metric by its name; NaN where an
        algorithm did not record it.

        Raises:
            MissingExtra: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise MissingExtra("to_dataframe()", "pandas", "notebooks") from None
        parts = []
        for result in self.results:
            seeds, records = result.metrics["time_s"].shape
            columns: dict[str, Any] = {
                "algorithm": np.repeat(result.name, seeds * records),
                "seed": np.repeat(np.array(result.seeds), records),
                "record": np.tile(np.arange(records), seeds),
            }
            columns |= {metric: values.ravel() for metric, values in result.metrics.items()}
            parts.append(pandas.DataFrame(columns))
        return pandas.concat(parts, ignore_index=True)

    def _paired(self, result: Result) -> str | None:
        """What the others share with it: a trace, or tapes, or nothing that is known."""
        alike = [other for other in self.results if self._common(other) == self._common(result)]
        if len(alike) < 2:
            return None
        hashes = {
            tuple(other.constants["trace_hash"]) if other.trace is None else other.trace.hashes
            for other in alike
        }
        return "trace" if len(hashes) == 1 else "tape"

    @staticmethod
    def _common(result: Result) -> str:
        """Results for which this is the same drew from the same tapes."""
        workers = None if result.trace is None else result.trace.n_workers
        return json.dumps([list(result.seeds), result.problem, workers])

    def _repr_html_(self) -> str:
        from decentral.analysis.html import definitions, folded, picture

        parts = [self.table("html")]
        parts += [folded(f"{result.name}: how it ran", definitions(_how(result))) for result in self.results]
        if any(values.size for result in self.results for values in result.metrics.values()):
            title = " and ".join(result.name for result in self.results)
            parts.append(picture(overview_figure(self.metrics), f"Metrics of {title} against simulated time"))
        return "\n".join(parts)


def _how(result: Result) -> dict[str, Any]:
    """What a reader asks next, in the order in which they do."""
    trace, constants = result.trace, result.constants
    entries = {
        "algorithm": result.algorithm,
        "problem": result.problem,
        "topology": result.topology,
        "protocol": result.protocol or "",
        "seeds": result.seeds,
        "workers": "" if trace is None else trace.n_workers,
        "simulated seconds": float(result.metrics["time_s"][:, -1].mean())
        if result.metrics["time_s"].size
        else "",
        "events": constants.get("counts", ""),
        "bytes of a message": constants.get("message_bytes", ""),
        "wall seconds": {stage: seconds for stage, seconds in result.wall_s.items() if seconds},
        "hash of the trace": constants.get("trace_hash") if trace is None else trace.hash,
    }
    return {name: value for name, value in entries.items() if value not in ("", None)}
