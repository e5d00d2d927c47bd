"""Names of batch columns and episode annotations, one home for each.

A log-probability always carries the name of the policy that produced it
(behaviour = the inference engine, old = the trainer under the sampling weights) and
no key ever holds a second meaning.

A training batch is *row-packed*: every column has shape ``[rows, length]``, a row
holds several whole sequences one after the other, and position ``t`` of a column
describes token ``t`` itself (not the token that position ``t`` predicts).
"""

# --- Columns of a row-packed training batch -------------------------------------
#: int64, token ids; padding holds 0.
TOKENS = "tokens"
#: int64, position within the sequence; restarts at 0 where a new sequence begins.
POSITION_IDS = "position_ids"
#: bool, true at tokens that the agent generated (never at a sequence's first token).
LOSS_MASK = "loss_mask"
#: float32, log mu_old: log-probability reported by the engine that sampled the token.
BEHAVIOR_LOGP = "behavior_logp"
#: float32, log pi_old (or its proxy), added by the learner before the first step.
OLD_LOGP = "old_logp"
#: float32, log pi_old that came with the episodes, NaN in those without. There if
#: `old_logit_model` scored one.
SCORED_OLD_LOGP = "scored_old_logp"
#: float32, log pi_ref under the reference weights; there with a KL penalty only.
REFERENCE_LOGP = "reference_logp"
#: float32, what the token's loss is divided by, see ``loss_normalizer``.
LOSS_DIVISOR = "loss_divisor"
#: bool, agent tokens that the Train-Infer mask let into the step; of a minibatch.
KEPT = "kept"
#: float32, advantage of the token, constant in the trained weights.
ADVANTAGES = "advantages"
#: float32, return that the value head is to predict, at the first token of a turn.
VALUE_TARGETS = "value_targets"
#: float32, tokens of the turn at its first token, 0 elsewhere: its weight in the loss.
VALUE_WEIGHTS = "value_weights"
#: int64, policy version that sampled the token; -1 where the agent sampled nothing.
VERSIONS = "versions"
#: int64, number of the sequence (episode) in the batch; -1 at padding.
SEQUENCE_IDS = "sequence_ids"
#: int64, the episode's `EPISODE_KEY`; -1 at padding. There if the episodes carry one.
EPISODE_KEYS = "episode_keys"
#: int64, number of the agent turn in the batch; -1 where the agent sampled nothing.
TURN_IDS = "turn_ids"
#: int16 ``[rows, length, layers, top_k]``, experts that the engine sent the token to;
#: -1 where nothing is known. There if engines return them.
ROUTED_EXPERTS = "routed_experts"
#: Level of a ratio -> the column that numbers its units; tokens need none.
UNIT_IDS = {"token": None, "turn": TURN_IDS, "sequence": SEQUENCE_IDS}

# --- What travels through the env runner's connectors (one episode at a time) ----
#: list[dict], OpenAI chat messages that the environment has just returned.
MESSAGES = "messages"
#: list[dict], OpenAI tool schemas that the episode began with.
TOOLS = "tools"
#: list[int], token ids to append to the episode's context.
NEW_TOKENS = "new_tokens"
#: EngineOutput of one agent turn.
ENGINE_OUTPUT = "engine_output"
#: dict, the assistant message parsed from the generated tokens.
ASSISTANT_MESSAGE = "assistant_message"

# --- SingleAgentEpisode ---------------------------------------------------------
#: extra_model_outputs: float32 ``[turn tokens]``, log mu_old per token.
EPISODE_BEHAVIOR_LOGP = "behavior_logp"
#: extra_model_outputs: int64 ``[turn tokens]``, policy version per token.
EPISODE_VERSIONS = "policy_versions"
#: extra_model_outputs: float32 ``[turn tokens]``, log pi_old per token, if scored.
EPISODE_OLD_LOGP = "old_logp"
#: extra_model_outputs: uint8 or uint16 ``[tokens, layers, top_k]``, see `EngineOutput`:
#: joined, they are of all tokens but the last. There if engines return them.
EPISODE_ROUTED_EXPERTS = "routed_experts"
#: custom_data: a random number that stays with the episode wherever it goes.
EPISODE_KEY = "episode_key"
#: custom_data: list[dict], all messages of the episode; there if asked for.
EPISODE_MESSAGES = "messages"
#: custom_data: identifies the group of episodes that share a task.
GROUP_ID = "group_id"
