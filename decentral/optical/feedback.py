r"""Direct feedback alignment: every layer is taught by the output's error through a fixed random matrix of its own.

Backpropagation hands the error down from layer to layer. Here layer l of a chain gets

.. math:: \delta_l = B_l e, \quad e = \partial L / \partial \text{scores}

at its output, with :math:`B_l` drawn once and never trained, and makes of it the gradient of its own parameters. So all layers
can be updated at once, and no activation's gradient is ever computed; the last layer's gradient is exact. ``B e`` is a random
projection, which an optical unit does in a frame or a few.

References:
    Nøkland: Direct feedback alignment provides learning in deep neural networks, NeurIPS 2016; Launay, Poli, Krzakala:
    Principled training of neural networks with direct feedback alignment, 2019; Launay, Poli, Boniface, Krzakala: Direct
    feedback alignment scales to modern deep learning tasks and architectures, NeurIPS 2020 (all recalled).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from decentral.cost.optical import RandomProjection
from decentral.errors import InvalidInput, check_choice, check_integer, check_number, suggest
from decentral.hardware import optical_unit
from decentral.optical.camera import Camera
from decentral.optical.encoders import BitPlanes, Encoder, Ternary
from decentral.optical.unit import OpticalUnit
from decentral.problem import Problem, StagedProblem, Stages
from decentral.protocol.service import Service

PyTree = Any

KINDS = ("dfa", "shallow", "backprop", "intensity")
MATRICES = ("gaussian", "shared_slice", "uniform", "optical")
UNITS = ("shared", "private")
ERRORS = ("full", "top_k", "ternary")
MODES = ("anchor", "four_phase", "off_axis")
UNIT = ("hardware", "mode", "precision", "bits", "full_scale", "photons", "read_noise")
"""Arguments of ``Feedback`` that are an optical unit's."""
REGION = 2**16
"""Rows of an optical unit's matrix that are a layer's own."""
NOISE = 0xFEEDBAC5
"""Keeps draws of noise apart from those of mini-batches, which count from 0."""


