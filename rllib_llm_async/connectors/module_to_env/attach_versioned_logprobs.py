"""What vLLM reports about a turn to the columns that the episode stores."""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.utils.annotations import override

from rllib_llm_async.batch import columns
from rllib_llm_async.envs.agent_env import UnusableOutputError

#: Of no tokens, layers and experts.
NO_EXPERTS = np.zeros((0, 0, 0), np.uint8)


class AttachVersionedLogprobs(ConnectorV2):
    """Adds the action (token ids) with one log mu_old and one version per token.

    With ``routed_experts`` the experts that the engine chose as well; empty where it
    returned none.

    Place it first in the module-to-env pipeline; needs ``engine_output`` of one
    episode's turn in the batch. A column that is already present is left alone.

    Raises:
        UnusableOutputError: If a log-probability is NaN, infinite or positive, or a
            token has no version; names the episode.
    """

    def __init__(
        self,
        input_observation_space=None,
        input_action_space=None,
        *,
        routed_experts: bool = False,
    ) -> None:
        super().__init__(input_observation_space, input_action_space)
        self.routed_experts = routed_experts

    @override(ConnectorV2)
    def __call__(
        self, *, rl_module, batch, episodes, explore=None, shared_data=None, **kwargs
    ) -> dict[str, Any]:
        output = batch[columns.ENGINE_OUTPUT]
        bad = output.unusable
        if bad.any():
            (episode,) = episodes
            first = int(bad.argmax())
            raise UnusableOutputError(
                f"episode {episode.id_}, turn {len(episode)}: the engine gave "
                f"{int(bad.sum())} of {len(bad)} tokens no usable log-probability or "
                f"version; token {first} has logp {output.logp[first]} and version "
                f"{output.versions[first]}"
            )
        batch.setdefault(Columns.ACTIONS, np.asarray(output.token_ids, dtype=np.int64))
        batch.setdefault(columns.EPISODE_BEHAVIOR_LOGP, output.logp)
        batch.setdefault(columns.EPISODE_VERSIONS, output.versions)
        if self.routed_experts:
            routed = output.routed_experts
            batch.setdefault(
                columns.EPISODE_ROUTED_EXPERTS, NO_EXPERTS if routed is None else routed
            )
        return batch
