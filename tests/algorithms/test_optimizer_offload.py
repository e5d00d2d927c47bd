"""Adam's moments are on the host between steps, and updates do not change."""

import copy

import numpy as np
import torch
from ray.rllib.core.learner.training_data import TrainingData

from rllib_llm_async.algorithms.async_decoupled_ppo.torch import policy_learner
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.optimizer_offload import (
    move_moments,
)


def whole(learner):
    return torch.cat([p.detach().flatten() for p in learner._policy.parameters()])


def test_updates_and_checkpoints_are_the_same(make_learner, make_episodes, tmp_path):
    rng = np.random.default_rng(0)
    batches = [make_episodes(rng, [0]) for _ in range(2)]
    ends = []
    for offload in (False, True):
        learner = make_learner(optimizer_offload=offload)
        learner.update(training_data=TrainingData(episodes=copy.deepcopy(batches[0])))
        learner.save_to_path(str(tmp_path / str(offload)))
        learner = make_learner(optimizer_offload=offload)
        learner.restore_from_path(str(tmp_path / str(offload)))
        learner.update(training_data=TrainingData(episodes=copy.deepcopy(batches[1])))
        ends.append(whole(learner))
    assert torch.equal(*ends)


def test_moments_are_at_hand_for_a_step_and_a_restore_alone(
    make_learner, make_episodes, monkeypatch, tmp_path
):
    learner = make_learner(optimizer_offload=True, minibatch_size=4)
    (optimizer,) = learner._named_optimizers.values()
    seen, real = [], policy_learner.moments_on
    optimizer.register_step_post_hook(lambda *_: seen.append("step"))

    def spy(device, optimizers):
        assert [*optimizers] == [optimizer] and device == learner._device
        seen.append("moments")
        return real(device, [optimizer])

    monkeypatch.setattr(policy_learner, "moments_on", spy)
    episodes = make_episodes(np.random.default_rng(0), [0])
    learner.update(training_data=TrainingData(episodes=episodes), minibatch_size=4)
    assert seen == ["moments", "step"] * 2
    learner.save_to_path(str(tmp_path))
    learner.restore_from_path(str(tmp_path))
    assert seen[4:] == ["moments"]


def test_all_moments_move_and_step_counts_stay():
    parameters = [torch.nn.Parameter(torch.ones(n)) for n in (3, 0, 2)]
    optimizer = torch.optim.AdamW(parameters, amsgrad=True)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    move_moments([optimizer], torch.device("meta"))
    for parameter in parameters:
        state = optimizer.state[parameter]
        assert not state["step"].is_meta
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            assert state[name].is_meta
