"""Time of collectives: latency of every hop, bytes over the bandwidth they meet, and the NICs of a node shared.

A group is ``n`` ranks, ``per_node`` of them on each node it spans. All devices of a node communicate at one time: where a
group has one rank on a node of eight, seven other groups share the node's NICs with it.

The quicker of a ring and a double binary tree, with NCCL's latencies of its Simple protocol (read, nccl tuning.cc). What a
payload of S bytes achieves, S / T(S), so grows with S. NCCL's other protocols, which trade bandwidth for latency, are left
out: all-reduces measured below 64 MiB are no quicker than the Simple ring.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from decentral.cost.cluster import Cluster
from decentral.hardware import HARDWARE

_TUNING = HARDWARE["links"]["nccl_tuning_constants"]
_HOPS = _TUNING["hop_latency_us"]
TREE_FRACTION = _TUNING["bw_factors"]["tree"]
"""Of the links' bandwidth, in a tree."""
BASE_S = _TUNING["base_latency_us"]["Simple"] * 1e-6
"""To start a collective."""


def _hop_s(algorithm: str, cluster: Cluster) -> tuple[float, Any]:
    inside, outside = (_HOPS[f"{link}_{algorithm}"]["Simple"] * 1e-6 for link in ("nvlink", "net"))
    return inside, outside + cluster.latency_s


def _payload_s(payload: Any, per_node: Any, nodes: Any, cluster: Cluster) -> Any:
    """Seconds for ``payload`` bytes over the slower of the links a ring crosses."""
    per_node = np.asarray(per_node, float)
    inside = np.where(per_node > 1, payload / cluster.scaleup_bytes_per_s, 0.0)
    sharing = cluster.node_size / per_node
    outside = np.where(nodes > 1, payload * sharing / cluster.node_bytes_per_s, 0.0)
    return np.maximum(inside, outside)


def _ring_s(size: Any, n: Any, per_node: Any, cluster: Cluster, passes: int) -> Any:
    n, per_node = np.asarray(n, float), np.minimum(np.asarray(per_node, float), n)
    nodes = n / per_node
    payload_s = _payload_s(passes * (n - 1) / n * size, per_node, nodes, cluster)
    inside_s, outside_s = _hop_s("ring", cluster)
    crossing = np.where(nodes > 1, nodes / n, 0.0)  # share of the hops that leave a node
    hops_s = passes * (n - 1) * (crossing * outside_s + (1 - crossing) * inside_s)
    return np.where(n > 1, BASE_S + hops_s + payload_s, 0.0)


def _tree_s(size: Any, n: Any, per_node: Any, cluster: Cluster) -> Any:
    n, per_node = np.asarray(n, float), np.minimum(np.asarray(per_node, float), n)
    nodes = n / per_node
    payload_s = _payload_s(2.0 * size / TREE_FRACTION, per_node, nodes, cluster)
    inside_s, outside_s = _hop_s("tree", cluster)
    hops_s = 2 * ((per_node - 1) * inside_s + np.ceil(np.log2(np.maximum(nodes, 1))) * outside_s)
    return np.where(n > 1, BASE_S + hops_s + payload_s, 0.0)


def all_reduce_s(size: Any, n: Any, per_node: Any, cluster: Cluster) -> Any:
    """Sum of ``size`` bytes over ``n`` ranks, on every one: the quicker of a ring and a double binary tree."""
    return np.minimum(_ring_s(size, n, per_node, cluster, 2), _tree_s(size, n, per_node, cluster))


def gather_s(size: Any, n: Any, per_node: Any, cluster: Cluster) -> Any:
    """All-gather of ``size`` bytes from ``n`` shards, or the reduce-scatter that undoes it: a ring."""
    return _ring_s(size, n, per_node, cluster, 1)


def all_to_all_s(inside: Any, outside: Any, n: Any, per_node: Any, cluster: Cluster) -> Any:
    """Every one of ``n`` ranks sends ``inside`` bytes to others of its node and ``outside`` bytes to other nodes.

    Each device has its share of the node's NICs, whoever else sends; both kinds of links are busy at once.
    """
    n, per_node = np.asarray(n, float), np.minimum(np.asarray(per_node, float), n)
    inside_s, outside_s = _hop_s("ring", cluster)
    sent_s = np.maximum(
        inside / cluster.scaleup_bytes_per_s, outside * cluster.node_size / cluster.node_bytes_per_s
    )
    return np.where(n > 1, BASE_S + np.where(n > per_node, outside_s, inside_s) + sent_s, 0.0)


def send_s(size: Any, sharing: Any, cluster: Cluster, *, crosses: Any = True) -> Any:
    """``size`` bytes from one rank to another, both ways at once, while ``sharing`` ranks of the node do the same.

    ``crosses``: between nodes; else inside one.
    """
    inside_s, outside_s = _hop_s("ring", cluster)
    outside = outside_s + size * np.asarray(sharing, float) / cluster.node_bytes_per_s
    return np.where(crosses, outside, inside_s + size / cluster.scaleup_bytes_per_s)
