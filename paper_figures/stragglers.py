"""Stragglers: time to target of eight ways to train on one cluster, on data sorted by label and on shuffled data.

Two figures: 64 workers, and the 37 sites of a European network. Where a synchronous method wins, the figure shows it.
"""

import numpy as np

from decentral.analysis.plots import styles
from decentral.analysis.statistics import mean_interval
from decentral.experiment.figures import Experiment, canvas, main

PARTITIONS = {
    "label": "sorted by label: each worker sees one or two digits",
    "iid": "shuffled: all workers see the same",
}
TITLES = {
    "stragglers": "64 workers, 4 of them four times slower",
    "geant": "37 sites of the GÉANT network, 3 of them four times slower",
}
CASES = {
    name: {partition: Experiment(name, (f"problem.partition={partition}",)) for partition in PARTITIONS}
    for name in TITLES
}
EXPERIMENTS = tuple(experiment for of in CASES.values() for experiment in of.values())
SMOKE_EXPERIMENTS = tuple(of["label"] for of in CASES.values())


def draw(runs):
    return {
        name: _draw(
            {
                partition: runs[experiment]
                for partition, experiment in of.items()
                if not runs.smoke or experiment in SMOKE_EXPERIMENTS
            },
            TITLES[name],
        )
        for name, of in CASES.items()
    }


def _draw(folders, title):
    """A row of two panels per partition."""
    first = next(iter(folders.values()))
    names = first.algorithms
    looks = styles(names)
    seeds = len(first.manifest["seeds"])
    note = (
        f"Averaged model; mean of {seeds} seeds with 95 % intervals of the mean (Student's t). One learning rate per method, "
        "the same in both rows. All run on one cluster with the same compute times, gradient by gradient."
    )
    with canvas("", rows=len(folders), columns=2, panel=(4.7, 3.4), note=note) as (figure, grid):
        for (curves, bars), (partition, run) in zip(grid, folders.items(), strict=True):
            target = run.summary["algorithms"][names[0]]["to_target"]["target"]
            lowest = min(float(mean_interval(run.metric(name, "suboptimality"))[0].min()) for name in names)
            for name in names:
                mean, half = mean_interval(run.metric(name, "suboptimality"))
                time_s = run.metric(name, "time_s").mean(0)
                curves.plot(time_s, mean, **looks[name], label=name)
                if not np.isnan(half).all():
                    edges = np.maximum(mean - half, lowest / 3), np.maximum(mean + half, lowest / 3)
                    curves.fill_between(time_s, *edges, color=looks[name]["color"], alpha=0.18, linewidth=0)
            curves.axhline(target, color="#404040", linewidth=0.8, linestyle=(0, (4, 3)))
            curves.set(
                yscale="log",
                xlabel="simulated time (s)",
                ylabel=r"$f(\bar{x}) - f(x^{*})$",
                ylim=(lowest / 2, None),
                title=f"Digits {PARTITIONS[partition]}",
            )
            rows = {name: run.summary["algorithms"][name]["to_target"]["time_s"] for name in names}
            order = sorted(
                names, key=lambda name: rows[name]["mean"] if rows[name]["mean"] is not None else np.inf
            )
            end_s = float(run.metric(names[0], "time_s").max())
            for place, name in enumerate(order):
                row = rows[name]
                if row["mean"] is None:
                    words = f"{row['seeds'] - row['reached']} of {row['seeds']} seeds not in {end_s:g} s"
                    bars.text(0.01 * end_s, place, words, va="center", fontsize=8, color="#6b6b6b")
                    continue
                half = row["half_width"]
                bars.barh(place, row["mean"], color=looks[name]["color"], height=0.7)
                if half is not None and np.isfinite(half):
                    bars.errorbar(row["mean"], place, xerr=half, color="#262626", capsize=2.5, linewidth=1)
                reach = row["mean"] + (half if half is not None and np.isfinite(half) else 0.0)
                bars.text(reach, place, f"  {row['mean']:.2g} s", va="center", fontsize=8)
            bars.set_yticks(range(len(order)), order)
            bars.set_ylim(len(order) - 0.4, -0.6)
            bars.grid(axis="y", visible=False)
            bars.margins(x=0.2)
            bars.set_title(f"Time to suboptimality {target:g}")
            bars.set_xlabel("simulated time (s)")
        figure.legend(
            *grid[0][0].get_legend_handles_labels(),
            loc="outside upper left",
            ncols=len(names),
            columnspacing=1.2,
            handlelength=1.4,
            title=title,
            title_fontproperties={"size": 11, "weight": "bold"},
            alignment="left",
        )
    return figure


if __name__ == "__main__":
    main(__file__)
