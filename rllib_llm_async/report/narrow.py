"""Both layouts of a figure: as drawn, and for a page that is as narrow as a phone."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import plotly.graph_objects as go

from rllib_llm_async.report.section import in_lines

#: Pixels of a panel at most, between two (titles of an axis and of a panel), of a line
#: of the legend, and of the title above the first panel.
_PANEL, _GAP, _LEGEND_LINE, _TITLE = 300, 96, 20, 36
#: Characters of a title that fit beside each other.
_LINE = 42


class _Panel(NamedTuple):
    """Names of its axes, and where it stands, as shares of the figure."""

    x: str
    y: str
    x_domain: tuple[float, float]
    y_domain: tuple[float, float]


def both_layouts(figure: go.Figure) -> dict[str, dict[str, Any]]:
    """What `Plotly.relayout` is given on a ``wide`` page and on a ``narrow`` one.

    Panels that stand side by side stand below each other on the narrow one, and so do
    the entries of a legend.
    """
    layout = figure.layout.to_plotly_json()
    drawn = {f"xaxis{(trace.xaxis or 'x')[1:]}" for trace in figure.data}
    panels = [panel for panel in _panels(layout) if panel.x in drawn]
    height = layout["height"] - layout["margin"]["t"] - layout["margin"]["b"]
    narrow: dict[str, Any] = {"margin.l": 56, "margin.r": 8}
    if len({panel.x_domain for panel in panels}) > 1:
        share = panels[0].y_domain[1] - panels[0].y_domain[0]
        one = min(share * height, _PANEL)
        height = len(panels) * one + (len(panels) - 1) * _GAP
        narrow |= _stacked(panels, one / height, _GAP / height)
    for i, title in enumerate(layout.get("annotations", ())):
        narrow |= _title(i, title, panels, narrow)
    lines = _num_legend_entries(figure)
    top = _TITLE if layout.get("annotations") else 0
    narrow |= {
        "margin.t": 12 + top + lines * _LEGEND_LINE,
        "legend.y": 1 + (4 + top) / height,
        "legend.maxheight": 1,
    }
    narrow["height"] = height + narrow["margin.t"] + layout["margin"]["b"]
    return {"wide": {key: _value(layout, key) for key in narrow}, "narrow": narrow}


def _panels(layout: dict[str, Any]) -> list[_Panel]:
    """In reading order."""
    panels = [
        _Panel(name, y, tuple(axis["domain"]), tuple(layout[y]["domain"]))
        for name, axis in layout.items()
        if re.fullmatch(r"xaxis\d*", name) and {"domain", "anchor"} <= axis.keys()
        for y in [f"yaxis{axis['anchor'][1:]}"]
    ]
    return sorted(panels, key=lambda panel: (-panel.y_domain[1], panel.x_domain[0]))


def _stacked(panels: list[_Panel], one: float, gap: float) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for number, panel in enumerate(panels):
        top = 1 - number * (one + gap)
        changes[f"{panel.x}.domain"] = [0, 1]
        changes[f"{panel.y}.domain"] = [max(0.0, top - one), top]
        changes[f"{panel.y}.showticklabels"] = True
    return changes


def _title(
    number: int, title: Any, panels: list[_Panel], narrow: dict[str, Any]
) -> dict[str, Any]:
    """One that `make_subplots` has put above a panel goes where that has gone."""
    key = f"annotations[{number}]"
    changes: dict[str, Any] = {
        f"{key}.font.size": 13,
        f"{key}.text": in_lines(title["text"], _LINE),
    }
    for panel in panels:
        where = (title["x"] - sum(panel.x_domain) / 2, title["y"] - panel.y_domain[1])
        if max(map(abs, where)) < 1e-6 and f"{panel.y}.domain" in narrow:
            changes[f"{key}.x"] = 0.5
            changes[f"{key}.y"] = narrow[f"{panel.y}.domain"][1]
    return changes


def _num_legend_entries(figure: go.Figure) -> int:
    if not figure.layout.showlegend:
        return 0
    return sum(
        trace.showlegend is not False and trace.type != "heatmap"
        for trace in figure.data
    )


def _value(layout: dict[str, Any], key: str) -> Any:
    """What stands in a layout under "xaxis2.domain" or "annotations[3].y", or None."""
    value: Any = layout
    for name, index in re.findall(r"(\w+)(?:\[(\d+)\])?", key):
        value = (value or {}).get(name)
        value = value[int(index)] if index else value
    return value
