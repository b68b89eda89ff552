"""One step of a worker: where its seconds go, before it meets other workers.

A worker is dp / workers replicas of tp * pp * cp devices, which synchronise at every step; what happens between workers
is the algorithm's (``decentral.cost.algorithms``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from decentral.cost import kernels, network
from decentral.cost.cluster import MEMORY_FRACTION, Cluster
from decentral.cost.kernels import Constants, Work
from decentral.cost.layout import Layout
from decentral.cost.moe import all_to_all_bytes, imbalance, routing_shares, uniform_imbalance
from decentral.cost.pipeline import bubble_s
from decentral.cost.shards import Held, held
from decentral.cost.workload import Measured, ResNet, Transformer, Workload

UPDATE_BYTES = 30
"""Of one parameter through main memory in a step of Adam: three float32 numbers read and written, a gradient of 2 bytes, and 2
and 2 more for the copy in 16 bits (derived)."""
BUCKET_BYTES = 25e6
"""Of gradients that are reduced at once: the first has to be ready, and the last has no backward pass to hide behind
(recalled, PyTorch's default)."""
CONSTANTS = Constants()


@dataclass(frozen=True)
class Step:
    """Seconds of one step on the slowest device, all arrays of the configurations' shape.

    Attributes:
        parts: what -> seconds; they add up to ``total_s``. The first is the time at peak of what the model needs.
        forward_s: of one micro-batch through a stage.
        window_s: of the last micro-batch's backward pass, what no collective inside the worker has filled: gradients can be
            reduced between workers meanwhile.
        sent_bytes: what -> bytes that one device sends.
        leaving: what -> share of these that leave the node.
        held: parameters of one device.
        model_flops: of one device in a step, as the model needs them (causal, nothing recomputed).
        hardware_flops: with what is recomputed, computed though masked, or padding of a capacity.
    """

    parts: dict[str, Any]
    forward_s: Any
    window_s: Any
    sent_bytes: dict[str, Any]
    leaving: dict[str, Any]
    held: Held
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


def reduced_behind(window_s: Any, busy_s: Any, size: Any, interference: float) -> Any:
    """Seconds that reducing ``size`` bytes of gradients in ``busy_s`` adds to a backward pass of ``window_s``, by buckets."""
    bucket = np.minimum(1.0, BUCKET_BYTES / np.maximum(size, 1.0))
    felt = interference * np.minimum(window_s, busy_s)
    exposed = np.maximum(felt + bucket * busy_s, busy_s - (1 - bucket) * window_s)
    return np.minimum(exposed, busy_s)


def step(model: Workload, layout: Layout, cluster: Cluster, constants: Constants = CONSTANTS) -> Step:
    """Time of one step of one worker, from closed forms.

    The pipeline's stages wait for the slowest; FSDP gathers a layer while another is computed; gradients are reduced during the
    last backward pass. Devices are numbered tensor-parallel ranks first, then context, replicas, and stages last. Everything
    broadcasts over the numbers of ``model``, ``layout`` and ``cluster``.
    """
    if not isinstance(model, Transformer):
        return _samples(model, layout, cluster, constants)
    tp, pp, cp = (np.asarray(x, float) for x in (layout.tp, layout.pp, layout.cp))
    micro, m = np.asarray(layout.micro_batch, float), layout.micro_batches
    layers, rows = np.asarray(model.layers, float), micro * model.sequence / cp
    own = held(model, layout)
    per_node = np.clip(cluster.node_size / tp, 1, own.ranks)

    forward, backward, routing_s, core_s = _layer(model, layout, cluster, constants, rows)
    again = Work()
    if layout.recompute == "full":
        again = forward * layout.recompute_share
    elif layout.recompute == "selective" and not model.flash:
        again = kernels.attention(model, micro, tp, cp, cluster, constants)[0]

    # Collectives of one layer and one micro-batch.
    activations = 2.0 * rows * model.hidden
    again_share = np.asarray(layout.recompute_share if layout.recompute == "full" else 0.0, float)
    reduces = 4 + 2 * again_share
    reduce_s = network.all_reduce_s(activations, tp, np.minimum(tp, cluster.node_size), cluster)
    tensor_s = reduces * reduce_s * (constants.async_tensor if layout.async_tensor else 1.0)
    context_s, context_bytes, context_out = _context(model, layout, cluster, constants, rows, core_s)
    expert_s, expert_bytes, expert_out = _experts(model, layout, cluster, rows, per_node)
    if layout.overlap:
        expert_s = overlapped(forward.total_s + backward.total_s, expert_s, constants.interference)
    compute_s = forward.total_s + backward.total_s + again.total_s + tensor_s
    forward_s = forward.total_s + tensor_s / reduces * 2
    sharding_s, sharded_bytes, ends_s = _sharding(
        own, layout, cluster, constants, layers / pp, forward_s, compute_s, per_node
    )

    of_stage = layers / pp
    output = sum(kernels.loss(model, rows, tp, layout.fused, cluster, constants), Work())
    stage_s = of_stage * (compute_s + context_s + expert_s + routing_s + sharding_s)
    output_s = output.total_s + ends_s
    mean_s = stage_s + output_s / pp
    # Where layers divide evenly the last stage has the output on top; else embedding and output stand for a layer each.
    slowest_s = np.where(np.mod(layers, pp) == 0, stage_s + output_s, mean_s)
    stage_forward_s = of_stage * forward_s
    idle_s = bubble_s(
        layout.schedule,
        m,
        pp,
        stage_forward_s,
        mean_s - stage_forward_s,
        of_stage * backward.weight_s,
        layout.virtual,
    )
    sends_s, hop_bytes, crossing = _sends(layout, cluster, activations / tp)
    if layout.overlap:
        sends_s = overlapped(m * stage_s, sends_s, constants.interference)

    data_s, busy_s, data_bytes = _data_parallel(
        own, layout, cluster, constants, per_node, stage_s - stage_forward_s
    )
    shards = own.whole if layout.sharding == "none" else own.shard
    optimizer_s = UPDATE_BYTES * shards / (cluster.memory_bytes_per_s * MEMORY_FRACTION)

    work = (forward + backward) * (m * of_stage) + output * (m / pp)
    parts = _waterfall(work) | {
        "recompute": m * of_stage * again.total_s,
        "routing": m * of_stage * routing_s,
        "bubble": idle_s + m * (slowest_s - mean_s),
        "tensor parallel": m * of_stage * tensor_s,
        "context parallel": m * of_stage * context_s,
        "expert parallel": m * of_stage * expert_s,
        "sends": sends_s,
        "sharding": m * (of_stage * sharding_s + ends_s / pp),
        "data parallel": data_s,
        "optimizer": optimizer_s,
    }
    needed = 3 * model.forward_flops * m * rows / (tp * pp)
    sent = {
        "tensor parallel": m * of_stage * reduces * 2 * (tp - 1) / tp * activations,
        "context parallel": m * of_stage * context_bytes,
        "expert parallel": m * of_stage * expert_bytes,
        "sends": hop_bytes,
        "sharding": m * sharded_bytes,
        "data parallel": data_bytes,
    }
    out = np.where(own.ranks > per_node, 1 / per_node, 0.0)  # of a ring, the hops that leave a node
    leaving = {
        "tensor parallel": np.where(tp > cluster.node_size, 1 / cluster.node_size, 0.0),
        "context parallel": context_out,
        "expert parallel": expert_out,
        "sends": crossing,
        "sharding": out,
        "data parallel": out,
    }
    computed = needed + _extra_flops(model, layout) * m * rows / (tp * pp)
    window_s = np.maximum(stage_s - stage_forward_s - busy_s, 0.0) if layout.overlap else np.zeros(())
    return Step(parts, stage_forward_s, window_s, sent, leaving, own, needed, computed)


def _extra_flops(model: Transformer, layout: Layout) -> Any:
    """Of a token, beyond what the model needs: recomputed, masked and computed all the same, slots of a capacity."""
    masked = 0.0 if model.flash else model.core_flops(full=True) - model.core_flops(full=False)
    extra = 3 * masked
    if layout.recompute == "full":
        extra = extra + layout.recompute_share * (model.linear_flops + model.core_flops(full=not model.flash))
    elif layout.recompute == "selective" and not model.flash:
        extra = extra + model.core_flops(full=True)
    if model.moe is not None:
        experts = sum(one.flops for one in model.sparse_linears() if one.name.startswith("expert"))
        padding = np.maximum(np.asarray(model.moe.capacity_factor, float), 1.0) - 1
        extra = extra + 3 * padding * experts * (np.asarray(model.layers, float) - model.moe.dense_layers)
    return extra


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
) -> tuple[Work, Work, Any, Any]:
    """Of a mean layer and a micro-batch: work forward and backward, seconds that unequal experts add, seconds of attention."""
    forward, backward, waiting_s = Work(), Work(), np.zeros(())
    layers = np.asarray(model.layers, float)
    for count, linears in model.kinds():
        share = np.asarray(count, float) / layers
        for one in linears:
            sparse = one.name.startswith("expert")
            payload = None if one.name == "router" else layout.payload_bytes
            ranks = np.asarray(layout.ep, float) if sparse else 1.0
            each = kernels.linear(one, rows, layout.tp, cluster, constants, payload, ranks)
            forward, backward = forward + each[0] * share, backward + each[1] * share
            if sparse:
                over = _load(model, layout, rows) - 1
                waiting_s = waiting_s + share * over * (each[0].total_s + each[1].total_s)
    core = kernels.attention(model, layout.micro_batch, layout.tp, layout.cp, cluster, constants)
    moved = kernels.elementwise(
        model, rows, layout.tp, layout.sequence_parallel, layout.fused, cluster, constants
    )
    core_s = core[0].total_s + core[1].total_s
    return forward + core[0] + moved[0], backward + core[1] + moved[1], waiting_s, core_s


