"""What a gradient asks of an optical unit, and how long that takes on the units of a topology."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from decentral.cost.optical import RandomProjection, asked_of
from decentral.errors import InvalidInput, check_number
from decentral.timing.cluster import Cluster
from decentral.topology import DirectedTopology, Topology, UnitNode


@dataclasses.dataclass(frozen=True)
class Service:
    """What one gradient asks of an optical unit, and what is left to the worker.

    Args:
        task: the projection, with the samples of a gradient as its batch; None: there is none, or the worker does it.
        before: of the seconds that a gradient by backpropagation takes, those until the request is sent. Direct feedback
            alignment: 1/3, the forward pass.
        after: those from the reply on: 1/3, the gradients of the weights. Those of activations are not computed. A learned
            optimizer's step is added.

    Raises:
        InvalidInput: shares that are negative, or none at all.
    """

    task: RandomProjection | None = None
    before: float = 1 / 3
    after: float = 1 / 3

    def __post_init__(self) -> None:
        check_number("service.before", self.before, 0, 1)
        check_number("service.after", self.after, 0, math.inf)
        if self.share <= 0:
            raise InvalidInput("service", "no share of a gradient's time", "before or after above 0")

    @property
    def share(self) -> float:
        """Of the seconds that a gradient by backpropagation takes, those that the worker computes."""
        return self.before + self.after


class Turn(NamedTuple):
    """What one request takes on one unit, when it has to wait for nobody.

    Attributes:
        frames: of light.
        serve_s: seconds of these frames.
        request_bytes: to the unit.
        reply_bytes: from it.
        request_s: seconds of these bytes on the link.
        reply_s: likewise.
        latency_s: of the link, to be added to each.
    """

    frames: int
    serve_s: float
    request_bytes: int
    reply_bytes: int
    request_s: float
    reply_s: float
    latency_s: float

    @property
    def seconds(self) -> float:
        """From the request to the reply."""
        return self.request_s + self.serve_s + self.reply_s + 2 * self.latency_s

    @property
    def bottleneck_s(self) -> float:
        """Seconds that the slowest of its three stages is busy: no more than one request in that time comes through."""
        return max(self.request_s, self.serve_s, self.reply_s)


def turn_of(task: RandomProjection, unit: UnitNode) -> Turn:
    """What a request takes on a unit.

    All frames of a request follow each other when its last byte has come, and all of them are sent back at once; frames
    and bytes of different requests overlap.

    Raises:
        InvalidInput: a mode that the unit does not have; more numbers than it has mirrors or pixels.
    """
    hardware = unit.hardware
    asked = asked_of(task, hardware)
    if not asked.possible:
        got = f"{task.inputs:,} -> {task.outputs:,} in {task.mode} mode"
        allowed = (
            f"at most {hardware.max_inputs:,} mirrors and {hardware.max_outputs:,} pixels ({hardware.name})"
        )
        raise InvalidInput("topology.units", got, allowed)
    frames = round(float(task.batch * task.planes * asked.frames_per_vector))
    sent, read = round(frames * float(asked.bytes_in)), round(frames * float(asked.bytes_out))
    bytes_per_s = unit.bandwidth_bytes_per_s
    assert bytes_per_s is not None
    return Turn(
        frames,
        frames * float(asked.frame_s),
        sent,
        read,
        sent / bytes_per_s,
        read / bytes_per_s,
        unit.latency_s,
    )


def require_served(topology: Topology | DirectedTopology) -> None:
    """Refuse a topology in which some workers have a unit and others none.

    Raises:
        InvalidInput: names the first worker without.
    """
    without = [worker for worker, unit in enumerate(topology.unit_of.tolist()) if unit < 0]
    if without:
        got = f"{len(without)} of {topology.n} workers without a unit, worker {without[0]} the first"
        advice = "The algorithm's feedback is optical: every worker asks a unit."
        raise InvalidInput("topology.units", got, "a unit for every worker", advice)


def gradient_rate(topology: Topology | DirectedTopology, service: Service | None, cluster: Cluster) -> float:
    """Expected gradients per worker and second, averaged over the workers: at most this many, where they ask a unit.

    Without a unit :meth:`Cluster.gradient_rate`. With one, the smaller of two bounds of a closed queueing network (Denning,
    Buzen: The operational analysis of queueing network models, 1978; recalled): no request waits, and the unit's slowest stage is
    never idle. The truth is lower where neither is far above the other.
    """
    rate = cluster.gradient_rate(topology.n)
    if service is None or service.task is None:
        return rate
    total = 0.0
    for unit in topology.units:
        turn, k = turn_of(service.task, unit), len(unit.serves)
        alone = 1 / (service.share / rate + turn.seconds)
        total += min(k * alone, 1 / turn.bottleneck_s)
    return total / topology.n
