"""A row of many sequences against as many rows: what packing costs beside nothing.

One decoder layer of tiny width, so that attention is what counts; forward and backward.
The packed row holds 8 sequences of 2,048 tokens. Its reference are 8 rows of one
sequence each, through transformers' own attention, which needs no mask for them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.row import Row, compare
from rllib_llm_async.batch import columns
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy

NUM_SEQUENCES = 8
SEQUENCE_TOKENS = 2048
#: Layout -> attention of the policy, rows.
LAYOUTS = {"packed": ("auto", 1), "rows": ("sdpa", NUM_SEQUENCES)}


class Pass:
    """Forward and backward over the same sequences in one layout."""

    def __init__(self, layout: str) -> None:
        implementation, rows = LAYOUTS[layout]
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            "qwen3",
            vocab_size=97,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=SEQUENCE_TOKENS,
        )
        lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        self.policy = CausalLMPolicy(lm, attn_implementation=implementation)
        positions = torch.arange(SEQUENCE_TOKENS).repeat(NUM_SEQUENCES).view(rows, -1)
        self.batch = {
            columns.TOKENS: torch.randint(0, 97, positions.shape),
            columns.POSITION_IDS: positions,
            columns.LOSS_MASK: positions % 50 == 1,
        }

    def seconds(self) -> float:
        start = time.perf_counter()
        self.policy(self.batch).logp.sum().backward()
        return time.perf_counter() - start


def time_packed_vs_rows(repeats: int = 5) -> Row:
    """Seconds of both, in turns."""
    packed, rows = Pass("packed"), Pass("rows")
    return compare(
        "attention_packed_vs_rows", "s", packed.seconds, rows.seconds, repeats
    )


def memory_packed_vs_rows() -> Row:
    """Bytes at the peak of a pass, each layout in a process of its own."""
    value, reference = (_peak_bytes(layout) for layout in ("packed", "rows"))
    return Row(
        "attention_packed_vs_rows_memory", value, "bytes", reference, value / reference
    )


def _peak_bytes(layout: str) -> float:
    command = [sys.executable, "-m", "benchmarks.attention", layout]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def _measure_peak(layout: str) -> float:
    """Bytes that the largest pass needs beside what was there before it."""

    def peak() -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])

    measured = Pass(layout)
    before = peak()
    measured.seconds()
    return float(peak() - before)


if __name__ == "__main__":
    print(json.dumps(_measure_peak(sys.argv[1])))
