"""What the scripts of ``paper_figures/`` share: the run folders they need, what they write, and the table of all claims.

A script is a Python file with ``EXPERIMENTS`` (a sequence of :class:`Experiment`; ``SMOKE_EXPERIMENTS``: fewer, for a look),
``draw(runs) -> Figure`` (or name -> Figure, for several) and, where it checks claims, ``claims(runs) -> list[Checked]``. Run
as a program it draws from run folders that are there; ``decentral figures`` makes those that are missing first.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import importlib.util
import json
import multiprocessing
import os
import shlex
import sys
import tempfile
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from decentral.analysis.claims import NOT_JUDGED, Checked, markdown_table
from decentral.analysis.plots import STYLE, save_figure
from decentral.errors import DecentralError, InvalidInput, suggest
from decentral.experiment import folder as folders

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNS = Path("runs") / "figures"
SCRIPTS = "paper_figures"
TABLE = "docs/claims.md"


@dataclass(frozen=True)
class Experiment:
    """A spec with overrides, and the run folder that holds its results.

    Args:
        spec: the name of a packaged experiment.
        overrides: as on the command line, ``("topology.kind=star",)``.
        folder: name of the run folder; by default the spec's, with the overrides' values.
        may_diverge: a run that ends with a state that is not finite is a result: what was recorded before counts.
    """

    spec: str
    overrides: tuple[str, ...] = ()
    folder: str = ""
    may_diverge: bool = False

    @property
    def name(self) -> str:
        """Name of the run folder."""
        values = [text.partition("=")[2].strip() for text in self.overrides]
        return self.folder or "-".join([self.spec.replace("/", "-"), *values])

    def path(self, runs: Path, *, smoke: bool = False) -> Path:
        """The run folder."""
        return runs / (f"{self.name}-smoke" if smoke else self.name)

    def command(self, runs: Path, *, smoke: bool = False) -> str:
        """The command that makes it."""
        path = self.path(runs, smoke=smoke)
        words = ["decentral", "run", self.spec, *(["--smoke"] if smoke else [])]
        words += ["--set", *self.overrides] if self.overrides else []
        words += ["--out", str(path), *(["--overwrite"] if path.exists() else [])]
        return shlex.join(words)

    def load_spec(self, *, smoke: bool = False):
        """The validated spec."""
        from decentral.experiment.spec import load_spec

        return load_spec(self.spec, overrides=self.overrides, smoke=smoke)

    def open(self, runs: Path, *, smoke: bool = False) -> RunFolder:
        """The finished run.

        Raises:
            InvalidInput: it is missing, unfinished, failed, or made from another version of the spec; names the command
                that makes it.
        """
        from decentral.experiment.prepared import source_hash

        path = self.path(runs, smoke=smoke)
        advice = f"To make it: {self.command(runs, smoke=smoke)}"
        if not (path / "manifest.json").is_file():
            raise InvalidInput("run folder", f"nothing at {path}", "a finished run", advice)
        run = RunFolder(path)
        if run.manifest.get("source_hash") != source_hash(self.load_spec(smoke=smoke)):
            raise InvalidInput(
                "run folder", f"{path}, of another version of {self.spec}", "a run of this one", advice
            )
        if run.manifest.get("status") != "finished" and not (self.may_diverge and run.diverged):
            status = run.manifest.get("status")
            said = f"{path}, which is not finished ({status}: {run.manifest.get('error')})"
            raise InvalidInput("run folder", said, "a finished run", advice)
        return run

    def make(self, runs: Path, *, smoke: bool = False) -> None:
        """Run it, in place of what is in its folder.

        Raises:
            DecentralError: it could not finish (and diverging is no result).
        """
        import jax

        from decentral.experiment.run import run
        from decentral.experiment.simulation import Diverged

        spec, path = self.load_spec(smoke=smoke), self.path(runs, smoke=smoke)
        with jax.enable_x64(spec.dtype == "float64"), warnings.catch_warnings():
            if self.may_diverge:  # that it may is what the figure shows
                warnings.simplefilter("ignore", UserWarning)
            try:
                run(
                    spec,
                    out=path,
                    overwrite=(path / "manifest.json").exists(),
                    command_line=shlex.split(self.command(runs, smoke=smoke)),
                )
            except Diverged:
                if not self.may_diverge:
                    raise


class RunFolder:
    """What a run left: read when asked for.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """``manifest.json``."""
        return folders.read_json(self.path / "manifest.json", "manifest")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """``summary.json``; a run that diverged has none."""
        return folders.read_json(self.path / "summary.json", "summary")

    @cached_property
    def _metrics(self) -> dict[str, np.ndarray]:
        return folders.read_arrays(self.path / "metrics.npz", "metrics")

    @property
    def algorithms(self) -> list[str]:
        """Names of those that recorded something, in the order of the spec."""
        there = {key.rpartition("/")[0] for key in self._metrics}
        return [name for name in self.manifest["trace"] if name in there]

    def metric(self, algorithm: str, name: str) -> np.ndarray:
        """``(seeds, records)``.

        Raises:
            InvalidInput: it was not recorded.
        """
        key = f"{algorithm}/{name}"
        if key not in self._metrics:
            raise InvalidInput("metric", key, f"recorded in {self.path}", suggest(key, self._metrics))
        return self._metrics[key]

    @property
    def diverged(self) -> bool:
        """Whether it ended with a state that is not finite."""
        return self.manifest.get("status") == "failed" and str(self.manifest.get("error")).startswith(
            "Diverged"
        )


