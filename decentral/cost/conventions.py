"""How FLOPs are counted: the conventions of the literature are different functions, and each is named here.

"MFU" without its convention says little: the same run of DeepSeek-V3 is at 43.7 % (full attention) and 38.9 % (causal) of
the same peak, and a run in FP8 halves its MFU if the FP8 peak is the denominator. Every number this package prints names
its convention; :func:`convert` takes one from one convention to another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from decentral.cost.workload import Transformer, Workload
from decentral.errors import InvalidInput, check_choice


class Convention(NamedTuple):
    """A rule for the FLOPs of a token in training.

    Attributes:
        formula: in words.
        attention: "none", "causal" or "full": what of attention between tokens counts.
        recompute: whether a second forward pass is among them, which makes the ratio to peak an HFU.
        users: who counts so.
    """

    formula: str
    attention: str
    recompute: bool
    users: str


CONVENTIONS = {
    "6N": Convention("6 P", "none", False, "Kaplan, Chinchilla; estimates by hand"),
    "6N+full": Convention(
        "6 P + 12 L a d s", "full", False, "PaLM, MosaicML, MegaScale, Megatron's Llama FP8 table"
    ),
    "6N+causal": Convention(
        "6 P + 6 L a d s", "causal", False, "Megatron-Bridge, newer MaxText, DeepSeek-V3's 38.9 %"
    ),
    "M72": Convention(
        "72 L h^2 (1 + s/(6h) + V/(12 L h))", "full", False, "Korthikanti et al. 2022, Megatron-Core"
    ),
    "M96": Convention("96 L h^2 (1 + s/(6h) + V/(16 L h))", "full", True, "Narayanan et al. 2021, BLOOM"),
    "8N": Convention("8 P", "none", True, "BigScience's notes on V100"),
}
"""Tag -> convention; P: parameters (active ones, where there are experts), L layers, a heads of dimension d, s tokens of a
sequence, h hidden, V vocabulary."""


def flops_per_token(
    model: Workload, convention: str, *, embedding: bool = True, recomputed: bool = True
) -> Any:
    """FLOPs of training on one token (of one sample, where there are no tokens).

    Args:
        model: a transformer. ``M72`` and ``M96`` assume a feed-forward network of 4 h and as many heads of keys and values as of
            queries, whatever the model has: see :func:`applicable`.
        convention: a key of ``CONVENTIONS``.
        embedding: whether P contains the input embedding (the output matrix, where they are tied).
        recomputed: whether the run recomputes; without, M96 has nothing to count beyond M72, and 8N is 6N.

    Raises:
        InvalidInput: an unknown convention; no transformer.
    """
    convention = check_choice("convention", convention, CONVENTIONS)
    counted = CONVENTIONS[convention]
    if not recomputed and counted.recompute:
        convention = {"M96": "M72", "8N": "6N"}[convention]
    if not isinstance(model, Transformer):
        raise InvalidInput("convention", convention, "none: they count tokens of transformers")
    h, s, layers, vocab = (
        np.asarray(x, float) for x in (model.hidden, model.sequence, model.layers, model.vocab)
    )
    if convention == "M72":
        return 72 * layers * h**2 * (1 + s / (6 * h) + vocab / (12 * layers * h))
    if convention == "M96":
        return 96 * layers * h**2 * (1 + s / (6 * h) + vocab / (16 * layers * h))
    parameters = model.active_parameters
    if not embedding:  # a tied matrix multiplies once: it stays
        positions = s * h * model.learned_positions
        parameters = parameters - np.where(model.tied, positions, model.embedding_parameters)
    per_parameter = 8 if convention == "8N" else 6
    attention = 0.0 if counted.attention == "none" else 3 * model.core_flops(full=True)
    return per_parameter * parameters + (attention / 2 if counted.attention == "causal" else attention)


def applicable(model: Workload, *, recomputed: bool) -> list[str]:
    """Conventions that mean something for a workload.

    Megatron's for the models they were written for; those that count a second forward pass for runs that do one.
    """
    if not isinstance(model, Transformer):
        return []
    plain = model.moe is None and model.latent is None and not np.any(model.gated)
    plain = (
        plain
        and np.all(np.asarray(model.ffn) == 4 * np.asarray(model.hidden))
        and np.all(np.asarray(model.kv) == model.heads)
    )
    return [
        name
        for name, one in CONVENTIONS.items()
        if (plain or not name.startswith("M")) and (recomputed or not one.recompute)
    ]


def utilisation(samples_per_s: Any, flops: Any, devices: Any, peak_flops: Any) -> Any:
    """MFU (or HFU): FLOP/s as counted over the peak of all devices; ``flops`` of a sample or token, peak in FLOP/s."""
    return samples_per_s * flops / (devices * np.asarray(peak_flops, float))


def convert(
    value: Any,
    model: Workload,
    source: str,
    target: str,
    *,
    source_peak: float = 1.0,
    target_peak: float = 1.0,
    embedding: bool = True,
) -> Any:
    """A utilisation (or TFLOP/s, with both peaks 1) in another convention: MFU_b = MFU_a (F_b / F_a)(peak_a / peak_b).

    Raises:
        InvalidInput: an unknown convention.
    """
    ratio = flops_per_token(model, target, embedding=embedding) / flops_per_token(
        model, source, embedding=embedding
    )
    return value * ratio * (source_peak / target_peak)
