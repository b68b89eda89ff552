"""Compute times, links, faults, clusters: laws against closed forms, draws that depend on nothing else, refusals.

Statistical tests have fixed seeds; the false-alarm rates stated are those of another seed.
"""

import inspect
import itertools
import math
import subprocess
import sys
import typing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from scipy import stats

from decentral import InvalidInput
from decentral.timing import (
    COMPUTE,
    LINKS,
    Cluster,
    Faults,
    Links,
    NodeLinks,
    TableLinks,
    cluster_from,
    durations_ns,
    jitter_factor,
    lost,
    separated,
)
from decentral.timing.compute import (
    LONGEST_NS,
    Constant,
    Device,
    Exponential,
    Gamma,
    LogNormal,
    Markov,
    Normal,
    Pareto,
    Recorded,
    ShiftedExponential,
)

LOG = (0.5, 2.0, 1.0, 4.0, 0.25)
MODELS = {
    "constant": Constant(0.5),
    "exponential": Exponential(2.0),
    "shifted_exponential": ShiftedExponential(0.5, 2.0),
    "log_normal": LogNormal(2.0, 0.5),
    "gamma": Gamma(2.0, 3.0),
    "normal": Normal(2.0, 0.3),
    "pareto": Pareto(2.0, 5.0),
    "markov": Markov(1.0, 5.0, 0.1, 0.3),
    "recorded": Recorded(values=LOG),
    "device": Device("A100-SXM4-80GB", 312e12),
}
LAWS = {
    "exponential": stats.expon(scale=2.0),
    "shifted_exponential": stats.expon(0.5, 1.5),
    "log_normal": stats.lognorm(0.5, scale=2.0 * math.exp(-0.125)),
    "gamma": stats.gamma(3.0, scale=2.0 / 3.0),
    "normal": stats.norm(2.0, 0.3),
    "pareto": stats.pareto(5.0, scale=1.6),
}
models = pytest.mark.parametrize("kind", sorted(COMPUTE))


# -- laws of compute times ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(LAWS))
def test_a_model_has_the_law_it_is_named_for(kind):
    """Kolmogorov-Smirnov, and mean and variance at 5 standard errors, of 200,000 draws: false-alarm rate 1e-4 each law.

    (The variance of Pareto's draws has no normal error at alpha = 5: its fourth moment decides, which is finite.)
    """
    law, model = LAWS[kind], MODELS[kind]
    draws = model.draw(1, np.arange(10), 0, 20_000, 10)
    assert model.mean_s == pytest.approx(law.mean(), rel=1e-12)
    assert stats.kstest(draws, law.cdf).pvalue > 1e-4
    mean, variance, _, excess = law.stats("mvsk")
    assert abs(draws.mean() - mean) < 5 * np.sqrt(variance / draws.size)
    if kind != "pareto":
        assert abs(draws.var() - variance) < 5 * variance * np.sqrt((excess + 2) / draws.size)
    probabilities = np.array([0.01, 0.3, 0.5, 0.9, 0.999])
    np.testing.assert_allclose(model.quantile(probabilities), law.ppf(probabilities), rtol=1e-9)


def test_stragglers_may_be_asked_for_in_parts_and_in_any_order():
    """The chain goes on from where it was, and begins again where somebody asks for what was before."""
    model, n, count = Markov(1.0, 5.0, 0.2, 0.3), 3, 101
    whole = model.draw(7, np.arange(n), 0, count, n).reshape(n, count)
    assert {1.0, 5.0} == set(whole.ravel())
    rng = np.random.default_rng(0)
    for _ in range(50):
        workers = rng.permutation(n)[: rng.integers(1, n + 1)]
        first = rng.integers(0, count, len(workers))
        draws = rng.integers(0, count - first + 1)
        parts = np.split(model.draw(7, workers, first, draws, n), np.cumsum(draws)[:-1])
        for worker, begin, part in zip(workers, first, parts, strict=True):
            np.testing.assert_array_equal(part, whole[worker, begin : begin + len(part)])


