"""Result keys, every one once; where a key stands in a result is said above it."""

# --- learners/default_policy/ ---------------------------------------------------
POLICY_VERSION = "policy_version"
STALENESS_MEAN = "staleness_mean"
STALENESS_MAX = "staleness_max"
OLD_LOGPROB_SECONDS = "old_logprob_seconds"
OLD_LOGPROB_EXTRA_FORWARD_TOKENS = "old_logprob_extra_forward_tokens"
TRAIN_TOKENS_PER_S = "train_tokens_per_s"
PADDING_FRACTION = "padding_fraction"
#: Tuple of counts: tokens trained on by staleness 0, 1, 2 ...; the last also holds all
#: that are older.
STALENESS_TOKENS = "staleness_tokens"
#: Tuple of counts, bins of log r_d by bins of log r_s, see `core.ratio_density`.
RATIO_DENSITY = "ratio_density"
NUM_EPISODES_DROPPED_STALE = "num_episodes_dropped_stale"
NUM_EPISODES_DROPPED_UNSCORED = "num_episodes_dropped_unscored"
#: Their group held a reward that is no finite number, or log mu_old of that kind.
NUM_EPISODES_DROPPED_BAD_REWARD = "num_episodes_dropped_bad_reward"
NUM_EPISODES_DROPPED_BAD_LOGP = "num_episodes_dropped_bad_logp"
#: Whether an update had anything to learn from (1 or 0); if not, nothing changed.
HAD_SIGNAL = "had_signal"
NUM_UPDATES_WITHOUT_SIGNAL = "num_updates_without_signal"
NUM_STEPS_WITHOUT_SIGNAL = "num_steps_without_signal"
#: Optimizer steps skipped for a gradient that is not finite, since the start.
NUM_SKIPPED_STEPS = "num_skipped_steps"
#: Agent tokens of an update.
NUM_AGENT_TOKENS = "num_agent_tokens"
INTERRUPTION_SECONDS = "interruption_seconds"
NUM_EPISODES_DROPPED_LOST = "num_episodes_dropped_lost"

# --- Anywhere ------------------------------------------------------------------
#: Tuple of `timeline.Span`, what each part of the run was busy with.
TIMELINE = "timeline"

# --- env_runners/ --------------------------------------------------------------
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
GENERATION_PAUSED_FRACTION = "generation_paused_fraction"
NUM_VERSIONS_PER_EPISODE = "num_versions_per_episode"
#: All episodes of their group earned the same; with ``drop_uniform_groups``.
NUM_EPISODES_DROPPED_UNIFORM = "num_episodes_dropped_uniform"
NUM_ENV_FAILURES = "num_env_failures"
NUM_MALFORMED_TOOL_CALLS = "num_malformed_tool_calls"
