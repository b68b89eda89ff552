"""How often each edge is used: equal shares, those of workers that pick a neighbour, or the best there are.

The best rates minimise chi_1 chi_2, on whose square root the time of DADAO and A2CiD2 depends. Write lambda_2 for the
Laplacian's second eigenvalue and C_e = 1/R_e for the effective conductance between the ends of edge e. Both are concave in
the rates and scale with them, so

    maximise sqrt(lambda_2 min_e C_e) = 1/sqrt(2 chi_1 chi_2)   over rates >= 0 within the budget

is a concave problem: a point without ascent is the best of all, and supergradients of lambda_2 and C_e bound what any
rates could reach, so the result comes with its distance from the optimum. ``min`` runs over all edges of the graph, those
of small rate too, although gossip need not count an edge that it never uses: leaving edges out is combinatorial, and on
32 random geometric workers dropping the edges of vanishing rate and starting again gains 0.9 % at most. The DADAO paper
states a semidefinite relaxation (recalled); ours was derived anew and is checked against one in the tests.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import numpy as np
import scipy.sparse as sp
from scipy.optimize import minimize

from decentral.errors import InvalidInput, check_choice
from decentral.topology.spectra import is_edge_transitive, nearly_disconnected

RATES = ("uniform", "degree", "optimal")
"""How edges may share the rate of all exchanges."""
BUDGETS = ("total", "nic")
"""What is given to share: so many exchanges, or so much of every network card's time."""
MAX_OPTIMAL_N = 512
MAX_OPTIMAL_EDGES = 20_000
TOLERANCE, WARN_ABOVE = 5e-3, 2e-2
"""How far sqrt(chi_1 chi_2) may be above its minimum, relative and by a bound: where the search ends, and what is told."""


def incidence(n: int, edges: np.ndarray, values: np.ndarray) -> sp.csr_matrix:
    """(n, E): ``values[e]`` at both ends of edge e. Times the rates it is each NIC's time, if ``values`` are seconds."""
    columns = np.arange(len(edges))
    entries = np.concatenate([values, values]), (edges.T.ravel(), np.concatenate([columns, columns]))
    return sp.csr_matrix(entries, shape=(n, len(edges)))


def edge_rates(
    rates: str,
    n: int,
    edges: np.ndarray,
    multiplicities: np.ndarray,
    total_rate: float,
    times_s: np.ndarray | None = None,
) -> np.ndarray:
    """(E,) rates that use up the budget: their sum is ``total_rate``, or given ``times_s`` the busiest NIC is always busy.

    Arguments and errors as of :func:`edge_shares`.
    """
    shares = edge_shares(rates, n, edges, multiplicities, times_s)
    if times_s is None:
        return shares * (total_rate / shares.sum())
    return shares / (incidence(n, edges, times_s) @ shares).max()


def edge_shares(
    rates: str, n: int, edges: np.ndarray, multiplicities: np.ndarray, times_s: np.ndarray | None = None
) -> np.ndarray:
    """(E,) rates up to a common factor; see :meth:`decentral.topology.network.Topology.from_graph`.

    Args:
        rates: one of ``RATES``.
        n: workers.
        edges: (E, 2), a connected graph.
        multiplicities: (E,) how often each edge counts; "optimal" does not ask.
        times_s: (E,) seconds of an exchange, where the budget is each NIC's time; None where it is the total rate. Only
            "optimal" asks.

    Raises:
        InvalidInput: no such ``rates``; a graph too large for "optimal".
    """
    check_choice("topology.rates", rates, RATES)
    if rates == "uniform":
        return multiplicities
    if rates == "degree":
        degrees = incidence(n, edges, multiplicities).sum(axis=1).A1
        return multiplicities * (1 / degrees[edges[:, 0]] + 1 / degrees[edges[:, 1]])
    if is_edge_transitive(n, edges) and (times_s is None or np.ptp(times_s) == 0):
        return np.ones(len(edges))  # averaged over the symmetries the best rates are no worse, and equal
    if n > MAX_OPTIMAL_N or len(edges) > MAX_OPTIMAL_EDGES:
        allowed = f"at most {MAX_OPTIMAL_N} workers and {MAX_OPTIMAL_EDGES:,} edges for optimal"
        advice = 'Use "degree", or edge rates of your own: Topology.with_edge_rates.'
        raise InvalidInput("topology.rates", f"{n:,} workers, {len(edges):,} edges", allowed, advice)
    shares, excess = optimal_shares(n, edges, times_s)
    if excess > WARN_ABOVE:
        warnings.warn(
            f"rates = optimal: sqrt(chi_1 chi_2) may be {excess:.1%} above its minimum", stacklevel=4
        )
    return shares


