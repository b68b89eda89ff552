"""The documentation builds without a warning, asks nothing of the network, and a broken link or an undocumented name ends it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile

import decentral

ROOT = Path(__file__).parents[1]
FETCHES = re.compile(
    r"""<(?:script|img|iframe|source)[^>]+src=["'](?:https?:)?//|<link[^>]+rel=["'](?:stylesheet|preload|icon)["'][^>]+href="""
    r"""["'](?:https?:)?//|url\(["']?(?:https?:)?//|@import\s+["'](?:https?:)?//"""
)


def build(source, target, *arguments):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--nitpicky", "--quiet"]
    return subprocess.run(
        [*command, *arguments, str(source), str(target)], env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_build(tmp_path, monkeypatch):
    """What `make docs` does, but of the notebooks only the first is executed: they have their own tests."""
    monkeypatch.setenv("DECENTRAL_NOTEBOOKS", "first")
    done = build(ROOT / "docs", tmp_path, "-D", "nb_execution_mode=force")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "objects.inv", "rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, uri: uri)
    known = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    rooms = {name for name in decentral.__all__ if f"decentral.{name}" in sys.modules}
    assert {f"decentral.{name}" for name in decentral.__all__} - known <= {
        f"decentral.{name}" for name in rooms
    }
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        assert not FETCHES.search(page.read_text()), page
    for sheet in tmp_path.rglob("*.css"):
        assert not FETCHES.search(sheet.read_text()), sheet
    executed = (tmp_path / "generated" / "notebooks" / "01_first_run.html").read_text()
    assert '<img src="data:image/png;base64,' in executed
    assert not re.search(r"jupyter\.widget|\d k events/s", executed)  # no bars
    maths = (tmp_path / "time.html").read_text()
    assert re.search(r'src="_static/mathjax/tex-svg\.js', maths)
    assert (tmp_path / "_static" / "mathjax" / "tex-svg.js").stat().st_size > 1e6


@pytest.mark.slow
def test_what_is_broken_ends_the_build(tmp_path):
    """Each of these alone is a warning, and a warning is an error."""
    docs = tmp_path / "docs"
    shutil.copytree(
        ROOT / "docs", docs, ignore=shutil.ignore_patterns("api", "generated", "images", "*.json")
    )
    for page in docs.glob("*.md"):
        if page.name != "scope.md":
            page.unlink()
    (docs / "index.md").write_text(
        "# Broken\n\n```{toctree}\nscope\n```\n\n[a page](nowhere.md) [a heading](scope.md#nowhere) [a file](../nowhere.py)\n"
        "{py:func}`decentral.nowhere` {doc}`nowhere`\n"
    )
    with open(docs / "conf.py", "a") as conf:
        conf.write(
            "\nfrom decentral import protocol\n\nexclude_patterns += ['api', 'generated']\n"
            "protocol.Undocumented = type('Undocumented', (), {})\nprotocol.__all__.append('Undocumented')\n"
        )
    done = build(docs, tmp_path / "built")
    assert done.returncode != 0
    for words in (
        "decentral.protocol.Undocumented is public and has no docstring",
        "'nowhere.md'",
        "'nowhere'",
        "'../nowhere.py'",
        "py:func reference target not found: decentral.nowhere",
        "unknown document: 'nowhere'",
    ):
        assert words in done.stderr, f"{words}\n{done.stderr}"
