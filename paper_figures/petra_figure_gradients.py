"""PETRA, appendix B: how far its gradients point where backpropagation's do, by stage, learning rate and accumulation."""

import dataclasses
from functools import cache, partial

import jax
import numpy as np

import decentral
from decentral.algorithm import PETRA
from decentral.analysis.claims import Claim, over_seeds
from decentral.experiment.figures import canvas, main
from decentral.problem import StagedProblem, reversible_mlp
from decentral.protocol import Pipeline
from decentral.topology import named

EXPERIMENTS = ()
J, MOMENTUM, SEEDS = 10, 0.9, 6
SETTINGS = {(1, 0.0025): "#3f90da", (1, 0.005): "#832db6", (1, 0.01): "#bd1f01", (4, 0.01): "#ffa90e"}
STARTS = {False: (300, 700, 1100), True: (40,)}
"""First batches of the blocks of batches that are looked at; small run or not."""
BATCHES = 20
TICKS = BATCHES + 2 * (J - 1) + 1
"""In which all passes of a block lie, and the one after."""
FIRST = {"stem": 0, "block": 1, "head": J - 1}


class SameBatches(StagedProblem):
    """Batch ``count`` is the same whatever the key: the exact gradients below are of the batches of the run."""

    def batch(self, shards, shard, key, count):
        return super().batch(shards, shard, jax.random.key(1), count)


@cache
def problem(seed: int) -> SameBatches:
    drawn = reversible_mlp(J, stages=J, hidden=32, seed=seed)
    fields = {field.name: getattr(drawn, field.name) for field in dataclasses.fields(drawn) if field.init}
    return SameBatches(**fields)


@partial(jax.jit, static_argnums=0)
def exact(problem, params, count):
    """Gradients of batches ``count`` at ``params``, both with a leading axis."""
    return jax.lax.map(
        lambda one: problem.gradient(one[0], problem.shards, 0, jax.random.key(0), one[1]), (params, count)
    )


def vectors(tree) -> list[np.ndarray]:
    """{kind: leaves ``(rows, stages, ...)``} as an array ``(rows, numbers)`` per stage."""
    order = ("stem", *["block"] * (J - 2), "head")
    stages = []
    for j, kind in enumerate(order):
        leaves = [np.asarray(leaf)[:, order[:j].count(kind)] for leaf in jax.tree.leaves(tree[kind])]
        stages.append(np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1))
    return stages


def forward_time(stacked, batch: np.ndarray, first: int):
    """``(batches, stages, ...)`` of ``(ticks, stages, ...)``: stage i of its kind, the first of which is stage ``first``."""
    return jax.tree.map(
        lambda leaf: np.stack([leaf[batch + first + i, i] for i in range(leaf.shape[1])], axis=1), stacked
    )


def cosine(u: np.ndarray, v: np.ndarray) -> float:
    """Mean over the rows."""
    u, v = u.astype(float), v.astype(float)
    return float(np.mean((u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)))


@cache
def cosines(k: int, learning_rate: float, seed: int, smoke: bool) -> np.ndarray:
    """``(3, J)``: PETRA with the exact gradient at weights of now, with that at weights of forward passes, and of those two.

    Lock-step: batch b passes stage j (from 0) forward in tick b + j and backward in tick b + 2 (J - 1) - j. A record in the
    middle of a tick has the parameters of all its passes, the next one what its backward passes made of them.
    """
    starts = STARTS[smoke]
    ticks = np.concatenate([start + np.arange(TICKS) for start in starts])
    optimizer = {"kind": "sgd", "learning_rate": learning_rate, "momentum": MOMENTUM}
    result = decentral.simulate(
        problem(seed),
        named("pipelines", n=J, stages=J),
        PETRA(optimizer=decentral.Optimizer(**optimizer), accumulate=k, variant="petra"),
        Pipeline(backward=1.0, reconstruct=0.0, turn=1.0),
        stop=float(ticks[-1] + 1),
        record=decentral.Record(times_s=tuple(ticks + 0.5), evaluate=False, states=True),
        seeds=[seed],
    )
    found = []
    for block in range(len(starts)):
        states = result.states[block * TICKS : (block + 1) * TICKS]
        of = {
            kind: jax.tree.map(lambda *leaves: np.concatenate(leaves), *[s[kind] for s in states])
            for kind in states[0]
        }
        params = {kind: state.x for kind, state in of.items()}
        buffers = vectors({kind: state.optimizer[0].trace for kind, state in of.items()})
        totals = None if k == 1 else vectors({kind: state.total for kind, state in of.items()})
        b = np.arange(BATCHES)
        mixed = {kind: forward_time(tree, b, FIRST[kind]) for kind, tree in params.items()}
        counts = (starts[block] + b).astype(np.uint32)
        at_forward = vectors(exact(problem(seed), mixed, counts))
        row = np.empty((3, J))
        for j in range(J):
            tick = b + 2 * (J - 1) - j
            now = jax.tree.map(lambda leaf, tick=tick: leaf[tick], params)
            at_now = vectors(exact(problem(seed), now, counts))[j]
            emitted = buffers[j][tick + 1] - MOMENTUM * buffers[j][tick]
            if totals is not None:
                # An update takes the whole sum and empties it.
                update = ((starts[block] + b + 1) % k == 0)[:, None]
                emitted = np.where(update, emitted, totals[j][tick + 1]) - totals[j][tick]
            row[:, j] = cosine(emitted, at_now), cosine(emitted, at_forward[j]), cosine(at_forward[j], at_now)
        found.append(row)
    return np.mean(found, axis=0)


