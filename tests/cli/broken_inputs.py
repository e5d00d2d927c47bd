"""Experiments and commands that somebody may write, and what the answer has to name.

A line is ``what is written => words; of the answer``. Where no words are given, the
answer has to name the key.
"""

#: Within `config` of an experiment that is right without it.
CONFIG = """
eps_ti: 1 => eps_ti; 1; above 1
eps_ti: 0.2 => eps_ti; 0.2; above 1
eps_ti: -1.2 => eps_ti; above 1
eps_ti: .nan => eps_ti; nan
eps_ti: .inf => eps_ti; inf
eps_ti: "1.2" => eps_ti; '1.2'; above 1
eps_ti: 1,2 => eps_ti
eps_ti: 1.2.3 => eps_ti
eps_ti: [1.2] => eps_ti
eps_ti: {a: 1.2} => eps_ti
eps_ti: => eps_ti; None
eps_ti: true => eps_ti; True
eps_ti: 2001-01-01 => eps_ti
eps_ti: 1:30 => eps_ti; 1:30
seed: 012 => seed; 012
turn_timeout_s: 15:00.5 => turn_timeout_s; 15:00.5
eps_stale: 0.2 => eps_stale; above 1
eps_stale: 2 => eps_stale; eps_stale_low
eps_stale: 2.5 => eps_stale; eps_stale_low
eps_stale: "1.2" => eps_stale
eps_stale_low: 2 => eps_stale_low; below 2
eps_stale_low: 0.2 => eps_stale_low
dual_clip: 1 => dual_clip
dual_clip: -3 => dual_clip
ratio_level: tokens => ratio_level; token, turn, sequence
ratio_level: Token => ratio_level; token
ratio_level: 1 => ratio_level
ratio_level: => ratio_level
mask_level: word => mask_level
discrepancy_weight: off => discrepancy_weight; none
discrepancy_weight: => discrepancy_weight
is_cap: 0 => is_cap
is_cap: -2 => is_cap
is_cap: none => is_cap; null
is_cap: .inf => is_cap
prox_alpha: 1.5 => prox_alpha
prox_alpha: stale => prox_alpha; staleness
prox_alpha: => prox_alpha
ewma_decay: 1 => ewma_decay
ewma_decay: 1.0 => ewma_decay
ewma_decay: automatic => ewma_decay; auto
ewma_decay: -0.1 => ewma_decay
ewma_reset_threshold: 90 => ewma_reset_threshold
ewma_reset_threshold: 90% => ewma_reset_threshold
advantage_estimator: grpo => advantage_estimator; group_relative
advantage_estimator: GAE => advantage_estimator; gae
advantage_estimator: => advantage_estimator
lambda_: 2 => lambda_
lambda: -1 => lambda
gamma: 1.01 => gamma
gamma: high => gamma
vf_loss_coeff: -1 => vf_loss_coeff
loss_normalizer: token-mean => loss_normalizer; tokens
loss_normalizer: 128 => loss_normalizer
kl_coeff: -0.1 => kl_coeff
kl_coeff: small => kl_coeff
kl_reference: ema => kl_reference; initial
kl_estimator: k1 => kl_estimator; k3
compare_sources: snapshot_old => compare_sources; a list
compare_sources: [snapshot_old, snapshot_old] => compare_sources; once
compare_sources: [rollout] => compare_sources; exact
compare_sources: [snapshot] => compare_sources; snapshot_old
compare_sources: [[snapshot_old]] => compare_sources
compare_sources: => compare_sources
old_logprob_source: snapshot => old_logprob_source; snapshot_old
old_logprob_source: recompute => old_logprob_source; current_recompute
old_logprob_source: => old_logprob_source
old_logprob_source: [snapshot_old] => old_logprob_source
old_logit_model: {num_actors: 0} => old_logit_model
old_logit_model: {num_actors: 1.5} => old_logit_model
old_logit_model: {actors: 2} => old_logit_model; num_actors
old_logit_model: 2 => old_logit_model; a mapping
old_logit_model: {num_gpus: -1} => old_logit_model
snapshot_memory_bytes: 4GB => snapshot_memory_bytes
snapshot_memory_bytes: -1 => snapshot_memory_bytes
snapshot_memory_bytes: 1e9 => snapshot_memory_bytes; whole number
missing_snapshot: ignore => missing_snapshot; drop
lr: 1e-4x => lr
lr: "1e-4" => lr; '1e-4'
lr: -1e-4 => lr
lr: .nan => lr
lr: => lr
lr: true => lr
lr: [1e-4, 1e-5] => lr
lr: [[0, 1e-4]] => lr
lr: [[10, 1e-4], [20, 1e-5]] => lr
lr: [[0, 1e-4], [0, 1e-5]] => lr
lr: [[0, 1e-4], [100, -1e-5]] => lr
lr: {start: 1e-4} => lr
grad_clip: 0 => grad_clip
grad_clip: -1 => grad_clip
grad_clip: none => grad_clip; null
grad_clip_by: norm2 => grad_clip_by; global_norm
optimizer: adam => optimizer
optimizer: {lr: 1e-4} => optimizer.lr
optimizer: {betas: 0.9} => optimizer.betas
optimizer: {betas: [0.9]} => optimizer.betas
optimizer: {betas: [0.9, 1.5]} => optimizer.betas
optimizer: {beta1: 0.9} => optimizer.beta1; betas
optimizer: {eps: -1e-8} => optimizer.eps
optimizer: {weight_decay: -0.1} => optimizer.weight_decay
optimizer: {weight_decay: "0.1"} => optimizer.weight_decay
optimizer: {momentum: 0.9} => optimizer.momentum
optimizer: [adamw] => optimizer
num_epochs: 0 => num_epochs
num_epochs: 1.0 => num_epochs
num_epochs: two => num_epochs
minibatch_size: 0 => minibatch_size
minibatch_size: 64.0 => minibatch_size
minibatch_size: true => minibatch_size
minibatch_size: all => minibatch_size; null
shuffle_batch_per_epoch: 1 => shuffle_batch_per_epoch
shuffle_batch_per_epoch: "yes" => shuffle_batch_per_epoch
torch_ddp_kwargs: {find_unused: true} => find_unused; find_unused_parameters
torch_ddp_kwargs: yes => torch_ddp_kwargs
learner_sharding: fsdp => learner_sharding; fsdp2
learner_sharding: zero3 => learner_sharding; fsdp2
weight_transport: sharded_rdt => weight_transport; nccl; docs/weights.md
weight_transport: nccl => weight_transport; num_gpus_per_learner is 0; shared_file
num_engines_per_env_runner: 0 => num_engines_per_env_runner
env_config: airline => env_config
env_config: [airline] => env_config
env_config: => env_config
env_config: {domain: airline} => env_config.domain; domains
env_config: {domains: airline} => env_config.domains
env_config: {domains: [aeroline]} => aeroline; airline
env_config: {domains: []} => env_config.domains
env_config: {domains: [3]} => env_config.domains
env_config: {max_turns: 0} => env_config.max_turns
env_config: {max_turns: many} => env_config.max_turns
max_staleness: -1 => max_staleness
max_staleness: 1.5 => max_staleness
max_staleness: 4.0 => max_staleness
max_staleness: => max_staleness
max_staleness: unlimited => max_staleness
group_size: 1 => group_size
group_size: 8.0 => group_size
group_size: 7 => episodes_per_update; multiple
drop_uniform_groups: maybe => drop_uniform_groups
episodes_per_update: 0 => episodes_per_update
episodes_per_update: 100 => episodes_per_update; multiple
episodes_per_update: 1e2 => episodes_per_update; whole number
num_concurrent_episodes: 4 => num_concurrent_episodes; group_size
num_concurrent_episodes: 0 => num_concurrent_episodes
turn_timeout_s: 0 => turn_timeout_s
turn_timeout_s: 5min => turn_timeout_s
episode_timeout_s: -1 => episode_timeout_s
episode_timeout_s: .inf => episode_timeout_s; null
engine_timeout_s: "300" => engine_timeout_s
evaluation_interval: 0 => evaluation_interval
evaluation_interval: often => evaluation_interval
evaluation_interval: 1.0 => evaluation_interval
evaluation_duration: auto => evaluation_duration
evaluation_duration: 0 => evaluation_duration
evaluation_duration_unit: timesteps => evaluation_duration_unit
evaluation_num_trials: 0 => evaluation_num_trials
evaluation_num_trials: all => evaluation_num_trials
evaluation_sample_timeout_s: 0 => evaluation_sample_timeout_s
metrics_num_episodes_for_smoothing: 0 => metrics_num_episodes_for_smoothing
callbacks: no.such.module.Class => callbacks
callbacks: 3 => callbacks
callbacks: os.path => callbacks
callbacks: NoDots => callbacks
callbacks: os.path.join => callbacks; RLlibCallback
callbacks: json.JSONDecoder => callbacks; RLlibCallback
temperature: 0.0001 => temperature; 0.01
model: ~nosuchuser/x => model; ~nosuchuser/x
model: small_agent/ => model; small_agent/
model: Qwen/Qwen3-4B@main => model; Qwen/Qwen3-4B@main
framework: tf2 => framework; torch
framework: jax => framework; torch
num_env_runners: 0 => num_env_runners
num_env_runners: 1.5 => num_env_runners
num_env_runners: two => num_env_runners
num_env_runners: -1 => num_env_runners
num_cpus_per_env_runner: -1 => num_cpus_per_env_runner
num_cpus_per_env_runner: auto => num_cpus_per_env_runner
num_gpus_per_env_runner: one => num_gpus_per_env_runner
custom_resources_per_env_runner: {disk: -1} => custom_resources_per_env_runner
custom_resources_per_env_runner: disk => custom_resources_per_env_runner
num_learners: -1 => num_learners
num_learners: 1.0 => num_learners
num_cpus_per_learner: all => num_cpus_per_learner
num_gpus_per_learner: -1 => num_gpus_per_learner
placement_strategy: pack => placement_strategy; PACK
restart_failed_env_runners: "true" => restart_failed_env_runners
max_num_env_runner_restarts: -1 => max_num_env_runner_restarts
seed: -1 => seed
seed: 1.5 => seed
seed: random => seed
seed: 99999999999 => seed
log_level: INFOS => log_level; INFO
log_level: info => log_level; INFO
model: => model; small_agent
model: 3 => model; small_agent
model: "" => model; small_agent
model: [small_agent] => model
model: small-agent => model; small_agent
model: /no/such/model => model; /no/such/model
model: ./model => model; ./model
model: a/b/c => model; a/b/c
model: {fcnet_hiddens: [8]} => model
trust_remote_code: "True" => trust_remote_code
lora: true => lora
lora: 8 => lora
lora: {rank: 8} => lora.rank
lora: {r: 0} => lora.r
lora: {r: "8"} => lora.r
lora: {r: 8, lora_alpha: -1} => lora.lora_alpha
lora: {r: 8, lora_dropout: 0.1} => lora.lora_dropout
lora: {r: 8, bias: some} => lora.bias
lora: {r: 8, target_module: [q_proj]} => lora.target_module; target_modules
lora: {r: 8, task_type: CAUSAL_LM} => lora.task_type
lora: {r: 8, init_lora_weights: loftq} => lora.init_lora_weights
lora: {r: 8, target_modules: 3} => lora.target_modules
model: some..body/agent => model; some..body/agent
lora: {r: 8, target_modules: [nope]} => lora; 'nope'; q_proj
lora: {r: 8, target_modules: [q_proj, k_prj]} => lora.target_modules; 'k_prj'; k_proj
lora: {r: 8, target_modules: [q_proj], exclude_modules: [o_prj]} => lora.exclude_modules
lora: {r: 8, layers_to_transform: [0, 9]} => lora.layers_to_transform; 0 to 3
lora: {r: 8, modules_to_save: [lm_hed]} => lora.modules_to_save; lm_head
compute_dtype: bf16 => compute_dtype; bfloat16
compute_dtype: float16 => compute_dtype; bfloat16
compute_dtype: fp32 => compute_dtype; null
gradient_checkpointing: 1 => gradient_checkpointing
attn_implementation: flash => attn_implementation; flash_attention_2
attn_implementation: xformers => attn_implementation
chat_template_kwargs: enable_thinking => chat_template_kwargs
tool_parser: hermes2 => tool_parser; hermes
tool_parser: "" => tool_parser
tool_parser: [hermes] => tool_parser
reasoning_parser: qwen => reasoning_parser
temperature: 0 => temperature
temperature: -1 => temperature
temperature: "0.7" => temperature
temperature: .nan => temperature
max_response_tokens: 0 => max_response_tokens
max_response_tokens: 1e3 => max_response_tokens
max_response_tokens: 4096 => max_response_tokens; max_model_len
micro_batch_tokens: 16k => micro_batch_tokens
micro_batch_tokens: -1 => micro_batch_tokens
logits_memory_bytes: 1e9 => logits_memory_bytes
engine: float32 => engine; a mapping
engine: => engine
engine: {dtype: fp32} => engine.dtype; float32
engine: {dtype: auto} => engine.dtype; float32
engine: {dtype: float32, max_model_len: long} => engine.max_model_len
engine: {dtype: float32, max_model_len: 0} => engine.max_model_len
engine: {dtype: float32, max_num_seqs: 0} => engine.max_num_seqs
engine: {dtype: float32, max_num_seqs: "64"} => engine.max_num_seqs
engine: {dtype: float32, max_num_seq: 64} => engine.max_num_seq; max_num_seqs
engine: {dtype: float32, gpu_memory_utilization: 90} => engine.gpu_memory_utilization
engine: {dtype: float32, gpu_memory_utilization: 0} => engine.gpu_memory_utilization
engine: {dtype: float32, tensor_parallel_size: 0} => engine.tensor_parallel_size
engine: {dtype: float32, tensor_parallel_size: two} => engine.tensor_parallel_size
engine: {dtype: float32, enforce_eager: 1} => engine.enforce_eager
engine: {dtype: float32, kv_cache_memory_bytes: 1GB} => engine.kv_cache_memory_bytes
engine: {dtype: float32, kv_cache_dtype: int3} => engine.kv_cache_dtype
engine: {dtype: float32, block_size: -8} => engine.block_size
engine: {dtype: float32, seed: -1} => engine.seed
engine: {dtype: float32, temperature: 0.7} => engine.temperature
engine: {dtype: float32, top_p: 0.9} => engine.top_p
engine: {dtype: float32, model: x} => engine.model
engine: {dtype: float32, hf_token: abc} => engine.hf_token; HF_TOKEN
engine: {dtype: float32, logprobs_mode: raw_logits} => engine.logprobs_mode
engine: {dtype: float32, max_logprobs: some} => engine.max_logprobs
engine: {dtype: float32, enable_prefix_caching: "no"} => engine.enable_prefix_caching
engine: {dtype: float32, max_tokens: 64} => engine.max_tokens; max_response_tokens
eps_tii: 1.2 => eps_tii; eps_ti
eps-ti: 1.2 => eps-ti; eps_ti
EPS_TI: 1.2 => EPS_TI; eps_ti
3: 1 => 3
1.5: 1 => 1.5
training: {eps_ti: 1.2} => training; stand in config
env_runners: {num_env_runners: 2} => env_runners; stand in config
stop: {training_iteration: 3} => stop; beside config
run: PPOEWMAAsync => run; beside config
env: mini_tau2 => env; beside config
num_samples: 3 => num_samples; beside config
scheduler: asha => scheduler; beside config
max_failures: 3 => max_failures; beside config
seeds: [1, 2] => seeds; seed
"""

