"""Optical: direct feedback alignment, what of the error is sent and how, four families of models, a ring of workers."""

import numpy as np

from decentral.analysis.claims import Claim, over_seeds
from decentral.experiment.figures import Experiment, canvas, main

DIGITS = Experiment("optical/dfa_digits")
PARITY = Experiment("optical/dfa_parity")
FAMILIES = {  # what it is: run, metric, words, factor
    "transformer": (Experiment("optical/dfa_transformer"), "test_loss", "test loss (nats)", 1),
    "graph network": (Experiment("optical/dfa_graph"), "test_accuracy", "test accuracy (%)", 100),
    "coordinates": (Experiment("optical/dfa_coordinates"), "test_psnr", "PSNR between the points (dB)", 1),
    "recommender": (Experiment("optical/dfa_recommender"), "test_accuracy", "test accuracy (%)", 100),
}
RINGS = {kind: Experiment("optical/dfa_ring", (f"problem.partition={kind}",)) for kind in ("iid", "label")}
EXPERIMENTS = (DIGITS, PARITY, *(family[0] for family in FAMILIES.values()), *RINGS.values())
SMOKE_EXPERIMENTS = (DIGITS, PARITY, FAMILIES["graph network"][0], RINGS["label"])
BLUE, RED, GREY, ORANGE = "#3f90da", "#bd1f01", "#717581", "#e76300"
ROWS = (  # algorithm, words, colour
    ("backprop", "backpropagation", "#404040"),
    ("dfa", "DFA, Gaussian matrices", BLUE),
    ("shared-slice", "one slice for all layers", BLUE),
    ("uniform", "uniform (TinyDFA's)", BLUE),
    ("top-3", "3 largest errors", BLUE),
    ("top-1", "largest error", BLUE),
    ("ternary-0.2", "ternary, threshold 0.2", BLUE),
    ("ternary-0.5", "ternary, threshold 0.5", BLUE),
    ("snr-1", "noise, amplitude SNR 1", ORANGE),
    ("snr-0.3", "noise, SNR 0.3", ORANGE),
    ("snr-0.1", "noise, SNR 0.1", ORANGE),
    ("optical", "optical unit, ternary 0.2", RED),
    ("shallow", "shallow: last layer only", GREY),
    ("intensity", "raw intensity |Be|²", GREY),
)
THREE = (("backprop", "#404040", "o"), ("dfa", BLUE, "D"), ("shallow", GREY, "s"))
RING = (
    ("backprop", "backpropagation", "#404040", "o"),
    ("dfa-shared", "DFA, one unit for all", BLUE, "D"),
    ("dfa-private", "DFA, a unit each", RED, "^"),
    ("shallow", "shallow", GREY, "s"),
)


def last(run, name: str, metric: str = "test_accuracy") -> np.ndarray:
    """At the end of the run, per seed."""
    return run.metric(name, metric)[:, -1]


def shown(runs, experiment: Experiment) -> bool:
    """A look takes one family and one ring: each algorithm compiles for seconds."""
    return not runs.smoke or experiment in SMOKE_EXPERIMENTS


def draw(runs):
    return {
        "optical_figure_dfa": _digits(runs),
        "optical_figure_dfa_families": _families(runs),
        "optical_figure_dfa_ring": _ring(runs),
    }


def _dots(axes, at, values, colour, marker="o"):
    """A small mark for each seed, a large one for their mean."""
    axes.plot(np.full(len(values), at), values, marker, color=colour, markersize=3.5, alpha=0.45)
    axes.plot([at], [values.mean()], marker, color=colour, markersize=7)


