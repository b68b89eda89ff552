"""Graphs of workers, fixed and changing, directed and not; real networks; and the constants that theory asks for."""

from decentral.topology.directed import DIRECTED, DirectedTopology, named_directed, neighbours
from decentral.topology.graphs import (
    TOPOLOGIES,
    barbell,
    complete,
    erdos_renyi,
    exponential,
    grid,
    hypercube,
    lollipop,
    path,
    pipelines,
    random_geometric,
    random_regular,
    ring,
    star,
    torus,
    watts_strogatz,
)
from decentral.topology.network import RATE_ARGUMENTS, Topology, named
from decentral.topology.networks import RealNetwork, load_network, network_graph, network_names
from decentral.topology.rates import BUDGETS, RATES
from decentral.topology.schedules import SCHEDULES, Schedule
from decentral.topology.units import UnitNode, units_from

__all__ = [
    "BUDGETS",
    "DIRECTED",
    "RATES",
    "RATE_ARGUMENTS",
    "SCHEDULES",
    "TOPOLOGIES",
    "DirectedTopology",
    "RealNetwork",
    "Schedule",
    "Topology",
    "UnitNode",
    "barbell",
    "complete",
    "erdos_renyi",
    "exponential",
    "grid",
    "hypercube",
    "load_network",
    "lollipop",
    "named",
    "named_directed",
    "neighbours",
    "network_graph",
    "network_names",
    "path",
    "pipelines",
    "random_geometric",
    "random_regular",
    "ring",
    "star",
    "torus",
    "units_from",
    "watts_strogatz",
]
