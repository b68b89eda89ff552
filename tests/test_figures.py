"""The figures' scripts: which run folders they take, what they write, and the table of claims."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from decentral import cli
from decentral.analysis.claims import NOT_JUDGED, Claim
from decentral.errors import InvalidInput, RunFailed
from decentral.experiment import figures
from decentral.experiment.figures import (
    Experiment,
    experiments_of,
    load_script,
    make_figures,
    publish,
    write_table,
)

pytestmark = pytest.mark.usefixtures("compiled_once")
SCRIPTS = sorted((Path(__file__).parents[1] / "paper_figures").glob("*.py"))
SPEC = """
name = "tiny"
topology = { kind = "ring", n = 4 }
problem = { kind = "quadratic", d = 2 }
stop = { kind = "time", time_s = 3.0 }
record = { count = 3 }
algorithm = [{ kind = "gossip" }]
[smoke]
stop.time_s = 1.0
"""
SCRIPT = """
from decentral.analysis.claims import NOT_JUDGED, Claim
from decentral.experiment.figures import Experiment, canvas, main

TINY = Experiment("SPEC", ("problem.d=3",), folder="tiny")
EXPERIMENTS = (TINY,)


def draw(runs):
    with canvas("Loss", note="One seed.") as (figure, ((axes,),)):
        axes.plot(runs[TINY].metric("gossip", "time_s")[0], runs[TINY].metric("gossip", "loss")[0])
    return figure


def claims(runs):
    end = runs[TINY].metric("gossip", "loss")[0, -1]
    return [Claim("T1", "Tiny", "the loss is a number", "no paper", "derived", "convex", (0.0, None)).check(end)]


if __name__ == "__main__":
    main(__file__)
