"""Mixtures of experts: how unevenly tokens are routed, what that and padding cost, where to put experts, and bytes exchanged.

A routing law is the share of all assignments that each expert receives. Assignments are drawn independently: a token may
name an expert twice, where a router names ``top_k`` different ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc

from decentral.cost.checks import check_numbers
from decentral.errors import InvalidInput, check_choice, check_integer, check_number

TILE = 128
"""Rows of a tile of a grouped matrix product: an expert's rows are padded to a multiple."""
ROUTERS = ("zipf", "dirichlet")


# -- loads -------------------------------------------------------------------------------------------------------------


def routing_shares(
    experts: int, top_k: int, skew: float = 0.0, router: str = "zipf", seed: int = 0
) -> np.ndarray:
    """The share of the assignments that each expert receives in the long run.

    Args:
        experts: E.
        top_k: experts of a token; none receives more than each token once, a share of 1 / top_k.
        skew: 0: uniform. "zipf": the exponent s of rank^-s, experts in order of their load. "dirichlet": one draw of
            concentration 1 / skew, whose coefficient of variation is about sqrt(skew).
        router: one of ``ROUTERS``.
        seed: of the draw.

    Returns:
        (E,) float64 that sum to 1.

    Raises:
        InvalidInput: more experts of a token than there are; a negative skew.
    """
    check_integer("top_k", top_k, 1, check_integer("experts", experts, 1))
    check_number("skew", skew, 0, np.inf)
    check_choice("router", router, ROUTERS)
    if not skew:
        return np.full(experts, 1 / experts)
    if router == "zipf":
        shares = np.arange(1.0, experts + 1) ** -skew
    else:
        shares = np.random.default_rng(seed).gamma(1 / skew, size=experts)
    shares = np.maximum(shares / shares.sum(), np.finfo(float).tiny)
    full = np.zeros(experts, bool)
    while (over := ~full & (shares > (1 + 1e-12) / top_k)).any():  # their excess goes to the others
        full |= over
        shares[~full] *= (1 - full.sum() / top_k) / shares[~full].sum()
        shares[full] = 1 / top_k
    return shares


def sample_loads(shares: ArrayLike, assignments: int, samples: int = 1, seed: int = 0) -> np.ndarray:
    """Assignments that each expert receives.

    Args:
        shares: (E,) of the experts (:func:`routing_shares`).
        assignments: tokens times top_k, of all ranks.
        samples: independent draws.
        seed: of the draws.

    Returns:
        (samples, E) int64; each row sums to ``assignments``.
    """
    assignments, samples = check_integer("assignments", assignments, 0), check_integer("samples", samples, 1)
    return np.random.default_rng(seed).multinomial(assignments, _shares(shares), size=samples)


def imbalance(loads: ArrayLike, ranks: int) -> np.ndarray:
    """Load of the busiest rank over the mean, experts placed in order, equally many to a rank.

    Args:
        loads: (..., E) of the experts.
        ranks: that divide E.

    Returns:
        (...) float64, 1 where balanced.

    Raises:
        InvalidInput: the number of ranks does not divide that of experts.
    """
    loads = check_numbers("loads", loads, 0)
    check_integer("ranks", ranks, 1)
    if loads.shape[-1] % ranks:
        raise InvalidInput("ranks", ranks, f"a divisor of {loads.shape[-1]} experts")
    of_ranks = loads.reshape(*loads.shape[:-1], ranks, -1).sum(-1)
    return of_ranks.max(-1) / of_ranks.mean(-1)


def uniform_imbalance(assignments: ArrayLike, ranks: ArrayLike) -> np.ndarray:
    """What chance alone does to a router without skew: 1 + sqrt(2 ln(ranks) ranks / assignments), leading order.

    An upper estimate, for ``assignments`` many times ``ranks``: its excess over 1 is 2.1 times the sampled one on 2 ranks, 1.4
    times on 8, 1.2 times on 64 (measured here). In training it is below 1 %: an imbalance that is seen is the router's.

    Args:
        assignments: tokens times top_k, of all ranks.
        ranks: expert-parallel.
    """
    assignments, ranks = (
        check_numbers("assignments", assignments, 0, above=True),
        check_numbers("ranks", ranks, 1),
    )
    return 1 + np.sqrt(2 * np.log(ranks) * ranks / assignments)


def padding_efficiency(assignments: int, shares: ArrayLike, tile: int = TILE) -> float:
    """Rows that are tokens over rows computed, each expert's padded to whole tiles, in expectation over binomial loads.

    A ratio of expectations: what the time of many layers sees. Expected tiles are the sum over j of P(rows > j tile).

    Args:
        assignments: tokens times top_k that meet in one grouped product.
        shares: (E,) of the experts.
        tile: rows.
    """
    assignments, tile = check_integer("assignments", assignments, 1), check_integer("tile", tile, 1)
    shares = _shares(shares)
    most = shares.max() * assignments
    edges = np.arange(0, min(assignments, most + 12 * np.sqrt(most) + 40), tile)  # beyond, less than 1e-16
    more = betainc(edges + 1, assignments - edges, shares[:, None])
    return float(assignments / (tile * more.sum()))


# -- placement ---------------------------------------------------------------------------------------------------------


class Placement(NamedTuple):
    """Where experts are.

    Attributes:
        slots: (ranks, slots_per_rank) expert of each slot; -1: empty.
        copies: (E,) of each expert; a copy takes an equal part of its load.
        before: imbalance (busiest rank over the mean) in order, without copies; NaN where ranks do not divide the experts.
        after: imbalance of this placement.
    """

    slots: np.ndarray
    copies: np.ndarray
    before: float
    after: float


