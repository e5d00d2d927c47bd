"""How old the tokens were, update by update."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import plotly.graph_objects as go

from rllib_llm_async import result_keys
from rllib_llm_async.report.groups import Group
from rllib_llm_async.report.load import Run
from rllib_llm_async.report.section import (
    MAX_PANELS,
    SEQUENTIAL,
    Section,
    joined,
    lay_out,
    panels,
)
from rllib_llm_async.result_keys import learner, runners


def staleness_section(groups: Sequence[Group]) -> Section:
    """Share of tokens by staleness over updates, one panel per group."""
    heading = "Staleness of the tokens trained on"
    shown = [(g, t) for g in groups if (t := _staleness(g.runs[0])) is not None]
    if not shown:
        return Section(
            heading,
            missing="These runs logged no learners/default_policy/staleness_tokens; "
            "runs of this version do so in every update.",
        )
    left_out = [g.label for g, _ in shown[MAX_PANELS:]]
    shown = shown[:MAX_PANELS]
    figure = panels([group.label for group, _ in shown])
    for number, (_, (iterations, shares)) in enumerate(shown):
        row, col = divmod(number, 2)
        figure.add_trace(
            go.Heatmap(
                x=iterations,
                y=list(range(shares.shape[1])),
                z=np.where(shares > 0, shares, np.nan).T,
                coloraxis="coloraxis",
                hovertemplate="update %{x}, %{y} versions old: %{z:.1%}<extra></extra>",
            ),
            row=row + 1,
            col=col + 1,
        )
    figure.update_layout(
        coloraxis={
            "colorscale": SEQUENTIAL,
            "cmin": 0,
            "cmax": 1,
            "colorbar": {"title": "share", "tickformat": ".0%"},
        }
    )
    figure.update_xaxes(title="update")
    figure.update_yaxes(title="versions old", dtick=1)
    note = "Read a column as the histogram of one update."
    if any(len(group.runs) > 1 for group, _ in shown):
        note += " The first seed of each configuration."
    if left_out:
        note += f" Not shown: {joined(left_out)}."
    age = learner(result_keys.STALENESS_MEAN)
    means = [
        (group, run_mean)
        for group, _ in shown
        if (run_mean := group.mean(partial(_mean_of, key=age))) is not None
    ]
    finding = " ".join(
        f"{f'{group.label}: ' if len(shown) > 1 else 'Tokens are '}{mean:.2f} versions "
        f"old on average{_why(group)}."
        for group, mean in means[:3]
    )
    height = 330 * ((len(shown) + 1) // 2)
    return Section(heading, finding, lay_out(figure, height), note)


def _why(group: Group) -> str:
    """Where the tokens grew old, and what held places for episodes free."""
    keys = (
        result_keys.STALENESS_FROM_GENERATION,
        result_keys.STALENESS_FROM_QUEUE,
        result_keys.HELD_BY_BOUND_FRACTION,
        result_keys.HELD_BY_PACING_FRACTION,
    )
    values = [group.mean(partial(_mean_of, key=runners(key))) for key in keys]
    generation, queue, bound, pacing = values
    if generation is None or queue is None:
        return ""
    text = f", {generation:.2f} from generation and {queue:.2f} from the queue"
    if bound is not None and pacing is not None:
        text += (
            f"; there was room for more episodes in {bound + pacing:.0%} of the time, "
            f"in {bound:.0%} the staleness bound forbade them, in {pacing:.0%} they "
            "would have come too early"
        )
    return text


def _staleness(run: Run) -> tuple[list[int], np.ndarray] | None:
    """Updates, and the share of tokens ``[updates, staleness]``."""
    key = learner(result_keys.STALENESS_TOKENS)
    rows = [row for row in run.rows if row.get(key) and sum(row[key])]
    if not rows:
        return None
    counts = np.zeros((len(rows), max(len(row[key]) for row in rows)))
    for number, row in enumerate(rows):
        counts[number, : len(row[key])] = row[key]
    shares = counts / counts.sum(axis=1, keepdims=True)
    return [row["training_iteration"] for row in rows], shares


def _mean_of(run: Run, key: str) -> float | None:
    _, values = run.series(key)
    return float(np.mean(values)) if values else None
