"""Updates on groups that begin alike are those of sequences computed one by one."""

import copy

import numpy as np
import pytest
import torch
from ray.rllib.core.learner.training_data import TrainingData

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
