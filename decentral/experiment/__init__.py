"""Running things: simulate, replay, results; specs, run folders and the packaged experiments.

Names are loaded on first use: reading run folders costs no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decentral.experiment.citing import cite
    from decentral.experiment.comparison import Comparison
    from decentral.experiment.entry import replay, simulate
    from decentral.experiment.gradient_tuning import GradientTuning, tune_by_gradient
    from decentral.experiment.meta import MetaTrained, MetaTrainingFailed, meta_train
    from decentral.experiment.record import Record
    from decentral.experiment.reports import report
    from decentral.experiment.result import Result
    from decentral.experiment.run import Run, resume
    from decentral.experiment.simulation import Diverged, Progress, Simulation
    from decentral.experiment.spec import Spec, load_spec
    from decentral.experiment.sweep_folder import Sweep
    from decentral.experiment.sweeps import sweep
    from decentral.experiment.tasks import ProblemTask

_HOME_OF = {
    "Comparison": "comparison",
    "Diverged": "simulation",
    "GradientTuning": "gradient_tuning",
    "MetaTrained": "meta",
    "MetaTrainingFailed": "meta",
    "ProblemTask": "tasks",
    "Progress": "simulation",
    "Record": "record",
    "Result": "result",
    "Run": "run",
    "Simulation": "simulation",
    "Spec": "spec",
    "Sweep": "sweep_folder",
    "cite": "citing",
    "load_spec": "spec",
    "meta_train": "meta",
    "replay": "entry",
    "report": "reports",
    "resume": "run",
    "simulate": "entry",
    "sweep": "sweeps",
    "tune_by_gradient": "gradient_tuning",
}
__all__ = [
    "Comparison", "Diverged", "GradientTuning", "MetaTrained", "MetaTrainingFailed", "ProblemTask", "Progress", "Record",
    "Result", "Run", "Simulation", "Spec", "Sweep", "cite", "load_spec", "meta_train", "replay", "report", "resume", "simulate",
    "sweep", "tune_by_gradient",
]  # fmt: skip


def __getattr__(name: str):
    if name in _HOME_OF:
        return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
