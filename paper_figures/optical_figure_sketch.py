"""Optical units, sketches: what random projections are worth as compressors of gossip, and when they are none."""

import jax
import numpy as np

from decentral.algorithm import COMPRESSORS
from decentral.analysis.claims import Claim, over_seeds
from decentral.experiment.figures import Experiment, canvas, main

GOSSIP = Experiment("optical/sketch_gossip")
LIGHT = Experiment("optical/sketch_light")
EXPERIMENTS = (GOSSIP, LIGHT)
D = 1000
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
DRAWS = 200
COMPRESSED = {  # words, colour, marker, arguments
    "top-k": ("top-k", "#404040", "o", {"kind": "top_k"}),
    "rand-k": ("rand-k", "#717581", "s", {"kind": "random_k"}),
    "hadamard": ("Walsh–Hadamard", "#3f90da", "D", {"kind": "sketch", "projector": "hadamard"}),
    "count-sketch": ("count sketch", "#94a4a2", "v", {"kind": "sketch", "projector": "count_sketch"}),
    "gaussian": ("Gaussian", "#bd1f01", "^", {"kind": "sketch", "projector": "gaussian"}),
}
THEORY = {
    "rand-k": lambda k: k / D,
    "hadamard": lambda k: 1 / (1 + (D - 1) * (1024 - k) / (k * 1023)),
    "count-sketch": lambda k: 1 / (1 + (D - 1) / k),
    "gaussian": lambda k: k / (k + D + 1),
}
FRESH = ("rand-k", "hadamard", "count-sketch", "gaussian")
LINES = {  # run, name: words, colour, line, width
    (GOSSIP, "mismatch"): ("receiver has another matrix, γ = 0.01", "#b9ac70", "-", 1.8),
    (GOSSIP, "fixed"): ("one fixed matrix, γ = 0.2", "#3f90da", "-", 3.5),
    (LIGHT, "light-fixed"): ("… of an optical unit", "#12447a", (0, (4, 2)), 1.3),
    (GOSSIP, "rand-k"): ("rand-k", "#a9adb2", "-", 1.6),
    (GOSSIP, "top-k"): ("top-k, γ = 0.2", "#404040", (0, (5, 2)), 1.4),
    (GOSSIP, "exact"): ("all numbers, γ = 1", "#404040", "-", 1.4),
}
POINTS = {  # on one line, so that each has records of its own
    (GOSSIP, "gaussian"): ("new matrix for every message", "#bd1f01", "^"),
    (GOSSIP, "fixed-signs"): ("one matrix, random signs", "#e7a300", "o"),
    (GOSSIP, "fixed-region"): ("one matrix, new rows", "#1b7f5c", "s"),
    (LIGHT, "light-signs"): ("optical unit, random signs", "#832db6", "D"),
    (LIGHT, "light-region"): ("optical unit, new region", "#d05fd0", "v"),
}


def vector() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (D,))


def measured_delta(name: str, share: float) -> float:
    """1 - mean ||C(x) - x||^2 / ||x||^2 over draws, x Gaussian."""
    arguments = dict(COMPRESSED[name][-1], fraction=share)
    compressor, x = COMPRESSORS[arguments.pop("kind")](**arguments), vector()

    def error(key):
        return ((compressor.encode(x, key).dense() - x) ** 2).sum() / (x**2).sum()

    return 1 - float(jax.jit(jax.vmap(error))(jax.random.split(jax.random.key(1), DRAWS)).mean())


def left_over(run, name: str) -> np.ndarray:
    """Consensus distance over that of the start, ``(seeds, records)``."""
    distance = run.metric(name, "consensus_distance")
    return distance / distance[:, :1]


def draw(runs):
    seeds = [len(runs[each].manifest["seeds"]) for each in EXPERIMENTS]
    note = (
        f"d = {D:,}. Left: mean of {DRAWS} draws on one Gaussian vector; lines: closed forms. Top-k depends on the vector: on "
        "heavy tails it keeps nearly everything. Right: CHOCO on a ring of 8 without gradients, k = d/10, γ = 0.06 where nothing "
        f"else is said; seeds: {seeds[0]}, of simulated optical units {seeds[1]} (8-bit camera, 6 bits and a sign a number: 24 "
        "frames a message, decoded with the calibrated matrix: d numbers for every pixel, to be stored). Random signs or a new "
        "region make a fixed matrix a compressor, and not a better one than rand-k, which needs no matrix."
    )
    with canvas("", columns=2, panel=(5.0, 3.9), note=note) as (figure, ((left, right),)):
        _deltas(left, SHARES[3:5] if runs.smoke else SHARES)
        _curves(right, runs)
    return figure


