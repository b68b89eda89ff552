"""Results in a notebook: tables, figures, data frames; drawings of topologies; progress bars."""

import html.parser
import json
import re
import sys

import numpy as np
import pytest

import decentral
from decentral import analysis, problem, topology
from decentral.analysis.html import definitions
from decentral.errors import MissingExtra
from decentral.experiment import simulation
from decentral.experiment.bars import bar

PNG = b"\x89PNG\r\n\x1a\n"
VOID = ("img", "br", "hr")


@pytest.fixture(scope="module")
def both():
    """Gossip and A2CiD2 on the same events of a tiny network, two seeds."""
    quadratic = problem.quadratic(n=4, d=2, dtype="float32")
    ring, record = topology.named("ring", n=4), decentral.Record(count=3)
    run = [
        decentral.simulate(quadratic, ring, algorithm, stop=5.0, seeds=2, record=record)
        for algorithm in (decentral.Gossip(), decentral.A2CiD2())
    ]
    return decentral.Comparison(run)


class Page(html.parser.HTMLParser):
    """Every tag that is opened is closed, in order; keeps the tags and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.tags, self.cells, self.text = [], [], [], ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if set(self.open) & {"td", "th"}:
            self.cells.append(data)


def test_a_result_shows_a_table_and_a_figure(both):
    result = both["gossip"]
    page = Page(result._repr_html_())
    (image,) = (attributes for tag, attributes in page.tags if tag == "img")
    assert image["src"].startswith("data:image/png;base64,iVBORw0KGgo")
    assert "gossip" in image["alt"]
    mean, half_width = result.interval("suboptimality")
    assert analysis.format_interval(mean[-1], half_width[-1]) in page.text
    for said in ("quadratic", "Poisson", result.trace.hash, "ring"):
        assert said in page.text, said
    assert "http" not in page.text
    assert repr(result).startswith("<Result gossip: seeds [0, 1], 4 records")


def test_what_is_shown_is_escaped(both):
    gossip = both["gossip"]
    named = decentral.simulate(
        problem.quadratic(n=4, d=2, dtype="float32"), topology.named("ring", n=4), decentral.Gossip(),
        stop=1.0, name="<script>alert(1)</script>\"'", seeds=2, record=decentral.Record(count=3),
    )  # fmt: skip
    page = Page(decentral.Comparison([gossip, named])._repr_html_())
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script>alert(1)" in page.text
    assert "<b>" not in definitions({"<b>": "<b>"})


def test_the_table_marks_what_is_better_by_more_than_chance():
    row = {"loss": {"mean": 1.0, "half_width": 0.1, "best": True}, "name": "<x>"}
    table = analysis.comparison_table({"a": row, "b": {"loss": {"mean": 2.0, "half_width": None}}}, "html")
    page = Page(table)
    assert "<b>1.00 ± 0.10</b>" in table
    assert page.cells == ["algorithm", "loss", "name", "a", "1.00 ± 0.10", "<x>", "b", "2", "-"]


def test_results_side_by_side(both):
    assert [result.name for result in both] == ["gossip", "a2cid2"]
    text = repr(both)
    assert [line.split()[-1] for line in text.splitlines()[3:]] == ["trace", "trace"]
    rows = json.loads(both.table("json"))
    for row, result in zip(rows, both, strict=True):
        assert row["loss"]["mean"] == pytest.approx(result.metrics["loss"][:, -1].mean())
        assert row["seeds"] == 2
    first, second = (result.metrics["loss"][:, -1] for result in both)
    worse = rows[int(first.mean() < second.mean())]
    assert worse["loss_minus_best"]["mean"] == pytest.approx(abs((first - second).mean()))
    with pytest.raises(KeyError):
        both["sgd"]
    for wrong, said in (([], "at least one"), ([both["gossip"]] * 2, "all differ"), ([3], "results of runs")):
        with pytest.raises(decentral.InvalidInput, match=said):
            decentral.Comparison(wrong)


def test_results_with_other_seeds_are_not_paired(both):
    result = decentral.simulate(
        problem.quadratic(n=4, d=2, dtype="float32"), topology.named("ring", n=4), decentral.Gossip(),
        stop=5.0, seeds=(7, 8), record=decentral.Record(count=3), name="others",
    )  # fmt: skip
    rows = json.loads(decentral.Comparison([both["gossip"], result]).table("json"))
    assert [row["paired"] for row in rows] == ["-", "-"]
    assert not any((row["loss_minus_best"] or {}).get("mean") for row in rows)


def test_results_are_cited(both):
    bibtex = decentral.cite(both)
    assert "% for gossip, poisson, a2cid2\n@inproceedings{nabli2023a2cid2," in bibtex
    assert decentral.cite(both["gossip"]) == decentral.cite(["gossip", "poisson"])


def test_data_frame(both):
    frame = both.to_dataframe()
    assert list(frame.columns[:4]) == ["algorithm", "seed", "record", "time_s"]
    assert len(frame) == 2 * 2 * 4
    one = frame[(frame.algorithm == "a2cid2") & (frame.seed == 1)]
    for metric, values in both["a2cid2"].metrics.items():
        np.testing.assert_array_equal(one[metric], values[1])
    alone = both["gossip"].to_dataframe()
    assert set(alone.algorithm) == {"gossip"}
    np.testing.assert_array_equal(
        alone.groupby("record")["loss"].mean(), both["gossip"].metrics["loss"].mean(0)
    )


def test_data_frame_without_pandas(both, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtra, match=r"pip install 'decentral\[notebooks\]'"):
        both.to_dataframe()


def test_plots(both, tmp_path):
    figure = both["gossip"].plot()
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Suboptimality of the averaged model", "Consensus distance", "Distance to the optimum",
    ]  # fmt: skip
    figure = both.plot("suboptimality", against="bytes")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "bytes sent"
    drawn = [line.get_xydata() for line in axes.lines]
    for line, result in zip(drawn, both, strict=True):
        np.testing.assert_allclose(line[:, 1], result.interval("suboptimality")[0])
        np.testing.assert_allclose(line[:, 0], result.metrics["bytes"].mean(0))
    content, size = figure._repr_png_()
    assert content.startswith(PNG)
    assert int.from_bytes(content[16:20], "big") == 2 * size["width"]
    assert analysis.save_figure(figure, tmp_path / "a.svg").stat().st_size > 1000
    with pytest.raises(decentral.InvalidInput, match="Did you mean 'loss'"):
        both["gossip"].plot("los")
    with pytest.raises(decentral.InvalidInput, match="Did you mean 'time_s'"):
        both["gossip"].plot("loss", against="time")
    if "matplotlib.pyplot" in sys.modules:  # which shows what it knows a second time
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


def test_topologies_are_drawn():
    graphs = {"a barbell": topology.named("barbell", n=8), "ring": topology.named("ring", n=6)}
    figure = analysis.topology_figure(graphs, columns=2)
    assert [axes.get_title() for axes in figure.axes] == list(graphs)
    for axes, graph in zip(figure.axes, graphs.values(), strict=True):
        workers = axes.collections[-1].get_offsets()
        assert workers.shape == (graph.n, 2)
        assert len(np.unique(np.round(workers, 6), axis=0)) == graph.n  # none on another
    ring = figure.axes[1].collections[-1].get_offsets()
    np.testing.assert_allclose(np.linalg.norm(ring, axis=1), 1.0, atol=1e-6)
    with_unit = analysis.topology_figure(topology.load_network("opu_rack").topology())
    assert len(with_unit.axes[0].collections[-1].get_offsets()) == 1  # the unit, a square
    with pytest.raises(decentral.InvalidInput, match="at most 400"):
        analysis.topology_figure(topology.named("ring", n=401))
    with pytest.raises(decentral.InvalidInput, match="at least one topology"):
        analysis.topology_figure({})


def test_short_names_of_large_things(both):
    assert repr(topology.named("star", n=5)) == "<Topology star: 5 workers, 4 edges, rate 1>"
    counts = both["gossip"].trace.counts
    words = f"<Trace: 2 x 4 workers, 5 s: {counts['gradient']} gradient, {counts['exchange']} exchange>"
    assert repr(both["gossip"].trace) == words


def test_a_gantt_chart_is_a_figure():
    result = decentral.simulate(
        problem.quadratic(n=4, d=2, dtype="float32"), topology.named("ring", n=4), decentral.Gossip(),
        decentral.Rendezvous(), stop=5.0, record=decentral.Record(count=1),
    )  # fmt: skip
    figure = analysis.gantt_figure(result.trace, title="four workers")
    assert len(figure.axes) >= 4
    assert figure._repr_png_()[0].startswith(PNG)
    assert isinstance(result.protocol, decentral.Rendezvous)


def test_progress_bars_say_what_they_said(capsys):
    shown = bar(total=2, desc="steps")
    shown.update(2)
    shown.close()
    assert re.search(r"steps: 100%.*2/2", capsys.readouterr().err)


@pytest.fixture
def bars(monkeypatch):
    """Every bar that is shown; a closed one is disabled."""
    shown = []

    def showing(**arguments):
        shown.append(bar(**arguments))
        return shown[-1]

    monkeypatch.setattr(simulation, "bar", showing)
    return shown


def test_a_bar_is_closed_whatever_ends_the_run(bars):
    quadratic, ring = problem.quadratic(n=4, d=2, dtype="float32"), topology.named("ring", n=4)
    fast = decentral.Gossip(optimizer={"learning_rate": 30.0})
    run = {"record": decentral.Record(count=20), "progress": True}
    decentral.simulate(quadratic, ring, decentral.Gossip(), stop=5.0, **run)
    with pytest.raises(decentral.Diverged):
        decentral.simulate(quadratic, ring, fast, stop=200.0, **run)
    assert [one.disable for one in bars] == [True, True]
    assert bars[0].n == pytest.approx(bars[0].total)
    assert 0 < bars[1].n < bars[1].total
