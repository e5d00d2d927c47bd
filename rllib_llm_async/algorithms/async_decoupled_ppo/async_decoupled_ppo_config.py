"""Configuration of AsyncDecoupledPPO: defaults, explanations, validation."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.utils.annotations import override
from ray.util.debug import log_once

from rllib_llm_async.chat.check import check_chat_format
from rllib_llm_async.envs.registry import check_suite
from rllib_llm_async.models.resolve import (
    absolute_model,
    check_model,
    local_copy,
    resolve_model,
)
from rllib_llm_async.models.served_adapters import ServedAdapters, served_adapters
from rllib_llm_async.settings.arguments import check_arguments, explained
from rllib_llm_async.settings.check import SETTINGS, check_settings, check_value
from rllib_llm_async.settings.names import explain
from rllib_llm_async.settings.reading import refused
from rllib_llm_async.settings.schema import OldLogitModelSettings
from rllib_llm_async.settings.transport import READS, chosen_transport

if TYPE_CHECKING:
    from rllib_llm_async.chat import ChatFormat


class AsyncDecoupledPPOConfig(AlgorithmConfig):
    """Defines a configuration from which an `AsyncDecoupledPPO` can be built.

    .. code-block:: python

        config = (
            AsyncDecoupledPPOConfig()
            .environment("mini_tau2", env_config={"domains": ["airline"]})
            .training(model="small_agent", old_logprob_source="snapshot_old")
        )
        algo = config.build_algo()
    """

    def __init__(self, algo_class=None) -> None:
        from rllib_llm_async.algorithms.async_decoupled_ppo import AsyncDecoupledPPO
        from rllib_llm_async.env_runners.llm_env_runner import LLMEnvRunner

        super().__init__(algo_class=algo_class or AsyncDecoupledPPO)

        # The language model and its engine.
        self.model_name_or_path = "small_agent"
        self.trust_remote_code = False
        self.lora: dict[str, Any] | None = None
        self.lora_sync = "auto"
        self.compute_dtype: str | None = None
        self.gradient_checkpointing = False
        self.attn_implementation = "auto"
        self.router_replay = "auto"
        self.engine: dict[str, Any] = {}
        self.chat_template_kwargs: dict[str, Any] = {}
        self.tool_parser = "auto"
        self.reasoning_parser = "auto"
        self.temperature = 1.0
        self.max_response_tokens = 64
        self.micro_batch_tokens = 16384
        self.logits_memory_bytes = 1_000_000_000
        self.learner_sharding = "none"
        self.optimizer_offload = False
        self.weight_transport = "auto"

        # The objective.
        self.old_logprob_source = "current_recompute"
        self.eps_ti = 1.2
        self.eps_stale = 1.2
        self.eps_stale_low: float | None = None
        self.dual_clip: float | None = None
        self.ratio_level = "token"
        self.mask_level: str | None = None
        self.discrepancy_weight = "ratio"
        self.is_cap: float | None = None
        self.prox_alpha: float | str = 0.5
        self.ewma_decay: float | str = "auto"
        self.ewma_reset_threshold = 0.9
        self.advantage_estimator = "group_relative"
        self.lambda_ = 0.95
        self.vf_loss_coeff = 0.5
        self.loss_normalizer = "tokens"
        self.kl_coeff = 0.0
        self.kl_reference = "initial"
        self.kl_estimator = "k3"
        self.compare_sources: list[str] = []
        self.old_logit_model: dict[str, Any] = {}
        self.snapshot_memory_bytes: int | None = None
        self.missing_snapshot = "error"

        # The asynchronous loop.
        self.max_staleness = 4
        self.group_size = 8
        self.drop_uniform_groups = False
        self.episodes_per_update = 128
        self.num_concurrent_episodes = 64
        self.num_engines_per_env_runner = 1
        self.turn_timeout_s: float | None = 900.0
        self.episode_timeout_s: float | None = 3600.0
        self.engine_timeout_s: float | None = 300.0

        # RLlib settings that differ from AlgorithmConfig's.
        self.lr = 1e-5
        self.grad_clip = 1.0
        self.grad_clip_by = "global_norm"
        self.num_epochs = 1
        # Two steps per update at least: with one, r_s is 1 and the clip never acts.
        self.minibatch_size = 64
        self.shuffle_batch_per_epoch = True
        # RLlib would ask the device twice for each gradient; the Learner asks once.
        self.torch_skip_nan_gradients = True
        self.env_runner_cls = LLMEnvRunner
        self.num_env_runners = 1
        self.num_learners = 0
        self.min_time_s_per_iteration = None
        # Episodes come in groups of one task: 100 of them are a dozen tasks.
        self.metrics_num_episodes_for_smoothing = 256
        self.evaluation_duration = 200
        self.evaluation_num_trials = 1
        self.evaluation_sample_timeout_s = 1800.0
        self.create_local_env_runner = False
        # A week has many faults; one that cannot live any more is an error within the
        # hour.
        self.max_num_env_runner_restarts = 100
        self.delay_between_env_runner_restarts_s = 1.0
        self.gamma = 1.0
        self.exploration_config: dict[str, Any] = {}
        # Weights and connector states never travel through the driver.
        self._dont_auto_sync_env_runner_states = True
        self.broadcast_env_runner_states = False
        self.merge_env_runner_states = False
        # Token sequences are ragged; our own pieces replace RLlib's defaults.
        self.add_default_connectors_to_env_to_module_pipeline = False
        self.add_default_connectors_to_module_to_env_pipeline = False
        self.add_default_connectors_to_learner_pipeline = False

    environment = explained(AlgorithmConfig.environment, "env_config")
    env_runners = explained(AlgorithmConfig.env_runners)
    learners = explained(AlgorithmConfig.learners)
    resources = explained(AlgorithmConfig.resources)
    debugging = explained(AlgorithmConfig.debugging)
    reporting = explained(AlgorithmConfig.reporting)
    fault_tolerance = explained(AlgorithmConfig.fault_tolerance)

    @property
    def model_path(self) -> str:
        """Directory or hub name of ``model``; "small_agent" is the bundled one."""
        return resolve_model(self.model_name_or_path)

    @override(AlgorithmConfig)
    def training(
        self,
        *,
        model: str | os.PathLike | dict | None = NotProvided,
        trust_remote_code: bool | None = NotProvided,
        lora: dict[str, Any] | None = NotProvided,
        lora_sync: str = NotProvided,
        compute_dtype: str | None = NotProvided,
        gradient_checkpointing: bool | None = NotProvided,
        attn_implementation: str | None = NotProvided,
        router_replay: str = NotProvided,
        engine: dict[str, Any] | None = NotProvided,
        chat_template_kwargs: dict[str, Any] | None = NotProvided,
        tool_parser: str | None = NotProvided,
        reasoning_parser: str | None = NotProvided,
        temperature: float | None = NotProvided,
        max_response_tokens: int | None = NotProvided,
        micro_batch_tokens: int | None = NotProvided,
        logits_memory_bytes: int | None = NotProvided,
        learner_sharding: str | None = NotProvided,
        optimizer_offload: bool | None = NotProvided,
        weight_transport: str = NotProvided,
        old_logprob_source: str | None = NotProvided,
        eps_ti: float | None = NotProvided,
        eps_stale: float | None = NotProvided,
        eps_stale_low: float | None = NotProvided,
        dual_clip: float | None = NotProvided,
        ratio_level: str | None = NotProvided,
        mask_level: str | None = NotProvided,
        discrepancy_weight: str | None = NotProvided,
        is_cap: float | None = NotProvided,
        prox_alpha: float | str | None = NotProvided,
        ewma_decay: float | str | None = NotProvided,
        ewma_reset_threshold: float | None = NotProvided,
        advantage_estimator: str | None = NotProvided,
        lambda_: float | None = NotProvided,
        vf_loss_coeff: float | None = NotProvided,
        loss_normalizer: str | None = NotProvided,
        kl_coeff: float | None = NotProvided,
        kl_reference: str | None = NotProvided,
        kl_estimator: str | None = NotProvided,
        compare_sources: list[str] | None = NotProvided,
        old_logit_model: dict[str, Any] | None = NotProvided,
        snapshot_memory_bytes: int | None = NotProvided,
        missing_snapshot: str | None = NotProvided,
        max_staleness: int | None = NotProvided,
        group_size: int | None = NotProvided,
        drop_uniform_groups: bool | None = NotProvided,
        episodes_per_update: int | None = NotProvided,
        num_concurrent_episodes: int | None = NotProvided,
        num_engines_per_env_runner: int | None = NotProvided,
        turn_timeout_s: float | None = NotProvided,
        episode_timeout_s: float | None = NotProvided,
        engine_timeout_s: float | None = NotProvided,
        **kwargs: Any,
    ) -> AsyncDecoupledPPOConfig:
        """Sets the training related configuration.

        Args:
            model: Model directory, hub name, or "small_agent" (bundled).
            trust_remote_code: Run code that comes with ``model``, in learners and
                engines.
            lora: Arguments of `peft.LoraConfig`; None trains all weights.
            lora_sync: "adapter": engines load an adapter's matrices alone, and all
                turns under way go on under them; "per_version": each version is an
                adapter of its own, which a turn keeps to its end, and nothing is
                paused; "merged": engines load all weights, with the adapters in them.
                "auto" is "adapter", or "merged" where vLLM cannot serve these adapters.
            compute_dtype: Autocast dtype of the learner, e.g. "bfloat16"; None
                computes in float32, the dtype of the master weights.
            gradient_checkpointing: Keep the layers' inputs only and compute the rest
                anew in the backward pass: a third more time, for contexts whose
                activations would not fit.
            attn_implementation: Attention of the learner. "auto" takes one that never
                looks from one packed sequence to another, where the model can have it;
                else a name of transformers, e.g. "sdpa" or "flash_attention_2".
            router_replay: "auto": in all passes of a mixture, tokens go to the experts
                that they went to in the engine, where engines tell them; "none":
                learners route by themselves.
            engine: Arguments of `vllm.AsyncEngineArgs`, e.g. ``dtype``,
                ``max_model_len``, ``tensor_parallel_size``.
            chat_template_kwargs: Further variables of the model's chat template, e.g.
                ``{enable_thinking: false}`` for Qwen3.
            tool_parser: Name of the vLLM tool parser that reads the agent's calls;
                "auto" chooses by the model's chat template.
            reasoning_parser: Name of the vLLM reasoning parser that takes thoughts
                out of what the agent says; "auto" as above, None for none.
            temperature: Sampling temperature; the learner divides its logits by it.
            max_response_tokens: Upper bound of generated tokens in one turn.
            micro_batch_tokens: Tokens in one forward/backward pass of a learner, what
                sequences begin with in common counted (and computed) once; gradients
                accumulate over the micro-batches of a minibatch.
            logits_memory_bytes: What logits and their gradients may take in a learner;
                as many tokens go through the vocabulary at a time. What a model makes
                of its logits (a scale, a soft cap) counts.
            learner_sharding: "none": each of the ``num_learners`` holds all weights;
                "fsdp2": each holds its share of weights, gradients, optimizer state
                and old versions, and gathers a decoder layer while it computes.
            optimizer_offload: Keep Adam's moments in host memory but for the optimizer
                step: half of what full fine-tuning holds on a GPU, for the time that
                it takes to move them there and back.
            weight_transport: How weights get from the first learner to the engines:
                "shared_file", over the memory of each node, where what has changed
                travels between nodes; "nccl", from GPU to GPU; "ipc", where learner
                and engines share one GPU. "auto" is "shared_file": it goes with
                everything, and the others have not been run on GPUs yet.
            old_logprob_source: Where log pi_old comes from, see
                `rllib_llm_async.old_logprobs`.
            eps_ti: Bound above 1 of the discrepancy ratio; tokens outside
                [1/eps_ti, eps_ti] are masked.
            eps_stale: Bound above 1 of the staleness ratio, clipped to
                [2 - eps_stale_low, eps_stale].
            eps_stale_low: The same for the lower end, if it is another one; None
                takes eps_stale.
            dual_clip: Bound above 1 on the ratio of tokens with a negative advantage
                (arXiv 1912.09729): their surrogate is at least dual_clip x advantage.
                None leaves it out.
            ratio_level: "token", "turn" or "sequence": the unit whose geometric mean
                forms both ratios.
            mask_level: The same for the ratio that the Train-Infer mask looks at; None
                takes ratio_level.
            discrepancy_weight: "ratio" weighs each token by min(r_d, is_cap), as
                importance sampling asks for; "none" leaves the weight out.
            is_cap: Upper bound of that weight; None sets no bound.
            prox_alpha: Weight of mu_old in `linear_prox` and `interp_prox_loglinear`,
                in [0, 1], or "staleness": 1/d for a token d versions old.
            ewma_decay: Decay of the EWMA weights per version, in [0, 1), or "auto"
                (by staleness; 0.5 with `ewma_prox`).
            ewma_reset_threshold: Share of tokens kept by the mask under which
                `ppo_ewma_async` resets its EWMA.
            advantage_estimator: "group_relative", "rloo" (leave-one-out baseline) or
                "gae" (a value head on the same backbone; ``gamma`` and ``lambda_`` are
                per agent turn).
            lambda_: Decay of the traces of generalised advantage estimation.
            vf_loss_coeff: Weight of the value head's squared error.
            loss_normalizer: What the sum over tokens is divided by: "tokens" of the
                optimizer step; "sequences", the mean over each episode's tokens, then
                over episodes; "episodes", their number alone, so that long episodes
                count for more.
            kl_coeff: Weight of the penalty KL(pi_theta || pi_ref); 0 leaves it and its
                pass out.
            kl_reference: "initial", the weights that training starts from (with LoRA
                the base model with adapters off, at no extra memory).
            kl_estimator: "k3", never negative and of little variance, with a gradient
                that is the one of KL(pi_ref || pi_theta); "unbiased", weighted by
                pi_theta / mu_old, with the gradient of KL(pi_theta || pi_ref) itself.
            compare_sources: Further sources, computed on the same batches only to be
                measured: their error against the exact one is logged.
            old_logit_model: For the source of that name: ``num_actors`` (1) and their
                ``num_cpus`` (1) and ``num_gpus`` (0) each.
            snapshot_memory_bytes: CPU memory for `snapshot_old` in each learner; older
                versions beyond it go to a temporary directory, each a whole copy of
                the weights. None sets no limit.
            missing_snapshot: "error" or "drop": what happens to an episode with tokens
                of a version that is not stored any more; drops are counted.
            max_staleness: Bound on the age of a token at its update, in versions;
                0 is synchronous.
            group_size: Episodes of the same task that form a group.
            drop_uniform_groups: Leave groups whose episodes all earned the same out of
                the batch and wait for others in their place; they are counted.
            episodes_per_update: Episodes that one update consumes, over all learners.
            num_concurrent_episodes: Episodes under way at once in one env runner.
            num_engines_per_env_runner: Engines that an env runner plays its episodes
                on, each of them on the engine that has the fewest. One is best where
                the environments' work fills a core; several, each with its share of
                ``num_gpus_per_env_runner``, where it is little beside an engine's.
            turn_timeout_s: How long an environment (its simulated user, its judge) may
                take for one answer. The episode is then played again, twice at most,
                before its group is dropped and counted. None waits for ever, and so
                does the learner.
            episode_timeout_s: The same for a whole episode, generation included.
            engine_timeout_s: How long an engine may take for one step of generation or
                of a weight update before it is replaced. None waits for ever.
            **kwargs: RLlib's own training settings. ``minibatch_size`` counts
                episodes per optimizer step and learner; ``optimizer`` holds further
                arguments of `torch.optim.AdamW` (``betas``, ``eps``,
                ``weight_decay``; no decay by default).
        """
        values = {
            key: value
            for key, value in locals().items()
            if key not in ("self", "kwargs", "model", "__class__")
        }
        check_arguments(self, AlgorithmConfig.training, kwargs)
        if not isinstance(kwargs.get("optimizer", {}), dict):
            check_value("optimizer", kwargs["optimizer"])
        super().training(**kwargs)
        # A config as a dict has RLlib's own network settings under `model`.
        if model is not NotProvided and model != self.model:
            # What else it may be is checked later.
            if isinstance(model, str | os.PathLike):
                model = absolute_model(os.fspath(model))
            self.model_name_or_path = model  # type: ignore[assignment]
        for key, value in values.items():
            if value is not NotProvided:
                setattr(self, key, value)
        return self

    @override(AlgorithmConfig)
    def evaluation(
        self, *, evaluation_num_trials: int = NotProvided, **kwargs: Any
    ) -> AsyncDecoupledPPOConfig:
        """Sets the evaluation related configuration.

        Args:
            evaluation_num_trials: Episodes per test task; from 2 on, an evaluation
                reports pass@k and pass^k per domain.
            **kwargs: RLlib's own. ``evaluation_duration`` counts test tasks.
        """
        check_arguments(self, AlgorithmConfig.evaluation, kwargs)
        super().evaluation(**kwargs)
        if evaluation_num_trials is not NotProvided:
            self.evaluation_num_trials = evaluation_num_trials
        return self

    @override(AlgorithmConfig)
    def multi_agent(
        self, *, policies_to_train: Any = NotProvided, **kwargs: Any
    ) -> AsyncDecoupledPPOConfig:
        """There is one agent: raises for all arguments but that of RLlib's restore."""
        for key in kwargs:
            raise ValueError(f"multi_agent(): {explain(key, SETTINGS)}")
        super().multi_agent(policies_to_train=policies_to_train)
        return self

    @override(AlgorithmConfig)
    def rl_module(self, **kwargs: Any) -> AsyncDecoupledPPOConfig:
        """The module is the model under ``model``: raises for all arguments."""
        for key in kwargs:
            raise ValueError(f"rl_module(): {explain(key, SETTINGS)}")
        return self

    @override(AlgorithmConfig)
    def validate(self) -> None:
        # Before RLlib, which stumbles over wrong types.
        check_settings(self)
        check_model(self.model_path, self.trust_remote_code)
        check_chat_format(
            self.model_path,
            self.chat_template_kwargs,
            self.tool_parser,
            self.reasoning_parser,
            self.trust_remote_code,
        )
        directory = local_copy(self.model_path)
        # Code of a hub's model lies elsewhere in the cache.
        if directory == self.model_path or (directory and not self.trust_remote_code):
            self._served_adapters(directory)
        if self.env is not None:  # as for a learner alone
            check_suite(self.env, self.env_config)
        # RLlib would print a migration notice about its old API stack, once.
        log_once(f"{self.algo_class.__name__}_on_new_api_stack")
        super().validate()

    def steps_per_epoch(self, minibatch_size: int | None) -> int:
        """Optimizer steps of a learner in one pass over its share of an update."""
        episodes = self.episodes_per_update // max(1, self.num_learners)
        return max(1, round(episodes / (minibatch_size or episodes)))

    @property
    def shards_weights(self) -> bool:
        """Whether each learner holds a share of the weights; one alone holds all."""
        return self.learner_sharding == "fsdp2" and self.num_learners > 1

    @property
    def served_adapters(self) -> ServedAdapters | None:
        """What engines load of each version; None if that is all weights.

        Raises:
            ValueError: If the model cannot be adapted like that, or ``lora_sync`` asks
                for what vLLM cannot serve.
        """
        return self._served_adapters(self.model_path)

    def _served_adapters(self, model: str) -> ServedAdapters | None:
        if self.lora is None:
            return None
        served = served_adapters(
            model, self.lora, trust_remote_code=self.trust_remote_code
        )
        reason = served.merged_because
        if reason and self.lora_sync not in ("auto", "merged"):
            words = f"auto or merged: vLLM cannot serve {reason} as an adapter"
            raise refused("lora_sync", self.lora_sync, words)
        return None if reason or self.lora_sync == "merged" else served

    @property
    def replays_routers(self) -> bool:
        """Whether engines are asked for the experts that they chose."""
        if self.router_replay != "auto":
            return False
        from rllib_llm_async.models.router_replay import router_replay

        return router_replay(
            self.model_path, self.engine, trust_remote_code=self.trust_remote_code
        ).is_on

    @property
    def chosen_transport(self) -> str:
        """Name of the way that weights take to the engines."""
        return chosen_transport({key: getattr(self, key) for key in READS})

    @property
    def needs_old_logit_actors(self) -> bool:
        """Whether a chosen or compared source is scored outside the learners."""
        from rllib_llm_async.old_logprobs import source_class

        return any(
            source_class(name).scores_elsewhere
            for name in [self.old_logprob_source, *self.compare_sources]
        )

    @property
    def old_logit_bundles(self) -> list[dict[str, float]]:
        """What each actor of the source `old_logit_model` asks of Ray, if any."""
        if not self.needs_old_logit_actors:
            return []
        actors = OldLogitModelSettings(**self.old_logit_model)
        return [{"CPU": actors.num_cpus, "GPU": actors.num_gpus}] * actors.num_actors

    @override(AlgorithmConfig)
    def get_default_learner_class(self):
        from rllib_llm_async.algorithms.async_decoupled_ppo.torch import (
            AsyncDecoupledPPOTorchLearner,
        )

        return AsyncDecoupledPPOTorchLearner

    @override(AlgorithmConfig)
    def get_default_rl_module_spec(self):
        from ray.rllib.core.rl_module.rl_module import RLModuleSpec

        from rllib_llm_async.models.hf_causal_lm import HFCausalLM

        return RLModuleSpec(
            module_class=HFCausalLM,
            model_config={
                "model": self.model_path,
                "trust_remote_code": self.trust_remote_code,
                "lora": self.lora,
                "temperature": self.temperature,
                "compute_dtype": self.compute_dtype,
                "gradient_checkpointing": self.gradient_checkpointing,
                "attn_implementation": self.attn_implementation,
                "router_replay": self.replays_routers,
                "logits_memory_bytes": self.logits_memory_bytes,
                "with_value_head": self.advantage_estimator == "gae",
            },
        )

    @override(AlgorithmConfig)
    def build_learner_group(
        self, *, env=None, spaces=None, rl_module_spec=None, placement_group=None
    ):
        from rllib_llm_async.algorithms.async_decoupled_ppo.torch.learner_group import (
            AsyncLearnerGroup,
        )

        return AsyncLearnerGroup(
            config=self.copy(),
            module_spec=rl_module_spec
            or self.get_multi_rl_module_spec(env=env, spaces=spaces),
            placement_group=placement_group,
        )

    @property
    @override(AlgorithmConfig)
    def _model_config_auto_includes(self) -> dict[str, Any]:
        return {}  # nothing of RLlib's own networks applies

    def build_chat_format(self) -> ChatFormat:
        """How the agent's model is spoken to."""
        from rllib_llm_async.chat import ChatFormat

        return ChatFormat.from_pretrained(
            self.model_path,
            self.chat_template_kwargs,
            self.trust_remote_code,
            tool_parser=self.tool_parser,
            reasoning_parser=self.reasoning_parser,
        )

    @override(AlgorithmConfig)
    def build_env_to_module_connector(self, env=None, spaces=None, device=None):
        from rllib_llm_async.connectors.env_to_module import TokenizeMessages

        pipeline = super().build_env_to_module_connector(env, spaces, device)
        pipeline.append(TokenizeMessages(chat_format=self.build_chat_format()))
        return pipeline

    @override(AlgorithmConfig)
    def build_module_to_env_connector(self, env=None, spaces=None):
        from rllib_llm_async.connectors.module_to_env import (
            AttachVersionedLogprobs,
            ParseAssistantMessage,
        )

        pipeline = super().build_module_to_env_connector(env, spaces)
        chat_format = self.build_chat_format()
        # Imports what reads calls, which the event loop should not wait for later.
        chat_format.check_tool_parser()
        pipeline.prepend(ParseAssistantMessage(chat_format=chat_format))
        pipeline.prepend(AttachVersionedLogprobs(routed_experts=self.replays_routers))
        return pipeline

    @override(AlgorithmConfig)
    def build_learner_connector(
        self, input_observation_space, input_action_space, device=None
    ):
        from rllib_llm_async.connectors.learner import (
            GroupRelativeAdvantages,
            LeaveOneOutAdvantages,
            PackEpisodes,
            TurnAdvantages,
        )

        pipeline = super().build_learner_connector(
            input_observation_space, input_action_space, device
        )
        group_advantages = {
            "group_relative": GroupRelativeAdvantages,
            "rloo": LeaveOneOutAdvantages,
        }
        if self.advantage_estimator in group_advantages:
            pipeline.append(group_advantages[self.advantage_estimator]())
        pipeline.append(PackEpisodes(device=device))
        if self.advantage_estimator == "gae":
            pipeline.append(
                TurnAdvantages(
                    gamma=self.gamma,
                    lambda_=self.lambda_,
                    micro_batch_tokens=self.micro_batch_tokens,
                )
            )
        return pipeline
