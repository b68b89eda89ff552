"""`decentral report`: one HTML file that needs nothing, says what is there, and lets no name do anything."""

import base64
import hashlib
import json
import re
import shutil
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
import tomli_w
from browser import Browser, executable

from decentral import topology
from decentral.analysis.claims import Claim
from decentral.analysis.page import cell, element, facts, packed, page, table
from decentral.analysis.page.figures import curves_of
from decentral.analysis.page.timeline import timeline_view
from decentral.analysis.statistics import AXES, final_metrics, time_to_target, time_to_target_summary
from decentral.cli import main
from decentral.engine.trace import Trace, merge
from decentral.errors import InvalidInput
from decentral.experiment.folder import write_arrays, write_json
from decentral.experiment.projection_report import carry_out
from decentral.experiment.projections import load_plan
from decentral.experiment.reports import report
from decentral.protocol import Network, Poisson, Time

NASTY = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\"'&"


def trace_of(n=6, seeds=(0, 1, 2), horizon_s=20.0):
    network = Network(topology.named("ring", n=n))
    return merge([Poisson().timeline(network, Time(horizon_s), seed) for seed in seeds])


def make_run(path, names=("gossip", "a2cid2"), *, status="finished", title="a run", seeds=3, records=12):
    """A run folder as :mod:`decentral.experiment.run` leaves it, without running anything."""
    path.mkdir(parents=True)
    generator = np.random.default_rng(0)
    time_s = np.linspace(0, 20, records)
    metrics = {}
    for rank, name in enumerate(names):
        loss = np.exp(-(0.1 + 0.1 * rank) * time_s) + 0.01 * generator.random((seeds, records))
        metrics[name] = {
            "time_s": np.tile(time_s, (seeds, 1)), "gradients": np.tile(6 * time_s, (seeds, 1)),
            "samples": np.tile(48 * time_s, (seeds, 1)), "updates": np.tile(6 * time_s, (seeds, 1)),
            "bytes": np.tile(1e5 * time_s, (seeds, 1)), "exchanges": np.tile(3 * time_s, (seeds, 1)),
            "loss": loss, "consensus_distance": loss**2, "test_accuracy": 1 - loss / 2,
        }  # fmt: skip
    spec = {
        "name": title, "topology": {"kind": "ring", "n": 6}, "problem": {"kind": "digits", "partition": "label"},
        "stop": {"kind": "time", "time_s": 20.0}, "algorithm": [{"kind": "gossip", "name": name} for name in names],
    }  # fmt: skip
    manifest = {
        "status": status, "name": title, "start": "2026-01-01T00:00:00+00:00", "end": None, "seeds": list(range(seeds)),
        "trace": dict.fromkeys(names, names[0]), "paired": "trace", "command_line": ["decentral", "run", title],
        "versions": {"decentral": "0", "jax": "0"}, "error": None if status == "finished" else "interrupted",
        "steps": dict.fromkeys(names, "given"),
        "wall_s": {name: {"run": 1.0} for name in names},
    }  # fmt: skip
    (path / "spec.toml").write_text(tomli_w.dumps(spec))
    write_json(path / "manifest.json", manifest)
    arrays = {f"{name}/{key}": values for name, found in metrics.items() for key, values in found.items()}
    write_arrays(path / "metrics.npz", arrays)
    file = f"trace_{names[0]}.npz"
    if "/" not in file:
        trace_of(seeds=range(seeds)).save(path / file)
    if status == "finished":
        entries = {}
        for name, found in metrics.items():
            target = {
                axis: vars(time_to_target_summary(time_to_target(found[axis], found["loss"], 0.3)))
                for axis in AXES
            }
            entries[name] = {
                "seeds": manifest["seeds"], "final": final_metrics({name: found})[name], "events": 100,
                "hyper_parameters": {"alpha": 0.5, "optimizer": {"kind": "sgd"}},
                "to_target": {"metric": "loss", "target": 0.3} | target,
            }  # fmt: skip
        summary = {"name": title, "seeds": manifest["seeds"], "paired": "trace", "algorithms": entries}
        write_json(path / "summary.json", summary)
    return path


