"""Real networks: who is linked, how far apart and how fast, each number with its source.

A network is a TOML file with the tables ``[graph]``, ``[hardware]``, ``[links]`` and ``[sources]``; topologies/README.md
has the format. Every network of the TopoHub collection is there by name too, given the package topohub.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import math
import tomllib
import warnings
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components, shortest_path

from decentral.errors import InvalidInput, MissingExtra, check_integer, check_number, suggest
from decentral.topology.graphs import TOPOLOGIES
from decentral.topology.network import Topology
from decentral.topology.units import UnitNode, units_from, with_units

FIBRE_KM_PER_S = 200_000.0
"""Two thirds of the speed of light: the refractive index of glass is about 1.5."""
TAGS = ("read", "measured", "derived", "recalled", "assumed")
"""How far a number is known; every entry of ``sources`` starts with one of them and a colon."""
TOPOHUB_BYTES_PER_S = 1.25e9  # 10 Gb/s: the collection says who is linked and how far, not how fast
_NODES = ("intra_latency_s", "intra_bytes_per_s", "inter_latency_s", "inter_bytes_per_s")
_LINKS = {
    "nodes": ("node_size", *_NODES),
    "sites": ("latency_s", "km", "bandwidth_bytes_per_s"),
    "uniform": ("latency_s", "up_bytes_per_s", "down_bytes_per_s"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class RealNetwork:
    """A named network for n workers; see :func:`load_network`.

    Attributes:
        name: as in the file.
        description: one sentence.
        n: number of workers.
        sites: a label per place: a node, a data centre, a home. Worker i is at place i * n_sites // n.
        graph: on 0 .. n-1, who gossips with whom; node attribute ``pos`` (longitude, latitude) where known.
        links: a table of one of three kinds; bytes/s in one direction, latencies one way.

            - ``kind = "nodes"``: ``node_size`` workers per node, worker i on node i // node_size; ``intra_latency_s`` and
              ``intra_bytes_per_s`` of a worker's port inside the node; ``inter_latency_s`` and ``inter_bytes_per_s`` of a
              node's network card(s), which its workers share.
            - ``kind = "sites"``: ``latency_s`` (n, n) float64 array, 0 on the diagonal; ``bandwidth_bytes_per_s`` a
              number, or an (n, n) array (the diagonal means nothing).
            - ``kind = "uniform"``: ``latency_s`` a number, between any two; ``up_bytes_per_s`` and
              ``down_bytes_per_s`` (n,) float64 arrays, what worker i can send and receive.
        hardware: the file's table, empty if it has none: ``device``, ``devices_per_worker`` (1 unless given),
            ``peak_flops_per_s`` of a device and ``efficiency``, the part of it that training reaches.
        sources: dotted key -> where its value is from, e.g. ``"links.inter_bytes_per_s": "measured: ..."``.
        units: optical units that serve the workers.
    """

    name: str
    description: str
    n: int
    sites: tuple[str, ...]
    graph: nx.Graph
    links: dict[str, Any]
    hardware: dict[str, Any]
    sources: dict[str, str]
    units: tuple[UnitNode, ...] = ()

    @property
    def n_sites(self) -> int:
        """How many places the workers are at."""
        return len(self.sites)

    def topology(self, rate: float = 1.0) -> Topology:
        """``graph`` with uniform rates: ``rate`` exchanges per worker and unit time."""
        return Topology.from_graph(self.graph, self.name, rate, units=self.units)


def network_names() -> dict[str, Path]:
    """Name -> file of the networks that come with the package."""
    here = Path(str(resources.files("decentral")))
    for root in (here / "_packaged" / "topologies", here.parent / "topologies"):
        if root.is_dir():
            return {path.stem: path for path in sorted(root.glob("*.toml"))}
    return {}


def load_network(name: str | Path, n: int | None = None) -> RealNetwork:
    """A network by name, from a TOML file, or of TopoHub: ``load_network("topohub:topozoo/Geant2012")``.

    TopoHub's nodes become the workers (of a disconnected network those of the largest component, with a warning); a
    link's delay is its length over 200,000 km/s, the speed of light in fibre, and messages take shortest paths.

    Args:
        name: see :func:`network_names` for those that come with the package.
        n: number of workers, by default the network's own. Where links are of the kind "nodes" it is a multiple of the
            node size, for "sites" their number, for "uniform" anything the graph can be.

    Raises:
        InvalidInput: no such network; a file that is not one; another n.
        MissingExtra: a network of TopoHub without the package topohub.
    """
    if str(name).startswith("topohub:"):
        tables = _topohub(str(name).removeprefix("topohub:"))
    else:
        known = network_names()
        path = known.get(str(name), Path(name))
        if not path.is_file():
            allowed = "a named network, a TOML file, or topohub:GROUP/NAME"
            raise InvalidInput("network", str(name), allowed, suggest(str(name), known))
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidInput("network", str(name), "a TOML file", f"Reading it failed: {error}") from None
    return _build(tables, n)


def network_graph(n: int, name: str = "jean_zay_a100") -> nx.Graph:
    """Who gossips with whom in a named network (:func:`load_network`), and a node for each of its optical units.

    For clusters a ring of nodes, complete inside: worker r of a node is also joined to worker r of the next.
    """
    network = load_network(name, check_integer("topology.n", n, 2))
    return with_units(network.graph, network.units)


# -- from tables to a network ------------------------------------------------------------------------------------------


def _build(tables: Mapping[str, Any], n: int | None) -> RealNetwork:
    _check_keys(
        "network",
        tables,
        ("name", "description", "graph", "links", "hardware", "units", "sources"),
        optional=("hardware", "units"),
    )
    graph, links = _table("graph", tables["graph"]), _table("links", tables["links"])
    kind = links.get("kind")
    if kind not in _LINKS:
        raise InvalidInput("links.kind", kind, "a kind of links", suggest(str(kind), _LINKS))
    if kind == "sites":  # one of the two
        _check_keys("links", links, ("kind", *_LINKS[kind]), optional=("latency_s", "km"))
    else:
        _check_keys("links", links, ("kind", *_LINKS[kind]))
    own = len(graph.get("sites", ())) or graph.get("n")
    n = check_integer("topology.n", own if n is None else n, 2)
    builder = {"nodes": _nodes, "sites": _sites, "uniform": _uniform}[kind]
    sites, built, links = builder(n, graph, links)
    built.name = str(tables["name"])
    return RealNetwork(
        name=built.name,
        description=str(tables["description"]),
        n=n,
        sites=sites,
        graph=built,
        links={"kind": kind} | links,
        hardware=_hardware(tables),
        sources=_flat_sources(_table("sources", tables["sources"])),
        units=units_from(tables.get("units"), n),
    )


def _table(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidInput(name, value, "a table")
    return dict(value)


def _check_keys(name: str, table: Mapping, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    for key in table:
        if key not in keys:
            raise InvalidInput(f"{name}.{key}", table[key], f"a key of {name}", suggest(str(key), keys))
    for key in keys:
        if key not in table and key not in optional:
            raise InvalidInput(f"{name}.{key}", "nothing", f"every key of {name}: {', '.join(keys)}")


def _hardware(tables: Mapping[str, Any]) -> dict[str, Any]:
    if "hardware" not in tables:
        return {}
    table = {"devices_per_worker": 1} | _table("hardware", tables["hardware"])
    _check_keys("hardware", table, ("device", "devices_per_worker", "peak_flops_per_s", "efficiency"))
    return {
        "device": str(table["device"]),
        "devices_per_worker": check_integer("hardware.devices_per_worker", table["devices_per_worker"], 1),
        "peak_flops_per_s": _number("hardware.peak_flops_per_s", table["peak_flops_per_s"]),
        "efficiency": check_number("hardware.efficiency", table["efficiency"], 0, 1, above=True),
    }


def _flat_sources(table: Mapping, prefix: str = "") -> dict[str, str]:
    found = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= _flat_sources(value, f"{prefix}{key}.")
        elif str(value).partition(":")[0] not in TAGS:
            raise InvalidInput(
                f"sources.{prefix}{key}",
                value,
                f"a text that starts with one of {', '.join(TAGS)}, and a colon",
            )
        else:
            found[prefix + key] = str(value)
    return found


def _nodes(n: int, graph: dict, links: dict) -> tuple[tuple[str, ...], nx.Graph, dict]:
    _check_keys("graph", graph, ("kind", "n"))
    if graph["kind"] != "nodes":
        raise InvalidInput("graph.kind", graph["kind"], '"nodes", as links.kind says')
    size = check_integer("links.node_size", links["node_size"], 1)
    if n % size:
        raise InvalidInput("topology.n", n, f"a multiple of {size}, the workers of a node")
    numbers = {key: _number(f"links.{key}", links[key]) for key in _NODES}
    count = n // size
    built = nx.empty_graph(n)
    for node in range(count):
        workers, following = range(node * size, (node + 1) * size), (node + 1) % count * size
        built.add_edges_from(itertools.combinations(workers, 2))
        if count > 1:
            built.add_edges_from((i, following + i % size) for i in workers)
    return tuple(f"node {k}" for k in range(count)), built, {"node_size": size} | numbers


def _sites(n: int, graph: dict, links: dict) -> tuple[tuple[str, ...], nx.Graph, dict]:
    _check_keys("graph", graph, ("kind", "sites", "coordinates", "edges"), optional=("coordinates", "edges"))
    if graph["kind"] != "sites":
        raise InvalidInput("graph.kind", graph["kind"], '"sites", as links.kind says')
    sites = graph["sites"]
    if not isinstance(sites, list) or len(set(map(str, sites))) < max(len(sites), 2):
        raise InvalidInput("graph.sites", sites, "the names of two sites or more, all different")
    place = {str(site): k for k, site in enumerate(sites)}
    if n != len(sites):
        raise InvalidInput("topology.n", n, f"{len(sites)}, the number of sites")
    if "edges" not in graph and "km" in links:
        raise InvalidInput("graph.edges", "nothing", "pairs of sites, since links.km has a length for each")
    edges = graph.get("edges", list(itertools.combinations(place, 2)))
    try:
        pairs = np.array([(place[str(a)], place[str(b)]) for a, b in edges], dtype=np.int64).reshape(-1, 2)
    except (KeyError, ValueError, TypeError):
        raise InvalidInput("graph.edges", edges[:5], "pairs of names in graph.sites") from None
    built = nx.empty_graph(n)
    built.add_edges_from(pairs.tolist())
    if "coordinates" in graph:
        positions = _array("graph.coordinates", graph["coordinates"], (n, 2), low=-180)
        nx.set_node_attributes(built, dict(enumerate(map(tuple, positions.tolist()))), "pos")
    if ("km" in links) == ("latency_s" in links):
        raise InvalidInput("links", sorted(links), "either latency_s, a matrix, or km, a length per edge")
    if "km" in links:
        latency = _shortest_delays(n, pairs, _array("links.km", links["km"], (len(pairs),)))
    else:
        latency = _array("links.latency_s", links["latency_s"], (n, n))
    if np.any(np.diag(latency)):
        raise InvalidInput("links.latency_s", np.diag(latency).tolist(), "zeros on the diagonal")
    bandwidth = links["bandwidth_bytes_per_s"]
    if isinstance(bandwidth, list):
        bandwidth = _array("links.bandwidth_bytes_per_s", bandwidth, (n, n))
    else:
        bandwidth = _number("links.bandwidth_bytes_per_s", bandwidth)
    return tuple(place), built, {"latency_s": latency, "bandwidth_bytes_per_s": bandwidth}


def _uniform(n: int, graph: dict, links: dict) -> tuple[tuple[str, ...], nx.Graph, dict]:
    kind = graph.pop("kind", None)
    allowed = [name for name in TOPOLOGIES if name != "network"]
    if kind not in allowed:
        raise InvalidInput("graph.kind", kind, "a named graph", suggest(str(kind), allowed))
    graph.pop("n", None)
    try:
        built = TOPOLOGIES[kind](n, **graph)
    except TypeError as error:  # an argument the graph does not have
        raise InvalidInput("graph", graph, f"n and arguments of {kind}", f"{error}.") from None
    numbers: dict[str, Any] = {"latency_s": _number("links.latency_s", links["latency_s"])}
    for key in ("up_bytes_per_s", "down_bytes_per_s"):
        values = np.atleast_1d(_array(f"links.{key}", links[key]))
        if not values.ndim == 1 or not values.all():
            raise InvalidInput(f"links.{key}", links[key], "a number above 0, or a list of them")
        numbers[key] = np.resize(values, n)  # a short list starts again
    return tuple(f"worker {k}" for k in range(n)), built, numbers


def _number(name: str, value: Any) -> float:
    return check_number(name, value, 0, math.inf, above=not name.endswith("latency_s"))


def _array(name: str, value: Any, shape: tuple[int, ...] | None = None, low: float = 0) -> np.ndarray:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidInput(name, value, "numbers") from None
    if shape is not None and array.shape != shape:
        raise InvalidInput(name, f"shape {array.shape}", f"shape {shape}")
    if not np.all(np.isfinite(array) & (array >= low)):
        raise InvalidInput(name, float(array.min()), f"finite numbers, at least {low:g}")
    return array


def _shortest_delays(n: int, pairs: np.ndarray, km: np.ndarray) -> np.ndarray:
    """(n, n) seconds along shortest paths of fibre; of parallel edges the shorter counts, 0 km is a length like any other."""
    order = np.argsort(km, kind="stable")
    pairs, first = np.unique(np.sort(pairs, axis=1)[order], axis=0, return_index=True)
    lengths = sp.csr_matrix((km[order][first], (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    delays = shortest_path(lengths, method="D", directed=False) / FIBRE_KM_PER_S
    if not np.all(np.isfinite(delays)):
        raise InvalidInput("graph.edges", "sites without a path between them", "edges that connect all sites")
    return delays


# -- TopoHub -----------------------------------------------------------------------------------------------------------


def _topohub(key: str) -> dict[str, Any]:
    """The tables of ``key`` = "group/name", from the package's own file."""
    if importlib.util.find_spec("topohub") is None:
        raise MissingExtra(f"The network topohub:{key}", "topohub", "networks")
    data = Path(str(resources.files("topohub"))) / "data"
    # the keys themselves decide, so that nothing outside the folder can be named
    known = {path.relative_to(data).with_suffix("").as_posix(): path for path in data.rglob("*.json")}
    if key not in known:
        allowed = "GROUP/NAME of the package topohub"
        near = suggest(key, known).partition(" Allowed: ")[0]
        groups = ", ".join(sorted({name.partition("/")[0] for name in known}))
        raise InvalidInput(
            "network", f"topohub:{key}", allowed, f"{near if '?' in near else ''} Groups: {groups}.".strip()
        )
    return _from_node_link(f"topohub:{key}", json.loads(known[key].read_text(encoding="utf-8")))


