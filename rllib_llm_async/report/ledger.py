"""Where episodes and tokens went, and whether long or failing ones went missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rllib_llm_async.coordination.ledger import LENGTH_BINS, REWARD_BINS
from rllib_llm_async.report.groups import Group
from rllib_llm_async.report.load import Run
from rllib_llm_async.report.section import PALETTE, Section, joined, lay_out, percent
from rllib_llm_async.result_keys import (
    BY_LENGTH,
    BY_REWARD,
    DROPPED,
    EPISODES,
    IN_FLIGHT,
    LEDGER_IDENTITY_ERROR,
    MASKED,
    STARTED,
    TOKENS,
    TRAINED,
    ledger_bin,
    ledger_count,
)

_COLORS = {TRAINED: "#0072B2", MASKED: "#C4CAD1"}
#: Of the reasons to drop, in their order.
_DROP_COLORS = [color for color in PALETTE if color not in _COLORS.values()]


def ledger_section(groups: Sequence[Group]) -> Section:
    """Fates per update of the first run; shares trained on by bin, for every group."""
    heading = "Where episodes and tokens went"
    told = [group for group in groups if _has_ledger(group.runs[0])]
    if not told:
        return Section(
            heading,
            missing="These runs logged no ledger; runs of this version do so in every "
            "iteration.",
        )
    run = told[0].runs[0]
    figure = make_subplots(
        rows=2,
        cols=2,
        vertical_spacing=0.16,
        subplot_titles=(
            "Episodes per update",
            "Tokens per update",
            "Share of tokens trained on, by length",
            "Share of tokens trained on, by reward",
        ),
    )
    for col, unit in ((1, EPISODES), (2, TOKENS)):
        _draw_fates(figure, run, unit, col)
    for col, by, names in ((1, BY_LENGTH, LENGTH_BINS), (2, BY_REWARD, REWARD_BINS)):
        _draw_shares(figure, told, by, names, col)
    figure.update_xaxes(title="update", row=1)
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02], row=2)
    # The legend stands above the first panels' titles, however many lines it takes.
    figure = lay_out(figure, 680, barmode="group").update_layout(
        legend_y=1.08, margin_t=90, legend_traceorder="normal"
    )
    note = (
        "Above, the first run: bars of one update add up to all that ended in it, the "
        "dotted line is what was in flight. Below, everything since the start: a bin "
        "that is trained on less than the others is a bias; unfinished episodes never "
        "got a length or a reward."
    )
    return Section(heading, _finding(told), figure, note)


def _draw_fates(figure: go.Figure, run: Run, unit: str, col: int) -> None:
    """Stacked areas of what ended in each update, by fate, and a line in flight."""
    fates = _fates(run, unit)
    for fate in fates:
        iterations, totals = run.series(ledger_count(unit, fate))
        figure.add_trace(
            go.Scatter(
                x=iterations,
                y=np.diff(totals, prepend=0.0).clip(min=0),
                name=fate.replace("_", " "),
                legendgroup=fate,
                showlegend=col == 1,
                stackgroup=unit,
                line={"width": 0.5, "color": _color(fate, fates), "shape": "hvh"},
                hovertemplate="update %{x}: %{y:,.0f}",
            ),
            row=1,
            col=col,
        )
    iterations, in_flight = run.series(ledger_count(unit, IN_FLIGHT))
    figure.add_trace(
        go.Scatter(
            x=iterations,
            y=in_flight,
            name="in flight",
            legendgroup=IN_FLIGHT,
            showlegend=col == 1,
            line={"color": "#808080", "dash": "dot", "width": 1.2},
            hovertemplate="update %{x}: %{y:,.0f}",
        ),
        row=1,
        col=col,
    )


def _draw_shares(
    figure: go.Figure,
    groups: Sequence[Group],
    by: str,
    names: Sequence[str],
    col: int,
) -> None:
    """A bar per bin and group."""
    for group in groups:
        ends = {name: _ends(group, by, name, TOKENS) for name in names}
        shown = [name for name, end in ends.items() if sum(end.values())]
        episodes = [sum(_ends(group, by, name, EPISODES).values()) for name in shown]
        figure.add_trace(
            go.Bar(
                x=[name.replace("_", " ") for name in shown],
                y=[ends[name][TRAINED] / sum(ends[name].values()) for name in shown],
                name=group.label,
                showlegend=False,
                marker={"color": group.color},
                customdata=[f"{number:,.0f}" for number in episodes],
                hovertemplate="%{x}: %{y:.1%} of %{customdata} episodes",
            ),
            row=2,
            col=col,
        )
    order = [name.replace("_", " ") for name in names]
    figure.update_xaxes(categoryorder="array", categoryarray=order, row=2, col=col)


def _has_ledger(run: Run) -> bool:
    return bool(run.last(ledger_count(EPISODES, STARTED)))


def _fates(run: Run, unit: str) -> list[str]:
    """Trained, masked and every reason to drop that there was, in this order."""
    prefix = ledger_count(unit, f"{DROPPED}_")
    reasons = sorted({key for row in run.rows for key in row if key.startswith(prefix)})
    dropped = [f"{DROPPED}_{key.removeprefix(prefix)}" for key in reasons]
    return [TRAINED, MASKED, *dropped]


def _color(fate: str, fates: Sequence[str]) -> str:
    if fate in _COLORS:
        return _COLORS[fate]
    return _DROP_COLORS[(fates.index(fate) - len(_COLORS)) % len(_DROP_COLORS)]


def _ends(group: Group, by: str, name: str, unit: str) -> dict[str, float]:
    """What ended in a bin by fate, over all runs of the group."""
    ends: dict[str, float] = defaultdict(float)
    for run in group.runs:
        for fate in (TRAINED, MASKED, DROPPED):
            ends[fate] += run.last(ledger_bin(by, name, unit, fate)) or 0.0
    return ends


def _finding(groups: Sequence[Group]) -> str:
    sentences = []
    for group in groups[:3]:
        run = group.runs[0]
        started = run.last(ledger_count(EPISODES, STARTED)) or 1.0
        trained = run.last(ledger_count(EPISODES, TRAINED)) or 0.0
        dropped = {
            fate.removeprefix(f"{DROPPED}_"): run.last(ledger_count(EPISODES, fate))
            or 0
            for fate in _fates(run, EPISODES)
            if fate.startswith(DROPPED)
        }
        largest = sorted(dropped, key=lambda reason: -dropped[reason])
        reasons = joined([f"{reason} {dropped[reason]:,.0f}" for reason in largest])
        prefix = f"{group.label}: of" if len(groups) > 1 else "Of"
        sentences.append(
            f"{prefix} {started:,.0f} episodes {percent(trained / started)} were "
            f"trained on and {percent(sum(dropped.values()) / started)} dropped"
            f"{f' ({reasons})' if dropped else ''}."
        )
    runs = [run for group in groups for run in group.runs]
    worst = max(max(run.series(LEDGER_IDENTITY_ERROR)[1], default=0.0) for run in runs)
    sentences.append(
        "Every episode and token is accounted for in every iteration."
        if not worst
        else f"Up to {worst:,.0f} episodes and tokens are not accounted for: somebody "
        "miscounts."
    )
    return " ".join(sentences)
