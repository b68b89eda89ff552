"""ACCO, stability: how large a learning rate each way to overlap can stand, exactly and by simulation."""

from functools import cache

import jax
import numpy as np

from decentral import ACCO, DPU, SGD, WP, AllReduce, Overlapped, Record, simulate
from decentral.analysis.claims import Claim
from decentral.experiment.figures import canvas, main
from decentral.problem import Quadratic
from decentral.topology import named

EXPERIMENTS = ()
OPTIMIZER = {"kind": "sgd", "learning_rate": 1.0}  # a curvature is then learning rate x curvature
ALGORITHMS = {
    "sgd": (SGD(OPTIMIZER), AllReduce()),
    "acco": (ACCO(OPTIMIZER), Overlapped()),
    "dpu": (DPU(OPTIMIZER), Overlapped()),
    "wp": (WP(OPTIMIZER), Overlapped()),
}
WORDS = {"sgd": "DDP", "acco": "ACCO", "dpu": "DPU", "wp": "WP"}
LOOKS = {"sgd": "#717581", "acco": "#e76300", "dpu": "#3f90da", "wp": "#832db6"}
LIMITS = {"sgd": 2.0, "acco": 2.0, "dpu": 1.0, "wp": 0.618}
RECURSIONS = {  # characteristic polynomials of an update
    "sgd": lambda a: [1, a - 1],
    "acco": lambda a: [1, 1.5 * a - 1, a * (a - 1) / 2],
    "dpu": lambda a: [1, -1, a],
    "wp": lambda a: [1, -1, 2 * a, -a],
}
LISTED = {  # spectral radius at 0.5 and 0.9, and half a unit of the last digit it is given with
    "sgd": ((0.5, 5e-3), (0.1, 5e-3)),
    "acco": ((0.5, 5e-3), (0.45, 5e-3)),
    "dpu": ((0.707, 5e-4), (0.95, 5e-3)),
    "wp": ((0.879, 5e-4), (1.25, 5e-3)),
}
COARSE = np.round(np.arange(0.1, 2.25, 0.1), 1)
FINE = np.linspace(0.98, 1.02, 41)  # of a limit
EDGE = 40  # updates in which the largest value is looked for: complex roots turn
BINS, QUADRATICS, DIMENSIONS = np.arange(0.05, 2.0, 0.1), 200, 5  # the middles of lr L


def states(name: str, curvatures: np.ndarray, updates: np.ndarray) -> list:
    """State after so many updates of two equal workers on a diagonal quadratic, from 1; a micro-batch takes a second.

    The first gradients are noisy, so that all modes are there: without noise ACCO never leaves gradient descent.
    """
    algorithm, protocol = ALGORITHMS[name]
    times_s = tuple((updates * algorithm.events_per_update).tolist())
    noise = np.zeros((2, int(times_s[-1]) + 2, len(curvatures)))
    noise[:, :4] = np.random.default_rng(0).standard_normal((4, len(curvatures)))
    ones = np.ones((2, len(curvatures)))
    record = Record(times_s=times_s, states=True, evaluate=False)
    with jax.enable_x64(True):
        problem = Quadratic.of(curvatures * ones, 0 * ones, noise_table=noise, initial=ones[0])
        graph = named("complete", n=2)
        return simulate(problem, graph, algorithm, protocol, stop=times_s[-1], record=record).states


@cache
def path(name: str) -> np.ndarray:
    """Distance to the optimum after each of 120 updates, ``(120, curvatures)``."""
    return np.abs([state.x[0] for state in states(name, COARSE, np.arange(1.0, 121.0))])


def growth(first: np.ndarray, last: np.ndarray, apart: int) -> np.ndarray:
    """Factor per update between the largest values of two windows so many updates apart."""
    with np.errstate(invalid="ignore"):  # gradient descent of step 1 is at the optimum at once
        return np.nan_to_num(last.max(0) / first.max(0)) ** (1 / apart)


def measured(name: str) -> np.ndarray:
    """Factors per update on the coarse grid."""
    sizes = path(name)[20:]
    return growth(sizes[:EDGE], sizes[-EDGE:], len(sizes) - EDGE)