#: Names that other libraries have, and ours.
ELSEWHERE = """
num_generations: 8 => group_size
learning_rate: 1e-5 => 'lr'
clip_param: 0.2 => eps_stale; 1.2
clip_ratio: 0.2 => eps_stale
clip_ratio_low: 0.2 => eps_stale_low
clip_ratio_high: 0.28 => eps_stale
clip_ratio_c: 3.0 => dual_clip
clip_range: 0.2 => eps_stale
cliprange: 0.2 => eps_stale
epsilon: 0.2 => eps_stale
epsilon_high: 0.28 => eps_stale
eps_clip: 0.2 => eps_stale
beta: 0.04 => kl_coeff
kl_coef: 0.04 => kl_coeff
kl_loss_coef: 0.001 => kl_coeff
init_kl_coef: 0.2 => kl_coeff
use_kl_loss: true => kl_coeff
kl_target: 0.01 => kl_coeff
num_workers: 2 => num_env_runners
num_rollout_workers: 2 => num_env_runners
num_envs_per_worker: 4 => num_concurrent_episodes
num_envs_per_env_runner: 4 => num_concurrent_episodes
train_batch_size: 64 => episodes_per_update
train_batch_size_per_learner: 64 => episodes_per_update
rollout_batch_size: 64 => episodes_per_update
per_device_train_batch_size: 8 => minibatch_size
gradient_accumulation_steps: 4 => micro_batch_tokens
ppo_mini_batch_size: 64 => minibatch_size
ppo_micro_batch_size: 8 => micro_batch_tokens
ppo_micro_batch_size_per_gpu: 8 => micro_batch_tokens
mini_batch_size: 64 => minibatch_size
sgd_minibatch_size: 64 => minibatch_size
num_sgd_iter: 4 => num_epochs
ppo_epochs: 1 => num_epochs
num_ppo_epochs: 1 => num_epochs
num_iterations: 1 => num_epochs
max_steps: 100 => training_iteration
total_epochs: 3 => training_iteration
total_training_steps: 100 => training_iteration
num_train_epochs: 1 => training_iteration
max_completion_length: 256 => max_response_tokens
max_response_length: 256 => max_response_tokens
max_new_tokens: 256 => max_response_tokens
max_tokens: 256 => max_response_tokens
response_length: 256 => max_response_tokens
max_prompt_length: 512 => engine.max_model_len
max_model_len: 512 => engine.max_model_len
max_seq_len: 512 => engine.max_model_len
gpu_memory_utilization: 0.9 => engine.gpu_memory_utilization
tensor_parallel_size: 2 => engine.tensor_parallel_size
tensor_model_parallel_size: 2 => engine.tensor_parallel_size
dtype: float32 => engine.dtype
max_num_seqs: 64 => engine.max_num_seqs
enforce_eager: true => engine.enforce_eager
weight_decay: 0.1 => optimizer.weight_decay
adam_beta1: 0.9 => optimizer.betas
betas: [0.9, 0.95] => optimizer.betas
max_grad_norm: 1.0 => grad_clip
clip_grad: 1.0 => grad_clip
gradient_clipping: 1.0 => grad_clip
warmup_steps: 10 => lr
warmup_ratio: 0.1 => lr
lr_warmup_steps: 10 => lr
lr_scheduler_type: cosine => lr
lr_schedule: [[0, 1]] => lr
bf16: true => compute_dtype
fp16: true => compute_dtype
load_in_4bit: true => lora
lora_rank: 8 => lora.r
lora_r: 8 => lora.r
lora_alpha: 16 => lora.lora_alpha
lora_dropout: 0.1 => lora
target_modules: [q_proj] => lora.target_modules
peft_config: {r: 8} => lora
use_peft: true => lora
adv_estimator: grpo => advantage_estimator
scale_rewards: true => advantage_estimator
norm_adv_by_std_in_grpo: true => advantage_estimator
use_gae: true => advantage_estimator
use_critic: true => advantage_estimator
lam: 0.95 => lambda_
gae_lambda: 0.95 => lambda_
entropy_coeff: 0.01 => entropy
entropy_coef: 0.01 => entropy
ent_coef: 0.01 => entropy
vf_clip_param: 10 => vf_clip_param
vf_coef: 0.5 => vf_loss_coeff
loss_type: dapo => loss_normalizer
loss_agg_mode: token-mean => loss_normalizer
importance_sampling_level: sequence => ratio_level
num_return_sequences: 8 => group_size
n_samples_per_prompt: 8 => group_size
rollout_n: 8 => group_size
n: 8 => group_size
staleness_threshold: 0.5 => max_staleness
max_head_offpolicyness: 4 => max_staleness
max_off_policy_steps: 4 => max_staleness
max_async_level: 2 => max_staleness
behav_imp_weight_cap: 5 => is_cap
tis_imp_ratio_cap: 2 => is_cap
rollout_is_threshold: 2 => is_cap
vllm_importance_sampling_cap: 2 => is_cap
use_decoupled_loss: true => old_logprob_source
recompute_logprob: true => old_logprob_source
prox_logp_method: loglinear => old_logprob_source
max_concurrent_rollouts: 64 => num_concurrent_episodes
num_envs: 4 => num_concurrent_episodes
eval_steps: 10 => evaluation_interval
eval_interval: 10 => evaluation_interval
test_freq: 10 => evaluation_interval
save_steps: 10 => --checkpoint-freq
save_freq: 10 => --checkpoint-freq
checkpoint_freq: 10 => --checkpoint-freq
logging_steps: 1 => every iteration
output_dir: out => --storage-path
report_to: wandb => --wandb
wandb_project: mine => --wandb
run_name: mine => experiment
experiment_name: mine => experiment
model_name: small_agent => 'model'
model_path: small_agent => 'model'
model_name_or_path: small_agent => 'model'
pretrained: small_agent => 'model'
attn_impl: sdpa => attn_implementation
use_flash_attention_2: true => attn_implementation
top_p: 0.9 => top_p
top_k: 50 => top_k
do_sample: true => temperature
reward_funcs: [mine] => environment
reward_model: mine => environment
dataset_name: mine => environment
num_gpus: 1 => num_gpus_per_learner
num_gpus_per_worker: 1 => num_gpus_per_env_runner
num_cpus_per_worker: 1 => num_cpus_per_env_runner
num_cpus_for_driver: 1 => num_cpus_for_main_process
num_learner_workers: 1 => num_learners
rollout_fragment_length: 100 => episodes_per_update
batch_mode: complete_episodes => batch_mode
evaluation_num_episodes: 10 => evaluation_duration
evaluation_num_workers: 1 => evaluation_num_workers
evaluation_num_env_runners: 1 => evaluation_num_env_runners
evaluation_config: {} => evaluation_config
evaluation_parallel_to_training: true => evaluation_parallel_to_training
observation_filter: MeanStdFilter => observation_filter
explore: false => temperature
exploration_config: {} => temperature
policies: {a: null} => policies
policy_mapping_fn: null => policy_mapping_fn
horizon: 100 => environment
preprocessor_pref: deepmind => preprocessor_pref
compress_observations: true => compress_observations
postprocess_inputs: true => postprocess_inputs
shuffle_buffer_size: 10 => shuffle_buffer_size
input_: sampler => input_
output: x => output
create_env_on_driver: true => create_env_on_driver
create_local_env_runner: true => create_local_env_runner
torch_compile_learner: true => torch_compile_learner
enable_rl_module_and_learner: true => enable_rl_module_and_learner
enable_env_runner_and_connector_v2: true => enable_env_runner_and_connector_v2
disable_env_checking: true => disable_env_checking
keep_per_episode_custom_metrics: true => keep_per_episode_custom_metrics
sample_timeout_s: 60 => sample_timeout_s
simple_optimizer: true => simple_optimizer
"""

