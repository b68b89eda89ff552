"""Graphs that change: what is mixed with what in round k, as a cycle of sparse mixing matrices.

A round is a matrix W (n, n) whose rows are receivers: x_i <- sum_j W_ij x_j, so W_ij is the weight of j's message at i.
Rows sum to 1; the rounds of push-sum have columns that sum to 1 instead.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache

import networkx as nx
import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from decentral.errors import InvalidInput, check_integer, check_number
from decentral.topology import graphs, spectra
from decentral.topology.directed import DirectedTopology, push_sum_weights
from decentral.topology.network import Topology


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """Mixing matrices used in turn: round k is ``rounds[k % period]``.

    Args:
        name: how tables call it.
        n: number of workers, at least 2.
        rounds: sparse (n, n) matrices without negative entries; in each of them all rows, or else all columns, sum to 1
            (to 1e-9). A worker that takes part in nothing has a 1 on the diagonal.

    Raises:
        InvalidInput: no rounds; a matrix of another shape, or neither row nor column stochastic; all rounds of a period
            together leave the graph disconnected (the message names the smallest components).
    """

    name: str
    n: int
    rounds: tuple[sp.csr_matrix, ...]

    def __post_init__(self) -> None:
        n = check_integer("schedule.n", self.n, 2)
        rounds = tuple(sp.csr_matrix(matrix, dtype=np.float64, copy=True) for matrix in self.rounds)
        if not rounds:
            raise InvalidInput("schedule.rounds", "none", "at least one mixing matrix")
        for k, matrix in enumerate(rounds):
            if matrix.shape != (n, n):
                raise InvalidInput(f"schedule.rounds[{k}]", f"shape {matrix.shape}", f"shape ({n}, {n})")
            matrix.sum_duplicates()
            matrix.eliminate_zeros()
            stochastic = any(np.allclose(matrix.sum(axis=axis), 1, rtol=0, atol=1e-9) for axis in (0, 1))
            if not stochastic or matrix.data.min() < 0:  # NaN sums to NaN
                allowed = "weights of at least 0, each row (or each column) summing to 1"
                raise InvalidInput(f"schedule.rounds[{k}]", "another matrix", allowed)
        object.__setattr__(self, "n", n)
        object.__setattr__(self, "rounds", rounds)
        self._require_connected()

    def _require_connected(self) -> None:
        count, component = connected_components(self._union, directed=True, connection="strong")
        if count == 1:
            return
        sizes = np.bincount(component)
        parts = []
        for smallest in np.argsort(sizes, kind="stable")[:3]:
            nodes = [str(node) for node in np.flatnonzero(component == smallest)[:5]]
            nodes += ["..."] if sizes[smallest] > 5 else []
            parts.append(f"{{{', '.join(nodes)}}} ({sizes[smallest]} of {self.n})")
        raise InvalidInput(
            "schedule",
            f"a schedule that never connects the graph: {count} components; the smallest: {'; '.join(parts)}",
            f"rounds that together (period {self.period}) connect all workers",
            "Take more rounds, more links per round, or another seed.",
        )

    @cached_property
    def _union(self) -> sp.csr_matrix:
        """Whom anyone hears from in a period: a pattern of ones, without the diagonal."""
        union = sp.csr_matrix((self.n, self.n))
        for matrix in self.rounds:
            union = union + matrix
        union.setdiag(0)
        union.eliminate_zeros()
        union.data[:] = 1
        return union

    @property
    def period(self) -> int:
        """After how many rounds the schedule starts again."""
        return len(self.rounds)

    def __getitem__(self, k: int) -> sp.csr_matrix:
        """W of round k = 0, 1, 2, ..."""
        return self.rounds[k % self.period]

    @cached_property
    def row_stochastic(self) -> bool:
        """Every round is a weighted mean; if False it needs push-sum, which divides by the mixed weights."""
        return all(np.allclose(matrix.sum(axis=1), 1, rtol=0, atol=1e-9) for matrix in self.rounds)

    @cached_property
    def symmetric(self) -> bool:
        """Every round is a symmetric matrix: links go both ways with one weight."""
        return all(abs(matrix - matrix.T).max() <= 1e-12 for matrix in self.rounds)

    @cached_property
    def matchings_only(self) -> bool:
        """Every round pairs a worker at most once, with weights 1/2 and 1/2: it can run as pairwise exchanges."""
        off = [matrix - sp.diags_array(matrix.diagonal()) for matrix in self.rounds]
        return self.symmetric and all(
            np.all((m.data == 0) | (m.data == 0.5)) and m.sum(axis=1).max() <= 0.5 for m in off
        )

    @cached_property
    def gossip_spectrum(self) -> tuple[float, float]:
        """The smallest positive and the largest eigenvalue of I - W, the worst of any round.

        Raises:
            InvalidInput: a round that is directed, or leaves the graph disconnected.
        """
        if not self.symmetric:
            raise InvalidInput("protocol.mixing", self.name, "a schedule whose rounds are symmetric")
        gossip = [sp.csr_matrix(sp.identity(self.n) - matrix) for matrix in self.rounds]
        for k, matrix in enumerate(self.rounds):
            if connected_components(matrix, directed=False)[0] > 1:
                got = f"{self.name}, whose round {k} leaves the graph disconnected"
                raise InvalidInput("protocol.mixing", got, "a schedule that is connected in every round")
        return (
            min(map(spectra.second_eigenvalue, gossip)),
            max(map(spectra.largest_eigenvalue, gossip)),
        )

    def pairs(self, k: int) -> np.ndarray:
        """(P, 2) int64: who exchanges with whom in round k, i < j, sorted.

        Raises:
            InvalidInput: a directed schedule: messages of a round do not go both ways.
        """
        if not self.symmetric:
            raise InvalidInput(
                "schedule", self.name, "a schedule whose rounds are symmetric", "Take W itself: schedule[k]."
            )
        upper = sp.triu(self[k], 1).tocsr().sorted_indices().tocoo()
        return np.stack([upper.row, upper.col], axis=1).astype(np.int64)

    def union(self, rate: float = 1.0) -> Topology:
        """All links of a period as one topology, for Poisson clocks; the rates are the means over the period.

        Each edge has the mean of its column in :meth:`edge_rates`, whose errors apply.
        """
        edges, rates = self._clocks(rate)
        return Topology(self.name, self.n, edges, rates.mean(axis=0))

    def edge_rates(self, rate: float = 1.0) -> np.ndarray:
        """(period, E) exchanges per unit time on the edges of :meth:`union` while round k lasts.

        Uniform over the links of the round, with n * rate / 2 in total as in a :class:`Topology`; zero elsewhere, and
        everywhere in a round without links.

        Raises:
            InvalidInput: a directed schedule.
        """
        return self._clocks(rate)[1]

    def _clocks(self, rate: float) -> tuple[np.ndarray, np.ndarray]:
        rate = check_number("topology.rate", rate, 0, math.inf, above=True)
        used = [self.pairs(k) @ [self.n, 1] for k in range(self.period)]
        keys = np.unique(np.concatenate(used))
        rates = np.zeros((self.period, len(keys)))
        for k, links in enumerate(used):
            rates[k, np.searchsorted(keys, links)] = self.n * rate / 2 / max(len(links), 1)
        return np.stack([keys // self.n, keys % self.n], axis=1), rates

    def topologies(self, rate: float = 1.0) -> tuple[Topology, ...]:
        """One :class:`Topology` per round with uniform rates, where every single round is connected.

        Raises:
            InvalidInput: a round leaves the graph disconnected (:meth:`union` and :meth:`edge_rates` serve there), or
                the schedule is directed.
        """
        edges, rates = self._clocks(rate)
        return tuple(
            Topology(f"{self.name}[{k}]", self.n, edges[used], rates[k, used])
            for k, used in enumerate(rates > 0)
        )


def _workers(topology: Topology | DirectedTopology | int) -> int:
    if isinstance(topology, Topology | DirectedTopology):
        return topology.n
    return check_integer("topology.n", topology, 2)


def _undirected(topology: Topology) -> Topology:
    if not isinstance(topology, Topology):
        raise InvalidInput("topology", type(topology).__name__, "an undirected Topology")
    return topology


def _from_edges(n: int, edges: np.ndarray) -> sp.csr_matrix:
    """Metropolis weights of edges (E, 2) that need not connect anything."""
    degrees = np.bincount(edges.ravel(), minlength=n)
    weights = 1 / (1 + degrees[edges].max(axis=1, initial=0))
    return sp.csr_matrix(sp.identity(n) - spectra.weighted_laplacian(n, edges, weights))


def metropolis(topology: Topology) -> Schedule:
    """The same graph in every round, Metropolis weights: W_ij = 1/(1 + max(d_i, d_j))."""
    return Schedule("metropolis", _undirected(topology).n, (topology.metropolis(),))


def uniform_neighbours(topology: Topology) -> Schedule:
    """The same graph in every round, each neighbour with weight 1/(1 + largest degree): 1/3 each on a ring."""
    return Schedule("uniform_neighbours", _undirected(topology).n, (topology.max_degree(),))


def laplacian(topology: Topology) -> Schedule:
    """The same graph in every round, W = I - L / lambda_max(L), L the Laplacian with weights 1: MSDA's and ADOM+'s."""
    edges = _undirected(topology).edges[topology.edge_rates > 0]
    return _laplacian(topology.n, np.ascontiguousarray(edges, np.int64).tobytes())


@lru_cache(maxsize=32)
def _laplacian(n: int, edges: bytes) -> Schedule:
    """Kept: all algorithms and seeds of a run ask for the same eigenvalues."""
    pairs = np.frombuffer(edges, np.int64).reshape(-1, 2)
    matrix = spectra.weighted_laplacian(n, pairs, np.ones(len(pairs)))
    weights = sp.identity(n) - matrix / spectra.largest_eigenvalue(matrix)
    return Schedule("laplacian", n, (sp.csr_matrix(weights),))


def push_sum(topology: DirectedTopology) -> Schedule:
    """A directed topology in every round, push-sum weights 1/(1 + out-degree of the sender); columns sum to 1."""
    if not isinstance(topology, DirectedTopology):
        raise InvalidInput("topology", type(topology).__name__, "a DirectedTopology")
    return Schedule("push_sum", topology.n, (topology.column_stochastic(),))


def _matchings(topology: Topology) -> list[np.ndarray]:
    """The edges in use, cut into matchings (an edge colouring): each a (P, 2) array, no worker twice in one."""
    edges = _undirected(topology).edges[topology.edge_rates > 0]
    colours = int(topology.degrees.max())
    partner: list[dict[int, int]] = [{} for _ in range(topology.n)]  # of a worker: colour -> other end

    def swap(v: int, c: int, d: int, avoid: int) -> bool:
        """Exchange colours c and d on the path from v that starts with c, unless it ends at ``avoid``."""
        path, colour = [v], c
        while (following := partner[path[-1]].get(colour)) is not None:
            path.append(following)
            colour = d if colour == c else c
        if path[-1] == avoid:
            return False
        for node in path:
            kept = {new: partner[node].pop(old, None) for old, new in ((c, d), (d, c))}
            partner[node].update({colour: other for colour, other in kept.items() if other is not None})
        return True

    for u, v in edges.tolist():
        free_u, free_v = ([c for c in range(colours) if c not in partner[w]] for w in (u, v))
        shared = next((c for c in free_u if c in set(free_v)), None)
        if shared is None:  # c is free at u, d at v: recolour so that c is free at both
            # always succeeds in a bipartite graph, whose colours are then as few as can be
            shared = next((c for c in free_u for d in free_v if swap(v, c, d, u)), None)
        if shared is None:
            shared, colours = colours, colours + 1
        partner[u][shared], partner[v][shared] = v, u
    found = [[(u, e[c]) for u, e in enumerate(partner) if u < e.get(c, -1)] for c in range(colours)]
    return [np.array(pairs, dtype=np.int64) for pairs in found if pairs]


def matchings(topology: Topology) -> Schedule:
    """The topology's edges cut into matchings used in turn; pairs average, 1/2 and 1/2. A ring of even n has two.

    As many rounds as the largest degree where the graph is bipartite; elsewhere seldom more than one above it.
    """
    parts = _matchings(topology)
    return Schedule("matchings", topology.n, tuple(_from_edges(topology.n, pairs) for pairs in parts))


def one_peer_exponential(topology: Topology | DirectedTopology | int, directed: bool = False) -> Schedule:
    """One peer per round, at distance 2^k: exact averages after log2(n) rounds where n is a power of two.

    Ying et al. 2021, "Exponential graph is provably efficient" (recalled). Only the number of workers of ``topology``
    counts.

    Args:
        topology: or the number of workers.
        directed: i hears from i - 2^k (any n; ceil(log2 n) rounds). Otherwise i and i XOR 2^k exchange, which needs a
            power of two.
    """
    n = _workers(topology)
    nodes, hops = np.arange(n), [1 << k for k in range((n - 1).bit_length())]
    if not isinstance(directed, bool):
        raise InvalidInput("schedule.directed", directed, "true or false")
    if n & (n - 1) and not directed:
        advice = "directed = true and base_k take any number."
        raise InvalidInput("topology.n", n, "a power of two for one_peer_exponential", advice)
    peers = [(nodes - hop) % n if directed else nodes ^ hop for hop in hops]
    half, rows = np.full(2 * n, 0.5), np.tile(nodes, 2)
    rounds = [sp.csr_matrix((half, (rows, np.concatenate([nodes, peer]))), (n, n)) for peer in peers]
    return Schedule("one_peer_exponential", n, tuple(rounds))


Link = tuple[int, int, float]  # two workers and the weight of each at the other


def _cliques(groups: Iterable[Sequence[int]]) -> list[Link]:
    """Each group averages."""
    return [(i, j, 1 / len(group)) for group in groups for i, j in itertools.combinations(group, 2)]


def _smooth_part(n: int, k: int) -> int:
    """The largest divisor of n without a prime factor above k + 1."""
    smooth = 1
    for factor in range(2, k + 2):  # composite factors divide nothing any more
        while n % factor == 0:
            n, smooth = n // factor, smooth * factor
    return smooth


def _hyper_hypercube(nodes: Sequence[int], k: int) -> list[list[Link]]:
    """k-peer hyper-hypercube: len(nodes) = f_1 f_2 ... with f <= k + 1, as few factors as greed finds; exact at the end."""
    rounds, stride = [], 1
    while stride < len(nodes):
        rest = len(nodes) // stride
        factor = next(f for f in range(k + 1, 1, -1) if rest % f == 0)
        starts = [i for i in range(len(nodes)) if i // stride % factor == 0]
        rounds.append(_cliques([nodes[i + m * stride] for m in range(factor)] for i in starts))
        stride *= factor
    return rounds


def _simple_base(nodes: Sequence[int], k: int) -> list[list[Link]]:
    """Simple Base-(k+1) graph, Algorithm 2 of Takezawa et al. 2023."""
    n, base = len(nodes), k + 1
    if _smooth_part(n, k) == n:
        return _hyper_hypercube(nodes, k)
    # n in base k + 1, the largest digit first: a part holds digit * power workers, in digit blocks of power each
    parts, start = [], 0
    for exponent in range(int(math.log(n, base)) + 1, -1, -1):
        power = base**exponent
        digit = (n - start) // power
        if digit:
            parts.append([nodes[start + b * power : start + (b + 1) * power] for b in range(digit)])
            start += digit * power
    members = [list(itertools.chain.from_iterable(blocks)) for blocks in parts]
    whole = [_hyper_hypercube(part, k) for part in members]
    inside = [[_hyper_hypercube(block, k) for block in blocks] for blocks in parts]
    # 1. every part agrees (the first takes longest; agreeing again changes nothing)
    rounds = [[link for cube in whole if cube for link in cube[m % len(cube)]] for m in range(len(whole[0]))]
    # 2. one part after the other pulls all later ones to the mean of itself and them, and in turn is left with that
    #    mean in every one of its blocks; 3. the blocks then agree
    for m in range(len(inside[0][0]) + 1):
        links: list[Link] = []
        if m < len(parts) - 1:
            free = [list(block) for block in parts[m]]
            later = list(itertools.chain.from_iterable(members[m + 1 :]))
            weight = len(members[m]) / (len(members[m]) + len(later)) / len(free)
            links += [(block.pop(), node, weight) for node in later for block in free]
            # those left over agree already; averaging them costs no round and helps where gradients come in between
            idle = list(itertools.chain.from_iterable(free))
            links += _cliques(idle[i : i + base] for i in range(0, len(idle), base))
        for part, cubes in enumerate(inside[:m]):
            for cube in cubes:
                links += cube[(m - 1 - part) % len(cube)] if cube else []
        rounds.append(links)
    return rounds


def base_k(topology: Topology | DirectedTopology | int, k: int = 1) -> Schedule:
    """Base-(k+1) graph: exact averages after one period for any number of workers, at most k peers per round.

    Takezawa et al. 2023, "Beyond exponential graph", Algorithms 1 (k-peer hyper-hypercube), 2 (Simple Base-(k+1)) and 3,
    followed from the authors' released code. Only the number of workers of ``topology`` counts.
    """
    n = _workers(topology)
    k = check_integer("schedule.k", k, 1, n - 1)
    rounds = _simple_base(range(n), k)
    # Algorithm 3: smooth groups of rest workers each agree, then the smooth workers at the same place in their groups
    smooth = _smooth_part(n, k)
    rest = n // smooth
    groups = [_simple_base(range(g * rest, (g + 1) * rest), k) for g in range(smooth)]
    across = [_hyper_hypercube(range(place, n, rest), k) for place in range(rest)]
    composed = [
        [link for cube in cubes for link in cube]
        for cubes in (*zip(*groups, strict=True), *zip(*across, strict=True))
    ]
    return Schedule("base_k", n, tuple(_from_links(n, links) for links in min(composed, rounds, key=len)))


def _from_links(n: int, links: Sequence[Link]) -> sp.csr_matrix:
    edges = np.array([sorted(link[:2]) for link in links], dtype=np.int64).reshape(-1, 2)
    weights = np.array([link[2] for link in links])
    return sp.csr_matrix(sp.identity(n) - spectra.weighted_laplacian(n, edges, weights))


def matcha(topology: Topology, budget: float = 0.5, rounds: int = 100, seed: int = 0) -> Schedule:
    """Each matching of the graph is active with probability ``budget``, independently, in each of ``rounds`` rounds.

    After Wang et al. 2019, "MATCHA" (recalled), with one probability for all matchings (theirs are optimised for the
    expected connectivity) and the Metropolis weights of the round's graph (theirs is one optimised weight).

    Args:
        topology: the graph whose edges are cut into matchings.
        budget: expected fraction of the links used per round, in (0, 1].
        rounds: how many are drawn before they repeat.
        seed: of the draws.
    """
    budget = check_number("schedule.budget", budget, 0, 1, above=True)
    rounds, seed = check_integer("schedule.rounds", rounds, 1), check_integer("schedule.seed", seed, 0)
    parts = _matchings(topology)
    none = np.empty((0, 2), dtype=np.int64)
    active = np.random.default_rng(seed).random((rounds, len(parts))) < budget
    drawn = [np.concatenate([none, *itertools.compress(parts, row)]) for row in active]
    return Schedule("matcha", topology.n, tuple(_from_edges(topology.n, edges) for edges in drawn))


def random_geometric(
    topology: Topology | DirectedTopology | int, rounds: int = 50, radius: float | None = None, seed: int = 0
) -> Schedule:
    """A new random geometric graph each round, components chained by random edges, Metropolis weights; period ``rounds``.

    The time-varying graphs of the DADAO authors' code: 50 of them, radius 0.4 at n = 10. Only the number of workers of
    ``topology`` counts; ``radius`` as in :func:`decentral.topology.random_geometric`.
    """
    n, rounds = _workers(topology), check_integer("schedule.rounds", rounds, 1)
    seeds = np.random.SeedSequence(check_integer("schedule.seed", seed, 0)).generate_state(rounds)
    drawn = [graphs.random_geometric(n, radius, seed=int(s)) for s in seeds]
    return dataclasses.replace(from_graphs(n, drawn), name="random_geometric")


def from_graphs(
    topology: Topology | DirectedTopology | int, graphs: Sequence[nx.Graph | Sequence[tuple[int, int]]]
) -> Schedule:
    """Graphs of your own in turn, each a networkx graph on 0 .. n-1 or a list of edges (i, j); kind "list" in a file.

    Metropolis weights; push-sum weights for directed graphs (arcs source -> target), which are then all directed. One
    round need not be connected. Only the number of workers of ``topology`` counts.

    Raises:
        InvalidInput: not edges between two different workers 0 .. n-1; directed and undirected graphs mixed.
    """
    n, rounds, directed = _workers(topology), [], set()
    for k, graph in enumerate(graphs):
        name, allowed = f"schedule.graphs[{k}]", f"edges between two different workers 0 .. {n - 1}"
        try:
            edges = np.array(list(graph.edges()) if isinstance(graph, nx.Graph) else list(graph))
            edges = edges if edges.size else np.empty((0, 2), dtype=np.int64)
        except (TypeError, ValueError):
            raise InvalidInput(name, graph, allowed) from None
        valid = edges.ndim == 2 and edges.shape[1] == 2 and np.issubdtype(edges.dtype, np.integer)
        if (
            not valid
            or edges.min(initial=0) < 0
            or edges.max(initial=0) >= n
            or np.any(edges[:, 0] == edges[:, 1])
        ):
            raise InvalidInput(name, edges[:5].tolist(), allowed)
        directed.add(isinstance(graph, nx.DiGraph))
        if True in directed:
            rounds.append(push_sum_weights(n, np.unique(edges, axis=0)))
        else:
            rounds.append(_from_edges(n, np.unique(np.sort(edges, axis=1), axis=0)))
    if len(directed) > 1:
        raise InvalidInput(
            "schedule.graphs", "directed and undirected graphs", "all directed or all undirected"
        )
    return Schedule("list", n, tuple(rounds))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "metropolis": metropolis,
    "uniform_neighbours": uniform_neighbours,
    "laplacian": laplacian,
    "push_sum": push_sum,
    "matchings": matchings,
    "one_peer_exponential": one_peer_exponential,
    "base_k": base_k,
    "matcha": matcha,
    "random_geometric": random_geometric,
    "list": from_graphs,
}
"""Every schedule by the name a spec uses."""
