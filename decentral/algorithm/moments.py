"""Exact second moments of an algorithm on scalar quadratics: how fast they decay, and where noise keeps them.

On f_i(x) = a_i x^2 / 2 every event is a linear map of all workers' states v, so E[v v^T] obeys a linear equation,

    X' = A X + X A^T + sum_e rate_e (M_e X M_e^T - X).

Its matrices are Jacobians of the algorithm's own ``flow``, ``point``, ``update``, ``message`` and ``receive``: what is
found holds for the code that runs, not for formulas typed a second time. Everything here is float64.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse as sp
import scipy.sparse.linalg
from jax.flatten_util import ravel_pytree

from decentral.algorithm.base import Algorithm
from decentral.errors import InvalidInput
from decentral.topology import Topology

MAX_SIZE = 100
"""Numbers in all workers' states together, m, for an exact spectrum: 8 m^4 bytes are 0.8 GB."""
SOURCES = ("persistent", "white")


class Decay(NamedTuple):
    """How fast E||v||^2 decays, and what shows that it is the slowest mode.

    Attributes:
        rate: E||v||^2 decays as exp(-rate t) in the end; negative where it grows.
        operator: the equation's generator on symmetric matrices, in an orthonormal basis.
        slowest: the mode that decays slowest, a covariance of trace 1.
    """

    rate: float
    operator: np.ndarray
    slowest: np.ndarray


def second_moment_decay(algorithm: Algorithm, topology: Topology, curvatures=()) -> Decay:
    """Decay rate of E||v||^2, v all workers' states at a common time, where what is conserved sums to zero.

    The equation's maps keep positive semidefinite matrices so. Hence (Krein and Rutman) its spectral bound is an
    eigenvalue, with such a matrix as eigenvector, and minus its inverse (the time integral of these maps) has it as its
    largest: Arnoldi on the inverse finds it. Where the second moment grows, the inverse is no such integral, and Arnoldi
    on the generator itself, which is slower, finds the eigenvalue farthest to the right.

    Args:
        algorithm: resolved: all step sizes given.
        topology: its edge rates are those of the exchanges, per unit of time.
        curvatures: a_i, one per worker, whose gradient clock ticks at rate 1; none: gossip alone.

    Raises:
        InvalidInput: the states of all workers have more than ``MAX_SIZE`` numbers.
    """
    own = _maps(algorithm, topology, curvatures)
    n, k = topology.n, len(own["flow"])
    if n * k > MAX_SIZE:
        raise InvalidInput(
            "topology.n", n, f"at most {MAX_SIZE // k} workers of {k} numbers for an exact spectrum"
        )
    kept = scipy.linalg.null_space(np.kron(np.ones((1, n)), own["conserved"]))

    def jump(workers, matrix):
        places = np.concatenate([np.arange(worker * k, (worker + 1) * k) for worker in workers])
        whole = np.eye(n * k)
        whole[np.ix_(places, places)] = matrix
        return kept.T @ whole @ kept

    jumps = [jump([worker], matrix) for worker, matrix in enumerate(own["gradient"])]
    jumps += [jump(edge, own["exchange"]) for edge in topology.edges]
    rates = np.concatenate([np.ones(len(own["gradient"])), topology.edge_rates])
    m = kept.shape[1]
    flow = kept.T @ np.kron(np.eye(n), own["flow"]) @ kept - rates.sum() / 2 * np.eye(m)
    flat = np.reshape(jumps, (len(jumps), m * m))
    operator = ((flat.T * rates) @ flat).reshape(m, m, m, m).transpose(0, 2, 1, 3).copy()  # [i, j, k, l]
    each = np.arange(m)
    operator[:, each, :, each] += flow
    operator[each, :, each, :] += flow
    # Symmetric matrices only, in an orthonormal basis: E_ii and (E_ij + E_ji) / sqrt 2.
    i, j = np.triu_indices(m)
    weight = np.where(i == j, 0.5, np.sqrt(0.5))
    column = np.arange(len(i))
    entries = np.r_[weight, weight], (np.r_[i * m + j, j * m + i], np.r_[column, column])
    basis = sp.csr_matrix(entries, shape=(m * m, len(i)))
    operator = basis.T @ (basis.T @ operator.reshape(m * m, m * m).T).T
    factors = scipy.linalg.lu_factor(operator)
    inverse = scipy.sparse.linalg.LinearOperator(
        operator.shape, lambda v: scipy.linalg.lu_solve(factors, v), dtype=float
    )
    start = basis.T @ np.eye(m).ravel()
    values, vectors = scipy.sparse.linalg.eigs(inverse, k=1, v0=start)
    value, vector = 1 / values[0], vectors[:, 0]
    stable = value.imag == 0 and value.real < 0
    if not stable or np.linalg.eigvalsh(_unit_trace(basis, np.real(vector), m))[0] < -1e-8:
        # The spectral bound is still an eigenvalue: the one farthest to the right.
        values, vectors = scipy.sparse.linalg.eigs(operator, k=1, which="LR", ncv=60, v0=start)
        value, vector = values[0], vectors[:, 0]
    return Decay(-float(value.real), operator, _unit_trace(basis, np.real(vector), m))