class Reader(HTMLParser):
    """What is on a page; it complains about what is not well formed."""

    VOID = ("link", "meta", "wbr")

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.scripts, self.styles, self.attributes = [], [], [], [], []
        self.words, self.cells = "", []
        self.feed(text)
        self.close()
        assert not self.open, self.open
        assert len(set(self.ids)) == len(self.ids)

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(set(names)) == len(names), (tag, names)
        self.attributes += [(tag, *pair) for pair in attributes]
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        inside = self.open[-1] if self.open else ""
        if inside == "script":
            self.scripts.append(text)
        elif inside == "style":
            self.styles.append(text)
        else:
            self.words += text
            if self.cells and {"td", "th"} & set(self.open):
                self.cells[-1] += text

    @property
    def data(self):
        return json.loads(self.scripts[0])


def read(path):
    return Reader(path.read_text("utf-8"))


def of_column(text, kind):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), kind)


class TestPage:
    def test_what_is_given_is_text(self):
        made = element("p", NASTY, element("b", "x < y"), None, title=NASTY, hidden=True, data_x=None)
        assert "<script" not in made
        assert "<img" not in made
        found = Reader(made)
        assert found.words == NASTY + "x < y"
        assert found.attributes == [("p", "title", NASTY), ("p", "hidden", None)]

    def test_cells(self):
        interval = {"mean": 1.0, "half_width": 0.25}
        assert Reader(cell(interval)).words == "1.00 ± 0.25"
        assert "<strong>" in cell(interval | {"best": True})
        assert Reader(cell({"mean": None})).words == Reader(cell(None)).words == "–"
        assert Reader(cell(True)).words == "yes"
        made = Reader(table(["name", "x"], [["a", 1.5], ["b", None]], caption="which"))
        assert made.cells == ["name", "x", "a", "1.500", "b", "–"]
        assert Reader(facts({"a": {"b": [1, 2]}, "c": None})).words == "a.b1, 2c–"

    def test_nothing_is_loaded_and_only_own_scripts_run(self):
        """The policy's hashes are those of what stands there, so the browser runs it, and nothing else."""
        made = Reader(page("x", element("button", "light", id="theme"), {"a": "</script>"}))
        policy = next(value for tag, name, value in made.attributes if (tag, name) == ("meta", "content"))
        assert policy.startswith("default-src 'none'")
        hashes = [
            "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            for text in ("".join(made.styles), made.scripts[1])
        ]
        assert re.findall(r"'(sha256-[^']+)'", policy) == hashes
        assert made.data == {"a": "</script>"}
        assert len(made.scripts) == 2

    def test_columns(self):
        values = np.array([0, 1, 2**32 - 1], np.uint32)
        assert (of_column(packed(values), "<u4") == values).all()
        assert (of_column(packed(values.astype(">u4")), "<u4") == values).all()


