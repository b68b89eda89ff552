"""The command line: exit codes, what is printed where, and that every message says what to do."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tomli_w

from decentral.analysis.timeline import trace_table, write_perfetto
from decentral.cli import LISTED, main
from decentral.engine.trace import Op, Operand, Trace, merge
from decentral.experiment import doctor
from decentral.experiment import run as running
from decentral.topology import TOPOLOGIES, named

pytestmark = pytest.mark.usefixtures("compiled_once")

SPEC = {
    "name": "tiny",
    "seeds": 2,
    "topology": {"kind": "ring", "n": 4},
    "problem": {"kind": "quadratic", "d": 3, "dtype": "float32", "seed": 0},
    "stop": {"kind": "time", "time_s": 10.0},
    "record": {"count": 4},
    "algorithm": [{"kind": "gossip", "optimizer": {"learning_rate": 0.1}}, {"kind": "a2cid2"}],
    "smoke": {"seeds": 1, "stop": {"time_s": 2.0}},
}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(SPEC))
    monkeypatch.setattr(running, "plot_overview", lambda curves, path, title: path.write_bytes(b"a plot"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, compiled_once) -> Path:
    """A run folder made by ``decentral run``."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.toml").write_text(tomli_w.dumps(SPEC))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "plot_overview", lambda curves, path, title: path.write_bytes(b"a plot"))
        patch.chdir(folder)
        assert main(["run", "tiny.toml", "--out", "run"]) == 0
    return folder / "run"


