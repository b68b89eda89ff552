"""Optical units: how many workers may share one before it is the bottleneck, and where is it slower than backpropagation?

Event simulation of ``decentral.protocol.Mailbox``; the unit is a model, none was measured.
"""

import numpy as np

from decentral.cost.optical import RandomProjection
from decentral.experiment.figures import canvas, main
from decentral.protocol import Demand, Mailbox, Time
from decentral.protocol.service import Service, gradient_rate, turn_of
from decentral.timing import Cluster
from decentral.timing.compute import LogNormal
from decentral.topology import named

EXPERIMENTS = ()
PARAMETERS, SAMPLES = 2.7e9, 32
"""Of a dense model whose error has 1,000 numbers, projected to 1,000 (as in arXiv 2409.12965), and of a gradient."""
WORKERS = {"1 TFLOP/s": 1e12, "100 TFLOP/s": 1e14}
"""What a worker reaches: a processor or a small accelerator; a data-centre GPU at a third of its peak."""
UNITS = {"Gen-2": "LightOn OPU Gen-2", "Gen-3": "LightOn OPU Gen-3"}
SIZES = (2, 4, 8, 16, 32, 64)
SERVICE = Service(RandomProjection(1000, 1000, batch=SAMPLES, mode="anchor", signed=True))
COLOURS = {"backpropagation": "#5a5f66", "DFA, product": "#3f90da", "Gen-2": "#e76300", "Gen-3": "#832db6"}


def backpropagation_s(flops_per_s: float) -> float:
    """Seconds of a gradient: six operations for each parameter and sample."""
    return 6 * PARAMETERS * SAMPLES / flops_per_s


def topology(n: int, unit: str | None = None):
    units = unit and {"device": UNITS[unit], "latency_s": 5e-6}
    return named("complete" if n < 4 else "ring", n=n, units=units)


def bound(n: int, unit: str, seconds: float) -> float:
    return n * gradient_rate(topology(n, unit), SERVICE, Cluster(LogNormal(seconds, 0.2)))


def simulated(n: int, unit: str, seconds: float, gradients: int = 4000) -> float:
    """Gradients per second of all workers, after the first tenth."""
    network = Mailbox().network(topology(n, unit), Demand(service=SERVICE), Cluster(LogNormal(seconds, 0.2)))
    horizon_s = gradients / (n * network.gradients_per_s)
    trace = Mailbox().timeline(network, Time(horizon_s), 0)
    done = trace.time_s[trace.gradients_of_events > 0]
    return float((done > horizon_s / 10).sum() / (0.9 * horizon_s))


def frames_share(unit: str, seconds: float) -> float:
    """Seconds of one gradient's frames over those of the gradient by backpropagation."""
    return turn_of(SERVICE.task, topology(2, unit).units[0]).bottleneck_s / seconds


def draw(runs):
    frames = turn_of(SERVICE.task, topology(2, "Gen-2").units[0]).frames
    task = SERVICE.task.words(topology(2, "Gen-2").units[0].hardware)
    note = (
        f"Dense model of {PARAMETERS:.2g} parameters, {SAMPLES} samples a gradient, 6 operations for each parameter and sample; "
        "direct feedback alignment (DFA) needs two thirds of them and one projection of every sample's error: "
        f"{task}, so {frames} frames a gradient. One unit serves all workers over PCIe (2 GB/s; 5 µs are "
        "assumed), first come, first served. Dots: event simulation (mailbox, log-normal compute times of sigma 0.2); lines: "
        "bounds, no waiting and a unit that is never idle. ρ: frames of a gradient over "
        "its time by backpropagation. DFA, product: workers project by themselves, at no cost. Rates say "
        "nothing of accuracy: DFA is not backpropagation. Simulated: no optical unit was measured."
    )
    grid_n = np.arange(1, 65)
    title = "A unit that workers share is soon their bottleneck: gradients per second of n workers"
    with canvas(title, columns=2, panel=(4.9, 3.6), note=note) as (figure, ((left, right),)):
        for axes, (words, speed) in zip((left, right), WORKERS.items(), strict=True):
            seconds = backpropagation_s(speed)
            axes.plot(
                grid_n,
                grid_n / seconds,
                color=COLOURS["backpropagation"],
                linewidth=2,
                label="backpropagation",
            )
            axes.plot(
                grid_n,
                1.5 * grid_n / seconds,
                color=COLOURS["DFA, product"],
                linewidth=1.6,
                label="DFA, product",
            )
            for unit in UNITS:
                line = [bound(n, unit, seconds) for n in grid_n[1:]]
                axes.plot(grid_n[1:], line, color=COLOURS[unit], linewidth=1.4)
                dots = [simulated(n, unit, seconds) for n in SIZES]
                axes.plot(SIZES, dots, "o", color=COLOURS[unit], markersize=5, label=f"DFA, one {unit} unit")
            rho = {unit: frames_share(unit, seconds) for unit in UNITS}
            axes.set(
                xscale="log", yscale="log", ylabel="gradients per second, all workers",
                title=f"Workers of {words}",
            )  # fmt: skip
            axes.set_xticks([1, 2, 4, 8, 16, 32, 64], [str(n) for n in (1, 2, 4, 8, 16, 32, 64)])
            axes.minorticks_off()
            axes.set_xlabel(
                "workers\n" + "\n".join(_verdict(unit, rho[unit]) for unit in UNITS), fontsize=7.5
            )
        left.legend(fontsize=8)
    return figure


def _verdict(unit: str, rho: float) -> str:
    """Where the unit is the bottleneck, and from where on backpropagation is quicker."""
    slower = (
        f"slower than backpropagation from {1 / rho:.2g}" if rho < 1 / 3 else "slower than backpropagation"
    )
    return f"{unit}: ρ = {rho:.2g}, busy from {1 + 2 / 3 / rho:.2g} workers, {slower}"


if __name__ == "__main__":
    main(__file__)
