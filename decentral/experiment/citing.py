"""BibTeX of what a run used. ``references.toml`` beside this file has the papers, and what is from which."""

from __future__ import annotations

import dataclasses
import inspect
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decentral.errors import InvalidInput, suggest

if TYPE_CHECKING:
    from decentral.experiment.comparison import Comparison
    from decentral.experiment.result import Result
    from decentral.experiment.run import Run

Use = tuple[str, str]
"""What a spec says: a key (of a table of ``references.toml``) and its value, such as ``("algorithm", "a2cid2")``."""

AUTHORS = "The decentral developers"
TITLE = "decentral: a simulator for decentralized, asynchronous optimization"
JAX = """@software{jax2018github,
  author = {James Bradbury and Roy Frostig and Peter Hawkins and Matthew James Johnson and Chris Leary and Dougal Maclaurin \
and George Necula and Adam Paszke and Jake Vander{P}las and Skye Wanderman-{M}ilne and Qiao Zhang},
  title = {{JAX}: composable transformations of {P}ython+{N}um{P}y programs},
  url = {http://github.com/jax-ml/jax},
  version = {%s},
  year = {2018},
}"""
"""As JAX's README asks for it (read there); the version is filled in."""
RECALLED = "Written from memory, not checked: look it up before you print it."


def cite(what: Result | Comparison | Run | str | Path | Iterable[Any]) -> str:
    """The papers of what a run used, as BibTeX: this package, JAX, the algorithms, data sets and protocols.

    Entries say what the package's own references say, with surnames only; one that was written from memory says so in its note.
    What is the user's own, or has no paper, is named in a comment.

    Args:
        what: a result, a comparison, a finished run; the folder of a run, a sweep or a meta-training; a spec (file or packaged
            name); a name that a spec can use (``"a2cid2"``, ``"server"``, ``"digits"``); or several of these.

    Returns:
        BibTeX in UTF-8, ending in a newline, the same for the same input.

    Raises:
        InvalidInput: none of these, or a folder that is damaged.

    Example:
        >>> print(decentral.cite("a2cid2"))
    """
    uses = list(dict.fromkeys(_uses_of(what)))
    papers, why = _papers(), {}
    for use in uses:
        for paper in _cited(use):
            why.setdefault(paper, []).append(use[1])
    comments, silent = [], [name for key, name in uses if _known(key).get(name) == []]
    if silent:
        comments.append(f"% Without a paper: {', '.join(silent)}.")
    own = [name for key, name in uses if key == "own"]
    if own:
        comments.append(f"% Not of this package, so look for its paper yourself: {', '.join(own)}.")
    entries = [_software(), JAX % _jax_version()]
    entries += [_entry(name, papers[name], uses) for name, uses in why.items()]
    return "\n\n".join(["\n".join(comments)] * bool(comments) + entries) + "\n"


# -- what was used -----------------------------------------------------------------------------------------------------


def _uses_of(what: Any) -> Iterator[Use]:
    if isinstance(what, str | Path):
        yield from _uses_of_name(what)
    elif hasattr(what, "results") and hasattr(what, "spec"):  # a Run
        yield from _uses_of_name(what.folder)
    elif hasattr(what, "algorithm") and hasattr(what, "metrics"):  # a Result
        yield from _uses_of_object("algorithm", what.algorithm)
        yield from _uses_of_object("protocol", what.protocol)
        words = set(what.problem.split("_")) | {what.problem}
        yield from (("data", name) for name in _known("data") if name in words)
    elif isinstance(what, Iterable):
        for one in what:
            yield from _uses_of(one)
    else:
        raise InvalidInput("cite", type(what).__name__, "a result, a run, its folder, a spec, or names", "")


def _uses_of_name(name: str | Path) -> Iterator[Use]:
    from decentral.experiment.overrides import packaged, read_tables

    places = [(key, str(name)) for key in _tables() if str(name) in _known(key)]
    specs = packaged("experiments")
    if places:
        yield from places
    elif Path(name).is_dir():
        yield from _uses_of_folder(Path(name))
    elif Path(name).is_file() or str(name) in specs:
        yield from _uses_of_table(read_tables(str(name)))
    else:
        known = [*(one for key in _tables() for one in _known(key)), *specs]
        allowed = "the folder of a run, a spec, or a name that decentral list prints"
        raise InvalidInput("cite", str(name), allowed, suggest(str(name), dict.fromkeys(known)))


def _uses_of_folder(folder: Path) -> Iterator[Use]:
    from decentral.experiment.folder import require_run

    if (folder / "sweep.json").is_file():
        from decentral.experiment.sweep_folder import Sweep

        for run in Sweep.load(folder).runs:
            yield from _uses_of_table(run.tables)
        return
    path = require_run(folder) / "spec.toml"
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput("spec.toml", str(path), "a file this package wrote", f"{error}.") from None
    yield from _uses_of_table(tables)


