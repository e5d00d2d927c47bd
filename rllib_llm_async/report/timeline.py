"""What engines, learners and the driver were busy with, second by second."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import plotly.graph_objects as go

from rllib_llm_async.monitoring.timeline import Span, seconds_by_phase
from rllib_llm_async.report.groups import Group
from rllib_llm_async.report.load import Run
from rllib_llm_async.report.section import Section, lay_out, percent

#: Phase to colour, in the order in which they are drawn over one another.
_COLORS = {
    "generating": "#009E73",
    "training": "#0072B2",
    "old logits": "#CC79A7",
    "comparing sources": "#56B4E9",
    "publishing": "#F0E442",
    "interruption": "#D55E00",
    "weight transfer": "#E69F00",
    "paused": "#D55E00",
    "waiting for episodes": "#C4CAD1",
    "waiting for old logits": "#E3B7CD",
    "waiting for the update": "#E4E8EC",
    "evaluation": "#57606A",
    "saving a checkpoint": "#8C959F",
}
#: A browser draws this many bars without effort; of a longer run, the end is shown.
_MAX_SPANS = 4000
#: Updates in view at first.
_UPDATES_IN_VIEW = 4


def timeline_section(groups: Sequence[Group]) -> Section:
    """A lane per engine and learner, for the first run that has a time line."""
    heading = "Who is busy when"
    run = next((r for g in groups for r in g.runs if r.spans()), None)
    if run is None:
        return Section(
            heading,
            missing="These runs logged no timeline; runs of this version do so in "
            "every iteration.",
        )
    all_spans = _merged([span for spans in run.spans() for span in spans])
    spans = all_spans[-_MAX_SPANS:]
    origin = min(start for _, _, start, _ in all_spans)
    figure = go.Figure()
    phases = {phase: None for phase in _COLORS} | {
        phase: None for _, phase, _, _ in spans
    }
    for phase in phases:
        own = [span for span in spans if span[1] == phase]
        if own:
            figure.add_trace(
                go.Bar(
                    orientation="h",
                    name=phase,
                    y=[lane for lane, _, _, _ in own],
                    base=[start - origin for _, _, start, _ in own],
                    x=[end - start for _, _, start, end in own],
                    marker={"color": _COLORS.get(phase, "#999999"), "line_width": 0},
                    hovertemplate="%{y} %{x:.2f} s",
                )
            )
    lanes = sorted({lane for lane, _, _, _ in spans}, key=_lane_order, reverse=True)
    figure.update_yaxes(categoryorder="array", categoryarray=lanes)
    figure.update_xaxes(title="seconds since the first phase", range=_view(run, origin))
    figure = lay_out(figure, 150 + 60 * len(lanes), barmode="overlay", bargap=0.35)
    # Its colours mean nothing without it, however many there are.
    figure.update_layout(legend_traceorder="normal", showlegend=True)
    note = (
        f"The last {_UPDATES_IN_VIEW} updates; double click for the whole run, drag to "
        "zoom."
    )
    if len(all_spans) > len(spans):
        note += f" Only the last {_MAX_SPANS} of {len(all_spans)} phases are drawn."
    if sum(len(group.runs) for group in groups) > 1:
        note += f" Run: {run.directory.name}."
    return Section(heading, _finding(run), figure, note)


def _merged(spans: Sequence[Span]) -> list[Span]:
    """Joins phases that were cut in two at the end of an iteration."""
    merged: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for lane, phase, start, end in sorted(spans, key=lambda span: span[2]):
        own = merged[lane, phase]
        if own and start - own[-1][3] < 1e-3:
            own[-1] = (lane, phase, own[-1][2], max(end, own[-1][3]))
        else:
            own.append((lane, phase, start, end))
    return sorted(
        (span for own in merged.values() for span in own), key=lambda span: span[2]
    )


def _lane_order(lane: str) -> tuple[int, str]:
    order = ("engine", "learner", "driver")
    kind = lane.split()[0]
    return (order.index(kind) if kind in order else len(order), lane)


def _view(run: Run, origin: float) -> list[float]:
    ends = [max(end for *_, end in spans) - origin for spans in run.spans()]
    first = ends[-1 - _UPDATES_IN_VIEW] if len(ends) > _UPDATES_IN_VIEW else 0.0
    return [first, ends[-1]]


def _finding(run: Run) -> str:
    seconds = seconds_by_phase(span for spans in run.spans() for span in spans)
    total = _running_seconds(run)

    def share(kind: str, *phases: str) -> str:
        busy = sum(seconds.get(kind, {}).get(phase, 0.0) for phase in phases)
        return percent(busy / total) if total else percent(0.0)

    return (
        f"Engines generate {share('engine', 'generating')} of the time and take in "
        f"weights {share('engine', 'weight transfer', 'paused')}; learners train "
        f"{share('learner', 'training')} and compute old logits "
        f"{share('learner', 'old logits')} of it."
    )


def _running_seconds(run: Run) -> float:
    """How long the iterations took, without the time before a run was resumed."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(
        (min(start for _, _, start, _ in spans), max(end for *_, end in spans))
        for spans in run.spans()
    ):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
