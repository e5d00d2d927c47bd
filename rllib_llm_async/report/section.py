"""What all figures share: a section of the page, colours, layout."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

#: Okabe and Ito's palette, which stays distinguishable with every colour blindness, but
#: grey in place of black, which a dark page would swallow.
PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#808080",
)
#: Sequential and readable in grey.
SEQUENTIAL = "Cividis"
#: A longer legend would cover what it explains; hovering names a curve, too.
MAX_LEGEND_ENTRIES = 8
#: More panels than this do not fit side by side.
MAX_PANELS = 6
#: So many characters of a title fit above one of two panels.
_TITLE = 56


@dataclass
class Section:
    """A heading, the sentence that says what to see, and a figure or its absence.

    ``note`` says how to read the figure, ``missing`` what would produce the data.
    """

    heading: str
    finding: str = ""
    figure: go.Figure | None = None
    note: str = ""
    missing: str = ""


def lay_out(figure: go.Figure, height: int, **layout) -> go.Figure:
    """Applies the page's look to a figure."""
    figure.update_layout(
        template="plotly_white",
        # The page's own shows through: it is dark for those who like it dark.
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#8C959F"},
        height=height,
        margin={"l": 64, "r": 24, "t": 40, "b": 56},
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#24292f"},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
        hovermode="closest",
        showlegend=len({trace.name for trace in figure.data}) <= MAX_LEGEND_ENTRIES,
        **layout,
    )
    figure.update_annotations(font_size=13)
    return figure


def panels(titles: Sequence[str]) -> go.Figure:
    """An empty figure with a panel per title, two side by side."""
    return make_subplots(
        rows=math.ceil(len(titles) / 2),
        cols=min(2, len(titles)),
        subplot_titles=(
            [in_lines(title, _TITLE) for title in titles] if len(titles) > 1 else None
        ),
        horizontal_spacing=0.12,
    )


def transparent(color: str, alpha: float) -> str:
    """A ``#rrggbb`` colour as plotly's rgba."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def share_axis(values: Sequence[float]) -> dict[str, Any]:
    """Range and ticks of an axis of shares, so wide that no two ticks read alike."""
    if not values:
        return {}
    low, high = min(values), max(values)
    room = max(0.1 * (high - low), 0.005)
    return {
        "range": [max(low - room, -0.02 * room), min(high + room, 1 + 0.02 * room)],
        # As many decimals as it takes to tell two ticks apart, none that say nothing.
        "tickformat": ".4~%",
    }


def percent(share: float) -> str:
    """A share in words that keep small differences from 0 and 1 visible."""
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    for decimals in range(1, 6):
        text = f"{100 * share:.{decimals}f}"
        if float(text) not in (0, 100):
            break
    return f"{text} %"


def in_lines(text: str, width: int) -> str:
    """A text of plotly's in lines of so many characters at most."""
    return "<br>".join(textwrap.wrap(text.replace("<br>", " "), width))


def joined(words: Sequence[str], limit: int = 3) -> str:
    """Words in a row, such as `a, b, c and 2 more`."""
    if len(words) <= limit:
        return ", ".join(words)
    return f"{', '.join(words[:limit])} and {len(words) - limit} more"
