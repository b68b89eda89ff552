"""Means with intervals over seeds, paired comparisons on common seeds, and the time a curve takes to reach a target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from decentral.analysis.tables import format_interval
from decentral.errors import InvalidInput, suggest


def mean_interval(values: ArrayLike, axis: int = 0, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the seeds, and half the width of its confidence interval by Student's t.

    The interval is mean ± half width. No seed is left out: one that is NaN makes both NaN.

    Args:
        values: one value per seed along ``axis``.
        axis: the axis of the seeds, which the results do not have.
        level: the confidence level, between 0 and 1.

    Returns:
        ``(mean, half_width)``. With one seed nothing is known about the spread: the half width is NaN.
    """
    values = np.asarray(values, dtype=np.float64)
    if not 0 < level < 1:
        raise InvalidInput("level", level, "a number between 0 and 1")
    seeds = values.shape[axis]
    if seeds == 0:
        raise InvalidInput("values", values.shape, "at least one seed")
    with np.errstate(invalid="ignore", over="ignore"):  # a run that diverged
        mean = values.mean(axis=axis)
        if seeds == 1:
            return mean, np.full_like(mean, np.nan)
        deviation = values.std(axis=axis, ddof=1)
    return mean, stdtrit(seeds - 1, (1 + level) / 2) * deviation / np.sqrt(seeds)


