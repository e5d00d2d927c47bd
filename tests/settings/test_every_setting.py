"""Every setting takes what it should, and says in one line why it takes no more."""

import inspect
from typing import get_args

import pytest

from rllib_llm_async import AsyncDecoupledPPOConfig, PPOEWMAAsyncConfig
from rllib_llm_async.core.ratios import RATIO_LEVELS
from rllib_llm_async.settings.check import check_settings, check_value
from rllib_llm_async.settings.kinds import Level
from rllib_llm_async.settings.schema import ATTRIBUTES, Settings
from tests.settings.table import TABLE


def test_every_setting_has_a_row():
    assert set(TABLE) == set(Settings.model_fields)
    assert all(good and bad for good, bad in TABLE.values())


def test_every_argument_of_our_config_is_a_setting():
    methods = (AsyncDecoupledPPOConfig.training, AsyncDecoupledPPOConfig.evaluation)
    ours = {name for m in methods for name in inspect.signature(m).parameters}
    assert ours - {"self", "kwargs"} <= set(Settings.model_fields)


def test_every_setting_is_one_of_the_config():
    config = AsyncDecoupledPPOConfig()
    for key in Settings.model_fields:
        assert hasattr(config, ATTRIBUTES.get(key, key)), key


def test_levels_are_those_of_the_ratios():
    assert get_args(Level) == tuple(RATIO_LEVELS)


@pytest.mark.parametrize("config_class", [AsyncDecoupledPPOConfig, PPOEWMAAsyncConfig])
def test_defaults_are_valid(config_class):
    check_settings(config_class())


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, (good, _) in TABLE.items() for value in good],
)
def test_takes(key, value):
    check_value(key, value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [(key, *case) for key, (_, bad) in TABLE.items() for case in bad],
)
def test_does_not_take(key, value, words):
    with pytest.raises(ValueError) as error:
        check_value(key, value)
    said = str(error.value)
    assert said.startswith(f"{key}: got {value!r}, must be ")
    assert words in said.partition("must be ")[2]
    assert "\n" not in said


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", TABLE)
def test_no_setting_takes_what_is_not_finite(key, value):
    with pytest.raises(ValueError, match=f"^{key}: got {value}"):
        check_value(key, value)


@pytest.mark.parametrize("key", TABLE)
def test_the_whole_config_is_checked_alike(key):
    value, words = TABLE[key][1][0]
    config = AsyncDecoupledPPOConfig()
    setattr(config, ATTRIBUTES.get(key, key), value)
    with pytest.raises(ValueError, match=f"^{key}: got ") as error:
        config.validate()
    assert words in str(error.value)