@dataclasses.dataclass(frozen=True)
class Feedback:
    r"""What teaches the layers of a chain in place of the gradient that comes down it.

    Args:
        kind: ``"dfa"``; ``"shallow"``, no feedback: only the last layer learns, the control without which no accuracy of
            the others means anything; ``"backprop"``, the exact gradient; ``"intensity"``, a control too: :math:`|B_l e|^2`,
            what a camera sees of a field without a reference. It does not know the error's sign and teaches nothing.
        matrix: ``"gaussian"``: each layer its own, entries N(0, 1/C) for C scores; ``"shared_slice"``: the first rows of one
            such matrix for all layers; ``"uniform"``: those of one with entries of [-1, 1), over the root of the layer's
            width (TinyDFA divides by the root of the widest layer's); ``"optical"``: the rows of a simulated optical unit, in
            units where they are those of ``"gaussian"``. One unit serves all layers: each looks at pixels of its own. What it
            projects is binary: a ternary error in two frames of light, others as bit planes.
        units: ``"shared"``, all workers of a run project on one unit, that is have the same matrices; ``"private"``, each
            has a unit of its own. Two units never have the same matrix. Where gradients queue for the optical units of a
            topology it is those that count: workers share the matrix of their unit.
        error: what of a sample's error is sent: ``"full"``; ``"top_k"``, its k largest numbers; ``"ternary"``, the signs of
            those beyond ``threshold``, times their mean magnitude.
        k: numbers of an error that ``"top_k"`` sends.
        threshold: of ``"ternary"``. For classes it has to exceed 1/C: at first all scores are alike, and every wrong class
            has an error of 1/C, which would drown the right one's.
        snr: of the feedback: root mean square of the signal over that of Gaussian noise added to it, for each sample. None:
            no noise.
        scale: a factor of the feedback, which is one of the inner layers' learning rate.
        hardware: the optical unit that is simulated, a name of ``decentral.hardware``.
        mode: how the unit's output is linear in its input: ``"anchor"``, ``"four_phase"`` or ``"off_axis"``, see
            ``OpticalUnit.linear``.
        precision: bits of an error that is not ternary.
        bits, full_scale, photons, read_noise: of the unit's ``Camera``.

    Raises:
        InvalidInput: unknown words, or an argument that means nothing with the others.
    """

    kind: str = "dfa"
    matrix: str = "gaussian"
    units: str = "shared"
    error: str = "full"
    k: int | None = None
    threshold: float | None = None
    snr: float | None = None
    scale: float = 1.0
    hardware: str = "LightOn OPU Gen-2"
    mode: str = "anchor"
    precision: int = 6
    bits: int | None = 8
    full_scale: float | None = 5.0
    photons: float | None = None
    read_noise: float = 0.0

    def __post_init__(self) -> None:
        check_choice("feedback.kind", self.kind, KINDS)
        check_choice("feedback.matrix", self.matrix, MATRICES)
        check_choice("feedback.units", self.units, UNITS)
        check_choice("feedback.error", self.error, ERRORS)
        for name, error in (("k", "top_k"), ("threshold", "ternary")):
            self._goes_with(name, self.error == error, f"error = {error!r}")
        if self.k is not None:
            check_integer("feedback.k", self.k, 1)
        if self.matrix == "optical":
            self._check_unit()
        elif names := self._given(UNIT):
            raise InvalidInput(
                f"feedback.{names[0]}", getattr(self, names[0]), "nothing without matrix = 'optical'"
            )
        for name in ("threshold", "snr", "scale"):
            if getattr(self, name) is not None or name == "scale":
                check_number(f"feedback.{name}", getattr(self, name), 0, float("inf"), above=True)
        if self.kind in ("shallow", "backprop"):
            fields = [field.name for field in dataclasses.fields(self)]
            if names := self._given(fields[1:]):
                told = "There is no random feedback that they could describe."
                raise InvalidInput(
                    f"feedback.{names[0]}", names, f"nothing but kind with {self.kind!r}", told
                )

    def _given(self, names: Iterable[str]) -> list[str]:
        """Which of these arguments differ from their defaults."""
        return [name for name in names if getattr(self, name) != getattr(type(self), name)]

    def _check_unit(self) -> None:
        if self.kind == "intensity":
            told = "A control needs no unit: leave the matrix out."
            raise InvalidInput("feedback.matrix", self.matrix, "a digital one with kind = 'intensity'", told)
        if self.mode == "intensity":
            raise InvalidInput(
                "feedback.mode", self.mode, "one of: " + ", ".join(MODES),
                "|H e|^2 does not know the sign of e, and teaches nothing. kind = 'intensity' is the control that shows it.",
            )  # fmt: skip
        check_choice("feedback.mode", self.mode, MODES)
        check_integer("feedback.precision", self.precision, 1, 16)
        optical_unit(self.hardware)
        _ = self.camera

    def _goes_with(self, name: str, needed: bool, words: str) -> None:
        value = getattr(self, name)
        if needed and value is None:
            raise InvalidInput(f"feedback.{name}", None, f"a number with {words}")
        if not needed and value is not None:
            raise InvalidInput(f"feedback.{name}", value, f"nothing without {words}")

    @property
    def is_random(self) -> bool:
        """Whether some layers learn from random projections."""
        return self.kind in ("dfa", "intensity")

    def as_dict(self) -> dict[str, Any]:
        """The spec table that makes this."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    # -- the feedback of one layer -------------------------------------------------------------------------------------

    def signal(
        self, error: jax.Array, width: int, layer: Any, unit_key: jax.Array, noise_key: jax.Array
    ) -> jax.Array:
        """The cotangent at the output of a layer, in the place of the one that backpropagation brings.

        Args:
            error: ``(..., C)``, the derivative of a batch's mean loss with respect to its scores.
            width: numbers of the layer's output that belong to one row of ``error``.
            layer: 0, 1, ...; may be traced.
            unit_key: JAX key of the unit: the same key, the same matrices.
            noise_key: JAX key of this projection's noise.

        Returns:
            ``(..., width)``, of the error's dtype.

        Raises:
            InvalidInput: of ``"backprop"``, which has no such feedback; k above C.
        """
        if self.kind == "backprop":
            raise InvalidInput("feedback.kind", self.kind, "a feedback that needs nothing but the error")
        if self.kind == "shallow":
            return jnp.zeros((*error.shape[:-1], width), error.dtype)
        # A mean over rows has divided their errors; what is sent of a row must not depend on how many there are.
        rows = jnp.maximum(jnp.sum(jnp.any(error != 0, -1)), 1).astype(error.dtype)
        sent = self._sent(error * rows)
        project = self._by_light if self.matrix == "optical" else self._by_product
        signal = project(sent, width, layer, unit_key, noise_key)
        if self.snr is not None:
            size = jnp.sqrt(jnp.mean(signal**2, -1, keepdims=True))
            noise = jax.random.normal(jax.random.fold_in(noise_key, 0), signal.shape, signal.dtype)
            signal += size / self.snr * noise
        return self.scale * signal / rows

    def _sent(self, error: jax.Array) -> jax.Array:
        """What of the rows' errors goes to the projector."""
        size = jnp.abs(error)
        if self.k is not None:
            if self.k > error.shape[-1]:
                raise InvalidInput("feedback.k", self.k, f"at most {error.shape[-1]}, the scores")
            smallest = jax.lax.top_k(size, self.k)[0][..., -1:]
            return jnp.where(size >= smallest, error, 0)
        if self.threshold is not None:
            kept = size > self.threshold
            mean = jnp.sum(size * kept, -1, keepdims=True) / jnp.maximum(jnp.sum(kept, -1, keepdims=True), 1)
            return jnp.sign(error) * kept * mean
        return error

    def _by_product(
        self, sent: jax.Array, width: int, layer: Any, unit_key: jax.Array, noise_key: jax.Array
    ) -> jax.Array:
        matrix = self.rows(sent.shape[-1], width, layer, unit_key, sent.dtype)
        if self.kind == "intensity":
            other = self.rows(sent.shape[-1], width, layer, jax.random.fold_in(unit_key, 1), sent.dtype)
            return ((sent @ matrix.T) ** 2 + (sent @ other.T) ** 2) / 2
        return sent @ matrix.T

    def _by_light(
        self, sent: jax.Array, width: int, layer: Any, unit_key: jax.Array, noise_key: jax.Array
    ) -> jax.Array:
        scores = sent.shape[-1]
        unit = OpticalUnit(
            0, unit_key, scores, width, self.camera, self.hardware, jnp.asarray(layer) * REGION
        )
        largest = jnp.max(jnp.abs(sent), -1, keepdims=True)
        largest = jnp.where(largest > 0, largest, 1)  # of an error that is nothing, nothing is sent
        encoder = self.encoder
        planes = encoder.encode(sent / largest)
        key = jax.random.fold_in(noise_key, 1)
        # The real part of an entry has half of its variance.
        projected = encoder.decode(unit.linear(planes, key, mode=self.mode))
        return (projected * (2 / scores) ** 0.5 * largest).astype(sent.dtype)

    @property
    def camera(self) -> Camera:
        """The optical unit's."""
        return Camera(self.bits, self.full_scale, self.photons, self.read_noise)

    @property
    def encoder(self) -> Encoder:
        """What makes an error, divided by its largest number, binary."""
        return Ternary(0.5) if self.error == "ternary" else BitPlanes(self.precision)

    @property
    def frames(self) -> int:
        """Frames of light that one row of errors takes on an optical unit; 0 where there is none."""
        if not self.is_random or self.matrix != "optical":
            return 0
        return self.encoder.planes * optical_unit(self.hardware).mode(self.mode).frames(False)

    def rows(
        self, scores: int, width: int, layer: Any, unit_key: jax.Array, dtype: Any = jnp.float32
    ) -> jax.Array:
        """B_l of a digital matrix, ``(width, scores)``; more width adds rows and changes none.

        Raises:
            InvalidInput: of ``"optical"``, whose matrix nobody knows.
        """
        if self.matrix == "optical":
            raise InvalidInput("feedback.matrix", self.matrix, "a digital one: nobody knows a unit's matrix")
        own = layer if self.matrix == "gaussian" else 0
        key = jax.random.fold_in(unit_key, own)

        def row(number: jax.Array) -> jax.Array:
            mine = jax.random.fold_in(key, number)
            if self.matrix == "uniform":
                return jax.random.uniform(mine, (scores,), dtype, -1, 1) / width**0.5
            return jax.random.normal(mine, (scores,), dtype) / scores**0.5

        return jax.vmap(row)(jnp.arange(width))

    # -- what it costs -------------------------------------------------------------------------------------------------

    def service(self, problem: Problem) -> Service | None:
        """What a gradient asks of an optical unit, and what of backpropagation's time is left to the worker.

        Of three parts, forward pass, gradients of activations, gradients of weights, ``"dfa"`` leaves out the second, and
        ``"shallow"`` the third too, but for the last layer's, which is not counted here. ``"backprop"`` leaves out nothing: None.
        """
        if self.kind == "backprop":
            return None
        if self.kind == "shallow":
            return Service(None, 1 / 3, 0.0)
        return Service(self.projection(problem), 1 / 3, 1 / 3)

    def projection(self, problem: Problem) -> RandomProjection | None:
        """What an optical unit projects for a gradient; None: its matrix is a digital one.

        Each row of the batch's errors is a vector, in the planes of its encoder and the frames of the mode; its pixels are those
        of all layers together. Which unit does it, with which frame rate, the topology says.
        """
        if not self.frames:
            return None
        check_feedback(self, self, "the algorithm", problem)
        assert isinstance(problem, StagedProblem)
        scores, ternary = problem.stages.scores.shape, self.error == "ternary"
        batch = round(problem.samples_per_gradient * math.prod(scores[1:-1]))
        return RandomProjection(
            inputs=scores[-1] if len(scores) > 1 else 1, outputs=sum(_widths(problem.stages)), batch=batch, mode=self.mode,
            bits=1 if ternary else self.precision, signed=True,
        )  # fmt: skip

    # -- gradients -----------------------------------------------------------------------------------------------------

    def oracle(self, problem: Problem) -> Callable:
        """``(params, shards, worker, key, count, unit=None) -> slopes``, in the place of ``problem.gradient``.

        ``unit`` is the JAX key of the worker's projection unit; a default stands for it where only shapes matter.

        Raises:
            InvalidInput: the problem has no layers, or its errors no such ternary form.
        """
        check_feedback(self, self, "the algorithm", problem)
        assert isinstance(problem, StagedProblem)

        def slopes(params, shards, worker, key, count, unit=None):
            if self.kind == "backprop":
                return problem.gradient(params, shards, worker, key, count)
            x, labels = problem.batch(shards, worker, key, count)
            noise = self.noise_key(key, count)
            unit = jax.random.key(0) if unit is None else unit
            return self.slopes(problem.stages, params, x, labels, unit, noise)

        return slopes

    def slopes(
        self,
        stages: Stages,
        params: PyTree,
        x: PyTree,
        labels: PyTree,
        unit_key: jax.Array,
        noise_key: jax.Array,
    ) -> PyTree:
        """What stands for the gradient of a mini-batch's loss with respect to the parameters of all stages.

        Args:
            stages: the chain.
            params: of all its stages.
            x: inputs of the batch.
            labels: of the batch.
            unit_key: of the unit.
            noise_key: of this batch's noise.
        """
        if self.kind == "backprop":
            return jax.grad(lambda p: stages.loss(stages.apply(p, x), labels))(params)
        local: dict[str, list[PyTree]] = {kind: [] for kind in stages.order}
        seen = []
        for kind, layers, own in _runs(stages, params):

            def forward(x, p, apply=stages.kinds[kind].apply):
                outputs, pull = jax.vjp(lambda p: apply(p, x), p)
                return outputs, pull

            if len(layers) > 1:
                x, pulls = jax.lax.scan(forward, x, own, len(layers))
            else:  # what it gives may have another shape than what it takes
                x, pull = forward(x, jax.tree.map(lambda leaf: leaf[0], own))
                pulls = jax.tree.map(lambda leaf: leaf[None], pull)
            seen.append((kind, layers, own, x, pulls))
        last, row = stages.place(len(stages) - 1)
        head = jax.tree.map(lambda leaf: leaf[row], params[last])
        scores, pull = jax.vjp(lambda p: stages.kinds[last].apply(p, x), head)
        error = jax.grad(stages.loss)(scores, labels)
        for kind, layers, own, outputs, pulls in seen:
            if self.kind == "shallow":
                local[kind].append(jax.tree.map(jnp.zeros_like, own))
                continue
            local[kind].append(
                jax.vmap(
                    lambda layer, pull, outputs=outputs: pull(
                        self.cotangent(error, outputs, layer, unit_key, noise_key)
                    )[0]
                )(jnp.asarray(layers), pulls)
            )
        local[last].append(jax.tree.map(lambda leaf: leaf[None], pull(error)[0]))
        return {
            kind: jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
            for kind, parts in local.items()
        }

    def noise_key(self, key: jax.Array, count: jax.Array) -> jax.Array:
        """JAX key of the noise of a worker's ``count``-th projection; ``key`` is that of its mini-batches."""
        return jax.random.fold_in(jax.random.fold_in(key, NOISE), count)

    def cotangent(
        self, error: jax.Array, outputs: PyTree, layer: Any, unit_key: jax.Array, noise_key: jax.Array
    ) -> PyTree:
        """The signal in the shape of a layer's output, which is a tree of arrays: ``(rows of the error, its own axes)``."""
        error = error[:, None] if error.ndim == 1 else error
        lead = error.ndim - 1
        leaves, structure = jax.tree.flatten(outputs)
        widths = [math.prod(leaf.shape[lead:]) for leaf in leaves]
        noise = jax.random.fold_in(noise_key, layer)
        signal = self.signal(error, sum(widths), layer, unit_key, noise)
        cuts = list(itertools.accumulate(widths))[:-1]
        parts = zip(jnp.split(signal, cuts, axis=-1), leaves, strict=True)
        return structure.unflatten(part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in parts)

    def alignment(
        self, stages: Stages, params: PyTree, x: PyTree, labels: PyTree, unit_key: jax.Array
    ) -> jax.Array:
        """``(J - 1,)``: for each layer but the last, the cosine of its slopes and the exact gradient; 0 where one vanishes."""
        ours = self.slopes(stages, params, x, labels, unit_key, jax.random.fold_in(unit_key, NOISE))
        exact = jax.grad(lambda p: stages.loss(stages.apply(p, x), labels))(params)

        def cosine(j: int) -> jax.Array:
            kind, row = stages.place(j)
            pairs = [
                jnp.stack([one[row].ravel(), other[row].ravel()])
                for one, other in zip(jax.tree.leaves(ours[kind]), jax.tree.leaves(exact[kind]), strict=True)
            ]
            one, other = jnp.concatenate(pairs, axis=1)
            size = jnp.linalg.norm(one) * jnp.linalg.norm(other)
            return jnp.where(size > 0, one @ other / jnp.where(size > 0, size, 1), 0)

        return jnp.stack([cosine(j) for j in range(len(stages) - 1)])


