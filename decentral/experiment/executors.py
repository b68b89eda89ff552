"""Where tasks are carried out: in this process, in others of this machine, by Dask or as submitit's jobs.

A task is an importable function and arguments that JSON can hold, paths as strings. So every process is given the same, a
worker's whole input fits into a line of text, and no executor needs the caller's script: it may be a notebook.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import importlib.metadata
import json
import logging
import multiprocessing
import os
import platform
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self
from urllib.parse import parse_qsl

from decentral.errors import DecentralError, InvalidInput, MissingExtra, RunFailed, suggest

QUIET = "TF_CPP_MIN_LOG_LEVEL"
"""The environment variable that XLA reads when it is loaded. Below 3 it says of every compiled program it reads back that
another machine may have made it."""
ONE_THREAD = {
    **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMBA")},
    "NPROC": "1",  # what XLA takes for the number of cores; its flags about threads change nothing
    QUIET: "3",
    "MPLBACKEND": "Agg",
    # On a GPU the first process would take three quarters of its memory.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}
"""The environment of a process that is one of many on a machine. No process is tied to a core: two sweeps would then share
the first cores and leave the others idle."""
SAME = ("decentral", "jax", "jaxlib", "numpy")
"""Packages of which a worker must have the version that the caller has."""
LAST_WORDS = 2000
"""Characters of its standard error that a dead process is quoted with."""
POLL_S = 0.2
"""Seconds between two looks at a job of submitit."""
ANSWER_S = 10
"""How long a scheduler may take to answer."""
EXECUTORS = ("inline", "spawn", "dask", "submitit")


class WorkerDied(RunFailed):
    """The process that carried out a task ended before it had finished: killed, out of memory, crashed.

    Args:
        message: what is known of it.
        tries: how often the executor has tried this task.
    """

    def __init__(self, message: str, tries: int = 1) -> None:
        self.tries = tries
        super().__init__(message)


class Executor(Protocol):
    """Carries out tasks. A context manager: leaving it waits for them; leaving it by an exception stops them."""

    @property
    def jobs(self) -> int:
        """How many tasks are carried out at a time, as far as known."""
        ...

    def submit(self, function: Callable, /, *arguments: Any) -> Future:
        """Have a task done.

        Args:
            function: importable by name on every worker.
            arguments: what JSON can hold.

        Returns:
            A future. Its result is what the function returned, as JSON gives it back; its exception is :class:`WorkerDied`,
            or :class:`RunFailed` with the words of what the function raised and the place as a note. Inline, it is done when
            it is returned.

        Raises:
            InvalidInput: the function cannot be imported, or an argument is nothing for JSON.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: Any, *error: Any) -> None: ...


