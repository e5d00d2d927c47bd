"""A database per episode that costs next to nothing: copy on write.

Loading or copying a database of thousands of entries takes long enough to stall every
other episode. Episodes therefore share the entries of one database that nobody writes
to, and an entry is copied when a tool that may write gets hold of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, TypeVar

from pydantic import BaseModel

D = TypeVar("D", bound=BaseModel)


class SharedDict(dict):
    """A dict whose values belong to ``base`` until they are taken out to be written.

    Args:
        base: Never changed.
    """

    def __init__(self, base: dict) -> None:
        super().__init__(base)
        self._base = base
        self.writable = False

    def changed_keys(self) -> set:
        """Keys that are new, gone, or whose value is no longer the base's."""
        own = {key for key, value in super().items() if not self._is_shared(key, value)}
        return own | (self._base.keys() - self.keys())

    def _is_shared(self, key: Any, value: Any) -> bool:
        return key in self._base and value is self._base[key]

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        if self.writable and self._is_shared(key, value):
            value = deepcopy(value)
            super().__setitem__(key, value)
        return value

    def get(self, key: Any, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: Any, *default: Any) -> Any:
        if key in self:
            self[key]
        return super().pop(key, *default)

    def popitem(self) -> tuple[Any, Any]:
        key = next(reversed(self))
        return key, self.pop(key)

    def values(self) -> Any:
        return [self[key] for key in self] if self.writable else super().values()

    def items(self) -> Any:
        if self.writable:
            return [(key, self[key]) for key in self]
        return super().items()


def share(base: D) -> D:
    """An episode's own database that starts as ``base`` and never changes it."""
    own: dict[str, Any] = {}
    for name in type(base).model_fields:
        value = getattr(base, name)
        own[name] = SharedDict(value) if isinstance(value, dict) else deepcopy(value)
    return type(base).model_construct(**own)


@contextmanager
def writing(db: BaseModel) -> Iterator[None]:
    """Within it, what is taken out of ``db`` may be changed."""
    shared = [value for value in vars(db).values() if isinstance(value, SharedDict)]
    for entries in shared:
        entries.writable = True
    try:
        yield
    finally:
        for entries in shared:
            entries.writable = False


def content(db: D, base: D) -> dict[str, Any]:
    """What tells databases of one ``base`` apart: equal if and only if they are.

    Returns:
        The dump of all fields, of shared ones only what differs from ``base``.
    """
    include: dict[str, Any] = {}
    for name in type(db).model_fields:
        value = getattr(db, name)
        keys = value.changed_keys() if isinstance(value, SharedDict) else True
        if keys:
            include[name] = keys
    dump, base_dump = db.model_dump(include=include), base.model_dump(include=include)
    for name, keys in include.items():
        if keys is not True:
            new, old = dump[name], base_dump[name]
            dump[name] = {
                key: new.get(key)
                for key in keys
                # As text, like what is hashed: 1 and 1.0 are not the same.
                if repr(new.get(key)) != repr(old.get(key))
            }
    return {name: value for name, value in dump.items() if value != {}}
