# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A gallery of topologies
#
# Who may talk to whom decides how fast workers agree. This notebook shows the graphs that have a name, the two numbers that say
# how good one is, checks them against a simulation, and ends with real networks.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

import decentral
from decentral import analysis, problem, topology

smoke = "DECENTRAL_SMOKE" in os.environ  # a size for tests
n = 8 if smoke else 16
plt.rcParams.update(analysis.STYLE)

# %%
names = (
    "path", "ring", "star", "grid", "torus", "hypercube",
    "exponential", "complete", "barbell", "lollipop", "random_geometric", "watts_strogatz",
)  # fmt: skip
graphs = {name: topology.named(name, n=n) for name in names}
analysis.topology_figure(graphs, columns=6)

# %% [markdown]
# ## Two numbers
#
# * **χ₁** is one over the smallest positive eigenvalue of the Laplacian: the time (in exchanges per worker) after which the
#   slowest disagreement has shrunk by e. Gossip takes about χ₁.
# * **χ₂** is half the largest resistance of an edge, if every edge is a wire. Accelerated methods (A²CiD², DADAO) take about
#   √(χ₁χ₂), which is less, since χ₂ ≤ χ₁.
#
# All graphs below have the same budget: one exchange for each worker and second on average.

# %%
print(f"{'':18s}{'edges':>6s}{'degree':>8s}{'χ₁':>8s}{'χ₂':>7s}{'√χ₁χ₂':>8s}")
for name, graph in sorted(graphs.items(), key=lambda entry: entry[1].chi_1):
    degrees = f"{graph.degrees.min()}-{graph.degrees.max()}"
    print(
        f"{name:18s}{len(graph.edges):6d}{degrees:>8s}{graph.chi_1:8.2f}{graph.chi_2:7.2f}"
        f"{np.sqrt(graph.chi_1 * graph.chi_2):8.2f}"
    )

# %% [markdown]
# ## Do they tell the truth?
#
# Give every worker a number of its own and let them only average, without any gradient that matters: how fast does the
# disagreement fall? Gossip on one side, A²CiD² on the other, on the same exchanges. (The problem is a quadratic with a step size
# of nothing; what is left of the dynamics is averaging.)

# %%
seconds, seeds = (8.0, 2) if smoke else (150.0, 4)
shown = ("path", "ring", "star", "torus", "exponential", "complete")
silent = {"kind": "sgd", "learning_rate": 0.0}
numbers = problem.quadratic(n=n, d=32, dtype="float32", initial="per_worker")
algorithms = {"gossip": decentral.Gossip(optimizer=silent), "a2cid2": decentral.A2CiD2(optimizer=silent)}
agreed = {
    name: decentral.Comparison(
        [
            decentral.simulate(
                numbers, graphs[name], algorithm, stop=seconds, seeds=seeds, name=method,
                record=decentral.Record(count=150, evaluate=False),
            )
            for method, algorithm in algorithms.items()
        ]
    )
    for name in shown
}  # fmt: skip

# %%
figure, panels = plt.subplots(1, 2, figsize=(10.0, 3.9), sharey=True, layout="constrained")
looks = analysis.colours(shown)
rates = {method: [] for method in algorithms}
for axes, method in zip(panels, algorithms, strict=True):
    for name in shown:
        result = agreed[name][method]
        distance = result.metrics["consensus_distance"].mean(axis=0)
        time_s = result.metrics["time_s"][0]
        good = distance > 1e-9 * distance[0]
        axes.plot(time_s[good], distance[good] / distance[0], color=looks[name], label=name)
        late = good & (distance < 0.3 * distance[0])  # when only the slowest disagreement is left
        rates[method].append(-1 / np.polyfit(time_s[late], np.log(distance[late]), 1)[0])
    axes.set(yscale="log", xlabel="simulated time (s)", xlim=(0, 0.6 * seconds))
    axes.set_title(method)
panels[0].set_ylabel("disagreement, of that at the start")
panels[1].legend(fontsize=8)
plt.show()

# %%
figure, axes = plt.subplots(figsize=(5.6, 4.2), layout="constrained")
chi_1 = np.array([graphs[name].chi_1 for name in shown])
both = np.array([np.sqrt(graphs[name].chi_1 * graphs[name].chi_2) for name in shown])
axes.plot(chi_1, rates["gossip"], "o", color="#3f90da", label="gossip against χ₁")
axes.plot(both, rates["a2cid2"], "s", color="#bd1f01", label="A²CiD² against √(χ₁χ₂)")
line = np.geomspace(0.5, chi_1.max() * 1.2, 2)
axes.fill_between(
    line, line, 2 * line, color="#94a4a2", alpha=0.25, linewidth=0, label="once to twice the constant"
)
for method, constants in (("gossip", chi_1), ("a2cid2", both)):
    for name, x, y in zip(shown, constants, rates[method], strict=True):
        if name in ("path", "ring", "complete"):
            axes.annotate(name, (x, y), xytext=(6, -10), textcoords="offset points", fontsize=7.5)
axes.set(
    xscale="log",
    yscale="log",
    xlabel="constant of the graph (s)",
    ylabel="measured: disagreement falls by e in (s)",
)
axes.set_title("Constants and measurements")
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# The disagreement drawn is a square. For gossip theory puts the time in which it falls by e between χ₁ and 2χ₁ in the long run
# (the mean of the models decays in 2χ₁, its square in χ₁; an exchange takes away half of the square of what its two ends differ
# by): that is the band. The measured points lie in it, or near: they are means over few seeds and a finite time.
#
# On a good graph momentum has nothing to win; on a path or a ring it does.
#
# ## Not all edges are worth the same
#
# The bridge of a barbell carries everything between its two halves. `rates="optimal"` shares the same number of exchanges so
# that √(χ₁χ₂) is least: the thicker a line, the more exchanges its edge sees.

# %%
bells = {
    f"{rates}: √χ₁χ₂ = {np.sqrt(bell.chi_1 * bell.chi_2):.1f}": bell
    for rates in ("uniform", "optimal")
    for bell in [topology.named("barbell", n=8 if smoke else 12, rates=rates)]
}
analysis.topology_figure(bells)

# %% [markdown]
# ## Real networks
#
# With latencies, bandwidths and a source for every number. A spec names them as `topology.kind = "network"`, and `cluster.links
# = "network"` takes their links; `topohub:topozoo/Geant2012` and 200 more come with `pip install 'decentral[networks]'`.

# %%
real = {name: topology.load_network(name) for name in topology.network_names()}
for name, network in real.items():
    print(f"{name:16s}{network.n:4d} workers at {network.n_sites} places: {network.description}")
analysis.topology_figure({name: network.topology() for name, network in real.items()}, columns=6)

# %% [markdown]
# Your own: any connected networkx graph is a topology, `topology.Topology.from_graph(graph)`.
