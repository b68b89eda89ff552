"""When things happen: random tapes, compute times, links, faults, and clusters made of these. No JAX here."""

from decentral.timing.cluster import CLUSTERS, Cluster, cluster_from
from decentral.timing.compute import COMPUTE, ComputeModel, durations_ns
from decentral.timing.faults import Faults, lost, separated
from decentral.timing.links import LINKS, LinkModel, Links, NodeLinks, TableLinks, jitter_factor
from decentral.timing.tapes import PoissonClocks, Purpose, poisson_ticks, uniforms

__all__ = [
    "CLUSTERS",
    "COMPUTE",
    "LINKS",
    "Cluster",
    "ComputeModel",
    "Faults",
    "LinkModel",
    "Links",
    "NodeLinks",
    "PoissonClocks",
    "Purpose",
    "TableLinks",
    "cluster_from",
    "durations_ns",
    "jitter_factor",
    "lost",
    "poisson_ticks",
    "separated",
    "uniforms",
]
