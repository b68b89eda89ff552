"""Run folders: what a run leaves behind. Every file is written under a temporary name and renamed.

``spec.toml`` (resolved), ``manifest.json`` (provenance and status), ``metrics.npz`` (``ALGORITHM/METRIC``, arrays (seeds,
records)), ``summary.json``, ``trace_NAME.npz``, PNG plots, and ``checkpoint/`` while unfinished. All of it is readable
without this package.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import subprocess
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from decentral.errors import InvalidInput

WRITTEN = (
    "spec.toml",
    "metrics.npz",
    "summary.json",
    "tuning.json",
    "history.npz",
    "meta_parameters.npz",
    "trace_*.npz",
    "*.png",
    "report.html",
    "*.tmp",
    ".*.tmp",
)
"""What a run leaves in its folder, beside ``manifest.json`` and ``checkpoint/``."""
META_TRAINING = "meta-training"
"""The kind that the manifest of a meta-training says; that of a run says none."""
PACKAGES = ("decentral", "jax", "jaxlib", "optax", "networkx", "numpy", "scipy", "numba", "matplotlib")


def require_free(out: str | os.PathLike | None, overwrite: bool = False) -> None:
    """Nothing would be lost by a run in ``out``.

    Raises:
        InvalidInput: it is a file, or holds something that is not a run's or that nobody said to overwrite.
    """
    folder = Path(out or "runs")
    if folder.exists() and not folder.is_dir():
        raise InvalidInput("--out", str(folder), "a folder", "There is a file of this name.")
    if out is None or not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        advice = "Choose another one, or add --overwrite."
        raise InvalidInput("--out", str(folder), "a folder that is new or empty", advice)
    if not (folder / "manifest.json").is_file():
        advice = "This one has no manifest.json; it is left alone."
        raise InvalidInput("--overwrite", str(folder), "a run folder", advice)


def create(
    out: str | os.PathLike | None, name: str, manifest: Mapping[str, Any], *, overwrite: bool = False
) -> Path:
    """A new run folder that holds its manifest: ``out``, or ``runs/NAME-001`` and counting.

    Raises:
        InvalidInput: ``out`` exists and holds something, or the folder cannot be written.
    """
    require_free(out, overwrite)
    try:
        if out is None:
            folder = _next(Path("runs"), name)
        else:
            folder = Path(out)
            folder.mkdir(parents=True, exist_ok=True)
            _empty(folder)
        write_json(folder / "manifest.json", manifest)
        (folder / "checkpoint").mkdir(exist_ok=True)
    except OSError as error:
        where = "runs" if out is None else str(out)
        raise InvalidInput("--out", where, "a folder that can be written", f"{error}.") from None
    return folder


def _next(root: Path, name: str) -> Path:
    root.mkdir(exist_ok=True)
    for number in itertools.count(1):
        folder = root / f"{name}-{number:03d}"
        try:
            folder.mkdir()  # fails when another run has just made it
            return folder
        except FileExistsError:
            continue
    raise AssertionError


def _empty(folder: Path) -> None:
    """Remove what a run wrote and nothing else; the manifest last, so that until then it is a run folder."""
    if not (folder / "manifest.json").is_file():
        return
    with exclusive(folder):
        for pattern in WRITTEN:
            for path in folder.glob(pattern):
                path.unlink()
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    (folder / "manifest.json").unlink()


@contextlib.contextmanager
def exclusive(folder: Path, *, what: str = "a run", lock: str = "lock", wait: bool = False) -> Iterator[None]:
    """Only one process at a time works in a folder; the system lifts the lock when the process dies.

    Args:
        folder: where.
        what: is worked on, in words.
        lock: the file in its ``checkpoint/`` that is locked.
        wait: until the other process has finished, however long it takes.

    Raises:
        InvalidInput: another process is at work in it.
    """
    (folder / "checkpoint").mkdir(exist_ok=True)
    with open(folder / "checkpoint" / lock, "w") as file:
        with contextlib.suppress(ImportError):  # not on Windows
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                advice = "Wait until it has finished, or stop it."
                raise InvalidInput(
                    "DIR", str(folder), f"{what} that no other process works on", advice
                ) from None
            except OSError:  # a file system without locks
                pass
        yield


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears under its name whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # half a file helps nobody, least of all on a full disk
            temporary.unlink()
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """A whole file."""
    with replacing(path) as file:
        file.write(content)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Readable JSON; NaN and infinity, which JSON does not have, become null."""
    write_bytes(path, (json.dumps(_finite(data), indent=2) + "\n").encode())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An npz; the same arrays give the same bytes (NumPy dates its entries 1980)."""
    ordered: dict[str, Any] = {key: arrays[key] for key in sorted(arrays)}
    with replacing(path) as file:
        np.savez(file, **ordered)


def read_arrays(path: Path, what: str) -> dict[str, np.ndarray]:
    """What :func:`write_arrays` wrote.

    Raises:
        InvalidInput: missing or damaged.
    """
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        advice = f"It is missing or damaged ({error})."
        if what == "checkpoint":
            advice += " Delete it, and decentral resume starts that algorithm again from its beginning."
        raise InvalidInput(what, str(path), "a file this package wrote", advice) from None


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InvalidInput: missing or damaged.
    """
    try:
        data = json.loads(path.read_bytes())
        if not isinstance(data, dict):
            raise ValueError("not a JSON object")
        return data
    except (OSError, ValueError) as error:
        raise InvalidInput(
            what, str(path), "a file this package wrote", f"It is missing or damaged ({error})."
        ) from None


def require_run(folder: str | os.PathLike) -> Path:
    """The folder, if it is a run folder.

    Raises:
        InvalidInput: it is not.
    """
    folder = Path(folder)
    if not (folder / "manifest.json").is_file():
        raise InvalidInput(
            "DIR", str(folder), "a run folder (one with a manifest.json)", "decentral run SPEC makes one."
        )
    return folder


def provenance(command_line: list[str] | None, *, device: bool = True) -> dict[str, Any]:
    """Where a result comes from: versions, commit, command, host, device, flags.

    Args:
        command_line: the command.
        device: look at JAX's devices, which takes hold of them.
    """
    import jax

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            from decentral import __version__

            versions[package] = __version__ if package == "decentral" else None
    known: dict[str, Any] = {
        "versions": {"python": platform.python_version(), **versions},
        "commit": _commit(),
        "command_line": command_line,
        "host": {"name": platform.node(), "system": platform.platform(), "cpus": os.cpu_count()},
    }
    if device:
        one = jax.devices()[0]
        known["device"] = {"platform": one.platform, "kind": one.device_kind, "count": jax.device_count()}
    x64 = bool(jax.config.read("jax_enable_x64"))
    return known | {"flags": {"x64": x64, "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}}


def now() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _commit() -> dict[str, Any] | None:
    """The commit of the checkout this package runs from, if it is one."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        ask = lambda *words: subprocess.run(  # noqa: E731
            ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        return {"hash": ask("rev-parse", "HEAD"), "modified": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _finite(value):
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
