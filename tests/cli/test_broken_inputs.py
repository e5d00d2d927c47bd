"""Broken experiments and commands: one line that helps, exit code 2, nothing written.

All in this process: each is answered before anything starts.
"""

import shlex

import pytest
from click.testing import CliRunner

from rllib_llm_async import PPOEWMAAsyncConfig
from rllib_llm_async.cli import main
from tests.cli import broken_inputs

GOOD = {
    "model": "small_agent",
    "env_config": "{domains: [airline]}",
    "engine": "{dtype: float32, max_model_len: 512}",
}


def cases(name):
    """Text and words of every line of a table, each under the text as its id."""
    for line in getattr(broken_inputs, name).strip("\n").splitlines():
        text, arrow, words = f" {line}".rpartition(" => ")
        assert arrow, line
        yield pytest.param(text[1:], words.split("; "), id=f"{name}: {text.strip()}")


def experiment(*, config="", top=""):
    """A YAML with a line more, in place of what it gives otherwise."""
    key = config.split(":")[0]
    lines = [f"    {k}: {v}" for k, v in GOOD.items() if k != key]
    lines += [f"    {config}"] if config else []
    beside = [f"  {top}"] if top else []
    if not top.startswith("config:"):
        beside += ["  config:", *lines]
    return "\n".join(["mine:", "  run: PPOEWMAAsync", "  env: mini_tau2", *beside])


@pytest.fixture
def answer(tmp_path, monkeypatch):
    """What a command says, one line; fails if it is anything else."""
    path = tmp_path / "experiment.yaml"
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(yaml_text, arguments="train file FILE --check"):
        path.write_text(yaml_text)
        words = [str(path) if w == "FILE" else w for w in shlex.split(arguments)]
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 2, result.output
        lines = [line for line in result.output.splitlines() if line.strip()]
        assert len(lines) == 1 and lines[0].startswith("Error: "), result.output
        assert not [*folder.iterdir()]
        return lines[0]

    return run


def assert_helps(line, words):
    for word in words:
        assert word in line, line


def test_the_experiment_without_a_fault_is_valid(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(experiment())
    result = CliRunner().invoke(main, ["train", "file", str(path), "--check"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("text", "words"),
    [*cases("CONFIG"), *cases("ELSEWHERE"), *cases("SPACES")],
)
def test_settings(answer, text, words):
    assert_helps(answer(experiment(config=text)), [text.split(":")[0].strip(), *words])


@pytest.mark.parametrize(("text", "words"), cases("TOP"))
def test_beside_the_settings(answer, text, words):
    assert_helps(answer(experiment(top=text)), words)


@pytest.mark.parametrize(("text", "words"), cases("RAW"))
def test_whole_files(answer, text, words):
    assert_helps(answer(text), words)


def test_a_setting_under_two_names(answer):
    text = experiment(config="lambda: 0.9\n    lambda_: 0.8")
    assert_helps(answer(text), ["lambda_: another name of lambda"])


def test_trials_of_a_sweep_that_cannot_be(answer):
    """Each value can be beside the first of the other setting."""
    text = experiment(
        config="group_size: {grid_search: [8, 16]}\n"
        "    episodes_per_update: {grid_search: [128, 40]}"
    )
    words = ["episodes_per_update: got 40", "group_size: 16, episodes_per_update: 40"]
    assert_helps(answer(text), words)


def test_of_several_experiments_that_is_named_which_is_wrong(answer):
    wrong = experiment(config="eps_ti: 0.5").replace("mine:", "other:")
    line = answer(f"{experiment()}\n{wrong}")
    assert_helps(line, ["Error: other: config: eps_ti: got 0.5"])


@pytest.mark.parametrize(("text", "words"), cases("ARGS"))
def test_commands(answer, tmp_path, text, words):
    path = str(tmp_path / "experiment.yaml")
    line = answer(experiment(), text)
    assert_helps(line, [path if word == "FILE" else word for word in words])


@pytest.mark.parametrize(("text", "words"), cases("PYTHON"))
def test_configs_in_python(text, words):
    config = PPOEWMAAsyncConfig().environment("mini_tau2")
    with pytest.raises((TypeError, ValueError)) as error:
        eval(f"config.{text}", {"config": config})
        config.validate()
    assert_helps(str(error.value), words)
