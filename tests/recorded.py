"""Read the recorded runs of the authors' classes and replay them through the public API.

The files (``tests/data/recorded``: ``runs.json`` and one npz per run) were produced by the authors' optimizer classes
driven by an event list; see ``meta`` in ``runs.json``. Point ``--recorded-dir`` at another folder of the same format to
replay other runs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import decentral
from decentral.algorithm import ADOMState
from decentral.engine.trace import Groups
from decentral.problem import (
    Quadratic,
    least_squares_from_arrays,
    logistic_from_arrays,
    noise_table_from_events,
)

FIELDS = {  # name in the npz -> field of the state
    "x": "x", "xt": "x_tilde",
    "X": "x", "X_tilde": "x_tilde", "Y": "y", "Y_tilde": "y_tilde", "Z": "z", "Z_tilde": "z_tilde",
    "M": "m", "X_f": "x_f", "Y_f": "y_f", "Z_f": "z_f",
}  # fmt: skip
CONSTANTS = (
    "nu",
    "eta",
    "alpha",
    "alpha_tilde",
    "theta",
    "beta",
    "beta_tilde",
    "delta",
    "delta_tilde",
    "gamma",
    "gamma_tilde",
)


def load(
    folder: Path, kinds=("DADAO", "A2CiD2", "async baseline", "MSDA", "ADOM+", "Continuized")
) -> dict[str, dict]:
    """Name -> recorded run of the algorithms that are here."""
    runs = json.loads((folder / "runs.json").read_text())["runs"]
    return {name: run for name, run in runs.items() if run["algo"].startswith(kinds)}


def arrays(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def problem_of(run: dict, data: dict):
    """The objective of a recorded run, in float64."""
    if "task" in run:
        features, targets = data["D"], data["b"][..., 0]
        if run["task"] == "linear":
            return least_squares_from_arrays(features, targets)
        return logistic_from_arrays(features, targets, l2=run["mu"])
    noise = noise_table_from_events(data["ab"][data["kind"] == 0, 0], data["noise"], run["n"])
    return Quadratic.of(data["A"], data["c"], noise_table=noise)


def algorithm_of(run: dict):
    """The algorithm of a recorded run, every constant given explicitly."""
    if run["algo"].startswith("DADAO"):
        if "constants" in run:
            return decentral.DADAO(**{name: run["constants"][name] for name in CONSTANTS})
        return decentral.DADAO(mu=run["mu"], L=run["L"], chi_1=run["chi_1_star"])
    if run["algo"].startswith("ADOM+"):
        return decentral.ADOM(mixings=run["n_matrix"], scale=1.0, **run["constants"])
    if run["algo"] == "MSDA":
        own = run["constants"]
        _, largest = gossip(
            run
        )  # theirs is the Laplacian over the number of edges, ours over its largest eigenvalue
        c_3 = own["c_3"] * largest[0] / len(run["graphs"][0])
        return decentral.MSDA(
            mixings=own["K"], c_2=own["c_2"], c_3=c_3, eta=own["eta"], momentum=own["momentum"]
        )
    if run["algo"] == "Continuized":
        own, edges = run["constants"], run["graphs"][0]
        inverse = np.linalg.pinv(laplacian(run["n"], edges) / len(edges))
        diagonal = np.diag(inverse)
        resistances = diagonal[:, None] + diagonal - 2 * inverse
        return decentral.Continuized(
            eta=own["eta"], gamma=own["gamma"] * resistances, gamma_tilde=own["gamma_tilde"]
        )
    # The authors' code cannot run without momentum; 1e-30 stands for none.
    optimizer = decentral.Optimizer("sgd", learning_rate=run["lr"], momentum=run["momentum"])
    if run["algo"] == "A2CiD2":
        order = {"sde": "sde", "official": "released"}[run["semantics"]]
        return decentral.A2CiD2(
            optimizer=optimizer,
            eta=run["eta"],
            alpha=run["alpha"],
            alpha_tilde=run["alpha_tilde"],
            order=order,
        )
    return decentral.Gossip(optimizer=optimizer, alpha=run["alpha"])


def laplacian(n: int, edges) -> np.ndarray:
    matrix = np.zeros((n, n))
    for i, j in edges:
        matrix[[i, j], [i, j]] += 1
        matrix[[i, j], [j, i]] -= 1
    return matrix


def gossip(run: dict) -> tuple[list[np.ndarray], list[float]]:
    """``I - L / lambda_max(L)`` of each graph, and ``lambda_max(L)``."""
    laplacians = [laplacian(run["n"], edges) for edges in run["graphs"]]
    largest = [float(np.linalg.eigvalsh(matrix)[-1]) for matrix in laplacians]
    return [np.eye(run["n"]) - a / b for a, b in zip(laplacians, largest, strict=True)], largest


def rounds_of(run: dict) -> decentral.Trace:
    """One gradient of everyone, then the mixing steps of a round. ADOM+'s code applies a round's graphs in reverse order."""
    n, graphs = run["n"], len(run["graphs"])
    mixings = run.get("n_matrix") or run["constants"]["K"]
    steps = np.arange(run["steps"])
    operands = np.full((run["steps"], n + mixings, 2), -1)
    operands[:, :n, 0] = np.arange(n)
    operands[:, n:, 0] = 0
    operands[:, n:, 1] = (steps[:, None] * mixings + np.arange(mixings)[::-1]) % graphs
    within = np.r_[np.zeros(n), np.arange(1, mixings + 1) / (mixings + 1)]
    op = np.r_[np.zeros(n, int), np.ones(mixings, int)]
    tables = [(*np.nonzero(matrix), matrix[np.nonzero(matrix)]) for matrix in gossip(run)[0]]
    return decentral.Trace.from_arrays(
        (steps[:, None] + within).ravel(),
        np.tile(op, run["steps"]),
        operands.reshape(-1, 2),
        n_workers=n,
        ops=("gradient", "mix"),
        groups=Groups.of(tables),
    )


def start_of(run: dict, data: dict) -> dict:
    """The arguments of ``replay`` that say where the run starts."""
    if run["algo"] in ("MSDA", "Continuized"):
        return {}  # at zero, as they always do
    if "M0" not in data:
        return {"initial": data["X0"] if "X0" in data else data["x0"]}
    x, y, m = (jnp.asarray(data[key]) for key in ("X0", "Y0", "M0"))
    zero, step = jnp.zeros_like(x), jnp.zeros(run["n"], jnp.int32)
    return {"states": ADOMState(x, y, zero, m, x, y, zero, (zero, zero), (zero, zero), step)}


def stored_states(data: dict) -> dict[int, dict[str, np.ndarray]]:
    """Events (or rounds) done -> field -> reference array. The baseline's ``xt`` is never written by the authors' code."""
    states: dict[int, dict[str, np.ndarray]] = {}
    for key, value in data.items():
        if match := re.fullmatch(r"state(\d+)_(\w+)", key):
            states.setdefault(int(match[1]), {})[FIELDS[match[2]]] = value
    return dict(sorted(states.items()))


def replay(run: dict, data: dict, executor: str):
    """``(result, references)``: the replayed run, recorded wherever the file holds a state."""
    per_round = 1
    if "steps" in run:
        trace = rounds_of(run)
        per_round = len(trace) // run["steps"]
    else:
        kind = data.get("kind", np.ones(len(data["t"]), int))  # Continuized has nothing but exchanges
        trace = decentral.Trace.from_arrays(data["t"], kind, data["ab"], n_workers=run["n"])
    references = stored_states(data) or {len(trace): {"x": data["X"]}}
    record = decentral.Record(events=tuple(per_round * k for k in references), states=True)
    result = decentral.replay(
        trace,
        problem_of(run, data),
        algorithm_of(run),
        record=record,
        executor=executor,
        **start_of(run, data),
    )
    return result, references
