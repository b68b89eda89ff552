"""What happens between workers: bytes, seconds and memory of each algorithm, for one step of a worker.

A worker may be an island of many devices. Messages then go between equal ranks of the islands: every device sends its own part of
the model, and all devices of a node share its NICs. ``Between`` has these groups; a method's function turns it into an
``Exchange``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from decentral.cost import network
from decentral.cost.cluster import MEMORY_FRACTION, Cluster
from decentral.cost.kernels import Constants
from decentral.cost.layout import Layout
from decentral.cost.step import CONSTANTS, Step, overlapped, reduced_behind
from decentral.errors import suggest
from decentral.hardware import OPTICAL_UNITS

GRAPHS = ("complete", "ring")
PROJECTORS = ("dense", "hadamard", "optical")


@dataclass(frozen=True)
class Algorithm:
    """An algorithm and its numbers. Which of them a kind has stands in :data:`METHODS`.

    Args:
        kind: a key of ``METHODS``.
        name: in reports; None: its kind.
        local_steps: steps between two exchanges (H).
        fragments: parts of the model that are synchronised in turn.
        delay_steps: steps an exchange may take before its result is used.
        message_bits: of a number that is sent; None: the kind's own.
        exchanges_per_gradient: of one worker, in the mean.
        graph: "complete" or "ring": whom a worker meets.
        overlap: exchanges happen while the next gradient is computed.
        projector: of DFA's error: "dense", "hadamard" or "optical".
        unit: the optical unit, by name; one beside each device.
    """

    kind: str = "ddp"
    name: str | None = None
    local_steps: Any = None
    fragments: Any = None
    delay_steps: Any = None
    message_bits: Any = None
    exchanges_per_gradient: Any = None
    graph: str | None = None
    overlap: bool | None = None
    projector: str | None = None
    unit: str | None = None

    def problems(self) -> list[str]:
        """A sentence for everything that is wrong."""
        if self.kind not in METHODS:
            return [f"algorithm.kind: got {self.kind!r}. {suggest(str(self.kind), METHODS)}"]
        wrong, has = [], METHODS[self.kind].options
        for one in fields(self)[2:]:
            value = getattr(self, one.name)
            if value is not None and one.name not in has:
                allowed = ", ".join(has) or "none"
                wrong.append(f"algorithm.{one.name}: {self.kind} has no such number; it has: {allowed}")
            elif one.name in ("overlap", "graph", "projector", "unit") or value is None:
                continue
            elif not np.all(np.isfinite(value)) or np.any(np.asarray(value) <= 0):
                wrong.append(f"algorithm.{one.name}: got {value!r}; allowed: a number above 0")
        if self.graph is not None and self.graph not in GRAPHS:
            wrong.append(f"algorithm.graph: got {self.graph!r}; allowed: {', '.join(GRAPHS)}")
        if self.projector is not None and self.projector not in PROJECTORS:
            wrong.append(f"algorithm.projector: got {self.projector!r}; allowed: {', '.join(PROJECTORS)}")
        if self.unit is not None and self.unit not in OPTICAL_UNITS:
            wrong.append(f"algorithm.unit: got {self.unit!r}. {suggest(str(self.unit), OPTICAL_UNITS)}")
        return wrong

    def get(self, option: str) -> Any:
        """An option as given, or the kind's default."""
        value = getattr(self, option)
        return METHODS[self.kind].options[option] if value is None else value

    def exchange(self, group: Between) -> Exchange:
        """What this algorithm adds to a step of a worker."""
        return METHODS[self.kind].exchange(self, group)

    @property
    def label(self) -> str:
        """For reports."""
        return self.name or self.kind


