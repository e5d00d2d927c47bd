"""Types of other packages' settings, read from their source without importing them.

Importing vLLM or PEFT takes seconds. An annotation of which a part is not understood
stands for any value: what is said here is never stricter than the package itself.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

_BUILTINS: dict[str, tuple[Any, str]] = {
    "None": (None, "null"),
    "bool": (bool, "true or false"),
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "str": (str, "text"),
    "list": (list[Any], "a list"),
    "List": (list[Any], "a list"),
    # YAML has lists alone.
    "set": (list[Any] | set[Any], "a list"),
    "tuple": (list[Any] | tuple[Any, ...], "a list"),
    "dict": (dict[Any, Any], "a mapping"),
    "Dict": (dict[Any, Any], "a mapping"),
}
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def source_folder(package: str) -> Path | None:
    """Where an installed package lies; None where it is missing."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def source_of(package: str, path: str) -> str:
    """Text of a file of an installed package; empty where it is missing."""
    folder = source_folder(package)
    if folder is None or not (folder / path).exists():
        return ""
    return (folder / path).read_text(encoding="utf-8")


@dataclass
class Argument:
    """One field of a dataclass: annotation, default, and bounds by pydantic's names."""

    annotation: ast.expr
    default: ast.expr | None
    bounds: Mapping[str, float] = field(default_factory=dict)
    optional: bool = False

    def fault(self, value: Any, aliases: Mapping[str, ast.expr]) -> str | None:
        """What ``value`` must be, if it is not; None if it may be."""
        kind, words = read_type(self.annotation, aliases)
        if kind is Any or (value is None and self.optional):
            return None
        adapter = TypeAdapter(
            Annotated[kind, Field(**self.bounds)] if self.bounds else kind,
            config=ConfigDict(strict=True, allow_inf_nan=False),
        )
        try:
            adapter.validate_python(value)
        except ValidationError:
            limits = [f"{_BOUNDS[k]} {limit:g}" for k, limit in self.bounds.items()]
            return " ".join([words, " and ".join(limits)]).strip()
        return None


def dataclass_fields(module: ast.Module, names: Iterable[str]) -> dict[str, Argument]:
    """Public fields of the module's classes of those names."""
    names = set(names)
    return {
        node.target.id: _argument(node)
        for cls in module.body
        if isinstance(cls, ast.ClassDef) and cls.name in names
        for node in cls.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and not node.target.id.startswith("_")
    }


def _argument(node: ast.AnnAssign) -> Argument:
    """``name: int = Field(default=None, ge=1)`` has bounds and whether null can be."""
    argument = Argument(node.annotation, node.value)
    if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "Field":
        literals = {}
        for keyword in node.value.keywords:
            with suppress(ValueError):  # a default that is computed
                literals[keyword.arg] = ast.literal_eval(keyword.value)
        argument.bounds = {k: literals[k] for k in _BOUNDS if k in literals}
        argument.optional = "default" in literals and literals["default"] is None
    return argument


def type_aliases(modules: Iterable[ast.Module]) -> dict[str, ast.expr]:
    """``Name = Literal[...]`` of the modules, by name."""
    return {
        target.id: node.value
        for module in modules
        for node in module.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def read_type(node: ast.expr, aliases: Mapping[str, ast.expr]) -> tuple[Any, str]:
    """An annotation as a type for pydantic, and in words; `Any` if not understood."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return read_type(ast.parse(node.value, mode="eval").body, aliases)
        return _BUILTINS.get(str(node.value), (Any, ""))
    if isinstance(node, ast.Name):
        if node.id in aliases:
            return read_type(aliases[node.id], aliases)
        return _BUILTINS.get(node.id, (Any, ""))
    if isinstance(node, ast.BinOp):
        return _union([node.left, node.right], aliases)
    if isinstance(node, ast.Subscript):
        return _read_subscript(node, aliases)
    return Any, ""


def _read_subscript(
    node: ast.Subscript, aliases: Mapping[str, ast.expr]
) -> tuple[Any, str]:
    name = ast.unparse(node.value).rpartition(".")[2]
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Literal":
        try:
            values = tuple(ast.literal_eval(value) for value in inner)
        except ValueError:
            return Any, ""
        words = "one of " + ", ".join(map(repr, values))
        if any("[" in str(value) for value in values):
            return Annotated[str, Field(pattern=_placeholders(values))], words
        return Literal[values], words
    if name == "Optional":
        return _union([*inner, ast.Constant(None)], aliases)
    if name == "Union":
        return _union(inner, aliases)
    if name in ("list", "List"):
        item, words = read_type(inner[0], aliases)
        return list[item], f"a list, each {words}" if words else "a list"  # type: ignore[valid-type]
    return _BUILTINS.get(name, (Any, ""))


def _placeholders(values: Iterable[Any]) -> str:
    """A pattern of all values, where "pissa_niter_[number of iters]" is one of them."""
    patterns = [re.sub(r"\\\[.*?\\\]", ".+", re.escape(str(v))) for v in values]
    return f"^({'|'.join(patterns)})$"


def _union(
    nodes: Iterable[ast.expr], aliases: Mapping[str, ast.expr]
) -> tuple[Any, str]:
    kinds, words = zip(*(read_type(node, aliases) for node in nodes), strict=True)
    if Any in kinds:
        return Any, ""
    return reduce(or_, kinds), " or ".join(words)
