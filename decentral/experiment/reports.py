"""Reports: one HTML file about a run, a sweep or a meta-training, written from its folder."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from decentral.analysis.meta_loss import WINDOW
from decentral.analysis.page import Section, element, facts, table
from decentral.analysis.page.figures import series_of
from decentral.errors import InvalidInput
from decentral.experiment import folder as folders
from decentral.experiment.report_page import NAME, provenance_section, some, spec_section, whole_page
from decentral.experiment.run_report import RunFiles, run_page
from decentral.experiment.sweep_folder import Sweep, is_sweep
from decentral.experiment.sweep_report import sweep_page


def report(directory: str | Path, *, project: str | Path | None = None) -> Path:
    """Write ``report.html`` into a folder: what ran, what came out with intervals, plots, timeline, where it is from.

    The file needs nothing else and asks for nothing: it can be sent, and opens without a network. A run that is not finished is
    reported as far as it came.

    Args:
        directory: of a run, a sweep or a meta-training.
        project: a projection (file or packaged name) to set beside the run: what its algorithms would cost on a real cluster.

    Returns:
        The path of the file; one from before is replaced.

    Raises:
        InvalidInput: not such a folder, a damaged file in it, it cannot be written, or a projection that is wrong.
    """
    swept = is_sweep(directory)
    path = Path(directory) if swept else folders.require_run(directory)
    manifest = {} if swept else folders.read_json(path / "manifest.json", "manifest")
    try:
        if swept:
            text = sweep_page(Sweep.load(path), project)
        elif manifest.get("kind") == folders.META_TRAINING:
            if project is not None:
                raise InvalidInput(
                    "--project", str(project), "with a run or a sweep", "This folder is a meta-training."
                )
            text = _meta_training(path, manifest)
        else:
            text = run_page(RunFiles(path, manifest), project)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        if isinstance(error, InvalidInput):
            raise
        words = f"It is damaged: {type(error).__name__}: {error}."
        raise InvalidInput("DIR", str(path), "a folder as this package writes it", words) from error
    target = path / NAME
    try:
        folders.write_bytes(target, text.encode())
    except OSError as error:
        raise InvalidInput("DIR", str(path), "a folder that can be written", f"{error}.") from None
    return target


def _meta_training(path: Path, manifest: Mapping[str, Any]) -> str:
    """The loss of every task, against outer steps."""
    file = path / "history.npz"
    history = (
        folders.read_arrays(file, "history") if file.is_file() or manifest.get("status") == "finished" else {}
    )
    text = (path / "spec.toml").read_text("utf-8") if (path / "spec.toml").is_file() else ""
    spec = tomllib.loads(text)
    tasks = [str(task.get("name", f"task {place}")) for place, task in enumerate(spec.get("task", []), 1)]
    losses = history.get("losses", np.zeros((0, len(tasks))))
    data: dict[str, Any] = {}
    sections: list[Section | None] = []
    if len(losses):
        data["series"] = series_of(losses, tasks)
        shown = min(WINDOW, len(losses))
        rows = [
            [name, float(values[:shown].mean()), float(values[-shown:].mean())]
            for name, values in zip(tasks, losses.T, strict=True)
        ]
        heads = ["task", f"first {shown} outer steps", f"last {shown} outer steps"]
        caption = "Loss of a window, mean over outer steps; a small recipe shows a mechanism, not a trained optimizer."
        sections.append(Section("results", "Results", table(heads, rows, caption=caption)))
        said = f"Lines: mean over the last {WINDOW} outer steps; episodes begin and end, and a single step says little."
        plot = [element("div", id="series-plot"), element("p", said, class_="small")]
        sections.append(Section("plots", "Meta-loss", plot))
    sections += [
        Section(
            "cost",
            "What it took",
            facts({"wall_s": manifest.get("wall_s") or {}, "cost": manifest.get("cost") or {}}),
        ),
        spec_section(text),
        provenance_section(path, manifest),
    ]
    status, notes = manifest.get("status"), []
    if status != "finished":
        error = manifest.get("error")
        notes.append(
            f"This meta-training is not finished (status: {status})" + (f": {error}" if error else "")
            + f". To go on: decentral resume {path}"
        )  # fmt: skip
    lead = [
        f"Meta-training of a learned optimizer: {some(len(losses), 'outer step')} on {some(len(tasks), 'task')}."
    ]
    return whole_page(str(manifest.get("name") or path.name), manifest, lead, notes, sections, data)
