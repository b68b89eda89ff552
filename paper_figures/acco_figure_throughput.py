"""ACCO, throughput: samples and updates per second against the time of an all-reduce, and against bandwidth on A100 nodes.

Two figures, without a gradient computed: the timelines alone. More samples per second are not more updates per second.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

from decentral.analysis.claims import Claim
from decentral.experiment.figures import canvas, main
from decentral.hardware import HARDWARE, device
from decentral.protocol import AllReduce, Demand, Gradients, Overlapped, Time
from decentral.timing import Cluster, NodeLinks
from decentral.timing.compute import Constant, LogNormal
from decentral.topology import load_network, named

EXPERIMENTS = ()
LISTED = {  # T / micro-batch -> gradients per worker and micro-batch time of DDP, gradients per update of ACCO
    0.0: (1.0, 16), 0.5: (0.8, 16), 1.0: (0.67, None), 2.0: (0.5, 32), 4.0: (0.33, 64), 8.0: (0.2, 129), 16.0: (0.11, 258),
}  # fmt: skip
STEPS = np.arange(1.0, 16.0)  # where ACCO takes a micro-batch more
TIMES = np.unique(np.round([*np.geomspace(0.125, 16, 99), *STEPS, *(STEPS + 1e-6)], 9))
WORDS = {
    "acco": "ACCO",
    "ddp": "DDP, no_sync",
    "overlap": "DDP, overlapping the last backward",
    "released": "DDP as released: all-reduce per micro-batch",
}
LOOKS = {
    "acco": ("#e76300", "-"),
    "ddp": ("#717581", "-"),
    "overlap": ("#3f90da", "--"),
    "released": ("#a96b59", ":"),
}
MODEL_PARAMETERS, BYTES, FLOPS = 7e9, 2, 6  # bf16; FLOPs for each parameter and token, forward and backward
A100, EFFICIENCY = device("A100-SXM4-80GB"), load_network("jean_zay_a100").hardware["efficiency"]
INTER_BYTES_PER_S = HARDWARE["links"]["nics_Gbps"]["OmniPath100"] / 8 * 1e9
GPUS, TOKENS = 32, 2048


class Rates(NamedTuple):
    """In the steady state: gradients (micro-batches) and updates per second, gradients in an update."""

    gradients: float
    updates: float
    per_update: float


def protocol(name: str, collective_s: float, accumulate: int = 2):
    if name == "acco":
        return Overlapped(collective_s=collective_s)
    how = {"ddp": {}, "overlap": {"overlap": 2 / 3}, "released": {"no_sync": False}}[name]
    return AllReduce(accumulate=accumulate, collective_s=collective_s, **how)


def timeline(which, cluster: Cluster, n: int, stop, model_bytes: float = 0.0):
    """The trace of a protocol."""
    meeting = "batches" if isinstance(which, Overlapped) else "gradient"
    network = which.network(
        named("complete", n=n), Demand(meetings=(meeting,), model_bytes=int(model_bytes)), cluster
    )
    return which.timeline(network, stop, 1)


def rates(name: str, cluster: Cluster, n: int, collective_s: float) -> Rates:
    """Over 40 updates and more, after the first five collectives."""
    stop = Time(100 * max(cluster.compute.mean_s, collective_s))
    trace = timeline(protocol(name, collective_s), cluster, n, stop)
    ends = np.flatnonzero(trace.gradients_of_events)
    gradients, per_update = trace.gradients_of_events[ends[6:]], 2 if name == "acco" else 1
    span_s = trace.time_s[ends[-1]] - trace.time_s[ends[5]]
    updates = len(gradients) / per_update
    return Rates(gradients.sum() / span_s, updates / span_s, gradients.sum() / updates)


@cache
def at(name: str, collective_s: float, sigma: float = 0.0) -> Rates:
    """8 workers, micro-batches of a second."""
    compute = LogNormal(1.0, sigma) if sigma else Constant(1.0)
    return rates(name, Cluster(compute), 8, collective_s)


def a100(tokens: int, inter_bytes_per_s: float = INTER_BYTES_PER_S) -> Cluster:
    """Nodes of eight; a micro-batch of so many tokens."""
    seconds = FLOPS * MODEL_PARAMETERS * tokens / (A100.peak_flops("bf16") * EFFICIENCY)
    links = NodeLinks(
        node_size=8, intra_bytes_per_s=A100.scaleup_bytes_per_s, inter_bytes_per_s=inter_bytes_per_s
    )
    return Cluster(Constant(seconds), links)


@cache
def all_reduce_s(gpus: int, inter_bytes_per_s: float = INTER_BYTES_PER_S) -> float:
    """Seconds of an all-reduce of the model's gradient."""
    cluster = a100(TOKENS, inter_bytes_per_s)
    trace = timeline(AllReduce(), cluster, gpus, Gradients(gpus), BYTES * MODEL_PARAMETERS)
    return float(trace.duration_s[-1])


