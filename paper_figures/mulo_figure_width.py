"""MuLO (µLO), figure 3: learned optimizers at other widths than those of meta-training, beside Adam and µAdam tuned at one."""

import numpy as np

from decentral.analysis.claims import Claim, over_seeds, ratio_over_seeds
from decentral.analysis.statistics import mean_interval
from decentral.experiment.figures import Experiment, canvas, main

WIDTHS = (16, 32, 64, 128, 256, 512)
TUNED_AT = 32
SHOWN = 128
"""The width whose losses are drawn against simulated seconds."""
RATES = {"mup": (0.003, 0.01, 0.03, 0.1, 0.3), "standard": (0.001, 0.003, 0.01, 0.03, 0.1)}
COLOURS = {"mup": "#bd1f01", "standard": "#3f90da"}
WORDS = {
    ("mup", "learned"): "µLO",
    ("standard", "learned"): "LO, standard",
    ("mup", "adam"): "µAdam",
    ("standard", "adam"): "Adam",
    ("mup", "hand-made"): "hand-made, µP",
    ("standard", "hand-made"): "hand-made, standard",
}
STYLES = {"learned": ("-", "o"), "hand-made": ("-", "D"), "adam": ((0, (4, 2)), "s")}


def experiment(parametrization: str, width: int) -> Experiment:
    parameters = 2 * width**2 + 27 * width + 8
    overrides = (
        f"problem.hidden=[{width}, {width}, {width}]",
        f"cluster.compute.flops={6.0 * 32 * parameters}",
    )
    return Experiment(
        f"mulo/width_{parametrization}", overrides, folder=f"mulo-width-{parametrization}-{width}"
    )


CASES = {
    (parametrization, width): experiment(parametrization, width)
    for parametrization in RATES
    for width in WIDTHS
}
EXPERIMENTS = tuple(CASES.values())
SMOKE_EXPERIMENTS = tuple(run for (_, width), run in CASES.items() if width == TUNED_AT)


def widths(runs) -> tuple[int, ...]:
    """A look takes one."""
    return (TUNED_AT,) if runs.smoke else WIDTHS


