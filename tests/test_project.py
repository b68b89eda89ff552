"""`decentral project`: what is typed, what is printed, and what is said of input that cannot be."""

import json
import re

import numpy as np
import pytest

from decentral import InvalidInput
from decentral.analysis.cost_plots import COLOURS, pareto_figure
from decentral.cli import main
from decentral.errors import InvalidInputs
from decentral.experiment import folder as folders
from decentral.experiment.overrides import packaged
from decentral.experiment.projection_report import WORDS, carry_out, data, text
from decentral.experiment.projections import CLUSTERS, load_plan
from decentral.hardware import device

SMALL = {
    "model": {"layers": 8, "hidden": 512, "heads": 8, "ffn": 2048, "vocab": 32000, "sequence": 1024},
    "cluster": {"device": "A100-SXM4-80GB", "devices": 16, "node_size": 8, "node_bytes_per_s": 200e9},
    "parallelism": {"dp": 16, "global_batch": 64, "micro_batch": 2},
}


def with_(**tables):
    return {**SMALL, **tables}


def wrong(tables):
    with pytest.raises(InvalidInput) as caught:
        load_plan(tables)
    return str(caught.value)


@pytest.mark.parametrize("name", packaged("projections"))
def test_packaged_projections_are_legal_and_say_where_the_time_goes(name):
    plan = load_plan(name)
    done = carry_out(plan)
    said, numbers = text(done), data(done)
    json.dumps(numbers, allow_nan=False)
    for one in done.projections:
        found = numbers["algorithms"][one.algorithm.label]
        assert sum(found["parts_s"].values()) == pytest.approx(found["step_s"])
        assert 0 < found["mfu"] < 0.8
        assert found["trust"]
        assert set(found["parts_s"]) <= set(WORDS) == set(COLOURS)
    assert plan.name in said
    assert "How sure:" in said
    assert "Best attainable MFU" in said


def test_packaged_projections_are_no_experiments(capsys):
    assert not any("projections" in name for name in packaged("experiments"))
    assert main(["list", "projections"]) == 0
    assert "llama3_70b" in capsys.readouterr().out


def test_the_report_names_conventions_intervals_and_what_is_not_known(capsys):
    assert main(["project", "llama3_70b"]) == 0
    said = capsys.readouterr().out
    for words in (
        "MFU (6N+causal)", "HFU", "80 % of measurements", "memory of a device", "sent by a device per step", "energy of the run",
        "acco as a method: not validated against any measurement", "low communication: 28 rows from one source",
        "useful MFU", "6N+full", "NICs of a node", "at peak", "stragglers", "failures",
    ):  # fmt: skip
        assert words in said, words


def test_the_waterfall_ends_at_the_mfu():
    done = carry_out(load_plan(with_(stragglers={"kind": "lognormal", "cv": 0.1})))
    one = done.projections[0]
    last = next(line for line in text(done).splitlines() if line.startswith("stragglers"))
    assert last.endswith(f"{100 * float(one.mfu):.1f} %")


def test_json_search_and_pictures(tmp_path, capsys):
    plot, front = tmp_path / "bars.png", tmp_path / "front.png"
    command = [
        "project",
        "slow_network",
        "--json",
        "--search",
        "--sensitivity",
        "--plot",
        str(plot),
        "--pareto",
        str(front),
    ]
    assert main(command) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["search"]["legal"] > len(numbers["search"]["pareto"]) > 0
    assert numbers["sensitivity"]["ddp"]["node_bytes_per_s"] < -0.5
    assert plot.stat().st_size > 10_000
    assert front.stat().st_size > 10_000


