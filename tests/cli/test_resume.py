"""What `--resume` makes of the state and the checkpoints that a run left."""

import json
import os
import re
from pathlib import Path

import pytest
from ray.train._internal.storage import StorageContext
from ray.tune import CheckpointConfig, PlacementGroupFactory
from ray.tune.experiment import Trial

from rllib_llm_async.algorithms.async_decoupled_ppo.checkpoints import (
    MANIFEST,
    _describe,
)
from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.cli.experiment_file import Experiment
from rllib_llm_async.cli.resume import _FIXED, Changes, prepare_resume
from rllib_llm_async.models.small_agent import small_agent_dir

CONFIG = {"engine": {"dtype": "float32"}, "lr": 1e-4, "eps_ti": 1.2}


class Run:
    """The folder of a run of which Tune knows the checkpoints 0 to `known`."""

    def __init__(self, folder: Path, **experiment):
        self.path = folder / "mine"
        self.experiment = Experiment("mine", "PPOEWMAAsync", "mini_tau2", **experiment)
        self.trials: list[Trial] = []
        self.said: list[str] = []

    def add(self, status, iteration, *, checkpoints=(), config=None, swept=None):
        """A trial after an iteration, with checkpoints of iterations on disk."""
        name = f"trial_{len(self.trials)}"
        trial = Trial(
            "PPOEWMAAsync",
            config={**CONFIG, **(config or {}), "env": "mini_tau2"},
            storage=StorageContext(str(self.path.parent), "mine", trial_dir_name=name),
            evaluated_params=swept,
            stopping_criterion={"training_iteration": 10},
        )
        trial.placement_group_factory = PlacementGroupFactory([{"CPU": 1}])
        trial.status = status
        if iteration:
            trial.run_metadata.last_result = {"training_iteration": iteration}
        trial.run_metadata.num_failures = 4
        for index, saved in enumerate(checkpoints):
            write_checkpoint(self.path / name / f"checkpoint_{index:06d}", saved)
        self.trials.append(trial)
        return self.path / name

    def resume(self, keep=2, settings=None, stop=None):
        """Prepares it; returns the trials as Tune will read them."""
        file = self.path / "experiment_state-2026-01-01_00-00-00.json"
        state = {"trial_data": [t.get_json_state() for t in self.trials], "rest": 1}
        file.write_text(json.dumps(state))
        changes = Changes(
            CheckpointConfig(num_to_keep=keep), 3, settings or {}, stop or {}
        )
        prepare_resume(self.path, self.experiment, changes, self.said.append)
        written = json.loads(file.read_text())
        assert written["rest"] == 1 and os.listdir(self.path).count(file.name) == 1
        trials = []
        for text, metadata in written["trial_data"]:
            trials.append(Trial.from_json_state(text))
            trials[-1].restore_run_metadata(metadata)
        return trials


def write_checkpoint(folder: Path, iteration: int):
    (folder / "learner").mkdir(parents=True)
    (folder / "rllib_checkpoint.json").write_text("{}")
    (folder / "learner" / "weights").write_bytes(bytes(1000))
    metrics = {"training_iteration": iteration, "time_total_s": 1.5}
    manifest = {"metrics": metrics, "files": _describe(folder)}
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


@pytest.mark.parametrize("status", ["RUNNING", "ERROR", "PENDING"])
def test_goes_on_from_the_newest_checkpoint_that_tune_did_not_hear_of(run, status):
    folder = run.add(status, 3, checkpoints=[2, 4, 6])
    (trial,) = run.resume()
    assert trial.status == "PENDING"
    assert trial.checkpoint.path == str(folder / "checkpoint_000002")
    metrics = trial.latest_checkpoint_result.metrics
    assert metrics["training_iteration"] == 6 and metrics["time_total_s"] == 1.5
    assert run.said == [f"resuming at iteration 6 from {folder / 'checkpoint_000002'}"]
    assert trial.num_failures == 0 and trial.max_failures == 3
    # The two newest are kept, and the next one gets a name of its own.
    assert sorted(p.name for p in folder.iterdir()) == [
        "checkpoint_000001",
        "checkpoint_000002",
    ]
    assert trial.storage.current_checkpoint_index == 2


def cut_off(checkpoint):
    (checkpoint / MANIFEST).unlink()


def truncate(checkpoint):
    os.truncate(checkpoint / "learner" / "weights", 500)


def flip(checkpoint):
    file = checkpoint / "learner" / "weights"
    file.write_bytes(bytes(999) + b"\1")


def lose(checkpoint):
    (checkpoint / "learner" / "weights").unlink()


