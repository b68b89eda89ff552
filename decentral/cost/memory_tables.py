"""What methods keep in memory: closed forms, in bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from decentral.errors import InvalidInput, check_integer, suggest

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


# -- pipelines: numbers of a stage ---------------------------------------------------------------------------------------


class StageSize(NamedTuple):
    """One stage of a network, in numbers.

    Attributes:
        parameters: of the stage.
        statistics: running means and variances of its batch norms.
        inputs: of one sample: one stream of a reversible stage, both of one that changes the shape.
        reversible: False where the inputs have to be remembered (the stem's are the samples, which are not).
    """

    parameters: int
    statistics: int
    inputs: int
    reversible: bool


def revnet_sizes(depth: int) -> list[StageSize]:
    """The stages of RevNet18, 34 and 50 on ImageNet as in the authors' code (read): stem, residual blocks, head.

    Two streams of a ResNet's channels, one residual function for each block. Where it changes the shape, a block of two
    convolutions (18, 34) projects one stream, and a bottleneck (50) both. RevNet18: 12.2 M parameters, 34: 22.3, 50: 30.4.

    Raises:
        InvalidInput: another depth.
    """
    blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
    if depth not in blocks:
        raise InvalidInput("depth", depth, "18, 34 or 50")
    norm = 2  # of a channel: scale and shift, or mean and variance
    sizes = [StageSize(3 * 128 * 49 + 128 * norm, 128 * norm, 3 * 224 * 224, True)]
    channels, side = 64, 56
    for group, count in enumerate(blocks[depth]):
        hidden = 64 << group
        out = 4 * hidden if depth == 50 else hidden
        for _ in range(count):
            changes = channels != out
            if depth == 50:
                weights, norms = channels * hidden + 9 * hidden * hidden + hidden * out, 2 * hidden + out
            else:
                weights, norms = 9 * channels * out + 9 * out * out, 2 * out
            projections = changes * (2 if depth == 50 else 1)
            weights, norms = weights + projections * channels * out, norms + projections * out
            inputs = (1 + changes) * channels * side * side
            sizes.append(StageSize(weights + norm * norms, norm * norms, inputs, not changes))
            side = side // 2 if changes and group else side
            channels = out
    sizes.append(StageSize(2 * channels * 1000 + 1000, 0, channels * side * side, True))
    return sizes


def buffered_bytes(
    sizes: Sequence[StageSize],
    batch: int = 64,
    k: int = 1,
    keep_inputs: bool = False,
    keep_parameters: bool = False,
) -> float:
    """Bytes of all stages by the formula of the authors' code (read), 4 to a number: table 3 of the PETRA paper.

    Each stage: parameters, statistics and a batch of inputs; 2 (J - j) batches of inputs more where they are kept or the
    stage is not reversible; and ceil(2 (J - j) / k) copies of the parameters where these are kept. RevNet50, batch 64,
    k = 1: 44.45 GB with both, 43.58 inputs alone, 21.20 parameters alone, 20.33 none (PETRA); RevNet18: 4.94 and 2.17.

    It is no measurement. It counts one of a reversible stage's two streams, further batches of images only where inputs are
    kept, no optimizer, and nothing that is remembered inside a stage.

    Raises:
        InvalidInput: ``k`` below 1.
    """
    check_integer("k", k, 1)
    numbers = 0
    for j, size in enumerate(sizes):
        late, inputs = 2 * (len(sizes) - 1 - j), batch * size.inputs
        numbers += size.parameters + size.statistics + inputs
        numbers += late * inputs * (keep_inputs or not size.reversible)
        numbers += math.ceil(late / k) * size.parameters * keep_parameters
    return 4.0 * numbers
