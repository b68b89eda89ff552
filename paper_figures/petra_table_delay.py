"""PETRA, table of delays: updates between the two passes of a batch, batches in flight, and what happens without a window."""

from functools import cache

import numpy as np

from decentral.analysis import pipeline as says
from decentral.analysis.claims import Claim
from decentral.engine.trace import StageShape
from decentral.experiment.figures import canvas, main
from decentral.protocol import Demand, Gradients, Pipeline, Time
from decentral.topology import named

EXPERIMENTS = ()
DEPTHS = {2: "#717581", 4: "#ffa90e", 8: "#3f90da", 16: "#832db6", 32: "#bd1f01"}
ACCUMULATED = {1: "#bd1f01", 2: "#832db6", 4: "#3f90da"}
LOCKSTEP = Pipeline(backward=1.0, reconstruct=0.0, turn=1.0)
"""Every pass takes one tick."""
ENDLESS = Pipeline(window="unlimited")
GROWTH = dict(zip(DEPTHS, (41, 84, 169, 340, 681), strict=True))


def timeline(protocol: Pipeline, stages: int, stop):
    shapes = (
        StageShape("stem", "", "x"), *[StageShape("block", "x", "x")] * (stages - 2), StageShape("head", "x", ""),
    )  # fmt: skip
    graph = named("pipelines", n=stages, stages=stages)
    network = protocol.network(graph, Demand(meetings=("stages",), stages=shapes))
    return protocol.timeline(network, stop, seed=0)


@cache
def delays(protocol: Pipeline, stages: int, batches: int, k: int = 1) -> says.Delays:
    return says.delays(timeline(protocol, stages, Gradients(batches)), k)


def by_stage(stages: int, k: int = 1) -> np.ndarray:
    """Mean updates between the passes, in lock-step: over 2 k J batches that come when the pipeline is full."""
    late = delays(LOCKSTEP, stages, 8 * k * stages, k)
    full = (late.batch >= 2 * k * stages) & (late.batch < 4 * k * stages)
    return np.array([late.updates[full & (late.worker == j)].mean() for j in range(stages)])


def of_first_stage(protocol: Pipeline, stages: int) -> tuple[np.ndarray, np.ndarray]:
    """``(batch, updates)`` of the first stage, k = 1."""
    late = delays(protocol, stages, 65 * stages)
    first = late.worker == 0
    return late.batch[first], late.updates[first]


def grown(stages: int) -> float:
    """Mean delay at the first stage of the batches from 20 J to 40 J, without a window."""
    batch, updates = of_first_stage(ENDLESS, stages)
    return float(updates[(batch >= 20 * stages) & (batch < 40 * stages)].mean())


def in_flight(stages: int) -> np.ndarray:
    return says.in_flight(timeline(LOCKSTEP, stages, Time(10.0 * stages))).batches[0]


def draw(runs):
    note = (
        "Read off timelines. First, second and last: lock-step, a pass takes one tick, window 2J - 1; lines are the formulas. "
        "Third: forward 1, backward with reconstruction 3, instant links; over J all depths are one line. Without a window the "
        "first stage begins batches as fast as it can, three times as fast as they come back."
    )
    with canvas("How late PETRA's gradients are", columns=4, panel=(3.2, 3.1), note=note) as (figure, (row,)):
        depth, accumulation, growth, flight = row
        for stages, colour in DEPTHS.items():
            j = np.arange(1, stages + 1)
            depth.plot(j, 2 * (stages - j), color=colour, linewidth=1)
            depth.plot(j, by_stage(stages), "o", color=colour, markersize=3, label=f"J = {stages}")
            for protocol, line in ((ENDLESS, "-"), (Pipeline(), ":")):
                batch, updates = of_first_stage(protocol, stages)
                growth.plot(batch / stages, updates / stages, color=colour, linestyle=line, linewidth=1.2)
        for k, colour in ACCUMULATED.items():
            j = np.arange(1, 17)
            accumulation.plot(j, 2 * (16 - j) / k, color=colour, linewidth=1)
            accumulation.plot(j, by_stage(16, k), "o", color=colour, markersize=3, label=f"k = {k}")
        j = np.arange(1, 7)
        flight.bar(j, in_flight(6), color="#f0b9ae", width=0.7)
        flight.bar([1], in_flight(6)[:1], color="#bd1f01", width=0.7)
        for place, count in zip(j, in_flight(6), strict=True):
            flight.text(place, count + 0.15, f"{count}", ha="center", fontsize=8)
        depth.set(xlabel="stage j", ylabel="updates", title="Delay, k = 1: 2 (J - j)")
        depth.legend()
        accumulation.set(xlabel="stage j", ylabel="updates", title="Delay, J = 16: 2 (J - j) / k")
        accumulation.legend()
        growth.set(
            xlabel="batch / J", ylabel="delay of the first stage / J (updates)", xlim=(0, 60), ylim=(0, 45),
            title="No window: no end",
        )  # fmt: skip
        growth.text(33, 37, "no window, every J", fontsize=8, color="#404040", ha="right")
        growth.text(58, 3.2, "window 2J - 1", fontsize=8, color="#404040", ha="right")
        flight.set(
            xlabel="stage j", ylabel="batches", ylim=(0, 12.5), title="In flight, J = 6: 2 (J - j) + 1"
        )
        flight.text(
            6.4, 11.6, "delayed gradients store all of them,\nPETRA where a stage is\nnot reversible: here the stem",
            fontsize=7.5, color="#404040", ha="right", va="top",
        )  # fmt: skip
        flight.grid(axis="x", visible=False)
    return figure


def claims(runs):
    measured = "targets (measured with an independent implementation)"

    def claim(name, statement, accepted, source=measured, tag="derived"):
        return Claim(name, "PETRA", statement, source, tag, "exact", accepted)

    formula = "2 (J - j) / k updates between forward and backward pass, counted in traces"
    checked = []
    for k in ACCUMULATED:
        off = max(
            float(np.abs(by_stage(stages, k) - 2 * (stages - 1 - np.arange(stages)) / k).max())
            for stages in DEPTHS
        )
        statement = f"{formula}, k = {k}: largest error, J = 2 to 32"
        checked.append(claim("P3", statement, (0, 0), "section 4 and table 1", "read").check(off))
    half = max(
        abs(float(delays(Pipeline(window=stages), stages, 16 * stages).steady()[0, 0]) - (stages - 1))
        for stages in DEPTHS
    )
    statement = "Window J: delay J - 1 at the first stage: largest error, J = 2 to 32"
    checked.append(claim("P4", statement, (0, 0)).check(half))
    for stages, listed in GROWTH.items():
        statement = (
            f"No window, J = {stages}: mean delay of the first stage from batch 20 J to 40 J (updates)"
        )
        checked.append(claim("P4", statement, (listed, listed + 1)).check(grown(stages)))
    off = max(
        int(np.abs(in_flight(stages) - (2 * (stages - 1 - np.arange(stages)) + 1)).max()) for stages in DEPTHS
    )
    statement = "Batches in flight are 2 (J - j) + 1 (J = 6: 11, 9, 7, 5, 3, 1): largest error, J = 2 to 32"
    checked.append(claim("P5", statement, (0, 0)).check(off))
    return checked


if __name__ == "__main__":
    main(__file__)
