"""Both ratios for tokens of each age: what a mean over ages hides."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from rllib_llm_async import result_keys
from rllib_llm_async.core.strata import LAG_BUCKETS, lag_name
from rllib_llm_async.report.groups import Group
from rllib_llm_async.report.load import is_number
from rllib_llm_async.report.section import (
    Section,
    lay_out,
    panels,
    percent,
    share_axis,
)
from rllib_llm_async.result_keys import at_lag, learner

#: Key, title, and whether it is a share.
_PANELS = (
    (
        result_keys.DISCREPANCY_LOG_RATIO_ABS_MEAN,
        "Discrepancy: mean |log r_d|",
        False,
    ),
    (result_keys.STALENESS_LOG_RATIO_ABS_MEAN, "Staleness: mean |log r_s|", False),
    (result_keys.TRAIN_INFER_MASK, "Share of tokens that the mask keeps", True),
    (result_keys.PPO_CLIP_FRACTION, "Share of those that the clip stops", True),
)


def lags_section(groups: Sequence[Group]) -> Section:
    """A point per lag and group, means over all tokens of the run of that lag."""
    heading = "The two ratios by version lag"
    shown = [(group, shares) for group in groups if (shares := _token_shares(group))]
    if not shown:
        return Section(
            heading,
            missing="These runs logged no learners/default_policy/lag_0/...; runs of "
            "this version do so in every update.",
        )
    figure = panels([title for _, title, _ in _PANELS])
    for number, (key, _, is_share) in enumerate(_PANELS):
        place = {"row": number // 2 + 1, "col": number % 2 + 1}
        values = [{lag: _mean(g, lag, key) for lag in shares} for g, shares in shown]
        for (group, shares), of_group in zip(shown, values, strict=True):
            form = ".2%" if is_share else ".3g"
            figure.add_trace(
                go.Scatter(
                    x=[_words(lag) for lag in shares],
                    y=list(of_group.values()),
                    name=group.label,
                    legendgroup=group.label,
                    showlegend=number == 0 and len(shown) > 1,
                    mode="lines+markers",
                    line={"color": group.color, "width": 2},
                    customdata=[percent(share) for share in shares.values()],
                    hovertemplate=f"lag %{{x}}: %{{y:{form}}}, %{{customdata}} of the "
                    "tokens",
                ),
                **place,
            )
        every = [value for of_group in values for value in of_group.values()]
        axis = (
            share_axis(every)
            if is_share
            else {"exponentformat": "e", "rangemode": "tozero"}
        )
        figure.update_yaxes(**axis, **place)
    order = [_words(lag_name(bucket)) for bucket in LAG_BUCKETS]
    figure.update_xaxes(
        type="category",
        categoryorder="array",
        categoryarray=order,
        title="versions old",
    )
    # The legend stands above the first panels' titles, however many lines it takes.
    figure = lay_out(figure, 560).update_layout(legend_y=1.08, margin_t=90)
    note = (
        "With an exact source r_d is the same at every lag; where it grows with the "
        "lag, staleness stands in it and the mask drops what the clip should weigh."
    )
    return Section(heading, _finding(shown), figure, note)


def _token_shares(group: Group) -> dict[str, float]:
    """Of the tokens of all updates, the share of each lag that occurred."""
    tokens = {
        lag: sum(weight for _, weight in _values(group, lag, result_keys.TOKEN_SHARE))
        for lag in map(lag_name, LAG_BUCKETS)
    }
    total = sum(tokens.values())
    return {lag: number / total for lag, number in tokens.items() if number}


def _mean(group: Group, lag: str, key: str) -> float:
    values = _values(group, lag, key)
    return sum(v * weight for v, weight in values) / sum(w for _, w in values)


def _values(group: Group, lag: str, key: str) -> list[tuple[float, float]]:
    """The key's value in every update that has one, and how many tokens it is of."""
    share = learner(at_lag(lag, result_keys.TOKEN_SHARE))
    tokens = learner(result_keys.NUM_AGENT_TOKENS)
    return [
        (float(row[path]), row[share] * row.get(tokens, 1))
        for run in group.runs
        for row in run.rows
        if is_number(row.get(path := learner(at_lag(lag, key))))
        and is_number(row.get(share))
        and is_number(row.get(tokens, 1))
    ]


def _words(lag: str) -> str:
    """ "3_4" and "9_plus" as people write them."""
    return lag.replace("_plus", "+").replace("_", "-")


def _finding(shown: Sequence[tuple[Group, dict[str, float]]]) -> str:
    sentences = []
    for group, shares in shown[:3]:
        lags = list(shares)
        first, last = lags[0], lags[-1]
        who = f"{group.label}: " if len(shown) > 1 else ""
        if first == last:
            sentences.append(f"{who}all tokens have lag {_words(first)}.")
            continue
        parts = [
            f"mean |log {name}| is {_mean(group, first, key):.2g} at lag "
            f"{_words(first)} and {_mean(group, last, key):.2g} at lag {_words(last)}"
            for name, key in (
                ("r_d", result_keys.DISCREPANCY_LOG_RATIO_ABS_MEAN),
                ("r_s", result_keys.STALENESS_LOG_RATIO_ABS_MEAN),
            )
        ]
        sentences.append(f"{who}{'; '.join(parts)}.")
    text = " ".join(sentences)
    return text[0].upper() + text[1:] if len(shown) == 1 else text
