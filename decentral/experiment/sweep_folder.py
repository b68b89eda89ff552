"""Sweep folders: ``sweep.json`` says which runs a sweep has, ``runs/ID/`` holds each of them. Reading one costs no JAX."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from decentral.errors import DecentralError, InvalidInput, MissingExtra
from decentral.experiment import folder as folders
from decentral.experiment.overrides import addressed, algorithm_names, changed

if TYPE_CHECKING:
    import pandas

FILE = "sweep.json"


def is_sweep(directory: str | Path) -> bool:
    """Whether a folder holds a sweep."""
    return (Path(directory) / FILE).is_file()


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        id: of its spec: the first 12 hexadecimal digits of its SHA-256.
        set: dotted key -> value: what it was asked for beside the sweep's spec.
        tables: of its spec: the sweep's with ``set``.
        keys: what differs between the runs of the sweep.
        group: runs of one group are computed together.
        folder: where it lies, an ordinary run folder.
        status: ``"finished"``, ``"failed"``, or ``"missing"``.
        failure: of a failed run ``stage``, ``event``, ``time_s``, ``worker``, ``seed`` and ``message``.
    """

    id: str
    set: dict[str, Any]
    tables: dict[str, Any] = field(repr=False)
    keys: tuple[str, ...] = field(repr=False)
    group: int
    folder: Path
    status: str
    failure: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def varied(self) -> dict[str, Any]:
        """Dotted key -> value, of what differs between the runs."""
        return {key: value_at(self.tables, key) for key in self.keys}

    @property
    def label(self) -> str:
        """What it has of its own, in words."""
        return ", ".join(f"{key} = {value}" for key, value in self.varied.items()) or self.id

    def varied_of(self, algorithm: str) -> dict[str, Any]:
        """What differs between the runs and concerns one algorithm; its own keys without their ``algorithm.NAME.``."""
        found: dict[str, Any] = {}
        for key in self.keys:
            room, _, rest = key.partition(".")
            if room != "algorithm" or not rest:
                found[key] = value_at(self.tables, key)
                continue
            whose, own = addressed(rest, algorithm_names(self.tables), key, None)
            if algorithm in whose:
                found[own] = value_at(self.tables, f"algorithm.{algorithm}.{own}")
        return found

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The contents of its ``summary.json``.

        Raises:
            InvalidInput: it has none.
        """
        return folders.read_json(self.folder / "summary.json", "summary")

    @cached_property
    def warnings(self) -> list[str]:
        """What it warned of; nothing while it is missing.

        Raises:
            InvalidInput: its manifest is damaged.
        """
        if self.status == "missing":
            return []
        return folders.read_json(self.folder / "manifest.json", "manifest").get("warnings", [])


@dataclass(frozen=True)
class Sweep:
    """A sweep as it lies in its folder.

    Attributes:
        folder: where.
        name: of its spec.
        source: the tables of its spec.
        axes: dotted key -> values that runs have.
        search: ``"grid"``, ``"list"`` or ``"random"``, the last that was asked for.
        seeds: of each run.
        x64: whether its processes compute with 64 bits where a spec says so.
        provenance: of the first start: versions, commit, command line.
        runs: all of them, in the order in which they were asked for.
    """

    folder: Path
    name: str
    source: dict[str, Any] = field(repr=False)
    axes: dict[str, list]
    search: str
    seeds: int
    x64: bool
    provenance: dict[str, Any] = field(repr=False)
    runs: tuple[SweepRun, ...] = field(repr=False)

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read a sweep's folder; of its runs only how they stand.

        Raises:
            InvalidInput: there is no sweep, or it is damaged.
        """
        folder = Path(directory)
        record = read(folder)
        try:
            given = [changed(record["source"], run["set"]) for run in record["runs"]]
            keys = _differing(given, dict.fromkeys(key for run in record["runs"] for key in run["set"]))
            runs = []
            for run, tables in zip(record["runs"], given, strict=True):
                place = folder / "runs" / run["id"]
                status, failure = status_of(place)
                runs.append(
                    SweepRun(run["id"], run["set"], tables, keys, run["group"], place, status, failure)
                )
            return cls(
                folder, record["name"], record["source"], record["axes"], record["search"], record["seeds"], record["x64"],
                record["provenance"], tuple(runs),
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, InvalidInput):
                raise
            advice = f"It is damaged ({type(error).__name__}: {error})."
            raise InvalidInput("sweep", str(folder / FILE), "a file this package wrote", advice) from None

    def having(self, status: str) -> list[SweepRun]:
        """The runs that are ``"finished"``, ``"failed"`` or ``"missing"``."""
        return [run for run in self.runs if run.status == status]

    def to_dataframe(self) -> pandas.DataFrame:
        """A row for each run and algorithm.

        Columns: ``run``, what varies (:meth:`SweepRun.varied_of`), ``status``, ``algorithm``, and where the run is finished
        ``seeds`` and for every final metric the mean and the half width of its 95 % interval: ``METRIC``, ``METRIC_half_width``.

        Raises:
            MissingExtra: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError:
            raise MissingExtra("to_dataframe", "pandas", "notebooks") from None
        rows = []
        for run in self.runs:
            finished = run.summary["algorithms"] if run.status == "finished" else {}
            for name in algorithm_names(run.tables):
                row: dict[str, Any] = {"run": run.id, **run.varied_of(name), "status": run.status}
                row["algorithm"] = name
                if name in finished:
                    row["seeds"] = len(finished[name]["seeds"])
                for metric, values in finished.get(name, {}).get("final", {}).items():
                    row |= {metric: values["mean"], f"{metric}_half_width": values["half_width"]}
                rows.append(row)
        return pandas.DataFrame(rows)


def read(folder: Path) -> dict[str, Any]:
    """The contents of ``sweep.json``.

    Raises:
        InvalidInput: there is none, or it is damaged.
    """
    if not is_sweep(folder):
        advice = "decentral sweep SPEC makes one."
        raise InvalidInput("DIR", str(folder), f"a sweep folder (one with a {FILE})", advice)
    return folders.read_json(folder / FILE, "sweep")


def status_of(folder: Path) -> tuple[str, dict[str, Any] | None]:
    """How a run stands: ``"finished"``, ``"failed"`` or ``"missing"``; and of a failed one why.

    Raises:
        InvalidInput: its manifest is damaged.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        status = manifest["status"]
    except FileNotFoundError:
        return "missing", None
    except (OSError, ValueError, KeyError, TypeError) as error:
        advice = f"It is damaged ({error}). Remove that folder, and the sweep makes it again."
        raise InvalidInput(
            "manifest", str(folder / "manifest.json"), "a file this package wrote", advice
        ) from None
    if status == "finished":
        return status, None
    return "failed", manifest.get("failure") or {"stage": None, "message": manifest.get("error")}


def _differing(given: Sequence[Mapping[str, Any]], keys: Iterable[str]) -> tuple[str, ...]:
    """The keys under which not all runs have the same."""
    columns = {key: [value_at(tables, key) for tables in given] for key in keys}
    return tuple(key for key, values in columns.items() if any(value != values[0] for value in values))


def value_at(tables: Mapping[str, Any], key: str) -> Any:
    """What a spec's tables say under a dotted key; None where they say nothing, or two algorithms say two things."""
    room, _, rest = key.partition(".")
    places: list[Any] = [tables]
    if room == "algorithm" and rest:
        try:
            names = algorithm_names(tables)
            whose, key = addressed(rest, names, key, None)
        except DecentralError:
            return None
        given = tables.get("algorithm", [])
        given = [given] if isinstance(given, Mapping) else given
        places = [table for table, name in zip(given, names, strict=True) if name in whose]
    found = []
    for place in places:
        for part in key.split("."):
            place = place.get(part) if isinstance(place, Mapping) else None
        found.append(place)
    return found[0] if found and all(value == found[0] for value in found) else None
