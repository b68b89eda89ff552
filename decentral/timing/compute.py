"""How long a gradient takes: compute-time models, and the gradients of every worker up to a horizon.

Draw k of worker i is a pure function of (seed, ``Purpose.COMPUTE``, i, k): mostly the inverse of the distribution
function at the tape's k-th uniform, so a change of the mean or of the model stretches the same luck. Whole times, before
a worker's speed divides them, are in seconds.
"""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
from numba import njit
from scipy.special import gammaincinv, ndtri

from decentral.errors import InvalidInput, check_number
from decentral.hardware import device
from decentral.timing.tapes import LONGEST_S, Purpose, _uniform, philox, uniform_runs

LONGEST_NS = int(LONGEST_S / 2) * 10**9
"""Times and durations end here (146 years), so that the sum of two fits in 64 bits."""
MAX_DRAWS = 500_000_000
"""More would not fit in the memory of most machines: 4 GB of durations, and twice that while they are made."""
NORMAL_FLOOR = 0.01
"""A normal time is never below this share of its mean."""
_COMPUTE = int(Purpose.COMPUTE)


def standard_normal(uniform: np.ndarray) -> np.ndarray:
    """The normal quantiles of uniform draws on [0, 1); a draw of 0 gives -8.2, not minus infinity."""
    return ndtri(np.maximum(uniform, 2.0**-54))


def _check(name: str, value: float, *, above: bool = True) -> None:
    check_number(f"cluster.compute.{name}", value, 0, math.inf, above=above)


# -- models ------------------------------------------------------------------------------------------------------------


class ComputeModel(Protocol):
    """What a compute-time model offers."""

    @property
    def mean_s(self) -> float:
        """Expected seconds of one gradient on a worker of speed 1."""
        ...

    def draw(self, seed: int, workers, first, draws, n: int) -> np.ndarray:
        """Draws ``first .. first + draws - 1`` of each worker, worker after worker.

        Args:
            seed: the tape's seed.
            workers: one worker or (W,) of them.
            first: count of the first draw, one for all or (W,).
            draws: how many, for all or (W,).
            n: workers in the whole cluster; matters to a log that they share (:class:`Recorded`), to no other model.

        Returns:
            (sum of draws,) float64 seconds.
        """
        ...


def _runs(workers, first, draws) -> list[np.ndarray]:
    arrays = np.broadcast_arrays(np.atleast_1d(workers), first, draws)
    return [np.ascontiguousarray(array, np.int64) for array in arrays]


class _Inverse:
    """A model whose times are independent: the quantile function at the tape's uniforms."""

    def quantile(self, uniform: np.ndarray) -> np.ndarray:
        """Seconds, increasing in ``uniform`` on [0, 1)."""
        raise NotImplementedError

    def draw(self, seed: int, workers, first, draws, n: int) -> np.ndarray:
        """See :meth:`ComputeModel.draw`."""
        workers, first, draws = _runs(workers, first, draws)
        return self.quantile(uniform_runs(seed, _COMPUTE, workers, workers, first, draws))


@dataclass(frozen=True)
class Constant:
    """Always the same.

    Args:
        mean_s: seconds.
    """

    mean_s: float = 1.0

    def __post_init__(self) -> None:
        _check("mean_s", self.mean_s)

    def draw(self, seed: int, workers, first, draws, n: int) -> np.ndarray:
        """See :meth:`ComputeModel.draw`."""
        return np.full(_runs(workers, first, draws)[2].sum(), float(self.mean_s))


@dataclass(frozen=True)
class Exponential(_Inverse):
    """Memoryless: the gradient clock of the theory papers, one wait per gradient.

    Args:
        mean_s: seconds; the standard deviation is the same.
    """

    mean_s: float = 1.0

    def __post_init__(self) -> None:
        _check("mean_s", self.mean_s)

    def quantile(self, uniform: np.ndarray) -> np.ndarray:
        """Seconds, increasing in ``uniform`` on [0, 1)."""
        return -self.mean_s * np.log1p(-uniform)


