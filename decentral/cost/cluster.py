"""A cluster in numbers: devices, the nodes they stand in, and what joins them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from decentral.errors import InvalidInput
from decentral.hardware import Device

WIRE_FRACTION = 0.94
"""Payload over line rate: 1,448 of the 1,538 bytes of an Ethernet frame (derived). RDMA gets as far: 381.8 GB/s of 400 in the
largest all-reduce over 4 nodes of 8 B200 (measured, stas00/ml-engineering)."""
SCALEUP_FRACTION = 0.79
"""Ring all-reduce in a node over the specified rate: 0.783 on A100, 0.812 on H200, 0.758 on B200 (measured,
stas00/ml-engineering), their mean for devices without a measurement of their own."""
MEMORY_FRACTION = 0.8
"""Achieved over specified bandwidth of main memory (read, stas00/ml-engineering: plan with 80 %)."""
CEILING_FRACTION = 0.8
"""Largest matrix product's FLOP/s over the peak, where nobody measured it: 0.87 on A100, 0.80 on H100, 0.78 on B200, 0.51 on
MI300X, 0.97 on Gaudi2 (measured, stas00/ml-engineering); about their mean."""
BLOCK_SCALED = ("B200", "GB200", "B300")
"""Beginnings of the names of devices with products of scaled blocks (MXFP8)."""
COMPUTE_UNITS = 108
"""Of devices that have no such thing, or where it is not known: an A100's."""


@dataclass(frozen=True)
class Cluster:
    """Numbers a projection needs; rates in bytes/s one way, as achieved and not as specified.

    Attributes:
        device: the accelerator.
        devices: how many.
        node_size: devices of a node.
        peak_flops: dense peak of one device in the precision that products are computed in.
        ceiling_flops: of the largest matrix product, measured where it was.
        low_peak_flops: of the 8-bit peak; None where there is none.
        low_ceiling_flops: the same of the largest product.
        memory_bytes: of one device.
        memory_bytes_per_s: of one device.
        scaleup_bytes_per_s: of one device to the others of its node.
        node_bytes_per_s: of one node to the network, all NICs together.
        latency_s: between nodes beyond a hop of a data centre's network; matters between sites.
        compute_units: streaming multiprocessors.
        name: of the cluster.
    """

    device: Device
    devices: Any
    node_size: Any
    peak_flops: Any
    ceiling_flops: Any
    memory_bytes: Any
    memory_bytes_per_s: Any
    scaleup_bytes_per_s: Any
    node_bytes_per_s: Any
    low_peak_flops: Any = None
    low_ceiling_flops: Any = None
    latency_s: Any = 0.0
    compute_units: Any = COMPUTE_UNITS
    name: str = ""

    @property
    def nodes(self) -> Any:
        """How many nodes the devices fill."""
        return np.ceil(np.asarray(self.devices, float) / self.node_size)


def of_device(
    device: Device,
    devices: Any,
    node_size: Any,
    node_bytes_per_s: Any,
    *,
    precision: str = "bf16",
    measured: bool = False,
    latency_s: Any = 0.0,
    name: str = "",
) -> Cluster:
    """A cluster of one kind of device: what was measured of it, and shares of the data sheet for the rest.

    Args:
        device: the accelerator.
        devices: how many.
        node_size: devices of a node.
        node_bytes_per_s: of a node's NICs together, one way, by specification; as achieved where ``measured``.
        precision: of the products: "bf16", "fp16", "fp8" or "mxfp8".
        measured: see ``node_bytes_per_s``.
        latency_s: between nodes beyond that of a data centre's network.
        name: of the cluster.

    Raises:
        InvalidInput: no peak is known for the precision; no bandwidth between the devices of a node.
    """
    dtype = "fp16" if precision == "fp16" else "bf16"
    peak = device.peak_flops(dtype)
    low_peak = low_ceiling = None
    if precision in ("fp8", "mxfp8"):
        if precision == "mxfp8" and not device.name.startswith(BLOCK_SCALED) and "mxfp8" not in device.peaks:
            allowed = f"fp8, or a device that multiplies scaled blocks: {', '.join(BLOCK_SCALED)}"
            raise InvalidInput("parallelism.precision", f"mxfp8 on {device.name}", allowed)
        low_peak = device.peaks.get(precision) or device.peak_flops("fp8")
        low_ceiling = device.ceilings.get(
            "fp8", low_peak * device.ceilings.get("bf16", CEILING_FRACTION * peak) / peak
        )
    scaleup = device.ring_bytes_per_s
    if scaleup is None:
        scaleup = (
            None if device.scaleup_bytes_per_s is None else SCALEUP_FRACTION * device.scaleup_bytes_per_s
        )
    if scaleup is None:
        if np.any(np.asarray(node_size) > 1):
            raise InvalidInput(
                "cluster.node_size",
                node_size,
                "1",
                f"Bandwidth between devices of a node is not known for {device.name}.",
            )
        scaleup = np.inf
    return Cluster(
        device=device,
        devices=devices,
        node_size=node_size,
        peak_flops=peak,
        ceiling_flops=device.ceilings.get(dtype, device.ceilings.get("bf16", CEILING_FRACTION * peak)),
        memory_bytes=device.memory_bytes,
        memory_bytes_per_s=device.memory_bytes_per_s,
        scaleup_bytes_per_s=scaleup,
        node_bytes_per_s=np.asarray(node_bytes_per_s, float) * (1.0 if measured else WIRE_FRACTION),
        low_peak_flops=low_peak,
        low_ceiling_flops=low_ceiling,
        latency_s=latency_s,
        compute_units=device.compute_units or COMPUTE_UNITS,
        name=name,
    )
