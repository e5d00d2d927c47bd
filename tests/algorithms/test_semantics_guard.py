"""Each situation is told from its neighbour that is fine."""

import pytest

from rllib_llm_async.algorithms.async_decoupled_ppo.semantics_guard import (
    config_warnings,
    result_warnings,
)


@pytest.mark.parametrize(
    ("bad", "good", "words"),
    [
        (
            {"old_logprob_source": "current_recompute", "minibatch_size": None},
            {"old_logprob_source": "current_recompute", "minibatch_size": 4},
            "r_s is 1 for every token and the clip never acts",
        ),
        (
            {"old_logprob_source": "linear_prox", "prox_alpha": 0},
            {"old_logprob_source": "linear_prox", "prox_alpha": 0.1},
            "prox_alpha 0 makes r_s 1",
        ),
        (
            {"old_logprob_source": "rollout"},
            {"old_logprob_source": "snapshot_old"},
            "r_d is 1, neither eps_ti nor is_cap",
        ),
        (
            {"old_logprob_source": "interp_prox_loglinear", "prox_alpha": 1},
            {"old_logprob_source": "interp_prox_loglinear", "prox_alpha": "staleness"},
            "r_d is 1, neither eps_ti nor is_cap",
        ),
        (
            {"old_logprob_source": "ppo_ewma_async", "max_staleness": 0},
            {"old_logprob_source": "ppo_ewma_async", "max_staleness": 1},
            "choose current_recompute",
        ),
        (
            {"old_logprob_source": "snapshot_old", "ewma_decay": 0.5},
            {"old_logprob_source": "ewma_prox", "ewma_decay": 0.5},
            "ewma_decay does nothing",
        ),
        (
            {"old_logprob_source": "snapshot_old", "old_logit_model": {"num_cpus": 1}},
            {
                "old_logprob_source": "old_logit_model",
                "old_logit_model": {"num_cpus": 1},
            },
            "old_logit_model does nothing",
        ),
    ],
)
def test_configurations(make_learner_config, bad, good, words):
    (said,) = config_warnings(make_learner_config(**bad))
    assert words in said
    assert list(config_warnings(make_learner_config(**good))) == []


def results(stale_discrepancy, stale_mask):
    return {
        "train_infer_mask": 0.8,
        "lag_0/discrepancy_log_ratio_abs_mean": 0.01,
        "lag_0/train_infer_mask": 0.99,
        "lag_3_4/discrepancy_log_ratio_abs_mean": stale_discrepancy,
        "lag_3_4/train_infer_mask": stale_mask,
    }


def test_staleness_that_a_proxy_takes_for_discrepancy(make_learner_config):
    config = make_learner_config(old_logprob_source="current_recompute")
    (said,) = result_warnings(config, results(0.05, 0.7))
    assert "at lag 3_4 mean |log r_d| is 0.0500 against 0.0100" in said
    assert list(result_warnings(config, results(0.02, 0.7))) == []
    assert list(result_warnings(config, results(0.05, 0.98))) == []


def test_an_exact_source_whose_mask_still_drops_much(make_learner_config):
    config = make_learner_config(old_logprob_source="snapshot_old")
    (said,) = result_warnings(config, results(0.05, 0.7))
    assert "keeps 80% of tokens although pi_old is exact" in said
    assert list(result_warnings(config, {"train_infer_mask": 0.97})) == []
