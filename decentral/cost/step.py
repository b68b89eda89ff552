"""One step of a worker: where its seconds go, before it meets other workers.

A worker is dp / workers replicas of tp * pp * cp devices, which synchronise at every step; what happens between workers
is the algorithm's (``decentral.cost.algorithms``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from decentral.cost import kernels, network
from decentral.cost.cluster import MEMORY_FRACTION, Cluster
from decentral.cost.kernels import Constants, Work
from decentral.cost.layout import Layout
from decentral.cost.moe import all_to_all_bytes, uniform_imbalance
from decentral.cost.pipeline import bubble_s
from decentral.cost.workload import Measured, ResNet, Transformer, Workload

OPTIMIZER_BYTES = 30
"""Of one parameter through main memory in a step of Adam: three float32 numbers read and written, a gradient of 2 bytes, and 2
and 2 more for the copy in 16 bits (derived)."""
CONSTANTS = Constants()


@dataclass(frozen=True)
class Step:
    """Seconds of one step on the slowest device, all arrays of the configurations' shape.

    Attributes:
        parts: what -> seconds; they add up to ``total_s``. The first is the time at peak of what the model needs.
        forward_s: of one micro-batch through a stage.
        backward_s: the same; between workers, collectives overlap with the last of them.
        sent_bytes: what -> bytes that one device sends.
        parameters: that one device holds, before sharding.
        model_flops: of one device in a step, as the model needs them (causal, nothing recomputed).
        hardware_flops: with what is recomputed.
    """

    parts: dict[str, Any]
    forward_s: Any
    backward_s: Any
    sent_bytes: dict[str, Any]
    parameters: Any
    model_flops: Any
    hardware_flops: Any

    @property
    def total_s(self) -> Any:
        """Seconds of the step."""
        return sum(self.parts.values())


def overlapped(compute_s: Any, exchange_s: Any, interference: float) -> Any:
    """Seconds that an exchange adds to compute it overlaps with: it slows it down, and may be the longer of the two."""
    slowed_s = compute_s + interference * np.minimum(compute_s, exchange_s)
    return np.maximum(slowed_s, exchange_s) - compute_s


def step(model: Workload, layout: Layout, cluster: Cluster, constants: Constants = CONSTANTS) -> Step:
    """Time of one step of one worker, from closed forms.

    The pipeline's stages wait for the slowest; FSDP gathers a layer while another is computed; gradients are reduced during the
    last backward pass. Everything broadcasts over the numbers of ``model``, ``layout`` and ``cluster``.
    """
    if not isinstance(model, Transformer):
        return _images(model, layout, cluster, constants)
    tp, pp, cp, ep = (np.asarray(x, float) for x in (layout.tp, layout.pp, layout.cp, layout.ep))
    micro, m = np.asarray(layout.micro_batch, float), layout.micro_batches
    layers, rows = np.asarray(model.layers, float), micro * model.sequence / cp
    ranks = layout.replicas * cp
    per_node = np.clip(cluster.node_size / tp, 1, ranks)

    forward, backward, routing_s = _layer(model, layout, cluster, constants, rows)
    again = Work()
    if layout.recompute == "full":
        again = forward * layout.recompute_share
    elif layout.recompute == "selective" and not model.flash:
        again = kernels.attention(model, micro, tp, cp, cluster, constants)[0]

    # Collectives of one layer and one micro-batch.
    activations = 2.0 * rows * model.hidden
    reduce_s = network.all_reduce_s(activations, tp, np.minimum(tp, cluster.node_size), cluster)
    again_share = layout.recompute_share if layout.recompute == "full" else 0.0
    reduces = 4 + 2 * np.asarray(again_share, float)
    tensor_s = reduces * reduce_s * (constants.async_tensor if layout.async_tensor else 1.0)
    context_s, context_bytes = _context(model, layout, cluster, constants, rows, forward)
    expert_s, expert_bytes = _experts(model, layout, cluster, rows, per_node)
    if layout.overlap:
        expert_s = overlapped(forward.total_s + backward.total_s, expert_s, constants.interference)

    compute_s = forward.total_s + backward.total_s + again.total_s + tensor_s
    sharding_s, sharded_bytes, reduced = np.zeros(()), np.zeros(()), 0.0
    dense = (model.layer_parameters - model.expert_parameters) / (tp * pp)
    expert = model.expert_parameters / (tp * pp * ep)
    ends = model.embedding_parameters / tp
    held = dense + expert + ends
    if layout.sharding == "zero_3":
        each_s = network.gather_s(2 * dense * pp / layers, ranks, per_node, cluster) + network.gather_s(
            2 * expert * pp / layers, ranks / ep, np.clip(per_node / ep, 1, ranks / ep), cluster
        )
        forward_s = forward.total_s + tensor_s / 2
        sharding_s = overlapped(forward_s, each_s, constants.sharding) + overlapped(
            compute_s - forward_s, 2 * each_s, constants.sharding
        )
        reduced = 3 * network.gather_s(2 * ends, ranks, per_node, cluster)
        sharded_bytes = 3 * (ranks - 1) / ranks * 2 * (dense * pp + ends) / layers

    of_stage = layers / pp
    output = sum(kernels.loss(model, rows, tp, layout.fused, cluster, constants), Work())
    layer_s = compute_s + context_s + expert_s + routing_s + sharding_s
    stage_s = of_stage * layer_s
    output_s = output.total_s + reduced
    mean_s = stage_s + output_s / pp
    # Where layers divide evenly the last stage has the output on top; else embedding and output stand for a layer each.
    slowest_s = np.where(np.mod(layers, pp) == 0, stage_s + output_s, mean_s)
    stage_forward = of_stage * (forward.total_s + tensor_s / 2)
    weight_s = of_stage * backward.weight_s
    idle_s = bubble_s(layout.schedule, m, pp, stage_forward, mean_s - stage_forward, weight_s, layout.virtual)
    hop_bytes = activations / tp
    hop_s = network.send_s(hop_bytes, cluster.node_size, cluster)
    hops = np.where(pp > 1, 2.0 * layout.virtual * m, 0.0)
    sends_s = 0.0 * hops if layout.overlap else hops * hop_s

    window_s = stage_s - stage_forward if layout.overlap else np.zeros(())
    data_s, data_bytes = _data_parallel(
        layout, cluster, constants, dense + ends, expert, ranks, per_node, window_s
    )
    shards = ranks if layout.sharding != "none" else 1.0
    optimizer_s = OPTIMIZER_BYTES * held / shards / (cluster.memory_bytes_per_s * MEMORY_FRACTION)

    work = (forward + backward) * (m * of_stage) + output * (m / pp)
    parts = _waterfall(work) | {
        "recompute": m * of_stage * again.total_s,
        "routing": m * of_stage * routing_s,
        "bubble": idle_s + m * (slowest_s - mean_s),
        "tensor parallel": m * of_stage * tensor_s,
        "context parallel": m * of_stage * context_s,
        "expert parallel": m * of_stage * expert_s,
        "sends": sends_s,
        "sharding": m * (of_stage * sharding_s + reduced / pp),
        "data parallel": data_s,
        "optimizer": optimizer_s,
    }
    tokens = m * rows  # of a device's share of a step
    needed = 3 * model.forward_flops * tokens / (tp * pp)
    computed = needed + 3 * _skipped(model) * tokens / (tp * pp)
    extra = {
        "full": layout.recompute_share * (model.linear_flops + model.core_flops(full=not model.flash)),
        "selective": model.core_flops(full=True),
    }
    if layout.recompute != "none" and not (layout.recompute == "selective" and model.flash):
        computed = computed + extra[layout.recompute] * tokens / (tp * pp)
    sent = {
        "tensor parallel": m * of_stage * reduces * 2 * (tp - 1) / tp * activations,
        "context parallel": m * of_stage * context_bytes,
        "expert parallel": m * of_stage * expert_bytes,
        "sends": hops * hop_bytes,
        "sharding": m * of_stage * sharded_bytes,
        "data parallel": data_bytes,
    }
    return Step(parts, stage_forward, mean_s - stage_forward, sent, held, needed, computed)


def _skipped(model: Transformer) -> Any:
    """Products of masked scores that kernels compute all the same."""
    return 0.0 if model.flash else model.core_flops(full=True) - model.core_flops(full=False)


def _waterfall(work: Work) -> dict[str, Any]:
    return {
        "peak": work.peak_s,
        "ceiling": work.ceiling_s - work.peak_s,
        "shape": work.products_s - work.ceiling_s,
        "attention": work.attention_s,
        "memory-bound": work.moved_s,
        "quantization": work.quantise_s,
        "launches": work.launch_s,
    }


def _layer(
    model: Transformer, layout: Layout, cluster: Cluster, constants: Constants, rows: Any
) -> tuple[Work, Work, Any]:
    """Mean work of a layer for a micro-batch, forward and backward, and what unequal experts add, in seconds."""
    forward, backward, waiting_s = Work(), Work(), np.zeros(())
    layers = np.asarray(model.layers, float)
    for count, linears in model.kinds():
        share = np.asarray(count, float) / layers
        for one in linears:
            sparse = one.name.startswith("expert")
            payload = None if one.name == "router" else layout.payload_bytes
            each = kernels.linear(
                one,
                rows,
                layout.tp,
                cluster,
                constants,
                payload,
                np.asarray(layout.ep, float) if sparse else 1.0,
            )
            forward, backward = forward + each[0] * share, backward + each[1] * share
            if sparse:
                over = _imbalance(model, layout, rows) - 1
                waiting_s = waiting_s + share * over * (each[0].total_s + each[1].total_s)
    core = kernels.attention(model, layout.micro_batch, layout.tp, layout.cp, cluster, constants)
    moved = kernels.elementwise(
        model, rows, layout.tp, layout.sequence_parallel, layout.fused, cluster, constants
    )
    return forward + core[0] + moved[0], backward + core[1] + moved[1], waiting_s


def _imbalance(model: Transformer, layout: Layout, rows: Any) -> Any:
    """Load of the slowest rank's experts over the mean; with a capacity, all slots are computed whatever is in them."""
    moe = model.moe
    assert moe is not None
    ep = np.asarray(layout.ep, float)
    if np.any(np.asarray(moe.capacity_factor) > 0):
        return np.maximum(np.asarray(moe.capacity_factor, float), 1.0)
    noise = uniform_imbalance(np.maximum(rows * moe.top_k * ep, 1.0), ep)
    return np.where(ep > 1, np.maximum(noise, moe.imbalance), 1.0)


