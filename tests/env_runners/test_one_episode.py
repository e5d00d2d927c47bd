"""One episode, turn by turn, with an engine and an environment on command."""

import asyncio
import contextlib

import numpy as np
import pytest

from rllib_llm_async import result_keys
from rllib_llm_async.batch import columns
from rllib_llm_async.engine.vllm_engine import EngineOutput
from rllib_llm_async.env_runners.episode_outcome import mean_results
from rllib_llm_async.env_runners.episodes import MAX_ENV_RETRIES, EpisodePlayer
from rllib_llm_async.envs.agent_env import (
    BadRewardError,
    EpisodeError,
    Start,
    Step,
    TaskRef,
)
from tests.coordination.in_process import from_output, to_tokens

TASK = TaskRef("suite", "7", "train")


class Engine:
    """Says two tokens a turn, of the versions that it is told."""

    def __init__(self, versions=((0, 0),) * 9, max_model_len=100):
        self.max_model_len = max_model_len
        self._versions = iter(versions)
        self.contexts = []

    async def generate(self, context, on_piece, seed=None, num_routed=0):
        self.contexts.append(list(context))
        output = EngineOutput(
            [50, 51],
            np.array([-0.5, -0.25], np.float32),
            np.array(next(self._versions)),
            "stop",
        )
        on_piece(output)
        return output


class Env:
    """Ends after ``num_turns``; an exception among ``steps`` is raised instead."""

    def __init__(self, steps):
        self._steps = iter(steps)
        self.closed = False

    async def reset(self, task):
        return Start([{"role": "user", "content": "hi"}], [], {"domain": "shop"})

    async def step(self, message):
        step = next(self._steps)
        if isinstance(step, Exception):
            raise step
        if callable(step):
            return await step()
        return step

    async def aclose(self):
        self.closed = True


def goes_on():
    return Step([{"role": "user", "content": "more"}])


def ends(**info):
    info = {"success": True, "num_malformed_tool_calls": 3, **info}
    return Step([], reward=1.0, terminated=True, info=info)


def play(*attempts, engine=None, times=1, deadlines=None):
    """Plays; each attempt is a list of steps. Returns results, player and envs."""
    envs = [Env(steps) for steps in attempts]
    waiting = iter(envs)
    suite = type("Suite", (), {"make": lambda self: next(waiting)})()
    failures = []
    deadlines = deadlines or {}
    player = EpisodePlayer(
        suite,
        engine or Engine(),
        to_tokens,
        from_output,
        lambda *_: None,
        failures.append,
        **deadlines,
    )

    async def main():
        return await asyncio.gather(
            *(player.play(TASK) for _ in range(times)), return_exceptions=True
        )

    return asyncio.run(main()), player, envs, failures


def test_an_episode_holds_what_was_seen_and_said():
    engine = Engine()
    ((episode, outcome),), player, (env,), _ = play([goes_on(), ends()], engine=engine)
    assert [o.tolist() for o in episode.observations.data] == [[1, 2, 3], [1, 2, 3], []]
    assert [a.tolist() for a in episode.actions.data] == [[50, 51], [50, 51]]
    assert engine.contexts == [[1, 2, 3], [1, 2, 3, 50, 51, 1, 2, 3]]
    assert (outcome.success, outcome.domain, outcome.num_turns) == (True, "shop", 2)
    assert outcome.episode_return == 1.0 and outcome.num_malformed_tool_calls == 3
    assert episode.is_terminated and env.closed
    (transcript,) = player.transcripts.values()
    assert transcript.tokens == [1, 2, 3, 50, 51, 1, 2, 3, 50, 51]
    assert transcript.versions == [-1, -1, -1, 0, 0, -1, -1, -1, 0, 0]


@pytest.mark.parametrize(
    ("versions", "number"),
    [([(4, 4), (4, 4)], 1), ([(4, 4), (4, 5)], 2), ([(4, 5), (6, 7)], 4)],
)
def test_versions_of_an_episode_are_counted_over_its_turns(versions, number):
    ((_, outcome),), *_ = play([goes_on(), ends()], engine=Engine(versions))
    assert outcome.num_versions == number
    mean = mean_results([outcome])
    assert mean[result_keys.NUM_VERSIONS_PER_EPISODE] == number


def test_a_full_context_truncates_before_the_engine_is_asked_again():
    # 3 of the prompt, 2 said, 3 more: 8 tokens leave no room within 8.
    engine = Engine(max_model_len=8)
    ((episode, outcome),), *_ = play([goes_on(), ends()], engine=engine)
    assert len(engine.contexts) == 1
    assert episode.is_truncated and not episode.is_terminated
    assert outcome.reason == "context_full" and not outcome.success
    engine = Engine(max_model_len=9)
    ((episode, _),), *_ = play([goes_on(), ends()], engine=engine)
    assert len(engine.contexts) == 2 and episode.is_terminated


def test_an_environment_that_fails_is_replaced_and_its_tokens_are_forgotten():
    first = [goes_on(), RuntimeError("down")]
    ((episode, _),), player, envs, failures = play(first, [ends()])
    assert len(failures) == 1 and "RuntimeError('down')" in str(failures[0])
    assert all(env.closed for env in envs)
    assert [*player.transcripts] == [episode.custom_data[columns.EPISODE_KEY]]
    player.forget([*player.transcripts])
    assert player.transcripts == {}


