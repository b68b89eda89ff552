"""What a unit of ``flow``'s time is for each worker. NumPy and numba, no JAX.

The theory's unit is the mean time between two gradients. ``"global"`` takes it from the network, one number for all.
``"own_ema"`` does what the released A2CiD2 code does: each worker measures its own, a running mean with coefficient 1/2 of
the times between its gradients; before its first two it has the network's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from decentral.engine.trace import Trace
from decentral.errors import InvalidInput

TIME_UNITS = ("global", "own_ema")
EMA = 0.5


@dataclass(frozen=True, eq=False)
class Units:
    """Seconds in a unit of time.

    Attributes:
        of_event: float64 ``(events, arity)``, or one number for all: for each operand.
        of_group: ``(group events, workers)``, or one number: for each worker of a group event, in the order of the trace.
        of_barrier: ``(barriers, total_workers)``, or one number.
    """

    of_event: np.ndarray | float
    of_group: np.ndarray | float
    of_barrier: np.ndarray | float

    def event(self, number: int, arity: int):
        """Of the operands of one event."""
        return self.of_event[number, :arity] if isinstance(self.of_event, np.ndarray) else self.of_event

    def group(self, number: int):
        """Of the workers of one group event."""
        return self.of_group[number] if isinstance(self.of_group, np.ndarray) else self.of_group

    def barrier(self, number: int):
        """Of all workers at a record."""
        return self.of_barrier[number] if isinstance(self.of_barrier, np.ndarray) else self.of_barrier


class Measured:
    """What workers have measured of their own time so far, from one window of a trace to the next.

    Args:
        total_workers: of all replicas.
        unit_s: the network's unit, which they have before.
    """

    def __init__(self, total_workers: int, unit_s: float) -> None:
        self.units = np.full(total_workers, float(unit_s))
        self.last_s = np.full(total_workers, -1.0)
        self.any = np.zeros(total_workers, np.bool_)


def units_of(
    kind: str,
    trace: Trace,
    barriers: Sequence[int] | np.ndarray,
    unit_s: float,
    measured: Measured | None = None,
) -> Units:
    """The units of a run.

    Args:
        kind: ``"global"`` or ``"own_ema"``.
        trace: the events.
        barriers: events done before each record.
        unit_s: the network's unit.
        measured: in the window before, brought up to date.

    Raises:
        InvalidInput: an algorithm of one copy has no own time; an unknown kind.
    """
    if kind == "global":
        return Units(unit_s, unit_s, unit_s)
    if kind != "own_ema":
        raise InvalidInput("algorithm.time_unit", kind, f"one of {', '.join(TIME_UNITS)}")
    worker = np.zeros((len(trace.ops), trace.operands.shape[1]), np.bool_)
    for code, op in enumerate(trace.ops):
        if any(operand.bank == "server" for operand in op.operands):
            raise InvalidInput("algorithm.time_unit", kind, "'global' where one copy is held at a server")
        for position, operand in enumerate(op.operands):
            worker[code, position] = operand.bank == "worker"
    gives = np.array([op.gradients > 0 for op in trace.ops], np.bool_)
    is_group = np.array([op.is_group for op in trace.ops], np.bool_)
    columns = trace.time_s, trace.op, trace.operands, worker, gives, is_group, np.asarray(barriers, np.int64)
    own = measured or Measured(trace.total_workers, unit_s)
    return Units(*_own(*columns, trace.n_workers, float(unit_s), own.units, own.last_s, own.any))


@njit(cache=True)
def _own(time_s, op, operands, worker, gives, is_group, barriers, n_workers, unit_s, units, last, measured):
    groups = 0
    for event in range(op.size):
        groups += is_group[op[event]]
    of_event = np.full(operands.shape, unit_s)
    of_group = np.full((groups, n_workers), unit_s)
    of_barrier = np.full((barriers.size, units.size), unit_s)
    group, barrier = 0, 0
    for event in range(op.size + 1):
        while barrier < barriers.size and barriers[barrier] == event:
            of_barrier[barrier] = units
            barrier += 1
        if event == op.size:
            break
        code = op[event]
        if is_group[code]:
            first = operands[event, 0]
            of_group[group] = units[first : first + n_workers]
            group += 1
            continue
        for position in range(operands.shape[1]):
            if worker[code, position]:
                of_event[event, position] = units[operands[event, position]]
        if gives[code]:
            who = operands[event, 0]
            if last[who] >= 0.0:
                took = time_s[event] - last[who]
                units[who] = EMA * units[who] + (1 - EMA) * took if measured[who] else took
                measured[who] = True
            last[who] = time_s[event]
    return of_event, of_group, of_barrier
