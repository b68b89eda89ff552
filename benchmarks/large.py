"""Large runs: events that are not kept, workers shared out over devices, constants of large graphs.

    python benchmarks/large.py stream 1e5 1e7        peak memory against the number of events: Poisson clocks
    python benchmarks/large.py rendezvous 1e5 1e7    the same on a cluster
    python benchmarks/large.py devices 1 4           events per second on so many forced devices of this CPU
    python benchmarks/large.py constants ring grid   seconds for chi_1 and chi_2 [--n 100000]

Each figure is taken in a process of its own, whose peak memory is its alone. The numbers of docs/devices.md come from here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

WORKERS = 64
DEGREE = {"random_regular": {"degree": 4}}


def peak_mib() -> float:
    """The most memory this process has had, in MiB (Linux). ``ru_maxrss`` would begin with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def stream(events: str, n: int) -> dict:
    """Gossip with gradients on a ring of 64, d = 5, no trace kept."""
    return _streamed(float(events) / WORKERS / 1.5)


def rendezvous(events: str, n: int) -> dict:
    """The same with gradients of log-normal length whose messages take a fifth of their mean time."""
    from decentral.protocol import Rendezvous
    from decentral.timing import Cluster, Links
    from decentral.timing.compute import LogNormal

    cluster = Cluster(LogNormal(1.0, 0.5), Links(latency_s=0.2))
    return _streamed(float(events) / WORKERS / 3.5, protocol=Rendezvous(), cluster=cluster)


def _streamed(time_s: float, **arguments) -> dict:
    import decentral
    from decentral import problem, topology

    began = time.perf_counter()
    result = decentral.simulate(
        problem.quadratic(n=WORKERS, d=5, dtype="float32"),
        topology.named("ring", n=WORKERS),
        decentral.Gossip(optimizer={"kind": "sgd", "learning_rate": 0.01}),
        stop=time_s,
        record=decentral.Record(trace=False, count=100),
        **arguments,
    )
    wall_s = {stage: round(seconds, 1) for stage, seconds in result.wall_s.items()}
    seconds = round(time.perf_counter() - began, 1)
    return {"events": result.constants["events"], "peak_mib": round(peak_mib()), "seconds": seconds} | wall_s


def devices(count: str, n: int) -> dict:
    """A2CiD2 on a ring of 4,096, quadratic, d = 20."""
    import decentral
    from decentral import problem, topology

    result = decentral.simulate(
        problem.quadratic(n=4096, d=20, dtype="float32", noise=0.1),
        topology.named("ring", n=4096),
        decentral.A2CiD2(optimizer={"kind": "sgd", "learning_rate": 0.01}),
        stop=100.0,
        record=decentral.Record(count=1, evaluate=False),
        devices=int(count),
    )
    events = result.constants["events"]
    return {"devices": int(count), "events": events, "events_per_s": round(events / result.wall_s["run"])}


def constants(kind: str, n: int) -> dict:
    """chi_1 and chi_2 of a named graph."""
    from decentral.topology import named

    took, began = {}, time.perf_counter()
    graph = named(kind, n=n, **DEGREE.get(kind, {}))
    took["build_s"] = time.perf_counter() - began
    for name in ("chi_1", "chi_2"):
        began = time.perf_counter()
        took[name] = getattr(graph, name)
        took[f"{name}_s"] = time.perf_counter() - began
    numbers = {name: float(f"{value:.3g}") for name, value in took.items()}
    return {"graph": kind, "n": n, "edges": len(graph.edges)} | numbers | {"peak_mib": round(peak_mib())}


MEASURED = {"stream": stream, "rendezvous": rendezvous, "devices": devices, "constants": constants}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=MEASURED)
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--n", type=int, default=100_000, help="workers of `constants`")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(MEASURED[options.what](options.cases[0], options.n)))
        return
    for case in options.cases:
        forced = f"--xla_force_host_platform_device_count={case}" if options.what == "devices" else ""
        flags = f"{os.environ.get('XLA_FLAGS', '')} {forced}".strip()
        command = [sys.executable, __file__, options.what, case, "--n", str(options.n), "--here"]
        subprocess.run(command, check=True, env={**os.environ, "XLA_FLAGS": flags})


if __name__ == "__main__":
    main()
