"""Numbers on the page keep the small differences that they are about."""

import pytest

from rllib_llm_async.report.section import percent, share_axis


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0 %"),
        (1, "100 %"),
        (0.5, "50.0 %"),
        (0.9996, "99.96 %"),
        (0.999999, "99.9999 %"),
        (0.00012, "0.01 %"),
        (0.0000021, "0.0002 %"),
    ],
)
def test_a_share_is_zero_or_all_only_where_it_is(share, text):
    assert percent(share) == text


@pytest.mark.parametrize(
    "shares", [[1.0, 1.0], [0.0, 0.0], [0.9998, 1.0], [0.2, 0.9], [0.0, 3e-5]]
)
def test_an_axis_of_shares_holds_them_and_little_else(shares):
    low, high = share_axis(shares)["range"]
    assert low <= min(shares) and high >= max(shares)
    assert low > -0.01 and high < 1.01
    # Ticks, some five of them, differ in one of the four digits that they have.
    assert high - low >= 0.005
    assert share_axis([]) == {}
