"""What a family does to its logits keeps to the budget, too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.core.logits_memory import MEMORY_ENVIRONMENT
from tests.models import logits_memory


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("granite", "float32"),
        ("cohere", "float32"),
        ("gemma2", "float32"),
        ("gemma2", "bfloat16"),
    ],
)
def test_the_peak_of_memory_keeps_to_the_budget(family, dtype):
    output = subprocess.run(
        [sys.executable, "-m", logits_memory.__name__, family, dtype, "backward"],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **MEMORY_ENVIRONMENT},
    )
    used = int(output.stdout)
    assert used <= 1.2 * logits_memory.MEMORY_BYTES
    # Nor is it so small that more tokens would have fitted.
    assert used >= 0.6 * logits_memory.MEMORY_BYTES
