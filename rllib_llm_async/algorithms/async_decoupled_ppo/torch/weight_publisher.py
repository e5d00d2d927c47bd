"""From a learner to the engines: a version's weights, and what precedes them."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from ray.exceptions import ActorDiedError, ObjectLostError
from torch import Tensor

from rllib_llm_async.algorithms.async_decoupled_ppo.torch.policy_view import PolicyView
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.policy_weights import (
    PolicyWeights,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.probe import probe
from rllib_llm_async.batch import columns
from rllib_llm_async.batch.packing import pack_rows
from rllib_llm_async.coordination.ledger import EpisodeFate
from rllib_llm_async.coordination.messages import PublishedWeights
from rllib_llm_async.core.collectives import gather_from_learners
from rllib_llm_async.core.fingerprint import (
    Fingerprint,
    add_fingerprints,
    fingerprint,
)
from rllib_llm_async.engine.arrival_check import ExpectedArrival
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from rllib_llm_async.old_logprobs.base import Forward, OldLogprobSource, Scores
from rllib_llm_async.transport.background import Background
from rllib_llm_async.transport.choice import trainer_side
from rllib_llm_async.transport.differences import PIECE
from rllib_llm_async.transport.sides import TrainerSide, travels_in


class Passes(NamedTuple):
    """What a version is read in, in this order; nothing happens before it is asked for.

    ``sent`` are passes over what engines load, as many as `TrainerSide.stage` makes;
    ``probed`` yields what `probe` returns, ``trained`` what `OldLogitActor` takes.
    """

    sent: Sequence[Iterator[tuple[str, Tensor]]]
    probed: Iterator[tuple[list[int], np.ndarray]]
    trained: Iterable[tuple[str, Tensor]]

    def end(self) -> None:
        """Makes what is left of them."""
        for _ in itertools.chain(*self.sent, self.probed, self.trained):
            pass


class Read(NamedTuple):
    """What was taken from the live weights, beside their copy.

    ``on_device``: fingerprints of tensors that are not in host memory; ``probe_tokens``
    and ``probe_logp``: see `ExpectedArrival`; ``trainer_weights``: see
    `PublishedWeights`.
    """

    on_device: dict[str, Fingerprint]
    probe_tokens: list[int]
    probe_logp: np.ndarray
    trainer_weights: ray.ObjectRef | None


class WeightPublisher:
    """One learner's side of the `Coordinator`.

    The weights are copied beside the learner, which calls `finish_reading` before they
    change; what follows (fingerprints, differences) it does not wait for at all. Only
    sharded weights are copied, by all learners together, before `publish` returns. A
    version that is not out when the next one comes is given up, but never two in a row.

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
        self._sends_adapters = config.served_adapters is not None
        self._has_old_logit_actors = config.needs_old_logit_actors
        self._device = next(weights.policy.parameters()).device
        self._has_published = False
        self._transport = config.chosen_transport
        self._outbox: TrainerSide | None = None
        self._view: PolicyView | None = None
        self._sending = Background("publishing weights")
        self._is_out = True
        self._num_given_up = 0  # in a row
        self._is_read = threading.Event()
        self._is_read.set()

    # --- Versions -----------------------------------------------------------------

    def publish(self, version: int) -> None:
        """Begins to send a version; the first learner does it for all, which give it
        their shares.

        Raises:
            Exception: What went wrong with the version before.
        """
        with self._shared_passes() as shared:
            if self._rank != 0:
                return
            if not self._num_given_up:
                self._sending.cancel()
            self._sending.end()
            self._num_given_up = 0 if self._is_out else self._num_given_up + 1
            read = self._reader(shared)
        # The driver starts another coordinator, and has this one publish again.
        with contextlib.suppress(ActorDiedError):
            serial = ray.get(self._coordinator.announce.remote(version))
            self._is_out = False
            self._is_read.clear()
            self._sending.start(partial(self._send, version, serial, read))

    def finish_reading(self) -> None:
        """Waits until the weights may change.

        Raises:
            Exception: What went wrong with the version that was published last.
        """
        self._is_read.wait()
        self._sending.raise_error()

    def finish_publishing(self) -> None:
        """Waits until engines can have the newest version.

        Raises:
            Exception: What keeps it back.
        """
        self._sending.end()

    def close(self) -> None:
        """Gives up what is on its way, and takes the weights out of shared memory."""
        self._sending.cancel()
        with contextlib.suppress(Exception):  # nobody needs that version any more
            self._sending.end()
        if self._outbox is not None:
            self._outbox.close()

    @contextlib.contextmanager
    def _shared_passes(self) -> Iterator[Passes | None]:
        """Yields those that learners make together, None if each has all weights.

        Each of them comes to their end, whatever befalls it: the others wait for it.
        """
        if not self._weights.is_sharded:
            yield None
            return
        # `Outbox.stage` asks for the shapes at first.
        num_sent, self._has_published = 1 if self._has_published else 2, True
        passes = self._passes(self._weights.policy, self._weights.whole(), num_sent)
        try:
            yield passes
        finally:
            passes.end()

    def _passes(
        self,
        policy: CausalLMPolicy,
        trained: Iterable[tuple[str, Tensor]],
        num_sent: int = 2,
    ) -> Passes:
        return Passes(
            [self._sent(policy) for _ in range(num_sent)],
            map(probe, [policy]),
            trained if self._has_old_logit_actors else (),
        )

    def _reader(self, shared: Passes | None) -> Callable[[], Read]:
        """What copies the live weights and passes over the probe, or has done so."""
        if self._outbox is None:
            self._outbox = trainer_side(
                self._transport,
                self._dtype,
                ray.get_runtime_context().get_node_id(),
                partial(self._tell, "fail"),
            )
        if shared is not None:
            read = self._read(shared)
            return lambda: read
        self._view = self._view or PolicyView(self._weights.policy)
        self._view.refresh()
        # Named now: a pass puts other tensors in their place for a while.
        trained = [*self._weights.whole()]
        return partial(self._read, self._passes(self._view.policy, trained))

    def _read(self, passes: Passes) -> Read:
        assert self._outbox is not None
        on_device: dict[str, Fingerprint] = {}
        sent = iter(passes.sent)

        def cast() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in next(sent):
                if tensor.device.type != "cpu":  # which takes no time to do it
                    tensor = tensor.to(travels_in(tensor.shape, self._dtype))
                    on_device[name] = fingerprint(tensor.to(self._dtype))
                yield name, tensor

        self._outbox.stage(cast)
        (probed,) = passes.probed
        return Read(on_device, *probed, self._put_trainer_weights(passes.trained))

    def _sent(self, policy: CausalLMPolicy) -> Iterator[tuple[str, Tensor]]:
        """Yields what engines load of a version."""
        if self._sends_adapters:
            return policy.adapter_weights()
        return policy.inference_weights()

    def _send(
        self,
        version: int,
        serial: int,
        read: Callable[[], Read],
        check: Callable[[], None],
    ) -> None:
        """Copies and describes a version, and lets engines have it."""
        assert self._outbox is not None
        try:
            try:
                taken = read()
            finally:
                self._is_read.set()
            published = PublishedWeights(
                version=version,
                expected=self._describe(taken, check),
                weights=self._outbox.show(serial, check),
                trainer_weights=taken.trainer_weights,
                serial=serial,
            )
            self._tell("publish", [published])
        except Exception as error:
            # The driver may be waiting for episodes that only these weights bring.
            self._tell("fail", f"publishing: {error!r}")
            raise
        self._is_out = True

    def _tell(self, method: str, what: Any) -> None:
        """Calls the coordinator from a thread that may outlive Ray.

        After `ray.shutdown()` a call would connect anew: with a cluster that is gone,
        which ends the process, or with one that it starts.
        """
        if ray.is_initialized():
            with contextlib.suppress(ActorDiedError):
                ray.get(getattr(self._coordinator, method).remote(what))

    def _describe(self, read: Read, check: Callable[[], None]) -> ExpectedArrival:
        assert self._outbox is not None
        fingerprints = {
            name: read.on_device.get(name)
            or _fingerprint(tensor.to(self._dtype), check)
            for name, tensor in self._outbox.staged.items()
        }
        return ExpectedArrival(fingerprints, read.probe_tokens, read.probe_logp)

    def _put_trainer_weights(
        self, trained: Iterable[tuple[str, Tensor]]
    ) -> ray.ObjectRef | None:
        """The trained weights as they are, for `OldLogitActor`; None if unused."""
        if not (self._has_old_logit_actors and ray.is_initialized()):  # see `_tell`
            return None
        return ray.put({name: tensor.detach().cpu() for name, tensor in trained})

    # --- What precedes them -------------------------------------------------------

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


def _fingerprint(tensor: Tensor, check: Callable[[], None]) -> Fingerprint:
    """Of a tensor in host memory, where it takes its time."""
    rows = tensor.reshape(-1, tensor.shape[-1] if tensor.dim() > 1 else 1)
    prints = []
    for part in rows.split(max(1, PIECE // max(1, rows.shape[1]))):
        check()
        prints.append(fingerprint(part))
    return add_fingerprints(prints)


def _get(sampled: ray.ObjectRef) -> list[dict[str, np.ndarray]]:
    """What a runner has sampled; nothing if that went down with the runner."""
    try:
        return ray.get(sampled)
    except ObjectLostError:
        return []
