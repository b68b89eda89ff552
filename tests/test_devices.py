"""Workers shared out over devices: the plan's shards and routes, the same results, memory, several processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import decentral
from decentral import Cluster, Devices, Faults, InvalidInput, Links, Network, Rendezvous, Rounds, Time
from decentral.engine.plan import make_plan, shard_of_event
from decentral.engine.routes import Routes
from decentral.engine.trace import Trace, merge
from decentral.experiment.devices import blocks_of_data
from decentral.experiment.spec import load_spec
from decentral.topology import named

HERE = Path(__file__).parent
CLUSTER = Cluster(links=Links(latency_s=0.3), faults=Faults(loss=0.1, crash_every_s=15.0, down_s=3.0))


def clocks(protocol, algorithm, n=8, cluster=CLUSTER):
    topology = named("ring", n=n)
    return protocol.network(topology, algorithm.demand(Network(topology)), cluster)


def rendezvous(seeds=(0, 1)):
    """Exchanges in flight, losses and returns: every op whose operands may lie on two devices."""
    protocol = Rendezvous()
    network = clocks(protocol, decentral.Gossip())
    return merge([protocol.timeline(network, Time(40.0), seed) for seed in seeds])


# -- the plan, without any device --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_an_event_is_done_where_its_first_worker_lies(shards):
    trace = rendezvous()
    plan, one = make_plan(trace, [30, len(trace)], shards=shards), make_plan(trace, [30, len(trace)])
    home, block = shard_of_event(trace, shards), trace.total_workers // shards
    assert np.array_equal(home, trace.operands[:, 0] // block)
    rows = np.repeat(np.arange(plan.n_rows), np.diff(plan.row_start))
    row = np.full(len(trace), -1)
    row[plan.event] = rows
    for code, op in enumerate(trace.ops):
        mine = np.flatnonzero((trace.op == code) & (row >= 0))
        width = plan.widths[code]
        # every event in a place of its own, inside its shard's
        assert (plan.column[mine] // max(width, 1) == home[mine]).all()
        assert len(set(zip(row[mine], plan.column[mine], strict=True))) == len(mine)
        for k, operand in enumerate(op.operands):
            if operand.opens:  # kept where the event is
                assert (plan.operands[mine, k] // (plan.slots[operand.bank] // shards) == home[mine]).all()
    # times, counts and what a barrier sees are the trace's, not the plan's
    lasting = np.array(
        [[k < len(op.operands) and op.operands[k].bank == "worker" for k in range(4)] for op in trace.ops]
    )
    assert np.array_equal(plan.count[lasting[trace.op]], one.count[lasting[trace.op]])
    assert np.array_equal(plan.elapsed, one.elapsed)
    assert np.array_equal(plan.last_write_s, one.last_write_s)
    assert plan.slots.keys() == one.slots.keys()


@pytest.mark.parametrize("shards", [4, 8])
def test_what_travels_comes_where_it_is_needed_and_goes_back(shards):
    """Numbers moved by hand as the devices do it: each event gets its operands, and its results reach their elements."""
    trace = rendezvous()
    plan = make_plan(trace, shards=shards)
    routes, home = Routes(plan), shard_of_event(trace, shards)
    names = [op.name for op in trace.ops]
    assert set(routes.of_bank) == {"worker", "pair"}
    arrays = routes.rows(0, plan.n_rows, plan.n_rows)
    for bank, route in routes.of_bank.items():
        each, traffic = plan.bank_sizes[bank] // shards, arrays[bank]
        begins = np.cumsum([0, *(plan.widths[names.index(name)] for name, _ in route.places)])
        assert 1 <= route.capacity <= begins[-1]
        travelled = 0
        for r in range(plan.n_rows):
            # (from, to, place) -> the element's number in the whole bank; then as the receiver sees it
            sent = traffic["take"][r] + each * np.arange(shards)[:, None, None]
            for e in plan.event[plan.row_start[r] : plan.row_start[r + 1]]:
                name = names[trace.op[e]]
                for number, (other, k) in enumerate(route.places):
                    element = plan.operands[e, k] if other == name else None
                    if element is None or element // each == home[e]:
                        continue
                    travelled += 1
                    value = begins[number] + plan.column[e] - home[e] * plan.widths[trace.op[e]]
                    source, place = divmod(int(traffic["got"][r, home[e], value]), route.capacity)
                    assert sent[source, home[e], place] == element
                    assert traffic["back"][r, home[e], source, place] == value
                    written = trace.ops[trace.op[e]].operands[k].writes
                    assert traffic["put"][r, source, home[e], place] == (
                        element - source * each if written else -1
                    )
        assert travelled
        # nothing else is written
        writes = sum(
            int((plan.operands[e, k] // each != home[e]) and trace.ops[trace.op[e]].operands[k].writes)
            for e in plan.event
            for name, k in route.places
            if names[trace.op[e]] == name
        )
        assert (traffic["put"] >= 0).sum() == writes


@pytest.mark.parametrize("shards", [4, 16])
def test_a_mixing_matrix_told_shard_by_shard_is_the_matrix(shards):
    protocol, algorithm = Rounds(), decentral.DPSGD()
    network = clocks(protocol, algorithm, cluster=Cluster())
    trace = merge([protocol.timeline(network, Time(5.0), seed) for seed in (0, 1)])
    plan = make_plan(trace, shards=shards)
    routes, total = Routes(plan), trace.total_workers
    each, sections = total // shards, len(plan.group_event)
    whole = plan.group_rows(0, sections, sections, np.dtype("float64"))["mix"]
    told = routes.group_rows(0, sections, sections, np.dtype("float64"))["mix"]
    messages = np.random.default_rng(0).normal(size=total)
    for s in range(sections):
        expected, got = np.zeros(total), np.zeros(total)
        for replica in range(2):
            at = replica * trace.n_workers
            ours = whole["receiver"][s, replica] < trace.n_workers
            np.add.at(
                expected, at + whole["receiver"][s, replica][ours],
                (whole["weight"][s, replica] * messages[at + whole["sender"][s, replica]])[ours],
            )  # fmt: skip
        sends, entries = 0, 0
        for mixing in routes.mixings:
            for to in range(shards):
                source = (to - mixing.offset) % shards
                came = messages[source * each + told["send"][s, source, sends : sends + mixing.senders]]
                part = slice(entries, entries + mixing.entries)
                receiver = told["receiver"][s, to, part]
                values = (told["weight"][s, to, part] * came[told["sender"][s, to, part]])[receiver < each]
                np.add.at(got, to * each + receiver[receiver < each], values)
            sends, entries = sends + mixing.senders, entries + mixing.entries
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-14)
        assert np.array_equal(told["receives"][s], np.isin(np.arange(total), _receivers(whole, s, trace)))
    # of a ring of 8 cut in two or in eight; a device's own messages, and those of the two ends of its neighbours
    assert [mixing.offset for mixing in routes.mixings] == ([0, 1, 3] if shards == 4 else [0, 1, 7, 9, 15])
    assert all(mixing.senders <= 2 for mixing in routes.mixings if mixing.offset)


def _receivers(whole, s, trace):
    receivers = whole["receiver"][s]
    return (receivers + trace.n_workers * np.arange(len(receivers))[:, None])[receivers < trace.n_workers]


def test_each_device_gets_the_rows_of_the_data_its_workers_have():
    rows, own, shared = blocks_of_data(np.arange(8), 4)
    assert not shared
    assert np.array_equal(rows, np.arange(8))
    assert np.array_equal(own, np.arange(8) % 2)
    # two seeds on one data set: the first half of the devices has the first seed's workers
    row_of = np.tile(np.arange(6), 2)
    rows, own, shared = blocks_of_data(row_of, 4)
    assert not shared
    blocks = rows.reshape(4, -1)
    assert np.array_equal(blocks[np.arange(12) // 3, own], row_of)
    assert blocks.shape == (4, 3)
    # each device has whole seeds, or all have the same data: nothing is cut
    assert blocks_of_data(row_of, 2)[2]
    rows, own, shared = blocks_of_data(np.zeros(12, int), 4)
    assert shared
    assert np.array_equal(rows, [0])
    assert not own.any()


# -- what is wrong is said ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"count": 0}, "devices.count"),
        ({"count": True}, "devices.count"),
        ({"count": 3, "processes": 2}, "a multiple of the 2 processes"),
        ({"processes": 0}, "devices.processes"),
        ({"processes": 2, "process": 2}, "devices.process"),
        ({"coordinator": "node0"}, "host:port"),
        ({"count": 64}, "which JAX has"),
        ({"count": 64}, "xla_force_host_platform_device_count"),
    ],
)
def test_devices_that_are_none(arguments, words):
    with pytest.raises(InvalidInput, match=words):
        Devices(**arguments).chosen()


def test_devices_have_to_share_the_workers_evenly():
    trace = Trace.from_arrays([0.1], [0], [[2, -1]], n_workers=6)
    with pytest.raises(InvalidInput, match="a divisor of 6 workers"):
        make_plan(trace, shards=4)
    with pytest.raises(InvalidInput, match="a divisor of 12, 6 workers x 2 seeds"):
        make_plan(merge([trace, trace]), shards=5)


def test_processes_are_met_before_anything_is_computed(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
    import jax

    jax.devices()
    with pytest.raises(InvalidInput, match=r"(connect\(\)|JAX_PROCESS_ID)"):
        Devices(processes=2).connect()
    monkeypatch.setenv("JAX_PROCESS_ID", "two")
    with pytest.raises(InvalidInput, match="JAX_PROCESS_ID: got 'two'"):
        Devices(processes=2, coordinator="localhost:1").connect()


SPEC = {
    "name": "spread",
    "topology": {"kind": "ring", "n": 8},
    "problem": {"kind": "quadratic", "d": 3, "dtype": "float64", "noise": 0.5},
    "stop": {"kind": "time", "time_s": 20.0},
    "record": {"count": 4},
    "algorithm": [{"kind": "a2cid2"}],
    "seeds": 2,
}


def test_a_spec_says_its_devices():
    spec = load_spec(SPEC | {"devices": {"count": 4, "processes": 2, "coordinator": "node0:1234"}})
    assert spec.devices_object() == Devices(4, 2, "node0:1234")
    assert load_spec(SPEC).devices_object() is None
    assert "devices" not in load_spec(SPEC).as_dict()  # hashes of specs without devices stay what they were
    for table, words in (
        ({"count": 3}, "devices.count: got 3; allowed: a divisor of 16"),
        ({"process": 1}, "devices.process: unknown key"),
        ({"processes": -1}, "devices.processes"),
    ):
        with pytest.raises(InvalidInput, match=words):
            load_spec(SPEC | {"devices": table})
    tuned = {"tune": {"algorithm": {"a2cid2": {"eta": [0.1, 0.2]}}}}
    with pytest.raises(InvalidInput, match=r"devices.processes: got 2; allowed: 1 with a table \[tune\]"):
        load_spec(SPEC | {"devices": {"processes": 2}} | tuned)


# -- four devices, in a process of their own ---------------------------------------------------------------------------


def four_devices(*words):
    """What tests/many_devices.py prints."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, str(HERE / "many_devices.py"), *words], env=environment, capture_output=True, text=True, timeout=900
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_four_devices_give_what_one_gives():
    found = four_devices("families", "float64", "a2cid2", "rendezvous", "mailbox", "mix", "average")
    for name, numbers in found.items():
        assert numbers["metrics"] <= 1e-12, name
        assert numbers["states"] <= 1e-12, name
        assert numbers["devices"]["count"] == 4
        assert numbers["devices"]["workers_of_each"] == 8  # 16 workers x 2 seeds
    # what the families have between devices, so that none passes because nothing travelled
    travels = {
        name: set(filter(numbers["devices"]["travels"].get, numbers["devices"]["travels"]))
        for name, numbers in found.items()
    }
    assert travels["a2cid2"] == {"worker"}
    assert travels["rendezvous"] == {"worker", "pair"}
    assert travels["mailbox"] == {"message"}
    assert travels["mix"] == {"mixed"}


