"""Gossip, A2CiD2, DADAO: their step sizes and exact properties; and that the battery can fail."""

import dataclasses
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

import decentral
from decentral import (
    DADAO,
    A2CiD2,
    Algorithm,
    Gossip,
    InvalidInput,
    Network,
    Optimizer,
    Poisson,
    Record,
    Time,
)
from decentral.algorithm.base import known
from decentral.algorithm.optimizer import as_optimizer
from decentral.experiment import replay
from decentral.problem import Quadratic, quadratic
from decentral.testing import AlgorithmCheckFailed, check_algorithm
from decentral.topology import named

MOMENTUM = {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9}


def network(kind="ring", n=16, rate=1.0):
    return Network(named(kind, n=n, rate=rate))


# -- the battery -------------------------------------------------------------------------------------------------------


def test_battery_of_a_users_algorithm_with_a_given_problem():
    """Its state is a dict, its messages are rounded to quarters, the error is fed back."""
    check_algorithm(RoundedGossip(), problem=quadratic(8, d=3, dtype="float32"), topology=named("star", n=8))


class Pair(NamedTuple):
    x: Any
    y: Any


@decentral.pytree
class Plain(Algorithm):
    """Gossip on two coupled copies; right. The wrong ones below differ from it in one function each."""

    step: float = 0.1
    alpha: float = 0.5

    def init(self, params, key):
        return Pair(params, params)

    def flow(self, state, dt):
        decay = jnp.exp(-self.alpha * dt)
        return Pair(state.x, jax.tree.map(lambda x, y: x + (y - x) * decay, state.x, state.y))

    def update(self, state, gradient, key):
        return state._replace(x=jax.tree.map(lambda x, g: x - self.step * g, state.x, gradient))

    def message(self, state, local, key):
        return state.x, state

    def receive(self, state, message, mine, weight):
        rate = self.alpha * weight
        return state._replace(x=jax.tree.map(lambda x, a, b: x + rate * (a - b), state.x, message, mine))

    def estimate(self, state):
        return state.x

    def conserved(self, state):
        return state.x


@decentral.pytree
class RoundedGossip(Algorithm):
    step: float = 0.1

    def init(self, params, key):
        return {"x": params, "sent": jax.tree.map(jnp.zeros_like, params)}

    def update(self, state, gradient, key):
        return state | {"x": jax.tree.map(lambda x, g: x - self.step * g, state["x"], gradient)}

    def message(self, state, local, key):
        sent = jax.tree.map(lambda x: jnp.round(4 * x) / 4, state["x"])
        return sent, state | {"sent": sent}

    def receive(self, state, message, mine, weight):
        x = jax.tree.map(lambda x, a, b: x + weight / 2 * (a - b), state["x"], message, mine)
        return state | {"x": x}

    def estimate(self, state):
        return state["x"]

    def conserved(self, state):
        return state["x"]


@decentral.pytree
class EulerFlow(Plain):
    def flow(self, state, dt):
        return Pair(state.x, jax.tree.map(lambda x, y: y + self.alpha * dt * (x - y), state.x, state.y))


@decentral.pytree
class DriftingFlow(Plain):
    def flow(self, state, dt):
        return Pair(state.x, jax.tree.map(lambda x, y: y + 1e-3 * x, state.x, state.y))


@decentral.pytree
class LosesMass(Plain):
    def receive(self, state, message, mine, weight):
        return state._replace(x=jax.tree.map(lambda x, a: 0.99 * x + 0.5 * (a - x), state.x, message))


@decentral.pytree
class PromisesTooMuch(A2CiD2):
    """With ``order="released"`` sums drift."""

    def conserved(self, state):
        return state.x, state.x_tilde


@decentral.pytree
class Float64Constant(Plain):
    def update(self, state, gradient, key):
        half = np.array(0.5)
        return state._replace(x=jax.tree.map(lambda x, g: x - half * g, state.x, gradient))


@decentral.pytree
class WideMessage(Plain):
    def message(self, state, local, key):
        return jax.tree.map(lambda x: x.astype("float64"), state.x), state


@decentral.pytree
class ForgetsACopy(Plain):
    def receive(self, state, message, mine, weight):
        return state.x


@decentral.pytree
class KeepsAList(Plain):
    past = []  # noqa: RUF012  # the mistake

    def update(self, state, gradient, key):
        self.past.append(None)
        step = self.step / len(self.past)
        return state._replace(x=jax.tree.map(lambda x, g: x - step * g, state.x, gradient))