def test_several_numbers_of_devices_are_searched(capsys):
    assert main(["project", "slow_network", "--search", "--set", "search.devices=[32,64]"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^32 ", said, re.MULTILINE)
    assert re.search(r"^64 ", said, re.MULTILINE)


def test_a_search_that_finds_nothing_draws_that():
    assert pareto_figure("nothing", []).axes


# -- devices and models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, entry in CLUSTERS.items() if entry["device"] != "any"])
def test_every_named_cluster_can_be_used_or_says_what_it_lacks(name):
    tables = with_(cluster={"name": name, "devices": CLUSTERS[name]["gpus_per_node"] * 4})
    tables["parallelism"] = {"dp": tables["cluster"]["devices"], "global_batch": 64, "precision": "fp16"}
    if "fp16" not in device(CLUSTERS[name]["device"]).peaks:
        tables["parallelism"]["precision"] = "bf16"
    if isinstance(CLUSTERS[name].get("inter_node_Gbps_per_node"), int | float):
        assert load_plan(tables).cluster.name == name
    else:
        assert "cluster.node_bytes_per_s: missing" in wrong(tables)


def test_a_device_that_does_not_exist_yet():
    twice = {"name": "A200", "base": "A100-SXM4-80GB", "peaks": {"bf16": 624e12}}
    plain, double = (
        carry_out(load_plan(with_(cluster=SMALL["cluster"] | {"device": device}))).projections[0]
        for device in ("A100-SXM4-80GB", twice)
    )
    assert float(double.cluster.ceiling_flops) == pytest.approx(2 * float(plain.cluster.ceiling_flops))
    assert 0.5 < float(double.step_s / plain.step_s) < 1
    assert "cluster.device.speed: unknown key" in wrong(
        with_(cluster=SMALL["cluster"] | {"device": twice | {"speed": 1}})
    )
    lacking = wrong(with_(cluster=SMALL["cluster"] | {"device": {"name": "new"}}))
    assert "memory_bytes" in lacking
    assert "peaks" in lacking


@pytest.mark.parametrize("kind", ["logistic", "reversible_mlp"])
def test_problems_in_float64_are_measured_and_pipelines_refused(kind):
    tables = {"problem": {"kind": kind}, "cluster": SMALL["cluster"], "parallelism": SMALL["parallelism"]}
    if kind == "logistic":
        assert float(load_plan(tables).model.forward_flops) > 0
    else:
        assert "have the whole model" in wrong(tables)


def test_a_problem_of_the_simulator_is_priced():
    done = carry_out(
        load_plan(
            {"problem": {"kind": "mlp"}, "cluster": SMALL["cluster"], "parallelism": SMALL["parallelism"]}
        )
    )
    one = done.projections[0]
    assert float(one.model.parameters) == 64 * 32 + 32 + 32 * 10 + 10
    assert float(one.step_s) > 0
    assert "not validated" in text(done)


def test_a_residual_network_and_a_measured_workload_are_priced():
    for model in (
        {"kind": "resnet", "depth": 50},
        {"kind": "measured", "parameters": 1e8, "forward_flops": 2e9},
    ):
        done = carry_out(load_plan(with_(model=model)))
        assert "samples/s" in text(done)


# -- evidence ----------------------------------------------------------------------------------------------------------


def run_folder(path, *, message_age_s, staleness):
    """A finished run of 3 seeds: the reference needs 100, 110, 120 samples, gossip 200, 220, 240."""
    path.mkdir()
    samples = np.tile(np.arange(0, 1000, 10.0), (3, 1))
    arrays = {}
    for name, factor in (("all-reduce", 1.0), ("a2cid2", 2.0)):
        reached = factor * np.array([[100.0], [110.0], [120.0]])
        arrays |= {
            f"{name}/samples": samples,
            f"{name}/gradients": samples,
            f"{name}/loss": 1 - samples / (2 * reached),
        }
    folders.write_arrays(path / "metrics.npz", arrays)
    entry = {
        "timeline": {"message_age_s_mean": message_age_s, "staleness_mean": staleness},
        "realised_per_worker_and_s": {"gradient": 1.0},
        "rate_spread": 0.0,
    }
    folders.write_json(path / "summary.json", {"algorithms": {"all-reduce": entry, "a2cid2": entry}})
    folders.write_json(path / "manifest.json", {})
    (path / "spec.toml").write_text("[topology]\nn = 16\n")
    return path


@pytest.fixture
def gossip():
    return with_(
        algorithm=[{"kind": "ddp"}, {"kind": "a2cid2"}],
        evidence={"metric": "loss", "target": 0.5, "reference": "all-reduce", "names": {"ddp": "all-reduce"}},
    )


def test_useful_mfu_is_the_mfu_over_the_samples_it_takes(tmp_path, gossip):
    plan = load_plan(
        gossip
        | {
            "evidence": gossip["evidence"]
            | {"run": str(run_folder(tmp_path / "run", message_age_s=0.0, staleness=1.0))}
        }
    )
    one = plan.projections()[1]
    toy = float(one.exchange.busy_s / one.step.total_s)
    folder = run_folder(tmp_path / "matched", message_age_s=toy, staleness=1.0)
    done = carry_out(load_plan(gossip | {"evidence": gossip["evidence"] | {"run": str(folder)}}))
    useful = done.usefulness[1]
    assert useful.mean == pytest.approx(0.5)
    assert useful.unmatched == ()
    assert useful.steps == pytest.approx(220 / 16)
    assert "ratios match" in str(useful)
    shown = text(done)
    assert f"{100 * 0.5 * float(one.mfu_in('6N+causal')):.1f}" in shown
    assert "steps of a worker to the target" in shown


def test_a_toy_with_other_ratios_is_not_carried_over(tmp_path, gossip):
    folder = run_folder(tmp_path / "run", message_age_s=3.0, staleness=16.0)
    done = carry_out(load_plan(gossip | {"evidence": gossip["evidence"] | {"run": str(folder)}}))
    useful = done.usefulness[1]
    assert any("message / gradient time 3 on the toy" in one for one in useful.unmatched)
    assert any("staleness" in one for one in useful.unmatched)
    assert done.usefulness[0].unmatched == ()  # a barrier's samples do not depend on how long messages take
    assert "the same" in text(done)
    assert "not matched" in text(done)
    assert "not carried over" in text(done)


def test_evidence_that_is_not_there(tmp_path, gossip):
    folder = run_folder(tmp_path / "run", message_age_s=0.0, staleness=0.0)
    for change, words in (
        ({"run": str(tmp_path)}, "a run folder"),
        ({"run": str(folder), "reference": "ddq"}, "an algorithm of the run"),
        ({"run": str(folder), "metric": "lost"}, "Did you mean 'loss'"),
    ):
        plan = load_plan(gossip | {"evidence": {"run": str(folder)} | gossip["evidence"] | change})
        with pytest.raises(InvalidInput, match=words):
            carry_out(plan)


# -- what cannot be ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"parallelism": {"dp": 8, "global_batch": 64}}, "= 8 devices; the cluster has 16"),
        ({"parallelism": {"dp": 16, "global_batch": 0}}, "parallelism.global_batch: got 0"),
        ({"parallelism": {"dp": 16, "global_batch": 40, "micro_batch": 2}}, "must be a multiple of dp x micro_batch = 32"),
        ({"parallelism": {"dp": 4, "pp": 4, "global_batch": 64, "virtual": 3}}, "must be a multiple of pp x virtual = 12"),
        ({"parallelism": {"tp": 16, "global_batch": 64}}, "tp 16 must divide the 8 heads"),
        ({"parallelism": {"dp": 16, "ep": 4, "global_batch": 64}}, "the model has no experts to spread"),
        ({"parallelism": {"dp": 16, "global_batch": 64, "precision": "fp8"}}, "a dtype whose peak is known for A100"),
        ({"parallelism": {"dp": 16, "global_batch": 64, "precision": "int3"}}, "parallelism.precision: got 'int3'"),
        ({"parallelism": {"dp": 16.5, "global_batch": 64}}, "parallelism.dp: got 16.5"),
        ({"parallelism": {"dp": "all", "global_batch": 64}}, "parallelism.dp: got 'all'; allowed: a number"),
        ({"parallelism": {"dp": 16, "global_batch": 64, "zero": 3}}, "parallelism.zero: unknown key"),
        ({"cluster": SMALL["cluster"] | {"device": "H900"}}, "the name of a known device"),
        ({"cluster": {"device": "A100-SXM4-80GB", "devices": 16, "node_size": 8}}, "cluster.node_bytes_per_s: missing"),
        ({"cluster": SMALL["cluster"] | {"devices": 0}}, "cluster.devices: got 0"),
        ({"cluster": SMALL["cluster"] | {"node_bytes_per_s": -1}}, "cluster.node_bytes_per_s: got -1"),
        ({"cluster": {"name": "Selena", "devices": 16}}, "Did you mean 'Selene'"),
        ({"model": SMALL["model"] | {"layers": 0}}, "model.layers: got 0"),
        ({"model": {"name": "llama4"}}, "Did you mean 'llama3"),
        ({"model": SMALL["model"] | {"moe": {"experts": 6, "top_k": 2, "ffn": 64}},
          "parallelism": {"dp": 16, "ep": 4, "global_batch": 64}}, "ep 4 must divide the 6 experts"),
        ({"model": SMALL["model"] | {"moe": {"experts": 4, "top_k": 8, "ffn": 64}}}, "top_k 8 of 4 experts"),
        ({"model": SMALL["model"] | {"moe": 8}}, "allowed: a table [model.moe]"),
        ({"algorithm": {"kind": "a3cid3"}}, "Did you mean 'a2cid2'"),
        ({"algorithm": {"kind": "ddp", "local_steps": 3}}, "ddp has no such number"),
        ({"algorithm": {"kind": "diloco", "local_steps": -3}}, "got -3"),
        ({"algorithm": {"kind": "diloco", "workers": 5}}, "5 must divide dp = 16"),
        ({"algorithm": {"kind": "diloco", "workers": 1}}, "works between workers, and there is 1"),
        ({"algorithm": {"kind": "sgp", "workers": 16, "graph": "ring"}}, "sgp has no such number"),
        ({"algorithm": {"kind": "petra"}}, "at least 2 stages"),
        ({"algorithm": {"kind": "fsdp"}}, 'allowed: "zero_3"'),
        ({"algorithm": [{"kind": "ddp"}, {"kind": "ddp"}]}, "'ddp' twice"),
        ({"stragglers": {"kind": "normal", "cv": 3}}, "cv"),
        ({"prices": {"pue": "low"}}, "prices.pue: got 'low'"),
        ({"failures": {"storage": "floppy"}}, "a known storage"),
        ({"training": {"convention": "5N"}}, "training.convention: got '5N'"),
        ({"topologies": {"kind": "ring"}}, "topologies: unknown table"),
        ({"search": {"devices": 64}}, "a list of whole numbers"),
    ],
)  # fmt: skip
def test_impossible_input(change, said):
    assert said in wrong(with_(**change))


