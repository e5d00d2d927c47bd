"""From the ``model`` setting to a directory or hub name; cheap, imports no torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rllib_llm_async.settings.names import did_you_mean

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


def check_model(model_path: str, trust_remote_code: bool = False) -> None:
    """Refuses a model that transformers cannot train, as far as its config tells.

    Of a hub's model that is not in the cache nothing is known before it is loaded.

    Args:
        model_path: As `resolve_model` gives it.
        trust_remote_code: Whether the model may be code that comes with it.

    Raises:
        ValueError: Names the kind of model, and the nearest that there is.
    """
    directory = local_copy(model_path)
    if directory is None:
        return
    config = json.loads(Path(directory, "config.json").read_text())
    refuse_quantized(model_path, config)
    if trust_remote_code and "auto_map" in config:
        return
    try:
        from transformers import __version__
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN,
        )
    except ImportError:
        return
    kind = config.get("model_type")
    if kind not in KNOWN:
        remedy = "; set trust_remote_code: true" if "auto_map" in config else ""
        raise ValueError(
            f"model: {model_path}: transformers {__version__} has no causal LM of "
            f"model_type {kind!r}{remedy or did_you_mean(kind, KNOWN)}"
        )


def refuse_quantized(model: str, config: Mapping[str, Any]) -> None:
    """Refuses weights that are made to be read: no gradient step can change them.

    Args:
        model: Directory or hub name.
        config: What its config.json holds.

    Raises:
        ValueError: Names the way in which they are quantized.
    """
    settings = config.get("quantization_config") or config.get("compression_config")
    if settings:
        method = settings.get("quant_method", "in a way that its config does not name")
        raise ValueError(
            f"model: {model} is quantized ({method}), which cannot be trained; give "
            "the model that it was made from"
        )


def local_copy(model_path: str) -> str | None:
    """The directory of a model's config: its own, or that of a hub's model in the
    cache; None where there is none.

    Raises:
        ValueError: For a name that no hub takes.
    """
    if os.path.isdir(model_path):
        return model_path
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    try:
        config = try_to_load_from_cache(model_path, "config.json")
    except ValueError as error:  # no name that a hub takes
        raise ValueError(f"model: {error}") from error
    return os.path.dirname(config) if isinstance(config, str) else None


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