def on_a100(name: str, inter_bytes_per_s: float) -> Rates:
    return rates(name, a100(TOKENS, inter_bytes_per_s), GPUS, all_reduce_s(GPUS, inter_bytes_per_s))


def wait(gpus: int, tokens: int = TOKENS) -> float:
    """Seconds of an all-reduce over those of forward and backward."""
    return all_reduce_s(gpus) / a100(tokens).compute.mean_s


def bound(collective_s):
    """What overlap can gain with two micro-batches in every update."""
    return (2 + collective_s) / np.maximum(2, collective_s)


def draw(runs):
    return {"acco_figure_throughput": _against_collective(), "acco_figure_bandwidth": _against_bandwidth()}


def _legend(figure, axes, title: str) -> None:
    """Above all panels, with the figure's title."""
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper left", ncols=4, columnspacing=1.4, handlelength=1.8,
        title=title, title_fontproperties={"size": 11, "weight": "bold"}, alignment="left",
    )  # fmt: skip


def _against_collective():
    note = (
        "8 workers, micro-batches of a second, steady state; DDP takes two micro-batches per worker and update, ACCO at "
        "least one in each of its two collectives per update. Dots: measured before. Bottom right: beyond T = 1 ACCO's "
        "batch grows, so its gain in samples per second has no bound, and it makes fewer updates than DDP. At a fixed "
        "batch of c micro-batches overlap gains at most (c + T) / max(c, T) <= 2, and with two collectives per update "
        "at most 1.5."
    )
    with canvas("", rows=2, columns=2, panel=(4.5, 3.1), note=note) as (
        figure, ((samples, updates), (batch, gain)),
    ):  # fmt: skip
        for name, (colour, line) in LOOKS.items():
            found = [at(name, T) for T in TIMES]
            look = {"color": colour, "linestyle": line, "label": WORDS[name]}
            samples.plot(TIMES, [each.gradients / 8 for each in found], **look)
            updates.plot(TIMES, [each.updates for each in found], **look)
            if name in ("acco", "ddp"):
                batch.plot(TIMES, [each.per_update for each in found], **look)
        listed = np.array([(T, ddp, per_update or np.nan) for T, (ddp, per_update) in LISTED.items() if T])
        samples.plot(listed[:, 0], listed[:, 1], "o", color=LOOKS["ddp"][0], markersize=4)
        batch.plot(listed[:, 0], listed[:, 2], "o", color=LOOKS["acco"][0], markersize=4)
        for quantity, line, words in (
            ("gradients", "-", "samples per second"),
            ("updates", "--", "updates per second"),
        ):
            ratio = [getattr(at("acco", T), quantity) / getattr(at("ddp", T), quantity) for T in TIMES]
            gain.plot(TIMES, ratio, color=LOOKS["acco"][0], linestyle=line, label=words)
        gain.plot(
            TIMES,
            bound(TIMES),
            color="#404040",
            linewidth=1,
            linestyle=":",
            label="bound of overlap, fixed batch",
        )
        gain.axhline(1, color="#404040", linewidth=0.8)
        for axes, title, label in (
            (samples, "Samples", "micro-batches per worker and second"),
            (updates, "Updates", "updates per second"),
            (batch, "Batch", "micro-batches per update, of 8 workers"),
            (gain, "ACCO over DDP with no_sync", "ratio of rates"),
        ):
            axes.set(
                xscale="log",
                title=title,
                ylabel=label,
                xlabel="all-reduce T (micro-batches)",
                xlim=(0.125, 17),
            )
            axes.set_xticks([0.125, 0.5, 1, 2, 4, 8, 16], ["1/8", "1/2", "1", "2", "4", "8", "16"])
            axes.minorticks_off()
        samples.set(ylim=(0, 1.08))
        updates.set(ylim=(0, 0.55))
        for axes, ticks in ((batch, (8, 16, 32, 64, 128, 256)), (gain, (0.5, 1, 2, 4, 8))):
            axes.set_yscale("log")
            axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        batch.legend(loc="upper left", fontsize=8)
        gain.legend(loc="upper left", fontsize=8)
        _legend(figure, samples, "More samples per second are not more updates per second")
    return figure


