"""Result keys, every one once, in the groups in which they stand in a result.

A key of a group is found under `learner(KEY)`, `runners(KEY)` or `evaluation(KEY)`.
``timers/`` and most of what is at the top level, as ``training_iteration``, is RLlib's.
"""


def learner(key: str) -> str:
    """Path of a key of the Learners in a flat result."""
    return f"learners/default_policy/{key}"


def runners(key: str) -> str:
    """Path of a key of the env runners in a flat result."""
    return f"env_runners/{key}"


def evaluation(key: str) -> str:
    """Path of a key of the evaluation's episodes in a flat result."""
    return f"evaluation/env_runners/{key}"


def at_lag(lag: str, key: str) -> str:
    """A key of the ratios for tokens of one lag alone ("0", "3_4", "9_plus" ...)."""
    return f"lag_{lag}/{key}"


def at_entropy(entropy: str, key: str) -> str:
    """A key of the ratios for tokens of one entropy alone ("0", "1e-2", "1e-1", "1":
    nats, up to the next)."""
    return f"entropy_{entropy}/{key}"


def compared(source: str, key: str) -> str:
    """A key of one of the `compare_sources`."""
    return f"compare/{source}/{key}"


def phase_seconds(kind: str, phase: str) -> str:
    """How long in an iteration the time line shows a phase, the mean over its lanes.

    ``kind``: "driver", "learner" or "engine"; ``phase`` as in `TIMELINE`.
    """
    return f"{PHASE_SECONDS}/{kind}/{phase.replace(' ', '_')}"


def num_episodes_dropped(reason: str) -> str:
    """A count of episodes, by the reason for which they were dropped."""
    return f"num_episodes_dropped_{reason}"


def ledger_count(unit: str, fate: str) -> str:
    """What became of all `EPISODES` or `TOKENS` since the start of the run.

    ``fate``: `STARTED`, `TRAINED`, `MASKED`, `IN_FLIGHT` or ``dropped_<reason>``.
    """
    return f"ledger/{unit}/{fate}"


def ledger_bin(by: str, name: str, unit: str, fate: str) -> str:
    """The same of one bin ``name`` of `BY_DOMAIN`, `BY_LENGTH` or `BY_REWARD`.

    ``fate``: `TRAINED`, `MASKED` or `DROPPED`, whatever the reason.
    """
    return f"ledger/{by}/{name}/{unit}/{fate}"


# --- learners/default_policy/: the two ratios, means over agent tokens -------------
#: Share of tokens that the Train-Infer mask keeps.
TRAIN_INFER_MASK = "train_infer_mask"
#: Share of the kept tokens that the clip stops.
PPO_CLIP_FRACTION = "ppo_clip_fraction"
#: Share of tokens kept and not clipped.
ACTIVE_FRACTION = "active_fraction"
#: Mean |log r_d|, KL(mu_old || pi_old), and effective sample size of the weights r_d.
DISCREPANCY_LOG_RATIO_ABS_MEAN = "discrepancy_log_ratio_abs_mean"
#: Mean r_d, 1 but for chance where tokens are sampled from mu_old.
DISCREPANCY_RATIO_MEAN = "discrepancy_ratio_mean"
DISCREPANCY_KL = "discrepancy_kl"
EFFECTIVE_SAMPLE_SIZE = "effective_sample_size"
#: Mean |log r_s|.
STALENESS_LOG_RATIO_ABS_MEAN = "staleness_log_ratio_abs_mean"
#: Mean (log r_d)^2 and (log r_s)^2, whose roots are the rms.
DISCREPANCY_LOG_RATIO_SQUARE_MEAN = "discrepancy_log_ratio_square_mean"
STALENESS_LOG_RATIO_SQUARE_MEAN = "staleness_log_ratio_square_mean"
#: Mean r_d r_s, and effective sample size of these weights.
TOTAL_RATIO_MEAN = "total_ratio_mean"
TOTAL_EFFECTIVE_SAMPLE_SIZE = "total_effective_sample_size"
#: 1 where no token of a micro-batch was kept.
ALL_MASKED = "all_masked"
#: `at_lag` and `at_entropy` there are some of the above for such tokens alone, and
#: their share of all.
TOKEN_SHARE = "token_share"
#: Tuple of counts, bins of log r_d by bins of log r_s, see `core.ratio_density`.
RATIO_DENSITY = "ratio_density"