#: Of an experiment, beside `config`.
TOP = """
stop: 5 => stop; mapping
stop: [training_iteration] => stop; mapping
stop: => stop; mapping
stop: {iterations: 5} => iterations; training_iteration
stop: {training_iterations: 5} => training_iterations; training_iteration
stop: {training_iteration: "5"} => training_iteration; number
stop: {training_iteration: 0} => training_iteration
stop: {training_iteration: -5} => training_iteration
stop: {training_iteration: 2.5} => training_iteration; whole number
stop: {training_iteration: .inf} => training_iteration
stop: {training_iteration: } => training_iteration
stop: {training_iteration: {grid_search: [1, 2]}} => training_iteration
stop: {timesteps_total: 100} => timesteps_total; num_env_steps_sampled_lifetime
stop: {episode_reward_mean: 1} => episode_reward_mean; env_runners/episode_return_mean
stop: {env_runners.success_rate: 0.9} => env_runners/success_rate
stop: {success_rate: 0.9} => env_runners/success_rate
stop: {env_runners: {success_rate: 0.9}} => env_runners; env_runners/success_rate
stop: {env_runners/sucess_rate: 0.9} => env_runners/success_rate
stop: {time_total: 3600} => time_total_s
stop: {time_total_s: -1} => time_total_s; above 0
stop: {num_env_steps_sampled_lifetime: 0} => num_env_steps_sampled_lifetime; above 0
stop: {env_runners/success_rate: 90} => env_runners/success_rate; 90; at most 1
stop: {env_runners/success_rate/airline: 1.5} => 1.5; a share
stop: {env_runners/sucess_rate/airline: 0.9} => env_runners/success_rate/airline
stop: {env_runners/: 0.9} => env_runners/
stop: {evaluation/env_runners/success_rate: 0.9} => evaluation_interval: null
stop: {3: 4} => stop
config: => config; mapping
config: [eps_ti] => config; mapping
config: eps_ti => config; mapping
configs: {} => configs; config
scheduler: ashaa => scheduler
scheduler: [asha] => scheduler
scheduler: {grace_period: 3} => scheduler
scheduler: {type: asha, graceperiod: 3} => scheduler; graceperiod
scheduler: {type: asha, grace_period: 0} => scheduler
scheduler: {type: asha, reduction_factor: 1} => scheduler
scheduler: {type: pbt} => scheduler
scheduler: {type: asha, grace_period: 200} => scheduler; grace_period must be
scheduler: {type: asha, time_attr: nonsense} => time_attr; nonsense
scheduler: {type: pbt, hyperparam_mutations: {eps_tii: [1.1]}} => eps_tii; eps_ti
time_budget_s: 3 => time_budget_s; num_samples
search_alg: optuna => search_alg
search_alg: optunaa => search_alg
search_alg: 3 => search_alg
num_samples: 0 => num_samples
num_samples: -1 => num_samples
num_samples: 2.5 => num_samples
num_samples: true => num_samples
num_samples: "4" => num_samples
metric: success => metric; env_runners/success_rate
metric: 3 => metric
metric: env_runners/success_rates => metric
mode: maximize => mode; max
mode: => mode
max_failures: -2 => max_failures
max_failures: 1.5 => max_failures
max_failures: many => max_failures
max_failures: true => max_failures
checkpoint_freq: 10 => checkpoint_freq; --checkpoint-freq
checkpoint_config: {} => checkpoint_config; --checkpoint-freq
local_dir: out => local_dir; --storage-path
storage_path: out => storage_path; --storage-path
name: mine => name
resources_per_trial: {} => resources_per_trial
seed: 1 => seed; config
eps_ti: 1.2 => eps_ti; config
num_env_runners: 2 => num_env_runners; config
"""

