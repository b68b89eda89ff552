"""A cluster: how fast its workers compute, how its links carry messages, and what goes wrong."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from decentral.errors import InvalidInput, check_integer, check_number, suggest
from decentral.timing.compute import (
    COMPUTE,
    LONGEST_NS,
    ComputeModel,
    Constant,
    durations_ns,
    standard_normal,
)
from decentral.timing.faults import Faults
from decentral.timing.links import LINKS, LinkModel, Links, NodeLinks, TableLinks
from decentral.timing.tapes import Purpose, uniform_runs
from decentral.topology.networks import RealNetwork, load_network

NANOSECOND_S = 1e-9


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The machines that a simulation runs on. By default: gradients of one second, instant messages, no faults.

    Args:
        compute: seconds of a gradient on a worker of speed 1.
        links: what a message takes.
        faults: what goes wrong.
        speeds: relative speeds, cycled over the workers.
        slow_workers: so many workers, chosen by the seed and the same for the whole run, are slower still.
        slow_factor: by this factor.
        speed_sigma: standard deviation of the logarithm of a factor of mean 1 on each worker's speed, drawn once.
    """

    compute: ComputeModel = Constant(1.0)  # noqa: RUF009  frozen
    links: LinkModel = Links()  # noqa: RUF009  frozen
    faults: Faults = Faults()  # noqa: RUF009  frozen
    speeds: tuple[float, ...] = (1.0,)
    slow_workers: int = 0
    slow_factor: float = 1.0
    speed_sigma: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.speeds, tuple) or not self.speeds:
            raise InvalidInput("cluster.speeds", self.speeds, "a list of at least one speed")
        for speed in self.speeds:
            check_number("cluster.speeds", speed, 0, math.inf, above=True)
        if not NANOSECOND_S <= self.compute.mean_s <= LONGEST_NS / 1e9:
            allowed = f"a mean from {NANOSECOND_S:g} to {LONGEST_NS / 1e9:.2g} seconds"
            raise InvalidInput("cluster.compute", f"a mean of {self.compute.mean_s:.3g} s", allowed)
        check_integer("cluster.slow_workers", self.slow_workers, 0)
        check_number("cluster.slow_factor", self.slow_factor, 1, math.inf)
        check_number("cluster.speed_sigma", self.speed_sigma, 0, math.inf)

    @property
    def unequal(self) -> bool:
        """Workers take gradients at different rates for good."""
        return (
            len(set(self.speeds)) > 1
            or (self.slow_workers > 0 and self.slow_factor > 1)
            or self.speed_sigma > 0
        )

    def faster(self, factor: float) -> Cluster:
        """The same with every gradient ``factor`` times as fast."""
        return dataclasses.replace(self, speeds=tuple(speed * factor for speed in self.speeds))

    def speed_of(self, n: int, seed: int) -> np.ndarray:
        """(n,) float64 relative speeds: a gradient takes draw / speed seconds.

        Worker i's log-normal factor is its draw 0 of ``Purpose.SPEED``; the slow workers are those whose draw 1 is least.
        """
        check_integer("cluster.slow_workers", self.slow_workers, 0, n)
        speeds = np.resize(np.array(self.speeds, np.float64), n)
        workers, two = np.arange(n), np.full(n, 2)
        drawn = uniform_runs(seed, int(Purpose.SPEED), workers, workers, 0 * workers, two).reshape(n, 2)
        speeds *= np.exp(self.speed_sigma * standard_normal(drawn[:, 0]) - self.speed_sigma**2 / 2)
        speeds[np.argsort(drawn[:, 1], kind="stable")[: self.slow_workers]] /= self.slow_factor
        return speeds

    def durations_ns(self, n: int, seed: int, horizon_s: float) -> tuple[np.ndarray, np.ndarray]:
        """The gradients of n workers; see :func:`decentral.timing.durations_ns`."""
        return durations_ns(self.compute, self.speed_of(n, seed), seed, horizon_s)

    def gradient_rate(self, n: int) -> float:
        """Expected gradients per worker and second, averaged over workers: mean speed / mean seconds.

        An expectation over seeds, of workers that compute without a break.
        """
        check_integer("cluster.slow_workers", self.slow_workers, 0, n)
        slow = self.slow_workers / n
        mean_speed = float(np.resize(np.array(self.speeds, np.float64), n).mean())
        return mean_speed * (1 - slow + slow / self.slow_factor) / self.compute.mean_s


