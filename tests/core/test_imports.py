"""`core` stands on torch alone."""

import ast
import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rllib_llm_async import core

FILES = sorted(Path(core.__file__).parent.glob("*.py"))
ROOT = Path(core.__file__).parents[2]


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


#: Has a finder of modules for which nothing is installed but torch and what it needs.
IN_A_SLIM_ENVIRONMENT = """
import importlib.machinery
import sys

MISSING = set(sys.argv[1:])


class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            return None
        return super().find_spec(name, path, target)


sys.meta_path = [
    importlib.machinery.BuiltinImporter,
    importlib.machinery.FrozenImporter,
    Finder,
]
import torch

from rllib_llm_async import core

zeros = torch.zeros(3, requires_grad=True)
old, advantages, mask = torch.zeros(3), torch.ones(3), torch.ones(3, dtype=bool)
loss, _ = core.decoupled_ppo_loss(
    zeros, old, old, advantages, mask, eps_ti=1.1, eps_stale=1.2
)
loss.backward()
assert zeros.grad is not None and core.pass_at_k(4, 2, 1) == 0.5
assert not MISSING & {name.partition(".")[0] for name in sys.modules}
"""


def test_core_works_where_torch_alone_is_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    required = setup["options"]["install_requires"].split()
    missing = {re.split(r"[\[>=<]", name)[0] for name in required} - {"torch"}
    missing = missing - {"jinja2"} | {"vllm", "yaml", "gymnasium"}  # torch's own
    assert {"ray", "transformers", "pydantic"} <= missing
    done = subprocess.run(
        [sys.executable, "-c", IN_A_SLIM_ENVIRONMENT, *missing],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
