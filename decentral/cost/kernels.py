"""Time of the work of one device: matrix products, attention, and what only moves bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from decentral.cost.cluster import MEMORY_FRACTION, Cluster
from decentral.cost.moe import TILE
from decentral.cost.workload import Linear, ResNet, Transformer

KERNELS, SPARSE_KERNELS = 16, 24
"""Of a layer, forward, where they are fused, and what routing adds; backward twice as many (assumed)."""
SPLIT = 1024
"""Length of the pieces that a contraction is cut into where tiles are few (assumed)."""


@dataclass(frozen=True)
class Constants:
    """What no data sheet says. Two are fitted to measurements; of the others each line says where it is from.

    Attributes:
        sustained: what the products of a training run reach of the largest product measured alone, beyond what their shape
            explains: clocks fall under continuous load, and inputs are not in cache. Fitted.
        sharding: of FSDP's collectives that overlap with compute, the part by which they slow it: they take compute units and
            memory bandwidth from the products beside them, and copy what they gather. Fitted.
        interference: the same of other collectives, which are not as dense (recalled: two phases that
            overlap take the longer and a tenth of the shorter).
        flash: of the ceiling, what attention in one kernel reaches (recalled: 40 to 50 % of FlashAttention-2's forward
            pass on A100 and H100).
        epilogue: times a product's result crosses main memory while nothing is multiplied: written, and the operands of the next
            tile fetched (assumed).
        eager: bytes of elementwise work where every operation is a kernel of its own, over those of fused kernels: 108 h
            over 68 h for a layer of width h with a feed-forward network of 4 h (derived, counting reads and writes).
        launch_s: between the end of a kernel and the start of the next (assumed).
        async_tensor: what remains of tensor parallelism's collectives where they are cut into pieces that overlap with products
            (recalled: asynchronous tensor parallelism hides about half).
    """

    sustained: float = 0.795
    sharding: float = 0.313
    interference: float = 0.1
    flash: float = 0.45
    epilogue: float = 1.5
    eager: float = 1.6
    launch_s: float = 4e-6
    async_tensor: float = 0.5


PRIORS = {"sustained": (0.9, 0.05), "sharding": (0.2, 0.1)}
"""Fitted constant -> what it was expected to be, and how sure: a fit pays for leaving it (``decentral.cost.validation``)."""


@dataclass(frozen=True)
class Work:
    """Seconds of a device, by what they would be if less were in the way.

    Attributes:
        peak_s: products the model needs, at the peak of their precision.
        ceiling_s: the same at what the largest product reaches.
        products_s: the same in their shapes.
        attention_s: attention between tokens, beyond what its products would take at the ceiling.
        moved_s: work that only moves bytes.
        launch_s: between kernels.
        quantise_s: casts of operands to 8 bits.
        weight_s: of all this, gradients of parameters.
    """

    peak_s: Any = 0.0
    ceiling_s: Any = 0.0
    products_s: Any = 0.0
    attention_s: Any = 0.0
    moved_s: Any = 0.0
    launch_s: Any = 0.0
    quantise_s: Any = 0.0
    weight_s: Any = 0.0

    @property
    def total_s(self) -> Any:
        """All of it."""
        return self.products_s + self.attention_s + self.moved_s + self.launch_s + self.quantise_s

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(_parts(self), _parts(other), strict=True)))

    def __mul__(self, times: Any) -> Work:
        return Work(*(part * times for part in _parts(self)))


def _parts(work: Work) -> tuple:
    return tuple(vars(work).values())


def shape_efficiency(
    rows: Any, inputs: Any, outputs: Any, cluster: Cluster, epilogue: float, count: Any = 1
) -> Any:
    """Of the largest product's FLOP/s, what ``count`` products of (rows, inputs) x (inputs, outputs) in one kernel reach.

    Four losses, each smooth where the machine's is a sawtooth: half a tile of rows and of columns that are computed for
    nothing, half a wave of tiles that leaves compute units idle (where tiles are few a long contraction is cut among units),
    and the time in which a result is written, which a long contraction makes small.
    """
    rows, inputs, outputs = (np.asarray(x, float) for x in (rows, inputs, outputs))
    tiles = np.maximum(count * rows * outputs / TILE**2, 1.0)
    units = np.asarray(cluster.compute_units, float)
    tiles = np.maximum(tiles, np.minimum(tiles * np.maximum(inputs / SPLIT, 1.0), 4 * units))
    half = units / 2
    written = epilogue * cluster.ceiling_flops / (cluster.memory_bytes_per_s * MEMORY_FRACTION)
    return (
        rows
        / (rows + TILE / 2)
        * outputs
        / (outputs + TILE / 2)
        * inputs
        / (inputs + written)
        * tiles
        / (tiles + half)
    )


def product(
    rows: Any,
    inputs: Any,
    outputs: Any,
    cluster: Cluster,
    constants: Constants,
    *,
    low: bool = False,
    count: Any = 1,
) -> Work:
    """One kernel of ``count`` matrix products, with the bytes of operands and result as a floor.

    Args:
        rows: M.
        inputs: K, the contraction.
        outputs: N.
        cluster: whose device.
        constants: what no data sheet says.
        low: in 8 bits.
        count: products of this shape.
    """
    peak, ceiling = cluster.peak_flops, cluster.ceiling_flops
    if low:
        peak, ceiling = cluster.low_peak_flops, cluster.low_ceiling_flops
    flops = 2.0 * count * rows * inputs * outputs
    at_ceiling = flops / (ceiling * constants.sustained)
    efficiency = shape_efficiency(rows, inputs, outputs, cluster, constants.epilogue, count)
    shaped = at_ceiling / np.where(efficiency > 0, efficiency, 1.0)  # a product of nothing takes no time
    numbers = count * (rows * inputs + inputs * outputs + rows * outputs)
    moved = (1 if low else 2) * numbers / (cluster.memory_bytes_per_s * MEMORY_FRACTION)
    return Work(flops / peak, at_ceiling, np.maximum(shaped, moved))


def quantise_s(numbers: Any, payload_bytes: float, cluster: Cluster) -> Any:
    """Seconds to cast ``numbers`` of 2 bytes to 8 bits twice, along rows and along columns: the backward pass needs both."""
    return numbers * (2 + 2 * payload_bytes) / (cluster.memory_bytes_per_s * MEMORY_FRACTION)


def linear(
    one: Linear,
    rows: Any,
    tp: Any,
    cluster: Cluster,
    constants: Constants,
    payload_bytes: float | None = None,
    ranks: Any = 1,
) -> tuple[Work, Work]:
    """Forward and backward work of a layer's product for ``rows`` tokens on a device.

    Args:
        one: the product.
        rows: tokens.
        tp: devices that share it.
        cluster: whose device.
        constants: what no data sheet says.
        payload_bytes: of a number in 8 bits with its share of scales; None: not in 8 bits.
        ranks: devices the experts are spread over: each has 1 / ranks of them and their tokens from all.
    """
    inputs = one.inputs / (tp if one.split == "inputs" else 1)
    outputs = one.outputs / (tp if one.split == "outputs" else 1)
    count = np.maximum(np.asarray(one.experts, float) / ranks, 1.0)
    each = rows * np.asarray(one.tokens, float) / count
    low = payload_bytes is not None
    forward = product(each, inputs, outputs, cluster, constants, low=low, count=count)
    weight = product(inputs, each, outputs, cluster, constants, low=low, count=count)
    backward = product(each, outputs, inputs, cluster, constants, low=low, count=count) + weight
    if payload_bytes is not None:
        casts = [each * inputs + inputs * outputs, each * outputs]
        cast_s = [quantise_s(count * numbers, payload_bytes, cluster) for numbers in casts]
        forward, backward = forward + Work(quantise_s=cast_s[0]), backward + Work(quantise_s=cast_s[1])
    return forward, backward + Work(weight_s=weight.products_s)


def attention(
    model: Transformer, micro_batch: Any, tp: Any, cp: Any, cluster: Cluster, constants: Constants
) -> tuple[Work, Work]:
    """Forward and backward work of attention between the tokens of a micro-batch, in one layer on one device."""
    rows = np.asarray(micro_batch, float) * model.sequence
    flops = model.core_flops(full=False) / model.layers * rows / (tp * cp)
    peak, ceiling = flops / cluster.peak_flops, flops / (cluster.ceiling_flops * constants.sustained)
    if model.flash:  # the backward pass computes the scores a second time: 2.5 times the forward FLOPs
        seconds = flops / (cluster.ceiling_flops * constants.flash)
        forward, backward = seconds, 2.5 * seconds
    else:
        # Scores are 2 bytes each. Products compute all of them and are bound by these bytes or by their FLOPs; softmax
        # reads and writes, dropout reads, writes and leaves a mask of 1 byte; backward reads more of them.
        scores = micro_batch * model.heads * np.asarray(model.sequence, float) ** 2 / (tp * cp)
        bandwidth = cluster.memory_bytes_per_s * MEMORY_FRACTION
        dims = (model.query_dim, model.value_dim)
        products = sum(
            np.maximum(
                2.0 * scores * dim / (cluster.ceiling_flops * constants.sustained), 2 * scores / bandwidth
            )
            for dim in dims
        )
        forward, backward = products + 9 * scores / bandwidth, 2 * products + 11 * scores / bandwidth
    return (
        Work(peak, ceiling, ceiling, forward - ceiling),
        Work(2 * peak, 2 * ceiling, 2 * ceiling, backward - 2 * ceiling),
    )


def elementwise(
    model: Transformer,
    rows: Any,
    tp: Any,
    sequence_parallel: bool,
    fused: bool,
    cluster: Cluster,
    constants: Constants,
) -> tuple[Work, Work]:
    """Norms, residual sums and the activation function of one layer, forward and backward.

    Of 2-byte numbers, kernels fused: forward 12 h (norm and residual twice: read, write) and 4 f (activation; 6 f where it
    is gated), backward 16 h and 6 f (10 f). Without sequence parallelism each tensor-parallel rank does all of the former.
    Tokens are copied to their k experts and back: 4 h (1 + k) each way (derived, counting reads and writes).
    """
    factor = (1.0 if fused else constants.eager) / (cluster.memory_bytes_per_s * MEMORY_FRACTION)
    h, gated = np.asarray(model.hidden, float), np.asarray(model.gated, float)
    width, sparse = np.asarray(model.ffn, float), 0.0
    if model.moe is not None:
        sparse = 1 - model.moe.dense_layers / np.asarray(model.layers, float)
        width = (1 - sparse) * width + sparse * (
            model.moe.top_k * np.asarray(model.moe.ffn) + model.moe.shared_ffn
        )
        sparse = sparse * (1 + np.asarray(model.moe.top_k, float))
    shared = np.where(sequence_parallel, tp, 1.0)
    forward = rows * (12 * h / shared + 4 * h * sparse + (4 + 2 * gated) * width / tp) * factor
    backward = rows * (16 * h / shared + 4 * h * sparse + (6 + 4 * gated) * width / tp) * factor
    kernels = (KERNELS + SPARSE_KERNELS * np.minimum(sparse, 1.0)) * (1.0 if fused else constants.eager)
    between = kernels * constants.launch_s
    return Work(moved_s=forward, launch_s=between), Work(moved_s=backward, launch_s=2 * between)


def loss(
    model: Transformer, rows: Any, tp: Any, fused: bool, cluster: Cluster, constants: Constants
) -> tuple[Work, Work]:
    """Output matrix and cross-entropy, forward and backward.

    Of the scores, 16 bytes move where kernels are fused and 40 where they are not: cast to float32, normalised, and the same
    back (derived).
    """
    forward, backward = linear(model.logits, rows, tp, cluster, constants)
    moved = rows * np.asarray(model.vocab, float) / tp * (16 if fused else 40)
    seconds = moved / (cluster.memory_bytes_per_s * MEMORY_FRACTION)
    return forward + Work(moved_s=seconds / 2), backward + Work(moved_s=seconds / 2)


def images(model: ResNet, batch: Any, cluster: Cluster, constants: Constants) -> tuple[Work, Work]:
    """A residual network on ``batch`` images, each convolution a product over its pixels."""
    forward, backward = Work(), Work()
    batch = np.asarray(batch, float)
    for channels, out, kernel, side in model.convolutions():
        one = linear(Linear("", channels * kernel**2, out, ""), batch * side**2, 1, cluster, constants)
        forward, backward = forward + one[0], backward + one[1]
    moved = batch * model.forward_bytes / (cluster.memory_bytes_per_s * MEMORY_FRACTION)
    return forward + Work(moved_s=moved), backward + Work(moved_s=2 * moved)


def measured(flops: Any, moved_bytes: Any, cluster: Cluster, constants: Constants) -> Work:
    """A function whose FLOPs and bytes a compiler counted: bound by one or by the other."""
    at_ceiling = flops / (cluster.ceiling_flops * constants.sustained)
    moved = moved_bytes / (cluster.memory_bytes_per_s * MEMORY_FRACTION)
    return Work(flops / cluster.peak_flops, at_ceiling, at_ceiling, 0.0, np.maximum(moved - at_ceiling, 0.0))
