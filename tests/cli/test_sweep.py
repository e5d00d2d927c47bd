"""Search spaces, schedulers and searchers of a YAML become Ray Tune's own."""

import json
from types import SimpleNamespace
from unittest import mock

import pytest
import yaml
from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.cli.experiment_file import build_config, load_experiments
from rllib_llm_async.cli.search_space import param_space
from rllib_llm_async.cli.sweep import report_sweep, tune_config

SUCCESS = "env_runners/success_rate"
HELD_OUT = "evaluation/env_runners/success_rate"


def load(tmp_path, config, **keys):
    path = tmp_path / "sweep.yaml"
    experiment = {"run": "AsyncDecoupledPPO", "env": "mini_tau2", "config": config}
    path.write_text(yaml.safe_dump({"sweep": {**experiment, **keys}}))
    (loaded,) = load_experiments(path)
    return loaded


def test_spaces_become_those_of_tune(tmp_path):
    experiment = load(
        tmp_path,
        {
            "eps_ti": {"grid_search": [1.1, 1.2]},
            "eps_stale": {"uniform": [1.1, 1.3]},
            "lr": {"loguniform": ["1e-5", "1e-3"]},
            "old_logprob_source": {"choice": ["rollout", "snapshot_old"]},
            "seed": 3,
        },
    )
    build_config(experiment)
    space = param_space(experiment.config)
    assert space["eps_ti"] == tune.grid_search([1.1, 1.2])
    assert (space["eps_stale"].lower, space["eps_stale"].upper) == (1.1, 1.3)
    assert (space["lr"].lower, space["lr"].upper) == (1e-5, 1e-3)
    assert space["old_logprob_source"].categories == ["rollout", "snapshot_old"]
    assert space["seed"] == 3
    assert sorted(experiment.swept) == sorted({*experiment.config} - {"seed"})


def test_scheduler_and_searcher_take_the_goal_and_their_arguments(tmp_path):
    experiment = load(
        tmp_path,
        {"eps_ti": {"uniform": [1.1, 1.2]}},
        num_samples=4,
        mode="min",
        scheduler={"type": "asha", "grace_period": 3},
        search_alg={"type": "optuna", "seed": 1},
    )
    config = tune_config(experiment)
    assert config.num_samples == 4
    assert isinstance(config.scheduler, ASHAScheduler)
    assert isinstance(config.search_alg, OptunaSearch)
    assert config.search_alg.metric == "env_runners/success_rate"
    assert config.search_alg.mode == "min"


def decisions(scheduler, results):
    """What a scheduler says to each result of the only trial of a sweep."""
    trial = mock.Mock(trial_id="only", status="RUNNING")
    scheduler.on_trial_add(None, trial)
    return {scheduler.on_trial_result(None, trial, result) for result in results}


@pytest.mark.parametrize("name", ["asha", "hyperband"])
def test_the_best_trial_goes_on_until_stop(tmp_path, name):
    experiment = load(tmp_path, {}, scheduler=name, stop={"training_iteration": 200})
    scheduler = tune_config(experiment).scheduler
    # Tune itself stops at 200, or at what --resume --stop says.
    results = [{"training_iteration": i, SUCCESS: i / 300} for i in range(1, 301)]
    assert decisions(scheduler, results) == {"CONTINUE"}


def test_what_a_scheduler_is_told_counts(tmp_path):
    def last(stop, **arguments):
        scheduler = {"type": "asha", **arguments}
        return tune_config(
            load(tmp_path, {}, scheduler=scheduler, stop=stop)
        ).scheduler._max_t

    assert last({"training_iteration": 200}) == 200
    assert last({"training_iteration": 200}, max_t=50) == 50
    assert last({"time_total_s": 3600}, time_attr="time_total_s") == 3600
    assert last({"training_iteration": 2}, grace_period=5) == 5