"""


@pytest.fixture
def root(tmp_path):
    """A checkout with one spec and one script."""
    (tmp_path / "tiny.toml").write_text(SPEC)
    (tmp_path / "paper_figures").mkdir()
    (tmp_path / "docs").mkdir()
    script = SCRIPT.replace("SPEC", str(tmp_path / "tiny.toml"))
    (tmp_path / "paper_figures" / "tiny_figure.py").write_text(script)
    return tmp_path


def tiny(root):
    return load_script(root / "paper_figures" / "tiny_figure.py").TINY


def test_a_folder_that_cannot_be_used_names_the_command_that_makes_it(root, capsys):
    experiment, runs = tiny(root), root / "runs"
    with pytest.raises(InvalidInput, match="nothing at") as missing:
        experiment.open(runs)
    command = str(missing.value).split("To make it: ")[1].split()
    assert command == shlex.split(experiment.command(runs))
    assert cli.main(command[1:]) == 0  # the command does make it
    capsys.readouterr()
    run = experiment.open(runs)
    assert run.algorithms == ["gossip"]
    assert run.metric("gossip", "loss").shape == (1, 4)
    with pytest.raises(InvalidInput, match="gossip/los"):
        run.metric("gossip", "los")

    with pytest.raises(InvalidInput, match="nothing at"):
        experiment.open(runs, smoke=True)
    (root / "tiny.toml").write_text(SPEC.replace("n = 4", "n = 5"))
    with pytest.raises(InvalidInput, match=r"another version of .* --overwrite"):
        experiment.open(runs)
    (root / "tiny.toml").write_text("# In other words.\n" + SPEC.replace("n = 4 }", "n  = 4}"))
    experiment.open(runs)

    manifest = json.loads((run.path / "manifest.json").read_text())
    (run.path / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    with pytest.raises(InvalidInput, match=r"not finished \(running.* --overwrite"):
        experiment.open(runs)


def test_a_run_that_diverges_is_a_result_only_where_the_script_says_so(root):
    overrides = ("algorithm.optimizer.learning_rate=1e300",)
    strict = Experiment(str(root / "tiny.toml"), overrides, folder="wild")
    tolerant = Experiment(str(root / "tiny.toml"), overrides, folder="wild", may_diverge=True)
    with pytest.raises(RunFailed):
        strict.make(root)
    with pytest.raises(InvalidInput, match="not finished"):
        strict.open(root)
    tolerant.make(root)
    assert tolerant.open(root).diverged
    assert tolerant.open(root).metric("gossip", "loss").shape[1] < 4


def test_publish_writes_the_same_bytes_twice_and_smoke_judges_nothing(root):
    script, runs = root / "paper_figures" / "tiny_figure.py", root / "runs"
    tiny(root).make(runs)
    lines, bytes_of = [], {}
    for out in ("first", "second"):
        checked = publish(script, runs, root / out, say=lines.append)
        bytes_of[out] = {path.name: path.read_bytes() for path in (root / out).iterdir()}
    assert bytes_of["first"] == bytes_of["second"]
    assert sorted(bytes_of["first"]) == ["tiny_figure.json", "tiny_figure.pdf", "tiny_figure.png"]
    assert checked[0].verdict == "holds"
    assert lines[2].endswith("accepted at least 0: holds")
    written = json.loads(bytes_of["first"]["tiny_figure.json"])
    assert written["claims"] == [claim.as_dict() for claim in checked]

    tiny(root).make(runs, smoke=True)
    publish(script, runs, root / "smoke", smoke=True, say=lines.append)
    assert lines[-1].endswith("smoke test: not judged")
    written = json.loads((root / "smoke" / "tiny_figure-smoke.json").read_text())
    assert written["claims"][0]["verdict"] is None


def test_the_table_keeps_other_papers_claims_and_drops_those_of_scripts_that_are_gone(root):
    claim = Claim("T1", "Tiny", "a value", "no paper", "derived", "exact", (0.0, 1.0))
    a, b = "paper_figures/a.py", "paper_figures/b.py"
    write_table(root, {a: [claim.check(0.5)], b: [claim.check(0.5)]}, [a, b])
    table = write_table(root, {a: [claim.check(2.0)]}, [a, b]).read_text()
    assert table.count("**does not hold**") == 1
    assert table.count("**holds**") == 1
    assert "a.py" not in write_table(root, {}, [b]).read_text()


def test_command_line_refuses(root, monkeypatch, capsys):
    monkeypatch.setattr(figures, "checkout", lambda: root)
    assert cli.main(["figures", "--paper", "tny"]) == 2
    assert "Did you mean 'tiny'?" in capsys.readouterr().err
    assert cli.main(["figures", "--jobs", "0"]) == 2
    assert "--jobs" in capsys.readouterr().err


def test_scripts_are_loadable_and_their_specs_valid():
    """Every script says what it shows, and every experiment and its small version is a valid spec with its own folder."""
    folders = {}
    for path in SCRIPTS:
        module = load_script(path)
        assert module.__doc__
        assert path.stem.partition("_")[0] in module.__doc__.lower()
        for experiment in module.EXPERIMENTS:
            assert folders.setdefault(experiment.name, experiment) == experiment
    assert folders
    for path in SCRIPTS:
        module = load_script(path)
        for experiment in {e.spec: e for e in module.EXPERIMENTS}.values():
            experiment.load_spec()
        for experiment in experiments_of(module, smoke=True):
            assert experiment.load_spec(smoke=True).as_dict() != experiment.load_spec().as_dict()


@pytest.mark.slow
def test_figures_from_nothing_and_again(root, capsys):
    """What is missing is run, in other processes; what failed is told at the end, and the other scripts go on."""
    (root / "paper_figures" / "bad_figure.py").write_text(
        'EXPERIMENTS = ()\n\ndef draw(runs):\n    raise ValueError("no")\n'
    )
    lines = []
    assert make_figures(runs=root / "runs", root=root, jobs=1, say=lines.append) == 1
    assert lines[0] == "1 run folders, 1 of them to be made, for 2 figures."
    assert "failed: paper_figures/bad_figure.py: ValueError: no" in lines
    assert "| T1 |" in (root / "docs" / "claims.md").read_text()
    (root / "paper_figures" / "bad_figure.py").unlink()
    assert make_figures(runs=root / "runs", root=root, jobs=1, say=lines.append) == 0
    assert "1 run folders, 0 of them to be made, for 1 figures." in lines

    (root / "tiny.toml").write_text(SPEC.replace("1.0", "-1.0"))  # only the small version is wrong
    lines.clear()
    assert make_figures(runs=root / "runs", root=root, jobs=1, smoke=True, say=lines.append) == 2
    assert lines[-1] == "2 failed: tiny, paper_figures/tiny_figure.py"


@pytest.mark.slow
def test_workers_end_with_the_process_that_was_killed(tmp_path):
    script = """
import concurrent.futures, multiprocessing, os, sys, time
from decentral.experiment.figures import _start_worker

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(1, context, _start_worker, (sys.argv[1],))
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(600)
"""
    path = tmp_path / "pool.py"
    path.write_text(script)
    command = [sys.executable, str(path), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        worker = int(process.stdout.readline())
        process.kill()
        try:
            assert process.communicate(timeout=30)[0] == ""  # ends when nobody holds the other end
        except subprocess.TimeoutExpired:
            os.kill(worker, signal.SIGKILL)
            raise


@pytest.mark.slow
def test_every_figure_in_its_small_version(tmp_path):
    """``decentral figures --smoke``: all scripts draw from small runs, judge nothing, and leave the table alone."""
    table = (Path(__file__).parents[1] / "docs" / "claims.md").read_bytes()
    lines = []
    assert make_figures(smoke=True, runs=tmp_path, say=lines.append) == 0, "\n".join(lines)
    drawn = {path.stem for path in tmp_path.glob("*.pdf")}
    assert drawn == {path.stem for path in tmp_path.glob("*.png")}
    for script in SCRIPTS:
        assert any(name.startswith(script.stem) for name in drawn), script.stem
    judged = [json.loads(path.read_text()) for path in tmp_path.glob("*-smoke.json")]
    assert len(judged) > 12
    assert {claim["words"] for written in judged for claim in written["claims"]} == {NOT_JUDGED}
    assert (Path(__file__).parents[1] / "docs" / "claims.md").read_bytes() == table
