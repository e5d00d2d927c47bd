"""Generated tokens to the assistant message (text and tool calls) that an env takes."""

from __future__ import annotations

from typing import Any

from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.utils.annotations import override

from rllib_llm_async.batch import columns
from rllib_llm_async.chat import ChatFormat


class ParseAssistantMessage(ConnectorV2):
    """Adds ``assistant_message``, an OpenAI message dict.

    Place it after `AttachVersionedLogprobs`. It handles one episode per call, whose
    last observation is the prompt, and takes the types of arguments from ``tools``. A
    tool call that cannot be read is passed on as written: the environment answers it
    with an error that the agent sees. A column that is already present is left alone.
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
        if columns.ASSISTANT_MESSAGE not in batch:
            batch[columns.ASSISTANT_MESSAGE] = self.chat_format.parse(
                batch[columns.ENGINE_OUTPUT].token_ids,
                batch[columns.TOOLS],
                prompt=episodes[0].get_observations(-1),
            )
        return batch
