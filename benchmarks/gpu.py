"""The row executor on one device, from 64 to 16,384 workers: how fast, and where the time goes.

    python benchmarks/gpu.py [--smoke] [--only NAME] [--n N ...] [--write] [--profile DIR]

Prints a table in Markdown with the hardware and the date. ``--write`` keeps it in docs/gpu.json, under the platform it was
measured on, and writes docs/gpu.md from all that is kept. ``--profile`` leaves a trace for Perfetto. Choose the device with
JAX_PLATFORMS=cpu or cuda.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for _library in ("OPENBLAS", "OMP", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

import numpy as np  # noqa: E402  (reads the thread counts above)

ROOT = Path(__file__).resolve().parents[1]
WORKERS = (64, 256, 1024, 4096, 16_384)
SMOKE_WORKERS = (8, 16)
RATE = 0.1
PARAMETERS = 10**6
ROUNDS = 2
"""A run is made so often; the fastest counts."""


def logistic(n: int, smoke: bool) -> tuple:
    """Logistic regression, d = 50, 100 samples per worker, A2CiD2: small states, small gradients."""
    import decentral
    from decentral.problem import logistic_from_arrays

    random = np.random.default_rng(n)
    features = random.standard_normal((n, 100, 50), dtype=np.float32)
    labels = np.sign(features @ random.standard_normal(50, dtype=np.float32))
    problem = logistic_from_arrays(features, labels, l2=1e-3, dtype="float32")
    algorithm = decentral.A2CiD2(optimizer={"kind": "sgd", "learning_rate": RATE})
    return problem, algorithm, decentral.Poisson(), (1e3 if smoke else 1e5) / (1.5 * n)


def mlp(n: int, smoke: bool) -> tuple:
    """MLP 64-32-10 on digits all workers share, batches of 8, A2CiD2 with momentum 0.9: many small products."""
    import decentral

    problem = decentral.problem.mlp(n, partition="shared", batch_size=8, sampling="shuffle")
    algorithm = decentral.A2CiD2(optimizer={"kind": "sgd", "learning_rate": RATE, "momentum": 0.9})
    return problem, algorithm, decentral.Poisson(), (3e2 if smoke else 3e4) / (1.5 * n)


def gossip(n: int, smoke: bool) -> tuple:
    """Gossip alone, 10^6 parameters per worker: nothing but memory."""
    import decentral
    from decentral.problem import Quadratic

    d = 1000 if smoke else PARAMETERS
    problem = Quadratic.of(np.ones(n), np.zeros((n, d)), dtype="float32", initial="per_worker")
    algorithm = decentral.Gossip(optimizer={"kind": "sgd", "learning_rate": RATE})
    exchanges = max(n, 100 if smoke else 2000)
    return problem, algorithm, decentral.Poisson(gradients_per_s=0.0), 2.0 * exchanges / n


WORKLOADS: dict[str, Callable[[int, bool], tuple]] = {"logistic": logistic, "mlp": mlp, "gossip": gossip}


def needed_bytes(name: str, n: int, smoke: bool) -> float:
    """Of the large workload: state, its copy at the start, targets here and on the device."""
    return 4.0 * n * PARAMETERS * 4 if name == "gossip" and not smoke else 0.0


def free_bytes() -> float:
    """Of the device, or of the machine where the device has no memory of its own."""
    import jax

    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return 1024.0 * int(found.group(1)) if found else np.inf


def measure(name: str, n: int, *, smoke: bool, profile: str | None = None) -> dict[str, Any]:
    """One line of the table, or what memory it would need."""
    import jax

    import decentral
    from decentral import Network, Time, topology
    from decentral.engine.execute import executor

    if (needed := needed_bytes(name, n, smoke)) > 0.8 * free_bytes():
        return {"workload": name, "n": n, "needs_gib": needed / 2**30}
    problem, algorithm, protocol, time_s = WORKLOADS[name](n, smoke)
    workers = topology.named("ring", n=n)
    network = protocol.network(workers, algorithm.demand(Network(workers)))
    trace = protocol.timeline(network, Time(time_s), 0)
    record = decentral.Record(events=(0, len(trace)), evaluate=False)

    def simulation():
        return decentral.Simulation(trace, problem, algorithm, network=network, record=record)

    best: dict[str, float] = {}
    rounds = 1 if smoke else ROUNDS
    for attempt in range(rounds):
        run = simulation()
        plan, moved = run.plan, _moved_bytes(run)
        if attempt == 0:
            compiled = _memory(executor(run.program), run)
        if profile and attempt == rounds - 1:
            with jax.profiler.trace(profile):
                result = run.run()
        else:
            result = run.run()
        best["compile_s"] = max(best.get("compile_s", 0.0), result.wall_s["compile"])
        best["run_s"] = min(best.get("run_s", np.inf), result.wall_s["run"])
        distance = result.metrics["consensus_distance"][0]
        del run
    if not np.isfinite(distance).all() or (name == "gossip" and not distance[1] < 0.9 * distance[0]):
        raise SystemExit(f"{name}, n={n}: consensus distance {distance}: this is no gossip")
    return {
        "workload": name, "n": n, "events": len(trace), "events_per_row": len(trace) / plan.n_rows,
        "fill": plan.fill(), "us_per_row": 1e6 * best["run_s"] / plan.n_rows, "events_per_s": len(trace) / best["run_s"],
        "gb_per_s": moved / best["run_s"] / 1e9, "compile_s": best["compile_s"], **compiled,
    }  # fmt: skip


def _moved_bytes(run) -> float:
    """What the events read and write of the workers' states, and read of their data."""
    size, data, total = run.element_bytes, max(problem.gradient_bytes for problem in run.problems), 0.0
    for op in run.trace.ops:
        each = sum(size.get(o.bank, 0) * (o.reads + o.writes) for o in op.operands)
        total += run.trace.counts[op.name] * (each + (data if op.name == "gradient" else 0))
    return total


