"""PETRA, throughput: J times vs non-pipelined model parallelism, and what is left of that vs schedules that are pipelined."""

from functools import cache

import numpy as np

from decentral.analysis.claims import Claim
from decentral.cost import pipeline as closed
from decentral.engine.trace import StageShape
from decentral.experiment.figures import canvas, main
from decentral.protocol import Demand, Gradients, Pipeline
from decentral.timing import Cluster, Links
from decentral.topology import named

EXPERIMENTS = ()
DEPTHS = (2, 4, 8, 16, 32)
SCHEDULES = {  # label -> what runs, colour, line
    "PETRA, two streams": (lambda stages: Pipeline(), "#bd1f01", "-"),
    "PETRA, two streams, window J": (lambda stages: Pipeline(window=stages), "#bd1f01", ":"),
    "PETRA, one stream": (lambda stages: Pipeline(streams=1), "#e76300", "-"),
    "backprop, one batch at a time": (lambda stages: Pipeline(schedule="backprop"), "#404040", "-"),
    "reversible backprop, the same": (lambda stages: REVERSIBLE, "#8c8c8c", "--"),
}
REVERSIBLE = Pipeline(schedule="backprop", reconstruct=1.0, turn=4.0)
"""All J stages reconstruct, as the paper counts: 4 J."""
MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
PIPES = {4: "#3f90da", 8: "#832db6", 16: "#ffa90e"}
LATENCIES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
SLOWER = (1.0, 1.5, 2.0, 3.0, 4.0)
MODEL_PARALLEL = "vs non-pipelined model parallelism"


@cache
def rate(
    protocol: Pipeline, stages: int, latency: float = 0.0, slow: int | None = None, factor: float = 1.0
) -> float:
    """Batches in the time of a forward pass, read off a timeline: over whole windows or flushes, after the first third."""
    shapes = (
        StageShape("stem", "", "x"), *[StageShape("block", "x", "x")] * (stages - 2), StageShape("head", "x", ""),
    )  # fmt: skip
    speeds = tuple(1 / factor if j == slow else 1.0 for j in range(stages))
    cluster = Cluster(speeds=speeds, links=Links(latency_s=latency))
    graph = named("pipelines", n=stages, stages=stages)
    demand = Demand(meetings=("stages",), stages=shapes, local_steps=protocol.micro_batches or 1)
    network = protocol.network(graph, demand, cluster)
    window = 2 * stages - 1 if protocol.window in (None, "unlimited") else int(protocol.window)
    cycle = protocol.micro_batches or window
    trace = protocol.timeline(network, Gradients(1 + 12 * max(cycle, stages)), seed=0)
    turns = trace.time_s[[trace.ops[code].instruction == "turn" for code in trace.op]]
    first = len(turns) // 3
    last = first + (len(turns) - 1 - first) // cycle * cycle
    return (last - first) / (turns[last] - turns[first])


def speed_up(protocol: Pipeline, stages: int, over: Pipeline) -> float:
    return rate(protocol, stages) / rate(over, stages)


def over_1f1b(micro_batches: int, stages: int) -> float:
    """PETRA's rate over 1F1B's, a stage doing one pass at a time on both sides."""
    flushes = Pipeline(schedule="1f1b", micro_batches=micro_batches)
    return speed_up(Pipeline(streams=1), stages, flushes)


def windowed(latency: float, window: int, stages: int = 8) -> float:
    """Closed form: the slowest pass, or the window by a batch's way up and down."""
    return min(1 / 3, window / (4 * stages - 1 + 2 * (stages - 1) * latency))


