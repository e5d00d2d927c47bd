"""From the ``model`` setting to a directory or hub name; cheap, imports no torch."""

from __future__ import annotations

from pathlib import Path


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
    path = Path(model).expanduser()
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") != 1
    if not looks_like_path and not path.exists():
        return model
    try:
        readable = (path / "config.json").read_text() != ""
    except OSError as error:
        raise ValueError(
            f"model: {model!r} is not a readable model directory ({error.strerror}: "
            f"{path / 'config.json'}); give a directory with config.json and weights, "
            'a hub name like "Qwen/Qwen3-4B", or "small_agent"'
        ) from None
    if not readable:
        raise ValueError(f"model: {path / 'config.json'} is empty")
    return str(path.resolve())
