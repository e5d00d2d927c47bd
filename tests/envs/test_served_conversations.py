"""A served model: its time limit, and which replica a conversation stays with."""

import asyncio

import pytest

from rllib_llm_async.envs.agent_env import EpisodeError
from rllib_llm_async.envs.chat_model import Answer
from rllib_llm_async.envs.chat_model_settings import make_chat_model
from tests.envs.test_user_model import QUESTION, SETTINGS


def test_an_answer_that_does_not_come_in_time_is_the_environment_s_failure(monkeypatch):
    model = make_chat_model({**SETTINGS, "timeout_seconds": 0.05}, "env_config.user")

    async def ask(messages, tools):
        await asyncio.sleep(30.0)

    monkeypatch.setattr(model, "_ask", ask)

    async def scenario():
        async with asyncio.timeout(5.0):
            await model.complete(QUESTION)

    with pytest.raises(EpisodeError, match=r"no answer within timeout_seconds=0\.05"):
        asyncio.run(scenario())
    assert model.metrics()["failures"] == 1


def test_conversations_are_shared_out_over_replicas_and_each_stays_with_its_own(
    monkeypatch,
):
    model = make_chat_model({**SETTINGS, "num_replicas": 3}, "env_config.user")
    asked = []

    class Server:
        def __init__(self, replica):
            async def remote(messages, tools):
                asked.append(replica)
                return Answer({"role": "assistant", "content": "yes"}, "stop", 7, 2)

            self.complete = type("Method", (), {"remote": staticmethod(remote)})

    monkeypatch.setattr(model, "_server", Server)

    async def scenario():
        for number in range(12):
            talk = [
                {"role": "system", "content": "you are a user"},
                {"role": "user", "content": f"hello {number}"},
            ]
            await model.complete(talk)
            await model.complete([*talk, {"role": "assistant", "content": "hi"}])

    asyncio.run(scenario())
    assert asked[::2] == asked[1::2] and set(asked) == {0, 1, 2}
    totals = model.metrics()
    assert (totals["prompt_tokens"], totals["completion_tokens"]) == (24 * 7, 24 * 2)