def scribble(checkpoint):
    (checkpoint / MANIFEST).write_text('{"files": 3}')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_off, "was not written to its end"),
        (truncate, "learner/weights has 500 of 1000 bytes"),
        (flip, "the content of learner/weights has changed"),
        (lose, "learner/weights is missing"),
        (scribble, "manifest.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(run, damage, words):
    folder = run.add("RUNNING", 5, checkpoints=[2, 4])
    damage(folder / "checkpoint_000001")
    (trial,) = run.resume()
    assert trial.checkpoint.path == str(folder / "checkpoint_000000")
    assert run.said[0].startswith(f"not resuming from {folder / 'checkpoint_000001'}")
    assert words in run.said[0] and run.said[-1].startswith("resuming at iteration 2")
    assert trial.storage.current_checkpoint_index == 1

    damage(folder / "checkpoint_000000")
    with pytest.raises(InputError, match="no checkpoint in"):
        run.resume()


def test_without_a_checkpoint_it_starts_again(run):
    run.add("RUNNING", 5)
    run.add("PENDING", 0)
    trials = run.resume()
    assert [t.status for t in trials] == ["PENDING"] * 2
    assert ["starting at iteration 0, there is no" in x for x in run.said] == [True] * 2


def test_a_sweep_runs_what_has_not_ended(run):
    run.add("TERMINATED", 10, checkpoints=[10])
    run.add("TERMINATED", 4, checkpoints=[4])  # by its scheduler
    run.add("ERROR", 6, checkpoints=[4])
    run.add("RUNNING", 10, checkpoints=[5, 10])  # killed after its last checkpoint
    run.add("TERMINATED", 10, checkpoints=[8])  # its last one did not fit on the disk
    trials = run.resume()
    expected = ["TERMINATED", "TERMINATED", "PENDING", "TERMINATED", "PENDING"]
    assert [t.status for t in trials] == expected
    trials = run.resume(stop={"training_iteration": 12})
    expected = ["PENDING", "TERMINATED", "PENDING", "PENDING", "PENDING"]
    assert [t.status for t in trials] == expected
    assert trials[0].stopping_criterion == {"training_iteration": 12}
    assert trials[1].stopping_criterion == {"training_iteration": 10}
    assert "done" not in trials[3].last_result


def test_settings_change(run):
    run.add("RUNNING", 5, checkpoints=[4], config={"model": "small_agent"})
    settings = {"training.lr": 1e-5, "engine.max_num_seqs": 8, "model": "small_agent"}
    (trial,) = run.resume(settings=settings)
    assert trial.config["lr"] == 1e-5 and trial.config["eps_ti"] == 1.2
    assert trial.config["engine"] == {"dtype": "float32", "max_num_seqs": 8}
    assert "lr: 0.0001 -> 1e-05" in run.said and len(run.said) == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lora": {"r": 8}}, "--set lora: the checkpoint was made with the default"),
        ({"optimizer.eps": 1e-6}, "--set optimizer: the checkpoint was made with"),
        ({"advantage_estimator": "gae"}, "--set advantage_estimator: the checkpoint"),
        ({"eps_ti": 1.3}, "--set eps_ti: the trials of this sweep differ in it"),
        ({"eps_stale": 0.5}, "eps_stale: got 0.5"),
    ],
)
def test_settings_that_cannot_change(run, settings, words):
    run.add("RUNNING", 5, checkpoints=[4], swept={"eps_ti": 1.2})
    with pytest.raises(InputError, match=words):
        run.resume(settings=settings)


@pytest.mark.parametrize(
    ("space", "same"),
    [
        ({"grid_search": [1.2, 1.4]}, True),
        ({"choice": [1.2, 1.3, 1.4]}, True),  # one that was not drawn
        ({"uniform": [1.1, 1.4]}, True),
        ({"grid_search": [1.2, 1.3, 1.4]}, False),
        ({"grid_search": [1.2]}, False),
        ({"choice": [1.2, 1.3]}, False),
        ({"uniform": [1.1, 1.3]}, False),
    ],
)
def test_the_spaces_of_the_first_command_may_stand_in_the_second(run, space, same):
    for value in (1.2, 1.4):
        swept = {"eps_ti": value}
        run.add("RUNNING", 5, checkpoints=[4], config=swept, swept=swept)
    settings = {"training.eps_ti": space, "lr": 1e-5}
    if same:
        trials = run.resume(settings=settings)
        assert [trial.config["eps_ti"] for trial in trials] == [1.2, 1.4]
        assert [trial.config["lr"] for trial in trials] == [1e-5, 1e-5]
    else:
        with pytest.raises(InputError, match=r"--set training.eps_ti: .* drawn from"):
            run.resume(settings=settings)


