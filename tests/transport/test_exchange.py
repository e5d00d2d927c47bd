"""What engines ask and a learner answers, also where one of them gives up."""

import asyncio

import pytest

from rllib_llm_async.transport.exchange import (
    Answer,
    EngineGoneError,
    Exchange,
    Kind,
    Request,
)

LOAD = Answer(Kind.LOAD, {"names": ["a"]})
SENT = Answer(Kind.SENT)


def request(engine=0, life="a", number=0, serial=1):
    return Request(engine, life, number, serial, devices=("cpu",))


def run(main):
    return asyncio.run(asyncio.wait_for(main, 60))


def test_a_request_is_connected_loaded_and_sent():
    async def main():
        exchange = Exchange()
        asking = asyncio.create_task(exchange.ask(request()))
        asked = await exchange.next_request()
        connecting = asyncio.create_task(exchange.have(asked, Answer(Kind.CONNECT)))
        assert (await asking).kind is Kind.CONNECT
        await asyncio.sleep(0.01)
        assert not connecting.done()  # the engine is still at it
        connected = asyncio.create_task(exchange.done(0))
        await connecting
        loading = asyncio.create_task(exchange.have(asked, LOAD))
        assert await connected == LOAD
        loaded = asyncio.create_task(exchange.done(0))
        await loading
        await exchange.end(asked, SENT)
        assert await loaded == SENT

    run(main())


def test_requests_are_served_in_their_order():
    async def main():
        exchange = Exchange()
        asking = [
            asyncio.create_task(exchange.ask(request(engine=e))) for e in (2, 0, 1)
        ]
        for engine in (2, 0, 1):
            asked = await exchange.next_request()
            assert asked.engine == engine
            await exchange.end(asked, Answer(Kind.SUPERSEDED))
        assert {a.kind for a in await asyncio.gather(*asking)} == {Kind.SUPERSEDED}

    run(main())


@pytest.mark.parametrize("successor", [False, True])
def test_a_learner_does_not_wait_for_an_engine_that_has_given_up(successor):
    async def main():
        exchange = Exchange()
        first = asyncio.create_task(exchange.ask(request()))
        asked = await exchange.next_request()
        loading = asyncio.create_task(exchange.have(asked, LOAD))
        await first
        if successor:  # of the same runner, whose engine was started again
            asyncio.create_task(exchange.ask(request(life="b")))  # noqa: RUF006
        else:
            await exchange.leave(0)
        with pytest.raises(EngineGoneError):
            await loading
        with pytest.raises(EngineGoneError):
            await exchange.have(asked, LOAD)
        await exchange.end(asked, SENT)  # nobody hears it
        if successor:
            assert (await exchange.next_request()).life == "b"

    run(main())


def test_what_was_given_up_in_line_is_never_served():
    async def main():
        exchange = Exchange()
        gone = asyncio.create_task(exchange.ask(request(engine=0)))
        asyncio.create_task(exchange.ask(request(engine=1)))  # noqa: RUF006
        await asyncio.sleep(0)
        await exchange.leave(0)
        assert (await gone).kind is Kind.SUPERSEDED
        assert (await exchange.next_request()).engine == 1

    run(main())


def test_an_engine_hears_that_the_learner_failed_while_it_loaded():
    async def main():
        exchange = Exchange()
        asking = asyncio.create_task(exchange.ask(request()))
        asked = await exchange.next_request()
        loading = asyncio.create_task(exchange.have(asked, LOAD))
        await asking
        await exchange.end(asked, Answer(Kind.FAILED, "no memory"))
        with pytest.raises(EngineGoneError):
            await loading
        assert await exchange.done(0) == Answer(Kind.FAILED, "no memory")

    run(main())
