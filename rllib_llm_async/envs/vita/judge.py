"""VitaBench's verdict: all rubrics true, judged window by window by a chat model.

The package's evaluator is synchronous. It is run again for every window, with the
answers to the earlier ones at hand, until it has them all; so prompts and verdict are
its own. A run takes milliseconds, an answer seconds. Only an answer that leaves out a
rubric, which the prompt does not allow and the evaluator does not mind, is none here.
"""

from __future__ import annotations

from typing import Any

from vita.data_model.message import AssistantMessage
from vita.data_model.tasks import RewardType
from vita.evaluator import evaluator_traj
from vita.evaluator.evaluator_traj import TrajectoryEvaluator
from vita.utils import evaluator_extracter
from vita.utils.llm_utils import generate

from rllib_llm_async.envs.agent_env import EpisodeError, Message
from rllib_llm_async.envs.chat_model import ChatModel
from rllib_llm_async.envs.vita.messages import as_chat


class RubricJudge:
    """Judges finished episodes of any domain.

    Args:
        model: Reads the windows.
        language: The package's language.
    """

    def __init__(self, model: ChatModel, language: str) -> None:
        self._model = model
        self._language = language

    async def verdict(
        self, task: Any, environment: Any, trajectory: list[Any]
    ) -> tuple[bool, dict[str, float]]:
        """Success, and ``rubric_score``: the share of rubrics that are true.

        Raises:
            EpisodeError: If the model gives no answer, or none that can be read.
        """
        answers: list[str] = []

        def evaluate(answers: list[str]) -> Any:
            """The verdict, or an `_UnansweredError` that says what to ask next."""
            try:
                return TrajectoryEvaluator.calculate_reward(
                    task=task,
                    full_trajectory=trajectory,
                    final_state={},
                    llm_evaluator=_Answers(answers),
                    llm_args_evaluator={},
                    language=self._language,
                )
            except _UnansweredError as unanswered:
                return unanswered
            except Exception as error:
                raise ValueError(
                    f"unreadable verdict on window {len(answers)}: {error!r}"
                ) from error

        def read(reply: Message) -> Any:
            answer = reply.get("content") or ""
            result = evaluate([*answers, answer])
            left_out = _rubrics(task) - _judged(answer)
            if left_out:
                raise ValueError(
                    f"verdict on window {len(answers) + 1} leaves out {len(left_out)} "
                    f"of {len(_rubrics(task))} rubrics"
                )
            answers.append(answer)
            return result

        try:
            result = evaluate(answers)
        except ValueError as error:
            raise EpisodeError(f"env_config.judge: {error}") from error
        while isinstance(result, _UnansweredError):
            result = await self._model.complete(result.messages, read=read)
        score = result.reward_breakdown[RewardType.NL_ASSERTION]
        return result.reward == 1.0, {"rubric_score": score}


def _rubrics(task: Any) -> set[str]:
    """The package's keys of a task's rubrics."""
    return {*TrajectoryEvaluator._initialize_rubric_states(task.evaluation_criteria)}


def _judged(answer: str) -> set[str]:
    """The rubrics that an answer, which the evaluator can read, has a verdict on."""
    return {
        item["rubric_idx"]
        for item in evaluator_extracter(answer) or ()
        if item.keys() >= {"rubric_idx", "meetExpectation"}
    }


class _UnansweredError(Exception):
    """The evaluator needs one more answer."""

    def __init__(self, messages: list[Message]) -> None:
        super().__init__()
        self.messages = messages


class _Answers:
    """Goes through the evaluator in the place of a model's name."""

    def __init__(self, answers: list[str]) -> None:
        self._rest = iter(answers)

    def next(self, messages: list[Any]) -> AssistantMessage:
        answer = next(self._rest, None)
        if answer is None:
            raise _UnansweredError(as_chat(messages))
        return AssistantMessage(role="assistant", content=answer)


def _generate(model: Any, messages: list[Any], **kwargs: Any) -> Any:
    if isinstance(model, _Answers):
        return model.next(messages)
    return generate(model=model, messages=messages, **kwargs)


evaluator_traj.generate = _generate
# It prints a line per window.
evaluator_traj.print = lambda *args, **kwargs: None
