"""What the source of old log-probabilities costs, and what its error is."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from rllib_llm_async import result_keys
from rllib_llm_async.report.groups import Group, source_of
from rllib_llm_async.report.load import Run
from rllib_llm_async.report.section import PALETTE, Section, lay_out, percent
from rllib_llm_async.result_keys import learner

_OLD_LOGITS = learner(result_keys.OLD_LOGPROB_SECONDS)


def cost_section(groups: Sequence[Group]) -> Section:
    """Seconds of an update by what they are spent on, one bar per group."""
    heading = "Cost of the old logits"
    parts = {
        "old logits": ("#CC79A7", lambda run: _mean(run, _OLD_LOGITS) or 0.0),
        "interruption": (
            "#D55E00",
            lambda run: _mean(run, learner(result_keys.INTERRUPTION_SECONDS)) or 0.0,
        ),
        "rest of the update": ("#0072B2", _rest_of_update),
        "waiting for episodes": ("#C4CAD1", lambda run: _mean(run, "timers/sample")),
    }
    timed = [g for g in groups if g.mean(_update_seconds) is not None]
    if not timed:
        return Section(heading, missing="No update yet.")
    figure = go.Figure()
    for name, (color, of_run) in parts.items():
        seconds = [group.mean(of_run) or 0.0 for group in timed]
        if any(seconds):
            figure.add_trace(
                go.Bar(
                    orientation="h",
                    name=name,
                    x=seconds,
                    y=[group.label for group in timed],
                    marker={"color": color},
                    hovertemplate="%{x:.2f} s",
                )
            )
    figure.update_layout(legend_traceorder="normal")
    figure.update_xaxes(title="seconds per update")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return Section(
        heading,
        " ".join(_sentence(group, len(timed) > 1) for group in timed[:3]),
        lay_out(figure, 150 + 42 * len(timed), barmode="stack", bargap=0.35),
        "Means over the run.",
    )


def comparison_section(groups: Sequence[Group]) -> Section:
    """Error against the exact source and seconds of every source that was compared."""
    heading = "Error and price of the sources, on the same tokens"
    points: dict[str, tuple[float, float]] = {}
    for group in groups:
        for name in _compared(group.runs[0]):
            prefix = learner(result_keys.compared(name, ""))
            error = group.mean(
                lambda run, p=prefix: _mean(run, p + result_keys.COMPARED_ERROR)
            )
            seconds = group.mean(
                lambda run, p=prefix, n=name: _mean(
                    run,
                    _OLD_LOGITS
                    if source_of(run) == n
                    else p + result_keys.COMPARED_SECONDS,
                )
            )
            if error is not None and seconds is not None:
                points.setdefault(name, (error, seconds))
    if not points:
        return Section(
            heading,
            missing="No source was compared. --set 'compare_sources=[snapshot_old, "
            "current_recompute]' measures further sources on the same batches.",
        )
    figure = go.Figure()
    for number, (name, (error, seconds)) in enumerate(sorted(points.items())):
        figure.add_trace(
            go.Scatter(
                x=[error],
                y=[seconds],
                mode="markers+text",
                text=[name],
                textposition="top center",
                marker={"size": 14, "color": PALETTE[number % len(PALETTE)]},
                hovertemplate="%{text}: error %{x:.2g}, %{y:.2f} s<extra></extra>",
                showlegend=False,
            )
        )
    figure.update_xaxes(
        title="mean |log ratio| to the exact old log-probability",
        rangemode="tozero",
        exponentformat="e",
    )
    figure.update_yaxes(title="seconds per update", rangemode="tozero")
    worst = max(points, key=lambda name: points[name][0])
    return Section(
        heading,
        f"The largest error is that of {worst}: {points[worst][0]:.2g} nats per token.",
        lay_out(figure, 400),
        "Best is the lower left corner.",
    )


def _compared(run: Run) -> list[str]:
    pattern = re.compile(learner(result_keys.compared("([^/]+)", "")))
    return sorted({match[1] for key in run.rows[-1] if (match := pattern.match(key))})


def _mean(run: Run, key: str) -> float | None:
    _, values = run.series(key)
    return float(np.mean(values)) if values else None


def _update_seconds(run: Run) -> float | None:
    return _mean(run, "timers/learner_update_timer")


def _rest_of_update(run: Run) -> float:
    interruption = _mean(run, learner(result_keys.INTERRUPTION_SECONDS)) or 0.0
    return max(
        (_update_seconds(run) or 0.0) - (_mean(run, _OLD_LOGITS) or 0.0) - interruption,
        0.0,
    )


def _sentence(group: Group, named: bool) -> str:
    update = group.mean(_update_seconds) or 0.0
    seconds = group.mean(lambda run: _mean(run, _OLD_LOGITS) or 0.0) or 0.0
    snapshots = group.mean(lambda run: run.last(learner(result_keys.SNAPSHOT_BYTES)))
    share = percent(seconds / update) if update else "0 %"
    sentence = f"{seconds:.2f} s of the {update:.2f} s of an update ({share})"
    if snapshots:
        sentence += f", {snapshots / 2**20:.0f} MiB of snapshots"
    who = group.label if named else source_of(group.runs[0])
    return f"{who}: {sentence}."
