"""What ``torch_ddp_kwargs`` may hold, told before torch is imported."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from typing import Any

from rllib_llm_async.settings.installed import source_of
from rllib_llm_async.settings.names import did_you_mean

#: Arguments that the Learner gives itself.
_OWN = {"module", "device_ids", "output_device", "process_group", "device_mesh"}


def check_ddp(kwargs: Mapping[str, Any]) -> None:
    """Checks the names in ``torch_ddp_kwargs``.

    Raises:
        ValueError: For one that `DistributedDataParallel` does not take.
    """
    valid = _arguments()
    for key in kwargs:
        if valid and key not in valid:
            raise ValueError(
                f"torch_ddp_kwargs.{key}: no argument of torch's "
                f"DistributedDataParallel{did_you_mean(key, valid)}"
            )


@cache
def _arguments() -> frozenset[str]:
    """From torch's source; empty where it is missing."""
    module = ast.parse(source_of("torch", "nn/parallel/distributed.py"))
    return frozenset(
        argument.arg
        for cls in module.body
        if isinstance(cls, ast.ClassDef) and cls.name == "DistributedDataParallel"
        for method in cls.body
        if isinstance(method, ast.FunctionDef) and method.name == "__init__"
        for argument in method.args.args[1:] + method.args.kwonlyargs
    ) - frozenset(_OWN)
