"""What `engine` may hold, told before vLLM is imported (which takes seconds)."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

ENGINE_DTYPES = ("float32", "bfloat16", "float16")
_TRUNCATED = (
    "tokens are sampled from the whole distribution, which is what mu_old and pi_old "
    "are probabilities of; leave it out"
)
#: Keys that look right and are not, and why.
_REFUSED = {
    "top_p": _TRUNCATED,
    "top_k": _TRUNCATED,
    "min_p": _TRUNCATED,
    "temperature": "it is a setting of its own, beside engine",
    "max_tokens": "set max_response_tokens, beside engine",
    "trust_remote_code": "it is a setting of its own, beside engine",
    "model": "it is a setting of its own, beside engine",
    "logprobs_mode": "it has to be that of the distribution sampled from",
    "worker_extension_cls": "weights arrive through it",
    "weight_transfer_config": "weights arrive through it",
    "return_sampling_mask": "nothing is sampled from a truncated distribution",
}


def check_engine_settings(engine: Mapping[str, Any]) -> None:
    """Checks the names in ``engine`` against the installed vLLM's.

    Raises:
        ValueError: Names the key and why it cannot be, or the nearest that can.
    """
    for key in engine:
        if key in _REFUSED:
            raise ValueError(f"engine.{key}: {_REFUSED[key]}")
        valid = _engine_arguments()
        if valid and key not in valid:
            near = difflib.get_close_matches(str(key), valid, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"engine.{key}: no argument of vllm.AsyncEngineArgs, did you mean "
                f"{near!r}?"
            )
    dtype = engine.get("dtype", "bfloat16")
    if dtype not in ENGINE_DTYPES:
        raise ValueError(f"engine.dtype: got {dtype!r}, must be one of {ENGINE_DTYPES}")


@cache
def _engine_arguments() -> frozenset[str]:
    """Fields of vLLM's engine arguments, from its source; empty where it is missing."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    source = Path(spec.submodule_search_locations[0], "engine", "arg_utils.py")
    if not source.exists():
        return frozenset()
    return frozenset(
        field.target.id
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.ClassDef)
        and node.name in ("EngineArgs", "AsyncEngineArgs")
        for field in node.body
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and not field.target.id.startswith("_")
    )
