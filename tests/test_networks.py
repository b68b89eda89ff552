"""Real networks: every number has a source, delays follow from kilometres, TopoHub is there by name, clear refusals."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from decentral.errors import InvalidInput, MissingExtra
from decentral.topology import TOPOLOGIES, load_network, named, network_graph, network_names
from decentral.topology.networks import TAGS, _build, _from_node_link

MINE = """
name = "mine"
description = "three sites"
[graph]
kind = "sites"
sites = ["a", "b", "c"]
edges = [["a", "b"], ["b", "c"], ["a", "c"], ["c", "a"]]
[links]
kind = "sites"
km = [1000, 200, 4000, 3000]
bandwidth_bytes_per_s = 1e9
[sources]
links.km = "assumed: for the test"
"""


def changed(*changes: tuple[str, str], name: str | None = None) -> dict:
    """The tables of MINE, or of a packaged network, after replacements in the text."""
    text = MINE if name is None else network_names()[name].read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return tomllib.loads(text)


# -- those in the package ----------------------------------------------------------------------------------------------


def test_the_packaged_networks():
    assert set(network_names()) >= {"nvlink_node", "jean_zay_a100", "a40_25gbe", "wan_five", "home_broadband"}


@pytest.mark.parametrize("name", network_names())
def test_every_number_has_a_source_and_the_graph_is_a_topology(name):
    network = load_network(name)
    tables = tomllib.loads(network_names()[name].read_text())
    assert (network.name, tables["name"]) == (name, name)
    used = {f"{table}.{key}" for table in ("links", "hardware") for key in tables[table]} - {"links.kind"}
    used |= {f"units.{key}" for unit in tables.get("units", ()) for key in unit}
    assert used <= network.sources.keys()
    assert {text.partition(":")[0] for text in network.sources.values()} <= set(TAGS)
    assert list(network.graph) == list(range(network.n))
    assert network.topology(rate=2.0).rate == pytest.approx(2)
    assert 0 < network.hardware["efficiency"] < 1
    assert 1e13 < network.hardware["peak_flops_per_s"] < 1e16
    assert network.n % network.n_sites == 0


def test_jean_zay_is_measured_at_a_third_of_its_network_cards():
    links = load_network("jean_zay_a100", n=64).links
    assert (links["kind"], links["node_size"]) == ("nodes", 8)
    assert links["inter_bytes_per_s"] * 8 == 135e9
    assert links["intra_bytes_per_s"] > 10 * links["inter_bytes_per_s"]


def test_nodes_form_a_ring_and_are_complete_inside():
    network = load_network("a40_25gbe", n=12)
    assert network.n_sites == 3
    expected = nx.cartesian_product(nx.cycle_graph(3), nx.complete_graph(4))
    expected = nx.relabel_nodes(expected, lambda node: 4 * node[0] + node[1])
    assert nx.utils.edges_equal(network.graph.edges, expected.edges)
    assert nx.utils.graphs_equal(nx.Graph(load_network("a40_25gbe", n=4).graph.edges), nx.complete_graph(4))
    assert load_network("a40_25gbe", n=8).graph.number_of_edges() == 16


def test_delays_of_the_five_sites_follow_from_where_they_are():
    network = load_network("wan_five")
    longitude, latitude = np.radians([network.graph.nodes[k]["pos"] for k in range(5)]).T
    cosines = np.sin(latitude)[:, None] * np.sin(latitude) + np.cos(latitude)[:, None] * np.cos(
        latitude
    ) * np.cos(longitude[:, None] - longitude)
    seconds = 1.5 * 6371 * np.arccos(np.clip(cosines, -1, 1)) / 200_000
    np.testing.assert_allclose(network.links["latency_s"], seconds, atol=1e-4)
    assert network.links["bandwidth_bytes_per_s"].shape == (5, 5)
    assert network.hardware["devices_per_worker"] == 8


def test_homes_send_less_than_they_receive_and_lines_repeat():
    links = load_network("home_broadband", n=6).links
    assert links["up_bytes_per_s"].shape == links["down_bytes_per_s"].shape == (6,)
    assert np.all(links["up_bytes_per_s"] < links["down_bytes_per_s"])
    assert links["up_bytes_per_s"][5] == links["up_bytes_per_s"][1]


def test_networks_are_a_kind_of_topology():
    assert TOPOLOGIES["network"] is network_graph
    assert named("network", n=5, name="wan_five").summary()["edges"] == 10
    assert named("network", n=16).n == 16  # two nodes of Jean-Zay


# -- files and kilometres ----------------------------------------------------------------------------------------------


def test_a_file_of_your_own_with_lengths(tmp_path):
    (tmp_path / "mine.toml").write_text(MINE)
    network = load_network(tmp_path / "mine.toml")
    # a-c: 1200 km by b are less than either direct cable
    np.testing.assert_allclose(
        network.links["latency_s"] * 200_000, [[0, 1000, 1200], [1000, 0, 200], [1200, 200, 0]]
    )
    assert (network.sites, network.n_sites, network.hardware) == (("a", "b", "c"), 3, {})
    assert network.graph.number_of_edges() == 3  # parallel cables are one edge


def test_the_shorter_of_parallel_cables_counts_in_any_order():
    for lengths in ("[1000, 9000, 4000, 3000]", "[1000, 9000, 3000, 4000]"):
        latency = _build(changed(("[1000, 200, 4000, 3000]", lengths)), None).links["latency_s"]
        np.testing.assert_allclose(latency[0] * 200_000, [0, 1000, 3000])


# -- TopoHub -----------------------------------------------------------------------------------------------------------


def test_topohub_delays_are_its_shortest_paths():
    topohub = pytest.importorskip("topohub")
    network = load_network("topohub:topozoo/Geant2012")
    assert (network.n, network.graph.number_of_edges()) == (37, 58)
    assert network.name == "topohub:topozoo/Geant2012"
    file = Path(topohub.__file__).parent / "data/topozoo/Geant2012.json"
    data = nx.node_link_graph(json.loads(file.read_text()), edges="edges")
    assert network.links["latency_s"].max() * 200_000 == pytest.approx(data.graph["stats"]["diameter_len"])
    lengths = dict(nx.all_pairs_dijkstra_path_length(data, weight="dist"))
    expected = [[lengths[a][b] / 200_000 for b in data] for a in data]
    np.testing.assert_allclose(network.links["latency_s"], expected, rtol=1e-12)
    assert network.sites[0] == data.nodes["0"]["name"]
    assert named("network", n=37, name="topohub:topozoo/Geant2012").n == 37


def test_an_unknown_topohub_network_names_the_nearest():
    pytest.importorskip("topohub")
    with pytest.raises(InvalidInput, match=r"Did you mean 'topozoo/Geant2012'\? Groups: .*sndlib"):
        load_network("topohub:topozoo/Geant2013")
    with pytest.raises(InvalidInput, match=r"topohub:\.\./\.\./secret"):
        load_network("topohub:../../secret")


def test_without_topohub_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "topohub", None)
    with pytest.raises(MissingExtra, match=r"needs the package topohub.*decentral\[networks\]"):
        load_network("topohub:topozoo/Geant2012")


def test_a_disconnected_collection_loses_its_smaller_parts_with_a_warning():
    data = {
        "nodes": [{"id": k, "name": "None" if k < 3 else f"city {k}", "pos": [k, 0.5]} for k in range(5)],
        "edges": [
            {"source": 0, "target": 1, "dist": 0.0},
            {"source": 1, "target": 4, "dist": 30.0},
            {"source": 4, "target": 1, "dist": 20.0},
            {"source": 2, "target": 3, "dist": 1.0},
            {"source": 4, "target": 4, "dist": 1.0},
        ],
    }
    with pytest.warns(
        UserWarning, match="x is disconnected: taking 3 of 5 nodes, the largest of 2 components"
    ):
        network = _build(_from_node_link("x", data), None)
    assert network.sites == ("None (0)", "None (1)", "city 4")
    np.testing.assert_allclose(network.links["latency_s"] * 200_000, [[0, 0, 20], [0, 0, 20], [20, 20, 0]])
    assert network.graph.nodes[2]["pos"] == (4.0, 0.5)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("jean_zay",), ["network", "'jean_zay'", "Did you mean 'jean_zay_a100'?"]),
        (("jean_zay_a100", 12), ["topology.n", "12", "multiple of 8"]),
        (("wan_five", 6), ["topology.n", "6", "5, the number of sites"]),
        (("home_broadband", 3), ["topology.degree"]),
    ],
)
def test_networks_that_cannot_be(arguments, words):
    with pytest.raises(InvalidInput) as caught:
        load_network(*arguments)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        (None, "km = [1000, 200, 4000, 3000]", "", ["links", "either latency_s"]),
        (None, "[1000, 200, 4000, 3000]", "[1000]", ["links.km", "(1,)", "(4,)"]),
        (None, "[1000, 200, 4000, 3000]", "[1000, 200, -1, 1]", ["links.km", "-1.0"]),
        (None, '["b", "c"]', '["b", "x"]', ["graph.edges", "graph.sites"]),
        (None, 'edges = [["a", "b"], ["b", "c"], ["a", "c"], ["c", "a"]]', "", ["graph.edges", "links.km"]),
        (None, '"c"]\n', '"b"]\n', ["graph.sites", "different"]),
        (
            None,
            '["b", "c"], ["a", "c"], ["c", "a"]',
            '["a", "b"], ["a", "b"], ["b", "a"]',
            ["connect all sites"],
        ),
        (None, 'kind = "sites"\nkm', 'kind = "site"\nkm', ["links.kind", "Did you mean 'sites'?"]),
        (
            None,
            "bandwidth_bytes_per_s = 1e9",
            "bandwidth_byte_per_s = 1e9",
            ["links.bandwidth_byte_per_s", "Did you mean 'bandwidth_bytes_per_s'?"],
        ),
        (None, "bandwidth_bytes_per_s = 1e9", "", ["links.bandwidth_bytes_per_s", "nothing"]),
        (
            None,
            "bandwidth_bytes_per_s = 1e9",
            "bandwidth_bytes_per_s = 0",
            ["links.bandwidth_bytes_per_s", "above 0"],
        ),
        (None, "assumed: for", "guessed: for", ["sources.links.km", "guessed", "recalled"]),
        ("wan_five", "[0.0, 0.0282", "[0.1, 0.0282", ["links.latency_s", "zeros on the diagonal"]),
        ("nvlink_node", "node_size = 8\n", "node_size = 0\n", ["links.node_size", "at least 1"]),
        ("nvlink_node", 'kind = "nodes"\nn = 8', 'kind = "ring"\nn = 8', ["graph.kind", "nodes"]),
        ("nvlink_node", "efficiency = 0.46", "efficiency = 46", ["hardware.efficiency", "46", "at most 1"]),
        (
            "home_broadband",
            "random_regular",
            "random_regula",
            ["graph.kind", "Did you mean 'random_regular'?"],
        ),
        ("home_broadband", "degree = 4", "degre = 4", ["graph", "degre", "arguments of random_regular"]),
        ("home_broadband", "[62.5e6, 5e6, 2.5e6, 2.5e6]", "[1e6, 0]", ["links.up_bytes_per_s", "above 0"]),
    ],
)
def test_files_that_are_not_networks(name, old, new, words):
    with pytest.raises(InvalidInput) as caught:
        _build(changed((old, new), name=name), None)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_file_that_is_not_toml(tmp_path):
    (tmp_path / "x.toml").write_text("name = ")
    with pytest.raises(InvalidInput, match="a TOML file"):
        load_network(tmp_path / "x.toml")
