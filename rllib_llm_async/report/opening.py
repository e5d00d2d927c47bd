"""What the page begins with: what the runs show, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from rllib_llm_async import result_keys
from rllib_llm_async.report.cost import EPISODES, UPDATE, mean_update
from rllib_llm_async.report.groups import Group, collapsed, largest_fall, mask_share
from rllib_llm_async.report.mask import mask_finding
from rllib_llm_async.report.section import percent
from rllib_llm_async.report.success import success_finding
from rllib_llm_async.result_keys import learner

#: A mask that keeps less is worth a look; so is an iteration that waits for longer.
_MASK_SHARE, _WAITING_SHARE = 0.9, 0.5


def opening(groups: Sequence[Group]) -> list[str]:
    """Three sentences: success, the two ratios, and the first thing to do."""
    advice = next(_advice(groups), "Nothing stands out: repeat it with other seeds.")
    return [s for s in (success_finding(groups), mask_finding(groups), advice) if s]


def _advice(groups: Sequence[Group]) -> Iterator[str]:
    """What could be better, the most pressing first."""
    for group in groups:
        who = f"{group.label}: " if len(groups) > 1 else ""
        if group.mean(collapsed):
            fall = group.mean(largest_fall) or 0.0
            yield (
                f"Next: {who}success fell by {fall:.3f} from its peak; tighten "
                "eps_stale, or lower lr or max_staleness."
            )
    for group in groups:
        who = f"{group.label}: " if len(groups) > 1 else ""
        share = group.mean(mask_share)
        if share is not None and share < _MASK_SHARE:
            yield (
                f"Next: {who}the mask drops {percent(1 - share)} of the tokens; if "
                "lag_0/train_infer_mask is near 1, old_logprob_source: snapshot_old "
                "keeps them, else widen eps_ti."
            )
        _, clipped, _ = group.band(learner(result_keys.PPO_CLIP_FRACTION))
        if len(clipped) > 1 and not clipped.any():
            yield (
                f"Next: {who}the clip never acts; set minibatch_size below "
                "episodes_per_update, or choose another source."
            )
    for group in groups:
        who = f"{group.label}: " if len(groups) > 1 else ""
        yield from _where_time_goes(group, who)


def _where_time_goes(group: Group, who: str) -> Iterator[str]:
    parts = mean_update(group.runs)
    if not parts:
        return
    waiting, update = parts.get(EPISODES, 0.0), parts[UPDATE]
    share = waiting / (waiting + update) if waiting + update else 0.0
    if share > _WAITING_SHARE:
        yield (
            f"Next: {who}learners wait for episodes in {percent(share)} of the time; "
            "more num_env_runners or num_concurrent_episodes would be faster."
        )
    elif share < 1 - _WAITING_SHARE and _is_engine_idle(group):
        yield (
            f"Next: {who}engines wait for learners, which update for "
            f"{percent(1 - share)} of the time; more num_learners would be faster."
        )


def _is_engine_idle(group: Group) -> bool:
    """Whether engines stand still for a good part of an iteration."""
    shares = [
        generating / (waiting + update)
        for run in group.runs
        for generating, waiting, update in zip(
            *(
                run.series(result_keys.phase_seconds(*key))[1]
                for key in (
                    ("engine", "generating"),
                    ("driver", EPISODES),
                    ("driver", UPDATE),
                )
            ),
            strict=False,
        )
    ]
    return bool(shares) and fmean(shares) < 1 - _WAITING_SHARE
