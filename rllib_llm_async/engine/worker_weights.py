"""What a vLLM worker says of the weights that it holds and computes with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from vllm.lora.request import LoRARequest
from vllm.lora.utils import parse_fine_tuned_lora_name
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader import get_model_loader

from rllib_llm_async.core.fingerprint import Fingerprint, fingerprint
from rllib_llm_async.transport.devices import device_name

#: Columns of each matrix that `stale_linears` multiplies out.
NUM_COLUMNS = 8


def device(worker) -> str:
    """What it computes on, see `device_name`."""
    return device_name(worker.device)


def held_fingerprints(worker) -> dict[str, Fingerprint]:
    """Of each live parameter by its name; of tied ones once."""
    return {
        name.replace(".base_layer.", "."): _fingerprint(worker, parameter)
        for name, parameter in worker.get_model().named_parameters()
    }


def checkpoint_fingerprints(worker) -> dict[str, tuple[str, Fingerprint]]:
    """Of each tensor of the model's checkpoint its parameter and fingerprint.

    Empty on all ranks but the first, and where the weights are not files.
    """
    loader = get_model_loader(worker.load_config)
    if worker.rank != 0 or not hasattr(loader, "get_all_weights"):
        return {}
    model = worker.get_model()
    return {
        name: (_home(model, name), _fingerprint(worker, weight))
        for name, weight in loader.get_all_weights(worker.model_config, model)
    }


def adapter_fingerprints(
    worker, name: str, number: int, folder: str, names: Sequence[str]
) -> dict[str, Fingerprint]:
    """Of the matrices of an adapter as this rank's layers compute with them.

    Args:
        worker: vLLM's.
        name: Of the adapter, as requests name it.
        number: The same.
        folder: The same.
        names: Under which they were published; what bears none of them is called by
            its layer.
    """
    # Turns under way with as many others as there is room for may have displaced it.
    worker.add_lora(LoRARequest(name, number, folder))
    manager = worker.model_runner.lora_manager._adapter_manager
    slot = manager.lora_index_to_id.index(number)
    mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
    mapper = mapper and mapper.get_rename_mapper()
    published = {parse_fine_tuned_lora_name(n, mapper): n for n in names}
    held = {}
    for path, layer in manager.modules.items():
        # What vLLM has stacked, one by one.
        parts = manager.packed_modules.get(path, [path])
        matrices = zip(parts, layer.lora_a_stacked, layer.lora_b_stacked, strict=True)
        for part, a, b in matrices:
            for is_a, matrix in ((True, a), (False, b)):
                called = published.get((part, is_a), f"{part}.lora_{'BA'[is_a]}")
                held[called] = fingerprint(matrix[slot])
    return held


@torch.inference_mode()
def stale_linears(worker, seed: int) -> list[str]:
    """Names of linear layers that compute with something else than their weights.

    A kernel may read a packed copy that no update refreshes. The product with a unit
    vector is a column of the matrix, exactly, in every dtype and kernel, since all
    other terms are zeros; subnormal elements are left out, some kernels flush them.

    Args:
        worker: vLLM's.
        seed: Chooses the columns, `NUM_COLUMNS` of each matrix.
    """
    generator = torch.Generator().manual_seed(seed)
    stale = []
    for name, layer in _plain_linears(worker.get_model()):
        weight = layer.weight
        columns = torch.randint(weight.shape[1], (NUM_COLUMNS,), generator=generator)
        columns = columns.to(weight.device)
        units = nn.functional.one_hot(columns, weight.shape[1]).to(weight.dtype)
        try:
            product = layer.quant_method.apply(layer, units, None)
        except (AttributeError, RuntimeError):
            continue  # holds weights of another kernel, such as a convolution's
        expected = weight[:, columns].T
        normal = expected.abs() >= torch.finfo(expected.dtype).tiny
        if not torch.equal(product * normal, expected * normal):
            stale.append(name)
    return stale


def _plain_linears(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, layer in model.named_modules():
        if (
            isinstance(layer, (LinearBase, VocabParallelEmbedding))
            and isinstance(
                layer.quant_method,
                (UnquantizedLinearMethod, UnquantizedEmbeddingMethod),
            )
            and layer.weight.dim() == 2  # otherwise packed, and gone
        ):
            yield name.replace(".base_layer", ""), layer


def _fingerprint(worker, weight: Tensor) -> Fingerprint:
    """Of the weight in the model's dtype, as the trainer tells it; vLLM keeps some
    wider."""
    if weight.is_floating_point() and weight.element_size() > 1:
        weight = weight.to(worker.model_config.dtype)
    return fingerprint(weight)


def _home(model: nn.Module, name: str) -> str:
    """The parameter that a checkpoint's tensor is part of, as far as vLLM says."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    name = next(iter(mapper.apply_list([name])), name) if mapper else name
    for fused, pieces in getattr(model, "packed_modules_mapping", {}).items():
        for piece in pieces:
            name = name.replace(f".{piece}.", f".{fused}.")
    return name
