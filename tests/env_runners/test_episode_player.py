"""How episodes share the loop; no engine."""

import asyncio
from itertools import pairwise

from rllib_llm_async.env_runners.episodes import EpisodePlayer
from rllib_llm_async.envs.agent_env import TaskRef


class StartedError(Exception):
    """Ends a test's episode at its start."""


class Suite:
    def make(self):
        return self

    async def aclose(self):
        pass


def test_episodes_asked_for_together_start_in_turns_with_others():
    events = []

    def started(*_):
        events.append("start")
        raise StartedError

    player = EpisodePlayer(
        Suite(), None, None, None, on_event=started, on_env_failure=None
    )

    async def others():
        while True:
            events.append("others")
            await asyncio.sleep(0)

    async def main():
        task = asyncio.create_task(others())
        plays = [player.play(TaskRef("suite", str(n), "train")) for n in range(8)]
        results = await asyncio.gather(*plays, return_exceptions=True)
        task.cancel()
        return results

    assert all(isinstance(r, StartedError) for r in asyncio.run(main()))
    assert events.count("start") == 8
    assert ("start", "start") not in pairwise(events)
