"""What needs no Ray is answered before Ray, torch and the like are imported."""

import configparser
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from rllib_llm_async.algorithms import get_config_class
from rllib_llm_async.cli import main
from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.settings.names import ALGORITHMS

pytestmark = pytest.mark.thorough

# Of that name the package has the command.
train = importlib.import_module("rllib_llm_async.cli.train")

ROOT = Path(__file__).parents[2]
HEAVY = ("ray", "torch", "vllm", "transformers", "peft", "plotly", "pandas")
CODE = f"""
import os, sys, rllib_command
try:
    rllib_command.main(sys.argv[1:])
finally:
    print("imported:", [name for name in {HEAVY} if name in sys.modules])
    print("left behind:", [name for name in os.environ if "REGISTRATION" in name])
"""
GOOD = "mine: {run: PPOEWMAAsync, env: mini_tau2, config: {eps_ti: 1.2}}"


def command(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        ("", ["--help"], "asynchronous PPO on RLlib"),
        ("", ["train", "file", "--help"], "--checkpoint-freq"),
        ("", ["trian"], "did you mean 'train'"),
        ("", ["example", "list"], "mini_tau2_ppo_ewma_async"),
        ("", ["evaluate", "nowhere"], "not a checkpoint"),
        ("", ["train", "file", "FILE"], "{run, env, stop, config}"),
        ("a: [", ["train", "file", "FILE"], "not valid YAML"),
        (GOOD.replace("eps_ti", "eps_tii"), ["train", "file", "FILE"], "eps_ti"),
        (GOOD.replace("1.2", "0.2"), ["train", "file", "FILE"], "above 1"),
        (GOOD.replace("PPOEWMAAsync", "PPO"), ["train", "file", "FILE"], "run: "),
        (GOOD, ["train", "file", "FILE", "--stop", "iterations=3"], "iterations"),
        (GOOD, ["train", "file", "FILE", "--set", "clip_param=1"], "eps_stale"),
        (
            GOOD,
            ["train", "file", "FILE", "--set", "engine.max_num_seqs=0"],
            "engine.max_num_seqs",
        ),
    ],
)
def test_nothing_heavy_is_imported(tmp_path, text, arguments, said):
    (tmp_path / "FILE").write_text(text)
    done = command(tmp_path, *arguments)
    assert said in done.stdout + done.stderr, done.stderr
    fine = arguments[-1] in ("--help", "list")
    assert done.returncode == (0 if fine else 2)
    assert len(done.stderr.splitlines()) == (0 if fine else 1), done.stderr
    assert "imported: []" in done.stdout, done.stdout
    assert "left behind: []" in done.stdout


def test_the_command_that_is_installed_is_the_quick_one():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    script = setup["options.entry_points"]["console_scripts"].strip()
    name, _, target = script.partition(" = ")
    module, _, function = target.partition(":")
    assert name == "rllib" and module in setup["options"]["py_modules"]
    assert getattr(importlib.import_module(module), function) is main


def test_algorithms_are_known_before_they_are_imported():
    assert [get_config_class(name) for name in ALGORITHMS]
    with pytest.raises(ValueError, match=", ".join(ALGORITHMS)):
        get_config_class("none")


def test_the_first_line_stands_there_before_anything_is_loaded(tmp_path, monkeypatch):
    def load(experiment):
        raise InputError("loaded")

    monkeypatch.setattr(train, "_check", load)
    (tmp_path / "file.yaml").write_text(GOOD)
    arguments = ["train", "file", str(tmp_path / "file.yaml")]
    lines = CliRunner().invoke(main, arguments).output.splitlines()
    assert lines == [
        "file.yaml: read; loading Ray and RLlib, some 10 s",
        "Error: loaded",
    ]
    # Nobody waits for a check to say more than its result.
    assert CliRunner().invoke(main, [*arguments, "--check"]).output == "Error: loaded\n"


def test_what_nobody_foresaw_is_one_line_too(tmp_path, monkeypatch):
    def fail(experiment):
        raise RuntimeError("the first line\nand the second")

    monkeypatch.setattr(train, "_check", fail)
    (tmp_path / "file.yaml").write_text(GOOD)
    result = CliRunner().invoke(main, ["train", "file", str(tmp_path / "file.yaml")])
    said = result.output.splitlines()[-1]
    assert result.exit_code == 1
    start = "Error: RuntimeError: the first line and the second (traceback: "
    assert said.startswith(start) and said.endswith(")")
    stack = Path(said.removeprefix(start).removesuffix(")"))
    assert "in fail" in stack.read_text()
    stack.unlink()