@decentral.pytree
class KeepsTracers(Plain):
    past = []  # noqa: RUF012  # the mistake

    def update(self, state, gradient, key):
        self.past.append(gradient)
        mean = jax.tree.map(lambda *g: sum(g) / len(g), *self.past[-2:])
        return state._replace(x=jax.tree.map(lambda x, g: x - self.step * g, state.x, mean))


@decentral.pytree
class RollsDice(Plain):
    def update(self, state, gradient, key):
        step = self.step * np.random.default_rng().random()  # the mistake: the key is there for it
        return state._replace(x=jax.tree.map(lambda x, g: x - step * g, state.x, gradient))


@decentral.pytree
class ChangesItsArgument(RoundedGossip):
    def update(self, state, gradient, key):
        state["x"] = jax.tree.map(lambda x, g: x - self.step * g, state["x"], gradient)
        return state


@decentral.pytree
class GrowingMessage(Plain):
    sent = []  # noqa: RUF012  # the mistake

    def message(self, state, local, key):
        self.sent.append(None)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (len(self.sent), *x.shape)), state.x), state

    def receive(self, state, message, mine, weight):
        return state


@decentral.pytree
class SparseMessage(Plain):
    def message(self, state, local, key):
        return jax.tree.map(lambda x: x[jnp.abs(x) > 0.5], state.x), state


@decentral.pytree
class BranchesOnANumber(Plain):
    def update(self, state, gradient, key):
        return super().update(state, gradient, key) if self.step > 0 else state


@decentral.pytree
class NameAmongTheNumbers(Plain):
    mode: str = "fast"


class NoPytree(Plain.__base__):
    def resolve(self, problem, network):
        return self


@decentral.pytree
class HalvesItsStep(Plain):
    def resolve(self, problem, network):
        return dataclasses.replace(self, step=self.step / 2)


@decentral.pytree
class RemembersTheLast(Plain):
    """Its step is not its own: the one resolved last serves for all."""

    last = {}  # noqa: RUF012  # the mistake

    def resolve(self, problem, network):
        self.last["step"] = self.step
        return self

    def update(self, state, gradient, key):
        return state._replace(x=jax.tree.map(lambda x, g: x - self.last["step"] * g, state.x, gradient))


@decentral.pytree
class CountsRuns(Plain):
    """Its step depends on how many runs there were: the same within each, and never twice the same."""

    runs = []  # noqa: RUF012  # the mistake

    def resolve(self, problem, network):
        self.runs.append(None)
        return self

    def update(self, state, gradient, key):
        step = self.step / len(self.runs)
        return state._replace(x=jax.tree.map(lambda x, g: x - step * g, state.x, gradient))


