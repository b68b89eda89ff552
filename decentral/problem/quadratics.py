"""Quadratic objectives with known curvature, minimisers and gradient noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decentral.errors import InvalidInput
from decentral.problem.base import Problem, PyTree, starting_point, take
from decentral.problem.checks import (
    check_choice,
    check_dtype,
    check_int,
    check_memory,
    check_number,
    random_generator,
)


@dataclass(frozen=True, eq=False)
class Quadratic(Problem):
    r"""f_i(x) = 1/2 (x - c_i)^T A_i (x - c_i), with gradient A_i (x - c_i) + noise.

    Built by ``of`` or ``quadratic``.

    ``shards`` holds "matrix" (n, d, d), (n, d) for diagonal or (n,) for scalar A_i; "centre" (n, d); and, for noise,
    "noise_scale" (n,) or "noise_table" (n, K + 1, d), whose last row is NaN.

    mu = min_i lambda_min(A_i) (negative if some f_i is not convex), L = max_i lambda_max(A_i); the optimum solves
    (sum_i A_i) x = sum_i A_i c_i and is None when sum_i A_i is not positive definite. A gradient counts as one sample.
    """

    name: str
    shards: PyTree
    dtype: np.dtype
    start: Callable[[jax.Array], jax.Array]
    initial_per_worker: bool
    held_out: None = None

    @classmethod
    def of(
        cls,
        matrices: np.ndarray,
        centres: np.ndarray,
        *,
        noise: float | np.ndarray = 0.0,
        noise_table: np.ndarray | None = None,
        dtype: Any = "float64",
        initial: str | np.ndarray = "zeros",
        name: str = "quadratic",
    ) -> Quadratic:
        """A quadratic problem from arrays.

        Args:
            matrices: A_i: symmetric (n, d, d), diagonals (n, d), or multiples of the identity (n,).
            centres: c_i, shape (n, d).
            noise: standard deviation sigma of each coordinate of the gradient noise sigma N(0, I), one for all or (n,);
                the noise's expected squared norm is d sigma^2.
            noise_table: recorded noise (n, K, d) instead: the gradient that worker i takes after k others adds
                ``noise_table[i, k]``. Beyond the table's end the gradient is NaN, so that the run fails visibly.
            dtype: "float32" or "float64" (needs x64).
            initial: "zeros", "common", "per_worker" (N(0, I) draws) or an array (d,).
            name: for tables and files.

        Raises:
            InvalidInput: shapes that do not agree, values that are not finite, matrices that are not symmetric.
        """
        dtype = check_dtype(dtype)
        matrices, centres = np.asarray(matrices), np.asarray(centres)
        if centres.ndim != 2 or 0 in centres.shape or not np.isfinite(centres).all():
            raise InvalidInput("problem.centres", f"shape {centres.shape}", "finite numbers of shape (n, d)")
        n, d = centres.shape
        if matrices.shape not in ((n, d, d), (n, d), (n,)) or not np.isfinite(matrices).all():
            raise InvalidInput(
                "problem.matrices",
                f"shape {matrices.shape}",
                f"finite numbers of shape {(n, d, d)}, {(n, d)} or {(n,)}, as the centres have shape {(n, d)}",
            )
        if matrices.ndim == 3:
            asymmetry = np.abs(matrices - matrices.swapaxes(1, 2)).max(axis=(1, 2))
            if (asymmetry > 1e-6 * np.abs(matrices).max()).any():
                worker = int(asymmetry.argmax())
                raise InvalidInput(
                    "problem.matrices",
                    f"a matrix of worker {worker} that is not symmetric",
                    "symmetric matrices",
                )
        shards = {"matrix": jnp.asarray(matrices, dtype), "centre": jnp.asarray(centres, dtype)}
        scale = np.asarray(noise, np.float64)
        if scale.shape not in ((), (n,)) or not np.isfinite(scale).all() or (scale < 0).any():
            raise InvalidInput("problem.noise", noise, f"a finite number of at least 0, or {n} of them")
        if noise_table is not None:
            noise_table = np.asarray(noise_table)
            if scale.any():
                raise InvalidInput("problem.noise", noise, "0 when a noise_table is given")
            if noise_table.ndim != 3 or noise_table.shape[::2] != (n, d):
                raise InvalidInput(
                    "problem.noise_table", f"shape {noise_table.shape}", f"shape ({n}, K, {d})"
                )
            end = np.full((n, 1, d), np.nan)
            shards["noise_table"] = jnp.asarray(np.concatenate([noise_table, end], axis=1), dtype)
        elif scale.any():
            shards["noise_scale"] = jnp.asarray(np.broadcast_to(scale, (n,)), dtype)
        start, per_worker = starting_point(initial, (d,), dtype)
        return cls(name, shards, dtype, start, per_worker)

    @property
    def n_workers(self) -> int:
        """Number of workers."""
        return self.shards["centre"].shape[0]

    @property
    def is_stochastic(self) -> bool:
        """Whether gradients carry noise."""
        return "noise_scale" in self.shards or "noise_table" in self.shards

    @property
    def samples_per_gradient(self) -> float:
        """1: a gradient counts as one sample."""
        return 1.0

    @property
    def gradient_bytes(self) -> float:
        """Bytes of A_i and c_i."""
        return (self.shards["matrix"].nbytes + self.shards["centre"].nbytes) / self.n_workers

    def initial(self, key: jax.Array) -> jax.Array:
        """The starting point."""
        return self.start(key)

    def loss(self, params: jax.Array, shard: PyTree) -> jax.Array:
        """1/2 (x - c_i)^T A_i (x - c_i)."""
        return 0.5 * jnp.vdot(params - shard["centre"], self.full_gradient(params, shard))

    def full_gradient(self, params: jax.Array, shard: PyTree) -> jax.Array:
        """A_i (x - c_i)."""
        matrix, away = shard["matrix"], params - shard["centre"]
        return matrix @ away if matrix.ndim == 2 else matrix * away

    @property
    def has_dual(self) -> bool:
        """Where all A_i are positive definite."""
        return self.mu > 0

    def dual_gradient(self, dual: jax.Array, shard: PyTree) -> jax.Array:
        """c_i + A_i^-1 y."""
        matrix = shard["matrix"]
        step = jnp.linalg.solve(matrix, dual) if matrix.ndim == 2 else dual / matrix
        return shard["centre"] + step

    def gradient(
        self, params: jax.Array, shards: PyTree, worker: jax.Array, key: jax.Array, count: jax.Array
    ) -> jax.Array:
        """A_i (x - c_i) plus noise, drawn with ``key`` and ``count`` or read from the table at ``count``."""
        exact = self.full_gradient(params, take({k: shards[k] for k in ("matrix", "centre")}, worker))
        if "noise_table" in shards:
            return exact + shards["noise_table"].at[worker, jnp.asarray(count).astype(jnp.int32)].get(
                mode="clip"
            )
        if "noise_scale" in shards:
            noise = jax.random.normal(jax.random.fold_in(key, count), exact.shape, exact.dtype)
            return exact + take(shards["noise_scale"], worker) * noise
        return exact

    def evaluate(self, params: jax.Array, samples: None) -> dict[str, jax.Array]:
        """Nothing: there are no samples."""
        return {}

    def train_metrics(self, params: jax.Array, shard: PyTree) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Nothing: there are no samples."""
        return {}

    @cached_property
    def _eigenvalues(self) -> np.ndarray:
        matrices = np.asarray(self.shards["matrix"], np.float64)
        return np.linalg.eigvalsh(matrices) if matrices.ndim == 3 else matrices

    @cached_property
    def mu(self) -> float:
        """min_i lambda_min(A_i)."""
        return float(self._eigenvalues.min())

    @cached_property
    def L(self) -> float:
        """max_i lambda_max(A_i)."""
        return float(self._eigenvalues.max())

    @cached_property
    def optimum(self) -> np.ndarray | None:
        """The solution of (sum_i A_i) x = sum_i A_i c_i, or None."""
        return self.weighted_optimum(np.ones(self.n_workers))

    def weighted_optimum(self, weights: np.ndarray) -> np.ndarray | None:
        """The solution of (sum_i w_i A_i) x = sum_i w_i A_i c_i, or None."""
        matrices, centres = (np.asarray(self.shards[k], np.float64) for k in ("matrix", "centre"))
        weights = np.asarray(weights, np.float64)
        if matrices.ndim == 3:
            total = np.einsum("n,nij->ij", weights, matrices)
            eigenvalues = np.linalg.eigvalsh(total)
            if eigenvalues[0] <= 1e-13 * abs(eigenvalues[-1]):
                return None
            return np.linalg.solve(total, np.einsum("n,nij,nj->i", weights, matrices, centres))
        diagonals = weights[:, None] * (matrices if matrices.ndim == 2 else matrices[:, None])
        total = diagonals.sum(axis=0)
        return (diagonals * centres).sum(axis=0) / total if (total > 0).all() else None