class Runs:
    """The run folders of one script: ``runs[experiment]``.

    Attributes:
        smoke: whether they are the small versions: enough to draw, too little to judge.
    """

    def __init__(self, root: Path, *, smoke: bool = False) -> None:
        self.root, self.smoke = root, smoke
        self._opened: dict[Experiment, RunFolder] = {}

    def __getitem__(self, experiment: Experiment) -> RunFolder:
        if experiment not in self._opened:
            self._opened[experiment] = experiment.open(self.root, smoke=self.smoke)
        return self._opened[experiment]


@contextlib.contextmanager
def canvas(
    title: str, *, rows: int = 1, columns: int = 1, panel: tuple[float, float] = (3.9, 3.3), note: str = ""
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure in the package's style, to be filled while the context is open.

    Args:
        title: of the whole figure; empty where a legend above the panels has it.
        rows: of panels.
        columns: of panels.
        panel: width and height of one, inches.
        note: small print below.

    Yields:
        The figure and its axes, ``(rows, columns)``.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08, wspace=0.04)
        figure = Figure(figsize=(panel[0] * columns + 0.3, panel[1] * rows + 0.7), layout=layout)
        yield figure, figure.subplots(rows, columns, squeeze=False)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        if note:
            words = textwrap.fill(note, int(18 * figure.get_figwidth()))
            figure.supxlabel(words, x=0.01, ha="left", fontsize=7.5, color="#6b6b6b", linespacing=1.4)


def main(script: str) -> None:
    """A script's own command line; ``script`` is its ``__file__``. Ends the process: 0, or 2 for run folders it cannot use."""
    module = load_script(Path(script))
    parser = argparse.ArgumentParser(description=(module.__doc__ or "").strip().splitlines()[0])
    parser.add_argument(
        "--runs", type=Path, default=RUNS, metavar="DIR", help=f"run folders (default {RUNS})"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where the figures go (default: beside the run folders)"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="from the small runs that --smoke makes: nothing is judged"
    )
    options = parser.parse_args()
    try:
        publish(Path(script), options.runs, options.out or options.runs, smoke=options.smoke, say=print)
    except DecentralError as error:
        sys.stderr.write(f"{Path(script).name}: {error}\n")
        sys.exit(2)


