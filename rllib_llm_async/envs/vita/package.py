"""Imports the VitaBench package once, ready for concurrent episodes."""

from __future__ import annotations

import functools
import io
from contextlib import redirect_stdout


@functools.cache
def load_package() -> None:
    """Makes ``import vita`` work, quietly.

    Raises:
        ValueError: If the package, or one that it needs, is not installed.
    """
    try:
        from loguru import logger

        # It logs whole conversations, and prints its configuration.
        logger.disable("vita")
        with redirect_stdout(io.StringIO()):
            import vita.prompts

            # Each of its modules binds this name when imported, and it would read nine
            # YAML files per call.
            vita.prompts.get_prompts = functools.cache(vita.prompts.get_prompts)
            import vita.registry
    except (ImportError, FileNotFoundError) as error:
        raise ValueError(
            f"env: 'vita' needs the VitaBench package, which cannot be imported "
            f"({error}); see docs/vitabench.md"
        ) from error
    from rllib_llm_async.envs.vita.isolation import separate_episodes

    separate_episodes()
