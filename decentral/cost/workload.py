"""What one step computes: parameters, FLOPs and bytes of transformers, residual networks and measured functions.

A multiply-add counts as 2 FLOPs. A forward pass is F, its backward pass 2 F. Numbers of a workload may be NumPy arrays of
one shape, or of shapes that broadcast: everything computed from it then has that shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from decentral.errors import InvalidInput

RESNETS = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
"""Depth -> kind of block, blocks of each group (He et al., arXiv 1512.03385, table 1)."""


class Linear(NamedTuple):
    """A matrix product of a layer for one token: ``inputs`` numbers in, ``outputs`` out.

    Attributes:
        name: what it is.
        inputs: length of the contraction.
        outputs: of one token.
        split: "outputs" or "inputs": which of the two tensor parallelism cuts; "" for neither.
        tokens: rows for each token: 1, or the experts a token goes to.
        experts: matrices of that shape, of which a token meets ``tokens``; 1 for dense layers.
    """

    name: str
    inputs: Any
    outputs: Any
    split: str
    tokens: Any = 1
    experts: Any = 1

    @property
    def parameters(self) -> Any:
        """Of all experts."""
        return self.inputs * self.outputs * self.experts

    @property
    def flops(self) -> Any:
        """Forward, for a token."""
        return 2.0 * self.inputs * self.outputs * self.tokens


@dataclass(frozen=True)
class MoE:
    """The sparse layers of a transformer.

    Args:
        experts: of each sparse layer.
        top_k: experts a token goes to.
        ffn: width of one expert.
        shared_ffn: width of the experts every token goes to, together.
        capacity_factor: slots of an expert over the mean load, all of which are computed; 0: dropless.
        dense_layers: first layers that have the model's own ``ffn`` instead.
        skew: exponent of the Zipf law of how often experts are chosen, popular ones side by side; 0: equally often.
        imbalance: load of the busiest expert-parallel rank over the mean, where it is known, e.g. of a placement
            (``decentral.cost.moe.place``); what chance and skew do is the least.
        node_limit: nodes that the experts of a token may be on; None: any.
    """

    experts: Any
    top_k: Any
    ffn: Any
    shared_ffn: Any = 0
    capacity_factor: Any = 0
    dense_layers: Any = 0
    skew: Any = 0
    imbalance: Any = 1
    node_limit: Any = None


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, recalled): low-rank queries, keys and values.

    Args:
        query_rank: 0: queries are not compressed.
        kv_rank: rank of keys and values together.
        nope_dim: of a head's queries and keys, without position.
        rope_dim: with position; the keys' is shared by all heads.
        value_dim: of a head.
    """

    query_rank: Any
    kv_rank: Any
    nope_dim: Any = 128
    rope_dim: Any = 64
    value_dim: Any = 128