def _digits(runs):
    run, parity = runs[DIGITS], runs[PARITY]
    seeds = len(run.manifest["seeds"])
    note = (
        f"Digits: 64-32-32-10 tanh, SGD 0.05 with momentum 0.9, 40 epochs of 39 batches of 32, {seeds} seeds (small marks; large "
        "ones: mean). The unit is a simulated one: four frames of light for a ternary error (two planes, anchor mode), 8-bit. "
        "The shallow control trains the last layer on random ones: what is above it is what feedback teaches. Alignment: cosine "
        "of DFA's slopes and the gradient, on 256 training samples; means and ranges (of SNR 0.1 means alone). Parity of 3 of "
        "20 signs, 128 tanh units."
    )
    with canvas("Fixed random matrices teach, as long as the error keeps its sign", columns=3, panel=(4.3, 4.6), note=note) as (
        figure, ((left, middle, right),),
    ):  # fmt: skip
        rows = [row for row in ROWS if row[0] in run.algorithms]  # a look has a few of them
        for place, (name, _, colour) in enumerate(rows):
            values = 100 * last(run, name)
            left.plot(values, np.full(len(values), -place), "o", color=colour, markersize=3.5, alpha=0.45)
            left.plot([values.mean()], [-place], "o", color=colour, markersize=7)
        left.set_yticks([-place for place in range(len(rows))], [words for _, words, _ in rows])
        left.set_xscale("function", functions=(_stretch, _shrink))
        left.set_xticks([10, 50, 80, 85, 90, 95, 100])
        left.set(xlabel="test accuracy (%), below 80 compressed", title="digits", xlim=(5, 100))
        left.axvline(100 * last(run, "shallow").mean(), color=GREY, linewidth=0.8, linestyle=":")
        left.grid(axis="y", visible=False)
        for name, words, colour in (
            ("dfa", "no noise", BLUE),
            ("snr-1", "SNR 1", ORANGE),
            ("snr-0.1", "SNR 0.1", RED),
        ):
            if name not in run.algorithms:
                continue
            for layer, line in ((0, "-"), (1, "--")):
                cosine = run.metric(name, f"alignment_{layer}")
                epochs = run.metric(name, "gradients").mean(0) / 78
                label = f"{words}, layer {layer + 1}"
                middle.plot(epochs, cosine.mean(0), line, color=colour, linewidth=1.5, label=label)
                if name != "snr-0.1":  # whose range is the whole panel
                    middle.fill_between(
                        epochs, cosine.min(0), cosine.max(0), color=colour, alpha=0.1, linewidth=0
                    )
        middle.axhline(0, color="#404040", linewidth=0.8)
        middle.set(
            xlabel="epochs", ylabel="cosine to the gradient", title="alignment, digits", ylim=(-0.5, 1.05)
        )
        middle.legend(loc="upper left", ncols=2, fontsize=7.5)
        shown = (*THREE, ("intensity", ORANGE, "^"))
        for place, (name, colour, marker) in enumerate(shown):
            _dots(right, place, 100 * last(parity, name), colour, marker)
        right.axhline(50, color="#404040", linewidth=0.8, linestyle=":")
        right.set_xticks(range(4), ["backprop", "DFA", "shallow", "|Be|²"])
        right.set(
            ylabel="test accuracy (%)", title="parity: chance is 50 %", ylim=(40, 102), xlim=(-0.5, 3.5)
        )
        right.grid(axis="x", visible=False)
    return figure


def _stretch(value):
    """Per cent: the last twenty take three quarters of the axis."""
    return np.where(value < 80, value / 12, 80 / 12 + (value - 80))


def _shrink(value):
    return np.where(value < 80 / 12, value * 12, 80 + (value - 80 / 12))


def _families(runs):
    note = (
        "Small models, Adam, one rate for the three of a panel; small: seeds. Transformer: two blocks, next token of a Markov "
        "language, a feedback for each token at the end of each block; lower is better. Graph: 160 nodes in four groups, half of "
        "the classes known. Coordinates: a picture of 48 x 48, asked between its points. Recommender: 60 users, 40 items, tastes "
        "of rank 2."
    )
    with canvas("Four families of models, each with its shallow control", columns=4, panel=(2.9, 3.3), note=note) as (
        figure, (row,),
    ):  # fmt: skip
        for axes, (family, (experiment, metric, words, factor)) in zip(row, FAMILIES.items(), strict=True):
            if not shown(runs, experiment):
                continue
            for place, (name, colour, marker) in enumerate(THREE):
                _dots(axes, place, factor * last(runs[experiment], name, metric), colour, marker)
            axes.set_xticks(range(3), ["backprop", "DFA", "shallow"])
            axes.set(title=family, ylabel=words, xlim=(-0.5, 2.5))
            axes.grid(axis="x", visible=False)
    return figure


