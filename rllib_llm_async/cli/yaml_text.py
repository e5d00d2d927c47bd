"""YAML as experiments are written in: safe, numbers as numbers, no key twice."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """PyYAML's, with YAML 1.2's numbers: 1e-4 is one. What is in quotes stays text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(text: str) -> Any:
    """Reads one document.

    Raises:
        ValueError: If it is not valid YAML, has a key twice in one mapping, or holds a
            mapping or list within itself.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_node(node, ())
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"not valid YAML: {error}") from error
    finally:
        loader.dispose()


def _check_node(node: yaml.Node, path: tuple[str, ...], above: tuple = ()) -> None:
    where = ": ".join(path)
    if any(node is ancestor for ancestor in above):
        raise ValueError(f"{where}: holds itself; write its content out")
    above = (*above, node)
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_node(item, path, above)
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
            _check_node(value, (*path, name), above)
