"""Devices, hosts' processors, storage and optical units, each with its source and whether that source was read.

The numbers are in ``devices.json``, in the units its key ``units`` names (dense TFLOP/s, decimal GB, one-way GB/s); the classes
here have them in FLOP/s, bytes and seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, TypeVar

from decentral.errors import InvalidInput, suggest

_T = TypeVar("_T")
HARDWARE: dict[str, Any] = json.loads(files("decentral.hardware").joinpath("devices.json").read_text("utf-8"))
"""The whole data file: ``devices``, ``cpus``, ``storage``, ``opu``, ``links``, ``clusters``, ``power``, ``prices`` and their
``units``."""


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
    return _find("device.name", name, DEVICES, "the name of a known device")


def _find(setting: str, name: str, known: Mapping[str, _T], allowed: str) -> _T:
    """The entry of that name, in any case, or of the beginning of one name and no other."""
    wanted = str(name).lower()
    found = [each for each in known if each.lower() == wanted]
    found = found or [each for each in known if wanted and each.lower().startswith(wanted)]
    if len(found) == 1:
        return known[found[0]]
    if found:
        raise InvalidInput(setting, name, f"a name with one meaning: {', '.join(found)}")
    raise InvalidInput(setting, name, allowed, suggest(str(name), known))


# -- hosts and what they read from ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cpu:
    """One processor of a host: a socket.

    Attributes:
        name: as its vendor has it.
        vendor: who makes it.
        isa: its instructions, such as "x86-64" or "Armv9".
        cores: how many.
        clock_hz: base clock, or that of all cores under SIMD load where it is known (``notes``).
        flops_per_cycle: of a core, in fp32.
        memory_bytes_per_s: bandwidth of its main memory, all channels.
        memory_bytes: the largest it is sold with; None where unknown.
        power_w: thermal design power; None where unknown.
        sources: where the numbers come from.
        tag: "read", "partly read" or "recalled"; :meth:`tag_of` for one number.
        recalled: names of numbers that were recalled though others were read.
        notes: what to know before using them.
    """

    name: str
    vendor: str
    isa: str
    cores: int
    clock_hz: float
    flops_per_cycle: float
    memory_bytes_per_s: float
    memory_bytes: float | None
    power_w: float | None
    sources: tuple[str, ...]
    tag: str
    recalled: tuple[str, ...] = ()
    notes: str = ""

    @property
    def peak_flops(self) -> float:
        """fp32, FLOP/s: cores, clock and operations per cycle multiplied."""
        return self.cores * self.clock_hz * self.flops_per_cycle

    def tag_of(self, number: str) -> str:
        """The tag of one number, named as its field is; the peak's is that of the weakest of its factors."""
        factors = ("cores", "clock_hz", "flops_per_cycle") if number == "peak_flops" else (number,)
        return "recalled" if set(factors) & set(self.recalled) else self.tag


@dataclass(frozen=True)
class Storage:
    """What checkpoints go to and data come from; rates are sequential.

    Attributes:
        name: of the product, or of the site's file system.
        kind: "NVMe drive", "hard disk", "parallel file system" or "object store".
        scope: what the rates are of: one "drive", one "node", one "connection", or all users together ("shared").
        read_bytes_per_s: None where unknown.
        write_bytes_per_s: None where unknown.
        capacity_bytes: None where unknown, or without bound.
        sources: where the numbers come from.
        tag: "read", "partly read" or "recalled"; :meth:`tag_of` for one number.
        recalled: names of numbers that were recalled though others were read.
        notes: what to know before using them.
    """

    name: str
    kind: str
    scope: str
    read_bytes_per_s: float | None
    write_bytes_per_s: float | None
    capacity_bytes: float | None
    sources: tuple[str, ...]
    tag: str
    recalled: tuple[str, ...] = ()
    notes: str = ""

    @property
    def shared(self) -> bool:
        """Whether all nodes together have these rates; else every node has them for itself."""
        return self.scope == "shared"

    def tag_of(self, number: str) -> str:
        """The tag of one number, named as its field is."""
        return "recalled" if number in self.recalled else self.tag


