"""What a sweep varies: values and ranges of dotted keys become points, each a setting of some keys."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from decentral.errors import InvalidInput
from decentral.experiment.overrides import flat, parse_override

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(:log)?")
RANGE_WORDS = "LOW..HIGH, or LOW..HIGH:log (e.g. 1e-3..1e-1:log; whole numbers at both ends: whole numbers)"
DIGITS = 4
"""Significant digits of a number drawn from a range: short enough to be read in a table, and to be typed."""
Point = dict[str, Any]
"""Dotted key -> value."""


@dataclass(frozen=True)
class Range:
    """Numbers to draw from.

    Attributes:
        low, high: the ends, both included.
        log: uniform in the logarithm.
        whole: whole numbers only.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, share: float) -> float | int:
        """The number at a share of the way, from 0 to 1."""
        low, high = self.low, self.high
        if self.whole and not self.log:
            low, high = low - 0.5, high + 0.5  # the ends as often as the others
        value = low * (high / low) ** share if self.log else low + share * (high - low)
        if self.whole:
            return int(min(max(round(value), self.low), self.high))
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def __str__(self) -> str:
        ends = [f"{int(end)}" if self.whole else repr(float(end)) for end in (self.low, self.high)]
        return "..".join(ends) + (":log" if self.log else "")


def parse_range(key: str, text: str) -> Range | None:
    """The range a text says, None where it says none.

    Raises:
        InvalidInput: its ends are the wrong way round, or not above 0 where their logarithms are needed.
    """
    found = RANGE.fullmatch(text.strip())
    if found is None:
        return None
    low, high = float(found[1]), float(found[2])
    whole = all(re.fullmatch(r"[-+]?\d+", found[k]) for k in (1, 2))
    log = found[3] is not None
    if not low < high or (log and low <= 0):
        raise InvalidInput(
            f"--set {key}", text, f"{RANGE_WORDS}, LOW < HIGH" + (", both above 0" if log else "")
        )
    return Range(low, high, log, whole)


