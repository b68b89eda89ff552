"""The regime map: who reaches a loss first, by message time, spread of the workers' speeds, and how the data lie.

Nine methods, each tuned in every cell with the same number of trials. Where a synchronous method wins, the map shows it.
"""

import json
from dataclasses import dataclass

import numpy as np

from decentral.analysis.claims import Claim
from decentral.analysis.plots import colours
from decentral.analysis.statistics import paired_times, time_to_target
from decentral.experiment.figures import Experiment, canvas, main
from decentral.topology import load_network

RATIOS = (0.01, 0.1, 1.0, 10.0)
"""Time of a message over the mean time of a gradient."""
SPREADS = (1, 2, 4, 8)
"""Speed of the fastest worker over that of the slowest, for good."""
PARTITIONS = {"iid": "Shuffled data", "dirichlet": "Dirichlet 0.1: few classes per worker"}
WORKERS, GRADIENT_S, MESSAGE_BYTES, TARGET = 16, 0.1, 2600, 0.15
HORIZON_S = {0.01: 15.0, 0.1: 15.0, 1.0: 30.0, 10.0: 150.0}
ASYNCHRONOUS = ("ad-psgd", "gossip", "a2cid2", "ringmaster")
SYNCHRONOUS = ("all-reduce", "balanced", "m-synchronous", "local-sgd", "d-psgd")
RESCALED = ("local-sgd", "ad-psgd", "gossip", "a2cid2")

SHADE = 0.55
NETWORKS = ("nvlink_node", "a40_25gbe", "jean_zay_a100", "wan_five", "home_broadband")
"""Fastest links first."""
TOKENS, FLOPS_PER_TOKEN, BYTES = 16_384, 6, 2
"""Of a dense transformer: tokens of a gradient on one device (assumed), FLOPs per parameter and token (forward and backward;
Kaplan et al. 2020, recalled), bytes per parameter of a message (bfloat16). Its size cancels."""


# -- cells -------------------------------------------------------------------------------------------------------------


def speeds(spread: float) -> list[float]:
    """Of the workers: evenly spaced on a log scale, of mean 1, so that all cells have the same gradients per second.

    Neighbours on the graph are not neighbours in speed.
    """
    values = float(spread) ** (np.arange(WORKERS) / (WORKERS - 1))
    return (values / values.mean())[(7 * np.arange(WORKERS)) % WORKERS].round(9).tolist()


def cell(ratio: float, spread: float, partition: str, *, rescale: bool) -> Experiment:
    """One cell: its place on the map, and what a user who knows it would set.

    AD-PSGD sends as many messages as the network cards carry, one per gradient at most. Local SGD computes for 8 mean
    gradients, or for as many as its all-reduce takes time (1.9 messages); faster workers take more steps in it. The horizon is
    longer where messages are slow.

    Args:
        ratio: of ``RATIOS``.
        spread: of ``SPREADS``.
        partition: of ``PARTITIONS``.
        rescale: whether methods that count gradients of fast workers more often weigh them down for it, if they can.
    """
    local_s = max(8, round(2 * ratio)) * GRADIENT_S
    overrides = [
        f"problem.partition={partition}",
        f"cluster.links.bandwidth_bytes_per_s={MESSAGE_BYTES / (ratio * GRADIENT_S)!r}",
        f"cluster.speeds={speeds(spread)}",
        f"stop.time_s={HORIZON_S[ratio]}",
        f"algorithm.ad-psgd.protocol.messages_per_gradient={min(1.0, 0.25 / ratio)!r}",
        f"algorithm.local-sgd.protocol.round_s={local_s!r}",
    ]
    if not rescale:
        overrides += [f"algorithm.{name}.rescale=none" for name in RESCALED]
    plain = "-plain" if partition != "iid" and not rescale else ""
    return Experiment(
        "regime_map", tuple(overrides), folder=f"regime_map-{partition}-{ratio:g}-{spread:g}{plain}"
    )


CELLS = {
    # Where all see the same data there is nothing to correct, and correcting costs.
    (partition, ratio, spread): cell(ratio, spread, partition, rescale=partition != "iid")
    for partition in PARTITIONS
    for spread in SPREADS
    for ratio in RATIOS
}
PLAIN = cell(0.01, 8, "dirichlet", rescale=False)
"""Not on the map: what the correction does."""
EXPERIMENTS = (*CELLS.values(), PLAIN)
SMOKE_EXPERIMENTS = (CELLS["dirichlet", 0.01, 1],)
"""Enough to see that everything works: runs are mostly compiling."""


def times(run, name: str) -> np.ndarray:
    """Simulated seconds to the target, ``(seeds,)``; inf for a seed that did not get there."""
    return np.asarray(time_to_target(run.metric(name, "time_s"), run.metric(name, "loss"), TARGET))


