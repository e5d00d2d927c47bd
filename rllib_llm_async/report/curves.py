"""The figures that any training run is watched by: loss, entropy, rates."""

from __future__ import annotations

from collections.abc import Sequence

from rllib_llm_async import result_keys
from rllib_llm_async.report.groups import Group
from rllib_llm_async.report.mean_line import mean_line
from rllib_llm_async.report.section import Section, lay_out, panels
from rllib_llm_async.result_keys import learner, runners

#: Title and key of a panel; what no run has is left out. Rates are written as 12k.
_PANELS = (
    ("entropy, nats per token", learner(result_keys.ENTROPY)),
    ("policy loss", learner(result_keys.POLICY_LOSS)),
    ("gradient norm", learner(result_keys.GRADIENT_NORM)),
    ("cosine of the last two gradients", learner(result_keys.GRADIENT_COSINE)),
    ("learning rate", learner(result_keys.LEARNING_RATE)),
    ("KL to the reference", learner(result_keys.KL_TO_REFERENCE)),
    ("value loss", learner(result_keys.VF_LOSS)),
    ("generated tokens per second", runners(result_keys.GENERATED_TOKENS_PER_S)),
    ("trained tokens per second", learner(result_keys.TRAIN_TOKENS_PER_S)),
)


def curves_section(groups: Sequence[Group]) -> Section:
    """A panel for each figure over updates, a line per group."""
    heading = "Training curves"
    shown = [
        (title, key) for title, key in _PANELS if any(_has(g, key) for g in groups)
    ]
    if not shown:
        return Section(heading, missing="No update yet.")
    figure = panels([title for title, _ in shown])
    for number, (title, key) in enumerate(shown):
        row, col = divmod(number, 2)
        figure.update_yaxes(
            exponentformat="SI" if "per second" in title else "e",
            row=row + 1,
            col=col + 1,
        )
        for group in groups:
            in_legend = number == 0 and len(groups) > 1
            figure.add_trace(
                mean_line(group, key, ".4g", in_legend=in_legend),
                row=row + 1,
                col=col + 1,
            )
    has_cosines = any(_has(g, learner(result_keys.GRADIENT_COSINE)) for g in groups)
    note = (
        "" if has_cosines else "log_gradients: true adds norm and cosine of gradients."
    )
    height = 110 + 210 * ((len(shown) + 1) // 2)
    # The legend stands above the first panels' titles.
    figure = lay_out(figure, height).update_layout(legend_y=1.05, margin_t=80)
    return Section(heading, "", figure, note)


def _has(group: Group, key: str) -> bool:
    return any(run.series(key)[1] for run in group.runs)
