"""MuLO (µLO), figure 2: how far the outputs of each layer move in ten steps, against the width, in µP and in the standard way.

Computed here, without run folders.
"""

import dataclasses
from functools import cache

from decentral import Optimizer, problem
from decentral.analysis.claims import Claim
from decentral.analysis.coordinates import coordinate_figure
from decentral.experiment.coordinates import coordinate_check
from decentral.experiment.figures import main

EXPERIMENTS = ()
WIDTHS, STEPS, SEEDS = (16, 64, 128, 256, 512, 1024), 10, 3
LAYERS = ("layer 1", "layer 2", "layer 3", "logits")
CASES = {  # words: parametrization, optimizer and its arguments
    "µLO": ("mup", "learned", {"meta_parameters": "mulo_small"}),
    "hand-made, µP": ("mup", "learned", {"meta_parameters": "hand_made", "step_multiplier": 0.1}),
    "µAdam, rate 0.03": ("mup", "adam", {"learning_rate": 0.03}),
    "LO, standard": ("standard", "learned", {"meta_parameters": "lo_small"}),
    "hand-made, standard": (
        "standard",
        "learned",
        {"meta_parameters": "hand_made", "step_multiplier": 0.003},
    ),
    "Adam, rate 0.01": ("standard", "adam", {"learning_rate": 0.01}),
}


@cache
def check(case: str, widths: tuple[int, ...], seeds: int):
    """The coordinate check of one optimizer."""
    parametrization, kind, arguments = CASES[case]

    def build(width: int):
        return problem.mlp(
            1, data="teacher", hidden=(width,) * 3, batch_size=64, partition="shared", parametrization=parametrization
        )  # fmt: skip

    optimizer = Optimizer(kind, parametrization=parametrization, **arguments)
    return coordinate_check(build, widths, optimizer, steps=(STEPS,), seeds=seeds)


def measured(runs, case: str):
    """Of all widths and seeds; fewer for a look."""
    return check(case, WIDTHS[:2], 1) if runs.smoke else check(case, WIDTHS, SEEDS)


def draw(runs):
    cases = [*CASES][::3] if runs.smoke else CASES
    title = "In µP the layers move alike at every width; elsewhere wider networks move further"
    return coordinate_figure({case: measured(runs, case) for case in cases}, title=title)


def claims(runs):
    where = f"three hidden layers, standard deviation of the change after {STEPS} steps: slope of its log over log width"
    source = "reference study (measured with an independent implementation)"

    def claim(statement, accepted):
        return Claim("U6", "µLO", f"{statement}, {where}", source, "derived", "toy network", accepted)

    def slope(case, layer, narrowest=WIDTHS[0]):
        of_all = measured(runs, case)
        first = of_all.widths.index(narrowest)
        wide = dataclasses.replace(of_all, widths=of_all.widths[first:], change=of_all.change[first:])
        mean, half = wide.slopes()[layer]
        return mean, (mean - half, mean + half)

    checked = [
        claim(f"µLO, {layer}: does not depend on the width (16 to 1024)", (-0.1, 0.1)).check(
            *slope("µLO", layer)
        )
        for layer in LAYERS
    ]
    statement = "a learned optimizer in the standard parametrization, layer 2: grows with the width (64 to 1024; 0.55 there)"
    return [*checked, claim(statement, (0.4, 0.7)).check(*slope("LO, standard", "layer 2", 64))]


if __name__ == "__main__":
    main(__file__)
