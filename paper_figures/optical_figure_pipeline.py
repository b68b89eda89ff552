"""Optical, pipelines: what a pipeline gains without a backward pass, and where a unit that projects its errors is the bottleneck.

Everything is read off timelines: no network is trained, no optical unit is run.
"""

from functools import cache

import numpy as np

from decentral.analysis.claims import Claim
from decentral.analysis.pipeline import BACKWARD, FORWARD, batch_ends_s
from decentral.cost.optical import break_even_parameters
from decentral.cost.pipeline import dfa_times, flush_rate
from decentral.engine.trace import StageShape
from decentral.experiment.figures import canvas, main
from decentral.hardware import optical_unit
from decentral.protocol import Demand, Gradients, Pipeline, Time
from decentral.topology import named

EXPERIMENTS = ()
STAGES, MICRO_BATCHES = (2, 4, 8, 16, 32), (1, 4, 8, 32)
COLOURS = {1: "#717581", 4: "#3f90da", 8: "#bd1f01", 32: "#832db6"}
BLUE, PURPLE = "#3f90da", "#832db6"
TABLE = {4: 1.74, 8: 1.96, 16: 2.23, 32: 2.49}
"""Speed-up with 8 micro-batches in so many stages."""
UNIT = optical_unit("LightOn OPU Gen-3")
FRAMES_PER_S = next(rate.frames_per_s for rate in UNIT.rates if rate.max_outputs >= 326_000)
"""Of a million inputs on 326,000 outputs."""
FLOPS_PER_S, DEVICES = 10e12, 8
TOKENS = 1000
"""Of a micro-batch; each is a frame."""


def trace_of(protocol: Pipeline, stages: int, stop):
    shapes = (
        StageShape("stem", "", "x"), *[StageShape("block", "x", "x")] * (stages - 2), StageShape("head", "x", ""),
    )  # fmt: skip
    graph = named("pipelines", n=stages, stages=stages, broadcast=True)
    meeting = "feedback" if protocol.schedule == "dfa" else "stages"
    demand = Demand(meetings=(meeting,), stages=shapes, local_steps=protocol.micro_batches or 1)
    return protocol.timeline(protocol.network(graph, demand), stop, seed=0)


@cache
def makespan(schedule: str, stages: int, micro_batches: int, pass_s: float = 1.0, feedback_s: float = 0.0):
    """Seconds of a step, from its first forward pass to the last update of any stage, read off a timeline."""
    protocol = Pipeline(
        schedule, micro_batches=micro_batches, forward=pass_s, backward=pass_s * (1 if schedule == "dfa" else 2),
        feedback_s=feedback_s,
    )  # fmt: skip
    long_enough_s = 3 * pass_s * (micro_batches + stages) + micro_batches * feedback_s
    trace = trace_of(protocol, stages, Time(long_enough_s))
    return float(batch_ends_s(trace)[0, :micro_batches].max())


@cache
def period(schedule: str, stages: int, micro_batches: int) -> float:
    """Seconds from the end of the first step to that of the second."""
    trace = trace_of(
        Pipeline(schedule, micro_batches=micro_batches), stages, Time(6.5 * (micro_batches + stages))
    )
    ends_s = batch_ends_s(trace)[0]
    return float(ends_s[micro_batches : 2 * micro_batches].max() - ends_s[:micro_batches].max())


def speed_up(stages: int, micro_batches: int, of=makespan) -> float:
    return of("1f1b", stages, micro_batches) / of("dfa", stages, micro_batches)


def seconds(parameters: float, frames: int = 1) -> tuple[float, float]:
    """``(a pass of a micro-batch at a stage, its errors on the unit)``; a pass is 2 FLOP a parameter and token."""
    pass_s = 2 * parameters / DEVICES * TOKENS / FLOPS_PER_S
    return pass_s, TOKENS * frames / FRAMES_PER_S


def with_unit(parameters: float, micro_batches: int) -> float:
    """Speed-up of a step with a unit that all stages share."""
    pass_s, feedback_s = seconds(parameters)
    return makespan("1f1b", DEVICES, micro_batches, pass_s) / makespan(
        "dfa", DEVICES, micro_batches, pass_s, feedback_s
    )