def quadratic(
    n: int,
    *,
    d: int = 20,
    condition_number: float = 10.0,
    heterogeneity: float = 1.0,
    noise: float = 0.0,
    structure: str = "dense",
    seed: int = 0,
    dtype: str = "float64",
    initial: str | np.ndarray = "zeros",
) -> Quadratic:
    """Random quadratics with L = 1 and mu = 1 / condition_number for every worker.

    A_i has d eigenvalues spaced evenly in logarithm between mu and L (for d = 1: L only) and random eigenvectors;
    c_i = c + heterogeneity g_i, with c and g_i ~ N(0, I). Worker i's data depend on (seed, i) alone, not on n.

    Args:
        n: workers.
        d: dimension.
        condition_number: kappa = L / mu, at least 1.
        heterogeneity: 0: all f_i share their minimiser.
        noise: standard deviation of each coordinate of the gradient noise.
        structure: "dense" matrices; "diagonal" (the eigenvalues in a random order: memory n d instead of n d^2); or
            "scalar" multiples kappa^(-u_i) of the identity, u_i uniform on [0, 1) (mu and L are then those drawn).
        seed: drives every draw.
        dtype: "float32" or "float64" (needs x64).
        initial: "zeros", "common", "per_worker" or an array (d,).
    """
    n, d, width = check_int("problem.n", n), check_int("problem.d", d), check_dtype(dtype).itemsize
    kappa = check_number("problem.condition_number", condition_number, low=1.0)
    spread = check_number("problem.heterogeneity", heterogeneity)
    check_number("problem.noise", noise)
    check_choice("problem.structure", structure, ("dense", "diagonal", "scalar"))
    shape = {"dense": (n, d, d), "diagonal": (n, d), "scalar": (n,)}[structure]
    # twice: the float64 arrays made here and those of the run
    n_bytes = (math.prod(shape) + n * d) * (8.0 + width)
    check_memory(
        "problem.d", d, n_bytes, "Take fewer workers, a smaller d, or structure = 'diagonal' or 'scalar'."
    )
    spectrum = np.geomspace(1.0, 1.0 / kappa, d)
    common = random_generator(seed, "quadratic centre").standard_normal(d)
    centres = np.empty((n, d))
    matrices = np.empty(shape)
    for worker in range(n):
        rng = random_generator(seed, "quadratic worker", worker)
        centres[worker] = common + spread * rng.standard_normal(d)
        if structure == "scalar":
            matrices[worker] = kappa ** -rng.random()
        elif structure == "diagonal":
            matrices[worker] = rng.permutation(spectrum)
        else:
            basis, _ = np.linalg.qr(rng.standard_normal((d, d)))
            matrix = (basis * spectrum) @ basis.T
            matrices[worker] = (matrix + matrix.T) / 2
    return Quadratic.of(matrices, centres, noise=noise, dtype=dtype, initial=initial)


