"""Updates on groups that begin alike are those of sequences computed one by one."""

import copy

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData

from rllib_llm_async import result_keys
from rllib_llm_async.batch import columns


@pytest.fixture
def groups(make_episodes):
    """Dialogues after a policy that all share and a task that their group shares."""
    rng = np.random.default_rng(3)
    policy = rng.integers(5, 400, size=60)
    tasks = [rng.integers(5, 400, size=25) for _ in range(2)]
    episodes = make_episodes(rng, [0])
    for episode in episodes:
        task = tasks[episode.custom_data[columns.GROUP_ID]]
        first = episode.observations.data[0]
        episode.observations.data[0] = np.concatenate([policy, task, first])
    return episodes


@pytest.mark.parametrize("source", ["snapshot_old", "ewma_prox"])
@pytest.mark.parametrize("estimator", ["group_relative", "gae"])
def test_an_update_is_the_same(source, estimator, groups, make_learner):
    weights = []
    for share_prefixes in (True, False):
        torch.manual_seed(0)
        learner = make_learner(
            old_logprob_source=source,
            advantage_estimator=estimator,
            minibatch_size=4,
            # One pass holds all of a minibatch where it computes the prefixes once.
            micro_batch_tokens=400,
            # Adam's first steps are the gradient's sign: noise shows where it is 0.
            optimizer={"eps": 1e-2},
        )
        policy = learner._policy
        policy.share_prefixes = share_prefixes
        computed = []
        policy.causal_lm.get_decoder().register_forward_pre_hook(
            lambda _, args, kwargs, to=computed: to.append(kwargs["input_ids"].numel()),
            with_kwargs=True,
        )
        for _ in range(2):
            learner.update(training_data=TrainingData(episodes=copy.deepcopy(groups)))
        values = [w.flatten() for _, w in policy.inference_weights()]
        weights.append((torch.cat(values), sum(computed)))
    (shared, few), (apart, many) = weights
    assert few < 0.6 * many
    torch.testing.assert_close(shared, apart, atol=1e-5, rtol=0)


@pytest.mark.parametrize("share_prefixes", [True, False])
def test_extra_tokens_of_old_logits_are_what_was_computed(
    share_prefixes, groups, make_learner
):
    learner = make_learner(old_logprob_source="snapshot_old", max_staleness=2)
    policy, computed = learner._policy, []
    policy.share_prefixes = share_prefixes
    learner.update(training_data=TrainingData(episodes=copy.deepcopy(groups)))
    for episode in groups:
        for turn in episode.extra_model_outputs[columns.EPISODE_VERSIONS].data:
            turn[len(turn) // 2 :] = 1
    batch = learner._build_batch(TrainingData(episodes=groups))
    policy.causal_lm.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: computed.append(kwargs["input_ids"].numel()),
        with_kwargs=True,
    )
    learner._forward(batch, None)
    (one_pass,) = computed
    learner._old_logp(batch)
    of_versions = computed[1:]
    assert len(of_versions) == 2
    extra = learner.metrics.peek(
        (DEFAULT_MODULE_ID, result_keys.OLD_LOGPROB_EXTRA_FORWARD_TOKENS)
    )
    assert extra == sum(of_versions) - one_pass > 0
    in_sequences = int((batch[columns.SEQUENCE_IDS] >= 0).sum())
    assert (one_pass < 0.6 * in_sequences) == share_prefixes
