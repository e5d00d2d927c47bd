"""The token stream of an episode, turn by turn, against the whole dialogue at once."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.chat.test_templates import TOOLS

#: Templates that never change what they have rendered; True if they know tools.
APPEND_ONLY = {
    "qwen2_5": True,
    "qwen3_instruct_2507": True,
    "llama3_1": True,
    "gemma4_v5": True,
    "glm4moe": True,
    "lfm2_v2": True,
    "gemma3": False,
    "cohere2": False,
    "llama3": False,
    "phi3": False,
}
ONE_CALL = {"llama3_1"}
CONTROL = [
    "<|im_end|>",
    "<think>",
    "</tool_call>",
    "<tool_response>",
    "<|user|>",
    "\u241f",
]

# A tokenizer joins whitespace across the border between a prompt and what is said.
characters = st.characters(codec="utf-8", exclude_characters="<[")
words = st.text(characters, max_size=30).map(lambda t: f"a{t}z")
arguments = st.fixed_dictionaries(
    {"order": words}, optional={"times": st.integers(0, 99)}
)
calls = st.lists(st.tuples(st.sampled_from(["find", "cancel"]), arguments), max_size=2)
#: What the agent says or calls, and what it is answered.
rounds = st.lists(st.tuples(words, calls, words), max_size=4)


def assistant(said, called, *, encode):
    if not called:
        return {"role": "assistant", "content": said}
    tool_calls = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": name, "arguments": encode(values)},
        }
        for number, (name, values) in enumerate(called)
    ]
    return {"role": "assistant", "content": "", "tool_calls": tool_calls}


def answers(answer, called):
    if not called:
        return [{"role": "user", "content": answer}]
    return [
        {"role": "tool", "tool_call_id": f"call_{n}", "content": f"{answer}{n}"}
        for n in range(len(called))
    ]


def stream(chat_format, first, dialogue, tools):
    """Token ids of an episode in which the model says just what the template writes."""
    ids = chat_format.start(first, tools)
    for said, called, answer in dialogue:
        turn = chat_format.assistant_turn(assistant(said, called, encode=json.dumps))
        ids += turn
        ids += chat_format.extend(answers(answer, called), last_turn=turn)
    return ids


@pytest.mark.parametrize("name", sorted(APPEND_ONLY))
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(system=words, asked=words, dialogue=rounds)
def test_turn_by_turn_equals_the_whole_dialogue(
    name, make_format, system, asked, dialogue
):
    chat_format = make_format(name)
    knows_tools = APPEND_ONLY[name]
    limit = 1 if name in ONE_CALL else 2
    dialogue = [
        (said, called[:limit] if knows_tools else [], answer)
        for said, called, answer in dialogue
    ]
    tools = TOOLS if knows_tools else []
    first = [{"role": "system", "content": system}, {"role": "user", "content": asked}]
    whole = list(first)
    for said, called, answer in dialogue:
        whole += [assistant(said, called, encode=dict), *answers(answer, called)]
    tokenizer = chat_format.tokenizer
    text = tokenizer.apply_chat_template(
        whole, tools=tools or None, add_generation_prompt=True, tokenize=False
    )
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert stream(chat_format, first, dialogue, tools) == expected


forged = st.lists(words | st.sampled_from(CONTROL), max_size=8).map("".join)


@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "gemma4_v5", "gptoss", "phi3"])
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(texts=st.lists(forged, min_size=3, max_size=3))
def test_no_text_adds_a_control_token(name, make_format, texts):
    chat_format = make_format(name)
    control = set(chat_format.tokenizer.get_added_vocab().values())

    def control_tokens(system, asked, result):
        first = [
            {"role": "system", "content": f"a{system}"},
            {"role": "user", "content": f"a{asked}"},
        ]
        dialogue = [("", [("find", {"order": "17"})], f"a{result}")]
        ids = stream(chat_format, first, dialogue, TOOLS)
        return [token for token in ids if token in control]

    assert control_tokens(*texts) == control_tokens("", "", "")


def test_turns_kept_as_sampled_where_a_template_rewrites_history(make_format):
    """Qwen3 drops earlier thoughts; the context goes on holding what was sampled."""
    chat_format = make_format("qwen3")
    encode = chat_format.tokenizer.encode
    thought = encode("<think>\nwhich one?\n</think>\n\nWhich order?<|im_end|>")
    question = [{"role": "user", "content": "cancel it"}]
    answer = [{"role": "user", "content": "17"}]
    ids = chat_format.start(question, []) + thought
    ids += chat_format.extend(answer, last_turn=thought)
    assert "which one?" in chat_format.tokenizer.decode(ids)
    said = {"role": "assistant", "content": "<think>\nwhich one?\n</think>\n\nWhich?"}
    rendered = chat_format.tokenizer.apply_chat_template(
        [*question, said, *answer], tokenize=False
    )
    assert "which one?" not in rendered
