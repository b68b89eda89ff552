"""Reversible networks cut into stages: an MLP, a RevNet, a transformer; a mini-batch passes them as two streams.

Every block is that of PETRA (Rivaud et al., ICLR 2025; read in its code): (x, xt) -> (xt + F(x), x), one residual branch F
and a swap, undone by (y, yt) -> (yt, y - F(yt)).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from decentral.errors import InvalidInput
from decentral.problem import data as sets
from decentral.problem.base import PyTree
from decentral.problem.checks import check_choice, check_int
from decentral.problem.models import attention, dense, layer_norm, layers
from decentral.problem.networks import DATA, dealt, load
from decentral.problem.stages import Stage, StagedProblem, from_stages, models_of

IMAGES = ("digits", "mnist", "cifar10")
Streams = tuple[jax.Array, jax.Array]


# -- stages ------------------------------------------------------------------------------------------------------------


def reversible_block(
    init: Callable[[jax.Array], PyTree], branch: Callable[[PyTree, jax.Array], jax.Array]
) -> Stage:
    """The stage (x, xt) -> (xt + F(x), x).

    Args:
        init: key -> params of F.
        branch: F: (params, x) -> an array of the shape of x.
    """

    def apply(params: PyTree, streams: Streams) -> Streams:
        x, xt = streams
        return xt + branch(params, x), x

    def inverse(params: PyTree, streams: Streams) -> Streams:
        y, yt = streams
        return yt, y - branch(params, yt)

    return Stage(init, apply, inverse)


@cache
def tanh_block(width: int, *, initialisation: str = "pytorch") -> Stage:
    """F(x) = tanh(x W + b) on streams (batch, width): {"weight", "bias"}."""
    layer = layers(initialisation)
    return reversible_block(lambda key: layer(key, (width, width)), lambda p, x: jnp.tanh(dense(p, x)))


@cache
def residual_block(width: int, *, initialisation: str = "pytorch") -> Stage:
    """RevNet's BasicBlock on streams (batch, height, width, channels), batch norm with the statistics of the batch.

    F = relu(norm(conv(relu(norm(conv(x)))))), convolutions 3 x 3 with bias: {"conv_1", "norm_1", "conv_2", "norm_2"}.

    Args:
        width: channels of a stream.
        initialisation: one of ``models.INITIALISATIONS``.
    """
    layer = layers(initialisation)
    return reversible_block(lambda key: _branch_init(layer, key, width, width), _branch)


@cache
def down_sampling_block(inputs: int, outputs: int, *, initialisation: str = "pytorch") -> Stage:
    """(x, xt) -> (S(xt) + F(x), S(x)), not reversible: F is that of ``residual_block`` with stride 2 in its first convolution.

    S = norm(conv(x)), 1 x 1 with stride 2, is the same for both streams (as in the stages PETRA's engine was recorded on).

    Args:
        inputs: channels of a stream.
        outputs: channels of a stream.
        initialisation: one of ``models.INITIALISATIONS``.
    """
    layer = layers(initialisation)

    def init(key: jax.Array) -> PyTree:
        first, second = jax.random.split(key)
        shortcut = {"conv": layer(first, (1, 1, inputs, outputs)), "norm": _neutral(outputs)}
        return _branch_init(layer, second, inputs, outputs) | {"shortcut": shortcut}

    def apply(params: PyTree, streams: Streams) -> Streams:
        def shortcut(x: jax.Array) -> jax.Array:
            return _batch_norm(params["shortcut"]["norm"], _convolved(params["shortcut"]["conv"], x, 2))

        x, xt = streams
        return shortcut(xt) + _branch(params, x, 2), shortcut(x)

    return Stage(init, apply)


@cache
def transformer_block(width: int, heads: int, *, initialisation: str = "pytorch") -> Stage:
    """F(x) = a + MLP(norm(x + a)) with a = attention(norm(x)) on streams (batch, tokens, width).

    F is ``transformer_branch``. One branch of both parts, not one of each in turn (the reversible
    transformers of Reformer, recalled): so all blocks are of one kind, and of one cost.

    Args:
        width: of a stream, a multiple of ``heads``.
        heads: of the causal attention.
        initialisation: one of ``models.INITIALISATIONS``.
    """
    return reversible_block(*transformer_branch(width, heads, initialisation=initialisation))


def transformer_branch(
    width: int, heads: int, *, initialisation: str = "pytorch"
) -> tuple[Callable[[jax.Array], PyTree], Callable[[PyTree, jax.Array], jax.Array]]:
    """``(init, apply)`` of all that an ordinary transformer block adds to its input; arguments as of ``transformer_block``."""
    layer = layers(initialisation)
    if check_int("problem.width", width) % check_int("problem.heads", heads):
        raise InvalidInput("problem.width", width, f"a multiple of the {heads} heads")

    def init(key: jax.Array) -> PyTree:
        keys = jax.random.split(key, 4)
        return {
            "norm_1": _neutral(width),
            "mix": layer(keys[0], (width, 3 * width)),
            "out": layer(keys[1], (width, width)),
            "norm_2": _neutral(width),
            "feed_forward": {
                "in": layer(keys[2], (width, 4 * width)),
                "out": layer(keys[3], (4 * width, width)),
            },
        }

    def branch(p: PyTree, x: jax.Array) -> jax.Array:
        mixed = dense(p["mix"], layer_norm(p["norm_1"], x))
        a = dense(p["out"], jax.vmap(lambda one: attention(one, heads))(mixed))
        hidden = jax.nn.gelu(dense(p["feed_forward"]["in"], layer_norm(p["norm_2"], x + a)))
        return a + dense(p["feed_forward"]["out"], hidden)

    return init, branch


def _branch_init(layer: Callable, key: jax.Array, inputs: int, outputs: int) -> dict[str, PyTree]:
    first, second = jax.random.split(key)
    return {
        "conv_1": layer(first, (3, 3, inputs, outputs)),
        "norm_1": _neutral(outputs),
        "conv_2": layer(second, (3, 3, outputs, outputs)),
        "norm_2": _neutral(outputs),
    }


def _branch(p: PyTree, x: jax.Array, stride: int = 1) -> jax.Array:
    x = jax.nn.relu(_batch_norm(p["norm_1"], _convolved(p["conv_1"], x, stride)))
    return jax.nn.relu(_batch_norm(p["norm_2"], _convolved(p["conv_2"], x)))


def _convolved(params: PyTree, x: jax.Array, stride: int = 1) -> jax.Array:
    """``x`` (batch, height, width, c_in) with zeros around it, kernel of odd sides (k, k, c_in, c_out)."""
    kernel = params["weight"]
    around = [(side // 2, side // 2) for side in kernel.shape[:2]]
    axes = ("NHWC", "HWIO", "NHWC")
    return (
        jax.lax.conv_general_dilated(x, kernel, (stride, stride), around, dimension_numbers=axes)
        + params["bias"]
    )


def _batch_norm(params: PyTree, x: jax.Array) -> jax.Array:
    """Of the mean and the variance (of the n, not n - 1) of each channel in this batch, with 1e-5 added to the variance."""
    axes = tuple(range(x.ndim - 1))
    away = x - x.mean(axes)
    return away * jax.lax.rsqrt(jnp.square(away).mean(axes) + 1e-5) * params["scale"] + params["bias"]


def _neutral(width: int) -> dict[str, jax.Array]:
    """A norm that neither scales nor shifts yet."""
    return {"scale": jnp.ones(width, jnp.float32), "bias": jnp.zeros(width, jnp.float32)}


def _halves(x: jax.Array) -> Streams:
    first, second = jnp.split(x, 2, axis=-1)
    return first, second


def _joined(streams: Streams) -> jax.Array:
    return jnp.concatenate(streams, axis=-1)


# -- problems ----------------------------------------------------------------------------------------------------------


def reversible_mlp(  # noqa: D417  what is said once is not said again
    n: int,
    *,
    data: str = "clusters",
    path: str | None = None,
    hidden: int = 32,
    stages: int = 10,
    workers_per_model: int | None = None,
    partition: str = "iid",
    alpha: float = 1.0,
    test_fraction: float | None = None,
    batch_size: int = 32,
    sampling: str = "replacement",
    initialisation: str = "lecun_normal",
    initial: str = "common",
    seed: int = 0,
    dtype: str = "float32",
) -> StagedProblem:
    """A fully connected network of blocks F(x) = tanh(x W + b).

    The stem is a dense layer, halved into two streams, and the head one of both streams. 2 h (d + 1) + (J - 2) h (h + 1) +
    (2 h + 1) c parameters for d features and c classes: 10,186 for the defaults, whose weights have unit gain, N(0, 1/fan_in).

    Args:
        n: workers.
        data: "clusters", "digits", "mnist", "mnist1d" or "cifar10", see ``decentral.problem.data``.
        path: the user's own files, for "cifar10".
        hidden: units of a stream.
        stages: J of them: the stem, J - 2 blocks, the head; at least 2.
        workers_per_model: J, the default: the workers are n / J pipelines, each holding one model, and the samples are
            dealt out to the pipelines. 1: every worker holds a whole model and has samples of its own.
        partition, alpha, test_fraction, sampling, initialisation, initial, seed, dtype: as of ``networks.mlp``.
        batch_size: samples per gradient.
    """
    hidden, blocks = check_int("problem.hidden", hidden), check_int("problem.stages", stages, 2) - 2
    loaded = load(data, [name for name in DATA if name != "libsvm"], path, test_fraction, seed)
    layer = layers(initialisation)
    inputs = math.prod(loaded.train_features.shape[1:])
    kinds = {
        "stem": Stage(
            lambda key: layer(key, (inputs, 2 * hidden)),
            lambda p, x: _halves(dense(p, x.reshape(len(x), -1))),
        ),
        "block": tanh_block(hidden, initialisation=initialisation),
        "head": Stage(
            lambda key: layer(key, (2 * hidden, loaded.classes)),
            lambda p, streams: dense(p, _joined(streams)),
        ),
    }
    return classifier(
        n, f"reversible_mlp_{data}", loaded, kinds, ("stem", *["block"] * blocks, "head"), partition, alpha, seed, initial,
        workers_per_model=workers_per_model, batch_size=batch_size, sampling=sampling, dtype=dtype,
    )  # fmt: skip


def revnet(  # noqa: D417  what is said once is not said again
    n: int,
    *,
    data: str = "digits",
    path: str | None = None,
    widths: tuple[int, ...] = (8, 16),
    blocks: tuple[int, ...] = (2, 2),
    workers_per_model: int | None = None,
    partition: str = "iid",
    alpha: float = 1.0,
    test_fraction: float | None = None,
    batch_size: int = 32,
    sampling: str = "replacement",
    initialisation: str = "pytorch",
    initial: str = "common",
    seed: int = 0,
    dtype: str = "float32",
) -> StagedProblem:
    """A RevNet: stem, groups of residual blocks, head; the first block of each group but the first is a down-sampling one.

    The stem is relu(norm(conv(x))), 3 x 3, its channels halved into two streams; the head a dense layer of the means over
    the image. RevNet18 has widths (64, 128, 256, 512) and blocks (2, 2, 2, 2): J = 10 stages. Batch norm has the
    statistics of the batch, also where losses are measured, see ``StagedProblem``.

    Args:
        n: workers.
        data: "digits", "mnist" or "cifar10".
        path: the user's own files, for "cifar10".
        widths: channels of a stream, for each group.
        blocks: of each group, the down-sampling one included: J = 2 + their sum.
        workers_per_model, batch_size: as of ``reversible_mlp``.
        partition, alpha, test_fraction, sampling, initialisation, initial, seed, dtype: as of ``networks.mlp``.
    """
    for name, numbers in (("widths", widths), ("blocks", blocks)):
        if not isinstance(numbers, tuple | list):
            raise InvalidInput(f"problem.{name}", numbers, "a list of whole numbers, one for each group")
    widths = tuple(check_int("problem.widths", width) for width in widths)
    if not widths or len(blocks) != len(widths):
        raise InvalidInput("problem.blocks", blocks, f"a number for each of the {len(widths)} widths")
    loaded = load(data, IMAGES, path, test_fraction, seed)
    layer = layers(initialisation)
    depth = loaded.train_features.shape[-1]

    def stem(p: PyTree, x: jax.Array) -> Streams:
        return _halves(jax.nn.relu(_batch_norm(p["norm"], _convolved(p["conv"], x))))

    kinds = {
        "stem": Stage(
            lambda key: {"conv": layer(key, (3, 3, depth, 2 * widths[0])), "norm": _neutral(2 * widths[0])},
            stem,
        )
    }
    order = ["stem"]
    for group, (width, number) in enumerate(zip(widths, blocks, strict=True)):
        own = [f"block_{group}"] * check_int("problem.blocks", number)
        kinds[own[0]] = residual_block(width, initialisation=initialisation)
        if group:
            own[0] = f"down_{group}"
            kinds[own[0]] = down_sampling_block(widths[group - 1], width, initialisation=initialisation)
        order += own
    kinds["head"] = Stage(
        lambda key: layer(key, (2 * widths[-1], loaded.classes)),
        lambda p, streams: dense(p, _joined(streams).mean((1, 2))),
    )
    return classifier(
        n, f"revnet_{data}", loaded, kinds, (*order, "head"), partition, alpha, seed, initial,
        workers_per_model=workers_per_model, batch_size=batch_size, sampling=sampling, dtype=dtype,
    )  # fmt: skip


def reversible_transformer(  # noqa: D417  what is said once is not said again
    n: int,
    *,
    data: str = "markov",
    vocabulary: int = 8,
    order: int = 2,
    concentration: float = 0.3,
    length: int = 16,
    sequences: int = 2048,
    test_sequences: int = 512,
    width: int = 32,
    heads: int = 2,
    stages: int = 4,
    workers_per_model: int | None = None,
    partition: str = "iid",
    alpha: float = 1.0,
    batch_size: int = 32,
    sampling: str = "replacement",
    initialisation: str = "pytorch",
    initial: str = "common",
    seed: int = 0,
    dtype: str = "float32",
) -> StagedProblem:
    """A causal transformer of reversible blocks that predicts the next token of a Markov language.

    The stem gives each stream an embedding of tokens and positions of its own; the head is a norm of both streams and a
    dense layer. Blocks are those of ``transformer_block``.

    Args:
        n: workers.
        data, vocabulary, order, concentration, length, sequences, test_sequences: as of ``networks.transformer``.
        width: of a stream, a multiple of ``heads``.
        heads: of the attention.
        stages: J of them: the stem, J - 2 blocks, the head; at least 2.
        workers_per_model, batch_size: as of ``reversible_mlp``.
        partition, alpha, sampling, initialisation, initial, seed, dtype: as of ``networks.transformer``.
    """
    check_choice("problem.data", data, ["markov"])
    blocks = check_int("problem.stages", stages, 2) - 2
    loaded, language = sets.markov(
        vocabulary=vocabulary, order=order, concentration=concentration, length=length,
        sequences=sequences, test_sequences=test_sequences, seed=seed,
    )  # fmt: skip
    layer = layers(initialisation)

    def stem_init(key: jax.Array) -> PyTree:
        shapes = {"tokens": (vocabulary, 2 * width), "positions": (length, 2 * width)}
        keys = jax.random.split(key, 2)
        return {
            name: 0.02 * jax.random.normal(k, shape, jnp.float32)
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def stem(p: PyTree, x: jax.Array) -> Streams:
        # A product, not an index, whose derivative is slow in XLA on CPU.
        return _halves(jax.nn.one_hot(x, vocabulary, dtype=p["tokens"].dtype) @ p["tokens"] + p["positions"])

    kinds = {
        "stem": Stage(stem_init, stem),
        "block": transformer_block(width, heads, initialisation=initialisation),
        "head": Stage(
            lambda key: {"norm": _neutral(2 * width), "dense": layer(key, (2 * width, vocabulary))},
            lambda p, streams: dense(p["dense"], layer_norm(p["norm"], _joined(streams))),
        ),
    }
    return classifier(
        n, "reversible_transformer_markov", loaded, kinds, ("stem", *["block"] * blocks, "head"),
        partition, alpha, seed, initial, workers_per_model=workers_per_model, batch_size=batch_size, sampling=sampling,
        best_loss=language.entropy_rate, dtype=dtype,
    )  # fmt: skip


def classifier(
    n: int,
    name: str,
    loaded: sets.DataSet,
    kinds: dict[str, Stage],
    order: tuple[str, ...],
    partition: str,
    alpha: float,
    seed: int,
    initial: str,
    *,
    workers_per_model: int | None,
    **options: Any,
) -> StagedProblem:
    """A problem of stages with the samples dealt out to the models; arguments as of the factories here and ``from_stages``."""
    _, models = models_of(n, len(order), workers_per_model)
    check_choice("problem.initial", initial, ("common", "per_worker"))
    return from_stages(
        {kind: kinds[kind] for kind in dict.fromkeys(order)},
        order,
        dealt(loaded, models, partition, alpha, seed),
        n=n,
        workers_per_model=workers_per_model,
        held_out=(loaded.test_features, loaded.test_labels) if len(loaded.test_labels) else None,
        initial_per_worker=initial == "per_worker",
        name=name,
        **options,
    )
