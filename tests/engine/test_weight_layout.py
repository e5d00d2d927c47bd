"""Bits are compared however an engine keeps them, or it is said that they are not."""

import logging

import numpy as np
import pytest
import torch

from rllib_llm_async.core.fingerprint import fingerprint
from rllib_llm_async.engine.arrival_check import ArrivalCheck, ExpectedArrival
from rllib_llm_async.engine.weight_layout import WeightLayout

LAYERS = 2
EXPERTS = 3


def prints(tensors):
    return {name: fingerprint(tensor) for name, tensor in tensors.items()}


def checkpoint(seed):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(torch.bfloat16)

    tensors = {
        "model.embed_tokens.weight": random(10, 8),
        "model.norm.weight": random(8),
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        tensors[at + "input_layernorm.weight"] = random(8)
        for projection, rows in (("q", 8), ("k", 4), ("v", 4)):
            tensors[f"{at}self_attn.{projection}_proj.weight"] = random(rows, 8)
        tensors[at + "self_attn.o_proj.weight"] = random(8, 8)
        for expert in range(EXPERTS):
            expert_at = f"{at}mlp.experts.{expert}."
            tensors[expert_at + "gate_proj.weight"] = random(6, 8)
            tensors[expert_at + "down_proj.weight"] = random(8, 6)
    return tensors


def homes(tensors):
    """What vLLM says: q, k and v are in qkv_proj; nothing about experts."""
    fused = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"}
    result = {}
    for name in tensors:
        pieces = [fused.get(piece, piece) for piece in name.split(".")]
        result[name] = ".".join(pieces)
    return result


def engine(tensors):
    """Fused, stacked and padded as vLLM does; the head is tied."""
    held = {}
    for name, home in homes(tensors).items():
        if ".experts." in name:
            prefix, _, rest = name.partition("experts.")
            home = prefix + "experts." + rest.split(".", 1)[1]
            held.setdefault(home, []).append(tensors[name])
        else:
            held.setdefault(home, []).append(tensors[name])
    stacked = {home: torch.cat(parts) for home, parts in held.items()}
    padding = torch.zeros(6, 8, dtype=torch.bfloat16)
    embedding = stacked["model.embed_tokens.weight"]
    stacked["model.embed_tokens.weight"] = torch.cat([embedding, padding])
    return stacked


def layout_of(tensors, *ranks):
    return WeightLayout(
        prints(tensors), homes(tensors), [prints(rank) for rank in ranks]
    )


@pytest.fixture
def old():
    return checkpoint(seed=0)


@pytest.fixture
def new():
    return checkpoint(seed=1)


@pytest.fixture
def layout(old):
    return layout_of(old, engine(old))


def test_all_of_a_fused_stacked_and_padded_model_is_compared(layout, old, new):
    assert layout.not_comparable == []
    assert all(part.keeps_rows for part in layout.parts)
    assert layout.differences(prints(new), [prints(engine(new))]) == []
    assert layout.not_published(prints(new)) == []
    # Embedding, norm; per layer norm, qkv, o and the experts.
    assert len(layout.parts) == 2 + LAYERS * 4
    stale = layout.differences(prints(new), [prints(engine(old))])
    assert len(stale) == len(layout.parts)


@pytest.mark.parametrize(
    ("stale", "label"),
    [
        ("model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("model.norm.weight", "model.norm.weight"),
        ("model.layers.1.self_attn.k_proj.weight", "model.layers.1.self_attn.qkv_proj"),
        ("model.layers.0.self_attn.o_proj.weight", "model.layers.0.self_attn.o_proj"),
        ("model.layers.1.mlp.experts.2.down_proj.weight", "model.layers.1.mlp.experts"),
    ],
)
def test_one_stale_tensor_is_named(layout, old, new, stale, label):
    held = engine({**new, stale: old[stale]})
    (named,) = layout.differences(prints(new), [prints(held)])
    assert named.removesuffix(".weight") == label.removesuffix(".weight")


def test_a_single_flipped_bit_is_seen(layout, new):
    held = engine(new)
    held["model.layers.0.self_attn.qkv_proj.weight"].view(torch.int16)[3, 5] ^= 1
    assert len(layout.differences(prints(new), [prints(held)])) == 1


@pytest.mark.parametrize("head_in_checkpoint", [False, True])
@pytest.mark.parametrize("head_published", [False, True])
def test_a_tied_head_may_be_a_copy_but_not_a_stale_one(
    old, new, head_in_checkpoint, head_published
):
    def with_head(tensors, yes=True):
        head = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
        return {**tensors, **(head if yes else {})}

    layout = layout_of(with_head(old, head_in_checkpoint), engine(with_head(old)))
    published = prints(with_head(new, head_published))
    assert layout.not_comparable == layout.not_published(published) == []
    assert layout.differences(published, [prints(engine(with_head(new)))]) == []
    stale = engine({**new, "lm_head.weight": old["model.embed_tokens.weight"]})
    assert layout.differences(published, [prints(stale)]) == ["lm_head.weight"]


def test_an_update_that_unties_the_head_is_seen(layout, old, new):
    held = engine(new)
    held["lm_head.weight"] = held["model.embed_tokens.weight"]
    assert layout.differences(prints(new), [prints(held)]) == []
    held["lm_head.weight"] = engine(old)["model.embed_tokens.weight"]
    assert layout.differences(prints(new), [prints(held)]) == ["lm_head.weight"]


def test_a_head_that_was_copied_from_the_embedding_may_train_apart(old, new):
    old["lm_head.weight"] = old["model.embed_tokens.weight"]
    new["lm_head.weight"] = -new["model.embed_tokens.weight"]
    layout = layout_of(old, engine(old))
    assert layout.differences(prints(new), [prints(engine(new))]) == []


def test_permuted_rows_are_compared_by_elements(old, new):
    def packed(tensors):
        held = engine(tensors)
        name = "model.layers.0.mlp.experts.gate_proj.weight"
        held[name] = held[name].T
        return held

    layout = layout_of(old, packed(old))
    assert layout.not_comparable == []
    assert sum(not part.keeps_rows for part in layout.parts) == 1
    assert layout.differences(prints(new), [prints(packed(new))]) == []
    assert layout.differences(prints(new), [prints(packed(old))]) != []


def tensor_parallel(tensors):
    """Two ranks: qkv split by rows, o by columns, the rest on both."""
    ranks = []
    for rank in range(2):
        held = engine(tensors)
        for name, tensor in held.items():
            if "qkv_proj" in name:
                held[name] = tensor.chunk(2, 0)[rank]
            if "o_proj" in name:
                held[name] = tensor.chunk(2, 1)[rank]
        ranks.append(held)
    return ranks


def test_ranks_that_split_the_model_are_added_up(old, new):
    layout = layout_of(old, *tensor_parallel(old))
    assert layout.not_comparable == []
    ranks = tensor_parallel(new)
    assert layout.differences(prints(new), [prints(rank) for rank in ranks]) == []
    for name in ranks[1]:
        stale = [ranks[0], {**ranks[1], name: tensor_parallel(old)[1][name]}]
        differing = layout.differences(prints(new), [prints(rank) for rank in stale])
        assert len(differing) == 1, name


def arrival_check(tensors, held, inexact=()):
    layout = layout_of(tensors, held)
    return ArrivalCheck("bfloat16", layout, list(inexact))


def expected(tensors):
    return ExpectedArrival(prints(tensors), [5, 6, 7], np.array([-1.0, -2.0]))


def test_what_cannot_be_compared_is_said_once(old, new, caplog):
    def quantised(tensors):
        held = engine(tensors)
        name = "model.layers.0.self_attn.o_proj.weight"
        held[name] = (held[name] * 16).to(torch.int8)
        return held

    check = arrival_check(old, quantised(old), ["lm_head"])
    del new["model.norm.weight"]
    with caplog.at_level(logging.WARNING):
        for version in (1, 2):
            assert (
                check.wrong_bits(
                    version, expected(new), [prints(quantised(old | new))], ["lm_head"]
                )
                is None
            )
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("3 parameters of the engine cannot be compared")
    for name in ("layers.0.self_attn.o_proj.weight", "model.norm.weight", "lm_head"):
        assert name in message


def test_a_mismatch_is_told_in_one_line(old, new):
    check = arrival_check(old, engine(old))
    assert check.wrong_bits(4, expected(old), [prints(engine(old))], []) is None
    stale = "model.layers.1.self_attn.o_proj.weight"
    held = engine({**new, stale: old[stale]})
    assert check.wrong_bits(5, expected(new), [prints(held)], []) == (
        "1 of 10 parameters have other bits than the trainer's, which are still those "
        f"of version 4 ({stale})"
    )
    held[stale] = torch.zeros_like(held[stale])
    problem = check.wrong_bits(5, expected(new), [prints(held)], [])
    assert problem == (
        f"1 of 10 parameters have other bits than the trainer's ({stale})"
    )
    problem = check.wrong_bits(5, expected(new), [prints(engine(new))], ["lm_head"])
    assert problem == (
        "layers that compute with something else than their parameters, such as a "
        "packed copy of older ones: lm_head"
    )


def test_numerics_are_judged_by_the_median(old):
    check = arrival_check(old, engine(old))
    arrival = expected(old)
    assert check.wrong_numerics(arrival, np.array([-1.3, -2.3])) is None
    problem = check.wrong_numerics(arrival, np.array([-1.6, -2.6]))
    assert problem == (
        "engine and trainer differ by 0.6 nats on the probe prompt, 0.5 allowed"
    )
    assert check.wrong_numerics(arrival, np.array([np.nan, -2.0])) is not None
