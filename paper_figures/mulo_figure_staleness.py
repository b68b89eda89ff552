"""MuLO (µLO) beyond the paper: meta-trained on a trace with late gradients against meta-trained on its synchronous twin."""

import numpy as np

from decentral.analysis.claims import Claim, over_seeds
from decentral.analysis.statistics import mean_interval
from decentral.experiment.figures import Experiment, canvas, main

SIZES = (4, 8, 16)
TRAINED_AT = 8
SPEC = "mulo/stale"
LATE = {n: Experiment(SPEC, (f"topology.n={n}",), folder=f"mulo-stale-{n}") for n in SIZES}
ON_TIME = Experiment(
    SPEC, ("protocol.kind=all_reduce", "problem.batch_size=8", "stop.gradients=1600"), folder="mulo-stale-synchronous"
)  # fmt: skip
EXPERIMENTS = (*LATE.values(), ON_TIME)
SMOKE_EXPERIMENTS = (LATE[TRAINED_AT], ON_TIME)
OPTIMIZERS = {  # words, colour, marker, line
    "stale": ("meta-trained on late gradients", "#bd1f01", "o", "-"),
    "sync": ("meta-trained on the synchronous twin", "#3f90da", "D", "-"),
    "alone": ("µLO of one worker", "#832db6", "^", "-"),
    "adam": ("µAdam, five trials each", "#717581", "s", (0, (4, 2))),
}


def sizes(runs) -> tuple[int, ...]:
    """A look takes the number of workers of the meta-training."""
    return (TRAINED_AT,) if runs.smoke else SIZES


def end(run, name: str) -> np.ndarray:
    """Training loss at the end, per seed."""
    return run.metric(name, "loss")[:, -1]


def difference(run, one: str, other: str) -> np.ndarray:
    """Of the losses at the end, per seed: both have seen the same events and batches."""
    return end(run, one) - end(run, other)


def draw(runs):
    late = runs[LATE[TRAINED_AT]]
    seeds, updates = len(late.manifest["seeds"]), late.metric("stale", "updates")[0, -1]
    note = (
        "A teacher's eight classes, three hidden layers of 32, in µP; gradients of 64 samples at a parameter server that "
        "takes each when it comes: with n workers it is about n - 1 updates old. The synchronous twin: an all-reduce of 8 "
        f"workers, 8 samples each. {updates:.0f} updates, training loss of {seeds} seeds, mean with 95 % intervals "
        f"(Student's t); none of the traces is the one of the meta-training ({TRAINED_AT} workers). Both were meta-trained "
        "alike: 400 outer steps, episodes of 50 to 200 updates, one meta-training each, so the interval is over traces and "
        "starting points, not over meta-trainings. µAdam's rate: the best of five for each setting, on seeds of its own."
    )
    with canvas("", columns=3, panel=(4.2, 3.5), note=note) as (figure, ((left, middle, right),)):
        for axes, run, title in (
            (left, late, f"{TRAINED_AT} workers, late gradients"),
            (middle, runs[ON_TIME], "Synchronous"),
        ):
            for name, (words, colour, marker, line) in OPTIMIZERS.items():
                mean, half = mean_interval(run.metric(name, "loss"))
                at = run.metric(name, "updates").mean(0)
                axes.plot(
                    at,
                    mean,
                    color=colour,
                    marker=marker,
                    linestyle=line,
                    markersize=4,
                    linewidth=1.6,
                    label=words,
                )
                axes.fill_between(at, mean - half, mean + half, color=colour, alpha=0.14, linewidth=0)
            axes.set(xlabel="updates", ylabel="training loss", title=title)
        low, high = (
            f(limit)
            for f, limit in zip((min, max), zip(left.get_ylim(), middle.get_ylim(), strict=True), strict=True)
        )
        left.set_ylim(low, high)
        middle.set_ylim(low, high)
        places = [*[runs[LATE[n]] for n in sizes(runs)], runs[ON_TIME]]
        for shift, rival in enumerate(("sync", "alone", "adam")):
            words, colour, marker, _ = OPTIMIZERS[rival]
            for place, run in enumerate(places):
                mean, half = mean_interval(difference(run, "stale", rival))
                right.errorbar(
                    place + 0.18 * (shift - 1),
                    mean,
                    half,
                    color=colour,
                    marker=marker,
                    capsize=3,
                    linestyle="none",
                )
        right.axhline(0, color="#404040", linewidth=0.8)
        right.set_xticks(
            range(len(places)), [*[f"{n} workers,\nlate" for n in sizes(runs)], "8 workers,\non time"]
        )
        right.set(
            ylabel="loss minus that of the other",
            title="Meta-trained on late gradients, at the end",
            xlim=(-0.5, len(places) - 0.5),
        )
        right.grid(axis="x", visible=False)
        figure.legend(
            *left.get_legend_handles_labels(), loc="outside upper left", ncols=len(OPTIMIZERS), alignment="left",
            title="What it is worth to meet late gradients in meta-training", title_fontproperties={"size": 11, "weight": "bold"},
        )  # fmt: skip
    return figure


def claims(runs):
    source = "no paper: expectation written down before the first run"

    def claim(statement, accepted):
        return Claim("stale", "µLO", statement, source, "derived", "toy network", accepted)

    late, on_time = runs[LATE[TRAINED_AT]], runs[ON_TIME]
    words = (
        "meta-trained on late gradients minus meta-trained on the synchronous twin: loss after 200 updates"
    )
    checked = [
        claim(f"{TRAINED_AT} workers at a server: {words}", (None, 0)).check(*over_seeds(difference(late, "stale", "sync"))),
        claim(f"synchronous, same batches: {words}", (0, None)).check(*over_seeds(difference(on_time, "stale", "sync"))),
    ]  # fmt: skip
    if not runs.smoke:
        statement = f"16 workers at a server, twice as late as in meta-training: {words}"
        checked.append(
            claim(statement, (None, 0)).check(*over_seeds(difference(runs[LATE[16]], "stale", "sync")))
        )
    statement = f"{TRAINED_AT} workers at a server: meta-trained on late gradients minus µAdam, loss after 200 updates"
    return [*checked, claim(statement, (None, 0)).check(*over_seeds(difference(late, "stale", "adam")))]


if __name__ == "__main__":
    main(__file__)
