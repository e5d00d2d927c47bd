"""Every setting with values that it takes, and values that it does not."""

from ray.rllib.callbacks.callbacks import RLlibCallback

BOOL = ([True, False], [("yes", "true or false"), (1, "true or false")])
#: Of whole numbers from 1 on.
_NOT_COUNTS = [0, -1, 1.0, 1.5, True, "2"]
#: Of numbers from 0 on.
_NOT_AMOUNTS = [-0.1, True, "1"]


def says(words, *values):
    return [(value, words) for value in values]


def count(words):
    return [1, 7], says(words, *_NOT_COUNTS, None)


def count_or_null(words):
    return [1, 7, None], says(words, *_NOT_COUNTS)


def from_0(words):
    return [0, 3], says(words, -1, 1.0, True, "2", None)


def amount(words):
    return [0, 0.5, 2], says(words, *_NOT_AMOUNTS, None)


def mapping(words):
    return [{}], says(words, None, [], "text", 1)


def choice(*names, null=False):
    bad = says(names[-1], "other", "", 0, True, [names[0]])
    return [*names, *[None] * null], bad + [(None, names[-1])] * (not null)


RATIO_BOUND = "a ratio bound above 1"
RESOURCES = (
    [{}, {"fast_disk": 0.5}],
    says("a mapping of Ray's resources", None, {"fast_disk": -1}, {"fast_disk": "1"}),
)
PARSER = [3, "", ["hermes"], True]

