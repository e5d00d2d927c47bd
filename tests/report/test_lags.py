"""Ratios by lag: means over tokens, not over updates."""

from pathlib import Path

import pytest

from rllib_llm_async.report.groups import Group
from rllib_llm_async.report.lags import lags_section
from rllib_llm_async.report.load import Run
from rllib_llm_async.result_keys import at_lag, learner


def row(number, tokens, **of_lags):
    """``lag_0=(share of tokens, mean |log r_d|)``"""
    row = {"training_iteration": number, learner("num_agent_tokens"): tokens}
    for lag, (share, discrepancy) in of_lags.items():
        figures = {
            "token_share": share,
            "discrepancy_log_ratio_abs_mean": discrepancy,
            "staleness_log_ratio_abs_mean": 2 * discrepancy,
            "train_infer_mask": 1 - discrepancy,
            "ppo_clip_fraction": 0.0,
        }
        for key, value in figures.items():
            row[learner(at_lag(lag.removeprefix("lag_"), key))] = value
    return row


def group_of(*rows, label="all"):
    return Group(label, [Run(Path("x/t"), list(rows), {}, {})], "#0072B2")


def test_a_point_is_the_mean_over_all_tokens_of_that_lag():
    section = lags_section(
        [
            group_of(
                row(1, 100, lag_0=(1.0, 0.1), lag_3_4=(0.0, 0.0)),
                row(2, 300, lag_0=(0.5, 0.3), lag_3_4=(0.5, 0.4)),
            )
        ]
    )
    discrepancy, staleness, kept, clipped = section.figure.data
    assert list(discrepancy.x) == ["0", "3-4"]
    # 100 tokens of 0.1 and 150 of 0.3; no token of lag 3 to 4 in the first update.
    assert list(discrepancy.y) == pytest.approx([(10 + 45) / 250, 0.4])
    assert list(staleness.y) == pytest.approx([0.44, 0.8])
    assert list(kept.y) == pytest.approx([0.78, 0.6])
    assert list(clipped.y) == [0, 0]
    assert list(discrepancy.customdata) == ["62.5 %", "37.5 %"]
    assert section.finding == (
        "Mean |log r_d| is 0.22 at lag 0 and 0.4 at lag 3-4; mean |log r_s| is 0.44 at "
        "lag 0 and 0.8 at lag 3-4."
    )


def test_runs_of_one_lag_and_of_none():
    synchronous = group_of(row(1, 10, lag_0=(1.0, 0.1)), label="sync")
    section = lags_section([synchronous, group_of({"training_iteration": 1})])
    assert section.finding == "All tokens have lag 0."
    assert "lag_0" in lags_section([group_of({"training_iteration": 1})]).missing