@pytest.mark.slow
def test_four_devices_give_what_one_gives_in_float32():
    for name, numbers in four_devices("families", "float32", "rendezvous", "mix").items():
        assert numbers["metrics"] <= 1e-5, name
        assert numbers["states"] <= 1e-5, name


@pytest.mark.slow
def test_resuming_diverging_and_refusing_on_devices():
    found = four_devices("resumed", "diverged", "refused")
    assert found["resumed"]["position"] > 0
    assert found["resumed"]["same"]  # bit for bit
    one, many = found["diverged"]
    assert one == many  # the same first bad event
    messages = found["refused"]
    assert "1 with one copy of the parameters" in messages["server"]
    assert "'rows' on several devices" in messages["eager"]
    assert "messages of continuized in an exchange hold a gradient" in messages["dual"]
    assert "a divisor of 8 workers" in messages["uneven"]


@pytest.mark.slow
def test_the_memory_of_a_device_falls_with_their_number():
    """n = 4,096: state and data, what the compiled loop adds to them, and what a record adds."""
    four, one = four_devices("memory")
    assert four["live"] <= one["live"] / 3
    for program in ("run", "record"):
        assert four["live"] + four["extra"][program] <= (one["live"] + one["extra"][program]) / 3, program
    np.testing.assert_allclose(four["loss"], one["loss"], rtol=1e-5)


