"""Published measurements, and how one is read: what its source does not say is filled in by the rules below.

1. A network that is not stated has one NIC for each device, of its generation (``NIC_BITS_PER_S``); Jean-Zay's Omni-Path reaches
   135 Gb/s of 400 for each node.
2. Attention stores its scores, and collectives do not overlap, in sources of 2022 or before, those of BigScience, and on V100.
3. Elementwise kernels are fused in Megatron-LM and what is built on it (NeMo, MegaScale, MLPerf), and where a source says it
   compiled; eager elsewhere.
4. A batch that is not stated is one micro-batch for each replica; a micro-batch that is not stated is one sequence where there is
   a pipeline, else the whole batch of a replica.
5. A pipeline whose schedule is not stated is 1F1B until 2022, and interleaved with one layer to a virtual stage (8 at most)
   later, where the number of micro-batches allows it.
6. Recomputation of some operations or of every second layer counts as half of the layers; "selective" in Megatron's sense
   as attention's scores.
7. Tensor parallelism's collectives overlap with products in NeMo, Megatron-Bridge, MLPerf and MegaScale.
8. FSDP shards over all replicas unless the source names a group (HSDP).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from decentral.cost import network
from decentral.cost.algorithms import Algorithm, Between, between
from decentral.cost.cluster import CEILING_FRACTION, Cluster, of_device
from decentral.cost.conventions import flops_per_token
from decentral.cost.kernels import Constants
from decentral.cost.layout import Layout
from decentral.cost.moe import all_to_all_bytes
from decentral.cost.shards import Held
from decentral.cost.step import CONSTANTS, Step, step
from decentral.cost.workload import LatentAttention, MoE, ResNet, Transformer
from decentral.errors import InvalidInput
from decentral.hardware import DEVICES, Device

NIC_BITS_PER_S = {"V100": 100e9, "A100": 200e9, "A40": 25e9, "L40S": 100e9, "TPU": 100e9}
"""Beginning of a device's name -> NIC for each device, where a source says nothing; 400 Gb/s for later ones (assumed)."""
HIDDEN_TENSOR = ("NeMo", "Megatron-Bridge", "MLPerf", "MegaScale", "async")
"""Words of sources whose tensor-parallel collectives overlap with products."""
FUSED = (
    "Megatron",
    "NeMo",
    "MegaScale",
    "MLPerf",
    "Narayanan",
    "Korthikanti",
    "compile",
    "MaxText",
    "Transformer Engine",
)
REGIMES = {
    "dense, 16 bit": "dense transformers in 16 bits on A100, H100, H200 and H800",
    "dense, 16 bit, V100": "dense transformers in 16 bits on V100",
    "dense, 8 bit": "dense transformers whose layers are in 8 bits on H100 and later",
    "dense, TPU": "dense transformers on TPU",
    "sparse": "mixtures of experts",
    "low communication": "local SGD and DiLoCo: share of the time that is compute",
    "gossip": "gossip and one-peer averaging: time of an iteration",
    "all-reduce": "bandwidth of an all-reduce",
    "all-to-all": "bandwidth of experts' all-to-all",
}
"""Regime -> what its measurements are of."""


@dataclass(frozen=True)
class Measurement:
    """A row of the set, read.

    Attributes:
        name: of the row.
        source: who published it.
        regime: a key of ``REGIMES``.
        quantity: what was published.
        published: the number.
        model: None where only communication was measured.
        layout: None with ``model``.
        cluster: what it ran on.
        algorithm: between workers.
        extra: what else the prediction needs.
    """

    name: str
    source: str
    regime: str
    quantity: str
    published: float
    cluster: Cluster
    model: Transformer | None = None
    layout: Layout | None = None
    algorithm: Algorithm | None = None
    extra: Mapping[str, Any] | None = None

    def predict(self, constants: Constants = CONSTANTS) -> float:
        """The same quantity from the closed forms."""
        if self.regime == "all-reduce":
            return float(_bus_bandwidth(self))
        if self.regime == "all-to-all":
            return float(_dispatch_bandwidth(self))
        if self.regime in ("low communication", "gossip"):
            return float(_between_workers(self, constants))
        assert self.model is not None
        assert self.layout is not None
        one = step(self.model, self.layout, self.cluster, constants)
        seconds = one.total_s
        if self.algorithm is not None:
            group = between(self.layout, self.cluster, one, constants)
            seconds = seconds + self.algorithm.exchange(group).exposed_s
        return float(self.layout.global_batch * self.model.sequence / seconds)


