"""Suites of benchmarks that are installed apart."""

import sys

import pytest
from ray.tune.registry import ENV_CREATOR, _global_registry

from rllib_llm_async.envs import registry
from rllib_llm_async.envs.agent_env import TaskRef
from rllib_llm_async.envs.tasks import tasks_of


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


SUITE = """
class Suite:
    def __init__(self, word="hello"):
        self.word = word

    def tasks(self, split):
        return {"train": []}[split]

    def make(self):
        return None

class Unmade(Suite):
    def __init__(self):
        raise RuntimeError("no licence")

class Counting(Suite):
    metrics = {"lookups": 0}

class Idle:
    def tasks(self, split):
        return []

number = 3
"""


def test_a_suite_of_ones_own_is_found_where_it_is_imported_from(tmp_path, monkeypatch):
    (tmp_path / "own_suites.py").write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert registry.make_suite("own_suites:Suite", {"word": "bye"}).word == "bye"
    with pytest.raises(ValueError, match=r"env_config.world: .*did you mean 'word'"):
        registry.check_suite("own_suites:Suite", {"world": "bye"})
    # What RLlib looks up is there, too.
    assert _global_registry.contains(ENV_CREATOR, "own_suites:Suite")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (
            "no_such_module:Suite",
            "ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ("own_suites:Suit", "AttributeError: .* has no attribute 'Suit'"),
        ("own_suites:number", "is no class or function, but 3"),
        ("own_suites:Unmade", r"cannot be made \(RuntimeError\('no licence'\)\)"),
        ("own_suites:Idle", r"has no method make\(\), see TaskSuite"),
        ("own_suites:Counting", "metrics of 'own_suites:Counting' is no method"),
        ("own_broken:Suite", "cannot be imported .ZeroDivisionError"),
        (":Suite", "cannot be imported"),
        ("own_suites:", "cannot be imported"),
    ],
)
def test_what_cannot_be_imported_is_said(path, said, tmp_path, monkeypatch):
    (tmp_path / "own_suites.py").write_text(SUITE)
    (tmp_path / "own_broken.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(ValueError, match=said):
        registry.make_suite(path)


def test_a_file_beside_the_yaml_is_never_taken_for_an_installed_package(
    tmp_path, monkeypatch
):
    (tmp_path / "colorsys.py").write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with pytest.raises(ValueError, match="has no attribute 'Suite'"):
        registry.make_suite("colorsys:Suite")


class Tasks:
    def __init__(self, *tasks):
        self._tasks = tasks

    def tasks(self, split):
        return (task for task in {"train": self._tasks}[split])


def test_tasks_are_there_and_are_tasks():
    task = TaskRef("own", "1", "train")
    assert tasks_of(Tasks(task, task), "train") == [task, task]
    for suite, split, said in (
        (Tasks(), "train", r"Tasks.tasks\('train'\) gives none"),
        (Tasks(task, "2"), "train", "gives '2', which is no TaskRef"),
        (Tasks(TaskRef("own", 7, "train")), "train", "id=7, .*, whose id is no text"),
        (Tasks(task), "test", r"tasks\('test'\) fails \(KeyError\('test'\)\)"),
    ):
        with pytest.raises(ValueError, match=f"^env: .*{said}"):
            tasks_of(suite, split)
