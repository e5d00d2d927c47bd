"""Plots of what runs have found: how success rose, and how each run ended."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import cycle, pairwise
from statistics import fmean
from typing import Any

from plotly.colors import qualitative
from plotly.subplots import make_subplots

from experiments.plan import EXPERIMENTS, HARD, SOURCES
from experiments.store import Row, rows_by

#: Pixels; of a panel, of the names of arms beside the panels, of an arm's line in
#: `ends` and in a legend, and of what is above and below these lines.
PANEL, LABELS, LINE, LEGEND_LINE, MARGINS = 420, 260, 30, 20, 110
GRID = "#ddd"
_COLORS = qualitative.Safe + qualitative.Vivid
#: An arm of an experiment that is one source under several values of one setting.
NUMBERED = re.compile(r"(?P<source>.+), (?P<what>[a-z]+) (?P<number>[0-9.]+)$")
_BOUNDED = re.compile(
    r"(?P<source>\w+): eps_ti (?P<eps_ti>[0-9.]+), eps_stale (?P<eps_stale>[0-9.]+)$"
)
SUCCESS = "avg@4 on test tasks"

Drawing = Callable[[Sequence[Row], Sequence[Row]], Any]


def curves(runs: Sequence[Row], updates: Sequence[Row]) -> Any:
    """Success of training episodes over updates: a line per arm, its runs' mean, with
    a cross where one of them reset its EWMA, and a panel per domain."""
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
            if not (resets := sorted(set().union(*map(_resets, of_arm)))):
                continue
            plot.add_scatter(
                x=[index + 1 for index in resets if index < len(points)],
                y=[points[index] for index in resets if index < len(points)],
                name=f"{arm}: EWMA reset",
                mode="markers",
                marker={"color": color, "symbol": "x", "size": 10},
                legendgroup=arm,
                row=1,
                col=column,
            )
    plot.update_xaxes(title_text="update").update_yaxes(range=[0, 1])
    # A legend that is higher than the plot would be cut.
    named = sum(trace.showlegend is not False for trace in plot.data)
    height = max(PANEL, LEGEND_LINE * named + MARGINS)
    return _laid_out(plot, len(domains), height).update_layout(legend_tracegroupgap=0)


def _resets(updates: Sequence[Row]) -> set[int]:
    """Which of a run's updates had one more reset behind it than the one before."""
    counts = [0.0, *(float(row.get("ewma_resets") or 0) for row in updates)]
    return {index for index, (a, b) in enumerate(pairwise(counts)) if b > a}


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
    plot.update_xaxes(range=[0, 1], title_text=SUCCESS)
    plot.update_yaxes(categoryorder="array", categoryarray=[*arms][::-1], dtick=1)
    height = LINE * len(arms) + MARGINS
    return _laid_out(plot, len(domains), height).update_layout(margin_l=LABELS)


def lines(runs: Sequence[Row], updates: Sequence[Row]) -> Any:
    """Of arms that a number tells apart, "SOURCE, lr 0.005": avg@4 and samples per hour
    over it, a line per source through the means of its runs."""
    columns = {"avg@4": SUCCESS, "samples_per_hour": "samples per hour"}
    named = _matched(runs, NUMBERED)
    plot = make_subplots(rows=1, cols=len(columns), horizontal_spacing=0.1)
    for place, (column, title) in enumerate(columns.items(), 1):
        _add_lines(plot, named, "number", column, place)
        plot.update_xaxes(title_text=named[0]["what"], row=1, col=place)
        plot.update_yaxes(title_text=title, rangemode="tozero", row=1, col=place)
    return _laid_out(plot, len(columns), PANEL)


def thresholds(runs: Sequence[Row], updates: Sequence[Row]) -> Any:
    """avg@4 over each of the two thresholds, the other as in the hard regime: a line
    per source through the means of its runs."""
    named = _matched(runs, _BOUNDED)
    plot = make_subplots(rows=1, cols=2, horizontal_spacing=0.1)
    for place, (varied, fixed) in enumerate(
        (("eps_ti", "eps_stale"), ("eps_stale", "eps_ti")), 1
    ):
        varying = [run for run in named if float(run[fixed]) == HARD[fixed]]
        varying.sort(key=lambda run: float(run[varied]))
        _add_lines(plot, varying, varied, "avg@4", place)
        title = f"{varied} ({fixed} {HARD[fixed]})"
        plot.update_xaxes(title_text=title, row=1, col=place)
        plot.update_yaxes(title_text=SUCCESS, range=[0, 1], row=1, col=place)
    return _laid_out(plot, 2, PANEL)


def _matched(runs: Sequence[Row], pattern: re.Pattern[str]) -> list[Row]:
    """The runs whose arms have that form, with what it names."""
    matches = [(run, pattern.match(run["arm"])) for run in runs]
    return [{**run, **match.groupdict()} for run, match in matches if match]


def _add_lines(
    plot: Any, runs: Sequence[Row], over: str, column: str, place: int
) -> None:
    """A column of runs over another one, in the order of the runs: a line per source
    through the means, and each run."""
    order = list(dict.fromkeys(run[over] for run in runs))
    for source, own in rows_by(runs, "source").items():
        at = {x: rows for x in order if (rows := rows_by(own, over).get(x))}
        shared = {"legendgroup": source, "row": 1, "col": place}
        color = _COLORS[SOURCES.index(source)]
        plot.add_scatter(
            x=[*at],
            y=[fmean(float(run[column]) for run in rows) for rows in at.values()],
            name=source,
            showlegend=place == 1,
            line={"color": color, "width": 2},
            marker={"size": 8},
            **shared,
        )
        plot.add_scatter(
            x=[run[over] for run in own],
            y=[float(run[column]) for run in own],
            mode="markers",
            marker={"color": color, "size": 7, "opacity": 0.4},
            showlegend=False,
            **shared,
        )
    plot.update_xaxes(
        type="category", categoryorder="array", categoryarray=order, row=1, col=place
    )


def _laid_out(plot: Any, num_panels: int, height: int) -> Any:
    plot.update_yaxes(gridcolor=GRID).update_xaxes(gridcolor=GRID)
    width = PANEL * num_panels + LABELS
    return plot.update_layout(
        plot_bgcolor="white", width=width, height=height, margin_t=40
    )


def figures_of(experiment: str) -> dict[str, tuple[str, Drawing]]:
    """By the end of the file's name: title and drawing."""
    if all(NUMBERED.match(run.arm) for run in EXPERIMENTS[experiment].runs):
        return {"lines": ("Success and samples per hour", lines)}
    by_bounds = {"lines": ("Success over each threshold", thresholds)}
    return {
        **(by_bounds if experiment == "thresholds" else {}),
        "ends": ("Success of each run", ends),
        "curves": ("Success over updates", curves),
    }
