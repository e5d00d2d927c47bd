"""Two learners over gloo against one."""

import numpy as np
import pytest
import ray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_llm_async import result_keys


def weights_of(group):
    def weights(learner):
        return {n: w.cpu().numpy() for n, w in learner._policy.inference_weights()}

    return [result.get() for result in group.foreach_learner(weights)]


@pytest.mark.parametrize(
    "micro_batch_tokens", [16384, pytest.param(64, marks=pytest.mark.slow)]
)
def test_two_learners_take_the_step_of_one(
    ray_cluster, make_learner_group, make_episodes, micro_batch_tokens
):
    episodes = make_episodes(np.random.default_rng(0), [0])
    settings = {
        "old_logprob_source": "ppo_ewma_async",
        "grad_clip": None,
        "lr": 1e-2,
        "micro_batch_tokens": micro_batch_tokens,
    }
    results, counts = [], []
    for num_learners in (1, 2):
        group = make_learner_group(num_learners=num_learners, **settings)
        groups = [ray.put(episodes[:4]), ray.put(episodes[4:])]
        # Momentum has to be SGD-like for weights to be comparable: one step of Adam
        # turns the noise of a zero gradient into a full step.
        metrics = MetricsLogger(root=True)
        metrics.aggregate(
            group.update(training_data=TrainingData(episodes_refs=groups))
        )
        counts.append(metrics.compile()[DEFAULT_MODULE_ID])
        results.append(weights_of(group))
        group.shutdown()
    # Counts of two learners are the counts of one: they are summed, not averaged.
    num_tokens = sum(len(turn) for e in episodes for turn in e.actions.data)
    for of_group in counts:
        assert sum(of_group[result_keys.RATIO_DENSITY]) == num_tokens
        assert of_group[result_keys.STALENESS_TOKENS] == (num_tokens, 0, 0, 0, 0)
    assert [len({span[0] for span in c[result_keys.TIMELINE]}) for c in counts] == [
        1,
        2,
    ]
    (alone,), (first, second) = results
    for name, weight in alone.items():
        np.testing.assert_array_equal(first[name], second[name])
        close = np.isclose(weight, first[name], atol=1e-4).mean()
        assert close > 0.99, name
