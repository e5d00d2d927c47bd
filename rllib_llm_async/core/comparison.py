"""How far one reading of log pi_old is from the exact one, and what it would change."""

from __future__ import annotations

import torch
from torch import Tensor

from rllib_llm_async import result_keys
from rllib_llm_async.core.ratios import log_ratio, share, train_infer_mask

#: Variance of a log ratio below which a correlation with it means nothing.
_MIN_VARIANCE = 1e-12


def compare_old_logp(
    old_logp: Tensor,
    exact_old_logp: Tensor,
    logp: Tensor,
    behavior_logp: Tensor,
    mask: Tensor,
    *,
    eps_ti: float,
    mask_unit_ids: Tensor | None = None,
) -> dict[str, Tensor]:
    """Error of ``old_logp`` on the agent tokens of a batch; all arguments one shape.

    Args:
        old_logp: log pi_old by the reading under test.
        exact_old_logp: log pi_old under the weights that sampled each token. Where it
            or ``old_logp`` is NaN, nothing is compared.
        logp: log pi_theta.
        behavior_logp: log mu_old.
        mask: bool, true at agent tokens.
        eps_ti: Bound of the Train-Infer mask.
        mask_unit_ids: Units over which the mask forms r_d, as in `decoupled_ppo_loss`.

    Returns:
        Scalars: ``mask_share``, the share of tokens it keeps (of those at which
        ``old_logp`` is known, whether the exact one is or not);
        ``log_ratio_abs_error_mean``; ``mask_disagreement``, the share of tokens that
        only one of the two masks keeps; ``r_d_r_s_correlation``, Pearson's, of log r_d
        and log r_s (0 where one of them is constant).
    """

    def kept_by(readings: Tensor, tokens: Tensor) -> Tensor:
        log_r_d = log_ratio(readings, behavior_logp, tokens, mask_unit_ids)
        return train_infer_mask(log_r_d, tokens, eps_ti)

    known = mask & ~old_logp.isnan()
    mask_share = share(kept_by(old_logp, known), known)
    mask = known & ~exact_old_logp.isnan()
    count = mask.sum().clamp(min=1)
    error = log_ratio(old_logp, exact_old_logp, mask)
    kept, exactly_kept = kept_by(old_logp, mask), kept_by(exact_old_logp, mask)
    log_r_d = log_ratio(old_logp, behavior_logp, mask)
    log_r_s = log_ratio(logp, old_logp, mask)
    return {
        result_keys.COMPARED_MASK_SHARE: mask_share,
        result_keys.COMPARED_ERROR: error.abs().sum() / count,
        result_keys.COMPARED_MASK_DISAGREEMENT: (kept ^ exactly_kept).sum() / count,
        result_keys.COMPARED_CORRELATION: _correlation(log_r_d[mask], log_r_s[mask]),
    }


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    variances = a.square().mean(), b.square().mean()
    if len(a) < 2 or min(variances) < _MIN_VARIANCE:
        return torch.zeros((), dtype=torch.float32, device=a.device)
    return ((a * b).mean() / (variances[0] * variances[1]).sqrt()).float()
