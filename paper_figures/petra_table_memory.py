"""PETRA, tables 1 and 3: what methods cost in theory, and the bytes of a RevNet's stages."""

from functools import cache

import numpy as np

from decentral.analysis import pipeline as says
from decentral.analysis.claims import Claim
from decentral.cost import memory_tables
from decentral.cost import pipeline as closed
from decentral.engine.trace import StageShape
from decentral.experiment.figures import canvas, main
from decentral.protocol import Demand, Pipeline, Time
from decentral.topology import named

EXPERIMENTS = ()
BATCH = 64
KEPT = {  # (inputs, parameters): name, what table 3 says of RevNet50 in GB, colour
    (True, True): ("inputs and parameters", 44.5, "#717581"),
    (True, False): ("inputs", 43.6, "#3f90da"),
    (False, True): ("parameters", 21.2, "#ffa90e"),
    (False, False): ("none: PETRA", 20.3, "#bd1f01"),
}
EXACT = {50: (44.45, 43.58, 21.20, 20.33), 18: (4.94, None, None, 2.17)}
"""GB by the analytic function of the authors' code."""


def gigabytes(depth: int, kept: tuple[bool, bool]) -> float:
    inputs, parameters = kept
    sizes = memory_tables.revnet_sizes(depth)
    return memory_tables.buffered_bytes(sizes, BATCH, keep_inputs=inputs, keep_parameters=parameters) / 1e9


def saved(depth: int, kept: tuple[bool, bool]) -> float:
    """Per cent of what both buffers take."""
    return 100 * (1 - gigabytes(depth, kept) / gigabytes(depth, (True, True)))


@cache
def of_stages(depth: int) -> dict[str, np.ndarray]:
    """GB at each stage with batches in flight as a lock-step timeline has them: what -> ``(stages,)``."""
    sizes = memory_tables.revnet_sizes(depth)
    protocol, stages = Pipeline(backward=1.0, reconstruct=0.0, turn=1.0), len(sizes)
    shapes = [
        StageShape(f"{j}", f"{j}" if j else "", f"{j + 1}" if j < stages - 1 else "") for j in range(stages)
    ]
    graph = named("pipelines", n=stages, stages=stages)
    network = protocol.network(graph, Demand(meetings=("stages",), stages=tuple(shapes)))
    flying = says.in_flight(protocol.timeline(network, Time(6.0 * stages), seed=0))
    model = 4.0 * np.array([size.parameters + size.statistics for size in sizes])
    inputs = 4.0 * BATCH * np.array([size.inputs for size in sizes])
    kept = np.array([not size.reversible for size in sizes])
    petra = says.stage_bytes(flying, model, 0, np.where(kept, inputs, 0))[0] + np.where(kept, 0, inputs)
    return {"petra": petra / 1e9, "inputs": says.stage_bytes(flying, model, 0, inputs)[0] / 1e9}


def queued(depth: int) -> float:
    """GB of inputs that wait in stages that are not reversible, without the batch that is being worked on."""
    sizes = memory_tables.revnet_sizes(depth)
    waits = (2 * (len(sizes) - 1 - j) * size.inputs for j, size in enumerate(sizes) if not size.reversible)
    return 4e-9 * BATCH * sum(waits)


TABLE = {  # the same rows as closed.method_costs, in the paper's letters
    "backprop": ("FG", "1", "1", "3 J", "3 J"),
    "reversible backprop": ("0", "1", "4", "4 J", "4 J"),
    "delayed gradients": ("2(J-j) FG", "2(J-j)/k", "1", "3 J", "2"),
    "delayed gradients, checkpoints": ("2(J-j)", "1", "1", "4 J", "3"),
    "petra": ("0", "1", "4", "4 J; code: 5 J", "3"),
}


