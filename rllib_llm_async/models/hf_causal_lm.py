"""The RLModule that a Learner trains: a thin shell around `CausalLMPolicy`."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.annotations import override

from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy, load_causal_lm

ENTROPY = "entropy"


class HFCausalLM(TorchRLModule):
    """Hugging Face causal LM; generation happens in vLLM, so it only trains.

    ``model_config``: ``model`` (directory or hub name), ``lora`` (dict or None),
    ``temperature`` (float), ``compute_dtype`` (name of a torch dtype or None),
    ``with_value_head`` (bool).
    """

    @override(TorchRLModule)
    def setup(self) -> None:
        config = self.model_config
        compute_dtype = config.get("compute_dtype")
        self.policy = CausalLMPolicy(
            load_causal_lm(config["model"], lora=config.get("lora")),
            temperature=config.get("temperature", 1.0),
            compute_dtype=getattr(torch, compute_dtype) if compute_dtype else None,
            with_value_head=config.get("with_value_head", False),
        )

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
        return super().get_state(components, **kwargs)