def rate(protocol: Pipeline) -> float:
    """Micro-batches per second without a flush, between two of them long after the beginning."""
    trace = trace_of(protocol, DEVICES, Gradients(140))
    times_s = trace.time_s[trace.gradients_of_events > 0]
    return float(60 / (times_s[-1] - times_s[-61]))


def rates(parameters: float) -> float:
    """The same speed-up of pipelines that never flush: both have all their stages busy."""
    pass_s, feedback_s = seconds(parameters)
    without = Pipeline(forward=pass_s, backward=2 * pass_s, reconstruct=0.0, streams=1)
    broadcast = Pipeline("dfa", forward=pass_s, backward=pass_s, feedback_s=feedback_s)
    return rate(broadcast) / rate(without)


def draw_passes(axes, schedule: str, end: float) -> None:
    stages, micro_batches = 4, 8
    trace = trace_of(Pipeline(schedule, micro_batches=micro_batches), stages, Time(end))
    last = makespan(schedule, stages, micro_batches)
    for instructions, colour in ((FORWARD, BLUE), (BACKWARD, PURPLE)):
        rows = np.flatnonzero(np.array([op.instruction in instructions for op in trace.ops])[trace.op])
        starts = trace.time_s[rows] - (0 if instructions is FORWARD else trace.duration_s[rows])
        stage = trace.operands[rows, 0]
        batch = np.zeros(rows.size, int)
        for j in range(stages):
            batch[stage == j] = np.arange((stage == j).sum())
        alone = batch < micro_batches
        turn = np.array([op.instruction == "turn" for op in trace.ops])[trace.op[rows]]
        axes.barh(
            stage[alone], trace.duration_s[rows][alone], 0.82, starts[alone], color=colour, edgecolor="white",
            linewidth=0.5,
        )  # fmt: skip
        if turn.any():  # its forward part
            axes.barh(stage[turn], 1.0, 0.82, starts[turn], color=BLUE, edgecolor="white", linewidth=0.5)
        for s, j, b, width in zip(
            starts[alone], stage[alone], batch[alone], trace.duration_s[rows][alone], strict=True
        ):
            axes.text(s + width / 2, j, b + 1, ha="center", va="center", fontsize=5.5, color="white")
    axes.axvline(last, color="#262626", linewidth=1, linestyle=(0, (3, 2)))
    axes.text(last - 0.4, -0.62, f"{last:g}", ha="right", va="bottom", fontsize=8.5, color="#262626")
    axes.set(
        xlim=(0, end),
        ylim=(stages - 0.45, -1.1),
        yticks=range(stages),
        xlabel="forward passes of a stage",
        ylabel="stage",
    )
    axes.set_yticks(range(stages), [str(j + 1) for j in range(stages)])
    axes.grid(visible=False)


