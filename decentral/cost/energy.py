"""Energy, and what follows from it with numbers that only the user knows: prices and the carbon of a grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from decentral.cost.checks import check_numbers
from decentral.errors import InvalidInput
from decentral.hardware import Device

LOAD_OVER_TDP = 1.22
"""Power of a training node for each GPU over the GPU's thermal design power: 6.85 kW for 8 H100 of 700 W, the mean over 64 nodes
that train GPT-3; fans, CPUs, memory and NICs are in it (read, mlcommons/training_results_v4.0 power logs). Assumed of others."""
IDLE_OVER_LOAD = 0.3
"""Power of an idle node over the same under load: about 2.09 of 6.85 kW (read, the same logs)."""
JOULES_PER_KWH = 3.6e6


def load_power_w(device: Device) -> float:
    """Watts under load for each device, its share of the node included: 1.22 times its thermal design power.

    Raises:
        InvalidInput: the thermal design power is not known.
    """
    if device.power_w is None:
        raise InvalidInput(
            "device.power_w", None, "a known power", f"That of {device.name} is not: give one."
        )
    return LOAD_OVER_TDP * device.power_w


def power_w(load_w: ArrayLike, utilisation: ArrayLike = 1.0, idle_w: ArrayLike | None = None) -> np.ndarray:
    """Mean watts: idle power, and the rest in the share of the time that there is work.

    Args:
        load_w: under load.
        utilisation: share of the time under load.
        idle_w: without; None: 0.3 of ``load_w``.
    """
    load_w, share = check_numbers("load_w", load_w, 0), check_numbers("utilisation", utilisation, 0, 1)
    idle_w = IDLE_OVER_LOAD * load_w if idle_w is None else check_numbers("idle_w", idle_w, 0)
    return idle_w + share * (load_w - idle_w)


def energy_j(
    watts: ArrayLike, seconds: ArrayLike, devices: ArrayLike = 1, pue: ArrayLike = 1.0
) -> np.ndarray:
    """Joules. Of a useful sample: with the ``seconds`` that all devices take for one.

    Args:
        watts: of each device (:func:`power_w`).
        seconds: of the run.
        devices: of that power.
        pue: energy of the building over that of its computers; 1.1 to 1.4 (assumed).
    """
    devices, pue = check_numbers("devices", devices, 0), check_numbers("pue", pue, 1)
    return devices * check_numbers("seconds", seconds, 0) * check_numbers("watts", watts, 0) * pue


def money(
    seconds: ArrayLike, devices: ArrayLike, price_per_device_hour: ArrayLike | None
) -> np.ndarray | None:
    """What the run costs, in the currency of the price; None where there is no price: this package knows none."""
    if price_per_device_hour is None:
        return None
    price = check_numbers("price_per_device_hour", price_per_device_hour, 0)
    return check_numbers("seconds", seconds, 0) / 3600 * check_numbers("devices", devices, 0) * price


def co2_kg(joules: ArrayLike, kg_per_kwh: ArrayLike | None) -> np.ndarray | None:
    """Kilograms of CO2; None without the grid's factor (France about 0.05, world about 0.45, both recalled)."""
    if kg_per_kwh is None:
        return None
    return check_numbers("joules", joules, 0) / JOULES_PER_KWH * check_numbers("kg_per_kwh", kg_per_kwh, 0)
