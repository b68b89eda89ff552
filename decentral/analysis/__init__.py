"""What a run's numbers say: means with intervals over seeds, times to a target, tables and plots. Without JAX."""

from decentral.analysis.plots import colours, paper_style, plot_metric, plot_overview, save_figure, styles
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

__all__ = [
    "Paired",
    "PairedTimes",
    "TimeToTarget",
    "bootstrap_interval",
    "colours",
    "comparison_table",
    "final_metrics",
    "format_interval",
    "mean_interval",
    "paired",
    "paired_times",
    "paper_style",
    "plot_metric",
    "plot_overview",
    "save_figure",
    "styles",
    "time_to_target",
    "time_to_target_summary",
]
