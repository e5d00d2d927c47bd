"""A fixed prompt and what the trainer makes of it: engines compare with that."""

from __future__ import annotations

import numpy as np
import torch

from rllib_llm_async.batch import columns
from rllib_llm_async.batch.packing import pack_rows
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy

#: Length of the prompt.
PROBE_TOKENS = 64


def probe(policy: CausalLMPolicy) -> tuple[list[int], np.ndarray]:
    """A fixed prompt and log pi of its tokens but the first, through what trains.

    The engine scores a prompt at temperature 1, whatever it samples with. Rare tokens
    have the largest gradients; those of a vocabulary's second quarter are rare after
    each other, and none of them is a control token.
    """
    vocabulary = policy.causal_lm.get_input_embeddings().num_embeddings
    start, stop = vocabulary // 4, vocabulary // 2
    tokens = np.random.default_rng(0).integers(start, stop, PROBE_TOKENS)
    sequence = {
        columns.TOKENS: tokens,
        columns.POSITION_IDS: np.arange(PROBE_TOKENS),
        columns.LOSS_MASK: np.arange(PROBE_TOKENS) > 0,
    }
    device = next(policy.parameters()).device
    batch = {
        key: torch.from_numpy(column).to(device)
        for key, column in pack_rows([sequence], min_row_tokens=PROBE_TOKENS).items()
    }
    was_training, temperature = policy.training, policy.temperature
    policy.eval()
    policy.temperature = 1.0
    try:
        logp = policy.score(batch, None, PROBE_TOKENS)[0, 1:]
    finally:
        policy.temperature = temperature
        policy.train(was_training)
    return tokens.tolist(), logp.cpu().numpy()