def executor_from(words: str, *, x64: bool = False, folder: str | Path = "runs/jobs") -> Executor:
    """An executor by its name.

    Args:
        words: ``"inline"``: in this process, one task after the other. ``"spawn"`` or ``"spawn:4"``: that many processes of
            this machine, by default one per core, with one thread each. ``"dask"`` or ``"dask:4"``: the same under a Dask
            scheduler. ``"dask:tcp://host:8786"``: a scheduler that runs already. ``"dask:slurm?jobs=4&memory=8GB&queue=long"``:
            a SLURM cluster, with the arguments of ``dask_jobqueue.SLURMCluster``. ``"submitit?timeout_min=60&jobs=8"``: jobs
            of submitit, under SLURM where there is one (else, or with ``cluster=local``, on this machine), at most ``jobs`` at
            a time, with the arguments of its ``update_parameters``.
        x64: tasks compute with 64 bits where they ask for it (``jax_enable_x64``): in all processes alike.
        folder: where submitit and SLURM keep files and logs of their jobs; all machines must see it.

    Raises:
        InvalidInput: no such executor, or it cannot be reached.
        MissingExtra: a package it needs is not installed.
    """
    name, query, options = words.partition("?")
    kind, _, detail = name.partition(":")
    given = dict(parse_qsl(options, keep_blank_values=True))
    if kind == "fork":
        raise InvalidInput(
            "executor", words, "processes that start afresh",
            "JAX runs threads, and a fork copies the locks they hold and not the threads: the copy hangs. Use spawn.",
        )  # fmt: skip
    if kind not in EXECUTORS:
        raise InvalidInput("executor", words, "one of the names below", suggest(kind, EXECUTORS))
    if kind == "submitit" and not detail:
        return SubmititJobs(given, Path(folder), x64=x64)
    if (kind, detail) == ("dask", "slurm"):
        return Dask.on_slurm(given, Path(folder), x64=x64)
    if query:
        raise InvalidInput("executor", words, f"{name} alone", "Only dask:slurm and submitit take options.")
    if kind == "dask" and "://" in detail:
        return Dask.at(detail, x64=x64)
    if kind == "inline" and not detail:
        return Inline(x64=x64)
    if kind in ("spawn", "dask"):
        jobs = _jobs(words, detail or str(cores()))
        return SpawnPool(jobs, x64=x64) if kind == "spawn" else Dask.local(jobs, x64=x64)
    raise InvalidInput("executor", words, f"{kind} alone")


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _jobs(words: str, number: str) -> int:
    if not number.isdecimal() or int(number) < 1:
        kind = words.partition(":")[0]
        allowed = f"{kind}:N with N processes" + (", or dask:tcp://HOST:PORT" if kind == "dask" else "")
        raise InvalidInput("executor", words, allowed)
    return int(number)


# -- tasks -------------------------------------------------------------------------------------------------------------


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"Python": platform.python_version()}
    for package in SAME:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _task(function: Callable, arguments: tuple, settings: Mapping[str, Any]) -> str:
    """What a worker is told, a line of JSON.

    Raises:
        InvalidInput: it cannot be told.
    """
    module, name = getattr(function, "__module__", "?"), getattr(function, "__qualname__", str(function))
    if module == "__main__" or getattr(sys.modules.get(module), name, None) is not function:
        advice = "Workers import it by its name: put it into a module."
        raise InvalidInput("function", f"{module}.{name}", "a function at the top of a module", advice)
    try:
        return json.dumps({"function": [module, name], "arguments": arguments, "settings": settings})
    except (TypeError, ValueError) as error:
        advice = f"Paths as strings, arrays in files ({error})."
        raise InvalidInput("arguments", arguments, "what JSON can hold", advice) from None


def perform(line: str) -> str:
    """Carry out a task in this process.

    Args:
        line: of :func:`_task`.

    Returns:
        A line of JSON: ``{"value": what it returned}``, or ``{"error": in words, "place": traceback}``; an exception itself
        may not survive the way between processes.
    """
    try:
        task = json.loads(line)
        module, name = task["function"]
        with _configured(**task["settings"]):
            return json.dumps({"value": getattr(importlib.import_module(module), name)(*task["arguments"])})
    except Exception as error:
        words = str(error) if isinstance(error, DecentralError) else f"{type(error).__name__}: {error}"
        return json.dumps({"error": words, "place": traceback.format_exc()})


