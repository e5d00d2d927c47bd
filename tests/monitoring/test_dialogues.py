"""Dialogues as text, as a page and as lines of a file."""

import json
import math
from html.parser import HTMLParser

from pyarrow.fs import LocalFileSystem

from rllib_llm_async.monitoring.dialogues import (
    Piece,
    append_jsonl,
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
