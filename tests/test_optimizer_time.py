"""What a learned optimizer's own step costs, and that a cluster's workers take that time for it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decentral
from decentral import Cluster, problem, topology
from decentral.algorithm.optimizer import Optimizer
from decentral.cost import optimizers as cost
from decentral.experiment.entry import network_of
from decentral.learned.meta_parameters import initial_meta_parameters
from decentral.learned.optimizer import learned
from decentral.problem.workload import measure, parameters_of, product_flops
from decentral.protocol import PROTOCOLS, Gradients
from decentral.timing.compute import Constant, Device

LEARNED = Optimizer("learned", meta_parameters="hand_made")
SGD = Optimizer("sgd", learning_rate=0.1)
N = 4


@pytest.fixture(scope="module")
def digits():
    return problem.mlp(n=N, data="digits", hidden=(16,), batch_size=8, partition="shared")


@pytest.fixture(scope="module")
def share(digits):
    """FLOPs of a step over those of a gradient."""
    return parameters_of(digits) * cost.learned(4).flops / product_flops(digits)


def rounds_of(algorithm, digits, protocol, cluster=None, **options):
    """The network, and the first replica's trace of 5 gradients of each worker."""
    graph = options.pop("graph", None) or topology.named("ring", n=N)
    protocol = PROTOCOLS[protocol](**options)
    network = network_of(protocol, graph, algorithm, digits, cluster)
    return network, protocol.timeline(network, Gradients(5 * N), 0)


def counted(update, *arguments):
    """Operations of a function as XLA counts them before it compiles."""
    analysis = jax.jit(update).lower(*arguments).cost_analysis()
    return analysis["flops"] + analysis.get("transcendentals", 0.0)


@pytest.mark.parametrize("hidden", [4, 32])
def test_flops_of_a_learned_step_are_those_that_xla_counts(hidden):
    """To 2 %, for a matrix."""
    weights = jnp.ones((64, 48))
    optimizer = learned(initial_meta_parameters(jax.random.key(0), hidden))
    state = optimizer.init(weights)

    def step(gradient, state, weights):
        update, state = optimizer.update(gradient, state, weights)
        return weights + update, state

    expected = cost.learned(hidden).flops * weights.size
    assert counted(step, weights, state, weights) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("optimizer", "known"),
    [
        (Optimizer("sgd", learning_rate=0.1), cost.SGD),
        (Optimizer("sgd", learning_rate=0.1, momentum=0.9), cost.MOMENTUM),
        (Optimizer("adam", learning_rate=0.1), cost.ADAM),
    ],
)
def test_flops_of_ordinary_steps_are_those_that_xla_counts(optimizer, known):
    weights = jnp.ones((64, 48))
    state = optimizer.transformation().init(weights)
    assert counted(optimizer.descend, weights, weights, state) == pytest.approx(
        known.flops * weights.size, rel=0.1
    )


def test_a_step_takes_the_longer_of_its_arithmetic_and_its_bytes():
    assert cost.ADAM.seconds(1e6, 14e6, 1e12) == pytest.approx(1.0)
    assert cost.ADAM.seconds(1e6, 1e15, 28e6) == pytest.approx(1.0)
    assert cost.learned(32, fused=True).bytes == 72  # 18 numbers
    with pytest.raises(decentral.InvalidInput, match="flops_per_s: got 0"):
        cost.ADAM.seconds(1e6, 0, 1.0)
    with pytest.raises(decentral.InvalidInput, match="hidden: got 0"):
        cost.learned(0)


def test_flops_of_a_gradient_are_the_products_of_its_layers(digits):
    batch, sizes = 8, [(64, 16), (16, 10)]
    forward = sum(2 * batch * a * b for a, b in sizes)
    inputs = 2 * batch * 16 * 10  # the first layer's inputs have no gradient
    assert product_flops(digits) == 2 * forward + inputs
    assert product_flops(digits) == pytest.approx(measure(digits).flops * batch, rel=0.1)


def test_gradients_take_as_much_longer_as_a_learned_step_has_flops(digits, share):
    cluster = Cluster(compute=Constant(0.5))
    before, plain = rounds_of(decentral.Gossip(SGD), digits, "rendezvous", cluster)
    after, slowed = rounds_of(decentral.Gossip(LEARNED), digits, "rendezvous", cluster)
    assert after.demand.optimizer_share == pytest.approx(share)
    assert before.gradients_per_s / after.gradients_per_s == pytest.approx(1 + share)
    assert slowed.horizon_s / plain.horizon_s == pytest.approx(1 + share, rel=1e-6)
    ideal, _ = rounds_of(decentral.Gossip(LEARNED), digits, "poisson")
    assert ideal.gradients_per_s == 1.0
    assert ideal.demand.optimizer_share == 0.0


