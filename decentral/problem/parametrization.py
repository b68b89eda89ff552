"""Maximal-update parametrization (µP): what each tensor of a model is, and the factor its update gets for it.

With it the best hyper-parameters of a small width are those of a large one: at initialisation and after every step,
pre-activations neither vanish nor grow with the width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from decentral.errors import InvalidInput
from decentral.problem.checks import check_choice, check_int

PARAMETRIZATIONS = ("standard", "mup")
"""How a model is initialised and its updates are scaled: as usual, or so that hyper-parameters transfer between widths."""
IN_PROPORTION = ("sgd",)
"""Optimizers whose updates are as large as gradients."""
OF_ORDER_1 = (
    *("learned", "adam", "adamw", "adamax", "adabelief", "amsgrad", "nadam", "nadamw", "rmsprop"),
    *("lion", "sign_sgd"),
)
"""Optimizers whose updates remain the same when all gradients are multiplied with a number, their small constants apart."""
KINDS = ("input", "hidden", "output", "vector")


@dataclasses.dataclass(frozen=True)
class Role:
    """What a tensor is; a leaf of ``Problem.roles``.

    Args:
        kind: "hidden": a matrix (or convolution) whose inputs and outputs both grow with the width; "input" and "output":
            only its outputs, or only its inputs, do; "vector": a bias or the scale of a norm.
        fan_in: inputs of each of its outputs.
        fan_out: its outputs; of a vector, its entries.
    """

    kind: str
    fan_in: int = 1
    fan_out: int = 1

    def __post_init__(self) -> None:
        check_choice("role.kind", self.kind, KINDS)
        check_int("role.fan_in", self.fan_in)
        check_int("role.fan_out", self.fan_out)

    @property
    def multiplier(self) -> float:
        """Of an update whose entries are of order 1, as Adam's or a learned optimizer's: 1 / fan_in for hidden tensors, else 1.

        Absolute, not relative to a base width, as in the released code of µLO (arXiv 2406.00153): 1 at width 1.
        """
        return 1.0 / self.fan_in if self.kind == "hidden" else 1.0

    @property
    def gradient_multiplier(self) -> float:
        """Of an update in proportion to the gradient, as SGD's: 1 for hidden tensors, and the width for the others.

        Gradients of a wide network are small: at each parameter of order 1 / width.
        """
        return {"input": self.fan_out, "hidden": 1.0, "output": self.fan_in, "vector": self.fan_out}[
            self.kind
        ] * 1.0


def multipliers_of(problem: Any, kind: str) -> Any:
    """What µP multiplies the updates of optimizer ``kind`` with: a pytree of floats, one for each tensor of the problem's model.

    For a model whose logits are divided by their fan_in, as ours are. Tensor Programs V (Yang et al. 2022), table 8, recalled.

    Raises:
        InvalidInput: the problem's model is not in µP.
    """
    if problem.roles is None:
        raise InvalidInput(
            "optimizer.parametrization", "mup", f"'standard' on {problem.name}, whose tensors have no roles",
            "Set problem.parametrization = 'mup' (mlp and transformer have it), or give your own model's roles to from_loss.",
        )  # fmt: skip
    name = "gradient_multiplier" if kind in IN_PROPORTION else "multiplier"
    return jax.tree.map(lambda role: getattr(role, name), problem.roles)


def check_mup(kind: str, weight_decay: Any) -> None:
    """Refuses optimizers in µP for which it is not known how updates change with the width.

    Raises:
        InvalidInput: updates are scaled by norms of whole tensors, or gradients compared with a constant; or there is weight
            decay: coupled, it would add to the gradient what does not shrink with it; decoupled, its factor is a choice.
    """
    if kind not in (*IN_PROPORTION, *OF_ORDER_1):
        known = ", ".join((*IN_PROPORTION, *OF_ORDER_1))
        raise InvalidInput(
            "optimizer.parametrization", "mup", f"'standard' with {kind}", f"With 'mup': {known}."
        )
    if weight_decay not in (None, 0.0):
        raise InvalidInput(
            "optimizer.weight_decay",
            weight_decay,
            "0 in µP",
            f"Set it to 0 (also where {kind} has a default).",
        )