def _deltas(axes, measured) -> None:
    shares = np.geomspace(SHARES[0], SHARES[-1], 100)
    for name, (words, colour, marker, _) in COMPRESSED.items():
        values = [measured_delta(name, share) / share for share in measured]
        axes.plot(
            measured, values, marker, color=colour, markersize=5.5, label=words, zorder=3, clip_on=False
        )
        if name in THEORY:
            axes.plot(
                shares, [THEORY[name](share * D) / share for share in shares], color=colour, linewidth=1
            )
        else:
            axes.plot(measured, values, color=colour, linewidth=1, linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="share of the numbers sent, k/d", ylim=(0.6, 14))
    axes.set_ylabel("δ over k/d")
    axes.set_xticks(SHARES, [f"{100 * share:g} %" for share in SHARES])
    axes.set_yticks([0.7, 1, 2, 5, 10], ["0.7", "1", "2", "5", "10"])
    axes.set_yticks([], minor=True)
    axes.set_xticks([], minor=True)
    axes.set_title("A random projection is no better than rand-k", loc="left")
    axes.legend(loc="upper right")


def _curves(axes, runs) -> None:
    def curve(experiment, name):
        run = runs[experiment]
        return run.metric(name, "gradients").mean(0) / 8, left_over(run, name).mean(0)

    for key, (words, colour, line, width) in LINES.items():
        rounds, left = curve(*key)
        axes.plot(rounds, left, color=colour, linestyle=line, linewidth=width, label=words)
    for place, (key, (words, colour, marker)) in enumerate(POINTS.items()):
        rounds, left = (values[place + 1 :: len(POINTS)] for values in curve(*key))
        axes.plot(rounds, left, marker, color=colour, markersize=5, label=words, zorder=3, clip_on=False)
    last = float(curve(GOSSIP, "exact")[0][-1])
    axes.set(
        yscale="log",
        ylim=(1e-9, 1e5),
        xlim=(0, last),
        xlabel="rounds",
        ylabel="consensus error over that of the start",
    )
    axes.axhline(0.9, color="#8a8f94", linewidth=0.7, zorder=0)
    axes.annotate(
        "1 − k/d, for ever", (last, 0.9), (-3, 5), textcoords="offset points", ha="right", color="#12447a"
    )
    axes.set_title("A fixed one never gets there; with another's it diverges", loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)


def claims(runs):
    gossip, light = runs[GOSSIP], runs[LIGHT]

    def claim(target, statement, accepted, source, tier="convex", tag="derived"):
        return Claim(target, "Optical units", statement, source, tag, tier, accepted)

    def end(run, name):
        return left_over(run, name)[:, -1]

    checked = []
    closed = "closed form, and measured with an independent implementation"
    for name in FRESH:
        theory = THEORY[name](100)
        statement = (
            f"k/d = 0.1, d = 1,000: δ of {COMPRESSED[name][0]}, mean of {DRAWS} draws, over {theory:.4f}"
        )
        checked.append(
            claim("T17", statement, (0.95, 1.05), closed, "exact").check(measured_delta(name, 0.1) / theory)
        )
    best = max(measured_delta(name, 0.1) for name in FRESH if name != "rand-k") / measured_delta(
        "rand-k", 0.1
    )
    statement = "k/d = 0.1: the best δ of a random projection over that of rand-k"
    checked.append(claim("T17", statement, (None, 1.05), closed, "exact").check(best))
    source = "targets (measured with an independent implementation)"
    for run, name, words in (
        (gossip, "fixed", "a fixed Gaussian matrix"),
        (light, "light-fixed", "an optical unit's matrix"),
    ):
        statement = f"CHOCO, ring of 8, k/d = 0.1, 400 rounds: consensus error with {words}, over 1 - k/d"
        tolerance = (0.99, 1.01) if run is gossip else (0.97, 1.03)
        measured, interval = over_seeds(end(run, name) / 0.9)
        checked.append(
            claim("T18", statement, tolerance, source).check(measured, None, note=_seeds(interval))
        )
    for run, name, words in (
        (gossip, "gaussian", "a new Gaussian matrix for every message"),
        (gossip, "fixed-signs", "a fixed one and random signs"),
        (gossip, "fixed-region", "a fixed one and new rows"),
        (light, "light-signs", "an optical unit and random signs"),
        (light, "light-region", "an optical unit and a new region"),
    ):
        statement = f"the same with {words}: consensus error"
        checked.append(claim("T18", statement, (None, 5e-3), source).check(*over_seeds(end(run, name))))
    slower = end(gossip, "gaussian").mean() / end(gossip, "rand-k").mean()
    statement = (
        "the same: consensus error of new Gaussian matrices over that of rand-k, not better than half of it"
    )
    checked.append(claim("T18", statement, (0.5, None), source).check(slower))
    for name, most in (("exact", 1e-20), ("top-k", 1e-10), ("rand-k", 5e-3)):
        checked.append(
            claim("T18", f"the same: consensus error of {name}", (None, most), source).check(
                *over_seeds(end(gossip, name))
            )
        )
    growth = np.log10(end(gossip, "mismatch"))
    statement = "the same: a receiver with another matrix than the sender's diverges, γ = 0.01: log10 of the consensus error"
    checked.append(
        claim("T18", statement, (10, None), source).check(float(growth.min()), note="of the slowest seed")
    )
    return checked


def _seeds(interval) -> str:
    low, high = interval
    return f"95 % interval over the seeds {low:.4f} to {high:.4f}" if np.isfinite(low) else ""


if __name__ == "__main__":
    main(__file__)
