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
# # What would it cost on a real cluster?
#
# A simulation says how many steps a method needs. What a step of a *large* model takes on *real* machines is another question,
# and `decentral.cost` answers it with closed forms: no simulation, no training, milliseconds. Its constants are physical; how
# far it is from published measurements, source by source, is in `docs/validation.md` (9 % in the mean for dense models, and bad
# for mixtures of experts: read that page before you quote a number).
#
# Here: a language model of 1.4 billion parameters, on eight sites with eight H100 each, joined by an ordinary 10 Gb/s network.
# **Seconds below are those of the model, not of a measurement.**

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

from decentral import analysis, cost, hardware

smoke = "DECENTRAL_SMOKE" in os.environ  # a size for tests
points = 3 if smoke else 25
plt.rcParams.update(analysis.STYLE)

# %%
model = cost.Transformer(layers=24, hidden=2048, heads=16, ffn=8192, vocab=50368, sequence=2048)
h100 = hardware.device("H100-SXM5-80GB")


def cluster(gigabit_per_s):
    """Eight nodes of eight devices; the rate is that of a node's network card, one way."""
    return cost.of_device(h100, devices=64, node_size=8, node_bytes_per_s=np.asarray(gigabit_per_s) * 1e9 / 8)


print(
    f"{float(model.parameters) / 1e9:.2f} billion parameters; a device does {h100.peak_flops('bf16') / 1e12:.0f} TFLOP/s in bf16"
)

# %% [markdown]
# ## Eight workers, seven methods
#
# A worker is a site: its eight devices share one copy of the model (`sharding="zero_3"`), and the method says what goes between
# sites, and when.

# %%
layout = cost.Layout(dp=64, workers=8, global_batch=1024, micro_batch=8, sharding="zero_3")
methods = [
    cost.Algorithm("ddp", name="all-reduce every step"),
    cost.Algorithm("acco", name="ACCO"),
    cost.Algorithm("local_sgd", name="local SGD, 32 steps", local_steps=32),
    cost.Algorithm("diloco", name="DiLoCo, 100 steps", local_steps=100),
    cost.Algorithm("adpsgd", name="AD-PSGD"),
    cost.Algorithm("a2cid2", name="A2CiD2"),
    cost.Algorithm("sgp", name="SGP"),
]
slow = {one.label: cost.project(model, layout, cluster(10.0), one) for one in methods}
analysis.breakdown_figure(
    "Where a step's time goes, 10 Gb/s", {name: one.parts for name, one in slow.items()}
)

# %% [markdown]
# Each bar is a step of the same 1,024 sequences. On the left, what the arithmetic takes at peak speed; then what is lost on the
# way there; in red, what nothing hides of the messages between sites.
#
# An all-reduce at every step spends most of its time on the network. **So does gossip**: a whole model to a neighbour after
# every gradient is as many bytes. What helps is to average rarely (local SGD, DiLoCo), or to let the batch grow while the
# network is busy (ACCO).

# %%
print(f"{'':24s}{'step':>9s}{'MFU':>8s}{'tokens/s':>12s}{'GB of a device':>16s}{'GB sent by a site':>19s}")
for name, one in slow.items():
    sent = float(one.link_bytes["network"]) / 1e9
    memory = float(one.memory.total_bytes) / 1e9
    tokens = float(one.tokens_per_s)
    print(
        f"{name:24s}{float(one.step_s):7.2f} s{float(one.mfu):8.1%}{tokens:12,.0f}{memory:16.1f}{sent:19.2f}"
    )

# %% [markdown]
# **This is a price per step, not a verdict.** A method that averages rarely may need more steps, or not reach the same loss at
# all; that is what `decentral.simulate` is for, on a model that one can afford. (A projection can cite such a run: the table
# `[evidence]`, see `docs/cost_model.md`.) And what nobody has measured, which is everything asynchronous, is an extrapolation.
#
# ## How fast must the network be?
#
# Everything in `cost` broadcasts: an array of networks gives an array of answers.

# %%
gigabits = np.geomspace(1, 3200, points)
figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
looks = analysis.styles([one.label for one in methods])
for one in methods:
    mfu = np.broadcast_to(cost.project(model, layout, cluster(gigabits), one).mfu, gigabits.shape)
    axes.plot(gigabits, 100 * mfu, label=one.label, **looks[one.label])
for rate, words in ((1, "home fibre"), (25, "cloud"), (400, "one card"), (3200, "eight cards")):
    axes.annotate(words, (rate, 1), ha="center", va="bottom", fontsize=7.5, color="#6b6b6b")
axes.set(
    xscale="log",
    xlim=(0.5, 6500),
    ylim=(0, None),
    xlabel="network of a site, Gb/s one way",
    ylabel="model FLOP/s utilisation, %",
)
axes.set_title("How fast must the network be?")
axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# On the right all methods meet: with the network of a modern machine there is little to gain. On the left those that average
# rarely win, and ACCO's line is flat because its batch grows (more samples for each update: whether they are worth their while
# is no question for a cost model). The three gossip methods lie on each other: their messages hide behind the next gradient from
# some 80 Gb/s on, where an all-reduce still waits.
#
# ## The whole bill
#
# 28 billion tokens (20 for each parameter), at a price that **you** type: none is built in.

# %%
bill = cost.Conditions(tokens=28e9, price_per_device_hour=2.5, kg_co2_per_kwh=0.1, pue=1.2)
for one in (methods[0], methods[3]):
    for rate in (10.0, 400.0):
        run = cost.project(model, layout, cluster(rate), one, bill)
        print(
            f"{one.label:24s}{rate:5.0f} Gb/s: {float(run.run_s) / 3600:7.1f} hours, {float(run.run_money):9,.0f} of your money, "
            f"{float(run.run_kwh) / 1e3:5.1f} MWh"
        )

# %% [markdown]
# ## What decides it?
#
# By how much does the step change when a constant changes by one per cent? (1 means: in proportion.)

# %%
for label in ("all-reduce every step", "DiLoCo, 100 steps"):
    effects = cost.sensitivity(slow[label])
    largest = sorted(effects.items(), key=lambda entry: -abs(float(entry[1])))[:4]
    print(f"{label:24s}", ", ".join(f"{name} {float(effect):+.2f}" for name, effect in largest))

# %% [markdown]
# The same from a terminal, with the best layout searched for and an interval on every number:
#
# ```
# decentral project slow_network --search --plot bars.png
# ```
#
# Next: [an optical node](05_an_optical_node.py).
