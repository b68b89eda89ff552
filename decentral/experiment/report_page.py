"""What the reports of runs, sweeps and meta-trainings have in common: the page around their sections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from decentral.analysis.page import Section, element, facts, folded, page, table

NAME = "report.html"


def whole_page(
    name: str,
    manifest: Mapping[str, Any],
    lead: Iterable[str],
    notes: Sequence[str],
    sections: Sequence[Section | None],
    data: Mapping[str, Any],
) -> str:
    """Head, navigation and sections; the same for everything that is reported.

    Args:
        name: of what is reported.
        manifest: with its ``status``.
        lead: sentences that sum it up.
        notes: what a reader has to know first.
        sections: None is left out.
        data: for the scripts.
    """
    parts = [part for part in sections if part]
    links = [element("li", part.link) for part in parts]
    status = str(manifest.get("status"))
    badge = element("span", status, class_=f"badge {'good' if status == 'finished' else 'bad'}")
    lead = [words for words in lead if words]
    top = element(
        "header",
        element(
            "div",
            element("h1", name, " ", badge),
            [element("p", words, class_="lead" if not place else None) for place, words in enumerate(lead)],
        ),
        element("button", "light / dark", id="theme", type="button", hidden=True),
    )
    told = (
        element(
            "div",
            element("ul", [element("li", words) for words in notes]),
            class_="notes" if status == "finished" else "notes bad",
            role="note",
        )
        if notes
        else None
    )
    body = [
        element("a", "to the content", href="#content", class_="skip"),
        top,
        element("nav", element("ul", links), aria_label="sections"),
        element(
            "main",
            element("noscript", element("p", "Plots and timeline are drawn by scripts of this page, which are off here.")),
            told,
            [part.markup for part in parts],
            id="content",
        ),
        element(
            "footer",
            element("p", "Written by decentral report from this folder alone. The page loads nothing.", class_="small"),
        ),
    ]  # fmt: skip
    return page(name, body, data)


def some(number: int, noun: str) -> str:
    """So many of them."""
    return f"{number} {noun}" + "s" * (number != 1)


def spec_section(
    text: str, told: str = "spec.toml, resolved: decentral run takes it as it is"
) -> Section | None:
    """A spec, folded.

    Args:
        text: TOML.
        told: what it is.
    """
    if not text:
        return None
    return Section(
        "spec",
        "Spec",
        folded(
            told,
            element("pre", element("code", text), tabindex=0),
        ),
    )


def provenance_section(path: Path, manifest: Mapping[str, Any]) -> Section:
    """Where the numbers are from, and what lies in the folder."""
    shown = {key: manifest.get(key) for key in ("status", "start", "end")}
    command = manifest.get("command_line")
    files = [
        [file.name, f"{file.stat().st_size:,} bytes"]
        for file in sorted(path.iterdir())
        if file.is_file() and file.name != NAME and not file.name.endswith(".tmp")
    ]
    kept = (
        "commit",
        "device",
        "flags",
        "host",
        "seeds",
        "steps",
        "source_hash",
        "spec_hash",
        "trace_hash",
        "cost",
        "merged_with",
    )
    rest = {key: manifest[key] for key in kept if manifest.get(key) is not None}
    return Section(
        "provenance",
        "Provenance",
        [
            element("pre", element("code", " ".join(map(str, command))), tabindex=0) if command else None,
            facts(shown | {"versions": manifest.get("versions") or {}}),
            folded("Commit, device, flags, hashes", facts(rest)),
            folded(f"Files in {path.resolve().name}", table(["file", "size"], files)),
        ],
    )
