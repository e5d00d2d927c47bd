"""Plays episodes of VitaBench: the agent's messages to tools, user and judge.

Follows the package's orchestrator, which is synchronous: a tool call goes to the tools
alone, whatever text stands beside it; anything else goes to the user; either side ends
the conversation with a stop marker; an empty message of the agent ends it in failure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from vita.agent.llm_agent import LLMAgent
from vita.data_model.message import AssistantMessage, ToolCall, ToolMessage
from vita.orchestrator.orchestrator import get_default_first_agent_message
from vita.user.user_simulator import UserSimulator

from rllib_llm_async.envs.agent_env import EpisodeError, Message, Start, Step, TaskRef
from rllib_llm_async.envs.chat_model import ChatModel
from rllib_llm_async.envs.tool_calls import encodable, parse_call
from rllib_llm_async.envs.vita.isolation import Compartment
from rllib_llm_async.envs.vita.user import SimulatedUser

if TYPE_CHECKING:
    from rllib_llm_async.envs.vita.suite import VitaSuite


class Judge(Protocol):
    """Decides about a finished conversation."""

    async def verdict(
        self, task: Any, environment: Any, trajectory: list[Any]
    ) -> tuple[bool, dict[str, float]]:
        """Success, and what else is worth reporting."""
        ...


class VitaEnv:
    """Plays one task after another; see `rllib_llm_async.envs.agent_env`."""

    def __init__(self, suite: VitaSuite, user_model: ChatModel, judge: Judge) -> None:
        self._suite = suite
        self._user_model = user_model
        self._judge = judge
        self._episode: Episode | None = None

    async def reset(self, task: TaskRef) -> Start:
        await self.aclose()
        suite = self._suite
        domain, vita_task = suite.task(task)
        compartment = suite.compartment()
        with compartment:
            environment = suite.build(domain, vita_task)
        user = SimulatedUser(vita_task, suite.language, self._user_model)
        self._episode = episode = Episode(
            domain, vita_task, compartment, environment, user
        )
        greeting = get_default_first_agent_message(suite.language)
        episode.trajectory.append(greeting)
        asked = await episode.ask_user(greeting)
        if UserSimulator.is_stop(asked):
            raise EpisodeError("env_config.user: the user left before saying anything")
        agent = LLMAgent(
            tools=[],
            domain_policy=environment.get_policy(),
            time=environment.tools.db.time,
            language=suite.language,
        )
        return Start(
            messages=[
                {"role": "system", "content": agent.system_prompt},
                {"role": "user", "content": asked.content},
            ],
            tools=suite.tool_schemas(domain),
            info={"domain": domain},
        )

    async def step(self, message: Message) -> Step:
        episode = self.episode
        episode.num_turns += 1
        text = encodable(message.get("content") or "")
        calls = [
            (str(call.get("id")), *parse_call(call))
            for call in message.get("tool_calls") or []
        ]
        said = AssistantMessage(
            role="assistant",
            content=text or None,
            tool_calls=[
                ToolCall(id=id_, name=name, arguments=arguments or {})
                for id_, name, arguments in calls
            ]
            or None,
        )
        if not said.has_text_content() and not calls:
            return await self._finish(episode, [], "invalid_agent_message")
        episode.trajectory.append(said)
        # The package stops at its last step before anybody answers, stop marker or not.
        if episode.num_turns >= self._suite.max_turns:
            return await self._finish(episode, [], "max_turns")
        if LLMAgent.is_stop(said):
            return await self._finish(episode, [], "agent_stop")
        if calls:
            answers = [episode.run_tool(*call) for call in calls]
        else:
            reply = await episode.ask_user(said)
            answers = [{"role": "user", "content": reply.content}]
            if UserSimulator.is_stop(reply):
                return await self._finish(episode, answers, "user_stop")
        return Step(answers)

    async def aclose(self) -> None:
        if self._episode is not None:
            self._episode.compartment.discard()
            self._episode = None

    @property
    def episode(self) -> Episode:
        """The episode under way."""
        if self._episode is None:
            raise EpisodeError("step before reset, or after the episode ended")
        return self._episode

    async def _finish(
        self, episode: Episode, answers: list[Message], reason: str
    ) -> Step:
        success, breakdown = False, dict[str, float]()
        if reason in ("agent_stop", "user_stop"):
            success, breakdown = await self._judge.verdict(
                episode.task, episode.environment, episode.trajectory
            )
        await self.aclose()
        return Step(
            answers,
            reward=float(success),
            terminated=reason != "max_turns",
            truncated=reason == "max_turns",
            info={
                "success": success,
                "domain": episode.domain,
                "reason": reason,
                "reward_breakdown": breakdown,
                "num_malformed_tool_calls": episode.num_malformed,
                "num_tool_errors": episode.num_tool_errors,
            },
        )


@dataclass
class Episode:
    """One conversation: the package's task, environment and messages."""

    domain: str
    task: Any
    compartment: Compartment
    environment: Any
    user: SimulatedUser
    trajectory: list[Any] = field(default_factory=list)
    num_turns: int = 0
    num_malformed: int = 0
    #: Calls that raised; a tool's own refusals are ordinary answers.
    num_tool_errors: int = 0

    async def ask_user(self, said: AssistantMessage) -> Any:
        """The user's reply, which goes on record."""
        reply = await self.user.answer(said)
        self.trajectory.append(reply)
        return reply

    def run_tool(
        self, id_: str, name: str, arguments: dict[str, Any] | None
    ) -> Message:
        """The tool's answer, or why there is none, which goes on record.

        Args:
            id_: Of the call.
            name: Of the tool.
            arguments: None if the call is malformed.
        """
        failed = True
        if arguments is None:
            self.num_malformed += 1
            content = "Error: not a JSON object with a name and arguments"
        else:
            try:
                with self.compartment:
                    answer = self.environment.make_tool_call(
                        name, requestor="assistant", **arguments
                    )
                content = encodable(self.environment.to_json_str(answer))
                failed = False
            except Exception as error:
                content = encodable(f"Error: {error}")
        self.num_tool_errors += failed
        self.trajectory.append(
            ToolMessage(role="tool", id=id_, name=name, content=content, error=failed)
        )
        return {"role": "tool", "tool_call_id": id_, "content": content}
