"""The run folder's contract: what is in it, that the same spec gives the same bytes, and what survives when a run does not."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest
import tomli_w
from cases import mostly_slow

from decentral.engine.trace import Trace
from decentral.errors import InvalidInput, InvalidInputs, RunFailed
from decentral.experiment import folder as folders
from decentral.experiment import memory
from decentral.experiment import run as running
from decentral.experiment.prepared import prepare_run
from decentral.experiment.run import resume, run
from decentral.experiment.simulation import Diverged, Simulation
from decentral.experiment.spec import load_spec

pytestmark = pytest.mark.usefixtures("compiled_once")

RECORDS = 9


def tables(**changes) -> dict:
    """Two algorithms on one trace, two seeds with data of their own; ``changes`` replace whole tables."""
    base = {
        "name": "tiny",
        "seed": 3,
        "seeds": 2,
        "topology": {"kind": "ring", "n": 4},
        "problem": {"kind": "quadratic", "d": 3, "noise": 0.1, "heterogeneity": 1.0},
        "stop": {"kind": "time", "time_s": 16.0},
        "record": {"count": RECORDS - 1},
        "algorithm": [
            {"kind": "gossip", "optimizer": {"kind": "sgd", "learning_rate": 0.1, "momentum": 0.5}},
            {"kind": "a2cid2"},
        ],
    }
    return base | changes


GOSSIP = {"kind": "gossip", "optimizer": {"learning_rate": 0.1}}


@pytest.fixture(autouse=True)
def _quick_plots(request, monkeypatch):
    """A figure takes as long as a small run; only the test that looks at it draws it."""
    if "draws" not in request.keywords:
        monkeypatch.setattr(running, "plot_overview", lambda curves, path, title: path.write_bytes(b"a plot"))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; the lock says nothing."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compiled_once) -> Path:
    """The folder of a run that nothing interrupted: what every resumed one is held against."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "plot_overview", lambda curves, path, title: path.write_bytes(b"a plot"))
        return run(tables(), out=tmp_path_factory.mktemp("whole") / "run").folder


# -- the folder --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tmp_path_factory, compiled_once):
    """Three algorithms on two traces, one data set, and the real plot."""
    source = tables(
        problem={"kind": "quadratic", "d": 3, "noise": 0.1, "heterogeneity": 1.0, "seed": 0},
        algorithm=[{"kind": "gossip", "name": "plain"}, {"kind": "a2cid2"}, {"kind": "dadao"}],
    )
    return run(source, out=tmp_path_factory.mktemp("three") / "run", command_line=["decentral", "run", "x"])