@contextlib.contextmanager
def _configured(
    *,
    x64: bool,
    cache: str | None = None,
    environment: Mapping[str, str] | None = None,
    platforms: str | None = None,
    versions: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """JAX as the sweep wants it, and afterwards as it was.

    Raises:
        RunFailed: this is another installation than the caller's.
    """
    if versions is not None and (mine := _versions()) != versions:
        other = [
            f"{name} {mine.get(name)}, not {wanted}"
            for name, wanted in versions.items()
            if mine.get(name) != wanted
        ]
        raise RunFailed(
            f"The worker on {platform.node()} has {', '.join(other)}. All workers must have what the caller has."
        )
    if "jax" not in sys.modules:
        os.environ.update(environment or {})
    import jax

    settings: dict[str, Any] = {"jax_enable_x64": x64}
    if platforms is not None:
        settings["jax_platforms"] = platforms
    if cache is not None and not getattr(jax.config, "jax_compilation_cache_dir", None):
        settings |= {
            "jax_compilation_cache_dir": cache,
            "jax_persistent_cache_min_compile_time_secs": 0.0,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }
    before = {name: getattr(jax.config, name) for name in settings}
    _update(settings)
    try:
        yield
    finally:
        _update(before)


def _update(settings: Mapping[str, Any]) -> None:
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    for name, value in settings.items():
        if value != getattr(jax.config, name):
            jax.config.update(name, value)
            if name == "jax_compilation_cache_dir":
                reset_cache()  # it is opened once, and there was none


def _outcome(line: str | bytes) -> Any:
    """What the function returned, or its error raised."""
    done = json.loads(line)
    if "error" in done:
        error = RunFailed(done["error"])
        error.add_note(done["place"])
        raise error
    return done["value"]


class _Settings:
    """What every task of an executor is told of the process it meets."""

    def __init__(self, *, x64: bool, cache: bool, environment: Mapping[str, str] | None = None) -> None:
        jax = sys.modules.get("jax")
        # Runs of one shape are the same program, which takes longer to compile than a short run to run. Only on one machine:
        # another's processor may not know the instructions.
        self._cache = tempfile.TemporaryDirectory(prefix="decentral-") if cache else None
        self.told: dict[str, Any] = {
            "x64": x64,
            "cache": self._cache.name if self._cache else None,
            "environment": environment,
            "platforms": jax.config.jax_platforms if jax else None,
            "versions": _versions(),
        }

    def close(self) -> None:
        if self._cache:
            self._cache.cleanup()


# -- in this process ---------------------------------------------------------------------------------------------------


class Inline:
    """In this process: :meth:`submit` returns when the task is done."""

    jobs = 1

    def __init__(self, *, x64: bool = False) -> None:
        # XLA tells the terminal of every program that is read back, unless it was told not to when it was loaded.
        quiet = os.environ.get(QUIET, "0") >= ONE_THREAD[QUIET]
        self._settings = _Settings(x64=x64, cache=quiet)

    def submit(self, function: Callable, /, *arguments: Any) -> Future:
        """As in :class:`Executor`."""
        future: Future = Future()
        # As lines here too: what works in this process works in every other.
        done = perform(_task(function, arguments, self._settings.told))
        try:
            future.set_result(_outcome(done))
        except RunFailed as error:
            future.set_exception(error)
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        self._settings.close()


# -- processes of this machine -----------------------------------------------------------------------------------------


class _Process:
    """A fresh interpreter that takes tasks as lines on its standard input and answers each with a line."""

    def __init__(self) -> None:
        # As multiprocessing does it: what can be imported here can be imported there.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._said: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said,
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C at the terminal is for the caller, who stops what is to be stopped
        )  # fmt: skip

    def carry_out(self, task: str) -> bytes:
        """The answer; WorkerDied where there is none."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(task.encode() + b"\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if answer.endswith(b"\n"):
            return answer
        raise WorkerDied(f"The process {self._process.pid} that did it {self._end()}.{self._last_words()}")

    def _end(self) -> str:
        status = self._process.wait()
        if status >= 0:
            return f"ended with exit status {status}"
        name = signal.Signals(-status).name
        return f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")

    def _last_words(self) -> str:
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip()
        return f" Its last words:\n{said[-LAST_WORDS:]}" if said else ""

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """It ends when it has nothing to do any more."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._said.close()


