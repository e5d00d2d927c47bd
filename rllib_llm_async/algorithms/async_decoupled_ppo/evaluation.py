"""Evaluation on the training runners' engines: avg@k and pass@k per domain."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

from ray.rllib.utils.metrics import NUM_EPISODES

from rllib_llm_async.core import pass_at_k
from rllib_llm_async.env_runners.episodes import EpisodeOutcome, mean_results
from rllib_llm_async.env_runners.llm_env_runner import LLMEnvRunner
from rllib_llm_async.envs.registry import make_suite


def evaluate_on_runners(
    env_runner_group,
    config,
    *,
    split: str,
    num_trials: int,
    num_tasks: int | None,
) -> dict[str, Any]:
    """Spreads the tasks of a split over the healthy runners and sums up.

    See `AsyncDecoupledPPO.evaluate_tasks` for arguments and result.

    Raises:
        RuntimeError: If no runner could evaluate.
    """
    tasks = list(make_suite(config.env, config.env_config).tasks(split))[:num_tasks]
    runners = env_runner_group.healthy_env_runner_ids()
    shares = [tasks[i :: len(runners)] for i in range(len(runners))]
    calls = [
        partial(LLMEnvRunner.evaluate_tasks, tasks=share, num_trials=num_trials)
        for share in shares
    ]
    outcomes = [
        outcome
        for share in env_runner_group.foreach_env_runner(
            calls,
            remote_worker_ids=runners,
            local_env_runner=False,
            timeout_seconds=config.evaluation_sample_timeout_s,
        )
        for outcome in share
    ]
    if not outcomes:
        raise RuntimeError(
            f"evaluation on split {split!r} gave no episode: {len(tasks)} tasks, "
            f"{len(runners)} healthy env runners, time limit "
            f"evaluation_sample_timeout_s={config.evaluation_sample_timeout_s}"
        )
    return {
        "domains": _per_domain(outcomes, num_trials),
        "env_runners": {**mean_results(outcomes), NUM_EPISODES: len(outcomes)},
    }


def _per_domain(
    outcomes: list[EpisodeOutcome], num_trials: int
) -> dict[str, dict[str, float]]:
    trials: dict[str, dict[Any, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for outcome in outcomes:
        trials[outcome.domain][outcome.task].append(outcome.success)
    return {
        domain: {
            f"avg@{num_trials}": _mean(s for task in tasks.values() for s in task),
            f"pass@{num_trials}": _mean(
                pass_at_k(len(task), sum(task), len(task)) for task in tasks.values()
            ),
            "num_episodes": sum(len(task) for task in tasks.values()),
        }
        for domain, tasks in trials.items()
    }


def _mean(values) -> float:
    numbers = [float(value) for value in values]
    return sum(numbers) / len(numbers)