def draw(runs):
    note = (
        "Unit of time: a forward pass of a stage; backward 2, reconstruction 1, the last stage's turn 3. Markers are read off "
        "timelines, lines are closed forms. J x is a comparison vs non-pipelined model parallelism, where one of J stages "
        "works at a time; 1F1B and zero-bubble keep all of them busy. They are compared at equal batch and memory, a stage "
        "doing one pass at a time on both sides. Zero-bubble: closed form only (no bubble, no reconstruction)."
    )
    with canvas("PETRA's throughput", rows=2, columns=3, panel=(3.9, 3.2), note=note) as (figure, grid):
        (rates, ratios, rivals), (latency, slow, flops) = grid
        for label, (protocol, colour, line) in SCHEDULES.items():
            values = np.array([rate(protocol(stages), stages) for stages in DEPTHS])
            look = {"color": colour, "linestyle": line, "marker": "o", "markersize": 3.5}
            rates.plot(DEPTHS, values, label=label, **look)
            if label.startswith("PETRA"):
                slow_way = [rate(Pipeline(schedule="backprop"), stages) for stages in DEPTHS]
                ratios.plot(DEPTHS, values / slow_way, label=label, **look)
        against = [speed_up(Pipeline(), stages, REVERSIBLE) for stages in DEPTHS]
        ratios.plot(
            DEPTHS, against, color="#8c8c8c", linestyle="--", marker="o", markersize=3.5,
            label="two streams,\nvs reversible backprop",
        )  # fmt: skip
        ratios.plot(
            DEPTHS, DEPTHS, color="#262626", linewidth=0.8, linestyle=(0, (1, 2)), label="J", zorder=1
        )
        for axes in (rates, ratios):
            axes.set(xscale="log", yscale="log", xlabel="stages J")
            axes.set_xticks(DEPTHS, map(str, DEPTHS))
            axes.set_xticks([], minor=True)
            axes.margins(x=0.04)
        rates.set(
            ylabel="batches per unit of time", ylim=(0.0035, 0.55), title="Rate of a pipeline of J stages"
        )
        rates.legend(loc="lower left", fontsize=7.5)
        ratios.set(ylabel="speed-up", title=f"Speed-up {MODEL_PARALLEL}")
        ratios.set_yticks(DEPTHS, map(str, DEPTHS))
        ratios.set_yticks([], minor=True)
        ratios.legend(loc="upper left", fontsize=7.5)

        fine = np.geomspace(1, 128, 60)
        for stages, colour in PIPES.items():
            rivals.plot(
                fine,
                [closed.petra_over_pipeline(m, stages) for m in fine],
                color=colour,
                label=f"J = {stages}",
            )
            rivals.plot(
                MICRO_BATCHES, [over_1f1b(m, stages) for m in MICRO_BATCHES], "o", color=colour, markersize=3.5
            )  # fmt: skip
        rivals.axhline(1, color="#262626", linewidth=0.8)
        rivals.axhline(0.75, color="#717581", linestyle="--", linewidth=1.2)
        rivals.text(1.05, 0.72, "vs zero-bubble: 3/4", fontsize=8, color="#404040", va="top")
        rivals.text(1.05, 1.04, "PETRA is faster", fontsize=8, color="#404040", va="bottom")
        rivals.text(1.05, 0.97, "slower", fontsize=8, color="#404040", va="top")
        rivals.set(
            xscale="log", yscale="log", xlabel="micro-batches of an update, m", ylabel="PETRA / 1F1B",
            title="PETRA vs 1F1B, equal batch", ylim=(0.6, 15),
        )  # fmt: skip
        rivals.set_xticks(MICRO_BATCHES, map(str, MICRO_BATCHES))
        rivals.set_yticks([0.75, 1, 2, 4, 8], ["0.75", "1", "2", "4", "8"])
        rivals.set_xticks([], minor=True)
        rivals.set_yticks([], minor=True)
        rivals.margins(x=0.03)
        rivals.legend(loc="upper right")

        fine = np.linspace(0, 8, 200)
        for window, colour in ((15, "#bd1f01"), (40, "#832db6")):
            words = f"window {window}" + (" = 2J - 1" if window == 15 else "")
            latency.plot(fine, [windowed(c, window) for c in fine], color=colour, label=words)
            latency.plot(
                LATENCIES, [rate(Pipeline(window=window), 8, c) for c in LATENCIES], "o", color=colour, markersize=3.5
            )  # fmt: skip
        latency.set(
            xlabel="latency of a message", ylabel="batches per unit of time", ylim=(0, 0.4), title="Slow links, J = 8"
        )  # fmt: skip
        latency.legend(loc="lower left")
        for place, (name, marker) in enumerate((("first", "o"), ("fourth", "s"), ("last", "^"))):
            j = (0, 3, 7)[place]
            slow.plot(
                SLOWER, [rate(Pipeline(), 8, slow=j, factor=f) for f in SLOWER], marker, color="#bd1f01",
                markersize=8 - 2.2 * place, fillstyle="none", label=f"the {name} stage",
            )  # fmt: skip
        fine = np.linspace(1, 4, 50)
        slow.plot(fine, 1 / (3 * fine), color="#bd1f01", linewidth=1, label="1 / (3 times slower)")
        slow.set(
            xlabel="times slower", ylabel="batches per unit of time", ylim=(0, 0.4), title="One slow stage, J = 8"
        )  # fmt: skip
        slow.margins(x=0.05)
        slow.legend(loc="lower left")

        paper, code = closed.method_costs(8, 1), closed.method_costs(8, 1, as_code=True)
        bars = {
            "backprop: 3 J": (paper["backprop"], Pipeline(schedule="backprop"), "#404040"),
            "PETRA, paper: 4 J": (paper["petra"], Pipeline(), "#bd1f01"),
            "PETRA, code: 5 J": (code["petra"], Pipeline(reconstruct=2.0), "#e76300"),
        }
        for place, (costs, protocol, colour) in enumerate(bars.values()):
            between = 1 / rate(protocol, 8)
            flops.barh(place - 0.2, costs.flops, height=0.36, color=colour)
            flops.barh(place + 0.2, between, height=0.36, color=colour, alpha=0.45)
            flops.text(costs.flops, place - 0.2, f" {costs.flops:g} forward passes", va="center", fontsize=8)
            flops.text(between, place + 0.2, f" every {between:g} units of time", va="center", fontsize=8)
        flops.set_yticks(range(len(bars)), bars)
        flops.set(xlim=(0, 62), ylim=(2.6, -0.6), xlabel="FLOPs and time between batches (forward passes)")
        flops.set_title("What a batch costs, J = 8")
        flops.grid(axis="y", visible=False)
    return figure


