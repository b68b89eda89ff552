"""Tuning: what a grid is, that its points see the same events and draws, what is chosen, and that nothing is tuned twice."""

from __future__ import annotations

import itertools
import json
import shutil
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest

from decentral import simulate
from decentral.errors import InvalidInput, InvalidInputs, RunFailed
from decentral.experiment import run as running
from decentral.experiment.prepared import prepare_run
from decentral.experiment.run import resume, run
from decentral.experiment.spec import load_spec
from decentral.experiment.tune import Tune, plot_tuning, points, trial_runs, trials_of, tune_algorithm
from tests.test_run import stop_at

pytestmark = pytest.mark.usefixtures("compiled_once")

RATE = "optimizer.learning_rate"


def tables(grid, **changes) -> dict:
    """Gossip and A2CiD2; ``grid`` is the table tune.algorithm, ``changes`` replace whole tables."""
    base = {
        "name": "tiny",
        "seed": 3,
        "seeds": 2,
        "topology": {"kind": "ring", "n": 4},
        "problem": {"kind": "quadratic", "d": 3, "noise": 0.1},
        "stop": {"kind": "time", "time_s": 16.0},
        "record": {"count": 4},
        "algorithm": [{"kind": "gossip"}, {"kind": "a2cid2"}],
        "tune": {"algorithm": grid, "seeds": 2},
    }
    return base | changes


def rates(*values: float) -> dict:
    return {"optimizer": {"learning_rate": list(values)}}


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch):
    """A figure takes as long as a small run."""
    for name in ("plot_overview", "plot_tuning"):
        monkeypatch.setattr(running, name, lambda _, path, **words: path.write_bytes(b"a plot"))


def tuning_of(folder: Path) -> dict:
    return json.loads((folder / "tuning.json").read_text())


def tuned(source, *, edge: bool = False) -> dict[str, dict]:
    """What tuning alone says of each algorithm; with the warning about the edge of a grid, or none."""
    spec = load_spec(source)
    runs = trial_runs(spec, prepare_run(trials_of(spec)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        entries = {
            name: tune_algorithm(spec, own)
            for name, own in itertools.groupby(runs, key=lambda run: run.algorithm)
        }
    assert any("of those tried" in str(warning.message) for warning in caught) == edge
    return entries


BOWL = {"kind": "quadratic", "d": 3, "condition_number": 1.0, "heterogeneity": 0.0}
"""Workers that all have the same round bowl: a step of 1 leads to its bottom, from everywhere."""


# -- grids -------------------------------------------------------------------------------------------------------------


def test_a_grid_is_all_combinations():
    grids = Tune(
        {"alpha": [1, 2], "a2cid2": {"eta": [0.1, 0.2, 0.3]}, "gossip": {"alpha": [4, 5, 6, 7, 8, 9]}}
    ).grids(["gossip", "a2cid2"])
    assert grids == {
        "gossip": {"alpha": [4, 5, 6, 7, 8, 9]},
        "a2cid2": {"alpha": [1, 2], "eta": [0.1, 0.2, 0.3]},
    }
    assert points(grids["a2cid2"])[:4] == [
        {"alpha": 1, "eta": 0.1}, {"alpha": 1, "eta": 0.2}, {"alpha": 1, "eta": 0.3}, {"alpha": 2, "eta": 0.1},
    ]  # fmt: skip
    assert len(points(grids["a2cid2"])) == len(points(grids["gossip"])) == 6


def test_an_algorithm_without_a_list_is_not_tuned():
    assert set(Tune({"a2cid2": rates(0.1, 0.2)}).grids(["gossip", "a2cid2"])) == {"a2cid2"}


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"gossip": rates(0.1, 0.2), "a2cid2": rates(0.1, 0.2, 0.3)}, "trials: 2 for gossip, 3 for a2cid2"),
        (rates(), "tune.algorithm.optimizer.learning_rate: got []; allowed: a list of values to try"),
        ({"optimizer": {"learning_rate": 0.1}}, "got 0.1; allowed: a list of values to try"),
        (rates(0.1, 0.1), "allowed: each value once"),
        ({"gosip": rates(0.1)}, "Did you mean 'gossip'"),
        (rates(0.1, -1.0), "learning_rate: got -1.0; allowed: a finite number >= 0"),
        ({"ete": [0.1, 0.2]}, "algorithm.gossip.ete: unknown key"),
        ({}, "e.g. [tune] and below it algorithm.optimizer.learning_rate = [0.05, 0.1, 0.2]"),
    ],
)
def test_what_is_refused(grid, words):
    with pytest.raises(InvalidInputs) as caught:
        load_spec(tables(grid))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("tune", "words"),
    [
        ({"seeds": 0}, "tune.seeds: got 0; allowed: an integer >= 1"),
        ({"seed": 1}, "tune.seed: unknown key"),
        ({"metric": 3}, "tune.metric: got 3; allowed: a string"),
        ({"seeds": 2**31 - 4}, "seeds up to 2**31 - 1"),
    ],
)
def test_a_table_that_is_wrong(tune, words):
    with pytest.raises(InvalidInputs) as caught:
        load_spec(tables(rates(0.1, 0.2), tune={"algorithm": rates(0.1, 0.2)} | tune))
    assert words in str(caught.value)