def bootstrap_interval(
    values: ArrayLike, level: float = 0.95, *, method: str = "BCa", resamples: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """An interval of the mean over the seeds that assumes no distribution, beside Student's t of :func:`mean_interval`.

    Its ends lie where the values do: it is not symmetric, and does not reach below 0 where no value does. It is too narrow
    with few seeds: of 30 normal numbers a 95 % interval holds the mean in 91 to 93 % of draws (the tests hold it to that), of
    5 in fewer. Student's t stays the default everywhere.

    Args:
        values: ``(seeds,)``.
        level: the confidence level, between 0 and 1.
        method: ``"BCa"`` (bias-corrected and accelerated) or ``"percentile"``.
        resamples: how many.
        seed: of the resampling: the same values give the same interval.

    Returns:
        ``(low, high)``; both NaN with one seed, or where a seed is not finite.

    References:
        Efron, Tibshirani: An Introduction to the Bootstrap, 1993, chapters 13 and 14 (recalled); ``scipy.stats.bootstrap``.
    """
    values = np.asarray(values, dtype=np.float64)
    if method not in ("BCa", "percentile"):
        raise InvalidInput("method", method, "a bootstrap", suggest(method, ("BCa", "percentile")))
    if not 0 < level < 1:
        raise InvalidInput("level", level, "a number between 0 and 1")
    if values.ndim != 1 or values.size == 0:
        raise InvalidInput("values", f"shape {values.shape}", "one value per seed")
    if values.size == 1 or not np.isfinite(values).all():
        return math.nan, math.nan
    if (values == values[0]).all():  # SciPy's correction would divide by zero
        return float(values[0]), float(values[0])
    from scipy.stats import bootstrap  # half a second to import

    found = bootstrap(
        (values,), np.mean, n_resamples=resamples, confidence_level=level, method=method,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


@dataclass(frozen=True)
class Paired:
    """Two algorithms on the same seeds and common random tapes: what a seed is good or bad for both is taken out.

    Attributes:
        seeds: how many pairs.
        difference: mean of first minus second; None where a value is not finite.
        difference_half_width: of its interval by Student's t; None for one seed.
        ratio: geometric mean of first over second; None where a value is not positive.
        ratio_interval: ``(low, high)``, by Student's t of the logarithms; None for one seed.
    """

    seeds: int
    difference: float | None
    difference_half_width: float | None
    ratio: float | None
    ratio_interval: tuple[float, float] | None

    @property
    def sign(self) -> int:
        """-1 or 1: the interval of the difference lies below or above 0; 0: it does not exclude 0, or is not known."""
        if self.difference is None or self.difference_half_width is None:
            return 0
        return int(np.sign(self.difference)) if abs(self.difference) > self.difference_half_width else 0


def paired(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Paired:
    """Compare two algorithms seed by seed.

    Args:
        first: ``(seeds,)``.
        second: ``(seeds,)``, of the same seeds in the same order.
        level: the confidence level of the intervals.

    Raises:
        InvalidInput: different numbers of seeds.
    """
    first, second = _pairs(first, second)
    finite = np.isfinite(first).all() and np.isfinite(second).all()
    difference = half_width = ratio = interval = None
    if finite:
        difference, half_width = _known(*mean_interval(first - second, level=level))
    if finite and (first > 0).all() and (second > 0).all():
        log, spread = _known(*mean_interval(np.log(first / second), level=level))
        assert log is not None
        ratio = math.exp(log)
        interval = None if spread is None else (math.exp(log - spread), math.exp(log + spread))
    return Paired(first.size, difference, half_width, ratio, interval)


@dataclass(frozen=True)
class PairedTimes:
    """Times (or gradients, bytes) to a target of two algorithms on the same seeds, some of which may not have reached it.

    Attributes:
        seeds: how many pairs.
        ratio: geometric mean of first over second, over all seeds; None as soon as one is censored.
        ratio_interval: ``(low, high)`` by Student's t of the logarithms; None where ``ratio`` is, and for one seed.
        at_least: what the geometric mean is at least, where only times of the first are censored, else None.
        at_most: what it is at most, where only times of the second are censored, else None.
        reason: why there is no ratio; empty where there is one.
        wins: seeds on which the first was there earlier.
        losses: seeds on which the second was.
        p_value: of the sign test, two-sided and exact: the chance of a score as uneven as this or more if on every seed
            either is as likely to be first. Seeds that say nothing (neither was seen first, or both at once) are left out.
    """

    seeds: int
    ratio: float | None
    ratio_interval: tuple[float, float] | None
    at_least: float | None
    at_most: float | None
    reason: str
    wins: int
    losses: int
    p_value: float


def paired_times(
    first: ArrayLike,
    second: ArrayLike,
    ends: tuple[ArrayLike, ArrayLike] = (math.inf, math.inf),
    level: float = 0.95,
) -> PairedTimes:
    """Compare two algorithms' times to a target seed by seed, without a guess at times nobody saw.

    Args:
        first: ``(seeds,)`` from :func:`time_to_target`: positive, ``inf`` for a seed that did not reach the target.
        second: the same of the other algorithm, on the same seeds in the same order.
        ends: until when the seeds of the first and of the second were watched, ``(seeds,)`` or one number each, in the same
            unit: a censored time is at least that. Without them there is no bound.
        level: the confidence level of the interval.

    Raises:
        InvalidInput: different numbers of seeds, a time that is not positive.
    """
    first, second = _pairs(first, second)
    if not ((first > 0).all() and (second > 0).all()):
        raise InvalidInput("times", [*first, *second], "positive times, inf where the target was not reached")
    late, later = np.isinf(first), np.isinf(second)
    seen = [
        np.where(missing, np.broadcast_to(end, times.shape), times)
        for times, missing, end in zip((first, second), (late, later), ends, strict=True)
    ]
    # Earlier for certain: it was there, and the other was still watched then and was not.
    wins = int((~late & np.where(later, first <= seen[1], first < second)).sum())
    losses = int((~later & np.where(late, second <= seen[0], second < first)).sum())
    ratio = interval = at_least = at_most = None
    reason = ""
    if not late.any() and not later.any():
        both = paired(first, second, level)
        ratio, interval = both.ratio, both.ratio_interval
    else:
        said = [
            f"the {which} did not reach the target on {missing.sum()} of {first.size} seeds"
            for which, missing in (("first", late), ("second", later))
            if missing.any()
        ]
        reason = " and ".join(said)
        bound = float(np.exp(np.mean(np.log(seen[0]) - np.log(seen[1])))) if np.isfinite(seen).all() else None
        at_least = bound if not later.any() else None
        at_most = bound if not late.any() else None
    return PairedTimes(
        first.size, ratio, interval, at_least, at_most, reason, wins, losses, sign_test(wins, losses)
    )


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided p-value of so many wins and losses, if either were as likely on every seed; 1 without any."""
    total = wins + losses
    tail = sum(math.comb(total, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**total)


def _pairs(first: ArrayLike, second: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    first, second = (np.asarray(values, np.float64) for values in (first, second))
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise InvalidInput(
            "seeds",
            f"shapes {first.shape} and {second.shape}",
            "one value of each per seed, of the same seeds",
        )
    return first, second


def _known(mean: ArrayLike, half_width: ArrayLike) -> tuple[float | None, float | None]:
    """As JSON can hold them: None where nothing is known."""
    return tuple(float(value) if np.isfinite(value) else None for value in (mean, half_width))  # type: ignore[return-value]


def final_metrics(
    results: Mapping[str, Mapping[str, ArrayLike]], level: float = 0.95
) -> dict[str, dict[str, dict[str, float | None]]]:
    """What every metric is at the last record: algorithm -> metric -> ``{"mean": ..., "half_width": ...}``.

    A half width that is unknown (one seed) is ``None``, which JSON can hold.

    Args:
        results: algorithm -> metric -> array ``(seeds, records)``.
        level: the confidence level of the intervals.
    """
    final: dict[str, dict[str, dict[str, float | None]]] = {}
    for algorithm, metrics in results.items():
        final[algorithm] = {}
        for name, values in metrics.items():
            mean, half_width = mean_interval(np.atleast_2d(values)[:, -1], level=level)
            known = None if np.isnan(half_width) else float(half_width)
            final[algorithm][name] = {"mean": float(mean), "half_width": known}
    return final


AXES = ("time_s", "samples", "updates", "gradients", "exchanges", "bytes")
"""What a target takes is reported against each of them."""


def one_copy(metrics: Mapping[str, ArrayLike]) -> bool:
    """Its workers never differ, at any record: there is one copy of the parameters, at a server or in a pipeline.

    Args:
        metrics: metric -> array ``(seeds, records)``, of one algorithm.
    """
    distance = metrics.get("consensus_distance")
    return distance is not None and not np.any(distance) and {"samples", "updates"} <= set(metrics)


def better_direction(metric: str) -> str:
    """Which side of a target is better: ``"above"`` for an accuracy, else ``"below"``."""
    return "above" if "accuracy" in metric else "below"


def time_to_target(
    x: ArrayLike, y: ArrayLike, target: float, direction: str = "below"
) -> np.ndarray | np.float64:
    """Where each seed's curve first reaches the target, or ``inf`` where it never does (censored).

    Between the last record before the target and the first one at it, ``y`` is interpolated linearly in ``x``, or
    its logarithm if both values and the target are positive. A curve that is there at its first record reached the
    target at that ``x`` or earlier. A curve that leaves the target again still reached it. A record that is not finite
    is not at the target, and nothing is interpolated from it.

    Args:
        x: ``(records,)`` or ``(seeds, records)``: time, or any count that does not decrease.
        y: ``(records,)`` or ``(seeds, records)``: the metric.
        target: the value to reach.
        direction: ``"below"`` (y <= target) or ``"above"`` (y >= target).

    Returns:
        One ``x`` per seed, ``(seeds,)``; without an axis for a single curve.
    """
    if direction not in ("below", "above"):
        raise InvalidInput(
            "direction", direction, "'below' or 'above'", suggest(direction, ["below", "above"])
        )
    if not np.isfinite(target):
        raise InvalidInput("target", target, "a finite number")
    x, y = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
    if y.ndim == 2:
        return np.array([time_to_target(*curve, target, direction) for curve in zip(x, y, strict=True)])
    finite = np.isfinite(x) & np.isfinite(y)
    reached = np.flatnonzero(finite & (y <= target if direction == "below" else y >= target))
    if reached.size == 0:
        return np.float64(np.inf)
    last = reached[0]
    if last == 0 or not finite[last - 1]:
        return x[last]
    ends, goal = y[last - 1 : last + 1], target
    if goal > 0 and (ends > 0).all():
        ends, goal = np.log(ends), np.log(goal)
    return x[last - 1] + (x[last] - x[last - 1]) * (goal - ends[0]) / (ends[1] - ends[0])


@dataclass(frozen=True)
class TimeToTarget:
    """Times to a target over seeds, some of which may not have reached it.

    Attributes:
        seeds: how many seeds ran.
        reached: how many of them reached the target.
        mean: over all seeds; ``None`` as soon as one did not reach the target: its time is not known.
        half_width: of the interval of ``mean``; ``None`` where that is, and for one seed.
        mean_of_reached: over the seeds that reached the target only. It flatters an algorithm whose slow seeds fail.
        half_width_of_reached: of the interval of ``mean_of_reached``; ``None`` below two such seeds.
        median: over all seeds, those that did not reach the target counted as later than the others; ``None`` if it
            is not reached.
    """

    seeds: int
    reached: int
    mean: float | None
    half_width: float | None
    mean_of_reached: float | None
    half_width_of_reached: float | None
    median: float | None

    def __str__(self) -> str:
        """In words: ``"12.3 ± 1.4"``, or ``"2 of 5 seeds did not reach it; the others: 12.3 ± 1.4"``."""
        if self.mean is not None:
            return format_interval(self.mean, self.half_width)
        missed = f"{self.seeds - self.reached} of {self.seeds} seeds did not reach it"
        if self.mean_of_reached is None:
            return missed
        return f"{missed}; the others: {format_interval(self.mean_of_reached, self.half_width_of_reached)}"


def time_to_target_summary(times: ArrayLike, level: float = 0.95) -> TimeToTarget:
    """Sum up what :func:`time_to_target` returned for several seeds.

    Args:
        times: ``(seeds,)``, ``inf`` for a seed that did not reach the target.
        level: the confidence level of the intervals.
    """
    times = np.atleast_1d(np.asarray(times, np.float64))
    reached = times[np.isfinite(times)]
    mean = half_width = None
    if reached.size:
        mean, half_width = map(float, mean_interval(reached, level=level))
        half_width = None if np.isnan(half_width) else half_width
    everyone = reached.size == times.size
    middle = float(np.median(times))
    return TimeToTarget(
        seeds=times.size,
        reached=reached.size,
        mean=mean if everyone else None,
        half_width=half_width if everyone else None,
        mean_of_reached=mean,
        half_width_of_reached=half_width,
        median=middle if np.isfinite(middle) else None,
    )
