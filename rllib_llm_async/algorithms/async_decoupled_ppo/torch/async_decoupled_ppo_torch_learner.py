"""The torch Learner: old log-probabilities, the decoupled loss, versions, publishing.

One `update()` is: episodes -> packed rows -> pi_old from the chosen source -> clipped
and masked gradient steps -> if the weights moved, version v + 1 goes to the source
(EWMA, snapshots) and to the engines.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

import ray
import torch
from ray.exceptions import ObjectLostError
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.utils.annotations import override
from torch import Tensor

from rllib_llm_async import columns, result_keys
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.minibatches import (
    TokenMeans,
    loss_divisor,
    minibatches,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.weight_publisher import (
    WeightPublisher,
)
from rllib_llm_async.core import (
    decoupled_ppo_loss,
    kl_penalty,
    ratio_density,
    ratio_metrics_by_lag,
)
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from rllib_llm_async.models.hf_causal_lm import ENTROPY
from rllib_llm_async.old_logprobs import (
    InterpolatedSource,
    InterruptSync,
    OldLogprobSource,
    SourceComparison,
    SourceSettings,
    make_source,
)
from rllib_llm_async.packing import micro_batches
from rllib_llm_async.timeline import Timeline

#: Component of the checkpoint that holds what RLlib's Learner does not know.
ASYNC_STATE = "async_decoupled_ppo"
#: Tokens older than this many versions share the last count of `STALENESS_TOKENS`.
MAX_COUNTED_STALENESS = 32

Batch = dict[str, Tensor]


class AsyncDecoupledPPOTorchLearner(TorchLearner):
    """Learner of `AsyncDecoupledPPO`; holds EWMA weights and version snapshots."""

    @override(TorchLearner)
    def build(self) -> None:
        super().build()
        self._version = 0
        self._num_skipped_steps = 0
        self._publisher: WeightPublisher | None = None
        self._timeline = Timeline(f"learner {self._learner_rank}")
        # Before any checkpoint is loaded: the weights that training starts from.
        self._reference = (
            self._policy.reference_parameters() if self.config.kl_coeff else None
        )
        self._build_sources()

    def _build_sources(self) -> None:
        """Sources that know the current version alone."""
        config = self.config
        settings = SourceSettings.from_config(config)
        self._source = make_source(config.old_logprob_source, settings)
        self._comparison = (
            SourceComparison(self._source, config.compare_sources, settings)
            if config.compare_sources
            else None
        )
        self._show_weights_to_sources()

    @property
    def _policy(self) -> CausalLMPolicy:
        return self.module[DEFAULT_MODULE_ID].unwrapped().policy

    @override(TorchLearner)
    def get_parameters(self, module) -> list[Tensor]:
        return [p for p in module.parameters() if p.requires_grad]

    @override(TorchLearner)
    def configure_optimizers_for_module(self, module_id, config=None) -> None:
        params = self.get_parameters(self._module[module_id])
        self.register_optimizer(
            module_id=module_id,
            optimizer=torch.optim.AdamW(
                params, **{"weight_decay": 0.0, **config.optimizer}
            ),
            params=params,
            lr_or_lr_schedule=config.lr,
        )

    # --- One update ---------------------------------------------------------------

    @override(TorchLearner)
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
        self.before_gradient_based_update(timesteps=timesteps or {})
        self._weights_seq_no += 1
        batch = self._build_batch(training_data or TrainingData(**kwargs))
        if not isinstance(self._source, InterpolatedSource):
            with self._timeline.phase("old logits"):
                batch[columns.OLD_LOGP] = self._old_logp(batch)
        if self._reference is not None:
            batch[columns.REFERENCE_LOGP] = self._forward(batch, self._reference)
        with self._timeline.phase("comparing sources"):
            compared = self._compare_sources(batch)

        totals = TokenMeans()
        self._density = torch.zeros((), dtype=torch.int64, device=self._device)
        num_steps = 0
        with self._timeline.phase("training"):
            for minibatch in minibatches(
                batch,
                num_epochs=num_epochs,
                num_per_epoch=self._num_steps_per_epoch(minibatch_size),
                shuffle_seed=(self._weights_seq_no, self.config.seed or 0)
                if shuffle_batch_per_epoch
                else None,
            ):
                num_steps += self._step(minibatch, totals)

        self._log_update(
            batch, totals.means(), compared, seconds=time.monotonic() - start
        )
        if num_steps:
            with self._timeline.phase("publishing"):
                self._publish_next_version()
        self._timeline.log_to(self.metrics, DEFAULT_MODULE_ID)
        self.after_gradient_based_update(timesteps=timesteps or {})
        return self.metrics.reduce()

    def _build_batch(self, training_data: TrainingData) -> Batch:
        """Episodes to packed rows; whole episodes beyond the bound are masked out."""
        training_data.validate()
        multi_agent_batch = self._make_batch_if_necessary(
            self._fetch_episodes(training_data)
        )
        self._log_steps_trained_metrics(multi_agent_batch)
        batch: Batch = dict(multi_agent_batch[DEFAULT_MODULE_ID])
        stale = batch[columns.LOSS_MASK] & (
            self._version - batch[columns.VERSIONS] > self.config.max_staleness
        )
        self._drop_episodes(batch, stale, result_keys.NUM_EPISODES_DROPPED_STALE)
        return batch

    def _drop_episodes(self, batch: Batch, tokens: Tensor, counter: str) -> None:
        """Masks out the whole episodes of some tokens, and counts them."""
        sequences = batch[columns.SEQUENCE_IDS]
        dropped = sequences[tokens].unique()
        batch[columns.LOSS_MASK] = batch[columns.LOSS_MASK] & ~torch.isin(
            sequences, dropped
        )
        self._log({counter: len(dropped)}, "lifetime_sum")

    def _fetch_episodes(self, training_data: TrainingData) -> TrainingData:
        """Gets referenced groups; one that went down with its node is counted."""
        if training_data.episodes_refs is None:
            training_data.solve_refs()
            return training_data
        episodes: list[Any] = []
        num_lost = 0
        for reference in training_data.episodes_refs:
            try:
                episodes += ray.get(reference)
            except ObjectLostError:
                num_lost += self.config.group_size
        self._log({result_keys.NUM_EPISODES_DROPPED_LOST: num_lost}, "lifetime_sum")
        return TrainingData(episodes=episodes)

    def _old_logp(self, batch: Batch) -> Tensor:
        """log pi_old ``[rows, length]`` from the configured source."""
        start = time.monotonic()
        with torch.no_grad():
            old_logp = self._source.old_logp(batch, self._forward, self._version)
        self._log({result_keys.OLD_LOGPROB_SECONDS: time.monotonic() - start})
        self._drop_episodes(
            batch,
            batch[columns.LOSS_MASK] & old_logp.isnan(),
            result_keys.NUM_EPISODES_DROPPED_UNSCORED,
        )
        return old_logp

    def _compare_sources(self, batch: Batch) -> dict[str, float]:
        if self._comparison is None:
            return {}
        with torch.no_grad():
            return self._comparison.measure(
                batch, self._forward, self._version, batch.get(columns.OLD_LOGP)
            )

    def _forward(
        self, batch: Mapping[str, Tensor], parameters: Mapping[str, Tensor] | None
    ) -> Tensor:
        """log pi ``[rows, length]`` without gradient; None means current weights."""
        return self._policy.score(batch, parameters, self.config.micro_batch_tokens)

    def _num_steps_per_epoch(self, minibatch_size: int | None) -> int:
        episodes = self.config.episodes_per_update // self._num_learners
        return max(1, round(episodes / (minibatch_size or episodes)))

    def _step(self, minibatch: Batch, totals: TokenMeans) -> int:
        """One optimizer step; returns 0 if it was skipped.

        It is, for a gradient that is not finite and where no learner has a token.
        """
        # Distributed data parallel averages gradients over the learners; the loss is
        # a mean over the tokens (or episodes) of all of them.
        minibatch[columns.LOSS_DIVISOR], total = loss_divisor(
            minibatch, self.config.loss_normalizer
        )
        total = self._sum_over_learners(total)
        if not total:
            return 0
        scale = self._num_learners / total.clamp(min=1)
        for optimizer in self._optimizer_parameters:
            optimizer.zero_grad(set_to_none=True)
        module = self.module[DEFAULT_MODULE_ID]
        parts = list(micro_batches(minibatch, self.config.micro_batch_tokens))
        for index, micro_batch in enumerate(parts):
            last = index == len(parts) - 1
            sync = last or self._num_learners == 1
            with contextlib.nullcontext() if sync else module.no_sync():
                fwd_out = module.forward_train(micro_batch)
                loss = self.compute_loss_for_module(
                    module_id=DEFAULT_MODULE_ID,
                    config=self.config,
                    batch=micro_batch,
                    fwd_out=fwd_out,
                )
                (loss * scale).backward()
            totals.add(self._micro_batch_metrics, micro_batch[columns.LOSS_MASK].sum())
        gradients = self.postprocess_gradients(
            {ref: p.grad for ref, p in self._params.items() if p.grad is not None}
        )
        finite = all(torch.isfinite(g).all() for g in gradients.values())
        if not finite:
            self._num_skipped_steps += 1
            return 0
        self.apply_gradients(gradients)
        return 1

    @override(TorchLearner)
    def compute_loss_for_module(
        self, *, module_id, config, batch: Batch, fwd_out: dict[str, Tensor]
    ) -> Tensor:
        """Sum over agent tokens of the loss (`core.objective`), a scalar."""
        logp, mask = fwd_out[Columns.ACTION_LOGP], batch[columns.LOSS_MASK]
        ratio_inputs = {
            "old_logp": self._source.interpolate(batch, logp, self._version)
            if isinstance(self._source, InterpolatedSource)
            else batch[columns.OLD_LOGP],
            "behavior_logp": batch[columns.BEHAVIOR_LOGP],
            "advantages": batch[columns.ADVANTAGES],
            "mask": mask,
            "eps_ti": config.eps_ti,
            "eps_stale": config.eps_stale,
        }
        unit_column = {
            "turn": columns.TURN_IDS,
            "sequence": columns.SEQUENCE_IDS,
        }.get(config.ratio_level)
        loss, metrics = decoupled_ppo_loss(
            logp,
            is_cap=config.is_cap,
            ratio_level=config.ratio_level,
            unit_ids=batch[unit_column] if unit_column else None,
            normalizer=batch[columns.LOSS_DIVISOR],
            **ratio_inputs,
        )
        if self._reference is not None:
            penalty, metrics["kl_to_reference"] = kl_penalty(
                logp,
                batch[columns.REFERENCE_LOGP],
                mask,
                normalizer=batch[columns.LOSS_DIVISOR],
            )
            loss = loss + config.kl_coeff * penalty
        if Columns.VF_PREDS in fwd_out:
            weights = batch[columns.VALUE_WEIGHTS] * mask
            errors = (fwd_out[Columns.VF_PREDS] - batch[columns.VALUE_TARGETS]).square()
            value_loss = (weights * errors / batch[columns.LOSS_DIVISOR]).sum() / 2
            loss = loss + config.vf_loss_coeff * value_loss
            total = weights.sum().clamp(min=1)
            metrics["vf_loss"] = (weights * errors).detach().sum() / total / 2
        lags = self._version - batch[columns.VERSIONS]
        self._density = self._density + ratio_density(
            logp.detach(),
            ratio_inputs["old_logp"],
            ratio_inputs["behavior_logp"],
            mask,
        )
        self._micro_batch_metrics = {
            **metrics,
            **ratio_metrics_by_lag(logp.detach(), lags=lags, **ratio_inputs),
            ENTROPY: fwd_out[ENTROPY].detach().sum() / mask.sum().clamp(min=1),
        }
        return loss

    @property
    def _num_learners(self) -> int:
        return max(1, self.config.num_learners)

    def _sum_over_learners(self, value: Tensor) -> Tensor:
        if self._num_learners > 1:
            torch.distributed.all_reduce(value)
        return value

    # --- Metrics ------------------------------------------------------------------

    def _log_update(
        self,
        batch: Batch,
        means: dict[str, float],
        compared: dict[str, float],
        seconds: float,
    ) -> None:
        mask = batch[columns.LOSS_MASK]
        lags = (self._version - batch[columns.VERSIONS])[mask]
        tokens = batch[columns.SEQUENCE_IDS] >= 0
        width = float(lags.max()) if len(lags) else 0.0
        shares = {self._source: means.get("train_infer_mask", 0.0)}
        if self._comparison is not None:
            for name, source in self._comparison.shadows.items():
                shares[source] = compared[f"compare/{name}/mask_share"]
        self._observe(shares, len(lags), width)
        self._log(
            {
                **means,
                **compared,
                # Unless the source says otherwise.
                result_keys.OLD_LOGPROB_EXTRA_FORWARD_TOKENS: 0,
                **self._source.metrics(),
                result_keys.STALENESS_MEAN: float(lags.float().mean())
                if len(lags)
                else 0.0,
                result_keys.STALENESS_MAX: width,
                result_keys.STALENESS_TOKENS: self._count_staleness(lags),
                result_keys.RATIO_DENSITY: self._sum_to_tuple(self._density),
                result_keys.POLICY_VERSION: self._version,
                result_keys.TRAIN_TOKENS_PER_S: float(tokens.sum()) / seconds,
                result_keys.PADDING_FRACTION: 1.0 - float(tokens.float().mean()),
                "num_agent_tokens": float(mask.sum()),
                "num_skipped_steps": self._num_skipped_steps,
            }
        )

    def _count_staleness(self, lags: Tensor) -> tuple[int, ...]:
        last = min(self.config.max_staleness, MAX_COUNTED_STALENESS)
        return self._sum_to_tuple(
            torch.bincount(lags.clamp(0, last), minlength=last + 1)
        )

    def _sum_to_tuple(self, counts: Tensor) -> tuple[int, ...]:
        """Counts of all learners; a tuple, since loggers plot lists as histograms."""
        return tuple(self._sum_over_learners(counts).flatten().tolist())

    def _observe(
        self,
        mask_shares: Mapping[OldLogprobSource, float],
        num_tokens: int,
        width: float,
    ) -> None:
        """Shows the sources what this update saw; alike on all learners."""
        kept = torch.tensor([*mask_shares.values(), 1.0], device=self._device)
        *kept_tokens, total = self._sum_over_learners(kept * num_tokens).tolist()
        widest = torch.tensor(width, device=self._device)
        if self._num_learners > 1:
            torch.distributed.all_reduce(widest, torch.distributed.ReduceOp.MAX)
        if not total:
            return
        for source, tokens in zip(mask_shares, kept_tokens, strict=True):
            source.observe(mask_share=tokens / total, staleness_width=float(widest))

    def _log(self, values: Mapping[str, Any], reduce: str = "mean") -> None:
        for key, value in values.items():
            if isinstance(value, str | tuple):
                # RLlib can merge words and counts of one learner only.
                if self._learner_rank == 0:
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

    # --- Versions -----------------------------------------------------------------

    def connect(self, channel: ray.actor.ActorHandle) -> None:
        """Takes the run's `WeightChannel` and publishes the current version to it."""
        self._publisher = WeightPublisher(
            self._policy,
            self.config,
            channel,
            self._forward,
            rank=self._learner_rank,
            num_learners=self._num_learners,
        )
        self._publisher.publish(self._version)

    def _publish_next_version(self) -> None:
        if self._publisher is not None:
            for source in self._sources():
                if isinstance(source, InterruptSync):
                    seconds = self._publisher.score_outgoing(self._version, source)
                    self._log({result_keys.INTERRUPTION_SECONDS: seconds})
        self._version += 1
        self._show_weights_to_sources()
        if self._publisher is not None:
            self._publisher.publish(self._version)

    def _sources(self) -> list[OldLogprobSource]:
        """The source in use, and those that are compared with it."""
        if self._comparison is None:
            return [self._source]
        return [self._source, *self._comparison.shadows.values()]

    def _show_weights_to_sources(self) -> None:
        for source in self._sources():
            source.on_publish(self._version, self._policy.trainable_parameters())

    @property
    def _learner_rank(self) -> int:
        return torch.distributed.get_rank() if self._num_learners > 1 else 0

    # --- Checkpoint ---------------------------------------------------------------

    @override(TorchLearner)
    def get_state(self, components=None, *, not_components=None, **kwargs):
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(ASYNC_STATE, components, not_components):
            state[ASYNC_STATE] = {
                "version": self._version,
                "num_skipped_steps": self._num_skipped_steps,
                "source": self.config.old_logprob_source,
                "source_state": self._source.get_state(),
                "compared_states": self._comparison.get_state()
                if self._comparison is not None
                else {},
            }
        return state

    @override(TorchLearner)
    def set_state(self, state) -> None:
        super().set_state(state)
        if ASYNC_STATE not in state:
            return
        own = state[ASYNC_STATE]
        self._version = own["version"]
        self._num_skipped_steps = own["num_skipped_steps"]
        self._build_sources()
        # Another source chosen on resume starts from today's weights.
        if own["source"] == self.config.old_logprob_source:
            self._source.set_state(own["source_state"])
        if self._comparison is not None:
            self._comparison.set_state(own["compared_states"])