@pytest.mark.parametrize(
    ("algorithm", "check", "message"),
    [
        (EulerFlow(), "flow (float64)", r"not a semigroup: .* by \d"),
        (DriftingFlow(), "flow (float64)", r"flow\(s, 0\) differs from s by"),
        (LosesMass(), "conserved (float64)", r"an exchange changes the sum .* by \d"),
        (PromisesTooMuch(order="released"), "conserved (float64)", "an exchange changes the sum"),
        (Float64Constant(), "shapes (float32)", r"update: .*float64\[3, 2\] where float32\[3, 2\]"),
        (WideMessage(), "shapes (float32)", "message: .*float64 where the parameters are float32"),
        (ForgetsACopy(), "shapes (float32)", "receive: structure"),
        (KeepsAList(), "pure (float32)", "update gives another value for the same arguments"),
        (KeepsTracers(), "vmap (float32)", "UnexpectedTracerError"),
        (RollsDice(), "pure (float64)", "update gives another value"),
        (ChangesItsArgument(), "pure (float32)", "update changes its arguments in place"),
        (GrowingMessage(), "shapes (float32)", r"a second one.*\[2, 3, 2\] where float32\[1, 3, 2\]"),
        (SparseMessage(), "traced (float32)", "message: NonConcreteBooleanIndexError"),
        (BranchesOnANumber(), "traced (float64)", "update: TracerBoolConversionError"),
        (NameAmongTheNumbers(), "pytree", r"\.mode = 'fast' is no number: .*static"),
        (NoPytree(), "pytree", "decorate the class"),
        (HalvesItsStep(), "resolve", "resolving again changes it"),
        (Gossip(optimizer=optax.sgd), "resolve", "InvalidInput: optimizer"),
        (RemembersTheLast(), "replicas (float64)", "every number times 0.9|its own numbers"),
        (CountsRuns(), "rows (float32)", "rows differ from one event after another by"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Algorithm) else None,
)
def test_the_battery_fails_what_is_wrong(algorithm, check, message):
    with pytest.raises(AssertionError, match=f"{type(algorithm).__name__} fails") as caught:
        check_algorithm(algorithm)
    assert isinstance(caught.value, AlgorithmCheckFailed)
    assert check in caught.value.failures
    follow = {"traced"} if isinstance(algorithm, KeepsTracers) else set()
    assert {name.split(" ")[0] for name in caught.value.failures} - follow == {check.split(" ")[0]}
    assert check in str(caught.value)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(caught.value.failures[check])


def test_what_is_no_algorithm_is_refused():
    with pytest.raises(InvalidInput, match=r"algorithm: got .*Gossip.*an instance"):
        check_algorithm(Gossip)
    with pytest.raises(InvalidInput, match=r"topology.n: got 5"):
        check_algorithm(Gossip(), problem=quadratic(4, d=2), topology=named("ring", n=5))


# -- step sizes --------------------------------------------------------------------------------------------------------


def test_a2cid2_step_sizes():
    """Ring 16 [CODE]: eta = 1/(2 sqrt(chi_1 chi_2)), alpha_tilde = sqrt(chi_1/chi_2)/2 with chi 13.1371, 0.9375."""
    problem = quadratic(16, d=3, condition_number=4.0)
    resolved = A2CiD2().resolve(problem, network())
    assert resolved.eta == pytest.approx(0.1424738268255741, rel=1e-12)
    assert resolved.alpha_tilde == pytest.approx(1.8716888049419578, rel=1e-12)
    assert resolved.alpha == 0.5
    chi = np.sqrt(13.137071184544 * 0.9375)
    assert resolved.optimizer.arguments["learning_rate"] == pytest.approx(1 / (16 * (1 + chi)), rel=1e-9)
    assert resolved.resolve(problem, network("complete")) == resolved, "what is set stays set"


def test_a2cid2_on_twice_the_rate():
    """chi ~ 1/rate: eta doubles, alpha_tilde stays."""
    problem = quadratic(16, d=3)
    slow, fast = (A2CiD2().resolve(problem, network(rate=rate)) for rate in (1.0, 2.0))
    assert fast.eta == pytest.approx(2 * slow.eta, rel=1e-12)
    assert fast.alpha_tilde == pytest.approx(slow.alpha_tilde, rel=1e-12)


def test_a_number_that_is_given_is_kept():
    problem = quadratic(16, d=3)
    given = A2CiD2(eta=0.3, optimizer=MOMENTUM).resolve(problem, network())
    assert given.eta == 0.3
    assert given.alpha_tilde == pytest.approx(1.8716888049419578, rel=1e-12)
    assert given.optimizer == Optimizer("sgd", learning_rate=0.05, momentum=0.9)
    complete = A2CiD2(eta=0.3, alpha_tilde=1.0, optimizer=MOMENTUM)
    assert complete.resolve(None, None).optimizer == given.optimizer, "nothing is open, nothing is needed"


def test_gossip_step_size():
    """1/(16 L (1 + chi_1)), chi_1 = 15/16 on the complete graph."""
    problem = quadratic(16, d=3)
    rate = Gossip().resolve(problem, network("complete")).optimizer.arguments["learning_rate"]
    assert rate == pytest.approx(1 / (16 * problem.L * (1 + 15 / 16)), rel=1e-12)


@pytest.mark.parametrize("name", ["dadao_linear_complete10", "dadao_logistic_cycle8"])
def test_dadao_constants_are_the_authors(name, recorded_dir):
    """Against the constants that the authors' code printed [CODE], from mu, L and chi_1."""
    runs = json.loads((recorded_dir / "runs.json").read_text())["runs"]
    if name not in runs:
        pytest.skip(f"{name} is not in {recorded_dir}")
    run = runs[name]
    resolved = DADAO(mu=run["mu"], L=run["L"], chi_1=run["chi_1_star"]).resolve(None, None)
    for constant, value in run["constants"].items():
        assert getattr(resolved, constant) == pytest.approx(value, rel=1e-13), constant


def test_dadao_asks_for_its_own_rates():
    """sqrt(2 chi_1 chi_2) in total (unit-rate chi): star n - 1, complete (n - 1)/sqrt 2; then chi_1 chi_2 = 1/2."""
    for kind, total in (("star", 9.0), ("complete", 9 / np.sqrt(2))):
        topology = named(kind, n=10)
        clocks = Poisson().network(topology, DADAO().demand(Network(topology)))
        assert clocks.topology.total_rate == pytest.approx(total, rel=1e-9)
        assert clocks.chi_1 * clocks.chi_2 == pytest.approx(0.5, rel=1e-9)
        resolved = DADAO().resolve(quadratic(10, d=2), clocks)  # warns of nothing: warnings are errors here
        assert resolved.chi_1 == clocks.chi_1


def test_dadao_warns_of_rates_too_low():
    topology = named("ring", n=10)
    clocks = Poisson(exchanges_per_s=0.5).network(topology, DADAO().demand(Network(topology)))
    with pytest.warns(
        UserWarning, match=r"chi_1 chi_2 <= 1/2; these rates give .* raise protocol.exchanges_per_s"
    ):
        DADAO().resolve(quadratic(10, d=2), clocks)


class Unknown:
    mu = L = None


@pytest.mark.parametrize(
    ("resolve", "message"),
    [
        (
            lambda: Gossip().resolve(Unknown(), network()),
            "problem.L: got None.*or set optimizer.learning_rate",
        ),
        (lambda: Gossip().resolve(quadratic(4), None), "chi: got None.*or set optimizer.learning_rate"),
        (lambda: A2CiD2().resolve(quadratic(4), None), "chi_1: got None.*eta, alpha_tilde and optimizer"),
        (lambda: A2CiD2(eta=1.0, alpha_tilde=1.0).resolve(Unknown(), network()), "problem.L: got None"),
        (lambda: DADAO().resolve(Unknown(), network()), "mu: got None.*strongly convex"),
        (lambda: DADAO(mu=0.0).resolve(quadratic(4), network()), "mu: got 0.0.*> 0"),
        (lambda: DADAO(mu=1.0).resolve(Unknown(), network()), "L: got None.*smooth"),
        (lambda: DADAO(mu=1.0, L=2.0).resolve(Unknown(), None), "chi_1: got None.*topology"),
        (lambda: DADAO(mu=2.0, L=1.0, chi_1=1.0).resolve(None, None), "mu: got 2.0; allowed: at most L"),
        (
            lambda: DADAO().resolve(quadratic(4), Network(named("ring", n=4), 2.0)),
            "protocol.gradients_per_s: got 2.0; allowed: 1.0 for DADAO",
        ),
        (lambda: known("mu", float("nan"), "x"), "mu: got nan"),
        (lambda: known("mu", float("inf"), "x"), "mu: got inf"),
        (lambda: A2CiD2(order="sed"), "algorithm.order: got 'sed'.*Did you mean 'sde'"),
        (lambda: Optimizer("sgdd"), "optimizer.kind: got 'sgdd'.*Did you mean 'sgd'"),
        (lambda: Optimizer("apply_updates"), "optimizer.kind: got 'apply_updates'"),
        (lambda: Optimizer("lbfgs"), "optimizer.kind: got 'lbfgs'"),
        (lambda: Optimizer("sgd", momentun=0.9), "optimizer.momentun: got 0.9.*Did you mean 'momentum'"),
        (lambda: Optimizer("sgd", learning_rate=-1.0), "optimizer.learning_rate: got -1.0"),
        (lambda: Optimizer("sgd", learning_rate=float("nan")), "optimizer.learning_rate: got nan"),
        (lambda: Optimizer(optax.sgd(0.1), momentum=0.9), "optimizer: got .'momentum'"),
        (lambda: as_optimizer(0.1), "optimizer: got 0.1"),
    ],
)
def test_what_is_missing_or_wrong_is_named(resolve, message):
    with pytest.raises(InvalidInput, match=message):
        resolve()


def test_functions_a_subclass_forgets_are_named():
    state = jnp.zeros(2)
    calls = {
        "init": lambda a: a.init(state, None),
        "update": lambda a: a.update(state, state, None),
        "message": lambda a: a.message(state, None, None),
        "receive": lambda a: a.receive(state, state, state, 1.0),
        "estimate": lambda a: a.estimate(state),
    }
    for name, call in calls.items():
        with pytest.raises(NotImplementedError, match=f"NoPytree must define {name}"):
            call(NoPytree())


# -- optimizers --------------------------------------------------------------------------------------------------------


def test_optimizers_are_pytrees_of_their_numbers():
    optimizer = Optimizer("adam", learning_rate=1, b1=0.8, nesterov=True)
    leaves, structure = jax.tree.flatten(optimizer)
    assert sorted(leaves) == [0.8, 1.0]
    assert jax.tree.unflatten(structure, leaves) == optimizer
    other = Optimizer("adam", learning_rate=0.1, b1=0.8, nesterov=True)
    assert jax.tree.structure(other) == structure
    assert jax.tree.structure(Optimizer("adam", learning_rate=0.1, b1=0.8, nesterov=False)) != structure
    assert optimizer.as_dict() == {"kind": "adam", "learning_rate": 1.0, "b1": 0.8, "nesterov": True}
    assert as_optimizer(optimizer.as_dict()) == optimizer


def test_only_an_open_learning_rate_is_open():
    assert Optimizer().needs_learning_rate
    assert Optimizer("sgd", momentum=0.9).needs_learning_rate
    assert not Optimizer("sgd", learning_rate=0.0).needs_learning_rate
    assert not Optimizer(optax.sgd(0.1)).needs_learning_rate
    assert Optimizer("sgd", momentum=0.9).with_learning_rate(0.1) == Optimizer(
        "sgd", momentum=0.9, learning_rate=0.1
    )


@pytest.mark.parametrize("algorithm", [Gossip, A2CiD2])
def test_an_optax_transformation_is_an_optimizer(algorithm):
    """The same steps as by name: bare, wrapped, or as a table."""
    problem, topology = quadratic(4, d=2), named("ring", n=4)
    finals = [
        decentral.simulate(
            problem,
            topology,
            algorithm(optimizer=optimizer),
            stop=10.0,
            record=Record(count=1, evaluate=False),
        ).final.x
        for optimizer in (
            {"kind": "sgd", "learning_rate": 0.1, "momentum": 0.5},
            optax.sgd(0.1, momentum=0.5),
            Optimizer(optax.chain(optax.trace(0.5), optax.scale(-0.1))),
        )
    ]
    assert np.abs(finals[0]).max() > 0.1
    np.testing.assert_allclose(finals[1], finals[0], rtol=1e-13)
    np.testing.assert_allclose(finals[2], finals[0], rtol=1e-13)


# -- exact properties --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition_number", [1.0, 3.0, 100.0, 1e4])
def test_dadao_flow_is_the_solution_of_its_equations(condition_number):
    """Target A5 [CODE]: the closed form against scipy's matrix exponential of the equations as printed."""
    a = DADAO(mu=1.0, L=condition_number, chi_1=1.0).resolve(None, None)
    x, xt, y, yt, z, zt = np.eye(6)
    matrix = np.array(
        [
            a.eta * (xt - x),
            a.eta * (x - xt),
            a.alpha * (yt - y),
            -a.theta * (y + z + a.nu * xt),
            a.alpha * (zt - z),
            a.alpha_tilde * (z - zt),
        ]
    )
    flow = jax.jit(lambda dt: jnp.stack(a.flow(a.init(jnp.zeros(6), None)._make(jnp.eye(6)), dt)))
    for dt in np.linspace(0.0, 9.0, 19):
        exact = scipy.linalg.expm(matrix * dt)
        assert np.abs(flow(dt) - exact).max() < 1e-12 * np.abs(exact).max()


def at_horizon(result):
    """The final states, each worker flowed from its own last event to the end."""
    trace, last_s = result.trace, np.zeros(result.trace.total_workers)
    for column in trace.operands.T:
        np.maximum.at(last_s, column[column >= 0], trace.time_s[column >= 0])
    elapsed_s = jnp.asarray(trace.horizon_s - last_s)
    return jax.vmap(result.algorithm.flow)(jax.tree.map(jnp.asarray, result.final), elapsed_s)


def run(algorithm, kind="ring", n=8, stop=40.0, protocol=None, **options):
    problem = quadratic(n, d=4, condition_number=10.0, initial="per_worker")
    record = Record(count=1, evaluate=False)
    return decentral.simulate(
        problem, named(kind, n=n), algorithm, protocol, stop=Time(stop), record=record, **options
    )


def test_dadao_sums_of_z_stay_zero():
    """Target A6 [derived]: at a common time sum z = sum z_tilde = 0, though every one of them is not."""
    state = at_horizon(run(DADAO(), "star"))
    for z in (state.z, state.z_tilde):
        assert np.abs(z).max() > 0.1
        assert np.abs(z.sum(0)).max() < 1e-12 * np.abs(z).max()


def test_a2cid2_means_agree():
    """Target A6 [derived]: at a common time mean x = mean x_tilde (order "sde"), though they differ worker by worker."""
    state = at_horizon(run(A2CiD2(optimizer=MOMENTUM)))
    assert np.abs(state.x - state.x_tilde).max() > 1e-2
    assert np.abs((state.x - state.x_tilde).mean(0)).max() < 1e-12 * np.abs(state.x).max()


@pytest.mark.parametrize("algorithm", [Gossip(), A2CiD2()], ids=["gossip", "a2cid2"])
def test_gossip_keeps_the_mean(algorithm):
    """Target A6 [derived]: without gradients the mean of the workers stays where it was."""
    start = np.random.default_rng(0).standard_normal((8, 4))
    trace = run(algorithm, protocol=Poisson(gradients_per_s=0.0)).trace
    assert trace.counts["gradient"] == 0
    resolved = algorithm.resolve(quadratic(8, d=4), network(n=8))
    record = Record(events=(len(trace),), evaluate=False)
    state = at_horizon(replay(trace, quadratic(8, d=4), resolved, initial=start, record=record))
    assert np.abs(state.x - start).max() > 0.1
    assert np.abs(state.x.mean(0) - start.mean(0)).max() < 1e-12


def test_a2cid2_on_the_complete_graph_is_gossip():
    """Target A7 [derived]: chi_1 = chi_2, so alpha_tilde = 1/2 and x_tilde = x for ever, to 1e-12."""
    optimizer = {"kind": "sgd", "learning_rate": 0.1, "momentum": 0.5}
    accelerated, baseline = (run(a(optimizer=optimizer), "complete") for a in (A2CiD2, Gossip))
    assert accelerated.trace.hash == baseline.trace.hash
    assert accelerated.algorithm.alpha_tilde == pytest.approx(0.5, rel=1e-12)
    scale = np.abs(baseline.final.x).max()
    assert scale > 0.1
    assert np.abs(accelerated.final.x - baseline.final.x).max() < 1e-12 * scale
    assert np.abs(accelerated.final.x - accelerated.final.x_tilde).max() < 1e-12 * scale


def test_released_order_takes_gradient_and_message_before_it_flows():
    """One gradient and one exchange by hand, from the authors' code (differences 3 and 4 of the facts file)."""
    eta, alpha_tilde, rate = 0.3, 0.9, 0.1
    algorithm = A2CiD2(
        optimizer={"kind": "sgd", "learning_rate": rate}, eta=eta, alpha_tilde=alpha_tilde, order="released"
    )
    problem = Quadratic.of(np.array([2.0, 3.0]), np.array([[1.0], [-1.0]]))
    trace = decentral.Trace.from_arrays(
        [0.5, 0.75, 1.25, 1.5], ["gradient", "exchange", "exchange", "gradient"],
        [[0, -1], [0, 1], [0, 1], [1, -1]], n_workers=2,
    )  # fmt: skip
    final = replay(trace, problem, algorithm, initial=np.array([[4.0], [2.0]])).final
    x, xt = np.array([4.0, 2.0]), np.array([4.0, 2.0])

    def mixed(i, dt):
        middle, offset = (x[i] + xt[i]) / 2, (x[i] - xt[i]) / 2 * np.exp(-2 * eta * dt)
        return middle + offset, middle - offset

    x[0], xt[0] = (value - rate * 2.0 * (4.0 - 1.0) for value in mixed(0, 0.5))
    for elapsed in ((0.25, 0.75), (0.5, 0.5)):
        stored = x.copy()
        for i in (0, 1):
            x[i], xt[i] = mixed(i, elapsed[i])
            gap = x[i] - stored[1 - i]
            x[i], xt[i] = x[i] - 0.5 * gap, xt[i] - alpha_tilde * gap
    slope = 3.0 * (x[1] + 1.0)
    x[1], xt[1] = (value - rate * slope for value in mixed(1, 0.25))
    np.testing.assert_allclose(final.x[:, 0], x, rtol=1e-14)
    np.testing.assert_allclose(final.x_tilde[:, 0], xt, rtol=1e-14)
