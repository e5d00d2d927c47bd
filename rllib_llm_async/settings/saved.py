"""The settings of a run as JSON, which a checkpoint holds for those who read it later.

RLlib pickles the whole config, and pickles of others must not be loaded.
"""

from __future__ import annotations

import json
from typing import Any

from rllib_llm_async.settings.check import SETTINGS
from rllib_llm_async.settings.schema import ATTRIBUTES

#: Watches a run, and is nothing of the policy.
_NOT_SAVED = {"callbacks"}


def saved_settings(config: Any) -> dict[str, Any]:
    """What makes a config again, but for what JSON cannot say.

    Returns:
        ``run`` and ``env`` as in a tuned YAML; ``settings``, those that are not as by
        default; ``not_saved``, names of those that hold classes and the like.
    """
    defaults = type(config)()
    settings, not_saved = {}, []
    for key in sorted(SETTINGS - _NOT_SAVED):
        value = getattr(config, ATTRIBUTES.get(key, key))
        if value == getattr(defaults, ATTRIBUTES.get(key, key)):
            continue
        try:
            settings[key] = json.loads(json.dumps(value))
        except (TypeError, ValueError):
            not_saved.append(key)
    return {
        "run": type(config).__name__.removesuffix("Config"),
        "env": config.env,
        "settings": settings,
        "not_saved": not_saved,
    }
