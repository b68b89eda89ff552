"""Executors: tasks are done wherever they are sent, and a process that dies is heard of."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import executor_tasks as tasks
import pytest

from decentral.errors import InvalidInput, RunFailed
from decentral.experiment.executors import WorkerDied, _as_ours, executor_from
from decentral.experiment.sweeps import sweep

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def spawned():
    with executor_from("spawn:2") as executor:
        yield executor


@pytest.fixture(params=["inline", "spawn"])
def executor(request):
    if request.param == "inline":
        with executor_from("inline") as executor:
            yield executor
    else:
        yield request.getfixturevalue("spawned")


def test_what_a_task_returns_and_raises(executor):
    done = [executor.submit(tasks.add, a, 1) for a in range(5)]
    assert [future.result() for future in done] == [1, 2, 3, 4, 5]
    error = executor.submit(tasks.fail, "told so").exception()
    assert type(error) is RunFailed
    assert str(error) == "ValueError: told so"
    assert any("executor_tasks.py" in note for note in error.__notes__)
    with pytest.raises(RunFailed, match="not JSON serializable"):
        executor.submit(tasks.no_json).result()
    assert executor.submit(tasks.talk).result() == "answer"


def test_what_cannot_be_sent_is_refused(executor):
    with pytest.raises(InvalidInput, match="a function at the top of a module"):
        executor.submit(lambda: 1)
    with pytest.raises(InvalidInput, match=r"what JSON can hold.*Paths as strings"):
        executor.submit(tasks.add, Path(), 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fork:2", "JAX runs threads.*Use spawn"),
        ("spwan", "Did you mean 'spawn'"),
        ("spawn:0", "spawn:N with N processes"),
        ("spawn:all", "spawn:N with N processes"),
        ("inline:2", "inline alone"),
        ("spawn?jobs=2", "Only dask:slurm and submitit take options"),
        ("dask:two", "or dask:tcp://HOST:PORT"),
        ("dask:slurm?memory=1GB", "a machine that has sbatch"),
        ("submitit?jobs=many", "jobs"),
        ("submitit?minutes=5", "submitit says: .*minutes"),
        ("submitit?cluster=lsf", "submitit says"),
    ],
)
def test_bad_names_are_refused(words, message):
    with pytest.raises(InvalidInput, match=message):
        executor_from(words)


def test_inline_leaves_the_settings_of_this_process_alone():
    import jax

    before = jax.config.jax_enable_x64
    with executor_from("inline", x64=not before) as executor:
        dtype = executor.submit(tasks.settings).result()[0]
    assert dtype == ("float32" if before else "float64")
    assert jax.config.jax_enable_x64 == before


def test_processes_are_fresh_and_have_one_thread_each(spawned):
    dtype, threads, of_xla = spawned.submit(tasks.settings).result()
    assert (dtype, threads, of_xla) == ("float32", "1", 1)
    assert spawned.submit(tasks.where).result() != os.getpid()
    assert list(Path(spawned._settings.told["cache"]).iterdir())  # what was compiled is there for the others


@pytest.mark.parametrize(("level", "kept"), [("3", True), ("0", False)])
def test_inline_keeps_programs_where_that_makes_no_noise(monkeypatch, level, kept):
    import jax

    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
    before = jax.config.jax_compilation_cache_dir
    with executor_from("inline") as executor:
        directory = executor.submit(tasks.cache).result()
        assert directory == executor._settings.told["cache"]
        assert (directory is not None) == kept
    assert jax.config.jax_compilation_cache_dir == before


def test_a_process_that_is_killed_takes_only_its_task_with_it(spawned, tmp_path):
    other = spawned.submit(tasks.wait, str(tmp_path / "other"), 0.5)
    death = spawned.submit(tasks.die_once, str(tmp_path / "marker"))
    with pytest.raises(WorkerDied, match=r"ended by SIGKILL \(out of memory\?\)"):
        death.result(timeout=30)
    assert other.result(timeout=30) == "waited"
    assert spawned.submit(tasks.die_once, str(tmp_path / "marker")).result(timeout=30) == "alive"


def test_leaving_by_an_exception_stops_what_is_under_way(tmp_path):
    began, futures, pids = time.perf_counter(), [], []

    def interrupted():
        with executor_from("spawn:1") as executor:
            futures.append(executor.submit(tasks.wait, str(tmp_path / "started"), 60))
            futures.append(executor.submit(tasks.add, 1, 2))
            pids.append(_written(tmp_path / "started"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (under_way, waiting), (pid,) = futures, pids
    assert time.perf_counter() - began < 30
    assert isinstance(under_way.exception(), WorkerDied)
    assert waiting.cancelled()
    assert not _alive(pid)


def test_processes_end_with_a_caller_that_dies_and_its_script_is_not_run_again(tmp_path):
    """A script without a guard: a pool that runs the script again in each process would never get to the task."""
    script = tmp_path / "script.py"
    script.write_text(
        "import executor_tasks as tasks\n"
        "from decentral.experiment.executors import executor_from\n"
        f"open({str(tmp_path / 'runs')!r}, 'a').write('once ')\n"
        "with executor_from('spawn:1') as executor:\n"
        f"    executor.submit(tasks.wait, {str(tmp_path / 'started')!r}, 60).result()\n"
    )
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    caller = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": path})
    try:
        pid = _written(tmp_path / "started")
        assert _alive(pid)
    finally:
        caller.send_signal(signal.SIGKILL)
        caller.wait()
    deadline = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(pid)
    assert (tmp_path / "runs").read_text() == "once "


def _written(path: Path) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if path.exists() and (text := path.read_text()):
            return int(text)
        time.sleep(0.02)
    raise AssertionError(f"{path} was not written")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_dask_on_this_machine(tmp_path):
    with executor_from("dask:2") as executor:
        assert executor.jobs == 2
        done = [executor.submit(tasks.add, a, 1) for a in range(5)]
        assert [future.result() for future in done] == [1, 2, 3, 4, 5]
        assert executor.submit(tasks.settings).result() == ["float32", "1", 1]
        assert str(executor.submit(tasks.fail, "told so").exception()) == "ValueError: told so"
        assert executor.submit(tasks.die_once, str(tmp_path / "marker")).result() == "alive"
        assert executor.submit(tasks.add, 1, 2).result() == 3


def test_what_dask_gives_up_is_a_death():
    killed = type("KilledWorker", (Exception,), {"allowed_failures": 3})()
    assert isinstance(_as_ours(killed), WorkerDied)
    assert _as_ours(killed).tries == 4
    assert isinstance(_as_ours(concurrent.futures.CancelledError("lost")), WorkerDied)
    assert str(_as_ours(OSError("no room"))) == "Dask: OSError: no room"


@pytest.mark.slow
def test_leaving_dask_by_an_exception_stops_what_is_under_way(tmp_path):
    began, futures = time.perf_counter(), []

    def interrupted():
        with executor_from("dask:1") as executor:
            futures.extend(executor.submit(tasks.wait, str(tmp_path / name), 60) for name in ("one", "two"))
            _written(tmp_path / "one")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.perf_counter() - began < 30
    assert all(isinstance(future.exception(timeout=0), WorkerDied) for future in futures)
    assert not _alive(int((tmp_path / "one").read_text()))


@pytest.mark.slow
def test_a_dask_scheduler_at_an_address(monkeypatch):
    import distributed

    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0"
        ) as cluster,
        executor_from(f"dask:{cluster.scheduler_address}", x64=True) as executor,
    ):
        assert executor.jobs == 2
        assert executor.submit(tasks.settings).result()[0] == "float64"
        assert len(cluster.workers) == 1
    monkeypatch.setattr("decentral.experiment.executors.ANSWER_S", 0.5)
    with pytest.raises(InvalidInput, match="Is it running, and is this its address"):
        executor_from("dask:tcp://127.0.0.1:9")


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_by_dask(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from decentral.experiment.executors import executor_from\nexecutor_from('dask:1')\n")
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert 'if __name__ == "__main__":. Or use spawn' in done.stderr


SBATCH = """#!/bin/sh
# Stands in for SLURM: the job is a process of this machine.
for script in "$@"; do :; done
cp "$script" {folder}/job.sh
setsid sh {folder}/job.sh > {folder}/job.log 2>&1 &
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/sh
kill -9 -- "-$1" 2> /dev/null
exit 0
"""


@pytest.mark.slow
def test_dask_under_slurm(tmp_path, monkeypatch):
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (tmp_path / name).write_text(text.format(folder=tmp_path))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parent)]))
    with pytest.raises(InvalidInput, match="with the memory of a job"):
        executor_from("dask:slurm")
    with executor_from(
        "dask:slurm?jobs=1&memory=1GB&queue=long&walltime=00:10:00", folder=tmp_path / "jobs"
    ) as executor:
        assert executor.submit(tasks.settings).result(timeout=100) == ["float32", "1", 1]
    script = (tmp_path / "job.sh").read_text()
    for line in ("#SBATCH -p long", "#SBATCH -t 00:10:00", "export NPROC=1"):
        assert line in script


@pytest.mark.slow
def test_jobs_of_submitit(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parent)]))
    with executor_from("submitit?cluster=local&jobs=2&timeout_min=5", folder=tmp_path / "jobs") as executor:
        sums = [executor.submit(tasks.add, a, 1) for a in range(3)]
        assert [future.result() for future in sums] == [1, 2, 3]
        assert executor.submit(tasks.settings).result() == ["float32", "1", 1]
        assert str(executor.submit(tasks.fail, "told so").exception()) == "ValueError: told so"
        with pytest.raises(WorkerDied, match="submitit says"):
            executor.submit(tasks.die).result()
    left = {path.name.partition("_")[0] for path in (tmp_path / "jobs").iterdir()}
    assert len(left) == 1  # of the job that died, its logs


TINY = """
name = "tiny"
seeds = 2

