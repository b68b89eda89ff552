"""Memory of one device: parameters, gradients, optimizer, activations, and what the algorithm keeps beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from decentral.cost.algorithms import METHODS, Algorithm
from decentral.cost.cluster import Cluster
from decentral.cost.layout import Layout
from decentral.cost.shards import held
from decentral.cost.workload import Transformer, Workload

RESERVED_BYTES = 2e9
"""CUDA context, NCCL's buffers and what the allocator cannot use (recalled, order of magnitude)."""
OPTIMIZER_BYTES = 12
"""Of a parameter: Adam's two moments and a copy of the parameter, in float32."""


@dataclass(frozen=True)
class Memory:
    """Bytes of the fullest device.

    Attributes:
        parts: what -> bytes.
        available_bytes: of one device.
    """

    parts: dict[str, Any]
    available_bytes: Any

    @property
    def total_bytes(self) -> Any:
        """Of all parts."""
        return sum(self.parts.values())

    @property
    def fits(self) -> Any:
        """Whether there is enough."""
        return self.total_bytes <= self.available_bytes

    @property
    def verdict(self) -> str:
        """In words, of one configuration."""
        used, there = float(self.total_bytes), float(self.available_bytes)
        if used <= there:
            return f"fits: {used / 1e9:.1f} of {there / 1e9:.0f} GB"
        return f"does not fit: {used / 1e9:.1f} GB, {(used - there) / 1e9:.1f} more than the {there / 1e9:.0f} there are"


def memory(
    model: Workload,
    layout: Layout,
    cluster: Cluster,
    algorithm: Algorithm,
    optimizer_bytes: float = OPTIMIZER_BYTES,
) -> Memory:
    """Bytes on the fullest device of one worker.

    Activations of a transformer as Korthikanti et al. (arXiv 2205.05198) count them, with other widths
    for gated networks, grouped queries and experts; stage 0 of a pipeline keeps those of min(m, p) micro-batches.
    Parameters and gradients have 2 bytes, what the algorithm remembers between exchanges 4, and its buffers what its
    messages have.
    """
    method = METHODS[algorithm.kind]
    own = held(model, layout)
    level = ("none", "zero_1", "zero_2", "zero_3").index(layout.sharding)
    optimizer = own.shard if level >= 1 else own.whole
    if algorithm.kind in ("acco", "dpu", "wp"):  # they cut it among all workers (table 1 of ACCO)
        optimizer = own.shard / layout.n_workers
    kept = own.shard if level >= 3 else own.whole
    largest = np.zeros(())
    if isinstance(model, Transformer):
        # FSDP has two layers whole at one time.
        largest = 2 * (own.dense + own.experts) * layout.pp / np.asarray(model.layers, float)
        stored = _activations(model, layout, petra=algorithm.kind == "petra")
    else:
        # Of three times that a number crosses memory, one is to keep it.
        stored = np.asarray(layout.micro_batch, float) * model.forward_bytes / 3
    bits = np.asarray(algorithm.get("message_bits"), float)
    parts = {
        "parameters": 2 * kept + (2 * largest if level >= 3 else 0.0),
        "gradients": 2 * (own.shard if level >= 2 else own.whole),
        "optimizer": optimizer_bytes * optimizer,
        "algorithm": (4 * (method.vectors - 1) + bits / 8 * method.buffers) * kept,
        "activations": stored,
        "reserved": np.asarray(RESERVED_BYTES),
    }
    return Memory(parts, cluster.memory_bytes)


def _activations(model: Transformer, layout: Layout, *, petra: bool) -> Any:
    """Of the fullest stage: the first, which has most micro-batches under way, or the last, which has the scores of the output.

    PETRA's stages keep the ends of one stage for the passes under way (4 tensors of a boundary) and the layer at work.
    """
    tp, cp, pp = (np.asarray(x, float) for x in (layout.tp, layout.cp, layout.pp))
    rows = np.asarray(layout.micro_batch, float) * model.sequence / cp
    h = np.asarray(model.hidden, float)
    shared = tp if layout.sequence_parallel else 1.0
    whole = 10 * h / shared
    attention = 2 * (model.heads * model.query_dim + model.kv * (model.query_dim + model.value_dim)) + 2 * (
        model.heads * model.value_dim
    )
    gated = np.asarray(model.gated, float)

    def wide(width: Any) -> Any:
        return (4 + 2 * gated) * np.asarray(width, float)

    feed = wide(model.ffn)
    if model.moe is not None:
        share = model.moe.dense_layers / np.asarray(model.layers, float)
        slots = model.moe.top_k * np.maximum(np.asarray(model.moe.capacity_factor, float), 1.0)
        sparse = wide(slots * model.moe.ffn + model.moe.shared_ffn) + 4 * h * slots
        feed = share * feed + (1 - share) * sparse
    scores = (
        0.0
        if model.flash or layout.recompute == "selective"
        else 5 * model.heads * np.asarray(model.sequence, float)
    )
    each = rows * (whole + (attention + feed + scores) / tp)
    one = rows * 2 * h / shared
    m, again = layout.micro_batches, 0.0
    kept = np.minimum(m, pp) if layout.schedule != "gpipe" else np.where(pp > 1, m, 1.0)
    if petra:
        return each + 4 * one
    if layout.recompute == "full":
        again = each  # of the layer that is being computed again
        share = np.asarray(layout.recompute_share, float)
        each = share * one + (1 - share) * each
    interleaved = np.where(
        np.asarray(layout.virtual) > 1, 1 + (pp - 1) / (pp * np.asarray(layout.virtual, float)), 1.0
    )
    layers = np.asarray(model.layers, float) / pp
    first = layers * each * kept * interleaved + again
    scores_bytes = 6 * rows * np.asarray(model.vocab, float) / tp  # 2 bytes, and 4 in float32
    last = layers * each * (kept if layout.schedule == "gpipe" else 1.0) + again + scores_bytes
    return np.maximum(np.where(pp > 1, first, 0.0), last)
