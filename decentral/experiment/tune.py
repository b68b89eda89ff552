"""Tuning: hyper-parameters chosen on seeds of their own before the run.

The points of an algorithm's grid, each on every tuning seed, are replicas of one run: on one seed all of them see the same
events and mini-batches. Points that differ in more than numbers (a count of local steps, a protocol) run one after another.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from decentral.analysis.plots import STYLE, save_figure, styles
from decentral.analysis.statistics import better_direction, time_to_target
from decentral.engine.trace import Trace, merge
from decentral.errors import InvalidInput, RunFailed, suggest
from decentral.experiment.memory import check_memory
from decentral.experiment.overrides import addressed, flat
from decentral.experiment.simulation import Simulation, Tolerant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from decentral.experiment.prepared import Prepared
    from decentral.experiment.spec import Spec

_TALLEST = 1e6
"""Of the axis of a figure: the highest value over the lowest."""
MOST_TRIALS = 1000
"""Of one algorithm."""
METRICS = ("suboptimality", "loss")
"""What decides where nothing is said: the first of these that is recorded."""


@dataclass(frozen=True)
class Tune:
    """What to try before the run, and what decides.

    Args:
        algorithm: lists of values to try, in the shape of ``--set``: ``X`` for all algorithms, ``NAME.X`` for one, which
            goes before. Several keys make a grid of all combinations. An algorithm without a list is not tuned.
        seeds: tuning seeds. They follow the last of the run's own, so none decides and is then reported.
        metric: its mean over the tuning seeds at the end of the run decides. By default ``record.target_metric``, or else
            suboptimality where the optimum is known, or else loss.
        target: decide by the simulated seconds the metric takes to this level instead.
    """

    algorithm: dict[str, Any]
    seeds: int = 3
    metric: str | None = None
    target: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.seeds, bool) or int(self.seeds) != self.seeds or self.seeds < 1:
            raise InvalidInput("tune.seeds", self.seeds, "an integer >= 1")
        if self.target is not None and not math.isfinite(self.target):
            raise InvalidInput("tune.target", self.target, "a finite number")
        if not isinstance(self.algorithm, Mapping) or not self.algorithm:
            advice = "e.g. [tune] and below it algorithm.optimizer.learning_rate = [0.05, 0.1, 0.2]"
            raise InvalidInput("tune.algorithm", self.algorithm, "keys and lists of values to try", advice)

    def grids(self, names: Sequence[str]) -> dict[str, dict[str, list]]:
        """Algorithm -> dotted key -> values to try, of those that are tuned.

        Args:
            names: of the algorithms.

        Raises:
            InvalidInput: no list, a value twice, no algorithm of this name, or unequal numbers of trials.
        """
        read = []
        for key, values in flat(self.algorithm):
            said = f"tune.algorithm.{key}"
            if not isinstance(values, list | tuple) or not values:
                raise InvalidInput(said, values, "a list of values to try")
            if any(values.count(value) > 1 for value in values):
                raise InvalidInput(said, list(values), "each value once")
            whose, own = addressed(key, names, said, values)
            if own in ("kind", "name"):
                advice = "Another algorithm is another [[algorithm]] table."
                raise InvalidInput(said, list(values), "hyper-parameters", advice)
            read.append((whose, own, list(values)))
        grids: dict[str, dict[str, list]] = {name: {} for name in names}
        for whose, key, values in sorted(
            read, key=lambda entry: -len(entry[0])
        ):  # one's own come after all's
            for name in whose:
                grids[name][key] = values
        grids = {name: grid for name, grid in grids.items() if grid}
        trials = {name: math.prod(map(len, grid.values())) for name, grid in grids.items()}
        if max(trials.values()) > MOST_TRIALS:
            name = max(trials, key=trials.__getitem__)
            raise InvalidInput(
                "tune.algorithm",
                f"{trials[name]:,} points for {name}",
                f"at most {MOST_TRIALS:,}",
                "Shorter lists.",
            )
        if len(set(trials.values())) > 1:
            said = ", ".join(f"{count} for {name}" for name, count in trials.items())
            raise InvalidInput(
                "tune.algorithm", f"trials: {said}", "the same number for every algorithm that is tuned",
                "The one with more of them would have more luck.",
            )  # fmt: skip
        return grids


def points(grid: Mapping[str, Sequence]) -> list[dict[str, Any]]:
    """All combinations of a grid: dotted key -> value."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def metric_of(tune: Tune, target_metric: str | None, known: Iterable[str]) -> str:
    """The metric that decides.

    Args:
        tune: what was asked for.
        target_metric: of the record.
        known: the metrics that are recorded.

    Raises:
        InvalidInput: it is not recorded.
    """
    known = tuple(known)
    metric = tune.metric or target_metric or next((name for name in METRICS if name in known), METRICS[-1])
    if metric not in known:
        raise InvalidInput("tune.metric", metric, "a recorded metric", suggest(metric, known))
    return metric


