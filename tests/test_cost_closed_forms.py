"""Closed forms of the cost model: stragglers, failures, energy, scaling laws, mixtures of experts."""

import math

import numpy as np
import pytest
from scipy.special import ndtri

from decentral.cost import energy, failures, moe, scaling
from decentral.cost.checks import check_numbers
from decentral.cost.stragglers import (
    KINDS,
    Spread,
    asynchronous_gain,
    cycle_time,
    expected_max,
    k_of_n,
    partners,
)
from decentral.errors import InvalidInput
from decentral.hardware import HARDWARE, device

LAWS = (
    Spread(),
    Spread("normal", 2.0, cv=0.2),
    Spread("lognormal", cv=1.0),
    Spread("exponential", 3.0),
    Spread("shifted_exponential", cv=0.4),
    Spread("gamma", cv=0.3, shape=5.0),
    Spread("pareto", alpha=6.0),
    Spread("slow_worker", slow_share=0.05, slow_factor=3.0),
)


def lognormal(sigma, mean_s=1.0):
    return Spread("lognormal", mean_s, cv=math.sqrt(math.expm1(sigma**2)))


# -- stragglers --------------------------------------------------------------------------------------------------------


def test_all_kinds_are_tested():
    assert {law.kind for law in LAWS} == set(KINDS)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.kind)
def test_order_statistics_of_all_laws(law):
    """One worker: the mean; all of n together: n means; and each of them as drawn."""
    assert expected_max(law, 1) == pytest.approx(law.mean_s, rel=1e-9)
    k = np.arange(1, 9)
    expected = k_of_n(law, k, 8)
    assert expected.sum() == pytest.approx(8 * law.mean_s, rel=1e-9)
    draws = law.quantile(np.random.default_rng(1).random((40_000, 8)))
    assert expected == pytest.approx(np.sort(draws, -1).mean(0), rel=0.01)
    assert draws.std() == pytest.approx(law.standard_deviation_s, rel=0.03)


def test_maxima_broadcast_and_grow():
    n = np.array([[1, 2], [100, 10**6]])
    for law in LAWS:
        found = expected_max(law, n)
        assert found.shape == (2, 2)
        assert (np.diff(found.ravel()) >= 0).all()


def test_laws_without_spread_are_constant():
    for kind in ("normal", "lognormal"):
        law = Spread(kind, 2.0, cv=0.0)
        assert (law.quantile([0, 0.5, 1]) == 2).all()
        assert expected_max(law, 10**7) == pytest.approx(2)


def test_blom_against_quadrature():
    """mu + sigma ndtri((n - 0.375) / (n + 0.25)): 4.5 % too much at n = 2 (1 / sqrt(pi)), then within 0.75 %."""
    for n, close in ((2, 0.046), (8, 0.0075), (64, 0.0075), (512, 0.0075)):
        blom = ndtri((n - 0.375) / (n + 0.25))
        assert blom == pytest.approx((expected_max(Spread("normal", cv=0.1), n) - 1) / 0.1, rel=close)


def test_closed_forms_of_maxima():
    harmonic = sum(1 / i for i in range(1, 65))
    assert expected_max(Spread("exponential", 2.0), 64) == pytest.approx(2 * harmonic)
    assert expected_max(Spread("shifted_exponential", 2.0, cv=0.25), 64) == pytest.approx(
        1.5 + 0.5 * harmonic
    )
    assert expected_max(Spread("normal", cv=0.1), 2) == pytest.approx(1 + 0.1 / math.sqrt(math.pi))
    # two lognormals: exp(mu + s^2/2) 2 Phi(s / sqrt 2)
    assert expected_max(lognormal(0.3), 2) == pytest.approx(1 + math.erf(0.15))
    pareto, least = Spread("pareto", alpha=2.5), 1 - 1 / 2.5
    assert expected_max(pareto, 1e8) == pytest.approx(least * math.gamma(0.6) * 1e8**0.4, rel=1e-6)
    slow = Spread("slow_worker", mean_s=1.1, slow_share=0.1, slow_factor=2.0)
    assert expected_max(slow, 8) == pytest.approx(1 + (1 - 0.9**8))
    gamma = Spread("gamma", cv=1.0, shape=1.0)
    assert k_of_n(gamma, [3, 64], 64) == pytest.approx(k_of_n(Spread("exponential"), [3, 64], 64), rel=1e-9)
    assert k_of_n(Spread("exponential"), 6, 8) == pytest.approx(sum(1 / i for i in range(3, 9)))