# --- learners/default_policy/: the update ------------------------------------------
POLICY_LOSS = "policy_loss"
#: RLlib's, of the optimizer step: norm of all gradients before clipping, and lr.
GRADIENT_NORM = "gradients_default_optimizer_global_norm"
LEARNING_RATE = "default_optimizer_learning_rate"
#: Of the gradients of the last two optimizer steps (with ``log_gradients``).
GRADIENT_COSINE = "gradient_cosine"
KL_TO_REFERENCE = "kl_to_reference"
VF_LOSS = "vf_loss"
ENTROPY = "entropy"
#: Version that the update started from.
POLICY_VERSION = "policy_version"
#: Age in versions of the tokens trained on.
STALENESS_MEAN = "staleness_mean"
STALENESS_MAX = "staleness_max"
#: Tuple of counts: tokens trained on by staleness 0, 1, 2 ...; the last also holds all
#: that are older.
STALENESS_TOKENS = "staleness_tokens"
#: Whether an update had anything to learn from (1 or 0); if not, nothing changed.
HAD_SIGNAL = "had_signal"
NUM_UPDATES_WITHOUT_SIGNAL = "num_updates_without_signal"
NUM_STEPS_WITHOUT_SIGNAL = "num_steps_without_signal"
#: Optimizer steps of an update, and those skipped for a gradient that is not finite,
#: since the start.
NUM_STEPS_TAKEN = "num_steps_taken"
NUM_SKIPPED_STEPS = "num_skipped_steps"
#: Agent tokens of an update.
NUM_AGENT_TOKENS = "num_agent_tokens"
TRAIN_TOKENS_PER_S = "train_tokens_per_s"
PADDING_FRACTION = "padding_fraction"
#: Share of agent tokens whose prediction took the engine's experts, where some came.
ROUTER_REPLAY_SHARE = "router_replay_share"
#: Episodes dropped: beyond the bound; their pi_old is lost; their group was lost.
NUM_EPISODES_DROPPED_STALE = "num_episodes_dropped_stale"
NUM_EPISODES_DROPPED_UNSCORED = "num_episodes_dropped_unscored"
NUM_EPISODES_DROPPED_LOST = "num_episodes_dropped_lost"
#: Their group held a reward that is no finite number, or log mu_old of that kind.
NUM_EPISODES_DROPPED_BAD_REWARD = "num_episodes_dropped_bad_reward"
NUM_EPISODES_DROPPED_BAD_LOGP = "num_episodes_dropped_bad_logp"

# --- learners/default_policy/: the source of pi_old --------------------------------
OLD_LOGPROB_SECONDS = "old_logprob_seconds"
OLD_LOGPROB_EXTRA_FORWARD_TOKENS = "old_logprob_extra_forward_tokens"
SNAPSHOT_BYTES = "snapshot_bytes"
SNAPSHOT_BYTES_ON_DISK = "snapshot_bytes_on_disk"
SNAPSHOT_NUM_VERSIONS = "snapshot_num_versions"
EWMA_DECAY = "ewma_decay"
EWMA_NUM_RESETS = "ewma_num_resets"
EWMA_RESETS_IN_A_ROW = "ewma_resets_in_a_row"
#: What `auto` measured last, whether this update was exact, and what is to be next.
AUTO_MASK_DISAGREEMENT = "auto_mask_disagreement"
AUTO_LOG_RATIO_ABS_ERROR_MEAN = "auto_log_ratio_abs_error_mean"
AUTO_COST_RATIO = "auto_cost_ratio"
AUTO_USES_EXACT = "auto_uses_exact"
AUTO_NUM_SWITCHES = "auto_num_switches"
AUTO_REASON = "auto_reason"
#: Pause of `interrupt_sync` before a publication.
INTERRUPTION_SECONDS = "interruption_seconds"
#: `compared`, of each source: see `core.compare_old_logp`, and what it costs.
COMPARED_MASK_SHARE = "mask_share"
COMPARED_ERROR = "log_ratio_abs_error_mean"
COMPARED_MASK_DISAGREEMENT = "mask_disagreement"
COMPARED_CORRELATION = "r_d_r_s_correlation"
COMPARED_SECONDS = "seconds"
COMPARED_NBYTES = "nbytes"
#: What the comparison cost, and one pass over the batch.
COMPARE_SECONDS = "compare_seconds"
COMPARE_ONE_PASS_SECONDS = "compare_one_pass_seconds"

