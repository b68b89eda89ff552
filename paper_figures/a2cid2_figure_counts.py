"""A2CiD2, expected gradients and communications: counts of a run beside nT and n T rate / 2."""

import numpy as np

from decentral.analysis.claims import Claim
from decentral.experiment.figures import Experiment, canvas, main

RING = Experiment("a2cid2/sources", ("topology.n=16",), folder="a2cid2-sources-white-16")
EXPERIMENTS = (RING,)
N = 16
COUNTS = {
    "gradients": ("gossip", 1.0, "gradients: nT"),
    "exchanges": ("gossip", 0.5, "communications: n T rate / 2, rate 1"),
    "double": ("gossip-x2", 1.0, "communications: n T rate / 2, rate 2"),
}


def counted(run, count: str) -> tuple[np.ndarray, np.ndarray]:
    """Counts and their expectation, both (seeds, records)."""
    name, per_worker, _ = COUNTS[count]
    taken = run.metric(name, "gradients" if count == "gradients" else "exchanges")
    return taken, N * per_worker * run.metric(name, "time_s")


def draw(runs):
    run = runs[RING]
    note = (
        "Ring of 16. Each line is a seed: its count minus the expectation; shaded: four standard deviations "
        "of a Poisson count."
    )
    with canvas(
        "Gradients and communications come as often as expected", columns=3, panel=(3.4, 3.0), note=note
    ) as (figure, (row,)):
        titles = ("Gradients: nT", "Communications: nT / 2", "Twice the rate: nT")
        for axes, count, title in zip(row, COUNTS, titles, strict=True):
            taken, expected = counted(run, count)
            band = 4 * np.sqrt(expected[0])
            axes.fill_between(expected[0], -band, band, color="#717581", alpha=0.18, linewidth=0)
            axes.plot(expected.T, (taken - expected).T, color="#3f90da", linewidth=1)
            axes.set(xlabel="expected", title=title)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
        row[0].set_ylabel("counted - expected")
    return figure


def claims(runs):
    checked = []
    for count, (_, _, words) in COUNTS.items():
        taken, expected = counted(runs[RING], count)
        total, mean = taken[:, -1].sum(), expected[:, -1].sum()
        claim = Claim(
            "C10",
            "A2CiD2",
            f"Expected {words}: deviation of the count of all seeds in standard deviations of a Poisson count",
            "expected numbers (recalled, high confidence; derived from the clocks)",
            "recalled",
            "convex",
            (-4.0, 4.0),
        )
        checked.append(
            claim.check((total - mean) / np.sqrt(mean), note=f"{total:.0f} counted, {mean:.0f} expected")
        )
    return checked


if __name__ == "__main__":
    main(__file__)
