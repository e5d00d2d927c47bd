"""A hub's cache of models that a test fills."""

import shutil

import pytest
from huggingface_hub import constants


@pytest.fixture
def put_in_cache(tmp_path, monkeypatch):
    """``put_in_cache(name, directory)``: as if that had been downloaded before."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))

    def put(name, directory):
        repository = cache / f"models--{name.replace('/', '--')}"
        shutil.copytree(directory, repository / "snapshots" / "0")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0")

    return put
