"""The command `rllib`: the package without what only a run needs.

Importing `rllib_llm_async` registers its algorithms with RLlib, for which Ray and torch
are imported: seconds that `--help` and a mistyped key need not take. What is imported
from here registers them when a run is about to begin, see `rllib_llm_async.register`.
"""

import os

_NO_REGISTRATION = "RLLIB_LLM_ASYNC_NO_REGISTRATION"

os.environ[_NO_REGISTRATION] = "1"
try:
    from rllib_llm_async.cli import main
finally:
    # Processes that this one starts import the package as everybody does.
    del os.environ[_NO_REGISTRATION]

__all__ = ["main"]
