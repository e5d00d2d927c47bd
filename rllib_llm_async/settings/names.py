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
_SCHEDULE = "a list of [environment step, value]"

#: What `run` may be.
ALGORITHMS = ("AsyncDecoupledPPO", "PPOEWMAAsync")
#: By library, its setting and ours; in parentheses what differs beside the name.
ELSEWHERE: dict[str, dict[str, str]] = {
    "TRL": {
        "attn_impl": "attn_implementation",
        "cliprange": f"eps_stale ({_FRACTION})",
        "eval_interval": "evaluation_interval (in updates)",
        "gradient_accumulation_steps": "micro_batch_tokens (in tokens)",
        "load_in_4bit": "lora (of a model that is not quantised)",
        "lora_dropout": "lora (without dropout)",
        "lora_r": "lora.r",
        "lr_warmup_steps": f"lr ({_SCHEDULE})",
        "max_tokens": "max_response_tokens (of one turn)",
        "mini_batch_size": "minibatch_size (in episodes)",
        "model_name": "model",
        "model_name_or_path": "model",
        "num_mini_batches": "minibatch_size (in episodes)",
        "num_ppo_epochs": "num_epochs",
        "num_return_sequences": "group_size",
        "response_length": "max_response_tokens (of one turn)",
        "use_peft": "lora",
        "vf_coef": "vf_loss_coeff",
        "warmup_ratio": f"lr ({_SCHEDULE})",
        "warmup_steps": f"lr ({_SCHEDULE})",
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
        "lr_scheduler_type": f"lr ({_SCHEDULE})",
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
        "clip_grad": "grad_clip",
        "max_seq_len": "engine.max_model_len (of the whole dialogue)",
        "model_path": "model",
        "ppo_micro_batch_size": "micro_batch_tokens (in tokens)",
        "rollout_n": "group_size",
        "use_flash_attention_2": "attn_implementation (flash_attention_2)",
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
    "OpenRLHF": {
        "gradient_clipping": "grad_clip",
        "init_kl_coef": "kl_coeff",
        "kl_target": "kl_coeff (fixed)",
        "n_samples_per_prompt": "group_size",
        "pretrain": "model",
        "pretrained": "model",
        "rollout_batch_size": "episodes_per_update (in episodes)",
    },
    "prime-rl": {
        "max_async_level": "max_staleness (in versions)",
        "max_off_policy_steps": "max_staleness (in versions)",
    },
    "Stable-Baselines3": {
        "clip_range": f"eps_stale ({_FRACTION})",
        "n_epochs": "num_epochs",
        "n_steps": "episodes_per_update (in episodes)",
    },
    "RLlib": {
        "num_envs": "num_concurrent_episodes (per env runner)",
        "clip_param": f"eps_stale ({_FRACTION})",
        "evaluation_num_episodes": "evaluation_duration (in tasks)",
        "lr_schedule": f"lr ({_SCHEDULE})",
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
#: Groups of settings, by which `--set` may name one.
GROUPS = (
    "training",
    "environment",
    "env_runners",
    "learners",
    "evaluation",
    "resources",
    "debugging",
    "fault_tolerance",
)
_SUITE = "an environment has its own tasks and rewards, see env and env_config"
_ENTROPY = "there is no entropy bonus"
_CHECKPOINTS = "`rllib train` takes it as --checkpoint-freq"
_STORAGE = "`rllib train` takes it as --storage-path"
_NAME = "the key that the whole experiment stands under is its name"
_ENVIRONMENT = "the environment says what is observed and when an episode ends"
_EVALUATION = "the training env runners evaluate, with their engines, between updates"
#: Names that have no counterpart, and why.
ABSENT: dict[str, str] = {
    **dict.fromkeys(GROUPS, "its settings stand in config by themselves"),
    "batch_mode": "episodes are never cut",
    "checkpoint_config": _CHECKPOINTS,
    "checkpoint_freq": _CHECKPOINTS,
    "clip_actions": _ENVIRONMENT,
    "clip_rewards": _ENVIRONMENT,
    "config": "settings are named without it",
    "count_steps_by": "there is one agent, whose turns are the steps",
    "create_env_on_driver": "env runners are actors of their own",
    "create_local_env_runner": "env runners are actors of their own",
    "custom_evaluation_function": "`evaluate_tasks` takes split and trials",
    "dataset_name": _SUITE,
    "do_sample": "tokens are always sampled; temperature says how",
    "ent_coef": _ENTROPY,
    "entropy_coef": _ENTROPY,
    "entropy_coeff": _ENTROPY,
    "env": _BESIDE,
    "evaluation_config": _EVALUATION,
    "evaluation_num_env_runners": _EVALUATION,
    "evaluation_num_workers": _EVALUATION,
    "evaluation_parallel_to_training": _EVALUATION,
    "explore": "tokens are always sampled; temperature says how",
    "exploration_config": "tokens are always sampled; temperature says how",
    "experiment_name": _NAME,
    "fp16": "gradients in float16 would need loss scaling; compute_dtype: bfloat16",
    "horizon": _ENVIRONMENT,
    "local_dir": _STORAGE,
    "logging_steps": "every iteration is logged",
    "max_failures": _BESIDE,
    "metric": _BESIDE,
    "min_p": _NOT_TRUNCATED,
    "mode": _BESIDE,
    "name": _NAME,
    "normalize_actions": _ENVIRONMENT,
    "num_aggregator_actors_per_learner": "learners read the episodes themselves",
    "num_samples": _BESIDE,
    "observation_filter": _ENVIRONMENT,
    "output_dir": _STORAGE,
    **dict.fromkeys(
        (
            "policies",
            "policies_to_train",
            "policy_mapping_fn",
            "model_config",
            "rl_module_spec",
            "algorithm_config_overrides_per_module",
        ),
        "there is one policy, the language model under `model`",
    ),
    "report_to": "`rllib train` takes --wandb PROJECT",
    "resources_per_trial": "what a trial takes follows from config",
    "reward_funcs": _SUITE,
    "reward_model": _SUITE,
    "run": _BESIDE,
    "run_name": _NAME,
    "save_freq": _CHECKPOINTS,
    "save_steps": _CHECKPOINTS,
    "scheduler": _BESIDE,
    "search_alg": _BESIDE,
    "stop": _BESIDE,
    "storage_path": _STORAGE,
    "torch_skip_nan_gradients": "a step with such gradients is always left out",
    "top_k": _NOT_TRUNCATED,
    "top_p": _NOT_TRUNCATED,
    "use_kl_in_reward": "a penalty is part of the loss, kl_coeff weighs it",
    "vf_clip_param": "the value head's error is not clipped",
    "wandb_project": "`rllib train` takes --wandb PROJECT",
}


def nearest(name: object, valid: Iterable[str], cutoff: float = _CUTOFF) -> str | None:
    """The valid name that looks most like ``name``, if any does."""
    by_plain = {_plain(word): word for word in valid}
    near = difflib.get_close_matches(_plain(name), by_plain, n=1, cutoff=cutoff)
    return by_plain[near[0]] if near else None


def _plain(name: object) -> str:
    """Without what one easily writes otherwise: capitals, hyphens."""
    return str(name).lower().replace("-", "_")


def did_you_mean(name: object, valid: Iterable[str]) -> str:
    """``, did you mean 'x'?`` or nothing."""
    near = nearest(name, valid)
    return "" if near is None else f", did you mean {near!r}?"


def unknown(name: object, valid: Iterable[str]) -> str:
    """``unknown 'y', did you mean 'x'? Valid: ...`` for a name out of a short list."""
    valid = list(valid)
    near = did_you_mean(name, valid) or "."
    return f"unknown {name!r}{near} Valid: {', '.join(valid)}"


def is_explained(key: object) -> bool:
    """Whether `explain` knows a counterpart, or why there is none."""
    return key in ABSENT or any(key in names for names in ELSEWHERE.values())


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
