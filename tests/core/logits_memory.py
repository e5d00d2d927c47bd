"""Prints what `token_logprobs` needs at its peak beside what is there already.

A process of its own, since the peak is that of a process. As JSON: bytes by case.
"""

import itertools
import json
import re
from pathlib import Path

import torch

from rllib_llm_async import NO_REGISTRATION
from rllib_llm_async.core import token_logprobs
from rllib_llm_async.core.logprobs import logit_chunk_tokens

#: Of Qwen's models.
VOCABULARY = 151_936
MEMORY_BYTES = 200_000_000
HIDDEN = 8
#: dtype, passes, with or without entropy.
CASES = [
    " ".join(case)
    for case in itertools.product(
        ("float32", "bfloat16"), ("forward", "backward"), ("with", "without")
    )
]
#: Of a process that measures: a tensor that is freed goes back to the system at once.
#: As it comes, glibc keeps freed blocks of up to 32 MiB for itself, and the peak would
#: tell how it happened to fit the next ones in.
MEMORY_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "1000000",
    NO_REGISTRATION: "1",  # Ray is not needed
}


def peak_of(run):
    """Bytes that a call needs at its peak beside what is there before."""

    def high_water_mark():
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])

    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is there now
    before = high_water_mark()
    run()
    return high_water_mark() - before


def measure(case):
    dtype, passes, entropy = case.split()
    dtype, backward = getattr(torch, dtype), passes == "backward"
    with_entropy = entropy == "with"
    weight = torch.randn(VOCABULARY, HIDDEN, dtype=dtype, requires_grad=backward)
    weight.grad = torch.zeros_like(weight) if backward else None
    chunk_tokens = logit_chunk_tokens(
        MEMORY_BYTES, lambda hidden: hidden @ weight.T, weight[:1]
    )
    tokens = 3 * chunk_tokens
    hidden = torch.randn(tokens, HIDDEN, dtype=dtype, requires_grad=backward)
    targets = torch.randint(0, VOCABULARY, (tokens,))

    def run(count):
        with torch.set_grad_enabled(backward):
            logp = token_logprobs(
                hidden[:count],
                weight,
                targets[:count],
                chunk_tokens=chunk_tokens,
                with_entropy=with_entropy,
            )
            if backward:
                (logp[0] if with_entropy else logp).sum().backward()

    run(2)  # what libraries allocate once
    return peak_of(lambda: run(tokens))


if __name__ == "__main__":
    print(json.dumps({case: measure(case) for case in CASES}))