@dataclass(frozen=True)
class ShiftedExponential(_Inverse):
    """A part that is always there, and an exponential tail.

    Args:
        shift_s: the shortest time, seconds.
        mean_s: mean of the whole, seconds, above ``shift_s``; the standard deviation is mean_s - shift_s.

    References:
        Lee, Lam, Pedarsani, Papailiopoulos, Ramchandran: Speeding up distributed machine learning using codes (IEEE
        Trans. Information Theory, 2018), recalled.
    """

    shift_s: float
    mean_s: float

    def __post_init__(self) -> None:
        _check("shift_s", self.shift_s, above=False)
        _check("mean_s", self.mean_s)
        if self.mean_s <= self.shift_s:
            raise InvalidInput(
                "cluster.compute.mean_s",
                self.mean_s,
                f"more than shift_s = {self.shift_s:g}",
                "It is the mean of the whole.",
            )

    def quantile(self, uniform: np.ndarray) -> np.ndarray:
        """Seconds, increasing in ``uniform`` on [0, 1)."""
        return self.shift_s - (self.mean_s - self.shift_s) * np.log1p(-uniform)


@dataclass(frozen=True)
class LogNormal(_Inverse):
    """The logarithm is normal.

    Args:
        mean_s: mean of the times themselves, seconds.
        sigma: standard deviation of the natural logarithm; the coefficient of variation is sqrt(exp(sigma^2) - 1).
    """

    mean_s: float = 1.0
    sigma: float = 0.3

    def __post_init__(self) -> None:
        _check("mean_s", self.mean_s)
        _check("sigma", self.sigma, above=False)

    def quantile(self, uniform: np.ndarray) -> np.ndarray:
        """Seconds, increasing in ``uniform`` on [0, 1)."""
        return self.mean_s * np.exp(self.sigma * standard_normal(uniform) - self.sigma**2 / 2)


@dataclass(frozen=True)
class Gamma(_Inverse):
    """A sum of exponential stages, where ``shape`` is whole.

    Args:
        mean_s: seconds.
        shape: the coefficient of variation is 1/sqrt(shape); 1 is the exponential.
    """

    mean_s: float
    shape: float

    def __post_init__(self) -> None:
        _check("mean_s", self.mean_s)
        _check("shape", self.shape)

    def quantile(self, uniform: np.ndarray) -> np.ndarray:
        """Seconds, increasing in ``uniform`` on [0, 1)."""
        return self.mean_s / self.shape * gammaincinv(self.shape, uniform)


@dataclass(frozen=True)
class Normal(_Inverse):
    """Normal, cut below at ``NORMAL_FLOOR`` times the mean, which moves the mean by less than 1e-5 of itself.

    Args:
        mean_s: seconds.
        std_s: standard deviation, seconds, at most mean_s / 4: beyond, the cut would show.
    """

    mean_s: float
    std_s: float

    def __post_init__(self) -> None:
        _check("mean_s", self.mean_s)
        _check("std_s", self.std_s, above=False)
        if self.std_s > self.mean_s / 4:
            advice = "Times cannot be negative; take log_normal or gamma for a wider spread."
            raise InvalidInput(
                "cluster.compute.std_s", self.std_s, f"at most mean_s / 4 = {self.mean_s / 4:g}", advice
            )

    def quantile(self, uniform: np.ndarray) -> np.ndarray:
        """Seconds, increasing in ``uniform`` on [0, 1)."""
        return np.maximum(self.mean_s + self.std_s * standard_normal(uniform), NORMAL_FLOOR * self.mean_s)


@dataclass(frozen=True)
class Pareto(_Inverse):
    """Heavy tail: P(T > t) = (t_min / t)^alpha from t_min = mean_s (alpha - 1) / alpha.

    Args:
        mean_s: seconds.
        alpha: above 1, or there is no mean; up to 2 the variance is infinite.
    """

    mean_s: float
    alpha: float

    def __post_init__(self) -> None:
        _check("mean_s", self.mean_s)
        check_number("cluster.compute.alpha", self.alpha, 1, math.inf, above=True)

    def quantile(self, uniform: np.ndarray) -> np.ndarray:
        """Seconds, increasing in ``uniform`` on [0, 1)."""
        shortest = self.mean_s * (self.alpha - 1) / self.alpha
        return shortest * np.exp(np.log1p(-uniform) / -self.alpha)


