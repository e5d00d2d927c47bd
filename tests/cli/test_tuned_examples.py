"""Every shipped YAML is found, builds a valid config and names what exists."""

import re
from pathlib import Path

import pytest

import rllib_llm_async
from rllib_llm_async.cli.experiment_file import (
    build_config,
    choose_experiment,
    load_experiments,
)
from rllib_llm_async.envs.chat_model_settings import make_chat_model
from rllib_llm_async.old_logprobs import source_names

EXAMPLES = sorted(
    (Path(rllib_llm_async.__file__).parent / "tuned_examples").rglob("*.yaml")
)
#: Files with an experiment per source, named after it.
BENCHMARKS = [path for path in EXAMPLES if path.stem.startswith(("tau2_", "vita_"))]
METHODS = {"current_recompute", "linear_prox", "ppo_ewma_async", "snapshot_old"}


def test_some_were_found():
    assert EXAMPLES
    assert len(BENCHMARKS) == 4


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_builds_a_config(path):
    for experiment in load_experiments(path):
        config = build_config(experiment)
        assert config.algo_class.__name__ == experiment.run
        for role in {"user", "judge"} & config.env_config.keys():
            make_chat_model(config.env_config[role], f"env_config.{role}")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_opens_with_what_it_needs(path):
    text = path.read_text()
    header = text[: re.search(r"^\w", text, re.MULTILINE).start()]
    assert header.startswith("# ")
    assert re.search(r"^# Hardware: .*(CPU|GPU)", header, re.MULTILINE)
    assert f"rllib train file tuned_examples/{path.name}" in header
    for name in re.findall(r"--experiment (\S+)", header):
        choose_experiment(load_experiments(path), name)


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_has_an_experiment_per_method(path):
    assert set(source_names()) >= METHODS
    experiments = load_experiments(path)
    sources = {e.name: e.config["old_logprob_source"] for e in experiments}
    assert set(sources.values()) == METHODS
    for name, source in sources.items():
        assert name.removesuffix("_lora") == f"{path.stem}_{source}"
    # But for the source and what the LoRA variant names, they are alike.
    configs = [
        {k: v for k, v in e.config.items() if k != "old_logprob_source"}
        for e in experiments
        if not e.name.endswith("_lora")
    ]
    assert all(config == configs[0] for config in configs)
