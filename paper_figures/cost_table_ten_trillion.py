"""Cost, "a 10-trillion-parameter model would need 8,000 A100s for 17 years": which assumption about the data gives 17."""

import numpy as np

from decentral.analysis.claims import Claim
from decentral.cost.scaling import (
    SUSTAINED_FLOPS,
    ten_trillion_runs,
    training_energy_j,
    training_memory_bytes,
)
from decentral.experiment.figures import canvas, main

EXPERIMENTS = ()
GPU_W = 810  # of an A100 with its share of the node, assumed
RATES = {  # FLOP/s of an A100 -> words, colour
    SUSTAINED_FLOPS[0]: ("140 TFLOP/s each (Narayanan et al.)", "#3f90da"),
    SUSTAINED_FLOPS[1]: ("156, half the peak", "#ffa90e"),
    SUSTAINED_FLOPS[2]: ("312, the peak", "#94a4a2"),
}
YEARS = {rate: [run.years for run in ten_trillion_runs(gpu_flops=rate)] for rate in RATES}
RUNS = ten_trillion_runs()


def draw(runs):
    memory = training_memory_bytes(1e13) / 1e12
    energy = training_energy_j(RUNS[2], GPU_W) / 3.6e15
    note = (
        "8,000 A100, FLOPs alone: FLOP for each parameter and token x parameters x tokens / (GPUs x FLOP/s). The sentence's "
        f"own source was not found. 16 bytes for each parameter are {memory:.0f} TB, of 640 TB in 8,000 x 80 GB. At {GPU_W} W "
        f"for each GPU with its share of the node (assumed) 17 years are {energy:.1f} TWh. Kaplan's and Chinchilla's rules "
        "recalled."
    )
    title = "17 years is one assumption about the data: a token for each parameter"
    with canvas(title, columns=1, panel=(9.4, 4.1), note=note) as (figure, ((axes,),)):
        places = np.arange(len(RUNS))
        for shift, (rate, (words, colour)) in zip((-0.26, 0, 0.26), RATES.items(), strict=True):
            years = np.array(YEARS[rate])
            axes.barh(places + shift, years, color=colour, height=0.24, label=words)
        for place, years in enumerate(YEARS[SUSTAINED_FLOPS[0]]):
            said = f"{years:.2f}" if years < 100 else f"{years:.0f}"
            axes.text(years * 1.08, place - 0.26, f"{said} years", va="center", fontsize=8)
        axes.axvline(17, color="#bd1f01", linewidth=1, linestyle=(0, (4, 3)))
        axes.text(17.6, len(RUNS) - 0.45, "17", color="#bd1f01", fontsize=9)
        axes.set_yticks(
            places,
            [f"{run.assumption}\n{run.tokens:.3g} tokens, {run.flop:.2g} FLOP" for run in RUNS],
            fontsize=8,
        )
        axes.set_ylim(len(RUNS) - 0.3, -0.6)
        axes.set(xscale="log", xlim=(0.1, 2000), xlabel="years")
        axes.grid(axis="y", visible=False)
        axes.legend(loc="upper right", fontsize=8)
    return figure


def claims(runs):
    def one(statement, tag, accepted):
        return Claim(
            "T1",
            "Ten trillion parameters",
            statement,
            "a slide; its source was not found",
            tag,
            "exact",
            accepted,
        )

    years = YEARS[SUSTAINED_FLOPS[0]]
    return [
        one("a model of ten trillion parameters needs 8,000 A100 for 17 years: with 6 FLOP and one token for each parameter, at "
            "140 TFLOP/s: years", "derived", (16.9, 17.1)).check(years[2]),
        one("the same with as many tokens as GPT-3 (a thirtieth): years", "derived", (0.5, 0.52)).check(years[0]),
        one("the same with 20 tokens for each parameter: years", "derived", (330, 350)).check(years[5]),
        one("the same with 376e9 of the parameters active and 1e13 tokens: years", "derived", (0.6, 0.68)).check(years[6]),
    ]  # fmt: skip


if __name__ == "__main__":
    main(__file__)