def place(loads: ArrayLike, ranks: int, slots_per_rank: int) -> Placement:
    """Balance predicted loads: copy the hottest experts into spare slots, then pack.

    Each spare slot goes to the expert whose copies carry most (at most one copy for each rank); copies are packed in order
    of load, each on the rank with the least load that has a slot, if it can be on one without that expert. The idea of
    DeepSeek's EPLB (read, its README) without its groups of nodes.

    Args:
        loads: (E,) expected, of any unit.
        ranks: expert-parallel.
        slots_per_rank: experts that fit on one.

    Raises:
        InvalidInput: fewer slots than experts; no load.
    """
    loads = check_numbers("loads", loads, 0)
    ranks, slots_per_rank = (
        check_integer("ranks", ranks, 1),
        check_integer("slots_per_rank", slots_per_rank, 1),
    )
    experts, room = loads.size, ranks * slots_per_rank
    if loads.ndim != 1 or not loads.sum() > 0:
        raise InvalidInput("loads", loads.tolist(), "a load for each expert, not all 0")
    if room < experts:
        raise InvalidInput(
            "slots_per_rank", slots_per_rank, f"at least {-(-experts // ranks)}", "Each expert needs a slot."
        )
    copies = np.ones(experts, int)
    for _ in range(min(room, experts * ranks) - experts):
        copies[np.where(copies < ranks, loads / copies, -1).argmax()] += 1
    carried = loads / copies
    slots, used, of_ranks = np.full((ranks, slots_per_rank), -1), np.zeros(ranks, int), np.zeros(ranks)
    heaviest = np.argsort(-carried, kind="stable")
    for expert in np.repeat(heaviest, copies[heaviest]):
        free = used < slots_per_rank
        without = free & ~(slots == expert).any(1)
        rank = np.where(without if without.any() else free, of_ranks, np.inf).argmin()
        slots[rank, used[rank]] = expert
        used[rank] += 1
        of_ranks[rank] += carried[expert]
    before = float("nan") if experts % ranks else float(imbalance(loads, ranks))
    return Placement(slots, copies, before, float(of_ranks.max() / of_ranks.mean()))


# -- bytes -------------------------------------------------------------------------------------------------------------


def row_bytes(hidden: ArrayLike, dtype: str) -> np.ndarray:
    """Bytes of one token on the wire.

    Args:
        hidden: numbers.
        dtype: "fp32", "bf16"; "fp8_1x128": a float32 scale for each 128, as DeepEP sends (recalled); "mxfp8_1x32": a byte of
            scale for each 32.
    """
    hidden = check_numbers("hidden", hidden, 1)
    check_choice("dtype", dtype, ("fp32", "bf16", "fp8_1x128", "mxfp8_1x32"))
    if dtype == "fp8_1x128":
        return hidden + 4 * np.ceil(hidden / 128)
    if dtype == "mxfp8_1x32":
        return hidden + np.ceil(hidden / 32)
    return hidden * {"fp32": 4, "bf16": 2}[dtype]


class Routed(NamedTuple):
    """Bytes that a rank sends in one direction of a layer, forward; the backward pass sends them again.

    Attributes:
        inside: to other ranks of its node, what it forwards included.
        outside: to other nodes.
    """

    inside: np.ndarray
    outside: np.ndarray


def all_to_all_bytes(
    tokens: ArrayLike,
    row: ArrayLike,
    top_k: ArrayLike,
    ranks: ArrayLike,
    node_size: ArrayLike,
    node_limit: ArrayLike | None = None,
) -> Routed:
    """Dispatch of tokens to the ranks of their experts, or combination of what these return, routed uniformly.

    Without a limit each assignment is sent: tokens top_k row (1 - 1 / ranks) in all. With a limit to R nodes a token crosses
    the network once for each node, at most min(top_k, R, nodes) times, and is forwarded inside it, as DeepSeek-V3 routes.

    Args:
        tokens: of a rank.
        row: bytes of one (:func:`row_bytes`).
        top_k: experts of a token.
        ranks: expert-parallel.
        node_size: ranks of a node; at most ``ranks`` count.
        node_limit: nodes that the experts of a token may be on; None: any, and nothing is forwarded.
    """
    ranks = check_numbers("ranks", ranks, 1)
    node_size = np.minimum(check_numbers("node_size", node_size, 1), ranks)
    top_k = check_numbers("top_k", top_k, 1)
    sent = check_numbers("tokens", tokens, 0) * check_numbers("row", row, 0)
    if node_limit is None:
        return Routed(sent * top_k * (node_size - 1) / ranks, sent * top_k * (1 - node_size / ranks))
    there = np.ceil(ranks / node_size)
    nodes = np.minimum(np.minimum(check_numbers("node_limit", node_limit, 1), top_k), there)
    return Routed(sent * top_k * (1 - 1 / node_size), sent * nodes * (1 - node_size / ranks))


def _shares(shares: ArrayLike) -> np.ndarray:
    """Checked: positive numbers that sum to 1."""
    shares = check_numbers("shares", shares, 0, 1)
    if shares.ndim != 1 or abs(shares.sum() - 1) > 1e-9:
        raise InvalidInput("shares", shares.tolist(), "a share for each expert, in all 1")
    return shares
