"""What failures, checkpoints and slow storage cost: the share of the time that does useful work.

Failures of a worker are memoryless, with ``worker_mtbf_s`` seconds between two. All functions broadcast.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from decentral.cost.checks import check_numbers


def checkpoint_interval_s(checkpoint_s: ArrayLike, worker_mtbf_s: ArrayLike, n: ArrayLike) -> np.ndarray:
    """Seconds of work between two checkpoints that lose least: sqrt(2 checkpoint_s worker_mtbf_s / n).

    Leading order for checkpoints much shorter than the time between failures (Young 1974, Daly 2006, recalled).

    Args:
        checkpoint_s: that the job stands still for one.
        worker_mtbf_s: between failures of one worker.
        n: workers, each of which stops the job.
    """
    checkpoint_s = check_numbers("checkpoint_s", checkpoint_s, 0)
    return np.sqrt(2 * checkpoint_s * _job_mtbf_s(worker_mtbf_s, n))


def synchronous_goodput(
    checkpoint_s: ArrayLike,
    restart_s: ArrayLike,
    worker_mtbf_s: ArrayLike,
    n: ArrayLike,
    interval_s: ArrayLike | None = None,
) -> np.ndarray:
    """Share of useful time of a job that any failure sends back to its last checkpoint.

    interval / (M exp(restart / M) (exp((interval + checkpoint) / M) - 1)), M = worker_mtbf_s / n: exact, and never
    negative, for memoryless failures, which may strike while it restarts too (Daly 2006, recalled). To leading order
    1 - checkpoint / interval - (interval / 2 + restart) / M.

    Args:
        checkpoint_s: that the job stands still for one.
        restart_s: from a failure to the first useful work.
        worker_mtbf_s: between failures of one worker.
        n: workers.
        interval_s: useful work between checkpoints; None: :func:`checkpoint_interval_s`.
    """
    mtbf_s = _job_mtbf_s(worker_mtbf_s, n)
    checkpoint_s = check_numbers("checkpoint_s", checkpoint_s, 0, above=interval_s is None)
    restart_s = check_numbers("restart_s", restart_s, 0)
    if interval_s is None:
        interval_s = checkpoint_interval_s(checkpoint_s, worker_mtbf_s, n)
    interval_s = check_numbers("interval_s", interval_s, 0, above=True)
    with np.errstate(over="ignore"):  # a job that never gets anywhere: 0
        return (
            interval_s / mtbf_s / np.exp(restart_s / mtbf_s) / np.expm1((interval_s + checkpoint_s) / mtbf_s)
        )


def decentralised_goodput(worker_mtbf_s: ArrayLike, down_s: ArrayLike, lost_s: ArrayLike = 0.0) -> np.ndarray:
    """Share of useful time where a failure stops its worker alone: 1 - E[workers down] / n, whatever n.

    Args:
        worker_mtbf_s: between failures of one worker, while it is up.
        down_s: until it works again (a copy of a neighbour's model included).
        lost_s: of its own work, that nobody else has.
    """
    worker_mtbf_s = check_numbers("worker_mtbf_s", worker_mtbf_s, 0, above=True)
    down_s, lost_s = check_numbers("down_s", down_s, 0), check_numbers("lost_s", lost_s, 0)
    return np.maximum(worker_mtbf_s - lost_s, 0) / (worker_mtbf_s + down_s)


def checkpoint_s(
    size_bytes: ArrayLike,
    nodes: ArrayLike,
    node_bytes_per_s: ArrayLike,
    storage_bytes_per_s: ArrayLike = np.inf,
) -> np.ndarray:
    """Seconds to write a checkpoint that is cut evenly among the nodes.

    BLOOM on Jean-Zay: 2.3 TB by 384 processes in 40 s, 57.5 GB/s (read, stas00/ml-engineering storage/README.md).

    Args:
        size_bytes: of the whole.
        nodes: that write.
        node_bytes_per_s: what each can write.
        storage_bytes_per_s: what the storage takes from all; infinite: each node has its own.
    """
    size_bytes, nodes = check_numbers("size_bytes", size_bytes, 0), check_numbers("nodes", nodes, 1)
    each = check_numbers("node_bytes_per_s", node_bytes_per_s, 0, above=True)
    return size_bytes / np.minimum(
        nodes * each, check_numbers("storage_bytes_per_s", storage_bytes_per_s, 0, above=True)
    )


def data_stall(sample_bytes: ArrayLike, samples_per_s: ArrayLike, read_bytes_per_s: ArrayLike) -> np.ndarray:
    """Share of the time that training waits for its data, which are read while it computes.

    Args:
        sample_bytes: read for each sample.
        samples_per_s: that would be trained on without waiting.
        read_bytes_per_s: from storage.
    """
    needed = check_numbers("sample_bytes", sample_bytes, 0) * check_numbers("samples_per_s", samples_per_s, 0)
    read = check_numbers("read_bytes_per_s", read_bytes_per_s, 0, above=True)
    return 1 - read / np.maximum(needed, read)


def _job_mtbf_s(worker_mtbf_s: ArrayLike, n: ArrayLike) -> np.ndarray:
    return check_numbers("worker_mtbf_s", worker_mtbf_s, 0, above=True) / check_numbers("n", n, 1)