def split_values(text: str) -> list[str]:
    """The pieces between commas that stand in no quotes and no brackets."""
    pieces, depth, quote, start = [], 0, "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote and text[place - 1] != "\\" else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "[{(":
            depth += 1
        elif letter in "]})":
            depth -= 1
        elif letter == "," and depth == 0:
            pieces.append(text[start:place])
            start = place + 1
    return [piece.strip() for piece in (*pieces, text[start:])]


def parse_axes(texts: Sequence[str]) -> dict[str, Any]:
    """``KEY=V1,V2``, ``KEY=V`` and ``KEY=LOW..HIGH`` -> key -> a list of values, a value, or a :class:`Range`.

    Raises:
        InvalidInput: no key, a value that is none, a key twice.
    """
    axes: dict[str, Any] = {}
    for text in texts:
        key, equals, raw = text.partition("=")
        key = key.strip()
        pieces = split_values(raw)
        if equals and any(not piece for piece in pieces):
            raise InvalidInput(f"--set {key}", raw, "values with commas between them, e.g. topology.n=16,64")
        found = parse_range(key, raw) if equals else None
        read = [parse_override(f"{key}={piece}" if equals else text) for piece in pieces]
        key = read[0][0]
        if key in axes:
            raise InvalidInput(f"--set {key}", text, "each key once", "Its values go into one: KEY=V1,V2.")
        values = [value for _, value in read]
        axes[key] = found or (values if len(values) > 1 else values[0])
    return axes


def as_axes(given: Mapping[str, Any]) -> dict[str, Any]:
    """Axes given in Python: lists of values, single values, ranges as text.

    Raises:
        InvalidInput: an empty list, a key that is none.
    """
    axes = {}
    for key, values in given.items():
        if not isinstance(key, str) or not all(part.strip() for part in key.split(".")):
            raise InvalidInput("axes", key, "dotted keys, e.g. topology.n")
        if key.split(".")[0] == "smoke":
            raise InvalidInput("axes", key, "a key of the spec itself")
        if isinstance(values, list | tuple | np.ndarray):
            values = [value.item() if isinstance(value, np.generic) else value for value in values]
            if not values:
                raise InvalidInput(f"axes {key}", values, "at least one value")
        elif isinstance(values, str):
            values = parse_range(key, values) or values
        elif isinstance(values, np.generic):
            values = values.item()
        axes[key] = values
    return axes


def read_points(path: str | Path) -> list[Point]:
    """Points from a file: CSV, JSON or TOML.

    CSV has a column per dotted key, where an empty cell leaves the spec's value; JSON a list of objects; TOML a table
    ``[[point]]`` each. Objects and tables may be nested; one with a kind of its own replaces the spec's, as in ``[smoke]``.

    Raises:
        InvalidInput: not such a file, or a cell that is no TOML value.
    """
    path, kind = Path(path), Path(path).suffix.lower()
    allowed = "a .csv with a column per dotted key, a .json with a list of objects, or a .toml with [[point]] tables"
    if kind not in (".csv", ".json", ".toml"):
        raise InvalidInput("--list", str(path), allowed)
    try:
        if kind == ".csv":
            with open(path, newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file, skipinitialspace=True))
            if any(None in row or None in row.values() for row in rows):
                raise InvalidInput("--list", str(path), "as many cells in every row as in the first")
            points = [
                dict(parse_override(f"{key}={cell}") for key, cell in row.items() if cell.strip())
                for row in rows
            ]
        elif kind == ".json":
            points = json.loads(path.read_text())
        else:
            tables = tomllib.loads(path.read_text())
            if set(tables) != {"point"}:
                raise InvalidInput("--list", f"{path}: {', '.join(tables) or 'nothing'}", allowed)
            points = tables["point"]
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise InvalidInput("--list", str(path), allowed, f"Reading it failed: {error}") from None
    return as_points(points, "--list", str(path), allowed)


def as_points(points: Any, said: str, got: Any, allowed: str) -> list[Point]:
    """Points in plain form.

    Raises:
        InvalidInput: not a list of tables, or an empty one.
    """
    wrong = not isinstance(points, list | tuple) or not all(isinstance(p, Mapping) and p for p in points)
    if wrong or not points:
        raise InvalidInput(said, got, allowed)
    return [dict(flat(point)) for point in points]


def points_of(
    axes: Mapping[str, Any], *, listed: Sequence[Point] | None = None, draws: int | None = None, seed: int = 0
) -> list[Point]:
    """All points: the grid of the axes; for each point of a list; or draws at random.

    A draw depends on the seed, its number and its key: more draws, or another key, change none of the others.

    Args:
        axes: key -> list of values, a value, or a :class:`Range`.
        listed: points of a list; values of axes come on top.
        draws: how many to draw; a list of values is then what to draw from.
        seed: of the draws.

    Raises:
        InvalidInput: a range where nothing is drawn, nothing to draw from, a key in the list and in the axes.
    """
    if draws is None:
        for key, values in axes.items():
            if isinstance(values, Range):
                raise InvalidInput(f"--set {key}", str(values), "values", "To draw from a range: --random N.")
        lists = {key: values if isinstance(values, list) else [values] for key, values in axes.items()}
        grid = [dict(zip(lists, chosen, strict=True)) for chosen in itertools.product(*lists.values())]
        for point in listed or ():
            if both := set(point) & set(axes):
                raise InvalidInput("--set", ", ".join(sorted(both)), "keys that the list does not have")
        return [{**point, **more} for point in listed or [{}] for more in grid]
    if listed is not None:
        raise InvalidInput("--random", draws, "without --list")
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise InvalidInput("--random", draws, "an integer >= 1")
    if not any(isinstance(values, list | Range) for values in axes.values()):
        raise InvalidInput("--random", draws, f"a key to draw: --set KEY={RANGE_WORDS}, or KEY=V1,V2,...")
    points: list[Point] = [{} for _ in range(draws)]
    for key, values in axes.items():
        own = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
        shares = np.random.default_rng([seed, own]).random(draws).tolist()
        for point, share in zip(points, shares, strict=True):
            if isinstance(values, Range):
                point[key] = values.at(share)
            elif isinstance(values, list):
                point[key] = values[min(math.floor(share * len(values)), len(values) - 1)]
            else:
                point[key] = values
    return points
