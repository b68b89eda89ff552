"""Random tapes: draw k of an entity is the same whoever asks."""

import numpy as np
import pytest
from scipy import stats

from decentral.timing import PoissonClocks, Purpose, poisson_ticks, uniforms
from decentral.timing.tapes import philox


@pytest.mark.parametrize(
    ("key", "counter"),
    [
        ((5, 1), (1, 3, 4, 0)),
        ((2**63 - 1, 2), (12345, 2**40, 7, 0)),
        ((2**64 - 1, 2**64 - 1), (2**64 - 1,) * 4),
    ],
)
def test_philox_is_numpys_philox(key, counter):
    word = np.uint64
    block = philox(*(word(k) for k in key), *(word(c) for c in counter))
    # NumPy increments its counter before the first block.
    before = (sum(c << (64 * k) for k, c in enumerate(counter)) - 1) % 2**256
    words = np.array([(before >> (64 * k)) % 2**64 for k in range(4)], np.uint64)
    expected = np.random.Philox(key=np.array(key, np.uint64), counter=words).random_raw(4)
    assert [int(b) for b in block] == [int(e) for e in expected]


def test_a_draw_does_not_depend_on_how_many_are_asked_for():
    whole = uniforms(3, Purpose.GRADIENT_CLOCK, (7, 9), 0, 50)
    np.testing.assert_array_equal(uniforms(3, Purpose.GRADIENT_CLOCK, (7, 9), 13, 20), whole[13:33])
    for other in [(4, 1, (7, 9)), (3, 2, (7, 9)), (3, 1, (9, 7))]:
        assert not np.isin(uniforms(*other, 0, 50), whole).any()


def test_uniforms_are_uniform():
    """Kolmogorov-Smirnov at a false-alarm rate of 1e-4 (fixed seed)."""
    assert stats.kstest(uniforms(1, 1, (0, 1), 0, 20_000), "uniform").pvalue > 1e-4


def test_clocks_are_poisson():
    """Counts within 4 sigma of rate x horizon, waiting times exponential: false-alarm rate below 1e-3 (fixed seed)."""
    rates = np.array([0.5, 1.0, 3.0, 0.0])
    ticks_ns, clocks = poisson_ticks(
        11, Purpose.EXCHANGE_CLOCK, np.arange(4), np.arange(4) + 5, rates, 2000.0
    )
    counts = np.bincount(clocks, minlength=4)
    assert counts[3] == 0
    assert (np.abs(counts - rates * 2000) <= 4 * np.sqrt(rates * 2000)).all()
    waits = np.diff(ticks_ns[clocks == 2]) / 1e9
    assert stats.kstest(waits, "expon", args=(0, 1 / 3)).pvalue > 1e-4


def test_ticks_are_sums_of_the_tapes_waits_however_many_were_expected():
    ticks_ns, _ = poisson_ticks(11, 1, [2], [7], [3.0], 1000.0)
    waits = -np.log1p(-uniforms(11, 1, (2, 7), 0, len(ticks_ns) + 1)) / 3.0
    np.testing.assert_allclose(ticks_ns, np.cumsum(waits)[:-1] * 1e9, rtol=0, atol=1.0)
    assert waits.sum() > 1000.0
    unexpected, _ = PoissonClocks(11, 1, [2], [7], [3.0], 1000.0).until(10**12, expected=0.0)
    np.testing.assert_array_equal(unexpected, ticks_ns)


def test_a_longer_horizon_or_another_worker_changes_no_tick():
    short, who = poisson_ticks(5, 1, np.arange(3), np.arange(3), np.ones(3), 10.0)
    longer, who_longer = poisson_ticks(5, 1, np.arange(6), np.arange(6), np.ones(6), 25.0)
    for worker in range(3):
        own = longer[who_longer == worker]
        np.testing.assert_array_equal(short[who == worker], own[own <= 10e9])


def test_another_rate_stretches_the_same_tape():
    slow, _ = poisson_ticks(5, 1, [0], [0], [1.0], 100.0)
    fast, _ = poisson_ticks(5, 1, [0], [0], [2.0], 50.0)
    np.testing.assert_allclose(fast, slow / 2, atol=1.0)
