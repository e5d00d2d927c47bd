"""A model served on the cluster: shared, restarted, and its failures named."""

import asyncio
import os
import signal

import pytest
import ray

from rllib_llm_async.envs.agent_env import EpisodeError
from rllib_llm_async.envs.chat_model import Answer
from rllib_llm_async.envs.chat_model_settings import make_chat_model
from rllib_llm_async.envs.user_model import (
    MAX_RETRIES,
    ModelServer,
    ServedModelSettings,
)
from tests.engine.engines import children

ENGINE = {
    "dtype": "float32",
    "max_model_len": 512,
    "max_num_seqs": 16,
    "kv_cache_memory_bytes": 64 << 20,
    "block_size": 32,
    "enforce_eager": True,
}
SETTINGS = {
    "served_model": "small_agent",
    "engine": ENGINE,
    "max_tokens": 24,
    # Of those 24, its answer takes 20.
    "temperature": 0.0,
}
QUESTION = [{"role": "user", "content": "please cancel r12. my id is u39."}]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"served_modell": 1}, "user.served_modell: unknown, did you mean 'served_m"),
        ({"num_replicas": 0}, "user.num_replicas: got 0"),
        ({"engine": {"dtyp": "float32"}}, "user: engine.dtyp.*did you mean 'dtype'"),
        ({"served_model": "/nowhere/m"}, "user: model: '/nowhere/m' is not a readable"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        make_chat_model({**SETTINGS, **change}, "env_config.user")


@pytest.mark.slow
def test_a_server_tells_an_answer_that_was_cut_off():
    async def ask(max_tokens):
        settings = {**SETTINGS, "max_tokens": max_tokens}
        server = ModelServer(ServedModelSettings(**settings), seed=0)
        try:
            return await server.complete(QUESTION, None)
        finally:
            server._watching.cancel()
            server._engine.shutdown()

    answer = asyncio.run(ask(24))
    assert answer.whole() == answer.message
    cut = asyncio.run(ask(3))
    assert cut.num_completion_tokens == 3
    with pytest.raises(ValueError, match="cut off"):
        cut.whole()


@pytest.mark.slow
def test_equal_settings_share_one_served_model(ray_cluster):
    user = make_chat_model(SETTINGS, "env_config.user")
    judge = make_chat_model(dict(SETTINGS), "env_config.judge")

    async def scenario():
        said = await asyncio.gather(
            *(model.complete(QUESTION) for model in (user, judge) for _ in range(4))
        )
        for message in said:
            assert message["role"] == "assistant"
            assert message.get("content") or message["tool_calls"]
        with pytest.raises(EpisodeError, match=r"user: .*engine.max_model_len"):
            await user.complete([{"role": "user", "content": "word " * 600}])

    asyncio.run(scenario())
    assert len(ray.util.list_named_actors()) == 1
    totals = user.metrics()
    assert totals["calls"] == 5 and totals["failures"] == 1
    assert 0 < totals["completion_tokens"] <= 4 * 24
    assert totals["prompt_tokens"] > 4 * 5


@pytest.mark.slow
def test_a_served_model_comes_back_after_a_kill(ray_cluster):
    user = make_chat_model(SETTINGS, "env_config.user")

    async def scenario():
        assert await user.complete(QUESTION)
        (name,) = ray.util.list_named_actors()
        server = ray.get_actor(name)

        # Killed while it has calls to answer: it is restarted and answers them.
        calls = asyncio.gather(*(user.complete(QUESTION) for _ in range(4)))
        await asyncio.sleep(0.01)
        ray.kill(server, no_restart=False)
        assert len(await calls) == 4

        # Its engine dies while nobody asks: the next call meets another one.
        engines = children(ray.get(server.__ray_call__.remote(lambda _: os.getpid())))
        for pid in engines:
            os.kill(pid, signal.SIGKILL)
        assert await user.complete(QUESTION)

        # Gone for good: the next caller starts another one.
        ray.kill(server, no_restart=True)
        assert await user.complete(QUESTION)

    asyncio.run(scenario())
    totals = user.metrics()
    assert totals["calls"] == 7 and totals["failures"] == 0
    assert 0 < totals["completion_tokens"] <= 7 * 24
    assert totals["prompt_tokens"] > 7 * 5


def test_an_answer_that_cannot_be_used_is_asked_for_again(monkeypatch):
    model = make_chat_model(SETTINGS, "env_config.user")
    said = ["", "six", "1 cut", "7", "8"]

    async def ask(messages, tools):
        text, _, cut = said.pop(0).partition(" ")
        message = {"role": "assistant", "content": text}
        return Answer(message, "length" if cut else "stop", 7, 2)

    monkeypatch.setattr(model, "_ask", ask)

    async def number():
        return await model.complete(QUESTION, read=lambda m: int(m["content"]))

    assert asyncio.run(number()) == 7 and said == ["8"]
    for bad, message in (("no", "invalid literal"), ("1 cut", "cut off: max_tokens")):
        said[:] = [bad] * 9
        with pytest.raises(EpisodeError, match=message):
            asyncio.run(number())
        assert len(said) == 9 - 1 - MAX_RETRIES
    assert model.metrics()["calls"] == 3 and model.metrics()["failures"] == 2
