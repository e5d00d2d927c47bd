"""Sweeps over the bounds and the source: final success, mask share, collapse."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rllib_llm_async.report.groups import (
    COLLAPSE,
    Group,
    collapsed,
    final_success,
    mask_share,
)
from rllib_llm_async.report.load import Run
from rllib_llm_async.report.run_settings import source_of
from rllib_llm_async.report.section import Section, lay_out

#: Title, figure of a run, colour scale (high is good, except for collapse).
_MEASURES: tuple[tuple[str, Callable[[Run], float | None], str], ...] = (
    ("final success", final_success, "Cividis"),
    ("kept by the mask", mask_share, "Cividis"),
    ("share collapsed", collapsed, "Oranges"),
)


def sweep_section(groups: Sequence[Group]) -> Section:
    """Heat maps over eps_ti and eps_stale, a row of panels per source."""
    heading = "Sweep over bounds and sources"
    runs = [run for group in groups for run in group.runs]
    sources = sorted({source_of(run) for run in runs})
    bounds = {
        name: sorted({run.config[name] for run in runs if name in run.config})
        for name in ("eps_ti", "eps_stale")
    }
    if max(len(sources), *map(len, bounds.values())) < 2:
        return Section(
            heading,
            missing="One setting only. For example --set 'eps_ti={grid_search: "
            "[1.002, 1.006]}' --set 'old_logprob_source={grid_search: [snapshot_old, "
            "ppo_ewma_async]}' runs four.",
        )
    if len(bounds["eps_stale"]) > 1 and len(bounds["eps_ti"]) > 1:
        rows = [
            (source, "eps_ti", "eps_stale", [r for r in runs if source_of(r) == source])
            for source in sources
        ]
    else:
        x = "eps_stale" if len(bounds["eps_stale"]) > 1 else "eps_ti"
        rows = [("", x, "source", runs)]
    figure = make_subplots(
        rows=len(rows),
        cols=len(_MEASURES),
        subplot_titles=[
            f"{source}: {title}" if source else title
            for source, *_ in rows
            for title, _, _ in _MEASURES
        ],
        horizontal_spacing=0.07,
        shared_yaxes=True,
    )
    for number, (_, x, y, members) in enumerate(rows, start=1):
        for column, (_, of_run, scale) in enumerate(_MEASURES, start=1):
            figure.add_trace(
                _heat_map(members, x, y, of_run, scale), row=number, col=column
            )
            figure.update_xaxes(title=x, type="category", row=number, col=column)
        figure.update_yaxes(
            title=None if y == "source" else y, type="category", row=number, col=1
        )
    figure.update_yaxes(automargin=True)
    height = sum(150 + 46 * len({_coordinate(r, y) for r in m}) for _, _, y, m in rows)
    best = max(runs, key=lambda run: final_success(run) or 0.0)
    num_collapsed = sum(bool(collapsed(run)) for run in runs)
    return Section(
        heading,
        f"Best: {source_of(best)}, eps_ti {best.config.get('eps_ti')}, eps_stale "
        f"{best.config.get('eps_stale')} with {final_success(best) or 0.0:.3f}; "
        f"{num_collapsed} of {len(runs)} runs collapsed.",
        lay_out(figure, height),
        "Means over the runs of a cell. Final success: the last held-out evaluation, "
        f"else training. Collapse: success fell by more than {COLLAPSE} from its peak.",
    )


def _heat_map(
    runs: Sequence[Run],
    x: str,
    y: str,
    of_run: Callable[[Run], float | None],
    scale: str,
) -> go.Heatmap:
    xs = sorted({_coordinate(run, x) for run in runs})
    ys = sorted({_coordinate(run, y) for run in runs})
    z = np.full((len(ys), len(xs)), np.nan)
    for i, y_value in enumerate(ys):
        for j, x_value in enumerate(xs):
            cell = Group(
                "",
                [
                    run
                    for run in runs
                    if (_coordinate(run, x), _coordinate(run, y)) == (x_value, y_value)
                ],
            )
            value = cell.mean(of_run)
            z[i, j] = np.nan if value is None else value
    return go.Heatmap(
        x=[str(value) for value in xs],
        y=[str(value) for value in ys],
        z=z,
        text=[["" if np.isnan(v) else f"{v:.3f}" for v in row] for row in z],
        texttemplate="%{text}",
        colorscale=scale,
        zmin=0,
        zmax=1,
        showscale=False,
        hovertemplate="%{y}, %{x}: %{z:.4f}<extra></extra>",
        xgap=2,
        ygap=2,
    )


def _coordinate(run: Run, axis: str):
    return source_of(run) if axis == "source" else run.config.get(axis, "")
