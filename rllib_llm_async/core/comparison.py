"""How far one reading of log pi_old is from the exact one, and what it would change."""

from __future__ import annotations

import torch
from torch import Tensor

from rllib_llm_async import result_keys
from rllib_llm_async.core.ratios import log_ratio, train_infer_mask

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
    return comparison_figures(
        comparison_sums(
            old_logp,
            exact_old_logp,
            logp,
            behavior_logp,
            mask,
            eps_ti=eps_ti,
            mask_unit_ids=mask_unit_ids,
        )
    )


def comparison_sums(
    old_logp: Tensor,
    exact_old_logp: Tensor,
    logp: Tensor,
    behavior_logp: Tensor,
    mask: Tensor,
    *,
    eps_ti: float,
    mask_unit_ids: Tensor | None = None,
) -> Tensor:
    """What `compare_old_logp` has to know of one part of a batch, float64 ``[10]``.

    Sums of the parts are those of the whole, from which `comparison_figures` follow.
    """

    def kept_by(readings: Tensor, tokens: Tensor) -> Tensor:
        log_r_d = log_ratio(readings, behavior_logp, tokens, mask_unit_ids)
        return train_infer_mask(log_r_d, tokens, eps_ti)

    known = mask & ~old_logp.isnan()
    mask = known & ~exact_old_logp.isnan()
    # Both are 0 outside the mask.
    log_r_d = log_ratio(old_logp, behavior_logp, mask).double()
    log_r_s = log_ratio(logp, old_logp, mask).double()
    summands = (
        known,
        kept_by(old_logp, known),
        mask,
        log_ratio(old_logp, exact_old_logp, mask).abs(),
        kept_by(old_logp, mask) ^ kept_by(exact_old_logp, mask),
        *(log_r_d, log_r_s),
        *(log_r_d.square(), log_r_s.square(), log_r_d * log_r_s),
    )
    return torch.stack([values.sum(dtype=torch.float64) for values in summands])


def comparison_figures(sums: Tensor) -> dict[str, Tensor]:
    """What `compare_old_logp` returns, from `comparison_sums`."""
    known, kept, count, error, differing, *moments = sums
    return {
        result_keys.COMPARED_MASK_SHARE: kept / known.clamp(min=1),
        result_keys.COMPARED_ERROR: error / count.clamp(min=1),
        result_keys.COMPARED_MASK_DISAGREEMENT: differing / count.clamp(min=1),
        result_keys.COMPARED_CORRELATION: _correlation(
            *(moment / count.clamp(min=1) for moment in moments)
        ),
    }


def _correlation(a: Tensor, b: Tensor, aa: Tensor, bb: Tensor, ab: Tensor) -> Tensor:
    """Pearson's, from the means of two variables and of their products."""
    variances = aa - a.square(), bb - b.square()
    if min(variances) < _MIN_VARIANCE:
        return torch.zeros_like(a)
    return (ab - a * b) / (variances[0] * variances[1]).sqrt()