# -- running -----------------------------------------------------------------------------------------------------------


def trials_of(spec: Spec) -> Spec:
    """The spec of all trials: one algorithm per point of a grid, on the tuning seeds."""
    tune = spec.tune_object()
    assert tune is not None
    tables = []
    for name, grid in spec.grids().items():
        for point in points(grid):
            table = spec.at({name: point}).algorithm[spec.algorithm_names().index(name)]
            tables.append(dataclasses.replace(table, name=_title(name, point)))
    return dataclasses.replace(
        spec,
        seed=spec.seed + spec.seeds,
        seeds=tune.seeds,
        algorithm=tuple(tables),
        # Numbers of events would be those of all replicas together.
        record=dataclasses.replace(spec.record, events=None),
        tune=None,
    )


class TrialRun(NamedTuple):
    """Some points of an algorithm's grid as replicas of one run: point after point, each on all tuning seeds."""

    algorithm: str
    members: list[int]
    simulation: Simulation


def trial_runs(spec: Spec, trials: Prepared, done: Iterable[str] = ()) -> Iterator[TrialRun]:
    """The runs of all trials: the first one is made now, the others when their turn comes.

    Args:
        spec: with the grids.
        trials: what was prepared from :func:`trials_of`.
        done: algorithms that are tuned already.

    Raises:
        InvalidInput: too large for the memory, or no such metric.
    """
    tune, seeds, together = spec.tune_object(), trials.spec.seeds, []
    assert tune is not None
    for name, grid in spec.grids().items():
        if name not in done:
            titles = [_title(name, point) for point in points(grid)]
            together += [(name, titles, members) for members in _alike(trials, titles)]
    for _, titles, members in together:
        first = titles[members[0]]
        replicas = len(members) * seeds
        check_memory(
            trials.problems[0], trials.networks[first][0], trials.spec.protocols()[first],
            trials.algorithms[first][0], trials.spec.stop_object(), seeds=replicas,
            data_sets=replicas if trials.spec.drawn_per_seed("problem") else 1,
        )  # fmt: skip

    def made(name: str, titles: list[str], members: list[int]) -> TrialRun:
        trace = trials.traces[trials.trace_of[titles[members[0]]]]
        assert isinstance(trace, Trace)
        replicas = [trace.replica(k) for k in range(seeds)]

        def of_all(parts: Mapping[str, list]) -> list:
            return [part for member in members for part in parts[titles[member]]]

        simulation = Tolerant(  # a point that diverges is the worst of its grid
            merge(replicas * len(members)), trials.problems * len(members), of_all(trials.algorithms),
            network=of_all(trials.networks), record=trials.record, name=f"tuning {name}",
        )  # fmt: skip
        metric_of(tune, trials.record.target_metric, simulation.metric_names())
        return TrialRun(name, members, simulation)

    later = itertools.starmap(made, together)
    return itertools.chain([next(later)] if together else [], later)