def serve() -> None:
    """Carry out the tasks on standard input until it ends, which it also does when the caller dies."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a task prints is no answer
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)  # in the middle of a task too: nobody waits for it any more

    threading.Thread(target=read, daemon=True).start()
    while True:
        answers.write(perform(lines.get()) + "\n")
        answers.flush()


class _Threads:
    """An executor whose tasks are waited for by threads, one for each that is under way."""

    def __init__(self, jobs: int, settings: _Settings) -> None:
        self.jobs, self._settings = jobs, settings
        self._threads = ThreadPoolExecutor(jobs, thread_name_prefix="decentral")
        self._stopped = threading.Event()

    def submit(self, function: Callable, /, *arguments: Any) -> Future:
        """As in :class:`Executor`."""
        return self._threads.submit(self._wait_for, _task(function, arguments, self._settings.told))

    def _wait_for(self, task: str) -> Any:
        raise NotImplementedError

    def _stop(self) -> None:
        """Stop what is under way."""

    def _close(self) -> None:
        """Give back what was held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        if kind is not None:
            self._stopped.set()
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._stop()
        self._threads.shutdown()
        self._close()
        self._settings.close()


class SpawnPool(_Threads):
    """Processes of this machine with one thread each. One that dies takes only its task with it; the next gets a new one.

    Args:
        jobs: processes.
        x64: as for :func:`executor_from`.
    """

    def __init__(self, jobs: int, *, x64: bool = False) -> None:
        super().__init__(jobs, _Settings(x64=x64, cache=True))
        self._own = threading.local()
        self._processes: set[_Process] = set()
        self._changing = threading.Lock()

    def _wait_for(self, task: str) -> Any:
        if (process := getattr(self._own, "process", None)) is None:
            with self._changing:
                if self._stopped.is_set():
                    raise WorkerDied("Stopped before it began.")
                process = self._own.process = _Process()
                self._processes.add(process)
        try:
            return _outcome(process.carry_out(task))
        except WorkerDied:
            self._own.process = None
            with self._changing:
                self._processes.discard(process)
            process.close()
            raise

    def _stop(self) -> None:
        with self._changing:
            for process in self._processes:
                process.kill()

    def _close(self) -> None:
        for process in self._processes:
            process.close()


# -- Dask --------------------------------------------------------------------------------------------------------------