@njit(cache=True)
def _slow_runs(seed, workers, first, draws, to_slow, to_fast, stepped, was_slow):
    """Whether the chain is in its slow state, for the draws asked; every chain is stepped from draw 0, or from where it was.

    ``stepped`` and ``was_slow`` (n,) say how many draws of each worker's chain were made before and how the last came out; they
    are brought up to date.
    """
    out = np.empty(draws.sum(), np.bool_)
    written = 0
    for r in range(draws.size):
        begin = stepped[workers[r]] if stepped[workers[r]] <= first[r] else 0
        slow = was_slow[workers[r]]
        block = (np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0))
        worker = np.uint64(workers[r])
        for count in range(begin, first[r] + draws[r]):
            if count % 4 == 0 or count == begin:
                block = philox(
                    np.uint64(seed),
                    np.uint64(_COMPUTE),
                    np.uint64(count // 4),
                    worker,
                    worker,
                    np.uint64(0),
                )
            uniform = _uniform(block[count % 4])
            if count == 0:
                slow = uniform < to_slow / (to_slow + to_fast)
            elif slow:
                slow = uniform >= to_fast
            else:
                slow = uniform < to_slow
            if count >= first[r]:
                out[written] = slow
                written += 1
        stepped[workers[r]], was_slow[workers[r]] = first[r] + draws[r], slow
    return out


@lru_cache(maxsize=64)
def _chains(chain: Markov, seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the chains of a run stand: a run asks for the draws of a worker in order, a part at a time."""
    return np.zeros(n, np.int64), np.zeros(n, np.bool_)


@dataclass(frozen=True)
class Markov:
    """Stragglers that come and go: a chain of two states per worker, stepped once per gradient.

    The chain starts in its stationary distribution: slow with probability to_slow / (to_slow + to_fast). A slow spell
    lasts 1 / to_fast gradients on average.

    Args:
        fast_s: seconds of a gradient in the fast state.
        slow_s: seconds of a gradient in the slow state.
        to_slow: probability to turn slow, per gradient.
        to_fast: probability to turn fast, per gradient.
    """

    fast_s: float
    slow_s: float
    to_slow: float
    to_fast: float

    def __post_init__(self) -> None:
        _check("fast_s", self.fast_s)
        _check("slow_s", self.slow_s)
        for name in ("to_slow", "to_fast"):
            check_number(f"cluster.compute.{name}", getattr(self, name), 0, 1)
        if self.to_slow + self.to_fast == 0:
            raise InvalidInput(
                "cluster.compute.to_slow",
                0.0,
                "above 0, or to_fast above 0",
                "The state would never change; take constant.",
            )

    @property
    def mean_s(self) -> float:
        """Mean in the stationary distribution, seconds."""
        return (self.fast_s * self.to_fast + self.slow_s * self.to_slow) / (self.to_slow + self.to_fast)

    def draw(self, seed: int, workers, first, draws, n: int) -> np.ndarray:
        """See :meth:`ComputeModel.draw`."""
        workers, first, draws = _runs(workers, first, draws)
        chances = float(self.to_slow), float(self.to_fast)
        slow = _slow_runs(seed, workers, first, draws, *chances, *_chains(self, int(seed), n))
        return np.where(slow, float(self.slow_s), float(self.fast_s))


def _read_log(path: str) -> np.ndarray:
    """The numbers of a .npy, .npz (one array) or .csv file (comma separated; a line of names may come first)."""
    name = "cluster.compute.path"
    try:
        if path.endswith(".csv"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an empty file; the shape says so
                log = np.genfromtxt(path, delimiter=",", ndmin=2)
            return log[1:] if len(log) and np.isnan(log[0]).all() else log
        if path.endswith(".npy"):
            return np.load(path, allow_pickle=False).astype(np.float64)
        if path.endswith(".npz"):
            with np.load(path, allow_pickle=False) as arrays:
                if len(arrays.files) == 1:
                    return arrays[arrays.files[0]].astype(np.float64)
                names = ", ".join(arrays.files)
            raise InvalidInput(name, path, "a .npz file with one array", f"It has: {names}.")
    except InvalidInput:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidInput(name, path, "a readable file of numbers", f"{error}".rstrip(".") + ".") from None
    raise InvalidInput(name, path, "a file that ends in .npy, .npz or .csv")


@dataclass(frozen=True)
class Recorded:
    """Times that were measured, in the order they were measured, cycled.

    A log of one column is shared: worker i of n starts at row i * rows // n, so its times depend on n. In a log of
    several columns worker i has column i and starts at row 0.

    Args:
        path: a .npy, .npz (one array) or .csv file of seconds, shape (rows,) or (rows, workers).
        values: the seconds themselves, instead of a file.
    """

    path: str | None = None
    values: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.values is None):
            raise InvalidInput("cluster.compute.path", self.path, "a file, or values: one of the two")
        _ = self.log

    @cached_property
    def log(self) -> np.ndarray:
        """(rows, columns) float64 seconds, one column or one per worker."""
        name = "cluster.compute." + ("values" if self.path is None else "path")
        if self.path is not None:
            log = _read_log(str(self.path))
        else:
            try:
                log = np.array(self.values, np.float64)
            except (TypeError, ValueError):
                raise InvalidInput(name, self.values, "numbers of seconds") from None
        if log.ndim not in (1, 2) or log.size == 0:
            raise InvalidInput(
                name, f"shape {log.shape}", "at least one time, in rows, or in rows and columns"
            )
        log = np.ascontiguousarray(log.reshape(len(log), -1))
        bad = np.argwhere(~(np.isfinite(log) & (log > 0)))
        if len(bad):
            row, column = bad[0]
            where = f"Row {row}, column {column} is the first of {len(bad)} that are not (nan: missing)."
            raise InvalidInput(name, float(log[row, column]), "positive finite seconds", where)
        return log

    @property
    def mean_s(self) -> float:
        """Mean of the whole log, seconds."""
        return float(self.log.mean())

    def draw(self, seed: int, workers, first, draws, n: int) -> np.ndarray:
        """See :meth:`ComputeModel.draw`."""
        workers, first, draws = _runs(workers, first, draws)
        rows, columns = self.log.shape
        if 1 < columns < n:
            raise InvalidInput(
                "cluster.compute.path", f"{columns} columns", f"one column, or {n}: one per worker"
            )
        count = np.arange(draws.sum()) - np.repeat(draws.cumsum() - draws - first, draws)
        if columns > 1:
            return self.log[count % rows, np.repeat(workers, draws)]
        return self.log[(count + np.repeat(workers * rows // n, draws)) % rows, 0]


@dataclass(frozen=True)
class Device:
    """Constant: FLOPs / (peak x efficiency) of a known device.

    Args:
        name: as in :data:`decentral.hardware.DEVICES`, or the beginning of one such name.
        flops: FLOPs of one gradient.
        efficiency: share of the peak that is reached (model FLOPs utilisation), in (0, 1].
        dtype: which peak: "bf16", "fp16", "fp32", "tf32", "fp8", ...
    """

    name: str
    flops: float
    efficiency: float = 0.4
    dtype: str = "bf16"

    def __post_init__(self) -> None:
        _check("flops", self.flops)
        check_number("cluster.compute.efficiency", self.efficiency, 0, 1, above=True)
        _ = self.mean_s

    @property
    def mean_s(self) -> float:
        """Seconds of one gradient."""
        try:
            peak = device(self.name).peak_flops(self.dtype)
        except InvalidInput as error:
            key = error.name.replace("device.", "cluster.compute.")
            raise InvalidInput(key, error.got, error.allowed, error.advice) from None
        return self.flops / (peak * self.efficiency)

    def draw(self, seed: int, workers, first, draws, n: int) -> np.ndarray:
        """See :meth:`ComputeModel.draw`."""
        return np.full(_runs(workers, first, draws)[2].sum(), self.mean_s)


COMPUTE: dict[str, Callable[..., ComputeModel]] = {
    "constant": Constant,
    "exponential": Exponential,
    "shifted_exponential": ShiftedExponential,
    "log_normal": LogNormal,
    "gamma": Gamma,
    "normal": Normal,
    "pareto": Pareto,
    "markov": Markov,
    "recorded": Recorded,
    "device": Device,
}
"""The kinds of ``cluster.compute`` in a spec."""


# -- all gradients of a run --------------------------------------------------------------------------------------------


@njit(cache=True)
def duration_ns(seconds, speed):
    """Of a gradient whose draw is so many seconds, on a worker of a relative speed: whole nanoseconds, 1 to ``LONGEST_NS``."""
    return np.int64(min(max(np.rint(seconds / speed * 1e9), 1.0), float(LONGEST_NS)))


@njit(cache=True)
def _cut(seconds, draws, speeds, elapsed_ns, horizon_ns, out):
    """Seconds to nanoseconds, run after run; of each run only what reaches the horizon. Advances ``elapsed_ns``.

    Returns how many of each run are in ``out``.
    """
    used = np.zeros(draws.size, np.int64)
    read, written = 0, 0
    for r in range(draws.size):
        for k in range(draws[r]):
            if elapsed_ns[r] >= horizon_ns:
                break
            ns = duration_ns(seconds[read + k], speeds[r])
            out[written] = ns
            elapsed_ns[r] += ns
            written += 1
            used[r] += 1
        read += draws[r]
    return used


@njit(cache=True)
def _place(ns, used, at, out):
    read = 0
    for r in range(used.size):
        for k in range(used[r]):
            out[at[r] + k] = ns[read + k]
        read += used[r]


def to_ns(name: str, seconds: float) -> int:
    """Whole nanoseconds of a time from 0 to ``LONGEST_NS``; InvalidInput beyond."""
    if not 0 <= seconds * 1e9 <= LONGEST_NS:
        raise InvalidInput(name, seconds, f"0 to {LONGEST_NS // 10**9:,} simulated seconds")
    return round(seconds * 1e9)


def check_draws(name: str, got: object, draws: float, further: str = "") -> None:
    """InvalidInput where a run needs more than ``MAX_DRAWS`` draws; ``further``: other advice."""
    if draws > MAX_DRAWS:
        advice = f"This needs {draws:,.0f} draws; stop earlier, or take fewer or slower workers. {further}".rstrip()
        raise InvalidInput(name, got, f"a run of at most {MAX_DRAWS:,} draws", advice)


def durations_ns(
    compute: ComputeModel, speeds: np.ndarray, seed: int, horizon_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """The durations of every worker's gradients 0, 1, 2, ... until they fill the horizon.

    A duration is the model's draw over the worker's speed, rounded to nanoseconds, at least 1 and at most ``LONGEST_NS``.
    A longer horizon only appends to each worker's list.

    Args:
        compute: the model.
        speeds: (n,) relative speeds, positive.
        seed: the tape's seed.
        horizon_s: each worker's durations sum to this or more, and without the last to less.

    Returns:
        ``(start, ns)``: worker i's durations are ``ns[start[i]:start[i + 1]]``; int64, shapes (n + 1,) and (total,).

    Raises:
        InvalidInput: the horizon is too long to count in 64 bits, or takes more than ``MAX_DRAWS`` draws.
    """
    speeds = np.ascontiguousarray(speeds, np.float64)
    n = len(speeds)
    horizon_ns = to_ns("stop", horizon_s)
    mean_s = compute.mean_s
    check_draws("stop", horizon_s, horizon_s / mean_s * speeds.sum())
    elapsed, counts = np.zeros(n, np.int64), np.zeros(n, np.int64)
    pieces = []
    active = np.arange(n) if horizon_ns else np.arange(0)
    while active.size:
        # Mostly enough at once; where the mean says little (heavy tails) the draws double each time.
        left = (horizon_ns - elapsed[active]) / 1e9 * speeds[active] / mean_s
        draws = np.maximum(np.ceil(left + 4 * np.sqrt(left) + 4).astype(np.int64), counts[active])
        check_draws("stop", horizon_s, float(counts.sum() + draws.sum()))
        seconds = compute.draw(seed, active, counts[active], draws, n)
        ns, passed = np.empty(len(seconds), np.int64), elapsed[active]
        used = _cut(seconds, draws, speeds[active], passed, horizon_ns, ns)
        pieces.append((ns[: used.sum()], used, active, counts[active]))
        elapsed[active] = passed
        counts[active] += used
        active = active[passed < horizon_ns]
    start = np.concatenate([[0], np.cumsum(counts)])
    out = np.empty(start[-1], np.int64)
    for ns, used, workers, before in pieces:
        _place(ns, used, start[workers] + before, out)
    return start, out
