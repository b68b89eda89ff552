"""Optical units in a topology: nodes that hold no copy of the model and serve the workers they are linked to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx
import numpy as np

from decentral.errors import InvalidInput, check_integer, check_number, suggest
from decentral.hardware import OpticalDevice, optical_unit

LINK = ("latency_s", "bandwidth_bytes_per_s")
KEYS = ("device", "name", "serves", "count", "workers_per_unit", *LINK)
"""What a table of units may say."""


@dataclasses.dataclass(frozen=True)
class UnitNode:
    """One optical unit, the workers it serves, and the link between it and them.

    The link carries one message at a time each way, first come first served; the unit serves one request at a time.

    Args:
        name: how tables and charts call it.
        device: a name of ``decentral.hardware.OPTICAL_UNITS``, or the beginning of one.
        serves: the workers, each once.
        latency_s: of the link, one way.
        bandwidth_bytes_per_s: of the link, one way; None: that of the unit's own.

    Raises:
        InvalidInput: it serves nobody, or somebody twice; an unknown device; a latency or bandwidth that is none.
    """

    name: str
    device: str
    serves: tuple[int, ...]
    latency_s: float = 0.0
    bandwidth_bytes_per_s: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.device, str):
            raise InvalidInput("topology.units.device", self.device, "the name of a known optical unit")
        device = optical_unit(self.device)
        serves = tuple(
            check_integer(f"topology.units: workers of {self.name}", worker, 0) for worker in self.serves
        )
        if not serves:
            raise InvalidInput("topology.units", f"{self.name} serves nobody", "workers that a unit serves")
        if len(set(serves)) < len(serves):
            raise InvalidInput("topology.units", f"{self.name} serves a worker twice", "each worker once")
        latency_s = check_number("topology.units.latency_s", self.latency_s, 0, math.inf)
        bandwidth = (
            device.link_bytes_per_s if self.bandwidth_bytes_per_s is None else self.bandwidth_bytes_per_s
        )
        if bandwidth != math.inf:
            check_number("topology.units.bandwidth_bytes_per_s", bandwidth, 0, math.inf, above=True)
        for field, value in (
            ("name", str(self.name)),
            ("device", device.name),
            ("serves", tuple(sorted(serves))),
            ("latency_s", float(latency_s)),
            ("bandwidth_bytes_per_s", float(bandwidth)),
        ):
            object.__setattr__(self, field, value)

    @property
    def hardware(self) -> OpticalDevice:
        """The device's numbers."""
        return optical_unit(self.device)

    def as_dict(self) -> dict[str, Any]:
        """Plain data that JSON can hold; ``units_from`` reads it."""
        return dataclasses.asdict(self) | {"serves": list(self.serves)}


def check_units(units: Sequence[UnitNode], n: int) -> tuple[UnitNode, ...]:
    """The units of a topology of n workers.

    Raises:
        InvalidInput: a worker that is not there, or is served by two units; two units of one name.
    """
    server: dict[int, str] = {}
    names: set[str] = set()
    for unit in units:
        if not isinstance(unit, UnitNode):
            raise InvalidInput(
                "topology.units", unit, "UnitNode objects", "named(..., units=...) takes tables."
            )
        if unit.name in names:
            raise InvalidInput("topology.units", f"two units called {unit.name}", "different names")
        names.add(unit.name)
        for worker in unit.serves:
            if worker >= n:
                raise InvalidInput(
                    "topology.units", f"{unit.name} serves worker {worker}", f"workers 0 to {n - 1}"
                )
            if worker in server:
                got = f"worker {worker} is served by {server[worker]} and {unit.name}"
                raise InvalidInput("topology.units", got, "at most one unit for each worker")
            server[worker] = unit.name
    return tuple(units)


def places(units: Sequence[UnitNode], n: int) -> np.ndarray:
    """(n,) int64: the place in ``units`` of the unit that serves each of n workers, -1 for none."""
    found = np.full(n, -1)
    for number, unit in enumerate(units):
        found[list(unit.serves)] = number
    return found