def loss(runs, parametrization: str, width: int, name: str, step: int) -> np.ndarray:
    """Training loss after 50, 100, 150 or 200 steps, per seed; NaN where it is not finite."""
    found = runs[CASES[parametrization, width]].metric(name, "loss")[:, step // 50]
    return np.where(np.isfinite(found), found, np.nan)


def tuned(runs, parametrization: str, step: int) -> str:
    """Adam at the rate that is best at the small width after so many steps: five trials."""
    names = [f"adam-{rate}" for rate in RATES[parametrization]]
    means = [loss(runs, parametrization, TUNED_AT, name, step).mean() for name in names]
    return names[int(np.nanargmin(means))]


def name_of(runs, parametrization: str, kind: str, step: int) -> str:
    return tuned(runs, parametrization, step) if kind == "adam" else kind


def over_widths(runs, parametrization: str, kind: str, step: int) -> np.ndarray:
    """``(widths, seeds)``."""
    name = name_of(runs, parametrization, kind, step)
    return np.array([loss(runs, parametrization, width, name, step) for width in widths(runs)])


def draw(runs):
    seeds = len(runs[CASES["mup", TUNED_AT]].manifest["seeds"])
    best = {of: tuned(runs, of, 200).removeprefix("adam-") for of in RATES}
    note = (
        "Three hidden layers of ReLU on a teacher's eight classes, 16 inputs, batches of 64: training loss, mean and range "
        f"of {seeds} seeds. µLO and LO: 16 hidden units, meta-trained with one recipe at widths 16, 32 and 64, for at most "
        "200 steps; not tuned here. Hand-made: a network of four hidden units that says momentum / root mean square, no "
        f"meta-training. Adam and µAdam: the best of five rates at width {TUNED_AT} (after 200 steps {best['standard']} and "
        f"{best['mup']}), kept at the others. Seconds: simulated A100 in float32, two workers with half of each batch; every "
        "learned step is charged with its own operations and bytes, an Adam step is part of the gradient. At such batches a "
        "learned step costs many gradients."
    )
    with canvas("", rows=2, columns=3, panel=(4.1, 3.2), note=note) as (
        figure,
        ((at_50, at_200, time), (hand, *rates)),
    ):
        for axes, step in ((at_50, 50), (at_200, 200)):
            for kind in ("learned", "adam"):
                for parametrization in RATES:
                    _curve(axes, runs, parametrization, kind, step)
            axes.set_title(f"After {step} steps")
        for parametrization in RATES:
            _curve(hand, runs, parametrization, "hand-made", 100)
        hand.set_title("Hand-made, after 100 steps")
        for axes in (at_50, at_200, hand):
            axes.set(xscale="log", xlabel="width", ylabel="training loss")
            axes.set_xticks(widths(runs), [str(width) for width in widths(runs)])
            axes.minorticks_off()
        _times(time, runs)
        for axes, parametrization in zip(rates, ("standard", "mup"), strict=True):
            _rates(axes, runs, parametrization)
        hand.legend()
        figure.legend(
            *at_200.get_legend_handles_labels(), loc="outside upper left", ncols=4, alignment="left",
            title="In µP a learned optimizer and a learning rate keep what they are worth at other widths",
            title_fontproperties={"size": 11, "weight": "bold"},
        )  # fmt: skip
    return figure


def _curve(axes, runs, parametrization, kind, step):
    values = over_widths(runs, parametrization, kind, step)
    line, marker = STYLES[kind]
    colour = COLOURS[parametrization]
    axes.plot(
        widths(runs), values.mean(1), color=colour, linestyle=line, marker=marker, markersize=4.5, linewidth=1.6,
        label=WORDS[parametrization, kind],
    )  # fmt: skip
    axes.fill_between(widths(runs), values.min(1), values.max(1), color=colour, alpha=0.12, linewidth=0)


def _times(axes, runs):
    width = widths(runs)[-1] if runs.smoke else SHOWN
    for kind in ("learned", "adam"):
        for parametrization in RATES:
            run, name = runs[CASES[parametrization, width]], name_of(runs, parametrization, kind, 200)
            line, marker = STYLES[kind]
            step_s = (
                runs[CASES[parametrization, width]]
                .metric(tuned(runs, parametrization, 200), "time_s")
                .mean(0)[-1]
                / 200
            )
            times = run.metric(name, "time_s").mean(0)[1:] / step_s
            axes.plot(
                times, run.metric(name, "loss").mean(0)[1:], color=COLOURS[parametrization], linestyle=line, marker=marker,
                markersize=4.5, linewidth=1.6,
            )  # fmt: skip
    axes.set(
        xscale="log",
        xlabel="simulated time (steps of Adam)",
        ylabel="training loss",
        title=f"Width {width}, 50 to 200 steps",
    )


def _rates(axes, runs, parametrization):
    for shade, width in zip(np.linspace(0.25, 1, len(widths(runs))), widths(runs), strict=True):
        values = [loss(runs, parametrization, width, f"adam-{rate}", 200) for rate in RATES[parametrization]]
        mean, _ = mean_interval(np.array(values), axis=1)
        axes.plot(
            RATES[parametrization],
            mean,
            color=COLOURS[parametrization],
            alpha=shade,
            marker="s",
            markersize=3.5,
            label=str(width),
        )
    axes.set(
        xscale="log", xlabel="learning rate", ylim=(None, min(axes.get_ylim()[1], 2.3)),
        title=f"{WORDS[parametrization, 'adam']}, after 200 steps",
    )  # fmt: skip
    axes.legend(title="width", fontsize=7.5, ncols=2)


def claims(runs):
    source = "reference study (measured with an independent implementation, one meta-training)"
    here, last, small = widths(runs), widths(runs)[-1], widths(runs)[-1] if runs.smoke else 64

    def claim(target, statement, accepted, where=source, tag="derived"):
        return Claim(target, "µLO", statement, where, tag, "toy network", accepted)

    def at(parametrization, kind, step, width):
        return over_widths(runs, parametrization, kind, step)[here.index(width)]

    def ratio(parametrization, kind, step):
        return ratio_over_seeds(at(parametrization, kind, step, last), at(parametrization, kind, step, small))

    checked = []
    for step, there in ((50, "0.048"), (200, "0.054")):
        means = over_widths(runs, "mup", "learned", step)[here.index(small) :].mean(1)
        statement = f"µLO is flat in the width: largest minus smallest loss, widths 64 to 512, {step} steps ({there} there)"
        checked.append(
            claim("U5", statement, (0, 0.08)).check(float(np.ptp(means)), note="of means over the seeds")
        )
    for parametrization, kind, step, accepted, words in (
        ("mup", "learned", 200, (None, 1.05), "µLO loses nothing: loss at width 512 over that at 64, 200 steps (0.95 there)"),
        ("standard", "learned", 200, (1.3, None), "LO in the standard parametrization: the same (1.42 there)"),
        ("mup", "hand-made", 100, (None, 1.05), "hand-made, µP: loss at 512 over that at 64, 100 steps (0.89 there)"),
        ("standard", "hand-made", 100, (1.3, None), "hand-made, standard: the same (1.61 there)"),
    ):  # fmt: skip
        target = "U3" if kind == "hand-made" else "U5"
        checked.append(claim(target, words, accepted).check(*ratio(parametrization, kind, step)))
    if not runs.smoke:
        rises = np.diff(over_widths(runs, "standard", "learned", 200).mean(1)[-3:])
        statement = (
            "LO in the standard parametrization: least rise of the loss, width 128 to 256 to 512, 200 steps"
        )
        checked.append(
            claim("U5", statement, (0, None)).check(float(rises.min()), note="of means over the seeds")
        )
    for rival, parametrization in (("µAdam", "mup"), ("Adam", "standard")):
        statement = f"µLO is better than {rival} tuned at width {TUNED_AT}: difference of losses at width 512, 200 steps"
        better = at("mup", "learned", 200, last) - at(parametrization, "adam", 200, last)
        where = "mean ranks in Tab. 1 of the paper, for 1,000 steps and more and meta-training of 5,000"
        checked.append(claim("Tab. 1", statement, (None, 0), where, "read").check(*over_seeds(better)))
    return checked


if __name__ == "__main__":
    main(__file__)