def test_fixed_times():
    assert set(Constant(0.5).draw(0, [3, 4], 0, 5, 8)) == {0.5}
    assert Device("a100-sxm4-80", 312e12).mean_s == pytest.approx(2.5), "312 TFLOP at 40 % of 312 TFLOP/s"
    assert Device("V100", 125e12, 1.0, "fp16").mean_s == pytest.approx(1.0)


def test_a_normal_time_is_never_negative():
    widest = Normal(1.0, 0.25)
    assert widest.quantile(np.array([0.0]))[0] == 0.01
    share = stats.norm(1, 0.25).expect(lambda t: 0.01 - t, lb=-10, ub=0.01)
    assert share < 1e-5, "what the cut adds to the mean, as documented"


@given(st.floats(0.0, 1.0, exclude_max=True))
def test_times_are_positive_and_finite_whatever_the_tape(uniform):
    for kind in LAWS:
        (seconds,) = MODELS[kind].quantile(np.array([uniform]))
        assert 0 <= seconds < math.inf


def test_markov_switches_at_its_rates():
    """Shares and switches of 400,000 steps, binomial at 5 sigma (the share's error is 2.1 times a binomial's): 2e-6."""
    model = MODELS["markov"]
    slow = (model.draw(2, np.arange(20), 0, 20_000, 20) == 5.0).reshape(20, -1)
    assert model.mean_s == pytest.approx(2.0)
    correlation = math.sqrt((1 + 0.6) / (1 - 0.6))
    assert abs(slow.mean() - 0.25) < 5 * correlation * math.sqrt(0.25 * 0.75 / slow.size)
    before, after = slow[:, :-1].ravel(), slow[:, 1:].ravel()
    for was, rate in ((False, 0.1), (True, 0.3)):
        switches = after[before == was] != was
        assert abs(switches.mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / switches.size)


def test_markov_starts_stationary():
    """First states of 20,000 workers, 5 sigma."""
    first = MODELS["markov"].draw(3, np.arange(20_000), 0, 1, 20_000) == 5.0
    assert abs(first.mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / first.size)


def test_a_recorded_log_is_cycled_from_a_workers_own_place():
    shared = Recorded(values=LOG)
    assert shared.mean_s == pytest.approx(1.55)
    np.testing.assert_array_equal(shared.draw(0, 1, 0, 7, 2), np.resize(np.roll(LOG, -2), 7))
    np.testing.assert_array_equal(shared.draw(0, [0, 1], [3, 1], [2, 1], 2), [4.0, 0.25, 4.0])


@pytest.mark.parametrize("form", ["npy", "npz", "csv", "header"])
def test_recorded_files(tmp_path, form):
    log = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    path = tmp_path / f"log.{'csv' if form == 'header' else form}"
    if form == "npy":
        np.save(path, log)
    elif form == "npz":
        np.savez(path, seconds=log)
    else:
        np.savetxt(path, log, delimiter=",", header="first,second" if form == "header" else "", comments="")
    model = Recorded(str(path))
    np.testing.assert_array_equal(model.draw(0, [0, 1], 0, 4, 2), [1.0, 3, 5, 1, 2, 4, 6, 2])
    with pytest.raises(InvalidInput, match="one column, or 3"):
        model.draw(0, 0, 0, 1, 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1.0\n-2.0\n", "Row 1, column 0"),
        ("1.0,2.0\n3.0,\n", "Row 1, column 1"),
        ("1.0,2.0\n3.0\n", "readable"),
        ("", "at least one time"),
        ("a,b\n", "at least one time"),
        ("0.0\n", "positive"),
    ],
)
def test_bad_logs_are_refused(tmp_path, text, words):
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=words):
        Recorded(str(path))


def test_unreadable_logs_are_refused(tmp_path):
    for name in ("log.npy", "log.npz"):
        (tmp_path / name).write_bytes(b"")
    np.savez(tmp_path / "two.npz", a=[1.0], b=[1.0])
    for path in ("missing.csv", "log.npy", "log.npz", "two.npz", "log.txt"):
        with pytest.raises(InvalidInput, match=r"compute\.path"):
            Recorded(str(tmp_path / path))
    for arguments in ({}, {"path": "a.csv", "values": (1.0,)}, {"values": ()}, {"values": ("x",)}):
        with pytest.raises(InvalidInput):
            Recorded(**arguments)


