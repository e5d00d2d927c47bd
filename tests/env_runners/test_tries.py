"""Tries of an episode: their seeds, their deadlines, their tokens."""

import asyncio
import time
from types import SimpleNamespace

import numpy as np
import pytest

from rllib_llm_async.engine.vllm_engine import EngineOutput
from rllib_llm_async.env_runners import deadlines
from rllib_llm_async.env_runners.episode_service import EpisodeService
from rllib_llm_async.env_runners.episodes import EpisodePlayer
from rllib_llm_async.env_runners.replay import Replay, record_of
from rllib_llm_async.env_runners.runner_metrics import RunnerMetrics
from rllib_llm_async.env_runners.transcript import Progress
from rllib_llm_async.monitoring.timeline import Timeline
from tests.coordination.in_process import from_output, to_tokens
from tests.env_runners.test_one_episode import TASK, Engine, Env, ends, goes_on, play
from tests.env_runners.test_runner_metrics import runner  # noqa: F401


def player_of(make, engine):
    return EpisodePlayer(
        SimpleNamespace(make=make),
        engine,
        to_tokens,
        from_output,
        lambda *_: None,
        lambda _: None,
    )


def test_each_try_and_each_episode_samples_with_a_seed_of_its_own():
    said = []

    class Seeds(Engine):
        async def generate(self, context, on_piece, seed=None, num_routed=0):
            said.append(seed)
            return await super().generate(context, on_piece)

    envs = iter([Env([RuntimeError("down")]), Env([ends()])])
    player = player_of(lambda: next(envs), Seeds())
    asyncio.run(player.play(TASK, seed=70))
    assert said == [70, 71]

    service = object.__new__(EpisodeService)
    service._seed = 3
    pairs = [(group, member) for group in range(4) for member in range(4)]
    seeds = [service._episode_seed(*pair) for pair in pairs]
    assert len(set(seeds)) == len(pairs)
    assert seeds == [service._episode_seed(*pair) for pair in pairs]
    service._seed = 4
    assert not set(seeds) & {service._episode_seed(*pair) for pair in pairs}
    service._seed = None
    assert service._episode_seed(0, 0) is None


@pytest.mark.parametrize("deadline", ["turn_timeout_s", "episode_timeout_s"])
def test_what_a_suite_waits_for_counts_in_no_deadline_of_its_episodes(
    deadline, monkeypatch
):
    monkeypatch.setattr(deadlines, "SHORTEST_EXTENSION_SECONDS", 0.02)
    began = time.monotonic()

    async def when_it_is_up():
        await asyncio.sleep(0.6)
        return ends()

    class Suite:
        def make(self):
            return Env([when_it_is_up])

        def waiting_for(self):
            return ["user: down"]

        def seconds_waited(self):
            return time.monotonic() - began

    failures = []
    player = EpisodePlayer(
        Suite(),
        Engine(),
        to_tokens,
        from_output,
        lambda *_: None,
        failures.append,
        **{deadline: 0.2},
    )
    _, outcome = asyncio.run(player.play(TASK))
    assert outcome.success and failures == []


def test_a_pause_of_one_of_two_engines_is_half_a_pause(runner):  # noqa: F811
    def engine(paused):
        return SimpleNamespace(
            num_generated_tokens=0,
            paused_seconds=paused,
            sync_seconds=[],
            probe_errors=[],
            num_weight_mismatches=0,
            timeline=Timeline("engine"),
        )

    counters = RunnerMetrics(runner)
    counters.began_at = time.monotonic() - 1000.0
    logged = counters.take([engine(500.0), engine(0.0)], runner.suite)
    assert logged["generation_paused_fraction"] == pytest.approx(0.25, rel=1e-2)


def test_an_engine_is_told_of_how_many_tokens_the_experts_are_known():
    told = []

    class Routing(Engine):
        async def generate(self, context, on_piece, seed=None, num_routed=0):
            told.append(num_routed)
            new = len(context) + 1 - num_routed  # all but the last that is said
            logp, versions = np.zeros(2, np.float32), np.zeros(2, int)
            experts = np.zeros((new, 1, 1), np.uint8)
            output = EngineOutput([50, 51], logp, versions, "stop", experts)
            on_piece(output)
            return output

    player = player_of(lambda: Env([goes_on(), ends()]), Routing())
    asyncio.run(player.play(TASK))
    (transcript,) = player.transcripts.values()
    assert told == [0, 4]  # 3 of the prompt and the first of two said
    assert transcript.num_routed == len(transcript.tokens) - 1


def test_an_episode_that_ends_with_a_full_context_has_ended_by_itself():
    ((episode, outcome),), *_ = play([ends()], engine=Engine(max_model_len=5))
    assert episode.is_terminated and not episode.is_truncated
    assert outcome.success


def test_a_try_that_failed_amid_a_replay_leaves_nothing_to_replay():
    player = player_of(lambda: Env([goes_on(), ends()]), Engine())
    asyncio.run(player.play(TASK))
    (transcript,) = player.transcripts.values()
    envs = iter([Env([RuntimeError("down")]), Env([goes_on(), goes_on(), ends()])])
    player = player_of(lambda: next(envs), Engine())
    progress = Progress(replay=Replay(record_of(transcript)))
    episode, _ = asyncio.run(player.play(TASK, progress=progress))
    assert progress.replay is None and len(episode) == 3
    assert progress.lost_tries == [(4, "env_failure")]


def test_tokens_of_every_lost_try_are_counted_once():
    tries = [
        [goes_on(), goes_on(), RuntimeError("down")],  # three turns of two tokens
        [RuntimeError("down")],
        [goes_on(), ends()],
    ]
    envs = iter([Env(steps) for steps in tries])
    player = player_of(lambda: next(envs), Engine())
    progress = Progress()
    asyncio.run(player.play(TASK, progress=progress))
    assert progress.lost_tries == [(6, "env_failure"), (2, "env_failure")]
    assert progress.num_tokens == 6 + 2 + 4 and progress.num_lost_tokens == 8
