"""Pipelines: the stages of a model on a row of workers; activations go up, gradients come down."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit

from decentral.cost.pipeline import dfa_times
from decentral.engine.trace import Replica, StageShape, Trace, feedback_ops, pipeline_ops
from decentral.errors import InvalidInput, check_choice, check_integer, check_number
from decentral.protocol import queues
from decentral.protocol.base import Demand, Network, Stop, until
from decentral.protocol.queues import (
    COMING,
    COMPUTED,
    DELIVER,
    ENTER,
    EVENTS,
    LONGEST_NS,
    doubled,
    enlist,
    first_listed,
    pop,
    push,
    through,
)
from decentral.timing import Cluster, Faults
from decentral.timing.compute import check_draws, to_ns
from decentral.timing.links import jitter_factor
from decentral.topology import DirectedTopology, Topology, neighbours

SCHEDULES = ("petra", "gpipe", "1f1b", "backprop", "dfa")
MOST_ON_THEIR_WAY = 1_000_000_000
"""A larger window is none."""
_NEVER = 1 << 62
"""More batches than there are."""


def check_stages(stages: Sequence[StageShape]) -> None:
    """Refuse stages that do not make a pipeline.

    Raises:
        InvalidInput: fewer than two, a stage that does not take what the one before gives, or a kind with two shapes.
    """
    if len(stages) < 2:
        raise InvalidInput("stages", f"{len(stages)} stages", "at least 2")
    befores = ("", *(stage.gives for stage in stages))
    for j, (stage, before) in enumerate(zip(stages, befores, strict=False)):
        if stage.takes != before:
            what = f"what stage {j - 1} gives: {before!r}" if j else "samples: an empty name"
            raise InvalidInput(f"stages[{j}].takes", stage.takes, what)
        if bool(stage.gives) == (j == len(stages) - 1):
            raise InvalidInput(f"stages[{j}].gives", stage.gives, "a name, except in the last stage")
    shapes = dict.fromkeys(stages)
    for j, stage in enumerate(shapes):
        if stage.kind in [other.kind for other in list(shapes)[:j]]:
            raise InvalidInput("stages", f"kind {stage.kind!r} twice", "a kind for each pair of shapes")


@dataclass(frozen=True)
class Pipeline:
    """One or several pipelines; worker d J + j holds stage j (from 0) of pipeline d, of J stages.

    A batch goes forward through all stages but the last, which does forward and backward at once (``turn``), and comes
    back; whoever has it next begins when it is there and a stream is free, oldest batch first. ``forward`` is an event at
    its start, where it reads the parameters; ``turn`` and ``backward`` are events at their end, where they update them.
    At one instant what arrives comes first, then passes end, then passes start. Draw b of a worker's compute times is for
    batch b, forward and backward: each takes its multiple of it.

    Schedules:

    * ``petra``: no flush. Stage 0 begins a batch when fewer than ``window`` are on their way. Without a window
      (``"unlimited"``) it runs ahead of the others, and delays grow without bound.
    * ``gpipe``, ``1f1b``: a flush after ``micro_batches``: stage 0 begins no batch before all of the flush before have come
      back, so all passes of a batch see the same parameters, if these change once in a flush. In gpipe a stage begins
      to go backward when it has gone forward with all of them (the last stage, whose turn is one pass, need not wait,
      which changes nothing of when a flush ends). In 1f1b stage j has at most J - j batches.
    * ``backprop``: one batch at a time, i.e. model parallelism without a pipeline.
    * ``dfa``: no backward pass. The last stage's forward pass ends with the error of the batch, which it sends to every other
      stage in one hop: the topology joins it to all of them (``pipelines`` with ``broadcast = true``, or ``complete``). A stage
      updates itself when it has the error, in whatever order the others do. With ``micro_batches`` a stage begins no batch
      before it has done all its updates for those before: parameters of a batch are the same in all its passes, though
      stages begin the next flush at different times. Without, updates are late, and no stage has more than ``window``
      batches.

    A forward pass counts its message at its start. A message takes latency + bytes x ns_per_byte x jitter, and waits for
    its link and for network cards, first come first served, where bandwidth is finite: the ``token_bytes`` of the demand,
    or ``message_bytes`` each where it has none.

    Gossip: a stage meets the same stage of other pipelines, where the topology joins the two workers. Exchanges are
    *atomic*, at the end of a pass, and take no time; the sum of what the algorithm conserves is conserved.

    Args:
        schedule: a name of above.
        window: of ``petra``: most batches on their way, at least 1, or ``"unlimited"``; 2 J - 1 by default, the least that
            keeps equal stages in lock-step busy. Of ``dfa``: most batches at any one stage, by default J + 1 for the same
            reason, or a flush.
        micro_batches: of ``gpipe``, ``1f1b`` and, if wanted, ``dfa``: batches in a flush; an algorithm has to update once for
            so many.
        forward: multiple of the compute time that a forward pass takes.
        backward: of a backward pass, by default 2; of an update in ``dfa``, by default 1, as it has no gradient of inputs.
        reconstruct: what every backward pass but the last stage's takes more, to make its input again; by default
            ``forward`` in ``petra`` and 0 elsewhere. Stages that are not reversible take it too: they compute again what
            they did not keep; delayed gradients that keep all need none: set 0 for them. PETRA's code does two more
            forwards (5 J FLOPs in units of a forward pass, where the paper counts 4 J): ``reconstruct = 2 forward``.
        turn: of the last stage's two passes together; ``forward + backward`` by default. Nothing in ``dfa``.
        streams: 2: a stage does a forward and a backward pass at the same time; 1: one after the other, forward first
            where both are ready (the window bounds how far that runs ahead; with backward first, stages above wait for
            tokens: a fifth fewer batches). By default 2 in ``petra`` and 1 elsewhere.
        gossip_every: after each g-th backward pass a stage meets the next of its equals in turn; None: never.
        feedback_s: of ``dfa``: seconds for which each batch's error occupies a unit that projects it for all stages of a pipeline
            but the last, before it is sent to them, first come first served: of an optical unit frames of a batch over
            its rate (``decentral.cost.optical``). 0: none.

    Raises:
        InvalidInput: from ``network``: the number of workers is no multiple of the stages, an edge between two stages is
            missing, or something goes wrong in the cluster (a pipeline stops for good where one stage does).

    References:
        Rivaud, Fournier, Pumir, Belilovsky, Eickenberg, Oyallon: PETRA (ICLR 2025); Huang et al.: GPipe (NeurIPS 2019);
        Narayanan et al.: PipeDream (SOSP 2019), the last two recalled.
    """

    schedule: str = "petra"
    window: int | str | None = None
    micro_batches: int | None = None
    forward: float = 1.0
    backward: float | None = None
    reconstruct: float | None = None
    turn: float | None = None
    streams: int | None = None
    gossip_every: int | None = None
    feedback_s: float = 0.0

    def __post_init__(self) -> None:
        check_choice("protocol.schedule", self.schedule, SCHEDULES)
        flushes = self.schedule in ("gpipe", "1f1b") or (self._dfa and self.micro_batches is not None)
        if self.window is not None:
            if self.schedule not in ("petra", "dfa"):
                raise InvalidInput("protocol.window", self.window, f"nothing in {self.schedule}")
            if isinstance(self.window, str) and not self._dfa:
                check_choice("protocol.window", self.window, ("unlimited",))
            else:
                check_integer("protocol.window", self.window, 1, MOST_ON_THEIR_WAY)
        if flushes:
            check_integer("protocol.micro_batches", self.micro_batches, 1)
        elif self.micro_batches is not None:
            raise InvalidInput("protocol.micro_batches", self.micro_batches, f"nothing in {self.schedule}")
        for name in ("forward", "backward", "turn"):
            value = getattr(self, name)
            if name == "forward" or value is not None:
                check_number(f"protocol.{name}", value, 0, math.inf, above=True)
        if self._dfa and self.turn is not None:
            advice = "Its last stage goes forward and updates like any other."
            raise InvalidInput("protocol.turn", self.turn, "nothing in dfa", advice)
        check_number("protocol.feedback_s", self.feedback_s, 0, math.inf)
        if self.feedback_s and not self._dfa:
            raise InvalidInput("protocol.feedback_s", self.feedback_s, f"nothing in {self.schedule}")
        if self.reconstruct is not None:
            check_number("protocol.reconstruct", self.reconstruct, 0, math.inf)
        if self.streams is not None:
            check_integer("protocol.streams", self.streams, 1, 2)
        if self.gossip_every is not None:
            check_integer("protocol.gossip_every", self.gossip_every, 1)

    @property
    def _dfa(self) -> bool:
        return self.schedule == "dfa"

    @property
    def costs(self) -> tuple[float, float, float]:
        """Multiples of the compute time: of a forward pass, a backward pass with its reconstruction, and the turn."""
        again = self.forward if self.schedule == "petra" else 0.0
        backward = (1.0 if self._dfa else 2.0) if self.backward is None else self.backward
        turn = self.forward + backward if self.turn is None else self.turn
        return self.forward, backward + (again if self.reconstruct is None else self.reconstruct), turn

    def _charged(self, demand: Demand) -> tuple[float, float, float]:
        """:attr:`costs`, and the stage's own learned optimizer: a gradient by backpropagation takes three forward passes."""
        forward, backward, turn = self.costs
        own = 3 * self.forward * demand.optimizer_share
        return forward, backward + own, turn + own

    @property
    def _two_streams(self) -> bool:
        return (self.schedule == "petra") if self.streams is None else self.streams == 2

    def _window(self, stages: int) -> int:
        """Batches on their way at most."""
        if self.window is not None:
            return _NEVER if self.window == "unlimited" else int(self.window)
        if self.micro_batches is not None:
            return stages if self.schedule == "1f1b" else self.micro_batches
        if self.schedule == "backprop":
            return 1
        return stages + 1 if self._dfa else 2 * stages - 1

    def batches_per_unit(self, stages: int, demand: Demand = Demand()) -> float:  # noqa: B008  frozen
        """Batches of a pipeline in a compute time, in the long run: equal stages, constant times, instant messages.

        Where two streams do not wait for each other it is the least of one by the longest pass and a window by a batch's
        way up and down; a flush takes a batch's way and the longest pass for each further batch. Of ``dfa``
        :func:`decentral.cost.pipeline.dfa_times` says it.
        """
        forward, backward, turn = self._charged(demand)
        if self._dfa:
            streams = 2 if self._two_streams else 1
            longest = max(forward, backward) if streams == 2 else forward + backward
            if self.micro_batches is not None:
                longest = dfa_times(self.micro_batches, stages, forward, backward, streams=streams).period
                longest /= self.micro_batches
            return min(1 / longest, self._window(stages) / (stages * forward + backward))
        way = (stages - 1) * (forward + backward) + turn
        longest = max(forward, backward, turn) if self._two_streams else max(forward + backward, turn)
        if self.micro_batches is not None:
            return self.micro_batches / (way + (self.micro_batches - 1) * longest)
        return min(1 / longest, self._window(stages) / way)

    def network(
        self, topology: Topology | DirectedTopology, demand: Demand, cluster: Cluster | None = None
    ) -> Network:
        """The clocks: batches of all pipelines per worker, as :meth:`batches_per_unit`; slower stages make it fewer.

        A time unit is the mean time between two batches, per worker.

        Raises:
            InvalidInput: see the class; the algorithm's model is no pipeline; its stages do not fit each other.
        """
        if self._dfa:
            demand.choose("pipeline, schedule dfa", ("feedback",))
        else:
            demand.choose("pipeline", ("stages",))
        check_stages(demand.stages)
        stages, n = len(demand.stages), topology.n
        if self.micro_batches not in (None, demand.local_steps):
            raise InvalidInput(
                "protocol.micro_batches", self.micro_batches, f"{demand.local_steps}, the algorithm's batches to an update",
                "A flush is one update: set the algorithm's accumulate to as many.",
            )  # fmt: skip
        if not isinstance(topology, Topology):
            raise InvalidInput("topology", topology.name, "an undirected graph", "Gradients come back.")
        if n % stages:
            advice = "Each worker holds a stage of one pipeline."
            raise InvalidInput("topology.n", n, f"a multiple of the {stages} stages", advice)
        worker = np.arange(n)
        ends = worker[worker % stages < stages - 1]
        joined = set(map(tuple, topology.edges.tolist()))
        for i in ends.tolist():
            if (i, i + 1) not in joined:
                advice = f"Use topology 'pipelines' with stages = {stages}."
                got = f"no edge between {i} and {i + 1}, which hold stages {i % stages} and {i % stages + 1}"
                raise InvalidInput("topology", got, "an edge between stages that follow each other", advice)
            last = i - i % stages + stages - 1
            if self._dfa and (i, last) not in joined:
                advice = (
                    f"Use topology 'pipelines' with stages = {stages} and broadcast = true, or 'complete'."
                )
                got = f"no edge between {i} and {last}, which hold stages {i % stages} and {stages - 1}, the last"
                raise InvalidInput("topology", got, "an edge between the last stage and every other", advice)
        cluster = Cluster() if cluster is None else cluster
        if cluster.faults != Faults():
            advice = "A batch that is lost stops its pipeline for good."
            raise InvalidInput("cluster.faults", cluster.faults, "none with protocol pipeline", advice)
        batches_per_s = self.batches_per_unit(stages, demand) * cluster.gradient_rate(n)
        if self.feedback_s:
            batches_per_s = min(batches_per_s, 1 / self.feedback_s)
        rate = batches_per_s / stages
        # When updates are due decides nothing here: algorithms that differ in it share their events.
        return Network(topology, rate, 1 / rate, dataclasses.replace(demand, local_steps=1), cluster)

    def events_per_gradient(self, network: Network) -> float:
        """A pass up and down through all stages, and gossip."""
        stages = len(network.demand.stages)
        gossip = stages / self.gossip_every if self.gossip_every else 0
        return 2 * stages + (1 if self._dfa else -1) + gossip

    def timeline(self, network: Network, stop: Stop, seed: int) -> Trace:
        """The events of one run up to the stop; a batch's turn is its gradient."""
        return until(stop, network, lambda horizon_s: self._build(network, horizon_s, seed))

    def _build(self, network: Network, horizon_s: float, seed: int) -> Trace:
        topology, demand, cluster = network.topology, network.demand, network.cluster or Cluster()
        n, stages = topology.n, len(demand.stages)
        horizon_ns = queues.horizon_of(horizon_s)
        window = self._window(stages)
        expected = 1.1 * horizon_s * network.gradients_per_s * stages
        batches = int(expected + min(window, expected)) + 16
        flush = self.micro_batches or _NEVER
        forward, backward, turn = self._charged(demand)
        last = np.arange(n) % stages == stages - 1
        costs = np.stack([np.full(n, forward), np.where(last & (not self._dfa), turn, backward)])
        speeds = cluster.speed_of(n, seed)
        start, target = neighbours(topology)
        source = np.repeat(np.arange(n), np.diff(start))
        equal = (source % stages == target % stages) & (self.gossip_every is not None)
        peers = np.concatenate([[0], np.cumsum(np.bincount(source[equal], minlength=n))])
        rules = Rules(
            stages,
            self._two_streams,
            flush,
            self.schedule == "gpipe",
            self.gossip_every or 1,
            self._dfa,
            to_ns("protocol.feedback_s", self.feedback_s),
            *(int(seed), cluster.links.jitter_code, float(cluster.links.jitter_sigma)),
        )
        while True:
            check_draws("stop", horizon_s, n * float(batches))
            # Draw b of every worker, whatever it is for: another window changes no other batch's times.
            seconds = cluster.compute.draw(seed, np.arange(n), 0, batches, n).reshape(n, batches)
            ns = np.rint(costs[:, :, None] * (seconds / speeds[:, None] * 1e9))
            held = np.zeros(n, HOLDER)
            held["limit"] = _NEVER
            held["limit"][slice(None) if self._dfa else slice(None, None, stages)] = window
            if self.schedule == "1f1b":
                held["limit"] = stages - np.arange(n) % stages
            held["tokens"][::stages] = _NEVER
            held["first_peer"], held["last_peer"] = peers[:-1], peers[1:]
            wires, free_ns = _wires(cluster, n, demand, seed, broadcast=self._dfa)
            log, enough = _loop(
                *(horizon_ns, held, wires, free_ns, target[equal].astype(np.int64)),
                *(np.clip(ns, 1, LONGEST_NS).astype(np.int64), rules),
            )
            if enough:
                return _trace(log, demand.stages, n, seed, horizon_s, dfa=self._dfa)
            batches *= 2


