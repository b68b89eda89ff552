"""Pipelines in closed form: schedules with a flush, and PETRA, which has none.

Times are those of one stage, in any unit; all stages are equal.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from decentral.errors import check_choice, check_integer, check_number

SCHEDULES = ("1f1b", "gpipe", "interleaved", "zero_bubble", "dualpipe")
"""Of synchronous pipelines; PETRA and DFA have their own, "petra" and "dfa"."""


def petra_rate(
    forward: float = 1.0, backward: float = 2.0, reconstruct: float = 1.0, streams: int = 2
) -> float:
    """Batches in a unit of time of equal stages that never wait (P4): no longer pass than forward + backward or this.

    With two streams 1 / max(forward + backward, backward + reconstruct): the last stage has both passes, and no
    reconstruction. With one, every other stage has all three.
    """
    if streams == 1:
        return 1 / (forward + backward + reconstruct)
    return 1 / max(forward + backward, backward + reconstruct)


def speed_up_vs_model_parallelism(
    stages: int,
    forward: float = 1.0,
    backward: float = 2.0,
    reconstruct: float = 1.0,
    reversible: bool = False,
) -> float:
    """PETRA's rate over that of J stages that work one after the other: vs *non-pipelined model parallelism*, nothing else.

    J where reconstruction takes no longer than forward; against reversible backpropagation, which reconstructs too,
    4 J / 3.
    """
    each = forward + backward + (reconstruct if reversible else 0.0)
    return stages * each * petra_rate(forward, backward, reconstruct)


def bubble_s(
    schedule: str,
    micro_batches: Any,
    stages: Any,
    forward_s: Any,
    backward_s: Any,
    weight_s: Any = 0.0,
    virtual: Any = 1,
) -> Any:
    """Seconds in which a stage of a pipeline has nothing to do, in one step.

    Args:
        schedule: "gpipe" or "1f1b": (p - 1)(t_f + t_b), whatever ``micro_batches`` is; "interleaved": that divided by the
            ``virtual`` stages of a device (Narayanan et al., arXiv 2104.04473); "zero_bubble": (p - 1)(t_f + t_b - 2 t_w),
            ZB-H1 of Qi et al. (arXiv 2401.10241, recalled), at the memory of 1F1B; "dualpipe": (p/2 - 1)(t_fb + t_b - 3 t_w),
            with t_fb = t_f + t_b for a pass each way at once (DeepSeek-V3, arXiv 2412.19437, recalled); "petra": none;
            "dfa": (p - 1) t_f, stages go backward at once when the error is there.
        micro_batches: m; where it is 0 nothing is idle.
        stages: p.
        forward_s: of one micro-batch on one stage.
        backward_s: the same, gradients of inputs and of parameters.
        weight_s: the latter's part of ``backward_s``.
        virtual: stages of one device.

    Raises:
        InvalidInput: another schedule.
    """
    check_choice("parallelism.schedule", schedule, (*SCHEDULES, "petra", "dfa"))
    each = np.asarray(forward_s + backward_s, float)
    if schedule == "petra":
        return np.zeros_like(each)
    if schedule == "dfa":
        each = np.asarray(forward_s, float)
    if schedule == "zero_bubble":
        each = np.maximum(each - 2 * weight_s, 0.0)
    elif schedule == "dualpipe":
        each = np.maximum(each + backward_s - 3 * weight_s, 0.0)
        return np.maximum(np.asarray(stages, float) / 2 - 1, 0.0) * each
    return np.where(np.asarray(micro_batches) > 0, (np.asarray(stages, float) - 1) / virtual * each, 0.0)


def flush_rate(micro_batches: int, stages: int, forward: float = 1.0, backward: float = 2.0) -> float:
    """Batches in a unit of time of GPipe and 1F1B: m / ((m + p - 1) (forward + backward))."""
    idle = bubble_s("1f1b", micro_batches, stages, forward, backward)
    return float(micro_batches / (micro_batches * (forward + backward) + idle))


def bubble(micro_batches: int, stages: int) -> float:
    """Share of the time that GPipe and 1F1B are idle: (p - 1) / (m + p - 1)."""
    return (stages - 1) / (micro_batches + stages - 1)


def petra_over_pipeline(
    micro_batches: int, stages: int, forward: float = 1.0, backward: float = 2.0, reconstruct: float = 1.0,
    zero_bubble: bool = False,
) -> float:  # fmt: skip
    """PETRA's rate over 1F1B's at equal memory and batch, a stage doing one pass at a time on each side.

    (m + p - 1) / m (t_f + t_b) / (t_f + t_b + t_rec), below 1 where m > (p - 1) (t_f + t_b) / t_rec. Against a schedule
    without a bubble it is always below 1.

    Raises:
        InvalidInput: no micro-batches.
    """
    check_number("micro_batches", micro_batches, 0, math.inf, above=True)
    waiting = 1.0 if zero_bubble else (micro_batches + stages - 1) / micro_batches
    return waiting * (forward + backward) / (forward + backward + reconstruct)


class FeedbackTimes(NamedTuple):
    """Times of direct feedback alignment in a pipeline, in the unit of its passes.

    Attributes:
        makespan: from the first forward pass of a step to the last update of any stage.
        period: between the beginnings of two steps, each with its own parameters. A stage that is done with its updates goes on
            with the next step, for it needs nothing from the others but their activations.
    """

    makespan: float
    period: float


def dfa_times(
    micro_batches: int,
    stages: int,
    forward: float = 1.0,
    update: float = 1.0,
    feedback: float = 0.0,
    streams: int = 1,
) -> FeedbackTimes:
    """A step of m micro-batches in p equal stages: forward first, then updates as errors come; messages take no time.

    With one stream (a stage does one pass at a time) and no ``feedback`` the makespan is (p - 1) t_f + m (t_f + t_w), i.e.
    that of m batches and :func:`bubble_s`; the period is m (t_f + t_w) + max(0, (p - m) t_f, (p - 1) t_f - (m - 1) t_w): with
    equal passes and m >= p steps have no bubble. All from the same two bounds: a stage's own passes, and errors that
    leave the last stage, and the unit, one after the other (derived).

    Args:
        micro_batches: m.
        stages: p.
        forward: t_f, of a micro-batch at one stage.
        update: t_w, gradients of parameters alone.
        feedback: what one unit that projects all errors takes for each; first come first served.
        streams: 2: a stage goes forward and updates at the same time.

    Raises:
        InvalidInput: fewer than one micro-batch or two stages.
    """
    check_integer("micro_batches", micro_batches, 1)
    check_integer("stages", stages, 2)
    more = micro_batches - 1
    own = (
        micro_batches * (forward + update) if streams == 1 else forward + update + more * max(forward, update)
    )
    errors = stages * forward + feedback
    errors += max(micro_batches * update, more * max(forward, feedback) + update)
    return FeedbackTimes(max((stages - 1) * forward + own, errors), max(own, errors))


class Costs(NamedTuple):
    """A row of table 1 of the PETRA paper, at one stage (FLOPs and time: of a batch), in units of a stage's forward pass.

    Attributes:
        activations: numbers remembered, in units of a stage's input.
        parameters: copies of the parameters.
        communication: numbers sent, in units of those of a stage that is not reversible.
        flops: of all stages.
        time: mean time for a batch.
    """

    activations: float
    parameters: float
    communication: float
    flops: float
    time: float


def method_costs(
    stages: int, stage: int, k: int = 1, graph: float = 1.0, as_code: bool = False
) -> dict[str, Costs]:
    """Table 1 of the PETRA paper (read), for stage j = 1 ... J.

    Args:
        stages: J.
        stage: j, from 1.
        k: backward passes to an update.
        graph: what a pass remembers to go backward, in units of the stage's input (the paper's FG).
        as_code: reversible methods with the FLOPs of the authors' code, which inverts and then goes forward again for the
            gradient: 5 J instead of the paper's 4 J.

    Raises:
        InvalidInput: ``k`` below 1, or no such stage.
    """
    check_integer("k", k, 1)
    late, again = 2 * (stages - check_integer("stage", stage, 1, stages)), 5 if as_code else 4
    return {
        "backprop": Costs(graph, 1, 1, 3 * stages, 3 * stages),
        "reversible backprop": Costs(0, 1, 4, again * stages, again * stages),
        "delayed gradients": Costs(late * graph, late / k, 1, 3 * stages, 2),
        "delayed gradients, checkpoints": Costs(late, 1, 1, 4 * stages, 3),
        "petra": Costs(0, 1, 4, again * stages, again - 1),
    }
