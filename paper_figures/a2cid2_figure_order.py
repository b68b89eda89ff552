"""A2CiD2, the released code's order of flow and exchange beside the equations': slower, and the mean drifts."""

import numpy as np

from decentral.analysis.claims import Claim
from decentral.experiment.figures import Experiment, canvas, main

RING = Experiment("a2cid2/released_order")
EXPERIMENTS = (RING,)
LOOKS = {
    "released": ("#e76300", (0, (4, 1.5)), "as in the released code"),
    "equations": ("#bd1f01", "-", "as in the equations"),
}


def drift(run, name: str) -> np.ndarray:
    """Squared drift of the workers' mean since the start, (seeds, records): its distance to c is sqrt(2 (f - f*)).

    The mean starts far from c beside its drift, so it stays on its side.
    """
    away = np.sqrt(2 * np.maximum(run.metric(name, "suboptimality"), 0.0))
    return (away - away[:, :1]) ** 2


def draw(runs):
    run = runs[RING]
    note = (
        "Ring of 16, gossip alone from N(0, 1), one exchange per worker and unit of time. Median and "
        f"quartiles of {len(run.manifest['seeds'])} seeds. "
        "With the equations' order the mean moves by rounding only."
    )
    with canvas(
        "A2CiD2: what the released order of events costs", columns=2, panel=(4.2, 3.4), note=note
    ) as (figure, (row,)):
        for name in run.algorithms:
            colour, line, label = LOOKS[name]
            time_s = run.metric(name, "time_s")[0]
            for axes, values in zip(
                row,
                (run.metric(name, "consensus_distance"), np.maximum(drift(run, name), 1e-36)),
                strict=True,
            ):
                low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
                shown = slice(1, None) if axes is row[1] else slice(None)
                axes.plot(time_s[shown], middle[shown], color=colour, linestyle=line, label=label)
                axes.fill_between(
                    time_s[shown], low[shown], high[shown], color=colour, alpha=0.18, linewidth=0
                )
        row[0].set(
            yscale="log",
            xlabel="time (units of one gradient)",
            ylabel=r"mean of $|x_i - \bar{x}|^2$",
            title="Consensus distance",
        )
        row[1].set(
            yscale="log",
            xlabel="time (units of one gradient)",
            ylabel=r"$|\bar{x}(t) - \bar{x}(0)|^2$",
            title="Drift of the mean",
            ylim=(1e-37, 1e-3),
        )
        row[0].legend(loc="lower left")
    return figure


def claims(runs):
    run = runs[RING]
    listed = {"released": (1.3e-4, 9e-9), "equations": (4.6e-7, None)}
    checked = []
    for name, (consensus, squared) in listed.items():
        accepted = consensus / 10, consensus * 10
        claim = Claim(
            "C9",
            "A2CiD2",
            f"Events {LOOKS[name][2]}: consensus distance at T = 60, median of the seeds "
            f"({consensus:g} within ten)",
            "the authors' code; values computed independently",
            "code",
            "convex",
            accepted,
        )
        checked.append(claim.check(np.median(run.metric(name, "consensus_distance")[:, -1])))
        accepted = (None, 1e-29) if squared is None else (squared / 10, squared * 10)
        words = "5e-33, at most 1e-29" if squared is None else f"{squared:g} within ten"
        claim = Claim(
            "C9",
            "A2CiD2",
            f"Events {LOOKS[name][2]}: squared drift of the mean at T = 60, median of the seeds ({words})",
            "the authors' code; values computed independently",
            "code",
            "convex",
            accepted,
        )
        checked.append(claim.check(np.median(drift(run, name)[:, -1])))
    return checked


if __name__ == "__main__":
    main(__file__)
