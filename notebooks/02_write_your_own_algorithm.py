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
# # Write your own algorithm
#
# From nothing to a method of your own that runs on a cluster with slow workers, in one page. You write what **one** worker does:
# a few pure functions of its state. The simulator decides when things happen, to whom, and how long they take.
#
# The method here is *clipped gossip*: gossip with momentum, whose workers clip their gradients, so that one odd mini-batch
# cannot throw a worker far off.

# %%
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp

import decentral
from decentral import analysis, problem, topology
from decentral.testing import AlgorithmCheckFailed, check_algorithm
from decentral.timing.compute import LogNormal

smoke = "DECENTRAL_SMOKE" in os.environ  # a size for tests
workers, seconds, seeds = (4, 3.0, 2) if smoke else (16, 30.0, 5)

# %% [markdown]
# ## Five functions
#
# | function | is asked | answers with |
# |---|---|---|
# | `init` | the starting parameters | the state of a worker |
# | `update` | the state, and a gradient taken at `estimate(state)` | the state after it |
# | `message` | the state | what goes on the wire, and the state after sending |
# | `receive` | the state, a neighbour's message, and what this worker sent (`mine`) | the state after the meeting |
# | `estimate` | the state | the parameters to evaluate |
#
# The state is yours to choose: here the parameters `x`, and a velocity. Parameters may be any tree of arrays (a network's
# layers), which is why sums go through `jax.tree.map`. Hyper-parameters are fields of the class; numbers among them can be
# varied later without compiling anew.
#
# This first version has two mistakes. Both are easy to make.


# %%
class State(NamedTuple):
    x: jax.Array
    velocity: jax.Array


@decentral.pytree  # a frozen dataclass whose numbers JAX can trace
class FirstAttempt(decentral.Algorithm):
    learning_rate: float = 0.05
    momentum: float = 0.9
    clip: float = 1.0

    def init(self, params, key):
        return State(params, jax.tree.map(jnp.zeros_like, params))

    def update(self, state, gradient, key):
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient)))
        if norm > self.clip:
            gradient = jax.tree.map(lambda g: g * self.clip / norm, gradient)
        velocity = jax.tree.map(lambda v, g: self.momentum * v + g, state.velocity, gradient)
        return State(jax.tree.map(lambda x, v: x - self.learning_rate * v, state.x, velocity), velocity)

    def message(self, state, local, key):
        return state.x, state

    def receive(self, state, message, mine, weight):
        return state._replace(x=jax.tree.map(lambda x, theirs: x + 0.5 * theirs, state.x, message))

    def estimate(self, state):
        return state.x

    def conserved(self, state):
        return state.x  # a promise: a meeting does not change the sum of this over its two ends


# %% [markdown]
# `check_algorithm` puts an algorithm through the same battery that every shipped one passes, before any run.

# %%
try:
    check_algorithm(FirstAttempt())
except AlgorithmCheckFailed as error:
    print(error)

# %% [markdown]
# **`traced`** says that JAX could not follow `update`: `if norm > self.clip` asks for the value of a number that is not there
# yet, since JAX writes the function down once and then runs it for all workers. The remedy is arithmetic, or `jnp.where`. (The
# check stops here: the others would only say it again.)


# %%
@decentral.pytree
class SecondAttempt(FirstAttempt):
    def update(self, state, gradient, key):
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient)))
        shrink = jnp.minimum(1.0, self.clip / (norm + 1e-12))
        velocity = jax.tree.map(lambda v, g: self.momentum * v + shrink * g, state.velocity, gradient)
        return State(jax.tree.map(lambda x, v: x - self.learning_rate * v, state.x, velocity), velocity)


try:
    check_algorithm(SecondAttempt())
except AlgorithmCheckFailed as error:
    print(error)

# %% [markdown]
# **`conserved`** says that a meeting breaks the promise: after it the two workers' parameters do not add up to what they were.
# And indeed: `receive` added half of the neighbour's parameters and took nothing of its own away. Without the promise nobody
# would have noticed, but every meeting would have moved the average of all models, and no learning rate would have mended that.
#
# What one worker gains the other must lose: add half of `theirs - mine`. Use `mine`, and not the state's own `x`: on a cluster
# the message comes late, and `x` has moved on since `mine` was sent.


# %%
@decentral.pytree
class ClippedGossip(SecondAttempt):
    """Gossip with momentum and clipped gradients."""

    def receive(self, state, message, mine, weight):
        x = jax.tree.map(
            lambda x, theirs, own: x + 0.5 * weight * (theirs - own), state.x, message, mine
        )  # fmt: skip
        return state._replace(x=x)


check_algorithm(ClippedGossip())
print("It passes.")

