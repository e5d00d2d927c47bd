"""Evaluation on the training runners' engines: avg@k, pass@k and pass^k per domain."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from ray.rllib.utils.metrics import NUM_EPISODES

from rllib_llm_async import result_keys
from rllib_llm_async.core import pass_at_k, pass_hat_k
from rllib_llm_async.env_runners.episodes import EpisodeOutcome, Evaluated, mean_results
from rllib_llm_async.env_runners.llm_env_runner import LLMEnvRunner
from rllib_llm_async.envs.agent_env import TaskRef
from rllib_llm_async.envs.registry import make_suite


def evaluate_on_runners(
    env_runner_group,
    config,
    *,
    split: str,
    num_trials: int,
    num_tasks: int | None,
    num_dialogues: int | None,
    serial: int,
    revive: Callable[[], Any],
) -> dict[str, Any]:
    """Spreads the tasks of a split over the healthy runners and sums up.

    What a runner that dies was to play, another one plays, or the runner itself once
    it is back.

    Args:
        serial: Weights that runners wait for, `PublishedWeights.serial`.
        revive: Brings back restarted runners, where there are any.

    See `AsyncDecoupledPPO.evaluate_tasks` for the other arguments and the result.

    Raises:
        RuntimeError: If no episode came to an end.
    """
    tasks = list(make_suite(config.env, config.env_config).tasks(split))[:num_tasks]
    num_shares = max(1, len(env_runner_group.healthy_env_runner_ids()))
    missing = {
        share: partial(
            _evaluate_share,
            share=share,
            tasks=tasks[share::num_shares],
            num_trials=num_trials,
            num_dialogues=None
            if num_dialogues is None
            else len(range(share, num_dialogues, num_shares)),
            serial=serial,
        )
        for share in range(num_shares)
    }
    results = []
    deadline = time.monotonic() + config.evaluation_sample_timeout_s
    while missing and (left := deadline - time.monotonic()) > 0:
        runners = env_runner_group.healthy_env_runner_ids()
        if not runners:
            revive()
            time.sleep(0.5)
            continue
        asked = list(zip(missing.values(), runners, strict=False))
        for share, result in env_runner_group.foreach_env_runner(
            [play for play, _ in asked],
            remote_worker_ids=[runner for _, runner in asked],
            local_env_runner=False,
            timeout_seconds=left,
        ):
            del missing[share]
            results.append(result)
    return summarise(results, tasks, num_trials, config.evaluation_sample_timeout_s)


def _evaluate_share(runner: LLMEnvRunner, *, share: int, **kwargs) -> tuple:
    """On a runner: which share this was, and its episodes."""
    runner.assert_healthy()
    return share, runner.evaluate_tasks(**kwargs)


def summarise(
    results: Sequence[Evaluated],
    tasks: Sequence[TaskRef],
    num_trials: int,
    time_limit: float,
) -> dict[str, Any]:
    outcomes = [outcome for result in results for outcome in result.outcomes]
    num_failures = sum(result.num_env_failures for result in results)
    if not outcomes:
        raise RuntimeError(
            f"evaluation gave no episode: {len(tasks)} tasks, {len(results)} env "
            f"runners answered within evaluation_sample_timeout_s={time_limit}, "
            f"{num_failures} episodes were lost to failures of the environment"
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
                if num_trials > 1 and key.startswith("pass")
            },
            NUM_EPISODES: len(outcomes),
            result_keys.NUM_ENV_FAILURES: num_failures,
        },
        "dialogues": [asdict(d) for result in results for d in result.dialogues],
    }


def per_domain(
    outcomes: Iterable[EpisodeOutcome], num_trials: int
) -> dict[str, dict[str, float]]:
    """The part ``domains`` of an evaluation's result.

    A task that lost trials to its environment counts where k trials are left.
    """
    trials: dict[str, dict[TaskRef, list[bool]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for outcome in outcomes:
        trials[outcome.domain][outcome.task].append(outcome.success)
    rows = {}
    for domain, by_task in trials.items():
        tasks = list(by_task.values())
        row = {f"avg@{num_trials}": _mean(sum(task) / len(task) for task in tasks)}
        for name, estimate in (("pass@", pass_at_k), ("pass^", pass_hat_k)):
            for k in range(1, num_trials + 1):
                row[f"{name}{k}"] = _mean(
                    estimate(len(task), sum(task), k)
                    for task in tasks
                    if len(task) >= k
                )
        row["num_tasks"] = len(tasks)
        row[NUM_EPISODES] = sum(map(len, tasks))
        rows[domain] = row
    return rows


def _mean(values: Iterable[float]) -> float:
    """NaN where there is nothing."""
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else float("nan")