def test_a_space_for_what_was_not_swept(run):
    run.add("RUNNING", 5, checkpoints=[4])
    with pytest.raises(InputError, match=r"--set eps_ti: .* drawn from"):
        run.resume(settings={"eps_ti": {"grid_search": [1.2]}})


def test_a_relative_model_is_the_run_s(run, tmp_path, monkeypatch):
    (tmp_path / "agent").symlink_to(small_agent_dir(), target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    model = str(tmp_path / "agent")
    run.add("RUNNING", 5, checkpoints=[4], config={"model": model})
    (trial,) = run.resume(settings={"model": "agent"})
    assert trial.config["model"] == model
    with pytest.raises(InputError, match="--set model: the checkpoint was made with"):
        run.resume(settings={"model": "small_agent"})


def test_the_page_names_what_may_not_change():
    page = Path(__file__).parents[2].joinpath("docs/cluster.md").read_text()
    (sentence,) = re.findall(
        r"engines and GPUs\. Not (.*?), and not from", page, re.DOTALL
    )
    assert set(re.findall("`(.*?)`", sentence)) == set(_FIXED)


def test_weights_that_were_whole_cannot_be_shared(run):
    run.add("RUNNING", 5, checkpoints=[4])
    with pytest.raises(InputError, match="--set learner_sharding: the checkpoint was"):
        run.resume(settings={"learner_sharding": "fsdp2", "num_learners": 2})
    with pytest.raises(InputError, match="--set compute_dtype: the checkpoint was"):
        run.resume(settings={"compute_dtype": "bfloat16"})


def test_a_grid_of_which_tune_has_trials_to_make_yet(tmp_path):
    grid = {"grid_search": [1.1, 1.2, 1.3]}
    run = Run(tmp_path, config={"eps_ti": grid})
    swept = {"eps_ti": 1.1}
    run.add("RUNNING", 5, checkpoints=[4], config=swept, swept=swept)
    # As the interrupted command said it.
    assert run.resume(settings={"eps_ti": grid})[0].status == "PENDING"
    with pytest.raises(InputError, match="--set lr: the trials that Tune has still"):
        run.resume(settings={"lr": 1e-6})
    with pytest.raises(InputError, match="--stop: the trials that Tune has still"):
        run.resume(stop={"training_iteration": 12})


def test_a_checkpoint_that_was_cut_off_makes_room(run):
    folder = run.add("RUNNING", 5, checkpoints=[2, 4, 6])
    cut_off, damaged = folder / "checkpoint_000002", folder / "checkpoint_000001"
    (cut_off / MANIFEST).unlink()
    (damaged / "learner" / "weights").write_bytes(b"")
    (trial,) = run.resume()
    assert trial.checkpoint.path == str(folder / "checkpoint_000000")
    assert damaged.exists() and not cut_off.exists()
    assert f"removing {cut_off}" in run.said
    # The next one has a number of its own all the same.
    assert trial.storage.current_checkpoint_index == 2


def test_a_searcher_has_trials_to_choose_yet(tmp_path):
    run = Run(tmp_path, search_alg="optuna")
    run.add("RUNNING", 5, checkpoints=[4])
    assert run.resume()[0].status == "PENDING"
    with pytest.raises(InputError, match="--set lr: the trials that optuna has still"):
        run.resume(settings={"lr": 1e-6})
    with pytest.raises(InputError, match="--stop: the trials that optuna has still"):
        run.resume(stop={"training_iteration": 12})


def test_an_unreadable_state(run):
    run.path.mkdir()
    (run.path / "experiment_state-2026-01-01_00-00-00.json").write_text('{"trial')
    with pytest.raises(InputError, match="cannot be read"):
        prepare_resume(run.path, run.experiment, Changes(CheckpointConfig(), 3), print)


def test_an_edited_file_is_said_not_to_count(run):
    run.experiment.config = {"lr": 1e-4, "eps_ti": 1.1, "eps_stale": 1.3}
    run.experiment.stop = {"training_iteration": 99}
    run.add(
        Trial.PENDING, 3, checkpoints=(1, 3), config={"engine": {"dtype": "float32"}}
    )
    (trial,) = run.resume(settings={"eps_stale": 1.3})
    said = "\n".join(run.said)
    assert "eps_ti: 1.1 in the file does not count, the run has 1.2" in said
    assert "training_iteration: 99 in the file does not count, the run has 10" in said
    assert "lr:" not in said and "eps_stale: 1.3 in the file" not in said
    assert trial.config["eps_ti"] == 1.2
