"""How episodes share the loop; no engine."""

import asyncio
import random
from itertools import pairwise
from types import SimpleNamespace

import pytest

from rllib_llm_async.batch import columns
from rllib_llm_async.env_runners.episodes import MAX_ENV_RETRIES, EpisodePlayer
from rllib_llm_async.envs.agent_env import EpisodeError, Start, TaskRef


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


def test_a_restarted_process_gives_episodes_other_keys():
    """vLLM seeds `random` whenever an engine starts, every time alike."""
    keys = set()

    def started(_, episode, env):
        keys.add(episode.custom_data[columns.EPISODE_KEY])
        raise StartedError

    for _ in range(3):
        random.seed(0)
        player = EpisodePlayer(
            Suite(), None, None, None, on_event=started, on_env_failure=None
        )
        with pytest.raises(StartedError):
            asyncio.run(player.play(TaskRef("suite", "0", "train")))
    assert len(keys) == 3


class LongSuite(Suite):
    """Tasks whose prompts have as many tokens as their ids say."""

    num_resets = 0

    async def reset(self, task):
        self.num_resets += 1
        return Start([{"role": "user", "content": task.id}], [])


def make_player(suite, failures):
    def to_tokens(*, batch, **_):
        (message,) = batch[columns.MESSAGES]
        if message["content"] == "odd":
            raise KeyError("role")
        if message["content"] == "refused":
            raise ValueError("chat template: refuses messages of user")
        return {columns.NEW_TOKENS: [0] * int(message["content"])}

    return EpisodePlayer(
        suite,
        SimpleNamespace(max_model_len=100),
        to_tokens,
        None,
        on_event=lambda *_: None,
        on_env_failure=failures.append,
    )


def test_a_first_prompt_longer_than_the_context_ends_the_episode_at_once():
    suite, failures = LongSuite(), []
    player = make_player(suite, failures)
    with pytest.raises(
        EpisodeError, match=r"'100' .* 100 tokens.*engine.max_model_len = 100"
    ):
        asyncio.run(player.play(TaskRef("suite", "100", "train")))
    assert len(failures) == suite.num_resets == 1
    assert player.transcripts == {}


@pytest.mark.parametrize(
    "task, message", [("refused", "refuses messages of user"), ("odd", "KeyError")]
)
def test_messages_that_cannot_be_rendered_are_the_environments_failure(task, message):
    failures = []
    player = make_player(LongSuite(), failures)
    with pytest.raises(EpisodeError, match=message):
        asyncio.run(player.play(TaskRef("suite", task, "train")))
    assert len(failures) == MAX_ENV_RETRIES + 1


def test_a_suite_is_refused_if_none_of_its_tasks_fits():
    def check(*ids):
        player = make_player(LongSuite(), [])
        tasks = [TaskRef("suite", name, "train") for name in ids]
        asyncio.run(player.check_that_some_task_fits(tasks))

    check("300", "99", "200")
    check("300", "refused")
    with pytest.raises(EpisodeError, match="200 tokens"):
        check("300", "200")
