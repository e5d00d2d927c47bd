"""Unbiased estimators over repeated trials of a task."""

from __future__ import annotations

from math import comb


def pass_at_k(num_trials: int, num_successes: int, k: int) -> float:
    """Probability that at least one of k trials succeeds, estimated without bias.

    ``1 - C(n - c, k) / C(n, k)`` for c successes in n trials (arXiv 2107.03374).

    Raises:
        ValueError: Unless ``0 <= num_successes <= num_trials`` and
            ``1 <= k <= num_trials``.
    """
    _check(num_trials, num_successes, k)
    return 1.0 - comb(num_trials - num_successes, k) / comb(num_trials, k)


def pass_hat_k(num_trials: int, num_successes: int, k: int) -> float:
    """pass^k: probability that all of k trials succeed, estimated without bias.

    ``C(c, k) / C(n, k)`` for c successes in n trials (tau-bench, arXiv 2406.12045).

    Raises:
        ValueError: Unless ``0 <= num_successes <= num_trials`` and
            ``1 <= k <= num_trials``.
    """
    _check(num_trials, num_successes, k)
    return comb(num_successes, k) / comb(num_trials, k)


def _check(num_trials: int, num_successes: int, k: int) -> None:
    if not 0 <= num_successes <= num_trials or not 1 <= k <= num_trials:
        raise ValueError(
            f"need 0 <= num_successes <= num_trials and 1 <= k <= num_trials, got "
            f"{num_trials=}, {num_successes=}, {k=}"
        )
