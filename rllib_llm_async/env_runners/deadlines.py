"""What an environment may not do: raise whatever it likes, or never answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from rllib_llm_async.envs.agent_env import EpisodeError

T = TypeVar("T")


class TurnTimeoutError(EpisodeError):
    """The environment did not answer within ``turn_timeout_s``."""

    reason = "turn_timeout"


class EpisodeTimeoutError(EpisodeError):
    """The episode did not end within ``episode_timeout_s``."""

    reason = "episode_timeout"


async def env_call(awaitable: Awaitable[T], seconds: float | None) -> T:
    """Awaits an environment, for so long; None waits for ever.

    Raises:
        TurnTimeoutError: If it takes longer. The call is cancelled and left alone: what
            hangs may not heed that, either.
        EpisodeError: Whatever the environment raised.
    """
    call = asyncio.ensure_future(awaitable)
    try:
        done, _ = await asyncio.wait({call}, timeout=seconds)
    except asyncio.CancelledError:
        _abandon(call)
        raise
    if not done:
        _abandon(call)
        raise TurnTimeoutError(
            f"environment did not answer within turn_timeout_s={seconds}"
        )
    try:
        return call.result()
    except EpisodeError:
        raise
    except Exception as error:
        raise EpisodeError(f"environment raised {error!r}") from error


def _abandon(call: asyncio.Future) -> None:
    call.cancel()
    # Fetched, or asyncio would complain that nobody did.
    call.add_done_callback(lambda ended: ended.cancelled() or ended.exception())


async def within(awaitable: Awaitable[T], seconds: float | None) -> T:
    """Awaits an episode, for so long; None waits for ever.

    Raises:
        EpisodeTimeoutError: If it takes longer; it is cancelled, and has ended by then.
    """
    try:
        async with asyncio.timeout(seconds):
            return await awaitable
    except TimeoutError:
        raise EpisodeTimeoutError(
            f"episode did not end within episode_timeout_s={seconds}"
        ) from None
