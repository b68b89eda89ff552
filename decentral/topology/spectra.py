"""Eigenvalues, effective resistances and traces of weighted graph Laplacians, dense or sparse by size.

Everywhere ``laplacian`` is a sparse (n, n) matrix sum_e w_e (e_i - e_j)(e_i - e_j)^T of a connected graph,
``edges`` an integer array (E, 2) with i < j. Randomised methods take their numbers from a fixed seed: results
repeat.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as sla
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.special import gammaincinv

from decentral.errors import InvalidInput

# Measured on one core: all eigenvalues of a dense matrix take 0.25 s at n = 1,500 and 8 s at 5,000; a dense
# inverse takes 4 s and 200 MB at 5,000.
DENSE_EIGENVALUES_MAX_N = 1_500
EXACT_RESISTANCES_MAX_N = 5_000
ESTIMATE_CONFIDENCE = 0.99
_SEED = 20240229


def weighted_laplacian(n: int, edges: np.ndarray, weights: np.ndarray) -> sp.csr_matrix:
    """sum_e w_e (e_i - e_j)(e_i - e_j)^T as CSR; edges of weight 0 leave no entry."""
    used = weights > 0
    (i, j), weights = edges[used].T, weights[used]
    diagonal = np.bincount(i, weights, n) + np.bincount(j, weights, n)
    nodes = np.arange(n)
    entries = np.concatenate([diagonal, -weights, -weights])
    positions = np.concatenate([nodes, i, j]), np.concatenate([nodes, j, i])
    return sp.csr_matrix((entries, positions), shape=(n, n))


def nearly_disconnected(laplacian: sp.csr_matrix) -> InvalidInput:
    """The error for edge rates so uneven that float64 cannot tell the graph from a disconnected one."""
    rates = -laplacian.data[laplacian.data < 0]
    return InvalidInput(
        "edge_rates",
        f"rates from {rates.min():.3g} to {rates.max():.3g}",
        "rates whose Laplacian is connected to working precision: lambda_2 above 1e-13 of its diagonal",
        "Raise the smallest rates.",
    )


def second_eigenvalue(laplacian: sp.csr_matrix) -> float:
    """lambda_2, the smallest positive eigenvalue.

    Above ``DENSE_EIGENVALUES_MAX_N`` in closed form for paths and rings whose edges are all alike. Else Lanczos
    on the Laplacian itself, which converges fast where the graph expands well, as conjugate gradients do; where
    they do not, elimination is cheap (long, thin or flat graphs) and Lanczos runs on the pseudo-inverse, whose
    largest eigenvalue 1/lambda_2 is well separated.
    """
    value = _second_eigenvalue(laplacian)
    if not value > 1e-13 * laplacian.diagonal().max():
        raise nearly_disconnected(laplacian)
    return value


def _second_eigenvalue(laplacian: sp.csr_matrix) -> float:
    n = laplacian.shape[0]
    if n <= DENSE_EIGENVALUES_MAX_N:
        return float(np.linalg.eigvalsh(laplacian.toarray())[1])
    line = _line(laplacian)
    if line is not None:
        return line
    start = np.random.default_rng(_SEED).standard_normal(n)
    shift = 2 * laplacian.diagonal().max()  # lifts the eigenvalue 0 of the constant vector to the top
    lifted = sla.LinearOperator((n, n), matvec=lambda x: laplacian @ x + shift * x.mean(), dtype=float)
    if _expands(laplacian, 500):
        with contextlib.suppress(sla.ArpackError):  # no convergence
            return float(sla.eigsh(lifted, 1, which="SA", v0=start, ncv=40, maxiter=50, tol=1e-9)[0][0])
    solve = eliminate(laplacian)
    inverse = sla.LinearOperator(
        (n, n), matvec=lambda x: solve(x[:, None] if x.ndim == 1 else x)[:, 0], dtype=float
    )
    return float(1 / sla.eigsh(inverse, 1, which="LA", v0=start - start.mean(), tol=1e-12)[0][0])


def _expands(laplacian: sp.csr_matrix, max_iterations: int) -> bool:
    """Conjugate gradients solve a random system in so many iterations: some milliseconds each at n = 100,000."""
    right = np.random.default_rng(_SEED).standard_normal((laplacian.shape[0], 1))
    found = conjugate_gradient(
        laplacian.__matmul__, right - right.mean(axis=0), laplacian.diagonal(), 1e-7, max_iterations
    )
    return found is not None


def _line(laplacian: sp.csr_matrix) -> float | None:
    """lambda_2 of a path or ring whose edges are all alike, in closed form; None for other graphs.

    Their gap falls as 1/n^2, so that nothing iterative finds it quickly.
    """
    n, sizes = laplacian.shape[0], np.diff(laplacian.indptr)
    weights = -laplacian.data[laplacian.data < 0]
    if (
        sizes.max() != 3
        or len(weights) + n != laplacian.nnz
        or not np.allclose(weights, weights[0], 1e-12, 0)
    ):
        return None
    angle = np.pi / n if sizes.min() == 2 else 2 * np.pi / n
    return float(4 * weights[0] * np.sin(angle / 2) ** 2)


def largest_eigenvalue(laplacian: sp.csr_matrix) -> float:
    """lambda_n, to a relative 1e-7 or better where Lanczos is used."""
    n = laplacian.shape[0]
    if n <= DENSE_EIGENVALUES_MAX_N:
        return float(np.linalg.eigvalsh(laplacian.toarray())[-1])
    start = np.random.default_rng(_SEED).standard_normal(n)
    return float(
        sla.eigsh(laplacian, 1, which="LA", v0=start, ncv=40, tol=1e-6, return_eigenvectors=False)[0]
    )


def eliminate(laplacian: sp.csr_matrix) -> Callable[[np.ndarray], np.ndarray]:
    """A function b (n, k) -> laplacian^+ b by sparse elimination with the last node grounded."""
    grounded = sp.csc_matrix(laplacian[:-1, :-1])
    factor = sla.splu(grounded, "MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})

    def solve(right: np.ndarray) -> np.ndarray:
        right = right - right.mean(axis=0)
        solution = np.vstack([factor.solve(right[:-1]), np.zeros((1, right.shape[1]))])
        return solution - solution.mean(axis=0)

    return solve


def conjugate_gradient(
    apply: Callable, right: np.ndarray, diagonal: np.ndarray, tolerance: float, max_iterations: int
) -> np.ndarray | None:
    """Solve apply(x) = right for k columns at once, preconditioned by ``diagonal``; None if not converged.

    A singular ``apply`` is fine as long as the columns of ``right`` are in its range.
    """
    target = tolerance * np.linalg.norm(right, axis=0)
    solution, residual = np.zeros_like(right), right.copy()
    scaled = residual / diagonal[:, None]
    direction, product = scaled, np.einsum("ik,ik->k", residual, scaled)
    for _ in range(max_iterations):
        if np.all(np.linalg.norm(residual, axis=0) <= target):
            return solution
        image = apply(direction)
        curvature = np.einsum("ik,ik->k", direction, image)
        step = np.divide(product, curvature, out=np.zeros_like(product), where=curvature > 0)
        solution += step * direction
        residual -= step * image
        scaled = residual / diagonal[:, None]
        previous, product = product, np.einsum("ik,ik->k", residual, scaled)
        ratio = np.divide(product, previous, out=np.zeros_like(product), where=previous > 0)
        direction = scaled + ratio * direction
    return None


def solver(laplacian: sp.csr_matrix) -> Callable[[np.ndarray], np.ndarray]:
    """B (n, k) -> x with laplacian x = b - mean(b): conjugate gradients where quick, else elimination."""
    diagonal = laplacian.diagonal()

    def iterate(right: np.ndarray) -> np.ndarray | None:
        return conjugate_gradient(
            laplacian.__matmul__, right - right.mean(axis=0), diagonal, 1e-7, max_iterations=10_000
        )

    # Expanders fill in when eliminated (30 s at n = 10,000 and degree 18) and need about 30 iterations.
    if not _expands(laplacian, 60):
        return eliminate(laplacian)

    def solve(right: np.ndarray) -> np.ndarray:
        found = iterate(right)
        return eliminate(laplacian)(right) if found is None else found

    return solve


def exact_resistances(laplacian: sp.csr_matrix, edges: np.ndarray) -> np.ndarray:
    """(e_i - e_j)^T laplacian^+ (e_i - e_j) per edge, from the dense inverse of laplacian + c 11^T/n."""
    n = laplacian.shape[0]
    dense = laplacian.toarray(order="F")
    dense += np.trace(dense) / n**2  # any c > 0 leaves the resistances as they are; this one suits the scale
    factor, failed = dpotrf(dense, overwrite_a=1)
    if failed:
        raise nearly_disconnected(laplacian)
    inverse, _ = dpotri(factor, overwrite_c=1)  # fills the upper triangle, where i < j
    i, j = edges.T
    diagonal = inverse.diagonal()
    resistances = diagonal[i] + diagonal[j] - 2 * inverse[i, j]
    # Foster's identity sum_e w_e R_e = n - 1 is a check of the rounding
    foster = float(-np.asarray(laplacian[i, j]).ravel() @ resistances)
    if not math.isclose(foster, n - 1, rel_tol=1e-6):
        raise nearly_disconnected(laplacian)
    return resistances


class Resistances(NamedTuple):
    """Effective resistances of the edges: ``values`` (E,), and the largest among edges of positive weight.

    Where not ``exact``, ``values`` are estimates, ``largest`` is the resistance of an actual edge (solved
    for), never above the true maximum, and with probability ``ESTIMATE_CONFIDENCE`` the maximum is at most
    largest * (1 + relative_error).
    """

    values: np.ndarray
    largest: float
    exact: bool
    relative_error: float


def estimated_resistances(
    laplacian: sp.csr_matrix, edges: np.ndarray, weights: np.ndarray, candidates: int = 128
) -> Resistances:
    """Random projections (Spielman & Srivastava 2011, SIAM J. Comput. 40(6), recalled).

    R_e = ||W^{1/2} B Lambda^+ b_e||^2 (b_e = e_i - e_j) is estimated by ||G W^{1/2} B Lambda^+ b_e||^2 / q, G
    Gaussian with q rows: it is distributed as R_e chi^2_q / q. The noise is made smaller by projecting only
    what two steps of the random walk P = A D^{-1} leave:

        R_e = 1/d_i + 1/d_j - 2 a_ij/(d_i d_j) + ||W^{1/2} B Lambda^+ P b_e||^2.

    The ``candidates`` edges with the largest upper confidence bounds are then solved for exactly.
    """
    n, count = laplacian.shape[0], len(edges)
    rng, solve, degree = np.random.default_rng(_SEED), solver(laplacian), laplacian.diagonal()
    i, j = edges.T
    weighted_incidence = sp.csr_matrix(
        (
            np.concatenate([np.sqrt(weights), -np.sqrt(weights)]),
            (np.tile(np.arange(count), 2), edges.T.ravel()),
        ),
        shape=(count, n),
    )
    walk_transposed = sp.identity(n, format="csr") - sp.diags_array(1 / degree) @ laplacian  # D^{-1} A
    projections = int(np.clip(5e7 / count, 16, 1_000))  # more edges at the same n: a smaller remainder
    width = int(np.clip(2e7 / count, 1, 64))  # columns at a time, to bound the memory of G
    remainder = np.zeros(count)
    for start in range(0, projections, width):
        gaussian = rng.standard_normal((count, min(width, projections - start)))
        potentials = walk_transposed @ solve(weighted_incidence.T @ gaussian)
        remainder += np.square(potentials[i] - potentials[j]).sum(axis=1) / projections
    local = 1 / degree[i] + 1 / degree[j] - 2 * weights / (degree[i] * degree[j])
    # union bound over the edges: every true remainder is below its estimate / quantile
    # (2 gammaincinv(q/2, p) is the quantile of chi^2_q at p)
    quantile = 2 / projections * gammaincinv(projections / 2, (1 - ESTIMATE_CONFIDENCE) / count)
    upper = local + remainder / quantile
    values, upper = local + remainder, np.where(weights > 0, upper, 0.0)
    order = np.argsort(upper)[::-1]
    chosen = order[: min(candidates, np.count_nonzero(weights))]
    right = np.zeros((n, len(chosen)))
    columns = np.arange(len(chosen))
    right[i[chosen], columns], right[j[chosen], columns] = 1.0, -1.0
    values[chosen] = (right * solve(right)).sum(axis=0)
    largest = float(values[chosen].max())
    rest = upper[order[len(chosen)]] if len(chosen) < count else 0.0
    return Resistances(values, largest, False, max(float(rest) / largest - 1, 1e-6))


def is_edge_transitive(n: int, edges: np.ndarray) -> bool:
    """True for a ring, complete graph, hypercube or square torus (the last two in our node order).

    Never wrong where it says True for a connected graph without repeated edges; other edge-transitive graphs
    are not recognised.
    """
    count, (i, j) = len(edges), edges.T
    if count == n * (n - 1) // 2:
        return True
    if count == n:
        return bool(np.all(np.bincount(edges.ravel(), minlength=n) == 2))
    bits = n.bit_length() - 1
    if n == 1 << bits and 2 * count == n * bits and not np.any((i ^ j) & ((i ^ j) - 1)):
        return True
    side = math.isqrt(n)
    if side < 3 or side * side != n or count != 2 * n:
        return False
    rows, columns = (j // side - i // side) % side, (j - i) % side
    return bool(np.all(((rows == 0) | (columns == 0)) & np.isin(rows + columns, (1, side - 1))))


def mean_walk_variance(mixing: sp.csr_matrix, decay: float, probes: int = 32) -> tuple[float, float]:
    """tr(W^2 (I - decay W^2)^{-1}) / n and its relative standard error (Hutchinson, random signs)."""
    n = mixing.shape[0]
    signs = np.random.default_rng(_SEED).choice([-1.0, 1.0], size=(n, probes))
    mixed = mixing @ (signs - signs.mean(axis=0))  # the eigenvalue 1 of the constant vector is added exactly
    solution = conjugate_gradient(
        lambda x: x - decay * (mixing @ (mixing @ x)),
        mixed,
        np.ones(n),
        tolerance=1e-8,
        max_iterations=20_000,
    )
    samples = ((mixed * solution).sum(axis=0) + 1 / (1 - decay)) / n
    return float(samples.mean()), float(samples.std(ddof=1) / math.sqrt(probes) / samples.mean())
