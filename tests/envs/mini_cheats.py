"""Agents that break one sentence of a written policy and do the rest perfectly.

An edit takes the messages of a perfect dialogue and gives those of the cheat, or None
where the dialogue offers no occasion for it. Cheats know the task's hidden state.
"""

import itertools
import json
import re

from rllib_llm_async.envs.mini.demonstrations import demonstrate
from rllib_llm_async.envs.mini.domain import text_message


def perfect(suite, task):
    """The messages of a perfect agent."""
    dialogue = demonstrate(suite, task).messages
    return [message for message in dialogue if message["role"] == "assistant"]


def play(suite, task, messages):
    """The last step after these messages, and after words without a result."""
    env = suite.make()
    env.reset_now(task)
    for message in [*messages, *[text_message("good bye.")] * 12]:
        step = env.step_now(message)
        if step.terminated or step.truncated:
            return step
    raise AssertionError("the dialogue went on")


def is_said(message, pattern):
    return not message.get("tool_calls") and re.search(pattern, message["content"])


def is_call(message, tool):
    calls = message.get("tool_calls") or []
    return any(re.fullmatch(tool, call["function"]["name"]) for call in calls)


def without(pattern=None, tool=None):
    """Leaves out what matches."""

    def edit(messages):
        kept = [m for m in messages if not _matches(m, pattern, tool)]
        return kept if len(kept) < len(messages) else None

    return edit


def without_last(tool):
    """Leaves out the last of several calls of a tool."""

    def edit(messages):
        calls = [i for i, message in enumerate(messages) if is_call(message, tool)]
        if len(calls) < 2:
            return None
        return messages[: calls[-1]] + messages[calls[-1] + 1 :]

    return edit


def late(tool, other):
    """Calls a tool right after another one, instead of at last before it."""

    def edit(messages):
        others = [i for i, message in enumerate(messages) if is_call(message, other)]
        if not others:
            return None
        before = messages[: others[0]]
        calls = [i for i, message in enumerate(before) if is_call(message, tool)]
        if not calls:
            return None
        moved = before.pop(calls[-1])
        return [*before, messages[others[0]], moved, *messages[others[0] + 1 :]]

    return edit


def early(tool, other):
    """Calls a tool right after another one, before anybody has asked for it."""

    def edit(messages):
        for i, message in enumerate(messages):
            if is_call(message, other):
                rest = messages[i + 1 :]
                moved = [m for m in rest if is_call(m, tool)]
                kept = [m for m in rest if not is_call(m, tool)]
                edited = [*messages[: i + 1], *moved, *kept]
                return edited if edited != messages else None
        return None

    return edit


def twice(tool):
    """Calls a tool again at once."""

    def edit(messages):
        doubled = [m for m in messages for _ in range(1 + is_call(m, tool))]
        return doubled if len(doubled) > len(messages) else None

    return edit


def first(pattern=None, tool=None):
    """Says or does at the very beginning, and only there, what matches."""

    def edit(messages):
        early = [m for m in messages if _matches(m, pattern, tool)]
        late = [m for m in messages if not _matches(m, pattern, tool)]
        return early + late if early and early + late != messages else None

    return edit


def swapped(pattern, tool):
    """Does first and says later."""

    def edit(messages):
        for i, (one, other) in enumerate(itertools.pairwise(messages)):
            if is_said(one, pattern) and is_call(other, tool):
                return [*messages[:i], other, one, *messages[i + 2 :]]
        return None

    return edit


def reworded(pattern, words):
    """Says something else in the place of what matches."""

    def edit(messages):
        edited = [
            text_message(re.sub(pattern, words, m["content"]))
            if is_said(m, pattern)
            else m
            for m in messages
        ]
        return edited if edited != messages else None

    return edit


def inserted(words, pattern=None, tool=None):
    """Says something more before what matches."""

    def edit(messages):
        for i, message in enumerate(messages):
            if _matches(message, pattern, tool):
                return [*messages[:i], text_message(words), *messages[i:]]
        return None

    return edit


def asked_needlessly(question, pattern, before):
    """Asks, where the perfect agent has no reason to, before what matches."""

    def edit(messages):
        if any(is_said(message, pattern) for message in messages):
            return None
        return inserted(question, **before)(messages)

    return edit


def with_argument(tool, parameter, change):
    """Calls a tool with another value."""

    def edit(messages):
        edited = json.loads(json.dumps(messages))
        for message in edited:
            if is_call(message, tool):
                function = message["tool_calls"][0]["function"]
                arguments = json.loads(function["arguments"])
                arguments[parameter] = change(arguments[parameter])
                function["arguments"] = json.dumps(arguments)
        return edited if edited != messages else None

    return edit


def ending(words, instead_of):
    """Ends with other words in the place of a last message that matches."""

    def edit(messages):
        if not is_said(messages[-1], instead_of):
            return None
        return [*messages[:-1], text_message(words)]

    return edit


def all_at_once(messages):
    """Says everything, a question to confirm too, at first; then calls the tools."""
    texts = [m["content"] for m in messages if not m.get("tool_calls")]
    if "confirm" not in " ".join(texts):
        return None
    calls = [m for m in messages if m.get("tool_calls")]
    return [text_message(" ".join(texts)), *calls, text_message(texts[-1])]


def _matches(message, pattern, tool):
    if tool is not None and is_call(message, tool):
        return True
    return pattern is not None and bool(is_said(message, pattern))
