"""Evaluation on the training runners' engines: avg@k, pass@k and pass^k per domain."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from statistics import fmean, stdev
from typing import Any

from ray.actor import ActorHandle
from ray.rllib.utils.metrics import NUM_EPISODES

from rllib_llm_async import result_keys
from rllib_llm_async.core import pass_at_k, pass_hat_k
from rllib_llm_async.env_runners.episode_outcome import (
    EpisodeOutcome,
    Evaluated,
    mean_results,
)
from rllib_llm_async.env_runners.llm_env_runner import CallbackError, LLMEnvRunner
from rllib_llm_async.envs.agent_env import TaskRef
from rllib_llm_async.envs.registry import make_suite
from rllib_llm_async.envs.tasks import tasks_of

logger = logging.getLogger(__name__)


class NoEpisodesError(RuntimeError):
    """No episode of an evaluation came to its end; ``counts`` by result key."""

    def __init__(self, message: str, counts: dict[str, int]) -> None:
        super().__init__(message)
        self.counts = counts


#: How often runners are asked how far they are.
POLL_SECONDS = 0.2
#: Behind a key: the standard error of that figure.
_ERROR = "_se"
#: How long one may take to answer before the others go on without.
ANSWER_SECONDS = 5.0


def evaluate_on_runners(
    env_runner_group,
    config,
    *,
    split: str,
    num_trials: int,
    num_tasks: int | None,
    num_dialogues: int | None,
    coordinator: ActorHandle,
    serial: int,
    revive: Callable[[], Any],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Spreads the tasks of a split over the healthy runners and sums up.

    What a runner that dies was to play, another one plays, or the runner itself once
    it is back.

    Args:
        coordinator: Of the run.
        serial: Weights that runners wait for, `PublishedWeights.serial`.
        revive: Brings back restarted runners, where there are any.
        say: Writes on the status line.

    See `AsyncDecoupledPPO.evaluate_tasks` for the other arguments and the result.

    Raises:
        CallbackError: What a runner's callback has raised.
        NoEpisodesError: If no episode came to an end.
    """
    suite = make_suite(config.env, config.env_config)
    tasks = tasks_of(suite, split)[:num_tasks]
    num_shares = max(1, len(env_runner_group.healthy_env_runner_ids()))
    shares: list[Callable[..., Any]] = [
        partial(
            _begin,
            coordinator=coordinator,
            tasks=tasks[share::num_shares],
            num_trials=num_trials,
            num_dialogues=None
            if num_dialogues is None
            else len(range(share, num_dialogues, num_shares)),
            serial=serial,
        )
        for share in range(num_shares)
    ]
    results = _play_shares(
        env_runner_group,
        shares,
        config.evaluation_sample_timeout_s,
        revive,
        lambda done: say(f"evaluation, {done} of {len(tasks) * num_trials} episodes"),
    )
    return summarise(results, tasks, num_trials, config.evaluation_sample_timeout_s)


def _play_shares(
    env_runner_group,
    shares: list[Callable],
    seconds: float,
    revive: Callable[[], Any],
    say: Callable[[int], None],
) -> list[Evaluated]:
    """Has runners play all shares, one each at a time; what a dead one had, again.

    After so many seconds without those in which something was down that environments
    need, it ends with the episodes that are there.
    """
    results: list[Evaluated] = []
    playing: dict[int, Callable] = {}
    start, waited = time.monotonic(), 0.0
    while (shares or playing) and time.monotonic() < start + seconds + waited:
        healthy = env_runner_group.healthy_env_runner_ids()
        for runner in set(playing).difference(healthy):
            shares.append(playing.pop(runner))
        for runner in set(healthy).difference(playing):
            if shares:
                playing[runner] = shares.pop()
                _on(env_runner_group, [runner], playing[runner])
        num_done = sum(len(result.outcomes) for result in results)
        for runner, num_ended, result, outage in _on(
            env_runner_group, [*playing], _how_far
        ):
            num_done += num_ended
            waited = max(waited, outage)
            if isinstance(result, CallbackError):
                raise result
            if result is not None:
                results.append(result)
                del playing[runner]
            elif num_ended < 0:  # it has died and is back, and knows of nothing
                shares.append(playing.pop(runner))
        say(max(num_done, 0))
        if playing or shares:
            time.sleep(POLL_SECONDS)
            revive()
    return results + _on(env_runner_group, [*playing], _end)