def load_script(path: Path) -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InvalidInput("script", str(path), "a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def experiments_of(module: ModuleType, *, smoke: bool = False) -> tuple[Experiment, ...]:
    """The runs a script draws from; for a look, those of ``SMOKE_EXPERIMENTS`` alone where it has them."""
    return tuple(getattr(module, "SMOKE_EXPERIMENTS", module.EXPERIMENTS) if smoke else module.EXPERIMENTS)


def publish(
    script: Path,
    runs: Path,
    out: Path,
    *,
    smoke: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[Checked]:
    """Draw a script's figures as PDF and PNG, check its claims, and write those as JSON beside them.

    Args:
        script: its file.
        runs: where the run folders are.
        out: where the figures go.
        smoke: from the small versions of the runs; the claims are then not judged.
        say: is told every line of output.

    Raises:
        InvalidInput: a run folder cannot be used; names the command that makes it.
    """
    module, opened = load_script(script), Runs(runs, smoke=smoke)
    for experiment in experiments_of(module, smoke=smoke):
        opened[experiment]
    drawn = module.draw(opened)
    figures = drawn if isinstance(drawn, Mapping) else {script.stem: drawn}
    out.mkdir(parents=True, exist_ok=True)
    small = "-smoke" if smoke else ""
    for name, figure in figures.items():
        for kind in ("pdf", "png"):
            say(str(save_figure(figure, out / f"{name}{small}.{kind}")))
    checked = module.claims(opened) if hasattr(module, "claims") else []
    for claim in checked:
        say(claim.line_with(NOT_JUDGED) if smoke else claim.line)
    if checked:
        judged = {"verdict": None, "words": NOT_JUDGED, "reason": ""} if smoke else {}
        used = [one.path(runs, smoke=smoke).name for one in experiments_of(module, smoke=smoke)]
        plain = {
            "script": script.name,
            "runs": used,
            "claims": [claim.as_dict() | judged for claim in checked],
        }
        folders.write_json(out / f"{script.stem}{small}.json", plain)
    return checked


# -- decentral figures -------------------------------------------------------------------------------------------------


def make_figures(
    *,
    paper: str | None = None,
    smoke: bool = False,
    runs: Path = RUNS,
    out: Path | None = None,
    jobs: int | None = None,
    root: Path | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Run what is missing, draw every figure, check every claim, and write the table of claims.

    Args:
        paper: only scripts whose name begins so, e.g. ``"a2cid2"``.
        smoke: the small versions; the table is left alone.
        runs: where run folders are and go.
        out: where the figures go; by default beside the run folders.
        jobs: processes; by default one per core.
        root: the checkout; by default the one this package runs from.
        say: is told every line of output.

    Returns:
        How many experiments and scripts failed.

    Raises:
        InvalidInput: no checkout, or no such paper.
    """
    root = checkout() if root is None else root
    scripts = _scripts(root, paper)
    runs.mkdir(parents=True, exist_ok=True)
    began, failed = time.perf_counter(), []
    experiments = {
        e.path(runs): e for script in scripts for e in experiments_of(load_script(script), smoke=smoke)
    }
    missing = [e for e in experiments.values() if not _ready(e, runs, smoke)]
    # First one of every spec: the others find its programs compiled.
    specs = [e.spec for e in missing]
    missing = [missing[k] for k in sorted(range(len(missing)), key=lambda k: specs[:k].count(specs[k]))]
    say(f"{len(experiments)} run folders, {len(missing)} of them to be made, for {len(scripts)} figures.")
    claims: dict[str, list[Checked]] = {}
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as cache,
        concurrent.futures.ProcessPoolExecutor(
            jobs or os.cpu_count(), context, initializer=_start_worker, initargs=(cache,)
        ) as pool,
    ):
        work = {pool.submit(_attempt, e.make, runs, smoke=smoke): e.name for e in missing}
        for future in concurrent.futures.as_completed(work):
            seconds, _, error = future.result()
            if error:
                failed.append(work[future])
            say(f"failed: {work[future]}: {error}" if error else f"made {work[future]} in {seconds:.1f} s")
        work = {
            pool.submit(_attempt, _published, script, runs, out or runs, smoke): script for script in scripts
        }
        for future, script in work.items():
            name = script.relative_to(root).as_posix()
            seconds, done, error = future.result()
            if error:
                failed.append(name)
                say(f"failed: {name}: {error}")
                continue
            lines, claims[name] = done
            say("\n  ".join([f"{name} in {seconds:.1f} s", *lines]))
    if not smoke:
        say(
            str(
                write_table(
                    root,
                    claims,
                    present=[script.relative_to(root).as_posix() for script in _scripts(root, None)],
                )
            )
        )
    say(f"{time.perf_counter() - began:.0f} s in total")
    if failed:
        say(f"{len(failed)} failed: {', '.join(failed)}")
    return len(failed)


def checkout() -> Path:
    """The checkout this package runs from.

    Raises:
        InvalidInput: it is installed without one.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / SCRIPTS).is_dir():
        advice = (
            "The figures' scripts are not in the installed package: git clone it, and pip install -e there."
        )
        raise InvalidInput("decentral figures", f"no {SCRIPTS}/ in {root}", "a checkout", advice)
    return root


def _scripts(root: Path, paper: str | None) -> list[Path]:
    scripts = sorted((root / SCRIPTS).glob("[!_]*.py"))
    chosen = [script for script in scripts if paper in (None, script.stem.partition("_")[0])]
    if not chosen:
        papers = {script.stem.partition("_")[0] for script in scripts}
        raise InvalidInput("--paper", paper, "a paper that has scripts", suggest(str(paper), papers))
    return chosen


def _ready(experiment: Experiment, runs: Path, smoke: bool) -> bool:
    try:
        experiment.open(runs, smoke=smoke)
    except InvalidInput:
        return False
    return True


def _start_worker(cache: str) -> None:
    """Programs that are alike are compiled once for all processes: short runs are mostly compiling."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Before JAX is loaded: it says of every program read back that another machine may have compiled it.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import jax

    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _end_with_parent() -> None:
    """Workers of a pool whose process was killed would wait for work for ever, with all their memory."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _attempt(function: Callable, *arguments: Any, **named: Any) -> tuple[float, Any, str]:
    """Seconds, result and error in words: errors of this package hold more than their message and cannot go between processes."""
    began, result, error = time.perf_counter(), None, ""
    try:
        result = function(*arguments, **named)
    except DecentralError as caught:
        error = str(caught)
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
    return time.perf_counter() - began, result, error


def _published(script: Path, runs: Path, out: Path, smoke: bool) -> tuple[list[str], list[Checked]]:
    lines: list[str] = []
    return lines, publish(script, runs, out, smoke=smoke, say=lines.append)


def write_table(root: Path, claims: Mapping[str, Sequence[Checked]], present: Iterable[str]) -> Path:
    """Write the table of all claims; those of scripts that did not run now stay as they were.

    Args:
        root: the checkout.
        claims: script's path in the checkout -> its claims, as checked now.
        present: all scripts there are; claims of others go.

    Returns:
        The table's path; its data lie beside it as JSON.
    """
    table = root / TABLE
    data = table.with_suffix(".json")
    before = folders.read_json(data, "table of claims") if data.exists() else {}
    merged = before | {script: [claim.as_dict() for claim in of] for script, of in claims.items()}
    merged = {script: merged[script] for script in sorted(present) if merged.get(script)}
    folders.write_bytes(data, (json.dumps(merged, indent=1, ensure_ascii=False) + "\n").encode())
    words = markdown_table(
        {script: [Checked.from_dict(plain) for plain in of] for script, of in merged.items()}
    )
    folders.write_bytes(table, words.encode())
    return table
