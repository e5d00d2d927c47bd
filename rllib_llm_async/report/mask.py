"""What the Train-Infer mask keeps and what the clip stops, update by update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plotly.subplots import make_subplots

from rllib_llm_async import result_keys
from rllib_llm_async.report.groups import Group
from rllib_llm_async.report.load import Run
from rllib_llm_async.report.mean_line import mean_line
from rllib_llm_async.report.section import Section, lay_out, percent, share_axis
from rllib_llm_async.result_keys import learner


def mask_and_clip_section(groups: Sequence[Group]) -> Section:
    """Train-Infer mask and clip on one axis of updates, with resets of the EWMA."""
    heading = "Train-Infer mask and clip"
    figure = make_subplots(
        rows=2,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.08,
        subplot_titles=(
            "Share of tokens that the mask keeps (r_d within eps_ti)",
            "Share of kept tokens that the clip stops (r_s beyond eps_stale)",
        ),
    )
    for group in groups:
        for row, key in (
            (1, result_keys.TRAIN_INFER_MASK),
            (2, result_keys.PPO_CLIP_FRACTION),
        ):
            line = mean_line(group, learner(key), ".4%", in_legend=row == 1)
            figure.add_trace(line, row=row, col=1)
    if not any(len(trace.x) for trace in figure.data):
        return Section(heading, missing="No update yet.")
    resets = [line for group in groups for line in _reset_lines(group)]
    # All at once: plotly checks those that are there again with each that is added.
    figure.update_layout(shapes=resets)
    for row, axis in ((1, "y"), (2, "y2")):
        shares = [y for line in figure.data if line.yaxis == axis for y in line.y]
        figure.update_yaxes(**share_axis(shares), row=row, col=1)
    figure.update_xaxes(title="update", row=2, col=1)
    note = "Dotted lines: resets of the EWMA weights, in the colour of their run."
    if not resets:
        note = "The EWMA weights were not reset (or the source has none)."
    # The legend stands above the first panel's title, however many lines it takes.
    figure = lay_out(figure, 520).update_layout(legend_y=1.08, margin_t=90)
    return Section(heading, mask_finding(groups), figure, note)


def reset_iterations(run: Run) -> list[int]:
    """Updates at which the EWMA weights were reset to the current ones."""
    iterations, counts = run.series(learner(result_keys.EWMA_NUM_RESETS))
    before = [0.0, *counts]
    return [
        x for x, new, old in zip(iterations, counts, before, strict=False) if new > old
    ]


def _reset_lines(group: Group) -> list[dict[str, Any]]:
    """A line over each of the two panels per reset, as plotly's shapes."""
    resets = sorted({x for run in group.runs for x in reset_iterations(run)})
    line = {"color": group.color, "dash": "dot", "width": 1.2}
    return [
        {
            "type": "line",
            "line": line,
            "xref": f"x{panel}",
            "x0": x,
            "x1": x,
            "yref": f"y{panel} domain",
            "y0": 0,
            "y1": 1,
        }
        for x in resets
        for panel in ("", "2")
    ]


def mask_finding(groups: Sequence[Group]) -> str:
    """What the mask keeps and the clip stops, in words."""
    sentences = []
    for group in groups:
        _, kept, _ = group.band(learner(result_keys.TRAIN_INFER_MASK))
        _, clipped, _ = group.band(learner(result_keys.PPO_CLIP_FRACTION))
        if len(kept) and len(clipped):
            prefix = f"{group.label}: " if len(groups) > 1 else ""
            sentences.append(
                f"{prefix}the mask keeps {percent(kept.mean())} of the tokens (at "
                f"worst {percent(kept.min())}), the clip stops "
                f"{percent(clipped.mean())} of those."
            )
    if len(sentences) > 3:
        return f"{' '.join(sentences[:3])} {len(sentences) - 3} more below."
    return " ".join(s[0].upper() + s[1:] if len(groups) == 1 else s for s in sentences)
