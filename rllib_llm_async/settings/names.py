"""Names that are not ours: the nearest of ours, and what other libraries' mean here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import cache

from rllib_llm_async.settings.installed import source_of

#: Under which a similar name is no help.
_CUTOFF = 0.6
_FRACTION = "a ratio bound: 1.2 for 0.2"

#: By library, its setting and ours; in parentheses what differs beside the name.
ELSEWHERE: dict[str, dict[str, str]] = {
    "TRL": {
        "adam_beta1": "optimizer.betas",
        "adam_beta2": "optimizer.betas",
        "adam_epsilon": "optimizer.eps",
        "beta": "kl_coeff",
        "bf16": "compute_dtype (bfloat16)",
        "delta": "dual_clip",
        "epsilon": f"eps_stale ({_FRACTION})",
        "fsdp": "learner_sharding (fsdp2)",
        "fsdp_offload_params": "optimizer_offload (moments, not weights)",
        "epsilon_high": f"eps_stale ({_FRACTION})",
        "eval_steps": "evaluation_interval (in updates)",
        "importance_sampling_level": "ratio_level",
        "learning_rate": "lr",
        "loss_type": "loss_normalizer",
        "lr_scheduler_type": "lr (a list of [environment step, value])",
        "max_completion_length": "max_response_tokens (of one turn)",
        "max_grad_norm": "grad_clip",
        "max_prompt_length": "engine.max_model_len (of the whole dialogue)",
        "max_steps": "stop.training_iteration (beside config)",
        "num_generations": "group_size",
        "num_iterations": "num_epochs",
        "num_train_epochs": "stop.training_iteration (beside config)",
        "peft_config": "lora",
        "per_device_train_batch_size": "minibatch_size (episodes per optimizer step)",
        "scale_rewards": "advantage_estimator",
        "vllm_gpu_memory_utilization": "engine.gpu_memory_utilization",
        "vllm_importance_sampling_cap": "is_cap",
        "vllm_importance_sampling_correction": "discrepancy_weight",
        "vllm_max_model_length": "engine.max_model_len",
        "vllm_tensor_parallel_size": "engine.tensor_parallel_size",
        "weight_decay": "optimizer.weight_decay",
    },
    "verl": {
        "adv_estimator": "advantage_estimator",
        "clip_ratio": f"eps_stale ({_FRACTION})",
        "clip_ratio_c": "dual_clip",
        "clip_ratio_high": f"eps_stale ({_FRACTION})",
        "clip_ratio_low": f"eps_stale_low ({_FRACTION})",
        "enable_gradient_checkpointing": "gradient_checkpointing",
        "gpu_memory_utilization": "engine.gpu_memory_utilization",
        "kl_coef": "kl_coeff",
        "kl_loss_coef": "kl_coeff",
        "kl_loss_type": "kl_estimator",
        "lam": "lambda_",
        "lora_alpha": "lora.lora_alpha",
        "lora_rank": "lora.r",
        "loss_agg_mode": "loss_normalizer",
        "max_num_seqs": "engine.max_num_seqs",
        "max_response_length": "max_response_tokens (of one turn)",
        "n": "group_size",
        "norm_adv_by_std_in_grpo": "advantage_estimator",
        "ppo_epochs": "num_epochs",
        "ppo_max_token_len_per_gpu": "micro_batch_tokens",
        "ppo_micro_batch_size_per_gpu": "micro_batch_tokens (in tokens)",
        "ppo_mini_batch_size": "minibatch_size (episodes per learner)",
        "rollout_is_threshold": "is_cap",
        "staleness_threshold": "max_staleness (in versions)",
        "target_modules": "lora.target_modules",
        "tensor_model_parallel_size": "engine.tensor_parallel_size",
        "test_freq": "evaluation_interval",
        "tis_imp_ratio_cap": "is_cap",
        "total_epochs": "stop.training_iteration (beside config)",
        "total_training_steps": "stop.training_iteration (beside config)",
        "use_kl_loss": "kl_coeff (0 is none)",
    },
    "AReaL": {
        "behav_imp_weight_cap": "is_cap",
        "c_clip": "dual_clip",
        "eps_clip": f"eps_stale ({_FRACTION})",
        "gae_lambda": "lambda_",
        "kl_ctl": "kl_coeff",
        "max_concurrent_rollouts": "num_concurrent_episodes (per env runner)",
        "max_head_offpolicyness": "max_staleness",
        "max_new_tokens": "max_response_tokens",
        "max_tokens_per_mb": "micro_batch_tokens",
        "n_samples": "group_size",
        "ppo_n_minibatches": "minibatch_size (in episodes)",
        "prox_logp_method": "old_logprob_source",
        "recompute_logprob": "old_logprob_source",
        "use_decoupled_loss": "old_logprob_source",
    },
    "RLlib": {
        "clip_param": f"eps_stale ({_FRACTION})",
        "evaluation_num_episodes": "evaluation_duration (in tasks)",
        "lr_schedule": "lr (a list of [environment step, value])",
        "metrics_smoothing_episodes": "metrics_num_episodes_for_smoothing",
        "num_cpus_for_driver": "num_cpus_for_main_process",
        "num_cpus_per_worker": "num_cpus_per_env_runner",
        "num_envs_per_env_runner": "num_concurrent_episodes",
        "num_envs_per_worker": "num_concurrent_episodes",
        "num_gpus": "num_gpus_per_learner",
        "num_gpus_per_learner_worker": "num_gpus_per_learner",
        "num_gpus_per_worker": "num_gpus_per_env_runner",
        "num_learner_workers": "num_learners",
        "num_rollout_workers": "num_env_runners",
        "num_sgd_iter": "num_epochs",
        "num_workers": "num_env_runners",
        "rollout_fragment_length": "episodes_per_update (episodes are never cut)",
        "sgd_minibatch_size": "minibatch_size (in episodes)",
        "train_batch_size": "episodes_per_update (in episodes)",
        "train_batch_size_per_learner": "episodes_per_update (over all learners)",
        "use_critic": "advantage_estimator (gae)",
        "use_gae": "advantage_estimator (gae)",
    },
}
_NOT_TRUNCATED = "tokens are sampled from the whole distribution"
_BESIDE = "it stands beside config, in the experiment itself"
_ENVIRONMENT = "the environment says what is observed and when an episode ends"
_EVALUATION = "the training env runners evaluate, with their engines, between updates"
#: Names that have no counterpart, and why.
ABSENT: dict[str, str] = {
    "batch_mode": "episodes are never cut",
    "checkpoint_freq": "`rllib train` takes it as --checkpoint-freq",
    "clip_actions": _ENVIRONMENT,
    "clip_rewards": _ENVIRONMENT,
    "count_steps_by": "there is one agent, whose turns are the steps",
    "create_env_on_driver": "env runners are actors of their own",
    "create_local_env_runner": "env runners are actors of their own",
    "custom_eval_function": "`evaluate_tasks` of the algorithm takes split and trials",
    "entropy_coeff": "there is no entropy bonus",
    "env": _BESIDE,
    "evaluation_config": _EVALUATION,
    "evaluation_num_env_runners": _EVALUATION,
    "evaluation_num_workers": _EVALUATION,
    "evaluation_parallel_to_training": _EVALUATION,
    "explore": "tokens are always sampled; temperature says how",
    "exploration_config": "tokens are always sampled; temperature says how",
    "fp16": "gradients in float16 would need loss scaling; compute_dtype: bfloat16",
    "min_p": _NOT_TRUNCATED,
    "normalize_actions": _ENVIRONMENT,
    "num_aggregator_actors_per_learner": "learners read the episodes themselves",
    "observation_filter": _ENVIRONMENT,
    "output_dir": "`rllib train` takes it as --storage-path",
    "policies": "there is one policy, the language model under `model`",
    "policies_to_train": "there is one policy, the language model under `model`",
    "policy_mapping_fn": "there is one policy, the language model under `model`",
    "report_to": "`rllib train` takes --wandb PROJECT",
    "run": _BESIDE,
    "save_freq": "`rllib train` takes it as --checkpoint-freq",
    "stop": _BESIDE,
    "torch_skip_nan_gradients": "a step with such gradients is always left out",
    "top_k": _NOT_TRUNCATED,
    "top_p": _NOT_TRUNCATED,
    "use_kl_in_reward": "a penalty is part of the loss, kl_coeff weighs it",
    "vf_clip_param": "the value head's error is not clipped",
}


def nearest(name: object, valid: Iterable[str], cutoff: float = _CUTOFF) -> str | None:
    """The valid name that looks most like ``name``, if any does."""
    near = difflib.get_close_matches(str(name), list(valid), n=1, cutoff=cutoff)
    return near[0] if near else None


def did_you_mean(name: object, valid: Iterable[str]) -> str:
    """``, did you mean 'x'?`` or nothing."""
    near = nearest(name, valid)
    return "" if near is None else f", did you mean {near!r}?"


def unknown(name: object, valid: Iterable[str]) -> str:
    """``unknown 'y', did you mean 'x'? Valid: ...`` for a name out of a short list."""
    valid = list(valid)
    near = did_you_mean(name, valid) or "."
    return f"unknown {name!r}{near} Valid: {', '.join(valid)}"


def explain(key: object, valid: Iterable[str]) -> str:
    """Why ``key`` is no setting, in one line that begins with it."""
    name = str(key)
    for library, names in ELSEWHERE.items():
        if name in names:
            ours, _, note = names[name].partition(" ")
            note = note and f" {note}"
            return f"{name}: {library}'s name, here it is {ours!r}{note}"
    if name in ABSENT:
        return f"{name}: no setting here; {ABSENT[name]}"
    if name in rllib_names():
        return f"{name}: RLlib's does nothing here; leave it out"
    return f"unknown key {name!r}{did_you_mean(name, valid)}"


@cache
def rllib_names() -> frozenset[str]:
    """Settings of the installed RLlib's `AlgorithmConfig`, from its source."""
    source = source_of("ray", "rllib/algorithms/algorithm_config.py")
    return frozenset(re.findall(r"^        self\.([a-z]\w+)(?:: .*)? =", source, re.M))
