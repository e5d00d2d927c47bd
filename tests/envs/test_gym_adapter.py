"""Agent environments through Gymnasium's and Ray's front doors."""

import json

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

from rllib_llm_async.envs.mini.demonstrations import demonstrate
from rllib_llm_async.envs.mini.mixture import MiniMixtureSuite
from rllib_llm_async.envs.registry import make_suite, register_suite


@pytest.fixture
def env():
    env = gymnasium.make("rllib_llm_async/mini_tau2-v0", domains=["airline"])
    yield env
    env.close()


# Of gymnasium; what earlier tests left to be collected may warn, too.
@pytest.mark.filterwarnings("error::UserWarning")
def test_gymnasium_finds_nothing_wrong(env):
    check_env(env.unwrapped, skip_render_check=True)


def test_a_demonstration_played_turn_by_turn_earns_the_reward(env):
    observation, info = env.reset(seed=3)
    suite = env.unwrapped.suite
    (task,) = [t for t in suite.tasks("train") if t.id == info["task"]]
    dialogue = demonstrate(suite, task)
    assert info["tools"] == dialogue.tools
    seen, terminated = json.loads(observation), False
    for message in [m for m in dialogue.messages if m["role"] == "assistant"]:
        observation, reward, terminated, _, info = env.step(json.dumps(message))
        assert env.observation_space.contains(observation)
        seen += [message, *json.loads(observation)]
    assert terminated and reward == 1.0 and info["success"]
    assert seen == dialogue.messages


def test_the_seed_chooses_the_task(env):
    tasks = [env.reset(seed=seed)[1]["task"] for seed in (1, 1, 2)]
    assert tasks[0] == tasks[1] != tasks[2]


def test_what_is_no_message_is_said_to_the_user(env):
    env.reset(seed=0)
    observation, *_ = env.step("what is the reason?")
    (reply,) = json.loads(observation)
    assert reply["role"] == "user" and "understand" not in reply["content"]


def test_a_suite_of_ones_own_is_known_to_actors_and_to_gymnasium(ray_cluster):
    import ray

    def factory(hard=False):
        return MiniMixtureSuite(["retail" if hard else "airline"])

    register_suite("my_suite", factory)

    @ray.remote
    def domains(**env_config):
        return make_suite("my_suite", env_config).domains

    assert ray.get(domains.remote(hard=True)) == ["retail"]
    env = gymnasium.make("rllib_llm_async/my_suite-v0", split="test")
    assert env.reset(seed=0)[1]["domain"] == "airline"
    env.close()
    with pytest.raises(ValueError, match="registered already"):
        register_suite("my_suite", factory)
