"""A projection: everything there is to say of one model, layout, cluster and algorithm, in closed forms."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from decentral.cost.algorithms import METHODS, Algorithm, Exchange, between
from decentral.cost.cluster import Cluster
from decentral.cost.conventions import applicable, flops_per_token, utilisation
from decentral.cost.energy import JOULES_PER_KWH, co2_kg, energy_j, load_power_w, money, power_w
from decentral.cost.failures import checkpoint_s, data_stall, decentralised_goodput, synchronous_goodput
from decentral.cost.kernels import Constants
from decentral.cost.layout import Layout
from decentral.cost.memory import OPTIMIZER_BYTES, Memory, memory
from decentral.cost.optical import RandomProjection, Rivals, feedback
from decentral.cost.step import CONSTANTS, Step, step
from decentral.cost.stragglers import Spread, cycle_time, expected_max, partners
from decentral.cost.workload import Transformer, Workload
from decentral.hardware import optical_unit

WAITING_WORKERS = 64
"""Of the simulated graph along which delays travel: the mean time of a round has nearly stopped growing there."""
EVEN = Spread()
"""Every step takes as long as projected."""
CHECKPOINT_BYTES = 14
"""Of a parameter: 2, and Adam's 12."""
COMPUTE = (
    "peak",
    "ceiling",
    "shape",
    "attention",
    "memory-bound",
    "quantization",
    "launches",
    "recompute",
    "routing",
    "optimizer",
)
"""Parts of a step in which a device draws its full power."""


@dataclass(frozen=True)
class Conditions:
    """What a run meets besides its own arithmetic, and what its user pays.

    Attributes:
        spread: law of the time of a replica's step, as multiples of the projected one.
        device_mtbf_s: between two failures of one device; None: nothing fails.
        restart_s: from a failure to the first useful work.
        storage_bytes_per_s: that takes checkpoints, from all nodes together.
        node_write_bytes_per_s: of each node to it.
        sample_bytes: read for each sample.
        read_bytes_per_s: of the data, by all nodes together.
        price_per_device_hour: in the user's currency; None: no price is known.
        kg_co2_per_kwh: of the grid; None: not known.
        pue: energy of the building over that of its computers.
        load_power_w: of a device under load with its share of the node; None: 1.22 times its thermal design power.
        tokens: (or samples) of the whole run; None: a step is all that is projected.
        optimizer_bytes: of a parameter.
    """

    spread: Spread = EVEN
    device_mtbf_s: float | None = None
    restart_s: float = 600.0
    storage_bytes_per_s: float = np.inf
    node_write_bytes_per_s: float = np.inf
    sample_bytes: float = 0.0
    read_bytes_per_s: float = np.inf
    price_per_device_hour: float | None = None
    kg_co2_per_kwh: float | None = None
    pue: float = 1.0
    load_power_w: float | None = None
    tokens: float | None = None
    optimizer_bytes: float = OPTIMIZER_BYTES


NOTHING_ELSE = Conditions()
"""No stragglers, failures, stalls or prices."""


