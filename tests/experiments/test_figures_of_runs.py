"""What a run of an experiment reports, and what is made of several."""

from types import SimpleNamespace

import numpy as np
import pytest

from experiments import train as module
from experiments.plan import Run
from experiments.redraw import domains_table
from experiments.statistics import bootstrap
from experiments.train import COLUMNS, columns, config_of


def test_columns_of_an_update_are_what_they_are_named_after():
    """By the names that results have: a column of another figure is a wrong table."""
    assert COLUMNS == {
        "staleness": "staleness_mean",
        "log_r_d": "discrepancy_log_ratio_abs_mean",
        "log_r_s": "staleness_log_ratio_abs_mean",
        "log_r_d_square": "discrepancy_log_ratio_square_mean",
        "log_r_s_square": "staleness_log_ratio_square_mean",
        "effective_samples": "total_effective_sample_size",
        "kept": "train_infer_mask",
        "clipped": "ppo_clip_fraction",
        "entropy": "entropy",
        "gradient_norm": "gradients_default_optimizer_global_norm",
        "gradient_cosine": "gradient_cosine",
        "ewma_decay": "ewma_decay",
        "ewma_resets": "ewma_num_resets",
        "old_logprob_seconds": "old_logprob_seconds",
        "snapshot_bytes": "snapshot_bytes",
    }
    assert columns({"entropy": 2}, COLUMNS) == {"entropy": 2.0}


def test_a_run_is_not_evaluated_on_its_way():
    assert config_of(Run("arm", "airline", 0, {})).evaluation_interval is None


def test_the_figures_of_a_run_are_of_its_updates_alone(monkeypatch):
    """10 updates of 128 in 900 s; loading and the evaluation are not part of them."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(module, "time", clock)

    class Algorithm:
        config = SimpleNamespace(episodes_per_update=128, group_size=8)
        number = 0

        def train(self):
            clock.now += 90.0
            self.number += 1
            return {
                "learners": {"default_policy": {"train_infer_mask": 0.5}},
                "env_runners": {
                    "success_rate": self.number / 100,
                    "num_multi_version_episodes_lifetime": 64 * self.number,
                },
            }

        def evaluate_tasks(self, num_trials):
            clock.now += 1000.0
            figures = {key: 0.5 for key in ("avg@4", "avg@4_se", "pass@4", "pass^4")}
            return {"domains": {"airline": figures}} if num_trials == 4 else None

        def stop(self):
            pass

    def build():
        clock.now += 60.0
        return Algorithm()

    monkeypatch.setattr(
        module, "config_of", lambda run: SimpleNamespace(build_algo=build)
    )
    found = module.train(Run("arm", "airline", 0, {}, num_updates=10))
    assert found["run"]["samples_per_hour"] == pytest.approx(1280 / 0.25)
    assert found["run"]["multi_version_share"] == pytest.approx(0.5)
    assert found["run"]["minutes"] == round((60 + 900 + 1000) / 60, 1)
    assert [u["update"] for u in found["updates"]] == [*range(1, 11)]
    assert found["updates"][2]["success"] == 0.03
    assert found["updates"][2]["kept"] == 0.5


def test_an_interval_is_as_wide_as_its_level_says():
    """1.96 standard errors to either side of the mean of many normal values."""
    sample = np.random.default_rng(0).normal(3.0, 1.0, 1000)
    interval = bootstrap(sample.tolist())
    error = sample.std() / 1000**0.5
    assert interval.high - interval.mean == pytest.approx(1.96 * error, rel=0.05)
    assert interval.mean - interval.low == pytest.approx(1.96 * error, rel=0.05)


def test_runs_of_another_length_are_no_twins():
    one = Run("arm", "airline", 0, {"lr": 1.0})
    assert one.same_training(Run("of another name", "airline", 0, {"lr": 1.0}))
    for other in (
        Run("arm", "airline", 0, {"lr": 1.0}, num_updates=40),
        Run("arm", "airline", 0, {"lr": 2.0}),
        Run("arm", "airline", 1, {"lr": 1.0}),
        Run("arm", "retail", 0, {"lr": 1.0}),
    ):
        assert not one.same_training(other)


def test_each_domain_has_the_mean_of_its_own_runs():
    runs = [
        {"arm": arm, "domain": domain, "avg@4": value, "pass@4": "0.9"}
        for arm, domain, value in (
            ("one", "airline", "0.25"),
            ("one", "airline", "0.5"),
            ("one", "retail", "0.75"),
            ("two", "retail", "0.125"),
        )
    ]
    assert domains_table(runs).splitlines()[2:] == [
        "| one | 0.375 | 0.75 |",
        "| two |  | 0.125 |",
    ]
