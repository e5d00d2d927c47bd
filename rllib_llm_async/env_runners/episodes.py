"""One episode at a time: environment, engine and connectors, and how it ended."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import EPISODE_LEN_MEAN, EPISODE_RETURN_MEAN

from rllib_llm_async import result_keys
from rllib_llm_async.batch import columns
from rllib_llm_async.engine.vllm_engine import EngineOutput, VLLMEngine
from rllib_llm_async.env_runners.deadlines import env_call, nothing_waited, within
from rllib_llm_async.envs.agent_env import (
    AgentEnv,
    BadRewardError,
    EpisodeError,
    TaskRef,
    TaskSuite,
    ToolSchema,
    WaitsForOthers,
    is_reward,
)
from rllib_llm_async.monitoring.dialogues import DialogueRecord

T = TypeVar("T")

#: How often a task is tried again after its environment failed, before it is dropped.
MAX_ENV_RETRIES = 2


class PromptTooLongError(EpisodeError):
    """A task's first prompt fills the model's context."""


@dataclass(frozen=True)
class EpisodeOutcome:
    """What is left of a finished episode when its tokens have gone elsewhere."""

    task: TaskRef
    #: Its `columns.EPISODE_KEY`.
    key: int
    domain: str
    success: bool
    episode_return: float
    num_turns: int
    num_tokens: int
    num_versions: int
    mean_version: float
    num_malformed_tool_calls: int
    reward_breakdown: dict[str, Any]
    reason: str

    @property
    def rubric_score(self) -> float:
        """Partial credit: the mean of the reward's parts, success where it has none.

        A part that is None was not judged.
        """
        parts = [
            float(part) for part in self.reward_breakdown.values() if part is not None
        ]
        return sum(parts) / len(parts) if parts else float(self.success)

    @classmethod
    def of(
        cls, task: TaskRef, episode: SingleAgentEpisode, info: dict[str, Any]
    ) -> EpisodeOutcome:
        """Reads it off the episode and the environment's last ``info``."""
        versions = np.concatenate(
            episode.extra_model_outputs[columns.EPISODE_VERSIONS].data
        )
        return cls(
            task=task,
            key=episode.custom_data[columns.EPISODE_KEY],
            domain=info.get("domain", task.domain),
            success=bool(info.get("success", False)),
            episode_return=episode.get_return(),
            num_turns=len(episode),
            num_tokens=len(versions),
            num_versions=len(np.unique(versions)),
            mean_version=float(versions.mean()) if len(versions) else 0.0,
            num_malformed_tool_calls=info.get(result_keys.NUM_MALFORMED_TOOL_CALLS, 0),
            reward_breakdown=info.get("reward_breakdown", {}),
            reason=info.get("reason", ""),
        )


@dataclass
class Evaluated:
    """Episodes of an evaluation; ``dialogues`` of those that were asked for.

    ``num_env_failures`` counts further episodes whose environment kept failing.
    """

    outcomes: list[EpisodeOutcome] = field(default_factory=list)
    dialogues: list[DialogueRecord] = field(default_factory=list)
    num_env_failures: int = 0


@dataclass
class Transcript:
    """An episode's tokens so far, those of the turn under way included.

    ``versions`` holds -1 where the agent sampled nothing.
    """

    tokens: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    num_sampled: int = 0

    def see(self, token_ids: Sequence[int]) -> None:
        """Adds what comes from the environment."""
        self.tokens += token_ids
        self.versions += [-1] * len(token_ids)

    def say(self, output: EngineOutput) -> None:
        """Adds what the agent sampled."""
        self.tokens += output.token_ids
        self.versions += output.versions.tolist()
        self.num_sampled += len(output.token_ids)


@dataclass(eq=False)
class Progress:
    """Where an episode stands, for whoever waits for it.

    ``num_tokens`` counts all sampled ones, those of failed tries included;
    ``lost_tries`` holds the tokens of each of these and the reason of its end, until
    somebody takes them out.
    """

    doing: str = "not begun"
    since: float = field(default_factory=time.monotonic)
    num_tokens: int = 0
    num_lost_tokens: int = 0
    lost_tries: list[tuple[int, str]] = field(default_factory=list)

    def now(self, doing: str) -> None:
        """Something else is waited for from now on."""
        self.doing, self.since = doing, time.monotonic()

    def begin_again(self, reason: str) -> None:
        """A try has failed."""
        self.lost_tries.append((self.num_tokens - self.num_lost_tokens, reason))
        self.num_lost_tokens = self.num_tokens
        self.now(f"played again after {reason}")