def test_it_is_given_up_after_the_last_retry():
    attempts = [[RuntimeError("down")] for _ in range(MAX_ENV_RETRIES + 2)]
    (error,), player, envs, failures = play(*attempts)
    assert type(error) is EpisodeError and error.reason == "env_failure"
    assert len(failures) == MAX_ENV_RETRIES + 1 == sum(env.closed for env in envs)
    assert player.transcripts == {}


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), None, "1"])
def test_a_reward_that_is_no_number_fails_the_try(reward):
    bad = Step([], reward=reward, terminated=True)
    attempts = [[bad] for _ in range(MAX_ENV_RETRIES + 1)]
    (error,), *_ = play(*attempts)
    assert isinstance(error, BadRewardError) and error.reason == "bad_reward"
    assert repr(reward) in str(error)
    ((_, outcome),), *_ = play([bad], [ends()])
    assert outcome.episode_return == 1.0


async def hangs():
    await asyncio.sleep(60.0)


async def hangs_and_does_not_heed():
    for _ in range(2):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60.0)


@pytest.mark.parametrize("hung", [hangs, hangs_and_does_not_heed])
def test_an_answer_that_does_not_come_ends_the_try(hung):
    """The episode is played again; its group need not be lost."""
    deadlines = {"turn_timeout_s": 0.05}
    ((_, outcome),), player, envs, failures = play(
        [hung], [goes_on(), ends()], deadlines=deadlines
    )
    assert outcome.success and all(env.closed for env in envs)
    (failure,) = failures
    assert failure.reason == "turn_timeout" and "turn_timeout_s=0.05" in str(failure)
    assert len(player.transcripts) == 1


def test_an_environment_that_never_answers_is_given_up():
    attempts = [[hangs] for _ in range(MAX_ENV_RETRIES + 1)]
    (error,), player, *_ = play(*attempts, deadlines={"turn_timeout_s": 0.05})
    assert error.reason == "turn_timeout" and player.transcripts == {}


def test_an_episode_that_does_not_end_is_given_up():
    """Each answer comes in time; there are too many of them."""

    async def slow():
        await asyncio.sleep(0.04)
        return goes_on()

    attempts = [[slow] * 9 for _ in range(MAX_ENV_RETRIES + 1)]
    deadlines = {"turn_timeout_s": 5.0, "episode_timeout_s": 0.15}
    engine = Engine(((0, 0),) * 99)
    (error,), player, envs, failures = play(
        *attempts, engine=engine, deadlines=deadlines
    )
    assert error.reason == "episode_timeout" and "episode_timeout_s=0.15" in str(error)
    assert len(failures) == MAX_ENV_RETRIES + 1 and all(env.closed for env in envs)
    assert player.transcripts == {}


def test_a_hung_engine_ends_the_try_as_well():
    class Hung(Engine):
        async def generate(self, context, on_piece, seed=None, num_routed=0):
            await asyncio.sleep(60.0)

    attempts = [[] for _ in range(MAX_ENV_RETRIES + 1)]
    (error,), *_ = play(*attempts, engine=Hung(), deadlines={"episode_timeout_s": 0.05})
    assert error.reason == "episode_timeout"


def test_what_was_played_is_not_lost_where_closing_fails():
    class Stuck(Env):
        async def aclose(self):
            raise OSError("no socket")

    env = Stuck([ends()])
    suite = type("Suite", (), {"make": lambda self: env})()
    failures = []
    player = EpisodePlayer(
        suite, Engine(), to_tokens, from_output, lambda *_: None, failures.append
    )
    _, outcome = asyncio.run(player.play(TASK))
    assert outcome.success and "no socket" in str(failures[0])


def test_parts_of_a_reward_that_were_not_judged_are_left_out():
    ((_, outcome),), *_ = play([ends(reward_breakdown={"state": 1.0, "judge": None})])
    assert outcome.rubric_score == 1.0
    means = mean_results([outcome])
    assert f"{result_keys.CHECKS}/shop/state" in means
    assert f"{result_keys.CHECKS}/shop/judge" not in means


def test_events_of_rllib_come_in_their_order():
    events = []
    suite = type("Suite", (), {"make": lambda self: Env([goes_on(), ends()])})()
    player = EpisodePlayer(
        suite, Engine(), to_tokens, from_output, lambda e, *_: events.append(e), None
    )
    asyncio.run(player.play(TASK))
    assert events == [
        "on_episode_created",
        "on_episode_start",
        "on_episode_step",
        "on_episode_step",
        "on_episode_end",
    ]


def test_an_episode_goes_on_when_its_transcript_has_been_given_up():
    """As an evaluation's does where a session of training ends beside it."""

    async def session_ends():
        player.transcripts.clear()
        return goes_on()

    class Suite:
        def make(self):
            return Env([session_ends, ends()])

    player = EpisodePlayer(
        Suite(), Engine(), to_tokens, from_output, lambda *_: None, lambda _: None
    )
    _, outcome = asyncio.run(player.play(TASK))
    assert outcome.success and outcome.num_turns == 2