@dataclass(frozen=True)
class Transformer:
    """A decoder, dense or with experts.

    Args:
        layers: blocks of attention and feed-forward network.
        hidden: width of the residual stream.
        heads: query heads.
        ffn: width of the feed-forward network.
        vocab: rows of the embedding.
        sequence: tokens of a sequence.
        kv_heads: heads of keys and values; None: ``heads``.
        head_dim: None: hidden / heads.
        gated: the feed-forward network has three matrices (SwiGLU, GeGLU), not two.
        tied: the output matrix is the embedding.
        learned_positions: one embedding for each position.
        causal: a token attends to those before it: half of the products are needed.
        flash: attention in one kernel that stores no scores, and skips what causality forbids.
        moe: sparse layers; None: dense.
        latent: latent attention; None: ordinary (grouped-query where ``kv_heads`` says so).
    """

    layers: Any
    hidden: Any
    heads: Any
    ffn: Any
    vocab: Any
    sequence: Any
    kv_heads: Any = None
    head_dim: Any = None
    gated: Any = False
    tied: Any = False
    learned_positions: bool = False
    causal: bool = True
    flash: bool = True
    moe: MoE | None = None
    latent: LatentAttention | None = None

    @property
    def kv(self) -> Any:
        """Heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def query_dim(self) -> Any:
        """Length of a head's query and key."""
        if self.latent:
            return self.latent.nope_dim + self.latent.rope_dim
        return self.hidden / np.asarray(self.heads) if self.head_dim is None else self.head_dim

    @property
    def value_dim(self) -> Any:
        """Length of a head's value."""
        return self.latent.value_dim if self.latent else self.query_dim

    def attention_linears(self) -> list[Linear]:
        """Projections of one layer."""
        h, a = self.hidden, self.heads
        output = Linear("attention output", a * self.value_dim, h, "inputs")
        if self.latent is None:
            return [Linear("query, key, value", h, (a + 2 * self.kv) * self.query_dim, "outputs"), output]
        low = self.latent
        queries = a * (low.nope_dim + low.rope_dim)
        rank = np.where(
            np.asarray(low.query_rank) > 0, low.query_rank, h
        )  # 0: straight from the residual stream
        return [
            Linear("query down", h, low.query_rank, ""),
            Linear("query up", rank, queries, "outputs"),
            Linear("key, value down", h, low.kv_rank + low.rope_dim, ""),
            Linear("key, value up", low.kv_rank, a * (low.nope_dim + low.value_dim), "outputs"),
            output,
        ]

    def _ffn(self, name: str, width: Any, tokens: Any = 1, experts: Any = 1) -> list[Linear]:
        up = (1 + np.asarray(self.gated, int)) * width
        return [
            Linear(f"{name} up", self.hidden, up, "outputs", tokens, experts),
            Linear(f"{name} down", width, self.hidden, "inputs", tokens, experts),
        ]

    def dense_linears(self) -> list[Linear]:
        """All products of a dense layer."""
        return [*self.attention_linears(), *self._ffn("ffn", self.ffn)]

    def sparse_linears(self) -> list[Linear]:
        """All products of a sparse layer, as the model needs them (capacity that stays empty is the hardware's)."""
        assert self.moe is not None
        moe = self.moe
        shared = self._ffn("shared", moe.shared_ffn)
        return [
            *self.attention_linears(),
            Linear("router", self.hidden, moe.experts, ""),
            *shared,
            *self._ffn("expert", moe.ffn, moe.top_k, moe.experts),
        ]

    def kinds(self) -> list[tuple[Any, list[Linear]]]:
        """``(how many layers, their products)``, dense layers first."""
        if self.moe is None:
            return [(self.layers, self.dense_linears())]
        dense = self.moe.dense_layers
        return [(dense, self.dense_linears()), (np.asarray(self.layers) - dense, self.sparse_linears())]

    @property
    def logits(self) -> Linear:
        """The output matrix."""
        return Linear("logits", self.hidden, self.vocab, "outputs")

    # -- parameters -------------------------------------------------------------------------------------------------------

    @property
    def embedding_parameters(self) -> Any:
        """Of one embedding matrix, with the positions if they are learned."""
        return np.asarray(self.vocab + self.sequence * self.learned_positions, float) * self.hidden

    @property
    def expert_parameters(self) -> Any:
        """Of all experts of all layers."""
        if self.moe is None:
            return np.zeros(())
        layers = np.asarray(self.layers, float) - self.moe.dense_layers
        return layers * sum(
            linear.parameters for linear in self.sparse_linears() if linear.name.startswith("expert")
        )

    @property
    def layer_parameters(self) -> Any:
        """Of all layers, with two norms each (scale only) and without embeddings."""
        total = sum(
            np.asarray(count, float) * sum(one.parameters for one in linears)
            for count, linears in self.kinds()
        )
        return total + 2.0 * self.layers * self.hidden + self.hidden

    @property
    def parameters(self) -> Any:
        """Of the whole model, biases left out."""
        untied = np.where(self.tied, 0.0, np.asarray(self.vocab, float) * self.hidden)
        return self.layer_parameters + self.embedding_parameters + untied

    @property
    def active_parameters(self) -> Any:
        """Those a token meets; the input embedding among them."""
        idle = np.zeros(())
        if self.moe is not None:
            idle = self.expert_parameters * (1 - np.asarray(self.moe.top_k) / self.moe.experts)
        return self.parameters - idle

    # -- FLOPs ------------------------------------------------------------------------------------------------------------

    @property
    def linear_flops(self) -> Any:
        """Forward FLOPs of all layers' products for a token."""
        return sum(
            np.asarray(count, float) * sum(one.flops for one in linears) for count, linears in self.kinds()
        )

    def core_flops(self, *, full: bool) -> Any:
        """Forward FLOPs of attention between tokens, of all layers, for a token; ``full``: as if nothing were masked."""
        pairs = 2.0 * self.layers * self.sequence * self.heads * (self.query_dim + self.value_dim)
        return pairs if full or not self.causal else pairs / 2

    @property
    def forward_flops(self) -> Any:
        """Of a token, as the model needs them: masked products are not counted."""
        return self.linear_flops + self.core_flops(full=False) + self.logits.flops