def draw(runs):
    note = (
        "A pass: forward, gradients of the inputs, gradients of the weights, one unit of time each; messages take none. Top: 8 "
        "micro-batches in 4 stages; blue forward, purple backward (left: both gradients; right: of the weights alone, when the "
        "error has come from the last stage). Markers are read off timelines, lines are closed forms. A schedule without a "
        "bubble (zero-bubble) takes 3 M: against it 1.5 is all that is gained, at whatever accuracy direct feedback alignment "
        f"has. Unit: {UNIT.name}, {FRAMES_PER_S:g} frames/s, one frame a token, one unit for {DEVICES} stages on "
        f"devices of {FLOPS_PER_S / 1e12:g} TFLOP/s (achieved); with linear readout or more bits a token takes several frames. A "
        "simulation: no unit was run."
    )
    with canvas("Pipelines without a backward pass", rows=2, columns=3, panel=(4.1, 3.1), note=note) as (
        figure,
        grid,
    ):
        (before, after, steps), (following, unit, even) = grid
        draw_passes(before, "1f1b", 34)
        before.set_title("Backpropagation, 1F1B: 3 (M + P - 1)")
        draw_passes(after, "dfa", 34)
        after.set_title("Feedback, broadcast: (P - 1) + 2 M")

        fine = np.arange(2, 33)
        for m, colour in COLOURS.items():
            steps.plot(
                fine, [m / flush_rate(m, p) / dfa_times(m, p).makespan for p in fine], color=colour, label=f"M = {m}"
            )  # fmt: skip
            steps.plot(STAGES, [speed_up(p, m) for p in STAGES], "o", color=colour, markersize=3.5)
        for limit, words in ((1.5, "M ≫ P"), (3.0, "P ≫ M")):
            steps.axhline(limit, color="#262626", linewidth=0.8, linestyle=(0, (1, 2)))
            steps.text(33, limit + 0.02, words, fontsize=8, ha="right", va="bottom", color="#404040")
        steps.set(
            xscale="log",
            xlabel="stages P",
            ylabel="1F1B / feedback",
            ylim=(1.4, 3.15),
            title="Makespan of one step",
        )
        steps.set_xticks(STAGES, map(str, STAGES))
        steps.set_xticks([], minor=True)
        steps.legend(loc="upper left", bbox_to_anchor=(0, 0.93), fontsize=7.5)

        fine = np.arange(1, 65)
        chosen = (1, 2, 4, 8, 16, 32, 64)
        for p, colour in ((4, "#3f90da"), (8, "#bd1f01"), (16, "#832db6")):
            following.plot(
                fine, [m / flush_rate(m, p) / dfa_times(m, p).period for m in fine], color=colour, label=f"P = {p}"
            )  # fmt: skip
            following.plot(
                chosen, [speed_up(p, m, period) for m in chosen], "o", color=colour, markersize=3.5
            )
        following.axhline(1.5, color="#262626", linewidth=0.8, linestyle=(0, (1, 2)))
        following.set(
            xscale="log", xlabel="micro-batches of a step, M", ylabel="1F1B / feedback", ylim=(1.4, 3.15),
            title="Steps one after the other",
        )  # fmt: skip
        following.set_xticks(chosen, map(str, chosen))
        following.set_xticks([], minor=True)
        following.legend(loc="upper right", fontsize=7.5)

        alone = float(break_even_parameters(1, FLOPS_PER_S, FRAMES_PER_S))
        sizes, marked = np.geomspace(2e8, 1e11, 80), np.geomspace(2e8, 1e11, 10)
        for m in (1, 8, 32):
            closed = []
            for n in sizes:
                pass_s, feedback_s = seconds(n)
                of_dfa = dfa_times(m, DEVICES, pass_s, pass_s, feedback_s).makespan
                closed.append(m / flush_rate(m, DEVICES, pass_s, 2 * pass_s) / of_dfa)
            unit.plot(sizes, closed, color=COLOURS[m], label=f"M = {m}")
            unit.plot(marked, [with_unit(n, m) for n in marked], "o", color=COLOURS[m], markersize=3.5)
        ratios = [min(1.5, 3 * pass_s / feedback_s) for pass_s, feedback_s in map(seconds, sizes)]
        unit.plot(sizes, ratios, color="#262626", linewidth=1, linestyle="--", label="no flush")
        unit.plot(marked, [rates(n) for n in marked], "s", color="#262626", markersize=3)
        unit.axhline(1, color="#262626", linewidth=0.8)
        for where, words, side in ((alone, "kF/2f ", "right"), (DEVICES / 3 * alone, " P kF/6f", "left")):
            unit.axvline(where, color="#262626", linewidth=0.8, linestyle=(0, (1, 2)))
            unit.text(where, 0.13, words, fontsize=7.5, ha=side, va="bottom", color="#404040")
        unit.set(
            xscale="log", yscale="log", xlabel="parameters that a token passes", ylabel="1F1B / feedback with unit",
            ylim=(0.12, 4), title=f"One unit for {DEVICES} stages",
        )  # fmt: skip
        unit.set_yticks([0.25, 0.5, 1, 2, 3], ["0.25", "0.5", "1", "2", "3"])
        unit.set_yticks([], minor=True)
        unit.legend(loc="upper left", fontsize=7.5)

        speeds = np.geomspace(1e12, 1e15, 50)
        for k, colour in ((1, "#3f90da"), (2, "#bd1f01"), (4, "#832db6"), (12, "#717581")):
            even.plot(
                speeds / 1e12,
                break_even_parameters(k, speeds, FRAMES_PER_S),
                color=colour,
                label=f"{k} frame{'s' * (k > 1)}",
            )
        for flops, k in ((10e12, 1), (100e12, 2), (400e12, 2)):
            found = float(break_even_parameters(k, flops, FRAMES_PER_S))
            even.plot(flops / 1e12, found, "o", color="#262626", markersize=4)
            even.annotate(
                f"{found:.2g}".replace("e+", "e"),
                (flops / 1e12, found),
                (5, -9),
                textcoords="offset points",
                fontsize=8,
            )
        even.set(
            xscale="log", yscale="log", xlabel="TFLOP/s that one unit serves", ylabel="parameters that a token passes",
            title="Break-even, nothing overlapped",
        )  # fmt: skip
        even.legend(loc="upper left", fontsize=7.5, title="a token", title_fontsize=7.5)
    return figure


