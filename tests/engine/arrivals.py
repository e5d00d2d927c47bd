"""A trainer whose versions engines install, without a learner around it."""

import torch
from safetensors.torch import save_file

from rllib_llm_async.algorithms.async_decoupled_ppo.torch.probe import probe
from rllib_llm_async.core.fingerprint import fingerprint
from rllib_llm_async.engine.arrival_check import ExpectedArrival
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from rllib_llm_async.models.small_agent import small_agent_dir


class Trainer:
    """Steps a small agent as AdamW does and writes each version to a file.

    Args:
        directory: For the files.
        dtype: Of the engine.
        lora: Arguments of `peft.LoraConfig`: versions are adapters then.
        model: Directory of another one than the bundled agent.
    """

    def __init__(self, directory, dtype="float32", lora=None, model=None):
        self._directory = directory
        self.dtype = dtype
        self.model = str(model or small_agent_dir())
        self._generator = torch.Generator().manual_seed(0)
        self.policy = CausalLMPolicy.from_config(
            {
                "model": self.model,
                "compute_dtype": None if dtype == "float32" else dtype,
                "lora": lora,
            }
        )
        self._sent = (
            self.policy.adapter_weights if lora else (self.policy.inference_weights)
        )
        self.version = 0

    @torch.no_grad()
    def step(self, learning_rate=1e-6):
        """Moves all that trains by the learning rate, up or down."""
        self.version += 1
        for parameter in self.policy.trainable_parameters().values():
            noise = torch.randn(parameter.shape, generator=self._generator)
            parameter += learning_rate * noise.sign()

    def weights(self):
        """What an engine loads, in its dtype."""
        dtype = getattr(torch, self.dtype)
        return {n: w.to(dtype) for n, w in self._sent()}

    def expected(self, weights):
        """`ExpectedArrival` of these."""
        prints = {name: fingerprint(weight) for name, weight in weights.items()}
        return ExpectedArrival(prints, *probe(self.policy))

    def send(self, leave_out=()):
        """Version, path and `ExpectedArrival`: the arguments of `VLLMEngine.install`.

        Args:
            leave_out: Names of tensors that the file lacks.
        """
        weights = self.weights()
        path = self._directory / f"{self.version}.safetensors"
        save_file({n: w for n, w in weights.items() if n not in leave_out}, path)
        return self.version, path, self.expected(weights)
