"""One episode at a time: environment, engine and connectors."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeVar

import numpy as np
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_llm_async.batch import columns
from rllib_llm_async.engine.engine_output import EngineOutput
from rllib_llm_async.engine.engines import Engines
from rllib_llm_async.engine.vllm_engine import VLLMEngine
from rllib_llm_async.env_runners.deadlines import env_call, nothing_waited, within
from rllib_llm_async.env_runners.env_answers import checked_start, checked_step
from rllib_llm_async.env_runners.episode_outcome import EpisodeOutcome
from rllib_llm_async.env_runners.replay import NotReplayableError
from rllib_llm_async.env_runners.transcript import Progress, Transcript
from rllib_llm_async.envs.agent_env import (
    AgentEnv,
    EpisodeError,
    Start,
    Step,
    TaskRef,
    TaskSuite,
    ToolSchema,
    WaitsForOthers,
)

T = TypeVar("T")

#: How often a task is tried again after its environment failed, before it is dropped.
MAX_ENV_RETRIES = 2


class PromptTooLongError(EpisodeError):
    """A task's first prompt fills the model's context."""


class EpisodePlayer:
    """Plays episodes against an engine; many at once on one asyncio loop.

    Args:
        suite: Makes the environments.
        engine: Generates the agent's turns.
        env_to_module: Connector from chat messages to token ids.
        module_to_env: Connector from engine output to the assistant's message.
        on_event: Called as ``on_event("on_episode_start", episode, env)``.
        on_env_failure: Called for every try that an environment's failure ended.
        turn_timeout_s: How long an environment may take for one answer; None: for ever.
        episode_timeout_s: How long a try may take, the engine's turns included.
    """

    def __init__(
        self,
        suite: TaskSuite,
        engine: VLLMEngine | Engines,
        env_to_module: Callable,
        module_to_env: Callable,
        on_event: Callable[[str, SingleAgentEpisode, Any], None],
        on_env_failure: Callable[[EpisodeError], None],
        turn_timeout_s: float | None = None,
        episode_timeout_s: float | None = None,
    ) -> None:
        self._suite = suite
        self._engine = engine
        self._env_to_module = env_to_module
        self._module_to_env = module_to_env
        self._on_event = on_event
        self._turn_timeout_s = turn_timeout_s
        self._episode_timeout_s = episode_timeout_s
        self._on_env_failure = on_env_failure
        self._others = suite if isinstance(suite, WaitsForOthers) else None
        self._starting = asyncio.Lock()
        #: Episodes that came to their end.
        self.num_played = 0
        #: By `EPISODE_KEY`, from an episode's start until `forget`.
        self.transcripts: dict[int, Transcript] = {}

    def waiting_for(self) -> list[str]:
        """What is down that the environments need, e.g. an endpoint, a line each."""
        return self._others.waiting_for() if self._others else []

    def seconds_waited(self) -> float:
        """For how long, since the start; no deadline counts it."""
        return self._others.seconds_waited() if self._others else nothing_waited()

    def forget(self, keys: Iterable[int]) -> None:
        """Drops the transcripts of episodes that nobody needs any more."""
        for key in keys:
            self.transcripts.pop(key, None)

    async def play(
        self,
        task: TaskRef,
        *,
        keep_messages: bool = False,
        progress: Progress | None = None,
        seed: int | None = None,
    ) -> tuple[SingleAgentEpisode, EpisodeOutcome]:
        """Plays one episode; an environment that fails is replaced and tried again.

        Args:
            task: What to play.
            keep_messages: Whether the episode's `EPISODE_MESSAGES` hold the dialogue.
            progress: Kept up to date. Where its ``replay`` does not fit the episode
                starts anew.
            seed: Of the engine's sampling; None: whatever comes.

        Raises:
            EpisodeError: If the environment fails again and again, or the task's first
                prompt does not fit into the model's context.
        """
        async with self._starting:
            # Episodes that are asked for together start one per turn of the loop: a
            # first prompt takes the longest to tokenise.
            await asyncio.sleep(0)
        progress = progress or Progress()
        if progress.replay is not None:
            progress.num_tokens = progress.replay.num_tokens
        attempt = 0
        while True:
            try:
                # Another try is another episode.
                try_seed = None if seed is None else seed + attempt
                played = await within(
                    self._try(task, keep_messages, progress, try_seed),
                    self._episode_timeout_s,
                    self.seconds_waited,
                )
                self.num_played += 1
                return played
            except NotReplayableError as error:
                # Nothing has failed: this is the first try.
                progress.begin_again(error.reason)
            except EpisodeError as error:
                self._on_env_failure(error)
                # A task begins alike whenever it is tried.
                if attempt == MAX_ENV_RETRIES or isinstance(error, PromptTooLongError):
                    raise
                attempt += 1
                progress.begin_again(error.reason)

    async def check_that_some_task_fits(self, tasks: Iterable[TaskRef]) -> None:
        """Begins one task after the other until one leaves room for an answer.

        Raises:
            PromptTooLongError: If none of them does.
        """
        too_long = None
        for task in tasks:
            try:
                async with self._environment() as env:
                    start = await self._start(env, task)
                    self._check_length(
                        task, len(self._first_tokens(start, SingleAgentEpisode()))
                    )
                return
            except PromptTooLongError as error:
                too_long = error
            except EpisodeError:
                return  # counted when it is played
        if too_long is not None:
            raise too_long

    async def _try(
        self,
        task: TaskRef,
        keep_messages: bool,
        progress: Progress,
        seed: int | None,
    ) -> tuple[SingleAgentEpisode, EpisodeOutcome]:
        # Learners may have scores of a replayed episode, by its key. Not of `random`:
        # vLLM seeds that, and a restarted runner would use the keys of before again.
        key = progress.replay.key if progress.replay else secrets.randbits(62)
        transcript = self.transcripts[key] = progress.transcript = Transcript(key)
        try:
            async with self._environment() as env:
                episode = SingleAgentEpisode(len_lookback_buffer=0)
                episode.custom_data[columns.EPISODE_KEY] = key
                self._on_event("on_episode_created", episode, env)
                progress.now("the environment's start")
                start = await self._start(env, task)
                if keep_messages:
                    episode.custom_data[columns.EPISODE_MESSAGES] = list(start.messages)
                self._begin(task, env, episode, start, transcript)
                while True:
                    output = await self._next_turn(transcript, progress, seed)
                    progress.now(f"the environment's answer to turn {len(episode) + 1}")
                    step = await self._answer(
                        env, episode, output, start.tools, transcript
                    )
                    if episode.is_done:
                        self._on_event("on_episode_end", episode, env)
                        info = {**start.info, **step.info}
                        if not (step.terminated or step.truncated):
                            info["reason"] = "context_full"
                        return episode, EpisodeOutcome.of(task, episode, info)
        except BaseException:
            self.forget([key])
            raise

    @contextlib.asynccontextmanager
    async def _environment(self) -> AsyncIterator[AgentEnv]:
        """That of one try, which is closed in the end."""
        try:
            env = self._suite.make()
        except Exception as error:
            raise EpisodeError(f"environment cannot be made: {error!r}") from error
        try:
            yield env
        finally:
            # What it has played is not lost if that fails.
            try:
                await self._call(lambda: env.aclose())
            except EpisodeError as error:
                self._on_env_failure(error)

    async def _start(self, env: AgentEnv, task: TaskRef) -> Start:
        return checked_start(await self._call(lambda: env.reset(task)))

    async def _next_turn(
        self,
        transcript: Transcript,
        progress: Progress,
        seed: int | None,
    ) -> EngineOutput:
        """From a checkpoint as far as that reaches, then from the engine."""
        progress.now(f"the engine, turn {len(transcript.turns) + 1}")
        replay = progress.replay
        output = replay.next_turn(transcript) if replay else None
        if output is None:
            progress.replay = None
            output = await self._engine.generate(
                transcript.tokens,
                transcript.say,
                seed=seed,
                num_routed=transcript.num_routed,
            )
            progress.num_tokens = progress.num_lost_tokens + transcript.num_sampled
        transcript.turns.append(output)
        return output

    def _begin(
        self,
        task: TaskRef,
        env: AgentEnv,
        episode: SingleAgentEpisode,
        start: Start,
        transcript: Transcript,
    ) -> None:
        """The task's first prompt."""
        transcript.see(self._first_tokens(start, episode))
        self._check_length(task, len(transcript.tokens))
        episode.add_env_reset(np.asarray(transcript.tokens, dtype=np.int64))
        self._on_event("on_episode_start", episode, env)

    async def _answer(
        self,
        env: AgentEnv,
        episode: SingleAgentEpisode,
        output: EngineOutput,
        tools: list[ToolSchema],
        transcript: Transcript,
    ) -> Step:
        """The environment's answer to a turn of the agent; ends a full episode."""
        batch = self._from_output(output, tools, episode)
        message = batch[columns.ASSISTANT_MESSAGE]
        step = checked_step(await self._call(lambda: env.step(message)))
        if columns.EPISODE_MESSAGES in episode.custom_data:
            episode.custom_data[columns.EPISODE_MESSAGES] += [message, *step.messages]
        batch[columns.MESSAGES] = step.messages
        done = step.terminated or step.truncated
        new_tokens = [] if done else self._to_tokens(batch, episode)
        transcript.see(new_tokens)
        room = self._engine.max_model_len - len(transcript.tokens)
        episode.add_env_step(
            observation=np.asarray(new_tokens, dtype=np.int64),
            action=batch[Columns.ACTIONS],
            reward=step.reward,
            terminated=step.terminated,
            truncated=step.truncated or (not done and room <= 0),
            extra_model_outputs={
                column: batch[column]
                for column in (
                    columns.EPISODE_BEHAVIOR_LOGP,
                    columns.EPISODE_VERSIONS,
                    columns.EPISODE_ROUTED_EXPERTS,
                )
                if column in batch
            },
        )
        self._on_event("on_episode_step", episode, env)
        return step

    async def _call(self, ask: Callable[[], Awaitable[T]]) -> T:
        return await env_call(ask, self._turn_timeout_s, self.seconds_waited)

    def _check_length(self, task: TaskRef, num_tokens: int) -> None:
        limit = self._engine.max_model_len
        if num_tokens >= limit:
            raise PromptTooLongError(
                f"task {task.id!r} begins with a prompt of {num_tokens} tokens, which "
                f"leaves no room for an answer within engine.max_model_len = {limit}"
            )

    def _first_tokens(self, start: Start, episode: SingleAgentEpisode) -> list[int]:
        batch = {columns.MESSAGES: start.messages, columns.TOOLS: start.tools}
        return self._to_tokens(batch, episode)

    def _to_tokens(self, batch: dict, episode: SingleAgentEpisode) -> list[int]:
        try:
            return self._env_to_module(
                rl_module=None,
                batch=batch,
                episodes=[episode],
                explore=True,
                shared_data={},
            )[columns.NEW_TOKENS]
        except Exception as error:  # what the environment says cannot be rendered
            text = str(error) if isinstance(error, ValueError) else repr(error)
            raise EpisodeError(f"messages of the environment: {text}") from error

    def _from_output(
        self, output: EngineOutput, tools: list[ToolSchema], episode: SingleAgentEpisode
    ) -> dict[str, Any]:
        return self._module_to_env(
            rl_module=None,
            batch={columns.ENGINE_OUTPUT: output, columns.TOOLS: tools},
            episodes=[episode],
            explore=True,
            shared_data={},
        )
