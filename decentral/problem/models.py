"""Neural networks in plain JAX: parameters are pytrees, functions are of one sample and batched with ``jax.vmap``.

Inside ``jax.grad`` of a mean over a batch that is one matrix product per layer for the whole batch. A convolution is a
product with shifted images side by side: XLA on CPU is several times slower with other convolutions for each worker.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from decentral.errors import InvalidInput
from decentral.problem.base import PyTree
from decentral.problem.checks import check_choice, check_int
from decentral.problem.parametrization import PARAMETRIZATIONS, Role
from decentral.problem.precision import product

INITIALISATIONS: dict[str, Callable[..., Any]] = {
    "pytorch": lambda: jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    **{
        name: getattr(jax.nn.initializers, name)
        for name in (
            *("he_normal", "he_uniform", "lecun_normal", "lecun_uniform"),
            *("glorot_normal", "glorot_uniform"),
        )
    },
}
"""Name -> initialiser of weights. "pytorch", the default of PyTorch's Linear and Conv2d (``kaiming_uniform(a=sqrt(5))``):
U(-1/sqrt(fan_in), 1/sqrt(fan_in)), biases too (read in PyTorch's documentation of Linear). The others are
``jax.nn.initializers``, with biases of 0."""


class Model(NamedTuple):
    """A network.

    Attributes:
        init: key -> params, a pytree of float32 arrays.
        apply: (params, x) -> scores (logits); x is one sample.
        roles: of the parameters in µP, ``decentral.problem.parametrization.Role`` for each tensor; or None.
        activations: (params, x) -> {layer: what comes out of it before any nonlinearity}, layers in their order; or None.
    """

    init: Callable[[jax.Array], PyTree]
    apply: Callable[[PyTree, jax.Array], jax.Array]
    roles: PyTree | None = None
    activations: Callable[[PyTree, jax.Array], dict[str, jax.Array]] | None = None


class Routing(NamedTuple):
    """What the routers of a mixture of experts did with one sequence.

    Attributes:
        chosen: bool ``(blocks, tokens, experts)``.
        loads: ``(blocks, experts)``, the share of the tokens that went to each expert; a block's sum to ``top_k``.
        balance: the load-balancing loss, mean over blocks; 1 when loads or probabilities are all alike.
    """

    chosen: jax.Array
    loads: jax.Array
    balance: jax.Array


def mlp(
    inputs: int,
    hidden: Sequence[int],
    classes: int,
    *,
    initialisation: str = "pytorch",
    precision: str = "float32",
    parametrization: str = "standard",
) -> Model:
    """Fully connected layers with ReLU between them.

    inputs x h + h parameters for the first layer of h units and so on: 64-32-10 has 2,410, 784-128-10 has 101,770.

    In µP it is the MLP of µLO's code (arXiv 2406.00153, replayed): weights are drawn from a normal distribution of
    variance 1 / fan_in cut off at two deviations (so their deviation is 0.88 / sqrt(fan_in)) and biases from N(0, 1); the
    last layer begins at zero, and what it gives is divided by its fan_in. So all classes begin with the same score. N(0, 1) is
    large for a bias; zeros would be µP too, but then the optimizers trained by others would see other models than their own.

    Args:
        inputs: features of a sample, which may have any shape.
        hidden: units of the hidden layers; none: softmax regression, for which there is no µP.
        classes: scores.
        initialisation: one of ``INITIALISATIONS``; µP has its own.
        precision: of the hidden layers' products, one of ``decentral.problem.precision.PRECISIONS``.
        parametrization: "standard" or "mup".
    """
    multiply = product(precision)
    widths = [inputs, *(check_int("problem.hidden", width) for width in hidden), classes]
    is_mup = _is_mup(parametrization, initialisation)
    layer = mup_layer if is_mup else layers(initialisation)
    if is_mup and len(widths) == 2:
        raise InvalidInput(
            "problem.hidden", list(hidden), "at least one hidden layer in µP", "It is about its width."
        )

    def init(key: jax.Array) -> PyTree:
        keys = jax.random.split(key, len(widths) - 1)
        params = [layer(k, shape) for k, shape in zip(keys, itertools.pairwise(widths), strict=True)]
        return [*params[:-1], jax.tree.map(jnp.zeros_like, params[-1])] if is_mup else params

    def activations(params: PyTree, x: jax.Array) -> dict[str, jax.Array]:
        seen = {}
        x = x.reshape(-1)
        for number, weights in enumerate(params[:-1], 1):
            seen[f"layer {number}"] = x = dense(weights, x, multiply)
            x = jax.nn.relu(x)
        logits = dense(params[-1], x)
        return seen | {"logits": logits / widths[-2] if is_mup else logits}

    roles = None
    if is_mup:
        kinds = ["input", *["hidden"] * (len(widths) - 3), "output"]
        roles = [
            {"weight": Role(kind, *shape), "bias": Role("vector", 1, shape[1])}
            for kind, shape in zip(kinds, itertools.pairwise(widths), strict=True)
        ]
    return Model(jax.jit(init), lambda params, x: activations(params, x)["logits"], roles, activations)


def cnn(
    shape: Sequence[int], channels: Sequence[int], classes: int, *, initialisation: str = "pytorch"
) -> Model:
    """Convolution of width 3 (zero padding), ReLU and max-pooling by 2, as often as there are channels; then one dense layer.

    In one spatial dimension (signals) or two (images). 3^dimensions x c_in x c_out + c_out parameters for each
    convolution; channels (16, 32) make 6,090 for 8 x 8 digits, 20,490 for MNIST, 25,578 for CIFAR-10 and 4,842 for MNIST-1D.

    Args:
        shape: of a sample, spatial axes first and channels last.
        channels: of each convolution's output.
        classes: scores.
        initialisation: one of ``INITIALISATIONS``.
    """
    *space, depth = shape
    channels = [check_int("problem.channels", c) for c in channels]
    if len(space) not in (1, 2) or min(space) < 2 ** len(channels):
        raise InvalidInput(
            "problem.data", f"samples of shape {tuple(shape)}",
            f"signals or images of at least {2 ** len(channels)} points a side", "Take an MLP, or fewer channels.",
        )  # fmt: skip
    kernel = (3,) * len(space)
    left = 1
    for side in space:
        left *= side // 2 ** len(channels)
    layer = layers(initialisation)

    def init(key: jax.Array) -> PyTree:
        keys = jax.random.split(key, len(channels) + 1)
        pairs = itertools.pairwise([depth, *channels])
        convolutions = [layer(k, (*kernel, *pair)) for k, pair in zip(keys[:-1], pairs, strict=True)]
        return [*convolutions, layer(keys[-1], (left * [depth, *channels][-1], classes))]

    def apply(params: PyTree, x: jax.Array) -> jax.Array:
        for weights in params[:-1]:
            x = _halved(jax.nn.relu(_convolution(weights, x)))
        return dense(params[-1], x.reshape(-1))

    return Model(jax.jit(init), apply)


def transformer(
    vocabulary: int,
    length: int,
    *,
    width: int = 32,
    heads: int = 2,
    blocks: int = 2,
    initialisation: str = "pytorch",
    precision: str = "float32",
    parametrization: str = "standard",
) -> Model:
    """A causal transformer (decoder): learned positions, layer norm before attention and before the MLP of 4 x width units.

    12 w^2 + 13 w parameters per block of width w, and 2 V w + V + L w + 2 w for V tokens and L positions: 26,504 for the
    defaults with 8 tokens and 16 positions. Embeddings are drawn from N(0, 0.02^2), as GPT-2's (recalled).

    In µP (Tensor Programs V, Yang et al. 2022, recalled) attention scores are divided by the size d of a head, not its root,
    because queries and keys come to agree; embeddings are inputs, drawn from N(0, 1); weights are as the MLP's and biases begin
    at zero; so does the last layer, whose outputs are divided by w. Let d or the number of heads grow with w.

    Args:
        vocabulary: V.
        length: L, most tokens of a sequence.
        width: w, a multiple of ``heads``.
        heads: of the attention.
        blocks: how many.
        initialisation: of the dense layers, one of ``INITIALISATIONS``; µP has its own.
        precision: of the products with the weights of attention and MLP, one of
            ``decentral.problem.precision.PRECISIONS``. Attention itself, norms, embeddings and logits are never rounded.
        parametrization: "standard" or "mup".
    """
    is_mup = _is_mup(parametrization, initialisation)
    layer = functools.partial(mup_layer, bias=0.0) if is_mup else layers(initialisation)
    linear = functools.partial(dense, multiply=product(precision))

    def feed_forward(key: jax.Array) -> PyTree:
        first, second = jax.random.split(key)
        return {"in": layer(first, (width, 4 * width)), "out": layer(second, (4 * width, width))}

    def apply_feed_forward(params: PyTree, x: jax.Array) -> tuple[jax.Array, None]:
        return linear(params["out"], jax.nn.gelu(linear(params["in"], x))), None

    init, apply = _decoder(
        vocabulary, length, width, heads, blocks, layer, linear, feed_forward, apply_feed_forward, is_mup
    )

    def activations(params: PyTree, x: jax.Array) -> dict[str, jax.Array]:
        seen: dict[str, jax.Array] = {}
        logits = apply(params, x, seen)[0]
        return seen | {"logits": logits}

    def role(path: tuple, leaf: jax.ShapeDtypeStruct) -> Role:
        if leaf.ndim == 1:
            return Role("vector", 1, *leaf.shape)
        return Role({"head": "output", "blocks": "hidden"}.get(path[0].key, "input"), *leaf.shape)

    roles = None
    if is_mup:
        roles = jax.tree_util.tree_map_with_path(role, jax.eval_shape(init, jax.random.key(0)))
    return Model(jax.jit(init), lambda params, x: apply(params, x)[0], roles, activations)


def moe(  # noqa: D417  the others are the transformer's
    vocabulary: int,
    length: int,
    *,
    width: int = 32,
    heads: int = 2,
    blocks: int = 1,
    experts: int = 4,
    top_k: int = 2,
    expert_width: int = 32,
    initialisation: str = "pytorch",
    precision: str = "float32",
) -> tuple[Model, Callable[[PyTree, jax.Array], tuple[jax.Array, Routing]]]:
    """The transformer with a mixture of experts in the place of each MLP, and the same network with its routing.

    Each token goes to the ``top_k`` experts of the largest router probabilities, and their outputs are added, weighted
    with these probabilities (softmax over all experts, not normalised again). No token is dropped. All experts are
    computed for all tokens, which for tiny ones costs less than sorting the tokens.

    The load-balancing loss is that of Switch transformers (Fedus, Zoph, Shazeer, JMLR 2022), E sum_e f_e P_e with f_e the
    share of the choices and P_e the mean probability of expert e, here within each sequence (recalled from DeepSeek-V2), so
    that the objective stays a mean over samples.

    E (2 w h + h + w) + w E parameters instead of 8 w^2 + 5 w in each block, for E experts of h units: 14,024 in all for
    the defaults with 8 tokens and 16 positions.

    Args:
        vocabulary, length, width, heads, blocks: as of the transformer.
        experts: E.
        top_k: experts of each token, at most E.
        expert_width: h.
        initialisation: of the dense layers, one of ``INITIALISATIONS``.
        precision: as of the transformer, experts in the place of its MLP; the router is never rounded. An expert's scales
            are over all tokens, also those that do not come to it, whose slopes are zero.

    Returns:
        The model, and (params, x) -> (scores, Routing).
    """
    check_int("problem.expert_width", expert_width)
    if check_int("problem.top_k", top_k) > check_int("problem.experts", experts):
        raise InvalidInput("problem.top_k", top_k, f"1 to the {experts} experts")
    layer, linear = layers(initialisation), functools.partial(dense, multiply=product(precision))

    def feed_forward(key: jax.Array) -> PyTree:
        first, second, third = jax.random.split(key, 3)
        each = jax.vmap(layer, (0, None))
        return {
            "router": layer(first, (width, experts))["weight"],
            "in": each(jax.random.split(second, experts), (width, expert_width)),
            "out": each(jax.random.split(third, experts), (expert_width, width)),
        }

    def apply_feed_forward(params: PyTree, x: jax.Array) -> tuple[jax.Array, Routing]:
        probability = jax.nn.softmax(x @ params["router"])
        best = jax.lax.top_k(probability, top_k)[1]
        chosen = jax.nn.one_hot(best, experts, dtype=x.dtype).sum(-2)  # (tokens, experts)
        loads = chosen.mean(0)
        balance = experts * jnp.vdot(loads / top_k, probability.mean(0))
        outputs = jax.vmap(lambda p_in, p_out: linear(p_out, jax.nn.gelu(linear(p_in, x))))(
            params["in"], params["out"]
        )
        mixed = jnp.einsum("te,etw->tw", probability * chosen, outputs)
        return mixed, Routing(chosen > 0, loads, balance)

    init, apply = _decoder(
        vocabulary, length, width, heads, blocks, layer, linear, feed_forward, apply_feed_forward
    )

    def routed(params: PyTree, x: jax.Array) -> tuple[jax.Array, Routing]:
        scores, each = apply(params, x)
        chosen, loads, balance = (jnp.stack(parts) for parts in zip(*each, strict=True))
        return scores, Routing(chosen, loads, balance.mean())

    return Model(jax.jit(init), lambda params, x: routed(params, x)[0]), routed


# -- losses and scores -------------------------------------------------------------------------------------------------


def cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean softmax cross-entropy in nats; ``scores`` (..., classes), ``labels`` (...), -1 where there is nothing to predict."""
    # A mask, not an index: the derivative of an index is a scatter, which is slow in XLA on CPU.
    own = jnp.sum(scores * jax.nn.one_hot(labels, scores.shape[-1], dtype=scores.dtype), axis=-1)
    return _mean_of_labelled(jax.nn.logsumexp(scores, axis=-1) - own, labels)


def accuracy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of the labels that have the highest score; shapes as for ``cross_entropy``."""
    right = jnp.argmax(scores, axis=-1).astype(labels.dtype) == labels
    return _mean_of_labelled(right.astype(scores.dtype), labels)


def _mean_of_labelled(values: jax.Array, labels: jax.Array) -> jax.Array:
    if labels.ndim == 0:
        return values
    there = (labels >= 0).astype(values.dtype)
    return jnp.sum(values * there) / jnp.sum(there)


# -- layers ------------------------------------------------------------------------------------------------------------


def layers(initialisation: str) -> Callable[[jax.Array, tuple[int, ...]], PyTree]:
    """``layer(key, shape) -> {"weight", "bias"}``; the last axis counts outputs."""
    draw = INITIALISATIONS[check_choice("problem.initialisation", initialisation, INITIALISATIONS)]()

    def layer(key: jax.Array, shape: tuple[int, ...]) -> PyTree:
        first, second = jax.random.split(key)
        weight = draw(first, shape, jnp.float32)
        bias = jnp.zeros(shape[-1], jnp.float32)
        if initialisation == "pytorch":
            limit = (weight.size // shape[-1]) ** -0.5
            bias = jax.random.uniform(second, bias.shape, jnp.float32, -limit, limit)
        return {"weight": weight, "bias": bias}

    return layer


def mup_layer(key: jax.Array, shape: tuple[int, int], bias: float = 1.0) -> PyTree:
    """A ``layer`` as of ``layers``, in µP; ``bias`` is the deviation of biases."""
    first, second = jax.random.split(key)
    weight = jax.random.truncated_normal(first, -2.0, 2.0, shape, jnp.float32) * shape[0] ** -0.5
    return {"weight": weight, "bias": bias * jax.random.normal(second, shape[1:], jnp.float32)}


def _is_mup(parametrization: str, initialisation: str) -> bool:
    is_mup = check_choice("problem.parametrization", parametrization, PARAMETRIZATIONS) == "mup"
    if is_mup and initialisation != "pytorch":
        raise InvalidInput(
            "problem.initialisation", initialisation, "nothing with parametrization = 'mup', which has its own",
            "Leave it out.",
        )  # fmt: skip
    return is_mup


def dense(
    params: PyTree, x: jax.Array, multiply: Callable[[jax.Array, jax.Array], jax.Array] = jnp.matmul
) -> jax.Array:
    """A product and a bias."""
    return multiply(x, params["weight"]) + params["bias"]


def _convolution(params: PyTree, x: jax.Array) -> jax.Array:
    """``x`` (..., c_in) with zeros around it; the kernel (3, ..., c_in, c_out)."""
    kernel, space = params["weight"], x.shape[:-1]
    padded = jnp.pad(x, [(1, 1)] * len(space) + [(0, 0)])
    around = [
        padded[tuple(slice(s, s + side) for s, side in zip(shift, space, strict=True))]
        for shift in itertools.product(range(3), repeat=len(space))
    ]
    return jnp.concatenate(around, axis=-1) @ kernel.reshape(-1, kernel.shape[-1]) + params["bias"]


def _halved(x: jax.Array) -> jax.Array:
    """Maxima over blocks of two along each spatial axis; an odd last point is left out."""
    for axis in range(x.ndim - 1):
        even = jax.lax.slice_in_dim(x, 0, x.shape[axis] // 2 * 2, axis=axis)
        pairs = even.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
        x = pairs.max(axis + 1)
    return x


def _decoder(
    vocabulary: int,
    length: int,
    width: int,
    heads: int,
    blocks: int,
    layer: Callable,
    linear: Callable,
    feed_forward: Callable,
    apply_feed_forward: Callable,
    is_mup: bool = False,
) -> tuple[Callable, Callable]:
    """``(init, apply)`` of a causal transformer.

    ``apply(params, x, seen)`` returns scores and what each block's feed-forward part says; activations go to the dict ``seen``.
    """
    check_int("problem.blocks", blocks)
    check_int("problem.heads", heads)
    if check_int("problem.width", width) % heads:
        raise InvalidInput("problem.width", width, f"a multiple of the {heads} heads")

    def norm() -> PyTree:
        return {"scale": jnp.ones(width, jnp.float32), "bias": jnp.zeros(width, jnp.float32)}

    def block(key: jax.Array) -> PyTree:
        keys = jax.random.split(key, 3)
        return {
            "norm_1": norm(),
            "mix": layer(keys[0], (width, 3 * width)),
            "out": layer(keys[1], (width, width)),
            "norm_2": norm(),
            "feed_forward": feed_forward(keys[2]),
        }

    scale, power = (1.0, -1.0) if is_mup else (0.02, -0.5)

    def init(key: jax.Array) -> PyTree:
        keys = jax.random.split(key, blocks + 3)
        head = layer(keys[2], (width, vocabulary))
        return {
            "tokens": scale * jax.random.normal(keys[0], (vocabulary, width), jnp.float32),
            "positions": scale * jax.random.normal(keys[1], (length, width), jnp.float32),
            "blocks": [block(k) for k in keys[3:]],
            "norm": norm(),
            "head": jax.tree.map(jnp.zeros_like, head) if is_mup else head,
        }

    def apply(
        params: PyTree, x: jax.Array, seen: dict[str, jax.Array] | None = None
    ) -> tuple[jax.Array, list[Any]]:
        said, seen = [], {} if seen is None else seen
        # A product, not an index, for the same reason as in the loss.
        h = jax.nn.one_hot(x, vocabulary, dtype=params["tokens"].dtype) @ params["tokens"]
        h = h + params["positions"][: len(x)]
        seen["embedding"] = h
        for number, p in enumerate(params["blocks"], 1):
            mixed = linear(p["mix"], layer_norm(p["norm_1"], h))
            seen[f"scores {number}"] = scores = attention_scores(mixed, heads, power)
            seen[f"attention {number}"] = change = linear(p["out"], attended(scores, mixed, heads))
            h = h + change
            change, word = apply_feed_forward(p["feed_forward"], layer_norm(p["norm_2"], h))
            seen[f"feed-forward {number}"] = change
            h = h + change
            said.append(word)
        logits = dense(params["head"], layer_norm(params["norm"], h))
        return logits / width if is_mup else logits, said

    return init, apply


def layer_norm(params: PyTree, x: jax.Array) -> jax.Array:
    """Layer norm over the last axis, with 1e-5 added to the variance."""
    away = x - x.mean(-1, keepdims=True)
    return (
        away * jax.lax.rsqrt(jnp.square(away).mean(-1, keepdims=True) + 1e-5) * params["scale"]
        + params["bias"]
    )


def attention(mixed: jax.Array, heads: int) -> jax.Array:
    """Causal attention; ``mixed`` (tokens, 3 width) holds queries, keys and values side by side."""
    return attended(attention_scores(mixed, heads), mixed, heads)


def attention_scores(mixed: jax.Array, heads: int, power: float = -0.5) -> jax.Array:
    """Products of queries and keys, times a head's size to the ``power``: (heads, tokens, tokens), future ones too."""
    query, key, _ = _by_head(mixed, heads)
    return jnp.einsum("qhd,khd->hqk", query, key) * query.shape[-1] ** power


def attended(scores: jax.Array, mixed: jax.Array, heads: int) -> jax.Array:
    """Means of the values so far, weighted with the softmax of the scores; (tokens, width)."""
    tokens = len(mixed)
    past = jnp.tril(jnp.ones((tokens, tokens), bool))
    weights = jax.nn.softmax(jnp.where(past, scores, -jnp.inf))
    return jnp.einsum("hqk,khd->qhd", weights, _by_head(mixed, heads)[2]).reshape(tokens, -1)


def _by_head(mixed: jax.Array, heads: int) -> list[jax.Array]:
    """Queries, keys and values, each (tokens, heads, size of a head)."""
    return jnp.split(mixed.reshape(len(mixed), 3 * heads, -1), 3, axis=1)
