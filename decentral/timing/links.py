"""How long a message takes: latency plus transmission, per directed link.

The latency of a link i -> j is drawn once and kept, so messages on a link stay in order; what varies from message to
message is the transmission, bytes x ns_per_byte x jitter. Queues (links, NICs) are the event loop's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import numpy as np
from numba import njit

from decentral.errors import InvalidInput, check_integer, check_number, suggest
from decentral.timing.compute import LONGEST_NS, standard_normal
from decentral.timing.tapes import Purpose, _uniform, philox, uniform_runs

JITTERS = {"none": 0, "exponential": 1, "log_normal": 2}
"""The kinds of jitter and their codes in :func:`jitter_factor`."""
_LINK_JITTER = int(Purpose.LINK_JITTER)


@njit(cache=True)
def jitter_factor(kind, sigma, seed, i, j, count):
    """By how much the transmission of message ``count`` on link i -> j is longer: a factor of mean 1. For numba loops.

    Args:
        kind: a value of ``JITTERS``; :attr:`LinkModel.jitter_code`.
        sigma: standard deviation of the logarithm, for kind 2.
        seed: the tape's seed.
        i: the sender.
        j: the receiver.
        count: number of the message among those from i to j, from 0. A message has a block of the tape to itself.
    """
    if kind == 0:
        return 1.0
    block = philox(
        np.uint64(seed), np.uint64(_LINK_JITTER), np.uint64(count), np.uint64(i), np.uint64(j), np.uint64(0)
    )
    exponential = -np.log1p(-_uniform(block[0]))
    if kind == 1:
        return exponential
    normal = np.sqrt(2 * exponential) * np.cos(2 * np.pi * _uniform(block[1]))  # Box and Muller
    return np.exp(sigma * normal - sigma * sigma / 2)


def _check_rate(name: str, rate: float) -> None:
    """Bytes per second: positive, infinity included."""
    if not (isinstance(rate, float) and rate == math.inf):
        check_number(f"cluster.links.{name}", rate, 0, math.inf, above=True)


def _check_latency(name: str, latency: float) -> None:
    check_number(f"cluster.links.{name}", latency, 0, math.inf)


def _each(value: float | tuple[float, ...], workers: np.ndarray) -> np.ndarray:
    """The value of each worker, from one for all or a tuple cycled over the workers."""
    values = np.atleast_1d(np.asarray(value, np.float64))
    return values[workers % len(values)]


def _check_nics(name: str, nic: float | tuple[float, ...]) -> None:
    if isinstance(nic, tuple) and not nic:
        raise InvalidInput(f"cluster.links.{name}", nic, "at least one bandwidth")
    for rate in nic if isinstance(nic, tuple) else (nic,):
        _check_rate(name, rate)


@dataclass(frozen=True)
class LinkModel:
    """What all networks share.

    Args:
        latency_sigma: each directed link's latency is drawn once, log-normal with the given latency as its mean and this
            standard deviation of the logarithm; i -> j and j -> i differ.
        duplex: "full": a NIC sends and receives at the same time; "half": one of the two. For event loops that queue.
        jitter: factor on the transmission time of each message: "none", "exponential" (mean 1), "log_normal" (mean 1).
        jitter_sigma: standard deviation of the logarithm of a log-normal jitter.
    """

    _: KW_ONLY
    latency_sigma: float = 0.0
    duplex: str = "full"
    jitter: str = "none"
    jitter_sigma: float = 0.3

    def __post_init__(self) -> None:
        for name in ("latency_sigma", "jitter_sigma"):
            _check_latency(name, getattr(self, name))
        for name, allowed in (("duplex", ("full", "half")), ("jitter", JITTERS)):
            value = getattr(self, name)
            if value not in allowed:
                raise InvalidInput(
                    f"cluster.links.{name}", value, "a known kind", suggest(str(value), allowed)
                )

    @property
    def jitter_code(self) -> int:
        """``kind`` of :func:`jitter_factor`."""
        return JITTERS[self.jitter]

    def base(self, sources: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``(latency_s, bytes_per_s)`` of each link before any draw, shapes (A,)."""
        raise NotImplementedError

    def ports(self, sources: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``(out, into)``: the NICs that each link's messages leave and enter by, numbers from 0, or -1 for none; (A,)."""
        return np.asarray(sources, np.int64), np.asarray(targets, np.int64)

    def arc_arrays(
        self, sources: np.ndarray, targets: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """What a message takes on each directed link.

        Args:
            sources: (A,) senders.
            targets: (A,) receivers.
            seed: of the tapes; the draw is keyed by (sender, receiver).

        Returns:
            ``(latency_ns, ns_per_byte)``: int64 and float64, shapes (A,). ns_per_byte is 0 where bandwidth is infinite.
        """
        sources, targets = np.asarray(sources, np.int64), np.asarray(targets, np.int64)
        latency_s, bytes_per_s = self.base(sources, targets)
        if self.latency_sigma:
            nil = np.zeros(len(sources), np.int64)
            uniform = uniform_runs(seed, int(Purpose.LINK_LATENCY), sources, targets, nil, nil + 1)
            latency_s = latency_s * np.exp(
                self.latency_sigma * standard_normal(uniform) - self.latency_sigma**2 / 2
            )
        return np.rint(np.minimum(latency_s * 1e9, LONGEST_NS)).astype(np.int64), 1e9 / bytes_per_s


@dataclass(frozen=True)
class Links(LinkModel):
    """Every link alike.

    Args:
        latency_s: mean seconds from the last byte sent to the last byte received.
        bandwidth_bytes_per_s: of each link.
        nic_bytes_per_s: of each worker's network card, one for all or a tuple cycled over the workers. A message moves at
            the smallest of its link's and both cards' rates.
        up_bytes_per_s: the same for what a worker sends only: broadband is slower up than down.
        down_bytes_per_s: the same for what a worker receives only.
        latency_sigma: see :class:`LinkModel`, as for the rest.
        duplex: full or half.
        jitter: none, exponential or log_normal.
        jitter_sigma: of the logarithm.
    """

    latency_s: float = 0.0
    bandwidth_bytes_per_s: float = math.inf
    nic_bytes_per_s: float | tuple[float, ...] = math.inf
    up_bytes_per_s: float | tuple[float, ...] = math.inf
    down_bytes_per_s: float | tuple[float, ...] = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_latency("latency_s", self.latency_s)
        _check_rate("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)
        for name in ("nic_bytes_per_s", "up_bytes_per_s", "down_bytes_per_s"):
            _check_nics(name, getattr(self, name))

    def base(self, sources: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`LinkModel.base`."""
        out = np.minimum(_each(self.nic_bytes_per_s, sources), _each(self.up_bytes_per_s, sources))
        into = np.minimum(_each(self.nic_bytes_per_s, targets), _each(self.down_bytes_per_s, targets))
        rate = np.minimum(np.minimum(out, into), self.bandwidth_bytes_per_s)
        return np.full(len(sources), float(self.latency_s)), rate


@dataclass(frozen=True)
class NodeLinks(LinkModel):
    """A machine room: worker w sits in node w // node_size; links within a node are not those between nodes.

    Args:
        node_size: workers per node.
        intra_latency_s: within a node, mean seconds.
        intra_bytes_per_s: within a node.
        inter_latency_s: between nodes, mean seconds.
        inter_bytes_per_s: between nodes, of each link.
        nic_bytes_per_s: of a node's network cards together, which its workers share (:meth:`ports`).
        latency_sigma: see :class:`LinkModel`, as for the rest.
        duplex: full or half.
        jitter: none, exponential or log_normal.
        jitter_sigma: of the logarithm.
    """

    node_size: int
    intra_latency_s: float = 0.0
    intra_bytes_per_s: float = math.inf
    inter_latency_s: float = 0.0
    inter_bytes_per_s: float = math.inf
    nic_bytes_per_s: float = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("cluster.links.node_size", self.node_size, 1)
        for name in ("intra_latency_s", "inter_latency_s"):
            _check_latency(name, getattr(self, name))
        for name in ("intra_bytes_per_s", "inter_bytes_per_s", "nic_bytes_per_s"):
            _check_rate(name, getattr(self, name))

    def base(self, sources: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`LinkModel.base`."""
        same = sources // self.node_size == targets // self.node_size
        between = min(self.inter_bytes_per_s, self.nic_bytes_per_s)
        return (
            np.where(same, float(self.intra_latency_s), float(self.inter_latency_s)),
            np.where(same, float(self.intra_bytes_per_s), float(between)),
        )

    def ports(self, sources: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`LinkModel.ports`: a node's workers share port number node; none is passed within a node."""
        out, into = np.asarray(sources) // self.node_size, np.asarray(targets) // self.node_size
        return np.where(out == into, -1, out), np.where(out == into, -1, into)


@dataclass(frozen=True)
class TableLinks(LinkModel):
    """Sites with a measured or computed latency between every two: worker w is at site w % sites.

    Args:
        latency_s: (sites, sites) mean seconds from row to column; the diagonal is not used.
        bandwidth_bytes_per_s: between sites: one for all, or (sites, sites), where the diagonal is not used.
        same_latency_s: between workers of one site.
        same_bytes_per_s: between workers of one site.
        nic_bytes_per_s: of each worker, one for all or a tuple cycled over the workers.
        latency_sigma: see :class:`LinkModel`, as for the rest.
        duplex: full or half.
        jitter: none, exponential or log_normal.
        jitter_sigma: of the logarithm.
    """

    latency_s: tuple[tuple[float, ...], ...]
    bandwidth_bytes_per_s: float | tuple[tuple[float, ...], ...] = math.inf
    same_latency_s: float = 0.0
    same_bytes_per_s: float = math.inf
    nic_bytes_per_s: float | tuple[float, ...] = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_latency("same_latency_s", self.same_latency_s)
        _check_rate("same_bytes_per_s", self.same_bytes_per_s)
        _check_nics("nic_bytes_per_s", self.nic_bytes_per_s)
        self._check_table("latency_s", self.latency_s, _check_latency)
        if isinstance(self.bandwidth_bytes_per_s, tuple):
            self._check_table("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s, _check_rate)
        else:
            _check_rate("bandwidth_bytes_per_s", self.bandwidth_bytes_per_s)

    def _check_table(self, name: str, table: tuple, check: Callable[[str, float], None]) -> None:
        sites = len(self.latency_s) if isinstance(self.latency_s, tuple) else 0
        rows = table if isinstance(table, tuple) else ()
        if not sites or len(rows) != sites or any(not isinstance(r, tuple) or len(r) != sites for r in rows):
            raise InvalidInput(f"cluster.links.{name}", table, "a square table, a row and a column per site")
        for i, row in enumerate(rows):
            for j, value in enumerate(row):
                if i != j:
                    check(f"{name}[{i}][{j}]", value)

    def base(self, sources: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`LinkModel.base`."""
        latency = np.array(self.latency_s, np.float64)
        sites = len(latency)
        bandwidth = np.array(np.broadcast_to(self.bandwidth_bytes_per_s, (sites, sites)), np.float64)
        np.fill_diagonal(latency, self.same_latency_s)
        np.fill_diagonal(bandwidth, self.same_bytes_per_s)
        nics = np.minimum(_each(self.nic_bytes_per_s, sources), _each(self.nic_bytes_per_s, targets))
        arc = sources % sites, targets % sites
        return latency[arc], np.minimum(bandwidth[arc], nics)


LINKS: dict[str, Callable[..., LinkModel]] = {"uniform": Links, "nodes": NodeLinks, "table": TableLinks}
"""The kinds of ``cluster.links`` in a spec."""