@cache
def limit(name: str, smoke: bool) -> float:
    """The smallest of a fine grid of learning rates x curvature that does not converge."""
    updates = 200 if smoke else 1600
    window = np.arange(1.0, EDGE + 1)
    after = np.concatenate([updates / 2 - EDGE + window, updates - EDGE + window])
    curvatures = LIMITS[name] * FINE
    sizes = np.abs([state.x[0] for state in states(name, curvatures, after)])
    grows = growth(sizes[:EDGE], sizes[EDGE:], updates // 2) > 1
    return float(curvatures[grows.argmax()]) if grows.any() else np.inf


@cache
def lyapunov() -> np.ndarray:
    """Largest V(t + 1) / V(t) of ACCO over all updates and quadratics of a bin of lr L, ``(bins,)``.

    V = f(x) - f* + lr L (f(q) - f*) + L |x - q|^2, L = 1; a quadratic's curvatures are log-uniform from 0.001 to 1.
    """
    rng, updates = np.random.default_rng(0), 60
    steps = rng.uniform(BINS - 0.05, BINS + 0.05, (QUADRATICS, len(BINS))).T
    curvatures = 10 ** rng.uniform(-3, 0, (len(BINS), QUADRATICS, DIMENSIONS))
    curvatures[..., 0] = 1
    scale = (steps[..., None] * curvatures).ravel()
    found = states("acco", scale, np.arange(0.5, updates + 0.5, 0.5))
    # q, where the first half of a batch is taken, is estimated by the collective before the one that makes x
    q, x = np.stack([s.ahead[0] for s in found[::2]]), np.stack([s.x[0] for s in found[1::2]])

    def total(values):
        return values.reshape(updates, *curvatures.shape).sum(-1)[3:]  # after the noise

    values = total(scale * x**2 / 2) + steps * total(scale * q**2 / 2) + steps * total((x - q) ** 2)
    there = values[:-1] > 1e-20 * values[0]  # below that it is rounding
    ratio = np.where(there, values[1:] / values[:-1], 0.0)
    return ratio.max((0, 2))


def draw(runs):
    note = (
        "Left: lines are roots of the recursions, circles the growth in simulated runs. Middle: the same runs, from 1, "
        "with noise in the first gradients. Right: V = f(x) - f* + lr L (f(q) - f*) + L |x - q|², with x the parameters and "
        f"q their estimate; {QUADRATICS} random quadratics of {DIMENSIONS} dimensions in each bin, 60 updates each."
    )
    with canvas(
        "With gradients one update old half the learning rate is stable; with ACCO all of it",
        columns=3, panel=(4.0, 3.4), note=note,
    ) as (figure, ((left, middle, right),)):  # fmt: skip
        a = np.linspace(0.005, 2.2, 440)
        place = int(np.flatnonzero(COARSE == 0.9)[0])
        for name, colour in LOOKS.items():
            radii = [np.abs(np.roots(RECURSIONS[name](value))).max() for value in a]
            left.plot(a, radii, color=colour, label=f"{WORDS[name]}: stable below {LIMITS[name]:g}")
            left.plot(COARSE, measured(name), "o", color=colour, markersize=3.5)
            middle.plot(np.arange(1, 61), path(name)[:60, place], color=colour, label=WORDS[name])
        left.axhline(1, color="#404040", linewidth=0.8)
        left.set(
            xlabel="learning rate × curvature", ylabel="factor per update", ylim=(0, 2.6), xlim=(0, 2.22),
            title="Spectral radius",
        )  # fmt: skip
        left.legend(loc="upper left", fontsize=8)
        middle.set(
            yscale="log", ylim=(1e-12, 1e7), xlabel="updates", ylabel="distance to the optimum",
            title="Learning rate × curvature = 0.9",
        )  # fmt: skip
        middle.legend(loc="lower right", fontsize=8)
        right.axhline(1, color="#404040", linewidth=0.8)
        right.axvspan(0, 0.5, color="#717581", alpha=0.15, linewidth=0)
        right.annotate(
            "the paper's\ntheorem", (0.25, 0.9), xycoords=("data", "axes fraction"), ha="center", fontsize=8
        )
        right.plot(BINS, lyapunov(), color=LOOKS["acco"], marker="o", markersize=4)
        right.set(
            xlabel="learning rate × largest curvature", ylabel="largest V(t + 1) / V(t)", xlim=(0, 2),
            title="ACCO's Lyapunov function",
        )  # fmt: skip
    return figure


def claims(runs):
    def claim(id, statement, tier, accepted, source="recursion of SGD on a quadratic", tag="derived"):
        return Claim(id, "ACCO", statement, source, tag, tier, accepted)

    checked, apart = [], []
    for name, value in LIMITS.items():
        accepted = (0.99 * value, 1.01 * value)
        words = f"{WORDS[name]}: largest stable learning rate x curvature, by simulation, is {value:g}"
        checked.append(claim("A2", words, "convex", accepted).check(limit(name, runs.smoke)))
    for name, listed in LISTED.items():
        for a, (value, half) in zip((0.5, 0.9), listed, strict=True):
            words = f"{WORDS[name]}: spectral radius at learning rate x curvature {a} is {value:g}"
            exact = float(np.abs(np.roots(RECURSIONS[name](a))).max())
            checked.append(claim("A2", words, "exact", (value - half, value + half)).check(exact))
            apart.append(abs(measured(name)[a == COARSE][0] / exact - 1))
    words = "Growth per update in simulated runs over these eight spectral radii: largest deviation from 1"
    checked.append(claim("A2", words, "convex", (None, 0.01)).check(max(apart)))
    ratios = lyapunov()
    rows = (
        ("at most 0.5: largest", BINS < 0.5, (None, 1.0), "theorem (lr <= 1 / (2 L))", "read"),
        ("from 0.5 to 1: largest", (BINS > 0.5) & (BINS < 1), (None, 1.0), "measured before", "derived"),
        ("from 1 to 2: some rise; largest", BINS > 1, (1.0, None), "measured before", "derived"),
    )
    for words, where, accepted, source, tag in rows:
        words = f"ACCO's Lyapunov function on random quadratics, lr L {words} V(t + 1) / V(t)"
        checked.append(claim("A3", words, "convex", accepted, source, tag).check(ratios[where].max()))
    return checked


if __name__ == "__main__":
    main(__file__)