def test_everything_wrong_is_said_at_once(tmp_path, capsys):
    """Layers, experts, devices, precision, bandwidth and batch: what can be checked is, whatever else is wrong."""
    file = tmp_path / "bad.toml"
    file.write_text(
        "[model]\nlayers = 31\nhidden = 512\nheads = 8\nffn = 2048\nvocab = 32000\nsequence = 1024\n"
        "[model.moe]\nexperts = 10\ntop_k = 2\nffn = 64\n"
        '[cluster]\ndevice = "A100-SXM4-80GB"\ndevices = 64\nnode_size = 8\n'
        '[parallelism]\ndp = 7\npp = 4\ntp = 2\nep = 4\nglobal_batch = 0\nprecision = "fp8"\n'
        '[prices]\nusd = 3\n[[algorithm]]\nkind = "dilocoo"\n'
    )
    assert main(["project", str(file)]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    for words in (
        "= 56 devices; the cluster has 64", "31 layers", "must divide the 10 experts", "parallelism.precision", "fp16",
        "cluster.node_bytes_per_s: missing", "parallelism.global_batch: got 0", "prices.usd", "dilocoo",
    ):  # fmt: skip
        assert words in said, words


def test_pictures_that_cannot_be_written(tmp_path, capsys):
    for option in (["--plot", str(tmp_path / "no" / "x.png")], ["--plot", str(tmp_path / "x.xyz")]):
        assert main(["project", "slow_network", *option]) == 2
        assert "--plot" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"failures": {"device_mtbf_s": 1.0}}, "steps of finite time"),
        ({"cluster": SMALL["cluster"] | {"latency_s": float("inf")}}, "cluster.latency_s"),
        (
            {
                "cluster": SMALL["cluster"]
                | {"device": {"base": "A100-SXM4-80GB", "ceilings": {"bf16": 1e18}}}
            },
            "more than the peak",
        ),
        ({"model": {"kind": "resnet"}, "algorithm": {"kind": "dfa"}}, "for transformers only"),
        ({"model": SMALL["model"] | {"hidden": 10**400}}, "from 1 to 10^9"),
    ],
)
def test_absurd_input(change, said):
    with pytest.raises(InvalidInput, match=re.escape(said)):
        carry_out(load_plan(with_(**change)))


