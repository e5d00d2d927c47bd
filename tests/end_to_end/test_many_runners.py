"""The coordinator's actor and the calls of many runners."""

import ray

from rllib_llm_async import PPOEWMAAsyncConfig
from rllib_llm_async.coordination.coordinator_actor import create_coordinator

NUM_RUNNERS = 600


def test_a_short_call_does_not_wait_behind_the_polls_of_many_runners(ray_cluster):
    config = PPOEWMAAsyncConfig().environment("mini_tau2")
    config.num_env_runners = NUM_RUNNERS
    coordinator = create_coordinator(config)
    sessions = ray.get(
        [coordinator.register.remote(None, n, ["shop"], 0) for n in range(NUM_RUNNERS)]
    )
    # Each has two calls that wait at most; the polls end by themselves after a while.
    polls = [
        coordinator.orders.remote(number, session, 0, -1)
        for number, session in enumerate(sessions)
        for _ in range(2)
    ]
    assert ray.get(coordinator.newest_serial.remote()) == 0
    ended, _ = ray.wait(polls, num_returns=len(polls), timeout=0, fetch_local=False)
    assert len(ended) < NUM_RUNNERS / 2
    ray.kill(coordinator)