@pytest.mark.parametrize("n", [2, 3, 8, 32, 128, 512])
def test_the_slowest_of_n(n):
    """E[max] of n workers: Blom's formula for normal times, mean x H_n for exponential ones, each within 3 %.

    The standard error is below 0.6 % of either: false-alarm rate below 1e-4. Blom's own error is below 0.5 % here.
    """
    rounds = 20_000 if n <= 32 else 6_000

    def slowest(model):
        draws = model.draw(7, np.arange(n), 0, rounds, n)
        return draws.reshape(n, rounds).max(axis=0).mean()

    blom = 1.0 + 0.25 * stats.norm.ppf((n - 0.375) / (n + 0.25))
    assert slowest(Normal(1.0, 0.25)) == pytest.approx(blom, rel=0.03)
    harmonic = (1 / np.arange(1, n + 1)).sum()
    assert slowest(Exponential(2.0)) == pytest.approx(2.0 * harmonic, rel=0.03)


# -- draws depend on nothing else --------------------------------------------------------------------------------------


@models
def test_draw_k_of_a_worker_is_the_same_whoever_asks(kind):
    model = MODELS[kind]
    whole = model.draw(5, np.arange(6), 0, 40, 6).reshape(6, 40)
    np.testing.assert_array_equal(model.draw(5, 4, 13, 20, 6), whole[4, 13:33])
    np.testing.assert_array_equal(
        model.draw(5, [5, 0], [39, 3], [1, 2], 6), [whole[5, 39], *whole[0, 3:5]], "in any order"
    )
    if kind != "recorded":
        np.testing.assert_array_equal(model.draw(5, 4, 0, 40, 1000), whole[4], "n does not matter")
    if kind not in ("recorded", "constant", "device"):
        assert not np.array_equal(model.draw(6, 4, 0, 40, 6), whole[4])
        assert not np.array_equal(whole[3], whole[4])


@models
def test_durations_are_the_draws_over_the_speeds_up_to_the_horizon(kind):
    model, speeds = MODELS[kind], np.array([1.0, 0.25, 3.0])
    start, ns = durations_ns(model, speeds, 9, 30.0)
    for worker, speed in enumerate(speeds):
        mine = ns[start[worker] : start[worker + 1]]
        drawn = model.draw(9, worker, 0, mine.size, 3)
        np.testing.assert_array_equal(mine, np.maximum(np.rint(drawn / speed * 1e9), 1))
        assert mine.sum() >= 30 * 10**9 > mine[:-1].sum()


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(sorted(COMPUTE)),
    short=st.floats(0.0, 50.0),
    more=st.floats(0.0, 200.0),
    n=st.integers(1, 5),
    seed=st.integers(0, 2**63 - 1),
)
def test_a_longer_horizon_only_appends(kind, short, more, n, seed):
    speeds = np.linspace(0.5, 2.0, n)
    start, ns = durations_ns(MODELS[kind], speeds, seed, short)
    later, longer = durations_ns(MODELS[kind], speeds, seed, short + more)
    assert start[0] == later[0] == 0
    assert start[-1] == ns.size
    for worker in range(n):
        mine = ns[start[worker] : start[worker + 1]]
        np.testing.assert_array_equal(longer[later[worker] :][: mine.size], mine)
        assert later[worker + 1] - later[worker] >= mine.size


def test_heavy_tails_reach_the_horizon():
    """Nearly all draws are near the shortest, a 1/11 of the mean: far more are needed than the mean says."""
    model = Pareto(1.0, 1.1)
    start, ns = durations_ns(model, np.ones(3), 0, 3000.0)
    for worker in range(3):
        mine = ns[start[worker] : start[worker + 1]]
        assert mine.sum() >= 3000 * 10**9 > mine[:-1].sum()
        np.testing.assert_array_equal(mine, np.rint(model.draw(0, worker, 0, mine.size, 3) * 1e9))


