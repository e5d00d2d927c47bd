"""What a user's editor knows of the package: names after Tab, and types."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

import rllib_llm_async
from rllib_llm_async.settings.schema import ObjectiveSettings

ROOT = Path(rllib_llm_async.__file__).parents[1]
#: Packages whose names are imported from the package itself.
PUBLIC = [
    "rllib_llm_async",
    "rllib_llm_async.algorithms",
    "rllib_llm_async.chat",
    "rllib_llm_async.connectors.env_to_module",
    "rllib_llm_async.connectors.learner",
    "rllib_llm_async.connectors.module_to_env",
    "rllib_llm_async.coordination.simulator",
    "rllib_llm_async.core",
    "rllib_llm_async.old_logprobs",
    "rllib_llm_async.report",
]
#: A user's script: three lines are wrong, and mypy alone says so.
SCRIPT = """\
from rllib_llm_async import AsyncDecoupledPPO, PPOEWMAAsync, PPOEWMAAsyncConfig
from rllib_llm_async.core import EWMAWeights, pass_at_k

config = PPOEWMAAsyncConfig().training(eps_ti=1.2, max_staleness=2)
share: str = pass_at_k(4, 2, 2)  # wrong: a number


def success(algo: AsyncDecoupledPPO) -> float:
    algo.evaluate_tasks(num_trials="4")  # wrong: text
    domains = algo.evaluate_tasks(split="test", num_trials=4)["domains"]
    return domains["airline"]["avg@4"]


algo: PPOEWMAAsync = PPOEWMAAsync(config)
success(algo)
EWMAWeights().updte  # wrong: a slip, and no weights
"""


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_complete_with_tab(name):
    module = importlib.import_module(name)
    assert len(module.__all__) == len({*module.__all__})
    assert {*module.__all__} <= {*dir(module)}
    for public in module.__all__:
        assert getattr(module, public) is not None


def test_a_lazy_name_completes_before_it_is_first_used():
    code = "import rllib_llm_async as p; print(*(n for n in p.__all__ if n in dir(p)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == rllib_llm_async.__all__


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="PPOEWMAAsink"):
        _ = rllib_llm_async.PPOEWMAAsink


def test_settings_complete_within_the_call():
    own = inspect.signature(rllib_llm_async.AsyncDecoupledPPOConfig.training)
    of_rllib = inspect.signature(AlgorithmConfig.training)
    missing = {*ObjectiveSettings.model_fields} - {*own.parameters}
    assert missing <= {*of_rllib.parameters}


def test_a_users_script_is_type_checked(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    # As in the package's own configuration, what Ray and torch say is not followed.
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml"),
            tmp_path / "script.py",
        ],
        cwd=ROOT,  # what `make lint` has kept makes it quick
        capture_output=True,
        text=True,
    )
    assert (ROOT / "rllib_llm_async" / "py.typed").exists()
    wrong = [n for n, line in enumerate(SCRIPT.splitlines(), 1) if "# wrong" in line]
    said = [line.split(":") for line in done.stdout.splitlines() if ": error:" in line]
    assert sorted({int(number) for _, number, *_ in said}) == wrong, done.stdout