def test_a_metric_that_is_not_recorded_leaves_nothing_behind(tmp_path):
    source = tables(None, tune={"algorithm": rates(0.1, 0.2), "metric": "test_accuracy"})
    with pytest.raises(InvalidInput, match=r"tune\.metric: got 'test_accuracy'; allowed: a recorded metric"):
        run(source, out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_set_and_smoke_reach_the_grid():
    source = tables(rates(0.1, 0.2)) | {"smoke": {"tune": {"seeds": 1}}}
    spec = load_spec(
        source, smoke=True, overrides=["tune.algorithm.a2cid2.optimizer.learning_rate=[0.3,0.4]"]
    )
    assert spec.tune_object().seeds == 1
    assert spec.grids() == {"gossip": {RATE: [0.1, 0.2]}, "a2cid2": {RATE: [0.3, 0.4]}}


# -- trials ------------------------------------------------------------------------------------------------------------


def test_a_trial_is_the_run_of_that_seed_with_those_values():
    """Every point on every tuning seed, with graph and data drawn anew for each seed, is the run one gets alone."""
    source = tables(
        {"gossip": {"alpha": [0.3, 0.5], **rates(0.1, 0.4)}, "a2cid2": rates(0.02, 0.1, 0.2, 0.4)},
        topology={"kind": "random_geometric", "n": 6},
    )
    spec = load_spec(source)
    assert trials_of(spec).seed_list == [5, 6]  # the run's own are 3 and 4
    entries = tuned(source, edge=True)
    for name, index, seeds in (("gossip", 1, (5, 6)), ("a2cid2", 2, (5,))):
        trial = entries[name]["trials"][index]
        algorithm = spec.at({name: trial["values"]}).algorithms()[name]
        for seed, final in zip(seeds, trial["final"], strict=False):
            alone = simulate(
                spec.problem_of(seed), spec.topology_of(seed), algorithm, stop=16.0, seeds=[seed],
                record=spec.record_object(),
            )  # fmt: skip
            assert final == pytest.approx(alone.metrics["suboptimality"][0, -1], rel=1e-9)
    for entry in entries.values():
        assert len(entry["trials"]) == 4
        assert entry["chosen"] == min(entry["trials"], key=lambda trial: np.mean(trial["final"]))["values"]


def test_the_best_is_run_on_the_seeds_of_the_run(tmp_path):
    done = run(tables({"gossip": rates(0.5, 1.0, 1.5)}, problem=BOWL), out=tmp_path / "run")
    record = tuning_of(done.folder)
    assert record["seeds"] == [5, 6]
    assert set(record["algorithms"]) == {"gossip"}
    assert record["algorithms"]["gossip"]["chosen"] == {RATE: 1.0}
    assert record["algorithms"]["gossip"]["edge"] is False
    spec = tomllib.loads((done.folder / "spec.toml").read_text())
    assert spec["algorithm"][0]["optimizer"]["learning_rate"] == 1.0
    assert spec["tune"]["algorithm"]["gossip"]["optimizer"]["learning_rate"] == [0.5, 1.0, 1.5]
    plain = {key: value for key, value in tables(None, problem=BOWL).items() if key != "tune"}
    plain["algorithm"] = [{"kind": "gossip", "optimizer": {"learning_rate": 1.0}}, {"kind": "a2cid2"}]
    again = run(plain, out=tmp_path / "again")
    assert (again.folder / "metrics.npz").read_bytes() == (done.folder / "metrics.npz").read_bytes()
    assert (again.folder / "summary.json").read_bytes() == (done.folder / "summary.json").read_bytes()
    steps = [json.loads((one.folder / "manifest.json").read_text())["steps"] for one in (done, again)]
    assert steps == [{"gossip": "tuned", "a2cid2": "theory"}, {"gossip": "given", "a2cid2": "theory"}]


@pytest.mark.parametrize(
    ("kind", "protocol"),
    [
        ("gossip", "poisson"),
        ("dpsgd", "rounds"),
        pytest.param("sgd", "all_reduce", marks=pytest.mark.slow),
        pytest.param("sgd", "server", marks=pytest.mark.slow),
        pytest.param("adpsgd", "mailbox", marks=pytest.mark.slow),
    ],
)
def test_a_point_that_diverges_is_the_worst_and_spares_the_others(kind, protocol):
    """Whatever makes workers meet: pairs, matrices, all-reduce, a server, messages."""
    few = {"algorithm": [{"kind": kind, "protocol": {"kind": protocol}}], "record": {"count": 2}}
    entry = tuned(tables(rates(1e-4, 1e-3, 1e200), **few))[kind]
    small, larger, bad = entry["trials"]
    assert bad["final"] == [None, None]
    assert bad["score"] is None
    assert larger["score"] < small["score"]
    assert entry["chosen"] == larger["values"]
    other = tuned(tables(rates(1e-4, 1e-3), **few), edge=True)[kind]
    for ours, theirs in zip((small, larger), other["trials"], strict=True):
        np.testing.assert_allclose(ours["final"], theirs["final"], rtol=1e-9)


def test_every_point_diverges(tmp_path):
    source = tables(rates(1e200, 1e201), stop={"kind": "time", "time_s": 8.0})
    with pytest.raises(
        RunFailed, match=r"gossip: all 2 points of its grid diverged\. Try smaller step sizes"
    ):
        run(source, out=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "failed"


@pytest.mark.slow
def test_values_that_are_no_numbers_run_one_after_another():
    """Local steps are part of the program, and move the rounds: other events."""
    local = {"kind": "local_sgd", "optimizer": {"learning_rate": 0.1}, "protocol": {"kind": "rounds"}}
    grid = {"local_steps": [1, 4], "optimizer": {"learning_rate": [1e-4, 2e-4]}}
    source = tables(grid, algorithm=[local], record={"count": 2})
    spec = load_spec(source)
    runs = trial_runs(spec, prepare_run(trials_of(spec)))
    assert [run.members for run in runs] == [[0, 1], [2, 3]]
    entry = tuned(source, edge=True)["local_sgd"]
    assert [tuple(trial["values"].values()) for trial in entry["trials"]] == [
        (1, 1e-4), (1, 2e-4), (4, 1e-4), (4, 2e-4),
    ]  # fmt: skip
    assert len({tuple(trial["final"]) for trial in entry["trials"]}) == 4
    assert entry["chosen"][RATE] == 2e-4  # so small a step is better the larger it is


def test_an_optimum_on_the_edge_is_said_and_written_down():
    source = tables({"gossip": rates(1.0, 3.0, 4.0)}, problem=BOWL)
    entry = tuned(source, edge=True)["gossip"]
    assert entry["edge"] is True
    assert entry["edges"] == [RATE]
    assert entry["chosen"] == {RATE: 1.0}
    words = r"gossip: the best optimizer.learning_rate, 1, is the smallest of those tried.*decides no claim"
    spec = load_spec(source)
    with pytest.warns(UserWarning, match=words):
        tune_algorithm(spec, trial_runs(spec, prepare_run(trials_of(spec))))


def test_time_to_a_target_decides():
    """Steps of 0.01 never get there, those of 0.5 later than those of 1, and those of 5 climb."""
    tune = {"algorithm": {"gossip": rates(0.01, 0.5, 1.0, 5.0)}, "seeds": 2, "target": 1e-4}
    entry = tuned(tables(None, problem=BOWL, tune=tune))["gossip"]
    slow, medium, best, _ = entry["trials"]
    assert slow["time_to_target_s"] == [None, None]
    assert slow["score"] is None
    assert medium["score"] > best["score"] == pytest.approx(np.mean(best["time_to_target_s"]))
    assert entry["chosen"] == best["values"]


def test_a_target_nobody_reaches_leaves_it_to_the_end():
    """Of two steps far too short the longer gets further, and one of 5 climbs."""
    tune = {"algorithm": {"gossip": rates(0.01, 0.02, 5.0)}, "seeds": 1, "target": 1e-30}
    spec = load_spec(tables(None, problem=BOWL, tune=tune))
    runs = trial_runs(spec, prepare_run(trials_of(spec)))
    with pytest.warns(UserWarning, match="every point of its grid did not reach suboptimality 1e-30"):
        assert tune_algorithm(spec, runs)["chosen"] == {RATE: 0.02}


@pytest.mark.slow
def test_more_is_better_where_it_is_accuracy():
    source = tables(
        None, problem={"kind": "breast_cancer", "seed": 0}, algorithm=[{"kind": "gossip"}],
        tune={"algorithm": rates(0.0, 0.05), "seeds": 1, "metric": "test_accuracy"},
    )  # fmt: skip
    entry = tuned(source, edge=True)["gossip"]
    assert entry["chosen"] == {RATE: 0.05}
    assert entry["trials"][1]["score"] > 0.85 > entry["trials"][0]["score"]


# -- files -------------------------------------------------------------------------------------------------------------


def test_the_curves_are_drawn(tmp_path):
    """What is drawn is every trial's value, where it has one."""
    trial = lambda rate, *final: {  # noqa: E731
        "values": {RATE: rate, "order": "sde"}, "final": list(final),
        "score": None if None in final else float(np.mean(final)),
    }  # fmt: skip
    entry = {
        "metric": "loss", "trials": [trial(0.1, 3.0, 5.0), trial(0.2, 0.1, 0.3), trial(0.4, None, 2.0)],
        "chosen": {RATE: 0.2, "order": "sde"},
    }  # fmt: skip
    figures = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "decentral.experiment.tune.save_figure", lambda figure, path: figures.append(figure) or path
        )
        plot_tuning({"algorithms": {"a2cid2": entry}, "target": None}, tmp_path / "a.png")
    panel, words = figures[0].axes
    assert panel.get_xlabel() == RATE
    assert words.get_xlabel() == "order"
    assert panel.get_ylabel() == "final loss"
    (line,) = (line for line in panel.get_lines() if line.get_label() == "a2cid2")
    np.testing.assert_allclose(line.get_xydata(), [[0.1, 4.0], [0.2, 0.2]])
    dots = [tuple(xy) for line in panel.get_lines() if line.get_marker() == "." for xy in line.get_xydata()]
    assert dots == [(0.1, 3.0), (0.1, 5.0), (0.2, 0.1), (0.2, 0.3), (0.4, 2.0)]
    assert sum(line.get_marker() == "x" for line in panel.get_lines()) == 1


SEVERAL = tables({"gossip": rates(0.5, 1.0, 1.5), "a2cid2": rates(0.5, 1.0, 1.5)}, problem=BOWL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compiled_once):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("plot_overview", "plot_tuning"):
            patch.setattr(running, name, lambda _, path, **words: path.write_bytes(b"a plot"))
        return run(SEVERAL, out=tmp_path_factory.mktemp("whole") / "run").folder


def test_files(whole, tmp_path):
    assert {"tuning.json", "tuning.png", "spec.toml", "metrics.npz"} <= {
        path.name for path in whole.iterdir()
    }
    assert plot_tuning(tuning_of(whole), tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    again = shutil.copytree(whole, tmp_path / "again")
    plain = {key: value for key, value in tables(None, problem=BOWL).items() if key != "tune"}
    run(plain, out=again, overwrite=True)
    assert not list(again.glob("tuning.*"))


@pytest.mark.parametrize(
    "algorithm",
    [
        pytest.param("tuning gossip", marks=pytest.mark.slow),
        "tuning a2cid2",
        "gossip",
        pytest.param("a2cid2", marks=pytest.mark.slow),
    ],
)
def test_cut_off_and_resumed(algorithm, whole, tmp_path, monkeypatch):
    """Wherever it was cut off it ends as if it had not been, and no algorithm is tuned twice."""
    stop_at(monkeypatch, 1, KeyboardInterrupt(), algorithm)
    with pytest.raises(RunFailed, match="decentral resume"):
        run(SEVERAL, out=tmp_path / "run", checkpoint_every_s=0)
    done = (
        []
        if algorithm == "tuning gossip"
        else ["gossip"]
        if algorithm == "tuning a2cid2"
        else ["gossip", "a2cid2"]
    )
    assert list(tuning_of(tmp_path / "run")["algorithms"]) == done
    asked = []
    original = running.tune_algorithm

    def counted(spec, runs, **options):
        entry = original(spec, runs, **options)
        asked.append(len(asked))
        return entry

    monkeypatch.setattr(running, "tune_algorithm", counted)
    resume(tmp_path / "run")
    assert len(asked) == 2 - len(done)
    for name in ("metrics.npz", "summary.json", "spec.toml"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes(), name
    now, then = (json.loads((folder / "manifest.json").read_text()) for folder in (tmp_path / "run", whole))
    assert now["steps"] == then["steps"] == {"gossip": "tuned", "a2cid2": "tuned"}
    assert set(now["tuning_wall_s"]) == {"gossip", "a2cid2"}
    ours, theirs = tuning_of(tmp_path / "run"), tuning_of(whole)
    for record in (ours, theirs):
        for entry in record["algorithms"].values():
            assert entry.pop("wall_s") > 0
    assert ours == theirs


def test_a_damaged_record_of_tuning(whole, tmp_path):
    (tmp_path / "manifest.json").write_text('{"status": "interrupted", "flags": {"x64": true}}')
    (tmp_path / "tuning.json").write_text("{}")
    with pytest.raises(InvalidInputs, match="name: missing"):
        resume(tmp_path)


@pytest.mark.filterwarnings("ignore:.*of those tried")
@pytest.mark.slow
def test_tuning_on_held_out_samples_is_warned_of(tmp_path):
    """Those that decide would be those reported."""
    source = tables(None, tune={"algorithm": rates(0.1, 0.2), "metric": "test_accuracy", "seeds": 1})
    source["problem"] = {"kind": "breast_cancer", "dtype": "float32"}
    with pytest.warns(UserWarning, match=r"held-out samples decide that are then reported"):
        run(source, out=tmp_path / "run")
    told = json.loads((tmp_path / "run/manifest.json").read_text())["warnings"]
    assert any("held-out samples decide that are then reported" in words for words in told)
    assert len(set(told)) == len(told)


@pytest.mark.parametrize("key", ["kind", "name"])
def test_kind_and_name_are_not_tuned(key):
    with pytest.raises(InvalidInput, match="hyper-parameters"):
        load_spec(tables({key: ["a2cid2", "gossip"]}))


def test_too_many_trials_are_refused_before_they_are_listed():
    numbers = [0.001 * k for k in range(1, 40)]
    grid = {
        "optimizer": {"learning_rate": numbers, "momentum": [v / 2 for v in numbers], "weight_decay": numbers}
    }
    with pytest.raises(InvalidInput, match=r"59,319 points"):
        load_spec(tables(grid))
