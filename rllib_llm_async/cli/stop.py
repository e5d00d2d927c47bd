"""Stop criteria: a result that every iteration has, and the value that ends the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rllib_llm_async import result_keys
from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.result_keys import evaluation, learner, runners
from rllib_llm_async.settings.names import nearest

_COUNTED = ("training_iteration", "iterations_since_restore")
_PLAIN = (
    *_COUNTED,
    "time_total_s",
    "time_since_restore",
    "num_env_steps_sampled_lifetime",
)
#: Where further figures stand in a result.
_GROUPS = (
    *(group("") for group in (runners, evaluation, learner)),
    f"{result_keys.PHASE_SECONDS}/",
    "ledger/",
    "timers/",
)
#: Figures that lie in [0, 1], by the end of their names.
_SHARES = ("success_rate", "rubric_score", "train_infer_mask", "ppo_clip_fraction")
#: Names of figures from which a similar one is most likely mistyped.
_FIGURES = (
    *(value for key, value in vars(result_keys).items() if key.isupper()),
    "episode_return_mean",
    "episode_len_mean",
)
#: Results that RLlib had once.
_FORMER = {
    "episode_reward_mean": runners("episode_return_mean"),
    "episodes_total": runners("num_episodes_lifetime"),
    "timesteps_total": "num_env_steps_sampled_lifetime",
}
#: How similar a name is that is one letter off.
_MISTYPED = 0.93


def check_stop(stop: Mapping[Any, Any]) -> None:
    """Checks stop criteria, `{training_iteration: 50}`.

    Raises:
        InputError: For a result that there will not be, or what no result can reach.
    """
    for key, value in stop.items():
        if isinstance(value, Mapping) and any(g.startswith(f"{key}/") for g in _GROUPS):
            key = "/".join([str(key), *map(str, value)][:2])
            raise InputError(f"stop: a mapping; write it as {key!r}, with a slash")
        check_result_name("stop", key)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise InputError(f"stop: {key}: got {value!r}, must be a number to reach")
        if key in _COUNTED and (type(value) is not int or value < 1):
            raise InputError(
                f"stop: {key}: got {value!r}, must be a whole number of 1 or more"
            )
        if key in _PLAIN and value <= 0:
            raise InputError(
                f"stop: {key}: got {value!r}, must be above 0: the first iteration "
                "would reach it"
            )
        if {*key.split("/")} & {*_SHARES} and not 0 < value <= 1:
            raise InputError(
                f"stop: {key}: got {value!r}, must be above 0 and at most 1: it is a "
                "share"
            )


def check_result_name(option: str, key: Any) -> None:
    """Checks that a result may be called ``key``.

    Raises:
        InputError: Names ``option``, ``key`` and what there is.
    """
    if key in _PLAIN:
        return
    if not isinstance(key, str):
        raise InputError(f"{option}: got {key!r}, must be the name of a result")
    group = next((group for group in _GROUPS if key.startswith(group)), None)
    if group is None:
        dotted = key.replace(".", "/")
        examples = [*_PLAIN, *(_GROUPS[0] + figure for figure in _FIGURES)]
        near = dotted if dotted.startswith(_GROUPS) else _FORMER.get(key)
        near = near or nearest(key, examples)
        near = near or next((name for name in examples if key in name), None)
        hint = f", did you mean {near!r}?" if near else ""
        raise InputError(
            f"{option}: {key}: no such result{hint} Valid: {', '.join(_PLAIN)} and "
            f"what is under {', '.join(_GROUPS)}"
        )
    # What follows a slash is a domain, a phase, a bin.
    figure, slash, part = key.removeprefix(group).partition("/")
    near = nearest(figure, _FIGURES, _MISTYPED)
    if not figure or (slash and not part):
        raise InputError(f"{option}: {key}: no such result; name one under {group}")
    if near and figure not in _FIGURES:
        raise InputError(
            f"{option}: {key}: no such result, did you mean "
            f"{group + near + slash + part!r}?"
        )