def on_edge(run, names) -> list[str]:
    """Those of the methods whose best learning rate is the smallest or largest tried."""
    tuned = json.loads((run.path / "tuning.json").read_text(encoding="utf-8"))["algorithms"]
    return [name for name in names if tuned[name]["edge"]]


def ranking(run, names) -> list[str]:
    """Best first: those that reached the target on more seeds, then by the mean time of these seeds."""
    found = {name: times(run, name) for name in names}

    def rank(name):
        reached = found[name][np.isfinite(found[name])]
        return len(found[name]) - len(reached), reached.mean() if len(reached) else np.inf

    return sorted(names, key=rank)


@dataclass(frozen=True)
class Outcome:
    """Who won a cell.

    Attributes:
        names: the winner, and the runner-up where chance cannot be excluded; empty: nobody was there on every seed.
        time_s: the winner's mean.
        margin: time of the best of the other camp over the winner's; inf: it was not there on every seed.
        edge: the learning rate of the winner, or of the runner-up, is on the edge of its grid.
    """

    names: tuple[str, ...]
    time_s: float = np.inf
    margin: float = np.inf
    edge: bool = False

    @property
    def asynchronous(self) -> bool:
        """The winner's camp."""
        return self.names[0] in ASYNCHRONOUS


def outcome(run) -> Outcome:
    """Compare the methods of a cell. Who missed the target on a seed does not win."""
    first, second = ranking(run, run.algorithms)[:2]
    best, next_best = times(run, first), times(run, second)
    if not np.isfinite(best).all():
        return Outcome(())
    interval = paired_times(best, next_best).ratio_interval
    alone = not np.isfinite(next_best).all() or (interval is not None and interval[1] < 1)
    names = (first,) if alone else (first, second)
    others = [name for name in run.algorithms if (name in ASYNCHRONOUS) != (first in ASYNCHRONOUS)]
    margin = times(run, ranking(run, others)[0]).mean() / best.mean()
    return Outcome(names, float(best.mean()), float(margin), bool(on_edge(run, (first, second))))


# -- real clusters -----------------------------------------------------------------------------------------------------


def seconds_per_byte(network) -> float:
    """Mean over who gossips with whom, both ways; workers of a node share its network card, all sending at once."""
    links = network.links
    if links["kind"] == "nodes":
        inside = network.n <= links["node_size"]
        return 1 / links["intra_bytes_per_s"] if inside else links["node_size"] / links["inter_bytes_per_s"]
    i, j = np.array([(*edge, *edge[::-1]) for edge in network.graph.edges]).reshape(-1, 2).T
    if links["kind"] == "sites":
        rates = np.broadcast_to(links["bandwidth_bytes_per_s"], (network.n, network.n))[i, j]
    else:
        rates = np.minimum(links["up_bytes_per_s"][i], links["down_bytes_per_s"][j])
    return float((1 / rates).mean())


def place(name: str) -> tuple[float, float]:
    """``(message time / gradient time, speed spread)`` of a real cluster for a dense transformer; see ``TOKENS``.

    Latencies are left out, as on the map. A cluster's file names one device, so its workers are equally fast.
    """
    network = load_network(name)
    hardware = network.hardware
    # Both the message and the gradient are proportional to the parameters.
    flops_per_s = hardware["peak_flops_per_s"] * hardware["efficiency"] * hardware["devices_per_worker"]
    gradient_s = FLOPS_PER_TOKEN * TOKENS * hardware["devices_per_worker"] / flops_per_s
    return BYTES * seconds_per_byte(network) / gradient_s, 1.0


# -- the figure --------------------------------------------------------------------------------------------------------


