"""Scaling: laws of the loss, what a training run of a given size needs, and how communication grows with a model.

What a scaling law says holds for synchronous training; what asynchrony costs has to be simulated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from decentral.cost.checks import check_numbers
from decentral.errors import InvalidInput

PF_DAY = 8.64e19
"""FLOP of a day at 1e15 FLOP/s."""
YEAR_S = 365.25 * 86400
TRAINING_FLOP = 6
"""FLOP for each parameter and token: 2 forward, 4 backward. With the forward pass done again, 8."""


# -- laws of the loss --------------------------------------------------------------------------------------------------


class Optimum(NamedTuple):
    """The model and the data that a budget is best spent on; 6 parameters tokens is the budget.

    Attributes:
        parameters: N.
        tokens: D.
    """

    parameters: np.ndarray
    tokens: np.ndarray


@dataclass(frozen=True)
class AdditiveLaw:
    """L = irreducible + a / N^alpha + b / D^beta, nats per token (Hoffmann et al. 2022).

    Attributes:
        irreducible: the loss of an infinite model on infinite data.
        a: scale of the model's term.
        alpha: its exponent.
        b: scale of the data's term.
        beta: its exponent.
        source: where the numbers are from.
        tag: how they are known.
    """

    irreducible: float
    a: float
    alpha: float
    b: float
    beta: float
    source: str
    tag: str

    def loss(self, parameters: ArrayLike, tokens: ArrayLike) -> np.ndarray:
        """Nats per token; of the shape of both together."""
        n, d = _positive(parameters=parameters, tokens=tokens)
        return self.irreducible + self.a / n**self.alpha + self.b / d**self.beta

    def compute_optimal(self, flop: ArrayLike) -> Optimum:
        """Least loss for so many FLOP, C = 6 N D: N = G (C/6)^(beta/(alpha+beta)), in closed form."""
        (flop,) = _positive(flop=flop)
        both = self.alpha + self.beta
        scale = (self.alpha * self.a / (self.beta * self.b)) ** (1 / both)
        n = scale * (flop / TRAINING_FLOP) ** (self.beta / both)
        return Optimum(n, flop / (TRAINING_FLOP * n))


@dataclass(frozen=True)
class JointLaw:
    """L = ((critical_parameters / N)^(alpha_n / alpha_d) + critical_tokens / D)^alpha_d, nats per token (Kaplan et al. 2020).

    N leaves out embeddings.

    Attributes:
        critical_parameters: scale of the model's term.
        alpha_n: its exponent.
        critical_tokens: scale of the data's term.
        alpha_d: its exponent.
        source: where the numbers are from.
        tag: how they are known.
    """

    critical_parameters: float
    alpha_n: float
    critical_tokens: float
    alpha_d: float
    source: str
    tag: str

    def loss(self, parameters: ArrayLike, tokens: ArrayLike) -> np.ndarray:
        """Nats per token; of the shape of both together."""
        n, d = _positive(parameters=parameters, tokens=tokens)
        model = (self.critical_parameters / n) ** (self.alpha_n / self.alpha_d)
        return (model + self.critical_tokens / d) ** self.alpha_d

    def compute_optimal(self, flop: ArrayLike) -> Optimum:
        """The paper's fit N = 1.3e9 C^0.73, C in PF-days far below the critical batch, and the tokens that are left."""
        (flop,) = _positive(flop=flop)
        n = 1.3e9 * (flop / PF_DAY) ** 0.73
        return Optimum(n, flop / (TRAINING_FLOP * n))


LAWS: dict[str, AdditiveLaw | JointLaw] = {
    "kaplan": JointLaw(8.8e13, 0.076, 5.4e13, 0.095, "Kaplan et al. 2020, arXiv 2001.08361", "recalled"),
    "chinchilla": AdditiveLaw(
        1.69, 406.4, 0.34, 410.7, 0.28, "Hoffmann et al. 2022, arXiv 2203.15556, third approach", "recalled"
    ),
    "besiroglu": AdditiveLaw(
        1.82,
        482,
        0.348,
        2085,
        0.366,
        "Besiroglu et al. 2024, arXiv 2404.10102: the same data, fitted again",
        "recalled",
    ),
}
"""Name -> law. They disagree: for 5.8e23 FLOP Chinchilla's own formula wants 93 tokens for each parameter, the fit to the same
data by Besiroglu et al. 18, and Chinchilla's other two approaches about 20 (recalled), which is what the model was trained on."""
CHINCHILLA_TOKENS = 20.0
"""Tokens for each parameter: the rule that Hoffmann et al. are remembered for (recalled)."""