def mean_results(outcomes: Iterable[EpisodeOutcome]) -> dict[str, float]:
    """Means over episodes under their result keys.

    Success also per domain, and the parts of the reward of each.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        values[result_keys.SUCCESS_RATE].append(outcome.success)
        values[f"{result_keys.SUCCESS_RATE}/{outcome.domain}"].append(outcome.success)
        values[result_keys.RUBRIC_SCORE].append(outcome.rubric_score)
        for check, value in outcome.reward_breakdown.items():
            if value is not None:
                values[f"{result_keys.CHECKS}/{outcome.domain}/{check}"].append(
                    float(value)
                )
        values[EPISODE_RETURN_MEAN].append(outcome.episode_return)
        values[EPISODE_LEN_MEAN].append(outcome.num_turns)
        values[result_keys.NUM_VERSIONS_PER_EPISODE].append(outcome.num_versions)
    return {key: float(np.mean(numbers)) for key, numbers in values.items()}


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
        engine: VLLMEngine,
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
            progress: Kept up to date.
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
        for attempt in range(MAX_ENV_RETRIES + 1):
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
            except EpisodeError as error:
                self._on_env_failure(error)
                # A task begins alike whenever it is tried.
                if attempt == MAX_ENV_RETRIES or isinstance(error, PromptTooLongError):
                    raise
                progress.begin_again(error.reason)
        raise AssertionError("unreachable")

    async def check_that_some_task_fits(self, tasks: Iterable[TaskRef]) -> None:
        """Begins one task after the other until one leaves room for an answer.

        Raises:
            PromptTooLongError: If none of them does.
        """
        too_long = None
        for task in tasks:
            env = self._suite.make()
            try:
                start = await self._call(env.reset(task))
                batch = {columns.MESSAGES: start.messages, columns.TOOLS: start.tools}
                tokens = self._to_tokens(batch, SingleAgentEpisode())
                self._check_length(task, len(tokens))
                return
            except PromptTooLongError as error:
                too_long = error
            except EpisodeError:
                return  # counted when it is played
            finally:
                await self._close(env)
        if too_long is not None:
            raise too_long

    async def _try(
        self,
        task: TaskRef,
        keep_messages: bool,
        progress: Progress,
        seed: int | None,
    ) -> tuple[SingleAgentEpisode, EpisodeOutcome]:
        env = self._suite.make()
        # Not of `random`: vLLM seeds that, and a restarted runner would give its
        # episodes the keys of those before, with their scores.
        key = secrets.randbits(62)
        transcript = self.transcripts[key] = Transcript()
        try:
            episode = SingleAgentEpisode(len_lookback_buffer=0)
            episode.custom_data[columns.EPISODE_KEY] = key
            self._on_event("on_episode_created", episode, env)
            progress.now("the environment's start")
            start = await self._call(env.reset(task))
            messages = list(start.messages)
            if keep_messages:
                episode.custom_data[columns.EPISODE_MESSAGES] = messages
            batch: dict[str, Any] = {
                columns.MESSAGES: start.messages,
                columns.TOOLS: start.tools,
            }
            transcript.see(self._to_tokens(batch, episode))
            self._check_length(task, len(transcript.tokens))
            episode.add_env_reset(np.asarray(transcript.tokens, dtype=np.int64))
            self._on_event("on_episode_start", episode, env)
            while True:
                progress.now(f"the engine, turn {len(episode) + 1}")
                output = await self._engine.generate(
                    transcript.tokens, transcript.say, seed=seed
                )
                progress.num_tokens = progress.num_lost_tokens + transcript.num_sampled
                progress.now(f"the environment's answer to turn {len(episode) + 1}")
                batch = self._from_output(output, start.tools, episode)
                step = await self._call(env.step(batch[columns.ASSISTANT_MESSAGE]))
                if not is_reward(step.reward):
                    raise BadRewardError(f"environment gave reward {step.reward!r}")
                messages += [batch[columns.ASSISTANT_MESSAGE], *step.messages]
                batch[columns.MESSAGES] = step.messages
                done = step.terminated or step.truncated
                new_tokens = [] if done else self._to_tokens(batch, episode)
                transcript.see(new_tokens)
                room = self._engine.max_model_len - len(transcript.tokens)
                episode.add_env_step(
                    observation=np.asarray(new_tokens, dtype=np.int64),
                    action=batch[Columns.ACTIONS],
                    reward=float(step.reward),
                    terminated=step.terminated,
                    truncated=step.truncated or (not done and room <= 0),
                    extra_model_outputs={
                        column: batch[column]
                        for column in (
                            columns.EPISODE_BEHAVIOR_LOGP,
                            columns.EPISODE_VERSIONS,
                        )
                    },
                )
                self._on_event("on_episode_step", episode, env)
                if episode.is_done:
                    self._on_event("on_episode_end", episode, env)
                    info = {**start.info, **step.info}
                    if not done:
                        info["reason"] = "context_full"
                    return episode, EpisodeOutcome.of(task, episode, info)
        except BaseException:
            self.forget([key])
            raise
        finally:
            await self._close(env)

    async def _call(self, awaitable: Awaitable[T]) -> T:
        return await env_call(awaitable, self._turn_timeout_s, self.seconds_waited)

    async def _close(self, env: AgentEnv) -> None:
        """Closes an environment; what it has played is not lost if that fails."""
        try:
            await self._call(env.aclose())
        except EpisodeError as error:
            self._on_env_failure(error)

    def _check_length(self, task: TaskRef, num_tokens: int) -> None:
        limit = self._engine.max_model_len
        if num_tokens >= limit:
            raise PromptTooLongError(
                f"task {task.id!r} begins with a prompt of {num_tokens} tokens, which "
                f"leaves no room for an answer within engine.max_model_len = {limit}"
            )

    def _to_tokens(self, batch: dict, episode: SingleAgentEpisode) -> list[int]:
        try:
            return self._env_to_module(
                rl_module=None,
                batch=batch,
                episodes=[episode],
                explore=True,
                shared_data={},
            )[columns.NEW_TOKENS]
        except ValueError as error:  # what the environment says cannot be rendered
            raise EpisodeError(f"messages of the environment: {error}") from error

    def _from_output(
        self, output, tools: list[ToolSchema], episode: SingleAgentEpisode
    ) -> dict[str, Any]:
        return self._module_to_env(
            rl_module=None,
            batch={columns.ENGINE_OUTPUT: output, columns.TOOLS: tools},
            episodes=[episode],
            explore=True,
            shared_data={},
        )
