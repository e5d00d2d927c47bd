"""The check of all settings: one line, `key: got VALUE, must be ...`, or nothing.

`check_key` and `check_value` are for what a user wrote, before it becomes a config;
`check_settings` is for a whole config.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from pydantic import ValidationError

from rllib_llm_async.settings.combinations import check_combinations
from rllib_llm_async.settings.ddp import check_ddp
from rllib_llm_async.settings.engine import check_engine_settings, engine_arguments
from rllib_llm_async.settings.lora import check_lora, lora_arguments
from rllib_llm_async.settings.names import ABSENT, ELSEWHERE, explain, is_explained
from rllib_llm_async.settings.optimizer import OptimizerSettings, check_optimizer
from rllib_llm_async.settings.reading import first_fault, read_settings
from rllib_llm_async.settings.schema import (
    ATTRIBUTES,
    OldLogitModelSettings,
    Settings,
)

SETTINGS = frozenset(Settings.model_fields)
#: Names under which RLlib knows a setting.
_ALIASES = {"lambda": "lambda_", "callbacks_class": "callbacks"}


def _check_old_logit_model(value: Mapping[str, Any]) -> None:
    read_settings(OldLogitModelSettings, value, "old_logit_model")


#: Settings that are mappings of settings.
_NESTED: dict[str, Callable[[Any], None]] = {
    "lora": check_lora,
    "engine": check_engine_settings,
    "optimizer": check_optimizer,
    "old_logit_model": _check_old_logit_model,
    "torch_ddp_kwargs": check_ddp,
}


def name_of(key: Any) -> Any:
    """The name of a setting that may be called by RLlib's."""
    return _ALIASES.get(key, key)


def check_key(key: Any) -> None:
    """Checks that there is such a setting.

    Raises:
        ValueError: Says what it is called here, why there is none, or the nearest.
    """
    if name_of(key) in SETTINGS:
        return
    if not is_explained(key):
        for setting, names in _nested_names().items():
            if key in names:
                raise ValueError(f"{key}: stands within {setting}: {setting}.{key}")
    raise ValueError(explain(key, SETTINGS))


def _nested_names() -> dict[str, Collection[str]]:
    """What settings that are mappings of settings have in them."""
    return {
        "engine": engine_arguments(),
        "lora": lora_arguments(),
        "optimizer": OptimizerSettings.model_fields,
    }


def check_value(key: str, value: Any) -> None:
    """Checks one value by itself.

    Raises:
        ValueError: If the setting cannot have it.
    """
    key = name_of(key)
    try:
        Settings.model_validate({key: value})
    except ValidationError as error:
        # All other settings are missing, and are not asked for.
        if any(fault["loc"][0] == key for fault in error.errors()):
            raise first_fault(Settings, error, {key: value}, only=key) from None
    if key in _NESTED:
        _NESTED[key](value)


def check_settings(config: Any) -> None:
    """Checks an `AsyncDecoupledPPOConfig`, each setting and what they are together.

    Raises:
        ValueError: For the first setting that cannot be.
    """
    if config.in_evaluation:  # RLlib's copy of a config that was checked
        return
    _check_attributes(config)
    values = settings_of(config)
    try:
        Settings.model_validate(values)
    except ValidationError as error:
        raise first_fault(Settings, error, values) from None
    for key, check in _NESTED.items():
        check(values[key])
    _check_what_does_nothing(config)
    check_combinations(values)


def settings_of(config: Any) -> dict[str, Any]:
    """All settings of a config by their names."""
    return {key: _plain(getattr(config, ATTRIBUTES.get(key, key))) for key in SETTINGS}


def _check_attributes(config: Any) -> None:
    """What was set that no config has: Python and RLlib's dicts let it pass."""
    # As RLlib hands it on, too: a config made from a state has attributes of its own.
    default = type(config)()
    known = {*vars(default), *default.get_state()}
    for name in vars(config):
        if name not in known and not name.startswith("_"):
            check_key(name)


def _plain(value: Any) -> Any:
    """NumPy's numbers, which searchers of Ray Tune draw, as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _check_what_does_nothing(config: Any) -> None:
    """RLlib's plain settings that were changed and that nothing here looks at."""
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    defaults = vars(type(config)())
    # Of what these methods set, what is no setting here is read by nobody.
    idle = [
        name
        for method in (AlgorithmConfig.offline_data, AlgorithmConfig.evaluation)
        for name in inspect.signature(method).parameters
        if name not in SETTINGS
    ]
    for key in dict.fromkeys((*ABSENT, *ELSEWHERE["RLlib"], *idle)):
        for name in (key, f"_{key}"):
            default = defaults.get(name, ...)
            is_plain = default is None or isinstance(default, bool | int | float | str)
            if is_plain and key != "env" and getattr(config, name) != default:
                raise ValueError(explain(key, SETTINGS))
