"""Whether what a trial's actors need is there, before one waits for it for ever."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rllib_llm_async.cli.errors import InputError


def check_resources(config: Any, available: Mapping[str, float], where: str) -> None:
    """Compares what one trial asks of Ray with what there is.

    Args:
        config: A trial's `AlgorithmConfig`.
        available: ``{"CPU": 8, "GPU": 0}``; what is not named is not checked.
        where: Names them in the message.

    Raises:
        InputError: With the sum that does not fit, and what would.
    """
    parts = [*_own_actors(config), *_served_models(config.env_config)]
    for resource in {"CPU", "GPU"} & available.keys():
        terms = [
            f"{count} {name}{'s' * (count != 1)} x {need[resource]:g}"
            for name, count, need, _ in parts
            if need.get(resource)
        ]
        total = _total(parts, resource)
        if total <= available[resource]:
            continue
        settings = [key for _, _, need, key in parts if need.get(resource)]
        raise InputError(
            f"resources: a trial needs {' + '.join(terms)} = {total:g} {resource}s, "
            f"{where} has {available[resource]:g}; lower "
            f"{' or '.join(settings)}, or use a larger cluster (--address)"
        )


def trials_beside_served_models(
    config: Any, available: Mapping[str, float]
) -> int | None:
    """How many trials may run at a time, so that users and judges find room: Tune
    reserves a place for as many as fit, before the first one asks a user anything.

    Args:
        config: A trial's `AlgorithmConfig`; one such trial fits.
        available: As of `check_resources`.

    Returns:
        None if there are no such models.
    """
    own, served = [*_own_actors(config)], [*_served_models(config.env_config)]
    if not served:
        return None
    rooms = [
        int((available.get(resource, 0) - _total(served, resource)) // of_a_trial)
        for resource in ("CPU", "GPU")
        if (of_a_trial := _total(own, resource))
    ]
    return min(rooms, default=None)


#: Actors: what they are, how many, what each needs, their setting.
_Part = tuple[str, int, dict[str, float], str]


def _total(parts: Iterable[_Part], resource: str) -> float:
    return sum(count * need.get(resource, 0) for _, count, need, _ in parts)


def _own_actors(config: Any) -> Iterator[_Part]:
    """Those that a trial's placement group is for."""
    from ray.rllib.algorithms.utils import (
        _get_env_runner_bundles,
        _get_learner_bundles,
        _get_main_process_bundle,
    )

    parts = (
        (
            "main process",
            [_get_main_process_bundle(config)],
            "num_cpus_for_main_process",
        ),
        ("env runner", _get_env_runner_bundles(config), "num_env_runners"),
        ("learner", _get_learner_bundles(config), "num_learners"),
        ("old-logit actor", config.old_logit_bundles, "old_logit_model.num_actors"),
    )
    for name, bundles, key in parts:
        if bundles:
            yield name, len(bundles), bundles[0], key


def _served_models(env_config: Mapping[str, Any]) -> Iterator[_Part]:
    """Users and judges on the same cluster, beside the trial's own actors."""
    from rllib_llm_async.envs.user_model import ServedModelSettings

    seen: list[ServedModelSettings] = []
    for key, value in env_config.items():
        if not (isinstance(value, Mapping) and "served_model" in value):
            continue
        settings = ServedModelSettings(**value)
        if settings in seen:  # the same replicas
            continue
        seen.append(settings)
        need = {"CPU": settings.num_cpus, "GPU": settings.num_gpus}
        where = f"env_config.{key}.num_replicas"
        yield f"served {key}", settings.num_replicas, need, where
