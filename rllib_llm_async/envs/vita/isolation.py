"""Keeps episodes that take turns on one thread apart.

The VitaBench package holds every catalogue entry and address in registries at class
level, keyed by thread, and its language and the texts of its tools in globals. Here the
key is the episode, and the language is set anew whenever an episode's turn comes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextvars import ContextVar, Token
from types import SimpleNamespace
from typing import Any

from vita.data_model import thread_safe_base
from vita.utils.schema_utils import set_global_language

_CURRENT: ContextVar[Compartment | None] = ContextVar("compartment", default=None)


def separate_episodes() -> None:
    """Makes the current compartment the registries' key; outside of any, the thread."""
    thread_safe_base.threading = SimpleNamespace(
        get_ident=lambda: _CURRENT.get() or threading.get_ident(),
        Lock=threading.Lock,
        enumerate=threading.enumerate,
    )


class Compartment:
    """An episode's share of the registries.

    Every call that may touch them runs inside ``with compartment:``, and nothing is
    awaited there: the language belongs to the whole process.

    Args:
        language: The package's, ``english`` or ``chinese``.
    """

    def __init__(self, language: str) -> None:
        self._language = language

    def __enter__(self) -> Compartment:
        self._token: Token = _CURRENT.set(self)
        set_global_language(self._language)
        return self

    def __exit__(self, *exc_info: Any) -> None:
        _CURRENT.reset(self._token)

    def discard(self) -> None:
        """Frees what was registered."""
        for registry in _registries(thread_safe_base.ThreadSafeBase):
            registry.pop(self, None)


def _registries(cls: type) -> Iterator[dict[Any, Any]]:
    for name in ("_global_instances", "_polymorphic_instances"):
        if name in vars(cls):
            yield vars(cls)[name]
    subclasses: list[type] = cls.__subclasses__()
    for subclass in subclasses:
        yield from _registries(subclass)
