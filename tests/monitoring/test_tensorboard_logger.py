"""What TensorBoard is given of a run, read back from its file."""

import json
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from pyarrow.fs import LocalFileSystem
from tensorboardX.proto import layout_pb2, plugin_hparams_pb2

from rllib_llm_async.core import NUM_RATIO_BINS
from rllib_llm_async.monitoring.panels import HEADLINES, PANELS
from rllib_llm_async.monitoring.tensorboard_logger import TensorBoardLogger
from rllib_llm_async.monitoring.wandb_logger import WandbLogger, _LoggingActor
from tests.monitoring.tensorboard_file import read_scalars, read_values


def result(iteration, version):
    density = np.zeros((NUM_RATIO_BINS, NUM_RATIO_BINS), int)
    density[3, 5] = 7
    return {
        "training_iteration": iteration,
        "done": False,
        "config": {"eps_ti": 1.2},
        "hostname": "here",
        "env_runners": {"success_rate": np.float32(0.5), "odd": float("nan")},
        "learners": {
            "default_policy": {
                "policy_version": version,
                "ewma_num_resets": float(version),
                "ratio_density": tuple(density.flatten().tolist()),
            }
        },
        "timeline": [["learner 0", "training", 0.0, 1.0]],
    }


EVALUATION = {"evaluation": {"env_runners": {"success_rate": 0.75}}}
RESULTS = [result(1, 0), {**result(2, 1), **EVALUATION}]


@pytest.fixture
def events(tmp_path):
    """Two updates of a trial of a sweep, the second with an evaluation."""
    storage = SimpleNamespace(
        trial_fs_path=str(tmp_path), storage_filesystem=LocalFileSystem()
    )
    trial = mock.Mock(
        local_path=str(tmp_path), storage=storage, evaluated_params={"eps_ti": 1.2}
    )
    dialogue = {
        "training_iteration": 2,
        "task": "airline/7",
        "success": True,
        "reward": 1.0,
        "reward_breakdown": {},
        "reason": "user_stop",
        "policy_version": 1,
        "messages": [{"role": "user", "content": "# hello"}],
    }
    (tmp_path / "dialogues.jsonl").write_text(json.dumps(dialogue) + "\n")
    logger = TensorBoardLogger()
    logger.log_trial_start(trial)
    for number, update in enumerate(RESULTS, 1):
        logger.log_trial_result(number, trial, update)
    logger.log_trial_end(trial)
    (path,) = tmp_path.glob("events.out.tfevents.*")
    return path


def test_scalars_have_the_names_of_result_keys(events):
    assert read_scalars(events) == {
        "training_iteration": [1, 2],
        "env_runners/success_rate": [0.5, 0.5],
        "learners/default_policy/policy_version": [0, 1],
        "learners/default_policy/ewma_num_resets": [0, 1],
        "marks/ewma_reset": [0, 1],
        "marks/new_version": [0, 1],
        "evaluation/env_runners/success_rate": [0.75],
    }


def test_names_are_those_of_wandb(events, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # as the logging actor does
    actor = _LoggingActor(
        str(tmp_path),
        None,
        [*WandbLogger._exclude_results, "config"],
        WandbLogger.AUTO_CONFIG_KEYS,
        environment={},
    )
    actor._is_defined = True  # that needs a run
    logged = {}
    for update in RESULTS:
        log, _ = actor._handle_result(dict(update))
        logged |= log
    kinds = {key: np.isscalar(value) for key, value in logged.items()}
    scalars = {
        k for k, is_scalar in kinds.items() if is_scalar and logged[k] == logged[k]
    }
    assert scalars == read_scalars(events).keys()
    assert {key for key, is_scalar in kinds.items() if not is_scalar} == {
        value.tag
        for _, value in read_values(events)
        if value.WhichOneof("value") == "histo"
    }


def test_histograms_are_those_of_the_updates_tokens(events):
    histograms = {
        (step, value.tag): value.histo
        for step, value in read_values(events)
        if value.WhichOneof("value") == "histo"
    }
    assert histograms.keys() == {
        (step, f"ratios/log_r_{which}") for step in (1, 2) for which in "ds"
    }
    histogram = histograms[2, "ratios/log_r_d"]
    assert histogram.num == 7 and list(histogram.bucket)[3] == 7
    assert sum(histogram.bucket) == 7
    assert len(histogram.bucket_limit) == NUM_RATIO_BINS


def plugin_content(events, tag):
    (content,) = (
        value for _, value in read_values(events) if value.tag.startswith(tag)
    )
    return content


def test_groups_are_those_of_the_panels(events):
    value = plugin_content(events, "custom_scalars")
    layout = layout_pb2.Layout()
    layout.ParseFromString(value.tensor.string_val[0])
    drawn = {
        category.title: {
            chart.title: [*chart.multiline.tag] for chart in category.chart
        }
        for category in layout.category
    }
    assert drawn == PANELS


def test_dialogues_are_text_and_no_markup(events):
    value = plugin_content(events, "dialogues/airline/7")
    text = value.tensor.string_val[0].decode()
    assert all(line.startswith("    ") for line in text.splitlines())
    assert "# hello" in text


def test_a_sweep_is_compared_by_what_it_chose_and_the_headlines(events):
    start = plugin_content(events, "_hparams_/session_start_info")
    data = plugin_hparams_pb2.HParamsPluginData()
    data.ParseFromString(start.metadata.plugin_data.content)
    assert {*data.session_start_info.hparams} == {"eps_ti"}
    experiment = plugin_content(events, "_hparams_/experiment")
    data.ParseFromString(experiment.metadata.plugin_data.content)
    metrics = {info.name.tag for info in data.experiment.metric_infos}
    assert metrics == {k for k in HEADLINES if k.endswith("success_rate")}
