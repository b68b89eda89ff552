"""Optical, NEWMA: which features find a change of distribution soon, on a stream of mixtures and inside decentralized training?

Computed here, without run folders. The optical unit is a simulated one.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

import decentral
from decentral import ADPSGD, Poisson, Record, Time
from decentral.algorithm import Faulty, Monitored
from decentral.analysis.claims import Claim
from decentral.experiment.figures import canvas, main
from decentral.optical.encoders import Thermometer
from decentral.optical.maps import Fastfood, Fourier, Identity, Optical, median_distance
from decentral.optical.newma import (
    MovingAverages,
    Newma,
    detection,
    matched,
    mixture_stream,
    newma_parameters,
)
from decentral.problem import digits, drifting
from decentral.topology import named

EXPERIMENTS = ()
WINDOW, SEGMENTS, LENGTH, SETTLING, STREAMS = 100, 40, 1000, 5, 3
LEVELS = 16
ROWS = newma_parameters(WINDOW).features  # 534
MANY, MANY_SEGMENTS = 10 * ROWS, 15
FALSE_ALARMS = 1.0
AT_ONCE = 1000
CODED = ("optical", "fourier_bits", "half_bits")
CASES = {  # words, colour
    "identity": ("identity: the mean only", "#404040"),
    "fourier": ("random Fourier", "#3f90da"),
    "fastfood": ("Fastfood", "#832db6"),
    "fourier_bits": ("random Fourier, on the code", "#3a9d5d"),
    "half_bits": ("the same, half the rows", "#3a9d5d"),
    "optical": ("optical, on the code", "#e76300"),
}
LABELS = {
    "identity": (0, -16, "center"),
    "fourier": (-8, -3, "right"),
    "fastfood": (-8, 3, "right"),
    "fourier_bits": (-12, 24, "center"),
    "half_bits": (9, -5, "left"),
    "optical": (8, 5, "left"),
}
"""Where a point's name stands: points to the right, up, and its side."""
WORKERS, CHANGE, SHORT, SEEDS = 8, 800, 50, 8
"""Of the runs: workers, gradients or messages before the drift or fault, the detectors' window, seeds."""
BAD = 3
"""The worker whose data drift, or whose sender breaks."""
EVERY = 10
WHAT = {
    "drift": "A worker whose labels are permuted is found by its own gradients' directions",
    "fault": "A worker that sends zeros is found by its two neighbours",
}
MONITORS = {"fourier": ("random Fourier", "#3f90da"), "optical": ("optical", "#e76300")}


@jax.jit(static_argnums=0)
def _mapped(features, samples):
    return jax.lax.map(features, samples.reshape(-1, AT_ONCE, samples.shape[-1])).reshape(len(samples), -1)


