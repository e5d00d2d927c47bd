"""What is as large as the weights, in files of which each learner writes its own.

A Learner's state is a tree. Here its leaves that are tensors of a parameter's shape
(weights, Adam's moments, EWMA, snapshots, the reference) are taken out, and the rest
stays what RLlib pickles. They are written by `torch.distributed.checkpoint`, which
reads them again with any number of learners, as safetensors: nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.fs
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ray.rllib.core import COMPONENT_OPTIMIZER, COMPONENT_RL_MODULE
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.tensor import DTensor

from rllib_llm_async.algorithms.async_decoupled_ppo.torch.learner_state import (
    ASYNC_STATE,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.policy_weights import (
    PolicyWeights,
)
from rllib_llm_async.models.hf_causal_lm import HFCausalLM

#: Directory within a Learner's part of a checkpoint.
SHARDS = "shards"
#: Parts of a Learner's state that hold tensors as large as the weights.
_PARTS = (COMPONENT_OPTIMIZER, ASYNC_STATE)
#: Of the weights; what follows is the name that `HFCausalLM.get_state` gives.
WEIGHTS = "weights/"


class OnDisk(NamedTuple):
    """Stands in a state for a tensor that is in the files, under ``key``."""

    key: str
    parameter: str
    dtype: str


class ShardedState:
    """Takes a Learner's state apart and puts it together.

    Args:
        weights: The learner's.
        module: That holds their policy.
    """

    def __init__(self, weights: PolicyWeights, module: HFCausalLM) -> None:
        self._held = weights.held()
        # Files are written from host memory, and what is read goes there first.
        self._mesh = weights.host_mesh
        # As the optimizer numbers them.
        self._optimized = [name for name, p in self._held.items() if p.requires_grad]
        self._module = module

    def without_tensors(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The state with `OnDisk` in place of what `save` writes."""

        def mark(value: Any, path: tuple) -> OnDisk:
            dtype = str(torch.as_tensor(value).dtype).removeprefix("torch.")
            return OnDisk(_key(path), self._parameter_of(path), dtype)

        return {
            **_replaced(state, self._is_a_parameters, mark),
            COMPONENT_RL_MODULE: {},  # RLlib asks for it
            SHARDS: True,
        }

    def save(self, state: Mapping[str, Any], directory: str) -> None:
        """Writes weights and the tensors of a state; all learners do it together.

        Raises:
            OSError: If one of them could not.
        """
        tensors = self._weights()

        def collect(value: Any, path: tuple) -> None:
            tensors[_key(path)] = self._as_held(
                torch.as_tensor(value), self._parameter_of(path)
            )

        _replaced(state, self._is_a_parameters, collect)
        kinds = sorted({key.split("/")[0] for key in tensors})
        writer = HuggingFaceStorageWriter(
            directory,
            # A file is put together in memory: one for each kind of tensor.
            {key: kinds.index(key.split("/")[0]) + 1 for key in tensors},
            save_distributed=True,
        )
        try:
            dcp.save(tensors, storage_writer=writer, no_dist=not dist.is_initialized())
        except CheckpointException as error:
            raise _first_cause(error) from error

    def with_tensors(
        self, state: Mapping[str, Any], directory: str | None
    ) -> Mapping[str, Any]:
        """Reads weights into the module, and returns the state with its tensors.

        Args:
            state: From `without_tensors`; any other is returned as it is.
            directory: That `save` wrote, with any number of learners.

        Raises:
            ValueError: If there are no such files, or they are of another model.
        """
        if SHARDS not in state:
            if self._mesh is not None:
                raise ValueError(
                    "learner_sharding: the checkpoint was written without it; set it "
                    "to none, or export the checkpoint's model and start from that"
                )
            return state
        if directory is None:
            raise ValueError(
                "learner_sharding: this state is half of one, the tensors are in a "
                "checkpoint's files; restore it by path"
            )
        tensors = self._weights()

        def allocate(marker: OnDisk, path: tuple) -> Tensor:
            held = self._held[marker.parameter].detach()
            own = torch.empty_like(
                held.to_local() if isinstance(held, DTensor) else held,
                dtype=getattr(torch, marker.dtype),
                device="cpu",
            )
            tensors[marker.key] = self._as_held(own, marker.parameter)
            return own

        filled = _replaced(state, lambda value, _: isinstance(value, OnDisk), allocate)
        try:
            dcp.load(
                tensors,
                storage_reader=HuggingFaceStorageReader(directory),
                no_dist=not dist.is_initialized(),
            )
        except CheckpointException as error:
            cause = _first_cause(error)
            raise ValueError(f"{directory}: not of this model ({cause})") from error
        return filled

    def _weights(self) -> dict[str, Tensor]:
        """Those of the module, to be written or read in place."""
        saved = _without_ties(self._module.saved_tensors())
        return {WEIGHTS + name: tensor for name, tensor in saved.items()}

    def _is_a_parameters(self, value: Any, path: tuple) -> bool:
        """Whether a leaf has a parameter's shape; the scores of an episode have not."""
        return (
            isinstance(value, Tensor | np.ndarray)
            and value.ndim > 0
            and path[0] in _PARTS
            and (path[0] == COMPONENT_OPTIMIZER or any(k in self._held for k in path))
        )

    def _parameter_of(self, path: tuple) -> str:
        """Name of the parameter that a leaf belongs to."""
        if path[0] == COMPONENT_OPTIMIZER:
            return self._optimized[path[-2]]
        return next(key for key in reversed(path) if key in self._held)

    def _as_held(self, value: Tensor, parameter: str) -> Tensor:
        """A tensor like a parameter, with the knowledge which part of it this is."""
        held = self._held[parameter]
        if not isinstance(held, DTensor):
            return value
        return DTensor.from_local(
            value.cpu(),
            self._mesh,
            held.placements,
            shape=held.shape,
            stride=held.stride(),
        )