def _memory(compiled, run) -> dict[str, float]:
    """What the compiled rows keep beside the banks, which they overwrite. A bank's size more: XLA copies it in every row."""
    import jax

    bank = sum(leaf.nbytes for leaf in jax.tree.leaves(run.banks))
    rows = run.plan.rows(0, 0, run.capacity, run.dtype)
    analysis = compiled.run_rows.lower(run.banks, rows, 0, 0, run.context).compile().memory_analysis()
    return {"bank_mib": bank / 2**20, "temporary_mib": analysis.temp_size_in_bytes / 2**20}


def hardware() -> dict[str, Any]:
    """What it was measured on, and when."""
    import jax

    import decentral

    device = jax.devices()[0]
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    kind = (
        device.device_kind
        if device.platform != "cpu"
        else (found.group(1) if found else platform.processor())
    )
    return {
        "platform": device.platform, "device": kind,
        "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0],
        "jax": jax.__version__, "decentral": decentral.__version__, "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }  # fmt: skip


COLUMNS = (
    ("workload", "{}"), ("n", "{:,}"), ("events", "{:,}"), ("events_per_row", "{:,.1f}"), ("us_per_row", "{:,.1f}"),
    ("events_per_s", "{:,.0f}"), ("gb_per_s", "{:,.2f}"), ("compile_s", "{:.1f}"), ("bank_mib", "{:,.1f}"),
    ("temporary_mib", "{:,.1f}"),
)  # fmt: skip
HEADS = ("workload", "workers", "events", "events per row", "µs per row", "events/s", "GB/s", "compile (s)", "state (MiB)",
         "temporary (MiB)")  # fmt: skip


def table(lines: list[dict[str, Any]]) -> str:
    """In Markdown."""
    rows = ["| " + " | ".join(HEADS) + " |", "|---|" + "---:|" * (len(HEADS) - 1)]
    for line in lines:
        if "needs_gib" in line:
            cells = [line["workload"], f"{line['n']:,}", f"does not fit: {line['needs_gib']:,.0f} GiB"]
            cells += [""] * (len(HEADS) - len(cells))
        else:
            cells = [form.format(line[key]) for key, form in COLUMNS]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def page(kept: dict[str, dict[str, Any]]) -> str:
    """docs/gpu.md: every platform that was measured, and a plain word where none but the CPU was."""
    gpus = [name for name in kept if name != "cpu"]
    parts = [PAGE_TOP]
    if not gpus:
        parts.append(NEVER)
    for name in [*gpus, *(["cpu"] if "cpu" in kept else [])]:
        about = kept[name]["about"]
        parts.append(
            f"## {'CPU' if name == 'cpu' else name.upper()}: {about['device']}\n\n"
            f"Measured {about['date']}; {about['cores']} cores seen, load {about['load']:.1f} when it began; "
            f"jax {about['jax']}, decentral {about['decentral']}, Python {about['python']}. "
            f"The faster of {ROUNDS} runs.\n\n" + table(kept[name]["lines"])
        )
    return "\n".join([*parts, PAGE_END])


PAGE_TOP = """# One device: how fast the row executor is

`python benchmarks/gpu.py --write` measures it and writes this page. Three workloads on a ring of 64 to 16,384 workers, float32:

* **logistic**: logistic regression, d = 50, 100 samples per worker, A2CiD2. Small states, small gradients.
* **mlp**: an MLP 64-32-10 on digits that all workers share, batches of 8, A2CiD2 with momentum 0.9. Many small products.
* **gossip**: exchanges alone, 10⁶ parameters per worker. Nothing but memory.

A *row* holds events that do not touch each other and is computed at once; it costs what launching its operations costs,
until it is wide enough for memory or arithmetic to count. *GB/s* counts what the events read of states and data and write
of states, wherever it came from. *Temporary* is what the compiled rows keep beside the state.
"""
NEVER = """**No GPU has been measured: none was at hand when this was written.** The code path is JAX's own and is tested on the
CPU alone; nothing below says how fast a GPU would be. With one at hand, `JAX_PLATFORMS=cuda python benchmarks/gpu.py --write`
adds its table.
"""
PAGE_END = """## What to look at first on a GPU

Read from the program, not measured:

* **Rows are launches.** A row is some tens of kernels, and a launch takes microseconds. So the bound that keeps a row's bytes
  in a CPU's cache (2 MiB) is not used there: a row may hold 256 MiB, about what 2 TB/s move while its kernels are launched.
  Few workers, or a graph where few events are independent (a star), will be slower than on a CPU.
* **The loop's end is dynamic**, so a chunk that is not full costs nothing. XLA may then ask the device after every row
  whether to go on. If the profile shows that, a loop over a fixed number of rows is the thing to try.
* **Writes are scatters with `unique_indices`**: they need no atomic operations.
* **Products in float32 may be computed in TF32.** `JAX_DEFAULT_MATMUL_PRECISION=float32` makes them as exact as on the CPU.
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="the same in seconds: few workers, short runs")
    parser.add_argument("--only", choices=WORKLOADS, help="one workload")
    parser.add_argument("--n", type=int, nargs="+", help="numbers of workers")
    parser.add_argument("--write", action="store_true", help="keep it in docs/gpu.json and write docs/gpu.md")
    parser.add_argument(
        "--profile", metavar="DIR", help="write what jax.profiler says of the last run of each line"
    )
    parser.add_argument("--docs", default=str(ROOT / "docs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    about = hardware()
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    lines = []
    for name in [options.only] if options.only else WORKLOADS:
        for n in options.n or (SMOKE_WORKERS if options.smoke else WORKERS):
            began = time.perf_counter()
            lines.append(measure(name, n, smoke=options.smoke, profile=options.profile))
            print(f"{name} {n:,}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    print("\n" + table(lines))
    if options.write:
        docs = Path(options.docs)
        data = docs / "gpu.json"
        kept = json.loads(data.read_text()) if data.exists() else {}
        kept[about["platform"]] = {"about": about, "lines": lines}
        for path, text in ((data, json.dumps(kept, indent=1) + "\n"), (docs / "gpu.md", page(kept))):
            with tempfile.NamedTemporaryFile("w", dir=docs, delete=False) as file:
                file.write(text)
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
