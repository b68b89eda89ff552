"""Optical ridge across workers: what may be averaged when each has its own unit, at once and by gossip.

One-shot ridge is computed here; the gossip runs are those of ``experiments/optical/ridge.toml``.
"""

from functools import cache

import numpy as np
from matplotlib.ticker import NullLocator

from decentral.analysis.claims import Claim, over_seeds
from decentral.experiment.figures import Experiment, canvas, main
from decentral.optical.ridge import ridge_across_workers

SHARED = Experiment("optical/ridge")
PRIVATE = Experiment("optical/ridge", ("problem.units=private",))
EXPERIMENTS = (SHARED, PRIVATE)
WORKERS, SPLITS, SIZES = 8, 5, (256, 512, 1024, 2048)
COLOURS = {"shared": "#3f90da", "private": "#bd1f01", "single": "#5a5f66", "central": "#262626"}
ONE_SHOT = {  # words, colour, marker, line
    "central": ("one ridge on all samples", COLOURS["central"], "D", "-"),
    "shared, weights": ("one unit: weights averaged", COLOURS["shared"], "o", "-"),
    "private, predictions": ("own units: predictions averaged", COLOURS["private"], "s", (0, (4, 2))),
    "single": ("a worker alone", COLOURS["single"], "^", "-"),
    "private, weights": ("own units: weights averaged", COLOURS["private"], "o", "-"),
}


@cache
def one_shot(splits: int) -> dict:
    """(method, features) -> test accuracy of each split, per cent."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, labels = load_digits(return_X_y=True)
    found = {}
    for seed in range(splits):
        parts = train_test_split(x, labels, test_size=0.3, random_state=seed, stratify=labels)
        for m in SIZES:
            accuracies = ridge_across_workers(parts[::2], parts[1::2], WORKERS, components=m, seed=seed)
            for name, value in accuracies.items():
                found.setdefault((name, m), []).append(100 * value)
    return {key: np.array(values) for key, values in found.items()}


def gossiped(run, algorithm: str = "gossip", metric: str = "test_accuracy") -> np.ndarray:
    """(seeds, records), per cent."""
    return 100 * run.metric(algorithm, metric)


def draw(runs):
    shared, private = runs[SHARED], runs[PRIVATE]
    seeds = len(shared.manifest["seeds"])
    note = (
        "Digits, four even thresholds a pixel, 8-bit camera, eight workers with an eighth of the samples each. Left: every "
        "worker solves its ridge once (alpha 0.1), then something is averaged; 30 % held out, mean of 5 splits, bars: standard "
        "deviation. Right: 512 features, ridge by asynchronous gossip with momentum on a ring, a full gradient and an exchange "
        "per worker and second; the mean model, scored with every unit (a worker alone: with its own, one unit); mean of "
        f"{seeds} seeds, bands: all. Weights agree in both runs; only behind one matrix do they mean the same to all."
    )
    title = "Weights can be averaged behind one matrix, predictions behind any"
    with canvas(title, columns=2, panel=(5.2, 3.9), note=note) as (figure, ((left, right),)):
        found = one_shot(1 if runs.smoke else SPLITS)
        for name, (words, colour, marker, line) in ONE_SHOT.items():
            values = np.array([found[name, m] for m in SIZES])
            look = {"color": colour, "marker": marker, "linestyle": line, "markersize": 5, "capsize": 2}
            left.errorbar(SIZES, values.mean(1), values.std(1), label=words, **look)
        left.set(
            xscale="log",
            xlabel="features m",
            ylabel="test accuracy (%)",
            ylim=(0, 101),
            title="Once, in closed form",
        )
        left.set_xticks(SIZES, [f"{m:,}" for m in SIZES])
        left.xaxis.set_minor_locator(NullLocator())
        left.legend(fontsize=8, loc="lower right")
        for run, algorithm, metric, words, colour, line in (
            (shared, "gossip", "test_accuracy", "one unit, gossip", COLOURS["shared"], "-"),
            (shared, "alone", "test_accuracy_workers", "a worker alone", COLOURS["single"], "-"),
            (private, "gossip", "test_accuracy", "own units, gossip", COLOURS["private"], "-"),
            (private, "alone", "test_accuracy", "own units, alone: mean of weights", COLOURS["private"], (0, (1, 1.6))),
        ):  # fmt: skip
            at, values = run.metric(algorithm, "time_s").mean(0), gossiped(run, algorithm, metric)
            right.plot(at, values.mean(0), color=colour, linestyle=line, label=words)
            right.fill_between(at, values.min(0), values.max(0), color=colour, alpha=0.13, linewidth=0)
        right.set(xlabel="simulated time (s)", ylim=(0, 101), title="By gossip, in the simulator")
        right.legend(fontsize=8, loc="lower right")
    return figure


def claims(runs):
    found, shared, private = one_shot(1 if runs.smoke else SPLITS), runs[SHARED], runs[PRIVATE]
    prototype = (
        "targets (measured with an independent NumPy prototype); number of features not said: 1,024 here"
    )

    def claim(number, statement, accepted, source=prototype, rule="meets"):
        return Claim(f"OR{number}", "Optical ridge", statement, source, "derived", "convex", accepted, rule)

    m, checked = 1024, []
    for name, words, value in (
        ("central", "one ridge on all samples", 96.7),
        ("shared, weights", "one unit, weights averaged", 96.1),
        ("private, predictions", "own units, predictions averaged", 96.1),
        ("single", "a worker alone", 91.7),
    ):
        statement = f"Eight workers, digits, test accuracy in per cent: {words}, {value} with the prototype"
        checked.append(claim(1, statement, (value - 1.5, value + 1.5)).check(*over_seeds(found[name, m])))
    lost = found["private, weights", m] - found["single", m]
    statement = (
        "Own units, weights averaged (56.6 with the prototype): accuracy minus that of a worker alone, points"
    )
    note = f"{found['private, weights', m].mean():.1f} %"
    checked.append(claim(1, statement, (None, -20), rule="inside").check(*over_seeds(lost), note=note))
    same = found["private, predictions", m] - found["shared, weights", m]
    statement = "Own units cost nothing if predictions are averaged instead: minus weights averaged behind one unit, points"
    checked.append(claim(1, statement, (-1, 1)).check(*over_seeds(same)))
    end = {
        (words, algorithm, metric): gossiped(run, algorithm, metric)[:, -1]
        for words, run in (("shared", shared), ("private", private))
        for algorithm, metric in (("gossip", "test_accuracy"), ("alone", "test_accuracy_workers"))
    }
    theory = "weights behind different matrices have nothing in common"
    gossip_shared, alone = (
        end["shared", "gossip", "test_accuracy"],
        end["shared", "alone", "test_accuracy_workers"],
    )
    gossip_private = end["private", "gossip", "test_accuracy"]
    for words, difference, accepted in (
        ("one unit: gossip minus a worker alone", gossip_shared - alone, (2, None)),
        ("own units: gossip minus a worker alone behind its own unit", gossip_private - alone, (None, -2)),
    ):
        statement = f"Ridge by gossip, accuracy at the end, points: {words}"
        checked.append(claim(2, statement, accepted, theory, "inside").check(*over_seeds(difference)))
    agreed = (
        private.metric("gossip", "consensus_distance")[:, -1]
        / private.metric("alone", "consensus_distance")[:, -1]
    )
    statement = "Own units: the weights do agree: consensus distance of gossip over that of workers alone"
    checked.append(claim(2, statement, (None, 0.1), theory, "inside").check(*over_seeds(agreed)))
    return checked


if __name__ == "__main__":
    main(__file__)