class Dask:
    """Workers under a Dask scheduler: of this machine, of one that runs already, or of SLURM.

    When a worker dies, Dask gives its tasks to another one; after several deaths a task's exception is :class:`WorkerDied`.

    Args:
        client: of the scheduler.
        settings: of the tasks.
        started: the cluster that was started for it, closed with it.
        jobs: workers that are expected; by default those that are there.
    """

    def __init__(
        self, client: Any, settings: _Settings, started: Any = None, jobs: int | None = None
    ) -> None:
        self._client, self._settings, self._started, self._expected = client, settings, started, jobs
        # By key. Dask gives up what nobody refers to any more.
        self._under_way: dict[str, tuple[Any, Future]] = {}

    @classmethod
    def local(cls, jobs: int, *, x64: bool = False) -> Self:
        """A scheduler, and processes of one thread each on this machine.

        Raises:
            InvalidInput: the caller's script would start itself again in every process.
            MissingExtra: Dask is not installed.
        """
        distributed = _installed("distributed", "The executor dask")
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            sys.exit(1)  # a worker that runs the script again; the caller is told below
        try:
            cluster = distributed.LocalCluster(
                n_workers=jobs, threads_per_worker=1, memory_limit=0, env=ONE_THREAD, silence_logs=logging.CRITICAL,
                dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False},
            )  # fmt: skip
        except RuntimeError as error:
            advice = f'Put what the script does under: if __name__ == "__main__":. Or use spawn, which needs none. ({error})'
            raise InvalidInput(
                "executor", "dask", "a script that Dask can import in its workers", advice
            ) from None
        client = distributed.Client(cluster, set_as_default=False)
        return cls(client, _Settings(x64=x64, cache=True), cluster, jobs)

    @classmethod
    def at(cls, address: str, *, x64: bool = False) -> Self:
        """Workers of the scheduler at an address. Their machines see the caller's folders under the same paths.

        Raises:
            InvalidInput: nobody answers there, or with other versions of what Dask needs.
            MissingExtra: Dask is not installed.
        """
        distributed = _installed("distributed", "The executor dask")
        try:
            with _quiet("distributed"):
                client = distributed.Client(address, timeout=ANSWER_S, set_as_default=False)
                client.get_versions(check=True)
        except (OSError, ValueError) as error:
            advice = f"Is it running, and is this its address? ({error})"
            raise InvalidInput(
                "executor", f"dask:{address}", "the address of a Dask scheduler", advice
            ) from None
        if not client.nthreads():
            warnings.warn(
                f"The scheduler at {address} has no workers yet: tasks wait for the first.", stacklevel=3
            )
        return cls(client, _Settings(x64=x64, cache=False))

    @classmethod
    def on_slurm(cls, given: Mapping[str, str], folder: Path, *, x64: bool = False) -> Self:
        """Workers as jobs of SLURM, through dask-jobqueue; the scheduler is in this process.

        Args:
            given: ``jobs``, and arguments of ``SLURMCluster``; by default a job is one process on one core.
            folder: for the jobs' logs.
            x64: as for :func:`executor_from`.

        Raises:
            InvalidInput: no SLURM here, or arguments that dask-jobqueue refuses.
            MissingExtra: dask-jobqueue is not installed.
        """
        jobqueue = _installed("dask_jobqueue", "The executor dask:slurm", "dask-jobqueue")
        distributed = _installed("distributed", "The executor dask:slurm")
        if shutil.which("sbatch") is None:
            advice = "Start the sweep where SLURM's commands are."
            raise InvalidInput("executor", "dask:slurm", "a machine that has sbatch", advice)
        if "memory" not in given:
            advice = "dask:slurm?memory=8GB&jobs=4&walltime=02:00:00"
            raise InvalidInput("executor", "dask:slurm", "with the memory of a job", f"For example {advice}")
        jobs = _jobs("dask:slurm?jobs", given.get("jobs", "1"))
        arguments = {"cores": 1, "processes": 1} | {k: _value(v) for k, v in given.items() if k != "jobs"}
        threads = [f"export {name}={value}" for name, value in ONE_THREAD.items()]
        try:
            cluster = jobqueue.SLURMCluster(
                scheduler_options={"dashboard": False, "dashboard_address": ":0"},
                python=sys.executable,
                log_directory=str(folder.absolute()),
                job_script_prologue=threads,
                **arguments,
            )
        except (TypeError, ValueError) as error:
            advice = f"dask-jobqueue says: {error}"
            raise InvalidInput(
                "executor", f"dask:slurm?{given}", "arguments of SLURMCluster", advice
            ) from None
        cluster.scale(jobs=jobs)
        client = distributed.Client(cluster, set_as_default=False)
        return cls(client, _Settings(x64=x64, cache=False), cluster, jobs * int(arguments["processes"]))

    @property
    def jobs(self) -> int:
        """Workers that were asked for, or threads of those that are there."""
        return self._expected or sum(self._client.nthreads().values()) or 1

    def submit(self, function: Callable, /, *arguments: Any) -> Future:
        """As in :class:`Executor`."""
        task = _task(function, arguments, self._settings.told)
        key = f"{function.__name__}-{uuid.uuid4().hex}"  # what was done once is done again
        future: Future = Future()
        future.set_running_or_notify_cancel()
        under_way = self._client.submit(perform, task, key=key, pure=False)
        self._under_way[key] = (under_way, future)
        under_way.add_done_callback(self._settle)
        return future

    def _settle(self, under_way: Any) -> None:
        _, future = self._under_way.pop(under_way.key, (None, None))
        if future is None:
            return
        try:
            future.set_result(_outcome(under_way.result()))
        except RunFailed as error:
            future.set_exception(error)
        except Exception as error:
            future.set_exception(_as_ours(error))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        under_way = list(self._under_way.values())
        if kind is None:
            concurrent.futures.wait([future for _, future in under_way])
        else:
            with contextlib.suppress(Exception):  # where the scheduler is gone there is nothing to stop
                self._client.cancel([one for one, _ in under_way], force=True)
            for nanny in getattr(self._started, "workers", {}).values():
                if pid := getattr(nanny, "pid", None):  # a process of this machine, in the middle of a task
                    nanny.auto_restart = False
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        # Where there is an error already, that one is told.
        with _quiet("distributed"), contextlib.suppress(*([] if kind is None else [Exception])):
            self._client.close()
            if self._started is not None:
                self._started.close()
        while self._under_way:
            _, (_, future) = self._under_way.popitem()
            future.set_exception(WorkerDied("Stopped before it was done."))
        self._settings.close()


