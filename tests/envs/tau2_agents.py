"""Agents and users without a model, to play tau2-bench with, and its own verdict."""

from __future__ import annotations

import ast
import json
from types import SimpleNamespace

import pytest

from rllib_llm_async.envs.agent_env import Message
from rllib_llm_async.envs.chat_model import as_it_is
from rllib_llm_async.envs.registry import make_suite

ENDPOINT = {"model": "m", "base_url": "http://127.0.0.1:9/v1", "api_key_env": None}
BYE = {"role": "assistant", "content": "BYE"}
STOP = {"role": "assistant", "content": "###STOP###"}


def call(name, arguments, number=0) -> Message:
    """An assistant's tool call."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {"name": name, "arguments": text},
            }
        ],
    }


class ScriptedUser:
    """A `ChatModel`: does what ``USER_DO {json}`` asks for, and stops on ``BYE``."""

    def __init__(self):
        self.conversations = []

    async def complete(self, messages, tools=None, read=as_it_is):
        self.conversations.append(messages)
        return read(self._answer(messages))

    def _answer(self, messages):
        last = messages[-1]["content"] or ""
        if messages[-1]["role"] == "user" and last.startswith("USER_DO "):
            asked = json.loads(last.removeprefix("USER_DO "))
            return call(asked["name"], asked["arguments"])
        return {**STOP} if "BYE" in last else {"role": "assistant", "content": "go on"}

    def metrics(self):
        return {"calls": float(len(self.conversations))}


class KindJudge:
    """A `ChatModel` that finds every expectation met."""

    def __init__(self, met=True):
        self.met = met
        self.num_calls = 0

    async def complete(self, messages, tools=None, read=as_it_is):
        self.num_calls += 1
        wanted = messages[-1]["content"].partition("expectedOutcomes:")[2].strip()
        results = [
            {"expectedOutcome": text, "reasoning": "", "metExpectation": self.met}
            for text in ast.literal_eval(wanted)
        ]
        content = json.dumps({"results": results})
        return read({"role": "assistant", "content": content})

    def metrics(self):
        return {"calls": float(self.num_calls)}


def make(domain, **settings):
    """The suite, with a scripted user and judge."""
    env_config = {
        "domains": [domain],
        "judge": ENDPOINT,
        "train_split": "base",
        **({} if settings.get("solo") else {"user": ENDPOINT}),
        **settings,
    }
    try:
        suite = make_suite("tau2", env_config)
    except ValueError as error:
        if "data of tau2's domain" in str(error):
            pytest.skip(str(error))
        raise
    suite.judge = KindJudge()
    if suite.user is not None:
        suite.user = ScriptedUser()
    return suite


def reference_turns(task, *, solo=False) -> list[Message]:
    """What an agent says that takes all reference actions and tells all it should."""
    criteria = task.evaluation_criteria
    turns = []
    for number, action in enumerate(criteria.actions or []):
        if action.requestor == "assistant" or solo:
            turns.append(call(action.name, action.arguments, number))
        else:
            asked = {"name": action.name, "arguments": action.arguments}
            turns.append(
                {"role": "assistant", "content": f"USER_DO {json.dumps(asked)}"}
            )
    if solo:
        return [*turns, call("done", {})]
    told = " ".join(criteria.communicate_info or [])
    return [*turns, {"role": "assistant", "content": f"{told} BYE"}]


async def play(suite, task, turns):
    """Plays an episode.

    Returns:
        The last step, and the package's own reward for the same conversation.
    """
    env = suite.make()
    await env.reset(task)
    orchestrator = env.orchestrator
    for turn in turns:
        step = await env.step(turn)
        if step.terminated or step.truncated:
            break
    else:
        raise AssertionError("the episode did not end")
    await env.aclose()
    return step, official_reward(suite, task, orchestrator)


def official_reward(suite, task, orchestrator) -> float:
    """The package's evaluator: it replays the conversation in new environments."""
    from tau2.evaluator.evaluator import EvaluationType, evaluate_simulation
    from tau2.runner.build import _build_env_kwargs
    from tau2.utils.utils import get_now

    domain, chosen = suite.find(task)
    variant = getattr(domain, "variant", None)
    run = SimpleNamespace(domain=domain.name, retrieval_config=variant and variant.name)
    orchestrator._run_start_time, orchestrator._run_start_perf = get_now(), 0.0
    try:
        return evaluate_simulation(
            orchestrator._finalize(),
            chosen,
            EvaluationType.ALL,
            domain.solo,
            domain.name,
            env_kwargs=_build_env_kwargs(run, chosen),
        ).reward
    except ValueError:
        # It raises where an assertion is about an entry that the agent never made.
        return 0.0
