"""Recorded runs of the authors' own classes, replayed event by event (targets A1, A3, A4)."""

import jax
import numpy as np
import pytest
import recorded

from decentral import Trace


def pytest_generate_tests(metafunc):
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", sorted(recorded.load(metafunc.config.getoption("--recorded-dir"))))


@pytest.mark.parametrize("executor", ["rows", pytest.param("eager", marks=pytest.mark.slow)])
def test_every_stored_state_is_reached(name, executor, recorded_dir):
    run, data = recorded.load(recorded_dir)[name], recorded.arrays(recorded_dir, name)
    result, references = recorded.replay(run, data, executor)
    for events, state in zip(references, result.states, strict=True):
        for field, reference in references[events].items():
            if run["algo"] == "async baseline" and field == "x_tilde":
                continue
            worst = np.abs(getattr(state, field) - reference).max()
            assert worst <= 1e-10 * max(1.0, np.abs(reference).max()), f"{field} after {events} events"


def test_recorded_metrics_are_reached(name, recorded_dir):
    """The authors' distance and consensus are of the states as stored."""
    run, data = recorded.load(recorded_dir)[name], recorded.arrays(recorded_dir, name)
    if run["algo"] in ("MSDA", "Continuized"):
        pytest.skip("their metrics are of a gradient that nobody takes: see the next test")
    result, references = recorded.replay(run, data, "rows")
    points = {point["k"]: point for point in run["trajectory"]}
    for column, events in enumerate(references):
        point = points.get(events, {})
        for key, metric in (
            ("dist2", "distance_to_optimum_stored"),
            ("consensus", "consensus_distance_stored"),
        ):
            if key in point:
                # The square of a distance that is right to 1e-13.
                np.testing.assert_allclose(
                    result.metrics[metric][0, column],
                    point[key],
                    rtol=1e-8,
                    atol=1e-25 + 2e-13 * point[key] ** 0.5,
                )


@pytest.mark.parametrize("field", ["x", "z"])
def test_recorded_distances_of_dual_methods_are_reached(name, field, recorded_dir):
    """The authors take the dual gradient anew for their metrics: at x of MSDA, at z of Continuized."""
    run, data = recorded.load(recorded_dir)[name], recorded.arrays(recorded_dir, name)
    if run["algo"] != {"x": "MSDA", "z": "Continuized"}[field]:
        pytest.skip("another method")
    result, references = recorded.replay(run, data, "rows")
    problem = recorded.problem_of(run, data)
    primal = jax.vmap(problem.dual_gradient)
    points = {point["k"]: point for point in run["trajectory"]}
    compared = 0
    for rounds, state in zip(references, result.states, strict=True):
        if rounds in points:
            away = np.asarray(primal(getattr(state, field), problem.shards)) - problem.optimum
            np.testing.assert_allclose(
                (away**2).sum(1).mean(), points[rounds]["dist2"], rtol=1e-8, atol=1e-20
            )
            compared += 1
    assert compared


def test_the_official_event_stream_from_its_seed(recorded_dir):
    """``dadao_official_e2e_cycle10``: the authors' generator, from the recipe of their code."""
    name = "dadao_official_e2e_cycle10"
    if name not in recorded.load(recorded_dir):
        pytest.skip(f"{name} is not in {recorded_dir}")
    run, data = recorded.load(recorded_dir)[name], recorded.arrays(recorded_dir, name)
    time_s, op, operands = official_events(run)
    np.testing.assert_array_equal(op, data["kind"])
    np.testing.assert_array_equal(operands, data["ab"])
    # The authors sum the waiting times in another order.
    np.testing.assert_allclose(time_s, data["t"], rtol=1e-13)
    assert Trace.from_arrays(time_s, op, operands, n_workers=run["n"]).counts == {
        "gradient": run["n_grad"],
        "exchange": run["n_com"],
    }


def official_events(run):
    """RandomState(seed): waits of each process until their sum passes t_max, merged until one list is used up."""
    random = np.random.RandomState(run["seed"])

    def ticks(rate):
        times, now = [], 0.0
        while now <= run["T"]:
            now += -np.log(1 - random.rand()) / rate
            times.append(now)
        return times

    gradients, exchanges = ticks(run["lamb_grad"]), ticks(run["lamb_mix"])
    edges = run["graphs"][0]
    time_s, op = [], []
    a = b = 0
    while a < len(gradients) and b < len(exchanges):
        if gradients[a] <= exchanges[b]:
            time_s.append(gradients[a])
            op.append(0)
            a += 1
        else:
            time_s.append(exchanges[b])
            op.append(1)
            b += 1
    operands = [
        [random.randint(0, run["n"]), -1] if code == 0 else edges[random.randint(0, len(edges))]
        for code in op
    ]
    return np.array(time_s), np.array(op), np.array(operands)