#: Search spaces, as values in `config`.
SPACES = """
eps_ti: {grid_search: 1.2} => eps_ti; a list
eps_ti: {grid_search: []} => eps_ti; a list
eps_ti: {grid_search: [1.2, 0.5]} => eps_ti; 0.5
eps_ti: {grid_search: [1.2, "1.3"]} => eps_ti; '1.3'
eps_ti: {gridsearch: [1.2, 1.3]} => eps_ti; grid_search
eps_ti: {grid: [1.2, 1.3]} => eps_ti; grid_search
eps_ti: {choice: [1.2, .nan]} => eps_ti; nan
eps_ti: {choice: {a: 1.2}} => eps_ti; a list
eps_ti: {uniform: [1.1]} => eps_ti; [lower, upper]
eps_ti: {uniform: [1.1, 1.2, 1.3]} => eps_ti; [lower, upper]
eps_ti: {uniform: [1.3, 1.1]} => eps_ti; smaller
eps_ti: {uniform: [0.5, 1.3]} => eps_ti; 0.5
eps_ti: {uniform: [a, b]} => eps_ti
eps_ti: {uniform: [1.1, .inf]} => eps_ti; inf
eps_ti: {uniform: 1.1} => eps_ti
eps_ti: {uniform: } => eps_ti
eps_ti: {normal: [1.1, 0.1]} => eps_ti
eps_ti: {loguniform: [0, 1.1]} => eps_ti
eps_ti: {uniform: [true, 2]} => eps_ti
max_staleness: {uniform: [1, 4]} => max_staleness; randint
max_staleness: {loguniform: [1, 4]} => max_staleness; randint
max_staleness: {randint: [1.0, 4.0]} => max_staleness; whole
max_staleness: {randint: [4, 1]} => max_staleness
max_staleness: {randint: [-1, 4]} => max_staleness
group_size: {grid_search: [8, 7]} => episodes_per_update
ratio_level: {uniform: [token, turn]} => ratio_level
ratio_level: {choice: [token, word]} => ratio_level; word
lr: {loguniform: [1e-6, 1e-6]} => lr
lr: {loguniform: ["1e-6", 1e-4]} => lr; '1e-6'
lr: {lograndint: [1, 3]} => lr
lr: {sample_from: x} => lr
engine: {grid_search: [{dtype: float32}, {dtype: fp8}]} => engine.dtype
engine: {dtype: float32, max_num_seqs: {grid_search: [8, 16]}} => engine.max_num_seqs
env_config: {domains: {grid_search: [[airline], [retail]]}} => env_config
grid_search: {eps_ti: [1.2, 1.3]} => grid_search
"""

