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
# # An optical node
#
# Shine a laser on a million tiny mirrors, send the light through something that scatters it, and take a picture: the camera has
# multiplied the pattern of the mirrors with a huge random matrix, in one frame, whatever the size. Such units were built. What
# is one good for in a network of workers? Here is a simulated one, its rivals, and an honest answer.
#
# **Nothing below was measured on an optical unit.** Rates and sizes are published numbers of their makers; noise is a parameter.

# %%
import os

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

import decentral
from decentral import analysis, hardware, problem, topology
from decentral.cost import of_device
from decentral.cost.optical import RandomProjection, Rivals, crossover, dense, hadamard, optical
from decentral.optical import Camera, OpticalUnit
from decentral.optical.features import FourierFeatures, OpticalRandomFeatures

smoke = "DECENTRAL_SMOKE" in os.environ  # a size for tests
plt.rcParams.update(analysis.STYLE)

# %% [markdown]
# ## A picture through fog
#
# The mirrors show a digit, black or white. What the camera sees is **speckle**: |H x|² with H complex and random. Another digit,
# another speckle; the same digit, the same speckle, except for the noise of the camera.

# %%
images, labels = load_digits(return_X_y=True)
unit = OpticalUnit(device_id=0, key=0, inputs=64, outputs=80 * 80, camera=Camera(bits=8, full_scale=5.0))
shown = [int(np.flatnonzero(labels == digit)[0]) for digit in (0, 1, 8)]
speckle = unit.intensity(jnp.asarray(images[shown] > 7))

figure, panels = plt.subplots(2, 3, figsize=(6.6, 4.6), layout="constrained")
for column, (image, light) in enumerate(zip(shown, speckle, strict=True)):
    panels[0, column].imshow(images[image].reshape(8, 8) > 7, cmap="gray")
    panels[1, column].imshow(np.asarray(light).reshape(80, 80), cmap="inferno")
for axes in panels.ravel():
    axes.set_axis_off()
panels[0, 0].set_title("on the mirrors")
panels[1, 0].set_title("on the camera")
plt.show()

# %% [markdown]
# ## What the speckle knows
#
# A linear classifier on the speckle is a kernel method: the more pixels, the closer it comes to the exact kernel. Its rivals are
# a linear classifier on the images themselves, and random Fourier features *of the same input bits*, on a computer.

# %%
train, test, train_labels, test_labels = train_test_split(
    images, labels, test_size=0.3, random_state=0, stratify=labels
)
sizes = (16, 64) if smoke else (32, 128, 512, 2048)


def accuracy(*steps):
    model = make_pipeline(*steps, RidgeClassifierCV([0.01, 0.1, 1.0]))
    return model.fit(train, train_labels).score(test, test_labels)


scores = {
    "optical": [accuracy(OpticalRandomFeatures(m, encoder="thermometer", random_state=0)) for m in sizes],
    "Fourier, same bits": [
        accuracy(FourierFeatures(m, encoder="thermometer", random_state=0)) for m in sizes
    ],
}
plain = accuracy()

figure, axes = plt.subplots(figsize=(6.0, 3.6), layout="constrained")
for (name, values), look in zip(scores.items(), ({"color": "#bd1f01"}, {"color": "#3f90da"}), strict=True):
    axes.plot(sizes, [100 * value for value in values], marker="o", label=name, **look)
axes.axhline(100 * plain, color="#717581", linestyle="--", label="pixels, no features")
axes.set_xscale("log", base=2)
axes.set(xlabel="features", ylabel="test accuracy, %")
axes.set_title("Digits, one split, one draw")
axes.legend()
plt.show()

# %% [markdown]
# The optical features beat the pixels once there are enough of them, and do no better than Fourier features of the same bits.
# What light could save is time. Does it?
#
# ## When is light quicker than a GPU?
#
# Single vectors, real rows, an intensity read by a camera: these four words belong to the answer, which changes with each. The
# rivals are a dense product on an A100, and a Walsh-Hadamard transform, which gives the same kind of features in n log n.

# %%
rivals = Rivals(
    hardware.optical_unit("LightOn OPU Gen-2"), of_device(hardware.device("A100-SXM4-80GB"), 1, 1, 1e9)
)
square = np.geomspace(1e3, 9e5, 8 if smoke else 60).round()
task = RandomProjection(square, square, batch=1, mode="intensity", complex_rows=False)

figure, axes = plt.subplots(figsize=(6.8, 4.0), layout="constrained")
for name, cost, colour in (
    ("optical unit", optical(task, rivals), "#bd1f01"),
    ("A100, dense product", dense(task, rivals), "#3f90da"),
    ("A100, Walsh-Hadamard", hadamard(task, rivals), "#832db6"),
):
    seconds = np.where(np.broadcast_to(cost.possible, square.shape), cost.seconds, np.nan)
    axes.plot(square, 1e3 * seconds, label=name, color=colour)
axes.set(
    xscale="log", yscale="log", xlabel="numbers in, and numbers out", ylabel="milliseconds for one vector"
)
axes.set_title("One vector at a time, intensity, real rows (Gen-2)")
axes.legend()
plt.show()

# %%
one = RandomProjection(1, 1, batch=1, mode="intensity", complex_rows=False)
print(crossover(one, rivals).words)
print(crossover(one, rivals, against="hadamard").words)

# %% [markdown]
# Light beats the dense product of large single vectors, and loses to the transform at every size. A batch of vectors moves the
# first crossing up: change `batch=1` and see.
#
# ## In a network of workers: feedback by light
#
# *Direct feedback alignment* trains a network without its transposed weights: every layer gets a fixed random projection of the
# output's error, which is what a unit computes. Eight workers on a ring train on digits: with exact gradients, with random
# feedback from one unit that all share, and with **no** feedback (only the last layer learns): without this control no accuracy
# of the second says anything.

# %%
workers, gradients, seeds = (4, 40, 2) if smoke else (8, 1500, 3)
layered = problem.layered_mlp(
    n=workers, hidden=(32, 32), scaling="range", test_fraction=0.3, batch_size=16, partition="iid", dtype="float32"
)  # fmt: skip
kinds = {
    "backpropagation": {"kind": "backprop"},
    "random feedback": {"kind": "dfa", "units": "shared"},
    "last layer only": {"kind": "shallow"},
}
trained = decentral.Comparison(
    [
        decentral.simulate(
            layered,
            topology.named("ring", n=workers),
            decentral.DPSGD(
                optimizer={"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9}, feedback=feedback
            ),
            decentral.Rounds(),
            stop=decentral.Gradients(gradients),
            record=decentral.Record(count=15),
            seeds=seeds,
            name=name,
            progress=True,
        )
        for name, feedback in kinds.items()
    ]
)
trained.plot("test_accuracy", against="gradients", title="Digits on a ring of eight")

# %% [markdown]
# Random feedback comes close to exact gradients here, and far above what the last layer can do alone. That it works is the
# interesting part; that it is quicker is not shown by this, and for models of this size it is not (`docs/optical.md` has the
# whole account, with 17 claims not to make).
#
# A topology can hold units as nodes that workers queue for: `topology.load_network("opu_rack")` has eight workers and one.

# %%
analysis.topology_figure(topology.load_network("opu_rack").topology())

# %% [markdown]
# The square is no worker: it computes projections for those it is joined to, one after another.
#
# Next: [a gallery of topologies](06_gallery_of_topologies.py).