def optimal_shares(n: int, edges: np.ndarray, times_s: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """The best rates (E,) up to a factor, and how far above the minimum their sqrt(chi_1 chi_2) may be (relative).

    L-BFGS in the logarithms of the rates, on power means of exponent p in place of lambda_2, min_e C_e and the busiest
    NIC's time, with a logarithmic barrier of weight 4/p; p grows until the bound says that ``TOLERANCE`` is met, or to
    8,192. Never worse than uniform and degree rates, every rate positive. Arguments as of :func:`edge_shares`; a graph is
    optimised once per process.

    Raises:
        InvalidInput: edge times so uneven that the Laplacian is not connected to working precision.
    """
    times = None if times_s is None else np.ascontiguousarray(times_s, dtype=np.float64).tobytes()
    with _one_blas_thread():
        return _optimal_shares(n, np.ascontiguousarray(edges, dtype=np.int64).tobytes(), times)


def _one_blas_thread() -> AbstractContextManager:
    """Thousands of small eigenvalue problems: on a busy machine two threads took 120 s where one took 0.4 s (n = 32)."""
    if importlib.util.find_spec("threadpoolctl") is None:  # scikit-learn brings it
        return nullcontext()
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, "blas")


@lru_cache(maxsize=64)
def _optimal_shares(n: int, edges_bytes: bytes, times_bytes: bytes | None) -> tuple[np.ndarray, float]:
    edges = np.frombuffer(edges_bytes, dtype=np.int64).reshape(-1, 2)
    count, ones = len(edges), np.ones(len(edges))
    total = sp.csr_matrix(np.ones((1, count)))
    loads = total if times_bytes is None else incidence(n, edges, np.frombuffer(times_bytes))
    problem = _Problem(n, edges, loads)

    def better(
        one: np.ndarray, other: np.ndarray
    ) -> np.ndarray:  # what is equal to rounding stays what is simpler
        return other if problem.score(other) > problem.score(one) * (1 + 1e-9) else one

    best, bound = better(ones, edge_shares("degree", n, edges, ones)), math.inf
    logarithms, exponent = np.zeros(count), 8.0
    while bound > problem.score(best) * (1 + TOLERANCE) and exponent <= 8192:
        found = minimize(
            problem.smooth, logarithms, (exponent,), "L-BFGS-B", True,
            bounds=[(-15.0, math.log(count) + 1)] * count,
            options={"maxiter": 500, "maxcor": 30, "ftol": 1e-11, "gtol": 1e-6},
        )  # fmt: skip
        logarithms = found.x - math.log(np.exp(found.x).mean())
        shares = np.exp(logarithms)
        bound = min(bound, problem.bound(shares, exponent))
        best = better(best, shares)
        exponent *= 2
    best.setflags(write=False)
    return best, max(bound / problem.score(best) - 1, 0.0)


