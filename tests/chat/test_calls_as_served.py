"""Calls are read in training as vLLM's server reads them with the same parser."""

import json

import pytest
from transformers import AutoTokenizer

from rllib_llm_async.chat import ChatFormat
from rllib_llm_async.envs.tool_calls import parse_call
from rllib_llm_async.models.small_agent import small_agent_dir
from tests.fuzz.properties import TOOLS

pytestmark = pytest.mark.thorough

FAMILIES = [
    "qwen3",
    "qwen3_5_think",
    "glm4moe",
    "mistral",
    "llama3_1",
    "deepseekv3",
    "deepseek_v31",
    "gemma4_v5",
    "lfm2_v2",
]


def read_by_vllm(chat_format, text):
    """What a server answers: what is said, and the calls by name and arguments."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers import ToolParserManager

    cls = ToolParserManager.get_tool_parser(chat_format.tool_parser)
    request = ChatCompletionRequest(messages=[], model="", tools=TOOLS)
    parser = cls(chat_format.tokenizer, request.tools)
    if hasattr(parser, "skip_reasoning_parsing"):
        parser.skip_reasoning_parsing = True
    found = parser.extract_tool_calls(text, request)
    calls = [
        (call.function.name, json.loads(call.function.arguments))
        for call in found.tool_calls
    ]
    return (found.content or "").strip(), calls


def read(chat_format, text):
    ids = chat_format._encode(text)
    message = chat_format.parse(ids, TOOLS, prompt=[])
    calls = [parse_call(call) for call in message.get("tool_calls", [])]
    return message["content"] or "", calls


def written(chat_format, *calls):
    """The text of a turn with calls, without what ends it."""
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for number, (name, arguments) in enumerate(calls)
        ],
    }
    ids = chat_format.assistant_turn(message)
    end = chat_format.tokenizer.decode(ids[-1:])
    text = chat_format.tokenizer.decode(ids).removesuffix(end)
    tags = chat_format._parser.thought_tags
    return text.rpartition(tags[1])[2].strip() if tags else text


#: Strings that JSON, XML and Python write otherwise; an object within an object.
HARD = {"order": 'caf\u00e9 "17"\n\\ \U0001f600', "by": {"name": "a", "arguments": {}}}


@pytest.mark.parametrize("name", FAMILIES)
def test_calls_with_text_around_them(make_format, name):
    chat_format = make_format(name)
    find = ("find", {"order": "o17", "times": 3})
    turns = [written(chat_format, find)]
    if name not in ("llama3_1",):  # its template refuses two
        turns.append(written(chat_format, find, ("cancel", {"order": "o18"})))
    for turn in turns:
        for text in (turn, f"One moment.\n{turn}", f"{turn}\nAnything else?"):
            said, calls = read(chat_format, text)
            assert calls[0] == find
            assert (said, calls) == read_by_vllm(chat_format, text)


@pytest.mark.parametrize("name", FAMILIES)
def test_arguments_of_all_kinds(make_format, name):
    chat_format = make_format(name)
    text = written(chat_format, ("find", HARD))
    said, calls = read(chat_format, text)
    assert said == "" and [name for name, _ in calls] in (["find"], [""])
    if calls[0][0]:  # a format that can say it
        assert calls == [("find", HARD)] == read_by_vllm(chat_format, text)[1]


@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "mistral", "deepseekv3"])
def test_json_escapes_are_the_characters_that_they_stand_for(make_format, name):
    chat_format = make_format(name)
    text = written(chat_format, ("find", {"order": "caf\u00e9"}))
    plain = text.replace("\\u00e9", "\u00e9")
    escaped = plain.replace("\u00e9", "\\u00e9")
    assert escaped != plain
    for either in (escaped, plain):
        assert read(chat_format, either)[1] == [("find", {"order": "caf\u00e9"})]


@pytest.mark.parametrize("text", ["use {braces} like {a}", '{"a": 1}', "} and {"])
def test_braces_in_what_is_said_are_no_calls(make_format, text):
    chat_format = make_format("llama3_1")
    said, calls = read(chat_format, f"well: {text}")
    assert (said, calls) == (f"well: {text}", [])


#: Of models with other templates than the bundled agent's, which is Hermes.
OTHERS = [
    '{"name": "f", "parameters": {"a": 1}}',
    '<|python_tag|>{"name": "f", "parameters": {"a": 1}}',
    '<|python_tag|>f.call(a="1")',
    "[f(a=1), g()]",
    '<function=f>{"a": 1}</function>',
    '<invoke name="f"><parameter name="a">1</parameter></invoke>',
    '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]',
    '```json\n{"name": "f", "arguments": {"a": 1}}\n```',
]


@pytest.mark.parametrize("text", OTHERS)
def test_calls_in_another_syntax_are_text_as_for_the_server(text):
    chat_format = ChatFormat(AutoTokenizer.from_pretrained(small_agent_dir()))
    assert read(chat_format, text) == (text, []) == read_by_vllm(chat_format, text)


@pytest.mark.parametrize(
    "inner",
    [
        "<function=f>\n<parameter=a>\n1\n</parameter>\n</function>",
        "f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>",
        '{"name": "f", "parameters": {"a": 1}}',
        '{"function": {"name": "f", "arguments": {"a": 1}}}',
        '[{"name": "f", "arguments": {"a": 1}}]',
        "f(a=1)",
    ],
)
def test_another_syntax_within_its_tags_is_a_malformed_call(inner):
    """It is answered with an error, neither said aloud nor carried out in part."""
    chat_format = ChatFormat(AutoTokenizer.from_pretrained(small_agent_dir()))
    said, calls = read(chat_format, f"<tool_call>\n{inner}\n</tool_call>")
    assert said == "" and [name for name, _ in calls] == [""]
