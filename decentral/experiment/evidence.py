"""What a simulated run says of a projection: how many samples an algorithm needs, and whether that may be carried over."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from decentral.analysis.statistics import better_direction, paired_times, time_to_target
from decentral.cost.algorithms import METHODS
from decentral.cost.projection import Projection
from decentral.errors import InvalidInput, suggest
from decentral.experiment.folder import read_arrays, read_json, require_run

NEGLIGIBLE, FACTOR = 0.05, 2.0
"""Ratios match where both are below the first, or neither is more than the second times the other."""


@dataclass(frozen=True)
class Evidence:
    """A finished run, and what in it stands for what in the projection.

    Args:
        run: its folder.
        metric: that has a target.
        target: its value.
        reference: name of the synchronous algorithm in the run.
        names: name in the projection -> name in the run, where they differ.
    """

    run: str
    metric: str
    target: float
    reference: str
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Useful:
    """Samples to a target against the synchronous reference's, on a toy.

    Attributes:
        run: folder it was measured in.
        low: samples of the reference / samples of this algorithm, lower end of the 95 % interval over the seeds.
        mean: geometric mean.
        high: upper end.
        steps: this algorithm's gradients of a worker to the target, mean over the seeds that reached it.
        step_s: projected seconds of a step.
        unmatched: ratios in which the toy and the projection differ; nothing is carried over if there are any.
        why: nothing is known, and why.
    """

    run: str
    low: float | None
    mean: float | None
    high: float | None
    steps: float | None
    step_s: float
    unmatched: tuple[str, ...] = ()
    why: str = ""

    def cell(self, mfu: float) -> str:
        """Useful MFU for a table."""
        if self.low is None or self.high is None:
            return "not known"
        return (
            "not matched" if self.unmatched else f"{100 * mfu * self.low:.1f} - {100 * mfu * self.high:.1f} %"
        )

    def __str__(self) -> str:
        if self.mean is None:
            return f"useful MFU not known: {self.why} ({self.run})"
        said = f"on a toy ({self.run}) the reference needs {self.mean:.2f} times its samples"
        if self.low is not None and self.high is not None:
            said += f" (95 %: {self.low:.2f} to {self.high:.2f})"
        said += (
            f"; {self.steps:,.0f} steps of a worker to the target, at {self.step_s:.3g} s: {self.steps * self.step_s:,.3g} s"
            if self.steps
            else ""
        )
        if self.unmatched:
            return f"{said}; not carried over: {'; '.join(self.unmatched)}"
        return f"{said}; ratios match within {FACTOR:g}"

    def data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "run": self.run, "reference_samples_over_samples": self.mean, "low": self.low, "high": self.high,
            "steps_to_target": self.steps, "time_to_target_s": None if self.steps is None else self.steps * self.step_s,
            "not_matched": list(self.unmatched), "why": self.why,
        }  # fmt: skip


def useful(evidence: Evidence, one: Projection) -> Useful:
    """What a run says of a projection.

    Three ratios must match before a toy's number of samples says anything: the time of a message over that of a gradient,
    updates a gradient is late over workers, and the spread of speeds.

    Raises:
        InvalidInput: no such run, algorithm or metric in it.
    """
    folder = require_run(evidence.run)
    summary = read_json(folder / "summary.json", "summary")["algorithms"]
    arrays = read_arrays(folder / "metrics.npz", "metrics")
    name = evidence.names.get(one.algorithm.label, one.algorithm.label)
    for where, known in (("evidence.reference", evidence.reference), ("evidence.names", name)):
        if known not in summary:
            raise InvalidInput(where, known, "an algorithm of the run", suggest(known, summary))
    if f"{name}/{evidence.metric}" not in arrays:
        known = sorted(key.partition("/")[2] for key in arrays if key.startswith(f"{name}/"))
        raise InvalidInput(
            "evidence.metric", evidence.metric, "a metric of the run", suggest(evidence.metric, known)
        )
    n = tomllib.loads((folder / "spec.toml").read_text("utf-8"))["topology"]["n"]

    def to_target(which: str, axis: str) -> np.ndarray:
        values, at = arrays[f"{which}/{evidence.metric}"], arrays[f"{which}/{axis}"]
        return np.atleast_1d(time_to_target(at, values, evidence.target, better_direction(evidence.metric)))

    samples, reference = to_target(name, "samples"), to_target(evidence.reference, "samples")
    said = paired_times(reference, samples)
    reached = np.isfinite(samples)
    steps = float((to_target(name, "gradients")[reached]).mean() / n) if reached.any() else None
    unmatched = _unmatched(summary[name], n, one)
    low, high = said.ratio_interval or (None, None)
    if said.ratio is not None and samples.size == 1:
        low = high = None
    why = said.reason if said.ratio is None else ""
    return Useful(evidence.run, low, said.ratio, high, steps, float(one.step_s), unmatched, why)


SYNCHRONOUS = ("ddp", "fsdp")
"""Kinds whose samples are those of synchronous SGD, however long messages take."""


def _unmatched(summary: Mapping[str, Any], n: int, one: Projection) -> tuple[str, ...]:
    if one.algorithm.kind in SYNCHRONOUS:
        return ()
    timeline = summary.get("timeline") or {}
    per_s = summary.get("realised_per_worker_and_s", {}).get("gradient") or 0.0
    method, options = METHODS[one.algorithm.kind], METHODS[one.algorithm.kind].options
    rate = (
        float(np.max(one.algorithm.get("exchanges_per_gradient")))
        if "exchanges_per_gradient" in options
        else 1.0
    )
    every = float(np.max(one.algorithm.get("local_steps"))) if "local_steps" in options else 1.0
    if "fragments" in options:
        every /= float(np.max(one.algorithm.get("fragments")))
    message = float(np.max(one.exchange.busy_s)) * every / rate / float(np.max(one.step.total_s))
    late = rate if method.buffers >= 2 else float(method.buffers)
    pairs = {
        "message / gradient time": ((timeline.get("message_age_s_mean") or 0.0) * per_s, message),
        "staleness / n": (
            (timeline.get("staleness_mean") or 0.0) / n,
            late / float(np.max(one.layout.n_workers)),
        ),
        "spread of speeds": (summary.get("rate_spread") or 0.0, one.conditions.spread.cv or 0.0),
    }
    return tuple(
        f"{what} {toy:.3g} on the toy, {here:.3g} here"
        for what, (toy, here) in pairs.items()
        if not _match(toy, here)
    )


def _match(first: float, second: float) -> bool:
    low, high = sorted((abs(first), abs(second)))
    return high <= NEGLIGIBLE or (low > 0 and math.log(high / low) <= math.log(FACTOR))
