"""A Learner's configuration, and episodes to feed it without an engine."""

import numpy as np
import pytest
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_llm_async import AsyncDecoupledPPO, AsyncDecoupledPPOConfig
from rllib_llm_async.batch import columns
from rllib_llm_async.env_runners.llm_env_runner import TOKENS_SPACE

#: Adapters of a few layers.
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
SPACES = {DEFAULT_MODULE_ID: (TOKENS_SPACE, TOKENS_SPACE)}


def quick_and_slow(names, quick):
    """Parameters of a test: those that are not among the quick ones are slow."""
    assert {*quick} <= {*names}
    return [
        name if name in quick else pytest.param(name, marks=pytest.mark.slow)
        for name in names
    ]


@pytest.fixture
def make_learner_config():
    def make(num_learners=0, **training):
        config = (
            AsyncDecoupledPPOConfig()
            .environment("mini_tau2", env_config={"domains": ["airline"]})
            .learners(num_learners=num_learners)
            .training(
                **{
                    "old_logprob_source": "snapshot_old",
                    "lr": 1e-3,
                    "episodes_per_update": 8,
                    "group_size": 4,
                    # Episodes are random: a tighter mask may leave none of them.
                    "eps_ti": 1e6,
                    # ... and a weight of up to 1e6 would drown all but a few tokens.
                    "discrepancy_weight": "none",
                    "engine": {"dtype": "float32"},
                    **training,
                }
            )
        )
        config.validate()
        return config

    return make


@pytest.fixture
def make_learner(make_learner_config):
    return lambda **training: make_learner_config(**training).build_learner(
        spaces=SPACES
    )


@pytest.fixture
def make_learner_group(make_learner_config):
    return lambda **training: make_learner_config(**training).build_learner_group(
        spaces=SPACES
    )


@pytest.fixture
def make_episodes():
    return random_episodes


class Publisher:
    """Stands in for a `WeightPublisher`: keeps what a Learner tells it."""

    def __init__(self):
        self.settled, self.published = [], []

    def settle(self, fates):
        self.settled.append(fates)

    def publish(self, version):
        self.published.append(version)

    def finish_reading(self):
        pass

    def close(self):
        pass


def random_episodes(
    rng, version_choices, num_groups=2, group_size=4, max_turn_tokens=12
):
    """Random dialogues; turns of one episode hold tokens of several versions."""
    episodes = []
    for number in range(num_groups * group_size):
        episode = SingleAgentEpisode(len_lookback_buffer=0)
        episode.custom_data[columns.GROUP_ID] = number // group_size
        episode.custom_data[columns.EPISODE_KEY] = 100 + number
        episode.add_env_reset(rng.integers(5, 400, size=rng.integers(3, 20)))
        num_turns = int(rng.integers(1, 4))
        for turn in range(num_turns):
            said = int(rng.integers(1, max_turn_tokens))
            last = turn == num_turns - 1
            episode.add_env_step(
                observation=rng.integers(5, 400, size=0 if last else 4),
                action=rng.integers(5, 400, size=said),
                reward=float(last) * (number % 2),
                terminated=last,
                extra_model_outputs={
                    columns.EPISODE_BEHAVIOR_LOGP: rng.normal(-6, 1, said).astype(
                        np.float32
                    ),
                    columns.EPISODE_VERSIONS: np.sort(
                        rng.choice(version_choices, size=said)
                    ),
                },
            )
        episodes.append(episode)
    return episodes


@pytest.fixture
def algorithm():
    """What the driver does with results and settings, without actors."""
    algorithm = object.__new__(AsyncDecoupledPPO)
    algorithm.config = AsyncDecoupledPPOConfig()
    algorithm.metrics = MetricsLogger()
    return algorithm
