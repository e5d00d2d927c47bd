"""The mathematics: ratios, masks, objective, EWMA, snapshots, log-probabilities.

Imports torch alone, so that it can be read, tested and run without Ray or vLLM.
"""

from rllib_llm_async.core.comparison import compare_old_logp
from rllib_llm_async.core.density import NUM_RATIO_BINS, RATIO_BIN_EDGES, ratio_density
from rllib_llm_async.core.evaluation import pass_at_k, pass_hat_k
from rllib_llm_async.core.ewma import EWMAWeights
from rllib_llm_async.core.kl import kl_penalty
from rllib_llm_async.core.logprobs import head_logprobs, token_logprobs
from rllib_llm_async.core.objective import decoupled_ppo_loss, kept_tokens
from rllib_llm_async.core.proximal import interpolate_logp, staleness_alpha
from rllib_llm_async.core.snapshots import SnapshotStore
from rllib_llm_async.core.strata import ratio_metrics_by_entropy, ratio_metrics_by_lag

__all__ = [
    "NUM_RATIO_BINS",
    "RATIO_BIN_EDGES",
    "EWMAWeights",
    "SnapshotStore",
    "compare_old_logp",
    "decoupled_ppo_loss",
    "head_logprobs",
    "interpolate_logp",
    "kept_tokens",
    "kl_penalty",
    "pass_at_k",
    "pass_hat_k",
    "ratio_density",
    "ratio_metrics_by_entropy",
    "ratio_metrics_by_lag",
    "staleness_alpha",
    "token_logprobs",
]
