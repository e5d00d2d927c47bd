"""Between a micro-batch's passes the host asks an accelerator for nothing.

Every answer would let the device run dry. What asks is told by operation here, since
there may be no device: those whose result's value or size the host has to know.
"""

import time

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from torch.utils._python_dispatch import TorchDispatchMode

from rllib_llm_async import result_keys
from rllib_llm_async.algorithms.async_decoupled_ppo.torch import (
    async_decoupled_ppo_torch_learner,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.update_metrics import (
    UpdateMetrics,
)

ASKING = (
    "local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "bincount",
    "unique",
    "masked_select",
    "repeat_interleave",
)


class Waits(TorchDispatchMode):
    """Names of the operations that would wait."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.name().removeprefix("aten::").lstrip("_")
        by_mask = name.startswith(("index.", "index_put")) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or name.startswith(ASKING):
            self.names.append(name)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ratio_level": "turn", "mask_level": "sequence", "kl_coeff": 0.1},
        {"advantage_estimator": "gae", "loss_normalizer": "sequences"},
        {"old_logprob_source": "linear_prox", "dual_clip": 3.0},
        {"discrepancy_weight": "ratio", "is_cap": 2.0},
    ],
    ids=["defaults", "levels", "gae", "proxy", "weight"],
)
def test_loss_and_metrics_of_a_micro_batch_wait_for_nothing(
    make_learner, make_episodes, monkeypatch, settings
):
    learner = make_learner(micro_batch_tokens=1, max_staleness=3, **settings)
    waits, micro_batches = Waits(), []

    def watched(function):
        def watch(*args, **kwargs):
            with waits:
                return function(*args, **kwargs)

        return watch

    loss_of, add = watched(learner.compute_loss_for_module), watched(UpdateMetrics.add)
    learner.compute_loss_for_module = lambda **kw: (
        micro_batches.append(1) or loss_of(**kw)
    )
    monkeypatch.setattr(UpdateMetrics, "add", add)
    episodes = make_episodes(np.random.default_rng(0), [0], max_turn_tokens=200)
    learner.update(training_data=TrainingData(episodes=episodes))
    assert len(micro_batches) > 1 and waits.names == []


def test_what_waits_is_seen():
    waits, values = Waits(), torch.arange(4)
    with waits:
        values[values > 1]
        int(values.sum())
        bool(values.any())
        values.unique()
    assert len(waits.names) == 4


def test_gradients_are_not_looked_at_one_by_one(
    make_learner, make_episodes, monkeypatch
):
    """`step_with` looks at all of them at once."""
    learner, looked, real = make_learner(), [], torch.isfinite
    monkeypatch.setattr(torch, "isfinite", lambda t: looked.append(t) or real(t))
    episodes = make_episodes(np.random.default_rng(0), [0])
    learner.update(training_data=TrainingData(episodes=episodes))
    assert learner._version == 1 and not looked


def test_values_are_computed_without_the_vocabulary(
    make_learner, make_episodes, monkeypatch
):
    learner = make_learner(advantage_estimator="gae")
    policy = learner._policy
    torch.nn.init.normal_(policy.value_head.weight)
    episodes = make_episodes(np.random.default_rng(0), [0])
    expected = policy(learner._build_batch(TrainingData(episodes=episodes))).values
    monkeypatch.setattr(policy, "_head", None)  # there are no logits without it
    batch = learner._build_batch(TrainingData(episodes=episodes))
    torch.testing.assert_close(policy.values(batch), expected)
    assert expected.any()


def test_figures_of_time_are_of_what_the_device_has_done(
    make_learner, make_episodes, monkeypatch
):
    """On a GPU a call returns before anything is computed."""
    waited = []
    monkeypatch.setattr(
        async_decoupled_ppo_torch_learner,
        "wait_for",
        lambda device: time.sleep(0.1) or waited.append((device, time.time())),
    )
    learner = make_learner(compare_sources=["current_recompute"])
    episodes = make_episodes(np.random.default_rng(0), [0])
    results = learner.update(training_data=TrainingData(episodes=episodes))
    figures = results[DEFAULT_MODULE_ID]
    for key in (
        result_keys.OLD_LOGPROB_SECONDS,
        result_keys.COMPARE_ONE_PASS_SECONDS,
        result_keys.compared("current_recompute", result_keys.COMPARED_SECONDS),
    ):
        assert figures[key].peek() >= 0.1
    spans = figures[result_keys.TIMELINE].peek()
    for phase in ("old logits", "comparing sources", "training"):
        ((start, end),) = (span[2:] for span in spans if span[1] == phase)
        assert any(start <= at <= end for _, at in waited), phase
    assert {device for device, _ in waited} == {torch.device("cpu")}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, True),
        ({"fused": False}, False),
        ({"foreach": True}, None),
    ],
)
def test_the_optimizer_is_fused_on_an_accelerator(
    make_learner, monkeypatch, given, expected
):
    """AdamW has a fused step on the CPU too, which is not taken there."""
    learner = make_learner(optimizer=given)
    made = []
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda params, **arguments: made.append(arguments)
    )
    monkeypatch.setattr(learner, "register_optimizer", lambda **_: None)
    monkeypatch.setattr(learner, "_set_optimizer_lr", lambda *_: None)
    monkeypatch.setattr(learner, "_get_optimizer_lr", lambda *_: 1.0)
    for is_cuda in (False, True):
        parameter = type("Parameter", (), {"is_cuda": is_cuda})()
        monkeypatch.setattr(learner, "get_parameters", lambda module, p=parameter: [p])
        learner.configure_optimizers_for_module(
            DEFAULT_MODULE_ID, config=learner.config
        )
    on_cpu, on_cuda = made
    assert on_cpu.get("fused") == given.get("fused")
    assert on_cuda.get("fused") == expected