def _ring(runs):
    seeds = len(runs[RINGS["label"]].manifest["seeds"])
    note = (
        "Ring of 8, D-PSGD with Metropolis weights; digits, 64-32-32-10 tanh, SGD 0.05 with momentum 0.9, batches of 16, 390 "
        f"rounds, {seeds} seeds: mean and range. The averaged model. By label: each worker has one or two classes."
    )
    title = "On a ring: one unit for all is nearly backpropagation, a unit each costs accuracy"
    with canvas(title, columns=2, panel=(4.4, 3.6), note=note) as (
        figure, (row,),
    ):  # fmt: skip
        for axes, (kind, experiment) in zip(row, RINGS.items(), strict=True):
            if not shown(runs, experiment):
                continue
            run = runs[experiment]
            for name, words, colour, marker in RING:
                accuracy = 100 * run.metric(name, "test_accuracy")
                rounds = run.metric(name, "gradients").mean(0) / 8
                axes.plot(
                    rounds,
                    accuracy.mean(0),
                    "-",
                    marker=marker,
                    color=colour,
                    markersize=4,
                    linewidth=1.5,
                    label=words,
                )
                axes.fill_between(
                    rounds, accuracy.min(0), accuracy.max(0), color=colour, alpha=0.12, linewidth=0
                )
            title = {"iid": "samples dealt at random", "label": "samples dealt by label"}[kind]
            axes.set(xlabel="rounds", title=title, ylim=(60, 100))
        row[0].set_ylabel("test accuracy of the mean (%)")
        row[1].legend(loc="lower right")
    return figure


def claims(runs):
    run, parity = runs[DIGITS], runs[PARITY]
    source = "reference study (measured with an independent implementation)"

    def claim(name, statement, accepted, rule="inside"):
        return Claim(name, "Optical", statement, source, "derived", "toy network", accepted, rule)

    digits = {name: last(run, name) for name in run.algorithms}
    checked = [
        claim(
            "T11", "digits: test accuracy of DFA minus backpropagation's (-0.009 there)", (-0.025, None)
        ).check(*over_seeds(digits["dfa"] - digits["backprop"])),
        claim(
            "T11", "digits: test accuracy of DFA minus the shallow control's (0.100 there)", (0.05, None)
        ).check(*over_seeds(digits["dfa"] - digits["shallow"])),
    ]
    if not runs.smoke:
        checked.append(
            claim("T11", "digits: test accuracy with |Be|² as feedback is chance", (0.05, 0.15)).check(
                *over_seeds(digits["intensity"])
            )
        )
    for name, accepted in (("dfa", (0.97, 1.0)), ("shallow", (0.45, 0.65)), ("intensity", (0.45, 0.6))):
        statement = f"parity of 3 of 20 signs: test accuracy of {name}"
        checked.append(claim("T11", statement, accepted).check(*over_seeds(last(parity, name))))
    for name, statement, accepted in (
        ("ternary-0.2", "ternary error, threshold 0.2 (0.953 there)", (0.93, 0.98)),
        ("snr-1", "noise of amplitude SNR 1 (0.961 there)", (0.94, 0.98)),
        ("snr-0.3", "noise of amplitude SNR 0.3 (0.951 there)", (0.93, 0.98)),
        ("optical", "ternary error through the simulated optical unit", (0.93, 0.98)),
    ):
        if runs.smoke and name not in digits:
            continue
        checked.append(
            claim("T12", f"digits: test accuracy of DFA, {statement}", accepted).check(
                *over_seeds(digits[name])
            )
        )
    lost = digits["snr-0.1"] - digits["shallow"]
    statement = "digits: with noise of SNR 0.1 DFA is below the shallow control: test accuracy minus the control's (0.177 there)"
    checked.append(claim("T12", statement, (None, 0.0)).check(*over_seeds(lost)))
    for layer in (0, 1):
        statement = f"digits: cosine of DFA's slopes and the gradient at the end, layer {layer + 1} (0.65 and 0.77 there)"
        checked.append(
            claim("T13", statement, (0.3, 1.0)).check(*over_seeds(last(run, "dfa", f"alignment_{layer}")))
        )
    for kind, experiment in RINGS.items():
        if not shown(runs, experiment):
            continue
        ring = {name: last(runs[experiment], name) for name, *_ in RING}
        for other, words, accepted in (
            ("dfa-shared", "one for all (-0.014 and -0.012 there)", (-0.03, None)),
            ("shallow", "the shallow control (0.095 and 0.084 there)", (0.05, None)),
        ):
            statement = f"ring of 8, {kind}: test accuracy of DFA with private units minus {words}"
            checked.append(
                claim("T19", statement, accepted).check(*over_seeds(ring["dfa-private"] - ring[other]))
            )
    for family, (experiment, metric, _, _) in FAMILIES.items():
        if not shown(runs, experiment):
            continue
        better = last(runs[experiment], "dfa", metric) - last(runs[experiment], "shallow", metric)
        sign = -1 if metric.endswith("loss") else 1
        statement = f"{family}: DFA is better than its shallow control: {metric} of the one over the other's"
        checked.append(claim("DFA", statement, (0.0, None)).check(*over_seeds(sign * better)))
    return checked


if __name__ == "__main__":
    main(__file__)
