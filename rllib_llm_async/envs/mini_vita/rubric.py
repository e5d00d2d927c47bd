"""What the mini_vita domains are scored by: independent checks, a rubric."""

from __future__ import annotations

from abc import abstractmethod

from rllib_llm_async.envs.mini.domain import Domain


class RubricDomain(Domain):
    """A domain whose final state is judged in parts."""

    @abstractmethod
    def rubric(self) -> dict[str, bool]:
        """The checks of this domain's final state."""

    def verdict(self) -> dict[str, float]:
        """1.0 or 0.0 per check; the task is solved if all hold."""
        checks = {
            "policy": self.has_kept_to_policy(),
            "outcome": self.has_communicated(),
            "nothing_else": len(self.changes) == len(self.must_change),
            **self.rubric(),
        }
        return {name: float(holds) for name, holds in checks.items()}
