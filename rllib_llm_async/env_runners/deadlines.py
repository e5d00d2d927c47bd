"""What an environment may not do: raise whatever it likes, or never answer."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rllib_llm_async.envs.agent_env import EpisodeError

T = TypeVar("T")

#: Between two looks at whether something is still waited for.
SHORTEST_EXTENSION_SECONDS = 1.0


class TurnTimeoutError(EpisodeError):
    """The environment did not answer within ``turn_timeout_s``."""

    reason = "turn_timeout"


class EpisodeTimeoutError(EpisodeError):
    """The episode did not end within ``episode_timeout_s``."""

    reason = "episode_timeout"


def nothing_waited() -> float:
    """For environments that need nobody else."""
    return 0.0


async def env_call(
    ask: Callable[[], Awaitable[T]],
    seconds: float | None,
    seconds_waited: Callable[[], float] = nothing_waited,
) -> T:
    """Asks an environment and awaits its answer, for so long; None waits for ever.

    Args:
        ask: Calls it.
        seconds: See above.
        seconds_waited: See `WaitsForOthers`; this time does not count.

    Raises:
        TurnTimeoutError: If it takes longer. The call is cancelled and left alone: what
            hangs may not heed that, either.
        EpisodeError: Whatever the environment raised.
    """
    call = asyncio.ensure_future(_guarded(ask))
    try:
        in_time = await _ends_within(call, seconds, seconds_waited)
    finally:
        if not call.done():
            call.cancel()
            # Fetched, or asyncio would complain that nobody did.
            call.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    if not in_time:
        raise TurnTimeoutError(
            f"environment did not answer within turn_timeout_s={seconds}"
        )
    return call.result()


async def _guarded(ask: Callable[[], Awaitable[T]]) -> T:
    """Turns whatever it raises into an error of this episode alone.

    An exit would end the event loop, and the cancellation of a call that nobody
    cancels would pass for one of the episode: the group would wait for it for ever.
    """
    try:
        answer = ask()
        if not inspect.isawaitable(answer):
            raise EpisodeError(
                f"environment answered {answer!r:.200} at once; reset(), step() and "
                "aclose() have to be `async def`"
            )
        return await answer
    except EpisodeError:
        raise
    except asyncio.CancelledError as error:
        if asyncio.current_task().cancelling():  # type: ignore[union-attr]
            raise
        raise EpisodeError("environment cancelled its own call") from error
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        raise EpisodeError(f"environment raised {error!r}") from error


async def within(
    awaitable: Awaitable[T],
    seconds: float | None,
    seconds_waited: Callable[[], float] = nothing_waited,
) -> T:
    """Awaits an episode, for so long; None waits for ever.

    Args:
        awaitable: Plays it.
        seconds: See above.
        seconds_waited: As in `env_call`.

    Raises:
        EpisodeTimeoutError: If it takes longer; it is cancelled, and has ended by then.
    """
    call = asyncio.ensure_future(awaitable)
    try:
        in_time = await _ends_within(call, seconds, seconds_waited)
    finally:
        if not call.done():
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
    if not in_time:
        raise EpisodeTimeoutError(
            f"episode did not end within episode_timeout_s={seconds}"
        )
    return call.result()


async def _ends_within(
    call: asyncio.Future[T],
    seconds: float | None,
    seconds_waited: Callable[[], float],
) -> bool:
    """Whether it has; what was waited for others meanwhile is added at the end."""
    waited = seconds_waited()
    while True:
        await asyncio.wait({call}, timeout=seconds)
        more = seconds_waited() - waited
        if call.done() or more <= 0 or seconds is None:
            return call.done()
        waited += more
        seconds = max(more, SHORTEST_EXTENSION_SECONDS)
