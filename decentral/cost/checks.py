"""The check of arguments that may be arrays."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from decentral.errors import InvalidInput


def check_numbers(
    name: str, value: ArrayLike, low: float, high: float = math.inf, *, above: bool = False
) -> np.ndarray:
    """``value`` in float64, or InvalidInput if a number of it is NaN or outside [low, high] (above: (low, high])."""
    try:
        numbers = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        numbers = np.asarray(np.nan)
    allowed = (numbers >= low) & (numbers <= high) & ~(above & (numbers == low))
    if not allowed.all():
        bound = f"above {low:g}" if above else f"at least {low:g}"
        raise InvalidInput(
            name, value, f"numbers, {bound}" + (f", at most {high:g}" if high < math.inf else "")
        )
    return numbers