def as_feedback(value: Any) -> Feedback | None:
    """Accept a :class:`Feedback`, a kind, a table ``{"kind": "dfa", ...}``, or None for none.

    Raises:
        InvalidInput: no such feedback or argument.
    """
    if value is None or isinstance(value, Feedback):
        return value
    if not isinstance(value, str | Mapping):
        raise InvalidInput("feedback", value, "a Feedback, its kind, or a table with kind")
    table: dict[str, Any] = {"kind": value} if isinstance(value, str) else dict(value)
    allowed = [field.name for field in dataclasses.fields(Feedback)]
    for name in table:
        if name not in allowed:
            raise InvalidInput(
                f"feedback.{name}", table[name], "an argument of Feedback", suggest(name, allowed)
            )
    return Feedback(**table)


def check_feedback(feedback: Feedback, oracle: Any, algorithm: str, problem: Problem) -> None:
    """Refuse a feedback that an algorithm cannot use on a problem.

    Args:
        feedback: the algorithm's.
        oracle: the algorithm's.
        algorithm: its name.
        problem: the problem.

    Raises:
        InvalidInput: the algorithm's oracle is another, the problem has no layers, or its errors no such ternary form.
    """
    if oracle != feedback:
        raise InvalidInput(
            "feedback", feedback.kind, f"none for {algorithm}, whose oracle is {oracle!r}",
            "A feedback stands for the gradient, and there is none.",
        )  # fmt: skip
    if not isinstance(problem, StagedProblem):
        raise InvalidInput(
            "problem", problem.name, "a model made of layers where there is a feedback",
            "Take layered_mlp or another problem of stages, or your own with from_stages.",
        )  # fmt: skip
    stages = problem.stages
    classes = stages.scores.shape[-1]
    labels = problem.shards["samples"]["target"]
    if (
        feedback.threshold is not None
        and isinstance(labels, jax.Array)
        and jnp.issubdtype(labels.dtype, jnp.integer)
        and feedback.threshold <= 1 / classes
    ):
        raise InvalidInput(
            "feedback.threshold", feedback.threshold, f"above 1/C = {1 / classes:g} for {classes} classes",
            "At first all scores are alike, and the error of every wrong class is 1/C: below it they all are sent, and push "
            "the layers the same way for every sample.",
        )  # fmt: skip
    lead = stages.scores.shape[:-1] or stages.scores.shape
    widths = _widths(stages)
    if feedback.matrix == "optical":
        unit = optical_unit(feedback.hardware)
        room = unit.max_outputs // unit.mode(feedback.mode).pixels_per_output
        if max(widths) > REGION or REGION * (len(widths) - 1) + widths[-1] > room:
            told = f"Each layer has {REGION:,} of the {room:,} outputs of {unit.name} for itself."
            raise InvalidInput("problem", f"layers of {widths} numbers", "layers that one unit serves", told)
    for j, outputs in enumerate(stages.boundaries):
        for leaf in jax.tree.leaves(outputs):
            if not jnp.issubdtype(leaf.dtype, jnp.inexact) or leaf.shape[: len(lead)] != lead:
                raise InvalidInput(
                    f"stages[{j}] ({stages.order[j]!r})", f"an output {leaf.dtype}{list(leaf.shape)}",
                    f"floats with the leading axes {list(lead)} of the scores, where there is a feedback",
                )  # fmt: skip


def _widths(stages: Stages) -> list[int]:
    """Numbers of each layer's output, the last layer left out, that belong to one row of the error."""
    lead = len(stages.scores.shape[:-1] or stages.scores.shape)
    return [
        sum(math.prod(leaf.shape[lead:]) for leaf in jax.tree.leaves(outputs))
        for outputs in stages.boundaries
    ]


def _runs(stages: Stages, params: PyTree) -> Iterator[tuple[str, range, PyTree]]:
    """``(kind, their numbers, their parameters stacked)`` of equal stages that follow each other, the last left out."""
    first = 0
    for kind, run in itertools.groupby(stages.order[:-1]):
        length, row = len(list(run)), stages.place(first)[1]
        own = jax.tree.map(lambda leaf, row=row, to=row + length: leaf[row:to], params[kind])
        yield kind, range(first, first + length), own
        first += length
