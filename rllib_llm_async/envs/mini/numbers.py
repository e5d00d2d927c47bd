"""Numbers that a policy compares: how they are drawn, and how they are said."""

from __future__ import annotations

import random


def two_digits(rng: random.Random, low: int, high: int) -> int:
    """A number between the tens ``low`` and ``high``, itself not a multiple of ten.

    So the first digit decides a comparison with a multiple of ten.
    """
    return rng.randrange(low, high, 10) + rng.randint(1, 9)


def near(rng: random.Random, limit: int, low: int, high: int) -> int:
    """Like `two_digits`; half of the numbers lie within ten of the limit.

    There a comparison is hardest, and there it is practised.
    """
    if rng.random() < 0.5:
        return two_digits(rng, max(low, limit - 10), min(high, limit + 10))
    return two_digits(rng, low, high)


def compare(number: int, limit: int, slips: bool = False) -> str:
    """The comparison aloud, as the demonstrator says it: "44 of 40 over"."""
    is_over = (number > limit) != slips
    return f"{number} of {limit} {'over' if is_over else 'within'}"