def test_files(three):
    assert set(contents(three.folder)) == {
        "spec.toml", "manifest.json", "metrics.npz", "summary.json", "trace_plain.npz", "trace_dadao.npz", "overview.png",
    }  # fmt: skip
    assert (three.folder / "overview.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_metrics_are_arrays_of_seeds_and_records(three):
    with np.load(three.folder / "metrics.npz", allow_pickle=False) as file:
        metrics = dict(file)
    names = {"time_s", "gradients", "exchanges", "samples", "messages", "bytes", "loss", "suboptimality"}
    for algorithm in ("plain", "a2cid2", "dadao"):
        here = {key.split("/")[1] for key in metrics if key.startswith(f"{algorithm}/")}
        assert names | {"consensus_distance", "distance_to_optimum", "loss_workers", "loss_worst"} <= here
    for key, values in metrics.items():
        assert values.shape == (2, RECORDS), key
        assert values.dtype == np.float64
        assert np.isfinite(values).all()
    np.testing.assert_array_equal(metrics["plain/time_s"], np.tile(np.linspace(0, 16, RECORDS), (2, 1)))
    np.testing.assert_array_equal(metrics["plain/messages"], 2 * metrics["plain/exchanges"])
    assert not any("wall" in key for key in metrics)


def test_manifest(three):
    manifest = manifest_of(three.folder)
    assert manifest["status"] == "finished"
    assert manifest["error"] is None
    assert manifest["name"] == "tiny"
    assert manifest["seeds"] == [3, 4]
    assert manifest["command_line"] == ["decentral", "run", "x"]
    assert manifest["start"] <= manifest["end"]
    assert manifest["versions"]["jax"] == jax.__version__
    assert manifest["versions"]["numpy"] == np.__version__
    assert {"python", "decentral", "jaxlib", "optax", "numba"} <= set(manifest["versions"])
    assert set(manifest["commit"]) == {"hash", "modified"}
    assert {"name", "system", "cpus"} == set(manifest["host"])
    assert manifest["device"]["platform"] == "cpu"
    assert manifest["flags"]["x64"] is True
    assert manifest["trace"] == {"plain": "plain", "a2cid2": "plain", "dadao": "dadao"}
    assert manifest["paired"] == "tape"
    assert set(manifest["wall_s"]["dadao"]) == {"timeline", "plan", "compile", "run", "record"}
    assert manifest["wall_s"]["dadao"]["compile"] > 0


def test_a_trace_file_is_the_trace_of_the_manifest(three):
    hashes = manifest_of(three.folder)["trace_hash"]
    assert set(hashes) == {"plain", "dadao"}
    for name, expected in hashes.items():
        trace = Trace.load(three.folder / f"trace_{name}.npz")
        assert [trace.replica(k).hash for k in range(2)] == expected
        assert [replica.seed for replica in trace.replicas] == [3, 4]
    assert len({*hashes["plain"], *hashes["dadao"]}) == 4


def test_summary(three):
    summary = json.loads((three.folder / "summary.json").read_text())
    assert summary["seeds"] == [3, 4]
    with np.load(three.folder / "metrics.npz") as metrics:
        for name, entry in summary["algorithms"].items():
            last = metrics[f"{name}/loss"][:, -1]
            final = entry["final"]["loss"]
            assert final["mean"] == pytest.approx(last.mean())
            # Student's t with one degree of freedom: 12.706 standard errors
            assert final["half_width"] == pytest.approx(12.7062 * last.std(ddof=1) / np.sqrt(2), rel=1e-4)
            trace = Trace.load(three.folder / f"trace_{entry['trace']}.npz")
            assert entry["counts"] == trace.counts
            assert entry["events"] == len(trace)
            assert entry["realised_per_worker_and_s"] == trace.realised_rates()
            assert entry["final"]["gradients"]["mean"] * 2 == trace.counts["gradient"]
            for when in ("gradients_at_start", "gradients_at_end"):
                # quadratic with noise 0.1 in each of three coordinates
                assert entry[when]["sigma_squared"] == pytest.approx([0.03, 0.03], rel=0.5)
                assert len(entry[when]["zeta_squared"]) == 2
                assert min(entry[when]["zeta_squared"]) > 0
            target = entry["to_target"]
            assert target["metric"] == "suboptimality"
            assert target["time_s"]["reached"] == target["time_s"]["seeds"] == 2
            assert 0 < target["time_s"]["mean"] <= 16
            reached = [metrics[f"{other}/suboptimality"].min(axis=1).max() for other in summary["algorithms"]]
            assert target["target"] == max(reached)
            assert set(target) == {
                "metric",
                "target",
                "time_s",
                "samples",
                "updates",
                "gradients",
                "exchanges",
                "bytes",
            }
    rates = summary["algorithms"]["a2cid2"]["assumed_per_worker_and_s"]
    assert rates == {"gradient": 1.0, "exchange": pytest.approx(1.0)}
    assert summary["algorithms"]["a2cid2"]["hyper_parameters"]["alpha"] == 0.5
    dadao = summary["algorithms"]["dadao"]
    assert dadao["chi_1"][0] * dadao["chi_2"][0] == pytest.approx(0.5)


def test_a_target_of_accuracy_is_reached_from_below(tmp_path):
    source = tables(
        problem={"kind": "breast_cancer", "seed": 0}, record={"count": 4, "target_metric": "test_accuracy"}
    )
    done = run(source, out=tmp_path / "run")
    accuracy = {name: result.metrics["test_accuracy"] for name, result in done.results.items()}
    assert max(values[:, 0].max() for values in accuracy.values()) < 0.8  # it starts at chance
    for name in accuracy:
        target = done.summary["algorithms"][name]["to_target"]
        assert target["target"] == min(values.max(axis=1).min() for values in accuracy.values()) > 0.9
        assert target["time_s"]["reached"] == 2
        assert target["time_s"]["mean"] > 0


def test_the_spec_is_resolved_and_runs_again_to_the_same_bytes(three, tmp_path):
    spec = tomllib.loads((three.folder / "spec.toml").read_text())
    plain, acid, dadao = spec["algorithm"]
    curvature = 1.0  # L of this problem
    assert plain["optimizer"]["learning_rate"] == pytest.approx(1 / (16 * curvature * (1 + 1)), rel=1)
    assert plain["optimizer"]["learning_rate"] > 0
    assert acid["eta"] == pytest.approx(0.5 / np.sqrt(1 * 0.75))  # ring of 4: chi_1 = 1, chi_2 = 3/4
    assert acid["alpha_tilde"] == pytest.approx(0.5 * np.sqrt(1 / 0.75))
    assert dadao["delta_tilde"] == 1.0
    assert "smoke" not in spec
    again = run(three.folder / "spec.toml", out=tmp_path / "again")
    assert (again.folder / "metrics.npz").read_bytes() == (three.folder / "metrics.npz").read_bytes()
    assert (again.folder / "summary.json").read_bytes() == (three.folder / "summary.json").read_bytes()
    assert tomllib.loads((again.folder / "spec.toml").read_text()) == spec


def test_two_processes_one_result(whole, tmp_path):
    """From the shell, with a relative folder and a spec that leaves the precision open (float64)."""
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(tables()))
    done = subprocess.run(
        [sys.executable, "-m", "decentral.cli", "run", "tiny.toml", "--out", "here/run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "JAX_ENABLE_X64"},
    )
    assert done.returncode == 0, done.stderr
    assert "run folder  here/run\n" in done.stdout
    there = tmp_path / "here" / "run"
    assert manifest_of(there)["trace_hash"] == manifest_of(whole)["trace_hash"]
    assert manifest_of(there)["command_line"] == ["decentral", "run", "tiny.toml", "--out", "here/run"]
    assert (there / "metrics.npz").read_bytes() == (whole / "metrics.npz").read_bytes()
    assert (there / "overview.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("algorithm", "changes", "paired", "traces"),
    [
        ([GOSSIP, {"kind": "a2cid2"}], {}, "trace", {"gossip": "gossip", "a2cid2": "gossip"}),
        ([GOSSIP, {"kind": "dadao"}], {}, "tape", {"gossip": "gossip", "dadao": "dadao"}),
        ([{"kind": "dadao"}, GOSSIP, {"kind": "a2cid2"}], {}, "tape", {"dadao": "dadao", "gossip": "gossip", "a2cid2": "gossip"}),
        ([GOSSIP, {"kind": "dadao"}], {"protocol": {"exchanges_per_s": 50}}, "trace", {"gossip": "gossip", "dadao": "gossip"}),
        ([GOSSIP], {}, None, {"gossip": "gossip"}),
    ],
)  # fmt: skip
def test_a_trace_is_shared_where_the_clocks_agree(algorithm, changes, paired, traces):
    pairing = prepare_run(load_spec(tables(algorithm=algorithm, **changes))).pairing
    assert pairing["paired"] == paired
    assert pairing["trace"] == traces
    assert set(pairing["trace_hash"]) == set(traces.values())


def test_a_seed_has_the_same_events_alone_and_among_others():
    many = prepare_run(load_spec(tables(seeds=3))).pairing["trace_hash"]["gossip"]
    alone = prepare_run(load_spec(tables(seed=4, seeds=1))).pairing["trace_hash"]["gossip"]
    assert alone == many[1:2]
    assert len(set(many)) == 3


def test_a_trace_that_is_not_kept(whole, tmp_path):
    source = tables(record={"count": RECORDS - 1, "trace": False}, algorithm=[GOSSIP])
    folder = run(source, out=tmp_path / "run").folder
    assert set(contents(folder)) == {
        "spec.toml", "manifest.json", "metrics.npz", "summary.json", "overview.png",
    }  # fmt: skip
    assert manifest_of(folder)["trace_hash"] == manifest_of(whole)["trace_hash"]


# -- cut off -----------------------------------------------------------------------------------------------------------


DRIVER = """
import os, signal, sys
import jax
jax.config.update("jax_enable_x64", True)
from decentral.experiment import folder
from decentral.experiment.run import run

replace, number = os.replace, 0
def fatal(source, target):
    "Dies while the last checkpoint it was told of has another name still."
    global number
    number += str(target).endswith(sys.argv[3] + ".npz") and "checkpoint" in str(target)
    if number == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
folder.os.replace = fatal
run(sys.argv[1], out=sys.argv[2], checkpoint_every_s=0)
"""


@pytest.mark.parametrize(
    ("algorithm", "number"), mostly_slow([("gossip", 2), ("a2cid2", 2)], [("a2cid2", 2)])
)
def test_killed_and_resumed(algorithm, number, whole, tmp_path):
    """SIGKILL in the middle of a checkpoint, in the first algorithm and in the second."""
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(tables()))
    folder = tmp_path / "run"
    arguments = [str(tmp_path / "tiny.toml"), str(folder), algorithm, str(number)]
    dead = subprocess.run([sys.executable, "-c", DRIVER, *arguments], capture_output=True, text=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    left = set(contents(folder))
    assert {
        f"checkpoint/{algorithm}.npz",
        f"checkpoint/{algorithm}.npz.tmp",
        "spec.toml",
        "manifest.json",
    } <= left
    assert "checkpoint/gossip.npz" in left
    assert ("metrics.npz" in left) == (algorithm == "a2cid2")
    with np.load(folder / "checkpoint" / f"{algorithm}.npz") as file:
        assert 0 < file["position"] < len(file["pieces"])
    assert manifest_of(folder)["status"] == "running"

    resume(folder)
    assert (folder / "metrics.npz").read_bytes() == (whole / "metrics.npz").read_bytes()
    assert (folder / "summary.json").read_bytes() == (whole / "summary.json").read_bytes()
    assert set(contents(folder)) == set(contents(whole))
    manifest = manifest_of(folder)
    assert manifest["status"] == "finished"
    assert len(manifest["resumed"]) == 1


class Killed(BaseException):
    """Like SIGKILL, nobody catches it; unlike it, this process goes on."""


def stop_at(monkeypatch, step: int, error: BaseException, algorithm: str = "gossip") -> None:
    """Raise ``error`` instead of the given step of an algorithm, once."""
    real, raised = Simulation.step, []

    def limited(self):
        if self.name == algorithm and self.position == step and not raised:
            raised.append(True)
            raise error
        real(self)

    monkeypatch.setattr(Simulation, "step", limited)


def cut_off(
    monkeypatch, folder: Path, *, step: int = 4, error: BaseException | None = None, **changes
) -> Path:
    """A run folder that a run in this process left when it was stopped at a step of gossip."""
    error = Killed() if error is None else error
    with monkeypatch.context() as patch:
        stop_at(patch, step, error)
        with contextlib.suppress(Killed, RunFailed):
            run(tables(**changes), out=folder, checkpoint_every_s=0)
    assert manifest_of(folder)["status"] != "finished"
    return folder


def test_killed_before_the_first_checkpoint(whole, tmp_path, monkeypatch):
    folder = cut_off(monkeypatch, tmp_path / "run", step=0)
    assert not list((folder / "checkpoint").glob("*.npz"))
    resume(folder)
    assert (folder / "metrics.npz").read_bytes() == (whole / "metrics.npz").read_bytes()


def test_killed_before_the_trace_was_saved(whole, tmp_path, monkeypatch):
    folder = cut_off(monkeypatch, tmp_path / "run", step=0)
    (folder / "trace_gossip.npz").unlink()
    resume(folder)
    assert (folder / "trace_gossip.npz").exists()


def test_killed_before_it_began(tmp_path, monkeypatch):
    folder = cut_off(monkeypatch, tmp_path / "run", step=0)
    (folder / "spec.toml").unlink()
    with pytest.raises(
        InvalidInput, match=r"cut off before it began. Start it again: decentral run SPEC --out DIR"
    ):
        resume(folder)


def test_killed_twice(whole, tmp_path, monkeypatch):
    folder = cut_off(monkeypatch, tmp_path / "run", step=2)
    with monkeypatch.context() as patch:
        stop_at(patch, 6, Killed())
        with pytest.raises(Killed):
            resume(folder, checkpoint_every_s=0)
    first = manifest_of(folder)["start"]
    resume(folder)
    assert (folder / "metrics.npz").read_bytes() == (whole / "metrics.npz").read_bytes()
    manifest = manifest_of(folder)
    assert manifest["start"] == first
    assert [set(again) for again in manifest["resumed"]] == 2 * [{"start", "versions", "commit"}]


def test_wall_times_are_those_of_all_starts(tmp_path, monkeypatch):
    folder = cut_off(monkeypatch, tmp_path / "run", algorithm=[GOSSIP])
    with np.load(folder / "checkpoint" / "gossip.npz") as file:
        before = float(file["wall_compile"])
    resume(folder)
    assert manifest_of(folder)["wall_s"]["gossip"]["compile"] > before > 0


def test_a_finished_run_is_not_resumed(whole):
    before = contents(whole)
    with pytest.raises(
        InvalidInput, match=r"allowed: a run that is not finished\. This one is; decentral compare"
    ):
        resume(whole)
    assert contents(whole) == before


@pytest.mark.parametrize("where", ["nowhere", "."])
def test_what_is_no_run_is_not_resumed(where, tmp_path):
    with pytest.raises(InvalidInput, match=r"allowed: a run folder \(one with a manifest.json\)"):
        resume(tmp_path / where)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flip(path: Path) -> None:
    """One bit of the state."""
    content = bytearray(path.read_bytes())
    with np.load(path) as file:
        content[content.index(file["state_0"].tobytes()) + 3] ^= 1
    path.write_bytes(bytes(content))


def another(path: Path, **arrays) -> None:
    with np.load(path) as file:
        folders.write_arrays(path, dict(file) | arrays)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": shorten,
    "flipped": flip,
    "text": lambda path: path.write_text("hello"),
    "other arrays": lambda path: folders.write_arrays(path, {"a": np.zeros(3)}),
    "other shape": lambda path: another(path, state_0=np.zeros((3, 3))),
    "other type": lambda path: another(path, state_0=np.zeros((8, 3), np.float32)),
    "other plan": lambda path: another(path, pieces=np.zeros((3, 3), int)),
}


