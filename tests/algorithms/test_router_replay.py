"""Every pass of an update replays the experts that came with the episodes."""

import numpy as np
import pytest
from ray.rllib.core.learner.training_data import TrainingData

from rllib_llm_async import result_keys
from rllib_llm_async.models.router_replay import ROUTED_EXPERTS
from tests.algorithms.routed_episodes import with_experts

DEFAULT = "default_policy"


@pytest.mark.parametrize(
    "source",
    [
        "current_recompute",
        "ewma_prox",
        "interp_prox_loglinear",
        "ppo_ewma_async",
        "rollout",
        "snapshot_old",
    ],
)
def test_every_pass_is_told(source, make_learner, make_episodes, small_moe_dir):
    learner = make_learner(
        model=str(small_moe_dir),
        old_logprob_source=source,
        compare_sources=sorted({"snapshot_old", "ewma_prox"} - {source}),
        kl_coeff=0.1,
        max_staleness=2,
    )
    layer = learner._policy.causal_lm.model.layers[-1]
    told = []
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: told.append(kwargs.get(ROUTED_EXPERTS)),
        with_kwargs=True,
        prepend=True,
    )
    rng = np.random.default_rng(0)
    for versions in ([0], [0, 1]):
        episodes = with_experts(make_episodes(rng, versions))
        results = learner.update(training_data=TrainingData(episodes=episodes))
        share = results[DEFAULT][result_keys.ROUTER_REPLAY_SHARE].peek()
        assert share == pytest.approx(1.0)
    assert len(told) >= 6
    assert all(routed is not None for routed in told)


def test_experts_change_what_is_learned_unless_they_are_left_alone(
    make_learner, make_episodes, small_moe_dir
):
    def trained(router_replay, seed):
        learner = make_learner(model=str(small_moe_dir), router_replay=router_replay)
        rng = np.random.default_rng(0)
        episodes = with_experts(make_episodes(rng, [0]), seed)
        learner.update(training_data=TrainingData(episodes=episodes))
        name = "lm.model.layers.0.mlp.gate.weight"
        return learner._policy.get_parameter(name).detach()

    auto, other = trained("auto", 0), trained("auto", 1)
    assert (auto - other).abs().max() > 1e-4
    without = trained("none", 0)
    assert without.equal(trained("none", 1))
    assert (auto - without).abs().max() > 1e-4
