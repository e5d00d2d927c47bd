"""Deadlines of environments, and the time in which they do not run."""

import asyncio
import time

import pytest

from rllib_llm_async.env_runners import deadlines
from rllib_llm_async.env_runners.deadlines import (
    EpisodeTimeoutError,
    TurnTimeoutError,
    env_call,
    within,
)
from rllib_llm_async.envs.agent_env import EpisodeError


async def one_call(awaitable, *args):
    return await env_call(lambda: awaitable, *args)


#: Which deadline, and how it ends what takes longer.
KINDS = [(one_call, TurnTimeoutError), (within, EpisodeTimeoutError)]


@pytest.fixture(autouse=True)
def short_extensions(monkeypatch):
    monkeypatch.setattr(deadlines, "SHORTEST_EXTENSION_SECONDS", 0.02)


class Outage:
    """Of an endpoint, from the start on, for so long."""

    def __init__(self, seconds):
        self._since = time.monotonic()
        self._seconds = seconds

    def seconds_waited(self):
        return min(time.monotonic() - self._since, self._seconds)


@pytest.mark.parametrize("bounded, error", KINDS)
def test_no_deadline_runs_while_something_is_waited_for(bounded, error):
    async def scenario():
        outage = Outage(0.6)
        # An outage of 0.6 and 0.1 of its own: within 0.3.
        answer = asyncio.sleep(0.7, "answer")
        assert await bounded(answer, 0.3, outage.seconds_waited) == "answer"
        with pytest.raises(error, match=r"timeout_s=0\.3"):
            await bounded(asyncio.sleep(0.7), 0.3)

    asyncio.run(scenario())


@pytest.mark.parametrize("bounded, error", KINDS)
def test_the_deadline_runs_on_after_an_outage(bounded, error):
    async def scenario():
        hung = asyncio.ensure_future(asyncio.Event().wait())
        with pytest.raises(error):
            async with asyncio.timeout(30):
                await bounded(hung, 0.1, Outage(0.3).seconds_waited)
        await asyncio.sleep(0)
        assert hung.cancelled()

    asyncio.run(scenario())


@pytest.mark.parametrize("bounded, error", KINDS)
def test_an_outage_before_the_call_gives_no_time(bounded, error):
    async def scenario():
        with pytest.raises(error):
            async with asyncio.timeout(30):
                await bounded(asyncio.Event().wait(), 0.1, lambda: 1000.0)

    asyncio.run(scenario())


@pytest.mark.parametrize("bounded, _", KINDS)
def test_who_waits_may_be_cancelled(bounded, _):
    async def scenario():
        hung = asyncio.ensure_future(asyncio.Event().wait())
        waiting = asyncio.ensure_future(bounded(hung, 30.0))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.sleep(0)
        assert hung.cancelled()

    asyncio.run(scenario())


class NotAsync:
    def answer(self):
        return "answer"


def raises(error):
    async def ask():
        raise error

    return ask


async def awaits_what_is_cancelled():
    other = asyncio.ensure_future(asyncio.sleep(60))
    other.cancel()
    await other


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (raises(OSError("no socket")), "no socket"),
        (raises(SystemExit(3)), "SystemExit"),
        (raises(KeyboardInterrupt()), "KeyboardInterrupt"),
        (raises(asyncio.CancelledError()), "cancelled its own call"),
        (awaits_what_is_cancelled, "cancelled its own call"),
        (NotAsync().answer, "at once; .*have to be `async def`"),
        (lambda: None.reset(), "'NoneType' object has no attribute 'reset'"),
    ],
)
def test_whatever_an_environment_raises_is_an_error_of_its_episode(ask, message):
    """An exit would end the loop; a cancellation would be taken for the caller's."""

    async def scenario():
        with pytest.raises(EpisodeError, match=message):
            await env_call(ask, 30.0)
        return "the loop goes on"

    assert asyncio.run(scenario()) == "the loop goes on"