def draw(runs):
    shown = {
        where: outcome(runs[experiment])
        for where, experiment in CELLS.items()
        if not runs.smoke or experiment in SMOKE_EXPERIMENTS
    }
    names = [*SYNCHRONOUS, *ASYNCHRONOUS]
    look = colours(names)
    labels = [f"{k} {name} ({place(name)[0]:.3g})" for k, name in enumerate(NETWORKS, 1)]
    note = (
        f"Time to loss {TARGET:g} of the averaged model in simulated seconds, mean of the seeds; softmax regression on digits, "
        f"{WORKERS} workers with together {WORKERS / GRADIENT_S:g} gradients/s in every cell; no latency, message time = bytes / "
        "bandwidth. Every method with the best of its five learning rates. Two colours: the paired 95 % interval of winner over "
        "runner-up does not exclude chance. Below the time: that of the best of the other camp (A: asynchronous, S: synchronous) "
        "over the winner's. Star: a best learning rate on the edge of its grid. Circles: real clusters, their ratio in "
        f"brackets, for a dense transformer of any size, {TOKENS:,} tokens per gradient and device (assumed), "
        f"{FLOPS_PER_TOKEN} FLOPs per parameter and token (recalled), {BYTES} bytes per parameter, workers that share a network "
        "card sending at once; their files name one device each, so spread 1; arrow: beyond the axis. "
        + "; ".join(labels) + "."
    )  # fmt: skip
    with canvas("Who is first at the target, and when", columns=2, panel=(5.2, 4.9), note=note) as (
        figure,
        (row,),
    ):
        for axes, (partition, title) in zip(row, PARTITIONS.items(), strict=True):
            for (where, ratio, spread), found in shown.items():
                if where == partition:
                    _cell(axes, np.log10(ratio), np.log2(spread), found, look)
            _clusters(axes)
            axes.set_xticks(np.log10(RATIOS), [f"{ratio:g}" for ratio in RATIOS])
            axes.set_yticks(np.log2(SPREADS), [str(spread) for spread in SPREADS])
            axes.set(
                xlim=(-2.5, 1.5),
                ylim=(-0.5, 3.5),
                xlabel="message time / gradient time",
                ylabel="fastest / slowest worker",
                title=title,
            )
            axes.grid(visible=False)
        figure.legend(
            handles=[
                _patch(look[name], f"{name} ({'A' if name in ASYNCHRONOUS else 'S'})") for name in names
            ],
            loc="outside upper right",
            ncols=5,
            columnspacing=1.2,
        )
    return figure


def _patch(colour, label):
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, alpha=SHADE, label=label)


def _cell(axes, x, y, found, look):
    corners = np.array([(x - 0.5, y - 0.5), (x - 0.5, y + 0.5), (x + 0.5, y + 0.5), (x + 0.5, y - 0.5)])
    halves = [corners] if len(found.names) < 2 else [corners[:3], corners[[0, 2, 3]]]
    for name, half in zip(found.names, halves, strict=False):
        axes.fill(*half.T, color=look[name], alpha=SHADE, linewidth=0)
    axes.fill(*corners.T, facecolor="none", edgecolor="white", linewidth=1.5)
    if not found.names:
        axes.text(x, y + 0.2, "nobody", ha="center", va="center", fontsize=7.5, color="#6b6b6b")
        return
    words = " ≈\n".join(found.names)
    axes.text(x, y + 0.27, words, ha="center", va="center", fontsize=7.5, fontweight="bold", linespacing=1.0)
    camp = "S" if found.asynchronous else "A"
    other = f"{camp} ×{found.margin:.3g}" if np.isfinite(found.margin) else f"{camp} not there"
    axes.text(
        x, y - 0.26, f"{found.time_s:.2g} s{' *' if found.edge else ''}\n{other}",
        ha="center", va="center", fontsize=7.5, linespacing=1.15,
    )  # fmt: skip


def _clusters(axes):
    right, places = 1.5, [(np.log10(ratio), np.log2(spread)) for ratio, spread in map(place, NETWORKS)]
    beyond = sum(x > right for x, _ in places)
    for number, (x, y) in enumerate(places, 1):
        if x > right:  # at the edge, one beside the other
            x = right - 0.09 - 0.21 * (len(NETWORKS) - number)
        axes.plot(x, y, "o", markersize=8.5, color="white", markeredgecolor="#262626", markeredgewidth=0.9)
        axes.text(x, y - 0.005, str(number), ha="center", va="center", fontsize=6.5)
    if beyond:
        arrow = {"arrowstyle": "-|>", "color": "#262626"}
        axes.annotate("", (right + 0.06, 0), (right - 0.01, 0), annotation_clip=False, arrowprops=arrow)


# -- claims ------------------------------------------------------------------------------------------------------------


