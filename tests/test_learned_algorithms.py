"""The learned optimizer inside algorithms of workers that meet, of one copy, and of pipelines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decentral
from decentral import InvalidInput, Record, problem, topology
from decentral.algorithm.optimizer import Optimizer
from decentral.engine.trace import merge
from decentral.protocol import PROTOCOLS, Gradients, rounds_of_counts

N, STEPS, BATCH, SEEDS = 4, 200, 16, 3
LEARNED = Optimizer("learned", meta_parameters="hand_made", step_multiplier=0.1, parametrization="mup")


def test_averages_of_a_learned_optimizer_mix_and_its_count_stays():
    gossip = decentral.Gossip(Optimizer("learned", meta_parameters="hand_made"), accumulators="average")
    params = {"weight": jnp.ones((2, 3)), "scale": jnp.ones(())}
    ours = gossip.init(params, None)
    theirs = jax.tree.map(lambda leaf: leaf + 1, ours)
    (message, _), (mine, _) = gossip.message(theirs, None, None), gossip.message(ours, None, None)
    # models, 3 averages of the gradient, one of its square, 3 by row and column: of a scalar 3 of its square
    assert sum(leaf.size for leaf in jax.tree.leaves(message)) == 7 * (1 + 3 + 1) + 3 * (2 + 3) + 3
    after = gossip.receive(ours, message, mine, 1.0)
    assert after.optimizer.count == 0
    for half in jax.tree.leaves(after.optimizer[1:]):
        np.testing.assert_array_equal(half, 0.5)
    assert after.x["scale"] == 1.5


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (
            decentral.Gossip(LEARNED),
            "optimizer.parametrization: got 'mup'; allowed: 'standard' on mlp_digits",
        ),
        (
            decentral.DiLoCo({"kind": "sgd", "learning_rate": 0.1}, outer_optimizer=LEARNED),
            "optimizer.parametrization: got 'mup'",
        ),
    ],
)
def test_a_model_without_roles_has_no_learned_optimizer_in_mup(algorithm, message):
    digits = problem.mlp(n=N, data="digits", hidden=(4,), partition="shared")
    meeting = decentral.Poisson() if isinstance(algorithm, decentral.Gossip) else decentral.Rounds()
    with pytest.raises(InvalidInput, match=message):
        decentral.simulate(digits, topology.named("ring", n=N), algorithm, meeting, stop=1.0)


def teacher(batch_size=BATCH):
    return problem.mlp(
        n=N, data="teacher", hidden=(32, 32), batch_size=batch_size, partition="shared", parametrization="mup"
    )  # fmt: skip


@pytest.mark.slow
def test_a_learned_optimizer_among_workers_is_as_good_as_on_one_copy_at_equal_samples():
    """U9 of the targets: a loss at most 0.1 above that of one copy with the batches of all, after as many samples and updates."""
    record, samples = Record(count=2), N * BATCH * STEPS

    def mean(result):
        assert (result.metrics["samples"][:, -1] == samples).all()
        return result.metrics["loss"][:, -1].mean()

    def loss_of(algorithm, protocol, **arguments):
        return mean(
            decentral.simulate(
                teacher(), topology.named("ring", n=N), algorithm, PROTOCOLS[protocol](**arguments), record=record,
                stop=Gradients(N * STEPS), seeds=SEEDS,
            )
        )  # fmt: skip

    alone = loss_of(decentral.SGD(LEARNED), "all_reduce")
    assert alone < 1.0  # of ln 8 = 2.08
    found = {
        "gossip": loss_of(decentral.Gossip(LEARNED, accumulators="average"), "rendezvous"),
        "local": loss_of(decentral.LocalSGD(LEARNED, local_steps=5), "rounds"),
    }
    halves = [rounds_of_counts(np.ones((2 * STEPS, N), int), seed=seed) for seed in range(SEEDS)]
    acco = decentral.replay(merge(halves), teacher(BATCH // 2), decentral.ACCO(LEARNED), record=record)
    found["acco"] = mean(acco)  # an update has two halves of a batch
    assert all(loss < alone + 0.1 for loss in found.values()), (alone, found)


@pytest.mark.slow
def test_stages_of_a_pipeline_have_learned_optimizers_of_their_own():
    """Late gradients (PETRA) against batches one at a time, which is backpropagation; standard parametrization."""
    model = problem.reversible_mlp(n=3, stages=3, batch_size=64, data="teacher")
    petra = decentral.PETRA(Optimizer("learned", meta_parameters="hand_made", step_multiplier=0.003))

    def losses(window):
        pipeline = decentral.Pipeline(window=window)
        path, stop = topology.named("path", n=3), Gradients(STEPS)
        result = decentral.simulate(model, path, petra, pipeline, stop=stop, record=Record(count=2), seeds=2)
        return result.metrics["loss"].mean(0)

    late, exact = losses(None), losses(1)
    assert exact[-1] < 0.8
    assert late[-1] < exact[-1] + 0.1
