"""README and docs as blocks of code: how they are found, checked and run."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from decentral.cli import main, parser
from decentral.experiment import load_spec
from decentral.experiment.overrides import find_spec
from decentral.topology import DIRECTED, TOPOLOGIES, load_network

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
NOT_RUN = re.compile(r"<!-- not run: (.+) -->\s*\Z")
CODE = {"python", "sh", "toml"}
TEXT = {"text", "bibtex", "json", "csv"}
PLACEHOLDER = re.compile(r"\[|\.\.\.|…|\b(?:SPEC|DIR|FILE|NAME|KEY)\b")
SPEC_ROOMS = {
    "run": "experiments",
    "sweep": "experiments",
    "project": "projections",
    "meta-train": "meta_trainings",
}
"""Command -> where the packaged specs lie that it takes."""


@dataclasses.dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None  # why

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Command lines; in a block without a language those that begin with a command of ours."""
        lines = self.text.replace("\\\n", " ").splitlines()
        ours = ("decentral ", "make ", "python ", "pip ", "git ", "cd ")
        return [line.strip() for line in lines if line.strip().startswith(ours)]

    @property
    def is_synopsis(self) -> bool:
        """It says what may be written, so it cannot be run."""
        return any(PLACEHOLDER.search(line.split("#")[0]) for line in self.commands)


def pages() -> list[str]:
    """Every page that somebody wrote, relative to the root."""
    made = {"docs/claims.md", "docs/validation.md"}
    found = [path for path in (ROOT / "docs").glob("*.md") if str(path.relative_to(ROOT)) not in made]
    found += [ROOT / "README.md", ROOT / "DEVELOPERS.md", *ROOT.glob("*/README.md")]
    return sorted({str(path.relative_to(ROOT)) for path in found})


@cache
def blocks(page: str) -> tuple[Block, ...]:
    """A page's blocks, in order; those of directives are no code."""
    text = (ROOT / page).read_text()
    found = []
    for match in FENCE.finditer(text):
        language = match[1].strip()
        why = NOT_RUN.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 2
        if not language.startswith("{"):
            found.append(Block(page, line, language, match[2], why[1] if why else None))
    return tuple(found)


def inline_commands(page: str) -> Iterator[str]:
    """`` `decentral ...` `` and `` `make ...` `` in running text."""
    text = FENCE.sub("", (ROOT / page).read_text())
    yield from re.findall(r"`((?:decentral|make) [^`]+)`", text)


def names_in_text(page: str) -> set[str]:
    """`` `decentral.x.y` ``: names of the package in running text."""
    return set(re.findall(r"`(decentral(?:\.\w+)+)", FENCE.sub("", (ROOT / page).read_text())))


# -- commands ----------------------------------------------------------------------------------------------------------


@cache
def _subparsers() -> dict[str, argparse.ArgumentParser]:
    (action,) = (one for one in parser()._actions if isinstance(one, argparse._SubParsersAction))
    return dict(action.choices)


def check_command(line: str, specs: set[str], *, synopsis: bool = False) -> None:
    """What a page tells to type is in the grammar, and what it names is there.

    Args:
        line: as on the page.
        specs: names of spec files that stand on the page.
        synopsis: it has placeholders, or words that explain it: only its command and its options are looked at.
    """
    words = shlex.split(line.split("  ")[0] if synopsis else line, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets, f"make has no target {words[1]}"
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), f"there is no {words[1]}"
    elif words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for extra in re.findall(r"\[([\w,]+)\]", line):
            assert set(extra.split(",")) <= set(extras), f"there is no extra {extra}"
    elif words[0] == "decentral":
        assert words[1] in _subparsers(), f"decentral has no command {words[1]}"
        known = _subparsers()[words[1]]
        if synopsis:
            for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", line):
                assert option in known._option_string_actions, f"decentral {words[1]} has no {option}"
        else:
            options = parser().parse_args(words[1:])
            _check_names(words[1], options, specs)


def _check_names(command: str, options: argparse.Namespace, specs: set[str]) -> None:
    if command in SPEC_ROOMS and options.spec not in specs and not (ROOT / options.spec).is_file():
        find_spec(options.spec, SPEC_ROOMS[command])
    if command == "topology" and options.name not in TOPOLOGIES | DIRECTED and options.name not in specs:
        load_network(options.name)


# -- specs -------------------------------------------------------------------------------------------------------------


def check_spec(text: str) -> None:
    """A spec, or some of its tables, or some keys of an algorithm's, is in the grammar."""
    tables = tomllib.loads(text)
    if "name" in tables or "parallelism" in tables or "pes" in tables:
        if "topology" in tables:
            load_spec(tables)
        return
    rooms = (
        "topology",
        "problem",
        "stop",
        "protocol",
        "record",
        "cluster",
        "tune",
        "algorithm",
        "seeds",
        "devices",
    )
    whole = {key: value for key, value in tables.items() if key in rooms}
    algorithm = {key: value for key, value in tables.items() if key not in rooms}
    base = {
        "name": "fragment",
        "topology": {"kind": "ring", "n": 8},
        "problem": {"kind": "quadratic", "d": 4},
        "stop": {"kind": "time", "time_s": 1.0},
        "algorithm": [{"kind": "gossip", **algorithm}],
    }
    tables = base | whole
    first = tables["algorithm"][0]
    if (
        "feedback" in first or first["kind"] == "dfa"
    ):  # refused without its control, which a fragment need not show
        control = first | {"name": "control", "feedback": {"kind": "shallow"}}
        tables["algorithm"] = [*tables["algorithm"], control]
    load_spec(tables)


# -- running -----------------------------------------------------------------------------------------------------------


def run_page(page: str, *, python: bool = True) -> int:
    """Run a page's blocks from top to bottom in the current folder: Python in one namespace, specs as the files they name.

    Args:
        page: relative to the root.
        python: False runs only commands.

    Returns:
        How many blocks ran.
    """
    names: dict = {"__name__": page}
    ran = 0
    for block in blocks(page):
        if block.not_run:
            continue
        if block.language == "python" and python:
            exec(compile("\n" * (block.line - 1) + block.text, page, "exec", dont_inherit=True), names)
        elif block.language == "toml" and (name := tomllib.loads(block.text).get("name")):
            Path(f"{name}.toml").write_text(block.text)
        elif block.language in ("sh", "") and block.commands and not block.is_synopsis:
            for line in block.commands:
                words = shlex.split(line, comments=True)
                if words[0] == "decentral":
                    status = main(words[1:])
                    assert status == 0, f"{block}: {line}: exit status {status}"
        else:
            continue
        ran += 1
    return ran


def resolves(name: str) -> bool:
    """Whether a dotted name leads somewhere."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            thing: object = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            known = {
                key for base in getattr(thing, "__mro__", ()) for key in vars(base).get("__annotations__", ())
            }
            if part in known:
                return True
            if not hasattr(thing, part):
                return False
            thing = getattr(thing, part)
        return True
    return False
