"""Plays tau2-bench tasks with the package's orchestrator, one agent turn per step."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

from tau2.agent.base_agent import is_valid_agent_history_message
from tau2.data_model.message import AssistantMessage, ToolCall
from tau2.data_model.simulation import TerminationReason
from tau2.orchestrator.orchestrator import Orchestrator, Role
from tau2.user.user_simulator import DummyUser

from rllib_llm_async.envs.agent_env import EpisodeError, Message, Start, Step, TaskRef
from rllib_llm_async.envs.tau2.domain import MALFORMED_CALL
from rllib_llm_async.envs.tau2.participants import to_chat
from rllib_llm_async.envs.tau2.rewards import is_no_write, reward_breakdown
from rllib_llm_async.envs.tau2.shared_db import writing
from rllib_llm_async.envs.tool_calls import encodable, parse_call

if TYPE_CHECKING:
    from rllib_llm_async.envs.tau2.suite import Tau2Suite


class Tau2Env:
    """Plays one task after another; see `rllib_llm_async.envs.agent_env`."""

    def __init__(self, suite: Tau2Suite) -> None:
        self._suite = suite
        self._orchestrator: Orchestrator | None = None

    @property
    def orchestrator(self) -> Orchestrator:
        """The conversation under way."""
        if self._orchestrator is None:
            raise EpisodeError("step before reset, or after the episode ended")
        return self._orchestrator

    async def reset(self, task: TaskRef) -> Start:
        self._domain, chosen = self._suite.find(task)
        self._num_malformed = 0
        domain, model = self._domain, self._suite.user
        environment = domain.make_environment(chosen, solo=domain.solo)
        agent = domain.make_agent(environment, chosen)
        self._orchestrator = Orchestrator(
            domain=domain.name,
            agent=agent,
            user=DummyUser() if model is None else domain.make_user(model, chosen),
            environment=environment,
            task=chosen,
            max_steps=self._suite.max_steps,
            max_errors=self._suite.max_errors,
            solo_mode=domain.solo,
        )
        initial = chosen.initial_state
        if not domain.solo or (initial and initial.message_history):
            self._initialize()
            await self._until_agent_speaks()
            if self._orchestrator.done:
                raise EpisodeError(
                    "env_config.user: the conversation ended before the agent's first "
                    f"turn ({self._orchestrator.termination_reason.value})"
                )
        no_write = is_no_write(domain, chosen)
        #: Results tell the two kinds of tasks apart by the domain's name.
        self._kind = {
            "domain": f"{domain.name}_no_write" if no_write else domain.name,
            "no_write": no_write,
        }
        return Start(
            messages=[
                {"role": "system", "content": agent.system_prompt},
                *self._agent_sees(self._orchestrator.trajectory),
            ],
            tools=domain.agent_schemas(agent),
            info=self._kind,
        )

    async def step(self, message: Message) -> Step:
        orchestrator = self.orchestrator
        num_messages = len(orchestrator.trajectory)
        said = self._read(message)
        if said is None:
            orchestrator.done = True
            orchestrator.termination_reason = TerminationReason.AGENT_ERROR
        else:
            orchestrator.agent.next = said
            if orchestrator.message is None:
                # Without a user, the package begins with what the agent says.
                self._initialize()
            else:
                self._advance()
            await self._until_agent_speaks()
        answers = self._agent_sees(orchestrator.trajectory[num_messages + 1 :])
        return await self._finish(answers) if orchestrator.done else Step(answers)

    async def aclose(self) -> None:
        self._orchestrator = None

    def _initialize(self) -> None:
        with writing(self.orchestrator.environment.tools.db):
            self.orchestrator.initialize()

    def _advance(self) -> None:
        orchestrator = self.orchestrator
        orchestrator.step()
        orchestrator._check_termination()

    async def _until_agent_speaks(self) -> None:
        orchestrator = self.orchestrator
        while not orchestrator.done and orchestrator.to_role != Role.AGENT:
            if orchestrator.to_role == Role.USER:
                await orchestrator.user.listen(
                    orchestrator.message, orchestrator.user_state
                )
            if self._is_slow():
                await asyncio.to_thread(self._advance)
            else:
                self._advance()

    def _is_slow(self) -> bool:
        """Whether tools come next that would keep other episodes waiting."""
        orchestrator, slow = self.orchestrator, self._domain.slow_tools
        return orchestrator.to_role == Role.ENV and any(
            call.name in slow for call in orchestrator.message.tool_calls or ()
        )

    def _agent_sees(self, trajectory: list) -> list[Message]:
        return to_chat(
            [item for item in trajectory if is_valid_agent_history_message(item)]
        )

    def _read(self, message: Message) -> AssistantMessage | None:
        """The agent's turn; None if it is empty. Text beside a call reaches nobody."""
        calls = [self._read_call(call) for call in message.get("tool_calls") or ()]
        if calls:
            return AssistantMessage(role="assistant", tool_calls=calls)
        text = encodable(message.get("content") or "")
        if not text.strip():
            return None
        return AssistantMessage(role="assistant", content=text)

    def _read_call(self, call: dict[str, Any]) -> ToolCall:
        name, arguments = parse_call(call)
        if arguments is None:
            self._num_malformed += 1
            name, arguments = MALFORMED_CALL, {}
        # The requestor is never the agent's to say: it could act as the user.
        return ToolCall(
            id=str(call.get("id") or ""),
            name=name,
            arguments=arguments,
            requestor="assistant",
        )

    async def _finish(self, answers: list[Message]) -> Step:
        orchestrator = self.orchestrator
        breakdown = await reward_breakdown(
            self._domain, orchestrator, self._suite.judge
        )
        reason = orchestrator.termination_reason
        reward = math.prod(breakdown.values()) if breakdown else 0.0
        truncated = reason == TerminationReason.MAX_STEPS
        return Step(
            answers,
            reward=reward,
            terminated=not truncated,
            truncated=truncated,
            info={
                **self._kind,
                "success": reward == 1.0,
                "reason": reason.value,
                "reward_breakdown": breakdown,
                "num_malformed_tool_calls": self._num_malformed,
            },
        )
