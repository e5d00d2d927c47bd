"""Where an assistant's turn ends, found by what a template puts after one."""

from __future__ import annotations

import os
from dataclasses import dataclass

from rllib_llm_async.chat.control_tokens import ControlTokens
from rllib_llm_async.chat.template import ASKED, MARKER, ChatTemplate, call_of
from rllib_llm_async.envs.agent_env import Message


@dataclass(frozen=True)
class TurnEnd:
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
    """The ends of turns of "text" and, if the template knows calls, of "calls".

    Raises:
        ValueError: If the template ends turns with no control token.
    """
    text = _find(template, control_tokens, stand_in(None), ASKED, opens_next=False)
    ends = {"text": text}
    if template.call_style is not None:
        opens_next = text.generated not in template.turn(stand_in(None))
        call, result = stand_in([("f", "call_0")]), {"role": "tool", "content": ""}
        result["tool_call_id"] = "call_0"
        ends["calls"] = _find(
            template, control_tokens, call, result, opens_next=opens_next
        )
    return ends


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
    common = os.path.commonprefix([alone, going_on])
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
