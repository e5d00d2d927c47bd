"""When a failed call of a language model goes out again, and when all of them wait.

One bad answer is the business of one call: it is asked for again, after a while. An
endpoint that fails call after call is down: calls then wait, however long it takes,
while a single one is tried now and again, and what they wait for is said.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
logger = logging.getLogger(__name__)

#: Seconds before a call goes out again; doubled each time, up to the longest.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 8.0
#: The longest that an endpoint may ask for.
LONGEST_REQUESTED_PAUSE = 60.0
#: The same before an endpoint that is down is tried again.
FIRST_PROBE_PAUSE = 1.0
LONGEST_PROBE_PAUSE = 60.0
#: So many calls in a row, whoever's they are, that fail of the endpoint: it is down.
DOWN_AFTER = 10


class PassingError(Exception):
    """A call failed in a way that another one need not.

    Args:
        text: What happened, in one line.
        of_endpoint: Whether it may be down, rather than this one answer bad.
        retry_after: Seconds after which the endpoint wants to be asked again.
    """

    def __init__(
        self, text: str, *, of_endpoint: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(text)
        self.of_endpoint = of_endpoint
        self.retry_after = retry_after


class Retries:
    """Of all calls of one endpoint; use on the asyncio loop it was made on.

    Args:
        name: Of the endpoint, for messages.
        max_retries: How often one call goes out again while the endpoint is up.
        probe: A call that shows whether it is up again, by not raising `PassingError`
            ``of_endpoint``.
    """

    def __init__(
        self, name: str, max_retries: int, probe: Callable[[], Awaitable[object]]
    ) -> None:
        self._name = name
        self._max_retries = max_retries
        self._probe = probe
        self._failures_in_a_row = 0
        self._last_failure = ""
        self._is_up = asyncio.Event()
        self._is_up.set()
        self._down_since = 0.0
        self._earlier_down_seconds = 0.0
        self.num_retries = 0

    @property
    def down_seconds(self) -> float:
        """Sum since the start; it only grows while the endpoint is down."""
        return self._earlier_down_seconds + self._down_for()

    def waiting_for(self) -> str | None:
        """What all calls wait for, in one line; None if they do not."""
        if self._is_up.is_set():
            return None
        return f"{self._name} down for {self._down_for():.0f} s: {self._last_failure}"

    async def call(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The answer of the first attempt that succeeds.

        Raises:
            PassingError: Of the last one, while the endpoint answers others.
        """
        num_failures = 0
        while True:
            await self._is_up.wait()
            try:
                answer = await attempt()
            except PassingError as error:
                self._note(error)
                if self._is_up.is_set():
                    num_failures += 1
                    if num_failures > self._max_retries:
                        raise
                    await asyncio.sleep(_pause(num_failures, error.retry_after))
                self.num_retries += 1
            else:
                self._failures_in_a_row = 0
                return answer

    def _down_for(self) -> float:
        return 0.0 if self._is_up.is_set() else time.monotonic() - self._down_since

    def _note(self, error: PassingError) -> None:
        if not error.of_endpoint:
            self._failures_in_a_row = 0
            return
        self._failures_in_a_row += 1
        self._last_failure = str(error)
        if self._failures_in_a_row >= DOWN_AFTER and self._is_up.is_set():
            self._is_up.clear()
            self._down_since = time.monotonic()
            self._probing = asyncio.ensure_future(self._probe_until_up())

    async def _probe_until_up(self) -> None:
        pause, next_warning = FIRST_PROBE_PAUSE, 0.0
        while True:
            if self._down_for() >= next_warning:  # once, then at doubling times
                logger.warning("%s; calls wait for it", self.waiting_for())
                next_warning = 2 * max(self._down_for(), FIRST_PROBE_PAUSE)
            await asyncio.sleep(pause)
            try:
                await self._probe()
            except PassingError as error:
                if error.of_endpoint:
                    self._last_failure = str(error)
                    pause = min(2 * pause, LONGEST_PROBE_PAUSE)
                    continue
            except Exception:
                pass  # a refusal is an answer, which each call gets for itself
            break
        logger.warning("%s answers again after %.0f s", self._name, self._down_for())
        self._earlier_down_seconds = self.down_seconds
        self._failures_in_a_row = 0
        self._is_up.set()


def _pause(num_failures: int, retry_after: float | None) -> float:
    """Not the same for all that failed together, or they would meet again."""
    longest = min(FIRST_PAUSE * 2 ** (num_failures - 1), LONGEST_PAUSE)
    asked_for = min(retry_after or 0.0, LONGEST_REQUESTED_PAUSE)
    return asked_for + longest * random.uniform(0.5, 1.0)
