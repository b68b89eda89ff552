"""What is different on a GPU, as far as a machine without one can tell, and the script that measures it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import decentral
from decentral import topology
from decentral.problem import Quadratic

ROOT = Path(__file__).parents[1]


def test_rows_are_kept_in_a_cache_on_a_cpu_alone(monkeypatch):
    n, d = 32, 50_000
    network = decentral.Poisson(gradients_per_s=0.0).network(
        topology.named("ring", n=n), decentral.Gossip().demand(decentral.Network(topology.named("ring", n=n)))
    )
    trace = decentral.Poisson(gradients_per_s=0.0).timeline(network, decentral.Time(20.0), 0)
    problem = Quadratic.of(np.ones(n), np.zeros((n, d)), dtype="float32")

    def rows():
        record = decentral.Record(events=(0, len(trace)), evaluate=False)
        algorithm = decentral.Gossip(optimizer={"kind": "sgd", "learning_rate": 0.1})
        return decentral.Simulation(trace, problem, algorithm, network=network, record=record).plan

    on_cpu = rows()
    assert max(on_cpu.widths) == 5  # of two states of 200 kB each, in 2 MiB
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    on_gpu = rows()
    assert max(on_gpu.widths) > 5  # what the ring allows at once
    assert on_gpu.n_rows < on_cpu.n_rows


@pytest.mark.slow
def test_the_script_measures_and_writes_its_page(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "gpu.py"),
        "--smoke",
        "--write",
        "--docs",
        str(tmp_path),
        "--n",
        "8",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert [line["workload"] for line in kept["cpu"]["lines"]] == ["logistic", "mlp", "gossip"]
    for line in kept["cpu"]["lines"]:
        assert line["events_per_s"] > 0
        assert line["events_per_row"] > 1
    text = (tmp_path / "gpu.md").read_text()
    assert "No GPU has been measured" in text
    assert done.stdout.count("| logistic | 8 |") == 1
    # A table measured elsewhere stays, and then the page no longer says that there is none.
    kept["cuda"] = {"about": kept["cpu"]["about"] | {"device": "H100"}, "lines": kept["cpu"]["lines"]}
    (tmp_path / "gpu.json").write_text(json.dumps(kept))
    subprocess.run([*command, "--only", "gossip"], env=environment, check=True, capture_output=True)
    text = (tmp_path / "gpu.md").read_text()
    assert "## CUDA: H100" in text
    assert "No GPU has been measured" not in text