def _as_ours(error: Exception) -> RunFailed:
    """What Dask raises for a task that never came to an end."""
    if type(error).__name__ == "KilledWorker":
        tries = getattr(error, "allowed_failures", 0) + 1
        return WorkerDied(f"{tries} of Dask's workers died of it, one after the other.", tries)
    if isinstance(error, concurrent.futures.CancelledError):
        return WorkerDied(f"Dask gave it up ({error}).")
    return RunFailed(f"Dask: {type(error).__name__}: {error}")


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """No log lines of a library about connections that end: errors are raised."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def _installed(module: str, what: str, package: str | None = None) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtra(what, package or module, "sweeps") from None


def _value(text: str) -> Any:
    """A number, true, false or null; else the words as they are."""
    try:
        return json.loads(text)
    except ValueError:
        return text


# -- submitit ----------------------------------------------------------------------------------------------------------


class SubmititJobs(_Threads):
    """Every task is a job of submitit: of SLURM, or a process of this machine.

    Args:
        given: ``jobs``, how many are there at a time (8); ``cluster``, ``"slurm"``, ``"local"`` or ``"debug"`` (SLURM where it
            is found); arguments of submitit's ``update_parameters``.
        folder: for the jobs' files and logs; those of tasks that were done are removed.
        x64: as for :func:`executor_from`.

    Raises:
        InvalidInput: arguments that submitit refuses.
        MissingExtra: submitit is not installed.
    """

    def __init__(self, given: Mapping[str, str], folder: Path, *, x64: bool = False) -> None:
        submitit = _installed("submitit", "The executor submitit")
        given = dict(given)
        jobs = _jobs("submitit?jobs", given.pop("jobs", "8"))
        try:
            self._submitit = submitit.AutoExecutor(str(folder.absolute()), cluster=given.pop("cluster", None))
            self._submitit.update_parameters(**{key: _value(value) for key, value in given.items()})
        except (NameError, TypeError, ValueError, RuntimeError) as error:
            advice = f"submitit says: {error}"
            raise InvalidInput("executor", f"submitit?{given}", "arguments of submitit", advice) from None
        local = self._submitit.cluster != "slurm"
        super().__init__(jobs, _Settings(x64=x64, cache=local, environment=ONE_THREAD if local else None))
        self._under_way: set[Any] = set()
        self._changing = threading.Lock()

    def _wait_for(self, task: str) -> Any:
        with self._changing:
            if self._stopped.is_set():
                raise WorkerDied("Stopped before it began.")
            job = self._submitit.submit(perform, task)
            self._under_way.add(job)
        try:
            while not job.done():
                time.sleep(POLL_S)
            answer = job.result()
        except Exception as error:
            raise WorkerDied(
                f"The job {job.job_id} that did it ended before it had an answer. submitit says: {error}"
            ) from None
        finally:
            with self._changing:
                self._under_way.discard(job)
        for path in Path(job.paths.folder).glob(f"{job.job_id}_*"):
            path.unlink(missing_ok=True)
        return _outcome(answer)

    def _stop(self) -> None:
        with self._changing:
            for job in self._under_way:
                job.cancel(check=False)
