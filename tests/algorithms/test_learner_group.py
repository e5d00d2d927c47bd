"""Two learners over gloo against one; checkpoints of remote learners."""

import errno
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.fs
import pytest
import ray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_llm_async import result_keys
from rllib_llm_async.algorithms.async_decoupled_ppo.torch import learner_group


def weights_of(group):
    def weights(learner):
        return {n: w.cpu().numpy() for n, w in learner._policy.inference_weights()}

    return [result.get() for result in group.foreach_learner(weights)]


@pytest.mark.parametrize(
    "micro_batch_tokens", [16384, pytest.param(64, marks=pytest.mark.slow)]
)
def test_two_learners_take_the_step_of_one(
    ray_cluster, make_learner_group, make_episodes, micro_batch_tokens
):
    episodes = make_episodes(np.random.default_rng(0), [0])
    settings = {
        "old_logprob_source": "ppo_ewma_async",
        "grad_clip": None,
        "lr": 1e-2,
        "micro_batch_tokens": micro_batch_tokens,
    }
    results, counts = [], []
    for num_learners in (1, 2):
        group = make_learner_group(num_learners=num_learners, **settings)
        groups = [ray.put(episodes[:4]), ray.put(episodes[4:])]
        # Momentum has to be SGD-like for weights to be comparable: one step of Adam
        # turns the noise of a zero gradient into a full step.
        metrics = MetricsLogger(root=True)
        metrics.aggregate(
            group.update(training_data=TrainingData(episodes_refs=groups))
        )
        counts.append(metrics.compile()[DEFAULT_MODULE_ID])
        results.append(weights_of(group))
        group.shutdown()
    # Counts of two learners are the counts of one: they are summed, not averaged.
    num_tokens = sum(len(turn) for e in episodes for turn in e.actions.data)
    for of_group in counts:
        assert sum(of_group[result_keys.RATIO_DENSITY]) == num_tokens
        assert of_group[result_keys.STALENESS_TOKENS] == (num_tokens, 0, 0, 0, 0)
    assert [len({span[0] for span in c[result_keys.TIMELINE]}) for c in counts] == [
        1,
        2,
    ]
    (alone,), (first, second) = results
    for name, weight in alone.items():
        np.testing.assert_array_equal(first[name], second[name])
        close = np.isclose(weight, first[name], atol=1e-4).mean()
        assert close > 0.99, name


def raising(error):
    def method(*args, **kwargs):
        raise error

    return method


def test_what_a_remote_learner_cannot_write_or_read_is_raised(
    ray_cluster, make_learner_group, make_episodes, tmp_path
):
    full = OSError(errno.ENOSPC, "No space left on device")
    group = make_learner_group(num_learners=1)
    episodes = make_episodes(np.random.default_rng(0), [0])

    def update():
        training_data = TrainingData(episodes_refs=[ray.put(episodes)])
        return group.update(training_data=training_data)

    group.foreach_learner(
        lambda learner: setattr(learner, "save_to_path", raising(full))
    )
    with pytest.raises(OSError, match="No space left on device"):
        group.save_to_path(str(tmp_path / "none"))
    # It goes on to learn, and writes the next one.
    group.foreach_learner(lambda learner: delattr(learner, "save_to_path"))
    update()
    group.save_to_path(str(tmp_path / "whole"))
    saved = weights_of(group)
    update()
    assert any((weights_of(group)[0][n] != w).any() for n, w in saved[0].items())
    group.restore_from_path(str(tmp_path / "whole"))
    for name, weight in weights_of(group)[0].items():
        np.testing.assert_array_equal(weight, saved[0][name])

    refused = ValueError("trained with another lora")
    group.foreach_learner(
        lambda learner: setattr(learner, "set_state", raising(refused))
    )
    with pytest.raises(ValueError, match="trained with another lora"):
        group.restore_from_path(str(tmp_path / "whole"))
    with pytest.raises(RuntimeError, match="1 of 1 learners have stopped"):
        update()
    group.shutdown()


def test_no_state_of_remote_learners_comes_to_the_process_that_saves(
    ray_cluster, make_learner_group, tmp_path
):
    group = make_learner_group(num_learners=1)
    with group.writing_their_own():
        assert group.get_state() == {"num_learners": 1}
    assert "learner" in group.get_state()
    path = Path(group.save_to_path(str(tmp_path / "checkpoint")))
    assert (path / "state.pkl").stat().st_size < 1000
    assert (path / "learner" / "rl_module").is_dir()
    group.shutdown()


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_learner_on_another_node_reads_and_writes_any_size(
    is_shared, monkeypatch, tmp_path
):
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "home")
    copied, read = [], []
    monkeypatch.setattr(
        learner_group,
        "sync_dir_between_nodes",
        lambda *places, **options: copied.append((places, options)),
    )
    checkpoint = tmp_path / "learner"
    checkpoint.mkdir()
    (checkpoint / "state.pkl").write_text("of this run")
    files = pyarrow.fs.LocalFileSystem()
    reader = learner_group._reader(str(checkpoint), files, None, {})
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "away")
    if not is_shared:  # a folder of that name, of an earlier run on that node
        (checkpoint / "state.pkl").write_text("of another")
    learner = SimpleNamespace(restore_from_path=lambda path, **_: read.append(path))
    reader(learner)
    if is_shared:
        assert read == [str(checkpoint)] and not copied
    else:
        (((source, path, target, copy), options),) = copied
        assert (source, path, target) == ("home", str(checkpoint), "away")
        assert read == [copy] and options == {"max_size_bytes": None}

    written = []
    call = learner_group._writer(
        str(checkpoint), "home", lambda learner, folder: written.append(folder)
    )
    error, ip, folder = call(learner)
    assert error is None and ip == "away" and written == [folder] != [str(checkpoint)]
    Path(folder).rmdir()
