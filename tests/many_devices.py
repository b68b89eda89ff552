"""Run by tests/test_devices.py in a process of its own, with as many CPU devices as XLA_FLAGS says: prints JSON."""

import gc
import json
import sys

import jax
import numpy as np

import decentral
from decentral import Cluster, Diverged, Faults, InvalidInput, Links, Record, Simulation, problem
from decentral.engine.execute import executor
from decentral.engine.sharded import BLOCKS, placed
from decentral.experiment.entry import prepare
from decentral.timing.compute import Exponential
from decentral.topology import named

SGD = {"kind": "sgd", "learning_rate": 0.05, "momentum": 0.9}
LINKS = Links(latency_s=0.3)
CLUSTER = Cluster(compute=Exponential(1.0), links=LINKS)
FAULTS = Cluster(
    compute=Exponential(1.0), links=LINKS, faults=Faults(loss=0.1, crash_every_s=15.0, down_s=3.0)
)
FAMILIES = {
    "a2cid2": (decentral.A2CiD2(), None, None),
    "dadao": (decentral.DADAO(), None, None),
    "rendezvous": (decentral.A2CiD2(optimizer=SGD), decentral.Rendezvous(), FAULTS),
    "mailbox": (decentral.ADPSGD(optimizer=SGD), decentral.Mailbox(), CLUSTER),
    "push_sum": (decentral.SGP(optimizer=SGD), decentral.Mailbox(), CLUSTER),
    "mix": (decentral.DPSGD(optimizer=SGD), decentral.Rounds(), CLUSTER),
    "average": (decentral.LocalSGD(optimizer=SGD), decentral.Rounds(), CLUSTER),
}


def difference(got, expected, scale=0.0):
    """Relative to the largest number."""
    got, expected = np.asarray(got, float), np.asarray(expected, float)
    return float(np.abs(got - expected).max() / max(np.abs(expected).max(), scale, 1e-300))


def families(dtype, *names):
    """The worst difference of every family's metrics and final states between 4 devices and one."""
    found = {}
    for name in names or FAMILIES:
        algorithm, protocol, cluster = FAMILIES[name]
        task = problem.quadratic(n=16, d=5, noise=0.3, initial="per_worker", dtype=dtype)
        options = {"cluster": cluster, "stop": 12.0, "seeds": 2, "record": Record(count=3)}
        results = [
            decentral.simulate(task, named("ring", n=16), algorithm, protocol, **options, devices=devices)
            for devices in (None, 4)
        ]
        one, many = results
        # a suboptimality is the difference of two losses: as exact as these
        loss = float(np.abs(one.metrics["loss"]).max())
        scales = {"suboptimality": loss}
        worst = max(
            difference(many.metrics[key], one.metrics[key], scales.get(key, 0.0)) for key in one.metrics
        )
        leaves = zip(jax.tree.leaves(many.final), jax.tree.leaves(one.final), strict=True)
        found[name] = {
            "metrics": worst,
            "states": max(difference(a, b, 1e-3) for a, b in leaves),
            "devices": many.constants["devices"],
        }
    return found


def resumed():
    """A run taken up from a snapshot, on devices, against a whole one: 0 where the bits are the same."""
    make = lambda: prepare(  # noqa: E731
        problem.quadratic(n=16, d=5, noise=0.3), named("ring", n=16), decentral.A2CiD2(optimizer=SGD), decentral.Rendezvous(),
        cluster=FAULTS, stop=12.0, record=Record(count=4), devices=4,
    )  # fmt: skip
    whole, first, second = make(), make(), make()
    result = whole.run()
    first.step()
    first.step()
    second.restore({key: value.copy() for key, value in first.snapshot().items()})
    again = second.run()
    same = all(np.array_equal(result.metrics[key], again.metrics[key]) for key in result.metrics)
    leaves = zip(jax.tree.leaves(result.final), jax.tree.leaves(again.final), strict=True)
    return {"same": same and all(np.array_equal(a, b) for a, b in leaves), "position": int(first.position)}


