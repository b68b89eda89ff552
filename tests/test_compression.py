"""Compressors: what they lose, what they send, and that both ends decode the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decentral import Gradients, InvalidInput, Record, Trace, replay, simulate
from decentral.algorithm import CHOCO, COMPRESSORS, A2CiD2, Gossip
from decentral.algorithm.compression import as_compressor, compress, contraction, decompress
from decentral.experiment.shapes import shapes_of, size_of
from decentral.optical import NotCalibrated
from decentral.problem import Quadratic
from decentral.protocol import Rounds
from decentral.topology import named

KINDS = pytest.mark.parametrize("kind", COMPRESSORS)
SGD = {"kind": "sgd", "learning_rate": 0.1}
D = 1000


def lossy(kind, tree, key, **arguments):
    return decompress(compress(as_compressor({"kind": kind, **arguments}), tree, key))


def relative_errors(kind, x, draws=1, **arguments):
    """||C(x) - x||^2 / ||x||^2 over many draws."""
    keys = jax.random.split(jax.random.key(1), draws)
    dense = jax.jit(jax.vmap(lambda key: lossy(kind, x, key, **arguments)))(keys)
    return np.asarray(((dense - x) ** 2).sum(1) / (x**2).sum())


@KINDS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_tree_comes_back_with_its_shapes(kind, dtype):
    key = jax.random.key(0)
    tree = {
        "matrix": jax.random.normal(key, (5, 7), dtype),
        "rest": (jnp.ones((), dtype), jnp.zeros(3, dtype)),
    }
    back = lossy(kind, tree, key)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), back) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), tree
    )
    np.testing.assert_array_equal(back["rest"][1], 0.0)
    np.testing.assert_allclose(back["rest"][0], 1.0, rtol=1e-6)
    assert 0 < np.abs(back["matrix"] - tree["matrix"]).max() < 4


@KINDS
def test_batched_and_compiled_is_each_alone(kind):
    keys = jax.random.split(jax.random.key(0), 6)
    x = jax.random.normal(jax.random.key(1), (6, 4, 5))
    compressor = as_compressor(kind)
    payloads = jax.jit(jax.vmap(lambda x, key: compress(compressor, x, key)))(x, keys)
    together = jax.jit(jax.vmap(decompress))(payloads)
    for k in range(6):
        alone = decompress(compress(compressor, x[k], keys[k]))
        np.testing.assert_allclose(together[k], alone, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("int8", D + 4),
        ("sign", D // 8 + 4),
        ("top_k", 100 * (4 + 4)),
        ("random_k", 100 * 4 + 4),
        ("sketch", 100 * 4 + 4),
        ({"kind": "sketch", "refresh": "none", "allow_rank_deficient": True}, 100 * 4),
        ({"kind": "sketch", "fraction": 1.0}, 4 * D),
        (None, 4 * D),
    ],
)
def test_bytes_on_the_wire(kind, expected):
    """Of float32 messages, from shapes alone: int8 is a quarter of the bytes (and a scale of 4)."""
    problem = Quadratic.of(np.ones(2), np.zeros((2, D)), dtype="float32")
    for algorithm in (
        Gossip(optimizer=SGD, compressor=kind),
        A2CiD2(optimizer=SGD, eta=0.1, alpha_tilde=0.5, compressor=kind),
        CHOCO(optimizer=SGD, compressor=kind, gamma=0.1),
    ):
        assert size_of(shapes_of(problem, algorithm.resolve(None, None)).message) == expected


def test_random_k_has_delta_k_over_d():
    """Exactly on +-1 vectors; on a Gaussian one within 5 standard errors (false alarms: 6e-7)."""
    signs = jnp.sign(jax.random.normal(jax.random.key(0), (D,)))
    np.testing.assert_allclose(relative_errors("random_k", signs, 20), 0.9, rtol=1e-12)
    errors = relative_errors("random_k", jax.random.normal(jax.random.key(0), (D,)), 4000)
    assert abs(errors.mean() - 0.9) < 5 * errors.std() / np.sqrt(4000)
    assert as_compressor("random_k").delta(D) == 0.1


def test_every_place_is_as_likely():
    """Chi-squared of 4000 draws of 2 of 10 places, 9 degrees of freedom (with corrections, below 9); false alarms: 1e-6."""
    keys = jax.random.split(jax.random.key(3), 4000)
    x = jnp.ones(10)
    hits = np.asarray(jax.vmap(lambda key: lossy("random_k", x, key, fraction=0.2))(keys)).sum(0)
    assert hits.sum() == 8000
    assert ((hits - 800) ** 2 / 800).sum() < 45.1


def test_top_k_on_a_gaussian_vector():
    """delta = 0.44 with d = 1000, k = 100 [M]."""
    delta = [1 - relative_errors("top_k", jax.random.normal(jax.random.key(k), (D,)))[0] for k in range(20)]
    assert np.mean(delta) == pytest.approx(0.44, abs=0.01)
    assert np.min(delta) >= as_compressor("top_k").delta(D) == 0.1


def test_top_k_keeps_the_largest():
    kept = lossy("top_k", jnp.array([0.1, -3.0, 2.0, 0.0]), jax.random.key(0), fraction=0.5)
    np.testing.assert_array_equal(kept, [0.0, -3.0, 2.0, 0.0])


def test_sign_on_a_gaussian_vector():
    """delta = ||x||_1^2 / (d ||x||^2), 2/pi in the mean."""
    x = jax.random.normal(jax.random.key(0), (D,))
    delta = 1 - relative_errors("sign", x)[0]
    assert delta == pytest.approx(float(jnp.abs(x).sum() ** 2 / (D * (x**2).sum())), rel=1e-12)
    assert delta == pytest.approx(2 / np.pi, abs=0.03)


def test_int8_is_unbiased():
    """Mean of 20,000 roundings of 8 numbers within 5 standard errors each (false alarms: 8 x 6e-7); at most one step off."""
    x = jax.random.normal(jax.random.key(0), (8,))
    step = float(jnp.abs(x).max()) / 127
    keys = jax.random.split(jax.random.key(1), 20_000)
    error = np.asarray(jax.jit(jax.vmap(lambda key: lossy("int8", x, key)))(keys) - x)
    assert np.abs(error).max() < step * (1 + 1e-9)
    assert error.var(0).max() <= step**2 / 4
    # The largest number is hit exactly: its error is rounding, not noise.
    assert np.all(np.abs(error.mean(0)) <= 5 * error.std(0) / np.sqrt(20_000) + 1e-12)
    assert relative_errors("int8", x, 100).mean() < 1 - as_compressor("int8").delta(8)


@KINDS
def test_zeros_stay_zeros(kind):
    np.testing.assert_array_equal(lossy(kind, jnp.zeros(9), jax.random.key(0)), 0.0)


def test_the_contraction_of_a_tree_is_its_worst_leafs():
    tree = {"small": jnp.zeros(4), "large": jnp.zeros((8, 8))}
    assert contraction(None, tree) == 1.0
    assert contraction(as_compressor("sign"), tree) == 1 / 64
    assert contraction(as_compressor({"kind": "top_k", "fraction": 0.5}), tree) == 0.5


@KINDS
@pytest.mark.parametrize("cls", [Gossip, A2CiD2])
def test_compressed_exchanges_conserve_the_sum(kind, cls):
    """Both ends apply the difference of the decoded messages, whether at once or when it arrives."""
    n, d, rng = 4, 6, np.random.default_rng(0)
    start = rng.standard_normal((n, d))
    events = []
    for k in range(60):
        i, j = (int(worker) for worker in rng.choice(n, 2, replace=False))
        events.append(("exchange", i, j, -1, -1))
        events.append(("exchange_start", i, j, 2 * k, 2 * k + 1))
        events += [("exchange_commit", i, 2 * k, -1, -1), ("exchange_commit", j, 2 * k + 1, -1, -1)]
    trace = Trace.from_arrays(
        np.arange(len(events)) / 10, [e[0] for e in events], [e[1:] for e in events],
        n_workers=n, ops=["exchange", "exchange_start", "exchange_commit"], seed=0,
    )  # fmt: skip
    numbers = {} if cls is Gossip else {"eta": 0.1, "alpha_tilde": 0.6}
    algorithm = cls(optimizer=SGD, compressor=kind, **numbers)
    problem = Quadratic.of(np.ones(n), np.zeros((n, d)))
    result = replay(
        trace, problem, algorithm, initial=start, record=Record(events=(len(trace),), evaluate=False)
    )
    parts = (result.final.x,) if cls is Gossip else (result.final.x + result.final.x_tilde,)
    times = 1 if cls is Gossip else 2
    for part in parts:
        np.testing.assert_allclose(part.sum(0), times * start.sum(0), atol=1e-11)
    if kind == "int8":
        assert np.ptp(result.final.x, axis=0).max() < 0.05 * np.ptp(start, axis=0).max()
    assert result.metrics["bytes"][0, -1] == 240 * result.constants["message_bytes"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("zip", "compressor.kind: got 'zip'.*Allowed: int8, random_k, sign, sketch, top_k"),
        ({"fraction": 0.1}, "compressor.kind"),
        (3, "compressor.kind: got 3"),
        ({"kind": "top_k", "share": 0.1}, "compressor.share: got 0.1.*fraction"),
        ({"kind": "int8", "fraction": 0.1}, "compressor.fraction"),
        ({"kind": "top_k", "fraction": 0.0}, "compressor.fraction: got 0.0"),
        ({"kind": "random_k", "fraction": 1.1}, "compressor.fraction: got 1.1"),
        ({"kind": "random_k", "fraction": "all"}, "compressor.fraction: got 'all'"),
    ],
)
def test_bad_compressors_are_refused(value, message):
    with pytest.raises(InvalidInput, match=message):
        Gossip(compressor=value)


# -- sketches --------------------------------------------------------------------------------------------------------------

DIGITAL = ("gaussian", "sparse", "hadamard", "count_sketch")
LIGHT = {"projector": "optical", "calibrated": True}


@pytest.mark.parametrize(
    ("projector", "refresh", "theory"),
    [
        ("gaussian", "round", 100 / 1101),
        ("gaussian", "signs", 100 / 1101),
        ("gaussian", "region", 100 / 1101),
        ("count_sketch", "round", 1 / (1 + 999 / 100)),
        ("sparse", "round", 100 / (1101 - 2 / 32)),
        ("hadamard", "round", 0.1),
    ],
)
def test_delta_of_sketches(projector, refresh, theory):
    """Within 5 % of theory at k/d = 0.1, d = 1000 (target T17), over 400 draws; "hadamard" is padded to 1024 points: 0.0998."""
    x = jax.random.normal(jax.random.key(0), (D,))
    errors = relative_errors("sketch", x, 400, projector=projector, refresh=refresh)
    assert 1 - errors.mean() == pytest.approx(theory, rel=0.05)
    assert as_compressor({"kind": "sketch", "projector": projector}).delta(D) == pytest.approx(
        theory, rel=0.003
    )


def test_no_sketch_is_better_than_random_places():
    random_k = as_compressor("random_k").delta(D)
    for projector in DIGITAL:
        assert 0.9 * random_k < as_compressor({"kind": "sketch", "projector": projector}).delta(D) <= random_k


@pytest.mark.parametrize("refresh", ["signs", "region"])
def test_a_sketch_by_light(refresh):
    """A calibrated unit in 6 bits: a Gaussian's delta within 10 %, though pixels saturate, round, and are dark."""
    x = jax.random.normal(jax.random.key(0), (200,))
    errors = relative_errors("sketch", x, 100, fraction=0.2, refresh=refresh, **LIGHT)
    assert 1 - errors.mean() == pytest.approx(40 / 241, rel=0.1)


