"""Prints the peak memory of `token_logprobs` beside what was there before, in bytes.

Arguments: float32 or bfloat16; forward or backward; 1 with entropy, else 0.
"""

import re
import sys
from pathlib import Path

import torch

from rllib_llm_async.core import token_logprobs
from rllib_llm_async.core.logprobs import logit_chunk_tokens

#: Of Qwen's models.
VOCABULARY = 151_936
MEMORY_BYTES = 200_000_000
HIDDEN = 8
#: Of a process that measures: a tensor that is freed goes back to the system at once.
#: As it comes, glibc keeps freed blocks of up to 32 MiB for itself, and the peak would
#: tell how it happened to fit the next ones in.
MEMORY_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"}


def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])


def main(dtype, passes, with_entropy):
    dtype, backward = getattr(torch, dtype), passes == "backward"
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
    before = peak()
    run(tokens)
    print(peak() - before)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] == "1")
