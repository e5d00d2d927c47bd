"""What an offline run's file holds, read back record by record."""

import json
import os

import numpy as np
import pytest
from ray import tune

from rllib_llm_async.core import NUM_RATIO_BINS
from rllib_llm_async.monitoring.panels import HEADLINES
from rllib_llm_async.monitoring.tensorboard_logger import TensorBoardLogger
from rllib_llm_async.monitoring.wandb_logger import WandbLogger
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
