"""Fixtures shared by the tests that start a real Ray cluster."""

import os

import pytest
from hypothesis import settings

# Before torch is imported: on the tiny tensors of the tests a second thread costs more
# than it brings, and beside engines and actors a multiple.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_DEDUP_LOGS", "1")

# pytest --hypothesis-profile=thorough
settings.register_profile("thorough", max_examples=1000, deadline=None)


@pytest.fixture(scope="module")
def ray_cluster():
    """A local cluster with more logical CPUs than a small machine has cores."""
    import ray
    from ray.tune.registry import register_trainable

    from rllib_llm_async import algorithms

    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    # Tune forgets what was registered with the cluster.
    for cls in (algorithms.AsyncDecoupledPPO, algorithms.PPOEWMAAsync):
        register_trainable(cls.__name__, cls)


@pytest.fixture(scope="session")
def small_moe_dir(tmp_path_factory):
    """The bundled agent as a Qwen3-MoE of 4 experts, 2 active; it plays as well.

    Each expert is its MLP with a little noise and the router is random: the weights
    of the active experts add up to 1.
    """
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
    )

    from rllib_llm_async.models.small_agent import small_agent_dir

    torch.manual_seed(0)
    dense = AutoModelForCausalLM.from_pretrained(small_agent_dir(), dtype=torch.float32)
    config = dense.config.to_dict()
    for key in ("architectures", "model_type", "layer_types", "max_window_layers"):
        config.pop(key)
    moe = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **config,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=config["intermediate_size"],
            norm_topk_prob=True,
        )
    )
    weights = dense.state_dict()
    for name, weight in moe.state_dict().items():
        if ".mlp.gate." in name:
            continue
        if name.endswith("experts.gate_up_proj"):
            mlp = name.removesuffix("experts.gate_up_proj")
            one = torch.cat([weights[f"{mlp}{p}_proj.weight"] for p in ("gate", "up")])
        elif name.endswith("experts.down_proj"):
            one = weights[f"{name.removesuffix('experts.down_proj')}down_proj.weight"]
        else:
            weight.copy_(weights[name])
            continue
        weight.copy_(one + 0.02 * one.std() * torch.randn_like(weight))
    directory = tmp_path_factory.mktemp("small_moe")
    moe.save_pretrained(directory)
    AutoTokenizer.from_pretrained(small_agent_dir()).save_pretrained(directory)
    return directory
