"""From a file and the command line to plain tables: what can be done before JAX is worth importing."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from decentral.errors import InvalidInput, suggest

PARTS = (
    *("optimizer", "outer_optimizer", "inner", "protocol", "compressor"),
    *("feedback", "detector", "features", "code"),
)
"""Tables in an algorithm's table."""
SHORT = {"lr": "optimizer.learning_rate"}
"""What is typed so often that it has a short word."""
INNER = ("projections", "meta_trainings")
"""Folders of experiments whose specs are of another kind."""


def read_tables(
    source: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    smoke: bool = False,
    room: str = "experiments",
) -> dict[str, Any]:
    """The tables of a spec as they will run: ``[smoke]`` applied or left out, then the overrides. Nothing is validated.

    Args:
        source: a TOML file, the name of a packaged experiment, or the tables themselves.
        overrides: ``"dotted.key=TOML value"``.
        smoke: apply the ``[smoke]`` table.
        room: where packaged ones lie, as of :func:`find_spec`.

    Raises:
        InvalidInput: no such file, not TOML, an override that leads nowhere, or no ``[smoke]`` table to apply.
    """
    tables = _copy(source if isinstance(source, Mapping) else _read(find_spec(source, room)))
    small = tables.pop("smoke", None)
    if small is None and smoke:
        advice = "Add a table, e.g. [smoke] and below it topology.n = 8."
        raise InvalidInput("--smoke", "a spec without [smoke]", "a spec that says what is smaller", advice)
    if not isinstance(small, Mapping | None):
        raise InvalidInput("smoke", small, "a table of keys and their smaller values")
    for key, value in flat(small) if smoke and small else ():
        _set(tables, key, value, f"smoke.{key}")
    for text in overrides:
        key, value = parse_override(text)
        _set(tables, key, value, f"--set {key}")
    return tables


def changed(tables: Mapping[str, Any], values: Mapping[str, Any], said: str = "--set") -> dict[str, Any]:
    """A copy of a spec's tables with other values under some dotted keys.

    Args:
        tables: as of :func:`read_tables`.
        values: dotted key -> value.
        said: where it was asked for.

    Raises:
        InvalidInput: a key that leads nowhere.
    """
    copied: dict[str, Any] = _copy(tables)
    for key, value in values.items():
        _set(copied, key, _copy(value), f"{said} {key}")
    return copied


def parse_override(text: str) -> tuple[str, Any]:
    """``"dotted.key=TOML value"`` -> key and value; a bare word is a string.

    Raises:
        InvalidInput: no key, or a value that is neither.
    """
    key, equals, raw = text.partition("=")
    key, raw = key.strip(), raw.strip()
    if not equals or not all(part.strip() for part in key.split(".")):
        raise InvalidInput("--set", text, "KEY=VALUE with a dotted key, e.g. topology.n=64")
    if key.split(".")[0] == "smoke":
        raise InvalidInput(
            "--set",
            text,
            "a key of the spec itself",
            "--smoke applies the [smoke] table; overrides come after it.",
        )
    try:
        parsed = tomllib.loads(f"value = {raw}")
        if list(parsed) == ["value"]:
            return key, parsed["value"]
    except tomllib.TOMLDecodeError:
        if re.fullmatch(r"[^\"'\[\]{}=\n]+", raw):
            return key, raw
    raise InvalidInput(f"--set {key}", raw, "a TOML value, or a bare word for a string")


def find_spec(source: str | Path, room: str = "experiments") -> Path:
    """The file of a spec: a path, or the name of a packaged one (in the package first, else in the checkout).

    Args:
        source: the path or the name.
        room: "experiments", "projections" or "meta_trainings".

    Raises:
        InvalidInput: neither; names the nearest.
    """
    path = Path(source)
    if path.is_file():
        return path
    known = packaged(room)
    name = str(source).removeprefix("experiments/").removeprefix(f"{room}/").removesuffix(".toml")
    if name in known:
        return known[name]
    raise InvalidInput(
        "SPEC", str(source), f"a TOML file, or one of the packaged {room}", suggest(name, known)
    )


def packaged(folder: str) -> dict[str, Path]:
    """Name -> file of what the package carries in ``experiments``, one of its folders ``INNER``, or ``topologies``."""
    here = Path(str(resources.files("decentral")))
    inner = Path("experiments") / folder if folder in INNER else Path(folder)
    for root in (here / "_packaged" / inner, here.parent / inner):
        if root.is_dir():
            found = {
                path.relative_to(root).with_suffix("").as_posix(): path
                for path in sorted(root.rglob("*.toml"))
            }
            return {name: path for name, path in found.items() if name.partition("/")[0] not in INNER}
    return {}


def algorithm_names(tables: Mapping[str, Any]) -> list[str]:
    """The name of each algorithm table: given, or its kind."""
    return [str(table.get("name", table.get("kind"))) for table in _algorithms(tables)]


def _read(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InvalidInput("SPEC", str(path), "a TOML file", f"Reading it failed: {error}") from None


def _algorithms(tables: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The algorithm tables; what is not a table is left to the validation."""
    algorithms = tables.get("algorithm", [])
    algorithms = [algorithms] if isinstance(algorithms, Mapping) else algorithms
    return [table for table in algorithms if isinstance(table, dict)] if isinstance(algorithms, list) else []


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; a table with a kind of its own is a value: it replaces, the others are merged in."""
    for key, value in table.items():
        if isinstance(value, Mapping) and not isinstance(value.get("kind", []), str):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _set(tables: dict[str, Any], key: str, value: Any, said: str) -> None:
    """Set one dotted key; ``said`` is where it was asked for."""
    room, _, rest = key.partition(".")
    if room != "algorithm" or not rest:
        set_in(tables, key, value, said)
        return
    names = algorithm_names(tables)
    whose, rest = addressed(rest, names, said, value)
    for table, name in zip(_algorithms(tables), names, strict=True):
        if name in whose:
            set_in(table, rest, value, said)


def addressed(key: str, names: Sequence[str], said: str, value: Any) -> tuple[list[str], str]:
    """Which algorithms ``X`` (all of them) or ``NAME.X`` speaks of, and X; ``lr`` is ``optimizer.learning_rate``.

    Args:
        key: what follows ``algorithm.``
        names: of the algorithms.
        said: where it was asked for.
        value: what was asked for.

    Raises:
        InvalidInput: no algorithm of this name.
    """
    owner = max((name for name in names if key.startswith(f"{name}.")), key=len, default=None)
    rest = key if owner is None else key.removeprefix(f"{owner}.")
    first, _, deeper = rest.partition(".")
    if first in names or (deeper and first not in PARTS):
        raise InvalidInput(
            said,
            value,
            "algorithm.X for all algorithms, algorithm.NAME.X for one",
            suggest(first, names).replace("Allowed", "Names"),
        )
    return list(names) if owner is None else [owner], SHORT.get(rest, rest)


def set_in(table: dict[str, Any], key: str, value: Any, said: str) -> None:
    """Set a dotted key of a table, making the tables on the way.

    Raises:
        InvalidInput: it leads through a value.
    """
    *way, last = key.split(".")
    for part in way:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise InvalidInput(said, value, f"a key of a table ({part} is a value)")
    table[last] = value
