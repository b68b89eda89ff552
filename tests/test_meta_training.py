"""Meta-training: the estimator is the authors', episodes are what was asked for, an interrupted run ends as a whole one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decentral import Gossip, Optimizer, ProblemTask, learned, meta_train, problem, simulate, topology
from decentral.errors import InvalidInput, InvalidInputs
from decentral.experiment import folder as folders
from decentral.experiment import meta as running
from decentral.experiment.meta import (
    Loop,
    MetaTrainingFailed,
    load_meta_spec,
    resume_meta_training,
    run_meta_training,
)
from decentral.experiment.spec import load_spec
from decentral.learned.meta_parameters import HAND_MADE, SHIPPED, load_meta_parameters, provenance
from decentral.learned.meta_training import PES, MetaTraining
from decentral.learned.pes import pes_gradient
from decentral.problem.pytrees import pytree, static

DATA = Path(__file__).parent / "data"
estimate = jax.jit(pes_gradient)

pytestmark = pytest.mark.usefixtures("compiled_once")
TOY = PES(
    outer_steps=40, perturbations=8, truncation=4, episode_steps=(4, 9), learning_rate=0.3, warmup_steps=2
)


@pytree
class Bowl:
    """Gradient descent on scale x^2; the meta-parameter is the logarithm of the learning rate."""

    scale: float = 1.0
    size: int = static(default=3)
    name: str = static(default="bowl")
    max_steps: int | None = static(default=None)

    def start(self, meta, key):
        return jax.random.normal(key, (self.size,), jnp.float32), key, jnp.zeros((), jnp.int32)

    def step(self, meta, state):
        x, key, count = state
        loss = jnp.mean(self.scale * x**2)
        return (x * (1 - 2 * self.scale * jnp.exp(meta["log_rate"])), key, count + 1), loss


def begin(log_rate: float = -4.0) -> dict:
    return {"log_rate": jnp.asarray(log_rate, jnp.float32)}


@pytest.fixture(scope="module")
def toy() -> MetaTraining:
    scales = (1.0, 0.5)
    return MetaTraining([Bowl(jnp.float32(scale)) for scale in scales], TOY)


def loop_of(training: MetaTraining) -> Loop:
    return Loop(training, begin(), 3)


def test_the_pes_gradient_is_the_authors():
    with np.load(DATA / "pes_grad.npz") as file:
        recorded = dict(file)
    gradient, accumulated = estimate(
        *(jnp.asarray(recorded[key]) for key in ("loss_pos", "loss_neg", "is_done", "accumulator", "perturbation")),
        recorded["std"],
        jnp.asarray(recorded["mask"]),
    )  # fmt: skip
    np.testing.assert_allclose(gradient, recorded["grad"], rtol=0, atol=1e-6 * np.abs(recorded["grad"]).max())
    np.testing.assert_array_equal(accumulated, recorded["new_accumulator"])


def test_windows_together_have_the_gradient_of_the_whole_episode():
    """x moves by theta in each of 6 steps, the loss is x^2 / 2: windows of 3, each with perturbations of its own."""
    theta, std, pairs = 0.7, 0.1, 100_000
    rng = np.random.default_rng(0)
    ends, total = [np.zeros(pairs), np.zeros(pairs)], {"theta": jnp.zeros(pairs)}
    found = 0.0
    for _ in range(2):
        shift = std * rng.standard_normal(pairs)
        losses = [[], []]
        for _ in range(3):
            for side, sign in enumerate((1, -1)):
                ends[side] = ends[side] + theta + sign * shift
                losses[side].append(ends[side] ** 2 / 2)
        gradient, total = estimate(
            *map(jnp.asarray, losses), jnp.zeros((3, pairs), bool), total, {"theta": jnp.asarray(shift)}, std
        )
        found += float(gradient["theta"])
    expected = sum(k**2 * theta for k in range(1, 7)) / 3  # a window's loss is the mean over its 3 steps
    assert found == pytest.approx(expected, rel=0.02)


def test_a_step_that_does_not_count_may_be_anything():
    ones, nan = jnp.ones((2, 1)), jnp.array([[1.0], [jnp.nan]])
    none, shift = jnp.zeros((2, 1), bool), {"theta": jnp.ones(1)}
    counted = jnp.array([[True], [False]])
    gradient, _ = estimate(3 * nan, ones, none, jax.tree.map(jnp.zeros_like, shift), shift, 1.0, counted)
    assert float(gradient["theta"]) == 1.0


def test_episodes_have_the_lengths_asked_for_and_do_not_end_together(toy):
    state, seen = toy.begin(begin(), 0), []
    for _ in range(12):
        before = state.episodes[0]
        state, _ = toy.step(state)
        after = state.episodes[0]
        *_, steps = after.ends
        if not seen:
            assert (steps == TOY.truncation).all(), "no episode ends inside the first window"
        # the task's own count of its steps, at both ends of a pair; the first episode begins as if older than it is
        late = np.where(after.number == 1, after.age - steps[..., 0], 0)
        np.testing.assert_array_equal(steps[..., 0], steps[..., 1])
        np.testing.assert_array_equal(after.age - late, steps[..., 0])
        assert ((late >= 0) & (late < TOY.truncation)).all()
        assert (after.number - before.number <= 1).all()
        assert (after.age <= after.length).all()
        fresh = np.asarray(after.number) > np.asarray(before.number)
        seen += np.asarray(after.length)[fresh].tolist()
        # a new episode knows the perturbation of its first window only
        grown = np.asarray(after.accumulated["log_rate"] - before.accumulated["log_rate"])
        assert (np.abs(grown[~fresh]) < 6 * TOY.std).all()
        assert (np.abs(np.asarray(after.accumulated["log_rate"])[fresh]) < 6 * TOY.std).all()
    low, high = TOY.episode_steps
    assert {low, high} <= set(seen) <= set(range(low, high + 1))
    assert len(np.unique(np.asarray(state.episodes[0].age))) > 1


def test_it_learns_and_is_compiled_once(toy):
    loop = loop_of(toy)
    told = []
    loop.run(told.append)
    history = loop.result().history
    assert history["losses"].shape == (40, 2)
    assert history["losses"][-10:].mean() < 0.5 * history["losses"][:10].mean()
    assert -4 < float(loop.state.meta["log_rate"]) < 0, (
        "a learning rate between the start and the edge of stability"
    )
    assert [progress.step for progress in told] == list(range(1, 41))
    assert toy._step._cache_size() == 1
    assert toy.groups == [[0, 1]], "tasks of equal shapes are computed together"


def test_taken_up_it_ends_as_if_never_cut_off(toy):
    whole, first = loop_of(toy), loop_of(toy)
    whole.run(lambda progress: None)

    def cut(progress):
        if progress.step == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(cut)
    second = loop_of(toy)
    second.restore(first.snapshot())
    second.run(lambda progress: None)
    jax.tree.map(np.testing.assert_array_equal, whole.snapshot() | CLOCKS, second.snapshot() | CLOCKS)
    with pytest.raises(ValueError, match="state"):
        loop_of(MetaTraining([Bowl()], TOY)).restore(first.snapshot())


CLOCKS = {"wall_compile": 0, "wall_train": 0, "processor_s": 0}


@pytree
class Precise(Bowl):
    """Its losses are float64, its meta-parameters float32."""

    def step(self, meta, state):
        state, loss = super().step(meta, state)
        return state, loss.astype(jnp.float64)


def test_the_state_keeps_its_precision():
    """Else the second outer step is compiled anew, and no checkpoint fits."""
    training = MetaTraining([Precise()], TOY)
    before = training.begin(begin(), 0)
    after, told = jax.eval_shape(training._step, training._tasks, before)
    assert told.losses.dtype == jnp.float64
    kinds = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (before, after)]
    assert kinds[0] == kinds[1]


def test_a_gradient_that_is_none_stops_it_and_keeps_what_is_good(toy):
    loop = loop_of(toy)

    def spoil(progress):
        if progress.step == 5:
            episodes = loop.state.episodes[0]
            x, *rest = episodes.ends
            broken = episodes._replace(ends=(x.at[1, 0, 1].set(jnp.nan), *rest), length=episodes.length + 99)
            loop.state = loop.state._replace(episodes=(broken,))

    with pytest.raises(
        MetaTrainingFailed, match=r"outer step 6: the losses of bowl are NaN.*learning_rate"
    ) as failed:
        loop.run(spoil)
    assert failed.value.step == 6
    so_far = failed.value.so_far
    assert np.isfinite(so_far.meta_parameters["log_rate"])
    assert so_far.history["losses"].shape == (5, 2)
    assert np.isfinite(so_far.history["losses"]).all()


def test_a_first_step_that_is_none_leaves_an_empty_history(toy):
    loop = loop_of(toy)
    episodes = loop.state.episodes[0]
    x, *rest = episodes.ends
    broken = episodes._replace(ends=(x.at[1, 0, 1].set(jnp.nan), *rest), length=episodes.length + 99)
    loop.state = loop.state._replace(episodes=(broken,))
    with pytest.raises(MetaTrainingFailed, match="outer step 1") as failed:
        loop.run(lambda progress: None)
    assert failed.value.so_far.history["losses"].shape == (0, 2)
    assert loop.snapshot()["losses"].shape == (0, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"perturbations": 7}, r"perturbations: got 7; allowed: an even number.*antithetic pairs"),
        ({"episode_steps": (3, 9)}, r"episode_steps: got \[3, 9\].*truncation = 4"),
        ({"episode_steps": (9, 5)}, "ascending"),
        ({"episode_steps": 9}, "shortest and the longest"),
        ({"std": 0.0}, "std: got 0.0"),
        ({"outer_steps": 0}, "outer_steps: got 0"),
        ({"warmup_steps": 40}, "fewer than outer_steps = 40"),
        ({"learning_rate": float("nan")}, "learning_rate: got nan"),
        ({"clip": -1.0}, "clip: got -1.0"),
    ],
)
def test_what_pes_refuses(changes, words):
    with pytest.raises(InvalidInput, match=words):
        dataclasses.replace(TOY, **changes)


def test_what_meta_training_refuses():
    with pytest.raises(InvalidInput, match="at least one task"):
        MetaTraining([], TOY)
    with pytest.raises(InvalidInput, match=r"tasks: got 1; allowed: tasks\. E\.g\. decentral\.ProblemTask"):
        meta_train([1])
    with pytest.raises(InvalidInput, match="at most the 8 steps of bowl"):
        MetaTraining([Bowl(max_steps=8)], TOY)
    with pytest.raises(InvalidInput, match="devices: got 3; allowed: a divisor of the 4 pairs"):
        MetaTraining([Bowl()], TOY, devices=3)
    small = problem.quadratic(n=1, d=3, dtype="float32")
    with pytest.raises(InvalidInput, match="Only a learned optimizer has meta-parameters"):
        ProblemTask(small, Optimizer("sgd", learning_rate=0.1))
    mup = Optimizer("learned", meta_parameters="hand_made", parametrization="mup")
    with pytest.raises(InvalidInput, match="whose tensors have no roles"):
        ProblemTask(small, mup)
    task = ProblemTask(small, {"kind": "learned", "meta_parameters": "hand_made"})
    for arguments, words in (
        ({"initial": "mulo_small"}, "initial: got 'mulo_small'"),
        ({"seed": -1}, "seed: got -1"),
    ):
        with pytest.raises(InvalidInput, match=words):
            meta_train(task, **arguments)


def spec(**changes) -> dict:
    task = {
        "problem": {
            "kind": "mlp",
            "data": "teacher",
            "hidden": [8],
            "batch_size": 16,
            "parametrization": "mup",
        },
        "optimizer": {"kind": "learned", "parametrization": "mup"},
    }
    pes = {"outer_steps": 6, "perturbations": 4, "truncation": 5, "episode_steps": [5, 10], "warmup_steps": 2}
    return {"name": "tiny", "hidden": 4, "pes": pes, "task": [task], **changes}


def with_task(**changes) -> dict:
    task = {key: value for key, value in (spec()["task"][0] | changes).items() if value is not None}
    return spec(task=[task])


TWO = [
    {"kind": "sgd", "name": name, "optimizer": {"kind": "learned", "parametrization": "mup"}}
    for name in ("sgd", "again")
]


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        (spec(pes={"perturbations": 5}), "pes.perturbations: got 5; allowed: an even number"),
        (spec(pes={"sigma": 0.1}), r"pes.sigma: .* Allowed: .*std"),
        (spec(task=[]), "task: none"),
        (spec(topology={"kind": "ring"}), "topology: not of a meta-training.*decentral run"),
        (spec(hiden=4), "Did you mean 'hidden'"),
        (spec(initial="no_such"), "initial: got 'no_such'"),
        (with_task(optimizer={"kind": "sgd", "learning_rate": 0.1}), r"task.0.optimizer: .* kind = \"learned\""),
        (
            with_task(optimizer={"kind": "learned", "meta_parameters": "hand_made"}),
            "task.0.optimizer.meta_parameters: .* initial",
        ),
        (with_task(problem={"kind": "mpl"}), r"task.0.problem.kind: got 'mpl'. Did you mean 'mlp'"),
        (with_task(problem=None), "task.0.problem: missing"),
        (with_task(width=3), "task.0.width"),
        (with_task(kind="trace"), r"task.0.optimizer: .* a key of a task of kind 'trace'"),
        (with_task(kind="tarce"), "Did you mean 'trace'"),
        (
            spec(task=[load_meta_spec("mulo_stale").task[0] | {"algorithm": TWO}]),
            r"task.0.algorithm: got \['sgd', 'again'\]; allowed: one algorithm",
        ),
    ],
)  # fmt: skip
def test_what_a_spec_refuses(tables, words):
    with pytest.raises(InvalidInputs, match=words):
        load_meta_spec(tables)


def test_each_command_names_the_other_one():
    with pytest.raises(InvalidInputs, match="decentral meta-train SPEC"):
        load_spec(spec())


def test_a_spec_is_read_overridden_and_written_back():
    read = load_meta_spec(spec(seed=4), overrides=["pes.outer_steps=9", "name=other"])
    assert (read.name, read.seed, read.hidden, read.pes.outer_steps) == ("other", 4, 4, 9)
    from_learned = load_meta_spec(
        {key: item for key, item in spec(initial="mulo_small").items() if key != "hidden"}
    )
    for one in (read, from_learned):  # a folder keeps what it is resumed by
        assert load_meta_spec(one.as_dict()) == one
    assert from_learned.first().hidden == 16
    (task,) = read.tasks()
    assert task.name == "mlp_teacher"
    assert task.optimizer.arguments["parametrization"] == "mup"
    assert read.first() == load_meta_spec(spec(seed=4)).first()
    assert read.first() != load_meta_spec(spec(seed=5)).first()


def test_the_specs_on_traces_have_one_budget():
    """200 updates of 64 samples in 40 steps, from as many perturbations and outer steps."""
    specs = [load_meta_spec(name) for name in ("mulo_stale", "mulo_sync")]
    assert specs[0].pes == specs[1].pes
    for read in specs:
        (table,) = read.task
        assert table["stop"]["gradients"] * table["problem"]["batch_size"] == 200 * 64
        assert table["steps"] == read.pes.episode_steps[1] == 40


@pytest.mark.parametrize("name", ["mulo_small", "lo_small"])
def test_the_packaged_recipes_are_the_mini_recipe(name):
    read, small = load_meta_spec(name), load_meta_spec(name, smoke=True)
    assert read.hidden == 16
    assert [table["problem"]["hidden"] for table in read.task] == [[w, w, w] for w in (16, 32, 64)]
    assert dataclasses.asdict(read.pes) == dataclasses.asdict(PES())
    assert small.pes.outer_steps < 10


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != HAND_MADE])
def test_what_is_shipped_was_made_by_its_spec(name):
    origin, read = provenance(name), load_meta_spec(name)
    assert load_meta_spec(origin["spec"]) == read
    assert origin["outer_steps"] == read.pes.outer_steps
    assert origin["commit"]["hash"]
    assert not origin["commit"]["modified"]
    assert origin["cost"]["processor_s"] < 600
    assert load_meta_parameters(name).hidden == read.hidden
    assert (Path(learned.__file__).parent / "data" / f"{name}.npz").stat().st_size < 20_000


# -- the whole way: minutes of compiling ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A meta-training from a spec, never cut off."""
    path = tmp_path_factory.mktemp("meta") / "whole"
    return run_meta_training(load_meta_spec(spec()), out=path)


