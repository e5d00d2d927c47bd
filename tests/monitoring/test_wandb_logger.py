"""What an offline run's file holds, read back record by record."""

import json
import os
import queue
from unittest import mock

import numpy as np
import pytest
from ray import tune
from ray.air.integrations.wandb import WandbLoggerCallback, _QueueItem

from rllib_llm_async.core import NUM_RATIO_BINS
from rllib_llm_async.monitoring import wandb_logger
from rllib_llm_async.monitoring.panels import HEADLINES
from rllib_llm_async.monitoring.tensorboard_logger import TensorBoardLogger
from rllib_llm_async.monitoring.wandb_logger import WandbLogger, _LoggingActor
from tests.monitoring.tensorboard_file import read_scalars
from tests.monitoring.wandb_file import read_run


def trainable(config):
    """Reports what a run of ours would, without an engine."""
    density = np.zeros((NUM_RATIO_BINS, NUM_RATIO_BINS), int)
    density[3, 5] = 7
    for version in range(3):
        result = {
            "env_runners": {"success_rate": 0.5 + version / 10},
            "learners": {
                "default_policy": {
                    "train_infer_mask": 0.9,
                    "policy_version": version,
                    "ewma_num_resets": float(version == 2),
                    "ratio_density": tuple(density.flatten().tolist()),
                }
            },
        }
        if version == 2:
            result["evaluation"] = {"env_runners": {"success_rate": 0.75}}
            dialogue = {
                "training_iteration": 3,
                "task": "airline/7",
                "domain": "airline",
                "success": True,
                "reward": 1.0,
                "reward_breakdown": {},
                "reason": "user_stop",
                "policy_version": 2,
                "messages": [{"role": "user", "content": "hello"}],
            }
            directory = tune.get_context().get_trial_dir()
            path = os.path.join(config["storage"], os.path.basename(directory))
            os.makedirs(path, exist_ok=True)
            with open(os.path.join(path, "dialogues.jsonl"), "w") as file:
                file.write(json.dumps(dialogue) + "\n")
        tune.report(result)


def test_an_offline_run_holds_keys_histograms_marks_and_dialogues(
    ray_cluster, tmp_path, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")  # needs no key
    storage = tmp_path / "results" / "run"
    results = tune.Tuner(
        trainable,
        param_space={"storage": str(storage), "eps_ti": tune.grid_search([1.2])},
        run_config=tune.RunConfig(
            name="run",
            storage_path=str(tmp_path / "results"),
            callbacks=[
                WandbLogger(
                    project="project", group="sweep", mode="offline", dir=str(tmp_path)
                ),
                TensorBoardLogger(),
            ],
            verbose=0,
        ),
    ).fit()
    assert not results.errors
    (path,) = tmp_path.rglob("*.wandb")
    run, history, defined = read_run(path)
    assert run.project == "project" and run.run_group == "sweep"
    assert {*HEADLINES} <= {*defined}
    assert [row["training_iteration"] for row in history] == [1, 2, 3]
    success = [row["env_runners/success_rate"] for row in history]
    assert success == pytest.approx([0.5, 0.6, 0.7])
    assert [row["marks/new_version"] for row in history] == [0, 1, 1]
    assert [row["marks/ewma_reset"] for row in history] == [0, 0, 1]
    assert sum(history[0]["ratios/log_r_d/values"]) == 7
    assert history[0]["ratios/log_r_d/values"][3] == 7
    assert history[0]["ratios/log_r_s/values"][5] == 7
    assert history[2]["dialogues/nrows"] == 1
    assert "dialogues/nrows" not in history[0]
    assert run.display_name == "eps_ti=1.2000"  # what the sweep has chosen
    (events,) = (tmp_path / "results").rglob("events.out.tfevents.*")
    numbers = {
        key
        for row in history
        for key, value in row.items()
        if isinstance(value, int | float)
        and "/" in key
        and not key.startswith(("ratios/", "dialogues/"))
    }
    assert {tag for tag in read_scalars(events) if "/" in tag} == numbers


def test_a_run_without_a_way_to_wandb_goes_on_offline_and_says_so(
    tmp_path, monkeypatch
):
    board = mock.Mock()
    monkeypatch.setattr(wandb_logger, "find_status_board", lambda: board)
    monkeypatch.chdir(tmp_path)  # as the actor does
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_START_METHOD"):
        monkeypatch.setenv(name, "")  # what the actor sets goes with the test
    trial = tmp_path / "trial_3"
    trial.mkdir()
    results = queue.Queue()
    for iteration in (1, 2):
        results.put((_QueueItem.RESULT, {"training_iteration": iteration}))
    results.put((_QueueItem.END, None))
    _LoggingActor(
        str(trial),
        results,
        [],
        [],
        environment={
            "WANDB_API_KEY": "0" * 40,
            "WANDB_BASE_URL": "http://127.0.0.1:9",  # where nobody listens
        },
        project="mine",
        id="abc",
        mode=None,
        resume="allow",
        dir=str(tmp_path),
        settings={"init_timeout": 1},
    ).run()
    (path,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    run, history, defined = read_run(path)
    assert run.run_id == "abc" and {*HEADLINES} <= {*defined}
    assert [row["training_iteration"] for row in history] == [1, 2]
    board.notify.remote.assert_called_once()
    directory, text = board.notify.remote.call_args.args
    assert directory == "trial_3"
    assert text.startswith("W&B: Failed to get resume status")
    assert text.endswith(f"wandb sync {tmp_path}/wandb/offline-run-*")


def test_an_actor_of_a_running_cluster_has_what_the_command_s_shell_says(
    tmp_path, monkeypatch
):
    said = {
        "WANDB_API_KEY": "0" * 40,
        "WANDB_BASE_URL": "https://wandb.example",
        "WANDB_ENTITY": "a-team",
    }
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    start = mock.Mock()
    monkeypatch.setattr(WandbLoggerCallback, "_start_logging_actor", start)
    logger = WandbLogger("mine")
    logger._remote_logger_class = "made"  # that needs a cluster
    logger.log_trial_start(mock.Mock(config={}, experiment_tag="0"))
    for name in said:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    _LoggingActor(str(tmp_path), None, [], [], **start.call_args.kwargs)
    assert {name: os.environ.get(name) for name in said} == said
