"""Whether a run could speak to its model, said before anything starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rllib_llm_async.chat.chat_format import ChatFormat
from rllib_llm_async.chat.tool_parsers import check_tool_parser_name, needs_vllm
from rllib_llm_async.chat.vllm_parsers import check_reasoning_parser_name

logger = logging.getLogger(__name__)

#: How long a check waits for the hub.
HUB_TIMEOUT_SECONDS = 5.0


def check_chat_format(
    model_path: str,
    template_kwargs: Mapping[str, Any] | None = None,
    tool_parser: str = "auto",
    reasoning_parser: str | None = "auto",
    trust_remote_code: bool = False,
) -> None:
    """Checks a model's chat template and the parsers chosen for it.

    Loads the tokenizer alone; vLLM is imported only to try a parser of vLLM's that was
    chosen by name. Where the tokenizer cannot be had (a hub that cannot be reached, no
    `transformers`) a warning says so: env runners check again when they start.

    Args:
        model_path: Directory or hub name.
        template_kwargs: As in `ChatFormat`, like the others.
        tool_parser: See there.
        reasoning_parser: See there.
        trust_remote_code: Whether the tokenizer may be code of the model's own.

    Raises:
        ValueError: In one line, if the template or a parser cannot be used.
    """
    if tool_parser != "auto":
        check_tool_parser_name(tool_parser)
    if reasoning_parser not in (None, "auto"):
        check_reasoning_parser_name(str(reasoning_parser))
    try:
        chat_format = ChatFormat.from_pretrained(
            _at_hand(model_path),
            template_kwargs,
            trust_remote_code,
            tool_parser=tool_parser,
            reasoning_parser=reasoning_parser,
        )
        if tool_parser != "auto" and needs_vllm(chat_format.tool_parser):
            chat_format.check_tool_parser()
        _check_served(model_path, chat_format)
    except (OSError, ImportError) as error:
        if Path(model_path).is_dir() and isinstance(error, OSError):
            what = f"model: {model_path} has no tokenizer"
            raise ValueError(_in_one_line(what, error)) from error
        unchecked = f"chat template of {model_path}: not checked until the run starts"
        logger.warning(_in_one_line(unchecked, error))
    except ValueError as error:
        raise ValueError(_in_one_line("", error)) from error
    except Exception as error:  # files of a model may hold anything
        raise ValueError(
            _in_one_line(f"model: {model_path}: its tokenizer cannot be read", error)
        ) from error


def _check_served(model_path: str, chat_format: ChatFormat) -> None:
    """Refuses what no episode could begin with; says what serving cannot repeat."""
    served = chat_format.served_template()
    if served.refused:
        raise ValueError(
            f"chat template of {model_path}: cannot show {'; '.join(served.refused)}"
        )
    if served.differences:
        logger.warning(
            "chat template of %s: a server shows some dialogues otherwise than they "
            "are trained, also with the template that `rllib export` writes: %s",
            model_path,
            "; ".join(served.differences),
        )


def _at_hand(model: str) -> str:
    """A directory with the model's tokenizer, or its name if the hub answers at once.

    Raises:
        OSError: If the hub does not; `from_pretrained` would try for a minute.
    """
    if Path(model).is_dir():
        return model
    from huggingface_hub import constants, get_session, try_to_load_from_cache

    files = [
        try_to_load_from_cache(model, name)
        for name in ("tokenizer.json", "tokenizer_config.json")
    ]
    if all(isinstance(path, str) for path in files):
        return str(Path(str(files[0])).parent)
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS)
    except Exception as error:  # of whatever HTTP library the client stands on
        raise OSError(f"{constants.ENDPOINT} does not answer: {error}") from error
    return model


def _in_one_line(what: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"{what} ({reason})" if what else reason
