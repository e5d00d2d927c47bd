"""Where an assistant's turn ends, found by what a template puts after one."""

from __future__ import annotations

from typing import NamedTuple

from rllib_llm_async.chat.control_tokens import ControlTokens
from rllib_llm_async.chat.template import (
    ASKED,
    MARKER,
    ChatTemplate,
    call_of,
    common_prefix,
)
from rllib_llm_async.envs.agent_env import Message


class TurnEnd(NamedTuple):
    """The end of a turn of text, or of a turn of calls.

    ``generated`` is the token that a model ends it with, ``in_history`` the one that
    stands there once the dialogue went on: gpt-oss says ``<|return|>``, of which
    ``<|end|>`` is left; GLM says what opens the next message. ``closing`` is what the
    template writes between what is said and the end, mostly nothing.
    """

    generated: str
    in_history: str
    closing: str


def turn_ends(
    template: ChatTemplate, control_tokens: ControlTokens
) -> dict[str, TurnEnd]:
    """The ends of turns of "text" and of "calls".

    There is none of calls where what follows a turn is the same for both.

    Raises:
        ValueError: If the template ends turns with no control token.
    """
    text = _find(template, control_tokens, stand_in(None), ASKED, opens_next=False)
    ends = {"text": text}
    if _calls_matter(template, text):
        opens_next = text.generated not in template.turn(stand_in(None))
        call, result = stand_in([("f", "call_0")]), {"role": "tool", "content": ""}
        result["tool_call_id"] = "call_0"
        ends["calls"] = _find(
            template, control_tokens, call, result, opens_next=opens_next
        )
    return ends


def _calls_matter(template: ChatTemplate, text: TurnEnd) -> bool:
    """Whether a template shows results otherwise after calls than after text."""
    if template.call_style is None:
        return False
    called = [("f", "call_0"), ("g", "call_1")]
    results = [
        {"role": "tool", "content": name, "tool_call_id": call_id}
        for name, call_id in called
    ]
    shown = []
    for turn in (stand_in(None), stand_in(called)):
        try:
            rendered = template.render([ASKED, turn, *results], prompt=True)
        except ValueError:
            return True
        _, end, after = rendered.rpartition(MARKER)[2].partition(text.in_history)
        if not end:
            return True
        shown.append(after)
    return shown[0] != shown[1]


def stand_in(calls: list[tuple[str, str]] | None) -> Message:
    """An assistant's turn of which only the end matters, `MARKER` last.

    Args:
        calls: Names and ids of its calls, None for a turn of text.
    """
    if calls is None:
        return {"role": "assistant", "content": MARKER}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [call_of(name, MARKER, call_id) for name, call_id in calls],
    }


def _find(
    template: ChatTemplate,
    control_tokens: ControlTokens,
    turn: Message,
    answer: Message,
    *,
    opens_next: bool,
) -> TurnEnd:
    last = template.render([ASKED, turn], prompt=False).rpartition(MARKER)[2]
    followed = template.render([ASKED, turn, answer], prompt=True).rpartition(MARKER)[2]
    alone, going_on = control_tokens.split(last), control_tokens.split(followed)
    common = common_prefix(alone, going_on)
    if len(common) > 1 and not opens_next:
        end = common[1::2][-1]
        closing = "".join(common[: len(common) - common[::-1].index(end) - 1])
        return TurnEnd(end, end, closing)
    first = len(alone) if opens_next else 1
    if len(going_on) <= first:
        raise ValueError(
            "chat template: no token of the vocabulary ends an assistant's turn; after "
            f"it comes {followed[:40]!r}"
        )
    in_history = going_on[first]
    generated = alone[1] if len(alone) > 1 and not opens_next else in_history
    return TurnEnd(generated, in_history, "".join(going_on[:first]))