# --- Top level ---------------------------------------------------------------------
#: Tuple of `timeline.Span`, what each part of the run was busy with.
TIMELINE = "timeline"
#: `phase_seconds`, the same summed up by phase: what an iteration spent its time on.
PHASE_SECONDS = "phase_seconds"
#: What the semantics guard says for the first time, a list of sentences.
SEMANTICS_WARNINGS = "semantics_warnings"
#: Of the first iteration: the evaluation before any training.
EVALUATION_AT_START = "evaluation_at_start"
#: How long the update had to wait for old-logit actors.
OLD_LOGIT_MODEL_WAIT_SECONDS = "old_logit_model_wait_seconds"

# --- ledger/: started = trained + masked + dropped_* + in flight, since the start ----
#: Units and fates of `ledger_count` and `ledger_bin`.
EPISODES = "episodes"
TOKENS = "tokens"
STARTED = "started"
TRAINED = "trained"
MASKED = "masked"
DROPPED = "dropped"
IN_FLIGHT = "in_flight"
BY_DOMAIN = "by_domain"
BY_LENGTH = "by_length"
BY_REWARD = "by_reward"
#: Episodes and tokens by which the identity above is missed: 0.
LEDGER_IDENTITY_ERROR = "ledger/identity_error"
#: News of episodes that had been accounted for already.
LEDGER_NUM_LATE = "ledger/num_late"

# --- env_runners/ ------------------------------------------------------------------
SUCCESS_RATE = "success_rate"
#: Mean of the reward's parts: partial credit where success is all or nothing.
RUBRIC_SCORE = "rubric_score"
#: ``checks/<domain>/<part of the reward>``: share of episodes that fulfil it.
CHECKS = "checks"
GENERATED_TOKENS_PER_S = "generated_tokens_per_s"
NUM_GENERATED_TOKENS_LIFETIME = "num_generated_tokens_lifetime"
WEIGHT_SYNC_SECONDS = "weight_sync_seconds"
#: Median of |log p_engine - log p_trainer| on a fixed prompt, after a transfer.
WEIGHT_PROBE_ERROR = "weight_probe_error"
#: Transfers that did not arrive; each is tried twice, then the engine is replaced.
NUM_WEIGHT_MISMATCHES = "num_weight_mismatches"
#: Engines that died, hung, held other weights than they should or gave no usable
#: log-probabilities; each was replaced, together with its env runner.
NUM_ENGINE_FAILURES = "num_engine_failures"
GENERATION_PAUSED_FRACTION = "generation_paused_fraction"
#: Where the tokens of an update grew old: versions published while their group was
#: under way, and while it waited for its update. `STALENESS_MEAN` is their sum.
STALENESS_FROM_GENERATION = "staleness_from_generation"
STALENESS_FROM_QUEUE = "staleness_from_queue"
#: Share of the time for which places for episodes stayed free: more would have broken
#: the staleness bound, or would have come too early.
HELD_BY_BOUND_FRACTION = "held_by_bound_fraction"
HELD_BY_PACING_FRACTION = "held_by_pacing_fraction"
NUM_VERSIONS_PER_EPISODE = "num_versions_per_episode"
NUM_MULTI_VERSION_EPISODES_LIFETIME = "num_multi_version_episodes_lifetime"
#: Followed by `EpisodeError.reason`: episodes of groups that ended so.
NUM_EPISODES_DROPPED = "num_episodes_dropped"
#: All episodes of their group earned the same; with ``drop_uniform_groups``.
NUM_EPISODES_DROPPED_UNIFORM = "num_episodes_dropped_uniform"
NUM_ENV_FAILURES = "num_env_failures"
#: Of an evaluation that ``evaluation_sample_timeout_s`` ended.
NUM_UNFINISHED_EPISODES = "num_unfinished_episodes"
NUM_MALFORMED_TOOL_CALLS = "num_malformed_tool_calls"
