"""A checkpoint read as data: settings as JSON, weights as arrays.

Whoever made it can choose what it says, but not run code here. `rllib train --resume`
and RLlib's `Algorithm.from_checkpoint` go on with a whole run instead, which is a set
of pickles: they are for checkpoints of one's own.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rllib_llm_async.cli.array_pickle import read_arrays
from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.cli.experiment_file import (
    Experiment,
    apply_settings,
    build_config,
)
from rllib_llm_async.cli.sharded_weights import read_weights

#: Over a run's settings where nothing trains: a source of somebody's own is known to
#: their script alone.
WITHOUT_SOURCES: dict[str, Any] = {
    "old_logprob_source": "rollout",
    "compare_sources": [],
}
_LEARNER = Path("learner_group", "learner")
_WEIGHTS = Path("rl_module", "default_policy", "module_state.pkl")
#: Where learners that share the weights wrote them.
_SHARDS = "shards"
#: Texts that an engine may be given; others name files, classes or addresses.
_ENGINE_TEXTS = ("dtype", "kv_cache_dtype", "quantization", "attention_backend")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of its policy."""

    path: Path
    run: str
    env: str
    settings: dict[str, Any]
    policy_version: int

    def config(
        self, env: str | None = None, changes: Mapping[str, Any] | None = None
    ) -> Any:
        """The validated `AlgorithmConfig` that the policy was trained with.

        Args:
            env: Another environment, with its defaults.
            changes: Other settings than the run's, as of ``--set``.

        Raises:
            InputError: As for a tuned YAML.
        """
        settings = copy.deepcopy(self.settings)
        if env is not None:
            settings.pop("env_config", None)
        apply_settings(settings, changes or {})
        try:
            return build_config(
                Experiment("checkpoint", self.run, env or self.env, config=settings)
            )
        except InputError as error:
            raise InputError(f"{self.path}: {error.message}") from error

    def weights(self) -> dict[str, np.ndarray]:
        """The policy's weights by parameter, as `HFCausalLM.get_state` gave them.

        Raises:
            InputError: If the file is missing, cut off, damaged or no weights.
        """
        try:
            if (shards := self.path / _LEARNER / _SHARDS).is_dir():
                return read_weights(shards)
            return read_arrays(self.path / _LEARNER / _WEIGHTS)
        except ValueError as error:
            raise InputError(error) from error


def open_checkpoint(path: Path, *, trust: bool = False) -> Checkpoint:
    """Reads what a checkpoint says of its policy.

    Args:
        path: A directory that `rllib train` wrote.
        trust: Whether its settings may name code, or who gets a key.

    Raises:
        InputError: If it is no checkpoint, damaged, or names such without ``trust``.
    """
    file = path / _LEARNER / "metadata.json"
    if not file.is_file():
        raise InputError(
            f"{path}: not a checkpoint directory (no {file.relative_to(path)}); "
            "`rllib train` prints the path of its checkpoint at the end"
        )
    try:
        said = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: damaged ({error})") from error
    checkpoint = _checkpoint(path, file, said)
    if not trust:
        imported = ["env"] if ":" in checkpoint.env else []
        for key in (*imported, *_asks_for_trust(checkpoint.settings)):
            raise InputError(
                f"{path}: its {key} names code to run or who gets a key; if you trust "
                "who made it, add --trust-checkpoint"
            )
    return checkpoint


def _checkpoint(path: Path, file: Path, said: Any) -> Checkpoint:
    expected = {"run": str, "env": str, "settings": dict, "policy_version": int}
    for key, cls in expected.items():
        if not (isinstance(said, dict) and isinstance(said.get(key), cls)):
            raise InputError(
                f"{file}: {key} is missing or no {cls.__name__}; it was written by "
                "another version of this package, or is damaged"
            )
    if said.get("not_saved"):
        raise InputError(
            f"{file}: {said['not_saved']} of this run are Python objects; evaluate it "
            "in Python, with Algorithm.from_checkpoint"
        )
    return Checkpoint(path, *(said[key] for key in expected))


def _asks_for_trust(settings: Mapping[str, Any]) -> Iterator[str]:
    """Settings by which who wrote them could have code run, or a key sent."""
    for key in ("trust_remote_code", "callbacks"):
        if settings.get(key):
            yield key
    engine = settings.get("engine")
    for key, value in engine.items() if isinstance(engine, dict) else ():
        if not isinstance(value, bool | int | float | None) and not (
            key in _ENGINE_TEXTS and isinstance(value, str)
        ):
            yield f"engine.{key}"
    env_config = settings.get("env_config")
    for key, model in env_config.items() if isinstance(env_config, dict) else ():
        if isinstance(model, dict) and _sends_a_key(model):
            yield f"env_config.{key}.base_url"
        engine = model.get("engine") if isinstance(model, dict) else None
        if isinstance(engine, dict):
            yield from (f"env_config.{key}.{k}" for k in _asks_for_trust(model))


def _sends_a_key(model: Mapping[str, Any]) -> bool:
    # The default names a key, too.
    return bool(model.get("base_url")) and model.get("api_key_env", "") is not None
