"""What a family does to its logits keeps to the budget, too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.core.logits_memory import MEMORY_ENVIRONMENT
from tests.models import logits_memory

# In substance: tests/core/test_logprobs.py.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def peaks():
    """By case; all are measured by one process."""
    output = subprocess.check_output(
        [sys.executable, "-m", logits_memory.__name__],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **MEMORY_ENVIRONMENT},
    )
    return json.loads(output)


@pytest.mark.parametrize("case", logits_memory.CASES)
def test_the_peak_of_memory_keeps_to_the_budget(peaks, case):
    assert peaks[case] <= 1.2 * logits_memory.MEMORY_BYTES
    # Nor is it so small that more tokens would have fitted.
    assert peaks[case] >= 0.6 * logits_memory.MEMORY_BYTES
