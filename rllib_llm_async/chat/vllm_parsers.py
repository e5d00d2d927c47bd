"""vLLM's tool and reasoning parsers, by vLLM's names.

Names come from the source of vLLM's registries: importing it takes seconds, which a
check of settings should not.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rllib_llm_async.envs.agent_env import ToolSchema

logger = logging.getLogger(__name__)

#: Parsers are kept for so many different lists of tools.
_MAX_PARSERS = 64


@functools.cache
def vllm_parser_names(registry: str) -> tuple[str, ...]:
    """What vLLM registers; empty where it is not installed.

    Args:
        registry: "tool_parsers" or "reasoning".
    """
    spec = importlib.util.find_spec("vllm")
    for folder in spec.submodule_search_locations or () if spec else ():
        source = (Path(folder) / registry / "__init__.py").read_text()
        for node in ast.parse(source).body:
            if not isinstance(node, ast.Assign):
                continue
            (target,) = node.targets
            if isinstance(target, ast.Name) and target.id.endswith("_TO_REGISTER"):
                return tuple(ast.literal_eval(node.value))
    return ()


class VLLMToolParser:
    """Reads whole turns with a tool parser of vLLM's.

    vLLM is imported with the first turn.

    Args:
        name: vLLM's name of the parser.
        tokenizer: Of the model.
    """

    def __init__(self, name: str, tokenizer: Any) -> None:
        self._name = name
        self._tokenizer = tokenizer
        self._parsers: dict[str, Any] = {}

    def __call__(
        self, text: str, tools: Sequence[ToolSchema]
    ) -> tuple[str, list[tuple[str, str]]]:
        """What is said aloud, and the calls by name and arguments.

        No calls come from text on which the parser itself fails.

        Args:
            text: A turn without thoughts.
            tools: OpenAI schemas; XML formats take the types of arguments from them.

        Raises:
            ValueError: If the parser cannot be had for this tokenizer.
        """
        parser, request = self._parser_of(tools)
        try:
            found = parser.extract_tool_calls(text, request)
        except Exception:  # whatever a model writes must not end the run
            logger.warning("tool parser %s failed on a turn", self._name, exc_info=True)
            return text, []
        if not found.tools_called:
            return text, []
        calls = [(c.function.name, c.function.arguments) for c in found.tool_calls]
        return found.content or "", calls

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_parsers": {}}
        state.pop("_cached_tokenizer", None)
        return state

    @functools.cached_property
    def _cached_tokenizer(self) -> Any:
        return _with_cached_vocabulary(self._tokenizer)

    def _parser_of(self, tools: Sequence[ToolSchema]) -> Any:
        key = json.dumps(tools, default=str)
        if key not in self._parsers:
            if len(self._parsers) >= _MAX_PARSERS:
                self._parsers.clear()
            self._parsers[key] = self._make(list(tools))
        return self._parsers[key]

    def _make(self, tools: list[ToolSchema]) -> Any:
        from vllm.entrypoints.openai.chat_completion.protocol import (
            ChatCompletionRequest,
        )
        from vllm.tool_parsers import ToolParserManager

        try:
            request = ChatCompletionRequest(messages=[], model="", tools=tools or None)
        except ValueError as error:
            logger.warning("tool schemas that vLLM does not take: %s", error)
            request = ChatCompletionRequest(messages=[], model="")
        cls = ToolParserManager.get_tool_parser(self._name)
        try:
            parser = cls(self._cached_tokenizer, request.tools)
        except Exception as error:
            raise ValueError(
                f"tool_parser: {self._name} does not go with this model's tokenizer "
                f"({error})"
            ) from error
        # Thoughts have been taken out; what looks like one is part of an argument.
        if hasattr(parser, "skip_reasoning_parsing"):
            parser.skip_reasoning_parsing = True
        return parser, request


def check_reasoning_parser_name(name: str) -> None:
    """Raises a ValueError that lists the valid names; takes any without vLLM."""
    names = vllm_parser_names("reasoning")
    if names and name not in names:
        raise ValueError(
            f"reasoning_parser: got {name!r}, must be null or one of auto, "
            f"{', '.join(sorted(names))}"
        )


def make_reasoning_parser(name: str, tokenizer: Any) -> Any:
    """A reasoning parser of vLLM's.

    Raises:
        ValueError: For an unknown one, or one that does not go with the tokenizer.
    """
    check_reasoning_parser_name(name)
    from vllm.reasoning import ReasoningParserManager

    cls = ReasoningParserManager.get_reasoning_parser(name)
    try:
        return cls(_with_cached_vocabulary(tokenizer))
    except Exception as error:
        raise ValueError(
            f"reasoning_parser: {name} does not go with this model's tokenizer "
            f"({error})"
        ) from error


def _with_cached_vocabulary(tokenizer: Any) -> Any:
    # Building the mapping of a large vocabulary takes 0.1 s, for every parser.
    from vllm.tokenizers.hf import get_cached_tokenizer

    return get_cached_tokenizer(tokenizer)