@pytest.mark.parametrize("law", LAWS[:5], ids=lambda law: law.kind)
def test_accumulation_shrinks_the_spread(law):
    summed = law.summed(16)
    assert summed.mean_s == pytest.approx(16 * law.mean_s)
    assert summed.standard_deviation_s == pytest.approx(4 * law.standard_deviation_s)
    drawn = law.quantile(np.random.default_rng(2).random((16, 4000, 32))).sum(0).max(-1).mean()
    assert expected_max(summed, 32) == pytest.approx(drawn, rel=0.015)
    assert cycle_time(law, partners("barrier", 32), 32, steps=16, copies=8, cycles=100) == pytest.approx(
        drawn, rel=0.01
    )


TABLE = {  # cost_formulas.md, section 6: no wait, pair ring, one-peer exponential, ring, barrier
    (0.1, 8): (1.00, 1.088, 1.087, 1.109, 1.149),
    (0.1, 64): (1.00, 1.097, 1.107, 1.118, 1.258),
    (0.3, 8): (1.01, 1.274, 1.283, 1.345, 1.498),
    (0.3, 64): (1.01, 1.321, 1.356, 1.386, 1.953),
}


@pytest.mark.parametrize(("sigma", "n"), TABLE)
def test_delays_along_graphs(sigma, n):
    kinds = ("none", "pair_ring", "one_peer_exponential", "ring", "barrier")
    found = [cycle_time(lognormal(sigma), partners(kind, n), n, seed=7) for kind in kinds]
    assert found == pytest.approx(TABLE[sigma, n], rel=0.02)
    pair, everyone = expected_max(lognormal(sigma), [2, n])
    assert found[-1] == pytest.approx(everyone, rel=0.005)
    assert all(pair < waiting < everyone for waiting in found[1:4])


def test_who_waits_for_whom():
    assert [each[:, 0].tolist() for each in partners("pair_ring", 6)] == [
        [1, 0, 3, 2, 5, 4],
        [5, 2, 1, 4, 3, 0],
    ]
    assert [each[0, 0] for each in partners("one_peer_exponential", 8)] == [7, 6, 4]
    assert partners("ring", 5)[0][0].tolist() == [4, 1]


def test_persistent_slowness_does_not_average_out():
    slowness = np.array([1.5, 1.0, 1.0, 1.0])
    law = Spread("normal", cv=0.1)
    for kind in ("pair_ring", "ring", "barrier"):
        many = cycle_time(law, partners(kind, 4), 4, steps=64, slowness=slowness, cycles=64, copies=8)
        assert many == pytest.approx(64 * 1.5, rel=0.01)
    alone = cycle_time(law, partners("none", 4), 4, slowness=slowness)
    assert alone == pytest.approx(slowness.mean(), rel=0.01)
    assert asynchronous_gain(1.5, slowness) == pytest.approx((1 + 3 * 1.5) / 4)


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        ("weibull", {}, "Allowed: constant"),
        ("normal", {}, "spread.cv"),
        ("normal", {"cv": 0.8}, "at most 0.5"),
        ("constant", {"cv": 0.1}, "no such parameter"),
        ("pareto", {"alpha": 1.0}, "above 1"),
        ("gamma", {"cv": 0.5, "shape": 5.0}, "at most 1 / cv"),
        ("exponential", {"mean_s": 0.0}, "above 0"),
    ],
)
def test_laws_that_are_refused(kind, given, words):
    with pytest.raises(InvalidInput, match=words):
        Spread(kind, **given)