@pytest.mark.slow
def test_a_folder_holds_the_meta_parameters_and_where_they_come_from(finished, capsys):
    files = {path.name for path in finished.folder.iterdir()}
    assert files == {"spec.toml", "manifest.json", "history.npz", "meta_parameters.npz", "meta_loss.png"}
    manifest = json.loads((finished.folder / "manifest.json").read_text())
    assert (manifest["status"], manifest["kind"], manifest["devices"]) == ("finished", "meta-training", 1)
    assert manifest["cost"]["inner_steps"] == 6 * 5 * 4
    origin = provenance(finished.folder / "meta_parameters.npz")
    assert origin["outer_steps"] == 6
    assert load_meta_spec(origin["spec"]) == finished.spec == load_meta_spec(finished.folder / "spec.toml")
    assert origin["seed"] == 0
    assert origin["versions"]["jax"] == jax.__version__
    assert origin["cost"]["processor_s"] > 0
    history = folders.read_arrays(finished.folder / "history.npz", "history")
    assert history["losses"].shape == (6, 1)
    # made for nothing but to be used: by name of the file, under gossip
    optimizer = {
        "kind": "learned",
        "parametrization": "mup",
        "meta_parameters": str(finished.folder / "meta_parameters.npz"),
    }
    students = problem.mlp(n=2, data="teacher", hidden=(8,), batch_size=16, parametrization="mup")
    result = simulate(students, topology.named("path", n=2), Gossip(optimizer=optimizer), stop=2.0)
    assert np.isfinite(result.metrics["loss"]).all()
    with pytest.raises(InvalidInput, match="not finished"):
        resume_meta_training(finished.folder)


