"""Directed topologies: who sends to whom, and the weights push-sum mixes with."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import breadth_first_order

from decentral.errors import InvalidInput, check_integer, suggest
from decentral.topology.graphs import MAX_NETWORKX_EDGES, check_edge_count
from decentral.topology.network import Topology
from decentral.topology.units import UnitNode, check_units, places, units_from


@dataclasses.dataclass(frozen=True, eq=False)
class DirectedTopology:
    """A strongly connected directed graph of n workers; see :func:`named_directed`, ``from_graph``.

    Args:
        name: how tables and files call it.
        n: number of workers, at least 2.
        arcs: (A, 2) integers (source, target): source sends to target. In lexicographic order, none twice, no self
            loops.
        units: optical units that serve workers; they are no workers.

    Raises:
        InvalidInput: n < 2; arcs not as described; some workers cannot reach, or be reached from, worker 0 (the
            message names them); a worker with two units.
    """

    name: str
    n: int
    arcs: np.ndarray
    units: tuple[UnitNode, ...] = ()

    def __post_init__(self) -> None:
        n, arcs = check_integer("topology.n", self.n, 2), np.array(self.arcs)
        if arcs.ndim != 2 or arcs.shape[1] != 2 or not np.issubdtype(arcs.dtype, np.integer):
            raise InvalidInput(
                "arcs", f"shape {arcs.shape}, {arcs.dtype}", "an integer array of shape (A, 2)"
            )
        arcs = arcs.astype(np.int64, copy=False)
        in_range = len(arcs) > 0 and arcs.min() >= 0 and arcs.max() < n and np.all(arcs[:, 0] != arcs[:, 1])
        if not in_range or np.any(np.diff(arcs[:, 0] * n + arcs[:, 1]) <= 0):
            advice = "DirectedTopology.from_graph takes arcs in any order."
            allowed = "workers 0 .. n-1, source != target, lexicographically sorted, none twice"
            raise InvalidInput("arcs", arcs[:5].tolist(), allowed, advice)
        _require_strongly_connected("arcs", n, arcs, range(n))
        arcs.setflags(write=False)
        object.__setattr__(self, "n", n)
        object.__setattr__(self, "arcs", arcs)
        object.__setattr__(self, "units", check_units(self.units, n))

    @classmethod
    def from_graph(
        cls, graph: nx.DiGraph, name: str | None = None, *, units: object = None
    ) -> DirectedTopology:
        """Any directed networkx graph; worker k is its k-th node, sorted where nodes can be compared. Parallel arcs count once.

        ``units`` are as :func:`decentral.topology.units.units_from` takes them.

        Raises:
            InvalidInput: not a directed graph; fewer than 2 nodes; self loops; not strongly connected.
        """
        if not isinstance(graph, nx.Graph) or not graph.is_directed():
            advice = "graph.to_directed() makes two arcs of each edge."
            raise InvalidInput("graph", type(graph).__name__, "a directed networkx graph", advice)
        if len(graph) < 2:
            raise InvalidInput("graph", f"{len(graph)} node(s)", "at least 2 nodes")
        if loop := next(nx.selfloop_edges(graph), None):
            advice = "graph.remove_edges_from(list(networkx.selfloop_edges(graph))) removes them."
            raise InvalidInput("graph", f"a self loop at node {loop[0]!r}", "no self loops", advice)
        try:
            labels = sorted(graph)
        except TypeError:  # labels that cannot be compared
            labels = list(graph)
        worker = {label: k for k, label in enumerate(labels)}
        arcs = np.array([(worker[u], worker[v]) for u, v in graph.edges()], dtype=np.int64).reshape(-1, 2)
        arcs = np.unique(arcs, axis=0)
        _require_strongly_connected("graph", len(labels), arcs, labels)
        return cls(name or graph.name or "graph", len(labels), arcs, units_from(units, len(labels)))

    @property
    def unit_of(self) -> np.ndarray:
        """(n,) int64: the place in ``units`` of the unit that serves each worker, -1 for none."""
        return places(self.units, self.n)

    @property
    def out_degrees(self) -> np.ndarray:
        """(n,) int64: how many workers each one sends to."""
        return np.bincount(self.arcs[:, 0], minlength=self.n)

    @property
    def in_degrees(self) -> np.ndarray:
        """(n,) int64: how many workers each one hears from."""
        return np.bincount(self.arcs[:, 1], minlength=self.n)

    def neighbours(self) -> tuple[np.ndarray, np.ndarray]:
        """Out-neighbours as (start (n+1,) int64, targets (A,) int32): worker i sends to targets[start[i]:start[i+1]]."""
        return _lists(self.n, self.arcs)

    def column_stochastic(self) -> sp.csr_matrix:
        """Push-sum weights (n, n): W_ij = 1/(1 + out-degree of j) where j sends to i or i = j; columns sum to 1.

        Kempe, Dobra & Gehrke 2003; Nedić & Olshevsky 2015 (recalled). Rows are receivers.
        """
        return push_sum_weights(self.n, self.arcs)

    def summary(self) -> dict[str, Any]:
        """Size and degrees as a plain dict that JSON can hold; ``balanced``: every in-degree is the out-degree."""
        out_degrees, in_degrees = self.out_degrees, self.in_degrees
        return {
            "name": self.name,
            "n": self.n,
            "arcs": len(self.arcs),
            "out_degree_min": int(out_degrees.min()),
            "out_degree_max": int(out_degrees.max()),
            "in_degree_min": int(in_degrees.min()),
            "in_degree_max": int(in_degrees.max()),
            "balanced": bool(np.all(out_degrees == in_degrees)),
        } | ({"units": [unit.as_dict() for unit in self.units]} if self.units else {})


def _adjacency(n: int, arcs: np.ndarray) -> sp.csr_matrix:
    return sp.csr_matrix((np.ones(len(arcs), dtype=np.int8), (arcs[:, 0], arcs[:, 1])), shape=(n, n))


def _require_strongly_connected(name: str, n: int, arcs: np.ndarray, labels: list | range) -> None:
    adjacency = _adjacency(n, arcs)
    for matrix, what in ((adjacency, "never reached from"), (adjacency.T.tocsr(), "with no way to")):
        lost = np.setdiff1d(np.arange(n), breadth_first_order(matrix, 0, return_predecessors=False))
        if len(lost):
            nodes = ", ".join(str(labels[k]) for k in lost[:5]) + (", ..." if len(lost) > 5 else "")
            got = f"{{{nodes}}} ({len(lost)} of {n}) {what} {labels[0]}"
            raise InvalidInput(name, got, "a strongly connected graph", "Add arcs, or take another seed.")


def _lists(n: int, arcs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    start = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(arcs[:, 0], minlength=n), out=start[1:])
    return start, arcs[:, 1].astype(np.int32)


def push_sum_weights(n: int, arcs: np.ndarray) -> sp.csr_matrix:
    """:meth:`DirectedTopology.column_stochastic` of arcs (A, 2) that need not connect anything."""
    nodes, (source, target) = np.arange(n), arcs.T
    weights = 1 / (1 + np.bincount(source, minlength=n))
    rows, columns = np.concatenate([nodes, target]), np.concatenate([nodes, source])
    return sp.csr_matrix((weights[columns], (rows, columns)), shape=(n, n))


def neighbours(topology: Topology | DirectedTopology) -> tuple[np.ndarray, np.ndarray]:
    """Whom each worker sends to, as (start (n+1,) int64, targets int32), sorted; worker i has targets[start[i]:start[i+1]].

    Of an undirected topology: the other ends of the edges in use (rate above 0), so each edge counts twice.
    """
    if isinstance(topology, DirectedTopology):
        return topology.neighbours()
    edges = topology.edges[topology.edge_rates > 0]
    arcs = np.concatenate([edges, edges[:, ::-1]])
    return _lists(topology.n, arcs[np.lexsort((arcs[:, 1], arcs[:, 0]))])


def _digraph(n: int, kind: str, out_degree: int) -> nx.DiGraph:
    check_edge_count(kind, n, n * out_degree, MAX_NETWORKX_EDGES, bytes_per_edge=400)
    graph = nx.DiGraph(name=kind)
    graph.add_nodes_from(range(n))
    return graph


def directed_ring(n: int) -> nx.DiGraph:
    """I sends to i + 1 mod n."""
    n = check_integer("topology.n", n, 2)
    graph = _digraph(n, "directed_ring", 1)
    graph.add_edges_from((i, (i + 1) % n) for i in range(n))
    return graph


def directed_exponential(n: int) -> nx.DiGraph:
    """I sends to i + 2^k mod n for every 2^k < n; any n.

    The static graph of Assran et al. 2019, "Stochastic gradient push" (recalled).
    """
    n = check_integer("topology.n", n, 2)
    hops = [1 << k for k in range((n - 1).bit_length())]
    graph = _digraph(n, "directed_exponential", len(hops))
    graph.add_edges_from((i, (i + hop) % n) for i in range(n) for hop in hops)
    return graph


def random_digraph(n: int, degree: int = 2, seed: int = 0) -> nx.DiGraph:
    """Everyone sends to ``degree`` others: the next on a random cycle, so it is strongly connected, and degree - 1 at random."""
    n, seed = check_integer("topology.n", n, 2), check_integer("topology.seed", seed, 0)
    degree = check_integer("topology.degree", degree, 1, n - 1)
    graph, rng = _digraph(n, "random_digraph", degree), np.random.default_rng(seed)
    cycle = rng.permutation(n).tolist()
    for i, following in itertools.pairwise([*cycle, cycle[0]]):
        others = rng.choice(n - 2, degree - 1, replace=False) if degree > 1 else []
        low, high = sorted((i, following))
        # numbers below n - 2 become workers other than these two
        targets = [int(k) + (k >= low) + (k + 1 >= high) for k in others]
        graph.add_edges_from((i, target) for target in (following, *targets))
    return graph


DIRECTED: dict[str, Callable[..., nx.DiGraph]] = {
    function.__name__: function for function in (directed_ring, directed_exponential, random_digraph)
}
"""Every directed graph by the name a spec uses."""


def named_directed(kind: str, *, n: int, units: object = None, **arguments: object) -> DirectedTopology:
    """A directed topology by name: ``named_directed("random_digraph", n=16, degree=3)``; ``units`` as for ``from_graph``.

    Raises:
        InvalidInput: an unknown name or argument (with the nearest allowed one), or what the graph's function refuses.
    """
    if not isinstance(kind, str) or kind not in DIRECTED:
        raise InvalidInput("topology.kind", kind, "a directed graph", suggest(str(kind), DIRECTED))
    allowed = inspect.signature(DIRECTED[kind]).parameters
    for name in arguments.keys() - allowed.keys():
        raise InvalidInput(
            f"topology.{name}", arguments[name], f"an argument of {kind}", suggest(name, allowed)
        )
    return DirectedTopology.from_graph(DIRECTED[kind](n, **arguments), kind, units=units)
