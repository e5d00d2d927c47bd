"""Where the plots of benchmarks go."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_figure(figure: Any, out: Path) -> None:
    """Writes a plotly figure and says so.

    Args:
        figure: What to write.
        out: A page if it ends in .html, else an image (with kaleido).
    """
    if out.suffix == ".html":
        figure.write_html(out, include_plotlyjs="cdn")
    else:
        figure.write_image(out)
    print(f"plots: {out}")
