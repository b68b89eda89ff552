"""How many of a model's parameters one device holds, and how few where a worker's replicas share them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from decentral.cost.layout import Layout
from decentral.cost.workload import Transformer, Workload


class Held(NamedTuple):
    """Parameters of one device of a worker, before replicas share anything.

    Attributes:
        dense: of its layers, without experts.
        experts: of its layers.
        ends: the embedding, and the output matrix where one device has both.
        ranks: devices of the worker that hold the same: replicas times context-parallel ranks.
        expert_ranks: those that hold the same experts.
    """

    dense: Any
    experts: Any
    ends: Any
    ranks: Any
    expert_ranks: Any

    @property
    def whole(self) -> Any:
        """All of it."""
        return self.dense + self.experts + self.ends

    @property
    def shard(self) -> Any:
        """A device's share, where all that hold the same share it."""
        return (self.dense + self.ends) / self.ranks + self.experts / self.expert_ranks


def held(model: Workload, layout: Layout) -> Held:
    """What a device of one worker holds: of a pipeline the first or last stage, which have the embedding or the output."""
    ranks = layout.replicas * layout.cp
    if not isinstance(model, Transformer):
        none = np.zeros(())
        return Held(np.asarray(model.parameters, float), none, none, ranks, ranks)
    tp, pp, ep = (np.asarray(x, float) for x in (layout.tp, layout.pp, layout.ep))
    output = np.where(
        (pp == 1) & ~np.asarray(model.tied, bool), np.asarray(model.vocab, float) * model.hidden, 0.0
    )
    return Held(
        (model.layer_parameters - model.expert_parameters) / (tp * pp),
        model.expert_parameters / (tp * pp * ep),
        (model.embedding_parameters + output) / tp,
        ranks,
        ranks / ep,
    )
