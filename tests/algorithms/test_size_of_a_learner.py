"""What `sizing` says of a learner is what a real one holds."""

import numpy as np
import pytest
import torch
from ray.rllib.core.learner.training_data import TrainingData

from rllib_llm_async.batch import columns
from rllib_llm_async.core.live_bytes import LiveBytes
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from rllib_llm_async.old_logprobs.snapshot_old import SnapshotOld
from rllib_llm_async.sizing.memory import size_of
from rllib_llm_async.sizing.weightless import weightless

LORA = {"r": 4, "target_modules": "all-linear"}


def nbytes(tensors):
    return sum(tensor.nbytes for tensor in tensors)


def parts_of(config):
    learner, beside = size_of(config).places[:2]
    return {part.what: part.nbytes for part in [*learner.parts, *beside.parts]}


@pytest.mark.parametrize(
    "training",
    [
        {"old_logprob_source": "ppo_ewma_async"},
        {"old_logprob_source": "snapshot_old", "max_staleness": 1},
        {"old_logprob_source": "auto", "compute_dtype": "bfloat16"},
        {"old_logprob_source": "interrupt_sync", "kl_coeff": 0.1},
        {"lora": LORA, "compute_dtype": "bfloat16"},
    ],
    ids=lambda training: "-".join(map(str, training.values()))[:30],
)
def test_what_a_learner_holds(make_learner, make_episodes, training):
    learner = make_learner(**training)
    episodes = make_episodes(np.random.default_rng(0), [0])
    learner.update(training_data=TrainingData(episodes=episodes))
    said = parts_of(learner.config)

    (optimizer,) = learner._named_optimizers.values()
    moments = [state[m] for state in optimizer.state.values() for m in MOMENTS]
    assert said["weights"] == nbytes(learner._policy.parameters())
    assert said["Adam's moments"] == nbytes(moments)
    assert said["gradients"] == nbytes(learner._policy.trainable_parameters().values())
    reference = learner._reference or {}
    assert said.get("reference weights", 0) == nbytes(reference.values())

    source = learner._source
    store = getattr(source, "exact", source)
    window = learner.config.max_staleness + 1
    versions = 0
    if isinstance(store, SnapshotOld):
        newest = store.store.get(store.store.versions[-1])
        versions = nbytes(newest.values())
    assert said.get(f"old versions, {window} at most", 0) == window * versions
    on_device = source.nbytes - (store.store.nbytes if versions else 0)
    assert said.get("EWMA, and what else sources hold", 0) == on_device


MOMENTS = ("exp_avg", "exp_avg_sq")


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize(
    "training",
    [
        {},
        {"gradient_checkpointing": True},
        {"compute_dtype": "bfloat16"},
        {"compute_dtype": "bfloat16", "lora": LORA},
        {"logits_memory_bytes": 2_000_000},
    ],
    ids=lambda training: "-".join(training) or "plain",
)
def test_what_a_pass_takes(make_learner_config, training, backward):
    spec = make_learner_config(**training).get_default_rl_module_spec().model_config
    tokens = 600
    with weightless(spec) as policy:
        said = policy.pass_bytes(tokens, backward=backward, keeps_casts=True)

    policy = CausalLMPolicy.from_config(spec)
    sequence = torch.arange(tokens)[None]
    batch = {
        columns.TOKENS: sequence % 400 + 5,
        columns.POSITION_IDS: sequence,
        columns.LOSS_MASK: sequence > 0,
    }
    own = [*policy.parameters(), *policy.buffers()]
    for parameter in policy.trainable_parameters().values():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with torch.set_grad_enabled(backward), LiveBytes(but=own) as live:
        logp = policy(batch).logp
        if backward:
            logp.sum().backward()
    assert said == pytest.approx(live.peak, rel=0.05)
