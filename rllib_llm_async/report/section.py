"""What all figures share: a section of the page, colours, layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

#: Okabe and Ito's palette, which stays distinguishable with every colour blindness.
PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
)
#: Sequential and readable in grey.
SEQUENTIAL = "Cividis"
#: A longer legend would cover what it explains; hovering names a curve, too.
MAX_LEGEND_ENTRIES = 8
#: More panels than this do not fit side by side.
MAX_PANELS = 6


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
        height=height,
        margin={"l": 64, "r": 24, "t": 40, "b": 56},
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#24292f"},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
        hovermode="closest",
        showlegend=len({trace.name for trace in figure.data}) <= MAX_LEGEND_ENTRIES,
        **layout,
    )
    return figure


def panels(titles: Sequence[str]) -> go.Figure:
    """An empty figure with a panel per title, two side by side."""
    return make_subplots(
        rows=math.ceil(len(titles) / 2),
        cols=min(2, len(titles)),
        subplot_titles=titles if len(titles) > 1 else None,
        horizontal_spacing=0.12,
    )


def transparent(color: str, alpha: float) -> str:
    """A ``#rrggbb`` colour as plotly's rgba."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def percent(share: float) -> str:
    """A share in words that keep small differences from 0 and 1 visible."""
    if 0.999 <= share < 1 or 0 < share < 0.001:
        return f"{100 * share:.3f} %"
    return f"{100 * share:.1f} %"


def joined(words: Sequence[str], limit: int = 3) -> str:
    """Words in a row, such as `a, b, c and 2 more`."""
    if len(words) <= limit:
        return ", ".join(words)
    return f"{', '.join(words[:limit])} and {len(words) - limit} more"