def _wires(
    cluster: Cluster, n: int, demand: Demand, seed: int, *, broadcast: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The links of each worker, up (2 w) and down (2 w + 1), and when each queue is free; the last queues are the units'.

    Who has no neighbour there has a link to the next or last worker, which is never used. With ``broadcast`` 2 w + 1 comes
    from the last stage of the pipeline to w.
    """
    stages, worker = len(demand.stages), np.arange(n)
    each = demand.token_bytes or ((demand.message_bytes, demand.message_bytes),) * (stages - 1)
    sizes = np.zeros((n // stages, stages, 2))
    sizes[:, :-1, 0], sizes[:, 1:, 1] = np.transpose(each)
    source = np.repeat(worker, 2)
    target = (source + np.tile([1, -1], n)) % n
    if broadcast:
        last = worker % stages == stages - 1
        source[1::2] = np.where(last, (worker + 1) % n, worker - worker % stages + stages - 1)
        target[1::2] = worker
        sizes[:, :, 1] = demand.error_bytes or demand.message_bytes
    wires = np.zeros(2 * n, WIRE)
    wires["source"], wires["target"] = source, target
    wires["latency_ns"], ns_per_byte = cluster.links.arc_arrays(source, target, seed)
    wires["transmission_ns"] = ns_per_byte * sizes.ravel()
    out, into = cluster.links.ports(source, target)
    ports = int(max(out.max(), into.max())) + 1
    # Without a card of its own a link is a queue: what is sent first arrives first.
    wires["out"] = np.where(out >= 0, out, 2 * ports + np.arange(2 * n))
    wires["into"] = np.where((into >= 0) & (cluster.links.duplex == "full"), into + ports, into)
    return wires, np.zeros(2 * ports + 2 * n + n // stages, np.int64)


def _trace(
    log: np.ndarray, stages: Sequence[StageShape], n: int, seed: int, horizon_s: float, *, dfa: bool
) -> Trace:
    """The trace of a log. What batch b leaves at worker w is number b n + w of its bank."""
    ops = feedback_ops(stages) if dfa else pipeline_ops(stages)
    codes = {op.name: code for code, op in enumerate(ops)}
    kinds = [stage.kind for stage in stages]
    names = (("forward", "error"), ("backward", "turn", "update"), ("exchange",), ("release",))
    instructions = np.array(
        [
            [
                next((codes[f"{name}:{kind}"] for name in each if f"{name}:{kind}" in codes), 0)
                for kind in kinds
            ]
            for each in names
        ],
        np.uint8,
    )
    # Whichever stage is last to read an error, its slot is the last stage's.
    instructions[_RELEASE] = instructions[_RELEASE, -1]
    banks = tuple((f"stage:{kind}", n // len(stages) * kinds.count(kind)) for kind in dict.fromkeys(kinds))
    place = np.array([kinds[:j].count(kind) for j, kind in enumerate(kinds)])
    number = np.array([kinds.count(kind) for kind in kinds])

    def element(worker: np.ndarray) -> np.ndarray:
        pipeline, stage = np.divmod(worker, len(stages))
        return pipeline * number[stage] + place[stage]

    worker, what = log["worker"].astype(np.int64), log["what"]
    own = log["number"] * n + worker
    stage = worker % len(stages)
    none = np.full(len(log), -1)
    first, last = stage == 0, stage == len(stages) - 1
    error = own - stage + len(stages) - 1
    columns = np.select(
        [
            *(what == _RELEASE, what == _EXCHANGE, (what == _FORWARD) & first, what == _FORWARD),
            *((what == _BACKWARD) & dfa, last, first),
        ],
        [
            np.stack([error, none, none, none]),
            np.stack([element(worker), element(log["number"]), none, none]),
            np.stack([element(worker), own, own, none]),
            np.stack([element(worker), own - 1, own, own]),
            np.stack([element(worker), error, own, none]),
            np.stack([element(worker), own - 1, own, none]),
            np.stack([element(worker), own + 1, own, none]),
        ],
        np.stack([element(worker), own + 1, own, own]),
    )
    return Trace(
        log["time_ns"] / 1e9,
        instructions[what, stage],
        np.stack([worker, *columns], axis=1).astype(np.int32),
        ops,
        n,
        (Replica(int(seed), horizon_s),),
        duration_s=log["duration_ns"] / 1e9,
        banks=banks,
    )


# -- the event loop -----------------------------------------------------------------------------------------------------


class Rules(NamedTuple):
    """What the loop needs to know of a :class:`Pipeline`; ``fill``: backward begins when all of a flush went forward."""

    stages: int
    two_streams: bool
    flush: int
    fill: bool
    gossip_every: int
    dfa: bool
    feedback_ns: int
    seed: int
    jitter: int
    sigma: float


HOLDER = np.dtype(
    [
        ("limit", "i8"),  # batches it has at most, from the start of forward to the end of backward
        ("tokens", "i8"),  # that came from below
        ("forwards", "i8"),  # begun
        ("cotokens", "i8"),  # that came from above; the last stage's tokens; in dfa errors
        ("backwards", "i8"),  # begun
        ("done", "i8"),  # of these
        ("forward", "?"),  # is under way
        ("backward", "?"),
        ("listed", "?"),  # among those that may begin a pass at this instant
        ("first_peer", "i8"),
        ("last_peer", "i8"),
        ("met", "i8"),  # exchanges it began
    ]
)
"""A worker, which holds one stage."""
WIRE = np.dtype(
    [
        ("source", "i8"),
        ("target", "i8"),
        ("latency_ns", "i8"),
        ("transmission_ns", "f8"),  # mean
        ("out", "i8"),  # queue that a message leaves through
        ("into", "i8"),  # queue it enters by, or -1
        ("count", "i8"),  # messages so far
    ]
)
LOG = np.dtype([("time_ns", "i8"), ("duration_ns", "i8"), ("worker", "i4"), ("number", "i4"), ("what", "u1")])
"""An event; its number is the batch, or the worker that is met."""
_FORWARD, _BACKWARD, _EXCHANGE, _RELEASE = range(4)
# Counters beside those of every loop.
_HEAD, _TAIL = 2, 3


@njit(cache=True)
def _list(ring, tally, held, worker):
    if not held[worker].listed:
        held[worker].listed = True
        enlist(ring, tally, _TAIL, worker)


@njit(cache=True)
def _emit(log, tally, time_ns, duration_ns, worker, number, what):
    event = log[tally[EVENTS]]
    tally[EVENTS] += 1
    event.time_ns, event.duration_ns = time_ns, duration_ns
    event.worker, event.number, event.what = worker, number, what


@njit(cache=True)
def _send(heap, tally, wires, free_ns, rules, wire, now):
    mine = wires[wire]
    factor = jitter_factor(rules.jitter, rules.sigma, rules.seed, mine.source, mine.target, mine.count)
    mine.count += 1
    transmission_ns = np.int64(min(np.rint(mine.transmission_ns * factor), float(LONGEST_NS)))
    leaves = through(free_ns, mine.out, now, transmission_ns)
    push(heap, tally, min(leaves + mine.latency_ns, LONGEST_NS), ENTER, wire, transmission_ns)


@njit(cache=True)
def _begin(log, heap, tally, held, passes_ns, rules, worker, now):
    """A worker begins what it can; False where it needs a further draw."""
    mine = held[worker]
    ready = mine.forwards < mine.tokens and not mine.forward and (rules.two_streams or not mine.backward)
    flushed = mine.done >= mine.forwards // rules.flush * rules.flush
    if ready and flushed and mine.forwards - mine.done < mine.limit:
        if mine.forwards >= passes_ns.shape[2]:
            return False
        took_ns = passes_ns[0, worker, mine.forwards]
        push(heap, tally, now + took_ns, COMPUTED, 2 * worker, 0)
        _emit(log, tally, now, took_ns, worker, mine.forwards, _FORWARD)
        mine.forward = True
        mine.forwards += 1
    ready = mine.backwards < mine.cotokens and not mine.backward and (rules.two_streams or not mine.forward)
    if ready and rules.fill and worker % rules.stages < rules.stages - 1:
        ready = mine.forwards >= (mine.backwards // rules.flush + 1) * rules.flush
    if ready:
        if mine.backwards >= passes_ns.shape[2]:
            return False
        push(heap, tally, now + passes_ns[1, worker, mine.backwards], COMPUTED, 2 * worker + 1, 0)
        mine.backward = True
        mine.backwards += 1
    return True


@njit(cache=True)
def _end_forward(heap, tally, held, wires, free_ns, rules, worker, now):
    held[worker].forward = False
    if not rules.dfa or worker % rules.stages < rules.stages - 1:
        _send(heap, tally, wires, free_ns, rules, 2 * worker, now)
        return
    held[worker].cotokens += 1
    pipeline = worker // rules.stages
    if rules.feedback_ns == 0:
        _broadcast(heap, tally, wires, free_ns, rules, pipeline, now)
    else:
        unit = free_ns.size - held.size // rules.stages + pipeline
        begins = through(free_ns, unit, now, rules.feedback_ns)
        push(heap, tally, min(begins + rules.feedback_ns, LONGEST_NS), COMPUTED, 2 * held.size + pipeline, 0)


@njit(cache=True)
def _broadcast(heap, tally, wires, free_ns, rules, pipeline, now):
    first = pipeline * rules.stages
    for worker in range(first, first + rules.stages - 1):
        _send(heap, tally, wires, free_ns, rules, 2 * worker + 1, now)


@njit(cache=True)
def _end_backward(log, heap, tally, held, wires, free_ns, peers, passes_ns, rules, worker, now):
    mine = held[worker]
    _emit(log, tally, now, passes_ns[1, worker, mine.done], worker, mine.done, _BACKWARD)
    mine.backward = False
    mine.done += 1
    if rules.dfa:
        first = worker - worker % rules.stages
        if held["done"][first : first + rules.stages].min() == mine.done:
            _emit(log, tally, now, 0, worker, mine.done - 1, _RELEASE)
    elif worker % rules.stages > 0:
        _send(heap, tally, wires, free_ns, rules, 2 * worker + 1, now)
    equals = mine.last_peer - mine.first_peer
    if equals > 0 and mine.done % rules.gossip_every == 0:
        _emit(log, tally, now, 0, worker, peers[mine.first_peer + mine.met % equals], _EXCHANGE)
        mine.met += 1


@njit(cache=True)
def _loop(horizon_ns, held, wires, free_ns, peers, passes_ns, rules):
    """All events up to the horizon.

    Args:
        horizon_ns: the end.
        held: (n,) ``HOLDER``.
        wires: (2 n,) ``WIRE``.
        free_ns: int64 (queues,), when the last message in a queue is through.
        peers: int64, whom workers meet, worker after worker.
        passes_ns: int64 (2, n, batches), what forward and backward take.
        rules: of the schedule.

    Returns:
        ``(log, enough)``: the events, and False where a worker needed more draws than there are.
    """
    n = held.size
    tally = np.zeros(4, np.int64)
    log, heap = np.empty(4096, LOG), np.empty((8 * n + queues.ROOM, 3), np.int64)
    # One place more than workers: a full ring is not an empty one.
    ring = np.empty(n + 1, np.int64)
    now = np.int64(0)
    for worker in range(0, n, rules.stages):
        _list(ring, tally, held, worker)
    while True:
        if tally[EVENTS] + queues.ROOM > log.size:
            log = doubled(log, tally[EVENTS])
        if tally[COMING] + queues.ROOM + rules.stages > len(heap):
            heap = doubled(heap, tally[COMING])
        if tally[COMING] and heap[0, 0] == now:
            now, kind, number, payload = pop(heap, tally)
            if kind == ENTER:
                begins = through(free_ns, wires[number].into, now, payload)
                push(heap, tally, begins + payload, DELIVER, number, 0)
                continue
            if kind == COMPUTED and number >= 2 * n:
                _broadcast(heap, tally, wires, free_ns, rules, number - 2 * n, now)
                continue
            worker = number // 2
            if kind == DELIVER:
                worker = wires[number].target
                if number % 2 or (worker % rules.stages == rules.stages - 1 and not rules.dfa):
                    held[worker].cotokens += 1
                else:
                    held[worker].tokens += 1
            elif number % 2:
                _end_backward(log, heap, tally, held, wires, free_ns, peers, passes_ns, rules, worker, now)
            else:
                _end_forward(heap, tally, held, wires, free_ns, rules, worker, now)
            _list(ring, tally, held, worker)
        elif tally[_HEAD] != tally[_TAIL]:
            worker = first_listed(ring, tally, _HEAD)
            held[worker].listed = False
            if not _begin(log, heap, tally, held, passes_ns, rules, worker, now):
                return log[: tally[EVENTS]], False
        elif not tally[COMING] or heap[0, 0] > horizon_ns:
            return log[: tally[EVENTS]], True
        else:
            now = heap[0, 0]
