"""Direct feedback alignment: its signal, its gradients, who may use it, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import mostly_slow

import decentral
from decentral import DPSGD, SGD, Record, problem, simulate, topology
from decentral.algorithm import ALGORITHMS
from decentral.errors import InvalidInput, InvalidInputs
from decentral.experiment.spec import load_spec
from decentral.optical.feedback import NOISE, REGION, Feedback, as_feedback
from decentral.optical.unit import OpticalUnit
from decentral.problem import PROBLEMS, Stage, from_stages
from decentral.protocol import AllReduce, Gradients, Rounds

UNIT, OTHER = jax.random.key(1), jax.random.key(2)
OPTIMIZER = {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9}
TERNARY = {"error": "ternary", "threshold": 0.2}
SMALL = {
    "layered_mlp": {"hidden": (6, 5), "batch_size": 8},
    "layered_transformer": {"width": 8, "sequences": 32, "test_sequences": 8, "batch_size": 8},
    "layered_gcn": {"hidden": (6, 5)},
    "layered_coordinates": {"side": 8, "hidden": (6, 5), "batch_size": 8},
    "layered_recommender": {"users": 9, "items": 7, "samples": 60, "embedding": 4, "hidden": (5,), "batch_size": 8},
}  # fmt: skip


def errors(rows=12, scores=10, seed=0):
    """What softmax and one-hot labels give for a mean over rows."""
    rng = np.random.default_rng(seed)
    chances = jax.nn.softmax(jnp.asarray(rng.normal(size=(rows, scores))))
    return (chances - jax.nn.one_hot(rng.integers(scores, size=rows), scores)) / rows


# -- the signal --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matrix", ["gaussian", "shared_slice", "uniform"])
def test_signal_is_the_matrix_times_the_error(matrix):
    feedback, error = Feedback(matrix=matrix), errors()
    for layer in (0, 3):
        signal = feedback.signal(error, 7, layer, UNIT, OTHER)
        expected = error @ feedback.rows(10, 7, layer, UNIT, error.dtype).T
        np.testing.assert_allclose(signal, expected, rtol=1e-5)


@pytest.mark.parametrize(("matrix", "same"), [("gaussian", False), ("shared_slice", True), ("uniform", True)])
def test_layers_have_the_same_rows_where_they_share_a_slice(matrix, same):
    first, second = (Feedback(matrix=matrix).rows(10, 7, layer, UNIT) for layer in (0, 1))
    assert bool((first == second).all()) is same


@pytest.mark.parametrize("matrix", ["gaussian", "shared_slice"])
def test_more_width_adds_rows_and_changes_none(matrix):
    narrow, wide = (Feedback(matrix=matrix).rows(10, width, 1, UNIT) for width in (3, 9))
    np.testing.assert_array_equal(narrow, wide[:3])


@pytest.mark.parametrize(("matrix", "variance"), [("gaussian", 1 / 10), ("uniform", 1 / 3 / 400)])
def test_rows_have_the_variance_they_should(matrix, variance):
    """4,000 entries: 5 % are more than two standard errors of a variance of normals, 1e-3 of uniforms."""
    rows = np.asarray(Feedback(matrix=matrix).rows(10, 400, 0, UNIT))
    assert rows.var() == pytest.approx(variance, rel=0.07)
    assert abs(rows.mean()) < 4 * (variance / rows.size) ** 0.5


def test_units_have_matrices_of_their_own_and_a_traced_layer_is_the_same_layer():
    feedback, error = Feedback(), errors()
    signals = jax.vmap(lambda layer: feedback.signal(error, 5, layer, UNIT, OTHER))(jnp.arange(3))
    for layer in range(3):
        np.testing.assert_allclose(
            signals[layer], feedback.signal(error, 5, layer, UNIT, OTHER), rtol=1e-5, atol=1e-9
        )
    assert not np.allclose(signals[0], feedback.signal(error, 5, 0, OTHER, OTHER))


def test_top_k_and_ternary_send_what_they_say():
    error = jnp.array([[0.5, -0.3, 0.1, -0.3], [0.0, 0.2, 0.6, -0.8]]) / 2  # of a mean over two rows
    unit = {"unit_key": UNIT, "noise_key": OTHER}

    def sent(**arguments):
        feedback = Feedback(**arguments)
        signal = feedback.signal(error, 4, 0, **unit)
        return 2 * signal @ jnp.linalg.inv(feedback.rows(4, 4, 0, UNIT, error.dtype)).T

    np.testing.assert_allclose(sent(error="top_k", k=1), [[0.5, 0, 0, 0], [0, 0, 0, -0.8]], atol=1e-3)
    mean = (0.5 + 0.3 + 0.3) / 3
    np.testing.assert_allclose(
        sent(error="ternary", threshold=0.26), [[mean, -mean, 0, -mean], [0, 0, 0.7, -0.7]], atol=1e-3
    )


def test_errors_are_of_a_sample_whatever_the_batch():
    """A threshold is of one sample's error: what is sent of it does not depend on how many there are."""
    feedback = Feedback(error="ternary", threshold=0.2)
    few = errors(4)
    many = jnp.concatenate([few, few, few]) / 3
    np.testing.assert_allclose(
        3 * feedback.signal(many, 5, 0, UNIT, OTHER)[:4], feedback.signal(few, 5, 0, UNIT, OTHER), rtol=1e-4
    )


