"""Tokens in the plane of log r_d and log r_s."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from rllib_llm_async import result_keys
from rllib_llm_async.core import NUM_RATIO_BINS, RATIO_BIN_EDGES
from rllib_llm_async.report.groups import Group
from rllib_llm_async.report.load import Run
from rllib_llm_async.report.section import (
    MAX_PANELS,
    SEQUENTIAL,
    Section,
    joined,
    lay_out,
    panels,
    percent,
)
from rllib_llm_async.result_keys import learner

#: Bin i covers [i - 0.5, i + 0.5] on an axis of bins, so edge i lies at i + 0.5.
_EDGE_POSITIONS = np.arange(len(RATIO_BIN_EDGES)) + 0.5
#: Edges at powers of 100, and 0, which stands for all below 1e-4.
_TICKS = [0, 5, 11, 17, 22]
_TICK_POSITIONS = [_EDGE_POSITIONS[i] for i in _TICKS]
_TICK_TEXTS = [f"{RATIO_BIN_EDGES[i]:g}" for i in _TICKS]


def density_section(groups: Sequence[Group]) -> Section:
    """Tokens by log r_d and log r_s, all updates together, one panel per group."""
    heading = "Discrepancy against staleness, token by token"
    shown = [(g, c) for g in groups if (c := _density(g)) is not None]
    if not shown:
        return Section(
            heading,
            missing="These runs logged no learners/default_policy/ratio_density; "
            "runs of this version do so in every update.",
        )
    left_out = [g.label for g, _ in shown[MAX_PANELS:]]
    shown = shown[:MAX_PANELS]
    figure = panels([group.label for group, _ in shown])
    for number, (group, counts) in enumerate(shown):
        row, col = divmod(number, 2)
        figure.add_trace(
            go.Heatmap(
                # Rows of z run upwards: log r_s on y, log r_d on x.
                z=np.where(counts > 0, np.log10(np.maximum(counts, 1)), np.nan).T,
                customdata=counts.T,
                colorscale=SEQUENTIAL,
                coloraxis="coloraxis",
                hovertemplate="%{customdata:.0f} tokens<extra></extra>",
            ),
            row=row + 1,
            col=col + 1,
        )
        _draw_bounds(figure, group.runs[0], row + 1, col + 1)
    ticks = {"tickvals": _TICK_POSITIONS, "ticktext": _TICK_TEXTS, "zeroline": False}
    limits = [-0.5, NUM_RATIO_BINS - 0.5]
    figure.update_xaxes(title="log r_d (discrepancy)", range=limits, **ticks)
    figure.update_yaxes(title="log r_s (staleness)", range=limits, **ticks)
    figure.update_layout(
        coloraxis={
            "colorscale": SEQUENTIAL,
            "colorbar": {
                "title": "tokens",
                "tickvals": list(range(9)),
                "ticktext": [f"10<sup>{n}</sup>" for n in range(9)],
            },
        }
    )
    note = (
        "Bins on a logarithmic scale on both sides of 1; the middle four mean equal "
        "to 1 within 1e-4. Red lines: eps_ti (mask, vertical) and eps_stale (clip, "
        "horizontal). A diagonal stripe says that one factor is only the other one's "
        "shadow, as with interpolated proxies; a cross says that they are separate."
    )
    if left_out:
        note += f" Not shown: {joined(left_out)}."
    return Section(
        heading,
        _density_finding(shown),
        lay_out(figure, 470 * ((len(shown) + 1) // 2)),
        note,
    )


def _density(group: Group) -> np.ndarray | None:
    counts = [
        np.asarray(row[key]).reshape(NUM_RATIO_BINS, NUM_RATIO_BINS)
        for run in group.runs
        for row in run.rows
        if len(row.get(key := learner(result_keys.RATIO_DENSITY)) or ())
        == NUM_RATIO_BINS**2
    ]
    return np.sum(counts, axis=0) if counts else None


def bin_position(log_ratio: float) -> float:
    """Where a log ratio lies on an axis of bins, interpolated between their edges."""
    smallest = min(abs(edge) for edge in RATIO_BIN_EDGES if edge)

    def decades(value: float) -> float:
        above = math.log10(max(abs(value), smallest) / smallest)
        return math.copysign(above, value) if value else 0.0

    positions = [decades(edge) for edge in RATIO_BIN_EDGES]
    return float(np.interp(decades(log_ratio), positions, _EDGE_POSITIONS))


def _draw_bounds(figure: go.Figure, run: Run, row: int, col: int) -> None:
    line = {"color": "#d1242f", "width": 1.2, "dash": "dash"}
    eps_ti, eps_stale = run.config.get("eps_ti"), run.config.get("eps_stale")
    if eps_ti:
        for bound in (-math.log(eps_ti), math.log(eps_ti)):
            figure.add_vline(x=bin_position(bound), line=line, row=row, col=col)
    if eps_stale:
        low = 2 - (run.config.get("eps_stale_low") or eps_stale)
        bounds = [math.log(low)] if low > 0 else []  # below 0 it never acts
        for bound in (*bounds, math.log(eps_stale)):
            figure.add_hline(y=bin_position(bound), line=line, row=row, col=col)


def _density_finding(shown: Sequence[tuple[Group, np.ndarray]]) -> str:
    middle = [i for i, e in enumerate(RATIO_BIN_EDGES) if abs(e) < 1.001e-2]
    near_one = slice(middle[0] + 1, middle[-1] + 1)
    sentences = []
    for group, counts in shown[:3]:
        total = counts.sum()
        r_d = counts[near_one].sum() / total
        r_s = counts[:, near_one].sum() / total
        prefix = f"{group.label}: " if len(shown) > 1 else ""
        sentences.append(
            f"{prefix}r_d is within 1 % of 1 for {percent(r_d)} of the tokens, r_s for "
            f"{percent(r_s)}."
        )
    return " ".join(sentences)
