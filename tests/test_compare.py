"""Comparisons: paired statistics on common seeds, and the table that prints what they say."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from scipy import stats

from decentral.analysis.statistics import (
    bootstrap_interval,
    mean_interval,
    paired,
    paired_times,
    sign_test,
)
from decentral.errors import InvalidInput
from decentral.experiment import compare as comparing
from decentral.experiment.compare import AXES, compare


class TestBootstrap:
    def test_a_percentile_interval_of_two_values(self):
        """Means of two draws from {0, 1}: 0, 1/2, 1 with chances 1/4, 1/2, 1/4. 95 % is all of it, 40 % the middle."""
        assert bootstrap_interval([0.0, 1.0], method="percentile") == (0.0, 1.0)
        assert bootstrap_interval([0.0, 1.0], 0.4, method="percentile") == (0.5, 0.5)

    def test_the_correction_of_a_skewed_sample_shifts_it(self):
        """BCa of a sample with a long right tail reaches further to the right than the percentiles."""
        values = np.exp(np.linspace(-2, 2, 15))
        low, high = bootstrap_interval(values)
        plain_low, plain_high = bootstrap_interval(values, method="percentile")
        assert low > plain_low
        assert high > plain_high
        assert values.min() < low < values.mean() < high < values.max()

    def test_same_values_same_interval(self):
        values = np.random.default_rng(0).normal(size=12)
        assert bootstrap_interval(values) == bootstrap_interval(values)
        assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)

    @pytest.mark.parametrize("method", ["BCa", "percentile"])
    def test_coverage(self, method):
        """Of 200 intervals of 30 normal numbers at 95 %: at least 86 % hold the mean (91.5 to 93 % in the long run).

        With a chance of 91.5 %, fewer than 172 of 200 happen once in about 160 seeds; this one is fixed.
        """
        draws = np.random.default_rng(1).normal(3.0, 2.0, (200, 30))
        found = [bootstrap_interval(row, method=method, resamples=999) for row in draws]
        held = sum(low <= 3.0 <= high for low, high in found)
        assert 172 <= held < 200
        assert stats.binom.cdf(171, 200, 0.915) < 1 / 150

    def test_what_has_no_interval(self):
        assert bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
        assert np.isnan(bootstrap_interval([2.0])).all()
        assert np.isnan(bootstrap_interval([2.0, np.inf, 1.0])).all()

    @pytest.mark.parametrize(
        "bad", [{"level": 1.0}, {"method": "bca"}, {"values": []}, {"values": [[1.0, 2.0]]}]
    )
    def test_bad_input(self, bad):
        with pytest.raises(InvalidInput):
            bootstrap_interval(**({"values": [1.0, 2.0]} | bad))


class TestPaired:
    def test_by_hand(self):
        """Differences 1, 2, 3: mean 2, deviation 1, t of two degrees of freedom 4.302653; ratios 2, 2, 2."""
        found = paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
        assert found.difference == pytest.approx(2.0)
        assert found.difference_half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
        assert found.ratio == pytest.approx(2.0)
        assert found.ratio_interval == pytest.approx((2.0, 2.0))
        assert found.sign == 0
        assert paired([2.0, 4.0, 6.0], [1.0, 3.0, 5.0]).sign == 1
        assert paired([1.0, 3.0, 5.0], [2.0, 4.0, 6.0]).sign == -1

    def test_ratio_by_hand(self):
        """Ratios 2 and 8: their geometric mean is 4, and the logarithm's interval is log 2 times t (12.7062) wide."""
        found = paired([2.0, 8.0], [1.0, 1.0])
        assert found.ratio == pytest.approx(4.0)
        width = 12.7062047 * math.log(2)
        assert found.ratio_interval == pytest.approx((4 * math.exp(-width), 4 * math.exp(width)), rel=1e-6)

    def test_what_all_seeds_share_is_taken_out(self):
        """The spread between seeds is 100 times the difference: unpaired intervals overlap, the paired one is far from 0."""
        seeds = np.random.default_rng(2).normal(0.0, 100.0, 8)
        noise = np.random.default_rng(3).normal(0.0, 0.1, 8)
        first, second = seeds, seeds + 1.0 + noise
        assert mean_interval(first)[1] > 50
        assert paired(first, second).sign == -1

    def test_false_alarms(self):
        """Two equal algorithms: 5 % of the intervals exclude 0. Of 2,000, 62 ... 140 (four deviations: 1 in 15,000 seeds)."""
        generator = np.random.default_rng(4)
        alarms = 0
        for _ in range(2000):
            shared = generator.normal(0, 10, 5)
            alarms += paired(shared + generator.normal(size=5), shared + generator.normal(size=5)).sign != 0
        assert abs(alarms - 100) < 4 * math.sqrt(2000 * 0.05 * 0.95)

    def test_what_is_not_known(self):
        one = paired([1.0], [2.0])
        assert (one.difference, one.difference_half_width, one.sign) == (-1.0, None, 0)
        assert (one.ratio, one.ratio_interval) == (0.5, None)
        diverged = paired([1.0, np.inf], [2.0, 3.0])
        assert (diverged.difference, diverged.ratio, diverged.sign) == (None, None, 0)
        negative = paired([1.0, -1.0], [2.0, 3.0])
        assert negative.difference == -2.5
        assert negative.ratio is None
        with pytest.raises(InvalidInput, match="of the same seeds"):
            paired([1.0, 2.0], [1.0])