# -- two processes -----------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def together(*words, processes=2, **environment):
    """The same command in several processes; what each printed."""
    command = [sys.executable, "-m", "decentral.cli", *words]
    base = (
        os.environ
        | {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}"}
        | environment
    )
    started = [
        subprocess.Popen(
            command, env=base | {"JAX_PROCESS_ID": str(k)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for k in range(processes)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=900) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(started, outputs, strict=True)]


TOML = """
name = "spread"
seeds = 2
topology = { kind = "ring", n = 8 }
problem = { kind = "quadratic", d = 3, dtype = "float64", noise = 0.5 }
stop = { kind = "time", time_s = 20.0 }
record = { count = 4 }
algorithm = [
    { kind = "a2cid2" },
    { kind = "dpsgd", optimizer = { kind = "sgd", learning_rate = 0.05 }, protocol = { kind = "rounds" } },
]
"""


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    """Over the CPU collectives: one run folder, written by the first; a checkpoint is taken up by both."""
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text(TOML)
    two.write_text(TOML + "devices = { processes = 2 }\n")
    command = [sys.executable, "-m", "decentral.cli", "run", str(one), "--out", str(tmp_path / "one")]
    subprocess.run(
        command, check=True, capture_output=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}, timeout=900
    )
    first, second = together("run", str(two), "--out", str(tmp_path / "two"))
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert "run folder" in first[1]
    assert "run folder" not in second[1]  # the first one reports
    expected = np.load(tmp_path / "one" / "metrics.npz")
    got = np.load(tmp_path / "two" / "metrics.npz")
    assert sorted(got.files) == sorted(expected.files)
    for key in expected.files:
        scale = (
            np.abs(expected["a2cid2/loss"]).max()
            if key.endswith("suboptimality")
            else np.abs(expected[key]).max()
        )
        assert np.abs(got[key] - expected[key]).max() <= 1e-12 * scale, key
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["device"]["count"] == 2
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        path.name for path in (tmp_path / "one").iterdir()
    }
    # a folder that is taken is refused by both, and nobody waits
    for status, _, words in together("run", str(two), "--out", str(tmp_path / "two")):
        assert status == 2
        assert "a folder that is new or empty" in words
