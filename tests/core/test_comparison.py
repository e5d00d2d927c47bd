"""The comparison against numpy in float64."""

import numpy as np
import pytest
import torch

from rllib_llm_async.core import compare_old_logp
from rllib_llm_async.core.comparison import comparison_figures, comparison_sums


def test_equals_numpy_on_the_agent_tokens():
    rng = np.random.default_rng(0)
    old, exact, logp, behavior = rng.normal(-2, 0.3, (4, 5, 40))
    mask = rng.random((5, 40)) < 0.5
    result = compare_old_logp(
        *(
            torch.tensor(np.where(mask, x, np.nan))
            for x in (old, exact, logp, behavior)
        ),
        torch.tensor(mask),
        eps_ti=1.2,
    )
    log_r_d, log_r_s = (old - behavior)[mask], (logp - old)[mask]
    kept = np.abs(log_r_d) <= np.log(1.2)
    exactly_kept = np.abs((exact - behavior)[mask]) <= np.log(1.2)
    assert float(result["mask_share"]) == pytest.approx(kept.mean())
    assert float(result["mask_disagreement"]) == pytest.approx(
        (kept != exactly_kept).mean()
    )
    assert float(result["log_ratio_abs_error_mean"]) == pytest.approx(
        np.abs(old - exact)[mask].mean(), rel=1e-5
    )
    assert float(result["r_d_r_s_correlation"]) == pytest.approx(
        np.corrcoef(log_r_d, log_r_s)[0, 1], rel=1e-5
    )


def test_parts_of_unequal_size_add_up_to_the_whole():
    readings = np.random.default_rng(0).normal(-2, 0.3, (4, 40))
    readings = [*torch.tensor(readings), torch.ones(40, dtype=torch.bool)]
    parts = [
        comparison_sums(*(x[part] for x in readings), eps_ti=1.2)
        for part in (slice(0, 3), slice(3, 3), slice(3, 40))
    ]
    figures = comparison_figures(torch.stack(parts).sum(0))
    torch.testing.assert_close(figures, compare_old_logp(*readings, eps_ti=1.2))
    assert len({*map(float, figures.values())}) == len(figures)


def test_the_mask_is_that_of_the_units_it_is_formed_over():
    """Each token of a unit is off by 0.2, the unit as a whole is not at all."""
    exact = torch.zeros(4)
    old = torch.tensor([0.2, -0.2, 0.2, 0.2])
    mask = torch.ones(4, dtype=torch.bool)
    units = torch.tensor([0, 0, 1, 1])
    result = compare_old_logp(
        old, exact, exact, exact, mask, eps_ti=1.1, mask_unit_ids=units
    )
    assert float(result["mask_share"]) == 0.5 == float(result["mask_disagreement"])
    assert float(result["log_ratio_abs_error_mean"]) == pytest.approx(0.2)


def test_what_the_mask_keeps_is_known_without_the_exact_reading():
    x, mask = torch.zeros(4), torch.ones(4, dtype=torch.bool)
    nothing = torch.full((4,), torch.nan)
    result = compare_old_logp(x, nothing, x, x, mask, eps_ti=1.1)
    assert float(result["mask_share"]) == 1.0
    assert float(result["log_ratio_abs_error_mean"]) == 0.0
    unknown = compare_old_logp(nothing, x, x, x, mask, eps_ti=1.1)
    assert float(unknown["mask_share"]) == 0.0


def test_a_constant_ratio_and_an_empty_mask_give_zero():
    x, mask = torch.randn(8), torch.ones(8, dtype=torch.bool)
    same = compare_old_logp(x, x, x, x - 0.1, mask, eps_ti=1.2)
    assert float(same["r_d_r_s_correlation"]) == 0 == float(same["mask_disagreement"])
    empty = compare_old_logp(x, x, x, x, ~mask, eps_ti=1.2)
    assert all(float(value) == 0 for value in empty.values())
