"""Detectors at workers, what they look at, and the drifts and faults that they are to find."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decentral
from decentral import ADPSGD, DPSGD, Poisson, Record, Time
from decentral.algorithm import PETRA, SGD, Faulty, Monitored
from decentral.errors import InvalidInput, InvalidInputs
from decentral.experiment.spec import load_spec
from decentral.optical.camera import Camera
from decentral.optical.maps import Direction, Fastfood, Fourier, Identity, Optical, as_map, median_distance
from decentral.optical.newma import Newma
from decentral.problem import digits, drifting, logistic, quadratic
from decentral.topology import named

pytestmark = pytest.mark.usefixtures("compiled_once")
OPTIMIZER = {"learning_rate": 0.05}
RNG = np.random.default_rng(0)


# -- codes and maps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Fourier, Fastfood])
def test_inner_products_of_fourier_features_are_the_gaussian_kernel(kind):
    samples = RNG.standard_normal((20, 11))
    scale = median_distance(samples)
    features = kind(2048, scale)(jnp.asarray(samples))
    kernel = np.exp(-((samples[:, None] - samples) ** 2).sum(-1) / (2 * scale**2))
    # 2048 rows: a deviation of at most 0.7/sqrt(2048) = 0.016 each, of 400 five times that.
    np.testing.assert_allclose(features @ features.T, kernel, atol=0.08)
    assert features.shape == (20, kind(2048).outputs(11))


def test_inner_products_of_optical_features_are_the_optical_kernel():
    bits = RNG.integers(0, 2, (10, 60)).astype(float)
    ideal = Optical(8192, camera=Camera(bits=None, full_scale=None))(jnp.asarray(bits))
    ones = bits.sum(1)
    kernel = (np.outer(ones, ones) + (bits @ bits.T) ** 2) / 30**2  # in units of half of the mirrors on
    np.testing.assert_allclose(ideal @ ideal.T, kernel, rtol=0.15)  # six deviations of 2.2/sqrt(8192)
    read = Optical(8192)(jnp.asarray(bits)) * np.sqrt(8192) / (5 / 255)
    np.testing.assert_allclose(read, np.round(read), atol=1e-6)  # levels of an 8-bit camera
    assert read.max() == pytest.approx(255)


@pytest.mark.parametrize("levels", [0, 5])
@pytest.mark.parametrize("inputs", [1, 7, 32, 500])
def test_a_direction_has_no_length(inputs, levels):
    vector = jnp.asarray(RNG.standard_normal(inputs))
    code = Direction(32, levels)
    found = code(vector)
    assert found.shape == (code.outputs,)
    np.testing.assert_allclose(code(1e-9 * vector), found, atol=1e-12)
    np.testing.assert_allclose(code(1e9 * vector), found, atol=1e-12)
    small = jnp.asarray(1e-30 * vector, jnp.float32)  # its squares are 0
    np.testing.assert_allclose(code(small), code(jnp.asarray(vector, jnp.float32)), atol=1e-5)
    if levels:
        assert set(np.unique(found)) <= {0.0, 1.0}
    else:
        assert float(jnp.sum(found**2)) == pytest.approx(32)
        np.testing.assert_array_equal(code(0 * vector), np.zeros(32))


def test_codes_of_two_random_directions_are_as_far_apart_as_said():
    vectors = jnp.asarray(RNG.standard_normal((400, 300)))
    for code in (Direction(), Direction(levels=4)):
        codes = np.asarray(jax.vmap(code)(vectors))
        squares = ((codes[:200] - codes[200:]) ** 2).sum(1)
        assert squares.mean() ** 0.5 == pytest.approx(code.distance, rel=0.03)


# -- monitors ------------------------------------------------------------------------------------------------------------


def watched(algorithm, problem, end=900.0, **how):
    how = {"record": Record(count=7, evaluate=False, states=True)} | how
    graph = named("ring", n=problem.n_workers)
    return decentral.simulate(problem, graph, algorithm, Poisson(), stop=Time(end), **how)


@pytest.fixture(scope="module")
def problem():
    return digits(4, batch_size=8, l2=1e-2, dtype="float32")


def monitored(**how):
    return Monitored(ADPSGD(optimizer=OPTIMIZER), Newma(50, quantile=0.999, warmup=200), **how)


@pytest.mark.slow
@pytest.mark.parametrize("features", ["identity", {"kind": "optical", "rows": 130}])
def test_the_worker_whose_data_change_is_told_apart(problem, features):
    changed = drifting(problem, worker=2, after=800)
    states = watched(monitored(features=features), changed).states
    alarms = np.array([state.own.alarms for state in states])
    assert not alarms[-3].any()  # t = 600
    assert alarms[-1, 2] >= 1
    # Of the others 0.5 false alarms in 1,000 samples each are usual: 1 is to be expected.
    assert alarms[-1, [0, 1, 3]].sum() <= 2
    assert 800 < states[-1].own.last[2] < 850


@pytest.mark.slow
def test_neighbours_of_a_broken_sender_notice(problem):
    broken = Faulty(monitored(stream="consensus", features="identity"), worker=2, after=800, fault="zeros")
    states = watched(broken, problem).states
    alarms = np.array([state.inner.own.alarms for state in states])
    assert not alarms[-3].any()
    assert (alarms[-1, [1, 3]] >= 1).all()


@pytest.mark.slow
def test_a_monitor_changes_nothing_but_adds_its_metrics(problem):
    record = Record(count=4, states=True)
    plain, seen = (
        watched(algorithm, problem, 60.0, record=record, seeds=2)
        for algorithm in (ADPSGD(optimizer=OPTIMIZER), monitored(features="identity"))
    )
    for name, values in plain.metrics.items():
        np.testing.assert_allclose(seen.metrics[name], values, rtol=1e-6, err_msg=name)
    assert set(seen.metrics) - set(plain.metrics) == {
        "alarms", "alarms_worst", "statistic", "statistic_worst",
    }  # fmt: skip
    of_workers = np.asarray(seen.states[-1].own.statistic).reshape(2, 4)
    np.testing.assert_allclose(seen.metrics["statistic"][:, -1], of_workers.mean(1), rtol=1e-6)
    np.testing.assert_allclose(seen.metrics["statistic_worst"][:, -1], of_workers.max(1), rtol=1e-6)


def test_every_gradient_is_a_sample(problem):
    result = watched(monitored(features="identity"), problem, 50.0)
    counts = np.asarray(result.states[-1].own.detector.count)
    assert counts.sum() == result.metrics["gradients"][0, -1]


# -- faults --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["zeros", "negated", "noise"])
def test_a_broken_sender_is_sound_itself_until_and_after(fault):
    algorithm = Faulty(DPSGD(optimizer=OPTIMIZER), worker=1, after=2, fault=fault, scale=0.5).resolve(
        None, None
    )
    params = jnp.asarray(RNG.standard_normal(4000))
    state = algorithm.init(params, jax.random.key(0))

    class Local:
        worker = jnp.int32(1)

    for sent in range(4):
        message, state = algorithm.message(state, Local(), jax.random.key(sent))
        arrived = algorithm.decode(message)
        np.testing.assert_array_equal(arrived.meant.x, params)
        off = arrived.said.x - params
        if sent < 2:
            np.testing.assert_array_equal(off, 0)
        elif fault == "noise":
            size = 0.5 * float(jnp.sqrt(jnp.mean(params**2)))
            assert float(off.std()) == pytest.approx(size, rel=0.06)  # five deviations of 4000 draws
        else:
            np.testing.assert_allclose(arrived.said.x, 0 if fault == "zeros" else -params)
    Local.worker = jnp.int32(0)
    message, _ = algorithm.message(state, Local(), jax.random.key(9))
    np.testing.assert_array_equal(algorithm.decode(message).said.x, params)


# -- drifts --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_gradients_see_other_data_after_the_drift_and_measurements_never(problem):
    changed = drifting(problem, worker=1, after=10)
    params = jnp.asarray(RNG.standard_normal((65, 10)), jnp.float32)
    key = jax.random.key(3)

    def gradient(of, worker, count):
        return of.gradient(params, of.shards, jnp.int32(worker), key, jnp.uint32(count))

    for worker in range(4):
        for count in (0, 9, 10, 50):
            same = np.array_equal(gradient(changed, worker, count), gradient(problem, worker, count))
            assert same == (worker != 1 or count < 10)
    for worker in range(4):
        rows = [jax.tree.map(lambda leaf, k=worker: leaf[k], one.shards) for one in (changed, problem)]
        assert float(changed.loss(params, rows[0])) == float(problem.loss(params, rows[1]))
        assert changed.train_metrics(params, rows[0]) == problem.train_metrics(params, rows[1])
    samples = changed.shards["data"]["samples"]
    count = int(changed.shards["data"]["count"][1, 0])
    before, after = (np.asarray(samples["target"][1, k, :count]) for k in (0, 1))
    assert (before != after).all()  # every class becomes another one
    assert len({(a, b) for a, b in zip(before.tolist(), after.tolist(), strict=True)}) == 10


@pytest.mark.parametrize("change", ["labels", "features", "noise"])
def test_named_changes(change):
    before = logistic(3, d=5, samples_per_worker=40, batch_size=4)
    after = drifting(before, worker=0, change=change).shards["data"]["samples"]
    part, other = ("target", "features") if change == "labels" else ("features", "target")
    np.testing.assert_array_equal(after[other][:, 0], after[other][:, 1])
    np.testing.assert_array_equal(after[part][1:, 0], after[part][1:, 1])
    old, new = np.asarray(after[part][0, 0]), np.asarray(after[part][0, 1])
    if change == "labels":
        np.testing.assert_array_equal(new, -old)
    elif change == "features":
        np.testing.assert_allclose((new - old).std(0), 0, atol=1e-12)  # one shift for all samples
        assert np.abs(new - old).max() > 0.1
    else:
        assert np.corrcoef(old.ravel(), new.ravel())[0, 1] < 0.5


def test_a_change_of_ones_own():
    before = logistic(3, d=5, samples_per_worker=8)
    after = drifting(
        before, worker=2, change=lambda samples, rng: samples | {"features": 0 * samples["features"]}
    )
    assert float(jnp.abs(after.shards["data"]["samples"]["features"][2, 1]).max()) == 0


# -- specs ---------------------------------------------------------------------------------------------------------------

SPEC = """
name = "watch"
topology = { kind = "ring", n = 4 }
stop = { kind = "time", time_s = 5.0 }
[problem]
kind = "drifting"
worker = 1
after = 3
inner = { kind = "logistic", d = 5, samples_per_worker = 20, batch_size = 4, dtype = "float32" }
[[algorithm]]
kind = "faulty"
worker = 2
fault = "noise"
[algorithm.inner]
kind = "monitored"
stream = "consensus"
detector = { kind = "moving_averages", window = 10 }
features = { kind = "optical", rows = 16 }
code = { size = 8, levels = 2 }
inner = { kind = "adpsgd", optimizer = { learning_rate = 0.1 } }
"""


def test_a_spec_names_what_is_inside(tmp_path):
    path = tmp_path / "watch.toml"
    path.write_text(SPEC)
    spec = load_spec(path, overrides=["algorithm.inner.inner.optimizer.learning_rate=0.2"])
    assert load_spec(spec.as_dict()) == spec
    algorithm = spec.algorithms()["faulty"]
    assert isinstance(algorithm, Faulty)
    assert algorithm.inner.code == Direction(8, 2)
    assert algorithm.inner.features == Optical(16)
    assert spec.as_dict()["algorithm"][0]["inner"]["inner"]["optimizer"] == {"learning_rate": 0.2}
    assert spec.dtype == "float32"
    changed = spec.problem_of(0)
    assert changed.n_workers == 4
    assert changed.shards["since"].tolist() == [2**32 - 1, 3, 2**32 - 1, 2**32 - 1]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("adpsgd", "adpsgt", r"algorithm.faulty.inner.inner.kind: got 'adpsgt'. Did you mean 'adpsgd'"),
        ("learning_rate = 0.1", "rate = 0.1", "rate"),
        ("logistic", "logistik", r"problem.inner.kind: got 'logistik'. Did you mean 'logistic'"),
        ("samples_per_worker", "samples", "problem.inner.samples: unknown key"),
        ("window = 10", "window = 1", "at least 2"),
        ("levels = 2", "levels = 0", "at least 1 with optical features"),
        ("moving_averages", "moving_average", "Did you mean 'moving_averages'"),
        ("inner = { kind = \"logistic\", d = 5, samples_per_worker = 20, batch_size = 4, dtype = \"float32\" }", "",
         "problem.inner: missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_inside_is_said_with_its_place(tmp_path, old, new, words):
    path = tmp_path / "watch.toml"
    path.write_text(SPEC.replace(old, new))
    with pytest.raises((InvalidInput, InvalidInputs), match=words):
        load_spec(path)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Monitored(3), "algorithm.inner.*an algorithm"),
        (lambda: Monitored(SGD()), "SGD, which sends no messages"),
        (lambda: Monitored(PETRA()), "PETRA"),
        (lambda: Monitored(Faulty(ADPSGD())), r"Faulty\(inner=Monitored"),
        (lambda: Monitored(stream="gradients"), "Did you mean 'gradient'"),
        (lambda: Monitored(features="optical", code=Direction()), "at least 1 with optical features"),
        (lambda: Monitored(features="opticle"), "Did you mean 'optical'"),
        (lambda: Monitored(code={"sise": 3}), "Did you mean 'size'"),
        (lambda: Faulty(fault="zero"), "Did you mean 'zeros'"),
        (lambda: Faulty(worker=9).resolve(quadratic(4), None), "one of 0 ... 3"),
        (lambda: Direction(0), "code.size"),
        (lambda: Fourier(0), "features.rows"),
        (lambda: Fourier(scale=0.0), "features.scale"),
        (lambda: Fourier(4)(jnp.zeros(3)), "median_distance"),
        (lambda: as_map(Direction()), "features"),
        (lambda: median_distance(np.ones((5, 2))), "samples that differ"),
        (lambda: median_distance(np.ones(5)), "two samples or more"),
        (lambda: as_map({"kind": "optical", "camera": 5}), "features.camera"),
        (lambda: as_map({"kind": "optical", "camera": {"bit": 4}}), "Did you mean 'bits'"),
        (lambda: Optical(4, device_id=1.5), "features.device_id: got 1.5"),
        (lambda: drifting(quadratic(4)), "a problem of samples"),
        (lambda: drifting(logistic(3, d=2, samples_per_worker=4), worker=3), "one of 0 ... 2"),
        (lambda: drifting(logistic(3, d=2, samples_per_worker=4), change="label"), "Did you mean 'labels'"),
        (lambda: drifting(logistic(3, d=2, samples_per_worker=4), change=lambda s, rng: s["target"]), "the shapes"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_words(build, words):
    with pytest.raises(InvalidInput, match=words):
        build()


def test_identity_is_what_it_is_called():
    assert Identity()(jnp.arange(3.0)).tolist() == [0.0, 1.0, 2.0]
    assert Identity().outputs(3) == 3


def test_feedback_belongs_to_what_is_inside():
    table = {"kind": "dfa"}
    outside, inside = (Monitored(ADPSGD(), feedback=table), Monitored(ADPSGD(feedback=table)))
    assert outside == inside
    assert outside.oracle == outside.feedback == outside.inner.oracle
    assert Faulty(inside).oracle == inside.oracle


def test_a_spec_may_describe_the_camera_of_the_optical_map():
    assert as_map({"kind": "optical", "camera": {"bits": 4, "full_scale": 3.0}}).camera == Camera(4, 3.0)
