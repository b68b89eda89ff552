"""What protocols and algorithms tell each other: the clocks an algorithm asks for, the clocks it got, when to stop."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Protocol as TypingProtocol
from typing import Self, TypeVar

import numpy as np

from decentral.engine.trace import StageShape, Trace
from decentral.errors import InvalidInput
from decentral.protocol.service import Service
from decentral.timing.cluster import Cluster
from decentral.topology import SCHEDULES, DirectedTopology, Schedule, Topology

MEETINGS = {
    "exchange": "pairs of neighbours, each with its own message",
    "mix": "all neighbours at once: a weighted mean of their messages",
    "push_sum": "all out-neighbours at once: shares of a sum and of its weight, on a directed graph",
    "average": "all workers at once: the mean of their messages",
    "dual_exchange": "pairs of neighbours, each with a gradient that it takes at that instant, and at no other time",
    "pairs": "all workers at once, in random pairs: each with its own message",
    "push": "one worker sends, another receives",
    "gradient": "none: one copy of the parameters, to which all workers send gradients",
    "batches": "none: one copy, and an all-reduce of all workers' gradients while they compute the next ones",
    "stages": "along a pipeline: each worker holds a stage of the model, and sends activations and gradients on",
    "feedback": "along a pipeline: each worker holds a stage of the model and sends activations on; the last sends its "
    "error to all, schedule 'dfa'",
}
"""How workers meet: what an algorithm's ``receive`` expects, and what a protocol has to offer."""


@dataclass(frozen=True)
class Demand:
    """What an algorithm asks of a protocol.

    Attributes:
        exchanges_per_s: exchanges per worker and unit of time where the protocol leaves the choice open; an exchange counts
            for both of its workers.
        meetings: how its workers may meet, keys of ``MEETINGS``, best first.
        local_steps: gradients between two meetings, where the protocol has rounds and leaves it open; of a pipeline,
            batches to an update.
        fixed_weights: ``mix`` must use the same matrix every time, without losses or crashes: workers keep copies of what their
            neighbours sent, or a recursion over steps needs it.
        exact_rounds: every worker takes ``local_steps`` gradients before every meeting, no more and no fewer, and none
            meanwhile; no losses or crashes.
        mixing: the schedule of ``mix`` where the protocol leaves it open, a key of ``SCHEDULES``.
        mixings: mixing steps, one after the other, in a meeting by ``mix``.
        reply: whether a worker answers a message with its own (``push``).
        message_bytes: bytes of one message; ``simulate`` fills it in.
        model_bytes: bytes of the parameters, and of a gradient; ``simulate`` fills it in.
        stages: the stages that workers hold between them, one each, where a model is a pipeline; ``simulate`` fills it in.
        token_bytes: bytes that go up, and down, between each two neighbouring stages; ``simulate`` fills it in.
        error_bytes: bytes of the error that the last stage sends to each of the others; ``simulate`` fills it in.
        service: what a gradient asks of the topology's optical units; ``simulate`` fills it in.
        optimizer_share: of the seconds of a gradient by backpropagation, those that a step of a learned optimizer adds to each.
            ``simulate`` fills it in, and makes the cluster as much slower; stages of a pipeline add it to their backward passes.
        optimizer_s: seconds of a learned optimizer's step that follows a meeting: at the end of an all-reduce or a mean, or
            when a gradient reaches a server; ``simulate`` fills it in.
    """

    exchanges_per_s: float = 1.0
    meetings: tuple[str, ...] = ("exchange", "mix", "push")
    local_steps: int = 1
    fixed_weights: bool = False
    exact_rounds: bool = False
    mixing: str = "metropolis"
    mixings: int = 1
    reply: bool = False
    message_bytes: int = 0
    model_bytes: int = 0
    stages: tuple[StageShape, ...] = ()
    token_bytes: tuple[tuple[int, int], ...] = ()
    error_bytes: int = 0
    service: Service | None = None
    optimizer_share: float = 0.0
    optimizer_s: float = 0.0

    def choose(self, protocol: str, offered: tuple[str, ...]) -> str:
        """The first meeting the algorithm likes among those a protocol offers.

        Raises:
            InvalidInput: there is none.
        """
        for meeting in self.meetings:
            if meeting in offered:
                return meeting
        words = "; ".join(f"{name!r} ({MEETINGS[name]})" for name in self.meetings)
        raise InvalidInput(
            "protocol", protocol, f"a protocol where workers meet as the algorithm needs: {words}"
        )


