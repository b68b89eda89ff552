"""Random tapes: draw number ``count`` of an entity, the same whoever asks, in whatever order.

A draw is a pure function of (seed, purpose, entity, count), so two algorithms that run on the same workers see the same
k-th compute draw of worker i and the same k-th tick of edge e, and adding a worker changes no other draw. The function
is Philox4x64-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers, as easy as 1, 2, 3; SC 2011): key = (seed,
purpose), counter = (count // 4, entity), and each block gives four draws. The draws of the devices (mini-batches,
noise, initial points) follow the same rule with JAX's own generator.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numba import njit

from decentral.errors import InvalidInput

LONGEST_S = 9.2e9
"""Nanoseconds of 64 bits end here, after 292 years."""


class Purpose(IntEnum):
    """What a host tape is for. The values are part of every result: never renumber them."""

    GRADIENT_CLOCK = 1
    EXCHANGE_CLOCK = 2
    RECORDED_WORKERS = 3
    COMPUTE = 4
    SPEED = 5
    LINK_LATENCY = 6
    LINK_JITTER = 7
    LOSS = 8
    OUTAGE = 9
    EXCHANGE_COUNT = 10
    MESSAGE_PEER = 11
    ROUND_PAIRS = 20


_MASK32 = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_MULTIPLIER_0 = np.uint64(0xD2E7470EE14C6C93)
_MULTIPLIER_1 = np.uint64(0xCA5A826395121157)
_WEYL_0 = np.uint64(0x9E3779B97F4A7C15)
_WEYL_1 = np.uint64(0xBB67AE8584CAA73B)


@njit(inline="always")
def _high_word(a, b):
    """The upper 64 bits of the 128-bit product (numba has no 128-bit integers)."""
    a_low, a_high = a & _MASK32, a >> _32
    b_low, b_high = b & _MASK32, b >> _32
    carry = ((a_low * b_low) >> _32) + ((a_high * b_low) & _MASK32) + a_low * b_high
    return a_high * b_high + ((a_high * b_low) >> _32) + (carry >> _32)


@njit(cache=True)
def philox(key_0, key_1, counter_0, counter_1, counter_2, counter_3):
    """One block of Philox4x64-10: four ``uint64`` from a key of two and a counter of four."""
    for _ in range(10):
        high_0, low_0 = _high_word(_MULTIPLIER_0, counter_0), _MULTIPLIER_0 * counter_0
        high_1, low_1 = _high_word(_MULTIPLIER_1, counter_2), _MULTIPLIER_1 * counter_2
        counter_0, counter_1 = high_1 ^ counter_1 ^ key_0, low_1
        counter_2, counter_3 = high_0 ^ counter_3 ^ key_1, low_0
        key_0 += _WEYL_0
        key_1 += _WEYL_1
    return counter_0, counter_1, counter_2, counter_3


@njit(inline="always")
def _uniform(word):
    return np.float64(word >> np.uint64(11)) * 2.0**-53


@njit(cache=True)
def uniform_runs(seed, purpose, entity_0, entity_1, first, draws):
    """For each r, draws ``first[r] .. first[r] + draws[r] - 1`` of entity r, one run after another.

    Args:
        seed: ``0 <= seed < 2**63``.
        purpose: a :class:`Purpose`.
        entity_0: (R,) integers, with ``entity_1`` the entity of each run, as in :func:`uniforms`.
        entity_1: (R,) integers.
        first: (R,) integers.
        draws: (R,) integers.

    Returns:
        (sum of draws,) float64 on [0, 1).
    """
    out = np.empty(draws.sum())
    written = 0
    for r in range(draws.size):
        block = (np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0))
        for count in range(first[r], first[r] + draws[r]):
            if count % 4 == 0 or count == first[r]:
                block = philox(
                    np.uint64(seed),
                    np.uint64(purpose),
                    np.uint64(count // 4),
                    np.uint64(entity_0[r]),
                    np.uint64(entity_1[r]),
                    np.uint64(0),
                )
            out[written] = _uniform(block[count % 4])
            written += 1
    return out


def uniforms(seed, purpose, entity, first, draws):
    """Draws ``first .. first + draws - 1`` of one entity, uniform on [0, 1), shape ``(draws,)``.

    Args:
        seed: ``0 <= seed < 2**63``.
        purpose: a :class:`Purpose`.
        entity: two integers: ``(worker, worker)``, or an edge by its two end points.
        first: the count of the first draw.
        draws: how many.
    """
    return uniform_runs(seed, int(purpose), *np.array([*entity, first, draws], np.int64)[:, None])


def poisson_ticks(
    seed: int,
    purpose: Purpose,
    first: np.ndarray,
    second: np.ndarray,
    rates_per_s: np.ndarray,
    horizon_s: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Ticks of independent Poisson clocks up to a horizon, clock after clock.

    The waiting times of clock c are ``-log(1 - u_k) / rate_c`` with ``u_k`` its k-th draw: clocks of another rate tick
    at stretched times of the same tape.

    Args:
        seed: the tape's seed.
        purpose: what the clocks are for.
        first: shape ``(clocks,)``, with ``second`` the entity of each clock.
        second: shape ``(clocks,)``.
        rates_per_s: shape ``(clocks,)``; a clock of rate 0 never ticks.
        horizon_s: no tick later than this.

    Returns:
        ``(ticks_ns, clocks)``: int64 nanoseconds and int32 clock numbers, shape ``(ticks,)``.

    Raises:
        InvalidInput: the horizon is later than 64 bits of nanoseconds can say.
    """
    if not horizon_s <= LONGEST_S:
        raise _too_long(horizon_s)
    clocks = PoissonClocks(seed, purpose, first, second, rates_per_s, horizon_s)
    expected = max(0.0, horizon_s) * float(np.clip(rates_per_s, 0.0, None).sum())
    return clocks.until(int(np.rint(horizon_s * 1e9)), expected)


