"""Criteria, folders and sweeps that would fail later are answered by `--check`."""

import pytest
import yaml
from click.testing import CliRunner

from rllib_llm_async.cli import main

GOOD = {
    "run": "PPOEWMAAsync",
    "env": "mini_tau2",
    "config": {"env_config": {"domains": ["airline"]}, "engine": {"dtype": "float32"}},
}


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Runs `rllib train file ... --check`; returns its exit code and what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*options, name="mine", **changes):
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump({name: {**GOOD, **changes}}))
        arguments = ["train", "file", str(path), *options, "--check"]
        result = CliRunner().invoke(main, arguments)
        return result.exit_code, result.output

    return run


def with_config(**settings):
    return {"config": {**GOOD["config"], **settings}}


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ((), {}),
        (("--stop", "training_iteration=5"), {}),
        (("--stop", "env_runners/success_rate/airline=0.9"), {}),
        (("--stop", "learners/default_policy/entropy=0.1"), {}),
        (("--stop", "env_runners/episode_return_mean=-1"), {}),
        (("--stop", "time_total_s=0.5"), {}),
        (("--max-failures", "-1"), {"max_failures": 0}),
        (("--set", "training.lr=1e-4", "--set", "engine.max_num_seqs=8"), {}),
        ((), with_config(group_size={"randint": [2, 3]}, episodes_per_update=2)),
        ((), with_config(lr={"loguniform": [1e-6, 1e-4]})),
    ],
)
def test_valid(check, options, changes):
    code, said = check(*options, **changes)
    assert code == 0 and said.endswith(": valid\n"), said


def test_what_a_run_would_warn_of_is_said(check):
    dead_clip = {"old_logprob_source": "current_recompute", "minibatch_size": None}
    code, said = check(**with_config(**dead_clip))
    assert code == 0 and "mine: " in said and "r_s is 1" in said, said
    assert said.endswith(": valid\n")


def test_home_is_found_in_a_storage_path(check, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "experiment.yaml"))
    code, said = check("--storage-path=~/x")
    assert code == 2 and "experiment.yaml is a file" in said


@pytest.mark.parametrize(
    ("options", "changes", "words"),
    [
        (("--stop", "iterations=5"), {}, "did you mean 'training_iteration'"),
        (("--stop", "training_iteration=0"), {}, "got 0, must be a whole number"),
        (("--stop", "training_iteration=2.5"), {}, "got 2.5, must be a whole number"),
        (("--stop", "training_iteration=[1]"), {}, "got [1], must be a number"),
        (("--stop", "time_total_s=.nan"), {}, "got nan, must be a number"),
        (("--stop", "time_total_s=true"), {}, "got True, must be a number"),
        (
            ("--stop", "env_runners.success_rate=0.9"),
            {},
            "did you mean 'env_runners/success_rate'",
        ),
        (
            ("--stop", "evaluation/env_runners/succes_rate=0.9"),
            {},
            "did you mean 'evaluation/env_runners/success_rate'",
        ),
        ((), {"stop": {"training_iteration": {"grid_search": [1, 2]}}}, "stop: tr"),
        ((), {"metric": "env_runners/succes_rate"}, "metric: env_runners/succes"),
        ((), {"search_alg": "optuna"}, "no setting has a space to search"),
        ((), {"name": "../up"}, "'../up': an experiment's name is that of its folder"),
        ((), {"name": ".."}, "'..': an experiment's name"),
        (("--storage-path", "experiment.yaml"), {}, "experiment.yaml is a file"),
        (("--resume",), {}, "--resume: no interrupted run of mine in results"),
        (("--checkpoint-freq", "-1"), {}, "--checkpoint-freq"),
        (("--keep-checkpoints", "0"), {}, "--keep-checkpoints"),
        (("--max-failures", "-2"), {}, "--max-failures"),
        ((), {"max_failures": 1.5}, "max_failures: got 1.5, must be a whole number"),
        (
            ("--set", "num_env_runners=600", "--set", "episodes_per_update=19200"),
            {},
            "1 main process x 1 + 600 env runners x 1 = 601 CPUs, this machine has",
        ),
        (("--set", "training=1"), {}, "training.KEY=VALUE"),
        (("--set", "learning_rate=1"), {}, "TRL's name, here it is 'lr'"),
        (
            (),
            with_config(max_staleness={"uniform": [1, 4]}),
            "max_staleness: uniform draws fractions, write randint",
        ),
        ((), with_config(lr={"uniform": [1e-5, "b"]}), "lr: got uniform: [1e-05, 'b']"),
        ((), with_config(lr={"loguniform": [0, 1]}), "numbers above 0"),
        ((), with_config(lr={"gridsearch": [1, 2]}), "did you mean 'grid_search'"),
        ((), with_config(group_size={"choice": [8, 7]}), "a multiple of group_size"),
        ((), with_config(callbacks="no.such.Class"), "callbacks: "),
        ((), with_config(env_config={"domains": "airline"}), "env_config.domains: got"),
        ((), with_config(env_config={"max_turns": 0}), "env_config.max_turns: got 0"),
    ],
)
def test_one_line_says_what_is_wrong(check, tmp_path, options, changes, words):
    code, said = check(*options, **changes)
    assert code == 2 and words in said and said.count("\n") == 1, said
    assert [path.name for path in tmp_path.iterdir()] == ["experiment.yaml"]