def _load(model: Transformer, layout: Layout, rows: Any) -> Any:
    """Load of the slowest rank's experts over the mean; with a capacity, all slots are computed whatever is in them."""
    moe = model.moe
    assert moe is not None
    ep, capacity = np.asarray(layout.ep, float), np.asarray(moe.capacity_factor, float)
    noise = uniform_imbalance(np.maximum(rows * moe.top_k * ep, 1.0), ep)
    skewed = np.vectorize(_skewed, otypes=[float])(moe.experts, moe.top_k, moe.skew, ep)
    dropless = np.where(ep > 1, np.maximum(np.maximum(noise, skewed), moe.imbalance), 1.0)
    return np.where(capacity > 0, np.maximum(capacity, 1.0), dropless)


@cache
def _skewed(experts: float, top_k: float, skew: float, ranks: float) -> float:
    """Imbalance of a Zipf law's experts in their order, the popular ones together: what a placement can mend."""
    if not skew or ranks <= 1:
        return 1.0
    return float(imbalance(routing_shares(int(experts), int(top_k), float(skew)), int(ranks)))


def _context(
    model: Transformer, layout: Layout, cluster: Cluster, constants: Constants, rows: Any, core_s: Any
) -> tuple[Any, Any, Any]:
    """Ring attention of a layer: seconds felt, bytes sent, share that leaves the node.

    Keys and values go round, and their gradients twice that, while attention is computed. Of a group's ranks on a node one
    sends to the next node.
    """
    tp, cp = np.asarray(layout.tp, float), np.asarray(layout.cp, float)
    block = 2.0 * rows * model.kv * (model.query_dim + model.value_dim) / tp
    together = np.clip(cluster.node_size / tp, 1, cp)
    across = cp > together
    each_s = np.maximum(
        network.send_s(block, 1.0, cluster, crosses=False),
        np.where(across, network.send_s(block, cluster.node_size / together, cluster), 0.0),
    )
    ring_s = 3 * (cp - 1) * each_s
    felt_s = overlapped(core_s, ring_s, constants.interference) if layout.overlap else ring_s
    return np.where(cp > 1, felt_s, 0.0), 3 * (cp - 1) * block, np.where(across, 1 / together, 0.0)


