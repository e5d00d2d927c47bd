"""A mixture of experts as a policy, against plain transformers."""

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from rllib_llm_async.batch import columns
from rllib_llm_async.batch.packing import pack_rows
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy, load_causal_lm


def test_packed_log_probabilities_are_those_of_transformers(small_moe_dir):
    generator = torch.Generator().manual_seed(0)
    sequences = [
        torch.randint(5, 400, (length,), generator=generator) for length in (40, 9, 23)
    ]
    packed = pack_rows(
        [
            {
                columns.TOKENS: tokens.numpy(),
                columns.POSITION_IDS: torch.arange(len(tokens)).numpy(),
                columns.LOSS_MASK: (torch.arange(len(tokens)) > 0).numpy(),
                columns.SEQUENCE_IDS: torch.full((len(tokens),), number).numpy(),
            }
            for number, tokens in enumerate(sequences)
        ],
        min_row_tokens=64,
    )
    batch = {name: torch.from_numpy(column) for name, column in packed.items()}
    policy = CausalLMPolicy(load_causal_lm(small_moe_dir)).eval()
    plain = AutoModelForCausalLM.from_pretrained(small_moe_dir, dtype=torch.float32)
    with torch.no_grad():
        logp = policy(batch).logp
        for number, tokens in enumerate(sequences):
            own = (batch[columns.SEQUENCE_IDS] == number) & batch[columns.LOSS_MASK]
            logits = plain(input_ids=tokens[None]).logits[0, :-1].double()
            expected = logits.log_softmax(-1).gather(1, tokens[1:, None]).squeeze(1)
            torch.testing.assert_close(logp[own].double(), expected, atol=1e-5, rtol=0)


def test_weights_for_the_engine_are_named_as_in_the_checkpoint(small_moe_dir):
    policy = CausalLMPolicy(load_causal_lm(small_moe_dir))
    weights = dict(policy.inference_weights())
    assert "model.layers.0.mlp.experts.3.up_proj.weight" in weights
    with safe_open(small_moe_dir / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(weights)
        for name, weight in weights.items():
            assert torch.equal(file.get_tensor(name), weight)
