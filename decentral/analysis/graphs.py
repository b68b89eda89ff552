"""Drawings of topologies: workers as points, edges as lines, optical units as squares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from decentral.analysis.plots import STYLE
from decentral.errors import InvalidInput
from decentral.topology import Topology

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.axes import Axes

    from decentral.analysis.shown import ShownFigure

MOST_WORKERS = 400
"""More than these are a blot, and placing them takes a minute."""
_WORKER, _EDGE, _UNIT = "#3f90da", "#94a4a2", "#e76300"


def topology_figure(topologies: Topology | Mapping[str, Topology], *, columns: int = 4) -> ShownFigure:
    """Draw a graph, or several side by side.

    Workers that few steps separate lie close together (Kamada and Kawai's layout); where worker i is a neighbour of i + 1 all the
    way round they lie on a circle. Where rates differ a line is the thicker the more exchanges its edge sees; edges of rate 0 are
    left out.

    Args:
        topologies: one, or title -> topology.
        columns: panels in a row, at most.

    Returns:
        A figure that a notebook shows and pyplot does not know; ``save_figure`` writes it.

    Raises:
        InvalidInput: no topology, or one of more than 400 workers.
    """
    import matplotlib

    from decentral.analysis.shown import ShownFigure

    drawn = topologies if isinstance(topologies, Mapping) else {topologies.name: topologies}
    if not drawn:
        raise InvalidInput("topologies", dict(drawn), "at least one topology")
    for title, topology in drawn.items():
        if topology.n > MOST_WORKERS:
            advice = "Its summary() says what can be said of a larger one."
            raise InvalidInput(title, f"{topology.n} workers", f"at most {MOST_WORKERS} to draw", advice)
    columns = min(columns, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    with matplotlib.rc_context(STYLE):
        size = 2.9 if len(drawn) > 1 else 4.2
        figure = ShownFigure(figsize=(size * columns, (size + 0.35) * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels:
            axes.set_axis_off()
        for axes, (title, topology) in zip(panels, drawn.items(), strict=False):
            _draw(axes, topology)
            axes.set_title(title, loc="center")
    return figure


def _draw(axes: Axes, topology: Topology) -> None:
    import networkx as nx

    graph = topology.to_networkx()
    unused = [(i, j) for i, j, rate in graph.edges(data="rate") if rate == 0]
    graph.remove_edges_from(unused)
    places = _places(graph, topology.n)
    units = [node for node in graph if not isinstance(node, int)]
    rates = {(i, j): rate for i, j, rate in graph.edges(data="rate") if rate is not None}
    links = [edge for edge in graph.edges if edge not in rates]  # from units, which exchange nothing
    size = float(np.clip(2200 / topology.n, 14, 110))
    width = float(np.clip(8 / math.sqrt(len(rates)), 0.3, 1.3))
    highest = max(rates.values())
    common = {"pos": places, "ax": axes, "node_size": size}
    nx.draw_networkx_edges(
        graph, edgelist=list(rates), edge_color=_EDGE, **common,
        width=[max(0.2, 1.5 * rate / highest) * width for rate in rates.values()],
    )  # fmt: skip
    nx.draw_networkx_edges(graph, edgelist=links, edge_color=_UNIT, style="dotted", width=0.8, **common)
    workers = np.array([places[node] for node in range(topology.n)])
    axes.scatter(*workers.T, s=size, color=_WORKER, edgecolors="white", linewidths=0.6, zorder=3)
    if units:
        squares = np.array([places[node] for node in units])
        axes.scatter(*squares.T, s=1.6 * size, marker="s", color=_UNIT, edgecolors="white", zorder=4)
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.12)


def _places(graph: nx.Graph, n: int) -> dict:
    """Node -> (x, y), the same every time."""
    import networkx as nx

    plain = nx.Graph()  # rates are no lengths
    plain.add_nodes_from(graph)
    plain.add_edges_from(graph.edges)
    on_circle = len(plain) == n > 2 and all(plain.has_edge(node, (node + 1) % n) for node in range(n))
    return nx.circular_layout(plain) if on_circle else nx.kamada_kawai_layout(plain)
