"""What a run's numbers say: means with intervals over seeds, times to a target, tables and plots. Without JAX.

Names are loaded on first use: a table costs nothing of what charts need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decentral.analysis.coordinates import plot_coordinate_check
    from decentral.analysis.cost_plots import breakdown_figure
    from decentral.analysis.gantt import gantt_figure, plot_gantt
    from decentral.analysis.graphs import topology_figure
    from decentral.analysis.plots import (
        STYLE,
        colours,
        overview_figure,
        paper_style,
        plot_metric,
        plot_overview,
        save_figure,
        styles,
    )
    from decentral.analysis.statistics import (
        Paired,
        PairedTimes,
        TimeToTarget,
        bootstrap_interval,
        final_metrics,
        mean_interval,
        paired,
        paired_times,
        time_to_target,
        time_to_target_summary,
    )
    from decentral.analysis.tables import comparison_table, format_interval

_HOMES = {
    "coordinates": ("plot_coordinate_check",),
    "cost_plots": ("breakdown_figure",),
    "gantt": ("gantt_figure", "plot_gantt"),
    "graphs": ("topology_figure",),
    "plots": (
        *("STYLE", "colours", "overview_figure", "paper_style", "plot_metric", "plot_overview"),
        *("save_figure", "styles"),
    ),
    "statistics": (
        *("Paired", "PairedTimes", "TimeToTarget", "bootstrap_interval", "final_metrics", "mean_interval"),
        *("paired", "paired_times", "time_to_target", "time_to_target_summary"),
    ),
    "tables": ("comparison_table", "format_interval"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "STYLE",
    "Paired",
    "PairedTimes",
    "TimeToTarget",
    "bootstrap_interval",
    "breakdown_figure",
    "colours",
    "comparison_table",
    "final_metrics",
    "format_interval",
    "gantt_figure",
    "mean_interval",
    "overview_figure",
    "paired",
    "paired_times",
    "paper_style",
    "plot_coordinate_check",
    "plot_gantt",
    "plot_metric",
    "plot_overview",
    "save_figure",
    "styles",
    "time_to_target",
    "time_to_target_summary",
    "topology_figure",
]


def __getattr__(name: str):
    if name in _HOME_OF:
        return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
