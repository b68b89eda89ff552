"""Cost, "superlinear scaling": does communication grow faster than compute, from GPT-2 over GPT-3 to ten trillion parameters?

A slide says: compute ++, memory ++, communication ++++. Counted here, without a run.
"""

from dataclasses import replace

import numpy as np

from decentral.analysis.claims import Claim
from decentral.cost.scaling import SHAPES, exponent, growth
from decentral.experiment.figures import canvas, main

EXPERIMENTS = ()
REPLICA_TOKENS, REPLICAS = 50_000, 64  # GPT-3's batch of 3.2e6 tokens
FOUND = growth(SHAPES, REPLICA_TOKENS, REPLICAS)
# How much larger an exponent has to be to count as faster: attention alone takes 0.01 from that of compute. The verdicts are the
# same for anything from 0.02 to 0.14.
FASTER = 0.1
LINES = {  # of FOUND -> words, the look, and where they stand at the right end: a factor
    "flop_per_token": ("compute", {"color": "#9cc8ef", "linewidth": 7, "solid_capstyle": "round"}, 1.25),
    "memory_bytes": ("memory", {"color": "#0b3d6b", "linewidth": 1.6}, 0.46),
    "data": (
        "traffic, data parallel",
        {"color": "#832db6", "linewidth": 2.2, "linestyle": (0, (2, 2))},
        0.17,
    ),
    "model_parallel": ("traffic, 3D parallel", {"color": "#e76300", "linewidth": 2.2}, 1.3),
}
PARTS = {
    "data": ("gradients, between replicas", "#832db6"),
    "pipeline": ("activations, between stages", "#3f90da"),
    "tensor": ("activations, inside layers (stay in a node)", "#ffa90e"),
}


WIDE = replace(SHAPES[2], tensor=64, pipeline=24)
WIDER = growth((*SHAPES[:2], WIDE), REPLICA_TOKENS, REPLICAS)


def slope(name: str, models=slice(None), found=FOUND) -> float:
    return exponent(found.parameters[models], getattr(found, name)[models])


