"""Does each threshold act on its own factor? From a sweep over eps_ti x eps_stale.

    rllib train file tuned_examples/sweep_eps.yaml
    python -m benchmarks.threshold_interaction results/sweep_eps [--out FILE]

For every old-logprob source and pair of thresholds: the share of tokens that the
Train-Infer mask drops and the share of the kept ones that the clip stops, means over
the updates with stale tokens. If the factors are told apart, the first depends on
eps_ti alone and the second on eps_stale alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.figures import write_figure


@dataclass(frozen=True)
class Cell:
    """Shares under one pair of thresholds, in per cent."""

    dropped: float
    clipped: float
    num_updates: int


#: By (eps_ti, eps_stale).
Grid = dict[tuple[float, float], Cell]


def read_grids(run_dir: Path) -> dict[str, Grid]:
    """One grid per old-logprob source, from the trials' ``result.json``.

    Raises:
        FileNotFoundError: If there is no trial with stale tokens.
    """
    updates: dict[str, dict[tuple[float, float], list[dict[str, float]]]]
    updates = defaultdict(lambda: defaultdict(list))
    for path in sorted(run_dir.glob("*/result.json")):
        for line in path.read_text().splitlines():
            result = json.loads(line)
            config = result["config"]
            learner = result["learners"]["default_policy"]
            if learner["staleness_mean"] > 0:
                thresholds = config["eps_ti"], config["eps_stale"]
                updates[config["old_logprob_source"]][thresholds].append(learner)
    if not updates:
        raise FileNotFoundError(f"{run_dir}: no result.json with stale tokens in it")
    return {
        source: {
            thresholds: Cell(
                dropped=100
                * statistics.fmean(1 - r["train_infer_mask"] for r in results),
                clipped=100 * statistics.fmean(r["ppo_clip_fraction"] for r in results),
                num_updates=len(results),
            )
            for thresholds, results in sorted(cells.items())
        }
        for source, cells in updates.items()
    }


def interaction(grid: Grid) -> dict[str, float]:
    """What tightening each threshold, loosest to tightest, does to both shares.

    Returns:
        Percentage points, means over the other threshold: ``dropped_by_eps_ti`` and
        ``clipped_by_eps_stale``, the effects wanted; ``clipped_by_eps_ti`` and
        ``dropped_by_eps_stale``, the interaction.
    """
    tis = sorted({ti for ti, _ in grid})
    stales = sorted({stale for _, stale in grid})
    along_ti = [((tis[0], stale), (tis[-1], stale)) for stale in stales]
    along_stale = [((ti, stales[0]), (ti, stales[-1])) for ti in tis]

    def effect(share: str, ends) -> float:
        return statistics.fmean(
            getattr(grid[tight], share) - getattr(grid[loose], share)
            for tight, loose in ends
        )

    return {
        "dropped_by_eps_ti": effect("dropped", along_ti),
        "clipped_by_eps_stale": effect("clipped", along_stale),
        "clipped_by_eps_ti": effect("clipped", along_ti),
        "dropped_by_eps_stale": effect("dropped", along_stale),
    }


def figure(grids: dict[str, Grid]):
    """Both shares over eps_ti, a line per eps_stale, a column of plots per source."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    rows = {
        "dropped": "dropped by the mask, %",
        "clipped": "clipped of those kept, %",
    }
    plot = make_subplots(
        rows=2,
        cols=len(grids),
        shared_yaxes="rows",
        shared_xaxes=True,
        column_titles=list(grids),
        vertical_spacing=0.06,
        horizontal_spacing=0.04,
    )
    colors = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"]
    for column, grid in enumerate(grids.values(), start=1):
        for number, stale in enumerate(sorted({stale for _, stale in grid})):
            cells = [(ti, cell) for (ti, s), cell in grid.items() if s == stale]
            for row, share in enumerate(rows, start=1):
                plot.add_scatter(
                    x=[f"{ti:g}" for ti, _ in cells],
                    y=[getattr(cell, share) for _, cell in cells],
                    name=f"eps_stale {stale:g}",
                    legendgroup=str(stale),
                    showlegend=row == column == 1,
                    line={"color": colors[number % len(colors)], "width": 3},
                    marker={"size": 9},
                    row=row,
                    col=column,
                )
        plot.update_xaxes(title_text="eps_ti", row=2, col=column)
    for row, title in enumerate(rows.values(), start=1):
        plot.update_yaxes(title_text=title, rangemode="tozero", row=row, col=1)
    return plot.update_layout(
        template=go.layout.Template(layout={"font": {"size": 13}}),
        plot_bgcolor="white",
        width=440 * len(grids) + 160,
        height=640,
        legend_title_text="clip bound",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--out", type=Path, help="plots: .html, .svg (kaleido)")
    arguments = parser.parse_args()
    grids = read_grids(arguments.run_dir)
    for source, grid in grids.items():
        table = Table(
            "eps_ti", "eps_stale", "dropped %", "clipped %", "updates", title=source
        )
        for (ti, stale), cell in grid.items():
            table.add_row(
                f"{ti:g}",
                f"{stale:g}",
                f"{cell.dropped:.2f}",
                f"{cell.clipped:.2f}",
                str(cell.num_updates),
            )
        Console().print(table)
    for source, grid in grids.items():
        print(json.dumps({"old_logprob_source": source, **interaction(grid)}))
    if arguments.out is not None:
        write_figure(figure(grids), arguments.out)


if __name__ == "__main__":
    main()
