"""A training run on the real tau2-bench with a user behind an endpoint."""

import pytest

from tests.envs.chat_stub import ChatStub

pytestmark = pytest.mark.slow

pytest.importorskip("tau2.registry", reason="tau2-bench is not installed")


def gives_up(body):
    """A user who wants no more after three messages."""
    said = sum(message["role"] == "assistant" for message in body["messages"])
    content = "please go on." if said < 3 else "###STOP###"
    return {"role": "assistant", "content": content}


def test_the_bundled_agent_trains_on_the_mock_domain(
    ray_cluster, make_config, learner_results
):
    chat_stub = ChatStub()
    chat_stub.answers = [gives_up]
    config = make_config(
        engine={
            "dtype": "float32",
            # The prompt is longer than what the bundled agent was trained on.
            "max_model_len": 2560,
            "max_num_seqs": 16,
            "kv_cache_memory_bytes": 128 << 20,
            "block_size": 32,
            "enforce_eager": True,
        },
        episodes_per_update=8,
        num_concurrent_episodes=8,
        minibatch_size=4,
        max_response_tokens=32,
    ).environment(
        "tau2",
        env_config={
            "domains": ["mock"],
            "train_split": "base",
            "max_steps": 12,
            "user": {"model": "m", "base_url": chat_stub.url, "api_key_env": None},
        },
    )
    algorithm = config.build_algo()
    try:
        for _ in range(3):
            result = algorithm.train()
    finally:
        algorithm.stop()
        chat_stub.shutdown()
    runners = result["env_runners"]
    assert learner_results(result)["policy_version"] >= 2
    assert runners["num_env_failures"] == 0
    assert 0 < runners["user_calls_lifetime"] <= len(chat_stub.requests)
    assert runners["user_completion_tokens_lifetime"] > 0
    assert {"success_rate/mock", "success_rate/mock_no_write"} & runners.keys()
