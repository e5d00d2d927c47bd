"""Training on VitaBench, with user and judge behind an endpoint."""

import json
import re
import zlib

import pytest

from tests.envs.chat_stub import ChatStub

pytestmark = pytest.mark.slow


def answer(body):
    """A user of one message; a judge of all or nothing, sometimes unreadable."""
    system, last = (body["messages"][i]["content"] for i in (0, -1))
    rubrics = re.search("<current_rubrics>(.*)</current_rubrics>", last, re.DOTALL)
    if rubrics is None:
        num_said = sum(message["role"] == "assistant" for message in body["messages"])
        said = "I am hungry." if num_said < 2 else "###STOP###"
    else:
        draw = zlib.crc32((system + last).encode()) % 8
        states = json.loads(rubrics[1])
        verdict = [{**state, "meetExpectation": draw < 4} for state in states]
        said = json.dumps(verdict) if draw < 7 else "I cannot tell."
    return {"role": "assistant", "content": said}


@pytest.fixture
def endpoint():
    stub = ChatStub()
    stub.answers = [answer]
    yield {"model": "stub", "base_url": stub.url, "api_key_env": None}
    stub.shutdown()
    stub.server_close()


def test_five_iterations(
    ray_cluster, make_config, learner_results, check_versions, endpoint
):
    pytest.importorskip("vita", reason="needs the VitaBench package")
    config = make_config(
        engine={
            "dtype": "float32",
            "max_model_len": 4096,
            "max_num_seqs": 16,
            "kv_cache_memory_bytes": 256 << 20,
            "block_size": 32,
            "enforce_eager": True,
        },
        max_response_tokens=64,
        episodes_per_update=8,
        num_concurrent_episodes=8,
    ).environment(
        "vita",
        env_config={
            "domains": ["delivery", "instore"],
            "user": endpoint,
            "judge": endpoint,
            "max_turns": 12,
        },
    )
    algorithm = config.build_algo()
    try:
        results = [algorithm.train() for _ in range(5)]
    finally:
        algorithm.stop()
    check_versions([learner_results(result) for result in results])
    runners = results[-1]["env_runners"]
    assert runners["num_episodes_lifetime"] >= 40
    assert {"success_rate/delivery", "success_rate/instore"} & set(runners)
    success = [result["env_runners"]["success_rate"] for result in results]
    assert any(0 < rate < 1 for rate in success), success
    # Every unreadable verdict is a failure of the environment, and no other is.
    assert runners["num_env_failures"] > 0
    assert runners["user_failures_lifetime"] == runners["judge_failures_lifetime"] == 0
    assert runners["judge_calls_lifetime"] >= 40
