"""Will a run fit into memory? Estimated before anything large is built, because a process that the system kills says nothing."""

from __future__ import annotations

import os
from pathlib import Path

import jax

from decentral.algorithm import Algorithm
from decentral.engine.stream import window_events
from decentral.errors import InvalidInput
from decentral.problem import Problem
from decentral.protocol import Network, Protocol, Stop, Time

BYTES_PER_EVENT = 200
"""Trace and plan, of ops with up to four operands."""
BYTES_PER_WORKER = 700
"""A graph while it is built: networkx on a ring, measured."""


def check_size(
    network: Network, protocol: Protocol, stop: Stop, *, n: int, seeds: int, kept: bool = True
) -> None:
    """Refuse what is too large whatever the problem is, before anything is built.

    Args:
        network: clocks at the rates per worker of the run, on a graph of any size.
        protocol: what turns them into events.
        stop: when the run ends.
        n: workers of one seed.
        seeds: how many.
        kept: all events are there at once (else a window of them).

    Raises:
        InvalidInput: the machine has less memory.
    """
    events = events_at_once(expected_events(network, protocol, stop, n=n, seeds=seeds), n * seeds, kept)
    _require_memory(
        {
            f"a graph of {n:,} workers": BYTES_PER_WORKER * n,
            f"{events:.3g} events": BYTES_PER_EVENT * events,
        }
    )
    if n * seeds >= 2**31:
        raise InvalidInput("topology.n * seeds", n * seeds, "less than 2**31 workers", "Use fewer of them.")


def check_memory(
    problem: Problem,
    network: Network,
    protocol: Protocol,
    algorithm: Algorithm,
    stop: Stop,
    *,
    seeds: int,
    data_sets: int,
    kept: bool = True,
) -> float:
    """Refuse a run that needs more memory than there is, before its events are drawn and its state is made.

    Args:
        problem: the first seed's.
        network: the first seed's.
        protocol: what makes its events.
        algorithm: what runs on it.
        stop: when the run ends.
        seeds: how many.
        data_sets: how many different problems they have between them.
        kept: as for :func:`check_size`.

    Returns:
        The bytes it is expected to need.

    Raises:
        InvalidInput: the machine has less memory.
    """
    n = network.topology.n
    params = jax.eval_shape(problem.initial, jax.random.key(0))
    state = jax.eval_shape(algorithm.resolve(problem, network).init, params, jax.random.key(0))
    per_worker = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / problem.workers_per_model
    )
    data = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(problem.shards))
    events = events_at_once(expected_events(network, protocol, stop, n=n, seeds=seeds), n * seeds, kept)
    return _require_memory(
        {
            # Beside the state itself: room for a record, and for a checkpoint.
            f"the state of {n * seeds:,} workers": 3 * per_worker * n * seeds,
            # The problem's own arrays, and the run's.
            "data": 2 * data * data_sets,
            f"{events:.3g} events": BYTES_PER_EVENT * events,
        }
    )


def events_at_once(events: float, workers: int, kept: bool) -> float:
    """Events in memory of so many in all; ``workers`` of all seeds."""
    return events if kept else min(events, window_events(workers))


def expected_events(network: Network, protocol: Protocol, stop: Stop, *, n: int, seeds: int) -> float:
    """Events of all seeds, when ``n`` workers have the clocks that those of ``network`` have."""
    per_gradient = protocol.events_per_gradient(network)
    if isinstance(stop, Time):
        gradients = n * network.gradients_per_s * stop.time_s
        if not gradients:  # gossip alone
            return seeds * n * network.exchanges_per_s / 2 * stop.time_s
        return seeds * gradients * per_gradient
    return seeds * stop.gradients * per_gradient


def available_bytes() -> float:
    """Memory this process can still take: of the machine, and of the container or batch job it runs in."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        machine = 1024 * float(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):  # not Linux
        try:
            machine = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        except (AttributeError, OSError, ValueError):
            machine = float("inf")
    return min(machine, _control_group_bytes())


def _control_group_bytes() -> float:
    """What the limit of a Linux control group (Docker, Kubernetes, SLURM) leaves; pages of files do not count as taken."""
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return float("inf")
    left = float("inf")
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers == "":
            root, limit, taken = Path("/sys/fs/cgroup"), "memory.max", "anon"
        elif controllers == "memory":
            root, limit, taken = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "total_rss"
        else:
            continue
        for folder in {root / path.lstrip("/"), root}:  # inside a container its own group is the root
            try:
                most = float((folder / limit).read_text().replace("max", "inf"))
                fields = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                left = min(left, most - float(fields[taken]))
            except (OSError, KeyError, ValueError):
                continue
    return left


def _require_memory(parts: dict[str, float]) -> float:
    needed, available, gib = sum(parts.values()), available_bytes(), 2**30
    if needed > available:
        largest = sorted(parts.items(), key=lambda part: -part[1])
        words = ", ".join(f"{size / gib:,.1f} for {what}" for what, size in largest if size > needed / 100)
        raise InvalidInput(
            "memory",
            f"about {needed / gib:,.1f} GiB ({words})",
            f"the {available / gib:,.1f} GiB that are free",
            "Use fewer workers, seeds or events, or smaller parameters. (Poisson clocks on a fixed graph, rendezvous and mailbox "
            "need not keep their events: record.trace = false.)",
        )
    return needed
