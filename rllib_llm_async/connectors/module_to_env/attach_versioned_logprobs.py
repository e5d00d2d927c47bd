"""What vLLM reports about a turn to the columns that the episode stores."""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.utils.annotations import override

from rllib_llm_async.batch import columns
from rllib_llm_async.envs.agent_env import UnusableOutputError


class AttachVersionedLogprobs(ConnectorV2):
    """Adds the action (token ids) with one log mu_old and one version per token.

    Place it first in the module-to-env pipeline; needs ``engine_output`` of one
    episode's turn in the batch. A column that is already present is left alone.

    Raises:
        UnusableOutputError: If a log-probability is NaN, infinite or positive, or a
            token has no version; names the episode.
    """

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
        return batch