@cache
def measurements() -> tuple[dict[str, Any], ...]:
    """The rows that come with the package, as they are in ``measurements.json``."""
    text = files("decentral.cost").joinpath("measurements.json").read_text("utf-8")
    return tuple(json.loads(text)["rows"])


def read(row: Mapping[str, Any]) -> list[Measurement] | str:
    """A row as measurements to predict, or why it cannot be: what is missing.

    Args:
        row: of the set's schema: ``id``, ``regime``, ``source``, ``model``, ``hardware``, ``batch``, ``parallelism``,
            ``precision``, ``measured``, ``mfu_definition``.
    """
    try:
        rooms = ("source", "model", "hardware", "batch", "parallelism", "measured")
        row = {**row, **{room: row.get(room) or {} for room in rooms}}
        kind = _READERS.get(str(row.get("regime")), _training)
        found = kind({"id": "?", **row, "source": {"paper": "?", **row["source"]}})
        wrong = [one.name for one in found if not (_positive(one.published) and _positive(one.predict()))]
        return found if not wrong else f"numbers that make sense: {wrong[0]}"
    except _Missing as missing:
        return str(missing)
    except (
        InvalidInput,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        ZeroDivisionError,
        OverflowError,
    ) as error:
        return f"fields as the schema has them: {error!r}"


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


class _Missing(Exception):
    """What a row does not say."""


# -- training -------------------------------------------------------------------------------------------------------------


def _device(row: Mapping[str, Any]) -> Device:
    name = str(row["hardware"].get("gpu") or "")
    cleaned = re.sub(r"^\d+ ?x ?|nvidia|tesla", "", name.lower().replace("tpuv", "tpu v")).strip(" -")
    for known in DEVICES:
        if cleaned == known.lower():
            return DEVICES[known]
    if re.match(r"[ah]100", cleaned):
        if "nvl" in cleaned:
            raise _Missing(f"a device whose numbers are known, not {name!r}")
        if "pci" in cleaned:
            return DEVICES["A100-PCIe-80GB" if cleaned.startswith("a") else "H100-PCIe-80GB"]
        if cleaned.startswith("a100") and "80" in cleaned.removeprefix("a100"):
            return DEVICES["A100-SXM4-80GB"]
    for short, known in _SHORT.items():
        if cleaned.startswith(short):
            return DEVICES[known]
    raise _Missing(f"a device whose numbers are known, not {name!r}")


_SHORT = {
    "a100-80": "A100-SXM4-80GB", "a100": "A100-SXM4-40GB", "h100-96": "H100-96GB-HBM2e-500W", "h100": "H100-SXM5-80GB",
    "h800": "H800-SXM", "h200": "H200-SXM", "gb200": "GB200 (per GPU)", "b200": "B200-SXM", "b300": "B300-SXM",
    "v100": "V100-SXM2-32GB", "l40s": "L40S", "a40": "A40", "t4": "T4", "mi300x": "MI300X", "rtx 4090": "RTX 4090",
    "tpu v3": "TPU v3 (chip)", "tpu v4": "TPU v4", "tpu v5e": "TPU v5e", "tpu v5p": "TPU v5p", "tpu v6e": "TPU v6e (Trillium)",
}  # fmt: skip


def _precision(row: Mapping[str, Any]) -> str:
    said = str(row.get("precision") or "").lower()
    if "mxfp8" in said or "mx-fp8" in said:
        return "mxfp8"
    if "fp8" in said or "float8" in said:
        return "fp8"
    return "bf16"


def _dtype(device: Device, precision: str = "bf16") -> str:
    """On devices without bf16, fp16: everywhere else both have the same peak."""
    return "fp16" if precision == "bf16" and "bf16" not in device.peaks else precision


def _cluster(row: Mapping[str, Any], device: Device, precision: str, count: float) -> Cluster:
    hardware = row["hardware"]
    node_size = hardware.get("gpus_per_node") or (count if "TPU" in device.name else 8)
    bits = hardware.get("inter_Gbps_per_node")
    if bits is None:
        each = next((bits for start, bits in NIC_BITS_PER_S.items() if device.name.startswith(start)), 400e9)
        rate = min(node_size, 8) * each / 8
    else:
        rate = bits * 1e9 / 8
    measured = False
    said = f"{hardware.get('network')} {hardware.get('cluster')}"
    if "Omni" in said or "Jean-Zay" in said or "Jean Zay" in said:
        rate, measured = 135e9 / 8 * (node_size / 8), True
    try:
        return of_device(
            device, count, node_size, rate, precision=_dtype(device, precision), measured=measured
        )
    except InvalidInput as error:
        raise _Missing(str(error)) from None