_CPU_FIELDS = {
    "cores": ("cores", 1),
    "clock_GHz": ("clock_hz", 1e9),
    "fp32_flop_per_core_cycle": ("flops_per_cycle", 1.0),
    "memory_GBps": ("memory_bytes_per_s", 1e9),
    "memory_GB": ("memory_bytes", 1e9),
    "tdp_W": ("power_w", 1.0),
}
_STORAGE_FIELDS = {
    "read_GBps": ("read_bytes_per_s", 1e9),
    "write_GBps": ("write_bytes_per_s", 1e9),
    "capacity_TB": ("capacity_bytes", 1e12),
}


def _known(entry: Mapping[str, Any], fields: Mapping[str, tuple[str, float]]) -> dict[str, Any]:
    """Numbers in the units of the fields, and where they are from."""
    numbers = {
        name: None if entry[key] is None else entry[key] * unit for key, (name, unit) in fields.items()
    }
    return numbers | {
        "name": entry["name"],
        "sources": tuple(entry["sources"]),
        "tag": _TAGS.get(entry["verified"], "recalled"),
        "recalled": tuple(fields[key][0] for key in entry["unverified_fields"]),
        "notes": entry["notes"],
    }


CPUS: dict[str, Cpu] = {
    entry["name"]: Cpu(vendor=entry["vendor"], isa=entry["isa"], **_known(entry, _CPU_FIELDS))
    for entry in HARDWARE["cpus"]
}
"""Name -> processor."""
STORAGES: dict[str, Storage] = {
    entry["name"]: Storage(kind=entry["kind"], scope=entry["scope"], **_known(entry, _STORAGE_FIELDS))
    for entry in HARDWARE["storage"]
}
"""Name -> storage."""


def cpu(name: str) -> Cpu:
    """A processor by its name in any case, or by the beginning of one name and no other.

    Raises:
        InvalidInput: no such processor, or the beginning of several.
    """
    return _find("cpu.name", name, CPUS, "the name of a known processor")


def storage(name: str, setting: str = "storage.name") -> Storage:
    """A storage by its name in any case, or by the beginning of one name and no other.

    Args:
        name: of the storage.
        setting: what the user calls it, for the message.

    Raises:
        InvalidInput: no such storage, or the beginning of several.
    """
    return _find(setting, name, STORAGES, "a known storage")


# -- optical units -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FrameRate:
    """Frames per second of projections up to a size.

    Attributes:
        max_inputs: mirrors in use, at most.
        max_outputs: pixels in use, at most.
        frames_per_s: as long as both hold.
    """

    max_inputs: int
    max_outputs: int
    frames_per_s: float


@dataclass(frozen=True)
class OpticalMode:
    """How an output is had from frames of light, of which a camera sees only the intensity.

    Attributes:
        name: "intensity", "anchor", "four_phase", "off_axis" or "vendor".
        linear: whether the output is a linear function of the input; else it is |H x|^2.
        frames_real: for each bit plane of a vector, where outputs are real.
        frames_complex: where they are complex; None where the mode does not give them.
        pixels_per_output: of the camera.
        reference_arm: whether it needs a reference beam, which the units here are not known to have.
        sources: where the numbers come from.
        tag: "read", "partly read" or "recalled".
        recalled: names of numbers that were recalled, or assumed, though others were read.
        notes: what to know before using it.
    """

    name: str
    linear: bool
    frames_real: int
    frames_complex: int | None
    pixels_per_output: int
    reference_arm: bool
    sources: tuple[str, ...]
    tag: str
    recalled: tuple[str, ...] = ()
    notes: str = ""

    def frames(self, complex_rows: bool = False) -> int:
        """Frames for each bit plane of a vector.

        Raises:
            InvalidInput: the mode does not give complex outputs.
        """
        frames = self.frames_complex if complex_rows else self.frames_real
        if frames is None:
            raise InvalidInput("mode", self.name, "a mode with complex outputs, or real outputs", self.notes)
        return frames


