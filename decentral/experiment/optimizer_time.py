"""The time that learned optimizers take, on a cluster: it is charged to the workers that compute their steps."""

from __future__ import annotations

from decentral.algorithm import Algorithm
from decentral.algorithm.optimizer import as_optimizer
from decentral.cost.cluster import MEMORY_FRACTION
from decentral.cost.optimizers import OptimizerCost
from decentral.hardware import device
from decentral.problem import Problem
from decentral.problem.workload import parameters_of, product_flops
from decentral.timing import Cluster
from decentral.timing.compute import Device


def optimizer_costs(algorithm: Algorithm) -> tuple[OptimizerCost | None, OptimizerCost | None]:
    """Of the algorithm's own optimizer, or its inner algorithm's, and of its outer one; None: one of optax, or none at all."""
    inner = getattr(algorithm, "inner", None)
    if isinstance(inner, Algorithm):
        return optimizer_costs(inner)
    given = (getattr(algorithm, name, None) for name in ("optimizer", "outer_optimizer"))
    own, outer = (None if one is None else as_optimizer(one).cost for one in given)
    return own, outer


def share_of_gradient(
    cost: OptimizerCost | None, problem: Problem, cluster: Cluster, *, of_model: bool = False
) -> float:
    """Seconds of a step over those of a gradient, on a worker of any speed.

    On a known device (compute "device") the step takes what its arithmetic, as efficient as the gradient's, or its bytes do,
    whichever is longer. Else only the FLOPs of both are known, and their ratio is taken for that of the times: for a step
    that waits for memory that is too little.

    Args:
        cost: of the step; None: it is in the seconds of a gradient.
        problem: whose parameters are stepped.
        cluster: its compute times.
        of_model: the cluster's seconds are not those of a gradient of the whole model: on a device, what its FLOPs say is.
    """
    if cost is None:
        return 0.0
    parameters, compute = parameters_of(problem), cluster.compute
    if not isinstance(compute, Device):
        return parameters * cost.flops / product_flops(problem)
    hardware = device(compute.name)
    flops_per_s = hardware.peak_flops(compute.dtype) * compute.efficiency
    step_s = cost.seconds(parameters, flops_per_s, hardware.memory_bytes_per_s * MEMORY_FRACTION)
    return step_s / (product_flops(problem) / flops_per_s if of_model else compute.mean_s)
