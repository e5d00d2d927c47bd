"""What runs inside vLLM's worker process: receives weights from a safetensors file.

vLLM imports this module there because the engine names `EngineWorkerExtension` as its
``worker_extension_cls``. Importing it registers the transfer backend, ties the process
to the engine's owner, and mends what vLLM's CPU build gets wrong. The trainer's weights
arrive as a file in node-local shared memory, so that the worker maps them instead of
copying them through vLLM's control channel.
"""

from __future__ import annotations

import multiprocessing
import sys
import threading
from dataclasses import dataclass
from typing import ClassVar

import torch
from safetensors import safe_open
from tqdm import tqdm
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.platforms import current_platform

from rllib_llm_async.core.fingerprint import Fingerprint
from rllib_llm_async.engine import worker_weights
from rllib_llm_async.engine.ownership import end_with_owner
from rllib_llm_async.engine.routed_experts import return_routed_experts_on_cpu
from rllib_llm_async.transport.sides import FILE_BACKEND


@dataclass
class SafetensorsInitInfo(WeightTransferInitInfo):
    """The backend keeps no connection, so there is nothing to set up."""


@dataclass
class SafetensorsUpdateInfo(WeightTransferUpdateInfo):
    """Where the new weights are."""

    path: str


class SafetensorsWeightTransfer(
    WeightTransferEngine[SafetensorsInitInfo, SafetensorsUpdateInfo]
):
    """Loads checkpoint-format weights from a safetensors file into the live model."""

    init_info_cls: ClassVar = SafetensorsInitInfo
    update_info_cls: ClassVar = SafetensorsUpdateInfo

    def init_transfer_engine(self, init_info: SafetensorsInitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SafetensorsUpdateInfo) -> None:
        with safe_open(update_info.path, framework="pt") as file:
            self.model.load_weights(
                (name, file.get_tensor(name))
                for name in file.keys()  # noqa: SIM118 - no dict
            )

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)

    def update_weights(self, update_info: dict) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def shutdown(self) -> None:
        pass


class EngineWorkerExtension:
    """Methods of vLLM's worker, called by name; a `Fingerprint` arrives as a list.

    The prefix keeps them apart from the worker's own.
    """

    def rllib_llm_async_held_fingerprints(self) -> dict[str, Fingerprint]:
        return worker_weights.held_fingerprints(self)

    def rllib_llm_async_checkpoint_fingerprints(
        self,
    ) -> dict[str, tuple[str, Fingerprint]]:
        return worker_weights.checkpoint_fingerprints(self)

    def rllib_llm_async_adapter_fingerprints(
        self, name: str, number: int, folder: str, names: list[str]
    ) -> dict[str, Fingerprint]:
        return worker_weights.adapter_fingerprints(self, name, number, folder, names)

    def rllib_llm_async_stale_linears(self, seed: int) -> list[str]:
        return worker_weights.stale_linears(self, seed)

    def rllib_llm_async_device(self) -> str:
        return worker_weights.device(self)


def _let_progress_bars_do_without_a_semaphore() -> None:
    """Gives tqdm a lock of this process alone.

    Its own is one for all processes, with a file in shared memory that an engine which
    is killed leaves there: another one at every restart, for as long as a run goes on.
    """
    tqdm.set_lock(threading.RLock())


def _keep_cpu_linears_unpacked() -> None:
    """Makes vLLM's CPU linears read their live parameters.

    The CPU build packs each linear into a oneDNN handler after loading. A tied
    lm_head keeps such a packed copy that no weight update refreshes: the engine then
    samples from a stale policy without an error.
    """
    import vllm._custom_ops as custom_ops
    from vllm.model_executor.layers import utils

    custom_ops._supports_onednn = False
    utils.check_cpu_sgl_kernel = lambda *args, **kwargs: False


def _pack_cpu_experts_at_every_update() -> None:
    """Makes vLLM's CPU build pack a mixture's experts whenever they are loaded.

    Its kernel reads packed weights, and 0.32 packs them at the first loading only:
    after an update it would read unpacked ones as if they were packed.
    """
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
        UnquantizedFusedMoEMethod,
    )

    set_up_kernel = UnquantizedFusedMoEMethod._setup_kernel

    def set_up_and_pack(self, layer, w13, w2):
        is_update = self.moe_kernel is not None
        set_up_kernel(self, layer, w13, w2)
        if is_update:
            self.moe_kernel.fused_experts.process_weights_after_loading(layer)

    UnquantizedFusedMoEMethod._setup_kernel = set_up_and_pack


def _keep_seeded_requests_out_of_discarded_samples() -> None:
    """Makes a request's own generator give one number per token, on CPU, too.

    vLLM samples a token after each piece of a prompt and discards all but the last.
    It then turns the generator back, which only CUDA's can: on CPU the engine dies of
    it. Without their generators these rows are sampled from the shared one.
    """
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    sample_tokens = CPUModelRunner.sample_tokens

    def sample_without(self, *args, **kwargs):
        generators = self.input_batch.generators
        discarded = self.discard_request_mask.np[: self.input_batch.num_reqs]
        kept = {
            row: generators.pop(row)
            for row in discarded.nonzero()[0].tolist()
            if row in generators
        }
        try:
            return sample_tokens(self, *args, **kwargs)
        finally:
            generators.update(kept)

    CPUModelRunner.sample_tokens = sample_without


def _multiply_cpu_adapters_at_once() -> None:
    """Makes vLLM's CPU build multiply all tokens of an adapter with its matrices.

    It copies the matrices for each token: with 512 tokens, rank 16 and a layer of 1024
    x 1024 that takes four times as long as the layer itself, here a sixth. And a token
    without an adapter would get the last one's.
    """
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    def add_lora_linear(self, y, x, a_stacked, b_stacked, scale, slices, **kwargs):
        x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        slots = self.token_lora_indices
        for slot in slots.unique().tolist():
            if slot < 0:
                continue
            rows = (slots == slot).nonzero().squeeze(1)
            own, start = x[rows].float(), 0
            for a, b, width in zip(a_stacked, b_stacked, slices, strict=True):
                inner = own @ a[slot, 0].float().T
                delta = scale * inner @ b[slot, 0].float().T
                y[rows, start : start + width] += delta.to(y.dtype)
                start += width

    PunicaWrapperCPU.add_lora_linear = add_lora_linear


if FILE_BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(FILE_BACKEND, SafetensorsWeightTransfer)
    if multiprocessing.parent_process() is not None:  # in one that vLLM started
        if sys.platform == "linux":
            end_with_owner()
        _let_progress_bars_do_without_a_semaphore()
        if current_platform.is_cpu():
            _keep_seeded_requests_out_of_discarded_samples()
            _keep_cpu_linears_unpacked()
            _pack_cpu_experts_at_every_update()
            _multiply_cpu_adapters_at_once()
            return_routed_experts_on_cpu()