def test_on_a_known_device_a_step_takes_its_roofline(digits):
    device = Device("H100-SXM5-80GB", flops=1e9, efficiency=0.5)
    network, _ = rounds_of(decentral.LocalSGD(LEARNED), digits, "rounds", Cluster(compute=device))
    moved_s = parameters_of(digits) * cost.learned(4).bytes / (0.8 * 3.35e12)
    computed_s = parameters_of(digits) * cost.learned(4).flops / (0.5 * 989e12)
    assert moved_s > computed_s
    assert network.demand.optimizer_share == pytest.approx(moved_s / device.mean_s, rel=0.01)


def ends_of(trace, op):
    return trace.time_s[trace.op == [o.name for o in trace.ops].index(op)]


def test_an_outer_step_is_charged_after_the_mean_and_an_inner_one_to_gradients(digits, share):
    algorithm = decentral.DiLoCo(SGD, outer_optimizer=LEARNED, local_steps=2)
    _, outer = rounds_of(algorithm, digits, "rounds")
    np.testing.assert_allclose(ends_of(outer, "average"), np.arange(1, 3) * (2 + share), rtol=1e-6)
    both = dataclasses.replace(algorithm, optimizer=LEARNED)
    _, both = rounds_of(both, digits, "rounds")
    np.testing.assert_allclose(ends_of(both, "average"), np.arange(1, 3) * (2 + 3 * share), rtol=1e-6)


def test_one_copy_is_stepped_at_the_end_of_an_all_reduce(digits, share):
    _, trace = rounds_of(decentral.SGD(LEARNED), digits, "all_reduce")
    np.testing.assert_allclose(ends_of(trace, "step"), np.arange(1, 6) * (1 + share), rtol=1e-6)
    for algorithm, steps in ((decentral.ACCO, 1), (decentral.WP, 2)):
        network, trace = rounds_of(algorithm(LEARNED), digits, "overlapped")
        assert network.demand.optimizer_s == pytest.approx(steps * share / N)  # a shard each
        assert ends_of(trace, "reduce")[0] == pytest.approx(1 + steps * share / N)
        assert network.demand.optimizer_share == 0.0


def test_a_server_steps_for_one_gradient_at_a_time(digits, share):
    """All gradients come at once; the k-th is applied after k steps, and its worker then goes on."""
    _, trace = rounds_of(decentral.SGD(LEARNED), digits, "server")
    first = ends_of(trace, "push")[:N]
    np.testing.assert_allclose(first, 1 + share * np.arange(1, N + 1), rtol=1e-6)
    np.testing.assert_allclose(ends_of(trace, "pull")[N : 2 * N - 1], first[: N - 1], rtol=1e-9)
    _, batches = rounds_of(decentral.SGD(LEARNED), digits, "server", batch=2)
    np.testing.assert_allclose(ends_of(batches, "step")[:1], [1 + share], rtol=1e-6)


def test_stages_of_a_pipeline_take_longer_backward_passes():
    chain = problem.reversible_mlp(n=3, stages=3, batch_size=4)
    graph = topology.named("path", n=3)

    def network(optimizer, accumulate):
        algorithm = decentral.PETRA(optimizer, accumulate=accumulate)
        pipeline = PROTOCOLS["pipeline"](window=1)  # a batch at a time
        return network_of(pipeline, graph, algorithm, chain)

    plain, each, half = (network(*given) for given in ((SGD, 1), (LEARNED, 1), (LEARNED, 2)))
    own = parameters_of(chain) * cost.learned(4).flops / product_flops(chain)
    assert each.demand.optimizer_share == pytest.approx(own)
    batch_s = [1 / (one.gradients_per_s * 3) for one in (plain, each, half)]
    assert batch_s[1] - batch_s[0] == pytest.approx(
        3 * 3 * own
    )  # of three stages; a gradient takes three forward passes
    assert batch_s[2] - batch_s[0] == pytest.approx(3 * 3 * own / 2)


def test_a_result_says_what_was_charged():
    quadratic, ring = problem.quadratic(n=N, d=2, dtype="float32"), topology.named("ring", n=N)

    def charged(algorithm, protocol):
        record = decentral.Record(count=1, evaluate=False)
        result = decentral.simulate(quadratic, ring, algorithm, protocol, stop=Gradients(N), record=record)
        return result.summary()["optimizer"]["share_of_gradient"]

    share = 2 * cost.learned(4).flops / product_flops(quadratic)
    assert charged(decentral.LocalSGD(LEARNED), decentral.Rounds()) == pytest.approx(share)
    assert charged(decentral.Gossip(LEARNED), decentral.Poisson()) == 0.0