def test_durations_at_the_ends():
    start, ns = durations_ns(Constant(1.0), np.ones(2), 0, 0.0)
    assert start.tolist() == [0, 0, 0]
    assert ns.size == 0
    assert durations_ns(Constant(1e-12), np.ones(1), 0, 5e-9)[1].tolist() == [1] * 5, "a nanosecond at least"
    assert durations_ns(Constant(1e30), np.ones(1), 0, 1.0)[1].tolist() == [LONGEST_NS]
    for horizon in (-1.0, math.nan, math.inf, 5e9):
        with pytest.raises(InvalidInput, match="stop"):
            durations_ns(Constant(1.0), np.ones(2), 0, horizon)
    with pytest.raises(InvalidInput, match="draws"):
        durations_ns(Constant(1e-6), np.ones(2), 0, 1000.0)


# -- links -------------------------------------------------------------------------------------------------------------


def arcs(n):
    pairs = np.array(list(itertools.permutations(range(n), 2)))
    return pairs[:, 0], pairs[:, 1]


def test_a_message_takes_the_smallest_bandwidth_on_its_way():
    links = Links(latency_s=1e-3, bandwidth_bytes_per_s=1e9, nic_bytes_per_s=(2e9, 1e8, 5e8))
    latency, per_byte = links.arc_arrays([0, 0, 2, 3], [3, 1, 0, 2], 0)
    assert latency.tolist() == [10**6] * 4
    np.testing.assert_allclose(per_byte, [1.0, 10.0, 2.0, 2.0])
    assert Links().arc_arrays([0], [1], 0)[1].tolist() == [0.0], "infinitely fast"
    assert [column.tolist() for column in links.ports([0, 3], [3, 1])] == [[0, 3], [3, 1]]


def test_latency_is_drawn_once_per_directed_link():
    """Mean and spread of the logarithm over 9,900 links, 5 standard errors."""
    links = Links(latency_s=0.02, latency_sigma=0.5)
    sources, targets = arcs(100)
    latency, _ = links.arc_arrays(sources, targets, 4)
    np.testing.assert_array_equal(links.arc_arrays(sources[50:60], targets[50:60], 4)[0], latency[50:60])
    back, _ = links.arc_arrays(targets, sources, 4)
    assert (back != latency).all(), "each way its own"
    logs = np.log(latency / 0.02e9)
    assert abs(logs.mean() + 0.125) < 5 * 0.5 / np.sqrt(logs.size)
    assert abs(logs.std() - 0.5) < 5 * 0.5 / np.sqrt(2 * logs.size)
    assert not np.array_equal(links.arc_arrays(sources, targets, 5)[0], latency)


@pytest.mark.parametrize(("jitter", "law"), [("exponential", stats.expon()), ("log_normal", None)])
def test_jitter_has_mean_1_and_its_law(jitter, law):
    """Kolmogorov-Smirnov of 100,000 messages: false-alarm rate 1e-4."""
    links = Links(jitter=jitter, jitter_sigma=0.6)
    law = law or stats.lognorm(0.6, scale=math.exp(-0.18))
    factors = _factors(links.jitter_code, links.jitter_sigma, 3, 1, 2, 100_000)
    assert law.mean() == pytest.approx(1.0)
    assert stats.kstest(factors, law.cdf).pvalue > 1e-4
    assert factors[77] == jitter_factor(links.jitter_code, 0.6, 3, 1, 2, 77)
    assert factors[77] != jitter_factor(links.jitter_code, 0.6, 3, 2, 1, 77)


@njit
def _factors(kind, sigma, seed, i, j, messages):
    out = np.empty(messages)
    for count in range(messages):
        out[count] = jitter_factor(kind, sigma, seed, i, j, count)
    return out


def test_no_jitter_is_1():
    assert jitter_factor(Links().jitter_code, 0.3, 0, 1, 2, 3) == 1.0


def test_nodes():
    links = NodeLinks(
        4,
        intra_latency_s=1e-6,
        intra_bytes_per_s=3e11,
        inter_latency_s=1e-5,
        inter_bytes_per_s=1e11,
        nic_bytes_per_s=5e10,
    )
    latency, per_byte = links.arc_arrays([0, 0, 7], [3, 4, 4], 0)
    assert latency.tolist() == [1000, 10_000, 1000]
    np.testing.assert_allclose(per_byte, [1 / 300, 1 / 50, 1 / 300])
    assert [column.tolist() for column in links.ports([0, 0, 7], [3, 4, 0])] == [[-1, 0, 1], [-1, 1, 0]]


