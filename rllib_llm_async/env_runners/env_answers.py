"""What an environment answers, checked: a wrong answer ends a try, not the runner.

See `Start` and `Step` for what is right. Numpy's scalars become Python's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rllib_llm_async import result_keys
from rllib_llm_async.envs.agent_env import (
    BadRewardError,
    EpisodeError,
    Start,
    Step,
    is_reward,
)


def checked_start(start: Any) -> Start:
    """What `reset` returned.

    Raises:
        EpisodeError: If it is not what an episode can begin with.
    """
    if not isinstance(start, Start):
        raise EpisodeError(f"reset of the environment gave {start!r:.100}, not a Start")
    return Start(
        _list("messages", start.messages),
        _list("tools", start.tools),
        _info(start.info),
    )


def checked_step(step: Any) -> Step:
    """What `step` returned.

    Raises:
        BadRewardError: If the reward is no finite number.
        EpisodeError: If something else is not as the contract has it.
    """
    if not isinstance(step, Step):
        raise EpisodeError(f"step of the environment gave {step!r:.100}, not a Step")
    if not is_reward(step.reward):
        raise BadRewardError(f"environment gave reward {step.reward!r}")
    return Step(
        _list("messages", step.messages),
        float(step.reward),
        _truth("terminated", step.terminated),
        _truth("truncated", step.truncated),
        _info(step.info),
    )


def _info(value: Any) -> dict[str, Any]:
    info = dict(_of_type(Mapping, "info", value))
    for key, check in _VERDICT.items():
        if key in info:
            info[key] = check(f"info[{key!r}]", info[key])
    return info


def _wrong(what: str, value: Any, valid: str) -> EpisodeError:
    return EpisodeError(f"{what} of the environment is {value!r:.100}, not {valid}")


def _of_type(kind: type, what: str, value: Any) -> Any:
    if not isinstance(value, kind):
        raise _wrong(what, value, f"a {kind.__name__.lower()}")
    return value


def _list(what: str, value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple) else _of_type(list, what, value)


def _plain(value: Any) -> Any:
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _truth(what: str, value: Any) -> bool:
    plain = _plain(value)
    if not (isinstance(plain, int | float) and plain in (True, False)):
        raise _wrong(what, value, "true or false")
    return bool(plain)


def _text(what: str, value: Any) -> str:
    return _of_type(str, what, value)


def _count(what: str, value: Any) -> int:
    plain = _plain(value)
    if not isinstance(plain, int) or plain < 0:
        raise _wrong(what, value, "a count")
    return int(plain)


def _parts(what: str, value: Any) -> dict[str, float | bool | None]:
    parts = {key: _plain(part) for key, part in _of_type(Mapping, what, value).items()}
    for key, part in parts.items():
        _text(f"a key in {what}", key)
        if part is not None and not (isinstance(part, int | float) and is_reward(part)):
            raise _wrong(
                f"{what}[{key!r}]", part, "a finite number, true, false or None"
            )
    return parts


#: What the last step's ``info`` says of the episode.
_VERDICT: dict[str, Callable[[str, Any], Any]] = {
    "success": _truth,
    "domain": _text,
    "reason": _text,
    "reward_breakdown": _parts,
    result_keys.NUM_MALFORMED_TOOL_CALLS: _count,
}
