"""Every setting of `AsyncDecoupledPPOConfig`: its type, and in words what is valid.

Meanings are in the docstrings of the config's methods, defaults in its `__init__`.
RLlib's own settings are here where they act; the others are refused by name.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, Field

from rllib_llm_async.settings.kinds import (
    Amount,
    Attention,
    ClassOrPath,
    Count,
    Decay,
    Level,
    Mapping,
    Name,
    Positive,
    Resources,
    Schedule,
    Share,
    boolean,
    one_of,
    says,
)
from rllib_llm_async.settings.reading import STRICT

#: Settings whose attribute in the config has another name.
ATTRIBUTES = {
    "model": "model_name_or_path",
    "callbacks": "callbacks_class",
    "framework": "framework_str",
}


class ModelSettings(BaseModel):
    """The language model, its engine and how it is spoken to."""

    model: Name = says(
        'a model directory, a hub name like "Qwen/Qwen3-4B", or "small_agent"'
    )
    trust_remote_code: bool = boolean()
    lora: Mapping | None = says("a mapping of arguments of peft.LoraConfig, or null")
    lora_sync: Literal["auto", "adapter", "per_version", "merged"] = one_of(
        "auto", "adapter", "per_version", "merged"
    )
    compute_dtype: Literal["bfloat16"] | None = says(
        "bfloat16, or null for float32 (float16 would need its loss scaled)"
    )
    gradient_checkpointing: bool = boolean()
    attn_implementation: Attention = one_of(*get_args(Attention))
    router_replay: Literal["auto", "none"] = one_of("auto", "none")
    engine: Mapping = says("a mapping of arguments of vllm.AsyncEngineArgs")
    chat_template_kwargs: Mapping = says("a mapping of the template's variables")
    tool_parser: Name = says('"auto" or the name of a tool parser of vLLM')
    reasoning_parser: Name | None = says(
        '"auto", the name of a reasoning parser of vLLM, or null for none'
    )
    temperature: float = says(
        "a number of 0.01 or more (vLLM samples at no less)", ge=0.01
    )
    max_response_tokens: Count = says("a positive whole number of tokens")
    micro_batch_tokens: Count = says("a positive whole number of tokens")
    logits_memory_bytes: Count = says("a positive whole number of bytes")
    learner_sharding: Literal["none", "fsdp2"] = one_of("none", "fsdp2")
    optimizer_offload: bool = boolean()
    weight_transport: Literal["auto", "shared_file", "nccl", "ipc"] = says(
        "one of auto, shared_file, nccl, ipc (vLLM's sharded_rdt would stop all "
        "learners and engines for each transfer, see docs/weights.md)"
    )


class ObjectiveSettings(BaseModel):
    """The loss, and where log pi_old comes from."""

    old_logprob_source: Name = says("the name of a source, e.g. snapshot_old")
    eps_ti: float = says("a ratio bound above 1, e.g. 1.2", gt=1)
    eps_stale: float = says("a ratio bound above 1, e.g. 1.2", gt=1)
    eps_stale_low: Annotated[float, Field(gt=1, lt=2)] | None = says(
        "a ratio bound above 1 and below 2 (the clip's lower end is 2 - eps_stale_low),"
        " or null for eps_stale"
    )
    dual_clip: Annotated[float, Field(gt=1)] | None = says(
        "a ratio bound above 1, or null for none"
    )
    ratio_level: Level = one_of("token", "turn", "sequence")
    mask_level: Level | None = one_of("token", "turn", "sequence", null=True)
    discrepancy_weight: Literal["ratio", "none"] = one_of("ratio", "none")
    is_cap: Positive | None = says("a number above 0, or null for no cap")
    prox_alpha: Share | Literal["staleness"] = says('a number in [0, 1] or "staleness"')
    ewma_decay: Decay | Literal["auto"] = says('a number in [0, 1) or "auto"')
    ewma_reset_threshold: Share = says("a share in [0, 1]")
    advantage_estimator: Literal["group_relative", "rloo", "gae"] = one_of(
        "group_relative", "rloo", "gae"
    )
    lambda_: Share = says("a number in [0, 1]")
    gamma: Share = says("a number in [0, 1]")
    vf_loss_coeff: Amount = says("a number of 0 or more")
    loss_normalizer: Literal["tokens", "sequences", "episodes"] = one_of(
        "tokens", "sequences", "episodes"
    )
    kl_coeff: Amount = says("a number of 0 or more")
    kl_reference: Literal["initial"] = one_of("initial")
    kl_estimator: Literal["k3", "unbiased"] = one_of("k3", "unbiased")
    compare_sources: list[Name] = says("a list of names of sources")
    old_logit_model: Mapping = says("a mapping with num_actors, num_cpus, num_gpus")
    snapshot_memory_bytes: Annotated[int, Field(ge=0)] | None = says(
        "a whole number of bytes, or null for no limit"
    )
    missing_snapshot: Literal["error", "drop"] = one_of("error", "drop")


class OptimizerStepSettings(BaseModel):
    """What a learner does with a batch."""

    lr: Amount | Schedule = says(
        "a number of 0 or more, or a schedule [[0, value], [environment step, value], "
        "...] with rising steps"
    )
    grad_clip: Positive | None = says("a number above 0, or null for none")
    grad_clip_by: Literal["global_norm", "norm", "value"] = one_of(
        "global_norm", "norm", "value"
    )
    optimizer: Mapping = says("a mapping of arguments of torch.optim.AdamW")
    num_epochs: Count = says("a whole number of 1 or more")
    minibatch_size: Count | None = says(
        "a positive whole number of episodes, or null for the whole batch"
    )
    shuffle_batch_per_epoch: bool = boolean()
    log_gradients: bool = boolean()
    torch_ddp_kwargs: Mapping = says("a mapping of DistributedDataParallel's")
    learner_config_dict: Mapping = says("a mapping for a Learner of your own")


class LoopSettings(BaseModel):
    """Generation, updates and evaluation side by side."""

    env_config: Mapping = says("a mapping, e.g. {domains: [airline]}")
    max_staleness: int = says("a whole number of 0 or more versions", ge=0)
    group_size: int = says("a whole number of 2 or more episodes", ge=2)
    drop_uniform_groups: bool = boolean()
    episodes_per_update: Count = says("a positive whole number of episodes")
    num_concurrent_episodes: Count = says("a positive whole number of episodes")
    num_engines_per_env_runner: Count = says("a whole number of 1 or more engines")
    turn_timeout_s: Positive | None = says("a number of seconds above 0, or null")
    episode_timeout_s: Positive | None = says("a number of seconds above 0, or null")
    engine_timeout_s: Positive | None = says("a number of seconds above 0, or null")
    evaluation_interval: Count | None = says(
        "a whole number of 1 or more updates, or null for none"
    )
    evaluation_duration: Count = says("a whole number of 1 or more tasks")
    evaluation_duration_unit: Literal["episodes"] = says(
        "episodes: evaluation_duration counts tasks"
    )
    evaluation_num_trials: Count = says("a whole number of 1 or more")
    evaluation_sample_timeout_s: Positive = says("a number of seconds above 0")
    min_time_s_per_iteration: Amount | None = says("a number of seconds, or null")
    min_train_timesteps_per_iteration: int = says("a whole number, 0 or more", ge=0)
    min_sample_timesteps_per_iteration: int = says("a whole number, 0 or more", ge=0)
    metrics_num_episodes_for_smoothing: Count = says(
        "a positive whole number of episodes"
    )
    callbacks: ClassOrPath = says(
        "a class of RLlibCallback, a list of them, or the path of one like "
        "my_module.MyCallback"
    )
    framework: Literal["torch"] = one_of("torch")


class ClusterSettings(BaseModel):
    """Actors, what each takes of the cluster, and what happens when one fails."""

    num_env_runners: Count = says("a whole number of 1 or more env runners")
    num_cpus_per_env_runner: Amount = says("a number of CPUs, 0 or more")
    num_gpus_per_env_runner: Amount = says("a number of GPUs, 0 or more")
    custom_resources_per_env_runner: Resources = says("a mapping of Ray's resources")
    num_learners: int = says("a whole number of 0 or more learners", ge=0)
    num_cpus_per_learner: Amount | Literal["auto"] = says('a number or "auto"')
    num_gpus_per_learner: Amount = says("a number of GPUs, 0 or more")
    custom_resources_per_learner: Resources = says("a mapping of Ray's resources")
    num_cpus_for_main_process: Amount = says("a number of CPUs, 0 or more")
    custom_resources_for_main_process: Resources = says("a mapping of Ray's resources")
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = (
        one_of("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
    )
    restart_failed_env_runners: bool = boolean()
    ignore_env_runner_failures: bool = boolean()
    max_num_env_runner_restarts: int = says("a whole number of 0 or more", ge=0)
    delay_between_env_runner_restarts_s: Amount = says("a number of seconds")
    env_runner_health_probe_timeout_s: Positive = says("a number of seconds above 0")
    env_runner_restore_timeout_s: Positive = says("a number of seconds above 0")
    num_consecutive_env_runner_failures_tolerance: int = says(
        "a whole number of 0 or more", ge=0
    )
    max_requests_in_flight_per_env_runner: Count = says("a positive whole number")
    validate_env_runners_after_construction: bool = boolean()
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = says(
        "a whole number of 0 or more (below 2**32), or null"
    )
    log_level: Literal["DEBUG", "INFO", "WARN", "ERROR"] = one_of(
        "DEBUG", "INFO", "WARN", "ERROR"
    )
    log_sys_usage: bool = boolean()


class Settings(
    ModelSettings,
    ObjectiveSettings,
    OptimizerStepSettings,
    LoopSettings,
    ClusterSettings,
):
    """All of them."""

    model_config = STRICT


class OldLogitModelSettings(BaseModel):
    """The actors of the source `old_logit_model`."""

    model_config = STRICT

    num_actors: int = Field(1, ge=1, le=1024, description="a whole number, 1 to 1024")
    num_cpus: float = Field(1, ge=0, description="a number of CPUs, 0 or more")
    num_gpus: float = Field(0, ge=0, description="a number of GPUs, 0 or more")
