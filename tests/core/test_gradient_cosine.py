"""The cosine of consecutive gradients, against all entries in float64."""

from itertools import pairwise

import pytest
import torch

from rllib_llm_async.core import gradient_cosine as module
from rllib_llm_async.core.gradient_cosine import GradientCosine


def gradients(seed, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"matrix": (40, 30), "bias": (7,), "scalar": (), "none": (0, 30)}
    return {
        name: (scale * torch.randn(shape, generator=generator)).to(dtype)
        for name, shape in shapes.items()
    }


def plain_cosine(one, other):
    one, other = (
        torch.cat([g.double().flatten() for g in x.values()]) for x in [one, other]
    )
    return float(one @ other / one.norm() / other.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e-25])
def test_each_gradient_is_compared_with_the_one_before_it(dtype, scale):
    cosine = GradientCosine()
    seen = [gradients(seed, dtype, scale) for seed in range(3)]
    assert cosine.see(seen[0]) is None
    for before, now in pairwise(seen):
        assert float(cosine.see(now)) == pytest.approx(
            plain_cosine(before, now), abs=1e-6
        )


def test_length_does_not_matter_and_direction_does():
    cosine = GradientCosine()
    one = gradients(0)
    cosine.see(one)
    assert float(cosine.see({k: 3.0 * g for k, g in one.items()})) == pytest.approx(1.0)
    assert float(cosine.see({k: -g for k, g in one.items()})) == pytest.approx(-1.0)
    assert float(cosine.see({k: 0.0 * g for k, g in one.items()})) == 0.0


def test_what_becomes_of_a_gradient_afterwards_does_not_matter():
    cosine = GradientCosine()
    one, other = gradients(0), gradients(1)
    expected = plain_cosine(one, other)
    cosine.see(one)
    for gradient in one.values():
        gradient.zero_()
    assert float(cosine.see(other)) == pytest.approx(expected)


def test_a_parameter_without_gradient_counts_as_zero():
    cosine = GradientCosine()
    before, now = gradients(0), gradients(1)
    del before["bias"], now["scalar"]
    cosine.see(before)
    zeros = {name: torch.zeros_like(g) for name, g in gradients(0).items()}
    expected = plain_cosine({**zeros, **before}, {**zeros, **now})
    assert float(cosine.see(now)) == pytest.approx(expected)


def test_entries_of_a_large_tensor_stand_for_all(monkeypatch):
    """They are counted for the others: a large tensor outweighs a small one."""
    monkeypatch.setattr(module, "MAX_ENTRIES", 997)
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(400, 300, generator=generator)
    cosine, seen = GradientCosine(), []
    for _ in range(2):
        large = common + torch.randn(400, 300, generator=generator)
        small = 5.0 * torch.randn(900, generator=generator)
        seen.append({"large": large, "small": small})
    cosine.see(seen[0])
    assert sum(entries.numel() for entries in cosine._before.values()) == 997 + 900
    error = float(cosine.see(seen[1])) - plain_cosine(*seen)
    assert abs(error) < 4 / 997**0.5


def test_entries_that_are_looked_at_lie_in_all_rows_and_columns():
    index = torch.arange(4096 * 512).reshape(512, 4096)
    kept = module._entries(index.double()) / (4096 * 512 / module.MAX_ENTRIES) ** 0.5
    kept = kept.round().long()
    assert len((kept // 4096).unique()) == 512
    assert len((kept % 4096).unique()) > 4000
