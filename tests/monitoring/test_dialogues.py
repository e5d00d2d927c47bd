"""Dialogues as text, as a page and as lines of a file."""

import json
import math
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from rllib_llm_async.monitoring import dialogues as module
from rllib_llm_async.monitoring.dialogues import (
    Piece,
    append_jsonl,
    newest_dialogues,
    pieces,
    render_html,
    render_text,
)

SAID = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"function": {"name": "find", "arguments": '{"id": "<b>"}'}}],
    "tokens": ["<t>", "fi", "nd", "!", "?"],
    "versions": [3, 3, 4, 4, 4],
    "logp": [-0.01, -0.02, -0.03, -2.0, -1.0],
}
DIALOGUE = {
    "task": "airline/7",
    "domain": "airline",
    "success": False,
    "reward": 0.0,
    "reward_breakdown": {"state": True, "policy": False},
    "reason": "max_turns",
    "policy_version": 4,
    "messages": [
        {"role": "user", "content": "hi\n<script>alert(1)</script>"},
        SAID,
        {"role": "tool", "content": "ok"},
    ],
}


def test_certain_tokens_of_a_version_are_one_piece():
    assert list(pieces(SAID)) == [
        Piece("<t>fi", 3, math.exp(-0.02), 2),
        Piece("nd", 4, math.exp(-0.03), 1),
        Piece("!", 4, math.exp(-2.0), 1),
        Piece("?", 4, math.exp(-1.0), 1),
    ]
    assert list(pieces(DIALOGUE["messages"][0])) == []


def test_text():
    assert render_text(DIALOGUE).splitlines() == [
        "airline/7, failure, reward 0, state True, policy False, max_turns, "
        "policy version 4",
        "     user | hi",
        "          | <script>alert(1)</script>",
        'assistant | find({"id": "<b>"})',
        "     tool | ok",
    ]


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_page_shows_words_as_they_are_and_failures_first():
    solved = {**DIALOGUE, "success": True, "task": "airline/1", "training_iteration": 5}
    html = render_html([solved, DIALOGUE], "A & B")
    page = Page(html)
    assert "A & B" in page.text
    assert "<script>alert(1)</script>" in page.text
    assert 'find({"id": "<b>"})' in page.text
    assert not {"script", "b>", "link", "img"} & {tag for tag, _ in page.tags}
    assert page.text.index("airline/7") < page.text.index("airline/1")
    titles = [attrs["title"] for tag, attrs in page.tags if "title" in attrs]
    assert titles[:3] == [
        "version 3, 2 tokens, each p ≥ 0.980",
        "version 4, p 0.970",
        "version 4, p 0.135",
    ]
    assert "iteration 5" in page.text


def test_lines_are_added(tmp_path):
    path = tmp_path / "dialogues.jsonl"
    for number in (1, 2):
        lines = [{"training_iteration": number, **DIALOGUE}] * number
        append_jsonl(LocalFileSystem(), str(path), lines)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["training_iteration"] for row in rows] == [1, 2, 2]
    assert rows[0]["messages"] == DIALOGUE["messages"]


@pytest.mark.parametrize("is_local", [True, False])
def test_a_line_that_was_cut_off_costs_itself_alone(tmp_path, is_local):
    path = tmp_path / "dialogues.jsonl"
    filesystem = (
        LocalFileSystem() if is_local else SubTreeFileSystem("/", LocalFileSystem())
    )
    path.write_text('{"training_iteration": 1}\n{"training_iteration": 2, "messa')
    append_jsonl(filesystem, str(path), [{"training_iteration": 3}])
    first, cut, last = path.read_text().splitlines()
    assert cut.endswith("messa") and json.loads(first) and json.loads(last)
    storage = SimpleNamespace(
        trial_fs_path=str(tmp_path), storage_filesystem=filesystem
    )
    newest = newest_dialogues(SimpleNamespace(storage=storage))
    assert newest == [{"training_iteration": 3}]


def test_what_was_there_survives_a_disk_that_is_full(tmp_path):
    path = tmp_path / "dialogues.jsonl"
    append_jsonl(LocalFileSystem(), str(path), [{"training_iteration": 1}])

    class Full(LocalFileSystem):
        def open_append_stream(self, path):
            raise OSError(28, "No space left on device")

        def open_output_stream(self, path):
            raise AssertionError("that would empty it first")

    with pytest.raises(OSError, match="No space"):
        append_jsonl(Full(), str(path), [{"training_iteration": 2}])
    assert json.loads(path.read_text()) == {"training_iteration": 1}


def test_of_a_long_file_the_end_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "NEWEST_BYTES", 60)
    lines = [{"training_iteration": n, "text": "x"} for n in (1, 2, 3, 4, 4)]
    append_jsonl(LocalFileSystem(), f"{tmp_path}/dialogues.jsonl", lines)
    storage = SimpleNamespace(
        trial_fs_path=str(tmp_path), storage_filesystem=LocalFileSystem()
    )
    newest = newest_dialogues(SimpleNamespace(storage=storage))
    assert newest == lines[-1:]