def test_sites():
    links = TableLinks(
        ((0.0, 0.01), (0.03, 0.0)),
        bandwidth_bytes_per_s=((0.0, 1e8), (2e8, 0.0)),
        same_latency_s=1e-4,
        same_bytes_per_s=1e9,
        nic_bytes_per_s=(1e12, 1e12, 5e7),
    )
    latency, per_byte = links.arc_arrays([0, 1, 0, 1], [1, 0, 2, 3], 0)
    assert latency.tolist() == [10_000_000, 30_000_000, 100_000, 100_000], "worker w is at site w % 2"
    np.testing.assert_allclose(per_byte, [10.0, 5.0, 20.0, 1.0])


@pytest.mark.parametrize(
    "build",
    [
        lambda: Links(latency_s=-1.0),
        lambda: Links(latency_s=math.inf),
        lambda: Links(latency_sigma=-0.1),
        lambda: Links(jitter_sigma=math.nan),
        lambda: Links(bandwidth_bytes_per_s=0.0),
        lambda: Links(bandwidth_bytes_per_s=-1.0),
        lambda: Links(bandwidth_bytes_per_s=math.nan),
        lambda: Links(nic_bytes_per_s=(1e9, 0.0)),
        lambda: Links(nic_bytes_per_s=()),
        lambda: Links(duplex="both"),
        lambda: Links(jitter="gaussian"),
        lambda: NodeLinks(0),
        lambda: NodeLinks(2, inter_bytes_per_s=0.0),
        lambda: NodeLinks(2, intra_latency_s=-1.0),
        lambda: TableLinks(()),
        lambda: TableLinks(((0.0, 1.0),)),
        lambda: TableLinks(((0.0, -1.0), (1.0, 0.0))),
        lambda: TableLinks(((0.0, 1.0), (1.0, 0.0)), bandwidth_bytes_per_s=0.0),
        lambda: TableLinks(((0.0, 1.0), (1.0, 0.0)), bandwidth_bytes_per_s=((1.0, 0.0), (1.0, 1.0))),
        lambda: TableLinks(((0.0, 1.0), (1.0, 0.0)), bandwidth_bytes_per_s=((1.0,),)),
        lambda: TableLinks(((0.0, 1.0), (1.0, 0.0)), same_bytes_per_s=-1.0),
    ],
)
def test_bad_links_are_refused(build):
    with pytest.raises(InvalidInput, match=r"cluster\.links\."):
        build()


# -- losses ------------------------------------------------------------------------------------------------------------


@njit
def _losses(loss, start, end, burst, seed, i, j, messages):
    out, states = np.empty(messages, np.bool_), np.empty(messages, np.bool_)
    chain = np.zeros(1, np.uint8)
    for count in range(messages):
        out[count], state = lost(loss, start, end, burst, seed, i, j, count, chain[0])
        states[count] = state
        chain[0] = state
    return out, states


def test_independent_losses():
    """100,000 messages on each of two links, 5 sigma; no memory."""
    for i, j in ((0, 1), (1, 0)):
        gone, states = _losses(*Faults(loss=0.1).loss_numbers, 1, i, j, 100_000)
        assert abs(gone.mean() - 0.1) < 5 * math.sqrt(0.09 / gone.size)
        assert not states.any()
        assert abs(np.corrcoef(gone[1:], gone[:-1])[0, 1]) < 5 / math.sqrt(gone.size)
    assert not _losses(*Faults().loss_numbers, 1, 0, 1, 100)[0].any()


