"""The W&B workspace of our runs: what to look at, in sections."""

from __future__ import annotations

from typing import Any

from rllib_llm_async.monitoring.panels import HEADLINES, PANELS

#: Settings that sweeps vary most, beside the headlines in lists of runs.
_SWEPT = ("old_logprob_source", "eps_ti", "eps_stale", "max_staleness", "lr", "seed")


def build_workspace(project: str, entity: str) -> Any:
    """A `wandb_workspaces.workspaces.Workspace`; ``save()`` creates it and its URL."""
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as workspaces

    sections = [
        workspaces.Section(
            name=group,
            is_open=True,
            panels=[
                panels.LinePlot(title=title, x="training_iteration", y=[*keys])
                for title, keys in plots.items()
            ],
        )
        for group, plots in PANELS.items()
    ]
    # W&B keeps a summary under the name of its statistic.
    summaries = [f"{key}.{how.split(',')[0]}" for key, how in HEADLINES.items()]
    axes: list[Any] = [
        *map(panels.Config, _SWEPT),
        *map(panels.SummaryMetric, summaries),
    ]
    sweep = workspaces.Section(
        name="sweep",
        is_open=True,
        panels=[
            panels.ParallelCoordinatesPlot(
                title="what was set and what came of it",
                columns=[
                    panels.ParallelCoordinatesPlotColumn(metric=axis) for axis in axes
                ],
            ),
        ],
    )
    return workspaces.Workspace(
        name="rllib_llm_async",
        project=project,
        entity=entity,
        sections=[*sections, sweep],
        runset_settings=workspaces.RunsetSettings(
            pinned_columns=[
                *(f"config:{key}" for key in _SWEPT),
                *(f"summary:{key}" for key in summaries),
            ]
        ),
    )
