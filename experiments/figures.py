"""Plots of what runs have found: how success rose, and how each run ended."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import cycle
from statistics import fmean
from typing import Any

from plotly.colors import qualitative
from plotly.subplots import make_subplots

from experiments.plan import EXPERIMENTS
from experiments.store import Row, rows_by

#: Pixels; of a panel, of the names of arms beside the panels, of an arm's line in
#: `ends` and of what is above and below these lines.
PANEL, LABELS, LINE, MARGINS = 420, 260, 30, 110
GRID = "#ddd"
_COLORS = qualitative.Safe + qualitative.Vivid
_NUMBERED = re.compile(r"(?P<source>.+), (?P<what>[a-z]+) (?P<number>[0-9.]+)$")

Drawing = Callable[[Sequence[Row], Sequence[Row]], Any]


def curves(runs: Sequence[Row], updates: Sequence[Row]) -> Any:
    """Success of training episodes over updates: a line per arm, its runs' mean, and a
    panel per domain."""
    domains = list(rows_by(runs, "domain"))
    of_run = rows_by(updates, "name")
    plot = make_subplots(rows=1, cols=len(domains), subplot_titles=domains)
    for color, (arm, own) in zip(cycle(_COLORS), rows_by(runs, "arm").items()):
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
    return _laid_out(plot, len(domains), PANEL)


def ends(runs: Sequence[Row], updates: Sequence[Row]) -> Any:
    """avg@4 of every run after its last update, a line per arm with the mean marked,
    and a panel per domain."""
    domains = list(rows_by(runs, "domain"))
    arms = rows_by(runs, "arm")
    plot = make_subplots(
        rows=1, cols=len(domains), subplot_titles=domains, shared_yaxes=True
    )
    for color, (arm, own) in zip(cycle(_COLORS), arms.items()):
        for column, domain in enumerate(domains, 1):
            values = [float(run["avg@4"]) for run in own if run["domain"] == domain]
            if not values:
                continue
            for x, marker in (
                (values, {"size": 9, "opacity": 0.5}),
                (
                    [fmean(values)],
                    {"size": 24, "symbol": "line-ns-open", "line_width": 3},
                ),
            ):
                plot.add_scatter(
                    x=x,
                    y=[arm] * len(x),
                    mode="markers",
                    marker={"color": color, **marker},
                    showlegend=False,
                    row=1,
                    col=column,
                )
    plot.update_xaxes(range=[0, 1], title_text="avg@4 on test tasks")
    plot.update_yaxes(categoryorder="array", categoryarray=[*arms][::-1], dtick=1)
    height = LINE * len(arms) + MARGINS
    return _laid_out(plot, len(domains), height).update_layout(margin_l=LABELS)


def lines(runs: Sequence[Row], updates: Sequence[Row]) -> Any:
    """Of arms that a number tells apart, "SOURCE, lr 0.005": avg@4 and samples per hour
    over it, a line per source through the means of its runs."""
    columns = {"avg@4": "avg@4 on test tasks", "samples_per_hour": "samples per hour"}
    matches = [(run, _NUMBERED.match(run["arm"])) for run in runs]
    named = [{**run, **match.groupdict()} for run, match in matches if match]
    plot = make_subplots(rows=1, cols=len(columns), horizontal_spacing=0.1)
    for color, (source, own) in zip(cycle(_COLORS), rows_by(named, "source").items()):
        at = rows_by(own, "number")
        for place, column in enumerate(columns, 1):
            plot.add_scatter(
                x=[*at],
                y=[fmean(float(run[column]) for run in at[n]) for n in at],
                name=source,
                legendgroup=source,
                showlegend=place == 1,
                line={"color": color, "width": 2},
                marker={"size": 8},
                row=1,
                col=place,
            )
            plot.add_scatter(
                x=[run["number"] for run in own],
                y=[float(run[column]) for run in own],
                mode="markers",
                marker={"color": color, "size": 7, "opacity": 0.4},
                showlegend=False,
                row=1,
                col=place,
            )
    plot.update_xaxes(title_text=named[0]["what"], type="category")
    for place, title in enumerate(columns.values(), 1):
        plot.update_yaxes(title_text=title, rangemode="tozero", row=1, col=place)
    return _laid_out(plot, len(columns), PANEL)


def _laid_out(plot: Any, num_panels: int, height: int) -> Any:
    plot.update_yaxes(gridcolor=GRID).update_xaxes(gridcolor=GRID)
    width = PANEL * num_panels + LABELS
    return plot.update_layout(
        plot_bgcolor="white", width=width, height=height, margin_t=40
    )


def figures_of(experiment: str) -> dict[str, tuple[str, Drawing]]:
    """By the end of the file's name: title and drawing."""
    if all(_NUMBERED.match(run.arm) for run in EXPERIMENTS[experiment].runs):
        return {"lines": ("Success and samples per hour", lines)}
    return {
        "ends": ("Success of each run", ends),
        "curves": ("Success over updates", curves),
    }
