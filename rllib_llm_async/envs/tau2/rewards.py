"""tau2-bench's reward without replaying the conversation in new environments.

The environment at the end of an episode is the one that the package would rebuild from
its messages. The rest is the package's own: what counts for a task, the checks of
actions and of what was said, the judge's prompt and how its answer is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from tau2.data_model.message import AssistantMessage
from tau2.data_model.simulation import TerminationReason
from tau2.data_model.tasks import RewardType, Task
from tau2.environment.environment import Environment
from tau2.evaluator import evaluator_nl_assertions
from tau2.evaluator.evaluator_action import ActionEvaluator
from tau2.evaluator.evaluator_communicate import CommunicateEvaluator
from tau2.evaluator.evaluator_nl_assertions import NLAssertionsEvaluator
from tau2.orchestrator.orchestrator import Orchestrator

from rllib_llm_async.envs.agent_env import Message
from rllib_llm_async.envs.chat_model import ChatModel
from rllib_llm_async.envs.tau2.domain import Domain
from rllib_llm_async.envs.tau2.participants import to_chat

_STOPS = (TerminationReason.AGENT_STOP, TerminationReason.USER_STOP)


def needs_judge(task: Task) -> bool:
    """Whether a model has to read the conversation."""
    criteria = task.evaluation_criteria
    return bool(
        criteria
        and RewardType.NL_ASSERTION in criteria.reward_basis
        and criteria.nl_assertions
    )


def is_no_write(domain: Domain, task: Task) -> bool:
    """Whether the reference leaves a database as it was that the reward looks at.

    An agent that does nothing at all passes that part.
    """
    criteria = task.evaluation_criteria
    counts = criteria is not None and RewardType.DB in criteria.reward_basis
    return counts and not domain.goal(task)[1]


async def reward_breakdown(
    domain: Domain, orchestrator: Orchestrator, judge: ChatModel | None
) -> dict[str, float]:
    """The parts whose product is the reward; empty if the conversation was cut off.

    Raises:
        EpisodeError: If the judge gives no valid answer.
    """
    task, criteria = orchestrator.task, orchestrator.task.evaluation_criteria
    if orchestrator.termination_reason not in _STOPS or criteria is None:
        return {}
    environment, trajectory = orchestrator.environment, orchestrator.trajectory
    parts: dict[RewardType, Callable[[], float]] = {
        RewardType.DB: lambda: _database(domain, environment, task),
        RewardType.ENV_ASSERTION: lambda: _assertions(environment, task),
        RewardType.ACTION: lambda: (
            ActionEvaluator.calculate_reward(task, trajectory).reward
        ),
        RewardType.COMMUNICATE: lambda: (
            CommunicateEvaluator.calculate_reward(task, trajectory).reward
        ),
    }
    breakdown = {
        kind.value: float(part())
        for kind, part in parts.items()
        if kind in criteria.reward_basis
    }
    if judge is not None and needs_judge(task) and math.prod(breakdown.values()) == 1:
        breakdown[RewardType.NL_ASSERTION.value] = await _judge(
            judge, trajectory, criteria.nl_assertions
        )
    return breakdown


def _database(domain: Domain, environment: Environment, task: Task) -> float:
    criteria = task.evaluation_criteria
    if criteria.actions is None and criteria.env_assertions is None:
        return 1.0
    return float(domain.state(environment) == domain.goal(task)[0])


def _assertions(environment: Environment, task: Task) -> float:
    try:
        return float(
            all(
                environment.run_env_assertion(assertion, raise_assertion_error=False)
                for assertion in task.evaluation_criteria.env_assertions or []
            )
        )
    except Exception:
        # E.g. an assertion about an entry that the agent never created.
        return 0.0


async def _judge(judge: ChatModel, trajectory: list, assertions: list[str]) -> float:
    def evaluate(generate: Callable[..., Any]) -> list:
        """The package's evaluator with another way to call a model."""
        with patch.object(evaluator_nl_assertions, "generate", generate):
            return NLAssertionsEvaluator.evaluate_nl_assertions(trajectory, assertions)

    def keep(*, messages: list, **kwargs: Any) -> AssistantMessage:
        asked.extend(messages)
        return AssistantMessage(role="assistant", content="{}")

    def read(answer: Message) -> list:
        said = AssistantMessage(role="assistant", content=answer["content"])
        try:
            checks = evaluate(lambda **kwargs: said)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the judge's answer cannot be read: {error!r}") from error
        if len(checks) < len(assertions):
            raise ValueError(f"the judge graded {len(checks)} of {len(assertions)}")
        return checks

    asked: list = []
    evaluate(keep)
    checks = await judge.complete(to_chat(asked), read=read)
    return float(all(check.met for check in checks))