def claims(runs):
    targets = "targets (event-simulated with an independent implementation)"
    hand = "targets: k F / 2 f, skipping one pass against the frames of a token"
    own = "closed form of decentral.cost.pipeline"

    def claim(statement, accepted, source=targets, id="T21"):
        return Claim(id, "Optical", statement, source, "derived", "exact", accepted)

    every = [(p, m) for p in STAGES for m in MICRO_BATCHES]
    checked = [
        claim("Makespan of 1F1B is 3 (M + P - 1): largest error over all P, M", (0, 0)).check(
            max(abs(makespan("1f1b", p, m) - 3 * (m + p - 1)) for p, m in every)
        ),
        claim("Makespan of GPipe is 3 (M + P - 1): largest error over all P, M", (0, 0)).check(
            max(abs(makespan("gpipe", p, m) - 3 * (m + p - 1)) for p, m in every)
        ),
        claim("Makespan with broadcast errors is (P - 1) + 2 M: largest error over all P, M", (0, 0)).check(
            max(abs(makespan("dfa", p, m) - (p - 1 + 2 * m)) for p, m in every)
        ),
    ]
    for p, listed in TABLE.items():
        checked.append(
            claim(f"Speed-up of a step, M = 8, P = {p}", (listed - 0.005, listed + 0.005)).check(
                speed_up(p, 8)
            )
        )
    shared = DEVICES / 3 * float(break_even_parameters(1, FLOPS_PER_S, FRAMES_PER_S))
    return [
        *checked,
        claim("Speed-up of a step, M = 1, P = 8", (2.665, 2.67)).check(speed_up(8, 1)),
        claim("Speed-up of a step, P = 2, M = 256: towards 1.5", (1.5, 1.51)).check(speed_up(2, 256)),
        claim("Speed-up of a step, P = 256, M = 1: towards 3", (2.98, 3)).check(speed_up(256, 1)),
        claim("Steps one after the other have no bubble where M >= P: largest error of the period 2 M", (0, 0), own).check(
            max(abs(period("dfa", p, m) - 2 * m) for p, m in every if m >= p)
        ),
        claim("A unit that takes 2 - 2/M passes for an error is hidden: makespan, P = M = 8", (23, 23), own).check(
            makespan("dfa", 8, 8, feedback_s=1.75)
        ),
        claim("A unit that takes 4.5 passes makes a step as slow as 1F1B: ratio, P = M = 8", (1, 1), own).check(
            makespan("1f1b", 8, 8) / makespan("dfa", 8, 8, feedback_s=4.5)
        ),
        claim("Break-even parameters, 10 TFLOP/s, 1 frame a token", (2.55e9, 2.65e9), hand).check(
            float(break_even_parameters(1, 10e12, FRAMES_PER_S))
        ),
        claim("Break-even parameters, 100 TFLOP/s, 2 frames a token", (4.5e10, 5.5e10), hand).check(
            float(break_even_parameters(2, 100e12, FRAMES_PER_S))
        ),
        claim("Break-even parameters, 400 TFLOP/s, 2 frames a token", (1.5e11, 2.5e11), hand).check(
            float(break_even_parameters(2, 400e12, FRAMES_PER_S))
        ),
        claim(
            "One unit for 8 stages that never flush breaks even at P/3 as many parameters: ratio of rates there",
            (1 - 1e-6, 1 + 1e-6), own,
        ).check(rates(shared)),
    ]  # fmt: skip


if __name__ == "__main__":
    main(__file__)