# %% [markdown]
# (`weight` is 1 in plain meetings; protocols that weigh messages pass another number.)
#
# ## A first run, on ideal clocks
#
# A problem whose best answer is known (a sum of quadratics), a ring, and the shipped gossip beside it. Its step is the same in
# the long run: with momentum 0.9 ten steps of 0.005 add up to one of 0.05.

# %%
quadratic = problem.quadratic(n=workers, d=10, heterogeneity=0.3, noise=0.5, dtype="float32")
ring = topology.named("ring", n=workers)
mine = ClippedGossip(learning_rate=0.005, momentum=0.9)
plain = decentral.Gossip(optimizer={"kind": "sgd", "learning_rate": 0.05})
ideal = decentral.Comparison(
    [
        decentral.simulate(
            quadratic, ring, algorithm, stop=3 * seconds, seeds=seeds, name=name, progress=True
        )
        for name, algorithm in (("clipped", mine), ("gossip", plain))
    ]
)
ideal

# %% [markdown]
# ## On a cluster with stragglers
#
# Now time passes. A gradient takes a random time, 0.1 s on average; a message takes 5 ms and its bytes over the bandwidth; two
# workers are four times slower than the others; one message in a hundred is lost. With `Rendezvous` neighbours that are free
# exchange while both compute on: gradients meet parameters that have moved since. **Nothing in the algorithm changes.**

# %%
cluster = decentral.Cluster(
    compute=LogNormal(mean_s=0.1, sigma=0.3),
    links=decentral.Links(latency_s=0.005, bandwidth_bytes_per_s=1e6),
    faults=decentral.Faults(loss=0.01),
    slow_workers=max(1, workers // 8),
    slow_factor=4.0,
)


def on_cluster(algorithm, protocol, name):
    return decentral.simulate(
        quadratic, ring, algorithm, protocol, cluster=cluster, stop=seconds, seeds=seeds, name=name, progress=True
    )  # fmt: skip


clipped = on_cluster(mine, decentral.Rendezvous(), "clipped")
gossip = on_cluster(plain, decentral.Rendezvous(), "gossip")
all_reduce = on_cluster(
    decentral.SGD(optimizer={"kind": "sgd", "learning_rate": 0.05}), decentral.AllReduce(), "all-reduce"
)
race = decentral.Comparison([clipped, gossip, all_reduce])
race.plot("distance_to_optimum", title="On a cluster with stragglers")

# %% [markdown]
# The all-reduce waits for the slowest worker at every step; the others do not wait for anybody, and took five times as many
# gradients. This is no verdict yet: all three have the same step size, and a mean of sixteen gradients allows a larger one ([the
# next notebook](03_stragglers_in_seconds.py) gives each method its own). How many gradients did each take, and when was it first
# within 0.1 of the optimum?

# %%
for result in race:
    gradients = result.metrics["gradients"][:, -1].mean()
    reached = result.time_to_target("distance_to_optimum", 0.1)
    print(f"{result.name:10s} {gradients:6.0f} gradients; within 0.1 after {[f'{t:.1f} s' for t in reached]}")

# %% [markdown]
# Who did what when? Two rows are slow: their gradients take four times as long, and the others work on.

# %%
analysis.gantt_figure(clipped.trace, until_s=min(seconds, 4.0), title="Clipped gossip on the cluster")

# %% [markdown]
# ## Is clipping worth it?
#
# Hyper-parameters are numbers of the class: vary them.

# %%
levels = (1.0,) if smoke else (0.3, 1.0, 3.0)
clips = decentral.Comparison(
    [
        on_cluster(ClippedGossip(learning_rate=0.005, clip=clip), decentral.Rendezvous(), f"clip {clip}")
        for clip in levels
    ]
)
clips.plot("suboptimality", title="How hard to clip")

# %% [markdown]
# On this problem, whose noise has no outliers, clipping only costs: the harder, the slower. That is a result too, and it took a
# minute. (On heterogeneous data it costs more: gradients that are clipped no longer add up to zero at the optimum.)
#
# ## Where to go from here
#
# * Your own model and data: `decentral.Problem.from_loss(loss, params, data)`, with any JAX function as the loss.
# * Neural networks: `problem.mlp(n=8)`, `cnn`, `transformer`; nothing in the algorithm changes.
# * Dynamics between events (as in A²CiD²): define `flow(state, dt)`. Step sizes from theory: define `resolve(problem, network)`.
# * In specs, sweeps and the command line, with an op or a protocol of its own: `docs/extend.md`.
# * `python docs/add_an_algorithm.py` is a template to copy, 40 lines long.
#
# Next: [stragglers, in seconds](03_stragglers_in_seconds.py).
