"""Networks as chains of layers that can be taught one by one: fully connected, attention, graph, coordinates, recommender.

They are what direct feedback alignment was tried on (Launay et al., NeurIPS 2020: transformers, graph networks, view
synthesis, recommenders; recalled), at sizes that train in seconds. All hidden layers are tanh unless said otherwise, and each
worker holds a whole model unless ``workers_per_model`` says otherwise.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np

from decentral.errors import InvalidInput
from decentral.problem import data as sets
from decentral.problem.base import PyTree
from decentral.problem.checks import check_choice, check_int, random_generator
from decentral.problem.models import dense, layer_norm, layers
from decentral.problem.networks import DATA, dealt, load
from decentral.problem.reversible import classifier, transformer_branch
from decentral.problem.stages import Stage, StagedProblem, from_stages, models_of

GRAPHS = ("karate", "blocks")
Layer = Callable[[jax.Array, tuple[int, ...]], PyTree]


def layered_mlp(  # noqa: D417  what is said once is not said again
    n: int,
    *,
    data: str = "digits",
    path: str | None = None,
    hidden: tuple[int, ...] = (32, 32),
    workers_per_model: int | None = 1,
    partition: str = "iid",
    alpha: float = 1.0,
    test_fraction: float | None = None,
    scaling: str | None = None,
    batch_size: int = 32,
    sampling: str = "replacement",
    initialisation: str = "lecun_normal",
    initial: str = "common",
    seed: int = 0,
    dtype: str = "float32",
) -> StagedProblem:
    """A fully connected network with a stage for each layer: 64-32-32-10 for the defaults.

    Args:
        n: workers.
        data: "digits", "clusters", "parity", "mnist", "mnist1d" or "cifar10", see ``decentral.problem.data``.
        path: the user's own files, for "cifar10".
        scaling: of "digits" and "mnist": "standard" (the default) or "range", see ``decentral.problem.data.SCALINGS``.
        hidden: units of the hidden layers, at least one.
        workers_per_model: 1: every worker holds a whole model; as many as there are layers: n / J pipelines.
        partition, alpha, test_fraction, sampling, initialisation, initial, seed, dtype: as of ``networks.mlp``.
        batch_size: samples per gradient.
    """
    loaded = load(data, [name for name in DATA if name != "libsvm"], path, test_fraction, seed, scaling)
    inputs, hidden = math.prod(loaded.train_features.shape[1:]), _widths(hidden)
    layer = layers(initialisation)
    first = Stage(
        lambda key: layer(key, (inputs, hidden[0])), lambda p, x: jnp.tanh(dense(p, x.reshape(len(x), -1)))
    )
    kinds, order = _fully_connected(layer, first, hidden, loaded.classes)
    return classifier(
        n, f"layered_mlp_{data}", loaded, kinds, order, partition, alpha, seed, initial,
        workers_per_model=workers_per_model, batch_size=batch_size, sampling=sampling, dtype=dtype,
    )  # fmt: skip


def layered_transformer(  # noqa: D417  what is said once is not said again
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
    workers_per_model: int | None = 1,
    partition: str = "iid",
    alpha: float = 1.0,
    batch_size: int = 32,
    sampling: str = "replacement",
    initialisation: str = "pytorch",
    initial: str = "common",
    seed: int = 0,
    dtype: str = "float32",
) -> StagedProblem:
    """A causal transformer with a stage for the embeddings, each block, and the head.

    A feedback comes to each token at the end of each block, and backpropagation does the rest inside it ("macro" in Launay et
    al. 2020).

    Args:
        n: workers.
        data, vocabulary, order, concentration, length, sequences, test_sequences: as of ``networks.transformer``.
        width, heads, blocks: of the network; the width a multiple of the heads.
        workers_per_model, batch_size: as of ``layered_mlp``.
        partition, alpha, sampling, initialisation, initial, seed, dtype: as of ``networks.transformer``.
    """
    check_choice("problem.data", data, ["markov"])
    loaded, language = sets.markov(
        vocabulary=vocabulary, order=order, concentration=concentration, length=length,
        sequences=sequences, test_sequences=test_sequences, seed=seed,
    )  # fmt: skip
    layer = layers(initialisation)
    init, branch = transformer_branch(width, heads, initialisation=initialisation)

    def stem_init(key: jax.Array) -> PyTree:
        first, second = jax.random.split(key)
        return {
            "tokens": 0.02 * jax.random.normal(first, (vocabulary, width), jnp.float32),
            "positions": 0.02 * jax.random.normal(second, (length, width), jnp.float32),
        }

    def head_init(key: jax.Array) -> PyTree:
        norm = {"scale": jnp.ones(width, jnp.float32), "bias": jnp.zeros(width, jnp.float32)}
        return {"norm": norm, "dense": layer(key, (width, vocabulary))}

    kinds = {
        "stem": Stage(stem_init, lambda p, x: _one_hot(x, p["tokens"]) + p["positions"]),
        "block": Stage(init, lambda p, x: x + branch(p, x)),
        "head": Stage(head_init, lambda p, x: dense(p["dense"], layer_norm(p["norm"], x))),
    }
    return classifier(
        n, "layered_transformer_markov", loaded, kinds, ("stem", *["block"] * check_int("problem.blocks", blocks), "head"),
        partition, alpha, seed, initial, workers_per_model=workers_per_model, batch_size=batch_size, sampling=sampling,
        best_loss=language.entropy_rate, dtype=dtype,
    )  # fmt: skip


def layered_gcn(  # noqa: D417  what is said once is not said again
    n: int,
    *,
    graph: str = "karate",
    hidden: tuple[int, ...] = (16,),
    workers_per_model: int | None = 1,
    partition: str = "iid",
    alpha: float = 1.0,
    test_fraction: float = 0.5,
    initialisation: str = "glorot_normal",
    initial: str = "common",
    seed: int = 0,
    dtype: str = "float32",
) -> StagedProblem:
    """A graph convolutional network that says the class of each node: tanh(A X W + b), and A X W + b at the end.

    A = D^-1/2 (I + edges) D^-1/2 (Kipf and Welling, ICLR 2017, recalled). Nodes have no features of their own: X is the
    identity. There is one sample, the whole graph; workers differ by the nodes whose class they know, and every gradient is
    that of all of these.

    Args:
        n: workers, of which each knows at least one node's class.
        graph: "karate": 34 members of a club and the two it split into (Zachary 1977, from networkx); "blocks": 160 nodes in
            four groups, an edge with probability 0.15 in a group and 0.02 between groups, the same graph for every seed.
        hidden: units of the hidden layers, at least one.
        workers_per_model: as of ``layered_mlp``.
        partition, alpha: of the nodes with a known class, as of ``networks.mlp``.
        test_fraction: share of nodes whose class nobody knows.
        initialisation, initial, dtype: as of ``networks.mlp``.
        seed: drives which nodes are known, and to whom.
    """
    edges, classes = _graph(graph)
    nodes, hidden = len(classes), _widths(hidden)
    degree = (edges + np.eye(nodes)).sum(1)
    mixing = (edges + np.eye(nodes)) / np.sqrt(degree[:, None] * degree)
    layer = layers(initialisation)

    def convolved(p: PyTree, x: jax.Array) -> jax.Array:
        return dense(p, jnp.einsum("ij,bjf->bif", jnp.asarray(mixing, x.dtype), x))

    first = Stage(lambda key: layer(key, (nodes, hidden[0])), lambda p, x: jnp.tanh(convolved(p, x)))
    kinds, order = _fully_connected(layer, first, hidden, int(classes.max()) + 1, convolved)
    train, test = sets.split(nodes, test_fraction, seed)
    known = sets.DataSet(train, classes[train], test, classes[test], int(classes.max()) + 1)
    _, models = models_of(n, len(order), workers_per_model)
    check_choice("problem.initial", initial, ("common", "per_worker"))
    everything = np.eye(nodes)[None]

    def labelled(which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels = np.full((1, nodes), -1, np.int32)
        labels[0, which] = classes[which]
        return everything, labels

    return from_stages(
        kinds, order, [labelled(own) for own, _ in dealt(known, models, partition, alpha, seed)],
        n=n, workers_per_model=workers_per_model, batch_size=1, held_out=labelled(test) if len(test) else None,
        initial_per_worker=initial == "per_worker", dtype=dtype, name=f"layered_gcn_{graph}",
    )  # fmt: skip


def layered_coordinates(  # noqa: D417  what is said once is not said again
    n: int,
    *,
    side: int = 32,
    frequencies: int = 4,
    hidden: tuple[int, ...] = (64, 64),
    workers_per_model: int | None = 1,
    partition: str = "iid",
    alpha: float = 1.0,
    batch_size: int = 64,
    sampling: str = "replacement",
    initialisation: str = "lecun_normal",
    initial: str = "common",
    seed: int = 0,
    dtype: str = "float32",
) -> StagedProblem:
    """A network from a place in a picture to its brightness: what view synthesis does with rays, in two dimensions.

    The picture is a disk, a bar and waves of two lengths, in [0, 1]. It is seen at ``side`` x ``side`` points and asked for
    between them. The first layer sees the coordinates and sin and cos of 2^k pi times them (NeRF, Mildenhall et al. 2020,
    recalled). The loss is the mean squared error; of held-out points there is ``psnr`` too, in dB, with a peak of 1.

    Args:
        n: workers.
        side: of the grid.
        frequencies: k = 0 ... frequencies - 1.
        hidden: units of the hidden layers, at least one.
        workers_per_model, batch_size: as of ``layered_mlp``.
        partition, alpha, sampling, initialisation, initial, seed, dtype: as of ``networks.mlp``; a point's class is the one of
            eight vertical stripes it is in.
    """
    grid = (np.arange(check_int("problem.side", side, 2)) + 0.5) / side * 2 - 1
    between = (grid[1:] + grid[:-1]) / 2
    points, asked = (np.stack(np.meshgrid(g, g, indexing="ij"), -1).reshape(-1, 2) for g in (grid, between))
    powers = 2.0 ** np.arange(check_int("problem.frequencies", frequencies, 0)) * np.pi
    inputs, hidden = 2 + 4 * len(powers), _widths(hidden)

    def encoded(x: jax.Array) -> jax.Array:
        turns = (x[..., None] * jnp.asarray(powers, x.dtype)).reshape(len(x), -1)
        return jnp.concatenate([x, jnp.sin(turns), jnp.cos(turns)], -1)

    layer = layers(initialisation)
    first = Stage(lambda key: layer(key, (inputs, hidden[0])), lambda p, x: jnp.tanh(dense(p, encoded(x))))
    kinds, order = _fully_connected(layer, first, hidden, 1)
    stripes = np.minimum((points[:, 0] + 1) * 4, 7).astype(np.int32)
    places = sets.DataSet(np.arange(len(points)), stripes, np.zeros(0, int), np.zeros(0, np.int32), 8)
    _, models = models_of(n, len(order), workers_per_model)
    check_choice("problem.initial", initial, ("common", "per_worker"))
    seen = [points[own] for own, _ in dealt(places, models, partition, alpha, seed)]
    problem = from_stages(
        kinds, order, [(own, picture(own)) for own in seen], n=n, workers_per_model=workers_per_model,
        batch_size=batch_size, loss=mean_squared, held_out=(asked, picture(asked)), sampling=sampling,
        initial_per_worker=initial == "per_worker", dtype=dtype, name="layered_coordinates",
    )  # fmt: skip
    return dataclasses.replace(problem, derived=lambda means: {"psnr": -10 * jnp.log10(means["loss"])})


def layered_recommender(  # noqa: D417  what is said once is not said again
    n: int,
    *,
    users: int = 120,
    items: int = 80,
    rank: int = 3,
    samples: int = 8000,
    embedding: int = 16,
    hidden: tuple[int, ...] = (32,),
    workers_per_model: int | None = 1,
    partition: str = "iid",
    alpha: float = 1.0,
    test_fraction: float = 0.2,
    batch_size: int = 64,
    sampling: str = "replacement",
    initialisation: str = "lecun_normal",
    initial: str = "common",
    seed: int = 0,
    dtype: str = "float32",
) -> StagedProblem:
    """Embeddings of a user and an item and a network on both, which says whether the one likes the other.

    Tastes are of low rank: user u likes item i where u . v + N(0, 0.3^2) > 0, with u, v from N(0, I / rank^1/2), so that the
    product has variance 1. Nothing is known of users and items but what others clicked.

    Args:
        n: workers.
        users, items: how many.
        rank: of the tastes.
        samples: pairs with an answer, training and held-out ones together.
        embedding: numbers for a user, and for an item.
        hidden: units of the hidden layers behind the embeddings, at least one.
        test_fraction: share of pairs held out.
        workers_per_model, batch_size: as of ``layered_mlp``.
        partition, alpha, sampling, initialisation, initial, seed, dtype: as of ``networks.mlp``.
    """
    rng = random_generator(seed, "recommender")
    sizes = check_int("problem.users", users), check_int("problem.items", items)
    tastes = [rng.normal(size=(size, check_int("problem.rank", rank))) / rank**0.25 for size in sizes]
    pairs = np.stack([rng.integers(size, size=check_int("problem.samples", samples, 2)) for size in sizes], 1)
    product = (tastes[0][pairs[:, 0]] * tastes[1][pairs[:, 1]]).sum(1)
    labels = (product + 0.3 * rng.normal(size=samples) > 0).astype(np.int32)
    train, test = sets.split(samples, test_fraction, seed)
    loaded = sets.DataSet(
        pairs[train].astype(np.int32), labels[train], pairs[test].astype(np.int32), labels[test], 2
    )
    check_int("problem.embedding", embedding)

    def tables(key: jax.Array) -> PyTree:
        keys = jax.random.split(key, 2)
        draws = (
            jax.random.normal(k, (size, embedding), jnp.float32) for k, size in zip(keys, sizes, strict=True)
        )
        return dict(zip(("users", "items"), draws, strict=True))

    def looked_up(p: PyTree, x: jax.Array) -> jax.Array:
        return jnp.concatenate([_one_hot(x[:, 0], p["users"]), _one_hot(x[:, 1], p["items"])], -1)

    kinds, order = _fully_connected(
        layers(initialisation), Stage(tables, looked_up), (2 * embedding, *_widths(hidden)), 2
    )
    return classifier(
        n, "layered_recommender", loaded, kinds, order, partition, alpha, seed, initial,
        workers_per_model=workers_per_model, batch_size=batch_size, sampling=sampling, dtype=dtype,
    )  # fmt: skip


def mean_squared(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean squared error over everything; both of one shape."""
    return jnp.mean((outputs - targets) ** 2)