class TestTimeline:
    def test_every_event_of_a_small_trace(self):
        trace = trace_of()
        view, first = timeline_view(trace), trace.replica(0)
        names = [op.name for op in first.ops]
        assert view["labels"] == names
        label, row = (of_column(view["slices"][key], "u1") for key in ("label", "row"))
        start = np.cumsum(of_column(view["slices"]["start"], "<u4"), dtype=np.int64)
        # A gradient is one worker's, an exchange two workers'.
        counts = first.counts
        assert (np.bincount(label) == [counts["gradient"], 2 * counts["exchange"]]).all()
        gradients = first.op == names.index("gradient")
        assert (np.sort(row[label == names.index("gradient")]) == np.sort(first.operands[gradients, 0])).all()
        times = np.sort(first.time_s[gradients])
        assert start[label == names.index("gradient")] / (2**32 - 2) * 20.0 == pytest.approx(times, abs=1e-8)
        assert view["exact_until_s"] == view["horizon_s"] == 20.0
        assert not view["timed"]
        assert view["busy"] is None
        shares = of_column(view["shares"], "u1").reshape(2, 6, view["bins"])
        assert shares[0].max() == 255
        assert view["messages"]["count"] == 2 * counts["exchange"]

    def test_shares_of_time_by_hand(self):
        """Worker 0 computes from 0 to 3 and from 5 to 6 of 8 s, worker 1 from 2 to 8; four bins would be 2 s each."""
        trace = Trace.from_arrays(
            [3.0, 6.0, 8.0],
            ["gradient"] * 3,
            [[0], [0], [1]],
            n_workers=2,
            duration_s=np.array([3.0, 1.0, 6.0]),
            horizon_s=8.0,
        )
        view = timeline_view(trace, cells=1)
        assert view["bins"] == 64
        shares = of_column(view["shares"], "u1").reshape(2, 2, 64) / 255
        assert shares[0, 0] == pytest.approx([1] * 24 + [0] * 16 + [1] * 8 + [0] * 16)
        assert shares[0, 1] == pytest.approx([0] * 16 + [1] * 48)
        assert not shares[1].any()
        assert view["busy"]["compute"] == [0.5, 0.75]

    def test_what_overlaps_is_counted_once(self):
        trace = Trace.from_arrays(
            [3.0, 4.0, 5.0],
            ["gradient"] * 3,
            [[0]] * 3,
            n_workers=2,
            duration_s=np.array([3.0, 1.5, 4.5]),
            horizon_s=8.0,
        )
        shares = of_column(timeline_view(trace, cells=1)["shares"], "u1")[:64] / 255
        assert shares == pytest.approx([1] * 40 + [0] * 24)

    def test_what_does_not_fit_is_said(self):
        trace = trace_of(seeds=(0,))
        view = timeline_view(trace, slices=20)
        assert view["slices"]["count"] == 20
        start = np.cumsum(of_column(view["slices"]["start"], "<u4"), dtype=np.int64)
        assert start[-1] / (2**32 - 2) * 20.0 <= view["exact_until_s"] < 20.0

    def test_many_workers(self):
        view = timeline_view(trace_of(n=300, seeds=(0,), horizon_s=5.0))
        assert len(view["rows"]) == 128
        assert "128 of 300 workers" in view["note"]


