"""The driver's side of the loop: an update's groups, and runners that stay alive."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES,
    NUM_EPISODES_LIFETIME,
)
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_llm_async import result_keys
from rllib_llm_async.coordination.ledger import STALE
from rllib_llm_async.coordination.messages import FinishedGroup, NextBatch
from rllib_llm_async.env_runners.episode_outcome import EpisodeOutcome, mean_results
from rllib_llm_async.env_runners.llm_env_runner import (
    BrokenEnvironmentError,
    CallbackError,
    LLMEnvRunner,
)
from rllib_llm_async.env_runners.saved_episodes import (
    outcome_from_plain,
    outcome_to_plain,
)

#: Component of the checkpoint.
RECENT_OUTCOMES = "recent_outcomes"
#: How long one question for a batch waits: between two, dead runners are looked for.
WAIT_SECONDS = 0.5
#: How often runners are asked for their metrics, and with that for their health.
METRICS_SECONDS = 2.0
#: How long an update waits for those of its own.
ANSWER_SECONDS = 0.2
#: After so long the status line says which group everything waits for.
PATIENCE_SECONDS = 10.0
#: How long a dead runner is given to say that it lives again. Asked again and again, so
#: that one that takes a minute to start holds nobody up.
PROBE_SECONDS = 0.05
#: Runners that die so often, on average, before any of them has finished a group die of
#: what another start does not mend.
MAX_DEATHS_IN_VAIN = 5


class GroupCollector:
    """Collects updates' worth of groups; `Coordinator` says which.

    Args:
        config: An `AsyncDecoupledPPOConfig`.
        env_runner_group: RLlib's.
        metrics: The algorithm's.
        say: Writes on the status line.
        between: Called between two looks, to do what cannot wait for an update.
        on_recreated: Called with the runners that `revive` has brought back.
    """

    def __init__(
        self,
        config: Any,
        env_runner_group: EnvRunnerGroup,
        metrics: MetricsLogger,
        say: Callable[[str], None],
        between: Callable[[], None],
        on_recreated: Callable[[list[int]], None],
    ) -> None:
        self._config = config
        self._runners = env_runner_group
        self._metrics = metrics
        self._say = say
        self._between = between
        self._on_recreated = on_recreated
        self._dead: set[int] = set()
        self._num_deaths_in_vain = 0
        self._num_broken_environments = 0
        self._has_outcomes = False
        self._last_failure = "their processes have ended"
        self._asked_at = 0.0
        self._recent: deque[EpisodeOutcome] = deque(
            maxlen=config.metrics_num_episodes_for_smoothing
        )

    def collect(self, coordinator: ray.actor.ActorHandle) -> list[FinishedGroup]:
        """Waits for one update's worth of whole groups.

        Raises:
            ActorDiedError: If the coordinator has died.
            CallbackError: What an env runner's callback has raised.
            RuntimeError: If no runner is left that Ray would still restart, or all die
                before they get anything done.
        """
        since = time.monotonic()
        while True:
            self._between()
            batch: NextBatch = ray.get(coordinator.next_batch.remote(WAIT_SECONDS))
            self._count(batch)
            self._look_after_runners(coordinator)
            if batch.groups:
                # So that no update goes without the figures of its runners.
                self._take_metrics(coordinator, ANSWER_SECONDS)
                return batch.groups
            needed = self._config.episodes_per_update
            text = f"waiting for episodes, {batch.num_ready} of {needed} are there"
            if batch.waiting_for and time.monotonic() - since > PATIENCE_SECONDS:
                text += f"; oldest: {batch.waiting_for}"
            self._say(text)

    def log_means(self) -> None:
        """Means over recent episodes of all runners.

        RLlib would merge the runners' own means as a mean of means, in which a call
        that returned one group counts as much as one that returned ten.
        """
        for key, mean in mean_results(self._recent).items():
            self._metrics.log_value((ENV_RUNNER_RESULTS, key), mean, window=1)

    def get_state(self) -> list[dict[str, Any]]:
        """The state under `RECENT_OUTCOMES`: what `log_means` goes over."""
        return [outcome_to_plain(outcome) for outcome in self._recent]

    def set_state(self, state: Iterable[Mapping[str, Any]]) -> None:
        """Restores it; as much as this run's means go over."""
        self._recent.clear()
        self._recent.extend(outcome_from_plain(outcome) for outcome in state)

    def _count(self, batch: NextBatch) -> None:
        self._recent.extend(batch.outcomes)
        if batch.outcomes:
            self._num_deaths_in_vain = 0
            self._has_outcomes = True
        totals = {
            NUM_EPISODES_LIFETIME: len(batch.outcomes),
            NUM_ENV_STEPS_SAMPLED_LIFETIME: sum(o.num_turns for o in batch.outcomes),
            result_keys.NUM_MALFORMED_TOOL_CALLS: sum(
                o.num_malformed_tool_calls for o in batch.outcomes
            ),
            result_keys.NUM_MULTI_VERSION_EPISODES_LIFETIME: sum(
                o.num_versions > 1 for o in batch.outcomes
            ),
            **{
                f"{result_keys.NUM_EPISODES_DROPPED}_{reason}": number
                for reason, number in batch.dropped.items()
                if reason != STALE  # of learners, too: the ledger has their sum
            },
        }
        for key, number in totals.items():
            self._log(key, number, "lifetime_sum")
        self._log(NUM_EPISODES, totals[NUM_EPISODES_LIFETIME], "sum")
        self._log(NUM_ENV_STEPS_SAMPLED, totals[NUM_ENV_STEPS_SAMPLED_LIFETIME], "sum")

    def _log(self, key: str, number: int, reduce: str) -> None:
        self._metrics.log_value((ENV_RUNNER_RESULTS, key), number, reduce=reduce)

    # --- Runners ------------------------------------------------------------------

    def _look_after_runners(self, coordinator: ray.actor.ActorHandle) -> None:
        """Takes over metrics, gives up what dead runners had, brings back new ones."""
        if time.monotonic() - self._asked_at > METRICS_SECONDS:
            self._take_metrics(coordinator, 0.0)
        manager = self._runners._worker_manager
        dead = set(manager.actor_ids()) - set(manager.healthy_actor_ids())
        for runner in dead - self._dead:
            ray.get(coordinator.lose_runner.remote(runner))
            self._num_deaths_in_vain += 1
        self._dead = dead
        self._check_that_starts_help(len(manager.actor_ids()))
        if dead and not self.revive(coordinator) and dead == {*manager.actor_ids()}:
            self._check_that_some_runner_lives()

    def _take_metrics(self, coordinator: ray.actor.ActorHandle, seconds: float) -> None:
        """Of the runners that answer within this time; the others the next time."""
        self._asked_at = time.monotonic()
        # A function, not its name: a runner that raises in it ends, and is restarted.
        answers = self._runners.foreach_env_runner_async_fetch_ready(
            partial(LLMEnvRunner.healthy_metrics, coordinator=coordinator),
            tag="metrics",
            timeout_seconds=seconds,
        )
        for metrics, failure in answers:
            self._metrics.aggregate([metrics], key=ENV_RUNNER_RESULTS)
            if isinstance(failure, CallbackError):
                raise failure
            if failure is not None:
                self._last_failure = str(failure)
            self._num_broken_environments += isinstance(failure, BrokenEnvironmentError)
        self._check_that_the_environment_works()

    def revive(self, coordinator: ray.actor.ActorHandle) -> list[int]:
        """`bring_back` where RLlib does not look; as it does, it tells callbacks."""
        restored = self.bring_back(coordinator)
        if restored:
            self._on_recreated(restored)
        return restored

    def bring_back(self, coordinator: ray.actor.ActorHandle) -> list[int]:
        """Connects the runners that Ray has restarted; never waits for one."""
        restored = self._runners._worker_manager.probe_unhealthy_actors(
            timeout_seconds=PROBE_SECONDS, mark_healthy=True
        )
        if restored:
            self._runners.foreach_env_runner(
                lambda runner: runner.connect(coordinator),
                remote_worker_ids=restored,
                local_env_runner=False,
                timeout_seconds=0.0,
            )
        return restored

    def _check_that_the_environment_works(self) -> None:
        """Raises when it has worked nowhere: not one node is at fault then."""
        num_runners = self._runners.num_remote_env_runners()
        if not self._has_outcomes and self._num_broken_environments >= num_runners > 0:
            raise RuntimeError(self._last_failure)

    def _check_that_starts_help(self, num_runners: int) -> None:
        """Raises when runners die over and over and finish nothing in between."""
        if self._num_deaths_in_vain >= MAX_DEATHS_IN_VAIN * num_runners:
            raise RuntimeError(
                f"env runners have died {self._num_deaths_in_vain} times with no group "
                f"finished in between, so another start would not help; the last "
                f"error: {self._last_failure}"
            )

    def _check_that_some_runner_lives(self) -> None:
        """Raises when no runner is left that Ray would still restart."""
        errors = []
        for runner in self._runners._worker_manager.actors().values():
            try:
                ray.get(runner.ping.remote(), timeout=PROBE_SECONDS)
                return
            except ActorDiedError as error:
                errors.append(error)
            except (RayError, TimeoutError):
                return
        raise RuntimeError(
            f"all {len(errors)} env runners have died, each after "
            f"max_num_env_runner_restarts={self._config.max_num_env_runner_restarts} "
            f"restarts; the last error: {errors[-1]}"
        )
