"""YAML as experiments are written in: safe, numbers as numbers, no key twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count
from typing import Any

import yaml
from yaml.composer import ComposerError

#: Values that a file may hold, those behind an alias counted wherever it stands: a few
#: lines of aliases of aliases stand for billions.
_MAX_VALUES = 100_000


class _Loader(yaml.SafeLoader):
    """PyYAML's, with YAML 1.2's numbers: 1e-4 is one. What is in quotes stays text."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise ComposerError(
                None, None, f"tags such as {event.tag!r} are not read", event.start_mark
            )
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(text: str) -> Any:
    """Reads one document.

    Raises:
        ValueError: If it is not valid YAML, is too large or too deep, holds a tag or a
            number that cannot be, has a key twice in one mapping, or holds a mapping or
            list within itself.
    """
    try:
        return _read(text)
    except (yaml.YAMLError, RecursionError, OverflowError) as error:
        raise ValueError(f"not valid YAML: {error}") from error


def _read(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_node(node, (), (), count())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_node(
    node: yaml.Node, path: tuple[str, ...], above: tuple, num_seen: Iterator[int]
) -> None:
    where = ": ".join(path)
    if any(node is ancestor for ancestor in above):
        raise ValueError(f"{where}: holds itself; write its content out")
    if next(num_seen) > _MAX_VALUES:
        raise ValueError(f"{where}: more than {_MAX_VALUES} values with its aliases")
    above = (*above, node)
    if isinstance(node, yaml.ScalarNode) and not node.style:
        _check_number(node, where)
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_node(item, path, above, num_seen)
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name = str(key.value)
            line = key.start_mark.line + 1
            if name in lines and isinstance(key, yaml.ScalarNode):
                raise ValueError(
                    f"{': '.join((*path, name))}: written twice, in lines "
                    f"{lines[name]} and {line}; keep one"
                )
            lines[name] = line
            _check_node(value, (*path, name), above, num_seen)


def _check_number(node: yaml.ScalarNode, where: str) -> None:
    """What YAML 1.1 takes for another number than it looks like."""
    written = node.value[:40]
    is_number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    if is_number and ":" in node.value:
        raise ValueError(
            f"{where}: got {written}, which YAML takes for a number of sixtieths; "
            "write seconds as a plain number"
        )
    if is_number and re.fullmatch(r"[-+]?0[0-7_]+", node.value):
        raise ValueError(
            f"{where}: got {written}, which YAML takes for an octal number; leave "
            "the zero in front out"
        )
