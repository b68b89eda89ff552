"""What methods keep in memory: closed forms, in bytes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from decentral.errors import InvalidInput, suggest

# -- data parallel: bytes of a worker for each parameter ---------------------------------------------------------------


class Copies(NamedTuple):
    """Bytes for each parameter, in bf16 but for the optimizer.

    Attributes:
        whole: on every worker: 2 for the parameters, 2 for their gradient, and what a method adds.
        sharded: cut among the workers.
        shards_optimizer: the optimizer's bytes are among the latter.
    """

    whole: int
    sharded: int
    shards_optimizer: bool


DATA_PARALLEL = {
    "ddp": Copies(2 + 2, 0, False),
    "zero_1": Copies(2 + 2, 0, True),
    "zero_2": Copies(2, 2, True),
    "zero_3": Copies(0, 2 + 2, True),
    # a buffer for the collective, beside the gradients that are taken meanwhile
    "dpu": Copies(2 + 2 + 2, 0, True),
    "wp": Copies(2 + 2 + 2, 0, True),
    "acco": Copies(2 + 2 + 2, 0, True),
    # the last common parameters, and the outer momentum
    "slowmo": Copies(2 + 2 + 4, 0, False),
    "diloco": Copies(2 + 2 + 4, 0, False),
    # SlowMo's, and the two vectors of an outer step that is one behind
    "co2": Copies(2 + 2 + 8, 0, False),
}
"""Methods as ACCO's table 1 compares them (Nabli et al., arXiv 2406.02613, read; what the bytes beyond ZeRO's are for is
derived from its totals)."""


def data_parallel_bytes(
    method: str, parameters: ArrayLike, n: ArrayLike, optimizer_bytes: float = 12
) -> np.ndarray:
    """Bytes on each worker, without activations.

    Args:
        method: a key of ``DATA_PARALLEL``.
        parameters: of the model.
        n: workers.
        optimizer_bytes: for each parameter; 12: Adam's moments and a copy of the parameters, in float32.

    Returns:
        Float64, of the shape that ``parameters`` and ``n`` have together.

    Raises:
        InvalidInput: an unknown method; fewer than one worker or parameter.
    """
    if method not in DATA_PARALLEL:
        raise InvalidInput("method", method, "a known method", suggest(str(method), DATA_PARALLEL))
    parameters, n = np.asarray(parameters, np.float64), np.asarray(n, np.float64)
    for name, value in (("parameters", parameters), ("n", n)):
        if not (value >= 1).all():
            raise InvalidInput(name, value.min(), "1 or more")
    whole, sharded, shards_optimizer = DATA_PARALLEL[method]
    optimizer = optimizer_bytes / n if shards_optimizer else optimizer_bytes
    return (whole + sharded / n + optimizer) * parameters