def _uses_of_table(tables: Any, key: str = "") -> Iterator[Use]:
    """Everything a spec's tables name: ``kind`` counts as the key of its table, any other key as itself."""
    if isinstance(tables, list | tuple):
        for one in tables:
            yield from _uses_of_table(one, key)
    elif isinstance(tables, Mapping):
        for name, value in tables.items():
            yield from _uses_of_table(value, key if name == "kind" else name)
        if key == "protocol":
            yield from _arguments(str(tables.get("kind", "")), tables)
        if key == "problem":
            yield from _data_of(str(tables.get("kind", "")), tables)
    elif isinstance(tables, str):
        yield {"schedule": "mixing", "detector": "algorithm"}.get(key, key), tables


def _data_of(kind: str, table: Mapping[str, Any]) -> Iterator[Use]:
    """The data set a problem has if nobody says which."""
    from decentral.problem import PROBLEMS

    if kind in _known("data"):
        yield "data", kind
    elif kind in PROBLEMS and "data" not in table:
        default = inspect.signature(PROBLEMS[kind]).parameters.get("data")
        if default is not None:
            yield "data", str(default.default)


def _arguments(kind: str, given: Mapping[str, Any]) -> Iterator[Use]:
    """Arguments that make a protocol another paper's."""
    for name, value in given.items():
        for words in (f"{kind}.{name}", f"{kind}.{name}={value}"):
            if value and words in _known("protocol_argument"):
                yield "protocol_argument", words


def _uses_of_object(key: str, thing: Any) -> Iterator[Use]:
    """As :func:`_uses_of_table`, of the object that was made from a table."""
    from decentral.algorithm import ALGORITHMS, COMPRESSORS
    from decentral.protocol import PROTOCOLS

    if thing is None or isinstance(thing, str | Mapping | list | tuple):
        yield from _uses_of_table(thing, key)
        return
    key = {"inner": "algorithm"}.get(key, key)
    registry = {"algorithm": ALGORITHMS, "protocol": PROTOCOLS, "compressor": COMPRESSORS}.get(key, {})
    kinds = [name for name, kind in registry.items() if type(thing) is kind]
    if registry:
        yield (key, kinds[0]) if kinds else ("own", type(thing).__name__)
    elif isinstance(kind := getattr(thing, "kind", None), str):
        yield key, kind
    fields = getattr(thing, "arguments", None)  # an optimizer's
    if not isinstance(fields, Mapping):
        known = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ()
        fields = {field.name: getattr(thing, field.name, None) for field in known}
    for name, value in fields.items():
        yield from _uses_of_object(name, value)
    if key == "protocol" and kinds:
        yield from _arguments(kinds[0], fields)


# -- papers ------------------------------------------------------------------------------------------------------------


@cache
def _file() -> dict[str, Any]:
    return tomllib.loads((resources.files("decentral.experiment") / "references.toml").read_text("utf-8"))


def _papers() -> Mapping[str, Mapping[str, Any]]:
    """Name -> what is known of a paper."""
    return _file()["papers"]


def _tables() -> list[str]:
    return list(_file()["uses"])


def _known(key: str) -> Mapping[str, list[str]]:
    """Of a key of a spec: its values -> papers."""
    return _file()["uses"].get(key, {})


def _cited(use: Use) -> list[str]:
    key, name = use
    return _known(key).get(name, [])


def _entry(name: str, paper: Mapping[str, Any], used: Iterable[str]) -> str:
    fields = {
        "author": " and ".join(paper["authors"]),
        "title": f"{{{paper['title']}}}",
        **{
            key: paper[key]
            for key in ("booktitle", "journal", "howpublished", "pages", "year", "url")
            if key in paper
        },
    }
    if "arxiv" in paper:
        fields |= {"eprint": paper["arxiv"], "archiveprefix": "arXiv"}
    if paper["known"] == "recalled":
        fields["note"] = RECALLED
    return f"% for {', '.join(dict.fromkeys(used))}\n" + _braced(paper["type"], _key(name, paper), fields)


def _key(name: str, paper: Mapping[str, Any]) -> str:
    surname = unicodedata.normalize("NFKD", paper["authors"][0].replace("ø", "o"))
    letters = re.sub("[^a-z]", "", surname.encode("ascii", "ignore").decode().lower())
    return f"{letters}{paper.get('year', '')}{name.replace('_', '')}"


def _braced(kind: str, key: str, fields: Mapping[str, Any]) -> str:
    lines = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
    return f"@{kind}{{{key},\n{lines}}}"


def _software() -> str:
    from decentral import __version__

    fields = {
        "author": f"{{{AUTHORS}}}",
        "title": f"{{{TITLE}}}",
        "version": __version__,
        "license": "Apache-2.0",
    }
    return _braced("software", "decentral", fields)


def _jax_version() -> str:
    from importlib.metadata import version

    return version("jax")
