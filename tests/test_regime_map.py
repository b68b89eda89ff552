"""The regime map: cells are where they say, the winner is who was first, real clusters are where hand computation puts them."""

import json
from pathlib import Path

import numpy as np
import pytest

from decentral.analysis.claims import Claim
from decentral.experiment.figures import Runs, load_script
from decentral.experiment.shapes import shapes_of, size_of

MAP = load_script(Path(__file__).parents[1] / "paper_figures" / "regime_map.py")


class Run:
    """A cell as its run folder tells it: every method reaches the target where ``times`` says, one number per seed."""

    def __init__(self, path, times, edges=()):
        path.mkdir(exist_ok=True)
        (path / "tuning.json").write_text(
            json.dumps({"algorithms": {name: {"edge": name in edges} for name in times}})
        )
        self.path, self.algorithms, self._times = path, list(times), times

    def metric(self, name, what):
        """Records at 0, 1, ... 100 s; the loss falls through the target halfway between two of them or at one."""
        time_s = np.tile(np.arange(101.0), (len(self._times[name]), 1))
        if what == "time_s":
            return time_s
        return MAP.TARGET * np.exp((np.array(self._times[name])[:, None] - time_s) / 10)


def everyone(time_s, **others):
    """All methods at one time on five seeds, but for some: ``ad_psgd=[...]``."""
    others = {name.replace("_", "-"): times for name, times in others.items()}
    return {name: others.get(name, [time_s] * 5) for name in (*MAP.SYNCHRONOUS, *MAP.ASYNCHRONOUS)}


NEVER = float("inf")


def test_every_cell_has_the_ratio_and_the_spread_it_says():
    assert len(MAP.CELLS) == len(MAP.RATIOS) * len(MAP.SPREADS) * len(MAP.PARTITIONS)
    sizes = set()
    for (partition, ratio, spread), experiment in MAP.CELLS.items():
        spec = experiment.load_spec()
        assert {*spec.algorithm_names()} == {*MAP.SYNCHRONOUS, *MAP.ASYNCHRONOUS}
        assert {len(*grid.values()) for grid in spec.grids().values()} == {5}
        assert len(spec.grids()) == len(spec.algorithm)
        assert spec.problem.partition == partition
        assert spec.record.target == spec.tune.target == MAP.TARGET
        cluster = spec.cluster_object()
        speeds = cluster.speed_of(spec.topology.n, seed=3)
        assert speeds.max() / speeds.min() == pytest.approx(spread, rel=1e-6)
        assert cluster.gradient_rate(spec.topology.n) == pytest.approx(1 / MAP.GRADIENT_S, rel=1e-6)
        _, ns_per_byte = cluster.links.arc_arrays(np.array([0]), np.array([1]), seed=3)
        assert ns_per_byte[0] * MAP.MESSAGE_BYTES / 1e9 == pytest.approx(ratio * MAP.GRADIENT_S)
        sizes.add((spec.problem.kind, tuple(spec.problem.hidden), spec.problem.data))
    assert len(sizes) == 1


def test_the_problem_sends_what_the_ratio_assumes_and_leaves_no_worker_without_data():
    spec = MAP.PLAIN.load_spec()
    problem = spec.problem_of(spec.seed)
    assert size_of(shapes_of(problem, spec.algorithms()["gossip"]).params) == MAP.MESSAGE_BYTES
    for seed in range(spec.seed, spec.seed + spec.seeds + spec.tune.seeds):
        spec.problem_of(seed)  # refused where a worker has no samples


@pytest.mark.parametrize(
    ("name", "ratio"),
    [
        # bytes x seconds per byte over (FLOPs x tokens) / FLOP rate, all per parameter
        ("nvlink_node", 2 / 360e9 / (6 * 16384 / (989.5e12 * 0.46))),
        ("a40_25gbe", 2 * 4 / 3.125e9 / (6 * 16384 / (150e12 * 0.4))),  # four workers share a card
        ("jean_zay_a100", 2 * 8 / 16.875e9 / (6 * 16384 / (312e12 * 0.64))),
        # of ten pairs of sites two are on one continent
        ("wan_five", 2 * (0.8 / 62.5e6 + 0.2 / 500e6) / (6 * 16384 / (989.5e12 * 0.433))),
    ],
)
def test_real_clusters(name, ratio):
    assert MAP.place(name) == (pytest.approx(ratio), 1.0)


