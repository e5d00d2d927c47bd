"""What a learner and the engines say to each other while weights go from GPU to GPU.

vLLM's trainer half calls an engine ("load this"), which here lives in an env runner: an
actor that RLlib calls one method at a time, and whose engine knows by itself when it is
free. So engines ask, and do what the answers to their question want done, over an actor
that stands between the two. It ends with the learner that has started it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

#: How often it looks whether the runner of an engine that does not answer is alive.
PROBE_SECONDS = 5.0


class EngineGoneError(Exception):
    """The engine that weights were for does not take them any more."""


@dataclass(frozen=True)
class Request:
    """An engine's wish to have a version.

    ``engine`` is its runner's number and ``life`` another one for each start of it;
    ``number`` counts its requests. ``serial`` is that of the publication, ``devices``
    are those of its workers (see `device_name`), ``runner`` is the actor it lives in.
    """

    engine: int
    life: str
    number: int
    serial: int
    devices: tuple[str, ...]
    runner: ray.actor.ActorHandle | None = None

    @property
    def key(self) -> tuple[int, str, int]:
        return self.engine, self.life, self.number


class Kind(Enum):
    """What an answer is, and what comes with it."""

    CONNECT = (
        "connect"  # to be done: the argument of vLLM's init_weight_transfer_engine
    )
    LOAD = "load"  # to be done: the argument of vLLM's update_weights
    SENT = "sent"  # the last one; nothing
    SUPERSEDED = "superseded"  # the last one; nothing
    FAILED = "failed"  # the last one; why


@dataclass(frozen=True)
class Answer:
    kind: Kind
    payload: Any = None


class _Talk:
    """What is being said about one request."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.answers: asyncio.Queue[Answer] = asyncio.Queue()
        self.is_over = False
        self.done: asyncio.Future[None] | None = None

    def end(self, answer: Answer) -> None:
        if not self.is_over:
            self.is_over = True
            self.answers.put_nowait(answer)
        if self.done is not None and not self.done.done():
            self.done.cancel()


class Exchange:
    """The actor, see `start_exchange`."""

    def __init__(self) -> None:
        self._requests: asyncio.Queue[Request] = asyncio.Queue()
        self._talks: dict[int, _Talk] = {}

    # --- Called by engines --------------------------------------------------------

    async def ask(self, request: Request) -> Answer:
        """Takes a request; waits for the first answer."""
        await self.leave(request.engine)
        talk = self._talks[request.engine] = _Talk(request)
        self._requests.put_nowait(request)
        return await talk.answers.get()

    async def done(self, engine: int) -> Answer:
        """What the last answer wanted is done; waits for the next one."""
        talk = self._talks[engine]
        if talk.done is not None and not talk.done.done():
            talk.done.set_result(None)
        return await talk.answers.get()

    async def leave(self, engine: int) -> None:
        """The engine does not want any more what it asked for, if it has not got it."""
        talk = self._talks.get(engine)
        if talk is not None:
            talk.end(Answer(Kind.SUPERSEDED))

    # --- Called by the learner ----------------------------------------------------

    async def next_request(self) -> Request:
        """Waits for one that still stands."""
        while True:
            request = await self._requests.get()
            if self._talk(request) is not None:
                return request

    async def have(self, request: Request, answer: Answer) -> None:
        """Waits until the engine has done what an answer wants.

        Raises:
            EngineGoneError: If it never will.
        """
        talk = self._talk(request)
        if talk is None:
            raise EngineGoneError(f"engine {request.engine} has given up")
        done = talk.done = asyncio.get_running_loop().create_future()
        talk.answers.put_nowait(answer)
        while not done.done():
            await asyncio.wait({done}, timeout=PROBE_SECONDS)
            if not done.done() and not await _lives(request.runner):
                raise EngineGoneError(f"the runner of engine {request.engine} has died")
        if done.cancelled():
            raise EngineGoneError(f"engine {request.engine} has given up")

    async def end(self, request: Request, answer: Answer) -> None:
        """Gives the last answer."""
        talk = self._talk(request)
        if talk is not None:
            talk.end(answer)

    def _talk(self, request: Request) -> _Talk | None:
        talk = self._talks.get(request.engine)
        if talk is None or talk.is_over or talk.request.key != request.key:
            return None
        return talk


async def _lives(runner: ray.actor.ActorHandle | None) -> bool:
    if runner is None:
        return True
    ready = asyncio.wrap_future(runner.__ray_ready__.remote().future())
    done, _ = await asyncio.wait({ready}, timeout=PROBE_SECONDS)
    return not done or not isinstance(ready.exception(), RayActorError)


def start_exchange() -> ray.actor.ActorHandle:
    """Starts one on this node; it takes no CPU."""
    return (
        ray.remote(Exchange)
        .options(
            num_cpus=0,
            # Engines wait in it, all of a run at once.
            max_concurrency=10_000,
            scheduling_strategy=NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            ),
        )
        .remote()
    )
