"""Devices: peaks, memory and links, each with its source and whether that source was read.

The numbers are in ``devices.json``, in the units its key ``units`` names (dense TFLOP/s, decimal GB, one-way GB/s);
:class:`Device` has them in FLOP/s, bytes and seconds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from decentral.errors import InvalidInput, suggest

HARDWARE: dict[str, Any] = json.loads(files("decentral.hardware").joinpath("devices.json").read_text("utf-8"))
"""The whole data file: ``devices``, ``links``, ``clusters``, ``opu``, ``power``, ``prices`` and their ``units``."""


@dataclass(frozen=True)
class Device:
    """One accelerator.

    Attributes:
        name: as its vendor has it.
        vendor: who makes it.
        peaks: dtype -> dense peak (no sparsity), FLOP/s; only what is known.
        memory_bytes: size of its main memory.
        memory_bytes_per_s: its bandwidth.
        scaleup_bytes_per_s: one way, to all devices of its scale-up domain together (NVLink, Infinity Fabric, or PCIe
            where there is nothing better); None where unknown.
        peer_bytes_per_s: one way, to a single peer in that domain; None where unknown.
        power_w: thermal design power; None where unknown.
        ceilings: dtype -> FLOP/s of the largest matrix product, measured; only what was.
        ring_bytes_per_s: a large all-reduce of 8 devices in one node, as bus bandwidth, measured; None where it was not.
        compute_units: streaming multiprocessors (NVIDIA) or compute units (AMD); None where that means nothing.
        sources: where the numbers come from.
        tag: "read" (in the sources), "partly read" or "recalled" (not looked up); :meth:`tag_of` for one number.
        recalled: names of numbers that were recalled though others were read.
        notes: what to know before using them.
    """

    name: str
    vendor: str
    peaks: dict[str, float]
    memory_bytes: float
    memory_bytes_per_s: float
    scaleup_bytes_per_s: float | None
    peer_bytes_per_s: float | None
    power_w: float | None
    sources: tuple[str, ...]
    tag: str
    ceilings: dict[str, float] = field(default_factory=dict)
    ring_bytes_per_s: float | None = None
    compute_units: int | None = None
    recalled: tuple[str, ...] = ()
    notes: str = ""

    def peak_flops(self, dtype: str = "bf16") -> float:
        """Dense peak, FLOP/s.

        Raises:
            InvalidInput: no peak is known for the dtype; the message lists those known.
        """
        if dtype not in self.peaks:
            known = ", ".join(sorted(self.peaks)) or "none"
            raise InvalidInput(
                "device.dtype", dtype, f"a dtype whose peak is known for {self.name}: {known}", self.notes
            )
        return self.peaks[dtype]

    def tag_of(self, number: str) -> str:
        """The tag of one number: a dtype, or the name of a field such as ``"memory_bytes"``."""
        return "recalled" if number in self.recalled else self.tag


_TAGS = {True: "read", "partial": "partly read"}
_FIELDS = {
    "hbm_GB": ("memory_bytes", 1e9),
    "hbm_TBps": ("memory_bytes_per_s", 1e12),
    "scaleup_GBps_unidir": ("scaleup_bytes_per_s", 1e9),
    "scaleup_p2p_GBps_unidir": ("peer_bytes_per_s", 1e9),
    "tdp_W": ("power_w", 1.0),
}
"""Key of the file -> field, and the unit of the one in that of the other."""


_RINGS = ("busbw_allreduce_8gpu_ring_GBps", "busbw_allreduce_8gpu_GBps")


def _read(entry: dict[str, Any]) -> Device:
    numbers: dict[str, Any] = {
        field: None if entry[key] is None else entry[key] * unit for key, (field, unit) in _FIELDS.items()
    }
    if numbers["scaleup_bytes_per_s"] is None and "ici_axes" in entry:  # a torus: two links on every axis
        numbers["scaleup_bytes_per_s"] = 2e9 * entry["ici_axes"] * entry["ici_link_GBps_oneway"]
    return Device(
        name=entry["name"],
        vendor=entry["vendor"],
        peaks={dtype: peak * 1e12 for dtype, peak in entry["peak_dense_tflops"].items() if peak is not None},
        sources=tuple(entry["sources"]),
        tag=_TAGS.get(entry["verified"], "recalled"),
        recalled=tuple(_FIELDS.get(key, (key, 1.0))[0] for key in entry.get("unverified_fields", ())),
        notes=entry.get("notes", ""),
        ceilings={dtype: rate * 1e12 for dtype, rate in entry["measured_matmul_tflops"].items()},
        ring_bytes_per_s=next((entry[key] * 1e9 for key in _RINGS if key in entry), None),
        compute_units=entry.get("compute_units"),
        **numbers,
    )


DEVICES: dict[str, Device] = {entry["name"]: _read(entry) for entry in HARDWARE["devices"]}
"""Name -> device."""


def device(name: str) -> Device:
    """A device by its name in any case, or by the beginning of one name and no other.

    Raises:
        InvalidInput: no such device, or the beginning of several.
    """
    wanted = str(name).lower()
    found = [known for known in DEVICES if known.lower() == wanted]
    found = found or [known for known in DEVICES if wanted and known.lower().startswith(wanted)]
    if len(found) == 1:
        return DEVICES[found[0]]
    if found:
        raise InvalidInput("device.name", name, f"a name with one meaning: {', '.join(found)}")
    raise InvalidInput("device.name", name, "the name of a known device", suggest(str(name), DEVICES))