def _transformer(row: Mapping[str, Any], old: bool) -> Transformer:
    model = row["model"]
    needed = ("layers", "hidden", "heads", "seq")
    lacking = [key for key in needed if not isinstance(model.get(key), int | float)]
    if lacking:
        raise _Missing(f"the model's {', '.join(lacking)}")
    moe = model.get("moe")
    ffn = model.get("ffn") or 4 * model["hidden"]
    latent = model.get("mla")
    return Transformer(
        layers=model["layers"],
        hidden=model["hidden"],
        heads=model["heads"],
        ffn=ffn,
        vocab=model.get("vocab") or 51200,
        sequence=model["seq"],
        kv_heads=model.get("kv_heads"),
        head_dim=model.get("head_dim"),
        gated=bool(model.get("glu")),
        tied=bool(model.get("tied_embeddings", not model.get("glu"))),
        flash=not old,
        moe=None
        if not moe
        else MoE(
            experts=moe["experts"],
            top_k=moe.get("top_k") or 1,
            ffn=moe.get("expert_ffn") or ffn,
            shared_ffn=(moe.get("shared_experts") or 0)
            * (moe.get("shared_ffn") or moe.get("expert_ffn") or 0),
            dense_layers=moe.get("dense_layers") or 0,
            node_limit=moe.get("node_limit"),
        ),
        latent=None
        if not latent
        else LatentAttention(
            latent["q_lora_rank"] or 0,
            latent["kv_lora_rank"],
            latent["qk_nope_head_dim"],
            latent["qk_rope_head_dim"],
            latent["v_head_dim"],
        ),
    )


def _training(row: Mapping[str, Any]) -> list[Measurement]:
    hardware, batch, laid = row["hardware"], row["batch"], row["parallelism"]
    source, device, precision = row["source"]["paper"], _device(row), _precision(row)
    said = " ".join(str(part) for part in (source, row["id"], row.get("notes"), row["source"].get("file")))
    year = re.search(r"\b(20[12]\d)\b", source)
    old = (year is not None and int(year[1]) <= 2022) or "BigScience" in said or "V100" in device.name
    count = hardware.get("count") or max(hardware.get("count_range") or [0])
    if not count:
        raise _Missing("the number of devices")
    model = _transformer(row, old)
    tp, pp, cp = (int(laid.get(key) or 0) for key in ("tp", "pp", "cp"))
    cp = cp or 1
    if not tp or not pp:
        raise _Missing("how it was parallelised")
    dp = count / (tp * pp * cp)
    if dp < 1 or dp % 1:
        raise _Missing(f"a layout: tp {tp} x pp {pp} x cp {cp} on {count} devices")
    sharding = _sharding(row)
    sequences = batch.get("global_seqs") or (batch.get("seqs_per_dp") or 0) * dp
    if not sequences and batch.get("global_tokens"):
        sequences = max(1.0, round(float(batch["global_tokens"]) / model.sequence / dp)) * dp
    micro = batch.get("micro")
    sequences = sequences or (micro or 0) * dp
    if not sequences:
        raise _Missing("the batch")
    micro = min(micro or (1 if pp > 1 else sequences / dp), sequences / dp)
    virtual = laid.get("vp")
    if virtual is None and pp > 1 and not old and (sequences / dp / micro) % pp == 0:
        virtual = min(8, max(1, round(model.layers / pp)))
    virtual = int(virtual or 1)
    recompute, share = _recompute(row)
    group = laid.get("hsdp_shard")
    layout = Layout(
        tp=tp, pp=pp, dp=dp, cp=cp, ep=laid.get("ep") or 1, workers=dp / group if group else 1.0,
        global_batch=sequences, micro_batch=micro, virtual=virtual,
        schedule="interleaved" if virtual > 1 else "1f1b", sharding=sharding, recompute=recompute,
        recompute_share=share, sequence_parallel=bool(laid.get("sequence_parallel")),
        async_tensor=any(word in said for word in HIDDEN_TENSOR), overlap=not old or sharding == "zero_3",
        fused=any(word.lower() in said.lower() for word in FUSED), precision=precision,
    )  # fmt: skip
    cluster = _cluster(row, device, precision, count)
    published = _tokens_per_s(row, model, layout, cluster)
    regime = "dense, 16 bit"
    if model.moe is not None:
        regime = "sparse"
    elif precision in ("fp8", "mxfp8"):
        regime = "dense, 8 bit"
    elif "TPU" in device.name:
        regime = "dense, TPU"
    elif "V100" in device.name:
        regime = "dense, 16 bit, V100"
    algorithm = Algorithm("ddp") if group else None
    return [Measurement(row["id"], source, regime, "tokens/s", published, cluster, model, layout, algorithm)]


