"""What the fuzzer calls: from any bytes to a property that holds for them."""

from __future__ import annotations

import json
import pickle
import re
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np

import rllib_llm_async
from rllib_llm_async import PPOEWMAAsyncConfig
from rllib_llm_async.chat import ChatFormat
from rllib_llm_async.envs.mini.mixture import MiniMixtureSuite
from rllib_llm_async.envs.tool_calls import encodable
from rllib_llm_async.report import page
from rllib_llm_async.settings.saved import saved_settings
from tests.chat.templates import TEMPLATES
from tests.chat.tokenizers import qwen_bpe, tokenizer_maker
from tests.fuzz import properties


class Target(NamedTuple):
    """``run`` takes any bytes; ``seeds`` are inputs of the right shape."""

    run: Callable[[bytes], object]
    seeds: list[bytes]


#: Templates whose calls are read by different parsers.
_FAMILIES = (
    "qwen3",
    "gptoss",
    "qwen3_8",
    "glm4moe",
    "mistral",
    "llama3_1",
    "deepseekv3",
    "deepseek_v31",
    "gemma4_v5",
    "lfm2_v2",
    "gemma3",
)


def _formats() -> list[ChatFormat]:
    make = tokenizer_maker(qwen_bpe())
    return [ChatFormat(make(TEMPLATES[name])) for name in _FAMILIES]


def _own_call(chat_format: ChatFormat) -> str:
    """A call as the model's template writes it."""
    arguments = '{"order": "A1", "times": 2, "by": {"a": [1.5, null]}}'
    call = {"id": "call_0", "type": "function"}
    call["function"] = {"name": "find", "arguments": arguments}
    turn = {"role": "assistant", "content": "one moment", "tool_calls": [call]}
    return chat_format.tokenizer.decode(chat_format.assistant_turn(turn))


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def tool_calls() -> Target:
    """A model's turn is read and its calls are carried out; byte 0 is the family."""
    formats, suite = _formats(), MiniMixtureSuite()

    def run(data: bytes) -> None:
        family = data[0] % len(formats) if data else 0
        message = properties.turn_is_read(formats[family], _text(data[1:]))
        properties.step_is_answered(suite, message)

    return Target(
        run, [bytes([i]) + _own_call(f).encode() for i, f in enumerate(formats)]
    )


def chat_format() -> Target:
    """What the system, a user and a tool say stays text; byte 0 is the family."""
    formats = _formats()

    def run(data: bytes) -> None:
        family = data[0] % len(formats) if data else 0
        texts = encodable(_text(data[1:])).split("\0", 2)
        properties.no_turn_is_forged(formats[family], (texts * 3)[:3])

    return Target(
        run, [bytes([i]) + _own_call(f).encode() for i, f in enumerate(formats)]
    )


def yaml() -> Target:
    """A tuned YAML is an experiment or refused."""
    files = Path(rllib_llm_async.__file__).with_name("tuned_examples").glob("*.yaml")
    return Target(
        lambda data: properties.yaml_is_read_or_refused(_text(data)),
        [re.sub(rb"(?m)^\s*#.*\n", b"", file.read_bytes()) for file in files],
    )


def endpoint() -> Target:
    """An endpoint's answer is a message or refused."""
    call = {"id": "c", "function": {"name": "f", "arguments": "{}"}}
    answers = [
        {"choices": [{"message": {"content": "<think>a</think> b"}}]},
        {
            "choices": [{"message": {"content": None, "tool_calls": [call]}}],
            "usage": {},
        },
    ]
    return Target(
        lambda data: properties.answer_is_read_or_refused(_text(data)),
        [json.dumps(answer).encode() for answer in answers],
    )


def checkpoint() -> Target:
    """Weights and what a checkpoint says of itself, which begins with a brace."""
    folder = Path(tempfile.mkdtemp())
    metadata = folder / "learner_group" / "learner" / "metadata.json"
    weights = metadata.with_name("rl_module") / "default_policy" / "module_state.pkl"
    weights.parent.mkdir(parents=True)

    def run(data: bytes) -> None:
        if data.startswith(b"{"):
            metadata.write_bytes(data)
            properties.metadata_is_read_or_refused(folder)
        else:
            weights.write_bytes(data)
            properties.weights_are_read_or_refused(weights)

    arrays = {"a": np.ones((2, 3), np.float32), "b": np.ones((3, 2), np.float32).T[:1]}
    said = saved_settings(PPOEWMAAsyncConfig().environment("mini_tau2"))
    said |= {"policy_version": 1, "settings": {"lr": 1e-3, "engine": {"dtype": "x"}}}
    return Target(
        run,
        [
            *(pickle.dumps(arrays, protocol) for protocol in (2, 4, 5)),
            pickle.dumps(OrderedDict(arrays)),
            json.dumps(said).encode(),
        ],
    )


def results() -> Target:
    """A report of any lines of results; dialogues stand behind a NUL."""
    folder = Path(tempfile.mkdtemp()) / "experiment" / "trial"
    folder.mkdir(parents=True)

    def run(data: bytes) -> None:
        rows, _, dialogues = data.partition(b"\0")
        (folder / "result.json").write_bytes(rows)
        (folder / "dialogues.jsonl").write_bytes(dialogues)
        # 5 MB that are the same for every input.
        with mock.patch.object(page, "get_plotlyjs", lambda: ""):
            properties.results_are_shown(folder)

    call = {"function": {"name": "f", "arguments": "<img src=x onerror=alert(1)>"}}
    message = {"role": "assistant", "content": "<script>", "tool_calls": [call]}
    message |= {"tokens": ["a", "<b>"], "versions": [0, 1], "logp": [-0.1, -2.0]}
    dialogue = {"task": "t", "domain": "d", "success": False, "reward": 0.0}
    dialogue |= {"reward_breakdown": {"c": 1}, "reason": "", "policy_version": 1}
    dialogue |= {"messages": [message], "training_iteration": 1}
    row = {"training_iteration": 1, "time_total_s": 2.0, "config": {"lr": 0.1}}
    row["learners"] = {"default_policy": {"train_infer_mask": 0.9, "staleness_mean": 1}}
    row["env_runners"] = {"success_rate": 0.5, "success_rate/airline": 0.5}
    return Target(run, [b"\0".join(json.dumps(x).encode() for x in (row, dialogue))])


TARGETS: dict[str, Callable[[], Target]] = {
    target.__name__: target
    for target in (tool_calls, chat_format, yaml, checkpoint, endpoint, results)
}
