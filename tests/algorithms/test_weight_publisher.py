"""A learner publishes and goes on: what it waits for, and what becomes visible."""

import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch.nn.utils.stateless import _reparametrize_module

from rllib_llm_async.algorithms.async_decoupled_ppo.torch import weight_publisher
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.policy_view import PolicyView
from rllib_llm_async.core.fingerprint import fingerprint
from rllib_llm_async.models.loading import recomputed_layers
from tests.algorithms.in_place import Announced, InPlace


@pytest.fixture
def coordinator(monkeypatch):
    monkeypatch.setattr(weight_publisher, "ray", InPlace)
    return Announced()


@pytest.fixture
def learner(make_learner, coordinator):
    learner = make_learner(engine={"dtype": "bfloat16"})
    learner.connect(coordinator)
    learner.finish_publishing()
    yield learner
    learner.shutdown()


@pytest.fixture
def slow_probe(monkeypatch):
    """The pass over the probe lasts until the event is set."""
    probe, goes_on = weight_publisher.probe, threading.Event()

    def wait_and_probe(policy):
        assert goes_on.wait(60)
        return probe(policy)

    monkeypatch.setattr(weight_publisher, "probe", wait_and_probe)
    return goes_on


@torch.no_grad()
def step(learner):
    for parameter in learner._policy.parameters():
        parameter += 1e-3 * torch.randn_like(parameter)


def weights_of(learner):
    return {n: t.clone() for n, t in learner._policy.inference_weights()}


def expect_published(published, weights):
    """Matrices in the engine's dtype, all else as it is; told as the engine's."""
    loaded = load_file(published.weights.path)
    assert loaded.keys() == weights.keys() == published.expected.fingerprints.keys()
    for name, weight in weights.items():
        rounded = weight.bfloat16()
        assert torch.equal(loaded[name], rounded if weight.dim() > 1 else weight)
        assert published.expected.fingerprints[name] == fingerprint(rounded)


def test_a_version_is_what_the_weights_were_when_it_was_published(
    learner, coordinator, slow_probe
):
    step(learner)
    weights = weights_of(learner)
    learner._publisher.publish(1)
    assert coordinator.announced == [0, 1]  # at once: it is the learner's version
    assert len(coordinator.taken) == 1  # engines cannot have it yet
    slow_probe.set()
    learner._publisher.finish_reading()
    step(learner)
    learner.finish_publishing()
    assert (coordinator.taken[1].version, coordinator.taken[1].serial) == (1, 2)
    expect_published(coordinator.taken[1], weights)


def test_weights_do_not_change_before_they_are_read(learner, slow_probe):
    learner._publisher.publish(1)
    waiting = threading.Thread(target=learner._publisher.finish_reading)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    slow_probe.set()
    waiting.join(60)
    assert not waiting.is_alive()


def test_a_version_on_its_way_gives_way_to_the_next_but_not_two_in_a_row(
    learner, coordinator, monkeypatch
):
    publisher = learner._publisher
    begun, prints = threading.Semaphore(0), weight_publisher._fingerprint

    def wait_for_the_end(tensor, check):
        begun.release()
        while publisher._num_given_up == 0:
            check()
        return prints(tensor, check)

    monkeypatch.setattr(weight_publisher, "_fingerprint", wait_for_the_end)
    publisher.publish(1)
    begun.acquire()
    publisher.publish(2)  # ends version 1, and is let through
    publisher.publish(3)
    publisher._num_given_up = 1
    learner.finish_publishing()
    assert [one.version for one in coordinator.taken] == [0, 2, 3]


@pytest.mark.parametrize("method", ["finish_reading", "publish", "finish_publishing"])
def test_what_goes_wrong_beside_the_learner_reaches_it(learner, monkeypatch, method):
    def fail(tensor, check):
        raise OSError("shared memory is gone")

    publisher = learner._publisher
    monkeypatch.setattr(weight_publisher, "_fingerprint", fail)
    publisher.publish(1)
    publisher._sending._thread.join()
    monkeypatch.undo()
    monkeypatch.setattr(weight_publisher, "ray", InPlace)
    with pytest.raises(OSError, match="shared memory is gone"):
        getattr(publisher, method)(*([2] if method == "publish" else []))
    publisher.publish(2)  # and it goes on
    publisher.finish_publishing()


