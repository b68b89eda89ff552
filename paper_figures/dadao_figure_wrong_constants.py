"""DADAO with a wrong strong convexity or smoothness: what a factor of 1/4 to 4 costs."""

import numpy as np

from decentral.analysis.claims import Claim
from decentral.analysis.statistics import mean_interval, paired, time_to_target
from decentral.experiment.figures import Experiment, canvas, main

RING = Experiment("dadao/wrong_constants", may_diverge=True)
EXPERIMENTS = (RING,)
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
WORDS = {"mu": "strong convexity µ", "L": "smoothness L"}
COLOURS = ("#bd1f01", "#e76300", "#832db6", "#3f90da", "#717581")
TARGET = 1e-6


def name_of(constant: str, factor: float) -> str:
    return "right" if factor == 1 else f"{constant}-x{factor}"


def relative(run, name: str) -> np.ndarray:
    distance = run.metric(name, "distance_to_optimum")
    return distance / distance[:, :1]


def times(run, name: str) -> np.ndarray:
    """Time to the target per seed; inf where it is not reached."""
    if name not in run.algorithms:
        return np.full(len(run.manifest["seeds"]), np.inf)
    return time_to_target(run.metric(name, "time_s"), relative(run, name), TARGET)


def draw(runs):
    run = runs[RING]
    note = (
        "Ring of 16, quadratics of condition number 10, d = 20. Curves: geometric mean of the seeds. Right: "
        f"time until the distance is {TARGET:g} of "
        "its start, mean and 95 % interval (Student's t); a cross: not reached on every seed."
    )
    with canvas("DADAO told wrong constants", columns=3, panel=(3.3, 3.2), note=note) as (figure, (row,)):
        for axes, (constant, words) in zip(row, WORDS.items(), strict=False):
            for factor, colour in zip(FACTORS, COLOURS, strict=True):
                if (name := name_of(constant, factor)) not in run.algorithms:
                    continue
                curve = np.exp(np.log(np.maximum(relative(run, name), 1e-30)).mean(0))
                axes.plot(run.metric(name, "time_s").mean(0), curve, color=colour, label=f"× {factor:g}")
            axes.axhline(TARGET, color="#404040", linewidth=0.8, linestyle=(0, (4, 3)))
            axes.set(
                yscale="log", ylim=(1e-14, 1e4), xlabel="time (gradients per worker)", title=f"Wrong {words}"
            )
        row[0].set_ylabel(r"mean of $\|x_i - x^{*}\|^2$ / start")
        row[0].legend(loc="upper right", ncols=2)
        for (constant, words), marker, colour in zip(
            WORDS.items(), "os", ("#3f90da", "#bd1f01"), strict=True
        ):
            means = []
            for factor in FACTORS:
                mean, half = mean_interval(times(run, name_of(constant, factor)))
                means.append(mean)
                if np.isfinite(mean):
                    row[2].errorbar(factor, mean, half, marker=marker, color=colour, capsize=3)
                else:
                    row[2].plot(
                        factor,
                        1.0 if marker == "o" else 0.95,
                        "x",
                        color=colour,
                        markersize=8,
                        transform=row[2].get_xaxis_transform(),
                        clip_on=False,
                    )
            row[2].plot(
                FACTORS, np.where(np.isfinite(means), means, np.nan), color=colour, linewidth=1, label=words
            )
        row[2].set(
            xscale="log",
            xlabel="factor of the constant",
            ylabel="time to the target",
            ylim=(0, None),
            title="What it costs",
        )
        row[2].margins(x=0.1)
        row[2].set_ylim(0, 1.12 * row[2].get_ylim()[1])
        row[2].set_xticks(FACTORS, [f"{f:g}" for f in FACTORS])
        row[2].minorticks_off()
        row[2].legend(loc="lower right")
    return figure


def claims(runs):
    run, checked = runs[RING], []
    for constant, factor in (("mu", 0.25), ("L", 4.0)):
        claim = Claim(
            "W1",
            "DADAO",
            f"The safe way costs the root of the factor: time to 1e-6 with {constant} x {factor:g} over that with "
            "the right constants",
            "rate proportional to sqrt(µ/L)",
            "derived",
            "convex",
            (1.6, 2.4),
        )
        both = paired(times(run, name_of(constant, factor)), times(run, "right"))
        checked.append(claim.check(np.nan if both.ratio is None else both.ratio, both.ratio_interval))
    return checked


if __name__ == "__main__":
    main(__file__)
