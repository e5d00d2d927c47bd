"""A LearnerGroup whose learners fetch episodes themselves, a local one too."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import pyarrow.fs
import ray
from ray.rllib.core import COMPONENT_LEARNER
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.utils.annotations import override
from ray.tune.utils.file_transfer import sync_dir_between_nodes

from rllib_llm_async.algorithms.async_decoupled_ppo.torch.sharded_checkpoint import (
    SHARDS,
)


class AsyncLearnerGroup(LearnerGroup):
    """RLlib's, but a group of episodes that is lost on its way is counted, and
    learners that share the weights write their checkpoint together.

    With ``num_learners=0`` RLlib resolves references before the Learner sees them and
    leaves out those of owners that have died, without a word.
    """

    @override(LearnerGroup)
    def update(self, **kwargs: Any) -> Any:
        return super().update(defer_solve_refs_to_learner=True, **kwargs)

    @override(LearnerGroup)
    def save_to_path(self, path=None, *, filesystem=None, **kwargs: Any) -> str:
        if path is not None and filesystem is None:  # as RLlib's does
            filesystem, path = pyarrow.fs.FileSystem.from_uri(str(path))
        path = super().save_to_path(path, filesystem=filesystem, **kwargs)
        filesystem = filesystem or pyarrow.fs.LocalFileSystem()
        shards = f"{path}/{COMPONENT_LEARNER}/{SHARDS}"
        if filesystem.get_file_info(shards).type != pyarrow.fs.FileType.NotFound:
            filesystem.delete_dir(shards)  # of an earlier checkpoint at this place
        if self.config.learner_sharding == "fsdp2":
            filesystem.create_dir(shards, recursive=True)
            self._save_shards(shards, filesystem)
        return path

    def _save_shards(self, path: str, filesystem: pyarrow.fs.FileSystem) -> None:
        """Has each learner write its files, and brings them to ``path``.

        Raises:
            OSError: If a learner could not.
        """
        here = ray.util.get_node_ip_address()
        is_local = isinstance(filesystem, pyarrow.fs.LocalFileSystem)
        written = [
            result.get()
            for result in self.foreach_learner(_writer(path, here if is_local else ""))
        ]
        for error, _, _ in written:
            if error is not None:
                raise error
        elsewhere = [(ip, folder) for _, ip, folder in written if folder != path]
        for ip, folder in elsewhere:
            with tempfile.TemporaryDirectory() as fetched:
                sync_dir_between_nodes(ip, folder, here, fetched, max_size_bytes=None)
                pyarrow.fs.copy_files(fetched, path, destination_filesystem=filesystem)
        if elsewhere:
            self.foreach_learner(_remover([folder for _, folder in elsewhere]))


def _writer(path: str, ip: str) -> Callable[[Any], tuple[OSError | None, str, str]]:
    """What a learner has to call: it writes to ``path`` if it is on the node ``ip``,
    and to a folder of its own elsewhere. An error, its node and the folder."""

    def write(learner: Any) -> tuple[OSError | None, str, str]:
        here = ray.util.get_node_ip_address()
        folder = path if here == ip else tempfile.mkdtemp()
        return learner.save_shards(folder), here, folder

    return write


def _remover(folders: list[str]) -> Callable[[Any], None]:
    """What a learner has to call to remove those that are on its node."""

    def remove(learner: Any) -> None:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)

    return remove
