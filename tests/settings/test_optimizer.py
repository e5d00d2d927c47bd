"""`optimizer` by the arguments of torch's AdamW."""

import inspect

import pytest
import torch

from rllib_llm_async.settings.check import check_value
from rllib_llm_async.settings.optimizer import OptimizerSettings


def test_every_argument_is_one_of_adamw():
    parameters = inspect.signature(torch.optim.AdamW).parameters
    assert set(OptimizerSettings.model_fields) <= set(parameters)


@pytest.mark.parametrize(
    "optimizer",
    [
        {},
        {"eps": 1e-3, "betas": [0.9, 0.99]},
        {"betas": (0.0, 0.95), "weight_decay": 0.01, "amsgrad": True},
        {"foreach": False, "fused": None},
    ],
)
def test_takes(optimizer):
    check_value("optimizer", optimizer)
    torch.optim.AdamW([torch.zeros(1)], lr=1e-3, **optimizer)


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        ({"lr": 1e-3}, "optimizer.lr: lr is a setting of its own"),
        ({"maximize": True}, "optimizer.maximize: .*away from the reward"),
        ({"epz": 1e-3}, "optimizer.epz: unknown, did you mean 'eps'"),
        ({"betas": [0.9]}, r"optimizer.betas: got \[0.9\], must be two numbers"),
        ({"betas": [0.9, 1]}, "optimizer.betas: .*must be two numbers"),
        ({"betas": [0, 0.9]}, "optimizer.betas: .*with a decimal point"),
        ({"betas": 0.9}, "optimizer.betas: got 0.9"),
        ({"eps": "1e-3"}, "optimizer.eps: got '1e-3', must be a number"),
        ({"eps": -1}, "optimizer.eps: got -1"),
        ({"weight_decay": float("nan")}, "optimizer.weight_decay: got nan"),
        ({"amsgrad": 1}, "optimizer.amsgrad: got 1, must be true or false"),
        ({"fused": True, "foreach": True}, "optimizer.fused: .*where foreach is"),
    ],
)
def test_does_not_take(optimizer, words):
    with pytest.raises(ValueError, match=words):
        check_value("optimizer", optimizer)


@pytest.mark.parametrize(
    ("actors", "words"),
    [
        ({"num_gpu": 1}, "old_logit_model.num_gpu: unknown, .*'num_gpus'"),
        ({"num_actors": 0}, "old_logit_model.num_actors: got 0"),
        ({"num_actors": 2.0}, r"old_logit_model.num_actors: got 2\.0"),
        ({"num_cpus": "1"}, "old_logit_model.num_cpus: got '1'"),
        ({"num_gpus": -1}, "old_logit_model.num_gpus: got -1"),
    ],
)
def test_old_logit_actors(actors, words):
    check_value("old_logit_model", {"num_actors": 2, "num_cpus": 0.5, "num_gpus": 1})
    with pytest.raises(ValueError, match=words):
        check_value("old_logit_model", actors)
