"""One group's mean of a figure over updates, as a line of a panel."""

from __future__ import annotations

import plotly.graph_objects as go

from rllib_llm_async.report.groups import Group


def mean_line(
    group: Group, key: str, number_format: str, *, in_legend: bool
) -> go.Scatter:
    """The line, in the group's colour.

    Args:
        group: Whose runs.
        key: Of the figure in their results.
        number_format: d3's, of a value under the pointer.
        in_legend: Whether it stands there: one line of a group does.
    """
    iterations, means, _ = group.band(key)
    return go.Scatter(
        x=iterations,
        y=means,
        name=group.label,
        legendgroup=group.label,
        showlegend=in_legend,
        line={"color": group.color, "width": 2},
        hovertemplate=f"update %{{x}}: %{{y:{number_format}}}",
    )