def tokens_against_overfitting(parameters: ArrayLike) -> np.ndarray:
    """Tokens that keep a model from overfitting: 5e3 N^0.74 (Kaplan et al. 2020, recalled)."""
    return 5e3 * _positive(parameters=parameters)[0] ** 0.74


def critical_batch(loss: ArrayLike) -> np.ndarray:
    """Tokens of a batch beyond which larger ones save few steps: 2e8 / loss^(1/0.21) (Kaplan et al. 2020, recalled).

    Args:
        loss: nats per token.
    """
    return 2e8 / _positive(loss=loss)[0] ** (1 / 0.21)


# -- ten trillion parameters -------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """A training run in numbers.

    Attributes:
        assumption: about the data, in words.
        parameters: that a token is multiplied with.
        tokens: trained on.
        flop_rule: FLOP for each parameter and token.
        flop: of the run.
        gpus: that run it.
        gpu_flops: FLOP/s that each sustains.
        years: it takes.
    """

    assumption: str
    parameters: float
    tokens: float
    flop_rule: float
    flop: float
    gpus: float
    gpu_flops: float
    years: float


def training_run(
    parameters: float,
    tokens: float,
    gpus: float,
    gpu_flops: float,
    flop_rule: float = TRAINING_FLOP,
    assumption: str = "",
) -> Run:
    """How long training takes by FLOPs alone; arguments as :class:`Run` has them."""
    _positive(parameters=parameters, tokens=tokens, gpus=gpus, gpu_flops=gpu_flops, flop_rule=flop_rule)
    flop = flop_rule * parameters * tokens
    return Run(
        assumption, parameters, tokens, flop_rule, flop, gpus, gpu_flops, flop / (gpus * gpu_flops * YEAR_S)
    )


TEN_TRILLION = 1e13
ACTIVE_OF_TEN_TRILLION = 376e9
"""Of a sparse model of ten trillion (MaxText's benchmark, read)."""
SUSTAINED_FLOPS = (140e12, 156e12, 312e12)
"""Of an A100: what Narayanan et al. 2021 sustain (read), half the dense bf16 peak, and all of it."""


def ten_trillion_runs(gpus: float = 8000, gpu_flops: float = SUSTAINED_FLOPS[0]) -> list[Run]:
    """What "a 10-trillion-parameter GPT-4 would need 8,000 A100s for 17 years" becomes under seven assumptions about its data.

    The third row is 17 years: one token for each parameter, at 140 TFLOP/s. The sentence's own source was not found.

    Args:
        gpus: A100s.
        gpu_flops: that each sustains.
    """
    n = TEN_TRILLION
    kaplan = (n / 1.3e9) ** (1 / 0.73) * PF_DAY / (TRAINING_FLOP * n)
    cases = (
        ("as many tokens as GPT-3, 3e11", n, 3e11, 6),
        ("compute-optimal by Kaplan et al.", n, kaplan, 6),
        ("one token for each parameter", n, n, 6),
        ("the same, every forward pass done twice", n, n, 8),
        ("against overfitting by Kaplan et al.", n, float(tokens_against_overfitting(n)), 6),
        ("20 tokens for each parameter, Chinchilla's rule", n, CHINCHILLA_TOKENS * n, 6),
        ("1e13 tokens, 376e9 parameters active", ACTIVE_OF_TEN_TRILLION, n, 6),
    )
    return [training_run(size, tokens, gpus, gpu_flops, rule, words) for words, size, tokens, rule in cases]


def training_memory_bytes(parameters: ArrayLike, bytes_per_parameter: ArrayLike = 16.0) -> np.ndarray:
    """Of parameters, gradients and Adam in mixed precision, on all GPUs together: 160 TB for ten trillion."""
    parameters, each = _positive(parameters=parameters, bytes_per_parameter=bytes_per_parameter)
    return parameters * each


def training_energy_j(run: Run, gpu_w: float) -> float:
    """Joules of a run with so many watts for each GPU, its share of the node included (``energy.load_power_w``)."""
    return float(run.gpus * _positive(gpu_w=gpu_w)[0] * run.years * YEAR_S)


# -- does communication grow faster than compute? ----------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A dense transformer with h x 4h feed-forward networks, and the degrees it is cut with.

    Attributes:
        name: of the model.
        layers: L.
        hidden: h.
        sequence: tokens of one.
        vocabulary: V; input and output embedding are one.
        tensor: GPUs a layer is cut over.
        pipeline: stages.
        tag: how layers and hidden are known.
    """

    name: str
    layers: int
    hidden: int
    sequence: int
    tensor: int
    pipeline: int
    tag: str
    vocabulary: int = 50257

    @property
    def parameters(self) -> float:
        """12 L h^2 + V h."""
        return 12.0 * self.layers * self.hidden**2 + self.vocabulary * self.hidden


SHAPES = (
    Shape("GPT-2", 48, 1600, 1024, 1, 1, "published, recalled"),
    Shape("GPT-3", 96, 12288, 2048, 8, 8, "published, recalled; degrees assumed"),
    Shape("10 trillion", 192, 65536, 2048, 8, 192, "assumed"),
)
"""Models of the claim. Degrees: enough GPUs of 80 GB to hold the model, at most 8 for a layer, a node: 25 GB on each, 44 GB, and
41 GB with the optimizer's 12 bytes for a parameter cut over 5 replicas."""


class Growth(NamedTuple):
    """What a model asks for, (models,) each; bytes are sent by all GPUs of one replica in one step, in bf16.

    Attributes:
        parameters: N.
        flop_per_token: of training, full attention.
        memory_bytes: of parameters, gradients and optimizer.
        step_flop: of a replica.
        data: all-reduce of the gradients: all that plain data parallelism sends, where each GPU would hold a whole replica,
            and as many bytes in all where the replica is cut.
        tensor: all-reduces of activations, four in each layer.
        pipeline: activations and their gradients between stages.
    """

    parameters: np.ndarray
    flop_per_token: np.ndarray
    memory_bytes: np.ndarray
    step_flop: np.ndarray
    data: np.ndarray
    tensor: np.ndarray
    pipeline: np.ndarray

    @property
    def outside_layers(self) -> np.ndarray:
        """Pipeline and data parallelism: without what tensor parallelism sends inside layers, and so inside nodes."""
        return self.data + self.pipeline

    @property
    def model_parallel(self) -> np.ndarray:
        """Tensor, pipeline and data parallelism together."""
        return self.outside_layers + self.tensor


def growth(
    shapes: tuple[Shape, ...] = SHAPES, replica_tokens: float = 50_000, replicas: float = 64
) -> Growth:
    """Compute, memory and communication of models of growing size, the tokens of a replica the same for all.

    Args:
        shapes: the models.
        replica_tokens: of a replica in one step; 50,000 on 64 replicas are GPT-3's batch of 3.2e6 (recalled).
        replicas: D, which matters little: a ring sends 2 (D - 1) / D gradients.
    """
    layers, hidden, sequence, tensor, pipeline, n = (
        np.array([getattr(shape, name) for shape in shapes], float)
        for name in ("layers", "hidden", "sequence", "tensor", "pipeline", "parameters")
    )
    replica_tokens, replicas = (float(x) for x in _positive(replica_tokens=replica_tokens, replicas=replicas))
    per_token = TRAINING_FLOP * n + 12 * layers * hidden * sequence
    width = 2  # bytes of bf16
    gradients = 2 * (replicas - 1) / replicas * width * n
    activations = replica_tokens * hidden * width
    return Growth(
        n,
        per_token,
        training_memory_bytes(n),
        replica_tokens * per_token,
        gradients,
        # each of 4 ring all-reduces of a layer: every one of t ranks sends 2 (t - 1) / t of the activations
        4 * layers * 2 * (tensor - 1) * activations,
        2 * (pipeline - 1) * activations,
    )


def exponent(sizes: ArrayLike, values: ArrayLike) -> float:
    """Slope of log values over log sizes, by least squares: above 1, they grow faster than the sizes.

    Raises:
        InvalidInput: fewer than two sizes, or values that are not positive.
    """
    sizes, values = _positive(sizes=sizes, values=values)
    if sizes.shape != values.shape or sizes.ndim != 1 or np.unique(sizes).size < 2:
        raise InvalidInput("sizes", sizes.tolist(), "two different sizes or more, and a value for each")
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def _positive(**numbers: ArrayLike) -> list[np.ndarray]:
    return [check_numbers(name, value, 0, math.inf, above=True) for name, value in numbers.items()]