def test_a_home_sends_no_faster_than_its_neighbour_receives():
    ratio, _ = MAP.place("home_broadband")
    per_second = 165e12 * 0.4 / (6 * 16384) * 2
    assert per_second / 62.5e6 < ratio < per_second / 2.5e6


def test_the_first_wins_alone_only_if_chance_is_excluded(tmp_path):
    spread = np.array([-0.4, -0.2, 0.0, 0.2, 0.4])
    clear = Run(tmp_path, everyone(40.0, gossip=20 + spread, d_psgd=25 + spread))
    found = MAP.outcome(clear)
    assert found.names == ("gossip",)
    assert found.asynchronous
    assert found.time_s == pytest.approx(20.0)
    assert found.margin == pytest.approx(25 / 20)
    assert not found.edge
    # The same means, but the seeds disagree on who was first.
    found = MAP.outcome(
        Run(tmp_path, everyone(40.0, gossip=20 + 20 * spread, d_psgd=25 - 20 * spread), ["d-psgd"])
    )
    assert found.names == ("gossip", "d-psgd")
    assert found.edge


def test_who_missed_the_target_on_one_seed_does_not_win(tmp_path):
    run = Run(tmp_path, everyone(NEVER, ringmaster=[1, 1, 1, 1, NEVER], local_sgd=[30.0] * 5))
    found = MAP.outcome(run)
    assert found.names == ("local-sgd",)
    assert not found.asynchronous
    assert found.margin == np.inf
    assert MAP.outcome(Run(tmp_path, everyone(NEVER, ringmaster=[1, 1, 1, 1, NEVER]))).names == ()


def claim(low, high):
    return Claim("M0", "Regime map", "a ratio", "nowhere", "derived", "convex", (low, high))


@pytest.mark.parametrize(
    ("above", "low", "high", "verdict"),
    [
        (40.0, 1.5, None, "holds"),
        (40.0, 2.5, None, "does not hold"),
        (NEVER, 1.5, None, "holds"),  # at least 100 s, when the records end, over 20
        (NEVER, 6.0, None, "undecided"),
        (NEVER, None, 3.0, "does not hold"),
    ],
)
def test_a_claim_takes_the_bound_where_the_target_was_never_reached(tmp_path, above, low, high, verdict):
    run = Run(tmp_path, everyone(above, gossip=[20.0] * 5))
    sides = (run, ["all-reduce", "d-psgd"]), (run, ["gossip", "a2cid2"])
    checked = MAP.compare(claim(low, high), *sides)
    assert checked.verdict == verdict
    edged = Run(tmp_path, everyone(above, gossip=[20.0] * 5), edges=["a2cid2"])
    assert MAP.compare(claim(low, high), sides[0], (edged, ["gossip", "a2cid2"])).verdict == "undecided"


def test_the_map_is_drawn_and_every_claim_checked(tmp_path):
    """Winners of every kind: alone, in a tie, nobody, the other camp not there."""
    cells = [
        everyone(40.0, gossip=[20.0] * 5),
        everyone(40.0),
        everyone(NEVER),
        everyone(NEVER, balanced=[30.0] * 5),
    ]
    folders = {
        experiment: Run(tmp_path / str(number), cells[number % len(cells)])
        for number, experiment in enumerate(MAP.EXPERIMENTS)
    }

    class Fake(dict):
        smoke = False

    figure = MAP.draw(Fake(folders))
    left, right = figure.axes
    words = [text.get_text() for text in left.texts]
    assert words.count("nobody") == len(MAP.RATIOS) * len(MAP.SPREADS) / len(cells)
    assert sum("A not there" in text for text in words) == words.count("nobody")
    figure.savefig(tmp_path / "map.png")
    checked = MAP.claims(Fake(folders))
    assert len(checked) == 10
    assert left.get_title(loc="left") != right.get_title(loc="left")


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
@pytest.mark.filterwarnings("ignore:.*is the (smallest|largest) of those tried")  # of two
def test_small_runs_are_drawn(tmp_path):
    for experiment in MAP.SMOKE_EXPERIMENTS:
        experiment.make(tmp_path, smoke=True)
    runs = Runs(tmp_path, smoke=True)
    figure = MAP.draw(runs)
    figure.savefig(tmp_path / "map.png")
    left, right = (len(axes.texts) for axes in figure.axes)
    assert right == left + 2 * len(MAP.SMOKE_EXPERIMENTS)  # a name, and a time with the margin
    assert MAP.claims(runs) == []
