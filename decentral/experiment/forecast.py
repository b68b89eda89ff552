"""What a sweep would take: its runs with events, memory and time, before anything runs."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decentral.analysis.tables import comparison_table
from decentral.errors import DecentralError
from decentral.experiment import folder as folders
from decentral.experiment.prepared import Size
from decentral.experiment.run import keeping_warnings, run
from decentral.experiment.spec import Spec, validate
from decentral.experiment.sweep_folder import Sweep, SweepRun
from decentral.experiment.sweeps import SweepPlan, precision, shape_of

SAMPLE_EVENTS = 20_000
"""Expected events of the short run that time is measured with: enough to see their rate beside what is done once."""
SAMPLED = 3
"""Shapes that are measured at most, those of the least, the most and a middling number of bytes."""
PER_EVENT = ("timeline", "plan", "run")
WRITE_S, WRITE_ALGORITHM_S = 0.4, 0.1
"""What writing a run folder takes, with so much for each algorithm: a rough figure. The overview plot alone was 0.45 s (two
algorithms) and 0.55 s (eight) on a busy 2-core machine."""
MEASURED, SAMPLE, NEAREST = "finished runs", "a short run", "a short run of another shape"
FACTORS = {MEASURED: 1.5, SAMPLE: 2.0, NEAREST: 4.0}
"""By how much a time may be off, up or down, by what it was derived from."""


@dataclass(frozen=True)
class Pace:
    """How long runs of one shape take here.

    Attributes:
        once_s: compiling, building, writing: whatever does not grow with the events.
        write_s: of that what every run of a group takes for itself.
        event_s: of an event, timeline to result.
        record_s: of a record, of all replicas.
        source: a key of ``FACTORS``.
    """

    once_s: float
    write_s: float
    event_s: float
    record_s: float
    source: str

    def seconds(self, events: float, records: int) -> float:
        """What grows with a run."""
        return self.event_s * events + self.record_s * records


@dataclass(frozen=True)
class Forecast:
    """The runs of a sweep, and what they would take.

    Attributes:
        plan: the sweep's.
        seconds: id -> wall time in one process, expected, of what is missing; what a group does once is shared out.
        factor: id -> by how much that may be off, up or down.
        sources: id -> where the time comes from.
        why: where there is no time, the reason.
    """

    plan: SweepPlan
    seconds: dict[str, float]
    factor: dict[str, float]
    sources: dict[str, str]
    why: tuple[str, ...]

    def rows(self) -> dict[str, dict[str, Any]]:
        """Run -> column -> value, of all runs that were asked for."""
        labels = _settings(self.plan)
        groups = self.plan.groups
        rows = {}
        for key in self.plan.asked:
            row: dict[str, Any] = dict(labels[key]) | {"group": groups[key]}
            status = self.plan.status[key]
            if key in self.plan.sizes:
                row["events"] = float(f"{_events(self.plan.specs[key], self.plan.sizes[key]):.3g}")
                row["memory"] = f"{_bytes_of(self.plan.sizes[key]) / 2**20:,.1f} MiB"
            if key in self.seconds:
                row["time"] = _span(self.seconds[key], self.factor[key])
            rows[key] = row | {"status": "to do" if status == "missing" or key in self.seconds else status}
        return rows

    def text(self) -> str:
        """The table, and the sums below it."""
        rows = {key: {"algorithm": key, **row} for key, row in self.rows().items()}
        table = comparison_table(rows).replace("algorithm", "run      ", 1)
        status = list(self.plan.status.values())
        todo = self.plan.todo
        groups = self.plan.groups
        words = [
            f"{len(self.plan.asked)} runs: {status.count('finished')} finished, {status.count('failed')} failed, "
            f"{len(todo)} to do, in {len({groups[key] for key in todo})} groups; {self.plan.folder}"
        ]
        if todo:
            largest: dict[int, float] = {}
            for key in todo:
                largest[groups[key]] = largest.get(groups[key], 0.0) + _bytes_of(self.plan.sizes[key])
            words.append(
                f"memory   up to {max(largest.values()) / 2**20:,.1f} MiB for a group, beside a process's own 400 MiB or so"
            )
        if self.seconds:
            total = sum(self.seconds.values())
            factor = math.exp(
                sum(s * math.log(self.factor[key]) for key, s in self.seconds.items()) / max(total, 1e-9)
            )
            sources = ", ".join(dict.fromkeys(self.sources.values()))
            words.append(f"time     {_span(total, factor)} in one process of this machine, from {sources}")
        return "\n".join([table, *words, *self.why]) + "\n"


def forecast(plan: SweepPlan) -> Forecast:
    """What a sweep would take; nothing is left on the disk.

    Times come from runs of the same shape that are finished, or else from short runs made now: of at most ``SAMPLED`` shapes.

    Args:
        plan: the sweep's.
    """
    todo = plan.todo
    shapes = {key: shape_of(plan.specs[key]) or key for key in todo}
    paces, why = _from_finished(plan, set(shapes.values())), list[str]()
    unknown = list(dict.fromkeys(shape for shape in shapes.values() if shape not in paces))
    first = {shape: next(key for key in todo if shapes[key] == shape) for shape in unknown}
    bytes_of = {shape: _bytes_of(plan.sizes[key]) for shape, key in first.items()}
    for shape in _spread(sorted(unknown, key=lambda shape: bytes_of[shape])):
        key = first[shape]
        try:
            with precision(plan.record["x64"]):
                paces[shape] = _sampled(plan.specs[key], plan.sizes[key])
        except DecentralError as error:
            why.append(f"no time for runs like {key}: {error}")
    sampled = {shape: pace for shape, pace in paces.items() if shape in bytes_of}
    for shape in unknown:
        if shape not in paces and sampled:
            nearest = min(sampled, key=lambda other: abs(math.log(bytes_of[other] / bytes_of[shape])))
            paces[shape] = dataclasses.replace(sampled[nearest], source=NEAREST)
    groups, members = plan.groups, dict[int, list[str]]()
    for key in todo:
        members.setdefault(groups[key], []).append(key)
    seconds, factor, sources = dict[str, float](), dict[str, float](), dict[str, str]()
    for keys in members.values():
        for key in keys:
            if shapes[key] not in paces:
                continue
            pace, spec = paces[shapes[key]], plan.specs[key]
            records = _records(spec) * len(spec.algorithm)
            own = pace.seconds(_events(spec, plan.sizes[key]), records)
            seconds[key] = own + pace.write_s + (pace.once_s - pace.write_s) / len(keys)
            factor[key], sources[key] = FACTORS[pace.source], pace.source
    return Forecast(plan, seconds, factor, sources, tuple(why))


def _events(spec: Spec, sizes: Mapping[str, Size]) -> float:
    """Of all algorithms and seeds, and of the trials of those that are tuned."""
    events = {name: size.events for name, size in sizes.items()}
    tune = spec.tune_object()
    for name, grid in spec.grids().items():
        assert tune is not None
        events[name] *= 1 + math.prod(map(len, grid.values())) * tune.seeds / spec.seeds
    return sum(events.values())


def _bytes_of(sizes: Mapping[str, Size]) -> float:
    return max(size.memory_bytes for size in sizes.values())


def _records(spec: Spec) -> int:
    record = spec.record_object()
    for times in (record.times_s, record.events):
        if times is not None:
            return len(times)
    return record.count + 1


def _settings(plan: SweepPlan) -> dict[str, dict[str, str]]:
    """Run -> what it has of its own, in words."""
    given = {
        key: point
        for key, point in ((run["id"], run["set"]) for run in plan.record["runs"])
        if key in plan.specs
    }
    keys = dict.fromkeys(key for point in given.values() for key in point)
    varied = [
        key for key in keys if len({str(point.get(key)) for point in given.values()}) > 1 or len(given) == 1
    ]
    return {
        run: {key.removeprefix("algorithm."): str(point[key]) for key in varied if key in point}
        for run, point in given.items()
    }


def _spread(shapes: Sequence[str]) -> list[str]:
    """The first, the last and one in the middle."""
    if len(shapes) <= SAMPLED:
        return list(shapes)
    return [shapes[round(k * (len(shapes) - 1) / (SAMPLED - 1))] for k in range(SAMPLED)]


def _from_finished(plan: SweepPlan, wanted: set[str]) -> dict[str, Pace]:
    """Shape -> pace, from the runs in the folder that are finished: of each shape the last one."""
    paces: dict[str, Pace] = {}
    if plan.before is None:
        return paces
    for done in Sweep.load(plan.folder).having("finished"):
        try:
            spec = validate(done.tables)
            shape = shape_of(spec)
            if shape in wanted:
                paces[shape] = _pace_of(done, spec)
        except (DecentralError, KeyError, TypeError, ValueError):  # no reason to say nothing about the others
            continue
    return paces


def _pace_of(done: SweepRun, spec: Spec) -> Pace:
    manifest = folders.read_json(done.folder / "manifest.json", "manifest")
    events = sum(entry["events"] for entry in done.summary["algorithms"].values())
    return _pace(
        manifest["wall_s"], events, _records(spec), manifest.get("wall_s_shared_by", 1), None, MEASURED
    )


def _pace(
    wall_s: Mapping[str, Mapping[str, float]],
    events: float,
    records: int,
    shared_by: int,
    total_s: float | None,
    source: str,
) -> Pace:
    of_stage = {
        stage: sum(own[stage] for own in wall_s.values()) for stage in (*PER_EVENT, "compile", "record")
    }
    grows = sum(of_stage[stage] for stage in PER_EVENT)
    write_s = WRITE_S + WRITE_ALGORITHM_S * len(wall_s)
    once_s = of_stage["compile"] * shared_by + write_s
    if total_s is not None:
        once_s = max(once_s, total_s - grows - of_stage["record"])
    return Pace(once_s, write_s, grows / max(events, 1), of_stage["record"] / (records * len(wall_s)), source)


def _sampled(spec: Spec, sizes: Mapping[str, Size]) -> Pace:
    """The pace of a run, from a short one of one seed.

    Raises:
        DecentralError: it does not run.
    """
    events = sum(size.events for size in sizes.values())
    one: dict[str, Any] = spec.as_dict() | {"seeds": 1}
    one.pop("tune", None)
    share = min(1.0, SAMPLE_EVENTS * len(sizes) * spec.seeds / max(events, 1))
    stop = dict(one["stop"])
    for key in ("time_s", "gradients"):
        if key in stop:
            stop[key] = stop[key] * share if key == "time_s" else max(1, int(stop[key] * share))
    record = {key: value for key, value in one["record"].items() if key in ("kind", "evaluate")}
    short = validate(one | {"stop": stop, "record": record | {"count": 5}})
    with tempfile.TemporaryDirectory() as room:
        began = time.perf_counter()
        with keeping_warnings([], aloud=False):  # of a run that nobody asked for
            done = run(short, out=Path(room) / "run")
        total_s = time.perf_counter() - began
        happened = sum(result.constants["events"] for result in done.results.values())
        wall_s = {name: result.wall_s for name, result in done.results.items()}
    pace = _pace(wall_s, happened, 6, 1, total_s, SAMPLE)
    return dataclasses.replace(pace, record_s=pace.record_s * spec.seeds)


def _span(seconds: float, factor: float) -> str:
    """A time and how sure it is."""
    return f"{_words(seconds)} ({_words(seconds / factor)} to {_words(seconds * factor)})"


def _words(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
