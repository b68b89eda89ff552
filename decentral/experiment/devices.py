"""Which devices a run is spread over, and the processes they belong to."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from decentral.errors import InvalidInput, InvalidInputs, check_integer

PROCESS = "JAX_PROCESS_ID"
"""The environment variable that numbers a process, where neither the caller nor the cluster's scheduler does."""
FORCE = "On a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=N makes N of it."


@dataclass(frozen=True)
class Devices:
    """The devices that the workers of one run are shared out over, in equal blocks.

    Metrics are those of one device to rounding: sums are added in another order. With several processes every one of them runs
    the same script or command; the first writes the run folder.

    Args:
        count: of all processes together, as many of each; None: all that JAX has.
        processes: how many run this, each with devices of its own.
        coordinator: ``"host:port"`` of the first process. None: of the environment variable ``JAX_COORDINATOR_ADDRESS``, or as
            JAX finds it under SLURM, Open MPI, Kubernetes or on a TPU pod.
        process: the number of this one, from 0. None: of the environment variable ``JAX_PROCESS_ID``, or found likewise.

    Raises:
        InvalidInput: numbers that are none, or devices that are not shared out evenly over the processes.

    Example:
        >>> simulate(problem.quadratic(n=4096, d=100), topology.named("ring", n=4096), A2CiD2(), stop=10.0, devices=Devices(4))
    """

    count: int | None = None
    processes: int = 1
    coordinator: str | None = None
    process: int | None = None

    def __post_init__(self) -> None:
        check_integer("devices.processes", self.processes, 1)
        if self.count is not None:
            check_integer("devices.count", self.count, 1)
            if self.count % self.processes:
                allowed = f"a multiple of the {self.processes} processes"
                raise InvalidInput(
                    "devices.count", self.count, allowed, "It counts the devices of all of them."
                )
        if self.process is not None:
            check_integer("devices.process", self.process, 0, self.processes - 1)
        if self.coordinator is not None:
            host, _, port = str(self.coordinator).rpartition(":")
            if not isinstance(self.coordinator, str) or not host or not port.isdigit():
                raise InvalidInput("devices.coordinator", self.coordinator, "a string 'host:port'")

    def connect(self) -> None:
        """Meet the other processes, if there are any; to be called before JAX is used for anything else.

        :func:`decentral.simulate` and ``decentral run`` do so; call it yourself where something is computed before that.

        Raises:
            InvalidInput: they cannot be met, or are not as many.
        """
        if self.processes == 1:
            return
        if not jax.distributed.is_initialized():
            self._initialize()
        if jax.process_count() != self.processes:
            raise InvalidInput("devices.processes", self.processes, f"the {jax.process_count()} there are")

    def _initialize(self) -> None:
        number = self.process
        if number is None and PROCESS in os.environ:
            try:
                number = int(os.environ[PROCESS])
            except ValueError:
                raise InvalidInput(
                    PROCESS, os.environ[PROCESS], "the number of this process, from 0"
                ) from None
            check_integer(PROCESS, number, 0, self.processes - 1)
        try:
            jax.distributed.initialize(self.coordinator, self.processes, number)
        except RuntimeError as error:
            if "before any JAX" in str(error):
                advice = "Call Devices(...).connect() at the beginning of the program."
                raise InvalidInput(
                    "devices.processes", self.processes, "1, once JAX computes", advice
                ) from None
            words = f"processes that can be met ({str(error).splitlines()[0]})"
            raise InvalidInput("devices.coordinator", self.coordinator, words) from None
        except ValueError as error:
            allowed = f"with its coordinator 'host:port' and the environment variable {PROCESS}"
            advice = f"No scheduler says them here ({str(error).splitlines()[0]})"
            raise InvalidInput("devices.processes", self.processes, allowed, advice) from None

    def chosen(self) -> list[Any]:
        """The devices, those of one process next to each other.

        Raises:
            InvalidInput: there are not as many.
        """
        self.connect()
        of_process: list[list[Any]] = [[] for _ in range(self.processes)]
        for device in jax.devices():
            of_process[device.process_index % self.processes].append(device)
        there = min(map(len, of_process))
        each = there if self.count is None else self.count // self.processes
        if each > there:
            allowed = f"at most {there * self.processes}, which JAX has ({jax.default_backend()})"
            raise InvalidInput(
                "devices.count", self.count, allowed, FORCE if jax.default_backend() == "cpu" else ""
            )
        return [device for own in of_process for device in own[:each]]


def as_devices(value: Any) -> Devices | None:
    """A number of devices as :class:`Devices`.

    Raises:
        InvalidInput: it is neither.
    """
    if value is None or isinstance(value, Devices):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput("devices", value, "a number of devices, or decentral.Devices")
    return Devices(value)


def is_first() -> bool:
    """Whether this is the process that writes, or the only one."""
    return jax.process_index() == 0


def agreed(value: int) -> int:
    """The first process's number on all of them."""
    if jax.process_count() == 1:
        return value
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return int(broadcast_one_to_all(np.int32(value)))


def by_first(do: Callable[[], Any]) -> str:
    """What the first process alone does, in words on all of them; what it refuses is refused by all.

    Raises:
        InvalidInput: the first process's.
    """
    if jax.process_count() == 1:
        return str(do())
    from jax.experimental.multihost_utils import broadcast_one_to_all

    words, refused = "", None
    if is_first():
        try:
            words = str(do())
        except InvalidInput as error:
            words, refused = str(error), error
    failed, content = agreed(refused is not None), words.encode()
    length = agreed(len(content))
    content = np.frombuffer(content[:length].ljust(length, b"\0"), np.uint8)
    words = bytes(np.asarray(broadcast_one_to_all(content), np.uint8)).decode()
    if failed:
        raise refused or InvalidInputs("the first process", [words])
    return words


def blocks_of_data(row_of: np.ndarray, devices: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Which rows of the workers' data go to which device.

    Args:
        row_of: int ``(workers,)``: the row each worker has.
        devices: how many share the workers out in equal blocks.

    Returns:
        ``(rows, own, shared)``: the rows of all devices, one device's after the other's and as many each; the row of each worker
        among those of its device; whether all devices have the same, and ``rows`` is one device's.
    """
    needed = [np.unique(part) for part in np.split(row_of, devices)]
    own = np.concatenate(
        [np.searchsorted(rows, part) for rows, part in zip(needed, np.split(row_of, devices), strict=True)]
    )
    if all(np.array_equal(rows, needed[0]) for rows in needed):
        return needed[0], own, True
    longest = max(map(len, needed))
    return (
        np.concatenate([np.pad(rows, (0, longest - len(rows)), mode="edge") for rows in needed]),
        own,
        False,
    )


def on_host(problems: Sequence[Any]) -> list[Any]:
    """The same problems with their data in the host's memory, of which every device gets its part alone."""
    import copy

    found: dict[int, Any] = {}
    for problem in problems:
        if id(problem) in found:
            continue
        clone = problem
        if not all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(problem.shards)):
            clone = copy.copy(problem)
            vars(clone).pop("_compiled", None)  # functions that hold the problem they were made for
            # a copy: on a CPU an array made of another's memory would keep that
            object.__setattr__(clone, "shards", jax.tree.map(np.array, problem.shards))
        found[id(problem)] = clone
    return [found[id(problem)] for problem in problems]
