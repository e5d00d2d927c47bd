"""The setting `env_config.domains`."""

import pytest

from rllib_llm_async.envs.domains import chosen_domains

KNOWN = ("airline", "retail")


def test_all_or_those_that_are_named():
    assert chosen_domains(None, KNOWN) == ["airline", "retail"]
    assert chosen_domains(("retail",), KNOWN) == ["retail"]


@pytest.mark.parametrize(
    ("domains", "words"),
    [
        ("airline", "got 'airline', must be a list"),
        ([], r"got \[\], must be a list of one or more"),
        (3, "got 3, must be a list"),
        (["airlin"], "unknown 'airlin', did you mean 'airline'"),
        ([3], "unknown 3"),
        (["retail", "retail"], "retail is there twice"),
    ],
)
def test_one_line_says_what_is_wrong(domains, words):
    """A domain that is named twice would be drawn twice as often, in silence."""
    with pytest.raises(ValueError, match=f"^env_config.domains: .*{words}"):
        chosen_domains(domains, KNOWN)
