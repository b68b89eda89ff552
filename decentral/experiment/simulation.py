"""The run itself: a state that moves along a plan, records, and can be stopped and taken up again."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from decentral.algorithm import Algorithm
from decentral.algorithm.optimizer import bound_to
from decentral.analysis.pipeline import in_flight, shape_of, stage_bytes
from decentral.analysis.units import accounts_of
from decentral.engine.execute import Banks, Context, EagerClock, PlanClock, Program, executor, run_events
from decentral.engine.instructions import Draw
from decentral.engine.plan import (
    ROW_BYTES,
    Carry,
    Plan,
    assign_slots,
    check_shards,
    choose_widths,
    lasting_banks,
    make_plan,
)
from decentral.engine.record import RECORDED_WORKERS, held, recorder
from decentral.engine.sharded import BLOCKS, EVERYWHERE, ShardedExecutor, fetched, mesh_of, placed
from decentral.engine.stream import Stream, Window, count_events
from decentral.engine.trace import REQUEST, Op, Trace, feedback_ops, pipeline_ops
from decentral.engine.units import Measured, units_of
from decentral.errors import InvalidInput, RunFailed
from decentral.experiment.bars import bar
from decentral.experiment.devices import Devices, as_devices, blocks_of_data, on_host
from decentral.experiment.optimizer_time import optimizer_costs
from decentral.experiment.record import Record
from decentral.experiment.result import Result
from decentral.experiment.shapes import asks_gradient, shapes_of, size_of, slot_shapes
from decentral.optical.feedback import as_feedback, check_feedback
from decentral.problem import Problem, gradient_noise, heterogeneity, stack_shards
from decentral.protocol import Demand, Network
from decentral.timing import Purpose, uniforms
from decentral.topology import Topology

UNEQUAL_RATES = 0.1
"""Beyond this relative standard deviation of a foreign trace's gradient rates the optimum weighted by them is told apart."""

CHUNK_EVENTS = 2**16
"""Events of one call to the device: compile time, memory and the loss from a crash stay bounded."""
LAUNCHED_ROW_BYTES = 2**28
"""Bytes the events of a row should not exceed on a GPU. No cache is to be kept there: a row of few bytes takes as long as its
operations take to be launched, some tens at some microseconds, in which 2 TB/s move about as much. Not measured."""


class Diverged(RunFailed):
    """A state became NaN or infinite.

    Attributes:
        event, time_s, worker, seed: the first bad event, who it made bad, in which replica.
        result: everything recorded before.
    """

    def __init__(
        self, message: str, event: int, time_s: float, worker: int, seed: int | None, result: Result
    ) -> None:
        super().__init__(message)
        self.event, self.time_s, self.worker, self.seed, self.result = event, time_s, worker, seed, result


class Progress(NamedTuple):
    """What a progress callback is told after every chunk."""

    time_s: float
    horizon_s: float
    events: int
    total_events: int


class _Targets(NamedTuple):
    held_out: Any
    recorded: Any
    optimum: Any
    optimal_value: Any
    weighted_optimum: Any