#: Setting -> values it takes, values it does not with words of the answer.
TABLE = {
    # The model.
    "model": (
        ["small_agent", "Qwen/Qwen3-4B", "/models/mine"],
        says("small_agent", 3, None, "", ["small_agent"], {"fcnet_hiddens": [8]}),
    ),
    "trust_remote_code": BOOL,
    "lora": (
        [None, {}, {"r": 8, "target_modules": "all-linear"}],
        says("a mapping of arguments of peft.LoraConfig", "yes", 8, ["r"], True),
    ),
    "lora_sync": choice("auto", "adapter", "per_version", "merged"),
    "compute_dtype": (
        [None, "bfloat16"],
        [("bf16", "bfloat16"), (16, "bfloat16"), ("float16", "loss scaled")],
    ),
    "gradient_checkpointing": BOOL,
    "attn_implementation": (
        ["auto", "eager", "sdpa", "flex_attention", "flash_attention_2"],
        says("one of auto, eager, sdpa", "packed", "flash", "", None, True, ["sdpa"]),
    ),
    "router_replay": choice("auto", "none"),
    "engine": mapping("a mapping of arguments of vllm.AsyncEngineArgs"),
    "chat_template_kwargs": (
        [{}, {"enable_thinking": False}],
        says("a mapping of the template's variables", None, "enable_thinking"),
    ),
    "tool_parser": (
        ["auto", "hermes"],
        says("the name of a tool parser", None, *PARSER),
    ),
    "reasoning_parser": (
        ["auto", "qwen3", None],
        says("the name of a reasoning parser", *PARSER),
    ),
    "temperature": (
        [0.01, 0.5, 1, 2.0],
        says("a number of 0.01 or more", 0, 0.005, -1, True, "1", None),
    ),
    "max_response_tokens": count("a positive whole number of tokens"),
    "micro_batch_tokens": count("a positive whole number of tokens"),
    "logits_memory_bytes": count("a positive whole number of bytes"),
    "learner_sharding": choice("none", "fsdp2"),
    "optimizer_offload": BOOL,
    "weight_transport": (
        ["auto", "shared_file"],
        says("one of auto, shared_file, nccl, ipc", "sharded_rdt", "", None, 0, True),
    ),
    # The objective.
    "old_logprob_source": (
        ["snapshot_old"],
        says("the name of a source", None, 1, "", ["snapshot_old"]),
    ),
    "eps_ti": ([1.002, 2, 1e6], says(RATIO_BOUND, 1, 0.9, -1, "1.2", True, None)),
    "eps_stale": ([1.2, 1.99, 5], says(RATIO_BOUND, 1.0, 0.2, "1.2", None)),
    "eps_stale_low": ([None, 1.2], says("below 2", 1, 2, 0.8, "1.2", True)),
    "dual_clip": ([None, 3], says("above 1, or null", 1, 0, "3", True)),
    "ratio_level": choice("token", "turn", "sequence"),
    "mask_level": choice("token", "turn", "sequence", null=True),
    "discrepancy_weight": choice("ratio", "none"),
    "is_cap": ([None, 0.5, 2], says("null for no cap", 0, -1, "2", True)),
    "prox_alpha": (
        [0, 0.5, 1, "staleness"],
        says('in [0, 1] or "staleness"', 1.5, -0.1, "stale", None, True),
    ),
    "ewma_decay": (
        [0, 0.9, "auto"],
        says('in [0, 1) or "auto"', 1, 1.0, -0.1, "0.9", None, False),
    ),
    "ewma_reset_threshold": ([0, 0.9, 1], says("a share in [0, 1]", 2, -1, None)),
    "advantage_estimator": choice("group_relative", "rloo", "gae"),
    "lambda_": ([0, 0.95, 1], says("in [0, 1]", 1.1, -0.1, "0.9", None)),
    "gamma": ([0, 0.99, 1], says("in [0, 1]", 1.1, -0.1, "high", None)),
    "vf_loss_coeff": amount("0 or more"),
    "loss_normalizer": choice("tokens", "sequences", "episodes"),
    "kl_coeff": amount("0 or more"),
    "kl_reference": choice("initial"),
    "kl_estimator": choice("k3", "unbiased"),
    "compare_sources": (
        [[], ["rollout", "snapshot_old"]],
        says("a list of names", "rollout", [["rollout"]], [1], None, {"rollout": 1}),
    ),
    "old_logit_model": mapping("a mapping with num_actors"),
    "snapshot_memory_bytes": (
        [None, 0, 1 << 30],
        says("null for no limit", -1, 1e9, "1", True),
    ),
    "missing_snapshot": choice("error", "drop"),
    # The optimizer's step.
    "lr": (
        [0, 1e-5, [[0, 1e-5], [1000, 1e-6]], [(0, 1e-5), (9.5, 0)]],
        says(
            "a number of 0 or more, or a schedule",
            -1e-4,
            True,
            "1e-4",
            None,
            [],
            [[0, 1e-5]],
            [[1, 1e-5], [2, 1e-6]],
            [[0, 1e-5], [0, 1e-6]],
            [[0, 1e-5], [9, -1e-6]],
            [[0, 1e-5], [9]],
            [0, 1],
        ),
    ),
    "grad_clip": ([None, 0.5, 40], says("above 0, or null", 0, -1, "big", True)),
    "grad_clip_by": choice("global_norm", "norm", "value"),
    "optimizer": mapping("a mapping of arguments of torch.optim.AdamW"),
    "num_epochs": count("1 or more"),
    "minibatch_size": count_or_null("a positive whole number of episodes"),
    "shuffle_batch_per_epoch": BOOL,
    "log_gradients": BOOL,
    "torch_ddp_kwargs": mapping("a mapping of DistributedDataParallel's"),
    "learner_config_dict": mapping("a mapping for a Learner of your own"),
    # The loop.
    "env_config": (
        [{}, {"domains": ["airline"]}],
        says("a mapping, e.g. {domains: [airline]}", "airline", None, ["airline"]),
    ),
    "max_staleness": from_0("0 or more versions"),
    "group_size": ([2, 8], says("2 or more episodes", 1, 0, 2.0, "8", True, None)),
    "drop_uniform_groups": BOOL,
    "episodes_per_update": count("a positive whole number of episodes"),
    "num_concurrent_episodes": count("a positive whole number of episodes"),
    "num_engines_per_env_runner": count("a whole number of 1 or more engines"),
    "turn_timeout_s": ([None, 1, 0.5], says("seconds above 0", 0, -1, "10", True)),
    "episode_timeout_s": ([None, 1, 0.5], says("seconds above 0", 0, -1, "10", True)),
    "engine_timeout_s": ([None, 1, 0.5], says("seconds above 0", 0, -1, "10", True)),
    "evaluation_interval": count_or_null("updates, or null for none"),
    "evaluation_duration": (
        [1, 200],
        says("tasks", 0, 1.5, "auto", "10", True, None),
    ),
    "evaluation_duration_unit": (
        ["episodes"],
        says("evaluation_duration counts tasks", "timesteps", 1, None),
    ),
    "evaluation_num_trials": count("1 or more"),
    "evaluation_sample_timeout_s": (
        [1, 0.5],
        says("seconds above 0", 0, -1, "60", None, True),
    ),
    "min_time_s_per_iteration": ([None, 0, 1.5], says("or null", -1, "1", True)),
    "min_train_timesteps_per_iteration": from_0("0 or more"),
    "min_sample_timesteps_per_iteration": from_0("0 or more"),
    "metrics_num_episodes_for_smoothing": count("a positive whole number of episodes"),
    "callbacks": (
        [RLlibCallback, [RLlibCallback, RLlibCallback], "my_module.MyCallback"],
        says("a class of RLlibCallback, a list of them", 3, None, [3], dict, len),
    ),
    "framework": (["torch"], says("torch", "tf2", None, True)),
    # The cluster.
    "num_env_runners": count("1 or more env runners"),
    "num_cpus_per_env_runner": amount("a number of CPUs"),
    "num_gpus_per_env_runner": amount("a number of GPUs"),
    "custom_resources_per_env_runner": RESOURCES,
    "num_learners": from_0("0 or more learners"),
    "num_cpus_per_learner": (["auto", 0, 2.5], says('or "auto"', "2", -1, None, True)),
    "num_gpus_per_learner": amount("a number of GPUs"),
    "custom_resources_per_learner": RESOURCES,
    "num_cpus_for_main_process": amount("a number of CPUs"),
    "custom_resources_for_main_process": RESOURCES,
    "placement_strategy": choice("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"),
    "restart_failed_env_runners": BOOL,
    "ignore_env_runner_failures": BOOL,
    "max_num_env_runner_restarts": from_0("0 or more"),
    "delay_between_env_runner_restarts_s": amount("seconds"),
    "env_runner_health_probe_timeout_s": ([1], says("above 0", 0, -1, "1", None)),
    "env_runner_restore_timeout_s": ([1], says("above 0", 0, -1, "1", None)),
    "num_consecutive_env_runner_failures_tolerance": from_0("0 or more"),
    "max_requests_in_flight_per_env_runner": count("a positive whole number"),
    "validate_env_runners_after_construction": BOOL,
    "seed": ([None, 0, 42], says("below 2**32), or null", -1, 2**32, 1.5, "1", True)),
    "log_level": choice("DEBUG", "INFO", "WARN", "ERROR"),
    "log_sys_usage": BOOL,
}
