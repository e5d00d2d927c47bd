"""The torch Learner: old log-probabilities, the decoupled loss, versions, publishing.

One `update()` is: episodes -> packed rows -> pi_old from the chosen source -> clipped
and masked gradient steps -> if the weights moved, version v + 1 goes to the source
(EWMA, snapshots) and to the engines. The loss, what an update reports and what a
checkpoint holds are files of their own beside this one.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.utils.annotations import override
from torch import Tensor

from rllib_llm_async import result_keys
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.episode_fates import (
    EpisodeFates,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.learner_state import (
    ASYNC_STATE,
    get_async_state,
    set_async_state,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.loss import (
    MicroBatchLoss,
    micro_batch_loss,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.minibatches import (
    Step,
    loss_divisor,
    minibatches,
    standardise_turns,
    step_with,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.policy_learner import (
    PolicyLearner,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.policy_weights import (
    Gradients,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.train_episodes import (
    fetch_episodes,
    usable_groups,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.update_metrics import (
    UpdateMetrics,
    batch_metrics,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.weight_publisher import (
    WeightPublisher,
)
from rllib_llm_async.batch import columns
from rllib_llm_async.batch.micro_batches import in_row_order
from rllib_llm_async.coordination import ledger
from rllib_llm_async.core.collectives import learner_rank, sum_over_learners
from rllib_llm_async.core.gradient_cosine import GradientCosine
from rllib_llm_async.monitoring.timeline import Timeline
from rllib_llm_async.old_logprobs import (
    OldLogprobSource,
    SourceSettings,
    SourcesInUse,
)
from rllib_llm_async.settings.saved import saved_settings
from rllib_llm_async.transport.devices import wait_for

Batch = dict[str, Tensor]


class AsyncDecoupledPPOTorchLearner(PolicyLearner):
    """Learner of `AsyncDecoupledPPO`; holds EWMA weights and version snapshots."""

    @override(PolicyLearner)
    def build(self) -> None:
        super().build()
        self._version = 0
        self._num_skipped_steps = 0
        self._gradient_cosine = GradientCosine()
        self._publisher: WeightPublisher | None = None
        self._timeline = Timeline(f"learner {learner_rank()}")
        # Before any checkpoint is loaded: the weights that training starts from.
        self._reference = self._weights.copy() if self.config.kl_coeff else None
        self._build_sources()

    def _build_sources(self) -> None:
        """Sources that know the current version alone."""
        config = self.config
        self._sources = SourcesInUse(
            config.old_logprob_source,
            config.compare_sources,
            SourceSettings.from_config(config),
        )
        self._show_weights_to_sources()

    @property
    def _source(self) -> OldLogprobSource:
        return self._sources.main

    @override(PolicyLearner)
    def configure_optimizers_for_module(self, module_id, config=None) -> None:
        params = self.get_parameters(self._module[module_id])
        arguments = {"weight_decay": 0.0, **config.optimizer}
        if params[0].is_cuda and not arguments.get("foreach"):
            arguments.setdefault("fused", True)
        optimizer = torch.optim.AdamW(params, **arguments)
        self.register_optimizer(
            module_id=module_id,
            optimizer=optimizer,
            params=params,
            lr_or_lr_schedule=config.lr,
        )

    # --- One update ---------------------------------------------------------------

    @override(PolicyLearner)
    def update(
        self,
        *,
        training_data: TrainingData | None = None,
        timesteps: dict[str, Any] | None = None,
        num_epochs: int = 1,
        minibatch_size: int | None = None,
        shuffle_batch_per_epoch: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Trains on whole groups of episodes and publishes the next version.

        Nothing is published, and nothing else changes, where no step was taken. Where
        no learner has a token to train on, `NUM_AGENT_TOKENS` is 0 in the results: that
        was no update, and whoever called has to come again with other episodes.

        Args:
            training_data: References to (or lists of) `SingleAgentEpisode`.
            timesteps: RLlib's lifetime counters, for learning rate schedules.
            num_epochs: Passes over the batch.
            minibatch_size: Episodes per optimizer step; None takes all.
            shuffle_batch_per_epoch: Whether each pass draws its own minibatches.
            **kwargs: The other ways to hand data to a Learner, e.g. ``episodes``.

        Returns:
            This learner's reduced metrics.
        """
        self._check_is_built()
        start = time.monotonic()
        self._weights_seq_no += 1
        batch = self._build_batch(training_data or TrainingData(**kwargs))
        self._add_old_logp(batch)
        if not sum_over_learners(batch[columns.LOSS_MASK].sum()):
            self._log({result_keys.NUM_AGENT_TOKENS: 0})
            self._settle_episodes()
            self._timeline.log_to(self.metrics, DEFAULT_MODULE_ID)
            return self.metrics.reduce()
        self.before_gradient_based_update(timesteps=timesteps or {})
        compared = self._prepare_steps(batch)
        metrics = UpdateMetrics(self._device)
        with self._timeline.phase("training"):
            steps = self._take_steps(
                batch,
                metrics,
                num_epochs=num_epochs,
                num_per_epoch=self.config.steps_per_epoch(minibatch_size),
                shuffle=shuffle_batch_per_epoch,
            )
            wait_for(self._device)
        self._settle_episodes()
        self._log_steps(steps)
        self._log_update(batch, metrics, compared, seconds=time.monotonic() - start)
        if steps[Step.TAKEN]:
            self._publish_next_version()
        self._timeline.log_to(self.metrics, DEFAULT_MODULE_ID)
        self.after_gradient_based_update(timesteps=timesteps or {})
        return self.metrics.reduce()

    def _build_batch(self, training_data: TrainingData) -> Batch:
        """Episodes to packed rows; whole episodes beyond the bound are masked out."""
        training_data.validate()
        episodes, num_lost = fetch_episodes(training_data, self.config.group_size)
        episodes, left_out = usable_groups(episodes)
        self._fates = EpisodeFates(episodes, left_out, self._device)
        counts = {  # there before the first one
            ledger.LOST: num_lost,
            ledger.BAD_REWARD: len(left_out[ledger.BAD_REWARD]),
            ledger.BAD_LOGP: len(left_out[ledger.BAD_LOGP]),
        }
        for reason, count in counts.items():
            self._log_dropped(count, reason)
        multi_agent_batch = self._make_batch_if_necessary(
            TrainingData(episodes=episodes)
        )
        self._log_steps_trained_metrics(multi_agent_batch)
        batch: Batch = dict(multi_agent_batch[DEFAULT_MODULE_ID])
        stale = batch[columns.LOSS_MASK] & (
            self._version - batch[columns.VERSIONS] > self.config.max_staleness
        )
        self._drop_episodes(batch, stale, ledger.STALE)
        return batch

    def _drop_episodes(self, batch: Batch, tokens: Tensor, reason: str) -> None:
        """Masks out the whole episodes of some tokens, and counts them."""
        sequences = batch[columns.SEQUENCE_IDS]
        dropped = sequences[tokens].unique()
        batch[columns.LOSS_MASK] = batch[columns.LOSS_MASK] & ~torch.isin(
            sequences, dropped
        )
        self._fates.drop(dropped, reason)
        self._log_dropped(len(dropped), reason)

    def _add_old_logp(self, batch: Batch) -> None:
        """Adds `OLD_LOGP` from a source that is asked before the first step."""
        if not self._source.needs_pass:
            self._log({result_keys.OLD_LOGPROB_EXTRA_FORWARD_TOKENS: 0})
        else:
            with self._timeline.phase("old logits"):
                batch[columns.OLD_LOGP] = self._old_logp(batch)

    def _old_logp(self, batch: Batch) -> Tensor:
        """log pi_old ``[rows, length]`` from the configured source."""
        start, before = time.monotonic(), self._policy.num_computed_tokens
        with torch.no_grad():
            old_logp = self._source.old_logp(batch, self._forward, self._version)
        computed = self._policy.num_computed_tokens - before
        one_pass = self._policy.tokens_of_a_pass(batch, self.config.micro_batch_tokens)
        self._log(
            {
                result_keys.OLD_LOGPROB_SECONDS: time.monotonic() - start,
                result_keys.OLD_LOGPROB_EXTRA_FORWARD_TOKENS: max(
                    0, computed - one_pass
                ),
            }
        )
        lost = batch[columns.LOSS_MASK] & old_logp.isnan()
        self._drop_episodes(batch, lost, ledger.UNSCORED)
        return old_logp

    def _prepare_steps(self, batch: Batch) -> dict[str, float]:
        """Adds what else the steps need; returns the comparison of sources."""
        if self._reference is not None:
            batch[columns.REFERENCE_LOGP] = self._forward(batch, self._reference)
        if self.config.advantage_estimator == "gae":
            standardise_turns(batch)
        comparison = self._sources.comparison
        if comparison is None:
            return {}
        with self._timeline.phase("comparing sources"), torch.no_grad():
            return comparison.measure(
                batch, self._forward, self._version, batch.get(columns.OLD_LOGP)
            )

    def _forward(
        self, batch: Mapping[str, Tensor], parameters: Mapping[str, Tensor] | None
    ) -> Tensor:
        """log pi ``[rows, length]`` without gradient; None means current weights."""
        logp = self._weights.score(batch, parameters, self.config.micro_batch_tokens)
        wait_for(self._device)  # what a source costs is read off a clock
        return logp

    def _take_steps(
        self,
        batch: Batch,
        metrics: UpdateMetrics,
        *,
        num_epochs: int,
        num_per_epoch: int,
        shuffle: bool,
    ) -> Counter[Step]:
        """All optimizer steps of an update, by what became of them."""
        seed = (self._weights_seq_no, self.config.seed or 0) if shuffle else None
        steps = Counter[Step]()
        for number, minibatch in enumerate(
            minibatches(
                batch,
                num_epochs=num_epochs,
                num_per_epoch=num_per_epoch,
                shuffle_seed=seed,
            )
        ):
            step = self._step(minibatch, metrics)
            steps[step] += 1
            if number < num_per_epoch:
                self._fates.see_step(minibatch, step)
        return steps

    def _step(self, minibatch: Batch, metrics: UpdateMetrics) -> Step:
        # Distributed data parallel averages gradients over the learners; the loss is
        # a mean over the tokens (or episodes) of all of them.
        minibatch[columns.LOSS_DIVISOR], total = loss_divisor(
            minibatch, self.config.loss_normalizer
        )
        total = sum_over_learners(total)
        if not total:
            return Step.WITHOUT_SIGNAL
        self._accumulate_gradients(
            minibatch, self._num_learners / total.clamp(min=1), metrics
        )
        gradients = self._weights.gradients()
        step = step_with(gradients.values())
        if step is Step.TAKEN:
            self._log_cosine(gradients)
            self._finish_reading()
            # RLlib hands nothing back where it logs gradients without clipping them.
            self.apply_gradients(self.postprocess_gradients(gradients) or gradients)
        # Not with the next step: old versions are scored in between, and need the room.
        self._weights.forget_gradients()
        self._num_skipped_steps += step is Step.NOT_FINITE
        return step

    def _accumulate_gradients(
        self, minibatch: Batch, scale: Tensor, metrics: UpdateMetrics
    ) -> None:
        module = self.module[DEFAULT_MODULE_ID]
        parts = list(
            self._policy.micro_batches(minibatch, self.config.micro_batch_tokens)
        )
        kept = []
        waits = self._num_learners > 1 and not self._weights.is_sharded
        for index, (rows, micro_batch) in enumerate(self._policy.in_step(parts)):
            last = index == len(parts) - 1
            with module.no_sync() if waits and not last else contextlib.nullcontext():
                fwd_out = module.forward_train(micro_batch)
                loss = self.compute_loss_for_module(
                    module_id=DEFAULT_MODULE_ID,
                    config=self.config,
                    batch=micro_batch,
                    fwd_out=fwd_out,
                )
                (loss * scale).backward()
            metrics.add(self._micro_batch_loss, micro_batch[columns.LOSS_MASK].sum())
            kept.append((rows, self._micro_batch_loss.kept))
        minibatch[columns.KEPT] = in_row_order(kept)

    @override(PolicyLearner)
    def compute_loss_for_module(
        self, *, module_id, config, batch: Batch, fwd_out: dict[str, Tensor]
    ) -> Tensor:
        """Sum over agent tokens of the loss, a scalar; see `micro_batch_loss`."""
        old_logp = self._source.at_step(
            batch, fwd_out["action_logp"].detach(), self._version
        )
        self._micro_batch_loss: MicroBatchLoss = micro_batch_loss(
            batch, fwd_out, old_logp, config=config, version=self._version
        )
        return self._micro_batch_loss.loss

    @property
    def _num_learners(self) -> int:
        return max(1, self.config.num_learners)

    # --- Metrics ------------------------------------------------------------------

    def _log_steps(self, steps: Counter[Step]) -> None:
        had_signal = bool(steps[Step.TAKEN] or steps[Step.NOT_FINITE])
        self._log(
            {
                result_keys.HAD_SIGNAL: had_signal,
                result_keys.NUM_STEPS_TAKEN: steps[Step.TAKEN],
            }
        )
        if learner_rank() != 0:
            return  # RLlib adds up what are the same steps of all learners
        self._log(
            {
                result_keys.NUM_UPDATES_WITHOUT_SIGNAL: not had_signal,
                result_keys.NUM_STEPS_WITHOUT_SIGNAL: steps[Step.WITHOUT_SIGNAL],
            },
            "lifetime_sum",
        )

    def _log_cosine(self, gradients: Gradients) -> None:
        if self.config.log_gradients:
            cosine = self._gradient_cosine.see(gradients)
            if cosine is not None:
                self._log({result_keys.GRADIENT_COSINE: cosine})

    def _log_update(
        self,
        batch: Batch,
        metrics: UpdateMetrics,
        compared: dict[str, float],
        seconds: float,
    ) -> None:
        means = metrics.means()
        of_batch = batch_metrics(
            batch, self._version, self.config.max_staleness, seconds
        )
        self._sources.see_update(
            means.get(result_keys.TRAIN_INFER_MASK, 0.0),
            compared,
            staleness_width=of_batch[result_keys.STALENESS_MAX],
            device=self._device,
        )
        self._log(
            {
                **means,
                **compared,
                **self._source.metrics(),
                **of_batch,
                result_keys.RATIO_DENSITY: metrics.density(),
                result_keys.NUM_SKIPPED_STEPS: self._num_skipped_steps,
            }
        )

    def _log(self, values: Mapping[str, Any], reduce: str = "mean") -> None:
        for key, value in values.items():
            if isinstance(value, str | tuple):
                # RLlib can merge words and counts of one learner only.
                if learner_rank() == 0:
                    self.metrics.log_value(
                        (DEFAULT_MODULE_ID, key), value, reduce="item"
                    )
                continue
            self.metrics.log_value(
                (DEFAULT_MODULE_ID, key),
                float(value),
                reduce=reduce,
                **({"window": 1} if reduce == "mean" else {}),
            )

    def _log_dropped(self, count: int, reason: str) -> None:
        self._log({result_keys.num_episodes_dropped(reason): count}, "lifetime_sum")

    # --- Versions -----------------------------------------------------------------

    def connect(self, coordinator: ray.actor.ActorHandle) -> None:
        """Takes the run's `Coordinator` and publishes the current version to it."""
        self.shutdown()
        self._publisher = WeightPublisher(
            self._weights,
            self.config,
            coordinator,
            self._forward,
            rank=learner_rank(),
            num_learners=self._num_learners,
        )
        self._publisher.publish(self._version)
        self._publisher.finish_publishing()  # nobody could do anything without it

    def finish_publishing(self) -> None:
        """Waits until engines can have the newest version; see `WeightPublisher`."""
        if self._publisher is not None:
            self._publisher.finish_publishing()

    def _finish_reading(self) -> None:
        """Before the weights change."""
        if self._publisher is not None:
            self._publisher.finish_reading()

    @override(PolicyLearner)
    def shutdown(self) -> None:
        if self._publisher is not None:
            self._publisher.close()
            self._publisher = None

    def _settle_episodes(self) -> None:
        """Tells the ledger what became of this learner's share of the update."""
        if self._publisher is not None:
            self._publisher.settle(self._fates.settled())

    def _publish_next_version(self) -> None:
        if self._publisher is not None:
            for source in self._sources:
                if source.stops_generation:
                    with self._timeline.phase("interruption"):
                        seconds = self._publisher.score_outgoing(self._version, source)
                    self._log({result_keys.INTERRUPTION_SECONDS: seconds})
        self._version += 1
        with self._timeline.phase("publishing"):
            # The engines first: they are busy with the old version for that long.
            if self._publisher is not None:
                self._publisher.publish(self._version)
            self._show_weights_to_sources()

    def _show_weights_to_sources(self) -> None:
        self._sources.on_publish(self._version, self._weights.trainable())

    # --- Checkpoint ---------------------------------------------------------------

    @override(PolicyLearner)
    def _get_own_state(self, components, not_components) -> dict[str, Any]:
        if self._check_component(ASYNC_STATE, components, not_components):
            return {ASYNC_STATE: get_async_state(self)}
        return {}

    @override(PolicyLearner)
    def set_state(self, state) -> None:
        self._finish_reading()
        super().set_state(state)

    @override(PolicyLearner)
    def _set_own_state(self, state: Mapping[str, Any]) -> None:
        if ASYNC_STATE in state:
            set_async_state(self, state[ASYNC_STATE])
        elif COMPONENT_RL_MODULE in state:
            self._build_sources()  # those that are know other weights

    @override(PolicyLearner)
    def restore_from_path(self, path, *, component=None, **kwargs) -> None:
        self._finish_reading()
        super().restore_from_path(path, component=component, **kwargs)
        if component is not None:  # the module alone, past `set_state`
            self._build_sources()

    @override(PolicyLearner)
    def get_metadata(self) -> dict[str, Any]:
        """With what is needed to read the policy as data: version and settings."""
        metadata = {**super().get_metadata(), **saved_settings(self.config)}
        return {**metadata, "policy_version": self._version}

    def load_weights(self, weights: Mapping[str, np.ndarray], version: int) -> None:
        """Takes weights of the policy, see `AsyncDecoupledPPO.load_weights`."""
        self._finish_reading()
        self.module[DEFAULT_MODULE_ID].unwrapped().set_state(weights)
        self._version = version
        self._build_sources()
