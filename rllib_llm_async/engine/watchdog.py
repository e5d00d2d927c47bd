"""Notices an engine that died or hangs, and ends every call that waits for it.

vLLM ends the requests of an engine process that died, and nothing else: a pause or a
weight transfer then waits for ever, and an idle engine says nothing. A process that
hangs is not noticed at all. The sign of life used here is the answer to a question that
the engine process reads between two of its steps. It comes while requests run, while
generation is paused and while there is nothing to do, however long turns and prompts
are, and takes nothing from the tokens.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

#: How soon a death is noticed, and how often a living engine is asked.
TICK_SECONDS = 1.0


class EngineFailedError(RuntimeError):
    """The engine cannot go on; whoever owns it has to start another one."""


class EngineDiedError(EngineFailedError):
    """Its process has ended."""


class EngineStalledError(EngineFailedError):
    """Its process has not finished a step within ``engine_timeout_s``."""


class Watchdog:
    """Watches one engine from the asyncio loop that uses it.

    Args:
        is_dead: Whether the engine process has ended.
        ask: Is answered by the engine process between two steps.
        describe: What the engine is doing, for the message.
        timeout_s: How long an answer may take; None waits for ever.
    """

    def __init__(
        self,
        is_dead: Callable[[], bool],
        ask: Callable[[], Coroutine[Any, Any, Any]],
        describe: Callable[[], str],
        timeout_s: float | None,
    ) -> None:
        self._is_dead = is_dead
        self._ask = ask
        self._describe = describe
        self._timeout_s = timeout_s
        self._tick = min(TICK_SECONDS, (timeout_s or TICK_SECONDS) / 4)
        self._failure: asyncio.Future[EngineFailedError] = (
            asyncio.get_running_loop().create_future()
        )
        self._question: asyncio.Future[Any] | None = None
        self._watching = asyncio.ensure_future(self._watch())

    @property
    def has_failed(self) -> bool:
        return self._failure.done()

    def expect_answers(self) -> None:
        """A hanging engine counts as failed from now on: it has been started."""
        self._question = asyncio.ensure_future(self._ask())

    def stop(self) -> None:
        """Looks no further; from any thread."""
        loop = self._watching.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._watching.cancel)

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Awaits what depends on the engine, for as long as that lives.

        Raises:
            EngineFailedError: If it died or hangs; ``work`` is cancelled.
        """
        call = asyncio.ensure_future(work)
        first: set[asyncio.Future[Any]] = {call, self._failure}
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not call.done():
                call.cancel()
                # Fetched, or asyncio would complain that nobody did.
                call.add_done_callback(lambda c: c.cancelled() or c.exception())
        if call.done() and not call.cancelled() and call.exception() is not None:
            self._look()  # vLLM's own words for a death differ from call to call
            if self.has_failed:
                raise self._error() from call.exception()
        if not call.done():
            raise self._error()
        return call.result()

    async def failed(self) -> NoReturn:
        """Waits until the engine has failed.

        Raises:
            EngineFailedError: How.
        """
        await asyncio.shield(self._failure)
        raise self._error()

    def _error(self) -> EngineFailedError:
        failure = self._failure.result()
        return type(failure)(*failure.args)  # each caller has a traceback of its own

    def _fail(self, failure: type[EngineFailedError], how: str) -> None:
        if not self.has_failed:
            self._failure.set_result(failure(f"{how}: {self._describe()}"))

    def _look(self) -> None:
        if self._is_dead():
            self._fail(EngineDiedError, "the engine process has died")

    def _ask_again(self) -> None:
        if self._question is None:  # not started yet
            return
        if error := self._question.exception():
            self._fail(EngineDiedError, f"the engine process says {error!r}")
        else:
            self._question = asyncio.ensure_future(self._ask())

    async def _watch(self) -> None:
        silent, before = 0.0, time.monotonic()
        while not self.has_failed:
            await asyncio.sleep(self._tick)
            self._look()
            # A longer sleep than that means that this loop stood still, as in a stopped
            # process: the answer may be there, unread.
            now = time.monotonic()
            silent, before = silent + min(now - before, 2 * self._tick), now
            if self._question is None or self._question.done():
                silent = 0.0
                self._ask_again()
            if self._timeout_s is not None and silent > self._timeout_s:
                self._fail(
                    EngineStalledError,
                    f"the engine process has not finished a step for {silent:.0f} s "
                    f"(engine_timeout_s={self._timeout_s})",
                )
