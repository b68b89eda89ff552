"""One HTML file that needs nothing else: elements that escape what they are given, packed columns, and the page around them.

The page may load nothing, from this machine or another, and runs only the scripts of this package: its content security policy
holds their hashes. So a name in a spec cannot do anything, even if it got through as markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from decentral.analysis.tables import Value, format_interval

SCRIPTS = ("page.js", "charts.js", "timeline.js")
_LONG = 32
"""Letters from which on words are wrapped."""
_VOID = ("link", "meta", "wbr")


class Markup(str):
    """Text that is HTML already; every other text is escaped."""

    __slots__ = ()


Content = str | Markup | None | Iterable["Content"]


def element(tag: str, *content: Content, **attributes: str | int | bool | None) -> Markup:
    """An element, its content and attributes escaped.

    Args:
        tag: its name.
        content: text, elements, or lists of them; None is nothing.
        attributes: an underscore is a hyphen, one at the end is dropped (``class_``); True is a bare attribute, False and None
            are none.
    """
    words = "".join(
        f" {name.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{html.escape(str(value), quote=True)}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    opening = f"<{tag}{words}>"
    return Markup(opening if tag in _VOID else f"{opening}{together(content)}</{tag}>")


def together(content: Content) -> Markup:
    """Elements and text one after the other."""
    if content is None:
        return Markup("")
    if isinstance(content, str):
        return content if isinstance(content, Markup) else Markup(html.escape(content, quote=False))
    return Markup("".join(map(together, content)))


class Section(NamedTuple):
    """A part of the page with a heading, to which the navigation leads."""

    identity: str
    title: str
    content: Content

    @property
    def markup(self) -> Markup:
        """As an element."""
        heading = element("h2", self.title, id=f"{self.identity}-title")
        return element(
            "section", heading, self.content, id=self.identity, aria_labelledby=f"{self.identity}-title"
        )

    @property
    def link(self) -> Markup:
        """That leads to it."""
        return element("a", self.title, href=f"#{self.identity}")


def folded(title: str, *content: Content, open: bool = False) -> Markup:
    """Something to unfold."""
    return element("details", element("summary", title), *content, open=open)


class Setting(NamedTuple):
    """A number that was chosen and not measured: written as it was given."""

    number: float

    def __str__(self) -> str:
        return json.dumps(self.number)


def cell(value: Value | Markup | Setting, *, right: bool = False) -> Markup:
    """A cell of a table: a mean with its interval, strong if it is marked as the best, a number, or words.

    Args:
        value: what stands there.
        right: in a column of numbers.
    """
    words: Content = value if isinstance(value, str) else cell_words(value)
    number = value.get("mean") if isinstance(value, Mapping) else value
    number = number.number if isinstance(number, Setting) else number
    sort = None
    if isinstance(number, int | float) and not isinstance(number, bool):
        right, sort = True, repr(float(number))
    if isinstance(value, Mapping) and value.get("best"):
        words = element("strong", words)
    long = isinstance(value, str) and len(value) > _LONG
    return element("td", words, class_=" ".join(["number"] * right + ["long"] * long) or None, data_sort=sort)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Value | Markup | Setting]],
    *,
    caption: str = "",
    sortable: bool = False,
) -> Markup:
    """A table whose first column names its rows; one with ``sortable`` is sorted by a click on a heading."""
    right = [any(_is_number(row[place]) for row in rows) for place in range(len(columns))]
    head = [
        element("th", name, scope="col", class_="number" if numeric else None)
        for name, numeric in zip(columns, right, strict=True)
    ]
    body = []
    for first, *others in rows:
        name = first if isinstance(first, str) else cell_words(first)
        heading = element("th", name, scope="row", class_="long" if len(name) > _LONG else None)
        cells = [cell(value, right=numeric) for value, numeric in zip(others, right[1:], strict=True)]
        body.append(element("tr", heading, cells))
    inner = element(
        "table",
        element("caption", caption) if caption else None,
        element("thead", element("tr", head)),
        element("tbody", body),
        class_="sortable" if sortable else None,
    )
    # A wide table scrolls by itself, with the keyboard too.
    return element("div", inner, class_="wide", tabindex=0, role="region", aria_label=caption or columns[0])


def cell_words(value: Value | Setting) -> str:
    """A value as text."""
    if isinstance(value, Setting):
        return str(value)
    if isinstance(value, Mapping):
        return "–" if value.get("mean") is None else format_interval(value["mean"], value.get("half_width"))  # type: ignore[arg-type]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else value if isinstance(value, str) else format_interval(value)


def _is_number(value: object) -> bool:
    return isinstance(value, Mapping | Setting) or (
        isinstance(value, int | float) and not isinstance(value, bool)
    )


def facts(entries: Mapping[str, Any]) -> Markup:
    """Names beside their values; nested ones under dotted names."""
    pairs = [
        element("div", element("dt", _breakable(name)), element("dd", words)) for name, words in flat(entries)
    ]
    return element("dl", pairs)


def _breakable(name: str) -> list[Content]:
    """A line may end after a dot or an underscore."""
    return [part for piece in re.split(r"(?<=[._])", name) for part in (piece, element("wbr"))]


def flat(entries: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted names and their values as text."""
    found: list[tuple[str, str]] = []
    for key, value in entries.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found += flat(value, f"{name}.")
        elif isinstance(value, list | tuple):
            found.append((name, ", ".join(map(_plain, value)) or "–"))
        else:
            found.append((name, _plain(value)))
    return found


def _plain(value: Any) -> str:
    if isinstance(value, Mapping | list):
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value) if isinstance(value, int | str) and not isinstance(value, bool) else cell_words(value)


# -- numbers for the scripts -------------------------------------------------------------------------------------------


def packed(values: np.ndarray) -> str:
    """A column as text: its little-endian bytes, zlib, base64. ``unpacked`` of ``page.js`` reads it."""
    plain = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return base64.b64encode(zlib.compress(plain.tobytes(), 9)).decode()


def numbers(values: np.ndarray) -> list[float | None]:
    """Six digits each, what is not finite as None."""
    return [
        float(f"{value:.6g}") if math.isfinite(value) else None
        for value in np.asarray(values, float).tolist()
    ]


# -- the page ----------------------------------------------------------------------------------------------------------


def page(title: str, body: Content, data: Mapping[str, Any]) -> str:
    """The whole file.

    Args:
        title: of the window.
        body: what stands on the page.
        data: what the scripts draw, as plain data.
    """
    here = files("decentral.analysis.page")
    style = here.joinpath("style.css").read_text("utf-8")
    script = "".join(here.joinpath(name).read_text("utf-8") for name in SCRIPTS)
    # Inside a script element nothing is decoded, and a "<" could end it.
    plain = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_source(style)}'; script-src '{_source(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="generator", content="decentral"),
        element("title", title),
        element("link", rel="icon", href="data:,"),
        element("style", Markup(style)),
    )
    scripts = (
        element("script", Markup(plain), type="application/json", id="data"),
        element("script", Markup(script)),
    )
    return (
        "<!doctype html>\n"
        + element("html", head, "\n", element("body", body, "\n", *scripts), lang="en")
        + "\n"
    )


def _source(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