def _alike(trials: Prepared, titles: Sequence[str]) -> list[list[int]]:
    """Points that can be replicas of one run: the same events, and algorithms that differ in numbers only."""
    groups: list[tuple[Any, list[int]]] = []
    for index, title in enumerate(titles):
        what = (trials.trace_of[title], jax.tree.structure(trials.algorithms[title][0]))
        members = next((members for other, members in groups if other == what), None)
        if members is None:
            groups.append((what, [index]))
        else:
            members.append(index)
    return [members for _, members in groups]


def _title(name: str, point: Mapping[str, Any]) -> str:
    return f"{name} ({', '.join(f'{key} = {value}' for key, value in point.items())})"


def tune_algorithm(
    spec: Spec,
    runs: Iterable[TrialRun],
    *,
    progress: bool = False,
    after_step: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Run one algorithm's trials and choose.

    Args:
        spec: with the grids.
        runs: the runs of one algorithm's trials.
        progress: show progress bars.
        after_step: called after every piece of a run.

    Returns:
        As in ``tuning.json``: ``trials`` (each with ``values``, the ``final`` metric on each seed, None where it diverged,
        with a target ``time_to_target_s``, None where it was never reached, and ``score``, the mean of what decides),
        ``metric``, ``chosen``, ``edges`` (the keys of which the best value is the smallest or largest tried), ``edge``
        (there is one) and ``wall_s``.

    Raises:
        RunFailed: every trial diverged.
    """
    began = time.perf_counter()
    tune, name, metric = spec.tune_object(), "", ""
    assert tune is not None
    outcomes: dict[int, dict[str, Any]] = {}
    for run in runs:
        name = run.algorithm
        metrics = run.simulation.run(progress=progress, after_step=after_step).metrics
        metric = metric_of(tune, spec.record_object().target_metric, metrics)
        # A share of right answers is a number even where the model is none.
        numbers = [values for key, values in metrics.items() if not key.startswith(("train_", "test_"))]
        good = np.isfinite(numbers).all(axis=(0, 2))
        measured: dict[str, Any] = {"final": metrics[metric][:, -1]}
        if tune.target is not None:
            direction = better_direction(metric)
            measured["time_to_target_s"] = time_to_target(
                metrics["time_s"], metrics[metric], tune.target, direction
            )
        columns = {
            key: np.where(good & np.isfinite(values), values, np.nan).reshape(len(run.members), -1)
            for key, values in measured.items()
        }
        for row, member in enumerate(run.members):
            outcomes[member] = {
                key: [None if math.isnan(value) else value for value in values[row].tolist()]
                for key, values in columns.items()
            }
    grid = spec.grids()[name]
    decides = "final" if tune.target is None else "time_to_target_s"
    trials = [
        {"values": point, **outcomes[index], "score": _mean(outcomes[index][decides])}
        for index, point in enumerate(points(grid))
    ]
    best = min(trials, key=lambda trial: _rank(trial, metric))
    if all(value is None for value in best["final"]):
        raise RunFailed(f"{name}: all {len(trials)} points of its grid diverged. Try smaller step sizes.")
    if best["score"] is None:
        what = "diverged" if tune.target is None else f"did not reach {metric} {tune.target:g}"
        warnings.warn(f"{name}: every point of its grid {what} on some tuning seed.", stacklevel=2)
    chosen = best["values"]
    edges = [
        key
        for key, values in grid.items()
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        and len(values) > 1
        and chosen[key] in (min(values), max(values))
    ]
    for key in edges:
        end = "smallest" if chosen[key] == min(grid[key]) else "largest"
        warnings.warn(
            f"{name}: the best {key}, {chosen[key]:g}, is the {end} of those tried. Try values beyond it "
            f"(tune.algorithm.{name}.{key}); until then this run decides no claim.",
            stacklevel=2,
        )
    return {
        "metric": metric, "trials": trials, "chosen": chosen, "edge": bool(edges), "edges": edges,
        "wall_s": time.perf_counter() - began,
    }  # fmt: skip


def _mean(values: Sequence[float | None]) -> float | None:
    """Of all; None as soon as one is not known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _rank(trial: Mapping[str, Any], metric: str) -> tuple[float, ...]:
    """The smallest is best: first by the seeds without a result, then by the mean of the others; the time before the end."""
    rank: list[float] = []
    sign = 1 if better_direction(metric) == "below" else -1
    for key, factor in (("time_to_target_s", 1), ("final", sign)):
        known = [value for value in trial.get(key, ()) if value is not None]
        rank += [len(trial.get(key, ())) - len(known), factor * float(np.mean(known)) if known else math.inf]
    return tuple(rank)


# -- drawing -----------------------------------------------------------------------------------------------------------


def plot_tuning(record: Mapping[str, Any], path: Path) -> Path:
    """Every trial against what was tried, one panel for each key.

    Args:
        record: the contents of ``tuning.json``.
        path: a PNG, PDF or SVG file.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    algorithms, target = record["algorithms"], record["target"]
    decides = "final" if target is None else "time_to_target_s"
    metric = next(iter(algorithms.values()))["metric"]
    keys = list(dict.fromkeys(key for entry in algorithms.values() for key in entry["chosen"]))
    look = styles(algorithms)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(0.6 + 3.7 * len(keys), 3.4), layout="constrained")
        for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
            tuned = [name for name, entry in algorithms.items() if key in entry["chosen"]]
            drawn = [_tuning_curve(axes, name, algorithms[name], key, decides, look[name]) for name in tuned]
            tried, measured = (
                [value for part in parts for value in part] for parts in zip(*drawn, strict=True)
            )
            if _spans_decades([value for value in tried if not isinstance(value, str)]):
                axes.set_xscale("log")
            if _spans_decades(measured):
                axes.set_yscale("log")
                # What all but diverged is above.
                axes.set_ylim(min(measured) / 2, min(2 * max(measured), _TALLEST * min(measured)))
            axes.set_xlabel(key)
            axes.set_ylabel(f"final {metric}" if target is None else f"time to {metric} {target:g} (s)")
        handles = [Line2D([], [], label=name, **look[name]) for name in algorithms]
        figure.legend(handles=handles, loc="outside upper left", ncols=4, title="Tuning")
        figure.supxlabel(
            "Dots: tuning seeds; line: their mean; ring: chosen; cross: a seed diverged"
            + ("." if target is None else ",\nor was never there."),
            x=0.01, ha="left", fontsize=7.5, color="#6b6b6b",
        )  # fmt: skip
    return save_figure(figure, path)


def _spans_decades(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) > 5 * min(values)


def _tuning_curve(
    axes: Axes, name: str, entry: Mapping[str, Any], key: str, decides: str, look: Mapping[str, Any]
) -> tuple[list, list[float]]:
    """Draw one algorithm against one key.

    Returns:
        What stands on the two axes.
    """
    better = max if decides == "final" and better_direction(entry["metric"]) == "above" else min
    xs, ys, best = [], [], {}
    for trial in entry["trials"]:
        x = trial["values"][key]
        x = x if isinstance(x, int | float) and not isinstance(x, bool) else str(x)
        known = [value for value in trial[decides] if value is not None]
        axes.plot([x] * len(known), known, ".", color=look["color"], alpha=0.5, markersize=5)
        xs, ys = [*xs, x], ys + known
        if (score := trial["score"]) is None:
            axes.plot(x, 1, "x", color=look["color"], transform=axes.get_xaxis_transform(), clip_on=False)
            continue
        best[x] = better(best.get(x, score), score)
        if trial["values"] == entry["chosen"]:
            axes.plot(x, score, "o", color=look["color"], markerfacecolor="none", markersize=9)
    line = sorted(best) if not any(isinstance(x, str) for x in best) else list(best)
    axes.plot(line, [best[x] for x in line], label=name, **look)
    return xs, ys