def test_a_fixed_sketch_moves_its_row_space_alone():
    """What it takes from a vector again and again converges to the projection on k of d dimensions; signs get all of it."""

    def left(refresh, rounds=400):
        compressor = as_compressor(
            {"kind": "sketch", "fraction": 0.2, "refresh": refresh, "allow_rank_deficient": True}
        )
        x = jax.random.normal(jax.random.key(0), (50,))
        rest = jax.lax.fori_loop(
            0, rounds, lambda t, x: x - decompress(compress(compressor, x, jax.random.key(t))), x
        )
        return float((rest**2).sum() / (x**2).sum())

    assert left("none") == pytest.approx(left("none", 1600), rel=1e-3)
    assert left("none") == pytest.approx(1 - 0.2, abs=0.25)
    assert left("signs") < 1e-6


def test_another_matrix_at_the_receiver_makes_it_worse():
    """E<x, H2' H1 x> = 0: nothing is gained, and noise comes in."""
    x = jax.random.normal(jax.random.key(0), (D,))
    assert relative_errors("sketch", x, 20, matched=False).mean() > 1
    assert as_compressor({"kind": "sketch", "matched": False}).delta(D) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"refresh": "none"}, InvalidInput, "only its row space ever moves: a share 1 - fraction"),
        ({**LIGHT, "refresh": "none"}, InvalidInput, "row space"),
        ({**LIGHT, "refresh": "round"}, InvalidInput, "projector.refresh: got 'round'"),
        ({"projector": "optical", "refresh": "signs"}, NotCalibrated, "compressor.calibrated.*stored"),
        ({"projector": "fourier"}, InvalidInput, "compressor.projector: got 'fourier'"),
        ({"projector": "hadamard", "refresh": "region"}, InvalidInput, "projector.refresh: got 'region'"),
        ({"refresh": "sometimes"}, InvalidInput, "compressor.refresh: got 'sometimes'"),
        ({"fraction": 0}, InvalidInput, "compressor.fraction: got 0"),
        ({"fraction": 1.5}, InvalidInput, "compressor.fraction: got 1.5"),
        ({"rows": 0}, InvalidInput, "compressor.rows: got 0"),
        ({"matched": 1}, InvalidInput, "compressor.matched: got 1"),
        ({**LIGHT, "refresh": "signs", "precision": 0}, InvalidInput, "compressor.precision: got 0"),
    ],
)
def test_bad_sketches_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        CHOCO(compressor={"kind": "sketch", **arguments})


