"""DADAO, table of communication rates on standard graphs: communications per round of n gradients, in closed form."""

import math
from functools import cache

import numpy as np

from decentral.analysis.claims import Claim, slopes
from decentral.experiment.figures import canvas, main
from decentral.topology import named

EXPERIMENTS = ()
SIZES = (64, 144, 256)
GRAPHS = ("star", "path", "grid", "complete", "ring", "barbell")
SLOPES = {
    "DADAO": (1.01, 2.01, 1.55, 1.01, 2.00, 2.50),
    "MSDA": (1.51, 2.02, 1.56, 2.01, 2.01, 3.01),
    "ADOM+ multi-consensus": (2.00, 3.01, 2.05, 2.01, 3.00, 3.95),
}
LOOKS = {
    "DADAO": ("#832db6", "-"),
    "MSDA": ("#e76300", (0, (4, 1.5))),
    "ADOM+ multi-consensus": ("#ffa90e", (0, (1, 1.2))),
}


@cache
def communications(kind: str, n: int) -> dict[str, float]:
    """Communications per round: DADAO sqrt(2 chi_1 chi_2), MSDA |E| floor(1/sqrt gamma), ADOM+ |E| ceil(chi ln 2)."""
    topology = named(kind, n=n)
    eigenvalues = np.linalg.eigvalsh(topology.laplacian.toarray())
    chi, edges = eigenvalues[-1] / eigenvalues[1], len(topology.edges)
    rounded = 1e-9  # eigenvalues of the complete graph are equal up to rounding
    return {
        "DADAO": topology.dadao_rate,
        "MSDA": edges * math.floor(math.sqrt(chi) + rounded),
        "ADOM+ multi-consensus": edges * math.ceil(chi * math.log(2) - rounded),
    }


def draw(runs):
    note = (
        "Uniform rates. Exact values; the number beside a line is its slope in log-log, least squares over "
        "the sizes marked. On the complete graph MSDA and ADOM+ coincide."
    )
    with canvas(
        "Communications per round of n gradients", rows=2, columns=3, panel=(3.2, 2.7), note=note
    ) as (figure, grid):
        for axes, kind in zip(grid.flat, GRAPHS, strict=True):
            for method, (colour, line) in LOOKS.items():
                values = [communications(kind, n)[method] for n in SIZES]
                axes.plot(SIZES, values, color=colour, linestyle=line, marker="o", markersize=4, label=method)
                slope = slopes(SIZES, np.array(values)[:, None])[0]
                axes.annotate(
                    f"{slope:.2f}",
                    (SIZES[-1], values[-1]),
                    (5, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                    color=colour,
                )
            axes.set(xscale="log", yscale="log", ylim=(30, 3e8), xlim=(55, 380), title=kind)
            axes.set_xticks(SIZES, map(str, SIZES))
            axes.minorticks_off()
        for axes in grid[-1]:
            axes.set_xlabel("workers n")
        for axes in grid[:, 0]:
            axes.set_ylabel("communications")
        grid[0, 0].legend(loc="upper left")
    return figure


def claims(runs):
    checked = []
    for method, expected in SLOPES.items():
        for kind, slope in zip(GRAPHS, expected, strict=True):
            values = np.array([[communications(kind, n)[method]] for n in SIZES])
            claim = Claim(
                "A9",
                "DADAO",
                f"{method} on a {kind} graph: slope of log communications per round over log n, n = 64 to 256",
                "rates in the code; slopes computed independently; orders in the table recalled, medium confidence",
                "code",
                "exact",
                (slope - 0.05, slope + 0.05),
            )
            checked.append(claim.check(float(slopes(SIZES, values)[0])))
    closed = {"star": lambda n: n - 1, "complete": lambda n: (n - 1) / math.sqrt(2)}
    for kind, formula in closed.items():
        worst = max(abs(named(kind, n=n).dadao_rate / formula(n) - 1) for n in (4, 9, 64, 300))
        words = {"star": "n - 1", "complete": "(n - 1)/sqrt 2"}[kind]
        checked.append(
            Claim(
                "A9",
                "DADAO",
                f"sqrt(2 chi_1 chi_2) is {words} on a {kind} graph: largest relative error",
                "closed form",
                "derived",
                "exact",
                (None, 1e-9),
            ).check(worst)
        )
    worst = 0.0
    for kind in GRAPHS:
        one = named(kind, n=64).with_total_rate(1.0)
        worst = max(worst, abs(one.edge_rates @ one.effective_resistances() / 63 - 1))
    checked.append(
        Claim(
            "A9",
            "DADAO",
            "The sum over edges of rate times resistance is n - 1: largest relative error",
            "Foster's theorem",
            "derived",
            "exact",
            (None, 1e-9),
        ).check(worst)
    )
    return checked


if __name__ == "__main__":
    main(__file__)
