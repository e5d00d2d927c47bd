"""Prints what a policy's pass needs at its peak beside what is there already.

As `tests.core.logits_memory` does; with the backward pass, by family and dtype.
"""

import json

import torch

from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from tests.core.logits_memory import VOCABULARY, peak_of
from tests.models.families import packed, tiny_lm

CASES = ["granite float32", "cohere float32", "gemma2 float32", "gemma2 bfloat16"]
MEMORY_BYTES = 200_000_000
#: Logits of so many tokens take three times that in float32, with nothing after them.
TOKENS = 3 * MEMORY_BYTES // (8 * VOCABULARY)
ROW_TOKENS = 20


def measure(case):
    family, dtype = case.split()
    lm = tiny_lm(family, vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16)
    policy = CausalLMPolicy(
        lm,
        logits_memory_bytes=MEMORY_BYTES,
        compute_dtype=None if dtype == "float32" else torch.bfloat16,
    )
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def run(count):
        # Short ones: attention that is capped, too, holds [length, length].
        batch = packed([[row] for row in torch.arange(3, 3 + count).split(ROW_TOKENS)])
        policy(batch, with_entropy=True).logp.sum().backward()

    run(TOKENS // 4)  # what libraries allocate once
    return peak_of(lambda: run(TOKENS))


if __name__ == "__main__":
    print(json.dumps({case: measure(case) for case in CASES}))