@dataclass(frozen=True)
class Between:
    """The groups of equal ranks of all workers, and what one of their devices sends.

    Attributes:
        n: workers.
        per_node: workers of one node; 1 where a worker fills it.
        parameters: numbers in one message of one device.
        cluster: what joins them.
        step: of one worker.
        constants: what no data sheet says.
        micro_batches: of a step.
        overlap: whether the layout lets exchanges overlap, where the algorithm does not say.
    """

    n: Any
    per_node: Any
    parameters: Any
    cluster: Cluster
    step: Step
    constants: Constants
    micro_batches: Any
    overlap: bool = True

    @property
    def compute_s(self) -> Any:
        """One step of a worker alone."""
        return self.step.total_s

    def all_reduce_s(self, size: Any) -> Any:
        """Between all workers."""
        return network.all_reduce_s(size, self.n, self.per_node, self.cluster)

    def exchange_s(self, size: Any, crossing: Any) -> Any:
        """Messages both ways between two workers, of which a share ``crossing`` are on different nodes.

        Those that leave a node have 1 / node_size of its links each: then a round takes as long as the node's links
        need for all that leaves, node_size crossing size / bandwidth.
        """
        out = network.send_s(size, self.cluster.node_size, self.cluster)
        inside = network.send_s(size, 1.0, self.cluster, crosses=False)
        return self.among(crossing * out + (1 - crossing) * inside)

    def among(self, value: Any) -> Any:
        """``value``, and 0 where there is one worker, which has nobody to meet."""
        return np.where(np.asarray(self.n) > 1, value, 0.0)

    @property
    def leaving(self) -> Any:
        """Of what a ring of all workers passes on, the share that leaves a node."""
        return np.where(np.asarray(self.n) > self.per_node, 1 / np.asarray(self.per_node, float), 0.0)

    def crossing(self, graph: str) -> Any:
        """Share of a graph's edges that join different nodes, workers numbered node after node."""
        n, per_node = np.asarray(self.n, float), np.minimum(np.asarray(self.per_node, float), self.n)
        if graph == "complete":
            return np.where(n > per_node, (n - per_node) / np.maximum(n - 1, 1), 0.0)
        return np.where(n > per_node, 1 / per_node, 0.0)


def between(layout: Layout, cluster: Cluster, step: Step, constants: Constants = CONSTANTS) -> Between:
    """The groups of a layout: islands of tp pp cp replicas devices, numbered node after node.

    Devices of an island that hold the same parameters share what is sent: each sends its part, and what comes back is
    gathered inside, where links are quick.
    """
    n = layout.n_workers
    island = layout.devices / n
    per_node = np.clip(np.floor(cluster.node_size / island), 1, n)
    return Between(
        n, per_node, step.held.shard, cluster, step, constants, layout.micro_batches, layout.overlap
    )


class Exchange(NamedTuple):
    """What an algorithm adds to a step of a worker.

    Attributes:
        exposed_s: seconds per step in which nothing is computed, or computed more slowly.
        busy_s: seconds per step in which the worker's links are in use for it.
        sent_bytes: by one device per step.
        batch: samples to an update over the batch that was asked for; above 1 where workers compute on while they wait.
        leaving: share of ``sent_bytes`` that leaves the node.
    """

    exposed_s: Any
    busy_s: Any
    sent_bytes: Any
    batch: Any = 1.0
    leaving: Any = 0.0


# -- one function for each way of communicating -------------------------------------------------------------------------


def _bytes(algorithm: Algorithm, group: Between) -> Any:
    return group.parameters * np.asarray(algorithm.get("message_bits"), float) / 8


def _reduced(group: Between, size: Any) -> Any:
    return 2 * (np.asarray(group.n, float) - 1) / group.n * size


def _felt_s(algorithm: Algorithm, group: Between, busy_s: Any) -> Any:
    """Seconds that an exchange beside the next gradient adds, or all of it where nothing overlaps."""
    overlaps = (
        algorithm.overlap if algorithm.overlap is not None else algorithm.get("overlap") and group.overlap
    )
    return overlapped(group.compute_s, busy_s, group.constants.interference) if overlaps else busy_s


def ddp(algorithm: Algorithm, group: Between) -> Exchange:
    """Gradients reduced bucket by bucket while the last micro-batch goes backward; the last bucket after it."""
    size = _bytes(algorithm, group)
    busy = group.all_reduce_s(size)
    exposed = busy
    if algorithm.overlap if algorithm.overlap is not None else group.overlap:
        exposed = reduced_behind(group.step.window_s, busy, size, group.constants.interference)
    return Exchange(exposed, busy, _reduced(group, size), leaving=group.leaving)


def periodic(algorithm: Algorithm, group: Between) -> Exchange:
    """Everybody stops every H steps and averages."""
    size = _bytes(algorithm, group)
    busy = group.all_reduce_s(size) / algorithm.get("local_steps")
    return Exchange(busy, busy, _reduced(group, size) / algorithm.get("local_steps"), leaving=group.leaving)


def streaming(algorithm: Algorithm, group: Between) -> Exchange:
    """A fragment at a time, each every H steps, while training goes on for ``delay_steps`` steps."""
    parts, local_steps = algorithm.get("fragments"), algorithm.get("local_steps")
    size = _bytes(algorithm, group) / parts
    each = group.all_reduce_s(size)
    exposed = overlapped(algorithm.get("delay_steps") * group.compute_s, each, group.constants.interference)
    often = np.asarray(parts, float) / local_steps
    return Exchange(exposed * often, each * often, _reduced(group, size) * often, leaving=group.leaving)