def _experts(
    model: Transformer, layout: Layout, cluster: Cluster, rows: Any, per_node: Any
) -> tuple[Any, Any, Any]:
    """Seconds, bytes and share that leaves the node of a mean layer's four all-to-alls: dispatch and combine, both ways."""
    moe = model.moe
    if moe is None:
        return np.zeros(()), np.zeros(()), np.zeros(())
    ep = np.asarray(layout.ep, float)
    share = 1 - moe.dense_layers / np.asarray(model.layers, float)
    slots = rows * np.maximum(np.asarray(moe.capacity_factor, float), 1.0)
    seconds = inside = outside = np.zeros(())
    for width in (
        layout.payload_bytes or 2.0,
        2.0,
        2.0,
        2.0,
    ):  # tokens go out in 8 bits where products are in 8 bits
        row = np.asarray(model.hidden, float) * width
        exchange = all_to_all_bytes(slots, row, moe.top_k, ep, per_node, moe.node_limit)
        seconds = seconds + network.all_to_all_s(*exchange, ep, per_node, cluster)
        inside, outside = inside + exchange.inside, outside + exchange.outside
    sent = inside + outside
    return (
        share * seconds,
        share * np.where(ep > 1, sent, 0.0),
        np.where(sent > 0, outside / np.maximum(sent, 1.0), 0.0),
    )


