"""tau2-bench's agent and user, whose messages come from outside.

The package's own classes call a model and wait for it. Here the orchestrator finds the
message already there: ``next`` is set before it takes a step. Prompts, tools and what
ends a conversation stay the package's own.
"""

from __future__ import annotations

from tau2.agent.llm_agent import LLMAgent, LLMSoloAgent
from tau2.data_model.message import AssistantMessage, MultiToolMessage, UserMessage
from tau2.user.user_simulator import UserSimulator, UserState
from tau2.utils.llm_utils import to_litellm_messages

from rllib_llm_async.envs.agent_env import Message, ToolSchema
from rllib_llm_async.envs.chat_model import ChatModel
from rllib_llm_async.envs.tool_calls import parse_call


class PushAgent(LLMAgent):
    next: AssistantMessage

    def generate_next_message(self, message, state):
        return self.next, state


class PushSoloAgent(LLMSoloAgent):
    next: AssistantMessage

    def generate_next_message(self, message, state):
        if self.next.is_tool_call():
            self._check_if_stop_toolcall(self.next)
        return self.next, state


class PushUser(UserSimulator):
    """The simulated user.

    Args:
        model: Speaks for the user.
        tool_schemas: Of ``tools``.
        **kwargs: The package's own.
    """

    next: UserMessage

    def __init__(self, model: ChatModel, tool_schemas: list[ToolSchema], **kwargs):
        super().__init__(llm="", **kwargs)
        self._model = model
        self._tool_schemas = tool_schemas

    async def listen(self, message, state: UserState) -> None:
        """Hears a message and has the model find the answer, `next`.

        Raises:
            EpisodeError: If there is none.
        """
        if isinstance(message, MultiToolMessage):
            state.messages.extend(message.tool_messages)
        else:
            state.messages.append(message)
        conversation = state.system_messages + state.flip_roles()
        self.next = await self._model.complete(
            to_chat(conversation), self._tool_schemas or None, _user_message
        )

    def generate_next_message(self, message, state):
        state.messages.append(self.next)
        return self.next, state


def _user_message(answer: Message) -> UserMessage:
    """Raises ValueError for a malformed call."""
    calls = [_user_call(call) for call in answer.get("tool_calls", ())]
    return UserMessage(role="user", content=answer["content"], tool_calls=calls or None)


def _user_call(call: Message) -> dict:
    name, arguments = parse_call(call)
    if arguments is None:
        raise ValueError("the user model gave a malformed tool call")
    return {
        "id": call["id"],
        "name": name,
        "arguments": arguments,
        "requestor": "user",
    }


def to_chat(messages: list) -> list[Message]:
    """The package's messages as OpenAI dicts."""
    return [
        {key: value for key, value in message.items() if value is not None}
        for message in to_litellm_messages(messages)
    ]