def draw(runs):
    note = (
        "Batch 64, float32, k = 1. Table 3 is the analytic function of the authors' code, no measurement: parameters, a batch of "
        "inputs, 2(J - j) batches more where inputs are kept, 2(J - j) copies of the parameters where these are. It counts one "
        "of a reversible stage's two streams. By stage: the same sizes with the batches in flight of a lock-step timeline. "
        "Table 1, of stage j of J: a backward pass is two forward passes, in units of which FLOPs and mean time for a batch are; "
        "FG is what a pass keeps for going backward, in units of a stage's input; FLOPs of PETRA's code from the code."
    )
    with canvas("What PETRA keeps", rows=2, columns=2, panel=(5.6, 2.9), note=note) as (figure, grid):
        (bars, stages), (small, table) = grid
        for axes, depth in ((bars, 50), (small, 18)):
            for place, (kept, (_, listed, colour)) in enumerate(KEPT.items()):
                value = gigabytes(depth, kept)
                axes.barh(place, value, color=colour, height=0.65)
                if depth == 50:
                    axes.plot(listed, place, "|", color="#262626", markersize=16)
                less = f" (-{saved(depth, kept):.1f} %)" if place else ""
                axes.text(value, place, f"  {value:.2f} GB{less}", va="center", fontsize=8)
            axes.set_yticks(range(len(KEPT)), [name for name, _, _ in KEPT.values()])
            axes.set(
                ylim=(3.6, -0.6), xlim=(0, 1.4 * gigabytes(depth, (True, True))), xlabel="GB in all stages"
            )
            axes.set_title(f"RevNet{depth}, by what is kept" + (" (black: table 3)" if depth == 50 else ""))
            axes.grid(axis="y", visible=False)
        held = of_stages(50)
        j = np.arange(1, len(held["petra"]) + 1)
        stages.bar(j - 0.2, held["inputs"], width=0.4, color="#3f90da", label="all inputs kept")
        stages.bar(j + 0.2, held["petra"], width=0.4, color="#bd1f01", label="PETRA")
        stages.set(yscale="log", xlabel="stage j", ylabel="GB", title="RevNet50, by stage", ylim=(0.004, 30))
        stages.set_xticks(j)
        stages.grid(axis="x", visible=False)
        stages.legend(loc="upper right", ncols=2)
        table.axis("off")
        table.set_title("Table 1: costs of a stage")
        columns = ("", "activations", "parameters", "sent", "FLOPs", "time")
        cells = [("PETRA" if name == "petra" else name, *cells) for name, cells in TABLE.items()]
        drawn = table.table(
            cellText=cells, colLabels=columns, loc="upper left", cellLoc="left", colLoc="left",
            edges="horizontal", colWidths=[0.375, 0.155, 0.15, 0.075, 0.185, 0.08], bbox=(-0.06, 0.05, 1.08, 0.95),
        )  # fmt: skip
        drawn.auto_set_font_size(False)
        drawn.set_fontsize(7.5)
        for (line, _), cell in drawn.get_celld().items():
            cell.set_edgecolor("#cccccc")
            cell.PAD = 0.02
            if line in (0, len(cells)):
                cell.set_text_props(weight="bold")
    return figure


def claims(runs):
    code = "output of the authors' analytic function"

    def claim(statement, accepted, source="table 3", tag="read", name="P5"):
        return Claim(name, "PETRA", statement, source, tag, "exact", accepted)

    checked = []
    for (kept, (words, listed, _)), exact in zip(KEPT.items(), EXACT[50], strict=True):
        statement = f"RevNet50, batch 64, kept: {words} (GB)"
        checked.append(claim(statement, (listed - 0.051, listed + 0.051)).check(gigabytes(50, kept)))
        checked.append(
            claim(statement, (exact - 0.005, exact + 0.005), code, "code").check(gigabytes(50, kept))
        )
    for kept, words, listed in (
        ((True, False), "inputs alone are kept", 2.0),
        ((False, True), "parameters alone are kept", 52.3),
        ((False, False), "neither is kept (PETRA)", 54.3),
    ):
        statement = f"RevNet50: saved where {words} (%)"
        checked.append(claim(statement, (listed - 0.051, listed + 0.051)).check(saved(50, kept)))
    for kept, exact in ((True, True), 4.94), ((False, False), 2.17):
        statement = f"RevNet18, batch 64, kept: {KEPT[kept][0]} (GB)"
        checked.append(
            claim(statement, (exact - 0.005, exact + 0.005), code, "code").check(gigabytes(18, kept))
        )
    checked.append(
        claim("RevNet50 with PETRA: queues of the stages that are not reversible (GB)", (18.25, 18.35), code, "code").check(
            queued(50)
        )
    )  # fmt: skip
    own = "batches in flight counted in a trace times the sizes"
    checked.append(
        claim("RevNet50 with PETRA from a trace: all stages together (GB)", (20.325, 20.335), own, "derived").check(
            float(of_stages(50)["petra"].sum())
        )
    )  # fmt: skip
    costs = closed.method_costs(10, 1)
    table = {
        "backprop": (1, 1, 1, 30, 30),
        "reversible backprop": (0, 1, 4, 40, 40),
        "delayed gradients": (18, 18, 1, 30, 2),
        "delayed gradients, checkpoints": (18, 1, 1, 40, 3),
        "petra": (0, 1, 4, 40, 3),
    }
    off = max(abs(a - b) for name, row in table.items() for a, b in zip(costs[name], row, strict=True))
    statement = "Table 1 at J = 10, j = 1, k = 1, FG = 1: largest difference of 25 entries"
    return [*checked, claim(statement, (0, 0), "table 1").check(off)]


if __name__ == "__main__":
    main(__file__)
