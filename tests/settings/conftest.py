"""A config with some settings changed, by the names under which they are set."""

import pytest

from rllib_llm_async import AsyncDecoupledPPOConfig


@pytest.fixture
def make_config():
    def make(**settings):
        return AsyncDecoupledPPOConfig().update_from_dict(settings)

    return make
