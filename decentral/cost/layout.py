"""How a model is laid out on devices: the degrees of parallelism, and which combinations are legal."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from decentral.cost.pipeline import SCHEDULES
from decentral.cost.workload import Transformer, Workload

SHARDINGS = ("none", "zero_1", "zero_2", "zero_3")
RECOMPUTES = ("none", "selective", "full")
PRECISIONS = ("bf16", "fp16", "fp8", "mxfp8")
PAYLOAD_BYTES = {"fp8": 1.0, "mxfp8": 1 + 1 / 32}
"""Bytes of a number with its share of the scales: one for a tensor, one for 32 numbers."""


@dataclass(frozen=True)
class Layout:
    """A layout on tp * pp * cp * dp devices. Numbers may be arrays, words and flags may not.

    Attributes:
        tp: devices that share every matrix (tensor parallelism).
        pp: stages of the pipeline.
        dp: replicas, those that one algorithm synchronises within a step and those it lets drift alike.
        cp: devices that share a sequence (context parallelism, ring attention).
        ep: devices, among those of dp and cp, that share the experts.
        workers: groups of replicas between which the algorithm communicates; dp / workers replicas of a worker synchronise
            at every step. None: every replica is a worker, unless ``sharding`` needs them in one.
        global_batch: sequences (or samples) of a step of all replicas.
        micro_batch: of one pass on one replica.
        virtual: stages of a device, where the schedule is interleaved.
        schedule: a key of ``decentral.cost.pipeline.SCHEDULES``.
        sharding: what the replicas of a worker share: "zero_1" the optimizer, "zero_2" gradients too, "zero_3" (FSDP)
            parameters too. With several workers "zero_3" is HSDP.
        recompute: activations that the backward pass computes again: none, attention's scores ("selective"), all.
        recompute_share: of the layers, those that "full" applies to.
        sequence_parallel: tensor-parallel ranks share norms and residual sums too.
        async_tensor: tensor parallelism's collectives overlap with products.
        overlap: collectives between replicas and sends between stages overlap with compute.
        fused: elementwise kernels are fused (torch.compile, Transformer Engine, XLA).
        precision: of the layers' products; attention, logits, norms and router stay in 16 bits.
    """

    tp: Any = 1
    pp: Any = 1
    dp: Any = 1
    cp: Any = 1
    ep: Any = 1
    workers: Any = None
    global_batch: Any = 1
    micro_batch: Any = 1
    virtual: Any = 1
    schedule: str = "1f1b"
    sharding: str = "none"
    recompute: str = "none"
    recompute_share: Any = 1.0
    sequence_parallel: bool = False
    async_tensor: bool = False
    overlap: bool = True
    fused: bool = True
    precision: str = "bf16"

    @property
    def devices(self) -> Any:
        """Of all replicas."""
        return np.asarray(self.tp, float) * self.pp * self.cp * self.dp

    @property
    def n_workers(self) -> Any:
        """Groups of replicas between which the algorithm communicates."""
        if self.workers is not None:
            return np.asarray(self.workers, float)
        return (
            np.asarray(self.dp, float)
            if self.sharding == "none"
            else np.ones_like(np.asarray(self.dp, float))
        )

    @property
    def replicas(self) -> Any:
        """Of a worker."""
        return np.asarray(self.dp, float) / self.n_workers

    @property
    def micro_batches(self) -> Any:
        """Of a replica in a step."""
        return np.asarray(self.global_batch, float) / (np.asarray(self.dp, float) * self.micro_batch)

    @property
    def payload_bytes(self) -> float | None:
        """Of a number in 8 bits; None in 16."""
        return PAYLOAD_BYTES.get(self.precision)


BATCH = {"global_batch", "dp", "micro_batch", "workers"}
"""Numbers that micro-batches follow from."""


def _divides(divisor: Any, number: Any) -> Any:
    return np.mod(np.asarray(number, float), np.asarray(divisor, float)) == 0


def rules(model: Workload | None, layout: Layout, devices: Any = None) -> list[tuple[str, Any]]:
    """``(what is required, whether it holds)``; holds is a boolean array of the configurations' shape.

    Args:
        model: the workload; None: rules about it are left out.
        layout: its numbers.
        devices: of the cluster; None: not known.
    """
    lay = layout
    found: list[tuple[str, Any]] = []
    names = ["tp", "pp", "dp", "cp", "ep", "global_batch", "micro_batch", "virtual"]
    named = [(f"parallelism.{name}", getattr(lay, name)) for name in names]
    named += [("algorithm.workers", lay.workers)] if lay.workers is not None else []
    for name, value in named:
        found.append((f"{name}: got {_shown(value)}; allowed: whole numbers from 1 to 10^9", _whole(value)))
    share = np.asarray(lay.recompute_share, float)
    found.append(
        (
            f"parallelism.recompute_share: got {_shown(share)}; allowed: from 0 to 1",
            (share >= 0) & (share <= 1),
        )
    )
    bad = {
        name.partition(".")[2]
        for (name, _), (_, holds) in zip(named, found, strict=False)
        if not np.all(holds)
    }
    if bad:  # what does not depend on them is checked all the same
        words = [*bad, "micro-batches"] if bad & BATCH else [*bad]
        spoiled = re.compile(r"\b(" + "|".join(words) + r")\b")
        sound = rules(model, replace(lay, **dict.fromkeys(bad, 1)), devices)
        return [one for one in found if not np.all(one[1])] + [
            one for one in sound if not spoiled.search(one[0])
        ]
    degrees = f"tp {_shown(lay.tp)} x pp {_shown(lay.pp)} x cp {_shown(lay.cp)} x dp {_shown(lay.dp)}"
    each = np.asarray(lay.dp, float) * lay.micro_batch
    if devices is not None:
        said = f"parallelism: {degrees} = {_shown(lay.devices)} devices; the cluster has {_shown(devices)}"
        found.append((said, lay.devices == devices))
    found += [
        (
            f"parallelism: global_batch {_shown(lay.global_batch)} must be a multiple of dp x micro_batch = {_shown(each)}",
            _divides(each, lay.global_batch),
        ),
        (
            f"algorithm.workers: {_shown(lay.n_workers)} must divide dp = {_shown(lay.dp)}",
            _divides(lay.n_workers, lay.dp),
        ),
        (
            "parallelism.virtual: above 1 needs the schedule interleaved, and pp above 1",
            (np.asarray(lay.virtual) == 1) | ((lay.schedule == "interleaved") & (np.asarray(lay.pp) > 1)),
        ),
        (
            f"parallelism: an interleaved schedule needs micro-batches ({_shown(lay.micro_batches)}) in multiples of "
            f"pp = {_shown(lay.pp)}",
            (np.asarray(lay.virtual) == 1) | _divides(lay.pp, lay.micro_batches),
        ),
        (
            f"parallelism: the schedule {lay.schedule} needs pp in twos, got {_shown(lay.pp)}",
            (lay.schedule != "dualpipe") | _divides(2, lay.pp),
        ),
        (
            "parallelism.sequence_parallel needs tp above 1",
            (not lay.sequence_parallel) | (np.asarray(lay.tp) > 1),
        ),
    ]
    if model is None:
        return found
    if not isinstance(model, Transformer):
        alone = np.asarray(lay.tp) * lay.pp * lay.cp * lay.ep == 1
        return [
            *found,
            ("parallelism: only transformers are cut by tp, pp, cp and ep; others by dp alone", alone),
            (
                f"parallelism.precision: {lay.precision} is for transformers; allowed: bf16, fp16",
                lay.payload_bytes is None,
            ),
        ]
    return found + _transformer_rules(model, lay)


def _transformer_rules(model: Transformer, lay: Layout) -> list[tuple[str, Any]]:
    layers, pp = np.asarray(model.layers, float), np.asarray(lay.pp, float)
    shared = np.asarray(lay.cp, float) * (lay.tp if lay.sequence_parallel else 1)
    found: list[tuple[str, Any]] = [
        (
            f"parallelism: {_shown(layers)} layers must be a multiple of pp x virtual = {_shown(pp * lay.virtual)}, or must with "
            "embedding and output as a layer each",
            _divides(pp * lay.virtual, layers) | _divides(pp * lay.virtual, layers + 2),
        ),
        (
            f"parallelism: tp {_shown(lay.tp)} must divide the {_shown(model.heads)} heads",
            _divides(lay.tp, model.heads),
        ),
        (
            f"parallelism: tp {_shown(lay.tp)} must divide ffn {_shown(model.ffn)}",
            _divides(lay.tp, model.ffn),
        ),
        (
            f"parallelism: cp (x tp, where norms are shared) = {_shown(shared)} must divide the sequence of "
            f"{_shown(model.sequence)}",
            _divides(shared, model.sequence),
        ),
        (
            f"model: kv_heads {_shown(model.kv)} must divide the {_shown(model.heads)} heads",
            _divides(model.kv, model.heads),
        ),
    ]
    if model.head_dim is None and model.latent is None:
        found.append(
            (
                f"model: heads {_shown(model.heads)} must divide hidden {_shown(model.hidden)}",
                _divides(model.heads, model.hidden),
            )
        )
    moe = model.moe
    if moe is None:
        found.append(
            (
                f"parallelism.ep: got {_shown(lay.ep)}; the model has no experts to spread",
                np.asarray(lay.ep) == 1,
            )
        )
        return found
    group = lay.replicas * lay.cp
    return [
        *found,
        (
            f"parallelism: ep {_shown(lay.ep)} must divide the {_shown(moe.experts)} experts",
            _divides(lay.ep, moe.experts),
        ),
        (
            f"parallelism: ep {_shown(lay.ep)} must divide the {_shown(group)} replicas x cp of a worker (dp / "
            "algorithm.workers, which without sharding is every replica its own worker)",
            _divides(lay.ep, group),
        ),
        (
            f"model.moe: top_k {_shown(moe.top_k)} of {_shown(moe.experts)} experts",
            np.asarray(moe.top_k) <= np.asarray(moe.experts),
        ),
        (
            f"model.moe: {_shown(moe.dense_layers)} dense_layers of {_shown(layers)} layers",
            np.asarray(moe.dense_layers) <= layers,
        ),
    ]


def legal(model: Workload, layout: Layout, devices: Any) -> Any:
    """Whether every rule holds, of the configurations' shape."""
    holds = [np.asarray(holds) for _, holds in rules(model, layout, devices)]
    return np.logical_and.reduce(np.broadcast_arrays(*holds))


def problems(model: Workload | None, layout: Layout, devices: Any = None) -> list[str]:
    """A sentence for each rule that does not hold, and for each word that means nothing."""
    words = (
        ("schedule", layout.schedule, SCHEDULES),
        ("sharding", layout.sharding, SHARDINGS),
        ("recompute", layout.recompute, RECOMPUTES),
        ("precision", layout.precision, PRECISIONS),
    )
    wrong = [
        f"parallelism.{name}: got {value!r}; allowed: {', '.join(allowed)}"
        for name, value, allowed in words
        if value not in allowed
    ]
    return wrong + [said for said, holds in rules(model, layout, devices) if not np.all(holds)]


def _whole(value: Any) -> Any:
    value = np.asarray(value, float)
    return np.isfinite(value) & (value >= 1) & (value <= 1e9) & (np.mod(value, 1) == 0)


def _shown(value: Any) -> str:
    value = np.asarray(value, float)
    return f"{value.item():g}" if value.ndim == 0 else "/".join(f"{one:g}" for one in np.unique(value)[:4])
