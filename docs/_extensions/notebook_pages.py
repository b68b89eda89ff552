"""notebooks/ as pages: converted by jupytext, executed by myst-nb in the small size of the tests (or as they are).

Environment: ``DECENTRAL_NOTEBOOKS=full`` executes them as a reader would, which takes minutes; ``first`` only the first.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import jupytext
from sphinx.application import Sphinx

EXECUTED = os.environ.get("DECENTRAL_NOTEBOOKS")
SMALL = EXECUTED != "full"
NOTE = (
    "> Executed for this page in the small size of the tests, so that the figures show what comes out and not what is true. "
    "Open `notebooks/{name}` in Jupyter for the real one (`make notebooks`)."
)


def write_notebooks(app: Sphinx) -> None:
    """Each notebook below ``generated/``, with links between them that lead to pages."""
    os.environ["TQDM_DISABLE"] = "1"  # on a page nothing moves
    if SMALL:
        os.environ["DECENTRAL_SMOKE"] = "1"  # read by the notebooks
        os.environ.setdefault(
            "XLA_FLAGS", "--xla_backend_optimization_level=0"
        )  # most of their time is compiling
    folder = Path(app.srcdir) / "generated" / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((Path(app.srcdir).parent / "notebooks").glob("[0-9]*.py")):
        notebook = jupytext.read(path)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = re.sub(r"\]\((\d\w+)\.py\)", r"](\1.ipynb)", cell.source)
                cell.source = re.sub(r"\]\(\.\./docs/", "](../../", cell.source)
                cell.source = re.sub(r"\]\(\.\./(?!\.\.)", "](../../../", cell.source)
        if SMALL:
            notebook.cells[0].source += "\n\n" + NOTE.format(name=path.name)
        if EXECUTED == "first" and not path.name.startswith("01"):
            notebook.metadata["mystnb"] = {"execution_mode": "off"}
        jupytext.write(notebook, folder / f"{path.stem}.ipynb")


def setup(app: Sphinx) -> dict:
    app.connect("builder-inited", write_notebooks, priority=900)  # the folder is emptied by `reference`
    return {"parallel_read_safe": True, "parallel_write_safe": True}