def test_rounds_that_are_refused():
    with pytest.raises(InvalidInput, match="whose sums are known"):
        Spread("pareto", alpha=3.0).summed(2)
    with pytest.raises(InvalidInput, match="at most n"):
        k_of_n(Spread(), 3, 2)
    with pytest.raises(InvalidInput, match="even"):
        partners("pair_ring", 5)
    with pytest.raises(InvalidInput, match="power of two"):
        partners("one_peer_exponential", 6)
    with pytest.raises(InvalidInput, match="at least one round"):
        cycle_time(Spread(), [], 4)
    with pytest.raises(InvalidInput, match="from 0 to 3"):
        cycle_time(Spread(), [np.full((4, 1), 4)], 4)
    with pytest.raises(InvalidInput, match="numbers, at least 1"):
        check_numbers("n", [1, math.nan], 1)


# -- failures ----------------------------------------------------------------------------------------------------------


def test_young_and_daly():
    checkpoint, restart, mtbf, n = 60.0, 600.0, 5 * scaling.YEAR_S, np.array([8, 1024])
    interval = failures.checkpoint_interval_s(checkpoint, mtbf, n)
    assert interval == pytest.approx(np.sqrt(2 * 60 * mtbf / n))
    found = failures.synchronous_goodput(checkpoint, restart, mtbf, n)
    leading = 1 - checkpoint / interval - (interval / 2 + restart) * n / mtbf
    assert found == pytest.approx(leading, abs=1e-3)
    for factor in (0.8, 1.25):  # the interval is about the best
        assert (failures.synchronous_goodput(checkpoint, restart, mtbf, n, factor * interval) < found).all()
    assert 0 <= failures.synchronous_goodput(checkpoint, restart, mtbf, 1e8) < 1e-6


def test_daly_against_a_simulation():
    checkpoint, restart, mtbf, interval = 1.0, 3.0, 40.0, 8.0
    generator, useful, clock, fails = np.random.default_rng(3), 0.0, 0.0, 0.0
    fails = generator.exponential(mtbf)
    ready = 0.0  # when the restart ends
    for _ in range(60_000):
        end = max(clock, ready) + interval + checkpoint
        if fails < end:
            ready, clock = fails + restart, fails
            fails += generator.exponential(mtbf)
        else:
            useful, clock = useful + interval, end
    assert useful / clock == pytest.approx(
        failures.synchronous_goodput(checkpoint, restart, mtbf, 1, interval), rel=0.01
    )


def test_failures_of_one_worker_and_storage():
    assert failures.decentralised_goodput(99.0, 1.0) == pytest.approx(0.99)
    assert failures.decentralised_goodput(99.0, 1.0, lost_s=9.0) == pytest.approx(0.9)
    # BLOOM's checkpoint on Jean-Zay: 2.3 TB in 40 s
    (jean_zay,) = (each for each in HARDWARE["storage"] if "2021" in each["name"])
    assert failures.checkpoint_s(2.3e12, 48, 5e9, jean_zay["write_GBps"] * 1e9) == pytest.approx(40)
    assert failures.checkpoint_s(2.3e12, [1, 10], 5e9) == pytest.approx([460, 46])
    assert failures.data_stall(1e6, [10, 1e3, 4e3], 1e9) == pytest.approx([0, 0, 0.75])
    with pytest.raises(InvalidInput, match="read_bytes_per_s"):
        failures.data_stall(1, 1, 0)
    with pytest.raises(InvalidInput, match="checkpoint_s"):
        failures.synchronous_goodput(0, 0, 1e6, 8)


# -- energy ------------------------------------------------------------------------------------------------------------


def test_power_is_the_measured_one():
    measured, h100 = HARDWARE["power"]["node_8xH100_W"], device("H100-SXM5-80GB")
    assert 8 * energy.load_power_w(h100) == pytest.approx(measured["gpt3_64nodes_mean"], rel=0.005)
    assert energy.IDLE_OVER_LOAD * measured["gpt3_64nodes_mean"] == pytest.approx(
        measured["idle_approx"], rel=0.02
    )
    with pytest.raises(InvalidInput, match="TPU v5p"):
        energy.load_power_w(device("TPU v5p"))