def _context(
    model: Transformer, layout: Layout, cluster: Cluster, constants: Constants, rows: Any, forward: Work
) -> tuple[Any, Any]:
    """Seconds felt and bytes sent by a layer's ring attention: keys and values go round, and their gradients twice that."""
    cp = np.asarray(layout.cp, float)
    if np.all(cp == 1):
        return np.zeros(()), np.zeros(())
    block = 2.0 * rows * model.kv * (model.query_dim + model.value_dim) / layout.tp
    sent = 3 * (cp - 1) * block
    across = cp * layout.tp > cluster.node_size
    each_s = network.send_s(block, cluster.node_size, cluster, crosses=across)
    return np.where(
        cp > 1, overlapped(3 * forward.total_s, 3 * (cp - 1) * each_s, constants.interference), 0.0
    ), sent


def _experts(
    model: Transformer, layout: Layout, cluster: Cluster, rows: Any, per_node: Any
) -> tuple[Any, Any]:
    """Seconds and bytes of a mean layer's four all-to-alls: dispatch and combine, forward and backward."""
    moe = model.moe
    if moe is None:
        return np.zeros(()), np.zeros(())
    ep = np.asarray(layout.ep, float)
    share = 1 - moe.dense_layers / np.asarray(model.layers, float)
    seconds, sent = 0.0, 0.0
    for width in (
        layout.payload_bytes or 2.0,
        2.0,
        2.0,
        2.0,
    ):  # tokens are dispatched in 8 bits where products are
        row = np.asarray(model.hidden, float) * width
        exchange = all_to_all_bytes(rows, row, moe.top_k, ep, per_node, moe.node_limit)
        seconds = seconds + network.all_to_all_s(*exchange, ep, per_node, cluster)
        sent = sent + exchange.inside + exchange.outside
    return share * seconds, share * np.where(ep > 1, sent, 0.0)


