"""Who imports whom in the package, read from its source without importing it."""

import ast
from pathlib import Path

import rllib_llm_async

ROOT = Path(rllib_llm_async.__file__).parent


def module_files():
    """Path of every module of the package by its dotted name."""
    return {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def name_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph():
    """Modules that each module imports, sooner or later.

    An import within a function counts, one for the type checker alone does not.
    Importing ``a.b.c`` runs ``a`` and ``a.b``, too. Those of the importing module's own
    packages do not count: they are under way already.
    """
    files = module_files()
    return {
        name: {
            package
            for target in _targets(ast.parse(path.read_text()), files)
            for package in _with_packages(target)
            if not f"{name}.".startswith(f"{package}.") or package == target != name
        }
        for name, path in files.items()
    }


def _targets(node, files):
    """Modules of the package that the statements below a node import."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in files)
    elif isinstance(node, ast.ImportFrom) and node.module in files:
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            yield name if name in files else node.module
    for child in ast.iter_child_nodes(node):
        yield from _targets(child, files)


def _with_packages(name):
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def cycles(graph):
    """Sets of modules that reach each other, sorted (Tarjan's components)."""
    found, index, low, stack = [], {}, {}, []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph.get(node, ()):
            if target not in index:
                visit(target)
            if target in stack:
                low[node] = min(low[node], low[target])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1 or node in graph.get(node, ()):
                found.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return sorted(found)