@dataclass(frozen=True)
class ResNet:
    """An ImageNet residual network (He et al. 2015); a sample is an image.

    Args:
        depth: 18, 34, 50, 101 or 152.
        side: pixels of an image's side, a multiple of 32.
        classes: of the last layer.
    """

    depth: int = 50
    side: int = 224
    classes: int = 1000

    def __post_init__(self) -> None:
        if self.depth not in RESNETS:
            raise InvalidInput("model.depth", self.depth, ", ".join(map(str, RESNETS)))

    def convolutions(self) -> list[tuple[int, int, int, int]]:
        """``(channels in, channels out, kernel side, image side after it)`` of every convolution."""
        kind, groups = RESNETS[self.depth]
        side = self.side // 4
        found, channels = [(3, 64, 7, self.side // 2)], 64
        for group, blocks in enumerate(groups):
            width = 64 << group
            out = 4 * width if kind == "bottleneck" else width
            for block in range(blocks):
                before = side
                side = side // 2 if group and block == 0 else side
                if kind == "bottleneck":
                    found += [(channels, width, 1, before), (width, width, 3, side), (width, out, 1, side)]
                else:
                    found += [(channels, width, 3, side), (width, width, 3, side)]
                if channels != out:
                    found.append((channels, out, 1, side))
                channels = out
        return found

    @property
    def parameters(self) -> float:
        """With batch norms and the last layer's bias: 25.6 M for ResNet-50."""
        convolutions = self.convolutions()
        weights = sum(i * o * k * k + 2 * o for i, o, k, _ in convolutions)
        return float(weights + (convolutions[-1][1] + 1) * self.classes)

    @property
    def active_parameters(self) -> float:
        """All of them."""
        return self.parameters

    @property
    def forward_flops(self) -> float:
        """Of an image: 8.2 GFLOP for ResNet-50 (4.1 G multiply-adds)."""
        convolutions = self.convolutions()
        products = sum(2.0 * i * o * k * k * side * side for i, o, k, side in convolutions)
        return products + 2.0 * convolutions[-1][1] * self.classes

    @property
    def forward_bytes(self) -> float:
        """Of an image through main memory at 2 bytes a number: each convolution's output written, normalised, read."""
        return sum(2.0 * 3 * o * side * side for _, o, _, side in self.convolutions())


@dataclass(frozen=True)
class Measured:
    """Any function, by what a compiler counted: see ``decentral.problem.workload``.

    Args:
        parameters: of the model.
        forward_flops: of one sample, a third of a training step's.
        forward_bytes: of one sample through main memory, a third of a training step's; 0: not known.
        name: what was measured.
    """

    parameters: Any
    forward_flops: Any
    forward_bytes: Any = 0.0
    name: str = "measured"

    @property
    def active_parameters(self) -> Any:
        """All of them."""
        return self.parameters


Workload = Transformer | ResNet | Measured
