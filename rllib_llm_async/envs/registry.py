"""Task suites by name, or by where a class of your own is to be imported from."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from rllib_llm_async.envs.agent_env import ReportsMetrics, TaskSuite
from rllib_llm_async.envs.mini.mixture import MiniMixtureSuite
from rllib_llm_async.envs.mini_tau2 import MiniTau2Suite
from rllib_llm_async.envs.mini_vita import MiniVitaSuite
from rllib_llm_async.envs.tau2 import Tau2Suite
from rllib_llm_async.envs.vita import VitaSuite
from rllib_llm_async.settings.names import did_you_mean, unknown

SuiteFactory = Callable[..., TaskSuite]

_SUITES: dict[str, SuiteFactory] = {
    suite.name: suite
    for suite in (MiniTau2Suite, MiniVitaSuite, MiniMixtureSuite, Tau2Suite, VitaSuite)
}
#: Benchmarks that are installed apart, and what they are imported as.
_PACKAGES = {"tau2": "tau2", "vita": "vita"}


def register_suite(name: str, factory: SuiteFactory) -> None:
    """Makes ``env: name`` mean ``factory(**env_config)``, on all machines of a job.

    Raises:
        ValueError: If the name is taken.
    """
    from rllib_llm_async.envs.gym_adapter import register_gym

    if name in _SUITES:
        raise ValueError(f"env {name!r} is registered already")
    _SUITES[name] = factory
    register_gym(name, factory)


def register_bundled() -> None:
    """Tells Ray and Gymnasium of the suites that come with the package."""
    from rllib_llm_async.envs.gym_adapter import register_gym

    for name, factory in _SUITES.items():
        register_gym(name, factory)


def suite_names() -> list[str]:
    """Registered names, sorted."""
    return sorted(_SUITES)


def make_suite(name: Any, env_config: Mapping[str, Any] | None = None) -> TaskSuite:
    """Builds a suite.

    Args:
        name: One that is registered, or ``my_package.my_module:MySuite``.
        env_config: Its keyword arguments.

    Raises:
        ValueError: If it is no name, it or a key of ``env_config`` is unknown, or
            nothing can be imported from there.
    """
    if not isinstance(name, str):
        raise ValueError(
            f"env: got {name!r}, must be one of {', '.join(suite_names())}, "
            "my_package.my_module:MySuite, or a name that register_suite was given"
        )
    elsewhere = _imported if ":" in name else _registered_elsewhere
    factory = _SUITES.get(name) or elsewhere(name)
    if factory is None:
        raise ValueError(
            f"env: {unknown(name, suite_names())}, or my_package.my_module:MySuite"
        )
    _check_keys(factory, name, env_config or {})
    try:
        suite = factory(**(env_config or {}))
    except ValueError:
        raise
    except TypeError as error:
        raise ValueError(f"env_config of {name!r}: {error}") from error
    except Exception as error:  # whatever a class of somebody else's raises
        raise ValueError(f"env: {name!r} cannot be made ({error!r})") from error
    for method in ("tasks", "make"):
        if not callable(getattr(suite, method, None)):
            raise ValueError(f"env: {name!r} has no method {method}(), see TaskSuite")
    if isinstance(suite, ReportsMetrics) and not callable(suite.metrics):
        raise ValueError(
            f"env: metrics of {name!r} is no method, see ReportsMetrics; name what is "
            "the suite's own otherwise"
        )
    return suite


def check_suite(name: Any, env_config: Mapping[str, Any] | None = None) -> None:
    """Checks what `make_suite` would take, where the benchmark is installed or not.

    Without it only the keys can be checked.

    Raises:
        ValueError: As `make_suite`.
    """
    package = _PACKAGES.get(name) if isinstance(name, str) else None
    if package is None or name not in _SUITES or find_spec(package) is not None:
        make_suite(name, env_config)
        return
    _check_keys(_SUITES[name], name, env_config or {})


def _imported(path: str) -> SuiteFactory:
    """The suite at ``module:name``, which Ray knows under this path from then on."""
    from rllib_llm_async.envs.gym_adapter import register_with_ray

    module_name, _, name = path.partition(":")
    # Beside the YAML, as with `python -m`; last, so that nothing there is taken for a
    # package that is installed.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # whatever a module of somebody else's raises
        raise ValueError(
            f"env: {path!r} cannot be imported ({type(error).__name__}: {error}); "
            "valid: my_package.my_module:MySuite, installed or in this folder"
        ) from error
    if not callable(factory):
        raise ValueError(f"env: {path!r} is no class or function, but {factory!r:.100}")
    register_with_ray(path, factory)
    return factory


def _check_keys(
    factory: SuiteFactory, name: str, env_config: Mapping[str, Any]
) -> None:
    signature = inspect.signature(factory)
    valid = signature.parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in valid.values())
    for key in env_config:
        if key not in valid and not takes_any:
            raise ValueError(
                f"env_config.{key}: unknown for env {name!r}{did_you_mean(key, valid)}"
                f" Valid: {', '.join(valid)}"
            )
    try:
        signature.bind(**env_config)
    except TypeError as error:
        raise ValueError(f"env_config of {name!r}: {error}") from error


def _registered_elsewhere(name: str) -> SuiteFactory | None:
    """A suite that the driver registered, seen from one of its actors."""
    from ray.tune.registry import ENV_CREATOR, _global_registry

    if not _global_registry.contains(ENV_CREATOR, name):
        return None
    make_gym = _global_registry.get(ENV_CREATOR, name)
    return lambda **env_config: make_gym(env_config).suite
