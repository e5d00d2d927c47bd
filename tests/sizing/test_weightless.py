"""Passes that are counted without weights, beside real ones, by family."""

import pytest
import torch

from rllib_llm_async.batch import columns
from rllib_llm_async.core.live_bytes import LiveBytes
from rllib_llm_async.models.causal_attention import forget_masks
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from rllib_llm_async.sizing.weightless import weightless
from tests.models.families import FAMILIES, tiny_lm

pytestmark = pytest.mark.thorough

TOKENS = 64
SETTINGS = {
    "trust_remote_code": False,
    "lora": None,
    "compute_dtype": None,
    "gradient_checkpointing": False,
    "temperature": 1.0,
    "logits_memory_bytes": 1_000_000_000,
}


def real_peak(policy):
    sequence = torch.arange(TOKENS)[None]
    batch = {
        columns.TOKENS: sequence % 90 + 5,
        columns.POSITION_IDS: sequence,
        columns.LOSS_MASK: sequence > 0,
    }
    for parameter in policy.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    forget_masks()  # which the pass then makes, as the other one does
    with LiveBytes(but=[*policy.parameters(), *policy.buffers()]) as live:
        policy(batch).logp.sum().backward()
    return live.peak


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_takes_what_a_real_one_takes(family, tmp_path):
    lm = tiny_lm(family)
    lm.config.save_pretrained(tmp_path)
    policy = CausalLMPolicy(lm)
    real = real_peak(policy)
    with weightless({**SETTINGS, "model": str(tmp_path)}) as counted:
        said = counted.pass_bytes(TOKENS, backward=True, keeps_casts=True)
    assert said == pytest.approx(real, rel=0.15)
    # What was kept between passes is not left for real ones.
    assert real_peak(policy) == real