def _sharding(row: Mapping[str, Any]) -> str:
    said = str(row["parallelism"].get("zero"))
    if said in ("0", "1", "2", "3"):
        return f"zero_{said}" if said != "0" else "none"
    if "stage 3" in said or (said == "None" and "fsdp" in str(row["regime"]).lower()):
        return "zero_3"
    return "zero_1"


def _recompute(row: Mapping[str, Any]) -> tuple[str, float]:
    said = str(row["parallelism"].get("recompute") or "none").lower()
    if said in ("full", "yes", "true"):
        return "full", 1.0
    if said.startswith("none") or said == "false":
        return "none", 1.0
    if re.search(r"selective\s*\(|n-th|partial|block", said):
        return "full", 0.5
    return ("selective", 1.0) if "selective" in said else ("full", 0.5)


def _tokens_per_s(row: Mapping[str, Any], model: Transformer, layout: Layout, cluster: Cluster) -> float:
    """As published, or from what was: a step's time; FLOP/s or MFU in the source's convention."""
    measured = row["measured"]
    if measured.get("tokens_per_s"):
        return float(measured["tokens_per_s"])
    if measured.get("tokens_per_s_per_gpu"):
        return float(measured["tokens_per_s_per_gpu"]) * float(cluster.devices)
    for key in ("step_time_s", "step_time_s_derived"):
        if measured.get(key):
            return float(layout.global_batch * model.sequence / measured[key])
    convention, embedding = convention_of(row)
    flops = flops_per_token(model, convention, embedding=embedding, recomputed=layout.recompute == "full")
    if measured.get("tflops_per_gpu"):
        return float(measured["tflops_per_gpu"] * 1e12 * cluster.devices / flops)
    share = measured.get("mfu_pct") or measured.get("hfu_pct")
    if share:
        return float(share / 100 * cluster.peak_flops * cluster.devices / flops)
    raise _Missing("a throughput")


def convention_of(row: Mapping[str, Any]) -> tuple[str, bool]:
    """``(convention, whether the input embedding is counted)`` of a row's FLOP/s, from what its source says of them."""
    said = str(row.get("mfu_definition") or "").lower()
    again = "with" in said and "recompu" in said and "no recompu" not in said and "without" not in said
    if "96" in said or "hfu-like" in said or ("megatron" in said and again):
        return "M96", True
    if "72" in said or "mfu as above" in said or "megatron" in said:
        return "M72", True
    if "8*n" in said or "8n" in said:
        return "8N", True
    if "causal" in said and "non-causal" not in said and "not halved" not in said:
        return "6N+causal", False
    if any(name in str(row["source"]["paper"]) for name in ("Llama 3", "Megatron-Bridge", "AutoModel")):
        return "6N+causal", False
    return "6N+full", True


# -- between workers --------------------------------------------------------------------------------------------------------


def _low_communication(row: Mapping[str, Any]) -> list[Measurement]:
    measured, hardware = row["measured"], row["hardware"]
    if measured.get("compute_ms_per_step") is None:
        raise _Missing("the time of a step's compute")
    bits = hardware.get("inter_Gbps_per_node")
    if bits is None:
        raise _Missing("the bandwidth between nodes")
    device = _device(row)
    cluster = of_device(device, hardware["count"], 1, bits * 1e9 / 8)
    local_steps = row["batch"].get("local_steps_H") or 1
    kind = {"ddp": "ddp", "localsgd": "local_sgd", "diloco": "diloco"}[row["parallelism"]["algorithm"]]
    # DDP's gradients are sent in float32 too.
    numbers: dict[str, Any] = {"message_bits": 32} | ({} if kind == "ddp" else {"local_steps": local_steps})
    extra = {"compute_s": measured["compute_ms_per_step"] / 1e3, "parameters": row["model"]["params"]}
    if "diloco-measured" in row["source"]["paper"]:
        # It recorded 180 steps after the warm-up: with H = 128 a single exchange.
        extra["share"] = 180 // local_steps * local_steps / 180
    return [
        Measurement(
            row["id"], row["source"]["paper"], "low communication", "share of compute",
            float(measured["compute_utilisation"]), cluster, algorithm=Algorithm(kind, **numbers), extra=extra,
        )
    ]  # fmt: skip


