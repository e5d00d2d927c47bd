"""The setting `env_config.domains`, alike in every suite."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rllib_llm_async.settings.names import unknown


def chosen_domains(domains: Any, known: Collection[str]) -> list[str]:
    """The domains of a suite.

    Args:
        domains: A list of names, or None for all.
        known: Names of those that there are.

    Raises:
        ValueError: If it is no list, is empty, or has a name that is unknown or twice.
    """
    if domains is None:
        return list(known)
    if not isinstance(domains, list | tuple) or not domains:
        raise ValueError(
            f"env_config.domains: got {domains!r}, must be a list of one or more names "
            "of domains, or null for all"
        )
    for number, name in enumerate(domains):
        if name not in known:
            raise ValueError(f"env_config.domains: {unknown(name, known)}")
        if name in domains[:number]:
            raise ValueError(f"env_config.domains: {name} is there twice; keep one")
    return list(domains)
