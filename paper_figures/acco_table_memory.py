"""ACCO, table 1: memory of a replica of 7.5e9 parameters in ten data-parallel methods, and what the number of workers does."""

import numpy as np

from decentral.analysis.claims import Claim
from decentral.cost.memory_tables import data_parallel_bytes
from decentral.experiment.figures import canvas, main

EXPERIMENTS = ()
PARAMETERS, WORKERS, OPTIMIZER_BYTES = 7.5e9, 64, 12
PUBLISHED_GB = {
    "zero_3": 2, "zero_2": 16, "zero_1": 31, "acco": 46, "dpu": 46, "wp": 46, "ddp": 120, "slowmo": 150, "diloco": 150,
    "co2": 180,
}  # fmt: skip
WORDS = {
    "zero_3": "ZeRO-3", "zero_2": "ZeRO-2", "zero_1": "ZeRO-1", "acco": "ACCO", "dpu": "DPU", "wp": "WP", "ddp": "DDP",
    "slowmo": "SlowMo", "diloco": "DiLoCo", "co2": "CO2",
}  # fmt: skip


def gigabytes(method: str, n=WORKERS) -> np.ndarray:
    return data_parallel_bytes(method, PARAMETERS, n, OPTIMIZER_BYTES) / 1e9


def draw(runs):
    note = (
        "7.5e9 parameters; bf16 parameters and gradients, 12 bytes of optimizer for each parameter (Adam's moments and a copy "
        "of the parameters, in float32); no activations. ACCO, DPU and WP keep a buffer for the collective beside ZeRO-1's "
        "2 + 2 + 12 / n bytes. Diamonds: the paper's table 1."
    )
    with canvas("What each worker keeps in memory", columns=2, panel=(4.9, 3.5), note=note) as (
        figure,
        ((left, right),),
    ):
        for place, method in enumerate(PUBLISHED_GB):
            total = float(gigabytes(method))
            everywhere = float(gigabytes(method, np.inf))
            words = ("whole, on every worker", "cut among the workers") if place == 0 else (None, None)
            left.barh(place, everywhere, color="#3f90da", height=0.7, label=words[0])
            left.barh(place, total - everywhere, left=everywhere, color="#ffa90e", height=0.7, label=words[1])
            left.plot(PUBLISHED_GB[method], place, "D", color="#262626", markersize=4)
            reach = max(total, PUBLISHED_GB[method])
            left.text(reach + 4, place, f"{total:.1f}", va="center", fontsize=8)
        left.set_yticks(range(len(WORDS)), [WORDS[method] for method in PUBLISHED_GB])
        left.set_ylim(len(WORDS) - 0.4, -0.6)
        left.grid(axis="y", visible=False)
        left.set(xlabel="GB per worker", xlim=(0, 205), title=f"{WORKERS} workers")
        left.legend(loc="upper right", fontsize=8)
        n = np.geomspace(1, 1024, 200)
        looks = {
            "ddp": "#717581",
            "acco": "#e76300",
            "zero_1": "#3f90da",
            "zero_2": "#832db6",
            "zero_3": "#a96b59",
        }
        for method, colour in looks.items():
            values = gigabytes(method, n)
            right.plot(n, values, color=colour)
            right.annotate(
                WORDS[method], (n[-1], values[-1]), (5, 4), textcoords="offset points", va="center", fontsize=8,
                color=colour,
            )  # fmt: skip
        right.axhline(80, color="#404040", linewidth=0.8, linestyle=(0, (4, 3)))
        right.annotate("80 GB: an A100", (45, 83), fontsize=8)
        right.set(
            xscale="log",
            xlabel="workers n",
            ylabel="GB per worker",
            xlim=(1, 2600),
            ylim=(0, 150),
            title="More workers",
        )
        right.set_xticks([1, 8, 64, 512], ["1", "8", "64", "512"])
        right.minorticks_off()
    return figure


def claims(runs):
    return [
        Claim(
            "A7", "ACCO", f"Memory of a worker, {WORDS[method]}, 64 workers, 7.5e9 parameters, is {listed} GB",
            "table 1", "read", "exact", (listed - 1, listed + 1),
        ).check(float(gigabytes(method)), note="GB")
        for method, listed in PUBLISHED_GB.items()
    ]  # fmt: skip


if __name__ == "__main__":
    main(__file__)
