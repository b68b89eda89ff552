"""Two executors of the same instructions: *rows* (fast) and *eager* (one event after another: the oracle).

The core, :func:`row_step`, is a pure function of (banks, row, context): it vmaps and differentiates. Chunks, donation and
checkpoints wrap it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from decentral.engine.instructions import INSTRUCTIONS, STAGE_INSTRUCTIONS, Actor, Draw, meet, reduce, step
from decentral.engine.plan import Plan, assign_slots, closed_position, group_entries, lasting_banks
from decentral.engine.trace import REDUCTIONS, Op, Trace
from decentral.engine.units import Units

Banks = dict[str, Any]
"""Bank name -> pytree whose leaves have the elements as their first axis."""


class Context(NamedTuple):
    """What the instructions look up and never change.

    Attributes:
        algorithm: the algorithm; its leaves have a leading replica axis when the program says ``per_replica``.
        shards: the problem's data, one row per shard.
        shard_of: int32 ``(total_workers,)``, the shard a worker holds.
        replica_of: int32 ``(total_workers,)``.
        keys: JAX keys ``(total_workers,)``.
        gradient_scale: ``(total_workers,)`` factors of the workers' gradients, or None.
        start: the states the workers started from, where some op resets them, else None.
        first: int32, the first of the workers of this device, whose ``shards`` and ``start`` it has; None: it has all.
        feedback_keys: JAX keys ``(total_workers,)`` of the units that project errors, or None: nothing does.
    """

    algorithm: Any
    shards: Any
    shard_of: jax.Array
    replica_of: jax.Array
    keys: jax.Array
    gradient_scale: jax.Array | None = None
    start: Any = None
    feedback_keys: jax.Array | None = None
    first: jax.Array | None = None


@dataclass(frozen=True)
class Program:
    """The static half of a run: hashable, so one program compiles once per shape.

    Attributes:
        problem: supplies ``gradient(params, shards, shard, key, count)``.
        ops: the trace's instruction set.
        occurs: names of the ops that occur; the others cost nothing.
        per_replica: hyper-parameters differ between replicas and are gathered for each event.
        n_workers: of one replica.
        lasting: banks whose elements stay, with a clock and a count each.
    """

    problem: Any
    ops: tuple[Op, ...]
    occurs: tuple[str, ...]
    per_replica: bool
    n_workers: int
    lasting: tuple[str, ...] = ("worker", "server")

    def algorithm_of(self, context: Context, replica) -> Any:
        """The algorithm with the hyper-parameters of one replica."""
        if not self.per_replica:
            return context.algorithm
        return jax.tree.map(lambda leaf: leaf[replica], context.algorithm)

    def actor(self, context: Context, state, worker, elapsed, count, kind: str = "") -> Actor:
        """The operand of one event; ``kind``: of the stage it is, where it is one."""
        algorithm = self.algorithm_of(context, context.replica_of[worker])
        gradient = self.problem.oracle(algorithm.oracle)
        units = context.feedback_keys

        def oracle(params, key, number):
            of_worker = (params, context.shards, context.shard_of[worker], key, number)
            slope = gradient(*of_worker) if units is None else gradient(*of_worker, units[worker])
            if context.gradient_scale is None:
                return slope
            scale = context.gradient_scale[worker]
            return jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), slope)

        number = worker - context.replica_of[worker] * self.n_workers
        start = None
        if context.start is not None:
            here = worker if context.first is None else worker - context.first
            start = jax.tree.map(lambda leaf: leaf[here], context.start)
        actor = Actor(state, elapsed, count, algorithm, oracle, context.keys[worker], start, number)
        if not kind:
            return actor

        def batch(count):
            return self.problem.batch(
                context.shards, context.shard_of[worker], actor.stream(Draw.GRADIENT), count
            )

        stages = self.problem.stages
        layer = None if kind == stages.order[-1] else number % len(stages)
        unit = None if context.feedback_keys is None else context.feedback_keys[worker]
        return actor._replace(batch=batch, stage=stages.kinds[kind], loss=stages.loss, layer=layer, unit=unit)

    def apply(self, op: Op, context: Context, states: tuple, operands, elapsed, count) -> tuple:
        """One event: the new value of every operand that is written, None for the others."""
        arguments = []
        for k, (operand, state) in enumerate(zip(op.operands, states, strict=True)):
            if operand.bank in self.lasting:
                # A server or a stage has no data or key of its own: it acts for the worker of the event.
                worker = operands[k] if operand.bank == "worker" else operands[0]
                arguments.append(self.actor(context, state, worker, elapsed[k], count[k], op.kind))
            else:
                arguments.append(state)
        instruction = STAGE_INSTRUCTIONS[op.instruction] if op.kind else INSTRUCTIONS[op.name]
        return instruction(*arguments)

    def active(self) -> list[Op]:
        """The ops of the rows that occur, in the order of the instruction set."""
        return [op for op in self.ops if op.name in self.occurs and not op.is_group]

    def active_groups(self) -> list[Op]:
        """The group ops that occur."""
        return [op for op in self.ops if op.name in self.occurs and op.is_group]


def row_step(program: Program, banks: Banks, row: dict, context: Context) -> Banks:
    """Execute one row: gather every operand, apply each op to its events at once, scatter every result.

    One gather and one scatter per bank and leaf. With a scatter per op, XLA could not prove that the later gather does
    not need the bank the earlier scatter overwrites, and would copy the whole bank.

    Args:
        program: what to run.
        banks: the state.
        row: for each op ``operands``, ``elapsed`` and ``count``, each ``(width, arity)``.
        context: data and hyper-parameters.
    """
    taken: dict[str, dict[tuple[str, int], Any]] = {}
    gathered: dict[str, Any] = {}
    for bank, elements in banks.items():
        places, indices = indices_of(program, row, bank, "reads")
        if not places:
            continue
        index = jnp.concatenate(indices)
        values = jax.tree.map(lambda leaf, index=index: leaf.at[index].get(mode="clip"), elements)
        gathered[bank] = values
        taken[bank] = dict(zip(places, parted(values, indices), strict=True))
    results = results_of(program, row, taken, context)
    after = {}
    for bank, elements in banks.items():
        places, indices = indices_of(program, row, bank, "writes")
        if not places:
            after[bank] = elements
            continue
        index = jnp.concatenate(indices)
        updates = jax.tree.map(lambda *parts: jnp.concatenate(parts), *(results[place] for place in places))

        after[bank] = put(elements, index, updates, gathered.get(bank))
    return after


def results_of(program: Program, row: dict, taken: dict, context: Context) -> dict[tuple[str, int], Any]:
    """What the events of a row make of their operands: ``(op, number of the operand)`` -> values, None where it writes none.

    Args:
        program: what to run.
        row: as for :func:`row_step`.
        taken: bank -> ``(op, number of the operand)`` -> what was gathered.
        context: data and hyper-parameters.
    """
    results: dict[tuple[str, int], Any] = {}
    for op in program.active():
        events = row[op.name]
        states = tuple(
            taken[operand.bank][op.name, k] if operand.reads else None
            for k, operand in enumerate(op.operands)
        )

        def one(states, operands, elapsed, count, op=op):
            return program.apply(op, context, states, operands, elapsed, count)

        outputs = jax.vmap(one)(states, events["operands"], events["elapsed"], events["count"])
        results |= {(op.name, k): output for k, output in enumerate(outputs)}
    return results


def parted(values, like: Sequence) -> list:
    """Values that stand one behind the other, cut into parts as long as those of ``like``."""
    cuts = np.cumsum([len(part) for part in like])[:-1]
    leaves, structure = jax.tree.flatten(values)
    parts = [jnp.split(leaf, cuts) for leaf in leaves]
    return [jax.tree.unflatten(structure, [part[k] for part in parts]) for k in range(len(like))]


def put(elements, index, values, gathered):
    """The elements of a bank with ``values`` at ``index`` (unique; beyond the end: nowhere); ``gathered`` from it, or None."""

    def one(leaf, value, before):
        return leaf.at[index if before is None else _after(index, before)].set(
            value.astype(leaf.dtype), mode="drop", unique_indices=True
        )

    leaves = jax.tree.leaves(elements)
    before = [None] * len(leaves) if gathered is None else jax.tree.leaves(gathered)
    new = [one(*each) for each in zip(leaves, jax.tree.leaves(values), before, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(elements), new)


def _after(index, gathered):
    """``index``, known only when ``gathered`` is.

    What goes into a bank of slots does not depend on what was taken out of it, so XLA is free to scatter before it gathers,
    and copies the whole bank to be safe (most of the time of a row). A barrier is gone before it decides; that
    a number is never both NaN and infinite it does not know.
    """
    first = gathered.reshape(-1)[0].astype(jnp.float32)
    return index + (jnp.isnan(first) & jnp.isinf(first)).astype(index.dtype)


def indices_of(
    program: Program, row: dict, bank: str, access: str
) -> tuple[list[tuple[str, int]], list[jax.Array]]:
    """The operands of a row that index a bank and have this access: ``(op, number of the operand)``, and their indices."""
    places, indices = [], []
    for op in program.active():
        for k, operand in enumerate(op.operands):
            if operand.bank == bank and getattr(operand, access):
                places.append((op.name, k))
                indices.append(row[op.name]["operands"][:, k])
    return places, indices


def scan_rows(program: Program, banks: Banks, rows: dict, context: Context) -> Banks:
    """All rows of a chunk by ``lax.scan``: pure, vmaps, differentiates."""
    return lax.scan(lambda state, row: (row_step(program, state, row, context), None), banks, rows)[0]


def group_step(program: Program, banks: Banks, row: dict, context: Context) -> Banks:
    """The group ops that end a section: every replica's at once.

    Args:
        program: what to run.
        banks: the state.
        row: for each group op what :meth:`decentral.engine.plan.Plan.group_rows` says, for one section.
        context: data and hyper-parameters.
    """
    banks = dict(banks)
    for op in program.active_groups():
        group = row[op.name]
        if op.name in REDUCTIONS:
            bank = "server"
            new = _step(
                program, banks[bank], group, context, banks["gradient"] if op.name == "reduce" else None
            )
        else:
            bank = "worker"
            new = _meet(op, program, banks[bank], group, context)

        def kept(leaf, value, active=group["active"]):
            mask = jnp.repeat(active, leaf.shape[0] // active.shape[0])
            return jnp.where(mask.reshape(-1, *(1,) * (leaf.ndim - 1)), value.astype(leaf.dtype), leaf)

        banks[bank] = jax.tree.map(kept, banks[bank], new)
    return banks


def _step(program: Program, states, group: dict, context: Context, loaded):
    """A ``step``, or a ``reduce`` at points that were ``loaded`` into slots."""

    def of_replica(state, replica, elapsed, count, slot, sender, weight, entry_count):
        workers = replica * program.n_workers + sender

        def members(point):
            def one(worker, number):
                actor = program.actor(context, None, worker, elapsed[0], number)
                return actor.oracle(point, actor.stream(Draw.GRADIENT), number)

            return jax.vmap(one)(workers, entry_count)

        server = program.actor(context, state, replica * program.n_workers, elapsed[0], count)
        if loaded is None:
            return step(members, server, weight)
        point = jax.tree.map(lambda leaf: leaf.at[slot].get(mode="clip"), loaded)
        return reduce(members, server, weight, point)

    replicas = jnp.arange(group["active"].shape[0])
    columns = (group[name] for name in ("elapsed", "count", "slot", "sender", "weight", "entry_count"))
    return jax.vmap(of_replica)(states, replicas, *columns)


def _meet(op: Op, program: Program, states, group: dict, context: Context):
    n, replicas = program.n_workers, group["active"].shape[0]
    number, elapsed = jnp.arange(n * replicas), group["elapsed"].reshape(-1)
    count = jnp.repeat(group["count"], n)
    first = n * jnp.arange(replicas)[:, None]
    # Entries beyond the table point past the last worker, where nothing is kept.
    receiver = jnp.where(group["receiver"] < n, group["receiver"] + first, n * replicas)
    receives = jnp.zeros(n * replicas, bool).at[receiver.reshape(-1)].set(True, mode="drop")
    sender, weight = group["sender"] + first, group["weight"]

    def weighted(leaf):
        each = leaf[sender] * weight.astype(leaf.dtype).reshape(*weight.shape, *(1,) * (leaf.ndim - 1))
        if op.name == "average":  # one sum for all
            return jnp.repeat(each.sum(1), n, axis=0)
        flat = each.reshape(-1, *leaf.shape[1:])
        return jax.ops.segment_sum(flat, receiver.reshape(-1), num_segments=n * replicas)

    return meeting(program, states, context, number, elapsed, count, weighted, receives)


def meeting(program: Program, states, context: Context, number, elapsed, count, weighted, receives):
    """The states of workers ``number`` after they met; ``weighted`` makes of one leaf of all messages what each worker gets."""

    def workers(function, *columns):
        def one(state, worker, elapsed, count, *columns):
            return function(program.actor(context, state, worker, elapsed, count), *columns)

        return jax.vmap(one)(states, number, elapsed, count, *columns)

    return meet(workers, lambda messages: jax.tree.map(weighted, messages), receives)


class Executor:
    """The compiled functions of one program. Get it from :func:`executor`, which keeps the last few."""

    def __init__(self, program: Program) -> None:
        self.program = program

    @cached_property
    def run_rows(self):
        """``run_rows(banks, rows, first, last, context) -> banks``: rows of a padded chunk, in place.

        A loop with a dynamic end does not pay for the padding, as a scan over the whole chunk would.
        """

        def run(banks, rows, first, last, context):
            return self._rows(banks, rows, first, last, context)

        return jax.jit(run, donate_argnums=0)

    @cached_property
    def run_sections(self):
        """``run_sections(banks, rows, groups, ends, n_groups, n_rows, context) -> banks``: a chunk with group ops, in place.

        Group op k is done after row ``ends[k]``; the rows after the last group op come last.
        """

        def run(banks, rows, groups, ends, n_groups, n_rows, context):
            def section(k, state):
                first = jnp.where(k > 0, ends[k - 1], 0)
                state = self._rows(state, rows, first, ends[k], context)
                group = jax.tree.map(
                    lambda column: lax.dynamic_index_in_dim(column, k, keepdims=False), groups
                )
                return group_step(self.program, state, group, context)

            banks = lax.fori_loop(0, n_groups, section, banks)
            first = jnp.where(n_groups > 0, ends[n_groups - 1], 0)
            return self._rows(banks, rows, first, n_rows, context)

        return jax.jit(run, donate_argnums=0)

    def _rows(self, banks, rows, first, last, context):
        if not rows:
            return banks

        def step(r, state):
            row = jax.tree.map(lambda column: lax.dynamic_index_in_dim(column, r, keepdims=False), rows)
            return row_step(self.program, state, row, context)

        return lax.fori_loop(first, last, step, banks)

    @cached_property
    def run_group(self):
        """``run_group(banks, row, context) -> banks``: the group ops that end one section, in place."""

        def run(banks, row, context):
            return group_step(self.program, banks, row, context)

        return jax.jit(run, donate_argnums=0)

    @cached_property
    def run_event(self):
        """For each op ``run_event[name](banks, operands, elapsed, count, context) -> banks``: one event, in place."""

        def compiled(op: Op):
            def run(banks, operands, elapsed, count, context):
                states = tuple(
                    jax.tree.map(lambda leaf, k=k: leaf[operands[k]], banks[operand.bank])
                    if operand.reads
                    else None
                    for k, operand in enumerate(op.operands)
                )
                outputs = self.program.apply(op, context, states, operands, elapsed, count)
                after = dict(banks)
                for k, operand in enumerate(op.operands):
                    if operand.writes:
                        after[operand.bank] = jax.tree.map(
                            lambda leaf, value, k=k: leaf.at[operands[k]].set(value.astype(leaf.dtype)),
                            after[operand.bank],
                            outputs[k],
                        )
                return after

            return jax.jit(run, donate_argnums=0)

        return {op.name: compiled(op) for op in self.program.active()}


@lru_cache(maxsize=8)
def executor(program: Program) -> Executor:
    """The compiled functions of a program; asking again for the same program compiles nothing."""
    return Executor(program)


class EagerClock:
    """What the eager executor keeps instead of a plan: when each element was last written, and how often each op ran."""

    def __init__(
        self,
        trace: Trace,
        units: Units = Units(1.0, 1.0, 1.0),  # noqa: B008  frozen
        shards: int = 1,
    ) -> None:
        self.trace, self.units = trace, units
        self.group_number = np.cumsum(np.array([op.is_group for op in trace.ops], bool)[trace.op]) - 1
        sizes = lasting_banks(trace)
        self.written_s = {bank: np.zeros(size) for bank, size in sizes.items()}
        self.seen = {bank: np.zeros((len(trace.ops), size), np.uint32) for bank, size in sizes.items()}
        self.gradients = np.zeros(trace.total_workers, np.uint32)
        self.operands, _ = assign_slots(trace, shards)
        self.entries = group_entries(trace)

    @property
    def last_write_s(self) -> np.ndarray:
        """Float64 ``(elements that stay,)``, as in a plan."""
        return np.concatenate(list(self.written_s.values()))

    def skip_to(self, event: int, last_write_s: np.ndarray) -> None:
        """Be where a run is that has done the first ``event`` events; ``last_write_s`` as in a plan, at that time."""
        sizes = lasting_banks(self.trace)
        parts = np.split(last_write_s, np.cumsum(list(sizes.values()))[:-1])
        self.written_s = {bank: part.copy() for bank, part in zip(sizes, parts, strict=True)}
        for code, op in enumerate(self.trace.ops):
            rows = np.flatnonzero(self.trace.op[:event] == code)
            for k, operand in enumerate(op.operands):
                if operand.bank in self.seen:
                    np.add.at(self.seen[operand.bank][code], self.operands[rows, k], 1)
            if op.name in REDUCTIONS:
                for row in rows:
                    np.add.at(self.gradients, self._members(int(row)), 1)

    def _members(self, event: int) -> np.ndarray:
        """The workers whose gradients a step takes."""
        groups, table = (
            self.trace.groups,
            self.operands[event, len(self.trace.ops[self.trace.op[event]].operands) - 1],
        )
        first = self.trace.replica_of_event[event] * self.trace.n_workers
        return first + groups.sender[groups.start[table] : groups.start[table + 1]]

    def tick(self, event: int) -> tuple[np.ndarray, np.ndarray]:
        """``(elapsed, count)`` of an event's operands; the event is then done."""
        trace = self.trace
        op = trace.ops[trace.op[event]]
        elapsed_s, count = np.zeros(len(op.operands)), np.zeros(len(op.operands), np.uint32)
        clocked = [(k, operand) for k, operand in enumerate(op.operands) if operand.bank in self.written_s]
        for k, operand in clocked:
            who = self.operands[event, k]
            elapsed_s[k] = trace.time_s[event] - self.written_s[operand.bank][who]
            count[k] = self.seen[operand.bank][trace.op[event], who]
        for k, operand in clocked:
            who = self.operands[event, k]
            self.seen[operand.bank][trace.op[event], who] += 1
            if operand.writes:
                self.written_s[operand.bank][who] = trace.time_s[event]
        return elapsed_s / self.units.event(event, len(op.operands)), count

    def group_row(self, event: int, dtype) -> dict[str, dict[str, np.ndarray]]:
        """What ``Plan.group_rows`` says, for a section that ends with this event alone."""
        trace, replicas = self.trace, len(self.trace.replicas)
        code, replica = trace.op[event], int(trace.replica_of_event[event])
        op, first = trace.ops[code], replica * trace.n_workers
        table = self.operands[event, len(op.operands) - 1]
        entries = slice(trace.groups.start[table], trace.groups.start[table + 1])
        bank, width = ("server", 1) if op.name in REDUCTIONS else ("worker", trace.n_workers)
        elapsed_s = trace.time_s[event] - self.written_s[bank].reshape(replicas, width)
        self.written_s[bank][replica * width : (replica + 1) * width] = trace.time_s[event]
        entry_count = np.zeros(entries.stop - entries.start, np.uint32)
        if op.name in REDUCTIONS:
            for k, member in enumerate(self._members(event)):
                entry_count[k] = self.gradients[member]
                self.gradients[member] += 1
        receiver = trace.groups.receiver[entries]
        columns = {
            "receiver": np.where(receiver < 0, trace.n_workers, receiver).astype(np.int32),
            "sender": trace.groups.sender[entries],
            "weight": trace.groups.weight[entries].astype(dtype),
            "entry_count": entry_count,
        }
        # As wide as the largest table, so that all of them are one shape.
        shape = replicas, self.entries[op.name]
        row = {name: np.zeros(shape, column.dtype) for name, column in columns.items()}
        row["receiver"][:] = trace.n_workers
        for name, column in columns.items():
            row[name][replica, : len(column)] = column
        row |= {
            "active": np.arange(replicas) == replica,
            "elapsed": (elapsed_s / self.units.group(self.group_number[event])).astype(dtype),
            "count": np.full(replicas, self.seen["worker"][code, first], np.uint32),
            "slot": np.full(replicas, self.operands[event, closed_position(op)]),
        }
        self.seen["worker"][code, first] += 1
        return {op.name: row}


