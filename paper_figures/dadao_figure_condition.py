"""DADAO, gradient complexity and rate: quadratics of condition number 4 to 256 on a complete graph of 10 workers."""

import numpy as np

from decentral.analysis.claims import Claim, over_seeds, slopes
from decentral.analysis.plots import colours
from decentral.analysis.statistics import mean_interval, time_to_target
from decentral.experiment.figures import Experiment, canvas, main

KAPPAS = (4, 16, 64, 256)
EXPERIMENTS = tuple(Experiment("dadao/kappa", (f"problem.condition_number={kappa}.0",)) for kappa in KAPPAS)
TARGET = 1e-6
TAIL = 1e-3, 1e-13
"""The part of a curve whose slope is taken, relative to its start: after the transient, above rounding."""


def relative(run):
    """Mean squared distance to the optimum over its starting value, (seeds, records)."""
    distance = run.metric("dadao", "distance_to_optimum")
    return distance / distance[:, :1]


def gradients(runs):
    """Gradients of all workers until the target, (kappas, seeds)."""
    return np.array(
        [time_to_target(runs[e].metric("dadao", "gradients"), relative(runs[e]), TARGET) for e in EXPERIMENTS]
    )


def tail_rates(runs):
    """Slope of -log distance over time, in units of the theorem's s/8, (kappas, seeds)."""
    found = []
    for kappa, experiment in zip(KAPPAS, EXPERIMENTS, strict=True):
        times, curves = runs[experiment].metric("dadao", "time_s")[0], relative(runs[experiment])
        rates = []
        for curve in curves:
            first = np.argmax(curve < TAIL[0]) if (curve < TAIL[0]).any() else 0
            last = np.argmax(curve < TAIL[1]) if (curve < TAIL[1]).any() else len(curve)
            enough = last - first > 2  # not in the smoke test
            rates.append(
                -np.polyfit(times[first:last], np.log(curve[first:last]), 1)[0] if enough else np.nan
            )
        found.append(np.array(rates) / (np.sqrt(1 / (2 * kappa)) / 8))
    return np.array(found)


def draw(runs):
    note = (
        "Mean of the seeds; bars: 95 % intervals of the mean (Student's t). Distances relative to the start; "
        f"target {TARGET:g}. "
        "L = 1, d = 20, all curvatures between L and L/kappa on every worker."
    )
    colour = colours(["dadao"])["dadao"]
    with canvas(
        "DADAO: gradients grow as the square root of the condition number",
        columns=3,
        panel=(3.4, 3.2),
        note=note,
    ) as (figure, (row,)):
        curves, count, rate = row
        for shade, kappa, experiment in zip(
            np.linspace(0.35, 1, len(KAPPAS)), KAPPAS, EXPERIMENTS, strict=True
        ):
            run = runs[experiment]
            mean = np.exp(np.log(relative(run)).mean(0))
            shown = mean > 1e-16
            curves.plot(
                run.metric("dadao", "gradients").mean(0)[shown],
                mean[shown],
                color=colour,
                alpha=shade,
                label=rf"$\kappa$ = {kappa}",
            )
        curves.axhline(TARGET, color="#404040", linewidth=0.8, linestyle=(0, (4, 3)))
        curves.set(
            yscale="log",
            xlabel="gradients of all workers",
            ylabel=r"mean of $\|x_i - x^{*}\|^2$ / start",
            title="Distance to the optimum",
        )
        curves.legend(loc="upper right")
        mean, half = mean_interval(gradients(runs), axis=1)
        count.errorbar(KAPPAS, mean, half, marker="o", color=colour, capsize=3, linestyle="none")
        if np.isfinite(mean).all():
            guide = np.exp(np.log(mean).mean()) * np.sqrt(KAPPAS) / np.exp(np.log(np.sqrt(KAPPAS)).mean())
            count.plot(
                KAPPAS,
                guide,
                color="#8c8c8c",
                linewidth=1,
                linestyle=(0, (4, 3)),
                label=r"$\propto \sqrt{\kappa}$",
            )
            count.legend(loc="upper left")
        count.set(
            xscale="log",
            yscale="log",
            xlabel=r"condition number $\kappa$",
            ylabel=f"gradients to {TARGET:g}",
            title="Gradients to the target",
        )
        count.margins(x=0.1, y=0.1)
        mean, half = mean_interval(tail_rates(runs), axis=1)
        rate.errorbar(KAPPAS, mean, half, marker="o", color=colour, capsize=3, linestyle="none")
        rate.axhline(1.0, color="#404040", linewidth=1, linestyle=(0, (4, 3)))
        rate.text(KAPPAS[0], 1.02, "the theorem", fontsize=8, color="#404040")
        rate.set(
            xscale="log",
            xlabel=r"condition number $\kappa$",
            ylabel="rate / theorem's rate",
            ylim=(0.9, 2.3),
            title="Rate of the tail",
        )
        rate.margins(x=0.1)
        for axes in (count, rate):
            axes.set_xticks(KAPPAS, map(str, KAPPAS))
            axes.minorticks_off()
        count.set_yticks((1000, 2000, 5000, 10000), ("1k", "2k", "5k", "10k"))
        curves.set_xticks((0, 5000, 10000, 15000, 20000), ("0", "5k", "10k", "15k", "20k"))
    return figure


def claims(runs):
    checked = [
        Claim(
            "B3",
            "DADAO",
            "Gradients to 1e-6 grow as sqrt(kappa): slope of log gradients over log kappa",
            "ICML abstract",
            "read",
            "convex",
            (0.42, 0.56),
        ).check(*over_seeds(slopes(KAPPAS, gradients(runs))))
    ]
    for kappa, rates in zip(KAPPAS, tail_rates(runs), strict=True):
        claim = Claim(
            "B2",
            "DADAO",
            f"Simulated decay of ||X - X*||² over the theorem's s/8, kappa = {kappa}",
            "convergence theorem (recalled, high confidence)",
            "recalled",
            "convex",
            (1.3, 2.2),
        )
        checked.append(claim.check(*over_seeds(rates)))
    return checked


if __name__ == "__main__":
    main(__file__)
