"""Episodes per second of 1, 2 and 4 env runners that follow one coordinator.

Their users take seconds to answer, so that what limits them is not the machine that
all engines share but what each runner has under way. There is no learner: the same
weights are published again for every batch, which is taken as soon as it is there.
"""

from __future__ import annotations

import functools
import time

import ray

from benchmarks.generation_vs_raw_vllm import ENGINE
from benchmarks.row import Row
from rllib_llm_async import AsyncDecoupledPPOConfig
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.policy_weights import (
    PolicyWeights,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.weight_publisher import (
    WeightPublisher,
)
from rllib_llm_async.coordination.coordinator_actor import create_coordinator
from rllib_llm_async.env_runners.llm_env_runner import LLMEnvRunner
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy, load_causal_lm
from rllib_llm_async.models.small_agent import small_agent_dir

NUM_RUNNERS = (1, 2, 4)
#: Of each runner; an update takes half of the episodes of all.
NUM_CONCURRENT, GROUP_SIZE = 16, 4
USER_SECONDS = 8.0
#: More versions than are published while an episode is under way: never what limits.
MAX_STALENESS = 8
#: Until episodes are spread over all their turns, and how long they are counted then.
WARM_UP_SECONDS, COUNTED_SECONDS = 40.0, 60.0


def two() -> Row:
    """Two runners against twice one."""
    return _row(2)


def four() -> Row:
    """Four runners against four times one."""
    return _row(4)


def _row(num_runners: int) -> Row:
    rates = _rates()
    linear = num_runners * rates[1]
    return Row(
        f"env_runner_scaling_{num_runners}",
        rates[num_runners],
        "episodes/s",
        linear,
        rates[num_runners] / linear,
    )


@functools.cache
def _rates() -> dict[int, float]:
    """Episodes per second by number of runners."""
    actor = ray.remote(LLMEnvRunner).options(num_cpus=1)
    runners = [
        actor.remote(config=_config(1), worker_index=number + 1)
        for number in range(max(NUM_RUNNERS))
    ]
    try:
        ray.get([runner.wait_until_started.remote() for runner in runners])
        return {number: _rate(runners[:number]) for number in NUM_RUNNERS}
    finally:
        ray.get([runner.stop.remote() for runner in runners])
        for runner in runners:
            ray.kill(runner)


def _config(num_runners: int) -> AsyncDecoupledPPOConfig:
    config = (
        AsyncDecoupledPPOConfig()
        .environment(
            "mini_tau2",
            env_config={"domains": ["airline"], "user_seconds": USER_SECONDS},
        )
        .env_runners(num_env_runners=num_runners)
        .training(
            model="small_agent",
            group_size=GROUP_SIZE,
            num_concurrent_episodes=NUM_CONCURRENT,
            episodes_per_update=num_runners * NUM_CONCURRENT // 2,
            minibatch_size=None,
            max_staleness=MAX_STALENESS,
            engine={**ENGINE, "max_num_seqs": NUM_CONCURRENT},
        )
    )
    config.validate()
    return config


def _rate(runners: list[ray.actor.ActorHandle]) -> float:
    """Episodes per second of runners, from the moment at which they have spread."""
    config = _config(len(runners))
    coordinator = create_coordinator(config)
    policy = CausalLMPolicy(load_causal_lm(small_agent_dir()))
    publisher = WeightPublisher(
        PolicyWeights(policy),
        config,
        coordinator,
        lambda batch, parameters: policy.score(batch, parameters, 512),
        rank=0,
        num_learners=1,
    )
    publisher.publish(0)
    for runner in runners:
        runner.connect.remote(coordinator)
    version = num_episodes = 0
    start = time.perf_counter() + WARM_UP_SECONDS
    while (now := time.perf_counter()) < start + COUNTED_SECONDS:
        batch = ray.get(coordinator.next_batch.remote(0.5))
        num_episodes += len(batch.outcomes) * (now > start)
        if batch.groups:
            version += 1
            publisher.publish(version)
            ray.get(coordinator.consumed.remote())
    ray.kill(coordinator)
    return num_episodes / (now - start)