def _against_bandwidth():
    flops, nvlink = A100.peak_flops("bf16") / 1e12, A100.scaleup_bytes_per_s / 1e9
    note = (
        f"Llama-2-7B's 7e9 parameters in bf16, {FLOPS} FLOPs for each parameter and token, A100-SXM4-80GB at "
        f"{100 * EFFICIENCY:.0f} % of {flops:g} TFLOP/s; nodes of 8 on NVLink ({nvlink:g} GB/s), "
        f"{INTER_BYTES_PER_S * 8 / 1e9:g} Gb/s between nodes (left), a ring all-reduce without latency. Middle and right: "
        f"{GPUS} GPUs, micro-batches of {TOKENS} tokens, DDP with two of them per update. Device, efficiency and link: "
        "read, see devices.json and jean_zay_a100.toml; the micro-batch is assumed."
    )
    gigabits = np.geomspace(10, 3200, 80)
    with canvas("", columns=3, panel=(4.0, 3.4), note=note) as (
        figure, ((ratio, samples, updates),),
    ):  # fmt: skip
        gpus = [2, 4, 8, 16, 24, 32, 64, 128]
        for tokens, shade in zip(
            (1024, 2048, 4096, 8192), ("#0b3d6b", "#1f6fb5", "#3f90da", "#9cc8ef"), strict=True
        ):
            ratio.plot(
                gpus,
                [wait(n, tokens) for n in gpus],
                marker="o",
                markersize=4,
                color=shade,
                label=f"{tokens} tokens",
            )
        ratio.axhline(4, color="#404040", linewidth=0.8, linestyle=(0, (4, 3)))
        ratio.annotate("figure 4: above 4", (2, 4.4), fontsize=8)
        ratio.set(
            xscale="log", yscale="log", xlabel="GPUs", ylabel="all-reduce / (forward + backward)",
            title="How long to wait", ylim=(0.015, 40),
        )  # fmt: skip
        ratio.set_xticks(gpus, ["" if n == 24 else str(n) for n in gpus])
        ratio.set_xticks([], minor=True)
        ratio.legend(loc="lower right", fontsize=8, title="micro-batch", title_fontsize=8)
        for name, (colour, line) in LOOKS.items():
            found = [on_a100(name, float(g) / 8 * 1e9) for g in gigabits]
            look = {"color": colour, "linestyle": line, "label": WORDS[name]}
            samples.plot(gigabits, [each.gradients * TOKENS / GPUS / 1e3 for each in found], **look)
            updates.plot(gigabits, [each.updates for each in found], **look)
        for axes, title, label in (
            (samples, "Samples", "1000 tokens per second and GPU"),
            (updates, "Updates", "updates per second"),
        ):
            axes.axvline(INTER_BYTES_PER_S * 8 / 1e9, color="#404040", linewidth=0.8, linestyle=(0, (4, 3)))
            axes.set(xscale="log", xlabel="bandwidth between nodes (Gb/s)", ylabel=label, title=title)
            axes.set_xticks([10, 100, 1000], ["10", "100", "1000"])
            axes.set_ylim(0, None)
        _legend(
            figure,
            samples,
            f"7e9 parameters on A100 nodes, and {GPUS} GPUs against the bandwidth between nodes",
        )
    return figure