@dataclass(frozen=True)
class Projection:
    """What :func:`project` found; numbers, or arrays of the configurations' shape.

    Attributes:
        model: the workload.
        layout: its layout.
        cluster: what it runs on.
        algorithm: between workers.
        conditions: what else it meets.
        step: of one worker alone.
        exchange: what the algorithm adds.
        memory: of the fullest device.
        parts: what -> seconds of a step, which add up to ``step_s``.
    """

    model: Workload
    layout: Layout
    cluster: Cluster
    algorithm: Algorithm
    conditions: Conditions
    step: Step
    exchange: Exchange
    memory: Memory
    parts: dict[str, Any]

    @property
    def step_s(self) -> Any:
        """Seconds of a step of the batch asked for, failures and waiting included."""
        return sum(self.parts.values())

    @property
    def samples_per_s(self) -> Any:
        """Sequences (images, samples) of all devices."""
        return np.asarray(self.layout.global_batch, float) / self.step_s

    @property
    def tokens_per_s(self) -> Any:
        """Tokens of all devices; of a workload without tokens, samples."""
        return self.samples_per_s * (self.model.sequence if isinstance(self.model, Transformer) else 1)

    @property
    def mfu(self) -> Any:
        """FLOPs the model needs (masked attention not counted, input embedding not counted) over the 16-bit peak."""
        return self.step.model_flops / (self.step_s * self.cluster.peak_flops)

    @property
    def hfu(self) -> Any:
        """The same with what is computed again, or computed though masked."""
        return self.step.hardware_flops / (self.step_s * self.cluster.peak_flops)

    def mfu_in(self, convention: str) -> Any:
        """MFU as another convention counts it, of the 16-bit peak; an HFU where the convention counts recomputation."""
        flops = flops_per_token(
            self.model, convention, embedding=False, recomputed=self.layout.recompute == "full"
        )
        return utilisation(self.tokens_per_s, flops, self.cluster.devices, self.cluster.peak_flops)

    def conventions(self) -> dict[str, Any]:
        """Convention -> MFU, of all that apply to the workload."""
        known = applicable(self.model, recomputed=self.layout.recompute == "full")
        return {name: self.mfu_in(name) for name in known}

    @property
    def busy(self) -> Any:
        """Share of the time in which a device computes."""
        computing = sum(self.parts.get(name, 0.0) for name in COMPUTE)
        if self.algorithm.kind == "dfa" and self.algorithm.get("projector") != "optical":
            computing = computing + self.parts.get("projection", 0.0)
        return np.minimum(computing / self.step_s, 1.0)

    @property
    def power_known(self) -> bool:
        """Whether there is a power to compute energy from: given, or the device's."""
        return self.conditions.load_power_w is not None or self.cluster.device.power_w is not None

    @property
    def watts(self) -> Any:
        """Mean power of a device with its share of the node."""
        load = self.conditions.load_power_w
        return power_w(load_power_w(self.cluster.device) if load is None else load, self.busy)

    @property
    def energy_j(self) -> Any:
        """Of a step on all devices, with the building's share."""
        return energy_j(self.watts, self.step_s, self.cluster.devices, self.conditions.pue)

    @property
    def steps(self) -> Any:
        """Of the whole run; 1 where its length is not given."""
        if self.conditions.tokens is None:
            return 1.0
        return self.conditions.tokens / (self.tokens_per_s * self.step_s)

    @property
    def run_s(self) -> Any:
        """Seconds of the whole run."""
        return self.steps * self.step_s

    @property
    def run_kwh(self) -> Any:
        """Energy of the whole run."""
        return self.steps * self.energy_j / JOULES_PER_KWH

    @property
    def run_money(self) -> Any:
        """Price of the whole run; None without a price."""
        return money(self.run_s, self.cluster.devices, self.conditions.price_per_device_hour)

    @property
    def run_co2_kg(self) -> Any:
        """Of the whole run; None without the grid's factor."""
        return co2_kg(self.run_kwh * JOULES_PER_KWH, self.conditions.kg_co2_per_kwh)

    @property
    def sent_bytes(self) -> dict[str, Any]:
        """What -> bytes that one device sends in a step."""
        return self.step.sent_bytes | {"between workers": self.exchange.sent_bytes}

    @property
    def link_bytes(self) -> dict[str, Any]:
        """Link -> bytes over it in a step: "scaleup" of one device, "network" of one node's NICs together."""
        leaving = self.step.leaving | {"between workers": self.exchange.leaving}
        out = sum(sent * leaving[what] for what, sent in self.sent_bytes.items())
        inside = sum(sent * (1 - leaving[what]) for what, sent in self.sent_bytes.items())
        node = np.minimum(self.cluster.node_size, self.cluster.devices)
        return {"scaleup": inside, "network": out * node}