def stationary_consensus(
    algorithm: Algorithm, topology: Topology, source: str, *, tolerance: float = 1e-9
) -> float:
    """Mean over the workers of E(x_i - mean x)^2 that gradients without curvature keep up, for sources of unit size.

    Every worker takes gradients at rate 1 that do not depend on x. Then x drifts, but its differences become
    stationary.

    Args:
        algorithm: resolved; what its exchanges conserve must be what a gradient moves and nothing depends on but by its
            differences (gossip, A2CiD2, with or without momentum).
        topology: its edge rates are those of the exchanges, per unit of time.
        source: ``"white"``: each gradient is an N(0, 1) draw of its own; ``"persistent"``: worker i's gradients are all
            one N(0, 1) draw b_i, and the result is a mean over these draws too.
        tolerance: relative, of the fixed point.

    Raises:
        InvalidInput: an unknown source, or the second moment grows.
    """
    if source not in SOURCES:
        raise InvalidInput("source", source, f"one of {', '.join(SOURCES)}")
    n = topology.n
    own = _maps(algorithm, topology, np.zeros(n))
    k = len(own["flow"])
    # States and buffers of the workers; of what exchanges conserve only the differences.
    kept = scipy.linalg.null_space(np.kron(np.ones((1, n)), own["conserved"]))
    gradients = own["gradient"] - np.eye(k)
    exchange = own["exchange"] - np.eye(2 * k)
    drift = np.kron(np.eye(n), own["flow"]) + scipy.linalg.block_diag(*gradients)
    pairs = [np.r_[i * k : (i + 1) * k, j * k : (j + 1) * k] for i, j in topology.edges]
    for places, rate in zip(pairs, topology.edge_rates, strict=True):
        drift[np.ix_(places, places)] += rate * exchange
    drift = kept.T @ drift @ kept
    push = np.kron(np.eye(n), own["push"][:, None])
    blocks = [np.arange(i * k, (i + 1) * k) for i in range(n)]

    noise = push @ push.T
    if source == "persistent":
        with_b = kept @ -np.linalg.solve(drift, kept.T @ push)  # E[v b^T], (n k, n)
        for i, block in enumerate(blocks):
            # (v + jump of v_i)(push b_i)^T and its transpose, where v and b_i are correlated.
            jumped = with_b[:, i].copy()
            jumped[block] += gradients[i] @ with_b[block, i]
            noise[:, block] += np.outer(jumped, own["push"])
            noise[block, :] += np.outer(own["push"], jumped)
    noise = kept.T @ noise @ kept

    schur, unitary = scipy.linalg.schur(drift)
    solve = scipy.linalg.get_lapack_funcs("trsyl", (schur,))

    def lyapunov(right):
        """X with drift X + X drift^T = right."""
        found, scale, _ = solve(schur, schur, unitary.T @ right @ unitary, tranb="T")
        return unitary @ (found / scale) @ unitary.T

    picks_x = np.kron(np.eye(n) - 1 / n, own["estimate"][None])
    found, before = lyapunov(-noise), 0.0
    first = found
    for _ in range(10_000):
        whole = kept @ found @ kept.T
        jumps = np.zeros_like(whole)
        for block in blocks:
            inside = np.ix_(block, block)
            jumps[inside] += gradients[0] @ whole[inside] @ gradients[0].T
        for places, rate in zip(pairs, topology.edge_rates, strict=True):
            inside = np.ix_(places, places)
            jumps[inside] += rate * exchange @ whole[inside] @ exchange.T
        found = first - lyapunov(kept.T @ jumps @ kept)
        consensus = float(np.trace(picks_x @ kept @ found @ kept.T @ picks_x.T)) / n
        if abs(consensus - before) <= tolerance * consensus:
            return consensus
        before = consensus
        if not np.isfinite(consensus):
            break
    raise InvalidInput("algorithm", algorithm, "an algorithm whose second moment stays bounded")


def _maps(algorithm: Algorithm, topology: Topology, curvatures) -> dict[str, np.ndarray]:
    """Jacobians of the algorithm's functions on flat states of one worker."""
    curvatures = np.asarray(curvatures, float)
    if len(curvatures) not in (0, topology.n):
        raise InvalidInput("curvatures", f"{len(curvatures)} of them", f"none, or {topology.n}")
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, _matrices(algorithm, jnp.asarray(curvatures)))


@jax.jit
def _matrices(algorithm, curvatures):
    """Generator of the flow, jumps, what is conserved, what a gradient adds and what is evaluated."""
    flat, unravel = ravel_pytree(algorithm.init(jnp.zeros(()), jax.random.key(0)))
    zero = jnp.zeros_like(flat)

    def flow(state, dt):
        return ravel_pytree(algorithm.flow(unravel(state), dt))[0]

    def gradient(state, curvature, source):
        state = unravel(state)
        return ravel_pytree(algorithm.update(state, curvature * algorithm.point(state) + source, None))[0]

    def exchange(states):
        sent = [algorithm.message(unravel(state), None, None) for state in jnp.split(states, 2)]
        (mine, first), (theirs, second) = sent
        ends = algorithm.receive(first, theirs, mine, 1.0), algorithm.receive(second, mine, theirs, 1.0)
        return jnp.concatenate([ravel_pytree(end)[0] for end in ends])

    def conserved(state):
        return ravel_pytree(algorithm.conserved(unravel(state)))[0]

    return {
        "flow": jax.jacfwd(lambda dt: jax.jacfwd(flow)(zero, dt))(0.0),
        "gradient": jax.vmap(lambda a: jax.jacfwd(gradient)(zero, a, 0.0))(curvatures),
        "push": jax.jacfwd(lambda source: gradient(zero, 0.0, source))(0.0),
        "exchange": jax.jacfwd(exchange)(jnp.concatenate([zero, zero])),
        "conserved": jax.jacfwd(conserved)(zero),
        "estimate": jax.jacfwd(lambda state: algorithm.estimate(unravel(state)))(zero),
    }


def _unit_trace(basis, vector, m: int) -> np.ndarray:
    mode = (basis @ vector).reshape(m, m)
    return mode / np.trace(mode)
