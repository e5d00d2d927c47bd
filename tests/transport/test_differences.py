"""Differences as bytes: exact in every bit, small where little changed."""

import pytest
import torch

from rllib_llm_async.core.deltas import bits
from rllib_llm_async.transport import differences
from rllib_llm_async.transport.differences import apply_, checksum, encode


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(differences, "PIECE", 1 << 16)


def two_versions(dtype, step):
    generator = torch.Generator().manual_seed(0)
    master = 0.02 * torch.randn(200_001, generator=generator)
    moved = master + step * torch.randn(master.shape, generator=generator)
    return master.to(dtype), moved.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("step", [0.0, 1e-6, 1.0])
def test_a_difference_gives_every_bit_of_the_new_version(dtype, step):
    old, new = two_versions(dtype, step)
    new[:4] = torch.tensor([float("nan"), -0.0, 0.0, float("inf")])
    old[1:3] = torch.tensor([0.0, -0.0])
    encoded = b"".join(encode(new, old))
    apply_(
        old, [encoded[start : start + 1000] for start in range(0, len(encoded), 1000)]
    )
    assert torch.equal(bits(old), bits(new))


def test_a_small_step_in_bfloat16_is_a_small_difference():
    old, new = two_versions(torch.bfloat16, 1e-6)
    assert len(b"".join(encode(new, old))) < 0.15 * new.nbytes


def test_pieces_travel_whole_where_that_is_smaller_and_not_at_all_where_equal():
    old, _ = two_versions(torch.float32, 0.0)
    new = old.clone()
    new[: 1 << 16] += 1.0  # the first of four pieces
    new[-1] += 1.0
    encoded = [*encode(new, old)]
    piece = 4 << 16
    assert piece <= sum(map(len, encoded)) < piece + 1000
    apply_(old, encoded)
    assert torch.equal(old, new)


def test_the_work_can_be_ended_after_every_piece():
    old, new = two_versions(torch.bfloat16, 1e-6)
    calls = []
    list(encode(new, old, check=lambda: calls.append(1)))
    assert len(calls) == 4  # 200,001 elements in pieces of 65,536
    with pytest.raises(KeyboardInterrupt):
        list(encode(new, old, check=_interrupt))
    with pytest.raises(KeyboardInterrupt):
        checksum(new, check=_interrupt)


def _interrupt():
    raise KeyboardInterrupt


def test_a_checksum_sees_a_single_bit():
    _, new = two_versions(torch.bfloat16, 1e-6)
    other = new.clone()
    bits(other)[150_000] ^= 1
    assert checksum(other) != checksum(new)
    assert checksum(new.clone()) == checksum(new)
