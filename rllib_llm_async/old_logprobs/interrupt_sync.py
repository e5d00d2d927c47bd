"""Exact: what was sampled under the outgoing version is scored before it goes.

After the optimizer steps the learner stops generation, scores every token sampled
under the version that it is about to replace (in finished and unfinished episodes
alike) with the weights from before the steps, and only then publishes the next
version. It holds one copy of the weights and one number per token, and pays with a
pause.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rllib_llm_async.batch import columns
from rllib_llm_async.batch.packing import select_prefixes
from rllib_llm_async.old_logprobs.base import (
    OldLogprobSource,
    Scores,
    register_source,
)


@register_source
class InterruptSync(OldLogprobSource):
    """Current weights for tokens of the current version, kept scores for older ones."""

    name = "interrupt_sync"
    is_exact = True
    stops_generation = True

    def __init__(self, settings):
        super().__init__(settings)
        self._outgoing: dict[str, Tensor] = {}
        #: By `EPISODE_KEY`: log pi_old by position, NaN where none is known.
        self._scores: dict[int, np.ndarray] = {}
        self._last_scored: dict[int, int] = {}

    def on_publish(self, version, named_parameters):
        self._outgoing = {
            name: tensor.detach().clone() for name, tensor in named_parameters.items()
        }
        # An episode that is not scored any more was trained on, dropped or lost; one
        # that lives on is scored again before it can be older than the bound.
        for key, last in list(self._last_scored.items()):
            if last < version - 1 - self.settings.max_staleness:
                del self._last_scored[key], self._scores[key]

    @property
    def outgoing(self):
        return self._outgoing

    def add_scores(self, version: int, scores: Scores) -> None:
        for key, (positions, logp) in scores.items():
            kept = self._scores.get(key, np.zeros(0, np.float32))
            grown = np.full(max(len(kept), positions[-1] + 1), np.nan, np.float32)
            grown[: len(kept)] = kept
            grown[positions] = logp
            self._scores[key] = grown
            self._last_scored[key] = version

    def old_logp(self, batch, forward, version):
        """NaN where a token of an older version was never scored."""
        mask, versions = batch[columns.LOSS_MASK], batch[columns.VERSIONS]
        old_logp = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
        is_current = mask & (versions == version)
        # Without any, too: sharded weights compute for all learners at once.
        prefixes = select_prefixes(batch, is_current)
        logp = forward(prefixes.batch, None)
        old_logp.view(-1)[prefixes.index] = logp[prefixes.batch[columns.LOSS_MASK]]
        is_older = mask & ~is_current
        old_logp[is_older] = torch.from_numpy(
            self._look_up(
                batch[columns.EPISODE_KEYS][is_older].cpu().numpy(),
                batch[columns.POSITION_IDS][is_older].cpu().numpy(),
            )
        ).to(mask.device)
        return old_logp

    def _look_up(self, keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
        found = np.full(len(keys), np.nan, np.float32)
        for key in np.unique(keys):
            scores = self._scores.get(int(key), np.zeros(0, np.float32))
            chosen = (keys == key) & (positions < len(scores))
            found[chosen] = scores[positions[chosen]]
        return found

    @property
    def nbytes(self):
        return sum(tensor.nbytes for tensor in self._outgoing.values()) + sum(
            scores.nbytes for scores in self._scores.values()
        )

    def get_state(self):
        return {
            "scores": {key: scores.copy() for key, scores in self._scores.items()},
            "last_scored": dict(self._last_scored),
        }

    def set_state(self, state):
        self._scores = {key: scores.copy() for key, scores in state["scores"].items()}
        self._last_scored = dict(state["last_scored"])
