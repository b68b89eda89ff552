"""The conformance battery on every algorithm of the registry."""

import pytest
from cases import mostly_slow

import decentral
from decentral.algorithm import (
    ACCO,
    ADOM,
    ADPSGD,
    ALGORITHMS,
    CHOCO,
    D2,
    DADAO,
    DFA,
    DPSGD,
    DPU,
    EXTRA,
    MSDA,
    PETRA,
    SGD,
    SGP,
    WP,
    A2CiD2,
    Continuized,
    DiLoCo,
    EventTriggered,
    Faulty,
    Gossip,
    GradientTracking,
    LocalSGD,
    Monitored,
    NoLoCo,
)
from decentral.optical.feedback import Feedback
from decentral.problem import logistic
from decentral.testing import AlgorithmCheckFailed, check_algorithm
from decentral.topology import named

MOMENTUM = {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9}
ADAM = {"kind": "adam", "learning_rate": 0.01}
INSTANCES = {
    "gossip": Gossip(optimizer=ADAM),
    "a2cid2": A2CiD2(compressor="int8"),
    "dadao": DADAO(),
    "sgd": SGD(optimizer=MOMENTUM),
    "dpsgd": DPSGD(optimizer=MOMENTUM),
    "adpsgd": ADPSGD(optimizer=MOMENTUM, rescale="realised_rate"),
    "sgp": SGP(optimizer=MOMENTUM),
    "local_sgd": LocalSGD(optimizer=ADAM, local_steps=3),
    "diloco": DiLoCo(optimizer=ADAM, local_steps=3),
    "noloco": NoLoCo(optimizer=MOMENTUM, local_steps=3),
    "choco": CHOCO(optimizer=MOMENTUM, compressor={"kind": "top_k", "fraction": 0.4}),
    "event_triggered": EventTriggered(optimizer=MOMENTUM, gamma=0.3, threshold=0.3, decay=0.1),
    "msda": MSDA(),
    "adom": ADOM(multi_consensus=True),
    "continuized": Continuized(),
    "extra": EXTRA(),
    "d2": D2(),
    "gradient_tracking": GradientTracking(learning_rate=0.05),
    "acco": ACCO(optimizer=ADAM),
    "dpu": DPU(optimizer=MOMENTUM),
    "wp": WP(optimizer=MOMENTUM),
    "petra": PETRA(optimizer=MOMENTUM, accumulate=2),
    "dfa": DFA(optimizer=MOMENTUM, accumulate=2),
    "monitored": Monitored(ADPSGD(optimizer=MOMENTUM), {"kind": "newma", "window": 20}),
    "faulty": Faulty(
        Monitored(
            DPSGD(optimizer=MOMENTUM),
            {"kind": "moving_averages", "window": 5},
            "consensus",
            {"kind": "optical", "rows": 16},
        ),
        worker=1,
        after=3,
        fault="noise",
    ),
}
"""Representative arguments for every algorithm of the registry."""
MORE = {
    "gossip": (Gossip(), None),
    "gossip momentum": (Gossip(optimizer=MOMENTUM), None),
    "gossip one-sided": (Gossip(optimizer=MOMENTUM, compressor="random_k"), "push"),
    "gossip mixed": (Gossip(optimizer=MOMENTUM), "mix"),
    "gossip, accumulators": (Gossip(optimizer=ADAM, accumulators="average"), None),
    "dpsgd, accumulators": (DPSGD(optimizer=ADAM, accumulators="average"), None),
    "local_sgd, accumulators": (LocalSGD(optimizer=ADAM, accumulators="average"), None),
    "diloco, both": (DiLoCo(optimizer=ADAM, outer_optimizer=ADAM, accumulators="average"), None),
    "a2cid2 adamw": (A2CiD2(optimizer={"kind": "adamw", "weight_decay": 0.01}), None),
    "a2cid2 released": (A2CiD2(optimizer=MOMENTUM, order="released"), None),
    "adpsgd atomic": (ADPSGD(optimizer=MOMENTUM), "exchange"),
    "sgp mixed": (SGP(optimizer=ADAM), "mix"),
    "choco random": (CHOCO(optimizer=MOMENTUM, compressor="random_k", gamma=0.1), None),
    "choco sign": (CHOCO(optimizer=MOMENTUM, compressor="sign", gamma=0.1), None),
    "event-triggered int8": (EventTriggered(optimizer=ADAM, gamma=0.1, compressor="int8"), None),
    "adom one mixing": (ADOM(), None),
    "noloco exchange": (NoLoCo(optimizer=ADAM), "exchange"),
    "acco released": (ACCO(optimizer=ADAM, released=True), None),
    "dpu released": (DPU(optimizer=ADAM, released=True), None),
    "dfa private, noisy, weights of now": (
        DFA(optimizer=ADAM, keep_weights=False, feedback=Feedback(units="private", snr=2.0)),
        None,
    ),
    "petra dsp": (PETRA(optimizer=ADAM, variant="dsp"), None),
    "petra delayed": (PETRA(optimizer=MOMENTUM, variant="delayed"), None),
    "petra approximate input": (PETRA(optimizer=MOMENTUM, variant="approximate_input"), None),
    "petra stored weights": (PETRA(optimizer=MOMENTUM, variant="stored_weights", accumulate=3), None),
}
"""Other arguments and meetings, in float32 and float64."""


def test_every_shipped_algorithm_is_in_the_battery():
    assert {kind: type(instance) for kind, instance in INSTANCES.items()} == ALGORITHMS


@pytest.mark.parametrize("kind", mostly_slow(ALGORITHMS, ("adpsgd", "dpsgd", "acco")))
def test_battery(kind):
    check_algorithm(INSTANCES[kind])


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_battery_with_other_arguments(name):
    algorithm, meeting = MORE[name]
    check_algorithm(algorithm, meeting=meeting)


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["star", "complete"])
def test_battery_on_other_problems(graph):
    problem = logistic(6, d=3, samples_per_worker=10, batch_size=2, dtype="float32")
    for algorithm in (Gossip(), A2CiD2(), DADAO()):
        check_algorithm(algorithm, problem=problem, topology=named(graph, n=6), seed=1)


def test_a_meeting_the_algorithm_does_not_name_is_refused():
    with pytest.raises(AlgorithmCheckFailed, match=r"cannot meet by 'push'.*'mix'"):
        check_algorithm(DPSGD(optimizer=MOMENTUM), meeting="push")


@decentral.pytree
class Leaks(DPSGD):
    def receive(self, state, message, mine, weight):
        state = super().receive(state, message, mine, weight)
        return state._replace(x={name: 0.99 * leaf for name, leaf in state.x.items()})


def test_what_a_mixing_matrix_does_not_conserve_is_found():
    with pytest.raises(AlgorithmCheckFailed, match="a mixing matrix changes the sum"):
        check_algorithm(Leaks(optimizer=MOMENTUM))
