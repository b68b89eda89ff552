"""Sweeps: what is asked for, what is run, what is found again, and that nothing of it depends on who ran it or when."""

from __future__ import annotations

import csv
import io
import json
import shutil
import warnings
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import tomli_w

import decentral
from decentral import cli
from decentral.errors import InvalidInput, InvalidInputs, RunFailed
from decentral.experiment import folder as folders
from decentral.experiment import merging, sweeps
from decentral.experiment.axes import Range, parse_axes, parse_range, points_of, read_points, split_values
from decentral.experiment.compare import compare
from decentral.experiment.executors import Inline, WorkerDied
from decentral.experiment.forecast import forecast
from decentral.experiment.prepared import source_hash
from decentral.experiment.spec import load_spec
from decentral.experiment.sweep_folder import Sweep, read, value_at

pytestmark = pytest.mark.usefixtures("compiled_once")

RATE = "algorithm.optimizer.learning_rate"
BASE = {
    "name": "tiny",
    "seed": 3,
    "seeds": 2,
    "topology": {"kind": "ring", "n": 4},
    "problem": {"kind": "quadratic", "d": 3, "noise": 0.1, "heterogeneity": 1.0, "dtype": "float32"},
    "stop": {"kind": "time", "time_s": 16.0},
    "record": {"count": 4},
    "algorithm": [{"kind": "gossip", "optimizer": {"kind": "sgd", "learning_rate": 0.1}}],
}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pretended(monkeypatch):
    """Runs that only leave a manifest; the list of those that were asked for."""
    ran: list[str] = []

    def leave(spec, folder: Path, command_line=None) -> None:
        ran.append(folder.name)
        if value_at(spec.as_dict(), RATE) == 13.0:
            sweeps.write_failure(folder, spec, {"stage": "run", "message": "unlucky"})
            return
        folder.mkdir()
        manifest = {"status": "finished", "name": spec.name, "wall_s": {}}
        folders.write_json(folder / "manifest.json", manifest)

    def leave_all(specs, runs, missing, command_line=None) -> None:
        for key in missing:
            leave(specs[key], runs / key)

    monkeypatch.setattr(sweeps, "run_alone", leave)
    monkeypatch.setattr(sweeps, "run_merged", leave_all)
    return ran


# -- what is asked for -------------------------------------------------------------------------------------------------


def test_values_are_split_where_no_bracket_and_no_quote_is_open():
    assert split_values('1, "a,b" ,[2,3],{x=[4,5],y=6}') == ["1", '"a,b"', "[2,3]", "{x=[4,5],y=6}"]
    found = parse_axes(
        ["topology.n=16,64", "topology.kind=ring,star", "seed=1", "record.times_s=[1,2],[3,4]"]
    )
    assert found == {
        "topology.n": [16, 64], "topology.kind": ["ring", "star"], "seed": 1, "record.times_s": [[1, 2], [3, 4]],
    }  # fmt: skip


def test_ranges():
    assert parse_range("k", "1e-3..1e-1:log") == Range(1e-3, 1e-1, log=True)
    assert parse_range("k", "4..64") == Range(4, 64, whole=True)
    assert parse_range("k", "0..1.5") == Range(0, 1.5)
    assert parse_range("k", "ring") is None
    shares = np.random.default_rng(0).random(4000)
    for span, middle in (("1e-3..1e-1:log", 1e-2), ("1..3.0", 2), ("1..3", 2), ("1..100:log", 10)):
        one = parse_range("k", span)
        values = np.array([one.at(share) for share in shares])
        assert values.min() >= one.low
        assert values.max() <= one.high
        assert 0.47 < (values < middle).mean() + (values == middle).mean() / 2 < 0.53
        assert parse_range("k", str(one)) == one
    counts = np.bincount([Range(1, 3, whole=True).at(share) for share in shares])
    assert counts[1:].min() > 1200  # the ends as often as what is between them


