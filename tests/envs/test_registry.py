"""Suites of benchmarks that are installed apart."""

import pytest

from rllib_llm_async.envs import registry


class Suite:
    name = "absent"

    def __init__(self, domains=None):
        raise ValueError("env absent: the package is not installed")


@pytest.fixture
def absent(monkeypatch):
    monkeypatch.setitem(registry._SUITES, "absent", Suite)
    monkeypatch.setitem(registry._PACKAGES, "absent", "no_such_package_here")


def test_settings_are_checked_without_the_package(absent):
    registry.check_suite("absent", {"domains": ["retail"]})
    with pytest.raises(ValueError, match=r"env_config.domain: .*'absent'.*'domains'"):
        registry.check_suite("absent", {"domain": ["retail"]})
    with pytest.raises(ValueError, match="the package is not installed"):
        registry.make_suite("absent")


def test_where_it_is_installed_the_suite_is_made(absent, monkeypatch):
    monkeypatch.setitem(registry._PACKAGES, "absent", "json")
    with pytest.raises(ValueError, match="the package is not installed"):
        registry.check_suite("absent")


def test_an_unknown_name_is_named():
    with pytest.raises(ValueError, match="did you mean 'mini_tau2'"):
        registry.check_suite("mini_tau3")