class TestRun:
    def test_all_there(self, tmp_path):
        path = report(make_run(tmp_path / "run"))
        assert path == tmp_path / "run" / "report.html"
        found = read(path)
        for words in (
            "a run finished", "2 algorithms on ring, 6 workers, digits (label partition), until 20 s, 3 seeds.",
            "Lowest loss", "Paired differences", "Until loss is at most 0.3", 'kind = "ring"', "decentral run a run",
            "trace_gossip.npz", "optimizer.kind", "sgd",
        ):  # fmt: skip
            assert words in found.words, words
        assert set(found.data["curves"]["metrics"]) == {"loss", "consensus_distance", "test_accuracy"}
        assert next(iter(found.data["curves"]["axes"])) == "time_s"
        assert [view["name"] for view in found.data["timelines"]] == ["gossip, a2cid2"]
        assert path.stat().st_size < 3e6

    def test_nothing_points_outside(self, tmp_path):
        found = read(report(make_run(tmp_path / "run")))
        for tag, name, value in found.attributes:
            assert name not in ("style", "onclick", "onload"), tag
            if name in ("src", "href", "action", "srcset"):
                assert value.startswith(("#", "data:")), (tag, value)
        targets = [value[1:] for _, name, value in found.attributes if name == "href" and value[0] == "#"]
        assert set(targets) <= set(found.ids)
        labels = [value for _, name, value in found.attributes if name == "aria-labelledby"]
        assert set(labels) <= set(found.ids)
        program = "".join(found.scripts[1:] + found.styles)
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", program) == []
        assert not re.search(r"\b(fetch|XMLHttpRequest|import|eval|innerHTML|url)\s*\(", program)

    def test_names_are_text(self, tmp_path):
        """Of the run, its algorithms and its command line."""
        name = "x<script>window.hacked = 1<\\script>"
        found = read(report(make_run(tmp_path / "run", (name, "b&<i>"), title=NASTY)))
        assert len(found.scripts) == 2
        assert NASTY in found.words
        assert name in found.words
        assert [line["name"] for line in found.data["curves"]["lines"]] == [name, "b&<i>"]

    def test_the_best_is_said_as_far_as_it_is_known(self, tmp_path):
        sure = read(report(make_run(tmp_path / "sure"))).words
        assert "Lowest loss of the averaged model at the end: a2cid2, " in sure
        assert "from every other excludes 0." in sure
        one = read(report(make_run(tmp_path / "one", seeds=1))).words
        assert "one seed: nothing is known about chance" in one
        assert "One seed: no intervals" in one

    def test_warnings_stand_first(self, tmp_path):
        run = make_run(tmp_path / "run")
        manifest = json.loads((run / "manifest.json").read_text())
        write_json(run / "manifest.json", manifest | {"warnings": ["too <few> exchanges"]})
        words = read(report(run)).words
        assert words.index("warning: too <few> exchanges") < words.index("Results", words.index("warning"))

    def test_what_diverged_is_not_taken_up(self, tmp_path):
        run = make_run(tmp_path / "run", status="failed")
        manifest = json.loads((run / "manifest.json").read_text())
        write_json(run / "manifest.json", manifest | {"error": "Diverged: gossip at event 3"})
        words = read(report(run)).words
        assert "Diverged: gossip at event 3. What was recorded until then is below." in words
        assert "decentral resume" not in words

    def test_intervals_in_curves(self):
        values = np.array([[1.0, 3.0], [2.0, 5.0]])
        curves = curves_of({"a": {"time_s": np.array([[0.0, 1.0], [0.0, 3.0]]), "loss": values}})
        (line,) = curves["lines"]
        assert line["axes"] == {"time_s": [0.0, 2.0]}
        assert line["metrics"]["loss"]["mean"] == [1.5, 4.0]
        assert line["metrics"]["loss"]["half"] == pytest.approx([6.35310, 12.7062], rel=1e-5)

    def test_unfinished(self, tmp_path):
        run = make_run(tmp_path / "run", status="interrupted")
        found = read(report(run))
        assert f"To go on: decentral resume {run}" in found.words
        assert "interrupted" in found.words
        assert found.data["curves"]["lines"][0]["metrics"]["loss"]
        (run / "metrics.npz").unlink()
        found = read(report(run))
        assert "Nothing was recorded" in found.words
        assert found.data["timelines"]
        for file in ("spec.toml", "trace_gossip.npz"):
            (run / file).unlink()
        found = read(report(run))
        assert "cut off before it began" in found.words
        assert "record.trace = false" in found.words

    @pytest.mark.parametrize(
        "file", ["manifest.json", "summary.json", "metrics.npz", "spec.toml", "trace_gossip.npz"]
    )
    def test_damaged(self, tmp_path, file):
        run = make_run(tmp_path / "run")
        (run / file).write_bytes((run / file).read_bytes()[:-30] + b"[")
        with pytest.raises(InvalidInput):
            report(run)
        assert not (run / "report.html").exists()

    def test_what_is_missing_in_a_summary(self, tmp_path, capsys):
        run = make_run(tmp_path / "run")
        write_json(run / "summary.json", {"name": "x", "seeds": [0], "algorithms": {"gossip": {}}})
        assert main(["report", str(run)]) == 2
        assert "damaged" in capsys.readouterr().err

    def test_no_folder(self, tmp_path, capsys):
        assert main(["report", str(tmp_path / "nothing")]) == 2
        assert "manifest.json" in capsys.readouterr().err
        run = make_run(tmp_path / "run")
        assert main(["report", str(run), "--project", "no_such"]) == 2
        assert "packaged projections" in capsys.readouterr().err
        assert not (run / "report.html").exists()

    def test_open(self, tmp_path, capsys, monkeypatch):
        shown = []
        monkeypatch.setattr("webbrowser.open", lambda address: shown.append(address) or True)
        run = make_run(tmp_path / "run")
        assert main(["report", str(run), "--open"]) == 0
        assert capsys.readouterr().out == f"{run / 'report.html'}\n"
        assert shown == [(run / "report.html").as_uri()]