def test_energy_money_and_carbon():
    assert energy.power_w(1000, [0, 0.5, 1]) == pytest.approx([300, 650, 1000])
    assert energy.power_w(1000, 0.5, idle_w=0) == 500
    assert energy.energy_j(1000, 3600, devices=8, pue=1.25) == pytest.approx(10 * energy.JOULES_PER_KWH)
    assert energy.money(7200, 5, 9.32 / 5) == pytest.approx(2 * 9.32)
    assert energy.co2_kg(1e3 * energy.JOULES_PER_KWH, 0.05) == pytest.approx(50)
    assert energy.money(7200, 5, None) is None
    assert energy.co2_kg(1.0, None) is None
    with pytest.raises(InvalidInput, match="pue"):
        energy.energy_j(1, 1, pue=0.9)


# -- scaling -----------------------------------------------------------------------------------------------------------

YEARS = {  # cost_formulas.md, section 11, as printed: tokens, FLOP, years at 140, 156, 312 TFLOP/s
    "as many tokens": "3.0e11 1.8e25 0.51 0.46 0.23",
    "compute-optimal": "3.0e11 1.8e25 0.51 0.46 0.23",  # 0.5147; the 0.52 printed there takes a year of 365 days
    "one token": "1.0e13 6.0e26 16.98 15.2 7.6",
    "the same": "1.0e13 8.0e26 22.6 20.3 10.2",
    "against overfitting": "2.1e13 1.25e27 35.4 31.8 15.9",
    "20 tokens": "2.0e14 1.2e28 340 305 152",
    "1e13 tokens": "1.0e13 2.3e25 0.64 0.57 0.29",
}


def rounded(value, printed):
    """To as many significant digits as are printed."""
    digits = len(printed.partition("e")[0].replace(".", "").lstrip("0"))
    return float(f"{value:.{digits}g}")


def test_seventeen_years():
    runs = [scaling.ten_trillion_runs(gpu_flops=flops) for flops in scaling.SUSTAINED_FLOPS]
    for (beginning, line), *row in zip(YEARS.items(), *runs, strict=True):
        assert row[0].assumption.startswith(beginning)
        found = row[0].tokens, row[0].flop, *(run.years for run in row)
        for value, printed in zip(found, line.split(), strict=True):
            assert rounded(value, printed) == float(printed)
    one_token = runs[0][2]
    assert one_token.parameters == one_token.tokens == 1e13
    assert (one_token.flop_rule, one_token.gpus, one_token.gpu_flops) == (6, 8000, 140e12)


def test_the_other_numbers_of_seventeen_years():
    budget = 8000 * 140e12 * 17 * scaling.YEAR_S
    assert pytest.approx(5.365e8, rel=1e-4) == 17 * scaling.YEAR_S
    assert budget == pytest.approx(6.01e26, rel=1e-3)
    for flops, printed in ((140e12, "7.5e12"), (163e12, "8.7e12")):
        years_of_a_token = scaling.training_run(1e13, 1.0, 8000, flops, flop_rule=8).years
        assert rounded(17 / years_of_a_token, printed) == float(printed)
    assert scaling.training_memory_bytes(1e13) == 160e12
    seventeen = scaling.ten_trillion_runs()[2]
    assert scaling.training_energy_j(seventeen, 810) / 3.6e12 == pytest.approx(970, rel=0.01)  # GWh
    measured = energy.load_power_w(device("A100-SXM4-80GB"))
    assert scaling.training_energy_j(seventeen, measured) / 3.6e12 == pytest.approx(581, rel=0.01)
    assert pytest.approx(27, abs=0.5) == scaling.TEN_TRILLION / scaling.ACTIVE_OF_TEN_TRILLION


@pytest.mark.parametrize("name", ["chinchilla", "besiroglu"])
def test_compute_optimal_is_the_best_there_is(name):
    law, flop = scaling.LAWS[name], np.array([1e20, 1e25])
    n, d = law.compute_optimal(flop)
    assert 6 * n * d == pytest.approx(flop)
    least = law.loss(n, d)
    for factor in (0.9, 1.1):
        assert (law.loss(factor * n, d / factor) > least).all()


