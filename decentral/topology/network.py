"""A topology: a connected undirected graph of workers, the rate of exchanges on each edge, and its constants.

Conventions (those of the DADAO and A2CiD2 authors' codes). Edge e = (i, j) sees lambda_e exchanges per
unit time;

    Lambda = sum_e lambda_e (e_i - e_j)(e_i - e_j)^T,   chi_1 = 1/lambda_2(Lambda),
    chi_2 = 1/2 max_e (e_i - e_j)^T Lambda^+ (e_i - e_j)   over the edges in use (lambda_e > 0).

Both scale as 1/rate. ``chi_1`` and ``chi_2`` are those of the rates at hand: by default uniform over edges
(an edge of multiplicity 2 counts twice) with total rate n/2, one exchange per worker and unit time, as A2CiD2
has it. ``chi_1_unit`` and ``chi_2_unit`` are at total rate 1, as DADAO has it. Other rates: ``rates`` of
:meth:`Topology.from_graph`.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from functools import cached_property
from typing import Any

import networkx as nx
import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from decentral.errors import InvalidInput, check_choice, check_integer, check_number, suggest
from decentral.topology import spectra
from decentral.topology.graphs import TOPOLOGIES, check_edge_count
from decentral.topology.rates import BUDGETS, RATES, edge_rates, incidence
from decentral.topology.units import UnitNode, check_units, places, units_from, units_of_graph, with_units

MAX_ARRAY_EDGES = 100_000_000


def _require_connected(
    name: str, n: int, edges: np.ndarray, rates: np.ndarray, labels: list | range, advice: str
) -> None:
    used = edges[rates > 0]
    if len(used) == n * (n - 1) // 2:  # complete
        return
    links = sp.coo_matrix((np.ones(len(used), dtype=np.int8), (used[:, 0], used[:, 1])), shape=(n, n))
    count, component = connected_components(links, directed=False)
    if count == 1:
        return
    sizes = np.bincount(component)
    parts = []
    for smallest in np.argsort(sizes, kind="stable")[:3]:
        nodes = [str(labels[node]) for node in np.flatnonzero(component == smallest)[:5]]
        nodes += ["..."] if sizes[smallest] > 5 else []
        parts.append(f"{{{', '.join(nodes)}}} ({sizes[smallest]} of {n})")
    got = f"{count} components; the smallest: {'; '.join(parts)}"
    raise InvalidInput(name, got, "a connected graph", advice)


def _total_rate(
    n: int, rates: str, rates_budget: str, rate: float | None, edge_time_s: float | np.ndarray | None
) -> float:
    """The total rate that ``rate`` asks for; arguments that do not go together are refused."""
    check_choice("topology.rates", rates, RATES)
    check_choice("topology.rates_budget", rates_budget, BUDGETS)
    if rates_budget == "nic" and rate is not None:
        advice = "Rates follow from the time of the NICs; with_total_rate scales them."
        raise InvalidInput("topology.rate", rate, 'no rate with rates_budget = "nic"', advice)
    if rates_budget == "total" and edge_time_s is not None:
        advice = 'The time of an exchange counts where rates_budget = "nic".'
        raise InvalidInput("topology.edge_time_s", edge_time_s, 'nothing with rates_budget = "total"', advice)
    return n * check_number("topology.rate", 1.0 if rate is None else rate, 0, math.inf, above=True) / 2


def _edge_times(edge_time_s: float | np.ndarray, count: int) -> np.ndarray:
    try:
        times = np.broadcast_to(np.asarray(edge_time_s, dtype=np.float64), count)
    except (TypeError, ValueError):
        raise InvalidInput(
            "topology.edge_time_s", edge_time_s, f"a number, or {count}, one per edge"
        ) from None
    if not np.all(np.isfinite(times) & (times > 0)):
        raise InvalidInput("topology.edge_time_s", float(times.min()), "finite seconds, above 0")
    return times


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Topology:
    """A connected graph of n workers and a rate of exchanges per edge; see :func:`named`, ``from_graph``.

    Args:
        name: how tables and files call it.
        n: number of workers, at least 2.
        edges: (E, 2) integers with i < j, in lexicographic order, none twice.
        edge_rates: (E,) float64, lambda_e: expected exchanges on each edge per unit time. An edge of rate 0
            stays in the list, is never used, and counts in no constant or matrix below.
        units: optical units that serve workers; they are no workers, and count in no constant either.

    Raises:
        InvalidInput: n < 2; edges not as described; a rate negative, NaN or infinite; the edges of positive
            rate do not connect the graph (the message names the smallest components); a worker with two units.
    """

    name: str
    n: int
    edges: np.ndarray
    edge_rates: np.ndarray
    units: tuple[UnitNode, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", check_integer("topology.n", self.n, 2))
        edges = np.array(self.edges)
        try:
            rates = np.array(self.edge_rates, dtype=np.float64)
        except (TypeError, ValueError):
            raise InvalidInput("edge_rates", self.edge_rates, "numbers, one per edge") from None
        if edges.ndim != 2 or edges.shape[1] != 2 or not np.issubdtype(edges.dtype, np.integer):
            raise InvalidInput(
                "edges", f"shape {edges.shape}, {edges.dtype}", "an integer array of shape (E, 2)"
            )
        edges = edges.astype(np.int64, copy=False)
        in_range = (
            len(edges) > 0 and edges.min() >= 0 and edges.max() < self.n and np.all(edges[:, 0] < edges[:, 1])
        )
        if not in_range or np.any(np.diff(edges[:, 0] * self.n + edges[:, 1]) <= 0):
            advice = "Topology.from_graph takes edges in any order."
            raise InvalidInput(
                "edges", edges[:5].tolist(), "0 <= i < j < n, lexicographically sorted, none twice", advice
            )
        if rates.shape != (len(edges),):
            raise InvalidInput(
                "edge_rates", f"shape {rates.shape}", f"one rate per edge, shape ({len(edges)},)"
            )
        if not np.all(np.isfinite(rates)) or rates.min() < 0:
            bad = int(np.flatnonzero(~(np.isfinite(rates) & (rates >= 0)))[0])
            where = f"Edge {bad} = {tuple(edges[bad].tolist())} is the first."
            raise InvalidInput("edge_rates", float(rates[bad]), "finite rates, at least 0", where)
        advice = "Only edges of positive rate count."
        _require_connected("edge_rates", self.n, edges, rates, range(self.n), advice)
        for field, array in (("edges", edges), ("edge_rates", rates)):
            array.setflags(write=False)
            object.__setattr__(self, field, array)
        object.__setattr__(self, "units", check_units(self.units, self.n))

    def __repr__(self) -> str:
        units = f", {len(self.units)} optical units" if self.units else ""
        return (
            f"<Topology {self.name}: {self.n} workers, {len(self.edges)} edges, rate {self.rate:.4g}{units}>"
        )

    @classmethod
    def from_graph(
        cls,
        graph: nx.Graph,
        name: str | None = None,
        rate: float | None = None,
        *,
        rates: str = "uniform",
        rates_budget: str = "total",
        edge_time_s: float | None = None,
        units: object = None,
    ) -> Topology:
        """Any undirected networkx graph.

        Args:
            graph: worker k is the k-th node in sorted order, or in the graph's own order where nodes cannot
                be compared. Parallel edges, and the edge attribute ``multiplicity``, make an edge count that
                many times. A node with the attribute ``optical="LightOn OPU Gen-3"`` is no worker but an optical unit: its
                edges say whom it serves, and their attributes ``latency_s`` and ``bandwidth_bytes_per_s`` its link.
            name: by default the graph's own name, or "graph".
            rate: exchanges per worker and unit time, by default 1: the total rate is n * rate / 2, since two workers take
                part in an exchange.
            rates: how edges share it.

                - "uniform": all alike.
                - "degree": proportional to 1/d_i + 1/d_j for degrees d: every worker starts exchanges at the same rate, each
                  with a neighbour drawn uniformly (Boyd, Ghosh, Prabhakar & Shah 2006, "Randomized gossip algorithms",
                  recalled). The same as "uniform" where all degrees are equal.
                - "optimal": the least sqrt(chi_1 chi_2), to 2 % by a bound that comes with it (mostly 0.5 %) or with a
                  warning: :mod:`decentral.topology.rates`. A repeated edge counts once. Up to 512 workers and 20,000
                  edges, once per process: seconds at n = 64, minutes at 256.
            rates_budget: "total", or "nic": no ``rate``; rates are as high as they can be, in their proportions, with every
                worker's NIC exchanging for at most 1 s per s, sum_j lambda_ij tau_ij <= 1. "optimal" then means the best
                rates within that budget.
            edge_time_s: tau_ij > 0, seconds an exchange keeps both NICs busy, one number for all edges (other than "nic" it
                means nothing and is refused). By default the edge attribute ``edge_time_s``, 1.0 if no edge has it; parallel
                edges take their mean.
            units: optical units beside those in the graph, as :func:`decentral.topology.units.units_from` takes them.

        Raises:
            InvalidInput: not an undirected graph; fewer than 2 nodes; self loops; disconnected (components
                are named); a multiplicity, rate or time that is not a positive finite number; edges of which only some have a
                time; unknown ``rates`` or ``rates_budget``, or what does not go with them; "optimal" for too large a graph;
                units as in :func:`decentral.topology.units.units_from`.
        """
        if not isinstance(graph, nx.Graph):
            raise InvalidInput("graph", type(graph).__name__, "an undirected networkx graph")
        if graph.is_directed():
            advice = "Exchanges go both ways; graph.to_undirected() forgets the directions."
            raise InvalidInput(
                "graph", f"a directed {type(graph).__name__}", "an undirected networkx graph", advice
            )
        whole, (graph, in_graph) = graph, units_of_graph(graph)
        if len(graph) < 2:
            raise InvalidInput("graph", f"{len(graph)} node(s)", "at least 2 nodes")
        if loop := next(nx.selfloop_edges(graph), None):
            advice = "graph.remove_edges_from(list(networkx.selfloop_edges(graph))) removes them."
            raise InvalidInput("graph", f"a self loop at node {loop[0]!r}", "no self loops", advice)
        try:
            labels = sorted(graph)
        except TypeError:  # labels that cannot be compared
            labels = list(graph)
        n, worker = len(labels), {label: k for k, label in enumerate(labels)}
        total_rate = _total_rate(n, rates, rates_budget, rate, edge_time_s)
        keys, multiplicities, times = [], [], []
        for u, v, attributes in graph.edges(data=True):
            i, j = worker[u], worker[v]
            keys.append(i * n + j if i < j else j * n + i)
            multiplicities.append(attributes.get("multiplicity", 1))
            times.append(attributes.get("edge_time_s"))
        for multiplicity in set(multiplicities):
            check_number("multiplicity", multiplicity, 0, math.inf, above=True)
        keys, edge = np.unique(np.array(keys, dtype=np.int64), return_inverse=True)
        counts = np.bincount(edge, np.array(multiplicities, dtype=np.float64), len(keys))
        edges = np.stack([keys // n, keys % n], axis=1)
        advice = (
            "Add edges; for a random graph raise its degree, probability or radius, or take another seed."
        )
        _require_connected("graph", n, edges, counts, labels, advice)
        seconds = None
        if rates_budget == "nic":
            missing = times.count(None)
            if edge_time_s is None and 0 < missing < len(times):
                got = f"{missing} of {len(times)} edges without it"
                raise InvalidInput("graph", got, "the edge attribute edge_time_s on all edges, or on none")
            given = (
                np.array(times)
                if edge_time_s is None and not missing
                else (1.0 if edge_time_s is None else edge_time_s)
            )
            weighted = np.array(multiplicities) * _edge_times(given, len(times))
            seconds = np.bincount(edge, weighted, len(keys)) / counts
        found = edge_rates(rates, n, edges, counts, total_rate, seconds)
        nodes = [
            UnitNode(str(node), device, tuple(worker[label] for label in served), **link)
            for node, device, served, link in in_graph
        ]
        return cls(name or whole.name or "graph", n, edges, found, (*nodes, *units_from(units, n)))

    def with_edge_rates(self, edge_rates: np.ndarray) -> Topology:
        """The same graph with other rates (E,), in the order of ``edges``; errors as for the class."""
        return dataclasses.replace(self, edge_rates=edge_rates)

    def with_total_rate(self, total_rate: float) -> Topology:
        """The same graph with all rates scaled so that they sum to ``total_rate`` exchanges per unit time."""
        total_rate = check_number("total_rate", total_rate, 0, math.inf, above=True)
        scaled = dataclasses.replace(self, edge_rates=self.edge_rates * (total_rate / self.total_rate))
        scaled.__dict__["_origin"] = self._origin
        return scaled

    def with_rates(
        self, rates: str, *, rates_budget: str = "total", edge_time_s: float | np.ndarray | None = None
    ) -> Topology:
        """The same graph with its rates shared anew; total rate as it is, edges of rate 0 stay unused, others count once.

        Arguments and errors as of :meth:`from_graph`; ``edge_time_s`` is a number (default 1.0) or an array (E,), and the
        budget "nic" sets the total rate.
        """
        _total_rate(self.n, rates, rates_budget, None, edge_time_s)
        used = self.edge_rates > 0
        times = None
        if rates_budget == "nic":
            times = _edge_times(1.0 if edge_time_s is None else edge_time_s, len(used))[used]
        found = np.zeros(len(used))
        edges = self.edges[used]
        found[used] = edge_rates(rates, self.n, edges, np.ones(len(edges)), self.total_rate, times)
        return dataclasses.replace(self, edge_rates=found)

    def nic_times(self, edge_time_s: float | np.ndarray = 1.0) -> np.ndarray:
        """(n,) sum_j lambda_ij tau_ij: the part of the time that each worker's NIC exchanges, tau as in :meth:`with_rates`."""
        return incidence(self.n, self.edges, _edge_times(edge_time_s, len(self.edges))) @ self.edge_rates

    @cached_property
    def _origin(self) -> Topology:
        """Where the constants are computed, once for all copies that differ by a factor in their rates."""
        return self

    # -- rates and Laplacian ---------------------------------------------------------------------------------

    @cached_property
    def total_rate(self) -> float:
        """sum_e lambda_e = Tr(Lambda)/2: exchanges per unit time in the whole network."""
        return float(self.edge_rates.sum())

    @property
    def rate(self) -> float:
        """2 * total_rate / n: exchanges per worker and unit time, averaged over workers."""
        return 2 * self.total_rate / self.n

    @cached_property
    def degrees(self) -> np.ndarray:
        """(n,) integers: neighbours of each worker (a doubled edge leads to one neighbour)."""
        return np.bincount(self.edges[self.edge_rates > 0].ravel(), minlength=self.n)

    @cached_property
    def unit_of(self) -> np.ndarray:
        """(n,) int64: the place in ``units`` of the unit that serves each worker, -1 for none."""
        return places(self.units, self.n)

    @cached_property
    def laplacian(self) -> sp.csr_matrix:
        """Lambda (n, n), sparse."""
        return spectra.weighted_laplacian(self.n, self.edges, self.edge_rates)

    @cached_property
    def _uniform(self) -> bool:
        return bool(np.ptp(self.edge_rates) <= 1e-12 * self.edge_rates[0])

    @cached_property
    def _complete(self) -> bool:
        return bool(np.count_nonzero(self.edge_rates) == self.n * (self.n - 1) // 2)

    # -- constants -------------------------------------------------------------------------------------------

    @cached_property
    def chi_1(self) -> float:
        """1/lambda_2(Lambda), a time: dense eigenvalues to n = 1,500, Lanczos above (relative 1e-8)."""
        if self._origin is not self:
            return self._origin.chi_1 * (self._origin.total_rate / self.total_rate)
        if self._complete and self._uniform:  # 5e7 edges at n = 10,000: no matrix
            return 1 / (self.n * float(self.edge_rates[0]))
        return 1 / spectra.second_eigenvalue(self.laplacian)

    @cached_property
    def _resistances(self) -> spectra.Resistances:
        if self._origin is not self:
            found, factor = self._origin._resistances, self._origin.total_rate / self.total_rate
            return found._replace(values=found.values * factor, largest=found.largest * factor)
        if len(self.edges) == self.n - 1:  # a tree: the only way between the ends of an edge is the edge
            values = 1 / self.edge_rates
        elif self._uniform and spectra.is_edge_transitive(self.n, self.edges):
            # Foster: sum_e lambda_e R_e = n - 1, and all terms are equal
            values = np.broadcast_to((self.n - 1) / self.total_rate, len(self.edges))
        elif self.n <= spectra.EXACT_RESISTANCES_MAX_N:
            values = spectra.exact_resistances(self.laplacian, self.edges)
        else:
            return spectra.estimated_resistances(self.laplacian, self.edges, self.edge_rates)
        return spectra.Resistances(values, float(values[self.edge_rates > 0].max()), True, 0.0)

    def effective_resistances(self) -> np.ndarray:
        """(E,) R_e = (e_i - e_j)^T Lambda^+ (e_i - e_j), times; estimates where not ``chi_2_exact``."""
        return np.array(self._resistances.values)

    @cached_property
    def chi_2(self) -> float:
        """Half the largest effective resistance of an edge in use, in units of time.

        Exact for n <= 5,000, for trees and for the edge-transitive graphs with uniform rates that
        ``spectra.is_edge_transitive`` recognises (ring, complete, hypercube, square torus). Else an estimate
        by random projections (see ``spectra.estimated_resistances``): the exact resistance of the worst edge
        found, so never above the true value, and with probability 0.99 at most ``chi_2_error`` (relative)
        below it.
        """
        return self._resistances.largest / 2

    @property
    def chi_2_exact(self) -> bool:
        """False where ``chi_2`` is an estimate."""
        return self._resistances.exact

    @property
    def chi_2_error(self) -> float:
        """The true value is at most chi_2 * (1 + chi_2_error), with probability 0.99; 0.0 if exact."""
        return self._resistances.relative_error

    @property
    def chi_1_unit(self) -> float:
        """``chi_1`` with the rates scaled to a total of 1 (DADAO's convention): chi_1 * total_rate."""
        return self.chi_1 * self.total_rate

    @property
    def chi_2_unit(self) -> float:
        """``chi_2`` with the rates scaled to a total of 1 (DADAO's convention); at least (n-1)/2."""
        return self.chi_2 * self.total_rate

    @property
    def dadao_rate(self) -> float:
        """sqrt(2 chi_1_unit chi_2_unit): DADAO's total rate of exchanges, where chi_1 chi_2 = 1/2."""
        return math.sqrt(2 * self.chi_1_unit * self.chi_2_unit)

    # -- mixing matrices -------------------------------------------------------------------------------------

    def metropolis(self) -> sp.csr_matrix:
        """W_ij = 1/(1 + max(d_i, d_j)) on edges, the rest on the diagonal: symmetric, doubly stochastic.

        Metropolis-Hastings weights (Xiao, Boyd & Kim 2007, recalled) of ``degrees`` d, whatever the rates.
        """
        i, j = self.edges.T
        weights = 1 / (1 + np.maximum(self.degrees[i], self.degrees[j]))
        return self._mixing(weights)

    def max_degree(self) -> sp.csr_matrix:
        """W_ij = 1/(1 + max_k d_k) on edges, the rest on the diagonal: symmetric, doubly stochastic."""
        return self._mixing(np.full(len(self.edges), 1 / (1 + self.degrees.max())))

    def _mixing(self, weights: np.ndarray) -> sp.csr_matrix:
        weights = np.where(self.edge_rates > 0, weights, 0.0)
        return sp.csr_matrix(sp.identity(self.n) - spectra.weighted_laplacian(self.n, self.edges, weights))

    @cached_property
    def _metropolis_eigenvalues(self) -> np.ndarray:
        return np.linalg.eigvalsh(self.metropolis().toarray())  # ascending; the last is 1

    @cached_property
    def spectral_gap(self) -> float:
        """1 - max_{k >= 2} |lambda_k(W)| of the Metropolis matrix W (:meth:`metropolis`)."""
        if self._complete:
            return 1.0
        if self.n <= spectra.DENSE_EIGENVALUES_MAX_N:
            return float(1 - np.abs(self._metropolis_eigenvalues[:-1]).max())
        mixing = self.metropolis()
        laplacian = sp.csr_matrix(sp.identity(self.n) - mixing)
        gap = spectra.second_eigenvalue(laplacian)
        if gap <= 2 * mixing.diagonal().min():  # Gershgorin: no eigenvalue of W is below 2 min_i W_ii - 1
            return gap
        return min(gap, 2 - spectra.largest_eigenvalue(laplacian))

    def effective_neighbours(self, decay: float = 0.9) -> float:
        """Effective number of neighbours of the Metropolis matrix W, from 1 (no averaging) to n (complete).

            n_W(decay) = (1/(1 - decay)) / ((1/n) sum_k lambda_k^2 / (1 - decay lambda_k^2))

        The variance of a random walk x <- W(sqrt(decay) x + noise) of one worker alone over that with W:
        Vogels, Hendrikx & Jaggi 2022, "Beyond spectral gap" (formula read in the authors' code,
        random_walks.py). Exact to n = 1,500, above a Hutchinson estimate (see ``summary()`` for its error).

        Raises:
            InvalidInput: decay is not in [0, 0.9999].
        """
        return self._effective_neighbours(decay)[0]

    def _effective_neighbours(self, decay: float) -> tuple[float, float]:
        decay = check_number("decay", decay, 0, 0.9999)
        if self._complete:
            return float(self.n), 0.0
        if self.n <= spectra.DENSE_EIGENVALUES_MAX_N:
            squares = np.square(self._metropolis_eigenvalues)
            variance, error = float(np.mean(squares / (1 - decay * squares))), 0.0
        else:
            variance, error = spectra.mean_walk_variance(self.metropolis(), decay)
        return 1 / (1 - decay) / variance, 2 * error

    # -- out -------------------------------------------------------------------------------------------------

    def to_networkx(self) -> nx.Graph:
        """A ``networkx.Graph`` on 0 .. n-1, and the units' names; the edge attribute ``rate`` is lambda_e."""
        graph = nx.Graph(name=self.name)
        graph.add_nodes_from(range(self.n))
        rates = self.edge_rates.tolist()
        graph.add_edges_from(
            (i, j, {"rate": rate}) for (i, j), rate in zip(self.edges.tolist(), rates, strict=True)
        )
        return with_units(graph, self.units) if self.units else graph

    def summary(self, decay: float = 0.9) -> dict[str, Any]:
        """All constants as a plain dict that JSON can hold; ``edges`` is their number; ``units`` where there are any.

        ``chi_2_relative_error`` is ``chi_2_error``; ``effective_neighbours_relative_error`` is two standard
        errors.
        """
        neighbours, neighbours_error = self._effective_neighbours(decay)
        return {
            "name": self.name,
            "n": int(self.n),
            "edges": len(self.edges),
            "rate": self.rate,
            "total_rate": self.total_rate,
            "chi_1": self.chi_1,
            "chi_2": self.chi_2,
            "chi_2_exact": self.chi_2_exact,
            "chi_2_relative_error": self.chi_2_error,
            "chi_1_unit": self.chi_1_unit,
            "chi_2_unit": self.chi_2_unit,
            "dadao_rate": self.dadao_rate,
            "spectral_gap": self.spectral_gap,
            "effective_neighbours": neighbours,
            "effective_neighbours_decay": float(decay),
            "effective_neighbours_relative_error": neighbours_error,
            "degree_min": int(self.degrees.min()),
            "degree_max": int(self.degrees.max()),
        } | ({"units": [unit.as_dict() for unit in self.units]} if self.units else {})


def named(
    kind: str,
    *,
    n: int,
    rate: float | None = None,
    rates: str = "uniform",
    rates_budget: str = "total",
    edge_time_s: float | None = None,
    units: object = None,
    **arguments: object,
) -> Topology:
    """A topology by name: ``named("barbell", n=16, rates="optimal")``; see :meth:`Topology.from_graph` for rates and units.

    ``arguments`` go to the function in ``TOPOLOGIES``.

    Raises:
        InvalidInput: an unknown name or argument (with the nearest allowed one), or what the graph's function
            and :meth:`Topology.from_graph` refuse.
    """
    if not isinstance(kind, str) or kind not in TOPOLOGIES:
        raise InvalidInput("topology.kind", kind, "a named graph", suggest(str(kind), TOPOLOGIES))
    allowed = inspect.signature(TOPOLOGIES[kind]).parameters
    for argument in arguments:
        if argument not in allowed:
            raise InvalidInput(
                f"topology.{argument}",
                arguments[argument],
                f"an argument of {kind}",
                suggest(argument, [*allowed, *RATE_ARGUMENTS, "units"]),
            )
    if kind != "complete":
        return Topology.from_graph(
            TOPOLOGIES[kind](n, **arguments),
            kind,
            rate,
            rates=rates,
            rates_budget=rates_budget,
            edge_time_s=edge_time_s,
            units=units,
        )
    # 5e7 edges at n = 10,000: 1.2 GB as arrays, 10 GB as a networkx graph
    n = check_integer("topology.n", n, 2)
    check_edge_count("complete", n, n * (n - 1) / 2, MAX_ARRAY_EDGES, bytes_per_edge=24)
    total_rate = _total_rate(n, rates, rates_budget, rate, edge_time_s)
    if rates_budget == "nic":
        total_rate = n / 2 / float(_edge_times(1.0 if edge_time_s is None else edge_time_s, 1)[0])
    edges = np.stack(np.triu_indices(n, k=1), axis=1)
    each = 2 * total_rate / n / (n - 1)  # whatever ``rates``: all edges are alike
    return Topology(kind, n, edges, np.full(len(edges), each), units_from(units, n))


RATE_ARGUMENTS = ("rates", "rates_budget", "edge_time_s")
"""Arguments of :func:`named` that every undirected graph has beside its own."""
