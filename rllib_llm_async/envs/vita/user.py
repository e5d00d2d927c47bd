"""VitaBench's user simulator with a chat model behind it."""

from __future__ import annotations

from typing import Any

from vita.data_model.message import AssistantMessage, UserMessage
from vita.user.user_simulator import UserSimulator

from rllib_llm_async.envs.agent_env import Message
from rllib_llm_async.envs.chat_model import ChatModel
from rllib_llm_async.envs.tool_calls import encodable
from rllib_llm_async.envs.vita.messages import as_chat


class SimulatedUser:
    """One episode's user: the package's prompts and history, asked asynchronously.

    Args:
        task: The package's task.
        language: The package's language.
        model: Speaks for the user.
    """

    def __init__(self, task: Any, language: str, model: ChatModel) -> None:
        self._model = model
        self._state = UserSimulator(
            persona=str(task.user_scenario.user_profile),
            instructions=task.instructions,
            language=language,
        ).get_init_state()

    async def answer(self, said: AssistantMessage) -> UserMessage:
        """What the user says next.

        Raises:
            EpisodeError: If the model gives no text.
        """
        state = self._state
        state.messages.append(said)
        text = await self._model.complete(
            as_chat(state.system_messages + state.flip_roles()), read=_text
        )
        message = UserMessage(role="user", content=text)
        state.messages.append(message)
        return message


def _text(reply: Message) -> str:
    text = encodable(reply.get("content") or "")
    if not text.strip():
        raise ValueError("the simulated user said nothing")
    return text