def claims(runs):
    measured_before, released = "measured before with another implementation", "the released code"

    def claim(statement, accepted, source=measured_before, tag="derived", id="A5"):
        return Claim(id, "ACCO", statement, source, tag, "exact", accepted)

    unit = [at("acco", T).gradients / 8 for T in LISTED]
    worst = max(unit, key=lambda value: abs(value - 1))
    checked = [
        claim(
            "ACCO's gradients per worker and micro-batch time, T from 0 to 16: the furthest from 1",
            (0.99, 1.01),
        ).check(worst)
    ]
    away = max(abs(at("ddp", T).gradients / 8 - listed) for T, (listed, _) in LISTED.items())
    words = "DDP's are 1, .8, .67, .5, .33, .2, .11 at T = 0, .5, 1, 2, 4, 8, 16: largest deviation"
    checked.append(claim(words, (None, 0.005)).check(away))
    for T, (_, listed) in LISTED.items():
        if listed:
            words = f"ACCO's gradients per update of 8 workers at T = {T:g} are {listed}"
            checked.append(claim(words, (0.99 * listed, 1.01 * listed)).check(at("acco", T).per_update))
    note = f"at exactly 1: {at('acco', 1.0).per_update:.4g}, an end of a collective before an end of a micro-batch"
    words = "ACCO's gradients per update at T = 1, compute times with 1 % of spread, are about 30"
    checked.append(claim(words, (27.0, 32.0)).check(at("acco", 1.0, 0.01).per_update, note=note))
    for name, rate in {
        "acco": lambda T: 1 / (2 * max(1, np.ceil(T))), "ddp": lambda T: 1 / (2 + T), "released": lambda T: 1 / (2 + 2 * T)
    }.items():  # fmt: skip
        away = max(abs(at(name, float(T)).updates / rate(T) - 1) for T in TIMES)
        formula = {"acco": "1 / (2 max(1, ceil T))", "ddp": "1 / (2 + T)", "released": "1 / (2 (1 + T))"}[
            name
        ]
        words = f"{WORDS[name]}: updates per second are {formula}: largest relative error"
        checked.append(claim(words, (None, 0.01), released, "code").check(away))
    seconds = {}
    for name in ("acco", "ddp", "released"):
        accumulate = protocol(name, 2.0, 4)
        seconds[name] = timeline(accumulate, Cluster(), 8, Gradients(8000)).horizon_s
    for name, listed in (("ddp", 1.5), ("released", 3.0)):
        words = f"Time to 8000 gradients, T = 2, over ACCO's: {WORDS[name]}, 4 micro-batches per update"
        checked.append(claim(words, (0.99 * listed, 1.01 * listed)).check(seconds[name] / seconds["acco"]))
    ratios = {
        quantity: np.array(
            [getattr(at("acco", T), quantity) / getattr(at("ddp", T), quantity) for T in TIMES]
        )
        for quantity in ("gradients", "updates")
    }
    same = np.array([abs(at("acco", T).per_update / 16 - 1) < 0.01 for T in TIMES])
    rows = (
        ("equal batch (T <= 1): largest gain", (None, 2.0), ratios["updates"][same].max()),
        ("equal batch: largest excess over (c + T) / max(c, 2 T)", (None, 0.005),
         (ratios["updates"] - (2 + TIMES) / np.maximum(2, 2 * TIMES))[same].max()),
        ("T = 16: gain in samples per second", (2.0, None), ratios["gradients"][-1]),
        ("T = 16: gain in updates per second", (None, 1.0), ratios["updates"][-1]),
    )  # fmt: skip
    for words, accepted, value in rows:
        text = f"ACCO over DDP with no_sync and two micro-batches per update, {words}"
        checked.append(claim(text, accepted, "the timing rule").check(float(value)))
    figure_4 = f"figure 4; micro-batch of {TOKENS} tokens assumed"
    beyond = [24, 32, 64, 128]
    checked.append(
        claim("7e9 parameters, A100, 100 Gb/s: all-reduce over forward and backward, smallest beyond 24 GPUs", (4.0, None),
              figure_4, "read", "A8").check(min(map(wait, beyond)), note=f"4096 tokens: {min(wait(n, 4096) for n in beyond):.3g}")
    )  # fmt: skip
    idle = [wait(n) / (1 + wait(n)) for n in beyond]
    words = (
        "The same: share of the time that a GPU is idle in DDP without overlap, one micro-batch per update"
    )
    checked.append(claim(words, (0.5, None), figure_4, "read", "A8").check(min(idle)))
    return checked


if __name__ == "__main__":
    main(__file__)
