"""One seed, one run: at staleness 0, and across a checkpoint."""

import numpy as np
import pytest

pytestmark = pytest.mark.engine

SAME = (
    "policy_loss",
    "gradients_default_optimizer_global_norm",
    "discrepancy_kl",
    "num_agent_tokens",
)


@pytest.fixture
def figures(learner_results):
    def figures(algorithm):
        results = learner_results(algorithm.train())
        return [results[key] for key in SAME]

    return figures


def test_one_seed_gives_one_run_in_one_go_or_split_by_a_checkpoint(
    ray_cluster, make_config, tmp_path, figures
):
    config = make_config(max_staleness=0)
    first = config.build_algo()
    try:
        in_one_go = []
        for iteration in range(4):
            if iteration == 2:
                path = first.save_to_path(tmp_path / "checkpoint")
            in_one_go.append(figures(first))
    finally:
        first.stop()
    second = config.build_algo()
    try:
        again = [figures(second) for _ in range(2)]
        second.restore_from_path(path)
        split = [figures(second) for _ in range(2)]
        np.testing.assert_allclose(again + split, in_one_go, rtol=1e-5, atol=1e-5)
        ledger = second.metrics.peek("ledger")
        assert ledger["identity_error"] == 0
        assert not {key for key in ledger["episodes"] if key.startswith("dropped")}
    finally:
        second.stop()
