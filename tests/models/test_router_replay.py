"""A mixture's passes send tokens to the experts that they are told."""

import json

import pytest
import torch

from rllib_llm_async.batch import columns
from rllib_llm_async.batch.packing import select_prefixes
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from rllib_llm_async.models.router_replay import recorded_experts, router_replay
from rllib_llm_async.models.sequence_layout import Layout
from tests.models.families import COMMON, packed, tiny_lm

_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
#: Families, and those of their settings that weigh the experts in another way.
MIXTURES = {
    "qwen3_moe": {"norm_topk_prob": True},
    "qwen3_moe-not normalised": {"norm_topk_prob": False},
    "qwen3_moe-every other layer": {"decoder_sparse_step": 2},
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 32, **_EXPERTS},
    "qwen3_next": {"norm_topk_prob": True},
    "olmoe": {"num_experts": 4, **_EXPERTS},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "minimax": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
}
LENGTHS = (24, 9, 40)


def mixture(name="qwen3_moe", **settings):
    lm = tiny_lm(name.partition("-")[0], **MIXTURES[name])
    return CausalLMPolicy(lm, router_replay=True, **settings)


def sequences():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 100, (n,), generator=generator) for n in LENGTHS]


def batch_of(*rows):
    batch = packed(rows)
    batch[columns.SEQUENCE_IDS] = (batch[columns.POSITION_IDS] == 0).cumsum(1)
    return batch


def drawn_experts(batch, policy, seed=0):
    """Random, different ones, for all layers."""
    config = policy.causal_lm.config
    number = getattr(config, "num_experts", None) or config.num_local_experts
    shape = *batch[columns.TOKENS].shape, config.num_hidden_layers, number
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(shape, generator=generator).argsort(-1)
    return order[..., : config.num_experts_per_tok].short()


@pytest.mark.parametrize("name", MIXTURES)
@torch.no_grad()
def test_tokens_go_where_they_are_told_under_any_weights(name):
    policy = mixture(name)
    batch = batch_of([sequences()[2]])
    routed = drawn_experts(batch, policy)
    own = policy(batch).logp
    for _ in range(2):
        with recorded_experts(policy.causal_lm) as chosen:
            logp = policy({**batch, columns.ROUTED_EXPERTS: routed}).logp
        assert chosen
        for layer, experts in chosen.items():
            assert torch.equal(experts, routed[0, :, layer].long())
        assert (logp - own).abs().max() > 0.01
        for weight in policy.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    # Without, everything is as before.
    with recorded_experts(policy.causal_lm) as chosen:
        policy(batch)
    assert not all(
        torch.equal(experts, routed[0, :, layer].long())
        for layer, experts in chosen.items()
    )


@pytest.mark.parametrize("layout", sorted(Layout, key=str))
@torch.no_grad()
def test_packed_tokens_keep_their_experts(layout):
    policy = mixture(attn_implementation="auto" if layout is Layout.ONE_ROW else "sdpa")
    policy.layout = layout
    first, second, third = sequences()
    batch = batch_of([first, second], [third])
    batch[columns.ROUTED_EXPERTS] = drawn_experts(batch, policy)
    policy_of_one = mixture()
    together = policy(batch).logp
    for row, start, tokens in ((0, 0, first), (0, 24, second), (1, 0, third)):
        alone = batch_of([tokens])
        place = row, slice(start, start + len(tokens))
        alone[columns.ROUTED_EXPERTS] = batch[columns.ROUTED_EXPERTS][place][None]
        expected = policy_of_one(alone).logp[0]
        torch.testing.assert_close(together[place], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_where_nothing_is_known_the_router_chooses():
    policy = mixture()
    batch = batch_of([sequences()[2]])
    routed = drawn_experts(batch, policy)
    routed[:, 20:] = -1
    with recorded_experts(policy.causal_lm) as own:
        logp = policy(batch).logp
    with recorded_experts(policy.causal_lm) as chosen:
        replayed = policy({**batch, columns.ROUTED_EXPERTS: routed}).logp
    assert torch.equal(chosen[0][:20], routed[0, :20, 0].long())
    assert torch.equal(chosen[0][20:], own[0][20:])
    unknown = policy({**batch, columns.ROUTED_EXPERTS: torch.full_like(routed, -1)})
    assert torch.equal(unknown.logp, logp)
    assert not torch.equal(replayed, logp)


@torch.no_grad()
def test_a_shared_prefix_has_the_routing_of_its_first_sequence():
    policy = mixture()
    assert policy.share_prefixes
    prefix = sequences()[2]
    one, other = torch.cat([prefix, sequences()[0]]), torch.cat([prefix, prefix[:5]])
    first, last = sorted([one, other], key=lambda s: s.tolist())
    batch = batch_of([last], [first])
    routed = batch[columns.ROUTED_EXPERTS] = drawn_experts(batch, policy)
    together = policy(batch).logp
    # As if the last one had been sent where the first one was, as long as they agree.
    routed = routed.clone()
    routed[0, : len(prefix)] = routed[1, : len(prefix)]
    policy.share_prefixes = False
    apart = policy({**batch, columns.ROUTED_EXPERTS: routed}).logp
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_is_that_of_the_replayed_pass(checkpointing):
    torch.manual_seed(0)
    lm = tiny_lm("qwen3_moe", norm_topk_prob=True)
    if checkpointing:
        from rllib_llm_async.models.loading import _checkpoint_layers

        _checkpoint_layers(lm)
    policy = CausalLMPolicy(lm, router_replay=True)
    batch = batch_of(sequences()[:2])
    batch[columns.ROUTED_EXPERTS] = drawn_experts(batch, policy)

    def value():
        return policy(batch).logp.double().sum()

    if checkpointing:
        # A pass with other experts in between must not get into the backward pass.
        total = value()
        with torch.no_grad():
            policy({**batch, columns.ROUTED_EXPERTS: drawn_experts(batch, policy, 7)})
            policy({k: v for k, v in batch.items() if k != columns.ROUTED_EXPERTS})
        total.backward()
    else:
        value().backward()
    routers = [n for n, _ in policy.named_parameters() if n.endswith("mlp.gate.weight")]
    assert len(routers) == 2
    for name in [*routers, "lm.model.layers.0.mlp.experts.down_proj"]:
        weight = policy.get_parameter(name)
        direction = torch.randn_like(weight)
        slope = float((weight.grad * direction).sum())
        step = 1e-3
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                weight.add_(sign * step * direction)
                values.append(float(value()))
                weight.sub_(sign * step * direction)
        assert abs(slope) > 0.1
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=0.02)


