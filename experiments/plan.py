"""What is trained: each experiment is a question and a list of runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

#: Tuned files that runs begin from, by domain.
FILES = {
    "airline": "mini_tau2_ppo_ewma_async.yaml",
    "retail": "mini_tau2_retail.yaml",
    "telecom": "mini_tau2_telecom.yaml",
    "delivery": "mini_vita_delivery.yaml",
    "instore": "mini_vita_instore.yaml",
}
#: Where log pi_old comes from, the floor first and the exact one last.
SOURCES = (
    "rollout",
    "current_recompute",
    "linear_prox",
    "interp_prox_loglinear",
    "ewma_prox",
    "ppo_ewma_async",
    "snapshot_old",
)
#: Two of them show whether old logits matter at all.
FLOOR_AND_EXACT = ("rollout", "snapshot_old")

#: As `model`: see `experiments.mixture`.
SMALL_MIXTURE = "small_mixture"
#: Engine and learner disagree: keys and values in eight bits and all else in bfloat16
#: beside a float32 learner.
NUMERICS = {"engine.dtype": "bfloat16", "engine.kv_cache_dtype": "fp8_e5m2"}
#: Episodes that outlive several updates: partial rollouts of several versions.
STALE = {
    "env_config.user_seconds": 2.0,
    "num_concurrent_episodes": 768,
    "max_staleness": 8,
}
#: Each version is far from the one before: ten times the tuned learning rate, and two
#: passes over each batch.
LARGE_STEPS = {"lr": 5e-3, "num_epochs": 2}
#: Close, so that both act; what `eps_ti` costs is a question of its own.
THRESHOLDS = {"eps_ti": 1.05, "eps_stale": 1.2}
HARD = {**THRESHOLDS, **NUMERICS, **STALE, **LARGE_STEPS}
REGIMES: dict[str, dict[str, Any]] = {
    "calm": THRESHOLDS,
    "numerics": {**THRESHOLDS, **NUMERICS},
    "stale": {**THRESHOLDS, **STALE},
    "large steps": {**THRESHOLDS, **LARGE_STEPS},
    "numerics and large steps": {**THRESHOLDS, **NUMERICS, **LARGE_STEPS},
    "stale and large steps": {**THRESHOLDS, **STALE, **LARGE_STEPS},
    "hard": HARD,
}


@dataclass(frozen=True)
class Run:
    """One training run: an arm of an experiment, on a domain, under a seed.

    Attributes:
        settings: As of ``rllib train --set``, beside the domain's tuned file.
        num_updates: After which it is evaluated.
    """

    arm: str
    domain: str
    seed: int
    settings: Mapping[str, Any] = field(hash=False)
    num_updates: int = 20

    @property
    def name(self) -> str:
        """Of no other run of its experiment."""
        return f"{self.arm}/{self.domain}/{self.seed}"

    def same_training(self, other: Run) -> bool:
        """Whether both are one run under two names, as arms of two experiments."""
        return replace(self, arm=other.arm) == other


@dataclass(frozen=True)
class Experiment:
    """A question, and the runs that answer it, in the order in which they are made."""

    question: str
    runs: tuple[Run, ...]


def _runs(
    arms: Mapping[str, Mapping[str, Any]],
    domains: Iterable[str],
    seeds: Iterable[int],
    num_updates: int = 20,
) -> tuple[Run, ...]:
    """Seed by seed: what is there when it is stopped compares all arms."""
    return tuple(
        Run(arm, domain, seed, settings, num_updates)
        for seed in seeds
        for domain in domains
        for arm, settings in arms.items()
    )


def _regimes() -> Experiment:
    floor = {"old_logprob_source": "rollout"}
    exact = {
        "old_logprob_source": "snapshot_old",
        "compare_sources": [s for s in SOURCES if s not in FLOOR_AND_EXACT],
    }
    arms = {
        f"{regime}: {source['old_logprob_source']}": {**settings, **source}
        for regime, settings in REGIMES.items()
        for source in (floor, exact)
    }
    return Experiment(
        "In which regimes do old logits matter, and how far are the proxies off?",
        _runs(arms, ["airline"], range(2)),
    )


def _steps() -> Experiment:
    def arms(*lrs: float) -> dict[str, dict[str, Any]]:
        return {
            f"{source}, lr {lr}": {**HARD, "lr": lr, "old_logprob_source": source}
            for lr in lrs
            for source in (
                "rollout",
                "current_recompute",
                "ppo_ewma_async",
                "snapshot_old",
            )
        }

    # Five seeds where sources differ: that is what a user would choose by.
    return Experiment(
        "How large may steps be, by where log pi_old comes from?",
        _runs(arms(5e-4, 2.5e-3, 5e-3, 1e-2), ["airline"], range(3))
        + _runs(arms(5e-3, 1e-2), ["airline"], range(3, 5)),
    )


def _sources() -> Experiment:
    arms = {source: {**HARD, "old_logprob_source": source} for source in SOURCES}
    return Experiment(
        "Which source of log pi_old learns best where they differ?",
        _runs(arms, FILES, range(3)) + _runs(arms, ["airline"], range(3, 5)),
    )


def _thresholds() -> Experiment:
    # eps_ti 100 masks next to nothing: what remains is what the source alone does.
    arms = {
        f"{source}: eps_ti {eps_ti}, eps_stale {eps_stale}": {
            **HARD,
            "old_logprob_source": source,
            "eps_ti": eps_ti,
            "eps_stale": eps_stale,
        }
        for source in ("snapshot_old", "ppo_ewma_async", "interp_prox_loglinear")
        for eps_ti, eps_stale in (
            *((eps_ti, 1.2) for eps_ti in (1.02, 1.05, 1.2, 1.5, 100)),
            *((1.05, eps_stale) for eps_stale in (1.05, 1.1, 1.5)),
        )
    }
    levels = {
        f"snapshot_old: {level} level": {
            **HARD,
            "old_logprob_source": "snapshot_old",
            "ratio_level": level,
        }
        for level in ("turn", "sequence")
    }
    tuned_steps = {
        f"snapshot_old, tuned steps and no staleness: eps_ti {eps_ti}": {
            **REGIMES["numerics"],
            "old_logprob_source": "snapshot_old",
            "eps_ti": eps_ti,
        }
        for eps_ti in (1.05, 1.2, 1.5, 100)
    }
    return Experiment(
        "What does each threshold do, with exact old logits and with proxies?",
        _runs(arms | levels | tuned_steps, ["airline"], range(3)),
    )


def _ewma() -> Experiment:
    arms = {
        f"decay {decay}, {'reset' if reset else 'no reset'}": {
            **HARD,
            "old_logprob_source": "ppo_ewma_async" if reset else "ewma_prox",
            "ewma_decay": decay,
        }
        for decay in (0.4, 0.5, 0.75, 0.9, 0.97, "auto")
        for reset in (True, False)
    }
    bounds = {
        f"decay auto, reset, bound {bound}": {
            **HARD,
            "old_logprob_source": "ppo_ewma_async",
            "max_staleness": bound,
        }
        for bound in (1, 2, 4)
    }
    # The default of 0.9 resets nothing here, not even the largest decay.
    early = {
        "decay 0.97, reset under 0.98": {
            **arms["decay 0.97, reset"],
            "ewma_reset_threshold": 0.98,
        }
    }
    return Experiment(
        "How large a decay, and what does the automatic reset prevent?",
        _runs(arms | early | bounds, ["airline"], range(3), num_updates=40),
    )


def _asynchrony() -> Experiment:
    arms = {
        f"{source}, bound {bound}": {
            **HARD,
            "old_logprob_source": source,
            "max_staleness": bound,
        }
        for source in ("rollout", "current_recompute", "ppo_ewma_async", "snapshot_old")
        for bound in (0, 1, 2, 4, 8, 16)
    }
    return Experiment(
        "What does asynchrony bring per hour, and what does it cost in success?",
        _runs(arms, ["airline"], range(2)),
    )


def _mixture() -> Experiment:
    dense = {
        **THRESHOLDS,
        **STALE,
        **LARGE_STEPS,
        "engine.dtype": "bfloat16",
        "old_logprob_source": "snapshot_old",
    }
    mixture = {**dense, "model": SMALL_MIXTURE}
    arms = {
        "dense": dense,
        "mixture, routing replayed": mixture,
        "mixture, each routes by itself": {**mixture, "router_replay": "none"},
    }
    return Experiment(
        "What does a mixture of experts need that a dense model does not?",
        _runs(arms, ["airline"], range(3)),
    )


EXPERIMENTS = {
    "regimes": _regimes(),
    "steps": _steps(),
    "sources": _sources(),
    "thresholds": _thresholds(),
    "ewma": _ewma(),
    "asynchrony": _asynchrony(),
    "mixture": _mixture(),
}
