"""`core` stands on torch alone."""

import ast
import sys
from pathlib import Path

import pytest

from rllib_llm_async import core

FILES = sorted(Path(core.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_of_core_imports_torch_core_and_names_alone(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "rllib_llm_async":
            imported |= {f"rllib_llm_async.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    odd = {
        name
        for name in imported
        if name.partition(".")[0] not in {"torch", *sys.stdlib_module_names}
        and not name.startswith("rllib_llm_async.core")
        and name != "rllib_llm_async.result_keys"
    }
    assert not odd


def test_files_were_found():
    assert len(FILES) > 10