def _too_long(horizon_s: float) -> InvalidInput:
    return InvalidInput(
        "stop", f"{horizon_s:g} simulated seconds", f"at most {LONGEST_S:g}", "Use faster clocks."
    )


@njit(cache=True)
def _ticks(seed, purpose, first, second, rates, horizon, border_ns, pending_s, drawn, ticks_ns, clocks):
    """Every clock's ticks up to a border, from where it stands; ``pending_s`` and ``drawn`` then stand behind them."""
    written = 0
    for clock in range(rates.size):
        if rates[clock] <= 0.0:
            continue
        now, count = pending_s[clock], drawn[clock]
        block, fresh = (np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)), False
        while count == 0 or (now <= horizon and np.rint(now * 1e9) <= border_ns):
            if count:
                if written == ticks_ns.size:
                    longer_ns, longer = np.empty(2 * written, np.int64), np.empty(2 * written, np.int32)
                    longer_ns[:written], longer[:written] = ticks_ns, clocks
                    ticks_ns, clocks = longer_ns, longer
                ticks_ns[written] = np.int64(np.rint(now * 1e9))
                clocks[written] = clock
                written += 1
            if count % 4 == 0 or not fresh:
                block = philox(
                    np.uint64(seed),
                    np.uint64(purpose),
                    np.uint64(count // 4),
                    np.uint64(first[clock]),
                    np.uint64(second[clock]),
                    np.uint64(0),
                )
                fresh = True
            now += -np.log1p(-_uniform(block[count % 4])) / rates[clock]
            count += 1
        pending_s[clock], drawn[clock] = now, count
    return ticks_ns[:written], clocks[:written]


class PoissonClocks:
    """The clocks of :func:`poisson_ticks`, read piece by piece instead of at once: the same ticks, bit for bit.

    Args:
        seed: as there, with all that follows.
        purpose: as there.
        first: as there.
        second: as there.
        rates_per_s: as there.
        horizon_s: as there; may be infinite.
    """

    def __init__(self, seed: int, purpose: Purpose, first, second, rates_per_s, horizon_s: float) -> None:
        self._tape = int(seed), int(purpose), np.asarray(first, np.int64), np.asarray(second, np.int64)
        self._rates = np.ascontiguousarray(rates_per_s, np.float64)
        self._horizon_s = float(horizon_s)
        self._pending_s, self._drawn = np.zeros(len(self._rates)), np.zeros(len(self._rates), np.int64)

    def until(self, border_ns: int, expected: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """``(ticks_ns, clocks)`` after the last border and up to this one, clock after clock.

        Args:
            border_ns: nanoseconds; ticks are compared as they are rounded.
            expected: about how many there will be, so that memory is taken once.

        Raises:
            InvalidInput: the border is later than 64 bits of nanoseconds can say.
        """
        if border_ns > LONGEST_S * 1e9:
            raise _too_long(border_ns / 1e9)
        room = int(1.05 * expected) + 1024
        return _ticks(
            *self._tape, self._rates, self._horizon_s, border_ns, self._pending_s, self._drawn,
            np.empty(room, np.int64), np.empty(room, np.int32),
        )  # fmt: skip
