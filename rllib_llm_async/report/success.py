"""Success over updates, with bands over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from rllib_llm_async.report.groups import (
    HELD_OUT,
    HELD_OUT_AT_START,
    SUCCESS,
    Group,
    final_success,
    largest_fall,
)
from rllib_llm_async.report.load import Run
from rllib_llm_async.report.section import Section, lay_out, transparent


def success_section(groups: Sequence[Group]) -> Section:
    """Training success as lines, held-out success as marks, 95 % bands over seeds."""
    figure = go.Figure()
    for group in groups:
        iterations, means, half_widths = group.band(SUCCESS)
        if not len(iterations):
            continue
        has_band = np.isfinite(half_widths)
        if has_band.any():
            figure.add_trace(_band(group, iterations, means, half_widths, has_band))
        figure.add_trace(
            go.Scatter(
                x=iterations,
                y=means,
                name=group.label,
                legendgroup=group.label,
                line={"color": group.color, "width": 2.5},
                hovertemplate="update %{x}: %{y:.3f} in training",
            )
        )
        _add_held_out(figure, group)
    if not figure.data:
        return Section(
            "Success",
            missing="No finished episode yet: env_runners/success_rate is in the "
            "results from the first update on.",
        )
    figure.update_xaxes(title="update", rangemode="tozero")
    figure.update_yaxes(title="success rate", range=[0, 1.02])
    return Section(
        "Success",
        success_finding(groups),
        lay_out(figure, 420),
        "Lines: mean of the last training episodes (metrics_num_episodes_for_smoothing)"
        ". Diamonds: held-out tasks (evaluation_interval), as far as the run evaluated."
        + _note_on_bands(groups),
    )


def _band(group: Group, iterations, means, half_widths, has_band) -> go.Scatter:
    x = iterations[has_band]
    low = np.clip(means - half_widths, 0, 1)[has_band]
    high = np.clip(means + half_widths, 0, 1)[has_band]
    return go.Scatter(
        x=[*x, *x[::-1]],
        y=[*high, *low[::-1]],
        fill="toself",
        fillcolor=transparent(group.color, 0.16),
        line={"width": 0},
        legendgroup=group.label,
        showlegend=False,
        hoverinfo="skip",
    )


def _add_held_out(figure: go.Figure, group: Group) -> None:
    iterations, means, half_widths = group.band(HELD_OUT)
    at_start = group.mean(lambda run: run.last(HELD_OUT_AT_START))
    x, y = list(iterations), list(means)
    errors = list(np.nan_to_num(half_widths))
    if at_start is not None:
        x, y, errors = [0, *x], [at_start, *y], [0.0, *errors]
    if not x:
        return
    figure.add_trace(
        go.Scatter(
            x=x,
            y=y,
            mode="markers",
            name=f"{group.label}, held-out",
            legendgroup=group.label,
            showlegend=False,
            error_y={"array": errors, "visible": any(errors), "thickness": 1.2},
            marker={
                "symbol": "diamond",
                "size": 11,
                "color": group.color,
                "line": {"color": "white", "width": 1.5},
            },
            hovertemplate="update %{x}: %{y:.3f} on held-out tasks",
        )
    )


def success_finding(groups: Sequence[Group]) -> str:
    """Where success began and ended, or who succeeds most often."""
    if len(groups) == 1:
        group = groups[0]
        first, last = group.mean(_start), group.mean(final_success)
        fall = group.mean(largest_fall) or 0.0
        if first is None or last is None:
            return ""
        verb = "rises" if last >= first else "falls"
        return (
            f"Success {verb} from {first:.3f} to {last:.3f}; its largest fall on the "
            f"way is {fall:.3f}."
        )
    finals = [(group.mean(final_success), group.label) for group in groups]
    ranked = sorted(((v, label) for v, label in finals if v is not None), reverse=True)
    if not ranked:
        return ""
    (best, best_label), (worst, worst_label) = ranked[0], ranked[-1]
    return (
        f"At the end {best_label} succeeds most often ({best:.3f}), {worst_label} "
        f"least ({worst:.3f})."
    )


def _start(run: Run) -> float | None:
    held_out = run.last(HELD_OUT_AT_START)
    if held_out is not None and run.last(HELD_OUT) is not None:
        return held_out
    _, values = run.series(SUCCESS)
    return values[0] if values else None


def _note_on_bands(groups: Sequence[Group]) -> str:
    if any(len(group.runs) > 1 for group in groups):
        return " Bands: 95 % confidence over seeds (Student's t)."
    return (
        " One seed each, so there is no band: repeat with --set seed=1 and so on, and "
        "give all the directories."
    )