class _Problem:
    """sqrt(lambda_2 min_e C_e) per unit of budget, the largest entry of ``loads @ rates``: value, smoothed value and bound."""

    def __init__(self, n: int, edges: np.ndarray, loads: sp.csr_matrix) -> None:
        self.n, self.ends, self.loads = n, edges.T, loads

    def _decompose(self, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """1/eigenvalues (n-1,), descending; differences (E, n-1) of the eigenvectors over each edge; R_e (E,)."""
        laplacian, (i, j) = np.zeros((self.n, self.n)), self.ends
        laplacian[i, j] = laplacian[j, i] = -rates
        np.fill_diagonal(laplacian, -laplacian.sum(axis=1))
        values, vectors = np.linalg.eigh(laplacian)
        if not values[1] > 1e-14 * values[-1]:
            raise nearly_disconnected(sp.csr_matrix(laplacian))
        inverse, differences = 1 / values[1:], vectors[i, 1:] - vectors[j, 1:]
        return inverse, differences, np.square(differences) @ inverse

    def score(self, rates: np.ndarray) -> float:
        inverse, _, resistances = self._decompose(rates)
        return 1 / (math.sqrt(inverse[0] * resistances.max()) * (self.loads @ rates).max())

    def _power_means(self, rates: np.ndarray, exponent: float) -> list[tuple[float, np.ndarray, float]]:
        """Of 1/lambda_k, R_e and the loads: the logarithm, its gradient in the rates, and what :meth:`bound` divides it by."""
        inverse, differences, resistances = self._decompose(rates)
        loads = self.loads @ rates
        value_1, weight_1 = _power_mean(inverse, exponent)
        value_2, weight_2 = _power_mean(resistances, exponent)
        value_3, weight_3 = _power_mean(loads, exponent)
        potentials = differences * np.sqrt(inverse)  # R_e is the squared length of row e
        middle = (potentials * (weight_2 / resistances)[:, None]).T @ potentials
        gradient_1 = -np.square(differences) @ (weight_1 * inverse)
        gradient_2 = -((potentials @ middle) * potentials).sum(axis=1)
        return [
            (value_1, gradient_1, float(weight_1 @ inverse)),
            (value_2, gradient_2, float(weight_2 @ resistances)),
            (value_3, self.loads.T @ (weight_3 / loads), float((weight_3 / loads).sum())),
        ]

    def smooth(self, logarithms: np.ndarray, exponent: float) -> tuple[float, np.ndarray]:
        """log(chi_1 chi_2 budget^2), smoothed, with a barrier, and its gradient in the logarithms of the rates.

        Without the barrier an edge whose rate became small too early would stay so: its gradient is small as well.
        """
        rates, barrier = np.exp(logarithms), 4 / exponent
        (value_1, grad_1, _), (value_2, grad_2, _), (value_3, grad_3, _) = self._power_means(rates, exponent)
        value = value_1 + value_2 + (2 + barrier) * value_3 - barrier * logarithms.mean()
        return value, rates * (grad_1 + grad_2 + (2 + barrier) * grad_3) - barrier / len(rates)

    def bound(self, rates: np.ndarray, exponent: float) -> float:
        """What no rates' score exceeds.

        For any rates r: lambda_2 <= tr(Lambda(r) Y) = a r with Y >= 0 of trace 1, and min_e C_e <= b r with the energies
        of potentials that are 1 apart on an edge, averaged; so the score is at most c r, c = (t a + b/t)/2, by the
        inequality of means. Among r with loads @ r <= 1 that is at most sum(y) max_e c_e / (y @ loads)_e for any y >= 0.
        The gradients of the power means give Y, the potentials and y.
        """
        (_, grad_1, trace), (_, grad_2, energy), (_, prices, total) = self._power_means(rates, exponent)
        a, b = -grad_1 / trace, -grad_2 / energy
        t = math.sqrt((b @ rates) / (a @ rates))
        with np.errstate(divide="ignore"):  # an edge between two idle NICs may be free at first: no bound
            return float(((t * a + b / t) / 2 / prices).max() * total)


def _power_mean(values: np.ndarray, exponent: float) -> tuple[float, np.ndarray]:
    """The log of (sum values^p)^(1/p), and the weights (summing to 1) of the logarithms of ``values`` in its gradient."""
    powers = (values / values.max()) ** exponent
    total = powers.sum()
    return math.log(values.max()) + math.log(total) / exponent, powers / total
