"""Which dialogues loggers get, and which tokens a message has."""

import json
from types import SimpleNamespace

import numpy as np
from pyarrow.fs import LocalFileSystem
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_llm_async.batch import columns
from rllib_llm_async.monitoring.dialogues import (
    FILE_NAME,
    DialogueRecord,
    append_jsonl,
    newest_dialogues,
)
from tests.algorithms.test_evaluation import outcome


def test_loggers_get_the_dialogues_of_the_last_evaluation(tmp_path):
    filesystem = LocalFileSystem()
    trial = SimpleNamespace(
        storage=SimpleNamespace(
            trial_fs_path=str(tmp_path), storage_filesystem=filesystem
        )
    )
    assert newest_dialogues(trial) == []
    for iteration in (0, 5, 10):
        records = [{"training_iteration": iteration, "task": n} for n in range(2)]
        append_jsonl(filesystem, str(tmp_path / FILE_NAME), records)
    assert {r["training_iteration"] for r in newest_dialogues(trial)} == {10}
    assert len(newest_dialogues(trial)) == 2


def test_a_greeting_that_nobody_sampled_has_no_tokens():
    episode = SingleAgentEpisode(len_lookback_buffer=0)
    episode.custom_data[columns.EPISODE_MESSAGES] = [
        {"role": "assistant", "content": "how can i help?"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
    ]
    episode.add_env_reset(np.arange(2))
    episode.add_env_step(
        observation=np.zeros(0, np.int64),
        action=np.array([7]),
        reward=1.0,
        terminated=True,
        extra_model_outputs={
            columns.EPISODE_BEHAVIOR_LOGP: np.array([-0.5], np.float32),
            columns.EPISODE_VERSIONS: np.array([3]),
        },
    )
    record = DialogueRecord.of(episode, outcome("a", True), str)
    greeting, _, said = record.messages
    assert "tokens" not in greeting and said["tokens"] == ["[7]"]
    json.dumps(record.messages)
