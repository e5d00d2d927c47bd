"""Each situation is told from its neighbour that is fine."""

import itertools
import math

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_llm_async import AsyncDecoupledPPOConfig
from rllib_llm_async.algorithms.async_decoupled_ppo.semantics_guard import (
    config_warnings,
    result_warnings,
    source_settings,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.torch import loss
from tests.algorithms.conftest import SPACES

LORA = {"r": 4, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("bad", "good", "words"),
    [
        (
            {"old_logprob_source": "current_recompute", "minibatch_size": None},
            {"old_logprob_source": "current_recompute", "minibatch_size": 4},
            "r_s is 1 for every token and the clip never acts",
        ),
        (  # 6 of 8 episodes round to one step of all
            {"old_logprob_source": "current_recompute", "minibatch_size": 6},
            {"old_logprob_source": "current_recompute", "minibatch_size": 5},
            "r_s is 1 for every token and the clip never acts",
        ),
        (
            {"old_logprob_source": "snapshot_old", "max_staleness": 0},
            {
                "old_logprob_source": "snapshot_old",
                "max_staleness": 0,
                "minibatch_size": 4,
            },
            "r_s is 1 for every token and the clip never acts",
        ),
        (
            {
                "old_logprob_source": "linear_prox",
                "prox_alpha": "staleness",
                "max_staleness": 0,
            },
            {"old_logprob_source": "linear_prox", "prox_alpha": "staleness"},
            "max_staleness 0 makes r_s 1 for every token",
        ),
        (
            {"old_logprob_source": "ewma_prox", "ewma_decay": 0.0},
            {"old_logprob_source": "ewma_prox", "ewma_decay": 0.1},
            "ewma_decay 0 is current_recompute in disguise",
        ),
        (
            {"old_logprob_source": "rollout", "snapshot_memory_bytes": 1},
            {"old_logprob_source": "old_logit_model", "snapshot_memory_bytes": 1},
            "snapshot_memory_bytes does nothing",
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
        (
            {"old_logprob_source": "snapshot_old", "prox_alpha": 0.3},
            {"old_logprob_source": "linear_prox", "prox_alpha": 0.3},
            "prox_alpha does nothing with old_logprob_source snapshot_old",
        ),
        (
            {"old_logprob_source": "ewma_prox", "ewma_reset_threshold": 0.5},
            {"old_logprob_source": "ppo_ewma_async", "ewma_reset_threshold": 0.5},
            "ewma_reset_threshold does nothing with old_logprob_source ewma_prox",
        ),
        (
            {"old_logprob_source": "rollout", "missing_snapshot": "drop"},
            {"old_logprob_source": "auto", "missing_snapshot": "drop"},
            "missing_snapshot does nothing",
        ),
        (
            {"learner_sharding": "fsdp2", "num_learners": 1},
            {"learner_sharding": "fsdp2", "num_learners": 2},
            "learner_sharding does nothing with num_learners 1",
        ),
        ({"gamma": 0.9}, {"gamma": 0.9, "advantage_estimator": "gae"}, "gamma does"),
        ({"lambda_": 0.9}, {"lambda_": 0.9, "advantage_estimator": "gae"}, "lambda_"),
        (
            {"vf_loss_coeff": 1.0},
            {"vf_loss_coeff": 1.0, "advantage_estimator": "gae"},
            "vf_loss_coeff does nothing with advantage_estimator group_relative",
        ),
        (
            {"kl_estimator": "unbiased"},
            {"kl_estimator": "unbiased", "kl_coeff": 0.1},
            "kl_estimator does nothing with kl_coeff 0",
        ),
        (
            {"lora_sync": "per_version"},
            {"lora_sync": "per_version", "lora": LORA},
            "lora_sync does nothing with lora null",
        ),
        (
            {"lora": {**LORA, "use_dora": True}},
            {"lora": {**LORA, "use_dora": True}, "lora_sync": "merged"},
            "with the adapters merged into them: vLLM cannot serve lora.use_dora",
        ),
        (
            {"chat_template_kwargs": {"mesages": 1}},
            {"chat_template_kwargs": {"tool_call": 1}},
            "chat_template_kwargs.mesages does nothing with the template of "
            "small_agent, did you mean 'messages'?",
        ),
    ],
)
def test_configurations(make_learner_config, bad, good, words):
    said = [*config_warnings(make_learner_config(**bad))]
    # Beside what is said of rollout anyway.
    if bad.get("old_logprob_source") == "rollout" and len(bad) > 1:
        said = [sentence for sentence in said if "r_d is 1" not in sentence]
    (sentence,) = said
    assert words in sentence
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


def test_auto_is_told_of_an_exact_source_while_it_uses_one(make_learner_config):
    """It cannot be sent to snapshot_old, which it trains on already."""
    config = make_learner_config(old_logprob_source="auto")
    found = {**results(0.05, 0.7), "train_infer_mask": 0.05}
    (said,) = result_warnings(config, {**found, "auto_uses_exact": 1.0})
    assert "although pi_old is exact" in said
    said = list(result_warnings(config, {**found, "auto_uses_exact": 0.0}))
    assert len(said) == 2 and all("choose snapshot_old" in text for text in said)


def test_a_compared_source_makes_its_settings_count(make_learner_config):
    config = make_learner_config(
        old_logprob_source="snapshot_old",
        compare_sources=["linear_prox"],
        prox_alpha=0.3,
    )
    assert list(config_warnings(config)) == []


@pytest.mark.parametrize(("num_learners", "is_dead"), [(1, False), (2, True)])
def test_a_minibatch_is_of_one_learner(make_learner_config, num_learners, is_dead):
    """8 episodes each of two learners are all 16 of an update, 8 of one are half."""
    config = make_learner_config(
        num_learners=num_learners,
        old_logprob_source="current_recompute",
        minibatch_size=8,
        episodes_per_update=16,
    )
    assert bool(list(config_warnings(config))) == is_dead


def test_settings_that_only_sources_read_are_settings():
    default = AsyncDecoupledPPOConfig()
    assert {"prox_alpha", "ewma_decay", "old_logit_model"} <= source_settings()
    assert all(hasattr(default, setting) for setting in source_settings())


def test_a_mask_that_keeps_next_to_nothing_under_a_proxy(make_learner_config):
    config = make_learner_config(old_logprob_source="ewma_prox")
    (said,) = result_warnings(config, {"train_infer_mask": 0.05})
    assert "keeps next to nothing under ewma_prox: 5.0% of the tokens" in said
    assert list(result_warnings(config, {"train_infer_mask": 0.2})) == []


@pytest.mark.parametrize(
    ("dtype", "fresh", "is_noise"),
    [
        ("float32", 5e-5, True),
        ("float32", 5e-4, False),
        ("bfloat16", 5e-4, True),
        ("bfloat16", 2e-2, False),
    ],
)
def test_exactness_that_costs_a_pass_for_nothing(
    make_learner_config, dtype, fresh, is_noise
):
    found = {
        "train_infer_mask": 1.0,
        "lag_0/discrepancy_log_ratio_abs_mean": fresh,
        "lag_0/train_infer_mask": 1.0,
    }
    config = make_learner_config(engine={"dtype": dtype})
    said = list(result_warnings(config, found))
    assert len(said) == is_noise
    assert all("rollout is exact here" in sentence for sentence in said)
    proxy = make_learner_config(
        engine={"dtype": dtype}, old_logprob_source="current_recompute"
    )
    assert list(result_warnings(proxy, found)) == []


@pytest.mark.parametrize("source", ["snapshot_old", "ppo_ewma_async"])
def test_a_mask_that_drops_what_the_policy_decides(make_learner_config, source):
    config = make_learner_config(old_logprob_source=source, eps_ti=1.05)

    def found(kept_between, kept_uncertain):
        return {
            "train_infer_mask": 0.985,
            "entropy_0/token_share": 0.97,
            "entropy_0/train_infer_mask": 0.2,  # not asked for
            "entropy_1e-1/token_share": 0.02,
            "entropy_1e-1/train_infer_mask": kept_between,
            "entropy_1/token_share": 0.01,
            "entropy_1/train_infer_mask": kept_uncertain,
        }

    (said,) = result_warnings(config, found(0.65, 0.2))
    assert "entropy over 0.1 nats it keeps 50%, of all 98.5%" in said
    assert "eps_ti=1.05 higher" in said
    # Weighted by their tokens: two of three are of the lower entropy.
    assert list(result_warnings(config, found(0.9, 0.5))) == []
    assert list(result_warnings(config, found(0.5, 0.9))) != []
    # As a learner reports it: of an entropy that no token has, its share alone.
    for gone in (["1"], ["1e-1", "1"]):
        some = found(0.9, 0.1)
        for name in gone:
            some[f"entropy_{name}/token_share"] = 0.0
            del some[f"entropy_{name}/train_infer_mask"]
        assert list(result_warnings(config, some)) == []


def test_updates_without_a_signal_and_resets_in_a_row_are_said(make_learner_config):
    config = make_learner_config(old_logprob_source="ppo_ewma_async")
    (said,) = result_warnings(config, {"had_signal": 0.0})
    assert "had no signal and changed nothing" in said
    (said,) = result_warnings(config, {"ewma_resets_in_a_row": 3.0})
    assert "current_recompute in disguise" in said
    fine = {"had_signal": 1.0, "ewma_resets_in_a_row": 2.0}
    assert list(result_warnings(config, fine)) == []


def test_an_update_whose_every_gradient_is_not_finite_is_said(
    make_learner_config, make_episodes
):
    """Not one of which some steps were taken, or none had a signal."""
    config = make_learner_config(
        old_logprob_source="current_recompute", minibatch_size=4
    )
    learner = config.build_learner(spaces=SPACES)
    loss_of, scales = learner.compute_loss_for_module, itertools.cycle([math.nan])
    learner.compute_loss_for_module = lambda **kw: loss_of(**kw) * next(scales)

    def said():
        version = learner._version
        episodes = make_episodes(np.random.default_rng(0), [version])
        found = learner.update(
            training_data=TrainingData(episodes=episodes), minibatch_size=4
        )[DEFAULT_MODULE_ID]
        found = {key: value.peek() for key, value in found.items()}
        told = [*result_warnings(config, found)]
        return [text for text in told if "changed nothing" in text]

    (sentence,) = said()
    assert "no gradient was finite: 2 steps have been skipped so far" in sentence
    assert learner._version == 0
    scales = itertools.cycle([math.nan, 1.0])
    assert said() == [] and learner._version == 1
    (sentence,) = result_warnings(config, {"had_signal": 0.0, "num_steps_taken": 0.0})
    assert "had no signal" in sentence


def test_the_masks_warning_outlives_an_entropy_that_no_token_has_any_more(
    make_learner, make_episodes, monkeypatch
):
    """RLlib's results then hold NaN for it, which is below no bound."""
    real, uncertain = loss.ratio_metrics_by_entropy, [True]

    def by_entropy(logp, *arguments, entropy, **bounds):
        entropy = torch.full_like(entropy, 0.5)
        if uncertain[0]:
            entropy[:, ::2] = 2.0
        return real(logp, *arguments, entropy=entropy, **bounds)

    monkeypatch.setattr(loss, "ratio_metrics_by_entropy", by_entropy)
    learner = make_learner(
        old_logprob_source="current_recompute", eps_ti=20.0, max_staleness=9
    )
    root, rng = MetricsLogger(root=True), np.random.default_rng(0)
    for uncertain[0] in (True, False):
        data = TrainingData(episodes=make_episodes(rng, [learner._version]))
        root.aggregate([learner.update(training_data=data)])
        results = root.compile()["default_policy"]
        warnings = result_warnings(learner.config, results)
        assert [w for w in warnings if "entropy over" in w]
