"""Several engines of one runner: who plays where, and what they do together."""

import asyncio
import os
from collections import Counter
from types import SimpleNamespace

import pytest

from rllib_llm_async.engine.engines import Engines
from rllib_llm_async.engine.watchdog import EngineFailedError
from rllib_llm_async.env_runners.episodes import EpisodePlayer
from tests.coordination import in_process


class Engine:
    """What `Engines` asks of a `VLLMEngine`."""

    max_model_len = 512

    def __init__(self):
        self.version = 0
        self.contexts, self.devices = [], None
        self.is_down = self.is_interrupted = False
        self.broken = asyncio.Event()
        self.may_install = asyncio.Event()
        self.may_install.set()
        self.error = None

    async def start(self):
        self.devices = os.environ.get("CUDA_VISIBLE_DEVICES")
        if self.error is not None:
            raise self.error

    async def generate(self, context, on_piece, seed=None, num_routed=0):
        self.contexts.append(context)
        await asyncio.sleep(0)

    async def install(self, version, arrived, expected):
        await self.may_install.wait()
        if self.error is not None:
            raise self.error
        self.version = version

    async def interrupt(self):
        self.is_interrupted = True

    async def failed(self):
        await self.broken.wait()
        raise EngineFailedError("gone")

    def shutdown(self):
        self.is_down = True


def run(main):
    return asyncio.run(asyncio.wait_for(main, 30))


def test_an_episode_stays_on_the_engine_with_the_fewest_when_it_began():
    async def main():
        engines = Engines([Engine(), Engine()])
        ends = [asyncio.Event() for _ in range(5)]

        async def episode(number):
            for _ in range(3):
                await engines.generate([number])
            await ends[number].wait()

        async def spoken(number):
            while sum(len(engine.contexts) for engine in engines.each) < number:
                await asyncio.sleep(0.01)

        playing = [asyncio.create_task(episode(n)) for n in range(4)]
        await spoken(12)
        first, second = ([c for (c,) in e.contexts] for e in engines.each)
        assert sorted(first) == [0, 0, 0, 2, 2, 2]
        assert sorted(second) == [1, 1, 1, 3, 3, 3]
        # Both of the second engine's end: the next one has room there.
        for number in (1, 3):
            ends[number].set()
            await playing[number]
        last = asyncio.create_task(episode(4))
        await spoken(15)
        assert engines.each[1].contexts[-1] == [4]
        for end in ends:
            end.set()
        await asyncio.gather(*playing, last)

    run(main())


class Speaking(in_process.Engine):
    """Notes who has it speak."""

    def __init__(self):
        super().__init__()
        self.episodes = []

    async def generate(self, context, on_piece, seed=None, num_routed=0):
        self.episodes.append(on_piece.__self__.key)
        return await super().generate(context, on_piece, seed, num_routed)


def test_a_player_has_all_turns_of_an_episode_on_one_engine():
    async def main():
        engines = Engines([Speaking(), Speaking()])
        player = EpisodePlayer(
            SimpleNamespace(make=lambda: in_process.Env(in_process.at_once)),
            engines,
            in_process.to_tokens,
            in_process.from_output,
            lambda *_: None,
            lambda _: None,
            episode_timeout_s=60.0,
        )
        await asyncio.gather(*(player.play(in_process.TASKS[0]) for _ in range(6)))
        first, second = (Counter(engine.episodes) for engine in engines.each)
        assert {*first.values(), *second.values()} == {2}  # turns
        assert len(first) == len(second) == 3
        assert not first.keys() & second.keys()

    run(main())


def test_each_changes_its_weights_by_itself():
    async def main():
        engines = Engines([Engine(), Engine()])
        slow, fast = engines.each
        slow.may_install.clear()
        installing = asyncio.create_task(engines.install(3, "path", None))
        await asyncio.sleep(0.01)
        assert (fast.version, slow.version) == (3, 0)
        assert engines.version == 0
        assert not installing.done()
        slow.may_install.set()
        await installing
        assert engines.version == 3

    run(main())


def test_one_that_does_not_take_weights_is_told_of_when_all_have_ended():
    async def main():
        engines = Engines([Engine(), Engine()])
        engines.each[0].error = EngineFailedError("other bits")
        with pytest.raises(EngineFailedError, match="other bits"):
            await engines.install(3, "path", None)
        assert engines.each[1].version == 3

    run(main())


def test_all_stop_together_and_one_that_fails_is_noticed():
    async def main():
        engines = Engines([Engine(), Engine()])
        await engines.interrupt()
        assert all(engine.is_interrupted for engine in engines.each)
        watching = asyncio.create_task(engines.failed())
        await asyncio.sleep(0.01)
        assert not watching.done()
        engines.each[1].broken.set()
        with pytest.raises(EngineFailedError, match="gone"):
            await watching
        engines.shutdown()
        assert all(engine.is_down for engine in engines.each)

    run(main())


@pytest.mark.parametrize(
    ("visible", "shares"),
    [
        ("0,1,2,3", ["0,1", "2,3"]),
        ("4,5", ["4", "5"]),
        ("3", ["3", "3"]),
        ("", ["", ""]),
    ],
)
def test_each_has_its_share_of_the_gpus(monkeypatch, visible, shares):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    async def main():
        engines = Engines([Engine(), Engine()])
        await engines.start()
        assert [engine.devices for engine in engines.each] == shares

    run(main())
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


def test_none_is_left_where_one_does_not_start():
    async def main():
        engines = Engines([Engine(), Engine()])
        engines.each[1].error = EngineFailedError("no memory")
        with pytest.raises(EngineFailedError, match="no memory"):
            await engines.start()
        assert all(engine.is_down for engine in engines.each)

    run(main())