def test_a_draw_stays_when_more_are_asked_for_or_another_key_comes():
    axes = {"a": Range(0.0, 1.0), "b": ["x", "y", "z"]}
    few, many = points_of(axes, draws=5, seed=7), points_of(axes | {"c": Range(1, 9)}, draws=50, seed=7)
    assert [{key: point[key] for key in "ab"} for point in many[:5]] == few
    assert {point["b"] for point in many} == {"x", "y", "z"}
    assert points_of(axes, draws=5, seed=8) != few


def test_a_list_is_the_same_from_every_kind_of_file(tmp_path):
    (tmp_path / "p.csv").write_text("topology.n, topology.kind\n16,ring\n64,\n")
    (tmp_path / "p.json").write_text('[{"topology.n": 16, "topology.kind": "ring"}, {"topology": {"n": 64}}]')
    (tmp_path / "p.toml").write_text(
        '[[point]]\n"topology.n" = 16\n"topology.kind" = "ring"\n[[point]]\ntopology.n = 64\n'
    )
    expected = [{"topology.n": 16, "topology.kind": "ring"}, {"topology.n": 64}]
    for kind in ("csv", "json", "toml"):
        assert read_points(tmp_path / f"p.{kind}") == expected
    on_top = points_of({"seed": [0, 1]}, listed=expected)
    assert len(on_top) == 4
    assert on_top[1] == expected[0] | {"seed": 1}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["topology.n=16,"], "with commas between"),
        (["topology.n=8", "topology.n=16"], "each key once"),
        (["topology.n"], "KEY=VALUE"),
        ([f"{RATE}=0..1:log"], "above 0"),
        ([f"{RATE}=2..1"], "LOW < HIGH"),
        ([f"{RATE}=0.1..0.2"], "--random N"),
        (["--random", "3", "topology.n=8"], "a key to draw"),
        (["--random", "0", "topology.n=8,16"], "an integer >= 1"),
        (["topology.m=1,2"], "unknown key"),
        (["topology.n=1,2,0"], "At topology.n = 1"),
        (["--list", "nothing.csv"], "Reading it failed"),
        (["--list", "nothing.txt"], "a .csv"),
        (["--executor", "fork", "topology.n=8"], "Use spawn"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_written(arguments, words, capsys):
    options = ["sweep", "quickstart", "--smoke", "--out", "there"]
    flags = arguments if arguments[0].startswith("--") else ["--set", *arguments]
    if flags[0] in ("--random", "--executor"):
        flags = [*flags[:2], "--set", *flags[2:]]
    assert cli.main([*options, *flags]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not Path("there", "runs").exists() or not any(Path("there", "runs").iterdir())


def test_all_problems_of_all_points_at_once():
    with pytest.raises(InvalidInputs) as caught:
        sweeps.plan_sweep(BASE, {"topology.n": [4, 0], "problem.d": [3, "x"]})
    assert len(caught.value.problems) == 2
    assert "and at 1 more" in caught.value.problems[0]
    with pytest.raises(InvalidInput, match="whole runs"):
        sweeps.plan_sweep(BASE, {"devices.processes": [1, 2]})
    with pytest.raises(InvalidInput, match="workers meet"):  # found where graph and problem are built
        sweeps.plan_sweep(BASE, {"protocol.kind": ["poisson", "all_reduce"]})


# -- what is run -------------------------------------------------------------------------------------------------------


def test_a_run_is_named_by_its_spec_and_points_that_are_one_run_are_folded():
    plan = sweeps.plan_sweep(BASE, points=[{"topology.n": 8}, {"topology.n": 4}, {"problem.d": 3}])
    assert plan.folded == 1
    tables = BASE | {"topology": {"kind": "ring", "n": 8}}
    assert plan.asked[0] == source_hash(load_spec(tables))[:12]
    assert plan.folder == Path("runs/tiny-sweep")
    assert not plan.folder.exists()


def test_groups_are_runs_of_one_shape_whatever_is_missing(pretended):
    axes = {"topology.n": [4, 8], RATE: [0.1, 0.2], "topology.kind": ["ring", "star"]}
    first = sweeps.plan_sweep(BASE, axes)
    together: dict[int, set] = {}
    for key, group in first.groups.items():
        spec = first.specs[key]
        together.setdefault(group, set()).add((spec.topology.n, spec.problem))
    assert sorted(map(len, together.values())) == [1, 1]
    assert len(first.asked) == 8
    sweeps.run_plan(first)
    for key in first.asked[::2]:
        shutil.rmtree(first.folder / "runs" / key)
    again = sweeps.plan_sweep(BASE, axes)
    assert again.groups == first.groups
    pretended.clear()
    sweeps.run_plan(again)
    assert sorted(pretended) == sorted(first.asked[::2])
    alone = sweeps.plan_sweep(BASE, axes, merge=False, out="elsewhere")
    assert sorted(alone.groups.values()) == list(range(8))


@pytest.mark.parametrize(
    "changes",
    [
        {"stop.time_s": [16.0, 32.0]}, {"record.count": [4, 5]}, {"problem.d": [3, 4]},
        {"algorithm.optimizer.kind": ["sgd", "adam"]}, {"protocol.kind": ["poisson", "rendezvous"]},
        {"record.events": [[1], [2]]},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_runs_of_different_shapes_are_not_merged(changes):
    assert sorted(sweeps.plan_sweep(BASE, changes).groups.values()) == [0, 1]


def test_a_group_is_not_larger_than_it_may_be(monkeypatch):
    monkeypatch.setattr(sweeps, "TOGETHER", 3)
    axes = {RATE: [0.1, 0.2, 0.3, 0.4]}
    assert list(sweeps.plan_sweep(BASE, axes).groups.values()) == [0, 0, 0, 1]
    monkeypatch.setattr(
        sweeps, "GROUP_EVENTS", 2.5 * 2 * 4 * 16 * 1.5
    )  # seeds, workers, seconds, events per gradient
    assert list(sweeps.plan_sweep(BASE, axes).groups.values()) == [0, 0, 1, 1]
    monkeypatch.setattr(sweeps, "GROUP_BYTES", 1)
    assert list(sweeps.plan_sweep(BASE, axes).groups.values()) == [0, 1, 2, 3]


def test_asked_again_it_runs_what_is_missing_and_asked_for_more_it_adds(pretended):
    found = decentral.sweep(BASE, {RATE: [0.1, 13.0]})
    assert [run.status for run in found.runs] == ["finished", "failed"]
    assert found.runs[1].failure["message"] == "unlucky"
    assert set(found.runs[1].failure) == {"stage", "event", "time_s", "worker", "seed", "message"}
    assert len(pretended) == 2
    decentral.sweep(BASE, {RATE: [0.1, 13.0]})
    assert len(pretended) == 2
    decentral.sweep(BASE, {RATE: [0.1, 13.0]}, retry=True)
    assert pretended[2:] == [found.runs[1].id]
    more = decentral.sweep(BASE, {RATE: [0.1, 0.2], "topology.n": [4, 8]})
    assert [run.id for run in more.runs[:2]] == [run.id for run in found.runs]
    assert [run.group for run in more.runs[:2]] == [run.group for run in found.runs]
    assert min(run.group for run in more.runs[2:]) > max(run.group for run in found.runs)
    assert len(more.runs) == 5  # topology.n = 4 with the first rate was there
    assert len(pretended) == 3 + 3
    assert more.axes == {RATE: [0.1, 13.0, 0.2], "topology.n": [8, 4]} or more.axes[RATE] == [0.1, 13.0, 0.2]
    assert more.runs[0].varied == {RATE: 0.1, "topology.n": 4}  # as the spec has it


def test_a_folder_is_of_one_spec(pretended, tmp_path):
    decentral.sweep(BASE, {RATE: [0.1, 0.2]}, out="there")
    before = (tmp_path / "there" / "sweep.json").read_bytes()
    with pytest.raises(InvalidInput, match="differs in: problem"):
        decentral.sweep(BASE | {"problem": {"kind": "quadratic", "d": 4}}, {RATE: [0.1]}, out="there")
    with pytest.raises(InvalidInput, match="no-merge"):
        decentral.sweep(BASE, {RATE: [0.1]}, out="there", merge=False)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "mine").touch()
    with pytest.raises(InvalidInput, match="new or empty"):
        decentral.sweep(BASE, {RATE: [0.1]}, out="else")
    with folders.exclusive(tmp_path / "there"), pytest.raises(InvalidInput, match="no other process"):
        decentral.sweep(BASE, {RATE: [0.3]}, out="there")
    assert (tmp_path / "there" / "sweep.json").read_bytes() == before


def test_one_precision_for_all(pretended, monkeypatch):
    monkeypatch.delenv("JAX_ENABLE_X64", raising=False)
    axes = {"problem.dtype": ["float32", "float64"]}
    assert sweeps.plan_sweep(BASE, axes).record["x64"]
    assert not sweeps.plan_sweep(BASE, {RATE: [0.1, 0.2]}).record["x64"]
    decentral.sweep(BASE, {RATE: [0.1]}, out="there")
    with pytest.raises(InvalidInput, match="jax_enable_x64"):
        decentral.sweep(BASE, axes, out="there")


class Mortal(Inline):
    """Processes that die on their first tasks."""

    def __init__(self, deaths: int) -> None:
        super().__init__(x64=False)
        self.deaths = deaths

    def submit(self, function, /, *arguments) -> Future:
        if self.deaths:
            self.deaths -= 1
            future: Future = Future()
            future.set_exception(WorkerDied("The process 1 that did it was ended by SIGKILL."))
            return future
        return super().submit(function, *arguments)


@pytest.mark.parametrize(("deaths", "finished"), [(2, 2), (3, 1)])
def test_a_process_that_dies_costs_nothing_at_first_and_in_the_end_its_runs(
    deaths, finished, pretended, monkeypatch
):
    monkeypatch.setattr(sweeps, "executor_from", lambda *_, **__: Mortal(deaths))
    found = decentral.sweep(BASE, {"topology.n": [4, 8]})
    assert len(found.having("finished")) == 2 if deaths == 2 else finished <= len(found.having("finished"))
    assert len(found.having("missing")) == 0
    for run in found.having("failed"):
        assert "the process died 3 times" in run.failure["message"]


def test_what_no_run_is_to_blame_for_is_told_all_the_same(monkeypatch):
    def broken(*_):
        raise OSError("no space left")

    monkeypatch.setattr(sweeps, "run_alone", broken)
    found = decentral.sweep(BASE, {"topology.n": [4, 8]})
    assert [run.failure["message"] for run in found.having("failed")] == ["OSError: no space left"] * 2


def test_interrupted_it_says_how_to_go_on(pretended, monkeypatch):
    go_on, first = sweeps.run_alone, []

    def interrupted(spec, folder, command_line=None):
        if first:
            raise KeyboardInterrupt
        first.append(folder)
        go_on(spec, folder)

    monkeypatch.setattr(sweeps, "run_alone", interrupted)
    with pytest.raises(RunFailed, match=r"1 of 2 runs are done.*same command"):
        decentral.sweep(BASE, {"topology.n": [4, 8]})
    assert len(Sweep.load("runs/tiny-sweep").having("missing")) == 1


def test_a_run_that_cannot_begin_is_a_record(monkeypatch):
    monkeypatch.setattr(
        sweeps, "_checked", lambda specs, *_: ({key: {"gossip": sweeps.Size(1, 1)} for key in specs}, {})
    )
    found = decentral.sweep(BASE, {"protocol.kind": ["all_reduce"]})
    (run,) = found.runs
    assert run.status == "failed"
    assert run.failure["stage"] == "prepare"
    assert "workers meet" in run.failure["message"]


WARNS = BASE | {  # too few exchanges for DADAO
    "seeds": 1,
    "stop": {"kind": "time", "time_s": 8.0},
    "problem": BASE["problem"] | {"noise": 0.0},
    "algorithm": [{"kind": "dadao", "protocol": {"kind": "poisson", "exchanges_per_s": 0.5}}],
}


def warned_of(caught) -> list[str]:
    return [str(one.message) for one in caught if issubclass(one.category, UserWarning)]


@pytest.mark.parametrize(
    ("executor", "merge"),
    [
        ("inline", True),
        pytest.param("inline", False, marks=pytest.mark.slow),
        pytest.param("spawn:1", False, marks=pytest.mark.slow),
    ],
)
def test_what_runs_warn_of_is_told_once_with_their_names_and_kept(executor, merge):
    with pytest.warns(UserWarning, match="DADAO needs") as caught:
        found = decentral.sweep(WARNS, {"seed": [3, 4]}, executor=executor, merge=merge)
    for run in found.runs:
        assert run.status == "finished"
        assert any("DADAO needs" in words for words in run.warnings)
    told = warned_of(caught)
    assert len([words for words in told if "DADAO needs" in words]) == 1
    assert told[0].startswith(f"run {found.runs[0].id} (seed = 3) and 1 more: DADAO needs")
    assert len(told) == len({words for run in found.runs for words in run.warnings})


def test_what_only_the_task_warns_of_is_told_when_the_sweep_ends(monkeypatch):
    def fail(*_, **__):
        warnings.warn("mind the gap", stacklevel=2)
        raise InvalidInput("platform", "9 3/4", "another one")

    monkeypatch.setattr(merging, "prepare_run", fail)
    with pytest.warns(UserWarning, match="mind the gap") as caught:
        found = decentral.sweep(BASE, {"topology.kind": ["ring", "complete", "star"]})
    assert [run.warnings for run in found.having("failed")] == [["mind the gap"]] * 3
    assert warned_of(caught) == [f"run {found.runs[0].id} (topology.kind = ring) and 2 more: mind the gap"]


@pytest.mark.filterwarnings("always")
def test_a_forecast_says_what_is_known_and_nothing_of_its_sample(tmp_path, capfd):
    """A short run is made to see how fast it is; that it warns too is of no interest."""
    path = tmp_path / "warns.toml"
    path.write_text(tomli_w.dumps(WARNS))
    assert cli.main(["sweep", str(path), "--set", "seed=3,4", "--dry-run"]) == 0
    said = capfd.readouterr()
    assert said.err.count("DADAO needs") == 1
    assert " and 1 more: DADAO needs" in said.err
    assert "from a short run" in said.out


def test_a_run_that_cannot_begin_spares_its_group():
    """Of a group's two pairings one waits in circles when a worker is gone; both would be replicas of one trace."""
    tables = BASE | {
        "topology": {"kind": "complete", "n": 4},
        "protocol": {"kind": "rendezvous", "count": "fixed", "wait": True},
        "cluster": {"links": {"latency_s": 0.25}, "faults": {"down": [[1, 2.0, 5.0]]}},
        "stop": {"kind": "time", "time_s": 50.0},
    }
    found = decentral.sweep(tables, {"protocol.pairing": ["first_come", "round_robin"]})
    assert [(run.group, run.status) for run in found.runs] == [(0, "finished"), (0, "failed")]
    assert found.runs[1].failure["message"].startswith("rendezvous: circular waiting")


def test_many_warnings_are_not_all_told():
    with pytest.warns(UserWarning, match="5 more warnings|run abc") as caught:
        sweeps._warn({f"{number}": {"abc": {}} for number in range(sweeps.SHOWN + 5)})
    assert len(caught) == sweeps.SHOWN + 1


# -- what is found again -----------------------------------------------------------------------------------------------


def test_an_index_opens_no_arrays(pretended, monkeypatch):
    """How they stand is read from their manifests, and their metrics only when they are asked for."""
    rates = [round(0.001 * k, 3) for k in range(1, 81)]
    monkeypatch.setattr(
        sweeps, "_checked", lambda specs, *_: ({key: {"gossip": sweeps.Size(1, 1)} for key in specs}, {})
    )
    decentral.sweep(BASE, {RATE: rates})
    monkeypatch.setattr(np, "load", None)
    monkeypatch.setattr(Path, "read_text", None)
    found = Sweep.load("runs/tiny-sweep")
    assert len(found.having("finished")) == 80
    assert [run.varied_of("gossip")["optimizer.learning_rate"] for run in found.runs] == rates


def test_not_a_sweep(tmp_path):
    with pytest.raises(InvalidInput, match="a sweep folder"):
        Sweep.load(tmp_path)
    (tmp_path / "sweep.json").write_text('{"runs": [{}]}')
    with pytest.raises(InvalidInput, match="damaged"):
        Sweep.load(tmp_path)


def metrics_of(run) -> dict[str, np.ndarray]:
    with np.load(run.folder / "metrics.npz") as file:
        return dict(file)


@pytest.mark.slow
def test_one_of_a_group_that_diverges_harms_nobody():
    """Three rates in one trace, one without bounds. Bits of the others do not depend on that; it says what it would alone."""
    wild = decentral.sweep(BASE, {RATE: [0.1, 0.2, 1e30]}, out="wild")
    assert [run.status for run in wild.runs] == ["finished", "finished", "failed"]
    failure = wild.runs[2].failure
    assert failure["stage"] == "run"
    assert failure["event"] >= 0
    assert "became NaN or infinite at event" in failure["message"]
    manifest = json.loads((wild.runs[0].folder / "manifest.json").read_text())
    assert manifest["merged_with"] == [wild.runs[1].id, wild.runs[2].id]
    tame = decentral.sweep(BASE, {RATE: [0.1, 0.2, 0.3]}, out="tame")
    for one, other in zip(wild.runs[:2], tame.runs[:2], strict=True):
        assert one.id == other.id
        assert (one.folder / "metrics.npz").read_bytes() == (other.folder / "metrics.npz").read_bytes()
        assert (one.folder / "summary.json").read_bytes() == (other.folder / "summary.json").read_bytes()
    table = list(csv.DictReader(io.StringIO(compare(["wild"], "csv"))))
    assert [(row["run"], float(row["optimizer.learning_rate"])) for row in table] == [
        (run.id, rate) for run, rate in zip(wild.runs, (0.1, 0.2), strict=False)
    ]
    frame = wild.to_dataframe()
    assert frame["optimizer.learning_rate"].tolist() == [0.1, 0.2, 1e30]
    assert frame["loss"].isna().tolist() == [False, False, True]
    assert frame["loss"][0] == pytest.approx(metrics_of(wild.runs[0])["gossip/loss"][:, -1].mean())


@pytest.mark.slow
def test_a_sweep_cut_off_anywhere_ends_as_one_that_was_not():
    """Two algorithms on one trace, merged in groups of four; some runs of a group and a whole group are lost."""
    tables = BASE | {"algorithm": [*BASE["algorithm"], {"kind": "a2cid2"}]}
    axes = {
        "topology.n": [4, 6],
        "topology.kind": ["ring", "star"],
        "algorithm.gossip.optimizer.learning_rate": [0.1, 0.2],
    }
    whole = decentral.sweep(tables, axes, out="whole")
    assert len(whole.having("finished")) == 8
    assert len({run.group for run in whole.runs}) == 2
    shutil.copytree("whole", "cut")
    for run in Sweep.load("cut").runs:
        if run.group == 1 or run.id in (whole.runs[0].id, whole.runs[3].id):
            shutil.rmtree(run.folder)
    again = decentral.sweep(tables, axes, out="cut", executor="spawn:1")
    for one, other in zip(whole.runs, again.runs, strict=True):
        for name in ("metrics.npz", "summary.json", "spec.toml", "trace_gossip.npz"):
            assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes(), name
    text = compare(["cut"])
    assert text.count("\n") == 2 + 16
    assert "topology.kind" in text.splitlines()[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"protocol.kind": "rendezvous", "cluster.latency_s": [0.01, 0.05]},
        {"algorithm.kind": "adpsgd", "protocol.kind": "mailbox", RATE: [0.05, 0.1]},
        {"algorithm.kind": "dpsgd", "protocol.kind": "rounds", "topology.kind": ["ring", "star"]},
        {"algorithm.kind": "sgd", "protocol.kind": "server", RATE: [0.01, 0.02]},
    ],
    ids=["slots", "messages", "matrices", "server"],
)
def test_merging_holds_for_every_kind_of_operand(changes):
    tables = {key: value for key, value in BASE.items() if key != "algorithm"} | {
        "algorithm": [{"kind": "gossip", "optimizer": {"kind": "sgd", "learning_rate": 0.05}}],
        "cluster": {"kind": "uniform", "slow_workers": 1, "slow_factor": 3.0},
    }
    if "cluster.latency_s" in changes:
        changes = {key: value for key, value in changes.items() if key != "cluster.latency_s"}
        changes["cluster.links"] = [{"latency_s": 0.01}, {"latency_s": 0.05}]
    merged = decentral.sweep(tables, changes, out="merged")
    single = decentral.sweep(tables, changes, out="single", merge=False)
    assert len(merged.having("finished")) == 2, [run.failure for run in merged.runs]
    assert json.loads((merged.runs[0].folder / "manifest.json").read_text())["merged_with"] == [
        merged.runs[1].id
    ]
    for one, other in zip(merged.runs, single.runs, strict=True):
        ours, theirs = metrics_of(one), metrics_of(other)
        assert ours.keys() == theirs.keys()
        for key, values in theirs.items():
            np.testing.assert_allclose(ours[key], values, rtol=1e-4, atol=1e-5, err_msg=key)
        name = next(iter(one.summary["algorithms"]))
        a, b = (run.summary["algorithms"][name] for run in (one, other))
        assert {key for key in b if a.get(key) != b[key]} <= {
            "final", "rows", "gradients_at_start", "gradients_at_end", "to_target",
        }  # fmt: skip


@pytest.mark.slow
def test_the_command_line_tells_what_it_would_do_does_it_and_finds_it_again(capsys):
    words = ["sweep", "quickstart", "--smoke", "--set", "topology.n=4,6", "--seeds", "1", "--out", "there"]
    assert cli.main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "2 runs: 0 finished, 0 failed, 2 to do, in 2 groups" in said
    assert "MiB" in said
    assert "from a short run" in said
    assert not Path("there").exists()
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "2 of 2 runs finished, 0 failed" in said
    assert said.count("a2cid2") == 2
    assert cli.main([*words, "--dry-run"]) == 0
    assert "2 finished, 0 failed, 0 to do" in capsys.readouterr().out
    assert cli.main(["compare", "there", "--format", "json"]) == 0
    assert [row["topology.n"] for row in json.loads(capsys.readouterr().out)] == [4, 4, 6, 6]
    assert cli.main(["resume", "there"]) == 2
    assert "asked for again" in capsys.readouterr().err
    plan = sweeps.plan_sweep(
        "quickstart", {"topology.n": [4, 6], RATE: [0.1, 0.01]}, smoke=True, seeds=1, out="there"
    )
    foreseen = forecast(plan)
    assert set(foreseen.sources.values()) == {"finished runs"}
    assert set(foreseen.seconds) == {key for key in plan.asked if plan.status[key] == "missing"}
    assert read(Path("there"))["search"] == "grid"
