"""Four figures of log r_d, and the bound that follows from them."""

import math

import pytest
import torch

from rllib_llm_async.core.discrepancy import (
    KEPT_SHARE,
    discrepancy,
    suggested_eps_ti,
)


def test_the_figures_of_a_known_sample():
    # 1 to 2000 thousandths, of either sign. 0.999 x 2000 = 1998 of them are kept.
    values = torch.arange(1, 2001) / 1000 * torch.tensor([1, -1]).repeat(1000)
    found = discrepancy(values[torch.randperm(2000)])
    # Sum of squares: n(n + 1)(2n + 1)/6; mean: (n + 1)/2.
    assert found.rms == pytest.approx(math.sqrt(2001 * 4001 / 6) / 1000, rel=1e-6)
    assert found.mean == pytest.approx(2001 / 2 / 1000, rel=1e-6)
    assert found.quantile == pytest.approx(1.998, rel=1e-6)
    assert found.largest == pytest.approx(2.0, rel=1e-6)
    assert found.num_tokens == 2000


@pytest.mark.parametrize("number", [1, 5, 999, 1000, 1001, 4321])
def test_the_bound_keeps_that_share(number):
    values = 0.03 * torch.randn(number, generator=torch.Generator().manual_seed(number))
    bound = discrepancy(values).suggested_eps_ti
    ratios = values.double().exp()
    kept = (ratios <= bound) & (ratios >= 1 / bound)
    assert kept.double().mean() >= KEPT_SHARE
    # And no more than it has to: a bound smaller by two digits' rounding keeps fewer.
    smaller = 1 + (bound - 1) / 1.15
    kept = (ratios <= smaller) & (ratios >= 1 / smaller)
    assert kept.double().mean() < KEPT_SHARE or number < 3


@pytest.mark.parametrize(
    ("quantile", "bound"),
    [
        # exp(q) - 1, rounded up to two digits.
        (math.log(1.0214), 1.022),
        (math.log(1.02), 1.02),
        (math.log(1.5), 1.5),
        (math.log(3.01), 3.1),
        (math.log(1.000123), 1.00013),
        (0.0, 1.000001),
    ],
)
def test_the_bound_is_the_quantile_rounded_up(quantile, bound):
    assert suggested_eps_ti(quantile) == pytest.approx(bound, rel=1e-9)


@pytest.mark.parametrize("values", [[], [0.1, math.nan], [math.inf]])
def test_what_is_no_number_is_no_figure(values):
    with pytest.raises(ValueError, match="have to be numbers"):
        discrepancy(torch.tensor(values))