def project(
    model: Workload,
    layout: Layout,
    cluster: Cluster,
    algorithm: Algorithm,
    conditions: Conditions = NOTHING_ELSE,
    constants: Constants = CONSTANTS,
) -> Projection:
    """Everything, from closed forms; legality is checked elsewhere (``layout.problems``, ``Algorithm.problems``).

    PETRA's stages never flush and reconstruct their inputs; DFA's stages go backward at once, when the error has been projected,
    and so idle only while a batch goes forward.
    """
    if algorithm.kind == "petra":
        layout = replace(layout, schedule="petra", recompute="full", recompute_share=1.0, virtual=1)
    elif algorithm.kind == "dfa":
        layout = replace(layout, schedule="dfa", virtual=1)
    alone = step(model, layout, cluster, constants)
    exchange = algorithm.exchange(between(layout, cluster, alone, constants))
    parts = {**alone.parts, "between workers": exchange.exposed_s}
    if algorithm.kind == "dfa" and isinstance(model, Transformer):
        parts["projection"] = feedback_s(model, layout, cluster, algorithm, constants)
    together = sum(parts.values())
    parts["stragglers"] = alone.total_s * (waiting(layout, algorithm, conditions.spread) - 1)
    seconds = together + parts["stragglers"]
    rate = np.asarray(layout.global_batch, float) / seconds
    stalled = (
        data_stall(conditions.sample_bytes, rate, conditions.read_bytes_per_s)
        if conditions.sample_bytes
        else 0.0
    )
    parts["data"] = seconds * stalled / (1 - stalled)
    useful = goodput(model, layout, cluster, algorithm, conditions)
    with np.errstate(divide="ignore"):  # a job that never gets anywhere takes for ever
        parts["failures"] = (seconds + parts["data"]) * (1 / np.asarray(useful) - 1)
    used = memory(model, layout, cluster, algorithm, conditions.optimizer_bytes)
    return Projection(model, layout, cluster, algorithm, conditions, alone, exchange, used, parts)


def feedback_s(
    model: Transformer,
    layout: Layout,
    cluster: Cluster,
    algorithm: Algorithm,
    constants: Constants = CONSTANTS,
) -> Any:
    """Seconds of a step in which DFA's error is projected: of every token, from the vocabulary to each layer of a stage.

    Nothing overlaps with it: layers wait for it. On an optical unit errors are ternary, a frame for each sign and token.
    """
    rows, layers = _fed_back(model, layout)
    # A dense matrix of this size may fit nowhere; it is drawn again where it is needed.
    rivals = Rivals(optical_unit(algorithm.get("unit")), cluster, constants, matrix="generated", watts=1.0)
    costs = feedback(rows, model.vocab, layers, np.asarray(model.hidden, float), rivals)
    return costs[algorithm.get("projector")].seconds / layout.tp


def _fed_back(model: Transformer, layout: Layout) -> tuple[Any, Any]:
    """Tokens of a step, and layers of a stage that get feedback."""
    rows = layout.micro_batches * layout.micro_batch * model.sequence / layout.cp
    return rows, np.maximum(np.asarray(model.layers, float) / layout.pp, 1.0)


def feedback_task(one: Projection) -> tuple[RandomProjection, Rivals]:
    """What DFA projects in a step on one device, before tensor parallelism shares it, and the hardware it may run on.

    Args:
        one: a projection of DFA, of one configuration.
    """
    assert isinstance(one.model, Transformer)
    rows, layers = _fed_back(one.model, one.layout)
    outputs = float(np.max(layers * np.asarray(one.model.hidden, float)))
    vectors = int(float(np.max(rows)))
    task = RandomProjection(int(one.model.vocab), int(outputs), vectors, "anchor", False, 1, True)
    return task, Rivals(optical_unit(one.algorithm.get("unit")), one.cluster, matrix="generated")