#: Whole files.
RAW = r"""
2026_11_27: {run: PPOEWMAAsync, env: mini_tau2} => 20261127; quotes
 => {run, env, stop, config}
null => {run, env, stop, config}
3 => {run, env, stop, config}
text => {run, env, stop, config}
[a, b] => {run, env, stop, config}
x: => x
x: 3 => x
x: {} => x; run
x: {run: PPOEWMAAsync} => x; env
x: {env: mini_tau2} => x; run
x: {run: 3, env: mini_tau2} => x; run
x: {run: PPOEWMAAsync, env: [mini_tau2]} => x; env
x: {run: PPO, env: mini_tau2} => run; PPO; PPOEWMAAsync
x: {run: GRPO, env: mini_tau2} => run; GRPO; AsyncDecoupledPPO
x: {run: ppoewmaasync, env: mini_tau2} => run; PPOEWMAAsync
x: {run: PPOEWMAAsync, env: CartPole-v1} => env; CartPole-v1; mini_tau2
x: {run: PPOEWMAAsync, env: mini-tau2} => env; mini_tau2
x: {run: PPOEWMAAsync, env: ""} => env
../x: {run: PPOEWMAAsync, env: mini_tau2} => ../x
/tmp/x: {run: PPOEWMAAsync, env: mini_tau2} => /tmp/x
a/b: {run: PPOEWMAAsync, env: mini_tau2} => a/b
..: {run: PPOEWMAAsync, env: mini_tau2} => ..
"": {run: PPOEWMAAsync, env: mini_tau2} => name
" x": {run: PPOEWMAAsync, env: mini_tau2} => name
"a\nb": {run: PPOEWMAAsync, env: mini_tau2} => name
"a\0b": {run: PPOEWMAAsync, env: mini_tau2} => name
null: {run: PPOEWMAAsync, env: mini_tau2} => name
true: {run: PPOEWMAAsync, env: mini_tau2} => name
1.5: {run: PPOEWMAAsync, env: mini_tau2} => name
[a]: {run: PPOEWMAAsync, env: mini_tau2} => YAML
x: {run: PPOEWMAAsync, env: mini_tau2, run: PPOEWMAAsync} => run; written twice
x: {run: PPOEWMAAsync, env: mini_tau2, config: {lr: 1, lr: 2}} => lr; written twice
x: {run: PPOEWMAAsync, env: mini_tau2, config: {e: {a: 1, a: 2}}} => a; written twice
x: {run: PPOEWMAAsync, env: mini_tau2, config: &c {engine: *c}} => engine; itself
x: {run: PPOEWMAAsync, env: mini_tau2, config: !!python/name:os.system } => tags
x: {run: PPOEWMAAsync env: mini_tau2} => run
x: {run: PPOEWMAAsync, => YAML
x: [ => YAML
x: *nothing => YAML
"x: {run: PPOEWMAAsync => YAML
x: {run: PPOEWMAAsync, env: mini_tau2, config: {<<: 3}} => YAML
%YAML 9 => YAML
@x: 1 => YAML
"""