def make_sweep(path, *, names=("gossip", "a2cid2")):
    """A sweep over a step size and a graph: three runs are finished, one failed, two are missing."""
    rates, sizes = [0.1, 0.3, 1e20], [6, 12]
    source = {
        "name": "a sweep", "seeds": 3, "topology": {"kind": "ring", "n": 6}, "problem": {"kind": "digits"},
        "stop": {"kind": "time", "time_s": 20.0}, "record": {"target": 0.3},
        "algorithm": [{"kind": "gossip", "name": name, "optimizer": {"learning_rate": 0.1}} for name in names],
    }  # fmt: skip
    key = "algorithm.optimizer.learning_rate"
    points = [{key: rate, "topology.n": n} for rate in rates for n in sizes]
    runs = [{"id": f"{place:012x}", "set": point, "group": place % 2} for place, point in enumerate(points)]
    path.mkdir()
    record = {
        "name": "a sweep", "source": source, "axes": {key: rates, "topology.n": sizes}, "search": "grid", "seeds": 3,
        "x64": False, "merge": True, "ranges": {}, "runs": runs,
        "provenance": {"command_line": ["decentral", "sweep"], "versions": {"jax": "0"}},
    }  # fmt: skip
    write_json(path / "sweep.json", record)
    for run in runs[:3]:
        make_run(path / "runs" / run["id"], names)
    folder = make_run(path / "runs" / runs[4]["id"], names, status="failed")
    manifest = json.loads((folder / "manifest.json").read_text())
    failure = {
        "stage": "run",
        "event": 19,
        "time_s": 0.8,
        "worker": 5,
        "seed": 1,
        "message": f"diverged {NASTY}",
    }
    write_json(folder / "manifest.json", manifest | {"failure": failure})
    return path


class TestSweep:
    def test_all_there(self, tmp_path):
        found = read(report(make_sweep(tmp_path / "sweep")))
        assert "A sweep (grid) of 6 runs: 3 finished, 2 missing, 1 failed; 3 seeds each" in found.words
        assert "2 runs of 6 not done." in found.words
        assert f"diverged {NASTY}" in found.cells
        for words in ("19", "0.8", "5", "1e+20", "s to target"):
            assert words in found.cells, words
        assert len(found.scripts) == 2
        sweep = found.data["sweep"]
        assert sweep["axes"]["topology.n"] == {"values": [6, 12], "numeric": True, "log": False}
        assert len(sweep["points"]) == 6
        assert [point["at"]["topology.n"] for point in sweep["points"]] == [0, 0, 1, 1, 0, 0]
        text = json.loads((tmp_path / "sweep/runs/000000000000/summary.json").read_text())
        mean = text["algorithms"]["gossip"]["final"]["loss"]["mean"]
        assert sweep["points"][0]["metrics"]["loss"][0] == pytest.approx(mean, rel=1e-5)

    def test_the_best_of_one_task(self, tmp_path):
        """Graphs of 6 and of 12 workers are two tasks: nothing is best among them."""
        found = read(report(make_sweep(tmp_path / "sweep")))
        place = found.cells.index("best of") + 2
        rows = [found.cells[place + 6 * row :][:6] for row in range(4)]
        assert [(row[0], row[1], row[2], row[4]) for row in rows] == [
            ("gossip", "6", "0.1", "2"), ("a2cid2", "6", "0.1", "2"), ("gossip", "12", "0.1", "1"), ("a2cid2", "12", "0.1", "1"),
        ]  # fmt: skip

    def test_no_arrays_are_read(self, tmp_path):
        path = make_sweep(tmp_path / "sweep")
        for file in path.rglob("*.npz"):
            file.unlink()
        assert read(report(path)).data["sweep"]

    def test_nothing_is_done(self, tmp_path):
        path = make_sweep(tmp_path / "sweep")
        shutil.rmtree(path / "runs")
        found = read(report(path))
        assert "No run is finished." in found.words
        assert found.data == {}

    def test_damaged(self, tmp_path, capsys):
        path = make_sweep(tmp_path / "sweep")
        (path / "sweep.json").write_text("{")
        assert main(["report", str(path)]) == 2
        assert "sweep.json" in capsys.readouterr().err


def test_projection(tmp_path):
    """The numbers of decentral project, and no optical unit without generation, batch, mode, rows and digital rivals."""
    found = read(report(make_run(tmp_path / "run"), project="feedback"))
    assert "not a measurement of this run" in found.words
    for words in (
        "LightOn OPU Gen-3", "batch 8,192", "real rows", "anchor mode", "Walsh-Hadamard", "dense in 16 bits",
        "none was measured by us", "dfa as a method: not validated against any measurement", "tokens/s",
    ):  # fmt: skip
        assert words in found.words, words
    done = carry_out(load_plan("feedback"))
    first = done.projections[0]
    assert f"{float(first.tokens_per_s):,.0f}" in found.cells
    titles = re.findall(r"ddp, between workers: ([\d.]+) s, ([\d.]+) %", found.words)
    assert titles == [
        (
            f"{float(first.parts['between workers']):.4g}",
            f"{100 * float(first.parts['between workers'] / first.step_s):.1f}",
        )
    ]