@lru_cache
def stream(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples, and the first samples of the segments that are judged."""
    samples, changes = mixture_stream(SEGMENTS, LENGTH, seed=number)
    return samples.astype(np.float32), changes[SETTLING - 1 :]


@lru_cache
def code(number: int) -> np.ndarray:
    """The samples' thermometer code; thresholds are quantiles of what comes before the first change that is judged."""
    samples, _ = stream(number)
    encoder = Thermometer.fit(samples[: SETTLING * LENGTH], LEVELS + 1, "quantile")
    return np.asarray(encoder.encode(samples)[:, 0], np.float32)


@lru_cache
def readings(case: str, number: int, rows: int = 0, segments: int = 0, detector=None):
    """``statistic, threshold, flag`` of one stream; of all its segments and with ``ROWS`` rows where nothing else is said."""
    rows, segments = rows or ROWS, segments or SEGMENTS
    samples = (code(number) if case in CODED else stream(number)[0])[: segments * LENGTH]
    scale = median_distance(samples[:100])
    kinds = {
        "identity": Identity(),
        "fourier": Fourier(rows, scale),
        "fourier_bits": Fourier(rows, scale),
        "half_bits": Fourier(
            rows // 2, scale
        ),  # a cosine and a sine of each: as many numbers as the optical map has
        "fastfood": Fastfood(rows, scale),
        "optical": Optical(rows),
    }
    features = _mapped(kinds[case], jnp.asarray(samples))
    return jax.tree.map(np.asarray, (detector or Newma(WINDOW)).run(features))


def together(case: str, **how):
    """All streams', stacked, and their changes: the same samples in all of them."""
    columns = [readings(case, number, **how) for number in range(STREAMS)]
    return [np.stack(column) for column in zip(*columns, strict=True)], stream(0)[1]


@lru_cache
def judged(case: str):
    """How a map fares with a fixed threshold of equally many false alarms, and with the adaptive one."""
    (statistic, _, flag), changes = together(case)
    return matched(statistic, changes, FALSE_ALARMS)[1], detection(flag, changes)


@lru_cache
def wide():
    """The optical map of ten times the rows, and the plain one, on the same shorter stream."""
    changes = stream(0)[1]
    changes = changes[changes < MANY_SEGMENTS * LENGTH]
    return {
        rows: matched(readings("optical", 0, rows, MANY_SEGMENTS).statistic, changes, FALSE_ALARMS)[1]
        for rows in (ROWS, MANY)
    }


@lru_cache
def windows():
    """Two windows with a buffer, on the optical features of the same shorter stream, at the same false alarms."""
    changes = stream(0)[1]
    changes = changes[changes < MANY_SEGMENTS * LENGTH]
    seen = readings("optical", 0, ROWS, MANY_SEGMENTS, MovingAverages(WINDOW))
    return matched(seen.statistic, changes, FALSE_ALARMS)[1]


# -- inside a simulation -------------------------------------------------------------------------------------------------


@lru_cache
def watched(what: str, features: str):
    """``alarms`` so far, sample of the ``last`` one, ``statistic`` and ``count``, each ``(seeds, records, workers)``."""
    problem = digits(WORKERS, batch_size=8, l2=1e-2, dtype="float32")
    detector = Newma(SHORT, quantile=0.999, warmup=4 * SHORT)
    stream = "gradient" if what == "drift" else "consensus"
    algorithm = Monitored(
        ADPSGD(optimizer={"learning_rate": 0.05}),
        detector,
        stream,
        {"kind": features, "rows": detector.worth},
    )
    if what == "drift":
        problem = drifting(problem, worker=BAD, after=CHANGE)
    else:
        algorithm = Faulty(algorithm, worker=BAD, after=CHANGE, fault="zeros")
    end = CHANGE + 8.0 * SHORT
    result = decentral.simulate(
        problem, named("ring", n=WORKERS), algorithm, Poisson(), stop=Time(end), seeds=SEEDS,
        record=Record(count=int(end) // EVERY + 1, evaluate=False, states=True),
    )  # fmt: skip
    own = [state.own if what == "drift" else state.inner.own for state in result.states]

    def column(of):
        return np.asarray([of(part) for part in own]).reshape(len(own), SEEDS, WORKERS).swapaxes(0, 1)

    return {
        "alarms": column(lambda part: part.alarms),
        "last": column(lambda part: part.last),
        "statistic": column(lambda part: part.statistic / np.maximum(part.threshold, 1e-30)),
        "count": column(lambda part: part.detector.count),
    }


def who(what: str) -> list[int]:
    """The workers that should notice."""
    return [BAD] if what == "drift" else [BAD - 1, BAD + 1]


@lru_cache
def noticed(what: str, features: str) -> tuple[np.ndarray, float]:
    """Samples from the change to the first alarm, of each seed and worker that should notice, and false alarms.

    NaN where it takes more than four windows. False alarms are those of everybody before the change and, of a drift, of the other
    workers after it, per 1,000 samples after the warm-up.
    """
    seen = watched(what, features)
    alarms, count = seen["alarms"], seen["count"]
    delays, false, samples = [], 0, 0
    for seed in range(SEEDS):
        # By the clock of the worker that it happens to. Its messages are as many as those it receives.
        before = int((count[seed, :, BAD] <= CHANGE).sum()) - 1
        for worker in who(what):
            new = np.flatnonzero(alarms[seed, :, worker] > alarms[seed, before, worker])
            start = CHANGE if what == "drift" else count[seed, before, worker]
            delay = seen["last"][seed, new[0], worker] - start if new.size else np.nan
            delays.append(delay if delay <= 4 * SHORT else np.nan)
        false += alarms[seed, before].sum()
        samples += (count[seed, before] - 4 * SHORT).sum()
        if what == "drift":
            others = [worker for worker in range(WORKERS) if worker != BAD]
            false += (alarms[seed, -1] - alarms[seed, before])[others].sum()
            samples += (count[seed, -1] - count[seed, before])[others].sum()
    return np.array(delays, float), 1000 * false / samples


# -- figures -------------------------------------------------------------------------------------------------------------


def draw(runs):
    return {"optical_figure_newma": _streams(), "optical_figure_monitor": _monitors()}


def _streams():
    many = wide()
    averages = windows()
    note = (
        f"Mixtures of Gaussians (d = 100, 10 components; mostly variances change), {STREAMS} streams of {SEGMENTS} segments "
        f"of {LENGTH:,} samples; NEWMA, window {WINDOW}, {ROWS} rows a map (Fourier and "
        f"Fastfood: two numbers a row; identity: 100 in all). Thresholds: the lowest fixed one with at "
        f"most {FALSE_ALARMS:g} false alarm a segment, set with the changes known. Code: {LEVELS} thresholds for each number, "
        f"quantiles of the first {SETTLING} segments. Optical: simulated unit, 8-bit camera. Not the light but the code makes "
        f"the difference. On a stream of {MANY_SEGMENTS} segments, not comparable with the others: optical with {MANY:,} rows "
        f"{many[MANY].delay:.0f} samples and {many[MANY].missed:.0%} missed, with {ROWS} {many[ROWS].delay:.0f} and "
        f"{many[ROWS].missed:.0%}; two windows on the latter {averages.delay:.0f} and {averages.missed:.0%}, with "
        f"{WINDOW} times the memory. Published for a real unit on another stream (d = 5,000, 250 samples a segment, window 50; "
        "LightOn's notebook, read): 31.6 samples, 2.2 % missed, 0.89 false alarms."
    )
    title = "A thermometer code finds changes of variance soon, whatever features see it"
    with canvas(title, columns=2, panel=(4.9, 3.7), note=note) as (figure, ((left, right),)):
        first, last = SETTLING + 1, SETTLING + 4
        piece = slice(first * LENGTH - LENGTH // 2, last * LENGTH)
        for change in range(first, last):
            left.axvline(change, color="#b0b0b0", linewidth=1)
        for case in ("fourier", "optical", "fourier_bits"):
            (statistic, _, _), changes = together(case)
            level = matched(statistic, changes, FALSE_ALARMS)[0]
            words, colour = CASES[case]
            left.plot(
                np.arange(piece.start, piece.stop) / LENGTH, statistic[0, piece] / level, color=colour, label=words, linewidth=1,
            )  # fmt: skip
        left.axhline(1, color="#404040", linewidth=1, linestyle=(0, (4, 2)))
        left.set(title="A piece of a stream", xlabel="segment", ylabel="statistic / threshold")
        left.legend(loc="upper left", frameon=False, fontsize=8)
        left.set_ylim(top=1.25 * left.get_ylim()[1])
        for case, (words, colour) in CASES.items():
            found = judged(case)[0]
            hollow = case == "half_bits"
            right.plot(
                found.delay, 100 * found.missed, "o", color=colour, markersize=8, zorder=3,
                markerfacecolor="white" if hollow else colour,
            )  # fmt: skip
            x, y, side = LABELS[case]
            right.annotate(
                words, (found.delay, 100 * found.missed), (x, y), textcoords="offset points", ha=side, color=colour,
                fontsize=8.5,
            )  # fmt: skip
        right.set(
            title="At equally many false alarms", xlabel="delay of the changes found, samples", ylabel="changes missed, %",
            xlim=(0, 160), ylim=(-4, 45),
        )  # fmt: skip
    return figure


def _monitors():
    rates = {(what, features): noticed(what, features)[1] for what in WHAT for features in MONITORS}
    note = (
        f"Softmax regression on digits, {WORKERS} workers on a ring, AD-PSGD at Poisson clocks, batches of 8, rate 0.05, {SEEDS} "
        f"seeds. Drift: worker {BAD}'s labels are permuted after {CHANGE} gradients; every worker's detector looks at its own "
        f"gradients. Fault: worker {BAD} sends zeros after {CHANGE} messages; a detector looks at what a worker receives minus "
        f"what it sent. Samples are coded as directions: 32 numbers, for the optical map 128 bits. NEWMA, window {SHORT}, "
        f"adaptive threshold of quantile 0.999 after {4 * SHORT} samples, {Newma(SHORT).worth} rows. False alarms per "
        "1,000 samples of a worker: "
        + ", ".join(f"{what}, {MONITORS[features][0]} {rate:.2g}" for (what, features), rate in rates.items())
        + "."
    )
    title = "A detector at every worker tells whose data changed, and who sits beside a broken sender"
    with canvas(title, columns=2, panel=(4.9, 3.5), note=note) as (figure, ((left, right),)):
        seen = watched("drift", "fourier")
        for worker in range(WORKERS):
            bad = worker == BAD
            left.plot(
                seen["count"][0, :, worker], seen["statistic"][0, :, worker], zorder=3 if bad else 2,
                color="#bd1f01" if bad else "#b4b8bf", linewidth=2 if bad else 1,
            )  # fmt: skip
        left.axvline(CHANGE, color="#404040", linewidth=1, linestyle=(0, (1, 1.5)))
        left.axhline(1, color="#404040", linewidth=1, linestyle=(0, (4, 2)))
        left.set(
            title="One seed, random Fourier", xlabel="gradients of the worker", ylabel="statistic / threshold",
            xlim=(4 * SHORT, None),
        )  # fmt: skip
        left.text(
            CHANGE + 25,
            left.get_ylim()[1] * 0.93,
            f"worker {BAD}",
            color="#bd1f01",
            fontweight="bold",
            fontsize=9,
        )
        left.text(4 * SHORT + 10, left.get_ylim()[0] + 0.03, "the others", color="#7c8088", fontsize=9)
        places, labels = [], []
        for place, (what, features) in enumerate(rates):
            words, colour = MONITORS[features]
            delays = np.sort(noticed(what, features)[0])
            late = np.isnan(delays).sum()
            spread = np.linspace(-0.22, 0.22, len(delays))
            right.plot(
                place + spread,
                np.where(np.isnan(delays), 4 * SHORT, delays),
                "o",
                color=colour,
                markersize=4.5,
            )
            if late:
                right.text(
                    place,
                    4 * SHORT * 1.1,
                    f"{late} of {len(delays)} late",
                    ha="center",
                    fontsize=8,
                    color=colour,
                )
            places.append(place)
            labels.append(f"{what}\n{words}")
        right.set_yscale("log")
        right.axhline(SHORT, color="#404040", linewidth=1, linestyle=(0, (4, 2)))
        right.text(len(places) - 0.55, SHORT * 1.05, "window", fontsize=8, color="#404040", ha="right")
        right.set_xticks(places, labels)
        right.set(
            title="Samples until the first alarm", ylabel="samples after the change", ylim=(5, 6 * SHORT),
            xlim=(-0.5, len(places) - 0.5),
        )  # fmt: skip
        right.grid(axis="x", visible=False)
    return figure


def claims(runs):
    study = "reference study for this project, NumPy prototype, 3 streams"

    def claim(number, statement, source, accepted, tag="code", tier="exact"):
        return Claim(f"N{number}", "NEWMA", statement, source, tag, tier, accepted)

    fixed = {case: judged(case)[0] for case in CASES}
    adaptive = judged("optical")[1]

    def words(case):
        found = fixed[case]
        return f"delay {found.delay:.0f}, missed {found.missed:.1%}, false alarms {found.false_alarms:.2f}"

    def ratio(one, other):
        return fixed[one].delay / fixed[other].delay, f"{one}: {words(one)}; {other}: {words(other)}"

    rows = claim(
        1, "Random features worth having for a window of 250", "lightonai/newma 73ebf8f: a tenth of its 34,570", (3457, 3457)
    )  # fmt: skip
    checked = [rows.check(newma_parameters(250).features)]
    for other, prototype in (("fourier", 137), ("fastfood", 138), ("identity", 178)):
        value, note = ratio("optical", other)
        checked.append(
            claim(
                2,
                f"Optical features on a thermometer code find changes of variance sooner than {CASES[other][0]} does, at no more "
                f"than 1 false alarm a segment: ratio of delays",
                f"{study}: 71 and {prototype} samples",
                (None, 0.999),
                "derived", "toy network",
            ).check(value, note=note)
        )  # fmt: skip
    checked += [
        claim(
            3, "Optical features on a thermometer code miss few changes, %", f"{study}: 1.9 %", (None, 10), "derived",
            "toy network",
        ).check(100 * fixed["optical"].missed, note=words("optical")),
        claim(
            4, "With the adaptive threshold, optical: delay", f"{study}: 31.9 samples (5.8 false alarms)", (28, 38), "derived",
            "toy network",
        ).check(adaptive.delay, note=f"{adaptive.false_alarms:.1f} false alarms a segment"),
    ]  # fmt: skip
    for case, what in (("fourier_bits", "as many rows"), ("half_bits", "as many numbers")):
        value, note = ratio("optical", case)
        checked.append(
            claim(
                5,
                f"The advantage is the optical unit's: on the same code it is sooner than random Fourier features of "
                f"{what}, by a "
                "tenth or more: ratio of delays",
                "what the comparison without the code seems to say",
                (None, 0.9),
                "derived", "toy network",
            ).check(value, note=note)
        )  # fmt: skip
    many = wide()
    checked.append(
        claim(
            6,
            "Ten times the rows find changes sooner (no evidence for light: any map gains), ratio of delays",
            f"{study}: 54 and 71 samples",
            (None, 0.999),
            "derived", "toy network",
        ).check(many[MANY].delay / many[ROWS].delay, note=f"one stream of {MANY_SEGMENTS} segments")
    )  # fmt: skip
    for what, statement in WHAT.items():
        for features in MONITORS:
            delays, false = noticed(what, features)
            found = np.isfinite(delays)
            note = (
                f"median delay {np.median(delays[found]):.0f} samples, {found.sum()} of {len(delays)}; {false:.2g} false "
                "alarms per 1,000"
            )
            checked.append(
                claim(
                    7 if what == "drift" else 8,
                    f"{statement} (NEWMA, window {SHORT}, {MONITORS[features][0]}, digits, ring of {WORKERS}): share found "
                    "within 4 windows",
                    "NEWMA finds changes within about its window", (0.9, None), "derived", "convex",
                ).check(float(found.mean()), note=note)
            )  # fmt: skip
    return checked


if __name__ == "__main__":
    main(__file__)