@dataclass(frozen=True)
class Network:
    """The clocks a run has: what step sizes are computed from, and what a timeline is made of.

    Attributes:
        topology: the graph with the rates at which its edges tick, per unit of time.
        gradients_per_s: expected gradients per worker and second, mean over the workers; where they queue for optical units
            an upper bound (:func:`decentral.protocol.service.gradient_rate`).
        time_unit_s: seconds in a unit of time: what ``flow`` counts in. With a cluster it is the mean time between two
            gradients of a worker, so that the theory's constants, which have it as 1, hold.
        demand: what the algorithm asked for.
        cluster: compute times, links and failures; None for ideal clocks.
        worst: for a graph that changes, the largest chi_1 and chi_2 of any of its graphs, which are not those of
            ``topology``, its mean.
        schedule: the mixing matrices, where workers meet by ``mix``.
    """

    topology: Topology | DirectedTopology
    gradients_per_s: float = 1.0
    time_unit_s: float = 1.0
    demand: Demand = Demand()
    cluster: Cluster | None = None
    worst: tuple[float, float] | None = None
    schedule: Schedule | None = None

    @property
    def clocks(self) -> tuple:
        """Everything a timeline depends on, to be compared: two algorithms with equal clocks run on one trace."""
        rates = getattr(self.topology, "edge_rates", np.zeros(0)).tobytes()
        demand = dataclasses.replace(self.demand, exchanges_per_s=0.0)  # it is in the rates
        if self.cluster is None:  # messages take no time
            demand = dataclasses.replace(
                demand, message_bytes=0, model_bytes=0, token_bytes=(), error_bytes=0
            )
        units = () if self.demand.service is None else self.topology.units
        return self.gradients_per_s, self.time_unit_s, rates, demand, self.cluster, units

    @property
    def exchanges_per_s(self) -> float:
        """Expected exchanges per worker and second; an exchange counts for both of its workers."""
        if not isinstance(self.topology, Topology):  # messages go one way
            return 0.0
        return self.topology.rate / self.time_unit_s

    @property
    def chi_1(self) -> float:
        """Inverse of the smallest positive eigenvalue of the rates' Laplacian (units of time)."""
        return self.undirected.chi_1 if self.worst is None else self.worst[0]

    @property
    def chi_2(self) -> float:
        """Half the largest effective resistance over the edges (units of time)."""
        return self.undirected.chi_2 if self.worst is None else self.worst[1]

    @property
    def undirected(self) -> Topology:
        """The topology, where exchanges go both ways.

        Raises:
            InvalidInput: it is directed.
        """
        if not isinstance(self.topology, Topology):
            advice = "Give the step size, e.g. optimizer.learning_rate."
            raise InvalidInput(
                "topology", self.topology.name, "an undirected graph for the theory's step sizes", advice
            )
        return self.topology

    @property
    def gossip_spectrum(self) -> tuple[float, float]:
        """The smallest positive and the largest eigenvalue of I - W, W the mixing matrix (worst of a schedule's).

        Without a schedule W = I - L / lambda_max(L).
        """
        schedule = SCHEDULES["laplacian"](self.undirected) if self.schedule is None else self.schedule
        return schedule.gossip_spectrum

    @property
    def dadao_rate(self) -> float:
        """sqrt(2 chi_1 chi_2), both for a total rate of 1: where chi_1 chi_2 = 1/2."""
        if self.worst is None:
            return self.undirected.dadao_rate
        return math.sqrt(2 * self.chi_1 * self.chi_2) * self.undirected.total_rate


@dataclass(frozen=True)
class Time:
    """Stop after so many simulated seconds."""

    time_s: float

    def __post_init__(self) -> None:
        number = isinstance(self.time_s, Real) and not isinstance(self.time_s, bool)
        if not (number and math.isfinite(self.time_s) and self.time_s > 0):
            raise InvalidInput("stop.time_s", self.time_s, "seconds, finite and > 0")


