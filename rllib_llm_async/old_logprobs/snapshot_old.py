"""Exact: log pi_old under the stored training weights of each token's own version."""

from __future__ import annotations

import itertools

import torch

from rllib_llm_async import result_keys
from rllib_llm_async.batch import columns
from rllib_llm_async.batch.packing import select_prefixes
from rllib_llm_async.core.collectives import distinct_over_learners
from rllib_llm_async.core.snapshots import SnapshotStore
from rllib_llm_async.monitoring.owned_folders import OwnedFolder
from rllib_llm_async.old_logprobs.base import OldLogprobSource, register_source


@register_source
class SnapshotOld(OldLogprobSource):
    """Keeps one snapshot per version within the staleness bound.

    A batch costs one pass per version, over only the sequences that hold its tokens,
    and those only up to the last of them.
    """

    name = "snapshot_old"
    is_exact = True
    reads = frozenset({"snapshot_memory_bytes", "missing_snapshot"})

    def __init__(self, settings):
        super().__init__(settings)
        bound = settings.snapshot_memory_bytes
        # Removed even if this process is killed.
        self._folder = None if bound is None else OwnedFolder("snapshots")
        self.store = SnapshotStore(bound, self._folder and self._folder.name)
        #: The first one that it was shown: a run may come to this source half-way.
        self._first_version = 0
        #: Tokens of the sequences that the last `old_logp` passed over, and of those of
        #: one plain pass, common beginnings in each of them.
        self.forward_tokens = self.one_pass_tokens = 0

    def on_publish(self, version, named_parameters):
        if not self.store.versions:
            self._first_version = version
        # First, so that nothing goes to disk that is dropped right after.
        self.store.evict_before(version - self.settings.max_staleness)
        self.store.put(version, self._as_computed_with(named_parameters))

    def _as_computed_with(self, named_parameters):
        """What `CausalLMPolicy` rounds its weights to before it uses them.

        Exact all the same, half as large, and hardly different between versions.
        """
        if self.settings.compute_dtype is None:
            return named_parameters
        dtype = getattr(torch, self.settings.compute_dtype)
        return {
            name: tensor.to(dtype) if tensor.dim() >= 2 else tensor
            for name, tensor in named_parameters.items()
        }

    def old_logp(self, batch, forward, version):
        """NaN where a token is of a version from before this source was in use.

        Raises:
            MissingSnapshotError: If any other version is not stored; with
                ``missing_snapshot`` "drop" that is NaN, too.
        """
        mask, versions = batch[columns.LOSS_MASK], batch[columns.VERSIONS]
        old_logp = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
        self.forward_tokens = 0
        # Those of other learners as well: sharded weights compute for all at once.
        own_versions = {*distinct_over_learners(versions[mask])}
        stored = own_versions - {version}
        lost = {own for own in stored if self._may_lack(own)}
        is_lost = torch.isin(versions, versions.new_tensor([*lost]))
        old_logp[mask & is_lost] = torch.nan
        weights = self.store.walk(stored - lost, mask.device)
        current = [(version, None)] if version in own_versions else []
        for own, parameters in itertools.chain(weights, current):
            of_version = mask & (versions == own)
            prefixes = select_prefixes(batch, of_version)
            logp = forward(prefixes.batch, parameters)
            old_logp.view(-1)[prefixes.index] = logp[prefixes.batch[columns.LOSS_MASK]]
            self.forward_tokens += prefixes.num_tokens
        self.one_pass_tokens = int((batch[columns.SEQUENCE_IDS] >= 0).sum())
        return old_logp

    def _may_lack(self, version: int) -> bool:
        return version < self._first_version or (
            self.settings.missing_snapshot == "drop"
            and version not in self.store.versions
        )

    def metrics(self):
        return {
            result_keys.SNAPSHOT_BYTES: self.store.nbytes,
            result_keys.SNAPSHOT_BYTES_ON_DISK: self.store.nbytes_on_disk,
            result_keys.SNAPSHOT_NUM_VERSIONS: len(self.store.versions),
        }

    @property
    def nbytes(self):
        return self.store.nbytes

    def get_state(self):
        # A difference between shares could not be shared out otherwise.
        whole = self.settings.learner_sharding != "none"
        return {
            "snapshots": self.store.state_dict(whole=whole),
            "first_version": self._first_version,
        }

    def set_state(self, state):
        self.store.load_state_dict(state["snapshots"])
        # Older checkpoints do not say.
        self._first_version = state.get("first_version", self.store.versions[0])