#: Commands; FILE is a right one.
ARGS = """
trian file FILE => trian; train
train fil FILE => fil; file
train FILE => file
train file => CONFIG_FILE
train file nowhere.yaml => nowhere.yaml
train file . => .
train file FILE FILE => FILE
train file FILE --chekc => --chekc; --check
train file FILE --experiment other => other; mine
train file FILE --set => --set
train file FILE --set eps_ti => eps_ti; key=value
train file FILE --set =3 => key=value
train file FILE --set eps_ti= => eps_ti
train file FILE --set eps_ti:1.2 => key=value
train file FILE --set eps_ti=[ => eps_ti
train file FILE --set eps_ti=1.2 --set eps_ti=1.3 => eps_ti; twice
train file FILE --set eps_ti=1.2 --set training.eps_ti=1.3 => eps_ti; twice
train file FILE --set lambda=0.9 --set lambda_=0.8 => lambda_; twice
train file FILE --set engine.max_num_seqs=8 --set 'engine={}' => engine; undo
train file FILE --set training=1 => training.KEY
train file FILE --set training.=1 => training.KEY
train file FILE --set trainig.eps_ti=1.2 => trainig
train file FILE --set config.eps_ti=1.2 => config
train file FILE --set learners.eps_tii=1 => eps_tii; eps_ti
train file FILE --set engine.max_num_seqs=many => engine.max_num_seqs
train file FILE --set engine.max_num_seqss=8 => engine.max_num_seqs
train file FILE --set engine=1 => engine
train file FILE --set eps_ti.x=1 => eps_ti
train file FILE --set num_samples=3 => num_samples; beside
train file FILE --set stop.training_iteration=3 => stop; beside
train file FILE --set 'eps_ti={grid_search: []}' => eps_ti
train file FILE --stop => --stop
train file FILE --stop 5 => key=value
train file FILE --stop training_iterations=5 => training_iteration
train file FILE --stop training_iteration=five => training_iteration
train file FILE --stop training_iteration=5 --stop training_iteration=6 => twice
train file FILE --stop env_runners.success_rate=0.9 => env_runners/success_rate
train file FILE --stop done=true => done
train file FILE --checkpoint-freq often => --checkpoint-freq
train file FILE --checkpoint-freq -1 => --checkpoint-freq
train file FILE --keep-checkpoints 0 => --keep-checkpoints
train file FILE --max-failures -2 => --max-failures
train file FILE --max-failures x => --max-failures
train file FILE --storage-path '' => --storage-path
train file FILE --storage-path FILE => --storage-path
train file FILE --storage-path s3://bucket/x => --storage-path
train file FILE --storage-path /proc/x => --storage-path; /proc
train file FILE --wandb '' => --wandb
train file FILE --wandb a/b => --wandb; 'a/b'
train file FILE --address '' => --address
train file FILE --resume => --resume
train file FILE --num-env-runners 3 => --num-env-runners; num_env_runners
train file FILE --set num_env_runners=999 --set episodes_per_update=7992 --check => CPUs
evaluate => CHECKPOINT
evaluate nowhere => nowhere
evaluate FILE => FILE
evaluate . => not a checkpoint
evaluate . --num-trials 0 => --num-trials
evaluate . --num-trials -1 => --num-trials
evaluate . --num-trials x => --num-trials
evaluate . --num-tasks 0 => --num-tasks
report => RUN_DIR
report nowhere => nowhere
report . => result.json
report FILE => FILE
report . --out nowhere/x.html => --out
report . --out . => --out
export . => --out
export . --out out => not a checkpoint
example lst => lst; list
example get => NAME
example get mini => mini
example run mini_tau3 => mini_tau3
dashboard => --project
"""