def _on(env_runner_group, runners: list[int], call: Callable) -> list:
    if not runners:
        return []
    return env_runner_group.foreach_env_runner(
        call,
        remote_worker_ids=runners,
        local_env_runner=False,
        timeout_seconds=ANSWER_SECONDS,
    )


def _begin(runner: LLMEnvRunner, coordinator: ActorHandle, **share: Any) -> None:
    """On a runner, which may have been restarted without anybody having noticed."""
    runner.connect(coordinator)
    runner.begin_evaluation(**share)


def _how_far(
    runner: LLMEnvRunner,
) -> tuple[int, int, Evaluated | CallbackError | None, float]:
    """On a runner: its number, and `LLMEnvRunner.evaluation`; -1 if there is none."""
    if isinstance(runner.failure, CallbackError):
        return runner.worker_index, 0, runner.failure, 0.0
    runner.assert_healthy()
    return runner.worker_index, *(runner.evaluation() or (-1, None, 0.0))


def _end(runner: LLMEnvRunner) -> Evaluated:
    """On a runner."""
    return runner.end_evaluation()


def summarise(
    results: Sequence[Evaluated],
    tasks: Sequence[TaskRef],
    num_trials: int,
    time_limit: float,
) -> dict[str, Any]:
    outcomes = [outcome for result in results for outcome in result.outcomes]
    num_failures = sum(result.num_env_failures for result in results)
    num_unfinished = len(tasks) * num_trials - len(outcomes) - num_failures
    counts = {
        NUM_EPISODES: len(outcomes),
        result_keys.NUM_ENV_FAILURES: num_failures,
        result_keys.NUM_UNFINISHED_EPISODES: num_unfinished,
    }
    if not outcomes:
        raise NoEpisodesError(
            f"evaluation gave no episode: of {len(tasks)} tasks x {num_trials}, "
            f"{num_unfinished} episodes had not ended within "
            f"evaluation_sample_timeout_s={time_limit}, "
            f"{num_failures} episodes were lost to failures of the environment",
            counts,
        )
    if num_unfinished:
        logger.warning(
            "evaluation: %d of %d episodes had not ended within "
            "evaluation_sample_timeout_s=%s and are left out",
            num_unfinished,
            len(tasks) * num_trials,
            time_limit,
        )
    domains = per_domain(outcomes, num_trials)
    return {
        "domains": domains,
        "env_runners": {
            **mean_results(outcomes),
            **{
                f"{key}/{domain}": value
                for domain, row in domains.items()
                for key, value in row.items()
                if num_trials > 1
                and key.startswith("pass")
                and not key.endswith(_ERROR)
            },
            **counts,
        },
        "dialogues": [asdict(d) for result in results for d in result.dialogues],
    }


def per_domain(
    outcomes: Iterable[EpisodeOutcome], num_trials: int
) -> dict[str, dict[str, float]]:
    """The part ``domains`` of an evaluation's result.

    A task that lost trials to its environment counts where k trials are left. Beside
    each figure of two tasks or more stands its standard error over them, ``avg@n_se``.
    """
    trials: dict[str, dict[TaskRef, list[bool]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for outcome in outcomes:
        trials[outcome.domain][outcome.task].append(outcome.success)
    rows = {}
    for domain, by_task in trials.items():
        tasks = list(by_task.values())
        of_tasks = {f"avg@{num_trials}": [sum(task) / len(task) for task in tasks]}
        for name, estimate in (("pass@", pass_at_k), ("pass^", pass_hat_k)):
            for k in range(1, num_trials + 1):
                of_tasks[f"{name}{k}"] = [
                    estimate(len(task), sum(task), k)
                    for task in tasks
                    if len(task) >= k
                ]
        row: dict[str, float] = {}
        for key, values in of_tasks.items():
            row[key] = fmean(values) if values else float("nan")
            if len(values) > 1:
                row[f"{key}{_ERROR}"] = stdev(values) / math.sqrt(len(values))
        row["num_tasks"] = len(tasks)
        row[NUM_EPISODES] = sum(map(len, tasks))
        rows[domain] = row
    return rows
