"""The run itself: a state that moves along a plan, records, and can be stopped and taken up again."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from decentral.algorithm import Algorithm
from decentral.analysis.pipeline import in_flight, shape_of, stage_bytes
from decentral.engine.execute import Context, EagerClock, Program, executor, run_events
from decentral.engine.instructions import Draw
from decentral.engine.plan import Plan, assign_slots, lasting_banks, make_plan
from decentral.engine.record import RECORDED_WORKERS, held, recorder
from decentral.engine.trace import Op, Trace, pipeline_ops
from decentral.engine.units import units_of
from decentral.errors import InvalidInput, RunFailed
from decentral.experiment.record import Record
from decentral.experiment.result import Result
from decentral.experiment.shapes import shapes_of, size_of, slot_shapes
from decentral.problem import Problem, gradient_noise, heterogeneity, stack_shards
from decentral.protocol import Network
from decentral.timing import Purpose, uniforms
from decentral.topology import Topology

UNEQUAL_RATES = 0.1
"""Beyond this relative standard deviation of a foreign trace's gradient rates the optimum weighted by them is told apart."""

CHUNK_EVENTS = 2**16
"""Events of one call to the device: compile time, memory and the loss from a crash stay bounded."""


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
        trace: Trace,
        problem: Problem | Sequence[Problem],
        algorithm: Algorithm | Sequence[Algorithm],
        *,
        network: Network | Sequence[Network] | Topology | None = None,
        record: Record | None = None,
        initial: Any = None,
        states: Any = None,
        executor: str = "rows",
        name: str | None = None,
    ) -> None:
        if executor not in ("rows", "eager"):
            raise InvalidInput("executor", executor, "'rows' or 'eager'")
        replicas = len(trace.replicas)
        if isinstance(network, Topology):
            network = Network(network)
        self.networks = each("network", network, replicas)
        self.problems = each("problem", problem, replicas)
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
        self.trace, self.record, self.executor = trace, record or Record(), executor
        self.name = name or type(self.algorithms[0]).__name__.lower()
        self.initial, self.states_given = initial, states
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
        occurs = tuple(op.name for op in trace.ops if trace.counts[op.name])
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
        self.models = {"worker": n, "server": 1, "stage": n // per_model}[self.holder]
        worker = np.arange(trace.total_workers)
        # Workers that hold one model between them have one source of data.
        keys = jnp.repeat(
            _worker_keys([replica.seed or 0 for replica in trace.replicas], n // per_model), per_model
        )
        shards = stack_shards(problems) if self.per_problem else problems[0].shards
        rows = jax.tree.leaves(problems[0].shards)[0].shape[0]  # one, if all workers have the same data
        shard_of = np.minimum(worker % n // per_model, rows - 1) + (
            worker // n * rows if self.per_problem else 0
        )
        self.context = Context(
            stacked,
            jax.tree.map(jnp.asarray, shards),
            jnp.asarray(shard_of, jnp.int32),
            jnp.asarray(worker // n, jnp.int32),
            keys,
            self._gradient_scale(),
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
        first = slice(None, None, n // self.models)
        params = jax.tree.map(lambda leaf: leaf[first], self._starting_points())

        def start(params, key, replica):
            algorithm = self.program.algorithm_of(self.context, replica)
            return algorithm.init(params, jax.random.fold_in(key, int(Draw.INITIAL_STATE)))

        states = jax.jit(jax.vmap(start))(params, keys[first], self.context.replica_of[first])
        if self.states_given is not None:
            states = _like(states, self.states_given)
        if "reset" in occurs:
            self.context = self.context._replace(start=states)
        shapes = shapes_of(self.problems[0], self.algorithms[0])
        self.message_bytes = size_of(shapes.params if shapes.message is None else shapes.message)
        elements = slot_shapes(self.problems[0], self.algorithms[0], shapes)
        self.element_bytes = {bank: size_of(element) for bank, element in elements.items()}
        self.op_bytes = [_wire_bytes(op, self.element_bytes) for op in trace.ops]
        self.times_s, self.events = self.record.schedule(trace)
        began = time.perf_counter()
        self.unit_s = self.networks[0].time_unit_s if self.networks[0] is not None else 1.0
        self.units = units_of(self.algorithms[0].time_unit, trace, self.events, self.unit_s)
        self.plan: Plan | None = None
        if self.executor == "rows":
            self.plan = make_plan(trace, self.events, event_bytes=self._event_bytes(), units=self.units)
            slots = self.plan.slots
            self.capacity, self.group_capacity = _capacities(self.plan)
        else:
            slots = assign_slots(trace)[1]
        self.clock = EagerClock(trace, self.units) if self.executor == "eager" else None

        def empty(bank, size):
            return jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), elements[bank])

        # Algorithms may put one array in two fields; donated buffers must be distinct.
        states = jax.tree.map(jnp.copy, states)
        if self.holder == "stage":
            flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), states)
            self.banks = {name: flat[name.partition(":")[2]] for name, _ in trace.banks}
        else:
            self.banks = {self.holder: states}
        self.banks |= {bank: empty(bank, size) for bank, size in slots.items() if bank in used}
        self.slots = {bank: size for bank, size in slots.items() if bank in used}
        self.wall_s["plan"] = time.perf_counter() - began
        self.position = 0
        self.recorded: list[dict[str, np.ndarray]] = []
        self.states: list[Any] = []
        self.pieces = self._pieces()

    def _gradient_scale(self):
        """Factors of the workers' gradients that undo their unequal rates, where the algorithm asks for it."""
        if self.algorithms[0].rescale != "realised_rate":
            return None
        applied = self.trace.gradients_of_workers.reshape(len(self.trace.replicas), -1).astype(float)
        scale = applied.mean(1, keepdims=True) / np.maximum(applied, 1)
        return jnp.asarray(scale.ravel(), self.dtype)

    def _starting_points(self):
        """Parameters ``(total_workers, ...)`` that the workers start from."""
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
                return jnp.asarray(np.tile(copies, (len(trace.replicas),) + (1,) * leaf.ndim))

            return jax.tree.map(widen, initial, template)
        parts = []
        for replica, problem in zip(trace.replicas, self.problems, strict=True):
            if problem.initial_per_worker:
                keys = _worker_keys([replica.seed or 0], n)
                points = jax.vmap(
                    lambda key, p=problem: p.initial(jax.random.fold_in(key, int(Draw.INITIAL_POINT)))
                )(keys)
            else:
                point = problem.initial(
                    jax.random.fold_in(jax.random.key(replica.seed or 0), int(Draw.INITIAL_POINT))
                )
                points = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n, *leaf.shape)), point)
            parts.append(points)
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    def _event_bytes(self) -> list[float]:
        """Bytes one event of each op moves: its operands, and the data a gradient reads."""
        sizes, data = self.element_bytes, max(problem.gradient_bytes for problem in self.problems)
        return [
            sum(sizes.get(o.bank, 0) for o in op.operands if o.reads or o.writes)
            + (data if op.name in ("gradient", "gradient_commit", "evaluate") else 0.0)
            for op in self.trace.ops
        ]

    def _pieces(self) -> list[tuple[int, int, int, int, int]]:
        """What is left to do in order: ``(first, last, first group, last group, barrier)``, barrier -1 for none.

        Rows and sections (one group op each) where there is a plan, else events.
        """
        pieces = []
        if self.plan is None:
            edges = np.concatenate([[0], self.events, [len(self.trace)]])
            for segment, (first, end) in enumerate(itertools.pairwise(edges.tolist())):
                barrier = segment if segment < len(self.events) else -1
                cuts = [*range(first, end, CHUNK_EVENTS), end] if end > first else [first, first]
                pieces += [(a, b, 0, 0, barrier if b == end else -1) for a, b in itertools.pairwise(cuts)]
        else:
            rows, sections = self.plan.section_rows, self.plan.segment_sections
            for segment in range(len(sections) - 1):
                barrier = segment if segment < len(self.events) else -1
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
        return self.position >= len(self.pieces)

    def step(self) -> None:
        """Do the next piece: at most ``CHUNK_EVENTS`` events, and a record where one is due.

        Raises:
            Diverged: a record found a state that is NaN or infinite.
        """
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
        elif self.position == len(self.pieces) - 1 and not _finite(self._held()).all():
            self._diverged(len(self.events))  # no record will notice
        self.position += 1

    def _advance(self, first: int, last: int, section: int, end: int) -> None:
        if self.plan is None:
            assert self.clock is not None
            self.banks = run_events(
                self.program, self.banks, self.trace, first, last, self.context, self.clock, self.dtype
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

    def _recorder(self):
        return recorder(self.program, self.holder, self.per_problem, self.record.evaluate)

    def _held(self, banks: Any = None) -> Any:
        """The states of all models, their number in front."""
        count = self.models * len(self.trace.replicas)
        return held(self.banks if banks is None else banks, self.holder, count)

    def _record(self, barrier: int) -> None:
        last_write_s = self.clock.last_write_s if self.clock is not None else self.plan.last_write_s[barrier]  # type: ignore[union-attr]
        now_s = np.repeat(self.times_s[:, barrier], self.models)
        if self.holder == "stage":  # whose parts were written at several times, and do not flow
            elapsed = np.zeros(len(now_s), self.dtype)
        else:
            workers, servers = self.trace.total_workers, len(self.trace.replicas)
            written_s = (
                last_write_s[:workers] if self.holder == "worker" else last_write_s[workers:][:servers]
            )
            elapsed = ((now_s - written_s) / self.units.barrier(barrier)).astype(self.dtype)
        metrics = self._recorder()(self.banks, elapsed, self.context, self.targets).as_dict()
        # A state that is finite still may be too large for its loss; what a problem evaluates beside that is its own.
        numbers = [value for name, value in metrics.items() if not name.startswith(("train_", "test_"))]
        if not metrics.pop("finite").all() or not np.isfinite(numbers).all():
            self._diverged(barrier)
        self.recorded.append(metrics)
        if self.record.states:
            self.states.append(jax.device_get(self._held()))

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
        report = progress_bar(self.name) if progress is True else progress or None
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
        jax.block_until_ready(self._recorder()(self.banks, elapsed, self.context, self.targets))
        self.wall_s["compile"] += time.perf_counter() - began

    def metric_names(self) -> tuple[str, ...]:
        """The metrics of a record, known before there is one."""
        elapsed = np.zeros(self.models * len(self.trace.replicas), self.dtype)
        names = jax.eval_shape(self._recorder(), self.banks, elapsed, self.context, self.targets).names
        return tuple(name for name in names if name != "finite")

    def progress(self) -> Progress:
        """Where the run is."""
        total = len(self.trace)
        if self.done:
            return Progress(self.trace.horizon_s, self.trace.horizon_s, total, total)
        row = self.pieces[self.position][0]
        events = (
            row if self.plan is None else int(self.plan.row_start[row] * total / max(1, len(self.plan.event)))
        )
        time_s = float(self.trace.time_s[min(events, total - 1)]) if total else 0.0
        return Progress(time_s, self.trace.horizon_s, events, total)

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
            self.trace,
            self.states,
            jax.device_get(self._held()),
            self._constants(),
            dict(self.wall_s),
        )

    def _counts(self) -> dict[str, np.ndarray]:
        """What was done at each record: name -> float64 ``(replicas, records)``."""
        trace, records = self.trace, len(self.events)
        segment = np.searchsorted(self.events, np.arange(len(trace)), side="right")
        shape = (len(trace.replicas), records + 1)
        flat = np.ravel_multi_index((trace.replica_of_event, segment), shape)
        is_exchange = np.array([op.instruction in ("exchange", "exchange_start") for op in trace.ops])
        of_event = {
            "gradients": trace.gradients_of_events,
            "updates": np.minimum(trace.gradients_of_events, 1),
            "exchanges": is_exchange[trace.op],
            "messages": trace.messages_of_events,
        }
        if self.holder == "stage":
            of_event["token_bytes"] = np.array(self.op_bytes)[trace.op]
        counts = {
            name: np.bincount(flat, values.astype(float), int(np.prod(shape)))
            .reshape(shape)
            .cumsum(-1)[:, :records]
            for name, values in of_event.items()
        }
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
        if self.networks[0] is not None:
            network = self.networks[0]
            constants["assumed_per_worker_and_s"] = {"gradient": network.gradients_per_s}
            if self.holder != "stage":  # there the protocol counts passes between exchanges
                constants["assumed_per_worker_and_s"]["exchange"] = network.exchanges_per_s
        if self.plan is not None:
            constants["rows"] = {
                "count": self.plan.n_rows,
                "widths": list(self.plan.widths),
                "fill": self.plan.fill(),
            }
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
            stash=[size[f"stash:{stage.kind}"] if stage.gives else 0 for stage in order],
            token=[size[f"token:{stage.gives}"] if stage.gives else 0 for stage in order],
            cotoken=[size[f"cotoken:{stage.takes}"] if stage.takes else 0 for stage in order],
        )
        return {"stages": held.tolist()}

    def spread_of_gradients(self) -> dict[str, list[float]]:
        """Gradient noise sigma^2 and heterogeneity zeta^2 at the mean of the workers, per seed, as the state is now."""
        states = jax.device_get(self._held())
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

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, np.ndarray]:
        """Everything needed to take the run up again, as plain arrays."""
        arrays = {"position": np.array(self.position), "pieces": np.array(self.pieces)}
        for number, leaf in enumerate(jax.tree.leaves(self.banks)):
            arrays[f"state_{number}"] = np.asarray(leaf)
        for key in self.recorded[0] if self.recorded else ():
            arrays[f"metric_{key}"] = np.stack([entry[key] for entry in self.recorded])
        return arrays

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take up a run from :meth:`snapshot`'s arrays (rows executor, without ``Record(states=True)``).

        Raises:
            InvalidInput: the arrays are of another run.
        """
        # Another plan (of another version) cuts the run elsewhere: its position means nothing here.
        if not np.array_equal(arrays["pieces"], self.pieces):
            raise InvalidInput("checkpoint", "a run cut into other pieces", "the checkpoint of this run")
        leaves, structure = jax.tree.flatten(self.banks)
        stored = [arrays.get(f"state_{number}") for number in range(len(leaves))]
        for leaf, value in zip(leaves, stored, strict=True):
            if value is None or value.shape != leaf.shape or value.dtype != leaf.dtype:
                raise InvalidInput("checkpoint", "states of another shape", "the checkpoint of this run")
        self.banks = jax.tree.unflatten(structure, [jnp.array(value) for value in stored])
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
        )  # fmt: skip
        again.record = dataclasses.replace(self.record, evaluate=False)
        while len(again.recorded) < barrier:
            again.step()
        trace = self.trace
        if again.plan is not None:
            # Slots are numbered alike with and without a plan, so its banks serve the eager executor.
            clock = EagerClock(trace, self.units)
            clock.skip_to(
                good, again.plan.last_write_s[barrier - 1] if barrier else np.zeros_like(clock.last_write_s)
            )
        else:
            clock = again.clock
            assert clock is not None
        limit, what = np.inf, "NaN or infinite"
        if _finite(self._held()).all():  # only the loss was not: a sum of squares
            limit, what = 1e-3 * math.sqrt(np.finfo(self.dtype).max), "too large for a finite loss"
        for event in range(good, end):
            again.banks = run_events(
                self.program, again.banks, trace, event, event + 1, self.context, clock, self.dtype
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
                    self._raise_diverged(event, worker, op.name, what, partial)
        # Event by event it rounds differently and stayed below: all that is known is who was worst at the record.
        worst = int(np.argmax(_magnitude(self._held())))
        self._raise_diverged(max(good, end - 1), worst, "or before", what, partial)

    def _raise_diverged(self, event: int, worker: int, op: str, what: str, partial: Result) -> None:
        time_s = float(self.trace.time_s[event])
        n = self.models
        seed = self.trace.replicas[worker // n].seed
        whose = {"worker": f"worker {worker % n}", "server": "the server", "stage": f"pipeline {worker % n}"}[
            self.holder
        ]
        smaller = "a smaller step size (optimizer.learning_rate"
        advice = {
            "worker": f"{smaller}, or leave it open for the theory's), or more exchanges per second",
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


def progress_bar(name: str) -> Callable[[Progress], None]:
    """A tqdm bar over simulated time, with events per second and the time left."""
    from tqdm.auto import tqdm

    bar, began = None, time.perf_counter()

    def report(progress: Progress) -> None:
        nonlocal bar
        if bar is None:
            layout = "{desc} {percentage:3.0f}%|{bar}| {n:.1f}/{total:.1f} s simulated [{elapsed}<{remaining}{postfix}]"
            bar = tqdm(total=progress.horizon_s, desc=name, bar_format=layout, mininterval=0.2)
        rate = progress.events / max(time.perf_counter() - began, 1e-9)
        bar.set_postfix_str(f"{rate / 1e3:.0f} k events/s", refresh=False)
        bar.update(progress.time_s - bar.n)
        if progress.events >= progress.total_events:
            bar.close()

    return report


def _like(states, given):
    """The states given, as those the algorithm starts with.

    Raises:
        InvalidInput: another structure or other shapes.
    """
    shapes, theirs = (jax.tree.map(jnp.shape, tree) for tree in (states, given))
    if shapes != theirs:
        raise InvalidInput("states", theirs, f"the shapes {shapes}")
    return jax.tree.map(lambda own, value: jnp.asarray(value, own.dtype), states, given)


def _magnitude(states) -> np.ndarray:
    """``(workers,)``: the largest number of the worker's state, without its sign; infinite where one is not finite."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(states)]
    largest = [
        np.abs(leaf).reshape(len(leaf), -1).max(1) for leaf in leaves if np.issubdtype(leaf.dtype, np.inexact)
    ]
    return np.nan_to_num(np.max(largest, axis=0), nan=np.inf, posinf=np.inf)


