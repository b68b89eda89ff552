"""Checks of arguments shared by the problem factories: each returns the value or raises one clear message."""

from __future__ import annotations

import math
import os
import zlib
from typing import Any

import jax
import numpy as np

from decentral.errors import InvalidInput, MissingExtra
from decentral.errors import check_choice as check_choice


def check_int(name: str, value: object, minimum: int = 1) -> int:
    """``value`` as an int of at least ``minimum``; bools and fractions are refused."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise InvalidInput(name, value, f"an integer of at least {minimum}")
    return int(value)


def check_number(
    name: str, value: object, low: float = 0.0, high: float = math.inf, *, open_low: bool = False
) -> float:
    """``value`` as a finite float in [low, high), or (low, high) with ``open_low``."""
    words = f"a finite number {'above' if open_low else 'of at least'} {low:g}"
    words += "" if high == math.inf else f" and below {high:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InvalidInput(name, value, words)
    if not math.isfinite(value) or value < low or value >= high or (open_low and value == low):
        raise InvalidInput(name, value, words)
    return float(value)


def check_dtype(dtype: Any) -> np.dtype:
    """The NumPy dtype of parameters: float32, or float64 if JAX has it switched on.

    JAX turns float64 arrays into float32 without a word while x64 is off, so a request for float64 is refused then.
    """
    try:
        dtype = np.dtype(dtype)
    except TypeError:
        raise InvalidInput("problem.dtype", dtype, "'float32' or 'float64'") from None
    if dtype not in (np.dtype("float32"), np.dtype("float64")):
        raise InvalidInput("problem.dtype", str(dtype), "'float32' or 'float64'")
    if dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise InvalidInput(
            "problem.dtype",
            "float64",
            "'float32' while JAX runs with x64 off",
            'Switch x64 on before anything runs: jax.config.update("jax_enable_x64", True), or set the '
            "environment variable JAX_ENABLE_X64=1; or ask for float32.",
        )
    return dtype


def check_memory(name: str, got: object, n_bytes: float, advice: str) -> None:
    """Refuses arrays larger than the machine's physical memory, with the numbers."""
    if not hasattr(os, "sysconf"):
        return
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if n_bytes > physical:
        need, have = n_bytes / 2**30, physical / 2**30
        raise InvalidInput(
            name, got, f"what fits in {have:.1f} GiB of memory (this needs {need:.1f})", advice
        )


def random_generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A NumPy stream of its own for (seed, purpose, counters): no draw depends on how many others were made."""
    seed = check_int("problem.seed", seed, minimum=0)
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *counters])


def scikit_datasets() -> Any:
    """The module ``sklearn.datasets``, imported when a problem asks for it."""
    try:
        from sklearn import datasets
    except ImportError:
        raise MissingExtra("This problem", "scikit-learn", "data") from None
    return datasets
