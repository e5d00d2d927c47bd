"""The bundled small agent: architecture, tokenizer, and its warm-started weights.

`small_agent_dir` is a Hugging Face directory like any other model's; it is shipped so
that training starts at once. `make warm-start` rebuilds it.
"""

from __future__ import annotations

from pathlib import Path


def small_agent_dir() -> Path:
    """Directory of the shipped model: weights, config, tokenizer, chat template."""
    return Path(__file__).parent / "weights"
