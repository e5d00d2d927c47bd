"""What publishing a version costs: the learner's wait, host memory, bytes on their way.

A learner's side as it is, with a model of 141 million parameters in float32 that are
published as bfloat16 (283 MB), and a coordinator that only takes note.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import ray
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.row import Row, compare
from benchmarks.sharded_vs_single_memory import max_resident_bytes
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.policy_weights import (
    PolicyWeights,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.weight_publisher import (
    WeightPublisher,
)
from rllib_llm_async.coordination.messages import PublishedWeights
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from rllib_llm_async.models.small_agent import small_agent_dir
from rllib_llm_async.transport.outbox import READ_FROM_AFAR

SIZES = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "head_dim": 64,
}
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
NUM_VERSIONS = 4
LEARNING_RATE = 1e-6
#: Tokens of the least that a learner does between two steps.
PASS = torch.zeros(1, 512, dtype=torch.long)


class Coordinator:
    """Takes note."""

    def __init__(self) -> None:
        self._serial = 0
        self._newest: PublishedWeights | None = None

    def announce(self, version: int) -> int:
        self._serial += 1
        return self._serial

    def publish(self, published: list[PublishedWeights]) -> None:
        (self._newest,) = published

    def fail(self, reason: str) -> None:
        raise RuntimeError(reason)

    def newest(self) -> PublishedWeights | None:
        return self._newest


class Learner:
    """A policy that takes steps of Adam's size, and its publisher.

    Args:
        num_layers: Of the model.
        lora: Train adapters and publish their matrices.
    """

    def __init__(
        self, num_layers: int = SIZES["num_hidden_layers"], lora: bool = False
    ) -> None:
        config = AutoConfig.from_pretrained(small_agent_dir())
        for key, value in {**SIZES, "num_hidden_layers": num_layers}.items():
            setattr(config, key, value)
        config.layer_types = ["full_attention"] * config.num_hidden_layers
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_config(config)
        if lora:
            lm = get_peft_model(lm, LoraConfig(task_type="CAUSAL_LM", **LORA))
        self.policy = CausalLMPolicy(lm)
        self.coordinator = ray.remote(Coordinator).options(num_cpus=0).remote()
        self.publisher = WeightPublisher(
            PolicyWeights(self.policy),
            SimpleNamespace(
                engine={"dtype": "bfloat16"},
                needs_old_logit_actors=False,
                served_adapters=LORA if lora else None,
                chosen_transport="shared_file",
            ),
            self.coordinator,
            None,  # type: ignore[arg-type]
            rank=0,
            num_learners=1,
        )
        self.nbytes = sum(2 * t.numel() for _, t in self.policy.inference_weights())
        self._version = -1

    @torch.no_grad()
    def step(self) -> None:
        for tensor in self.policy.trainable_parameters().values():
            noise = torch.empty_like(tensor).uniform_(-LEARNING_RATE, LEARNING_RATE)
            tensor += noise

    def publish(self) -> float:
        """Steps and publishes; seconds that the learner waits, then and before the next
        step, for which it makes one small pass forward and back."""
        self.step()
        self._version += 1
        start = time.perf_counter()
        self.publisher.publish(self._version)
        seconds = time.perf_counter() - start
        _pass(self.policy)
        start = time.perf_counter()
        self.publisher.finish_reading()
        seconds += time.perf_counter() - start
        self.publisher.finish_publishing()
        return seconds

    def newest(self) -> PublishedWeights:
        return ray.get(self.coordinator.newest.remote())


def _pass(policy: CausalLMPolicy) -> None:
    policy.causal_lm(PASS).logits.logsumexp(-1).sum().backward()


@contextmanager
def _learner(**arguments: int) -> Iterator[Learner]:
    learner = Learner(**arguments)
    try:
        yield learner
    finally:
        learner.publisher.close()


def block_vs_copy(repeats: int = 7) -> Row:
    """Seconds that a learner waits to publish a version, against one copy of it.

    The copy is from memory to memory that are both in use already.
    """
    with _learner() as learner:
        source = torch.zeros(learner.nbytes // 2, dtype=torch.bfloat16)
        target = torch.ones_like(source)

        def copy() -> float:
            start = time.perf_counter()
            target.copy_(source)
            return time.perf_counter() - start

        return compare("publish_block_vs_copy", "s", learner.publish, copy, repeats)


def memory_vs_payload() -> Row:
    """Host memory at the peak of steps that publish, the file that engines read
    included, beyond that of steps that do not, against the weights; all engines are on
    the learner's node."""
    return _memory("publish_memory_vs_payload", from_afar=False)


def memory_vs_payload_two_nodes() -> Row:
    """The same on the learner's node while engines of another node read, too."""
    return _memory("publish_memory_vs_payload_two_nodes", from_afar=True)


def _memory(name: str, *, from_afar: bool) -> Row:
    with _learner(num_layers=1) as small:
        small.publish()  # loads code
    with _learner() as learner:

        def step() -> None:
            learner.step()
            _pass(learner.policy)

        def publish() -> None:
            learner.publish()
            if from_afar:
                _read_from_afar(learner)

        step()  # makes gradients
        without = _peak(step)
        value = _peak(publish) - without
        return Row(name, value, "bytes", learner.nbytes, value / learner.nbytes)


def _peak(act: Callable[[], None]) -> int:
    """Bytes of memory that this process holds at most while it acts some times."""
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(NUM_VERSIONS):
        act()
    return max_resident_bytes()


def bytes_vs_full() -> Row:
    """Bytes to another node for a version, against all of it, at the rate 1e-6."""
    with _learner() as learner:
        learner.publish()
        _read_from_afar(learner)
        sent = []
        for _ in range(NUM_VERSIONS):
            learner.publish()
            sent.append(learner.newest().weights.differences[-1].nbytes)
        value = sum(sent) / len(sent)
        return Row(
            "publish_bytes_vs_full",
            value,
            "bytes",
            learner.nbytes,
            value / learner.nbytes,
        )


def lora_bytes_vs_full() -> Row:
    """Bytes of a version that is an adapter (rank 16, all linear layers), against all
    weights of the model, which engines loaded if it were merged."""
    with _learner(lora=True) as learner:
        learner.publish()
        value = learner.newest().weights.nbytes
        return Row(
            "publish_lora_bytes_vs_full",
            value,
            "bytes",
            learner.nbytes,
            value / learner.nbytes,
        )


def _read_from_afar(learner: Learner) -> None:
    Path(learner.newest().weights.path).with_name(READ_FROM_AFAR).touch()
