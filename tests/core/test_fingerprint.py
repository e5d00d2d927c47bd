"""A fingerprint sees every bit, and does not see how tensors are fused."""

import pytest
import torch

from rllib_llm_async.core import fingerprint as module
from rllib_llm_async.core.fingerprint import (
    Fingerprint,
    add_fingerprints,
    fingerprint,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8]
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights(*shape, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 20).to(dtype)


def plain_fingerprint(tensor):
    """The definition, element by element, in Python's integers."""
    size = tensor.element_size()
    if tensor.dim() < 2:
        tensor = tensor.reshape(-1, 1)
    rows = tensor.reshape(-1, tensor.shape[-1]).view(INTEGERS[size]).tolist()
    wrap = 1 << 32
    words = [[word % wrap for word in row] for row in rows]  # sign-extended

    def mix(word):
        word = (word ^ word >> 16) * 0x85EBCA6B % wrap
        word = (word ^ word >> 13) * 0xC2B2AE35 % wrap
        return word ^ word >> 16

    sums = [sum(mix(word) for word in column) for column in zip(*words)]
    weighed = sum(s * (mix(place) | 1) for place, s in enumerate(sums, start=1))
    return Fingerprint(sum(sums) % wrap, weighed % wrap)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (torch.float32, (7, 6)),
        (torch.bfloat16, (7, 6)),
        (torch.bfloat16, (7, 5)),
        (torch.float16, (9,)),
        (torch.float32, ()),
        (torch.float32, (3, 2, 5)),
    ],
    ids=str,
)
def test_is_the_sum_of_hashed_elements(dtype, shape):
    tensor = weights(*shape, dtype=dtype)
    assert fingerprint(tensor) == plain_fingerprint(tensor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 8), (5, 7), (11,)], ids=str)
def test_sees_every_single_bit(dtype, shape):
    tensor = weights(*shape, dtype=dtype)
    before = fingerprint(tensor)
    integers = tensor.view(-1).view(INTEGERS[tensor.element_size()])
    seen = {before}
    for element in (0, 3, len(integers) - 1):
        for bit in range(8 * tensor.element_size()):
            flip = 1 << bit
            if bit == 8 * tensor.element_size() - 1 and integers.dtype != torch.uint8:
                flip = -flip
            integers[element] ^= flip
            seen.add(fingerprint(tensor))
            integers[element] ^= flip
    assert len(seen) == 1 + 3 * 8 * tensor.element_size()
    assert fingerprint(tensor) == before


def test_a_step_up_does_not_hide_a_step_down():
    tensor = weights(64, 64)
    before = fingerprint(tensor)
    bits = tensor.view(torch.int16)
    for _ in range(200):
        (i, j), (k, m) = torch.randint(0, 64, (2, 2)).tolist()
        if (i, j) == (k, m) or bits[i, j] + 1 == bits[k, m]:
            continue
        bits[i, j] += 1
        bits[k, m] -= 1
        assert fingerprint(tensor).elements != before.elements
        bits[i, j] -= 1
        bits[k, m] += 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_does_not_see_fusing_stacking_and_padding(dtype):
    q, k, v = (weights(rows, 16, dtype=dtype, seed=rows) for rows in (12, 4, 5))
    parts = add_fingerprints(map(fingerprint, (q, k, v)))
    assert fingerprint(torch.cat([k, q, v])) == parts
    padded = torch.cat([q, k, v, torch.zeros(11, 16, dtype=dtype)])
    assert fingerprint(padded) == parts

    experts = [weights(6, 16, dtype=dtype, seed=seed) for seed in range(4)]
    parts = add_fingerprints(map(fingerprint, experts))
    assert fingerprint(torch.stack(experts)) == parts

    biases = [weights(n, dtype=dtype, seed=n) for n in (3, 4)]
    parts = add_fingerprints(map(fingerprint, biases))
    assert fingerprint(torch.cat(biases)) == parts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("columns", [(0, 1), (2, 9)])
def test_sees_a_swap_within_a_row(dtype, columns):
    tensor = weights(5, 10, dtype=dtype)
    swapped = tensor.clone()
    swapped[3, list(columns)] = tensor[3, list(reversed(columns))]
    assert fingerprint(swapped).rows != fingerprint(tensor).rows


def test_a_transposed_layout_keeps_elements_alone():
    tensor = weights(8, 8, dtype=torch.float32)
    straight, transposed = fingerprint(tensor), fingerprint(tensor.T)
    assert straight.elements == transposed.elements
    assert straight.rows != transposed.rows


def test_nan_equals_itself_and_minus_zero_is_not_zero():
    nan = torch.full((2, 4), torch.nan)
    assert fingerprint(nan) == fingerprint(nan.clone())
    assert fingerprint(torch.zeros(2, 4)) == (0, 0)
    assert fingerprint(-torch.zeros(2, 4)) != (0, 0)


def test_chunks_make_no_difference(monkeypatch):
    tensors = [weights(100, 6), weights(100, 7), weights(300), weights(4, 500)]
    whole = [fingerprint(tensor) for tensor in tensors]
    monkeypatch.setattr(module, "_CPU_CHUNK", 64)
    assert [fingerprint(tensor) for tensor in tensors] == whole


def test_takes_tensors_as_they_lie_in_memory():
    flat = weights(4 * 6 + 1)
    unaligned = flat[1:].view(4, 6)
    assert fingerprint(unaligned) == fingerprint(unaligned.clone())
    transposed = weights(6, 4).T
    assert fingerprint(transposed) == fingerprint(transposed.contiguous())
    assert fingerprint(torch.zeros(0, 4)) == fingerprint(torch.zeros(0)) == (0, 0)
