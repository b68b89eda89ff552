"""README and docs say what is true: their code runs, their names exist, their numbers come from the commands they name."""

import importlib
import inspect
import json
import re
import runpy
import shlex
import tomllib
from pathlib import Path

import pytest

import decentral
from decentral.cli import main
from decentral.cost.algorithms import METHODS
from decentral.experiment.overrides import packaged

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_readme_has_code():
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme_code_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[number], f"README block {number}", "exec"), {"__name__": "readme"})


def test_the_new_algorithm_is_short():
    """ "Under 40 lines" and "under 15 lines" are promises of the README."""
    algorithm = next(block for block in BLOCKS if "decentral.Algorithm" in block)
    own_model = next(block for block in BLOCKS if "from_loss" in block)
    assert len([line for line in algorithm.splitlines() if line.strip()]) < 40
    assert len([line for line in own_model.splitlines() if line.strip()]) < 15


def test_template_runs(capsys):
    runpy.run_path(str(ROOT / "docs" / "add_an_algorithm.py"), run_name="__main__")
    assert "suboptimality after 200 s" in capsys.readouterr().out


@pytest.mark.slow
def test_tuning_page_runs(tmp_path, monkeypatch, capsys):
    """Its spec, its commands and its code, in its own folder."""
    page = (ROOT / "docs" / "tuning.md").read_text()
    (spec,), (commands,), (code,) = (
        re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) for language in ("toml", "sh", "python")
    )
    monkeypatch.chdir(tmp_path)
    Path("step_sizes.toml").write_text(spec)
    said = []
    for command in commands.splitlines():
        assert main(shlex.split(command)[1:]) == 0, command
        said.append(capsys.readouterr())
    finished, text, latex = said
    assert "warning" not in finished.err
    tuning = json.loads(Path("runs/step_sizes/tuning.json").read_text())
    assert tuning["seeds"] == [5, 6, 7]
    chosen = {
        table["kind"]: table.get("optimizer", {}).get("learning_rate")
        for table in tomllib.loads(Path("runs/step_sizes/spec.toml").read_text())["algorithm"]
    }
    for name in ("gossip", "a2cid2"):
        assert tuning["algorithms"][name]["chosen"] == {"optimizer.learning_rate": chosen[name]}
    steps = [line.split()[-1] for line in text.out.splitlines()[2:]]
    assert steps == ["tuned", "tuned", "theory"]
    assert finished.out.startswith(text.out)
    assert r"\toprule" in latex.out
    assert latex.out.splitlines()[-1].startswith("% compute: ")
    exec(compile(code, "docs/tuning.md", "exec"), {"__name__": "tuning"})
    assert Path("figure.pdf").read_bytes()[:4] == b"%PDF"


def test_the_page_of_the_cost_model(capsys):
    """Its Python runs, and its commands name projections there are."""
    text = (ROOT / "docs" / "cost_model.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, "docs/cost_model.md", "exec"), {"__name__": "cost_model"})
    assert capsys.readouterr().out.count("\n") >= 4
    for name in re.findall(r"decentral project (\w+)", text):
        assert name == "SPEC" or name in packaged("projections"), name
    for room in ("`decentral.cost`", *(f"`{kind}`" for kind in METHODS)):
        assert room in text, room


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
    "ADOM",
    "Continuized",
    "D2",
    "EXTRA",
    "GradientTracking",
    "MSDA",
    "A2CiD2",
    "ACCO",
    "DPU",
    "Overlapped",
    "PETRA",
    "Pipeline",
    "WP",
    "ADPSGD",
    "Algorithm",
    "AllReduce",
    "CHOCO",
    "Cluster",
    "DADAO",
    "DPSGD",
    "DecentralError",
    "DiLoCo",
    "DirectedTopology",
    "Diverged",
    "EventTriggered",
    "Faults",
    "Gossip",
    "Gradients",
    "InvalidInput",
    "Links",
    "LocalSGD",
    "Mailbox",
    "Network",
    "NoLoCo",
    "Op",
    "Operand",
    "Optimizer",
    "Poisson",
    "Problem",
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
    "Time",
    "Topology",
    "Trace",
    "algorithm",
    "analysis",
    "cost",
    "engine",
    "errors",
    "experiment",
    "hardware",
    "problem",
    "protocol",
    "pytree",
    "replay",
    "simulate",
    "static",
    "testing",
    "timing",
    "topology",
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
