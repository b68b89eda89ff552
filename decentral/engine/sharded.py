"""The row executor over several devices: the workers in equal blocks, every bank cut alike, and what must travel sent explicitly.

Nothing here is left to the compiler's choice: a partitioner that does not know that an index lies in the block next door gathers
the whole bank. In a row every device takes its own operands from its own block; operands that lie elsewhere come and go in one
exchange of all with all (:mod:`decentral.engine.routes`). A mean is a sum of the devices' sums; messages of a mixing matrix are
sent where they are weighed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from decentral.engine.execute import Banks, Context, Program, indices_of, meeting, parted, put, results_of
from decentral.engine.plan import Plan
from decentral.engine.routes import Routes

AXIS = "workers"
"""The mesh axis over which workers are shared out."""
BLOCKS, EVERYWHERE, ROWS = P(AXIS), P(), P(None, AXIS)
"""A block of the first axis on each device; all of it on every device; a block of the second axis."""


def mesh_of(devices: Sequence[Any]) -> Mesh:
    """The devices in a row."""
    return Mesh(np.array(devices), (AXIS,))


def placed(tree: Any, mesh: Mesh, spec: P) -> Any:
    """A tree of host arrays on the devices; every process gives the same ones."""
    sharding = NamedSharding(mesh, spec)

    def one(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            wrap = jax.jit(
                lambda data: jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf)),
                out_shardings=sharding,
            )
            return wrap(one(jax.random.key_data(leaf)))
        array = np.asarray(leaf)
        if sharding.is_fully_addressable:
            return jax.device_put(array, sharding)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(one, tree)


def fetched(tree: Any) -> Any:
    """A tree of arrays on the devices as NumPy arrays, whole, on every process."""

    def one(leaf):
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        from jax.experimental.multihost_utils import process_allgather

        return np.asarray(process_allgather(leaf, tiled=True))

    return jax.tree.map(one, tree)


class ShardedExecutor:
    """The compiled loop of one plan.

    Args:
        program: what to run.
        plan: with as many shards as the mesh has devices.
        mesh: from :func:`mesh_of`.
        shared_data: all workers have the same data, which is on every device.
    """

    def __init__(self, program: Program, plan: Plan, mesh: Mesh, shared_data: bool) -> None:
        self.program, self.plan, self.mesh = program, plan, mesh
        self.routes = Routes(plan)
        self.data = EVERYWHERE if shared_data else BLOCKS
        self.block = plan.trace.total_workers // plan.shards

    def advance(
        self,
        banks: Banks,
        context: Context,
        piece: Sequence[int],
        capacities: tuple[int, int],
        dtype: np.dtype,
    ) -> Banks:
        """Do some rows and the group ops between them, in place.

        Args:
            banks: the state, in blocks; consumed.
            context: data in blocks (unless shared), ``start`` too; ``shard_of`` counts inside the block.
            piece: first row, one past the last, first section, one past the last.
            capacities: rows and sections of one call.
            dtype: of elapsed times.
        """
        return self.run(banks, *self.arguments(piece, capacities, dtype), context)

    def arguments(self, piece: Sequence[int], capacities: tuple[int, int], dtype: np.dtype) -> tuple:
        """What happens in a piece of the run, on the devices: the arguments of :attr:`run` between banks and context."""
        first, last, section, end = piece
        ends = np.zeros(capacities[1], np.int32)
        ends[: end - section] = self.plan.section_rows[section + 1 : end + 1] - first
        events = {
            "rows": self.plan.rows(first, last, capacities[0], dtype),
            "routes": self.routes.rows(first, last, capacities[0]),
        }
        groups = (
            self.routes.group_rows(section, end, capacities[1], dtype) if self.program.active_groups() else {}
        )
        events, numbers = (
            placed(events, self.mesh, ROWS),
            placed([ends, np.int32(end - section), np.int32(last - first)], self.mesh, EVERYWHERE),
        )
        spec = self._group_specs
        groups = {
            op: {name: placed(column, self.mesh, spec[op][name]) for name, column in group.items()}
            for op, group in groups.items()
        }
        return events, groups, *numbers

    @property
    def _group_specs(self) -> dict[str, dict[str, P]]:
        names = {
            "average": ("elapsed", "receives", "weight"),
            "mix": ("elapsed", "receives", "send", "sender", "receiver", "weight"),
        }
        return {
            op.name: dict.fromkeys(("active", "count"), EVERYWHERE) | dict.fromkeys(names[op.name], ROWS)
            for op in self.program.active_groups()
        }

    @property
    def context_specs(self) -> Context:
        """Where each part of a context lies."""
        specs: Any = (EVERYWHERE,) * len(Context._fields)
        return Context(*specs)._replace(shards=self.data, start=BLOCKS)

    @cached_property
    def run(self):
        """``run(banks, events, groups, ends, n_groups, n_rows, context) -> banks``, compiled; in place."""

        def run(banks, events, groups, ends, n_groups, n_rows, context):
            context = context._replace(first=lax.axis_index(AXIS) * self.block)

            def rows(first, last, state):
                if not events["rows"]:
                    return state

                def step(r, state):
                    at_row = lambda column: lax.dynamic_index_in_dim(column, r, keepdims=False)  # noqa: E731
                    row = jax.tree.map(at_row, events["rows"])
                    # of the device's own block the axis of shards is one long
                    traffic = jax.tree.map(lambda column: at_row(column)[0], events["routes"])
                    return self._row_step(state, row, traffic, context)

                return lax.fori_loop(first, last, step, state)

            if not groups:
                return rows(0, n_rows, banks)

            def section(k, state):
                state = rows(jnp.where(k > 0, ends[k - 1], 0), ends[k], state)
                group = jax.tree.map(
                    lambda column: lax.dynamic_index_in_dim(column, k, keepdims=False), groups
                )
                return self._group_step(state, group, context)

            banks = lax.fori_loop(0, n_groups, section, banks)
            return rows(jnp.where(n_groups > 0, ends[n_groups - 1], 0), n_rows, banks)

        specs = (BLOCKS, ROWS, self._group_specs, EVERYWHERE, EVERYWHERE, EVERYWHERE, self.context_specs)
        sharded = jax.shard_map(run, mesh=self.mesh, in_specs=specs, out_specs=BLOCKS, check_vma=False)
        return jax.jit(sharded, donate_argnums=0)

    # -- on one device -------------------------------------------------------------------------------------------------

    def _row_step(self, banks: Banks, row: dict, traffic: dict, context: Context) -> Banks:
        """As :func:`decentral.engine.execute.row_step`: one gather and one scatter per bank and leaf."""
        program, routes = self.program, self.routes.of_bank
        taken: dict[str, dict[tuple[str, int], Any]] = {}
        gathered: dict[str, Any] = {}
        for bank, elements in banks.items():
            places, indices = indices_of(program, row, bank, "reads")
            if not places:
                continue
            first, size = self._own(bank, elements)
            index = jnp.clip(jnp.concatenate(indices) - first, 0, size - 1)
            if bank in routes:
                indices = [*indices, traffic[bank]["take"].ravel()]
                index = jnp.concatenate([index, indices[-1]])
            values = jax.tree.map(lambda leaf, index=index: leaf.at[index].get(mode="clip"), elements)
            gathered[bank] = values
            parts = parted(values, indices)
            taken[bank] = dict(zip(places, parts, strict=False))
            if bank in routes:
                came = _all_to_all(parts[-1], traffic[bank]["take"].shape)
                came = jax.tree.map(lambda leaf, bank=bank: leaf[traffic[bank]["got"]], came)
                operands = [row[op]["operands"][:, k] for op, k in routes[bank].places]
                for place, part, other in zip(
                    routes[bank].places, operands, parted(came, operands), strict=True
                ):
                    if place in taken[bank]:
                        here = _here(part, first, size)
                        taken[bank][place] = jax.tree.map(
                            lambda own, other, here=here: jnp.where(_column(here, own), own, other),
                            taken[bank][place],
                            other,
                        )
        results = results_of(program, row, taken, context)
        after = {}
        for bank, elements in banks.items():
            places, indices = indices_of(program, row, bank, "writes")
            if not places:
                after[bank] = elements
                continue
            first, size = self._own(bank, elements)
            operands = jnp.concatenate(indices)
            # What is not this device's goes beyond the end, each to a place of its own: the indices stay unique.
            index = jnp.where(
                _here(operands, first, size), operands - first, size + jnp.arange(len(operands))
            )
            updates = jax.tree.map(
                lambda *parts: jnp.concatenate(parts), *(results[place] for place in places)
            )
            if bank in routes and any(place in places for place in routes[bank].places):
                which = traffic[bank]["put"]
                back = self._values(bank, row, results, updates)
                back = jax.tree.map(lambda leaf, bank=bank: leaf[traffic[bank]["back"].ravel()], back)
                back = _all_to_all(back, which.shape)
                beyond = size + len(operands) + jnp.arange(which.size)
                index = jnp.concatenate([index, jnp.where(which.ravel() >= 0, which.ravel(), beyond)])
                updates = jax.tree.map(lambda *parts: jnp.concatenate(parts), updates, back)
            after[bank] = put(elements, index, updates, gathered.get(bank))
        return after

    def _values(self, bank: str, row: dict, results: dict, like: Any) -> Any:
        """What the row made of the operands that may lie elsewhere, one beside the other; nothing of those it only read."""
        parts = []
        for place in self.routes.of_bank[bank].places:
            made = results[place]
            if made is None:
                width = row[place[0]]["operands"].shape[0]
                made = jax.tree.map(lambda leaf, w=width: jnp.zeros((w, *leaf.shape[1:]), leaf.dtype), like)
            parts.append(made)
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    def _own(self, bank: str, elements: Any) -> tuple[Any, int]:
        """The first of this device's elements of a bank, and how many it has."""
        size = self.plan.bank_sizes[bank] // self.plan.shards
        return lax.axis_index(AXIS) * size, size

    def _group_step(self, banks: Banks, row: dict, context: Context) -> Banks:
        """As :func:`decentral.engine.execute.group_step`, of ops whose workers have a state each."""
        banks, program = dict(banks), self.program
        number = lax.axis_index(AXIS) * self.block + jnp.arange(self.block)
        replica = number // program.n_workers
        for op in program.active_groups():
            group, states = row[op.name], banks["worker"]
            weigh = self._averaged if op.name == "average" else self._mixed

            def weighted(leaf, weigh=weigh, group=group):
                return weigh(leaf, group, replica)

            count = group["count"][replica]
            new = meeting(
                program, states, context, number, group["elapsed"], count, weighted, group["receives"]
            )
            active = group["active"][replica]
            banks["worker"] = jax.tree.map(
                lambda leaf, value, active=active: jnp.where(
                    _column(active, leaf), value.astype(leaf.dtype), leaf
                ),
                states,
                new,
            )
        return banks

    def _averaged(self, leaf, group: dict, replica):
        each = leaf * _column(group["weight"].astype(leaf.dtype), leaf)
        replicas = group["active"].shape[0]
        return lax.psum(jax.ops.segment_sum(each, replica, num_segments=replicas), AXIS)[replica]

    def _mixed(self, leaf, group: dict, replica):
        shards, total = self.plan.shards, jnp.zeros_like(leaf)
        sends, entries = 0, 0
        send, sender, receiver, weight = (group[name][0] for name in ("send", "sender", "receiver", "weight"))
        for mixing in self.routes.mixings:
            offset = mixing.offset
            messages = leaf[send[sends : sends + mixing.senders]]
            if offset:
                messages = lax.ppermute(messages, AXIS, [(k, (k + offset) % shards) for k in range(shards)])
            part = slice(entries, entries + mixing.entries)
            each = messages[sender[part]]
            each = each * _column(weight[part].astype(leaf.dtype), each)
            total += jax.ops.segment_sum(each, receiver[part], num_segments=self.block)
            sends, entries = sends + mixing.senders, entries + mixing.entries
        return total


def _here(operands, first, size: int):
    return (operands >= first) & (operands < first + size)


def _column(values, like):
    """``(k,)`` values that broadcast against the rows of ``like``."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def _all_to_all(tree: Any, shape: tuple[int, ...]) -> Any:
    """What the devices sent this one; of ``shape[0]`` destinations each got ``shape[1]`` elements, in this order.

    Leaves of one dtype travel together: a row of small elements costs what its messages cost, not their bytes.
    """
    leaves, structure = jax.tree.flatten(tree)
    came: list[Any] = [None] * len(leaves)
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        mine = [k for k, leaf in enumerate(leaves) if leaf.dtype == dtype]
        flat = jnp.concatenate([leaves[k].reshape(leaves[k].shape[0], -1) for k in mine], axis=1)
        flat = lax.all_to_all(flat.reshape(*shape, -1), AXIS, 0, 0).reshape(flat.shape)
        cuts = np.cumsum([int(np.prod(leaves[k].shape[1:])) for k in mine])[:-1]
        for k, part in zip(mine, jnp.split(flat, cuts, axis=1), strict=True):
            came[k] = part.reshape(leaves[k].shape)
    return jax.tree.unflatten(structure, came)
