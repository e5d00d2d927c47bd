"""Whether an engine holds an adapter, from fingerprints alone."""

import pytest
import torch

from rllib_llm_async.core.fingerprint import fingerprint
from rllib_llm_async.engine.adapters import AdapterLayout

A, B = "layers.0.o_proj.lora_A.weight", "layers.0.o_proj.lora_B.weight"
ELSEWHERE = "layers.0.q_proj.lora_B"


@pytest.fixture
def matrices():
    generator = torch.Generator().manual_seed(0)
    return {
        A: torch.randn(4, 64, generator=generator),
        B: torch.randn(48, 4, generator=generator),
    }


def prints(tensors):
    return {name: fingerprint(tensor) for name, tensor in tensors.items()}


def room(matrix, rows, columns):
    """As vLLM holds it: with zeros up to the rank that it has room for."""
    padded = torch.zeros(1, rows, columns)
    padded[0, : matrix.shape[0], : matrix.shape[1]] = matrix
    return padded


def differences(published, *ranks):
    return AdapterLayout().differences(prints(published), [prints(r) for r in ranks])


def test_a_matrix_is_found_in_a_larger_room(matrices):
    held = {A: room(matrices[A], 8, 64), B: room(matrices[B], 48, 8)}
    assert differences(matrices, held) == []
    held[ELSEWHERE] = torch.zeros(1, 48, 8)
    assert differences(matrices, held) == []


def test_what_is_changed_missing_or_too_much_is_named(matrices):
    changed = matrices[B].clone()
    changed[3, 1] += 1e-6
    assert differences(matrices, {**matrices, B: changed}) == [B]
    columns_swapped = matrices[B][:, [1, 0, 2, 3]]
    assert differences(matrices, {**matrices, B: columns_swapped}) == [B]
    assert differences(matrices, {A: matrices[A]}) == [B]
    held = {**matrices, ELSEWHERE: torch.ones(1, 48, 8)}
    assert differences(matrices, held) == [ELSEWHERE]


def test_ranks_hold_shares_of_rows_or_columns_or_all(matrices):
    columns, rows = matrices[A].split(32, dim=1), matrices[B].split(24)
    whole = [matrices[A], matrices[B]]
    for a, b in ((columns, [whole[1]] * 2), ([whole[0]] * 2, rows)):
        ranks = [{A: a[n], B: b[n]} for n in range(2)]
        assert differences(matrices, *ranks) == []
        stale = [{**ranks[0]}, {**ranks[1], B: ranks[1][B] + 1e-6}]
        assert differences(matrices, *stale) == [B]


def test_more_ranks_than_kv_heads_hold_each_head_several_times(matrices):
    heads = matrices[B].split(24)
    ranks = [{A: matrices[A], B: head} for head in heads for _ in range(2)]
    assert differences(matrices, *ranks) == []
    for stale in range(4):
        changed = [*ranks]
        changed[stale] = {A: matrices[A], B: ranks[stale][B] + 1e-6}
        assert differences(matrices, *changed) == [B]
    assert differences(matrices, *ranks[:3]) == [B]


def test_a_pipeline_has_each_layer_on_one_rank(matrices):
    assert differences(matrices, matrices, {}) == []
    assert differences(matrices, {A: matrices[A]}, {}) == [B]