def test_published_laws():
    kaplan = scaling.LAWS["kaplan"]
    assert kaplan.loss(1e9, 1e30) == pytest.approx((8.8e13 / 1e9) ** 0.076, rel=1e-6)
    assert kaplan.loss(1e30, 1e9) == pytest.approx((5.4e13 / 1e9) ** 0.095, rel=1e-6)
    n, d = kaplan.compute_optimal(scaling.PF_DAY)
    assert n == pytest.approx(1.3e9)
    assert 6 * n * d == pytest.approx(scaling.PF_DAY)
    # Chinchilla itself: 70e9 parameters on 1.4e12 tokens
    for name, loss in (("chinchilla", 1.94), ("besiroglu", 1.98)):
        assert scaling.LAWS[name].loss(70e9, 1.4e12) == pytest.approx(loss, abs=0.01)
    ratio = {name: np.divide(*law.compute_optimal(5.76e23)[::-1]) for name, law in scaling.LAWS.items()}
    assert ratio["besiroglu"] == pytest.approx(18.4, abs=0.1)
    assert ratio["chinchilla"] == pytest.approx(92.6, abs=0.1)
    assert scaling.critical_batch(3.0) == pytest.approx(1.07e6, rel=0.01)
    with pytest.raises(InvalidInput, match="flop"):
        kaplan.compute_optimal(0)


def test_growth_of_models():
    found = scaling.growth()
    assert found.parameters == pytest.approx([1.5e9, 175e9, 1e13], rel=0.04)
    assert scaling.exponent(found.parameters, found.memory_bytes) == pytest.approx(1)
    assert scaling.exponent(found.parameters, found.data) == pytest.approx(1)
    assert found.tensor[0] == found.pipeline[0] == 0
    # by hand: GPT-3's 96 layers, four all-reduces of 50,000 x 12,288 bf16 over 8 GPUs
    assert found.tensor[1] == pytest.approx(96 * 4 * 8 * (2 * 7 / 8 * 50_000 * 12288 * 2))
    assert found.data == pytest.approx(2 * 63 / 64 * 2 * found.parameters)
    first, then = (
        scaling.exponent(found.parameters[part], found.model_parallel[part])
        for part in (slice(2), slice(1, 3))
    )
    assert first > 1.4
    assert then < 0.8
    with pytest.raises(InvalidInput, match="two different sizes"):
        scaling.exponent([1.0, 1.0], [1.0, 2.0])


# -- mixtures of experts -----------------------------------------------------------------------------------------------


def test_routing_shares():
    assert moe.routing_shares(8, 2) == pytest.approx(np.full(8, 1 / 8))
    zipf = moe.routing_shares(64, 2, 0.5)
    assert zipf[3] / zipf[0] == pytest.approx(0.5)
    for router in moe.ROUTERS:
        for top_k in (1, 4, 8):  # with 8 of 8, all are chosen always
            shares = moe.routing_shares(8, top_k, 3.0, router, seed=1)
            assert shares.sum() == pytest.approx(1)
            assert shares.max() <= 1 / top_k + 1e-9
    spread = moe.routing_shares(4096, 1, 0.25, "dirichlet") * 4096
    assert spread.std() == pytest.approx(0.5, rel=0.05)
    loads = moe.sample_loads(zipf, 10**6, samples=3)
    assert (loads.sum(-1) == 10**6).all()
    assert loads.mean(0) == pytest.approx(1e6 * zipf, rel=0.05)
    with pytest.raises(InvalidInput, match="from 1 to 4"):
        moe.routing_shares(4, 5)


def test_imbalance_by_chance_is_small():
    ranks, assignments = 64, 640_000
    loads = moe.sample_loads(moe.routing_shares(256, 8), assignments, samples=400, seed=1)
    sampled = moe.imbalance(loads, ranks)
    assert sampled.shape == (400,)
    excess = moe.uniform_imbalance(assignments, ranks) - 1
    assert excess == pytest.approx(math.sqrt(2 * math.log(64) * 64 / 640_000))
    assert sampled.mean() - 1 < excess < 1.3 * (sampled.mean() - 1)
    assert moe.imbalance([3.0, 1, 1, 1], 2) == pytest.approx(4 / 3)
    with pytest.raises(InvalidInput, match="a divisor of 256"):
        moe.imbalance(loads, 3)