def refused():
    """What the message says where there is nothing to share out, or a message would need foreign data."""
    quadratic, ring = problem.quadratic(n=8, d=3), named("ring", n=8)
    messages = {}
    for name, algorithm, protocol, how in (
        ("server", decentral.SGD(optimizer=SGD), decentral.AllReduce(), "rows"),
        ("eager", decentral.Gossip(optimizer=SGD), None, "eager"),
        ("dual", decentral.Continuized(), None, "rows"),
        ("uneven", decentral.Gossip(optimizer=SGD), None, "rows"),
    ):
        try:
            simulation = prepare(quadratic, ring, algorithm, protocol, stop=5.0)
            Simulation(
                simulation.trace, quadratic, algorithm, network=simulation.networks, executor=how,
                devices=3 if name == "uneven" else 4,
            )  # fmt: skip
        except InvalidInput as error:
            messages[name] = str(error)
    return messages


def diverged():
    """The first bad event of a run that goes wrong, on one device and on four."""
    found = []
    for devices in (None, 4):
        try:
            decentral.simulate(
                problem.quadratic(n=8, d=3),
                named("ring", n=8),
                decentral.Gossip(optimizer={"kind": "sgd", "learning_rate": 1e9}),
                stop=60.0,
                record=Record(count=3),
                devices=devices,
            )
        except Diverged as error:
            found.append([error.event, error.worker, error.seed])
    return found


def _lowered(simulation):
    """The programs of a run, as they will be called."""
    elapsed, piece = np.zeros(simulation.trace.total_workers, simulation.dtype), (0, 0, 0, 0)
    if simulation.mesh is None:
        rows = simulation.plan.rows(0, 0, simulation.capacity, simulation.dtype)
        run = executor(simulation.program).run_rows.lower(simulation.banks, rows, 0, 0, simulation.context)
    else:
        sharded, context = simulation._spread
        arguments = sharded.arguments(
            piece, (simulation.capacity, simulation.group_capacity), simulation.dtype
        )
        run = sharded.run.lower(simulation.banks, *arguments, context)
        elapsed = placed(elapsed, simulation.mesh, BLOCKS)
    record = simulation._recorder.lower(simulation.banks, elapsed, simulation.context, simulation.targets)
    return {"run": run, "record": record}


def _added(lowered):
    """Bytes that a program needs on a device besides its arguments."""
    numbers = lowered.compile().memory_analysis()
    return int(numbers.temp_size_in_bytes + numbers.output_size_in_bytes - numbers.alias_size_in_bytes)


def memory():
    """Of four devices and then of one."""
    return [_memory(devices) for devices in (4, 1)]


def _memory(devices, n=4096, kind="ring"):
    """Bytes on the fullest device during a run: what lives there, and what the compiled loop and the records add to it."""
    task = problem.logistic(n=n, d=50, samples_per_worker=20, dtype="float32")
    simulation = prepare(
        task, named(kind, n=n), decentral.A2CiD2(), stop=2.0, record=Record(count=1), devices=devices
    )
    if simulation.mesh is not None:
        del task  # its data are in the host's memory, and in blocks on the devices
    gc.collect()
    simulation.warm_up()
    live = dict.fromkeys(jax.devices(), 0)
    for array in jax.live_arrays():
        for shard in array.addressable_shards:
            live[shard.device] += shard.data.nbytes
    extra = {name: _added(lowered) for name, lowered in _lowered(simulation).items()}
    result = simulation.run()
    return {
        "live": max(live.values()),
        "extra": extra,
        "loss": result.metrics["loss"][0].tolist(),
        "run_s": result.wall_s["run"],
        "record_s": result.wall_s["record"],
        "events": len(result.trace),
        "rows": result.constants["rows"],
        "devices": result.constants.get("devices"),
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    if sys.argv[1] == "families":
        print(json.dumps(families(*sys.argv[2:])))
    elif sys.argv[1] == "memory":
        print(json.dumps(memory()))
    else:
        print(json.dumps({name: globals()[name]() for name in sys.argv[1:]}))
