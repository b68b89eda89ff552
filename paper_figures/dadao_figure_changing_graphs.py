"""DADAO on graphs that change: 50 random geometric graphs in turn, at the speed of one that does not change."""

import numpy as np

from decentral.analysis.claims import Claim
from decentral.analysis.statistics import paired
from decentral.experiment.figures import Experiment, canvas, main

CHANGING = Experiment("dadao/changing_graphs")
EXPERIMENTS = (CHANGING,)
LOOKS = {
    "changing": ("#832db6", "-", "50 random geometric graphs in turn"),
    "complete": ("#ffa90e", (0, (4, 1.5)), "complete graph"),
}


def tail_rate(run, name: str) -> np.ndarray:
    """Slope of minus the logarithm of the distance over the second half of the run, per seed."""
    time_s, distance = run.metric(name, "time_s"), run.metric(name, "distance_to_optimum")
    half = distance.shape[1] // 2
    return np.array(
        [-np.polyfit(t[half:], np.log(d[half:]), 1)[0] for t, d in zip(time_s, distance, strict=True)]
    )


def draw(runs):
    run = runs[CHANGING]
    note = (
        "n = 10, radius 0.4, condition number 10, d = 20; each curve has the exchanges per unit of time that the theory asks "
        "for, for the worst of the graphs. Geometric mean and range of the seeds."
    )
    with canvas("DADAO on graphs that change", columns=2, panel=(4.0, 3.2), note=note) as (figure, (row,)):
        for axes, axis in zip(row, ("time_s", "exchanges"), strict=True):
            for name, (colour, line, label) in LOOKS.items():
                x, distance = run.metric(name, axis).mean(0), run.metric(name, "distance_to_optimum")
                distance = distance / distance[:, :1]
                axes.plot(x, np.exp(np.log(distance).mean(0)), color=colour, linestyle=line, label=label)
                axes.fill_between(x, distance.min(0), distance.max(0), color=colour, alpha=0.2, linewidth=0)
            axes.set(yscale="log")
        row[0].set(xlabel="time (gradients per worker)", ylabel=r"mean of $\|x_i - x^{*}\|^2$ / start")
        row[1].set(xlabel="communications")
        row[0].legend(loc="lower left")
    return figure


def claims(runs):
    found = paired(*(tail_rate(runs[CHANGING], name) for name in LOOKS))
    return [
        Claim(
            "B11",
            "DADAO",
            "Graphs that change converge at the same speed: decay rate on 50 geometric graphs in turn over the complete graph's",
            "v1 of the paper; no number there, the range is ours",
            "read",
            "convex",
            (0.8, 1.25),
        ).check(found.ratio or np.nan, found.ratio_interval)
    ]


if __name__ == "__main__":
    main(__file__)
