"""A server shows the exported agent the prompts that it was trained on."""

import copy
from functools import cache

import pytest
from transformers import AutoTokenizer

from rllib_llm_async.chat import ChatFormat
from rllib_llm_async.models.small_agent import small_agent_dir
from tests.chat.templates import TEMPLATES
from tests.chat.test_templates import POLICY, TOOLS, WORKING, calling
from tests.chat.vllm_server import served_ids

pytestmark = pytest.mark.thorough

GREETING = {"role": "assistant", "content": "How can I help?"}
THOUGHT = "Is the order theirs?\nIt is."
BOTH = {**calling("cancel"), "content": "One moment."}
#: Five turns of the agent, each with what it is answered.
TURNS = [
    (calling("find"), ['{"state": "open", "note": "caf\u00e9"}']),
    ({"role": "assistant", "content": "It is open. Shall I?"}, "Yes, and order 18."),
    (BOTH, ["done"]),
    (calling("find"), [""]),
    ({"role": "assistant", "content": "Both are cancelled."}, "Thanks <b>all</b>!"),
]
TWO_CALLS = [(calling("find", "cancel"), ["open", "done"]), *TURNS]
OPENINGS = {
    "question": POLICY,
    "greeting": [POLICY[0], GREETING, POLICY[1]],
    "ticket": POLICY[:1],
    "no policy": POLICY[1:],
}
#: Refuse a second call in a turn; vLLM speaks to gpt-oss by its own code.
REFUSE_TWO = {"llama3_1", "llama3_2"}
#: What an agent then leaves unthought is a line break and another one, of which a
#: tokenizer makes one token where both come at once.
PROMPT_OPENS_A_THOUGHT = {"qwen3_5_think", "qwen3_6", "qwen3_8"}
SERVED = sorted(WORKING.keys() - {"gptoss"})


#: Writes what is said beside a call behind it, where its parser does not look.
SAYS_NOTHING_BESIDE_CALLS = {"gemma4", "gemma4_v5"}


@pytest.fixture(scope="module")
def make_format(make_tokenizer):
    @cache
    def make(name, **kwargs):
        if name == "small_agent":
            return ChatFormat(AutoTokenizer.from_pretrained(small_agent_dir()), kwargs)
        if name not in TEMPLATES:
            pytest.skip(f"trl ships no template {name}")
        return ChatFormat(make_tokenizer(TEMPLATES[name]), kwargs)

    return make


def played(chat_format, opening, turns, thought=""):
    """Before each turn: the messages a client has, and the ids in training."""
    messages = list(opening)
    ids = chat_format.start(messages, TOOLS)
    for said, answers in turns:
        yield list(messages), list(ids)
        if thought:
            said = {**said, "reasoning": thought}
        turn = chat_format.assistant_turn(said)
        read = chat_format.parse(turn, TOOLS, prompt=ids)
        calls = read.get("tool_calls", [])
        if isinstance(answers, str):
            answered = [{"role": "user", "content": answers}]
        else:
            answered = [
                {"role": "tool", "tool_call_id": call["id"], "content": answer}
                for call, answer in zip(calls, answers, strict=True)
            ]
        ids += turn + chat_format.extend(answered, last_turn=turn, said=read)
        # As vLLM's parsers give it back, line breaks included.
        thoughts = {"reasoning": f"\n{thought}\n"} if thought else {}
        messages += [{**read, **thoughts}, *answered]
    yield messages, ids


def turns_for(name):
    turns = TURNS if name in REFUSE_TWO else TWO_CALLS
    if name in SAYS_NOTHING_BESIDE_CALLS:
        return [(said, answers) for said, answers in turns if said != BOTH]
    return turns


def assert_served_as_trained(chat_format, opening, turns, thought=""):
    tokenizer, template = chat_format.tokenizer, chat_format.served_template().text
    for messages, ids in played(chat_format, opening, turns, thought):
        served = served_ids(tokenizer, template, messages, TOOLS)
        assert tokenizer.decode(served) == tokenizer.decode(ids)
        assert served == ids


@pytest.mark.parametrize("name", ["small_agent", *SERVED])
def test_a_dialogue_with_tools(make_format, name):
    chat_format = make_format(name)
    thought = THOUGHT if name in PROMPT_OPENS_A_THOUGHT else ""
    for opening in OPENINGS.values():
        assert_served_as_trained(chat_format, opening, turns_for(name), thought)


#: With variables of theirs, by which prompts open a thought, or close an empty one.
THINKING = [
    ("qwen3", {}),
    ("qwen3_5_think", {}),
    ("qwen3_5_nothink", {"enable_thinking": True}),
    ("qwen3_6", {}),
    ("qwen3_8", {}),
    ("glm4moe", {}),
    ("nemotron_3_nano", {}),
    ("nemotron_3_ultra", {}),
    ("deepseek_v31", {"thinking": True}),
    ("deepseek_r1_distill", {}),
]