def units_from(given: Any, n: int) -> tuple[UnitNode, ...]:
    """Units of n workers from what a user writes.

    Args:
        given: None; :class:`UnitNode` objects; a table, or a list of tables, with ``device`` and, each if wanted, ``name``,
            ``latency_s``, ``bandwidth_bytes_per_s`` and one of

            - ``serves``: a list of workers;
            - ``count``: so many units alike, the workers dealt out to them in blocks (1 unless said otherwise);
            - ``workers_per_unit``: as many units as that takes.
        n: workers.

    Raises:
        InvalidInput: as :class:`UnitNode` and :func:`check_units`, and unknown keys.
    """
    if given is None:
        return ()
    if isinstance(given, Mapping | UnitNode):
        given = [given]
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InvalidInput(
            "topology.units", given, "a table with device, count, latency_s, ... or a list of them"
        )
    units: list[UnitNode] = []
    for one in given:
        units += [one] if isinstance(one, UnitNode) else _read(one, n, len(units))
    return check_units(units, n)


def _read(table: Any, n: int, first: int) -> list[UnitNode]:
    """The units of one table; their numbers begin with ``first``."""
    if not isinstance(table, Mapping):
        raise InvalidInput("topology.units", table, "a table with device, count, latency_s, ...")
    table = {key: value for key, value in table.items() if value is not None}
    for key in table:
        if key not in KEYS:
            raise InvalidInput(f"topology.units.{key}", table[key], "a key of units", suggest(str(key), KEYS))
    if "device" not in table:
        raise InvalidInput("topology.units.device", None, "the name of a known optical unit")
    ways = [key for key in ("serves", "count", "workers_per_unit") if key in table]
    if len(ways) > 1:
        raise InvalidInput("topology.units", " and ".join(ways), "one of serves, count and workers_per_unit")
    if "serves" in table:
        if isinstance(table["serves"], str) or not isinstance(table["serves"], Sequence):
            raise InvalidInput("topology.units.serves", table["serves"], "a list of workers")
        blocks = [tuple(table["serves"])]
    elif "workers_per_unit" in table:
        size = check_integer("topology.units.workers_per_unit", table["workers_per_unit"], 1)
        blocks = [tuple(range(k, min(k + size, n))) for k in range(0, n, size)]
    else:
        count = check_integer("topology.units.count", table.get("count", 1), 1)
        if count > n:
            got = f"{count} units for {n} workers"
            raise InvalidInput("topology.units.count", got, "at most one unit for each worker")
        blocks = [tuple(part.tolist()) for part in np.array_split(np.arange(n), count)]
    given = table.get("name")
    link = {key: table[key] for key in LINK if key in table}
    return [
        UnitNode(
            f"unit {first + k}" if given is None else f"{given} {k}" if len(blocks) > 1 else str(given),
            table["device"],
            block,
            **link,
        )
        for k, block in enumerate(blocks)
    ]


# -- as nodes of a graph -----------------------------------------------------------------------------------------------


def with_units(graph: nx.Graph, units: Sequence[UnitNode]) -> nx.Graph:
    """A copy of a graph on workers 0 .. n-1 with a node for each unit, which :func:`units_of_graph` takes out again."""
    whole = graph.copy()
    for unit in units:
        whole.add_node(unit.name, optical=unit.device)
        link = {key: getattr(unit, key) for key in LINK}
        whole.add_edges_from((unit.name, worker, link) for worker in unit.serves)
    return whole


def units_of_graph(graph: nx.Graph) -> tuple[nx.Graph, list[tuple[Any, str, list, dict[str, Any]]]]:
    """``(graph of the workers, units)``: nodes with the attribute ``optical`` are units, and no workers.

    Returns:
        Of each unit its node, its device, the nodes it serves, and its link.

    Raises:
        InvalidInput: two units are joined; a unit serves nobody; its edges do not agree on its link.
    """
    devices = nx.get_node_attributes(graph, "optical")
    if not devices:
        return graph, []
    found = []
    for node, device in devices.items():
        links: dict[str, Any] = {}
        for other, attributes in graph.adj[node].items():
            if other in devices:
                raise InvalidInput(
                    "graph",
                    f"an edge between the units {node!r} and {other!r}",
                    "edges from units to workers",
                )
            several = attributes.values() if graph.is_multigraph() else (attributes,)
            for edge in several:
                for key in LINK:
                    value = edge.get(key)
                    if key in links and links[key] != value:
                        got = f"{key} {links[key]} and {value} on edges of {node!r}"
                        raise InvalidInput("graph", got, "the same on all edges of a unit: it has one link")
                    links[key] = value
        link = {key: value for key, value in links.items() if value is not None}
        found.append((node, device, list(graph.adj[node]), link))
    workers = nx.Graph(graph) if not graph.is_multigraph() else graph.copy()
    workers.remove_nodes_from(devices)
    return workers, found
