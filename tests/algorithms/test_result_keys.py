"""Every figure that a Learner reports has its one home in `result_keys`."""

import numpy as np
import pytest
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData

from rllib_llm_async import result_keys
from rllib_llm_async.old_logprobs import source_names

KNOWN = {value for key, value in vars(result_keys).items() if key.isupper()}
#: RLlib's own, of every Learner.
RLLIB = {
    "module_train_batch_size_mean",
    "num_module_steps_trained",
    "num_module_steps_trained_lifetime",
    "num_module_steps_trained_lifetime_throughput",
    "num_module_steps_trained_throughput",
    "num_trainable_parameters",
    "num_non_trainable_parameters",
    "default_optimizer_learning_rate",
    "gradients_default_optimizer_global_norm",
    "weights_seq_no",
    "diff_num_grad_updates_vs_sampler_policy",
}


def key_of(path):
    """Without the lag, the entropy or the compared source before it."""
    first, *rest = path.split("/")
    if first == "compare":
        return rest[1] if rest[0] in source_names() else path
    is_part = first.startswith(("lag_", "entropy_")) and rest
    return "/".join(rest) if is_part else path


@pytest.mark.parametrize(
    "settings",
    [
        {"old_logprob_source": "auto", "kl_coeff": 0.1},
        {
            "advantage_estimator": "gae",
            "old_logprob_source": "ppo_ewma_async",
            "compare_sources": ["snapshot_old", "linear_prox"],
        },
        {"old_logprob_source": "snapshot_old"},
    ],
    ids=["auto", "compared", "snapshots"],
)
def test_what_a_learner_reports_is_known(make_learner, make_episodes, settings):
    learner = make_learner(**settings)
    for version in range(3):
        versions = [*range(version + 1)]
        episodes = make_episodes(np.random.default_rng(version), versions)
        results = learner.update(training_data=TrainingData(episodes=episodes))
    reported = {key_of(path) for path in results[DEFAULT_MODULE_ID]}
    assert reported - RLLIB <= KNOWN
    assert {result_keys.TRAIN_INFER_MASK, result_keys.TOKEN_SHARE} <= reported
    for strata in ("lag_", "entropy_"):
        shares = [
            value
            for path, value in results[DEFAULT_MODULE_ID].items()
            if path.startswith(strata) and path.endswith(result_keys.TOKEN_SHARE)
        ]
        assert sum(float(share) for share in shares) == pytest.approx(1.0)


def test_no_two_constants_are_one_key():
    names = [key for key in vars(result_keys) if key.isupper()]
    assert len(names) == len(KNOWN)
