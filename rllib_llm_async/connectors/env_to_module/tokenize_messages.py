"""Chat messages of the environment to token ids: only what is new is tokenised."""

from __future__ import annotations

from typing import Any

from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.utils.annotations import override

from rllib_llm_async.batch import columns
from rllib_llm_async.chat import ChatFormat


class TokenizeMessages(ConnectorV2):
    """Adds ``new_tokens``, the ids to append to the episode's context.

    Place it last in the env-to-module pipeline. It handles one episode per call and
    needs ``messages`` in the batch, at the start of an episode ``tools``, later on
    ``engine_output`` and ``assistant_message``. A column ``new_tokens`` that is already
    present is left alone. Tokens that the model generated are never tokenised again:
    the context is append-only.
    """

    def __init__(
        self,
        input_observation_space=None,
        input_action_space=None,
        *,
        chat_format: ChatFormat,
    ) -> None:
        super().__init__(input_observation_space, input_action_space)
        self.chat_format = chat_format

    @override(ConnectorV2)
    def __call__(
        self, *, rl_module, batch, episodes, explore=None, shared_data=None, **kwargs
    ) -> dict[str, Any]:
        if columns.NEW_TOKENS in batch:
            return batch
        messages = batch[columns.MESSAGES]
        if columns.ENGINE_OUTPUT in batch:
            new_tokens = self.chat_format.extend(
                messages,
                last_turn=batch[columns.ENGINE_OUTPUT].token_ids,
                said=batch[columns.ASSISTANT_MESSAGE],
            )
        else:
            new_tokens = self.chat_format.start(messages, batch[columns.TOOLS])
        batch[columns.NEW_TOKENS] = new_tokens
        return batch
