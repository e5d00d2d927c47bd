"""The benchmark of one learner at a model's shape, with next to no model."""

import pytest

from benchmarks import source_costs
from benchmarks.old_logprob_sources import EXACT
from benchmarks.random_models import SHAPES
from rllib_llm_async.batch import columns


def test_an_update_scores_under_the_whole_window():
    update, rows = source_costs.measure("tiny", 16, 256, window=3, per_episode=1)
    assert update["versions"] == 3 and update["tokens"] == 16 * 256
    assert update["parameters"] > SHAPES["tiny"]["vocab_size"] * 32
    assert update["said_by_size_gb"] > 0
    assert 0 < update["one_pass_s"] < update["update_s"]
    by_name = {row["name"].partition("/")[2]: row for row in rows}
    assert [*by_name] == [EXACT, *source_costs.COMPARED]
    assert by_name[EXACT]["log_ratio_abs_error_mean"] == 0
    # Tokens of older versions are scored under other weights than the newest.
    assert by_name["current_recompute"]["log_ratio_abs_error_mean"] > 0
    assert by_name["ppo_ewma_async"]["nbytes"] == 4 * update["parameters"]
    assert by_name[EXACT]["nbytes"] > 0 == by_name["current_recompute"]["nbytes"]


@pytest.mark.parametrize("ages", [[[1], [2]], [[1, 2], [2, 3]]])
def test_episodes_hold_the_versions_asked_for(ages):
    episodes = source_costs.random_episodes(8, 256, ages, vocab_size=1536)
    for number, episode in enumerate(episodes):
        versions = episode.extra_model_outputs[columns.EPISODE_VERSIONS]
        assert {v for turn in versions for v in turn} == {*ages[number % 2]}
        num_tokens = sum(map(len, episode.observations.data)) + sum(
            map(len, episode.actions.data)
        )
        assert num_tokens == pytest.approx(256, abs=16)