def _from_node_link(name: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Tables for node-link data: ``nodes`` with id and name, ``edges`` with source, target and ``dist`` in km."""
    place = {node["id"]: k for k, node in enumerate(data["nodes"])}
    edges = [e for e in data["edges"] if e["source"] != e["target"]]
    pairs = np.array([(place[e["source"]], place[e["target"]]) for e in edges], dtype=np.int64).reshape(-1, 2)
    n = len(place)
    adjacency = sp.csr_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    count, component = connected_components(adjacency, directed=False)
    largest = component == np.bincount(component).argmax()
    if count > 1:
        message = (
            f"{name} is disconnected: taking {largest.sum()} of {n} nodes, the largest of {count} components"
        )
        warnings.warn(message, stacklevel=4)
    labels = [str(node.get("name") or node["id"]) for node in data["nodes"]]
    twice = {label for label in labels if labels.count(label) > 1} if len(set(labels)) < n else set()
    labels = [f"{label} ({k})" if label in twice else label for k, label in enumerate(labels)]
    kept = [k for k, (i, _) in enumerate(pairs) if largest[i]]
    source = (
        "read: TopoHub (Jurkiewicz 2023, doi:10.1016/j.softx.2023.101540), from the installed package topohub"
    )
    return {
        "name": name,
        "description": f"{name.rpartition('/')[2]} of the TopoHub collection, distances along the network's links",
        "graph": {
            "kind": "sites",
            "sites": list(itertools.compress(labels, largest)),
            "coordinates": [node["pos"] for node in itertools.compress(data["nodes"], largest)],
            "edges": [[labels[i], labels[j]] for i, j in pairs[kept]],
        },
        "links": {
            "kind": "sites",
            "km": [edges[k]["dist"] for k in kept],
            "bandwidth_bytes_per_s": TOPOHUB_BYTES_PER_S,
        },
        "sources": {
            "graph": {"sites": source, "coordinates": source, "edges": source},
            "links": {
                "latency_s": f"derived: kilometres of {source[6:]}, over 200,000 km/s (2/3 of c), along shortest paths",
                "bandwidth_bytes_per_s": "assumed: 10 Gb/s on every link; the collection does not say",
            },
        },
    }


TOPOLOGIES["network"] = network_graph
