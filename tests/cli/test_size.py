"""`rllib size`: memory of a file's job, and its tokens' age on the simulated clock."""

import random

import pytest
from click.testing import CliRunner

from rllib_llm_async import PPOEWMAAsyncConfig
from rllib_llm_async.cli import main
from rllib_llm_async.cli.example import EXAMPLES_DIR
from rllib_llm_async.sizing.staleness import job_of, simulated

pytestmark = pytest.mark.thorough

YAML = EXAMPLES_DIR / "mini_tau2_ppo_ewma_async.yaml"


def size(*options):
    return CliRunner().invoke(main, ["size", str(YAML), *options])


def outcome(update=10.0, episode=5.0, spread=0.3, **training):
    config = (
        PPOEWMAAsyncConfig()
        .environment("mini_tau2")
        .training(
            **{
                "num_concurrent_episodes": 32,
                "episodes_per_update": 16,
                "group_size": 4,
                "max_staleness": 4,
                **training,
            }
        )
    )
    return simulated(job_of(config, update, episode, spread))


def test_a_table_over_the_bound_with_that_of_the_file():
    done = size("--update-seconds", "8", "--episode-seconds", "4")
    assert done.exit_code == 0, done.output
    _, _, staleness = done.output.partition("64 of 256 places are busy")
    bounds = [line.split()[1] for line in staleness.splitlines() if "│" in line]
    assert bounds == ["0", "1", "2", "4", "8"]
    assert "1 (file)" in done.output


def test_without_durations_a_table_over_their_ratio():
    done = size("--set", "max_staleness=0")
    assert done.exit_code == 0, done.output
    _, _, staleness = done.output.partition("an episode takes")
    rows = [line.split("│")[1:3] for line in staleness.splitlines() if "│" in line]
    assert [row[0].split()[0] for row in rows] == ["0.25", "0.5", "1", "2", "4"]
    assert {float(row[1]) for row in rows} == {0.0}


def test_memory_fits_a_narrow_terminal():
    done = size()
    assert "1.13 million parameters, all trained" in done.output
    assert "the learner: memory, training" in done.output
    assert "together" in done.output
    assert max(map(len, done.output.splitlines())) <= 80


def test_adapters_are_told_apart():
    done = size("--set", "lora.r=4", "--set", "lora.target_modules=all-linear")
    assert done.exit_code == 0, done.output
    assert "1.13 million parameters, 45,056 trained in adapters" in done.output


def test_a_model_that_is_nowhere_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done = size("--set", "model=nobody/has-this")
    assert done.exit_code == 2
    *_, last = done.output.splitlines()
    assert last.startswith("Error: model: cannot read the config of 'nobody/has-this'")
    assert "traceback" not in last


@pytest.mark.parametrize("one", ["--update-seconds", "--episode-seconds"])
def test_one_duration_alone_says_nothing(one):
    done = size(one, "8")
    assert done.exit_code == 2
    assert "give --update-seconds and --episode-seconds, or neither" in done.output


def test_settings_of_the_command_count():
    done = size(
        *("--update-seconds", "8", "--episode-seconds", "4"),
        *("--set", "num_concurrent_episodes=32", "--set", "max_staleness=3"),
    )
    assert "64 of 32 places" in done.output
    assert "the engines are the limit, and the learner waits 50% of" in done.output
    assert "3 (file)" in done.output


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"update": 2.0}, "wait_fraction"),
        ({"episode": 20.0}, "wait_fraction"),
        ({"spread": 1.2}, "mean_staleness"),
        ({"num_concurrent_episodes": 8}, "wait_fraction"),
        ({"episodes_per_update": 64}, "wait_fraction"),
        ({"group_size": 16}, "mean_staleness"),
        ({"max_staleness": 0}, "wait_fraction"),
    ],
)
def test_what_the_outcome_depends_on(change, key):
    assert getattr(outcome(**change), key) != getattr(outcome(), key)


def test_durations_have_the_mean_that_was_given():

    rng = random.Random(0)
    config = PPOEWMAAsyncConfig()
    draw = job_of(config, 1.0, 5.0, 0.8).episode_seconds
    assert sum(draw(rng) for _ in range(20_000)) / 20_000 == pytest.approx(5, rel=0.03)


def test_a_file_of_several_needs_a_name():
    several = EXAMPLES_DIR / "tau2_retail_qwen3_4b.yaml"
    options = ["--update-seconds", "8", "--episode-seconds", "4"]
    done = CliRunner().invoke(main, ["size", str(several), *options])
    assert done.exit_code == 2
    assert "--experiment is needed, one of tau2_retail_qwen3_4b_snap" in done.output


@pytest.mark.parametrize("value", ["0", "-1", "x", "nan", "inf"])
def test_durations_are_positive(value):
    done = size("--update-seconds", value, "--episode-seconds", "4")
    assert done.exit_code == 2 and "--update-seconds" in done.output
