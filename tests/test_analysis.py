"""Statistics over seeds, time-to-target, tables and plots."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from decentral.analysis import (
    colours,
    comparison_table,
    final_metrics,
    format_interval,
    mean_interval,
    plot_metric,
    plot_overview,
    save_figure,
    time_to_target,
    time_to_target_summary,
)
from decentral.analysis.plots import WIDTHS_IN, paper_style, styles
from decentral.errors import InvalidInput

ROOT = Path(__file__).parents[1]


class TestMeanInterval:
    def test_by_hand(self):
        mean, half_width = mean_interval([1.0, 2.0, 3.0, 4.0])
        assert mean == 2.5
        assert half_width == pytest.approx(stats.t.ppf(0.975, 3) * np.sqrt(5 / 3) / 2)

    @pytest.mark.parametrize("level", [0.8, 0.95])
    @pytest.mark.parametrize("seeds", [2, 5])
    def test_coverage(self, seeds, level):
        """The share of 20,000 intervals that cover the truth is within 5 standard deviations of the level.

        Right intervals fail that for 1 in 1.7 million choices of the seed.
        """
        values = np.random.default_rng(1).normal(3, 2, (seeds, 20_000))
        mean, half_width = mean_interval(values, level=level)
        covered = np.mean(np.abs(mean - 3) <= half_width)
        assert abs(covered - level) <= 5 * np.sqrt(level * (1 - level) / 20_000)

    def test_one_seed_has_no_interval(self):
        mean, half_width = mean_interval([[1.0, 2.0]])
        np.testing.assert_array_equal(mean, [1, 2])
        assert np.isnan(half_width).all()

    def test_no_seed_is_left_out(self):
        mean, half_width = mean_interval([[1.0, np.nan, np.inf], [2.0, 1.0, 1.0]])
        np.testing.assert_array_equal(mean, [1.5, np.nan, np.inf])
        assert np.isnan(half_width[1:]).all()

    def test_axis(self):
        values = np.random.default_rng(0).normal(size=(3, 4))
        np.testing.assert_array_equal(mean_interval(values, axis=1), mean_interval(values.T))

    @pytest.mark.parametrize("bad", [{"level": 0}, {"level": 1.0}, {"level": float("nan")}, {"values": []}])
    def test_bad_input(self, bad):
        with pytest.raises(InvalidInput):
            mean_interval(**{"values": [1.0, 2.0], **bad})

    def test_final_metrics(self):
        final = final_metrics({"a": {"loss": [[9.0, 1.0], [9.0, 3.0]]}, "b": {"loss": [[9.0, 2.0]]}})
        assert final["a"]["loss"]["mean"] == 2
        assert final["a"]["loss"]["half_width"] == pytest.approx(stats.t.ppf(0.975, 1))
        assert final["b"]["loss"] == {"mean": 2.0, "half_width": None}
        json.dumps(final, allow_nan=False)


class TestTimeToTarget:
    def test_interpolates_the_logarithm(self):
        assert time_to_target([0, 2], [1.0, 1e-4], 1e-3) == pytest.approx(1.5)

    def test_interpolates_linearly_where_a_value_is_not_positive(self):
        assert time_to_target([0, 2], [3.0, -1.0], 1.0) == pytest.approx(1)
        assert time_to_target([0, 2], [1.0, 0.0], 0.25) == pytest.approx(1.5)

    def test_exponential_decay_at_any_records(self):
        time = np.sort(np.random.default_rng(0).uniform(0, 10, 30))
        assert time_to_target(time, np.exp(-time), np.exp(-5)) == pytest.approx(5)

    def test_above(self):
        assert time_to_target([0, 1, 2], [-1.0, 0.0, 1.0], 0.5, "above") == 1.5

    def test_never_reached(self):
        assert time_to_target([0, 1], [1.0, 0.5], 0.1) == np.inf

    def test_reached_at_the_first_record(self):
        assert time_to_target([3, 4], [0.1, 2.0], 1.0) == 3

    def test_exactly_at_a_record(self):
        assert time_to_target([0, 1, 2], [3.0, 2.0, 1.0], 2.0) == 1

    def test_first_crossing_of_a_curve_that_comes_back(self):
        assert time_to_target([0, 1, 2, 3], [3.0, 1.0, 3.0, 0.5], 1.0) == 1

    def test_not_finite(self):
        nan, inf = np.nan, np.inf
        assert time_to_target([0, 1, 2, 3], [3.0, 1.0, nan, nan], 2.0) < 1
        assert time_to_target([0, 1, 2], [3.0, nan, nan], 2.0) == inf
        assert time_to_target([0, 1, 2], [nan, inf, 1.0], 2.0) == 2
        assert time_to_target([0, 1], [3.0, -inf], 2.0) == inf

    def test_per_seed(self):
        x, y = [0.0, 2.0], [[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]]
        times = time_to_target(x, y, 1.5)
        np.testing.assert_array_equal(times, [time_to_target(x, row, 1.5) for row in y])
        np.testing.assert_array_equal(times, time_to_target([x, x, x], y, 1.5))
        assert times[1] == np.inf

    @pytest.mark.parametrize("bad", [{"direction": "belo"}, {"target": np.nan}, {"target": np.inf}])
    def test_bad_input(self, bad):
        with pytest.raises(InvalidInput):
            time_to_target([0, 1], [1, 0], **{"target": 0.5, **bad})

    def test_summary(self):
        summary = time_to_target_summary([1.0, 2.0, 6.0])
        assert (summary.seeds, summary.reached, summary.mean, summary.median) == (3, 3, 3, 2)
        assert summary.half_width == mean_interval([1.0, 2.0, 6.0])[1]
        assert str(summary) == "3.0 ± 6.6"

    def test_summary_of_censored_seeds_has_no_mean(self):
        summary = time_to_target_summary([1.0, np.inf, 3.0])
        assert summary.mean is summary.half_width is None
        assert (summary.reached, summary.mean_of_reached, summary.median) == (2, 2, 3)
        assert str(summary) == "1 of 3 seeds did not reach it; the others: 2 ± 13"

    def test_summary_without_any(self):
        summary = time_to_target_summary([np.inf, np.inf])
        assert summary.reached == 0
        assert summary.mean is summary.mean_of_reached is summary.median is None
        assert str(summary) == "2 of 2 seeds did not reach it"

    def test_summary_of_one_seed_has_no_interval(self):
        summary = time_to_target_summary([2.0])
        assert (summary.mean, summary.half_width) == (2, None)


@pytest.mark.parametrize(
    ("mean", "half_width", "words"),
    [
        (0.123456, 0.0056, "0.1235 ± 0.0056"),
        (12800.4, 53.2, "12800 ± 53"),
        (128040, 5312, "128000 ± 5300"),
        (0.5, 0.0996, "0.50 ± 0.10"),
        (1.23456e-7, 3.41e-9, "(1.235 ± 0.034)e-07"),
        (-1e-9, 3.4e-7, "(0.0 ± 3.4)e-07"),
        (123456789.0, 1234.0, "(1.234568 ± 0.000012)e+08"),
        (0.123456, None, "0.1235"),
        (0.123456, np.nan, "0.1235"),
        (9.9996, None, "10.00"),
        (1.5e-5, None, "1.500e-05"),
        (12800, None, "12800"),
        (12800, 0.0, "12800 ± 0"),
        (np.nan, None, "nan"),
        (np.inf, np.nan, "inf"),
    ],
)
def test_format_interval(mean, half_width, words):
    assert format_interval(mean, half_width) == words


class TestTable:
    SUMMARIES = {  # noqa: RUF012
        "gossip": {
            "test_accuracy": {"mean": 0.95123, "half_width": 0.0012},
            "gradients": 12800,
            "paired": "trace",
        },
        "a2cid2": {
            "test_accuracy": {"mean": float("nan"), "half_width": None},
            "loss": 1e-5,
            "paired": "50 % & a_b",
        },
    }

    def test_text(self):
        assert comparison_table(self.SUMMARIES) == (
            "algorithm    test_accuracy  gradients      paired       loss\n"
            "---------  ---------------  ---------  ----------  ---------\n"
            "gossip     0.9512 ± 0.0012      12800       trace          -\n"
            "a2cid2                 nan          -  50 % & a_b  1.000e-05\n"
        )

    def test_latex(self):
        assert comparison_table(self.SUMMARIES, "latex").splitlines() == [
            r"\begin{tabular}{lrrrr}",
            r"\toprule",
            r"algorithm & test\_accuracy & gradients & paired & loss \\",
            r"\midrule",
            r"gossip & $0.9512 \pm 0.0012$ & $12800$ & trace & -- \\",
            r"a2cid2 & nan & -- & 50 \% \& a\_b & $1.000 \times 10^{-5}$ \\",
            r"\bottomrule",
            r"\end{tabular}",
        ]

    def test_csv_keeps_every_digit(self):
        assert comparison_table(self.SUMMARIES, "csv").splitlines() == [
            "algorithm,test_accuracy,test_accuracy_half_width,gradients,paired,loss",
            "gossip,0.95123,0.0012,12800,trace,",
            "a2cid2,nan,,,50 % & a_b,1e-05",
        ]

    def test_json_is_strict(self):
        rows = json.loads(comparison_table(self.SUMMARIES, "json"), parse_constant=pytest.fail)
        assert rows[0]["test_accuracy"] == {"mean": 0.95123, "half_width": 0.0012}
        assert rows[1]["test_accuracy"] == {"mean": None, "half_width": None}
        assert rows[1]["gradients"] is None

    def test_unknown_format(self):
        with pytest.raises(InvalidInput, match="Did you mean 'latex'"):
            comparison_table(self.SUMMARIES, "latx")


def results(seeds=3, records=40):
    generator = np.random.default_rng(0)
    time = np.linspace(0, 20, records)
    return {
        name: {
            "time_s": np.tile(time, (seeds, 1)),
            "gradients": np.cumsum(generator.poisson(8, (seeds, records)), axis=1),
            "suboptimality": np.exp(-rate * time) * generator.uniform(0.9, 1.1, (seeds, 1)),
            "consensus_distance": (time > 0)
            * np.exp(-time / 9)
            * generator.uniform(0.5, 2, (seeds, records)),
            "test_accuracy": 0.9 - 0.8 * np.exp(-time) + 0.01 * generator.uniform(size=(seeds, 1)),
            "test_accuracy_worst": 0.8 - 0.7 * np.exp(-time) + 0.01 * generator.uniform(size=(seeds, 1)),
        }
        for name, rate in [("gossip", 0.2), ("a2cid2", 0.4)]
    }


def caption(figure):
    return " ".join(figure.get_supxlabel().split())


class TestPlots:
    def test_data_behind_the_figure(self):
        data = results()
        figure = plot_metric(data, "suboptimality")
        (axes,) = figure.axes
        assert axes.get_xlabel() == "simulated time (s)"
        assert axes.get_yscale() == "log"
        assert len(axes.lines) == len(axes.collections) == 2
        for line, band, metrics in zip(axes.lines, axes.collections, data.values(), strict=True):
            mean, half_width = mean_interval(metrics["suboptimality"])
            np.testing.assert_allclose(
                line.get_xydata(), np.stack([metrics["time_s"][0], mean], 1), rtol=1e-14
            )
            box = band.get_datalim(axes.transData)
            assert box.y1 == pytest.approx((mean + half_width).max())
        assert [text.get_text() for text in figure.legends[0].get_texts()] == list(data)
        assert caption(figure).startswith("Mean of 3 seeds; band: 95 % interval")

    def test_overview(self, tmp_path):
        path = plot_overview(results(), tmp_path / "overview.png", title="ring")
        assert path.read_bytes().startswith(b"\x89PNG")
        assert [entry.name for entry in tmp_path.iterdir()] == ["overview.png"]

    def test_one_copy_is_shown_against_samples_and_updates_instead_of_its_consensus(self, tmp_path):
        data = results()
        for number, metrics in enumerate(data.values()):
            metrics |= {"consensus_distance": np.zeros((3, 40)), "samples": 8 * metrics["gradients"]}
            metrics |= {"updates": metrics["gradients"] // (1 + number)}

        def shown():
            svg = plot_overview(data, tmp_path / "overview.svg").read_text()
            return [word for word in ("samples", "updates", "Consensus", "worst") if word in svg]

        assert shown() == ["samples", "updates"]
        data["gossip"]["consensus_distance"][0, -1] = 1e-9  # one of them has copies
        assert shown() == ["Consensus", "worst"]

    @pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
    def test_same_bytes_in_another_process(self, tmp_path, kind):
        plot_overview(results(), tmp_path / f"here.{kind}")
        code = f"from tests.test_analysis import *; plot_overview(results(), {str(tmp_path / f'there.{kind}')!r})"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
        assert (tmp_path / f"here.{kind}").read_bytes() == (tmp_path / f"there.{kind}").read_bytes()

    def test_pyplot_and_settings_are_left_alone(self, tmp_path):
        code = (
            "import sys, matplotlib; from tests.test_analysis import *; before = dict(matplotlib.rcParams);"
            f"plot_overview(results(), {str(tmp_path / 'a.png')!r});"
            "assert 'matplotlib.pyplot' not in sys.modules; assert 'jax' not in sys.modules;"
            "assert dict(matplotlib.rcParams) == before"
        )
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

    def test_settings_of_the_user_do_not_change_the_style(self, tmp_path):
        ours = plot_overview(results(), tmp_path / "a.png").read_bytes()
        with mpl.rc_context({"font.size": 30, "axes.grid": False, "lines.linewidth": 9}):
            assert plot_overview(results(), tmp_path / "b.png").read_bytes() == ours

    def test_band_on_a_log_axis_stays_positive(self):
        data = {"gossip": {"time_s": [[0, 1, 2]] * 2, "loss": [[1, 1e-2, 1e-4], [3, 3e-2, 9e-4]]}}
        figure = plot_metric(data, "loss")
        (band,) = figure.axes[0].collections
        assert band.get_paths()[0].vertices[:, 1].min() > 0
        assert "cut" in caption(figure)

    def test_linear_axis_within_a_decade(self):
        data = {"gossip": {"time_s": [[0, 1, 2]], "loss": [[1, 0.5, 0.2]]}}
        figure = plot_metric(data, "loss")
        assert figure.axes[0].get_yscale() == "linear"
        assert caption(figure) == "One seed: no interval."
        assert not figure.axes[0].collections

    def test_linear_axis_with_negative_values(self):
        data = {"gossip": {"time_s": [[0, 1, 2]], "loss": [[1, -0.5, -20]]}}
        assert plot_metric(data, "loss").axes[0].get_yscale() == "linear"

    def test_start_in_consensus_is_no_reason_against_a_log_axis(self):
        figure = plot_metric(results(), "consensus_distance")
        assert figure.axes[0].get_yscale() == "log"
        assert "zero or negative" in caption(figure)
        assert "not a better model" in caption(figure)

    def test_diverged_seed_ends_the_line(self):
        data = results()
        data["gossip"]["suboptimality"][0, 20:] = np.nan
        data["a2cid2"]["suboptimality"][:] = np.inf
        figure = plot_metric(data, "suboptimality")
        assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [20, 0]
        assert "no finite value" in caption(figure)

    def test_against_a_count(self):
        figure = plot_metric(results(), "suboptimality", x="gradients")
        assert figure.axes[0].get_xlabel() == "gradients"
        assert "Gradients: mean over the seeds." in caption(figure)

    def test_worst_worker_is_thin(self, tmp_path, monkeypatch):
        figures = []
        monkeypatch.setattr(
            "decentral.analysis.plots.save_figure", lambda figure, path: figures.append(figure)
        )
        plot_overview(results(), tmp_path / "a.png", time_label="time (gradients per worker)")
        panels = figures[0].axes
        assert [len(panel.lines) for panel in panels] == [2, 2, 4]
        mean, _, worst, _ = (line.get_linewidth() for line in panels[2].lines)
        assert [line.get_linewidth() for line in panels[2].lines] == [mean, mean, worst, worst]
        assert worst < mean / 2
        assert {panel.get_xlabel() for panel in panels} == {"time (gradients per worker)"}

    def test_colours(self):
        assert colours(["a2cid2", "mine"])["a2cid2"] == colours(["gossip", "dadao", "a2cid2"])["a2cid2"]
        assert colours(["mine"])["mine"] == colours(["gossip", "mine"])["mine"]
        assert len(set(colours([*"abcdefg", "gossip", "a2cid2", "dadao"]).values())) == 10
        assert len(set(colours(map(str, range(10))).values())) == 10
        assert len(colours(map(str, range(20)))) == 20

    def test_every_shipped_algorithm_has_a_look_of_its_own(self):
        """And keeps it whoever stands beside it, however it is spelled."""
        from decentral.algorithm import ALGORITHMS  # JAX, which nothing else here needs

        looks = styles(ALGORITHMS)
        assert len({(look["color"], str(look["linestyle"])) for look in looks.values()}) == len(ALGORITHMS)
        for kind, look in looks.items():
            spelled = kind.replace("_", "-").upper()
            assert styles([kind])[kind] == styles(["a", "gossip", spelled, "z"])[spelled] == look

    def test_more_algorithms_than_colours(self):
        many = styles(map(str, range(40)))
        assert len({(look["color"], str(look["linestyle"])) for look in many.values()}) == 40
        assert {look["linestyle"] for look in styles(map(str, range(10))).values()} == {"-"}

    @pytest.mark.parametrize("venue", WIDTHS_IN)
    def test_a_figure_is_as_wide_as_its_column(self, venue, tmp_path):
        """And its letters are of 7 to 9 points, and TrueType."""
        for whole_text, width in enumerate(WIDTHS_IN[venue]):
            size, settings = paper_style(venue, whole_text=bool(whole_text), height=0.5)
            assert size == (width, width / 2)
        sizes = [
            value for key, value in settings.items() if key.endswith(("size", "sizes")) and "minor" not in key
        ]
        letters = [value for value in sizes if value != settings["lines.markersize"]]
        assert min(letters) == 7
        assert max(letters) == 9
        with mpl.rc_context(settings):
            figure = Figure(figsize=size)
            figure.text(0.5, 0.5, "x")
            path = save_figure(figure, tmp_path / "a.pdf")
        assert b"/Type3" not in path.read_bytes()
        assert f"/MediaBox [ 0 0 {72 * size[0]:g} {72 * size[1]:g} ]".encode() in path.read_bytes()

    def test_a_venue_that_is_not_there(self):
        with pytest.raises(InvalidInput, match="Did you mean 'icml'"):
            paper_style("icmll")

    def test_bad_input(self, tmp_path):
        with pytest.raises(InvalidInput, match="Did you mean 'suboptimality'"):
            plot_metric(results(), "suboptimalty")
        with pytest.raises(InvalidInput, match="x: got 'joules'"):
            plot_metric(results(), "suboptimality", x="joules")
        with pytest.raises(InvalidInput, match="x: got 'bytes'"):
            plot_metric(results(), "suboptimality", x="bytes")
        with pytest.raises(InvalidInput, match="at least one metric"):
            plot_overview({}, tmp_path / "a.png")
        with pytest.raises(InvalidInput, match=r"a name ending in \.png"):
            save_figure(plot_metric(results(), "suboptimality"), tmp_path / "a.gif")
        assert not list(tmp_path.iterdir())