class Said:
    """What a command returned and printed."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def decentral(capsys):
    """Call the command line; argparse leaves by SystemExit, everything else returns."""

    def call(*arguments: object) -> Said:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as leaving:
            status = leaving.code
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Said(status, said.out, said.err)

    return call


def refused(said: Said, *words: str) -> None:
    """Exit 2, one message on stderr, nothing on stdout."""
    assert said.status == 2
    assert said.out == ""
    assert said.err.startswith("decentral: ")
    for part in words:
        assert part in said.err


# -- run ---------------------------------------------------------------------------------------------------------------


def test_run_prints_a_table_and_where_everything_is(decentral):
    said = decentral("run", "tiny.toml", "--smoke")
    assert said.status == 0
    assert said.err == ""
    lines = said.out.splitlines()
    assert lines[0].split()[:3] == ["algorithm", "loss", "suboptimality"]
    assert [line.split()[0] for line in lines[2:4]] == ["gossip", "a2cid2"]
    assert [line.split()[-2:] for line in lines[2:4]] == [["trace", "given"], ["trace", "theory"]]
    assert lines[-2:] == ["run folder  runs/tiny-001", "plot        runs/tiny-001/overview.png"]
    manifest = json.loads(Path("runs/tiny-001/manifest.json").read_text())
    assert manifest["command_line"] == ["decentral", "run", "tiny.toml", "--smoke"]
    assert manifest["seeds"] == [0]


def test_run_takes_overrides_seeds_and_a_folder(decentral):
    said = decentral(
        "run", "tiny.toml", "--set", "stop.time_s=2", "record.count=2", "--set", "algorithm=[{kind='gossip'}]",
        "--seeds", 3, "--out", "here",
    )  # fmt: skip
    assert said.status == 0, said.err
    with np.load("here/metrics.npz") as metrics:
        assert metrics["gossip/loss"].shape == (3, 3)
    refused(decentral("run", "tiny.toml", "--out", "here"), "--out: got 'here'", "or add --overwrite.")
    assert decentral("run", "tiny.toml", "--out", "here", "--smoke", "--overwrite").status == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "quikstart"], "SPEC: got 'quikstart'; allowed: a TOML file, or one of the packaged experiments. Did you mean"),
        (["run", "tiny.toml", "--set", "topology.n=1"], "tiny.toml: topology.n: got 1; allowed: an integer >= 2."),
        (["run", "tiny.toml", "--set", "topolgy.n=5", "seed=-1"], "tiny.toml: 2 problems\n- topolgy: unknown key."),
        (["run", "tiny.toml", "--set", "topology.n"], "--set: got 'topology.n'; allowed: KEY=VALUE with a dotted key"),
        (["run", "tiny.toml", "--seeds", "0"], "seeds: got 0; allowed: an integer >= 1."),
        (["run", "tiny.toml", "--set", "stop.time_s=1e12"], "memory: got 'about"),
        (["run", "tiny.toml", "--set", "record.target_metric=los"], "Did you mean 'loss'?"),
        (["resume", "nowhere"], "a run folder (one with a manifest.json). decentral run SPEC makes one."),
        (["trace", "."], "DIR: got '.'; allowed: a run folder"),
        (["compare", "."], "DIR: got '.'; allowed: a run folder"),
        (["topology", "rng", "--n", "8"], "got 'rng'; allowed: a named graph or network, or a spec. Did you mean 'ring'?"),
        (["topology", "quikstart"], "Did you mean 'quickstart'?"),
        (["topology", "ring"], "topology.n: got 'nothing'; allowed: a whole number, at least 2. How many workers? --n 16"),
        (["topology", "ring", "--n", "1"], "topology.n: got 1; allowed: a whole number, at least 2."),
        (["topology", "ring", "--n", "8", "--rate", "0"], "topology.rate: got 0.0; allowed: a finite number, above 0."),
        (["topology", "ring", "--n", "8", "--rate", "nan"], "topology.rate: got nan"),
        (["topology", "ring", "--n", "8", "--set", "degree=3"], "topology.degree: got 3; allowed: an argument of ring."),
        (["topology", "ring", "--n", "8", "--set", "rate=3"], "--set rate: got 3; allowed: arguments of the graph. Use --rate."),
        (["topology", "hypercube", "--n", "12"], "a power of two for hypercube. The nearest are 8 and 16."),
        (["topology", "ring", "--n", "100000000"], "ring on 100,000,000 nodes has about 99,999,999, 20.0 GB in memory"),
        (["topology", "random_regular", "--n", "8", "--set", "degree=x"], "got 'x'; allowed: a whole number, from 1 to 7"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message_and_exit_2(arguments, words, decentral):
    refused(decentral(*arguments), words)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["walk"], "invalid choice: 'walk' (choose from"),
        (["run"], "the following arguments are required: SPEC"),
        (["run", "tiny.toml", "--seeds", "many"], "argument --seeds: invalid int value: 'many'"),
        (["compare", "--format", "html", "x"], "argument --format: invalid choice: 'html'"),
        (["compare"], "the following arguments are required: DIR"),
        (["list", "planets"], "invalid choice: 'planets'"),
        (["topology", "ring", "--n", "x"], "argument --n: invalid int value: 'x'"),
    ],
)
def test_what_argparse_refuses_is_exit_2(arguments, words, decentral):
    said = decentral(*arguments)
    assert said.status == 2
    assert words in said.err


def test_a_run_that_fails_is_exit_1(decentral):
    said = decentral(
        "run", "tiny.toml", "--out", "wild", "--set", "algorithm.gossip.optimizer.learning_rate=1e30"
    )
    assert said.status == 1
    assert said.out == ""
    first, second, third = said.err.splitlines()
    assert first == "decentral: the run failed"
    assert second.startswith("gossip: the state of worker ")
    assert "Try a smaller step size" in second
    assert third.startswith("What was recorded before is in wild/metrics.npz.")
    assert decentral("resume", "wild").err == said.err
    refused(
        decentral("compare", "wild"),
        "DIR: got 'wild (failed)'; allowed: finished runs. It failed: Diverged: gossip: the state",
    )


def test_ctrl_c_is_exit_1_and_says_how_to_go_on(decentral, monkeypatch):
    from decentral.experiment.simulation import Simulation

    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Simulation, "step", interrupted)
        said = decentral("run", "tiny.toml", "--smoke", "--out", "here")
        assert said.status == 1
        assert said.err == "decentral: the run failed\nInterrupted. To go on: decentral resume here\n"
        patch.setattr(running, "prepare_run", lambda spec, **_: interrupted(None))
        said = decentral("run", "tiny.toml", "--smoke", "--out", "there")
        assert (said.status, said.err) == (1, "decentral: interrupted\n")
        assert not Path("there").exists()
    refused(
        decentral("compare", "here"),
        "DIR: got 'here (interrupted)'; allowed: finished runs. To finish it: decentral resume here",
    )
    said = decentral("resume", "here")
    assert said.status == 0
    assert "run folder  here" in said.out
    refused(decentral("resume", "here"), "This one is; decentral compare shows it.")


def test_a_warning_is_said_once_and_plainly(decentral, monkeypatch):
    import warnings

    def examine():
        for _ in range(2):
            warnings.warn("mind the gap", stacklevel=2)
        return "report\n", True

    monkeypatch.setattr(doctor, "examine", examine)
    warnings.simplefilter("always")
    said = decentral("doctor")
    assert said.err == "decentral: warning: mind the gap\n"
    assert said.out == "report\n"


@pytest.fixture
def without_float64(monkeypatch):
    """JAX as it is where nobody has set anything."""
    monkeypatch.delenv("JAX_ENABLE_X64", raising=False)
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.mark.usefixtures("without_float64")
def test_float64_is_switched_on_for_a_spec_that_leaves_it_open(decentral, monkeypatch):
    def stop_here(spec, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "run", stop_here)
    decentral("run", "tiny.toml")  # float32
    assert not jax.config.jax_enable_x64
    decentral("run", "tiny.toml", "--set", "problem={kind='quadratic', d=3}")
    assert jax.config.jax_enable_x64


@pytest.mark.usefixtures("without_float64")
def test_float64_where_the_environment_says_no(decentral, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_X64", "0")
    said = decentral("run", "tiny.toml", "--set", "problem.dtype=float64")
    refused(
        said,
        "problem.dtype: got 'float64'; allowed: 'float32' while JAX runs with x64 off.",
        "JAX_ENABLE_X64=1",
    )
    assert not Path("runs").exists()


# -- without JAX -------------------------------------------------------------------------------------------------------


def fresh(code: str) -> subprocess.CompletedProcess:
    """Run code in an interpreter of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_help_and_topology_do_not_import_jax():
    done = fresh(
        "import sys; from decentral.cli import main\n"
        "assert main(['topology', 'ring', '--n', '8']) == 0\n"
        "assert main(['topology', 'quickstart', '--json']) == 0\n"
        "assert main(['list', 'experiments']) == 0\n"
        "try: main(['--help'])\n"
        "except SystemExit as leaving: assert leaving.code == 0\n"
        "heavy = {'jax', 'optax', 'pydantic', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert done.returncode == 0, done.stderr
    for command in ("run", "resume", "compare", "topology", "trace", "list", "doctor"):
        assert f"\n    {command}" in done.stdout


def test_help_imports_next_to_nothing():
    done = fresh(
        "import sys; from decentral.cli import parser; parser().format_help()\n"
        "assert not {'jax', 'numpy', 'networkx', 'scipy'} & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr


def test_a_reader_that_has_gone_is_no_error():
    """``decentral list | head -0``, whose output is written at the very end."""
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "decentral.cli", "topology", "ring", "--n", "8"],
            stdout=gone, stderr=subprocess.PIPE, text=True, timeout=60, env=buffered,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


# -- topology ----------------------------------------------------------------------------------------------------------


def test_topology_as_json(decentral):
    summary = json.loads(decentral("topology", "ring", "--n", 64, "--json").out)
    assert summary["n"] == summary["edges"] == 64
    assert summary["chi_1"] == pytest.approx(1 / (1 - np.cos(2 * np.pi / 64)))
    assert summary["chi_2"] == pytest.approx(63 / 64)
    assert summary["spectral_gap"] == pytest.approx((1 - np.cos(2 * np.pi / 64)) * 2 / 3)
    assert summary["chi_1_unit"] == pytest.approx(32 * summary["chi_1"])
    assert summary["dadao_rate"] == pytest.approx(np.sqrt(2 * summary["chi_1_unit"] * summary["chi_2_unit"]))
    assert {"effective_neighbours", "chi_2_exact", "rate"} <= set(summary)


def test_rate_divides_the_constants_but_not_those_of_unit_rate(decentral):
    one, two = (
        json.loads(decentral("topology", "ring", "--n", 64, "--rate", rate, "--json").out) for rate in (1, 2)
    )
    for name in ("chi_1", "chi_2"):
        assert two[name] == pytest.approx(one[name] / 2)
    for name in ("chi_1_unit", "chi_2_unit", "dadao_rate", "spectral_gap", "effective_neighbours"):
        assert two[name] == pytest.approx(one[name])


def test_topology_as_text_says_the_same(decentral):
    text = dict(line.split(maxsplit=1) for line in decentral("topology", "star", "--n", 8).out.splitlines())
    summary = json.loads(decentral("topology", "star", "--n", 8, "--json").out)
    assert set(text) == set(summary)
    assert float(text["chi_1"]) == pytest.approx(summary["chi_1"], rel=1e-5)


def test_topology_of_a_spec(decentral):
    here = json.loads(decentral("topology", "tiny.toml", "--json").out)
    assert here == named("ring", n=4).summary()
    assert json.loads(decentral("topology", "tiny.toml", "--n", 8, "--json").out)["n"] == 8
    changed = decentral("topology", "tiny.toml", "--set", "topology.kind=star", "topology.n=6", "--json")
    assert json.loads(changed.out) == named("star", n=6).summary()
    assert json.loads(decentral("topology", "quickstart", "--json").out)["n"] == 32


def test_topology_of_a_spec_is_that_of_its_first_seed(decentral):
    graph = {"kind": "random_regular", "n": 10, "degree": 3}
    Path("random.toml").write_text(tomli_w.dumps({"name": "r", "seed": 7, "topology": graph}))
    summary = json.loads(decentral("topology", "random.toml", "--json").out)
    assert summary == named("random_regular", n=10, degree=3, seed=7).summary()
    assert summary["chi_1"] != pytest.approx(named("random_regular", n=10, degree=3, seed=0).chi_1)


def test_topology_arguments_with_or_without_the_name_of_the_table(decentral):
    for key in ("degree", "topology.degree"):
        said = decentral("topology", "random_regular", "--n", 16, "--set", f"{key}=6", "--json")
        assert json.loads(said.out)["degree_max"] == 6


@pytest.mark.parametrize("kind", TOPOLOGIES)
def test_every_graph_has_constants(kind, decentral):
    summary = json.loads(decentral("topology", kind, "--n", 8, "--json").out)
    assert summary["name"] == kind
    assert summary["chi_1"] * (1 + 1e-9) >= summary["chi_2"] > 0


@pytest.mark.parametrize("content", ["name = 'x'", "topology = 3", "[topology]\nn = 4"])
def test_topology_of_a_spec_without_one(content, decentral):
    Path("x.toml").write_text(content)
    refused(
        decentral("topology", "x.toml"),
        "topology: got 'x.toml'; allowed: a spec with a table [topology] and its kind",
    )


# -- trace -------------------------------------------------------------------------------------------------------------


def test_trace_counts(finished, decentral):
    said = decentral("trace", finished)
    assert said.status == 0
    rows = said.out.splitlines()
    assert rows[0].split()[:2] == ["trace", "events"]
    trace = Trace.load(finished / "trace_gossip.npz").replica(1)
    row = next(row for row in rows if row.startswith("gossip, seed 1, exchange"))
    assert row.split()[4] == str(trace.counts["exchange"])
    assert row.split()[-1] == trace.hash[:12]


def test_waiting_times_and_counts_by_hand():
    trace = Trace.from_arrays(
        [1.0, 4.0, 5.0], [0, 0, 1], [[0, -1], [0, -1], [1, 2]], n_workers=3, horizon_s=9.0
    )
    gradient, exchange = (line.split() for line in trace_table({"x": trace}).splitlines()[2:])
    # "x, seed None, gradient": events, per worker and s, fewest, most, longest wait (workers 1, 2 never), until
    assert gradient[4:10] == ["2", "0.07407", "0", "2", "9", "9"]
    assert exchange[4:10] == ["1", "0.07407", "0", "1", "9", "9"]
    busy = Trace.from_arrays([1.0, 2.0], [0, 0], [0, 1], n_workers=2, horizon_s=2.5, ops=["gradient"])
    assert trace_table({"x": busy}).splitlines()[2].split()[8] == "2"  # worker 1, from 0 to 2


def two_replicas() -> Trace:
    rng = np.random.default_rng(0)

    def one(seed: int) -> Trace:
        first = rng.integers(0, 4, 30)
        operands = np.stack([first, (first + 1) % 4], axis=1)
        return Trace.from_arrays(
            np.sort(rng.uniform(0, 5, 30)), rng.integers(0, 2, 30), operands, n_workers=4, seed=seed
        )

    return merge([one(0), one(1)])


def check_perfetto(path: Path, traces: dict[str, Trace]) -> None:
    """What the trace event format asks for, and that every event of the traces is there."""
    document = json.loads(path.read_text())
    entries = document["traceEvents"]
    assert {entry["ph"] for entry in entries} <= {"M", "X", "s", "f"}
    assert all({"ph", "name", "pid", "tid"} <= set(entry) for entry in entries)
    titles = [entry for entry in entries if entry["ph"] == "M"]
    processes = {entry["pid"]: entry["args"]["name"] for entry in titles if entry["name"] == "process_name"}
    threads = {entry["tid"]: entry["args"]["name"] for entry in titles if entry["name"] == "thread_name"}
    assert set(processes.values()) == {
        f"{name}, seed {replica.seed}" for name, trace in traces.items() for replica in trace.replicas
    }
    assert len(threads) == sum(trace.total_workers for trace in traces.values())
    assert 0 not in threads
    assert 0 not in processes

    slices = [entry for entry in entries if entry["ph"] == "X"]
    for thread in threads:
        times = [entry["ts"] for entry in slices if entry["tid"] == thread]
        assert times == sorted(times)
        assert len({entry["pid"] for entry in entries if entry["tid"] == thread}) == 1
    expected = sum(trace.counts["gradient"] + 2 * trace.counts["exchange"] for trace in traces.values())
    assert len(slices) == expected
    assert sum(entry["ts"] for entry in slices) == pytest.approx(
        sum(
            1e6 * (trace.time_s * (1 + (trace.op == 1))).sum()  # an exchange is drawn at both ends
            for trace in traces.values()
        )
    )
    starts = {entry["id"]: entry for entry in entries if entry["ph"] == "s"}
    ends = {entry["id"]: entry for entry in entries if entry["ph"] == "f"}
    assert set(starts) == set(ends)
    assert len(starts) == sum(trace.counts["exchange"] for trace in traces.values())
    places = {(entry["tid"], entry["ts"]) for entry in slices}
    for number, start in starts.items():
        end = ends[number]
        assert start["ts"] == end["ts"]
        assert start["pid"] == end["pid"]
        assert start["tid"] != end["tid"]
        assert end["bp"] == "e"
        assert {(start["tid"], start["ts"]), (end["tid"], end["ts"])} <= places


def test_perfetto_by_hand(tmp_path):
    traces = {"a": two_replicas(), "b": two_replicas()}
    write_perfetto(traces, tmp_path / "x.json")
    check_perfetto(tmp_path / "x.json", traces)


def test_perfetto_of_a_run(finished, decentral, tmp_path):
    said = decentral("trace", finished, "--perfetto", "x.json")
    assert said.status == 0
    assert said.out == "x.json: open it at ui.perfetto.dev or chrome://tracing\n"
    check_perfetto(tmp_path / "x.json", {"gossip": Trace.load(finished / "trace_gossip.npz")})
    refused(
        decentral("trace", finished, "--perfetto", "no/x.json"),
        "--perfetto: got 'no/x.json'; allowed: a file that can",
    )


def test_only_workers_are_drawn(tmp_path):
    """A message has a slot, which is no worker."""
    send = Op("gradient", (Operand("worker"), Operand("message", opens=True)))
    trace = Trace.from_arrays([1.0, 2.0], [0, 0], [[0, 70], [1, 71]], n_workers=2, ops=[send], horizon_s=3.0)
    write_perfetto({"x": trace}, tmp_path / "x.json")
    entries = json.loads((tmp_path / "x.json").read_text())["traceEvents"]
    assert [entry["ph"] for entry in entries if entry["ph"] != "M"] == ["X", "X"]
    assert trace_table({"x": trace}).splitlines()[2].split()[4:8] == ["2", "0.3333", "1", "1"]


def test_trace_of_a_run_without_one(decentral):
    decentral("run", "tiny.toml", "--smoke", "--out", "here", "--set", "record.trace=false")
    refused(
        decentral("trace", "here"),
        "allowed: a run that kept its trace. This one ran with record.trace = false.",
    )


# -- compare -----------------------------------------------------------------------------------------------------------


def test_compare_in_every_format(finished, decentral):
    summary = json.loads((finished / "summary.json").read_text())["algorithms"]
    text = decentral("compare", finished).out
    assert [line.split()[0] for line in text.splitlines()[2:]] == ["gossip", "a2cid2"]
    assert "±" in text
    latex = decentral("compare", finished, "--format", "latex").out
    assert latex.startswith(r"\begin{tabular}")
    assert r"\pm" in latex
    rows = json.loads(decentral("compare", finished, "--format", "json").out)
    assert [row["algorithm"] for row in rows] == ["gossip", "a2cid2"]
    assert rows[0]["loss"].items() >= summary["gossip"]["final"]["loss"].items()
    theirs = summary["a2cid2"]["final"]["consensus_distance"]
    assert rows[1]["consensus_distance"].items() >= theirs.items()
    read = list(csv.DictReader(io.StringIO(decentral("compare", finished, "--format", "csv").out)))
    assert [row["algorithm"] for row in read] == ["gossip", "a2cid2"]
    assert float(read[0]["loss"]) == summary["gossip"]["final"]["loss"]["mean"]
    assert float(read[0]["loss_half_width"]) == summary["gossip"]["final"]["loss"]["half_width"]
    assert all(key.isascii() for row in (*rows, *read) for key in row)


def test_compare_several_folders(finished, decentral):
    decentral("run", "tiny.toml", "--smoke", "--out", "a/run")
    decentral("run", "tiny.toml", "--smoke", "--out", "b/other")
    decentral("run", "tiny.toml", "--smoke", "--out", "c/run")
    labels = lambda said: [line.split("  ")[0] for line in said.out.splitlines()[2:]]  # noqa: E731
    assert labels(decentral("compare", "a/run", "b/other")) == [
        "run: gossip", "run: a2cid2", "other: gossip", "other: a2cid2",
    ]  # fmt: skip
    assert labels(decentral("compare", "a/run", "c/run")) == [
        "a/run: gossip", "a/run: a2cid2", "c/run: gossip", "c/run: a2cid2",
    ]  # fmt: skip
    refused(decentral("compare", "a/run", "a/../a/run"), "allowed: each run folder once.")
    refused(decentral("compare", "a/run", "nowhere"), "DIR: got 'nowhere'; allowed: a run folder")


def test_compare_says_which_seeds_never_got_there(decentral):
    decentral("run", "tiny.toml", "--smoke", "--out", "here", "--set", "record.target=1e-30")
    assert "1 of 1 seeds never" in decentral("compare", "here").out
    (row, _) = json.loads(decentral("compare", "here", "--format", "json").out)
    assert row["time_s_to_target"] == row["bytes_to_target"] == {"mean": None, "half_width": None}
    assert (row["target_metric"], row["target"]) == ("suboptimality", 1e-30)


@pytest.mark.parametrize("content", ["{}", '{"algorithms": {"a": 3}}', "[", '{"algorithms": {"a": {}}}'])
def test_compare_a_damaged_folder(content, finished, decentral):
    Path("here").mkdir()
    Path("here/manifest.json").write_bytes((finished / "manifest.json").read_bytes())
    Path("here/summary.json").write_text(content)
    refused(
        decentral("compare", "here"), "summary: got 'here/summary.json'; allowed: a file this package wrote."
    )


# -- list and doctor ---------------------------------------------------------------------------------------------------


def test_list_names_everything_a_spec_can_use(decentral):
    from decentral.experiment.spec import ROOMS
    from decentral.learned.meta_parameters import SHIPPED

    said = decentral("list")
    assert [line for line in said.out.splitlines() if not line.startswith(" ")] == [
        f"{room}:" for room in LISTED
    ]
    for room in ("topology", "problem", "protocol", "algorithm"):
        for name in ROOMS[room]:
            assert f"\n  {name} " in said.out
    for name in ("dadao/star300", "learned", "adamw", *SHIPPED):
        assert f"\n  {name} " in said.out
    for line in said.out.splitlines():
        assert not line.startswith(" ") or len(line.split(maxsplit=1)[1]) > 10  # each says what it is


@pytest.mark.parametrize("room", LISTED)
def test_list_one_room(room, decentral):
    said = decentral("list", room)
    assert said.status == 0
    assert said.out
    assert all(line.startswith("  ") for line in said.out.splitlines())


def test_doctor_of_a_sound_installation(decentral):
    said = decentral("doctor")
    assert said.status == 0
    assert f"jax         {jax.__version__}" in said.out
    assert "FAULT" not in said.out
    assert said.out.count(" ok\n") == 3


@pytest.mark.parametrize("version", doctor.FAULTY)
def test_doctor_of_a_faulty_jaxlib(version, decentral, monkeypatch):
    real = doctor.provenance(None)
    real["versions"] |= {"jaxlib": version}
    monkeypatch.setattr(doctor, "provenance", lambda command: real)
    said = decentral("doctor")
    assert said.status == 1
    assert f"FAULT: {version} {doctor.FAULTY[version]}" in said.out
    assert "pip install --upgrade 'jax!=0.10.2" in said.out


def test_doctor_computes_and_does_not_only_read_versions(decentral, monkeypatch):
    monkeypatch.setattr(jax, "jit", lambda function: lambda rows: jax.vmap(lambda row: row.sum() * 0)(rows))
    said = decentral("doctor")
    assert said.status == 1
    assert "FAULT: 32769 of 32769 rows are wrong: this jaxlib must not be used" in said.out


def test_doctor_without_scikit_learn(decentral, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    said = decentral("doctor")
    assert said.status == 1
    assert (
        "needs the package scikit-learn, which is not installed. Run: pip install 'decentral[data]'"
        in said.out
    )


def test_version(decentral):
    from decentral import __version__

    said = decentral("--version")
    assert (said.status, said.out) == (0, f"decentral {__version__}\n")


def test_a_named_network_is_a_topology_and_shows_its_units(capsys):
    assert main(["topology", "opu_rack"]) == 0
    said = capsys.readouterr().out
    assert "LightOn OPU Gen-3, serves workers 0-7" in said
    assert said.splitlines()[1].split() == ["n", "8"]
