"""From the ``model`` setting to a directory or hub name; cheap, imports no torch."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

#: What a directory's weights may be in.
_WEIGHTS = ("*.safetensors", "*.bin")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def resolve_model(model: str) -> str:
    """Returns what `from_pretrained` takes.

    Args:
        model: "small_agent" for the bundled model, a directory, or a hub name such
            as "Qwen/Qwen3-4B".

    Raises:
        ValueError: If a directory is named that does not hold a readable model.
    """
    from rllib_llm_async.models.small_agent import small_agent_dir

    if model == "small_agent":
        return str(small_agent_dir())
    path = _path(model)
    if path is None:
        if _HUB_NAME.fullmatch(model):
            return model
        path = Path(model)
    config = path / "config.json"
    try:
        values = json.loads(config.read_text())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"model: {model!r} is not a readable model directory ({reason}: "
            f"{config}); give a directory with config.json and weights, "
            'a hub name like "Qwen/Qwen3-4B", or "small_agent"'
        ) from None
    if not (isinstance(values, dict) and isinstance(values.get("model_type"), str)):
        raise ValueError(f"model: {config} is no model's config: it has no model_type")
    if not any(any(path.glob(pattern)) for pattern in _WEIGHTS):
        raise ValueError(f"model: {path} holds no weights ({', '.join(_WEIGHTS)})")
    return str(path.resolve())


def absolute_model(model: str) -> str:
    """A directory by its whole path, since Tune changes the current one; else as is."""
    path = None if model == "small_agent" else _path(model)
    return model if path is None or not path.exists() else os.path.abspath(path)


def _path(model: str) -> Path | None:
    """The directory, None for what can only be a hub name."""
    try:
        path = Path(model).expanduser()
        return path if path.exists() or model.startswith((".", "/", "~")) else None
    except (OSError, RuntimeError, ValueError):  # no such user, a NUL, a long name
        return None
