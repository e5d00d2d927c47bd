"""The page: a summary table, a section per question, sample dialogues."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from rllib_llm_async import result_keys
from rllib_llm_async.report.cost import comparison_section, cost_section
from rllib_llm_async.report.curves import curves_section
from rllib_llm_async.report.density import density_section
from rllib_llm_async.report.groups import (
    COLLAPSE,
    Group,
    collapsed,
    final_success,
    largest_fall,
    mask_share,
)
from rllib_llm_async.report.lags import lags_section
from rllib_llm_async.report.ledger import ledger_section
from rllib_llm_async.report.mask import mask_and_clip_section, reset_iterations
from rllib_llm_async.report.narrow import both_layouts
from rllib_llm_async.report.opening import opening
from rllib_llm_async.report.run_settings import (
    settings_table,
    source_of,
    versions_lines,
)
from rllib_llm_async.report.section import PALETTE, percent
from rllib_llm_async.report.staleness import staleness_section
from rllib_llm_async.report.success import success_section
from rllib_llm_async.report.sweep import sweep_section
from rllib_llm_async.report.timeline import timeline_section
from rllib_llm_async.result_keys import learner

_SECTIONS = (
    success_section,
    sweep_section,
    curves_section,
    mask_and_clip_section,
    lags_section,
    density_section,
    staleness_section,
    ledger_section,
    timeline_section,
    cost_section,
    comparison_section,
)
_NUM_DIALOGUES = 6


def render_page(groups: Sequence[Group]) -> str:
    """The report on groups of runs, as HTML that needs nothing else."""
    for number, group in enumerate(groups):
        group.color = PALETTE[number % len(PALETTE)]
    runs = [run for group in groups for run in group.runs]
    environment = Environment(
        loader=PackageLoader("rllib_llm_async.report", ""), autoescape=True
    )
    return environment.get_template("template.html").render(
        title=", ".join(dict.fromkeys(run.experiment for run in runs)),
        num_runs=len(runs),
        created=datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
        summary=[_summary(group) for group in groups],
        opening=opening(groups),
        settings=settings_table(groups),
        versions=versions_lines(groups),
        collapse=COLLAPSE,
        notes=list(
            dict.fromkeys(
                text
                for run in runs
                for row in run.rows
                for text in row.get(result_keys.SEMANTICS_WARNINGS) or ()
            )
        ),
        sections=[_rendered(section(groups)) for section in _SECTIONS],
        dialogues=_dialogues(groups),
        # Trusted text of a package; everything else is escaped.
        plotly=Markup(get_plotlyjs()),
    )


def _rendered(section) -> dict[str, Any]:
    html = ""
    if section.figure is not None:
        section.figure.update_layout(meta=both_layouts(section.figure))
        html = Markup(
            section.figure.to_html(
                full_html=False,
                include_plotlyjs=False,
                config={"displaylogo": False, "responsive": True},
            )
        )
    return {
        "heading": section.heading,
        "finding": section.finding,
        "html": html,
        "note": section.note,
        "missing": section.missing,
    }


def _summary(group: Group) -> dict[str, Any]:
    """One row of the table: words, ready to print."""

    def number(value: float | None, form: str = "{:.3f}") -> str:
        return "-" if value is None else form.format(value)

    share = group.mean(mask_share)
    fall = group.mean(largest_fall)
    return {
        "label": group.label,
        "color": group.color,
        "num_runs": len(group.runs),
        "source": source_of(group.runs[0]),
        "updates": max(run.rows[-1]["training_iteration"] for run in group.runs),
        "success": number(group.mean(final_success)),
        "fall": number(fall),
        "collapsed": any(collapsed(run) for run in group.runs),
        "mask": "-" if share is None else percent(share),
        "staleness": number(
            group.mean(lambda run: run.last(learner(result_keys.STALENESS_MEAN))),
            "{:.2f}",
        ),
        "resets": sum(len(reset_iterations(run)) for run in group.runs),
        "seconds": number(group.mean(lambda run: run.last("time_total_s")), "{:.0f}"),
    }


def _dialogues(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The newest ones, failures first: they are what one wants to read."""
    dialogues = [d for group in groups for run in group.runs for d in run.dialogues]
    newest = max((d.get("training_iteration") or 0 for d in dialogues), default=0)
    latest = [d for d in dialogues if (d.get("training_iteration") or 0) == newest]
    failed = [d for d in latest if not d.get("success")]
    succeeded = [d for d in latest if d.get("success")]
    num_failed = max(_NUM_DIALOGUES // 2, _NUM_DIALOGUES - len(succeeded))
    chosen = failed[:num_failed]
    return chosen + succeeded[: _NUM_DIALOGUES - len(chosen)]