def waiting(layout: Layout, algorithm: Algorithm, spread: Spread) -> Any:
    """Mean time of a step over that of a replica alone: waiting inside a worker, and for others as the algorithm does.

    Inside, every step lasts as long as its slowest replica. Between workers that meet every H steps, the sum of H counts. Where a
    worker waits for some others, delays travel: that is simulated, on at most 64 workers.
    """
    if spread.kind == "constant":
        return 1.0
    method = METHODS[algorithm.kind]
    inside = expected_max(spread, layout.replicas) / spread.mean_s - 1
    if method.waits == "none":
        return 1 + inside
    if "local_steps" not in method.options and method.waits == "all":  # one barrier for all
        return expected_max(spread, layout.dp) / spread.mean_s
    steps = algorithm.get("local_steps") if "local_steps" in method.options else 1
    between = np.vectorize(_between, excluded=(0, 1), otypes=[float])(
        spread, method.waits, steps, layout.n_workers
    )
    return inside + between


@cache
def _between(spread: Spread, waits: str, steps: float, workers: float) -> float:
    """Mean time of a step over a worker's own, where workers wait after every ``steps``."""
    steps = max(1, round(steps))
    if workers <= 1:
        return 1.0
    if waits == "all" and (steps == 1 or spread.kind not in ("pareto", "slow_worker")):
        return float(expected_max(spread.summed(steps), workers)) / (steps * spread.mean_s)
    if waits == "all":  # the law of a sum of these is not known
        waits = "barrier"
    n = int(
        min(WAITING_WORKERS, workers if waits in ("barrier", "ring") else 2 ** math.floor(math.log2(workers)))
    )
    return cycle_time(spread, partners(waits, n), n, steps=steps, cycles=200, copies=32) / (
        steps * spread.mean_s
    )


def goodput(
    model: Workload, layout: Layout, cluster: Cluster, algorithm: Algorithm, conditions: Conditions
) -> Any:
    """Share of the time that does useful work: with a barrier any failure stops everybody, without its worker alone."""
    if conditions.device_mtbf_s is None:
        return 1.0
    island = layout.devices / layout.n_workers
    if METHODS[algorithm.kind].waits == "none" and algorithm.kind != "acco":  # its collective needs all
        return decentralised_goodput(conditions.device_mtbf_s / island, conditions.restart_s)
    saved_s = checkpoint_s(
        CHECKPOINT_BYTES * np.asarray(model.parameters, float),
        cluster.nodes,
        conditions.node_write_bytes_per_s,
        conditions.storage_bytes_per_s,
    )
    return synchronous_goodput(
        np.maximum(saved_s, 1.0), conditions.restart_s, conditions.device_mtbf_s, layout.devices
    )


# -- what each number of the hardware is worth ---------------------------------------------------------------------------

HARDWARE_NUMBERS = (
    "ceiling_flops", "low_ceiling_flops", "memory_bytes_per_s", "scaleup_bytes_per_s",
    "node_bytes_per_s", "latency_s", "compute_units",
)  # fmt: skip


def sensitivity(
    projection: Projection, change: float = 0.01, constants: Constants = CONSTANTS
) -> dict[str, float]:
    """D log(step time) / d log(number), for each number of the hardware: -1 means twice as fast with twice of it.

    Central differences of relative width ``change``. The peak is not among
    them: it is what MFU divides by, and time depends on the ceiling.
    """
    found = {}
    for name in HARDWARE_NUMBERS:
        value = getattr(projection.cluster, name)
        if value is None or not np.all(np.isfinite(value)) or np.all(np.asarray(value) == 0):
            continue
        seconds = [
            project(
                projection.model,
                projection.layout,
                replace(projection.cluster, **{name: value * factor}),
                projection.algorithm,
                projection.conditions,
                constants,
            ).step_s
            for factor in (1 + change, 1 - change)
        ]
        found[name] = float(np.log(seconds[0] / seconds[1]) / np.log((1 + change) / (1 - change)))
    return found
