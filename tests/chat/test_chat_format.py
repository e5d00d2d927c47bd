"""Chat messages to token ids and back, with the bundled tokenizer."""

import copy
import json

import pytest

from rllib_llm_async.chat import ChatFormat
from rllib_llm_async.envs.mini.demonstrations import demonstrate
from rllib_llm_async.envs.mini_tau2 import MiniTau2Suite
from rllib_llm_async.models.small_agent import small_agent_dir


@pytest.fixture(scope="module")
def chat_format():
    return ChatFormat.from_pretrained(small_agent_dir())


@pytest.fixture(scope="module")
def dialogues():
    suite = MiniTau2Suite(["airline"])
    return [demonstrate(suite, task) for task in suite.tasks("train")[:30]]


def test_turn_by_turn_equals_the_template_on_the_whole_dialogue(chat_format, dialogues):
    for dialogue in dialogues:
        messages = dialogue.messages
        said = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        ids = chat_format.start(messages[: said[0]], dialogue.tools)
        for turn, index in enumerate(said):
            generated = chat_format.assistant_turn(messages[index])
            ids += generated
            if turn + 1 < len(said):
                ids += chat_format.extend(
                    messages[index + 1 : said[turn + 1]], last_turn=generated
                )
        whole = chat_format.tokenizer.apply_chat_template(
            messages[: said[-1] + 1], tools=dialogue.tools, tokenize=False
        )
        assert chat_format.tokenizer.decode(ids) == whole.rstrip("\n")


def test_what_a_model_says_is_parsed_to_the_message(chat_format, dialogues):
    for dialogue in dialogues:
        for message in dialogue.messages:
            if message["role"] == "assistant":
                parsed = chat_format.parse(chat_format.assistant_turn(message))
                assert parsed == message


def test_several_calls_and_text_before_them(chat_format):
    call = {"name": "get_res", "arguments": json.dumps({"id": "r100"})}
    message = {
        "role": "assistant",
        "content": "one moment.",
        "tool_calls": [
            {"id": f"call_{i}", "type": "function", "function": call} for i in (0, 1)
        ],
    }
    assert chat_format.parse(chat_format.assistant_turn(message)) == message


@pytest.mark.parametrize(
    "raw", ["<tool_call>\n{oops}\n</tool_call>", '<tool_call>{"name": "cancel"}', "[1]"]
)
def test_a_malformed_call_keeps_its_text(chat_format, raw):
    parsed = chat_format.parse(chat_format.tokenizer(raw)["input_ids"])
    if raw.startswith("<tool_call>"):
        (call,) = parsed["tool_calls"]
        assert call["function"]["name"] == ""
        assert call["function"]["arguments"] in raw
    else:
        assert parsed == {"role": "assistant", "content": raw}


def test_a_turn_that_was_cut_is_ended_first(chat_format):
    cut = chat_format.tokenizer("what is the")["input_ids"]
    answer = [{"role": "user", "content": "yes."}]
    extended = chat_format.extend(answer, last_turn=cut)
    assert extended[0] == chat_format.eos_token_id
    whole = chat_format.extend(answer, last_turn=[*cut, chat_format.eos_token_id])
    assert extended[1:] == whole


def test_tools_are_shown_without_a_system_message(chat_format, dialogues):
    prompt = chat_format.start([{"role": "user", "content": "hi"}], dialogues[0].tools)
    assert "get_res(id)" in chat_format.tokenizer.decode(prompt)


@pytest.mark.parametrize(
    "text, content",
    [
        ("<think>\nyes or no?\n</think>\n\nhello", "hello"),
        ("yes or no?</think>hello", "hello"),  # the prompt had opened it
        ("<think>yes or", ""),
    ],
)
def test_thoughts_are_not_said(chat_format, text, content):
    parsed = chat_format.parse(chat_format.tokenizer(text)["input_ids"])
    assert parsed == {"role": "assistant", "content": content}


def test_variables_reach_the_template(chat_format):
    tokenizer = copy.deepcopy(chat_format.tokenizer)
    tokenizer.chat_template += (
        "{%- if add_generation_prompt and enable_thinking is false -%}"
        "<think></think>{%- endif -%}"
    )
    quiet = ChatFormat(tokenizer, {"enable_thinking": False})
    messages = [{"role": "user", "content": "hi"}]
    turn = [chat_format.eos_token_id]
    for ids in (quiet.start(messages, []), quiet.extend(messages, last_turn=turn)):
        assert tokenizer.decode(ids).endswith("<think></think>")
    assert "think" not in tokenizer.decode(ChatFormat(tokenizer).start(messages, []))
