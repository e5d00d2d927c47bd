"""One seed, one run: at staleness 0, and across a checkpoint."""

import time

import numpy as np
import pytest
import ray

pytestmark = pytest.mark.slow

SAME = (
    "policy_loss",
    "gradients_default_optimizer_global_norm",
    "discrepancy_kl",
    "num_agent_tokens",
)


def test_one_seed_gives_one_run_in_one_go_or_split_by_a_checkpoint(
    ray_cluster, make_config, tmp_path, learner_results
):
    def figures(result):
        return [learner_results(result)[key] for key in SAME]

    config = make_config(max_staleness=0)
    first = config.build_algo()
    try:
        coordinator = first._coordination.coordinator
        in_one_go = []
        for iteration in range(4):
            if iteration == 2:
                # The next update's groups start once they are asked for; the checkpoint
                # then holds some that are finished, and others that are not.
                assert not ray.get(coordinator.next_batch.remote(0)).groups
                while not ray.get(coordinator.get_state.remote())["finished"]:
                    time.sleep(0.05)
                path = first.save_to_path(tmp_path / "checkpoint")
            in_one_go.append(figures(first.train()))
    finally:
        first.stop()
    second = config.build_algo()
    try:
        again = [figures(second.train()) for _ in range(2)]
        second.restore_from_path(path)
        results = [second.train() for _ in range(2)]
        split = [figures(result) for result in results]
        np.testing.assert_allclose(again + split, in_one_go, rtol=1e-5, atol=1e-5)
        # Nothing was lost on the way.
        assert results[-1]["ledger/identity_error"] == 0
        assert not {key for key in results[-1] if "/dropped_" in key}
    finally:
        second.stop()
