"""Learner actors that share the weights: the life of a run, with a real engine."""

import numpy as np
import pytest
import ray
import torch
from click.testing import CliRunner
from ray.rllib.core.learner.training_data import TrainingData
from transformers import AutoModelForCausalLM

from rllib_llm_async.cli import main
from tests.algorithms.conftest import SPACES, random_episodes
from tests.algorithms.two_learners import BASE

pytestmark = pytest.mark.slow

SETTINGS = {
    "learner_sharding": "fsdp2",
    "old_logprob_source": "snapshot_old",
    "compare_sources": ["old_logit_model", "interrupt_sync"],
    "old_logit_model": {"num_cpus": 0.5},
    "kl_coeff": 0.01,
    "max_staleness": 2,
}


def weights_of(group):
    """Of each learner the whole weights as engines get them, and its share's bytes."""

    def weights(learner):
        whole = {n: w.cpu().clone() for n, w in learner._policy.inference_weights()}
        return whole, sum(p.nbytes for p in learner._weights.optimized())

    return [result.get() for result in group.foreach_learner(weights)]


def assert_same(weights, others, **tolerance):
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(
            weight, others[name], msg=name, **{"atol": 0, "rtol": 0, **tolerance}
        )


def test_a_run_goes_on_with_two_learners_and_with_one(
    ray_cluster, make_config, learner_results, tmp_path
):
    config = make_config(**SETTINGS).learners(num_learners=2)
    algorithm = config.build_algo()
    try:
        results = [learner_results(algorithm.train()) for _ in range(4)]
        assert [r["policy_version"] for r in results] == [0, 1, 2, 3]
        assert results[-1]["staleness_max"] > 0
        for result in results:
            check_exact(result)
        # Engines have what the learners have.
        summary = algorithm.evaluate_tasks(num_trials=1, num_tasks=8)
        assert summary["domains"]["airline"]["num_episodes"] == 8

        checkpoint = algorithm.save_to_path(str(tmp_path / "checkpoint"))
        (saved, share), (of_second, other_share) = weights_of(algorithm.learner_group)
        assert_same(saved, of_second)
        assert max(share, other_share) < 0.55 * (share + other_share)
        algorithm.train()
        algorithm.restore_from_path(checkpoint)
        assert_same(weights_of(algorithm.learner_group)[0][0], saved)
        go_on(algorithm, learner_results)
    finally:
        algorithm.stop()

    exported = CliRunner().invoke(
        main, ["export", checkpoint, "--out", str(tmp_path / "exported")]
    )
    assert exported.exit_code == 0, exported.output
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "exported", dtype=torch.float32
    )
    own = model.state_dict()
    assert_same(saved, {name: own[name] for name in saved})

    algorithm = make_config(**SETTINGS).learners(num_learners=1).build_algo()
    try:
        algorithm.restore_from_path(checkpoint)
        assert_same(weights_of(algorithm.learner_group)[0][0], saved)
        go_on(algorithm, learner_results)
    finally:
        algorithm.stop()


def check_exact(result):
    # What engines sampled, learners and old-logit actors compute again.
    assert result["discrepancy_log_ratio_abs_mean"] < 1e-4
    for name in ("interrupt_sync", "old_logit_model"):
        assert result[f"compare/{name}/log_ratio_abs_error_mean"] < 1e-5


def go_on(algorithm, learner_results):
    for version in (4, 5):
        result = learner_results(algorithm.train())
        assert result["policy_version"] == version
        check_exact(result)


def test_updates_of_two_learner_actors_are_those_of_one(ray_cluster, make_config):
    batches = [
        random_episodes(np.random.default_rng(update), [*range(update + 1)])
        for update in range(2)
    ]
    ends = []
    for sharding, num_learners in (("none", 1), ("fsdp2", 2)):
        config = make_config(
            **{**BASE, "episodes_per_update": 8, "minibatch_size": 2},
            old_logprob_source="snapshot_old",
            learner_sharding=sharding,
            shuffle_batch_per_epoch=False,
        ).learners(num_learners=num_learners)
        group = config.build_learner_group(spaces=SPACES)
        for episodes in batches:
            group.update(
                training_data=TrainingData(
                    episodes_refs=[ray.put(episodes[:4]), ray.put(episodes[4:])]
                ),
                minibatch_size=None,
            )
        ends.append(weights_of(group)[0][0])
        group.shutdown()
    assert_same(*ends, atol=1e-5)