@dataclass(frozen=True)
class OpticalDevice:
    """A unit that projects binary vectors with the one random matrix it has: neither chosen, nor known, nor transposed.

    Attributes:
        name: of the unit, with its generation.
        rates: frames per second by size; the first row that a size fits into counts.
        max_inputs: mirrors.
        max_outputs: pixels.
        input_bits: of a mirror in a frame.
        output_bits: of a pixel in a frame.
        exposure_s: of the camera, as the vendor's software has it unless told otherwise.
        frame_overhead_s: a frame takes at least its exposure and this.
        power_w: of the head unit, without its host.
        link_bytes_per_s: to the host, one way, by specification.
        vectors_per_acquisition: that the software sends at a time.
        modes: name -> how outputs are had.
        sources: where the numbers come from.
        tag: "read", "partly read" or "recalled".
        notes: what to know before using them.
    """

    name: str
    rates: tuple[FrameRate, ...]
    max_inputs: int
    max_outputs: int
    input_bits: int
    output_bits: int
    exposure_s: float
    frame_overhead_s: float
    power_w: float
    link_bytes_per_s: float
    vectors_per_acquisition: int
    modes: Mapping[str, OpticalMode]
    sources: tuple[str, ...]
    tag: str
    notes: str = ""

    @property
    def frame_s(self) -> float:
        """Seconds of a frame of the smallest projections."""
        return 1 / max(rate.frames_per_s for rate in self.rates)

    def mode(self, name: str) -> OpticalMode:
        """A mode by its name.

        Raises:
            InvalidInput: no such mode; the message lists those known.
        """
        if name not in self.modes:
            raise InvalidInput(
                "mode", name, f"one of {', '.join(self.modes)}", suggest(str(name), self.modes)
            )
        return self.modes[name]


def _mode(entry: Mapping[str, Any]) -> OpticalMode:
    same = ("name", "linear", "frames_real", "frames_complex", "pixels_per_output", "reference_arm", "notes")
    return OpticalMode(
        **{key: entry[key] for key in same},
        sources=tuple(entry["sources"]),
        tag=_TAGS.get(entry["verified"], "recalled"),
        recalled=tuple(entry["unverified_fields"]),
    )


def _optical(entry: Mapping[str, Any], generation: Mapping[str, Any]) -> OpticalDevice:
    rates = (
        FrameRate(row["max_inputs"], row["max_outputs"], float(row["rate_Hz"]))
        for row in generation["frame_rates"]
    )
    same = ("max_inputs", "max_outputs", "input_bits", "output_bits", "exposure_s", "frame_overhead_s")
    return OpticalDevice(
        **{key: entry[key] for key in same},
        name=generation["name"],
        rates=tuple(rates),
        power_w=float(entry["power_W"]),
        link_bytes_per_s=entry["link_GBps_unidir"] * 1e9,
        vectors_per_acquisition=entry["vectors_per_acquisition"],
        modes={mode["name"]: _mode(mode) for mode in entry["modes"]},
        sources=(*generation["sources"], *entry["sources"], *entry["size_sources"]),
        tag=_TAGS.get(generation["verified"], "recalled"),
        notes=f"{generation['notes']}; not known: {entry['not_known']}",
    )


OPTICAL_UNITS: dict[str, OpticalDevice] = {
    generation["name"]: _optical(entry, generation)
    for entry in HARDWARE["opu"]
    for generation in entry["generations"]
}
"""Name -> optical unit."""


def optical_unit(name: str) -> OpticalDevice:
    """An optical unit by its name in any case, or by the beginning of one name and no other.

    Raises:
        InvalidInput: no such unit, or the beginning of several.
    """
    return _find("optical_unit.name", name, OPTICAL_UNITS, "the name of a known optical unit")
