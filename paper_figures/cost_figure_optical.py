"""Cost, optical units: where is a random projection quicker, or cheaper in energy, on one than on a GPU, and where not?

Closed forms of ``decentral.cost.optical``, counted without a run, and without an optical unit.
"""

import math
from dataclasses import replace

import numpy as np
from matplotlib.patheffects import withStroke

from decentral.analysis.claims import Claim
from decentral.cost.cluster import of_device
from decentral.cost.optical import RandomProjection, Rivals, crossover, dense, feedback, hadamard, optical
from decentral.experiment.figures import canvas, main
from decentral.hardware import device, optical_unit

EXPERIMENTS = ()
GPU = of_device(device("A100-SXM4-80GB"), 1, 1, 1e9)
UNITS = {name: Rivals(optical_unit(f"LightOn OPU {name}"), GPU) for name in ("Gen-2", "Gen-3")}
BATCHES = (1, 1000)
LARGEST = 1_039_680  # mirrors
SIZES = np.unique(np.geomspace(100, LARGEST, 1500).astype(int))
MODES = {
    "anchor": False,
    "intensity": True,
}  # and whether the matrix of the rivals is complex: |H x|^2 is of two real products
COLOURS = {"dense": "#5a5f66", "hadamard": "#3f90da", "Gen-2": "#e76300", "Gen-3": "#832db6"}
LOOKS = {"anchor": "-", "intensity": (0, (4, 2))}
MEASURES = {"seconds": ("time", "seconds a vector"), "joules": ("energy", "joules a vector")}
GENERATIONS = tuple(UNITS)


def square(batch: int, mode: str, sizes=SIZES) -> RandomProjection:
    return RandomProjection(sizes, sizes, batch, mode, MODES[mode])


def found(name: str, mode: str, batch: int, against: str, measure: str, rivals=None):
    return crossover(square(batch, mode, 1), rivals or UNITS[name], against, measure)


def least_ratio(measure: str) -> tuple[float, str]:
    """The least of optical over Hadamard, of both generations, modes and batches and all sizes drawn, and where."""
    ratios = {}
    for name, rivals in UNITS.items():
        for mode in MODES:
            for batch in BATCHES:
                task = square(batch, mode)
                ratio = getattr(optical(task, rivals), measure) / getattr(hadamard(task, rivals), measure)
                place = int(np.argmin(ratio))
                ratios[float(ratio[place])] = f"{name}, {mode} mode, batch {batch:,}, n = {SIZES[place]:,}"
    least = min(ratios)
    return least, ratios[least]


def panel(axes, batch: int, measure: str) -> None:
    """Curves of one batch: a band for a digital rival, from a real matrix to a complex one."""
    any_unit = UNITS["Gen-2"]
    for name, project in (("dense", dense), ("hadamard", hadamard)):
        real, both = (getattr(project(square(batch, mode), any_unit), measure) / batch for mode in MODES)
        fits = np.isfinite(real) & np.isfinite(both)
        axes.fill_between(SIZES[fits], real[fits], both[fits], color=COLOURS[name], alpha=0.18, linewidth=0)
        axes.plot(SIZES, np.where(np.isfinite(real), real, np.nan), color=COLOURS[name], linewidth=2)
        axes.plot(
            SIZES,
            np.where(np.isfinite(both), both, np.nan),
            color=COLOURS[name],
            linewidth=2,
            linestyle=LOOKS["intensity"],
        )
    spread = replace(any_unit, matrix="sharded")
    full = np.flatnonzero(~dense(square(batch, "anchor"), any_unit).possible)[0]
    beyond = getattr(dense(square(batch, "anchor"), spread), measure) / batch
    axes.plot(SIZES[full:], beyond[full:], color=COLOURS["dense"], linewidth=1.3, linestyle=(0, (1, 1.6)))
    axes.plot(
        SIZES[full - 1], beyond[full - 1], "|", color=COLOURS["dense"], markersize=11, markeredgewidth=2
    )
    for name, rivals in UNITS.items():
        for mode, look in LOOKS.items():
            light = getattr(optical(square(batch, mode), rivals), measure) / batch
            axes.plot(SIZES, light, color=COLOURS[name], linewidth=1.8, linestyle=look)
        first = found(name, "anchor", batch, "dense", measure)
        if first.first != first.without_rival:
            value = float(getattr(optical(square(batch, "anchor", first.first), rivals), measure)) / batch
            axes.plot(
                first.first, value, "o", color=COLOURS[name], markeredgecolor="white", markersize=7, zorder=5
            )
            axes.annotate(
                f"{first.first:,}", (first.first, value), (-6, 5), textcoords="offset points", ha="right", fontsize=8.5,
                color=COLOURS[name], fontweight="bold", path_effects=[withStroke(linewidth=3, foreground="white")], zorder=6,
            )  # fmt: skip