def test_noise_has_the_amplitude_it_should():
    error = errors(500)
    clean, noisy = (Feedback(snr=snr).signal(error, 60, 0, UNIT, OTHER) for snr in (None, 0.5))
    size = jnp.sqrt(jnp.mean(clean**2, -1, keepdims=True))
    assert float(jnp.std((noisy - clean) / size)) == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize(
    ("mode", "error"),
    [("anchor", TERNARY), ("four_phase", {}), ("off_axis", TERNARY)],
)
def test_light_gives_what_the_matrix_of_the_unit_gives(mode, error):
    """All but what bits and the camera's levels lose: the field's real part, or its part along the anchor's field."""
    feedback = Feedback(matrix="optical", mode=mode, bits=16, full_scale=100.0, precision=12, **error)
    slope = errors().astype(jnp.float32)
    layer, width = 2, 40
    unit = OpticalUnit(0, UNIT, 10, width, region=layer * REGION)
    field = unit.rows() @ feedback._sent(slope * len(slope)).T / len(slope)
    along = unit.field(np.ones(10, bool))[:, None]
    expected = jnp.real(field) if mode != "anchor" else jnp.real(jnp.conj(along) * field) / jnp.abs(along)
    signal = feedback.signal(slope, width, layer, UNIT, OTHER)
    seen = np.ones(width, bool) if mode != "anchor" else np.abs(np.asarray(along[:, 0])) ** 2 > 0.5
    wrong = (signal - (2 / 10) ** 0.5 * expected.T)[:, seen]
    assert float(jnp.linalg.norm(wrong) / jnp.linalg.norm(signal[:, seen])) < 0.02


def test_frames_of_light():
    assert Feedback().frames == 0
    ternary = {"error": "ternary", "threshold": 0.2, "matrix": "optical"}
    assert {mode: Feedback(mode=mode, **ternary).frames for mode in ("anchor", "four_phase", "off_axis")} == {
        "anchor": 4, "four_phase": 4, "off_axis": 2,
    }  # fmt: skip
    assert Feedback(matrix="optical").frames == 6 * 2 * 2


# -- gradients ---------------------------------------------------------------------------------------------------------


def chain(widths=(5, 4, 4, 4, 3)):
    """A tanh network, by hand: its problem, parameters and a batch."""

    def dense(a, b):
        return Stage(lambda key: {"w": jax.random.normal(key, (a, b))}, lambda p, x: jnp.tanh(x @ p["w"]))

    kinds = {
        "first": dense(*widths[:2]), "inner": dense(4, 4),
        "head": Stage(lambda key: {"w": jax.random.normal(key, widths[-2:])}, lambda p, x: x @ p["w"]),
    }  # fmt: skip
    rng = np.random.default_rng(0)
    data = [(rng.normal(size=(9, widths[0])), rng.integers(widths[-1], size=9).astype(np.int32))]
    task = from_stages(
        kinds, ["first", "inner", "inner", "head"], data, n=1, workers_per_model=1, batch_size=9
    )
    x, labels = data[0]
    return task, task.initial(jax.random.key(3)), jnp.asarray(x, jnp.float32), jnp.asarray(labels)


