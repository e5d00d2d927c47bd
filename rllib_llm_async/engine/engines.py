"""Several engines of one env runner, with the face of one `VLLMEngine`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NoReturn
from unittest.mock import patch
from weakref import WeakKeyDictionary

from rllib_llm_async.engine.arrival_check import ExpectedArrival
from rllib_llm_async.engine.engine_output import EngineOutput
from rllib_llm_async.engine.vllm_engine import VLLMEngine

_DEVICES = "CUDA_VISIBLE_DEVICES"


class Engines:
    """An episode, which is an asyncio task, is played on one of them, where its context
    is in the cache: the one with the fewest when it begins. Each changes its weights by
    itself, and has a version of its own meanwhile. If one fails, all have failed.

    Args:
        engines: One or more, not started.
    """

    def __init__(self, engines: Sequence[VLLMEngine]) -> None:
        #: The same, one by one.
        self.each = tuple(engines)
        #: Those that play, or did so and are still known to somebody.
        self._playing: WeakKeyDictionary[asyncio.Task[Any], VLLMEngine] = (
            WeakKeyDictionary()
        )

    async def start(self) -> None:
        """Starts them one after the other, each with its share of the GPUs.

        Raises:
            EngineFailedError: If one dies before it is ready.
        """
        try:
            for number, engine in enumerate(self.each):
                with patch.dict(os.environ, self._devices(number)):
                    await engine.start()
        except BaseException:
            self.shutdown()
            raise

    def _devices(self, number: int) -> dict[str, str]:
        """Of all that this process may use, those of one engine."""
        visible = [d for d in os.environ.get(_DEVICES, "").split(",") if d]
        share = len(visible) // len(self.each)
        if not share:  # none, or one for all
            return {}
        return {_DEVICES: ",".join(visible[number * share : (number + 1) * share])}

    @property
    def max_model_len(self) -> int:
        """See `VLLMEngine`."""
        return self.each[0].max_model_len

    @property
    def version(self) -> int:
        """Of the engine that is furthest behind."""
        return min(engine.version for engine in self.each)

    async def generate(
        self,
        context: Sequence[int],
        on_piece: Callable[[EngineOutput], None] = lambda piece: None,
        seed: int | None = None,
        num_routed: int = 0,
    ) -> EngineOutput:
        """See `VLLMEngine`; of all turns of an asyncio task on the same engine."""
        return await self._engine_of_this_task().generate(
            context, on_piece, seed, num_routed
        )

    def _engine_of_this_task(self) -> VLLMEngine:
        task = asyncio.current_task()
        assert task is not None
        if task not in self._playing:
            busy = Counter(e for t, e in self._playing.items() if not t.done())
            self._playing[task] = min(self.each, key=busy.__getitem__)
        return self._playing[task]

    async def install(
        self, version: int, arrived: Any, expected: ExpectedArrival | None
    ) -> None:
        """See `VLLMEngine`; raises what one of them raises, once all have ended."""
        ended = await asyncio.gather(
            *(engine.install(version, arrived, expected) for engine in self.each),
            return_exceptions=True,
        )
        for error in ended:
            if isinstance(error, BaseException):
                raise error

    async def interrupt(self) -> None:
        """See `VLLMEngine`."""
        await asyncio.gather(*(engine.interrupt() for engine in self.each))

    async def failed(self) -> NoReturn:
        """Waits until one of them dies or hangs.

        Raises:
            EngineFailedError: Then.
        """
        watching = [asyncio.ensure_future(engine.failed()) for engine in self.each]
        try:
            done, _ = await asyncio.wait(watching, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in watching:
                one.cancel()
        raise done.pop().exception() or AssertionError

    def shutdown(self) -> None:
        """Ends them all, whatever state they are in; from any thread."""
        with contextlib.ExitStack() as stack:
            for engine in self.each:
                stack.callback(engine.shutdown)