[topology]
kind = "ring"
n = 4

[problem]
kind = "quadratic"
d = 3

[stop]
kind = "time"
time_s = 10.0

[record]
count = 4

[[algorithm]]
kind = "gossip"
optimizer = { kind = "sgd", learning_rate = 0.1 }
"""


@pytest.mark.slow
def test_a_sweep_under_dask_loses_nothing_to_a_worker_that_is_killed(tmp_path):
    """40 runs on two worker processes: every one is there once, and the bytes are those of a sweep in this process."""
    import psutil

    (tmp_path / "tiny.toml").write_text(TINY)
    axes = {
        "topology.n": [3, 4],
        "algorithm.optimizer.learning_rate": [0.01 * (k + 1) for k in range(20)],
    }
    runs, killed = tmp_path / "dask" / "runs", []

    def kill_a_worker_midway():
        deadline = time.monotonic() + 120
        while not any(runs.glob("*/summary.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        workers = [
            child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())
        ]
        assert len(workers) == 2
        workers[0].kill()
        killed.append(len(list(runs.glob("*/summary.json"))))

    killer = threading.Thread(target=kill_a_worker_midway, daemon=True)
    killer.start()
    found = sweep(tmp_path / "tiny.toml", axes, out=tmp_path / "dask", executor="dask:2")
    killer.join()
    assert 1 <= killed[0] < 40
    assert len(found.runs) == len({run.id for run in found.runs}) == 40
    assert [run.status for run in found.runs] == ["finished"] * 40
    assert sorted(path.name for path in runs.iterdir()) == sorted(run.id for run in found.runs)
    alone = sweep(tmp_path / "tiny.toml", axes, out=tmp_path / "inline")
    assert [run.id for run in alone.runs] == [run.id for run in found.runs]
    for here, there in zip(alone.runs, found.runs, strict=True):
        for name in ("metrics.npz", "summary.json", "spec.toml"):
            assert (here.folder / name).read_bytes() == (there.folder / name).read_bytes(), (here.label, name)
