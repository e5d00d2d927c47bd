"""pass@k and pass^k against brute-force enumeration of the k trials."""

from fractions import Fraction
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rllib_llm_async.core import pass_at_k, pass_hat_k


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_equal_the_share_of_all_subsets(trials, data):
    k = data.draw(st.integers(1, len(trials)))
    subsets = list(combinations(trials, k))
    counts = len(trials), sum(trials), k
    assert pass_at_k(*counts) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    assert pass_hat_k(*counts) == pytest.approx(sum(map(all, subsets)) / len(subsets))


@pytest.mark.parametrize("n, k", [(4, 1), (4, 2), (5, 3), (6, 6)])
def test_are_unbiased(n, k):
    p = Fraction(1, 3)
    at = hat = Fraction(0)
    for trials in product([True, False], repeat=n):
        weight = p ** sum(trials) * (1 - p) ** (n - sum(trials))
        at += weight * Fraction(pass_at_k(n, sum(trials), k))
        hat += weight * Fraction(pass_hat_k(n, sum(trials), k))
    assert float(at) == pytest.approx(float(1 - (1 - p) ** k))
    assert float(hat) == pytest.approx(float(p**k))


@given(st.integers(1, 30), st.data())
def test_order(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    assert pass_hat_k(n, c, k) <= c / n + 1e-12
    assert pass_at_k(n, c, k) >= c / n - 1e-12
    # All of k succeed exactly when none of k fails.
    assert pass_hat_k(n, c, k) == pytest.approx(1 - pass_at_k(n, n - c, k))


@pytest.mark.parametrize("estimate", [pass_at_k, pass_hat_k])
@pytest.mark.parametrize("counts", [(2, 1, 3), (2, 3, 1), (2, 1, 0), (2, -1, 1)])
def test_impossible_counts(estimate, counts):
    with pytest.raises(ValueError, match="num_trials=2"):
        estimate(*counts)