def draw(runs):
    note = (
        "Square projections of 1-bit vectors, n inputs to m = n outputs. GPU: A100-SXM4-80GB, 16 bits, 400 W, data on the GPU; "
        "solid: real matrix, dashed: complex (what |Hx|² needs); tick: its 80 GB are full, dotted: sharded over as few GPUs as "
        "hold a real matrix. Optical units: 30 W of the head unit alone, no host, no software; solid: anchor mode (linear, "
        "2 frames a vector), dashed: intensity mode (|Hx|², 1 frame); each compares with the GPU's line of its kind. Dots: where "
        "anchor mode passes the real dense product. Walsh-Hadamard transform: subsampled (SRHT), padded to powers of two, no "
        "Gaussian matrix. Computed: no optical unit was measured."
    )
    title = "An optical unit beats a dense product where the matrix is large, and loses to the fast transform everywhere"
    with canvas(title, rows=2, columns=2, panel=(4.9, 3.3), note=note) as (figure, grid):
        for row, (measure, (words, label)) in zip(grid, MEASURES.items(), strict=True):
            for axes, batch in zip(row, BATCHES, strict=True):
                panel(axes, batch, measure)
                of = "one vector" if batch == 1 else f"a batch of {batch:,}"
                axes.set(
                    xscale="log", yscale="log", xlim=(100, 1.3e6), title=f"{words.capitalize()}, {of}",
                    ylabel=label if batch == 1 else "", xlabel="n = m" if measure == "joules" else "",
                )  # fmt: skip
            limits = [axes.get_ylim() for axes in row]
            for axes in row:
                axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        for text, place, colour in (
            ("optical, Gen-2", (115, 1.2e-3), COLOURS["Gen-2"]),
            ("optical, Gen-3", (115, 5.2e-5), COLOURS["Gen-3"]),
            ("GPU, dense", (1.1e4, 1.3e-2), COLOURS["dense"]),
            ("GPU, Walsh-Hadamard", (115, 1.5e-6), COLOURS["hadamard"]),
        ):
            grid[0, 0].text(*place, text, color=colour, fontsize=9, fontweight="bold")
        grid[0, 1].text(
            115, 2.4e-3, "anchor mode: slower wherever the matrix fits", fontsize=8.5, color="#6b6b6b"
        )
    return figure


