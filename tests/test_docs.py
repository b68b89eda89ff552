"""README and docs say what is true: their code runs, their commands, names and specs exist, their links lead somewhere."""

import importlib
import inspect
import json
import re
import runpy
import tomllib
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from pages import (
    CODE,
    FENCE,
    ROOT,
    TEXT,
    blocks,
    check_command,
    check_spec,
    inline_commands,
    names_in_text,
    pages,
    resolves,
    run_page,
)

import decentral
from decentral.cost.algorithms import METHODS
from decentral.engine.instructions import INSTRUCTIONS
from decentral.engine.trace import OPS
from decentral.experiment.spec import ROOMS

QUICK = {"README.md", "docs/cost_model.md"}
"""Pages whose Python takes no more than seconds; that of the others is run by the slow tests."""
NOT_RUN = {"README.md": 3, "docs/getting_started.md": 1, "docs/index.md": 1, "docs/learned.md": 1}
"""Page -> how many of its blocks are marked as not run: one more is a decision."""
PAGES = pages()
SPECS = {
    page: {
        f"{name}.toml"
        for block in blocks(page)
        if block.language == "toml" and (name := tomllib.loads(block.text).get("name"))
    }
    for page in PAGES
}
README = [block for block in blocks("README.md") if block.language == "python"]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_tells_to_type(page):
    """Every block says what it is; commands are in the grammar and what they name is there; so are specs and their tables."""
    for block in blocks(page):
        where = str(block)
        allowed = CODE | TEXT | ({""} if page == "README.md" else set())
        assert block.language in allowed, f"{where}: a block in {block.language or 'no language'}"
        if block.language == "toml":
            check_spec(block.text)
        if block.language in ("sh", ""):
            for line in block.commands:
                check_command(line, SPECS[page], synopsis=block.is_synopsis)
    for line in inline_commands(page):
        check_command(line, SPECS[page], synopsis=True)
    for name in names_in_text(page):
        assert resolves(name), f"{page}: {name}"
    assert sum(block.not_run is not None for block in blocks(page)) == NOT_RUN.get(page, 0)


@pytest.mark.parametrize("page", PAGES)
def test_links_between_files(page):
    """Also of pages that are no part of the built documentation, as they are read in the repository."""
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", target):
            path = ROOT / page / ".." / unquote(target)
            made = {"docs/api", "docs/generated"}  # by the build, which checks links to them
            if not any(path.resolve().is_relative_to(ROOT / folder) for folder in made):
                assert path.resolve().exists(), f"{page}: {target}"


COMPILES = ("problem.mlp", "PETRA", "tune_by_gradient", "decentral.sweep")
"""What a block of the README takes many seconds to compile for."""


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, marks=pytest.mark.slow if any(word in block.text for word in COMPILES) else ())
        for number, block in enumerate(README)
    ],
)
def test_readme_code_runs(number, tmp_path, monkeypatch):
    """Each block alone: a reader copies one."""
    monkeypatch.chdir(tmp_path)
    exec(compile(README[number].text, str(README[number]), "exec"), {"__name__": "readme"})


def test_the_new_algorithm_is_short():
    """ "Under 40 lines" and "under 15 lines" are promises of the README."""
    texts = [block.text for block in README]
    algorithm = next(text for text in texts if "decentral.Algorithm" in text)
    own_model = next(text for text in texts if "from_loss" in text)
    assert len([line for line in algorithm.splitlines() if line.strip()]) < 40
    assert len([line for line in own_model.splitlines() if line.strip()]) < 15


@pytest.mark.slow
def test_template_runs(capsys):
    runpy.run_path(str(ROOT / "docs" / "add_an_algorithm.py"), run_name="__main__")
    assert "suboptimality after 200 s" in capsys.readouterr().out


def mostly_slow_pages():
    for page in PAGES:
        runs = [
            block for block in blocks(page) if block.language in ("python", "sh", "") and not block.not_run
        ]
        if page != "README.md" and any(block.language == "python" or block.commands for block in runs):
            yield pytest.param(page, marks=() if page in QUICK else pytest.mark.slow)
    yield pytest.param("README.md", marks=pytest.mark.slow)


@pytest.fixture
def own_registries():
    """What a page adds to them is gone after it."""
    before = [(registry, dict(registry)) for registry in (OPS, INSTRUCTIONS, *ROOMS.values())]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


@pytest.mark.usefixtures("own_registries", "compiled_once")
@pytest.mark.parametrize("page", list(mostly_slow_pages()))
def test_page_runs(page, tmp_path, monkeypatch, capsys):
    """Python in one namespace, commands as from a shell, in the order of the page; then what the page says of the results."""
    monkeypatch.chdir(tmp_path)
    assert run_page(page, python=page != "README.md") > 0  # whose blocks each run alone, above
    said = capsys.readouterr()
    if check := AFTER.get(page):
        check(said)


def tuning_page(said):
    assert "warning" not in said.err
    tuning = json.loads(Path("runs/step_sizes/tuning.json").read_text())
    assert tuning["seeds"] == [5, 6, 7]
    chosen = {
        table["kind"]: table.get("optimizer", {}).get("learning_rate")
        for table in tomllib.loads(Path("runs/step_sizes/spec.toml").read_text())["algorithm"]
    }
    for name in ("gossip", "a2cid2"):
        assert tuning["algorithms"][name]["chosen"] == {"optimizer.learning_rate": chosen[name]}
    header, _, *rows = said.out.splitlines()
    assert header.split()[-1] == "steps"
    assert [row.split()[-1] for row in rows[:3]] == ["tuned", "tuned", "theory"]
    assert said.out.count(header) == 2  # of the run and of `compare`
    assert r"\toprule" in said.out
    assert said.out.splitlines()[-1].startswith("% compute: ")
    assert Path("figure.pdf").read_bytes()[:4] == b"%PDF"


