"""Pages made from the code: the API, and the grammar of specs. What is public and not documented is a warning.

A reference to a Python name leads to where the name is documented, under whichever of its names it is written. A name that
can be imported and has no page (``numpy.ndarray``, an inner class) stays text; one that does not exist is a warning.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import shutil
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import PycodeError
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

import decentral

logger = logging.getLogger(__name__)

ROOMS = {
    "experiment": ("Running things", ["executors", "coordinates", "unroll", "figures"]),
    "problem": ("Problems", []),
    "topology": ("Topologies", []),
    "algorithm": ("Algorithms", ["moments"]),
    "protocol": ("Protocols", []),
    "timing": ("Clusters and time", ["compute"]),
    "engine": ("Traces", ["trace", "import_trace"]),
    "analysis": ("Statistics, tables, figures", ["claims", "timeline", "pipeline", "units", "meta_loss"]),
    "cost": ("The cost model", ["optimizers", "optical", "moe", "scaling", "pipeline", "memory_tables"]),
    "hardware": ("Hardware", []),
    "optical": (
        "Optical processing units",
        ["projector", "sketches", "kernels", "features", "ridge", "feedback", "newma", "maps"],
    ),
    "learned": ("Learned optimizers", ["optimizer", "meta_parameters", "meta_training", "pes", "tasks"]),
    "testing": ("Checks of an algorithm", []),
    "errors": ("Errors", []),
}
"""Room -> what its page is called, and modules whose names are public beside those that the room hands out."""


# -- what is public ----------------------------------------------------------------------------------------------------


class Entry(typing.NamedTuple):
    """One public name."""

    name: str  # as users write it, dotted
    directive: str
    documented: str  # what the directive names: constants stand where they are defined
    line: str  # the first line of its docstring
    object: object


def public(room: str) -> dict[str, list[Entry]]:
    """Module -> its public names, each where it is met first."""
    home = importlib.import_module(f"decentral.{room}")
    known: set[int] = set()
    pages: dict[str, list[Entry]] = {}
    for module in (home, *(importlib.import_module(f"decentral.{room}.{name}") for name in ROOMS[room][1])):
        entries = []
        for name in names_of(module):
            thing = getattr(module, name)
            if inspect.ismodule(thing) or id(thing) in known:
                continue
            known.add(id(thing))
            entries.append(entry(module, name, thing))
        pages[module.__name__] = entries
    return pages


def names_of(module: types.ModuleType) -> list[str]:
    """What a module hands out: ``__all__``, else the classes and functions it defines and the constants it describes."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__, key=str.lower)
    documented = {name for _, name in ModuleAnalyzer.for_module(module.__name__).find_attr_docs()}
    own = {
        name
        for name, thing in vars(module).items()
        if getattr(thing, "__module__", None) == module.__name__
        and (inspect.isclass(thing) or inspect.isroutine(getattr(thing, "py_func", thing)))
    }
    return sorted(
        (name for name in own | documented if not name.startswith("_") and hasattr(module, name)),
        key=str.lower,
    )


def entry(module: types.ModuleType, name: str, thing: object) -> Entry:
    """How a name is documented. One without a docstring of its own is a warning."""
    short = name in decentral.__all__ and getattr(decentral, name) is thing
    dotted = f"decentral.{name}" if short else f"{module.__name__}.{name}"
    plain = getattr(thing, "py_func", thing)  # compiled by numba
    if inspect.isclass(plain) or inspect.isroutine(plain):
        directive, documented = ("autoclass" if inspect.isclass(plain) else "autofunction"), dotted
        text = vars(plain).get("__doc__") if inspect.isclass(plain) else plain.__doc__
        if text and text.startswith(f"{name}("):  # dataclasses and named tuples write their own
            text = None
    else:
        directive = "autodata"
        documented, text = constant(module, name)
    if not text:
        logger.warning("%s is public and has no docstring", dotted, type="api", subtype="undocumented")
    return Entry(dotted, directive, documented, (text or "").strip().split("\n")[0], thing)


def constant(module: types.ModuleType, name: str) -> tuple[str, str | None]:
    """Where a constant is defined, and the docstring that stands below it there."""
    below = [key for key in sorted(sys.modules) if key.startswith(f"{module.__name__}.")]
    for place in (module.__name__, *below):
        try:
            analyzer = ModuleAnalyzer.for_module(place)
            documented = analyzer.find_attr_docs().get(("", name))
        except PycodeError:
            continue
        if documented:
            return f"{place}.{name}", "\n".join(documented)
    return f"{module.__name__}.{name}", None