@pytest.mark.parametrize("name, variables", THINKING)
def test_thoughts_stay_where_they_were_thought(make_format, name, variables):
    chat_format = make_format(name, **variables)
    dialogue = chat_format, POLICY, TWO_CALLS
    assert_served_as_trained(*dialogue, THOUGHT)
    *_, (_, ids) = played(*dialogue, THOUGHT)
    assert chat_format.tokenizer.decode(ids).count(THOUGHT) == len(TWO_CALLS)


@pytest.mark.parametrize(
    "name, variables",
    [
        ("qwen3", {"enable_thinking": False}),
        ("qwen3_5_think", {"enable_thinking": False}),
        ("qwen3_5_nothink", {}),
        ("qwen3_6", {"enable_thinking": False}),
        ("glm4moe", {"enable_thinking": False}),
        ("nemotron_3_nano", {"enable_thinking": False}),
        ("deepseek_v31", {"thinking": False}),
    ],
)
def test_without_thinking_the_server_needs_no_variable(make_format, name, variables):
    """And every earlier turn has its empty thought, which the published ones drop."""
    chat_format = make_format(name, **variables)
    assert_served_as_trained(chat_format, OPENINGS["greeting"], TWO_CALLS)


def test_the_published_template_of_qwen3_shows_earlier_turns_otherwise(make_format):
    chat_format = make_format("qwen3", enable_thinking=False)
    tokenizer = chat_format.tokenizer
    *_, (messages, ids) = played(chat_format, POLICY, TURNS)
    published = served_ids(
        tokenizer, TEMPLATES["qwen3"], messages, TOOLS, enable_thinking=False
    )
    # Of each of five turns: <think>, two line breaks, </think>, two line breaks.
    assert len(ids) - len(published) == 5 * 4


def test_a_request_sets_variables_of_its_own(make_format):
    chat_format = make_format("qwen3", enable_thinking=False)
    template = chat_format.served_template().text
    tokenizer = chat_format.tokenizer
    thinking = make_format("qwen3")
    for messages, ids in played(thinking, POLICY, TURNS, thought=THOUGHT):
        served = served_ids(tokenizer, template, messages, TOOLS, enable_thinking=True)
        assert served == ids


@pytest.mark.parametrize("name", ["small_agent", "qwen2_5", "lfm2_v2"])
def test_a_template_that_shows_dialogues_as_trained_stays(make_format, name):
    chat_format = make_format(name)
    served = chat_format.served_template()
    assert served.text == chat_format.tokenizer.chat_template


@pytest.mark.parametrize("name", SERVED)
def test_an_exported_agent_is_trained_on_as_before(make_format, name):
    """Its template is taken for what it is, and exported again as it is."""
    chat_format = make_format(name)
    tokenizer = copy.copy(chat_format.tokenizer)
    tokenizer.chat_template = chat_format.served_template().text
    again = ChatFormat(tokenizer)
    turns = turns_for(name)
    for opening in OPENINGS.values():
        pairs = zip(
            played(chat_format, opening, turns),
            played(again, opening, turns),
            strict=True,
        )
        for (_, before), (_, after) in pairs:
            assert tokenizer.decode(after) == tokenizer.decode(before)
    assert set(again.stop_token_ids) == set(chat_format.stop_token_ids)
    assert again.served_template().text == tokenizer.chat_template


@pytest.mark.parametrize("name", ["small_agent", *SERVED])
def test_what_cannot_be_served_as_trained_is_said(make_format, name):
    served = make_format(name).served_template()
    refused = ["several calls in a turn"] if name in REFUSE_TWO else []
    assert (served.differences, served.refused) == (refused, [])


@pytest.mark.parametrize("line_break", ["", "\\n"])
@pytest.mark.parametrize(
    "prompt", ["<think>\\n\\n</think>\\n\\n", "<think>\\n", "\\n", " "]
)
def test_a_prompt_that_is_not_how_turns_are_shown(line_break, prompt):
    """Of two kinds: it says more, and what both say ends with other whitespace."""
    tokenizer = AutoTokenizer.from_pretrained(small_agent_dir())
    tokenizer.chat_template = (
        "{%- for m in messages -%}{{ '<|im_start|>' ~ m.role ~ '"
        + line_break
        + "' ~ (m.content or '') ~ '<|im_end|>' }}{% endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant"
        + prompt
        + "' }}{%- endif -%}"
    )
    chat_format = ChatFormat(tokenizer)
    thought = THOUGHT if prompt == "<think>\\n" else ""
    assert_served_as_trained(chat_format, OPENINGS["greeting"], TURNS, thought)
    whole = chat_format.start([*POLICY, GREETING, POLICY[1]], [])
    opened = chat_format.start(POLICY, [])
    said = chat_format.assistant_turn(GREETING)
    assert whole[: len(opened) + len(said)] == opened + said
