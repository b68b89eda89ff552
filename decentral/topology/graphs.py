"""The named graphs: one function each, returning an undirected ``networkx.Graph`` on the nodes 0 .. n-1.

An edge that counts more than once carries the edge attribute ``multiplicity``; every other edge counts once.
Bad arguments raise :class:`decentral.errors.InvalidInput`. A random family may return a disconnected graph
(except where its docstring says otherwise); :class:`decentral.topology.Topology` refuses it and names the
components.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

import networkx as nx
import numpy as np

from decentral.errors import InvalidInput, check_integer, check_number

# networkx keeps two adjacency entries and one attribute dictionary per edge; measured with complete graphs.
BYTES_PER_NETWORKX_EDGE = 200
MAX_NETWORKX_EDGES = 10_000_000


def _power_of_two(n: int, graph: str) -> int:
    n = check_integer("topology.n", n, 2)
    if n & (n - 1):
        below = 1 << (n.bit_length() - 1)
        raise InvalidInput(
            "topology.n", n, f"a power of two for {graph}", f"The nearest are {below} and {2 * below}."
        )
    return n


def check_edge_count(graph: str, n: int, edges: float, maximum: int, bytes_per_edge: int) -> None:
    """Refuse a graph that would not fit in memory before building it, with numbers."""
    if edges > maximum:
        raise InvalidInput(
            "topology.n",
            n,
            f"at most {maximum:,} edges",
            f"{graph} on {n:,} nodes has about {edges:,.0f}, {edges * bytes_per_edge / 1e9:.1f} GB in memory;"
            " take fewer nodes or a sparser graph.",
        )


def _graph(n: int, edges: Iterable, kind: str, expected: float = 0) -> nx.Graph:
    # A connected graph has n - 1 edges at least.
    check_edge_count(kind, n, max(expected, n - 1), MAX_NETWORKX_EDGES, BYTES_PER_NETWORKX_EDGE)
    graph = nx.Graph(name=kind)
    graph.add_nodes_from(range(n))
    graph.add_edges_from(edges.tolist() if isinstance(edges, np.ndarray) else edges)
    return graph


def ring(n: int) -> nx.Graph:
    """Cycle: i ~ i +- 1 mod n. n = 2 is a single edge.

    With rate 1 per worker: chi_1 = 1/(1 - cos(2 pi/n)), chi_2 = (n-1)/n (the A2CiD2 authors' code gives the same).
    """
    n = check_integer("topology.n", n, 2)
    return _graph(n, ((i, (i + 1) % n) for i in range(n)), "ring")


def path(n: int) -> nx.Graph:
    """Line: i ~ i + 1."""
    n = check_integer("topology.n", n, 2)
    return _graph(n, ((i, i + 1) for i in range(n - 1)), "path")


def star(n: int) -> nx.Graph:
    """Node 0 is joined to all others."""
    n = check_integer("topology.n", n, 2)
    return _graph(n, ((0, i) for i in range(1, n)), "star")


def complete(n: int) -> nx.Graph:
    """Every pair is an edge. With rate 1 per worker: chi_1 = chi_2 = (n-1)/n.

    Raises:
        InvalidInput: more than ``MAX_NETWORKX_EDGES`` edges (n > 4,472); ``named("complete", n=...)`` builds
            arrays without networkx and goes further.
    """
    n = check_integer("topology.n", n, 2)
    check_edge_count("complete", n, n * (n - 1) / 2, MAX_NETWORKX_EDGES, BYTES_PER_NETWORKX_EDGE)
    return _graph(n, itertools.combinations(range(n), 2), "complete")


def exponential(n: int, doubled: bool = True) -> nx.Graph:
    """I ~ i +- 2^k mod n for k = 0 .. log2(n) - 1; n is a power of two.

    +2^k and -2^k coincide at n/2. The A2CiD2 authors' code then lists that neighbour twice, so the edge
    counts twice (``multiplicity`` 2) and chi_1 = log2(n)/2 at rate 1; ``doubled=False`` counts it once and
    gives chi_1 = (log2(n) - 1/2)/2.
    """
    n = _power_of_two(n, "exponential")
    if not isinstance(doubled, bool):
        raise InvalidInput("topology.doubled", doubled, "true or false")
    hops = [1 << k for k in range(n.bit_length() - 1)]
    edges = ((i, (i + hop) % n) for hop in hops for i in range(n))
    graph = _graph(n, edges, "exponential", expected=n * len(hops) - n // 2)
    if doubled:
        nx.set_edge_attributes(graph, {(i, i + n // 2): 2 for i in range(n // 2)}, "multiplicity")
    return graph


def _rows_and_columns(n: int, rows: int | None, graph: str) -> tuple[int, int]:
    n = check_integer("topology.n", n, 2)
    if rows is None:
        rows = next(r for r in range(math.isqrt(n), 0, -1) if n % r == 0)
        if rows == 1 and n > 3:
            raise InvalidInput(
                "topology.n",
                n,
                f"a number with a divisor, for a {graph}",
                "A prime gives one row: use path or ring.",
            )
    rows = check_integer("topology.rows", rows, 1)
    if n % rows:
        raise InvalidInput("topology.rows", rows, f"a divisor of n = {n}")
    return rows, n // rows


def _lattice(n: int, rows: int | None, kind: str, *, periodic: bool) -> nx.Graph:
    rows, columns = _rows_and_columns(n, rows, kind)
    node = np.arange(n).reshape(rows, columns)
    if (
        periodic
    ):  # the wrap-around of a side of 2 is the edge that is already there; of a side of 1, a self loop
        pairs = [(node, np.roll(node, -1, axis=axis)) for axis in (0, 1) if node.shape[axis] > 1]
    else:
        pairs = [(node[:-1], node[1:]), (node[:, :-1], node[:, 1:])]
    edges = np.concatenate([np.stack([a.ravel(), b.ravel()], axis=1) for a, b in pairs])
    return _graph(n, edges, kind)


def grid(n: int, rows: int | None = None) -> nx.Graph:
    """2D grid; node row * columns + column. Default ``rows``: the largest divisor of n not above sqrt(n).

    Raises:
        InvalidInput: ``rows`` does not divide n, or is left out where n is a prime above 3 (the grid would be
            a path).
    """
    return _lattice(n, rows, "grid", periodic=False)


def torus(n: int, rows: int | None = None) -> nx.Graph:
    """2D grid closed on itself, ``rows`` as in :func:`grid`; a side of 2 gives one edge, not two."""
    return _lattice(n, rows, "torus", periodic=True)


def hypercube(n: int) -> nx.Graph:
    """I ~ i XOR 2^k; n is a power of two."""
    n = _power_of_two(n, "hypercube")
    bits = [1 << k for k in range(n.bit_length() - 1)]
    edges = ((i, i ^ bit) for i in range(n) for bit in bits if not i & bit)
    return _graph(n, edges, "hypercube", expected=n * len(bits) // 2)


def barbell(n: int) -> nx.Graph:
    """Two cliques on 0 .. n/2-1 and n/2 .. n-1, joined by the edge (n/2-1, n/2); n is even."""
    n = check_integer("topology.n", n, 2)
    if n % 2:
        raise InvalidInput("topology.n", n, "an even number for barbell (two cliques of n/2)")
    half = n // 2
    check_edge_count("barbell", n, half * (half - 1) + 1, MAX_NETWORKX_EDGES, BYTES_PER_NETWORKX_EDGE)
    cliques = [itertools.combinations(range(start, start + half), 2) for start in (0, half)]
    return _graph(n, itertools.chain(*cliques, [(half - 1, half)]), "barbell")


def pipelines(n: int, stages: int | None = None, broadcast: bool = False) -> nx.Graph:
    """Pipelines of ``stages`` workers, d stages ... d stages + stages - 1, in a ring (two: side by side) stage by stage.

    The product of a path and a ring; by default one pipeline of all workers, a path. With ``broadcast`` the last worker of each
    pipeline is joined to all of it.
    """
    n = check_integer("topology.n", n, 2)
    stages = n if stages is None else check_integer("topology.stages", stages, 1)
    if n % stages:
        raise InvalidInput("topology.stages", stages, f"a divisor of n = {n}")
    node = np.arange(n).reshape(-1, stages)
    pairs = [(node[:, :-1], node[:, 1:])]
    if len(node) > 1:
        pairs.append((node, np.roll(node, -1, axis=0)))
    if broadcast:
        pairs.append((node[:, :-2], np.repeat(node[:, -1:], max(stages - 2, 0), axis=1)))
    edges = np.concatenate([np.stack([a.ravel(), b.ravel()], axis=1) for a, b in pairs])
    return _graph(n, edges, "pipelines")


def lollipop(n: int, clique: int | None = None) -> nx.Graph:
    """A clique on 0 .. clique-1 and from its last node a path to n-1; by default half the nodes, rounded up, are the clique's."""
    n = check_integer("topology.n", n, 2)
    clique = check_integer("topology.clique", (n + 1) // 2 if clique is None else clique, 1, n)
    check_edge_count("lollipop", n, clique * (clique - 1) / 2, MAX_NETWORKX_EDGES, BYTES_PER_NETWORKX_EDGE)
    path = ((i, i + 1) for i in range(clique - 1, n - 1))
    return _graph(n, itertools.chain(itertools.combinations(range(clique), 2), path), "lollipop")


def random_geometric(n: int, radius: float | None = None, connect: bool = True, seed: int = 0) -> nx.Graph:
    """Uniform points of the unit square (node attribute ``pos``), joined where closer than ``radius``.

    The default radius sqrt(2 ln(n)/(pi n)) is sqrt(2) times the connectivity threshold (Gupta & Kumar 1998,
    recalled):
    connected with high probability. With ``connect`` the components, if several, are chained by edges between
    random nodes, as the DADAO authors' code does.
    """
    n, seed = check_integer("topology.n", n, 2), check_integer("topology.seed", seed, 0)
    if radius is None:
        radius = min(math.sqrt(2 * math.log(n) / (math.pi * n)), math.sqrt(2))
    radius = check_number("topology.radius", radius, 0, math.inf, above=True)
    if not isinstance(connect, bool):
        raise InvalidInput("topology.connect", connect, "true or false")
    expected_edges = n * (n - 1) / 2 * min(1.0, math.pi * radius**2)
    check_edge_count("random_geometric", n, expected_edges, MAX_NETWORKX_EDGES, BYTES_PER_NETWORKX_EDGE)
    graph = nx.random_geometric_graph(n, radius, seed=seed)
    graph.name = "random_geometric"
    if connect:
        rng = np.random.default_rng(seed)
        picks = [sorted(component) for component in nx.connected_components(graph)]
        graph.add_edges_from((int(rng.choice(a)), int(rng.choice(b))) for a, b in itertools.pairwise(picks))
    return graph


def erdos_renyi(n: int, probability: float | None = None, seed: int = 0) -> nx.Graph:
    """G(n, p): each pair is an edge with probability p, by default 2 ln(n)/n (twice the threshold)."""
    n, seed = check_integer("topology.n", n, 2), check_integer("topology.seed", seed, 0)
    probability = min(1.0, 2 * math.log(n) / n) if probability is None else probability
    probability = check_number("topology.probability", probability, 0, 1, above=True)
    expected_edges = n * (n - 1) / 2 * probability
    check_edge_count("erdos_renyi", n, expected_edges, MAX_NETWORKX_EDGES, BYTES_PER_NETWORKX_EDGE)
    graph = nx.fast_gnp_random_graph(n, probability, seed=seed)
    graph.name = "erdos_renyi"
    return graph


def random_regular(n: int, degree: int = 4, seed: int = 0) -> nx.Graph:
    """A random graph in which every node has ``degree`` neighbours; n * degree is even and degree < n."""
    n, seed = check_integer("topology.n", n, 2), check_integer("topology.seed", seed, 0)
    degree = check_integer("topology.degree", degree, 1, n - 1)
    if n * degree % 2:
        raise InvalidInput("topology.degree", degree, f"an even number where n is odd (n = {n})")
    check_edge_count("random_regular", n, n * degree / 2, MAX_NETWORKX_EDGES, BYTES_PER_NETWORKX_EDGE)
    graph = nx.random_regular_graph(degree, n, seed=seed)
    # networkx lists the nodes in an order of its own; ours are 0 .. n-1 in order
    return _graph(n, graph.edges, "random_regular")


def watts_strogatz(n: int, degree: int = 4, rewiring_probability: float = 0.1, seed: int = 0) -> nx.Graph:
    """Ring lattice with ``degree`` (even) neighbours, each edge rewired with ``rewiring_probability``."""
    n, seed = check_integer("topology.n", n, 3), check_integer("topology.seed", seed, 0)
    degree = check_integer("topology.degree", degree, 2, n - 1)
    if degree % 2:
        raise InvalidInput("topology.degree", degree, "an even number for watts_strogatz")
    rewiring_probability = check_number("topology.rewiring_probability", rewiring_probability, 0, 1)
    check_edge_count("watts_strogatz", n, n * degree / 2, MAX_NETWORKX_EDGES, BYTES_PER_NETWORKX_EDGE)
    graph = nx.watts_strogatz_graph(n, degree, rewiring_probability, seed=seed)
    graph.name = "watts_strogatz"
    return graph


_ALL = (ring, path, star, complete, exponential, grid, torus, hypercube, barbell, lollipop, pipelines)
_ALL_RANDOM = (random_geometric, erdos_renyi, random_regular, watts_strogatz)
TOPOLOGIES: dict[str, Callable[..., nx.Graph]] = {
    function.__name__: function for function in _ALL + _ALL_RANDOM
}
"""Every undirected graph by the name a spec uses."""
