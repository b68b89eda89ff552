"""Small pieces of HTML for what shows itself in a notebook. Whatever is not markup is escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from decentral.analysis.tables import format_interval

if TYPE_CHECKING:
    from decentral.analysis.shown import ShownFigure


def definitions(entries: Mapping[str, Any]) -> str:
    """A table of two columns: what, and how much."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(words(value))}</td></tr>'
        for name, value in entries.items()
    )
    return f"<table>{rows}</table>"


def words(value: Any) -> str:
    """A value as a reader wants it: numbers with four significant digits, tables by key."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {words(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(words, value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return format_interval(value)
    return str(value)


def folded(title: str, content: str) -> str:
    """What is there when one asks for it."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def picture(figure: ShownFigure, says: str) -> str:
    """A figure as part of a page, and in words for who cannot see it."""
    content, size = figure._repr_png_()
    data = base64.b64encode(content).decode()
    return (
        f'<img src="data:image/png;base64,{data}" width="{size["width"]}" height="{size["height"]}" '
        f'alt="{escape(says, quote=True)}" style="max-width:100%;height:auto">'
    )