def _data_parallel(
    layout: Layout,
    cluster: Cluster,
    constants: Constants,
    dense: Any,
    expert: Any,
    ranks: Any,
    per_node: Any,
    window_s: Any,
) -> tuple[Any, Any]:
    """Gradients of a worker's replicas: reduced in the shadow of the last backward pass, where there is overlap."""
    if layout.sharding == "zero_3":
        return np.zeros(()), np.zeros(())
    experts = ranks / np.asarray(layout.ep, float)
    seconds = network.all_reduce_s(2 * dense, ranks, per_node, cluster) + network.all_reduce_s(
        2 * expert, experts, np.clip(per_node / layout.ep, 1, experts), cluster
    )
    sent = 4 * (dense * (ranks - 1) / ranks + expert * (experts - 1) / experts)
    return (overlapped(window_s, seconds, constants.interference) if layout.overlap else seconds), sent


def _images(model: ResNet | Measured, layout: Layout, cluster: Cluster, constants: Constants) -> Step:
    """A workload that only data parallelism cuts."""
    micro, m, ranks = np.asarray(layout.micro_batch, float), layout.micro_batches, layout.replicas
    if isinstance(model, ResNet):
        forward, backward = kernels.images(model, micro, cluster, constants)
    else:
        sizes = micro * model.forward_flops, micro * model.forward_bytes
        forward = kernels.measured(*sizes, cluster, constants)
        backward = kernels.measured(2 * sizes[0], 2 * sizes[1], cluster, constants)
    held = np.asarray(model.parameters, float)
    per_node = np.clip(cluster.node_size, 1, ranks)
    window_s = backward.total_s if layout.overlap else np.zeros(())
    zero_3 = layout.sharding == "zero_3"
    data_s, data_bytes = _data_parallel(
        layout, cluster, constants, held, np.zeros(()), ranks, per_node, window_s
    )
    sharding_s = np.zeros(())
    if zero_3:
        each_s = network.gather_s(2 * held, ranks, per_node, cluster)
        sharding_s = overlapped(forward.total_s + backward.total_s, 3 * each_s, constants.sharding)
    again = forward.total_s * (layout.recompute_share if layout.recompute == "full" else 0.0)
    shards = ranks if layout.sharding != "none" else 1.0
    optimizer_s = OPTIMIZER_BYTES * held / shards / (cluster.memory_bytes_per_s * MEMORY_FRACTION)
    parts = _waterfall((forward + backward) * m) | {
        "recompute": m * again,
        "sharding": m * sharding_s,
        "data parallel": data_s,
        "optimizer": optimizer_s,
    }
    needed = 3 * m * micro * model.forward_flops
    sent = {"sharding": m * zero_3 * 6 * held * (ranks - 1) / ranks, "data parallel": data_bytes}
    computed = needed * (4 / 3 if layout.recompute == "full" else 1)
    return Step(parts, forward.total_s, backward.total_s, sent, held, needed, computed)
