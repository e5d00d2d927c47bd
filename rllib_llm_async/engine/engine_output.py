"""What an engine hands out: a turn's tokens, as sampled, and whose they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class EngineOutput:
    """One generated turn, token by token.

    ``logp`` float32 and ``versions`` int64 have the length of ``token_ids``.
    ``routed_experts`` uint8 or uint16 ``[tokens, layers, top_k]``, if the engine
    returns them, are the experts of all tokens of the context and the turn that no turn
    before has told of, up to the last token, which no pass has seen yet.
    """

    token_ids: list[int]
    logp: np.ndarray
    versions: np.ndarray
    finish_reason: str
    routed_experts: np.ndarray | None = None

    @property
    def unusable(self) -> np.ndarray:
        """Tokens that nothing can be learned from, as a bool of each."""
        return ~np.isfinite(self.logp) | (self.logp > 1e-3) | (self.versions < 0)

    @classmethod
    def of(cls, completion: Any, version: int | None = None) -> EngineOutput:
        """Reads it off vLLM's `CompletionOutput`.

        Args:
            completion: All tokens of a request.
            version: Theirs; None takes it from vLLM, token by token.

        Raises:
            RuntimeError: If log-probabilities and tokens do not belong together.
        """
        token_ids = list(completion.token_ids)
        if not token_ids:
            empty = np.zeros(0, np.float32), np.zeros(0, np.int64)
            return cls([], *empty, completion.finish_reason)
        if completion.logprobs.token_ids != token_ids:
            raise RuntimeError(
                "engine returned log-probabilities of other tokens than it sampled"
            )
        if version is not None:
            versions = np.full(len(token_ids), version, dtype=np.int64)
        else:
            versions = np.full(len(token_ids), -1, dtype=np.int64)
            for span in completion.weight_versions or ():
                versions[span.start : span.end] = int(span.version)
        logp = np.asarray(completion.logprobs.logprobs, dtype=np.float32)
        return cls(
            token_ids,
            logp,
            versions,
            completion.finish_reason,
            completion.routed_experts,
        )

    @classmethod
    def joined(cls, pieces: Sequence[EngineOutput]) -> EngineOutput:
        """A turn that was interrupted, in one."""
        finish_reason = pieces[-1].finish_reason
        routed = [p.routed_experts for p in pieces if p.routed_experts is not None]
        return cls(
            [token for piece in pieces for token in piece.token_ids],
            np.concatenate([piece.logp for piece in pieces]),
            np.concatenate([piece.versions for piece in pieces]),
            "length" if finish_reason == "abort" else finish_reason,
            np.concatenate(routed) if routed else None,
        )
