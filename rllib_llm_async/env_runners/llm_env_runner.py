"""An RLlib EnvRunner that steps many agent episodes against one vLLM engine.

RLlib creates env runners as plain actors and calls them one method at a time. The
engine, the episodes and the weight updates therefore live on an asyncio loop in a
thread of their own, in an `EpisodeService`: generation goes on between calls, and new
weights never wait for one.
"""

from __future__ import annotations

import asyncio
import bisect
import concurrent.futures
import contextlib
import logging
import threading
import time
import traceback
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import gymnasium as gym
import ray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from rllib_llm_async import result_keys
from rllib_llm_async.engine.adapters import Adapters
from rllib_llm_async.engine.engines import Engines
from rllib_llm_async.engine.vllm_engine import VLLMEngine
from rllib_llm_async.engine.watchdog import EngineFailedError
from rllib_llm_async.engine.whole_weights import WholeWeights
from rllib_llm_async.env_runners.episode_outcome import Evaluated
from rllib_llm_async.env_runners.episode_service import EpisodeService
from rllib_llm_async.env_runners.episodes import EpisodePlayer
from rllib_llm_async.env_runners.runner_metrics import RunnerMetrics
from rllib_llm_async.envs.agent_env import EpisodeError, TaskRef
from rllib_llm_async.envs.registry import make_suite
from rllib_llm_async.envs.tasks import tasks_of
from rllib_llm_async.monitoring.dialogues import DialogueRecord
from rllib_llm_async.transport.choice import engine_side

T = TypeVar("T")
logger = logging.getLogger(__name__)

#: Time for an engine to start; large models are read from slow disks.
START_TIMEOUT_SECONDS = 1800.0
#: Time for episodes under way to end when the runner stops.
STOP_TIMEOUT_SECONDS = 5.0
#: Time for the episodes under way to be written down.
RECORDS_SECONDS = 5.0
#: An environment that fails so often before the first episode has been played to its
#: end is taken for wrongly set up. Later ones are waited for.
MAX_FAILURES_AT_START = 64
#: RLlib wants spaces; observations and actions are token sequences of any length.
TOKENS_SPACE = gym.spaces.Sequence(gym.spaces.Discrete(2**31 - 1), stack=True)


class BrokenEnvironmentError(RuntimeError):
    """No episode can be played: the environment is wrong, or wrongly set up."""


class CallbackError(RuntimeError):
    """A callback has raised, as it would again after another start."""


def _adapters(config: Any) -> Adapters | None:
    """How the engine installs versions that are adapters; None if they are not."""
    served = config.served_adapters
    if served is None:
        return None
    return Adapters(
        served,
        per_version=config.lora_sync == "per_version",
        max_staleness=config.max_staleness,
    )


