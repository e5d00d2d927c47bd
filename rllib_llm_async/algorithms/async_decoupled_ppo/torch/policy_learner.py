"""A torch Learner of one policy: how it holds its weights, and what it saves of them.

Whole or sharded, see `policy_weights`. How they are trained is the subclass's business.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils import force_list
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from torch import Tensor

from rllib_llm_async.algorithms.async_decoupled_ppo.torch.optimizer_offload import (
    moments_on,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.policy_weights import (
    PolicyWeights,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.sharded_checkpoint import (
    ShardedState,
    shards_of,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.sharding import (
    ShardedPolicyWeights,
    shard_policy,
)
from rllib_llm_async.core.collectives import gather_from_learners, learner_rank
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy


class PolicyLearner(TorchLearner):
    """Trains an `HFCausalLM`; with ``learner_sharding`` it holds a share of it."""

    _shards_directory: str | None = None

    @property
    def _policy(self) -> CausalLMPolicy:
        return self.module[DEFAULT_MODULE_ID].unwrapped().policy

    @override(TorchLearner)
    def _make_module(self):
        if self.config.shards_weights:
            # What is drawn is the same in all of them, so that its shares fit.
            torch.manual_seed(gather_from_learners(torch.initial_seed())[0])
            spec = self._module_spec.rl_module_specs[DEFAULT_MODULE_ID]
            spec.model_config["load_weights"] = False
        module = super()._make_module()
        weights = ShardedPolicyWeights if self.config.shards_weights else PolicyWeights
        self._weights = weights(module[DEFAULT_MODULE_ID].policy)
        return module

    @override(TorchLearner)
    def _map_module_to_device(self, module) -> None:
        if self.config.shards_weights:
            policy = module[DEFAULT_MODULE_ID].policy
            shard_policy(policy, self._device, self.config.model_path)
        else:
            super()._map_module_to_device(module)

    @override(TorchLearner)
    def _make_modules_ddp_if_necessary(self) -> None:
        if not self.config.shards_weights:
            super()._make_modules_ddp_if_necessary()

    @override(TorchLearner)
    def get_parameters(self, module) -> list[Tensor]:
        return self._weights.optimized()

    @override(TorchLearner)
    def _get_clip_function(self) -> Any:
        return self._weights.clip

    @override(TorchLearner)
    def _get_global_norm_function(self) -> Any:
        return self._weights.norm

    @override(TorchLearner)
    def apply_gradients(self, gradients_dict) -> None:
        with self._moments_at_hand():
            super().apply_gradients(gradients_dict)

    def _moments_at_hand(self) -> contextlib.AbstractContextManager[None]:
        if not self.config.optimizer_offload:
            return contextlib.nullcontext()
        return moments_on(self._device, self._named_optimizers.values())

    @override(TorchLearner)
    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        super().before_gradient_based_update(timesteps=timesteps)
        # RLlib sets the rate of the next update after one: the first after a restore
        # would have that of the run before.
        step = timesteps.get(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0)
        for optimizer, schedule in self._optimizer_lr_schedules.items():
            self._set_optimizer_lr(optimizer, lr=schedule.update(timestep=step))

    # --- Checkpoint ---------------------------------------------------------------

    def _get_own_state(self, components, not_components) -> dict[str, Any]:
        """What a subclass adds to RLlib's state."""
        return {}

    def _set_own_state(self, state: Mapping[str, Any]) -> None:
        """Restores that, after RLlib's."""

    @property
    def _shards(self) -> ShardedState:
        return ShardedState(self._weights, self.module[DEFAULT_MODULE_ID].unwrapped())

    @property
    def _writes_shards(self) -> bool:
        # With one learner, too: another number may go on from there.
        return self.config.learner_sharding == "fsdp2"

    @override(TorchLearner)
    def get_state(self, components=None, *, not_components=None, **kwargs):
        state = self._whole_state(components, not_components, **kwargs)
        return self._shards.without_tensors(state) if self._writes_shards else state

    def _whole_state(self, components=None, not_components=None, **kwargs):
        """The state with all tensors, but for weights that `_shards` writes."""
        not_components = [
            *force_list(not_components),
            *[COMPONENT_RL_MODULE] * self._writes_shards,
        ]
        state = super().get_state(components, not_components=not_components, **kwargs)
        return {**state, **self._get_own_state(components, not_components)}

    def save_shards(self, directory: str) -> OSError | None:
        """Writes this learner's files of a checkpoint; all learners do it together.

        Returns:
            What kept one of them from it: raised here, it would end the actor.
        """
        try:
            self._shards.save(self._whole_state(), directory)
        except OSError as error:
            return error
        return None

    @override(TorchLearner)
    def restore_from_path(self, path, *, filesystem=None, **kwargs) -> None:
        with shards_of(path, filesystem) as self._shards_directory:
            super().restore_from_path(path, filesystem=filesystem, **kwargs)
        self._shards_directory = None

    @override(TorchLearner)
    def set_state(self, state) -> None:
        state = self._shards.with_tensors(state, self._shards_directory)
        self._weights_seq_no = 0  # RLlib passes over weights older than those in use
        with self._moments_at_hand():  # RLlib puts them on the device
            super().set_state(state)
        if learner_rank() != 0:
            # What it holds are the first learner's figures, counted there.
            self.metrics.reset()
        self._set_own_state(state)
