"""How long an all-reduce takes among any set of workers."""

from __future__ import annotations

import numpy as np

from decentral.errors import InvalidInput, check_number, suggest
from decentral.timing import Cluster, Links
from decentral.timing.compute import LONGEST_NS

COLLECTIVES = ("ring", "tree")


def check_collective(name: str, kind: str) -> None:
    """InvalidInput where ``kind`` is not one of ``COLLECTIVES``."""
    if kind not in COLLECTIVES:
        raise InvalidInput(name, kind, "a known collective", suggest(str(kind), COLLECTIVES))


def check_times(collective_s: float | None, optimizer_s: float) -> None:
    """InvalidInput where what a protocol says about its all-reduces is no time."""
    if collective_s is not None:
        check_number("protocol.collective_s", collective_s, 0, LONGEST_NS / 2e9)
    check_number("protocol.optimizer_s", optimizer_s, 0, LONGEST_NS / 2e9)


def all_reduce_ns(links, members: np.ndarray, message_bytes: float, seed: int, kind: str) -> float:
    """Nanoseconds of an all-reduce of ``message_bytes`` among k ``members``, without losses and jitter.

    * ``ring``, in the order given: 2 (k - 1) steps, in each of which every member sends 1/k of the bytes to the next one;
      a step takes as long as on the slowest of the ring's links. With half duplex NICs sending and receiving take turns.
    * ``tree``: binomial, reduced to its root and broadcast back: 2 ceil(log2 k) steps of all the bytes on the slowest of
      the tree's links.

    (`Thakur, Rabenseifner, Gropp: Optimization of collective communication operations in MPICH`, 2005, recalled.)

    Args:
        links: what a message takes.
        members: (k,) worker numbers.
        message_bytes: of each member's vector.
        seed: of the links' latencies.
        kind: "ring" or "tree".
    """
    k = len(members)
    if k < 2:
        return 0.0
    if kind == "ring":
        sources, targets = members, np.roll(members, -1)
        steps, part = 2 * (k - 1), message_bytes / k * (2 if links.duplex == "half" else 1)
    else:
        child = np.arange(1, k)
        parent = child & (child - 1)
        sources = members[np.concatenate([child, parent])]
        targets = members[np.concatenate([parent, child])]
        steps, part = 2 * int(k - 1).bit_length(), message_bytes
    latency_ns, ns_per_byte = links.arc_arrays(sources, targets, seed)
    return steps * float((latency_ns + part * ns_per_byte).max())


class Collective:
    """The all-reduces of one run, each set of members computed once.

    A lost message is sent again, which takes the collective as much longer as messages are sent more often on average:
    1 / (1 - mean loss). Jitter is left out: a step is as slow as its mean.

    Args:
        cluster: its links and losses.
        kind: "ring" or "tree".
        message_bytes: of each member's vector.
        seed: of the links' latencies.
        collective_s: every all-reduce takes so many seconds instead.
    """

    def __init__(
        self, cluster: Cluster, kind: str, message_bytes: float, seed: int, collective_s: float | None = None
    ) -> None:
        links = cluster.links
        self._imposed_ns = None if collective_s is None else round(collective_s * 1e9)
        self._links, self._kind, self._bytes, self._seed = links, kind, message_bytes, seed
        self._again = 1 / (1 - cluster.faults.mean_loss)
        # Where all links are alike only the number of members matters.
        self._alike = (
            isinstance(links, Links)
            and not links.latency_sigma
            and not any(isinstance(value, tuple) for value in vars(links).values())
        )
        self._known: dict[int | bytes, int] = {}

    def ns(self, members: np.ndarray) -> int:
        """Nanoseconds among the workers where the mask ``members`` (n,) is true."""
        if self._imposed_ns is not None:
            return self._imposed_ns
        key = int(np.count_nonzero(members)) if self._alike else members.tobytes()
        if key not in self._known:
            who = np.flatnonzero(members)
            self._known[key] = round(
                self._again * all_reduce_ns(self._links, who, self._bytes, self._seed, self._kind)
            )
        return self._known[key]
