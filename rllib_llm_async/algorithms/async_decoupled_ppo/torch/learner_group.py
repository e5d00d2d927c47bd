"""A LearnerGroup that passes over nothing: no lost episodes, and no learner's error."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
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

#: Called with a learner and a folder; returns, or raises, what kept it from writing.
Write = Callable[[Any, str], OSError | None]


class AsyncLearnerGroup(LearnerGroup):
    """RLlib's, but for what it does in silence.

    With ``num_learners=0`` it resolves references before the Learner sees them and
    leaves out those of owners that have died. Of remote learners one that raises is out
    of service from then on, and the update after it is one of none; checkpoints come
    through this process, and only up to 1 GiB from other nodes.
    """

    _leaves_learners_out = False

    @override(LearnerGroup)
    def update(self, **kwargs: Any) -> Any:
        results = super().update(defer_solve_refs_to_learner=True, **kwargs)
        if self.is_remote:
            self._check_number(len(results))
        return results

    @override(LearnerGroup)
    def foreach_learner(self, func, **kwargs: Any) -> Any:
        """See RLlib's.

        Raises:
            Exception: That of a learner.
            RuntimeError: If one has stopped before.
        """
        results = super().foreach_learner(func, **kwargs)
        if self.is_remote:
            self._check_number(len(self._get_results(results)), **kwargs)
        return results

    def _check_number(self, number: int, remote_actor_ids=None, **_: Any) -> None:
        expected = len(self) if remote_actor_ids is None else len(remote_actor_ids)
        if number < expected:
            raise RuntimeError(
                f"{expected - number} of {expected} learners have stopped"
            )

    # --- Checkpoints --------------------------------------------------------------

    @contextlib.contextmanager
    def writing_their_own(self) -> Iterator[None]:
        """While a checkpoint is written no state of remote learners comes here."""
        self._leaves_learners_out = self.is_remote
        try:
            yield
        finally:
            self._leaves_learners_out = False

    @override(LearnerGroup)
    def get_state(self, components=None, *, not_components=None, **kwargs):
        if self._leaves_learners_out:
            return {"num_learners": len(self)}
        return super().get_state(components, not_components=not_components, **kwargs)

    @override(LearnerGroup)
    def get_checkpointable_components(self):
        return [] if self.is_remote else super().get_checkpointable_components()

    @override(LearnerGroup)
    def save_to_path(
        self, path=None, *, filesystem=None, use_msgpack: bool = False, **kwargs: Any
    ) -> str:
        if path is not None and filesystem is None:  # as RLlib's does
            filesystem, path = pyarrow.fs.FileSystem.from_uri(str(path))
        with self.writing_their_own():
            path = super().save_to_path(
                path, filesystem=filesystem, use_msgpack=use_msgpack, **kwargs
            )
        filesystem = filesystem or pyarrow.fs.LocalFileSystem()
        own = f"{path}/{COMPONENT_LEARNER}"
        if self.is_remote:
            write = _state_writer(use_msgpack)
            first = self._worker_manager.actor_ids()[:1]
            self._have_written(own, filesystem, write, remote_actor_ids=first)
        shards = f"{own}/{SHARDS}"
        if filesystem.get_file_info(shards).type != pyarrow.fs.FileType.NotFound:
            filesystem.delete_dir(shards)  # of an earlier checkpoint at this place
        if self.config.learner_sharding == "fsdp2":
            self._have_written(
                shards, filesystem, lambda learner, folder: learner.save_shards(folder)
            )
        return path

    def _have_written(
        self, path: str, filesystem: pyarrow.fs.FileSystem, write: Write, **which: Any
    ) -> None:
        """Has learners write files, and brings them to ``path``.

        Raises:
            OSError: If a learner could not.
        """
        filesystem.create_dir(path, recursive=True)
        here = ray.util.get_node_ip_address()
        is_local = isinstance(filesystem, pyarrow.fs.LocalFileSystem)
        call = _writer(path, here if is_local else "", write)
        written = [r.get() for r in self.foreach_learner(call, **which)]
        elsewhere = [(ip, folder) for _, ip, folder in written if folder != path]
        try:
            for error, _, _ in written:
                if error is not None:
                    raise error
            for ip, folder in elsewhere:
                with tempfile.TemporaryDirectory() as fetched:
                    sync_dir_between_nodes(
                        ip, folder, here, fetched, max_size_bytes=None
                    )
                    pyarrow.fs.copy_files(
                        fetched, path, destination_filesystem=filesystem
                    )
        finally:
            if elsewhere:
                self.foreach_learner(_remover([folder for _, folder in elsewhere]))

    @override(LearnerGroup)
    def restore_from_path(
        self, path, *, component=None, filesystem=None, **kwargs: Any
    ) -> None:
        if filesystem is None:
            filesystem, path = pyarrow.fs.FileSystem.from_uri(str(path))
        super().restore_from_path(
            path, component=component, filesystem=filesystem, **kwargs
        )
        first, _, rest = (component or COMPONENT_LEARNER).partition("/")
        if self.is_remote and first == COMPONENT_LEARNER:
            path = path if component else f"{path}/{COMPONENT_LEARNER}"
            read = _reader(str(path), filesystem, rest or None, kwargs)
            self.foreach_learner(read)


def _state_writer(use_msgpack: bool) -> Write:
    def write(learner: Any, folder: str) -> None:
        learner.save_to_path(folder, state=learner.get_state(), use_msgpack=use_msgpack)

    return write


def _writer(
    path: str, ip: str, write: Write
) -> Callable[[Any], tuple[OSError | None, str, str]]:
    """What a learner has to call: it writes to ``path`` if it is on the node ``ip``,
    and to a folder of its own elsewhere. An error, its node and the folder."""

    def call(learner: Any) -> tuple[OSError | None, str, str]:
        here = ray.util.get_node_ip_address()
        folder = path if here == ip else tempfile.mkdtemp()
        try:
            # As a value: one that is raised here puts the learner out of service.
            return write(learner, folder), here, folder
        except OSError as error:
            return error, here, folder

    return call


def _remover(folders: list[str]) -> Callable[[Any], None]:
    """What a learner has to call to remove those that are on its node."""

    def remove(learner: Any) -> None:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)

    return remove


def _reader(
    path: str,
    filesystem: pyarrow.fs.FileSystem,
    component: str | None,
    kwargs: dict[str, Any],
) -> Callable[[Any], None]:
    """What a learner has to call: it reads ``path`` where it sees it, as on shared
    storage, and a copy elsewhere."""
    home = ray.util.get_node_ip_address()
    is_local = isinstance(filesystem, pyarrow.fs.LocalFileSystem)
    seen_at_home = _look_of(path) if is_local else None

    def read(learner: Any) -> None:
        here = ray.util.get_node_ip_address()
        if not is_local or here == home or _look_of(path) == seen_at_home:
            learner.restore_from_path(
                path, filesystem=filesystem, component=component, **kwargs
            )
            return
        with tempfile.TemporaryDirectory() as copy:
            sync_dir_between_nodes(home, path, here, copy, max_size_bytes=None)
            learner.restore_from_path(copy, component=component, **kwargs)

    return read


def _look_of(path: str) -> list[tuple[str, int, int]] | None:
    """Names, sizes and times of the files in a folder; None if there is none."""
    try:
        with os.scandir(path) as entries:
            found = [(e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in entries]
    except FileNotFoundError:
        return None
    return sorted(found)
