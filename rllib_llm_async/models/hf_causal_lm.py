"""The RLModule that a Learner trains: a thin shell around `CausalLMPolicy`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.annotations import override
from ray.rllib.utils.numpy import convert_to_numpy
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy

ENTROPY = "entropy"


class HFCausalLM(TorchRLModule):
    """Hugging Face causal LM; generation happens in vLLM, so it only trains.

    ``model_config``: ``model`` (directory or hub name), ``lora`` (dict or None),
    ``temperature`` (float), ``compute_dtype`` (name of a torch dtype or None),
    ``attn_implementation`` (name), ``logits_memory_bytes`` (int), ``with_value_head``,
    ``gradient_checkpointing``, ``trust_remote_code``, ``load_weights`` (bool).
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
        return convert_to_numpy(self.saved_tensors())

    @override(TorchRLModule)
    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores weights of the same model, adapters and value head.

        Raises:
            ValueError: If they are of another kind; says what differs.
        """
        _check_fit(
            {name: tuple(value.shape) for name, value in state.items()},
            {name: tuple(p.shape) for name, p in self.saved_tensors().items()},
        )
        own = self.saved_tensors()
        super().set_state({n: _as_held(value, own[n]) for n, value in state.items()})

    def saved_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        if self.model_config.get("lora"):
            # The rest is the base model's, which `setup` loads.
            return {n: p for n, p in self.named_parameters() if p.requires_grad}
        return self.state_dict()


def _as_held(value: Any, own: Tensor) -> Any:
    """A whole tensor, or of one that is sharded this process's share."""
    if not isinstance(own, DTensor):
        return value
    return distribute_tensor(
        torch.as_tensor(value, device=own.device),
        own.device_mesh,
        own.placements,
        src_data_rank=None,  # all have the whole tensor: nothing is sent
    )


#: By name, the shape of a tensor.
_Shapes = Mapping[str, tuple[int, ...]]


def _check_fit(saved: _Shapes, own: _Shapes) -> None:
    """RLlib would pass over what does not fit, and torch fail on the moments."""
    if saved == own:
        return
    different = []
    for part, setting in (
        ("value_head.", "a value head (advantage_estimator: gae)"),
        ("lora_", "LoRA adapters (lora)"),
    ):
        of_saved, of_own = (any(part in name for name in s) for s in (saved, own))
        if of_saved != of_own:
            one, other = ("the checkpoint", "this run")[:: 1 if of_saved else -1]
            different.append(f"{one} has {setting}, {other} has none")
    if different:
        raise ValueError(f"{'; '.join(different)}: set the same")
    odd = sorted(n for n in saved.keys() | own.keys() if saved.get(n) != own.get(n))
    raise ValueError(
        f"the checkpoint is of another model or lora: {len(odd)} tensors differ, the "
        f"first is {odd[0]}, {saved.get(odd[0], 'missing')} in the checkpoint and "
        f"{own.get(odd[0], 'missing')} in this run"
    )