def on_network(
    name: str,
    compute: ComputeModel | None = None,
    flops_per_gradient: float | None = None,
    faults: Faults = Faults(),  # noqa: B008  frozen
    speeds: tuple[float, ...] = (1.0,),
    slow_workers: int = 0,
    slow_factor: float = 1.0,
    speed_sigma: float = 0.0,
) -> Cluster:
    """The links of a named network (``topologies/*.toml``, ``topohub:GROUP/NAME``), and its hardware.

    Args:
        name: see :func:`decentral.topology.load_network`.
        compute: seconds of a gradient; by default what follows.
        flops_per_gradient: floating-point operations of a gradient, which the network's devices do at their peak rate
            times the efficiency that its file says.
        faults: what goes wrong; with the rest as for :class:`Cluster`.
        speeds: relative speeds.
        slow_workers: how many are slower.
        slow_factor: by how much.
        speed_sigma: spread of the speeds.

    Raises:
        InvalidInput: no such network; neither or both of ``compute`` and ``flops_per_gradient``; no hardware.
    """
    network = load_network(name)
    if (compute is None) == (flops_per_gradient is None):
        got = "neither" if compute is None else "both"
        raise InvalidInput("cluster.compute", got, "one of compute and flops_per_gradient")
    if compute is None:
        check_number("cluster.flops_per_gradient", flops_per_gradient, 0, math.inf, above=True)
        hardware = network.hardware
        if "peak_flops_per_s" not in hardware:
            raise InvalidInput(
                "cluster.flops_per_gradient", flops_per_gradient, f"compute: {name} says no hardware"
            )
        compute = Constant(
            flops_per_gradient / (hardware["peak_flops_per_s"] * hardware.get("efficiency", 1.0))
        )
    return Cluster(compute, _links_of(network), faults, speeds, slow_workers, slow_factor, speed_sigma)


def _links_of(network: RealNetwork) -> LinkModel:
    table = {
        key: _tuples(value.tolist() if isinstance(value, np.ndarray) else value)
        for key, value in network.links.items()
    }
    kind = table.pop("kind")
    if kind == "nodes":  # a node's cards are shared by its workers
        return NodeLinks(**table, nic_bytes_per_s=table["inter_bytes_per_s"])
    return TableLinks(**table) if kind == "sites" else Links(**table)


CLUSTERS: dict[str, Callable[..., Cluster]] = {"uniform": Cluster, "network": on_network}
"""The kinds of ``cluster`` in a spec."""


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _build(name: str, table: Any, kinds: Mapping[str, Callable], default: str | None) -> Any:
    """What a table says: ``kind`` and the arguments of that kind."""
    if not isinstance(table, Mapping):
        raise InvalidInput(name, table, "a table with kind and its arguments")
    kind = table.get("kind", default)
    if not isinstance(kind, str) or kind not in kinds:
        raise InvalidInput(f"{name}.kind", kind, "a known kind", suggest(str(kind), kinds))
    arguments = {key: value for key, value in table.items() if key != "kind"}
    parameters = inspect.signature(kinds[kind]).parameters
    for key in arguments:
        if key not in parameters:
            raise InvalidInput(
                f"{name}.{key}", arguments[key], f"a key of {name} {kind!r}", suggest(key, parameters)
            )
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in arguments:
            raise InvalidInput(f"{name}.{key}", None, f"a value: {name} {kind!r} needs it")
    return kinds[kind](**{key: _tuples(value) for key, value in arguments.items()})


def cluster_from(table: Mapping[str, Any]) -> Cluster:
    """The cluster that a table of a spec says.

    Args:
        table: ``{"kind": "uniform", "compute": {"kind": ...}, "links": {"kind": ...}, "faults": {...}, "speeds": [...]}``
            and the other arguments of :class:`Cluster`; every key may be left out. Lists stand for tuples.

    Raises:
        InvalidInput: an unknown key or kind, with the nearest name; a missing or unacceptable argument.
    """
    rooms = {
        "compute": (COMPUTE, None),
        "links": (LINKS, "uniform"),
        "faults": ({"uniform": Faults}, "uniform"),
    }
    if not isinstance(table, Mapping):
        raise InvalidInput("cluster", table, "a table")
    built = {
        key: _build(f"cluster.{key}", value, *rooms[key]) if key in rooms else value
        for key, value in table.items()
    }
    return _build("cluster", built, CLUSTERS, "uniform")