@pytest.fixture(scope="module")
def cut(tmp_path_factory, compiled_once) -> Path:
    """A run that was cut off, to be copied."""
    with pytest.MonkeyPatch.context() as patch:
        return cut_off(patch, tmp_path_factory.mktemp("cut") / "run", algorithm=[GOSSIP])


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint(damage, cut, tmp_path):
    folder = Path(shutil.copytree(cut, tmp_path / "run"))
    DAMAGE[damage](folder / "checkpoint" / "gossip.npz")
    before = contents(folder)
    with pytest.raises(InvalidInput) as caught:
        resume(folder)
    words = str(caught.value)
    assert words.startswith(f"checkpoint: got '{folder}/checkpoint/gossip.npz'; allowed: a")
    assert "Delete it, and decentral resume starts that algorithm again from its beginning." in words
    assert contents(folder) == before


def test_the_advice_about_a_damaged_checkpoint_works(cut, tmp_path):
    folder = Path(shutil.copytree(cut, tmp_path / "run"))
    (folder / "checkpoint" / "gossip.npz").unlink()
    assert resume(folder).results["gossip"].metrics["loss"].shape == (2, RECORDS)


def test_a_damaged_manifest(cut, tmp_path):
    folder = Path(shutil.copytree(cut, tmp_path / "run"))
    for content in ("{", "[]", ""):
        (folder / "manifest.json").write_text(content)
        with pytest.raises(InvalidInput, match=r"manifest: .*It is missing or damaged"):
            resume(folder)