def all_seeds(setting, smoke: bool) -> np.ndarray:
    """``(seeds, 3, J)``."""
    return np.array([cosines(*setting, seed, smoke) for seed in range(1 if smoke else SEEDS)])


def draw(runs):
    blocks = [start + 1 for start in STARTS[runs.smoke]]
    seeds = 1 if runs.smoke else SEEDS
    note = (
        f"Reversible tanh network of {J} stages in lock-step, momentum {MOMENTUM}. Mean over the {BATCHES} batches from each of "
        f"{', '.join(f'{b:,}' for b in blocks)} on, and over {seeds} seeds; bands: all. PETRA's gradients are differences of "
        "momentum buffers; exact gradients are backpropagation of the same batch, with all stages' weights at the time of the "
        "update, or each stage's at the time of its forward pass. Dashed: the latter against the former, on PETRA's way: what a "
        "method that stores weights and activations would apply."
    )
    with canvas("Where PETRA's gradients point", columns=2, panel=(4.9, 3.4), note=note) as (figure, (row,)):
        stages = np.arange(1, J + 1)
        for (k, learning_rate), colour in SETTINGS.items():
            found = all_seeds((k, learning_rate), runs.smoke)
            for place, axes in enumerate(row):
                axes.fill_between(
                    stages, found[:, place].min(0), found[:, place].max(0), color=colour, alpha=0.15, linewidth=0
                )  # fmt: skip
                axes.plot(
                    stages, found[:, place].mean(0), color=colour, marker="o", markersize=3.5,
                    label=f"k = {k}, rate {learning_rate:g}",
                )  # fmt: skip
            row[0].plot(stages, found[:, 2].mean(0), color=colour, linewidth=1, linestyle=(0, (4, 3)))
        row[0].set(title="With the gradient at the weights of now", ylabel="cosine")
        row[1].set(title="With the gradient at forward-time weights")
        row[0].set_ylim(top=1.01)
        row[1].set_ylim(0.9, 1.01)
        for axes in row:
            axes.set_xticks(stages, ["stem", *map(str, range(2, J)), "head"])
            axes.set(xlabel="stage")
            axes.margins(x=0.03)
        row[1].legend(loc="lower right")
    return figure


def claims(runs):
    def claim(statement, accepted, rule="inside"):
        source = "targets (measured with an independent implementation, other data)"
        return Claim("P7", "PETRA", statement, source, "derived", "toy network", accepted, rule)

    checked = []
    found = {setting: all_seeds(setting, runs.smoke) for setting in SETTINGS}
    for learning_rate, first, last in ((0.0025, 0.95, 0.99), (0.005, 0.90, 0.95), (0.01, 0.75, 0.92)):
        for block, listed in ((1, first), (J - 2, last)):
            statement = (
                f"k = 1, rate {learning_rate:g}: cosine with the gradient at weights of now, block {block} of {J - 2} "
                f"({listed:g} measured before)"
            )
            accepted = (listed - 0.08, listed + 0.08 if listed < 0.92 else None)
            checked.append(
                claim(statement, accepted, "meets").check(*over_seeds(found[1, learning_rate][:, 0, block]))
            )
    inner = slice(1, J - 1)
    checked.append(
        claim("k = 4, rate 0.01: cosine with the gradient at weights of now, smallest of the blocks", (0.98, None)).check(
            *over_seeds(found[4, 0.01][:, 0, inner].min(1))
        )
    )  # fmt: skip
    for (k, learning_rate), values in found.items():
        low = 0.97 if learning_rate <= 0.005 else 0.94
        statement = f"k = {k}, rate {learning_rate:g}: cosine with the gradient at forward-time weights, smallest of the blocks"
        checked.append(claim(statement, (low, None)).check(*over_seeds(values[:, 1, inner].min(1))))
    closer = found[1, 0.01][:, 0, inner].mean(1) - found[1, 0.01][:, 2, inner].mean(1)
    source = "appendix B of the camera-ready version (secondary source)"
    statement = (
        "k = 1, rate 0.01: PETRA is closer to the gradient at weights of now than delayed gradients that store all: "
        "difference of cosines, mean of the blocks"
    )
    checked.append(
        Claim("P7", "PETRA", statement, source, "recalled", "toy network", (0, None)).check(
            *over_seeds(closer)
        )
    )
    return checked


if __name__ == "__main__":
    main(__file__)
