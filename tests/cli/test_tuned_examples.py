"""Every shipped YAML is found, and builds a valid config."""

from pathlib import Path

import pytest

import rllib_llm_async
from rllib_llm_async.cli.experiment_file import build_config, load_experiments

EXAMPLES = sorted(
    (Path(rllib_llm_async.__file__).parent / "tuned_examples").rglob("*.yaml")
)


def test_some_were_found():
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_builds_a_config(path):
    for experiment in load_experiments(path):
        config = build_config(experiment)
        assert config.algo_class.__name__ == experiment.run
        assert path.read_text().startswith("# ")
