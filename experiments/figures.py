"""Plots of what runs have found: how success rose, and how each run ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from experiments.store import Row, rows_by

#: Pixels; of a panel, and of an arm's line in `ends`.
PANEL, LINE = 420, 30
#: Above and below the panels of `ends`.
MARGINS = 110


def curves(runs: Sequence[Row], updates: Sequence[Row]) -> Any:
    """Success of training episodes over updates: a line per arm, its runs' mean, and a
    panel per domain."""
    from plotly.subplots import make_subplots

    domains = list(rows_by(runs, "domain"))
    of_run = rows_by(updates, "name")
    plot = make_subplots(rows=1, cols=len(domains), subplot_titles=domains)
    for color, (arm, own) in zip(_colors(runs), rows_by(runs, "arm").items()):
        for column, domain in enumerate(domains, 1):
            of_arm = [of_run[run["name"]] for run in own if run["domain"] == domain]
            points = [fmean(float(row["success"]) for row in at) for at in zip(*of_arm)]
            plot.add_scatter(
                x=list(range(1, len(points) + 1)),
                y=points,
                name=arm,
                legendgroup=arm,
                showlegend=column == 1,
                line={"color": color, "width": 2},
                row=1,
                col=column,
            )
    plot.update_xaxes(title_text="update").update_yaxes(range=[0, 1])
    width = PANEL * len(domains) + 200
    return plot.update_layout(plot_bgcolor="white", width=width, height=PANEL)


def ends(runs: Sequence[Row], updates: Sequence[Row]) -> Any:
    """avg@4 of every run after its last update, a line per arm with the mean marked,
    and a panel per domain."""
    from plotly.subplots import make_subplots

    domains = list(rows_by(runs, "domain"))
    arms = rows_by(runs, "arm")
    plot = make_subplots(
        rows=1, cols=len(domains), subplot_titles=domains, shared_yaxes=True
    )
    for color, (arm, own) in zip(_colors(runs), arms.items()):
        for column, domain in enumerate(domains, 1):
            values = [float(run["avg@4"]) for run in own if run["domain"] == domain]
            if not values:
                continue
            for x, marker in (
                (values, {"size": 9, "opacity": 0.5}),
                ([fmean(values)], {"size": 24, "symbol": "line-ns-open"}),
            ):
                plot.add_scatter(
                    x=x,
                    y=[arm] * len(x),
                    mode="markers",
                    marker={"color": color, "line_width": 3, **marker},
                    showlegend=False,
                    row=1,
                    col=column,
                )
    plot.update_xaxes(range=[0, 1], title_text="avg@4 on test tasks", gridcolor="#ddd")
    plot.update_yaxes(categoryorder="array", categoryarray=[*arms][::-1])
    return plot.update_layout(
        plot_bgcolor="white",
        width=PANEL * len(domains) + 200,
        height=LINE * len(arms) + MARGINS,
    )


def _colors(runs: Sequence[Row]) -> list[str]:
    import plotly.colors

    palette = plotly.colors.qualitative.Safe + plotly.colors.qualitative.Vivid
    return [palette[n % len(palette)] for n in range(len(rows_by(runs, "arm")))]


#: By the end of the file's name: title and drawing.
FIGURES: dict[str, tuple[str, Callable[[Sequence[Row], Sequence[Row]], Any]]] = {
    "ends": ("Success of each run", ends),
    "curves": ("Success over updates", curves),
}
