"""The six tiny stages on which the authors' PETRA engine was recorded (tests/data/petra_engine.npz)."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from decentral.problem.stages import Stage, StagedProblem, Stages

ENGINE = Path(__file__).parent / "data" / "petra_engine.npz"
NAMES = ("stem", "r1", "r2", "d", "r3", "head")
ORDER = ("stem", "wide", "wide", "down", "narrow", "head")
PARTS = ("stem_W", "stem_b", "r1_W", "r1_b", "r2_W", "r2_b", "d_W", "d_V", "r3_W", "r3_b", "head_W", "head_b")
"""How the recorded vectors of all parameters are laid out."""


def _stem(p, x):
    return tuple(jnp.split(jnp.tanh(x @ p["W"].T + p["b"]), 2, axis=-1))


def _residual(p, x):
    return jnp.tanh(x @ p["W"].T + p["b"])


def _block(p, streams):
    x, xt = streams
    return xt + _residual(p, x), x


def _block_inverse(p, streams):
    y, yt = streams
    return yt, y - _residual(p, yt)


def _down(p, streams):
    """A shortcut through V on each stream, the residual branch without a bias."""
    x, xt = streams
    return xt @ p["V"].T + jnp.tanh(x @ p["W"].T), x @ p["V"].T


def _head(p, streams):
    return jnp.concatenate(streams, axis=-1) @ p["W"].T + p["b"]


def layout(weights) -> list[tuple[str, str, tuple[int, ...]]]:
    """``(stage, leaf, shape)`` of the parts of a vector of all parameters, in order."""
    return [(*part.split("_"), weights[f"w_{part}"].shape) for part in PARTS]


def pack(params, weights) -> np.ndarray:
    """{kind: stacked parameters} as one vector."""
    places = {
        name: (kind, ORDER[:j].count(kind)) for j, (name, kind) in enumerate(zip(NAMES, ORDER, strict=True))
    }
    parts = []
    for name, leaf, _ in layout(weights):
        kind, index = places[name]
        parts.append(np.asarray(params[kind][leaf][index]).ravel())
    return np.concatenate(parts)


def unpack(vector, weights):
    """One vector as {kind: stacked parameters}."""
    stages, at = {name: {} for name in NAMES}, 0
    for name, leaf, shape in layout(weights):
        stages[name][leaf] = jnp.asarray(vector[at : at + np.prod(shape)]).reshape(shape)
        at += int(np.prod(shape))
    own = {kind: [stages[n] for n, k in zip(NAMES, ORDER, strict=True) if k == kind] for kind in ORDER}
    return {kind: jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts) for kind, parts in own.items()}


def stages_of(recorded) -> Stages:
    """The stages; their starting point is in ``problem_of``."""

    def stage(name, apply, inverse=None):
        start = {leaf: recorded[f"w_{part}_{leaf}"] for part, leaf, _ in layout(recorded) if part == name}
        return Stage(lambda key: start, apply, inverse)

    kinds = {
        "stem": stage("stem", _stem),
        "wide": stage("r1", _block, _block_inverse),
        "down": stage("d", _down),
        "narrow": stage("r3", _block, _block_inverse),
        "head": stage("head", _head),
    }
    inputs = jax.ShapeDtypeStruct(recorded["X"].shape[1:], np.float64)
    return Stages(kinds, ORDER, inputs, dtype="float64")


class Recorded(StagedProblem):
    """Batch number ``count`` is the one that was recorded, whatever the key."""

    def batch(self, shards, shard, key, count):
        size = self.batch_size
        rows = jnp.asarray(count, jnp.int32) * size + jnp.arange(size)
        return tuple(
            shards["samples"][name].at[shard, rows].get(mode="clip") for name in ("features", "target")
        )


def problem_of(recorded, workers_per_model: int = len(ORDER)) -> Recorded:
    """One model on the recorded batches, from the recorded starting point."""
    X, Y = recorded["X"], recorded["Y"]
    start = unpack(np.concatenate([recorded[f"w_{part}"].ravel() for part in PARTS]), recorded)
    samples = {
        "features": jnp.asarray(X.reshape(1, -1, X.shape[-1])),
        "target": jnp.asarray(Y.reshape(1, -1), jnp.int32),
    }
    return Recorded(
        name="petra_engine",
        shards={"samples": samples, "count": jnp.array([Y.size], jnp.int32)},
        dtype=np.dtype("float64"),
        start=lambda key: start,
        batch_size=Y.shape[1],
        is_deep=True,
        stages=stages_of(recorded),
        workers_per_model=workers_per_model,
    )