def claims(runs):
    """What theory says, written down before the map was made."""
    fast_equal, fast_spread = ("iid", 0.01, 1), ("iid", 0.01, 8)
    slow_equal, skewed = ("iid", 10.0, 1), ("dirichlet", 0.01, 8)
    waits_less = ("balanced", "m-synchronous", "local-sgd", *ASYNCHRONOUS)
    sends_less = ("local-sgd", "ad-psgd", "gossip", "a2cid2")
    bias = "gossip and AD-PSGD minimise sum r_i f_i, r_i how often worker i takes a gradient"
    # id, statement, source, accepted range, rule, (cell, methods) above, (cell, methods) below
    table = [
        ("M1", "Fast links, equal speeds, iid: best asynchronous over best synchronous",
         "with equal compute times nothing beats the mean of everyone's fresh gradients (Tyurin, Richtárik 2023, recalled)",
         (1.0, None), "inside", (fast_equal, ASYNCHRONOUS), (fast_equal, SYNCHRONOUS)),
        ("M2", "Fast links, iid: all-reduce at spread 8 over all-reduce at spread 1",
         "a round takes the slowest worker's 0.34 s, against 0.12 s for the last of 16 equal ones",
         (2.4, 3.4), "inside", (fast_spread, ("all-reduce",)), (fast_equal, ("all-reduce",))),
        ("M3", "Fast links, iid, spread 8: all-reduce over the best that does not wait for everyone",
         "all-reduce takes 16 gradients in the slowest worker's 0.34 s, workers that never wait 54",
         (1.5, None), "inside", (fast_spread, ("all-reduce",)), (fast_spread, waits_less)),
        ("M4", "Fast links, iid: gossip at spread 8 over gossip at spread 1",
         "nobody waits, and there are as many gradients per second",
         (None, 1.5), "inside", (fast_spread, ("gossip",)), (fast_equal, ("gossip",))),
        ("M5", "Slow links, equal speeds, iid: all-reduce over the best that communicates less than once per gradient",
         "at ratio 10 all-reduce spends 1.8 of 1.9 s per gradient on messages",
         (2.0, None), "inside", (slow_equal, ("all-reduce",)), (slow_equal, sends_less)),
        ("M6", "Slow links, equal speeds, iid: Ringmaster over all-reduce",
         "the server's network card passes one gradient per second, all-reduce 16 in 1.9 s",
         (2.0, None), "inside", (slow_equal, ("ringmaster",)), (slow_equal, ("all-reduce",))),
        ("M7", "Fast links, spread 8, Dirichlet: m-synchronous over all-reduce",
         "the slowest four workers' data never count",
         (1.0, None), "inside", (skewed, ("m-synchronous",)), (skewed, ("all-reduce",))),
        ("M8", "Fast links, spread 8, Dirichlet: gossip without rescaling over gossip with it",
         bias, (1.0, None), "inside", (PLAIN, ("gossip",)), (skewed, ("gossip",))),
        ("M8", "Fast links, spread 8, Dirichlet: AD-PSGD without rescaling over AD-PSGD with it",
         bias, (1.0, None), "inside", (PLAIN, ("ad-psgd",)), (skewed, ("ad-psgd",))),
        ("M9", "Fast links, equal speeds, iid: gossip over A2CiD2, within 10 %",
         "workers that see the same data hardly drift apart, and on the exponential graph chi_1 is not much above chi_2",
         (0.9, 1.1), "meets", (fast_equal, ("gossip",)), (fast_equal, ("a2cid2",))),
    ]  # fmt: skip
    checked = []
    for id, words, source, accepted, rule, *sides in table:
        sides = [(CELLS.get(where, where), names) for where, names in sides]
        if runs.smoke and any(experiment not in SMOKE_EXPERIMENTS for experiment, _ in sides):
            continue
        claim = Claim(
            id, "Regime map", f"{words}, time to target", source, "derived", "convex", accepted, rule
        )
        both = [(runs[experiment], names) for experiment, names in sides]
        both = [(run, [name for name in names if name in run.algorithms]) for run, names in both]
        if all(names for _, names in both):
            checked.append(compare(claim, *both))
    return checked


def compare(claim, above, below):
    """Check a ratio of times to the target, paired over the seeds; of several methods the one that ranks first counts.

    Where one did not get there on some seed there is a bound, which may decide.

    Args:
        claim: what is said of the ratio.
        above: ``(run, names of methods)``.
        below: the same.
    """
    chosen, found, ends, edges = [], [], [], []
    for run, names in (above, below):
        chosen.append(ranking(run, names)[0])
        found.append(times(run, chosen[-1]))
        ends.append(run.metric(chosen[-1], "time_s")[:, -1])
        edges += on_edge(run, names)
    pair = paired_times(*found, ends=tuple(ends))
    undecided = f"best learning rate on the edge of its grid: {', '.join(edges)}" if edges else ""
    note = " over ".join(chosen)
    if pair.ratio is not None:
        return claim.check(pair.ratio, pair.ratio_interval, undecided=undecided, note=note)
    low, high = claim.range
    if pair.at_least is not None:
        measured, bound = pair.at_least, "at least"
        decided = measured > high or (measured >= low and np.isinf(high))
    elif pair.at_most is not None:
        measured, bound = pair.at_most, "at most"
        decided = measured < low or (measured <= high and np.isinf(low))
    else:
        measured, bound, decided = np.nan, "unknown", False
    undecided = undecided or ("" if decided else pair.reason)
    return claim.check(measured, undecided=undecided, note=f"{note}; {bound}: {pair.reason}")


if __name__ == "__main__":
    main(__file__)