def change_manifest(folder: Path, **changes) -> None:
    folders.write_json(folder / "manifest.json", manifest_of(folder) | changes)


def test_other_events_are_not_mixed_in(cut, tmp_path):
    """Another version of the package may draw other events."""
    folder = Path(shutil.copytree(cut, tmp_path / "run"))
    change_manifest(folder, trace_hash={"gossip": ["0" * 64, "1" * 64]})
    before = contents(folder)
    with pytest.raises(
        InvalidInput, match=r"trace_hash: got .*Start a new run, or go back to its versions: .*'jax'"
    ):
        resume(folder)
    assert contents(folder) == before


def test_another_spec_is_not_mixed_in(cut, tmp_path):
    folder = Path(shutil.copytree(cut, tmp_path / "run"))
    text = (folder / "spec.toml").read_text()
    (folder / "spec.toml").write_text(text.replace("learning_rate = 0.1", "learning_rate = 0.2"))
    with pytest.raises(
        InvalidInput, match=r"spec.toml: got 'another text'; .* Put it back, or start a new run."
    ):
        resume(folder)


def test_another_precision_is_not_mixed_in(cut, tmp_path):
    folder = Path(shutil.copytree(cut, tmp_path / "run"))
    change_manifest(folder, flags={"x64": False})
    with pytest.raises(
        InvalidInput, match=r"jax_enable_x64: got True; allowed: False\. Set JAX_ENABLE_X64=0 as"
    ):
        resume(folder)


