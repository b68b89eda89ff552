"""The notebooks run, in their small size, through a real Jupyter kernel; they use public names and show what they promise."""

import ast
import importlib
import re
import runpy
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.py"))
NAMES = [path.stem for path in NOTEBOOKS]
STRICT = "import warnings\nwarnings.simplefilter('error')"
LENIENT = "import warnings\nwarnings.resetwarnings()"  # ipykernel warns itself when it ends
WITHOUT_WIDGETS = "import sys\nsys.modules['ipywidgets'] = None"


def public_modules() -> set[str]:
    """Rooms, and modules whose names are public beside those that the rooms hand out, as the API's pages have them."""
    tree = ast.parse((ROOT / "docs" / "_extensions" / "reference.py").read_text())
    (rooms,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "ROOMS"
    )
    inner = {f"decentral.{room}.{name}" for room, (_, names) in rooms.items() for name in names}
    return inner | {f"decentral.{room}" for room in rooms} | {"decentral"}


def test_there_are_six_and_the_readme_names_them():
    assert [name[:3] for name in NAMES] == [f"{number:02d}_" for number in range(1, 7)]
    text = (FOLDER / "README.md").read_text()
    assert re.findall(r"^\| \[(\w+)\.py\]\(\1\.py\)", text, re.MULTILINE) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_only_public_names(name):
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    public = public_modules()
    seen = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert all(one.name in public for one in node.names if one.name.startswith("decentral"))
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("decentral"):
            assert node.module in public, node.module
            module = importlib.import_module(node.module)
            for one in node.names:
                listed = getattr(module, "__all__", None)
                assert listed is None or one.name in listed, f"{node.module}.{one.name}"
                assert not one.name.startswith("_")
            seen += 1
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert not node.attr.startswith("_") or node.attr == "_replace", node.attr  # a NamedTuple's
            if node.value.id == "decentral":
                assert node.attr in importlib.import_module("decentral").__all__, node.attr
    assert seen


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_as_a_notebook(name):
    """The header that jupytext goes by, and cells of both kinds that begin with a title."""
    text = (FOLDER / f"{name}.py").read_text()
    assert "format_name: percent" in text.split("# ---")[1]
    cells = re.split(r"^# %%", text, flags=re.MULTILINE)[1:]
    assert cells[0].startswith(" [markdown]\n# # ")
    assert sum(cell.startswith("\n") for cell in cells) >= 5
    for target in re.findall(r"\]\((\w+\.py)\)", text):
        assert (FOLDER / target).is_file(), target


def test_a_notebook_is_a_script(monkeypatch, capsys):
    import matplotlib

    monkeypatch.setenv("DECENTRAL_SMOKE", "1")
    with matplotlib.rc_context():
        matplotlib.use("agg")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")  # a script's plt.show()
            runpy.run_path(str(FOLDER / "04_price_it_on_a_cluster.py"), run_name="__main__")
        import matplotlib.pyplot as plt

        plt.close("all")
    said = capsys.readouterr().out
    assert "all-reduce every step" in said
    assert "hours" in said


def carried_out(text: str, first: str, folder: Path):
    """The cells of a notebook after a kernel has run it; ``first`` runs before them."""
    import jupytext
    import nbclient
    import nbformat

    notebook = jupytext.reads(text, fmt="py:percent")
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
    notebook.cells.append(nbformat.v4.new_code_cell(LENIENT))
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return [cell for cell in notebook.cells[1:-1] if cell.cell_type == "code"]


def outputs(cells, kind: str) -> list:
    """Those outputs of all cells that hold this MIME type."""
    return [output for cell in cells for output in cell.outputs if kind in output.get("data", {})]


def stderr(cells) -> str:
    return "".join(o.text for cell in cells for o in cell.outputs if o.get("name") == "stderr")


FIGURES = {1: 2, 2: 3, 3: 5, 4: 2, 5: 5, 6: 5}
"""Number of a notebook -> its figures, each shown once; the pages of results hold theirs in HTML."""


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Jupyter's own; the kernel's are errors
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_in_jupyter(name, tmp_path, monkeypatch):
    monkeypatch.setenv("DECENTRAL_SMOKE", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel has its own
    cells = carried_out((FOLDER / f"{name}.py").read_text(), STRICT, tmp_path)
    assert not stderr(cells)
    assert len(outputs(cells, "image/png")) == FIGURES[int(name[:2])]
    for cell in cells:
        pictures = [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
        assert len(pictures) <= 1  # no figure is shown twice
    if name.startswith("02"):  # each of the two mistakes is found, and is what the text says it is
        said = "".join(o.get("text", "") for cell in cells for o in cell.outputs)
        order = (
            "FirstAttempt fails",
            "traced (float32)",
            "SecondAttempt fails",
            "conserved (float32)",
            "It passes.",
        )
        assert [found for found in re.findall("|".join(map(re.escape, order)), said)] == list(order)
    if name.startswith(("01", "02", "03")):
        pages = [output.data["text/html"] for output in outputs(cells, "text/html")]
        assert any('<img src="data:image/png;base64,' in page for page in pages)
        assert outputs(cells, "application/vnd.jupyter.widget-view+json")  # progress bars
    assert not list(tmp_path.iterdir())  # nothing is left behind


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_without_widgets_bars_are_characters_and_nobody_is_warned(tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel has its own
    small = """
# %%
import decentral
from decentral import problem, topology
quadratic = problem.quadratic(n=4, d=2, dtype="float32")
decentral.simulate(quadratic, topology.named("ring", n=4), decentral.Gossip(), stop=10.0, progress=True)
"""
    cells = carried_out(small, WITHOUT_WIDGETS, tmp_path)
    assert not outputs(cells, "application/vnd.jupyter.widget-view+json")
    assert "Warning" not in stderr(cells)
    assert re.search(r"gossip 100%\|.*10\.0/10\.0 s simulated", stderr(cells))
