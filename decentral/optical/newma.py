"""Change detection without a memory of the past: NEWMA, and moving averages that keep one.

A stream of samples x_t is seen through a feature map psi; the detector compares a recent mean of psi(x_t) with an older one. With
random features of a kernel the distance of the two means estimates the kernel's maximum mean discrepancy, so that changes show
which no mean of x has. Every detector here is a few pure functions: ``init``, ``step``, and ``run`` for a whole stream.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decentral.errors import InvalidInput, check_integer, check_number, suggest


class Factors(NamedTuple):
    """``fast``, ``slow``: forgetting factors, Lambda and lambda; ``features``: how many random features are worth having."""

    fast: float
    slow: float
    features: int


@lru_cache
def newma_parameters(window: int) -> Factors:
    r"""The forgetting factors of a window, and the number of features that goes with them.

    A pair :math:`\lambda < 1/(B + 1) < \Lambda` is worth a window of B samples if :math:`\lambda (1 - \lambda)^B = \Lambda (1 -
    \Lambda)^B`. Of those pairs the heuristic of the paper takes

    .. math:: \min_\Lambda \frac{\sqrt{\Lambda + \lambda} + (1 - \lambda)^{2B} - (1 - \Lambda)^{2B}}
                                {(1 - \lambda)^B - (1 - \Lambda)^B}

    and goes half the way back to 1/(B + 1). The error of m features falls as m^-1/2 and that of the running means is about
    (Lambda + lambda)^1/2: more than m = 1/(4 (Lambda + lambda)^2) features cannot pay.

    Args:
        window: B, samples; at least 2.

    References:
        Keriven, Garreau, Poli: NEWMA: a new method for scalable model-free online change-point detection, IEEE TSP 2020,
        arXiv:1805.08061; numbers as of the authors' code, lightonai/newma 73ebf8f (read).
    """
    from scipy.optimize import brentq

    window = check_integer("window", window, 2)
    middle = 1 / (window + 1)

    def log_weight(log_factor: float) -> float:
        return log_factor + window * math.log1p(-math.exp(log_factor))

    def partner(fast: float) -> float:
        """Lambda is beyond the maximum of l (1 - l)^B, lambda before it."""
        level = log_weight(math.log(fast))
        # Where l (1 - l)^B is small it is about l.
        log = brentq(lambda log: log_weight(log) - level, level, math.log(middle), xtol=1e-15, rtol=1e-14)
        return math.exp(log)  # type: ignore[arg-type]

    def criterion(fast: float) -> float:
        slow = partner(fast)
        far, near = (1 - slow) ** window, (1 - fast) ** window
        return (math.sqrt(fast + slow) + far**2 - near**2) / (far - near)

    # The minimum is flat and the authors look for it on this grid: a better minimiser gives a fourth digit that is not theirs.
    best = min(np.exp(np.linspace(math.log(1.001 * middle), -0.01, 1000)).tolist(), key=criterion)
    fast = (best + middle) / 2
    slow = partner(fast)
    return Factors(fast, slow, math.floor(1 / (4 * (fast + slow) ** 2)))


class Reading(NamedTuple):
    """What a detector says after a sample: ``statistic``, ``threshold``, and ``flag``: the one is above the other."""

    statistic: Any
    threshold: Any
    flag: Any


class DetectorState(NamedTuple):
    """What a detector keeps.

    Attributes:
        memory: of the features: ``(2, m)`` running means or, with windows, ``(2 B, m)``.
        moments: running means of S^2 and S^4.
        count: samples so far, int32.
    """

    memory: Any
    moments: Any
    count: Any


@dataclass(frozen=True)
class Detector:
    r"""What NEWMA and moving averages share: the window, and the threshold that their statistic S is held against.

    Args:
        window: B, samples.
        threshold: a fixed one for S; by default it adapts: S^2 is held against :math:`\mu + q \sigma` of its own running mean and
            deviation, the sample itself included.
        rate: :math:`\eta`, what the running moments forget with every sample; by default the slow factor of the window.
        quantile: of a normal distribution, gives q; 0.95 raises a flag on about 5 % of the samples of a stream without changes.
        warmup: samples before the first flag; the running means begin at the first sample, which is one of many.
    """

    window: int | None = None
    threshold: float | None = None
    rate: float | None = None
    quantile: float = 0.95
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.window is not None:
            check_integer("detector.window", self.window, 2)
        if self.threshold is not None:
            check_number("detector.threshold", self.threshold, 0.0, math.inf)
        if self.rate is not None:
            check_number("detector.rate", self.rate, 0.0, 1.0, above=True)
        quantile = check_number("detector.quantile", self.quantile, 0.0, 1.0, above=True)
        if quantile >= 1:
            raise InvalidInput("detector.quantile", quantile, "a number above 0 and below 1")
        check_integer("detector.warmup", self.warmup, 0)

    @property
    def worth(self) -> int:
        """Random features that are worth having: as many as :func:`newma_parameters` says."""
        assert self.window is not None
        return newma_parameters(self.window).features

    def _rows(self) -> int:
        """Of the memory."""
        raise NotImplementedError

    def _remember(self, memory, features, count) -> tuple[Any, Any]:
        """The memory with one sample more, and the difference of its two means."""
        raise NotImplementedError

    @property
    def _forgets(self) -> float:
        """The rate, given or by default."""
        assert self.window is not None
        return newma_parameters(self.window).slow if self.rate is None else self.rate

    def init(self, features: int, dtype: Any = jnp.float32) -> DetectorState:
        """The state before the first sample, for a number of ``features``; the memory then begins at the first sample's."""
        features = check_integer("features", features, 1)
        return DetectorState(
            jnp.zeros((self._rows(), features), dtype), jnp.zeros(2, dtype), jnp.zeros((), jnp.int32)
        )

    def step(self, state: DetectorState, features: jax.Array) -> tuple[DetectorState, Reading]:
        """One sample: its features ``(m,)``.

        Raises:
            InvalidInput: not as many features as the state was made for.
        """
        if features.shape != state.memory.shape[1:]:
            raise InvalidInput("features", features.shape, f"the shape {state.memory.shape[1:]} of the state")
        memory, difference = self._remember(state.memory, features.astype(state.memory.dtype), state.count)
        square = jnp.vdot(difference, difference)
        # What is left of rounding where nothing differs, as at the first sample, is no distance.
        rounding = (16 * jnp.finfo(memory.dtype).eps) ** 2 * jnp.max(jnp.sum(memory**2, -1))
        square = jnp.where(square > rounding, square, 0)
        new = jnp.stack([square, square**2])
        moments = state.moments + jnp.asarray(self._forgets, new.dtype) * (new - state.moments)
        if self.threshold is None:
            # What is a variance by its formula may fall below 0 in rounding.
            deviation = jnp.sqrt(jnp.maximum(moments[1] - moments[0] ** 2, 0))
            threshold = jnp.sqrt(moments[0] + NormalDist().inv_cdf(self.quantile) * deviation)
        else:
            threshold = jnp.asarray(self.threshold, square.dtype)
        statistic, count = jnp.sqrt(square), state.count + 1
        flag = (statistic > threshold) & (count > self.warmup)
        return DetectorState(memory, moments, count), Reading(statistic, threshold, flag)

    def run(self, features: Any) -> Reading:
        """A whole stream: features ``(T, m)`` -> columns ``(T,)``, or several at once, ``(streams, T, m)`` -> ``(streams, T)``.

        Raises:
            InvalidInput: another shape, or a value that is NaN or infinite.
        """
        features = jnp.asarray(features)
        if features.ndim not in (2, 3) or 0 in features.shape:
            raise InvalidInput("features", f"shape {features.shape}", "(T, m), or (streams, T, m)")
        if not jnp.issubdtype(features.dtype, jnp.floating):
            features = features.astype(jnp.float32)
        finite = np.asarray(jnp.isfinite(features).all(-1))
        if not finite.all():
            where = np.argwhere(~finite)[0].tolist()
            at = f"sample {where[-1]}" + (f" of stream {where[0]}" if len(where) > 1 else "")
            raise InvalidInput(
                "features", f"a value that is NaN or infinite in {at}", "finite numbers",
                "One of them would stay in the running means for good: leave such samples out.",
            )  # fmt: skip
        return _run(self, features)