def test_gilbert_and_elliotts_chain():
    """Stationary share of bursts and of losses, rates and mean burst length; 400,000 messages, 5 standard errors."""
    faults = Faults(loss=0.01, burst_start=0.02, burst_end=0.1, burst_loss=0.8)
    gone, bad = _losses(*faults.loss_numbers, 2, 3, 4, 400_000)
    share, memory = 0.02 / 0.12, math.sqrt((1 + 0.88) / (1 - 0.88))
    assert faults.mean_loss == pytest.approx(share * 0.8 + (1 - share) * 0.01)
    error = memory * math.sqrt(share * (1 - share) / bad.size)
    assert abs(bad.mean() - share) < 5 * error
    assert abs(gone.mean() - faults.mean_loss) < 5 * error
    assert abs(gone[bad].mean() - 0.8) < 5 * math.sqrt(0.16 / bad.sum())
    assert abs(gone[~bad].mean() - 0.01) < 5 * math.sqrt(0.01 / (~bad).sum())
    ends = (~bad[1:] & bad[:-1]).sum()
    assert bad.sum() / ends == pytest.approx(10.0, rel=5 / math.sqrt(ends))


def test_the_chain_starts_stationary():
    """First messages of 20,000 links, 5 sigma."""
    numbers = Faults(burst_start=0.1, burst_end=0.3).loss_numbers
    first = np.array([lost(*numbers, 0, i, i + 1, 0, False)[1] for i in range(20_000)])
    assert abs(first.mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / first.size)


# -- outages -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    every=st.one_of(st.just(math.inf), st.floats(0.1, 50.0)),
    down_s=st.floats(0.0, 20.0),
    explicit=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(1, 20)), max_size=6),
    horizon=st.integers(0, 60_000).map(lambda ms: ms / 1000),
)
def test_outages_are_sorted_apart_and_cover_what_was_asked(seed, every, down_s, explicit, horizon):
    down = tuple((worker, float(begin), float(begin + length)) for worker, begin, length in explicit)
    faults = Faults(crash_every_s=every, down_s=down_s, down=down)
    start, down_ns, up_ns = faults.outages(seed, 4, horizon)
    assert start.shape == (5,)
    assert start[-1] == down_ns.size == up_ns.size
    for worker in range(4):
        mine = slice(start[worker], start[worker + 1])
        begin, end = down_ns[mine], up_ns[mine]
        assert (begin < end).all()
        assert (begin[1:] > end[:-1]).all()
        assert (begin < horizon * 1e9).all()
        for which, from_s, until_s in down:
            if which == worker and from_s < horizon:
                assert ((begin <= from_s * 1e9) & (until_s * 1e9 <= end)).any()


def test_crashes_have_the_stated_rates_whatever_the_horizon_and_n():
    """Mean times up and down of about 33,000 outages, 5 standard errors of an exponential mean."""
    faults = Faults(crash_every_s=20.0, down_s=10.0)
    start, down_ns, up_ns = faults.outages(3, 10, 100_000.0)
    down = (up_ns - down_ns) / 1e9
    assert down.mean() == pytest.approx(10.0, rel=5 / math.sqrt(down.size))
    up = (down_ns[1:] - up_ns[:-1])[np.diff(np.repeat(np.arange(10), np.diff(start))) == 0] / 1e9
    assert up.mean() == pytest.approx(20.0, rel=5 / math.sqrt(up.size))
    one = start[1]
    correlation = np.corrcoef(down_ns[1:one] - up_ns[: one - 1], (up_ns - down_ns)[1:one])[0, 1]
    assert abs(correlation) < 5 / math.sqrt(one), "time down is not luck shared with the time up before"
    few, few_down, few_up = faults.outages(3, 4, 1000.0)
    for worker in range(4):
        mine = few_down[few[worker] : few[worker + 1]]
        np.testing.assert_array_equal(down_ns[start[worker] :][: mine.size], mine)
        np.testing.assert_array_equal(up_ns[start[worker] :][: mine.size], few_up[few[worker] :][: mine.size])


def test_explicit_outages():
    faults = Faults(down=((1, 2.0, 3.0), (1, 1.0, 2.0), (1, 8.0, math.inf), (0, 20.0, 21.0)))
    start, down, up = faults.outages(0, 3, 10.0)
    assert start.tolist() == [0, 0, 2, 2]
    assert down.tolist() == [10**9, 8 * 10**9]
    assert up.tolist() == [3 * 10**9, LONGEST_NS]


