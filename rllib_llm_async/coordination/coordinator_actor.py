"""Starting the `Coordinator` of a run as an actor, from the run's settings."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rllib_llm_async.coordination.coordinator import Coordinator
from rllib_llm_async.coordination.dispatcher import Dispatcher
from rllib_llm_async.env_runners.episodes import MAX_ENV_RETRIES


def create_coordinator(config: Any) -> ray.actor.ActorHandle:
    """Starts the actor of a run; it holds references and takes no CPU of its own.

    It lives on the driver's node, without which the run ends anyhow: no other node that
    goes takes it along.

    Args:
        config: An `AsyncDecoupledPPOConfig`.
    """
    dispatcher = Dispatcher(
        config.episodes_per_update,
        config.max_staleness,
        config.group_size,
        seed=config.seed or 0,
        ticket_timeout_s=_ticket_timeout(config),
    )
    return (
        ray.remote(Coordinator)
        # Waiting calls of all runners, and room for the short ones beside them.
        .options(
            num_cpus=0,
            max_concurrency=1000 + 2 * config.num_env_runners,
            scheduling_strategy=NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            ),
        )
        .remote(dispatcher, config.max_staleness, config.drop_uniform_groups)
    )


def _ticket_timeout(config: Any) -> float | None:
    """Longest that a runner's own deadlines let a group take, in seconds."""
    if config.episode_timeout_s is None:
        return None
    # One more for what comes between the tries.
    return config.episode_timeout_s * (MAX_ENV_RETRIES + 2)
