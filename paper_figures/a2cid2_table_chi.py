"""A2CiD2, topology figure: chi_1, chi_2 and their geometric mean on the complete, exponential and ring graphs."""

import math

from decentral.analysis.claims import Claim
from decentral.experiment.figures import canvas, main
from decentral.topology import named

EXPERIMENTS = ()
SIZES = (4, 8, 16, 32, 64, 128)
LISTED = {  # of 16 workers: chi_1, chi_2, and chi_1 and chi_2 as the paper rounds them
    "complete": (0.9375, 0.9375, 1, 1),
    "exponential": (2.0, 1.00966, 2, 1),
    "ring": (13.1371, 0.9375, 13, 1),
}
LOOKS = {"complete": "#717581", "exponential": "#3f90da", "ring": "#bd1f01"}


def draw(runs):
    note = (
        "One exchange per worker and unit of time. Gossip pays chi_1, A2CiD2 sqrt(chi_1 chi_2). Exponential "
        "graph with its n/2 neighbour counted twice, as in the code. chi_2 of the ring is that of the complete graph."
    )
    titles = (
        r"$\chi_1$: inverse spectral gap",
        r"$\chi_2$: half the largest resistance",
        r"$\sqrt{\chi_1 \chi_2}$",
    )
    with canvas("The constants of three graphs", columns=3, panel=(3.2, 3.0), note=note) as (figure, (row,)):
        for kind, colour in LOOKS.items():
            graphs = [named(kind, n=n) for n in SIZES]
            columns = (
                [g.chi_1 for g in graphs],
                [g.chi_2 for g in graphs],
                [math.sqrt(g.chi_1 * g.chi_2) for g in graphs],
            )
            for axes, values in zip(row, columns, strict=True):
                axes.plot(SIZES, values, marker="o", markersize=4, color=colour, label=kind)
        for axes, title in zip(row, titles, strict=True):
            axes.set(xscale="log", xlabel="workers n", title=title)
            axes.set_xticks(SIZES, map(str, SIZES))
            axes.set_xticks([], minor=True)
            axes.margins(x=0.04)
        row[0].set(yscale="log", ylim=(0.5, 2000))
        row[1].set(ylim=(0, 1.2))
        row[2].set(yscale="log", ylim=(0.5, 2000))
        row[0].set_ylabel("units of time (one gradient)")
        row[0].legend(loc="upper left")
    return figure


def claims(runs):
    checked = []
    for kind, (chi_1, chi_2, *rounded) in LISTED.items():
        graph = named(kind, n=16)
        for name, value, listed, words in (
            ("chi_1", graph.chi_1, chi_1, rounded[0]),
            ("chi_2", graph.chi_2, chi_2, rounded[1]),
        ):
            checked.append(
                Claim(
                    "A8",
                    "A2CiD2",
                    f"{name} of the {kind} graph of 16 is {listed:g}",
                    "the authors' code",
                    "code",
                    "exact",
                    (listed - 5e-5, listed + 5e-5),
                ).check(value)
            )
            checked.append(
                Claim(
                    "A8",
                    "A2CiD2",
                    f"{name} of the {kind} graph of 16, rounded, is {words}",
                    "topology figure (recalled, high confidence)",
                    "recalled",
                    "exact",
                    (words, words),
                ).check(round(value))
            )
    formulas = {
        "complete": lambda n: ((n - 1) / n, (n - 1) / n),
        "ring": lambda n: (1 / (1 - math.cos(2 * math.pi / n)), (n - 1) / n),
        "exponential": lambda n: (math.log2(n) / 2, None),
    }
    for kind, formula in formulas.items():
        pairs = [
            (getattr(named(kind, n=n), name), value)
            for n in SIZES
            for name, value in zip(("chi_1", "chi_2"), formula(n), strict=True)
            if value
        ]
        worst = max(abs(found / value - 1) for found, value in pairs)
        which = "chi_1" if kind == "exponential" else "chi_1 and chi_2"
        checked.append(
            Claim(
                "A8",
                "A2CiD2",
                f"Closed form of {which} on the {kind} graph, n = 4 to 128: largest relative error",
                "closed form",
                "derived",
                "exact",
                (None, 1e-8),
            ).check(worst)
        )
    return checked


if __name__ == "__main__":
    main(__file__)
