"""PETRA, inversion: how much of its input a chain of reversible blocks gets back in float32, by depth."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from decentral.analysis.claims import Claim, over_seeds
from decentral.experiment.figures import canvas, main
from decentral.problem.reversible import tanh_block

EXPERIMENTS = ()
WIDTH, BATCH, DRAWS = 32, 32, 5
DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128)
GAINS = {0.5: "#3f90da", 1.0: "#bd1f01", 2.0: "#832db6"}
LISTED = {(8, 1.0): 3e-7, (32, 1.0): 2e-6, (128, 1.0): 1e-4, (128, 2.0): 7e-3}


@cache
def chain(precision: str):
    """(depth, gain) -> ``(draws,)`` errors; one program for all depths, which are short to run and slow to compile."""
    block = tanh_block(WIDTH, initialisation="lecun_normal")
    inverse = block.inverse
    assert inverse is not None

    def missed(depth, gain, key):
        keys = jax.random.split(key, DEPTHS[-1] + 2)
        params = jax.tree.map(lambda leaf: (gain * leaf).astype(precision), jax.vmap(block.init)(keys[2:]))
        x = tuple(jax.random.normal(k, (BATCH, WIDTH), "float32").astype(precision) for k in keys[:2])

        def own(j):
            return jax.tree.map(lambda leaf: leaf[j], params)

        y = jax.lax.fori_loop(0, depth, lambda j, x: block.apply(own(j), x), x)
        back = jax.lax.fori_loop(0, depth, lambda j, y: inverse(own(depth - 1 - j), y), y)
        x, back = jnp.stack(x), jnp.stack(back)
        return jnp.max(jnp.abs(back - x)), jnp.max(jnp.abs(x))

    return jax.jit(jax.vmap(missed, (None, None, 0)))


@cache
def largest(depth: int, gain: float, precision: str = "float32") -> np.ndarray:
    """``(2, draws)`` largest |x - inverse(apply(x))| and largest |x|, of normal inputs."""
    with jax.enable_x64(precision == "float64"):
        keys = jax.vmap(jax.random.key)(np.arange(DRAWS, dtype=np.uint32))
        return np.array(chain(precision)(depth, np.float32(gain), keys), float)


def errors(depth: int, gain: float, precision: str = "float32") -> np.ndarray:
    """``(draws,)`` the ratio of the two: the package tries out inverses by the same measure."""
    error, size = largest(depth, gain, precision)
    return error / size


def draw(runs):
    note = (
        f"Blocks (x, xt) -> (xt + tanh(x W), x) of width {WIDTH}, W normal with deviation gain / sqrt({WIDTH}); forward through "
        f"all of them, then back by the inverses. Largest error of {BATCH} normal inputs over the largest input: geometric mean "
        f"and range of {DRAWS} draws. Crosses: what was measured before, with other draws."
    )
    with canvas("Reversible blocks in float32", panel=(5.4, 3.5), note=note) as (figure, ((axes,),)):
        for gain, colour in GAINS.items():
            found = np.array([errors(depth, gain) for depth in DEPTHS])
            axes.fill_between(DEPTHS, found.min(1), found.max(1), color=colour, alpha=0.18, linewidth=0)
            mean = np.exp(np.log(found).mean(1))
            axes.plot(DEPTHS, mean, color=colour, marker="o", markersize=4, label=f"float32, gain {gain:g}")
        exact = np.array([errors(depth, 1.0, "float64").mean() for depth in DEPTHS])
        axes.plot(DEPTHS, exact, color="#717581", linestyle="--", label="float64, gain 1")
        for (depth, gain), listed in LISTED.items():
            axes.plot(depth, listed, "x", color=GAINS[gain], markersize=8, markeredgewidth=1.8, zorder=5)
        axes.plot([1, 32], [1e-5, 1e-5], color="#262626", linewidth=0.9, linestyle=(0, (4, 3)))
        axes.text(1, 1.3e-5, "below up to 32 blocks, gain at most 1", fontsize=8, color="#404040")
        axes.set(xscale="log", yscale="log", xlabel="blocks", ylabel="error of the inputs (relative)")
        axes.set_xticks(DEPTHS, map(str, DEPTHS))
        axes.set_xticks([], minor=True)
        axes.margins(x=0.03)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def claims(runs):
    def claim(statement, accepted, source):
        return Claim("P8", "PETRA", statement, source, "derived", "exact", accepted)

    worst = max(errors(depth, gain).max() for depth in DEPTHS if depth <= 32 for gain in (0.5, 1.0))
    absolute = max(largest(depth, gain)[0].max() for depth in DEPTHS if depth <= 32 for gain in (0.5, 1.0))
    checked = [
        claim("float32, up to 32 blocks, gain at most 1: largest error over the largest input", (0, 1e-5), "targets").check(
            worst, note=f"the largest error itself, of normal inputs, is {absolute:.2g}"
        )
    ]  # fmt: skip
    for (depth, gain), listed in LISTED.items():
        logs, interval = over_seeds(np.log10(errors(depth, gain)))
        statement = (
            f"float32, {depth} blocks, gain {gain:g}: inversion error ({listed:.0e} measured before), log10"
        )
        accepted = (np.log10(listed) - 0.7, np.log10(listed) + 0.7)
        checked.append(
            claim(statement, accepted, "targets (measured with other draws): within a factor of five").check(
                logs, interval, note=f"{10**logs:.1e}"
            )
        )
    growth = np.log10(errors(128, 1.0).mean() / errors(8, 1.0).mean())
    statement = "float32, gain 1: the error grows with depth: log10 of that of 128 blocks over that of 8"
    return [*checked, claim(statement, (1, None), "targets").check(growth)]


if __name__ == "__main__":
    main(__file__)