class TestPairedTimes:
    NEVER = math.inf

    def test_all_there(self):
        found = paired_times([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
        assert found.ratio == pytest.approx(0.5)
        assert (found.wins, found.losses, found.p_value, found.reason) == (3, 0, 0.25, "")
        assert found.at_least is found.at_most is None

    def test_the_first_is_censored(self):
        """Watched for 16 s, once not there: the ratio is at least (2 * 1 * 16 / 2)^(1/3)."""
        found = paired_times([2.0, 1.0, self.NEVER], [1.0, 1.0, 2.0], ends=(16.0, 16.0))
        assert found.ratio is found.ratio_interval is found.at_most is None
        assert found.at_least == pytest.approx(16 ** (1 / 3))
        assert found.reason == "the first did not reach the target on 1 of 3 seeds"
        assert (found.wins, found.losses) == (0, 2)  # the second seed is a tie

    def test_the_second_is_censored(self):
        found = paired_times([1.0, 1.0], [4.0, self.NEVER], ends=(16.0, 16.0))
        assert found.at_least is None
        assert found.at_most == pytest.approx(1 / 8)
        assert (found.wins, found.losses) == (2, 0)

    def test_both_are_censored(self):
        """Nothing bounds the ratio of two times that nobody saw."""
        found = paired_times([1.0, self.NEVER], [self.NEVER, self.NEVER], ends=(9.0, 9.0))
        assert found.ratio is found.at_least is found.at_most is None
        assert "the first did not" in found.reason
        assert "the second did not" in found.reason
        assert (found.wins, found.losses, found.p_value) == (1, 0, 1.0)

    def test_who_was_first_is_not_known_where_the_other_was_not_watched(self):
        """The first was there at 10 s, the second was watched for 5 s only."""
        assert paired_times([10.0], [self.NEVER], ends=(20.0, 5.0)).wins == 0
        assert paired_times([4.0], [self.NEVER], ends=(20.0, 5.0)).wins == 1
        assert paired_times([self.NEVER], [4.0], ends=(5.0, 20.0)).losses == 1

    def test_no_bound_without_an_end(self):
        assert paired_times([1.0, self.NEVER], [1.0, 1.0]).at_least is None

    def test_a_bound_is_one(self):
        """Whatever the censored times are: the ratio one would have seen is not below the bound."""
        generator = np.random.default_rng(5)
        for _ in range(100):
            first, second = generator.lognormal(0, 1, (2, 6))
            seen = np.where(first > 1.0, np.inf, first)
            bound = paired_times(seen, second, ends=(1.0, 10.0)).at_least
            if np.isinf(seen).any():
                assert bound <= paired_times(first, second).ratio * (1 + 1e-12)

    def test_sign_test(self):
        """2 (1 + 10) / 2^10 of one loss in ten, and never more than 5 % false alarms at 5 %."""
        assert sign_test(9, 1) == sign_test(1, 9) == pytest.approx(22 / 1024)
        assert sign_test(5, 5) == sign_test(0, 0) == 1.0
        assert sign_test(8, 3) == pytest.approx(stats.binomtest(8, 11).pvalue)
        for seeds in range(1, 30):
            chances = stats.binom.pmf(range(seeds + 1), seeds, 0.5)
            alarms = sum(chances[k] for k in range(seeds + 1) if sign_test(k, seeds - k) <= 0.05)
            assert alarms <= 0.05

    @pytest.mark.parametrize("bad", [[0.0, 1.0], [np.nan, 1.0], [1.0]])
    def test_bad_input(self, bad):
        with pytest.raises(InvalidInput):
            paired_times(bad, [1.0, 1.0])


# -- the table ---------------------------------------------------------------------------------------------------------

SEEDS = np.array([0.0, 10.0, 20.0, 30.0])


def folder(path: Path, losses: dict[str, np.ndarray], *, seeds=(0, 1, 2, 3), steps=None, **spec) -> Path:
    """A finished run folder that holds the final losses given, and nothing that costs time."""
    path.mkdir()
    arrays, algorithms = {}, {}
    for name, values in losses.items():
        mean, half_width = mean_interval(values)
        arrays[f"{name}/gradients"] = np.full((len(values), 2), 9.0)
        arrays[f"{name}/loss"] = np.stack([values + 1, values], axis=1)
        final = {
            "loss": {"mean": float(mean), "half_width": float(half_width)},
            "gradients": {"mean": 9.0, "half_width": 0.0},
        }
        algorithms[name] = {"final": final, "seeds": list(seeds)}
    np.savez(path / "metrics.npz", **arrays)
    summary = {"name": "x", "seeds": list(seeds), "paired": "trace", "algorithms": algorithms}
    (path / "summary.json").write_text(json.dumps(summary))
    manifest = {
        "status": "finished", "steps": steps or dict.fromkeys(losses, "given"), "device": {"kind": "cpu"},
        "wall_s": {name: {"run": 1700.0, "compile": 100.0} for name in losses},
    }  # fmt: skip
    (path / "manifest.json").write_text(json.dumps(manifest))
    spec = {"problem": {"kind": "quadratic"}, "topology": {"kind": "ring", "n": 4}} | spec
    (path / "spec.toml").write_text(tomli_w.dumps(spec))
    return path


def bold(table: str) -> list[str]:
    """The rows with a bold cell."""
    return [line.split(" & ")[0] for line in table.splitlines() if r"\mathbf" in line and " & " in line]


JITTER = np.array([0.1, -0.1, 0.05, -0.05])


def test_latex_to_the_letter(tmp_path):
    """The seeds' own spread is 17 times the difference, which every seed shows alike: bold."""
    path = folder(tmp_path / "a", {"plain_sgd": SEEDS + 11, "a2cid2": SEEDS + 10 + JITTER})
    assert compare([path], "latex").splitlines() == [
        r"\begin{tabular}{lrrrr}",
        r"\toprule",
        r"algorithm & loss & gradients & seeds & paired \\",
        r"\midrule",
        r"plain\_sgd & $26 \pm 21$ & $9 \pm 0$ & $4$ & trace \\",
        r"a2cid2 & $\mathbf{25 \pm 20}$ & $9 \pm 0$ & $4$ & trace \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"% mean \pm half width of its 95 % interval over the seeds (Student's t); bold: better than every other row, the "
        r"95 % interval of the paired difference on common seeds excludes 0 (not corrected for the number of rows)",
    ]


@pytest.mark.parametrize(
    ("others", "rows"),
    [
        ({"b": SEEDS + 1}, ["a"]),
        ({"b": SEEDS + 10 * JITTER}, []),  # as often better as worse
        ({"b": SEEDS + 1, "c": SEEDS + 10 * JITTER}, []),  # better than one of two
        ({"b": SEEDS + 1, "c": SEEDS - 1 + JITTER}, ["c"]),
        ({"b": SEEDS}, []),  # the same
        ({"b": np.array([np.nan, 1, 2, 3])}, []),
        ({}, []),  # nobody to be better than
    ],
)
def test_bold_is_what_the_paired_interval_says(others, rows, tmp_path):
    assert bold(compare([folder(tmp_path / "run", {"a": SEEDS} | others)], "latex")) == rows


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({}, ["x: a"]),
        ({"seeds": (4, 5, 6, 7)}, []),
        ({"problem": {"kind": "logistic"}}, []),
        ({"topology": {"kind": "ring", "n": 5}}, []),
        ({"topology": {"kind": "star", "n": 4}}, ["x: a"]),
    ],
)
def test_runs_are_paired_where_their_tapes_are_common(changes, rows, tmp_path):
    paths = [folder(tmp_path / "x", {"a": SEEDS}), folder(tmp_path / "y", {"b": SEEDS + 1}, **changes)]
    assert bold(compare(paths, "latex")) == rows
    (_, other) = json.loads(compare(paths, "json"))
    assert (other["loss_minus_best"]["mean"] is not None) == bool(rows)


@pytest.mark.parametrize(
    ("target", "judged"),
    [
        (("loss", 0.5), True),
        (("loss", 0.5 + 1e-9), False),  # under one heading, which shows six digits
        (("suboptimality", 0.5), False),  # under one heading for machines
    ],
)
def test_times_to_different_targets_are_not_judged_against_each_other(target, judged, tmp_path):
    """``a`` is there 5 earlier, on every seed: within 0.1."""
    path = folder(tmp_path / "run", {"a": 0 * SEEDS, "b": 0 * SEEDS})
    summary, arrays = json.loads((path / "summary.json").read_text()), dict(np.load(path / "metrics.npz"))
    for name, (metric, level), times in (("a", ("loss", 0.5), 1 + SEEDS), ("b", target, 6 + SEEDS + JITTER)):
        mean, half_width = map(float, mean_interval(times))
        reached = {"mean": mean, "half_width": half_width, "seeds": 4, "reached": 4}
        said = {"metric": metric, "target": level} | dict.fromkeys(AXES, reached)
        summary["algorithms"][name]["to_target"] = said
        arrays[f"{name}/{metric}"] = arrays[f"{name}/loss"]  # from 1 to 0 in a straight line
        arrays |= {f"{name}/{axis}": np.stack([0 * times, times / (1 - level)], axis=1) for axis in AXES}
    (path / "summary.json").write_text(json.dumps(summary))
    np.savez(path / "metrics.npz", **arrays)
    assert bold(compare([path], "latex")) == ["a"] * judged
    rows = {row["algorithm"]: row for row in json.loads(compare([path], "json"))}
    for axis in AXES:
        assert ("best" in rows["a"][f"{axis}_to_target"]) == judged
        assert "best" not in rows["b"][f"{axis}_to_target"]
        difference = (rows["b"].get(f"{axis}_to_target_minus_best") or {}).get("mean")
        assert difference == (pytest.approx(5.0) if judged else None)


def test_machines_get_the_paired_differences(tmp_path):
    path = folder(tmp_path / "run", {"a": SEEDS + 1, "b": SEEDS + JITTER})
    worse, best = json.loads(compare([path], "json"))
    assert worse["loss_minus_best"]["mean"] == pytest.approx(1.0)
    assert worse["loss_minus_best"]["half_width"] == pytest.approx(float(mean_interval(1 - JITTER)[1]))
    assert best["loss_minus_best"] is None
    assert best["loss"]["best"] is True
    assert "best" not in worse["loss"]
    assert (worse["seeds"], worse["steps"]) == (4, "given")
    assert (worse["compute_hours"], worse["tuning_hours"]) == (0.5, 0.0)
    first, second = csv.DictReader(io.StringIO(compare([path], "csv")))
    assert float(first["loss_minus_best"]) == worse["loss_minus_best"]["mean"]
    assert second["loss_minus_best"] == ""
    assert float(second["loss_half_width"]) == best["loss"]["half_width"]


def test_theory_and_tuned_share_no_table_without_saying_so(tmp_path):
    losses = {"a": SEEDS, "b": SEEDS + 1}
    alike = folder(tmp_path / "alike", losses, steps={"a": "tuned", "b": "tuned"})
    mixed = folder(tmp_path / "mixed", losses, steps={"a": "theory", "b": "tuned"})
    assert "steps" not in compare([alike])
    assert [line.split()[-1] for line in compare([mixed]).splitlines()[2:]] == ["theory", "tuned"]
    assert "steps" in compare([mixed], "latex").splitlines()[2]
    both = compare([alike, mixed]).splitlines()[2:]
    assert [line.split()[-1] for line in both] == ["tuned", "tuned", "theory", "tuned"]


def test_hours(tmp_path):
    path = folder(tmp_path / "run", {"a": SEEDS, "b": SEEDS + 1})
    manifest = json.loads((path / "manifest.json").read_text()) | {"tuning_wall_s": {"a": 900.0}}
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert (
        compare([path], hours=True) == compare([path]) + "compute: 1.25 hours on cpu, 0.25 of them tuning\n"
    )
    assert compare([path], "latex", hours=True).splitlines()[-1].startswith("% compute: 1.25 hours on cpu")
    assert compare([path], "csv", hours=True) == compare([path], "csv")


def test_samples_updates_and_seconds_are_shown_where_an_update_is_not_a_gradient(tmp_path):
    """Equal samples are then not equal updates. Where each gradient is an update they say nothing new."""
    counts, copies = {"samples": 72.0, "updates": 9.0, "time_s": 4.0}, ("consensus_distance", "exchanges")
    tables = {}
    for updates in (9.0, 3.0):
        path = folder(tmp_path / f"{updates}", {"a": SEEDS, "b": SEEDS + 1})
        summary, arrays = json.loads((path / "summary.json").read_text()), dict(np.load(path / "metrics.npz"))
        for name, own in (("a", counts), ("b", counts | {"updates": updates})):
            arrays |= {f"{name}/{axis}": np.full((4, 2), value) for axis, value in own.items()}
            arrays |= {f"{name}/{metric}": np.full((4, 2), updates - 9) for metric in copies}
            said = {axis: {"mean": value, "half_width": 0.0} for axis, value in own.items()}
            said |= {metric: {"mean": updates - 9, "half_width": 0.0} for metric in copies}
            summary["algorithms"][name]["final"] |= said
        (path / "summary.json").write_text(json.dumps(summary))
        np.savez(path / "metrics.npz", **arrays)
        tables[updates] = compare([path]).splitlines()
    headings = ("samples", "updates", "seconds")
    assert not any(word in tables[9.0][0].split() for word in headings)
    assert all(word in tables[3.0][0].split() for word in headings)
    # Where no worker's copy ever differs from another's, nor do these say anything.
    for word in ("consensus²", "exchanges"):
        assert [word in tables[updates][0].split() for updates in (9.0, 3.0)] == [False, True]


def test_a_table_is_built_once_and_what_a_run_lacks_is_told_with_its_folder(tmp_path, monkeypatch):
    built, build = [], comparing.table_rows

    def counted(rows, **how):
        built.append(len(rows))
        return build(rows, **how)

    monkeypatch.setattr(comparing, "table_rows", counted)
    losses = {"a": np.arange(4.0), "b": np.arange(4.0) + 1}
    runs = [folder(tmp_path / str(number), losses) for number in range(3)]
    compare(runs, "csv")
    assert built == [6]
    summary = json.loads((runs[1] / "summary.json").read_text())
    del summary["algorithms"]["b"]["seeds"]
    (runs[1] / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(InvalidInput, match=r"1/summary\.json.*It lacks 'seeds'"):
        compare(runs, "csv")
