"""What a step of a local optimizer costs for each parameter: arithmetic, and bytes between the device and its main memory.

Operations are counted as XLA counts them, roots, exponentials and divisions as one each; numbers have 4 bytes; what is kept for
rows and columns of a matrix is left out, as its share vanishes with its size (a bias has more to keep, and counts like a matrix
here).
"""

from __future__ import annotations

from dataclasses import dataclass

from decentral.cost.checks import check_numbers
from decentral.errors import check_flag, check_integer

NUMBER_BYTES = 4
FEATURES = 16
"""Of a parameter of a matrix, that the network of a learned optimizer sees for it alone: 12 more are of its row or column, and go
through the first layer once for all that share them; those of time are part of a bias."""


@dataclass(frozen=True)
class OptimizerCost:
    """Of one step, for each parameter.

    Attributes:
        flops: operations.
        bytes: read from and written to main memory.
    """

    flops: float
    bytes: float

    def seconds(self, parameters: float, flops_per_s: float, bytes_per_s: float) -> float:
        """On a device that computes and moves bytes side by side (its roofline).

        Args:
            parameters: how many.
            flops_per_s: that the device reaches.
            bytes_per_s: of its main memory.
        """
        check_numbers("flops_per_s", flops_per_s, 0, above=True)
        check_numbers("bytes_per_s", bytes_per_s, 0, above=True)
        return parameters * max(self.flops / flops_per_s, self.bytes / bytes_per_s)


SGD = OptimizerCost(2, 3 * NUMBER_BYTES)
"""x - lr g: reads x and g, writes x."""
MOMENTUM = OptimizerCost(4, 5 * NUMBER_BYTES)
"""m = b m + g; x - lr m: m too is read and written."""
ADAM = OptimizerCost(14, 7 * NUMBER_BYTES)
"""3 for the first moment, 4 for the second, 2 corrections, root, + eps, division, times lr, sum; moments read, written."""


def learned(hidden: int, *, fused: bool = False) -> OptimizerCost:
    """Of :func:`decentral.learned.optimizer.learned`.

    Operations outside its network: 9 for three averages of the gradient, 4 for that of its square, 3 for the means by row and
    column, twice 14 for features made of these (the second time after their root mean squares are known), 2 for each to square
    and sum it (the division is in the weights of the first layer), 6 from the outputs to the parameter. Those of the network
    16-h-h-2, with what rows and columns add, biases and ReLU: 2 h² + 41 h + 2.

    Numbers moved: the gradient once for its means by row and column; then parameter, gradient and the four averages are read,
    and the latter written, to know the root mean squares of the features; all are read again for the step, and the parameter
    written: 18. Where a kernel ends at each product of the network (XLA's do), features, hidden layers and outputs are written
    and read too, unless they stay in a cache: ours come in blocks that do on a CPU (``fused``).

    Args:
        hidden: h, units of its two hidden layers.
        fused: one kernel makes the features, runs the network and steps, or what is between stays in a cache.

    Raises:
        InvalidInput: no hidden units.
    """
    check_integer("hidden", hidden, 1)
    check_flag("fused", fused)
    flops = 9 + 4 + 3 + 2 * 14 + 2 * FEATURES + 6 + 2 * hidden**2 + 41 * hidden + 2
    between = 0 if fused else 2 * (FEATURES + 2 * hidden + 2)
    return OptimizerCost(float(flops), float(NUMBER_BYTES * (18 + between)))