def test_slopes_are_those_of_the_rule():
    """d_l = (B_l e) f'(a_l), dW_l = h_(l-1)^T d_l; the last layer's are exact."""
    task, params, x, labels = chain()
    feedback = Feedback()
    slopes = feedback.slopes(task.stages, params, x, labels, UNIT, OTHER)
    weights = [params["first"]["w"][0], *params["inner"]["w"], params["head"]["w"][0]]
    passed = [x]
    for weight in weights[:-1]:
        passed.append(jnp.tanh(passed[-1] @ weight))
    scores = passed[-1] @ weights[-1]
    error = (jax.nn.softmax(scores) - jax.nn.one_hot(labels, 3)) / len(x)
    found = [slopes["first"]["w"][0], *slopes["inner"]["w"], slopes["head"]["w"][0]]
    for layer in range(3):
        delta = error @ feedback.rows(3, 4, layer, UNIT).T * (1 - passed[layer + 1] ** 2)
        np.testing.assert_allclose(found[layer], passed[layer].T @ delta, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[3], passed[3].T @ error, rtol=1e-4, atol=1e-6)


def test_shallow_moves_the_last_layer_alone_and_backprop_is_the_gradient():
    task, params, x, labels = chain()
    exact = jax.grad(lambda p: task.stages.loss(task.stages.apply(p, x), labels))(params)
    shallow, backprop = (
        Feedback(kind).slopes(task.stages, params, x, labels, UNIT, OTHER) for kind in ("shallow", "backprop")
    )
    for kind in ("first", "inner"):
        assert not np.asarray(shallow[kind]["w"]).any()
    np.testing.assert_allclose(shallow["head"]["w"], exact["head"]["w"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), backprop, exact)


def test_alignment_is_the_cosine_and_one_with_the_gradient_itself():
    task, params, x, labels = chain()
    feedback = Feedback()
    ours = feedback.slopes(task.stages, params, x, labels, UNIT, jax.random.fold_in(UNIT, NOISE))
    exact = jax.grad(lambda p: task.stages.loss(task.stages.apply(p, x), labels))(params)
    cosines = feedback.alignment(task.stages, params, x, labels, UNIT)
    assert cosines.shape == (3,)
    a, b = ours["inner"]["w"][1].ravel(), exact["inner"]["w"][1].ravel()
    assert float(cosines[2]) == pytest.approx(
        float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b)), rel=1e-4
    )
    np.testing.assert_allclose(
        Feedback("backprop").alignment(task.stages, params, x, labels, UNIT), 1, rtol=1e-5
    )
    np.testing.assert_array_equal(Feedback("shallow").alignment(task.stages, params, x, labels, UNIT), 0)


@pytest.mark.parametrize("kind", mostly_slow(SMALL, "layered_mlp"))
def test_every_layered_problem_takes_every_feedback(kind):
    task = PROBLEMS[kind](2, **SMALL[kind])
    params = task.initial(jax.random.key(0))
    arguments = (params, task.shards, jnp.int32(1), jax.random.key(4), jnp.uint32(0))
    exact = task.gradient(*arguments)
    last = task.stages.order[-1]
    for feedback in (Feedback(), Feedback(matrix="optical")):
        slopes = jax.jit(task.oracle(feedback))(*arguments, UNIT)
        assert jax.tree.map(jnp.shape, slopes) == jax.tree.map(jnp.shape, exact)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), slopes[last], exact[last]
        )
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


@pytest.mark.slow
def test_feedback_of_a_token_is_of_its_own_error():
    """Another error of the last token changes the last token's feedback alone."""
    task = PROBLEMS["layered_transformer"](1, **SMALL["layered_transformer"])
    error = jax.random.normal(UNIT, task.stages.scores.shape)
    outputs = task.stages.boundaries[0]
    one, other = (Feedback().cotangent(e, outputs, 0, UNIT, OTHER) for e in (error, error.at[:, -1].mul(-1)))
    np.testing.assert_allclose(one[:, :-1], other[:, :-1], rtol=1e-6)
    np.testing.assert_allclose(one[:, -1], -other[:, -1], rtol=1e-6)