def cost_page(said):
    assert said.out.count("\n") >= 4
    text = (ROOT / "docs" / "cost_model.md").read_text()
    for room in ("`decentral.cost`", *(f"`{kind}`" for kind in METHODS)):
        assert room in text, room


def formats_page(said):
    """Every file and every key of a manifest is described."""
    text = (ROOT / "docs" / "file_formats.md").read_text()
    described = set(re.findall(r"`([^`\n]+)`", FENCE.sub("", text)))
    files = {re.sub(r"^(trace|gantt)_\w+", r"\1_NAME", path.name) for path in Path("runs/example").iterdir()}
    assert files >= {"spec.toml", "manifest.json", "metrics.npz", "summary.json", "trace_NAME.npz"}
    assert files <= described
    assert set(json.loads(Path("runs/example/manifest.json").read_text())) <= described
    with np.load("runs/example/trace_gossip.npz") as trace:
        assert set(trace.files) <= described


def sweeps_page(said):
    text = FENCE.sub("", (ROOT / "docs" / "file_formats.md").read_text())
    described = set(re.findall(r"`([^`\n]+)`", text))
    record = json.loads(Path("runs/grid/sweep.json").read_text())
    assert set(record) | set(record["runs"][0]) <= described
    manifest = json.loads(Path(f"runs/grid/runs/{record['runs'][0]['id']}/manifest.json").read_text())
    assert set(manifest) <= described


AFTER = {
    "docs/tuning.md": tuning_page,
    "docs/cost_model.md": cost_page,
    "docs/file_formats.md": formats_page,
    "docs/sweeps.md": sweeps_page,
}
"""Page -> what holds after it has run."""


def test_architecture_names_what_is_there():
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {
        path.name
        for path in (ROOT / "decentral").iterdir()
        if path.is_dir() and not path.name.startswith("_")
    }
    for room in rooms:
        assert f"`{room}/" in text, f"{room}/ is not on the architecture page"
    for name in re.findall(r"`((?:engine|protocol)/\w+\.py)`", text):
        assert (ROOT / "decentral" / name).is_file(), name


PUBLIC = [
    "A2CiD2",
    "ACCO",
    "ADOM",
    "ADPSGD",
    "Algorithm",
    "AllReduce",
    "CHOCO",
    "Cluster",
    "Comparison",
    "Continuized",
    "D2",
    "DADAO",
    "DFA",
    "DPSGD",
    "DPU",
    "DecentralError",
    "Devices",
    "DiLoCo",
    "DirectedTopology",
    "Diverged",
    "EXTRA",
    "EventTriggered",
    "Faults",
    "Gossip",
    "GradientTracking",
    "Gradients",
    "InvalidInput",
    "Links",
    "LocalSGD",
    "MSDA",
    "Mailbox",
    "MetaTrained",
    "MetaTrainingFailed",
    "Network",
    "NoLoCo",
    "Op",
    "Operand",
    "Optimizer",
    "Overlapped",
    "PES",
    "PETRA",
    "Pipeline",
    "Poisson",
    "Problem",
    "ProblemTask",
    "Progress",
    "Record",
    "Recorded",
    "Rendezvous",
    "Result",
    "Rounds",
    "RunFailed",
    "SGD",
    "SGP",
    "Server",
    "Simulation",
    "Sweep",
    "Time",
    "Topology",
    "Trace",
    "WP",
    "algorithm",
    "analysis",
    "cite",
    "coordinate_check",
    "cost",
    "engine",
    "errors",
    "experiment",
    "hardware",
    "learned",
    "meta_train",
    "optical",
    "problem",
    "protocol",
    "pytree",
    "replay",
    "simulate",
    "static",
    "sweep",
    "testing",
    "timing",
    "topology",
    "tune_by_gradient",
]


def test_public_names():
    """Adding a public name is a decision, losing one breaks users."""
    assert sorted(decentral.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(decentral, name) is not None
    with pytest.raises(AttributeError, match="simulat"):
        decentral.simulat  # noqa: B018


def test_a_name_is_the_function_and_not_its_module():
    """A lazy package must not hand out the submodule of the same name, whatever was imported first."""
    for module in ("entry", "run", "spec", "record", "result", "simulation", "compare"):
        importlib.import_module(f"decentral.experiment.{module}")
    for name in decentral.experiment.__all__:
        assert not inspect.ismodule(getattr(decentral.experiment, name)), name
    assert callable(decentral.simulate)


def test_public_names_are_documented(monkeypatch):
    """As the build of the documentation will ask: every name that the package or a room hands out, constants too."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_extensions"))
    reference = importlib.import_module("reference")
    entries = list(reference.entries())
    assert not [one.name for one in entries if not one.line]
    handed_out = {name for name in decentral.__all__ if not inspect.ismodule(getattr(decentral, name))}
    assert {f"decentral.{name}" for name in handed_out} <= {one.name for one in entries}
    assert len(entries) > 300