def claims(runs):
    measured = "targets (measured with an independent implementation)"
    table = "table 1"

    def claim(statement, accepted, source=measured, tag="derived"):
        return Claim("P4", "PETRA", statement, source, tag, "exact", accepted)

    ratios = {stages: speed_up(Pipeline(), stages, Pipeline(schedule="backprop")) for stages in DEPTHS}
    checked = [
        claim(
            f"Speed-up {MODEL_PARALLEL} is J: largest relative error, J = 2 to 32", (0, 1e-9), table, "read"
        ).check(max(abs(ratio / stages - 1) for stages, ratio in ratios.items())),
        claim("Rate is 1/3 for every J: largest relative error", (0, 1e-9)).check(
            max(abs(3 * rate(Pipeline(), stages) - 1) for stages in DEPTHS)
        ),
        claim(
            "Speed-up vs reversible backprop of 4 J is 4/3 J: largest relative error",
            (0, 1e-9),
            table,
            "read",
        ).check(
            max(abs(speed_up(Pipeline(), stages, REVERSIBLE) / stages * 3 / 4 - 1) for stages in DEPTHS),
            note="the last stage reconstructs too; where it does not, (4 J - 1) / 3",
        ),
    ]
    for words, protocol, low, high in (
        ("one shared stream", lambda stages: Pipeline(streams=1), 0.745, 0.765),
        ("two streams, window J", lambda stages: Pipeline(window=stages), 0.745, 0.865),
    ):
        found = [
            speed_up(protocol(stages), stages, Pipeline(schedule="backprop")) / stages for stages in DEPTHS
        ]
        for name, of in (("smallest", min), ("largest", max)):
            statement = f"Speed-up {MODEL_PARALLEL} over J, {words}: {name}, J = 2 to 32"
            checked.append(claim(statement, (low, high)).check(of(found)))
    endless = max(abs(3 * rate(Pipeline(window="unlimited"), stages) - 1) for stages in (2, 4, 8))
    checked += [
        claim("Without a window the rate is the same: largest relative error, J = 2, 4, 8", (0, 1e-9)).check(
            endless
        )
    ]
    for c, window, listed in ((1.0, 15, 1 / 3), (3.0, 15, 0.207), (6.0, 15, 0.132), (6.0, 40, 0.333)):
        statement = f"Rate with a latency of {c:g}, J = 8, window {window}"
        found = rate(Pipeline(window=window), 8, c)
        checked.append(claim(statement, (listed - 0.002, listed + 0.002)).check(found))
    found = max(abs(6 * rate(Pipeline(), 8, slow=j, factor=2.0) - 1) for j in (0, 3, 7))
    checked.append(
        claim("One stage two times slower: rate 1/6: largest relative error", (0, 1e-9)).check(found)
    )
    own = "closed form (m + J - 1) / m (t_f + t_b) / (t_f + t_b + t_rec)"
    off = max(
        abs(over_1f1b(m, s) / closed.petra_over_pipeline(m, s) - 1) for m in MICRO_BATCHES for s in PIPES
    )
    equal = "PETRA vs 1F1B, equal memory and batch"
    return [
        *checked,
        claim(f"{equal}, measured vs closed form: largest relative error", (0, 1e-9), own).check(off),
        claim(f"{equal}: PETRA is slower with 64 micro-batches, J = 8: ratio of rates", (None, 1), own).check(
            over_1f1b(64, 8)
        ),
        claim(f"{equal}: PETRA is faster with 8 micro-batches, J = 8: ratio of rates", (1, None), own).check(
            over_1f1b(8, 8)
        ),
        claim("PETRA vs zero-bubble, equal memory and batch: ratio of rates", (0.75, 0.75), own).check(
            closed.petra_over_pipeline(8, 8, zero_bubble=True), note="closed form, no timeline"
        ),
        claim("FLOPs as the code computes them over those as the paper counts", (1.25, 1.25), "4 J and 5 J", "code").check(
            closed.method_costs(8, 1, as_code=True)["petra"].flops / closed.method_costs(8, 1)["petra"].flops
        ),
        claim(f"Speed-up {MODEL_PARALLEL} over J, code's two forward passes again, J = 8", (0.75, 0.75), "3 / max(3, 4)").check(
            round(speed_up(Pipeline(reconstruct=2.0), 8, Pipeline(schedule="backprop")) / 8, 9)
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    main(__file__)