# -- who may use it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"kind": "dfe"}, "feedback.kind"),
        ({"error": "top_k"}, "feedback.k"),
        ({"k": 3}, "feedback.k"),
        ({"error": "ternary"}, "feedback.threshold"),
        ({"snr": 0.0}, "feedback.snr"),
        ({"kind": "shallow", "matrix": "uniform"}, "feedback.matrix"),
        ({"mode": "off_axis"}, "feedback.mode"),
        ({"matrix": "optical", "mode": "intensity"}, "feedback.mode"),
        ({"matrix": "optical", "mode": "phase"}, "feedback.mode"),
        ({"matrix": "optical", "hardware": "OPU 9"}, "OPU 9"),
        ({"matrix": "optical", "bits": 0}, "camera.bits"),
        ({"scale": None}, "feedback.scale"),
    ],
)
def test_what_means_nothing_is_refused(arguments, name):
    with pytest.raises(InvalidInput, match=name):
        Feedback(**arguments)


def test_a_table_of_unknown_keys_is_refused_with_the_nearest():
    assert as_feedback("shallow") == Feedback("shallow")
    assert as_feedback(Feedback(snr=2.0).as_dict()) == Feedback(snr=2.0)
    with pytest.raises(InvalidInput, match="Did you mean 'matrix'"):
        as_feedback({"kind": "dfa", "matrx": "gaussian"})


def mlp(n=2, **options):
    return problem.layered_mlp(n, **{"hidden": (16, 16), "batch_size": 16} | options)


def trained(feedback, task=None, *, gradients=40, seeds=1, algorithm=SGD, **options):
    task = mlp() if task is None else task
    protocol = AllReduce() if algorithm is SGD else Rounds()
    return simulate(
        task, topology.named("complete", n=task.n_workers), algorithm(optimizer=OPTIMIZER, feedback=feedback),
        protocol=protocol, stop=Gradients(gradients), seeds=seeds, record=Record(count=2, **options),
    )  # fmt: skip


def test_problems_without_layers_and_dual_oracles_are_refused():
    with pytest.raises(InvalidInput, match="layered_mlp"):
        trained(Feedback(), problem.mlp(2, batch_size=4))
    duals = problem.quadratic(3, d=3, dtype="float32")
    with pytest.raises(InvalidInput, match="whose oracle is 'dual'"):
        simulate(
            duals,
            topology.named("ring", n=3),
            decentral.MSDA(feedback=Feedback()),
            protocol=Rounds(),
            stop=3.0,
        )


def test_a_threshold_below_the_first_residual_is_refused():
    with pytest.raises(InvalidInput, match=r"above 1/C = 0\.1 for 10 classes.*1/C"):
        trained(Feedback(error="ternary", threshold=0.1))


def test_layers_that_one_unit_has_no_pixels_for_are_refused():
    with pytest.raises(InvalidInput, match="one unit serves"):
        trained(Feedback(matrix="optical"), mlp(hidden=(REGION + 1,)))


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_every_algorithm_has_the_field(kind):
    algorithm = ALGORITHMS[kind](feedback=Feedback(snr=2.0))
    assert algorithm.feedback == Feedback(snr=2.0)
    assert jax.tree.structure(algorithm) != jax.tree.structure(ALGORITHMS[kind]())


def tables(**feedbacks):
    return {
        "name": "t",
        "topology": {"kind": "ring", "n": 3},
        "problem": {"kind": "layered_mlp", "hidden": [4]},
        "stop": {"kind": "time", "time_s": 2.0},
        "algorithm": [
            {"name": name, "kind": "adpsgd", "optimizer": {"learning_rate": 0.1}, "feedback": table}
            for name, table in feedbacks.items()
        ],
    }


def test_spec_reads_feedback_and_asks_for_the_control():
    spec = load_spec(tables(ours={"kind": "dfa", "snr": 3.0}, shallow={"kind": "shallow"}))
    assert spec.algorithms()["ours"].feedback == Feedback(snr=3.0)
    with pytest.raises(InvalidInputs, match=r'Add: \[\[algorithm\]\] name = "shallow", kind = "adpsgd"'):
        load_spec(tables(ours={"kind": "dfa"}))
    with pytest.raises(InvalidInputs, match=r"algorithm\.ours\.feedback\.matrix"):
        load_spec(tables(ours={"matrix": "gauss"}, shallow={"kind": "shallow"}))
    load_spec(tables(ours={"kind": "backprop"}))


# -- runs --------------------------------------------------------------------------------------------------------------


def final(result):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:], result.states[-1])


@pytest.mark.slow
@pytest.mark.parametrize("units", ["shared", "private"])
def test_a_seed_has_the_same_unit_alone_and_among_others(units):
    feedback = Feedback(units=units, snr=2.0)
    together = trained(feedback, seeds=[3, 5], algorithm=DPSGD, states=True)
    alone = trained(feedback, seeds=[5], algorithm=DPSGD, states=True)
    jax.tree.map(
        lambda both, one: np.testing.assert_allclose(both[2:], one, rtol=2e-4, atol=1e-6),
        final(together).x, final(alone).x,
    )  # fmt: skip