def _without_ties(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With a copy of what another name shares: safetensors hold no memory twice."""
    seen: set[int] = set()
    untied = {}
    for name, tensor in tensors.items():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        place = local.untyped_storage().data_ptr()
        untied[name] = tensor.detach().clone() if place in seen else tensor.detach()
        if local.numel():
            seen.add(place)
    return untied


def _key(path: tuple) -> str:
    return "/".join(map(str, path))


def _replaced(
    tree: Any,
    chosen: Callable[[Any, tuple], bool],
    replace: Callable[[Any, tuple], Any],
    path: tuple = (),
) -> Any:
    """A copy of nested dicts with other values for the chosen leaves."""
    if isinstance(tree, dict):
        return {
            key: _replaced(value, chosen, replace, (*path, key))
            for key, value in tree.items()
        }
    return replace(tree, path) if chosen(tree, path) else tree


def _first_cause(error: CheckpointException) -> BaseException:
    """What went wrong; a failing disk rather than what came of it elsewhere."""
    causes = [cause for cause, _ in error.failures.values()]
    return next((c for c in causes if isinstance(c, OSError)), causes[0])


@contextlib.contextmanager
def shards_of(
    path: str | Path, filesystem: pyarrow.fs.FileSystem | None
) -> Iterator[str | None]:
    """A local directory with the files of a Learner's checkpoint; None without any.

    Args:
        path: The Learner's part of a checkpoint.
        filesystem: Where it is; None for an address that says so itself.
    """
    path = path if isinstance(path, str) else path.as_posix()
    if filesystem is None:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(path)
    source = f"{path}/{SHARDS}"
    if filesystem.get_file_info(source).type == pyarrow.fs.FileType.NotFound:
        yield None
    elif isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        yield source
    else:
        with tempfile.TemporaryDirectory() as directory:
            pyarrow.fs.copy_files(source, directory, source_filesystem=filesystem)
            yield directory