@cache
def everything() -> Mapping[str, Mapping[str, list[Entry]]]:
    """Room -> module -> entries."""
    rooms = {room: public(room) for room in ROOMS}
    known = {one.name for room in rooms.values() for some in room.values() for one in some}
    for name in decentral.__all__:  # what the package hands out of a room that does not do so itself
        thing = getattr(decentral, name)
        room = getattr(thing, "__module__", "").split(".")[1:2]
        if f"decentral.{name}" not in known and room and room[0] in rooms:
            rooms[room[0]][f"decentral.{room[0]}"].append(entry(decentral, name, thing))
    return rooms


def entries() -> Iterator[Entry]:
    """All public names."""
    for room in everything().values():
        for some in room.values():
            yield from some


# -- pages -------------------------------------------------------------------------------------------------------------


def write_pages(app: Sphinx) -> None:
    """The pages of the API, and of what is in a spec, before Sphinx looks for pages."""
    folder = Path(app.srcdir) / "api"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    known = {one.name: one for one in entries()}
    lost = [
        name
        for name in decentral.__all__
        if f"decentral.{name}" not in known and not inspect.ismodule(getattr(decentral, name))
    ]
    for name in lost:
        logger.warning("decentral.%s is public and on no page", name, type="api", subtype="undocumented")
    for room, (title, _) in ROOMS.items():
        (folder / f"{room}.rst").write_text(page(room, title))
    (folder / "index.rst").write_text(index(known))