@pytest.mark.slow
def test_private_units_differ_and_shared_ones_do_not():
    """Two workers with the same data and the same batches, all of it: the first gradient's first layer."""
    task = mlp(partition="shared", batch_size=1437, sampling="shuffle", test_fraction=0.2)
    for units, same in (("shared", True), ("private", False)):
        result = trained(Feedback(units=units), task, gradients=2, algorithm=DPSGD, states=True)
        first, second = np.asarray(final(result).optimizer[0].trace["first"]["weight"])
        cosine = np.vdot(first, second) / np.linalg.norm(first) / np.linalg.norm(second)
        assert bool(cosine > 0.99) is same  # sums of batches in another order


@pytest.mark.slow
def test_backprop_as_feedback_is_the_run_without():
    none, backprop = (trained(feedback, states=True) for feedback in (None, Feedback("backprop")))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b), final(none), final(backprop))


@pytest.mark.slow
def test_alignment_is_recorded_where_feedback_is_random():
    result = trained(Feedback(units="private"))
    assert {name for name in result.metrics if name.startswith("alignment")} == {"alignment_0", "alignment_1"}
    assert np.abs(result.metrics["alignment_0"]).max() <= 1
    assert not [name for name in trained(Feedback("shallow")).metrics if name.startswith("alignment")]


@pytest.mark.slow
def test_weights_trained_with_light_work_without_it():
    """Evaluation is an ordinary forward pass: by hand it gives the accuracy that was recorded, and no unit is asked."""
    task = mlp()
    feedback = Feedback(matrix="optical", error="ternary", threshold=0.2, photons=100.0)
    result = trained(feedback, task, gradients=200, states=True)
    params = jax.tree.map(lambda leaf: leaf[0], final(result).x)
    x, labels = np.asarray(task.held_out["features"]), np.asarray(task.held_out["target"])
    h = x.reshape(len(x), -1)
    for kind in ("first", "layer_16_16"):
        h = np.tanh(h @ params[kind]["weight"][0] + params[kind]["bias"][0])
    scores = h @ params["head"]["weight"][0] + params["head"]["bias"][0]
    accuracy = np.mean(scores.argmax(1) == labels)
    assert accuracy == pytest.approx(float(result.metrics["test_accuracy"][0, -1]), abs=0.004)
    assert accuracy > 0.5


# Targets of the reference study; five seeds there, its tolerances here.


@pytest.mark.slow
def test_digits_are_learned_and_the_shallow_control_is_far_below():
    """T11, T13: 64-32-32-10 tanh, 40 epochs of 39 batches; 96.3 against 97.2 and 86.3 % in the reference.

    The shallow control is better here (90.7 %, features are centred), so that 5 points above it are not to be had for sure.
    """
    task = problem.layered_mlp(2, test_fraction=0.3, batch_size=16, partition="shared")
    runs = {
        feedback.kind: trained(feedback, task, gradients=2 * 40 * 39, seeds=3)
        for feedback in (Feedback("backprop"), Feedback(), Feedback("shallow"))
    }
    accuracy = {kind: float(run.metrics["test_accuracy"][:, -1].mean()) for kind, run in runs.items()}
    assert accuracy["dfa"] >= accuracy["backprop"] - 0.025
    assert accuracy["dfa"] >= accuracy["shallow"] + 0.03
    for layer in (0, 1):
        assert runs["dfa"].metrics[f"alignment_{layer}"][:, -1].mean() > 0.3


@pytest.mark.slow
def test_parity_needs_the_first_layer_and_intensity_does_not_teach_it():
    """T11: parity of 3 of 20 bits, which the shallow control cannot learn, and |B e|^2 not either."""
    task = problem.layered_mlp(2, data="parity", hidden=(128,), batch_size=16, partition="shared")
    accuracy = {
        kind: float(trained(Feedback(kind), task, gradients=6000).metrics["test_accuracy"][0, -1])
        for kind in ("dfa", "shallow", "intensity")
    }
    assert accuracy["dfa"] > 0.97
    assert accuracy["shallow"] < 0.65
    assert accuracy["intensity"] < 0.65