class Simulation:
    """A run that can be stopped and taken up again: state, position, and the metrics so far.

    The arguments are those of :func:`replay`.
    """

    def __init__(
        self,
        trace: Trace | Stream,
        problem: Problem | Sequence[Problem],
        algorithm: Algorithm | Sequence[Algorithm],
        *,
        network: Network | Sequence[Network] | Topology | None = None,
        record: Record | None = None,
        initial: Any = None,
        states: Any = None,
        executor: str = "rows",
        name: str | None = None,
        devices: Devices | int | None = None,
    ) -> None:
        if executor not in ("rows", "eager"):
            raise InvalidInput("executor", executor, "'rows' or 'eager'")
        self.devices, self.mesh = as_devices(devices), None
        if self.devices is not None:
            assert isinstance(trace, Trace)  # several devices plan the whole
            chosen = self.devices.chosen()
            check_shards(trace, len(chosen))
            self.mesh = mesh_of(chosen) if len(chosen) > 1 else None
        if self.mesh is not None and executor == "eager":
            raise InvalidInput(
                "executor", executor, "'rows' on several devices", "One event keeps one of them busy."
            )
        replicas = len(trace.replicas)
        if isinstance(network, Topology):
            network = Network(network)
        self.networks = each("network", network, replicas)
        self.problems = each("problem", problem, replicas)
        if self.mesh is not None:
            self.problems = tuple(on_host(self.problems))
        given = each("algorithm", algorithm, replicas)
        for one in self.problems:
            if one.n_workers != trace.n_workers:
                raise InvalidInput(
                    "problem.n_workers",
                    one.n_workers,
                    f"the {trace.n_workers} workers of the trace",
                    "Build it with the same n.",
                )
        self.algorithms = tuple(
            resolved(a, p, w) for a, p, w in zip(given, self.problems, self.networks, strict=True)
        )
        self.stream = trace if isinstance(trace, Stream) else None
        self.trace: Trace = trace  # type: ignore[assignment]  # a stream answers what is asked of the whole
        self.record, self.executor = record or Record(), executor
        self.name = name or type(self.algorithms[0]).__name__.lower()
        self.initial, self.states_given = initial, states
        self.protocol: Any = None  # what made the trace, where that is known
        self.dtype = np.dtype(self.problems[0].dtype)
        self.wall_s: dict[str, float] = dict.fromkeys(("timeline", "plan", "compile", "run", "record"), 0.0)
        self._prepare()

    # -- preparation ---------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        trace, n, dtype = self.trace, self.trace.n_workers, self.dtype
        distinct = list(dict.fromkeys(map(id, self.problems)))
        self.per_problem = len(distinct) > 1
        problems = self.problems if self.per_problem else self.problems[:1]
        stacked, per_replica = _stack_algorithms(self.algorithms, dtype)
        occurs = tuple(op.name for op in trace.ops if trace.counts[op.name] and not op.is_mark)
        lasting = tuple(lasting_banks(trace))
        self.program = Program(problems[0], trace.ops, occurs, per_replica, n, lasting)
        # Algorithms that hold one copy hold it at a server; a pipeline in stages; all others have a state per worker.
        used = {operand.bank for op in trace.ops if op.name in occurs for operand in op.operands}
        self.holder = "stage" if trace.banks else "server" if "server" in used else "worker"
        per_model = problems[0].workers_per_model
        if (self.holder == "stage") != (per_model > 1):
            raise InvalidInput(
                "problem.workers_per_model",
                per_model,
                "the stages of the model in a pipeline, 1 with workers that hold all of it",
            )
        if self.holder == "stage":
            _check_pipeline(trace, problems[0], self.algorithms[0])
        if self.mesh is not None and self.holder != "worker":
            has = {"server": "one copy of the parameters", "stage": "a pipeline's stages"}[self.holder]
            advice = "Only workers with a state each are shared out."
            raise InvalidInput("devices.count", self.mesh.size, f"1 with {has}", advice)
        self.models = {"worker": n, "server": 1, "stage": n // per_model}[self.holder]
        worker = np.arange(trace.total_workers)
        roots = [jax.random.key(replica.seed or 0) for replica in trace.replicas]
        keys = self.keys_of(roots)
        shards = stack_shards(problems) if self.per_problem else problems[0].shards
        rows = jax.tree.leaves(problems[0].shards)[0].shape[0]  # one, if all workers have the same data
        shard_of = np.minimum(worker % n // per_model, rows - 1) + (
            worker // n * rows if self.per_problem else 0
        )
        self.context = Context(
            stacked,
            jax.tree.map(jnp.asarray if self.mesh is None else np.asarray, shards),
            jnp.asarray(shard_of, jnp.int32),
            jnp.asarray(worker // n, jnp.int32),
            keys,
            self._gradient_scale(),
            feedback_keys=self._feedback_keys(keys),
        )
        self.rates = _rates(trace)
        # Decided by what the run is, not by what its seeds drew: a seed's metrics do not depend on its companions.
        network = self.networks[0]
        if network is not None:
            unequal = network.cluster is not None and network.cluster.unequal
        else:
            unequal = bool((self.rates.std(1) > UNEQUAL_RATES).all())
        self.targets = _targets(
            problems, self.problems, trace, self.record, self.per_problem, self.rates, self.models, unequal
        )
        spread = None if self.mesh is None else self._spread_out()
        states = self._start(roots)
        if "reset" in occurs:
            self.context = self.context._replace(start=states)
        shapes = shapes_of(self.problems[0], self.algorithms[0])
        self.message_bytes = size_of(shapes.params if shapes.message is None else shapes.message)
        self.elements = elements = slot_shapes(self.problems[0], self.algorithms[0], shapes)
        self.element_bytes = {bank: size_of(element) for bank, element in elements.items()}
        self.op_bytes = [_wire_bytes(op, self.element_bytes) for op in trace.ops]
        self.times_s, self.events = self.record.schedule(trace)
        self.unit_s = self.networks[0].time_unit_s if self.networks[0] is not None else 1.0
        self.plan: Plan | None = None
        self.clock: EagerClock | None = None
        self.window_number, self.rows_done = -1, 0
        self._begin()
        self.slots = {bank: size for bank, size in self.slots_all.items() if bank in used}
        # Algorithms may put one array in two fields; donated buffers must be distinct.
        copies = jax.tree.map(jnp.copy, states)
        if spread is None or self.mesh is None:
            self.banks = self.banks_of(copies)
        else:
            self.banks = jax.jit(self.banks_of, out_shardings=NamedSharding(self.mesh, BLOCKS))(copies)
            self._spread = spread(self.plan, self.context.start)
        self.recorded: list[dict[str, np.ndarray]] = []
        self.bad = np.zeros(len(trace.replicas), bool)
        self.states: list[Any] = []

    def _begin(self) -> None:
        """What is decided once, and the first window. A trace that is there as a whole is one window."""
        began, kind, trace = time.perf_counter(), self.algorithms[0].time_unit, self.trace
        whole = Window(trace, 0, self.events, 0)
        if self.stream is not None:
            sample = self.stream.sample
            self.slots_all = self.stream.slots
            self.widths = choose_widths(sample, self._event_bytes(), self.events, trace.counts)
            self._carry = Carry.start(sample, self.slots_all)
            self._own_time = Measured(trace.total_workers, self.unit_s)
            longest = int(np.diff([0, *self.events.tolist(), len(trace)]).max())
            self.capacity, self.group_capacity = _capacities(self.widths, longest, {}, 1, 1)
            self.windows, self.last_window = self.stream.windows(), len(self.stream.cuts) - 2
        else:
            self.units = units_of(kind, trace, self.events, self.unit_s)
            if self.executor == "rows":
                shards = 1 if self.mesh is None else self.mesh.size
                plan = make_plan(
                    trace, self.events, event_bytes=self._event_bytes(), units=self.units, shards=shards
                )
                self.plan, self.slots_all, self.widths = plan, plan.slots, plan.widths
                longest = int(np.diff(plan.segment_rows).max(initial=1))
                most = int(np.diff(plan.segment_sections).max(initial=1))
                self.capacity, self.group_capacity = _capacities(
                    plan.widths * shards, longest, plan.group_entries, len(trace.replicas), most
                )
            else:
                self.slots_all = assign_slots(trace)[1]
                self.clock = EagerClock(trace, self.units)
            self.windows, self.last_window = iter([whole]), 0
        self.wall_s["plan"] += time.perf_counter() - began
        self.next_window()

    def next_window(self) -> None:
        """Make the next window the one at hand, and plan it where that is not done."""
        began = time.perf_counter()
        self.window = next(self.windows)
        self.window_number, self.position = self.window_number + 1, 0
        drawn = time.perf_counter()
        self.wall_s["timeline"] += drawn - began
        if self.stream is not None:
            if self.plan is not None:
                self.rows_done += self.plan.n_rows
            here, barriers, kind = self.window.trace, self.window.barriers, self.algorithms[0].time_unit
            self.units = units_of(kind, here, barriers, self.unit_s, self._own_time)
            self.plan = make_plan(here, barriers, self.widths, units=self.units, carry=self._carry)
        self.pieces = self._pieces(self.window)
        self.wall_s["plan"] += time.perf_counter() - drawn

    def _spread_out(self) -> Callable:
        """Put the context on the devices, for records in the order of the problem's data; what makes the executor is returned.

        What is as large as the data or the states lies in blocks, the rest (a few numbers per worker) on every device.
        """
        mesh, host = self.mesh, self.context
        assert mesh is not None
        self.context_on_host = host
        rows, own, shared = blocks_of_data(np.asarray(host.shard_of), mesh.size)
        plain = placed(host._replace(shards=None), mesh, EVERYWHERE)
        count = jax.tree.leaves(host.shards)[0].shape[0]
        spec = EVERYWHERE if shared or count % mesh.size else BLOCKS
        whole = placed(host.shards, mesh, spec)
        mine = whole
        if not np.array_equal(rows, np.arange(count)):
            mine = placed(
                jax.tree.map(lambda leaf: leaf[rows], host.shards), mesh, EVERYWHERE if shared else BLOCKS
            )
        self.context = plain._replace(shards=whole)
        self.targets = placed(self.targets, mesh, EVERYWHERE)
        own = placed(own.astype(np.int32), mesh, EVERYWHERE)

        def executor_of(plan: Plan, start: Any):
            context = plain._replace(shards=mine, shard_of=own, start=start)
            sharded = ShardedExecutor(self.program, plan, mesh, shared)
            self._check_messages(sharded)
            return sharded, context

        return executor_of

    def _check_messages(self, sharded: ShardedExecutor) -> None:
        """Refuse exchanges between devices whose messages hold a gradient: of data that lie on the other one.

        Raises:
            InvalidInput: there are such exchanges.
        """
        meet = [op for op, k in sharded.routes.of_bank.get("worker", ((), 0))[0] if op.startswith("exchange")]
        if meet and sharded.data == BLOCKS and asks_gradient(self.problems[0], self.algorithms[0]):
            advice = "Use one device, protocol rounds, or data that all workers share."
            allowed = f"1 where messages of {self.name} in an exchange hold a gradient"
            raise InvalidInput("devices.count", self.plan.shards, allowed, advice)  # type: ignore[union-attr]

    def _start(self, roots: Sequence[jax.Array]) -> Any:
        """The states at the start, on the devices."""
        if self.mesh is None:
            states = jax.jit(self.states_at)(self.starting_points(roots), self.context)
            return states if self.states_given is None else _like(states, self.states_given)
        blocks = NamedSharding(self.mesh, BLOCKS)
        start: Callable
        if self.initial is None:  # no device ever holds all of them
            start = lambda roots, context: self.states_at(self.starting_points(roots), context)  # noqa: E731
            given = placed(list(roots), self.mesh, EVERYWHERE)
        else:
            start, given = self.states_at, placed(self.starting_points(roots), self.mesh, BLOCKS)
        if self.states_given is not None:
            states = jax.eval_shape(start, given, self.context)
            return placed(_like(states, self.states_given, np.asarray), self.mesh, BLOCKS)
        return jax.jit(start, out_shardings=blocks)(given, self.context)

    def keys_of(self, roots: Sequence[jax.Array]) -> jax.Array:
        """Keys ``(total_workers,)`` of all the workers' draws, from a root key for each replica."""
        per_model = self.problems[0].workers_per_model
        # Workers that hold one model between them have one source of data.
        return jnp.repeat(_worker_keys(roots, self.trace.n_workers // per_model), per_model)

    def states_at(self, params: Any, context: Context) -> Any:
        """The states of all models at the start, from :meth:`starting_points`; may be traced."""
        first = slice(None, None, self.trace.n_workers // self.models)
        params = jax.tree.map(lambda leaf: leaf[first], params)

        def start(params, key, replica):
            algorithm = self.program.algorithm_of(context, replica)
            return algorithm.init(params, jax.random.fold_in(key, int(Draw.INITIAL_STATE)))

        return jax.vmap(start)(params, context.keys[first], context.replica_of[first])

    def banks_of(self, states: Any) -> Banks:
        """All banks at the start: the models' states, and empty slots; may be traced."""
        if self.holder == "stage":
            flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), states)
            banks = {name: flat[name.partition(":")[2]] for name, _ in self.trace.banks}
        else:
            banks = {self.holder: states}
        for bank, size in self.slots.items():
            banks[bank] = jax.tree.map(
                lambda leaf, size=size: jnp.zeros((size, *leaf.shape), leaf.dtype), self.elements[bank]
            )
        return banks

    def _gradient_scale(self):
        """Factors of the workers' gradients that undo their unequal rates, where the algorithm asks for it."""
        if self.algorithms[0].rescale != "realised_rate":
            return None
        applied = self.trace.gradients_of_workers.reshape(len(self.trace.replicas), -1).astype(float)
        scale = applied.mean(1, keepdims=True) / np.maximum(applied, 1)
        return jnp.asarray(scale.ravel(), self.dtype)

    def _feedback_keys(self, keys: jax.Array) -> jax.Array | None:
        """Keys of the units that project the workers' errors: the replica's, the workers' own, or those that the trace names."""
        feedback = self.algorithms[0].feedback
        if feedback is None:
            return None
        asked = [code for code, op in enumerate(self.trace.ops) if op.name == REQUEST.name]
        if feedback.units == "private" and not asked:
            return jax.vmap(lambda key: jax.random.fold_in(key, int(Draw.FEEDBACK)))(keys)
        units = [
            jax.random.fold_in(jax.random.key(replica.seed or 0), int(Draw.FEEDBACK))
            for replica in self.trace.replicas
        ]
        shared = jnp.repeat(jnp.stack(units), self.trace.n_workers)
        unit = np.zeros(self.trace.total_workers, np.uint32)  # the first one's matrix is the shared one
        if asked:
            requests = self.trace.operands[np.isin(self.trace.op, asked)]
            unit[requests[:, 0]] = requests[:, 1]
        return jnp.where(
            jnp.asarray(unit == 0), shared, jax.vmap(jax.random.fold_in)(shared, jnp.asarray(unit))
        )

    def starting_points(self, roots: Sequence[jax.Array]) -> Any:
        """Parameters ``(total_workers, ...)`` that the workers start from, drawn from a root key for each replica.

        What the run was given as ``initial`` is drawn from nothing.
        """
        initial = self.initial
        trace, n = self.trace, self.trace.n_workers
        template = jax.eval_shape(self.problems[0].initial, jax.random.key(0))
        if initial is not None:
            if jax.tree.structure(initial) != jax.tree.structure(template):
                raise InvalidInput(
                    "initial", jax.tree.structure(initial), f"the structure {jax.tree.structure(template)}"
                )

            def widen(given, leaf):
                array = np.asarray(given, leaf.dtype)
                if array.shape not in (leaf.shape, (n, *leaf.shape)):
                    raise InvalidInput(
                        "initial", f"shape {array.shape}", f"shape {leaf.shape} or {(n, *leaf.shape)}"
                    )
                copies = np.broadcast_to(array, (n, *leaf.shape))
                return np.tile(copies, (len(trace.replicas),) + (1,) * leaf.ndim)

            return jax.tree.map(widen, initial, template)
        parts = []
        for root, problem in zip(roots, self.problems, strict=True):
            if problem.initial_per_worker:
                keys = _worker_keys([root], n)
                points = jax.vmap(
                    lambda key, p=problem: p.initial(jax.random.fold_in(key, int(Draw.INITIAL_POINT)))
                )(keys)
            else:
                point = problem.initial(jax.random.fold_in(root, int(Draw.INITIAL_POINT)))
                points = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n, *leaf.shape)), point)
            parts.append(points)
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    def _event_bytes(self) -> list[float]:
        """Bytes one event of each op moves: its operands, and the data a gradient reads."""
        sizes, data = self.element_bytes, max(problem.gradient_bytes for problem in self.problems)
        # Rows are chosen for a CPU's cache; on anything else they may hold more by as much as the events count for less.
        scale = 1.0 if jax.default_backend() == "cpu" else ROW_BYTES / LAUNCHED_ROW_BYTES
        return [
            scale * sum(sizes.get(o.bank, 0) for o in op.operands if o.reads or o.writes)
            + scale * (data if op.name in ("gradient", "gradient_commit", "evaluate") else 0.0)
            for op in self.trace.ops
        ]

    def _pieces(self, window: Window) -> list[tuple[int, int, int, int, int]]:
        """What is left to do of a window in order: ``(first, last, first group, last group, barrier)``, barrier -1 for none.

        Rows and sections (one group op each) where there is a plan, else events.
        """
        pieces, records = [], len(window.barriers)
        if self.plan is None:
            edges = np.concatenate([[0], window.barriers, [len(window.trace)]])
            for segment, (first, end) in enumerate(itertools.pairwise(edges.tolist())):
                barrier = segment if segment < records else -1
                cuts = [*range(first, end, CHUNK_EVENTS), end] if end > first else [first, first]
                pieces += [(a, b, 0, 0, barrier if b == end else -1) for a, b in itertools.pairwise(cuts)]
        else:
            rows, sections = self.plan.section_rows, self.plan.segment_sections
            for segment in range(len(sections) - 1):
                barrier = window.first_barrier + segment if segment < records else -1
                row, section, end = (
                    int(rows[sections[segment]]),
                    int(sections[segment]),
                    int(sections[segment + 1]),
                )
                while True:
                    # As many whole sections as fit; a section that does not fit is cut between its rows.
                    whole = int(np.searchsorted(rows, row + self.capacity, side="right")) - 1
                    upto = min(whole, section + self.group_capacity, end)
                    if upto >= end:
                        pieces.append((row, int(rows[end]), section, end, barrier))
                        break
                    stop = int(rows[upto]) if upto > section else row + self.capacity
                    pieces.append((row, stop, section, max(upto, section), -1))
                    row, section = stop, max(upto, section)
        return [piece for piece in pieces if piece[1] > piece[0] or piece[3] > piece[2] or piece[4] >= 0]

    # -- running -------------------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Nothing is left to do."""
        return self.position >= len(self.pieces) and self.window_number >= self.last_window

    def step(self) -> None:
        """Do the next piece: at most ``CHUNK_EVENTS`` events, and a record where one is due.

        Raises:
            Diverged: a record found a state that is NaN or infinite.
        """
        while self.position >= len(self.pieces):
            self.next_window()
        first, last, section, end, barrier = self.pieces[self.position]
        began = time.perf_counter()
        if last > first or end > section:
            self._advance(first, last, section, end)
            jax.block_until_ready(self.banks)
        self.wall_s["run"] += time.perf_counter() - began
        if barrier >= 0:
            began = time.perf_counter()
            self._record(barrier)
            self.wall_s["record"] += time.perf_counter() - began
        elif self._is_last():
            self.bad |= ~_finite(self._held()).reshape(len(self.bad), -1).all(1)
            if self.bad.any():
                self._diverged(len(self.events))  # no record will notice
        self.position += 1

    def _is_last(self) -> bool:
        return self.position == len(self.pieces) - 1 and self.window_number == self.last_window

    def _advance(self, first: int, last: int, section: int, end: int) -> None:
        if self.plan is None:
            assert self.clock is not None
            self.banks = run_events(
                self.program, self.banks, self.trace, first, last, self.context, self.clock, self.dtype
            )
            return
        if self.mesh is not None:
            sharded, context = self._spread
            capacities = self.capacity, self.group_capacity
            self.banks = sharded.advance(
                self.banks, context, (first, last, section, end), capacities, self.dtype
            )
            return
        rows = self.plan.rows(first, last, self.capacity, self.dtype)
        compiled = executor(self.program)
        if not self.program.active_groups():
            self.banks = compiled.run_rows(self.banks, rows, 0, last - first, self.context)
            return
        groups = self.plan.group_rows(section, end, self.group_capacity, self.dtype)
        ends = np.zeros(self.group_capacity, np.int32)
        ends[: end - section] = self.plan.section_rows[section + 1 : end + 1] - first
        self.banks = compiled.run_sections(
            self.banks, rows, groups, ends, end - section, last - first, self.context
        )

    @cached_property
    def _recorder(self):
        compiled = recorder(self.program, self.holder, self.per_problem, self.record.evaluate)
        if self.mesh is None:
            return compiled
        return jax.jit(compiled, out_shardings=NamedSharding(self.mesh, EVERYWHERE))

    def _measured(self, elapsed: np.ndarray):
        """The metrics of the states as they are, ``elapsed`` after their last events."""
        there = elapsed if self.mesh is None else placed(elapsed, self.mesh, BLOCKS)
        return self._recorder(self.banks, there, self.context, self.targets)

    def _held(self, banks: Any = None) -> Any:
        """The states of all models, their number in front."""
        count = self.models * len(self.trace.replicas)
        return held(self.banks if banks is None else banks, self.holder, count)

    def elapsed_at(self, barrier: int) -> np.ndarray:
        """``(models,)``: how long the models' states have to flow from their last event to a record, in the unit of ``flow``."""
        here = barrier - self.window.first_barrier
        last_write_s = self.clock.last_write_s if self.clock is not None else self.plan.last_write_s[here]  # type: ignore[union-attr]
        now_s = np.repeat(self.times_s[:, barrier], self.models)
        if self.holder == "stage":  # whose parts were written at several times, and do not flow
            return np.zeros(len(now_s), self.dtype)
        workers, servers = self.trace.total_workers, len(self.trace.replicas)
        written_s = last_write_s[:workers] if self.holder == "worker" else last_write_s[workers:][:servers]
        return ((now_s - written_s) / self.units.barrier(here)).astype(self.dtype)

    def _record(self, barrier: int) -> None:
        elapsed = self.elapsed_at(barrier)
        metrics = self._measured(elapsed).as_dict()
        # A state that is finite still may be too large for its loss; what a problem evaluates beside that is its own.
        numbers = [value for name, value in metrics.items() if not name.startswith(("train_", "test_"))]
        self.bad |= ~(metrics.pop("finite").astype(bool) & np.isfinite(numbers).all(0))
        if self.bad.any():
            self._diverged(barrier)
        self.recorded.append(metrics)
        if self.record.states:
            self.states.append(fetched(self._held()))

    def run(
        self,
        *,
        progress: Callable[[Progress], None] | bool = False,
        after_step: Callable[[], None] | None = None,
    ) -> Result:
        """Run to the end.

        Args:
            progress: a callback, or True for a progress bar.
            after_step: called after every piece (checkpoints).
        """
        self.warm_up()
        with progress_bar(self.name) if progress is True else nullcontext(progress or None) as report:
            while not self.done:
                self.step()
                if report:
                    report(self.progress())
                if after_step:
                    after_step()
        return self.result()

    def warm_up(self) -> None:
        """Compile on a chunk of padding, so that the run's wall time is the run's."""
        began = time.perf_counter()
        if self.plan is not None and len(self.trace):
            self._advance(0, 0, 0, 0)
        elapsed = np.zeros(self.models * len(self.trace.replicas), self.dtype)
        jax.block_until_ready(self._measured(elapsed))
        self.wall_s["compile"] += time.perf_counter() - began

    def metric_names(self) -> tuple[str, ...]:
        """The metrics of a record, known before there is one."""
        elapsed = np.zeros(self.models * len(self.trace.replicas), self.dtype)
        names = jax.eval_shape(self._recorder, self.banks, elapsed, self.context, self.targets).names
        return tuple(name for name in names if name != "finite")

    def progress(self) -> Progress:
        """Where the run is."""
        total = len(self.trace)
        if self.done:
            return Progress(self.trace.horizon_s, self.trace.horizon_s, total, total)
        trace, row = (
            self.window.trace,
            self.pieces[self.position][0] if self.position < len(self.pieces) else -1,
        )
        if row < 0 or self.plan is None:
            events = len(trace) if row < 0 else row
        else:
            events = int(self.plan.row_start[row] * len(trace) / max(1, len(self.plan.event)))
        time_s = float(trace.time_s[min(events, len(trace) - 1)]) if len(trace) else 0.0
        return Progress(time_s, self.trace.horizon_s, self.window.first + events, total)

    # -- results -------------------------------------------------------------------------------------------------------

    def result(self) -> Result:
        """The result up to the last record."""
        records = len(self.recorded)
        metrics = {"time_s": self.times_s[:, :records].copy()}
        for name, values in self._counts().items():
            metrics[name] = values[:, :records]
        samples = np.array([problem.samples_per_gradient for problem in self.problems], float)
        if per_message := self.algorithms[0].gradients_per_message:
            metrics["gradients"] = metrics["gradients"] + per_message * metrics["messages"]
        metrics["samples"] = metrics["gradients"] * samples[:, None]
        for key in self.recorded[0] if records else ():
            metrics[key] = np.stack([entry[key] for entry in self.recorded], axis=1)
        if "messages_sent" in metrics:  # the trace has what could have been sent
            metrics["messages"] = metrics.pop("messages_sent")
        metrics["bytes"] = (
            metrics.pop("token_bytes") if self.holder == "stage" else metrics["messages"] * self.message_bytes
        )
        return Result(
            self.name,
            self.algorithms[0],
            self.algorithms,
            tuple(replica.seed or 0 for replica in self.trace.replicas),
            metrics,
            self.trace if self.stream is None else None,
            self.states,
            fetched(self._held()),
            self._constants(),
            dict(self.wall_s),
            accounts_of(self.trace, self.networks) if self.stream is None else (),
            problem=self.problems[0].name,
            topology="" if self.networks[0] is None else self.networks[0].topology.name,
            protocol=self.protocol,
        )

    def _counts(self) -> dict[str, np.ndarray]:
        """What was done at each record: name -> float64 ``(replicas, records)``."""
        trace, records = self.trace, len(self.events)
        if self.stream is not None:
            done = self.stream.totals
        else:
            segment = np.searchsorted(self.events, np.arange(len(trace)), side="right")
            done = count_events(
                trace,
                segment,
                records + 1,
                token_bytes=np.array(self.op_bytes)[trace.op] if self.holder == "stage" else None,
            )
        counts = {name: values.cumsum(-1)[:, :records] for name, values in done.items()}
        counts["updates"] = counts["updates"] // self.algorithms[0].events_per_update
        return counts

    def _constants(self) -> dict[str, Any]:
        constants: dict[str, Any] = {
            "events": len(self.trace),
            "counts": self.trace.counts,
            "message_bytes": self.message_bytes,
            "realised_per_worker_and_s": self.trace.realised_rates(),
            "rate_spread": float(self.rates.std(1).mean()),
            "slots_in_flight": self.slots,
            "memory_bytes": self._memory_bytes(),
            "time_unit_s": self.unit_s,
            "executor": self.executor,
        }
        if self.mesh is not None:
            constants["devices"] = {
                "count": self.mesh.size,
                "processes": jax.process_count(),
                "platform": self.mesh.devices.flat[0].platform,
                "workers_of_each": self.trace.total_workers // self.mesh.size,
                # elements that one sends another at most: of each bank in a row, of messages for a mixing matrix
                "travels": {bank: route.capacity for bank, route in self._spread[0].routes.of_bank.items()}
                | {"mixed": max((m.senders for m in self._spread[0].routes.mixings if m.offset), default=0)},
            }
        if self.networks[0] is not None:
            network = self.networks[0]
            constants["assumed_per_worker_and_s"] = {"gradient": network.gradients_per_s}
            if self.holder != "stage":  # there the protocol counts passes between exchanges
                constants["assumed_per_worker_and_s"]["exchange"] = network.exchanges_per_s
        if any(optimizer_costs(self.algorithms[0])):
            demand = Demand() if self.networks[0] is None else self.networks[0].demand
            constants["optimizer"] = {  # zeros where nothing is charged
                "share_of_gradient": demand.optimizer_share,
                "after_meeting_s": demand.optimizer_s,
            }
        if self.stream is not None:
            constants["trace_hash"] = list(self.stream.hashes)
        if self.plan is not None:
            rows = self.rows_done + self.plan.n_rows
            events = self.window.first + len(self.plan.event)
            fill = events / max(1, rows * sum(self.widths) * self.plan.shards)
            constants["rows"] = {"count": rows, "widths": list(self.widths), "fill": fill}
        return constants

    def _memory_bytes(self) -> dict[str, Any]:
        """What the algorithm keeps at most: states, what is in flight (of all replicas), and in a pipeline by stage.

        Stages: of the first replica, one list per pipeline; state, remembered batches, tokens and cotokens that were sent.
        """
        size = self.element_bytes
        if self.holder != "stage":
            return {
                self.holder: size[self.holder],
                "in_flight": {b: n * size[b] for b, n in self.slots.items()},
            }
        order = self.problems[0].stages.shapes
        held = stage_bytes(
            in_flight(self.trace.replica(0)),
            [size[f"stage:{stage.kind}"] for stage in order],
            stash=[size.get(f"stash:{stage.kind}", 0) for stage in order],
            token=[size.get(f"token:{stage.gives}", 0) for stage in order],
            cotoken=[size.get(f"cotoken:{stage.takes}", 0) for stage in order],
            error=size.get("error", 0),
        )
        return {"stages": held.tolist()}

    def spread_of_gradients(self) -> dict[str, list[float]]:
        """Gradient noise sigma^2 and heterogeneity zeta^2 at the mean of the workers, per seed, as the state is now."""
        states = fetched(self._held())
        n, values = self.models, {"sigma_squared": [], "zeta_squared": []}
        for index, (problem, algorithm) in enumerate(zip(self.problems, self.algorithms, strict=True)):
            own = jax.tree.map(lambda leaf, i=index: leaf[i * n : (i + 1) * n], states)
            mean = jax.tree.map(lambda leaf: leaf.mean(0), jax.device_get(jax.vmap(algorithm.estimate)(own)))
            seed = self.trace.replicas[index].seed or 0
            # Algorithms of one run start at one point, where this may cost as much as a part of the run.
            where = seed, hash(tuple(leaf.tobytes() for leaf in jax.tree.leaves(mean)))
            known = vars(problem).setdefault("_spreads", {})
            if where not in known:
                mean = jax.tree.map(jnp.asarray, mean)
                noise = gradient_noise(problem, mean, jax.random.key(seed))
                known[where] = float(noise), float(heterogeneity(problem, mean))
            for name, value in zip(values, known[where], strict=True):
                values[name].append(value)
        return values

    def part(self, first: int, trace: Trace) -> Simulation:
        """Some replicas of a run that is done, as if they had run by themselves: a sweep's run among others.

        Wall times, and rows and their fill, stay those of the whole.

        Args:
            first: the first of them.
            trace: theirs.
        """
        count = len(trace.replicas)
        mine, models = slice(first, first + count), slice(first * self.models, (first + count) * self.models)
        held_here = jax.tree.map(lambda leaf: leaf[models], self._held())
        own = copy.copy(self)
        own.trace, own.rates = trace, self.rates[mine]
        own.problems, own.algorithms = self.problems[mine], self.algorithms[mine]
        own.networks, own.bad = self.networks[mine], self.bad[mine]
        own.times_s, own.events = self.record.schedule(trace)
        own.slots = {bank: size for bank, size in assign_slots(trace)[1].items() if bank in self.slots}
        own.recorded = [{key: values[mine] for key, values in entry.items()} for entry in self.recorded]
        own._held = lambda banks=None: held_here  # type: ignore[method-assign]
        return own

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, np.ndarray]:
        """Everything needed to take the run up again, as plain arrays."""
        arrays = {"position": np.array(self.position), "pieces": np.array(self.pieces)}
        arrays["window"] = np.array(self.window_number)
        for number, leaf in enumerate(jax.tree.leaves(self.banks)):
            arrays[f"state_{number}"] = fetched(leaf)
        for key in self.recorded[0] if self.recorded else ():
            arrays[f"metric_{key}"] = np.stack([entry[key] for entry in self.recorded])
        return arrays

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take up a run from :meth:`snapshot`'s arrays (rows executor, without ``Record(states=True)``).

        Raises:
            InvalidInput: the arrays are of another run.
        """
        # What the windows before leave to this one is worked out again.
        for _ in range(self.window_number, min(int(arrays.get("window", 0)), self.last_window)):
            self.next_window()
        # Another plan (of another version) cuts the run elsewhere: its position means nothing here.
        if not np.array_equal(arrays["pieces"], self.pieces):
            raise InvalidInput("checkpoint", "a run cut into other pieces", "the checkpoint of this run")
        leaves, structure = jax.tree.flatten(self.banks)
        stored = [arrays.get(f"state_{number}") for number in range(len(leaves))]
        for leaf, value in zip(leaves, stored, strict=True):
            if value is None or value.shape != leaf.shape or value.dtype != leaf.dtype:
                raise InvalidInput("checkpoint", "states of another shape", "the checkpoint of this run")
        put = jnp.array if self.mesh is None else partial(placed, mesh=self.mesh, spec=BLOCKS)
        self.banks = jax.tree.unflatten(structure, [put(value) for value in stored])
        self.position = int(arrays["position"])
        metrics = {
            key.removeprefix("metric_"): value for key, value in arrays.items() if key.startswith("metric_")
        }
        count = len(next(iter(metrics.values()))) if metrics else 0
        self.recorded = [{key: value[k] for key, value in metrics.items()} for k in range(count)]

    # -- failure -------------------------------------------------------------------------------------------------------

    def _diverged(self, barrier: int) -> None:
        """Find the first bad event: run again to the last good record, then event by event."""
        good = int(self.events[barrier - 1]) if barrier else 0
        end = int(self.events[barrier]) if barrier < len(self.events) else len(self.trace)
        partial = self.result()
        again = Simulation(
            self.trace, self.problems, self.algorithms, network=self.networks, record=self.record,
            initial=self.initial, states=self.states_given, executor=self.executor, name=self.name,
            devices=self.devices,
        )  # fmt: skip
        again.record = dataclasses.replace(self.record, evaluate=False)
        while len(again.recorded) < barrier:
            again.step()
        context = self.context
        if self.mesh is not None:  # event by event on one device
            start = None if context.start is None else fetched(context.start)
            context = jax.tree.map(jnp.asarray, self.context_on_host._replace(start=start))
            again.banks = jax.tree.map(jnp.asarray, fetched(again.banks))
        limit, what = np.inf, "NaN or infinite"
        if _finite(self._held()).all():  # only the loss was not: a sum of squares
            limit, what = 1e-3 * math.sqrt(np.finfo(self.dtype).max), "too large for a finite loss"
        for before, trace, event, clock in again.one_by_one(good, end):
            again.banks = run_events(
                self.program, again.banks, trace, event, event + 1, context, clock, self.dtype
            )
            op, first = trace.ops[trace.op[event]], int(trace.replica_of_event[event]) * self.models
            if op.is_group or self.holder != "worker":
                changed = range(first, first + self.models)
            else:
                changed = [
                    int(trace.operands[event, k])
                    for k, o in enumerate(op.operands)
                    if o.bank == "worker" and o.writes
                ]
            for worker in changed:
                one = jax.tree.map(lambda leaf, w=worker: leaf[w : w + 1], self._held(again.banks))
                if _magnitude(one)[0] >= limit:
                    time_s = float(trace.time_s[event])
                    self._raise_diverged(before + event, time_s, worker, op.name, what, partial)
        # Event by event it rounds differently and stayed below: all that is known is who was worst at the record.
        worst = int(np.argmax(_magnitude(self._held())))
        trace, event = again.window.trace, max(good, end - 1)
        time_s = float(trace.time_s[event - again.window.first])
        self._raise_diverged(event, time_s, worst, "or before", what, partial)

    def one_by_one(self, first: int, end: int) -> Iterator[tuple[int, Trace, int, Any]]:
        """The next events: ``(events before the window, the window's trace, number in it, clock)`` of each, for ``run_events``.

        Args:
            first: the events that are done; a record was made there, unless it is 0.
            end: one past the last event.
        """
        if self.stream is not None:
            while True:
                window, before = self.window, self.window.first
                assert self.plan is not None
                clock = PlanClock(self.plan)
                for event in range(max(first - before, 0), min(end - before, len(window.trace))):
                    yield before, window.trace, event, clock
                if end <= before + len(window.trace):
                    return
                self.next_window()
        clock = self.clock
        if self.plan is not None:
            # Slots are numbered alike with and without a plan, so its banks serve the eager executor.
            clock = EagerClock(self.trace, self.units, self.plan.shards)
            record = len(self.recorded) - 1
            written_s = np.zeros_like(clock.last_write_s) if record < 0 else self.plan.last_write_s[record]
            clock.skip_to(first, written_s)
        for event in range(first, end):
            yield 0, self.trace, event, clock

    def _raise_diverged(
        self, event: int, time_s: float, worker: int, op: str, what: str, partial: Result
    ) -> None:
        n = self.models
        seed = self.trace.replicas[worker // n].seed
        whose = {"worker": f"worker {worker % n}", "server": "the server", "stage": f"pipeline {worker % n}"}[
            self.holder
        ]
        smaller, of_theory = (
            "a smaller step size (optimizer.learning_rate",
            ", or leave it open for the theory's",
        )
        if getattr(getattr(self.algorithms[0], "optimizer", None), "kind", None) == "learned":
            smaller = "a smaller step (optimizer.step_multiplier; epsilons of 0 make NaN of zero gradients"
            of_theory = ""
        advice = {
            "worker": f"{smaller}{of_theory}), or more exchanges per second",
            "server": f"{smaller})",
            "stage": f"{smaller}), or a larger algorithm.accumulate",
        }[self.holder]
        raise Diverged(
            f"{self.name}: the state of {whose} (seed {seed}) became {what} at event {event} ({op}, "
            f"t = {time_s:.6g} s). Try {advice}.",
            event,
            time_s,
            worker % n,
            seed,
            partial,
        )


class Tolerant(Simulation):
    """A replica that diverges is remembered in ``bad``; the others, which never meet it, go on."""

    def _diverged(self, barrier: int) -> None:
        pass


@contextmanager
def progress_bar(name: str) -> Iterator[Callable[[Progress], None]]:
    """A tqdm bar over simulated time, with events per second and the time left."""
    shown, began = None, time.perf_counter()

    def report(progress: Progress) -> None:
        nonlocal shown
        if shown is None:
            layout = "{desc} {percentage:3.0f}%|{bar}| {n:.1f}/{total:.1f} s simulated [{elapsed}<{remaining}{postfix}]"
            shown = bars.enter_context(
                bar(total=progress.horizon_s, desc=name, bar_format=layout, mininterval=0.2)
            )
        rate = progress.events / max(time.perf_counter() - began, 1e-9)
        shown.set_postfix_str(f"{rate / 1e3:.0f} k events/s", refresh=False)
        shown.update(progress.time_s - shown.n)

    with ExitStack() as bars:
        yield report


def _like(states, given, put: Callable = jnp.asarray):
    """The states given, as those the algorithm starts with, made by ``put``.

    Raises:
        InvalidInput: another structure or other shapes.
    """
    shapes, theirs = (jax.tree.map(jnp.shape, tree) for tree in (states, given))
    if shapes != theirs:
        raise InvalidInput("states", theirs, f"the shapes {shapes}")
    return jax.tree.map(lambda own, value: put(value, own.dtype), states, given)


def _magnitude(states) -> np.ndarray:
    """``(workers,)``: the largest number of the worker's state, without its sign; infinite where one is not finite."""
    leaves = jax.tree.leaves(fetched(states))
    largest = [
        np.abs(leaf).reshape(len(leaf), -1).max(1) for leaf in leaves if np.issubdtype(leaf.dtype, np.inexact)
    ]
    return np.nan_to_num(np.max(largest, axis=0), nan=np.inf, posinf=np.inf)


def _wire_bytes(op: Op, element_bytes: dict[str, int]) -> int:
    """Bytes an op of a pipeline puts on the wire: tokens it opens, errors it sends, a stage's parameters both ways."""
    if op.instruction == "exchange" and op.kind:
        return 2 * element_bytes[f"message:{op.kind}"]
    if op.instruction == "error":
        return op.messages * element_bytes["error"]
    opened = [o.bank for o in op.operands if o.opens and o.bank.startswith(("token:", "cotoken:"))]
    return sum(element_bytes[bank] for bank in opened)


def _finite(states) -> np.ndarray:
    """Bool ``(workers,)``: every number of the worker's state is finite."""
    return np.isfinite(_magnitude(states))


def _capacities(
    widths: Sequence[int], longest: int, entries: dict[str, int], replicas: int, most: int
) -> tuple[int, int]:
    """Rows and sections of one call to the device.

    Args:
        widths: of the rows.
        longest: rows of the longest segment, at most.
        entries: of the largest table of each group op.
        replicas: how many.
        most: sections of a segment.
    """
    rows = max(1, min(longest, CHUNK_EVENTS // max(1, sum(widths))))
    return rows, max(1, min(most, CHUNK_EVENTS // max(1, sum(entries.values()) * replicas)))


def _check_pipeline(trace: Trace, problem: Problem, algorithm: Algorithm) -> None:
    """Raise an :class:`InvalidInput` where a pipeline's trace was made for other stages, or the algorithm knows none."""
    stages, own = problem.stages.shapes, type(algorithm)
    broadcasts = any(op.instruction == "error" for op in trace.ops)
    if own.learn is Algorithm.learn if broadcasts else own.turn is Algorithm.turn:
        words = "with an error for all stages, e.g. DFA," if broadcasts else "e.g. PETRA,"
        raise InvalidInput("algorithm", own.__name__, f"one for pipelines, {words} with such a trace")
    sizes = {f"stage:{stage.kind}": 0 for stage in stages}
    for stage in stages:
        sizes[f"stage:{stage.kind}"] += trace.n_workers // len(stages)
    if dict(trace.banks) != sizes or not set(trace.ops) <= {*pipeline_ops(stages), *feedback_ops(stages)}:
        got = f"a trace of {', '.join(op.name for op in trace.ops)}"
        allowed = f"one of the {len(stages)} stages of this problem"
        raise InvalidInput("trace", got, allowed, "Kinds, shapes and number of stages have to be the same.")


def _rates(trace: Trace) -> np.ndarray:
    """``(replicas, workers)``: gradients of each worker that were applied, relative to their mean (1 where there are none).

    A pipeline's are those of its last stage: they are its workers' together.
    """
    applied = trace.gradients_of_workers.reshape(len(trace.replicas), -1).astype(float)
    if trace.banks:
        pipelines = shape_of(trace.replica(0))[0]
        whole = applied.reshape(len(applied), pipelines, -1)
        applied = np.broadcast_to(whole.mean(2, keepdims=True), whole.shape).reshape(applied.shape)
    mean = applied.mean(1, keepdims=True)
    return np.where(mean > 0, applied / np.maximum(mean, 1e-300), 1.0)


def each(name: str, value: Any, count: int) -> tuple:
    """``count`` values: the one given, or as many as given."""
    if not isinstance(value, list | tuple) or hasattr(value, "_fields"):
        return (value,) * count
    if len(value) != count:
        raise InvalidInput(name, f"{len(value)} of them", f"one, or one per replica: {count}")
    return tuple(value)


def resolved(algorithm: Algorithm, problem: Problem, network: Network | None) -> Algorithm:
    """The algorithm with its step sizes."""
    if not isinstance(algorithm, Algorithm):
        raise InvalidInput("algorithm", algorithm, "an instance of decentral.Algorithm")
    if algorithm.feedback is not None:
        algorithm = dataclasses.replace(algorithm, feedback=as_feedback(algorithm.feedback))
        check_feedback(algorithm.feedback, algorithm.oracle, type(algorithm).__name__, problem)
    return bound_to(algorithm.resolve(problem, network), problem)


def _stack_algorithms(algorithms: Sequence[Algorithm], dtype) -> tuple[Algorithm, bool]:
    """One pytree: plain leaves when all replicas agree, leaves with a replica axis otherwise."""
    flat = [jax.tree.flatten(algorithm) for algorithm in algorithms]
    leaves, structure = flat[0]
    for _, other in flat:
        if other != structure:
            raise InvalidInput("algorithm", other, f"replicas of one structure, {structure}")
    # A table in one replica and one number in another (a step per edge where edges are alike): the number is a table.
    columns = [
        np.stack(np.broadcast_arrays(*(np.asarray(one[k], dtype) for one, _ in flat)))
        for k in range(len(leaves))
    ]
    varies = any((column != column[:1]).any() for column in columns)
    chosen = [jnp.asarray(column if varies else column[0]) for column in columns]
    return jax.tree.unflatten(structure, chosen), varies


def _worker_keys(roots: Sequence[jax.Array], n: int):
    """Keys ``(len(roots) * n,)``, from (root, number inside the replica). The 1 keeps them apart from the common draws."""
    workers = jnp.arange(n)
    own = [jax.random.fold_in(root, 1) for root in roots]
    return jnp.concatenate(
        [jax.vmap(lambda i, root=root: jax.random.fold_in(root, i))(workers) for root in own]
    )


def _targets(
    problems: Sequence[Problem],
    of_replica: Sequence[Problem],
    trace: Trace,
    record: Record,
    per_problem: bool,
    rates: np.ndarray,
    models: int,
    unequal: bool,
) -> _Targets:
    chosen = []
    for replica in trace.replicas:
        draws = uniforms(replica.seed or 0, int(Purpose.RECORDED_WORKERS), (0, 0), 0, models)
        chosen.append(np.sort(np.argsort(draws)[:RECORDED_WORKERS]))
    dtype = problems[0].dtype
    optima = [problem.optimum for problem in problems]
    values = [problem.optimal_value for problem in problems]

    def stacked(items):
        if any(item is None for item in items):
            return None
        cast = [jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), item) for item in items]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *cast) if per_problem else cast[0]

    held_out = [problem.held_out for problem in problems]
    same = (
        jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *held_out)
        if per_problem
        else held_out[0]
    )
    weighted = None
    if unequal:
        found = [problem.weighted_optimum(own) for problem, own in zip(of_replica, rates, strict=True)]
        if all(item is not None for item in found):
            cast = [jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), item) for item in found]
            weighted = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cast)
    return _Targets(same, jnp.asarray(np.stack(chosen)), stacked(optima), stacked(values), weighted)
