"""The watchdog alone, beside an engine that is made of a flag and a future."""

import asyncio
import time

import pytest

from rllib_llm_async.engine.watchdog import (
    EngineDiedError,
    EngineFailedError,
    EngineStalledError,
    Watchdog,
)


class FakeEngine:
    """Answers after ``answer_seconds``; None means never."""

    def __init__(self, timeout_s, answer_seconds=0.0):
        self.dead = False
        self.answer_seconds = answer_seconds
        self.watchdog = Watchdog(
            lambda: self.dead, self.ask, lambda: "3 requests in flight", timeout_s
        )

    async def ask(self):
        if self.answer_seconds is None:
            await asyncio.Event().wait()
        await asyncio.sleep(self.answer_seconds)
        for _ in range(10):  # turns of the loop until an answer has been read
            await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def short_ticks(monkeypatch):
    monkeypatch.setattr("rllib_llm_async.engine.watchdog.TICK_SECONDS", 0.02)


async def forever():
    await asyncio.Event().wait()


async def failures(watchdog, number=3):
    """What that many calls and one that only waits for it are told."""
    calls = [watchdog.guard(forever()) for _ in range(number)]
    async with asyncio.timeout(10):
        return await asyncio.gather(*calls, watchdog.failed(), return_exceptions=True)


def test_work_may_take_much_longer_than_one_step():
    async def scenario():
        watchdog = FakeEngine(timeout_s=0.1, answer_seconds=0.05).watchdog
        watchdog.expect_answers()
        assert await watchdog.guard(asyncio.sleep(0.5, "done")) == "done"
        assert not watchdog.has_failed

    asyncio.run(scenario())


def test_without_an_answer_every_call_is_told_of_the_stall():
    async def scenario():
        watchdog = FakeEngine(timeout_s=0.1, answer_seconds=None).watchdog
        watchdog.expect_answers()
        told = await failures(watchdog)
        assert [type(error) for error in told] == [EngineStalledError] * 4
        assert len({id(error) for error in told}) == 4
        with pytest.raises(
            EngineStalledError,
            match=r"step for 0 s \(engine_timeout_s=0.1\): 3 requests in flight",
        ):
            await watchdog.guard(forever())

    asyncio.run(scenario())


def test_a_stall_is_not_looked_for_before_the_start_or_without_a_timeout():
    async def scenario():
        starting = FakeEngine(timeout_s=0.1, answer_seconds=None).watchdog
        patient = FakeEngine(timeout_s=None, answer_seconds=None).watchdog
        patient.expect_answers()
        for watchdog in (starting, patient):
            await watchdog.guard(asyncio.sleep(0.4))
            assert not watchdog.has_failed

    asyncio.run(scenario())


def test_time_in_which_the_loop_itself_stands_still_does_not_count():
    async def scenario():
        watchdog = FakeEngine(timeout_s=0.2, answer_seconds=0.1).watchdog
        watchdog.expect_answers()
        await asyncio.sleep(0.05)  # half the time of an answer
        time.sleep(0.6)  # as a process that was stopped
        await asyncio.sleep(0.2)
        assert not watchdog.has_failed

    asyncio.run(scenario())


@pytest.mark.parametrize("started", [False, True])
def test_a_death_is_seen_with_and_without_calls(started):
    async def scenario():
        engine = FakeEngine(timeout_s=100.0)
        if started:
            engine.watchdog.expect_answers()
        told = asyncio.ensure_future(failures(engine.watchdog))
        await asyncio.sleep(0.05)
        assert not told.done()
        engine.dead = True
        assert [type(error) for error in await told] == [EngineDiedError] * 4

    asyncio.run(scenario())


def test_a_call_that_fails_of_the_death_says_so_in_the_same_words():
    async def dies(engine):
        engine.dead = True
        raise ZeroDivisionError

    async def scenario():
        engine = FakeEngine(timeout_s=100.0)
        with pytest.raises(EngineDiedError, match="3 requests") as error:
            await engine.watchdog.guard(dies(engine))
        assert isinstance(error.value.__cause__, ZeroDivisionError)

    asyncio.run(scenario())


def test_a_failed_answer_is_a_death_and_a_failed_call_is_not():
    async def fails():
        raise ValueError("of the call")

    async def scenario():
        engine = FakeEngine(timeout_s=100.0)
        with pytest.raises(ValueError, match="of the call"):
            await engine.watchdog.guard(fails())
        assert not engine.watchdog.has_failed
        engine.watchdog._ask = fails
        engine.watchdog.expect_answers()
        with pytest.raises(EngineFailedError, match="of the call"):
            await engine.watchdog.guard(forever())

    asyncio.run(scenario())


def test_a_cancelled_call_cancels_its_work():
    async def scenario():
        watchdog = FakeEngine(timeout_s=100.0).watchdog
        ended = asyncio.Event()

        async def work():
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        call = asyncio.ensure_future(watchdog.guard(work()))
        await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(10):
            await ended.wait()

    asyncio.run(scenario())