def draw(runs):
    shapes = "; ".join(
        f"{s.name}: {s.layers} layers of {s.hidden}, {s.tensor} x {s.pipeline} GPUs for a replica"
        for s in SHAPES
    )
    note = (
        f"{shapes} (the last shape and all degrees are assumed). 3D: tensor, pipeline and data parallel. bf16, "
        f"{REPLICA_TOKENS:,} tokens of each of {REPLICAS} replicas in a step, whatever the model; traffic: bytes sent by all "
        "GPUs of a replica, ring all-reduces; compute: of a token, with full attention; memory: 16 bytes for each parameter. "
        "Data parallel: as if one GPU could hold a replica. Exponents: slopes of the logarithms over all three models; "
        "numbers: between two. Dashed: "
        f"layers of the last model cut over {WIDE.tensor} GPUs instead of {SHAPES[2].tensor}."
    )
    title = (
        "Communication leaps where layers are cut over more GPUs; apart from that it does not outgrow compute"
    )
    with canvas(title, columns=2, panel=(4.9, 3.7), note=note) as (figure, ((left, right),)):
        for name, (words, look, factor) in LINES.items():
            values = getattr(FOUND, name) / getattr(FOUND, name)[0]
            left.plot(FOUND.parameters, values, **look)
            left.annotate(
                f"{words} $N^{{{slope(name):.2f}}}$", (FOUND.parameters[-1], factor * values[-1]), (9, 0),
                textcoords="offset points", fontsize=8.5, va="center", color=look["color"] if factor != 1.25 else "#3f90da",
            )  # fmt: skip
        three = FOUND.model_parallel / FOUND.model_parallel[0]
        left.plot(FOUND.parameters, three, "o", color=LINES["model_parallel"][1]["color"], markersize=5)
        cut = WIDER.model_parallel / WIDER.model_parallel[0]
        look = {"color": LINES["model_parallel"][1]["color"], "linewidth": 1.2, "linestyle": (0, (4, 3))}
        left.plot(WIDER.parameters[1:], cut[1:], **look)
        left.annotate(
            f"{slope('model_parallel', slice(1, 3), WIDER):.2f}", (WIDER.parameters[2], cut[2]), (9, 0),
            textcoords="offset points", fontsize=8.5, va="center", color=look["color"],
        )  # fmt: skip
        first = np.exp(np.log(FOUND.parameters[:2]).mean()), np.sqrt(three[1])
        for models, point, offset, side in (
            (slice(0, 2), first, (-7, 6), "right"),
            (slice(1, 3), (FOUND.parameters[1], three[1]), (11, -5), "left"),
        ):
            left.annotate(
                f"{slope('model_parallel', models):.2f}", point, offset, textcoords="offset points", ha=side,
                fontsize=8.5, color=look["color"],
            )  # fmt: skip
        for shape, size in zip(SHAPES, FOUND.parameters, strict=True):
            left.axvline(size, color="#c8c8c8", linewidth=0.8, zorder=0)
            left.annotate(
                shape.name, (size, 0.2), (4, 0), textcoords="offset points", fontsize=8, color="#6b6b6b"
            )
        left.set(
            xscale="log", yscale="log", xlabel="parameters N", ylabel="over that of GPT-2", xlim=(7e8, 1.5e15),
            ylim=(0.1, 4e5), title="Compute, memory and traffic of a step",
        )  # fmt: skip
        left.set_xticks([1e9, 1e10, 1e11, 1e12, 1e13])
        left.set_xticks([], minor=True)
        bottom = np.zeros(len(SHAPES))
        for name, (words, colour) in PARTS.items():
            share = 1e6 * getattr(FOUND, name) / FOUND.step_flop
            right.bar(range(len(SHAPES)), share, bottom=bottom, color=colour, width=0.6, label=words)
            bottom += share
        for place, total in enumerate(bottom):
            right.text(place, total + 2, f"{total:.0f}", ha="center", fontsize=8.5)
        right.set_xticks(
            range(len(SHAPES)),
            [f"{s.name}\na replica: {s.tensor * s.pipeline} GPU" + "s" * (s.tensor > 1) for s in SHAPES],
        )
        right.tick_params(axis="x", labelsize=8)
        right.grid(axis="x", visible=False)
        right.set(ylabel="bytes sent for a million FLOP", xlim=(-0.6, 2.6), ylim=(0, 195))
        right.set_title("Traffic for the same compute, 3D parallel")
        right.legend(
            *(each[::-1] for each in right.get_legend_handles_labels()), loc="upper right", fontsize=8
        )
    return figure


def claims(runs):
    def claim(statement, accepted, source="a slide, as it was told", tag="recalled"):
        return Claim("S1", "Superlinear scaling", statement, source, tag, "exact", accepted)

    checked = [
        claim(f"Exponent of the {words} over the parameters, GPT-2 to ten trillion", (0.95, 1.05)).check(
            slope(name)
        )
        for words, name in (("compute of a token", "flop_per_token"), ("memory", "memory_bytes"))
    ]
    everything, whole = "tensor, pipeline and data parallel", "GPT-2 to ten trillion"
    for words, name, models, span in (
        ("data parallel", "data", slice(None), whole),
        (everything, "model_parallel", slice(None), whole),
        (everything, "model_parallel", slice(0, 2), "GPT-2 to GPT-3"),
        (everything, "model_parallel", slice(1, 3), "GPT-3 to ten trillion"),
        (f"{everything}, without what stays inside layers", "outside_layers", slice(None), whole),
    ):
        text = f"Communication of a step grows faster than its compute ({words}; {span}): exponent less that of compute"
        excess = slope(name, models) - slope("flop_per_token", models)
        note = ""
        if (name, span) == ("model_parallel", whole):
            few, many = (slope(name, models, growth(SHAPES, tokens, REPLICAS)) for tokens in (5e3, 1e6))
            compute = slope("flop_per_token")
            note = f"with 5,000 tokens of a replica {few - compute:.2f}, with 1,000,000 {many - compute:.2f}"
        elif models == slice(1, 3):
            wider = slope(name, models, WIDER) - slope("flop_per_token", models)
            note = f"layers of the last cut over 8 GPUs; over 64: {wider:.2f}"
        checked.append(claim(text, (FASTER, None)).check(excess, note=note))
    return checked


if __name__ == "__main__":
    main(__file__)