def test_claims(tmp_path):
    """Those of the figures that were drawn from this run and of no others; one that fails is there."""
    run = make_run(tmp_path / "run")
    claim = Claim("X1", "Paper", "the ratio <is> small", "section 2", "read", "convex", (None, 2.0)).check(
        3.0, (2.5, 3.5)
    )
    mine = {"script": "mine.py", "runs": ["run", "b"], "claims": [claim.as_dict()]}
    write_json(tmp_path / "mine.json", mine)
    write_json(
        tmp_path / "other.json",
        {"script": "other.py", "runs": ["c"], "claims": [claim.as_dict() | {"id": "Z9"}]},
    )
    (tmp_path / "broken.json").write_text("{")
    found = read(report(run))
    assert "the ratio <is> small" in found.cells
    assert "3 [2.5, 3.5]" in found.cells
    assert "does not hold" in found.cells
    assert "Z9" not in found.words


def test_meta_training(tmp_path):
    path = tmp_path / "meta"
    path.mkdir()
    write_json(
        path / "manifest.json",
        {"status": "finished", "kind": "meta-training", "name": "small", "cost": {"inner_steps": 9}},
    )
    (path / "spec.toml").write_text('name = "small"\n[[task]]\nname = "wide"\n[[task]]\nname = "wide"\n')
    write_arrays(path / "history.npz", {"losses": np.array([[2.0, 4.0], [1.0, 2.0]], np.float32)})
    found = read(report(path))
    assert "2 outer steps on 2 tasks" in found.words
    assert [line["name"] for line in found.data["series"]["lines"]] == ["wide (1)", "wide (2)"]
    assert found.data["series"]["lines"][1]["y"] == [4.0, 3.0]
    assert found.cells[-2:] != []
    assert "cost.inner_steps" in found.words


# -- in a real browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    if executable() is None:
        pytest.skip(
            "no Chromium on this machine (apt-get install chromium): what a browser shows is not tested"
        )
    chromium = Browser()
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def shown(browser, tmp_path_factory):
    """A report, open in the browser."""
    path = report(make_run(tmp_path_factory.mktemp("shown") / "run"))
    browser.open(path.as_uri())
    return browser


def of_window(browser):
    """What part of the run its timeline shows."""
    return browser.run(
        "[Number(document.querySelector('canvas').dataset.from), Number(document.querySelector('canvas').dataset.to)]"
    )