def test_a_metric_that_some_results_lack_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNE_DISABLE_STRICT_METRIC_CHECKING", "")
    monkeypatch.delenv("TUNE_DISABLE_STRICT_METRIC_CHECKING")
    experiment = load(
        tmp_path,
        {"evaluation_interval": 10},
        metric=HELD_OUT,
        scheduler={"type": "asha", "grace_period": 5},
        stop={"training_iteration": 20},
    )
    config = tune_config(experiment)
    results = [
        {"training_iteration": i, SUCCESS: 0.5} | ({HELD_OUT: 0.5} if i == 10 else {})
        for i in range(1, 21)
    ]
    controller = SimpleNamespace(
        _metric=None,
        _scheduler_alg=config.scheduler,
        _search_alg=SimpleNamespace(metric=None),
    )
    for result in results:  # raises where Tune would end the sweep
        TuneController._validate_result_metrics(controller, result)
    assert decisions(config.scheduler, results) == {"CONTINUE"}


@pytest.mark.parametrize(
    ("config", "keys", "words"),
    [
        ({"eps_ti": {"uniform": [0.5, 1.2]}}, {}, "eps_ti: got 0.5"),
        ({"eps_ti": {"uniform": [1.2]}}, {}, r"uniform needs \[lower, upper\]"),
        ({"eps_ti": {"grid_search": 3}}, {}, "grid_search needs a list"),
        ({}, {"scheduler": "asah"}, "scheduler: unknown 'asah', did you mean 'asha'"),
        ({}, {"scheduler": {"type": "asha", "grace": 1}}, "asha takes no 'grace'"),
        ({}, {"search_alg": "optunna"}, "search_alg: unknown 'optunna'"),
        (
            {"eps_ti": {"grid_search": [1.2]}},
            {"search_alg": "optuna"},
            "write `choice` for grid_search of eps_ti",
        ),
        ({}, {"mode": "best"}, "mode: got 'best'"),
        ({}, {"num_samples": 0}, "num_samples: got 0"),
        ({}, {"metric": HELD_OUT}, "there is none with evaluation_interval: null"),
        (
            {"evaluation_interval": 10, "eps_ti": {"uniform": [1.1, 1.2]}},
            {"metric": HELD_OUT, "search_alg": "optuna"},
            "search_alg: optuna needs the metric in every result",
        ),
        (
            {"evaluation_interval": 10},
            {"metric": HELD_OUT, "scheduler": "hyperband"},
            "scheduler: hyperband needs the metric in every result",
        ),
    ],
)
def test_what_cannot_be_is_named(tmp_path, config, keys, words):
    experiment = load(tmp_path, config, **keys)
    with pytest.raises(InputError, match=words):
        build_config(experiment)
        tune_config(experiment)


def test_a_sweep_ends_in_a_table_and_a_page(tmp_path, capsys):
    for number, history in enumerate([[0.5, 0.9, 0.6], [0.5, 0.7, 0.65]]):
        trial = tmp_path / "sweep" / f"trial_{number}"
        trial.mkdir(parents=True)
        config = {
            "eps_ti": 1.1 + number / 10,
            "eps_stale": 1.2,
            "old_logprob_source": "rollout",
        }
        rows = [
            {
                "training_iteration": iteration + 1,
                "config": config,
                "env_runners": {"success_rate": success},
                "learners": {"default_policy": {"train_infer_mask": 0.875}},
            }
            for iteration, success in enumerate(history)
        ]
        (trial / "result.json").write_text("\n".join(map(json.dumps, rows)))
        (trial / "params.json").write_text(json.dumps(config))
    report_sweep(tmp_path / "sweep", ["eps_ti"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "0.875" in line]
    assert "1.1" in lines[0] and "0.600" in lines[0] and "yes" in lines[0]
    assert "1.2" in lines[1] and "0.650" in lines[1] and "yes" not in lines[1]
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert "share collapsed" in page


@pytest.mark.parametrize(
    ("setting", "attribute"), [("lambda_", "lambda"), ("model", "model_name_or_path")]
)
def test_settings_that_results_name_otherwise(tmp_path, capsys, setting, attribute):
    for value in ("one", "two"):
        # RLlib has a setting `model` of its own.
        config = {"old_logprob_source": "rollout", "model": {"fcnet": []}}
        config |= {attribute: value}
        row = {"training_iteration": 1, "config": config}
        trial = tmp_path / "sweep" / value
        trial.mkdir(parents=True)
        (trial / "result.json").write_text(json.dumps(row))
    report_sweep(tmp_path / "sweep", [setting])
    told = capsys.readouterr().out
    assert "one" in told and "two" in told and "fcnet" not in told
