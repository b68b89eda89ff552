"""The algorithms, one file each: pure functions over one worker's state."""

from decentral.algorithm.a2cid2 import A2CiD2, A2CiD2State
from decentral.algorithm.acco import ACCO, ACCOState
from decentral.algorithm.adom import ADOM, ADOMState
from decentral.algorithm.adpsgd import ADPSGD, ADPSGDState
from decentral.algorithm.base import Algorithm, pytree, static
from decentral.algorithm.choco import CHOCO, CHOCOState
from decentral.algorithm.compression import COMPRESSORS, Compressor
from decentral.algorithm.continuized import Continuized, ContinuizedState
from decentral.algorithm.d2 import D2, D2State
from decentral.algorithm.dadao import DADAO, DADAOState
from decentral.algorithm.dfa import DFA
from decentral.algorithm.diloco import DiLoCo, DiLoCoState
from decentral.algorithm.dpsgd import DPSGD, DPSGDState
from decentral.algorithm.dpu import DPU, DPUState
from decentral.algorithm.event_triggered import EventTriggered, EventTriggeredState
from decentral.algorithm.extra import EXTRA, EXTRAState
from decentral.algorithm.faulty import Faulty
from decentral.algorithm.gossip import Gossip, GossipState
from decentral.algorithm.gradient_tracking import GradientTracking, GradientTrackingState
from decentral.algorithm.local_sgd import LocalSGD, LocalSGDState
from decentral.algorithm.monitored import Monitored
from decentral.algorithm.msda import MSDA, MSDAState
from decentral.algorithm.noloco import NoLoCo, NoLoCoState
from decentral.algorithm.optimizer import Optimizer
from decentral.algorithm.petra import PETRA
from decentral.algorithm.sgd import SGD, SGDState
from decentral.algorithm.sgp import SGP, SGPState
from decentral.algorithm.stage import StageState
from decentral.algorithm.wp import WP, WPState

ALGORITHMS = {
    "gossip": Gossip,
    "a2cid2": A2CiD2,
    "dadao": DADAO,
    "sgd": SGD,
    "dpsgd": DPSGD,
    "adpsgd": ADPSGD,
    "sgp": SGP,
    "local_sgd": LocalSGD,
    "diloco": DiLoCo,
    "noloco": NoLoCo,
    "choco": CHOCO,
    "event_triggered": EventTriggered,
    "msda": MSDA,
    "adom": ADOM,
    "continuized": Continuized,
    "extra": EXTRA,
    "d2": D2,
    "gradient_tracking": GradientTracking,
    "petra": PETRA,
    "dfa": DFA,
    "acco": ACCO,
    "dpu": DPU,
    "wp": WP,
    "monitored": Monitored,
    "faulty": Faulty,
}
"""Every shipped algorithm by the name a spec uses; the conformance battery runs on all of them."""

__all__ = [
    "ACCO",
    "ADOM",
    "ADPSGD",
    "ALGORITHMS",
    "CHOCO",
    "COMPRESSORS",
    "D2",
    "DADAO",
    "DFA",
    "DPSGD",
    "DPU",
    "EXTRA",
    "MSDA",
    "PETRA",
    "SGD",
    "SGP",
    "WP",
    "A2CiD2",
    "A2CiD2State",
    "ACCOState",
    "ADOMState",
    "ADPSGDState",
    "Algorithm",
    "CHOCOState",
    "Compressor",
    "Continuized",
    "ContinuizedState",
    "D2State",
    "DADAOState",
    "DPSGDState",
    "DPUState",
    "DiLoCo",
    "DiLoCoState",
    "EXTRAState",
    "EventTriggered",
    "EventTriggeredState",
    "Faulty",
    "Gossip",
    "GossipState",
    "GradientTracking",
    "GradientTrackingState",
    "LocalSGD",
    "LocalSGDState",
    "MSDAState",
    "Monitored",
    "NoLoCo",
    "NoLoCoState",
    "Optimizer",
    "SGDState",
    "SGPState",
    "StageState",
    "WPState",
    "pytree",
    "static",
]
