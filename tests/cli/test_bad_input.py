"""Every bad input: one line on stderr, exit code 2, before anything starts."""

import pytest
import yaml
from click.testing import CliRunner

from rllib_llm_async.cli import main
from rllib_llm_async.cli.yaml_text import read_yaml

GOOD = {"run": "PPOEWMAAsync", "env": "mini_tau2", "config": {"eps_ti": 1.2}}


def rllib(*arguments):
    return CliRunner().invoke(main, arguments)


def assert_one_line(result, *words):
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2, result.output
    for word in words:
        assert word in line


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
    [
        ("1e-4", 1e-4),
        ("3e5", 3e5),
        ("+2.5E3", 2.5e3),
        (".5e-1", 0.05),
        ("[1e-4, {a: -1e2}]", [1e-4, {"a": -100.0}]),
        ("'1e-4'", "1e-4"),
        ('"1.2"', "1.2"),
        ("1e-4x", "1e-4x"),
        ("small_agent", "small_agent"),
        ("7", 7),
        ("", None),
    ],
)
def test_numbers_are_numbers_and_quoted_ones_text(text, value):
    read = read_yaml(text)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: {b: 1, c: 2, b: 3}", "a: b: written twice, in lines 1 and 1"),
        ("a: 1\nb: 2\na: 3", "a: written twice, in lines 1 and 3"),
        ("a: &x {b: [*x]}", "a: b: holds itself"),
        ("a: [", "not valid YAML"),
    ],
)
def test_yaml_that_does_not_say_what_it_seems_to(text, words):
    with pytest.raises(ValueError, match=words):
        read_yaml(text)


def test_a_key_may_stand_beside_a_merged_one():
    text = "a: &a {x: 1, y: 1}\nb: {<<: *a, y: 2}"
    assert read_yaml(text)["b"] == {"x": 1, "y": 2}
