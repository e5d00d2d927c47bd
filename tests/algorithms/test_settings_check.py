"""Every setting that cannot be is refused by its name."""

import pytest


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"eps_ti": 1}, "eps_ti: got 1, must be a ratio bound above 1"),
        ({"eps_stale": 2.5}, "eps_stale: got 2.5, must be below 2"),
        ({"eps_ti": "1.2"}, "eps_ti: got '1.2', must be a number"),
        ({"optimizer": {"epz": 1}}, "optimizer: got .*AdamW"),
        ({"optimizer": {"lr": 1}}, "lr is a setting of its own"),
        ({"prox_alpha": 1.5}, "prox_alpha: got 1.5"),
        ({"prox_alpha": "stale"}, "prox_alpha: got 'stale'"),
        ({"ewma_decay": 1.0}, "ewma_decay: got 1.0"),
        ({"advantage_estimator": "gea"}, "advantage_estimator: got 'gea'.*rloo"),
        ({"loss_normalizer": "token"}, "loss_normalizer: got 'token'.*sequences"),
        ({"kl_coeff": -0.1}, "kl_coeff: got -0.1"),
        ({"kl_reference": "base"}, "kl_reference: got 'base'"),
        ({"missing_snapshot": "skip"}, "missing_snapshot: got 'skip'"),
        ({"snapshot_memory_bytes": -1}, "snapshot_memory_bytes: got -1"),
        ({"old_logit_model": {"num_gpu": 1}}, "old_logit_model: got .*num_gpus"),
        ({"compare_sources": ["snapshots"]}, "compare_sources: .*snapshot_old"),
        (
            {"compare_sources": ["rollout"], "old_logprob_source": "ewma_prox"},
            "compare_sources: .*an exact source",
        ),
        ({"episodes_per_update": 6}, "episodes_per_update: got 6.*multiple of"),
        ({"lambda_": 1.1}, "lambda_: got 1.1"),
        ({"compute_dtype": "bf16"}, "compute_dtype: got 'bf16'.*bfloat16"),
        ({"engine": {"top_p": 0.9}}, "engine.top_p: .*whole distribution"),
        ({"engine": {"max_modl_len": 9}}, "engine.max_modl_len: .*'max_model_len'"),
        ({"engine": {"dtype": "half"}}, "engine.dtype: got 'half'.*bfloat16"),
    ],
)
def test_a_setting_that_cannot_be(make_learner_config, settings, words):
    with pytest.raises(ValueError, match=words):
        make_learner_config(**settings)