def test_partitions():
    columns = Faults(partitions=((1.0, 2.0, 2), (1.5, math.inf, 3))).partition_arrays(4)

    def apart(i, j, time_s):
        return separated(*columns, i, j, int(time_s * 1e9))

    assert not apart(1, 2, 0.999)
    assert apart(1, 2, 1.0)
    assert apart(2, 1, 1.999)
    assert not apart(1, 2, 2.0)
    assert not apart(0, 1, 1.7)
    assert apart(2, 3, 1e6)
    assert not separated(*Faults().partition_arrays(4), 0, 3, 0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"loss": 1.0},
        {"loss": -0.1},
        {"loss": math.nan},
        {"burst_loss": 1.5},
        {"burst_start": 2.0},
        {"burst_start": 0.1, "burst_end": 0.0},
        {"crash_every_s": 0.0},
        {"crash_every_s": 10.0, "down_s": math.inf},
        {"down_s": -1.0},
        {"down": ((0, 2.0, 1.0),)},
        {"down": ((0, 1.0, 1.0),)},
        {"down": ((0, -1.0, 1.0),)},
        {"down": ((-1, 0.0, 1.0),)},
        {"down": ((0, math.inf, math.inf),)},
        {"down": ((0, 1.0),)},
        {"partitions": ((2.0, 1.0, 3),)},
        {"partitions": ((0.0, 1.0, 0),)},
        {"on_return": "forget"},
    ],
)
def test_bad_faults_are_refused(arguments):
    with pytest.raises(InvalidInput, match=r"cluster\.faults\."):
        Faults(**arguments)


def test_faults_that_fit_no_cluster_of_this_size_are_refused():
    with pytest.raises(InvalidInput, match="from 0 to 2"):
        Faults(down=((3, 0.0, 1.0),)).outages(0, 3, 10.0)
    with pytest.raises(InvalidInput, match="from 1 to 3"):
        Faults(partitions=((0.0, 1.0, 4),)).partition_arrays(4)
    everyone = Faults(down=((0, 3.0, math.inf), (1, 2.0, 7.0), (1, 6.0, 50.0)))
    with pytest.raises(InvalidInput, match="up at the end"):
        everyone.outages(0, 2, 10.0)
    assert everyone.outages(0, 3, 10.0)[0].tolist() == [0, 1, 2, 2], "one is left"
    assert everyone.outages(0, 2, 100.0)[0].tolist() == [0, 1, 2], "one returns"
    with pytest.raises(InvalidInput, match="draws"):
        Faults(crash_every_s=1e-6).outages(0, 100, 1e4)


# -- clusters ----------------------------------------------------------------------------------------------------------


def test_speeds():
    assert Cluster(speeds=(1.0, 2.0)).speed_of(5, 0).tolist() == [1, 2, 1, 2, 1]
    slowed = Cluster(slow_workers=3, slow_factor=4.0)
    speeds = slowed.speed_of(16, 1)
    assert sorted(speeds) == [0.25] * 3 + [1.0] * 13
    np.testing.assert_array_equal(speeds, slowed.speed_of(16, 1))
    assert any((slowed.speed_of(16, seed) != speeds).any() for seed in range(2, 6))


def test_persistent_speeds_are_log_normal_of_mean_1():
    """20,000 workers, 5 standard errors; worker i's speed does not depend on n."""
    spread = Cluster(speed_sigma=0.4)
    speeds = spread.speed_of(20_000, 2)
    assert abs(np.log(speeds).mean() + 0.08) < 5 * 0.4 / math.sqrt(20_000)
    assert abs(speeds.mean() - 1) < 5 * math.sqrt(math.expm1(0.16) / 20_000)
    np.testing.assert_array_equal(spread.speed_of(7, 2), speeds[:7])


def test_the_expected_rate_is_the_one_realised():
    """64 workers and 2,000 s, four seeds: within 3 % (standard error 0.6 %)."""
    cluster = Cluster(Gamma(0.5, 2.0), speeds=(1.0, 3.0), slow_workers=16, slow_factor=2.0, speed_sigma=0.1)
    assert cluster.gradient_rate(64) == pytest.approx(2.0 * (0.75 + 0.125) / 0.5)
    counts = [cluster.durations_ns(64, seed, 2000.0)[1].size for seed in range(4)]
    assert np.mean(counts) / 64 / 2000 == pytest.approx(cluster.gradient_rate(64), rel=0.03)


