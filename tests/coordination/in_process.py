"""Coordinator and episode services on one asyncio loop, without Ray or vLLM."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace

import numpy as np
from ray.rllib.core.columns import Columns

from rllib_llm_async.batch import columns
from rllib_llm_async.coordination.coordinator import Coordinator
from rllib_llm_async.coordination.dispatcher import Dispatcher
from rllib_llm_async.coordination.messages import PublishedWeights
from rllib_llm_async.engine.vllm_engine import EngineOutput
from rllib_llm_async.env_runners.episode_service import EpisodeService
from rllib_llm_async.env_runners.episodes import EpisodePlayer
from rllib_llm_async.envs.agent_env import Start, Step, TaskRef

TASKS = [TaskRef("shop", f"shoes/{number}", "train") for number in range(5)]


class Handle:
    """An actor handle on an object of this process; a dead one never answers."""

    def __init__(self, target, num_returns=1):
        self._target = target
        self.is_dead = False

    def __getattr__(self, name):
        method = getattr(self._target, name)

        async def call(*args):
            if self.is_dead:
                await asyncio.Event().wait()
            result = method(*args)
            return await result if asyncio.iscoroutine(result) else result

        def remote(*args):
            # Who stops waiting for an actor's answer does not stop the actor.
            return asyncio.shield(asyncio.ensure_future(call(*args)))

        return SimpleNamespace(remote=remote, options=lambda **_: several(remote))


def several(remote):
    """A method with several return values, as `num_returns` asks for."""

    def call(numbers):
        answer = remote(numbers)

        async def part(index):
            return (await answer)[index]

        return [asyncio.ensure_future(part(i)) for i in range(1 + len(numbers))]

    return SimpleNamespace(remote=call)


class Engine:
    """Says two tokens a turn, of the version that it holds."""

    max_model_len = 1000

    def __init__(self):
        self.version = -1
        self.installed = []
        self.num_interruptions = 0
        self._goes_on = asyncio.Event()
        self._goes_on.set()

    async def generate(self, context, on_piece, seed=None, num_routed=0):
        await self._goes_on.wait()
        await asyncio.sleep(0)
        output = EngineOutput(
            [50, 51],
            np.array([-0.5, -0.25], np.float32),
            np.full(2, self.version),
            "stop",
        )
        on_piece(output)
        return output

    async def install(self, version, path, expected):
        assert path == str(version)
        self.version = version
        self.installed.append(version)
        self._goes_on.set()

    async def interrupt(self):
        self.num_interruptions += 1
        self._goes_on.clear()


class Weights:
    """Stands in for a `NodeWeights`: every version is there at once."""

    @contextlib.asynccontextmanager
    async def at_hand(self, version):
        yield str(version)


class Env:
    """Two turns; ``wait`` is awaited before each answer."""

    def __init__(self, wait):
        self._wait = wait
        self._num_turns = 0

    async def reset(self, task):
        self._task = task
        return Start([{"role": "user", "content": "hi"}], [])

    async def step(self, message):
        await self._wait(self._task)
        self._num_turns += 1
        if self._num_turns < 2:
            return Step([{"role": "user", "content": "more"}])
        return Step([], reward=1.0, terminated=True, info={"success": True})

    async def aclose(self):
        pass


async def at_once(task):
    await asyncio.sleep(0)


class Loop:
    """A coordinator, runners, and what a learner and a driver ask of them."""

    def __init__(self, *, wait=at_once, capacity=8, num_runners=1, **settings):
        settings = {
            "episodes_per_update": 4,
            "max_staleness": 2,
            "group_size": 2,
            **settings,
        }
        self.coordinator = Coordinator(
            Dispatcher(**settings), settings["max_staleness"]
        )
        self.handle = Handle(self.coordinator)
        self.failures = []
        self.engines, self.services, self.handles = [], [], []
        for runner in range(num_runners):
            self.add_runner(runner, wait, capacity)

    def add_runner(self, runner, wait=at_once, capacity=8):
        engine = Engine()
        suite = SimpleNamespace(make=lambda: Env(wait))
        service = EpisodeService(
            runner,
            engine,
            EpisodePlayer(
                suite, engine, to_tokens, from_output, lambda *_: None, lambda _: None
            ),
            TASKS,
            capacity,
            None,
            Weights(),
            on_failure=self.failures.append,
        )
        self.engines.append(engine)
        self.services.append(service)
        self.handles.append(
            Handle(
                SimpleNamespace(
                    hand_out=lambda numbers: [None, *service.hand_out(numbers)],
                    under_way=service.under_way,
                )
            )
        )

    async def start(self, version=0):
        await self.publish(version)
        for service, handle in zip(self.services, self.handles, strict=True):
            await service.serve(self.handle, handle)

    async def stop(self):
        for service in self.services:
            await service.stop()

    async def publish(self, version):
        serial = await self.coordinator.announce(version)
        await self.coordinator.publish(
            [PublishedWeights(version, version, None, serial=serial)]
        )

    async def batch(self, seconds=5.0):
        return await self.coordinator.next_batch(seconds)


def to_tokens(*, batch, **_):
    return {columns.NEW_TOKENS: [1, 2, 3]}


def from_output(*, batch, **_):
    output = batch[columns.ENGINE_OUTPUT]
    return {
        columns.ASSISTANT_MESSAGE: {"role": "assistant", "content": "so"},
        Columns.ACTIONS: np.asarray(output.token_ids),
        columns.EPISODE_BEHAVIOR_LOGP: output.logp,
        columns.EPISODE_VERSIONS: output.versions,
    }