def _gossip(row: Mapping[str, Any]) -> list[Measurement]:
    measured, hardware, source = row["measured"], row["hardware"], row["source"]["paper"]
    said = str(row["parallelism"].get("algorithm"))
    device, count, node = _device(row), hardware["count"], hardware["gpus_per_node"]
    rate = hardware["inter_Gbps_per_node"] * 1e9 / 8
    parameters = row["model"]["params"]
    if measured.get("images_per_s") is not None:  # BAGUA
        batch = BAGUA_BATCH * count
        if said not in _BAGUA:
            raise _Missing("an iteration with communication: its compute is taken from this row")
        algorithm, quantity, published = _BAGUA[said], "samples/s", float(measured["images_per_s"])
        extra = {"compute_s": batch / BAGUA_ASYNC, "parameters": parameters, "samples": batch}
        cluster = of_device(device, count, node, rate, precision=_dtype(device))
    elif measured.get("hours_90_epochs_SGP") is not None:  # a worker is a node, of which one device sends
        algorithm, quantity, published = Algorithm("sgp"), "hours", float(measured["hours_90_epochs_SGP"])
        batch = row["batch"]["global_samples"]
        cluster = replace(of_device(device, count, 1, rate, precision="fp16"), devices=count // node)
        slow = replace(
            cluster, peak_flops=device.peaks["fp32"], ceiling_flops=CEILING_FRACTION * device.peaks["fp32"]
        )
        alone = step(ResNet(50), Layout(global_batch=batch // count, micro_batch=batch // count), slow)
        extra = {
            "compute_s": float(alone.total_s),
            "parameters": parameters,
            "iterations": 90 * 1_281_167 / batch,
        }
    elif measured.get("iteration_ms") is not None and said in _GOSSIP:
        algorithm, quantity, published = (
            _GOSSIP[said],
            "seconds of an iteration",
            measured["iteration_ms"] / 1e3,
        )
        cluster = of_device(device, count, node, rate, precision=_dtype(device))
        extra = {
            "compute_s": eager_s(row["batch"]["global_tokens"] / count, device),
            "parameters": parameters,
        }
    else:
        raise _Missing("the time of an iteration and of its compute")
    return [
        Measurement(
            row["id"], source, "gossip", quantity, published, cluster, algorithm=algorithm, extra=extra
        )
    ]


BAGUA_BATCH, BAGUA_ASYNC = 32, 28_950
"""Images of a batch on each device (recalled), and images/s of 128 devices where nothing waits (read, the mean of the two Async
rows): what compute alone would do."""
_BAGUA = {
    name: Algorithm("ddp", message_bits=bits)
    for name, bits in (
        ("DDP", 32),
        ("Horovod", 32),
        ("AllReduce", 32),
        ("BytePS", 32),
        ("ByteGrad", 8),
        ("QAdam", 8),
    )
} | {
    "Decentralized": Algorithm("adpsgd", message_bits=32, overlap=False),
    "LowPrecDecentralized": Algorithm("dpsgd", message_bits=8, overlap=False),
}
_GOSSIP = {
    "AllReduce": Algorithm("ddp", message_bits=32),
    "SGP_Exp": Algorithm("sgp", overlap=True),
    "Decent_Exp": Algorithm("sgp", overlap=True),
    "Decent_AER": Algorithm("alternating_ring"),
}
SMALL_FLOOR_S, SMALL_S_PER_TOKEN = 0.0415, 1.94e-5
"""Compute of an iteration of Wang et al.'s Transformer-base, eager and in mixed precision on an A100: launching its kernels, and
each token (derived: the mean of their one-peer bars at 16 and 32 workers, and that at 8, less what is felt of the exchange).
No roofline predicts either: its matrices are 512 wide. Their all-reduce and ring bars are predictions from this; the
one-peer bars on A100 are not."""


def eager_s(tokens: float, device: Device) -> float:
    """Seconds of compute of Wang et al.'s small model on a device, scaled by its peak: the longer of launches and work."""
    peak = device.peaks.get("bf16", device.peaks.get("fp16", 0.0))
    return max(SMALL_FLOOR_S, SMALL_S_PER_TOKEN * tokens * DEVICES["A100-SXM4-40GB"].peaks["bf16"] / peak)


def _between_workers(one: Measurement, constants: Constants) -> float:
    """Share of compute, or seconds of an iteration, where compute is given and communication predicted."""
    assert one.extra is not None
    assert one.algorithm is not None
    compute_s = one.extra["compute_s"]
    none, own = {"given": 0.0}, Held(one.extra["parameters"], 0.0, 0.0, 1.0, 1.0)
    given = Step({"given": compute_s}, compute_s / 3, compute_s * 2 / 3, none, none, own, 0.0, 0.0)
    per_node = min(one.cluster.node_size, one.cluster.devices)
    group = Between(
        one.cluster.devices, per_node, one.extra["parameters"], one.cluster, given, constants, 1.0
    )
    exchange = one.algorithm.exchange(group)
    if one.regime == "gossip":
        seconds = compute_s + exchange.exposed_s
        if one.quantity == "samples/s":
            return one.extra["samples"] / seconds
        return seconds if one.quantity != "hours" else seconds * one.extra["iterations"] / 3600
    share = one.extra.get("share", 1.0)
    return compute_s / (compute_s + share * exchange.exposed_s)


# -- collectives --------------------------------------------------------------------------------------------------------------


def _all_reduces(row: Mapping[str, Any]) -> list[Measurement]:
    hardware, measured = row["hardware"], row["measured"]
    count, node = hardware.get("count"), hardware.get("gpus_per_node") or 8
    if not count:
        raise _Missing("the number of devices")
    device = _device(row)
    cluster = _cluster(row, device, "bf16", count)
    rates = measured["busbw_GBps"]
    sizes: Any = measured.get("payload_bytes") or 8 * 2**30
    pairs = zip(sizes, rates, strict=True) if isinstance(rates, list) else [(sizes, rates)]
    return [
        Measurement(
            f"{row['id']}-{size / 2**20:g}MiB", row["source"]["paper"], "all-reduce", "GB/s", float(rate), cluster,
            extra={"size": float(size), "n": count, "per_node": min(node, count)},
        )
        for size, rate in pairs
        if size >= 2**20  # below, latencies of the benchmark itself
    ]  # fmt: skip


def _bus_bandwidth(one: Measurement) -> Any:
    assert one.extra is not None
    n, size = one.extra["n"], one.extra["size"]
    seconds = network.all_reduce_s(size, n, one.extra["per_node"], one.cluster)
    return 2 * (n - 1) / n * size / seconds / 1e9


def _all_to_alls(row: Mapping[str, Any]) -> list[Measurement]:
    hardware, measured = row["hardware"], row["measured"]
    cluster = _cluster(row, _device(row), "bf16", hardware["count"])
    extra = {
        "n": hardware["count"],
        "per_node": min(8, hardware["count"]),
        "tokens": row["batch"]["tokens_per_gpu"],
    }
    return [
        Measurement(
            f"{row['id']}-{what}", row["source"]["paper"], "all-to-all", "GB/s", float(measured[f"{what}_GBps_per_gpu"]),
            cluster, extra=extra | {"width": width},
        )
        for what, width in (("dispatch", 1.0), ("combine", 2.0))
    ]  # fmt: skip


def _dispatch_bandwidth(one: Measurement) -> Any:
    """Bytes over the time, as DeepEP counts them: a token once for each of up to 4 nodes, its own too.

    In one node once for each rank. (Recalled of its test. Otherwise 58 GB/s over a NIC of 50 could not be.)
    """
    assert one.extra is not None
    n, per_node = one.extra["n"], one.extra["per_node"]
    row = 7168 * one.extra["width"]
    sent = all_to_all_bytes(one.extra["tokens"], row, 8, n, per_node, 4)
    seconds = network.all_to_all_s(*sent, n, per_node, one.cluster)
    counted = one.extra["tokens"] * row * min(4, n // per_node) if n > per_node else sent.inside
    return counted / seconds / 1e9


_READERS = {
    "collective": _all_reduces,
    "collective-alltoall": _all_to_alls,
    "decentralized": _low_communication,
    "decentralized-gossip": _gossip,
}
"""Regime of the schema -> what reads it; all others are training."""
