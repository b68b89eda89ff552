"""Objectives and data: what the workers minimise, how samples are shared among them, and the exact answers."""

from __future__ import annotations

from collections.abc import Callable

from decentral.problem.base import Problem, stack_shards
from decentral.problem.datasets import breast_cancer, digits
from decentral.problem.drifting import Drifting, drifting
from decentral.problem.finite_sum import FiniteSum, from_loss
from decentral.problem.layered import (
    layered_coordinates,
    layered_gcn,
    layered_mlp,
    layered_recommender,
    layered_transformer,
)
from decentral.problem.linear import least_squares_from_arrays, logistic_from_arrays, softmax_from_arrays
from decentral.problem.measure import gradient_noise, heterogeneity
from decentral.problem.networks import cnn, mlp, moe, transformer
from decentral.problem.parametrization import Role
from decentral.problem.quadratics import Quadratic, noise_table_from_events, quadratic
from decentral.problem.reversible import reversible_mlp, reversible_transformer, revnet
from decentral.problem.stages import Stage, StagedProblem, Stages, from_stages
from decentral.problem.synthetic import least_squares, logistic

PROBLEMS: dict[str, Callable[..., Problem]] = {
    "quadratic": quadratic,
    "least_squares": least_squares,
    "logistic": logistic,
    "breast_cancer": breast_cancer,
    "digits": digits,
    "mlp": mlp,
    "cnn": cnn,
    "transformer": transformer,
    "moe": moe,
    "layered_mlp": layered_mlp,
    "layered_transformer": layered_transformer,
    "layered_gcn": layered_gcn,
    "layered_coordinates": layered_coordinates,
    "layered_recommender": layered_recommender,
    "reversible_mlp": reversible_mlp,
    "revnet": revnet,
    "reversible_transformer": reversible_transformer,
    "drifting": drifting,
}
"""Every problem by the name a spec uses."""

__all__ = [
    "PROBLEMS",
    "Drifting",
    "FiniteSum",
    "Problem",
    "Quadratic",
    "Role",
    "Stage",
    "StagedProblem",
    "Stages",
    "breast_cancer",
    "cnn",
    "digits",
    "drifting",
    "from_loss",
    "from_stages",
    "gradient_noise",
    "heterogeneity",
    "layered_coordinates",
    "layered_gcn",
    "layered_mlp",
    "layered_recommender",
    "layered_transformer",
    "least_squares",
    "least_squares_from_arrays",
    "logistic",
    "logistic_from_arrays",
    "mlp",
    "moe",
    "noise_table_from_events",
    "quadratic",
    "reversible_mlp",
    "reversible_transformer",
    "revnet",
    "softmax_from_arrays",
    "stack_shards",
    "transformer",
]