def paired(algorithm: Algorithm, group: Between) -> Exchange:
    """Every H steps one average with one other worker, while everybody stops (NoLoCo)."""
    size, crossing = _bytes(algorithm, group), group.crossing("complete")
    busy = group.exchange_s(size, crossing) / algorithm.get("local_steps")
    return Exchange(busy, busy, group.among(size / algorithm.get("local_steps")), leaving=crossing)


def delayed(algorithm: Algorithm, group: Between) -> Exchange:
    """The last step's gradients are reduced while this step's are computed (DPU; WP guesses the parameters that come)."""
    size = _bytes(algorithm, group)
    busy = group.all_reduce_s(size)
    exposed = overlapped(group.compute_s, busy, group.constants.interference)
    return Exchange(exposed, busy, _reduced(group, size), leaving=group.leaving)


def accumulate(algorithm: Algorithm, group: Between) -> Exchange:
    """Two half rounds to an update, each reduces gradients and gathers parameters while the next is computed (ACCO).

    A worker accumulates micro-batches until the collective is done: nothing waits, and the batch grows instead.
    """
    size = _bytes(algorithm, group)
    each = 2 * network.gather_s(size, group.n, group.per_node, group.cluster)
    half = group.compute_s / 2
    micro_s = group.compute_s / group.micro_batches
    batch = np.maximum(1.0, np.ceil(each / micro_s - 1e-9) * micro_s / half)
    # per step of the batch asked for: a round is `batch` of them
    felt = group.constants.interference * np.minimum(each, half * batch) * 2 / batch
    return Exchange(felt, 2 * each / batch, 2 * _reduced(group, size) / batch, batch, group.leaving)


def pairwise(algorithm: Algorithm, group: Between) -> Exchange:
    """Averages with one neighbour at a time, in a thread beside the gradients.

    Where the links cannot keep up with the rate asked for, a step lasts as long as its exchanges. Mixing reads two models
    and writes one.
    """
    size, rate = _bytes(algorithm, group), np.asarray(algorithm.get("exchanges_per_gradient"), float)
    crossing = group.crossing(algorithm.get("graph"))
    busy = rate * group.exchange_s(size, crossing)
    mixing = group.among(rate * 3 * size / (group.cluster.memory_bytes_per_s * MEMORY_FRACTION))
    return Exchange(
        _felt_s(algorithm, group, busy) + mixing, busy, group.among(rate * size), leaving=crossing
    )


def neighbours(algorithm: Algorithm, group: Between) -> Exchange:
    """Every step a model to and from both neighbours of a ring."""
    size, crossing = _bytes(algorithm, group), group.crossing("ring")
    busy = 2 * group.exchange_s(size, crossing)
    return Exchange(_felt_s(algorithm, group, busy), busy, group.among(2 * size), leaving=crossing)


def one_peer(algorithm: Algorithm, group: Between) -> Exchange:
    """Round k: a model to the worker 2^k further on. Hops shorter than a node stay inside, longer ones share its NICs.

    A long round runs on under the next, short one: the mean of all rounds is set against a step. (Set against it one by one
    they would take longer, and already the mean is more than what Wang et al. measured.)
    """
    size, n = _bytes(algorithm, group), np.asarray(group.n, float)
    hops = np.maximum(np.ceil(np.log2(np.maximum(n, 2))), 1)
    outside = np.where(n > group.per_node, 1 - np.minimum(np.log2(group.per_node), hops) / hops, 0.0)
    busy = outside * group.exchange_s(size, 1.0) + (1 - outside) * group.exchange_s(size, 0.0)
    return Exchange(_felt_s(algorithm, group, busy), busy, group.among(size), leaving=outside)


def alternating(algorithm: Algorithm, group: Between) -> Exchange:
    """Alternating exponential ring that knows its nodes: all-reduce in a node, then over two nodes (Wang et al. 2025).

    The second, a ring of 2 g ranks on two nodes, passes 2 (2 g - 1) / (2 g) of a model through each node's NICs.
    """
    size = _bytes(algorithm, group)
    g = np.minimum(np.asarray(group.per_node, float), group.n)
    inside = network.all_reduce_s(size, g, g, group.cluster)
    pair = network.all_reduce_s(size, np.minimum(2 * g, group.n), g, group.cluster)
    busy = (inside + pair) / 2
    wide = np.maximum(2 * g - 1, 0) / (2 * g)
    sent = group.among(size * ((g - 1) / g + wide))
    leaving = np.where(np.asarray(group.n) > g, wide / g / ((g - 1) / g + wide), 0.0)
    return Exchange(_felt_s(algorithm, group, busy), busy, sent, leaving=leaving)