class LLMEnvRunner(EnvRunner):
    """Serves ``num_concurrent_episodes`` episodes of agent environments.

    Args:
        config: An `AsyncDecoupledPPOConfig`.
        **kwargs: RLlib's own (``worker_index`` and others).
    """

    @override(EnvRunner)
    def __init__(self, *, config, **kwargs) -> None:
        super().__init__(config=config, **kwargs)
        index = self.worker_index or 0
        self.suite = make_suite(config.env, config.env_config)
        self._train_tasks = tasks_of(self.suite, "train")
        spaces = self.get_spaces()
        self.env_to_module = config.build_env_to_module_connector(spaces=spaces)
        self.module_to_env = config.build_module_to_env_connector(spaces=spaces)
        self._chat_format = config.build_chat_format()
        self._weights = engine_side(config.chosen_transport, index)
        self.engine = self._make_engine()
        self._counters = RunnerMetrics(self)
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
        self._service = EpisodeService(
            index,
            self.engine,
            self._player,
            self._train_tasks,
            config.num_concurrent_episodes,
            # Elsewhere the order of arrivals decides anyhow, and seeds cost time.
            config.seed if config.max_staleness == 0 else None,
            self._weights,
            on_failure=self._fail,
        )
        self._coordinator: ray.actor.ActorHandle | None = None
        self._evaluation: concurrent.futures.Future | None = None
        #: What has ended engine or episodes.
        self.failure: BaseException | None = None
        self._failure_is_reported = False
        self._num_env_failures = 0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run_loop, name="episodes", daemon=True).start()
        # The engine takes seconds to start: let it, while the learners are built.
        self._started = asyncio.run_coroutine_threadsafe(self._start(), self._loop)

    def _make_engine(self) -> VLLMEngine | Engines:
        number = self.config.num_engines_per_env_runner
        index = self.worker_index or 0
        engines = [
            VLLMEngine(
                self.config.model_path,
                {
                    "trust_remote_code": self.config.trust_remote_code,
                    **self.config.engine,
                },
                temperature=self.config.temperature,
                max_response_tokens=self.config.max_response_tokens,
                stop_token_ids=self._chat_format.stop_token_ids,
                seed=(self.config.seed or 0) + 1000 * index + one,
                engine_timeout_s=self.config.engine_timeout_s,
                name=f"engine {index}" + (f".{one}" if number > 1 else ""),
                weights=_adapters(self.config) or WholeWeights(self._weights),
                return_routed_experts=self.config.replays_routers,
            )
            for one in range(number)
        ]
        return engines[0] if number == 1 else Engines(engines)

    def _run_loop(self) -> None:
        try:
            self._loop.run_forever()
        except BaseException as error:  # of a callback that exits: nothing goes on
            self._fail(error)

    async def _start(self) -> None:
        await self.engine.start()
        self._watching = asyncio.ensure_future(self._watch_engine())
        await self._player.check_that_some_task_fits(self._train_tasks[:8])
        self._counters.began_at = time.monotonic()

    async def _watch_engine(self) -> None:
        """Also while no episode is under way, which would notice."""
        try:
            await self.engine.failed()
        except EngineFailedError as error:
            self._fail(error)

    # --- Called by the driver -----------------------------------------------------

    def connect(self, coordinator: ray.actor.ActorHandle) -> None:
        """Follows a run's `Coordinator` as soon as the engine has started.

        Returns at once: what fails later makes this runner unhealthy. One that it
        follows already changes nothing.
        """
        if coordinator == self._coordinator:
            return
        self._coordinator = coordinator
        handle = ray.get_runtime_context().current_actor
        asyncio.run_coroutine_threadsafe(self._serve(coordinator, handle), self._loop)

    async def _serve(
        self, coordinator: ray.actor.ActorHandle, handle: ray.actor.ActorHandle
    ) -> None:
        try:
            await asyncio.wrap_future(self._started)
        except Exception as error:
            self._fail(error)
        else:
            await self._service.serve(coordinator, handle)

    def wait_until_started(self) -> None:
        """Waits for the engine.

        Raises:
            PromptTooLongError: If the first tasks do not fit into the model's context.
            TimeoutError: If it takes too long.
        """
        try:
            self._started.result(START_TIMEOUT_SECONDS)
        except TimeoutError:
            if self._started.done():  # that was raised by what starts
                raise
            others = "".join(f"; {line}" for line in self._player.waiting_for())
            raise TimeoutError(
                f"engine and first task of env runner {self.worker_index} were not "
                f"ready within {START_TIMEOUT_SECONDS:.0f} s{others}"
            ) from None

    def hand_out(self, numbers: Sequence[int]) -> Any:
        """The episodes of finished groups, for the coordinator, which then owns them.

        Returns:
            None, for a caller that waits but wants no episodes, and a list for each.
        """
        return None, *self._service.hand_out(numbers)

    def under_way(self, numbers: Sequence[int]) -> dict[int, list[Any]]:
        """For a checkpoint, see `EpisodeService.under_way`.

        Raises:
            TimeoutError: If an environment blocks the loop.
        """
        asking = self._service.under_way(numbers)
        return asyncio.run_coroutine_threadsafe(asking, self._loop).result(
            RECORDS_SECONDS
        )

    def begin_evaluation(
        self,
        tasks: Sequence[TaskRef],
        num_trials: int,
        num_dialogues: int | None = 0,
        serial: int = 0,
    ) -> None:
        """Starts running every task ``num_trials`` times with the current weights.

        Args:
            tasks: What to play.
            num_trials: How often.
            num_dialogues: Of how many episodes the dialogue comes back, first trials
                of the first tasks first; None means all.
            serial: Weights to wait for, `PublishedWeights.serial`.
        """
        self.end_evaluation()
        self._evaluated = Evaluated()
        self._waited_before = self._player.seconds_waited()
        self._evaluation = asyncio.run_coroutine_threadsafe(
            self._evaluate(self._evaluated, tasks, num_trials, num_dialogues, serial),
            self._loop,
        )

    def evaluation(self) -> tuple[int, Evaluated | None, float] | None:
        """Of the evaluation under way: episodes that have ended, and all in the end.

        And for how long environments had to wait for something that was down. None if
        there is no evaluation.
        """
        if self._evaluation is None:
            return None
        done = self._evaluated
        num_ended = len(done.outcomes) + done.num_env_failures
        waited = self._player.seconds_waited() - self._waited_before
        if not self._evaluation.done():
            return num_ended, None, waited
        self._evaluation.result()
        return num_ended, done, waited

    def end_evaluation(self) -> Evaluated:
        """Ends the evaluation under way, if any; returns what has been played of it."""
        if self._evaluation is None:
            return Evaluated()
        self._evaluation.cancel()
        self._evaluation = None
        return self._evaluated

    @override(EnvRunner)
    def sample(
        self, *, num_episodes: int | None = None, **kwargs
    ) -> list[SingleAgentEpisode]:
        """Plays episodes of training tasks with the current weights, for inspection.

        They are not part of training, whose groups the `Coordinator` hands out.

        Args:
            num_episodes: How many; None means ``group_size``.
            **kwargs: RLlib's own; the policy always explores.
        """
        number = num_episodes or self.config.group_size
        tasks = [self._train_tasks[i % len(self._train_tasks)] for i in range(number)]

        async def play() -> list[SingleAgentEpisode]:
            played = await asyncio.gather(*map(self._player.play, tasks))
            self._player.forget(outcome.key for _, outcome in played)
            return [episode for episode, _ in played]

        return self._call(play())

    @override(EnvRunner)
    def get_metrics(self) -> Any:
        return self._counters.take(self.engine.each, self.suite)

    def healthy_metrics(
        self, coordinator: ray.actor.ActorHandle
    ) -> tuple[Any, RuntimeError | None]:
        """Metrics since the last call; after a failure once more, with what it was.

        Args:
            coordinator: To be followed: a runner that was restarted between two calls
                knows of none, and nobody has noticed.

        Raises:
            RuntimeError: If engine or episodes have failed, and that has been reported.
        """
        if self._failure_is_reported:
            self.assert_healthy()
        self.connect(coordinator)
        self._failure_is_reported = self.failure is not None
        if self.failure is None:
            return self.get_metrics(), None
        if isinstance(self.failure, BrokenEnvironmentError | CallbackError):
            return self.get_metrics(), self.failure
        # The driver need not know its class.
        return self.get_metrics(), RuntimeError(repr(self.failure))

    @override(EnvRunner)
    def get_spaces(self) -> dict[str, tuple[gym.Space, gym.Space]]:
        return {
            INPUT_ENV_SPACES: (TOKENS_SPACE, TOKENS_SPACE),
            DEFAULT_MODULE_ID: (TOKENS_SPACE, TOKENS_SPACE),
        }

    @override(EnvRunner)
    def assert_healthy(self) -> None:
        if self.failure is not None:
            raise RuntimeError(
                f"episodes or engine failed: {self.failure!r}"
            ) from self.failure

    def get_state(self, *args, **kwargs) -> dict[str, Any]:
        """Nothing to keep: tasks and weights come from the coordinator."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """See `get_state`."""

    @override(EnvRunner)
    def stop(self) -> None:
        ending = asyncio.run_coroutine_threadsafe(self._service.stop(), self._loop)
        with contextlib.suppress(TimeoutError):  # an environment may block the loop
            ending.result(STOP_TIMEOUT_SECONDS)
        self.engine.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._weights.close()

    # --- On the asyncio loop ------------------------------------------------------

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _fail(self, error: BaseException) -> None:
        """Makes the runner unhealthy: RLlib ends it, and starts another one."""
        if self.failure is None:
            self.failure = error
            if isinstance(error, EngineFailedError):
                self._counters.count(result_keys.NUM_ENGINE_FAILURES, 1)

    async def _evaluate(
        self,
        result: Evaluated,
        tasks: Sequence[TaskRef],
        num_trials: int,
        num_dialogues: int | None,
        serial: int,
    ) -> None:
        await self._service.has_installed(serial)
        slots = asyncio.Semaphore(self.config.num_concurrent_episodes)
        decode = self._chat_format.tokenizer.decode
        recorded: list[int] = []  # ascending, as the dialogues stand

        async def run(number: int, task: TaskRef) -> None:
            keep = number < kept
            async with slots:
                try:
                    episode, outcome = await self._player.play(task, keep_messages=keep)
                except EpisodeError:
                    result.num_env_failures += 1
                    return
            self._player.forget([outcome.key])
            result.outcomes.append(outcome)
            if keep:
                place = bisect.bisect(recorded, number)
                recorded.insert(place, number)
                record = DialogueRecord.of(episode, outcome, decode)
                result.dialogues.insert(place, record)

        episodes = [task for _ in range(num_trials) for task in tasks]
        kept = len(episodes) if num_dialogues is None else num_dialogues
        await asyncio.gather(
            *(run(number, task) for number, task in enumerate(episodes))
        )

    def _call_back(self, which: str, episode: SingleAgentEpisode, env: Any) -> None:
        try:
            self._counters.call_back(which, episode, env)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            failure = CallbackError(
                f"callback {which} raised {error!r} "
                f"({place.filename}, line {place.lineno})"
            )
            self._fail(failure)
            raise failure from error

    def _count_env_failure(self, error: EpisodeError) -> None:
        self._counters.count(result_keys.NUM_ENV_FAILURES, 1)
        self._num_env_failures += 1
        # Once, twice, four times, ...: an endpoint that is down fails every episode.
        if self._num_env_failures.bit_count() == 1:
            logger.warning("env failure %d: %s", self._num_env_failures, error)
        if (
            self._num_env_failures == MAX_FAILURES_AT_START
            and not self._player.num_played
        ):
            self._fail(
                BrokenEnvironmentError(
                    f"the environment has failed {self._num_env_failures} times and "
                    f"played no episode to its end: {error}"
                )
            )
