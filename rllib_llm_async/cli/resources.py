"""Whether what a trial's actors need is there, before one waits for it for ever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    parts = _needs(config)
    for resource in {"CPU", "GPU"} & available.keys():
        terms = [
            f"{count} {name}{'s' * (count != 1)} x {need[resource]:g}"
            for name, count, need, _ in parts
            if need.get(resource)
        ]
        total = sum(count * need.get(resource, 0) for _, count, need, _ in parts)
        if total <= available[resource]:
            continue
        settings = [key for _, _, need, key in parts if need.get(resource)]
        raise InputError(
            f"resources: a trial needs {' + '.join(terms)} = {total:g} {resource}s, "
            f"{where} has {available[resource]:g}; lower "
            f"{' or '.join(settings)}, or use a larger cluster (--address)"
        )


def _needs(config: Any) -> list[tuple[str, int, dict[str, float], str]]:
    """Actors of a trial: what they are, how many, what each needs, their setting."""
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
    return [
        *((name, len(all_), all_[0], key) for name, all_, key in parts if all_),
        *_served_models(config.env_config),
    ]


def _served_models(
    env_config: Mapping[str, Any],
) -> Iterator[tuple[str, int, dict[str, float], str]]:
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