# -- the table ----------------------------------------------------------------------------------------------------------


class Method(NamedTuple):
    """A row of the table.

    Attributes:
        exchange: its function.
        options: the numbers it has, with their defaults.
        waits: for whom a worker waits before it goes on: "all", "none", or a kind of ``stragglers.partners``.
        vectors: of the size of the parameters that one worker holds as its state, the optimizer's own left out; equal to
            those of the simulated algorithm.
        buffers: further ones, in flight while exchanges overlap with compute (a snapshot, and what is received).
        staleness: updates between a gradient's parameters and its use, in words.
        source: where the row is from.
    """

    exchange: Callable[[Algorithm, Between], Exchange]
    options: dict[str, Any]
    waits: str
    vectors: int
    buffers: int
    staleness: str
    source: str


_GOSSIP = {"exchanges_per_gradient": 1.0, "graph": "complete", "message_bits": 32, "overlap": True}
METHODS = {
    "ddp": Method(ddp, {"message_bits": 16, "overlap": True}, "all", 1, 0, "0", "Li et al. 2020 (recalled)"),
    "fsdp": Method(
        ddp,
        {"message_bits": 16, "overlap": True},
        "all",
        1,
        0,
        "0",
        "Zhao et al., arXiv 2304.11277 (recalled)",
    ),
    "local_sgd": Method(
        periodic, {"local_steps": 8, "message_bits": 32}, "all", 1, 0, "0", "Stich 2019 (recalled)"
    ),
    "diloco": Method(
        periodic,
        {"local_steps": 100, "message_bits": 32},
        "all",
        3,
        0,
        "0",
        "Douillard et al., arXiv 2311.08105 (recalled)",
    ),
    "streaming_diloco": Method(
        streaming,
        {"local_steps": 100, "fragments": 3, "delay_steps": 5, "message_bits": 4},
        "all",
        3,
        1,
        "delay_steps",
        "Douillard et al., arXiv 2501.18512 (recalled)",
    ),
    "noloco": Method(
        paired,
        {"local_steps": 100, "message_bits": 32},
        "pair_ring",
        3,
        0,
        "0",
        "Kolehmainen et al. 2025 (recalled)",
    ),
    "acco": Method(
        accumulate,
        {"message_bits": 16},
        "none",
        1,
        1,
        "1 half round",
        "Nabli et al., arXiv 2406.02613 (read)",
    ),
    "dpu": Method(delayed, {"message_bits": 16}, "all", 1, 1, "1", "Ren et al., arXiv 2101.06840 (recalled)"),
    "wp": Method(
        delayed, {"message_bits": 16}, "all", 1, 1, "1, predicted", "Nabli et al., arXiv 2406.02613 (read)"
    ),
    "adpsgd": Method(
        pairwise, _GOSSIP, "none", 1, 2, "about 1 exchange", "Lian et al., arXiv 1710.06952 (recalled)"
    ),
    "a2cid2": Method(
        pairwise, _GOSSIP, "none", 2, 2, "about 1 exchange", "Nabli et al., arXiv 2306.08289 (read)"
    ),
    "dadao": Method(pairwise, _GOSSIP, "none", 6, 2, "0", "Nabli and Oyallon, arXiv 2208.00779 (read)"),
    "dpsgd": Method(
        neighbours,
        {"message_bits": 32, "overlap": False},
        "ring",
        1,
        0,
        "0",
        "Lian et al., arXiv 1705.09056 (recalled)",
    ),
    "sgp": Method(
        one_peer,
        {"message_bits": 32, "overlap": True},
        "one_peer_exponential",
        1,
        1,
        "0 or 1 step",
        "Assran et al., arXiv 1811.10792 (recalled)",
    ),
    "alternating_ring": Method(
        alternating,
        {"message_bits": 32, "overlap": True},
        "pair_ring",
        1,
        1,
        "1 step",
        "Wang et al. 2025 (recalled)",
    ),
    "petra": Method(
        ddp,
        {"message_bits": 16, "overlap": True},
        "all",
        1,
        0,
        "2 (J - j) / k micro-batches",
        "Rivaud et al., arXiv 2406.02052 (read)",
    ),
    "dfa": Method(
        ddp,
        {"message_bits": 16, "overlap": True, "projector": "dense", "unit": "LightOn OPU Gen-3"},
        "all",
        1,
        0,
        "0",
        "Nøkland, arXiv 1609.01596 (recalled)",
    ),
}
"""Kind -> row, by the names that ``decentral list algorithms`` has where the simulator has the algorithm."""  # fmt: skip