@dataclass(frozen=True)
class Gradients:
    """Stop at the time of the ``gradients``-th gradient, counted over all workers."""

    gradients: int

    def __post_init__(self) -> None:
        whole = isinstance(self.gradients, Real) and float(self.gradients).is_integer()
        if not whole or isinstance(self.gradients, bool) or self.gradients < 1:
            raise InvalidInput("stop.gradients", self.gradients, "an integer >= 1")
        object.__setattr__(self, "gradients", int(self.gradients))


Stop = Time | Gradients
"""When a run ends."""
STOPS = {"time": Time, "gradients": Gradients}
"""Every way to stop by the name a spec uses."""


class Protocol(TypingProtocol):
    """A process that turns a topology and its timing into a trace. It never imports an algorithm.

    Protocols are frozen dataclasses of plain values. Each says when the messages of a meeting are taken and which state
    they meet (``atomic``, ``paired`` or ``stale``), and which sums it conserves. One whose gradients can queue for the optical
    units of a topology has a class attribute ``serves_units = True``.
    """

    def network(
        self, topology: Topology | DirectedTopology, demand: Demand, cluster: Cluster | None = None
    ) -> Network:
        """The clocks this protocol gives to an algorithm that asks for ``demand``.

        Raises:
            InvalidInput: it cannot serve that demand, or on that topology.
        """
        ...

    def timeline(self, network: Network, stop: Stop, seed: int) -> Trace:
        """The events of one run; a pure function of its arguments."""
        ...

    def events_per_gradient(self, network: Network) -> float:
        """Expected number of events for each gradient, for the estimate of memory."""
        ...


class Source(TypingProtocol):
    """One seed's events, to be drawn piece by piece, as often as asked, and never kept.

    A protocol that can draw so has a method ``stream(network, stop, seed) -> Source | None``, None where only the whole will do
    on this network. Its pieces, one after the other, are the columns of its ``timeline``.
    """

    @property
    def horizon_s(self) -> float:
        """That of the timeline."""
        ...

    def pieces(self, events: int) -> Iterator[Trace]:
        """From the beginning: at least one piece, of about so many events each."""
        ...


def expected_gradients(network: Network, stop: Stop) -> float:
    """Expected gradients of all workers until the stop."""
    if isinstance(stop, Gradients):
        return float(stop.gradients)
    return network.gradients_per_s * network.topology.n * stop.time_s


PATIENCE = 256
"""No gradient in so many times the time that it took to the last ones: then nobody waits for another."""


class Built(TypingProtocol):
    """Events that end at some gradient: a :class:`Trace`, or the source of one."""

    def up_to(self, gradients: int) -> tuple[int, Self]:
        """As :meth:`Trace.up_to`."""
        ...


B = TypeVar("B", bound=Built)


def until(stop: Stop, network: Network, build: Callable[[float], B]) -> B:
    """The events up to the stop: by time at once, by number of gradients from ever longer horizons.

    Args:
        stop: when.
        network: how many gradients to expect.
        build: ``build(horizon_s)``; a longer horizon only appends events.

    Raises:
        InvalidInput: the workers take no gradient, or stop taking any.
    """
    if isinstance(stop, Time):
        return build(float(stop.time_s))
    rate = network.gradients_per_s * network.topology.n
    if rate <= 0:
        raise InvalidInput("stop.gradients", stop.gradients, "a stop by time where workers take no gradients")
    horizon_s, before, progress_s = (
        1.1 * (stop.gradients + 6 * math.sqrt(stop.gradients) + 10) / rate,
        -1,
        0.0,
    )
    while True:
        taken, found = build(horizon_s).up_to(stop.gradients)
        if taken >= stop.gradients:
            return found
        if taken > before:
            progress_s = horizon_s
        elif horizon_s > PATIENCE * progress_s:
            raise InvalidInput(
                "stop.gradients",
                stop.gradients,
                f"at most {taken}: workers take no more of them in the first {horizon_s:.3g} s",
            )
        horizon_s, before = 2 * horizon_s, taken
