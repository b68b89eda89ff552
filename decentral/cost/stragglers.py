"""What waiting for others costs: expected maxima of compute times, and rounds in which workers wait for some of the others.

Closed forms and quadrature for one barrier; a simulation (:func:`cycle_time`) where delays travel along a graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, betaln, digamma, gammainccinv, gammaincinv, gammaln, ndtri_exp

from decentral.cost.checks import check_numbers
from decentral.errors import InvalidInput, check_choice, check_integer, check_number

KINDS: dict[str, dict[str, tuple[float, float, bool]]] = {
    "constant": {},
    "normal": {"cv": (0, 0.5, False)},  # beyond, times below 0 are not rare
    "lognormal": {"cv": (0, math.inf, False)},
    "exponential": {},
    "shifted_exponential": {"cv": (0, 1, True)},
    "gamma": {"cv": (0, math.inf, True), "shape": (0, math.inf, True)},
    "pareto": {"alpha": (1, math.inf, True)},
    "slow_worker": {"slow_share": (0, 1, False), "slow_factor": (1, math.inf, False)},
}
"""Kind of law -> the parameters it has, each with the lowest and highest value and whether the lowest is excluded."""
_STEP, _REACH = 0.05, 45.0
"""Of the quadrature, in standard deviations of the variable it is over: the integrands are analytic and end exponentially, so
the trapezoidal rule is exact to about 1e-12."""


@dataclass(frozen=True)
class Spread:
    """A law of compute times; its mean is ``mean_s`` whatever the kind.

    Args:
        kind: a key of :data:`KINDS`, which names the parameters each kind has:
            normal and lognormal: ``cv``;
            shifted_exponential: a constant part and an exponential one, ``cv`` the share of the latter;
            gamma: a constant part and a gamma one of that ``shape`` (sums of shifted exponentials are such);
            pareto: a tail of exponent ``alpha``;
            slow_worker: ``slow_factor`` times as long in a share ``slow_share`` of the draws, each on its own.
        mean_s: expected seconds.
        cv: coefficient of variation, standard deviation over mean.
        shape: of the gamma part.
        alpha: the probability of exceeding t falls as t^-alpha; up to 2 the variance is infinite.
        slow_share: probability of a slow draw.
        slow_factor: of a slow draw over an ordinary one.

    Raises:
        InvalidInput: an unknown kind; a parameter that the kind does not have, lacks, or has outside its range.
    """

    kind: str = "constant"
    mean_s: float = 1.0
    cv: float | None = None
    shape: float | None = None
    alpha: float | None = None
    slow_share: float | None = None
    slow_factor: float | None = None

    def __post_init__(self) -> None:
        check_choice("spread.kind", self.kind, KINDS)
        check_number("spread.mean_s", self.mean_s, 0, math.inf, above=True)
        needed = KINDS[self.kind]
        for name in ("cv", "shape", "alpha", "slow_share", "slow_factor"):
            value = getattr(self, name)
            if name in needed:
                low, high, above = needed[name]
                check_number(f"spread.{name}", value, low, high, above=above)
            elif value is not None:
                raise InvalidInput(f"spread.{name}", value, f"nothing: {self.kind} has no such parameter")
        if self.kind == "gamma" and self._shift_s < -1e-12 * self.mean_s:
            raise InvalidInput(
                "spread.shape", self.shape, "at most 1 / cv^2", "The constant part would be negative."
            )

    def quantile(self, u: ArrayLike) -> np.ndarray:
        """Seconds that a share ``u`` of the draws does not exceed.

        Args:
            u: in [0, 1], any shape.

        Returns:
            Float64, of that shape.
        """
        with np.errstate(divide="ignore"):
            return self._at(np.log(check_numbers("u", u, 0, 1)))

    @property
    def standard_deviation_s(self) -> float:
        """Seconds; infinite for a tail of exponent 2 or less."""
        if self.kind == "pareto":
            alpha = self._get("alpha")
            return self.mean_s / math.sqrt(alpha * (alpha - 2)) if alpha > 2 else math.inf
        if self.kind == "slow_worker":
            share = self._get("slow_share")
            return self._fast_s * (self._get("slow_factor") - 1) * math.sqrt(share * (1 - share))
        return self.mean_s * {"constant": 0.0, "exponential": 1.0}.get(self.kind, self.cv or 0.0)

    def summed(self, steps: int) -> Spread:
        """The law of the sum of so many draws: what accumulates before a barrier.

        Exact for constants, normals and (shifted) exponentials; a lognormal of the same mean and variance for lognormals
        (Fenton 1960, recalled).

        Raises:
            InvalidInput: fewer than one step; pareto or slow_worker, whose sums are no law of these
                (:func:`cycle_time` has ``steps``).
        """
        steps = check_integer("steps", steps, 1)
        mean_s, root = self.mean_s * steps, math.sqrt(steps)
        if self.kind == "constant" or steps == 1:
            return replace(self, mean_s=mean_s)
        if self.kind in ("normal", "lognormal"):
            return Spread(self.kind, mean_s, cv=self._get("cv") / root)
        if self.kind in ("exponential", "shifted_exponential", "gamma"):
            cv = 1.0 if self.kind == "exponential" else self._get("cv")
            return Spread("gamma", mean_s, cv=cv / root, shape=(self.shape or 1.0) * steps)
        raise InvalidInput(
            "spread.kind", self.kind, "a kind whose sums are known", "Simulate: cycle_time(..., steps=)."
        )

    # -- the law itself ------------------------------------------------------------------------------------------------

    def _get(self, name: str) -> float:
        value = getattr(self, name)
        assert value is not None, name
        return float(value)

    @property
    def _fast_s(self) -> float:
        return self.mean_s / (1 + self._get("slow_share") * (self._get("slow_factor") - 1))

    @property
    def _least_s(self) -> float:
        return self.mean_s * (1 - 1 / self._get("alpha"))

    @property
    def _shift_s(self) -> float:
        """The constant part of a shifted exponential or gamma."""
        return self.mean_s * (1 - self._get("cv") * math.sqrt(self.shape or 1.0))

    def _at(self, log_u: np.ndarray) -> np.ndarray:
        """The quantile at exp(log_u): logarithms tell apart what is within rounding of 1, where maxima are."""
        above = -np.expm1(log_u)  # 1 - u
        if self.kind == "constant" or self.cv == 0:
            return np.full_like(above, self.mean_s)
        with np.errstate(divide="ignore"):
            match self.kind:
                case "normal":
                    return self.mean_s * (1 + self._get("cv") * ndtri_exp(log_u))
                case "lognormal":
                    sigma = math.sqrt(math.log1p(self._get("cv") ** 2))
                    return self.mean_s * np.exp(sigma * ndtri_exp(log_u) - sigma**2 / 2)
                case "exponential":
                    return -self.mean_s * np.log(above)
                case "shifted_exponential":
                    return self._shift_s - self.mean_s * self._get("cv") * np.log(above)
                case "gamma":
                    shape = self._get("shape")
                    low, high = gammaincinv(shape, np.exp(log_u)), gammainccinv(shape, above)
                    scale_s = self.mean_s * self._get("cv") / math.sqrt(shape)
                    return self._shift_s + scale_s * np.where(above < 0.5, high, low)
                case "pareto":
                    return self._least_s * above ** (-1 / self._get("alpha"))
                case _:
                    slow = above < self._get("slow_share")
                    return self._fast_s * np.where(slow, self._get("slow_factor"), 1.0)


# -- one barrier -------------------------------------------------------------------------------------------------------


def k_of_n(law: Spread, k: ArrayLike, n: ArrayLike) -> np.ndarray:
    """Expected time until ``k`` of ``n`` workers are done: what a round takes that drops the n - k slowest.

    Closed forms: Pareto, exponential (H_n - H_(n-k) means), slow worker; otherwise the integral of the quantile function
    over the law of the k-th of n uniforms, exact to about 1e-10.

    Args:
        law: of each worker, independent of the others.
        k: from 1 to n, any shape; need not be whole.
        n: workers, of a shape that broadcasts with it.

    Returns:
        Float64 seconds, of the shape of both.

    Raises:
        InvalidInput: k below 1 or above n.
    """
    k, n = np.broadcast_arrays(check_numbers("k", k, 1), check_numbers("n", n, 1))
    if (k > n).any():
        raise InvalidInput("k", k[k > n].max(), "at most n")
    rest = n - k
    match law.kind:
        case "constant":
            return np.full(n.shape, law.mean_s)
        case "exponential" | "shifted_exponential":
            share = law.cv if law.cv is not None else 1.0
            return law.mean_s * (1 - share + share * (digamma(n + 1) - digamma(rest + 1)))
        case "pareto":
            back = 1 / law._get("alpha")
            logs = gammaln(n + 1) - gammaln(rest + 1) + gammaln(rest + 1 - back) - gammaln(n + 1 - back)
            return law._least_s * np.exp(logs)
        case "slow_worker":
            slow = betainc(rest + 1, k, law._get("slow_share"))  # more than n - k workers are slow
            return law._fast_s * (1 + (law._get("slow_factor") - 1) * slow)
    # x = log(u / (1 - u)) about its mode, in units of about its standard deviation
    y = np.arange(-_REACH, _REACH + _STEP / 2, _STEP)
    k, rest = k[..., None], rest[..., None]
    width = np.sqrt(1 / k + 1 / (rest + 1))
    x = np.log(k / (rest + 1)) + width * y
    log_u, log_above = -np.logaddexp(0, -x), -np.logaddexp(0, x)
    weight = np.exp(k * log_u + (rest + 1) * log_above - betaln(k, rest + 1)) * width * _STEP
    return (np.where(weight > 0, law._at(log_u), 0.0) * weight).sum(-1)


def expected_max(law: Spread, n: ArrayLike) -> np.ndarray:
    """Expected time of the slowest of ``n`` workers: the compute time of a synchronous step. See :func:`k_of_n`.

    After ``steps`` micro-steps without a barrier: ``expected_max(law.summed(steps), n)``.
    """
    return k_of_n(law, n, n)


def asynchronous_gain(round_s: ArrayLike, mean_s: ArrayLike) -> np.ndarray:
    """Gradients per second without a barrier over those with one.

    Args:
        round_s: seconds of a synchronous round, in which each worker makes a gradient.
        mean_s: (..., n) mean seconds of a gradient on each worker.
    """
    round_s = check_numbers("round_s", round_s, 0)
    return round_s * (1 / check_numbers("mean_s", mean_s, 0, above=True)).mean(-1)


# -- waiting along a graph ---------------------------------------------------------------------------------------------


def partners(kind: str, n: int) -> list[np.ndarray | None]:
    """The rounds of a blocking protocol, to be repeated.

    Args:
        kind: "none": nobody waits; "pair_ring": a ring's two matchings in turn; "one_peer_exponential": worker i waits for
            worker i - 2^k in round k; "ring": for both neighbours; "barrier": for all.
        n: workers; even for "pair_ring", a power of two for "one_peer_exponential".

    Returns:
        A round each: (n, q) whom each worker waits for, or None: for all.

    Raises:
        InvalidInput: an unknown kind, or another n.
    """
    kinds = ("none", "pair_ring", "one_peer_exponential", "ring", "barrier")
    kind, n = check_choice("kind", kind, kinds), check_integer("n", n, 2)
    workers = np.arange(n)
    if (kind == "pair_ring" and n % 2) or (kind == "one_peer_exponential" and n & (n - 1)):
        raise InvalidInput(
            "n", n, "even" if kind == "pair_ring" else "a power of two", f"So {kind} needs it."
        )
    if kind == "pair_ring":
        even = workers ^ 1
        return [even[:, None], ((((workers + 1) % n) ^ 1) - 1)[:, None] % n]
    if kind == "one_peer_exponential":
        return [((workers - (1 << hop)) % n)[:, None] for hop in range(n.bit_length() - 1)]
    if kind == "ring":
        return [np.stack([(workers - 1) % n, (workers + 1) % n], -1)]
    return [None if kind == "barrier" else workers[:, None]]


def cycle_time(
    law: Spread,
    rounds: Sequence[np.ndarray | None],
    n: int,
    *,
    steps: int = 1,
    slowness: ArrayLike = 1.0,
    cycles: int = 400,
    copies: int = 64,
    seed: int = 0,
) -> float:
    """Seconds of a round in the long run, where each worker computes and then waits for some others to have computed.

    Delays travel: t_i <- max over i and its partners j of (t_j + X_j). So the mean lies between the expected maximum over a
    worker with its partners and that over all workers, and no closed form is known.

    Workers that always are slower than others do not average out: the cycle is never shorter than the slowest worker's mean
    where the rounds connect all, however many steps lie between them.

    Args:
        law: of a step.
        rounds: as :func:`partners` has them, repeated in turn.
        n: workers.
        steps: computed before each round.
        slowness: (n,) or a number: factors of each worker's times that persist.
        cycles: rounds simulated after a burn-in of a quarter as many.
        copies: independent simulations, averaged.
        seed: of the draws.

    Returns:
        Seconds; the standard error is about the standard deviation of a draw over sqrt(cycles copies).

    Raises:
        InvalidInput: no rounds; a round that is not (n, q) workers.
    """
    n, steps = check_integer("n", n, 1), check_integer("steps", steps, 1)
    cycles, copies = check_integer("cycles", cycles, 1), check_integer("copies", copies, 1)
    slowness = np.broadcast_to(check_numbers("slowness", slowness, 0, above=True), (n,))
    waits = [None if each is None else np.asarray(each) for each in rounds]
    if not waits:
        raise InvalidInput("rounds", rounds, "at least one round")
    for each in waits:
        if each is not None and (each.ndim != 2 or len(each) != n or each.min() < 0 or each.max() >= n):
            raise InvalidInput("rounds", each.tolist(), f"(n, q) workers from 0 to {n - 1}")
    generator = np.random.default_rng(seed)
    burn_in = cycles // 4
    done, began_s = np.zeros((copies, n)), 0.0
    for cycle in range(burn_in + cycles):
        if cycle == burn_in:
            began_s = done.mean()
        done = done + slowness * law.quantile(generator.random((steps, copies, n))).sum(0)
        wait = waits[cycle % len(waits)]
        waited_for = done.max(-1, keepdims=True) if wait is None else done[:, wait].max(-1)
        done = np.maximum(done, waited_for)
    return float((done.mean() - began_s) / cycles)
