"""All legal layouts of a model on a cluster, and which of them nothing beats."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from decentral.cost.algorithms import Algorithm
from decentral.cost.cluster import Cluster
from decentral.cost.kernels import Constants
from decentral.cost.layout import Layout, legal
from decentral.cost.projection import NOTHING_ELSE, Conditions, Projection, project
from decentral.cost.step import CONSTANTS
from decentral.cost.workload import Transformer, Workload

LONG = 16384
"""Tokens of a sequence from which context parallelism is tried."""


class Candidate(NamedTuple):
    """A legal configuration that fits into memory.

    Attributes:
        layout: the configuration.
        devices: it uses.
        tokens_per_s: of all devices (samples, where there are no tokens).
        memory_bytes: of the fullest device.
        device_s: seconds of one device for a million tokens: what it costs, whatever the price.
        mfu: as :attr:`Projection.mfu` counts.
    """

    layout: Layout
    devices: int
    tokens_per_s: float
    memory_bytes: float
    device_s: float
    mfu: float


def search(
    model: Workload,
    layout: Layout,
    cluster: Cluster,
    algorithm: Algorithm,
    conditions: Conditions = NOTHING_ELSE,
    *,
    devices: Sequence[int] = (),
    constants: Constants = CONSTANTS,
) -> list[Candidate]:
    """Every legal configuration that fits, quickest first: those of the grid, and the layout itself.

    The grid: tp, cp (for sequences of 16,384 tokens and more), ep and micro-batches in powers of two, pp that divides the layers,
    1, 2, 4 or 8 virtual stages; no sharding, ZeRO-2 (which costs no more than ZeRO-1) and FSDP; recomputation of nothing or
    everything (of scores too, where attention stores them); 1F1B, interleaved, zero-bubble. What else the layout says (batch,
    workers, precision, fused, async_tensor, overlap) stays.

    Args:
        model: the workload, in plain numbers.
        layout: its batch, precision and number of workers are kept.
        cluster: the machine.
        algorithm: between workers.
        conditions: what the run meets.
        devices: numbers of devices to try; none: the cluster's own.
        constants: what no data sheet says.
    """
    found: list[Candidate] = []
    for count in devices or (int(cluster.devices),):
        machine = replace(cluster, devices=count)
        grid = _grid(model, layout, count, int(machine.node_size))
        if not len(grid["tp"]):
            continue
        for sharding, recompute, schedule, shared in _words(model):
            tried = replace(
                layout, **grid, sharding=sharding, recompute=recompute, schedule=schedule, workers=layout.workers,
                sequence_parallel=shared, recompute_share=1.0,
            )  # fmt: skip
            if schedule != "interleaved":
                tried = replace(tried, virtual=1)
            keep = np.broadcast_to(legal(model, tried, count), grid["tp"].shape).copy()
            keep &= (np.asarray(tried.virtual) > 1) == (schedule == "interleaved")
            keep &= (np.asarray(tried.tp) > 1) == shared
            if not keep.any():
                continue
            tried = _take(tried, keep)
            result = project(model, tried, machine, algorithm, conditions, constants)
            found += _candidates(tried, result, count, keep.sum())
    own = np.asarray(layout.devices == cluster.devices) & legal(model, layout, cluster.devices)
    if own.ndim == 0 and own:  # arrays of layouts are the caller's own search
        found += _candidates(
            layout, project(model, layout, cluster, algorithm, conditions, constants), int(cluster.devices), 1
        )
    return sorted(found, key=lambda one: -one.tokens_per_s)


def pareto(found: Iterable[Candidate]) -> list[Candidate]:
    """Those that no other beats in throughput, memory and cost at once, quickest first."""
    ordered = sorted(found, key=lambda one: (-one.tokens_per_s, one.device_s, one.memory_bytes))
    kept: list[Candidate] = []
    for one in ordered:
        if all(one.memory_bytes < other.memory_bytes or one.device_s < other.device_s for other in kept):
            kept.append(one)
    return kept


def _words(model: Workload) -> list[tuple[str, str, str, bool]]:
    """Sharding, recomputation, schedule, and whether norms are shared: wherever there is tensor parallelism, it costs nothing."""
    cut = isinstance(model, Transformer)
    again = ("none", "selective", "full") if cut and not model.flash else ("none", "full")
    return [
        (sharding, recompute, schedule, shared)
        for sharding in ("none", "zero_2", "zero_3")
        for recompute in again
        for schedule in (("1f1b", "interleaved", "zero_bubble") if cut else ("1f1b",))
        for shared in ((False, True) if cut else (False,))
    ]


def _powers(most: float) -> list[int]:
    return [2**k for k in range(int(np.log2(max(most, 1))) + 1)]


def _grid(model: Workload, layout: Layout, count: int, node_size: int) -> dict[str, np.ndarray]:
    """Every combination of degrees on ``count`` devices, as arrays of one length."""
    batch = int(np.max(layout.global_batch))
    rows = []
    tensor, stages, experts, contexts = [1], [1], [1], [1]
    if isinstance(model, Transformer):
        layers = int(np.max(model.layers))
        tensor = _powers(min(node_size, count))
        stages = sorted(
            {p for p in range(1, min(layers + 2, count) + 1) if layers % p == 0 or (layers + 2) % p == 0}
        )
        if np.max(model.sequence) >= LONG:
            contexts = _powers(min(count, 64))
        if model.moe is not None:
            experts = _powers(min(int(np.max(model.moe.experts)), count))
    for tp, pp, cp in itertools.product(tensor, stages, contexts):
        dp, rest = divmod(count, tp * pp * cp)
        if rest or not dp or batch % dp:
            continue
        for ep, micro in itertools.product(experts, _powers(batch // dp)):
            rows += [(tp, pp, dp, cp, ep, micro, virtual) for virtual in ((1, 2, 4, 8) if pp > 1 else (1,))]
    columns = np.array(rows, float).reshape(-1, 7).T
    return dict(zip(("tp", "pp", "dp", "cp", "ep", "micro_batch", "virtual"), columns, strict=True))


def _take(layout: Layout, keep: np.ndarray) -> Layout:
    numbers: dict[str, Any] = {
        name: np.asarray(value)[keep]
        for name, value in vars(layout).items()
        if isinstance(value, np.ndarray) and value.shape == keep.shape
    }
    return replace(layout, **numbers)


def _candidates(tried: Layout, result: Projection, count: int, size: int) -> list[Candidate]:
    per_s, used, mfu, fits = (
        np.broadcast_to(np.asarray(value), (size,))
        for value in (result.tokens_per_s, result.memory.total_bytes, result.mfu, result.memory.fits)
    )
    found = []
    for index in np.flatnonzero(
        fits & (per_s > 0)
    ):  # with failures more frequent than checkpoints nothing gets anywhere
        numbers: dict[str, Any] = {
            name: int(value[index])
            for name, value in vars(tried).items()
            if isinstance(value, np.ndarray) and value.shape == (size,)
        }
        found.append(
            Candidate(
                replace(tried, **numbers),
                count,
                float(per_s[index]),
                float(used[index]),
                1e6 * count / float(per_s[index]),
                float(mfu[index]),
            )
        )
    return found