@jax.jit(static_argnums=0)
def _run(detector: Detector, features: jax.Array) -> Reading:
    def of_stream(stream):
        start = detector.init(stream.shape[-1], stream.dtype)
        return jax.lax.scan(detector.step, start, stream)[1]

    return of_stream(features) if features.ndim == 2 else jax.vmap(of_stream)(features)


@dataclass(frozen=True)
class Newma(Detector):
    r"""NEWMA: two running means that forget at different speeds, and their distance; nothing else is kept.

    .. math:: z \leftarrow z + \Lambda (\psi(x_t) - z), \quad z' \leftarrow z' + \lambda (\psi(x_t) - z'), \quad S = \|z - z'\|

    Args:
        window: B, from which :func:`newma_parameters` has the factors; or give them.
        fast: :math:`\Lambda`.
        slow: :math:`\lambda`, below ``fast``.
        threshold, rate, quantile, warmup: see :class:`Detector`.
    """

    fast: float | None = None
    slow: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None:
            if not self.fast is self.slow is None:
                given = {"window": self.window, "fast": self.fast, "slow": self.slow}
                raise InvalidInput("detector", given, "a window, or both factors")
            factors = newma_parameters(self.window)
            object.__setattr__(self, "fast", factors.fast)
            object.__setattr__(self, "slow", factors.slow)
        if self.fast is None or self.slow is None:
            raise InvalidInput(
                "detector.window", None, "a window, or both factors", "E.g. Newma(window=100)."
            )
        for name in ("fast", "slow"):
            check_number(f"detector.{name}", getattr(self, name), 0.0, 1.0, above=True)
        if not self.fast > self.slow:
            raise InvalidInput("detector.fast", self.fast, f"above detector.slow = {self.slow}")

    @property
    def _forgets(self) -> float:
        assert self.slow is not None
        return self.slow if self.rate is None else self.rate

    @property
    def worth(self) -> int:
        """Random features that are worth having, 1/(4 (Lambda + lambda)^2)."""
        assert self.fast is not None
        assert self.slow is not None
        return max(1, math.floor(1 / (4 * (self.fast + self.slow) ** 2)))

    def _rows(self) -> int:
        return 2

    def _remember(self, memory, features, count):
        factors = jnp.asarray([self.fast, self.slow], memory.dtype)[:, None]
        begun = jnp.where(count == 0, features, memory)
        memory = begun + factors * (features - begun)
        return memory, memory[0] - memory[1]