def test_the_driver_hears_of_what_keeps_weights_from_engines(
    learner, coordinator, monkeypatch
):
    """It may be waiting for episodes, with the learner idle."""
    monkeypatch.setattr(weight_publisher, "_fingerprint", lambda *_: 1 / 0)
    learner._publisher.publish(1)
    with pytest.raises(ZeroDivisionError):
        learner.finish_publishing()
    assert coordinator.failures == ["publishing: ZeroDivisionError('division by zero')"]


@pytest.mark.parametrize("lora_sync", ["auto", "adapter", "per_version", "merged"])
def test_of_an_adapter_the_matrices_alone_are_published(
    make_learner, coordinator, lora_sync
):
    learner = make_learner(
        lora={"r": 4, "target_modules": ["q_proj", "down_proj"]},
        lora_sync=lora_sync,
        engine={"dtype": "bfloat16"},
    )
    learner.connect(coordinator)
    with torch.no_grad():
        for parameter in learner._policy.trainable_parameters().values():
            parameter += 0.1 * torch.randn_like(parameter)
    learner._publisher.publish(1)
    learner.finish_publishing()
    *_, published = coordinator.taken
    whole = weights_of(learner)
    if lora_sync == "merged":
        expect_published(published, whole)
    else:
        sent = dict(learner._policy.adapter_weights())
        expect_published(published, sent)
        assert len(sent) == 2 * 2 * learner._policy.causal_lm.config.num_hidden_layers
        nbytes = sum(tensor.nbytes for tensor in whole.values())
        assert published.weights.nbytes < 0.2 * nbytes
    learner.shutdown()


def test_the_policy_is_as_ever_while_adapters_are_merged(make_learner, coordinator):
    learner = make_learner(
        lora={"r": 4, "target_modules": ["q_proj", "down_proj"]},
        engine={"dtype": "bfloat16"},
    )
    policy = learner._policy
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter += 0.1 * torch.randn_like(parameter)
    tokens = torch.arange(5, 25)[None]
    before, passes = policy.lm(tokens).logits, []
    view = PolicyView(policy)

    def merge_and_look(merge):
        merge()
        passes.append(policy.lm(tokens).logits)

    for module in view.policy.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge = partial(merge_and_look, module.merge)
    merged = dict(view.policy.inference_weights())
    assert len(passes) > 1
    assert all(torch.equal(logits, before) for logits in passes)
    for name, weight in policy.inference_weights():
        assert torch.equal(merged[name], weight)


def test_layers_stay_in_their_mode_while_a_view_recomputes_its_own(make_learner):
    """Without it a pass that trains meanwhile would keep what it is to compute anew."""
    policy = make_learner(gradient_checkpointing=True)._policy
    view = PolicyView(policy).policy
    weight_publisher.probe(policy)  # which puts layers into that mode
    live, seen = recomputed_layers(policy.lm), recomputed_layers(view.lm)
    modes = []
    for layer in seen:
        layer.mlp.register_forward_hook(
            lambda *_: modes.append(
                tuple([x.training for x in own] for own in (live, seen))
            )
        )
    weight_publisher.probe(view)
    assert modes == [
        ([True] * len(live), [other != number for other in range(len(seen))])
        for number in range(len(seen))
    ]


def test_old_logit_actors_get_the_weights_while_a_pass_is_under_others(
    learner, coordinator, slow_probe
):
    learner._publisher._has_old_logit_actors = True
    trained = learner._policy.trainable_parameters()
    expected = {name: tensor.detach().clone() for name, tensor in trained.items()}
    others = {name: torch.zeros_like(tensor) for name, tensor in trained.items()}
    learner._publisher.publish(1)
    with _reparametrize_module(learner._policy, others):  # as `functional_call` does
        slow_probe.set()
        learner.finish_publishing()
    published = coordinator.taken[1].trainer_weights
    assert published.keys() == expected.keys()
    assert all(torch.equal(published[name], expected[name]) for name in expected)


def test_a_version_on_its_way_starts_no_ray_that_was_shut_down(
    learner, coordinator, monkeypatch, slow_probe
):
    learner._publisher._has_old_logit_actors = True
    learner._publisher.publish(1)
    monkeypatch.setattr(InPlace, "is_initialized", lambda: False)
    monkeypatch.setattr(InPlace, "put", None)  # to call it would fail
    slow_probe.set()
    learner.finish_publishing()
    assert [one.version for one in coordinator.taken] == [0]
    assert coordinator.failures == []


def test_a_learner_that_ends_leaves_nothing_in_shared_memory(learner, coordinator):
    path = Path(coordinator.taken[0].weights.path)
    assert path.exists()
    learner.shutdown()
    assert not path.parent.exists()
