"""Which dialogues loggers get, and which tokens a message has."""

import datetime
import decimal
import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
from pyarrow.fs import LocalFileSystem
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_llm_async.batch import columns
from rllib_llm_async.monitoring.dialogues import (
    FILE_NAME,
    DialogueRecord,
    append_jsonl,
    newest_dialogues,
    render_text,
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


def played(messages):
    """An episode of one turn, the last that an assistant has in ``messages``."""
    episode = SingleAgentEpisode(len_lookback_buffer=0)
    episode.custom_data[columns.EPISODE_MESSAGES] = messages
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
    return episode


def test_a_greeting_that_nobody_sampled_has_no_tokens():
    episode = played(
        [
            {"role": "assistant", "content": "how can i help?"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello"},
        ]
    )
    record = DialogueRecord.of(episode, outcome("a", True), str)
    greeting, _, said = record.messages
    assert "tokens" not in greeting and said["tokens"] == ["[7]"]
    json.dumps(record.messages)


CYCLE = {}
CYCLE["self"] = CYCLE
CALL = {"id": "a", "function": {"name": "find"}}
DAY = datetime.date(2025, 1, 2)


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ({"booked": DAY, "price": decimal.Decimal("9.99")}, '"price": "9.99"'),
        (
            [{"type": "text", "text": "on two"}, {"type": "text", "text": " lines"}],
            "on two lines",
        ),
        ({DAY: 1}, "2025, 1, 2"),
        (CYCLE, "self"),
        ({"ids": {1}}, "{1}"),
        (np.arange(2), "[0 1]"),
        (3.5, "3.5"),
        (0, "0"),
        ("half \ud83d", "half ?"),
        # In what ends an episode: nobody reads it.
        ([{"type": "image_url", "image_url": {"url": "x.png"}}], "x.png"),
    ],
)
def test_whatever_an_environment_says_is_a_line_and_text(content, shown):
    said = {"role": "tool", "content": content, "meta": content}
    greeting = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    episode = played([greeting, said])
    record = DialogueRecord.of(episode, outcome("a", True), str)
    dialogue = json.loads(json.dumps(asdict(record)))
    assert dialogue["messages"][0]["content"] is None
    assert isinstance(dialogue["messages"][1]["content"], str)
    text = render_text(dialogue)
    assert shown in text and "find()" in text
    text.encode()


def test_lines_of_before_whose_content_is_no_text_are_shown():
    said = {"role": "tool", "content": {"status": "open"}}
    record = DialogueRecord.of(
        played([{"role": "assistant", "content": "a"}]), outcome("a", True), str
    )
    text = render_text({**asdict(record), "messages": [said]})
    assert '     tool | {"status": "open"}' in text