@dataclass(frozen=True)
class MovingAverages(Detector):
    """Two windows: the mean of the last B samples' features against that of the B before them, all 2 B of them kept.

    The first sample stands for those that were before it. The buffer is 2 B m numbers, where NEWMA has 2 m.

    Args:
        window: B, samples.
        threshold, rate, quantile, warmup: see :class:`Detector`.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("detector.window", self.window, 2)

    def _rows(self) -> int:
        assert self.window is not None
        return 2 * self.window

    def _remember(self, memory, features, count):
        begun = jnp.where(count == 0, features, memory)
        # A ring: sample t lies in row t mod 2 B. The sums are taken anew: running ones drift by rounding.
        row = count % self._rows()
        memory = begun.at[row].set(features)
        assert self.window is not None
        age = (row - jnp.arange(self._rows())) % self._rows()
        sign = jnp.where(age < self.window, 1, -1).astype(memory.dtype) / self.window
        return memory, sign @ memory


DETECTORS: Mapping[str, type[Detector]] = {"newma": Newma, "moving_averages": MovingAverages}
"""By the names a spec uses."""


def as_detector(recipe: Any) -> Detector:
    """A detector, or the table of one: ``{"kind": "newma", "window": 100}``.

    Raises:
        InvalidInput: no such kind or argument.
    """
    return made("detector", recipe, DETECTORS, Detector)


def made(name: str, recipe: Any, kinds: Mapping[str, type], base: type | tuple[type, ...]) -> Any:
    """What a recipe names: an instance as it is, the name of a kind, or a table with ``kind`` and arguments."""
    if isinstance(recipe, base):
        return recipe
    table = {"kind": recipe} if isinstance(recipe, str) else recipe
    if not isinstance(table, Mapping) or not isinstance(table.get("kind"), str):
        raise InvalidInput(name, recipe, f"a table with kind, one of: {', '.join(sorted(kinds))}")
    arguments = dict(table)
    kind = arguments.pop("kind")
    if kind not in kinds:
        raise InvalidInput(f"{name}.kind", kind, "one of the names below", suggest(kind, kinds))
    allowed = list(kinds[kind].__dataclass_fields__)
    for argument in arguments:
        if argument not in allowed:
            raise InvalidInput(
                f"{name}.{argument}",
                arguments[argument],
                f"an argument of {kind}",
                suggest(argument, allowed),
            )
    return kinds[kind](**arguments)


# -- judging detectors -------------------------------------------------------------------------------------------------


class Detection(NamedTuple):
    """How flags fare on a stream whose changes are known.

    ``delay``: mean samples from a change to the first alarm, of the changes that were found (NaN: none was); ``missed``: share of
    the changes without an alarm in the first half of what they began; ``false_alarms``: alarms in the second halves, per change.
    """

    delay: float
    missed: float
    false_alarms: float


def detection(flags: Any, changes: Sequence[int] | np.ndarray) -> Detection:
    """Judge flags as NEWMA's authors do.

    An alarm is a rising edge: a flag after a sample without one. A segment is what lies between two changes. A first alarm in its
    first half is a detection; every alarm in its second half, when the change has long been over, is a false one.

    Args:
        flags: bool ``(T,)``, or ``(streams, T)`` with the changes at the same samples.
        changes: the samples at which something else begins, in order; those before the first are not looked at.

    Raises:
        InvalidInput: changes that are none, not in order or outside of the stream.
    """
    flags = np.atleast_2d(np.asarray(flags, bool))
    starts = np.atleast_1d(changes)
    if starts.size and not np.issubdtype(starts.dtype, np.integer):
        raise InvalidInput("changes", starts.tolist(), "whole numbers, of samples")
    ends = np.append(starts[1:], flags.shape[1])
    if not starts.size or (ends <= starts).any() or starts[0] < 1:
        raise InvalidInput("changes", starts.tolist(), f"increasing numbers from 1 to {flags.shape[1] - 1}")
    alarms = np.zeros_like(flags)
    alarms[:, 1:] = flags[:, 1:] & ~flags[:, :-1]
    delays, false_alarms = [], 0
    for start, end in zip(starts, ends, strict=True):
        middle = (start + end) // 2
        for alarm in alarms:
            found = np.flatnonzero(alarm[start:middle])
            delays.append(found[0] if found.size else np.nan)
            false_alarms += int(alarm[middle:end].sum())
    found = np.isfinite(delays)
    delay = float(np.mean(np.asarray(delays)[found])) if found.any() else math.nan
    return Detection(delay, float(1 - found.mean()), false_alarms / len(delays))


def matched(
    statistic: Any, changes: Sequence[int] | np.ndarray, false_alarms: float, step: float = 0.005
) -> tuple[float, Detection]:
    """The lowest fixed threshold with so few false alarms, and how it fares: what makes detectors comparable.

    The threshold is chosen on the stream it is judged on, with its changes known: it is for comparisons, not for use.

    Args:
        statistic: ``(T,)`` or ``(streams, T)``, without NaN.
        changes: see :func:`detection`.
        false_alarms: per change, at most.
        step: of the thresholds that are tried, relative to the median of the statistic.

    Returns:
        The threshold: from it on, no higher one has more false alarms; and the detection there.

    Raises:
        InvalidInput: a statistic that is not finite, or whose median, which thresholds begin with, is not above 0.
    """
    statistic = np.asarray(statistic, float)
    if not statistic.size or not np.isfinite(statistic).all() or not np.median(statistic) > 0:
        raise InvalidInput("statistic", f"shape {statistic.shape}", "finite numbers with a median above 0")
    check_number("false_alarms", false_alarms, 0.0, math.inf)
    check_number("step", step, 0.0, math.inf, above=True)
    middle, top = float(np.median(statistic)), float(statistic.max())
    # Far below the median a flag hardly ever falls, so that there are few rising edges: not what is meant.
    tried = middle * np.arange(1.0, top / middle + 2 * step, step)
    low, high = 0, len(tried) - 1  # the last is above all samples: no alarm
    last, best = -1, (tried[high], detection(statistic > tried[high], changes))
    for place in range(high, low - 1, -1):
        now = detection(statistic > tried[place], changes)
        if now.false_alarms > false_alarms:
            break
        best, last = (tried[place], now), place
    assert last >= 0
    return float(best[0]), best[1]


def mixture_stream(
    segments: int,
    length: int,
    *,
    inputs: int = 100,
    components: int = 10,
    mean_deviation: float = 0.11,
    freedom: int = 5,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """A stream of Gaussian mixtures, another one in each segment: means that hardly differ, variances that do.

    Weights are Dirichlet(5, ..., 5), means N(0, (``mean_deviation`` k^{1/d})^2), and a component's variances (c - 2) / chi^2_c of
    mean 1 each, with c = ``freedom`` (the stream of NEWMA's authors, lightonai/newma 73ebf8f, read).

    Returns:
        Samples, float64 ``(segments * length, inputs)``, and where segments begin, the first apart: ``(segments - 1,)``.
    """
    for name, value in (
        ("segments", segments),
        ("length", length),
        ("inputs", inputs),
        ("components", components),
    ):
        check_integer(name, value, 1)
    check_integer("freedom", freedom, 3)
    check_integer("seed", seed, 0)
    rng, parts = np.random.default_rng(seed), []
    for _ in range(segments):
        weights = rng.dirichlet(np.full(components, 5.0))
        means = mean_deviation * components ** (1 / inputs) * rng.standard_normal((components, inputs))
        deviations = np.sqrt((freedom - 2) / rng.chisquare(freedom, (components, inputs)))
        which = rng.choice(components, length, p=weights)
        parts.append(means[which] + deviations[which] * rng.standard_normal((length, inputs)))
    return np.concatenate(parts), np.arange(1, segments) * length