def test_one_process_at_a_time(cut, tmp_path):
    folder = Path(shutil.copytree(cut, tmp_path / "run"))
    before = contents(folder)
    with folders.exclusive(folder):
        for attempt in (lambda: resume(folder), lambda: run(tables(), out=folder, overwrite=True)):
            with pytest.raises(
                InvalidInput, match=r"a run that no other process works on\. Wait until it has finished"
            ):
                attempt()
    assert contents(folder) == before


def test_checkpoints_take_a_tenth_of_the_time(tmp_path, monkeypatch):
    """Writing a state may take longer than the seconds between two checkpoints."""
    clock, written = [0.0], []

    class Slow:
        name = "slow"
        done = False
        wall_s = {}  # noqa: RUF012

        def snapshot(self):
            return {}

    def write(path, arrays):
        assert path == tmp_path / "slow.npz"
        written.append(clock[0])
        clock[0] += 3.0

    monkeypatch.setattr(running.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(folders, "write_arrays", write)
    checkpoints = running._Checkpoints(tmp_path, 10.0, lambda: None)
    while clock[0] < 100:
        clock[0] += 1.0
        checkpoints.after_step(Slow())
    assert written == [10.0, 43.0, 76.0]
    Slow.done = True
    checkpoints.after_step(Slow())
    assert len(written) == 4  # the end is always kept


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_run_that_diverges(tmp_path):
    wild = [GOSSIP | {"optimizer": {"learning_rate": 1e40}}, {"kind": "a2cid2"}]
    stop, record = {"kind": "time", "time_s": 100.0}, {"times_s": [0.0, 0.1, 0.2, 60.0, 100.0]}
    with pytest.raises(Diverged) as caught:
        run(tables(algorithm=wild, stop=stop, record=record), out=tmp_path / "run")
    error = caught.value
    words = str(error)
    assert words.startswith(
        f"gossip: the state of worker {error.worker} (seed {error.seed}) became NaN or infinite"
    )
    assert f"at event {error.event} (gradient, t = {error.time_s:.6g} s). Try a smaller step size" in words
    assert f"What was recorded before is in {tmp_path / 'run' / 'metrics.npz'}." in words
    trace = Trace.load(tmp_path / "run" / "trace_gossip.npz")
    assert trace.time_s[error.event] == error.time_s
    assert trace.operands[error.event, 0] == error.worker + 4 * (error.seed - 3)

    with np.load(tmp_path / "run" / "metrics.npz") as metrics:
        loss, time_s = metrics["gossip/loss"], metrics["gossip/time_s"]
        assert {key.split("/")[0] for key in metrics.files} == {"gossip"}
    assert loss.shape == (2, 3)
    assert np.isfinite(loss).all()
    assert time_s[0, -1] == 0.2 < error.time_s <= 60.0  # all records before it, and no other
    manifest = manifest_of(tmp_path / "run")
    assert manifest["status"] == "failed"
    assert "became NaN or infinite" in manifest["error"]
    assert not (tmp_path / "run" / "summary.json").exists()

    kept = (tmp_path / "run" / "metrics.npz").read_bytes()
    with pytest.raises(Diverged) as again:
        resume(tmp_path / "run")
    assert str(again.value) == words
    assert (tmp_path / "run" / "metrics.npz").read_bytes() == kept


def test_a_loss_that_overflows_before_the_state_does(tmp_path):
    """In float32 numbers of 1e20 are finite and their squares are not."""
    wild = [GOSSIP | {"optimizer": {"learning_rate": 1e3}}]
    problem = {"kind": "quadratic", "d": 3, "dtype": "float32"}
    stop, record = {"kind": "time", "time_s": 12.0}, {"count": 24}
    with pytest.raises(
        Diverged, match=r"became too large for a finite loss at event \d+ \((gradient|exchange), t = "
    ):
        run(tables(algorithm=wild, problem=problem, stop=stop, record=record), out=tmp_path / "run")
    with np.load(tmp_path / "run" / "metrics.npz") as metrics:
        assert metrics["gossip/loss"].shape[1] > 3
        assert all(np.isfinite(metrics[key]).all() for key in metrics.files)


def test_interrupted(whole, tmp_path, monkeypatch):
    stop_at(monkeypatch, 4, KeyboardInterrupt(), algorithm="a2cid2")
    folder = tmp_path / "run"
    with pytest.raises(RunFailed, match=f"^Interrupted. To go on: decentral resume {folder}$"):
        run(tables(), out=folder)
    assert manifest_of(folder)["status"] == "interrupted"
    with np.load(folder / "metrics.npz") as partial, np.load(whole / "metrics.npz") as full:
        np.testing.assert_array_equal(partial["gossip/loss"], full["gossip/loss"])
        np.testing.assert_array_equal(partial["a2cid2/loss"], full["a2cid2/loss"][:, :4])
    resume(folder)
    assert (folder / "metrics.npz").read_bytes() == (whole / "metrics.npz").read_bytes()


def test_interrupted_again_and_earlier(tmp_path, monkeypatch):
    """What a start recorded stays, even if the next one does not come as far."""
    folder = cut_off(monkeypatch, tmp_path / "run", step=4, error=KeyboardInterrupt(), algorithm=[GOSSIP])
    recorded = (folder / "metrics.npz").read_bytes()
    for checkpoint in (folder / "checkpoint").glob("*.npz"):
        checkpoint.unlink()
    for step in (0, 2):
        with monkeypatch.context() as patch:
            stop_at(patch, step, KeyboardInterrupt())
            with pytest.raises(RunFailed):
                resume(folder)
        assert (folder / "metrics.npz").read_bytes() == recorded


@pytest.fixture
def listens_to_ctrl_c():
    """A shell starts what runs in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listens_to_ctrl_c")
def test_ctrl_c_that_python_drops(whole, tmp_path, monkeypatch):
    """Ctrl-C while a callback of the garbage collector runs: Python prints the exception and goes on."""
    folder, real = tmp_path / "run", Simulation.step

    class Collected:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def step(self):
        if self.position == 3:
            Collected()
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Simulation, "step", step)
        patch.setattr(sys, "unraisablehook", lambda dropped: None)
        with pytest.raises(RunFailed, match=r"^Interrupted"):
            run(tables(), out=folder)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with np.load(folder / "metrics.npz") as partial:
        assert partial["gossip/loss"].shape == (2, 4)
    resume(folder)
    assert (folder / "metrics.npz").read_bytes() == (whole / "metrics.npz").read_bytes()


def test_interrupted_while_compiling(whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Simulation, "warm_up", lambda self: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(RunFailed, match=r"^Interrupted"):
            run(tables(), out=folder)
    assert manifest_of(folder)["status"] == "interrupted"
    resume(folder)
    assert (folder / "metrics.npz").read_bytes() == (whole / "metrics.npz").read_bytes()


@pytest.mark.parametrize("room", [0, 1, 3], ids="{}_writes_fit".format)
def test_a_full_disk(room, whole, tmp_path, monkeypatch):
    """From some write of arrays on nothing fits; checkpoints of before are kept and the run can go on."""
    folder, real, writes = tmp_path / "run", np.savez, []

    def savez(file, **arrays):
        writes.append(file.name)
        if len(writes) > room:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(folders.np, "savez", savez)
        with pytest.raises(
            RunFailed, match=r"No space left on device\nWhen there is room again: decentral resume"
        ):
            run(tables(record={"count": RECORDS - 1, "trace": False}), out=folder, checkpoint_every_s=0)
    assert manifest_of(folder)["status"] == "failed"
    assert "No space left" in manifest_of(folder)["error"]
    assert not list(folder.rglob("*.tmp"))
    assert (folder / "checkpoint" / "gossip.npz").exists() == (room > 0)
    resume(folder)
    assert (folder / "metrics.npz").read_bytes() == (whole / "metrics.npz").read_bytes()


def test_out_of_memory_while_running(tmp_path, monkeypatch):
    stop_at(
        monkeypatch, 2, jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
    )
    with pytest.raises(RunFailed, match=r"RESOURCE_EXHAUSTED.*\nWhen there is room again: decentral resume"):
        run(tables(), out=tmp_path / "run")
    assert manifest_of(tmp_path / "run")["status"] == "failed"


def test_a_fault_of_the_program_is_not_hidden(whole, tmp_path, monkeypatch):
    """A traceback for whoever mends it, a manifest that says so, and what was recorded."""
    with monkeypatch.context() as patch:
        stop_at(patch, 3, ZeroDivisionError("a bug"))
        with pytest.raises(ZeroDivisionError):
            run(tables(), out=tmp_path / "run")
    manifest = manifest_of(tmp_path / "run")
    assert manifest["status"] == "failed"
    assert manifest["error"] == "ZeroDivisionError: a bug"
    resume(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.npz").read_bytes() == (whole / "metrics.npz").read_bytes()


# -- where it is written -----------------------------------------------------------------------------------------------


def test_folders_are_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [str(folders.create(None, "a", {})) for _ in range(2)] == ["runs/a-001", "runs/a-002"]
    assert str(folders.create(None, "b", {})) == "runs/b-001"
    (tmp_path / "runs" / "a-003").mkdir()
    assert str(folders.create(None, "a", {})) == "runs/a-004"


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made, gate = [], threading.Barrier(8)

    def start():
        gate.wait()
        made.append(folders.create(None, "a", {}))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in made) == [f"a-{number:03d}" for number in range(1, 9)]


def refused(out: Path, words: str, **options) -> None:
    """The run is refused before it begins, and nothing changes."""
    parent = next(path for path in (out, *out.parents) if path.is_dir())
    before = contents(parent) if parent != Path("/proc") else None
    with pytest.raises(InvalidInput) as caught:
        run(tables(algorithm=[GOSSIP]), out=out, **options)
    assert words in str(caught.value)
    if before is not None:
        assert contents(parent) == before


def test_a_folder_that_is_taken(whole, tmp_path):
    (tmp_path / "notes.txt").write_text("precious")
    refused(tmp_path, "allowed: a folder that is new or empty. Choose another one, or add --overwrite.")
    refused(
        tmp_path,
        "--overwrite: got .*; allowed: a run folder. This one has".replace(".*", f"'{tmp_path}'"),
        overwrite=True,
    )
    refused(tmp_path / "notes.txt", "allowed: a folder. There is a file of this name.")
    refused(tmp_path / "notes.txt" / "run", "allowed: a folder that can be written.")
    refused(whole, "allowed: a folder that is new or empty.")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc")
def test_a_folder_that_cannot_be_written():
    refused(Path("/proc/run"), "--out: got '/proc/run'; allowed: a folder that can be written. [Errno 2]")


def test_an_empty_folder_will_do(tmp_path):
    assert folders.create(tmp_path, "a", {}) == tmp_path


def test_overwriting_replaces_what_the_run_wrote_and_nothing_else(cut, tmp_path):
    folder = Path(shutil.copytree(cut, tmp_path / "run"))
    (folder / "notes.txt").write_text("precious")
    (folder / "trace_old.npz").write_text("of the run")
    source = tables(algorithm=[{"kind": "a2cid2"}], record={"count": 2, "trace": False})
    run(source, out=folder, overwrite=True)
    assert set(contents(folder)) == {
        "spec.toml", "manifest.json", "metrics.npz", "summary.json", "overview.png", "notes.txt",
    }  # fmt: skip
    assert (folder / "notes.txt").read_text() == "precious"
    with np.load(folder / "metrics.npz") as metrics:
        assert metrics["a2cid2/loss"].shape == (2, 3)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    folders.write_bytes(tmp_path / "file", b"old")

    def fail_half_way():
        with folders.replacing(tmp_path / "file") as file:
            file.write(b"half of the n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert contents(tmp_path) == {"file": b"old"}


def test_json_has_no_nan(tmp_path):
    folders.write_json(
        tmp_path / "x.json", {"a": [float("nan"), np.float32(1.5), np.int64(3), (float("inf"),)]}
    )
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.5, 3, [None]]}


# -- refused before anything is written --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"record": {"times_s": [1.0, 17.0]}}, "record.times_s: got 17.0; allowed: at most the horizon, 16.0 s"),
        ({"record": {"events": [10**9]}}, "record.events: got 1000000000; allowed: at most the"),
        ({"record": {"target_metric": "sub_optimality"}}, "a recorded metric. Did you mean 'suboptimality'?"),
        ({"record": {"target_metric": "loss", "evaluate": False}}, "record.target_metric: got 'loss'"),
        (
            {"algorithm": [GOSSIP | {"optimizer": {"learning_rate": 0.1, "momentum": "much"}}]},
            "optimizer.momentum: got 'much'; allowed: a number",
        ),
        ({"algorithm": [{"kind": "dadao"}], "protocol": {"gradients_per_s": 2.0}}, "algorithm dadao: protocol.gradients_per_s:"),
        ({"problem": {"kind": "digits"}, "topology": {"kind": "ring", "n": 1500}}, "no samples for 62 of 1500 workers"),
        ({"problem": {"kind": "digits", "partition": "labels"}}, "Did you mean 'label'?"),
        ({"problem": {"kind": "quadratic", "d": 3, "dtype": "float16"}}, "problem.dtype: got 'float16'"),
        ({"topology": {"kind": "erdos_renyi", "n": 12, "probability": 0.25}, "seed": 0, "seeds": 8}, "seed 2: graph: got"),
    ],
)  # fmt: skip
def test_bad_input_leaves_nothing_behind(changes, words, tmp_path):
    with pytest.raises(InvalidInput) as caught:
        run(tables(**changes), out=tmp_path / "run")
    assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_record_has_to_lie_on_every_trace(tmp_path):
    """DADAO asks for more exchanges, so its trace is longer than that of gossip."""
    longer = tables(
        topology={"kind": "ring", "n": 8}, algorithm=[{"kind": "dadao"}, GOSSIP], record={"events": [480]}
    )
    with pytest.raises(
        InvalidInput, match=r"record.events: got 480; allowed: at most the \d+ events of the trace"
    ):
        run(longer, out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_graph_and_data_are_refused_together(tmp_path):
    """Beyond 1,024 workers the graph is built with the data, once."""
    wrong = tables(topology={"kind": "exponential", "n": 1500}, problem={"kind": "digits"})
    with pytest.raises(InvalidInputs) as caught:
        run(wrong, out=tmp_path / "run")
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["topology.n", "problem data"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"topology": {"kind": "ring", "n": 10**7}, "stop": {"kind": "time", "time_s": 10_000.0}}, "for 3e+11 events"),
        ({"stop": {"kind": "time", "time_s": 1e12}}, "for 1.2e+13 events"),
        ({"stop": {"kind": "gradients", "gradients": 10**12}}, "for 3e+12 events"),
        ({"seeds": 10**9}, "for 9.6e+10 events"),
        ({"topology": {"kind": "ring", "n": 10**15}, "stop": {"kind": "time", "time_s": 1e-9}}, "for a graph of 1,000,000,"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_numbers_before_it_is_built(changes, words, tmp_path):
    began = time.perf_counter()
    with pytest.raises(
        InvalidInput, match=r"memory: got 'about [\d,.]+ GiB .*allowed: the [\d,.]+ GiB that are free"
    ) as caught:
        run(tables(**changes), out=tmp_path / "run")
    assert words in str(caught.value)
    assert time.perf_counter() - began < 5
    assert not list(tmp_path.iterdir())


def test_a_problem_too_large_to_build(tmp_path):
    with pytest.raises(InvalidInput, match=r"problem.d: got 1000000; allowed: what fits in .* GiB"):
        run(tables(problem={"kind": "quadratic", "d": 10**6, "structure": "dense"}), out=tmp_path / "run")


def test_state_and_data_are_counted(tmp_path, monkeypatch):
    """8 workers with 1,000 parameters and as many momenta in float64; data: matrices and centres of each seed."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 500e3)
    problem = {"kind": "quadratic", "d": 1000, "structure": "scalar"}
    with pytest.raises(InvalidInput, match=r"0.0 for the state of 8 workers, 0.0 for data"):
        run(tables(problem=problem), out=tmp_path / "run")
    spec = load_spec(
        tables(problem=problem, algorithm=[GOSSIP | {"optimizer": {"learning_rate": 0.1, "momentum": 0.5}}])
    )
    counted = {}
    monkeypatch.setattr(memory, "_require_memory", counted.update)
    prepare_run(spec)
    assert counted["the state of 8 workers"] == 3 * 8 * (1000 + 1000) * 8
    assert counted["data"] == pytest.approx(2 * 2 * 4 * (1000 + 1) * 8, rel=0.01)
    assert counted["192 events"] == memory.BYTES_PER_EVENT * 2 * 16 * (4 + 2)


def test_available_memory_is_less_than_there_is():
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert physical / 100 < memory.available_bytes() < physical


def test_more_than_292_years(tmp_path):
    rare = {"gradients_per_s": 1e-9, "exchanges_per_s": 1e-9}
    with pytest.raises(
        InvalidInput, match=r"stop: got '1e\+12 simulated seconds'; allowed: at most 9.2e\+09"
    ):
        run(tables(protocol=rare, stop={"kind": "time", "time_s": 1e12}), out=tmp_path / "run")


def test_float64_where_it_is_off(tmp_path):
    with (
        jax.enable_x64(False),
        pytest.raises(
            InvalidInput, match=r"problem.dtype: got 'float64'; .*JAX_ENABLE_X64=1; or ask for float32"
        ),
    ):
        run(tables(), out=tmp_path / "run")
    assert not list(tmp_path.iterdir())
