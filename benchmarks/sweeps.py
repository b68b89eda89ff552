"""What a sweep costs beside its runs, and how fast a finished one is read.

    python benchmarks/sweeps.py [--quick]

Overhead: one run per process and task, as ``decentral run`` does it, against the same runs in a sweep. Exit status 1: above what
is allowed (5 % for runs of 10 s; reading 1,000 finished runs in 2 s); not judged with ``--quick``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

SPEC = {
    "name": "bench", "seed": 0, "seeds": 1,
    "topology": {"kind": "ring", "n": 64},
    "problem": {"kind": "quadratic", "d": 50, "dtype": "float32"},
    "stop": {"kind": "time", "time_s": 100.0},
    "record": {"count": 10},
    "algorithm": [{"kind": "gossip", "optimizer": {"kind": "sgd", "learning_rate": 0.05}}],
}  # fmt: skip
RATE = "algorithm.optimizer.learning_rate"
RATES = [0.02, 0.03, 0.04, 0.05]
OVERHEAD, INDEX_S = 0.05, 2.0


def cpu_s() -> float:
    """Processor seconds of this process and of those it has waited for: what other work on the machine does not change."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def side(name: str, quick: bool, folder: Path) -> None:
    """Print the processor seconds of some runs, one by one or in a sweep; in a fresh process, either compiles once."""
    from decentral.experiment.executors import _configured
    from decentral.experiment.run import run
    from decentral.experiment.spec import validate
    from decentral.experiment.sweeps import sweep

    tables = SPEC | {"stop": {"kind": "time", "time_s": 100.0 if quick else 80_000.0}}
    rates = RATES[: 2 if quick else None]
    run(validate(SPEC, "bench"), out=folder / f"first-{name}")  # imports, numba
    began = cpu_s()
    if name == "sweep":
        found = sweep(tables, {RATE: rates}, out=folder / "sweep", merge=False)
        if [each.status for each in found.runs] != ["finished"] * len(rates):
            raise SystemExit("a run of the sweep failed")
    else:
        with _configured(x64=False, cache=str(folder / "compiled")):
            for rate in rates:
                own = {"kind": "gossip", "optimizer": {"kind": "sgd", "learning_rate": rate}}
                run(validate(tables | {"algorithm": [own]}, "bench"), out=folder / f"alone-{rate}")
    print((cpu_s() - began) / len(rates))


def overhead(quick: bool, folder: Path) -> float:
    """Processor seconds of a run in a sweep beside those of the same run alone."""
    seconds = {}
    for name in ("alone", "sweep"):
        command = [
            sys.executable,
            __file__,
            "--side",
            name,
            "--folder",
            str(folder),
            *(["--quick"] if quick else []),
        ]
        seconds[name] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    share = seconds["sweep"] / seconds["alone"] - 1
    print(
        f"a run takes {seconds['alone']:.2f} processor seconds alone and {seconds['sweep']:.2f} in a sweep: "
        f"overhead {100 * share:+.1f} %"
    )
    return share


def around(quick: bool) -> float:
    """Wall seconds per task of the spawn pool, where the task is next to nothing."""
    from decentral.experiment.executors import executor_from

    tasks = 20 if quick else 200
    with executor_from("spawn:1") as executor:
        executor.submit(platform.node).result()  # the process and JAX
        began = time.perf_counter()
        for future in [executor.submit(platform.node) for _ in range(tasks)]:
            future.result()
        each = (time.perf_counter() - began) / tasks
    print(f"a task's way to a process and back: {1000 * each:.2f} ms (of {tasks})")
    return each


def index(quick: bool, folder: Path) -> float:
    """Wall seconds until ``decentral compare`` can speak of finished runs: their status and summaries."""
    import shutil

    from decentral.experiment.sweep_folder import Sweep
    from decentral.experiment.sweeps import sweep

    small, made = 4, folder / "index"
    tables = SPEC | {"stop": {"kind": "time", "time_s": 5.0}, "topology": {"kind": "ring", "n": 4}}
    found = sweep(tables, {RATE: [0.01 * (k + 1) for k in range(small)]}, out=made)
    runs = 100 if quick else 1000
    record = json.loads((made / "sweep.json").read_text())
    record["runs"] = []
    for k in range(runs):
        key = f"{k:012x}"
        shutil.copytree(found.runs[k % small].folder, made / "runs" / key)
        record["runs"].append({"id": key, "set": {RATE: 1e-4 * (k + 1)}, "group": k})
    (made / "sweep.json").write_text(json.dumps(record))
    began = time.perf_counter()
    again = Sweep.load(made)
    loaded = time.perf_counter() - began
    if sum(each.status == "finished" for each in again.runs) != runs:
        raise SystemExit("the copies are not read as finished runs")
    losses = [each.summary["algorithms"]["gossip"] for each in again.runs]
    read = time.perf_counter() - began
    print(f"{len(losses):,} finished runs: indexed in {loaded:.2f} s, with their summaries in {read:.2f} s")
    return read


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller, nothing judged")
    parser.add_argument("--side", choices=("alone", "sweep"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side(options.side, options.quick, options.folder)
        return 0
    import jax

    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, jax {jax.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        around(options.quick)
        read_s = index(options.quick, place)
        share = overhead(options.quick, place)
    missed = [] if options.quick else [name for name, bad in (
        (f"overhead above {OVERHEAD:.0%}", share > OVERHEAD), (f"index above {INDEX_S:g} s", read_s > INDEX_S),
    ) if bad]  # fmt: skip
    print(
        f"missed: {'; '.join(missed)}"
        if missed
        else "all requirements met"
        if not options.quick
        else "nothing judged"
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