def test_the_best_attainable_mfu_is_no_less_than_that_of_a_synchronous_row():
    done = carry_out(load_plan("slow_network"))
    assert done.best.mfu >= float(done.projections[0].mfu) * (1 - 1e-9)


def test_one_node_without_a_network_is_json_too(capsys, tmp_path):
    file = tmp_path / "node.toml"
    file.write_text(
        "[model]\nlayers = 8\nhidden = 512\nheads = 8\nffn = 2048\nvocab = 32000\nsequence = 1024\n"
        '[cluster]\ndevice = "A100-SXM4-80GB"\ndevices = 8\nnode_size = 8\n[parallelism]\ndp = 8\nglobal_batch = 8\n'
    )
    assert main(["project", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cluster"]["node_bytes_per_s"] is None


def test_a_missing_file_and_a_spec_of_a_run(capsys):
    assert main(["project", "nothing.toml"]) == 2
    assert "one of the packaged projections" in capsys.readouterr().err
    assert main(["project", "experiments/quickstart.toml"]) == 2
    assert "decentral run takes it" in capsys.readouterr().err


def test_overrides_and_pictures_without_a_search(capsys, tmp_path):
    assert main(["project", "llama3_70b", "--set", "parallelism.pp=2", "parallelism.dp=16"]) == 0
    assert "tp 8, pp 2, cp 1, dp 16" in capsys.readouterr().out
    assert main(["project", "llama3_70b", "--pareto", str(tmp_path / "x.png")]) == 2
    assert "with --search" in capsys.readouterr().err


def test_problems_are_a_list_for_programs():
    with pytest.raises(InvalidInputs) as caught:
        load_plan(with_(parallelism={"dp": 8, "global_batch": 0}, prices={"pue": -1}))
    assert len(caught.value.problems) >= 2
