"""Prints the peak memory of a policy's pass beside what was there before, in bytes.

Arguments: a family of `families`; float32 or bfloat16; forward or backward.
"""

import sys
from pathlib import Path

import torch

from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from tests.core.logits_memory import VOCABULARY, peak
from tests.models.families import packed, tiny_lm

MEMORY_BYTES = 200_000_000
#: Logits of so many tokens take three times that in float32, with nothing after them.
TOKENS = 3 * MEMORY_BYTES // (8 * VOCABULARY)
ROW_TOKENS = 20


def main(family, dtype, passes):
    backward = passes == "backward"
    lm = tiny_lm(family, vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16)
    policy = CausalLMPolicy(
        lm,
        logits_memory_bytes=MEMORY_BYTES,
        compute_dtype=None if dtype == "float32" else torch.bfloat16,
    )
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter) if backward else None

    def run(count):
        # Short ones: attention that is capped, too, holds [length, length].
        batch = packed([[row] for row in torch.arange(3, 3 + count).split(ROW_TOKENS)])
        with torch.set_grad_enabled(backward):
            logp = policy(batch, with_entropy=True).logp
            if backward:
                logp.sum().backward()

    run(TOKENS // 4)  # what libraries allocate once
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is there now
    before = peak()
    run(TOKENS)
    print(peak() - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