def picture(points: np.ndarray) -> np.ndarray:
    """Brightness in [0, 1] at places (..., 2) of [-1, 1]^2: ``(..., 1)``."""
    x, y = points[..., 0], points[..., 1]
    waves = 0.5 + 0.2 * np.sin(3 * np.pi * x) * np.cos(2 * np.pi * y) + 0.1 * np.sin(7 * np.pi * (x + y))
    disk = np.hypot(x - 0.3, y + 0.25) < 0.4
    bar = (np.abs(y - 0.6) < 0.1) & (np.abs(x + 0.2) < 0.6)
    return np.where(disk, 1.0 - waves, np.where(bar, 0.95, waves))[..., None]


# -- parts -------------------------------------------------------------------------------------------------------------


def _fully_connected(
    layer: Layer,
    first: Stage,
    hidden: Sequence[int],
    outputs: int,
    product: Callable[[PyTree, jax.Array], jax.Array] = dense,
) -> tuple[dict[str, Stage], tuple[str, ...]]:
    """``(kinds, order)``: the first stage, whose output is ``hidden[0]`` wide, tanh layers, and a head without one."""
    hidden = _widths(hidden)

    def between(shape: tuple[int, int]) -> Stage:
        return Stage(lambda key: layer(key, shape), lambda p, x: jnp.tanh(product(p, x)))

    pairs = {f"layer_{a}_{b}": (a, b) for a, b in itertools.pairwise(hidden)}
    order = ("first", *(f"layer_{a}_{b}" for a, b in itertools.pairwise(hidden)), "head")
    head = Stage(lambda key: layer(key, (hidden[-1], outputs)), product)
    return {"first": first, **{name: between(pair) for name, pair in pairs.items()}, "head": head}, order


def _widths(hidden: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(hidden, tuple | list) or not hidden:
        raise InvalidInput("problem.hidden", hidden, "a list of whole numbers, at least one")
    return tuple(check_int("problem.hidden", width) for width in hidden)


def _one_hot(numbers: jax.Array, table: jax.Array) -> jax.Array:
    """Rows of a table, as a product: the derivative of an index is a scatter, which is slow in XLA on CPU."""
    return jax.nn.one_hot(numbers, len(table), dtype=table.dtype) @ table


def _graph(name: str) -> tuple[np.ndarray, np.ndarray]:
    """``(edges, classes)``: a symmetric 0/1 matrix, int32 classes of the nodes."""
    if check_choice("problem.graph", name, GRAPHS) == "karate":
        graph = nx.karate_club_graph()
        clubs = [graph.nodes[node]["club"] == "Officer" for node in graph]
        return (nx.to_numpy_array(graph) > 0).astype(float), np.array(clubs, np.int32)
    classes = np.repeat(np.arange(4, dtype=np.int32), 40)
    chance = np.where(classes[:, None] == classes, 0.15, 0.02)
    upper = np.triu(random_generator(0, "blocks").random(chance.shape) < chance, 1)
    return (upper | upper.T).astype(float), classes
