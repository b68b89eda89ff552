"""DADAO, table of complexities: gradients and communications to a precision on four graphs of 9 to 36 workers."""

import numpy as np

from decentral.analysis.claims import Claim, over_seeds, slopes
from decentral.analysis.statistics import mean_interval, time_to_target
from decentral.experiment.figures import Experiment, canvas, main

SIZES = (9, 16, 36)
ORDERS = {"star": "n", "complete": "n", "grid": r"n^{1.5}", "path": r"n^2"}
ACCEPTED = {"star": (0.9, 1.25), "complete": (0.9, 1.25), "grid": (1.4, 1.85), "path": (1.85, 2.3)}
CASES = {
    (kind, n): Experiment("dadao/complexity", (f"topology.kind={kind}", f"topology.n={n}"))
    for kind in ORDERS
    for n in SIZES
}
EXPERIMENTS = tuple(CASES.values())
SMOKE_EXPERIMENTS = tuple(run for (_, n), run in CASES.items() if n in SIZES[:2])
TARGET = 1e-6
LOOKS = {
    "star": ("o", "#3f90da"),
    "complete": ("D", "#ffa90e"),
    "grid": ("s", "#832db6"),
    "path": ("^", "#bd1f01"),
}


def sizes(runs) -> np.ndarray:
    """A look takes the first two."""
    return np.array(SIZES[:2] if runs.smoke else SIZES)


def to_target(runs, axis: str, kind: str, algorithm: str = "dadao"):
    """Value of an axis (time_s, gradients, exchanges) when the target is met, (sizes, seeds)."""
    found = []
    for n in sizes(runs):
        run = runs[CASES[kind, n]]
        distance = run.metric(algorithm, "distance_to_optimum")
        found.append(time_to_target(run.metric(algorithm, axis), distance / distance[:, :1], TARGET))
    return np.array(found)


def draw(runs):
    note = (
        f"Until the mean squared distance to the optimum is {TARGET:g} of its start; quadratics of condition "
        "number 10, d = 20. Mean of "
        "the seeds; bars: 95 % intervals of the mean (Student's t). Dashed: the orders n sqrt(chi_1 chi_2)."
    )
    with canvas(
        "DADAO: gradients do not depend on the graph, communications do",
        columns=2,
        panel=(4.2, 3.5),
        note=note,
    ) as (figure, (row,)):
        for place, (kind, order) in enumerate(ORDERS.items()):
            marker, colour = LOOKS[kind]
            beside = sizes(runs) * 1.03 ** (place - 1.5)
            for axes, axis in zip(row, ("gradients", "exchanges"), strict=True):
                values = to_target(runs, axis, kind)
                mean, half = mean_interval(
                    values / sizes(runs)[:, None] if axis == "gradients" else values, axis=1
                )
                if not np.isfinite(mean).all():  # the smoke test ends before the target
                    continue
                axes.errorbar(
                    beside if axis == "gradients" else sizes(runs),
                    mean,
                    half,
                    marker=marker,
                    color=colour,
                    capsize=3,
                    linestyle="none",
                    label=f"{kind}, ${order}$" if axis == "exchanges" else kind,
                )
                if axis == "exchanges":
                    power = {"n": 1.0, r"n^{1.5}": 1.5, r"n^2": 2.0}[order]
                    guide = sizes(runs) ** power
                    axes.plot(
                        sizes(runs),
                        guide * np.exp(np.log(mean / guide).mean()),
                        color=colour,
                        linewidth=1,
                        linestyle=(0, (4, 3)),
                    )
        per_worker, exchanges = row
        high = per_worker.get_ylim()[1]
        per_worker.set(
            xscale="log",
            ylim=(0, 1.25 * high),
            xlabel="workers n",
            ylabel="gradients per worker",
            title="Gradients of each worker",
        )
        exchanges.set(
            xscale="log", yscale="log", xlabel="workers n", ylabel="communications", title="Communications"
        )
        for axes in row:
            axes.set_xticks(sizes(runs), map(str, sizes(runs)))
            axes.minorticks_off()
            axes.margins(x=0.1)
        if exchanges.has_data():
            exchanges.legend(loc="upper left")
            per_worker.legend(loc="lower left", ncols=2)
    return figure


def claims(runs):
    times = np.array([to_target(runs, "time_s", kind) for kind in ORDERS]).reshape(
        -1, runs[EXPERIMENTS[0]].metric("dadao", "time_s").shape[0]
    )
    checked = [
        Claim(
            "B4",
            "DADAO",
            "Gradients do not depend on the graph: largest over smallest time to 1e-6, 12 graphs",
            "ICML abstract",
            "read",
            "convex",
            (1.0, 1.3),
        ).check(
            float(times.mean(1).max() / times.mean(1).min()) if np.isfinite(times).all() else np.nan,
            note="of means over the seeds",
        )
    ]
    for kind, order in ORDERS.items():
        words = order.strip("$").replace("{", "").replace("}", "")
        claim = Claim(
            "B5",
            "DADAO",
            f"Communications on a {kind} graph grow as {words}: slope of log communications over log n, 9 to 36",
            "ICML abstract: n sqrt(chi_1 chi_2); the order in n derived",
            "read",
            "convex",
            ACCEPTED[kind],
        )
        checked.append(claim.check(*over_seeds(slopes(sizes(runs), to_target(runs, "exchanges", kind)))))
    return checked


if __name__ == "__main__":
    main(__file__)
