"""Neural networks on workers: a model, a data set, and how its samples are shared among the workers."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from decentral.errors import InvalidInput
from decentral.problem import data as sets
from decentral.problem import models
from decentral.problem.base import PyTree
from decentral.problem.checks import check_choice, check_number, random_generator
from decentral.problem.finite_sum import FiniteSum, from_loss
from decentral.problem.partition import PARTITIONS
from decentral.problem.partition import partition as deal

DATA = {
    function.__name__: function
    for function in (
        sets.digits,
        sets.clusters,
        sets.parity,
        sets.teacher,
        sets.mnist,
        sets.mnist1d,
        sets.cifar10,
        sets.libsvm,
    )
}
"""Name -> data set to classify."""


def mlp(
    n: int,
    *,
    data: str = "digits",
    path: str | None = None,
    hidden: tuple[int, ...] = (32,),
    partition: str = "iid",
    alpha: float = 1.0,
    test_fraction: float | None = None,
    batch_size: int | None = None,
    sampling: str = "replacement",
    initialisation: str = "pytorch",
    precision: str = "float32",
    parametrization: str = "standard",
    initial: str = "common",
    seed: int = 0,
    dtype: str = "float32",
) -> FiniteSum:
    """A fully connected network with ReLU and softmax cross-entropy; parameters as in ``decentral.problem.models.mlp``.

    Args:
        n: workers.
        data: "digits", "clusters", "parity", "teacher", "mnist", "mnist1d", "cifar10" or "libsvm";
            see ``decentral.problem.data``.
        path: the user's own files, for "cifar10" and "libsvm".
        hidden: units of the hidden layers.
        partition: "iid", "label" or "dirichlet", see ``decentral.problem.partition``; or "shared": every worker sees the
            whole data set, which is stored once, with draws of its own (as in A2CiD2's experiments).
        alpha: of "dirichlet".
        test_fraction: share of samples held out (0.2), for data sets without a split of their own.
        batch_size: samples per gradient; None: full gradients.
        sampling: "replacement": the samples of a batch are drawn with replacement; "shuffle": each worker goes through
            its samples epoch by epoch, each time in a new random order; see ``decentral.problem.sampling``.
        initialisation: one of ``decentral.problem.models.INITIALISATIONS``; "pytorch" is PyTorch's default.
        precision: "float32": nothing is rounded; "bfloat16", "mxfp8" or "fp8_tensor": the operands of the hidden layers'
            products are, see ``decentral.problem.precision``.
        parametrization: "standard", or "mup": so that hyper-parameters transfer between widths, see
            ``decentral.problem.models.mlp``; give the optimizer the same.
        initial: "common": all workers start at the same draw; "per_worker": each at its own.
        seed: drives the split and the partition (the starting point is drawn from the run's seed).
        dtype: "float32" or "float64" (needs x64).
    """
    loaded = load(data, list(DATA), path, test_fraction, seed)
    model = models.mlp(
        math.prod(loaded.train_features.shape[1:]), hidden, loaded.classes,
        initialisation=initialisation, precision=precision, parametrization=parametrization,
    )  # fmt: skip
    return _classifier(
        n, f"mlp_{data}", loaded, model,
        partition=partition, alpha=alpha, batch_size=batch_size, sampling=sampling, initial=initial, seed=seed, dtype=dtype,
    )  # fmt: skip


def cnn(  # noqa: D417  what is said once is not said again
    n: int,
    *,
    data: str = "digits",
    path: str | None = None,
    channels: tuple[int, ...] = (16, 32),
    partition: str = "iid",
    alpha: float = 1.0,
    test_fraction: float | None = None,
    batch_size: int | None = None,
    sampling: str = "replacement",
    initialisation: str = "pytorch",
    initial: str = "common",
    seed: int = 0,
    dtype: str = "float32",
) -> FiniteSum:
    """A small convolutional network with softmax cross-entropy; parameters as in ``decentral.problem.models.cnn``.

    Args:
        n: workers.
        data: "digits", "mnist", "mnist1d" or "cifar10".
        path: the user's own files, for "cifar10".
        channels: of each convolution; each halves the image.
        partition, alpha, test_fraction, batch_size, sampling, initialisation, initial, seed, dtype: as of ``mlp``.
    """
    loaded = load(
        data,
        [name for name in DATA if name not in ("clusters", "parity", "teacher", "libsvm")],
        path,
        test_fraction,
        seed,
    )
    model = models.cnn(
        loaded.train_features.shape[1:], channels, loaded.classes, initialisation=initialisation
    )
    return _classifier(
        n, f"cnn_{data}", loaded, model,
        partition=partition, alpha=alpha, batch_size=batch_size, sampling=sampling, initial=initial, seed=seed, dtype=dtype,
    )  # fmt: skip


def transformer(  # noqa: D417  what is said once is not said again
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
    blocks: int = 2,
    partition: str = "iid",
    alpha: float = 1.0,
    batch_size: int | None = None,
    sampling: str = "replacement",
    initialisation: str = "pytorch",
    precision: str = "float32",
    parametrization: str = "standard",
    initial: str = "common",
    seed: int = 0,
    dtype: str = "float32",
) -> FiniteSum:
    """A causal transformer that predicts the next token of a Markov language; the best loss there is is ``best_loss``.

    Args:
        n: workers.
        data: "markov", see ``decentral.problem.data.markov``.
        vocabulary, order, concentration, length, sequences, test_sequences: of the language and its samples.
        width, heads, blocks, precision, parametrization: of the network, see ``decentral.problem.models.transformer``.
        partition: as of ``mlp``; a sequence's class is its most frequent token.
        alpha, batch_size, sampling, initialisation, initial, seed, dtype: as of ``mlp``; ``seed`` drives the language too.
    """
    check_choice("problem.data", data, ["markov"])
    loaded, language = sets.markov(
        vocabulary=vocabulary, order=order, concentration=concentration, length=length,
        sequences=sequences, test_sequences=test_sequences, seed=seed,
    )  # fmt: skip
    model = models.transformer(
        vocabulary, length, width=width, heads=heads, blocks=blocks,
        initialisation=initialisation, precision=precision, parametrization=parametrization,
    )  # fmt: skip
    problem = _classifier(
        n, "transformer_markov", loaded, model,
        partition=partition, alpha=alpha, batch_size=batch_size, sampling=sampling, initial=initial, seed=seed, dtype=dtype,
    )  # fmt: skip
    return dataclasses.replace(problem, best_loss=language.entropy_rate)


def moe(  # noqa: D417  what is said once is not said again
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
    blocks: int = 1,
    experts: int = 4,
    top_k: int = 2,
    expert_width: int = 32,
    balance: float = 0.01,
    partition: str = "iid",
    alpha: float = 1.0,
    batch_size: int | None = None,
    sampling: str = "replacement",
    initialisation: str = "pytorch",
    precision: str = "float32",
    initial: str = "common",
    seed: int = 0,
    dtype: str = "float32",
) -> FiniteSum:
    """The transformer with a mixture of experts in each block, and what its routers do on record.

    The loss is the cross-entropy plus ``balance`` times the load-balancing loss. Beside it and the accuracy are measured
    ``prediction_loss``, the cross-entropy alone, whose best value is ``best_loss``; and ``load_expert_0``, ...: the share
    of the tokens that go to each expert, experts numbered through the blocks, those of a block adding up to ``top_k``.

    Args:
        n: workers.
        data, vocabulary, order, concentration, length, sequences, test_sequences: as of ``transformer``.
        width, heads, blocks, experts, top_k, expert_width, precision: of the network, see ``decentral.problem.models.moe``.
        balance: weight of the load-balancing loss, at least 0.
        partition, alpha, batch_size, sampling, initialisation, initial, seed, dtype: as of ``transformer``.
    """
    check_choice("problem.data", data, ["markov"])
    balance = check_number("problem.balance", balance)
    loaded, language = sets.markov(
        vocabulary=vocabulary, order=order, concentration=concentration, length=length,
        sequences=sequences, test_sequences=test_sequences, seed=seed,
    )  # fmt: skip
    model, routed = models.moe(
        vocabulary, length, width=width, heads=heads, blocks=blocks,
        experts=experts, top_k=top_k, expert_width=expert_width,
        initialisation=initialisation, precision=precision,
    )  # fmt: skip

    def loss(params: PyTree, sample: PyTree) -> jax.Array:
        scores, routing = routed(params, sample["features"])
        return models.cross_entropy(scores, sample["target"]) + balance * routing.balance

    def measure(params: PyTree, sample: PyTree) -> dict[str, jax.Array]:
        scores, routing = routed(params, sample["features"])
        loads = {f"load_expert_{e}": load for e, load in enumerate(routing.loads.reshape(-1))}
        return {
            "accuracy": models.accuracy(scores, sample["target"]),
            "prediction_loss": models.cross_entropy(scores, sample["target"]),
            **loads,
        }

    problem = _classifier(
        n, "moe_markov", loaded, model, loss, measure,
        partition=partition, alpha=alpha, batch_size=batch_size, sampling=sampling, initial=initial, seed=seed, dtype=dtype,
    )  # fmt: skip
    return dataclasses.replace(problem, best_loss=language.entropy_rate)


def load(
    name: str,
    allowed: Sequence[str],
    path: str | None,
    test_fraction: float | None,
    seed: int,
    scaling: str | None = None,
) -> sets.DataSet:
    """The data set, with the arguments it takes.

    Raises:
        InvalidInput: it is not there, or needs another argument.
    """
    build = DATA[check_choice("problem.data", name, allowed)]
    takes = inspect.signature(build).parameters
    given = {"path": path, "test_fraction": test_fraction, "scaling": scaling}
    for key, value in given.items():
        if value is not None and key not in takes:
            raise InvalidInput(f"problem.{key}", value, f"nothing with data = {name!r}", "Leave it out.")
    if "path" in takes and path is None:
        raise InvalidInput("problem.path", None, f"where your files of {name!r} are", "Set problem.path.")
    if "seed" in takes:
        given["seed"] = seed
    return build(**{key: value for key, value in given.items() if value is not None})


def _classifier(
    n: int,
    name: str,
    loaded: sets.DataSet,
    model: models.Model,
    loss: Callable[[PyTree, PyTree], jax.Array] | None = None,
    measure: Callable[[PyTree, PyTree], dict[str, jax.Array]] | None = None,
    *,
    partition: str,
    alpha: float,
    batch_size: int | None,
    sampling: str,
    initial: str,
    seed: int,
    dtype: str,
) -> FiniteSum:
    """Softmax cross-entropy and accuracy of a model, unless told otherwise, its samples dealt out to the workers."""

    def cross_entropy(params: PyTree, sample: PyTree) -> jax.Array:
        return models.cross_entropy(model.apply(params, sample["features"]), sample["target"])

    def accuracy(params: PyTree, sample: PyTree) -> dict[str, jax.Array]:
        return {"accuracy": models.accuracy(model.apply(params, sample["features"]), sample["target"])}

    seen = model.activations
    activations = None if seen is None else lambda params, sample: seen(params, sample["features"])

    def samples(features: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        return {"features": features, "target": labels}

    check_choice("problem.initial", initial, ("common", "per_worker"))
    return from_loss(
        loss or cross_entropy,
        model.init,
        [samples(*part) for part in dealt(loaded, n, partition, alpha, seed)],
        batch_size=batch_size,
        sampling=sampling,
        sharing=n if partition == "shared" else None,
        held_out=samples(loaded.test_features, loaded.test_labels) if len(loaded.test_labels) else None,
        scores=measure or accuracy,
        is_deep=True,
        roles=model.roles,
        activations=activations,
        dtype=dtype,
        initial_per_worker=initial == "per_worker",
        name=name,
    )


def dealt(
    loaded: sets.DataSet, n: int, partition: str, alpha: float, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Features and labels of each of n, or once of all where they are shared."""
    check_choice("problem.partition", partition, (*PARTITIONS, "shared"))
    features, labels = loaded.train_features, loaded.train_labels
    if partition == "shared":
        return [(features, labels)]
    kinds = labels if labels.ndim == 1 else _most_frequent(features, loaded.classes)
    parts = deal(kinds, n, partition, random_generator(seed, "partition"), alpha)
    return [(features[part], labels[part]) for part in parts]


def _most_frequent(tokens: np.ndarray, vocabulary: int) -> np.ndarray:
    """Of each sequence, the first of them."""
    return (tokens[..., None] == np.arange(vocabulary)).sum(1).argmax(1)
