"""A2CiD2, table of accuracies: what the ring costs as the number of workers grows and the number of steps shrinks."""

import numpy as np

from decentral.analysis.claims import Claim, over_seeds
from decentral.analysis.plots import colours
from decentral.analysis.statistics import mean_interval
from decentral.experiment.figures import Experiment, canvas, main

EPOCH = 1437 / 8  # gradients of one worker in an epoch: training samples over the batch size
SIZES = (16, 64)
ROWS = {  # label -> graph, algorithm
    "all-reduce": ("ring", "all-reduce"),
    "complete, gossip": ("complete", "gossip-1"),
    "ring, gossip, rate 1": ("ring", "gossip-1"),
    "ring, A2CiD2, rate 1": ("ring", "a2cid2-1"),
    "ring, gossip, rate 2": ("ring", "gossip-2"),
    "ring, A2CiD2, rate 2": ("ring", "a2cid2-2"),
}


def experiment(graph: str, n: int) -> Experiment:
    steps = 60 * EPOCH / n
    schedule = "algorithm.optimizer.schedule"
    overrides = (
        f"topology.kind={graph}",
        f"topology.n={n}",
        f"stop.time_s={steps:.0f}.0",
        f"{schedule}.warmup_steps={5 * EPOCH / n:.0f}",
        f"{schedule}.factor={8 * n / 256}",
        f"{schedule}.milestones=[{steps / 2:.0f}, {3 * steps / 4:.0f}]",
    )
    return Experiment("a2cid2/accuracy", overrides, folder=f"a2cid2-accuracy-{graph}-{n}")


CASES = {(graph, n): experiment(graph, n) for graph in ("ring", "complete") for n in SIZES}
EXPERIMENTS = tuple(CASES.values())
SMOKE_EXPERIMENTS = tuple(CASES[graph, SIZES[0]] for graph in ("ring", "complete"))


def accuracy(runs, label: str, n: int) -> np.ndarray:
    """Of the averaged model at the end, per seed."""
    graph, algorithm = ROWS[label]
    return runs[CASES[graph, n]].metric(algorithm, "test_accuracy")[:, -1]


def draw(runs):
    note = (
        "Digits, 64-32-10 network, batches of 8, momentum 0.9, Goyal's schedule from 0.3, 60 epochs shared among the workers; "
        "test accuracy of the averaged model. Mean of the seeds with 95 % intervals (Student's t)."
    )
    blue, red = colours(["gossip"])["gossip"], colours(["a2cid2"])["a2cid2"]
    with canvas("What a sparse graph costs", columns=2, panel=(4.4, 2.9), note=note) as (figure, (row,)):
        for axes, n in zip(row, SIZES[:1] if runs.smoke else SIZES, strict=False):
            for place, label in enumerate(ROWS):
                mean, half = mean_interval(accuracy(runs, label, n))
                colour = red if "A2CiD2" in label else blue if "gossip" in label else "#404040"
                axes.errorbar(100 * mean, place, xerr=100 * half, color=colour, marker="o", capsize=3)
                axes.annotate(
                    f"{100 * mean:.1f}",
                    (100 * mean, place),
                    (0, 5),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7.5,
                )
            axes.set_yticks(range(len(ROWS)), ROWS)
            axes.set_ylim(len(ROWS) - 0.5, -0.7)
            axes.set(xlabel="test accuracy (%)", title=f"{n} workers, {60 * EPOCH / n:.0f} gradients each")
            axes.margins(x=0.1)
        row[1].set_yticklabels([])
    return figure


def claims(runs):
    where = "ImageNet and CIFAR-10 tables (high confidence in the order, the numbers are not comparable)"

    def claim(statement: str, accepted):
        return Claim("C7", "A2CiD2", statement, where, "recalled", "toy network", accepted)

    means = [accuracy(runs, label, 16).mean() for label in ROWS]
    checked = [
        claim("16 workers lose nothing: best minus worst accuracy of six methods", (0.0, 0.01)).check(
            float(max(means) - min(means)), note="of means over the seeds"
        )
    ]
    steps = (
        (
            "all-reduce",
            "complete, gossip",
            "64 workers: all-reduce is at least as good as the complete graph",
        ),
        ("complete, gossip", "ring, gossip, rate 2", "64 workers: complete is better than a ring at rate 2"),
        ("ring, gossip, rate 2", "ring, gossip, rate 1", "64 workers, ring: rate 2 is better than rate 1"),
        (
            "ring, A2CiD2, rate 1",
            "ring, gossip, rate 1",
            "64 workers, ring, rate 1: A2CiD2 is better than gossip",
        ),
        (
            "ring, A2CiD2, rate 2",
            "ring, gossip, rate 2",
            "64 workers, ring, rate 2: A2CiD2 is better than gossip",
        ),
    )
    for better, worse, words in () if runs.smoke else steps:
        difference = accuracy(runs, better, 64) - accuracy(runs, worse, 64)
        checked.append(
            claim(f"{words}: difference of accuracies", (0.0, None)).check(*over_seeds(difference))
        )
    return checked


if __name__ == "__main__":
    main(__file__)
