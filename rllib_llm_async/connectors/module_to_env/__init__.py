from rllib_llm_async.connectors.module_to_env.attach_versioned_logprobs import (
    AttachVersionedLogprobs,
)
from rllib_llm_async.connectors.module_to_env.parse_assistant_message import (
    ParseAssistantMessage,
)

__all__ = ["AttachVersionedLogprobs", "ParseAssistantMessage"]
