"""Random projections of a batch: on an optical unit, as a dense product on a GPU, and as a fast Walsh-Hadamard transform there.

An optical unit multiplies binary vectors with the one random matrix it has, a vector in a frame, whatever their size; a GPU
multiplies a matrix that it has to hold, all vectors of a batch at once; the transform needs no matrix. So the optical unit
gains with the size and loses with the batch, and the transform is the rival that most comparisons leave out. None of these
numbers were measured on an optical unit by us: ours is a model of one, and whether one can be had today is not known.

Everything broadcasts over arrays of sizes and batches. Where a projector cannot do it at all, seconds and joules are infinite.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from decentral.cost.checks import check_numbers
from decentral.cost.cluster import MEMORY_FRACTION, Cluster
from decentral.cost.energy import power_w
from decentral.cost.kernels import Constants, product
from decentral.errors import InvalidInput, suggest
from decentral.hardware import OpticalDevice

NUMBER_BYTES = 2
"""Of an operand of the digital projectors: bf16 or fp16."""
MATRICES = ("stored", "generated", "sharded")
"""What a GPU may do about the matrix: hold all of it, draw it anew for every product, or share it with other GPUs."""
GENERATED_PER_S = 1e11
"""Random numbers a GPU draws in a second (assumed: 4.6e10 uniform ones were measured on a GTX 1070, read, duvanenko.tech.blog; an
A100 has three times its arithmetic, and normal ones take more)."""
OVER_COPY = ((9, 1.0), (13, 1.2), (14, 1.3), (15, 1.8))
"""log2 of the largest transform, and the time of its kernel in 16 bits over that of a copy: A100, batch "not too small" (read,
README of Dao-AILab/fast-hadamard-transform). Larger ones take several passes (derived)."""
SECTOR_BYTES = 32
"""A GPU moves at least so much to meet one number (recalled: the sector of NVIDIA's caches)."""
PROJECTORS = ("optical", "dense", "hadamard")


@dataclass(frozen=True)
class RandomProjection:
    """What is to be projected.

    Attributes:
        inputs: numbers of a vector.
        outputs: numbers of its projection.
        batch: vectors.
        mode: how the optical unit has its outputs, a key of its ``modes``.
        complex_rows: whether the matrix of the digital rivals, and in linear modes the output, is complex. The optical one's
            always is: behind |H x|^2 stand two real products.
        bits: of an input; each takes a frame of its own.
        signed: whether inputs are positive and negative: twice the frames.
    """

    inputs: Any
    outputs: Any
    batch: Any = 1
    mode: str = "intensity"
    complex_rows: bool = False
    bits: Any = 1
    signed: Any = False

    def __post_init__(self) -> None:
        for name in ("inputs", "outputs", "batch", "bits"):
            check_numbers(name, getattr(self, name), 1)

    @property
    def planes(self) -> Any:
        """Binary vectors that stand for one input vector."""
        return np.ceil(np.asarray(self.bits, float)) * np.where(self.signed, 2.0, 1.0)

    @property
    def real_rows(self) -> Any:
        """Rows of the digital rivals' matrix, the real and imaginary part of a complex one each counted."""
        return np.asarray(self.outputs, float) * (2 if self.complex_rows else 1)

    def words(self, unit: OpticalDevice) -> str:
        """Size, batch, mode and kind of numbers, without which no comparison means anything. Of one projection."""
        mode = unit.mode(self.mode)
        frames = int(mode.frames(self.complex_rows) * self.planes)
        made = "linear" if mode.linear else "not linear: |H x|^2"
        signs = "signed" if self.signed else "unsigned"
        return (
            f"{self.inputs:,} -> {self.outputs:,}, batch {self.batch:,}, "
            f"{'complex' if self.complex_rows else 'real'} rows, {self.bits} bit{'s' * (self.bits > 1)} {signs}, "
            f"{self.mode} mode ({made}; {frames} frame{'s' * (frames > 1)} a vector)"
        )


@dataclass(frozen=True)
class Host:
    """What a computer does for its optical unit, one vector after the other, while no frame is taken.

    Attributes:
        call_s: of a call of the software, with as many vectors as it sends at a time (0 to 4.3 s were measured).
        vector_s: of each binary vector.
        component_s: of each component of one: packing bits, copying features onto mirrors.
        power_w: of the computer itself.
    """

    call_s: Any = 0.0
    vector_s: Any = 0.0
    component_s: Any = 0.0
    power_w: Any = 0.0


NO_HOST = Host()
"""The unit alone, as if frames were ready."""
MEASURED_HOST = Host(vector_s=49e-6, component_s=0.64e-9)
"""Derived from 561 us a vector (10,000 to 10,000) and 1,123 us (810,000 to 10,000), outputs of lightonml's notebooks, with frames
of 500 us and bytes after them. Of 782 us for 25,088 to 315,000 it explains 724. What such a computer draws is not known."""


@dataclass(frozen=True)
class Rivals:
    """The hardware that a projection may run on, and how it is used.

    Attributes:
        unit: the optical unit.
        cluster: whose device is the GPU.
        constants: what no data sheet says.
        units: optical units that share the batch.
        devices: GPUs that share the batch.
        overlap: whether bytes of one frame travel while light of another is collected.
        exposure_s: of the camera; a frame takes at least this and the unit's overhead. 0: as short as its rates need.
        host: of the optical unit.
        matrix: what the GPU does about the matrix: "stored", "generated" or "sharded".
        watts: of a GPU whose compute units are all busy; None: its thermal design power (assumed; a product that waits for
            memory draws less: this is in favour of the optical unit). Idle units, and all of them between kernels, draw 0.3
            of it.
        link_bytes_per_s: over which inputs come to the GPU and outputs leave it, one way; infinite: they live there.
        generated_per_s: random numbers a GPU draws in a second.
        rounds: of signs and transform in the Walsh-Hadamard projection: 1 is the subsampled transform (SRHT).
    """

    unit: OpticalDevice
    cluster: Cluster
    constants: Constants = Constants()  # noqa: RUF009 - frozen
    units: Any = 1
    devices: Any = 1
    overlap: bool = True
    exposure_s: Any = 0.0
    host: Host = NO_HOST
    matrix: str = "stored"
    watts: Any = None
    link_bytes_per_s: Any = np.inf
    generated_per_s: Any = GENERATED_PER_S
    rounds: Any = 1

    def __post_init__(self) -> None:
        if self.matrix not in MATRICES:
            raise InvalidInput(
                "matrix", self.matrix, " or ".join(MATRICES), suggest(str(self.matrix), MATRICES)
            )
        for name in ("units", "devices", "rounds"):
            check_numbers(name, getattr(self, name), 1)
        for name in ("exposure_s", "link_bytes_per_s", "generated_per_s"):
            check_numbers(name, getattr(self, name), 0, above=name != "exposure_s")

    @property
    def gpu_w(self) -> Any:
        """Watts of a GPU.

        Raises:
            InvalidInput: none are given, and its thermal design power is not known.
        """
        watts = self.cluster.device.power_w if self.watts is None else self.watts
        if watts is None:
            told = f"The thermal design power of {self.cluster.device.name} is not known: give watts."
            raise InvalidInput("watts", None, "a known power", told)
        return check_numbers("watts", watts, 0)


@dataclass(frozen=True, repr=False)
class ProjectorCost:
    """What a projection takes on one projector. Shown, it names all that the numbers depend on, and the digital rivals.

    Attributes:
        task: what is projected.
        rivals: the hardware.
        projector: "optical", "dense", "hadamard" or "sparse".
        seconds: until all outputs are there; infinite where it cannot be done.
        joules: of all that work on it; infinite likewise.
        work_s: of frames, or of kernels, alone.
        link_s: of bytes to and from the host alone: of the busier way.
        bytes_in: from the host, to all units or GPUs.
        bytes_out: to the host, from all of them.
        matrix_bytes: that the matrix, or what stands for it, takes in all memories together.
        devices: units or GPUs.
        possible: whether size and memory allow it.
    """

    task: RandomProjection
    rivals: Rivals
    projector: str
    seconds: Any
    joules: Any
    work_s: Any
    link_s: Any
    bytes_in: Any
    bytes_out: Any
    matrix_bytes: Any
    devices: Any
    possible: Any

    def __repr__(self) -> str:
        if np.ndim(self.seconds):
            rows, unit = "complex" if self.task.complex_rows else "real", self.rivals.unit.name
            return (
                f"{self.projector}: seconds and joules of {np.shape(self.seconds)} projections, {rows} rows, {self.task.mode} "
                f"mode of {unit}; digital rivals on {self.rivals.cluster.device.name}: see verdict(task, rivals) of one"
            )
        own = f"{self.projector}: {_si(float(self.seconds), 's')}, {_si(float(self.joules), 'J')}."
        return f"{own}\n{verdict(self.task, self.rivals)}"


def frames_per_s(inputs: ArrayLike, pixels: ArrayLike, unit: OpticalDevice) -> np.ndarray:
    """Frames an optical unit takes in a second; 0 where it has not that many mirrors or pixels."""
    inputs, pixels = check_numbers("inputs", inputs, 1), check_numbers("pixels", pixels, 1)
    fits = [(inputs <= rate.max_inputs) & (pixels <= rate.max_outputs) for rate in unit.rates]
    return np.select(fits, [rate.frames_per_s for rate in unit.rates], 0.0)


class Asked(NamedTuple):
    """What a projection asks of one optical unit.

    Attributes:
        frames_per_vector: for each binary vector.
        frame_s: seconds of a frame; meaningless where it is not possible.
        bytes_in: of a frame, from the host.
        bytes_out: of a frame, to the host.
        possible: whether the unit has as many mirrors and pixels.
    """

    frames_per_vector: int
    frame_s: Any
    bytes_in: Any
    bytes_out: Any
    possible: Any


def asked_of(task: RandomProjection, unit: OpticalDevice, exposure_s: ArrayLike = 0.0) -> Asked:
    """Frames, their time and their bytes: a frame takes the longer of 1 / f(n, m) and exposure + 50 us (read).

    Raises:
        InvalidInput: the unit has no such mode, or the mode no complex outputs.
    """
    mode = unit.mode(task.mode)
    pixels = np.asarray(task.outputs, float) * mode.pixels_per_output
    rate = frames_per_s(task.inputs, pixels, unit)
    possible = rate > 0
    frame_s = np.maximum(1 / np.where(possible, rate, 1.0), np.asarray(exposure_s) + unit.frame_overhead_s)
    sent = np.ceil(np.asarray(task.inputs, float) * unit.input_bits / 8)
    read = np.ceil(pixels * unit.output_bits / 8)
    return Asked(mode.frames(task.complex_rows), frame_s, sent, read, possible)


def optical(task: RandomProjection, rivals: Rivals) -> ProjectorCost:
    """On the optical unit: a frame, or several, for each bit plane of each vector.

    Frames as in :func:`asked_of`. Bytes in, light, bytes out are three stages: F frames
    of stages a, b, c take (F - 1) max(a, b, c) + a + b + c where they overlap, and F (a + b + c) where they do not. A unit
    has one matrix of its size: more inputs than mirrors, or more outputs than pixels, cannot be had. An anchor's own frame,
    one for as long as the anchor stays, is left out.

    Raises:
        InvalidInput: the unit has no such mode, or the mode no complex outputs.
    """
    unit, asked = rivals.unit, asked_of(task, rivals.unit, rivals.exposure_s)
    vectors = np.ceil(np.asarray(task.batch, float) / rivals.units) * task.planes
    frames = vectors * asked.frames_per_vector
    possible, light_s, sent, read = asked.possible, asked.frame_s, asked.bytes_in, asked.bytes_out
    in_s, out_s = sent / unit.link_bytes_per_s, read / unit.link_bytes_per_s
    host = rivals.host
    calls = np.ceil(vectors / unit.vectors_per_acquisition)
    host_s = calls * host.call_s + vectors * (host.vector_s + host.component_s * np.asarray(task.inputs))
    seconds = _stages(frames, (in_s, light_s, out_s), rivals.overlap) + host_s
    return _cost(
        (task, rivals),
        "optical",
        seconds,
        unit.power_w + host.power_w,
        rivals.units,
        possible,
        work_s=frames * light_s,
        link_s=frames * np.maximum(in_s, out_s),
        bytes_in=rivals.units * frames * sent,
        bytes_out=rivals.units * frames * read,
        matrix_bytes=0.0,
    )


def dense(task: RandomProjection, rivals: Rivals) -> ProjectorCost:
    """On GPUs, as a product with a matrix of 16-bit numbers, in the quicker of two kernels, and one launch.

    A large batch is a matrix product (``decentral.cost.kernels.product``), bound by arithmetic. That model cuts the result into
    tiles, of which few vectors fill none; they are multiplied by a kernel that streams the matrix, bound by memory, or by fp32
    arithmetic (derived). It reaches 0.8 of the memory's bandwidth here; 0.47 was measured for single vectors on V100 (read,
    opu-kernel-experiments), which moves crossovers of single vectors down by a factor of 1.3.

    A batch may come in pieces, so that the memory has to hold the matrix and a vector. Where it does not, "stored" is not
    possible; "generated" draws the matrix for every product, once for each piece of the batch that fits; "sharded" spreads
    its rows over the fewest GPUs that hold it, each of which multiplies the whole batch with its own.

    Raises:
        InvalidInput: the device's fp32 peak or its power is not known.
    """
    cluster, constants = rivals.cluster, rivals.constants
    per = np.ceil(np.asarray(task.batch, float) / rivals.devices)
    inputs, rows = np.asarray(task.inputs, float), task.real_rows
    matrix_bytes, vector_bytes = NUMBER_BYTES * inputs * rows, NUMBER_BYTES * (inputs + rows)
    room = cluster.memory_bytes - vector_bytes
    sharing, draws_s, possible = 1.0, 0.0, matrix_bytes <= room
    if rivals.matrix == "sharded":
        possible = room > 0
        sharing = np.maximum(np.ceil(matrix_bytes / np.where(possible, room, np.inf)), 1.0)
    elif rivals.matrix == "generated":
        possible = room > 0
        pieces = np.ceil(per * vector_bytes / cluster.memory_bytes)
        draws_s, matrix_bytes = pieces * inputs * rows / rivals.generated_per_s, 0.0 * matrix_bytes
    mine = rows / sharing
    tiled_s = product(per, inputs, mine, cluster, constants).products_s
    moved = NUMBER_BYTES * (inputs * mine + per * (inputs + mine))
    flops = 2.0 * per * inputs * mine
    streamed_s = np.maximum(moved / _bandwidth(cluster), flops / cluster.device.peak_flops("fp32"))
    kernels_s = np.minimum(tiled_s, streamed_s) + draws_s
    work_s = kernels_s + constants.launch_s
    return _on_gpus("dense", task, rivals, per, work_s, matrix_bytes, sharing, possible, kernels_s / work_s)


def hadamard(task: RandomProjection, rivals: Rivals) -> ProjectorCost:
    """On GPUs, as random signs, a Walsh-Hadamard transform and a random choice of its outputs (SRHT).

    The transform needs a power of two, N >= n, that inputs are padded to with zeros; more than N outputs take several blocks,
    each with its own signs. A block is N log2 N additions, in ceil(log2 N / 15) passes over main memory, or in one more where
    that is quicker: the first reads n numbers, the last writes the chosen m, those between read and write N. A compute unit has
    a tile of a pass to itself, so that a single vector leaves others, and their power, idle (derived). Rows are orthogonal and
    not independent: it is not the same matrix as a Gaussian one, though it serves most of the same ends.

    Raises:
        InvalidInput: the device's fp32 peak or its power is not known.
    """
    cluster, per = rivals.cluster, np.ceil(np.asarray(task.batch, float) / rivals.devices)
    inputs, rows, rounds = np.asarray(task.inputs, float), task.real_rows, np.asarray(rivals.rounds, float)
    stages = np.ceil(np.log2(inputs))
    padded = 2.0**stages
    blocks = np.ceil(rows / padded)
    additions = per * blocks * rounds * padded * stages

    def timed(passes: Any) -> tuple[Any, Any]:
        each = stages / passes  # stages of a pass
        slower = np.select([each <= most for most, _ in OVER_COPY], [factor for _, factor in OVER_COPY])
        moved = NUMBER_BYTES * per * (blocks * (inputs + 2 * padded * (rounds * passes - 1)) + rows)
        # A peak counts a multiplication and an addition; a transform has nothing to multiply.
        sums_s = additions / (cluster.device.peak_flops("fp32") / 2)
        kernels_s = np.maximum(slower * moved / _bandwidth(cluster), sums_s)
        busy = np.minimum(per * blocks * padded / 2.0**each / cluster.compute_units, 1.0)
        return kernels_s, kernels_s / busy + rounds * passes * rivals.constants.launch_s

    fewest = np.maximum(np.ceil(stages / OVER_COPY[-1][0]), 1.0)
    (kernels_s, work_s), (more_kernels_s, more_work_s) = timed(fewest), timed(fewest + 1)
    kernels_s = np.where(work_s <= more_work_s, kernels_s, more_kernels_s)
    work_s = np.minimum(work_s, more_work_s)
    kept = blocks * rounds * padded / 8 + 4 * rows  # a bit for a sign, 4 bytes for a place
    possible = kept + NUMBER_BYTES * (inputs + blocks * padded + rows) <= cluster.memory_bytes
    return _on_gpus("hadamard", task, rivals, per, work_s, kept, 1.0, possible, kernels_s / work_s)


def sparse(task: RandomProjection, rivals: Rivals, entries: ArrayLike) -> ProjectorCost:
    """On GPUs, as additions of single numbers: a product with a matrix of few entries, ± one number each.

    Vectors are read and outputs written in order. Every entry meets a number elsewhere, which moves a sector of 32 bytes, as if
    no cache held the vector (derived; where one does, as at a million inputs of 2 bytes, this is up to 16 times too slow). The
    4 bytes of an entry, its place with its sign, are read once for the batch.

    Args:
        task: what is projected.
        rivals: the hardware.
        entries: of the matrix that are not 0: the inputs in a count sketch, outputs times the entries of a row otherwise; of a
            complex matrix, twice that.

    Raises:
        InvalidInput: the device's fp32 peak or its power is not known.
    """
    cluster, per = rivals.cluster, np.ceil(np.asarray(task.batch, float) / rivals.devices)
    inputs, rows, entries = (
        np.asarray(task.inputs, float),
        task.real_rows,
        check_numbers("entries", entries, 1),
    )
    vector_bytes, kept = NUMBER_BYTES * (inputs + rows), 4 * entries
    moved = kept + per * (vector_bytes + SECTOR_BYTES * entries)
    kernels_s = np.maximum(
        moved / _bandwidth(cluster), per * entries / (cluster.device.peak_flops("fp32") / 2)
    )
    work_s = kernels_s + rivals.constants.launch_s
    possible = kept + vector_bytes <= cluster.memory_bytes
    return _on_gpus("sparse", task, rivals, per, work_s, kept, 1.0, possible, kernels_s / work_s)


def project_on_each(task: RandomProjection, rivals: Rivals) -> dict[str, ProjectorCost]:
    """Name -> cost, for the optical unit and both digital rivals."""
    return {name: _PROJECT[name](task, rivals) for name in PROJECTORS}


_PROJECT = {"optical": optical, "dense": dense, "hadamard": hadamard}


def _bandwidth(cluster: Cluster) -> Any:
    return cluster.memory_bytes_per_s * MEMORY_FRACTION


def _stages(count: Any, stages: tuple, overlap: bool) -> Any:
    together = sum(stages)
    if not overlap:
        return count * together
    slowest = np.maximum(np.maximum(stages[0], stages[1]), stages[2])
    return (count - 1) * slowest + together


def _on_gpus(
    name: str,
    task: RandomProjection,
    rivals: Rivals,
    per: Any,
    work_s: Any,
    matrix_bytes: Any,
    sharing: Any,
    possible: Any,
    busy: Any,
) -> ProjectorCost:
    """Kernels of ``per`` vectors on each of the GPUs, and their bytes over the link where they do not live there."""
    sent, read = NUMBER_BYTES * np.asarray(task.inputs, float), NUMBER_BYTES * task.real_rows / sharing
    in_s, out_s = sent / rivals.link_bytes_per_s, read / rivals.link_bytes_per_s
    far = np.isfinite(rivals.link_bytes_per_s)
    devices = rivals.devices * sharing
    return _cost(
        (task, rivals),
        name,
        _stages(per, (in_s, work_s / per, out_s), rivals.overlap),
        power_w(rivals.gpu_w, busy),
        devices,
        possible,
        work_s=work_s,
        link_s=per * np.maximum(in_s, out_s),
        bytes_in=np.where(far, devices * per * sent, 0.0),
        bytes_out=np.where(far, devices * per * read, 0.0),
        matrix_bytes=matrix_bytes * rivals.devices,
    )


def _cost(
    of: tuple[RandomProjection, Rivals],
    name: str,
    seconds: Any,
    watts: Any,
    devices: Any,
    possible: Any,
    **rest: Any,
) -> ProjectorCost:
    seconds = np.where(possible, seconds, np.inf)
    return ProjectorCost(
        *of, name, seconds, watts * devices * seconds, devices=devices, possible=possible, **rest
    )


# -- who wins ------------------------------------------------------------------------------------------------------------


class Crossover(NamedTuple):
    """Square sizes n -> n at which the optical unit is better than one rival.

    Attributes:
        first: the smallest; None: it never is, at any size that it has mirrors and pixels for.
        wins: (from, to) of all of them, both included.
        largest: that the unit can project in this mode.
        without_rival: the smallest size at which the rival cannot do it at all; None: it always can.
    """

    first: int | None
    wins: tuple[tuple[int, int], ...]
    largest: int
    without_rival: int | None

    @property
    def words(self) -> str:
        """Where the optical unit wins, and where it loses."""
        if self.first is None:
            return f"the optical unit loses at every size up to its largest, {self.largest:,}"
        spans = ", ".join(f"{low:,} to {high:,}" for low, high in self.wins)
        lost = "" if self.wins == ((1, self.largest),) else "; it loses at all others"
        gone = (
            f"; from {self.without_rival:,} on because the rival's memory does not hold the matrix"
            if self.without_rival
            else ""
        )
        return f"the optical unit wins at {spans}{lost}{gone}"


def crossover(
    task: RandomProjection, rivals: Rivals, against: str = "dense", measure: str = "seconds"
) -> Crossover:
    """Where the optical unit wins, over square sizes, to the last number.

    Looked for at all sizes up to 1,000, 1 in 500 above, and on both sides of every step (a row of the unit's rates, a power of
    two); between two of these where the winner changes, at every size. A span of less than 0.2 % may be missed.

    Args:
        task: batch, mode and kind of numbers, one of each; its inputs and outputs do not matter.
        rivals: the hardware, one of each.
        against: "dense" or "hadamard".
        measure: "seconds" or "joules".

    Raises:
        InvalidInput: no such rival or measure.
    """
    for name, value, allowed in (
        ("against", against, PROJECTORS[1:]),
        ("measure", measure, ("seconds", "joules")),
    ):
        if value not in allowed:
            raise InvalidInput(name, value, " or ".join(allowed), suggest(str(value), allowed))
    unit, each = rivals.unit, rivals.unit.mode(task.mode).pixels_per_output
    largest = min(unit.max_inputs, unit.max_outputs // each)

    def evaluate(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        square = replace(task, inputs=sizes, outputs=sizes)
        light, rival = optical(square, rivals), _PROJECT[against](square, rivals)
        return getattr(light, measure) < getattr(rival, measure), np.broadcast_to(rival.possible, sizes.shape)

    steps = [size for rate in unit.rates for size in (rate.max_inputs, rate.max_outputs // each)]
    steps = np.array([*steps, *(2 ** np.arange(1, 32))])
    above = np.geomspace(1000, max(largest, 1000), 1 + int(500 * np.log(max(largest / 1000, 1)))).astype(int)
    sizes = np.unique(np.concatenate([np.arange(1, 1001), above, steps, steps + 1, [largest]]))
    sizes = sizes[(sizes >= 1) & (sizes <= largest)]
    better, possible = evaluate(sizes)
    changes = np.flatnonzero((np.diff(better) != 0) | (np.diff(possible) != 0))
    between = [np.arange(sizes[place], sizes[place + 1]) for place in changes]
    sizes = np.unique(np.concatenate([sizes, *between]))
    better, possible = evaluate(sizes)
    edges = np.diff(better.astype(np.int8), prepend=0, append=0)
    starts, ends = sizes[edges[:-1] == 1], sizes[np.flatnonzero(edges == -1) - 1]
    wins = tuple((int(low), int(high)) for low, high in zip(starts, ends, strict=True))
    gone = sizes[~possible]
    return Crossover(wins[0][0] if wins else None, wins, largest, int(gone[0]) if len(gone) else None)


def verdict(task: RandomProjection, rivals: Rivals) -> str:
    """Who wins in time and in energy, and by how much, with everything named that the answer depends on. Of one projection.

    Raises:
        InvalidInput: what :func:`optical` and :func:`hadamard` refuse.
    """
    found = project_on_each(task, rivals)
    gpu, unit = rivals.cluster.device.name, rivals.unit
    host = "with its host" if np.any(np.asarray(rivals.host.power_w) > 0) else "head unit alone"
    names = {
        "optical": f"{unit.name} ({unit.power_w:g} W, {host})",
        "dense": f"{gpu} dense in 16 bits ({float(rivals.gpu_w):g} W; {_held(found['dense'], task, rivals)})",
        "hadamard": f"{gpu} Walsh-Hadamard (padded to {2 ** int(np.ceil(np.log2(task.inputs))):,})",
    }
    lines = [f"Projection {task.words(unit)}."]
    for words, measure, si in (("Time", "seconds", "s"), ("Energy", "joules", "J")):
        values = {name: float(getattr(cost, measure)) for name, cost in found.items()}
        order = sorted(values, key=values.__getitem__)
        told = " < ".join(f"{names[name]} {_si(values[name], si)}" for name in order)
        lines.append(f"{words}: {told}. {_standing(values)}")
    lines.append(f"Optical mode: {unit.mode(task.mode).notes}.")
    return "\n".join(lines)


def _standing(values: dict[str, float]) -> str:
    if not np.isfinite(values["optical"]):
        return "The optical unit cannot do it: more inputs than mirrors, or outputs than pixels."
    told = []
    for rival in PROJECTORS[1:]:
        ratio = values["optical"] / values[rival]
        if not np.isfinite(values[rival]):
            told.append(f"has no rival in {rival}, which cannot do it")
        elif ratio > 1:
            told.append(f"loses to {rival} by a factor of {ratio:.3g}")
        else:
            told.append(f"wins over {rival} by a factor of {1 / ratio:.3g}")
    return f"The optical unit {' and '.join(told)}."


def _held(cost: ProjectorCost, task: RandomProjection, rivals: Rivals) -> str:
    size = NUMBER_BYTES * float(task.inputs) * float(task.real_rows)
    if rivals.matrix == "generated":
        return f"matrix of {_si(size, 'B')} drawn anew for the batch"
    if rivals.matrix == "sharded":
        count = int(cost.devices)
        return f"matrix of {_si(size, 'B')} on {count:,} GPU{'s' * (count > 1)}"
    memory = _si(float(rivals.cluster.memory_bytes), "B")
    if bool(cost.possible):
        return f"matrix of {_si(size, 'B')} stored"
    return f"matrix of {_si(size, 'B')} does not fit into {memory}: it would have to be generated or sharded"


def _si(value: float, unit: str) -> str:
    if not np.isfinite(value):
        return "not possible"
    scale = min(max(int(np.floor(np.log10(value) / 3)), -3), 5) if value > 0 else 0
    return f"{value / 1000.0**scale:.3g} {dict(zip(range(-3, 6), 'num kMGTP', strict=True))[scale].strip()}{unit}"


# -- direct feedback alignment -------------------------------------------------------------------------------------------


def feedback(
    tokens: ArrayLike,
    error_size: ArrayLike,
    layers: ArrayLike,
    hidden: ArrayLike,
    rivals: Rivals,
    *,
    mode: str = "anchor",
    bits: ArrayLike = 1,
    signed: ArrayLike = True,
    shared: bool = False,
) -> dict[str, ProjectorCost]:
    """What the feedback of a step of direct feedback alignment takes: the error of every token, projected for all layers.

    One frame holds one token, so an optical unit's time grows with the tokens, and does not shrink with the batch. The mode has
    to be linear: |H e|^2 is even in e, blind to the sign of an error, and nothing is learned from it (derived). By default
    errors are ternary, -1, 0 or 1: two planes; how that learns is to be measured, not assumed.

    Args:
        tokens: of the step, all together; ``rivals.units`` and ``rivals.devices`` share them.
        error_size: numbers of a token's error: the vocabulary, or the width of the model.
        layers: that get feedback.
        hidden: width of each.
        rivals: the hardware.
        mode: how the optical unit has its outputs.
        bits: of a number of the error, on the optical unit.
        signed: whether it is positive and negative.
        shared: whether all layers get the same feedback (as TinyDFA has it), or each its own.

    Returns:
        Name of the projector -> its cost, ``seconds`` and ``joules`` of a step.

    Raises:
        InvalidInput: the mode is unknown, or not linear.
    """
    if not rivals.unit.mode(mode).linear:
        linear = [name for name, known in rivals.unit.modes.items() if known.linear]
        raise InvalidInput(
            "mode", mode, f"a linear mode: {', '.join(linear)}", "Feedback is H e, not |H e|^2."
        )
    layers, hidden = check_numbers("layers", layers, 1), check_numbers("hidden", hidden, 1)
    outputs = hidden if shared else layers * hidden
    task = RandomProjection(error_size, outputs, tokens, mode, False, bits, signed)
    return project_on_each(task, rivals)


def break_even_parameters(frames: ArrayLike, flops_per_s: ArrayLike, frames_per_s: ArrayLike) -> np.ndarray:
    """Dense parameters per token from which skipping gradients of activations saves more time than the projection takes.

    k F / (2 f): 2 FLOP for each parameter and token that the backward pass through activations needs, against k frames. Below,
    an optical unit slows training down, if nothing hides its frames (derived).

    Args:
        frames: for each token, k.
        flops_per_s: of the device that one unit serves, achieved, F.
        frames_per_s: of the unit, f.
    """
    frames = check_numbers("frames", frames, 0)
    flops_per_s = check_numbers("flops_per_s", flops_per_s, 0)
    return frames * flops_per_s / (2 * check_numbers("frames_per_s", frames_per_s, 0, above=True))


# -- random features and a ridge on them ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Computer:
    """What is done around a projection, at rates that one run gives.

    Attributes:
        encoded_per_s: numbers of the inputs turned into bits.
        decoded_per_s: pixels added up to components.
        flops_per_s: of the ridge's matrix products.
        scored_bytes_per_s: of features that the fitted ridge reads.
    """

    encoded_per_s: Any
    decoded_per_s: Any
    flops_per_s: Any
    scored_bytes_per_s: Any

    def __post_init__(self) -> None:
        for name in ("encoded_per_s", "decoded_per_s", "flops_per_s", "scored_bytes_per_s"):
            check_numbers(name, getattr(self, name), 0, above=True)


FEATURE_BYTES = 4
"""Of a feature that a ridge is fitted to: float32."""


def ridge_flops(samples: ArrayLike, features: ArrayLike, classes: ArrayLike) -> np.ndarray:
    """Operations of an exact ridge classifier, in the cheaper of its two forms.

    With fewer samples than features the Gram matrix F F^T is solved, and the weights are F^T of the solution; else F^T F. A
    symmetric product takes half of a general one, a Cholesky factor a third of the cube (derived).
    """
    samples, features, classes = (
        check_numbers(name, value, 1)
        for name, value in (("samples", samples), ("features", features), ("classes", classes))
    )
    less, more = np.minimum(samples, features), np.maximum(samples, features)
    return less**2 * more + less**3 / 3 + 2 * less**2 * classes + 2 * samples * features * classes


STL10_COMPUTER = Computer(
    encoded_per_s=13_000 * 25_088 / 5.89,
    decoded_per_s=26_000 * 315_000 / 1.71,
    flops_per_s=float(ridge_flops(5000, 315_000, 10)) / 29.99,
    scored_bytes_per_s=8000 * 315_000 * FEATURE_BYTES / 3.49,
)
"""Fitted, each to one number, to a published run (read, output of a notebook of LightOn): STL-10, 5,000 images to train on
and 8,000 to test, two frames of 25,088 bits for each into 315,000 components; 5.89 s to encode, 1.71 to decode, 29.99 for the
ridge, 3.49 to score. The 20.32 s of its projection are not fitted: MEASURED_HOST gives 18.8, from other runs. Which computer it
was is not known; 0.26 TFLOP/s are some cores of a server."""


@dataclass(frozen=True)
class FeaturePipeline:
    """Seconds of a classifier on random features, one phase after the other.

    Attributes:
        projector: "optical", "dense" or "hadamard".
        encode_s: of inputs to bits; only an optical unit needs it.
        project_s: of the projection, with the host of an optical unit.
        decode_s: of pixels to components; only an optical unit needs it.
        fit_s: of an exact ridge on the training samples.
        score_s: of the test samples.
        feature_bytes: that all features take, training and test, in float32.
    """

    projector: str
    encode_s: Any
    project_s: Any
    decode_s: Any
    fit_s: Any
    score_s: Any
    feature_bytes: Any

    @property
    def seconds(self) -> Any:
        """Of all phases."""
        return self.encode_s + self.project_s + self.decode_s + self.fit_s + self.score_s

    @property
    def projection_share(self) -> Any:
        """Of the projection in all seconds: without any other phase being faster, no projector saves more than this."""
        return self.project_s / self.seconds


def feature_pipeline(
    task: RandomProjection,
    rivals: Rivals,
    computer: Computer = STL10_COMPUTER,
    *,
    test: ArrayLike,
    classes: ArrayLike,
) -> dict[str, FeaturePipeline]:
    """Encode, project, decode, fit a ridge and score, on an optical unit or with a GPU that projects in its place.

    The ridge is the same computer's for all, and does not shrink with a faster projection. Data that a GPU projects need no
    bits; what else it could do, such as the ridge, is left to the computer here.

    Args:
        task: of the training samples; its batch is their number.
        rivals: the hardware that projects.
        computer: that does the rest.
        test: samples to score; they are encoded, projected and decoded too.
        classes: of the labels.

    Returns:
        Name of the projector -> its pipeline.
    """
    test = check_numbers("test", test, 0)
    samples = np.asarray(task.batch, float) + test
    inputs, outputs = np.asarray(task.inputs, float), np.asarray(task.outputs, float)
    mode = rivals.unit.mode(task.mode)
    pixels = outputs * mode.pixels_per_output * mode.frames(task.complex_rows) * task.planes
    found = project_on_each(replace(task, batch=samples), rivals)
    around = {
        "fit_s": ridge_flops(task.batch, outputs, classes) / computer.flops_per_s,
        "score_s": FEATURE_BYTES * test * outputs / computer.scored_bytes_per_s,
        "feature_bytes": FEATURE_BYTES * samples * outputs,
    }
    codes = {
        "encode_s": samples * inputs / computer.encoded_per_s,
        "decode_s": samples * pixels / computer.decoded_per_s,
    }
    none = dict.fromkeys(codes, 0.0)
    return {
        name: FeaturePipeline(
            name, project_s=cost.seconds, **around, **(codes if name == "optical" else none)
        )
        for name, cost in found.items()
    }
