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
# # Stragglers, in seconds
#
# One slow computer can hold up a hundred. How much depends on the method, and not in the way one may think. Here four methods
# train the same model on the same cluster, some of whose workers are slow. We look at who waits, count what waiting costs in
# seconds, and make the slow workers slower.

# %%
import os

import matplotlib.pyplot as plt

import decentral
from decentral import analysis, problem, topology
from decentral.timing.compute import LogNormal

smoke = "DECENTRAL_SMOKE" in os.environ  # a size for tests
workers, seconds, seeds = (8, 3.0, 1) if smoke else (32, 12.0, 3)
factors = (4.0,) if smoke else (1.0, 4.0, 8.0)
plt.rcParams.update(analysis.STYLE)

# %% [markdown]
# ## The cluster
#
# A gradient takes 0.1 s, more or less (log-normal); a message 5 ms and its bytes over 1 MB/s. An eighth of the workers is slower
# by a factor that we will vary. The graph is exponential: worker i meets those 1, 2, 4, 8, ... places away.


# %%
def cluster(slow_factor):
    return decentral.Cluster(
        compute=LogNormal(mean_s=0.1, sigma=0.3),
        links=decentral.Links(latency_s=0.005, bandwidth_bytes_per_s=1e6),
        slow_workers=workers // 8,
        slow_factor=slow_factor,
    )


graph = topology.named("exponential", n=workers)
digits = problem.digits(n=workers, partition="iid", batch_size=8, dtype="float32")

# %% [markdown]
# ## Four methods
#
# * **all-reduce**: everybody computes a gradient, the mean makes one step of one common model. All wait for the slowest.
# * **first of them**: the same, but the step is made when all but the slow eighth have answered; the others' work is thrown
#   away.
# * **server**: nobody waits. Each worker sends its gradient when it has one; gradients that are too old are refused
#   (Ringmaster).
# * **gossip**: nobody waits and there is no server. Neighbours that are free average their models while they compute on.
#
# Step sizes differ, since a mean of many gradients allows larger steps than one gradient of eight images. They were chosen by
# hand, from powers of two; `decentral` can tune them with equal effort for each method (see the documentation of `[tune]`).


# %%
def sgd(learning_rate):
    return decentral.SGD(optimizer={"kind": "sgd", "learning_rate": learning_rate})


methods = {
    "all-reduce": (sgd(4.0), decentral.AllReduce(collective="tree")),
    "first of them": (sgd(4.0), decentral.AllReduce(first=workers - workers // 8, collective="tree")),
    "server": (sgd(0.16), decentral.Server(max_delay=2 * workers)),
    "gossip": (decentral.Gossip(optimizer={"kind": "sgd", "learning_rate": 2.0}), decentral.Rendezvous()),
}


def race(slow_factor):
    return decentral.Comparison(
        [
            decentral.simulate(
                digits, graph, algorithm, protocol, cluster=cluster(slow_factor), stop=seconds, seeds=seeds,
                record=decentral.Record(count=60), name=name, progress=True,
            )
            for name, (algorithm, protocol) in methods.items()
        ]
    )  # fmt: skip


races = {factor: race(factor) for factor in factors}
races[4.0]

# %% [markdown]
# ## Who waits
#
# The first two seconds of an all-reduce with workers four times slower. Blue: it computes. White: it waits for somebody.

# %%
analysis.gantt_figure(races[4.0]["all-reduce"].trace, until_s=min(seconds, 2.0), title="all-reduce")

# %% [markdown]
# And of gossip, on the same machines: no white. But look at the staleness below: a gradient now meets parameters that have moved
# since it was begun, because a neighbour came by in between. Not to wait has a price.

# %%
analysis.gantt_figure(races[4.0]["gossip"].trace, until_s=min(seconds, 2.0), title="gossip")

# %% [markdown]
# ## Two clocks
#
# The same runs against simulated seconds, and against the number of gradients of all workers. Per gradient those that wait do
# well: a mean of fresh gradients is a good use of each, and gossip, whose workers differ, needs the most. Per second the
# all-reduce comes last, because it takes so few.

# %%
races[4.0].plot("suboptimality", title="In seconds")

# %%
races[4.0].plot("suboptimality", against="gradients", title="In gradients")

# %% [markdown]
# ## Slower and slower
#
# The time to suboptimality 0.15, as the slow workers get slower. (A line ends where a seed did not get there in time.)

# %%
figure, axes = plt.subplots(figsize=(6.2, 3.8), layout="constrained")
target = 1.5 if smoke else 0.15
looks = analysis.styles(methods)
times = {
    name: [races[factor][name].time_to_target("suboptimality", target) for factor in factors]
    for name in methods
}
for name, reached in times.items():
    mean, half_width = analysis.mean_interval([list(at) for at in zip(*reached, strict=True)])
    axes.errorbar(factors, mean, half_width, marker="o", capsize=3, label=name, **looks[name])
axes.set_xticks(factors, [f"{factor:g}" for factor in factors])
axes.set(
    ylim=(0, None), xlabel="how much slower the slow eighth is", ylabel=f"seconds to suboptimality {target}"
)
axes.set_title("What slow workers cost")
axes.legend()
plt.show()

# %%
for name, reached in times.items():
    print(
        f"{name:14s}",
        *(f"x{factor:g}: {at.mean():6.2f} s " for factor, at in zip(factors, reached, strict=True)),
    )

# %% [markdown]
# What to take home:
#
# * **An all-reduce pays the full price**: its step takes as long as its slowest worker.
# * **Leaving out the last few is the cheapest cure** when it is known how many are slow, and when their data can be spared. Here
#   every worker's images are alike. Sorted by label, the images of the slow workers would never be learned: change
#   `partition="iid"` to `"label"` and see.
# * **Asynchronous methods hardly notice**, since nobody waits. What they pay is staleness, at every speed.
#
# There is no winner for all clusters; `docs/regime_map.md` maps who wins where. Next: [what it would
# cost](04_price_it_on_a_cluster.py).