class PlanClock:
    """An :class:`EagerClock` that reads what a plan has worked out; of traces without group ops."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.operands = plan, plan.operands

    def tick(self, event: int) -> tuple[np.ndarray, np.ndarray]:
        """``(elapsed, count)`` of an event's operands."""
        arity = len(self.plan.trace.ops[self.plan.trace.op[event]].operands)
        return self.plan.elapsed[event, :arity], self.plan.count[event, :arity]


def run_events(
    program: Program,
    banks: Banks,
    trace: Trace,
    first: int,
    last: int,
    context: Context,
    clock: EagerClock | PlanClock,
    dtype,
) -> Banks:
    """Execute events ``first ... last - 1`` one after another, without a plan.

    Args:
        program: what to run.
        banks: the state; consumed.
        trace: the events.
        first: first event.
        last: one past the last event.
        context: data and hyper-parameters.
        clock: carried from call to call.
        dtype: of the elapsed times.
    """
    compiled = executor(program)
    for event in range(first, last):
        op = trace.ops[trace.op[event]]
        if op.is_mark:
            continue
        if op.is_group:
            assert isinstance(clock, EagerClock)
            single = dataclasses.replace(program, occurs=(op.name,))
            banks = executor(single).run_group(banks, clock.group_row(event, dtype), context)
            continue
        operands = clock.operands[event, : len(op.operands)]
        elapsed, count = clock.tick(event)
        banks = compiled.run_event[op.name](banks, operands, elapsed.astype(dtype), count, context)
    return banks
