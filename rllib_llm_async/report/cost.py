"""What the source of old log-probabilities costs, and what its error is.

Every figure is one of the time line: it holds each iteration by itself, where RLlib's
timers are slow moving averages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from statistics import fmean

import plotly.graph_objects as go

from rllib_llm_async import result_keys
from rllib_llm_async.monitoring.timeline import Span, seconds_by_phase
from rllib_llm_async.report.groups import Group
from rllib_llm_async.report.load import Run
from rllib_llm_async.report.run_settings import source_of
from rllib_llm_async.report.section import (
    PALETTE,
    Section,
    in_lines,
    lay_out,
    percent,
)
from rllib_llm_async.result_keys import learner

#: What the driver is busy with while learners update, and what it waits for before.
UPDATE = "waiting for the update"
EPISODES = "waiting for episodes"
#: What a source makes others wait for.
_OF_THE_SOURCE = ("old logits", "interruption", "waiting for old logits")
#: Characters of a label beside its bar.
_LABEL = 24
#: Parts of a bar, in their order, and their colours.
_REST = "rest of the update"
_COLORS = {
    "old logits": "#CC79A7",
    "interruption": "#D55E00",
    "comparing sources": "#56B4E9",
    "training": "#0072B2",
    "publishing": "#F0E442",
    _REST: "#8C959F",
    "waiting for old logits": "#E3B7CD",
    EPISODES: "#C4CAD1",
}


def cost_section(groups: Sequence[Group]) -> Section:
    """Seconds of an update by what they are spent on, one bar per group."""
    heading = "Cost of the old logits"
    timed = [(g, parts) for g in groups if (parts := mean_update(g.runs))]
    if not timed:
        return Section(heading, missing="No update with a time line yet.")
    figure = go.Figure()
    for name, color in _COLORS.items():
        seconds = [parts.get(name, 0.0) for _, parts in timed]
        if any(seconds):
            figure.add_trace(
                go.Bar(
                    orientation="h",
                    name=name,
                    x=seconds,
                    # Long labels would leave a narrow page no room for bars.
                    y=[in_lines(group.label, _LABEL) for group, _ in timed],
                    marker={"color": color},
                    hovertemplate="%{x:.2f} s",
                )
            )
    figure.update_layout(legend_traceorder="normal")
    figure.update_xaxes(title="seconds per update")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return Section(
        heading,
        " ".join(_sentence(*part, len(timed) > 1) for part in timed[:3]),
        lay_out(figure, 150 + 42 * len(timed), barmode="stack", bargap=0.35),
        "Means over the updates of the run, from its time line; of several learners, "
        "over these as well.",
    )


def comparison_section(groups: Sequence[Group]) -> Section:
    """Error against the exact source and seconds of every source that was compared."""
    heading = "Error and price of the sources, on the same tokens"
    points: dict[str, tuple[float, float]] = {}
    for group in groups:
        for name in _compared(group.runs[0]):
            error = group.mean(_mean_of(name, result_keys.COMPARED_ERROR))
            seconds = (
                _price(mean_update(group.runs))
                if source_of(group.runs[0]) == name
                else group.mean(_mean_of(name, result_keys.COMPARED_SECONDS))
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


def seconds_of_an_update(spans: Sequence[Span]) -> dict[str, float] | None:
    """What the update of one iteration consists of; None where there was none.

    A learner may compute old logits while the driver still waits for episodes: that is
    no part of the update.

    Returns:
        Seconds by part, and those of the whole under ``waiting for the update``.
    """
    driver = seconds_by_phase(s for s in spans if s[0] == "driver").get("driver", {})
    if UPDATE not in driver:
        return None
    updates = [(start, end) for _, phase, start, end in spans if phase == UPDATE]
    inside = [
        (lane, phase, max(start, first), min(end, last))
        for lane, phase, start, end in spans
        if lane.startswith("learner")
        for first, last in updates
        if start < last and end > first
    ]
    parts = {k: v for k, v in driver.items() if k in _COLORS or k == UPDATE}
    of_learners = seconds_by_phase(inside).get("learner", {})
    parts |= of_learners
    parts[_REST] = max(0.0, driver[UPDATE] - sum(of_learners.values()))
    return parts


def mean_update(runs: Sequence[Run]) -> dict[str, float]:
    """The parts of an update, means over each run, then over those that have any."""
    of_runs = []
    for run in runs:
        updates = [p for s in run.spans() if (p := seconds_of_an_update(s)) is not None]
        if updates:
            of_runs.append(_mean(updates))
    return _mean(of_runs)


def _mean(dicts: Sequence[dict[str, float]]) -> dict[str, float]:
    keys = {key for values in dicts for key in values}
    return {key: fmean(values.get(key, 0.0) for values in dicts) for key in keys}


def _price(update: dict[str, float]) -> float | None:
    """What the source of a run made others wait for in an update."""
    return sum(update.get(part, 0.0) for part in _OF_THE_SOURCE) if update else None


def _mean_of(source: str, key: str) -> Callable[[Run], float | None]:
    def of_run(run: Run) -> float | None:
        _, values = run.series(learner(result_keys.compared(source, key)))
        return fmean(values) if values else None

    return of_run


def _compared(run: Run) -> list[str]:
    pattern = re.compile(learner(result_keys.compared("([^/]+)", "")))
    return sorted({match[1] for key in run.rows[-1] if (match := pattern.match(key))})


def _sentence(group: Group, parts: dict[str, float], named: bool) -> str:
    update, seconds = parts[UPDATE], parts.get("old logits", 0.0)
    snapshots = group.mean(lambda run: run.last(learner(result_keys.SNAPSHOT_BYTES)))
    share = percent(seconds / update) if update else percent(0.0)
    sentence = f"{seconds:.2f} s of the {update:.2f} s of an update ({share})"
    if snapshots:
        sentence += f", {snapshots / 2**20:.0f} MiB of snapshots"
    who = group.label if named else source_of(group.runs[0])
    return f"{who}: {sentence}."
