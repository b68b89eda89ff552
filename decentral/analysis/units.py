"""What the optical units of a topology did in a run: how busy they were, how long requests waited, what it took."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from decentral.analysis.timeline import served
from decentral.engine.trace import Trace
from decentral.errors import InvalidInput
from decentral.protocol.base import Network
from decentral.protocol.service import Service, turn_of
from decentral.topology import DirectedTopology, Topology


@dataclasses.dataclass(frozen=True)
class UnitAccount:
    """One optical unit in one replica of a run. A model of a unit: none was measured by us.

    Attributes:
        name: of the unit.
        hardware: its device, with the generation.
        task: size, batch, mode and kind of numbers of a request.
        workers: that it serves.
        requests: that came to it until the horizon.
        served: requests whose frames it has all taken by then; of workers that crashed meanwhile too.
        frames: of those.
        busy_s: seconds in which it took frames, those of a request under way at the horizon too.
        utilisation: share of the time until the horizon.
        wait_mean_s: seconds a request waited for those before it, of the requests whose turn came; None where there is none.
        wait_max_s: the longest.
        bytes_in: of the requests.
        bytes_out: of the replies.
        frames_j: joules of ``busy_s``: of the head unit alone, without its host.
        on_j: joules if it is switched on until the horizon, likewise.
        frames_per_request: of light.
        serve_s: seconds of a request's frames.
    """

    name: str
    hardware: str
    task: str
    workers: int
    requests: int
    served: int
    frames: int
    busy_s: float
    utilisation: float
    wait_mean_s: float | None
    wait_max_s: float | None
    bytes_in: int
    bytes_out: int
    frames_j: float
    on_j: float
    frames_per_request: int
    serve_s: float

    @property
    def words(self) -> str:
        """A line for people, which says what its numbers depend on."""
        wait = (
            "no request"
            if self.wait_mean_s is None
            else f"requests waited {self.wait_mean_s:.3g} s on average"
        )
        return (
            f"{self.name} ({self.hardware}, simulated; {self.task}): {self.served:,} of {self.requests:,} requests of "
            f"{self.workers} workers served, {self.frames:,} frames, busy {100 * self.utilisation:.3g} % of the time, {wait}, "
            f"{self.frames_j:.3g} J of frames, {self.on_j:.3g} J switched on (head unit without its host)"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data that JSON can hold."""
        return dataclasses.asdict(self)


def unit_accounts(
    trace: Trace, topology: Topology | DirectedTopology, service: Service | None
) -> tuple[UnitAccount, ...]:
    """What each unit of a topology did in a trace of one replica; nothing where nobody asks one.

    Args:
        trace: with one replica; ``trace.replica(index)`` of another.
        topology: whose units they are.
        service: what gradients ask of them.

    Raises:
        InvalidInput: several replicas; the trace names a unit that the topology does not have.
    """
    if service is None or service.task is None:
        return ()
    done = served(trace)
    units = topology.units
    if done.worker.size and int(done.worker.max()) >= len(units):
        got = f"unit {int(done.worker.max())} in the trace"
        raise InvalidInput(
            "topology.units", got, f"a topology with as many; {topology.name} has {len(units)}"
        )
    horizon_s = trace.horizon_s
    accounts = []
    for number, unit in enumerate(units):
        mine = np.flatnonzero(done.worker == number)
        began = mine[done.start_s[mine] < np.inf]
        whole = int((done.end_s[began] <= horizon_s).sum())
        busy_s = float(
            (np.minimum(done.end_s[began], horizon_s) - np.minimum(done.start_s[began], horizon_s)).sum()
        )
        began = began[done.start_s[began] <= horizon_s]
        waits = done.start_s[began] - done.asked_s[began]
        turn, watts = turn_of(service.task, unit), unit.hardware.power_w
        accounts.append(
            UnitAccount(
                name=unit.name,
                hardware=unit.device,
                task=service.task.words(unit.hardware),
                workers=len(unit.serves),
                requests=mine.size,
                served=whole,
                frames=whole * turn.frames,
                busy_s=busy_s,
                utilisation=busy_s / horizon_s if horizon_s else 0.0,
                wait_mean_s=float(waits.mean()) if waits.size else None,
                wait_max_s=float(waits.max()) if waits.size else None,
                bytes_in=mine.size * turn.request_bytes,
                bytes_out=whole * turn.reply_bytes,
                frames_j=watts * busy_s,
                on_j=watts * horizon_s,
                frames_per_request=turn.frames,
                serve_s=turn.serve_s,
            )
        )
    return tuple(accounts)


def accounts_of(trace: Trace, networks: Sequence[Network | None]) -> tuple[tuple[UnitAccount, ...], ...]:
    """:func:`unit_accounts` of every replica, each with its network; nothing where none of them asks a unit."""
    if not any(network is not None and network.demand.service for network in networks):
        return ()
    return tuple(
        unit_accounts(trace.replica(index), network.topology, network.demand.service)
        for index, network in enumerate(networks)
        if network is not None
    )