#: `AsyncDecoupledPPOConfig` in Python: calls, then `validate`.
PYTHON = """
training(eps_tii=1.2) => eps_tii; eps_ti
training(learning_rate=1e-4) => learning_rate; lr
training(train_batch_size_per_learner=64) => episodes_per_update
training(clip_param=0.2) => eps_stale
training(model=None) => model
training(model={"fcnet_hiddens": [8]}) => model
training(lr="1e-4") => lr
training(lr=float("nan")) => lr
training(optimizer="adam") => optimizer
training(eps_ti=0.5) => eps_ti
training(minibatch_size=True) => minibatch_size
training(grad_clip="big") => grad_clip
training(entropy_coeff=0.1) => entropy
training(lambda_=2) => lambda_
training(seed=3) => seed; debugging()
training(num_env_runners=2) => num_env_runners; env_runners()
callbacks(int) => callbacks; RLlibCallback
env_runners(num_env_runners=0) => num_env_runners
env_runners(num_workers=2) => num_workers; num_env_runners
env_runners(num_env_runner=2) => num_env_runner; num_env_runners
env_runners(num_envs_per_env_runner=4) => num_concurrent_episodes
env_runners(rollout_fragment_length=10) => rollout_fragment_length
env_runners(batch_mode="complete_episodes") => batch_mode
env_runners(explore=False) => explore
learners(num_learners=-1) => num_learners
learners(num_gpus_per_learner="one") => num_gpus_per_learner
learners(num_learner=1) => num_learner; num_learners
evaluation(evaluation_interval=0) => evaluation_interval
evaluation(evaluation_num_env_runners=1) => evaluation_num_env_runners
evaluation(evaluation_intervall=1) => evaluation_interval
environment("mini_tau3") => mini_tau3; mini_tau2
environment("mini_tau2", env_config={"domain": ["airline"]}) => domains
environment("mini_tau2", env_config="airline") => env_config
environment("mini_tau2", env_configs={}) => env_configs; env_config
environment(clip_actions=True) => clip_actions
framework("tf2") => framework
debugging(seed=-1) => seed
debugging(sed=1) => sed; seed
reporting(metrics_num_episodes_for_smoothing=0) => metrics_num_episodes_for_smoothing
fault_tolerance(max_num_env_runner_restarts=-1) => max_num_env_runner_restarts
multi_agent(policies={"a", "b"}) => policies
rl_module(model_config={"fcnet_hiddens": [4]}) => model_config; `model`
rl_module(rl_module_spec=None) => rl_module_spec; `model`
environment(lambda config: None) => env; mini_tau2; register_suite
update_from_dict({"eps_tii": 1.2}) => eps_tii; eps_ti
update_from_dict({"eps_ti": "1.2"}) => eps_ti
update_from_dict({"learning_rate": 1e-4}) => lr
__setattr__("eps_tii", 1.2) => eps_tii; eps_ti
__setattr__("eps_ti", -1) => eps_ti
__setattr__("clip_param", 0.2) => clip_param; eps_stale
__setattr__("num_envs_per_env_runner", 4) => num_envs_per_env_runner
"""
