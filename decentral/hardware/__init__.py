"""Devices, with a source for every number. Data and arithmetic only: no JAX, nothing simulated."""

from decentral.hardware.devices import (
    CPUS,
    DEVICES,
    HARDWARE,
    OPTICAL_UNITS,
    STORAGES,
    Cpu,
    Device,
    FrameRate,
    OpticalDevice,
    OpticalMode,
    Storage,
    cpu,
    device,
    optical_unit,
    storage,
)

__all__ = [
    "CPUS",
    "DEVICES",
    "HARDWARE",
    "OPTICAL_UNITS",
    "STORAGES",
    "Cpu",
    "Device",
    "FrameRate",
    "OpticalDevice",
    "OpticalMode",
    "Storage",
    "cpu",
    "device",
    "optical_unit",
    "storage",
]