def centre(browser, selector):
    return browser.run(
        f"(() => {{ const node = document.querySelector({json.dumps(selector)}); node.scrollIntoView({{block: 'center'}});"
        " const box = node.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )  # fmt: skip


@pytest.mark.slow
class TestInChromium:
    @pytest.mark.parametrize("dark", [False, True])
    def test_quiet(self, browser, tmp_path, dark):
        """No error, no warning, no request but for the file itself; it is drawn, in the colours of the system."""
        path = report(make_run(tmp_path / "run"))
        browser.open(path.as_uri(), dark=dark)
        assert browser.complaints() == []
        assert browser.requests() == [path.as_uri()]
        assert browser.run("document.querySelectorAll('.plot polyline').length") == 6
        background = browser.run("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(22, 24, 28)" if dark else "rgb(255, 255, 255)")
        browser.picture(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 50_000

    def test_a_request_would_be_seen(self, browser, tmp_path):
        """What the other tests look for is found where it is."""
        (tmp_path / "bad.html").write_text(
            "<script>data = {}; console.error('x')</script><img src='http://127.0.0.1:9/x.png'>"
        )
        browser.open((tmp_path / "bad.html").as_uri())
        browser.wait("document.readyState == 'complete'")
        found = browser.complaints()
        assert "http://127.0.0.1:9/x.png" in found
        assert any(isinstance(one, dict) and one.get("type") == "error" for one in found)

    def test_the_policy_holds(self, browser, tmp_path):
        """Markup that got through could load nothing and run nothing."""
        text = report(make_run(tmp_path / "run")).read_text()
        planted = "<script>window.hacked = 1</script><img src='http://127.0.0.1:9/x.png' onerror='window.hacked = 1'>"
        (tmp_path / "planted.html").write_text(text.replace("<main", planted + "<main"))
        browser.open((tmp_path / "planted.html").as_uri())
        assert browser.run("window.hacked === undefined")
        said = [event for event in browser.events if event.get("method") == "Network.loadingFailed"]
        assert [event["params"].get("blockedReason") for event in said] == ["csp"]

    def test_names_do_nothing(self, browser, tmp_path):
        path = report(
            make_run(tmp_path / "run", ("x<img src=x onerror='window.hacked = 1'>", "y"), title=NASTY)
        )
        browser.open(path.as_uri())
        assert browser.complaints() == []
        assert browser.run("window.hacked === undefined && document.images.length == 0")
        assert browser.run("document.querySelector('.legend').textContent").strip().startswith("x<img src=x")

    def test_zoom_with_keys(self, shown):
        shown.run("document.querySelector('canvas').focus()")
        shown.press("0")
        assert of_window(shown) == [0, 20]
        shown.press("+")
        assert of_window(shown) == pytest.approx([5, 15])
        shown.press("ArrowRight")
        assert of_window(shown) == pytest.approx([6, 16])
        for _ in range(60):
            shown.press("+")
        low, high = of_window(shown)
        assert 0 < high - low < 1e-4
        for _ in range(60):
            shown.press("-")
        assert of_window(shown) == [0, 20]
        assert shown.complaints() == []

    def test_zoom_with_the_mouse(self, shown):
        shown.run("document.querySelector('canvas').focus()")
        shown.press("0")
        x, y = centre(shown, "canvas")
        shown.mouse("mouseWheel", x, y, deltaX=0, deltaY=-240, modifiers=2)
        shown.wait("Number(document.querySelector('canvas').dataset.to) < 19")
        low, high = of_window(shown)
        assert high - low == pytest.approx(20 * np.exp(-1), rel=1e-6)
        assert low < 10 < high
        shown.mouse("mousePressed", x, y, button="left", clickCount=1)
        shown.mouse("mouseMoved", x - 100, y, button="left", buttons=1)
        shown.mouse("mouseReleased", x - 100, y, button="left", clickCount=1)
        later = of_window(shown)
        assert later[0] > low
        assert later[1] - later[0] == pytest.approx(high - low)
        shown.mouse("mouseWheel", x, y, deltaX=0, deltaY=240)  # without Ctrl the page scrolls
        assert of_window(shown) == later

    def test_zoomed_out_and_in_it_draws(self, shown):
        drawn = "(() => { const c = document.querySelector('canvas'); const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; const seen = new Set(); for (let k = 0; k < d.length; k += 4) seen.add(d[k] + ',' + d[k + 1] + ',' + d[k + 2]); return [...seen]; })()"  # noqa: E501
        shown.run("document.querySelector('canvas').focus()")
        shown.press("0")
        whole = shown.run(drawn)
        assert "63,144,218" in whole  # blue: a gradient
        assert "255,169,14" in whole  # amber: an exchange
        shown.press("+")
        assert "63,144,218" in shown.run(drawn)

    def test_what_a_worker_did_under_the_mouse(self, shown):
        shown.run("document.querySelector('canvas').focus()")
        shown.press("0")
        shown.run("document.querySelector('canvas').scrollIntoView({block: 'center'})")
        found = shown.run(
            "(() => { const c = document.querySelector('canvas'), b = c.getBoundingClientRect();"
            " for (let x = 60; x < b.width - 60; x++) {"
            " c.dispatchEvent(new PointerEvent('pointermove', {clientX: b.x + x, clientY: b.y + 12}));"
            " const t = c.parentNode.querySelector('.bubble'); if (!t.hidden) return t.innerText; } })()"
        )
        assert re.match(r"worker 0\ngradient: \d+\.\d+ s", found)

    def test_curves_switch(self, shown):
        points = "document.querySelector('.plot polyline').getAttribute('points')"
        before = shown.run(points)
        change = (
            "(() => { const s = document.querySelector('#curves-plot select'); s.value = '%s';"
            " s.dispatchEvent(new Event('change')); })()"
        )
        shown.run(change % "bytes")
        assert "bytes sent" in shown.run("document.querySelector('.plot').textContent")
        shown.run(change % "time_s")
        assert shown.run(points) == before
        shown.run("document.querySelector('.panel input[type=checkbox]').click()")
        assert shown.run(points) != before  # linear instead of logarithmic
        shown.run("document.querySelector('.panel input[type=checkbox]').click()")
        shown.run("document.querySelector('.legend input').click()")
        assert shown.run("document.querySelectorAll('.plot polyline').length") == 3
        shown.run("document.querySelector('.legend input').click()")
        assert shown.run(points) == before

    def test_values_under_the_mouse_and_with_keys(self, shown):
        """The last record of each line, as the table says it."""
        shown.run("document.querySelector('.plot').focus()")
        shown.press("ArrowLeft")
        said = shown.run("document.querySelector('figure .bubble').innerText")
        assert said.startswith("simulated time (s): 20")
        for row in shown.run(
            "[...document.querySelectorAll('table.sortable')[0].tBodies[0].rows].map(r => r.cells[1].textContent)"
        ):
            assert row in said
        shown.run("document.querySelector('.plot').blur()")
        x, y = centre(shown, ".plot")
        shown.mouse("mouseMoved", x, y)
        shown.wait("!document.querySelector('figure .bubble').hidden")
        assert "a2cid2" in shown.run("document.querySelector('figure .bubble').innerText")

    def test_tables_sort(self, shown):
        order = "[...document.querySelectorAll('table.sortable')[0].tBodies[0].rows].map(r => r.cells[0].textContent)"
        click = "document.querySelectorAll('table.sortable')[0].querySelectorAll('button')[1].click()"
        shown.run(click)
        assert shown.run(order) == ["a2cid2", "gossip"]  # by loss
        shown.run(click)
        assert shown.run(order) == ["gossip", "a2cid2"]
        assert shown.run("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "descending"

    def test_a_sweep_switches(self, browser, tmp_path):
        path = report(make_sweep(tmp_path / "sweep"))
        browser.open(path.as_uri())
        assert browser.complaints() == []
        assert browser.run("document.querySelectorAll('.plot circle').length") == 6
        browser.run(
            "(() => { const all = [...document.querySelectorAll('#sweep-plot select')];"
            " const s = all.find(s => s.options[1]?.value == 'topology.n');"
            " s.value = 'topology.n'; s.dispatchEvent(new Event('change')); })()"
        )
        assert "topology.n" in browser.run("document.querySelector('.plot').textContent")
        browser.run("document.querySelector('.legend input').click()")
        assert browser.run("document.querySelectorAll('.plot circle').length") == 3
        assert browser.complaints() == []

    def test_narrow_and_printed(self, browser, tmp_path):
        """On a telephone nothing but tables is wider than the screen; on paper it is light and has its figures."""
        path = report(make_run(tmp_path / "run"))
        browser.open(path.as_uri(), width=390, dark=True)
        assert browser.run("document.documentElement.scrollWidth") <= 390
        paper = base64.b64decode(browser.send("Page.printToPDF", printBackground=True)["data"])
        assert paper[:4] == b"%PDF"
        assert len(paper) > 50_000
        assert browser.complaints() == []

    def test_a_million_events(self, browser, tmp_path):
        """3 MB at most; beyond what is kept one by one there are shares, and the page says so."""
        run = make_run(tmp_path / "run")
        trace = trace_of(n=64, seeds=(0,), horizon_s=11_000.0)
        assert len(trace) > 1_000_000
        trace.save(run / "trace_gossip.npz")
        path = report(run)
        assert path.stat().st_size < 3e6
        browser.open(path.as_uri())
        browser.run("document.querySelector('canvas').focus()")
        browser.press("0")
        said = browser.run("document.querySelector('figcaption').innerText")
        assert "The shade is the number of events in bins of" in said
        assert "Single events are kept until" in said
        began = browser.run("performance.now()")
        for _ in range(10):
            browser.press("+")
        assert browser.run("performance.now()") - began < 10_000
        assert browser.complaints() == []
