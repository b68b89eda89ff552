"""Comparison tables: one list of rows, written as text, LaTeX, HTML, CSV or JSON.

No cell is marked as the best but by who makes the rows: a mean with ``"best": True`` is bold in LaTeX and HTML.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape

from decentral.errors import InvalidInput, suggest

Value = str | float | None | Mapping[str, float | None]
"""A cell: words, a number, ``None`` (not known), or a mean as ``{"mean": ..., "half_width": ...}``, perhaps with
``"best": True``."""
Row = dict[str, Value]


def format_interval(mean: float, half_width: float | None = None) -> str:
    """A mean and its interval: the half width with two significant digits, the mean to the same decimal place.

    Without a half width (``None``, NaN) an integer is written in full and another number with four significant digits.
    Outside of 0.001 ... 10,000,000 mean and half width share a power of ten: ``"(1.235 ± 0.034)e-07"``. A half width
    below a millionth of the mean is written by itself: ``"0.2028720 ± 2.3e-15"``.

    Args:
        mean: the mean, or any number.
        half_width: half the width of its interval.
    """
    if half_width is not None and 0 < half_width < 1e-6 * abs(mean) < math.inf:
        return f"{mean:.7g} ± {half_width:.1e}"  # the rule below would write the mean with every digit
    if half_width is not None and math.isfinite(mean) and math.isfinite(half_width) and half_width > 0:
        size = max(_exponent(mean, 2), _exponent(half_width, 2))
        shift = 0 if -3 <= size < 7 else size
        place = _exponent(half_width, 2) - 1  # of the last digit that is written
        decimals = max(0, shift - place)
        mean, half_width = (round(value, -place) / 10.0**shift + 0.0 for value in (mean, half_width))
        text = f"{mean:.{decimals}f} ± {half_width:.{decimals}f}"
        return f"({text})e{shift:+03d}" if shift else text
    if not math.isfinite(mean):
        text = str(float(mean))
    elif float(mean).is_integer() and abs(mean) < 1e15:
        text = str(int(mean))
    elif 1e-3 <= abs(mean) < 1e7:
        text = f"{mean:.{max(0, 3 - _exponent(mean, 4))}f}"
    else:
        text = f"{mean:.3e}"
    return f"{text} ± 0" if half_width == 0 else text


def _exponent(value: float, digits: int) -> int:
    """The power of ten of the first digit, after rounding to so many significant digits."""
    return int(f"{value:.{digits - 1}e}".split("e")[1])


def comparison_table(summaries: Mapping[str, Mapping[str, Value]], format: str = "text") -> str:
    """The algorithms of a comparison, one a row.

    Args:
        summaries: algorithm -> column -> value: words, a number, ``None`` (not known) or a mean with its interval,
            ``{"mean": ..., "half_width": ..., "best": True}`` (the last where it is). Columns stand in the order in which
            they are first met. A column ``"algorithm"`` stands in the place of the names.
        format: ``"text"``, ``"latex"`` (booktabs), ``"html"``, ``"csv"`` or ``"json"`` (a list of rows). The last two keep
            every digit.

    Returns:
        The table, ending in a newline.
    """
    if format not in FORMATS:
        raise InvalidInput("format", format, "a table format", suggest(format, FORMATS))
    columns = list(
        dict.fromkeys(["algorithm", *(name for summary in summaries.values() for name in summary)])
    )
    rows = [
        {column: {"algorithm": algorithm, **summary}.get(column) for column in columns}
        for algorithm, summary in summaries.items()
    ]
    return FORMATS[format](columns, rows)


def _words(value: Value) -> str:
    if isinstance(value, Mapping):
        mean = value["mean"]
        return "" if mean is None else format_interval(mean, value.get("half_width"))
    if value is None or isinstance(value, str):
        return value or ""
    return format_interval(value)


def _text(columns: Sequence[str], rows: Sequence[Row]) -> str:
    cells = [columns, *([_words(row[column]) or "-" for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines) + "\n"


def _latex(columns: Sequence[str], rows: Sequence[Row]) -> str:
    def escape(words: str) -> str:
        special = {
            "\\": r"\textbackslash{}",
            "~": r"\textasciitilde{}",
            "^": r"\textasciicircum{}",
            "²": "$^2$",
        }
        return re.sub(r"[\\~^&%$#_{}²]", lambda found: special.get(found[0], "\\" + found[0]), words)

    def cell(value: Value) -> str:
        words = _words(value)
        if isinstance(value, str) or not re.search(r"\d", words):
            return escape(words) or "--"
        words = re.sub(r"e([+-]\d+)$", lambda found: rf" \times 10^{{{int(found[1])}}}", words)
        words = words.replace("±", r"\pm")
        return rf"$\mathbf{{{words}}}$" if isinstance(value, Mapping) and value.get("best") else f"${words}$"

    lines = [
        rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
        r"\toprule",
        " & ".join(map(escape, columns)) + r" \\",
        r"\midrule",
        *(" & ".join(cell(row[column]) for column in columns) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _html(columns: Sequence[str], rows: Sequence[Row]) -> str:
    def cell(value: Value, side: str, tag: str = "td") -> str:
        words = escape(_words(value)) or "-"
        if isinstance(value, Mapping) and value.get("best"):
            words = f"<b>{words}</b>"
        return f'<{tag} style="text-align:{side};white-space:nowrap">{words}</{tag}>'

    def line(values: Sequence[Value], tag: str = "td") -> str:
        sides = ["left"] + ["right"] * (len(values) - 1)
        cells = (cell(value, side, tag) for value, side in zip(values, sides, strict=True))
        return f"<tr>{''.join(cells)}</tr>"

    body = "\n".join(line([row[column] for column in columns]) for row in rows)
    return f"<table>\n<thead>{line(columns, 'th')}</thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"


def _csv(columns: Sequence[str], rows: Sequence[Row]) -> str:
    means = {column for row in rows for column in columns if isinstance(row[column], Mapping)}
    header, lines = [], [[] for _ in rows]
    for column in columns:
        header += [column, f"{column}_half_width"] if column in means else [column]
        for line, row in zip(lines, rows, strict=True):
            value = row[column]
            if column in means:
                pair = value if isinstance(value, Mapping) else {"mean": value}
                line += [pair.get("mean"), pair.get("half_width")]
            else:
                line.append(value)
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([header, *lines])
    return file.getvalue()


def _json(columns: Sequence[str], rows: Sequence[Row]) -> str:
    def plain(value: Value) -> object:
        if isinstance(value, Mapping):
            return {key: plain(entry) for key, entry in value.items()}
        if value is None or isinstance(value, str | int):
            return value
        return float(value) if math.isfinite(value) else None

    return json.dumps([{column: plain(row[column]) for column in columns} for row in rows], indent=2) + "\n"


FORMATS = {"text": _text, "latex": _latex, "html": _html, "csv": _csv, "json": _json}