def _sharding(
    own: Held,
    layout: Layout,
    cluster: Cluster,
    constants: Constants,
    of_stage: Any,
    forward_s: Any,
    compute_s: Any,
    per_node: Any,
) -> tuple[Any, Any, Any]:
    """FSDP: seconds felt in a layer and a micro-batch, bytes of a micro-batch, and seconds of embedding and output."""
    if layout.sharding != "zero_3":
        return np.zeros(()), np.zeros(()), np.zeros(())
    experts_node = np.clip(per_node * own.expert_ranks / own.ranks, 1, own.expert_ranks)
    each_s = network.gather_s(2 * own.dense / of_stage, own.ranks, per_node, cluster) + network.gather_s(
        2 * own.experts / of_stage, own.expert_ranks, experts_node, cluster
    )
    ends_s = 3 * network.gather_s(2 * own.ends, own.ranks, per_node, cluster)
    moved = (own.dense + own.ends) * (own.ranks - 1) / own.ranks
    moved = moved + own.experts * (own.expert_ranks - 1) / own.expert_ranks
    felt_s = 3 * each_s
    if layout.overlap:
        felt_s = overlapped(forward_s, each_s, constants.sharding) + overlapped(
            compute_s - forward_s, 2 * each_s, constants.sharding
        )
    return felt_s, 6 * moved, ends_s


def _sends(layout: Layout, cluster: Cluster, size: Any) -> tuple[Any, Any, Any]:
    """Activations between stages: seconds of all sends of a step, bytes, and share that leaves the node."""
    pp = np.asarray(layout.pp, float)
    stage = layout.devices / pp  # devices of a stage stand together
    crossing = np.where(layout.devices <= cluster.node_size, 0.0, np.minimum(1.0, stage / cluster.node_size))
    hops = np.where(pp > 1, 2.0 * layout.virtual * layout.micro_batches, 0.0)
    out_s = network.send_s(size, np.minimum(stage, cluster.node_size), cluster)
    inside_s = network.send_s(size, 1.0, cluster, crosses=False)
    return hops * (crossing * out_s + (1 - crossing) * inside_s), hops * size, crossing


def _data_parallel(
    own: Held, layout: Layout, cluster: Cluster, constants: Constants, per_node: Any, window_s: Any
) -> tuple[Any, Any, Any]:
    """Gradients of a worker's replicas: seconds felt, seconds that links are busy, bytes sent."""
    if layout.sharding == "zero_3":
        return np.zeros(()), np.zeros(()), np.zeros(())
    dense, experts = own.dense + own.ends, own.experts
    experts_node = np.clip(per_node * own.expert_ranks / own.ranks, 1, own.expert_ranks)
    busy_s = network.all_reduce_s(2 * dense, own.ranks, per_node, cluster) + network.all_reduce_s(
        2 * experts, own.expert_ranks, experts_node, cluster
    )
    sent = 4 * (dense * (own.ranks - 1) / own.ranks + experts * (own.expert_ranks - 1) / own.expert_ranks)
    felt_s = busy_s
    if layout.overlap:
        felt_s = reduced_behind(window_s, busy_s, 2 * own.whole, constants.interference)
    return felt_s, busy_s, sent


def _samples(model: ResNet | Measured, layout: Layout, cluster: Cluster, constants: Constants) -> Step:
    """A workload that only data parallelism cuts."""
    micro, m = np.asarray(layout.micro_batch, float), layout.micro_batches
    if isinstance(model, ResNet):
        forward, backward = kernels.images(model, micro, cluster, constants)
    else:
        sizes = micro * model.forward_flops, micro * model.forward_bytes
        forward = kernels.measured(*sizes, cluster, constants)
        backward = kernels.measured(2 * sizes[0], 2 * sizes[1], cluster, constants)
    own = held(model, layout)
    per_node = np.clip(cluster.node_size, 1, own.ranks)
    share = np.asarray(layout.recompute_share if layout.recompute == "full" else 0.0, float)
    again_s = forward.total_s * share
    data_s, busy_s, data_bytes = _data_parallel(own, layout, cluster, constants, per_node, backward.total_s)
    compute_s = forward.total_s + backward.total_s + again_s
    sharding_s, sharded_bytes, _ = _sharding(
        own, layout, cluster, constants, 1.0, forward.total_s, compute_s, per_node
    )
    shards = own.whole if layout.sharding == "none" else own.shard
    parts = _waterfall((forward + backward) * m) | {
        "recompute": m * again_s,
        "sharding": m * sharding_s,
        "data parallel": data_s,
        "optimizer": UPDATE_BYTES * shards / (cluster.memory_bytes_per_s * MEMORY_FRACTION),
    }
    needed = 3 * m * micro * model.forward_flops
    sent = {"sharding": m * sharded_bytes, "data parallel": data_bytes}
    out = np.where(own.ranks > per_node, 1 / per_node, 0.0)
    window_s = np.maximum(backward.total_s - busy_s, 0.0) if layout.overlap else np.zeros(())
    leaving = dict.fromkeys(sent, out)
    return Step(parts, forward.total_s, window_s, sent, leaving, own, needed, needed * (1 + share / 3))
