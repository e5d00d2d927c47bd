"""What holds for any input, whoever wrote it; `hypothesis` and the fuzzer both try.

Each function takes hostile data and raises an AssertionError if a promise of
docs/security.md does not hold; any other exception is one that nobody has foreseen.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rllib_llm_async.chat import ChatFormat
from rllib_llm_async.cli.array_pickle import read_arrays
from rllib_llm_async.cli.checkpoint import open_checkpoint
from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.cli.experiment_file import check_setting, read_experiments
from rllib_llm_async.cli.report import make_page
from rllib_llm_async.cli.stop import check_stop
from rllib_llm_async.cli.storage import check_storage
from rllib_llm_async.cli.sweep import tune_config
from rllib_llm_async.envs.agent_env import Message, TaskSuite, is_reward
from rllib_llm_async.envs.chat_endpoint import read_answer
from rllib_llm_async.envs.tool_calls import parse_call

#: Two tools whose arguments have types, for formats that take them from there.
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name}s an order",
            "parameters": {
                "type": "object",
                "properties": {
                    argument: {"type": json_type, "description": argument}
                    for argument, json_type in (
                        ("order", "string"),
                        ("times", "integer"),
                        ("by", "object"),
                    )
                },
                "required": ["order"],
            },
        },
    }
    for name in ("find", "cancel")
]


def turn_is_read(chat_format: ChatFormat, text: str) -> Message:
    """A turn becomes a message that can be kept, sent on and answered."""
    ids = chat_format.tokenizer(text, add_special_tokens=False)["input_ids"]
    message = chat_format.parse(ids, TOOLS)
    assert message["role"] == "assistant"
    assert isinstance(message["content"], str | None)
    json.dumps(message)
    calls = message.get("tool_calls", [])
    for call in calls:
        assert isinstance(call["function"]["name"], str)
        assert isinstance(call["function"]["arguments"], str)
        name, arguments = parse_call(call)
        name.encode()
        assert isinstance(arguments, dict | None)
    assert len({call["id"] for call in calls}) == len(calls)
    answers = [
        {"role": "tool", "tool_call_id": call["id"], "content": "x"} for call in calls
    ] or [{"role": "user", "content": "x"}]
    chat_format.extend(answers, last_turn=ids, said=message)
    return message


def no_turn_is_forged(chat_format: ChatFormat, texts: Sequence[str]) -> None:
    """Text in a message, a call's id or a result adds and removes no control token."""

    control_ids = set(chat_format.tokenizer.added_tokens_decoder)

    def control(*said: str) -> Counter[int]:
        first, second, third = said
        ids = chat_format.start(
            [
                {"role": "system", "content": f"s{first}s"},
                {"role": "user", "content": f"u{second}u"},
            ],
            TOOLS,
        )
        call = {"id": "call_0", "type": "function"}
        call["function"] = {"name": "find", "arguments": "{}"}
        message = {"role": "assistant", "content": "", "tool_calls": [call]}
        turn = chat_format.assistant_turn(message)
        result = {"role": "tool", "tool_call_id": "call_0", "content": f"t{third}t"}
        ids += chat_format.extend([result], last_turn=turn, said=message)
        return Counter(token for token in ids if token in control_ids)

    assert control(*texts) == control("x", "x", "x")


def step_is_answered(suite: TaskSuite, message: Message) -> None:
    """A bundled environment answers whatever an agent says or calls."""
    env = suite.make()
    env.reset_now(suite.tasks("test")[0])
    step = env.step_now(message)
    for answer in step.messages:
        answer["content"].encode()
        json.dumps(answer)


def yaml_is_read_or_refused(text: str) -> None:
    """An experiment file is an experiment, or refused in one line."""
    try:
        experiments = read_experiments(Path("f.yaml"), text)
        for experiment in experiments:
            check_stop(experiment.stop)
            tune_config(experiment)
            check_storage("results", experiment.name)
            for key, value in experiment.config.items():
                check_setting(key, value)
    except InputError as error:
        assert "\n" not in error.message and error.exit_code == 2


def answer_is_read_or_refused(body: str) -> None:
    """An endpoint's answer is a message that can be kept and sent on, or refused."""
    try:
        answer = read_answer(body)
        message = answer.whole()
    except ValueError:
        return
    json.dumps(message, ensure_ascii=False).encode()
    assert message["content"] is None or isinstance(message["content"], str)
    for call in message.get("tool_calls", ()):
        parse_call(call)
    assert is_reward(answer.num_prompt_tokens + answer.num_completion_tokens)


def weights_are_read_or_refused(path: Path) -> None:
    """A checkpoint's weights are arrays of numbers, or refused by file name."""
    try:
        arrays = read_arrays(path)
    except ValueError as error:
        assert str(path) in str(error)
        return
    for name, array in arrays.items():
        assert isinstance(name, str) and array.dtype.kind in "biuf"


def metadata_is_read_or_refused(path: Path) -> None:
    """What a checkpoint says of itself makes a config, or is refused in one line."""
    try:
        open_checkpoint(path)
    except InputError as error:
        assert "\n" not in error.message and str(path) in error.message


def results_are_shown(directory: Path) -> None:
    """A page of a run's results is inert, or the results are refused in one line."""
    try:
        page, _ = make_page([directory])
    except InputError as error:
        assert "\n" not in error.message and str(directory) in error.message
        return
    page_is_inert(page)


def page_is_inert(page: str) -> None:
    """Nothing that a model, a user or a file of results says became markup."""
    page.encode(errors="replace")
    found = _Markup()
    found.feed(page)
    assert not found.hostile, found.hostile


class _Markup(HTMLParser):
    """Collects what only hostile text could have brought into one of our pages."""

    def __init__(self) -> None:
        super().__init__()
        self.hostile: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        names = {name for name, _ in attrs}
        if (
            tag in ("img", "iframe", "a", "object", "embed", "svg", "link", "base")
            or "src" in names
            or any(name.startswith("on") for name in names)
        ):
            self.hostile.append(f"{tag} {attrs}")
