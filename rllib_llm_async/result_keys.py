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
NUM_ENV_FAILURES = "num_env_failures"
NUM_MALFORMED_TOOL_CALLS = "num_malformed_tool_calls"
