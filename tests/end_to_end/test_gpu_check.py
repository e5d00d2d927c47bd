"""The script for people with GPUs, as far as a machine without any can run it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_check
from rllib_llm_async.old_logprobs import source_names

pytestmark = pytest.mark.slow


def test_the_tiny_version_trains_over_files_and_says_what_the_others_need():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", "--tiny"],
        cwd=Path(gpu_check.__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    for transport in ("nccl", "ipc"):
        assert any(line.startswith(f"{transport}: needs 2 GPUs: ") for line in lines)
    run, *sources = (json.loads(line) for line in lines if line.startswith("{"))
    assert (run["transport"], run["mismatches"]) == ("shared_file", 0)
    assert run["versions"] > 1 and run["sync_s"] > 0
    # Same weights and nothing but float32 between them.
    assert run["log_r_d_at_lag_0"] < 1e-3
    assert {row["name"].partition("/")[2] for row in sources} == {*source_names()}