def _wire_bytes(op: Op, element_bytes: dict[str, int]) -> int:
    """Bytes an op of a pipeline puts on the wire: tokens it opens, or a stage's parameters both ways."""
    if op.instruction == "exchange" and op.kind:
        return 2 * element_bytes[f"message:{op.kind}"]
    opened = [o.bank for o in op.operands if o.opens and o.bank.startswith(("token:", "cotoken:"))]
    return sum(element_bytes[bank] for bank in opened)


def _finite(states) -> np.ndarray:
    """Bool ``(workers,)``: every number of the worker's state is finite."""
    return np.isfinite(_magnitude(states))


def _capacities(plan: Plan) -> tuple[int, int]:
    """Rows and sections of one call to the device."""
    widest = max(1, sum(plan.widths))
    longest = int(np.diff(plan.segment_rows).max(initial=1))
    rows = max(1, min(longest, CHUNK_EVENTS // widest))
    entries = sum(plan.group_entries.values()) * len(plan.trace.replicas)
    most = int(np.diff(plan.segment_sections).max(initial=1))
    return rows, max(1, min(most, CHUNK_EVENTS // max(1, entries)))


def _check_pipeline(trace: Trace, problem: Problem, algorithm: Algorithm) -> None:
    """Raise an :class:`InvalidInput` where a pipeline's trace was made for other stages, or the algorithm knows none."""
    if type(algorithm).forward is Algorithm.forward:
        raise InvalidInput(
            "algorithm", type(algorithm).__name__, "one for pipelines, e.g. PETRA, with such a trace"
        )
    stages = problem.stages.shapes
    sizes = {f"stage:{stage.kind}": 0 for stage in stages}
    for stage in stages:
        sizes[f"stage:{stage.kind}"] += trace.n_workers // len(stages)
    if dict(trace.banks) != sizes or not set(trace.ops) <= set(pipeline_ops(stages)):
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
    return algorithm.resolve(problem, network)


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


def _worker_keys(seeds: Sequence[int], n: int):
    """Keys ``(len(seeds) * n,)``, from (seed, number inside the replica). The 1 keeps them apart from the common draws."""
    workers = jnp.arange(n)
    roots = [jax.random.fold_in(jax.random.key(seed), 1) for seed in seeds]
    return jnp.concatenate(
        [jax.vmap(lambda i, root=root: jax.random.fold_in(root, i))(workers) for root in roots]
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
