"""An RLlib EnvRunner that steps many agent episodes against one vLLM engine.

RLlib creates env runners as plain actors and calls them one method at a time. The
engine, the episodes and the weight updates therefore live on an asyncio loop in a
thread of their own: generation goes on between calls, and new weights never wait for
one. `fetch_groups` only takes out what has been finished.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import random
import threading
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import ray
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils import force_list
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES,
    NUM_EPISODES_LIFETIME,
)

from rllib_llm_async import result_keys
from rllib_llm_async.batch import columns
from rllib_llm_async.coordination.staleness_gate import Ticket
from rllib_llm_async.engine.vllm_engine import VLLMEngine
from rllib_llm_async.env_runners.episodes import (
    EpisodeOutcome,
    EpisodePlayer,
    Evaluated,
)
from rllib_llm_async.env_runners.finished_group import FinishedGroup
from rllib_llm_async.env_runners.weight_channel import PublishedWeights
from rllib_llm_async.envs.agent_env import EpisodeError, ReportsMetrics, TaskRef
from rllib_llm_async.envs.registry import make_suite
from rllib_llm_async.monitoring.dialogues import DialogueRecord

T = TypeVar("T")
logger = logging.getLogger(__name__)

#: Time for one remote call about an evaluation to finish on the runner's loop.
CONNECT_TIMEOUT_SECONDS = 600.0
#: An environment that fails so often before the first episode has been played to its
#: end is taken for wrongly set up. Later ones are waited for.
MAX_FAILURES_AT_START = 64
#: RLlib wants spaces; observations and actions are token sequences of any length.
TOKENS_SPACE = gym.spaces.Sequence(gym.spaces.Discrete(2**31 - 1), stack=True)


class LLMEnvRunner(EnvRunner):
    """Serves ``num_concurrent_episodes`` episodes of agent environments.

    Args:
        config: An `AsyncDecoupledPPOConfig`.
        **kwargs: RLlib's own (``worker_index`` and others).
    """

    @override(EnvRunner)
    def __init__(self, *, config, **kwargs) -> None:
        super().__init__(config=config, **kwargs)
        self.suite = make_suite(config.env, config.env_config)
        self._train_tasks = list(self.suite.tasks("train"))
        self._task_rng = random.Random(
            f"{self.config.seed or 0}/{self.worker_index or 0}"
        )
        self.env_to_module = config.build_env_to_module_connector(
            spaces=self.get_spaces()
        )
        self.module_to_env = config.build_module_to_env_connector(
            spaces=self.get_spaces()
        )
        self._chat_format = config.build_chat_format()
        self.engine = VLLMEngine(
            config.model_path,
            {"trust_remote_code": config.trust_remote_code, **config.engine},
            temperature=config.temperature,
            max_response_tokens=config.max_response_tokens,
            stop_token_ids=self._chat_format.stop_token_ids,
            seed=(config.seed or 0) + 1000 * (self.worker_index or 0),
            name=f"engine {self.worker_index or 0}",
        )
        self._player = EpisodePlayer(
            self.suite,
            self.engine,
            self.env_to_module,
            self.module_to_env,
            on_event=self._call_back,
            on_env_failure=self._count_env_failure,
            turn_timeout_s=config.turn_timeout_s,
            episode_timeout_s=config.episode_timeout_s,
        )
        self._keys_of_group: dict[int, list[int]] = {}
        self._installed_serial = 0
        self._tasks: set[asyncio.Task] = set()
        self._channel: Any = None
        self._weights_dir = TemporaryDirectory(
            prefix="rllib_llm_async_",
            dir="/dev/shm" if Path("/dev/shm").is_dir() else None,
        )
        self._finished: queue.Queue[FinishedGroup] = queue.Queue()
        self._failure: BaseException | None = None
        self._num_env_failures = self._num_played = 0
        self._connected_at = 0.0
        self._reported_totals: dict[str, float] = {}
        self._metrics_lock = threading.RLock()
        self._callbacks = [cls() for cls in force_list(config.callbacks_class)]
        self._loop = asyncio.new_event_loop()
        threading.Thread(
            target=self._loop.run_forever, name="episodes", daemon=True
        ).start()
        # The engine takes seconds to start: let it, while the learners are built.
        self._engine_started = asyncio.run_coroutine_threadsafe(
            self.engine.start(), self._loop
        )

    # --- Called by the driver -----------------------------------------------------

    def connect(self, channel: ray.actor.ActorHandle) -> None:
        """Waits for the engine, installs the current weights, starts episodes.

        Args:
            channel: The `WeightChannel` of this run.

        Raises:
            PromptTooLongError: If the first tasks do not fit into the model's context.
        """
        self._channel = channel
        self._engine_started.result(CONNECT_TIMEOUT_SECONDS)
        self._call(self._player.check_that_some_task_fits(self._train_tasks[:8]))
        self._call(self._start_training_episodes())
        self._connected_at = time.monotonic()

    def forget_episodes(self) -> None:
        """Ends all training episodes and their groups, for `connect` to start anew.

        Their tokens belong to versions that a restored learner has never seen.
        """
        self._call(self._cancel_tasks())
        self._player.transcripts.clear()
        self._keys_of_group.clear()
        while not self._finished.empty():
            self._finished.get_nowait()

    def fetch_groups(self, timeout_seconds: float = 1.0) -> tuple[list, Any]:
        """Takes out what has been finished, waiting for at least one group.

        Returns:
            A list of `FinishedGroup` (empty after ``timeout_seconds``) and this
            runner's metrics since the last call.
        """
        groups = []
        try:
            groups.append(self._finished.get(timeout=timeout_seconds))
            while True:
                groups.append(self._finished.get_nowait())
        except queue.Empty:
            pass
        self.assert_healthy()
        return groups, self.get_metrics()

    def evaluate_tasks(
        self,
        tasks: Sequence[TaskRef],
        num_trials: int,
        num_dialogues: int | None = 0,
    ) -> Evaluated:
        """Runs every task ``num_trials`` times with the current weights.

        Args:
            tasks: What to play.
            num_trials: How often.
            num_dialogues: Of how many episodes the dialogue comes back, first trials
                of the first tasks first; None means all.
        """
        return self._call(self._evaluate(tasks, num_trials, num_dialogues))

    @override(EnvRunner)
    def sample(self, **kwargs) -> list[SingleAgentEpisode]:
        """Returns the episodes of all finished groups, waiting for at least one."""
        while True:
            groups, _ = self.fetch_groups()
            if groups:
                for group in groups:
                    self._call(self._consume(group.ticket))
                return [
                    episode for group in groups for episode in ray.get(group.episodes)
                ]

    @override(EnvRunner)
    def get_metrics(self) -> Any:
        engine = self.engine
        totals: dict[str, float] = (
            self.suite.metrics() if isinstance(self.suite, ReportsMetrics) else {}
        )
        totals[result_keys.NUM_GENERATED_TOKENS_LIFETIME] = engine.num_generated_tokens
        totals[result_keys.NUM_WEIGHT_MISMATCHES] = engine.num_weight_mismatches
        with self._metrics_lock:
            for key, total in totals.items():
                self.metrics.log_value(
                    key,
                    total - self._reported_totals.get(key, 0),
                    reduce="lifetime_sum",
                )
            self._reported_totals = totals
            # Counters that are there before the first event.
            for key in (
                result_keys.NUM_ENV_FAILURES,
                result_keys.NUM_MALFORMED_TOOL_CALLS,
            ):
                self.metrics.log_value(key, 0, reduce="lifetime_sum")
            self.metrics.log_value(
                result_keys.GENERATION_PAUSED_FRACTION,
                engine.paused_seconds
                / max(time.monotonic() - self._connected_at, 1e-9),
                window=1,
            )
            for key, values in (
                (result_keys.WEIGHT_SYNC_SECONDS, engine.sync_seconds),
                (result_keys.WEIGHT_PROBE_ERROR, engine.probe_errors),
            ):
                for value in values:
                    self.metrics.log_value(key, value, window=20)
                values.clear()
            engine.timeline.log_to(self.metrics)
            return self.metrics.reduce()

    @override(EnvRunner)
    def get_spaces(self) -> dict[str, tuple[gym.Space, gym.Space]]:
        return {
            INPUT_ENV_SPACES: (TOKENS_SPACE, TOKENS_SPACE),
            DEFAULT_MODULE_ID: (TOKENS_SPACE, TOKENS_SPACE),
        }

    @override(EnvRunner)
    def assert_healthy(self) -> None:
        if self._failure is not None:
            raise RuntimeError(
                f"episodes or engine failed: {self._failure!r}"
            ) from self._failure

    def get_state(self, *args, **kwargs) -> dict[str, Any]:
        """Nothing to keep: tasks are drawn anew, weights come from the channel."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """See `get_state`."""

    @override(EnvRunner)
    def stop(self) -> None:
        self.engine.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._weights_dir.cleanup()

    # --- On the asyncio loop ------------------------------------------------------

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Runs a task whose failure makes the runner unhealthy, never silent."""

        def note_failure(task: asyncio.Task) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and task.exception() is not None:
                self._failure = self._failure or task.exception()

        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(note_failure)

    async def _start_training_episodes(self) -> None:
        self._episode_slots = asyncio.Semaphore(self.config.num_concurrent_episodes)
        lost = await self._channel.register_runner.remote(self.worker_index)
        self._count(result_keys.NUM_EPISODES_DROPPED_LOST, lost)
        while self._installed_serial == 0:
            await self._install_newest()
        self._spawn(self._follow_weights())
        self._spawn(self._follow_interruptions())
        self._spawn(self._produce_groups())

    async def _cancel_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow_weights(self) -> None:
        while True:
            await self._install_newest()

    async def _follow_interruptions(self) -> None:
        """Answers learners that score what was sampled before the weights change."""
        version = -1
        while True:
            stopped = await self._channel.interruption.remote(
                self.worker_index, version
            )
            for version in stopped:  # one, or none after a time-out
                await self.engine.interrupt()
                await self._forget_consumed_groups()
                await self._channel.interrupted.remote(
                    self.worker_index, [ray.put(self._sampled_under(version))]
                )

    async def _forget_consumed_groups(self) -> None:
        outstanding = await self._channel.outstanding.remote(self.worker_index)
        for number in self._keys_of_group.keys() - outstanding:
            self._player.forget(self._keys_of_group.pop(number))

    def _sampled_under(self, version: int) -> list[dict[str, np.ndarray]]:
        """Token columns of all episodes with tokens of a version, finished or not."""
        sequences = []
        for key, transcript in self._player.transcripts.items():
            versions = np.asarray(transcript.versions, dtype=np.int64)
            # What comes after the version's last token is not needed to score it.
            end = int((versions == version).nonzero()[0].max(initial=-1)) + 1
            if end:
                sequences.append(
                    {
                        columns.TOKENS: np.asarray(transcript.tokens[:end], np.int64),
                        columns.POSITION_IDS: np.arange(end),
                        columns.LOSS_MASK: versions[:end] == version,
                        columns.EPISODE_KEYS: np.full(end, key, np.int64),
                    }
                )
        return sequences

    async def _install_newest(self) -> None:
        for published in await self._channel.newest.remote(self._installed_serial):
            await self._install(published)
            self._installed_serial = published.serial

    async def _install(self, published: PublishedWeights) -> None:
        path = Path(self._weights_dir.name) / f"{published.version}.safetensors"
        # In a thread: gigabytes take seconds, and the loop has episodes to serve.
        await asyncio.to_thread(path.write_bytes, await published.weights)
        try:
            await self.engine.install(published.version, path, published.expected)
        finally:
            path.unlink()
        await self._channel.installed.remote(self.worker_index, published.version)

    async def _produce_groups(self) -> None:
        size = self.config.group_size
        while True:
            for _ in range(size):
                await self._episode_slots.acquire()
            ticket = None
            while ticket is None:
                ticket = await self._channel.admit.remote(self.worker_index, size)
            self._spawn(
                self._run_group(ticket, self._task_rng.choice(self._train_tasks))
            )

    async def _run_group(self, ticket: Ticket, task: TaskRef) -> None:
        """Runs ``group_size`` episodes of one task; the group is delivered whole."""
        results = await asyncio.gather(
            *(self._run_in_slot(task) for _ in range(ticket.num_episodes)),
            return_exceptions=True,
        )
        failures = []
        for result in results:
            if isinstance(result, EpisodeError):
                failures.append(result)
            elif isinstance(result, BaseException):
                raise result
        if failures:
            self._player.forget(
                episode.custom_data[columns.EPISODE_KEY]
                for result in results
                if not isinstance(result, BaseException)
                for episode in result[:1]
            )
            # Under the reason of the first failure: one is enough to lose the group.
            self._count(
                f"{result_keys.NUM_EPISODES_DROPPED}_{failures[0].reason}", len(results)
            )
            await self._consume(ticket)
            return
        episodes, outcomes = map(list, zip(*results, strict=True))
        for episode, outcome in results:
            episode.custom_data[columns.GROUP_ID] = ticket.number
            self._count_episode(outcome)
        self._keys_of_group[ticket.number] = [
            episode.custom_data[columns.EPISODE_KEY] for episode in episodes
        ]
        self._finished.put(FinishedGroup(ray.put(episodes), outcomes, ticket))
        # An interruption would do it, too; most sources need none.
        await self._forget_consumed_groups()

    async def _consume(self, ticket: Ticket) -> None:
        await self._channel.consume.remote([ticket.number])

    async def _run_in_slot(
        self, task: TaskRef
    ) -> tuple[SingleAgentEpisode, EpisodeOutcome]:
        try:
            played = await self._player.play(task)
            self._num_played += 1
            return played
        finally:
            self._episode_slots.release()

    async def _evaluate(
        self, tasks: Sequence[TaskRef], num_trials: int, num_dialogues: int | None
    ) -> Evaluated:
        slots = asyncio.Semaphore(self.config.num_concurrent_episodes)
        result = Evaluated()
        decode = self._chat_format.tokenizer.decode

        async def run(task: TaskRef, keep: bool) -> DialogueRecord | None:
            async with slots:
                try:
                    episode, outcome = await self._player.play(task, keep_messages=keep)
                except EpisodeError:
                    result.num_env_failures += 1
                    return None
            self._player.forget([episode.custom_data[columns.EPISODE_KEY]])
            result.outcomes.append(outcome)
            return DialogueRecord.of(episode, outcome, decode) if keep else None

        episodes = [task for _ in range(num_trials) for task in tasks]
        kept = len(episodes) if num_dialogues is None else num_dialogues
        dialogues = await asyncio.gather(
            *(run(task, number < kept) for number, task in enumerate(episodes))
        )
        result.dialogues += [dialogue for dialogue in dialogues if dialogue]
        return result

    def _call_back(self, which: str, episode: SingleAgentEpisode, env: Any) -> None:
        """RLlib's callbacks, for the episodes of training and evaluation alike."""
        more: dict = {"prev_episode_chunks": []} if which == "on_episode_end" else {}
        with self._metrics_lock:
            make_callback(
                which,
                callbacks_objects=self._callbacks,
                callbacks_functions=getattr(self.config, f"callbacks_{which}"),
                kwargs={
                    "episode": episode,
                    "env_runner": self,
                    "metrics_logger": self.metrics,
                    "env": env,
                    "env_index": 0,
                    "rl_module": None,
                    **more,
                },
            )

    def _count_env_failure(self, error: EpisodeError) -> None:
        self._count(result_keys.NUM_ENV_FAILURES, 1)
        self._num_env_failures += 1
        # Once, twice, four times, ...: an endpoint that is down fails every episode.
        if self._num_env_failures.bit_count() == 1:
            logger.warning("env failure %d: %s", self._num_env_failures, error)
        if self._num_env_failures == MAX_FAILURES_AT_START and not self._num_played:
            self._failure = self._failure or error

    def _count_episode(self, outcome: EpisodeOutcome) -> None:
        self._count(NUM_EPISODES_LIFETIME, 1)
        self._count(NUM_ENV_STEPS_SAMPLED_LIFETIME, outcome.num_turns)
        self._count(
            result_keys.NUM_MALFORMED_TOOL_CALLS, outcome.num_malformed_tool_calls
        )
        self._count(
            result_keys.NUM_MULTI_VERSION_EPISODES_LIFETIME, outcome.num_versions > 1
        )
        with self._metrics_lock:
            self.metrics.log_value(NUM_EPISODES, 1, reduce="sum")
            self.metrics.log_value(
                NUM_ENV_STEPS_SAMPLED, outcome.num_turns, reduce="sum"
            )

    def _count(self, key: str, number: int) -> None:
        with self._metrics_lock:
            self.metrics.log_value(key, int(number), reduce="lifetime_sum")
