"""From a learner to the engines: a version's weights, and what precedes them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import ActorDiedError, ObjectLostError
from safetensors.torch import save as save_safetensors
from torch import Tensor

from rllib_llm_async.algorithms.async_decoupled_ppo.torch.policy_weights import (
    PolicyWeights,
)
from rllib_llm_async.batch import columns
from rllib_llm_async.batch.packing import pack_rows
from rllib_llm_async.coordination.ledger import EpisodeFate
from rllib_llm_async.coordination.messages import PublishedWeights
from rllib_llm_async.core.collectives import gather_from_learners
from rllib_llm_async.core.fingerprint import fingerprint
from rllib_llm_async.engine.arrival_check import ExpectedArrival
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from rllib_llm_async.old_logprobs.base import Forward, OldLogprobSource, Scores

#: Length of the fixed prompt that checks the arrival of weights.
PROBE_TOKENS = 64


class WeightPublisher:
    """One learner's side of the `Coordinator`.

    Args:
        weights: What is published.
        config: An `AsyncDecoupledPPOConfig`.
        coordinator: The run's `Coordinator`.
        forward: The learner's, see `old_logprobs.base`.
        rank: Number of this learner.
        num_learners: Of how many.
    """

    def __init__(
        self,
        weights: PolicyWeights,
        config: Any,
        coordinator: ray.actor.ActorHandle,
        forward: Forward,
        *,
        rank: int,
        num_learners: int,
    ) -> None:
        self._weights = weights
        self._coordinator = coordinator
        self._forward = forward
        self._rank = rank
        self._num_learners = num_learners
        self._dtype = getattr(torch, config.engine.get("dtype", "bfloat16"))
        self._has_old_logit_actors = config.needs_old_logit_actors
        self._device = next(weights.policy.parameters()).device

    def publish(self, version: int) -> None:
        """Puts the weights into the object store; the first learner does it for all,
        which give it their shares."""
        if self._rank != 0:
            if self._weights.is_sharded:
                self._give_shares()
            return
        weights, expected = weights_to_send(self._weights.policy, self._dtype)
        published = PublishedWeights(
            version=version,
            weights=ray.put(np.frombuffer(save_safetensors(weights), np.uint8)),
            expected=expected,
            trainer_weights=self._put_trainer_weights(),
        )
        # The driver starts another coordinator, and has this one publish again.
        with contextlib.suppress(ActorDiedError):
            ray.get(self._coordinator.publish.remote([published]))

    def _give_shares(self) -> None:
        """Takes part in all that the first learner gathers, in its order."""
        for _ in self._weights.policy.inference_weights():
            pass
        _probe(self._weights.policy)
        if self._has_old_logit_actors:
            for _ in self._weights.whole():
                pass

    def settle(self, fates: list[EpisodeFate]) -> None:
        """Tells the ledger what became of this learner's share of an update.

        Waits until it is told: what is not settled when the update ends is lost.
        """
        # The driver notices a dead coordinator by itself.
        with contextlib.suppress(ActorDiedError):
            ray.get(self._coordinator.settle.remote(fates))

    def score_outgoing(self, version: int, source: OldLogprobSource) -> float:
        """Stops the engines and scores what they sampled under the outgoing version.

        Every learner scores its share; all get all scores. The engines go on with the
        next `publish`.

        Returns:
            Seconds that it took.
        """
        start = time.monotonic()
        # Without a coordinator all that was under way is lost anyhow. All learners
        # score or none: where they share weights, one would wait for the others.
        sampled = self._interrupt(version)
        everywhere = all(gather_from_learners(sampled is not None))
        if sampled is None or not everywhere:
            return time.monotonic() - start
        with contextlib.suppress(ActorDiedError):
            sequences = [s for reference in sampled for s in _get(reference)]
            share = sequences[self._rank :: self._num_learners]
            scores = ray.put(self._score(share, source.outgoing))
            for reference in ray.get(
                self._coordinator.share_scores.remote(
                    version, [scores], self._num_learners
                )
            ):
                source.add_scores(version, ray.get(reference))
        return time.monotonic() - start

    def _interrupt(self, version: int) -> list[ray.ObjectRef] | None:
        try:
            return ray.get(self._coordinator.interrupt.remote(version))
        except ActorDiedError:
            return None

    def _score(
        self, sequences: list[dict[str, np.ndarray]], parameters: Mapping[str, Tensor]
    ) -> Scores:
        """Log-probabilities at the mask of each sequence, by its episode's key."""
        batch = {
            key: torch.from_numpy(column).to(self._device)
            for key, column in pack_rows(sequences, min_row_tokens=512).items()
        }
        mask = batch[columns.LOSS_MASK]
        values, keys, positions = (
            column[mask].cpu().numpy()
            for column in (
                self._forward(batch, parameters),
                batch[columns.EPISODE_KEYS],
                batch[columns.POSITION_IDS],
            )
        )
        return {
            int(key): (positions[keys == key], values[keys == key])
            for key in np.unique(keys)
        }

    def _put_trainer_weights(self) -> ray.ObjectRef | None:
        """The trained weights as they are, for `OldLogitActor`; None if unused."""
        if not self._has_old_logit_actors:
            return None
        return ray.put(
            {name: tensor.detach().cpu() for name, tensor in self._weights.whole()}
        )


def weights_to_send(
    policy: CausalLMPolicy, dtype: torch.dtype
) -> tuple[dict[str, Tensor], ExpectedArrival]:
    """A version as engines get it, and what they check its arrival with.

    Args:
        policy: Whose weights are published.
        dtype: The engines'.

    Returns:
        Checkpoint-format tensors on the CPU; their fingerprints are taken on the
        policy's device.
    """
    weights, fingerprints = {}, {}
    for name, tensor in policy.inference_weights():
        cast = tensor.to(dtype)
        fingerprints[name] = fingerprint(cast)
        weights[name] = cast.to("cpu").contiguous()
    return weights, ExpectedArrival(fingerprints, *_probe(policy))


def _probe(policy: CausalLMPolicy) -> tuple[list[int], np.ndarray]:
    """A fixed prompt and log pi of its tokens but the first, through what trains.

    The engine scores a prompt at temperature 1, whatever it samples with. Rare tokens
    have the largest gradients; those of a vocabulary's second quarter are rare after
    each other, and none of them is a control token.
    """
    vocabulary = policy.causal_lm.get_input_embeddings().num_embeddings
    start, stop = vocabulary // 4, vocabulary // 2
    tokens = np.random.default_rng(0).integers(start, stop, PROBE_TOKENS)
    sequence = {
        columns.TOKENS: tokens,
        columns.POSITION_IDS: np.arange(PROBE_TOKENS),
        columns.LOSS_MASK: np.arange(PROBE_TOKENS) > 0,
    }
    device = next(policy.parameters()).device
    batch = {
        key: torch.from_numpy(column).to(device)
        for key, column in pack_rows([sequence], min_row_tokens=PROBE_TOKENS).items()
    }
    was_training, temperature = policy.training, policy.temperature
    policy.eval()
    policy.temperature = 1.0
    try:
        logp = policy.score(batch, None, PROBE_TOKENS)[0, 1:]
    finally:
        policy.temperature = temperature
        policy.train(was_training)
    return tokens.tolist(), logp.cpu().numpy()


def _get(sampled: ray.ObjectRef) -> list[dict[str, np.ndarray]]:
    """What a runner has sampled; nothing if that went down with the runner."""
    try:
        return ray.get(sampled)
    except ObjectLostError:
        return []