def test_clusters_from_tables():
    table = {
        "kind": "uniform",
        "compute": {"kind": "log_normal", "mean_s": 0.2},
        "links": {"kind": "nodes", "node_size": 4, "jitter": "exponential"},
        "faults": {"loss": 0.1, "down": [[1, 0.0, 5.0]]},
        "speeds": [1, 2],
        "slow_workers": 1,
    }
    assert cluster_from(table) == Cluster(
        LogNormal(0.2),
        NodeLinks(4, jitter="exponential"),
        Faults(loss=0.1, down=((1, 0.0, 5.0),)),
        (1, 2),
        slow_workers=1,
    )
    assert cluster_from({}) == Cluster()
    sites = {"links": {"kind": "table", "latency_s": [[0.0, 1.0], [1.0, 0.0]]}}
    assert cluster_from(sites).links == TableLinks(((0.0, 1.0), (1.0, 0.0)))
    assert cluster_from({"links": {"latency_s": 1.0}}).links == Links(latency_s=1.0)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"speed": [1.0]}, "'speeds'"),
        ({"kind": "uniforn"}, "'uniform'"),
        ({"compute": {"kind": "lognormal"}}, "'log_normal'"),
        ({"compute": {}}, "Allowed: constant"),
        ({"compute": {"kind": "gamma", "mean_s": 1.0}}, "compute.shape"),
        ({"compute": {"kind": "constant", "mean": 1.0}}, "'mean_s'"),
        ({"compute": 3}, "a table"),
        ({"links": {"latncy_s": 1.0}}, "'latency_s'"),
        ({"links": {"kind": "node"}}, "'nodes'"),
        ({"faults": {"los": 0.1}}, "'loss'"),
        ([], "a table"),
    ],
)
def test_bad_tables_are_refused_with_the_nearest_name(table, words):
    with pytest.raises(InvalidInput, match="cluster") as caught:
        cluster_from(table)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Cluster(speeds=()),
        lambda: Cluster(speeds=(1.0, 0.0)),
        lambda: Cluster(slow_workers=-1),
        lambda: Cluster(slow_factor=0.5),
        lambda: Cluster(speed_sigma=-1.0),
        lambda: Cluster(slow_workers=5).speed_of(4, 0),
        lambda: Cluster(slow_workers=5).gradient_rate(4),
        lambda: Constant(0.0),
        lambda: Constant(True),
        lambda: Exponential(-1.0),
        lambda: ShiftedExponential(2.0, 1.0),
        lambda: ShiftedExponential(-1.0, 1.0),
        lambda: LogNormal(1.0, -0.1),
        lambda: Gamma(1.0, 0.0),
        lambda: Normal(1.0, 0.26),
        lambda: Normal(1.0, -0.1),
        lambda: Pareto(1.0, 1.0),
        lambda: Markov(1.0, 2.0, 0.0, 0.0),
        lambda: Markov(1.0, 2.0, 0.1, 1.1),
        lambda: Markov(0.0, 2.0, 0.1, 0.1),
        lambda: Device("A100", 1e12),
        lambda: Device("V100", 1e12, dtype="bf16"),
        lambda: Device("H200", 1e12, efficiency=1.1),
        lambda: Device("H200", 0.0),
    ],
)
def test_bad_clusters_are_refused(build):
    with pytest.raises(InvalidInput, match=r"cluster\."):
        build()


def _plain(hint):
    if typing.get_origin(hint) is tuple:
        return all(map(_plain, typing.get_args(hint)))
    parts = typing.get_args(hint) or (hint,)
    return all(
        part in (int, float, str, bool, type(None), ...) or _plain(part) for part in parts if part != hint
    )


@pytest.mark.parametrize("build", [*COMPUTE.values(), *LINKS.values(), Faults])
def test_every_argument_can_stand_in_a_spec(build):
    hints = typing.get_type_hints(build.__init__)
    for name in inspect.signature(build).parameters:
        assert _plain(hints[name]), (build, name)


def test_no_jax():
    code = "import decentral.timing, sys; assert not {'jax', 'jaxlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
