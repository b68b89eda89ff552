"""ACCO, training at equal samples and equal updates: its test loss beside that of DDP, DPU and WP at three learning rates."""

import numpy as np

from decentral.analysis.claims import Claim, over_seeds
from decentral.analysis.statistics import mean_interval
from decentral.experiment.figures import Experiment, canvas, main

RATES = (0.003, 0.01, 0.03)
FEWER = {0.03: ("seeds=3",)}
RUNS = {
    rate: Experiment(
        "acco/parity",
        (f"algorithm.optimizer.learning_rate={rate}", *FEWER.get(rate, ())),
        f"acco-parity-{rate}",
    )
    for rate in RATES
}
EXPERIMENTS = tuple(RUNS.values())
METHODS = {  # name in the run -> words, colour; best first, as expected
    "ddp": ("DDP", "#717581"),
    "acco": ("ACCO", "#e76300"),
    "wp": ("WP", "#832db6"),
    "dpu-warm": ("DPU, 10 % warm-up", "#92dadd"),
    "dpu": ("DPU", "#3f90da"),
}


def loss(runs, rate: float, name: str) -> np.ndarray:
    """Test loss at the end, ``(seeds,)``."""
    return runs[RUNS[rate]].metric(name, "test_loss")[:, -1]


def at_end(runs, name: str, metric: str) -> float:
    """Of the first seed: all seeds have the same timeline."""
    return float(runs[RUNS[RATES[0]]].metric(name, metric)[0, -1])


def draw(runs):
    seeds, *_, fewest = (len(runs[run].manifest["seeds"]) for run in EXPERIMENTS)
    note = (
        "2-layer causal transformer of width 64 on an order-2 Markov language of 32 tokens, AdamW 0.9 / 0.95, weight decay "
        f"0.1, cosine; mean of {seeds} seeds ({fewest} at {RATES[-1]:g}) with 95 % intervals (Student's t). 4 workers, "
        "micro-batches of 8; 64 sequences in every update: ACCO takes one micro-batch per worker in each of its two "
        "collectives per update, the others two in one. (The very first collective of DPU and WP has one, so they end with "
        "one more update, whose learning rate is 0.) "
        "Equal time is another comparison: see the seconds."
    )
    with canvas("ACCO trains like DDP; gradients one update old do not", columns=3, panel=(4.2, 3.5), note=note) as (
        figure, ((losses, apart, costs),),
    ):  # fmt: skip
        for place, (name, (words, colour)) in enumerate(METHODS.items()):
            found = np.array([mean_interval(loss(runs, rate, name)) for rate in RATES])
            x = np.array(RATES) * 1.06 ** (place - 2)  # side by side
            losses.errorbar(
                x,
                found[:, 0],
                yerr=found[:, 1],
                color=colour,
                marker="o",
                markersize=4,
                capsize=2.5,
                label=words,
            )
            if name != "ddp":
                found = np.array(
                    [mean_interval(loss(runs, rate, name) - loss(runs, rate, "ddp")) for rate in RATES]
                )
                apart.errorbar(
                    x, found[:, 0], yerr=found[:, 1], color=colour, marker="o", markersize=4, capsize=2.5
                )
            seconds = at_end(runs, name, "time_s")
            costs.barh(place, seconds, color=colour, height=0.7)
            text = f"{seconds:,.0f} s, {at_end(runs, name, 'updates'):.0f} updates,\n{at_end(runs, name, 'samples'):,.0f} samples"
            costs.text(1.02 * seconds, place, text, va="center", fontsize=7.5)
        apart.axhspan(-0.03, 0.03, color="#717581", alpha=0.25, linewidth=0)
        apart.axhline(0, color="#404040", linewidth=0.8)
        apart.annotate(
            "within 0.03 of DDP", (0.98, 0.045), xycoords=("axes fraction", "data"), ha="right", fontsize=8
        )
        apart.set_yscale("symlog", linthresh=0.1)
        apart.set_yticks(
            [-0.1, -0.03, 0, 0.03, 0.1, 0.3, 1], ["-0.1", "-0.03", "0", "0.03", "0.1", "0.3", "1"]
        )
        for axes, title, label in (
            (losses, "Test loss", "test loss (nats)"),
            (apart, "Over DDP's", "test loss minus DDP's"),
        ):
            axes.set(xscale="log", xlabel="learning rate", ylabel=label, title=title)
            axes.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
            axes.minorticks_off()
        for axes in (losses, apart):
            axes.margins(x=0.08)
        losses.legend(loc="best", fontsize=8)
        costs.set_yticks(range(len(METHODS)), [words for words, _ in METHODS.values()])
        costs.set_ylim(len(METHODS) - 0.4, -0.6)
        costs.set(xlim=(0, 2600), xlabel="simulated time (s)", title="What it took")
        costs.grid(axis="y", visible=False)
    return figure


def claims(runs):
    before = "measured before with another implementation and language"

    def claim(statement, accepted, rule="inside"):
        return Claim("A4", "ACCO", statement, before, "derived", "toy network", accepted, rule)

    def difference(rate, above, below):
        return over_seeds(loss(runs, rate, above) - loss(runs, rate, below))

    def note(rate):
        return ", ".join(
            f"{words} {loss(runs, rate, name).mean():.3f}" for name, (words, _) in METHODS.items()
        )

    checked = []
    for rate in (0.003, 0.01):
        words = f"Learning rate {rate:g}: test loss of ACCO is DDP's, within 0.03: difference"
        checked.append(
            claim(words, (-0.03, 0.03), "meets").check(*difference(rate, "acco", "ddp"), note=note(rate))
        )
    for rate, least in ((0.003, 0.15), (0.01, 0.3)):
        words = f"Learning rate {rate:g}: test loss of DPU minus DDP's"
        checked.append(claim(words, (least, None)).check(*difference(rate, "dpu", "ddp")))
    for rate in (0.003, 0.01):
        for worse, better in (("wp", "acco"), ("dpu-warm", "wp"), ("dpu", "dpu-warm")):
            words = f"Learning rate {rate:g}: test loss of {METHODS[worse][0]} minus {METHODS[better][0]}'s"
            checked.append(claim(words, (0.0, None)).check(*difference(rate, worse, better)))
    words = "Learning rate 0.03, near the edge: ACCO pays; test loss minus DDP's (0.11 before)"
    checked.append(claim(words, (0.0, None)).check(*difference(0.03, "acco", "ddp"), note=note(0.03)))
    for metric, most in (("samples", 0.001), ("updates", 0.002)):
        ends = [at_end(runs, name, metric) for name in METHODS]
        words = f"Five methods compared at equal {metric}: largest relative difference"
        checked.append(
            Claim("A4", "ACCO", words, "the timing rule", "derived", "exact", (None, most)).check(
                max(ends) / min(ends) - 1
            )
        )
    return checked


if __name__ == "__main__":
    main(__file__)
