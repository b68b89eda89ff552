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
# # A first run
#
# Sixteen computers train one model together. Nobody is in charge: each has its own data and its own copy of the model, takes
# gradients at its own pace, and from time to time two neighbours meet and average their copies. That is *gossip*. This notebook
# runs it, shows what comes out, and then sets a faster method beside it, on the same events.
#
# Everything happens on this machine, in simulated time: nothing is installed on sixteen computers, and seconds below are those
# that a real network would take.

# %%
import os

import decentral
from decentral import analysis, problem, topology

smoke = "DECENTRAL_SMOKE" in os.environ  # a size for tests
workers, seconds, seeds = (4, 10.0, 2) if smoke else (16, 250.0, 5)

# %% [markdown]
# ## Who talks to whom, and about what
#
# The workers stand in a **ring**: each meets only the two beside it. What one of them learns takes many meetings to reach the
# other side, so a ring is slow, and shows well what methods are worth.

# %%
ring = topology.named("ring", n=workers)
analysis.topology_figure(ring)

# %% [markdown]
# The task: 1,797 images of handwritten digits, and a linear classifier. `partition="label"` sorts the images by label before it
# deals them out: **a worker sees only one or two of the ten digits**. Alone it could never learn to tell all ten apart.

# %%
digits = problem.digits(n=workers, partition="label", batch_size=8, dtype="float32")

# %% [markdown]
# ## Gossip
#
# One call. Every worker takes a gradient once per second on average, and meets a neighbour once per second on average, at times
# that come from random clocks. `seeds=5` runs five independent copies at once, with other clocks and other mini-batches: that is
# where the intervals come from.

# %%
record = decentral.Record(count=50)
gossip = decentral.simulate(
    digits,
    ring,
    decentral.Gossip(optimizer={"kind": "sgd", "learning_rate": 0.1}),
    stop=seconds,
    seeds=seeds,
    record=record,
    progress=True,
)
gossip

# %% [markdown]
# A result shows itself: a table of what was reached at the end (mean over the seeds ± half of the 95 % interval), how it ran
# when you unfold it, and an overview.
#
# Read the last panel first. The thick line is the accuracy of the *average* of all models, the thin one that of the **worst
# worker**. The average is good quickly. But nobody has the average: each worker has its own copy, and the middle panel says how
# far the copies are from each other. A method is judged by its workers.
#
# ## The same events, another method
#
# A²CiD² keeps a second copy on every worker that pulls on the first: a momentum, so that what two workers agree on travels on
# faster. It sends no byte more than gossip. The clocks are drawn from the seeds and not from the method, so both runs see **the
# same meetings and the same mini-batches**: what differs is the method alone.

# %%
a2cid2 = decentral.simulate(
    digits,
    ring,
    decentral.A2CiD2(optimizer={"kind": "sgd", "learning_rate": 0.1}),
    stop=seconds,
    seeds=seeds,
    record=record,
    progress=True,
)
assert a2cid2.trace.hash == gossip.trace.hash  # the same events, not only similar ones
both = decentral.Comparison([gossip, a2cid2])
both

# %% [markdown]
# A number in bold is better than every other in its column by more than chance: seed by seed, the 95 % interval of the
# difference excludes zero.
#
# ## One question at a time
#
# How many bytes must cross the network until the workers agree?

# %%
both.plot("consensus_distance", against="bytes", title="Same messages, closer workers")

# %% [markdown]
# And when has the worst worker 80 % accuracy?

# %%
for result in both:
    when = result.time_to_target("test_accuracy_worst", 0.8, direction="above")
    print(f"{result.name:7s} {[f'{t:.0f} s' for t in when]}  (inf: not within {seconds:.0f} s)")

# %% [markdown]
# ## Your own analysis
#
# `to_dataframe()` gives every metric at every record: a row per algorithm, seed and record.

# %%
table = both.to_dataframe()
late = table[table.record == table.record.max()]
late.groupby("algorithm")[["test_accuracy", "test_accuracy_worst", "consensus_distance"]].mean().round(3)

# %% [markdown]
# ## Say where it comes from
#
# BibTeX of what these runs used. What the references say from memory is marked: look it up before you print it.

# %%
print(decentral.cite(both))

# %% [markdown]
# The same comparison from a terminal, with a folder that holds everything (spec, versions, metrics, events, plot):
#
# ```
# decentral run quickstart
# ```
#
# Next: [write your own algorithm](02_write_your_own_algorithm.py).
