"""MuLO (µLO) as the local optimizer of gossip, local SGD and ACCO, beside tuned Adam and µAdam: losses by samples and seconds."""

import numpy as np

from decentral.analysis.claims import Claim, over_seeds
from decentral.experiment.figures import Experiment, canvas, main

LEARNED, MUP, STANDARD = (Experiment(f"mulo/local_{name}") for name in ("learned", "mup", "standard"))
FREE = Experiment("mulo/local_learned", ("cluster.compute.flops=1e12",), folder="mulo-local_learned-free")
"""Gradients so dear that a learned step beside them costs nothing."""
EXPERIMENTS = (LEARNED, FREE, MUP, STANDARD)
WAYS = {  # words, colour
    "single": ("one worker, batches of 64", "#404040"),
    "gossip": ("gossip", "#3f90da"),
    "local-sgd": ("local SGD, 5 steps", "#e76300"),
    "acco": ("ACCO", "#832db6"),
}
OPTIMIZERS = {  # words: run, marker, line
    "µLO": (FREE, "o", "-"),
    "µAdam, tuned": (MUP, "s", (0, (4, 2))),
    "Adam, tuned": (STANDARD, "^", (0, (1, 1.5))),
}
MARKED = "#bd1f01"


def ways(runs) -> dict[str, tuple[str, str]]:
    """A look takes the first two."""
    return dict(list(WAYS.items())[:2]) if runs.smoke else WAYS


def end(run, name: str) -> np.ndarray:
    """Training loss of the mean model at the end, per seed."""
    return run.metric(name, "loss")[:, -1]


def draw(runs):
    run, charged = runs[FREE], runs[LEARNED]
    seeds = len(run.manifest["seeds"])
    gathered = (
        charged.metric("acco", "samples")[0, -1] / charged.metric("acco", "updates")[0, -1]
        if not runs.smoke
        else 0
    )
    samples = f"{run.metric('gossip', 'samples')[0, -1]:,.0f}"
    note = (
        f"A teacher's eight classes, three hidden layers of 64, four workers on a ring, batches of 16 each: {samples} "
        f"samples in all; training loss of the mean model, {seeds} seeds (bands and small marks: each). One worker: an "
        "all-reduce of the same four gradients in every step. µLO is taken as it was meta-trained, for one worker with "
        "batches of 64; every Adam has the best of five rates for its own way, on a seed of its own. Left and middle: "
        "gradients so dear that a learned step costs nothing beside them; ACCO's updates are of 128 samples, so half as "
        "many, and the grey line takes as large ones without delay. Right: simulated A100 in float32, instant links, a "
        "learned step charged to whoever computes it, Adam's part of the gradient. ACCO never waits: while it computes one "
        f"learned step it gathers {gathered:,.0f} samples for the next."
    )
    with canvas("", columns=3, panel=(4.2, 3.6), note=note) as (figure, ((left, middle, right),)):
        if not runs.smoke:
            _curve(left, run, "large", "samples", "#9a9a9a", (0, (1, 1)), "one worker, batches of 128")
        for way, (words, colour) in ways(runs).items():
            _curve(left, run, way, "samples", colour, "-", words)
        left.set(xlabel="samples", ylabel="training loss", title="µLO")
        left.legend()
        for place, (words, (of, marker, line)) in enumerate(OPTIMIZERS.items()):
            colours = (MARKED, "#717581", "#b4b8bf")
            for way_place, way in enumerate(ways(runs)):
                values, at = end(runs[of], way), way_place + 0.2 * (place - 1)
                middle.plot(
                    np.full(len(values), at), values, marker, color=colours[place], markersize=3.5, alpha=0.5
                )
                middle.plot(
                    at,
                    values.mean(),
                    marker,
                    color=colours[place],
                    markersize=7,
                    label=words if not way_place else None,
                )
            for way in ("single", "gossip"):
                of = LEARNED if of is FREE else of
                time = runs[of].metric(way, "time_s").mean(0) / gradient_s(runs)
                right.plot(
                    time[1:], runs[of].metric(way, "loss").mean(0)[1:], color=WAYS[way][1], linestyle=line,
                    marker=marker, markersize=3.5, linewidth=1.4, label=f"{words}, {WAYS[way][0].split(',')[0]}",
                )  # fmt: skip
        if not runs.smoke:
            middle.annotate(
                f"{end(charged, 'acco').mean():.2f} with its\nsteps charged ↑", (2.8, 0.98), xycoords=("data", "axes fraction"),
                color=MARKED, fontsize=8, ha="center", va="top",
            )  # fmt: skip
        middle.set_xticks(range(len(WAYS)), ["one worker", "gossip", "local SGD", "ACCO"])
        middle.set(
            ylabel="training loss at the end",
            title="After equally many samples",
            xlim=(-0.5, len(WAYS) - 0.5),
        )
        middle.grid(axis="x", visible=False)
        middle.margins(y=0.25)
        middle.legend(loc="lower center", ncols=3, columnspacing=1.0, fontsize=8)
        right.set(xscale="log", xlabel="simulated time (gradients of a worker)", title="Its own step charged")
        right.set_ylim(top=1.45 * right.get_ylim()[1])
        right.legend(fontsize=7.5, loc="upper right")
        figure.suptitle(
            "Learned steps among asynchronous workers: fine by samples, dear by seconds",
            x=0.01,
            ha="left",
            fontsize=11,
            fontweight="bold",
        )
    return figure


def gradient_s(runs) -> float:
    """Simulated seconds of a gradient: those of a step of Adam on one of the workers that take it together."""
    run = runs[MUP]
    return float(run.metric("single", "time_s")[0, -1] / run.metric("single", "gradients")[0, -1] * 4)


def _curve(axes, run, name, x, colour, line, words):
    at, loss = run.metric(name, x).mean(0), run.metric(name, "loss")
    axes.plot(at, loss.mean(0), color=colour, linestyle=line, linewidth=1.6, label=words)
    axes.fill_between(at, loss.min(0), loss.max(0), color=colour, alpha=0.13, linewidth=0)


def claims(runs):
    run = runs[FREE]
    source = "reference study (expected there, not run)"
    checked = []
    for way, single, words in (
        ("gossip", "single", "gossip"),
        ("local-sgd", "single", "local SGD with 5 local steps"),
        ("acco", "large", "ACCO (against as many updates of as many samples)"),
    ):
        statement = f"µLO as local optimizer, 4 workers, {words}: loss minus that of one worker after equally many samples"
        claim = Claim("U9", "µLO", statement, source, "derived", "toy network", (None, 0.1))
        if way in ways(runs):
            checked.append(claim.check(*over_seeds(end(run, way) - end(run, single))))
    if not runs.smoke:
        charged, words = (
            runs[LEARNED],
            "the same of ACCO where learned steps are charged, so that it makes fewer",
        )
        claim = Claim("U9", "µLO", words, source, "derived", "toy network", (None, 0.1))
        updates = charged.metric("acco", "updates")[0, -1]
        difference = over_seeds(end(charged, "acco") - end(charged, "large"))
        checked.append(claim.check(*difference, note=f"{updates:.0f} updates"))
    return checked


if __name__ == "__main__":
    main(__file__)
