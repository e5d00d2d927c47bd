"""The one place that imports tau2-bench for the first time, quietly or with advice."""

from __future__ import annotations

import importlib.util
import os

_ADVICE = "docs/tau2.md says how to install tau2-bench"


def load_package() -> None:
    """Imports the package without its network access and its logging.

    Raises:
        ValueError: If it is not there, is another package of that name, or lacks a
            dependency.
    """
    if importlib.util.find_spec("tau2") is None:
        raise ValueError(f"env tau2: the package is not installed; {_ADVICE}")
    # Else litellm fetches a price list when it is imported.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    try:
        from loguru import logger

        # It formats every message of every conversation at INFO.
        logger.disable("tau2")
        from tau2.registry import registry  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name == "tau2.registry":
            raise ValueError(
                "env tau2: the installed package `tau2` is not tau2-bench (PyPI has "
                f"another one of that name); uninstall it, then {_ADVICE}"
            ) from error
        raise ValueError(
            f"env tau2: tau2-bench needs {error.name!r}, which is not installed; "
            f"{_ADVICE}"
        ) from error
