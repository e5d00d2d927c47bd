"""The RLModule that a Learner trains: a thin shell around `CausalLMPolicy`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.annotations import override
from ray.rllib.utils.numpy import convert_to_numpy

from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy

ENTROPY = "entropy"


class HFCausalLM(TorchRLModule):
    """Hugging Face causal LM; generation happens in vLLM, so it only trains.

    ``model_config``: ``model`` (directory or hub name), ``lora`` (dict or None),
    ``temperature`` (float), ``compute_dtype`` (name of a torch dtype or None),
    ``with_value_head``, ``gradient_checkpointing``, ``trust_remote_code`` (bool).
    """

    @override(TorchRLModule)
    def setup(self) -> None:
        self.policy = CausalLMPolicy.from_config(self.model_config)

    @override(TorchRLModule)
    def _forward_train(self, batch: dict[str, Any], **kwargs) -> dict[str, Any]:
        """Returns ``action_logp``, ``entropy`` and, with a value head, ``vf_preds``.

        All are float32 ``[rows, length]``.
        """
        output = self.policy(batch, with_entropy=True)
        result = {Columns.ACTION_LOGP: output.logp, ENTROPY: output.entropy}
        if output.values is not None:
            result[Columns.VF_PREDS] = output.values
        return result

    @override(TorchRLModule)
    def get_state(self, components=None, *, inference_only: bool = False, **kwargs):
        # RLlib asks for inference weights to push them to the env runners through
        # the driver. Ours travel from the learners to the engines, versioned and
        # checked, so there is nothing to hand out here.
        if inference_only:
            return {}
        if self.model_config.get("lora"):
            # The rest is the base model's, which `setup` loads.
            trained = {n: p for n, p in self.named_parameters() if p.requires_grad}
            return convert_to_numpy(trained)
        return super().get_state(components, **kwargs)

    def load_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Takes what `get_state` gave, all of it and nothing else.

        Raises:
            ValueError: For weights of another model; names the first that differs.
        """
        shapes = {name: tuple(w.shape) for name, w in self.get_state().items()}
        given = {name: tuple(w.shape) for name, w in weights.items()}
        for name in [*shapes, *given]:
            if shapes.get(name) != given.get(name):
                raise ValueError(
                    f"weights: {name!r} has shape {given.get(name)}, the model's has "
                    f"{shapes.get(name)}; they are of another model or settings"
                )
        self.set_state(weights)