def claims(runs):
    formulas = "data sheets of the devices, formulas of decentral/cost/optical.py"

    def claim(number, statement, accepted, source=formulas, tag="derived"):
        return Claim(f"O{number}", "Optical projection", statement, source, tag, "exact", accepted)

    one = RandomProjection(1, 1)
    endless = replace(UNITS["Gen-2"], cluster=replace(GPU, memory_bytes=1e18))
    large = replace(one, batch=100_000)
    frame = float(optical(RandomProjection(1000, 1000), UNITS["Gen-2"]).work_s)
    checked = [
        claim(1, "Joules of a frame of Gen-2, 30 W at 2 kHz", (14.9e-3, 15.1e-3)).check(30 * frame),
        claim(
            2,
            "Size from which an optical unit (Gen-2, intensity, 1 frame) is quicker than an A100's dense product of one vector "
            "(real, 16 bits): about 22,000",
            (20_000, 24_000),
        ).check(crossover(one, UNITS["Gen-2"]).first),
        claim(
            2,
            "The same of a large batch, if the memory had no end: about 200,000 with 156 TFLOP/s",
            (180_000, 240_000),
        ).check(
            crossover(large, endless).first,
            note=f"the product is expected to reach more than that; 80 GB hold a matrix up to "
            f"{crossover(large, UNITS['Gen-2']).without_rival:,}",
        ),
    ]
    statement = "An optical unit is quicker than a GPU beyond a size of 12,000"
    v100 = Rivals(
        optical_unit("LightOn OPU Gen-2"),
        of_device(device("V100-SXM2"), 1, 1, 1e9, precision="fp16"),
        exposure_s=1.15e-3,
    )
    source, tag = "LightOn's claim; arXiv 2104.14429 has 12k and about 70k", "recalled"
    for words, first, note in (
        (
            "one vector, real, frame of 1.2 ms, V100, dense in 16 bits",
            crossover(one, v100).first,
            "at the 420 GB/s that were measured in fp32, it is 11,300",
        ),
        ("batch 1,000, real, Gen-2, anchor, A100, dense", found("Gen-2", "anchor", 1000, "dense", "seconds").first,
         "only because the memory is full; sharded, "
         + found("Gen-2", "anchor", 1000, "dense", "seconds", replace(UNITS["Gen-2"], matrix="sharded")).words),
        ("one vector, real, Gen-3, anchor, A100, Walsh-Hadamard", found("Gen-3", "anchor", 1, "hadamard", "seconds").first,
         "no such size"),
    ):  # fmt: skip
        checked.append(
            claim(3, f"{statement} ({words})", (None, 12_600), source, tag).check(
                first or math.inf, note=note
            )
        )
    for measure, (words, _) in MEASURES.items():
        ratio, place = least_ratio(measure)
        checked.append(
            claim(
                4,
                f"The fast Walsh-Hadamard transform on an A100 beats the optical unit at every size in {words}: least ratio",
                (1, None),
                "operations of the transform, formulas of decentral/cost/optical.py",
            ).check(ratio, note=place)
        )
    for name in GENERATIONS:
        sizes = [found(name, "anchor", 1000, "dense", measure).first for measure in ("joules", "seconds")]
        checked.append(
            claim(
                5,
                f"An optical unit's case is energy: size from which it takes less of it, over that from which it is quicker "
                f"(batch 1,000, real, {name}, anchor, A100 dense)",
                (None, 0.999),
            ).check(sizes[0] / sizes[1], note=f"{sizes[0]:,} and {sizes[1]:,}")
        )
    for words, layers, hidden in (("24 layers of 2,048", 24, 2048), ("96 layers of 12,288", 96, 12_288)):
        step = feedback(4096, 50_257, layers, hidden, replace(UNITS["Gen-3"], matrix="sharded"))
        what = f"DFA, errors of 4,096 tokens over a vocabulary of 50,257 into {words} (Gen-3, anchor, ternary, A100 dense)"
        times, energy = (
            float(getattr(step["optical"], m) / getattr(step["dense"], m)) for m in ("seconds", "joules")
        )
        fast = float(step["optical"].joules / step["hadamard"].joules)
        note = f"matrix of {float(step['dense'].matrix_bytes) / 1e9:.3g} GB on {int(step['dense'].devices)}"
        checked += [
            claim(6, f"{what}: the GPU is quicker, ratio of times optical over dense", (1, None)).check(
                times, note=note
            ),
            claim(
                6, f"{what}: the optical unit's case is energy, ratio of joules optical over dense", (None, 1)
            ).check(energy, note=f"{note}; over Walsh-Hadamard {fast:.3g}"),
        ]
    return checked


if __name__ == "__main__":
    main(__file__)
