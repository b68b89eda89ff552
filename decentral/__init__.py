"""decentral: a simulator for decentralized, asynchronous optimization.

Time first, numbers second::

    spec --> timeline --> trace --> plan --> run --> record
             (when)       (IR)      (rows)   (JAX)

A first run in Python (``decentral run quickstart`` is the same from a shell)::

    import decentral
    from decentral import problem, topology

    result = decentral.simulate(
        problem.quadratic(n=16, d=5, dtype="float32"), topology.named("ring", n=16), decentral.A2CiD2(), stop=100.0
    )
    result.metrics["loss"]          # (seeds, record times)

Names are loaded on first use, so importing the package, the topologies and the command line's help cost no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decentral import (
        algorithm,
        analysis,
        cost,
        engine,
        errors,
        experiment,
        hardware,
        learned,
        optical,
        problem,
        protocol,
        testing,
        timing,
        topology,
    )
    from decentral.algorithm import (
        ACCO,
        ADOM,
        ADPSGD,
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
        Algorithm,
        Continuized,
        DiLoCo,
        EventTriggered,
        Gossip,
        GradientTracking,
        LocalSGD,
        NoLoCo,
        Optimizer,
        pytree,
        static,
    )
    from decentral.engine.trace import Op, Operand, Trace
    from decentral.errors import DecentralError, InvalidInput, RunFailed
    from decentral.experiment import (
        Comparison,
        Diverged,
        MetaTrained,
        MetaTrainingFailed,
        ProblemTask,
        Progress,
        Record,
        Result,
        Simulation,
        Sweep,
        cite,
        meta_train,
        replay,
        simulate,
        sweep,
        tune_by_gradient,
    )
    from decentral.experiment.coordinates import coordinate_check
    from decentral.experiment.devices import Devices
    from decentral.learned.meta_training import PES
    from decentral.problem import Problem
    from decentral.protocol import (
        AllReduce,
        Gradients,
        Mailbox,
        Network,
        Overlapped,
        Pipeline,
        Poisson,
        Recorded,
        Rendezvous,
        Rounds,
        Server,
        Time,
    )
    from decentral.timing import Cluster, Faults, Links
    from decentral.topology import DirectedTopology, Topology

__version__ = "0.1.0"

_HOMES = {
    "decentral.algorithm": (
        *(
            "A2CiD2",
            "ACCO",
            "ADOM",
            "ADPSGD",
            "Continuized",
            "D2",
            "EXTRA",
            "GradientTracking",
            "MSDA",
            "PETRA",
            "Algorithm",
            "CHOCO",
            "DADAO",
            "DFA",
            "DPSGD",
            "DPU",
            "DiLoCo",
            "EventTriggered",
            "Gossip",
            "LocalSGD",
        ),
        *("NoLoCo", "Optimizer", "SGD", "SGP", "WP", "pytree", "static"),
    ),
    "decentral.engine.trace": ("Op", "Operand", "Trace"),
    "decentral.errors": ("DecentralError", "InvalidInput", "RunFailed"),
    "decentral.experiment": (
        *(
            "Comparison",
            "Diverged",
            "MetaTrained",
            "MetaTrainingFailed",
            "ProblemTask",
            "Progress",
            "Record",
            "Result",
            "Simulation",
            "Sweep",
        ),
        *("cite", "meta_train", "replay", "simulate", "sweep", "tune_by_gradient"),
    ),
    "decentral.experiment.coordinates": ("coordinate_check",),
    "decentral.experiment.devices": ("Devices",),
    "decentral.learned.meta_training": ("PES",),
    "decentral.problem": ("Problem",),
    "decentral.protocol": (
        *(
            "AllReduce",
            "Gradients",
            "Mailbox",
            "Network",
            "Overlapped",
            "Pipeline",
            "Poisson",
            "Recorded",
            "Rendezvous",
            "Rounds",
            "Server",
            "Time",
        ),
    ),
    "decentral.timing": ("Cluster", "Faults", "Links"),
    "decentral.topology": ("DirectedTopology", "Topology"),
}
_ROOMS = (
    "algorithm", "analysis", "cost", "engine", "errors", "experiment", "hardware", "learned", "optical", "problem", "protocol",
    "testing", "timing", "topology",
)  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ACCO",
    "ADOM",
    "ADPSGD",
    "CHOCO",
    "D2",
    "DADAO",
    "DFA",
    "DPSGD",
    "DPU",
    "EXTRA",
    "MSDA",
    "PES",
    "PETRA",
    "SGD",
    "SGP",
    "WP",
    "A2CiD2",
    "Algorithm",
    "AllReduce",
    "Cluster",
    "Comparison",
    "Continuized",
    "DecentralError",
    "Devices",
    "DiLoCo",
    "DirectedTopology",
    "Diverged",
    "EventTriggered",
    "Faults",
    "Gossip",
    "GradientTracking",
    "Gradients",
    "InvalidInput",
    "Links",
    "LocalSGD",
    "Mailbox",
    "MetaTrained",
    "MetaTrainingFailed",
    "Network",
    "NoLoCo",
    "Op",
    "Operand",
    "Optimizer",
    "Overlapped",
    "Pipeline",
    "Poisson",
    "Problem",
    "ProblemTask",
    "Progress",
    "Record",
    "Recorded",
    "Rendezvous",
    "Result",
    "Rounds",
    "RunFailed",
    "Server",
    "Simulation",
    "Sweep",
    "Time",
    "Topology",
    "Trace",
    "algorithm",
    "analysis",
    "cite",
    "coordinate_check",
    "cost",
    "engine",
    "errors",
    "experiment",
    "hardware",
    "learned",
    "meta_train",
    "optical",
    "problem",
    "protocol",
    "pytree",
    "replay",
    "simulate",
    "static",
    "sweep",
    "testing",
    "timing",
    "topology",
    "tune_by_gradient",
]


def __getattr__(name: str):
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
