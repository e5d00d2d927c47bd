"""Every bad input: one line on stderr, exit code 2, before anything starts."""

import subprocess
import sys

import pytest
import yaml

from rllib_llm_async.cli.experiment_file import to_number

GOOD = {"run": "PPOEWMAAsync", "env": "mini_tau2", "config": {"eps_ti": 1.2}}


def rllib(*arguments):
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from rllib_llm_async.cli import main; main()",
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )


def assert_one_line(result, *words):
    lines = [
        line
        for line in result.stderr.splitlines()
        if not line.startswith("Triton")  # vLLM's remark on import
    ]
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"config": {"eps_tii": 1.2}}, ("'eps_tii'", "did you mean 'eps_ti'")),
        ({"config": {"eps_ti": -1}}, ("eps_ti", "-1", "above 1")),
        ({"config": {"max_staleness": "many"}}, ("max_staleness", "'many'")),
        (
            {"config": {"old_logprob_source": "ewma"}},
            ("old_logprob_source", "ewma_prox"),
        ),
        ({"config": {"model": "/nowhere/model"}}, ("model", "/nowhere/model")),
        ({"env": "mini_tau3"}, ("mini_tau3", "did you mean 'mini_tau2'")),
        ({"run": "PPOEWMA"}, ("PPOEWMA", "did you mean 'PPOEWMAAsync'")),
        ({"configs": {}}, ("'configs'", "did you mean 'config'")),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path, change, words):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({"experiment": {**GOOD, **change}}))
    assert_one_line(rllib("train", "file", str(path)), *words)


def test_a_missing_file_and_a_broken_one(tmp_path):
    assert_one_line(rllib("train", "file", "nowhere.yaml"), "nowhere.yaml", "No such")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    assert_one_line(rllib("train", "file", str(broken)), "not valid YAML")


def test_no_checkpoint():
    assert_one_line(rllib("evaluate", "nowhere"), "nowhere", "not a checkpoint")


def test_examples_are_listed_and_printed():
    listed = rllib("example", "list")
    assert "mini_tau2_ppo_ewma_async" in listed.stdout
    printed = rllib("example", "get", "mini_tau2_ppo_ewma_async")
    assert yaml.safe_load(printed.stdout)["mini_tau2_ppo_ewma_async"]["run"]
    assert_one_line(rllib("example", "get", "mini_tau2"), "did you mean")


@pytest.mark.parametrize(
    "text, value",
    [("1e-4", 1e-4), ("3e5", 3e5), ("small_agent", "small_agent"), ("-inf", "-inf")],
)
def test_numbers_that_yaml_reads_as_text(text, value):
    assert to_number(yaml.safe_load(text)) in (value, float("-inf"))