@pytest.mark.slow
def test_cut_off_and_resumed_the_files_are_the_same(finished, tmp_path, monkeypatch):
    path, seen = tmp_path / "cut", []

    def cut(name, progress):
        def report(told):
            seen.append(told.step)
            if told.step == 4 and len(seen) == 4:
                raise KeyboardInterrupt

        return contextlib.nullcontext(report)

    monkeypatch.setattr(running, "_reporter", cut)
    with pytest.raises(KeyboardInterrupt):
        run_meta_training(load_meta_spec(spec()), out=path, checkpoint_every_s=0.0)
    assert json.loads((path / "manifest.json").read_text())["status"] == "interrupted"
    assert load_meta_parameters(path / "meta_parameters.npz").hidden == 4, "there are some already"
    spoiled = path / "spec.toml"
    before = spoiled.read_text()
    spoiled.write_text(before + "\n")
    with pytest.raises(InvalidInput, match=r"spec\.toml"):
        resume_meta_training(path)
    spoiled.write_text(before)
    resumed = resume_meta_training(path)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert not (path / "checkpoint").exists()
    assert (path / "history.npz").read_bytes() == (finished.folder / "history.npz").read_bytes()
    assert resumed.trained.meta_parameters == finished.trained.meta_parameters


@pytest.mark.slow
def test_pairs_on_two_devices_are_those_on_one(finished):
    """Two devices are forced in a process of its own: the sum over pairs is taken in another order, nothing else changes."""
    script = (
        "import jax, json, sys\n"
        "from decentral.experiment.meta import load_meta_spec\n"
        "read = load_meta_spec(json.loads(sys.argv[1]))\n"
        "loop = read.loop()\n"
        "assert loop.training.devices == jax.device_count() == 2\n"
        "assert all(len(leaf.sharding.device_set) == 2 for leaf in jax.tree.leaves(loop.state.episodes))\n"
        "loop.run(lambda told: None)\n"
        "print(json.dumps(loop.history()['losses'].tolist()))\n"
    )
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_ENABLE_X64": "1"}
    command = [sys.executable, "-c", script, json.dumps(spec())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = np.array(json.loads(done.stdout.splitlines()[-1]))
    np.testing.assert_allclose(found, finished.trained.history["losses"], rtol=1e-5)


@pytest.mark.slow
def test_a_fixed_trace_is_a_task(tmp_path):
    trained = run_meta_training("mulo_stale", smoke=True, out=tmp_path / "run").trained
    assert trained.history["losses"].shape == (3, 1)
    assert np.isfinite(trained.history["losses"]).all()
    assert trained.history["gradient_norm"].min() > 0, "the network of random weights moves the models"


@pytest.mark.slow
def test_a_short_meta_training_learns():
    """One width, shorter windows and episodes, 150 outer steps: the loss falls below ln 8, where models begin in µP."""
    student = problem.mlp(n=1, data="teacher", hidden=(16, 16, 16), batch_size=64, parametrization="mup")
    task = ProblemTask(student, Optimizer("learned", meta_parameters="hand_made", parametrization="mup"))
    pes = PES(outer_steps=150, learning_rate=1e-2, perturbations=16, truncation=10, episode_steps=(10, 40))
    trained = meta_train(task, pes, hidden=8)
    losses = trained.history["losses"]
    assert losses[:5].mean() == pytest.approx(np.log(8), abs=0.1)
    assert losses[-20:].mean() < np.log(8) - 0.1