@pytest.mark.parametrize(("assignments", "experts"), [(32768, 256), (32768, 8), (1000, 512)])
def test_padding(assignments, experts):
    shares = moe.routing_shares(experts, 1, 0.5)
    loads = moe.sample_loads(shares, assignments, samples=300, seed=2)
    sampled = loads.sum() / (128 * np.ceil(loads / 128)).sum()
    assert moe.padding_efficiency(assignments, shares) == pytest.approx(sampled, rel=0.005)
    assert moe.padding_efficiency(assignments, shares, tile=1) == pytest.approx(1)


def test_placement():
    loads = moe.routing_shares(256, 8, 0.8)
    packed, copied = moe.place(loads, 32, 8), moe.place(loads, 32, 9)
    assert packed.before == copied.before == moe.imbalance(loads, 32)
    assert 1 <= copied.after < 1.01 < packed.after < packed.before
    for placement in (packed, copied):
        assert (
            np.bincount(placement.slots[placement.slots >= 0], minlength=256).tolist()
            == placement.copies.tolist()
        )
        of_ranks = (loads / placement.copies)[placement.slots].sum(-1)
        assert of_ranks.max() / of_ranks.mean() == pytest.approx(placement.after)
    assert copied.copies.sum() == 32 * 9
    assert copied.copies[0] == copied.copies.max()
    assert moe.place([1.0, 1, 1, 1], 2, 2).after == 1
    # EPLB's bound: without copies a rank carries at least the hottest expert
    assert packed.after >= loads.max() * 32
    few = moe.place([5.0, 1], 2, 3)  # more slots than there is to copy: some stay empty
    assert (few.slots == -1).sum() == 2
    assert few.after == 1
    with pytest.raises(InvalidInput, match="at least 8"):
        moe.place(loads, 32, 7)


def test_bytes_of_the_exchange():
    h, tokens = 7168, 4096
    assert moe.row_bytes(h, "bf16") == 2 * h
    assert moe.row_bytes(h, "fp8_1x128") == h + 56 * 4
    assert moe.row_bytes(h, "mxfp8_1x32") == pytest.approx(1.03 * h, rel=0.002)
    plain = moe.all_to_all_bytes(tokens, moe.row_bytes(h, "bf16"), 8, [16, 64], 8)
    assert plain.inside + plain.outside == pytest.approx(tokens * 8 * 2 * h * (1 - 1 / np.array([16, 64])))
    limited = moe.all_to_all_bytes(tokens, moe.row_bytes(h, "fp8_1x128"), 8, 64, 8, node_limit=4)
    assert limited.outside == pytest.approx(4 * tokens * 7392 * 7 / 8)
    assert moe.all_to_all_bytes(tokens, 2 * h, 2, 64, 8, node_limit=4).outside == pytest.approx(
        2 * tokens * 2 * h * 7 / 8
    )
    assert moe.all_to_all_bytes(tokens, 2 * h, 8, 8, 8).outside == 0
    with pytest.raises(InvalidInput, match="Allowed"):
        moe.row_bytes(h, "fp4")


# -- the data ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cpus", "storage"])
def test_hardware_entries_say_where_they_are_from(kind):
    entries = HARDWARE[kind]
    assert len({entry["name"] for entry in entries}) == len(entries)
    for entry in entries:
        assert entry["sources"]
        assert entry["verified"] in (True, False, "partial")
        assert set(entry["unverified_fields"]) <= set(entry)
        assert bool(entry["unverified_fields"]) == (entry["verified"] is not True)
        assert ("recalled, not read" in entry["sources"]) or entry["verified"] is not False


def test_cpus_reach_what_their_vendors_say():
    tflops = {
        cpu["name"].split()[0]: cpu["cores"] * cpu["clock_GHz"] * cpu["fp32_flop_per_core_cycle"] / 1e3
        for cpu in HARDWARE["cpus"]
    }
    assert tflops["Grace"] == pytest.approx(7.1, rel=0.01)  # a Superchip: 7.1 TFLOP/s fp64
    assert tflops["Altra"] == pytest.approx(3.84)