@torch.no_grad()
def test_passes_under_other_weights_replay_too():
    policy = mixture()
    batch = batch_of(sequences())
    routed = batch[columns.ROUTED_EXPERTS] = drawn_experts(batch, policy)
    others = {
        name: weight + 0.3 * torch.randn_like(weight)
        for name, weight in policy.named_parameters()
    }
    for parameters in (None, others):
        with recorded_experts(policy.causal_lm) as chosen:
            policy.score(batch, parameters, max_tokens=10_000)
        for layer, experts in chosen.items():
            assert torch.equal(experts, routed[0, :, layer].long())
    # What a source passes over is packed anew, with the experts of its tokens.
    wanted = batch[columns.LOSS_MASK] & (batch[columns.SEQUENCE_IDS] != 2)
    prefixes = select_prefixes(batch, wanted).batch
    real = prefixes[columns.SEQUENCE_IDS] > 0
    found = prefixes[columns.ROUTED_EXPERTS][real]
    kept = batch[columns.SEQUENCE_IDS] != 2
    assert sorted(found.tolist()) == sorted(
        batch[columns.ROUTED_EXPERTS][kept].tolist()
    )
    assert (prefixes[columns.ROUTED_EXPERTS][~real] == -1).all()


def test_bfloat16_replays_to_the_bit():
    policy = mixture(compute_dtype=torch.bfloat16)
    batch = batch_of([sequences()[2]])
    with torch.no_grad(), recorded_experts(policy.causal_lm) as chosen:
        logp = policy(batch).logp
        routed = torch.stack([chosen[0], chosen[1]], 1)[None].short()
        assert torch.equal(policy({**batch, columns.ROUTED_EXPERTS: routed}).logp, logp)


def test_a_router_that_weighs_otherwise_is_refused():
    lm = tiny_lm("qwen3_moe", norm_topk_prob=False)
    lm.config.norm_topk_prob = True
    with pytest.raises(ValueError, match=r"^router_replay: Qwen3MoeForCausalLM weighs"):
        CausalLMPolicy(lm, router_replay=True)
    CausalLMPolicy(lm)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5_moe_text"])
def test_models_without_known_routers_do_not_replay(family):
    assert not CausalLMPolicy(tiny_lm(family), router_replay=True).replays_routers


def decision(tmp_path, model_type, engine=(), **settings):
    config = {"model_type": model_type, **COMMON, **settings}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return router_replay(str(tmp_path), dict(engine), trust_remote_code=False)


def test_auto_is_on_for_mixtures_whose_engine_can_tell(tmp_path):
    assert decision(tmp_path, "qwen3_moe", num_experts=4) == (True, None)
    assert decision(tmp_path, "mixtral", num_local_experts=4) == (True, None)
    assert decision(tmp_path, "qwen3") == (False, None)
    assert decision(tmp_path, "qwen3_moe", num_experts=0) == (False, None)


@pytest.mark.parametrize(
    ("model_type", "engine", "words"),
    [
        ("gpt_oss", {}, "the routers of gpt_oss are unknown"),
        ("qwen3_moe", {"enable_prefix_caching": False}, "enable_prefix_caching: False"),
        ("qwen3_moe", {"pipeline_parallel_size": 2}, "pipeline_parallel_size: 2"),
        ("qwen3_moe", {"speculative_config": {"k": 1}}, "speculative_config"),
    ],
)
def test_where_auto_is_off_it_says_why(tmp_path, model_type, engine, words):
    is_on, because = decision(tmp_path, model_type, engine, num_experts=4)
    assert not is_on and words in because
