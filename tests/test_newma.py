"""Change detection: the authors' numbers, how detections are counted, feature maps, and clear refusals."""

import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from decentral.errors import InvalidInput
from decentral.optical.newma import (
    MovingAverages,
    Newma,
    as_detector,
    detection,
    matched,
    mixture_stream,
    newma_parameters,
)

DATA = json.loads((Path(__file__).parent / "data" / "optical" / "newma.json").read_text())
STREAM = np.array(DATA["stream"])
AUTHORS = np.array(DATA["statistic_threshold_flag"])
PARAMS = {"fast": DATA["params"]["Lambda"], "slow": DATA["params"]["lam"]}
FEATURES = {20: 21, 50: 130, 80: 339, 100: 534, 150: 1220, 250: 3457}


@pytest.mark.parametrize("window", FEATURES)
def test_factors_and_number_of_features_are_the_authors(window):
    found = newma_parameters(window)
    assert found[:2] == pytest.approx(DATA["factors"][str(window)], abs=1e-6)
    assert found.features == FEATURES[window]


@pytest.mark.parametrize("window", [2, 3, 17, 1000, 20_000])
def test_a_pair_of_factors_is_worth_its_window(window):
    fast, slow, _ = newma_parameters(window)
    assert slow < 1 / (window + 1) < fast
    weights = [math.log(factor) + window * math.log1p(-factor) for factor in (fast, slow)]
    assert weights[0] == pytest.approx(weights[1], abs=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
def test_statistic_threshold_and_flag_are_the_authors(dtype, tolerance):
    detector = Newma(**PARAMS, rate=DATA["params"]["eta"], quantile=DATA["params"]["quantile"])
    found = detector.run(STREAM.astype(dtype))
    np.testing.assert_allclose(found.statistic, AUTHORS[:, 0], atol=tolerance)
    np.testing.assert_allclose(found.threshold, AUTHORS[:, 1], atol=tolerance)
    # The first statistic is 0 but for rounding, theirs 2e-16: their first flag means nothing.
    np.testing.assert_array_equal(found.flag[1:], AUTHORS[1:, 2].astype(bool))
    assert not found.flag[0]


def test_step_by_step_and_many_streams_are_what_one_run_is():
    detector = Newma(20)
    streams = np.random.default_rng(0).standard_normal((3, 50, 4))
    together = detector.run(streams)
    for k, stream in enumerate(streams):
        state = detector.init(4, jnp.float64)
        readings = []
        for sample in stream:
            state, reading = detector.step(state, jnp.asarray(sample))
            readings.append([float(value) for value in reading])
        np.testing.assert_allclose(np.transpose(readings), [column[k] for column in together], atol=1e-14)


def test_moving_averages_are_means_of_two_windows():
    detector, stream = MovingAverages(window=7), np.random.default_rng(1).standard_normal((60, 3))
    before = np.concatenate(
        [np.repeat(stream[:1], 13, axis=0), stream]
    )  # the first stands for what was before
    expected = [np.linalg.norm(before[t + 7 : t + 14].mean(0) - before[t : t + 7].mean(0)) for t in range(60)]
    np.testing.assert_allclose(detector.run(stream).statistic, expected, atol=1e-14)


@pytest.mark.parametrize("detector", [Newma(100), pytest.param(MovingAverages(100), marks=pytest.mark.slow)])
def test_an_adaptive_threshold_is_passed_about_as_often_as_its_quantile_says(detector):
    # Nothing changes. S^2 is not normal and its samples depend on each other: 5 % is a rough promise (2 to 9 %).
    flags = detector.run(np.random.default_rng(2).standard_normal((4, 20_000, 50))).flag[:, 2000:]
    assert 0.02 < flags.mean() < 0.09


@pytest.mark.parametrize("detector", [Newma(50, threshold=1.0), MovingAverages(50, threshold=1.0)])
def test_a_jump_of_the_mean_is_found_within_a_window(detector):
    stream = 0.1 * np.random.default_rng(3).standard_normal((400, 10))
    stream[200:] += 1.0  # a distance of sqrt(10)
    assert detection(detector.run(stream).flag, [200]).delay < 50


def test_warmup_keeps_flags_down_and_changes_nothing_else():
    stream = np.random.default_rng(4).standard_normal((300, 5))
    plain, warm = Newma(20).run(stream), Newma(20, warmup=100).run(stream)
    np.testing.assert_array_equal(plain.statistic, warm.statistic)
    assert plain.flag[:100].any()
    assert not warm.flag[:100].any()
    np.testing.assert_array_equal(plain.flag[100:], warm.flag[100:])


def test_alarms_are_rising_edges_early_ones_detections_late_ones_false():
    flags = np.zeros(60, bool)
    flags[[5, 23, 24, 36, 38, 39]] = (
        True  # 5: before the first change; 23: found; 36, 38: false; second change: missed
    )
    flags[55] = True  # false
    assert detection(flags, [20, 40]) == (3.0, 0.5, 1.5)
    standing = np.ones(60, bool)
    standing[0] = False
    assert detection(standing, [20, 40])[1:] == (1.0, 0.0)  # a flag that never falls raises no alarm
    both = detection(np.stack([flags, np.zeros(60, bool)]), [20, 40])
    assert both == (3.0, 0.75, 0.75)


def test_the_matched_threshold_is_the_lowest_with_so_few_false_alarms():
    samples, changes = mixture_stream(8, 200, inputs=20, seed=1)
    statistic = Newma(50).run(samples).statistic
    threshold, found = matched(statistic, changes, 0.5)
    assert found.false_alarms <= 0.5
    assert found == detection(statistic > threshold, changes)
    higher = np.median(statistic) * np.arange(1.0, 3.0, 0.005)
    assert all(
        detection(statistic > level, changes).false_alarms <= 0.5 for level in higher[higher >= threshold]
    )


def test_the_stream_of_mixtures_changes_its_variances_more_than_its_means():
    samples, changes = mixture_stream(6, 4000, inputs=30, seed=2)
    assert samples.shape == (24_000, 30)
    assert changes.tolist() == [4000, 8000, 12_000, 16_000, 20_000]
    parts = samples.reshape(6, 4000, 30)
    means, variances = parts.mean(1), parts.var(1)
    assert means.std(0).mean() < 0.15
    assert variances.std(0).mean() > 0.2
    assert variances.mean() == pytest.approx(1.0, rel=0.15)  # (c - 2)/chi^2_c has mean 1


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: newma_parameters(1), "window.*at least 2"),
        (lambda: Newma(window=1), "detector.window.*at least 2"),
        (lambda: Newma(), "a window, or both factors"),
        (lambda: Newma(fast=0.1), "a window, or both factors"),
        (lambda: Newma(20, fast=0.1, slow=0.01), "a window, or both factors"),
        (lambda: Newma(fast=0.03, slow=0.03), "above detector.slow = 0.03"),
        (lambda: Newma(fast=0.03, slow=0.1), "above detector.slow = 0.1"),
        (lambda: Newma(fast=1.5, slow=0.1), "detector.fast.*at most 1"),
        (lambda: Newma(20, quantile=1.0), "above 0 and below 1"),
        (lambda: Newma(20, threshold=-1.0), "detector.threshold"),
        (lambda: Newma(20, warmup=-1), "detector.warmup"),
        (lambda: MovingAverages(), "detector.window"),
        (lambda: Newma(20).run(np.array([[1.0], [math.nan]])), "NaN or infinite in sample 1"),
        (lambda: Newma(20).run(np.full((2, 3, 1), np.inf)), "in sample 0 of stream 0"),
        (lambda: Newma(20).run(np.zeros(5)), r"\(T, m\)"),
        (lambda: Newma(20).step(Newma(20).init(3), jnp.zeros(4)), r"\(3,\) of the state"),
        (lambda: as_detector({"kind": "newmo"}), "Did you mean 'newma'"),
        (lambda: as_detector({"kind": "newma", "windw": 20}), "Did you mean 'window'"),
        (lambda: as_detector({"window": 20}), "a table with kind"),
        (lambda: detection(np.zeros(10, bool), []), "increasing numbers"),
        (lambda: detection(np.zeros(10, bool), [5, 4]), "increasing numbers"),
        (lambda: detection(np.zeros(10, bool), [2.5]), "whole numbers"),
        (lambda: matched(np.zeros(50), [10], 1.0), "a median above 0"),
        (lambda: matched(np.full(50, math.nan), [10], 1.0), "finite numbers"),
        (lambda: matched(np.ones(50), [10], -1.0), "false_alarms: got -1"),
        (lambda: matched(np.ones(50), [10], 1.0, step=0), "step: got 0"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_words(build, words):
    with pytest.raises(InvalidInput, match=words):
        build()