def noise_table_from_events(workers: np.ndarray, noise: np.ndarray, n: int) -> np.ndarray:
    """Turns noise recorded by global gradient number into a table by (worker, that worker's gradient number).

    Args:
        workers: worker of each gradient, in the order of the run, shape (n_grad,).
        noise: what was added to each of these gradients, shape (n_grad, d).
        n: number of workers.

    Returns:
        The table (n, K, d), K the largest number of gradients of one worker; entries not recorded are NaN.
    """
    workers, noise = np.asarray(workers), np.asarray(noise)
    if workers.ndim != 1 or noise.ndim != 2 or len(workers) != len(noise):
        raise InvalidInput(
            "noise", f"shapes {workers.shape} and {noise.shape}", "shapes (n_grad,) and (n_grad, d)"
        )
    if len(workers) and not (workers.min() >= 0 and workers.max() < n):
        raise InvalidInput(
            "workers", f"{workers.min()} to {workers.max()}", f"worker indices from 0 to {n - 1}"
        )
    totals = np.bincount(workers, minlength=n)
    table = np.full((n, totals.max(initial=0), noise.shape[1]), np.nan)
    order = np.argsort(workers, kind="stable")
    starts = np.cumsum(totals) - totals
    counts = np.arange(len(workers)) - starts[workers[order]]
    table[workers[order], counts] = noise[order]
    return table
