"""What training would cost on a real cluster: closed forms in NumPy that broadcast. No simulation, no JAX.

Example::

    from decentral import cost, hardware

    cluster = cost.of_device(hardware.device("H100-SXM5"), devices=64, node_size=8, node_bytes_per_s=400e9)
    model = cost.Transformer(layers=32, hidden=4096, heads=32, ffn=14336, vocab=128256, sequence=8192, gated=True, kv_heads=8)
    layout = cost.Layout(dp=64, global_batch=256, micro_batch=1, sharding="zero_3", recompute="full")
    cost.project(model, layout, cluster, cost.Algorithm("ddp")).mfu
"""

from decentral.cost.algorithms import METHODS, Algorithm
from decentral.cost.cluster import Cluster, of_device
from decentral.cost.conventions import CONVENTIONS, convert, flops_per_token
from decentral.cost.kernels import Constants
from decentral.cost.layout import Layout
from decentral.cost.memory import Memory, memory
from decentral.cost.projection import Conditions, Projection, project, sensitivity
from decentral.cost.search import Candidate, pareto, search
from decentral.cost.step import Step, step
from decentral.cost.stragglers import Spread
from decentral.cost.workload import LatentAttention, Measured, MoE, ResNet, Transformer

__all__ = [
    "CONVENTIONS",
    "METHODS",
    "Algorithm",
    "Candidate",
    "Cluster",
    "Conditions",
    "Constants",
    "LatentAttention",
    "Layout",
    "Measured",
    "Memory",
    "MoE",
    "Projection",
    "ResNet",
    "Spread",
    "Step",
    "Transformer",
    "convert",
    "flops_per_token",
    "memory",
    "of_device",
    "pareto",
    "project",
    "search",
    "sensitivity",
    "step",
]