@pytest.mark.slow
def test_choco_with_a_fixed_sketch_stops_at_its_null_space():
    """1 - k/d of the consensus error stays (target T18, small); with fresh signs it goes, and with another's matrix it grows."""
    n, d = 4, 60
    problem = Quadratic.of(np.ones(n), np.zeros((n, d)))
    start = np.random.default_rng(0).standard_normal((n, d))

    def left(**sketch):
        compressor = {"kind": "sketch", "fraction": 0.5, "allow_rank_deficient": True, **sketch}
        algorithm = CHOCO(optimizer={"kind": "sgd", "learning_rate": 0.0}, gamma=0.15, compressor=compressor)
        result = simulate(
            problem, named("ring", n=n), algorithm, Rounds(), stop=Gradients(n * 300), initial=start,
            record=Record(count=2, evaluate=False),
        )  # fmt: skip
        curve = result.metrics["consensus_distance"][0]
        return curve[-1] / curve[0]

    assert left(refresh="none") == pytest.approx(0.5, abs=0.15)
    assert left(refresh="signs") < 1e-3
    assert left(refresh="none", matched=False) > 1e3


def test_a_compressor_is_its_table():
    for kind, cls in COMPRESSORS.items():
        compressor = as_compressor(kind)
        assert type(compressor) is cls
        assert as_compressor(compressor.as_dict()) == as_compressor(compressor) == compressor
    assert as_compressor(None) is None
    assert as_compressor({"kind": "top_k", "fraction": 0.5}).as_dict() == {"kind": "top_k", "fraction": 0.5}