def heading(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n\n"


def page(room: str, title: str) -> str:
    """One room: its names with a line each, then each at length."""
    home = importlib.import_module(f"decentral.{room}")
    text = heading(title, "=")
    for module, some in everything()[room].items():
        loaded = importlib.import_module(module)
        if loaded is home:
            text += f".. module:: {module}\n\n"
        else:
            text += heading(f"``{module}``", "-") + f".. module:: {module}\n\n"
        text += "\n".join(map(without_bars, (loaded.__doc__ or "").strip().splitlines())) + "\n\n"
        for one in some:
            text += f".. {one.directive}:: {one.documented}\n"
            if one.directive == "autodata":
                text += "   :no-value:\n"
            text += "\n"
    return text


def index(known: Mapping[str, Entry]) -> str:
    """What ``import decentral`` gives, and the rooms."""
    text = heading("Python API", "=")
    text += "Names are loaded on first use. What a room hands out, and nothing else, is public.\n\n"
    text += heading("import decentral", "-")
    text += ".. list-table::\n   :widths: 30 70\n\n"
    for name in sorted(decentral.__all__, key=str.lower):
        if one := known.get(f"decentral.{name}"):
            text += f"   * - :py:obj:`{name} <{one.documented}>`\n     - {one.line}\n"
    text += "\n" + heading("Rooms", "-") + ".. toctree::\n   :maxdepth: 1\n\n"
    return text + "".join(f"   {room}\n" for room in ROOMS)


# -- specs -------------------------------------------------------------------------------------------------------------

NESTED = {
    "cluster.compute": ("decentral.timing.compute", "COMPUTE", "Seconds of a gradient."),
    "cluster.links": ("decentral.timing.links", "LINKS", "What a message passes."),
    "cluster.faults": ("decentral.timing.faults", "Faults", "What fails."),
    "topology.units": ("decentral.topology.units", "units_from", "Optical units that serve the workers."),
    "algorithm.optimizer": (
        "decentral.algorithm.optimizer",
        "Optimizer",
        "Any optax optimizer by its name there, or ``learned``.",
    ),
    "algorithm.optimizer.schedule": (
        "decentral.algorithm.optimizer",
        "SCHEDULES",
        "How a learning rate changes with the steps.",
    ),
    "algorithm.compressor": ("decentral.algorithm.compression", "COMPRESSORS", "What makes messages small."),
    "algorithm.detector": (
        "decentral.optical.newma",
        "DETECTORS",
        "Of ``monitored``: what looks for a change.",
    ),
    "algorithm.features": ("decentral.optical.maps", "MAPS", "Of ``monitored``: what it looks at."),
}
"""Tables inside tables -> where the code that reads them lies, and what it is about."""


def write_spec_page(app: Sphinx) -> None:
    """Every table of a spec with every key, from the same signatures that the loader checks specs against."""
    from decentral.experiment import spec

    folder = Path(app.srcdir) / "generated"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    text = heading("What is in a spec", "=") + SPEC_WORDS
    for room, kinds in spec.ROOMS.items():
        text += heading(f"``[{room}]``" if room != "algorithm" else "``[[algorithm]]``", "-")
        default = spec.DEFAULT_KINDS.get(room)
        if default and len(kinds) > 1:
            text += f"``kind`` is ``{default}`` where it is left out.\n\n"
        keys = {
            kind: [field.name for field in dataclasses.fields(spec._grammar(room, kind, build)[0])]
            for kind, build in kinds.items()
        }
        shared = [key for key in COMMON if room in COMMON[key] and any(key in own for own in keys.values())]
        if shared:
            text += "Beside ``kind`` and the keys of each:\n\n"
            text += listed((key, *COMMON[key][room]) for key in shared)
        for kind, build in kinds.items():
            own = [key for key in keys[kind] if key != "kind" and key not in shared]
            text += table(kind, build, own, len(kinds) > 1)
    for name, (module, attribute, words) in NESTED.items():
        text += heading(f"``{name}``", "-") + words + "\n\n"
        found = getattr(importlib.import_module(module), attribute)
        for kind, build in found.items() if isinstance(found, Mapping) else [(None, found)]:
            text += table(kind, build, list(inspect.signature(build).parameters), kind is not None)
    (folder / "spec.rst").write_text(text)


SPEC_WORDS = """A spec is one TOML file, ``decentral run SPEC``; SPEC is its path or the name of a packaged experiment. This
page is made from the code that reads specs, so it has every key there is.

At the top stand ``name`` (it names the run folder), ``seed`` (the first, 0) and ``seeds`` (how many, 1), then a table for each of
the following. A table's ``kind`` says what it is, the other keys are arguments of that. One or more ``[[algorithm]]`` are run one
after the other. ``[smoke]`` holds dotted keys and the values that ``--smoke`` sets. ``--set`` takes the same dotted keys:
``topology.n=64``; ``algorithm.X`` sets X in all algorithms, ``algorithm.NAME.X`` in one. The workers are the topology's ``n``. A
table with a ``seed`` of its own draws from that one, and is the same for all seeds of the run. Everything that is wrong with a
spec is told at once, before anything runs.

"""
COMMON: dict[str, dict[str, tuple[str, str]]] = {
    "name": {"algorithm": ("its kind", "what it is called in tables and files.")},
    "constants": {
        "algorithm": ('``"assumed"``', 'or ``"realised"``: the rates that open step sizes are computed from.')
    },
    "protocol": {"algorithm": ("the spec's", "a table: how its workers meet.")},
    "n": {"topology": ("*required*", "number of workers.")},
    "units": {"topology": ("none", "a table: see ``topology.units``.")},
    "rates": {
        "topology": (
            '``"uniform"``',
            '``"degree"`` or ``"optimal"``: how undirected edges share the rate of exchanges.',
        )
    },
    "rates_budget": {"topology": ('``"total"``', 'or ``"nic"``: what they share.')},
    "edge_time_s": {"topology": ("", "seconds of an exchange, with the budget ``nic``.")},
}
"""Key -> room whose kinds all take it -> default and what it is."""


def table(kind: str | None, build: object, keys: list[str], titled: bool) -> str:
    """The keys of one kind: name, default, and what the docstring says of them."""
    described = {"seed": "for what it draws; the run's by default."} | arguments_of(build)
    parameters = inspect.signature(build).parameters
    text = f".. py:currentmodule:: {getattr(build, '__module__', 'decentral')}\n\n"  # its references are written there
    if titled:
        page = documented().get(id(build))
        name = f"``{kind}``"
        text += f".. rubric:: {name}\n\n"
        line = page.line if page else (inspect.getdoc(build) or "").split("\n")[0]
        text += without_bars(line) + (f" (:py:obj:`{page.name}`)" if page else "") + "\n\n"
    if not keys:
        return text
    rows = []
    for key in keys:
        parameter = parameters.get(key)
        rows.append((key, "" if parameter is None else written(parameter.default), described.get(key, "")))
    return text + listed(rows)


def listed(rows: Iterable[tuple[str, str, str]]) -> str:
    """A table of keys, defaults and words."""
    text = ".. list-table::\n   :widths: 20 15 65\n   :width: 100%\n   :header-rows: 1\n\n"
    text += "   * - key\n     - default\n     - what\n"
    for key, default, words in rows:
        text += f"   * - ``{key}``\n     - {default}\n     - {without_bars(' '.join(words.split()))}\n"
    return text + "\n"


def written(value: object) -> str:
    """A default as a spec would have it."""
    if value is inspect.Parameter.empty:
        return "*required*"
    if value is None or type(value).__name__ == "_HAS_DEFAULT_FACTORY_CLASS":
        return ""
    if isinstance(value, bool):
        return f"``{str(value).lower()}``"
    if isinstance(value, str):
        return f'``"{value}"``'
    return f"``{value}``" if isinstance(value, int | float) else ""


def arguments_of(build: object) -> dict[str, str]:
    """Argument -> what a docstring's ``Args`` (or ``Attributes``) say of it."""
    found: dict[str, str] = {}
    for text in (inspect.getdoc(base) or "" for base in reversed(getattr(build, "__mro__", (build,)))):
        for part in re.findall(r"^(?:Args|Attributes):\n((?:[ ]{4}.*\n?|\n)+)", text, re.MULTILINE):
            for names, words in re.findall(
                r"^ {4}([\w, ]+): ((?:.*\n?)(?:^ {5,}.*\n?)*)", part, re.MULTILINE
            ):
                found |= dict.fromkeys(names.split(", "), words)
    return found


# -- references --------------------------------------------------------------------------------------------------------


@cache
def documented() -> Mapping[int, Entry]:
    """The entry of an object."""
    return {id(one.object): one for one in entries()}


def resolve(app: Sphinx, env, node, contnode):
    """A reference that Sphinx did not find: by what it imports, or plain text if that has no page."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"].lstrip("~.").replace("jax.jaxlib", "jaxlib")
    module, owner = node.get("py:module"), node.get("py:class")
    found = imported(target, tuple(filter(None, (module and owner and f"{module}.{owner}", module, owner))))
    if found is None:
        return None
    thing, owner, attribute = found
    objects = env.get_domain("py").objects
    for whole, suffix in ((thing, ""), (owner, f".{attribute}")):
        one = documented().get(id(whole))
        for name in () if one is None else (one.documented + suffix, one.documented):
            if name in objects:
                to = objects[name]
                return make_refnode(app.builder, node["refdoc"], to.docname, to.node_id, contnode, name)
    return contnode


class Found(typing.NamedTuple):
    """What a dotted name is."""

    thing: object
    owner: object  # the class it is an attribute of, or None
    attribute: str


@cache
def imported(target: str, scopes: tuple[str, ...]) -> Found | None:
    """What a name means where it is written: there, in the modules below, or where that code imports it from."""
    for scope in scopes:
        places = [scope, *(key for key in sorted(sys.modules) if key.startswith(f"{scope}."))]
        for place in places:
            if (found := looked_up(f"{place}.{target}")) is not None:
                return found
            for thing in vars(sys.modules[place]).values() if place in sys.modules else ():  # :meth:`ports`
                if inspect.isclass(thing) and thing.__module__ == place and target in vars(thing):
                    return Found(vars(thing)[target], thing, target)
    first, dot, rest = target.partition(".")
    where = imports().get(first)
    for candidate in (target, f"builtins.{target}", f"typing.{target}", where and where + dot + rest):
        if candidate and (found := looked_up(candidate)) is not None:
            return found
    return None


@cache
def looked_up(dotted: str) -> Found | None:
    """What a full dotted name is, or None."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        owner, last = None, ""
        for part in parts[cut:]:
            owner, last = (thing, part) if inspect.isclass(thing) else (None, "")
            if not hasattr(thing, part):
                # A dataclass's field without a default is no attribute of the class.
                known = inspect.isclass(thing) and any(
                    part in vars(base).get("__annotations__", ()) for base in thing.__mro__
                )
                if not known or part != parts[-1]:
                    return None
                return Found(None, thing, part)
            thing = getattr(thing, part)
        return Found(thing, owner, last)
    return None


@cache
def imports() -> Mapping[str, str]:
    """Name -> where the package's modules import it from, also those that only type checkers do."""
    found = {}
    for path in sorted(Path(decentral.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                found |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    return found


# -- docstrings --------------------------------------------------------------------------------------------------------


def as_written(app: Sphinx, what: str, name: str, thing: object, options, lines: list[str]) -> None:
    """Docstrings are written to be read as they are: ``|x|`` is an absolute value and ``a: b`` no type."""
    lines[:] = map(without_bars, lines)
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # an empty comment: napoleon reads a type in the first line, up to its colon


def without_bars(line: str) -> str:
    """A line whose ``|x|`` stays one: outside of code they would name substitutions."""
    pieces = re.split(r"(``.*?``|`[^`]*`)", line)
    pieces[::2] = [piece.replace("|", r"\|") for piece in pieces[::2]]
    return "".join(pieces)


def several_names(app: Sphinx, what: str, name: str, thing: object, options, lines: list[str]) -> None:
    """``a, b: text`` describes two arguments: to Sphinx the first would be the type of the second."""
    for number, line in enumerate(lines):
        if (field := re.match(r":(param|ivar) (\w+(?:, \w+)+):", line)) is not None:
            names = field[2].replace(", ", ",\N{ZERO WIDTH SPACE}")
            lines[number] = f":{field[1]} {names}:{line[field.end() :]}"


def not_worth_a_line(app: Sphinx, what: str, name: str, thing: object, skip: bool, options) -> bool | None:
    """Named tuples document their fields, all alike ("Alias for field number 0")."""
    return True if isinstance(thing, type(Found.thing)) else None


def setup(app: Sphinx) -> dict:
    app.connect("autodoc-skip-member", not_worth_a_line)
    app.connect("builder-inited", write_pages)
    app.connect("builder-inited", write_spec_page)
    app.connect("autodoc-process-docstring", as_written, priority=100)  # before napoleon
    app.connect("autodoc-process-docstring", several_names, priority=900)  # after it
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
